//! What a batch makes of groups, and of copies: it is told by groups, and whatever is wrong with either costs no outcome.

use super::*;
use crate::contract::copies::{Copies, MAX_COPIES, ended_name};
use crate::contract::worker::Seen;
use crate::contract::{Incarnation, name_of};
use crate::roles::submitter::batch::windows::{MAX_AHEAD, RUSH};

pub(super) const PART: &str = "/z/batches/B~q0000";

fn beside(n: u64) -> String {
    place("B~q0000", n)
}

fn place(dir: &str, n: u64) -> String {
    format!("/z/groups/{dir}/{}", ended_name(&Incarnation::new("w", 7), n))
}

pub(super) fn is_task_read(call: &Call) -> bool {
    is_get(call) && call.path().starts_with(PART) && !is_copies(name_of(call.path()))
}

/// A worker writes the outcomes of these tasks as a group.
pub(super) fn group(desk: &mut Desk<Batch>, n: u64, paths: &[String]) {
    let seen = |path: &String| {
        let (mut task, stat) = (desk.task(path), &desk.znodes[path].1);
        task.outcome = Some(done());
        (name_of(path).to_string(), Seen::of(&task.encode(), stat).expect("small"))
    };
    let group = Copies::new(paths.iter().map(seen).collect());
    let place = place(paths[0].split('/').nth(3).expect("a part"), n);
    desk.put(&place, b"{}");
    desk.put(&place, &group.encode());
}

/// A batch whose tasks all stand.
pub(super) fn grouped(lines: u64) -> (Desk<Batch>, Vec<String>) {
    let desk = waiting(params(lines));
    assert!(Job::decode(&desk.znodes[PART].0).expect("job").copies);
    let tasks = tasks(&desk);
    assert_eq!(tasks.len() as u64, lines);
    (desk, tasks)
}

#[test]
fn what_stands_in_groups_is_shown_and_deleted_unread() {
    let (mut desk, tasks) = grouped(2_000);
    for (n, some) in tasks[..1_280].chunks(MAX_COPIES).enumerate() {
        group(&mut desk, n as u64, some);
        desk.settle();
    }
    assert_eq!(desk.count(is_task_read), 0);
    assert_eq!((desk.ended().len(), desk.count(is_delete)), (1_280, 1_280));
    assert_eq!(self::tasks(&desk).len(), 720, "what was shown is gone");
    for path in &tasks[1_280..] {
        desk.end(path, done());
    }
    pass(&mut desk, 3_000);
    assert_eq!((desk.exit, desk.count(is_task_read)), (Some(0), 720));
    assert_eq!(summary(&desk), Progress { submitted: 2_000, done: 2_000, failed: 0, total: 2_000 });
}

#[test]
fn what_was_changed_after_its_outcome_is_deleted_if_it_is_still_at_that_attempt() {
    let (mut desk, tasks) = grouped(100);
    let change = |desk: &mut Desk<Batch>, path: &str, change: fn(&mut Task)| {
        let mut task = desk.task(path);
        change(&mut task);
        desk.put(path, &task.encode());
    };
    group(&mut desk, 1, &tasks);
    desk.settle_until(is_delete);
    change(&mut desk, &tasks[0], |task| task.cancel = true);
    change(&mut desk, &tasks[1], |task| task.outcome = Some(done()));
    change(&mut desk, &tasks[2], |task| task.attempt = 2);
    desk.settle();
    assert_eq!((desk.exit, desk.ended().len()), (Some(0), 100));
    assert_eq!(self::tasks(&desk), [tasks[2].clone()], "somebody has that run again");
    assert!(desk.logged("0000002 was changed by someone after its outcome"));
}

#[test]
fn a_group_may_tell_of_what_is_not_known_to_stand_yet() {
    let mut desk = desk(params(100));
    desk.connect();
    desk.settle_until(|call| is_create(call) && call.path() == format!("{PART}/0000050"));
    let create = desk.pending[0].1.clone();
    drop(desk.apply(&create));
    let early = create.path().to_string();
    group(&mut desk, 1, std::slice::from_ref(&early));
    desk.tell();
    // What was read of the group comes before the answer to that create.
    let is_group = |call: &Call| is_get(call) && is_copies(name_of(call.path()));
    let at = desk.pending.iter().position(|(_, call)| is_group(call)).expect("it is being read");
    let read = desk.pending.remove(at).expect("just found");
    desk.pending.push_front(read);
    desk.play(Fate::Answered);
    assert_eq!(desk.ended(), [], "nobody knows that it stands");
    desk.settle();
    assert_eq!(desk.ended(), [(format!("B~q0000/{}", name_of(&early)), State::Done)]);
}

#[test]
fn a_lost_connection_loses_no_group() {
    let (mut desk, tasks) = grouped(1_000);
    for (n, some) in tasks.chunks(200).enumerate() {
        group(&mut desk, n as u64, some);
    }
    desk.tell();
    assert!(desk.pending.iter().any(|(_, call)| is_copies(name_of(call.path()))));
    desk.lose();
    desk.connect();
    desk.settle();
    assert_eq!((desk.exit, desk.ended().len()), (Some(0), 1_000));
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
    pass(&mut desk, 3_000);
    assert_eq!(desk.exit, Some(0));
}

#[test]
fn bad_groups_cost_no_outcome() {
    let (mut desk, tasks) = grouped(2_000);
    let mut group = Copies::new(std::collections::BTreeMap::new());
    // What has not ended, is no task, is none of ours, or stands nowhere.
    let lie = |data: &str| Seen { data: data.into(), version: 0, mzxid: 0 };
    let (data, stat) = &desk.znodes[&tasks[0]];
    group.tasks.insert(name_of(&tasks[0]).into(), Seen::of(data, stat).expect("small"));
    group.tasks.insert(name_of(&tasks[1]).into(), lie("garbage"));
    group.tasks.insert("x".into(), lie("{}"));
    group
        .tasks
        .insert("0003999".into(), lie(r#"{"v":1,"command":"x","outcome":{"state":"done","attempt":1}}"#));
    for n in 1..=3 {
        desk.put(&beside(n), b"");
    }
    desk.put(&beside(1), &group.encode());
    desk.put(&beside(2), b"garbage");
    desk.put(&beside(3), b"{}");
    desk.remove(&beside(3));
    desk.settle();
    assert!(desk.ended().is_empty() && desk.exit.is_none());
    for path in &tasks {
        desk.end(path, done());
    }
    pass(&mut desk, 3_000);
    assert_eq!((desk.exit, desk.ended().len(), desk.count(is_task_read)), (Some(0), 2_000, 2_000));
}

#[test]
fn a_batch_whose_tasks_end_quickly_does_not_run_far_ahead_of_them_and_one_of_slow_tasks_does() {
    let lines = MAX_AHEAD + 4_000;
    let slow = waiting(params(lines));
    assert_eq!(tasks(&slow).len() as u64, lines, "they are safe as soon as they can be");

    let mut desk = desk(params(lines));
    desk.connect();
    while desk.role.parts.pending_count() < MAX_AHEAD + 1_000 {
        assert!(desk.play(Fate::Answered));
    }
    let ended = tasks(&desk);
    for (n, some) in ended[..10 * MAX_COPIES].chunks(MAX_COPIES).enumerate() {
        group(&mut desk, n as u64, some);
    }
    desk.tell();
    let made = |desk: &Desk<Batch>| desk.count(is_create);
    let rushes = |role: &Batch| role.deleting.len() >= RUSH && role.parts.pending_count() >= MAX_AHEAD;
    let (mut turns, mut before) = (0, made(&desk));
    while desk.play(Fate::Answered) {
        let now = made(&desk);
        if rushes(&desk.role) {
            turns += 1;
            assert_eq!(now, before, "no more is made");
        }
        before = now;
    }
    assert!(turns > RUSH);
    let Some(ClientReport::Progress(progress)) = desk.reports.last() else { panic!("no progress") };
    assert_eq!((progress.submitted, progress.done), (lines, 10 * MAX_COPIES as u64));
}
