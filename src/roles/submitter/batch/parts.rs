//! The parts of a batch (one directory each), and which of their chunks stand without an outcome.
//!
//! Bookkeeping alone: it makes no calls. A part is *warm* on a connection when it was made and every change in it will
//! be told; only then are chunks created and read in it, so that no change falls between a read and the watch.

use std::collections::{BTreeMap, BTreeSet};

use crate::contract::LINES_PER_PART;

#[derive(Debug, Default)]
struct Part {
    /// It was seen to stand with our defaults.
    made: bool,
    warm: bool,
    /// How many lines stood in it for certain, each counted once.
    stood: u64,
}

/// A chunk that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its creation was in doubt.
    pub doubt: bool,
    /// How many commands it has.
    pub commands: u16,
}

/// All parts that were begun.
#[derive(Debug, Default)]
pub struct Parts {
    parts: BTreeMap<u64, Part>,
    /// Those of them that have to be made warm.
    cold: BTreeSet<u64>,
    /// Parts of which all chunks stood and that do not say so yet; whether they are about to.
    stood: BTreeMap<u64, bool>,
    /// Chunks that stand and whose outcome was not seen.
    pending: BTreeMap<u64, Chunk>,
    /// Those of them that have to be read.
    unread: BTreeSet<u64>,
    pending_commands: u64,
}

/// The part that a unit is in.
pub fn part_of(unit: u64) -> u64 {
    unit / LINES_PER_PART
}

impl Parts {
    /// Takes up a part, if it is new.
    pub fn open(&mut self, part: u64) {
        self.parts.entry(part).or_insert_with(|| {
            self.cold.insert(part);
            Part::default()
        });
    }

    /// A new connection: no watch stands.
    pub fn all_cold(&mut self) {
        self.stood.values_mut().for_each(|saying| *saying = false);
        self.parts.values_mut().for_each(|part| part.warm = false);
        self.cold = self.parts.keys().copied().collect();
        self.unread.clear();
    }

    /// The next part to be made warm, and whether it was made.
    pub fn next_cold(&mut self) -> Option<(u64, bool)> {
        let number = self.cold.pop_first()?;
        Some((number, self.parts.get(&number)?.made))
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
            (part.made, part.warm) = (false, false);
            self.cold.insert(number);
        }
    }

    /// We will be told of all that happens in the part: what was not told before has to be read.
    pub fn warmed(&mut self, number: u64) {
        if let Some(part) = self.parts.get_mut(&number) {
            part.warm = true;
            let units = number * LINES_PER_PART..(number + 1) * LINES_PER_PART;
            self.unread.extend(self.pending.range(units).map(|(unit, _)| *unit));
        }
    }

    /// So many lines more are known to have stood in the unit's part, which has so many in all.
    pub fn stood(&mut self, unit: u64, commands: u16, lines: u64) {
        let number = part_of(unit);
        if let Some(part) = self.parts.get_mut(&number) {
            part.stood += u64::from(commands);
            if part.stood == lines {
                self.stood.insert(number, false);
            }
        }
    }

    /// The next part that shall say that all its chunks stood.
    pub fn next_stood(&mut self) -> Option<u64> {
        let (part, saying) = self.stood.iter_mut().find(|(_, saying)| !**saying)?;
        *saying = true;
        Some(*part)
    }

    /// It does not say so yet.
    pub fn stood_again(&mut self, part: u64) {
        self.stood.insert(part, false);
    }

    /// It says so, or never will.
    pub fn completed(&mut self, part: u64) {
        self.stood.remove(&part);
    }

    /// Whether no part is left that has to say so.
    pub fn are_complete(&self) -> bool {
        self.stood.is_empty()
    }

    /// Whether chunks may be created and read in the part.
    pub fn is_warm(&self, part: u64) -> bool {
        self.parts.get(&part).is_some_and(|part| part.warm)
    }

    /// The chunk stands.
    pub fn stands(&mut self, unit: u64, chunk: Chunk) {
        self.pending.insert(unit, chunk);
        self.pending_commands += u64::from(chunk.commands);
    }

    /// How many commands the chunk has; nothing if it is not pending.
    pub fn commands(&self, unit: u64) -> Option<u16> {
        self.pending.get(&unit).map(|chunk| chunk.commands)
    }

    /// The chunk is over; tells what is known of it, if it was pending at all.
    pub fn over(&mut self, unit: u64) -> Option<Chunk> {
        let chunk = self.pending.remove(&unit)?;
        self.unread.remove(&unit);
        self.pending_commands -= u64::from(chunk.commands);
        Some(chunk)
    }

    /// The chunk has to be read; nothing happens if it is not pending. All of a part that is not warm are read when it
    /// is.
    pub fn mark_unread(&mut self, unit: u64) {
        if self.pending.contains_key(&unit) && self.is_warm(part_of(unit)) {
            self.unread.insert(unit);
        }
    }

    /// All pending chunks have to be read.
    pub fn mark_all_unread(&mut self) {
        let is_warm = |unit: &u64| self.is_warm(part_of(*unit));
        self.unread = self.pending.keys().copied().filter(is_warm).collect();
    }

    /// The next chunk to read.
    pub fn next_unread(&mut self) -> Option<u64> {
        self.unread.pop_first()
    }

    /// Chunks that stand and whose outcome was not seen.
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// Commands of such chunks.
    pub fn pending_commands(&self) -> u64 {
        self.pending_commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_read_once_for_each_reason_and_over_once() {
        let mut parts = Parts::default();
        parts.open(1);
        assert_eq!(parts.next_cold(), Some((1, false)));
        parts.made(1);
        let last = 2 * LINES_PER_PART - 1;
        let [one, many] = [(false, 1), (true, 100)].map(|(doubt, commands)| Chunk { doubt, commands });
        parts.stands(LINES_PER_PART, one);
        parts.stands(last, many);
        parts.mark_unread(last);
        assert_eq!(parts.next_unread(), None, "not warm");
        parts.warmed(1);
        assert_eq!([(); 3].map(|()| parts.next_unread()), [Some(LINES_PER_PART), Some(last), None]);
        parts.mark_unread(LINES_PER_PART + 1);
        assert_eq!(parts.next_unread(), None, "not ours");
        assert_eq!((parts.pending_count(), parts.pending_commands()), (2, 101));
        assert_eq!((parts.over(last), parts.over(last)), (Some(many), None));
        parts.mark_unread(last);
        assert_eq!((parts.next_unread(), parts.pending_count(), parts.pending_commands()), (None, 1, 1));
        parts.mark_unread(LINES_PER_PART);
        parts.all_cold();
        assert_eq!((parts.next_unread(), parts.next_cold()), (None, Some((1, true))));
        parts.warmed(1);
        assert_eq!((parts.next_unread(), parts.over(LINES_PER_PART)), (Some(LINES_PER_PART), Some(one)));
    }

    #[test]
    fn a_part_says_that_it_is_complete_and_again_after_a_doubt() {
        let mut parts = Parts::default();
        parts.open(0);
        parts.stood(0, 3, 5);
        assert_eq!((parts.next_stood(), parts.are_complete()), (None, true));
        parts.stood(1, 2, 5);
        assert_eq!((parts.are_complete(), parts.next_stood(), parts.next_stood()), (false, Some(0), None));
        parts.all_cold();
        assert_eq!((parts.next_stood(), parts.next_stood()), (Some(0), None));
        parts.stood_again(0);
        assert_eq!((parts.next_stood(), parts.are_complete()), (Some(0), false));
        parts.completed(0);
        assert!(parts.are_complete());
    }
}
