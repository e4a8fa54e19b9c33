//! Starts that fail because the worker is short of something.

use super::*;
use crate::machine::NotStartedKind;

/// A worker of two slots that has four tasks, and was asked to start two of them.
fn short() -> (World, RoleDriver<Worker>) {
    let mut world = World::new();
    let mut driver = worker(|params| params.slots = 2);
    driver.connect(&mut world);
    let ids = ["_00/a", "_00/b", "_00/c", "_00/d"];
    ids.iter().for_each(|id| task(&mut world, id));
    assign(&mut world, &driver, &ids.map(|id| (id, 1, false)));
    driver.go(&mut world);
    assert_eq!(driver.runs.len(), 2);
    driver.logs.clear();
    (world, driver)
}

/// The oldest run can't be started.
fn fail(world: &mut World, driver: &mut RoleDriver<Worker>, kind: NotStartedKind) {
    let (run, _) = driver.runs.pop_first().expect("a run");
    driver.event(world, Event::NotStarted { run, kind, why: "too many open files".into() });
    driver.go(world);
}

fn said(world: &World, driver: &RoleDriver<Worker>) -> (Option<u32>, Option<String>) {
    let registration = &world.znodes[&registration(driver, 0)].data;
    let registration = Registration::decode(registration).expect("a registration");
    (registration.usable, registration.unhealthy)
}

#[test]
fn a_worker_that_cannot_start_hands_back_its_tasks_uncharged() {
    let (mut world, mut driver) = short();
    for _ in 0..2 {
        fail(&mut world, &mut driver, NotStartedKind::Shortage);
    }
    for id in ["a", "b", "c", "d"] {
        let task = world.task(&format!("/z/tasks/_00/{id}"));
        let by = driver.role.registrar.incarnation().clone();
        assert_eq!((task.attempt, task.charged, task.delay_ms, task.avoid), (2, 0, None, vec![by]), "{id}");
    }
    assert_eq!(said(&world, &driver), (Some(0), Some("too many open files".into())));
    let said: Vec<_> = driver.logs.iter().filter(|line| line.contains("too many open files")).collect();
    assert!(
        matches!(said[..], [line] if line.contains("/a ") && line.contains("tries one more")),
        "{said:?}"
    );
}

#[test]
fn after_a_pause_one_task_is_tried_and_if_that_works_more_are() {
    let (mut world, mut driver) = short();
    fail(&mut world, &mut driver, NotStartedKind::Shortage);
    fail(&mut world, &mut driver, NotStartedKind::Shortage);
    task(&mut world, "_00/x");
    task(&mut world, "_00/y");
    assign(&mut world, &driver, &[("_00/x", 1, false), ("_00/y", 1, false)]);
    driver.go(&mut world);
    assert!(driver.runs.is_empty(), "not before the pause is over");
    world.pass(Duration::from_secs(2));
    driver.event(&world, Event::Wake);
    driver.go(&mut world);
    assert_eq!((said(&world, &driver).0, driver.runs.len()), (Some(1), 1));
    let run = *driver.runs.first_key_value().expect("it runs").0;
    driver.event(&world, Event::Started { run, pid: 9 });
    driver.go(&mut world);
    assert_eq!((said(&world, &driver), driver.runs.len()), ((None, None), 2));
    assert!(driver.logs.iter().any(|line| line.contains("again")), "{:?}", driver.logs);
}

#[test]
fn a_bad_program_fails_its_task_and_delays_no_other() {
    let (mut world, mut driver) = short();
    fail(&mut world, &mut driver, NotStartedKind::Permanent);
    fail(&mut world, &mut driver, NotStartedKind::Transient);
    let failed = world.task("/z/tasks/_00/a").outcome.expect("an outcome");
    assert_eq!(failed.reason, Some(Reason::NotStarted));
    let put_off = world.task("/z/tasks/_00/b");
    assert!(put_off.delay_ms.is_some() && put_off.avoid.is_empty());
    assert_eq!((said(&world, &driver), driver.runs.len()), ((None, None), 2), "the others run");
}
