//! What stands apart: the leader's alone while it leads, and its successor's at once.

use super::*;

const JOB: &[u8] = br#"{"v":1,"uniform_bytes":40,"copies":true}"#;

fn put(world: &mut World, above: &str, dir: &str, names: &[&str]) {
    world.put(&format!("/z/{above}/{dir}"), JOB);
    for name in names {
        let task = Task::new(Payload::Shell("x".into()), Options::default());
        world.put(&format!("/z/{above}/{dir}/{name}"), &task.encode());
    }
}

#[test]
fn of_what_stands_apart_only_who_leads_hears_and_a_successor_finds_it() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    let (mut leader, mut standby) = (master("m"), master("n"));
    leader.connect(&mut world);
    standby.connect(&mut world);
    put(&mut world, "batches", "B~q0000", &["1", "2"]);
    task(&mut world, "_00/a", |_| {});
    leader.go(&mut world);
    standby.go(&mut world);
    assert_eq!((leader.role.table.len(), standby.role.table.len()), (3, 1));
    assert_eq!(world.page("/z/assign/w~1"), [entry("B~q0000/1", 1, false)]);
    world.expire(leader.session.expect("up"));
    standby.go(&mut world);
    assert_eq!((standby.role.table.len(), standby.role.tasks.is_complete()), (3, true));
    assert_eq!(world.page("/z/assign/w~1"), [entry("B~q0000/1", 1, false)]);
    // It hears of them from now on, and of new ones.
    put(&mut world, "batches", "B~q0001", &["3"]);
    for path in ["B~q0000/1", "B~q0000/2"] {
        world.remove(&format!("/z/batches/{path}"));
    }
    standby.go(&mut world);
    assert_eq!(standby.role.table.len(), 2);
}

#[test]
fn who_is_deposed_goes_on_hearing_and_watches_nothing_twice() {
    let mut world = World::new();
    let mut master = master("m");
    master.connect(&mut world);
    master.go(&mut world);
    // A second watch would never be answered, and be seen here.
    master.hold = |call| matches!(call, Call::Watch { path, .. } if path == "/z/batches");
    let contender = world.znodes.keys().find(|path| path.starts_with("/z/master/")).cloned();
    world.remove(&contender.expect("a contender"));
    put(&mut world, "batches", "B~q0000", &["1"]);
    master.go(&mut world);
    assert!(master.calls.is_empty(), "{:?}", master.calls);
    assert_eq!((master.role.table.len(), master.role.tasks.is_complete()), (1, true));
    assert!(master.role.term.is_some(), "it stood again: {:?}", master.logs);
}

/// Where tasks stand, and a worker of so many slots.
fn both_trees(slots: u32) -> World {
    let mut world = World::new();
    worker(&mut world, "w~1", slots);
    for path in ["/z", "/z/tasks", "/z/batches"] {
        world.put(path, b"");
    }
    world
}

#[test]
fn what_stands_where_its_name_denies_it_is_nobodys_task() {
    let mut world = both_trees(9);
    put(&mut world, "tasks", "B~q0000", &["1"]);
    put(&mut world, "batches", "B~0000", &["1"]);
    let mut leader = master("m");
    leader.connect(&mut world);
    put(&mut world, "batches", "J", &["1"]);
    leader.go(&mut world);
    assert_eq!((leader.role.table.len(), world.page("/z/assign/w~1").len()), (0, 0));
    put(&mut world, "batches", "B~q0000", &["1"]);
    leader.go(&mut world);
    assert_eq!(world.page("/z/assign/w~1"), [entry("B~q0000/1", 1, false)]);
}

#[test]
fn an_empty_job_goes_after_the_directory_of_its_groups() {
    let mut world = World::new();
    let mut leader = master("m");
    leader.connect(&mut world);
    put(&mut world, "batches", "B~q0000", &[]);
    put(&mut world, "batches", "B~q0001", &["1"]);
    put(&mut world, "batches", "B~q0002", &[]);
    for part in ["B~q0000", "B~q0001"] {
        world.put(&format!("/z/groups/{part}"), b"");
    }
    let place = "/z/groups/B~q0000/~ended~w~1~1";
    world.put(place, b"{}");
    leader.hold = |call| matches!(call, Call::Delete { path, .. } if path.contains("~ended~"));
    let play = |leader: &mut Desk<Master>, world: &mut World| {
        for _ in 0..10 {
            leader.go(world);
            world.pass(Duration::from_secs(900));
        }
        let names = world.znodes.keys().filter_map(|path| path.strip_prefix("/z/batches/"));
        names.map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        play(&mut leader, &mut world),
        ["B~q0000", "B~q0001", "B~q0001/1"],
        "one has groups, one a task"
    );
    leader.hold = |_| false;
    assert_eq!(play(&mut leader, &mut world), ["B~q0001", "B~q0001/1"]);
    assert!(
        !world.znodes.contains_key("/z/groups/B~q0000") && world.znodes.contains_key("/z/groups/B~q0001")
    );
}

#[test]
fn what_stands_apart_is_read_after_the_pages_were_taken_over() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    let mut leader = master("m");
    leader.hold = |call| matches!(call, Call::Children { path } if path == "/z/workers");
    leader.connect(&mut world);
    assert!(!leader.role.tasks.hears_of_groups() && world.znodes.contains_key("/z/status"));
    leader.hold = |_| false;
    leader.go(&mut world);
    assert!(leader.role.tasks.hears_of_groups() && leader.role.tasks.is_complete());
}

/// What this leader gave out it knew, so it is gone if it is not known any more; of what an earlier one gave out its end is
/// told.
#[test]
fn what_ends_while_others_are_being_read_makes_room_at_once() {
    let mut world = both_trees(2);
    put(&mut world, "batches", "B~q0000", &["1", "2"]);
    page(&mut world, "w~1", &[("B~q0000/1", 1, false)]);
    let mut leader = master("m");
    leader.hold = |call| matches!(call, Call::Children { path } if path == "/z/batches");
    leader.connect(&mut world);
    task(&mut world, "_00/a", |_| {});
    task(&mut world, "_00/b", |_| {});
    task(&mut world, "_00/c", |_| {});
    leader.go(&mut world);
    let given = |world: &World| {
        let page = world.page("/z/assign/w~1").into_iter();
        page.filter(|(_, _, revoked)| !revoked).map(|(task, ..)| task).collect::<Vec<_>>()
    };
    assert_eq!(given(&world), ["B~q0000/1", "_00/a"]);
    world.remove("/z/tasks/_00/a");
    leader.go(&mut world);
    assert_eq!(given(&world), ["B~q0000/1", "_00/b"]);
    world.remove("/z/batches/B~q0000/1");
    leader.go(&mut world);
    assert_eq!(given(&world), ["_00/b", "_00/c"]);
    assert!(!leader.role.tasks.is_complete());
    leader.hold = |_| false;
    leader.go(&mut world);
    assert!(leader.role.tasks.is_complete() && leader.role.table.len() == 3);
}
