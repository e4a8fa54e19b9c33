//! What follows when a worker registers, vouches for what it killed, or dies; and what an assignment means whose worker
//! is not registered.

use super::Out;
use super::editor::Edit;
use super::leader::{Leader, UNREGISTERED_GRACE};
use super::workers::Gone;
use crate::contract::Incarnation;
use crate::contract::status::{EndedWorker, MAX_ENDED_WORKERS};
use crate::contract::worker::EntryId;
use crate::machine::{Instant, Level};

impl Leader {
    /// An assignment was read or written.
    pub(super) fn on_assignment(&mut self, incarnation: &Incarnation, now: Instant, out: &mut Out) {
        self.failovers.wake(incarnation);
        if self.view.workers.is_alive(incarnation) {
            self.on_registration(incarnation, now, out);
        } else if self.term.is_assigning() {
            self.on_unregistered(incarnation, now);
        }
    }

    /// The incarnation has an assignment and no registration. One with entries was registered, so it is dead.
    pub(super) fn on_unregistered(&mut self, incarnation: &Incarnation, now: Instant) {
        if self.assignments.entries(incarnation).next().is_some() {
            self.begin_failover(incarnation);
        } else {
            self.unregistered.entry(incarnation.clone()).or_insert(now);
        }
    }

    /// Takes in what a registration says.
    pub(super) fn on_registration(&mut self, incarnation: &Incarnation, now: Instant, out: &mut Out) {
        if self.failovers.contains(incarnation) {
            return;
        }
        self.unregistered.remove(incarnation);
        self.assignments.touch(incarnation);
        let Some(registration) = self.view.workers.get(incarnation) else { return };
        self.assignments.set_quarantined(incarnation, &registration.quarantined);
        let Some(through) = registration.revoked_through else { return };
        for id in self.assignments.acknowledge(incarnation, through) {
            self.on_killed(incarnation, &id, out);
            self.reconcile(&id.task, now, out);
        }
        self.status.touch();
    }

    /// A worker killed what was revoked. The same attempt is never assigned twice: its worker may remember it as
    /// refused.
    fn on_killed(&mut self, incarnation: &Incarnation, id: &EntryId, out: &mut Out) {
        let is_wanted = self.view.table.pending(&id.task).is_some_and(|pending| !pending.cancel)
            && self.view.table.unit(id).is_some();
        if is_wanted && self.assignments.holder(id).is_none() {
            let edit = Edit::Move { from: id.attempt, worker: Some(incarnation.clone()), charge: None };
            self.editor.begin(&id.task, edit, out);
        }
    }

    /// The last registration of an incarnation is gone.
    pub(super) fn on_death(&mut self, gone: &Gone, now: Instant, out: &mut Out) {
        let incarnation = &gone.incarnation;
        self.note_end(gone, now);
        self.release_held_back(incarnation, now, out);
        if self.term.is_assigning() {
            out.log(Level::Info, format!("worker {incarnation} is gone"));
            self.begin_failover(incarnation);
        } else {
            self.term.died.insert(incarnation.clone());
        }
    }

    /// Remembers the end for the summary.
    fn note_end(&mut self, gone: &Gone, now: Instant) {
        let Some(clock) = &self.clock else { return };
        let (id, at_ms) = (gone.incarnation.worker().to_string(), clock.now_ms(now));
        // A worker can also die while it drains.
        let drained = gone.drained && self.assignments.entries(&gone.incarnation).next().is_none();
        self.ended_workers.push_front(EndedWorker { id, at_ms, drained });
        self.ended_workers.truncate(MAX_ENDED_WORKERS);
        self.status.touch();
    }

    /// Closes what was never registered.
    pub(super) fn close_unregistered(&mut self, now: Instant, out: &mut Out) {
        let old = self.unregistered.extract_if(.., |_, since| *since + UNREGISTERED_GRACE <= now);
        for (incarnation, _) in old {
            self.assignments.close(&incarnation, out);
        }
    }
}
