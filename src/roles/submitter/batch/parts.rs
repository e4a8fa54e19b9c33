//! The parts of a batch (one directory each), and which of their chunks have no outcome yet.
//!
//! Bookkeeping only: it makes no calls. A part is *watched* on a connection when it exists and its persistent watch is
//! set. Chunks are created and read in watched parts only, so no change is missed between a read and the watch.

use std::collections::{BTreeMap, BTreeSet};

use crate::contract::LINES_PER_PART;

#[derive(Debug, Default)]
struct Part {
    /// It exists and has our defaults.
    made: bool,
    watched: bool,
    /// How many of its lines were created for certain, each counted once.
    created: u64,
}

/// A chunk that exists.
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
    /// Those of them that have to be created or watched.
    unwatched: BTreeSet<u64>,
    /// Parts whose chunks were all created and that are not marked as complete; true while that is under way.
    created: BTreeMap<u64, bool>,
    /// Chunks that exist and whose outcome was not seen.
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
            self.unwatched.insert(part);
            Part::default()
        });
    }

    /// A new connection: no watch is set.
    pub fn on_connected(&mut self) {
        self.created.values_mut().for_each(|saying| *saying = false);
        self.parts.values_mut().for_each(|part| part.watched = false);
        self.unwatched = self.parts.keys().copied().collect();
        self.unread.clear();
    }

    /// The next part to be watched, and whether it exists already.
    pub fn next_unwatched(&mut self) -> Option<(u64, bool)> {
        let number = self.unwatched.pop_first()?;
        Some((number, self.parts.get(&number)?.made))
    }

    /// The part exists with our defaults.
    pub fn made(&mut self, part: u64) {
        if let Some(part) = self.parts.get_mut(&part) {
            part.made = true;
        }
    }

    /// The part does not exist, or has to be tried again.
    pub fn unmade(&mut self, number: u64) {
        if let Some(part) = self.parts.get_mut(&number) {
            (part.made, part.watched) = (false, false);
            self.unwatched.insert(number);
        }
    }

    /// The watch on the part is set. Changes before it were not reported, so its chunks have to be read.
    pub fn watched_now(&mut self, number: u64) {
        if let Some(part) = self.parts.get_mut(&number) {
            part.watched = true;
            let units = number * LINES_PER_PART..(number + 1) * LINES_PER_PART;
            self.unread.extend(self.pending.range(units).map(|(unit, _)| *unit));
        }
    }

    /// A chunk with so many commands was created; its part has so many lines in all.
    pub fn count_created(&mut self, unit: u64, commands: u16, lines: u64) {
        let number = part_of(unit);
        if let Some(part) = self.parts.get_mut(&number) {
            part.created += u64::from(commands);
            if part.created == lines {
                self.created.insert(number, false);
            }
        }
    }

    /// The next part to mark as complete.
    pub fn next_created(&mut self) -> Option<u64> {
        let (part, saying) = self.created.iter_mut().find(|(_, saying)| !**saying)?;
        *saying = true;
        Some(*part)
    }

    /// The part has to be marked again: somebody else changed it.
    pub fn created_again(&mut self, part: u64) {
        self.created.insert(part, false);
    }

    /// The part is marked as complete, or never will be.
    pub fn completed(&mut self, part: u64) {
        self.created.remove(&part);
    }

    /// Whether no part is left to be marked.
    pub fn are_complete(&self) -> bool {
        self.created.is_empty()
    }

    /// Whether chunks may be created and read in the part.
    pub fn is_watched(&self, part: u64) -> bool {
        self.parts.get(&part).is_some_and(|part| part.watched)
    }

    /// The chunk exists.
    pub fn add(&mut self, unit: u64, chunk: Chunk) {
        self.pending.insert(unit, chunk);
        self.pending_commands += u64::from(chunk.commands);
    }

    /// How many commands the chunk has; nothing if it is not pending.
    pub fn commands(&self, unit: u64) -> Option<u16> {
        self.pending.get(&unit).map(|chunk| chunk.commands)
    }

    /// The chunk has its outcome, or is lost. Returns what is known of it, if it was pending.
    pub fn remove(&mut self, unit: u64) -> Option<Chunk> {
        let chunk = self.pending.remove(&unit)?;
        self.unread.remove(&unit);
        self.pending_commands -= u64::from(chunk.commands);
        Some(chunk)
    }

    /// The chunk has to be read; nothing happens if it is not pending. A part that is not watched yet has all its
    /// chunks read as soon as it is.
    pub fn mark_unread(&mut self, unit: u64) {
        if self.pending.contains_key(&unit) && self.is_watched(part_of(unit)) {
            self.unread.insert(unit);
        }
    }

    /// All pending chunks have to be read.
    pub fn mark_all_unread(&mut self) {
        let is_watched = |unit: &u64| self.is_watched(part_of(*unit));
        self.unread = self.pending.keys().copied().filter(is_watched).collect();
    }

    /// The next chunk to read.
    pub fn next_unread(&mut self) -> Option<u64> {
        self.unread.pop_first()
    }

    /// Chunks that exist and whose outcome was not seen.
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
        assert_eq!(parts.next_unwatched(), Some((1, false)));
        parts.made(1);
        let last = 2 * LINES_PER_PART - 1;
        let [one, many] = [(false, 1), (true, 100)].map(|(doubt, commands)| Chunk { doubt, commands });
        parts.add(LINES_PER_PART, one);
        parts.add(last, many);
        parts.mark_unread(last);
        assert_eq!(parts.next_unread(), None, "not warm");
        parts.watched_now(1);
        assert_eq!([(); 3].map(|()| parts.next_unread()), [Some(LINES_PER_PART), Some(last), None]);
        parts.mark_unread(LINES_PER_PART + 1);
        assert_eq!(parts.next_unread(), None, "not ours");
        assert_eq!((parts.pending_count(), parts.pending_commands()), (2, 101));
        assert_eq!((parts.remove(last), parts.remove(last)), (Some(many), None));
        parts.mark_unread(last);
        assert_eq!((parts.next_unread(), parts.pending_count(), parts.pending_commands()), (None, 1, 1));
        parts.mark_unread(LINES_PER_PART);
        parts.on_connected();
        assert_eq!((parts.next_unread(), parts.next_unwatched()), (None, Some((1, true))));
        parts.watched_now(1);
        assert_eq!((parts.next_unread(), parts.remove(LINES_PER_PART)), (Some(LINES_PER_PART), Some(one)));
    }

    #[test]
    fn a_part_says_that_it_is_complete_and_again_after_a_doubt() {
        let mut parts = Parts::default();
        parts.open(0);
        parts.count_created(0, 3, 5);
        assert_eq!((parts.next_created(), parts.are_complete()), (None, true));
        parts.count_created(1, 2, 5);
        assert_eq!(
            (parts.are_complete(), parts.next_created(), parts.next_created()),
            (false, Some(0), None)
        );
        parts.on_connected();
        assert_eq!((parts.next_created(), parts.next_created()), (Some(0), None));
        parts.created_again(0);
        assert_eq!((parts.next_created(), parts.are_complete()), (Some(0), false));
        parts.completed(0);
        assert!(parts.are_complete());
    }
}
