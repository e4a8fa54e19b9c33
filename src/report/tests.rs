//! The format of reports, byte for byte where it matters.

use serde_json::{Value, json};

use super::*;
use crate::contract::chunk::CommandResult;
use crate::contract::line::LineName;
use crate::contract::status::{Admission, Counts, EndedWorker, LeaderStatus, Status, WorkerRow};
use crate::contract::task::{Options, Outcome, Output, Payload, Reason, State, Task};
use crate::contract::{Incarnation, Malformed, TaskId};
use crate::machine::{Captured, Stat};
use crate::roles::client::wait_reasons::WaitReason;
use crate::roles::client::{
    ElectionRow, Ended, FirstContender, ListColumn, Noted, Row, RowTask, Shown, ShownLine, StatusReport,
    TaskStatus, Unreadable, commands_ended,
};

fn format(json: bool) -> Format {
    Format { json, progress: false }
}

/// Standard output and standard error of these reports.
fn shown(json: bool, reports: Vec<ClientReport>) -> (Vec<u8>, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut view = ReportPrinter::new(&mut out, &mut err, format(json));
    for report in reports {
        view.show(report).expect("shown");
    }
    drop(view);
    (out, String::from_utf8(err).expect("words"))
}

fn text(reports: Vec<ClientReport>) -> (String, String) {
    let (out, err) = shown(false, reports);
    (String::from_utf8(out).expect("text"), err)
}

fn lines(reports: Vec<ClientReport>) -> Vec<Value> {
    let (out, _) = shown(true, reports);
    let out = String::from_utf8(out).expect("text");
    assert!(out.is_empty() || out.ends_with('\n'));
    out.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

fn output(head: &[u8], omitted: u64, tail: &[u8]) -> Output {
    Output::new(&Captured { head: head.to_vec(), omitted, tail: tail.to_vec() })
}

fn outcome(state: State, reason: Option<Reason>) -> Outcome {
    Outcome { detail: None, ..Outcome::unrun(state, reason, "", 2) }
}

fn ended(outcome: Outcome, alone: bool) -> ClientReport {
    let line = (!alone).then_some(4);
    ClientReport::Ended(vec![Ended { id: TaskId::new("J", "t"), line, outcome, alone }])
}

fn full() -> Outcome {
    Outcome {
        exit_code: Some(3),
        worker: Some(Incarnation::new("w", 1)),
        started_ms: Some(1_000),
        ended_ms: Some(2_500),
        stdout: output(b"out\n", 0, b""),
        stderr: output(b"err\n", 0, b""),
        ..outcome(State::Failed, Some(Reason::Exit))
    }
}

fn chunk() -> Task {
    let commands = ["echo a", " ", "exit 3", "sleep 9"].map(str::to_string).to_vec();
    let mut task = Task::new(Payload::Chunk { first_line: 4, commands }, Options::default());
    let good = Outcome { exit_code: Some(0), stdout: output(b"a\n", 0, b""), ..outcome(State::Done, None) };
    task.results = vec![Some(CommandResult::of(good)), None, Some(CommandResult::of(full()))];
    task
}

#[test]
fn commands_of_a_chunk_are_shown_like_tasks_of_a_batch() {
    let mut task = chunk();
    let poison = Outcome { attempt: 3, ..outcome(State::Failed, Some(Reason::Poison)) };
    task.end(poison);
    let commands = commands_ended(&TaskId::new("J", "t"), &task);
    let one_by_one = || commands.iter().map(|one| ClientReport::Ended(vec![one.clone()])).collect();
    let together = || vec![ClientReport::Ended(commands.clone())];
    assert_eq!((text(together()), lines(together())), (text(one_by_one()), lines(one_by_one())));
    let words = "err\nzkmw: the task J/t (line 7) failed with exit code 3\n\
                 zkmw: the task J/t (line 8) was given up: its workers died under it\n";
    assert_eq!(text(together()), ("a\nout\n".into(), words.into()));
    let shown: Vec<_> =
        lines(together()).iter().map(|line| (line["line"].clone(), line["attempt"].clone())).collect();
    assert_eq!(shown, [(json!(5), json!(2)), (json!(7), json!(2)), (json!(8), json!(3))]);
}

/// One stream, as a terminal is.
#[derive(Clone, Default)]
struct Terminal(std::rc::Rc<std::cell::RefCell<Vec<u8>>>);

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn on_one_terminal_each_command_has_its_outputs_together() {
    let terminal = Terminal::default();
    let ended = |line| Ended { id: TaskId::new("J", "t"), line: Some(line), outcome: full(), alone: false };
    let report = ClientReport::Ended(vec![ended(0), ended(1)]);
    ReportPrinter::new(terminal.clone(), terminal.clone(), format(false)).show(report).expect("shown");
    let one = |line| format!("out\nerr\nzkmw: the task J/t (line {line}) failed with exit code 3\n");
    assert_eq!(String::from_utf8_lossy(&terminal.0.borrow()), one(1) + &one(2));
}

#[test]
fn a_chunk_is_shown_command_by_command() {
    let stat = Stat::default();
    let show = |task: Task| {
        let (id, options) = (TaskId::new("J", "t"), Options::default());
        ClientReport::Shown(Box::new(Shown {
            id,
            task,
            stat,
            options,
            line: None,
            worker: None,
            reasons: Vec::new(),
        }))
    };
    let (out, _) = text(vec![show(chunk())]);
    for words in [
        "commands  3, of lines 5 to 8\nstate     pending\n",
        "line 5       done        0 echo a\n--- stdout\na\nline 7       failed      3 exit 3\n",
        "             it failed with exit code 3\n--- stdout\nout\n--- stderr\nerr\n",
        "line 8       pending       sleep 9\n",
    ] {
        assert!(out.contains(words), "{words} in {out}");
    }
    let line = lines(vec![show(chunk())]).remove(0);
    assert_eq!(
        (&line["first_line"], &line["commands"][2], &line["outcome"]),
        (&json!(4), &json!("exit 3"), &json!(null))
    );
    let results = line["results"].as_array().expect("a list").clone();
    assert_eq!(results[..2], lines(commands_ended_of(&chunk()))[..]);
    let pending = json!({
        "id": "J/t", "line": 8, "state": "pending", "reason": null, "exit_code": null, "signal": null,
        "detail": null, "attempt": null, "worker": null, "started_ms": null, "ended_ms": null,
        "stdout": "", "stderr": "",
    });
    assert_eq!(results[2..], [pending]);

    let mut over = chunk();
    over.end(outcome(State::Cancelled, None));
    let line = lines(vec![show(over)]).remove(0);
    assert_eq!((&line["results"][2]["state"], &line["state"]), (&json!("cancelled"), &json!("cancelled")));
}

fn commands_ended_of(task: &Task) -> Vec<ClientReport> {
    commands_ended(&TaskId::new("J", "t"), task)
        .into_iter()
        .map(|one| ClientReport::Ended(vec![one]))
        .collect()
}

#[test]
fn a_single_task_passes_on_its_bytes_and_nothing_else() {
    let mut bytes = full();
    bytes.stdout = output(b"\xff\0no newline", 0, b"");
    let (out, err) = shown(false, vec![ended(bytes, true)]);
    assert_eq!((out.as_slice(), err.as_str()), (b"\xff\0no newline".as_slice(), "err\n"));
}

#[test]
fn in_a_batch_every_failure_has_words_and_no_success_has() {
    let (out, err) = text(vec![ended(full(), false)]);
    assert_eq!(out, "out\n");
    assert_eq!(err, "err\nzkmw: the task J/t (line 5) failed with exit code 3\n");
    let good = Outcome { exit_code: Some(0), ..outcome(State::Done, None) };
    assert_eq!(text(vec![ended(good, false)]), (String::new(), String::new()));
}

#[test]
fn what_an_exit_code_does_not_say_is_said() {
    let poison =
        Outcome { detail: Some("3 workers\u{1b}[2J".into()), ..outcome(State::Failed, Some(Reason::Poison)) };
    for (outcome, words) in [
        (
            Outcome { signal: Some(9), ..outcome(State::Failed, Some(Reason::Signal)) },
            "was killed by signal 9",
        ),
        (outcome(State::Failed, Some(Reason::Timeout)), "ran past its timeout and was killed"),
        (poison, "was given up: its workers died under it: 3 workers\\u{1b}[2J"),
        (outcome(State::Failed, Some(Reason::NotStarted)), "could not be started"),
        (outcome(State::Cancelled, None), "was cancelled"),
        (outcome(State::Expired, None), "expired before it was started"),
    ] {
        assert_eq!(text(vec![ended(outcome, true)]).1, format!("zkmw: the task J/t {words}\n"));
    }
}

#[test]
fn output_that_was_not_kept_is_reported_beside_the_result() {
    let mut cut = full();
    cut.stdout = output(b"head\n", 77, b"tail\n");
    cut.stderr = output(b"first\n", 5, b"last\n");
    let (out, err) = text(vec![ended(cut, true)]);
    assert_eq!(out, "head\ntail\n");
    let note = "zkmw: the task J/t: 77 bytes of its output were not kept\n";
    assert_eq!(
        err,
        format!("{note}first\n{}last\n", note.replace("77", "5").replace("output", "error output"))
    );
}

#[test]
fn an_outcome_in_json_has_all_its_fields() {
    let expected = json!({
        "id": "J/t", "line": 5, "state": "failed", "reason": "exit", "exit_code": 3, "signal": null,
        "detail": null, "attempt": 2, "worker": "w~0000000000000001", "started_ms": 1000, "ended_ms": 2500,
        "stdout": "out\n", "stderr": "err\n",
    });
    assert_eq!(lines(vec![ended(full(), false)]), [expected]);
    let mut odd = full();
    odd.stdout = output(b"\xff\xff", 0, b"");
    odd.stderr = output(b"a", 9, b"b");
    let line = lines(vec![ended(odd, true)]).remove(0);
    assert_eq!(line["stdout"], json!({"base64": "//8="}));
    assert_eq!(line["stderr"], json!({"head": "a", "omitted": 9, "tail": "b"}));
    assert_eq!(line.get("line"), None);
}

#[test]
fn an_id_is_printed_only_if_nobody_waits() {
    let id = || TaskId::new("J", "t");
    let submitted = |detached| vec![ClientReport::Submitted { id: id(), detached }];
    assert_eq!(text(submitted(true)).0, "J/t\n");
    assert_eq!(text(submitted(false)).0, "");
    assert_eq!(lines(submitted(true)), [json!({"id": "J/t", "state": "pending"})]);
    let lines_of_batch =
        || vec![ClientReport::SubmittedLines { id: TaskId::new("J~b~0000", "0000000"), lines: vec![0, 2] }];
    assert_eq!(text(lines_of_batch()).0, "J~b/1\nJ~b/3\n");
    let pending = |id| json!({"id": id, "state": "pending"});
    assert_eq!(lines(lines_of_batch()), [pending("J~b/1"), pending("J~b/3")]);
    let detached = || vec![ClientReport::Detached { name: "B".into(), submitted: 3 }];
    assert!(text(detached()).1.contains("zkmw wait B"));
    assert_eq!(lines(detached()), [] as [Value; 0]);
}

#[test]
fn a_summary_is_no_result() {
    let progress = Progress { submitted: 3, done: 2, failed: 1, total: 3 };
    let (out, err) = text(vec![ClientReport::Progress(progress), ClientReport::Summary(progress)]);
    assert_eq!((out.as_str(), err.as_str()), ("", "zkmw: 3 tasks: 2 succeeded, 1 failed\n"));
    assert_eq!(lines(vec![ClientReport::Summary(progress)]), [] as [Value; 0]);
}

fn status(current: bool, contenders: &[&str]) -> ClientReport {
    let leader = LeaderStatus { id: "m1".into(), host: "h".into(), pid: 7, epoch: 42 };
    let counts = Counts { pending: 3, assigned: 1, running: 1, ..Counts::default() };
    let mut status = Status::new(leader, Vec::new(), counts, false);
    status.admission = Some(Admission { bytes: 3_300_000, max_pending: 9, max_pending_bytes: 1 << 30 });
    let contenders = contenders.iter().map(|id| (*id).to_string()).collect();
    ClientReport::Status(Box::new(StatusReport { status: Some(status), current, contenders }))
}

#[test]
fn status_names_the_leader_only_if_it_is_certain() {
    let (out, _) = text(vec![status(true, &["m1", "m2"])]);
    assert!(
        out.starts_with("leader   m1 (host h, pid 7, epoch 42)\nstandbys m2\ntasks    3 pending"),
        "{out}"
    );
    let (out, _) = text(vec![status(false, &["m2\u{7}"])]);
    assert!(out.contains("none yet: m2\\u{7} is about to lead (m1 on h was the last)"), "{out}");
    assert!(out.contains("may be old"));
    assert!(out.contains("\nlimits   5 of 9 pending, 3.1 MiB of 1 GiB\n"), "{out}");
    let (out, _) = text(vec![status(false, &[])]);
    assert!(out.contains("no master is running"), "{out}");

    let line = lines(vec![status(true, &["m1", "m2"])]).remove(0);
    assert_eq!((&line["leader"]["id"], &line["leader"]["pid"]), (&json!("m1"), &json!(7)));
    let admission = json!({"bytes": 3_300_000, "max_pending": 9, "max_pending_bytes": 1_073_741_824});
    assert_eq!(line["admission"], admission);
    assert_eq!((&line["leader"]["epoch"], &line["standbys"]), (&json!(42), &json!(["m2"])));
    assert_eq!(
        (&line["tasks"]["pending"], &line["workers"], &line["stale"]),
        (&json!(3), &json!(0), &json!(false))
    );
    let line = lines(vec![status(false, &["m2"])]).remove(0);
    assert_eq!((&line["leader"], &line["next"], &line["stale"]), (&Value::Null, &json!("m2"), &json!(true)));
    assert_eq!(line["last_leader"]["id"], "m1");
}

#[test]
fn a_list_has_one_heading_and_a_line_for_each() {
    let row = |task| ClientReport::Row(Box::new(Row { name: "J/t".into(), task }));
    let (worker, command) = (Some(Incarnation::new("w", 1)), "echo hi".into());
    let (status, attempt, outcome) = (TaskStatus::Running, Some(2), None);
    let (created_ms, age_ms) = (7, 90_000);
    let worker_of = worker.clone();
    let task =
        RowTask { status, attempt, priority: -1, worker: worker_of, created_ms, age_ms, outcome, command };
    let rows =
        || vec![row(Ok(task.clone())), row(Err(Unreadable::Malformed(Malformed("it is empty".into()))))];
    let (out, _) = text(rows());
    assert_eq!(out.lines().count(), 3);
    assert_eq!(
        out,
        "ID                               STATE      EXIT ATTEMPT WORKER         AGE DURATION COMMAND\n\
         J/t                              running       -       2 w              90s        - echo hi\n\
         J/t                              malformed     -       - -                -        - it is empty\n"
    );
    let columns = vec![ListColumn::Command, ListColumn::Priority, ListColumn::Id];
    let list = ListForm { columns, width: Some(20), headed: false };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut view = ReportPrinter { list, ..ReportPrinter::new(&mut out, &mut err, format(false)) };
    rows().into_iter().for_each(|row| view.show(row).expect("shown"));
    drop(view);
    assert_eq!(
        String::from_utf8_lossy(&out),
        "COMMAND PRIORITY ID\necho hi       -1 J/t\nit is empty        …\n"
    );
    let expected = json!({
        "id": "J/t", "state": "running", "attempt": 2, "priority": -1, "worker": worker, "reason": null,
        "exit_code": null, "signal": null, "created_ms": 7, "started_ms": null, "ended_ms": null,
        "command": "echo hi",
    });
    assert_eq!(
        lines(rows()),
        [expected, json!({"id": "J/t", "state": "malformed", "detail": "it is empty"})]
    );
}

#[test]
fn a_line_of_a_batch_is_shown_under_its_own_name() {
    let id = || TaskId::new("J~b~0000", "0000004");
    let ended = |line| Ended { id: id(), line: Some(line), outcome: full(), alone: false };
    let report = || vec![ClientReport::Ended(vec![ended(6)])];
    assert_eq!(text(report()).1, "err\nzkmw: the task J~b/7 failed with exit code 3\n");
    let line = lines(report()).remove(0);
    assert_eq!((&line["id"], &line["line"]), (&json!("J~b/7"), &json!(7)));
    let stays = ClientReport::Ended(vec![ended(6)]).what_stays().expect("words");
    assert!(stays.contains("zkmw wait J~b/7;") && stays.contains("zkmw wait J~b comes"), "{stays}");

    let show = |position: usize, status| {
        let line = Some(ShownLine {
            name: LineName { batch: "J~b".into(), line: 4 + position as u64 },
            position,
            status,
        });
        let (stat, options) = (Stat::default(), Options::default());
        vec![ClientReport::Shown(Box::new(Shown {
            id: id(),
            line,
            task: chunk(),
            stat,
            options,
            worker: None,
            reasons: Vec::new(),
        }))]
    };
    let (out, _) = text(show(2, TaskStatus::Ended(State::Failed)));
    for words in [
        "id        J~b/7\ncommand   exit 3\nstate     failed\npriority",
        "outcome   attempt 2 failed with exit code 3 (exit code 3)\n",
        "--- stdout\nout\n--- stderr\nerr\n",
    ] {
        assert!(out.contains(words), "{words} in {out}");
    }
    assert!(!out.contains("echo a") && !out.contains("sleep 9"), "others are not shown: {out}");
    let line = lines(show(2, TaskStatus::Ended(State::Failed))).remove(0);
    assert_eq!(
        (&line["id"], &line["line"], &line["command"]),
        (&json!("J~b/7"), &json!(7), &json!("exit 3"))
    );
    assert_eq!((&line["outcome"]["exit_code"], line.get("commands")), (&json!(3), None));
    let line = lines(show(3, TaskStatus::Pending)).remove(0);
    assert_eq!((&line["state"], &line["outcome"]), (&json!("pending"), &json!(null)));
}

#[test]
fn a_task_is_shown_whole_whatever_is_in_it() {
    let options = Options { timeout_ms: Some(5), ..Options::default() };
    let mut task = Task::new(Payload::Shell("echo\u{1b}[2J".into()), options.clone());
    task.next_attempt(None, "its worker died");
    task.delay_ms = Some(u64::MAX);
    task.outcome = Some(Outcome { started_ms: Some(i64::MIN), ended_ms: Some(i64::MAX), ..full() });
    let (id, stat) = (TaskId::new("J", "t"), Stat { ctime_ms: 1_700_000_000_000, ..Stat::default() });
    let whole = Shown { id, line: None, task, stat, options, worker: None, reasons: Vec::new() };
    let (out, _) = text(vec![ClientReport::Shown(Box::new(whole.clone()))]);
    for words in ["2023-11-14T22:13:20", "attempt 1 by nobody: its worker died", "--- stdout\nout\n", "5 ms"]
    {
        assert!(out.contains(words), "{words} in {out}");
    }
    assert!(!out.contains('\u{1b}'));
    let line = lines(vec![ClientReport::Shown(Box::new(whole))]).remove(0);
    assert_eq!((&line["outcome"]["exit_code"], &line["options"]["timeout_ms"]), (&json!(3), &json!(5)));
    assert_eq!((&line["state"], &line["history"][0]["attempt"]), (&json!("failed"), &json!(1)));
}

#[test]
fn a_note_that_is_none_goes_to_standard_error() {
    let note = |ok| ClientReport::Noted(Noted { id: "J/t".into(), verb: "retry", ok, message: "why".into() });
    assert_eq!(text(vec![note(true)]), ("J/t: why\n".into(), String::new()));
    assert_eq!(text(vec![note(false)]), (String::new(), "J/t: why\n".into()));
    let expected = json!({"id": "J/t", "verb": "retry", "ok": false, "message": "why"});
    assert_eq!(lines(vec![note(false)]), [expected]);
}

/// A stream that takes everything and cannot flush it: a full disk behind a buffer.
struct Full;

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::StorageFull))
    }
}

#[test]
fn what_can_not_be_flushed_was_not_shown() {
    for report in [ended(full(), true), ended(full(), false)] {
        assert!(ReportPrinter::new(Full, Vec::new(), format(false)).show(report.clone()).is_err());
        assert!(ReportPrinter::new(Vec::new(), Full, format(false)).show(report.clone()).is_err());
        assert!(ReportPrinter::new(Full, Vec::new(), format(true)).show(report).is_err());
    }
}

#[test]
fn reasons_are_shown_as_lines_and_as_objects() {
    let why = |outcome| {
        let mut task = Task::new(Payload::Shell("true".into()), Options::default());
        task.outcome = outcome;
        let reasons = vec![WaitReason::NoMaster, WaitReason::NoWorker { leader: "m\u{1b}1".into() }];
        let reasons = if task.outcome.is_some() { Vec::new() } else { reasons };
        let (id, stat, options) = (TaskId::new("J", "t"), Stat::default(), Options::default());
        let shown = Shown { id, task, stat, options, line: None, worker: None, reasons };
        vec![ClientReport::Why(Box::new(shown))]
    };
    let (out, _) = text(why(None));
    let expected = "J/t is pending:\n  no master is running; start one (zkmw master)\n  the leader m\\u{1b}1 has no \
                    workers; start one (zkmw worker)\n";
    assert_eq!(out, expected);
    let (out, _) = text(why(Some(full())));
    assert_eq!(out, "J/t is failed: it failed with exit code 3\n");
    let object = &lines(why(None))[0];
    assert_eq!(object["state"], "pending");
    assert_eq!(
        object["reasons"][0],
        json!({"reason": "no-master", "text": WaitReason::NoMaster.to_string()})
    );
    assert_eq!(lines(why(Some(full())))[0]["reasons"], json!([]));
}

#[test]
fn workers_are_a_table_and_objects() {
    let row = |id: &str, draining| WorkerRow {
        id: id.into(),
        host: "h".into(),
        pid: 7,
        slots: 4,
        running: 1,
        assigned: 2,
        draining,
        usable: None,
        unhealthy: None,
        labels: [("gpu".to_string(), "yes\u{1b}".to_string())].into(),
    };
    let leader = LeaderStatus { id: "m1".into(), host: "h".into(), pid: 7, epoch: 42 };
    let mut status = Status::new(leader, vec![row("w1", false), row("w2", true)], Counts::default(), false);
    let ended = |id: &str, drained| EndedWorker { id: id.into(), at_ms: 1_000, drained };
    status.ended_workers = vec![ended("w3", true), ended("w1", false)];
    let report = StatusReport { status: Some(status), current: true, contenders: vec!["m1".into()] };
    let report = || vec![ClientReport::Workers(Box::new(report.clone()))];
    let (out, _) = text(report());
    assert_eq!(
        out,
        "ID               HOST                 PID SLOTS RUNNING ASSIGNED STATE      LABELS\n\
         w1               h                      7     4       1        2 ready      gpu=yes\\u{1b}\n\
         w2               h                      7     4       1        2 draining   gpu=yes\\u{1b}\n\
         ended: w3 at 1970-01-01T00:00:01.000Z: drained\n\
         ended: w1 at 1970-01-01T00:00:01.000Z: its session ended, or its registration was deleted\n"
    );
    let objects = lines(report());
    assert_eq!(objects.len(), 3);
    assert_eq!((&objects[0]["id"], &objects[0]["last_end"]["drained"]), (&json!("w1"), &json!(false)));
    assert_eq!((&objects[1]["registered"], &objects[1]["last_end"]), (&json!(true), &Value::Null));
    assert_eq!(
        objects[2],
        json!({"id": "w3", "registered": false, "stale": false, "last_end": {"at_ms": 1_000, "drained": true}})
    );
}

#[test]
fn elections_are_a_table_and_objects() {
    let first = FirstContender { id: "m1".into(), created_ms: 1_000, epoch: 7 };
    let rows = vec![
        ClientReport::Election(Box::new(ElectionRow {
            path: "/z/master".into(),
            first: Some(first),
            contenders: 2,
        })),
        ClientReport::Election(Box::new(ElectionRow { path: "/z/e".into(), first: None, contenders: 0 })),
    ];
    let (out, _) = text(rows.clone());
    assert_eq!(
        out,
        "ELECTION                         LEADER               CONTENDERS            EPOCH CONTENDING SINCE\n\
         /z/master                        m1                            2                7 1970-01-01T00:00:01.000Z\n\
         /z/e                             -                             0                - -\n"
    );
    let leader = json!({"id": "m1", "epoch": 7, "contending_since_ms": 1_000});
    let expected = [
        json!({"path": "/z/master", "contenders": 2, "leader": leader}),
        json!({"path": "/z/e", "contenders": 0, "leader": null}),
    ];
    assert_eq!(lines(rows), expected);
}

/// Whatever a foreign znode says, no line of text has an escape sequence.
#[test]
fn no_escape_sequence_reaches_a_terminal() {
    let evil = || "\u{1b}]0;x\u{7}".to_string();
    let leader = LeaderStatus { id: evil(), host: evil(), pid: 7, epoch: 42 };
    let worker = WorkerRow {
        id: evil(),
        host: evil(),
        pid: 7,
        slots: 1,
        running: 0,
        assigned: 0,
        draining: false,
        usable: None,
        unhealthy: Some(evil()),
        labels: [(evil(), evil())].into(),
    };
    let mut status = Status::new(leader, vec![worker], Counts::default(), false);
    status.ended_workers = vec![EndedWorker { id: evil(), at_ms: 1, drained: false }];
    let report = StatusReport { status: Some(status), current: true, contenders: vec![evil(), evil()] };
    let first = Some(FirstContender { id: evil(), created_ms: 1, epoch: 1 });
    let worker = serde_json::from_value(json!(format!("{}~1", evil()))).ok();
    let (status, outcome) = (TaskStatus::Running, None);
    let task = RowTask {
        status,
        attempt: None,
        priority: 0,
        worker,
        created_ms: 0,
        age_ms: 0,
        outcome,
        command: evil(),
    };
    let (out, err) = text(vec![
        ClientReport::Status(Box::new(report.clone())),
        ClientReport::Workers(Box::new(report)),
        ClientReport::Election(Box::new(ElectionRow { path: evil(), first, contenders: 1 })),
        ClientReport::Row(Box::new(Row { name: evil(), task: Ok(task) })),
    ]);
    assert!(!out.contains(['\u{1b}', '\u{7}']) && out.contains("\\u{1b}"), "{out}");
    assert_eq!(err, "");
}
