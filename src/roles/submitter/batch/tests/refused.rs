//! A batch of which something is refused for good: what was made is reported.

use super::*;

/// A batch of three lines. The creation of the second is refused so, when the first exists.
fn second_refused(params: BatchParams, refusal: Refusal) -> ClientDriver<Batch> {
    let mut driver = driver(params);
    driver.connect();
    driver.settle_until(|call| {
        is_create(call) && Task::decode(data_of(call)).is_ok_and(|task| is_second(&task))
    });
    driver.play(Fate::Refused(refusal));
    driver
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
    let driver = second_refused(params(3), Refusal::TooLarge);
    assert_eq!((driver.exit, tasks(&driver).len()), (Some(exit::TOO_MUCH), 1), "{:?}", driver.logs);
    for words in ["(line 2)", "jute.maxbuffer", "1 of 3 tasks", "go on", "zkmw wait B"] {
        assert!(driver.logged(words), "{words}: {:?}", driver.logs);
    }
    assert!(!driver.logged("--chunk"));
}

#[test]
fn tasks_of_a_failing_batch_are_cancelled_if_so_requested() {
    let driver = second_refused(
        BatchParams { waiting: Waiting::Attached { orphan_cancel: true }, ..params(3) },
        Refusal::TooLarge,
    );
    assert_eq!(driver.exit, Some(exit::TOO_MUCH));
    assert!(driver.logged("--orphan cancel") && !driver.logged("go on"), "{:?}", driver.logs);
}

/// Nothing exists of the only line, though its first request was in doubt: it was that request which killed the
/// connection.
#[test]
fn a_single_too_long_line_leaves_nothing() {
    let mut driver = driver(params(1));
    driver.connect();
    driver.settle_until(is_create);
    while driver.pending.front().is_some_and(|(_, call)| !call.path().contains("~0000/")) {
        driver.play(Fate::Answered);
        driver.notify();
    }
    driver.play(Fate::DroppedUnanswered);
    driver.connect();
    driver.settle_until(|call| is_create(call) && call.path().contains("~0000/"));
    driver.play(Fate::Refused(Refusal::TooLarge));
    assert_eq!(driver.exit, Some(exit::TOO_MUCH), "{:?}", driver.logs);
    assert!(driver.logged("(line 1)") && !driver.logged("for certain"), "{:?}", driver.logs);
}

#[test]
fn a_too_long_chunk_is_named_with_what_may_help() {
    let mut driver = driver(BatchParams { chunk: Some(2), ..params(4) });
    driver.connect();
    driver.settle_until(|call| is_create(call) && call.path().contains("B~0000/"));
    driver.play(Fate::Refused(Refusal::TooLarge));
    assert_eq!(driver.exit, Some(exit::TOO_MUCH), "{:?}", driver.logs);
    assert!(driver.logged("smaller --chunk"), "{:?}", driver.logs);
}
