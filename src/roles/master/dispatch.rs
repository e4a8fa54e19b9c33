//! Who gets the next task: the worker that has the least to do, for its slots, of those that have the labels.
//!
//! A worker whose slots are all taken gets more only if its runs are so short that what waits there is soon started,
//! so that its slots need not wait for a round trip between two tasks. Should what waits be held up all the same, and
//! another worker have a free slot, it is recalled. A turn costs the same however many workers and tasks there are,
//! but for the logarithm of ordered maps.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::fleet::Fleet;
use super::leading::Term;
use super::{Master, Out};
use crate::contract::worker::{MAX_ENTRIES, START_AHEAD};
use crate::contract::{Incarnation, TaskId};
use crate::machine::Instant;
use crate::recipes::assignment::{Book, Haste, Held, Load};
use crate::recipes::queue::{Need, Needs};

/// What waits at a worker should be started within this time.
const PREFETCH: Duration = Duration::from_millis(400);

/// What waits at a worker for less than this is not worth to be given to another.
const WORTH_IT: Duration = Duration::from_millis(100);

/// What waits at a worker for longer than this is shared out at once, rather than as slots come free elsewhere: its runs
/// turned out longer than was reckoned with when it got them. Well above [`PREFETCH`], or each end of a batch would have
/// tasks moved that are nearly there: a move costs a write of each, and takes a while itself.
const SHARE_OUT: Duration = Duration::from_millis(600);

/// Most entries that wait at a worker, whatever is known of how long its runs take.
const MAX_PREFETCH: usize = 512;

/// What a command costs a worker besides the time that it runs, in µs.
const OVERHEAD_US: u64 = 200;

/// How much the last run counts in what is known of how long runs take: 1 in so many.
const MEMORY: u64 = 8;

/// The pause between two looks whether what waits at one worker should go to another.
const BALANCE_PACE: Duration = Duration::from_millis(150);

/// All of a worker's slots are taken: [`Rank::share`] is at least this.
const FULL: u64 = 1 << 20;

/// Where a worker stands among those that could take a task; the least goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// What it has to do, in parts of its slots.
    share: u64,
    /// Of equals, who has more slots.
    slots: Reverse<u32>,
}

/// What is known of a living worker.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Those that it can use now: all of them, if its starts work.
    slots: u32,
    /// How many it has, so that so many may have been started before.
    all_slots: u32,
    /// Its place among those that can take more, if it can.
    rank: Option<Rank>,
    /// How long a command keeps a slot, in µs, once one was seen.
    cost_us: Option<u64>,
    /// It is being given more than its slots: from half of what may wait to all of it, so that many go in one write.
    filling: bool,
    /// [`Load::struck`] at the last look.
    struck: u64,
}

impl Known {
    fn fill(&mut self, load: Load) {
        let (ahead, room) = (ahead(self.slots, self.cost_us), MAX_PREFETCH.min(MAX_ENTRIES));
        let waiting = load.width.saturating_sub(u64::from(self.slots));
        let entries = load.entries.saturating_sub(self.slots as usize);
        if waiting >= ahead || entries >= room {
            self.filling = false;
        } else if waiting <= ahead / 2 && entries <= room / 2 {
            self.filling = true;
        }
    }

    /// How long the last of what waits there will wait, if all goes well.
    fn wait(&self, load: Load) -> Duration {
        let waiting = load.width.saturating_sub(u64::from(self.slots));
        let us = waiting.saturating_mul(self.cost_us.unwrap_or(0)) / u64::from(self.slots.max(1));
        Duration::from_micros(us)
    }
}

/// The workers that could take more, the least loaded first.
#[derive(Debug, Default)]
pub struct Roster {
    known: BTreeMap<Incarnation, Known>,
    order: BTreeSet<(Rank, Incarnation)>,
    /// Those that have more than their slots.
    overfull: BTreeSet<Incarnation>,
    /// When to look whether what waits should go elsewhere.
    pub balance_at: Option<Instant>,
}

impl Roster {
    /// How many slots the incarnation had when it was last seen alive.
    pub fn slots(&self, incarnation: &Incarnation) -> Option<u32> {
        self.known.get(incarnation).map(|known| known.all_slots)
    }

    /// It has so many slots, whether it can use them or not.
    fn note_slots(&mut self, incarnation: &Incarnation, all_slots: u32) {
        if let Some(known) = self.known.get_mut(incarnation) {
            known.all_slots = all_slots;
        }
    }

    /// How many slots the incarnation can use, and how long a command keeps one, once one was seen.
    pub fn pace_of(&self, incarnation: &Incarnation) -> (u32, Option<Duration>) {
        let known = self.known.get(incarnation);
        (
            known.map_or(1, |known| known.slots),
            known.and_then(|known| known.cost_us).map(Duration::from_micros),
        )
    }

    /// The incarnation is dead.
    pub fn forget(&mut self, incarnation: &Incarnation) {
        self.rank(incarnation, None);
        self.known.remove(incarnation);
        self.overfull.remove(incarnation);
    }

    fn rank(&mut self, incarnation: &Incarnation, rank: Option<Rank>) {
        let Some(known) = self.known.get_mut(incarnation) else { return };
        let before = std::mem::replace(&mut known.rank, rank);
        if before == rank {
            return;
        }
        if let Some(before) = before {
            self.order.remove(&(before, incarnation.clone()));
        }
        if let Some(rank) = rank {
            self.order.insert((rank, incarnation.clone()));
        }
    }

    /// The incarnation lives, can use so many slots, and has so much to do; `None` if it takes nothing now.
    fn update(&mut self, incarnation: &Incarnation, slots: u32, load: Option<Load>) {
        let known = self.known.entry(incarnation.clone()).or_insert(Known {
            slots,
            all_slots: slots,
            rank: None,
            cost_us: None,
            filling: false,
            struck: 0,
        });
        known.slots = slots;
        if let Some(load) = load {
            known.fill(load);
        }
        // Where starts fail nothing is to wait: it would have to be moved.
        let filling = known.filling && slots >= known.all_slots;
        let takes = |load: &Load| load.width < u64::from(slots) || filling;
        let share = |load: Load| load.width.saturating_mul(FULL) / u64::from(slots.max(1));
        let rank = load.filter(takes).map(|load| Rank { share: share(load), slots: Reverse(slots) });
        if load.is_some_and(|load| load.width > u64::from(slots)) {
            self.overfull.insert(incarnation.clone());
        } else {
            self.overfull.remove(incarnation);
        }
        self.rank(incarnation, rank);
    }

    /// So long a task of so many commands ran there.
    pub fn note_run(&mut self, incarnation: &Incarnation, ran_ms: u64, width: u32) {
        let Some(known) = self.known.get_mut(incarnation) else { return };
        let width = u64::from(width.max(1));
        let at_once = u64::from(known.slots).min(width).max(1);
        let cost = ran_ms.saturating_mul(1_000).saturating_mul(at_once) / width + OVERHEAD_US;
        known.cost_us = Some(match known.cost_us {
            None => cost,
            Some(before) => (before * (MEMORY - 1)).saturating_add(cost) / MEMORY,
        });
    }

    /// How soon a worker has to hear of one more task.
    fn haste(&self, incarnation: &Incarnation, book: &Book) -> Haste {
        let (Some(known), Some(load)) = (self.known.get(incarnation), book.load(incarnation)) else {
            return Haste::Now;
        };
        if load.width > u64::from(known.slots) { Haste::Soon } else { Haste::Now }
    }

    /// Whether somebody has a slot that nothing is planned for.
    fn is_slot_free(&self) -> bool {
        self.order.first().is_some_and(|(rank, _)| rank.share < FULL)
    }

    /// The one with the least to do that can take a task with this need, and is none of these.
    fn find(&self, need: Need, facts: &Facts<'_>, avoid: &[Incarnation]) -> Option<&Incarnation> {
        let fits = |(rank, incarnation): &&(Rank, Incarnation)| {
            facts.fits(*rank, incarnation, need) && !avoid.contains(incarnation)
        };
        self.order.iter().find(fits).map(|(_, incarnation)| incarnation)
    }

    /// Whether this one can take a task with this need.
    fn takes(&self, incarnation: &Incarnation, need: Need, facts: &Facts<'_>) -> bool {
        let rank = self.known.get(incarnation).and_then(|known| known.rank);
        rank.is_some_and(|rank| facts.fits(rank, incarnation, need))
    }
}

/// What says, besides its rank, which tasks a worker can take.
struct Facts<'a> {
    needs: &'a Needs,
    fleet: &'a Fleet,
    book: &'a Book,
}

impl Facts<'_> {
    /// Whether a worker of this rank can take a task with this need.
    fn fits(&self, rank: Rank, incarnation: &Incarnation, need: Need) -> bool {
        let free = rank.share < FULL;
        let Some(registration) = self.fleet.get(incarnation) else { return false };
        let suspects = || self.book.load(incarnation).is_none_or(|load| load.suspects > 0);
        (free || !(need.suspect || need.prompt))
            && !(need.suspect && suspects())
            && self.needs.fits(need, &registration.labels)
    }
}

/// How many commands may wait at a worker, beyond its slots.
fn ahead(slots: u32, cost_us: Option<u64>) -> u64 {
    let Some(cost) = cost_us else { return 0 };
    let within = u64::try_from(PREFETCH.as_micros()).unwrap_or(u64::MAX);
    u64::from(slots).saturating_mul(within) / cost.max(OVERHEAD_US)
}

/// How many of a dead worker's entries, from the first, can have been started.
pub fn charge_window(roster: &Roster, incarnation: &Incarnation) -> Option<usize> {
    roster.slots(incarnation).map(|slots| slots as usize + START_AHEAD)
}

impl Master {
    /// Takes in what changed of workers and their pages. Gives whose did.
    fn refresh(&mut self) -> BTreeSet<Incarnation> {
        let Some(term) = &mut self.term else { return BTreeSet::new() };
        let touched = term.book.take_touched();
        for incarnation in &touched {
            let Some(registration) = self.fleet.get(incarnation) else {
                // Its slots are still asked for if it was not buried yet.
                term.roster.rank(incarnation, None);
                term.roster.overfull.remove(incarnation);
                continue;
            };
            // A dead incarnation may seem to rise for a moment: its worker registers anew before it finds out.
            let takes = !registration.draining && !term.is_burying(incarnation);
            let load = term.book.load(incarnation).filter(|_| takes);
            term.roster.update(incarnation, registration.usable_slots(), load);
            term.roster.note_slots(incarnation, registration.slots);
        }
        touched
    }

    /// What nobody could take may be taken by those of whom something has changed.
    fn unblock(&mut self, changed: &BTreeSet<Incarnation>) {
        let Some(Term { roster, book, .. }) = &self.term else { return };
        let facts = Facts { needs: &self.table.needs, fleet: &self.fleet, book };
        for incarnation in changed {
            self.queue.unblock(|need| roster.takes(incarnation, need, &facts));
        }
    }

    /// A task was changed. It is read at once, unless it is a chunk that is not due: its worker writes results several
    /// times a second.
    pub(super) fn on_touched(&mut self, task: &TaskId, now: Instant, out: &mut Out) {
        let Some(term) = &self.term else { return };
        let is_running = term.is_leading() && term.book.holder(task).is_some();
        if !is_running || term.looks.is_due(task, now) {
            self.tasks.read_again(task.as_str(), out);
        }
    }

    /// Gives queued tasks to workers.
    pub(super) fn dispatch(&mut self, now: Instant, out: &mut Out) {
        if !self.workers.is_complete() || !self.term.as_ref().is_some_and(|term| term.is_leading()) {
            return;
        }
        let changed = self.refresh();
        self.unblock(&changed);
        if self.queue.is_empty() || self.is_blind(now, out) {
            return;
        }
        // Where all are full nobody is looked for: a turn must not cost more with every job.
        while let Some(term) = self.term.as_mut().filter(|term| !term.roster.order.is_empty()) {
            let facts = Facts { needs: &self.table.needs, fleet: &self.fleet, book: &term.book };
            let find = |need, avoid| term.roster.find(need, &facts, avoid);
            let Some((task, need)) = self.queue.pop(|need| find(need, &[]).is_some()) else { break };
            let Some(pending) = self.table.pending(&task) else { continue };
            // Who could not start it gets it again only if nobody else could take it now.
            let another = find(need, self.table.avoid(&task));
            let Some(incarnation) = another.or_else(|| find(need, &[])).cloned() else { continue };
            let held = Held::new(pending.attempt, pending.width, pending.charged > 0);
            let haste = term.roster.haste(&incarnation, &term.book);
            term.book.assign(&incarnation, &task, held, haste);
            // Who has a free slot waits for it; who has not would mostly read a later version of the page.
            let read = self.just_read.take_if(|(read, _)| haste == Haste::Now && *read == task);
            if let Some((_, seen)) = read {
                term.book.carry(&task, seen);
            }
            term.summary.touch();
            // Who has more to do than before takes nothing that it did not take before.
            self.refresh();
        }
    }

    /// Recalls what waits at one worker when another has a free slot and the queue nothing for it: what is stuck there,
    /// or would wait for long.
    pub(super) fn balance(&mut self, now: Instant) {
        let Some(term) = self.term.as_mut().filter(|term| term.is_leading()) else { return };
        if !term.roster.is_slot_free() || term.roster.overfull.is_empty() {
            term.roster.balance_at = None;
            return;
        }
        let due = term.roster.balance_at.replace(now + BALANCE_PACE);
        match due {
            Some(at) if at > now => term.roster.balance_at = Some(at),
            Some(_) => {
                let recalled = self.surplus();
                let Some(term) = &mut self.term else { return };
                term.note_progress();
                for task in recalled {
                    term.book.recall(&task);
                }
            }
            None => term.note_progress(),
        }
    }

    /// What should not wait where it is, the last first.
    fn surplus(&self) -> Vec<TaskId> {
        let Some(Term { roster, book, .. }) = &self.term else { return Vec::new() };
        let free = |(rank, _): &&(Rank, Incarnation)| rank.share < FULL;
        let unused = |(rank, other): &(Rank, Incarnation)| {
            u64::from(rank.slots.0).saturating_sub(book.load(other).map_or(0, |load| load.width))
        };
        let unused: u64 = roster.order.iter().take_while(free).map(unused).sum();
        let mut room = usize::try_from(unused).unwrap_or(usize::MAX);
        let fits = |need: Need| {
            let labels = |other| self.fleet.get(other).map(|registration| &registration.labels);
            let fits = |other| labels(other).is_some_and(|labels| self.table.needs.fits(need, labels));
            roster.order.iter().take_while(free).any(|(_, other)| fits(other))
        };
        // Each need is asked for once, however many tasks have it.
        let mut asked = BTreeMap::new();
        let mut goes = |need: Need| *asked.entry(need).or_insert_with(|| fits(need));
        let mut surplus = Vec::new();
        for incarnation in &roster.overfull {
            let (Some(known), Some(load)) = (roster.known.get(incarnation), book.load(incarnation)) else {
                continue;
            };
            let waiting = load.entries.saturating_sub(known.slots as usize);
            let may = match () {
                () if known.wait(load) >= SHARE_OUT && known.struck != load.struck => {
                    room.min(waiting).max(waiting / 2)
                }
                () if known.wait(load) >= WORTH_IT || known.struck == load.struck => room.min(waiting),
                () => 0,
            };
            // Whatever was recalled before, and is still on its way, has its place there.
            room -= room.min(may);
            for (task, held) in book.entries(incarnation).rev().take(may) {
                let need = self.table.pending(task).map(|pending| pending.need);
                if !held.recalled && !held.is_revoked() && !held.is_ghost() && need.is_some_and(&mut goes) {
                    surplus.push(task.clone());
                }
            }
        }
        surplus
    }
}

impl Term {
    /// How far every overfull page has got by now.
    fn note_progress(&mut self) {
        let Roster { known, overfull, .. } = &mut self.roster;
        for incarnation in overfull.iter() {
            if let (Some(known), Some(load)) = (known.get_mut(incarnation), self.book.load(incarnation)) {
                known.struck = load.struck;
            }
        }
    }
}

/// The tasks on a page, as a burial wants them.
pub fn entries_of(book: &Book, incarnation: &Incarnation) -> Vec<(TaskId, u32, bool)> {
    book.entries(incarnation).map(|(task, held)| (task.clone(), held.attempt, held.is_revoked())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(width: u64) -> Option<Load> {
        Some(Load { width, entries: usize::try_from(width).expect("small"), ..Load::default() })
    }

    fn first(roster: &Roster) -> Option<&str> {
        roster.order.first().map(|(_, incarnation)| incarnation.worker())
    }

    #[test]
    fn the_least_loaded_is_first_and_the_full_are_left_out_until_their_runs_are_known_to_be_short() {
        let (a, b) = (Incarnation::new("a", 1), Incarnation::new("b", 1));
        let mut roster = Roster::default();
        roster.update(&a, 2, load(1));
        roster.update(&b, 4, load(1));
        assert_eq!(first(&roster), Some("b"));
        roster.update(&b, 4, load(3));
        assert_eq!(first(&roster), Some("a"));
        roster.update(&a, 2, load(2));
        roster.update(&b, 4, load(4));
        assert_eq!(first(&roster), None);
        roster.note_run(&a, 1, 1);
        roster.update(&a, 2, load(2));
        assert!(first(&roster) == Some("a") && !roster.is_slot_free());
        roster.update(&b, 4, load(3));
        assert!(first(&roster) == Some("b") && roster.is_slot_free());
        roster.forget(&b);
        assert_eq!(first(&roster), Some("a"));
    }

    #[test]
    fn long_runs_let_nothing_wait() {
        assert_eq!(ahead(8, None), 0);
        assert_eq!((ahead(8, Some(10_000)), ahead(8, Some(4_000_000)), ahead(8, Some(0))), (320, 0, 16_000));
        let mut roster = Roster::default();
        let a = Incarnation::new("a", 1);
        roster.update(&a, 8, load(0));
        for _ in 0..40 {
            roster.note_run(&a, 0, 1);
        }
        assert_eq!(roster.known[&a].cost_us, Some(OVERHEAD_US));
        roster.note_run(&a, 60_000, 1);
        assert!(ahead(8, roster.known[&a].cost_us) == 0, "one long run is enough");
    }

    #[test]
    fn a_chunk_takes_up_as_many_slots_as_it_has_commands() {
        let mut roster = Roster::default();
        let a = Incarnation::new("a", 1);
        roster.update(&a, 8, load(0));
        roster.note_run(&a, 50, 100);
        // 100 commands, 8 at once, in 50 ms: 4 ms each.
        assert_eq!(roster.known[&a].cost_us, Some(4_000 + OVERHEAD_US));
    }
}
