//! Waiting for tasks, jobs and what is not there.

use super::*;
use crate::contract::chunk::CommandResult;
use crate::contract::task::Outcome;
use crate::contract::task::{Job, Options, Payload};
use crate::roles::client::testing::{ClientDriver, Fate, done, failed};

fn driver(targets: Vec<Target>) -> ClientDriver<Waiter> {
    let params = WaitParams { layout: Layout::new("/z"), targets };
    let mut driver =
        ClientDriver::new(Waiter::new(params), &["/z", "/z/tasks", "/z/tasks/J", "/z/tasks/J~b~0000"]);
    let task = Task::new(Payload::Shell("x".into()), Options::default()).encode();
    for name in ["J/1", "J/2", "J~b~0000/3"] {
        driver.put(&format!("/z/tasks/{name}"), &task);
    }
    driver
}

fn task(name: &str) -> Target {
    Target::Task(TaskId::parse(name).expect("id"))
}

#[test]
fn one_task_passes_on_its_code() {
    let mut driver = driver(vec![task("J/1")]);
    driver.connect();
    driver.settle();
    assert_eq!(driver.exit, None);
    driver.end("/z/tasks/J/1", failed(7));
    driver.settle();
    assert_eq!(driver.exit, Some(7));
    assert_eq!(driver.count(Call::is_write), 0, "it never writes");
}

/// Puts a chunk of three commands and a blank there; gives it as it ended, the last command without a result.
fn put_chunk(driver: &mut ClientDriver<Waiter>) -> Outcome {
    let commands = ["a", "", "b", "c"].map(str::to_string).to_vec();
    let task = Task::new(Payload::Chunk { first_line: 10, commands }, Options::default());
    driver.put("/z/tasks/J/1", &task.encode());
    let mut whole = failed(1);
    whole.results = vec![Some(CommandResult::of(done())), None, Some(CommandResult::of(failed(9)))];
    whole
}

#[test]
fn a_chunk_is_waited_for_as_a_batch_is() {
    let mut driver = driver(vec![task("J/1")]);
    let whole = put_chunk(&mut driver);
    driver.connect();
    driver.settle();
    assert_eq!(driver.exit, None);
    driver.end("/z/tasks/J/1", whole);
    driver.settle();
    assert_eq!(driver.exit, Some(exit::FAILED));
    let ended: Vec<_> = driver.all_ended().map(|one| (one.line, one.outcome.exit_code, one.alone)).collect();
    assert_eq!(ended, [(Some(10), Some(0), false), (Some(12), Some(9), false), (Some(13), Some(1), false)]);
    let summary = Progress { submitted: 3, done: 1, failed: 2, total: 3 };
    assert_eq!(driver.reports.last(), Some(&ClientReport::Summary(summary)));
}

#[test]
fn a_chunk_among_others_counts_for_its_commands() {
    let mut driver = driver(vec![Target::Job("J".into())]);
    let whole = put_chunk(&mut driver);
    driver.connect();
    driver.settle();
    driver.end("/z/tasks/J/2", done());
    driver.settle();
    let progress = Progress { submitted: 5, done: 1, failed: 0, total: 5 };
    assert_eq!(driver.reports.last(), Some(&ClientReport::Progress(progress)));
    driver.end("/z/tasks/J~b~0000/3", done());
    driver.settle();
    let gone = Progress { submitted: 5, done: 2, failed: 3, total: 5 };
    let ended = Progress { done: 3, failed: 2, ..gone };
    for is_gone in [false, true] {
        let mut driver = self::driver(vec![Target::Job("J".into())]);
        put_chunk(&mut driver);
        driver.connect();
        driver.settle();
        if is_gone {
            driver.remove("/z/tasks/J/1")
        } else {
            driver.end("/z/tasks/J/1", whole.clone())
        }
        driver.end("/z/tasks/J/2", done());
        driver.end("/z/tasks/J~b~0000/3", done());
        driver.settle();
        let summary = if is_gone { gone } else { ended };
        assert_eq!((driver.exit, driver.reports.last()), (Some(1), Some(&ClientReport::Summary(summary))));
    }
}

/// A batch with one task of three lines, 4 to 6.
fn batch_driver(targets: &[&str]) -> ClientDriver<Waiter> {
    let target = |name: &&str| TaskId::parse(name).map_or_else(|| Target::Job((*name).into()), Target::Task);
    let targets = targets.iter().map(target).collect();
    let params = WaitParams { layout: Layout::new("/z"), targets };
    let mut driver = ClientDriver::new(Waiter::new(params), &["/z", "/z/tasks"]);
    let mut part = Job::new(Options::default());
    part.chunk = Some(3);
    driver.put("/z/tasks/b~0000", &part.encode());
    let commands = ["a", "b", "c"].map(str::to_string).to_vec();
    driver.put(CHUNK, &Task::new(Payload::Chunk { first_line: 3, commands }, Options::default()).encode());
    driver.connect();
    driver
}

const CHUNK: &str = "/z/tasks/b~0000/0000003";

/// These lines end so.
fn end_lines(driver: &mut ClientDriver<Waiter>, results: &[(usize, Outcome)]) {
    let mut task = driver.task(CHUNK);
    let results = results.iter().map(|(position, outcome)| (*position, CommandResult::of(outcome.clone())));
    task.flush(1, &results.collect(), 1);
    driver.put(CHUNK, &task.encode());
    driver.settle();
}

#[test]
fn a_line_is_waited_for_alone_and_passes_on_its_code() {
    let mut driver = batch_driver(&["b/5"]);
    driver.settle();
    end_lines(&mut driver, &[(0, done())]);
    assert_eq!((driver.exit, driver.reports.len()), (None, 0));
    end_lines(&mut driver, &[(1, failed(7))]);
    assert_eq!((driver.exit, driver.count(Call::is_write)), (Some(7), 0));
    let ended: Vec<_> = driver.all_ended().map(|one| (one.name(), one.alone)).collect();
    assert_eq!(ended, [("b/5".to_string(), true)]);
}

#[test]
fn lines_of_a_batch_are_shown_when_they_end_each_once() {
    for targets in [&["b"][..], &["b/6", "b/4", "b/5"]] {
        let mut driver = batch_driver(targets);
        driver.settle();
        end_lines(&mut driver, &[(2, failed(1))]);
        driver.lose();
        driver.connect();
        driver.settle();
        let names =
            |driver: &ClientDriver<Waiter>| driver.all_ended().map(|one| one.name()).collect::<Vec<_>>();
        assert_eq!(names(&driver), ["b/6"]);
        end_lines(&mut driver, &[(0, done()), (1, done())]);
        assert_eq!((driver.exit, names(&driver).join(" ")), (Some(1), "b/6 b/4 b/5".into()));
        let summary = Progress { submitted: 3, done: 2, failed: 1, total: 3 };
        assert_eq!(driver.reports.last(), Some(&ClientReport::Summary(summary)));
    }
}

/// What is waited for of a batch of so many lines, of which a part said so before any was collected.
fn part_driver(lines: u64, made: bool) -> ClientDriver<Waiter> {
    let mut driver = batch_driver(&["b"]);
    driver.pending.clear();
    let mut part = Job::new(Options::default());
    (part.chunk, part.lines, part.made) = (Some(3), Some(lines), made);
    driver.put("/z/tasks/b~0000", &part.encode());
    driver.lose();
    driver.connect();
    driver.settle();
    driver
}

#[test]
fn missing_lines_of_a_complete_batch_count_as_succeeded() {
    let mut driver = part_driver(10, true);
    end_lines(&mut driver, &[(0, done()), (1, failed(1)), (2, done())]);
    let summary = Progress { submitted: 10, done: 9, failed: 1, total: 10 };
    assert_eq!((driver.exit, driver.reports.last()), (Some(1), Some(&ClientReport::Summary(summary))));

    let mut driver = part_driver(10, true);
    end_lines(&mut driver, &[(0, done())]);
    driver.remove(CHUNK);
    driver.settle();
    let summary = Progress { submitted: 10, done: 10, failed: 0, total: 10 };
    assert_eq!((driver.exit, driver.reports.last()), (Some(0), Some(&ClientReport::Summary(summary))));
}

#[test]
fn an_incomplete_batch_is_reported_and_is_no_success() {
    let mut driver = part_driver(10, false);
    end_lines(&mut driver, &[(0, done()), (1, done()), (2, done())]);
    let summary = Progress { submitted: 3, done: 3, failed: 0, total: 3 };
    assert_eq!((driver.exit, driver.reports.last()), (Some(1), Some(&ClientReport::Summary(summary))));
    assert!(driver.logged("the batch b was not submitted to its end") && driver.logged("of 7 of its lines"));

    let mut whole = part_driver(3, false);
    end_lines(&mut whole, &[(0, done()), (1, done()), (2, done())]);
    assert_eq!(whole.exit, Some(0), "all that it has was seen: {:?}", whole.logs);
}

#[test]
fn a_missing_line_is_reported() {
    for (name, words) in
        [("b/7", "was collected"), ("b/2", "there is no line b/2, or"), ("c/1", "there is no task c/1")]
    {
        let mut driver = batch_driver(&[name]);
        driver.settle();
        assert!(driver.exit == Some(exit::DATA) && driver.logged(words), "{name}: {:?}", driver.logs);
    }
}

#[test]
fn a_job_ends_with_its_last_task() {
    let mut driver = driver(vec![Target::Job("J".into())]);
    driver.connect();
    driver.settle();
    for name in ["J/1", "J~b~0000/3"] {
        driver.end(&format!("/z/tasks/{name}"), done());
        driver.settle();
    }
    assert_eq!(driver.exit, None);
    driver.lose();
    driver.end("/z/tasks/J/2", done());
    driver.connect();
    driver.settle();
    assert_eq!((driver.exit, driver.ended().len()), (Some(0), 3));
    let summary = Progress { submitted: 3, done: 3, failed: 0, total: 3 };
    assert_eq!(driver.reports.last(), Some(&ClientReport::Summary(summary)));
}

#[test]
fn of_several_each_is_shown_once_and_one_failure_is_failure() {
    let mut driver = driver(vec![task("J/1"), task("J/2"), task("J/1"), Target::Job("J".into())]);
    driver.connect();
    driver.settle();
    for (name, code) in [("J/1", 0), ("J/2", 5), ("J~b~0000/3", 0)] {
        driver.end(&format!("/z/tasks/{name}"), if code == 0 { done() } else { failed(code) });
    }
    driver.settle();
    assert_eq!((driver.exit, driver.ended().len()), (Some(1), 3));
}

#[test]
fn a_missing_task_is_reported() {
    for (target, words) in
        [(task("J/nope"), "there is no task J/nope"), (Target::Job("K".into()), "there is no job K")]
    {
        let mut driver = driver(vec![target]);
        driver.connect();
        driver.settle();
        assert_eq!(driver.exit, Some(exit::DATA));
        assert!(driver.logged(words), "{:?}", driver.logs);
    }
    let mut driver = driver(vec![task("J/1")]);
    driver.connect();
    driver.settle();
    driver.remove("/z/tasks/J/1");
    driver.settle();
    assert_eq!(driver.exit, Some(exit::FAILED));
    assert!(driver.logged("was deleted by someone"));
}

#[test]
fn g12_a_znode_that_is_no_task_is_reported_others_awaited() {
    let mut driver = driver(vec![Target::Job("J".into())]);
    driver.put("/z/tasks/J/1", b"garbage");
    driver.connect();
    driver.settle();
    for name in ["J/2", "J~b~0000/3"] {
        driver.end(&format!("/z/tasks/{name}"), done());
    }
    driver.settle();
    assert_eq!((driver.exit, driver.ended().len()), (Some(exit::DATA), 2));
    assert!(driver.logged("/z/tasks/J/1 is no task"));
}

#[test]
fn g08_a_large_job_is_watched_in_parts() {
    let mut driver = driver(vec![Target::Job("J".into())]);
    let task = Task::new(Payload::Shell("x".into()), Options::default()).encode();
    for n in 0..MAX_WATCHED + 500 {
        driver.put(&format!("/z/tasks/J/t{n:05}"), &task);
    }
    driver.connect();
    driver.settle();
    assert_eq!(driver.role.watched.len(), MAX_WATCHED);
    let all: Vec<String> =
        driver.znodes.keys().filter(|path| path.matches('/').count() == 4).cloned().collect();
    for path in all {
        driver.end(&path, done());
    }
    driver.settle();
    assert_eq!((driver.exit, driver.ended().len()), (Some(0), MAX_WATCHED + 503));
}

#[test]
fn interrupted_it_ends_without_a_trace() {
    let mut driver = driver(vec![task("J/1")]);
    driver.connect();
    driver.settle();
    driver.event(Event::Stop { again: false });
    assert_eq!(driver.exit, Some(INTERRUPTED));
}

#[test]
fn it_goes_on_after_every_loss() {
    for at in 0..12 {
        let mut driver = driver(vec![task("J/2"), Target::Job("J".into())]);
        for name in ["J/1", "J/2", "J~b~0000/3"] {
            driver.end(&format!("/z/tasks/{name}"), done());
        }
        driver.connect();
        for _ in 0..at {
            if driver.exit.is_none() {
                driver.play(Fate::Answered);
            }
        }
        if driver.exit.is_none() {
            driver.play(Fate::DroppedUnanswered);
            driver.connect();
            driver.settle();
        }
        assert_eq!((driver.exit, driver.ended().len()), (Some(0), 3), "lost at call {at}");
    }
}
