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
use crate::roles::client::testing::{Desk, Fate, done, failed, is_create, is_delete, is_get, is_set, status};

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
        detach: false,
        orphan_cancel: false,
        cancel_on_interrupt: false,
    }
}

fn keyed(lines: u64) -> BatchParams {
    BatchParams { key: Some("K".into()), ..params(lines) }
}

fn desk(params: BatchParams) -> Desk<Batch> {
    let lines = params.outline.lines;
    let mut desk = Desk::new(Batch::new(params).expect("fit"), &["/z", "/z/tasks"]);
    desk.lines = (0..lines).map(|number| BatchLine { number, text: format!("echo {number}") }).collect();
    desk
}

/// A batch that stands and waits.
fn waiting(params: BatchParams) -> Desk<Batch> {
    let mut desk = desk(params);
    desk.connect();
    desk.settle();
    desk
}

fn tasks(desk: &Desk<Batch>) -> Vec<String> {
    let is_task = |path: &&String| path.matches('/').count() == 4;
    desk.znodes.keys().filter(is_task).cloned().collect()
}

/// What users have in commands and variables is nobody's to read in a log, and a batch has megabytes of it.
#[test]
fn a_broken_invariant_is_reported_without_the_data_of_users() {
    let env = Some([("PASSWORD".to_string(), "hunter2".to_string())].into());
    let mut desk = waiting(BatchParams { options: Options { env, ..Options::default() }, ..params(50) });
    desk.role.results.submitted(1);
    let check = std::panic::AssertUnwindSafe(|| desk.role.assert_invariants());
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

fn end_all(desk: &mut Desk<Batch>) {
    for path in tasks(desk) {
        if desk.task(&path).outcome.is_none() {
            desk.end(&path, done());
        }
    }
    desk.settle();
}

fn summary(desk: &Desk<Batch>) -> Progress {
    match desk.reports.last() {
        Some(ClientReport::Summary(progress)) => *progress,
        other => panic!("no summary: {other:?}"),
    }
}

#[test]
fn a_batch_is_created_collected_and_deleted() {
    let lines = LINES_PER_PART + 10;
    let mut desk = waiting(params(lines));
    assert_eq!((desk.exit, tasks(&desk).len() as u64), (None, lines));
    assert_eq!(Job::decode(&desk.znodes["/z/tasks/B~0001"].0).expect("job").options.priority, Some(3));
    assert_eq!(desk.task("/z/tasks/B~0000/0000000").options, Options::default());
    let is_read = |call: &Call| is_get(call) && call.path().matches('/').count() == 4;
    assert_eq!(desk.count(is_read), 0, "a chunk costs no read before its outcome");
    desk.end("/z/tasks/B~0000/0000007", failed(2));
    end_all(&mut desk);
    assert_eq!((desk.exit, tasks(&desk)), (Some(1), vec!["/z/tasks/B~0000/0000007".to_string()]));
    assert_eq!(summary(&desk), Progress { submitted: lines, done: lines - 1, failed: 1, total: lines });
    assert_eq!(desk.count(is_read) as u64, lines, "one look at each");
}

#[test]
fn every_part_is_watched_before_its_first_task() {
    let desk = waiting(params(LINES_PER_PART + 1));
    for part in 0..2 {
        let path = format!("/z/tasks/B~000{part}");
        let watch = |call: &Call| matches!(call, Call::Watch { path: watched, .. } if *watched == path);
        let watch = desk.made.iter().position(watch);
        let first = desk.made.iter().position(|call| call.path().starts_with(&format!("{path}/")));
        assert!(watch.expect("watched") < first.expect("created"));
    }
}

#[test]
fn lines_keep_their_numbers_where_blank_ones_were_skipped() {
    let mut desk = desk(BatchParams { outline: outline([0, 9_999]), ..params(2) });
    desk.lines[1].number = 9_999;
    desk.connect();
    desk.settle();
    assert_eq!(tasks(&desk), ["/z/tasks/B~0000/0000000", "/z/tasks/B~0002/0009999"]);
    end_all(&mut desk);
    assert_eq!(desk.exit, Some(0));
}

#[test]
fn an_empty_batch_is_no_failure() {
    let desk = waiting(params(0));
    assert_eq!((desk.exit, desk.count(Call::is_write)), (Some(0), 0));
    assert!(desk.logged("no lines"));
}

/// The lines that a detached batch told of.
fn submitted(desk: &Desk<Batch>) -> Vec<u64> {
    let lines = |report: &ClientReport| match report {
        ClientReport::SubmittedLines { lines, .. } => lines.clone(),
        _ => Vec::new(),
    };
    let mut lines: Vec<u64> = desk.reports.iter().flat_map(lines).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn detached_it_prints_every_id_and_watches_nothing() {
    let desk =
        waiting(BatchParams { detach: true, orphan_cancel: true, job: Some("J".into()), ..params(300) });
    assert_eq!((desk.exit, submitted(&desk)), (Some(0), (0..300).collect()));
    let last = ClientReport::Detached { name: "J~B".into(), submitted: 300 };
    assert_eq!(desk.reports.last(), Some(&last));
    assert_eq!(desk.count(|call| matches!(call, Call::Watch { .. })), 0);
    assert_eq!(desk.count(|call| call.path().contains("submitters")), 0);
    assert_eq!(desk.task("/z/tasks/J~B~0000/0000000").options.orphan_of, None);
}

#[test]
fn the_mark_is_in_the_tasks_and_comes_first() {
    let mut desk = waiting(BatchParams { orphan_cancel: true, ..params(3) });
    assert_eq!(desk.made[0].path(), "/z/submitters/B~1");
    assert_eq!(desk.task("/z/tasks/B~0000/0000000").options.orphan_of.as_deref(), Some("B"));
    let before = desk.made.len();
    desk.lose();
    desk.connect();
    desk.settle();
    assert_eq!(desk.made[before].path(), "/z/submitters/B~2");
}

#[test]
fn a_keyed_batch_meets_its_own_tasks_and_deletes_none() {
    let mut first = waiting(keyed(10));
    first.event(Event::Stop { again: false });
    assert!(first.logged("zkmw wait K"));
    first.end("/z/tasks/K~0000/0000001", failed(4));
    first.remove("/z/tasks/K~0000/0000009");

    let mut second = desk(keyed(10));
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
    let mut other_options = desk(BatchParams { options: Options::default(), ..keyed(3) });
    other_options.znodes = first.znodes.clone();
    other_options.connect();
    other_options.settle();
    assert_eq!(other_options.exit, Some(exit::DATA));
    assert!(other_options.logged("with other options"));

    let mut other_line = desk(keyed(3));
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
    let mut desk = overtaken(BatchParams { cancel_on_interrupt: true, ..params(2_000) });
    while !desk.logged("waits for room") {
        desk.play(Fate::Answered);
    }
    desk.lose();
    desk.connect();
    pass(&mut desk, 2_000);
    let certain = tasks(&desk).len();
    desk.event(Event::Stop { again: false });
    desk.settle();
    assert!(tasks(&desk).len() > certain, "some were in doubt");
    for path in tasks(&desk) {
        desk.end(&path, Outcome::unrun(State::Cancelled, None, "", 1));
    }
    desk.settle();
    assert_eq!(desk.exit, Some(1));
}

#[test]
fn a_refused_creation_ends_the_batch_with_its_code() {
    for (refusal, code) in [(Refusal::NoAuth, 77), (Refusal::TooLarge, 73)] {
        let mut desk = desk(params(5));
        desk.connect();
        desk.settle_until(|call| is_create(call) && call.path().ends_with("0000002"));
        desk.play(Fate::Refused(refusal));
        assert_eq!(desk.exit, Some(code));
    }
}

#[test]
fn interrupted_it_says_how_to_come_back_or_cancels() {
    let mut before = desk(params(5));
    before.event(Event::Stop { again: false });
    assert!(before.exit == Some(INTERRUPTED) && before.logged("nothing was submitted"));

    let mut plain = waiting(params(5));
    plain.event(Event::Stop { again: false });
    assert!(plain.exit == Some(INTERRUPTED) && plain.logged("zkmw wait B "));

    let mut desk = desk(BatchParams { cancel_on_interrupt: true, ..params(1_000) });
    desk.connect();
    desk.settle_until(|call| is_create(call) && call.path().ends_with("0000300"));
    desk.event(Event::Stop { again: false });
    desk.settle_until(is_set);
    desk.play(Fate::DroppedUnanswered);
    desk.connect();
    desk.settle();
    let standing = tasks(&desk);
    assert!((301..=301 + MAX_CALLS).contains(&standing.len()), "no more are created: {}", standing.len());
    assert!(standing.iter().all(|path| desk.task(path).cancel) && desk.exit.is_none());
    for path in &standing {
        desk.end(path, Outcome::unrun(State::Cancelled, None, "", 1));
    }
    desk.settle();
    assert_eq!((desk.exit, summary(&desk).failed as usize), (Some(1), standing.len()));
}

#[test]
fn once_all_was_shown_no_outage_or_interrupt_costs_the_result() {
    let ended = || {
        let mut desk = waiting(params(5));
        for path in tasks(&desk) {
            desk.end(&path, done());
        }
        desk.tell();
        while desk.ended().len() < 5 {
            desk.play(Fate::Answered);
        }
        assert_eq!(desk.exit, None);
        desk
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
    let mut desk = waiting(params(100));
    for (at, path) in tasks(&desk).into_iter().enumerate() {
        if at % 2 == 0 { desk.remove(&path) } else { desk.put(&path, b"garbage") }
    }
    desk.settle();
    assert_eq!((desk.exit, summary(&desk).failed), (Some(1), 100));
    assert!(desk.logs.len() <= MAX_COMPLAINTS as usize + 1, "{}", desk.logs.len());
}

/// Writes that were in doubt when their session was lost, and that the ensemble may still carry out.
fn lose_at_random(desk: &mut Desk<Batch>, prng: &mut Prng, late: &mut VecDeque<Call>) {
    for (id, call) in std::mem::take(&mut desk.pending) {
        let error = match prng.next_u64() % 4 {
            0 => CallError::NotSent,
            1 => {
                drop(desk.apply(&call));
                CallError::MaybeApplied
            }
            2 => {
                late.push_back(call);
                CallError::MaybeApplied
            }
            _ => CallError::MaybeApplied,
        };
        desk.event(Event::Reply { id, result: Err(error) });
    }
    desk.lose();
}

/// Plays a batch to its end, with events, answers and losses in an order that the seed draws; `end` ends the task of
/// some line. Late writes may come when all is over: no task may run again because of them.
fn through_losses(seed: u64, params: BatchParams, end: impl Fn(&mut Desk<Batch>, u64)) -> Desk<Batch> {
    let (mut prng, lines) = (Prng::new(seed), params.outline.lines);
    let mut desk = desk(params);
    let mut late = VecDeque::new();
    let mut losses = 0;
    desk.connect();
    for _ in 0..100_000 {
        if desk.exit.is_some() {
            break;
        }
        match prng.next_u64() % 600 {
            0 if desk.online && losses < 30 => {
                losses += 1;
                lose_at_random(&mut desk, &mut prng, &mut late);
            }
            1..100 => end(&mut desk, prng.next_u64() % lines),
            100..120 => drop(late.pop_front().map(|call| desk.apply(&call))),
            120..200 => desk.tell(),
            _ if !desk.online => desk.connect(),
            // Calls of one turn are carried out in any order.
            roll if !desk.pending.is_empty() => {
                let at = roll as usize % desk.pending.len();
                desk.pending.rotate_left(at);
                desk.play(Fate::Answered);
            }
            _ => {}
        }
    }
    for call in late {
        drop(desk.apply(&call));
    }
    let again = tasks(&desk).into_iter().find(|path| desk.task(path).outcome.is_none());
    assert_eq!(again, None, "seed {seed}: it would run again");
    desk
}

/// Whether the task stands and may get its outcome.
fn is_to_end(desk: &Desk<Batch>, path: &str) -> bool {
    desk.znodes.contains_key(path) && desk.task(path).outcome.is_none()
}

#[test]
fn a_batch_survives_whatever_happens_to_its_connections() {
    const LINES: u64 = 300;
    for seed in 0..100 {
        let desk = through_losses(seed, params(LINES), |desk, line| {
            let path = format!("/z/tasks/B~0000/{line:07}");
            if is_to_end(desk, &path) {
                desk.end(&path, done());
            }
        });
        assert_eq!(desk.exit, Some(0), "seed {seed}: {:?}", desk.role);
        let mut ended: Vec<String> = desk.ended().into_iter().map(|(id, _)| id).collect();
        ended.sort_unstable();
        ended.dedup();
        assert_eq!((ended.len() as u64, desk.ended().len() as u64), (LINES, LINES), "seed {seed}");
    }
}

/// What was made by the one request that was in doubt is collected; what such a request may make anew is told.
#[test]
fn tasks_left_for_the_leader_are_reported() {
    for (fate, deletes) in [(Fate::AppliedUnanswered, 2), (Fate::DroppedUnanswered, 1)] {
        let mut desk = desk(params(2));
        desk.connect();
        // The last: others on their way would be in doubt as well.
        desk.settle_until(|call| is_create(call) && call.path().contains("~0000/0000001"));
        desk.play(fate);
        desk.connect();
        desk.settle();
        for path in tasks(&desk) {
            desk.end(&path, done());
        }
        desk.now = desk.now + std::time::Duration::from_secs(10);
        desk.event(Event::Wake);
        desk.settle();
        assert_eq!((desk.exit, desk.count(is_delete)), (Some(0), deletes), "{fate:?}: {:?}", desk.made);
        assert_eq!(desk.logged("1 outcomes that were shown still stand"), deletes == 1, "{:?}", desk.logs);
    }
}

#[test]
fn an_outcome_before_the_reply_to_the_create_is_not_missed() {
    let mut desk = desk(params(1));
    desk.connect();
    desk.settle_until(is_create);
    desk.settle_until(|call| call.path().ends_with("/0000000"));
    let Some((id, call)) = desk.pending.pop_front() else { panic!("it is created") };
    let result = desk.apply(&call);
    desk.end(call.path(), done());
    desk.tell();
    desk.event(Event::Reply { id, result });
    desk.settle();
    assert_eq!((desk.exit, desk.ended().len()), (Some(0), 1));
}
