//! Tests of the checks: a small run in which all is well, with one thing broken in each test.

use serde_json::json;

use super::*;
use crate::harness::Exit;
use crate::history::{Clock, lives};

const ID: &str = "_3f/a";

fn txn(zxid: i64, op: Op) -> Txn {
    Txn { zxid, session: 1, time_ms: zxid * 100, op }
}

fn set(path: &str, data: &serde_json::Value) -> Op {
    Op::Set { path: path.into(), data: data.to_string().into_bytes(), version: 1 }
}

fn create(path: &str, data: &serde_json::Value) -> Op {
    Op::Create { path: path.into(), data: data.to_string().into_bytes(), ephemeral: false }
}

const TASK: &str = "/t/tasks/_3f/a";

fn command() -> String {
    "exec sh task.sh /folder name plain 1 0".to_string()
}

fn pending(attempt: u32) -> serde_json::Value {
    json!({"v": 1, "command": command(), "attempt": attempt})
}

fn done(attempt: u32) -> serde_json::Value {
    let out = format!("out name {attempt}\n");
    let outcome = json!({"state": "done", "exit_code": 0, "attempt": attempt, "stdout": out});
    json!({"v": 1, "command": command(), "attempt": attempt, "outcome": outcome})
}

fn assignment(epoch: i64, attempt: u32) -> serde_json::Value {
    json!({"v": 1, "epoch": epoch, "entries": [{"task": ID, "attempt": attempt}]})
}

fn note(what: &str, attempt: u32, token: i64) -> Note {
    let code = (what == "end").then_some(0);
    Note { what: what.into(), attempt, at: f64::from(attempt), worker: "w1".into(), token, code }
}

fn lead(what: &str, token: i64) -> Lead {
    Lead { what: what.into(), token, at: 1.0, name: "e1".into() }
}

/// One task, run once, collected by the client that waited for it.
fn good() -> Evidence {
    let ops = vec![
        create(TASK, &pending(1)),
        create("/t/assign/w1~1", &json!({"v": 1, "epoch": 0, "entries": []})),
        set("/t/assign/w1~1", &assignment(10, 1)),
        set("/t/status", &json!({"leader": {"id": "m1", "epoch": 10}})),
        set(TASK, &done(1)),
        Op::Delete { path: TASK.into() },
    ];
    let printed = json!({"id": ID, "state": "done", "exit_code": 0, "attempt": 1, "stdout": "out name 1\n"});
    let asked = Asked { name: "name".into(), kind: Kind::Plain, code: 0, command: command() };
    let record = Record {
        deed: Deed::Single,
        number: 1,
        label: "c00001".into(),
        asked: vec![asked],
        about: None,
        from: 0.0,
        until: 1.0,
        exit: Some(Exit { code: 0, stdout: format!("{printed}\n"), stderr: String::new() }),
        hurt: false,
    };
    with_log(
        Evidence {
            layout: Layout::new("/t"),
            log: Vec::new(),
            gap: false,
            lives: BTreeMap::new(),
            notes: BTreeMap::from([("name".to_string(), vec![note("start", 1, 5), note("end", 1, 5)])]),
            leads: vec![lead("start", 7), lead("end", 7)],
            records: vec![record],
            complaints: Vec::new(),
            leftovers: Vec::new(),
        },
        ops,
    )
}

/// With the versions that servers would give.
fn with_log(evidence: Evidence, mut ops: Vec<Op>) -> Evidence {
    let mut versions = BTreeMap::new();
    for op in &mut ops {
        match op {
            Op::Create { path, .. } => drop(versions.insert(path.clone(), 0)),
            Op::Set { path, version, .. } => {
                let next = versions.entry(path.clone()).or_insert(0);
                *next += 1;
                *version = *next;
            }
            _ => {}
        }
    }
    as_it_is(evidence, ops)
}

fn as_it_is(mut evidence: Evidence, ops: Vec<Op>) -> Evidence {
    evidence.log = (1..).zip(ops).map(|(zxid, op)| txn(zxid, op)).collect();
    evidence.lives = lives(&evidence.log, &Layout::new("/t"), Clock::start());
    evidence
}

/// The good run, with its log changed.
fn with(change: impl FnOnce(&mut Vec<Op>)) -> Evidence {
    let mut ops = good_ops();
    change(&mut ops);
    with_log(good(), ops)
}

fn good_ops() -> Vec<Op> {
    good().log.into_iter().map(|txn| txn.op).collect()
}

/// Checks that just this check complains.
#[track_caller]
fn only(evidence: &Evidence, check: Check) {
    for (name, other) in CHECKS {
        let found = other(evidence);
        assert_eq!(found.is_empty(), !std::ptr::fn_addr_eq(other, check), "{name}: {found:#?}");
    }
}

/// Checks that this one complains, among others that may.
#[track_caller]
fn at_least(evidence: &Evidence, check: Check) {
    assert!(!check(evidence).is_empty());
}

#[test]
fn a_good_run_is_accepted() {
    for (name, check) in CHECKS {
        assert_eq!(check(&good()), vec![], "{name}");
    }
}

#[test]
fn a_log_with_a_gap_or_a_malformed_task_is_detected() {
    only(&Evidence { gap: true, ..good() }, log_is_complete);
    only(&with(|ops| ops.insert(1, set(TASK, &json!([1])))), log_is_complete);
}

#[test]
fn servers_that_forgot_a_write_are_detected() {
    let forgot = |path: &str, ops: &[Op]| {
        let all = [vec![create(path, &json!({}))], ops.to_vec()].concat();
        nothing_forgotten(&as_it_is(good(), all)).len()
    };
    let set = |version| Op::Set { path: "/t/x".into(), data: Vec::new(), version };
    let gone = Op::Delete { path: "/t/x".into() };
    assert_eq!(forgot("/t/x", &[set(1), set(2), gone.clone(), create("/t/x", &json!({})), set(1)]), 0);
    assert_eq!(forgot("/t/x", &[set(1), set(2), set(2)]), 1, "a version twice");
    assert_eq!(forgot("/t/x", &[set(1), gone, set(2)]), 1, "it was deleted");
    only(&as_it_is(good(), [good_ops(), vec![set(3), set(5)]].concat()), nothing_forgotten);
}

#[test]
fn a_lost_task_is_detected() {
    only(&with(|ops| ops.extend([create("/t/tasks/_3f/b", &pending(1))])), nothing_lost);
    let ops = [create("/t/tasks/_3f/b", &pending(1)), Op::Delete { path: "/t/tasks/_3f/b".into() }];
    only(&with(|ops_| ops_.extend(ops)), nothing_lost);
    let is_of_task = |op: &Op| match op {
        Op::Create { path, .. } | Op::Set { path, .. } | Op::Delete { path } => path == TASK,
        _ => false,
    };
    at_least(&with(|ops| ops.retain(|op| !is_of_task(op))), nothing_lost);
}

#[test]
fn a_second_outcome_is_detected() {
    let mut other = done(1);
    other["outcome"]["worker"] = json!("w2~2");
    only(&with(|ops| ops.insert(5, set(TASK, &other))), one_outcome);
    // Taken away and written again, without a retry's step to the next attempt.
    at_least(&with(|ops| drop(ops.splice(5..5, [set(TASK, &pending(1)), set(TASK, &done(1))]))), one_outcome);
    // Created again under the same name.
    only(&with(|ops| ops.extend([create(TASK, &pending(1)), set(TASK, &done(1))])), one_outcome);
}

#[test]
fn an_attempt_that_falls_is_detected() {
    at_least(
        &with(|ops| drop(ops.splice(1..1, [set(TASK, &pending(2)), set(TASK, &pending(1))]))),
        one_outcome,
    );
}

#[test]
fn a_wrong_answer_to_a_user_is_detected() {
    let mut wrong_code = good();
    wrong_code.records[0].exit.as_mut().expect("it ended").code = 1;
    only(&wrong_code, reports_agree_with_log);
    let mut nothing_printed = good();
    nothing_printed.records[0].exit.as_mut().expect("it ended").stdout.clear();
    only(&nothing_printed, reports_agree_with_log);
    let mut wrong_output = good();
    let exit = wrong_output.records[0].exit.as_mut().expect("it ended");
    exit.stdout = exit.stdout.replace("out name 1", "out name 2");
    only(&wrong_output, reports_agree_with_log);
    let mut panicked = good();
    panicked.records[0].exit.as_mut().expect("it ended").code = 101;
    only(&panicked, reports_agree_with_log);
}

#[test]
fn a_result_that_the_task_never_had_is_detected() {
    let mut another_code = good();
    another_code.records[0].asked[0].code = 3;
    only(&another_code, right_result);
    let mut never_ended = good();
    never_ended.notes.get_mut("name").expect("its notes").pop();
    only(&never_ended, right_result);
}

#[test]
fn an_overlap_is_detected() {
    let mut beside = good();
    beside.notes.get_mut("name").expect("its notes").insert(0, note("overlap", 1, 4));
    at_least(&beside, no_overlap);
    // The first attempt writes its end after the second has begun.
    let mut late = with(|ops| drop(ops.splice(4..5, [set(TASK, &pending(2)), set(TASK, &done(2))])));
    late.notes.insert("name".into(), vec![note("start", 1, 5), note("start", 2, 6), note("end", 1, 5)]);
    at_least(&late, no_overlap);
}

#[test]
fn an_attempt_that_runs_twice_or_was_never_given_is_detected() {
    let mut twice = good();
    twice.notes.get_mut("name").expect("its notes").push(note("start", 1, 6));
    only(&twice, attempts_once);
    let mut unknown = good();
    unknown.notes.get_mut("name").expect("its notes").push(note("start", 2, 6));
    only(&unknown, attempts_once);
}

#[test]
fn an_epoch_that_goes_back_is_detected() {
    only(&with(|ops| ops.insert(3, set("/t/assign/w1~1", &assignment(9, 1)))), one_leader);
    let old = json!({"leader": {"id": "m2", "epoch": 9}});
    only(&with(|ops| ops.insert(4, set("/t/status", &old))), one_leader);
}

#[test]
fn an_attempt_in_two_assignments_is_detected() {
    only(&with(|ops| ops.insert(3, create("/t/assign/w2~2", &assignment(10, 1)))), one_holder);
    // Not when the first assignment is gone.
    let gone = Op::Delete { path: "/t/assign/w1~1".into() };
    let moved = with(|ops| drop(ops.splice(3..3, [gone, create("/t/assign/w2~2", &assignment(10, 1))])));
    assert_eq!(one_holder(&moved), vec![]);
}

#[test]
fn two_electors_at_a_time_are_detected() {
    only(&Evidence { leads: vec![lead("start", 7), lead("overlap", 8)], ..good() }, one_elector);
    only(&Evidence { leads: vec![lead("start", 7), lead("start", 7)], ..good() }, one_elector);
    only(
        &Evidence { leads: vec![lead("start", 7), lead("start", 8), lead("end", 7)], ..good() },
        one_elector,
    );
}

#[test]
fn leftovers_are_detected() {
    only(&Evidence { leftovers: vec!["something".into()], ..good() }, drained);
    only(&Evidence { complaints: vec!["somebody".into()], ..good() }, drained);
}
