//! No slot idles beside work that was not started: what waits at one worker while another has a free slot is recalled,
//! and of a chunk that runs what was not started is cut off. The first needs its holder's answer; the second asks
//! nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use super::dispatch::{FULL, Rank};
use super::editor::Edit;
use super::leading::Term;
use super::{Master, Out};
use crate::contract::worker::EntryId;
use crate::contract::{Incarnation, TaskId};
use crate::machine::Instant;
use crate::recipes::assignment::Held;
use crate::recipes::queue::Need;

/// What waits at a worker for less than this is not worth to be given to another.
pub(super) const WORTH_IT: Duration = Duration::from_millis(100);

/// A slot is free for so long before what waits elsewhere is given to it. Where nothing has ended for as long, nothing
/// gets on.
pub(super) const BALANCE_PACE: Duration = Duration::from_millis(150);

/// The pause after a read where nobody knows how long commands take.
const UNKNOWN: Duration = Duration::from_millis(200);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// From when on a change of a chunk is read at once. Its worker writes results several times a second; read are the
/// first of them, and then when half of what was left should be over. What comes in between is read with what else was
/// put off, about a second later, so that the end of a chunk is never missed for longer.
#[derive(Debug, Default)]
pub struct Looks(BTreeMap<TaskId, Instant>);

impl Looks {
    /// Whether a change of the task is to be read at once.
    pub fn is_due(&self, task: &TaskId, now: Instant) -> bool {
        self.0.get(task).is_none_or(|from| *from <= now)
    }

    /// The task was read, with so many commands left; each keeps one of the worker's slots for so long, if that is
    /// known.
    fn note(&mut self, task: &TaskId, left: u32, slots: u32, cost: Option<Duration>, now: Instant) {
        if left > 1 {
            let half = cost.map_or(UNKNOWN, |cost| cost.saturating_mul(left) / slots.max(1) / 2);
            self.0.insert(task.clone(), now + half.min(LONGEST));
        } else {
            self.0.remove(task);
        }
    }

    /// The task is over, gone, or nobody's.
    pub fn forget(&mut self, task: &TaskId) {
        self.0.remove(task);
    }
}

/// A worker with slots that nothing is planned for.
struct Free {
    incarnation: Incarnation,
    slots: u32,
}

/// A share of which something was not started.
struct Behind {
    id: EntryId,
    need: Need,
    /// Commands behind its window.
    commands: u32,
    holder: Incarnation,
    /// Its holder's slots.
    slots: u32,
}

impl Master {
    /// A task was read.
    pub(super) fn note_read(&mut self, task: &TaskId, now: Instant) {
        let Some(term) = &mut self.term else { return };
        let holder = term.book.entries_of(task).into_iter().next().map(|(_, incarnation, _)| incarnation);
        match (holder, self.table.pending(task)) {
            (Some(holder), Some(pending)) => {
                let (slots, cost) = term.loads.pace_of(&holder);
                let left = pending.units().iter().map(|unit| unit.width).sum();
                term.looks.note(task, left, slots, cost, now);
            }
            _ => term.looks.forget(task),
        }
    }

    /// Recalls what waits at one worker when another has had a free slot for a while, and the queue nothing for it. Of
    /// what runs there it cuts off what was not started.
    pub(super) fn balance(&mut self, now: Instant, out: &mut Out) {
        let Some(term) = self.term.as_mut().filter(|term| term.is_leading()) else { return };
        let drains = self.fleet.iter().any(|(_, registration)| registration.draining);
        let is_uneven = !term.loads.overfull.is_empty() || !term.behind.is_empty();
        if !is_uneven || !(term.loads.is_slot_free() || drains) {
            term.loads.balance_at = None;
            return;
        }
        if *term.loads.balance_at.get_or_insert(now + BALANCE_PACE) > now {
            return;
        }
        term.loads.balance_at = Some(now + BALANCE_PACE);
        let (recalled, cuts) = (self.surplus(now), self.cuts());
        let Some(term) = &mut self.term else { return };
        for id in recalled {
            term.book.recall(&id);
        }
        for (id, slots) in cuts {
            term.editor.begin(&id.task, Edit::Cut { number: id.attempt, slots }, out);
        }
    }

    /// The shares of which something was not started and could be cut off.
    fn behind(&self) -> impl Iterator<Item = Behind> {
        let term = self.term.iter();
        let all = term.flat_map(|term| term.behind.iter().map(move |id| (term, id)));
        all.filter_map(|(term, id)| {
            let (holder, held) = term.book.holder(id)?;
            let unit = self.table.unit(id).filter(|_| !held.is_revoked())?;
            let slots = if unit.need.suspect { 1 } else { term.loads.pace_of(holder).0 };
            let commands = unit.behind();
            let (id, need, holder) = (id.clone(), unit.need, holder.clone());
            (commands > 0 && self.fleet.lives(&holder)).then_some(Behind {
                id,
                need,
                commands,
                holder,
                slots,
            })
        })
    }

    /// The workers with free slots, that nothing else is planned for.
    fn free(&self) -> Vec<Free> {
        let Some(Term { loads, book, .. }) = &self.term else { return Vec::new() };
        let unused = |(rank, incarnation): &(Rank, Incarnation)| {
            let width = book.load(incarnation).map_or(0, |load| load.width);
            let slots = u64::from(rank.slots.0).saturating_sub(width);
            let slots = u32::try_from(slots).unwrap_or(u32::MAX);
            Free { incarnation: incarnation.clone(), slots }
        };
        let free = loads.order.iter().take_while(|(rank, _)| rank.share < FULL);
        free.filter(|(_, incarnation)| !loads.is_reserved(incarnation)).map(unused).collect()
    }

    fn fits(&self, incarnation: &Incarnation, need: Need) -> bool {
        let registration = self.fleet.get(incarnation);
        registration.is_some_and(|registration| self.table.needs.fits(need, &registration.labels))
    }

    /// What to cut, for how many slots beside those of its holder: for each worker with free slots something of the
    /// share that would take longest, and all that a worker has not started which is about to stop.
    fn cuts(&self) -> Vec<(EntryId, (u32, u32))> {
        let (mut cuts, mut candidates) = (Vec::new(), Vec::new());
        for behind in self.behind() {
            if self.fleet.get(&behind.holder).is_some_and(|registration| registration.draining) {
                cuts.push((behind.id, (1, 0)));
                continue;
            }
            let cost = self.term.as_ref().and_then(|term| term.loads.pace_of(&behind.holder).1);
            let wait = cost.map(|cost| cost.saturating_mul(behind.commands) / behind.slots.max(1));
            if wait.is_none_or(|wait| wait >= WORTH_IT) {
                candidates.push((wait.unwrap_or(Duration::MAX), behind));
            }
        }
        candidates.sort_by(|(left, a), (right, b)| (right, b.commands).cmp(&(left, a.commands)));
        for free in self.free() {
            let load =
                self.term.as_ref().and_then(|term| term.book.load(&free.incarnation)).unwrap_or_default();
            let takes = |need: Need| {
                self.fits(&free.incarnation, need)
                    && !(need.suspect && load.suspects > 0)
                    && !(need.is_alone() && load.width > 0)
            };
            let fits = |behind: &Behind| behind.holder != free.incarnation && takes(behind.need);
            let Some(at) = candidates.iter().position(|(_, behind)| fits(behind)) else { continue };
            let (_, behind) = candidates.remove(at);
            let slots = if behind.need.suspect { 1 } else { free.slots };
            cuts.push((behind.id, (slots, behind.slots)));
        }
        cuts
    }

    /// How many entries of a page wait behind those that fill its slots.
    fn waiting(&self, incarnation: &Incarnation, slots: u32) -> usize {
        let entries = self.term.iter().flat_map(|term| term.book.entries(incarnation));
        let mut width = 0_u32;
        let waits = |(_, held): &(&EntryId, &Held)| {
            let before = width;
            if !held.is_ghost() {
                width = width.saturating_add(held.width);
            }
            before >= slots && !held.is_ghost()
        };
        entries.filter(waits).count()
    }

    /// What should not wait where it is, the last first.
    fn surplus(&self, now: Instant) -> Vec<EntryId> {
        let Some(Term { loads, book, .. }) = &self.term else { return Vec::new() };
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
            let of_page = loads.known.get(incarnation).zip(book.load(incarnation));
            let Some((known, _)) = of_page.filter(|(known, load)| !known.gets_on(*load, now)) else {
                continue;
            };
            let may = room.min(self.waiting(incarnation, known.slots));
            // Whatever was recalled before, and is still on its way, has its place there.
            room -= may;
            for (id, held) in book.entries(incarnation).rev().take(may) {
                let unit = self.table.unit(id).filter(|unit| unit.ahead.is_none() || unit.need.suspect);
                let may = !held.recalled && !held.is_revoked() && !held.is_ghost();
                if may && unit.is_some_and(|unit| goes(unit.need)) {
                    surplus.push(id.clone());
                }
            }
        }
        surplus
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_read_when_half_of_what_was_left_should_be_over() {
        let (mut looks, task) = (Looks::default(), TaskId::new("j", "t"));
        let at = |ms: u64| Instant::default() + Duration::from_millis(ms);
        assert!(looks.is_due(&task, at(0)), "the first change");
        looks.note(&task, 40, 2, Some(Duration::from_millis(20)), at(0));
        assert!(!looks.is_due(&task, at(199)) && looks.is_due(&task, at(200)));
        looks.note(&task, 40, 2, Some(Duration::from_secs(60)), at(0));
        assert!(!looks.is_due(&task, at(999)) && looks.is_due(&task, at(1_000)));
        looks.note(&task, 40, 2, None, at(0));
        assert!(!looks.is_due(&task, at(199)) && looks.is_due(&task, at(200)));
        looks.note(&task, 1, 2, Some(Duration::from_secs(60)), at(200));
        assert!(looks.is_due(&task, at(200)), "the next change is its end");
    }
}
