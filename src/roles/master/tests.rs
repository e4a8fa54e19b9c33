//! The master on a few znodes: takeovers, deaths and late answers, one step at a time.

use super::*;
use crate::contract::status::Admission;
use crate::contract::task::{Options, Outcome, Payload, State, Task};
use crate::contract::worker::{Assignment, Entry, ProcessIdentity, Registration};
use crate::contract::{Incarnation, TaskId};
use crate::machine::{Call, CallError, CreateMode, Refusal};
use crate::roles::testing::{RoleDriver, T, World};

mod dispatch;
mod outcomes;
mod refusals;
mod shares;
mod vanish;

fn master(id: &str) -> RoleDriver<Master> {
    RoleDriver::new(Master::new(Params {
        layout: Layout::new("/z"),
        id: id.into(),
        host: "h".into(),
        pid: 1,
        uuid: format!("uuid-{id}"),
        result_ttl: Duration::from_secs(3_600),
        job_ttl: Duration::from_secs(3_600),
        max_pending: 1_000,
        max_failed: 1_000,
        max_pending_bytes: 1 << 20,
    }))
}

fn view(master: &RoleDriver<Master>) -> &View {
    match &master.role.state {
        super::State::Offline => panic!("no connection"),
        super::State::Standby(standby) => &standby.view,
        super::State::Leader(leader) => &leader.view,
    }
}

fn registration(slots: u32) -> Registration {
    Registration::new(&ProcessIdentity::default(), slots, Default::default(), 10_000)
}

/// An incarnation's assignment and its first registration, with the session that the registration goes with.
fn worker(world: &mut World, incarnation: &str, slots: u32) -> i64 {
    world.put(&format!("/z/assign/{incarnation}"), &Assignment::new(0, Vec::new()).encode());
    register(world, &format!("{incarnation}~0"), &registration(slots))
}

fn register(world: &mut World, name: &str, registration: &Registration) -> i64 {
    let session = world.open();
    let (path, data) = (format!("/z/workers/{name}"), registration.encode());
    world.apply(session, &Call::Create { path, data, mode: CreateMode::Ephemeral }).expect("registered");
    session
}

fn vouch(world: &mut World, name: &str, slots: u32, through: i32) {
    let mut said = registration(slots);
    said.revoked_through = Some(through);
    world.put(&format!("/z/workers/{name}"), &said.encode());
}

fn assignment(world: &mut World, incarnation: &str, entries: &[(&str, u32, bool)]) {
    let entry = |(task, attempt, revoked): &(&str, u32, bool)| Entry {
        task: TaskId::parse(task).expect("id"),
        attempt: *attempt,
        revoked: *revoked,
        recalled: false,
        recheck: None,
        seen: None,
    };
    let data = Assignment::new(1, entries.iter().map(entry).collect()).encode();
    world.put(&format!("/z/assign/{incarnation}"), &data);
}

fn task(world: &mut World, id: &str, change: impl FnOnce(&mut Task)) {
    let mut task = Task::new(Payload::Shell("x".into()), Options::default());
    change(&mut task);
    world.put(&format!("/z/tasks/{}", id.split('/').next().expect("dir")), b"");
    world.put(&format!("/z/tasks/{id}"), &task.encode());
}

fn entry(task: &str, attempt: u32, revoked: bool) -> (String, u32, bool) {
    (task.to_string(), attempt, revoked)
}

#[test]
fn a_standby_takes_over_what_is_running() {
    let mut world = World::new();
    worker(&mut world, "w~1", 2);
    let (mut leader, mut standby) = (master("m"), master("n"));
    leader.connect(&mut world);
    standby.connect(&mut world);
    task(&mut world, "_00/a", |_| {});
    standby.go(&mut world);
    leader.go(&mut world);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 1, false)]);
    world.expire(leader.session.expect("up"));
    standby.go(&mut world);
    assert!(standby.logs.iter().any(|line| line.starts_with("leading")), "{:?}", standby.logs);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 1, false)]);
}

/// Two assignments name the task: its move to the second was written, its removal from the first was not.
#[test]
fn a_stale_entry_of_a_moved_task_leaves_the_current_one_alone() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    worker(&mut world, "w~2", 1);
    worker(&mut world, "w~3", 2);
    task(&mut world, "_00/a", |task| task.attempt = 2);
    assignment(&mut world, "w~1", &[("_00/a", 1, true)]);
    assignment(&mut world, "w~2", &[("_00/a", 2, false)]);
    let mut master = master("m");
    master.connect(&mut world);
    let version = world.znodes["/z/assign/w~1"].stat.version;
    vouch(&mut world, "w~1~0", 1, version);
    master.go(&mut world);
    assert_eq!(world.entries("/z/assign/w~2"), [entry("_00/a", 2, false)], "it runs there");
    assert_eq!(world.entries("/z/assign/w~3"), [], "and nowhere else");
    assert_eq!(world.entries("/z/assign/w~1"), []);
}

#[test]
fn the_leader_publishes_its_counts_and_its_limits() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    let mut leader = master("m");
    leader.connect(&mut world);
    let shown = |world: &World| {
        let status =
            crate::contract::status::Status::decode(&world.znodes["/z/status"].data).expect("status");
        (status.pending(), status.admission.expect("limits"))
    };
    for id in ["_00/a", "_00/b", "_00/c"] {
        task(&mut world, id, |_| {});
    }
    world.put("/z/tasks/_00/d", b"garbage");
    let play = |leader: &mut RoleDriver<Master>, world: &mut World| {
        leader.go(world);
        world.pass(Duration::from_secs(2));
        leader.go(world);
        let tasks = world.znodes.iter().filter(|(path, _)| path.starts_with("/z/tasks/_00/"));
        tasks.map(|(_, node)| node.data.len() as u64).sum::<u64>()
    };
    let bytes = play(&mut leader, &mut world);
    let admission = Admission { bytes, max_pending: 1_000, max_pending_bytes: 1 << 20 };
    assert_eq!(shown(&world), (3, admission), "one of them is with a worker");
    let outcome = Outcome::unrun(State::Done, None, "", 1);
    world.change("/z/tasks/_00/b", |task| task.outcome = Some(outcome));
    world.remove("/z/tasks/_00/c");
    let less = play(&mut leader, &mut world);
    assert_eq!(shown(&world), (1, Admission { bytes: less, ..admission }));
}

#[test]
fn a_half_done_move_costs_no_slot() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    worker(&mut world, "w~2", 1);
    task(&mut world, "_00/a", |task| task.attempt = 2);
    task(&mut world, "_00/b", |_| {});
    assignment(&mut world, "w~1", &[("_00/a", 1, false)]);
    assignment(&mut world, "w~2", &[("_00/a", 2, false)]);
    let mut master = master("m");
    master.connect(&mut world);
    assert_eq!(
        world.entries("/z/assign/w~1"),
        [entry("_00/a", 1, true)],
        "stale: its worker has to confirm the kill"
    );
    let version = world.znodes["/z/assign/w~1"].stat.version;
    vouch(&mut world, "w~1~0", 1, version);
    master.go(&mut world);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/b", 1, false)]);
}

/// A worker whose session had ended comes back with a new registration of the same incarnation, and will find
/// out only then that it is dead.
#[test]
fn a_failed_worker_gets_nothing_even_if_it_seems_to_return() {
    let mut world = World::new();
    let session = worker(&mut world, "w~1", 2);
    task(&mut world, "_00/a", |_| {});
    task(&mut world, "_00/b", |_| {});
    let mut master = master("m");
    master.connect(&mut world);
    assert_eq!(world.entries("/z/assign/w~1").len(), 2);
    // Its death is seen, and one of its tasks is moved before the other.
    master.hold = |call| matches!(call, Call::Set { path, .. } if path == "/z/tasks/_00/b");
    world.expire(session);
    while master.calls.iter().all(|(_, call)| !matches!(call, Call::Set { .. })) {
        assert!(master.deliver(&mut world) || master.answer(&mut world));
    }
    let session = register(&mut world, "w~1~1", &registration(2));
    master.go(&mut world);
    master.hold = |_| false;
    master.go(&mut world);
    world.expire(session);
    master.go(&mut world);
    assert!(!world.znodes.contains_key("/z/assign/w~1"), "{:?}", world.entries("/z/assign/w~1"));
    worker(&mut world, "w~2", 2);
    master.go(&mut world);
    assert_eq!(world.entries("/z/assign/w~2"), [entry("_00/a", 2, false)], "a suspect goes alone");
}

/// Events and replies come over different threads: the event of a death may come before the list that lacks the worker.
#[test]
fn a_worker_failure_reported_before_the_list_is_not_forgotten() {
    let mut world = World::new();
    let session = worker(&mut world, "w~1", 1);
    task(&mut world, "_00/a", |_| {});
    assignment(&mut world, "w~1", &[("_00/a", 1, false)]);
    let mut master = master("m");
    master.hold = |call| matches!(call, Call::Children { path } if path == "/z/workers");
    master.connect(&mut world);
    // The mirror's own list.
    master.hold = |_| false;
    assert!(master.answer(&mut world));
    master.hold = |call| matches!(call, Call::Children { path } if path == "/z/workers");
    master.go(&mut world);
    let at = master.calls.iter().position(|(_, call)| matches!(call, Call::Children { .. }));
    let (id, call) = master.calls.remove(at.expect("the leader lists")).expect("there");
    let listed = world.apply(master.session.expect("up"), &call).expect("list");
    world.expire(session);
    master.go(&mut world);
    master.event(&world, Event::Reply { id, result: Ok(listed) });
    master.go(&mut world);
    assert_eq!(world.task("/z/tasks/_00/a").attempt, 2, "moved on");
    assert!(!world.znodes.contains_key("/z/assign/w~1"));
}

/// No task may depend on the order in which the two lists of workers are answered.
#[test]
fn no_worker_counts_as_failed_before_the_mirror_is_complete() {
    let mut world = World::new();
    let session = worker(&mut world, "w~1", 1);
    task(&mut world, "_00/a", |_| {});
    assignment(&mut world, "w~1", &[("_00/a", 1, false)]);
    let mut master = master("m");
    master.hold = |call| matches!(call, Call::Watch { path, .. } if path == "/z/workers");
    master.connect(&mut world);
    world.expire(session);
    master.hold = |_| false;
    master.go(&mut world);
    assert_eq!(world.task("/z/tasks/_00/a").attempt, 2, "moved on");
}

#[test]
fn a_failover_waits_for_another_edit_of_its_task() {
    let mut world = World::new();
    let session = worker(&mut world, "w~1", 2);
    for id in ["_00/a", "_00/b"] {
        task(&mut world, id, |task| task.options.orphan_of = Some("s".into()));
    }
    let mut master = master("m");
    master.connect(&mut world);
    assert_eq!(world.entries("/z/assign/w~1").len(), 2);
    // One of its two tasks is read, and then marked as an orphan, before the other is read.
    master.hold = |call| matches!(call, Call::Get { path, .. } if path.ends_with("/b"));
    world.expire(session);
    master.go(&mut world);
    master.hold = |call| matches!(call, Call::Get { path, .. } | Call::Set { path, .. } if path.starts_with("/z/tasks/"));
    for _ in 0..8 {
        world.pass(T / 2);
        master.go(&mut world);
    }
    assert!(master.logs.iter().any(|line| line.contains("its submitter is gone")), "{:?}", master.logs);
    master.hold = |call| matches!(call, Call::Get { path, .. } if path.ends_with("/a"));
    master.go(&mut world);
    master.hold = |_| false;
    master.go(&mut world);
    for _ in 0..8 {
        world.pass(T / 2);
        master.go(&mut world);
    }
    assert!(!world.znodes.contains_key("/z/assign/w~1"), "{:?}", world.entries("/z/assign/w~1"));
    for path in ["/z/tasks/_00/a", "/z/tasks/_00/b"] {
        assert_eq!(world.task(path).outcome.map(|outcome| outcome.state), Some(State::Cancelled));
    }
}

#[test]
fn an_unreadable_assignment_stops_no_takeover() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    task(&mut world, "_00/a", |_| {});
    world.put("/z/assign/alien~1", b"");
    world.refused.insert("/z/assign/alien~1".into(), Refusal::NoAuth);
    let mut master = master("m");
    master.connect(&mut world);
    assert!(master.logs.iter().any(|line| line.starts_with("leading")), "{:?}", master.logs);
    assert_eq!(world.entries("/z/assign/w~1"), [], "it may name the task");
    world.pass(Duration::from_secs(61));
    master.go(&mut world);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 1, false)]);
}

/// No leader can have written it: its epoch is of a transaction after the one that wrote it.
#[test]
fn an_epoch_from_the_future_deposes_nobody() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    task(&mut world, "_00/a", |_| {});
    world.put("/z/assign/old~1", &Assignment::new(i64::MAX / 2, Vec::new()).encode());
    let mut master = master("m");
    master.session = Some(world.open());
    master.event(&world, Event::Connected { timeout: T });
    for _ in 0..2_000 {
        if !master.deliver(&mut world) && !master.answer(&mut world) {
            break;
        }
    }
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 1, false)]);
}

#[test]
fn a_moved_task_is_given_out_at_its_new_attempt() {
    let mut world = World::new();
    let session = worker(&mut world, "w~1", 1);
    task(&mut world, "_00/a", |_| {});
    let mut master = master("m");
    master.connect(&mut world);
    worker(&mut world, "w~2", 1);
    master.go(&mut world);
    world.expire(session);
    // The moved task is read back after everything else has happened.
    let mut written = false;
    for _ in 0..200 {
        written |= world.task("/z/tasks/_00/a").attempt == 2;
        if written {
            master.hold = |call| matches!(call, Call::Get { path, .. } if path.starts_with("/z/tasks/"));
        }
        if !master.deliver(&mut world) && !master.answer(&mut world) {
            break;
        }
    }
    assert_eq!(world.entries("/z/assign/w~2"), [entry("_00/a", 2, false)]);
}

#[test]
fn the_limit_of_attempts_is_read_before_the_last_is_judged() {
    let mut world = World::new();
    worker(&mut world, "v~1", 1);
    world.put("/z/assign/w~1", b"{}");
    world.put("/z/tasks/own", b"");
    task(&mut world, "own/a", |task| {
        (task.charged, task.attempt, task.options.max_attempts) = (2, 3, Some(10));
    });
    task(&mut world, "jobs/b", |task| (task.charged, task.attempt) = (2, 3));
    world.put("/z/tasks/jobs", br#"{"max_attempts":10}"#);
    assignment(&mut world, "w~1", &[("own/a", 3, false), ("jobs/b", 3, false)]);
    let mut master = master("m");
    master.hold = |call| matches!(call, Call::Watch { path, .. } if path == "/z/tasks");
    master.connect(&mut world);
    master.hold = |_| false;
    master.go(&mut world);
    for path in ["/z/tasks/own/a", "/z/tasks/jobs/b"] {
        let task = world.task(path);
        assert_eq!((task.attempt, task.charged, task.deaths, task.outcome), (4, 2, 1, None), "{path}");
    }
}

#[test]
fn a_standby_remembers_no_delays_that_are_over() {
    let mut world = World::new();
    let mut leader = master("m");
    leader.connect(&mut world);
    let mut standby = master("n");
    standby.connect(&mut world);
    task(&mut world, "_00/a", |_| {});
    for attempt in 2..12 {
        world.change("/z/tasks/_00/a", |task| (task.attempt, task.delay_ms) = (attempt, Some(5)));
        standby.go(&mut world);
        world.pass(Duration::from_millis(3));
    }
    world.remove("/z/tasks/_00/a");
    standby.go(&mut world);
    assert_eq!(view(&standby).table.delayed.len(), 0);
}

/// A registration names a quarantined task for longer than the assignment has it.
#[test]
fn a_formerly_quarantined_task_overfills_no_worker() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    let mut said = registration(1);
    said.quarantined = vec![TaskId::new("_00", "gone")];
    world.put("/z/workers/w~1~0", &said.encode());
    task(&mut world, "_00/a", |_| {});
    task(&mut world, "_00/b", |_| {});
    let mut master = master("m");
    master.connect(&mut world);
    assert_eq!(world.entries("/z/assign/w~1").len(), 1);
}

/// A foreign client may use a name again as soon as it has collected the outcome.
#[test]
fn a_task_that_was_made_anew_runs_again() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    task(&mut world, "_00/a", |_| {});
    let mut master = master("m");
    master.connect(&mut world);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 1, false)]);
    world.change("/z/tasks/_00/a", |task| {
        let mut outcome = Outcome::unrun(State::Done, None, "", 1);
        outcome.worker = Incarnation::parse("w~1");
        task.outcome = Some(outcome);
    });
    world.remove("/z/tasks/_00/a");
    task(&mut world, "_00/a", |_| {});
    master.go(&mut world);
    world.pass(Duration::from_secs(1));
    master.go(&mut world);
    let version = world.znodes["/z/assign/w~1"].stat.version;
    vouch(&mut world, "w~1~0", 1, version);
    master.go(&mut world);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 2, false)]);
}

#[test]
fn labels_of_any_size_stop_no_leader() {
    let mut world = World::new();
    for n in 0..4 {
        let mut said = registration(1);
        said.labels = [("x".to_string(), "y".repeat(400_000))].into();
        register(&mut world, &format!("w{n}~1~0"), &said);
    }
    let mut master = master("m");
    master.connect(&mut world);
    world.pass(Duration::from_secs(2));
    master.go(&mut world);
    let status = &world.znodes["/z/status"].data;
    assert!(status.len() <= crate::contract::MAX_DATA_BYTES, "{} bytes", status.len());
}

/// A standby that had not read yet that a failed task runs again removed it from its worker's assignment. The simulator
/// found it (seed 916203).
#[test]
fn a_retry_that_a_new_leader_has_yet_to_read_is_not_removed() {
    for reads_late in [true, false] {
        let mut world = World::new();
        worker(&mut world, "w~1", 2);
        let (mut leader, mut standby) = (master("m"), master("n"));
        leader.connect(&mut world);
        standby.connect(&mut world);
        task(&mut world, "_00/a", |task| {
            let mut outcome = Outcome::unrun(State::Failed, None, "", 1);
            outcome.worker = Incarnation::parse("w~1");
            task.outcome = Some(outcome);
        });
        for _ in 0..3 {
            standby.go(&mut world);
            world.pass(super::standby::CATCH_UP_PACE);
        }
        leader.go(&mut world);
        if reads_late {
            world.change("/z/tasks/_00/a", |task| (task.attempt, task.outcome) = (2, None));
            leader.go(&mut world);
        } else {
            assignment(&mut world, "w~1", &[("_00/a", 2, false)]);
        }
        assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 2, false)]);
        world.expire(leader.session.expect("up"));
        standby.hold = |call| matches!(call, Call::Get { path, .. } if path == "/z/tasks/_00/a");
        standby.go(&mut world);
        // Whatever it makes of the entry is written by then.
        world.pass(Duration::from_secs(1));
        standby.go(&mut world);
        assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 2, false)]);
        standby.hold = |_| false;
        standby.go(&mut world);
        world.pass(Duration::from_secs(1));
        standby.go(&mut world);
        let left = if reads_late { vec![entry("_00/a", 2, false)] } else { vec![] };
        assert_eq!(world.entries("/z/assign/w~1"), left, "what does not even fit the present is removed");
    }
}

#[test]
fn a_task_that_the_mirror_has_yet_to_hear_of_is_not_revoked() {
    let mut world = World::new();
    worker(&mut world, "w~1", 2);
    let (mut leader, mut standby) = (master("m"), master("n"));
    leader.connect(&mut world);
    standby.connect(&mut world);
    standby.hold = |call| matches!(call, Call::Get { path, .. } if path == "/z/tasks/j");
    task(&mut world, "j/a", |_| {});
    leader.go(&mut world);
    world.expire(leader.session.expect("up"));
    standby.go(&mut world);
    assert!(standby.logs.iter().any(|line| line.starts_with("leading")), "{:?}", standby.logs);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("j/a", 1, false)]);
    standby.hold = |_| false;
    standby.go(&mut world);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("j/a", 1, false)]);
    world.remove("/z/tasks/j/a");
    standby.go(&mut world);
    world.pass(Duration::from_secs(1));
    standby.go(&mut world);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("j/a", 1, true)], "nobody knows how it ended");
}

#[test]
fn what_was_seen_to_go_does_not_come_back_with_an_older_answer() {
    let mut world = World::new();
    let mut master = master("m");
    master.connect(&mut world);
    master.hold = |call| matches!(call, Call::Set { path, .. } if path == "/z/tasks/j/a");
    task(&mut world, "j/a", |task| task.cancel = true);
    master.go(&mut world);
    let (id, call) = master.calls.pop_front().expect("the write of its outcome");
    let result = world.apply(master.session.expect("up"), &call);
    world.remove("/z/tasks/j/a");
    master.go(&mut world);
    master.event(&world, Event::Reply { id, result: Ok(result.expect("written")) });
    for _ in 0..3 {
        world.pass(Duration::from_secs(3_600));
        master.go(&mut world);
    }
    assert!(!world.znodes.contains_key("/z/tasks/j"), "an empty job is deleted after its time");
}

/// The worker reads the assignment, kills, and says so, all before the leader hears that its write was committed. The
/// simulator found it (seed 6732): the task was never cancelled.
#[test]
fn a_word_that_comes_before_the_answer_to_the_write_counts() {
    let mut world = World::new();
    worker(&mut world, "w~1", 1);
    task(&mut world, "_00/a", |_| {});
    let mut master = master("m");
    master.connect(&mut world);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 1, false)]);
    master.hold = |call| matches!(call, Call::Set { path, .. } if path == "/z/assign/w~1");
    world.change("/z/tasks/_00/a", |task| task.cancel = true);
    master.go(&mut world);
    let (id, call) = master.calls.pop_front().expect("the entry is revoked");
    let result = world.apply(master.session.expect("up"), &call).expect("written");
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 1, true)]);
    let version = world.znodes["/z/assign/w~1"].stat.version;
    vouch(&mut world, "w~1~0", 1, version);
    master.go(&mut world);
    master.hold = |_| false;
    master.event(&world, Event::Reply { id, result: Ok(result) });
    master.go(&mut world);
    let outcome = world.task("/z/tasks/_00/a").outcome.expect("cancelled");
    assert_eq!(outcome.state, State::Cancelled);
    assert_eq!(world.entries("/z/assign/w~1"), []);
}

/// A delete of the last leader's came late, when its key was in use again, and took the new outcome: the simulator
/// found it (seed 3064586).
#[test]
fn no_outcome_is_deleted_while_a_former_delete_may_arrive() {
    let mut world = World::new();
    task(&mut world, "_00/a", |task| task.outcome = Some(Outcome::unrun(State::Done, None, "", 1)));
    world.pass(Duration::from_secs(100_000));
    let mut master = master("m");
    master.connect(&mut world);
    for _ in 0..19 {
        world.pass(T / 10);
        master.go(&mut world);
        assert!(world.znodes.contains_key("/z/tasks/_00/a"));
    }
    world.pass(T / 5);
    master.go(&mut world);
    assert!(!world.znodes.contains_key("/z/tasks/_00/a"), "it was old long ago");
}
