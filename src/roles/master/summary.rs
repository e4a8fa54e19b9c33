//! What `status` says: the leader, its workers, and how many commands are in each state.

use std::collections::BTreeMap;

use super::leader::Leader;
use crate::contract::status::{self, Admission, Counts, Status, WorkerRow};
use crate::contract::worker::{EntryId, MAX_UNHEALTHY_BYTES, Registration};
use crate::contract::{Incarnation, shortened};
use crate::recipes::assignment::Held;

/// How many commands without a result a worker has.
#[derive(Clone, Copy, Default)]
struct Share {
    running: u32,
    assigned: u32,
}

impl Leader {
    /// What the leader knows, in short.
    pub(super) fn summarize(&self) -> Status {
        let params = &self.view.params;
        let leader = status::LeaderStatus {
            id: params.id.clone(),
            host: params.host.clone(),
            pid: params.pid,
            epoch: self.term.epoch,
        };
        let mut counts = self.view.table.counts();
        let mut shares = BTreeMap::new();
        for incarnation in self.assignments.incarnations() {
            shares.insert(incarnation, self.share_of(incarnation, &mut counts));
        }
        let rows = self.view.workers.iter().map(|(incarnation, registration)| {
            let Share { running, assigned } = shares.get(incarnation).copied().unwrap_or_default();
            WorkerRow {
                id: incarnation.worker().to_string(),
                host: registration.process.host.clone(),
                pid: registration.process.pid,
                slots: registration.slots,
                running,
                assigned,
                draining: registration.draining,
                usable: registration.usable,
                unhealthy: registration.unhealthy.as_ref().map(|why| shortened(why, MAX_UNHEALTHY_BYTES)),
                labels: registration.labels.clone(),
            }
        });
        let loading = !self.view.tasks.is_complete() || !self.term.is_assigning();
        let mut status = Status::new(leader, rows.collect(), counts, loading);
        status.admission = Some(Admission {
            bytes: self.view.table.bytes(),
            max_pending: params.max_pending,
            max_pending_bytes: params.max_pending_bytes,
        });
        status.ended_workers = self.ended_workers.iter().cloned().collect();
        status
    }

    /// How many of the pending commands an incarnation has; they are counted there, and no longer as waiting for a
    /// worker. Commands are started in their order, so the first of them run, as many as there are slots.
    fn share_of(&self, incarnation: &Incarnation, counts: &mut Counts) -> Share {
        let registration = self.view.workers.get(incarnation);
        let quarantined = registration.map_or(&[][..], |registration| &registration.quarantined);
        let mut free = registration.map_or(0, Registration::usable_slots);
        let mut share = Share::default();
        let is_pending = |(id, _): &(&EntryId, &Held)| self.view.table.unit(id).is_some();
        for (id, held) in self.assignments.entries(incarnation).filter(is_pending) {
            counts.pending = counts.pending.saturating_sub(held.width.into());
            if quarantined.contains(&id.task) {
                counts.quarantined += u64::from(held.width);
                continue;
            }
            let running = if held.is_presumed_done() { 0 } else { held.width.min(free) };
            free -= running;
            share.running += running;
            share.assigned += held.width - running;
        }
        counts.running += u64::from(share.running);
        counts.assigned += u64::from(share.assigned);
        share
    }
}
