//! The register of shares, write by write.

use super::*;
use crate::contract::task::{Options, Payload};

fn chunk(lines: usize) -> Task {
    let commands = vec!["x".to_string(); lines];
    Task::new(Payload::Chunk { first_line: 0, commands }, Options::default())
}

fn good(positions: &[usize]) -> BTreeMap<usize, CommandResult> {
    positions.iter().map(|position| (*position, CommandResult::default())).collect()
}

/// Numbers, lines, windows and deaths.
fn shares(task: &Task) -> Vec<(u32, Vec<usize>, Option<u32>, u32)> {
    let share = |share: &Share| (share.attempt, task.open_lines(share), share.ahead, share.deaths);
    task.all_shares().iter().map(share).collect()
}

fn died(task: &mut Task, number: u32, limit: u32) -> bool {
    task.move_on(number, Some(&Incarnation::new("w", 1)), &Move::Death { limit })
}

/// It ends so at its holder; whether that changes anything.
fn ends(task: &mut Task, number: u32, ending: &Ending) -> bool {
    task.end_share(number, ending, &Incarnation::new("w", 1), 70)
}

#[test]
fn a_chunk_begins_as_one_share_uncut_until_its_window_is_known() {
    let mut task = chunk(4);
    task.commands.as_mut().expect("a chunk")[1] = " ".into();
    assert_eq!(shares(&task), [(1, vec![0, 2, 3], None, 0)]);
    assert!(!task.cut(1, 9) && !task.cut(2, 9) && task.shares.is_empty());
    task.flush(1, &good(&[]), 1);
    assert!(task.cut(1, 1));
    assert_eq!(shares(&task), [(1, vec![0, 2], Some(1), 0), (2, vec![3], None, 0)]);
    assert!(task.cut(1, 9) && !task.cut(1, 9), "only what is behind the window");
    assert_eq!(shares(&task), [(1, vec![0], Some(1), 0), (2, vec![3], None, 0), (3, vec![2], None, 0)]);
}

#[test]
fn results_count_for_open_lines_and_the_last_ends_the_chunk() {
    let mut task = chunk(3);
    task.flush(1, &good(&[]), 1);
    task.cut(1, 1);
    let bad = CommandResult { reason: Some(Reason::Exit), exit_code: Some(3), ..CommandResult::default() };
    task.flush(2, &good(&[0, 1]), 1);
    assert_eq!(task.results.iter().flatten().count(), 0, "they are not its own");
    task.flush(2, &[(2, bad.clone())].into(), 1);
    task.flush(2, &good(&[2]), 1);
    assert_eq!((task.results[2].clone(), shares(&task).len()), (Some(bad), 1));
    task.flush(1, &good(&[0, 1]), 1);
    let outcome = task.outcome.clone().expect("it is over");
    assert_eq!((outcome.state, outcome.exit_code, task.shares.len()), (State::Failed, Some(1), 0));
    assert_eq!(outcome.detail.as_deref(), Some("1 of 3 commands failed"));
    assert!(Task::decode(&task.encode()).is_ok());
}

#[test]
fn after_a_worker_failure_only_started_lines_are_suspect() {
    let mut task = chunk(4);
    task.flush(1, &good(&[0]), 1);
    assert!(died(&mut task, 1, 3) && !died(&mut task, 1, 3));
    assert_eq!(shares(&task), [(2, vec![1], Some(1), 1), (3, vec![2, 3], None, 0)]);
    assert!(died(&mut task, 2, 3));
    assert!(died(&mut task, 4, 3));
    assert_eq!(task.results[1].as_ref().and_then(|result| result.reason), Some(Reason::Poison));
    assert_eq!(shares(&task), [(3, vec![2, 3], None, 0)], "its neighbours ended as if nothing had been");
    let mut unknown = chunk(2);
    died(&mut unknown, 1, 1);
    assert!(unknown.outcome.is_some(), "none may run twice, and any may have been started");
}

#[test]
fn what_is_released_or_taken_back_is_not_suspected() {
    let mut task = chunk(3);
    task.flush(1, &good(&[]), 2);
    let rest = Rest::Release(Release { delay_ms: Some(5), ..Release::because("its worker was stopped") });
    let ending = Ending { results: good(&[1]), rest: Some(rest), ..Ending::default() };
    assert!(ends(&mut task, 1, &ending) && !ends(&mut task, 1, &ending));
    assert_eq!(shares(&task), [(2, vec![0, 2], None, 0)]);
    let share = &task.shares[0];
    assert_eq!((share.earlier, share.not_before_ms()), (1, 75));
    assert_eq!(share.released_by, Some(Incarnation::new("w", 1)));
    assert!(task.move_on(2, None, &Move::Revoked));
    assert_eq!((shares(&task), task.shares[0].released_by.clone()), (vec![(3, vec![0, 2], None, 0)], None));
}

#[test]
fn what_failed_and_is_to_run_again_waits_in_a_share_of_its_own() {
    let mut task = chunk(3);
    let ending = Ending { results: good(&[0, 2]), again: good(&[1]), again_ms: 30, rest: None };
    assert!(ends(&mut task, 1, &ending));
    assert_eq!(shares(&task), [(2, vec![1], None, 0)]);
    assert_eq!((task.shares[0].failures, task.shares[0].not_before_ms()), (1, 100));
}

#[test]
fn cancelled_lines_end_so_with_any_holder() {
    let mut task = chunk(4);
    task.flush(1, &good(&[0]), 1);
    assert!(task.cut(1, 1) && task.cancel_line(3) && !task.cancel_line(3) && !task.cancel_line(0));
    assert!(task.cancel_line(1));
    assert!(!task.end_unheld(&[1, 2], Reason::Cancelled, "x"), "both are held");
    assert!(task.end_unheld(&[1], Reason::Cancelled, "x"));
    assert_eq!(task.cancel_lines, Lines::of([1]));
    let ending = Ending { results: good(&[2]), rest: Some(Rest::Cancel), ..Ending::default() };
    assert!(ends(&mut task, 1, &ending));
    let outcome = task.outcome.clone().expect("it is over");
    assert_eq!((outcome.state, outcome.results.len()), (State::Cancelled, 4));
    assert_eq!(task.command_outcome(3).map(|outcome| outcome.state), Some(State::Cancelled));
    let mut kept = chunk(1);
    assert!(!ends(&mut kept, 1, &Ending { rest: Some(Rest::Cancel), ..Ending::default() }));
    assert_eq!(shares(&kept), [(1, vec![0], None, 0)], "nobody wants that");
}

#[test]
fn shares_that_cannot_be_are_no_task() {
    let mut task = chunk(3);
    task.flush(1, &good(&[0]), 1);
    assert!(task.cut(1, 1) && Task::decode(&task.encode()).is_ok());
    type Break = fn(&mut Task);
    let breaks: [(&str, Break); 5] = [
        ("not in one share", |task| task.shares[1].lines = Lines::of([1, 2])),
        ("not in one share", |task| task.shares.truncate(1)),
        ("one number", |task| task.shares[1].attempt = 1),
        ("cannot be", |task| task.shares[1].attempt = 9),
        ("cannot be", |task| task.shares[1].lines = Lines(vec![(2, u32::MAX)])),
    ];
    for (word, break_it) in breaks {
        let mut broken = task.clone();
        break_it(&mut broken);
        let why = Task::decode(&broken.encode()).expect_err("refused").to_string();
        assert!(why.contains(word), "{why}");
    }
}

#[test]
fn a_line_that_is_run_once_more_leaves_its_old_share() {
    let mut task = chunk(2);
    task.flush(1, &good(&[0]), 1);
    assert!(task.rerun(&[0, 1, 7]) && !task.rerun(&[0, 7]));
    assert_eq!(shares(&task), [(1, vec![1], Some(1), 0), (2, vec![0], None, 0)]);
    assert!(!task.shares[0].lines.has(0), "or two would have it");
    task.flush(1, &good(&[1]), 1);
    task.flush(2, &good(&[0]), 1);
    assert!(task.outcome.is_some() && task.rerun(&[1]));
    assert_eq!((shares(&task), task.results.len()), (vec![(3, vec![1], None, 0)], 1));
}

#[test]
fn there_are_only_so_many_shares() {
    let mut task = chunk(40);
    task.flush(1, &good(&[]), 1);
    assert_eq!((0..40).filter(|_| task.cut(1, 1)).count(), MAX_SHARES - 1);
}
