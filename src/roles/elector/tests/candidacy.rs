//! Candidacy, leading, and what it takes to start.

use super::*;

#[test]
fn without_a_command_each_change_is_reported_once() {
    let mut bench = Bench::new(|params| params.command = None);
    bench.others = vec![OTHER];
    bench.connect();
    bench.answer();
    assert_eq!(bench.did(), [format!("waiting behind {OTHER}")]);
    bench.others.clear();
    let path = format!("/z/elections/e/{OTHER}");
    bench.step(Event::Changed { path, kind: ChangeKind::Deleted });
    bench.answer();
    assert_eq!(bench.did(), ["leading, epoch 101"]);
    bench.lose();
    assert_eq!(bench.did(), ["lost: the connection was lost: gone"]);
    bench.connect();
    bench.lose();
    assert_eq!(bench.did(), [""; 0]);
    bench.connect();
    bench.answer();
    assert_eq!(bench.did(), ["leading, epoch 102"]);
    bench.deposed();
    bench.answer();
    assert_eq!(bench.did(), ["lost: its contender was withdrawn or deleted", "leading, epoch 103"]);
    bench.step(Event::Stop { again: false });
    assert_eq!(bench.did(), ["exit 0"]);
    bench.step(Event::Wake);
    bench.lose();
    bench.connect();
    assert!(bench.calls.is_empty() && bench.did().is_empty() && bench.role.next_wake().is_none());
}

#[test]
fn an_idle_elector_writes_nothing_and_wants_no_wake() {
    let mut bench = Bench::new(|params| params.command = None);
    bench.connect();
    bench.answer();
    assert_eq!(bench.role.next_wake(), None);
    let mut bench = Bench::new(|_| {});
    bench.others = vec![OTHER];
    bench.connect();
    bench.answer();
    assert_eq!(bench.role.next_wake(), None);
}

#[test]
fn reports_in_json() {
    let leading = Report::Leading { epoch: 12 };
    let behind = Report::Following { behind: "x".into() };
    let lost = Report::Lost { why: "a\nb".into() };
    assert_eq!(leading.to_json().to_string(), r#"{"state":"leading","epoch":12}"#);
    assert_eq!(behind.to_json().to_string(), r#"{"state":"following","behind":"x"}"#);
    assert_eq!(lost.to_json().to_string(), r#"{"state":"lost","why":"a\nb"}"#);
    assert_eq!(lost.to_string(), "lost: a b");
}

// Starting.

#[test]
fn the_command_gets_its_arguments_and_its_fencing_token() {
    let bench = Bench::running(|_| {});
    let spec = &bench.runs[0].1;
    assert_eq!((spec.argv.as_slice(), spec.output), (&["job".into(), "-x".into()][..], RunOutput::Inherit));
    assert_eq!(spec.env, [("A".into(), "b".into()), ("ZKMW_EPOCH".into(), "101".into())]);
}

#[test]
fn nothing_starts_behind_another() {
    let mut bench = Bench::new(|_| {});
    bench.others = vec![OTHER];
    bench.connect();
    bench.answer();
    bench.pass(60_000);
    assert_eq!(bench.did(), Vec::<String>::new());
}

#[test]
fn nothing_starts_before_its_lease_is_acknowledged() {
    let mut bench = Bench::new(|_| {});
    bench.connect();
    bench.answer_but(is_lease_write);
    assert_eq!((bench.did(), bench.paths()), (vec![], vec!["/z/leases/me.u~1"]));
    bench.now_ms += LEASE_MS;
    let (id, call) = bench.calls.remove(0);
    let result = bench.answer_to(&call);
    bench.step(Event::Reply { id, result });
    assert_eq!(bench.did(), [""; 0], "an acknowledgement so late proves nothing");
    bench.answer();
    assert_eq!(bench.did(), ["run"], "the next one does");
}

/// The proof that an old session gave is still in force when the next one begins to lead.
#[test]
fn the_lease_of_an_old_session_starts_nothing() {
    let mut bench = Bench::running(|_| {});
    bench.pass(1_000);
    bench.lose();
    bench.ended(Ended::Exit(0));
    bench.connect();
    bench.answer_but(is_lease_write);
    assert_eq!((bench.did(), bench.paths()), (Vec::<String>::new(), vec!["/z/leases/me.u~2"]));
    bench.answer();
    assert_eq!(bench.did(), ["run"]);
}

/// Another server may grant a shorter timeout.
#[test]
fn an_old_lease_does_not_outlast_a_shorter_new_session() {
    let mut bench = Bench::running(|_| {});
    bench.pass(1_000);
    bench.lose();
    bench.ended(Ended::Exit(0));
    bench.step(Event::Connected { timeout: T / 2 });
    bench.answer();
    assert_eq!(bench.did(), ["run"]);
    bench.pass_with(LEASE_MS / 2, is_lease_write);
    assert_eq!(bench.did(), ["Kill"]);
}

/// Nor does the write of the run before, in the same session.
#[test]
fn each_run_waits_for_a_write_sent_after_its_term_began() {
    let mut bench = Bench::running(|_| {});
    bench.pass(1_500);
    bench.ended(Ended::Exit(0));
    bench.answer_but(is_lease_write);
    assert_eq!(bench.did(), [""; 0]);
    assert_eq!(bench.paths(), ["/z/leases/me.u~1"]);
    bench.answer();
    assert_eq!(bench.did(), ["run"]);
}

#[test]
fn a_leader_without_a_lease_makes_way() {
    let mut bench = Bench::new(|_| {});
    bench.connect();
    bench.answer_but(is_lease_write);
    bench.pass_with(24_000, |call| is_lease_write(call) || is_contender_delete(call));
    assert!(bench.calls.iter().any(|(_, call)| is_contender_delete(call)), "{:?}", bench.calls);
    assert_eq!(bench.did(), Vec::<String>::new());
    bench.answer();
    bench.pass(1_000);
    assert_eq!(bench.did(), ["run"]);
    assert_eq!(bench.epoch(), 102);
}

#[test]
fn nothing_starts_if_the_lead_is_lost_before_the_lease() {
    for lose in [Bench::lose as fn(&mut Bench), Bench::deposed] {
        let mut bench = Bench::new(|_| {});
        bench.connect();
        bench.answer_but(is_lease_write);
        let (id, call) = bench.calls.pop().expect("the lease's write");
        bench.others = vec![OTHER];
        lose(&mut bench);
        let result = bench.answer_to(&call);
        bench.step(Event::Reply { id, result });
        bench.answer();
        bench.pass(60_000);
        assert_eq!(bench.did(), Vec::<String>::new());
    }
}
