//! Election, one contender at a time: every state, every loss, and replies that come late or not at all.

mod term;

use super::{Asked, LOST, NO_NODE, refused, stat};
use crate::contract::contender_rank;
use crate::exit;
use crate::machine::{
    Action, Actions, Call, CallId, CallResult, ChangeKind, CreateMode, Level, Refusal, Reply, Routed,
};
use crate::recipes::election::Election;

const DIR: &str = "/e";
const OWN: &str = "_c_u-ranked-latch-0000000005";
const A: &str = "_c_a-latch-0000000001";
const B: &str = "_c_b-latch-0000000003";

fn children(names: &[&str]) -> CallResult {
    Ok(Reply::Children(names.iter().map(|name| name.to_string()).collect()))
}

fn exists(czxid: i64) -> CallResult {
    Ok(Reply::Stat(stat(czxid)))
}

fn created(name: &str) -> CallResult {
    Ok(Reply::Created { path: format!("{DIR}/{name}") })
}

struct Bench {
    election: Election,
    out: Actions<()>,
}

impl Bench {
    fn new() -> Bench {
        Bench { election: Election::new(DIR, "u", b"me".to_vec()), out: Actions::default() }
    }

    /// The directory was seen; the create is on its way.
    fn creating() -> (Bench, CallId) {
        let mut bench = Bench::new();
        bench.election.contend(&mut bench.out);
        let (check, _) = Asked::one(&mut bench.out);
        bench.reply(check, exists(1));
        let create = bench.create_call();
        (bench, create)
    }

    /// The contender exists and was read; the list is on its way.
    fn listing() -> (Bench, CallId) {
        let (mut bench, create) = Bench::creating();
        bench.reply(create, created(OWN));
        let own = bench.exists_call(OWN);
        bench.reply(own, exists(9));
        let list = bench.list_call();
        (bench, list)
    }

    fn leading() -> Bench {
        let (mut bench, list) = Bench::listing();
        bench.reply(list, children(&[OWN]));
        assert_eq!(bench.election.leading(), Some(9));
        Asked::none(&mut bench.out);
        bench
    }

    /// Behind `B`, which is behind `A`.
    fn following() -> Bench {
        let (mut bench, list) = Bench::listing();
        bench.reply(list, children(&[OWN, B, A, "_c_c-latch-0000000007"]));
        let before = bench.exists_call(B);
        bench.reply(before, exists(3));
        assert_eq!(bench.election.behind(), Some(B));
        assert!(bench.election.is_following() && bench.election.leading().is_none());
        Asked::none(&mut bench.out);
        bench
    }

    #[track_caller]
    fn reply(&mut self, id: CallId, result: CallResult) {
        assert_eq!(self.election.on_reply(id, &result, &mut self.out), Routed::Mine(()), "it is awaited");
    }

    fn changed(&mut self, name: &str, kind: ChangeKind) {
        self.election.on_changed(&format!("{DIR}/{name}"), kind, &mut self.out);
    }

    #[track_caller]
    fn create_call(&mut self) -> CallId {
        let (id, call) = Asked::one(&mut self.out);
        let path = format!("{DIR}/_c_u-ranked-latch-");
        assert_eq!(call, Call::Create { path, data: b"me".to_vec(), mode: CreateMode::EphemeralSequential });
        id
    }

    #[track_caller]
    fn exists_call(&mut self, name: &str) -> CallId {
        let (id, call) = Asked::one(&mut self.out);
        assert_eq!(call, Call::Exists { path: format!("{DIR}/{name}"), watch: true });
        id
    }

    #[track_caller]
    fn list_call(&mut self) -> CallId {
        let (id, call) = Asked::one(&mut self.out);
        assert_eq!(call, Call::Children { path: DIR.into() });
        id
    }

    #[track_caller]
    fn delete_call(&mut self, name: &str) -> CallId {
        let (id, call) = Asked::one(&mut self.out);
        assert_eq!(call, Call::Delete { path: format!("{DIR}/{name}"), version: None });
        id
    }

    /// It contends again: it checks its directory.
    #[track_caller]
    fn contends_anew(&mut self) {
        assert!(self.election.leading().is_none() && !self.election.is_out());
        let (check, call) = Asked::one(&mut self.out);
        assert_eq!(call, Call::Exists { path: DIR.into(), watch: false });
        self.reply(check, exists(1));
        self.create_call();
    }
}

#[test]
fn first_leads_with_the_czxid_of_its_contender() {
    let mut bench = Bench::leading();
    assert_eq!(bench.election.own_name(), Some(OWN));
    bench.changed(A, ChangeKind::Deleted);
    Asked::none(&mut bench.out);
}

#[test]
fn the_one_just_before_is_watched_and_no_other() {
    let mut bench = Bench::following();
    bench.changed(A, ChangeKind::Deleted);
    bench.changed("_c_c-latch-0000000007", ChangeKind::Deleted);
    Asked::none(&mut bench.out);
    bench.changed(B, ChangeKind::Deleted);
    let list = bench.list_call();
    bench.reply(list, children(&[OWN, A]));
    bench.exists_call(A);
    assert_eq!(bench.election.behind(), Some(A));
}

#[test]
fn one_that_died_before_it_could_be_watched_is_seen() {
    let (mut bench, list) = Bench::listing();
    bench.reply(list, children(&[A, OWN]));
    let watch = bench.exists_call(A);
    bench.reply(watch, NO_NODE);
    let list = bench.list_call();
    bench.reply(list, children(&[OWN]));
    assert_eq!(bench.election.leading(), Some(9));
}

#[test]
fn the_event_of_a_watch_may_overtake_the_reply_that_set_it() {
    let (mut bench, list) = Bench::listing();
    bench.reply(list, children(&[A, OWN]));
    let watch = bench.exists_call(A);
    bench.changed(A, ChangeKind::Deleted);
    let list = bench.list_call();
    bench.reply(watch, exists(1));
    assert!(bench.election.leading().is_none());
    bench.reply(list, children(&[OWN]));
    assert_eq!(bench.election.leading(), Some(9));
}

#[test]
fn a_watch_that_was_spent_on_a_change_of_data_is_set_again() {
    let mut bench = Bench::following();
    bench.changed(B, ChangeKind::Data);
    let list = bench.list_call();
    bench.reply(list, children(&[A, B, OWN]));
    bench.exists_call(B);
    let mut bench = Bench::leading();
    bench.changed(OWN, ChangeKind::Data);
    assert_eq!(bench.election.leading(), Some(9), "a change of data deposes nobody");
    let own = bench.exists_call(OWN);
    bench.reply(own, NO_NODE);
    bench.contends_anew();
}

/// Deleted and made again by a stranger while no watch was set: it is not the contender that was elected.
#[test]
fn a_contender_that_was_replaced_is_not_ours() {
    for mut bench in [Bench::leading(), Bench::following()] {
        bench.changed(OWN, ChangeKind::Data);
        let own = bench.exists_call(OWN);
        bench.reply(own, exists(12));
        bench.contends_anew();
    }
}

#[test]
fn a_leader_whose_contender_is_deleted_contends_anew() {
    for mut bench in [Bench::leading(), Bench::following(), Bench::listing().0] {
        bench.changed(OWN, ChangeKind::Deleted);
        bench.contends_anew();
    }
}

#[test]
fn a_list_of_an_earlier_term_is_ignored() {
    let (mut bench, list) = Bench::listing();
    bench.changed(OWN, ChangeKind::Deleted);
    assert_eq!(bench.election.on_reply(list, &children(&[OWN]), &mut bench.out), Routed::NotMine, "stale");
    bench.contends_anew();
    assert!(bench.election.leading().is_none());
}

#[test]
fn a_list_without_the_own_contender_makes_no_leader() {
    let (mut bench, list) = Bench::listing();
    bench.reply(list, children(&[]));
    bench.contends_anew();
}

/// The own contender and its directory are deleted together; the reply may come before the event.
#[test]
fn a_directory_deleted_under_our_hands_is_made_again() {
    let (mut bench, list) = Bench::listing();
    bench.reply(list, NO_NODE);
    bench.contends_anew();
    let (mut bench, create) = Bench::creating();
    bench.reply(create, NO_NODE);
    bench.contends_anew();
}

#[test]
fn contenders_of_earlier_sessions_are_deleted_and_do_not_count() {
    let old = "_c_u-ranked-latch-0000000002";
    let (mut bench, list) = Bench::listing();
    bench.reply(list, children(&[old, OWN]));
    let delete = bench.delete_call(old);
    assert_eq!(bench.election.leading(), Some(9));
    bench.reply(delete, NO_NODE);
    Asked::none(&mut bench.out);
    let (mut bench, list) = Bench::listing();
    bench.reply(list, children(&[old, B, OWN]));
    let calls = Asked::of(&mut bench.out).calls;
    let paths: Vec<_> = calls.iter().map(|(_, call)| call.path()).collect();
    assert_eq!(paths, [format!("{DIR}/{old}"), format!("{DIR}/{B}")]);
    assert_eq!(bench.election.behind(), Some(B));
}

#[test]
fn a_former_leader_with_doubtful_writes_waits_for_session_end() {
    let (mut bench, newer) = (Bench::leading(), "_c_u-ranked-latch-0000000008");
    bench.election.on_lost_in_doubt();
    let again = |bench: &mut Bench| {
        bench.election.contend(&mut bench.out);
        let (check, _) = Asked::one(&mut bench.out);
        bench.reply(check, exists(1));
        let create = bench.create_call();
        bench.reply(create, created(newer));
        let own = bench.exists_call(newer);
        bench.reply(own, exists(12));
        let list = bench.list_call();
        bench.reply(list, children(&[OWN, newer]));
        bench.exists_call(OWN)
    };
    again(&mut bench);
    assert_eq!((bench.election.behind(), bench.election.leading()), (Some(OWN), None));
    bench.election.on_lost();
    let before = again(&mut bench);
    bench.reply(before, exists(9));
    bench.changed(OWN, ChangeKind::Deleted);
    let list = bench.list_call();
    bench.reply(list, children(&[newer]));
    assert_eq!(bench.election.leading(), Some(12));
    Asked::none(&mut bench.out);
}

/// The logs since the last call.
fn logged(bench: &mut Bench) -> Vec<String> {
    let text = |action| match action {
        Action::Log(Level::Warn, text) => Some(text),
        _ => None,
    };
    bench.out.drain().filter_map(text).collect()
}

#[test]
fn foreign_names_are_reported_once_and_do_not_count() {
    let (mut bench, list) = Bench::listing();
    bench.reply(list, children(&["stray", "0a__lock__0000000000", OWN]));
    assert_eq!(bench.election.leading(), Some(9), "they are before us as texts, and do not count");
    let lines = logged(&mut bench);
    assert!(lines.len() == 1 && lines[0].contains("contenders (2)"), "{lines:?}");
    for words in [DIR, "such as stray", "may lead at the same time", "a directory of its own"] {
        assert!(lines[0].contains(words), "{lines:?}");
    }
    bench.changed(OWN, ChangeKind::Deleted);
    let check = bench.out.drain().find_map(|action| match action {
        Action::Call { id, .. } => Some(id),
        _ => None,
    });
    bench.reply(check.expect("it checks its directory"), exists(1));
    let create = bench.create_call();
    bench.reply(create, created(OWN));
    let own = bench.exists_call(OWN);
    bench.reply(own, exists(9));
    let list = bench.list_call();
    bench.reply(list, children(&["another", OWN]));
    assert_eq!((bench.election.leading(), logged(&mut bench)), (Some(9), Vec::new()));
}

#[test]
fn peers_of_curator_are_no_foreigners() {
    let (mut bench, list) = Bench::listing();
    bench.reply(
        list,
        children(&["_c_3f6c9a52-7d0e-4b7e-9c61-5a2f0d1e8b44-latch-0000000000", "latch-0000000009", OWN]),
    );
    assert!(bench.election.is_following());
    assert_eq!(logged(&mut bench), Vec::<String>::new());
}

/// Numbers that wrapped come first, as with Curator, and it is lines what that means.
#[test]
fn sequence_numbers_that_wrapped_come_first_and_are_reported() {
    let (mut bench, list) = Bench::listing();
    let wrapped = "_c_x-latch--2147483648";
    bench.reply(list, children(&[wrapped, OWN]));
    assert_eq!(bench.election.behind(), Some(wrapped));
    assert_eq!(logged(&mut bench), Vec::<String>::new(), "the one that wrapped reports it");

    let (mut bench, create) = Bench::creating();
    let own = "_c_u-ranked-latch-2000000000";
    bench.reply(create, created(own));
    let read = bench.exists_call(own);
    bench.reply(read, exists(9));
    let list = bench.list_call();
    bench.reply(list, children(&[own]));
    assert_eq!(bench.election.leading(), Some(9));
    let lines = logged(&mut bench);
    assert!(lines.len() == 1 && lines[0].contains("near their end"), "{lines:?}");
}

#[test]
fn of_two_with_one_number_one_leads() {
    let (mut bench, list) = Bench::listing();
    let rank = contender_rank(OWN).expect("a rank");
    let (first, second) = (format!("0-latch-{rank}"), format!("z-latch-{rank}"));
    bench.reply(list, children(&[&second, OWN, &first]));
    assert_eq!(bench.election.behind(), Some(first.as_str()));
}

#[test]
fn doubt_at_any_call_leads_nowhere_until_the_next_connection() {
    let (bench, create) = Bench::creating();
    let (listing, list) = Bench::listing();
    let (mut watching, before) = Bench::listing();
    watching.reply(before, children(&[A, OWN]));
    let watch = watching.exists_call(A);
    for (mut bench, id) in [(bench, create), (listing, list), (watching, watch)] {
        bench.reply(id, LOST);
        Asked::none(&mut bench.out);
        assert!(bench.election.leading().is_none());
        bench.election.on_lost();
        assert!(bench.election.is_out());
        assert_eq!(bench.election.on_reply(id, &created(OWN), &mut bench.out), Routed::NotMine, "stale");
        bench.election.contend(&mut bench.out);
        bench.contends_anew();
    }
}

#[test]
fn no_reply_is_taken_for_a_call_of_a_lost_connection() {
    let (mut bench, create) = Bench::creating();
    bench.election.on_lost();
    bench.election.contend(&mut bench.out);
    assert_eq!(bench.election.on_reply(create, &created(OWN), &mut bench.out), Routed::NotMine);
    bench.contends_anew();
}

#[test]
fn a_lost_connection_is_a_lost_leadership() {
    for mut bench in [Bench::leading(), Bench::following(), Bench::creating().0, Bench::new()] {
        bench.election.on_lost();
        assert!(bench.election.is_out() && bench.election.leading().is_none());
        bench.changed(OWN, ChangeKind::Deleted);
        bench.changed(B, ChangeKind::Deleted);
        Asked::none(&mut bench.out);
    }
}

#[test]
fn withdrawing_deletes_the_contender_and_ends_the_term_at_once() {
    for mut bench in [Bench::leading(), Bench::following(), Bench::listing().0] {
        bench.election.withdraw(&mut bench.out);
        assert!(bench.election.leading().is_none() && !bench.election.is_out());
        let delete = bench.delete_call(OWN);
        bench.changed(OWN, ChangeKind::Deleted);
        bench.changed(B, ChangeKind::Deleted);
        bench.election.withdraw(&mut bench.out);
        Asked::none(&mut bench.out);
        bench.reply(delete, Ok(Reply::Deleted));
        assert!(bench.election.is_out());
    }
}

#[test]
fn withdrawing_while_entering_leaves_no_contender() {
    let mut bench = Bench::new();
    bench.election.contend(&mut bench.out);
    let (check, _) = Asked::one(&mut bench.out);
    bench.election.withdraw(&mut bench.out);
    assert!(bench.election.is_out());
    assert_eq!(bench.election.on_reply(check, &exists(1), &mut bench.out), Routed::NotMine, "stale");
    Asked::none(&mut bench.out);

    let (mut bench, create) = Bench::creating();
    bench.election.withdraw(&mut bench.out);
    assert!(!bench.election.is_out(), "the contender may exist");
    Asked::none(&mut bench.out);
    bench.reply(create, created(OWN));
    let delete = bench.delete_call(OWN);
    bench.reply(delete, Ok(Reply::Deleted));
    assert!(bench.election.is_out());

    let (mut bench, create) = Bench::creating();
    bench.election.withdraw(&mut bench.out);
    bench.reply(create, NO_NODE);
    assert!(bench.election.is_out());
}

/// Two creations under way would leave a contender of a live session that nobody knows.
#[test]
fn entering_again_while_creating_creates_once() {
    let (mut bench, create) = Bench::creating();
    bench.election.withdraw(&mut bench.out);
    bench.election.contend(&mut bench.out);
    Asked::none(&mut bench.out);
    bench.reply(create, created(OWN));
    bench.exists_call(OWN);
}

#[test]
fn a_refusal_is_reported_and_leaves_no_contender() {
    for refusal in [Refusal::NoAuth, Refusal::NoChildrenForEphemerals, Refusal::Other(-6)] {
        let (mut bench, create) = Bench::creating();
        bench.reply(create, refused(refusal));
        Asked::none(&mut bench.out);
        assert!(bench.election.is_out());
        assert_eq!(bench.election.take_refused().map(|(_, refusal)| refusal), Some(refusal));
        assert_eq!(bench.election.take_refused(), None);
    }
    let (mut bench, create) = Bench::creating();
    bench.reply(create, Ok(Reply::Watching));
    assert_eq!(Asked::of(&mut bench.out).exits, [exit::BUG]);
}
