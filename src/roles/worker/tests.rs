//! The worker on a few znodes: deaths, drains and late answers, one step at a time.

use super::*;
use crate::contract::TaskId;
use crate::contract::task::{Outcome, Payload, Reason, State as OutcomeState, Task};
use crate::contract::worker::{Entry, Seen};
use crate::machine::{Captured, CreateMode, Ended, GroupSignal, RunReport};
use crate::roles::testing::{RoleDriver, World};

mod chunks;
mod past;
mod refused;
mod starts;
mod stops;

fn worker(change: impl FnOnce(&mut Params)) -> RoleDriver<Worker> {
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
    RoleDriver::new(Worker::new(params))
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
fn assign(world: &mut World, driver: &RoleDriver<Worker>, entries: &[(&str, u32, bool)]) {
    let entry = |(task, attempt, revoked): &(&str, u32, bool)| Entry {
        task: TaskId::parse(task).expect("id"),
        attempt: *attempt,
        revoked: *revoked,
        recalled: false,
        recheck: None,
        seen: None,
    };
    let data = Assignment::new(1, entries.iter().map(entry).collect()).encode();
    world.put(&driver.role.assignment(), &data);
}

/// The oldest run ends by itself.
fn end(world: &World, driver: &mut RoleDriver<Worker>, ended: Ended) {
    end_after(world, driver, ended, false);
}

/// The oldest run ends, after a signal of ours or without one.
fn end_after(world: &World, driver: &mut RoleDriver<Worker>, ended: Ended, signalled: bool) {
    end_run(world, driver, ended, Captured::default(), signalled);
}

/// The oldest run ends by itself, and has printed so many bytes.
fn end_printing(world: &World, driver: &mut RoleDriver<Worker>, ended: Ended, bytes: usize) {
    let stdout = Captured { head: vec![b'x'; bytes], ..Captured::default() };
    end_run(world, driver, ended, stdout, false);
}

fn end_run(world: &World, driver: &mut RoleDriver<Worker>, ended: Ended, stdout: Captured, signalled: bool) {
    let (run, _) = driver.runs.pop_first().expect("a run");
    let stderr = Captured::default();
    let report = RunReport { ended, detail: None, stdout, stderr, started_ms: 0, ended_ms: 0, signalled };
    driver.event(world, Event::Ended { run, report });
}

/// A worker that runs this task and nothing else.
fn with_task(change: impl FnOnce(&mut Params), id: &str) -> (World, RoleDriver<Worker>) {
    let mut world = World::new();
    let mut driver = worker(change);
    driver.connect(&mut world);
    task(&mut world, id);
    assign(&mut world, &driver, &[(id, 1, false)]);
    driver.go(&mut world);
    (world, driver)
}

fn registration(driver: &RoleDriver<Worker>, n: u64) -> String {
    driver.role.params.layout.registration(driver.role.registrar.incarnation(), n)
}

#[test]
fn a_task_runs_and_its_outcome_is_written() {
    let (mut world, mut driver) = with_task(|_| {}, "j/a");
    end(&world, &mut driver, Ended::Exit(0));
    driver.go(&mut world);
    let outcome = world.task("/z/tasks/j/a").outcome;
    assert_eq!(outcome.map(|outcome| outcome.state), Some(OutcomeState::Done));
}

/// A worker to which the leader gives out j/a at this attempt, and carries along what it read of it at its first,
/// before it came to be at `now`.
fn carried(attempt: u32, now: u32) -> (World, RoleDriver<Worker>) {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    task(&mut world, "j/a");
    let data = String::from_utf8(world.task("/z/tasks/j/a").encode()).expect("text");
    if now > 1 {
        world.change("/z/tasks/j/a", |task| task.attempt = now);
    }
    let seen = Some(Seen { data, version: 0, mzxid: 77 });
    let entry =
        Entry { task: TaskId::new("j", "a"), attempt, revoked: false, recalled: false, recheck: None, seen };
    world.put(&driver.role.assignment(), &Assignment::new(1, vec![entry]).encode());
    (world, driver)
}

/// It runs, and ends well; and its task then.
fn run_to_its_end(world: &mut World, driver: &mut RoleDriver<Worker>) -> Task {
    driver.go(world);
    end(world, driver, Ended::Exit(0));
    driver.go(world);
    world.task("/z/tasks/j/a")
}

#[test]
fn a_task_whose_entry_has_a_copy_runs_without_a_read() {
    let (mut world, mut driver) = carried(1, 1);
    driver.hold = |call| matches!(call, Call::Get { path, .. } if path == "/z/tasks/j/a");
    driver.go(&mut world);
    assert!(driver.calls.is_empty(), "{:?}", driver.calls);
    let (_, spec) = driver.runs.first_key_value().expect("it runs");
    assert!(spec.env.contains(&("ZKMW_EPOCH".to_string(), "77".to_string())), "{:?}", spec.env);
    let outcome = run_to_its_end(&mut world, &mut driver).outcome;
    assert_eq!(outcome.map(|outcome| outcome.state), Some(OutcomeState::Done));
}

#[test]
fn what_an_entry_carries_along_and_does_not_fit_is_read() {
    let (mut world, mut driver) = carried(2, 2);
    let task = run_to_its_end(&mut world, &mut driver);
    assert_eq!(task.outcome.map(|outcome| outcome.attempt), Some(2), "it was read, and is at that attempt");
}

#[test]
fn what_changed_after_the_leader_read_it_is_not_overwritten() {
    let (mut world, mut driver) = carried(1, 2);
    let task = run_to_its_end(&mut world, &mut driver);
    assert!(task.outcome.is_none() && task.attempt == 2, "{task:?}");
}

#[test]
fn the_next_incarnation_reads_the_defaults_again() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    task(&mut world, "j/a");
    assign(&mut world, &driver, &[("j/a", 1, false)]);
    driver.hold = |call| matches!(call, Call::Get { path, .. } if path == "/z/tasks/j");
    driver.go(&mut world);
    world.remove(&registration(&driver, 0));
    driver.go(&mut world);
    driver.hold = |_| false;
    driver.go(&mut world);
    world.change("/z/tasks/j/a", |task| task.attempt = 2);
    assign(&mut world, &driver, &[("j/a", 2, false)]);
    driver.go(&mut world);
    assert_eq!(driver.runs.len(), 1);
}

/// The simulator found it (seed 3003066): a key was used again after `--job-ttl`, and its tasks had the old defaults.
#[test]
fn a_job_that_was_made_anew_has_its_new_defaults() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    for value in ["old", "new"] {
        world.put("/z/tasks/j", format!(r#"{{"v":1,"env":{{"WHICH":"{value}"}}}}"#).as_bytes());
        task(&mut world, "j/a");
        assign(&mut world, &driver, &[("j/a", 1, false)]);
        driver.go(&mut world);
        let (_, spec) = driver.runs.first_key_value().expect("it runs");
        assert!(spec.env.contains(&("WHICH".to_string(), value.to_string())), "{:?}", spec.env);
        end(&world, &mut driver, Ended::Exit(0));
        driver.go(&mut world);
        assign(&mut world, &driver, &[]);
        driver.go(&mut world);
        world.remove("/z/tasks/j/a");
        world.remove("/z/tasks/j");
        driver.go(&mut world);
    }
}

#[test]
fn tasks_of_many_jobs_all_run() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    let ids: Vec<_> = (0..1_002).map(|n| format!("j{n}/t")).collect();
    for id in &ids {
        task(&mut world, id);
    }
    let entries: Vec<_> = ids.iter().map(|id| (id.as_str(), 1, false)).collect();
    assign(&mut world, &driver, &entries);
    driver.go(&mut world);
    for id in &ids {
        assert_eq!(driver.runs.len(), 1, "{id}");
        end(&world, &mut driver, Ended::Exit(0));
        driver.go(&mut world);
    }
}

/// A process that sleeps in the kernel dies only when it wakes up.
#[test]
fn nothing_is_repeated_while_killed_runs_take_time_to_end() {
    let (mut world, mut driver) = with_task(|_| {}, "_00/a");
    assert_eq!(driver.runs.len(), 1);
    driver.hold = |call| call.path().starts_with("/z/leases/");
    world.pass(Duration::from_secs(20));
    driver.go(&mut world);
    assert!(matches!(driver.signals[..], [(_, GroupSignal::Kill)]));
    assert!(driver.role.next_wake().is_none_or(|at| at > world.now));
}

/// The machine slept for an hour, and the slots have killed what ran.
#[test]
fn what_was_killed_because_the_lease_was_over_has_not_failed() {
    let (mut world, mut driver) = with_task(|_| {}, "_00/a");
    world.pass(Duration::from_secs(3_600));
    end(&world, &mut driver, Ended::Signal(9));
    driver.go(&mut world);
    let task = world.task("/z/tasks/_00/a");
    assert_eq!((task.outcome, task.attempt, task.charged), (None, 2, 0));
}

#[test]
fn a_drain_that_reconnects_hands_back_what_was_not_started() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    task(&mut world, "_00/a");
    task(&mut world, "_00/b");
    assign(&mut world, &driver, &[("_00/a", 1, false), ("_00/b", 1, false)]);
    driver.go(&mut world);
    driver.event(&world, Event::Stop { again: false });
    driver.go(&mut world);
    driver.lose(&mut world, |_| true);
    end(&world, &mut driver, Ended::Exit(0));
    driver.connect(&mut world);
    assert_eq!(driver.exit, Some(exit::OK));
    assert!(world.task("/z/tasks/_00/a").outcome.is_some());
    let assignment = driver.role.assignment();
    assert!(!world.znodes.contains_key(&assignment), "{:?}", world.entries(&assignment));
}

/// Answers come in any order, and each is older than the question that was asked last.
#[test]
fn an_answer_to_an_earlier_question_voids_nothing() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    task(&mut world, "_00/a");
    driver.hold = |call| matches!(call, Call::Get { path, .. } if path.starts_with("/z/tasks/"));
    for attempt in 1..4 {
        world.change("/z/tasks/_00/a", |task| task.attempt = attempt);
        assign(&mut world, &driver, &[("_00/a", attempt, false)]);
        driver.go(&mut world);
        if attempt < 3 {
            assign(&mut world, &driver, &[("_00/a", attempt, true)]);
            driver.go(&mut world);
        }
    }
    let old = |attempt| {
        let mut task = Task::new(Payload::Shell("x".into()), Options::default());
        task.attempt = attempt;
        Ok(Reply::Data { data: task.encode(), stat: crate::machine::Stat::default() })
    };
    let asked: Vec<_> = driver.calls.iter().map(|(id, _)| *id).collect();
    assert_eq!(asked.len(), 3);
    for (n, id) in asked.into_iter().enumerate().take(2) {
        driver.calls.pop_front();
        driver.event(&world, Event::Reply { id, result: old(n as u32 + 1) });
        driver.go(&mut world);
    }
    driver.hold = |_| false;
    driver.go(&mut world);
    assert_eq!(driver.runs.len(), 1);
}

#[test]
fn a_forbidden_removal_of_a_predecessor_backs_off() {
    let gone = ProcessIdentity { host: "h".into(), pid: 3, ..ProcessIdentity::default() };
    let mut world = World::new();
    let mut driver = worker(|params| params.predecessor = Some(gone.clone()));
    let session = world.open();
    let path = "/z/workers/w~1~0".to_string();
    let data = Registration::new(&gone, 1, Labels::new(), 10_000).encode();
    let call = Call::Create { path: path.clone(), data, mode: CreateMode::Ephemeral };
    world.apply(session, &call).expect("registered");
    driver.session = Some(world.open());
    driver.event(&world, Event::Connected { timeout: Duration::from_secs(10) });
    for _ in 0..1_000 {
        let refuse = driver.calls.front().is_some_and(|(_, call)| matches!(call, Call::Delete { .. }));
        if refuse {
            world.refused.insert(path.clone(), Refusal::NoAuth);
        }
        if !driver.deliver(&mut world) && !driver.answer(&mut world) {
            break;
        }
        world.refused.clear();
    }
    assert_eq!(driver.exit, Some(exit::NOT_PERMITTED));
}

/// A report that is owed by one life does not end what the next one was given.
#[test]
fn a_report_of_the_last_incarnation_is_written_after_its_end() {
    let (mut world, mut driver) = with_task(|_| {}, "_00/a");
    let session = driver.lose(&mut world, |_| false);
    world.pass(Duration::from_secs(20));
    driver.go(&mut world);
    world.expire(session);
    end(&world, &mut driver, Ended::Signal(9));
    driver.hold = |call| matches!(call, Call::Set { path, .. } if path == "/z/tasks/_00/a");
    driver.connect(&mut world);
    world.change("/z/tasks/_00/a", |task| task.attempt = 2);
    let last = driver.role.registrar.incarnation().clone();
    driver.go(&mut world);
    assert_eq!(
        *driver.role.registrar.incarnation(),
        last,
        "not before it is known what became of the report"
    );
    driver.hold = |_| false;
    driver.go(&mut world);
    assert_ne!(*driver.role.registrar.incarnation(), last);
    assign(&mut world, &driver, &[("_00/a", 2, false)]);
    driver.go(&mut world);
    assert_eq!(driver.runs.len(), 1);
    end(&world, &mut driver, Ended::Exit(0));
    driver.go(&mut world);
    let outcome: Option<Outcome> = world.task("/z/tasks/_00/a").outcome;
    assert_eq!(outcome.map(|outcome| outcome.attempt), Some(2));
}

#[test]
fn what_was_killed_with_its_slot_has_not_failed() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    driver.event(&world, Event::SlotsLost { why: "it was killed".into() });
    driver.go(&mut world);
    let first = driver.role.registrar.incarnation().clone();
    task(&mut world, "j/a");
    assign(&mut world, &driver, &[("j/a", 1, false)]);
    driver.go(&mut world);
    assert_eq!(driver.role.registrar.incarnation(), &first, "nothing ran, nothing was lost");
    driver.event(&world, Event::SlotsLost { why: "it was killed".into() });
    end(&world, &mut driver, Ended::Signal(9));
    driver.go(&mut world);
    let task = world.task("/z/tasks/j/a");
    assert_eq!((task.attempt, task.charged, task.outcome), (2, 0, None));
    assert_ne!(driver.role.registrar.incarnation(), &first);
}

#[test]
fn a_drained_worker_keeps_its_assignment_while_it_owes_reports() {
    let (mut world, mut driver) = with_task(|_| {}, "j/a");
    driver.hold = |call| matches!(call, Call::Set { path, .. } if path == "/z/tasks/j/a");
    driver.event(&world, Event::Stop { again: false });
    driver.go(&mut world);
    driver.lose(&mut world, |_| false);
    end(&world, &mut driver, Ended::Exit(0));
    driver.connect(&mut world);
    let assignment = driver.role.assignment();
    assert!(driver.exit.is_none() && world.znodes.contains_key(&assignment), "its outcome is on its way");
    driver.hold = |_| false;
    driver.go(&mut world);
    assert!(world.task("/z/tasks/j/a").outcome.is_some());
    assert!(driver.exit == Some(0) && !world.znodes.contains_key(&assignment));
}

/// The lease was renewed just after its slot had found it over.
#[test]
fn a_run_killed_by_its_slot_has_no_end_even_with_a_new_lease() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    task(&mut world, "_00/a");
    assign(&mut world, &driver, &[("_00/a", 1, false)]);
    driver.go(&mut world);
    let run = *driver.runs.keys().next().expect("asked for");
    driver.event(&world, Event::Started { run, pid: 5 });
    end_after(&world, &mut driver, Ended::Signal(9), true);
    driver.go(&mut world);
    let task = world.task("/z/tasks/_00/a");
    assert!(task.outcome.is_none() && task.charged == 0, "{task:?}");
}

/// A worker was suspended: its clock shows that the time is up before it hears that the task has ended long ago.
/// Found as seed 1002638 of the simulator.
#[test]
fn a_run_that_ended_before_its_stop_did_not_time_out() {
    for (signalled, expected) in
        [(false, (OutcomeState::Done, None)), (true, (OutcomeState::Failed, Some(Reason::Timeout)))]
    {
        let mut world = World::new();
        let mut driver = worker(|_| {});
        driver.connect(&mut world);
        task(&mut world, "_00/a");
        world.change("/z/tasks/_00/a", |task| task.options.timeout_ms = Some(1_000));
        assign(&mut world, &driver, &[("_00/a", 1, false)]);
        driver.go(&mut world);
        // Its time begins when it runs, not when that was asked for.
        world.pass(Duration::from_secs(2));
        let run = *driver.runs.keys().next().expect("asked for");
        driver.event(&world, Event::Started { run, pid: 5 });
        assert!(driver.signals.is_empty());
        world.pass(Duration::from_secs(2));
        driver.event(&world, Event::Wake);
        assert!(matches!(driver.signals[..], [(_, GroupSignal::Term)]));
        end_after(&world, &mut driver, Ended::Exit(0), signalled);
        driver.go(&mut world);
        let outcome = world.task("/z/tasks/_00/a").outcome.expect("an outcome");
        assert_eq!((outcome.state, outcome.reason), expected);
    }
}

/// Found by the simulator, seed 1006261: the last life's registration was created after the next life had taken
/// all of them away, and would have existed as long as the session.
#[test]
fn a_registration_in_flight_is_deleted_by_the_next_incarnation() {
    let (mut world, mut driver) = with_task(|_| {}, "j/a");
    driver.lose(&mut world, |_| false);
    driver.hold = |call| matches!(call, Call::Create { path, .. } if path.ends_with("~1"));
    driver.connect(&mut world);
    let last = driver.role.registrar.incarnation().clone();
    let late = registration(&driver, 1);
    world.pass(Duration::from_secs(20));
    driver.go(&mut world);
    end(&world, &mut driver, Ended::Signal(9));
    driver.go(&mut world);
    assert!(!world.znodes.contains_key(&format!("/z/assign/{last}")), "the last life is over");
    driver.hold = |_| false;
    driver.go(&mut world);
    assert_ne!(*driver.role.registrar.incarnation(), last);
    assert!(driver.role.registrar.is_registered());
    let left: Vec<_> = world.znodes.keys().filter(|path| path.starts_with("/z/workers/")).collect();
    assert_eq!(left, [&registration(&driver, 0)], "{late} is nobody's");
}

/// It was closed for good, and what the leader assigned instead of it was never started.
#[test]
fn an_attempt_assigned_while_the_last_is_found_stale_starts() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    task(&mut world, "_00/a");
    world.change("/z/tasks/_00/a", |task| task.next_attempt(None, "test"));
    driver.hold = |call| call.path().contains("/leases/");
    assign(&mut world, &driver, &[("_00/a", 1, false)]);
    driver.go(&mut world);
    assign(&mut world, &driver, &[("_00/a", 2, false)]);
    driver.go(&mut world);
    assert_eq!(driver.runs.len(), 0, "nothing is certain yet");
    driver.hold = |_| false;
    driver.go(&mut world);
    assert_eq!(driver.runs.len(), 1, "{:?}", driver.logs);
}

/// The simulator found it (seed 901447): what is handed back was on its way, and was charged.
#[test]
fn a_second_signal_leaves_a_moment_to_hand_back() {
    for answered in [true, false] {
        let (mut world, mut driver) = with_task(|params| params.grace = Duration::ZERO, "j/a");
        driver.hold = |call| matches!(call, Call::Set { path, .. } if path == "/z/tasks/j/a");
        driver.event(&world, Event::Stop { again: false });
        end_after(&world, &mut driver, Ended::Signal(9), true);
        driver.go(&mut world);
        driver.event(&world, Event::Stop { again: true });
        assert_eq!(driver.exit, None, "it is on its way");
        if answered {
            driver.hold = |_| false;
        } else {
            world.pass(Duration::from_secs(1));
        }
        driver.go(&mut world);
        assert_eq!(driver.exit, Some(0), "{:?}", driver.logs);
        assert_eq!(world.task("/z/tasks/j/a").attempt, if answered { 2 } else { 1 });
    }
}
