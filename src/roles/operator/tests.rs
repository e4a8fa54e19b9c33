//! Cancelling and retrying, with others faster and connections lost.

use super::*;
use crate::contract::Incarnation;
use crate::contract::chunk::CommandResult;
use crate::contract::task::{Job, NO_DEADLINE_MS, State};
use crate::contract::task::{Options, Outcome, Payload};
use crate::roles::client::testing::{ClientDriver, Fate, done, failed, is_set};

const TASK: &str = "/z/tasks/J/1";

fn driver(verb: Verb, target: &str, outcome: Option<Outcome>) -> ClientDriver<Operator> {
    let target = TaskId::parse(target).map_or_else(|| Target::Job(target.into()), Target::Task);
    let params = OperatorParams { layout: Layout::new("/z"), verb, targets: vec![target] };
    let mut driver = ClientDriver::new(Operator::new(params), &["/z", "/z/tasks", "/z/tasks/J"]);
    let mut task = Task::new(Payload::Shell("x".into()), Options::default());
    task.charged = 3;
    task.outcome = outcome;
    driver.put(TASK, &task.encode());
    driver.connect();
    driver
}

fn failed_on_worker() -> Outcome {
    Outcome { worker: Some(Incarnation::new("w", 1)), ..failed(2) }
}

fn note(driver: &ClientDriver<Operator>) -> (bool, String) {
    match driver.reports.as_slice() {
        [ClientReport::Noted(note)] => (note.ok, note.message.clone()),
        other => panic!("not one note: {other:?}"),
    }
}

#[test]
fn a_retry_starts_over_and_names_the_last_worker() {
    let mut driver = driver(Verb::Retry, "J/1", Some(failed_on_worker()));
    driver.settle();
    let task = driver.task(TASK);
    assert_eq!((driver.exit, task.outcome, task.attempt, task.charged), (Some(0), None, 2, 0));
    assert_eq!(task.released_by, Some(Incarnation::new("w", 1)));
    assert_eq!((task.history[0].attempt, task.history[0].worker.clone()), (1, task.released_by));
    assert_eq!(note(&driver), (true, "will run again, as attempt 2".into()));
}

#[test]
fn what_succeeded_of_a_chunk_does_not_run_again() {
    let mut driver = driver(Verb::Retry, "J/1", None);
    let commands = ["a", "b", "c", "d"].map(str::to_string).to_vec();
    let mut task = Task::new(Payload::Chunk { first_line: 40, commands }, Options::default());
    task.attempt = 3;
    let result = |outcome: Outcome, attempt| {
        let mut result = CommandResult::of(outcome);
        result.attempt = attempt;
        Some(result)
    };
    let bad = result(failed(2), None);
    let old = Outcome { worker: Some(Incarnation::new("old", 1)), ..done() };
    let whole = Outcome { attempt: 3, ..failed_on_worker() };
    task.end(Outcome {
        results: vec![result(done(), None), bad.clone(), result(old, Some(1)), bad],
        ..whole
    });
    driver.put(TASK, &task.encode());
    driver.settle();
    let task = driver.task(TASK);
    assert_eq!((driver.exit, task.attempt, task.width(), task.results.len()), (Some(0), 4, 2, 3));
    let kept = |at: usize| task.results[at].clone().map(|result| (result.attempt, result.worker));
    assert_eq!(kept(0), Some((None, Some(Incarnation::new("w", 1)))));
    assert_eq!((kept(1), kept(2)), (None, Some((Some(1), Some(Incarnation::new("old", 1))))));
}

/// Operates on lines of a batch of five, of which the second is blank: the first failed, the third succeeded, and the
/// others are open.
fn lines_driver(verb: Verb, targets: &[&str]) -> ClientDriver<Operator> {
    let target = |name: &&str| TaskId::parse(name).map_or_else(|| Target::Job((*name).into()), Target::Task);
    let targets = targets.iter().map(target).collect();
    let params = OperatorParams { layout: Layout::new("/z"), verb, targets };
    let mut driver = ClientDriver::new(Operator::new(params), &["/z", "/z/tasks"]);
    let mut part = Job::new(Options::default());
    part.chunk = Some(5);
    driver.put("/z/tasks/b~0000", &part.encode());
    let commands = ["a", " ", "c", "d", "e"].map(str::to_string).to_vec();
    let mut task = Task::new(Payload::Chunk { first_line: 5, commands }, Options::default());
    let results = [(0, CommandResult::of(failed(3))), (2, CommandResult::of(done()))];
    task.flush(1, &results.into(), 1);
    driver.put(CHUNK, &task.encode());
    driver.connect();
    driver
}

const CHUNK: &str = "/z/tasks/b~0000/0000005";

/// What was noted of which task, and whether it was as wished.
fn notes(driver: &ClientDriver<Operator>) -> Vec<(&str, bool, &str)> {
    let note = |report| match report {
        &ClientReport::Noted(Noted { ref id, ok, ref message, .. }) => (id.as_str(), ok, message.as_str()),
        other => panic!("{other:?}"),
    };
    driver.reports.iter().map(note).collect()
}

#[test]
fn a_line_is_cancelled_by_its_name_and_others_are_left_alone() {
    let mut driver = lines_driver(Verb::Cancel, &["b/9", "b/10", "b/6", "b/7", "b/9", "b/99"]);
    driver.settle();
    let task = driver.task(CHUNK);
    let cancelling: Vec<bool> = (0..5).map(|position| task.is_cancelled(position)).collect();
    assert_eq!((cancelling, task.cancel), (vec![false, false, false, true, true], false));
    let mut shown = notes(&driver);
    shown.sort_unstable();
    let expected = [
        ("b/10", true, "is being cancelled"),
        ("b/6", true, "has ended already: it failed with exit code 3"),
        ("b/7", false, "there is no such line"),
        ("b/9", true, "is being cancelled"),
        ("b/99", false, "there is no such line, or it has succeeded and was collected"),
    ];
    assert_eq!((shown, driver.exit), (expected.to_vec(), Some(exit::DATA)));
}

#[test]
fn a_batch_that_is_cancelled_is_reported_line_by_line() {
    let mut driver = lines_driver(Verb::Cancel, &["b"]);
    driver.settle();
    assert!(driver.task(CHUNK).cancel && driver.exit == Some(0));
    assert_eq!(notes(&driver), [("b/9", true, "is being cancelled"), ("b/10", true, "is being cancelled")]);
    assert!(driver.logged("2 other tasks"));
}

#[test]
fn a_retry_of_a_batch_runs_only_its_failed_outcomes() {
    for target in ["b", "b/6"] {
        let mut driver = lines_driver(Verb::Retry, &[target]);
        driver.settle();
        let task = driver.task(CHUNK);
        assert_eq!((notes(&driver), driver.exit), (vec![("b/6", true, "will run again")], Some(0)));
        let shares: Vec<_> =
            task.shares.iter().map(|share| (share.attempt, task.open_lines(share))).collect();
        assert_eq!(shares, [(1, vec![3, 4]), (2, vec![0])]);
        assert_eq!((task.attempt, task.command_state(2)), (2, Some(State::Done)));
    }
    let mut driver = lines_driver(Verb::Retry, &["b/8", "b/9"]);
    driver.settle();
    assert_eq!((driver.exit, driver.count(is_set)), (Some(exit::FAILED), 0));
    assert!(
        notes(&driver)[0].2.contains("has succeeded") && notes(&driver)[1].2.contains("has not ended yet")
    );
}

#[test]
fn lines_of_a_batch_that_was_cancelled_run_again_one_by_one() {
    let mut driver = lines_driver(Verb::Retry, &["b/9"]);
    let mut task = driver.task(CHUNK);
    (task.cancel, task.charged) = (true, 2);
    task.end(Outcome::unrun(State::Cancelled, None, "so it was wished", 1));
    driver.put(CHUNK, &task.encode());
    driver.settle();
    let task = driver.task(CHUNK);
    let states: Vec<_> = (0..5).map(|position| task.command_state(position)).collect();
    let expected = [Some(State::Failed), None, Some(State::Done), None, Some(State::Cancelled)];
    assert_eq!((states.as_slice(), task.is_open(3), task.cancel), (&expected[..], true, false));
    assert_eq!((task.charged, task.options.expire_ms), (0, Some(NO_DEADLINE_MS)));
}

#[test]
fn a_retry_of_lines_in_doubt_is_made_once() {
    for fate in [Fate::AppliedUnanswered, Fate::DroppedUnanswered, Fate::NotSent] {
        for failed_again in [false, true] {
            let mut driver = lines_driver(Verb::Retry, &["b"]);
            driver.settle_until(is_set);
            driver.play(fate);
            let applied = fate == Fate::AppliedUnanswered;
            if failed_again && applied {
                let mut task = driver.task(CHUNK);
                task.flush(2, &[(0, CommandResult::of(failed(3)))].into(), 1);
                driver.put(CHUNK, &task.encode());
            }
            driver.connect();
            driver.settle();
            let task = driver.task(CHUNK);
            assert_eq!(
                (driver.exit, task.attempt, task.is_open(0)),
                (Some(0), 2, !(failed_again && applied))
            );
            assert_eq!(notes(&driver), [("b/6", true, "will run again")], "{fate:?}");
        }
    }
}

#[test]
fn what_ended_is_deleted_once_whatever_becomes_of_the_answer() {
    let verb = |settled_ms| Verb::Delete(Deletion { settled_ms, ..Deletion::default() });
    for fate in [Fate::Answered, Fate::AppliedUnanswered, Fate::DroppedUnanswered, Fate::NotSent] {
        let mut driver = driver(verb(i64::MAX), "J", Some(failed(2)));
        driver.settle_until(|call| matches!(call, Call::Delete { .. }));
        driver.play(fate);
        if driver.exit.is_none() {
            driver.connect();
            driver.settle();
        }
        assert_eq!((driver.exit, notes(&driver)), (Some(0), vec![("J/1", true, "was deleted")]), "{fate:?}");
        assert!(!driver.znodes.contains_key(TASK));
    }
    for fate in [Fate::Answered, Fate::AppliedUnanswered, Fate::DroppedUnanswered, Fate::NotSent] {
        let mut driver = driver(verb(-1), "J", Some(failed(2)));
        driver.settle_until(is_set);
        driver.play(fate);
        if driver.exit.is_none() {
            driver.connect();
            driver.settle();
        }
        let shown = vec![("J/1", true, "will be deleted by the leader")];
        assert!(driver.task(TASK).delete && notes(&driver) == shown, "{fate:?}: {:?}", driver.reports);
    }
    let mut retried = driver(verb(i64::MAX), "J/1", Some(failed(2)));
    retried.settle_until(|call| matches!(call, Call::Delete { .. }));
    let mut task = retried.task(TASK);
    task.outcome = None;
    task.next_attempt(None, "somebody retried it");
    retried.put(TASK, &task.encode());
    retried.settle();
    assert_eq!((retried.exit, note(&retried).0), (Some(exit::FAILED), false));
    assert!(retried.task(TASK).outcome.is_none(), "it runs again");
}

#[test]
fn g02_only_what_ended_badly_is_retried() {
    for outcome in [None, Some(done())] {
        let mut driver = driver(Verb::Retry, "J/1", outcome);
        driver.settle();
        assert_eq!((driver.exit, driver.count(Call::is_write)), (Some(exit::FAILED), 0));
        assert!(!note(&driver).0);
    }
    for state in [State::Cancelled, State::Expired] {
        let mut driver = driver(Verb::Retry, "J/1", Some(Outcome::unrun(state, None, "", 1)));
        driver.settle();
        let task = driver.task(TASK);
        assert_eq!((driver.exit, task.attempt, task.released_by), (Some(0), 2, None));
        assert!(task.options.expire_ms.is_some(), "its job's deadline may be over");
    }
}

#[test]
fn a_task_that_had_a_deadline_has_none_after_a_retry() {
    let after = |dir: &str, expire_ms: Option<u64>| {
        let mut task = Task::new(Payload::Shell("x".into()), Options { expire_ms, ..Options::default() });
        task.outcome = Some(failed(2));
        let write = decide::retry(&TaskId::new(dir, "1"), task, &Lines::new()).write;
        write.expect("it runs again").options.expire_ms
    };
    assert_eq!(after("_05", None), None);
    assert_eq!(after("_05", Some(5)), Some(NO_DEADLINE_MS));
    assert_eq!(after("import", None), Some(NO_DEADLINE_MS), "its job may have one");
}

#[test]
fn a_retry_in_doubt_is_made_once() {
    for fate in [Fate::AppliedUnanswered, Fate::DroppedUnanswered, Fate::NotSent] {
        for ended_again in [false, true] {
            let mut driver = driver(Verb::Retry, "J/1", Some(failed_on_worker()));
            driver.settle_until(is_set);
            driver.play(fate);
            if ended_again && fate == Fate::AppliedUnanswered {
                driver.end(TASK, failed(9));
            }
            driver.connect();
            driver.settle();
            assert_eq!((driver.exit, driver.task(TASK).attempt), (Some(0), 2), "{fate:?}");
            assert_eq!(note(&driver), (true, "will run again, as attempt 2".into()));
        }
    }
}

#[test]
fn a_retry_that_loses_the_race_decides_again() {
    let mut driver = driver(Verb::Retry, "J/1", Some(failed(2)));
    driver.settle_until(is_set);
    let mut task = driver.task(TASK);
    task.outcome = None;
    task.next_attempt(None, "somebody else retried it");
    driver.put(TASK, &task.encode());
    driver.settle();
    assert_eq!((driver.exit, driver.task(TASK).attempt), (Some(exit::FAILED), 2));
    assert!(note(&driver).1.contains("has not ended yet"));
}

#[test]
fn a_task_that_never_stops_changing_is_given_up() {
    let mut driver = driver(Verb::Cancel, "J/1", None);
    while driver.exit.is_none() {
        driver.settle_until(is_set);
        driver.play(Fate::Refused(Refusal::BadVersion));
    }
    assert_eq!((driver.exit, driver.count(is_set)), (Some(exit::TRY_AGAIN), MAX_CONFLICTS as usize + 1));
}

#[test]
fn cancelling_is_a_wish_that_may_be_repeated() {
    for fate in [Fate::Answered, Fate::AppliedUnanswered, Fate::DroppedUnanswered, Fate::NotSent] {
        let mut driver = driver(Verb::Cancel, "J/1", None);
        driver.settle_until(is_set);
        driver.play(fate);
        if driver.exit.is_none() {
            driver.connect();
            driver.settle();
        }
        assert!(driver.exit == Some(0) && driver.task(TASK).cancel, "{fate:?}");
        assert_eq!(note(&driver), (true, "is being cancelled".into()));
    }
    let mut driver = driver(Verb::Cancel, "J/1", Some(failed(2)));
    driver.settle();
    assert_eq!((driver.exit, driver.count(is_set)), (Some(0), 0));
    assert_eq!(note(&driver), (true, "has ended already: it failed with exit code 2".into()));
}

#[test]
fn of_a_job_only_what_concerns_the_wish_is_touched() {
    let mut driver = driver(Verb::Retry, "J", Some(failed(2)));
    for (name, outcome) in [("2", None), ("3", Some(done())), ("4", Some(failed(1)))] {
        let mut task = Task::new(Payload::Shell("x".into()), Options::default());
        task.outcome = outcome;
        driver.put(&format!("/z/tasks/J/{name}"), &task.encode());
    }
    driver.put("/z/tasks/J/5", b"garbage");
    driver.settle();
    assert_eq!((driver.exit, driver.count(is_set)), (Some(exit::DATA), 2));
    assert!(driver.logged("2 other tasks"));
}

#[test]
fn a_missing_or_foreign_znode_is_reported() {
    for (target, message) in [("J/nope", "no such task"), ("K", "no such job")] {
        let mut driver = driver(Verb::Cancel, target, None);
        driver.settle();
        assert_eq!((driver.exit, note(&driver)), (Some(exit::DATA), (false, message.into())));
    }
    let mut driver = driver(Verb::Cancel, "J/1", None);
    driver.put(TASK, b"garbage");
    driver.settle();
    assert_eq!((driver.exit, note(&driver).0), (Some(exit::DATA), false));
}

#[test]
fn it_goes_on_after_every_loss() {
    for fate in [Fate::AppliedUnanswered, Fate::DroppedUnanswered, Fate::NotSent] {
        for at in 0..14 {
            let mut driver = driver(Verb::Retry, "J", Some(failed(2)));
            for name in ["2", "3"] {
                let data = driver.znodes[TASK].0.clone();
                driver.put(&format!("/z/tasks/J/{name}"), &data);
            }
            for _ in 0..at {
                if driver.exit.is_none() {
                    driver.play(Fate::Answered);
                }
            }
            if driver.exit.is_none() {
                driver.play(fate);
                driver.connect();
                driver.settle();
            }
            assert_eq!((driver.exit, driver.reports.len()), (Some(0), 3), "{fate:?} at call {at}");
            assert!(["1", "2", "3"].iter().all(|n| driver.task(&format!("/z/tasks/J/{n}")).attempt == 2));
        }
    }
}
