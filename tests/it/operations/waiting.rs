//! No client waits in silence: the reports of clients when nothing happens.

use std::time::{Duration, Instant};

use crate::harness::{Cluster, Ensemble, LIMIT, eventually};
use crate::plain::{Background, Plain, Service};

/// Three seconds, and time to start and to read.
const SOON: Duration = Duration::from_secs(8);

#[track_caller]
fn says(client: &Background, limit: Duration, words: &str) {
    eventually(limit, &format!("{words:?} is said"), || client.stderr().contains(words).then_some(()));
}

#[test]
fn a_wait_without_workers_says_so_after_three_seconds() {
    let cluster = Cluster::new("waiting");
    let start = Instant::now();
    let mut single = Plain::on(&cluster, &["submit", "echo one"]).spawn();
    let mut batch = Plain::on(&cluster, &["submit", "--from-file", "-"]).stdin(b"true\ntrue\n").spawn();
    says(&single, SOON, "no master is running");
    assert!(start.elapsed() > Duration::from_secs(3), "not at once: {:?}", start.elapsed());
    says(&batch, SOON, "waiting for 2 tasks of ");
    says(&batch, SOON, "no master is running");
    // No client collects that one.
    let id = cluster.submit_detached(&["true"]);
    let mut wait = Plain::on(&cluster, &["wait", id.as_str()]).spawn();
    says(&wait, SOON, &format!("waiting for the task {id}: no master is running"));

    // Again when it has changed, and not more often.
    let _master = cluster.master("m1");
    cluster.leads("m1", LIMIT);
    says(&single, LIMIT, "has no workers");
    let mut picky = Plain::on(&cluster, &["submit", "--require", "gpu=yes", "echo picked"]).spawn();
    let _worker = cluster.worker("w1", &[]);
    for client in [&mut single, &mut batch, &mut wait] {
        let out = client.end(LIMIT);
        assert_eq!(out.code, 0, "{out:?}");
        assert_eq!(out.stderr.matches("no master is running").count(), 1, "{out:?}");
    }
    says(&picky, LIMIT, "requires: gpu=yes");
    let _fits = cluster.worker("w2", &["--label", "gpu=yes"]);
    let out = picky.end(LIMIT);
    assert_eq!((out.code, out.text().as_str()), (0, "picked\n"), "{out:?}");
}

#[test]
fn a_long_task_is_shown_by_status_and_logged_nowhere() {
    let service = Service::new("takes-time", &["--slots", "2"]);
    let gate = service.cluster.dir().join("gate");
    let line = format!("until [ -e {} ]; do sleep .05; done", gate.display());
    let mut quiet = Plain::on(&service.cluster, &["submit", &line]).spawn();
    let mut asking = Plain::on(&service.cluster, &["-v", "submit", &line]).spawn();
    says(&asking, SOON, "the service is at work (2 tasks run on 2 slots, 0 wait");
    std::fs::write(&gate, "").expect("opened");
    assert_eq!(asking.end(LIMIT).code, 0);
    let out = quiet.end(LIMIT);
    assert_eq!((out.code, out.stderr.as_str()), (0, ""));
}

#[test]
fn an_unreachable_ensemble_is_named_after_three_seconds() {
    let cluster = Cluster::on(&Ensemble::start(1), "outage");
    let mut never = Plain::new(&["--zk", "127.0.0.1:1", "--connect-timeout", "5s", "status"]).spawn();
    let mut submit = Plain::on(&cluster, &["submit", "echo after"]).spawn();
    cluster.the_task();
    cluster.ensemble.kill(1);
    says(&submit, SOON, "waiting for ZooKeeper: no server can be used: 127.0.0.1");
    cluster.ensemble.start_again(&[1]);
    says(&submit, LIMIT, "connected to ZooKeeper");
    let _master = cluster.master("m1");
    let _worker = cluster.worker("w1", &[]);
    let out = submit.end(LIMIT);
    assert_eq!((out.code, out.text().as_str()), (0, "after\n"), "{out:?}");
    let out = never.end(LIMIT);
    out.says(69, &["waiting for ZooKeeper: no server can be used: 127.0.0.1:1", "gives up in"]);
    assert_eq!(out.stderr.matches("waiting for").count(), 1, "{out:?}");
}
