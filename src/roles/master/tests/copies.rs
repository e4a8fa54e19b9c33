//! What a leader makes of copies that were made before their tasks.

use std::collections::BTreeMap;

use super::*;
use crate::contract::copies::{Copies, ended_name, made_name};
use crate::machine::{Reply, Stat};
use crate::roles::master::copies::Copybook;

fn data(command: &str) -> Vec<u8> {
    Task::new(Payload::Shell(command.into()), Options::default()).encode()
}

/// Somebody with a session of his own makes copies of these tasks.
fn copy(world: &mut World, name: &str, tasks: &[(&str, i32)], mode: CreateMode) -> i64 {
    let session = world.open();
    let seen = |command| String::from_utf8(data(command)).expect("text");
    let copies = tasks
        .iter()
        .map(|(task, version)| ((*task).to_string(), Seen { data: seen(task), version: *version, mzxid: 0 }));
    let data = Copies::new(copies.collect::<BTreeMap<_, _>>()).encode();
    let path = format!("/z/tasks/u/{name}");
    world.apply(session, &Call::Create { path, data, mode }).expect("copies");
    session
}

/// A leader with a worker of so many slots, and a job of which no task need be read.
fn leader(slots: u32) -> (World, Desk<Master>) {
    let mut world = World::new();
    worker(&mut world, "w~1", slots);
    let mut master = master("m");
    master.connect(&mut world);
    world.put("/z/tasks/u", br#"{"v":1,"uniform_bytes":40,"copies":true}"#);
    master.go(&mut world);
    (world, master)
}

/// What the entries of w~1 carry along.
fn carried(world: &World) -> Vec<(String, Option<Seen>)> {
    let page = Assignment::decode(&world.znodes["/z/assign/w~1"].data).expect("a page");
    page.entries.into_iter().map(|entry| (entry.task.to_string(), entry.seen)).collect()
}

fn gets(master: &Desk<Master>) -> usize {
    master.calls.iter().filter(|(_, call)| matches!(call, Call::Get { .. })).count()
}

#[test]
fn what_was_copied_before_it_was_made_goes_along_unread() {
    let (mut world, mut master) = leader(3);
    let name = made_name("B", "a");
    copy(&mut world, &name, &[("a", 0), ("b", 0), ("c", 1)], CreateMode::Ephemeral);
    master.go(&mut world);
    for task in ["a", "b", "c"] {
        world.put(&format!("/z/tasks/u/{task}"), &data(task));
    }
    master.hold = |call| matches!(call, Call::Get { path, .. } if path.starts_with("/z/tasks/u/"));
    master.go(&mut world);
    assert_eq!(gets(&master), 0, "{:?}", master.calls);
    let czxid = world.znodes[&format!("/z/tasks/u/{name}")].stat.czxid;
    let seen = |task| Seen { data: String::from_utf8(data(task)).expect("text"), version: 0, mzxid: czxid };
    // The first went along in an earlier version of the page; the last had another version.
    let expected = [("u/a", None), ("u/b", Some(seen("b"))), ("u/c", None)];
    assert_eq!(carried(&world), expected.map(|(task, seen)| (task.to_string(), seen)));
}

#[test]
fn copies_that_prove_nothing_are_not_used() {
    let (mut world, mut master) = leader(1);
    // Nobody's session: it may stand for ever. Of what ended, and garbage.
    copy(&mut world, &made_name("B", "a"), &[("a", 0)], CreateMode::Persistent);
    copy(&mut world, &ended_name(&Incarnation::new("w", 1), 1), &[("b", 0)], CreateMode::Ephemeral);
    world.put(&format!("/z/tasks/u/{}", made_name("B", "c")), b"garbage");
    // Whose copies are gone before their tasks are given out.
    let session = copy(&mut world, &made_name("B", "d"), &[("d", 0)], CreateMode::Ephemeral);
    master.go(&mut world);
    world.expire(session);
    master.go(&mut world);
    for task in ["a", "b", "c", "d"] {
        let term = master.role.term.as_mut().expect("it leads");
        assert_eq!(term.copies.take(&TaskId::new("u", task)), None, "{task}");
    }
    assert!(master.logs.iter().all(|line| !line.contains('~')), "nobody is told: {:?}", master.logs);
}

#[test]
fn a_task_that_was_changed_is_not_taken_from_its_copy() {
    let (mut world, mut master) = leader(1);
    copy(&mut world, &made_name("B", "a"), &[("a", 0), ("b", 0)], CreateMode::Ephemeral);
    master.go(&mut world);
    for task in ["a", "b"] {
        world.put(&format!("/z/tasks/u/{task}"), &data(task));
    }
    master.go(&mut world);
    world.change("/z/tasks/u/b", |task| task.options.priority = Some(1));
    master.go(&mut world);
    world.remove("/z/tasks/u/a");
    master.go(&mut world);
    for _ in 0..3 {
        world.pass(Duration::from_secs(1));
        master.go(&mut world);
    }
    assert!(
        carried(&world).iter().any(|(task, seen)| task == "u/b" && seen.is_none()),
        "{:?}",
        carried(&world)
    );
}

fn one_copy() -> Vec<u8> {
    let seen = Seen { data: "{}".into(), version: 0, mzxid: 0 };
    Copies::new(BTreeMap::from([("a".to_string(), seen)])).encode()
}

/// Whether the copy of a task is used that is asked for after these steps; all may be in any order but the last.
fn is_used(steps: &[&str]) -> bool {
    let mut book = Copybook::default();
    let task = TaskId::new("u", "a");
    let mut out = Actions::default();
    let mut read = None;
    for step in steps {
        match *step {
            "told" => {
                book.on_made(&Layout::new("/z"), &format!("u/{}", made_name("B", "a")), &mut out);
                let Some(Action::Call { id, .. }) = out.drain().next() else { panic!("it is read") };
                read = Some(id);
            }
            "read" => {
                let stat = Stat { czxid: 8, ephemeral_owner: 1, ..Stat::default() };
                let answer = Ok(Reply::Data { data: one_copy(), stat });
                assert!(book.on_reply(read.take().expect("told"), &answer, Some(7)));
            }
            "born" => book.on_born(&task),
            "given out" | "changed" => drop(book.take(&task)),
            other => panic!("{other}"),
        }
    }
    book.take(&task).is_some()
}

#[test]
fn a_copy_is_used_once_for_a_task_that_came_after_it_and_that_nothing_else_happened_to() {
    assert!(is_used(&["told", "read", "born"]));
    assert!(is_used(&["told", "born", "read"]));
    assert!(!is_used(&["told", "born", "given out", "read"]), "it may be over by now");
    assert!(!is_used(&["told", "read", "born", "changed"]));
    assert!(!is_used(&["told", "read", "born", "given out"]));
    assert!(!is_used(&["born", "told", "read"]), "the copy was applied late");
    assert!(!is_used(&["told", "read"]) && !is_used(&["told", "born"]));
}

#[test]
fn copies_older_than_the_term_are_not_used() {
    let mut book = Copybook::default();
    let task = TaskId::new("u", "a");
    for (czxid, is_used) in [(6, false), (7, false), (8, true)] {
        let mut out = Actions::default();
        book.on_made(&Layout::new("/z"), &format!("u/{}", made_name("B", "a")), &mut out);
        let Some(Action::Call { id, .. }) = out.drain().next() else { panic!("it is read") };
        book.on_born(&task);
        let data = one_copy();
        let stat = Stat { czxid, ephemeral_owner: 1, ..Stat::default() };
        assert!(book.on_reply(id, &Ok(Reply::Data { data, stat }), Some(7)));
        assert_eq!(book.take(&task).is_some(), is_used, "{czxid}");
        assert_eq!(book.take(&task), None, "once");
    }
}
