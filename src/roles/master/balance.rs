//! Gives work that was not started to idle slots. While a worker has a free slot, the leader recalls entries that wait
//! at another, and cuts lines off a chunk that runs. A recall needs the holder's answer. A cut asks nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Out;
use super::editor::Edit;
use super::leader::Leader;
use super::loads::{BALANCE_PACE, FULL, Rank, WORTH_IT};
use crate::contract::Incarnation;
use crate::contract::worker::EntryId;
use crate::machine::Instant;
use crate::recipes::assignment::Held;
use crate::recipes::queue::Need;

/// A worker with slots that nothing is planned for.
struct Free {
    incarnation: Incarnation,
    slots: u32,
}

/// A share with lines that were not started.
struct Uncut {
    id: EntryId,
    need: Need,
    /// Commands behind its window.
    commands: u32,
    holder: Incarnation,
    /// Its holder's slots.
    slots: u32,
}

impl Leader {
    /// Recalls entries that wait at one worker when another has had a free slot for a while, and the queue has nothing
    /// for it. Cuts lines that were not started off the chunks that run there.
    pub(super) fn balance(&mut self, now: Instant, out: &mut Out) {
        let drains = self.view.workers.iter().any(|(_, registration)| registration.draining);
        let is_uneven = !self.scheduler.loads.overfull.is_empty() || !self.scheduler.uncut.is_empty();
        if !is_uneven || !(self.scheduler.loads.is_slot_free() || drains) {
            self.scheduler.balance_at = None;
            return;
        }
        if *self.scheduler.balance_at.get_or_insert(now + BALANCE_PACE) > now {
            return;
        }
        self.scheduler.balance_at = Some(now + BALANCE_PACE);
        let (recalled, cuts) = (self.surplus(now), self.cuts());
        for id in recalled {
            self.assignments.recall(&id);
        }
        for (id, slots) in cuts {
            self.editor.begin(&id.task, Edit::Cut { number: id.attempt, slots }, out);
        }
    }

    /// The shares with lines that were not started and could be cut off.
    fn uncut(&self) -> impl Iterator<Item = Uncut> {
        self.scheduler.uncut.iter().filter_map(|id| {
            let (holder, held) = self.assignments.holder(id)?;
            let unit = self.view.table.unit(id).filter(|_| !held.is_revoked())?;
            let slots = if unit.need.suspect { 1 } else { self.scheduler.loads.pace_of(holder).0 };
            let commands = unit.behind();
            let (id, need, holder) = (id.clone(), unit.need, holder.clone());
            let is_cuttable = commands > 0 && self.view.workers.is_alive(&holder);
            is_cuttable.then_some(Uncut { id, need, commands, holder, slots })
        })
    }

    /// The workers with free slots, that nothing else is planned for.
    fn free(&self) -> Vec<Free> {
        let (loads, assignments) = (&self.scheduler.loads, &self.assignments);
        let unused = |(rank, incarnation): &(Rank, Incarnation)| {
            let width = assignments.load(incarnation).map_or(0, |load| load.width);
            let slots = u64::from(rank.slots.0).saturating_sub(width);
            let slots = u32::try_from(slots).unwrap_or(u32::MAX);
            Free { incarnation: incarnation.clone(), slots }
        };
        let free = loads.order.iter().take_while(|(rank, _)| rank.share < FULL);
        free.filter(|(_, incarnation)| !loads.is_reserved(incarnation)).map(unused).collect()
    }

    fn fits(&self, incarnation: &Incarnation, need: Need) -> bool {
        let registration = self.view.workers.get(incarnation);
        registration.is_some_and(|registration| self.view.table.needs.fits(need, &registration.labels))
    }

    /// The shares to cut, and for how many slots beside those of the holder. Each worker with free slots gets a part of
    /// the share that would take longest. A worker that is about to stop loses all that it has not started.
    fn cuts(&self) -> Vec<(EntryId, (u32, u32))> {
        let (mut cuts, mut candidates) = (Vec::new(), Vec::new());
        for uncut in self.uncut() {
            if self.view.workers.get(&uncut.holder).is_some_and(|registration| registration.draining) {
                cuts.push((uncut.id, (1, 0)));
                continue;
            }
            let cost = self.scheduler.loads.pace_of(&uncut.holder).1;
            let wait = cost.map(|cost| cost.saturating_mul(uncut.commands) / uncut.slots.max(1));
            if wait.is_none_or(|wait| wait >= WORTH_IT) {
                candidates.push((wait.unwrap_or(Duration::MAX), uncut));
            }
        }
        candidates.sort_by(|(left, a), (right, b)| (right, b.commands).cmp(&(left, a.commands)));
        for free in self.free() {
            let load = self.assignments.load(&free.incarnation).unwrap_or_default();
            let takes = |need: Need| {
                self.fits(&free.incarnation, need)
                    && !(need.suspect && load.suspects > 0)
                    && !(need.is_alone() && load.width > 0)
            };
            let fits = |uncut: &Uncut| uncut.holder != free.incarnation && takes(uncut.need);
            let Some(at) = candidates.iter().position(|(_, uncut)| fits(uncut)) else { continue };
            let (_, uncut) = candidates.remove(at);
            let slots = if uncut.need.suspect { 1 } else { free.slots };
            cuts.push((uncut.id, (slots, uncut.slots)));
        }
        cuts
    }

    /// How many entries of an assignment wait behind those that fill its slots.
    fn waiting(&self, incarnation: &Incarnation, slots: u32) -> usize {
        let entries = self.assignments.entries(incarnation);
        let mut width = 0_u32;
        let waits = |(_, held): &(&EntryId, &Held)| {
            let before = width;
            if !held.is_presumed_done() {
                width = width.saturating_add(held.width);
            }
            before >= slots && !held.is_presumed_done()
        };
        entries.filter(waits).count()
    }

    /// The entries that should not wait where they are, the last first.
    fn surplus(&self, now: Instant) -> Vec<EntryId> {
        let (loads, assignments) = (&self.scheduler.loads, &self.assignments);
        let free = self.free();
        if free.is_empty() {
            return Vec::new();
        }
        let unused: u64 = free.iter().map(|free| u64::from(free.slots)).sum();
        let mut room = usize::try_from(unused).unwrap_or(usize::MAX);
        // Each need is asked for once, however many tasks have it.
        let mut asked = BTreeMap::new();
        let mut goes = |need: Need| {
            let fits = || free.iter().any(|free| self.fits(&free.incarnation, need));
            *asked.entry(need).or_insert_with(fits)
        };
        let mut surplus = Vec::new();
        for incarnation in &loads.overfull {
            let loaded = loads.known.get(incarnation).zip(assignments.load(incarnation));
            let Some((known, _)) = loaded.filter(|(known, load)| !known.makes_progress(*load, now)) else {
                continue;
            };
            let may = room.min(self.waiting(incarnation, known.slots));
            // An entry that was recalled before, and is still on its way, counts here too.
            room -= may;
            for (id, held) in assignments.entries(incarnation).rev().take(may) {
                let unit = self.view.table.unit(id).filter(|unit| unit.ahead.is_none() || unit.need.suspect);
                let may = !held.recalled && !held.is_revoked() && !held.is_presumed_done();
                if may && unit.is_some_and(|unit| goes(unit.need)) {
                    surplus.push(id.clone());
                }
            }
        }
        surplus
    }
}
