//! Why a task has no outcome yet: every reason that applies, with numbers.
//!
//! Pure functions over what was read. They judge by the leader's summary, which may be some seconds old, so a reason
//! is for people and decides nothing.

use std::fmt;

use super::TaskStatus;
use super::service_state::ServiceState;
use crate::contract::share::Share;
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
        /// The next attempt; of a line nobody knows.
        attempt: Option<u32>,
        /// About so many ms more.
        left_ms: i64,
    },
    /// It was running when its worker died, so it gets a slot only where it can harm no other suspect.
    Suspect {
        /// How often that was so.
        deaths: u32,
    },
    /// The summary does not list all workers, and those that it lists have no free slot.
    Unlisted {
        /// How many are listed.
        listed: usize,
        /// How many there are.
        workers: u32,
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
            WaitReason::Suspect { .. } => "suspect",
            WaitReason::Unlisted { .. } => "unlisted",
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
            | WaitReason::Suspect { .. }
            | WaitReason::Unlisted { .. }
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
                write!(
                    f,
                    "{slots} free: the leader assigns it soon, unless it, or a task there, has to run alone"
                )
            }
            WaitReason::AtWork { .. }
            | WaitReason::Delayed { .. }
            | WaitReason::BackingOff { .. }
            | WaitReason::Suspect { .. }
            | WaitReason::Unlisted { .. }
            | WaitReason::Cancelled
            | WaitReason::Cancelling { .. }
            | WaitReason::InDoubt { .. }
            | WaitReason::Revoked { .. }
            | WaitReason::Quarantined { .. }
            | WaitReason::InShare { .. }
            | WaitReason::WithWorker { .. } => self.fmt_of_task(f),
        }
    }
}

impl WaitReason {
    /// The other half of `Display`: the reasons that a task has of its own, and what clients say that know no more.
    fn fmt_of_task(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitReason::AtWork { running, slots, waiting } => {
                write!(f, "the service is at work ({running} tasks run on {slots} slots, {waiting} wait)")
            }
            WaitReason::Delayed { left_ms } => write!(f, "it is delayed for about {} more", about(*left_ms)),
            WaitReason::BackingOff { attempt, left_ms } => {
                let left = about(*left_ms);
                let attempt =
                    attempt.map_or("the next attempt".to_string(), |attempt| format!("attempt {attempt}"));
                write!(f, "{attempt} waits for about {left} more, since the one before has failed")
            }
            WaitReason::Suspect { deaths } => {
                let times = counted((*deaths).into(), "time", "times");
                write!(
                    f,
                    "its worker died {times} while it may have run: it waits for a worker without such tasks"
                )
            }
            WaitReason::Unlisted { listed, workers } => write!(
                f,
                "the {listed} workers that the leader's summary lists, of {workers}, have no free slot for it; of the \
                 others it says nothing"
            ),
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
            WaitReason::Unreadable(_)
            | WaitReason::NoMaster
            | WaitReason::NoLeader
            | WaitReason::Loading { .. }
            | WaitReason::NoWorker { .. }
            | WaitReason::NoWorkerWithLabels { .. }
            | WaitReason::Draining { .. }
            | WaitReason::Unhealthy { .. }
            | WaitReason::NoFreeSlot { .. }
            | WaitReason::FreeSlot { .. } => fmt::Display::fmt(self, f),
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
            WaitReason::FreeSlot { .. }
            | WaitReason::Unlisted { .. }
            | WaitReason::NoFreeSlot { slots: 1.., waiting: 0, .. },
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
    let usable = |row: &WorkerRow| row.usable.map_or(row.slots, |usable| usable.min(row.slots));
    let slots: u64 = able.iter().map(|row| u64::from(usable(row))).sum();
    let free: u64 = able.iter().map(|row| u64::from(usable(row).saturating_sub(row.running))).sum();
    if free > 0 {
        return vec![WaitReason::FreeSlot { slots: free }];
    }
    if !is_complete {
        return vec![WaitReason::Unlisted { listed: rows.len(), workers: status.workers }];
    }
    // One worker that cannot start tasks matters only if no other has a slot.
    let unhealthy = able.iter().filter(|_| slots == 0).filter_map(|row| Some((row, row.unhealthy.clone()?)));
    let unhealthy = unhealthy.map(|(row, why)| WaitReason::Unhealthy { worker: row.id.clone(), why });
    let mut reasons: Vec<WaitReason> = unhealthy.take(MAX_UNHEALTHY).collect();
    reasons.push(WaitReason::NoFreeSlot { workers: able.len(), slots, waiting: waiting_in(status) });
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
    /// The share that the line is in.
    pub share: Option<&'a Share>,
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
    let suspect = facts.line.is_none() && task.deaths > 0;
    let suspect = suspect.then_some(WaitReason::Suspect { deaths: task.deaths });
    [cancelled, in_doubt, revoked, of_its_time(facts), suspect].into_iter().flatten().collect()
}

/// The time of its next attempt has not come. The shares of a chunk have a time each: of the whole, the first counts.
fn of_its_time(facts: &TaskFacts<'_>) -> Option<WaitReason> {
    let task = facts.task;
    let left_ms = |at_ms: i64| Some(at_ms.saturating_sub(facts.now_ms)).filter(|left_ms| *left_ms > 0);
    if task.commands.is_some() {
        let shares = facts.share.map_or_else(|| task.all_shares(), |share| vec![share.clone()]);
        let left_ms = left_ms(shares.iter().map(Share::not_before_ms).min()?)?;
        return Some(WaitReason::BackingOff { attempt: None, left_ms });
    }
    let left_ms = left_ms(facts.changed_ms.saturating_add_unsigned(task.delay_ms?))?;
    Some(match task.history.is_empty() {
        true => WaitReason::Delayed { left_ms },
        false => WaitReason::BackingOff { attempt: Some(task.attempt), left_ms },
    })
}

#[cfg(test)]
mod tests;
