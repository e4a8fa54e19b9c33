//! Output of the commands: status, list, show, and their JSON.

use serde_json::Value;
use zkmw::contract::TaskId;

use crate::harness::{Cluster, DEATH, LIMIT, eventually};
use crate::plain::{Plain, Service, fields, json_lines};

/// Fields of an outcome, sorted.
const OUTCOME: [&str; 11] = [
    "attempt",
    "detail",
    "ended_ms",
    "exit_code",
    "reason",
    "signal",
    "started_ms",
    "state",
    "stderr",
    "stdout",
    "worker",
];

/// Fields of `status --json`, sorted.
const STATUS: [&str; 11] = [
    "admission",
    "last_leader",
    "leader",
    "loading",
    "next",
    "slots",
    "stale",
    "standbys",
    "tasks",
    "worker_list",
    "workers",
];

/// Fields of `show --json`, sorted.
const SHOWN: [&str; 19] = [
    "argv",
    "assigned_to",
    "attempt",
    "cancel",
    "changed_ms",
    "charged",
    "command",
    "created_ms",
    "deaths",
    "delay_ms",
    "history",
    "id",
    "keyed",
    "max_attempts",
    "options",
    "outcome",
    "reasons",
    "state",
    "version",
];

fn one(cluster: &Cluster, args: &[&str]) -> Value {
    let out = Plain::on(cluster, args).run();
    let mut lines = json_lines(&out.text());
    assert_eq!(lines.len(), 1, "{args:?}: {out:?}");
    lines.remove(0)
}

#[test]
fn status_is_true_with_a_leader() {
    let cluster = Cluster::new("status");
    let out = Plain::on(&cluster, &["status"]).run();
    assert!(out.code == 0 && out.text().contains("none: no master is running, and none ever led"), "{out:?}");
    let m1 = cluster.master("m1");
    let epoch = cluster.leads("m1", LIMIT).epoch;
    let _m2 = cluster.master("m2");
    let w1 = cluster.worker("w1", &["--slots", "2", "--label", "gpu=yes"]);
    cluster.registered(&["w1"]);
    for _ in 0..3 {
        cluster.submit_detached(&["sleep 100"]);
    }
    cluster.submit_detached(&["--require", "none=such", "true"]);
    let cancelled = cluster.submit_detached(&["--priority", "5", "--require", "none=such", "true"]);
    assert_eq!(Plain::on(&cluster, &["cancel", cancelled.as_str()]).run().code, 0);
    let status = eventually(LIMIT, "the summary is complete", || {
        let status = one(&cluster, &["status", "--json"]);
        let tasks = &status["tasks"];
        let all = tasks["running"] == 2
            && tasks["pending"] == 2
            && tasks["assigned"] == 0
            && tasks["cancelled"] == 1;
        (all && status["standbys"] == serde_json::json!(["m2"])).then_some(status)
    });
    assert_eq!(fields(&status), STATUS);
    assert_eq!(status["leader"]["id"], "m1");
    assert_eq!((&status["leader"]["pid"], &status["leader"]["epoch"]), (&m1.pid().into(), &epoch.into()));
    assert_eq!(
        (&status["stale"], &status["workers"], &status["slots"]),
        (&false.into(), &1.into(), &2.into())
    );
    let worker = &status["worker_list"][0];
    assert_eq!(
        (&worker["id"], &worker["pid"], &worker["running"]),
        (&"w1".into(), &w1.pid().into(), &2.into())
    );
    assert_eq!(worker["labels"]["gpu"], "yes");
    let text = Plain::on(&cluster, &["status"]).run().text();
    for words in ["m1 (host ", "standbys m2", "2 pending, 0 assigned, 2 running", "1 with 2 slots", "gpu=yes"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// The leader is killed, its session still lives, and there is no other: it appears to lead until the session ends.
/// Then nobody leads, and the summary that it wrote is reported as old.
#[test]
fn status_is_true_without_a_leader() {
    let cluster = Cluster::new("status-old");
    let mut m1 = cluster.master("m1");
    cluster.leads("m1", LIMIT);
    let _w1 = cluster.worker("w1", &[]);
    cluster.registered(&["w1"]);
    eventually(LIMIT, "the leader counts the worker", || {
        Some(one(&cluster, &["status", "--json"])).filter(|status| status["workers"] == 1)
    });
    m1.kill();
    m1.wait_exit(LIMIT);
    let stale = eventually(DEATH + LIMIT, "nobody leads", || {
        Some(one(&cluster, &["status", "--json"])).filter(|status| status["leader"].is_null())
    });
    assert_eq!((&stale["stale"], &stale["last_leader"]["id"]), (&true.into(), &"m1".into()));
    assert_eq!(stale["workers"], 1);
    let text = Plain::on(&cluster, &["status"]).run().text();
    for words in ["none: no master is running (m1 on ", "what the last leader wrote"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // The next one is reported as soon as it leads.
    let _m3 = cluster.master("m3");
    cluster.leads("m3", LIMIT);
    assert_eq!(one(&cluster, &["status", "--json"])["leader"]["id"], "m3");
}

/// Ids of a task that runs and one that waits, both of the job a, and of a cancelled one of the job b.
fn three_tasks(cluster: &Cluster) -> [TaskId; 3] {
    let running = cluster.submit_detached(&["--job", "a", "sleep 100"]);
    cluster.assigned(&running);
    let options = ["--job", "a", "--priority", "-7", "--timeout", "1h", "--env", "X=y"];
    let waiting = cluster.submit_detached(&[&options[..], &["echo  waits"]].concat());
    let cancelled = cluster.submit_detached(&["--job", "b", "--", "echo", "a b"]);
    assert_eq!(Plain::on(cluster, &["cancel", cancelled.as_str()]).run().code, 0);
    cluster.ended(&cancelled, LIMIT);
    [running, waiting, cancelled]
}

#[test]
fn list_filters_by_state_and_job() {
    let service = Service::new("list", &["--slots", "1"]);
    let cluster = &service.cluster;
    let [running, waiting, cancelled] = three_tasks(cluster);
    let list = |args: &[&str]| {
        let out = Plain::on(cluster, &[&["list", "--json"], args].concat()).run();
        assert_eq!(out.code, 0, "{out:?}");
        let rows = json_lines(&out.text());
        let mut ids: Vec<String> =
            rows.iter().map(|row| row["id"].as_str().expect("an id").to_string()).collect();
        ids.sort();
        (rows, ids)
    };
    let (rows, all) = list(&[]);
    assert_eq!(all, [running.as_str(), waiting.as_str(), cancelled.as_str()]);
    for row in &rows {
        assert_eq!(
            fields(row),
            [
                "attempt",
                "command",
                "created_ms",
                "ended_ms",
                "exit_code",
                "id",
                "priority",
                "reason",
                "signal",
                "started_ms",
                "state",
                "worker",
            ]
        );
    }
    let row = rows.iter().find(|row| row["id"] == waiting.as_str()).expect("listed");
    assert_eq!(
        (&row["state"], &row["priority"], &row["command"]),
        (&"pending".into(), &(-7).into(), &"echo  waits".into())
    );
    assert_eq!(list(&["--state", "running"]).1, [running.as_str()]);
    assert_eq!(list(&["--state", "pending"]).1, [waiting.as_str()]);
    assert_eq!(list(&["--state", "pending,cancelled"]).1, [waiting.as_str(), cancelled.as_str()]);
    assert_eq!(list(&["--state", "failed"]).1.len(), 0);
    assert_eq!(list(&["--job", "b"]).1, [cancelled.as_str()]);
    assert_eq!(list(&["--job", "a", "--state", "running"]).1, [running.as_str()]);
    assert_eq!(list(&["--limit", "1"]).1.len(), 1);
    assert_eq!(list(&["--worker", "w1"]).1, [running.as_str()]);
    assert_eq!((list(&["--since", "1h"]).1.len(), list(&["--until", "1h"]).1.len()), (3, 0));
    let columns = Plain::on(cluster, &["list", "--columns", "state,id", "--worker", "w1"]).run().text();
    assert_eq!(columns, format!("STATE      ID\nrunning    {running}\n"));
    let text = Plain::on(cluster, &["list"]).run().text();
    assert!(text.starts_with("ID") && text.lines().count() == 4, "{text}");
}

#[test]
fn show_prints_everything() {
    let service = Service::new("show", &["--slots", "1"]);
    let cluster = &service.cluster;
    let [running, waiting, cancelled] = three_tasks(cluster);
    let shown = one(cluster, &["show", "--json", waiting.as_str()]);
    assert_eq!(fields(&shown), SHOWN);
    assert_eq!(
        (&shown["state"], &shown["max_attempts"], &shown["keyed"]),
        (&"pending".into(), &3.into(), &false.into())
    );
    assert_eq!(
        (&shown["options"]["timeout_ms"], &shown["options"]["env"]["X"]),
        (&3_600_000.into(), &"y".into())
    );
    let shown = one(cluster, &["show", "--json", running.as_str()]);
    assert_eq!(shown["state"], "running");
    assert!(shown["assigned_to"].as_str().is_some_and(|worker| worker.starts_with("w1~")), "{shown}");
    let shown = one(cluster, &["show", "--json", cancelled.as_str()]);
    assert_eq!(fields(&shown["outcome"]), OUTCOME);
    assert_eq!(
        (&shown["outcome"]["state"], &shown["argv"]),
        (&"cancelled".into(), &serde_json::json!(["echo", "a b"]))
    );
    let text = Plain::on(cluster, &["show", waiting.as_str()]).run().text();
    for words in [waiting.as_str(), "echo  waits", "pending", "-7", "3600000 ms", "X=y", "0 of 3 charged"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    Plain::on(cluster, &["show", "_00/none"]).run().says(65, &["_00/none"]);
    Plain::on(cluster, &["show", "a"]).run().says(64, &["a is a job", "zkmw list --job a"]);
}

#[test]
fn json_of_submit_wait_cancel_and_retry() {
    let service = Service::new("json", &["--slots", "1"]);
    let cluster = &service.cluster;
    let submitted = one(cluster, &["submit", "--json", "--detach", "echo x; exit 3"]);
    assert_eq!(
        (fields(&submitted), &submitted["state"]),
        (vec!["id".into(), "state".into()], &"pending".into())
    );
    let id = submitted["id"].as_str().expect("an id").to_string();
    let waited = one(cluster, &["wait", "--json", &id]);
    let mut expected = [&OUTCOME[..], &["id"]].concat();
    expected.sort_unstable();
    assert_eq!(fields(&waited), expected);
    assert_eq!(
        (&waited["state"], &waited["exit_code"], &waited["stdout"]),
        (&"failed".into(), &3.into(), &"x\n".into())
    );
    assert!(waited["ended_ms"].as_i64() >= waited["started_ms"].as_i64(), "{waited}");
    let submit = one(cluster, &["submit", "--json", "printf '\\377'"]);
    assert_eq!((fields(&submit), &submit["stdout"]["base64"]), (fields(&waited), &"/w==".into()));
    for verb in ["retry", "cancel"] {
        let note = one(cluster, &[verb, "--json", &id]);
        assert_eq!(fields(&note), ["id", "message", "ok", "verb"]);
        assert_eq!(
            (&note["id"], &note["verb"], &note["ok"]),
            (&id.as_str().into(), &verb.into(), &true.into())
        );
    }
    let note = one(cluster, &["cancel", "--json", "_00/none"]);
    assert_eq!(note["ok"], false);
}
