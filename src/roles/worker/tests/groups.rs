//! What a worker writes in groups, and when it writes it into the tasks after all.

use super::*;
use crate::contract::copies::Copies;
use crate::contract::name_of;

const GROUPS: &str = "/z/groups/j~q0";
const JOB: &str = "/z/batches/j~q0";

/// A worker that has these tasks, of a job whose submitter takes outcomes from groups; all run.
fn working(names: &[&str]) -> (World, Desk<Worker>) {
    let mut world = World::new();
    let mut desk = worker(|params| params.slots = 20);
    desk.connect(&mut world);
    world.put(JOB, br#"{"v":1,"uniform_bytes":40,"copies":true}"#);
    world.put(GROUPS, b"");
    names.iter().for_each(|name| task(&mut world, &format!("j~q0/{name}")));
    give(&mut world, &desk, names, &[]);
    desk.go(&mut world);
    assert_eq!(desk.runs.len(), names.len());
    (world, desk)
}

/// The leader's page names these tasks, and those as revoked.
fn give(world: &mut World, desk: &Desk<Worker>, names: &[&str], revoked: &[&str]) {
    let entries = |names: &[&str], revoked| -> Vec<(String, u32, bool)> {
        names.iter().map(|name| (format!("j~q0/{name}"), 1, revoked)).collect()
    };
    let all = [entries(names, false), entries(revoked, true)].concat();
    let all: Vec<_> = all.iter().map(|(id, attempt, revoked)| (id.as_str(), *attempt, *revoked)).collect();
    assign(world, desk, &all);
}

const TEN: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "k"];

/// All that runs ends well, and what waited for company waits no more.
fn end_all(world: &mut World, desk: &mut Desk<Worker>) {
    while !desk.runs.is_empty() {
        end(world, desk, Ended::Exit(0));
    }
    world.pass(Duration::from_millis(60));
    desk.go(world);
}

/// The places that stand, and how many outcomes are in each.
fn groups(world: &World) -> Vec<usize> {
    let is_group = |path: &&String| path.starts_with(GROUPS) && name_of(path).starts_with("~ended~w~");
    let paths = world.znodes.keys().filter(is_group);
    paths.map(|path| Copies::decode(&world.znodes[path].data).expect("a group").tasks.len()).collect()
}

/// How many of the tasks have outcomes of their own.
fn written(world: &World) -> usize {
    let paths = TEN.map(|name| format!("{JOB}/{name}"));
    paths.iter().filter(|path| world.znodes.contains_key(*path) && world.task(path).outcome.is_some()).count()
}

#[test]
fn what_ends_together_is_written_as_one_and_goes_when_all_is_struck_off() {
    let (mut world, mut desk) = working(&TEN);
    end_all(&mut world, &mut desk);
    assert_eq!((groups(&world), written(&world)), (vec![10], 0));
    // The submitter takes one after the other.
    world.remove(&format!("{JOB}/a"));
    give(&mut world, &desk, &TEN[1..], &[]);
    desk.go(&mut world);
    assert_eq!(groups(&world), [10]);
    TEN[1..].iter().for_each(|name| world.remove(&format!("{JOB}/{name}")));
    give(&mut world, &desk, &[], &[]);
    desk.go(&mut world);
    world.pass(Duration::from_secs(2));
    desk.go(&mut world);
    assert!(groups(&world).is_empty());
}

#[test]
fn what_did_not_end_well_at_the_first_try_or_in_another_job_is_written_alone() {
    let (mut world, mut desk) = working(&[]);
    task(&mut world, "_00/x");
    for name in TEN {
        task(&mut world, &format!("j~q0/{name}"));
        world.change(&format!("{JOB}/{name}"), |task| task.options.max_attempts = Some(3));
    }
    let ids = TEN.map(|name| format!("j~q0/{name}"));
    let entries: Vec<_> = ids.iter().map(|id| (id.as_str(), 1, false)).chain([("_00/x", 1, false)]).collect();
    assign(&mut world, &desk, &entries);
    desk.go(&mut world);
    for _ in 0..11 {
        end(&world, &mut desk, Ended::Exit(3));
    }
    world.pass(Duration::from_millis(60));
    desk.go(&mut world);
    assert_eq!((groups(&world), written(&world)), (vec![], 0));
    assert_eq!(world.task("/z/batches/j~q0/a").attempt, 2);
    assert!(world.task("/z/tasks/_00/x").outcome.is_some());
}

#[test]
fn what_the_leader_revokes_is_written_into_the_task_before_it_is_said_to_be_dead() {
    let (mut world, mut desk) = working(&TEN);
    end_all(&mut world, &mut desk);
    desk.hold = |call| matches!(call, Call::Set { path, .. } if path == "/z/batches/j~q0/a");
    world.change("/z/batches/j~q0/a", |task| task.cancel = true);
    give(&mut world, &desk, &TEN[1..], &["a"]);
    desk.go(&mut world);
    let through = |world: &World, desk: &Desk<Worker>| {
        Registration::decode(&world.znodes[&registration(desk, 0)].data).expect("stands").revoked_through
    };
    world.pass(Duration::from_secs(3));
    desk.go(&mut world);
    assert_eq!((through(&world, &desk), written(&world)), (None, 0));
    desk.hold = |_| false;
    desk.go(&mut world);
    let outcome = world.task("/z/batches/j~q0/a").outcome.map(|outcome| outcome.state);
    assert_eq!((outcome, written(&world)), (Some(OutcomeState::Done), 1));
    world.pass(Duration::from_secs(3));
    desk.go(&mut world);
    assert!(through(&world, &desk).is_some());
}

#[test]
fn what_nobody_takes_is_written_into_the_tasks_and_then_the_group_goes() {
    let (mut world, mut desk) = working(&TEN);
    end_all(&mut world, &mut desk);
    world.pass(Duration::from_secs(5));
    desk.hold = |call| matches!(call, Call::Set { path, .. } if path == "/z/batches/j~q0/k");
    desk.go(&mut world);
    world.pass(Duration::from_secs(60));
    desk.go(&mut world);
    assert_eq!((groups(&world), written(&world)), (vec![10], 9));
    desk.hold = |_| false;
    desk.go(&mut world);
    world.pass(Duration::from_secs(2));
    desk.go(&mut world);
    assert_eq!((groups(&world), written(&world)), (vec![], 10));
}

#[test]
fn a_drained_worker_deletes_its_assignment_only_when_all_that_it_told_stands_in_the_tasks() {
    let (mut world, mut desk) = working(&TEN);
    end_all(&mut world, &mut desk);
    desk.hold = |call| matches!(call, Call::Set { path, .. } if path == "/z/batches/j~q0/k");
    desk.event(&world, Event::Stop { again: false });
    desk.go(&mut world);
    let page = desk.role.assignment();
    assert_eq!((written(&world), desk.exit), (9, None));
    assert!(world.znodes.contains_key(&page));
    desk.hold = |_| false;
    desk.go(&mut world);
    assert_eq!((written(&world), desk.exit), (10, Some(0)));
    assert!(!world.znodes.contains_key(&page));
}

#[test]
fn a_worker_whose_session_ended_writes_what_it_told_into_the_tasks_before_it_begins_anew() {
    for applied in [true, false] {
        let (mut world, mut desk) = working(&TEN);
        let last = desk.role.registrar.incarnation().clone();
        while !desk.runs.is_empty() {
            end(&world, &mut desk, Ended::Exit(0));
        }
        world.pass(Duration::from_millis(60));
        desk.hold = |call| matches!(call, Call::Set { path, .. } if path.contains("~ended~"));
        desk.go(&mut world);
        assert_eq!(groups(&world), [0]);
        let session = desk.lose(&mut world, |_| applied);
        world.expire(session);
        desk.hold = |_| false;
        desk.connect(&mut world);
        assert_eq!(written(&world), 10);
        let present = desk.role.registrar.incarnation();
        assert_ne!(*present, last);
        // The leader deletes the place.
        assert_eq!(groups(&world), [if applied { 10 } else { 0 }]);
    }
}

#[test]
fn no_more_is_started_than_may_be_without_an_outcome() {
    let mut world = World::new();
    let mut desk = worker(|params| params.slots = 20);
    desk.connect(&mut world);
    world.put(JOB, br#"{"v":1,"uniform_bytes":40,"copies":true}"#);
    let names: Vec<String> = (0..300).map(|n| format!("j/{n:03}")).collect();
    names.iter().for_each(|name| task(&mut world, name));
    let entries: Vec<_> = names.iter().map(|name| (name.as_str(), 1, false)).collect();
    assign(&mut world, &desk, &entries);
    desk.hold = |call| matches!(call, Call::Set { path, .. } if path.contains("~ended~"));
    desk.go(&mut world);
    let mut ended = 0;
    while !desk.runs.is_empty() {
        end(&world, &mut desk, Ended::Exit(0));
        ended += 1;
    }
    assert_eq!(ended, 20 + crate::contract::worker::START_AHEAD);
}

#[test]
fn a_worker_whose_lease_lapsed_writes_what_it_told_into_the_tasks_before_its_assignment_goes() {
    let (mut world, mut desk) = working(&TEN);
    let last = desk.role.registrar.incarnation().clone();
    let page = desk.role.assignment();
    // The last of them goes on.
    while desk.runs.len() > 1 {
        end(&world, &mut desk, Ended::Exit(0));
    }
    world.pass(Duration::from_millis(60));
    desk.go(&mut world);
    assert_eq!((groups(&world), written(&world)), (vec![9], 0));
    desk.hold = |call| matches!(call, Call::Set { path, .. } if path.contains("/leases/") || path == "/z/batches/j~q0/a");
    world.pass(Duration::from_secs(20));
    desk.go(&mut world);
    end_after(&world, &mut desk, Ended::Signal(9), true);
    desk.go(&mut world);
    assert_eq!(written(&world), 8);
    assert!(world.znodes.contains_key(&page), "one is not written yet");
    desk.hold = |_| false;
    desk.go(&mut world);
    assert_eq!(written(&world), 9);
    assert!(!world.znodes.contains_key(&page));
    assert_ne!(*desk.role.registrar.incarnation(), last);
}

#[test]
fn a_group_that_stands_after_its_author_gave_up_stays_until_all_is_written_alone() {
    let (mut world, mut desk) = working(&TEN);
    while desk.runs.len() > 1 {
        end(&world, &mut desk, Ended::Exit(0));
    }
    desk.hold = |call| matches!(call, Call::Set { path, .. } if path.contains("~ended~"));
    world.pass(Duration::from_millis(60));
    desk.go(&mut world);
    desk.event(&world, Event::Unguarded { why: "it was killed".into() });
    end_after(&world, &mut desk, Ended::Signal(9), true);
    desk.hold = |call| matches!(call, Call::Set { path, .. } if path.starts_with("/z/batches/j~q0/") && !path.contains("~ended~"));
    desk.go(&mut world);
    assert_eq!((groups(&world), written(&world)), (vec![9], 0));
    desk.lose(&mut world, |_| false);
    world.pass(Duration::from_secs(3));
    desk.connect(&mut world);
    assert_eq!((groups(&world), written(&world)), (vec![9], 0), "nothing else tells of them");
    desk.hold = |_| false;
    desk.go(&mut world);
    assert_eq!(written(&world), 9);
}
