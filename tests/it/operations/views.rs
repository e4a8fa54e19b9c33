//! `zkmw workers` and `zkmw elections`, over real processes that come and go.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::process::Proc;
use crate::harness::{Cluster, DEATH, LIMIT, eventually};
use crate::plain::{Plain, json_lines};

fn objects(cluster: &Cluster, command: &str) -> Vec<Value> {
    let out = Plain::on(cluster, &[command, "--json"]).run();
    assert_eq!(out.code, 0, "{out:?}");
    json_lines(&out.text())
}

/// The object of this worker, once it is so.
fn worker(cluster: &Cluster, id: &str, what: &str, check: impl Fn(&Value) -> bool) -> Value {
    eventually(LIMIT + DEATH, &format!("{id}: {what}"), || {
        objects(cluster, "workers").into_iter().find(|worker| worker["id"] == id && check(worker))
    })
}

#[test]
fn workers_are_listed_with_their_load_and_their_ends() {
    let cluster = Cluster::new("workers");
    assert_eq!(objects(&cluster, "workers"), Vec::<Value>::new());
    let _master = cluster.master("m1");
    let _w1 = cluster.worker("w1", &["--slots", "3", "--label", "gpu=yes"]);
    let mut w2 = cluster.worker("w2", &[]);
    let w3 = cluster.worker("w3", &[]);
    cluster.registered(&["w1", "w2", "w3"]);
    cluster.submit_detached(&["--require", "gpu=yes", "sleep 1000"]);
    let w1 = worker(&cluster, "w1", "it runs a task", |worker| worker["running"] == 1);
    assert_eq!(
        (&w1["slots"], &w1["labels"], &w1["last_end"]),
        (&json!(3), &json!({"gpu": "yes"}), &Value::Null)
    );
    assert_eq!((&w1["registered"], &w1["stale"]), (&json!(true), &json!(false)));

    w2.term();
    assert_eq!(w2.wait_exit(LIMIT).code, 0);
    let drained = worker(&cluster, "w2", "it has drained", |worker| worker["registered"] == false);
    assert_eq!(drained["last_end"]["drained"], true);
    w3.kill();
    let killed = worker(&cluster, "w3", "its session has ended", |worker| worker["registered"] == false);
    assert_eq!(killed["last_end"]["drained"], false);
    let out = Plain::on(&cluster, &["workers"]).run();
    let text = out.text();
    assert!(text.starts_with("ID ") && text.contains("ready      gpu=yes\n"), "{text}");
    assert!(text.contains("ended: w3 at ") && text.contains(": its session ended"), "{text}");
}

/// A watched status is one object after the other, through a change of the leader, until it is interrupted.
#[test]
fn a_watched_status_goes_on_until_it_is_interrupted() {
    let cluster = Cluster::new("watched");
    let mut m1 = cluster.master("m1");
    cluster.leads("m1", LIMIT);
    let mut watched = cluster.start("watched", &["status", "--watch", "--json"]);
    let led_by = |watched: &Proc, id: &str| {
        let text = watched.stdout();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        json_lines(whole).iter().filter(|status| status["leader"]["id"] == id).count()
    };
    eventually(LIMIT, "two reports", || (led_by(&watched, "m1") >= 2).then_some(()));
    let _m2 = cluster.master("m2");
    m1.term();
    m1.wait_exit(LIMIT);
    eventually(LIMIT, "the next leader", || (led_by(&watched, "m2") >= 1).then_some(()));
    watched.signal(Signal::INT);
    let exit = watched.wait_exit(LIMIT);
    assert_eq!((exit.code, exit.stderr.contains("interrupted")), (130, false), "{}", exit.stderr);
}

#[test]
fn elections_are_listed_with_their_leaders() {
    let cluster = Cluster::new("elections");
    assert_eq!(objects(&cluster, "elections"), Vec::<Value>::new());
    let _master = cluster.master("m1");
    let epoch = cluster.leads("m1", LIMIT).epoch;
    let _e1 = cluster.elector("e1", &["--", "sleep", "1000"]);
    eventually(LIMIT, "the elector leads", || {
        let all = objects(&cluster, "elections");
        let led = |id: &str| all.iter().find(|row| row["leader"]["id"] == id).cloned();
        let (master, elector) = (led("m1")?, led("e1")?);
        assert_eq!((&master["leader"]["epoch"], &master["contenders"]), (&json!(epoch), &json!(1)));
        assert!(elector["path"].as_str().is_some_and(|path| path.contains("/elections/")), "{elector}");
        Some(())
    });
    let out = Plain::on(&cluster, &["elections"]).run();
    assert!(out.text().starts_with("ELECTION ") && out.text().contains(" e1 "), "{out:?}");
}
