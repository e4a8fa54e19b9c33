//! Single submits: forms, environment, streams, exit codes, keys, waiting and coming back.

use std::fs;
use std::time::Duration;

use zkmw::contract::TaskId;
use zkmw::contract::task::State;

use crate::harness::{LIMIT, eventually, process};
use crate::plain::{Plain, Service, file_says, json_lines};

#[test]
fn a_line_goes_through_the_shell_and_a_program_does_not() {
    let service = Service::new("forms", &[]);
    let run = |args: &[&str]| Plain::on(&service.cluster, args).run();
    let out = run(&["submit", "x='a  b'; echo \"$x\" | tr a A"]);
    assert_eq!((out.code, out.text().as_str()), (0, "A  b\n"), "{}", out.stderr);
    let out = run(&["submit", "--", "printf", "%s|", "a  b", "$HOME", "", "--json", "ü"]);
    assert_eq!((out.code, out.text().as_str()), (0, "a  b|$HOME||--json|ü|"), "{}", out.stderr);
    // Its standard input is empty, whatever ours is.
    let out = Plain::on(&service.cluster, &["submit", "cat; echo end"]).stdin(b"ours").run();
    assert_eq!((out.code, out.text().as_str()), (0, "end\n"));
    // Both streams, and the code.
    let out = run(&["submit", "echo out; echo err >&2; exit 42"]);
    assert_eq!((out.code, out.text().as_str(), out.stderr.as_str()), (42, "out\n", "err\n"));
    assert_eq!(service.cluster.tasks().len(), 1, "a submit that waits collects a success");
}

#[test]
fn a_task_finds_its_identity_in_its_environment() {
    let service = Service::new("environment", &[]);
    let file = service.cluster.dir().join("env");
    let line =
        format!("echo $ZKMW_TASK $ZKMW_ATTEMPT $ZKMW_EPOCH $ZKMW_WORKER $MINE >>{}; exit 1", file.display());
    let args = ["--max-attempts", "3", "--retry-backoff", "0s", "--env", "MINE=and yours", &line];
    let id = service.cluster.submit_detached(&args);
    let task = service.cluster.ended(&id, LIMIT);
    let text = file_says(&file);
    let mut epochs = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let fields: Vec<&str> = line.splitn(5, ' ').collect();
        let worker = task.outcome.as_ref().and_then(|outcome| outcome.worker.clone()).expect("a worker");
        assert_eq!(fields[0], id.as_str());
        assert_eq!(fields[1], (n + 1).to_string());
        assert!(fields[3] == "w1" || fields[3] == worker.as_str(), "{line}");
        assert_eq!(fields[4], "and yours");
        epochs.push(fields[2].parse::<i64>().expect("a number"));
    }
    assert!(epochs.len() == 3 && epochs.is_sorted_by(|a, b| a < b), "the token grows: {epochs:?}");
}

#[test]
fn a_signal_is_128_and_its_number() {
    let service = Service::new("signals", &[]);
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        let out = Plain::on(&service.cluster, &["submit", &format!("kill -{signal} $$")]).run();
        out.says(code, &[&format!("signal {}", code - 128)]);
    }
    let out = Plain::on(&service.cluster, &["submit", "--json", "kill -9 $$"]).run();
    let task = &json_lines(&out.text())[0];
    assert_eq!((out.code, &task["reason"], &task["signal"]), (137, &"signal".into(), &9.into()));
    assert!(task["exit_code"].is_null(), "{task}");
}

#[test]
fn a_timeout_is_124_and_kills_the_whole_group() {
    let service = Service::new("timeout", &[]);
    let pids = service.cluster.dir().join("pids");
    // A grandchild that does not care for SIGTERM.
    let line =
        format!("(trap '' TERM; sleep 100 & echo $! $$ >>{}; wait) & echo begun; wait", pids.display());
    let out = Plain::on(&service.cluster, &["submit", "--timeout", "1s", &line]).run();
    out.says(124, &["ran past its timeout"]);
    assert_eq!(out.text(), "begun\n", "what it printed is kept");
    for pid in file_says(&pids).split_whitespace() {
        assert!(!process::is_alive(pid.parse().expect("a pid")), "{pid} lives");
    }
}

#[test]
fn a_key_names_one_task_for_ever() {
    let service = Service::new("key", &["--slots", "2"]);
    let file = service.cluster.dir().join("runs");
    let line = format!("echo run >>{}; echo out; exit 5", file.display());
    let submit = |args: &[&str]| Plain::on(&service.cluster, &[&["submit"], args].concat()).run();
    let first = submit(&["--id", "nightly", &line]);
    assert_eq!((first.code, first.text().as_str()), (5, "out\n"), "{}", first.stderr);
    let again = submit(&["--id", "nightly", &line]);
    assert_eq!((again.code, again.text().as_str()), (5, "out\n"), "after it was read: {}", again.stderr);
    submit(&["--id", "nightly", "echo another"]).says(65, &["nightly", "something else"]);
    submit(&["--id", "nightly", "--timeout", "5m", &line]).says(65, &["nightly", "something else"]);
    let detached = submit(&["--id", "nightly", "--detach", &line]);
    let id = detached.text().trim().to_string();
    assert!(detached.code == 0 && id.ends_with("/nightly"), "{detached:?}");
    assert_eq!(file_says(&file), "run\n", "it ran once");

    // Two at a time attach to one run.
    let gate = service.cluster.dir().join("gate");
    let line = format!(
        "echo run >>{}; until [ -e {} ]; do sleep .05; done; echo both",
        file.display(),
        gate.display()
    );
    let mut a = service.cluster.submit(&["--id", "both", &line]);
    let mut b = service.cluster.submit(&["--id", "both", &line]);
    eventually(LIMIT, "it runs", || (file_says(&file).lines().count() == 2).then_some(()));
    fs::write(&gate, "").expect("opened");
    for exit in [a.wait_exit(LIMIT), b.wait_exit(LIMIT)] {
        assert_eq!((exit.code, exit.stdout.as_str()), (0, "both\n"), "{exit:?}");
    }
    assert_eq!(file_says(&file).lines().count(), 2, "it ran once");
    // With a job of the user's own, the id is as the user says.
    let out = submit(&["--job", "reports", "--id", "k", "--detach", "true"]);
    assert_eq!(out.text(), "reports/k\n");
}

#[test]
fn a_detached_task_is_waited_for_as_often_as_one_likes() {
    let service = Service::new("detach", &[]);
    let id = service.cluster.submit_detached(&["echo later; echo err >&2; exit 3"]);
    for _ in 0..2 {
        let out = Plain::on(&service.cluster, &["wait", id.as_str()]).run();
        assert_eq!((out.code, out.text().as_str(), out.stderr.as_str()), (3, "later\n", "err\n"));
        assert!(service.cluster.task(&id).is_some(), "wait never deletes");
    }
    let other = service.cluster.submit_detached(&["echo fine"]);
    let out = Plain::on(&service.cluster, &["wait", id.as_str(), other.as_str()]).run();
    assert_eq!(out.code, 1, "{out:?}");
    assert!(out.text().contains("later\n") && out.text().contains("fine\n"));
    out.says(1, &["2 tasks", "1 succeeded", "1 failed", id.as_str(), "exit code 3"]);
    Plain::on(&service.cluster, &["wait", "_00/none"]).run().says(65, &["_00/none"]);
    Plain::on(&service.cluster, &["wait", "no-job"]).run().says(65, &["no-job"]);
}

#[test]
fn an_interrupted_submit_says_how_to_come_back() {
    let service = Service::new("interrupt", &["--slots", "4"]);
    let gate = service.cluster.dir().join("gate");
    let line = format!("until [ -e {} ]; do sleep .05; done; echo came", gate.display());
    let mut ids: Vec<TaskId> = Vec::new();
    for (signal, code) in [(rustix::process::Signal::INT, 130), (rustix::process::Signal::TERM, 143)] {
        let mut submit = service.cluster.submit(&[&line]);
        let id = eventually(LIMIT, "its task exists", || {
            service.cluster.tasks().into_iter().map(|(id, ..)| id).find(|id| !ids.contains(id))
        });
        service.cluster.assigned(&id);
        submit.signal(signal);
        let exit = submit.wait_exit(LIMIT);
        assert_eq!(exit.code, code, "{exit:?}");
        assert!(exit.stderr.contains(&format!("zkmw wait {id}")), "{exit:?}");
        let task = service.cluster.task(&id).expect("it exists").0;
        assert!(!task.cancel && task.outcome.is_none(), "it was left alone");
        ids.push(id);
    }
    fs::write(&gate, "").expect("opened");
    for id in &ids {
        let out = Plain::on(&service.cluster, &["wait", id.as_str()]).run();
        assert_eq!((out.code, out.text().as_str()), (0, "came\n"));
    }
    // The other wish: the task goes with its submitter.
    let pid = service.cluster.dir().join("pid");
    let mut submit =
        service.cluster.submit(&["--cancel-on-interrupt", &format!("echo $$ >{}; sleep 100", pid.display())]);
    let running: u32 = file_says(&pid).trim().parse().expect("a pid");
    submit.signal(rustix::process::Signal::INT);
    let exit = submit.wait_exit(LIMIT);
    assert!(exit.code == 1 || exit.code == 130, "{exit:?}");
    assert!(exit.stderr.contains("cancel"), "{exit:?}");
    eventually(Duration::from_secs(5), "it has ended", || (!process::is_alive(running)).then_some(()));
    let tasks = service.cluster.tasks().into_iter();
    let cancelled = tasks.filter(|(_, task, _)| {
        task.outcome.as_ref().is_some_and(|outcome| outcome.state == State::Cancelled)
    });
    assert_eq!(cancelled.count(), 1, "it stays");
}
