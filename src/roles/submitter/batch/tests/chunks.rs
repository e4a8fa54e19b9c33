//! Batches whose tasks have several lines: the user sees of it nothing but the ids.

use super::*;
use crate::contract::chunk::CommandResult;
use crate::contract::task::Reason;
use crate::roles::submitter::batch::open_chunks::MAX_OPEN_BYTES;

fn chunked(lines: u64, chunk: u32) -> BatchParams {
    BatchParams { chunk: Some(chunk), ..params(lines) }
}

fn result(code: i32) -> Option<CommandResult> {
    let mut outcome = if code == 0 { done() } else { failed(code) };
    outcome.detail = None;
    Some(CommandResult::of(outcome))
}

/// A worker ends the chunk: commands whose echo has a number in `bad` fail with that code.
fn end_chunk(driver: &mut ClientDriver<Batch>, path: &str, bad: &[(u64, i32)]) {
    let task = driver.task(path);
    let mut whole = done();
    for (at, line) in task.positions() {
        let code = bad.iter().find(|(number, _)| *number == line).map_or(0, |(_, code)| *code);
        whole.results.resize(at, None);
        whole.results.push(result(code));
        if code != 0 {
            whole = Outcome { results: whole.results, ..failed(1) };
        }
    }
    driver.end(path, whole);
}

/// A worker writes that these lines of a chunk, and those before, are over; lines in `bad` failed with that code.
fn save(driver: &mut ClientDriver<Batch>, path: &str, lines: &[u64], bad: &[(u64, i32)]) {
    let mut task = driver.task(path);
    for (at, line) in task.positions().filter(|(_, line)| lines.contains(line)).collect::<Vec<_>>() {
        let code = bad.iter().find(|(number, _)| *number == line).map_or(0, |(_, code)| *code);
        task.results.resize(task.results.len().max(at + 1), None);
        task.results[at] = result(code);
    }
    driver.put(path, &task.encode());
}

fn commands(driver: &ClientDriver<Batch>, path: &str) -> Vec<String> {
    driver.task(path).commands.expect("a chunk")
}

/// The lines that were shown, with their codes, in the order of their reports.
fn shown(driver: &ClientDriver<Batch>) -> Vec<(u64, Option<i32>)> {
    driver.all_ended().map(|ended| (ended.line.expect("a line"), ended.outcome.exit_code)).collect()
}

#[test]
fn lines_go_into_chunks_and_come_back_as_lines() {
    let mut driver = waiting(chunked(25, 10));
    assert_eq!(
        tasks(&driver),
        ["/z/tasks/B~0000/0000000", "/z/tasks/B~0000/0000010", "/z/tasks/B~0000/0000020"]
    );
    assert_eq!(Job::decode(&driver.znodes["/z/tasks/B~0000"].0).expect("job").chunk, Some(10));
    let task = driver.task("/z/tasks/B~0000/0000020");
    assert_eq!((task.first_line, task.width()), (20, 5));
    assert_eq!(commands(&driver, "/z/tasks/B~0000/0000020")[4], "echo 24");
    let Some(ClientReport::Progress(progress)) = driver.reports.last() else { panic!("no progress") };
    assert_eq!((progress.submitted, progress.total), (25, 25));

    end_chunk(&mut driver, "/z/tasks/B~0000/0000010", &[(13, 3), (17, 4)]);
    driver.settle();
    let expected: Vec<_> = (10..20)
        .map(|line| (line, Some([0, 3, 4][usize::from(line == 13) + 2 * usize::from(line == 17)])))
        .collect();
    assert_eq!(shown(&driver), expected);
    assert!(driver.all_ended().all(|ended| ended.id.as_str() == "B~0000/0000010" && !ended.alone));
    assert_eq!(driver.reports.iter().filter(|report| matches!(report, ClientReport::Ended(_))).count(), 1);
    for path in ["/z/tasks/B~0000/0000000", "/z/tasks/B~0000/0000020"] {
        end_chunk(&mut driver, path, &[]);
    }
    driver.settle();
    assert_eq!((driver.exit, tasks(&driver)), (Some(1), vec!["/z/tasks/B~0000/0000010".to_string()]));
    let reads = |call: &Call| is_get(call) && call.path().matches('/').count() == 4;
    assert_eq!(driver.count(reads), 3);
    assert_eq!(summary(&driver), Progress { submitted: 25, done: 23, failed: 2, total: 25 });
}

#[test]
fn results_are_shown_as_they_come_and_each_once() {
    let mut driver = waiting(chunked(5, 5));
    let path = "/z/tasks/B~0000/0000000";
    save(&mut driver, path, &[1, 3], &[(3, 9)]);
    driver.settle();
    assert_eq!(shown(&driver), [(1, Some(0)), (3, Some(9))]);
    save(&mut driver, path, &[2], &[]);
    driver.settle();
    assert_eq!(shown(&driver), [(1, Some(0)), (3, Some(9)), (2, Some(0))]);
    let Some(ClientReport::Progress(progress)) = driver.reports.last() else { panic!("no progress") };
    assert_eq!((progress.done, progress.failed, driver.exit), (2, 1, None));
    end_chunk(&mut driver, path, &[(3, 9)]);
    driver.settle();
    assert_eq!(shown(&driver)[3..], [(0, Some(0)), (4, Some(0))]);
    assert_eq!((driver.exit, tasks(&driver).len()), (Some(1), 1), "one line of it failed");
    assert_eq!(summary(&driver), Progress { submitted: 5, done: 4, failed: 1, total: 5 });
}

#[test]
fn what_failed_and_is_tried_again_is_shown_at_the_end() {
    let mut batch = chunked(3, 3);
    batch.options.max_attempts = Some(2);
    let mut driver = waiting(batch);
    let path = "/z/tasks/B~0000/0000000";
    save(&mut driver, path, &[0, 1], &[(0, 9)]);
    driver.settle();
    assert_eq!(shown(&driver), [(1, Some(0))]);
    end_chunk(&mut driver, path, &[]);
    driver.settle();
    assert_eq!(shown(&driver)[1..], [(0, Some(0)), (2, Some(0))]);
    assert_eq!(driver.exit, Some(0));
}

#[test]
fn a_chunk_deleted_before_its_end_counts_what_was_not_shown() {
    let mut driver = waiting(chunked(3, 3));
    let path = "/z/tasks/B~0000/0000000";
    save(&mut driver, path, &[0], &[]);
    driver.settle();
    driver.remove(path);
    driver.settle();
    assert_eq!(summary(&driver), Progress { submitted: 3, done: 1, failed: 2, total: 3 });
}

#[test]
fn of_a_chunk_one_read_is_under_way_at_a_time() {
    let mut driver = waiting(chunked(9, 9));
    let path = "/z/tasks/B~0000/0000000";
    let before = driver.count(is_get);
    for line in 0..5 {
        save(&mut driver, path, &[line], &[]);
        driver.notify();
    }
    assert_eq!(driver.count(is_get), before + 1);
    driver.settle();
    assert_eq!((driver.count(is_get), shown(&driver).len()), (before + 2, 5));
}

#[test]
fn a_part_has_so_many_chunks_and_blank_ones_are_not_made() {
    let last = LINES_PER_PART * 10 + 3;
    let mut driver = driver(BatchParams { outline: outline([1, 25, last]), ..chunked(3, 10) });
    for (line, number) in driver.lines.iter_mut().zip([1, 25, last]) {
        line.number = number;
    }
    driver.connect();
    driver.settle();
    assert_eq!(
        tasks(&driver),
        ["/z/tasks/B~0000/0000000", "/z/tasks/B~0000/0000020", "/z/tasks/B~0001/0040000"]
    );
    assert_eq!(commands(&driver, "/z/tasks/B~0000/0000020"), ["", "", "", "", "", "echo 1"]);
    for path in tasks(&driver) {
        end_chunk(&mut driver, &path, &[]);
    }
    driver.settle();
    let mut lines: Vec<u64> = shown(&driver).into_iter().map(|(line, _)| line).collect();
    lines.sort_unstable();
    assert_eq!((driver.exit, lines), (Some(0), vec![1, 25, last]));
}

#[test]
fn a_chunk_without_results_ends_all_its_lines() {
    let mut driver = waiting(chunked(6, 3));
    let mut part = Outcome::unrun(State::Failed, Some(Reason::Poison), "its workers died", 3);
    part.results = vec![None, result(0)];
    driver.end("/z/tasks/B~0000/0000000", part);
    driver.remove("/z/tasks/B~0000/0000003");
    driver.settle();
    let states: Vec<State> = driver.ended().into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, [State::Failed, State::Done, State::Failed]);
    assert_eq!(summary(&driver), Progress { submitted: 6, done: 1, failed: 5, total: 6 });
    assert!(driver.exit == Some(1) && driver.logged("deleted by someone"));
}

#[test]
fn g12_a_chunk_that_someone_changed_is_counted_and_reported() {
    for change in [
        |task: &mut Task| task.commands.as_mut().expect("a chunk").push("echo more".into()),
        |task: &mut Task| task.commands = Some(vec!["one".into(), String::new(), " ".into()]),
        |task: &mut Task| (task.commands, task.command) = (None, Some("another".into())),
        |task: &mut Task| task.first_line = u64::MAX,
    ] {
        let mut driver = waiting(chunked(3, 3));
        let path = "/z/tasks/B~0000/0000000";
        let mut task = driver.task(path);
        change(&mut task);
        task.outcome = Some(done());
        driver.put(path, &task.encode());
        driver.settle();
        assert_eq!((driver.exit, summary(&driver).failed, driver.ended().len()), (Some(1), 3, 0));
        assert!(driver.logged("was changed by someone") && driver.count(is_delete) == 0);
    }
}

#[test]
fn a_keyed_batch_meets_its_own_chunks() {
    let keyed = |lines, chunk| BatchParams { chunk: Some(chunk), ..keyed(lines) };
    let mut first = waiting(keyed(25, 10));
    end_chunk(&mut first, "/z/tasks/K~0000/0000000", &[(5, 2)]);
    first.remove("/z/tasks/K~0000/0000010");
    let mut second = driver(keyed(25, 10));
    second.znodes = first.znodes.clone();
    second.connect();
    second.settle();
    assert_eq!((tasks(&second).len(), shown(&second).len(), second.exit), (3, 10, None));
    for path in tasks(&second) {
        if second.task(&path).outcome.is_none() {
            end_chunk(&mut second, &path, &[]);
        }
    }
    second.settle();
    assert_eq!((second.exit, shown(&second).len(), second.count(is_delete)), (Some(1), 25, 0));

    for (other, words) in [(5, "of 10 lines, not of 5; say --chunk 10"), (1, "of 10 lines, not of 1")] {
        let mut driver = driver(keyed(25, other));
        driver.znodes = first.znodes.clone();
        driver.connect();
        driver.settle();
        assert!(
            driver.exit == Some(exit::DATA) && driver.logged("with other options") && driver.logged(words)
        );
    }
    let mut changed = driver(keyed(25, 10));
    changed.lines[24].text = "something else".into();
    changed.znodes = first.znodes;
    changed.connect();
    changed.settle();
    assert!(
        changed.exit == Some(exit::DATA) && changed.logged("(lines 21 to 30) exists already and asks for")
    );
}

#[test]
fn detached_and_interrupted_it_counts_lines() {
    let detached = waiting(BatchParams { waiting: Waiting::Detached, ..chunked(250, 100) });
    let last = ClientReport::Detached { name: "B".into(), submitted: 250 };
    assert_eq!((detached.exit, detached.reports.last()), (Some(0), Some(&last)));
    assert_eq!(submitted(&detached), (0..250).collect::<Vec<_>>());

    let mut plain = waiting(chunked(250, 100));
    plain.event(Event::Stop { again: false });
    assert!(plain.logged("250 of 250 tasks were submitted"));

    let mut interrupted = driver(BatchParams { cancel_on_interrupt: true, ..chunked(5_000, 10) });
    interrupted.connect();
    interrupted.settle_until(|call| is_create(call) && call.path().ends_with("0001000"));
    interrupted.event(Event::Stop { again: false });
    interrupted.settle();
    let open = tasks(&interrupted);
    assert!(open.len() > 100 && open.iter().all(|path| interrupted.task(path).cancel));
    for path in &open {
        interrupted.end(path, Outcome::unrun(State::Cancelled, None, "", 1));
    }
    interrupted.settle();
    assert_eq!((interrupted.exit, summary(&interrupted).failed as usize), (Some(1), 10 * open.len()));
    assert_eq!(summary(&interrupted).total, summary(&interrupted).submitted);
}

#[test]
fn g08_what_is_open_is_bounded_in_bytes() {
    let mut driver = driver(chunked(1_000, 2));
    for line in &mut driver.lines {
        line.text = "x".repeat(100_000);
    }
    // Until its first part exists nothing else is created.
    driver.connect();
    driver.notify();
    while !driver.pending.front().is_some_and(|(_, call)| is_create(call)) {
        driver.play(Fate::Answered);
    }
    let read = 1_000 - driver.lines.len();
    assert!(read * 100_000 < MAX_OPEN_BYTES + READ_AHEAD * 100_000, "{read} lines are open");
    driver.settle();
    assert!(driver.lines.is_empty() && tasks(&driver).len() == 500, "it goes on when there is room");
}

#[test]
fn what_was_shown_is_deleted_before_more_is_read() {
    let lines = 2_900;
    let mut driver =
        driver(BatchParams { waiting: Waiting::Attached { orphan_cancel: true }, ..params(lines) });
    driver.connect();
    driver.settle_until(|call| is_create(call) && call.path().ends_with("/0000501"));
    for path in tasks(&driver) {
        driver.end(&path, done());
    }
    driver.notify();
    while driver.exit.is_none() && driver.count(is_create) < 2_500 {
        driver.play(Fate::Answered);
        let all_are_deleted = driver.all_ended().count() == driver.count(is_delete);
        assert!(all_are_deleted || driver.role.calls.len() == MAX_CALLS, "it waits for room only");
    }
    assert!(driver.count(is_delete) > 0);
    driver.settle();
    for path in tasks(&driver) {
        driver.end(&path, done());
    }
    driver.settle();
    assert_eq!((driver.exit, tasks(&driver).len(), driver.count(is_delete)), (Some(0), 0, lines as usize));
}

#[test]
fn chunks_survive_whatever_happens_to_connections() {
    const LINES: u64 = 300;
    for seed in 0..40 {
        let driver = through_losses(seed, chunked(LINES, 7), |driver, line| {
            let path = format!("/z/tasks/B~0000/{:07}", line / 7 * 7);
            if is_to_end(driver, &path) && driver.task(&path).results.len() >= 3 {
                end_chunk(driver, &path, &[(8, 1)]);
            } else if is_to_end(driver, &path) {
                save(driver, &path, &[line], &[(8, 1)]);
            }
        });
        assert_eq!(driver.exit, Some(1), "seed {seed}: {:?}", driver.role);
        let mut lines: Vec<u64> = shown(&driver).into_iter().map(|(line, _)| line).collect();
        lines.sort_unstable();
        assert_eq!(lines, (0..LINES).collect::<Vec<_>>(), "seed {seed}");
    }
}
