//! What somebody deletes under a master, and what is refused to it.

use super::*;

fn pass(world: &mut World, master: &mut Desk<Master>, ms: u64) {
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
    // What is made there afterwards is heard of.
    worker(&mut world, "w~1", 2);
    task(&mut world, "_00/a", |_| {});
    pass(&mut world, &mut master, 100);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 1, false)]);
    let lines = master.logs.len();
    pass(&mut world, &mut master, 60_000);
    assert_eq!(master.logs.len(), lines, "{:?}", master.logs);
}

/// Its worker runs on until it hears of that, so nobody else gets what stood there before its registration is gone.
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

/// With a quota, an ACL, or a server that has too much to do. It is said once or twice (by whoever meets it), not for
/// ever.
#[test]
fn what_is_refused_to_a_master_is_waited_for() {
    for path in ["/z/status", "/z/tasks", "/z/workers", "/z/assign", "/z/master"] {
        let mut world = World::new();
        let mut master = master("m");
        world.refused.insert(path.into(), Refusal::Other(-6));
        master.connect(&mut world);
        pass(&mut world, &mut master, 60_000);
        assert_eq!(master.exit, None, "{path}");
        let told = master.logs.iter().filter(|line| line.contains("ZooKeeper error -6")).count();
        assert!((1..=2).contains(&told), "{path}: {:?}", master.logs);
        world.refused.clear();
        pass(&mut world, &mut master, 5_000);
        let leads = master.logs.iter().any(|line| line.starts_with("leading"));
        let over = master.logs.iter().any(|line| line.starts_with("this is over"));
        assert!(leads && over, "{path}: {:?}", master.logs);
    }
}

/// The simulator found it (seed 701008): between the last answers of a connection and its end nothing is known of
/// what stands, and empty jobs were to be looked for.
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
