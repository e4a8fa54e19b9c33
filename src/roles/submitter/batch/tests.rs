//! Batches: the common way, keys, interrupts, and then a thousand disasters from seeds.

mod admission;
mod chunks;
mod parts;
mod refused;

use std::collections::VecDeque;

use self::admission::{overtaken, pass};
use super::results::MAX_COMPLAINTS;
use super::*;
use crate::contract::LINES_PER_PART;
use crate::contract::status::Status;
use crate::contract::task::{Outcome, State, Task};
use crate::machine::{BatchLine, Call, CallError, CreateMode, Prng, Refusal, Reply};
use crate::roles::client::INTERRUPTED;
use crate::roles::client::testing::{
    ClientDriver, Fate, done, failed, is_create, is_delete, is_get, is_set, status,
};
use crate::roles::submitter::Waiting;

const STATUS: &str = "/z/status";

/// Of a file with ten bytes on each of these lines.
fn outline(numbers: impl IntoIterator<Item = u64>) -> Outline {
    let mut outline = Outline::default();
    for number in numbers {
        outline.count(number, 10);
    }
    outline
}

fn params(lines: u64) -> BatchParams {
    BatchParams {
        layout: Layout::new("/z"),
        ulid: "B".into(),
        key: None,
        job: None,
        options: Options { priority: Some(3), ..Options::default() },
        outline: outline(0..lines),
        chunk: Some(1),
        credentials: false,
        waiting: Waiting::Attached { orphan_cancel: false },
        cancel_on_interrupt: false,
    }
}

fn keyed(lines: u64) -> BatchParams {
    BatchParams { key: Some("K".into()), ..params(lines) }
}

fn driver(params: BatchParams) -> ClientDriver<Batch> {
    let lines = params.outline.lines;
    let mut driver = ClientDriver::new(Batch::new(params).expect("fit"), &["/z", "/z/tasks"]);
    driver.lines = (0..lines).map(|number| BatchLine { number, text: format!("echo {number}") }).collect();
    driver
}

/// A batch that is created and waits.
fn waiting(params: BatchParams) -> ClientDriver<Batch> {
    let mut driver = driver(params);
    driver.connect();
    driver.settle();
    driver
}

fn tasks(driver: &ClientDriver<Batch>) -> Vec<String> {
    let is_task = |path: &&String| path.matches('/').count() == 4;
    driver.znodes.keys().filter(is_task).cloned().collect()
}

/// What users have in commands and variables is nobody's to read in a log, and a batch has megabytes of it.
#[test]
fn a_broken_invariant_is_reported_without_the_data_of_users() {
    let env = Some([("PASSWORD".to_string(), "hunter2".to_string())].into());
    let mut driver = waiting(BatchParams { options: Options { env, ..Options::default() }, ..params(50) });
    driver.role.results.submitted(1);
    let check = std::panic::AssertUnwindSafe(|| driver.role.assert_invariants());
    let panic = std::panic::catch_unwind(check).expect_err("it does not hold");
    let text = panic.downcast_ref::<String>().expect("words");
    assert!(text.contains("a task was lost: 51 submitted") && text.len() < 200, "{text}");
    let (call, reply) = (
        Call::Create { path: "/z".into(), data: b"hunter2".to_vec(), mode: CreateMode::Persistent },
        Reply::Data { data: b"hunter2".to_vec(), stat: crate::machine::Stat::default() },
    );
    let text = format!("{call:?} {reply:?}");
    assert!(text.contains("7 bytes") && !text.contains("hunter2") && !text.contains("104"), "{text}");
}

fn end_all(driver: &mut ClientDriver<Batch>) {
    for path in tasks(driver) {
        if driver.task(&path).outcome.is_none() {
            driver.end(&path, done());
        }
    }
    driver.settle();
}

fn summary(driver: &ClientDriver<Batch>) -> Progress {
    match driver.reports.last() {
        Some(ClientReport::Summary(progress)) => *progress,
        other => panic!("no summary: {other:?}"),
    }
}

#[test]
fn a_batch_is_created_collected_and_deleted() {
    let lines = LINES_PER_PART + 10;
    let mut driver = waiting(params(lines));
    assert_eq!((driver.exit, tasks(&driver).len() as u64), (None, lines));
    assert_eq!(Job::decode(&driver.znodes["/z/tasks/B~0001"].0).expect("job").options.priority, Some(3));
    assert_eq!(driver.task("/z/tasks/B~0000/0000000").options, Options::default());
    let is_read = |call: &Call| is_get(call) && call.path().matches('/').count() == 4;
    assert_eq!(driver.count(is_read), 0, "a chunk costs no read before its outcome");
    driver.end("/z/tasks/B~0000/0000007", failed(2));
    end_all(&mut driver);
    assert_eq!((driver.exit, tasks(&driver)), (Some(1), vec!["/z/tasks/B~0000/0000007".to_string()]));
    assert_eq!(summary(&driver), Progress { submitted: lines, done: lines - 1, failed: 1, total: lines });
    assert_eq!(driver.count(is_read) as u64, lines, "one read of each");
}

#[test]
fn every_part_is_watched_before_its_first_task() {
    let driver = waiting(params(LINES_PER_PART + 1));
    for part in 0..2 {
        let path = format!("/z/tasks/B~000{part}");
        let watch = |call: &Call| matches!(call, Call::Watch { path: watched, .. } if *watched == path);
        let watch = driver.made.iter().position(watch);
        let first = driver.made.iter().position(|call| call.path().starts_with(&format!("{path}/")));
        assert!(watch.expect("watched") < first.expect("created"));
    }
}

#[test]
fn lines_keep_their_numbers_where_blank_ones_were_skipped() {
    let mut driver = driver(BatchParams { outline: outline([0, 9_999]), ..params(2) });
    driver.lines[1].number = 9_999;
    driver.connect();
    driver.settle();
    assert_eq!(tasks(&driver), ["/z/tasks/B~0000/0000000", "/z/tasks/B~0002/0009999"]);
    end_all(&mut driver);
    assert_eq!(driver.exit, Some(0));
}

#[test]
fn an_empty_batch_is_no_failure() {
    let driver = waiting(params(0));
    assert_eq!((driver.exit, driver.count(Call::is_write)), (Some(0), 0));
    assert!(driver.logged("no lines"));
}

/// The lines that a detached batch reported.
fn submitted(driver: &ClientDriver<Batch>) -> Vec<u64> {
    let lines = |report: &ClientReport| match report {
        ClientReport::SubmittedLines { lines, .. } => lines.clone(),
        _ => Vec::new(),
    };
    let mut lines: Vec<u64> = driver.reports.iter().flat_map(lines).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn detached_it_prints_every_id_and_watches_nothing() {
    let driver = waiting(BatchParams { waiting: Waiting::Detached, job: Some("J".into()), ..params(300) });
    assert_eq!((driver.exit, submitted(&driver)), (Some(0), (0..300).collect()));
    let last = ClientReport::Detached { name: "J~B".into(), submitted: 300 };
    assert_eq!(driver.reports.last(), Some(&last));
    assert_eq!(driver.count(|call| matches!(call, Call::Watch { .. })), 0);
    assert_eq!(driver.count(|call| call.path().contains("submitters")), 0);
    assert_eq!(driver.task("/z/tasks/J~B~0000/0000000").options.orphan_of, None);
}

#[test]
fn the_mark_is_in_the_tasks_and_comes_first() {
    let mut driver = waiting(BatchParams { waiting: Waiting::Attached { orphan_cancel: true }, ..params(3) });
    assert_eq!(driver.made[0].path(), "/z/submitters/B~1");
    assert_eq!(driver.task("/z/tasks/B~0000/0000000").options.orphan_of.as_deref(), Some("B"));
    let before = driver.made.len();
    driver.lose();
    driver.connect();
    driver.settle();
    assert_eq!(driver.made[before].path(), "/z/submitters/B~2");
}

#[test]
fn a_keyed_batch_meets_its_own_tasks_and_deletes_none() {
    let mut first = waiting(keyed(10));
    first.event(Event::Stop { again: false });
    assert!(first.logged("zkmw wait K"));
    first.end("/z/tasks/K~0000/0000001", failed(4));
    first.remove("/z/tasks/K~0000/0000009");

    let mut second = driver(keyed(10));
    second.znodes = first.znodes;
    second.connect();
    second.settle();
    assert_eq!((tasks(&second).len(), second.ended().len(), second.exit), (10, 1, None));
    end_all(&mut second);
    assert_eq!((second.exit, tasks(&second).len(), second.count(is_delete)), (Some(1), 10, 0));
}

#[test]
fn a_key_of_another_batch_is_refused() {
    let first = waiting(keyed(3));
    let mut other_options = driver(BatchParams { options: Options::default(), ..keyed(3) });
    other_options.znodes = first.znodes.clone();
    other_options.connect();
    other_options.settle();
    assert_eq!(other_options.exit, Some(exit::DATA));
    assert!(other_options.logged("with other options"));

    let mut other_line = driver(keyed(3));
    other_line.lines[1].text = "something else".into();
    other_line.znodes = first.znodes;
    other_line.connect();
    other_line.settle();
    assert_eq!(other_line.exit, Some(exit::DATA));
    assert!(other_line.logged("the batch K (line 2)"));
}

/// What is in doubt is made certain, full or not: else it could not be cancelled.
#[test]
fn a_waiting_batch_can_be_cancelled() {
    let mut driver = overtaken(BatchParams { cancel_on_interrupt: true, ..params(2_000) });
    while !driver.logged("waits for room") {
        driver.play(Fate::Answered);
    }
    driver.lose();
    driver.connect();
    pass(&mut driver, 2_000);
    let certain = tasks(&driver).len();
    driver.event(Event::Stop { again: false });
    driver.settle();
    assert!(tasks(&driver).len() > certain, "some were in doubt");
    for path in tasks(&driver) {
        driver.end(&path, Outcome::unrun(State::Cancelled, None, "", 1));
    }
    driver.settle();
    assert_eq!(driver.exit, Some(1));
}

#[test]
fn a_refused_creation_ends_the_batch_with_its_code() {
    for (refusal, code) in [(Refusal::NoAuth, 77), (Refusal::TooLarge, 73)] {
        let mut driver = driver(params(5));
        driver.connect();
        driver.settle_until(|call| is_create(call) && call.path().ends_with("0000002"));
        driver.play(Fate::Refused(refusal));
        assert_eq!(driver.exit, Some(code));
    }
}

#[test]
fn interrupted_it_says_how_to_come_back_or_cancels() {
    let mut before = driver(params(5));
    before.event(Event::Stop { again: false });
    assert!(before.exit == Some(INTERRUPTED) && before.logged("nothing was submitted"));

    let mut plain = waiting(params(5));
    plain.event(Event::Stop { again: false });
    assert!(plain.exit == Some(INTERRUPTED) && plain.logged("zkmw wait B "));

    let mut driver = driver(BatchParams { cancel_on_interrupt: true, ..params(1_000) });
    driver.connect();
    driver.settle_until(|call| is_create(call) && call.path().ends_with("0000300"));
    driver.event(Event::Stop { again: false });
    driver.settle_until(is_set);
    driver.play(Fate::DroppedUnanswered);
    driver.connect();
    driver.settle();
    let open = tasks(&driver);
    assert!((301..=301 + MAX_CALLS).contains(&open.len()), "no more are created: {}", open.len());
    assert!(open.iter().all(|path| driver.task(path).cancel) && driver.exit.is_none());
    for path in &open {
        driver.end(path, Outcome::unrun(State::Cancelled, None, "", 1));
    }
    driver.settle();
    assert_eq!((driver.exit, summary(&driver).failed as usize), (Some(1), open.len()));
}

#[test]
fn once_all_was_shown_no_outage_or_interrupt_costs_the_result() {
    let ended = || {
        let mut driver = waiting(params(5));
        for path in tasks(&driver) {
            driver.end(&path, done());
        }
        driver.notify();
        while driver.ended().len() < 5 {
            driver.play(Fate::Answered);
        }
        assert_eq!(driver.exit, None);
        driver
    };
    let mut outage = ended();
    outage.lose();
    outage.now = outage.role.next_wake().expect("patience ends");
    outage.event(Event::Wake);
    assert_eq!(outage.exit, Some(0));
    let mut interrupt = ended();
    interrupt.event(Event::Stop { again: false });
    assert_eq!(interrupt.exit, Some(0));
}

#[test]
fn g12_vanished_or_unreadable_tasks_are_named_up_to_a_limit() {
    let mut driver = waiting(params(100));
    for (at, path) in tasks(&driver).into_iter().enumerate() {
        if at % 2 == 0 { driver.remove(&path) } else { driver.put(&path, b"garbage") }
    }
    driver.settle();
    assert_eq!((driver.exit, summary(&driver).failed), (Some(1), 100));
    assert!(driver.logs.len() <= MAX_COMPLAINTS as usize + 1, "{}", driver.logs.len());
}

/// Writes that were in doubt when their session was lost, and that the ensemble may still carry out.
fn lose_at_random(driver: &mut ClientDriver<Batch>, prng: &mut Prng, late: &mut VecDeque<Call>) {
    for (id, call) in std::mem::take(&mut driver.pending) {
        let error = match prng.next_u64() % 4 {
            0 => CallError::NotSent,
            1 => {
                drop(driver.apply(&call));
                CallError::MaybeApplied
            }
            2 => {
                late.push_back(call);
                CallError::MaybeApplied
            }
            _ => CallError::MaybeApplied,
        };
        driver.event(Event::Reply { id, result: Err(error) });
    }
    driver.lose();
}

/// Plays a batch to its end, with events, answers and losses in an order that the seed draws; `end` ends the task of
/// some line. Late writes may come when all is over: no task may run again because of them.
fn through_losses(
    seed: u64,
    params: BatchParams,
    end: impl Fn(&mut ClientDriver<Batch>, u64),
) -> ClientDriver<Batch> {
    let (mut prng, lines) = (Prng::new(seed), params.outline.lines);
    let mut driver = driver(params);
    let mut late = VecDeque::new();
    let mut losses = 0;
    driver.connect();
    for _ in 0..100_000 {
        if driver.exit.is_some() {
            break;
        }
        match prng.next_u64() % 600 {
            0 if driver.online && losses < 30 => {
                losses += 1;
                lose_at_random(&mut driver, &mut prng, &mut late);
            }
            1..100 => end(&mut driver, prng.next_u64() % lines),
            100..120 => drop(late.pop_front().map(|call| driver.apply(&call))),
            120..200 => driver.notify(),
            _ if !driver.online => driver.connect(),
            // Calls of one turn are carried out in any order.
            roll if !driver.pending.is_empty() => {
                let at = roll as usize % driver.pending.len();
                driver.pending.rotate_left(at);
                driver.play(Fate::Answered);
            }
            _ => {}
        }
    }
    for call in late {
        drop(driver.apply(&call));
    }
    let again = tasks(&driver).into_iter().find(|path| driver.task(path).outcome.is_none());
    assert_eq!(again, None, "seed {seed}: it would run again");
    driver
}

/// Whether the task exists and may get its outcome.
fn is_to_end(driver: &ClientDriver<Batch>, path: &str) -> bool {
    driver.znodes.contains_key(path) && driver.task(path).outcome.is_none()
}

#[test]
fn a_batch_survives_whatever_happens_to_its_connections() {
    const LINES: u64 = 300;
    for seed in 0..100 {
        let driver = through_losses(seed, params(LINES), |driver, line| {
            let path = format!("/z/tasks/B~0000/{line:07}");
            if is_to_end(driver, &path) {
                driver.end(&path, done());
            }
        });
        assert_eq!(driver.exit, Some(0), "seed {seed}: {:?}", driver.role);
        let mut ended: Vec<String> = driver.ended().into_iter().map(|(id, _)| id).collect();
        ended.sort_unstable();
        ended.dedup();
        assert_eq!((ended.len() as u64, driver.ended().len() as u64), (LINES, LINES), "seed {seed}");
    }
}

/// What was made by the one request that was in doubt is collected; what such a request may make again is reported.
#[test]
fn tasks_left_for_the_leader_are_reported() {
    for (fate, deletes) in [(Fate::AppliedUnanswered, 2), (Fate::DroppedUnanswered, 1)] {
        let mut driver = driver(params(2));
        driver.connect();
        // The last: others on their way would be in doubt as well.
        driver.settle_until(|call| is_create(call) && call.path().contains("~0000/0000001"));
        driver.play(fate);
        driver.connect();
        driver.settle();
        for path in tasks(&driver) {
            driver.end(&path, done());
        }
        driver.now = driver.now + std::time::Duration::from_secs(10);
        driver.event(Event::Wake);
        driver.settle();
        assert_eq!((driver.exit, driver.count(is_delete)), (Some(0), deletes), "{fate:?}: {:?}", driver.made);
        assert_eq!(
            driver.logged("1 outcomes that were shown still exist"),
            deletes == 1,
            "{:?}",
            driver.logs
        );
    }
}

#[test]
fn an_outcome_before_the_reply_to_the_create_is_not_missed() {
    let mut driver = driver(params(1));
    driver.connect();
    driver.settle_until(is_create);
    driver.settle_until(|call| call.path().ends_with("/0000000"));
    let Some((id, call)) = driver.pending.pop_front() else { panic!("it is created") };
    let result = driver.apply(&call);
    driver.end(call.path(), done());
    driver.notify();
    driver.event(Event::Reply { id, result });
    driver.settle();
    assert_eq!((driver.exit, driver.ended().len()), (Some(0), 1));
}
