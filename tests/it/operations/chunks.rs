//! Batches of which a znode has many lines: the user sees the same as if each line had a znode of its own.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use zkmw::contract::TaskId;
use zkmw::contract::task::State;

use crate::harness::{Cluster, LIMIT, eventually, wall_clock_ms};
use crate::plain::{Out, Plain, Service, json_lines};

fn submit(cluster: &Cluster, args: &[&str], lines: &str) -> Out {
    Plain::on(cluster, &[&["submit", "--from-file", "-"], args].concat()).stdin(lines.as_bytes()).run()
}

/// JSON lines by their line, without what differs from run to run.
fn by_line(out: &Out) -> Vec<Value> {
    let mut rows = json_lines(&out.text());
    for row in &mut rows {
        let fields = row.as_object_mut().expect("an object");
        for name in ["id", "worker", "started_ms", "ended_ms"] {
            assert!(fields.remove(name).is_some_and(|value| !value.is_null()), "{name} in {out:?}");
        }
    }
    rows.sort_by_key(|row| row["line"].as_u64());
    rows
}

#[test]
fn a_thousand_lines_in_chunks_give_what_they_give_one_by_one() {
    let service = Service::new("chunks", &["--slots", "8"]);
    let lines: String = (1..=1_000).map(|n| format!("echo $(({n} * {n}))\n")).collect();
    let chunked = submit(&service.cluster, &["--chunk", "100"], &lines);
    chunked.says(0, &["1000 tasks: 1000 succeeded, 0 failed"]);
    let sorted = |out: &Out| {
        let mut all: Vec<String> = out.text().lines().map(str::to_string).collect();
        all.sort();
        all
    };
    let mut expected: Vec<String> = (1..=1_000_u64).map(|n| (n * n).to_string()).collect();
    expected.sort();
    assert_eq!(sorted(&chunked), expected);
    assert!(service.cluster.tasks().is_empty(), "they were collected");

    // The report of a line does not depend on how it was submitted.
    let lines = "echo a\n\nexit 7\n  \nkill -9 $$\necho b; echo c >&2\n";
    let (one, many) = (
        submit(&service.cluster, &["--json"], lines),
        submit(&service.cluster, &["--json", "--chunk", "4"], lines),
    );
    assert_eq!((one.code, many.code), (1, 1), "{many:?}");
    assert_eq!(by_line(&one), by_line(&many));
    let failures = |out: &Out| -> BTreeSet<String> {
        let line = |text: &str| {
            text.strip_prefix("zkmw: the task ")?.split_once('/').map(|(_, line)| line.to_string())
        };
        out.stderr.lines().filter_map(line).collect()
    };
    let (one, many) =
        (submit(&service.cluster, &[], lines), submit(&service.cluster, &["--chunk", "3"], lines));
    assert_eq!((failures(&one).len(), &failures(&many)), (2, &failures(&one)), "{many:?}");
}

#[test]
fn failing_lines_have_their_numbers_and_codes() {
    let service = Service::new("chunks-failing", &["--slots", "4"]);
    let lines: String =
        (1..=250).map(|n| format!("exit {}\n", if n % 100 == 7 { n % 9 + 1 } else { 0 })).collect();
    let out = submit(&service.cluster, &["--json", "--chunk", "100", "--job", "named"], &lines);
    out.says(1, &["250 tasks: 247 succeeded, 3 failed"]);
    let failed: Vec<(u64, i64)> = by_line(&out)
        .iter()
        .filter(|row| row["state"] == "failed")
        .map(|row| (row["line"].as_u64().expect("a line"), row["exit_code"].as_i64().expect("a code")))
        .collect();
    assert_eq!(failed, [(7, 8), (107, 9), (207, 1)]);
    let ids: BTreeSet<String> =
        json_lines(&out.text()).iter().map(|row| row["id"].as_str().expect("an id").to_string()).collect();
    assert_eq!(ids.len(), 250, "each line has a name of its own");
    let is_line = |id: &String| {
        let (batch, line) = id.split_once('/').expect("a batch and a line");
        batch.starts_with("named~") && batch.matches('~').count() == 1 && line.parse::<u64>().is_ok()
    };
    assert!(ids.iter().all(is_line), "{ids:?}");
}

#[test]
fn a_keyed_batch_of_chunks_runs_once_and_keeps_its_chunks() {
    let service = Service::new("chunks-keyed", &["--slots", "2"]);
    let file = service.cluster.dir().join("runs");
    let line = |n: u32| format!("echo {n} >>{}\n", file.display());
    let lines: String = (1..=25).map(line).collect();
    let keyed =
        |chunk: &str, lines: &str| submit(&service.cluster, &["--id", "day-1", "--chunk", chunk], lines);
    for _ in 0..2 {
        keyed("10", &lines).says(0, &["25 tasks: 25 succeeded"]);
    }
    assert_eq!(fs::read_to_string(&file).expect("written").lines().count(), 25);
    keyed("5", &lines).says(65, &["exists already with other options", "say --chunk 10"]);
    keyed("10", &lines.replace("echo 25", "echo 26")).says(65, &["(lines 21 to 30)", "something else"]);
}

/// A detached batch of two chunks, of which the second fails in one of three lines.
fn detached(service: &Service) -> (TaskId, TaskId) {
    let gate = service.cluster.dir().join("gate");
    let lines = format!("echo a\n\necho b\ntrue\necho once; [ -e {} ]\necho c\n", gate.display());
    let out = submit(&service.cluster, &["--detach", "--chunk", "3", "--job", "J"], &lines);
    out.says(0, &["5 tasks submitted", "zkmw wait J"]);
    assert_eq!(out.text().lines().filter(|id| id.starts_with("J~")).count(), 5, "an id a line");
    let mut ids: Vec<TaskId> = service.cluster.tasks().into_iter().map(|(id, ..)| id).collect();
    ids.sort();
    let [first, second] = ids.as_slice() else { panic!("{ids:?}") };
    for id in [first, second] {
        service.cluster.ended(id, LIMIT);
    }
    (first.clone(), second.clone())
}

#[test]
fn list_show_and_wait_report_the_commands_of_a_chunk() {
    let service = Service::new("chunks-shown", &["--slots", "2"]);
    let (first, second) = detached(&service);
    let run = |args: &[&str]| Plain::on(&service.cluster, args).run();
    let list = run(&["list", "--job", "J"]).text();
    let rows: Vec<&str> = list.lines().skip(1).collect();
    assert_eq!(rows.len(), 5, "a row for each line: {list}");
    let failed = run(&["list", "--job", "J", "--state", "failed", "--json"]);
    let failed = json_lines(&failed.text());
    assert_eq!((failed.len(), &failed[0]["exit_code"]), (1, &1.into()), "{failed:?}");
    let name = failed[0]["id"].as_str().expect("a name").to_string();
    let batch = name.strip_suffix("/5").expect("the fifth line").to_string();
    let show = run(&["show", &name]);
    for words in ["state     failed", "command   echo once; [ -e", "--- stdout\nonce\n"] {
        assert!(show.text().contains(words), "{words} in {}", show.text());
    }
    let show = json_lines(&run(&["show", "--json", &format!("{batch}/6")]).text()).remove(0);
    assert_eq!(
        (&show["command"], &show["line"], &show["state"]),
        (&"echo c".into(), &6.into(), &"done".into())
    );
    let wait = run(&["wait", &name]);
    assert_eq!((wait.code, wait.text().as_str()), (1, "once\n"), "as a task of its own");
    assert_eq!(run(&["wait", &format!("{batch}/1")]).text(), "a\n");
    run(&["show", &format!("{batch}/2")]).says(65, &["there is no line"]);

    let show = run(&["show", second.as_str()]);
    for words in [
        "commands  3, of lines 4 to 6",
        "1 of 3 commands failed",
        "line 4 ",
        "line 5 ",
        "it failed with exit code 1\n--- stdout\nonce\n",
    ] {
        assert!(show.text().contains(words), "{words} in {}", show.text());
    }
    let show = json_lines(&run(&["show", "--json", first.as_str()]).text()).remove(0);
    assert_eq!((&show["first_line"], &show["commands"][1]), (&0.into(), &"".into()));
    let wait = run(&["wait", "--json", first.as_str()]);
    assert_eq!((wait.code, &Value::from(json_lines(&wait.text()))), (0, &show["results"]));

    let wait = run(&["wait", second.as_str()]);
    wait.says(1, &["3 tasks: 2 succeeded, 1 failed", "/5 failed with exit code 1"]);
    assert_eq!(wait.text(), "once\nc\n");
    let wait = run(&["wait", "J"]);
    wait.says(1, &["5 tasks: 4 succeeded, 1 failed"]);
    assert_eq!(wait.text().lines().count(), 4);
}

#[test]
fn a_retry_runs_only_what_failed_of_a_chunk() {
    let service = Service::new("chunks-retry", &["--slots", "2"]);
    let (first, second) = detached(&service);
    let run = |args: &[&str]| Plain::on(&service.cluster, args).run();
    run(&["retry", first.as_str()]).says(1, &["has succeeded"]);
    fs::write(service.cluster.dir().join("gate"), "").expect("opened");
    // A batch or a line of it: nothing else runs again.
    let batch = second.dir().rsplit_once('~').expect("a part").0;
    assert_eq!(run(&["retry", batch]).text(), format!("{batch}/5: will run again\n"));
    let wait = run(&["wait", "--json", second.as_str()]);
    let attempts: Vec<Value> = by_line(&wait).iter().map(|row| row["attempt"].clone()).collect();
    assert_eq!((wait.code, attempts), (0, vec![1.into(), 2.into(), 1.into()]), "{wait:?}");
    let outcome = service.cluster.ended(&second, LIMIT).outcome.expect("ended");
    assert_eq!((outcome.state, outcome.attempt), (State::Done, 2));
}

#[test]
fn outputs_too_large_for_a_znode_are_cut_but_all_are_listed() {
    let service = Service::new("chunks-output", &["--slots", "4"]);
    let loud = "head -c 60000 /dev/zero | tr '\\0' x; exit 3\n";
    let lines = loud.repeat(20) + "echo small\n";
    let out = submit(&service.cluster, &["--json", "--chunk", "21"], &lines);
    out.says(1, &["21 tasks: 1 succeeded, 20 failed"]);
    let rows = by_line(&out);
    assert_eq!((rows.len(), &rows[20]["stdout"]), (21, &"small\n".into()));
    let mut cut = 0;
    for row in &rows[..20] {
        assert_eq!(row["exit_code"], 3);
        let bytes = |value: &Value| value.as_str().map_or(0, str::len) as u64;
        let stdout = &row["stdout"];
        let omitted = stdout["omitted"].as_u64().unwrap_or(0);
        cut += u32::from(omitted > 0);
        let kept = bytes(stdout) + bytes(&stdout["head"]) + bytes(&stdout["tail"]);
        assert_eq!(kept + omitted, 60_000, "it says how much is missing");
    }
    assert!(cut >= 17, "no more than three of them fit whole: {cut}");
}

/// Each result is shown soon after its command has ended, however long the others of its chunk take, and once.
#[test]
fn what_commands_print_is_shown_while_others_of_their_chunk_run() {
    let service = Service::new("chunks-early", &["--slots", "2"]);
    let gate = service.cluster.dir().join("gate");
    let slow = format!("until [ -e {} ]; do sleep .05; done; echo slow\n", gate.display());
    let quick = "sleep .1; date +%s%3N\n".repeat(20);
    let args = ["submit", "--from-file", "-", "--chunk", "21"];
    let mut batch = Plain::on(&service.cluster, &args).stdin((slow + &quick).as_bytes()).spawn();
    let mut delays = Vec::new();
    eventually(LIMIT, "the quick ones are shown", || {
        let (now, text) = (wall_clock_ms(), batch.stdout());
        for line in text.lines().skip(delays.len()).filter(|_| text.ends_with('\n')) {
            delays.push(now - line.parse::<i64>().expect("when it ended"));
        }
        (delays.len() == 20).then_some(())
    });
    assert!(batch.is_running(), "the slow one runs");
    delays.sort_unstable();
    assert!(delays[10] < 1_000, "results come every 200 ms: {delays:?}");
    fs::write(&gate, "").expect("opened");
    let out = batch.end(LIMIT);
    assert_eq!(
        (out.code, out.text().lines().count(), out.text().ends_with("slow\n")),
        (0, 21, true),
        "{out:?}"
    );
}

/// Results of a chunk that were written survive the worker, and only the rest runs again.
#[test]
fn g04_of_a_chunk_whose_worker_dies_only_the_rest_runs_again() {
    let cluster = Cluster::new("chunks-death");
    let _master = cluster.master("m1");
    let w1 = cluster.worker("w1", &["--slots", "2"]);
    cluster.registered(&["w1"]);
    let (runs, gate) = (cluster.dir().join("runs"), cluster.dir().join("gate"));
    let quick: String = (1..=6).map(|n| format!("echo {n} >>{0}; echo out {n}\n", runs.display())).collect();
    let slow = format!("until [ -e {} ]; do sleep .05; done; echo came\n", gate.display());
    let args = ["submit", "--from-file", "-", "--json", "--chunk", "7"];
    let mut batch = Plain::on(&cluster, &args).stdin((quick + &slow).as_bytes()).spawn();
    let saved = || {
        let tasks = cluster.tasks();
        tasks.iter().any(|(_, task, _)| task.results.iter().flatten().count() == 6).then_some(())
    };
    eventually(LIMIT, "six results are written down", saved);
    w1.kill();
    fs::write(&gate, "").expect("opened");
    let _w2 = cluster.worker("w2", &["--slots", "2"]);
    let out = batch.end(LIMIT);
    assert_eq!(out.code, 0, "{out:?}");
    assert_eq!(fs::read_to_string(&runs).expect("written").lines().count(), 6, "each ran once");
    let mut rows = json_lines(&out.text());
    rows.sort_by_key(|row| row["line"].as_u64());
    let attempts: Vec<(u64, bool)> = rows
        .iter()
        .map(|row| {
            (row["attempt"].as_u64().expect("one"), row["worker"].as_str().expect("one").starts_with("w1~"))
        })
        .collect();
    assert_eq!(attempts[..6], [(1, true); 6], "{out:?}");
    assert_eq!(attempts[6..], [(2, false)], "{out:?}");
}
