//! Batches whose tasks have several lines: the user sees of it nothing but the ids.

use super::*;
use crate::contract::chunk::CommandResult;
use crate::contract::task::Reason;
use crate::roles::submitter::batch::maker::MAX_OPEN_BYTES;

fn chunked(lines: u64, chunk: u32) -> BatchParams {
    BatchParams { chunk: Some(chunk), ..params(lines) }
}

fn result(code: i32) -> Option<CommandResult> {
    let mut outcome = if code == 0 { done() } else { failed(code) };
    outcome.detail = None;
    Some(CommandResult::of(outcome))
}

/// A worker ends the chunk: commands whose echo has a number in `bad` fail with that code.
fn end_chunk(desk: &mut Desk<Batch>, path: &str, bad: &[(u64, i32)]) {
    let task = desk.task(path);
    let mut whole = done();
    for (at, line) in task.places() {
        let code = bad.iter().find(|(number, _)| *number == line).map_or(0, |(_, code)| *code);
        whole.results.resize(at, None);
        whole.results.push(result(code));
        if code != 0 {
            whole = Outcome { results: whole.results, ..failed(1) };
        }
    }
    desk.end(path, whole);
}

/// A worker writes that these lines of a chunk, and those before, are over; lines in `bad` failed with that code.
fn save(desk: &mut Desk<Batch>, path: &str, lines: &[u64], bad: &[(u64, i32)]) {
    let mut task = desk.task(path);
    for (at, line) in task.places().filter(|(_, line)| lines.contains(line)).collect::<Vec<_>>() {
        let code = bad.iter().find(|(number, _)| *number == line).map_or(0, |(_, code)| *code);
        task.results.resize(task.results.len().max(at + 1), None);
        task.results[at] = result(code);
    }
    desk.put(path, &task.encode());
}

fn commands(desk: &Desk<Batch>, path: &str) -> Vec<String> {
    desk.task(path).commands.expect("a chunk")
}

/// The lines that were told, with their codes, in the order of the telling.
fn told(desk: &Desk<Batch>) -> Vec<(u64, Option<i32>)> {
    desk.all_ended().map(|ended| (ended.line.expect("a line"), ended.outcome.exit_code)).collect()
}

#[test]
fn lines_go_into_chunks_and_come_back_as_lines() {
    let mut desk = waiting(chunked(25, 10));
    assert_eq!(
        tasks(&desk),
        ["/z/tasks/B~0000/0000000", "/z/tasks/B~0000/0000010", "/z/tasks/B~0000/0000020"]
    );
    assert_eq!(Job::decode(&desk.znodes["/z/tasks/B~0000"].0).expect("job").chunk, Some(10));
    let task = desk.task("/z/tasks/B~0000/0000020");
    assert_eq!((task.first_line, task.width()), (20, 5));
    assert_eq!(commands(&desk, "/z/tasks/B~0000/0000020")[4], "echo 24");
    let Some(ClientReport::Progress(progress)) = desk.reports.last() else { panic!("no progress") };
    assert_eq!((progress.submitted, progress.total), (25, 25));

    end_chunk(&mut desk, "/z/tasks/B~0000/0000010", &[(13, 3), (17, 4)]);
    desk.settle();
    let expected: Vec<_> = (10..20)
        .map(|line| (line, Some([0, 3, 4][usize::from(line == 13) + 2 * usize::from(line == 17)])))
        .collect();
    assert_eq!(told(&desk), expected);
    assert!(desk.all_ended().all(|ended| ended.id.as_str() == "B~0000/0000010" && !ended.alone));
    assert_eq!(desk.reports.iter().filter(|report| matches!(report, ClientReport::Ended(_))).count(), 1);
    for path in ["/z/tasks/B~0000/0000000", "/z/tasks/B~0000/0000020"] {
        end_chunk(&mut desk, path, &[]);
    }
    desk.settle();
    assert_eq!((desk.exit, tasks(&desk)), (Some(1), vec!["/z/tasks/B~0000/0000010".to_string()]));
    let reads = |call: &Call| is_get(call) && call.path().matches('/').count() == 4;
    assert_eq!(desk.count(reads), 3);
    assert_eq!(summary(&desk), Progress { submitted: 25, done: 23, failed: 2, total: 25 });
}

#[test]
fn results_are_shown_as_they_come_and_each_once() {
    let mut desk = waiting(chunked(5, 5));
    let path = "/z/tasks/B~0000/0000000";
    save(&mut desk, path, &[1, 3], &[(3, 9)]);
    desk.settle();
    assert_eq!(told(&desk), [(1, Some(0)), (3, Some(9))]);
    save(&mut desk, path, &[2], &[]);
    desk.settle();
    assert_eq!(told(&desk), [(1, Some(0)), (3, Some(9)), (2, Some(0))]);
    let Some(ClientReport::Progress(progress)) = desk.reports.last() else { panic!("no progress") };
    assert_eq!((progress.done, progress.failed, desk.exit), (2, 1, None));
    end_chunk(&mut desk, path, &[(3, 9)]);
    desk.settle();
    assert_eq!(told(&desk)[3..], [(0, Some(0)), (4, Some(0))]);
    assert_eq!((desk.exit, tasks(&desk).len()), (Some(1), 1), "one line of it failed");
    assert_eq!(summary(&desk), Progress { submitted: 5, done: 4, failed: 1, total: 5 });
}

#[test]
fn what_failed_and_is_tried_again_is_shown_at_the_end() {
    let mut batch = chunked(3, 3);
    batch.options.max_attempts = Some(2);
    let mut desk = waiting(batch);
    let path = "/z/tasks/B~0000/0000000";
    save(&mut desk, path, &[0, 1], &[(0, 9)]);
    desk.settle();
    assert_eq!(told(&desk), [(1, Some(0))]);
    end_chunk(&mut desk, path, &[]);
    desk.settle();
    assert_eq!(told(&desk)[1..], [(0, Some(0)), (2, Some(0))]);
    assert_eq!(desk.exit, Some(0));
}

#[test]
fn a_chunk_deleted_before_its_end_counts_what_was_not_shown() {
    let mut desk = waiting(chunked(3, 3));
    let path = "/z/tasks/B~0000/0000000";
    save(&mut desk, path, &[0], &[]);
    desk.settle();
    desk.remove(path);
    desk.settle();
    assert_eq!(summary(&desk), Progress { submitted: 3, done: 1, failed: 2, total: 3 });
}

#[test]
fn of_a_chunk_one_read_is_under_way_at_a_time() {
    let mut desk = waiting(chunked(9, 9));
    let path = "/z/tasks/B~0000/0000000";
    let before = desk.count(is_get);
    for line in 0..5 {
        save(&mut desk, path, &[line], &[]);
        desk.tell();
    }
    assert_eq!(desk.count(is_get), before + 1);
    desk.settle();
    assert_eq!((desk.count(is_get), told(&desk).len()), (before + 2, 5));
}

#[test]
fn a_part_has_so_many_chunks_and_blank_ones_are_not_made() {
    let last = LINES_PER_PART * 10 + 3;
    let mut desk = desk(BatchParams { outline: outline([1, 25, last]), ..chunked(3, 10) });
    for (line, number) in desk.lines.iter_mut().zip([1, 25, last]) {
        line.number = number;
    }
    desk.connect();
    desk.settle();
    assert_eq!(
        tasks(&desk),
        ["/z/tasks/B~0000/0000000", "/z/tasks/B~0000/0000020", "/z/tasks/B~0001/0040000"]
    );
    assert_eq!(commands(&desk, "/z/tasks/B~0000/0000020"), ["", "", "", "", "", "echo 1"]);
    for path in tasks(&desk) {
        end_chunk(&mut desk, &path, &[]);
    }
    desk.settle();
    let mut lines: Vec<u64> = told(&desk).into_iter().map(|(line, _)| line).collect();
    lines.sort_unstable();
    assert_eq!((desk.exit, lines), (Some(0), vec![1, 25, last]));
}

#[test]
fn a_chunk_without_results_ends_all_its_lines() {
    let mut desk = waiting(chunked(6, 3));
    let mut part = Outcome::unrun(State::Failed, Some(Reason::Poison), "its workers died", 3);
    part.results = vec![None, result(0)];
    desk.end("/z/tasks/B~0000/0000000", part);
    desk.remove("/z/tasks/B~0000/0000003");
    desk.settle();
    let states: Vec<State> = desk.ended().into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, [State::Failed, State::Done, State::Failed]);
    assert_eq!(summary(&desk), Progress { submitted: 6, done: 1, failed: 5, total: 6 });
    assert!(desk.exit == Some(1) && desk.logged("deleted by someone"));
}

#[test]
fn g12_a_chunk_that_someone_changed_is_counted_and_reported() {
    for change in [
        |task: &mut Task| task.commands.as_mut().expect("a chunk").push("echo more".into()),
        |task: &mut Task| task.commands = Some(vec!["one".into(), String::new(), " ".into()]),
        |task: &mut Task| (task.commands, task.command) = (None, Some("another".into())),
        |task: &mut Task| task.first_line = u64::MAX,
    ] {
        let mut desk = waiting(chunked(3, 3));
        let path = "/z/tasks/B~0000/0000000";
        let mut task = desk.task(path);
        change(&mut task);
        task.outcome = Some(done());
        desk.put(path, &task.encode());
        desk.settle();
        assert_eq!((desk.exit, summary(&desk).failed, desk.ended().len()), (Some(1), 3, 0));
        assert!(desk.logged("was changed by someone") && desk.count(is_delete) == 0);
    }
}

#[test]
fn a_keyed_batch_meets_its_own_chunks() {
    let keyed = |lines, chunk| BatchParams { chunk: Some(chunk), ..keyed(lines) };
    let mut first = waiting(keyed(25, 10));
    end_chunk(&mut first, "/z/tasks/K~0000/0000000", &[(5, 2)]);
    first.remove("/z/tasks/K~0000/0000010");
    let mut second = desk(keyed(25, 10));
    second.znodes = first.znodes.clone();
    second.connect();
    second.settle();
    assert_eq!((tasks(&second).len(), told(&second).len(), second.exit), (3, 10, None));
    for path in tasks(&second) {
        if second.task(&path).outcome.is_none() {
            end_chunk(&mut second, &path, &[]);
        }
    }
    second.settle();
    assert_eq!((second.exit, told(&second).len(), second.count(is_delete)), (Some(1), 25, 0));

    for (other, words) in [(5, "of 10 lines, not of 5; say --chunk 10"), (1, "of 10 lines, not of 1")] {
        let mut desk = desk(keyed(25, other));
        desk.znodes = first.znodes.clone();
        desk.connect();
        desk.settle();
        assert!(desk.exit == Some(exit::DATA) && desk.logged("with other options") && desk.logged(words));
    }
    let mut changed = desk(keyed(25, 10));
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
    let desk_1 = waiting(BatchParams { detach: true, ..chunked(250, 100) });
    let last = ClientReport::Detached { name: "B".into(), submitted: 250 };
    assert_eq!((desk_1.exit, desk_1.reports.last()), (Some(0), Some(&last)));
    assert_eq!(submitted(&desk_1), (0..250).collect::<Vec<_>>());

    let mut plain = waiting(chunked(250, 100));
    plain.event(Event::Stop { again: false });
    assert!(plain.logged("250 of 250 tasks were submitted"));

    let mut desk_2 = desk(BatchParams { cancel_on_interrupt: true, ..chunked(5_000, 10) });
    desk_2.connect();
    desk_2.settle_until(|call| is_create(call) && call.path().ends_with("0001000"));
    desk_2.event(Event::Stop { again: false });
    desk_2.settle();
    let standing = tasks(&desk_2);
    assert!(standing.len() > 100 && standing.iter().all(|path| desk_2.task(path).cancel));
    for path in &standing {
        desk_2.end(path, Outcome::unrun(State::Cancelled, None, "", 1));
    }
    desk_2.settle();
    assert_eq!((desk_2.exit, summary(&desk_2).failed as usize), (Some(1), 10 * standing.len()));
    assert_eq!(summary(&desk_2).total, summary(&desk_2).submitted);
}

#[test]
fn g08_what_is_open_is_bounded_in_bytes() {
    let mut desk = desk(chunked(1_000, 2));
    for line in &mut desk.lines {
        line.text = "x".repeat(100_000);
    }
    // Until its first part stands nothing is created.
    desk.connect();
    desk.tell();
    while !desk.pending.front().is_some_and(|(_, call)| is_create(call)) {
        desk.play(Fate::Answered);
    }
    let read = 1_000 - desk.lines.len();
    assert!(read * 100_000 < MAX_OPEN_BYTES + READ_AHEAD * 100_000, "{read} lines are open");
    desk.settle();
    assert!(desk.lines.is_empty() && tasks(&desk).len() == 500, "it goes on when there is room");
}

#[test]
fn what_was_shown_is_deleted_before_more_is_read() {
    let lines = 2_900;
    let mut desk = desk(BatchParams { orphan_cancel: true, ..params(lines) });
    desk.connect();
    desk.settle_until(|call| is_create(call) && call.path().ends_with("/0000501"));
    for path in tasks(&desk) {
        desk.end(&path, done());
    }
    desk.tell();
    while desk.exit.is_none() && desk.count(is_create) < 2_500 {
        desk.play(Fate::Answered);
        let all_are_deleted = desk.all_ended().count() == desk.count(is_delete);
        assert!(all_are_deleted || desk.role.calls.len() == MAX_CALLS, "it waits for room only");
    }
    assert!(desk.count(is_delete) > 0);
    desk.settle();
    for path in tasks(&desk) {
        desk.end(&path, done());
    }
    desk.settle();
    assert_eq!((desk.exit, tasks(&desk).len(), desk.count(is_delete)), (Some(0), 0, lines as usize));
}

#[test]
fn chunks_survive_whatever_happens_to_connections() {
    const LINES: u64 = 300;
    for seed in 0..40 {
        let desk = through_losses(seed, chunked(LINES, 7), |desk, line| {
            let path = format!("/z/tasks/B~0000/{:07}", line / 7 * 7);
            if is_to_end(desk, &path) && desk.task(&path).results.len() >= 3 {
                end_chunk(desk, &path, &[(8, 1)]);
            } else if is_to_end(desk, &path) {
                save(desk, &path, &[line], &[(8, 1)]);
            }
        });
        assert_eq!(desk.exit, Some(1), "seed {seed}: {:?}", desk.role);
        let mut lines: Vec<u64> = told(&desk).into_iter().map(|(line, _)| line).collect();
        lines.sort_unstable();
        assert_eq!(lines, (0..LINES).collect::<Vec<_>>(), "seed {seed}");
    }
}
