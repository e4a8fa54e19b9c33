//! Assignments that the ensemble refuses: the other workers are served.

use super::dispatch::end_all;
use super::*;
use crate::contract::status::Status;

/// A quota, an ACL, or a server that throttles: whatever it is, it is one worker's.
#[test]
fn an_unwritable_assignment_stops_no_other_worker() {
    let mut world = World::new();
    worker(&mut world, "w~1", 4);
    worker(&mut world, "w~2", 1);
    let mut master = master("m");
    master.connect(&mut world);
    world.refused.insert("/z/assign/w~1".into(), Refusal::Other(-125));
    task(&mut world, "_00/a", |_| {});
    task(&mut world, "_00/b", |_| {});
    master.go(&mut world);
    master.go(&mut world);
    let first = world.entries("/z/assign/w~2");
    assert_eq!(first.len(), 1, "{:?}", master.logs);
    let said =
        |master: &RoleDriver<Master>, what: &str| master.logs.iter().filter(|l| l.contains(what)).count();
    assert_eq!(
        said(&master, "/z/assign/w~1 cannot be written (ZooKeeper error -125)"),
        1,
        "{:?}",
        master.logs
    );
    for _ in 0..20 {
        world.pass(Duration::from_secs(31));
        master.go(&mut world);
    }
    assert_eq!(said(&master, "cannot be written"), 1, "{:?}", master.logs);
    world.refused.clear();
    for _ in 0..2 {
        world.pass(Duration::from_secs(31));
        master.go(&mut world);
    }
    let second = world.entries("/z/assign/w~1");
    assert!(second.len() == 1 && second != first, "{second:?}");
    assert_eq!(said(&master, "can be written again"), 1, "{:?}", master.logs);
}

/// The last leader's late write might still come to it, for a while.
#[test]
fn an_unclaimed_assignment_delays_while_its_leader_may_write() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    worker(&mut world, "w~2", 1);
    task(&mut world, "_00/a", |_| {});
    world.writes_refused.insert("/z/assign/w~1".into(), Refusal::NoAuth);
    let mut master = master("m");
    master.connect(&mut world);
    assert_eq!(world.entries("/z/assign/w~2"), []);
    world.pass(T * 2 + Duration::from_secs(11));
    master.go(&mut world);
    assert_eq!(world.entries("/z/assign/w~2"), [entry("_00/a", 1, false)]);
}

/// It ran there, and its outcome would have been written while it did.
#[test]
fn no_cancel_while_an_unread_assignment_may_run_the_task() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    task(&mut world, "_00/a", |task| task.cancel = true);
    assignment(&mut world, "w~1", &[("_00/a", 1, false)]);
    world.refused.insert("/z/assign/w~1".into(), Refusal::NoAuth);
    let mut master = master("m");
    master.connect(&mut world);
    assert!(world.task("/z/tasks/_00/a").outcome.is_none(), "it may run");
    world.refused.clear();
    world.pass(Duration::from_secs(31));
    master.go(&mut world);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 1, true)], "its worker kills it");
    assert!(world.task("/z/tasks/_00/a").outcome.is_none());
}

/// Once, every refusal quarantined the task for the whole term.
#[test]
fn a_change_that_a_quota_refused_is_made_when_it_is_raised() {
    let mut world = World::new();
    task(&mut world, "_00/a", |task| task.cancel = true);
    world.writes_refused.insert("/z/tasks/_00/a".into(), Refusal::Other(-6));
    let mut master = master("m");
    master.connect(&mut world);
    for _ in 0..20 {
        world.pass(Duration::from_secs(31));
        master.go(&mut world);
    }
    let said = master.logs.iter().filter(|line| line.contains("/z/tasks/_00/a cannot be changed")).count();
    assert_eq!(said, 1, "{:?}", master.logs);
    world.writes_refused.clear();
    world.pass(Duration::from_secs(31));
    master.go(&mut world);
    assert!(world.task("/z/tasks/_00/a").outcome.is_some(), "{:?}", master.logs);
}

/// Its owner made it so, and the other tasks of a dead worker wait until it is quarantined.
#[test]
fn a_task_that_may_never_be_changed_is_quarantined() {
    let mut world = World::new();
    task(&mut world, "_00/a", |task| task.cancel = true);
    world.writes_refused.insert("/z/tasks/_00/a".into(), Refusal::NoAuth);
    let mut master = master("m");
    master.connect(&mut world);
    let quarantined =
        |master: &RoleDriver<Master>| master.logs.iter().any(|line| line.contains("is quarantined"));
    assert!(!quarantined(&master), "{:?}", master.logs);
    for _ in 0..8 {
        world.pass(Duration::from_secs(31));
        master.go(&mut world);
    }
    assert!(quarantined(&master), "{:?}", master.logs);
}

/// A server hangs up on a longer request; what was on the assignment in memory only would go there again and again.
#[test]
fn a_too_long_assignment_is_written_in_parts() {
    let mut world = World::new();
    worker(&mut world, "w~1", 64);
    for n in 0..64 {
        task(&mut world, &format!("_00/{n:0>100}"), |_| {});
    }
    world.limit = Some(3_000);
    let mut master = master("m");
    master.connect(&mut world);
    let mut rounds = 0;
    while (0..64).any(|n| world.task(&format!("/z/tasks/_00/{n:0>100}")).outcome.is_none()) {
        rounds += 1;
        assert!(rounds < 64, "{:?}", master.logs);
        end_all(&mut world, "w~1", 1);
        master.go(&mut world);
        world.pass(Duration::from_secs(31));
        master.go(&mut world);
    }
    assert!(rounds > 4, "the limit was not felt");
}

/// A takeover waits for it.
#[test]
fn a_summary_that_the_servers_find_too_long_lists_fewer_workers() {
    const LIMIT: usize = 4_000;
    let mut world = World::new();
    for number in 1..=40 {
        let mut registration = registration(1);
        registration.labels.insert("zone".into(), "x".repeat(100));
        register(&mut world, &format!("w{number:02}~1~0"), &registration);
        assignment(&mut world, &format!("w{number:02}~1"), &[]);
    }
    world.limit = Some(LIMIT);
    task(&mut world, "_00/a", |_| {});
    let mut master = master("m");
    master.connect(&mut world);
    master.go(&mut world);
    let data = &world.znodes["/z/status"].data;
    let status = Status::decode(data).expect("a summary");
    assert!(data.len() <= LIMIT && status.workers == 40, "{} bytes: {status:?}", data.len());
    assert!((5..40).contains(&status.worker_list.len()), "{}", status.worker_list.len());
    let given = (1..=40).filter(|number| !world.entries(&format!("/z/assign/w{number:02}~1")).is_empty());
    assert_eq!(given.count(), 1, "it leads: {:?}", master.logs);
    // Nothing can be left out of it any more: it says so, and tries again.
    world.writes_refused.insert("/z/status".into(), Refusal::TooLarge);
    world.pass(Duration::from_secs(2));
    task(&mut world, "_00/b", |_| {});
    master.go(&mut world);
    let said = master.logs.iter().filter(|line| line.contains("jute.maxbuffer")).count();
    assert_eq!((said, master.exit), (1, None), "{:?}", master.logs);
}

/// Nothing reports that an ACL was repaired. Once, a task that was forbidden was not read until it changed.
#[test]
fn a_task_that_an_acl_hid_is_read_again() {
    let mut world = World::new();
    worker(&mut world, "w~1", 4);
    task(&mut world, "_00/a", |_| {});
    task(&mut world, "_01/b", |_| {});
    for path in ["/z/workers/w~1~0", "/z/tasks/_00/a", "/z/tasks/_01"] {
        world.refused.insert(path.into(), Refusal::NoAuth);
    }
    let mut master = master("m");
    master.connect(&mut world);
    for _ in 0..3 {
        world.pass(Duration::from_secs(61));
        master.go(&mut world);
    }
    assert_eq!(world.entries("/z/assign/w~1"), []);
    let said = |path: &str| master.logs.iter().filter(|line| line.starts_with(path)).count();
    assert_eq!([said("/z/workers/w~1~0: "), said("/z/tasks/_01: ")], [1, 1], "{:?}", master.logs);
    world.refused.clear();
    world.pass(Duration::from_secs(61));
    master.go(&mut world);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 1, false), entry("_01/b", 1, false)]);
}

/// It was kept for as long as that leader led.
#[test]
fn an_outcome_that_may_not_be_deleted_is_deleted_when_it_may_be() {
    let mut world = World::new();
    let mut master = master("m");
    master.connect(&mut world);
    task(&mut world, "_00/a", |task| task.cancel = true);
    let ended = Outcome::unrun(State::Done, None, "", 1);
    task(&mut world, "_00/b", |task| task.outcome = Some(ended));
    world.writes_refused.insert("/z/tasks/_00/b".into(), Refusal::NoAuth);
    for _ in 0..3 {
        world.pass(Duration::from_secs(3_601));
        master.go(&mut world);
    }
    assert!(!world.znodes.contains_key("/z/tasks/_00/a"), "it may be deleted: {:?}", master.logs);
    let kept = master.logs.iter().filter(|line| line.starts_with("/z/tasks/_00/b: ")).count();
    assert_eq!(kept, 1, "{:?}", master.logs);
    world.writes_refused.clear();
    for _ in 0..3 {
        world.pass(Duration::from_secs(61));
        master.go(&mut world);
    }
    assert!(!world.znodes.contains_key("/z/tasks/_00/b"), "{:?}", master.logs);
}
