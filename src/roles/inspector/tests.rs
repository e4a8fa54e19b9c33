//! Status, list and show, over what exists and what does not.

mod elections;
mod why;

use std::time::Duration;

use super::*;
use crate::contract::chunk::CommandResult;
use crate::contract::status::{Counts, LeaderStatus, Status};
use crate::contract::task::{Job, Options, Payload, State, Task};
use crate::contract::worker::{Assignment, Entry, ProcessIdentity, Registration};
use crate::contract::{Incarnation, Labels, Layout, TaskId};
use crate::exit;
use crate::machine::{Call, Event, Refusal, Role};
use crate::roles::client::testing::{ClientDriver, Fate, done, failed};
use crate::roles::client::wait_reasons::WaitReason;
use crate::roles::client::{ClientReport, INTERRUPTED, Row, Shown, StatusReport, TaskStatus};

const FIRST: &str = "/z/master/_c_aaaa-latch-0000000001";
const SECOND: &str = "/z/master/_c_bbbb-latch-0000000002";

fn status_driver() -> ClientDriver<StatusOf> {
    ClientDriver::new(
        StatusOf::new(StatusParams { layout: Layout::new("/z"), form: StatusForm::Summary, every: None }),
        &["/z", "/z/master"],
    )
}

fn write_status<T: Role<Report = ClientReport>>(driver: &mut ClientDriver<T>, contender: &str) {
    let epoch = driver.znodes[contender].1.czxid;
    let leader = LeaderStatus { id: "m".into(), host: "h".into(), pid: 7, epoch };
    let status = Status::new(leader, Vec::new(), Counts { pending: 3, ..Counts::default() }, false);
    driver.put("/z/status", &status.encode());
}

fn status(mut driver: ClientDriver<StatusOf>) -> StatusReport {
    driver.connect();
    driver.settle();
    assert_eq!(driver.exit, Some(0));
    match driver.reports.pop() {
        Some(ClientReport::Status(report)) => *report,
        other => panic!("no status: {other:?}"),
    }
}

#[test]
fn the_first_contenders_summary_is_the_present() {
    let mut driver = status_driver();
    // A lower sequence number comes first, whatever the uuids.
    driver.put(SECOND, b"m2");
    driver.put(FIRST, b"m1");
    driver.put("/z/master/foreign", b"?");
    write_status(&mut driver, FIRST);
    let report = status(driver);
    assert!(report.current);
    assert_eq!(report.contenders, ["m1", "m2"]);
}

#[test]
fn a_former_leaders_summary_is_not_the_present() {
    let mut driver = status_driver();
    driver.put(FIRST, b"m1");
    driver.put(SECOND, b"m2");
    write_status(&mut driver, FIRST);
    driver.remove(FIRST);
    let report = status(driver);
    assert!(!report.current && report.status.is_some());
    assert_eq!(report.contenders, ["m2"]);

    let mut driver = status_driver();
    driver.put(FIRST, b"m1");
    write_status(&mut driver, FIRST);
    driver.remove(FIRST);
    let report = status(driver);
    assert!(!report.current && report.contenders.is_empty());
}

#[test]
fn a_takeover_between_the_reads_is_read_again() {
    let mut driver = status_driver();
    driver.put(FIRST, b"m1");
    driver.put(SECOND, b"m2");
    driver.connect();
    driver.settle_until(|call| call.path() == "/z/status");
    driver.remove(FIRST);
    write_status(&mut driver, SECOND);
    driver.settle();
    let Some(ClientReport::Status(report)) = driver.reports.pop() else { panic!("no status") };
    assert!(report.current);
    assert_eq!(report.contenders, ["m2"]);
}

#[test]
fn where_nothing_ever_ran_there_is_a_status_all_the_same() {
    let driver = ClientDriver::new(
        StatusOf::new(StatusParams { layout: Layout::new("/z"), form: StatusForm::Summary, every: None }),
        &[],
    );
    let expected = StatusReport { status: None, current: false, contenders: Vec::new() };
    assert_eq!(status(driver), expected);
    let mut garbage = status_driver();
    garbage.put(FIRST, b"m1");
    garbage.put("/z/status", b"garbage");
    assert_eq!(status(garbage).status, None);
}

#[test]
fn a_question_survives_its_connection_and_ends_on_refusal() {
    let mut driver = status_driver();
    driver.put(FIRST, b"m1");
    driver.connect();
    driver.play(Fate::Answered);
    driver.play(Fate::DroppedUnanswered);
    driver.connect();
    driver.settle();
    assert_eq!((driver.exit, driver.reports.len()), (Some(0), 1));

    let mut driver = status_driver();
    driver.connect();
    driver.play(Fate::Refused(Refusal::NoAuth));
    assert_eq!(driver.exit, Some(exit::NOT_PERMITTED));
    let mut driver = status_driver();
    driver.event(Event::Stop { again: false });
    assert_eq!(driver.exit, Some(INTERRUPTED));
}

/// Tasks in all states; `J/run` is with a live worker, `J/dead` with a dead one, `J/old` at an old attempt.
/// `J/moved` and `J/ending` are revoked, and one of them is to be cancelled.
fn fill<T: Role<Report = ClientReport>>(driver: &mut ClientDriver<T>) {
    let defaults = Options { priority: Some(5), ..Options::default() };
    for path in ["/z", "/z/tasks", "/z/workers", "/z/assign"] {
        driver.put(path, b"");
    }
    driver.put("/z/tasks/J", &Job::new(defaults).encode());
    for (name, outcome, attempt) in [
        ("run", None, 1),
        ("dead", None, 1),
        ("old", None, 2),
        ("moved", None, 1),
        ("ending", None, 1),
        ("good", Some(done()), 1),
        ("bad", Some(failed(1)), 1),
    ] {
        let mut task = Task::new(Payload::Shell(format!("echo\n{}", "x".repeat(100))), Options::default());
        task.outcome = outcome;
        task.attempt = attempt;
        task.cancel = name == "ending";
        driver.put(&format!("/z/tasks/J/{name}"), &task.encode());
    }
    driver.put("/z/tasks/J/zz", b"garbage");
    let (live, dead) = (Incarnation::new("w", 1), Incarnation::new("w", 2));
    let layout = Layout::new("/z");
    let entry = |name: &str| Entry {
        task: TaskId::new("J", name),
        attempt: 1,
        revoked: false,
        recalled: false,
        recheck: None,
        seen: None,
    };
    let revoked = |name: &str| Entry { revoked: true, ..entry(name) };
    let entries = vec![entry("run"), entry("old"), revoked("moved"), revoked("ending")];
    driver.put(&layout.registration(&live, 1), b"");
    driver.put(&layout.assignment(&live), &Assignment::new(1, entries).encode());
    driver.put(&layout.assignment(&dead), &Assignment::new(1, vec![entry("dead")]).encode());
}

fn list(states: &[TaskStatus], limit: u64, job: Option<&str>) -> ClientDriver<List> {
    list_of(ListParams { job: job.map(str::to_string), states: states.to_vec(), limit, ..all_tasks() })
}

fn all_tasks() -> ListParams {
    ListParams {
        layout: Layout::new("/z"),
        job: None,
        states: Vec::new(),
        worker: None,
        created_ms: i64::MIN..i64::MAX,
        limit: 100,
        now_ms: 0,
    }
}

fn list_of(params: ListParams) -> ClientDriver<List> {
    let mut driver = ClientDriver::new(List::new(params), &[]);
    fill(&mut driver);
    driver
}

fn listed(driver: &ClientDriver<List>) -> impl Iterator<Item = &Row> {
    driver.reports.iter().map(|report| match report {
        ClientReport::Row(row) => row.as_ref(),
        other => panic!("{other:?}"),
    })
}

fn rows(driver: &ClientDriver<List>) -> Vec<(&str, Option<TaskStatus>)> {
    listed(driver).map(|row| (row.name.as_str(), row.task.as_ref().ok().map(|task| task.status))).collect()
}

#[test]
fn a_list_is_in_order_and_shows_what_runs() {
    let mut driver = list(&[], 100, None);
    driver.connect();
    driver.settle();
    assert_eq!(driver.exit, Some(0));
    let expected = [
        ("J/bad", Some(TaskStatus::Ended(State::Failed))),
        ("J/dead", Some(TaskStatus::Pending)),
        ("J/ending", Some(TaskStatus::Cancelling)),
        ("J/good", Some(TaskStatus::Ended(State::Done))),
        ("J/moved", Some(TaskStatus::Pending)),
        ("J/old", Some(TaskStatus::Pending)),
        ("J/run", Some(TaskStatus::Running)),
        ("J/zz", None),
    ];
    assert_eq!(rows(&driver), expected);
    let Some(Row { task: Ok(task), .. }) = listed(&driver).next() else { panic!("a row") };
    assert!(task.command.starts_with("echo\\n") && task.command.ends_with('…'), "{}", task.command);
}

#[test]
fn a_list_is_filtered_and_limited() {
    let mut driver = list(&[TaskStatus::Pending], 100, Some("J"));
    driver.connect();
    driver.settle();
    assert_eq!(rows(&driver).len(), 3);

    let mut driver = list(&[TaskStatus::Ended(State::Failed)], 100, None);
    driver.connect();
    driver.settle();
    assert_eq!(rows(&driver).len(), 1);
    assert_eq!(
        driver.count(|call| call.path().contains("assign")),
        0,
        "nothing is read that does not matter"
    );

    let mut driver = list(&[], 2, None);
    driver.connect();
    driver.settle();
    assert_eq!((rows(&driver).len(), driver.exit), (2, Some(0)));
    assert!(driver.logged("--limit"));

    let mut driver = list(&[], 2, Some("K"));
    driver.connect();
    driver.settle();
    assert_eq!(driver.exit, Some(exit::DATA));
}

#[test]
fn a_list_is_filtered_by_worker_and_by_creation() {
    let ids = |params: ListParams| {
        let mut driver = list_of(params);
        driver.connect();
        driver.settle();
        assert_eq!(driver.exit, Some(0));
        rows(&driver).into_iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>()
    };
    let of_worker = |id: &str| ids(ListParams { worker: Some(id.to_string()), ..all_tasks() });
    assert_eq!((of_worker("w"), of_worker("v")), (vec!["J/ending".to_string(), "J/run".into()], vec![]));
    let mut driver = list_of(all_tasks());
    driver.connect();
    driver.settle();
    let created = |name: &str| {
        let task =
            listed(&driver).find(|row| row.name == name).expect("a row").task.as_ref().expect("a task");
        task.created_ms
    };
    let (bad, good) = (created("J/bad"), created("J/good"));
    assert!(good < bad, "the driver's clock goes on with each write");
    let between = |created_ms| ids(ListParams { created_ms, ..all_tasks() });
    assert_eq!(between(good..bad), ["J/good"], "from the first time, and before the last");
    assert!(
        between(i64::MIN..i64::MAX).contains(&"J/zz".to_string()),
        "without a filter malformed ones, too"
    );
}

/// Lines 11 to 16 of a batch, of which the second is blank. One failed, one is being cancelled; a live worker has all
/// but the last, and may have started one.
fn put_chunk<T: Role<Report = ClientReport>>(driver: &mut ClientDriver<T>) {
    let commands = ["exit 3", "", "echo c", "echo d", "echo e", "echo f"].map(str::to_string).to_vec();
    let mut task = Task::new(Payload::Chunk { first_line: 10, commands }, Options::default());
    task.flush(1, &[(0, CommandResult::of(failed(3)))].into(), 1);
    assert!(task.cut(1, 1) && task.cancel_line(4));
    let mut part = Job::new(Options::default());
    part.chunk = Some(10);
    for (path, data) in [("", part.encode()), ("/0000010", task.encode())] {
        driver.put(&format!("/z/tasks/J~b~0000{path}"), &data);
    }
    let live = Incarnation::new("w2", 7);
    let entry = |attempt| Entry {
        task: TaskId::new("J~b~0000", "0000010"),
        attempt,
        revoked: false,
        recalled: false,
        recheck: None,
        seen: None,
    };
    let layout = Layout::new("/z");
    driver.put(&layout.registration(&live, 1), b"");
    driver.put(&layout.assignment(&live), &Assignment::new(1, vec![entry(1)]).encode());
}

#[test]
fn every_line_of_a_batch_is_a_row() {
    let mut driver = list(&[], 100, Some("J~b"));
    put_chunk(&mut driver);
    driver.connect();
    driver.settle();
    let expected = [
        ("J~b/11", Some(TaskStatus::Ended(State::Failed))),
        ("J~b/13", Some(TaskStatus::Running)),
        ("J~b/14", Some(TaskStatus::Assigned)),
        ("J~b/15", Some(TaskStatus::Cancelling)),
        ("J~b/16", Some(TaskStatus::Pending)),
    ];
    assert_eq!(rows(&driver), expected);
    let task = |at: usize| listed(&driver).nth(at).and_then(|row| row.task.clone().ok()).expect("a line");
    assert_eq!(task(0).outcome.and_then(|outcome| outcome.exit_code), Some(3));
    assert_eq!((task(1).worker, task(4).worker), (Some(Incarnation::new("w2", 7)), None));
    assert_eq!((task(1).command.as_str(), task(1).attempt), ("echo c", None));

    let mut driver = list(&[TaskStatus::Ended(State::Failed)], 100, None);
    put_chunk(&mut driver);
    driver.connect();
    driver.settle();
    assert_eq!(rows(&driver).iter().map(|row| row.0).collect::<Vec<_>>(), ["J/bad", "J~b/11"]);

    let mut driver = list(&[], 2, Some("J~b"));
    put_chunk(&mut driver);
    driver.connect();
    driver.settle();
    assert!(rows(&driver).len() == 2 && driver.logged("--limit"), "the limit counts lines");
}

fn show_params(id: TaskId) -> ShowParams {
    ShowParams { layout: Layout::new("/z"), id, only_reasons: false, now_ms: 0 }
}

#[test]
fn a_line_is_shown_by_its_name() {
    let show = |name: &str| {
        let params = show_params(TaskId::parse(name).expect("an id"));
        let mut driver = ClientDriver::new(Show::new(params), &[]);
        fill(&mut driver);
        put_chunk(&mut driver);
        driver.connect();
        driver.play(Fate::Answered);
        driver.play(Fate::DroppedUnanswered);
        driver.connect();
        driver.settle();
        driver
    };
    let driver = show("J~b/13");
    let [ClientReport::Shown(shown)] = driver.reports.as_slice() else { panic!("{:?}", driver.reports) };
    assert_eq!(
        (shown.status(), shown.worker.clone()),
        (TaskStatus::Running, Some(Incarnation::new("w2", 7)))
    );
    assert_eq!(shown.line.as_ref().map(|line| line.position), Some(2));
    for (name, words) in
        [("J~b/12", "there is no line J~b/12"), ("J~b/9", "was collected"), ("K/1", "there is no task K/1")]
    {
        let driver = show(name);
        assert!(driver.exit == Some(exit::DATA) && driver.logged(words), "{name}: {:?}", driver.logs);
    }
}

#[test]
fn a_list_goes_on_after_every_loss() {
    let calls = {
        let mut driver = list(&[], 100, None);
        driver.connect();
        driver.settle();
        driver.made.len()
    };
    for at in 0..calls {
        let mut driver = list(&[], 100, None);
        driver.connect();
        for _ in 0..at {
            driver.play(Fate::Answered);
        }
        driver.play(Fate::DroppedUnanswered);
        if driver.exit.is_none() {
            driver.connect();
            driver.settle();
        }
        assert_eq!((driver.exit, rows(&driver).len()), (Some(0), 8), "lost at call {at}");
    }
}

#[test]
fn g08_a_long_list_is_read_through_a_window() {
    let mut driver = list(&[], 10_000, None);
    let task = Task::new(Payload::Shell("x".into()), Options::default()).encode();
    for n in 0..2_000 {
        driver.put(&format!("/z/tasks/J/t{n:05}"), &task);
    }
    driver.connect();
    let mut most = 0;
    while driver.exit.is_none() {
        most = most.max(driver.pending.len());
        // Answers come in any order; rows don't.
        driver.pending.rotate_left(most / 2 % driver.pending.len().max(1));
        assert!(driver.play(Fate::Answered), "it neither goes on nor ends");
    }
    let ids: Vec<&str> = rows(&driver).into_iter().map(|(id, _)| id).collect();
    assert!(ids.is_sorted() && ids.len() == 2_008 && most <= 128, "{most}");
}

fn show(name: &str) -> ClientDriver<Show> {
    let params = show_params(TaskId::new("J", name));
    let mut driver = ClientDriver::new(Show::new(params), &[]);
    fill(&mut driver);
    driver.connect();
    driver
}

#[test]
fn a_task_is_shown_with_its_jobs_defaults_and_its_worker() {
    let mut driver = show("run");
    driver.play(Fate::Answered);
    driver.play(Fate::DroppedUnanswered);
    driver.connect();
    driver.settle();
    let [ClientReport::Shown(shown)] = driver.reports.as_slice() else { panic!("{:?}", driver.reports) };
    let Shown { options, worker, .. } = shown.as_ref();
    assert_eq!(
        (driver.exit, options.priority, worker.clone()),
        (Some(0), Some(5), Some(Incarnation::new("w", 1)))
    );
    assert_eq!(shown.status(), TaskStatus::Running);

    let mut driver = show("good");
    driver.settle();
    let [ClientReport::Shown(shown)] = driver.reports.as_slice() else { panic!("{:?}", driver.reports) };
    assert_eq!(shown.status(), TaskStatus::Ended(State::Done));
}

#[test]
fn what_can_not_be_shown_says_why() {
    for (name, words) in [("zz", "/z/tasks/J/zz is no task"), ("nope", "there is no task J/nope")] {
        let mut driver = show(name);
        driver.settle();
        assert_eq!((driver.exit, driver.count(Call::is_write)), (Some(exit::DATA), 0));
        assert!(driver.logged(words), "{:?}", driver.logs);
    }
}

#[test]
fn a_watched_status_is_read_again_and_again() {
    let every = Duration::from_secs(2);
    let params = StatusParams { layout: Layout::new("/z"), form: StatusForm::Workers, every: Some(every) };
    let mut driver = ClientDriver::new(StatusOf::new(params), &["/z", "/z/master"]);
    driver.put(FIRST, b"m1");
    write_status(&mut driver, FIRST);
    driver.connect();
    driver.settle();
    assert_eq!((driver.reports.len(), driver.exit), (1, None));
    let due = driver.role.next_wake().expect("it goes on");
    assert_eq!(due, driver.now + every);
    driver.now = due;
    driver.event(Event::Wake);
    driver.settle();
    assert_eq!((driver.reports.len(), driver.exit), (2, None));
    // Without a connection it waits for the next one, and then reads at once.
    driver.lose();
    assert_eq!(driver.role.next_wake(), None);
    driver.connect();
    driver.settle();
    assert_eq!(driver.reports.len(), 3);
    assert!(driver.reports.iter().all(|report| matches!(report, ClientReport::Workers(_))));
    driver.event(Event::Stop { again: false });
    assert_eq!((driver.exit, driver.logs.len()), (Some(INTERRUPTED), 0), "{:?}", driver.logs);
}
