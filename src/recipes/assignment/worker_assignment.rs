//! One incarnation's assignment as the leader keeps it: its entries in the order in which they are started, what is
//! revoked since which version, and how much all of it is to do. It makes no calls.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::contract::worker::{Assignment, Entry, EntryId, MAX_ENTRIES, MAX_SEEN_IN_ALL, Seen};
use crate::contract::{MAX_TASK_ID_BYTES, TaskId};
use crate::machine::Instant;
use crate::recipes::retry::pause_of_one;

/// What an entry has besides its task's id: names of fields, two numbers, two words.
const ENTRY_OVERHEAD: usize = 128;

/// The most that an entry can have: the longest id, each byte of it escaped.
const ENTRY_BYTES: usize = 2 * MAX_TASK_ID_BYTES + ENTRY_OVERHEAD;

/// The most that an entry of this task can have when it is encoded.
fn encoded_bytes(id: &EntryId) -> usize {
    2 * id.task.as_str().len() + ENTRY_OVERHEAD
}

/// A task on an assignment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Who assigned it.
    origin: Origin,
    /// How many commands it has to run.
    pub width: u32,
    /// What may run beside it.
    pub isolation: Isolation,
    /// Its worker is to release it, unless it was started.
    pub recalled: bool,
    /// Its worker should know this version of its chunk.
    pub recheck: Option<i32>,
    pub(super) revoked: Revoked,
    /// It is over as far as is known, so it takes up no slot.
    pub(super) presumed_done: bool,
    /// Its worker quarantined it, so it takes up no slot.
    quarantined: bool,
    /// Its number in the order of starts.
    position: u64,
}

/// Which term assigned an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Origin {
    #[default]
    ThisTerm,
    EarlierTerm,
}

/// What may run beside a task on one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Anything.
    #[default]
    Shared,
    /// No other suspect: a worker failed while the task may have run there.
    Suspect,
    /// Nothing: one more worker failure convicts it.
    Alone,
}

impl Held {
    /// An entry of a task that is given out now.
    pub fn new(width: u32, suspect: bool) -> Held {
        let isolation = if suspect { Isolation::Suspect } else { Isolation::Shared };
        Held { width, isolation, ..Held::default() }
    }

    /// An entry that an earlier leader assigned.
    pub(super) fn inherited(revoked: Revoked, recalled: bool, recheck: Option<i32>) -> Held {
        Held { width: 1, origin: Origin::EarlierTerm, revoked, recalled, recheck, ..Held::default() }
    }

    /// Whether an earlier leader assigned it.
    pub fn is_inherited(&self) -> bool {
        self.origin == Origin::EarlierTerm
    }

    /// Whether it is over as far as is known, so that it takes up no slot.
    pub fn is_presumed_done(&self) -> bool {
        self.presumed_done
    }

    /// Whether it is, or is about to be, revoked.
    pub fn is_revoked(&self) -> bool {
        self.revoked != Revoked::No
    }

    fn takes_slots(&self) -> bool {
        !self.presumed_done && !self.quarantined
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Revoked {
    #[default]
    No,
    Wanted,
    InFlight,
    /// In this version of the assignment at the latest.
    Since(i32),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SyncState {
    /// It is to be read.
    #[default]
    Reading,
    Idle,
    Writing,
    Closing,
    /// It may not be written (if it is dirty) or deleted; that is tried again later.
    Refused,
    /// It is no assignment, or may not be read; nobody knows what its incarnation runs.
    Unreadable,
}

/// How much is on an assignment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Commands to run, of all entries that take up slots.
    pub width: u64,
    /// Entries that are not over, as far as is known.
    pub entries: usize,
    /// Those that are suspected of a worker's death.
    pub suspects: usize,
    /// Those beside which nothing else is to run.
    pub alone: usize,
}

/// Whether an assignment has changes that were not written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Changes {
    #[default]
    None,
    /// Some, and nobody waits for them.
    Pending,
    /// Some, and a worker waits for them.
    Urgent,
}

/// What the next version carries along of tasks, and no later one.
#[derive(Debug, Default)]
struct Carried {
    seen: BTreeMap<EntryId, Seen>,
    /// How much that is, with what was removed again.
    bytes: usize,
}

/// Positions of entries, which only grow.
#[derive(Debug, Default)]
struct Positions {
    last: u64,
    /// The last one in the version that the ensemble has, and in the one that is being written.
    written: u64,
    sent: u64,
    /// Whether the latter version has entries that the former has not.
    grows: bool,
}

/// What was refused since a write last passed.
#[derive(Debug, Default)]
struct Refusals {
    count: u32,
    /// A write that would have added entries was refused.
    of_growth: bool,
    /// A deletion was refused.
    of_deletion: bool,
}

/// One incarnation's assignment.
#[derive(Debug, Default)]
pub(super) struct WorkerAssignment {
    pub version: i32,
    entries: BTreeMap<EntryId, Held>,
    order: BTreeMap<u64, EntryId>,
    carried: Carried,
    /// The most that the entries can have when they are encoded, without what is carried along.
    pub bytes: usize,
    positions: Positions,
    refusals: Refusals,
    load: Load,
    pub state: SyncState,
    /// When it is to be read or written, if it is.
    pub due: Option<Instant>,
    /// Whether what is in memory differs from what was written.
    pub changes: Changes,
    /// It carries our epoch, so memory is newer than what the ensemble has.
    pub ours: bool,
}

impl WorkerAssignment {
    pub fn load(&self) -> Load {
        self.load
    }

    /// Whether entries may be added now.
    pub fn is_open(&self) -> bool {
        match self.state {
            SyncState::Idle => true,
            // What was refused has to pass first.
            SyncState::Writing => !self.was_refused(),
            SyncState::Reading | SyncState::Closing | SyncState::Refused | SyncState::Unreadable => false,
        }
    }

    pub fn get(&self, task: &EntryId) -> Option<&Held> {
        self.entries.get(task)
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether it has changes that were not written.
    pub fn is_dirty(&self) -> bool {
        self.changes != Changes::None
    }

    /// It has changes, which nobody waits for.
    pub fn set_dirty(&mut self) {
        self.changes = self.changes.max(Changes::Pending);
    }

    /// Whether one more entry would leave it within this many bytes, or it is the only one.
    pub fn has_room(&self, max_bytes: usize) -> bool {
        self.is_empty() || (self.entries.len() < MAX_ENTRIES && self.bytes + ENTRY_BYTES <= max_bytes)
    }

    /// The entries in the order in which they are started.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = (&EntryId, &Held)> {
        self.order.values().filter_map(|task| self.entries.get_key_value(task))
    }

    /// Puts an entry at the end.
    pub fn push(&mut self, task: EntryId, held: Held) {
        self.remove(&task);
        self.positions.last += 1;
        let held = Held { position: self.positions.last, ..held };
        self.order.insert(held.position, task.clone());
        self.count(&held, true);
        self.bytes += encoded_bytes(&task);
        self.entries.insert(task, held);
    }

    /// Puts an entry at the end that the ensemble already has.
    pub fn push_written(&mut self, task: EntryId, held: Held) {
        self.push(task, held);
        self.positions.written = self.positions.last;
    }

    /// The next version carries along what was read of the task of an entry, if there is room for it.
    pub fn carry(&mut self, task: &EntryId, seen: Seen) {
        if self.carried.bytes + seen.data.len() <= MAX_SEEN_IN_ALL {
            self.carried.bytes += seen.data.len();
            self.carried.seen.insert(task.clone(), seen);
        }
    }

    /// Takes an entry off.
    pub fn remove(&mut self, task: &EntryId) -> Option<Held> {
        let held = self.entries.remove(task)?;
        self.order.remove(&held.position);
        self.carried.seen.remove(task);
        self.bytes -= encoded_bytes(task);
        self.count(&held, false);
        Some(held)
    }

    /// Takes all off.
    pub fn take_all(&mut self) -> Vec<EntryId> {
        self.load = Load::default();
        self.entries.clear();
        self.carried.seen.clear();
        self.bytes = 0;
        std::mem::take(&mut self.order).into_values().collect()
    }

    fn count(&mut self, held: &Held, adds: bool) {
        let (width, suspects, alone) = match held.takes_slots() {
            true => (
                u64::from(held.width),
                usize::from(held.isolation != Isolation::Shared),
                usize::from(held.isolation == Isolation::Alone),
            ),
            false => (0, 0, 0),
        };
        let entries = usize::from(!held.presumed_done);
        if adds {
            self.load.width += width;
            self.load.suspects += suspects;
            self.load.alone += alone;
            self.load.entries += entries;
        } else {
            self.load.width -= width;
            self.load.suspects -= suspects;
            self.load.alone -= alone;
            self.load.entries -= entries;
        }
    }

    /// Changes an entry; whether that made a difference.
    pub fn change(&mut self, task: &EntryId, change: impl FnOnce(&mut Held)) -> bool {
        let Some(before) = self.entries.get(task).copied() else { return false };
        let mut after = before;
        change(&mut after);
        if after == before {
            return false;
        }
        self.count(&before, false);
        self.count(&after, true);
        self.entries.insert(task.clone(), after);
        true
    }

    /// The worker quarantined these tasks and no others; whether that is new.
    pub fn set_quarantined(&mut self, quarantined: &[TaskId]) -> bool {
        let is_other = |(id, held): &(&EntryId, &Held)| held.quarantined != quarantined.contains(&id.task);
        let others: Vec<EntryId> = self.entries.iter().filter(is_other).map(|(id, _)| id.clone()).collect();
        for id in &others {
            self.change(id, |held| held.quarantined = !held.quarantined);
        }
        !others.is_empty()
    }

    /// What was revoked up to this version is dead: those entries.
    pub fn dead_through(&self, through: i32) -> Vec<EntryId> {
        let dead = |held: &Held| matches!(held.revoked, Revoked::Since(version) if version <= through);
        let dead = self.entries.iter().filter(|(_, held)| dead(held));
        dead.map(|(id, _)| id.clone()).collect()
    }

    fn restate(&mut self, from: Revoked, to: Revoked) {
        for held in self.entries.values_mut().filter(|held| held.revoked == from) {
            held.revoked = to;
        }
    }

    /// The data to write; the assignment is then clean and being written.
    pub fn write(&mut self, epoch: i64) -> Vec<u8> {
        self.changes = Changes::None;
        self.state = SyncState::Writing;
        self.positions.sent = self.positions.last;
        self.positions.grows = self.order.range(self.positions.written + 1..).next().is_some();
        let mut seen = std::mem::take(&mut self.carried).seen;
        self.restate(Revoked::Wanted, Revoked::InFlight);
        let entry = |(id, held): (&EntryId, &Held)| Entry {
            task: id.task.clone(),
            attempt: id.attempt,
            revoked: held.is_revoked(),
            recalled: held.recalled,
            recheck: held.recheck,
            seen: seen.remove(id),
        };
        Assignment::new(epoch, self.entries().map(entry).collect()).encode()
    }

    /// The last write was applied; whether that ends a time in which it was refused. An assignment that was refused
    /// when it was to grow may pass as it is, and be refused again: only one that grows shows it. Of one that was to be
    /// deleted no write shows it.
    pub fn sent(&mut self, version: i32) -> bool {
        self.state = SyncState::Idle;
        self.version = version;
        self.ours = true;
        self.restate(Revoked::InFlight, Revoked::Since(version));
        self.positions.written = self.positions.sent;
        let shows = !self.refusals.of_deletion && (self.positions.grows || !self.refusals.of_growth);
        let is_over = self.was_refused() && shows;
        if is_over {
            self.refusals = Refusals::default();
        }
        is_over
    }

    /// The last write was not applied.
    pub fn set_unsent(&mut self) {
        self.changes = Changes::Urgent;
        self.restate(Revoked::InFlight, Revoked::Wanted);
    }

    /// The last write was refused. Entries that were never written are removed, so that others can have them.
    pub fn unsend(&mut self) -> Vec<EntryId> {
        self.set_unsent();
        self.refusals.of_growth |= self.positions.grows;
        let unsent: Vec<EntryId> =
            self.order.range(self.positions.written + 1..).map(|(_, task)| task.clone()).collect();
        for task in &unsent {
            self.remove(task);
        }
        unsent
    }

    /// It may not be deleted; for how long it is to be left alone.
    pub fn refuse_deletion(&mut self) -> Duration {
        self.refusals.of_deletion = true;
        self.refuse(SyncState::Refused)
    }

    /// Something was refused; for how long it is to be left alone.
    pub fn refuse(&mut self, state: SyncState) -> Duration {
        self.state = state;
        self.refusals.count = self.refusals.count.saturating_add(1);
        pause_of_one(self.refusals.count)
    }

    /// Whether it was refused once since it last passed.
    pub fn is_refused_anew(&self) -> bool {
        self.refusals.count == 1
    }

    /// Whether it was refused since it last passed.
    pub fn was_refused(&self) -> bool {
        self.refusals.count > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> EntryId {
        EntryId::new(&TaskId::new("j", name), 1)
    }

    #[test]
    fn entries_keep_their_order_and_the_load_what_takes_up_slots() {
        let mut assignment = WorkerAssignment::default();
        for (name, width) in [("z", 1), ("m", 100), ("a", 1)] {
            assignment.push(id(name), Held::new(width, name == "a"));
        }
        let order: Vec<_> = assignment.entries().map(|(id, _)| id.task.to_string()).collect();
        assert_eq!(order, ["j/z", "j/m", "j/a"]);
        assert_eq!(assignment.load(), Load { width: 102, entries: 3, suspects: 1, alone: 0 });
        assert!(assignment.set_quarantined(&[id("m").task]) && !assignment.set_quarantined(&[id("m").task]));
        let done = |held: &mut Held| held.presumed_done = true;
        assert!(assignment.change(&id("a"), done) && !assignment.change(&id("a"), done));
        assert_eq!(assignment.load(), Load { width: 1, entries: 2, suspects: 0, alone: 0 });
        let smaller = |held: &mut Held| (held.width, held.isolation) = (40, Isolation::Suspect);
        assert!(assignment.set_quarantined(&[]) && assignment.change(&id("m"), smaller));
        assert_eq!(assignment.load(), Load { width: 41, entries: 2, suspects: 1, alone: 0 });
        assignment.remove(&id("m"));
        assert_eq!(assignment.load(), Load { width: 1, entries: 1, suspects: 0, alone: 0 });
        assignment.remove(&id("a"));
        assert_eq!(assignment.load(), Load { width: 1, entries: 1, suspects: 0, alone: 0 }, "it was no load");
        assert_eq!((assignment.take_all().len(), assignment.load()), (1, Load::default()));
    }

    #[test]
    fn copies_go_along_once_while_they_fit_and_their_entry_exists() {
        let mut assignment = WorkerAssignment::default();
        let seen = |assignment: &mut WorkerAssignment| {
            let written = Assignment::decode(&assignment.write(7)).expect("an assignment");
            written.entries.into_iter().filter(|entry| entry.seen.is_some()).count()
        };
        let data = "x".repeat(MAX_SEEN_IN_ALL / 4);
        for name in ["a", "b", "c", "d", "e"] {
            assignment.push(id(name), Held::new(1, false));
            assignment.carry(&id(name), Seen { data: data.clone(), version: 0, mzxid: 1 });
        }
        assignment.remove(&id("a"));
        assignment.push(id("a"), Held::new(1, false));
        assert_eq!((seen(&mut assignment), seen(&mut assignment)), (3, 0));
        assignment.carry(&id("e"), Seen { data, version: 0, mzxid: 1 });
        assert_eq!(seen(&mut assignment), 1, "there is room again");
    }

    #[test]
    fn what_was_revoked_while_a_write_is_on_its_way_is_not_in_it() {
        let mut assignment = WorkerAssignment::default();
        assignment.push(id("a"), Held::new(1, false));
        assignment.push(id("b"), Held::new(1, false));
        let revoke = |held: &mut Held| held.revoked = Revoked::Wanted;
        assert!(assignment.change(&id("a"), revoke));
        assignment.write(7);
        assert!(assignment.change(&id("b"), revoke));
        assignment.sent(5);
        assert_eq!(assignment.dead_through(4), []);
        assert_eq!(assignment.dead_through(9), [id("a")]);
        assignment.write(7);
        assignment.set_unsent();
        assignment.write(7);
        assignment.sent(9);
        assert_eq!(assignment.dead_through(9), [id("a"), id("b")]);
    }
}
