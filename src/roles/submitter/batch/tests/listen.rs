//! A large batch is told by groups alone, and hears of the rest in time.

use super::groups::{PART, group, grouped, is_task_read};
use super::*;
use crate::contract::copies::MAX_COPIES;
use crate::roles::submitter::batch::listen::{FEW, LONG, SILENCE};

fn is_heard(desk: &Desk<Batch>, part: &str) -> bool {
    desk.made.iter().any(|call| matches!(call, Call::Watch { path, .. } if path == part))
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("short")
}

/// After how many milliseconds, in which groups tell of these tasks all the time, the first part is heard of.
fn heard_after(desk: &mut Desk<Batch>, tasks: &[String]) -> u64 {
    let mut groups = tasks.chunks(100).enumerate();
    let mut waited = 0;
    while !is_heard(desk, PART) {
        let (n, some) = groups.next().expect("in time");
        group(desk, n as u64, some);
        desk.settle();
        pass(desk, 500);
        waited += 500;
    }
    waited
}

#[test]
fn when_no_group_tells_anything_what_is_pending_is_looked_at_once_and_heard_of() {
    let (mut desk, tasks) = grouped(2_000);
    for (n, some) in tasks[..1_280].chunks(MAX_COPIES).enumerate() {
        pass(&mut desk, 200);
        group(&mut desk, n as u64, some);
        desk.settle();
        assert!(!is_heard(&desk, PART), "groups tell");
    }
    pass(&mut desk, millis(SILENCE) - 1);
    assert_eq!((is_heard(&desk, PART), desk.count(is_task_read)), (false, 0));
    pass(&mut desk, 1);
    assert_eq!((is_heard(&desk, PART), desk.count(is_task_read)), (true, 720));
    desk.end(&tasks[1_999], done());
    desk.settle();
    assert_eq!((desk.ended().len(), desk.count(is_task_read)), (1_281, 721), "it is heard of at once");
}

#[test]
fn the_last_few_are_heard_of_at_once() {
    let (mut desk, tasks) = grouped(1_000);
    let last = tasks.len() - FEW as usize;
    for (n, some) in tasks[..last - 1].chunks(100).enumerate() {
        group(&mut desk, n as u64, some);
    }
    desk.settle();
    assert!(!is_heard(&desk, PART));
    group(&mut desk, 99, &tasks[last - 1..last]);
    desk.settle();
    assert_eq!((is_heard(&desk, PART), desk.count(is_task_read)), (true, FEW as usize));
}

#[test]
fn what_groups_leave_out_is_heard_of_however_much_they_tell() {
    let (mut desk, tasks) = grouped(3_000);
    desk.end(&tasks[2_999], done());
    assert_eq!(heard_after(&mut desk, &tasks), millis(LONG));
    assert!(desk.ended().iter().any(|(id, _)| id.ends_with("2999")));
}

#[test]
fn while_no_group_tells_anything_new_parts_are_heard_of_from_the_beginning() {
    let mut late = desk(params(2 * LINES_PER_PART));
    late.connect();
    late.settle_until(|call| is_create(call) && call.path().ends_with("/0000300"));
    late.now = late.now + SILENCE;
    late.event(Event::Wake);
    late.settle();
    assert!(is_heard(&late, PART) && is_heard(&late, "/z/batches/B~q0001"));
    let in_second = |call: &Call| is_get(call) && call.path().starts_with("/z/batches/B~q0001/");
    assert!((300..1_500).contains(&late.count(is_task_read)), "what stood by then is looked at");
    assert_eq!(
        (late.count(in_second), tasks(&late).len() as u64),
        (0, 2 * LINES_PER_PART),
        "and nothing else"
    );
}

#[test]
fn a_small_batch_and_one_that_is_cancelled_hear_of_all() {
    assert!(is_heard(&waiting(params(FEW)), PART));
    let mut desk = waiting(BatchParams { cancel_on_interrupt: true, ..params(FEW + 1) });
    assert!(!is_heard(&desk, PART));
    desk.event(Event::Stop { again: false });
    desk.settle();
    let cancelled = tasks(&desk).iter().filter(|path| desk.task(path).cancel).count();
    assert_eq!((is_heard(&desk, PART), cancelled as u64), (true, FEW + 1));
}

#[test]
fn a_group_that_is_still_being_read_is_no_silence() {
    let (mut desk, tasks) = grouped(1_000);
    group(&mut desk, 1, &tasks[..100]);
    desk.tell();
    desk.now = desk.now + SILENCE;
    desk.event(Event::Wake);
    desk.settle();
    assert_eq!((is_heard(&desk, PART), desk.ended().len()), (false, 100));
}

/// Its outcome was told to nobody, and it was not known to stand when what is pending was read.
#[test]
fn what_ended_while_it_was_being_created_is_looked_at() {
    let mut desk = desk(params(1_000));
    desk.connect();
    desk.settle_until(|call| is_create(call) && call.path().ends_with("/0000500"));
    let (id, create) = desk.pending.pop_front().expect("the create");
    let result = desk.apply(&create);
    desk.end(create.path(), done());
    desk.now = desk.now + SILENCE;
    desk.event(Event::Wake);
    desk.settle();
    assert!(is_heard(&desk, PART) && desk.ended().is_empty());
    desk.event(Event::Reply { id, result });
    desk.settle();
    assert_eq!(desk.ended(), [("B~q0000/0000500".to_string(), State::Done)]);
}

#[test]
fn a_part_that_groups_pass_over_is_heard_of_as_well() {
    let (mut desk, tasks) = grouped(LINES_PER_PART + 3_000);
    assert_eq!(heard_after(&mut desk, &tasks[LINES_PER_PART as usize..]), millis(LONG));
}
