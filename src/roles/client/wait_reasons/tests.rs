//! Each reason, from small facts.

use super::*;
use crate::contract::status::{Counts, LeaderStatus};
use crate::contract::task::{Options, Payload, State};

fn row(id: &str, slots: u32, running: u32, gpu: Option<&str>) -> WorkerRow {
    let labels = gpu.map(|value| ("gpu".to_string(), value.to_string())).into_iter().collect();
    let (host, usable, unhealthy) = ("h".into(), None, None);
    let id = id.to_string();
    WorkerRow { id, host, pid: 1, slots, running, assigned: 0, draining: false, usable, unhealthy, labels }
}

fn led(rows: Vec<WorkerRow>) -> ServiceState {
    let leader = LeaderStatus { id: "m1".into(), host: "h".into(), pid: 1, epoch: 7 };
    let tasks = Counts { pending: 5, assigned: 2, ..Counts::default() };
    ServiceState::Led(Box::new(Status::new(leader, rows, tasks, false)))
}

fn codes(reasons: &[WaitReason]) -> Vec<&'static str> {
    reasons.iter().map(WaitReason::code).collect()
}

fn service(state: &ServiceState, required: &Labels) -> Vec<&'static str> {
    codes(&of_service(state, required))
}

#[test]
fn the_state_of_the_service_gives_all_its_reasons() {
    let (any, gpu) = (Labels::new(), Labels::from([("gpu".to_string(), "yes".to_string())]));
    assert_eq!(service(&ServiceState::NoMaster, &any), ["no-master"]);
    assert_eq!(service(&ServiceState::NoLeader, &any), ["no-leader"]);
    assert_eq!(service(&ServiceState::Unreadable(Refusal::NoAuth), &any), ["unreadable"]);
    assert_eq!(service(&led(vec![]), &any), ["no-worker"]);
    assert_eq!(service(&led(vec![row("w", 2, 1, None)]), &any), ["free-slot"]);
    assert_eq!(service(&led(vec![row("w", 2, 2, None)]), &any), ["no-free-slot"]);
    assert_eq!(service(&led(vec![row("w", 2, 0, Some("no"))]), &gpu), ["no-worker-with-labels"]);
    // The free slots of workers without the label do not count.
    let both = vec![row("v", 2, 0, None), row("w", 2, 2, Some("yes"))];
    assert_eq!(service(&led(both), &gpu), ["no-free-slot"]);
    let draining = WorkerRow { draining: true, ..row("w", 2, 0, None) };
    assert_eq!(service(&led(vec![draining]), &any), ["draining"]);
    let (usable, unhealthy) = (Some(0), Some("no memory".to_string()));
    let ill = WorkerRow { usable, unhealthy, ..row("w", 2, 0, None) };
    assert_eq!(service(&led(vec![ill.clone()]), &any), ["unhealthy", "no-free-slot"]);
    assert_eq!(service(&led(vec![ill, row("v", 2, 0, None)]), &any), ["free-slot"], "others can run it");
    let ServiceState::Led(mut loading) = led(vec![]) else { panic!("it is led") };
    loading.loading = true;
    assert_eq!(service(&ServiceState::Led(loading), &any), ["loading", "no-worker"]);
}

#[test]
fn workers_that_are_not_listed_may_have_what_is_missing() {
    let ServiceState::Led(mut status) = led(vec![row("w", 2, 2, None)]) else { panic!("it is led") };
    status.workers = 2;
    let gpu = Labels::from([("gpu".to_string(), "yes".to_string())]);
    let state = ServiceState::Led(status);
    assert_eq!(
        (service(&state, &Labels::new()), service(&state, &gpu)),
        (vec!["unlisted"], vec!["unlisted"])
    );
    assert_eq!(codes(&of_unknown(Vec::new(), &state, &Labels::new())), ["at-work"]);
}

#[test]
fn numbers_are_part_of_the_text() {
    let gpu = Labels::from([("gpu".to_string(), "yes".to_string())]);
    let text = |state: &ServiceState, required: &Labels| of_service(state, required)[0].to_string();
    let two = led(vec![row("v", 2, 2, None), row("w", 1, 1, None)]);
    assert_eq!(
        text(&two, &Labels::new()),
        "all 3 usable slots of the 2 workers that could run it are busy; 7 tasks wait in all"
    );
    assert_eq!(
        text(&two, &gpu),
        "no worker has all labels that the task requires: gpu=yes (0 of 2 have it); see zkmw status"
    );
}

/// A pending task that nobody has, one second after it was written.
fn of_pending_task(task: &Task) -> TaskFacts<'_> {
    TaskFacts {
        task,
        changed_ms: 1_000,
        line: None,
        share: None,
        status: TaskStatus::Pending,
        worker: None,
        is_quarantined: false,
        revoked: None,
        unregistered: None,
        now_ms: 2_000,
    }
}

/// A pending task, and what is known of it besides.
fn of(change: impl FnOnce(&mut Task, &mut TaskFacts<'_>)) -> Vec<&'static str> {
    let mut task = Task::new(Payload::Shell("true".into()), Options::default());
    let known = Task::new(Payload::Shell("true".into()), Options::default());
    let mut facts = of_pending_task(&known);
    change(&mut task, &mut facts);
    let facts = TaskFacts { task: &task, ..facts };
    codes(&of_task(&facts, &Labels::new(), &led(vec![row("w", 2, 2, None)])))
}

#[test]
fn a_task_has_its_own_reasons_before_those_of_the_service() {
    let worker: &'static Incarnation = Box::leak(Box::new(Incarnation::new("w", 1)));
    assert_eq!(of(|_, _| ()), ["no-free-slot"]);
    assert_eq!(of(|task, _| task.cancel = true), ["cancelled"]);
    assert_eq!(of(|task, _| task.deaths = 1), ["suspect", "no-free-slot"]);
    assert_eq!(of(|task, _| task.delay_ms = Some(5_000)), ["delayed", "no-free-slot"]);
    assert_eq!(of(|task, _| task.delay_ms = Some(1_000)), ["no-free-slot"], "its time has come");
    let backing_off = |task: &mut Task, _: &mut TaskFacts<'_>| {
        task.delay_ms = Some(5_000);
        task.remark(1, None, "it failed");
    };
    assert_eq!(of(backing_off), ["backing-off", "no-free-slot"]);
    assert_eq!(of(|_, facts| facts.unregistered = Some(worker)), ["in-doubt", "no-free-slot"]);
    assert_eq!(of(|_, facts| facts.revoked = Some(worker)), ["revoked", "no-free-slot"]);
    let with = |status| {
        move |_: &mut Task, facts: &mut TaskFacts<'_>| {
            (facts.status, facts.worker) = (status, Some(worker));
        }
    };
    assert_eq!(of(with(TaskStatus::Running)), ["with-worker"]);
    assert_eq!(of(with(TaskStatus::Cancelling)), ["cancelling"]);
    assert_eq!(of(with(TaskStatus::Assigned)), ["in-share"]);
    let quarantined = |task: &mut Task, facts: &mut TaskFacts<'_>| {
        with(TaskStatus::Running)(task, facts);
        facts.is_quarantined = true;
    };
    assert_eq!(of(quarantined), ["quarantined"]);
    assert_eq!(of(|_, facts| facts.status = TaskStatus::Ended(State::Done)), Vec::<&str>::new());
}

#[test]
fn each_share_of_a_chunk_has_its_own_time() {
    let commands = vec!["a".to_string(), "b".to_string()];
    let chunk = Task::new(Payload::Chunk { first_line: 0, commands }, Options::default());
    let now = chunk.all_shares().remove(0);
    let later = Share { delay_ms: Some(5_000), since_ms: Some(1_000), ..now.clone() };
    let of = |share: Option<&Share>| {
        let line = share.map(|_| (0, 0));
        of_its_time(&TaskFacts { line, share, ..of_pending_task(&chunk) })
    };
    assert_eq!((of(Some(&now)), of(None)), (None, None));
    assert_eq!(of(Some(&later)), Some(WaitReason::BackingOff { attempt: None, left_ms: 4_000 }));
}
