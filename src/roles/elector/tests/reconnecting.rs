//! The connection is lost while the command runs: it runs on under the lease, and the next session takes the lead over.

use super::*;

fn is_list(call: &Call) -> bool {
    matches!(call, Call::Children { .. })
}

#[test]
fn a_command_runs_on_under_the_lease_and_is_killed_at_its_end() {
    let mut bench = Bench::running(|params| params.grace = Duration::from_secs(3_600));
    bench.pass(1_000);
    bench.lose();
    assert_eq!(bench.status, "leading, epoch 101; connection lost, lease for 5.0 s more");
    bench.pass(LEASE_MS - 1_001);
    assert_eq!(bench.did(), [""; 0]);
    bench.pass(1);
    assert_eq!(bench.did(), ["Kill"]);
    bench.connect();
    bench.pass(60_000);
    assert!(
        bench.calls.is_empty() && bench.did().is_empty(),
        "once, and it does not contend before it is dead"
    );
    bench.ended(Ended::Signal(9));
    bench.answer();
    bench.pass(0);
    assert_eq!((bench.did(), bench.epoch()), (vec!["run".to_string()], 102), "under a new epoch");
}

#[test]
fn repeated_session_losses_do_not_disturb_the_command() {
    let mut bench = Bench::running(|_| {});
    for reconnect in 1..50 {
        bench.pass(3_000);
        bench.lose();
        bench.pass(3_000);
        bench.connect();
        bench.answer();
        bench.pass(1);
        assert_eq!(
            bench.contenders(),
            [format!("rank-0000000001-latch-{:010}", reconnect + 1)],
            "the old one is gone"
        );
        assert_eq!(bench.status, "leading, epoch 101");
    }
    assert_eq!((bench.did(), bench.role.election.leading()), (Vec::<String>::new(), Some(101)));
    bench.pass(60_000);
    bench.ended(Ended::Exit(0));
    bench.answer();
    assert_eq!(bench.did(), ["run"]);
    assert_eq!(bench.runs[1].1.env[1].1, "151", "the next run has a new epoch");
}

/// Only what the old session proved counts until it is certain that the new one replaced it.
#[test]
fn no_lease_is_written_over_a_session_before_its_handover() {
    let mut bench = Bench::running(|_| {});
    bench.lose();
    bench.connect();
    bench.answer_but(is_list);
    bench.pass_with(LEASE_MS - 1, is_list);
    assert_eq!((bench.did(), bench.leased_until), (Vec::<String>::new(), Some(at_ms(1_000 + LEASE_MS))));
    assert!(bench.calls.iter().all(|(_, call)| is_list(call)), "{:?}", bench.calls);
    bench.pass_with(1, is_list);
    assert_eq!(bench.did(), ["Kill"]);
    // The list comes when it is too late.
    bench.answer();
    assert_eq!(bench.role.election.term(), None);
    assert_eq!(bench.contenders(), ["ranked-latch-0000000001"], "the heir is deleted, the old one is not");
}

/// Another server may grant a shorter timeout: then the old session protects the run for longer, by its contender.
#[test]
fn the_old_contender_stays_until_the_new_lease_is_longer() {
    let mut bench = Bench::running(|_| {});
    bench.pass(3_000);
    bench.lose();
    bench.step(Event::Connected { timeout: Duration::from_secs(3) });
    bench.answer();
    let both = ["ranked-latch-0000000001", "rank-0000000001-latch-0000000002"];
    let until = at_ms(3_000 + LEASE_MS);
    assert_eq!((bench.contenders(), bench.leased_until), (both.to_vec(), Some(until)));
    // Of three seconds a lease has one.
    bench.pass(3_998);
    assert_eq!((bench.contenders(), bench.leased_until), (both.to_vec(), Some(until)));
    bench.pass(1_000);
    assert_eq!(bench.contenders(), both[1..]);
    bench.pass_with(1_000, is_lease_write);
    assert_eq!(bench.did(), ["Kill"], "the lease is the new session's");
}

#[test]
fn a_lead_that_cannot_be_handed_over_ends_within_the_grace() {
    let gone = |bench: &mut Bench| bench.expire("ranked-latch-0000000001");
    let unaware = |bench: &mut Bench| bench.others = vec![OTHER];
    for break_it in [gone as fn(&mut Bench), unaware] {
        let mut bench = Bench::running(|_| {});
        bench.lose();
        break_it(&mut bench);
        bench.connect();
        bench.answer();
        assert_eq!(bench.did(), ["Term"]);
        assert!(bench.contenders().iter().all(|name| name.starts_with("ranked")), "{:?}", bench.contenders());
        bench.pass(2_999);
        assert_eq!(bench.did(), [""; 0]);
        bench.pass(1);
        assert_eq!(bench.did(), ["Kill"]);
        bench.ended(Ended::Signal(9));
        bench.others.clear();
        bench.answer();
        bench.pass(0);
        assert_eq!(bench.did(), ["run"]);
        assert!(
            bench.own().starts_with("_c_u-ranked-") && bench.contenders.len() == 1,
            "{:?}",
            bench.contenders
        );
    }
}

#[test]
fn a_doubtful_call_in_a_handover_changes_and_leaves_nothing() {
    for nth in 0..6 {
        for again in 0..6 {
            let mut bench = Bench::running(|_| {});
            for lost_at in [nth, again] {
                bench.lose();
                bench.connect();
                for _ in 0..lost_at {
                    let Some((id, call)) = (!bench.calls.is_empty()).then(|| bench.calls.remove(0)) else {
                        break;
                    };
                    let result = bench.answer_to(&call);
                    bench.step(Event::Reply { id, result });
                }
                // What was under way when the connection broke is applied, or not.
                if (nth + again) % 2 == 0 {
                    for call in bench.calls.iter().map(|(_, call)| call.clone()).collect::<Vec<_>>() {
                        let _ = bench.answer_to(&call);
                    }
                }
            }
            bench.lose();
            bench.connect();
            bench.answer();
            bench.pass(10_000);
            assert_eq!(
                (bench.did(), bench.role.election.leading()),
                (Vec::<String>::new(), Some(101)),
                "{nth}, {again}"
            );
            assert_eq!(bench.contenders.len(), 1, "{nth}, {again}: {:?}", bench.contenders);
        }
    }
}

#[test]
fn an_end_without_a_connection_is_an_end() {
    let mut bench = Bench::running(|_| {});
    bench.pass(10_000);
    bench.lose();
    bench.ended(Ended::Exit(0));
    bench.pass(60_000);
    assert!(bench.calls.is_empty());
    bench.connect();
    bench.answer();
    assert_eq!(bench.did(), ["run"]);
    assert_eq!(bench.contenders(), ["ranked-latch-0000000002"], "it made way");

    for connected in [false, true] {
        let mut bench = Bench::running(|params| params.once = true);
        bench.lose();
        if connected {
            bench.connect();
        }
        bench.ended(Ended::Exit(7));
        assert_eq!(bench.did(), ["exit 7"], "it ran to its end under the lease");
        bench.step(Event::Wake);
    }
}

/// In the middle of a handover: the heir is deleted when its creation is answered, and never leads.
#[test]
fn a_command_that_ends_while_its_lead_is_handed_over_makes_way() {
    for held in [creates_contender as fn(&Call) -> bool, is_list] {
        let mut bench = Bench::running(|_| {});
        bench.pass(10_000);
        bench.lose();
        bench.connect();
        bench.answer_but(held);
        bench.ended(Ended::Exit(0));
        bench.answer();
        bench.pass(0);
        assert_eq!(bench.did(), ["run"]);
        let names = bench.contenders();
        assert!(names.len() == 1 && names[0].starts_with("ranked"), "{names:?}");
    }
}

#[test]
fn a_stop_while_disconnected_hands_over_and_keeps_its_grace() {
    let mut bench = Bench::running(|params| params.grace = Duration::from_secs(60));
    bench.lose();
    bench.step(Event::Stop { again: false });
    bench.connect();
    bench.answer();
    bench.pass(59_999);
    assert_eq!(bench.did(), ["Term"]);
    bench.ended(Ended::Signal(15));
    assert_eq!(bench.did(), ["exit 0"]);
    assert!(bench.paths().iter().any(|path| path.ends_with(&bench.own())), "it makes way: {:?}", bench.calls);

    let mut bench = Bench::running(|_| {});
    bench.lose();
    bench.step(Event::Stop { again: false });
    bench.step(Event::Stop { again: true });
    bench.connect();
    assert!(bench.calls.is_empty(), "a killed command needs no lead");
    bench.ended(Ended::Signal(9));
    assert_eq!(bench.did(), ["Term", "Kill", "exit 0"]);
}

#[test]
fn a_kill_of_the_command_during_a_handover_ends_the_lead() {
    for held in [creates_contender as fn(&Call) -> bool, is_list] {
        let mut bench = Bench::running(|_| {});
        bench.lose();
        bench.connect();
        bench.answer_but(held);
        bench.step(Event::SlotsLost { why: "it was killed".into() });
        assert_eq!(bench.did(), ["Kill"]);
        bench.answer();
        assert_eq!(bench.contenders(), ["ranked-latch-0000000001"]);
        bench.ended(Ended::Signal(9));
        bench.answer();
        bench.pass(0);
        assert_eq!((bench.did(), bench.contenders.len()), (vec!["run".to_string()], 1));
    }
}

/// As after SIGSTOP: whatever comes first after the lease was over, its slot has killed by then.
#[test]
fn an_elector_suspended_past_the_lease_takes_nothing_over() {
    for first in 0..3 {
        let mut bench = Bench::running(|_| {});
        bench.lose();
        if first > 0 {
            bench.connect();
            bench.answer_but(is_list);
        }
        bench.now_ms += 60_000;
        match first {
            0 => bench.connect(),
            1 => bench.answer(),
            _ => bench.lose(),
        }
        assert_eq!((bench.did(), bench.role.election.term()), (vec!["Kill".to_string()], None), "{first}");
    }
}

/// Without a command nothing proves that nobody else leads: it says at once that it does not know any more.
#[test]
fn without_a_command_a_lost_connection_is_a_lost_lead() {
    let mut bench = Bench::new(|params| params.command = None);
    bench.connect();
    bench.answer();
    bench.lose();
    bench.connect();
    bench.answer();
    assert_eq!(
        bench.did()[..],
        ["leading, epoch 101", "lost: the connection was lost: gone", "leading, epoch 102"]
    );
}
