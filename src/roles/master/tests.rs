//! The master on a few znodes: takeovers, deaths and late answers, one step at a time.

use super::*;
use crate::contract::Incarnation;
use crate::contract::task::{Options, Outcome, Payload, State, Task};
use crate::contract::worker::{Assignment, Entry, ProcessIdentity};
use crate::machine::{Call, CreateMode};
use crate::roles::testing::{Desk, T, World};

fn master(id: &str) -> Desk<Master> {
    Desk::new(Master::new(Params {
        layout: Layout::new("/z"),
        id: id.into(),
        host: "h".into(),
        pid: 1,
        uuid: format!("uuid-{id}"),
        result_ttl: Duration::from_secs(3_600),
        job_ttl: Duration::from_secs(3_600),
    }))
}

fn registration(slots: u32) -> Registration {
    Registration::new(&ProcessIdentity::default(), slots, Default::default(), 10_000)
}

/// An incarnation's assignment and its first registration, with the session that the registration goes with.
fn worker(world: &mut World, incarnation: &str, slots: u32) -> i64 {
    world.put(&format!("/z/assign/{incarnation}"), &Assignment::new(0, Vec::new()).encode());
    register(world, &format!("{incarnation}~0"), &registration(slots))
}

fn register(world: &mut World, name: &str, registration: &Registration) -> i64 {
    let session = world.open();
    let (path, data) = (format!("/z/workers/{name}"), registration.encode());
    world.apply(session, &Call::Create { path, data, mode: CreateMode::Ephemeral }).expect("registered");
    session
}

fn vouch(world: &mut World, name: &str, slots: u32, through: i32) {
    let mut said = registration(slots);
    said.revoked_through = Some(through);
    world.put(&format!("/z/workers/{name}"), &said.encode());
}

fn page(world: &mut World, incarnation: &str, entries: &[(&str, u32, bool)]) {
    let entry = |(task, attempt, revoked): &(&str, u32, bool)| Entry {
        task: TaskId::parse(task).expect("id"),
        attempt: *attempt,
        revoked: *revoked,
    };
    let data = Assignment::new(1, entries.iter().map(entry).collect()).encode();
    world.put(&format!("/z/assign/{incarnation}"), &data);
}

fn task(world: &mut World, id: &str, change: impl FnOnce(&mut Task)) {
    let mut task = Task::new(Payload::Shell("x".into()), Options::default());
    change(&mut task);
    world.put(&format!("/z/tasks/{}", id.split('/').next().expect("dir")), b"");
    world.put(&format!("/z/tasks/{id}"), &task.encode());
}

fn entry(task: &str, attempt: u32, revoked: bool) -> (String, u32, bool) {
    (task.to_string(), attempt, revoked)
}

#[test]
fn a_standby_takes_over_what_is_running() {
    let mut world = World::new();
    worker(&mut world, "w~1", 2);
    let (mut leader, mut standby) = (master("m"), master("n"));
    leader.connect(&mut world);
    standby.connect(&mut world);
    task(&mut world, "_00/a", |_| {});
    standby.go(&mut world);
    leader.go(&mut world);
    assert_eq!(world.page("/z/assign/w~1"), [entry("_00/a", 1, false)]);
    world.expire(leader.session.expect("up"));
    standby.go(&mut world);
    assert!(standby.logs.iter().any(|line| line.starts_with("leading")), "{:?}", standby.logs);
    assert_eq!(world.page("/z/assign/w~1"), [entry("_00/a", 1, false)]);
}

/// Two pages name the task: its move to the second was written, its removal from the first was not.
#[test]
fn what_the_first_of_two_pages_says_of_a_moved_task_does_not_touch_the_second() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    worker(&mut world, "w~2", 1);
    worker(&mut world, "w~3", 2);
    task(&mut world, "_00/a", |task| task.attempt = 2);
    page(&mut world, "w~1", &[("_00/a", 1, true)]);
    page(&mut world, "w~2", &[("_00/a", 2, false)]);
    let mut master = master("m");
    master.connect(&mut world);
    let version = world.znodes["/z/assign/w~1"].stat.version;
    vouch(&mut world, "w~1~0", 1, version);
    master.go(&mut world);
    assert_eq!(world.page("/z/assign/w~2"), [entry("_00/a", 2, false)], "it runs there");
    assert_eq!(world.page("/z/assign/w~3"), [], "and nowhere else");
    assert_eq!(world.page("/z/assign/w~1"), []);
}

#[test]
fn a_half_done_move_costs_no_slot() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    worker(&mut world, "w~2", 1);
    task(&mut world, "_00/a", |task| task.attempt = 2);
    task(&mut world, "_00/b", |_| {});
    page(&mut world, "w~1", &[("_00/a", 1, false)]);
    page(&mut world, "w~2", &[("_00/a", 2, false)]);
    let mut master = master("m");
    master.connect(&mut world);
    assert_eq!(world.page("/z/assign/w~1"), [entry("_00/a", 1, true)], "void: to be vouched for");
    let version = world.znodes["/z/assign/w~1"].stat.version;
    vouch(&mut world, "w~1~0", 1, version);
    master.go(&mut world);
    assert_eq!(world.page("/z/assign/w~1"), [entry("_00/b", 1, false)]);
}
