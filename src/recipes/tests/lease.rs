//! Lease: it never holds longer than the session is proven to live, and it is renewed only for those that need it.

use std::time::Duration;

use super::{Asked, LOST, NO_NODE, at_ms, refused, stat};
use crate::contract::Layout;
use crate::exit;
use crate::machine::{Actions, Call, CallId, CallResult, CreateMode, Refusal, Reply, Routed, Stat};
use crate::recipes::lease::Lease;

const T: Duration = Duration::from_secs(12);
/// T less the longest silence (a third) and the margin (2 s).
const HOLDS_MS: u64 = 6_000;
/// A sixth of T.
const RENEW_MS: u64 = 2_000;

fn created() -> CallResult {
    Ok(Reply::Created { path: "/r/leases/h~1".into() })
}

fn set(version: i32) -> CallResult {
    Ok(Reply::Stat(Stat { version, ..stat(1) }))
}

struct Bench {
    lease: Lease,
    out: Actions<()>,
}

impl Bench {
    /// A session is up.
    fn up() -> Bench {
        let mut lease = Lease::new(&Layout::new("/r"), "h");
        lease.on_session(T);
        Bench { lease, out: Actions::default() }
    }

    /// The lease was first written at 1 s and is needed.
    fn held() -> Bench {
        let mut bench = Bench::up();
        bench.need(1_000);
        let id = bench.create_call("/r/leases/h~1");
        assert!(!bench.lease.holds(at_ms(1_000)), "a write that was only sent proves nothing");
        bench.reply(id, created(), 1_300);
        bench
    }

    fn need(&mut self, ms: u64) {
        self.lease.need(true, at_ms(ms), &mut self.out);
    }

    /// After a pause the directory, which may be gone too, is checked, and created. Gives the time of that.
    #[track_caller]
    fn mend_directory(&mut self, ms: u64, needed: bool) -> u64 {
        Asked::none(&mut self.out);
        let due = ms + 50;
        assert_eq!(self.lease.next_wake(), Some(at_ms(due)));
        self.lease.need(needed, at_ms(due), &mut self.out);
        let checks = Asked::of(&mut self.out).calls;
        assert_eq!(checks.len(), 2, "{checks:?}");
        for ((id, call), result) in checks.into_iter().zip([set(0), NO_NODE]) {
            assert!(matches!(call, Call::Exists { .. }));
            self.reply(id, result, due);
        }
        let (id, call) = Asked::one(&mut self.out);
        assert!(matches!(call, Call::Create { path, .. } if path == "/r/leases"));
        self.reply(id, Ok(Reply::Created { path: "/r/leases".into() }), due);
        due
    }

    #[track_caller]
    fn reply(&mut self, id: CallId, result: CallResult, ms: u64) {
        assert_eq!(
            self.lease.on_reply(id, &result, at_ms(ms), &mut self.out),
            Routed::Mine(()),
            "it is awaited"
        );
    }

    #[track_caller]
    fn create_call(&mut self, path: &str) -> CallId {
        let (id, call) = Asked::one(&mut self.out);
        assert_eq!(call, Call::Create { path: path.into(), data: Vec::new(), mode: CreateMode::Ephemeral });
        id
    }

    #[track_caller]
    fn set_call(&mut self, path: &str, version: i32) -> CallId {
        let (id, call) = Asked::one(&mut self.out);
        assert_eq!(call, Call::Set { path: path.into(), data: Vec::new(), version });
        id
    }
}

#[test]
fn the_lease_runs_from_when_the_write_was_sent() {
    let bench = Bench::held();
    assert_eq!(bench.lease.expires(), Some(at_ms(1_000 + HOLDS_MS)));
    assert!(bench.lease.holds(at_ms(1_000 + HOLDS_MS - 1)));
    assert!(!bench.lease.holds(at_ms(1_000 + HOLDS_MS)));
}

/// What the module's text derives: the leader may know of no life since a third of T, and half a tick, before
/// the write was sent.
#[test]
fn the_lease_ends_before_the_session_can_expire() {
    for (timeout_ms, half_tick_ms) in [(4_000, 1_000), (6_000, 1_000), (10_000, 1_000), (40_000, 1_000)] {
        let mut bench = Bench::up();
        bench.lease.on_session(Duration::from_millis(timeout_ms));
        bench.need(100_000);
        let (id, _) = Asked::one(&mut bench.out);
        bench.reply(id, created(), 100_001);
        let earliest_end = at_ms(100_000 + timeout_ms - timeout_ms / 3 - half_tick_ms);
        let until = bench.lease.expires().expect("it was written");
        assert!(until < earliest_end, "T = {timeout_ms} ms: until {until:?}, end {earliest_end:?}");
        let renewals_left = until.since(at_ms(100_000)).as_millis() as u64 / (timeout_ms / 6);
        assert!(renewals_left >= 2, "one renewal may fail");
    }
}

#[test]
fn an_idle_process_writes_nothing() {
    let mut bench = Bench::held();
    bench.lease.need(false, at_ms(1_000 + RENEW_MS), &mut bench.out);
    Asked::none(&mut bench.out);
    assert_eq!(bench.lease.next_wake(), None);
}

#[test]
fn it_is_renewed_in_time_and_one_write_at_a_time() {
    let mut bench = Bench::held();
    assert_eq!(bench.lease.next_wake(), Some(at_ms(1_000 + RENEW_MS)));
    bench.need(1_000 + RENEW_MS - 1);
    Asked::none(&mut bench.out);
    bench.need(1_000 + RENEW_MS);
    let id = bench.set_call("/r/leases/h~1", 0);
    assert_eq!(bench.lease.next_wake(), bench.lease.expires(), "none is due while one is under way");
    bench.need(1_000 + 2 * RENEW_MS);
    Asked::none(&mut bench.out);
    bench.reply(id, set(1), 5_000);
    assert_eq!(bench.lease.expires(), Some(at_ms(3_000 + HOLDS_MS)));
    bench.need(5_000);
    bench.set_call("/r/leases/h~1", 1);
}

/// It used to ask to be woken at a time that had passed, over and over, while a write was under way.
#[test]
fn one_that_lapsed_does_not_ask_to_be_woken_in_the_past() {
    let mut bench = Bench::held();
    bench.need(60_000);
    let id = bench.set_call("/r/leases/h~1", 0);
    assert_eq!(bench.lease.next_wake(), None, "the answer is what it waits for");
    assert!(!bench.lease.holds(at_ms(60_000)));
    bench.reply(id, set(1), 60_100);
    assert!(bench.lease.holds(at_ms(60_100)));
    assert_eq!(bench.lease.next_wake(), Some(at_ms(60_000 + RENEW_MS)));
}

#[test]
fn an_answer_that_comes_too_late_revives_nothing() {
    let mut bench = Bench::held();
    bench.need(1_000 + RENEW_MS);
    let id = bench.set_call("/r/leases/h~1", 0);
    bench.reply(id, set(1), 60_000);
    assert!(!bench.lease.holds(at_ms(60_000)));
}

#[test]
fn a_doubtful_write_proves_nothing_and_proofs_outlive_sessions() {
    let mut bench = Bench::held();
    bench.need(1_000 + RENEW_MS);
    let id = bench.set_call("/r/leases/h~1", 0);
    bench.reply(id, LOST, 3_100);
    assert_eq!(bench.lease.expires(), Some(at_ms(1_000 + HOLDS_MS)));
    bench.lease.on_lost();
    assert_eq!(bench.lease.on_reply(id, &set(1), at_ms(3_200), &mut bench.out), Routed::NotMine, "stale");
    assert!(bench.lease.holds(at_ms(1_000 + HOLDS_MS - 1)));
    bench.need(4_000);
    Asked::none(&mut bench.out);
    assert_eq!(bench.lease.next_wake(), Some(at_ms(1_000 + HOLDS_MS)));
}

#[test]
fn each_session_has_its_own_znode_and_a_renamed_one_proves_none() {
    let mut bench = Bench::held();
    bench.lease.on_lost();
    bench.lease.on_session(T);
    bench.need(2_000);
    let id = bench.create_call("/r/leases/h~2");
    bench.lease.rename("i");
    assert!(!bench.lease.holds(at_ms(2_000)), "nothing is proven for a new life");
    assert_eq!(bench.lease.on_reply(id, &created(), at_ms(2_000), &mut bench.out), Routed::NotMine, "stale");
    bench.need(9_000);
    Asked::none(&mut bench.out);
    bench.lease.on_session(T);
    bench.need(9_000);
    bench.create_call("/r/leases/i~3");
}

#[test]
fn a_ticket_is_for_a_write_that_begins_after_the_wish() {
    let mut bench = Bench::up();
    bench.need(0);
    let first = bench.create_call("/r/leases/h~1");
    let ticket = bench.lease.fresh(at_ms(10), &mut bench.out);
    Asked::none(&mut bench.out);
    bench.reply(first, created(), 20);
    assert!(!bench.lease.has(ticket), "that one had begun before");
    let second = bench.set_call("/r/leases/h~1", 0);
    bench.reply(second, set(1), 30);
    assert!(bench.lease.has(ticket));
    Asked::none(&mut bench.out);
}

#[test]
fn a_write_by_a_stranger_only_costs_a_read() {
    for refusal in [Refusal::BadVersion, Refusal::NodeExists] {
        let mut bench = Bench::held();
        let ticket = bench.lease.fresh(at_ms(2_000), &mut bench.out);
        let id = bench.set_call("/r/leases/h~1", 0);
        bench.reply(id, refused(refusal), 2_001);
        let (check, call) = Asked::one(&mut bench.out);
        assert_eq!(call, Call::Exists { path: "/r/leases/h~1".into(), watch: false });
        bench.reply(check, set(7), 2_002);
        assert!(!bench.lease.has(ticket));
        let id = bench.set_call("/r/leases/h~1", 7);
        bench.reply(id, set(8), 2_003);
        assert!(bench.lease.has(ticket));
        assert_eq!(bench.lease.expires(), Some(at_ms(2_002 + HOLDS_MS)));
    }
}

/// The wish used to be forgotten when nothing else needed the lease, and a run that waited for it waited for ever.
#[test]
fn a_wish_outlives_the_deletion_of_the_znode() {
    let mut bench = Bench::held();
    bench.lease.need(false, at_ms(1_400), &mut bench.out);
    let ticket = bench.lease.fresh(at_ms(5_000), &mut bench.out);
    let id = bench.set_call("/r/leases/h~1", 0);
    bench.reply(id, NO_NODE, 5_001);
    let due = bench.mend_directory(5_001, false);
    let id = bench.create_call("/r/leases/h~2");
    bench.reply(id, created(), due + 1);
    assert!(bench.lease.has(ticket));
    assert_eq!(bench.lease.next_wake(), None);
}

#[test]
fn a_wish_ends_with_its_connection() {
    let mut bench = Bench::up();
    let ticket = bench.lease.fresh(at_ms(0), &mut bench.out);
    bench.create_call("/r/leases/h~1");
    bench.lease.on_lost();
    bench.lease.on_session(T);
    bench.lease.need(false, at_ms(100), &mut bench.out);
    Asked::none(&mut bench.out);
    assert_eq!((bench.lease.has(ticket), bench.lease.next_wake()), (false, None));
}

#[test]
fn what_is_forbidden_from_the_start_ends_the_role() {
    let mut bench = Bench::up();
    bench.need(0);
    let id = bench.create_call("/r/leases/h~1");
    bench.reply(id, refused(Refusal::NoAuth), 1);
    assert_eq!(Asked::of(&mut bench.out).exits, [exit::NOT_PERMITTED]);
}

/// It used to be tried again and again without its directory, for ever.
#[test]
fn a_lease_whose_directory_is_deleted_is_made_again_with_it() {
    let mut bench = Bench::held();
    bench.need(1_000 + RENEW_MS);
    let id = bench.set_call("/r/leases/h~1", 0);
    bench.reply(id, NO_NODE, 3_001);
    let due = bench.mend_directory(3_001, true);
    let id = bench.create_call("/r/leases/h~2");
    bench.reply(id, created(), due + 1);
    assert_eq!(bench.lease.expires(), Some(at_ms(due + HOLDS_MS)), "from its send time");
}

/// An ACL or a quota that somebody changed ends nobody: what was proven holds until it ends.
#[test]
fn what_is_refused_later_is_tried_again() {
    for refusal in [Refusal::NoAuth, Refusal::Other(-6)] {
        let mut bench = Bench::held();
        bench.need(1_000 + RENEW_MS);
        let id = bench.set_call("/r/leases/h~1", 0);
        bench.reply(id, refused(refusal), 3_001);
        assert!(bench.lease.trouble().is_some());
        assert_eq!(bench.lease.expires(), Some(at_ms(1_000 + HOLDS_MS)));
        let due = bench.mend_directory(3_001, true);
        let id = bench.create_call("/r/leases/h~1");
        bench.reply(id, created(), due + 1);
        assert_eq!(bench.lease.trouble(), None);
    }
}
