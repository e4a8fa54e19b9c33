//! Logs of tasks: all that they print, kept by their workers.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{LIMIT, eventually};
use crate::plain::{Plain, Service};

/// The folder of the logs of the worker `w1`.
fn logs(dir: &Path) -> Option<PathBuf> {
    let workers = fs::read_dir(dir.join("state/task-logs")).ok()?.flatten();
    workers
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| is_w1(&name.to_string_lossy())))
}

fn is_w1(name: &str) -> bool {
    name.strip_prefix("w1@").is_some_and(|service| service.len() == 8)
}

#[test]
fn a_submit_whose_output_was_cut_names_the_log() {
    let service = Service::new("truncated", &[]);
    let cluster = &service.cluster;
    let whole: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    let out = Plain::on(cluster, &["submit", "--job", "J", "--id", "seq", "seq 200000"]).run();
    let kept = out.text();
    out.says(
        73,
        &["J/seq", "bytes of what it printed are missing", "the worker w1", "J/seq.1.*", "--allow-truncated"],
    );
    assert!(kept.starts_with("1\n2\n") && kept.ends_with("200000\n") && kept.len() < whole.len());
    let log = logs(cluster.dir()).expect("a folder").join("J/seq.1.out");
    eventually(LIMIT, "the log is complete", || (fs::read_to_string(&log).ok()? == whole).then_some(()));
    let out = Plain::on(cluster, &["submit", "--allow-truncated", "seq 200000"]).run();
    assert_eq!((out.code, out.text()), (0, kept), "{}", out.stderr);
    // One that failed exits as it did.
    assert_eq!(Plain::on(cluster, &["submit", "seq 200000; exit 7"]).run().code, 7);
}

#[test]
fn a_line_of_a_batch_has_its_log_by_its_name() {
    let mut service = Service::new("line-log", &[]);
    let file = service.cluster.dir().join("batch");
    fs::write(&file, "true\nseq 50000\necho short\n").expect("written");
    let args = ["submit", "--id", "b", "--from-file", file.to_str().expect("UTF-8")];
    let out = Plain::on(&service.cluster, &args).run();
    assert_eq!(out.code, 0, "{}", out.stderr);
    let dir = logs(service.cluster.dir()).expect("a folder").join("b");
    let whole: String = (1..=50_000).map(|n| format!("{n}\n")).collect();
    let log = dir.join("2.1.out");
    eventually(LIMIT, "the log is complete", || (fs::read_to_string(&log).ok()? == whole).then_some(()));
    assert_eq!(fs::read_dir(dir).expect("a folder").count(), 1, "the others print little and end soon");
    service.is_unharmed();
}

#[test]
fn a_worker_that_can_write_no_logs_works_on_and_says_so_once() {
    let service = Service::new("no-logs", &[]);
    let cluster = &service.cluster;
    let dir = cluster.dir().join("no-state");
    fs::create_dir(&dir).expect("made");
    fs::write(dir.join("task-logs"), "no folder").expect("written");
    let mut worker =
        cluster.worker("w2", &["--state-dir", dir.to_str().expect("UTF-8"), "--label", "logs=none"]);
    for n in 0..3 {
        let line = format!("seq 50000; echo {n}");
        let args = ["submit", "--allow-truncated", "--require", "logs=none", &line];
        let out = Plain::on(cluster, &args).run();
        assert!(out.code == 0 && out.text().ends_with(&format!("\n{n}\n")), "{}", out.stderr);
    }
    let log = worker.stderr();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("has no log")).collect();
    assert!(lines.len() == 1 && lines[0].contains(dir.to_str().expect("UTF-8")), "{log}");
    assert!(worker.is_running());
}
