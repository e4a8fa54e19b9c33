//! What a worker knows of its assignment: entries are taken in, read, verified, taken back and closed.

use std::collections::BTreeSet;
use std::time::Duration;

use super::assigned_task::{AssignedTask, Kind, State};
use super::reports::{self, Settled, Want};
use super::stop_reason::StopReason;
use super::work::Work;
use super::{Mode, Out, Purpose, Worker};
use crate::contract::share::{Ending, Release, Rest};
use crate::contract::task::{Job, Options, Task};
use crate::contract::worker::{Entry, EntryId, MAX_QUARANTINED};
use crate::contract::{TaskId, is_shared};
use crate::machine::{Call, Instant, Level, Refusal, Reply, Stat};

/// The least time between two writes that only say that something revoked, and written down as ended, is dead.
const CONFIRM_PACE: Duration = Duration::from_secs(1);

impl Worker {
    /// Takes in a new version of the assignment, or the first that is read on a connection.
    pub(super) fn merge(&mut self, entries: Vec<Entry>, is_first: bool, now: Instant, out: &mut Out) {
        for assigned in self.assigned.tasks.values_mut() {
            assigned.removed = true;
        }
        for mut entry in entries {
            if is_first {
                // It may have been given out, and have ended, on an earlier connection.
                entry.seen = None;
            }
            match self.assigned.tasks.get_mut(&entry.id()) {
                None => self.take_up(entry, now, out),
                Some(assigned) => {
                    assigned.removed = false;
                    assigned.revoked |= entry.revoked;
                    assigned.recalled |= entry.recalled;
                    if let Some(version) = entry.recheck {
                        self.recheck(&entry.id(), version, out);
                    }
                }
            }
        }
        self.assigned.tasks.retain(|_, assigned| !assigned.removed || assigned.is_busy());
        self.forget_jobs();
        for id in self.ids_of(|assigned| assigned.revoked || assigned.removed || assigned.recalled) {
            if self.assigned.tasks.get(&id).is_some_and(|assigned| assigned.revoked || assigned.removed) {
                self.revoke(&id, now, out);
            } else {
                self.give_back(&id, out);
            }
        }
        self.confirmation.due = true;
    }

    /// The entries of which this is so.
    pub(super) fn ids_of(&self, is: impl Fn(&AssignedTask) -> bool) -> Vec<EntryId> {
        self.assigned.tasks.iter().filter(|(_, assigned)| is(assigned)).map(|(id, _)| id.clone()).collect()
    }

    /// Forgets the defaults of jobs of which there is no entry: a job that is empty may be deleted, and made again with
    /// others.
    pub(super) fn forget_jobs(&mut self) {
        let needed: BTreeSet<&str> = self.assigned.tasks.keys().map(|id| id.task.dir()).collect();
        self.assigned.jobs.retain(|dir, options| options.is_none() || needed.contains(dir.as_str()));
    }

    /// Takes a new entry, which is started after all others.
    fn take_up(&mut self, entry: Entry, now: Instant, out: &mut Out) {
        let id = entry.id();
        self.assigned.last_order += 1;
        let mut assigned = AssignedTask::new(entry.revoked, self.assigned.last_order);
        assigned.recalled = entry.recalled;
        // Whatever that is, it does not run before what we have of the same task is dead. Shares of a chunk have no
        // line in common.
        let mut others = self.assigned.tasks.range(EntryId::all_of(&id.task));
        let waits = others.any(|(_, other)| other.is_busy() && other.kind == Kind::Plain);
        if waits {
            assigned.state = State::Waiting;
        } else {
            self.assigned.start_order.insert(assigned.order, id.clone());
        }
        self.assigned.tasks.insert(id.clone(), assigned);
        match entry.seen.filter(|_| !entry.revoked && !waits) {
            // The leader read it before it gave it out. Whatever became of it since is met as if we had read it then.
            Some(seen) => {
                self.read_job(&id.task, out);
                let stat = Stat { version: seen.version, mzxid: seen.mzxid, ..Stat::default() };
                self.on_task(&id, Some((seen.data.as_bytes(), &stat)), now, out);
            }
            None => self.read_task(&id, out),
        }
    }

    pub(super) fn revoke(&mut self, task: &EntryId, now: Instant, out: &mut Out) {
        let kill = now + self.params.grace;
        let Some(assigned) = self.assigned.tasks.get_mut(task) else { return };
        match &mut assigned.state {
            State::Waiting | State::Reading { .. } | State::Verifying { .. } | State::Ready(_) => {
                assigned.state = State::Closed { confirm: true };
            }
            State::Running(execution) => {
                execution.halt(StopReason::Revoked);
                let runs: Vec<_> = execution.runs.iter().copied().collect();
                for run in runs {
                    self.stop_run(run, StopReason::Revoked, kill, out);
                }
                self.finish_if_over(task, out);
            }
            State::Reporting | State::Closed { .. } | State::Quarantined => {}
        }
    }

    /// The leader has another worker for it, or this one cannot start it now: it goes back if it was not started,
    /// uncharged.
    pub(super) fn give_back(&mut self, id: &EntryId, out: &mut Out) {
        let Some(assigned) = self.assigned.tasks.get_mut(id) else { return };
        if !matches!(assigned.state, State::Ready(_)) {
            // What is being read is given back when it was read; what was started stays.
            return;
        }
        let State::Ready(work) = std::mem::replace(&mut assigned.state, State::Reporting) else { return };
        let avoid = self.running.starts.why().is_some();
        let why = if avoid { "its worker could not start tasks" } else { "taken back before it was started" };
        let release = Release { avoid, ..Release::because(why) };
        let want = if work.task.commands.is_some() {
            let rest = Some(Rest::Release(release));
            Want::Share(Box::new(Ending { rest, ..Ending::default() }))
        } else {
            Want::Again { release, is_charged: false }
        };
        self.owe(id, Some(&work), want, out);
    }

    pub(super) fn read_task(&mut self, id: &EntryId, out: &mut Out) {
        let Some(assigned) = self.assigned.tasks.get(id) else { return };
        let State::Reading { verified } = assigned.state else { return };
        let call = Call::Get { path: self.params.layout.task(&id.task), watch: false };
        self.calls.issue(out, call, Purpose::ReadTask { id: id.clone(), verified });
        self.read_job(&id.task, out);
    }

    /// Reads the defaults that a task may need, once.
    fn read_job(&mut self, task: &TaskId, out: &mut Out) {
        let dir = task.dir();
        if !is_shared(dir) && !self.assigned.jobs.contains_key(dir) {
            self.assigned.jobs.insert(dir.to_string(), None);
            let call = Call::Get { path: self.params.layout.job(dir), watch: false };
            self.calls.issue(out, call, Purpose::ReadJob(dir.to_string()));
        }
    }

    /// A new session is up: what was being read when the last one ended is read again. So is what had ended, if it
    /// still has an entry: the ensemble may have gone back to where it had not.
    pub(super) fn restart_reads(&mut self, out: &mut Out) {
        self.assigned.tasks.retain(|_, assigned| !matches!(assigned.state, State::Closed { .. }));
        let mut open = Vec::new();
        for (id, assigned) in &mut self.assigned.tasks {
            if assigned.is_open() && !matches!(assigned.state, State::Waiting) {
                assigned.state = State::Reading { verified: false };
                open.push(id.clone());
            }
        }
        for id in open {
            self.read_task(&id, out);
        }
    }

    /// Takes in a task that was read, or that is not there.
    pub(super) fn on_task(
        &mut self,
        id: &EntryId,
        read: Option<(&[u8], &Stat)>,
        now: Instant,
        out: &mut Out,
    ) {
        let Some(assigned) = self.assigned.tasks.get_mut(id) else { return };
        let State::Reading { verified } = assigned.state else { return };
        if let Some((data, stat)) = read
            && let Ok(task) = Task::decode(data)
            && is_at(&task, id.attempt)
        {
            assigned.kind = if task.commands.is_some() { Kind::Share } else { Kind::Plain };
            let work = Work { task, version: stat.version, mzxid: stat.mzxid, mtime_ms: stat.mtime_ms };
            assigned.state = State::Ready(Box::new(work));
            if assigned.recalled {
                self.give_back(id, out);
            }
        } else if verified {
            // Even the present does not fit: the entry is stale.
            self.close(id, false, out);
        } else {
            assigned.state = State::Verifying { ticket: self.lease.fresh(now, out) };
        }
    }

    /// An own write was acknowledged: what did not fit is read again.
    pub(super) fn after_own_write(&mut self, out: &mut Out) {
        let lease = &self.lease;
        let again = |(task, assigned): (&EntryId, &mut AssignedTask)| match assigned.state {
            State::Verifying { ticket } if lease.has(ticket) => {
                assigned.state = State::Reading { verified: true };
                Some(task.clone())
            }
            _ => None,
        };
        let again: Vec<_> = self.assigned.tasks.iter_mut().filter_map(again).collect();
        for task in again {
            self.read_task(&task, out);
        }
        self.reread_verified(out);
    }

    pub(super) fn on_job(&mut self, dir: String, result: Result<&Reply, Refusal>, out: &mut Out) {
        let options = match result {
            Ok(Reply::Data { data, .. }) => match Job::decode(data) {
                Ok(job) => job.options,
                Err(malformed) => {
                    let path = self.params.layout.job(&dir);
                    out.log(
                        Level::Error,
                        format!("{path} is no job ({malformed}): taken as without defaults"),
                    );
                    Options::default()
                }
            },
            Ok(_) | Err(Refusal::NoNode) => Options::default(),
            Err(refusal) => return self.on_forbidden_job(&dir, refusal, out),
        };
        self.assigned.jobs.insert(dir, Some(options));
        self.forget_jobs();
    }

    /// Without its job's defaults a task would run with no timeout, say. The next entry asks again.
    fn on_forbidden_job(&mut self, dir: &str, refusal: Refusal, out: &mut Out) {
        self.assigned.jobs.remove(dir);
        let open =
            self.assigned.tasks.iter().filter(|(id, assigned)| id.task.dir() == dir && assigned.is_open());
        let open: Vec<EntryId> = open.map(|(id, _)| id.clone()).collect();
        for task in open {
            self.quarantine(&task, &format!("{}: {refusal}", self.params.layout.job(dir)), out);
        }
    }

    pub(super) fn on_report(&mut self, step: reports::Step, out: &mut Out) {
        match step {
            reports::Step::Pending => return,
            reports::Step::Settled(task, Settled::Impossible(why)) => {
                return self.quarantine(&task, &why, out);
            }
            reports::Step::Settled(task, Settled::Stale) => self.close(&task, true, out),
            reports::Step::Settled(task, Settled::Written) => self.close(&task, false, out),
        }
        if matches!(self.mode, Mode::Leaving { .. }) {
            self.leave(out);
        }
    }

    /// The task cannot be read, or nothing can be written into it: it is logged and left alone, and takes up no slot.
    pub(super) fn quarantine(&mut self, id: &EntryId, why: &str, out: &mut Out) {
        let path = self.params.layout.task(&id.task);
        let was_started = self.assigned.tasks.get(id).is_none_or(|assigned| !assigned.is_open());
        let so = if was_started { "its outcome is lost" } else { "this worker does not run it" };
        out.log(Level::Error, format!("{path}: {why}; the task is quarantined, and {so}"));
        if let Some(assigned) = self.assigned.tasks.get_mut(id) {
            assigned.state = State::Quarantined;
        }
        self.take_up_waiting(id, out);
        self.confirmation.due = true;
        let quarantined = self.ids_of(|assigned| matches!(assigned.state, State::Quarantined)).into_iter();
        let mut quarantined: Vec<TaskId> = quarantined.map(|id| id.task).take(MAX_QUARANTINED).collect();
        quarantined.dedup();
        self.registrar.publish(|body| body.quarantined = quarantined, out);
    }

    /// A report is settled, or there was nothing to do.
    pub(super) fn close(&mut self, id: &EntryId, confirm: bool, out: &mut Out) {
        let Some(assigned) = self.assigned.tasks.get_mut(id) else { return };
        assigned.state = State::Closed { confirm };
        self.confirmation.due = true;
        if assigned.removed || self.dying.is_some() {
            self.assigned.tasks.remove(id);
        }
        if self.dying.is_none() {
            self.take_up_waiting(id, out);
        }
    }

    /// Takes up what was given out to us of the same task before this attempt was over.
    fn take_up_waiting(&mut self, id: &EntryId, out: &mut Out) {
        let all = self.assigned.tasks.range(EntryId::all_of(&id.task));
        let waiting = all.filter(|(_, assigned)| matches!(assigned.state, State::Waiting));
        let waiting: Vec<EntryId> = waiting.map(|(id, _)| id.clone()).collect();
        for id in waiting {
            let Some(assigned) = self.assigned.tasks.get_mut(&id) else { continue };
            self.assigned.last_order += 1;
            assigned.order = self.assigned.last_order;
            assigned.state = State::Reading { verified: false };
            self.assigned.start_order.insert(assigned.order, id.clone());
            self.read_task(&id, out);
        }
    }

    /// Reports to the leader that what it revoked is dead. Where an outcome of ours says so too, the leader mostly has
    /// seen it and removes the entry, so that this can wait.
    pub(super) fn confirm_revoked(&mut self, now: Instant, out: &mut Out) {
        if !std::mem::take(&mut self.confirmation.due) && self.confirmation.at.is_none_or(|at| at > now) {
            return;
        }
        self.confirmation.at = None;
        let Some(version) = self.view.version.filter(|_| self.registrar.is_registered()) else { return };
        let mut revoked = self.assigned.tasks.values().filter(|assigned| assigned.revoked).peekable();
        let is_confirmed = self.registrar.body().revoked_through.is_some_and(|through| through >= version);
        if is_confirmed || revoked.peek().is_none() || !revoked.clone().all(AssignedTask::is_dead) {
            return;
        }
        let at_once = revoked.any(|assigned| matches!(assigned.state, State::Closed { confirm: true }));
        let at = self.confirmation.last.map_or(now, |last| last + CONFIRM_PACE);
        if at_once || at <= now {
            self.confirmation.last = Some(now);
            self.registrar.publish(|body| body.revoked_through = Some(version), out);
        } else {
            self.confirmation.at = Some(at);
        }
    }
}

/// Whether the task is pending at this attempt, or the chunk has a share of this number.
fn is_at(task: &Task, attempt: u32) -> bool {
    match task.commands {
        Some(_) => task.share(attempt).is_some(),
        None => task.outcome.is_none() && task.attempt == attempt,
    }
}
