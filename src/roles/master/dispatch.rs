//! Who gets the next task: the worker that has the least to do, for its slots, of those that have the labels.
//!
//! Should what waits at a worker be held up, and another worker have a free slot, it is recalled: see
//! [`super::balance`]. A turn costs the same however many workers and tasks there are, but for the logarithm of ordered
//! maps.

use std::collections::BTreeSet;

use super::Out;
use super::leader::Leader;
use super::loads::Fitness;
use crate::contract::Incarnation;
use crate::machine::Instant;
use crate::recipes::queue::Need;

impl Leader {
    /// Takes in what changed of workers and their assignments. Gives whose did.
    fn refresh(&mut self) -> BTreeSet<Incarnation> {
        let touched = self.assignments.take_touched();
        for incarnation in &touched {
            let Some(registration) = self.view.workers.get(incarnation) else {
                // Its slots are still asked for if its failover has not begun.
                self.scheduler.loads.rank(incarnation, None);
                self.scheduler.loads.overfull.remove(incarnation);
                continue;
            };
            // A dead incarnation may be registered for a moment: its worker registers again before it finds out.
            let takes = !registration.draining && !self.failovers.contains(incarnation);
            let load = self.assignments.load(incarnation).filter(|_| takes);
            self.scheduler.loads.update(incarnation, (registration.usable_slots(), registration.slots), load);
        }
        touched
    }

    /// Asks again for tasks that no worker could take, for workers of whom something has changed.
    fn unblock(&mut self, changed: &BTreeSet<Incarnation>) {
        let loads = &self.scheduler.loads;
        let fitness = Fitness {
            reserved: loads.reserved.as_ref(),
            needs: &self.view.table.needs,
            workers: &self.view.workers,
            assignments: &self.assignments,
        };
        for incarnation in changed {
            self.view.queue.unblock(|need| loads.takes(incarnation, need, &fitness));
        }
    }

    /// Gives queued tasks to workers.
    pub(super) fn dispatch(&mut self, now: Instant, out: &mut Out) {
        if !self.view.registrations.is_complete() {
            return;
        }
        self.unreserve();
        let changed = self.refresh();
        self.unblock(&changed);
        if self.view.queue.is_empty() || self.tasks_may_be_hidden(now, out) {
            return;
        }
        // Where all are full no worker is searched for: a turn must not cost more with every job.
        while !self.scheduler.loads.order.is_empty() && self.assign_next() {}
        self.reserve();
    }

    /// Assigns the next task that anybody can take; false if there is none.
    fn assign_next(&mut self) -> bool {
        let loads = &self.scheduler.loads;
        let fitness = Fitness {
            reserved: loads.reserved.as_ref(),
            needs: &self.view.table.needs,
            workers: &self.view.workers,
            assignments: &self.assignments,
        };
        let find = |need, avoid| loads.find(need, &fitness, avoid);
        let Some((id, need)) = self.view.queue.pop(|need| find(need, &[]).is_some()) else { return false };
        let Some(unit) = self.view.table.unit(&id) else { return true };
        // Who could not start it gets it again only if nobody else could take it now.
        let another = find(need, self.view.table.avoid(&id.task));
        let Some(incarnation) = another.or_else(|| find(need, &[])).cloned() else { return true };
        let urgency = loads.urgency(&incarnation, &self.assignments);
        self.assignments.assign(&incarnation, &id, unit.held(), urgency);
        if let Some(seen) = self.view.table.carried.take(&id.task) {
            self.assignments.carry(&id, seen);
        }
        self.status.touch();
        // Who has more to do than before takes nothing that it did not take before.
        self.refresh();
        true
    }

    /// Frees the reserved worker when no task waits any more to run alone.
    fn unreserve(&mut self) {
        if self.scheduler.loads.reserved.is_some()
            && self.view.queue.waits_alone().next().is_none()
            && let Some(reserved) = self.scheduler.loads.reserved.take()
        {
            self.assignments.touch(&reserved);
        }
    }

    /// Reserves a worker for a task that runs alone: it gets nothing else until it has nothing to do.
    fn reserve(&mut self) {
        let needs: Vec<Need> = self.view.queue.waits_alone().collect();
        if needs.is_empty() {
            return;
        }
        let fits = |incarnation: &Incarnation| {
            let registration =
                self.view.workers.get(incarnation).filter(|registration| !registration.draining);
            let labels = registration.map(|registration| &registration.labels);
            labels.is_some_and(|labels| needs.iter().any(|need| self.view.table.needs.fits(*need, labels)))
        };
        let width = |incarnation: &Incarnation| self.assignments.load(incarnation).map(|load| load.width);
        if self
            .scheduler
            .loads
            .reserved
            .as_ref()
            .is_some_and(|reserved| fits(reserved) && width(reserved).is_some())
        {
            return;
        }
        let able = self.view.workers.incarnations().filter(|incarnation| fits(incarnation));
        let least = able.filter_map(|incarnation| Some((width(incarnation)?, incarnation.clone()))).min();
        let reserved = least.map(|(_, incarnation)| incarnation);
        let before = std::mem::replace(&mut self.scheduler.loads.reserved, reserved.clone());
        for changed in [before, reserved].into_iter().flatten() {
            self.assignments.touch(&changed);
        }
    }
}
