//! Outcomes that the servers do not take, for their size or for a quota.

use super::*;
use crate::machine::CallError;

/// A worker whose only task has printed so many bytes.
fn printed(bytes: usize) -> (World, RoleDriver<Worker>) {
    let (world, mut driver) = with_task(|params| params.slots = 2, "_00/a");
    end_printing(&world, &mut driver, Ended::Exit(3), bytes);
    (world, driver)
}

#[test]
fn what_the_servers_do_not_take_is_shortened_until_they_do() {
    let (mut world, mut driver) = printed(110_000);
    world.limit = Some(100_000);
    driver.go(&mut world);
    let outcome = world.task("/z/tasks/_00/a").outcome.expect("an outcome");
    let kept = outcome.stdout.captured();
    assert_eq!(
        (outcome.exit_code, kept.head.len() as u64 + kept.tail.len() as u64 + kept.omitted),
        (Some(3), 110_000)
    );
    assert!(kept.head.len() > 20_000, "{}", kept.head.len());
    let said = driver.logs.iter().filter(|line| line.contains("jute.maxbuffer")).count();
    assert_eq!(said, 1, "{:?}", driver.logs);
}

#[test]
fn a_task_whose_shortest_outcome_does_not_fit_is_quarantined() {
    let (mut world, mut driver) = printed(1_000);
    world.limit = Some(60);
    driver.go(&mut world);
    world.limit = None;
    assert!(
        world.task("/z/tasks/_00/a").outcome.is_none()
            && driver.logs.iter().any(|line| line.contains("quarantined"))
    );
}

/// Quota and throttling have codes that the client library does not know.
const QUOTA: Refusal = Refusal::Other(-6);

#[test]
fn what_a_quota_refuses_is_kept_and_written_when_it_was_raised() {
    let (mut world, mut driver) = printed(100);
    world.refused.insert("/z/tasks/_00/a".into(), QUOTA);
    driver.go(&mut world);
    for _ in 0..40 {
        world.pass(Duration::from_secs(1));
        driver.event(&world, Event::Wake);
        driver.go(&mut world);
    }
    let said = driver.logs.iter().filter(|line| line.contains("quota")).count();
    assert_eq!(said, 1, "{:?}", driver.logs);
    task(&mut world, "_00/b");
    assign(&mut world, &driver, &[("_00/a", 1, false), ("_00/b", 1, false)]);
    driver.go(&mut world);
    assert_eq!(driver.runs.len(), 1, "others run meanwhile");
    world.refused.clear();
    world.pass(Duration::from_secs(15));
    driver.event(&world, Event::Wake);
    driver.go(&mut world);
    let outcome = world.task("/z/tasks/_00/a").outcome.expect("an outcome");
    assert_eq!((outcome.exit_code, outcome.stdout.kept_bytes()), (Some(3), 100));
    assert!(driver.logs.iter().any(|line| line.contains("takes all outcomes again")), "{:?}", driver.logs);
}

#[test]
fn a_stopping_worker_waits_for_a_quota_within_its_limit() {
    let (mut world, mut driver) = printed(100);
    world.refused.insert("/z/tasks/_00/a".into(), QUOTA);
    driver.go(&mut world);
    driver.event(&world, Event::Stop { again: false });
    for _ in 0..20 {
        world.pass(Duration::from_secs(1));
        driver.event(&world, Event::Wake);
        driver.go(&mut world);
    }
    assert_eq!(driver.exit, Some(0));
    assert!(driver.logs.iter().any(|line| line.contains("took no outcome")), "{:?}", driver.logs);
}

/// Some were tried, and passed; the others had no time set, and waited for the next connection.
#[test]
fn all_refused_outcomes_are_written_when_the_quota_is_raised() {
    const TASKS: usize = 100;
    let mut world = World::new();
    let mut driver = worker(|params| params.slots = 200);
    driver.connect(&mut world);
    let ids: Vec<String> = (0..TASKS).map(|n| format!("_00/{n:03}")).collect();
    for id in &ids {
        task(&mut world, id);
        world.writes_refused.insert(format!("/z/tasks/{id}"), QUOTA);
    }
    let entries: Vec<_> = ids.iter().map(|id| (id.as_str(), 1, false)).collect();
    assign(&mut world, &driver, &entries);
    driver.go(&mut world);
    while !driver.runs.is_empty() {
        end(&world, &mut driver, Ended::Exit(0));
    }
    driver.go(&mut world);
    world.writes_refused.clear();
    for _ in 0..20 {
        world.pass(Duration::from_secs(15));
        driver.go(&mut world);
    }
    let owed = ids.iter().filter(|id| world.task(&format!("/z/tasks/{id}")).outcome.is_none()).count();
    assert_eq!(owed, 0, "of {TASKS}: {:?}", driver.logs);
}

/// How much output there is has nothing to do with it.
#[test]
fn a_task_that_may_not_be_read_for_a_while_keeps_its_output() {
    let (mut world, mut driver) = printed(1_000);
    let session = driver.lose(&mut world, |_| false);
    world.expire(session);
    world.refused.insert("/z/tasks/_00/a".into(), QUOTA);
    driver.connect(&mut world);
    for _ in 0..200 {
        world.pass(Duration::from_secs(1));
        driver.go(&mut world);
    }
    world.refused.clear();
    world.pass(Duration::from_secs(15));
    driver.go(&mut world);
    let outcome = world.task("/z/tasks/_00/a").outcome.expect("an outcome");
    assert_eq!((outcome.exit_code, outcome.stdout.kept_bytes()), (Some(3), 1_000), "{:?}", driver.logs);
}

/// The assignment was read and deleted while they lived, for its read had been refused and was due again.
#[test]
fn a_read_that_is_due_again_ends_no_incarnation_whose_runs_live() {
    let (mut world, mut driver) = with_task(|_| {}, "_00/a");
    assert_eq!(driver.runs.len(), 1);
    let assignment = driver.role.assignment();
    driver.hold = |call| matches!(call, Call::Get { path, .. } if path.contains("/assign/"));
    assign(&mut world, &driver, &[("_00/a", 1, false)]);
    driver.go(&mut world);
    let (read, _) = driver.calls.pop_front().expect("it reads its assignment");
    driver.event(&world, Event::Reply { id: read, result: Err(CallError::Refused(QUOTA)) });
    driver.hold = |_| false;
    world.remove(&registration(&driver, 0));
    driver.go(&mut world);
    world.pass(Duration::from_secs(1));
    driver.go(&mut world);
    assert!(world.znodes.contains_key(&assignment), "a run of it lives: {:?}", driver.logs);
    end(&world, &mut driver, Ended::Signal(9));
    driver.go(&mut world);
    assert!(!world.znodes.contains_key(&assignment), "{:?}", driver.logs);
}

/// Each try has an incarnation of its own, and each was reported.
#[test]
fn a_forbidden_registration_is_logged_once() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    world.below_refused = Some(("/z/workers/".into(), QUOTA));
    driver.connect(&mut world);
    for _ in 0..60 {
        world.pass(Duration::from_secs(2));
        driver.go(&mut world);
    }
    let logged = |driver: &RoleDriver<Worker>, what: &str| {
        driver.logs.iter().filter(|line| line.contains(what)).count()
    };
    assert_eq!(logged(&driver, "cannot register"), 1, "{:?}", driver.logs);
    world.below_refused = None;
    world.pass(Duration::from_secs(2));
    driver.go(&mut world);
    assert_eq!(logged(&driver, "this is over"), 1, "{:?}", driver.logs);
    assert!(driver.role.registrar.is_registered());
}

/// Neither ends it: the servers' limit can be raised.
#[test]
fn a_too_long_registration_is_reported_and_made_when_it_fits() {
    let mut world = World::new();
    let mut driver = worker(|params| params.labels = [("zone".to_string(), "x".repeat(2_000))].into());
    world.limit = Some(1_000);
    driver.connect(&mut world);
    for _ in 0..20 {
        world.pass(Duration::from_secs(1));
        driver.event(&world, Event::Wake);
        driver.go(&mut world);
    }
    let said: Vec<_> = driver.logs.iter().filter(|line| line.contains("jute.maxbuffer")).collect();
    assert!(said.len() == 1 && said[0].contains("shorter labels"), "{:?}", driver.logs);
    assert_eq!((driver.exit, driver.role.registrar.is_registered()), (None, false));
    world.limit = None;
    world.pass(Duration::from_secs(2));
    driver.event(&world, Event::Wake);
    driver.go(&mut world);
    assert!(driver.role.registrar.is_registered(), "{:?}", driver.logs);
}

/// A registration names quarantined tasks as far as there is room; nothing else is cut.
#[test]
fn a_registration_names_only_as_many_tasks_as_fit() {
    let mut world = World::new();
    let mut driver = worker(|params| params.slots = 2);
    driver.connect(&mut world);
    world.limit = Some(1_000);
    let quarantined: Vec<TaskId> = (0..100).map(|n| TaskId::new("_00", &format!("task-{n}"))).collect();
    let mut out: Out = Actions::default();
    driver.role.registrar.publish(|body| (body.quarantined, body.draining) = (quarantined, true), &mut out);
    driver.calls.extend(out.drain().filter_map(|action| match action {
        Action::Call { id, call } => Some((id, call)),
        _ => None,
    }));
    driver.go(&mut world);
    let (path, node) =
        world.znodes.iter().find(|(path, _)| path.starts_with("/z/workers/")).expect("it exists");
    let said = Registration::decode(&node.data).expect("a registration");
    assert!(
        said.draining && (10..100).contains(&said.quarantined.len()),
        "{path}: {} {:?}",
        said.quarantined.len(),
        driver.logs
    );
}

/// The next life began all the same, and removed the registration of the last: what had not started was charged.
#[test]
fn an_assignment_that_cannot_be_deleted_keeps_its_incarnation() {
    let (mut world, mut driver) = with_task(|_| {}, "_00/a");
    let assignment = driver.role.assignment();
    world.writes_refused.insert(assignment.clone(), QUOTA);
    driver.event(&world, Event::SlotsLost { why: "test".into() });
    end(&world, &mut driver, Ended::Signal(9));
    let before = registration(&driver, 0);
    for _ in 0..3 {
        driver.go(&mut world);
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.task("/z/tasks/_00/a").attempt, 2, "{:?}", driver.logs);
    assert!(world.znodes.contains_key(&before), "its assignment exists: {:?}", driver.logs);
    world.writes_refused.clear();
    for _ in 0..3 {
        world.pass(Duration::from_secs(2));
        driver.go(&mut world);
    }
    assert!(
        !world.znodes.contains_key(&assignment) && !world.znodes.contains_key(&before),
        "{:?}",
        driver.logs
    );
    assert!(driver.role.registrar.is_registered(), "the next life has begun");
}

/// It ran with no timeout, no environment, and on whatever the job's defaults say else.
#[test]
fn a_task_does_not_run_while_its_defaults_cannot_be_read() {
    let mut world = World::new();
    let mut driver = worker(|params| params.slots = 4);
    driver.connect(&mut world);
    for id in ["j/a", "j/b", "_00/c"] {
        task(&mut world, id);
    }
    world.refused.insert("/z/tasks/j".into(), Refusal::NoAuth);
    assign(&mut world, &driver, &[("j/a", 1, false), ("_00/c", 1, false)]);
    driver.go(&mut world);
    assert_eq!(driver.runs.len(), 1, "{:?}", driver.logs);
    assert!(driver.logs.iter().any(|line| line.starts_with("/z/tasks/j/a: ")), "{:?}", driver.logs);
    world.refused.clear();
    assign(&mut world, &driver, &[("j/a", 1, false), ("_00/c", 1, false), ("j/b", 1, false)]);
    driver.go(&mut world);
    assert_eq!(driver.runs.len(), 2, "the next one asks again");
}
