//! What a batch makes of copies: it is told by them, and whatever is wrong with them costs no outcome.

use super::*;
use crate::contract::copies::{Copies, MAX_COPIES, ended_name};
use crate::contract::worker::Seen;
use crate::contract::{Incarnation, name_of};

const PART: &str = "/z/tasks/B~0000";

fn beside(n: u64) -> String {
    format!("{PART}/{}", ended_name(&Incarnation::new("w", 7), n))
}

fn is_task_read(call: &Call) -> bool {
    is_get(call) && call.path().starts_with(PART) && !is_copies(name_of(call.path()))
}

/// A worker ends these tasks and makes copies of them.
fn end_and_copy(desk: &mut Desk<Batch>, n: u64, paths: &[String]) {
    for path in paths {
        desk.end(path, done());
    }
    let seen = |path: &String| {
        let (data, stat) = &desk.znodes[path];
        (name_of(path).to_string(), Seen::of(data, stat).expect("small"))
    };
    let copies = Copies::new(paths.iter().map(seen).collect());
    desk.put(&beside(n), &copies.encode());
}

/// A batch that knows that copies are made.
fn copied(lines: u64) -> (Desk<Batch>, Vec<String>) {
    let mut desk = waiting(params(lines));
    assert!(Job::decode(&desk.znodes[PART].0).expect("job").copies);
    desk.put(&beside(0), &Copies::new(std::collections::BTreeMap::new()).encode());
    desk.settle();
    let tasks = tasks(&desk);
    assert_eq!(tasks.len() as u64, lines);
    (desk, tasks)
}

#[test]
fn tasks_of_which_copies_come_are_not_read() {
    let (mut desk, tasks) = copied(2_000);
    for (n, some) in tasks[..1_280].chunks(MAX_COPIES).enumerate() {
        end_and_copy(&mut desk, n as u64, some);
        desk.settle();
    }
    assert_eq!(desk.count(is_task_read), 0);
    assert_eq!((desk.ended().len(), desk.count(is_delete)), (1_280, 1_280));
    assert_eq!(self::tasks(&desk).len(), 720, "what was shown is gone");
    for path in &tasks[1_280..] {
        desk.end(path, done());
    }
    while desk.exit.is_none() {
        desk.settle();
        desk.now = desk.role.next_wake().unwrap_or(desk.now).max(desk.now);
        if desk.exit.is_none() {
            desk.event(Event::Wake);
        }
    }
    assert_eq!((desk.exit, desk.count(is_task_read)), (Some(0), 720));
    assert_eq!(summary(&desk), Progress { submitted: 2_000, done: 2_000, failed: 0, total: 2_000 });
}

#[test]
fn copies_stand_before_the_first_of_their_tasks_is_made_and_none_are_made_again() {
    let mut desk = desk(params(2_000));
    desk.connect();
    let is_copy = |call: &Call| is_create(call) && is_copies(name_of(call.path()));
    desk.settle_until(is_copy);
    let first = desk.pending[0].1.path().to_string();
    assert_eq!(desk.count(|call| is_create(call) && call.path() == format!("{PART}/0000000")), 0);
    desk.play(Fate::Answered);
    let copied = Copies::decode(&desk.znodes[&first].0).expect("copies").tasks;
    assert_eq!(copied.len(), 250);
    desk.settle_until(|call| is_create(call) && call.path().ends_with("/0000300"));
    for (name, seen) in &copied {
        assert_eq!(desk.znodes[&format!("{PART}/{name}")].0, seen.data.as_bytes());
    }
    let made = desk.count(is_copy);
    desk.play(Fate::AppliedUnanswered);
    desk.connect();
    desk.settle();
    let again: Vec<_> = desk.made.iter().filter(|call| is_copy(call)).map(Call::path).collect();
    let once: std::collections::BTreeSet<_> = again.iter().collect();
    assert!(again.len() == once.len() && once.len() > made, "{again:?}");
    assert_eq!(tasks(&desk).len(), 2_000);
}

#[test]
fn refused_copies_hold_up_nothing() {
    let mut desk = desk(params(200));
    desk.connect();
    let is_copy = |call: &Call| is_create(call) && is_copies(name_of(call.path()));
    while desk.count(is_copy) < 1 || desk.pending.iter().any(|(_, call)| is_copy(call)) {
        let refused = desk.pending.front().is_some_and(|(_, call)| is_copy(call));
        desk.play(if refused { Fate::Refused(Refusal::NoAuth) } else { Fate::Answered });
    }
    desk.settle();
    assert_eq!(tasks(&desk).len(), 200);
    end_all(&mut desk);
    assert_eq!(desk.exit, Some(0));
}

#[test]
fn the_last_few_are_read_at_once() {
    let (mut desk, tasks) = copied(250);
    for path in &tasks {
        desk.end(path, done());
    }
    desk.settle();
    assert_eq!((desk.exit, desk.count(is_task_read)), (Some(0), 250), "without any waiting");
}

#[test]
fn bad_copies_cost_no_outcome() {
    let (mut desk, tasks) = copied(2_000);
    let mut copies = Copies::new(std::collections::BTreeMap::new());
    // What has not ended, is no task, is none of ours, or stands nowhere.
    let lie = |data: &str| Seen { data: data.into(), version: 0, mzxid: 0 };
    let (data, stat) = &desk.znodes[&tasks[0]];
    copies.tasks.insert(name_of(&tasks[0]).into(), Seen::of(data, stat).expect("small"));
    copies.tasks.insert(name_of(&tasks[1]).into(), lie("garbage"));
    copies.tasks.insert("x".into(), lie("{}"));
    copies
        .tasks
        .insert("0003999".into(), lie(r#"{"v":1,"command":"x","outcome":{"state":"done","attempt":1}}"#));
    desk.put(&beside(1), &copies.encode());
    desk.put(&beside(2), b"garbage");
    desk.put(&beside(3), b"");
    desk.remove(&beside(3));
    desk.settle();
    assert!(desk.ended().is_empty() && desk.exit.is_none());
    for path in &tasks {
        desk.end(path, done());
    }
    desk.settle();
    let mut waited = 0;
    while desk.exit.is_none() {
        desk.now = desk.role.next_wake().expect("it waits for something");
        desk.event(Event::Wake);
        desk.settle();
        waited += 1;
        assert!(waited < 10, "it waits for ever");
    }
    assert_eq!((desk.exit, desk.ended().len(), desk.count(is_task_read)), (Some(0), 2_000, 2_000));
}

#[test]
fn a_lost_connection_reads_everything_again() {
    let (mut desk, tasks) = copied(2_000);
    end_and_copy(&mut desk, 1, &tasks[..MAX_COPIES]);
    desk.tell();
    desk.lose();
    desk.connect();
    desk.settle();
    assert_eq!(desk.ended().len(), MAX_COPIES);
    assert_eq!(desk.count(is_task_read), 2_000, "what was told before is not known");
    for path in &tasks[MAX_COPIES..] {
        desk.end(path, done());
    }
    desk.settle();
    assert_eq!((desk.exit, desk.ended().len()), (Some(0), 2_000));
}
