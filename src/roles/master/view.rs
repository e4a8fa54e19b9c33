//! What a connected master knows: the mirrors of tasks and workers, and what follows from them.
//!
//! A standby and a leader share it. It turns each change of a mirror into at most one piece of [`News`], and decides
//! nothing. It owns the queue: only [`View::set_queued`] puts something into it.

use std::time::Duration;

use super::known::{Pending, Unit};
use super::table::{Table, Update};
use super::workers::{Gone, Workers};
use super::{Out, Params};
use crate::contract::worker::{EntryId, Registration};
use crate::contract::{Incarnation, TaskId, name_of};
use crate::machine::{CallId, CallResult, ChangeKind, Instant, Level, Refusal, Routed, Stat, earlier};
use crate::recipes::ensure::{self, Ensure};
use crate::recipes::mirror::{Change, Mirror};
use crate::recipes::queue::{Queue, QueueKey};
use crate::recipes::retry::Retry;

/// Reads of tasks under way at once.
const TASK_READS: usize = 128;

/// Reads of registrations, likewise.
const WORKER_READS: usize = 32;

/// The pause between two tries to read what an ACL forbids. Nothing reports that it was repaired, and the person who
/// repaired it can wait.
const FORBIDDEN_PACE: Duration = Duration::from_secs(60);

/// Which mirror a change comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `tasks`.
    Tasks,
    /// `workers`.
    Workers,
}

/// What a reply led to.
#[derive(Debug)]
pub enum Heard {
    /// The directories are being made sure of.
    Directories(ensure::Step),
    /// A mirror has changes, for [`View::take_in`] one by one.
    Changes(Source, Vec<Change>),
}

/// What became known with one change of a mirror.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum News {
    /// The task changed after all were read; nobody asked yet for a read.
    TaskChanged(TaskId),
    /// The task was read.
    TaskRead { task: TaskId, reading: Reading, data: Vec<u8>, stat: Stat },
    /// The task is gone.
    TaskGone(TaskId),
    /// A job's defaults were read.
    JobRead,
    /// All tasks that existed at the start were read.
    TasksLoaded,
    /// A registration of the incarnation was read.
    WorkerRegistered(Incarnation),
    /// The last registration of the incarnation is gone.
    WorkerDied(Gone),
    /// All registrations that existed at the start were read.
    WorkersLoaded,
}

/// How a read of a task compares to what was known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// It is no news.
    Stale,
    /// It is news of the task that was known, or of one that was not.
    New,
    /// Another task of this name was known before.
    Replaced,
}

/// What a connected master knows.
#[derive(Debug)]
pub struct View {
    pub(super) params: Params,
    /// What the servers granted as the session timeout.
    pub(super) timeout: Duration,
    ensure: Ensure,
    pub(super) tasks: Mirror,
    pub(super) registrations: Mirror,
    pub(super) table: Table,
    pub(super) workers: Workers,
    pub(super) queue: Queue,
    /// When to read what changed and was left for later.
    catch_up_at: Option<Instant>,
    /// When to try again what may not be read.
    forbidden_at: Option<Instant>,
}

impl View {
    /// The view of a new session: it knows nothing, and makes sure that its directories exist.
    pub fn new(params: &Params, timeout: Duration, out: &mut Out) -> View {
        let layout = &params.layout;
        let directories = [
            layout.master(),
            layout.workers(),
            layout.assign(),
            layout.tasks(),
            layout.submitters(),
            layout.leases(),
        ];
        let mut view = View {
            timeout,
            ensure: Ensure::new(directories),
            tasks: Mirror::new(layout.tasks(), 2, TASK_READS),
            registrations: Mirror::new(layout.workers(), 1, WORKER_READS),
            table: Table::default(),
            workers: Workers::default(),
            queue: Queue::default(),
            catch_up_at: None,
            forbidden_at: None,
            params: params.clone(),
        };
        view.ensure_directories(out);
        view
    }

    /// Makes sure, once more, that the directories exist.
    pub fn ensure_directories(&mut self, out: &mut Out) {
        self.ensure.start(out);
    }

    /// Starts the mirrors that do not run. A lazy mirror of tasks reads what changed later.
    pub fn start_missing(&mut self, is_lazy: bool, out: &mut Out) {
        if !self.tasks.is_started() {
            self.tasks.start(out);
            self.tasks.take_time(is_lazy, out);
        }
        if !self.registrations.is_started() {
            self.registrations.start(out);
        }
    }

    /// Whether the directories exist and both mirrors have read everything.
    pub fn is_complete(&self) -> bool {
        self.tasks.is_complete() && self.registrations.is_complete() && self.ensure.is_done()
    }

    /// Takes in a reply.
    pub fn on_reply(&mut self, id: CallId, result: &CallResult, out: &mut Out) -> Routed<Heard> {
        if let Routed::Mine(step) = self.ensure.on_reply(id, result, out) {
            return Routed::Mine(Heard::Directories(step));
        }
        if let Routed::Mine(changes) = self.tasks.on_reply(id, result, out) {
            return Routed::Mine(Heard::Changes(Source::Tasks, changes));
        }
        self.registrations.on_reply(id, result, out).map(|changes| Heard::Changes(Source::Workers, changes))
    }

    /// Takes in a change of a watched znode.
    pub fn on_changed(
        &mut self,
        path: &str,
        kind: ChangeKind,
        now: Instant,
        retry: &mut Retry,
        out: &mut Out,
    ) -> Routed<(Source, Vec<Change>)> {
        if kind == ChangeKind::Deleted && self.ensure.has(path) {
            retry.vanished(path, now, out);
        }
        if let Routed::Mine(changes) = self.tasks.on_changed(path, kind, out) {
            return Routed::Mine((Source::Tasks, changes));
        }
        self.registrations.on_changed(path, kind, out).map(|changes| (Source::Workers, changes))
    }

    /// Takes in one change of a mirror.
    pub fn take_in(
        &mut self,
        source: Source,
        change: Change,
        now: Instant,
        retry: &mut Retry,
        out: &mut Out,
    ) -> Option<News> {
        match (source, change) {
            (_, Change::Refused { path, refusal }) => {
                self.on_unreadable(&path, refusal, now, retry, out);
                None
            }
            (Source::Tasks, change) => self.on_task_change(change, now, out),
            (Source::Workers, change) => self.on_worker_change(change, out),
        }
    }

    fn on_task_change(&mut self, change: Change, now: Instant, out: &mut Out) -> Option<News> {
        match change {
            Change::Appeared { .. } | Change::Refused { .. } => None,
            Change::Touched { path } => match TaskId::parse(&path) {
                Some(task) => {
                    self.table.carried.take(&task);
                    Some(News::TaskChanged(task))
                }
                None => {
                    self.tasks.read_again(&path, out);
                    None
                }
            },
            Change::Seen { path, data, stat } => match TaskId::parse(&path) {
                Some(task) => {
                    let reading = self.see_task(&task, &data, &stat, out)?;
                    Some(News::TaskRead { task, reading, data, stat })
                }
                None => {
                    self.see_job(&path, &data, &stat, now, out);
                    Some(News::JobRead)
                }
            },
            Change::Gone { path } => match TaskId::parse(&path) {
                Some(task) => {
                    self.table.remove(&task, now);
                    Some(News::TaskGone(task))
                }
                None => {
                    self.table.drop_dir(&path);
                    None
                }
            },
            Change::Complete => {
                out.log(Level::Info, format!("{} tasks loaded", self.table.len()));
                Some(News::TasksLoaded)
            }
        }
    }

    fn see_job(&mut self, name: &str, data: &[u8], stat: &Stat, now: Instant, out: &mut Out) {
        let (waiting, malformed) = self.table.see_dir(name, data, stat, now);
        if let Some(malformed) = malformed {
            let path = self.params.layout.job(name);
            out.log(Level::Error, format!("{path} is no job ({malformed}): taken as without defaults"));
        }
        for task in waiting {
            self.tasks.read_again(task.as_str(), out);
        }
    }

    /// Takes in a task as it was read; `None` if its job has to be read first.
    pub fn see_task(&mut self, task: &TaskId, data: &[u8], stat: &Stat, out: &mut Out) -> Option<Reading> {
        let is_another = self.table.get(task).is_some_and(|known| known.czxid != stat.czxid);
        match self.table.see(task, data, stat) {
            Update::Stale => return Some(Reading::Stale),
            Update::DirUnknown => {
                self.tasks.read_again(task.dir(), out);
                return None;
            }
            Update::Changed => {}
            Update::Malformed(malformed) => {
                let path = self.params.layout.task(task);
                out.log(Level::Error, format!("{path} is no task ({malformed}): it is left alone"));
            }
        }
        if let Some(children) = self.table.overfull(task.dir()) {
            let path = self.params.layout.job(task.dir());
            out.log(
                Level::Warn,
                format!("{path} has {children} children: too many; use another job for more"),
            );
        }
        Some(if is_another { Reading::Replaced } else { Reading::New })
    }

    fn on_worker_change(&mut self, change: Change, out: &mut Out) -> Option<News> {
        match change {
            Change::Appeared { path } => {
                if !self.workers.appeared(&path) {
                    self.report_worker(Level::Warn, &path, "it is left alone", out);
                }
                None
            }
            // Registrations are always read at once.
            Change::Touched { path } => {
                self.registrations.read_again(&path, out);
                None
            }
            // No worker's life depends on it, so nobody waits for its end.
            Change::Seen { path, stat, .. } if stat.ephemeral_owner == 0 => {
                self.report_worker(Level::Error, &path, "it is not ephemeral, and left alone", out);
                self.workers.gone(&path).map(News::WorkerDied)
            }
            Change::Seen { path, data, .. } => {
                let read = Registration::decode(&data);
                if let Err(malformed) = &read {
                    let why = format!("{malformed}; it gets no tasks");
                    self.report_worker(Level::Error, &path, &why, out);
                }
                self.workers.seen(&path, read.ok()).map(News::WorkerRegistered)
            }
            Change::Gone { path } => self.workers.gone(name_of(&path)).map(News::WorkerDied),
            Change::Complete => Some(News::WorkersLoaded),
            Change::Refused { .. } => None,
        }
    }

    fn report_worker(&mut self, level: Level, name: &str, why: &str, out: &mut Out) {
        if self.table.report(name) {
            let dir = self.params.layout.workers();
            out.log(level, format!("{dir}/{name} is no registration: {why}"));
        }
    }

    /// A master can do without a znode that may not be read, but not without one of its directories.
    fn on_unreadable(
        &mut self,
        path: &str,
        refusal: Refusal,
        now: Instant,
        retry: &mut Retry,
        out: &mut Out,
    ) {
        if self.ensure.has(path) {
            retry.refused(path, refusal, now, out);
        } else if self.table.report(path) {
            let pace = FORBIDDEN_PACE.as_secs();
            out.log(Level::Error, format!("{path}: {refusal}; it is read again every {pace} s"));
        }
    }

    /// Reads again what may not be read: somebody may have repaired an ACL.
    pub fn try_forbidden(&mut self, now: Instant, out: &mut Out) {
        if !self.tasks.has_refused() && !self.registrations.has_refused() {
            self.forbidden_at = None;
            return;
        }
        if *self.forbidden_at.get_or_insert(now + FORBIDDEN_PACE) <= now {
            self.forbidden_at = None;
            self.tasks.try_refused(out);
            self.registrations.try_refused(out);
        }
    }

    /// Reads, once in a `pace`, what changed and was left for later. Most of it is gone before it could matter.
    pub fn catch_up(&mut self, pace: Duration, now: Instant, out: &mut Out) {
        if !self.tasks.is_behind() {
            self.catch_up_at = None;
            return;
        }
        let at = *self.catch_up_at.get_or_insert(now + pace);
        if at <= now {
            self.catch_up_at = Some(now + pace);
            self.tasks.catch_up(out);
        }
    }

    /// When it wants to be woken.
    pub fn next_wake(&self) -> Option<Instant> {
        earlier(self.catch_up_at, self.forbidden_at)
    }

    /// A term begins or ends. A lazy mirror of tasks reads what changed later. What nobody could take in the last term,
    /// somebody may in this one.
    pub fn on_term(&mut self, is_lazy: bool, out: &mut Out) {
        self.table.carried.clear();
        self.tasks.take_time(is_lazy, out);
        self.queue.unblock(|_| true);
    }

    /// Sets what is queued of a task: those of these units whose time has come, and no others. The rest of them waits
    /// for its time, by the ensemble's clock; without a clock, whatever has a time waits.
    pub fn set_queued(&mut self, task: &TaskId, units: &[Unit], ensemble_ms: Option<i64>) {
        self.queue.remove_all(task);
        let Some(known) = self.table.get(task) else { return };
        let (czxid, Some(Pending { priority, .. })) = (known.czxid, self.table.pending(task)) else { return };
        let priority = *priority;
        for unit in units {
            let waits = unit.not_before_ms != 0 && ensemble_ms.is_none_or(|now| now < unit.not_before_ms);
            if waits {
                self.table.delayed.insert((unit.not_before_ms, task.clone()));
            } else {
                let key = QueueKey { priority, need: unit.need, czxid };
                self.queue.insert(&EntryId::new(task, unit.attempt), key);
            }
        }
    }
}
