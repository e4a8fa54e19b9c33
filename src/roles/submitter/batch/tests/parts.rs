//! What the parts of a batch say, and how the size of its chunks is decided.

use super::*;

fn part(driver: &ClientDriver<Batch>, path: &str) -> Job {
    Job::decode(&driver.znodes[path].0).expect("a part")
}

#[test]
fn a_part_is_marked_complete_only_when_all_chunks_exist() {
    for detach in [false, true] {
        let mut driver = driver(BatchParams {
            waiting: if detach { Waiting::Detached } else { params(1).waiting },
            ..params(LINES_PER_PART + 10)
        });
        driver.connect();
        driver.settle_until(|call| is_create(call) && call.path().ends_with("~0000/0003999"));
        assert_eq!(driver.count(is_set), 0);
        let early = part(&driver, "/z/tasks/B~0000");
        assert_eq!((early.chunk, early.lines, early.made), (Some(1), Some(LINES_PER_PART), false));
        driver.settle();
        let [first, last] = ["/z/tasks/B~0000", "/z/tasks/B~0001"].map(|path| part(&driver, path));
        assert_eq!((first.lines, first.made), (Some(LINES_PER_PART), true));
        assert_eq!((last.lines, last.made, last.options.priority), (Some(10), true, Some(3)));
        assert_eq!((driver.count(is_set), driver.exit), (2, detach.then_some(0)));
    }
}

#[test]
fn marking_a_part_complete_keeps_what_others_wrote_there() {
    let mut driver = driver(params(5));
    driver.connect();
    driver.settle_until(is_set);
    driver.put("/z/tasks/B~0000", br#"{"v":1,"chunk":1,"priority":3,"colour":"red"}"#);
    driver.settle();
    let part = String::from_utf8(driver.znodes["/z/tasks/B~0000"].0.clone()).expect("text");
    assert!(part.contains(r#""colour":"red""#) && part.contains(r#""made":true"#), "{part}");
    // A part that is gone has nothing to say, and one that may not be written costs a warning.
    for (fate, warned) in [(Refusal::NoNode, false), (Refusal::NoAuth, true)] {
        let mut driver = self::driver(params(5));
        driver.connect();
        driver.settle_until(is_set);
        driver.play(Fate::Refused(fate));
        end_all(&mut driver);
        assert_eq!((driver.exit, driver.logged("cannot mark /z/tasks/B~0000")), (Some(0), warned));
    }
}

#[test]
fn a_batch_that_is_interrupted_leaves_its_part_incomplete() {
    let mut driver = driver(BatchParams { cancel_on_interrupt: true, ..params(1_000) });
    driver.connect();
    driver.settle_until(|call| is_create(call) && call.path().ends_with("0000300"));
    driver.event(Event::Stop { again: false });
    driver.settle();
    for path in tasks(&driver) {
        driver.end(&path, Outcome::unrun(State::Cancelled, None, "", 1));
    }
    driver.settle();
    assert_eq!((driver.exit, part(&driver, "/z/tasks/B~0000").made), (Some(1), false));
}

/// The size of chunks is decided when it is known how many slots there are, and for a key by who came first.
#[test]
fn the_chunk_size_follows_lines_and_slots_or_the_keys_first_run() {
    let of = |driver: &ClientDriver<Batch>, path: &str| part(driver, path).chunk;
    let with_slots = |slots: u32, params: BatchParams| {
        let mut driver = driver(BatchParams { chunk: None, ..params });
        let mut status = Status::decode(&status(0, 0, 1 << 20, 1 << 30)).expect("status");
        status.slots = slots;
        driver.put(STATUS, &status.encode());
        driver
    };
    let run = |mut driver: ClientDriver<Batch>| {
        driver.connect();
        driver.settle();
        driver
    };
    let small = run(with_slots(4, params(640)));
    assert_eq!((of(&small, "/z/tasks/B~0000"), tasks(&small).len()), (Some(10), 64));
    assert_eq!(of(&run(with_slots(1, params(5_000))), "/z/tasks/B~0000"), Some(100));
    assert_eq!(of(&run(with_slots(0, params(640))), "/z/tasks/B~0000"), Some(5), "as if there were eight");
    let first = run(with_slots(4, keyed(640)));
    for (slots, chunk) in [(1, None), (400, Some(10))] {
        let mut again = with_slots(slots, keyed(640));
        again.role.plan.chunk = chunk;
        again.znodes.extend(first.znodes.clone());
        let again = run(again);
        assert_eq!((of(&again, "/z/tasks/K~0000"), again.exit), (Some(10), None), "{:?}", again.logs);
        assert_eq!(tasks(&again).len(), 64);
    }
    // One number for the whole batch, whatever happens meanwhile.
    let mut lost = with_slots(4, keyed(640));
    lost.connect();
    lost.settle_until(|call| is_create(call) && call.path().ends_with("/0000100"));
    lost.lose();
    let mut other = Status::decode(&status(0, 0, 1 << 20, 1 << 30)).expect("status");
    other.slots = 1;
    lost.put(STATUS, &other.encode());
    let lost = run(lost);
    assert_eq!((tasks(&lost).len(), of(&lost, "/z/tasks/K~0000")), (64, Some(10)));
}

#[test]
fn a_part_of_another_batch_or_kind_is_refused() {
    for (data, words) in [
        (r#"{"v":1,"priority":3}"#, "was not made for chunks"),
        (r#"{"v":1,"priority":3,"chunk":1,"lines":4}"#, "it has 4 lines, not 3"),
        (r#"{"v":1,"priority":3,"chunk":2}"#, "say --chunk 2"),
    ] {
        let mut driver = driver(keyed(3));
        driver.put("/z/tasks/K~0000", data.as_bytes());
        driver.connect();
        driver.settle();
        assert!(driver.exit == Some(exit::DATA) && driver.logged(words), "{words}: {:?}", driver.logs);
    }
    // A size that somebody else chose need not fit.
    let mut driver = driver(BatchParams { chunk: None, ..keyed(3) });
    for line in &mut driver.lines {
        line.text = "x".repeat(100_000);
    }
    driver.put("/z/tasks/K~0000", br#"{"v":1,"priority":3,"chunk":500}"#);
    driver.connect();
    driver.settle();
    assert!(
        driver.exit == Some(exit::DATA) && driver.logged("(lines 1 to 500): the chunk has"),
        "{:?}",
        driver.logs
    );
}
