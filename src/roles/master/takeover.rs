//! How a term begins: after its first own write a leader takes every assignment over, then finds out whose workers are
//! alive, then assigns.

use std::collections::BTreeSet;

use super::Out;
use super::leader::{Leader, TermStage};
use crate::contract::{Incarnation, parse_registration};
use crate::machine::{Answer, Call, Instant, Reply};
use crate::recipes::retry::Retry;

impl Leader {
    /// Goes on with a takeover of which something was refused.
    pub fn restart(&mut self, out: &mut Out) {
        if self.assignments.is_stuck() {
            self.assignments.take_over(self.term.epoch, out);
        }
        self.check_workers(out);
    }

    /// An assignment was read.
    pub(super) fn on_opened(&mut self, incarnation: &Incarnation, now: Instant, out: &mut Out) {
        let held = self.tasks_held_by([incarnation]);
        for (id, _) in self.assignments.entries(incarnation) {
            self.view.queue.remove(id);
        }
        // It was refused when the others were read.
        let is_late = self.term.is_assigning();
        self.on_assignment(incarnation, now, out);
        if is_late {
            self.reconcile_all(&held, now, out);
        }
    }

    /// Lists the registrations as soon as the mirror reports the end of each. (What the mirror knows by then may be
    /// older than what was taken over, and what it reports later may overtake the list.)
    pub(super) fn check_workers(&mut self, out: &mut Out) {
        let is_due = self.term.stage == TermStage::Checking && self.term.listing.is_empty();
        if is_due && self.view.registrations.is_complete() {
            let call = Call::Children { path: self.view.params.layout.workers() };
            self.term.listing.issue(out, call, ());
        }
    }

    /// The list of registrations is younger than every assignment that was taken over. So an assignment with
    /// entries whose worker is not in it belongs to a dead incarnation.
    pub(super) fn on_workers_listed(
        &mut self,
        answer: Answer<'_>,
        now: Instant,
        retry: &mut Retry,
        out: &mut Out,
    ) {
        let names = match answer {
            Some(Ok(Reply::Children(names))) => names,
            Some(Ok(_)) | None => return,
            Some(Err(refusal)) => {
                return retry.refused(&self.view.params.layout.workers(), refusal, now, out);
            }
        };
        let alive: BTreeSet<_> = names.iter().filter_map(|name| Some(parse_registration(name)?.0)).collect();
        self.term.stage = TermStage::Assigning { since: now };
        let assigned: Vec<_> = self.assignments.incarnations().cloned().collect();
        let held = self.tasks_held_by(&assigned);
        let died = std::mem::take(&mut self.term.died);
        for incarnation in assigned.iter().filter(|incarnation| !alive.contains(incarnation)) {
            self.on_unregistered(incarnation, now);
        }
        for incarnation in &died {
            self.begin_failover(incarnation);
        }
        let live: Vec<_> = self.view.workers.incarnations().cloned().collect();
        for incarnation in &live {
            self.on_registration(incarnation, now, out);
        }
        let cancelling: Vec<_> = self.view.table.cancelling.iter().cloned().collect();
        self.reconcile_all(&cancelling, now, out);
        self.reconcile_all(&held, now, out);
    }
}
