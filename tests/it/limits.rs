//! Processes that may have few descriptors or threads: each works, or ends and says what to raise. None hangs.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, geteuid, setrlimit};

use crate::harness::ensemble::copy_files;
use crate::harness::{Cluster, LIMIT, Proc, eventually};

/// A process that does not work after this time hangs. Fewer calls at a time take longer.
const WORKS_WITHIN: Duration = Duration::from_secs(20);

/// A user who has no other process: threads are counted for each user, and never for root.
const STRANGER: u32 = 61_234;

/// Limits from where a program can just be loaded to where there is enough for everything.
const DESCRIPTORS: std::ops::RangeInclusive<u64> = 6..=32;
const THREADS: std::ops::RangeInclusive<u64> = 1..=16;

/// Try again later.
const TRY_AGAIN: i32 = 75;

/// Starts the binary with a limit of one resource; it runs as `user`.
pub fn limited(
    cluster: &Cluster,
    program: &Path,
    (resource, limit): (Resource, u64),
    user: Option<u32>,
    args: &[&str],
) -> Proc {
    let label = format!("{}-{limit}", args[0]);
    cluster.start_program(program, &label, args, |command| {
        if let Some(user) = user {
            command.uid(user).gid(user).current_dir("/");
        }
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        // SAFETY: setrlimit is one system call, and may be made between fork and exec.
        unsafe { command.pre_exec(move || Ok(setrlimit(resource, limit)?)) };
    })
}

/// Whether the process works. If not, it has ended and said which limit to raise.
fn works(process: &mut Proc, is_daemon: bool, what: &str) -> bool {
    let came = eventually(WORKS_WITHIN, &format!("it works or ends: {what}"), || {
        let connected = is_daemon && process.stderr().contains("connected to");
        (connected || !process.is_running()).then_some(connected)
    });
    if came {
        process.term();
        process.wait_exit(LIMIT);
        return true;
    }
    let exit = process.wait_exit(LIMIT);
    if exit.code == 0 && !is_daemon {
        return true;
    }
    assert_eq!(exit.code, TRY_AGAIN, "{what}: {exit:?}");
    assert!(exit.stderr.contains("raise the limit"), "{what}: {exit:?}");
    assert!(!exit.stderr.contains("panicked"), "{what}: {exit:?}");
    false
}

#[test]
fn with_too_few_descriptors_every_role_says_so_and_ends() {
    let cluster = Cluster::new("few-descriptors");
    let (_master, _worker) = (cluster.master("m"), cluster.worker("w", &[]));
    cluster.registered(&["w"]);
    let run_dir = cluster.dir().join("run").display().to_string();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_zkmw"));
    for role in ["submit", "status", "master", "worker", "elector"] {
        let is_daemon = !matches!(role, "submit" | "status");
        let mut started: Vec<(u64, Proc)> = DESCRIPTORS
            .map(|limit| {
                let id = format!("{role}-{limit}");
                let args: &[&str] = match role {
                    "submit" => &["submit", "true"],
                    "status" => &["status"],
                    "master" => &["master", "--id", &id],
                    "worker" => &["worker", "--id", &id, "--run-dir", &run_dir],
                    _ => &["elector", "--id", &id, "--", "sleep", "60"],
                };
                (limit, limited(&cluster, &program, (Resource::Nofile, limit), None, args))
            })
            .collect();
        let worked: Vec<u64> = started
            .iter_mut()
            .filter_map(|(limit, process)| {
                works(process, is_daemon, &format!("{role}, ulimit -n {limit}")).then_some(*limit)
            })
            .collect();
        println!("{role} works with {worked:?} descriptors");
        assert!(!worked.contains(DESCRIPTORS.start()), "{role} needs more than that");
        assert!(worked.contains(DESCRIPTORS.end()), "{role} needs no more than that");
    }
}

#[test]
fn with_too_few_threads_a_client_says_so_and_ends() {
    if !geteuid().is_root() {
        println!("only root can become a user who has no other process");
        return;
    }
    let cluster = Cluster::new("few-threads");
    let (_master, _worker) = (cluster.master("m"), cluster.worker("w", &[]));
    cluster.registered(&["w"]);
    let program = cluster.dir().join("zkmw");
    copy_files(Path::new(env!("CARGO_BIN_EXE_zkmw")), &program);
    let lines = cluster.dir().join("lines");
    std::fs::write(&lines, "true\n".repeat(40)).expect("a batch");
    let lines = lines.display().to_string();
    for args in [&["submit", "true"][..], &["submit", "--from-file", &lines], &["master", "--id", "x"]] {
        let mut worked = Vec::new();
        for limit in THREADS {
            let resource = (Resource::Nproc, limit);
            let mut process = limited(&cluster, &program, resource, Some(STRANGER), args);
            if works(&mut process, args[0] == "master", &format!("{args:?}, ulimit -u {limit}")) {
                worked.push(limit);
            }
        }
        println!("{args:?} works with {worked:?} threads");
        assert!(!worked.contains(THREADS.start()), "{args:?} needs more than that");
        assert!(worked.contains(THREADS.end()), "{args:?} needs no more than that");
    }
}
