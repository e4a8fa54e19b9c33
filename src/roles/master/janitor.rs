//! What a leader does because time passes: wakes delayed tasks, expires late ones, deletes outcomes that nobody
//! collects and jobs that stay empty, cancels what was orphaned.
//!
//! Whatever is deleted is deleted by version, and aged on the ensemble's clock as an own write has shown it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::editor::Edit;
use super::leading::Term;
use super::outcomes::Limits;
use super::{Master, Out};
use crate::contract::TaskId;
use crate::machine::{
    Answer, Call, CallId, CallResult, Calls, Instant, Level, Refusal, Reply, Routed, earlier,
};

/// Deletions under way at once.
const WINDOW: usize = 64;

/// An outcome is kept at least for so many session timeouts, so that a create that was in doubt cannot be applied
/// after the task that it made was deleted.
const MIN_TTL_TIMEOUTS: u32 = 2;

/// A new leader deletes no outcome for so many session timeouts: what its predecessors wished to delete, and is in
/// doubt, must have been applied or be dead before a key can be used again.
const RELUCTANCE_TIMEOUTS: u32 = 2;

/// What ended badly takes at most such a part of the bytes that all tasks may have, or the oldest of it go.
const FAILED_PART_OF_BYTES: u64 = 4;

/// An outcome whose delete was refused is kept for so long before the next try. Mostly it is an ACL, and who repaired
/// that can wait.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// What a call of the janitor is for.
#[derive(Debug)]
pub enum Purpose {
    /// To delete a task with its outcome.
    DeleteTask(TaskId),
    /// To delete an empty job.
    DeleteJob(String),
    /// Who waits: asked after an own write, for the tasks that were known before it.
    ListSubmitters(BTreeMap<TaskId, Box<str>>),
}

/// The state of a leader's housekeeping.
#[derive(Debug, Default)]
pub struct Janitor {
    calls: Calls<Purpose>,
    next_jobs: Option<Instant>,
    next_orphans: Option<Instant>,
    /// Tasks with a submitter, as they were when an own write was asked for.
    suspects: Option<BTreeMap<TaskId, Box<str>>>,
    /// Submitters that were not there, and since when.
    missing: BTreeMap<Box<str>, Instant>,
    /// From when on outcomes are deleted.
    deletes_from: Option<Instant>,
    /// Outcomes whose delete was refused, and when to try again.
    kept: Vec<TaskId>,
    kept_until: Option<Instant>,
}

impl Janitor {
    /// Takes in a reply: what was asked for, and the answer.
    pub fn on_reply<'a>(&mut self, id: CallId, result: &'a CallResult) -> Routed<(Purpose, Answer<'a>)> {
        self.calls.route(id, result)
    }

    /// It could not be deleted: that is tried again later.
    fn keep(&mut self, task: TaskId, now: Instant) {
        self.kept.push(task);
        self.kept_until.get_or_insert(now + KEPT_FOR);
    }

    fn may_delete(&self, now: Instant) -> bool {
        self.deletes_from.is_some_and(|from| from <= now)
    }
}

impl Master {
    /// How long outcomes are kept, and how many.
    fn outcome_limits(&self) -> Limits {
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        Limits {
            ttl_ms: ms(self.params.result_ttl),
            least_ms: ms(self.connected.unwrap_or_default() * MIN_TTL_TIMEOUTS),
            max_failed: self.params.max_failed,
            max_failed_bytes: self.params.max_pending_bytes / FAILED_PART_OF_BYTES,
        }
    }

    /// When housekeeping is due.
    pub(super) fn housekeeping_wake(&self, term: &Term) -> Option<Instant> {
        let clock = term.clock.filter(|_| term.is_leading())?;
        // A little late rather than a little early: clocks show whole milliseconds.
        let at = |ms: i64| clock.instant_of(ms.saturating_add(1));
        let delayed = self.table.delayed.first().map(|(ms, _)| at(*ms));
        let expiring = self.table.expiring.first().map(|(ms, _)| at(*ms));
        let old = self.table.outcomes.next(&self.outcome_limits()).zip(term.janitor.deletes_from);
        let old = old.map(|((ms, ..), from)| at(ms).max(from));
        let old = old.filter(|_| term.janitor.calls.is_empty() && !term.summary.is_writing());
        let due = earlier(earlier(delayed, expiring), old);
        let orphans = term.janitor.next_orphans.filter(|_| !self.table.orphanable.is_empty());
        let jobs = term.janitor.next_jobs.filter(|_| self.tasks.is_complete());
        earlier(earlier(due, term.janitor.kept_until), earlier(jobs, orphans))
    }

    /// Does what is due.
    pub(super) fn housekeep(&mut self, now: Instant, out: &mut Out) {
        let Some(clock) = self.term.as_ref().filter(|term| term.is_leading()).and_then(|term| term.clock)
        else {
            return;
        };
        let ensemble_ms = clock.now_ms(now);
        let reluctance = self.connected.unwrap_or_default() * RELUCTANCE_TIMEOUTS;
        if let Some(term) = &mut self.term {
            term.janitor.deletes_from.get_or_insert(now + reluctance);
        }
        self.continue_failovers(now, out);
        self.close_unregistered(now, out);
        let delayed = take_due(&mut self.table.delayed, ensemble_ms);
        self.settle_all(&delayed, now, out);
        let expiring = take_due(&mut self.table.expiring, ensemble_ms);
        self.settle_all(&expiring, now, out);
        while let Some(task) = self.table.take_numberable() {
            self.tasks.read_again(task.as_str(), out);
        }
        self.try_kept(now);
        self.ask_for_time(ensemble_ms, now);
        self.delete_empty_jobs(now, out);
        self.look_for_orphans(now);
    }

    /// What could not be deleted is old enough again.
    fn try_kept(&mut self, now: Instant) {
        let Some(term) = &mut self.term else { return };
        if term.janitor.kept_until.take_if(|at| *at <= now).is_some() {
            for task in std::mem::take(&mut term.janitor.kept) {
                self.table.keep_outcome(&task);
            }
        }
    }

    /// An outcome seems to be old enough: only an own write tells for certain.
    fn ask_for_time(&mut self, ensemble_ms: i64, now: Instant) {
        let is_old =
            self.table.outcomes.next(&self.outcome_limits()).is_some_and(|(ms, ..)| ms < ensemble_ms);
        if let Some(term) = &mut self.term
            && is_old
            && term.janitor.may_delete(now)
            && term.janitor.calls.is_empty()
        {
            term.summary.force();
        }
    }

    /// An own write was acknowledged: it was committed at `mtime_ms`.
    pub(super) fn on_own_write(&mut self, mtime_ms: i64, now: Instant, out: &mut Out) {
        let limits = self.outcome_limits();
        let timeout = self.connected.unwrap_or_default();
        let Some(term) = self.term.as_mut().filter(|term| term.is_leading()) else { return };
        let janitor = &mut term.janitor;
        while janitor.may_delete(now) && janitor.calls.len() < WINDOW {
            let next = self.table.outcomes.next(&limits).filter(|(ms, ..)| *ms < mtime_ms);
            let Some((_, is_excess, task)) = next else { break };
            let Some((version, keyed)) = self.table.take_outcome(&task) else { break };
            if is_excess && keyed {
                // Who submits the key again shall not run it once more.
                if !term.editor.begin(&task, Edit::Shrink { version }, out) {
                    janitor.keep(task, now);
                }
                continue;
            }
            let call = Call::Delete { path: self.params.layout.task(&task), version: Some(version) };
            janitor.calls.issue(out, call, Purpose::DeleteTask(task));
        }
        if let Some(suspects) = janitor.suspects.take() {
            let call = Call::Children { path: self.params.layout.submitters() };
            janitor.calls.issue(out, call, Purpose::ListSubmitters(suspects));
            janitor.next_orphans = Some(now + timeout);
        }
    }

    fn delete_empty_jobs(&mut self, now: Instant, out: &mut Out) {
        let ttl = self.params.job_ttl;
        let Some(term) = self.term.as_mut() else { return };
        let janitor = &mut term.janitor;
        if !self.tasks.is_complete() || janitor.next_jobs.is_some_and(|at| at > now) {
            return;
        }
        let pause = (ttl / 4).clamp(Duration::from_millis(500), Duration::from_secs(60));
        janitor.next_jobs = Some(now + pause);
        let Some(before) = now.as_nanos().checked_sub(u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX))
        else {
            return;
        };
        while janitor.calls.len() < WINDOW {
            let Some((name, version)) = self.table.take_empty_dir(Instant::from_nanos(before), now) else {
                break;
            };
            let call = Call::Delete { path: self.params.layout.job(&name), version: Some(version) };
            janitor.calls.issue(out, call, Purpose::DeleteJob(name));
        }
    }

    /// Asks for an own write, after which the list of submitters is not older than the tasks seen by now.
    fn look_for_orphans(&mut self, now: Instant) {
        let Some(term) = self.term.as_mut() else { return };
        let janitor = &mut term.janitor;
        if self.table.orphanable.is_empty() {
            janitor.missing.clear();
            return;
        }
        let is_due = janitor.next_orphans.is_none_or(|at| at <= now);
        if is_due && janitor.suspects.is_none() {
            janitor.suspects = Some(self.table.orphanable.clone());
            janitor.next_orphans = None;
            term.summary.force();
        }
    }

    pub(super) fn on_janitor_answer(
        &mut self,
        purpose: Purpose,
        answer: Result<&Reply, Refusal>,
        now: Instant,
        out: &mut Out,
    ) {
        match (purpose, answer) {
            (Purpose::ListSubmitters(suspects), Ok(Reply::Children(names))) => {
                self.cancel_orphans(&suspects, names, now, out);
            }
            // Somebody deleted the directory, and the marks in it: those who live make others.
            (Purpose::ListSubmitters(suspects), Err(Refusal::NoNode)) => {
                self.cancel_orphans(&suspects, &[], now, out);
            }
            (Purpose::ListSubmitters(_), _) => {}
            (_, Ok(_) | Err(Refusal::NoNode | Refusal::BadVersion | Refusal::NotEmpty)) => {}
            (Purpose::DeleteTask(task), Err(refusal)) => self.keep_outcome(task, refusal, now, out),
            (Purpose::DeleteJob(name), Err(refusal)) => {
                let path = self.params.layout.job(&name);
                if self.table.report(&path) {
                    out.log(Level::Error, format!("{path}: {refusal}; the empty job is kept"));
                }
            }
        }
    }

    /// An outcome that was to be deleted, or shortened, may not be.
    pub(super) fn keep_outcome(&mut self, task: TaskId, refusal: Refusal, now: Instant, out: &mut Out) {
        let path = self.params.layout.task(&task);
        if self.table.report(&path) {
            let every = KEPT_FOR.as_secs();
            let text =
                format!("{path}: {refusal}; its outcome is kept, and deleting it is tried every {every} s");
            out.log(Level::Error, text);
        }
        if let Some(term) = &mut self.term {
            term.janitor.keep(task, now);
        }
    }

    /// Cancels the tasks whose submitter was missing twice, a session timeout apart.
    fn cancel_orphans(
        &mut self,
        suspects: &BTreeMap<TaskId, Box<str>>,
        names: &[String],
        now: Instant,
        out: &mut Out,
    ) {
        let timeout = self.connected.unwrap_or_default();
        let Some(term) = &mut self.term else { return };
        let present: BTreeSet<&str> =
            names.iter().map(|name| name.rsplit_once('~').map_or(name.as_str(), |(id, _)| id)).collect();
        let missing = &mut term.janitor.missing;
        missing.retain(|id, _| !present.contains(&**id));
        let mut orphans = Vec::new();
        for (task, submitter) in suspects.iter().filter(|(_, submitter)| !present.contains(&***submitter)) {
            let since = *missing.entry(submitter.clone()).or_insert(now);
            if now.since(since) >= timeout && self.table.pending(task).is_some_and(|p| !p.cancel) {
                orphans.push(task.clone());
            }
        }
        for task in orphans {
            if term.editor.begin(&task, Edit::Orphan, out) {
                out.log(Level::Info, format!("task {task}: its submitter is gone; cancelling it"));
                self.queue.remove_all(&task);
            }
        }
    }
}

/// Takes out the tasks whose time has come.
fn take_due(times: &mut BTreeSet<(i64, TaskId)>, now_ms: i64) -> Vec<TaskId> {
    let mut due = Vec::new();
    while times.first().is_some_and(|(ms, _)| *ms <= now_ms) {
        due.extend(times.pop_first().map(|(_, task)| task));
    }
    due
}
