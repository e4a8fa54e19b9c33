//! What a leader makes of groups: of the living a hint, of the dead the truth.

use std::collections::BTreeMap;

use super::*;
use crate::contract::copies::{Copies, ended_name};

const GROUPS: &str = "/z/groups/u~q0";
const JOB: &[u8] = br#"{"v":1,"uniform_bytes":40,"copies":true}"#;

fn group(n: u64) -> String {
    format!("{GROUPS}/{}", ended_name(&Incarnation::new("w", 1), n))
}

fn incarnation() -> Incarnation {
    Incarnation::new("w", 1)
}

/// The incarnation writes the outcomes of these tasks, at these attempts, as a group.
fn tell(world: &mut World, n: u64, tasks: &[(&str, u32)]) {
    let seen = |(name, attempt): &(&str, u32)| {
        let mut task = world.task(&format!("/z/batches/u~q0/{name}"));
        task.outcome = Some(outcome(*attempt));
        let data = String::from_utf8(task.encode()).expect("text");
        ((*name).to_string(), Seen { data, version: 0, mzxid: 0 })
    };
    let data = Copies::new(tasks.iter().map(seen).collect::<BTreeMap<_, _>>()).encode();
    world.put(&group(n), b"{}");
    world.put(&group(n), &data);
}

fn outcome(attempt: u32) -> Outcome {
    let mut outcome = Outcome::unrun(State::Done, None, "", attempt);
    outcome.worker = Some(incarnation());
    (outcome.started_ms, outcome.ended_ms) = (Some(1_000), Some(1_001));
    outcome
}

/// A worker with so many slots that has tasks of these names, and its session.
fn given(slots: u32, names: &[&str]) -> (World, Desk<Master>, i64) {
    let mut world = World::new();
    let session = worker(&mut world, incarnation().as_str(), slots);
    let mut master = master("m");
    master.connect(&mut world);
    world.put("/z/batches/u~q0", JOB);
    world.put(GROUPS, b"");
    for name in names {
        let task = Task::new(Payload::Shell("x".into()), Options::default());
        world.put(&format!("/z/batches/u~q0/{name}"), &task.encode());
    }
    master.go(&mut world);
    assert_eq!(held(&world), names.len().min(slots as usize));
    (world, master, session)
}

fn page_of() -> String {
    format!("/z/assign/{}", incarnation())
}

fn held(world: &World) -> usize {
    world.page(&page_of()).len()
}

fn at(world: &World, name: &str) -> (u32, u32, Option<State>) {
    let task = world.task(&format!("/z/batches/u~q0/{name}"));
    (task.attempt, task.charged, task.outcome.map(|outcome| outcome.state))
}

#[test]
fn what_the_dead_wrote_in_groups_is_written_into_the_tasks_and_only_the_rest_moves_on() {
    let (mut world, mut master, session) = given(4, &["a", "b", "c"]);
    // What it says of another attempt is of no use.
    tell(&mut world, 1, &[("a", 1), ("c", 7)]);
    world.expire(session);
    master.go(&mut world);
    assert_eq!(at(&world, "a"), (1, 0, Some(State::Done)));
    assert_eq!(world.task("/z/batches/u~q0/a").outcome, Some(outcome(1)));
    assert_eq!((at(&world, "b"), at(&world, "c")), ((2, 1, None), (2, 1, None)));
    assert!(!world.znodes.contains_key(&page_of()) && !world.znodes.contains_key(&group(1)));
}

#[test]
fn nothing_of_the_dead_moves_on_before_its_groups_are_known() {
    let (mut world, mut master, session) = given(4, &["a"]);
    tell(&mut world, 1, &[("a", 1)]);
    master.hold = |call| matches!(call, Call::Children { path } if path == GROUPS);
    world.expire(session);
    master.go(&mut world);
    world.pass(Duration::from_secs(60));
    master.go(&mut world);
    assert_eq!((at(&world, "a"), held(&world)), ((1, 0, None), 1));
    master.hold = |call| matches!(call, Call::Get { path, .. } if path.contains("~ended~"));
    master.go(&mut world);
    world.pass(Duration::from_secs(60));
    master.go(&mut world);
    assert_eq!((at(&world, "a"), held(&world)), ((1, 0, None), 1));
    // A write of the dead that was on its way comes before that of the leader, and not after it.
    let version = world.znodes[&group(1)].stat.version;
    master.hold = |call| matches!(call, Call::Set { path, .. } if path.contains("~ended~"));
    master.go(&mut world);
    assert_eq!(at(&world, "a"), (1, 0, None));
    let (data, none) = (world.znodes[&group(1)].data.clone(), Copies::new(BTreeMap::new()).encode());
    world.put(&group(1), &none);
    world.put(&group(1), &data);
    assert!(
        master.calls.iter().any(|(_, call)| matches!(call, Call::Set { version: v, .. } if *v == version))
    );
    master.hold = |_| false;
    master.go(&mut world);
    assert_eq!(at(&world, "a"), (1, 0, Some(State::Done)));
}

#[test]
fn a_new_leader_honours_groups_of_whom_it_finds_dead() {
    let (mut world, master, session) = given(4, &["a", "b"]);
    tell(&mut world, 1, &[("a", 1)]);
    world.expire(session);
    world.expire(master.session.expect("up"));
    let mut next = super::master("n");
    next.connect(&mut world);
    next.go(&mut world);
    assert_eq!((at(&world, "a"), at(&world, "b").0), ((1, 0, Some(State::Done)), 2));
    assert!(!world.znodes.contains_key(&group(1)));
}

#[test]
fn a_group_of_the_living_frees_slots_and_settles_nothing() {
    let (mut world, mut master, _) = given(2, &["a", "b", "c"]);
    tell(&mut world, 1, &[("a", 1), ("b", 7)]);
    master.go(&mut world);
    assert_eq!(held(&world), 3, "one more, beside what is not gone yet");
    assert_eq!((at(&world, "a"), at(&world, "b")), ((1, 0, None), (1, 0, None)));
    assert!(world.znodes.contains_key(&group(1)), "it is its worker's");
    world.remove("/z/batches/u~q0/a");
    master.go(&mut world);
    world.pass(Duration::from_secs(1));
    master.go(&mut world);
    assert_eq!(held(&world), 2, "struck off, and not revoked");
}

#[test]
fn what_goes_while_the_group_with_it_is_being_read_is_struck_off_and_not_revoked() {
    let (mut world, mut master, _) = given(1, &["a"]);
    tell(&mut world, 1, &[("a", 1)]);
    master.hold = |call| matches!(call, Call::Get { path, .. } if path.contains("~ended~"));
    master.go(&mut world);
    world.remove("/z/batches/u~q0/a");
    master.go(&mut world);
    world.pass(Duration::from_secs(1));
    master.go(&mut world);
    assert_eq!(world.page(&page_of()), []);
}

#[test]
fn groups_go_when_nothing_else_is_left_of_their_author() {
    let mut world = World::new();
    worker(&mut world, incarnation().as_str(), 1);
    for path in ["/z/batches", "/z/groups"] {
        world.put(path, b"");
    }
    world.put("/z/batches/u~q0", JOB);
    world.put(GROUPS, b"");
    world.put(&group(1), &Copies::new(BTreeMap::new()).encode());
    let other = format!("{GROUPS}/{}", ended_name(&Incarnation::new("gone", 3), 1));
    world.put(&other, b"garbage");
    world.put("/z/groups/u~q0/~ended~of~nobody", b"garbage");
    let mut master = master("m");
    master.connect(&mut world);
    assert!(world.znodes.contains_key(&group(1)), "it lives");
    assert!(!world.znodes.contains_key(&other));
    assert!(world.znodes.contains_key("/z/groups/u~q0/~ended~of~nobody"), "it is none");
    // A worker that drains deletes its page, and may die before it has deleted its last groups.
    world.remove(&page_of());
    world.remove(&format!("/z/workers/{}~0", incarnation()));
    master.go(&mut world);
    assert!(!world.znodes.contains_key(&group(1)));
}
