//! Lines of a batch as things of their own: a failed line stays, is listed, shown, run again and deleted.

use std::fs;

use serde_json::Value;

use crate::harness::{Cluster, LIMIT, eventually};
use crate::plain::{Out, Plain, Service, json_lines};

fn run(cluster: &Cluster, args: &[&str]) -> Out {
    Plain::on(cluster, args).run()
}

/// The names that are listed.
fn listed(cluster: &Cluster, args: &[&str]) -> Vec<String> {
    let out = run(cluster, &[&["list", "--json"], args].concat());
    let id = |row: &Value| row["id"].as_str().expect("an id").to_string();
    json_lines(&out.text()).iter().map(id).collect()
}

fn counts(cluster: &Cluster) -> Value {
    json_lines(&run(cluster, &["status", "--json"]).text()).remove(0)["tasks"].clone()
}

/// A batch of 30 lines, three chunks, that is waited for. Two lines fail, once.
#[test]
fn what_failed_of_a_batch_stays_and_a_retry_runs_nothing_else() {
    let service = Service::new("lines-stay", &["--slots", "2"]);
    let cluster = &service.cluster;
    let (runs, gate) = (cluster.dir().join("runs"), cluster.dir().join("gate"));
    let line = |n: u32| {
        let fails = if n == 7 || n == 23 { format!("; [ -e {} ]", gate.display()) } else { String::new() };
        format!("echo {n} >>{}; echo out {n}{fails}\n", runs.display())
    };
    let lines: String = (1..=30).map(line).collect();
    let submit = ["submit", "--from-file", "-", "--chunk", "10", "--job", "J"];
    let out = Plain::on(cluster, &submit).stdin(lines.as_bytes()).run();
    out.says(1, &["30 tasks: 28 succeeded, 2 failed", "/7 failed with exit code 1", "/23 failed with"]);

    let failed = listed(cluster, &["--state", "failed"]);
    let batch = failed[0].split_once('/').expect("BATCH/LINE").0.to_string();
    assert_eq!(failed, [format!("{batch}/7"), format!("{batch}/23")]);
    eventually(LIMIT, "commands are counted", || {
        let counts = counts(cluster);
        (counts["failed"] == 2 && counts["done"] == 18 && counts["pending"] == 0).then_some(())
    });
    let show = run(cluster, &["show", &failed[1]]);
    assert!(show.text().contains("state     failed\n") && show.text().contains("out 23\n"), "{show:?}");

    fs::write(&gate, "").expect("opened");
    let retry = run(cluster, &["retry", &batch]);
    retry.says(0, &["18 other tasks"]);
    let text = retry.text();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, [format!("{batch}/23: will run again"), format!("{batch}/7: will run again")]);
    assert_eq!(run(cluster, &["wait", &failed[0]]).text(), "out 7\n");
    assert_eq!(run(cluster, &["wait", &failed[1]]).code, 0);
    let ran = fs::read_to_string(&runs).expect("written");
    assert_eq!(ran.lines().count(), 32, "30 lines, and the two that failed once more");
    assert_eq!(listed(cluster, &["--state", "failed"]), [] as [&str; 0]);
    run(cluster, &["retry", &failed[0]]).says(1, &["has succeeded"]);
}

/// A session timeout is 6 s, so an outcome is 12 s old before it is deleted for any reason.
#[test]
fn failed_outcomes_are_limited_and_unwanted_ones_deleted() {
    let cluster = Cluster::new("lines-go");
    let _master = cluster.start("m1", &["master", "--id", "m1", "--max-failed", "2"]);
    let _worker = cluster.worker("w1", &["--slots", "1"]);
    let ids: Vec<String> = (0..3)
        .map(|_| {
            let id = cluster.submit_detached(&["exit 3"]);
            cluster.ended(&id, LIMIT);
            id.to_string()
        })
        .collect();
    let keyed = cluster.submit_detached(&["--id", "k", "exit 3"]).to_string();
    let done = cluster.submit_detached(&["true"]);
    cluster.ended(&done, LIMIT);
    let open = cluster.submit_detached(&["--require", "none=such", "true"]);
    assert_eq!(listed(&cluster, &["--state", "failed"]).len(), 4, "all are too young to go");
    run(&cluster, &["delete", open.as_str()]).says(1, &["has not ended yet"]);
    run(&cluster, &["delete", "nope/x"]).says(65, &["no such task"]);
    let deleted = run(&cluster, &["delete", &keyed]);
    assert_eq!((deleted.code, deleted.text()), (0, format!("{keyed}: will be deleted by the leader\n")));
    let mut kept = vec![ids[1].clone(), ids[2].clone()];
    kept.sort();
    eventually(LIMIT, "the oldest goes, and what has a key when it is wanted", || {
        (listed(&cluster, &["--state", "failed"]) == kept).then_some(())
    });
    let old = run(&cluster, &["delete", "--state", "failed", "--older-than", "1h"]);
    assert_eq!((old.code, old.text().as_str()), (0, ""));
    let out = run(&cluster, &["delete", "--state", "failed,done", "--json"]);
    let rows = json_lines(&out.text());
    assert!(rows.len() == 3 && rows.iter().all(|row| row["message"] == "was deleted"), "{out:?}");
    assert_eq!(listed(&cluster, &[]), [open.as_str()]);
}

/// A task with a key is not deleted to make room, or a second submit of it would run it once more.
#[test]
fn a_failed_keyed_task_keeps_its_outcome_and_its_key() {
    let cluster = Cluster::new("lines-keyed");
    let _master = cluster.start("m1", &["master", "--id", "m1", "--max-failed", "1"]);
    let _worker = cluster.worker("w1", &["--slots", "1"]);
    let runs = cluster.dir().join("runs");
    let single = format!("echo x >>{}; echo out; exit 3", runs.display());
    let lines = format!("echo x >>{0}; echo good\necho x >>{0}; echo bad; exit 4\n", runs.display());
    let submit = ["submit", "--id", "k", single.as_str()];
    let batch = |lines: &str| {
        let args = ["submit", "--from-file", "-", "--id", "b", "--chunk", "2"];
        Plain::on(&cluster, &args).stdin(lines.as_bytes()).run()
    };
    assert_eq!((run(&cluster, &submit).code, batch(&lines).code), (3, 1));
    run(&cluster, &["submit", "exit 5"]).says(5, &[]);
    let dropped = "its command and output were dropped, for too much had ended badly";
    eventually(LIMIT, "both are shortened, the oldest first", || {
        let shown = |name: &str| run(&cluster, &["show", name]).text();
        let key = listed(&cluster, &[]).into_iter().find(|id| id.ends_with("/k")).expect("it exists");
        let texts = [key.as_str(), "b/2"].map(shown);
        texts.iter().all(|text| text.contains(dropped) && text.contains("(dropped)")).then_some(())
    });
    let ran = || fs::read_to_string(&runs).expect("written").lines().count();
    let again = run(&cluster, &submit);
    again.says(3, &["failed with exit code 3", dropped]);
    assert_eq!(again.text().lines().count(), 0, "{again:?}");
    batch(&lines)
        .says(1, &["b/1 succeeded: its command", "b/2 failed with exit code 4", "1 succeeded, 1 failed"]);
    run(&cluster, &["wait", "b"]).says(1, &["b/2 failed with exit code 4", dropped]);
    assert_eq!(ran(), 3, "nothing runs once more");
    run(&cluster, &["submit", "--id", "k", "exit 3"])
        .says(65, &["exists already and asks for something else"]);
    batch("echo other\nexit 4\n").says(65, &["exists already and asks for something else"]);
    run(&cluster, &["retry", "b/2"])
        .says(65, &["b/2: cannot run again: its command was dropped", "another --id"]);
    let rows = json_lines(&run(&cluster, &["list", "--json", "--state", "failed"]).text());
    let codes: Vec<_> = rows.iter().map(|row| (&row["exit_code"], &row["command"])).collect();
    assert!(codes.contains(&(&4.into(), &"(dropped)".into())), "{codes:?}");
    assert_eq!(run(&cluster, &["delete", "b"]).code, 0);
    eventually(LIMIT, "the key is free once it is deleted", || {
        (!listed(&cluster, &[]).iter().any(|id| id.starts_with("b/"))).then_some(())
    });
}

/// Of three chunks one succeeds and is collected, one has a line that fails, and one is under way when the submit is
/// interrupted.
#[test]
fn a_wait_after_an_interrupted_submit_counts_all_lines() {
    let service = Service::new("lines-wait", &["--slots", "2"]);
    let cluster = &service.cluster;
    let gate = cluster.dir().join("gate");
    let slow = format!("until [ -e {} ]; do sleep .05; done; echo came\n", gate.display());
    let lines = "echo ok\n".repeat(10) + "exit 3\n" + &"echo ok\n".repeat(9) + &slow + &"echo ok\n".repeat(9);
    let submit = ["submit", "--from-file", "-", "--chunk", "10"];
    let mut batch = Plain::on(cluster, &submit).stdin(lines.as_bytes()).spawn();
    eventually(LIMIT, "one chunk is collected, and the last goes on", || {
        (batch.stdout().lines().count() == 28 && cluster.tasks().len() == 2).then_some(())
    });
    batch.signal(rustix::process::Signal::INT);
    let out = batch.end(LIMIT);
    assert_eq!(out.code, 130, "{out:?}");
    let name = out.stderr.split("zkmw wait ").nth(1).expect("how to come back");
    let name = name.split_whitespace().next().expect("a name").trim_end_matches([',', ';', '.']).to_string();
    fs::write(&gate, "").expect("opened");
    let wait = run(cluster, &["wait", &name]);
    wait.says(
        1,
        &["30 tasks: 29 succeeded, 1 failed", &format!("the task {name}/11 failed with exit code 3")],
    );
    assert!(wait.text().contains("came\n"), "{wait:?}");
    run(cluster, &["wait", &format!("{name}/1")]).says(65, &["has succeeded and was collected"]);
}

#[test]
fn a_line_that_is_cancelled_is_killed_and_its_neighbours_run_on() {
    let service = Service::new("lines-cancel", &["--slots", "3"]);
    let cluster = &service.cluster;
    let gate = cluster.dir().join("gate");
    let slow = |n: u32| format!("until [ -e {} ]; do sleep .05; done; echo {n}\n", gate.display());
    let lines: String = (1..=6).map(slow).collect();
    let submit = ["submit", "--from-file", "-", "--chunk", "6", "--job", "J"];
    let mut batch = Plain::on(cluster, &submit).stdin(lines.as_bytes()).spawn();
    let running = eventually(LIMIT, "three lines run", || {
        let running = listed(cluster, &["--state", "running"]);
        (running.len() >= 3).then_some(running)
    });
    let counts = eventually(LIMIT, "status says so", || {
        let counts = counts(cluster);
        (counts["running"] == 3).then_some(counts)
    });
    let sum = ["pending", "assigned"].map(|state| counts[state].as_u64().expect("a number"));
    assert_eq!(sum.iter().sum::<u64>(), 3, "{counts}");
    let (name, batch_name) = (&running[1], running[1].split_once('/').expect("a batch").0);
    let last = format!("{batch_name}/6");
    for name in [name, &last] {
        assert_eq!(run(cluster, &["cancel", name]).text(), format!("{name}: is being cancelled\n"));
        let wait = run(cluster, &["wait", name]);
        wait.says(1, &[&format!("the task {name} was cancelled")]);
    }
    assert!(batch.is_running(), "the others go on");
    run(cluster, &["cancel", name]).says(0, &[]);
    fs::write(&gate, "").expect("opened");
    let out = batch.end(LIMIT);
    out.says(1, &["6 tasks: 4 succeeded, 2 failed", &format!("the task {name} was cancelled")]);
    let mut printed: Vec<String> = out.text().lines().map(str::to_string).collect();
    printed.sort();
    assert_eq!(printed, ["1", "3", "4", "5"]);
    assert_eq!(listed(cluster, &["--state", "cancelled"]), [name.clone(), last.clone()]);
    run(cluster, &["retry", batch_name]).says(0, &[]);
    assert_eq!(run(cluster, &["wait", &last]).text(), "6\n");
}
