//! An older copy of the ensemble's data is restored while a worker lives.

use super::*;

/// The tasks of these names, each run to its end.
fn run(world: &mut World, desk: &mut Desk<Worker>, names: &[&str]) {
    for name in names {
        let id = format!("j/{name}");
        task(world, &id);
        assign(world, desk, &[(&id, 1, false)]);
        desk.go(world);
        end(world, desk, Ended::Exit(0));
        desk.go(world);
    }
}

/// What it is given after that is run, whatever its assignment's version.
fn still_works(world: &mut World, desk: &mut Desk<Worker>, what: &str) {
    world.pass(Duration::from_millis(100));
    desk.go(world);
    task(world, "j/new");
    assign(world, desk, &[("j/new", 1, false)]);
    desk.go(world);
    assert_eq!(desk.runs.len(), 1, "{what}: {:?}", desk.logs);
    end(world, desk, Ended::Exit(0));
    desk.go(world);
    assert!(world.task("/z/tasks/j/new").outcome.is_some(), "{what}: {:?}", desk.logs);
}

/// The worker was idle: its registration and its assignment are in the copy, with an earlier version.
#[test]
fn a_worker_whose_assignment_went_back_starts_a_new_incarnation() {
    for new_epoch in [false, true] {
        let mut world = World::new();
        let mut desk = worker(|_| {});
        desk.connect(&mut world);
        let before = desk.role.registrar.incarnation().clone();
        let copy = world.copy();
        run(&mut world, &mut desk, &["a", "b", "c"]);
        desk.lose(&mut world, |_| true);
        world.restore(copy, new_epoch);
        desk.connect(&mut world);
        assert_ne!(*desk.role.registrar.incarnation(), before, "{:?}", desk.logs);
        let warned = desk.logs.iter().any(|line| line.contains("data went back"));
        assert_eq!(warned, !new_epoch, "numbers that grow on prove nothing: {:?}", desk.logs);
        still_works(&mut world, &mut desk, "restored");
    }
}

/// Everything is gone.
#[test]
fn a_worker_whose_ensemble_was_wiped_starts_a_new_incarnation() {
    let mut world = World::new();
    let mut desk = worker(|_| {});
    desk.connect(&mut world);
    run(&mut world, &mut desk, &["a"]);
    desk.lose(&mut world, |_| true);
    world.restore((BTreeMap::new(), 0), false);
    desk.connect(&mut world);
    still_works(&mut world, &mut desk, "wiped");
}

/// A leader that was faster has written the assignment beyond the version that was seen last. It says that a task of
/// which the worker remembers the end is to be run: the end was lost.
#[test]
fn a_task_that_is_pending_again_after_a_restore_runs_again() {
    let mut world = World::new();
    let mut desk = worker(|_| {});
    desk.connect(&mut world);
    task(&mut world, "j/a");
    assign(&mut world, &desk, &[("j/a", 1, false)]);
    let copy = world.copy();
    desk.go(&mut world);
    end(&world, &mut desk, Ended::Exit(0));
    desk.go(&mut world);
    desk.lose(&mut world, |_| true);
    world.restore(copy, true);
    assign(&mut world, &desk, &[("j/a", 1, false)]);
    desk.connect(&mut world);
    assert_eq!(desk.runs.len(), 1, "{:?}", desk.logs);
}

/// In the same world as before nothing runs twice, although what had ended is looked at again, and its entry still
/// carries along what the leader had read.
#[test]
fn what_ended_is_not_run_again_by_a_worker_that_is_only_back() {
    let (mut world, mut desk) = carried(1, 1);
    run_to_its_end(&mut world, &mut desk);
    desk.lose(&mut world, |_| true);
    desk.connect(&mut world);
    assert!(desk.runs.is_empty(), "{:?}", desk.logs);
    assert!(desk.role.registrar.is_standing());
}

/// What it said of revoked entries is not said of those of a restored assignment, whose versions are others.
#[test]
fn nothing_is_confirmed_before_the_assignment_was_read_again() {
    let mut world = World::new();
    let mut desk = worker(|_| {});
    desk.connect(&mut world);
    task(&mut world, "j/a");
    assign(&mut world, &desk, &[("j/a", 1, true)]);
    desk.go(&mut world);
    assert!(desk.role.registrar.body().revoked_through.is_some());
    desk.lose(&mut world, |_| true);
    desk.hold = |call| matches!(call, Call::Get { path, .. } if path.starts_with("/z/assign"));
    desk.connect(&mut world);
    let path = registration(&desk, 1);
    let said = Registration::decode(&world.znodes[&path].data).expect("a registration");
    assert_eq!(said.revoked_through, None);
    desk.hold = |_| false;
    desk.go(&mut world);
    let said = Registration::decode(&world.znodes[&path].data).expect("a registration");
    assert!(said.revoked_through.is_some());
}
