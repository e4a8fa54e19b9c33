//! What servers do not take: larger requests than `jute.maxbuffer`.

use std::time::Duration;

use crate::harness::ensemble::Places;
use crate::harness::{Cluster, Ensemble, LIMIT, eventually};
use crate::plain::Plain;

/// The servers' limit. A task that prints more than this has an outcome that they hang up on.
const MAX_BUFFER: usize = 100_000;

/// Lines that a worker may log meanwhile; it logged 30 to 80 a second.
const FEW_LINES: usize = 60;

#[test]
fn an_outcome_that_the_servers_hang_up_on_is_cut_and_others_run_meanwhile() {
    let java_options = format!("-Djute.maxbuffer={MAX_BUFFER}");
    let ensemble = Ensemble::start_at(1, Places { java_options, ..Places::default() });
    let cluster = Cluster::on(&ensemble, "hangs-up");
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

/// The leader's summary grows and shrinks by less than this.
const SLACK: u64 = 2_000;

/// The outcome used to be lost, and whoever waited for it waited for ever, even after the quota was raised.
#[test]
fn an_outcome_that_a_quota_refuses_is_written_when_the_quota_is_raised() {
    let java_options = "-Dzookeeper.enforceQuota=true".to_string();
    let ensemble = Ensemble::start_at(1, Places { java_options, ..Places::default() });
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
