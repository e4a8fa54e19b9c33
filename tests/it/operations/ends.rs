//! Tasks that do not end by themselves: cancel, expiry, orphans.

use std::time::Duration;

use zkmw::contract::task::State;

use crate::harness::{Cluster, DEATH, LIMIT, eventually, process, throughout};
use crate::plain::{Plain, Service, file_says, json_lines};

#[test]
fn a_queued_task_is_cancelled_without_running() {
    let cluster = Cluster::new("cancel-queued");
    let _master = cluster.master("m1");
    cluster.leads("m1", LIMIT);
    let id = cluster.submit_detached(&["echo never"]);
    let mut waiting = cluster.start("wait", &["wait", id.as_str()]);
    let out = Plain::on(&cluster, &["cancel", id.as_str()]).run();
    assert_eq!((out.code, out.text()), (0, format!("{id}: is being cancelled\n")), "{out:?}");
    let exit = waiting.wait_exit(LIMIT);
    assert_eq!(exit.code, 1, "{exit:?}");
    assert!(exit.stderr.contains("was cancelled"), "{exit:?}");
    let outcome = cluster.ended(&id, LIMIT).outcome.expect("ended");
    assert_eq!((outcome.state, outcome.worker), (State::Cancelled, None));
    let out = Plain::on(&cluster, &["cancel", id.as_str()]).run();
    assert_eq!((out.code, out.text()), (0, format!("{id}: was cancelled already\n")), "{out:?}");
    Plain::on(&cluster, &["cancel", "_00/none"]).run().says(65, &["_00/none", "no such task"]);
    Plain::on(&cluster, &["cancel", "no-job"]).run().says(65, &["no-job", "no such job"]);
    // A whole job.
    for _ in 0..3 {
        cluster.submit_detached(&["--job", "all", "true"]);
    }
    let out = Plain::on(&cluster, &["cancel", "--json", "all"]).run();
    assert_eq!(out.code, 0, "{out:?}");
    let notes = json_lines(&out.text());
    assert!(
        notes.len() == 3 && notes.iter().all(|note| note["ok"] == true && note["verb"] == "cancel"),
        "{notes:?}"
    );
    let out = Plain::on(&cluster, &["wait", "all"]).run();
    out.says(1, &["3 tasks", "3 failed"]);
}

/// A task that ignores SIGTERM goes on for the whole grace, and is shown as running all the time.
#[test]
fn a_running_task_that_is_being_cancelled_is_shown_as_such() {
    let service = Service::new("cancelling", &["--slots", "1", "--grace", "4s"]);
    let cluster = &service.cluster;
    let ready = cluster.dir().join("ready");
    let id =
        cluster.submit_detached(&[&format!("trap '' TERM; echo yes >{}; sleep 100; :", ready.display())]);
    file_says(&ready);
    assert_eq!(Plain::on(cluster, &["cancel", id.as_str()]).run().code, 0);
    let list = |state: &str| Plain::on(cluster, &["list", "--json", "--state", state]).run().text();
    eventually(LIMIT, "the leader has notified the worker", || {
        let shown = Plain::on(cluster, &["show", "--json", id.as_str()]).run();
        let shown = json_lines(&shown.text()).remove(0);
        assert!(shown["outcome"].is_null(), "{shown}");
        assert_eq!(shown["state"], "cancelling", "{shown}");
        assert!(shown["assigned_to"].is_string(), "{shown}");
        let assignments = cluster.assignments();
        let mut entries = assignments.iter().flat_map(|(_, assignment, _)| &assignment.entries);
        entries.any(|entry| entry.revoked).then_some(())
    });
    let row = json_lines(&list("cancelling")).remove(0);
    assert_eq!((row["id"].as_str(), row["state"].as_str()), (Some(id.as_str()), Some("cancelling")));
    assert_eq!((list("pending"), list("running")), (String::new(), String::new()));
    let text = Plain::on(cluster, &["show", id.as_str()]).run().text();
    assert!(text.contains("state     cancelling on w1~"), "{text}");
    let outcome = cluster.ended(&id, LIMIT).outcome.expect("ended");
    assert_eq!(outcome.state, State::Cancelled);
}

#[test]
fn a_running_task_is_killed_before_its_cancellation_is_written() {
    let mut service = Service::new("cancel-running", &["--slots", "1"]);
    let cluster = &service.cluster;
    let pids = cluster.dir().join("pids");
    let line =
        format!("echo begun; (trap '' TERM; sleep 100 & echo $! $$ >{}; wait) & wait; wait", pids.display());
    let id = cluster.submit_detached(&[&line]);
    let mut wait = cluster.start("wait", &["wait", id.as_str()]);
    let all = file_says(&pids);
    assert_eq!(Plain::on(cluster, &["cancel", id.as_str()]).run().code, 0);
    // When the outcome becomes visible, the group has ended.
    let outcome = cluster.ended(&id, LIMIT).outcome.expect("ended");
    for pid in all.split_whitespace() {
        assert!(!process::is_alive(pid.parse().expect("a pid")), "{pid} lives");
    }
    assert_eq!(outcome.state, State::Cancelled);
    let exit = wait.wait_exit(LIMIT);
    assert_eq!(exit.code, 1, "{exit:?}");
    assert!(exit.stderr.contains("was cancelled"), "{exit:?}");
    service.is_unharmed();
}

#[test]
fn a_task_that_waited_too_long_expires_and_never_runs() {
    let cluster = Cluster::new("expire");
    let _master = cluster.master("m1");
    let file = cluster.dir().join("ran");
    let line = format!("echo ran >{}", file.display());
    let out = Plain::on(&cluster, &["submit", "--expire-after", "1s", &line]).run();
    out.says(1, &["expired before it was started"]);
    assert_eq!(cluster.tasks().len(), 1, "it stays, though it was waited for");
    let id = cluster.submit_detached(&["--expire-after", "1s", &line]);
    assert_eq!(cluster.ended(&id, LIMIT).outcome.expect("ended").state, State::Expired);
    // One in time is not touched, and one that runs is not ended by it.
    let _w1 = cluster.worker("w1", &[]);
    let out = Plain::on(&cluster, &["submit", "--expire-after", "5s", "echo in time"]).run();
    assert_eq!((out.code, out.text().as_str()), (0, "in time\n"), "{}", out.stderr);
    assert!(!file.exists());
    assert_eq!(Plain::on(&cluster, &["retry", id.as_str()]).run().code, 0);
    let out = Plain::on(&cluster, &["wait", id.as_str()]).run();
    assert_eq!((out.code, file_says(&file).as_str()), (0, "ran\n"), "retried, its deadline is gone");
}

/// `--orphan cancel`: when the submitter that waits for a task is killed, the task goes too. Others stay.
#[test]
fn an_orphan_is_cancelled_if_its_submitter_said_so() {
    let cluster = Cluster::new("orphan").with(&["--session-timeout", "3s"]);
    let mut service = Service::on(cluster, &["--slots", "4"]);
    let cluster = &service.cluster;
    let (a, b, c) = (cluster.dir().join("a"), cluster.dir().join("b"), cluster.dir().join("c"));
    let line = |file: &std::path::Path| format!("echo $$ >{}; sleep 100", file.display());
    let mut kept = cluster.submit(&[&line(&a)]);
    let mut orphan = cluster.submit(&["--orphan", "cancel", &line(&b)]);
    let mut waited = cluster.submit(&["--orphan", "cancel", &line(&c)]);
    let pid = |file| file_says(file).trim().parse::<u32>().expect("a pid");
    let (kept_pid, orphan_pid, waited_pid) = (pid(&a), pid(&b), pid(&c));
    kept.kill();
    orphan.kill();
    kept.wait_exit(LIMIT);
    orphan.wait_exit(LIMIT);
    let (_, task) = eventually(LIMIT + DEATH, "one is cancelled", || {
        cluster
            .tasks()
            .into_iter()
            .find(|(_, task, _)| task.outcome.is_some())
            .map(|(id, task, _)| (id, task))
    });
    assert_eq!(task.outcome.expect("ended").state, State::Cancelled);
    assert!(!process::is_alive(orphan_pid));
    // As long again, the others go on.
    throughout(Duration::from_secs(4), "the others run", || {
        process::is_alive(kept_pid) && process::is_alive(waited_pid)
    });
    assert!(waited.is_running());
    service.is_unharmed();
}
