//! A batch of which something is refused for good: what was made is told.

use super::*;

/// A batch of three lines. The creation of the second is refused so, when the first stands.
fn second_refused(params: BatchParams, refusal: Refusal) -> Desk<Batch> {
    let mut desk = desk(params);
    desk.connect();
    desk.settle_until(|call| {
        is_create(call) && Task::decode(data_of(call)).is_ok_and(|task| is_second(&task))
    });
    desk.play(Fate::Refused(refusal));
    desk
}

fn data_of(call: &Call) -> &[u8] {
    match call {
        Call::Create { data, .. } => data,
        _ => &[],
    }
}

fn is_second(task: &Task) -> bool {
    task.first_line == 1
}

#[test]
fn a_too_long_line_is_named_with_what_was_created_before_it() {
    let desk = second_refused(params(3), Refusal::TooLarge);
    assert_eq!((desk.exit, tasks(&desk).len()), (Some(exit::TOO_MUCH), 1), "{:?}", desk.logs);
    for words in ["(line 2)", "jute.maxbuffer", "1 of 3 tasks", "go on", "zkmw wait B"] {
        assert!(desk.logged(words), "{words}: {:?}", desk.logs);
    }
    assert!(!desk.logged("--chunk"));
}

#[test]
fn tasks_of_a_failing_batch_are_cancelled_if_so_requested() {
    let desk = second_refused(BatchParams { orphan_cancel: true, ..params(3) }, Refusal::TooLarge);
    assert_eq!(desk.exit, Some(exit::TOO_MUCH));
    assert!(desk.logged("--orphan cancel") && !desk.logged("go on"), "{:?}", desk.logs);
}

/// Nothing stands of the only line, though its first request was in doubt: it was that request which killed the
/// connection.
#[test]
fn a_single_too_long_line_leaves_nothing() {
    let mut desk = desk(params(1));
    desk.connect();
    desk.settle_until(is_create);
    while desk.pending.front().is_some_and(|(_, call)| !call.path().contains("~0000/")) {
        desk.play(Fate::Answered);
        desk.tell();
    }
    desk.play(Fate::DroppedUnanswered);
    desk.connect();
    desk.settle_until(|call| is_create(call) && call.path().contains("~0000/"));
    desk.play(Fate::Refused(Refusal::TooLarge));
    assert_eq!(desk.exit, Some(exit::TOO_MUCH), "{:?}", desk.logs);
    assert!(desk.logged("(line 1)") && !desk.logged("for certain"), "{:?}", desk.logs);
}

#[test]
fn a_too_long_chunk_is_named_with_what_may_help() {
    let mut desk = desk(BatchParams { chunk: Some(2), ..params(4) });
    desk.connect();
    desk.settle_until(|call| is_create(call) && call.path().contains("B~0000/"));
    desk.play(Fate::Refused(Refusal::TooLarge));
    assert_eq!(desk.exit, Some(exit::TOO_MUCH), "{:?}", desk.logs);
    assert!(desk.logged("smaller --chunk"), "{:?}", desk.logs);
}
