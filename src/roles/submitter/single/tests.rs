//! A single submit, through every loss and conflict that it can meet.

mod marks;

use super::*;
use crate::contract::task::{Outcome, Output, State};
use crate::machine::Captured;
use crate::roles::client::INTERRUPTED;
use crate::roles::client::testing::{
    ClientDriver, Fate, done, failed, is_create, is_delete, is_get, is_set, status,
};

const JOB: &str = "/z/tasks/J";
const TASK: &str = "/z/tasks/J/U";
const DIRS: &[&str] = &["/z", "/z/tasks", JOB];

fn params() -> SingleParams {
    SingleParams {
        layout: Layout::new("/z"),
        ulid: "U".into(),
        key: None,
        job: Some("J".into()),
        payload: Payload::Shell("echo hi".into()),
        options: Options::default(),
        credentials: false,
        waiting: Waiting::Attached { orphan_cancel: false },
        cancel_on_interrupt: false,
        allow_truncated: false,
    }
}

fn driver(params: SingleParams) -> ClientDriver<Single> {
    ClientDriver::new(Single::new(params).expect("fit"), DIRS)
}

/// A submitter that waits.
fn waiting(params: SingleParams) -> ClientDriver<Single> {
    let mut driver = driver(params);
    driver.connect();
    driver.settle();
    assert_eq!(driver.exit, None);
    driver
}

fn keyed() -> SingleParams {
    SingleParams { key: Some("K".into()), ..params() }
}

fn submitted(driver: &ClientDriver<Single>) -> usize {
    driver.reports.iter().filter(|report| matches!(report, ClientReport::Submitted { .. })).count()
}

#[test]
fn a_task_is_created_waited_for_shown_and_deleted() {
    let mut driver = waiting(params());
    assert_eq!(submitted(&driver), 1);
    assert_eq!(driver.count(|call| call.is_write()), 1);
    driver.end(TASK, done());
    driver.notify();
    driver.settle_until(is_delete);
    assert_eq!(driver.ended(), [("J/U".to_string(), State::Done)]);
    assert!(driver.znodes.contains_key(TASK), "shown before it is deleted");
    driver.settle();
    assert_eq!(driver.exit, Some(0));
    assert!(!driver.znodes.contains_key(TASK));
}

/// It can be listed, shown and run again the day after.
#[test]
fn what_ended_badly_stays() {
    let unrun = |state| Outcome::unrun(state, None, "", 1);
    for (outcome, code) in [(failed(7), 7), (unrun(State::Cancelled), 1), (unrun(State::Expired), 1)] {
        let mut driver = waiting(params());
        driver.end(TASK, outcome);
        driver.settle();
        assert_eq!((driver.exit, driver.ended().len(), driver.count(is_delete)), (Some(code), 1, 0));
        assert!(driver.znodes.contains_key(TASK));
    }
}

/// Who pipes its output on must not take a part for the whole.
#[test]
fn a_success_with_cut_output_fails_unless_that_is_allowed() {
    let cut = Output::new(&Captured { head: b"a".to_vec(), omitted: 7, tail: b"z".to_vec() });
    let printed = |stdout: &Output, stderr: &Output| [(stdout.clone(), stderr.clone())];
    let none = Output::default();
    for (allow, code) in [(false, exit::TRUNCATED), (true, exit::OK)] {
        for (stdout, stderr) in printed(&cut, &none).into_iter().chain(printed(&none, &cut)) {
            let mut driver = waiting(SingleParams { allow_truncated: allow, ..params() });
            driver.end(TASK, Outcome { stdout: stdout.clone(), stderr: stderr.clone(), ..done() });
            driver.settle();
            assert_eq!((driver.exit, driver.ended().len(), driver.count(is_delete)), (Some(code), 1, 1));
            assert_eq!(
                driver.logs.iter().any(|(_, text)| text.contains("7 bytes")),
                !allow,
                "{:?}",
                driver.logs
            );
            // Its own code is the stronger one.
            let mut driver = waiting(SingleParams { allow_truncated: allow, ..params() });
            driver.end(TASK, Outcome { stdout, stderr, ..failed(5) });
            driver.settle();
            assert_eq!(driver.exit, Some(5));
        }
    }
}

#[test]
fn missing_directories_are_made() {
    let mut driver =
        ClientDriver::new(Single::new(SingleParams { job: None, ..params() }).expect("fit"), &[]);
    driver.connect();
    driver.settle();
    assert_eq!(driver.role.id().as_str(), format!("{}/U", shared_job("U")));
    assert!(driver.znodes.contains_key(&format!("/z/tasks/{}", driver.role.id())));
}

#[test]
fn g01_an_id_is_reported_only_when_its_task_exists() {
    for fate in [Fate::AppliedUnanswered, Fate::DroppedUnanswered, Fate::NotSent] {
        let mut driver = driver(SingleParams { waiting: Waiting::Detached, ..params() });
        driver.connect();
        driver.settle_until(is_create);
        driver.play(fate);
        assert_eq!((submitted(&driver), driver.exit), (0, None), "{fate:?}");
        driver.connect();
        driver.settle();
        assert_eq!((submitted(&driver), driver.exit), (1, Some(0)), "{fate:?}");
        assert!(driver.znodes.contains_key(TASK));
    }
}

#[test]
fn a_task_is_left_to_the_leader_if_a_create_may_still_arrive() {
    let (applied, dropped) = (Fate::AppliedUnanswered, Fate::DroppedUnanswered);
    // `NodeExists` shows that one request that was in doubt was carried out. Of two the other may come yet.
    for (fates, deletes) in
        [(&[applied][..], 1), (&[dropped], 0), (&[applied, dropped], 0), (&[dropped, applied], 0)]
    {
        let mut driver = driver(params());
        for fate in fates {
            driver.connect();
            driver.settle_until(is_create);
            driver.play(*fate);
        }
        driver.connect();
        driver.settle();
        driver.end(TASK, done());
        driver.settle();
        assert_eq!((driver.exit, driver.count(is_delete)), (Some(0), deletes), "{fates:?}");
    }
}

#[test]
fn a_creation_that_never_left_us_leaves_no_doubt() {
    let mut driver = driver(params());
    driver.connect();
    driver.settle_until(is_create);
    driver.play(Fate::NotSent);
    driver.connect();
    driver.settle();
    driver.end(TASK, done());
    driver.settle();
    assert_eq!((driver.exit, driver.count(is_delete)), (Some(0), 1));
}

#[test]
fn an_outcome_that_came_while_we_were_away_is_seen() {
    let mut driver = waiting(params());
    driver.lose();
    driver.end(TASK, done());
    driver.connect();
    driver.settle();
    assert_eq!((driver.exit, driver.ended().len()), (Some(0), 1));
}

#[test]
fn a_change_reported_before_the_reply_to_a_read_is_not_missed() {
    let mut driver = waiting(params());
    let unchanged = driver.znodes[TASK].0.clone();
    driver.put(TASK, &unchanged);
    driver.notify();
    let Some((id, call)) = driver.pending.pop_front() else { panic!("it reads again") };
    assert!(is_get(&call));
    let (data, stat) = driver.znodes[TASK].clone();
    driver.end(TASK, done());
    driver.event(Event::Changed { path: TASK.into(), kind: crate::machine::ChangeKind::Data });
    driver.event(Event::Reply { id, result: Ok(Reply::Data { data, stat }) });
    driver.settle();
    assert_eq!(driver.exit, Some(0));
}

#[test]
fn a_delete_in_doubt_is_tried_once_more() {
    for fate in [Fate::AppliedUnanswered, Fate::DroppedUnanswered] {
        let mut driver = waiting(params());
        driver.end(TASK, done());
        driver.notify();
        driver.settle_until(is_delete);
        driver.play(fate);
        assert_eq!(driver.exit, None);
        driver.connect();
        driver.settle();
        assert_eq!((driver.exit, driver.ended().len()), (Some(0), 1), "{fate:?}");
        assert!(!driver.znodes.contains_key(TASK));
    }
    let mut driver = waiting(params());
    driver.end(TASK, done());
    driver.notify();
    driver.settle_until(is_delete);
    driver.play(Fate::DroppedUnanswered);
    driver.connect();
    driver.play(Fate::DroppedUnanswered);
    assert_eq!(driver.exit, Some(0), "left to the leader");
}

#[test]
fn an_outage_does_not_keep_us_once_the_outcome_was_shown() {
    let mut driver = waiting(params());
    driver.end(TASK, done());
    driver.notify();
    driver.settle_until(is_delete);
    driver.lose();
    let wake = driver.role.next_wake().expect("patience ends");
    driver.now = wake;
    driver.event(Event::Wake);
    assert_eq!(driver.exit, Some(0));
}

#[test]
fn what_somebody_else_changed_is_not_deleted() {
    let mut driver = waiting(params());
    driver.end(TASK, done());
    driver.notify();
    driver.settle_until(is_delete);
    let mut task = driver.task(TASK);
    task.outcome = None;
    driver.put(TASK, &task.encode());
    driver.settle();
    assert_eq!(driver.exit, Some(0));
    assert!(driver.znodes.contains_key(TASK) && driver.logged("was changed by someone"));
}

#[test]
fn a_task_that_vanishes_is_reported() {
    let mut driver = waiting(params());
    driver.remove(TASK);
    driver.settle();
    assert_eq!(driver.exit, Some(1));
    assert!(driver.logged("was deleted by someone before its outcome was seen"));
}

#[test]
fn a_task_that_becomes_unreadable_is_reported() {
    let mut driver = waiting(params());
    driver.put(TASK, b"garbage");
    driver.settle();
    assert_eq!(driver.exit, Some(exit::DATA));
}

#[test]
fn a_key_finds_its_own_task_and_never_deletes_it() {
    let mut driver = driver(keyed());
    let mut task = Task::new(Payload::Shell("echo hi".into()), Options::default());
    task.keyed = true;
    task.outcome = Some(failed(9));
    driver.put("/z/tasks/J/K", &task.encode());
    driver.connect();
    driver.settle();
    assert_eq!((driver.exit, driver.ended().len(), driver.count(is_delete)), (Some(9), 1, 0));

    let mut driver = waiting(keyed());
    driver.end("/z/tasks/J/K", done());
    driver.settle();
    assert_eq!((driver.exit, driver.count(is_delete)), (Some(0), 0));
}

#[test]
fn a_key_that_is_taken_by_another_task_is_refused() {
    let mut driver = driver(keyed());
    let task = Task::new(Payload::Shell("other".into()), Options::default());
    driver.put("/z/tasks/J/K", &task.encode());
    driver.connect();
    driver.settle();
    assert_eq!((driver.exit, submitted(&driver)), (Some(exit::DATA), 0));
    assert!(driver.logged("J/K"));
}

#[test]
fn a_name_that_is_taken_without_a_creation_in_doubt_is_compared() {
    let mut driver = driver(params());
    let task = Task::new(Payload::Shell("other".into()), Options::default());
    driver.put(TASK, &task.encode());
    driver.connect();
    driver.settle();
    assert_eq!(driver.exit, Some(exit::DATA));
}

#[test]
fn g08_a_full_job_takes_no_more() {
    let fill = |driver: &mut ClientDriver<Single>| {
        for n in 0..MAX_CHILDREN {
            driver.znodes.insert(format!("{JOB}/{n:05}"), (Vec::new(), Stat::default()));
        }
    };
    let mut full = driver(params());
    fill(&mut full);
    full.connect();
    full.settle();
    assert_eq!((full.exit, full.count(is_create)), (Some(exit::TOO_MUCH), 0));

    let mut full = driver(keyed());
    fill(&mut full);
    full.connect();
    full.settle();
    assert_eq!((full.exit, full.count(is_create)), (Some(exit::TOO_MUCH), 0));

    let mut full = driver(SingleParams { waiting: Waiting::Detached, ..keyed() });
    fill(&mut full);
    let mut task = Task::new(Payload::Shell("echo hi".into()), Options::default());
    task.keyed = true;
    full.put("/z/tasks/J/K", &task.encode());
    full.connect();
    full.settle();
    assert_eq!(full.exit, Some(0), "a key works in a full job");
}

#[test]
fn g08_there_is_a_limit_to_jobs() {
    let mut driver = ClientDriver::new(Single::new(params()).expect("fit"), &["/z", "/z/tasks"]);
    for n in 0..MAX_CHILDREN {
        driver.znodes.insert(format!("/z/tasks/{n:05}"), (Vec::new(), Stat::default()));
    }
    driver.connect();
    driver.settle();
    assert_eq!((driver.exit, driver.count(is_create)), (Some(exit::TOO_MUCH), 0));
}

/// One task more than the service admits, in tasks and in bytes.
fn full_in(what: &str) -> Vec<u8> {
    if what == "tasks" { status(5, 0, 5, 1 << 20) } else { status(0, 1_000, 5, 1_010) }
}

#[test]
fn a_task_beyond_the_limits_is_refused_before_it_is_created() {
    for (what, flag) in [("tasks", "--max-pending of"), ("bytes", "--max-pending-bytes of")] {
        for params in [params(), keyed(), SingleParams { waiting: Waiting::Detached, ..params() }] {
            let mut driver = driver(params);
            driver.put("/z/status", &full_in(what));
            driver.connect();
            driver.settle();
            assert_eq!((driver.exit, driver.count(Call::is_write)), (Some(exit::TOO_MUCH), 0));
            assert!(driver.logged(flag) && driver.logged("nothing was submitted"), "{:?}", driver.logs);
        }
    }
}

#[test]
fn the_last_task_that_fits_is_admitted_and_no_limit_admits_all() {
    let bytes = Task::new(params().payload, Options::default()).encode().len() as u64;
    let old = br#"{"v":1,"leader":{"id":"m","host":"h","pid":1,"epoch":1},"workers":0,"slots":0,
        "tasks":{"pending":9,"assigned":0,"done":0,"failed":0,"cancelled":0,"expired":0,"malformed":0}}"#;
    assert!(crate::contract::status::Status::decode(old).is_ok());
    for data in [status(4, 1_000, 5, 1_000 + bytes), old.to_vec(), b"garbage".to_vec()] {
        let mut driver = driver(params());
        driver.put("/z/status", &data);
        driver.connect();
        driver.settle();
        assert_eq!((driver.exit, submitted(&driver)), (None, 1));
    }
    let mut driver = driver(params());
    driver.put("/z/status", &full_in("tasks"));
    driver.connect();
    driver.settle_until(|call| call.path() == "/z/status");
    driver.play(Fate::Refused(Refusal::NoAuth));
    driver.settle();
    assert_eq!((driver.exit, submitted(&driver)), (None, 1), "who may not read it is not refused");
}

/// The two checks are made at once, and answered in any order.
#[test]
fn what_was_known_first_waits_for_the_other() {
    for (turned, room) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut driver = driver(params());
        driver.put("/z/status", if room { b"" } else { b"{}" });
        if !room {
            driver.put("/z/status", &full_in("tasks"));
        }
        driver.connect();
        assert_eq!((driver.pending.len(), driver.count(Call::is_write)), (2, 0));
        if turned {
            driver.pending.rotate_left(1);
        }
        driver.play(Fate::Answered);
        assert_eq!((driver.pending.len(), driver.exit, driver.made.len()), (1, None, 2), "it waits");
        driver.settle();
        assert_eq!(
            (driver.exit, submitted(&driver)),
            if room { (None, 1) } else { (Some(exit::TOO_MUCH), 0) }
        );
    }
}

#[test]
fn an_existing_key_is_reported_however_full_the_service_is() {
    for (command, code) in [("echo hi", exit::OK), ("echo another", exit::DATA)] {
        let mut driver = driver(SingleParams { waiting: Waiting::Detached, ..keyed() });
        let mut task = Task::new(Payload::Shell(command.into()), Options::default());
        task.keyed = true;
        driver.put("/z/tasks/J/K", &task.encode());
        driver.put("/z/status", &full_in("tasks"));
        driver.connect();
        driver.settle();
        assert_eq!((driver.exit, driver.count(Call::is_write)), (Some(code), 0));
    }
}

#[test]
fn a_new_session_asks_anew() {
    let mut driver = driver(keyed());
    driver.put("/z/status", &full_in("tasks"));
    driver.connect();
    driver.settle_until(|call| call.path() == "/z/tasks/J/K");
    driver.lose();
    driver.put("/z/status", &status(0, 0, 5, 1 << 20));
    driver.connect();
    driver.settle();
    assert_eq!((driver.exit, submitted(&driver)), (None, 1));
}

/// A task that may exist already is not refused: its user would not learn of it.
#[test]
fn a_task_in_doubt_is_not_asked_about_again() {
    let mut driver = driver(params());
    driver.connect();
    driver.settle_until(is_create);
    driver.play(Fate::AppliedUnanswered);
    driver.put("/z/status", &full_in("tasks"));
    driver.connect();
    driver.settle();
    assert_eq!((driver.exit, submitted(&driver)), (None, 1));
}

#[test]
fn a_job_that_the_leader_deletes_meanwhile_is_made_again() {
    let mut driver = driver(params());
    driver.connect();
    driver.settle_until(is_create);
    driver.remove(JOB);
    driver.settle();
    assert!(driver.znodes.contains_key(TASK) && driver.exit.is_none());
}

#[test]
fn what_is_not_permitted_or_too_much_says_so() {
    for (refusal, code) in [(Refusal::NoAuth, 77), (Refusal::TooLarge, 73), (Refusal::Other(-125), 73)] {
        let mut driver = driver(params());
        driver.connect();
        driver.settle_until(is_create);
        driver.play(Fate::Refused(refusal));
        assert_eq!(driver.exit, Some(code));
    }
    let payload = Payload::Shell("x".repeat(MAX_TASK_BYTES));
    assert_eq!(Single::new(SingleParams { payload, ..params() }).expect_err("unfit").code, exit::DATA);
}

#[test]
fn the_mark_of_a_possible_orphan_is_created_first() {
    let mut driver = waiting(SingleParams { waiting: Waiting::Attached { orphan_cancel: true }, ..params() });
    assert!(driver.made[0].path().starts_with("/z/submitters/U~1"), "{:?}", driver.made[0]);
    assert!(driver.znodes.contains_key("/z/submitters/U~1"));
    assert_eq!(driver.task(TASK).options.orphan_of.as_deref(), Some("U"));
    driver.lose();
    let before = driver.made.len();
    driver.connect();
    driver.settle();
    assert_eq!(driver.made[before].path(), "/z/submitters/U~2");
    // Somebody deletes it, alone and with its directory.
    driver.remove("/z/submitters/U~2");
    driver.settle();
    assert!(driver.znodes.contains_key("/z/submitters/U~3"));
    driver.znodes.remove("/z/submitters");
    driver.remove("/z/submitters/U~3");
    driver.settle();
    assert!(driver.znodes.contains_key("/z/submitters/U~4"), "{:?}", driver.made);

    let driver = waiting(params());
    assert_eq!(driver.count(|call| call.path().contains("submitters")), 0);
}

#[test]
fn interrupted_it_says_how_to_come_back() {
    let mut before = driver(params());
    before.event(Event::Stop { again: false });
    assert_eq!(before.exit, Some(INTERRUPTED));
    assert!(before.logged("nothing was submitted"));

    let mut amidst = driver(params());
    amidst.connect();
    amidst.settle_until(is_create);
    amidst.event(Event::Stop { again: false });
    assert!(amidst.logged("it may have been submitted: zkmw wait J/U"));

    let mut driver = waiting(params());
    driver.event(Event::Stop { again: false });
    assert_eq!(driver.exit, Some(INTERRUPTED));
    assert!(driver.logged("zkmw wait J/U") && driver.znodes.contains_key(TASK) && !driver.task(TASK).cancel);
}

#[test]
fn an_interrupt_cancels_if_so_requested() {
    let cancelling = SingleParams { cancel_on_interrupt: true, ..params() };
    let mut driver = waiting(cancelling.clone());
    driver.event(Event::Stop { again: false });
    driver.settle_until(is_set);
    // Somebody else is faster: the task has moved on, and what was read of it is stale.
    let mut task = driver.task(TASK);
    task.next_attempt(None, "test");
    driver.put(TASK, &task.encode());
    driver.settle();
    assert!(driver.task(TASK).cancel && driver.task(TASK).attempt == 2 && driver.exit.is_none());
    driver.end(TASK, Outcome::unrun(crate::contract::task::State::Cancelled, None, "", 2));
    driver.settle();
    assert_eq!(driver.exit, Some(1));

    for fate in [Fate::AppliedUnanswered, Fate::DroppedUnanswered, Fate::NotSent] {
        let mut driver = waiting(cancelling.clone());
        driver.event(Event::Stop { again: false });
        driver.settle_until(is_set);
        driver.play(fate);
        driver.connect();
        driver.settle();
        assert!(driver.task(TASK).cancel, "{fate:?}");
        driver.event(Event::Stop { again: true });
        assert_eq!(driver.exit, Some(INTERRUPTED));
    }

    let mut amidst = self::driver(cancelling);
    amidst.connect();
    amidst.settle_until(is_create);
    amidst.event(Event::Stop { again: false });
    amidst.settle();
    assert!(amidst.task(TASK).cancel, "a task that was being created is cancelled too");
}

#[test]
fn a_cancel_that_came_too_late_is_no_news_after_the_outcome() {
    let params = SingleParams {
        cancel_on_interrupt: true,
        waiting: Waiting::Attached { orphan_cancel: true },
        ..params()
    };
    let mut driver = waiting(params);
    driver.lose();
    driver.connect();
    driver.event(Event::Stop { again: false });
    // The answers come in another order than the calls were made: mark and read, then set and read.
    driver.pending.swap(0, 1);
    driver.play(Fate::Answered);
    driver.end(TASK, done());
    driver.play(Fate::Answered);
    // The mark's watch is nothing to this.
    let watch =
        driver.pending.iter().position(|(_, call)| matches!(call, Call::Watch { .. })).expect("a watch");
    let watch = driver.pending.remove(watch).expect("it is there");
    driver.pending.push_front(watch);
    driver.play(Fate::Answered);
    assert!(is_set(&driver.pending[0].1) && is_get(&driver.pending[1].1), "{:?}", driver.pending);
    driver.pending.swap(0, 1);
    driver.play(Fate::Answered);
    driver.play(Fate::Answered);
    driver.pending.rotate_left(1);
    driver.settle();
    assert_eq!((driver.exit, driver.ended().len(), driver.znodes.contains_key(TASK)), (Some(0), 1, false));
}

#[test]
fn a_task_that_never_stops_changing_is_not_chased_for_ever() {
    let mut driver = waiting(SingleParams { cancel_on_interrupt: true, ..params() });
    driver.event(Event::Stop { again: false });
    while driver.exit.is_none() {
        driver.settle_until(is_set);
        driver.play(Fate::Refused(Refusal::BadVersion));
    }
    assert_eq!(driver.exit, Some(exit::TRY_AGAIN));
}

#[test]
fn a_doubtful_create_is_resolved_even_if_the_job_is_full() {
    let mut driver = driver(SingleParams { waiting: Waiting::Detached, ..params() });
    driver.connect();
    driver.settle_until(is_create);
    driver.play(Fate::AppliedUnanswered);
    for n in 0..MAX_CHILDREN {
        driver.znodes.insert(format!("{JOB}/{n:05}"), (Vec::new(), Stat::default()));
    }
    driver.connect();
    driver.settle();
    assert_eq!((driver.exit, submitted(&driver)), (Some(0), 1));
}
