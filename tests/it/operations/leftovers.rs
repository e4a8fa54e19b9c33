//! Znodes that the leader deletes: outcomes that nobody collects, empty jobs, assignments of failed workers.

use std::time::Duration;

use zkmw::contract::{TaskId, is_shared};

use zkmw::contract::task::State;

use crate::harness::{Cluster, DEATH, Ensemble, LIMIT, Op, eventually};
use crate::plain::{Plain, Service, file_says};

/// The zxids and the sessions of the deletes of this path.
fn deletes(cluster: &Cluster, path: &str) -> Vec<(i64, i64)> {
    let of = Op::Delete { path: path.to_string() };
    cluster.history().iter().filter(|txn| txn.op == of).map(|txn| (txn.session, txn.time_ms)).collect()
}

#[test]
fn the_leader_deletes_outcomes_after_their_time_and_empty_jobs() {
    let cluster = Cluster::new("leftovers").with(&["--session-timeout", "2s"]);
    let _master = cluster.start("m1", &["master", "--id", "m1", "--result-ttl", "1s", "--job-ttl", "2s"]);
    let worker = cluster.worker("w1", &["--slots", "2"]);
    cluster.registered(&["w1"]);
    let leader = cluster.leads("m1", LIMIT).session;
    let left = cluster.submit_detached(&["--job", "left", "exit 1"]);
    let out = Plain::on(&cluster, &["submit", "--id", "keyed", "echo keyed"]).run();
    assert_eq!(out.code, 0, "{out:?}");
    let keyed = TaskId::new(&zkmw::contract::shared_job("keyed"), "keyed");
    let pending = cluster.submit_detached(&["--job", "busy", "--require", "none=such", "true"]);
    assert_eq!(Plain::on(&cluster, &["submit", "--job", "collected", "true"]).run().code, 0);
    assert!(cluster.task(&keyed).is_some(), "the key works after the outcome was read");
    let ended =
        |id: &TaskId| cluster.ended(id, LIMIT).outcome.and_then(|outcome| outcome.ended_ms).expect("a time");
    for (id, ended) in [(&left, ended(&left)), (&keyed, ended(&keyed))] {
        eventually(LIMIT, &format!("{id} is deleted"), || cluster.task(id).is_none().then_some(()));
        let deletes = deletes(&cluster, &cluster.layout.task(id));
        assert_eq!(deletes.len(), 1);
        assert_eq!(deletes[0].0, leader, "by the leader");
        // One machine, one clock. Twice the session timeout is the least, whatever the setting says.
        assert!(deletes[0].1 - ended >= 4_000, "after {} ms", deletes[0].1 - ended);
    }
    for job in ["left", "collected"] {
        let path = cluster.layout.job(job);
        eventually(LIMIT, &format!("the empty job {job} is deleted"), || {
            cluster.tree.exists(&path).is_none().then_some(())
        });
        assert_eq!(deletes(&cluster, &path)[0].0, leader);
    }
    assert!(cluster.task(&pending).is_some() && cluster.tree.exists(&cluster.layout.job("busy")).is_some());
    assert!(cluster.tree.exists(&cluster.layout.job(keyed.dir())).is_some_and(|stat| stat.num_children == 0));
    assert!(is_shared(keyed.dir()), "a shared job stays");
    // A submitter that needs a deleted job makes it again, and the key may be used for another task now.
    let out = Plain::on(&cluster, &["submit", "--job", "left", "echo again"]).run();
    assert_eq!((out.code, out.text().as_str()), (0, "again\n"), "{}", out.stderr);
    let out = Plain::on(&cluster, &["submit", "--id", "keyed", "echo another"]).run();
    assert_eq!((out.code, out.text().as_str()), (0, "another\n"), "{}", out.stderr);
    drop(worker);
}

#[test]
fn an_assignment_of_a_failed_worker_goes_when_its_tasks_moved() {
    let cluster = Cluster::new("failed-assignment").with(&["--session-timeout", "3s"]);
    let _master = cluster.master("m1");
    let mut w1 = cluster.worker("w1", &["--slots", "2"]);
    cluster.registered(&["w1"]);
    let (a, b) = (cluster.dir().join("a"), cluster.dir().join("b"));
    let line = |file: &std::path::Path| {
        format!("echo $$ >>{}; [ $ZKMW_ATTEMPT -gt 1 ] || sleep 100", file.display())
    };
    let ids = [cluster.submit_detached(&[&line(&a)]), cluster.submit_detached(&[&line(&b)])];
    file_says(&a);
    file_says(&b);
    let failed = cluster.assigned(&ids[0]);
    w1.kill();
    w1.wait_exit(LIMIT);
    let path = format!("{}/{failed}", cluster.layout.assign());
    eventually(DEATH + Duration::from_secs(5), "its assignment is deleted", || {
        cluster.tree.exists(&path).is_none().then_some(())
    });
    for id in &ids {
        let task = cluster.task(id).expect("it exists").0;
        assert_eq!((task.attempt, task.deaths, task.outcome), (2, 1, None), "moved before that: {id}");
    }
    let _w2 = cluster.worker("w2", &["--slots", "2"]);
    for id in &ids {
        assert_eq!(cluster.ended(id, LIMIT).outcome.expect("ended").exit_code, Some(0));
    }
    assert_eq!(cluster.assignments().len(), 1);
}

/// A batch that nobody takes over in time is cancelled. A batch that is submitted again is done in full.
#[test]
fn a_resubmit_of_a_batch_under_its_key_takes_it_over() {
    let service = Service::new("again", &["--slots", "4"]);
    let cluster = &service.cluster;
    let gate = cluster.dir().join("gate");
    let line = format!("until [ -e {} ]; do sleep .05; done\n", gate.display());
    let lines = line.repeat(60);
    let submit = |key: &str| {
        let args = ["submit", "--id", key, "--orphan", "cancel", "--from-file", "-"];
        Plain::on(cluster, &args).stdin(lines.as_bytes()).spawn()
    };
    let (mut first, mut other) = (submit("kept"), submit("left"));
    let tasks_of = |key: &str| {
        let all = cluster.tasks().into_iter();
        all.filter(|(id, ..)| id.dir().starts_with(key)).map(|(_, task, _)| task).collect::<Vec<_>>()
    };
    for key in ["kept", "left"] {
        eventually(LIMIT, "all exist", || (tasks_of(key).len() == 60).then_some(()));
    }
    first.signal(rustix::process::Signal::KILL);
    other.signal(rustix::process::Signal::KILL);
    let mut again = submit("kept");
    let cancelled = |key: &str| {
        let is_cancelled = |task: &zkmw::contract::task::Task| {
            task.cancel || task.outcome.as_ref().is_some_and(|outcome| outcome.state == State::Cancelled)
        };
        tasks_of(key).iter().filter(|task| is_cancelled(task)).count()
    };
    eventually(LIMIT * 2, "a batch that nobody takes over is cancelled", || {
        (cancelled("left") == 60).then_some(())
    });
    assert_eq!(cancelled("kept"), 0);
    std::fs::write(&gate, "").expect("opened");
    again.end(LIMIT * 2).says(0, &["60 tasks: 60 succeeded, 0 failed"]);
}

/// Outcomes whose deletion is doubtful, because a connection was lost, are left to the leader. The batch reports them.
#[test]
fn a_batch_reports_what_it_leaves_when_servers_are_killed() {
    const LINES: usize = 3_000;
    let ensemble = Ensemble::start(3);
    let service = Service::on(Cluster::on(&ensemble, "left-outcomes"), &["--slots", "8"]);
    let cluster = &service.cluster;
    let args = ["submit", "--from-file", "-"];
    let mut batch = Plain::on(cluster, &args).stdin("true\n".repeat(LINES).as_bytes()).spawn();
    eventually(LIMIT, "it has begun", || (!cluster.jobs().is_empty()).then_some(()));
    for server in [1, 2, 3] {
        ensemble.kill(server);
        ensemble.start_again(&[server]);
    }
    let out = batch.end(LIMIT * 4);
    out.says(0, &["3000 tasks: 3000 succeeded, 0 failed"]);
    let reported =
        out.stderr.lines().find_map(|line| line.split_once(" outcomes that were shown still exist"));
    let reported: usize = reported.map_or(0, |(words, _)| {
        words.rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a number")
    });
    let left = cluster.tasks().len();
    println!("{left} left, {reported} reported: {}", out.stderr);
    // Some of the doubtful deletions were applied.
    assert!(left <= reported, "{left} are left: {out:?}");
}
