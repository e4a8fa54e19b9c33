//! The leader's assignments: no assignment that cannot be served keeps it awake, and one that is refused holds up no
//! other.

use super::{Asked, at_ms, refused};
use crate::contract::worker::{Assignment, Entry, EntryId};
use crate::contract::{Incarnation, Layout, TaskId};
use crate::machine::{
    Action, Actions, Call, CallId, CallResult, ChangeKind, Instant, Refusal, Reply, Routed, Stat,
};
use crate::recipes::assignment::{AssignmentTable, Doubt, Held, Step, Urgency};

struct Driver {
    table: AssignmentTable,
    out: Actions<()>,
    steps: Vec<Step>,
    /// What was logged.
    logs: Vec<String>,
    now: Instant,
}

fn incarnation(name: &str) -> Incarnation {
    Incarnation::new(name, 1)
}

fn task(name: &str) -> EntryId {
    EntryId::new(&TaskId::new("_00", name), 1)
}

fn written(version: i32) -> CallResult {
    Ok(Reply::Stat(Stat { version, mzxid: 1_000, ..Stat::default() }))
}

fn data(assignment: &Assignment) -> CallResult {
    Ok(Reply::Data { data: assignment.encode(), stat: Stat { version: 3, mzxid: 900, ..Stat::default() } })
}

fn entry(name: &str) -> Entry {
    let EntryId { task, attempt } = task(name);
    Entry { task, attempt, revoked: false, recalled: false, recheck: None, seen: None }
}

impl Driver {
    /// An assignment table that has read these assignments and is to write them, with the calls that do it.
    fn taking_over(assignments: &[(&str, Assignment)]) -> (Driver, Vec<(CallId, Call)>) {
        let (mut driver, reads) = Driver::reading(assignments);
        for ((id, _), (_, assignment)) in reads.into_iter().zip(assignments) {
            driver.answer(id, data(assignment));
        }
        let writes = Asked::of(&mut driver.out).calls;
        (driver, writes)
    }

    /// An assignment table that is to read these assignments, with the calls that do it.
    fn reading(assignments: &[(&str, Assignment)]) -> (Driver, Vec<(CallId, Call)>) {
        let table = AssignmentTable::new(&Layout::new("/z"));
        let (steps, logs) = (Vec::new(), Vec::new());
        let mut driver = Driver { table, out: Actions::default(), steps, logs, now: at_ms(1_000) };
        driver.table.tick(driver.now);
        driver.table.take_over(50, &mut driver.out);
        let watch = Asked::one(&mut driver.out).0;
        driver.answer(watch, Ok(Reply::Watching));
        let list = Asked::one(&mut driver.out).0;
        let names = assignments.iter().map(|(name, _)| incarnation(name).to_string()).collect();
        driver.answer(list, Ok(Reply::Children(names)));
        let reads = Asked::of(&mut driver.out).calls;
        (driver, reads)
    }

    /// An assignment table that is ready, with an empty assignment for each of these.
    fn ready(names: &[&str]) -> Driver {
        let assignments: Vec<_> = names.iter().map(|name| (*name, Assignment::new(0, Vec::new()))).collect();
        let (mut driver, writes) = Driver::taking_over(&assignments);
        let mut writes = writes;
        while !writes.is_empty() {
            for (id, call) in writes {
                let read = matches!(call, Call::Get { .. });
                driver.answer(id, if read { data(&Assignment::new(0, Vec::new())) } else { written(4) });
            }
            writes = Asked::of(&mut driver.out).calls;
        }
        assert!(driver.table.is_ready());
        driver.steps.clear();
        driver
    }

    fn answer(&mut self, id: CallId, result: CallResult) {
        let Routed::Mine(steps) = self.table.on_reply(id, &result, &mut self.out) else {
            panic!("it is awaited")
        };
        self.steps.extend(steps);
        let all: Vec<_> = self.out.drain().collect();
        for action in all {
            match action {
                Action::Log(_, text) => self.logs.push(text),
                other => self.out.push(other),
            }
        }
    }

    /// Whether it was logged, since this was last asked, that the assignment is written again.
    fn is_accepted(&mut self) -> bool {
        std::mem::take(&mut self.logs).iter().any(|text| text.contains("can be written again"))
    }

    fn assign(&mut self, worker: &str, name: &str, urgency: Urgency) {
        self.table.assign(&incarnation(worker), &task(name), Held::new(1, false), urgency);
    }

    /// Flushes at this time. What is due then and stays undone would have the leader's loop spin.
    #[track_caller]
    fn flush(&mut self, ms: u64) -> Vec<(CallId, Call)> {
        self.now = at_ms(ms);
        self.table.tick(self.now);
        self.table.flush(&mut self.out);
        let wish = self.table.next_wake();
        assert!(wish.is_none_or(|at| at > self.now), "to be woken at {wish:?}, and it is {:?}", self.now);
        Asked::of(&mut self.out).calls
    }

    /// Goes on to when the assignment table wants to be woken next.
    #[track_caller]
    fn flush_next(&mut self) -> Vec<(CallId, Call)> {
        let next = self.table.next_wake().expect("it wants to be woken");
        self.flush(u64::try_from(next.since(at_ms(0)).as_millis()).expect("small") + 1)
    }

    fn refuse(&mut self, calls: Vec<(CallId, Call)>) {
        for (id, _) in calls {
            self.answer(id, refused(Refusal::Other(-125)));
        }
    }
}

#[test]
fn no_wake_up_is_due_while_the_assignment_is_being_written() {
    let mut driver = Driver::ready(&["w"]);
    driver.assign("w", "a", Urgency::Now);
    let (write, _) = driver.flush(2_000).remove(0);
    driver.assign("w", "b", Urgency::Soon);
    assert_eq!(driver.flush(2_001), []);
    assert_eq!(driver.flush(2_100), [], "it is due, and the assignment is being written");
    driver.answer(write, written(5));
    let asked = Asked::of(&mut driver.out).calls;
    assert!(matches!(&asked[..], [(_, Call::Set { version: 5, .. })]), "{asked:?}");
}

#[test]
fn no_wake_up_is_due_while_it_is_deleted_or_cannot_be_read() {
    let mut driver = Driver::ready(&["w", "x"]);
    driver.assign("w", "a", Urgency::Now);
    let (write, _) = driver.flush(2_000).remove(0);
    driver.answer(write, written(5));
    driver.table.strip(&task("a"), Urgency::Later);
    assert_eq!(driver.flush(2_001), []);
    driver.table.close(&incarnation("w"), &mut driver.out);
    assert!(matches!(Asked::one(&mut driver.out), (_, Call::Delete { .. })));
    assert_eq!(driver.flush(3_000), []);

    driver.assign("x", "b", Urgency::Now);
    let (write, _) = driver.flush(3_001).remove(0);
    driver.assign("x", "c", Urgency::Soon);
    driver.flush(3_002);
    driver.answer(write, refused(Refusal::BadVersion));
    let (read, _) = Asked::one(&mut driver.out);
    driver.answer(read, refused(Refusal::NoAuth));
    assert_eq!(driver.flush(3_100), []);
}

#[test]
fn what_is_due_beyond_the_window_wakes_nobody() {
    let names: Vec<String> = (0..200).map(|n| format!("w{n:03}")).collect();
    let mut driver = Driver::ready(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for (n, name) in names.iter().enumerate() {
        driver.assign(name, &format!("t{n}"), Urgency::Soon);
    }
    let asked = driver.flush(2_000).len();
    assert!(asked > 100 && asked < 200, "{asked}");
}

#[test]
fn a_refused_write_returns_its_new_entries_and_backs_off() {
    let mut driver = Driver::ready(&["w", "x"]);
    driver.assign("w", "a", Urgency::Now);
    let (write, _) = driver.flush(2_000).remove(0);
    driver.answer(write, written(5));
    driver.assign("w", "b", Urgency::Now);
    let writes = driver.flush(2_001);
    driver.assign("w", "c", Urgency::Soon);
    driver.steps.clear();
    driver.refuse(writes);
    assert_eq!(driver.steps, [Step::AssignmentRefused(incarnation("w"), vec![task("b"), task("c")])]);
    assert!(matches!(&driver.logs[..], [text] if text.contains("cannot be written (ZooKeeper error -125)")));
    assert_eq!(driver.table.unclaimed().count(), 0, "the entries there are known");
    assert!(!driver.table.is_open(&incarnation("w")) && driver.table.is_open(&incarnation("x")));
    driver.assign("x", "b", Urgency::Now);
    assert_eq!(driver.flush(2_002).len(), 1, "others are served");

    let mut last = at_ms(2_002);
    let mut delays = Vec::new();
    for _ in 0..9 {
        let again = driver.flush_next();
        delays.push(driver.now.since(last).as_millis());
        last = driver.now;
        driver.refuse(again);
        assert_eq!(driver.flush(u64::try_from(last.since(at_ms(0)).as_millis()).expect("small")), []);
    }
    assert!(delays[0] <= 510 && delays[8] <= 30_010 && delays.is_sorted(), "{delays:?}");
    assert_eq!(driver.logs.len(), 1, "it is said once");
    driver.steps.clear();

    // It passes as it was, which proves nothing; then with one more entry.
    let again = driver.flush_next();
    driver.answer(again[0].0, written(6));
    assert!(driver.steps == [Step::Written(incarnation("w"))] && !driver.is_accepted());
    driver.assign("w", "c", Urgency::Now);
    let ms = u64::try_from(driver.now.since(at_ms(0)).as_millis()).expect("small");
    let more = driver.flush(ms + 1);
    driver.answer(more[0].0, written(7));
    assert!(driver.is_accepted());
}

#[test]
fn a_forbidden_delete_of_an_assignment_backs_off() {
    let mut driver = Driver::ready(&["w"]);
    driver.table.close(&incarnation("w"), &mut driver.out);
    let (delete, _) = Asked::one(&mut driver.out);
    driver.answer(delete, refused(Refusal::NoAuth));
    driver.table.close(&incarnation("w"), &mut driver.out);
    assert_eq!(driver.flush(1_001), [], "not before its time");
    let again = driver.flush_next();
    assert!(matches!(&again[..], [(_, Call::Get { .. })]), "{again:?}");
    driver.answer(again[0].0, data(&Assignment::new(50, Vec::new())));
    let (write, _) = Asked::one(&mut driver.out);
    driver.answer(write, written(5));
    driver.table.close(&incarnation("w"), &mut driver.out);
    assert!(matches!(Asked::one(&mut driver.out), (_, Call::Delete { .. })));
}

#[test]
fn an_assignment_is_trusted_only_after_it_was_claimed() {
    let before = Assignment::new(7, vec![entry("a")]);
    let (mut driver, writes) =
        Driver::taking_over(&[("w", before.clone()), ("x", Assignment::new(7, Vec::new()))]);
    driver.answer(writes[1].0, written(4));
    driver.refuse(writes[..1].to_vec());
    assert!(driver.table.is_ready(), "the takeover goes on");
    let w = incarnation("w");
    assert_eq!(driver.table.unclaimed().collect::<Vec<_>>(), [(&w, Doubt::Unwritten)]);
    assert_eq!(driver.table.holder(&task("a")).map(|(holder, _)| holder), Some(&w), "it is assigned there");
    driver.flush(1_001);
    let again = driver.flush_next();
    driver.answer(again[0].0, written(4));
    assert_eq!(driver.table.unclaimed().count(), 0);
    assert!(driver.is_accepted());
}

#[test]
fn an_assignment_unreadable_at_takeover_is_claimed_later() {
    let (mut driver, reads) = Driver::reading(&[("w", Assignment::new(7, Vec::new()))]);
    driver.answer(reads[0].0, refused(Refusal::NoAuth));
    let w = incarnation("w");
    assert!(driver.table.is_ready(), "the takeover goes on");
    assert_eq!(driver.table.unclaimed().collect::<Vec<_>>(), [(&w, Doubt::Unread)]);
    assert_eq!(driver.flush(1_001), []);
    let again = driver.flush_next();
    driver.answer(again[0].0, data(&Assignment::new(7, vec![entry("a")])));
    assert_eq!(driver.table.holder(&task("a")).map(|(holder, _)| holder), Some(&w));
    let (write, _) = Asked::one(&mut driver.out);
    driver.answer(write, written(4));
    assert_eq!(driver.table.unclaimed().count(), 0);
}

#[test]
fn an_unreadable_assignment_made_after_takeover_hides_nothing() {
    let mut driver = Driver::ready(&["w"]);
    let path = format!("/z/assign/{}", incarnation("x"));
    assert_eq!(driver.table.on_changed(&path, ChangeKind::Created, &mut driver.out), Routed::Mine(vec![]));
    let (read, _) = Asked::one(&mut driver.out);
    driver.answer(read, refused(Refusal::NoAuth));
    assert_eq!(driver.table.unclaimed().count(), 0);
    assert_eq!(driver.flush(1_001), []);
    assert!(matches!(&driver.flush_next()[..], [(_, Call::Get { .. })]));
}

/// Between two tries it is read and written, which passes and proves nothing.
#[test]
fn a_delete_that_is_never_permitted_is_logged_once() {
    let mut driver = Driver::ready(&["w"]);
    let w = incarnation("w");
    let mut last = at_ms(2_000);
    let mut delays = Vec::new();
    driver.flush(2_000);
    for _ in 0..9 {
        driver.table.close(&w, &mut driver.out);
        let (delete, call) = Asked::one(&mut driver.out);
        assert!(matches!(call, Call::Delete { .. }), "{call:?}");
        driver.answer(delete, refused(Refusal::NoAuth));
        driver.flush(u64::try_from(last.since(at_ms(0)).as_millis()).expect("small"));
        let again = driver.flush_next();
        delays.push(driver.now.since(last).as_millis());
        last = driver.now;
        driver.answer(again[0].0, data(&Assignment::new(50, Vec::new())));
        let (write, _) = Asked::one(&mut driver.out);
        driver.answer(write, written(5));
    }
    assert_eq!(driver.logs.len(), 1, "{:?}", driver.logs);
    assert!(delays[8] >= 30_000 && delays.is_sorted(), "{delays:?}");
}
