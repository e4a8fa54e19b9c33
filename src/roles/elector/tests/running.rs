//! While the command runs, and when it ends by itself.

use super::*;

#[test]
fn a_held_lease_is_renewed_and_the_command_left_alone() {
    let mut bench = Bench::running(|_| {});
    bench.pass(3_600_000);
    assert_eq!(bench.did(), [""; 0]);
}

#[test]
fn a_lapsed_lease_kills_without_grace() {
    let mut bench = Bench::running(|_| {});
    bench.pass_with(LEASE_MS - 1, is_lease_write);
    assert_eq!(bench.did(), [""; 0]);
    bench.pass_with(1, is_lease_write);
    assert_eq!(bench.did(), ["Kill"]);
    bench.pass_with(60_000, is_lease_write);
    bench.ended(Ended::Signal(9));
    bench.answer();
    bench.pass(0);
    assert_eq!((bench.did(), bench.epoch()), (vec!["run".to_string()], 102), "under a new epoch");
}

/// As after SIGSTOP: the first thing seen may be an answer to a write of long ago.
#[test]
fn an_elector_suspended_past_the_lease_kills_first() {
    for first in 0..3 {
        let mut bench = Bench::running(|_| {});
        bench.pass_with(2_000, is_lease_write);
        let (id, call) = bench.calls.pop().expect("a renewal is under way");
        let result = bench.answer_to(&call);
        bench.now_ms += 60_000;
        bench.step(match first {
            0 => Event::Wake,
            1 => Event::Reply { id, result },
            _ => Event::Lost { why: "gone".into() },
        });
        assert_eq!(bench.did(), ["Kill"], "{first}");
    }
}

#[test]
fn the_grace_is_cut_to_the_lease() {
    let mut bench = Bench::running(|params| params.grace = Duration::from_secs(3_600));
    bench.pass(1_000);
    bench.deposed();
    bench.answer();
    assert_eq!(bench.did(), ["Term"]);
    bench.pass(LEASE_MS - 1_001);
    assert_eq!(bench.did(), [""; 0]);
    bench.pass(1);
    assert_eq!(bench.did(), ["Kill"]);
}

#[test]
fn the_deposed_contends_anew_only_after_its_group_is_dead() {
    let mut bench = Bench::running(|_| {});
    bench.deposed();
    for _ in 0..2 {
        bench.lose();
        bench.connect();
        bench.pass(500);
        assert!(bench.calls.is_empty(), "neither contends nor renews: {:?}", bench.calls);
    }
    bench.ended(Ended::Signal(15));
    assert_eq!(bench.paths(), ["/z", "/z/elections", "/z/elections/e"]);
    bench.answer();
    assert_eq!(bench.did(), ["Term", "run"], "an interruption is no short run");
}

#[test]
fn once_is_not_over_when_leadership_was_lost() {
    let mut bench = Bench::running(|params| params.once = true);
    bench.deposed();
    bench.ended(Ended::Exit(0));
    bench.answer();
    assert_eq!(bench.did(), ["Term", "run"]);
}

#[test]
fn the_deposed_stops_and_does_not_run_beside_itself() {
    let mut bench = Bench::running(|_| {});
    bench.deposed();
    bench.answer();
    assert_eq!(bench.did(), ["Term"], "it leads again, but its command is not dead");
    bench.ended(Ended::Signal(15));
    bench.answer();
    assert_eq!(bench.did(), ["run"]);
    assert_eq!(bench.runs[1].1.env[1].1, "102");
}

#[test]
fn events_of_another_run_are_not_its_own() {
    let mut bench = Bench::running(|_| {});
    let run = RunId(9_999);
    bench.step(Event::Ended { run, report: report(Ended::Exit(0)) });
    bench.step(Event::NotStarted { run, kind: NotStartedKind::Permanent, why: "no".into() });
    bench.step(Event::Started { run, pid: 1 });
    assert_eq!(bench.did(), [""; 0]);
    bench.pass(10_000);
    bench.ended(Ended::Exit(0));
    bench.ended(Ended::Exit(0));
    bench.answer();
    assert_eq!(bench.did(), ["run"]);
}

// When the command ends by itself.

#[test]
fn an_ended_command_yields_the_lead_before_it_contends_again() {
    let mut bench = Bench::running(|_| {});
    bench.pass(10_000);
    bench.ended(Ended::Exit(3));
    assert_eq!(bench.paths(), [format!("/z/elections/e/{}", bench.own())]);
    bench.answer_but(creates_contender);
    assert_eq!(bench.created, 1);
    bench.answer();
    assert_eq!(bench.did(), ["run"]);
}

#[test]
fn short_runs_are_followed_by_backoff_without_leadership() {
    let mut bench = Bench::running(|_| {});
    for pause_ms in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
        bench.pass(999);
        bench.ended(Ended::Exit(1));
        bench.answer();
        assert!(bench.role.election.is_out());
        bench.pass(pause_ms - 1);
        assert_eq!(bench.did(), [""; 0], "{pause_ms}");
        bench.pass(1);
        assert_eq!(bench.did(), ["run"], "{pause_ms}");
    }
    bench.pass(1_000);
    bench.ended(Ended::Exit(0));
    bench.answer();
    assert_eq!(bench.did(), ["run"], "that one was not short");
    bench.ended(Ended::Exit(1));
    bench.answer();
    bench.pass(1_000);
    assert_eq!(bench.did(), ["run"], "and the next pause is the first again");
}

#[test]
fn a_pause_outlasts_reconnects_and_a_slow_withdrawal() {
    let mut bench = Bench::running(|_| {});
    bench.ended(Ended::Exit(1));
    bench.lose();
    bench.connect();
    assert!(bench.calls.is_empty(), "not before its pause is over");
    bench.pass(1_000);
    assert_eq!(bench.did(), ["run"]);

    bench.ended(Ended::Exit(1));
    bench.pass_with(10_000, is_contender_delete);
    assert_eq!(bench.role.next_wake(), None, "the answer is what it waits for");
    bench.answer();
    bench.pass(0);
    assert_eq!(bench.did(), ["run"]);

    bench.ended(Ended::Exit(1));
    bench.lose();
    bench.pass(60_000);
    bench.connect();
    bench.answer();
    assert_eq!(bench.did(), ["run"]);
}

#[test]
fn once_ends_as_the_command_did() {
    for (ended, code) in [(Ended::Exit(0), 0), (Ended::Exit(42), 42), (Ended::Signal(11), 139)] {
        let mut bench = Bench::running(|params| params.once = true);
        bench.ended(ended);
        assert!(bench.calls.iter().any(|(_, call)| is_contender_delete(call)));
        assert_eq!(bench.did(), [format!("exit {code}")]);
    }
}

#[test]
fn a_failed_start_backs_off_or_ends_with_127() {
    let mut bench = Bench::running(|_| {});
    let run = bench.runs[0].0;
    bench.step(Event::NotStarted { run, kind: NotStartedKind::Permanent, why: "no such file".into() });
    bench.answer();
    assert!(bench.role.election.is_out());
    bench.pass(1_000);
    assert_eq!(bench.did(), ["run"]);
    let mut bench = Bench::running(|params| params.once = true);
    let run = bench.runs[0].0;
    bench.step(Event::NotStarted { run, kind: NotStartedKind::Permanent, why: "no such file".into() });
    assert_eq!(bench.did(), ["exit 127"]);
}

/// The machine is short of something: that is no reason to give up, even once.
#[test]
fn what_cannot_be_started_for_now_is_tried_again() {
    let mut bench = Bench::running(|params| params.once = true);
    let run = bench.runs[0].0;
    bench.step(Event::NotStarted { run, kind: NotStartedKind::Shortage, why: "no more processes".into() });
    bench.answer();
    bench.pass(1_000);
    assert_eq!(bench.did(), ["run"]);
    let run = bench.runs[1].0;
    bench.step(Event::Stop { again: false });
    bench.step(Event::NotStarted { run, kind: NotStartedKind::Shortage, why: "no more processes".into() });
    assert_eq!(bench.did(), ["Term", "exit 143"]);
}

#[test]
fn a_failed_start_after_the_term_backs_off_as_well() {
    let mut bench = Bench::running(|_| {});
    bench.deposed();
    bench.answer();
    let run = bench.runs[0].0;
    bench.step(Event::NotStarted { run, kind: NotStartedKind::Permanent, why: "no such file".into() });
    bench.answer();
    assert!(bench.role.election.is_out());
    bench.pass(1_000);
    assert_eq!(bench.did(), ["Term", "run"]);
}

/// A slot kills the command of a suspended elector when the lease ends: that is no end of its own.
#[test]
fn what_was_killed_while_we_slept_is_run_again() {
    let mut bench = Bench::running(|params| params.once = true);
    bench.pass(1_000);
    bench.now_ms += 60_000;
    bench.ended(Ended::Signal(9));
    assert!(!bench.did().iter().any(|did| did.starts_with("exit")));
    bench.answer();
    bench.pass(0);
    assert_eq!(bench.epoch(), 102, "under a new epoch");
}

/// The lease was renewed just after that.
#[test]
fn a_run_killed_by_its_slot_runs_again_even_with_a_new_lease() {
    let mut bench = Bench::running(|params| params.once = true);
    bench.killed();
    bench.answer();
    bench.pass(0);
    assert_eq!((bench.did(), bench.epoch()), (vec!["run".to_string()], 102), "under a new epoch");
}

#[test]
fn a_command_that_was_killed_with_its_slot_is_run_again() {
    let mut bench = Bench::running(|params| params.once = true);
    bench.step(Event::SlotsLost { why: "it was killed".into() });
    assert_eq!(bench.did(), ["Kill"]);
    bench.ended(Ended::Signal(9));
    bench.answer();
    bench.pass(0);
    assert_eq!((bench.did(), bench.epoch()), (vec!["run".to_string()], 102), "under a new epoch");
}

/// The time for another try had come while the command lived, and nobody thought of it afterwards.
#[test]
fn an_elector_that_may_not_read_contends_after_its_command_died() {
    let mut bench = Bench::running(|_| {});
    let path = format!("/z/elections/e/{}", bench.own());
    bench.step(Event::Changed { path, kind: ChangeKind::Data });
    let (check, _) = bench.calls.pop().expect("it checks");
    bench.step(Event::Reply { id: check, result: Err(CallError::Refused(Refusal::Other(-127))) });
    assert_eq!(bench.did(), ["Term"]);
    bench.pass(1_000);
    bench.ended(Ended::Signal(15));
    bench.answer();
    bench.pass(60_000);
    assert_eq!(bench.did(), ["run"], "{:?}", bench.role.state);
}
