//! The master: stands for election with the state already in memory; the one that leads assigns.
//!
//! ```text
//!  offline ─Connected→ preparing ─dirs exist→ standing by ─first in line→ announcing ─own write→ taking over ↑
//!  ↑                                                 │ └──────────────── Lost, from anywhere        └── contender
//!  deleted, or deposed ── leading ←────┘
//! ```
//!
//! *Announcing* writes `status`, so that what is read afterwards is the present. *Taking over* rewrites every
//! assignment with the new epoch. *Checking* reads who is registered, to tell the dead. Then tasks are given
//! out, whether or not all of them are loaded yet.
//!
//! A standby keeps the same table and queue; it only does not act. What it knows of tasks and workers comes from
//! mirrors; assignments are read at the takeover alone, since nobody but a leader changes them.

mod balance;
mod dispatch;
mod editor;
mod failover;
mod fleet;
mod janitor;
mod leading;
mod outcomes;
mod settle;
mod summary;
mod table;

use std::time::Duration;

use crate::contract::worker::{Registration, Seen};
use crate::contract::{Layout, TaskId, name_of};
use crate::exit;
use crate::machine::{
    Action, Actions, CallId, CallResult, ChangeKind, Event, Instant, Level, Refusal, Role, Routed, Stat,
    earlier,
};
use crate::recipes::assignment::Urgency;
use crate::recipes::election::Election;
use crate::recipes::ensure::{self, Ensure};
use crate::recipes::mirror::{Change, Mirror};
use crate::recipes::past::Past;
use crate::recipes::queue::Queue;
use crate::recipes::retry::{Condition, Retry};
use fleet::Fleet;
use leading::Term;
use table::{Table, Update};

/// A standby reads what changed once, or at most twice this time later: most tasks are gone by then.
const STANDBY_PACE: Duration = Duration::from_secs(1);

/// The same of a leader, for chunks that run.
const LEADER_PACE: Duration = Duration::from_millis(600);

/// Reads of tasks under way at once.
const TASK_READS: usize = 128;

/// Reads of registrations, likewise.
const WORKER_READS: usize = 32;

/// What an ACL forbids to read is tried again so often. Nothing tells that it was repaired, and who repaired it can
/// wait.
const FORBIDDEN_PACE: Duration = Duration::from_secs(60);

/// What a master is started with.
#[derive(Clone, Debug)]
pub struct Params {
    /// Where everything stands.
    pub layout: Layout,
    /// Its id, shown to users.
    pub id: String,
    /// The machine that it runs on.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// Its own, for as long as the process lives.
    pub uuid: String,
    /// How long an outcome that nobody collects is kept.
    pub result_ttl: Duration,
    /// How long an empty job is kept.
    pub job_ttl: Duration,
    /// How many tasks may stand without an outcome, for submitters to heed.
    pub max_pending: u64,
    /// How many commands that ended badly are kept until their time.
    pub max_failed: u64,
    /// How many bytes of data all tasks may have, likewise.
    pub max_pending_bytes: u64,
}

/// A master reports nothing to standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {}

type Out = Actions<Report>;

/// The role.
#[derive(Debug)]
pub struct Master {
    params: Params,
    /// The session timeout, while connected.
    connected: Option<Duration>,
    ensure: Ensure,
    election: Election,
    tasks: Mirror,
    workers: Mirror,
    table: Table,
    fleet: Fleet,
    queue: Queue,
    term: Option<Term>,
    /// When to read what changed and was left for later.
    catch_up_at: Option<Instant>,
    /// When to try again what may not be read.
    forbidden_at: Option<Instant>,
    /// What it cannot do without was refused, or is gone.
    retry: Retry,
    past: Past,
    condition: Condition,
}

impl Master {
    /// A master that has not connected yet.
    pub fn new(params: Params) -> Master {
        let layout = &params.layout;
        let directories = [
            layout.master(),
            layout.workers(),
            layout.assign(),
            layout.tasks(),
            layout.submitters(),
            layout.leases(),
        ];
        Master {
            connected: None,
            ensure: Ensure::new(directories),
            election: Election::new(&layout.master(), &params.uuid, params.id.clone().into_bytes()),
            tasks: Mirror::new(layout.tasks(), 2, TASK_READS),
            workers: Mirror::new(layout.workers(), 1, WORKER_READS),
            table: Table::default(),
            fleet: Fleet::default(),
            queue: Queue::default(),
            term: None,
            catch_up_at: None,
            forbidden_at: None,
            retry: Retry::default(),
            past: Past::default(),
            condition: Condition::default(),
            params,
        }
    }

    fn on_lost(&mut self) {
        self.connected = None;
        self.retry.on_lost();
        self.ensure.reset();
        if self.term.as_ref().is_some_and(|term| term.editor.is_in_doubt()) {
            self.election.on_lost_in_doubt();
        } else {
            self.election.on_lost();
        }
        self.tasks.reset();
        self.workers.reset();
        self.table = Table::default();
        self.fleet = Fleet::default();
        self.queue = Queue::default();
        self.term = None;
        self.catch_up_at = None;
        self.forbidden_at = None;
    }

    fn on_reply(&mut self, id: CallId, result: &CallResult, now: Instant, out: &mut Out) {
        if let Routed::Mine(step) = self.ensure.on_reply(id, result, out) {
            match step {
                ensure::Step::Pending => {}
                ensure::Step::Done => self.start_missing(out),
                ensure::Step::Refused(path, refusal) => self.retry.refused(&path, refusal, now, out),
            }
        } else if let Routed::Mine(changes) = self.tasks.on_reply(id, result, out) {
            self.on_tasks(changes, now, out);
        } else if let Routed::Mine(changes) = self.workers.on_reply(id, result, out) {
            self.on_workers(changes, now, out);
        } else if let Routed::NotMine = self.election.on_reply(id, result, out) {
            self.on_term_reply(id, result, now, out);
        }
    }

    /// All directories are there: starts what does not run, at first all of it.
    fn start_missing(&mut self, out: &mut Out) {
        if !self.tasks.is_started() {
            self.tasks.start(out);
            self.tasks.take_time(self.term.is_none(), out);
        }
        if !self.workers.is_started() {
            self.workers.start(out);
        }
        if self.election.is_out() {
            self.election.stand(out);
        }
        self.restart_term(out);
    }

    /// Tries again what was refused, and makes what is gone.
    fn mend(&mut self, now: Instant, out: &mut Out) {
        if let Some((path, refusal)) = self.election.take_refused() {
            self.retry.refused(&format!("cannot stand for election in {path}"), refusal, now, out);
        }
        if self.retry.is_due(now) {
            self.ensure.start(out);
        }
        let stands = match &self.term {
            Some(term) => term.is_leading(),
            None => self.election.is_following(),
        };
        let hears = self.tasks.is_complete() && self.workers.is_complete();
        if stands && hears && self.ensure.is_done() && self.retry.next_wake().is_none() {
            self.retry.done(out);
        }
    }

    fn on_changed(&mut self, path: &str, kind: ChangeKind, now: Instant, out: &mut Out) {
        if kind == ChangeKind::Deleted && self.ensure.has(path) {
            self.retry.vanished(path, now, out);
        }
        if let Routed::Mine(changes) = self.tasks.on_changed(path, kind, out) {
            self.on_tasks(changes, now, out);
        } else if let Routed::Mine(changes) = self.workers.on_changed(path, kind, out) {
            self.on_workers(changes, now, out);
        } else {
            self.election.on_changed(path, kind, out);
            self.on_term_changed(path, kind, now, out);
        }
    }

    fn on_tasks(&mut self, changes: Vec<Change>, now: Instant, out: &mut Out) {
        for change in changes {
            match change {
                Change::Appeared { .. } => {}
                Change::Touched { path } => match TaskId::parse(&path) {
                    Some(task) => self.on_touched(&task, now, out),
                    None => self.tasks.read_again(&path, out),
                },
                Change::Seen { path, data, stat } => match TaskId::parse(&path) {
                    Some(task) => self.on_task(&task, &data, &stat, now, out),
                    None => {
                        let (waiting, malformed) = self.table.see_dir(&path, &data, &stat, now);
                        if let Some(malformed) = malformed {
                            let path = self.params.layout.job(&path);
                            out.log(
                                Level::Error,
                                format!("{path} is no job ({malformed}): taken as without defaults"),
                            );
                        }
                        for task in waiting {
                            self.tasks.read_again(task.as_str(), out);
                        }
                        if let Some(term) = &mut self.term {
                            term.failovers.unpark();
                        }
                    }
                },
                Change::Gone { path } => match TaskId::parse(&path) {
                    Some(task) => {
                        self.table.remove(&task, now);
                        self.forget_look(&task);
                        self.note_gone(&task);
                        self.settle(&task, now, out);
                    }
                    None => self.table.drop_dir(&path),
                },
                Change::Refused { path, refusal } => self.on_unreadable(&path, refusal, now, out),
                Change::Complete => {
                    out.log(Level::Info, format!("{} tasks loaded", self.table.len()));
                    self.on_tasks_complete(now, out);
                }
            }
            self.touch();
        }
    }

    fn on_task(&mut self, task: &TaskId, data: &[u8], stat: &Stat, now: Instant, out: &mut Out) {
        // What was given out under this name was another task, of which the worker may know the end already.
        let is_another = self.table.get(task).is_some_and(|known| known.czxid != stat.czxid);
        match self.table.see(task, data, stat) {
            // Whoever waited for the look may go on.
            Update::Stale => return self.settle(task, now, out),
            Update::DirUnknown => {
                self.tasks.read_again(task.dir(), out);
                return;
            }
            Update::Changed => self.note_read(task, now),
            Update::Malformed(malformed) => {
                let path = self.params.layout.task(task);
                out.log(Level::Error, format!("{path} is no task ({malformed}): it is left alone"));
            }
        }
        // A follower may answer with the past. Of what was made before this term, that might be a task that has ended.
        let is_ours = self.term.as_ref().is_some_and(|term| term.has_seen_made(stat));
        if is_ours && let Some(seen) = Seen::of(data, stat) {
            self.table.keep_seen(task, seen);
        }
        if is_another && let Some(term) = &mut self.term {
            for (id, _, _) in term.book.entries_of(task) {
                term.book.revoke(&id, Urgency::Now);
            }
        }
        if let Some(children) = self.table.overfull(task.dir()) {
            let path = self.params.layout.job(task.dir());
            out.log(
                Level::Warn,
                format!("{path} has {children} children: too many; use another job for more"),
            );
        }
        self.settle(task, now, out);
    }

    fn on_workers(&mut self, changes: Vec<Change>, now: Instant, out: &mut Out) {
        for change in changes {
            match change {
                Change::Appeared { path } => {
                    if !self.fleet.appeared(&path) {
                        self.report_worker(Level::Warn, &path, "it is left alone", out);
                    }
                }
                // Registrations are always read at once.
                Change::Touched { path } => self.workers.read_again(&path, out),
                // No worker's life hangs on it, so nobody is to wait for its end.
                Change::Seen { path, stat, .. } if stat.ephemeral_owner == 0 => {
                    self.report_worker(Level::Error, &path, "it is not ephemeral, and left alone", out);
                    if let Some(incarnation) = self.fleet.gone(&path) {
                        self.on_death(&incarnation, now, out);
                    }
                }
                Change::Seen { path, data, .. } => {
                    let read = Registration::decode(&data);
                    if let Err(malformed) = &read {
                        let why = format!("{malformed}; it gets no tasks");
                        self.report_worker(Level::Error, &path, &why, out);
                    }
                    if let Some(incarnation) = self.fleet.seen(&path, read.ok()) {
                        self.on_registration(&incarnation, now, out);
                    }
                }
                Change::Gone { path } => {
                    if let Some(incarnation) = self.fleet.gone(name_of(&path)) {
                        self.on_death(&incarnation, now, out);
                    }
                }
                Change::Refused { path, refusal } => self.on_unreadable(&path, refusal, now, out),
                Change::Complete => self.check_workers(out),
            }
            self.touch();
        }
    }

    fn report_worker(&mut self, level: Level, name: &str, why: &str, out: &mut Out) {
        if self.table.report(name) {
            let dir = self.params.layout.workers();
            out.log(level, format!("{dir}/{name} is no registration: {why}"));
        }
    }

    /// A master can do without a znode that may not be read, but not without one of its directories.
    fn on_unreadable(&mut self, path: &str, refusal: Refusal, now: Instant, out: &mut Out) {
        if self.ensure.has(path) {
            self.retry.refused(path, refusal, now, out);
        } else if self.table.report(path) {
            let pace = FORBIDDEN_PACE.as_secs();
            out.log(Level::Error, format!("{path}: {refusal}; it is looked at again every {pace} s"));
        }
    }

    /// Somebody may have repaired an ACL.
    fn try_forbidden(&mut self, now: Instant, out: &mut Out) {
        if !self.tasks.has_refused() && !self.workers.has_refused() {
            self.forbidden_at = None;
            return;
        }
        if *self.forbidden_at.get_or_insert(now + FORBIDDEN_PACE) <= now {
            self.forbidden_at = None;
            self.tasks.try_refused(out);
            self.workers.try_refused(out);
        }
    }

    /// Nobody is in a hurry to read what is most probably gone before it could matter.
    fn catch_up(&mut self, now: Instant, out: &mut Out) {
        if !self.tasks.is_behind() {
            self.catch_up_at = None;
            return;
        }
        let pace = if self.term.is_some() { LEADER_PACE } else { STANDBY_PACE };
        let at = *self.catch_up_at.get_or_insert(now + pace);
        if at <= now {
            self.catch_up_at = Some(now + pace);
            self.tasks.catch_up(out);
        }
    }

    /// Tells the log and the service manager what this master is, when that changed.
    fn tell(&mut self, out: &mut Out) {
        let text = match (&self.term, self.connected) {
            (Some(term), _) => term.describe(),
            (None, None) => "no connection to the ensemble".to_string(),
            (None, Some(_)) if self.election.is_following() => "standing by".to_string(),
            (None, Some(_)) => "connected".to_string(),
        };
        let summary = self.term.as_ref().and_then(|term| term.summary.trouble());
        self.condition.tell(text, [self.retry.trouble(), summary], out);
    }
}

impl Role for Master {
    type Report = Report;

    fn step(&mut self, now: Instant, event: Event, out: &mut Out) {
        self.past.observe(&event);
        if let Some(term) = &mut self.term {
            term.book.tick(now);
        }
        match event {
            Event::Connected { timeout } => {
                self.connected = Some(timeout);
                self.ensure.start(out);
            }
            Event::Lost { why } => {
                out.log(Level::Warn, format!("connection lost: {why}"));
                self.on_lost();
            }
            Event::Changed { path, kind } => self.on_changed(&path, kind, now, out),
            Event::Reply { id, result } => self.on_reply(id, &result, now, out),
            Event::Stop { .. } => {
                out.push(Action::Status("stopping".into()));
                out.push(Action::Exit(exit::OK));
                return;
            }
            Event::Wake => {}
            // A master runs nothing and reads no lines.
            Event::Started { .. }
            | Event::NotStarted { .. }
            | Event::Ended { .. }
            | Event::SlotsLost { .. }
            | Event::Lines(_) => {}
        }
        self.mend(now, out);
        if let Some(own) = self.election.made_by() {
            // All that it knew was forgotten with the connection.
            self.past.went_back(own, out);
        }
        self.follow_election(now, out);
        self.catch_up(now, out);
        self.try_forbidden(now, out);
        self.act(now, out);
        self.tell(out);
    }

    fn next_wake(&self) -> Option<Instant> {
        let own = earlier(earlier(self.catch_up_at, self.forbidden_at), self.retry.next_wake());
        let Some(term) = &self.term else { return own };
        earlier(own, earlier(term.next_wake(), self.housekeeping_wake(term)))
    }

    fn assert_invariants(&self) {
        let Some(term) = &self.term else { return };
        assert!(self.connected.is_some(), "a term without a connection");
        assert_eq!(self.election.leading(), Some(term.epoch()), "a term that the election does not know");
        if let Some(task) = self.queue.sample() {
            assert!(term.book.holder(task).is_none(), "task {task} is queued and assigned at once");
        }
    }
}

#[cfg(test)]
mod tests;
