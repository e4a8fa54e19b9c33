//! The worker on a few znodes: deaths, drains and late answers, one step at a time.

use super::*;
use crate::contract::TaskId;
use crate::contract::task::{Outcome, Payload, Reason, State as OutcomeState, Task};
use crate::contract::worker::{Entry, Seen};
use crate::machine::{Captured, CreateMode, Ended, GroupSignal, RunReport};
use crate::roles::testing::{Desk, World};

mod chunks;
mod past;
mod refused;
mod starts;
mod stops;

fn worker(change: impl FnOnce(&mut Params)) -> Desk<Worker> {
    let process = ProcessIdentity { host: "h".into(), pid: 7, ..ProcessIdentity::default() };
    let mut params = Params {
        layout: Layout::new("/z"),
        id: "w".into(),
        process,
        predecessor: None,
        slots: 1,
        labels: Labels::new(),
        grace: Duration::from_secs(4),
        close_timeout: Duration::from_secs(5),
        output_limit: 1_000,
        handler: None,
        seed: 1,
    };
    change(&mut params);
    Desk::new(Worker::new(params))
}

fn task(world: &mut World, id: &str) {
    let layout = Layout::new("/z");
    let job = layout.job(id.split('/').next().expect("dir"));
    if !world.znodes.contains_key(&job) {
        world.put(&job, b"");
    }
    world.put(&layout.below_tasks(id), &Task::new(Payload::Shell("x".into()), Options::default()).encode());
}

/// The leader gives the present incarnation these tasks, at these attempts, revoked or not.
fn assign(world: &mut World, desk: &Desk<Worker>, entries: &[(&str, u32, bool)]) {
    let entry = |(task, attempt, revoked): &(&str, u32, bool)| Entry {
        task: TaskId::parse(task).expect("id"),
        attempt: *attempt,
        revoked: *revoked,
        recalled: false,
        look: None,
        seen: None,
    };
    let data = Assignment::new(1, entries.iter().map(entry).collect()).encode();
    world.put(&desk.role.assignment(), &data);
}

/// The oldest run ends by itself.
fn end(world: &World, desk: &mut Desk<Worker>, ended: Ended) {
    end_after(world, desk, ended, false);
}

/// The oldest run ends, after a signal of ours or without one.
fn end_after(world: &World, desk: &mut Desk<Worker>, ended: Ended, signalled: bool) {
    end_run(world, desk, ended, Captured::default(), signalled);
}

/// The oldest run ends by itself, and has printed so many bytes.
fn end_printing(world: &World, desk: &mut Desk<Worker>, ended: Ended, bytes: usize) {
    let stdout = Captured { head: vec![b'x'; bytes], ..Captured::default() };
    end_run(world, desk, ended, stdout, false);
}

fn end_run(world: &World, desk: &mut Desk<Worker>, ended: Ended, stdout: Captured, signalled: bool) {
    let (run, _) = desk.runs.pop_first().expect("a run");
    let stderr = Captured::default();
    let report = RunReport { ended, detail: None, stdout, stderr, started_ms: 0, ended_ms: 0, signalled };
    desk.event(world, Event::Ended { run, report });
}

/// A worker that runs this task and nothing else.
fn with_task(change: impl FnOnce(&mut Params), id: &str) -> (World, Desk<Worker>) {
    let mut world = World::new();
    let mut desk = worker(change);
    desk.connect(&mut world);
    task(&mut world, id);
    assign(&mut world, &desk, &[(id, 1, false)]);
    desk.go(&mut world);
    (world, desk)
}

fn registration(desk: &Desk<Worker>, n: u64) -> String {
    desk.role.params.layout.registration(desk.role.registrar.incarnation(), n)
}

#[test]
fn a_task_runs_and_its_outcome_is_written() {
    let (mut world, mut desk) = with_task(|_| {}, "j/a");
    end(&world, &mut desk, Ended::Exit(0));
    desk.go(&mut world);
    let outcome = world.task("/z/tasks/j/a").outcome;
    assert_eq!(outcome.map(|outcome| outcome.state), Some(OutcomeState::Done));
}

/// A worker to which the leader gives out j/a at this attempt, and carries along what it read of it at its first,
/// before it came to be at `now`.
fn carried(attempt: u32, now: u32) -> (World, Desk<Worker>) {
    let mut world = World::new();
    let mut desk = worker(|_| {});
    desk.connect(&mut world);
    task(&mut world, "j/a");
    let data = String::from_utf8(world.task("/z/tasks/j/a").encode()).expect("text");
    if now > 1 {
        world.change("/z/tasks/j/a", |task| task.attempt = now);
    }
    let seen = Some(Seen { data, version: 0, mzxid: 77 });
    let entry =
        Entry { task: TaskId::new("j", "a"), attempt, revoked: false, recalled: false, look: None, seen };
    world.put(&desk.role.assignment(), &Assignment::new(1, vec![entry]).encode());
    (world, desk)
}

/// It runs, and ends well; what stands in its znode then.
fn run_to_its_end(world: &mut World, desk: &mut Desk<Worker>) -> Task {
    desk.go(world);
    end(world, desk, Ended::Exit(0));
    desk.go(world);
    world.task("/z/tasks/j/a")
}

#[test]
fn a_task_whose_entry_has_a_copy_runs_without_a_read() {
    let (mut world, mut desk) = carried(1, 1);
    desk.hold = |call| matches!(call, Call::Get { path, .. } if path == "/z/tasks/j/a");
    desk.go(&mut world);
    assert!(desk.calls.is_empty(), "{:?}", desk.calls);
    let (_, spec) = desk.runs.first_key_value().expect("it runs");
    assert!(spec.env.contains(&("ZKMW_EPOCH".to_string(), "77".to_string())), "{:?}", spec.env);
    let outcome = run_to_its_end(&mut world, &mut desk).outcome;
    assert_eq!(outcome.map(|outcome| outcome.state), Some(OutcomeState::Done));
}

#[test]
fn what_an_entry_carries_along_and_does_not_fit_is_read() {
    let (mut world, mut desk) = carried(2, 2);
    let stands = run_to_its_end(&mut world, &mut desk);
    assert_eq!(stands.outcome.map(|outcome| outcome.attempt), Some(2), "it was read, and is at that attempt");
}

#[test]
fn what_changed_after_the_leader_read_it_is_not_overwritten() {
    let (mut world, mut desk) = carried(1, 2);
    let stands = run_to_its_end(&mut world, &mut desk);
    assert!(stands.outcome.is_none() && stands.attempt == 2, "{stands:?}");
}

#[test]
fn the_next_incarnation_reads_the_defaults_again() {
    let mut world = World::new();
    let mut desk = worker(|_| {});
    desk.connect(&mut world);
    task(&mut world, "j/a");
    assign(&mut world, &desk, &[("j/a", 1, false)]);
    desk.hold = |call| matches!(call, Call::Get { path, .. } if path == "/z/tasks/j");
    desk.go(&mut world);
    world.remove(&registration(&desk, 0));
    desk.go(&mut world);
    desk.hold = |_| false;
    desk.go(&mut world);
    world.change("/z/tasks/j/a", |task| task.attempt = 2);
    assign(&mut world, &desk, &[("j/a", 2, false)]);
    desk.go(&mut world);
    assert_eq!(desk.runs.len(), 1);
}

/// The simulator found it (seed 3003066): a key was used again after `--job-ttl`, and its tasks had the old defaults.
#[test]
fn a_job_that_was_made_anew_has_its_new_defaults() {
    let mut world = World::new();
    let mut desk = worker(|_| {});
    desk.connect(&mut world);
    for value in ["old", "new"] {
        world.put("/z/tasks/j", format!(r#"{{"v":1,"env":{{"WHICH":"{value}"}}}}"#).as_bytes());
        task(&mut world, "j/a");
        assign(&mut world, &desk, &[("j/a", 1, false)]);
        desk.go(&mut world);
        let (_, spec) = desk.runs.first_key_value().expect("it runs");
        assert!(spec.env.contains(&("WHICH".to_string(), value.to_string())), "{:?}", spec.env);
        end(&world, &mut desk, Ended::Exit(0));
        desk.go(&mut world);
        assign(&mut world, &desk, &[]);
        desk.go(&mut world);
        world.remove("/z/tasks/j/a");
        world.remove("/z/tasks/j");
        desk.go(&mut world);
    }
}

#[test]
fn tasks_of_many_jobs_all_run() {
    let mut world = World::new();
    let mut desk = worker(|_| {});
    desk.connect(&mut world);
    let ids: Vec<_> = (0..1_002).map(|n| format!("j{n}/t")).collect();
    for id in &ids {
        task(&mut world, id);
    }
    let entries: Vec<_> = ids.iter().map(|id| (id.as_str(), 1, false)).collect();
    assign(&mut world, &desk, &entries);
    desk.go(&mut world);
    for id in &ids {
        assert_eq!(desk.runs.len(), 1, "{id}");
        end(&world, &mut desk, Ended::Exit(0));
        desk.go(&mut world);
    }
}

/// A process that sleeps in the kernel dies only when it wakes up.
#[test]
fn nothing_is_repeated_while_killed_runs_take_time_to_end() {
    let (mut world, mut desk) = with_task(|_| {}, "_00/a");
    assert_eq!(desk.runs.len(), 1);
    desk.hold = |call| call.path().starts_with("/z/leases/");
    world.pass(Duration::from_secs(20));
    desk.go(&mut world);
    assert!(matches!(desk.signals[..], [(_, GroupSignal::Kill)]));
    assert!(desk.role.next_wake().is_none_or(|at| at > world.now));
}

/// The machine slept for an hour, and the slots have killed what ran.
#[test]
fn what_was_killed_because_the_lease_was_over_has_not_failed() {
    let (mut world, mut desk) = with_task(|_| {}, "_00/a");
    world.pass(Duration::from_secs(3_600));
    end(&world, &mut desk, Ended::Signal(9));
    desk.go(&mut world);
    let task = world.task("/z/tasks/_00/a");
    assert_eq!((task.outcome, task.attempt, task.charged), (None, 2, 0));
}

#[test]
fn a_drain_that_reconnects_hands_back_what_was_not_started() {
    let mut world = World::new();
    let mut desk = worker(|_| {});
    desk.connect(&mut world);
    task(&mut world, "_00/a");
    task(&mut world, "_00/b");
    assign(&mut world, &desk, &[("_00/a", 1, false), ("_00/b", 1, false)]);
    desk.go(&mut world);
    desk.event(&world, Event::Stop { again: false });
    desk.go(&mut world);
    desk.lose(&mut world, |_| true);
    end(&world, &mut desk, Ended::Exit(0));
    desk.connect(&mut world);
    assert_eq!(desk.exit, Some(exit::OK));
    assert!(world.task("/z/tasks/_00/a").outcome.is_some());
    let assignment = desk.role.assignment();
    assert!(!world.znodes.contains_key(&assignment), "{:?}", world.entries(&assignment));
}

/// Answers come in any order, and each is older than the question that was asked last.
#[test]
fn an_answer_to_an_earlier_question_voids_nothing() {
    let mut world = World::new();
    let mut desk = worker(|_| {});
    desk.connect(&mut world);
    task(&mut world, "_00/a");
    desk.hold = |call| matches!(call, Call::Get { path, .. } if path.starts_with("/z/tasks/"));
    for attempt in 1..4 {
        world.change("/z/tasks/_00/a", |task| task.attempt = attempt);
        assign(&mut world, &desk, &[("_00/a", attempt, false)]);
        desk.go(&mut world);
        if attempt < 3 {
            assign(&mut world, &desk, &[("_00/a", attempt, true)]);
            desk.go(&mut world);
        }
    }
    let old = |attempt| {
        let mut task = Task::new(Payload::Shell("x".into()), Options::default());
        task.attempt = attempt;
        Ok(Reply::Data { data: task.encode(), stat: crate::machine::Stat::default() })
    };
    let asked: Vec<_> = desk.calls.iter().map(|(id, _)| *id).collect();
    assert_eq!(asked.len(), 3);
    for (n, id) in asked.into_iter().enumerate().take(2) {
        desk.calls.pop_front();
        desk.event(&world, Event::Reply { id, result: old(n as u32 + 1) });
        desk.go(&mut world);
    }
    desk.hold = |_| false;
    desk.go(&mut world);
    assert_eq!(desk.runs.len(), 1);
}

#[test]
fn a_forbidden_removal_of_a_predecessor_backs_off() {
    let gone = ProcessIdentity { host: "h".into(), pid: 3, ..ProcessIdentity::default() };
    let mut world = World::new();
    let mut desk = worker(|params| params.predecessor = Some(gone.clone()));
    let session = world.open();
    let path = "/z/workers/w~1~0".to_string();
    let data = Registration::new(&gone, 1, Labels::new(), 10_000).encode();
    let call = Call::Create { path: path.clone(), data, mode: CreateMode::Ephemeral };
    world.apply(session, &call).expect("registered");
    desk.session = Some(world.open());
    desk.event(&world, Event::Connected { timeout: Duration::from_secs(10) });
    for _ in 0..1_000 {
        let refuse = desk.calls.front().is_some_and(|(_, call)| matches!(call, Call::Delete { .. }));
        if refuse {
            world.refused.insert(path.clone(), Refusal::NoAuth);
        }
        if !desk.hear(&mut world) && !desk.answer(&mut world) {
            break;
        }
        world.refused.clear();
    }
    assert_eq!(desk.exit, Some(exit::NOT_PERMITTED));
}

/// A report that is owed by one life does not end what the next one was given.
#[test]
fn a_report_of_the_last_incarnation_is_written_after_its_end() {
    let (mut world, mut desk) = with_task(|_| {}, "_00/a");
    let session = desk.lose(&mut world, |_| false);
    world.pass(Duration::from_secs(20));
    desk.go(&mut world);
    world.expire(session);
    end(&world, &mut desk, Ended::Signal(9));
    desk.hold = |call| matches!(call, Call::Set { path, .. } if path == "/z/tasks/_00/a");
    desk.connect(&mut world);
    world.change("/z/tasks/_00/a", |task| task.attempt = 2);
    let last = desk.role.registrar.incarnation().clone();
    desk.go(&mut world);
    assert_eq!(*desk.role.registrar.incarnation(), last, "not before it is known what became of the report");
    desk.hold = |_| false;
    desk.go(&mut world);
    assert_ne!(*desk.role.registrar.incarnation(), last);
    assign(&mut world, &desk, &[("_00/a", 2, false)]);
    desk.go(&mut world);
    assert_eq!(desk.runs.len(), 1);
    end(&world, &mut desk, Ended::Exit(0));
    desk.go(&mut world);
    let outcome: Option<Outcome> = world.task("/z/tasks/_00/a").outcome;
    assert_eq!(outcome.map(|outcome| outcome.attempt), Some(2));
}

#[test]
fn what_was_killed_with_its_slot_has_not_failed() {
    let mut world = World::new();
    let mut desk = worker(|_| {});
    desk.connect(&mut world);
    desk.event(&world, Event::SlotsLost { why: "it was killed".into() });
    desk.go(&mut world);
    let first = desk.role.registrar.incarnation().clone();
    task(&mut world, "j/a");
    assign(&mut world, &desk, &[("j/a", 1, false)]);
    desk.go(&mut world);
    assert_eq!(desk.role.registrar.incarnation(), &first, "nothing ran, nothing was lost");
    desk.event(&world, Event::SlotsLost { why: "it was killed".into() });
    end(&world, &mut desk, Ended::Signal(9));
    desk.go(&mut world);
    let task = world.task("/z/tasks/j/a");
    assert_eq!((task.attempt, task.charged, task.outcome), (2, 0, None));
    assert_ne!(desk.role.registrar.incarnation(), &first);
}

#[test]
fn a_drained_worker_keeps_its_assignment_while_it_owes_reports() {
    let (mut world, mut desk) = with_task(|_| {}, "j/a");
    desk.hold = |call| matches!(call, Call::Set { path, .. } if path == "/z/tasks/j/a");
    desk.event(&world, Event::Stop { again: false });
    desk.go(&mut world);
    desk.lose(&mut world, |_| false);
    end(&world, &mut desk, Ended::Exit(0));
    desk.connect(&mut world);
    let assignment = desk.role.assignment();
    assert!(desk.exit.is_none() && world.znodes.contains_key(&assignment), "its outcome is on its way");
    desk.hold = |_| false;
    desk.go(&mut world);
    assert!(world.task("/z/tasks/j/a").outcome.is_some());
    assert!(desk.exit == Some(0) && !world.znodes.contains_key(&assignment));
}

/// The lease was renewed just after its slot had found it over.
#[test]
fn a_run_killed_by_its_slot_has_no_end_even_with_a_new_lease() {
    let mut world = World::new();
    let mut desk = worker(|_| {});
    desk.connect(&mut world);
    task(&mut world, "_00/a");
    assign(&mut world, &desk, &[("_00/a", 1, false)]);
    desk.go(&mut world);
    let run = *desk.runs.keys().next().expect("asked for");
    desk.event(&world, Event::Started { run, pid: 5 });
    end_after(&world, &mut desk, Ended::Signal(9), true);
    desk.go(&mut world);
    let task = world.task("/z/tasks/_00/a");
    assert!(task.outcome.is_none() && task.charged == 0, "{task:?}");
}

/// A worker stood still: its clock shows that the time is up before it hears that the task has ended long ago.
/// Found as seed 1002638 of the simulator.
#[test]
fn a_run_that_ended_before_its_stop_did_not_time_out() {
    for (signalled, expected) in
        [(false, (OutcomeState::Done, None)), (true, (OutcomeState::Failed, Some(Reason::Timeout)))]
    {
        let mut world = World::new();
        let mut desk = worker(|_| {});
        desk.connect(&mut world);
        task(&mut world, "_00/a");
        world.change("/z/tasks/_00/a", |task| task.options.timeout_ms = Some(1_000));
        assign(&mut world, &desk, &[("_00/a", 1, false)]);
        desk.go(&mut world);
        // Its time begins when it runs, not when that was asked for.
        world.pass(Duration::from_secs(2));
        let run = *desk.runs.keys().next().expect("asked for");
        desk.event(&world, Event::Started { run, pid: 5 });
        assert!(desk.signals.is_empty());
        world.pass(Duration::from_secs(2));
        desk.event(&world, Event::Wake);
        assert!(matches!(desk.signals[..], [(_, GroupSignal::Term)]));
        end_after(&world, &mut desk, Ended::Exit(0), signalled);
        desk.go(&mut world);
        let outcome = world.task("/z/tasks/_00/a").outcome.expect("an outcome");
        assert_eq!((outcome.state, outcome.reason), expected);
    }
}

/// Found by the simulator, seed 1006261: the last life's registration came to stand after the next life had taken
/// all of them away, and would have stood as long as the session.
#[test]
fn a_registration_in_flight_is_deleted_by_the_next_incarnation() {
    let (mut world, mut desk) = with_task(|_| {}, "j/a");
    desk.lose(&mut world, |_| false);
    desk.hold = |call| matches!(call, Call::Create { path, .. } if path.ends_with("~1"));
    desk.connect(&mut world);
    let last = desk.role.registrar.incarnation().clone();
    let late = registration(&desk, 1);
    world.pass(Duration::from_secs(20));
    desk.go(&mut world);
    end(&world, &mut desk, Ended::Signal(9));
    desk.go(&mut world);
    assert!(!world.znodes.contains_key(&format!("/z/assign/{last}")), "the last life is over");
    desk.hold = |_| false;
    desk.go(&mut world);
    assert_ne!(*desk.role.registrar.incarnation(), last);
    assert!(desk.role.registrar.is_standing());
    let left: Vec<_> = world.znodes.keys().filter(|path| path.starts_with("/z/workers/")).collect();
    assert_eq!(left, [&registration(&desk, 0)], "{late} is nobody's");
}

/// It was closed for good, and what the leader gave out in its place was never started.
#[test]
fn an_attempt_assigned_while_the_last_is_found_stale_starts() {
    let mut world = World::new();
    let mut desk = worker(|_| {});
    desk.connect(&mut world);
    task(&mut world, "_00/a");
    world.change("/z/tasks/_00/a", |task| task.next_attempt(None, "test"));
    desk.hold = |call| call.path().contains("/leases/");
    assign(&mut world, &desk, &[("_00/a", 1, false)]);
    desk.go(&mut world);
    assign(&mut world, &desk, &[("_00/a", 2, false)]);
    desk.go(&mut world);
    assert_eq!(desk.runs.len(), 0, "nothing is certain yet");
    desk.hold = |_| false;
    desk.go(&mut world);
    assert_eq!(desk.runs.len(), 1, "{:?}", desk.logs);
}

/// The simulator found it (seed 901447): what is handed back was on its way, and was charged.
#[test]
fn a_second_signal_leaves_a_moment_to_hand_back() {
    for answered in [true, false] {
        let (mut world, mut desk) = with_task(|params| params.grace = Duration::ZERO, "j/a");
        desk.hold = |call| matches!(call, Call::Set { path, .. } if path == "/z/tasks/j/a");
        desk.event(&world, Event::Stop { again: false });
        end_after(&world, &mut desk, Ended::Signal(9), true);
        desk.go(&mut world);
        desk.event(&world, Event::Stop { again: true });
        assert_eq!(desk.exit, None, "it is on its way");
        if answered {
            desk.hold = |_| false;
        } else {
            world.pass(Duration::from_secs(1));
        }
        desk.go(&mut world);
        assert_eq!(desk.exit, Some(0), "{:?}", desk.logs);
        assert_eq!(world.task("/z/tasks/j/a").attempt, if answered { 2 } else { 1 });
    }
}
