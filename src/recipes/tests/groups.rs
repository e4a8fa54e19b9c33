//! Groups: many together or each alone, and deleted only when nothing in them is needed any more.

use std::time::Duration;

use super::{Asked, LOST, at_ms, refused};
use crate::contract::copies::{Copies, MAX_COPIES};
use crate::contract::worker::Seen;
use crate::contract::{Incarnation, Layout, TaskId};
use crate::machine::{Actions, Call, CallId, CallResult, CreateMode, Instant, Refusal, Reply, Stat};
use crate::recipes::groups::{Groups, Step};

/// So many are written at once.
const N: usize = 96;

const DIR: &str = "B~q0000";
const T: Duration = Duration::from_secs(10);
const STALE: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(2);

struct Bench {
    groups: Groups,
    out: Actions<()>,
    now: Instant,
    ended: usize,
    /// What is to be written alone.
    alone: Vec<TaskId>,
}

impl Bench {
    fn new() -> Bench {
        let mut groups = Groups::new(&Layout::new("/z"), &Incarnation::new("w", 7));
        groups.want(DIR);
        let mut out = Actions::default();
        groups.on_connected(T, &mut out);
        Bench { groups, out, now: at_ms(0), ended: 0, alone: Vec::new() }
    }

    fn end(&mut self, count: usize) {
        for _ in 0..count {
            let seen = Seen { data: "{}".into(), version: 1, mzxid: 5 };
            self.groups.add(&task(self.ended), seen);
            self.ended += 1;
        }
        self.pass(0);
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        self.alone.extend(self.groups.pump(self.now, &mut self.out));
    }

    fn answer(&mut self, id: CallId, result: &CallResult) -> Step {
        let step = self.groups.on_reply(id, result, self.now, &mut self.out).expect("ours");
        self.pass(0);
        step
    }

    /// The only call: a group being written, into this place. Gives how many outcomes are in it.
    fn writes(&mut self, number: usize) -> (CallId, i32, usize) {
        let (id, call) = Asked::one(&mut self.out);
        let Call::Set { path, data, version } = call else { panic!("{call:?}") };
        assert_eq!(path, self::path(number));
        (id, version, Copies::decode(&data).expect("a group").tasks.len())
    }

    /// The only call: a place is made. It stands.
    fn makes(&mut self, number: usize) {
        let (id, call) = Asked::one(&mut self.out);
        let Call::Create { path, data, mode: CreateMode::Persistent } = call else { panic!("{call:?}") };
        assert_eq!((path, Copies::decode(&data).expect("none yet").tasks.len()), (self::path(number), 0));
        assert_eq!(self.answer(id, &Ok(Reply::Created { path: String::new() })), Step::Written(Vec::new()));
    }

    /// A group of so many is being written into this place, over this version, and stands.
    fn stands(&mut self, number: usize, count: usize, version: i32) {
        let (id, over, of) = self.writes(number);
        assert_eq!((over, of), (version, count));
        let Step::Written(tasks) = self.answer(id, &written(version + 1)) else { panic!("it stands") };
        assert_eq!(tasks.len(), count);
    }

    fn settle(&mut self, tasks: std::ops::Range<usize>) {
        for n in tasks {
            self.groups.settled(&task(n), &mut self.out);
        }
    }

    /// The only call is the deletion of this group.
    fn deletes(&mut self, number: usize) -> CallId {
        let (id, call) = Asked::one(&mut self.out);
        assert_eq!(call, Call::Delete { path: path(number), version: None });
        id
    }

    fn is_quiet(&self) -> bool {
        self.out.is_empty()
    }
}

fn task(n: usize) -> TaskId {
    TaskId::new(DIR, &format!("{n:07}"))
}

fn path(n: usize) -> String {
    format!("/z/groups/B~q0000/~ended~w~0000000000000007~{n}")
}

fn written(version: i32) -> CallResult {
    Ok(Reply::Stat(Stat { version, ..Stat::default() }))
}

/// One group stands, in the first place.
fn standing() -> Bench {
    let mut bench = Bench::new();
    bench.end(N);
    bench.makes(1);
    bench.stands(1, N, 0);
    bench
}

#[test]
fn few_are_written_alone_and_many_together() {
    let mut bench = Bench::new();
    bench.end(7);
    assert!(bench.is_quiet() && bench.groups.unwritten() == 7);
    bench.pass(50);
    assert_eq!((bench.alone.len(), bench.groups.unwritten()), (7, 0));
    bench.end(8);
    assert!(bench.is_quiet(), "more may come");
    bench.pass(50);
    assert_eq!(bench.groups.unwritten(), 8);
    bench.makes(1);
    bench.stands(1, 8, 0);
    assert_eq!((bench.alone.len(), bench.groups.unwritten()), (7, 0));
    bench.end(N);
    bench.makes(2);
    bench.stands(2, N, 0);
}

#[test]
fn what_ends_while_two_are_written_gathers_for_the_next() {
    let mut bench = Bench::new();
    bench.end(N);
    bench.makes(1);
    let (first, ..) = bench.writes(1);
    bench.end(N);
    bench.makes(2);
    let (second, ..) = bench.writes(2);
    bench.end(MAX_COPIES + 9);
    bench.makes(3);
    bench.pass(400);
    assert!(bench.is_quiet());
    assert_eq!(bench.groups.next_wake(), Some(at_ms(550)), "it is not put off for ever");
    assert!(matches!(bench.answer(second, &written(1)), Step::Written(tasks) if tasks.len() == N));
    bench.stands(3, MAX_COPIES, 0);
    bench.pass(50);
    bench.makes(4);
    bench.stands(4, 9, 0);
    assert!(matches!(bench.answer(first, &written(1)), Step::Written(tasks) if tasks.len() == N));
    assert!(bench.alone.is_empty());
}

#[test]
fn what_groups_are_too_slow_for_is_written_alone() {
    let mut bench = Bench::new();
    for number in 1..=2 {
        bench.end(N);
        bench.makes(number);
        bench.writes(number);
    }
    bench.end(N);
    bench.makes(3);
    bench.pass(549);
    assert!(bench.alone.is_empty());
    bench.pass(1);
    assert_eq!(bench.alone.len(), N);
}

#[test]
fn a_place_is_written_over_when_all_of_its_group_is_settled_and_not_before() {
    let mut bench = standing();
    bench.settle(0..N - 1);
    bench.end(N);
    bench.makes(2);
    bench.stands(2, N, 0);
    bench.settle(N - 1..N);
    bench.end(N);
    bench.stands(1, N, 1);
}

#[test]
fn a_place_goes_when_nothing_was_written_into_it_for_a_while() {
    let mut bench = standing();
    bench.settle(0..N);
    bench.pass(0);
    assert_eq!(bench.groups.next_wake(), Some(bench.now + IDLE));
    bench.pass(2_000);
    let id = bench.deletes(1);
    // In doubt: again on the next connection.
    assert_eq!(bench.answer(id, &LOST), Step::Written(Vec::new()));
    assert!(bench.groups.on_lost().is_empty());
    bench.groups.on_connected(T, &mut bench.out);
    let id = bench.deletes(1);
    bench.answer(id, &Ok(Reply::Deleted));
    bench.groups.on_connected(T, &mut bench.out);
    assert!(bench.is_quiet() && bench.groups.next_wake().is_none());
}

#[test]
fn a_task_may_be_settled_before_its_group_is_known_to_stand() {
    let mut bench = Bench::new();
    bench.end(N);
    bench.makes(1);
    let (id, ..) = bench.writes(1);
    bench.settle(0..N);
    assert_eq!(bench.answer(id, &written(1)), Step::Written(Vec::new()));
    bench.end(N);
    bench.stands(1, N, 1);
}

#[test]
fn what_nobody_takes_is_written_alone_and_the_place_is_used_after_that() {
    let mut bench = standing();
    bench.settle(0..N - 4);
    assert_eq!(bench.groups.next_wake(), Some(bench.now + STALE));
    bench.pass(4_999);
    assert!(bench.alone.is_empty());
    bench.pass(1);
    assert_eq!(bench.alone.len(), 4);
    bench.pass(60_000);
    assert!(bench.alone.len() == 4 && bench.is_quiet() && bench.groups.next_wake().is_none());
    bench.settle(N - 4..N);
    bench.end(N);
    bench.stands(1, N, 1);
}

#[test]
fn a_lost_connection_leaves_what_is_not_known_to_stand_to_be_written_alone() {
    let mut bench = standing();
    bench.end(N);
    bench.makes(2);
    let (id, ..) = bench.writes(2);
    bench.end(3);
    let Step::Alone(tasks) = bench.answer(id, &LOST) else { panic!("it is in doubt") };
    assert_eq!(tasks.len(), N);
    assert_eq!(bench.groups.on_lost().len(), 3);
    assert_eq!(bench.groups.unwritten(), 0);
    bench.groups.on_connected(T, &mut bench.out);
    bench.settle(N..2 * N);
    bench.settle(0..1);
    bench.pass(0);
    assert!(bench.is_quiet(), "it may come to be written yet");
    bench.pass(19_999);
    assert_eq!((bench.alone.len(), bench.is_quiet()), (N - 1, true));
    bench.pass(1);
    let id = bench.deletes(2);
    // It may stand, or not.
    bench.answer(id, &refused(Refusal::NoNode));
    bench.settle(1..N);
    bench.pass(0);
    bench.pass(2_000);
    bench.deletes(1);
}

#[test]
fn where_no_place_may_be_made_all_is_written_alone() {
    let mut bench = Bench::new();
    bench.end(N);
    let (id, _) = Asked::one(&mut bench.out);
    assert_eq!(bench.answer(id, &refused(Refusal::NoAuth)), Step::Alone(Vec::new()));
    assert_eq!(bench.alone.len(), N);
    assert!(!bench.groups.is_wanted(DIR) && bench.is_quiet());
}

#[test]
fn what_is_refused_because_somebody_wrote_over_the_place_is_written_alone_and_the_place_is_given_up() {
    let mut bench = standing();
    bench.settle(0..N);
    bench.end(N);
    let (id, ..) = bench.writes(1);
    let Step::Alone(tasks) = bench.answer(id, &refused(Refusal::BadVersion)) else { panic!("it is refused") };
    assert_eq!(tasks.len(), N);
    bench.deletes(1);
    bench.settle(N..2 * N);
    bench.end(N);
    bench.makes(2);
    bench.stands(2, N, 0);
}

#[test]
fn no_more_places_than_so_many_are_made() {
    let mut bench = Bench::new();
    for number in 1..=64 {
        bench.end(N);
        bench.makes(number);
        bench.stands(number, N, 0);
    }
    bench.end(N);
    assert!(bench.is_quiet() && bench.alone.len() == N);
    bench.settle(0..N);
    bench.end(N);
    bench.stands(1, N, 1);
}
