//! What a leader does about each event: it hands replies to the parts that await them, takes in what becomes known,
//! and does what is due.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Out;
use super::editor::{self, Edit, Edited};
use super::leader::{Clock, Leader, Scheduler, TermStage};
use super::status_writer;
use super::view::{News, Reading};
use crate::contract::TaskId;
use crate::contract::worker::{EntryId, Seen};
use crate::machine::{CallId, CallResult, ChangeKind, Instant, Level, Routed, Stat, earlier};
use crate::recipes::assignment::{Step, Urgency};
use crate::recipes::retry::Retry;

/// A leader reads what changed of running chunks once, or at most twice this time later.
const CATCH_UP_PACE: Duration = Duration::from_millis(600);

/// Whether a term goes on after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a deposed leader has to stop"]
pub enum Lead {
    /// It does.
    Continues,
    /// Another leader has this epoch.
    Deposed {
        /// The other's.
        epoch: i64,
    },
}

impl Leader {
    /// Takes in a reply to the leader.
    pub fn on_reply(
        &mut self,
        id: CallId,
        result: &CallResult,
        now: Instant,
        retry: &mut Retry,
        out: &mut Out,
    ) -> Lead {
        if let Routed::Mine(steps) = self.assignments.on_reply(id, result, out) {
            return self.on_assignments(steps, now, retry, out);
        }
        if let Routed::Mine(step) = self.editor.on_reply(id, result, now, out) {
            match step {
                editor::Step::Pending => {}
                editor::Step::Finished { task, edit, edited } => {
                    self.on_edited(&task, &edit, edited, now, out);
                }
            }
        } else if let Routed::Mine(step) = self.status.on_reply(id, result, now, out) {
            self.on_status(&step, now, retry, out);
        } else if let Routed::Mine(((), answer)) = self.term.listing.route(id, result) {
            self.on_workers_listed(answer, now, retry, out);
        } else if let Routed::Mine((purpose, Some(answer))) = self.janitor.on_reply(id, result) {
            self.on_janitor_answer(purpose, answer, now, out);
        }
        Lead::Continues
    }

    /// Takes in a change of a watched znode that no mirror follows.
    pub fn on_changed(
        &mut self,
        path: &str,
        kind: ChangeKind,
        now: Instant,
        retry: &mut Retry,
        out: &mut Out,
    ) -> Lead {
        self.status.on_changed(path, kind, now, out);
        if let Routed::Mine(steps) = self.assignments.on_changed(path, kind, out) {
            return self.on_assignments(steps, now, retry, out);
        }
        Lead::Continues
    }

    fn on_assignments(&mut self, steps: Vec<Step>, now: Instant, retry: &mut Retry, out: &mut Out) -> Lead {
        for step in steps {
            self.status.touch();
            match step {
                Step::Ready => {
                    self.term.stage = TermStage::Checking;
                    self.check_workers(out);
                }
                Step::Opened(incarnation) => self.on_opened(&incarnation, now, out),
                // Its worker may have read the assignment, and answered, before the reply to the write came.
                Step::Written(incarnation) => self.on_assignment(&incarnation, now, out),
                Step::Closed(incarnation, entries) => {
                    self.on_closed(&incarnation, tasks_of(&entries), now, out);
                }
                Step::Deposed { epoch } => return Lead::Deposed { epoch },
                Step::AssignmentRefused(incarnation, entries) => {
                    self.failovers.wake(&incarnation);
                    self.reconcile_all(&tasks_of(&entries), now, out);
                }
                Step::Refused(path, refusal) => retry.refused(&path, refusal, now, out),
            }
        }
        Lead::Continues
    }

    fn on_status(&mut self, step: &status_writer::Step, now: Instant, retry: &mut Retry, out: &mut Out) {
        match step {
            status_writer::Step::Pending => {}
            status_writer::Step::Written { mtime_ms, mzxid } => {
                self.term.announced.get_or_insert(*mzxid);
                self.clock = Some(Clock { mtime_ms: *mtime_ms, at: now });
                if self.term.stage == TermStage::Announcing {
                    self.term.stage = TermStage::TakingOver;
                    self.assignments.take_over(self.term.epoch, out);
                }
                if self.term.is_assigning() {
                    self.on_own_write(*mtime_ms, now, out);
                }
            }
            status_writer::Step::RootGone => retry.vanished(self.view.params.layout.root(), now, out),
        }
    }

    /// Takes in what became known.
    pub fn on_news(&mut self, news: News, now: Instant, out: &mut Out) {
        match news {
            News::TaskChanged(task) => self.on_task_changed(&task, now, out),
            News::TaskRead { task, reading, data, stat } => {
                self.on_task_read(&task, reading, &data, &stat, now, out);
            }
            News::TaskGone(task) => {
                self.note_gone(&task);
                self.reconcile(&task, now, out);
            }
            News::JobRead => self.failovers.unpark(),
            News::TasksLoaded => {
                self.failovers.unpark();
                self.doubts.gone.clear();
                let held = self.tasks_held_by(self.assignments.incarnations());
                self.reconcile_all(&held, now, out);
            }
            News::WorkerRegistered(incarnation) => self.on_registration(&incarnation, now, out),
            News::WorkerDied(gone) => self.on_death(&gone, now, out),
            News::WorkersLoaded => self.check_workers(out),
        }
    }

    /// A task changed. It is read at once, unless it is a chunk that is not due: its worker writes results several
    /// times a second.
    fn on_task_changed(&mut self, task: &TaskId, now: Instant, out: &mut Out) {
        let is_running = self.term.is_assigning() && self.assignments.is_held(task);
        if !is_running || self.scheduler.chunk_reads.is_due(task, now) {
            self.view.tasks.read_again(task.as_str(), out);
        }
    }

    fn on_task_read(
        &mut self,
        task: &TaskId,
        reading: Reading,
        data: &[u8],
        stat: &Stat,
        now: Instant,
        out: &mut Out,
    ) {
        if reading != Reading::Stale {
            self.note_chunk_read(task, now);
            // A follower may answer with the past. Of what was made before this term, that might be a task that has
            // ended.
            if self.term.is_newer(stat)
                && let Some(seen) = Seen::of(data, stat)
            {
                self.view.table.keep_seen(task, seen);
            }
        }
        // What was assigned under this name was another task, of which the worker may know the end already.
        if reading == Reading::Replaced {
            for (id, _, _) in self.assignments.entries_of(task) {
                self.assignments.revoke(&id, Urgency::Now);
            }
        }
        // Even a stale read may be the one that a decision waited for.
        self.reconcile(task, now, out);
    }

    fn note_chunk_read(&mut self, task: &TaskId, now: Instant) {
        let Scheduler { loads, chunk_reads, .. } = &mut self.scheduler;
        let holder = self.assignments.entries_of(task).into_iter().next().map(|(_, holder, _)| holder);
        match (holder, self.view.table.pending(task)) {
            (Some(holder), Some(pending)) => {
                let (slots, cost) = loads.pace_of(&holder);
                let left = pending.units().iter().map(|unit| unit.width).sum();
                chunk_reads.note(task, left, slots, cost, now);
            }
            _ => chunk_reads.forget(task),
        }
    }

    /// A task went, perhaps before it was ever read.
    fn note_gone(&mut self, task: &TaskId) {
        self.doubts.checked.remove(task);
        self.scheduler.chunk_reads.forget(task);
        if !self.view.tasks.is_complete()
            && self.assignments.entries_of(task).iter().any(|(_, _, held)| held.is_inherited())
        {
            self.doubts.gone.insert(task.clone());
        }
    }

    fn on_edited(&mut self, task: &TaskId, edit: &Edit, edited: Edited, now: Instant, out: &mut Out) {
        if let (Edited::Refused(refusal), Edit::Shrink { .. }) = (&edited, edit) {
            self.keep_outcome(task.clone(), *refusal, now, out);
        } else if let Edited::Refused(refusal) = &edited {
            let path = self.view.params.layout.task(task);
            out.log(Level::Error, format!("{path}: {refusal}; the task is quarantined"));
            self.view.table.quarantine(task);
        }
        self.failovers.on_edited(task, edit, &edited);
        // The mirror will read it too, but later: until then the task would be assigned as it was before. But if
        // the mirror has seen it go, this answer is the older news, and nobody would ever correct it.
        if let Edited::Written { data, stat } = &edited
            && self.view.table.get(task).is_some()
            && let Some(reading) = self.view.see_task(task, data, stat, out)
        {
            self.on_task_read(task, reading, data, stat, now, out);
        }
        self.note_check(task, edit, &edited, out);
        self.reconcile(task, now, out);
        self.status.touch();
    }

    /// Does what is due: housekeeping, giving out, writing.
    pub fn act(&mut self, now: Instant, out: &mut Out) {
        self.view.catch_up(CATCH_UP_PACE, now, out);
        self.view.try_forbidden(now, out);
        let is_assigning = self.term.is_assigning();
        if is_assigning {
            self.continue_failovers(now, out);
            self.close_unregistered(now, out);
            self.housekeep(now, out);
            self.decide_undecided(now, out);
        }
        self.editor.resume(now, out);
        if is_assigning {
            self.dispatch(now, out);
            self.balance(now, out);
        }
        self.assignments.flush(out);
        if self.status.next_wake().is_some_and(|at| at <= now) {
            let summary = self.summarize();
            self.status.offer(now, &summary, out);
        }
    }

    /// When it wants to be woken.
    pub fn next_wake(&self) -> Option<Instant> {
        earlier(self.next_wake_of_parts(), self.housekeeping_wake())
    }
}

/// The tasks that these entries name.
fn tasks_of(entries: &[EntryId]) -> Vec<TaskId> {
    let tasks: BTreeSet<&TaskId> = entries.iter().map(|id| &id.task).collect();
    tasks.into_iter().cloned().collect()
}
