//! A worker that drains: tasks that its SIGTERM ended run again, those that ended by themselves before that do not.

use std::fs;
use std::path::Path;

use zkmw::contract::task::{Outcome, State};

use crate::harness::{Cluster, LIMIT, eventually, process};
use crate::plain::{Plain, json_lines};
use crate::scenarios::{locked, started, starts};

/// Waits until this file has so many lines.
fn noted(file: &Path, times: usize) {
    eventually(LIMIT, &format!("{} has {times} lines", file.display()), || {
        (fs::read_to_string(file).ok()?.lines().count() >= times).then_some(())
    });
}

/// Drained while it runs, it cleans up and says that all is well, as many servers do.
#[test]
fn a_task_that_exits_0_upon_a_drains_sigterm_runs_again() {
    let cluster = Cluster::new("drain-trap");
    let _master = cluster.master("m1");
    let mut w1 = cluster.worker("w1", &["--slots", "1", "--grace", "2s"]);
    cluster.registered(&["w1"]);
    let then =
        "[ $ZKMW_ATTEMPT -gt 1 ] && { echo moved; exit; }; trap 'echo cut; exit 0' TERM; sleep 60 & wait";
    let id = cluster.submit_detached(&[&locked(cluster.dir(), "t", then)]);
    let first = started(cluster.dir(), "t", 1, LIMIT).remove(0);
    let _w2 = cluster.worker("w2", &["--slots", "1"]);
    cluster.registered(&["w1", "w2"]);
    w1.term();
    let exit = cluster.run(&["wait", &id.to_string()]);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "moved\n"), "{}", exit.stderr);
    assert!(!process::is_alive(first.pid));
    assert_eq!(w1.wait_exit(LIMIT).code, 0);
    let workers: Vec<_> = starts(cluster.dir(), "t").into_iter().map(|start| start.worker).collect();
    assert_eq!(workers, ["w1", "w2"], "a lock was held, or it did not move");
    let (task, _) = cluster.task(&id).expect("wait never deletes");
    assert_eq!((task.attempt, task.charged, task.deaths), (2, 0, 0));
}

#[test]
fn a_task_that_ends_by_itself_during_a_drain_keeps_its_outcome() {
    for code in [0, 3] {
        let cluster = Cluster::new(&format!("drain-ended-{code}"));
        let _master = cluster.master("m1");
        let mut w1 = cluster.worker("w1", &["--slots", "1", "--grace", "60s"]);
        cluster.registered(&["w1"]);
        let go = cluster.dir().join("go");
        let then = format!("until [ -e {} ]; do sleep .05; done; echo own; exit {code}", go.display());
        let id = cluster.submit_detached(&[&locked(cluster.dir(), "t", &then)]);
        started(cluster.dir(), "t", 1, LIMIT);
        w1.term();
        eventually(LIMIT, "it drains", || {
            cluster.registrations().iter().any(|(_, registration, _)| registration.draining).then_some(())
        });
        fs::write(&go, "").expect("a file");
        assert_eq!(w1.wait_exit(LIMIT).code, 0);
        let (task, _) = cluster.task(&id).expect("not collected");
        let Outcome { state, exit_code, attempt, stdout, .. } = task.outcome.expect("an outcome");
        let expected = if code == 0 { State::Done } else { State::Failed };
        assert_eq!((state, exit_code, attempt), (expected, Some(code), 1));
        assert_eq!(stdout.captured().head, b"own\n");
    }
}

/// The same for lines that are stored in one znode: one has ended, the other is cut off.
#[test]
fn only_the_lines_that_a_drain_stopped_run_again() {
    let cluster = Cluster::new("drain-lines");
    let _master = cluster.master("m1");
    let mut w1 = cluster.worker("w1", &["--slots", "2", "--grace", "2s"]);
    cluster.registered(&["w1"]);
    let note = cluster.dir().join("note");
    let note = note.display();
    let lines = format!(
        "echo $ZKMW_ATTEMPT; echo a >>{note}; exit 4\n\
         echo b >>{note}; echo $ZKMW_ATTEMPT; [ $ZKMW_ATTEMPT -gt 1 ] && exit 5; trap 'exit 0' TERM; sleep 60 & wait\n"
    );
    let args = ["submit", "--from-file", "-", "--chunk", "2", "--json"];
    let mut submit = Plain::on(&cluster, &args).stdin(lines.as_bytes()).spawn();
    noted(&cluster.dir().join("note"), 2);
    let _w2 = cluster.worker("w2", &["--slots", "2"]);
    cluster.registered(&["w1", "w2"]);
    w1.term();
    let out = submit.end(LIMIT);
    assert_eq!(w1.wait_exit(LIMIT).code, 0);
    let mut rows = json_lines(&out.text());
    rows.sort_by_key(|row| row["line"].as_u64());
    let results =
        |row: &serde_json::Value| (row["exit_code"].as_i64(), row["stdout"].as_str().map(str::to_owned));
    let results: Vec<_> = rows.iter().map(results).collect();
    assert_eq!(results, [(Some(4), Some("1\n".into())), (Some(5), Some("2\n".into()))], "{out:?}");
    let notes = fs::read_to_string(cluster.dir().join("note")).expect("notes");
    assert_eq!(notes.lines().filter(|line| *line == "a").count(), 1, "it had ended");
}

/// It answers upon SIGTERM, and then exits with 0.
#[test]
fn a_request_answered_upon_a_drains_sigterm_is_asked_again() {
    let cluster = Cluster::new("drain-handler");
    let _master = cluster.master("m1");
    let note = cluster.dir().join("note");
    let handler = format!(
        "trap 'echo \"{{\\\"id\\\":$id}}\"; exit 0' TERM; \
         while read -r line; do id=${{line#*\\\"id\\\":}}; id=${{id%%,*}}; \
         echo $id >>{}; case $line in *'\"attempt\":1,'*) sleep 60 >/dev/null & wait;; \
         *) echo \"{{\\\"id\\\":$id,\\\"exit_code\\\":6}}\";; esac; done",
        note.display()
    );
    let mut w1 = cluster.worker("w1", &["--slots", "1", "--grace", "2s", "--handler", &handler]);
    cluster.registered(&["w1"]);
    let mut submit = cluster.submit(&["anything"]);
    noted(&note, 1);
    let id = cluster.the_task();
    let _w2 = cluster.worker("w2", &["--slots", "1", "--handler", &handler]);
    cluster.registered(&["w1", "w2"]);
    w1.term();
    let exit = submit.wait_exit(LIMIT);
    assert_eq!(exit.code, 6, "{exit:?}");
    assert_eq!(w1.wait_exit(LIMIT).code, 0);
    noted(&note, 2);
    let (task, _) = cluster.task(&id).expect("what failed stays");
    assert_eq!((task.attempt, task.charged, task.deaths), (2, 0, 0));
}
