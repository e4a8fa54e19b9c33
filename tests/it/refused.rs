//! What servers do not take: larger requests than `jute.maxbuffer`.

use std::time::Duration;

use crate::harness::ensemble::Places;
use crate::harness::{Cluster, Ensemble, LIMIT};
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
