//! What a leader does because time passes: it wakes delayed tasks, expires late ones, deletes outcomes that nobody
//! collects and jobs that stay empty, and cancels orphans.
//!
//! Whatever is deleted is deleted by version, and aged on the ensemble's clock as an own write has shown it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Out;
use super::editor::Edit;
use super::janitor::{KEPT_FOR, Purpose};
use super::leader::Leader;
use super::outcomes::OutcomeLimits;
use crate::contract::TaskId;
use crate::machine::{Call, Instant, Level, Refusal, Reply, earlier};

/// Deletions under way at once.
const WINDOW: usize = 64;

/// How many session timeouts an outcome is kept at least, so that a create that was in doubt cannot be applied
/// after the task that it made was deleted.
const MIN_TTL_TIMEOUTS: u32 = 2;

/// For how many session timeouts a new leader deletes no outcome. A delete of an earlier leader may be in doubt. It
/// must have been applied, or be impossible, before a key can be used again.
const RELUCTANCE_TIMEOUTS: u32 = 2;

/// Failed outcomes take at most this part of the bytes that all tasks may have. Beyond that the oldest are deleted.
const FAILED_PART_OF_BYTES: u64 = 4;

impl Leader {
    /// How long outcomes are kept, and how many.
    fn outcome_limits(&self) -> OutcomeLimits {
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        OutcomeLimits {
            ttl_ms: ms(self.view.params.result_ttl),
            least_ms: ms(self.view.timeout * MIN_TTL_TIMEOUTS),
            max_failed: self.view.params.max_failed,
            max_failed_bytes: self.view.params.max_pending_bytes / FAILED_PART_OF_BYTES,
        }
    }

    /// When housekeeping is due.
    pub(super) fn housekeeping_wake(&self) -> Option<Instant> {
        let clock = self.clock.filter(|_| self.term.is_assigning())?;
        // A little late rather than a little early: clocks show whole milliseconds.
        let at = |ms: i64| clock.instant_of(ms.saturating_add(1));
        let delayed = self.view.table.delayed.first().map(|(ms, _)| at(*ms));
        let expiring = self.view.table.expiring.first().map(|(ms, _)| at(*ms));
        let old = self.view.table.outcomes.next(&self.outcome_limits()).zip(self.janitor.deletes_from);
        let old = old.map(|((ms, ..), from)| at(ms).max(from));
        let old = old.filter(|_| self.janitor.calls.is_empty() && !self.status.is_writing());
        let due = earlier(earlier(delayed, expiring), old);
        let orphans = self.janitor.next_orphans.filter(|_| !self.view.table.orphanable.is_empty());
        let jobs = self.janitor.next_jobs.filter(|_| self.view.tasks.is_complete());
        earlier(earlier(due, self.janitor.kept_until), earlier(jobs, orphans))
    }

    /// Does what is due.
    pub(super) fn housekeep(&mut self, now: Instant, out: &mut Out) {
        let Some(clock) = self.clock else { return };
        let ensemble_ms = clock.now_ms(now);
        let reluctance = self.view.timeout * RELUCTANCE_TIMEOUTS;
        self.janitor.deletes_from.get_or_insert(now + reluctance);
        let delayed = take_due(&mut self.view.table.delayed, ensemble_ms);
        self.reconcile_all(&delayed, now, out);
        let expiring = take_due(&mut self.view.table.expiring, ensemble_ms);
        self.reconcile_all(&expiring, now, out);
        while let Some(task) = self.view.table.take_numberable() {
            self.view.tasks.read_again(task.as_str(), out);
        }
        self.try_kept(now);
        self.ask_for_time(ensemble_ms, now);
        self.delete_empty_jobs(now, out);
        self.find_orphans(now);
    }

    /// Tries again the deletes that were refused.
    fn try_kept(&mut self, now: Instant) {
        if self.janitor.kept_until.take_if(|at| *at <= now).is_some() {
            for task in std::mem::take(&mut self.janitor.kept) {
                self.view.table.keep_outcome(&task);
            }
        }
    }

    /// Asks for an own write when an outcome seems to be old enough: only its time proves that.
    fn ask_for_time(&mut self, ensemble_ms: i64, now: Instant) {
        let is_old =
            self.view.table.outcomes.next(&self.outcome_limits()).is_some_and(|(ms, ..)| ms < ensemble_ms);
        if is_old && self.janitor.may_delete(now) && self.janitor.calls.is_empty() {
            self.status.force();
        }
    }

    /// Deletes what is old at `mtime_ms`, when an own write was committed.
    pub(super) fn on_own_write(&mut self, mtime_ms: i64, now: Instant, out: &mut Out) {
        let limits = self.outcome_limits();
        let timeout = self.view.timeout;
        let janitor = &mut self.janitor;
        while janitor.may_delete(now) && janitor.calls.len() < WINDOW {
            let next = self.view.table.outcomes.next(&limits).filter(|(ms, ..)| *ms < mtime_ms);
            let Some((_, is_excess, task)) = next else { break };
            let Some((version, keyed)) = self.view.table.take_outcome(&task) else { break };
            if is_excess && keyed {
                // A submitter that uses the key again must not run it once more.
                if !self.editor.begin(&task, Edit::Shrink { version }, out) {
                    janitor.keep(task, now);
                }
                continue;
            }
            let call = Call::Delete { path: self.view.params.layout.task(&task), version: Some(version) };
            janitor.calls.issue(out, call, Purpose::DeleteTask(task));
        }
        if let Some(suspects) = janitor.suspects.take() {
            let call = Call::Children { path: self.view.params.layout.submitters() };
            janitor.calls.issue(out, call, Purpose::ListSubmitters(suspects));
            janitor.next_orphans = Some(now + timeout);
        }
    }

    fn delete_empty_jobs(&mut self, now: Instant, out: &mut Out) {
        let ttl = self.view.params.job_ttl;
        let janitor = &mut self.janitor;
        if !self.view.tasks.is_complete() || janitor.next_jobs.is_some_and(|at| at > now) {
            return;
        }
        let pause = (ttl / 4).clamp(Duration::from_millis(500), Duration::from_secs(60));
        janitor.next_jobs = Some(now + pause);
        let Some(before) = now.as_nanos().checked_sub(u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX))
        else {
            return;
        };
        while janitor.calls.len() < WINDOW {
            let Some((name, version)) = self.view.table.take_empty_dir(Instant::from_nanos(before), now)
            else {
                break;
            };
            let call = Call::Delete { path: self.view.params.layout.job(&name), version: Some(version) };
            janitor.calls.issue(out, call, Purpose::DeleteJob(name));
        }
    }

    /// Asks for an own write, after which the list of submitters is not older than the tasks seen by now.
    fn find_orphans(&mut self, now: Instant) {
        let janitor = &mut self.janitor;
        if self.view.table.orphanable.is_empty() {
            janitor.missing.clear();
            return;
        }
        let is_due = janitor.next_orphans.is_none_or(|at| at <= now);
        if is_due && janitor.suspects.is_none() {
            janitor.suspects = Some(self.view.table.orphanable.clone());
            janitor.next_orphans = None;
            self.status.force();
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
            // Somebody deleted the directory with the marks in it. Submitters that are alive create others.
            (Purpose::ListSubmitters(suspects), Err(Refusal::NoNode)) => {
                self.cancel_orphans(&suspects, &[], now, out);
            }
            (Purpose::ListSubmitters(_), _) => {}
            (_, Ok(_) | Err(Refusal::NoNode | Refusal::BadVersion | Refusal::NotEmpty)) => {}
            (Purpose::DeleteTask(task), Err(refusal)) => self.keep_outcome(task, refusal, now, out),
            (Purpose::DeleteJob(name), Err(refusal)) => {
                let path = self.view.params.layout.job(&name);
                if self.view.table.report(&path) {
                    out.log(Level::Error, format!("{path}: {refusal}; the empty job is kept"));
                }
            }
        }
    }

    /// Keeps an outcome whose delete or change was refused.
    pub(super) fn keep_outcome(&mut self, task: TaskId, refusal: Refusal, now: Instant, out: &mut Out) {
        let path = self.view.params.layout.task(&task);
        if self.view.table.report(&path) {
            let every = KEPT_FOR.as_secs();
            let text =
                format!("{path}: {refusal}; its outcome is kept, and deleting it is tried every {every} s");
            out.log(Level::Error, text);
        }
        self.janitor.keep(task, now);
    }

    /// Cancels the tasks whose submitter was missing twice, with a session timeout in between.
    fn cancel_orphans(
        &mut self,
        suspects: &BTreeMap<TaskId, Box<str>>,
        names: &[String],
        now: Instant,
        out: &mut Out,
    ) {
        let timeout = self.view.timeout;
        let present: BTreeSet<&str> =
            names.iter().map(|name| name.rsplit_once('~').map_or(name.as_str(), |(id, _)| id)).collect();
        let missing = &mut self.janitor.missing;
        missing.retain(|id, _| !present.contains(&**id));
        let mut orphans = Vec::new();
        for (task, submitter) in suspects.iter().filter(|(_, submitter)| !present.contains(&***submitter)) {
            let since = *missing.entry(submitter.clone()).or_insert(now);
            if now.since(since) >= timeout && self.view.table.pending(task).is_some_and(|p| !p.cancel) {
                orphans.push(task.clone());
            }
        }
        for task in orphans {
            if self.editor.begin(&task, Edit::Orphan, out) {
                out.log(Level::Info, format!("task {task}: its submitter is gone; cancelling it"));
                self.view.set_queued(&task, &[], None);
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
