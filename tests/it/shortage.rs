//! A worker that can start few tasks or none, beside one that can.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Resource;

use crate::harness::{Cluster, LIMIT};

/// Descriptors with which a worker registers, and can't run a task in each of its slots.
const FEW: u64 = 27;

/// 40 tasks of 0.2 s in four slots take 2 s; the rest is what two busy processors may take.
const DONE_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn a_worker_that_cannot_start_tasks_says_so_and_holds_nobody_up() {
    let cluster = Cluster::new("shortage");
    let _master = cluster.master("m");
    let run_dir = cluster.dir().join("run").display().to_string();
    let args = ["worker", "--id", "short", "--slots", "8", "--run-dir", &run_dir];
    let short = super::limits::limited(
        &cluster,
        Path::new(env!("CARGO_BIN_EXE_zkmw")),
        (Resource::Nofile, FEW),
        None,
        &args,
    );
    let _healthy = cluster.worker("healthy", &["--slots", "4"]);
    cluster.registered(&["healthy", "short"]);
    let file = cluster.dir().join("lines");
    fs::write(&file, "sleep 0.2\n".repeat(40)).expect("written");
    let mut batch = cluster.submit(&["--from-file", &file.display().to_string()]);
    let said = cluster.eventually("the worker's registration says why", LIMIT, || {
        let all = cluster.registrations();
        all.into_iter().find_map(|(_, registration, _)| Some((registration.usable?, registration.unhealthy?)))
    });
    assert!(said.0 < 8 && said.1.contains("LimitNOFILE"), "{said:?}");
    let exit = batch.wait_exit(DONE_WITHIN);
    assert_eq!(exit.code, 0, "{exit:?}");
    let log = short.stderr();
    let lines = log.lines().filter(|line| line.contains("was not started")).count();
    assert!((1..=4).contains(&lines), "said once for each time that it begins: {log}");
}
