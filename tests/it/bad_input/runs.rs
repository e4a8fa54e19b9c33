//! Tasks and machines that misbehave while something runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use zkmw::contract::task::{Reason, State};

use crate::harness::{Cluster, LIMIT, Proc, eventually};
use crate::plain::{Plain, Service, json_lines};

#[test]
fn a_missing_program_is_127_and_one_that_may_not_run_126() {
    let mut service = Service::new("no-program", &[]);
    let cluster = &service.cluster;
    Plain::on(cluster, &["submit", "--", "/no/such", "-x"])
        .run()
        .says(127, &["could not be started", "/no/such"]);
    let file = cluster.dir().join("plain-file");
    fs::write(&file, "no program").expect("written");
    let file = file.display().to_string();
    Plain::on(cluster, &["submit", "--", &file]).run().says(126, &["could not be started"]);
    // The shell's own words are the task's error output.
    let out = Plain::on(cluster, &["submit", "/no/such"]).run();
    out.says(127, &["/no/such"]);
    let out = Plain::on(cluster, &["submit", "--json", "--", "/no/such"]).run();
    let task = &json_lines(&out.text())[0];
    assert_eq!((out.code, &task["state"], &task["reason"]), (127, &"failed".into(), &"not-started".into()));
    service.is_unharmed();
}

/// The most memory that a process ever had, in KiB.
fn peak_kib(process: &Proc) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn an_endless_output_is_cut_in_the_middle_and_takes_no_memory() {
    const GIB: u64 = 1 << 30;
    let mut service = Service::new("endless", &[]);
    let before = peak_kib(&service.worker);
    let line = "echo first; head -c 1073741824 /dev/zero; echo; echo last";
    let out = Plain::on(&service.cluster, &["submit", line]).run_within(Duration::from_secs(90));
    assert_eq!(out.code, 73, "a part is not the whole: {}", out.stderr);
    assert!(out.stdout.starts_with(b"first\n\0") && out.stdout.ends_with(b"\0\nlast\n"));
    let kept = out.stdout.len() as u64;
    assert!((32 * 1024..=64 * 1024).contains(&kept), "the default limit is 64 KiB: {kept}");
    let words = format!("{} bytes of its output were not kept", GIB + 12 - kept);
    assert!(out.stderr.contains(&words), "{words}: {}", out.stderr);
    let grown = peak_kib(&service.worker) - before;
    assert!(grown < 16 * 1024, "the worker grew by {grown} KiB");
    // As JSON, and within the smallest of limits.
    let cluster = &service.cluster;
    let none = cluster.worker("w0", &["--output-limit", "0", "--label", "kept=none"]);
    let words = ["submit", "--json", "--require", "kept=none", "--allow-truncated", "echo gone"];
    let out = Plain::on(cluster, &words).run();
    assert_eq!(out.code, 0, "{}", out.stderr);
    let task = &json_lines(&out.text())[0];
    assert_eq!((&task["state"], &task["stdout"]["omitted"]), (&"done".into(), &5.into()), "{task}");
    drop(none);
    service.is_unharmed();
}

#[test]
fn every_byte_of_an_output_comes_through() {
    let mut service = Service::new("bytes", &[]);
    let all: Vec<u8> = (0..=255).chain([0xff, 0xfe, b'\r', b'\n', 0xc3]).collect();
    let file = service.cluster.dir().join("bytes");
    fs::write(&file, &all).expect("written");
    let line = format!("cat {0}; cat {0} >&2", file.display());
    let out = Plain::on(&service.cluster, &["submit", &line]).run();
    assert_eq!((out.code, out.stdout), (0, all.clone()));
    assert_eq!(out.stderr, String::from_utf8_lossy(&all));
    service.is_unharmed();
}

/// A tiny file system that is full, unmounted when dropped.
struct Full {
    dir: PathBuf,
    mounted: bool,
}

impl Full {
    /// The smallest tmpfs, where mounting is permitted. Elsewhere `/dev/full`, behind a link of the name that the
    /// worker writes its run file to: the same error (ENOSPC) from the same write.
    fn new(dir: &Path, worker: &str) -> Full {
        fs::create_dir_all(dir).expect("a folder");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=4k,mode=0700", "tmpfs"]).arg(dir).output();
        let mounted = mount.is_ok_and(|mount| mount.status.success());
        if mounted {
            let _ = fs::write(dir.join("filler"), [0; 4096]);
            let full = fs::write(dir.join("more"), [1]).expect_err("it is full");
            assert_eq!(full.raw_os_error(), Some(28), "ENOSPC");
        } else {
            eprintln!("mounting is not permitted here: /dev/full replaces a full disk");
            std::os::unix::fs::symlink("/dev/full", dir.join(format!("{worker}.json.next"))).expect("a link");
        }
        Full { dir: dir.to_path_buf(), mounted }
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        }
    }
}

#[test]
fn a_worker_whose_disk_is_full_works_on_and_says_so_once() {
    let cluster = Cluster::new("full-disk");
    let dir = cluster.dir().join("full");
    let _full = Full::new(&dir, "w1");
    let mut master = cluster.master("m1");
    let mut worker = cluster.worker("w1", &["--run-dir", dir.to_str().expect("UTF-8"), "--slots", "2"]);
    cluster.registered(&["w1"]);
    for n in 0..4 {
        let out = Plain::on(&cluster, &["submit", &format!("echo {n}")]).run();
        assert_eq!((out.code, out.text()), (0, format!("{n}\n")), "{}", out.stderr);
    }
    let log = worker.stderr();
    let lines = log.lines().filter(|line| line.contains(dir.to_str().expect("UTF-8"))).count();
    assert_eq!(lines, 1, "{log}");
    assert!(log.contains("must wait") || log.contains("may have to wait"), "it says what that costs: {log}");
    assert!(worker.is_running() && master.is_running());
}

/// A task may write nothing, close its streams, or leave a grandchild that holds them.
#[test]
fn unusual_ends_of_a_task_are_reported_as_they_are() {
    let mut service = Service::new("odd-ends", &["--slots", "2"]);
    let cluster = &service.cluster;
    let out = Plain::on(cluster, &["submit", "exec >&- 2>&-; exit 3"]).run();
    assert_eq!((out.code, out.stdout.len()), (3, 0), "{out:?}");
    // Its own exit codes may equal ours: --json separates them.
    for code in [2, 64, 69, 124, 126, 255] {
        let out = Plain::on(cluster, &["submit", "--json", &format!("exit {code}")]).run();
        let task = &json_lines(&out.text())[0];
        assert_eq!((out.code, &task["reason"], &task["exit_code"]), (code, &"exit".into(), &code.into()));
    }
    // A grandchild in the group that holds the output open is killed with the group.
    let pid = cluster.dir().join("pid");
    let id = cluster.submit_detached(&[&format!("sleep 100 & echo $! >{}; echo started", pid.display())]);
    let task = cluster.ended(&id, Duration::from_secs(10));
    let outcome = task.outcome.expect("ended");
    assert_eq!((outcome.state, outcome.reason), (State::Done, None::<Reason>));
    assert_eq!(outcome.stdout.captured().head, b"started\n");
    let pid: u32 = fs::read_to_string(&pid).expect("written").trim().parse().expect("a pid");
    assert!(!crate::harness::process::is_alive(pid), "its group was killed before the outcome was written");
    service.is_unharmed();
    eventually(LIMIT, "both slots are free", || {
        service
            .cluster
            .assignments()
            .iter()
            .all(|(_, assignment, _)| assignment.entries.is_empty())
            .then_some(())
    });
}
