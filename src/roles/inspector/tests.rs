//! Status, list and show, over what stands and what does not.

use super::*;
use crate::contract::chunk::CommandResult;
use crate::contract::status::{Counts, Leader, Status};
use crate::contract::task::{Job, Options, Payload, State, Task};
use crate::contract::worker::{Assignment, Entry};
use crate::contract::{Incarnation, Layout, TaskId};
use crate::exit;
use crate::machine::{Call, Event, Refusal, Role};
use crate::roles::client::testing::{Desk, Fate, done, failed};
use crate::roles::client::{ClientReport, INTERRUPTED, Row, Shade, Shown, StatusReport};

const FIRST: &str = "/z/master/_c_aaaa-latch-0000000001";
const SECOND: &str = "/z/master/_c_bbbb-latch-0000000002";

fn status_desk() -> Desk<StatusOf> {
    Desk::new(StatusOf::new(StatusParams { layout: Layout::new("/z") }), &["/z", "/z/master"])
}

fn write_status<T: Role<Report = ClientReport>>(desk: &mut Desk<T>, contender: &str) {
    let epoch = desk.znodes[contender].1.czxid;
    let leader = Leader { id: "m".into(), host: "h".into(), pid: 7, epoch };
    let status = Status::new(leader, Vec::new(), Counts { pending: 3, ..Counts::default() }, false);
    desk.put("/z/status", &status.encode());
}

fn status(mut desk: Desk<StatusOf>) -> StatusReport {
    desk.connect();
    desk.settle();
    assert_eq!(desk.exit, Some(0));
    match desk.reports.pop() {
        Some(ClientReport::Status(report)) => *report,
        other => panic!("no status: {other:?}"),
    }
}

#[test]
fn the_first_contenders_summary_is_the_present() {
    let mut desk = status_desk();
    // A lower sequence number comes first, whatever the uuids.
    desk.put(SECOND, b"m2");
    desk.put(FIRST, b"m1");
    desk.put("/z/master/foreign", b"?");
    write_status(&mut desk, FIRST);
    let report = status(desk);
    assert!(report.current);
    assert_eq!(report.contenders, ["m1", "m2"]);
}

#[test]
fn a_former_leaders_summary_is_not_the_present() {
    let mut desk = status_desk();
    desk.put(FIRST, b"m1");
    desk.put(SECOND, b"m2");
    write_status(&mut desk, FIRST);
    desk.remove(FIRST);
    let report = status(desk);
    assert!(!report.current && report.status.is_some());
    assert_eq!(report.contenders, ["m2"]);

    let mut desk = status_desk();
    desk.put(FIRST, b"m1");
    write_status(&mut desk, FIRST);
    desk.remove(FIRST);
    let report = status(desk);
    assert!(!report.current && report.contenders.is_empty());
}

#[test]
fn a_takeover_between_the_reads_is_read_again() {
    let mut desk = status_desk();
    desk.put(FIRST, b"m1");
    desk.put(SECOND, b"m2");
    desk.connect();
    desk.settle_until(|call| call.path() == "/z/status");
    desk.remove(FIRST);
    write_status(&mut desk, SECOND);
    desk.settle();
    let Some(ClientReport::Status(report)) = desk.reports.pop() else { panic!("no status") };
    assert!(report.current);
    assert_eq!(report.contenders, ["m2"]);
}

#[test]
fn where_nothing_ever_ran_there_is_a_status_all_the_same() {
    let desk = Desk::new(StatusOf::new(StatusParams { layout: Layout::new("/z") }), &[]);
    let expected = StatusReport { status: None, current: false, contenders: Vec::new() };
    assert_eq!(status(desk), expected);
    let mut garbage = status_desk();
    garbage.put(FIRST, b"m1");
    garbage.put("/z/status", b"garbage");
    assert_eq!(status(garbage).status, None);
}

#[test]
fn a_question_survives_its_connection_and_ends_on_refusal() {
    let mut desk = status_desk();
    desk.put(FIRST, b"m1");
    desk.connect();
    desk.play(Fate::Answered);
    desk.play(Fate::DroppedUnanswered);
    desk.connect();
    desk.settle();
    assert_eq!((desk.exit, desk.reports.len()), (Some(0), 1));

    let mut desk = status_desk();
    desk.connect();
    desk.play(Fate::Refused(Refusal::NoAuth));
    assert_eq!(desk.exit, Some(exit::NOT_PERMITTED));
    let mut desk = status_desk();
    desk.event(Event::Stop { again: false });
    assert_eq!(desk.exit, Some(INTERRUPTED));
}

/// Tasks in all states; `J/run` is with a living worker, `J/dead` with a dead one, `J/old` at an old attempt.
/// `J/moved` and `J/ending` are revoked, and one of them is to be cancelled.
fn fill<T: Role<Report = ClientReport>>(desk: &mut Desk<T>) {
    let defaults = Options { priority: Some(5), ..Options::default() };
    for path in ["/z", "/z/tasks", "/z/workers", "/z/assign"] {
        desk.put(path, b"");
    }
    desk.put("/z/tasks/J", &Job::new(defaults).encode());
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
        desk.put(&format!("/z/tasks/J/{name}"), &task.encode());
    }
    desk.put("/z/tasks/J/zz", b"garbage");
    let (living, dead) = (Incarnation::new("w", 1), Incarnation::new("w", 2));
    let layout = Layout::new("/z");
    let entry = |name: &str| Entry {
        task: TaskId::new("J", name),
        attempt: 1,
        revoked: false,
        recalled: false,
        look: None,
        seen: None,
    };
    let revoked = |name: &str| Entry { revoked: true, ..entry(name) };
    let entries = vec![entry("run"), entry("old"), revoked("moved"), revoked("ending")];
    desk.put(&layout.registration(&living, 1), b"");
    desk.put(&layout.assignment(&living), &Assignment::new(1, entries).encode());
    desk.put(&layout.assignment(&dead), &Assignment::new(1, vec![entry("dead")]).encode());
}

fn list(states: &[Shade], limit: u64, job: Option<&str>) -> Desk<List> {
    let params = ListParams {
        layout: Layout::new("/z"),
        job: job.map(str::to_string),
        states: states.to_vec(),
        limit,
    };
    let mut desk = Desk::new(List::new(params), &[]);
    fill(&mut desk);
    desk
}

fn listed(desk: &Desk<List>) -> impl Iterator<Item = &Row> {
    desk.reports.iter().map(|report| match report {
        ClientReport::Row(row) => row.as_ref(),
        other => panic!("{other:?}"),
    })
}

fn rows(desk: &Desk<List>) -> Vec<(&str, Option<Shade>)> {
    listed(desk).map(|row| (row.name.as_str(), row.task.as_ref().ok().map(|task| task.shade))).collect()
}

#[test]
fn a_list_is_in_order_and_shows_what_runs() {
    let mut desk = list(&[], 100, None);
    desk.connect();
    desk.settle();
    assert_eq!(desk.exit, Some(0));
    let expected = [
        ("J/bad", Some(Shade::Ended(State::Failed))),
        ("J/dead", Some(Shade::Pending)),
        ("J/ending", Some(Shade::Cancelling)),
        ("J/good", Some(Shade::Ended(State::Done))),
        ("J/moved", Some(Shade::Pending)),
        ("J/old", Some(Shade::Pending)),
        ("J/run", Some(Shade::Running)),
        ("J/zz", None),
    ];
    assert_eq!(rows(&desk), expected);
    let Some(Row { task: Ok(task), .. }) = listed(&desk).next() else { panic!("a row") };
    assert!(task.command.starts_with("echo\\n") && task.command.ends_with('…'), "{}", task.command);
}

#[test]
fn a_list_is_filtered_and_limited() {
    let mut desk = list(&[Shade::Pending], 100, Some("J"));
    desk.connect();
    desk.settle();
    assert_eq!(rows(&desk).len(), 3);

    let mut desk = list(&[Shade::Ended(State::Failed)], 100, None);
    desk.connect();
    desk.settle();
    assert_eq!(rows(&desk).len(), 1);
    assert_eq!(desk.count(|call| call.path().contains("assign")), 0, "nothing is read that does not matter");

    let mut desk = list(&[], 2, None);
    desk.connect();
    desk.settle();
    assert_eq!((rows(&desk).len(), desk.exit), (2, Some(0)));
    assert!(desk.logged("--limit"));

    let mut desk = list(&[], 2, Some("K"));
    desk.connect();
    desk.settle();
    assert_eq!(desk.exit, Some(exit::DATA));
}

/// Lines 11 to 16 of a batch, of which the second is blank. One failed, one is being cancelled; a living worker has all
/// but the last, and may have started one.
fn put_chunk<T: Role<Report = ClientReport>>(desk: &mut Desk<T>) {
    let commands = ["exit 3", "", "echo c", "echo d", "echo e", "echo f"].map(str::to_string).to_vec();
    let mut task = Task::new(Payload::Chunk { first_line: 10, commands }, Options::default());
    task.flush(1, &[(0, CommandResult::of(failed(3)))].into(), 1);
    assert!(task.cut(1, 1) && task.cancel_line(4));
    let mut part = Job::new(Options::default());
    part.chunk = Some(10);
    for (path, data) in [("", part.encode()), ("/0000010", task.encode())] {
        desk.put(&format!("/z/tasks/J~b~0000{path}"), &data);
    }
    let living = Incarnation::new("w2", 7);
    let entry = |attempt| Entry {
        task: TaskId::new("J~b~0000", "0000010"),
        attempt,
        revoked: false,
        recalled: false,
        look: None,
        seen: None,
    };
    let layout = Layout::new("/z");
    desk.put(&layout.registration(&living, 1), b"");
    desk.put(&layout.assignment(&living), &Assignment::new(1, vec![entry(1)]).encode());
}

#[test]
fn every_line_of_a_batch_is_a_row() {
    let mut desk = list(&[], 100, Some("J~b"));
    put_chunk(&mut desk);
    desk.connect();
    desk.settle();
    let expected = [
        ("J~b/11", Some(Shade::Ended(State::Failed))),
        ("J~b/13", Some(Shade::Running)),
        ("J~b/14", Some(Shade::Assigned)),
        ("J~b/15", Some(Shade::Cancelling)),
        ("J~b/16", Some(Shade::Pending)),
    ];
    assert_eq!(rows(&desk), expected);
    let task = |at: usize| listed(&desk).nth(at).and_then(|row| row.task.clone().ok()).expect("a line");
    assert_eq!(task(0).outcome.and_then(|outcome| outcome.exit_code), Some(3));
    assert_eq!((task(1).worker, task(4).worker), (Some(Incarnation::new("w2", 7)), None));
    assert_eq!((task(1).command.as_str(), task(1).attempt), ("echo c", None));

    let mut desk = list(&[Shade::Ended(State::Failed)], 100, None);
    put_chunk(&mut desk);
    desk.connect();
    desk.settle();
    assert_eq!(rows(&desk).iter().map(|row| row.0).collect::<Vec<_>>(), ["J/bad", "J~b/11"]);

    let mut desk = list(&[], 2, Some("J~b"));
    put_chunk(&mut desk);
    desk.connect();
    desk.settle();
    assert!(rows(&desk).len() == 2 && desk.logged("--limit"), "the limit counts lines");
}

#[test]
fn a_line_is_shown_by_its_name() {
    let look = |name: &str| {
        let params = ShowParams { layout: Layout::new("/z"), id: TaskId::parse(name).expect("an id") };
        let mut desk = Desk::new(Show::new(params), &[]);
        fill(&mut desk);
        put_chunk(&mut desk);
        desk.connect();
        desk.play(Fate::Answered);
        desk.play(Fate::DroppedUnanswered);
        desk.connect();
        desk.settle();
        desk
    };
    let desk = look("J~b/13");
    let [ClientReport::Shown(shown)] = desk.reports.as_slice() else { panic!("{:?}", desk.reports) };
    assert_eq!((shown.shade(), shown.worker.clone()), (Shade::Running, Some(Incarnation::new("w2", 7))));
    assert_eq!(shown.line.as_ref().map(|line| line.place), Some(2));
    for (name, words) in
        [("J~b/12", "there is no line J~b/12"), ("J~b/9", "was collected"), ("K/1", "there is no task K/1")]
    {
        let desk = look(name);
        assert!(desk.exit == Some(exit::DATA) && desk.logged(words), "{name}: {:?}", desk.logs);
    }
}

#[test]
fn a_list_goes_on_after_every_loss() {
    let calls = {
        let mut desk = list(&[], 100, None);
        desk.connect();
        desk.settle();
        desk.made.len()
    };
    for at in 0..calls {
        let mut desk = list(&[], 100, None);
        desk.connect();
        for _ in 0..at {
            desk.play(Fate::Answered);
        }
        desk.play(Fate::DroppedUnanswered);
        if desk.exit.is_none() {
            desk.connect();
            desk.settle();
        }
        assert_eq!((desk.exit, rows(&desk).len()), (Some(0), 8), "lost at call {at}");
    }
}

#[test]
fn g08_a_long_list_is_read_through_a_window() {
    let mut desk = list(&[], 10_000, None);
    let task = Task::new(Payload::Shell("x".into()), Options::default()).encode();
    for n in 0..2_000 {
        desk.put(&format!("/z/tasks/J/t{n:05}"), &task);
    }
    desk.connect();
    let mut most = 0;
    while desk.exit.is_none() {
        most = most.max(desk.pending.len());
        // Answers come in any order; rows don't.
        desk.pending.rotate_left(most / 2 % desk.pending.len().max(1));
        assert!(desk.play(Fate::Answered), "it neither goes on nor ends");
    }
    let ids: Vec<&str> = rows(&desk).into_iter().map(|(id, _)| id).collect();
    assert!(ids.is_sorted() && ids.len() == 2_008 && most <= 128, "{most}");
}

fn show(name: &str) -> Desk<Show> {
    let params = ShowParams { layout: Layout::new("/z"), id: TaskId::new("J", name) };
    let mut desk = Desk::new(Show::new(params), &[]);
    fill(&mut desk);
    desk.connect();
    desk
}

#[test]
fn a_task_is_shown_with_its_jobs_defaults_and_its_worker() {
    let mut desk = show("run");
    desk.play(Fate::Answered);
    desk.play(Fate::DroppedUnanswered);
    desk.connect();
    desk.settle();
    let [ClientReport::Shown(shown)] = desk.reports.as_slice() else { panic!("{:?}", desk.reports) };
    let Shown { options, worker, .. } = shown.as_ref();
    assert_eq!(
        (desk.exit, options.priority, worker.clone()),
        (Some(0), Some(5), Some(Incarnation::new("w", 1)))
    );
    assert_eq!(shown.shade(), Shade::Running);

    let mut desk = show("good");
    desk.settle();
    let [ClientReport::Shown(shown)] = desk.reports.as_slice() else { panic!("{:?}", desk.reports) };
    assert_eq!(shown.shade(), Shade::Ended(State::Done));
}

#[test]
fn what_can_not_be_shown_says_why() {
    for (name, words) in [("zz", "/z/tasks/J/zz is no task"), ("nope", "there is no task J/nope")] {
        let mut desk = show(name);
        desk.settle();
        assert_eq!((desk.exit, desk.count(Call::is_write)), (Some(exit::DATA), 0));
        assert!(desk.logged(words), "{:?}", desk.logs);
    }
}
