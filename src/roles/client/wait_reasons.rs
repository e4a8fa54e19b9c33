//! Why a task has no outcome yet: every reason that applies, with numbers.
//!
//! Pure functions over what was read. They judge by the leader's summary, which may be some seconds old, so a reason
//! is for people and decides nothing.

use std::fmt;

use super::TaskStatus;
use super::service_state::ServiceState;
use crate::contract::status::{Status, WorkerRow};
use crate::contract::task::Task;
use crate::contract::{Incarnation, Labels};
use crate::machine::Refusal;

/// Most workers that cannot start tasks and are named one by one.
const MAX_UNHEALTHY: usize = 3;

/// Why a task waits, or what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// The service may not be read.
    Unreadable(Refusal),
    /// No master runs.
    NoMaster,
    /// A master is about to lead.
    NoLeader,
    /// The leader reads the tasks, and assigns those that it has read.
    Loading {
        /// The leader's id.
        leader: String,
    },
    /// The service has no worker.
    NoWorker {
        /// The leader's id.
        leader: String,
    },
    /// No worker has all labels that the task requires.
    NoWorkerWithLabels {
        /// Each label, and how many workers have it.
        labels: Vec<(String, usize)>,
        /// All workers.
        workers: usize,
    },
    /// All workers that could run the task take no further tasks.
    Draining {
        /// Their number.
        workers: usize,
    },
    /// A worker that could run the task cannot start programs now.
    Unhealthy {
        /// The worker's id.
        worker: String,
        /// What it says.
        why: String,
    },
    /// All slots of the workers that could run the task are taken.
    NoFreeSlot {
        /// The workers that could run it.
        workers: usize,
        /// Their usable slots.
        slots: u64,
        /// All tasks and lines that wait for a slot, with any labels and any priority.
        waiting: u64,
    },
    /// A slot is free, so the leader is about to assign the task.
    FreeSlot {
        /// The free slots.
        slots: u64,
    },
    /// Nothing is wrong: tasks run, perhaps this one among them.
    AtWork {
        /// All tasks and lines that run.
        running: u64,
        /// All slots.
        slots: u32,
        /// All tasks and lines that wait for a slot.
        waiting: u64,
    },
    /// Its time has not come.
    Delayed {
        /// About so many ms more.
        left_ms: i64,
    },
    /// An attempt has failed, and the next one waits.
    BackingOff {
        /// The next attempt.
        attempt: u32,
        /// About so many ms more.
        left_ms: i64,
    },
    /// It is to be cancelled, and the leader writes that.
    Cancelled,
    /// Its worker kills it, since it was cancelled.
    Cancelling {
        /// The worker.
        worker: Incarnation,
    },
    /// Its worker has no registration: the worker, or its session, may be dead.
    InDoubt {
        /// The worker.
        worker: Incarnation,
    },
    /// A worker has to end an earlier attempt, or to release the task.
    Revoked {
        /// The worker.
        worker: Incarnation,
    },
    /// Its worker cannot write its outcome.
    Quarantined {
        /// The worker.
        worker: Incarnation,
    },
    /// A worker has the line, and other lines of its share come first.
    InShare {
        /// The worker.
        worker: Incarnation,
        /// Lines before it.
        before: usize,
    },
    /// A worker has it: it runs, or starts as soon as a slot there is free.
    WithWorker {
        /// The worker.
        worker: Incarnation,
        /// The attempt; of a line nobody knows.
        attempt: Option<u32>,
        /// Whether other tasks wait for a slot there.
        may_wait: bool,
    },
}

impl WaitReason {
    /// Its name for programs. It never changes.
    pub fn code(&self) -> &'static str {
        match self {
            WaitReason::Unreadable(_) => "unreadable",
            WaitReason::NoMaster => "no-master",
            WaitReason::NoLeader => "no-leader",
            WaitReason::Loading { .. } => "loading",
            WaitReason::NoWorker { .. } => "no-worker",
            WaitReason::NoWorkerWithLabels { .. } => "no-worker-with-labels",
            WaitReason::Draining { .. } => "draining",
            WaitReason::Unhealthy { .. } => "unhealthy",
            WaitReason::NoFreeSlot { .. } => "no-free-slot",
            WaitReason::FreeSlot { .. } => "free-slot",
            WaitReason::AtWork { .. } => "at-work",
            WaitReason::Delayed { .. } => "delayed",
            WaitReason::BackingOff { .. } => "backing-off",
            WaitReason::Cancelled => "cancelled",
            WaitReason::Cancelling { .. } => "cancelling",
            WaitReason::InDoubt { .. } => "in-doubt",
            WaitReason::Revoked { .. } => "revoked",
            WaitReason::Quarantined { .. } => "quarantined",
            WaitReason::InShare { .. } => "in-share",
            WaitReason::WithWorker { .. } => "with-worker",
        }
    }

    /// Whether the task waits for it alone: the state of the service does not matter yet.
    fn excludes_service(&self) -> bool {
        matches!(self, WaitReason::Cancelled)
    }

    /// Whether it is a fault that somebody has to mend, or a wait that ends by itself.
    pub fn is_fault(&self) -> bool {
        match self {
            WaitReason::Unreadable(_)
            | WaitReason::NoMaster
            | WaitReason::NoLeader
            | WaitReason::Loading { .. }
            | WaitReason::NoWorker { .. }
            | WaitReason::NoWorkerWithLabels { .. }
            | WaitReason::Draining { .. }
            | WaitReason::Unhealthy { .. }
            | WaitReason::InDoubt { .. }
            | WaitReason::Quarantined { .. } => true,
            WaitReason::NoFreeSlot { .. }
            | WaitReason::FreeSlot { .. }
            | WaitReason::AtWork { .. }
            | WaitReason::Delayed { .. }
            | WaitReason::BackingOff { .. }
            | WaitReason::Cancelled
            | WaitReason::Cancelling { .. }
            | WaitReason::Revoked { .. }
            | WaitReason::InShare { .. }
            | WaitReason::WithWorker { .. } => false,
        }
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitReason::Unreadable(refusal) => {
                write!(f, "the state of the service may not be read: {refusal}")
            }
            WaitReason::NoMaster => write!(f, "no master is running; start one (zkmw master)"),
            WaitReason::NoLeader => write!(f, "no master leads yet; see zkmw status"),
            WaitReason::Loading { leader } => write!(f, "the leader {leader} is still reading the tasks"),
            WaitReason::NoWorker { leader } => {
                write!(f, "the leader {leader} has no workers; start one (zkmw worker)")
            }
            WaitReason::NoWorkerWithLabels { labels, workers } => {
                let each =
                    labels.iter().map(|(label, have)| format!("{label} ({have} of {workers} have it)"));
                let each = each.collect::<Vec<_>>().join(", ");
                write!(f, "no worker has all labels that the task requires: {each}; see zkmw status")
            }
            WaitReason::Draining { workers } => {
                let who = counted(*workers as u64, "worker", "workers");
                write!(f, "the {who} that could run it drain, and take no more tasks; see zkmw status")
            }
            WaitReason::Unhealthy { worker, why } => write!(f, "worker {worker} cannot start tasks: {why}"),
            WaitReason::NoFreeSlot { workers, slots, waiting } => {
                let slots = counted(*slots, "usable slot", "usable slots");
                let workers = counted(*workers as u64, "worker", "workers");
                write!(
                    f,
                    "all {slots} of the {workers} that could run it are busy; {waiting} tasks wait in all"
                )
            }
            WaitReason::FreeSlot { slots } => {
                let slots = counted(*slots, "slot is", "slots are");
                write!(f, "{slots} free, so the leader is about to assign it")
            }
            WaitReason::AtWork { running, slots, waiting } => {
                write!(f, "the service is at work ({running} tasks run on {slots} slots, {waiting} wait)")
            }
            WaitReason::Delayed { left_ms } => write!(f, "it is delayed for about {} more", about(*left_ms)),
            WaitReason::BackingOff { attempt, left_ms } => {
                let left = about(*left_ms);
                write!(f, "attempt {attempt} waits for about {left} more, since the one before has failed")
            }
            WaitReason::Cancelled => write!(f, "it is to be cancelled, and the leader has yet to write that"),
            WaitReason::Cancelling { worker } => {
                let worker = worker.worker();
                write!(f, "worker {worker} is ending it, since it was cancelled")
            }
            WaitReason::InDoubt { worker } => write!(
                f,
                "worker {} has it and is not registered: it is assigned again when nothing of that worker can run any \
                 more",
                worker.worker()
            ),
            WaitReason::Revoked { worker } => {
                let worker = worker.worker();
                write!(f, "worker {worker} has to end or release it before another worker may have it")
            }
            WaitReason::Quarantined { worker } => write!(
                f,
                "worker {} cannot write its outcome, so it is quarantined; see the worker's log, then remove the \
                 cause and restart the worker, or delete the task",
                worker.worker()
            ),
            WaitReason::InShare { worker, before } => {
                let lines = counted(*before as u64, "line", "lines");
                let worker = worker.worker();
                write!(f, "worker {worker} has it, and starts {lines} of the same share before it")
            }
            WaitReason::WithWorker { worker, attempt, may_wait } => {
                let what = attempt.map_or("it".to_string(), |attempt| format!("attempt {attempt}"));
                let does = if *may_wait { "runs, or waits for a free slot there" } else { "runs" };
                write!(f, "{what} is with worker {}: it {does}", worker.worker())
            }
        }
    }
}

fn counted(number: u64, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

/// A time to wait, in the unit that suits it.
fn about(ms: i64) -> String {
    match ms.max(0) / 1_000 {
        seconds @ ..120 => format!("{} s", seconds.max(1)),
        seconds @ ..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

/// The reasons that the service as a whole has, for a task that requires these labels.
pub fn of_service(state: &ServiceState, required: &Labels) -> Vec<WaitReason> {
    match state {
        ServiceState::Unreadable(refusal) => vec![WaitReason::Unreadable(*refusal)],
        ServiceState::NoMaster => vec![WaitReason::NoMaster],
        ServiceState::NoLeader => vec![WaitReason::NoLeader],
        ServiceState::Led(status) => {
            let leader = status.leader.id.clone();
            let loading = status.loading.then(|| WaitReason::Loading { leader: leader.clone() });
            if status.workers == 0 {
                return loading.into_iter().chain([WaitReason::NoWorker { leader }]).collect();
            }
            loading.into_iter().chain(of_workers(status, required)).collect()
        }
    }
}

/// Reasons for a client that does not know whether what it waits for runs. Where no task waits, it does.
pub fn of_unknown(own: Vec<WaitReason>, service: &ServiceState, required: &Labels) -> Vec<WaitReason> {
    let reasons = with_service(own, service, required).into_iter();
    let known = |reason| match (reason, service) {
        (
            WaitReason::FreeSlot { .. } | WaitReason::NoFreeSlot { waiting: 0, .. },
            ServiceState::Led(status),
        ) => {
            let (tasks, slots) = (&status.tasks, status.slots);
            WaitReason::AtWork { running: tasks.running, slots, waiting: waiting_in(status) }
        }
        (reason, _) => reason,
    };
    reasons.map(known).collect()
}

/// All tasks and lines that wait for a slot.
fn waiting_in(status: &Status) -> u64 {
    status.tasks.pending.saturating_add(status.tasks.assigned)
}

fn of_workers(status: &Status, required: &Labels) -> Vec<WaitReason> {
    let rows = &status.worker_list;
    let has =
        |row: &WorkerRow, key: &str, value: &str| row.labels.get(key).is_some_and(|label| label == value);
    let fits = |row: &&WorkerRow| required.iter().all(|(key, value)| has(row, key, value));
    let fitting: Vec<&WorkerRow> = rows.iter().filter(fits).collect();
    let able: Vec<&WorkerRow> = fitting.iter().copied().filter(|row| !row.draining).collect();
    // Of workers that are not listed nothing is known.
    let is_complete = rows.len() == status.workers as usize;
    if is_complete && fitting.is_empty() {
        let count = |(key, value): (&String, &String)| {
            (format!("{key}={value}"), rows.iter().filter(|row| has(row, key, value)).count())
        };
        let labels = required.iter().map(count).collect();
        return vec![WaitReason::NoWorkerWithLabels { labels, workers: rows.len() }];
    }
    if is_complete && able.is_empty() {
        return vec![WaitReason::Draining { workers: fitting.len() }];
    }
    let unhealthy = able.iter().filter_map(|row| Some((row, row.unhealthy.clone()?)));
    let unhealthy = unhealthy.map(|(row, why)| WaitReason::Unhealthy { worker: row.id.clone(), why });
    let mut reasons: Vec<WaitReason> = unhealthy.take(MAX_UNHEALTHY).collect();
    let usable = |row: &WorkerRow| row.usable.map_or(row.slots, |usable| usable.min(row.slots));
    let slots: u64 = able.iter().map(|row| u64::from(usable(row))).sum();
    let free: u64 = able.iter().map(|row| u64::from(usable(row).saturating_sub(row.running))).sum();
    if free > 0 || !is_complete {
        // Slots of workers that are not listed may be free, too.
        if free > 0 && reasons.is_empty() {
            reasons.push(WaitReason::FreeSlot { slots: free });
        }
    } else {
        reasons.push(WaitReason::NoFreeSlot { workers: able.len(), slots, waiting: waiting_in(status) });
    }
    reasons
}

/// What is known of one task, or of one line of a chunk.
#[derive(Debug)]
pub struct TaskFacts<'a> {
    /// The task.
    pub task: &'a Task,
    /// When its znode was written last, in ms since 1970 by the ensemble's clock.
    pub changed_ms: i64,
    /// The line's position, and how many open lines of its share come before it.
    pub line: Option<(usize, usize)>,
    /// Its state.
    pub status: TaskStatus,
    /// The registered worker that has it.
    pub worker: Option<&'a Incarnation>,
    /// That worker has reported that it cannot write the outcome.
    pub is_quarantined: bool,
    /// A registered worker has an entry of it that was revoked.
    pub revoked: Option<&'a Incarnation>,
    /// A worker without a registration has it.
    pub unregistered: Option<&'a Incarnation>,
    /// The time now, in ms since 1970 by the clock of this machine.
    pub now_ms: i64,
}

/// All reasons why a task has no outcome. None for a task that has one.
pub fn of_task(facts: &TaskFacts<'_>, required: &Labels, service: &ServiceState) -> Vec<WaitReason> {
    let own = of_its_state(facts, service);
    let waits =
        matches!(facts.status, TaskStatus::Pending) && own.iter().all(|reason| !reason.excludes_service());
    if waits { with_service(own, service, required) } else { own }
}

/// A task's own reasons, and those of the service. A free slot matters only to a task that has no other reason.
pub fn with_service(own: Vec<WaitReason>, service: &ServiceState, required: &Labels) -> Vec<WaitReason> {
    let is_free = |reason: &WaitReason| matches!(reason, WaitReason::FreeSlot { .. });
    let has_own = !own.is_empty();
    let of_service = of_service(service, required).into_iter().filter(|reason| !has_own || !is_free(reason));
    own.into_iter().chain(of_service).collect()
}

fn of_its_state(facts: &TaskFacts<'_>, service: &ServiceState) -> Vec<WaitReason> {
    let task = facts.task;
    match (facts.status, facts.worker) {
        (TaskStatus::Ended(_), _) => Vec::new(),
        (_, Some(worker)) if facts.is_quarantined => vec![WaitReason::Quarantined { worker: worker.clone() }],
        (TaskStatus::Cancelling, Some(worker)) => vec![WaitReason::Cancelling { worker: worker.clone() }],
        (TaskStatus::Assigned, Some(worker)) => {
            let before = facts.line.map_or(0, |(_, before)| before);
            vec![WaitReason::InShare { worker: worker.clone(), before }]
        }
        (TaskStatus::Running, Some(worker)) => {
            let attempt = facts.line.is_none().then_some(task.attempt);
            let may_wait = !matches!(service, ServiceState::Led(status) if is_idle(status, worker));
            vec![WaitReason::WithWorker { worker: worker.clone(), attempt, may_wait }]
        }
        (TaskStatus::Pending | TaskStatus::Assigned | TaskStatus::Running | TaskStatus::Cancelling, _) => {
            of_pending(facts)
        }
    }
}

/// Whether nothing waits for a slot at the worker.
fn is_idle(status: &Status, worker: &Incarnation) -> bool {
    status.worker_list.iter().any(|row| row.id == worker.worker() && row.assigned == 0)
}

fn of_pending(facts: &TaskFacts<'_>) -> Vec<WaitReason> {
    let task = facts.task;
    let is_cancelled = facts.line.map_or(task.cancel, |(position, _)| task.is_cancelled(position));
    let cancelled = is_cancelled.then_some(WaitReason::Cancelled);
    let in_doubt = facts.unregistered.map(|worker| WaitReason::InDoubt { worker: worker.clone() });
    let revoked = facts.revoked.map(|worker| WaitReason::Revoked { worker: worker.clone() });
    let left_ms =
        task.delay_ms.map(|ms| facts.changed_ms.saturating_add_unsigned(ms).saturating_sub(facts.now_ms));
    let delayed = left_ms.filter(|left_ms| *left_ms > 0).map(|left_ms| match task.history.is_empty() {
        true => WaitReason::Delayed { left_ms },
        false => WaitReason::BackingOff { attempt: task.attempt, left_ms },
    });
    [cancelled, in_doubt, revoked, delayed].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::status::{Counts, LeaderStatus};
    use crate::contract::task::{Options, Payload, State};

    fn row(id: &str, slots: u32, running: u32, gpu: Option<&str>) -> WorkerRow {
        let labels = gpu.map(|value| ("gpu".to_string(), value.to_string())).into_iter().collect();
        let (host, usable, unhealthy) = ("h".into(), None, None);
        let id = id.to_string();
        WorkerRow {
            id,
            host,
            pid: 1,
            slots,
            running,
            assigned: 0,
            draining: false,
            usable,
            unhealthy,
            labels,
        }
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
        assert_eq!(service(&led(vec![ill]), &any), ["unhealthy", "no-free-slot"]);
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
        assert_eq!((service(&state, &Labels::new()), service(&state, &gpu)), (vec![], vec![]));
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

    /// A pending task, and what is known of it besides.
    fn of(change: impl FnOnce(&mut Task, &mut TaskFacts<'_>)) -> Vec<&'static str> {
        let mut task = Task::new(Payload::Shell("true".into()), Options::default());
        let known = Task::new(Payload::Shell("true".into()), Options::default());
        let mut facts = TaskFacts {
            task: &known,
            changed_ms: 1_000,
            line: None,
            status: TaskStatus::Pending,
            worker: None,
            is_quarantined: false,
            revoked: None,
            unregistered: None,
            now_ms: 2_000,
        };
        change(&mut task, &mut facts);
        let facts = TaskFacts { task: &task, ..facts };
        codes(&of_task(&facts, &Labels::new(), &led(vec![row("w", 2, 2, None)])))
    }

    #[test]
    fn a_task_has_its_own_reasons_before_those_of_the_service() {
        let worker: &'static Incarnation = Box::leak(Box::new(Incarnation::new("w", 1)));
        assert_eq!(of(|_, _| ()), ["no-free-slot"]);
        assert_eq!(of(|task, _| task.cancel = true), ["cancelled"]);
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
}
