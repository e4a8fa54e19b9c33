//! Requests that servers do not take: larger ones than `jute.maxbuffer`.

use std::fs;
use std::time::Duration;

use crate::harness::ensemble::Setup;
use crate::harness::{Cluster, Ensemble, LIMIT, Proc, eventually};
use crate::plain::Plain;

/// The servers' limit. A task that prints more than this has an outcome that they hang up on.
const MAX_BUFFER: usize = 100_000;

/// Lines that a worker may log meanwhile; it logged 30 to 80 a second.
const FEW_LINES: usize = 60;

/// A root on a server that hangs up on requests of more bytes.
fn with_limit(name: &str, bytes: usize) -> Cluster {
    let java_options = format!("-Djute.maxbuffer={bytes}");
    let ensemble = Ensemble::start_with(1, Setup { java_options, ..Setup::default() });
    Cluster::on(&ensemble, name)
}

#[test]
fn an_outcome_that_is_too_long_is_cut_and_others_run_meanwhile() {
    let cluster = with_limit("hangs-up", MAX_BUFFER);
    let _master = cluster.master("m");
    let worker = cluster.worker("w", &["--slots", "2", "--output-limit", "98304"]);
    cluster.registered(&["w"]);
    let line = "head -c 90000 /dev/zero | tr '\\0' x; head -c 90000 /dev/zero | tr '\\0' y >&2; exit 7";
    let mut large = cluster.submit(&[line]);
    let mut small = cluster.submit(&["echo hello"]);
    let exit = small.wait_exit(LIMIT);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "hello\n"), "{exit:?}");
    let exit = large.wait_exit(LIMIT);
    assert_eq!(exit.code, 7, "{}", worker.stderr());
    assert!(exit.stdout.contains("xxx") && exit.stdout.len() < MAX_BUFFER, "{} bytes", exit.stdout.len());
    let log = worker.stderr();
    assert!(log.lines().count() < FEW_LINES && log.contains("jute.maxbuffer"), "{log}");
    // A task that is itself too large is refused.
    let long = format!("true {}", "x".repeat(110_000));
    let out = Plain::on(&cluster, &["submit", &long]).run_within(Duration::from_secs(30));
    assert_eq!(out.code, 73, "{}", out.stderr);
    assert!(out.stderr.contains("jute.maxbuffer"), "{}", out.stderr);
}

/// How many of its tasks a batch reports as certain to exist.
fn certain(words: &str) -> u64 {
    let (before, _) = words.split_once(" tasks were submitted for certain").expect("it says how many exist");
    let figures = before.rsplit_once("; ").expect("figures").1;
    figures.split(' ').next().expect("a figure").parse().expect("a number")
}

#[test]
fn a_batch_with_a_too_long_line_ends_and_says_what_exists() {
    let cluster = with_limit("long-lines", MAX_BUFFER);
    let _master = cluster.master("m");
    let _worker = cluster.worker("w", &["--slots", "8"]);
    cluster.registered(&["w"]);
    let batch = |name: &str, lines: &str, args: &[&str]| {
        let file = cluster.dir().join(name);
        fs::write(&file, lines).expect("a file");
        let file = file.display().to_string();
        let args = [&["submit", "--id", name, "--from-file", &file], args].concat();
        Plain::on(&cluster, &args).run_within(Duration::from_secs(40))
    };
    let long = format!("true {}\n", "x".repeat(110_000));
    let out = batch("all", &long.repeat(3), &[]);
    out.says(73, &["jute.maxbuffer", "cannot create the task"]);
    let (name, before) = ("last", 1_500);
    let out = batch(name, &("true\n".repeat(before) + &long), &["--chunk", "1"]);
    out.says(73, &["jute.maxbuffer", "(line 1501)", "go on: zkmw wait last comes back to them"]);
    let certain = certain(&out.stderr);
    assert!((1..=before as u64).contains(&certain), "{}", out.stderr);
    // They do go on, and the others may exist as well.
    let out = Plain::on(&cluster, &["wait", "--json", name]).run_within(LIMIT);
    let done = out.text().matches("\"done\"").count();
    out.says(1, &["the batch last was not submitted to its end", "of 1 of its lines"]);
    assert!(done as u64 >= certain, "{certain} for certain, {done} done: {out:?}");
    // Each line passes, but not a hundred together.
    let lines = format!("true {}\n", "x".repeat(1_500)).repeat(200);
    batch("chunks", &lines, &["--chunk", "100"]).says(73, &["jute.maxbuffer", "a smaller --chunk may pass"]);
    let out = batch("smaller", &lines, &["--chunk", "10"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
}

/// So small that the labels of one worker are too long for it.
const TINY_BUFFER: usize = 4_400;

/// A takeover waits for the summary to be written; no worker is served if there is none.
#[test]
fn too_long_labels_hold_up_only_their_own_worker() {
    let cluster = with_limit("labels", TINY_BUFFER);
    let labels = |count: usize| -> Vec<String> {
        let label = |n| ["--label".to_string(), format!("{}{n:02}={}", "k".repeat(61), "v".repeat(63))];
        (0..count).flat_map(label).collect()
    };
    let start = |id: &str, count: usize| {
        let labels = labels(count);
        cluster.worker(id, &labels.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let workers: Vec<Proc> = ["w1", "w2", "w3", "w4"].iter().map(|id| start(id, 12)).collect();
    let mut long = start("w5", 32);
    cluster.registered(&["w1", "w2", "w3", "w4"]);
    let master = cluster.master("m");
    let out = Plain::on(&cluster, &["submit", "echo hello"]).run_within(LIMIT);
    assert_eq!((out.code, out.text().as_str()), (0, "hello\n"), "{out:?}\n{}", master.stderr());
    let status = cluster.status().expect("a summary");
    let listed = status["worker_list"].as_array().map_or(0, Vec::len);
    assert!(status["workers"] == 4 && (1..4).contains(&listed), "{status}");
    eventually(LIMIT, "it says what is too long", || {
        long.stderr().contains("fewer or shorter labels take less").then_some(())
    });
    assert!(long.is_running(), "{}", long.stderr());
    for process in workers.iter().chain([&master, &long]) {
        let log = process.stderr();
        assert!(log.matches("connected to 127").count() <= 4, "{}: {log}", process.label());
        assert!(log.lines().count() < FEW_LINES, "{}: {log}", process.label());
    }
}

/// The leader's summary grows and shrinks by less than this.
const SLACK: u64 = 2_000;

/// The outcome used to be lost, and its submitter waited for ever, even after the quota was raised.
#[test]
fn an_outcome_a_quota_refused_is_written_when_it_is_raised() {
    let java_options = "-Dzookeeper.enforceQuota=true".to_string();
    let ensemble = Ensemble::start_with(1, Setup { java_options, ..Setup::default() });
    let cluster = Cluster::on(&ensemble, "quota");
    let _master = cluster.master("m");
    let worker = cluster.worker("w", &[]);
    cluster.registered(&["w"]);
    assert_eq!(cluster.run(&["submit", "true"]).code, 0);
    let quota = format!("/zookeeper/quota{}", cluster.root);
    let limit =
        |bytes: u64| format!("count=-1,bytes=-1=;byteHardLimit={bytes};countHardLimit=-1").into_bytes();
    let used: usize = cluster.tree.dump(&cluster.root).values().map(|(data, _)| data.len()).sum();
    cluster.tree.create(&quota, b"").expect("a quota's directory");
    let stats = format!("count={},bytes={used}", cluster.tree.dump(&cluster.root).len());
    cluster.tree.create(&format!("{quota}/zookeeper_stats"), stats.as_bytes()).expect("its figures");
    let limits = format!("{quota}/zookeeper_limits");
    cluster.tree.create(&limits, &limit(used as u64 + SLACK)).expect("its limits");
    let mut waits = cluster.submit(&["head -c 20000 /dev/zero | tr '\\0' x; exit 7"]);
    eventually(LIMIT, "the worker says that the outcome is refused", || {
        worker.stderr().contains("its outcome is kept here").then_some(())
    });
    assert!(waits.is_running(), "{}", waits.stderr());
    cluster.tree.set(&limits, &limit(1_000_000), 0).expect("a raised quota");
    let exit = waits.wait_exit(LIMIT);
    assert_eq!((exit.code, exit.stdout.len()), (7, 20_000), "{}", worker.stderr());
    let said = worker.stderr().matches("its outcome is kept here").count();
    assert_eq!(said, 1, "{}", worker.stderr());
}
