//! Attempts: retries with backoff, retry by hand, drain.

use std::fs;
use std::time::{Duration, Instant};

use zkmw::contract::TaskId;
use zkmw::contract::task::{Reason, State};

use crate::harness::{Cluster, LIMIT, Op, eventually};
use crate::plain::{Plain, Service, file_says};

#[test]
fn max_attempts_retries_with_backoff_and_counts() {
    let service = Service::new("attempts", &[]);
    let file = service.cluster.dir().join("runs");
    let line = format!("date +%s%N >>{}; exit 9", file.display());
    let args = ["submit", "--detach", "--max-attempts", "3", "--retry-backoff", "400ms", &line];
    let id = TaskId::parse(Plain::on(&service.cluster, &args).run().text().trim()).expect("an id");
    let task = service.cluster.ended(&id, LIMIT);
    let outcome = task.outcome.as_ref().expect("ended");
    assert_eq!(
        (outcome.state, outcome.reason, outcome.exit_code),
        (State::Failed, Some(Reason::Exit), Some(9))
    );
    assert_eq!((task.attempt, outcome.attempt), (3, 3));
    assert!((2..=3).contains(&task.charged), "two or all three were charged: {}", task.charged);
    assert_eq!(task.history.len(), 2, "{:?}", task.history);
    let at: Vec<u64> = file_says(&file).lines().map(|line| line.parse().expect("ns")).collect();
    let delays: Vec<u64> = at.windows(2).map(|two| (two[1] - two[0]) / 1_000_000).collect();
    assert_eq!(delays.len(), 2);
    assert!(delays[0] >= 400 && delays[1] >= 800, "{delays:?} ms");

    // One that succeeds at the second attempt has succeeded; without the flag a failure is final.
    let out = Plain::on(
        &service.cluster,
        &["submit", "--max-attempts", "5", "--retry-backoff", "0s", "[ $ZKMW_ATTEMPT = 2 ] && echo second"],
    )
    .run();
    assert_eq!((out.code, out.text().as_str()), (0, "second\n"), "{}", out.stderr);
    let out = Plain::on(&service.cluster, &["submit", "echo $ZKMW_ATTEMPT; exit 1"]).run();
    assert_eq!((out.code, out.text().as_str()), (1, "1\n"));
}

#[test]
fn retry_runs_what_failed_again_and_nothing_else() {
    let service = Service::new("retry", &[]);
    let gate = service.cluster.dir().join("gate");
    let id = service.cluster.submit_detached(&[&format!("[ -e {} ] && echo now", gate.display())]);
    let failed = service.cluster.ended(&id, LIMIT);
    assert_eq!(failed.outcome.as_ref().expect("ended").state, State::Failed);
    fs::write(&gate, "").expect("opened");
    let out = Plain::on(&service.cluster, &["retry", id.as_str()]).run();
    assert_eq!((out.code, out.text()), (0, format!("{id}: will run again, as attempt 2\n")), "{out:?}");
    let out = Plain::on(&service.cluster, &["wait", id.as_str()]).run();
    assert_eq!((out.code, out.text().as_str()), (0, "now\n"));
    let task = service.cluster.task(&id).expect("it exists").0;
    assert_eq!((task.attempt, task.charged), (2, 0));
    Plain::on(&service.cluster, &["retry", id.as_str()]).run().says(1, &["has succeeded"]);
    Plain::on(&service.cluster, &["retry", "_00/none"]).run().says(65, &["_00/none", "no such task"]);
    // A task that has not ended cannot be retried; a cancelled one can.
    let slow = service.cluster.submit_detached(&["--require", "none=such", "echo slow"]);
    Plain::on(&service.cluster, &["retry", slow.as_str()]).run().says(1, &["has not ended"]);
    assert_eq!(Plain::on(&service.cluster, &["cancel", slow.as_str()]).run().code, 0);
    assert_eq!(service.cluster.ended(&slow, LIMIT).outcome.expect("ended").state, State::Cancelled);
    assert_eq!(Plain::on(&service.cluster, &["retry", slow.as_str()]).run().code, 0);
    let again = service.cluster.task(&slow).expect("it exists").0;
    assert!(again.outcome.is_none() && !again.cancel, "it waits again");
}

/// SIGTERM of a worker: a short task ends within its grace, a long one is handed back without a charge.
#[test]
fn a_drain_lets_short_tasks_finish_and_hands_long_ones_back() {
    let cluster = Cluster::new("drain");
    let _master = cluster.master("m1");
    let mut w1 = cluster.worker("w1", &["--slots", "2", "--grace", "4s"]);
    cluster.registered(&["w1"]);
    let (gate, long) = (cluster.dir().join("gate"), cluster.dir().join("long"));
    let line =
        format!("until [ -e {} ]; do sleep .05; done; echo $ZKMW_ATTEMPT $ZKMW_WORKER", gate.display());
    let mut short = cluster.submit(&[&line]);
    let short_id = cluster.the_task();
    let line =
        format!("echo $$ >>{}; [ $ZKMW_ATTEMPT = 2 ] || sleep 100; echo $ZKMW_ATTEMPT", long.display());
    let long_id = cluster.submit_detached(&[&line]);
    cluster.assigned(&short_id);
    file_says(&long);
    let start = Instant::now();
    w1.term();
    eventually(LIMIT, "it says that it drains", || {
        cluster.registrations().iter().any(|(_, registration, _)| registration.draining).then_some(())
    });
    // Tasks that come now are not for it.
    let late = cluster.submit_detached(&["echo late $ZKMW_WORKER"]);
    fs::write(&gate, "").expect("opened");
    let exit = short.wait_exit(LIMIT);
    assert!(exit.code == 0 && exit.stdout.starts_with("1 w1"), "the short one ended where it was: {exit:?}");
    let exit = w1.wait_exit(LIMIT);
    assert_eq!(exit.code, 0, "{exit:?}");
    assert!(start.elapsed() >= Duration::from_secs(1), "the long one had its grace: {:?}", start.elapsed());
    let task = cluster.task(&long_id).expect("it exists").0;
    assert_eq!((task.attempt, task.charged), (2, 0), "handed back without a charge");
    assert!(cluster.registrations().is_empty(), "the session is closed before the process is gone");
    assert!(cluster.assignments().is_empty(), "and its assignment deleted");
    let _w2 = cluster.worker("w2", &["--slots", "2"]);
    let out = Plain::on(&cluster, &["wait", long_id.as_str()]).run();
    assert_eq!((out.code, out.text().as_str()), (0, "2\n"));
    let outcome = cluster.ended(&late, LIMIT).outcome.expect("ended");
    assert!(outcome.worker.expect("a worker").as_str().starts_with("w2~"));
}

#[test]
fn a_second_signal_skips_the_grace() {
    let service = Service::new("second-signal", &["--grace", "10m"]);
    let mut service = service;
    let file = service.cluster.dir().join("begun");
    let id = service
        .cluster
        .submit_detached(&[&format!("echo $$ >{}; trap '' TERM; sleep 100 & wait; wait", file.display())]);
    let pid: u32 = file_says(&file).trim().parse().expect("a pid");
    service.worker.term();
    eventually(LIMIT, "it drains", || {
        service.cluster.registrations().iter().any(|(_, registration, _)| registration.draining).then_some(())
    });
    service.worker.term();
    let exit = service.worker.wait_exit(Duration::from_secs(10));
    assert_eq!(exit.code, 0, "{exit:?}");
    assert!(!crate::harness::process::is_alive(pid));
    let task = service.cluster.task(&id).expect("it exists").0;
    assert_eq!((task.attempt, task.charged, task.outcome), (2, 0, None));
    // The move was written by the worker itself, before its session ended.
    let path = service.cluster.layout.task(&id);
    let sets = service.cluster.history();
    assert!(sets.iter().any(|txn| matches!(&txn.op, Op::Set { path: of, .. } if *of == path)));
}
