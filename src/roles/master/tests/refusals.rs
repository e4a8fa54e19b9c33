//! Assignments that the ensemble refuses: the other workers are served.

use super::*;

/// A quota, an ACL, or a server that throttles: whatever it is, it is one worker's.
#[test]
fn a_page_that_may_not_be_written_stops_no_other_worker() {
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
    let first = world.page("/z/assign/w~2");
    assert_eq!(first.len(), 1, "{:?}", master.logs);
    let said = |master: &Desk<Master>, what: &str| master.logs.iter().filter(|l| l.contains(what)).count();
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
    let second = world.page("/z/assign/w~1");
    assert!(second.len() == 1 && second != first, "{second:?}");
    assert_eq!(said(&master, "can be written again"), 1, "{:?}", master.logs);
}

/// The last leader's late write might still come to it, for a while.
#[test]
fn a_page_that_cannot_be_claimed_at_the_takeover_holds_up_all_only_while_its_last_leader_may_write() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    worker(&mut world, "w~2", 1);
    task(&mut world, "_00/a", |_| {});
    world.writes_refused.insert("/z/assign/w~1".into(), Refusal::NoAuth);
    let mut master = master("m");
    master.connect(&mut world);
    assert_eq!(world.page("/z/assign/w~2"), []);
    world.pass(T * 2 + Duration::from_secs(11));
    master.go(&mut world);
    assert_eq!(world.page("/z/assign/w~2"), [entry("_00/a", 1, false)]);
}
