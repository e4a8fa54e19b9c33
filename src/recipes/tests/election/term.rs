//! A term that is handed over from one session to the next, and everything that must not be taken for that.

use super::*;

/// Inherits the rank of `OWN`.
const HEIR: &str = "_c_u-rank-0000000005-latch-0000000008";
const NEXT: &str = "_c_u-rank-0000000005-latch-0000000009";
/// Is between `OWN` and `HEIR`, and goes by ranks.
const PEER: &str = "_c_p-ranked-latch-0000000006";

impl Bench {
    /// It led as `OWN` with epoch 9, and has no connection.
    fn suspended() -> Bench {
        let mut bench = Bench::leading();
        bench.election.suspend();
        assert_eq!((bench.election.leading(), bench.election.term()), (None, Some(9)));
        assert_eq!(bench.election.own_name(), None);
        bench
    }

    #[track_caller]
    fn inherit_call(&mut self) -> CallId {
        self.election.inherit(&mut self.out);
        let (id, call) = Asked::one(&mut self.out);
        let path = format!("{DIR}/_c_u-rank-0000000005-latch-");
        assert_eq!(call, Call::Create { path, data: b"me".to_vec(), mode: CreateMode::EphemeralSequential });
        id
    }

    /// The heir exists and was read; the list is on its way.
    #[track_caller]
    fn listing_as(&mut self, heir: &str, czxid: i64) -> CallId {
        let create = self.inherit_call();
        self.reply(create, created(heir));
        let own = self.exists_call(heir);
        self.reply(own, exists(czxid));
        assert_eq!((self.election.leading(), self.election.term()), (None, Some(9)), "nothing is proved");
        self.list_call()
    }

    fn handed_over() -> Bench {
        let mut bench = Bench::suspended();
        let list = bench.listing_as(HEIR, 15);
        bench.reply(list, children(&[HEIR, PEER, OWN]));
        assert_eq!((bench.election.leading(), bench.election.own_name()), (Some(9), Some(HEIR)));
        Asked::none(&mut bench.out);
        bench
    }

    /// The term is over, and the heir is deleted; what it was to replace is not.
    #[track_caller]
    fn gives_up(&mut self, heir: &str) {
        assert_eq!((self.election.leading(), self.election.term()), (None, None));
        let delete = self.delete_call(heir);
        self.reply(delete, Ok(Reply::Deleted));
        assert!(self.election.is_out());
    }
}

#[test]
fn a_term_keeps_its_epoch_while_both_contenders_exist() {
    let mut bench = Bench::handed_over();
    bench.changed(OWN, ChangeKind::Deleted);
    bench.changed(HEIR, ChangeKind::Data);
    let own = bench.exists_call(HEIR);
    bench.reply(own, exists(15));
    assert_eq!(bench.election.leading(), Some(9), "its own czxid is not its epoch");
    bench.changed(HEIR, ChangeKind::Deleted);
    bench.contends_anew();
}

#[test]
fn the_replaced_contender_is_deleted_when_it_is_said_not_before() {
    let mut bench = Bench::handed_over();
    bench.election.delete_replaced(&mut bench.out);
    let delete = bench.delete_call(OWN);
    bench.reply(delete, NO_NODE);
    bench.election.delete_replaced(&mut bench.out);
    Asked::none(&mut bench.out);
    assert_eq!(bench.election.leading(), Some(9));

    let mut bench = Bench::handed_over();
    bench.election.withdraw(&mut bench.out);
    let calls = Asked::of(&mut bench.out).calls;
    let paths: Vec<_> = calls.iter().map(|(_, call)| call.path()).collect();
    assert_eq!(paths, [format!("{DIR}/{OWN}"), format!("{DIR}/{HEIR}")], "who ends its term leaves nothing");
}

#[test]
fn a_term_is_over_when_the_old_contender_is_gone() {
    for names in [&[HEIR][..], &[HEIR, PEER], &[HEIR, "_c_u-ranked-latch-0000000004"], &[OWN]] {
        let mut bench = Bench::suspended();
        let list = bench.listing_as(HEIR, 15);
        bench.reply(list, children(names));
        bench.gives_up(HEIR);
    }
}

#[test]
fn a_contender_without_ranks_may_follow_the_heir_not_precede_it() {
    for (peer, hands_over) in [
        ("_c_c-latch-0000000007", false),
        ("latch-0000000007", false),
        ("_c_c-latch-0000000009", true),
        ("_c_c-ranked-latch-0000000007", true),
        ("_c_c-rank-0000000006-latch-0000000007", true),
        ("0a__lock__0000000007", true),
    ] {
        let mut bench = Bench::suspended();
        let list = bench.listing_as(HEIR, 15);
        bench.reply(list, children(&[peer, HEIR, OWN]));
        if hands_over {
            assert_eq!(bench.election.leading(), Some(9), "{peer}");
        } else {
            bench.out.drain().filter(|action| matches!(action, Action::Log(..))).for_each(drop);
            assert_eq!(bench.election.term(), None, "{peer}");
        }
    }
}

/// From one session to the next and the next, the rank and the epoch stay. Any contender of whose rank it was proved
/// that it was held proves the next.
#[test]
fn a_term_is_handed_over_again_and_again() {
    for (contenders, goes_on) in [(&[OWN, HEIR][..], true), (&[HEIR], true), (&[OWN], true), (&[], false)] {
        let mut bench = Bench::handed_over();
        bench.election.suspend();
        let list = bench.listing_as(NEXT, 18);
        let names: Vec<_> = contenders.iter().copied().chain([NEXT, PEER]).collect();
        bench.reply(list, children(&names));
        if goes_on {
            assert_eq!(bench.election.leading(), Some(9), "{contenders:?}");
            bench.election.delete_replaced(&mut bench.out);
            assert_eq!(Asked::of(&mut bench.out).calls.len(), contenders.len());
        } else {
            bench.gives_up(NEXT);
        }
    }
}

/// The session in which it was created was lost before anything was proved: it may be of after the old one's end.
#[test]
fn an_heir_of_whom_nothing_was_proved_proves_nothing() {
    let mut bench = Bench::suspended();
    let list = bench.listing_as(HEIR, 15);
    bench.reply(list, LOST);
    bench.election.suspend();
    assert_eq!(bench.election.term(), Some(9));
    let list = bench.listing_as(NEXT, 18);
    bench.reply(list, children(&[HEIR, NEXT]));
    bench.gives_up(NEXT);

    let mut bench = Bench::suspended();
    let create = bench.inherit_call();
    bench.reply(create, LOST);
    bench.election.suspend();
    let list = bench.listing_as(NEXT, 18);
    bench.reply(list, children(&[HEIR, NEXT, OWN]));
    assert_eq!(bench.election.leading(), Some(9));
    bench.delete_call(HEIR);
}

#[test]
fn an_heir_created_after_its_term_is_deleted_and_never_leads() {
    let mut bench = Bench::suspended();
    let create = bench.inherit_call();
    bench.election.abandon(&mut bench.out);
    Asked::none(&mut bench.out);
    assert!(bench.election.term().is_none() && !bench.election.is_out());
    bench.reply(create, created(HEIR));
    bench.gives_up(HEIR);

    // It contends again before the answer is there: with a rank of its own.
    let mut bench = Bench::suspended();
    let create = bench.inherit_call();
    bench.election.withdraw(&mut bench.out);
    bench.election.contend(&mut bench.out);
    Asked::none(&mut bench.out);
    bench.reply(create, created(HEIR));
    let calls = Asked::of(&mut bench.out).calls;
    assert_eq!(calls[0].1, Call::Delete { path: format!("{DIR}/{HEIR}"), version: None });
    let check = calls[1].0;
    bench.reply(check, exists(1));
    bench.create_call();
}

#[test]
fn what_happens_to_the_heir_before_the_proof_ends_the_term() {
    let mut bench = Bench::suspended();
    let create = bench.inherit_call();
    bench.reply(create, NO_NODE);
    assert!(bench.election.is_out());

    for gone in [0, 1, 2] {
        let mut bench = Bench::suspended();
        let create = bench.inherit_call();
        bench.reply(create, created(HEIR));
        let own = bench.exists_call(HEIR);
        match gone {
            0 => bench.reply(own, NO_NODE),
            1 => bench.changed(HEIR, ChangeKind::Deleted),
            _ => {
                bench.reply(own, exists(15));
                let list = bench.list_call();
                bench.reply(list, NO_NODE);
            }
        }
        Asked::none(&mut bench.out);
        assert!(bench.election.is_out() && bench.election.term().is_none());
    }
    let mut bench = Bench::suspended();
    bench.election.abandon(&mut bench.out);
    assert!(bench.election.is_out());
}

#[test]
fn only_a_leader_has_a_term_to_keep() {
    for mut bench in [Bench::following(), Bench::listing().0, Bench::creating().0, Bench::new()] {
        bench.election.suspend();
        assert!(bench.election.is_out() && bench.election.term().is_none());
        bench.election.inherit(&mut bench.out);
        Asked::none(&mut bench.out);
    }
    let mut bench = Bench::handed_over();
    bench.election.on_lost();
    assert!(bench.election.is_out() && bench.election.term().is_none());
}

/// The one behind a leader that handed its term over finds the heir with its rank, and watches that.
#[test]
fn a_contender_behind_the_old_one_stays_behind_the_heir() {
    let (old, heir) = ("_c_p-ranked-latch-0000000002", "_c_p-rank-0000000002-latch-0000000007");
    let (mut bench, list) = Bench::listing();
    bench.reply(list, children(&[old, OWN]));
    let watch = bench.exists_call(old);
    bench.reply(watch, exists(3));
    bench.changed(old, ChangeKind::Deleted);
    let list = bench.list_call();
    bench.reply(list, children(&[heir, OWN]));
    bench.exists_call(heir);
    assert_eq!(bench.election.behind(), Some(heir));
    // A contender that comes while both exist is behind the heir, whose end counts.
    let (mut bench, list) = Bench::listing();
    bench.reply(list, children(&[heir, old, OWN]));
    bench.exists_call(heir);
}
