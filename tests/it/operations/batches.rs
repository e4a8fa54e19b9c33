//! Batches, whole jobs.

use crate::harness::{LIMIT, eventually};
use crate::plain::{Plain, Service, fields, json_lines};

const ENDED: [&str; 12] = [
    "attempt",
    "detail",
    "ended_ms",
    "exit_code",
    "id",
    "line",
    "reason",
    "signal",
    "started_ms",
    "state",
    "stderr",
    "stdout",
];

#[test]
fn a_batch_prints_each_output_whole_and_exits_1_if_any_failed() {
    let service = Service::new("batch", &["--slots", "3"]);
    let lines = b"echo one; echo uno\n\nexit 3\n  \necho two; echo err >&2\n\
        for i in 1 2 3; do echo $i; sleep .05; done\n";
    let batch = |args: &[&str], lines: &[u8]| {
        Plain::on(&service.cluster, &[&["submit", "--from-file", "-"], args].concat()).stdin(lines).run()
    };
    let out = batch(&[], lines);
    out.says(1, &["4 tasks: 3 succeeded, 1 failed", "/3 failed with exit code 3", "err\n"]);
    for whole in ["one\nuno\n", "two\n", "1\n2\n3\n"] {
        assert!(out.text().contains(whole), "{whole:?} in {:?}", out.text());
    }
    assert_eq!(out.text().len(), "one\nuno\ntwo\n1\n2\n3\n".len());
    assert_eq!(service.cluster.tasks().len(), 1, "what succeeded was collected, and what failed stays");
    let out = batch(&[], b"true\ntrue\n");
    out.says(0, &["2 tasks: 2 succeeded, 0 failed"]);
    assert!(out.stdout.is_empty());

    let out = batch(&["--json", "--job", "named"], b"echo a\nexit 7\n");
    assert_eq!(out.code, 1);
    let mut rows = json_lines(&out.text());
    rows.sort_by_key(|row| row["line"].as_u64());
    assert_eq!(rows.len(), 2);
    for row in &rows {
        let mut expected: Vec<&str> = ENDED.to_vec();
        expected.push("worker");
        assert_eq!(fields(row), expected);
        assert!(row["id"].as_str().is_some_and(|id| id.starts_with("named~")), "{row}");
    }
    assert_eq!(
        (&rows[0]["line"], &rows[0]["state"], &rows[0]["stdout"]),
        (&1.into(), &"done".into(), &"a\n".into())
    );
    assert_eq!(
        (&rows[1]["line"], &rows[1]["state"], &rows[1]["exit_code"]),
        (&2.into(), &"failed".into(), &7.into())
    );
}

#[test]
fn a_detached_batch_is_waited_for_as_a_whole_job() {
    let service = Service::new("batch-detached", &["--slots", "3"]);
    let lines = "echo $ZKMW_TASK $ZKMW_LINE\n".repeat(7) + "exit 4\n";
    let out = Plain::on(&service.cluster, &["submit", "--from-file", "-", "--detach", "--job", "whole"])
        .stdin(lines.as_bytes())
        .run();
    assert_eq!(out.code, 0, "{out:?}");
    let mut ids: Vec<String> = out.text().lines().map(str::to_string).collect();
    assert_eq!(ids.len(), 8);
    ids.sort();
    out.says(0, &["8 tasks submitted", "zkmw wait whole"]);
    let wait = Plain::on(&service.cluster, &["wait", "whole"]).run();
    wait.says(1, &["8 tasks", "7 succeeded", "1 failed", "exit code 4", &ids[7]]);
    let mut printed: Vec<String> = wait.text().lines().map(str::to_string).collect();
    printed.sort();
    let named: Vec<String> = ids[..7].iter().zip(1..).map(|(id, line)| format!("{id} {line}")).collect();
    assert_eq!(printed, named, "each line hears its name, as users say it, and its number");
    // Waiting never deletes; and the command that the submit printed works too.
    let name = out.stderr.trim().rsplit(' ').next().expect("a name").to_string();
    let wait = Plain::on(&service.cluster, &["wait", "--json", &name]).run();
    assert_eq!((wait.code, json_lines(&wait.text()).len()), (1, 8), "{}", wait.stderr);
    // retry of the whole job concerns the failed one alone.
    let retry = Plain::on(&service.cluster, &["retry", "--json", "whole"]).run();
    let notes = json_lines(&retry.text());
    assert!(retry.code == 0 && notes.len() == 1 && notes[0]["id"] == ids[7].as_str(), "{retry:?}");
    assert_eq!(fields(&notes[0]), ["id", "message", "ok", "verb"]);
    retry.says(0, &["7 other tasks"]);
}

/// A keyed batch that is submitted again meets its own tasks.
#[test]
fn a_keyed_batch_runs_once() {
    let service = Service::new("batch-keyed", &["--slots", "2"]);
    let file = service.cluster.dir().join("runs");
    let lines = format!("echo a >>{0}\necho b >>{0}\n", file.display());
    let submit = |lines: &str| {
        Plain::on(&service.cluster, &["submit", "--from-file", "-", "--id", "day-1"])
            .stdin(lines.as_bytes())
            .run()
    };
    for _ in 0..2 {
        submit(&lines).says(0, &["2 tasks: 2 succeeded"]);
    }
    let text = std::fs::read_to_string(&file).expect("written");
    assert_eq!(text.lines().count(), 2, "{text}");
    let out = submit("echo a\necho c\n");
    assert_ne!(out.code, 0);
    assert!(out.code == 65 || out.code == 1, "{out:?}");
    assert!(out.stderr.contains("something else"), "{out:?}");
}

#[test]
fn an_interrupted_batch_goes_on_and_says_how_to_come_back() {
    let service = Service::new("batch-interrupt", &["--slots", "2"]);
    let gate = service.cluster.dir().join("gate");
    let line = format!("until [ -e {} ]; do sleep .05; done; echo came\n", gate.display());
    let file = service.cluster.dir().join("batch");
    std::fs::write(&file, line.repeat(3)).expect("written");
    let mut batch = service.cluster.submit(&["--from-file", file.to_str().expect("UTF-8")]);
    let tasks = || service.cluster.tasks();
    eventually(LIMIT, "all exist", || (tasks().len() == 3).then_some(()));
    // Lines are created side by side: which of them come first is not said.
    eventually(LIMIT, "two run", || {
        let assigned: usize =
            service.cluster.assignments().iter().map(|(_, assignment, _)| assignment.entries.len()).sum();
        (assigned == 2).then_some(())
    });
    batch.term();
    let exit = batch.wait_exit(LIMIT);
    assert_eq!(exit.code, 143, "{exit:?}");
    let job = tasks()[0].0.dir().split('~').next().expect("a job").to_string();
    assert!(exit.stderr.contains(&format!("zkmw wait {job}")), "{exit:?}");
    std::fs::write(&gate, "").expect("opened");
    let out = Plain::on(&service.cluster, &["wait", &job]).run();
    assert_eq!((out.code, out.text().as_str()), (0, "came\ncame\ncame\n"), "{}", out.stderr);

    // With the other wish none of it goes on.
    std::fs::remove_file(&gate).expect("closed");
    let mut batch =
        service.cluster.submit(&["--cancel-on-interrupt", "--from-file", file.to_str().expect("UTF-8")]);
    eventually(LIMIT, "all exist", || (tasks().len() == 6).then_some(()));
    batch.term();
    let exit = batch.wait_exit(LIMIT);
    assert!(exit.code == 1 || exit.code == 143, "{exit:?}");
    assert!(exit.stderr.contains("3 failed"), "{exit:?}");
    assert_eq!(tasks().len(), 6, "what was cancelled stays");
}

/// A closed terminal ends no daemon.
#[test]
fn a_hangup_does_nothing_to_a_daemon() {
    let mut service = Service::new("hangup", &[]);
    let mut elector = service.cluster.elector("e1", &[]);
    let dir = format!("{}/elections/default", service.cluster.root);
    eventually(LIMIT, "it is a contender", || {
        (service.cluster.contenders_below(&dir).len() == 1).then_some(())
    });
    for process in [&service.master, &service.worker, &elector] {
        process.signal(rustix::process::Signal::HUP);
    }
    service.is_unharmed();
    assert!(elector.is_running());
    elector.term();
    assert_eq!(elector.wait_exit(LIMIT).code, 0);
}
