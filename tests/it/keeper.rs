//! The keeper: a worker's runs have ended before another worker starts them, however the worker
//! fails.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::keeper_process::keeper_of;
use crate::harness::{Cluster, LIMIT, Proc, SESSION, eventually, process};
use crate::scenarios::{locked, started, starts};

/// How long the keeper of a killed worker may take.
const AT_ONCE: Duration = Duration::from_secs(3);

fn wait_keeper(worker: &Proc) -> u32 {
    eventually(LIMIT, "the worker has a keeper", || keeper_of(worker.pid()))
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(pid.try_into().expect("a pid")).expect("a pid");
    kill_process(pid, Signal::KILL).expect("it is there");
}

/// Processes that the task wrote the pids of into this file, one a line.
fn pids(file: &Path, count: usize) -> Vec<u32> {
    eventually(LIMIT, "the task has started its children", || {
        let text = fs::read_to_string(file).ok()?;
        let pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        (pids.len() == count).then_some(pids)
    })
}

/// A shell line that starts what is hard to kill: a child that ignores SIGTERM, and one in a session of its own that
/// outlives its parents; then waits.
fn stubborn(file: &Path) -> String {
    let file = file.display();
    format!(
        "(trap '' TERM HUP; sleep 600 & echo $! >>{file}; wait) & \
         setsid /bin/sh -c 'trap \"\" TERM HUP; sleep 600 & echo $! >>{file}; wait' & wait"
    )
}

#[test]
fn g03_a_suspended_workers_run_ends_before_it_runs_again() {
    let cluster = Cluster::new("stopped");
    let _m1 = cluster.master("m1");
    let w1 = cluster.worker("w1", &["--slots", "1"]);
    cluster.registered(&["w1"]);
    let then = "[ $ZKMW_ATTEMPT = 1 ] || { echo second; exit; }; (trap '' TERM; sleep 600) & wait";
    let mut submit = cluster.submit(&[&locked(cluster.dir(), "t", then)]);
    let first = started(cluster.dir(), "t", 1, LIMIT).remove(0);
    let _w2 = cluster.worker("w2", &["--slots", "1"]);
    cluster.registered(&["w1", "w2"]);
    w1.stop();
    let stopped = Instant::now();
    eventually(SESSION, "the keeper kills it before the session can end", || {
        // The stopped worker cannot reap it.
        matches!(process::state(first.pid), None | Some('Z')).then_some(())
    });
    eprintln!("killed {:?} after its worker was stopped", stopped.elapsed());
    let exit = submit.wait_exit(LIMIT);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "second\n"), "{}", exit.stderr);
    assert_eq!(starts(cluster.dir(), "t").len(), 2);
}

#[test]
fn g03_the_runs_of_a_killed_worker_are_killed_at_once() {
    let cluster = Cluster::new("killed-worker");
    let _m1 = cluster.master("m1");
    let w1 = cluster.worker("w1", &["--slots", "1"]);
    cluster.registered(&["w1"]);
    let file = cluster.dir().join("pids");
    let then = format!("[ $ZKMW_ATTEMPT = 1 ] || {{ echo second; exit; }}; {}", stubborn(&file));
    let mut submit = cluster.submit(&[&locked(cluster.dir(), "t", &then)]);
    let children = pids(&file, 2);
    let keeper = wait_keeper(&w1);
    w1.kill();
    eventually(AT_ONCE, "all its runs have ended, and its keeper is gone", || {
        let ended = children.iter().all(|pid| !process::is_alive(*pid));
        (ended && !process::is_alive(keeper)).then_some(())
    });
    let _w2 = cluster.worker("w2", &["--slots", "1"]);
    let exit = submit.wait_exit(LIMIT);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "second\n"), "{}", exit.stderr);
}

#[test]
fn g03_a_worker_that_loses_its_keeper_kills_its_runs() {
    let cluster = Cluster::new("no-keeper");
    let _m1 = cluster.master("m1");
    let w1 = cluster.worker("w1", &["--slots", "1"]);
    cluster.registered(&["w1"]);
    let then = "[ $ZKMW_ATTEMPT = 1 ] && { (trap '' TERM; sleep 600) & wait; }; echo $ZKMW_ATTEMPT";
    let mut submit = cluster.submit(&["--max-attempts", "1", &locked(cluster.dir(), "t", then)]);
    let first = started(cluster.dir(), "t", 1, LIMIT).remove(0);
    let keeper = wait_keeper(&w1);
    kill(keeper);
    eventually(AT_ONCE, "the run has ended", || (!process::is_alive(first.pid)).then_some(()));
    let exit = submit.wait_exit(LIMIT);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "2\n"), "run again, not charged: {}", exit.stderr);
    assert_ne!(wait_keeper(&w1), keeper);
}

#[test]
fn g09_a_worker_that_is_stopped_gracefully_leaves_no_keeper() {
    let cluster = Cluster::new("keeper-ends");
    let mut w1 = cluster.worker("w1", &[]);
    cluster.registered(&["w1"]);
    let keeper = wait_keeper(&w1);
    w1.term();
    assert_eq!(w1.wait_exit(LIMIT).code, 0);
    eventually(AT_ONCE, "its keeper is gone", || (!process::is_alive(keeper)).then_some(()));
}
