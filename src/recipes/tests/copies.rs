//! Copies: many together or not at all, in znodes that take turns, and nothing twice.

use std::time::Duration;

use super::{Asked, LOST, NO_NODE, at_ms, refused};
use crate::contract::copies::{Copies, MAX_COPIES, MIN_COPIES};
use crate::contract::worker::Seen;
use crate::contract::{Incarnation, Layout, TaskId};
use crate::machine::{Actions, Call, CallId, CallResult, CreateMode, Instant, Refusal, Reply, Stat};
use crate::recipes::copies::Publisher;

struct Bench {
    publisher: Publisher,
    out: Actions<()>,
    now: Instant,
    ended: usize,
}

impl Bench {
    fn new() -> Bench {
        let mut publisher = Publisher::new(&Layout::new("/z"), &Incarnation::new("w", 7));
        publisher.want("B~0000");
        Bench { publisher, out: Actions::default(), now: at_ms(0), ended: 0 }
    }

    fn end(&mut self, count: usize, dir: &str) {
        for _ in 0..count {
            let seen = Seen { data: "{}".into(), version: 1, mzxid: 5 };
            self.publisher.add(&TaskId::new(dir, &format!("{:07}", self.ended)), seen, self.now);
            self.ended += 1;
        }
        self.publisher.pump(self.now, &mut self.out);
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        self.publisher.pump(self.now, &mut self.out);
    }

    fn answer(&mut self, id: CallId, result: &CallResult) {
        assert!(self.publisher.on_reply(id, result));
        self.publisher.pump(self.now, &mut self.out);
    }

    /// Takes the only write, answers it so, and gives its path, how many copies it has, and which version it is set on.
    fn write(&mut self, result: Option<CallResult>) -> (String, usize, Option<i32>) {
        let (id, call) = Asked::one(&mut self.out);
        let (path, data, version) = match call {
            Call::Create { path, data, mode: CreateMode::Ephemeral } => (path, data, None),
            Call::Set { path, data, version } => (path, data, Some(version)),
            other => panic!("{other:?}"),
        };
        let good = match version {
            None => Ok(Reply::Created { path: path.clone() }),
            Some(version) => Ok(Reply::Stat(Stat { version: version + 1, ..Stat::default() })),
        };
        self.answer(id, &result.unwrap_or(good));
        (path, Copies::decode(&data).expect("copies").tasks.len(), version)
    }
}

fn path(n: usize) -> String {
    format!("/z/tasks/B~0000/~ended~w~0000000000000007~{n}")
}

#[test]
fn few_are_not_told_and_many_together() {
    let mut bench = Bench::new();
    bench.end(MIN_COPIES - 1, "B~0000");
    bench.pass(1_000);
    Asked::none(&mut bench.out);
    bench.end(MIN_COPIES, "B~0000");
    Asked::none(&mut bench.out);
    bench.pass(1_000);
    assert_eq!(bench.write(None), (path(1), MIN_COPIES, None));
    bench.end(MAX_COPIES, "other");
    Asked::none(&mut bench.out);
    bench.end(MAX_COPIES + 1, "B~0000");
    assert_eq!(bench.write(None), (path(2), MAX_COPIES, None), "at once, and no more than fit");
}

#[test]
fn znodes_take_turns_and_one_that_was_meddled_with_is_left() {
    let mut bench = Bench::new();
    for n in 1..=4 {
        bench.end(MAX_COPIES, "B~0000");
        assert_eq!(bench.write(None), (path(n), MAX_COPIES, None));
    }
    bench.end(MAX_COPIES, "B~0000");
    assert_eq!(bench.write(None), (path(1), MAX_COPIES, Some(0)));
    bench.end(MAX_COPIES, "B~0000");
    assert_eq!(bench.write(Some(refused(Refusal::BadVersion))).0, path(2));
    for n in 3..=4 {
        bench.end(MAX_COPIES, "B~0000");
        assert_eq!(bench.write(None).0, path(n));
    }
    bench.end(MAX_COPIES, "B~0000");
    assert_eq!(bench.write(None), (path(1), MAX_COPIES, Some(1)));
    bench.end(MAX_COPIES, "B~0000");
    assert_eq!(bench.write(None), (path(5), MAX_COPIES, None), "no name is used twice");
}

#[test]
fn while_one_is_written_no_other_is_and_what_is_late_is_dropped() {
    let mut bench = Bench::new();
    bench.end(MAX_COPIES, "B~0000");
    let (id, _) = Asked::one(&mut bench.out);
    bench.end(MAX_COPIES, "B~0000");
    bench.end(MIN_COPIES, "B~0000");
    Asked::none(&mut bench.out);
    bench.answer(id, &Ok(Reply::Created { path: path(1) }));
    bench.pass(1_000);
    assert_eq!(bench.write(None), (path(2), MIN_COPIES, None));
}

#[test]
fn when_nothing_more_comes_the_znodes_go_and_after_a_loss_they_are_gone() {
    let mut bench = Bench::new();
    for _ in 0..2 {
        bench.end(MAX_COPIES, "B~0000");
        bench.write(None);
    }
    while let Some(at) = bench.publisher.next_wake() {
        assert!(at >= bench.now && at < at_ms(60_000));
        bench.now = at;
        bench.publisher.pump(at, &mut bench.out);
    }
    let gone: Vec<_> = Asked::of(&mut bench.out).calls.into_iter().map(|(_, call)| call).collect();
    let delete = |n| Call::Delete { path: path(n), version: None };
    assert_eq!(gone.len(), 2);
    assert!(gone.contains(&delete(1)) && gone.contains(&delete(2)));
    bench.end(MAX_COPIES, "B~0000");
    let (id, _) = Asked::one(&mut bench.out);
    bench.answer(id, &LOST);
    bench.publisher.on_lost();
    assert_eq!(bench.publisher.next_wake(), None);
    bench.end(MAX_COPIES, "B~0000");
    assert_eq!(bench.write(Some(NO_NODE)).0, path(4));
    bench.end(MAX_COPIES, "B~0000");
    bench.pass(1_000);
    Asked::none(&mut bench.out);
}
