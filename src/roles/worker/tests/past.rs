//! An older copy of the ensemble's data is restored while a worker lives.

use super::*;

/// The tasks of these names, each run to its end.
fn run(world: &mut World, driver: &mut RoleDriver<Worker>, names: &[&str]) {
    for name in names {
        let id = format!("j/{name}");
        task(world, &id);
        assign(world, driver, &[(&id, 1, false)]);
        driver.go(world);
        end(world, driver, Ended::Exit(0));
        driver.go(world);
    }
}

/// What it is given after that is run, whatever its assignment's version.
fn still_works(world: &mut World, driver: &mut RoleDriver<Worker>, what: &str) {
    world.pass(Duration::from_millis(100));
    driver.go(world);
    task(world, "j/new");
    assign(world, driver, &[("j/new", 1, false)]);
    driver.go(world);
    assert_eq!(driver.runs.len(), 1, "{what}: {:?}", driver.logs);
    end(world, driver, Ended::Exit(0));
    driver.go(world);
    assert!(world.task("/z/tasks/j/new").outcome.is_some(), "{what}: {:?}", driver.logs);
}

/// The worker was idle: its registration and its assignment are in the copy, with an earlier version.
#[test]
fn a_worker_whose_assignment_went_back_starts_a_new_incarnation() {
    for new_epoch in [false, true] {
        let mut world = World::new();
        let mut driver = worker(|_| {});
        driver.connect(&mut world);
        let before = driver.role.registrar.incarnation().clone();
        let copy = world.copy();
        run(&mut world, &mut driver, &["a", "b", "c"]);
        driver.lose(&mut world, |_| true);
        world.restore(copy, new_epoch);
        driver.connect(&mut world);
        assert_ne!(*driver.role.registrar.incarnation(), before, "{:?}", driver.logs);
        let warned = driver.logs.iter().any(|line| line.contains("data went back"));
        assert_eq!(warned, !new_epoch, "numbers that grow on prove nothing: {:?}", driver.logs);
        still_works(&mut world, &mut driver, "restored");
    }
}

/// Everything is gone.
#[test]
fn a_worker_whose_ensemble_was_wiped_starts_a_new_incarnation() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    run(&mut world, &mut driver, &["a"]);
    driver.lose(&mut world, |_| true);
    world.restore((BTreeMap::new(), 0), false);
    driver.connect(&mut world);
    still_works(&mut world, &mut driver, "wiped");
}

/// A leader that was faster has written the assignment beyond the version that was seen last. It says that a task of
/// which the worker remembers the end is to be run: the end was lost.
#[test]
fn a_task_that_is_pending_again_after_a_restore_runs_again() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    task(&mut world, "j/a");
    assign(&mut world, &driver, &[("j/a", 1, false)]);
    let copy = world.copy();
    driver.go(&mut world);
    end(&world, &mut driver, Ended::Exit(0));
    driver.go(&mut world);
    driver.lose(&mut world, |_| true);
    world.restore(copy, true);
    assign(&mut world, &driver, &[("j/a", 1, false)]);
    driver.connect(&mut world);
    assert_eq!(driver.runs.len(), 1, "{:?}", driver.logs);
}

/// In the same world as before nothing runs twice, although what had ended is read again, and its entry still
/// carries along what the leader had read.
#[test]
fn what_ended_is_not_run_again_by_a_worker_that_is_only_back() {
    let (mut world, mut driver) = carried(1, 1);
    run_to_its_end(&mut world, &mut driver);
    driver.lose(&mut world, |_| true);
    driver.connect(&mut world);
    assert!(driver.runs.is_empty(), "{:?}", driver.logs);
    assert!(driver.role.registrar.is_registered());
}

/// What it said of revoked entries is not said of those of a restored assignment, whose versions are others.
#[test]
fn nothing_is_confirmed_before_the_assignment_was_read_again() {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    task(&mut world, "j/a");
    assign(&mut world, &driver, &[("j/a", 1, true)]);
    driver.go(&mut world);
    assert!(driver.role.registrar.body().revoked_through.is_some());
    driver.lose(&mut world, |_| true);
    driver.hold = |call| matches!(call, Call::Get { path, .. } if path.starts_with("/z/assign"));
    driver.connect(&mut world);
    let path = registration(&driver, 1);
    let said = Registration::decode(&world.znodes[&path].data).expect("a registration");
    assert_eq!(said.revoked_through, None);
    driver.hold = |_| false;
    driver.go(&mut world);
    let said = Registration::decode(&world.znodes[&path].data).expect("a registration");
    assert!(said.revoked_through.is_some());
}
