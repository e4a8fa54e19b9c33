//! Which outcomes a leader deletes, and when.

use super::*;

fn failed(world: &mut World, id: &str, change: impl FnOnce(&mut Task)) {
    task(world, id, |task| {
        task.outcome = Some(Outcome::unrun(State::Failed, None, "", 1));
        change(task);
    });
}

fn exist(world: &World, ids: &[&str]) -> Vec<bool> {
    ids.iter().map(|id| world.znodes.contains_key(&format!("/z/tasks/{id}"))).collect()
}

/// Lets `n` session timeouts pass, with a turn after each.
fn turns(master: &mut RoleDriver<Master>, world: &mut World, turns: u32) {
    for _ in 0..turns {
        world.pass(T);
        master.go(world);
    }
}

#[test]
fn failed_outcomes_stay_for_the_ttl_or_up_to_the_limit() {
    let mut world = World::new();
    let mut master = master("m");
    master.role.params.max_failed = 2;
    master.connect(&mut world);
    failed(&mut world, "_00/key", |task| task.keyed = true);
    for id in ["_00/a", "_00/b", "_00/c"] {
        world.pass(Duration::from_secs(1));
        failed(&mut world, id, |_| {});
    }
    task(&mut world, "_00/good", |task| task.outcome = Some(Outcome::unrun(State::Done, None, "", 1)));
    master.go(&mut world);
    let all = ["_00/key", "_00/a", "_00/b", "_00/c", "_00/good"];
    turns(&mut master, &mut world, 1);
    assert_eq!(exist(&world, &all), [true; 5], "none of them is old enough");
    turns(&mut master, &mut world, 3);
    assert_eq!(exist(&world, &all), [true, false, true, true, true]);
    let key = world.task("/z/tasks/_00/key");
    assert!(
        key.digest.is_some() && key.outcome.is_some_and(|outcome| outcome.is_dropped()),
        "it counts as well"
    );
    assert!(world.task("/z/tasks/_00/b").digest.is_none());
    world.pass(Duration::from_secs(3_600));
    turns(&mut master, &mut world, 3);
    assert_eq!(exist(&world, &all), [false; 5]);
}

/// Its owner lets nobody else write it.
#[test]
fn what_may_not_be_shortened_is_kept_and_tried_again() {
    let mut world = World::new();
    let mut master = master("m");
    master.role.params.max_failed = 0;
    master.connect(&mut world);
    failed(&mut world, "_00/key", |task| task.keyed = true);
    world.writes_refused.insert("/z/tasks/_00/key".into(), Refusal::BadArguments);
    master.go(&mut world);
    turns(&mut master, &mut world, 4);
    assert!(world.task("/z/tasks/_00/key").digest.is_none());
    assert_eq!(view(&master).table.counts().quarantined, 0, "a task that has ended is not quarantined");
    world.writes_refused.clear();
    world.pass(Duration::from_secs(60));
    turns(&mut master, &mut world, 2);
    assert!(world.task("/z/tasks/_00/key").digest.is_some());
}

#[test]
fn lines_that_ended_badly_count_one_by_one() {
    let mut world = World::new();
    let mut master = master("m");
    master.role.params.max_failed = 3;
    master.connect(&mut world);
    for (name, lines) in [("0000000", 2), ("0000010", 2)] {
        world.pass(Duration::from_secs(1));
        let commands = vec!["x".to_string(); lines];
        let mut chunk = Task::new(Payload::Chunk { first_line: 0, commands }, Options::default());
        chunk.end(Outcome::unrun(State::Cancelled, None, "", 1));
        world.put("/z/tasks/b~0000", b"");
        world.put(&format!("/z/tasks/b~0000/{name}"), &chunk.encode());
    }
    master.go(&mut world);
    turns(&mut master, &mut world, 4);
    assert_eq!(exist(&world, &["b~0000/0000000", "b~0000/0000010"]), [false, true]);
}

#[test]
fn a_wanted_delete_waits_until_no_create_can_arrive() {
    let mut world = World::new();
    let mut master = master("m");
    master.connect(&mut world);
    turns(&mut master, &mut world, 3);
    failed(&mut world, "_00/key", |task| (task.keyed, task.delete) = (true, true));
    task(&mut world, "_00/open", |task| task.delete = true);
    master.go(&mut world);
    turns(&mut master, &mut world, 1);
    assert_eq!(exist(&world, &["_00/key", "_00/open"]), [true, true]);
    turns(&mut master, &mut world, 3);
    assert_eq!(exist(&world, &["_00/key", "_00/open"]), [false, true], "a task without an outcome stays");
}
