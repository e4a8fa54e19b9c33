//! What follows a worker failure: each of the worker's unfinished tasks goes on to its next attempt, then its
//! assignment is deleted. And what follows when an assignment is deleted while its worker lives.

use super::Out;
use super::editor::{Edit, Editor};
use super::failover::Failover;
use super::leader::Leader;
use crate::contract::worker::EntryId;
use crate::contract::{Incarnation, TaskId};
use crate::machine::Instant;
use crate::recipes::assignment::AssignmentTable;

impl Leader {
    /// Begins the failover of an incarnation that is dead.
    pub(super) fn begin_failover(&mut self, incarnation: &Incarnation) {
        if self.failovers.contains(incarnation) || !self.assignments.has(incarnation) {
            return;
        }
        self.failovers.put(self.failover_of(incarnation));
        self.assignments.touch(incarnation);
    }

    fn failover_of(&self, incarnation: &Incarnation) -> Failover {
        let slots = self.scheduler.loads.slots(incarnation).map(|slots| slots as usize);
        let entries = self.assignments.entries(incarnation);
        let entries = entries.map(|(id, held)| (id.clone(), held.is_revoked()));
        Failover::new(incarnation, entries.collect(), slots)
    }

    /// Goes on with failovers; those that are over end with the deletion of the assignment.
    pub(super) fn continue_failovers(&mut self, now: Instant, out: &mut Out) {
        let mut released = Vec::new();
        for incarnation in self.failovers.take_due() {
            released.extend(self.continue_failover(&incarnation, out));
        }
        self.reconcile_all(&released, now, out);
    }

    /// Goes on with the failover of one incarnation. Gives the tasks that came off its assignment.
    fn continue_failover(&mut self, incarnation: &Incarnation, out: &mut Out) -> Vec<TaskId> {
        if !self.assignments.has(incarnation) {
            self.failovers.drop(incarnation);
            return Vec::new();
        }
        let is_empty = self.assignments.entries(incarnation).next().is_none();
        let Some(failover) = self.failovers.get_mut(incarnation) else { return Vec::new() };
        // The assignment may have been read, or read again, after the death was known.
        if !is_empty && failover.is_over() {
            self.failovers.put(self.failover_of(incarnation));
            return Vec::new();
        }
        let (table, is_complete) = (&self.view.table, self.view.tasks.is_complete());
        let attempts = |task: &TaskId| table.attempts_in(task.dir(), is_complete);
        begin_edits(failover, attempts, &self.assignments, &mut self.editor, out);
        let done = failover.take_done();
        let is_over = failover.is_over();
        let (others, gone): (Vec<EntryId>, Vec<EntryId>) =
            done.into_iter().partition(|id| failover.has(&id.task));
        for id in &gone {
            self.failovers.forget(&id.task, incarnation);
        }
        let mut released = Vec::new();
        for id in others.into_iter().chain(gone) {
            self.assignments.release(incarnation, &id);
            released.push(id.task);
        }
        if is_over {
            self.assignments.close(incarnation, out);
            // Should there be more in the assignment, the next turn sees to it.
            if self.assignments.entries(incarnation).next().is_some() {
                self.failovers.wake(incarnation);
            }
        }
        released
    }

    /// An assignment is gone; these tasks were in it. A worker that drains, or gave its incarnation up, deletes its
    /// assignment when all that it ran is dead. If somebody else did, it runs on until it learns of that; it kills what
    /// it runs, hands it back, and only then takes its registration away. So nobody else gets those tasks before that
    /// is gone.
    pub(super) fn on_closed(
        &mut self,
        incarnation: &Incarnation,
        tasks: Vec<TaskId>,
        now: Instant,
        out: &mut Out,
    ) {
        // It may have been read as somebody else's write, and not be closed at all.
        let is_gone = !self.assignments.has(incarnation);
        self.unregistered.remove(incarnation);
        self.failovers.wake(incarnation);
        match self.view.workers.get(incarnation) {
            None => self.scheduler.loads.forget(incarnation),
            Some(registration) if is_gone && !registration.draining && !tasks.is_empty() => {
                let held_back = self.doubts.held_back.entry(incarnation.clone()).or_default();
                held_back.extend(tasks.iter().cloned());
            }
            Some(_) => {}
        }
        self.reconcile_all(&tasks, now, out);
    }

    /// Lets tasks go on that were held back: the worker's registration is gone, so nothing that it ran is left.
    pub(super) fn release_held_back(&mut self, incarnation: &Incarnation, now: Instant, out: &mut Out) {
        for task in self.doubts.held_back.remove(incarnation).unwrap_or_default() {
            self.reconcile(&task, now, out);
        }
    }
}

/// Begins the edits that a failover is ready for.
fn begin_edits(
    failover: &mut Failover,
    attempts: impl Fn(&TaskId) -> Option<u32>,
    assignments: &AssignmentTable,
    editor: &mut Editor,
    out: &mut Out,
) {
    for task in failover.take_unread() {
        editor.begin(&task, Edit::Peek, out);
    }
    for (id, edit) in failover.moves(attempts) {
        // What could not be written to its assignment came back to the queue, and is no part of this any more.
        if assignments.holder(&id).is_none_or(|(holder, _)| holder != failover.incarnation()) {
            failover.skip(&id);
        } else if editor.begin(&id.task, edit, out) {
            failover.begun(&id);
        }
    }
}
