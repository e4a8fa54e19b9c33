//! Directories and znodes that somebody deletes while a master runs, and refusals.

use super::*;

fn pass(world: &mut World, master: &mut RoleDriver<Master>, ms: u64) {
    master.go(world);
    for _ in 0..ms / 100 {
        world.pass(Duration::from_millis(100));
        master.go(world);
    }
}

#[test]
fn what_is_deleted_under_a_leader_is_made_again() {
    let mut world = World::new();
    let mut master = master("m");
    master.connect(&mut world);
    for path in ["/z/status", "/z/workers", "/z/assign", "/z/tasks"] {
        for _ in 0..3 {
            world.remove(path);
            pass(&mut world, &mut master, 2_000);
            assert!(world.znodes.contains_key(path), "{path}: {:?}", master.logs);
            assert_eq!(master.exit, None, "{path}");
        }
    }
    // The master sees what is created there afterwards.
    worker(&mut world, "w~1", 2);
    task(&mut world, "_00/a", |_| {});
    pass(&mut world, &mut master, 100);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 1, false)]);
    let lines = master.logs.len();
    pass(&mut world, &mut master, 60_000);
    assert_eq!(master.logs.len(), lines, "{:?}", master.logs);
}

/// Its worker runs on until it learns of that, so no other worker gets its tasks before its registration is gone.
#[test]
fn entries_of_a_deleted_assignment_wait_for_their_worker() {
    let mut world = World::new();
    let session = worker(&mut world, "w~1", 1);
    let mut master = master("m");
    master.connect(&mut world);
    task(&mut world, "_00/a", |_| {});
    master.go(&mut world);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 1, false)]);
    worker(&mut world, "v~2", 1);
    master.go(&mut world);
    world.remove("/z/assign/w~1");
    pass(&mut world, &mut master, 1_000);
    assert_eq!(world.entries("/z/assign/v~2"), [], "it may still run");
    // The worker has killed it, and handed it back.
    world.change("/z/tasks/_00/a", |task| {
        task.next_attempt(None, "test");
        task.released_by = Some(Incarnation::parse("w~1").expect("an incarnation"));
    });
    pass(&mut world, &mut master, 1_000);
    assert_eq!(world.entries("/z/assign/v~2"), []);
    world.expire(session);
    pass(&mut world, &mut master, 1_000);
    assert_eq!(world.entries("/z/assign/v~2"), [entry("_00/a", 2, false)]);
}

/// The cause is a quota, an ACL, or a server that has too much to do. It is logged once or twice, not for ever.
#[test]
fn what_is_refused_to_a_master_is_waited_for() {
    for path in ["/z/status", "/z/tasks", "/z/workers", "/z/assign", "/z/master"] {
        let mut world = World::new();
        let mut master = master("m");
        world.refused.insert(path.into(), Refusal::Other(-6));
        master.connect(&mut world);
        pass(&mut world, &mut master, 60_000);
        assert_eq!(master.exit, None, "{path}");
        let lines = master.logs.iter().filter(|line| line.contains("ZooKeeper error -6")).count();
        assert!((1..=2).contains(&lines), "{path}: {:?}", master.logs);
        world.refused.clear();
        pass(&mut world, &mut master, 5_000);
        let leads = master.logs.iter().any(|line| line.starts_with("leading"));
        let over = master.logs.iter().any(|line| line.starts_with("this is over"));
        assert!(leads && over, "{path}: {:?}", master.logs);
    }
}

/// The simulator found it (seed 701008): between the last answers of a connection and its end nothing is known of
/// what exists, and empty jobs were to be found.
#[test]
fn no_wake_up_for_empty_jobs_before_they_can_be_known() {
    let mut world = World::new();
    let mut master = master("m");
    master.connect(&mut world);
    pass(&mut world, &mut master, 2_000);
    master.hold = |call| matches!(call, Call::Get { path, .. } if path == "/z/tasks/_00/a");
    task(&mut world, "_00/a", |_| {});
    master.go(&mut world);
    let (read, _) = master.calls.pop_front().expect("it reads the task");
    master.event(&world, Event::Reply { id: read, result: Err(CallError::MaybeApplied) });
    world.pass(Duration::from_secs(120));
    // It asserts that it is not woken again and again.
    master.go(&mut world);
}

/// A task that this leader assigned was known, so it is gone if it is not known any more. The end of a task that an
/// earlier leader assigned comes as an event.
#[test]
fn what_ends_while_others_are_being_read_makes_room_at_once() {
    let mut world = World::new();
    worker(&mut world, "w~1", 2);
    for id in ["_01/1", "_01/2"] {
        task(&mut world, id, |_| {});
    }
    assignment(&mut world, "w~1", &[("_01/1", 1, false)]);
    let mut leader = master("m");
    leader.hold = |call| matches!(call, Call::Children { path } if path == "/z/tasks");
    leader.connect(&mut world);
    for id in ["_00/a", "_00/b", "_00/c"] {
        task(&mut world, id, |_| {});
    }
    leader.go(&mut world);
    let given = |world: &World| {
        let assignment = world.entries("/z/assign/w~1").into_iter();
        assignment.filter(|(_, _, revoked)| !revoked).map(|(task, ..)| task).collect::<Vec<_>>()
    };
    assert_eq!(given(&world), ["_01/1", "_00/a"]);
    world.remove("/z/tasks/_00/a");
    leader.go(&mut world);
    assert_eq!(given(&world), ["_01/1", "_00/b"]);
    world.remove("/z/tasks/_01/1");
    leader.go(&mut world);
    assert_eq!(given(&world), ["_00/b", "_00/c"]);
    assert!(!view(&leader).tasks.is_complete());
    leader.hold = |_| false;
    leader.go(&mut world);
    assert!(view(&leader).tasks.is_complete() && view(&leader).table.len() == 3);
}
