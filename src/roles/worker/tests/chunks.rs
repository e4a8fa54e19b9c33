//! Chunks, their results as they come, the order of starts, and what is taken back.

use super::*;
use crate::contract::chunk::CommandResult;

/// A chunk of these commands, the first of which is line 40 of its batch.
fn chunk(world: &mut World, id: &str, commands: &[&str], change: impl FnOnce(&mut Task)) {
    let commands = commands.iter().map(|line| (*line).to_string()).collect();
    let mut task = Task::new(Payload::Chunk { first_line: 40, commands }, Options::default());
    change(&mut task);
    world.put(&format!("/z/tasks/{}", id.split('/').next().expect("dir")), b"");
    world.put(&format!("/z/tasks/{id}"), &task.encode());
}

/// A worker with the chunk `j/c`.
fn with_chunk(slots: u32, commands: &[&str], change: impl FnOnce(&mut Task)) -> (World, RoleDriver<Worker>) {
    let mut world = World::new();
    let mut driver = worker(|params| params.slots = slots);
    driver.connect(&mut world);
    chunk(&mut world, "j/c", commands, change);
    assign(&mut world, &driver, &[("j/c", 1, false)]);
    driver.go(&mut world);
    (world, driver)
}

/// What runs, by the last word of each command line.
fn running(driver: &RoleDriver<Worker>) -> Vec<String> {
    driver.runs.values().map(|spec| spec.argv.last().cloned().unwrap_or_default()).collect()
}

fn codes(results: &[Option<CommandResult>]) -> Vec<Option<i32>> {
    results.iter().map(|result| result.as_ref().map(|result| result.exit_code.unwrap_or(0))).collect()
}

#[test]
fn a_chunk_runs_over_all_slots_and_its_outcome_has_every_result() {
    let (mut world, mut driver) = with_chunk(2, &["a", " ", "b", "c"], |_| {});
    assert_eq!(running(&driver), ["a", "b"]);
    let lines: Vec<_> = driver.runs.values().map(|spec| spec.env.last().cloned()).collect();
    assert_eq!(lines, [Some(("ZKMW_LINE".into(), "41".into())), Some(("ZKMW_LINE".into(), "43".into()))]);
    let names =
        driver.runs.values().map(|spec| spec.env.iter().rfind(|(key, _)| key == "ZKMW_TASK").cloned());
    assert!(names.flatten().all(|(_, name)| name == "j/c"), "it is in no batch");
    end(&world, &mut driver, Ended::Exit(0));
    assert_eq!(running(&driver), ["b", "c"]);
    end(&world, &mut driver, Ended::Exit(4));
    end(&world, &mut driver, Ended::Exit(0));
    driver.go(&mut world);
    let outcome = world.task("/z/tasks/j/c").outcome.expect("outcome");
    assert_eq!((outcome.state, outcome.exit_code), (OutcomeState::Failed, Some(1)));
    assert_eq!(outcome.detail.as_deref(), Some("1 of 3 commands failed"));
    assert_eq!(codes(&outcome.results), [Some(0), None, Some(4), Some(0)]);
}

#[test]
fn what_is_over_already_is_not_run_again() {
    let over = CommandResult { attempt: Some(1), ..CommandResult::default() };
    let (mut world, mut driver) =
        with_chunk(4, &["a", "b", "c"], |task| task.results = vec![Some(over), None]);
    assert_eq!(running(&driver), ["b", "c"]);
    end(&world, &mut driver, Ended::Exit(0));
    end(&world, &mut driver, Ended::Exit(0));
    driver.go(&mut world);
    let task = world.task("/z/tasks/j/c");
    assert_eq!(task.outcome.map(|outcome| codes(&outcome.results)), Some(vec![Some(0); 3]));
    assert!(task.results.is_empty(), "they are in the outcome now");
}

#[test]
fn failed_lines_keep_results_when_their_chunk_is_cancelled() {
    let (mut world, mut driver) = with_chunk(1, &["a", "b"], |task| task.options.max_attempts = Some(3));
    world.change("/z/tasks/j/c", |task| task.cancel = true);
    end(&world, &mut driver, Ended::Exit(4));
    end(&world, &mut driver, Ended::Exit(0));
    driver.go(&mut world);
    let outcome = world.task("/z/tasks/j/c").outcome.expect("outcome");
    assert_eq!((outcome.state, codes(&outcome.results)), (OutcomeState::Failed, vec![Some(4), Some(0)]));
}

#[test]
fn a_chunk_with_nothing_to_run_ends_at_once() {
    let (world, driver) = with_chunk(1, &[" ", ""], |_| {});
    let outcome = world.task("/z/tasks/j/c").outcome.expect("outcome");
    assert_eq!((outcome.state, driver.runs.len()), (OutcomeState::Done, 0));

    let failed = CommandResult { reason: Some(Reason::Exit), exit_code: Some(4), ..CommandResult::default() };
    let (world, _) = with_chunk(1, &["a"], |task| task.results = vec![Some(failed)]);
    let outcome = world.task("/z/tasks/j/c").outcome.expect("outcome");
    assert_eq!((outcome.state, codes(&outcome.results)), (OutcomeState::Failed, vec![Some(4)]));
}

fn version(world: &World) -> i32 {
    world.znodes["/z/tasks/j/c"].stat.version
}

#[test]
fn results_are_written_as_they_come_and_the_outcome_follows() {
    let (mut world, mut driver) = with_chunk(1, &["a", "b"], |_| {});
    end(&world, &mut driver, Ended::Exit(0));
    driver.go(&mut world);
    assert_eq!(version(&world), 0, "it may be over soon");
    world.pass(Duration::from_millis(100));
    driver.go(&mut world);
    assert_eq!((version(&world), codes(&world.task("/z/tasks/j/c").results)), (1, vec![Some(0)]));
    world.pass(Duration::from_secs(1));
    driver.go(&mut world);
    assert_eq!(version(&world), 1, "nothing new, nothing written");
    driver.hold = |call| matches!(call, Call::Get { .. });
    end(&world, &mut driver, Ended::Exit(0));
    driver.go(&mut world);
    let outcome = world.task("/z/tasks/j/c").outcome.expect("set without another read");
    assert_eq!(codes(&outcome.results), [Some(0), Some(0)]);
}

#[test]
fn results_that_come_quickly_are_written_together() {
    let (mut world, mut driver) = with_chunk(1, &["true"; 60], |_| {});
    let mut writes = Vec::new();
    for ms in (0..1_000).step_by(20) {
        let before = version(&world);
        world.pass(Duration::from_millis(20));
        end(&world, &mut driver, Ended::Exit(0));
        driver.go(&mut world);
        if version(&world) != before {
            writes.push(ms + 20);
        }
    }
    assert_eq!(writes, [100, 300, 500, 700, 900]);
}

#[test]
fn large_results_are_written_less_often() {
    let (mut world, mut driver) = with_chunk(1, &["true"; 60], |_| {});
    let mut writes = 0;
    for _ in 0..100 {
        let before = version(&world);
        world.pass(Duration::from_millis(50));
        end_printing(&world, &mut driver, Ended::Exit(0), 60_000);
        driver.go(&mut world);
        writes += usize::from(version(&world) != before);
        if driver.runs.is_empty() {
            break;
        }
    }
    assert!((4..=9).contains(&writes), "some 100 KB each, in three seconds: {writes}");
}

#[test]
fn refused_or_lost_results_are_written_again_with_backoff() {
    let (mut world, mut driver) = with_chunk(1, &["a", "b", "c"], |_| {});
    end(&world, &mut driver, Ended::Exit(0));
    world.writes_refused.insert("/z/tasks/j/c".into(), Refusal::Other(-125));
    world.pass(Duration::from_millis(100));
    driver.go(&mut world);
    world.writes_refused.clear();
    world.pass(Duration::from_millis(1_900));
    driver.go(&mut world);
    assert_eq!(version(&world), 0);
    world.pass(Duration::from_millis(100));
    driver.go(&mut world);
    assert_eq!((version(&world), codes(&world.task("/z/tasks/j/c").results)), (1, vec![Some(0)]));
    end(&world, &mut driver, Ended::Exit(0));
    world.pass(Duration::from_millis(200));
    driver.hold = |call| matches!(call, Call::Set { path, .. } if path == "/z/tasks/j/c");
    driver.go(&mut world);
    driver.lose(&mut world, |call| !matches!(call, Call::Set { path, .. } if path == "/z/tasks/j/c"));
    driver.hold = |_| false;
    driver.connect(&mut world);
    world.pass(Duration::from_millis(200));
    driver.go(&mut world);
    assert_eq!(codes(&world.task("/z/tasks/j/c").results), [Some(0), Some(0)]);
}

#[test]
fn results_keep_what_somebody_changed_meanwhile() {
    let (mut world, mut driver) = with_chunk(1, &["a", "b"], |_| {});
    world.change("/z/tasks/j/c", |task| task.options.priority = Some(7));
    end(&world, &mut driver, Ended::Exit(0));
    for _ in 0..2 {
        world.pass(Duration::from_secs(1));
        driver.go(&mut world);
    }
    let task = world.task("/z/tasks/j/c");
    assert_eq!((task.options.priority, codes(&task.results)), (Some(7), vec![Some(0)]));
}

#[test]
fn results_of_an_attempt_that_was_given_up_change_nothing() {
    let (mut world, mut driver) = with_chunk(1, &["a", "b"], |_| {});
    world.change("/z/tasks/j/c", |task| task.next_attempt(None, "its worker died"));
    end(&world, &mut driver, Ended::Exit(0));
    end(&world, &mut driver, Ended::Exit(0));
    world.pass(Duration::from_secs(1));
    driver.go(&mut world);
    let task = world.task("/z/tasks/j/c");
    assert_eq!((task.attempt, task.results.len(), task.outcome.is_none()), (2, 0, true));
}

#[test]
fn a_drained_worker_hands_back_the_rest_alone() {
    let (mut world, mut driver) = with_chunk(1, &["a", "b", "c"], |_| {});
    end(&world, &mut driver, Ended::Exit(3));
    driver.event(&world, Event::Stop { again: false });
    end(&world, &mut driver, Ended::Exit(0));
    driver.go(&mut world);
    let task = world.task("/z/tasks/j/c");
    assert_eq!((task.attempt, task.charged, codes(&task.results)), (2, 0, vec![Some(3), Some(0)]));
    let attempt = task.results[0].as_ref().and_then(|result| result.attempt);
    assert_eq!(attempt, None, "it was its first");
    assert_eq!(driver.exit, Some(0));
}

#[test]
fn a_waiting_chunk_is_handed_back_when_its_incarnation_ends() {
    let (mut world, mut driver) = with_chunk(1, &["a", "b"], |_| {});
    world.remove(&registration(&driver, 0));
    driver.go(&mut world);
    assert!(matches!(driver.signals[..], [(_, GroupSignal::Kill)]));
    end_after(&world, &mut driver, Ended::Signal(9), true);
    driver.go(&mut world);
    let task = world.task("/z/tasks/j/c");
    assert_eq!((task.attempt, task.charged, task.results.len()), (2, 0, 0));
}

#[test]
fn only_what_failed_is_tried_again() {
    let (mut world, mut driver) = with_chunk(2, &["a", "b"], |task| task.options.max_attempts = Some(2));
    end(&world, &mut driver, Ended::Exit(1));
    end(&world, &mut driver, Ended::Exit(0));
    driver.go(&mut world);
    let task = world.task("/z/tasks/j/c");
    assert_eq!((task.attempt, task.shares[0].attempt, task.shares[0].failures), (2, 2, 1));
    assert_eq!(codes(&task.results), [None, Some(0)]);
}

#[test]
fn a_cancelled_chunk_keeps_what_was_over() {
    let (mut world, mut driver) = with_chunk(1, &["a", "b", "c"], |_| {});
    end(&world, &mut driver, Ended::Exit(0));
    world.change("/z/tasks/j/c", |task| task.cancel = true);
    assign(&mut world, &driver, &[("j/c", 1, true)]);
    driver.go(&mut world);
    assert!(matches!(driver.signals[..], [(_, GroupSignal::Term)]));
    end_after(&world, &mut driver, Ended::Signal(15), true);
    driver.go(&mut world);
    let outcome = world.task("/z/tasks/j/c").outcome.expect("outcome");
    let reasons: Vec<_> = outcome.results.iter().flatten().map(|result| result.reason).collect();
    let cancelled = Some(Reason::Cancelled);
    assert_eq!((outcome.state, reasons), (OutcomeState::Cancelled, vec![None, cancelled, cancelled]));
}

#[test]
fn a_chunk_that_is_complete_is_not_cancelled() {
    let (mut world, mut driver) = with_chunk(1, &["a"], |task| task.options.timeout_ms = Some(500));
    let run = *driver.runs.keys().next().expect("a run");
    driver.event(&world, Event::Started { run, pid: 1 });
    world.pass(Duration::from_millis(500));
    driver.go(&mut world);
    world.change("/z/tasks/j/c", |task| task.cancel = true);
    assign(&mut world, &driver, &[("j/c", 1, true)]);
    driver.go(&mut world);
    // It had ended before the signal came, so it is not late either.
    end_after(&world, &mut driver, Ended::Exit(0), false);
    driver.go(&mut world);
    let outcome = world.task("/z/tasks/j/c").outcome.expect("outcome");
    assert_eq!((outcome.state, codes(&outcome.results)), (OutcomeState::Done, vec![Some(0)]));
}

#[test]
fn a_late_command_fails_alone() {
    let (mut world, mut driver) = with_chunk(1, &["a", "b"], |task| task.options.timeout_ms = Some(500));
    let run = *driver.runs.keys().next().expect("a run");
    driver.event(&world, Event::Started { run, pid: 1 });
    world.pass(Duration::from_millis(500));
    driver.go(&mut world);
    end_after(&world, &mut driver, Ended::Signal(15), true);
    driver.go(&mut world);
    end(&world, &mut driver, Ended::Exit(0));
    driver.go(&mut world);
    let outcome = world.task("/z/tasks/j/c").outcome.expect("outcome");
    let reasons: Vec<_> = outcome.results.iter().flatten().map(|result| result.reason).collect();
    assert_eq!(reasons, [Some(Reason::Timeout), None]);
}

#[test]
fn entries_are_started_in_the_order_of_the_assignment() {
    let mut world = World::new();
    let mut driver = worker(|params| params.slots = 2);
    driver.connect(&mut world);
    for id in ["_00/z", "_00/m", "_00/a"] {
        task(&mut world, id);
    }
    driver.hold = |call| matches!(call, Call::Get { path, .. } if path == "/z/tasks/_00/z");
    assign(&mut world, &driver, &[("_00/z", 1, false), ("_00/m", 1, false), ("_00/a", 1, false)]);
    driver.go(&mut world);
    assert_eq!(driver.runs.len(), 0, "nothing overtakes what is still being read");
    driver.hold = |_| false;
    driver.go(&mut world);
    let tasks: Vec<_> = driver.role.running.runs.values().map(|run| run.id.task.to_string()).collect();
    assert_eq!(tasks, ["_00/z", "_00/m"]);
}

#[test]
fn a_slot_is_free_before_the_outcome_is_written() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    task(&mut world, "_00/a");
    task(&mut world, "_00/b");
    assign(&mut world, &driver, &[("_00/a", 1, false), ("_00/b", 1, false)]);
    driver.go(&mut world);
    driver.hold = |call| matches!(call, Call::Set { path, .. } if path.starts_with("/z/tasks/"));
    end(&world, &mut driver, Ended::Exit(0));
    driver.go(&mut world);
    assert_eq!(driver.runs.len(), 1);
}

#[test]
fn what_was_not_started_goes_back_when_it_is_recalled() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    let entry = |task: &str| Entry {
        task: TaskId::parse(task).expect("id"),
        attempt: 1,
        revoked: false,
        recalled: true,
        recheck: None,
        seen: None,
    };
    task(&mut world, "_00/a");
    task(&mut world, "_00/b");
    assign(&mut world, &driver, &[("_00/a", 1, false), ("_00/b", 1, false)]);
    driver.go(&mut world);
    let assignment = Assignment::new(1, vec![entry("_00/a"), entry("_00/b")]).encode();
    world.put(&driver.role.assignment(), &assignment);
    driver.go(&mut world);
    let attempts = ["a", "b"].map(|name| world.task(&format!("/z/tasks/_00/{name}")).attempt);
    assert_eq!(attempts, [1, 2]);
    let back = world.task("/z/tasks/_00/b");
    assert_eq!((back.charged, back.released_by.as_ref()), (0, Some(driver.role.registrar.incarnation())));
    assert!(driver.signals.is_empty(), "what runs goes on");
}

#[test]
fn a_handler_is_asked_for_each_command() {
    let mut world = World::new();
    let mut driver = worker(|params| params.handler = Some("./handle --fast".into()));
    driver.connect(&mut world);
    chunk(&mut world, "j~b~0000/0000040", &["a"], |_| {});
    assign(&mut world, &driver, &[("j~b~0000/0000040", 1, false)]);
    driver.go(&mut world);
    let (run, spec) = driver.runs.first_key_value().expect("a run");
    assert_eq!(spec.argv, ["/bin/sh", "-c", "./handle --fast"]);
    let request: serde_json::Value =
        serde_json::from_str(spec.request.as_ref().expect("request")).expect("JSON");
    assert_eq!((&request["id"], &request["line"]), (&run.0.into(), &41.into()));
    assert_eq!((&request["command"], &request["task"]), (&"a".into(), &"j~b/41".into()));
    end(&world, &mut driver, Ended::Broken);
    driver.go(&mut world);
    let outcome = world.task("/z/tasks/j~b~0000/0000040").outcome.expect("outcome");
    assert_eq!(outcome.results[0].as_ref().and_then(|result| result.reason), Some(Reason::Handler));
}

#[test]
fn only_lines_that_ended_before_a_drains_sigterm_have_results() {
    let (mut world, mut driver) = with_chunk(2, &["a", "b", "c"], |_| {});
    driver.event(&world, Event::Stop { again: false });
    world.pass(Duration::from_secs(3));
    driver.event(&world, Event::Wake);
    assert_eq!(driver.signals.len(), 2);
    end_after(&world, &mut driver, Ended::Exit(4), false);
    end_after(&world, &mut driver, Ended::Exit(0), true);
    driver.go(&mut world);
    let task = world.task("/z/tasks/j/c");
    assert_eq!((driver.exit, codes(&task.results)), (Some(0), vec![Some(4)]));
    assert_eq!(task.outcome, None);
    let share = task.all_shares().first().cloned().expect("what is left of it");
    assert_eq!((share.earlier, share.failures, share.deaths), (1, 0, 0), "uncharged");
}
