//! How much each worker has to do, and which has the least to do for its slots.
//!
//! A worker whose slots are all taken gets more only if its runs are so short that what waits there is soon started,
//! so that its slots need not wait for a round trip between two tasks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::workers::Workers;
use crate::contract::Incarnation;
use crate::contract::worker::MAX_ENTRIES;
use crate::machine::Instant;
use crate::recipes::assignment::{AssignmentTable, Load, Urgency};
use crate::recipes::queue::{Need, Needs};

/// An entry that waits for less than this at a worker is not worth a recall.
pub(super) const WORTH_IT: Duration = Duration::from_millis(100);

/// How long a slot is free before it gets work that waits elsewhere. A worker where nothing has ended for as long makes
/// no progress.
pub(super) const BALANCE_PACE: Duration = Duration::from_millis(150);

/// Work that waits at a worker should start within this time.
const PREFETCH: Duration = Duration::from_millis(400);

/// Most entries that wait at a worker, whatever is known of how long its runs take.
const MAX_PREFETCH: usize = 512;

/// The time that a command costs a worker besides its run, in µs.
const OVERHEAD_US: u64 = 200;

/// The weight of the last run in the average duration of runs: 1 in so many.
const MEMORY: u64 = 8;

/// All of a worker's slots are taken: [`Rank::share`] is at least this.
pub(super) const FULL: u64 = 1 << 20;

/// The rank of a worker among those that could take a task. The least goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// What it has to do, in parts of its slots.
    pub share: u64,
    /// Of equals, the one with more slots.
    pub slots: Reverse<u32>,
}

/// What is known of a registered worker.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WorkerLoad {
    /// Those that it can use now: all of them, if its starts work.
    pub slots: u32,
    /// How many it has, so that so many may have been started before.
    all_slots: u32,
    /// Its rank among those that can take more, if it can.
    rank: Option<Rank>,
    /// How long a command keeps a slot, in µs, once one was seen.
    pub cost_us: Option<u64>,
    /// When something was last known to have ended there.
    ran_at: Instant,
    /// It gets more entries than it has slots, from half of what may wait to all of it, so that many go in one write.
    filling: bool,
}

impl WorkerLoad {
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

    /// Whether the last entry that waits there probably starts soon.
    pub fn makes_progress(&self, load: Load, now: Instant) -> bool {
        let waiting = load.width.saturating_sub(u64::from(self.slots));
        let us = waiting.saturating_mul(self.cost_us.unwrap_or(0)) / u64::from(self.slots.max(1));
        Duration::from_micros(us) < WORTH_IT && now.since(self.ran_at) < BALANCE_PACE
    }
}

/// The workers that could take more, the least loaded first.
#[derive(Debug, Default)]
pub struct WorkerLoads {
    pub(super) known: BTreeMap<Incarnation, WorkerLoad>,
    pub(super) order: BTreeSet<(Rank, Incarnation)>,
    /// Those that have more than their slots.
    pub(super) overfull: BTreeSet<Incarnation>,
    /// This one gets only tasks that run alone.
    pub(super) reserved: Option<Incarnation>,
}

impl WorkerLoads {
    /// How many slots the incarnation had when it was last seen alive.
    pub fn slots(&self, incarnation: &Incarnation) -> Option<u32> {
        self.known.get(incarnation).map(|known| known.all_slots)
    }

    /// How many slots the incarnation can use, and how long a command keeps one, once one was seen.
    pub fn pace_of(&self, incarnation: &Incarnation) -> (u32, Option<Duration>) {
        let known = self.known.get(incarnation);
        (
            known.map_or(1, |known| known.slots),
            known.and_then(|known| known.cost_us).map(Duration::from_micros),
        )
    }

    /// Forgets an incarnation that is dead.
    pub fn forget(&mut self, incarnation: &Incarnation) {
        self.rank(incarnation, None);
        self.known.remove(incarnation);
        self.overfull.remove(incarnation);
    }

    /// Gives the incarnation its rank, or none.
    pub(super) fn rank(&mut self, incarnation: &Incarnation, rank: Option<Rank>) {
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

    /// The incarnation lives, can use so many of its slots, and has so much to do; `None` if it takes nothing now.
    pub(super) fn update(
        &mut self,
        incarnation: &Incarnation,
        (slots, all_slots): (u32, u32),
        load: Option<Load>,
    ) {
        let known = self.known.entry(incarnation.clone()).or_default();
        (known.slots, known.all_slots) = (slots, all_slots);
        if let Some(load) = load {
            known.fill(load);
        }
        // Where starts fail nothing is to wait: it would have to be moved.
        let filling = known.filling && slots >= known.all_slots;
        let is_reserved = self.is_reserved(incarnation);
        let takes = |load: &Load| {
            let free = load.width < u64::from(slots) || filling;
            load.alone == 0 && free && (!is_reserved || load.width == 0)
        };
        let share = |load: Load| load.width.saturating_mul(FULL) / u64::from(slots.max(1));
        let rank = load.filter(takes).map(|load| Rank { share: share(load), slots: Reverse(slots) });
        if load.is_some_and(|load| load.width > u64::from(slots)) {
            self.overfull.insert(incarnation.clone());
        } else {
            self.overfull.remove(incarnation);
        }
        self.rank(incarnation, rank);
    }

    /// Notes that a task of `width` commands ran there for `ran_ms`.
    pub fn note_run(&mut self, incarnation: &Incarnation, ran_ms: u64, width: u32, now: Instant) {
        let Some(known) = self.known.get_mut(incarnation) else { return };
        known.ran_at = now;
        let width = u64::from(width.max(1));
        let at_once = u64::from(known.slots).min(width).max(1);
        let cost = ran_ms.saturating_mul(1_000).saturating_mul(at_once) / width + OVERHEAD_US;
        known.cost_us = Some(match known.cost_us {
            None => cost,
            Some(before) => (before * (MEMORY - 1)).saturating_add(cost) / MEMORY,
        });
    }

    /// How soon a worker has to learn of one more task.
    pub(super) fn urgency(&self, incarnation: &Incarnation, assignments: &AssignmentTable) -> Urgency {
        let (Some(known), Some(load)) = (self.known.get(incarnation), assignments.load(incarnation)) else {
            return Urgency::Now;
        };
        if load.width > u64::from(known.slots) { Urgency::Soon } else { Urgency::Now }
    }

    /// Whether the incarnation gets nothing but what is to run alone.
    pub fn is_reserved(&self, incarnation: &Incarnation) -> bool {
        self.reserved.as_ref() == Some(incarnation)
    }

    /// Whether some worker has a slot that nothing is planned for.
    pub(super) fn is_slot_free(&self) -> bool {
        self.order.first().is_some_and(|(rank, _)| rank.share < FULL)
    }

    /// The one with the least to do that can take a task with this need, and is not among these.
    pub(super) fn find(
        &self,
        need: Need,
        fitness: &Fitness<'_>,
        avoid: &[Incarnation],
    ) -> Option<&Incarnation> {
        let fits = |(rank, incarnation): &&(Rank, Incarnation)| {
            fitness.fits(*rank, incarnation, need) && !avoid.contains(incarnation)
        };
        self.order.iter().find(fits).map(|(_, incarnation)| incarnation)
    }

    /// Whether this one can take a task with this need.
    pub(super) fn takes(&self, incarnation: &Incarnation, need: Need, fitness: &Fitness<'_>) -> bool {
        let rank = self.known.get(incarnation).and_then(|known| known.rank);
        rank.is_some_and(|rank| fitness.fits(rank, incarnation, need))
    }
}

/// The facts that say, besides its rank, which tasks a worker can take.
pub(super) struct Fitness<'a> {
    pub reserved: Option<&'a Incarnation>,
    pub needs: &'a Needs,
    pub workers: &'a Workers,
    pub assignments: &'a AssignmentTable,
}

impl Fitness<'_> {
    /// Whether a worker of this rank can take a task with this need.
    fn fits(&self, rank: Rank, incarnation: &Incarnation, need: Need) -> bool {
        let free = rank.share < FULL;
        let Some(registration) = self.workers.get(incarnation) else { return false };
        let load = self.assignments.load(incarnation).unwrap_or_default();
        (free || !(need.suspect || need.prompt))
            && !(need.suspect && load.suspects > 0)
            && (if need.is_alone() { load.width == 0 } else { self.reserved != Some(incarnation) })
            && self.needs.fits(need, &registration.labels)
    }
}

/// How many commands may wait at a worker, beyond its slots.
fn ahead(slots: u32, cost_us: Option<u64>) -> u64 {
    let Some(cost) = cost_us else { return 0 };
    let within = u64::try_from(PREFETCH.as_micros()).unwrap_or(u64::MAX);
    u64::from(slots).saturating_mul(within) / cost.max(OVERHEAD_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(width: u64) -> Option<Load> {
        Some(Load { width, entries: usize::try_from(width).expect("small"), ..Load::default() })
    }

    fn first(loads: &WorkerLoads) -> Option<&str> {
        loads.order.first().map(|(_, incarnation)| incarnation.worker())
    }

    #[test]
    fn least_loaded_first_and_full_workers_only_for_short_runs() {
        let (a, b) = (Incarnation::new("a", 1), Incarnation::new("b", 1));
        let mut loads = WorkerLoads::default();
        loads.update(&a, (2, 2), load(1));
        loads.update(&b, (4, 4), load(1));
        assert_eq!(first(&loads), Some("b"));
        loads.update(&b, (4, 4), load(3));
        assert_eq!(first(&loads), Some("a"));
        loads.update(&a, (2, 2), load(2));
        loads.update(&b, (4, 4), load(4));
        assert_eq!(first(&loads), None);
        loads.note_run(&a, 1, 1, Instant::default());
        loads.update(&a, (2, 2), load(2));
        assert!(first(&loads) == Some("a") && !loads.is_slot_free());
        loads.update(&b, (4, 4), load(3));
        assert!(first(&loads) == Some("b") && loads.is_slot_free());
        loads.forget(&b);
        assert_eq!(first(&loads), Some("a"));
    }

    #[test]
    fn long_runs_let_nothing_wait() {
        assert_eq!(ahead(8, None), 0);
        assert_eq!((ahead(8, Some(10_000)), ahead(8, Some(4_000_000)), ahead(8, Some(0))), (320, 0, 16_000));
        let mut loads = WorkerLoads::default();
        let a = Incarnation::new("a", 1);
        loads.update(&a, (8, 8), load(0));
        for _ in 0..40 {
            loads.note_run(&a, 0, 1, Instant::default());
        }
        assert_eq!(loads.known[&a].cost_us, Some(OVERHEAD_US));
        loads.note_run(&a, 60_000, 1, Instant::default());
        assert!(ahead(8, loads.known[&a].cost_us) == 0, "one long run is enough");
    }

    #[test]
    fn a_chunk_takes_up_as_many_slots_as_it_has_commands() {
        let mut loads = WorkerLoads::default();
        let a = Incarnation::new("a", 1);
        loads.update(&a, (8, 8), load(0));
        loads.note_run(&a, 50, 100, Instant::default());
        // 100 commands, 8 at once, in 50 ms: 4 ms each.
        assert_eq!(loads.known[&a].cost_us, Some(4_000 + OVERHEAD_US));
    }
}
