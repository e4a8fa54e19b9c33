//! Stopping, failing, and doubt.

use super::*;

#[test]
fn a_stop_without_a_run_ends_at_once() {
    let unconnected = || Bench::new(|_| {});
    let following = || {
        let mut bench = Bench::new(|_| {});
        bench.others = vec![OTHER];
        bench.connect();
        bench.answer();
        bench
    };
    let acquiring = || {
        let mut bench = Bench::new(|_| {});
        bench.connect();
        bench.answer_but(is_lease_write);
        bench
    };
    let pausing = || {
        let mut bench = Bench::running(|_| {});
        bench.ended(Ended::Exit(0));
        bench
    };
    for make in [unconnected as fn() -> Bench, following, acquiring, pausing] {
        for (once, code) in [(false, 0), (true, 143)] {
            let mut bench = make();
            bench.role.params.once = once;
            bench.did();
            bench.step(Event::Stop { again: false });
            assert_eq!(bench.did(), [format!("exit {code}")]);
        }
    }
}

#[test]
fn a_stop_gives_the_command_its_grace_under_a_renewed_lease() {
    let mut bench = Bench::running(|params| params.grace = Duration::from_secs(60));
    bench.step(Event::Stop { again: false });
    bench.pass(59_999);
    assert_eq!(bench.did(), ["Term"]);
    bench.pass(1);
    assert_eq!(bench.did(), ["Kill"]);
    bench.ended(Ended::Signal(9));
    assert_eq!(bench.did(), ["exit 0"]);
}

#[test]
fn a_stop_is_cut_to_the_lease_when_leadership_goes_meanwhile() {
    for lose in [Bench::lose as fn(&mut Bench), Bench::deposed] {
        let mut bench = Bench::running(|params| params.grace = Duration::from_secs(60));
        bench.step(Event::Stop { again: false });
        lose(&mut bench);
        bench.answer();
        bench.pass(LEASE_MS - 1);
        assert_eq!(bench.did(), ["Term"]);
        bench.pass(1);
        assert_eq!(bench.did(), ["Kill"]);
        bench.ended(Ended::Signal(9));
        assert_eq!(bench.did(), ["exit 0"]);
    }
}

#[test]
fn a_second_stop_kills_once() {
    let mut bench = Bench::running(|_| {});
    bench.step(Event::Stop { again: false });
    bench.step(Event::Stop { again: true });
    bench.step(Event::Stop { again: true });
    bench.pass(60_000);
    assert_eq!(bench.did(), ["Term", "Kill"]);
    let mut bench = Bench::running(|params| params.grace = Duration::ZERO);
    bench.step(Event::Stop { again: false });
    assert_eq!(bench.did(), ["Term", "Kill"], "no grace");
}

#[test]
fn a_stop_after_a_lost_lead_ends_instead_of_contending() {
    let mut bench = Bench::running(|_| {});
    bench.deposed();
    bench.lose();
    bench.step(Event::Stop { again: false });
    bench.connect();
    bench.ended(Ended::Signal(15));
    assert_eq!(bench.did(), ["Term", "exit 0"]);
    assert!(bench.calls.is_empty());
}

#[test]
fn once_stopped_ends_as_the_command_did() {
    for (ended, code) in [(Ended::Signal(15), 143), (Ended::Exit(0), 0), (Ended::Signal(9), 137)] {
        let mut bench = Bench::running(|params| params.once = true);
        bench.step(Event::Stop { again: false });
        bench.ended(ended);
        assert_eq!(bench.did(), ["Term".to_string(), format!("exit {code}")]);
    }
}

/// The session would be closed, and another lead, with the command still alive.
#[test]
fn no_failure_ends_the_process_before_the_group_is_dead() {
    let mut bench = Bench::running(|_| {});
    let path = format!("/z/elections/e/{}", bench.own());
    bench.step(Event::Changed { path, kind: ChangeKind::Data });
    let (id, _) = bench.calls.pop().expect("a read of the contender");
    bench.step(Event::Reply { id, result: Ok(Reply::Watching) });
    assert_eq!(bench.did(), ["Term"]);
    bench.step(Event::Stop { again: true });
    assert_eq!(bench.did(), ["Kill"]);
    bench.ended(Ended::Signal(9));
    assert_eq!(bench.did(), ["exit 70"]);
}

/// A quota or an ACL that was changed meanwhile: the lease proves what it proves until it ends.
#[test]
fn a_renewal_that_is_refused_ends_nothing_before_the_lease_does() {
    for refusal in [Refusal::NoAuth, Refusal::Other(-6)] {
        let mut bench = Bench::running(|_| {});
        bench.pass_with(2_000, is_lease_write);
        let (id, _) = bench.calls.pop().expect("a renewal");
        bench.step(Event::Reply { id, result: Err(CallError::Refused(refusal)) });
        assert_eq!(bench.did(), [""; 0]);
    }
}

#[test]
fn without_a_run_a_failure_ends_at_once_and_once() {
    let mut bench = Bench::new(|_| {});
    bench.connect();
    bench.answer_but(|call| call.path() == "/z/leases");
    let (id, _) = bench.calls.pop().expect("the check of the directory");
    bench.step(Event::Reply { id, result: Err(CallError::Refused(Refusal::NoAuth)) });
    assert_eq!(bench.did(), ["exit 77"]);
    bench.step(Event::Stop { again: false });
    assert_eq!(bench.did(), [""; 0]);
}

#[test]
fn doubt_at_every_call_is_survived() {
    // The nth call of a life up to the end of a second run is lost with its connection.
    for nth in 0..40 {
        let mut bench = Bench::new(|_| {});
        bench.connect();
        let mut answered = 0;
        let mut lost = false;
        for _ in 0..400 {
            if let Some((id, call)) = (!bench.calls.is_empty()).then(|| bench.calls.remove(0)) {
                if answered == nth && !lost {
                    lost = true;
                    bench.calls.push((id, call));
                    bench.lose();
                    bench.connect();
                    continue;
                }
                answered += 1;
                let result = bench.answer_to(&call);
                bench.step(Event::Reply { id, result });
            } else if let Some(run) = bench.role.run() {
                let stopping = matches!(bench.role.state, State::Stopping { .. });
                bench.now_ms += if stopping { 10 } else { 1_500 };
                bench.step(Event::Wake);
                if bench.calls.is_empty() {
                    bench.step(Event::Ended { run: run.id, report: report(Ended::Exit(0)) });
                }
            }
            if bench.runs.len() >= 4 {
                break;
            }
        }
        assert!(bench.runs.len() >= 4, "stuck after the loss of call {nth}: {:?}", bench.role);
    }
}
