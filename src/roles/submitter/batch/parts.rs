//! The parts of a batch: which of their chunks stand without an outcome, in three bits a chunk and two bytes for its
//! commands.
//!
//! Bookkeeping alone: it makes no calls. A part is *warm* on a connection when it was made and every change in it will
//! be told; only then are chunks created and read in it, so that no change falls between a read and the watch.

use std::collections::{BTreeMap, BTreeSet};

use crate::contract::LINES_PER_PART;

const WORDS: usize = LINES_PER_PART.div_ceil(64) as usize;

/// A set of the units of one part.
#[derive(Clone, Debug)]
struct Bits(Box<[u64; WORDS]>);

impl Bits {
    fn new() -> Bits {
        Bits(Box::new([0; WORDS]))
    }

    fn at(unit: u64) -> (usize, u64) {
        let bit = unit % LINES_PER_PART;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn insert(&mut self, unit: u64) {
        let (word, bit) = Bits::at(unit);
        self.0[word] |= bit;
    }

    fn remove(&mut self, unit: u64) -> bool {
        let (word, bit) = Bits::at(unit);
        let had = self.0[word] & bit != 0;
        self.0[word] &= !bit;
        had
    }

    fn contains(&self, unit: u64) -> bool {
        let (word, bit) = Bits::at(unit);
        self.0[word] & bit != 0
    }

    /// The first one's place within the part.
    fn first(&self) -> Option<u64> {
        let word = self.0.iter().position(|word| *word != 0)?;
        Some(word as u64 * 64 + u64::from(self.0[word].trailing_zeros()))
    }
}

#[derive(Debug)]
struct Part {
    stage: Stage,
    /// It was seen to stand with our defaults.
    made: bool,
    /// How many lines stood in it for certain, each counted once.
    stood: u64,
    /// Tasks that stand and whose outcome was not seen.
    pending: Bits,
    pending_count: u64,
    /// How many commands each chunk has; none where each has one.
    commands: Vec<u16>,
    /// Those of them whose creation was in doubt.
    doubt: Bits,
    /// Those of them that have to be read.
    unread: Bits,
}

/// How far a part is on the present connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Cold,
    Warming,
    Warm,
}

/// All parts that matter still.
#[derive(Debug, Default)]
pub struct Parts {
    parts: BTreeMap<u64, Part>,
    cold: BTreeSet<u64>,
    /// Parts of which all chunks stood, and that do not say so yet.
    stood: BTreeSet<u64>,
    /// Those of them that are about to.
    completing: BTreeSet<u64>,
    /// Parts that may have tasks to read.
    dirty: BTreeSet<u64>,
    /// Parts that may have nothing pending.
    idle: BTreeSet<u64>,
    pending_count: u64,
    pending_commands: u64,
}

/// What is known of a task that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// Its creation was in doubt.
    pub doubt: bool,
    /// How many commands it has.
    pub commands: u16,
}

/// The part that a unit is in.
pub fn part_of(unit: u64) -> u64 {
    unit / LINES_PER_PART
}

fn place_of(unit: u64) -> usize {
    (unit % LINES_PER_PART) as usize
}

impl Parts {
    /// Takes up a part, if it is new.
    pub fn open(&mut self, part: u64) {
        self.parts.entry(part).or_insert_with(|| {
            self.cold.insert(part);
            Part {
                stage: Stage::Cold,
                made: false,
                stood: 0,
                pending: Bits::new(),
                pending_count: 0,
                commands: Vec::new(),
                doubt: Bits::new(),
                unread: Bits::new(),
            }
        });
    }

    /// A new connection: no watch stands.
    pub fn all_cold(&mut self) {
        self.stood.append(&mut self.completing);
        for (number, part) in &mut self.parts {
            part.stage = Stage::Cold;
            self.cold.insert(*number);
        }
    }

    /// The next part to be made warm, and whether it was made.
    pub fn next_cold(&mut self) -> Option<(u64, bool)> {
        let number = self.cold.pop_first()?;
        let part = self.parts.get_mut(&number)?;
        part.stage = Stage::Warming;
        Some((number, part.made))
    }

    /// The part stands with our defaults.
    pub fn made(&mut self, part: u64) {
        if let Some(part) = self.parts.get_mut(&part) {
            part.made = true;
        }
    }

    /// The part is not there (any more), or has to be tried again.
    pub fn unmade(&mut self, number: u64) {
        if let Some(part) = self.parts.get_mut(&number) {
            part.made = false;
            part.stage = Stage::Cold;
            self.cold.insert(number);
        }
    }

    /// We will be told of all that happens in the part: what was not told before has to be read.
    pub fn warmed(&mut self, number: u64) {
        if let Some(part) = self.parts.get_mut(&number) {
            part.stage = Stage::Warm;
            part.unread = part.pending.clone();
            self.dirty.insert(number);
            self.idle.insert(number);
        }
    }

    /// So many lines more are known to have stood in the unit's part, which has so many in all.
    pub fn stood(&mut self, unit: u64, commands: u16, lines: u64) {
        let number = part_of(unit);
        if let Some(part) = self.parts.get_mut(&number) {
            part.stood += u64::from(commands);
            if part.stood == lines {
                self.stood.insert(number);
            }
        }
    }

    /// The next part that shall say that all its chunks stood.
    pub fn next_stood(&mut self) -> Option<u64> {
        let part = self.stood.pop_first()?;
        self.completing.insert(part);
        Some(part)
    }

    /// It does not say so yet.
    pub fn stood_again(&mut self, part: u64) {
        self.completing.remove(&part);
        self.stood.insert(part);
    }

    /// It says so, or never will.
    pub fn completed(&mut self, part: u64) {
        self.completing.remove(&part);
        self.idle.insert(part);
    }

    /// Whether no part is left that has to say so.
    pub fn are_complete(&self) -> bool {
        self.stood.is_empty() && self.completing.is_empty()
    }

    /// Whether tasks may be created and read in the part.
    pub fn is_warm(&self, part: u64) -> bool {
        self.parts.get(&part).is_some_and(|part| part.stage == Stage::Warm)
    }

    /// The task stands, with so many commands.
    pub fn stands(&mut self, unit: u64, doubt: bool, commands: u16) {
        if let Some(part) = self.parts.get_mut(&part_of(unit)) {
            part.pending.insert(unit);
            part.pending_count += 1;
            self.pending_count += 1;
            self.pending_commands += u64::from(commands);
            if commands != 1 && part.commands.is_empty() {
                part.commands = vec![1; LINES_PER_PART as usize];
            }
            if let Some(kept) = part.commands.get_mut(place_of(unit)) {
                *kept = commands;
            }
            if doubt {
                part.doubt.insert(unit);
            }
        }
    }

    /// How many commands the task has; nothing if it is not pending.
    pub fn commands(&self, unit: u64) -> Option<u16> {
        let part = self.parts.get(&part_of(unit)).filter(|part| part.pending.contains(unit))?;
        Some(part.commands.get(place_of(unit)).copied().unwrap_or(1))
    }

    /// The task is over; tells what is known of it, if it was pending at all.
    pub fn over(&mut self, unit: u64) -> Option<Over> {
        let commands = self.commands(unit)?;
        let part = self.parts.get_mut(&part_of(unit))?;
        part.pending.remove(unit);
        part.pending_count -= 1;
        self.pending_count -= 1;
        if part.pending_count == 0 {
            self.idle.insert(part_of(unit));
        }
        self.pending_commands -= u64::from(commands);
        part.unread.remove(unit);
        Some(Over { doubt: part.doubt.remove(unit), commands })
    }

    /// The task has to be read; nothing happens if it is not pending.
    pub fn mark_unread(&mut self, unit: u64) {
        let number = part_of(unit);
        if let Some(part) = self.parts.get_mut(&number)
            && part.pending.contains(unit)
        {
            part.unread.insert(unit);
            self.dirty.insert(number);
        }
    }

    /// All pending tasks have to be read.
    pub fn mark_all_unread(&mut self) {
        for (number, part) in &mut self.parts {
            part.unread = part.pending.clone();
            self.dirty.insert(*number);
        }
    }

    /// The next task to read.
    pub fn next_unread(&mut self) -> Option<u64> {
        while let Some(number) = self.dirty.first().copied() {
            // A part that is not warm comes in again, with all its pending chunks, when it is.
            let part = self.parts.get_mut(&number).filter(|part| part.stage == Stage::Warm);
            if let Some(part) = part
                && let Some(place) = part.unread.first()
            {
                part.unread.remove(place);
                return Some(number * LINES_PER_PART + place);
            }
            self.dirty.remove(&number);
        }
        None
    }

    /// Forgets the parts before this one that have nothing pending.
    pub fn retire(&mut self, before: u64) {
        while let Some(number) = self.idle.first().copied().filter(|number| *number < before) {
            self.idle.remove(&number);
            let part = self.parts.get(&number);
            // A part that is not warm, has something pending again, or has to say that it is complete, comes in again
            // when that has changed.
            let is_completing = self.stood.contains(&number) || self.completing.contains(&number);
            let is_over = part.is_some_and(|part| part.pending_count == 0 && part.stage == Stage::Warm);
            if is_over && !is_completing {
                self.parts.remove(&number);
            }
        }
    }

    /// Tasks that stand and whose outcome was not seen.
    pub fn pending_count(&self) -> u64 {
        self.pending_count
    }

    /// Commands of such tasks.
    pub fn pending_commands(&self) -> u64 {
        self.pending_commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_read_once_for_each_reason_and_over_once() {
        let mut parts = Parts::default();
        parts.open(1);
        assert_eq!(parts.next_cold(), Some((1, false)));
        parts.made(1);
        let last = 2 * LINES_PER_PART - 1;
        parts.stands(LINES_PER_PART, false, 1);
        parts.stands(last, true, 100);
        parts.mark_unread(last);
        assert_eq!(parts.next_unread(), None, "not warm");
        parts.warmed(1);
        let mut read: Vec<_> = std::iter::from_fn(|| parts.next_unread()).collect();
        read.sort_unstable();
        assert_eq!(read, [LINES_PER_PART, last]);
        parts.mark_unread(LINES_PER_PART + 1);
        assert_eq!(parts.next_unread(), None, "not ours");
        assert_eq!((parts.pending_count(), parts.pending_commands()), (2, 101));
        assert_eq!(parts.over(last), Some(Over { doubt: true, commands: 100 }));
        assert_eq!((parts.over(last), parts.pending_commands()), (None, 1));
        parts.mark_unread(last);
        assert_eq!((parts.next_unread(), parts.pending_count()), (None, 1));
        parts.retire(2);
        assert!(parts.is_warm(1), "it has a task");
        assert_eq!(parts.over(LINES_PER_PART), Some(Over { doubt: false, commands: 1 }));
        parts.retire(2);
        assert!(!parts.is_warm(1));
    }

    #[test]
    fn a_part_says_that_it_is_complete_before_it_is_forgotten_and_again_after_a_doubt() {
        let mut parts = Parts::default();
        parts.open(0);
        parts.next_cold();
        parts.made(0);
        parts.warmed(0);
        parts.stood(0, 3, 5);
        assert_eq!((parts.next_stood(), parts.are_complete()), (None, true));
        parts.stood(1, 2, 5);
        assert_eq!((parts.are_complete(), parts.next_stood(), parts.next_stood()), (false, Some(0), None));
        parts.retire(1);
        parts.all_cold();
        assert_eq!((parts.next_stood(), parts.next_cold()), (Some(0), Some((0, true))));
        parts.warmed(0);
        parts.stood_again(0);
        assert_eq!(parts.next_stood(), Some(0));
        parts.retire(1);
        assert!(parts.is_warm(0) && !parts.are_complete());
        parts.completed(0);
        parts.retire(1);
        assert!(!parts.is_warm(0) && parts.are_complete());
    }

    #[test]
    fn a_million_pending_tasks_take_less_than_a_megabyte() {
        let bytes = 3 * size_of::<[u64; WORDS]>() + size_of::<Part>() + 64;
        assert!(bytes as u64 * (1_000_000 / LINES_PER_PART) < 1_000_000);
    }
}
