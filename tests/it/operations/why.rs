//! `zkmw why`: each reason, made to apply by real processes.

use std::time::Duration;

use serde_json::Value;
use zkmw::contract::TaskId;

use crate::harness::{Cluster, LIMIT, eventually};
use crate::plain::{Plain, json_lines};

/// State and reasons of a task, with the names and the texts of those.
fn why(cluster: &Cluster, id: &TaskId) -> (String, Vec<String>, Vec<String>) {
    let out = Plain::on(cluster, &["why", "--json", id.as_str()]).run();
    let lines = json_lines(&out.text());
    assert!(out.code == 0 && lines.len() == 1, "{out:?}");
    let all = |field: &str| -> Vec<String> {
        let reasons = lines[0]["reasons"].as_array().expect("a list");
        reasons.iter().map(|reason| reason[field].as_str().expect("words").to_string()).collect()
    };
    (lines[0]["state"].as_str().expect("a state").to_string(), all("reason"), all("text"))
}

/// Waits until these are all reasons of the task. Gives their texts.
fn comes_to(cluster: &Cluster, id: &TaskId, expected: &[&str]) -> Vec<String> {
    eventually(LIMIT, &format!("{expected:?}"), || {
        let (_, codes, texts) = why(cluster, id);
        (codes == expected).then_some(texts)
    })
}

#[test]
fn why_names_what_the_service_lacks() {
    let cluster = Cluster::new("why-lacks");
    let plain = cluster.submit_detached(&["sleep 1000"]);
    assert_eq!(why(&cluster, &plain).1, ["no-master"]);
    let out = Plain::on(&cluster, &["why", plain.as_str()]).run();
    let expected = format!("{plain} is pending:\n  no master is running; start one (zkmw master)\n");
    assert_eq!((out.code, out.text()), (0, expected));

    let _master = cluster.master("m1");
    cluster.leads("m1", LIMIT);
    comes_to(&cluster, &plain, &["no-worker"]);
    let gpu = cluster.submit_detached(&["--require", "gpu=yes", "sleep 1000"]);
    let _worker = cluster.worker("w1", &["--slots", "1", "--label", "zone=eu"]);
    let texts = comes_to(&cluster, &gpu, &["no-worker-with-labels"]);
    assert!(texts[0].contains("gpu=yes (0 of 1 have it)"), "{texts:?}");

    let texts = comes_to(&cluster, &plain, &["with-worker"]);
    assert!(texts[0].starts_with("attempt 1 is with worker w1: it runs"), "{texts:?}");
    let second = cluster.submit_detached(&["--require", "zone=eu", "sleep 1000"]);
    // It waits in the queue, or already at the worker.
    eventually(LIMIT, "it waits for a slot", || {
        let (_, codes, texts) = why(&cluster, &second);
        let waits = codes == ["no-free-slot"] && texts[0].starts_with("all 1 usable slot of the 1 worker");
        (waits || texts == [texts_at_worker(&codes, &texts)]).then_some(())
    });
    let shown = Plain::on(&cluster, &["show", "--json", gpu.as_str()]).run();
    let shown: Value = json_lines(&shown.text()).remove(0);
    assert_eq!(shown["reasons"][0]["reason"], "no-worker-with-labels");
    let shown = Plain::on(&cluster, &["show", gpu.as_str()]).run();
    assert!(shown.text().contains("why       no worker has all labels that the task requires"), "{shown:?}");
}

/// The text of a task that waits at its worker for a slot; else nothing that any reason says.
fn texts_at_worker(codes: &[String], texts: &[String]) -> String {
    let waits = codes == ["with-worker"] && texts[0].ends_with("it runs, or waits for a free slot there");
    if waits { texts[0].clone() } else { String::new() }
}

#[test]
fn why_names_what_the_task_waits_for() {
    let cluster = Cluster::new("why-waits");
    let master = cluster.master("m1");
    let worker = cluster.worker("w1", &["--slots", "2"]);
    cluster.registered(&["w1"]);
    let failing = cluster.submit_detached(&["--max-attempts", "3", "--retry-backoff", "60s", "exit 7"]);
    let texts = comes_to(&cluster, &failing, &["backing-off"]);
    assert!(texts[0].starts_with("attempt 2 waits for about "), "{texts:?}");

    let good = cluster.submit_detached(&["exit 3"]);
    cluster.ended(&good, Duration::from_secs(20));
    assert_eq!(why(&cluster, &good), ("failed".to_string(), vec![], vec![]));
    let out = Plain::on(&cluster, &["why", good.as_str()]).run();
    assert_eq!((out.code, out.text()), (0, format!("{good} is failed: it failed with exit code 3\n")));

    let running = cluster.submit_detached(&["sleep 1000"]);
    comes_to(&cluster, &running, &["with-worker"]);
    master.kill();
    worker.kill();
    let texts = comes_to(&cluster, &running, &["in-doubt", "no-master"]);
    assert!(texts[0].starts_with("worker w1 has it and is not registered"), "{texts:?}");

    let out = Plain::on(&cluster, &["why", "no/such"]).run();
    assert!(out.code == 65 && out.stderr.contains("there is no task no/such"), "{out:?}");
}
