//! The rules of the ensemble in memory for servers that lag, are cut off or die. Real servers can't be held in these
//! states; `tests/it/conformance.rs` compares all else with them.

use std::time::Duration;

use zkmw::machine::{Call, ChangeKind, CreateMode, Instant, Refusal, Reply};

use crate::ensemble::{Ensemble, Op, Output, SessionId};

const T: Duration = Duration::from_secs(10);

fn create(path: &str, mode: CreateMode) -> Call {
    Call::Create { path: path.into(), data: Vec::new(), mode }
}

fn set(path: &str, version: i32) -> Call {
    Call::Set { path: path.into(), data: Vec::new(), version }
}

fn exists(path: &str, watch: bool) -> Call {
    Call::Exists { path: path.into(), watch }
}

fn apply(ensemble: &mut Ensemble, server: usize) {
    while ensemble.apply_next(server) {}
}

/// Three servers and a session at each; all know of them.
fn three() -> (Ensemble, [SessionId; 3]) {
    let mut ensemble = Ensemble::new(3, 0);
    let sessions = [0, 1, 2].map(|server| ensemble.connect(server, T).expect("a quorum"));
    (0..3).for_each(|server| apply(&mut ensemble, server));
    (ensemble, sessions)
}

fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

/// The replies to the session, without the requests' ids.
fn replies(ensemble: &mut Ensemble, session: SessionId) -> Vec<Result<Reply, Refusal>> {
    std::iter::from_fn(|| ensemble.take(session))
        .map(|output| match output {
            Output::Reply { result, .. } => result,
            Output::Changed { path, kind } => panic!("{path} {kind:?}"),
        })
        .collect()
}

#[test]
fn a_lagging_server_answers_from_its_own_state() {
    let (mut ensemble, [near, far, _]) = three();
    assert!(ensemble.put("/a", b""));
    apply(&mut ensemble, 0);
    ensemble.request(near, exists("/a", false));
    ensemble.request(far, exists("/a", true));
    assert!(matches!(replies(&mut ensemble, near)[..], [Ok(Reply::Stat(_))]));
    assert_eq!(replies(&mut ensemble, far), [Err(Refusal::NoNode)]);
    assert_eq!((ensemble.lag(0), ensemble.lag(1)), (0, 1));
    assert!(ensemble.apply_next(1) && !ensemble.apply_next(1));
    let event = Output::Changed { path: "/a".into(), kind: ChangeKind::Created };
    assert_eq!((ensemble.take(far), ensemble.take(far)), (Some(event), None));
}

#[test]
fn requests_are_answered_in_order_and_reads_see_own_writes() {
    let (mut ensemble, [_, session, _]) = three();
    ensemble.request(session, create("/a", CreateMode::Persistent));
    ensemble.request(session, exists("/a", false));
    assert!(ensemble.forward(1) && !ensemble.forward(1));
    assert_eq!(replies(&mut ensemble, session), []);
    apply(&mut ensemble, 1);
    let answers = replies(&mut ensemble, session);
    assert!(matches!(answers[..], [Ok(Reply::Created { .. }), Ok(Reply::Stat(_))]), "{answers:?}");
}

#[test]
fn a_new_session_reads_nothing_before_its_server_knows_of_it() {
    let (mut ensemble, _) = three();
    assert!(ensemble.put("/a", b""));
    let session = ensemble.connect(2, T).expect("a quorum");
    ensemble.request(session, exists("/a", false));
    assert!(ensemble.apply_next(2));
    assert_eq!(replies(&mut ensemble, session), []);
    assert!(ensemble.apply_next(2));
    assert!(matches!(replies(&mut ensemble, session)[..], [Ok(Reply::Stat(_))]));
}

#[test]
fn a_partitioned_server_forwards_writes_late() {
    for (heard, late) in [(true, true), (false, false)] {
        let (mut ensemble, [_, session, other]) = three();
        ensemble.set_link(1, false);
        ensemble.request(session, create("/late", CreateMode::Persistent));
        assert!(!ensemble.forward(1) && ensemble.connect(1, T).is_none());
        assert_eq!((ensemble.server_of(session), ensemble.queued(1)), (1, 1));
        ensemble.disconnect(session);
        ensemble.set_time(at(9));
        ensemble.heard(other);
        // The leader hears nothing by way of a server that is cut off.
        ensemble.heard(session);
        ensemble.set_time(at(if heard { 10 } else { 11 }));
        assert_eq!(ensemble.is_alive(session), heard);
        ensemble.set_link(1, true);
        assert!(ensemble.forward(1));
        assert_eq!(ensemble.tree().contains_key("/late"), late);
        assert!(ensemble.is_alive(other));
    }
}

#[test]
fn only_the_writes_of_the_disconnected_get_lost_on_their_way() {
    let (mut ensemble, [session, ..]) = three();
    let other = ensemble.connect(0, T).expect("a quorum");
    ensemble.request(other, create("/kept", CreateMode::Persistent));
    ensemble.request(session, create("/lost", CreateMode::Persistent));
    ensemble.request(session, create("/late", CreateMode::Persistent));
    assert!(!ensemble.drop_queued(0, 0));
    ensemble.disconnect(session);
    assert!(ensemble.drop_queued(0, 0) && !ensemble.drop_queued(0, 1));
    while ensemble.forward(0) {}
    let paths: Vec<_> = ensemble.tree().keys().map(String::as_str).collect();
    assert_eq!(paths, ["/", "/kept", "/late"]);
}

#[test]
fn a_crash_loses_queued_writes_and_keeps_committed_ones() {
    let (mut ensemble, [_, session, _]) = three();
    ensemble.request(session, create("/committed", CreateMode::Ephemeral));
    assert!(ensemble.forward(1));
    ensemble.request(session, create("/queued", CreateMode::Ephemeral));
    ensemble.crash(1);
    ensemble.restart(1);
    apply(&mut ensemble, 1);
    assert!(!ensemble.forward(1) && ensemble.take(session).is_none());
    assert!(ensemble.tree().contains_key("/committed") && !ensemble.tree().contains_key("/queued"));
    assert!(ensemble.is_alive(session), "only its connection is gone");
    ensemble.request(session, exists("/committed", false));
    assert_eq!(ensemble.take(session), None);
}

#[test]
fn without_a_quorum_nothing_is_committed_and_nobody_expires() {
    let (mut ensemble, [session, ..]) = three();
    ensemble.request(session, create("/a", CreateMode::Persistent));
    ensemble.crash(1);
    let before = ensemble.leader();
    ensemble.crash(2);
    assert_eq!(ensemble.leader(), None);
    ensemble.set_time(at(100));
    assert!(!ensemble.forward(0) && !ensemble.put("/b", b"") && ensemble.is_alive(session));
    ensemble.restart(1);
    assert!(before.is_some() && ensemble.leader().is_some());
    // A new leader counts from its beginning.
    ensemble.set_time(at(110));
    assert!(ensemble.is_alive(session));
    ensemble.set_time(at(111));
    assert!(!ensemble.is_alive(session));
}

#[test]
fn a_new_leader_has_a_new_epoch_and_every_committed_write() {
    let (mut ensemble, _) = three();
    assert!(ensemble.put("/a", b""));
    let first = ensemble.leader().expect("a leader");
    ensemble.set_link(first, false);
    let second = ensemble.leader().expect("a leader");
    assert_ne!(first, second);
    assert!(ensemble.put("/b", b""));
    let zxids: Vec<i64> = ensemble.log().iter().map(|txn| txn.zxid >> 32).collect();
    assert_eq!(zxids, [1, 1, 1, 1, 2]);
    assert!(ensemble.tree().contains_key("/a") && ensemble.tree().contains_key("/b"));
}

#[test]
fn an_expired_session_loses_all_ephemerals_in_one_transaction() {
    let (mut ensemble, [session, other, _]) = three();
    for path in ["/e1", "/e2"] {
        ensemble.request(session, create(path, CreateMode::Ephemeral));
    }
    while ensemble.forward(0) {}
    apply(&mut ensemble, 0);
    assert_eq!(replies(&mut ensemble, session).len(), 2);
    ensemble.set_time(at(5));
    ensemble.heard(other);
    ensemble.set_time(at(11));
    assert!(!ensemble.is_alive(session) && ensemble.is_alive(other));
    let closed: Vec<_> = ensemble.log().iter().filter(|txn| txn.session == session).collect();
    assert_eq!(closed.last().map(|txn| &txn.op), Some(&Op::CloseSession { expired: true }));
    // Its server does not know yet: its reads still work, but its writes are dropped.
    ensemble.request(session, exists("/e1", false));
    assert!(matches!(replies(&mut ensemble, session)[..], [Ok(Reply::Stat(_))]));
    ensemble.request(session, set("/e1", 0));
    let committed = ensemble.log().len();
    assert!(ensemble.forward(0));
    assert_eq!(ensemble.log().len(), committed);
    apply(&mut ensemble, 0);
    ensemble.request(session, exists("/e1", false));
    assert_eq!(ensemble.take(session), None);
}

#[test]
fn a_refusal_takes_a_zxid_and_sequence_numbers_overflow() {
    let (mut ensemble, [session, ..]) = three();
    let before = ensemble.log().len();
    ensemble.request(session, set("/none", 0));
    assert!(ensemble.forward(0));
    let refused = Op::Refused { path: "/none".into(), refusal: Refusal::NoNode };
    assert_eq!((ensemble.log().len(), &ensemble.log()[before].op), (before + 1, &refused));
    ensemble.set_sequence("/", i32::MAX);
    for _ in 0..2 {
        ensemble.request(session, create("/s-", CreateMode::EphemeralSequential));
        assert!(ensemble.forward(0));
    }
    let paths: Vec<_> = ensemble.tree().keys().map(String::as_str).collect();
    assert_eq!(paths, ["/", "/s--2147483648", "/s-2147483647"]);
}
