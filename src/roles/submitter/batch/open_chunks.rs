//! Open chunks: reads lines ahead, puts them together to chunks, and keeps each chunk until it is known to exist.
//! Bookkeeping only: it makes no calls.

use std::collections::{BTreeMap, BTreeSet};

use crate::contract::LINES_PER_PART;
use crate::machine::BatchLine;

/// Bytes of open lines beyond which no more are asked for.
pub const MAX_OPEN_BYTES: usize = 8 * 1024 * 1024;

/// Lines that are asked for at a time, and the number of open units below which more are asked for: enough that calls
/// need not wait for lines.
pub const READ_AHEAD: usize = 1_024;

/// The chunks that were read and are not known to exist.
#[derive(Debug)]
pub struct OpenChunks {
    source: Source,
    /// How many lines of the file, blank ones included, are a unit.
    size: u64,
    /// The unit whose lines are being read.
    filling: Option<(u64, Vec<String>)>,
    /// Units that were read and whose chunks are not known to exist.
    open: BTreeMap<u64, Open>,
    bytes: usize,
    /// Those of them that are not being created.
    unsent: BTreeSet<u64>,
}

/// Where lines come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Idle,
    Asked,
    Dry,
}

#[derive(Debug)]
struct Open {
    /// Blank lines keep the indexes of those that follow.
    commands: Vec<String>,
    /// Creates whose answer was lost.
    doubts: u32,
    /// It changed before its creation was acknowledged.
    changed: bool,
}

impl Open {
    fn bytes(&self) -> usize {
        self.commands.iter().map(String::len).sum()
    }

    /// The indexes of lines that are not blank.
    fn positions(&self) -> impl Iterator<Item = u64> {
        (0..).zip(&self.commands).filter(|(_, text)| !text.is_empty()).map(|(position, _)| position)
    }
}

/// A chunk that is known to exist.
#[derive(Debug)]
pub struct Made {
    /// The lines of it that have something on them.
    pub lines: Vec<u64>,
    /// A request for it may yet be carried out.
    pub doubt: bool,
    /// It changed meanwhile.
    pub changed: bool,
}

impl OpenChunks {
    /// No chunks yet; each will have so many lines.
    pub fn new(size: u64) -> OpenChunks {
        OpenChunks {
            source: Source::Idle,
            size,
            filling: None,
            open: BTreeMap::new(),
            bytes: 0,
            unsent: BTreeSet::new(),
        }
    }

    /// Whether more lines shall be read; they are on their way then.
    pub fn asks_for_lines(&mut self) -> bool {
        let room = self.open.len() < READ_AHEAD && self.bytes < MAX_OPEN_BYTES;
        let asks = self.source == Source::Idle && room;
        if asks {
            self.source = Source::Asked;
        }
        asks
    }

    /// Takes in lines; gives the units that are open by them. Those without any line don't occur.
    pub fn on_lines(&mut self, lines: Vec<BatchLine>) -> Vec<u64> {
        if self.source == Source::Dry {
            return Vec::new();
        }
        self.source = if lines.len() < READ_AHEAD { Source::Dry } else { Source::Idle };
        let mut complete = Vec::new();
        for BatchLine { number, text } in lines {
            let (unit, position) = (number / self.size, number % self.size);
            complete.extend(self.filling.take_if(|(filling, _)| *filling != unit));
            let (_, commands) = self.filling.get_or_insert_with(|| (unit, Vec::new()));
            commands.resize(usize::try_from(position).unwrap_or(0), String::new());
            commands.push(text);
        }
        if self.source == Source::Dry {
            complete.extend(self.filling.take());
        }
        complete.into_iter().map(|(unit, commands)| self.open(unit, commands)).collect()
    }

    fn open(&mut self, unit: u64, commands: Vec<String>) -> u64 {
        let open = Open { commands, doubts: 0, changed: false };
        self.bytes += open.bytes();
        self.open.insert(unit, open);
        self.unsent.insert(unit);
        unit
    }

    /// The next unit to be created, in order: what cannot be created yet holds up only what comes after it.
    pub fn next(&self) -> Option<u64> {
        self.unsent.first().copied()
    }

    /// The unit is being created, or compared.
    pub fn begin(&mut self, unit: u64) {
        self.unsent.remove(&unit);
    }

    /// What an open unit runs.
    pub fn commands(&self, unit: u64) -> Option<&[String]> {
        self.open.get(&unit).map(|open| open.commands.as_slice())
    }

    /// The unit has to be created (again).
    pub fn again(&mut self, unit: u64) {
        self.unsent.insert(unit);
    }

    /// A creation is in doubt.
    pub fn doubt(&mut self, unit: u64) {
        if let Some(open) = self.open.get_mut(&unit) {
            open.doubts += 1;
        }
    }

    /// Its chunk changed; false if it is not open.
    pub fn changed(&mut self, unit: u64) -> bool {
        self.open.get_mut(&unit).map(|open| open.changed = true).is_some()
    }

    /// The watch on the part is set. A chunk whose create is under way may exist by now, and have results that the
    /// watch did not see.
    pub fn watched(&mut self, part: u64) {
        let units = part * LINES_PER_PART..(part + 1) * LINES_PER_PART;
        for (_, open) in self.open.range_mut(units).filter(|(unit, _)| !self.unsent.contains(unit)) {
            open.changed = true;
        }
    }

    /// The chunk exists, for certain; `before` says that it did so before our last request.
    pub fn created(&mut self, unit: u64, before: bool) -> Option<Made> {
        let open = self.open.remove(&unit)?;
        self.bytes -= open.bytes();
        // If only one request was in doubt, it was the one that created the chunk, and cannot create it again.
        let doubt = if before { open.doubts != 1 } else { open.doubts > 0 };
        let lines = open.positions().map(|position| unit * self.size + position).collect();
        Some(Made { lines, doubt, changed: before || open.changed })
    }

    /// The chunk does not exist, and never will.
    pub fn drop(&mut self, unit: u64) {
        self.open.remove(&unit);
    }

    /// A new connection: nothing is in flight.
    pub fn on_connected(&mut self) {
        self.unsent = self.open.keys().copied().collect();
    }

    /// Creates nothing more, except for chunks that may exist already. Returns how many lines these have.
    pub fn stop(&mut self) -> u64 {
        self.source = Source::Dry;
        let unsent = &self.unsent;
        self.open.retain(|unit, open| open.doubts > 0 || !unsent.contains(unit));
        self.unsent.retain(|unit| self.open.contains_key(unit));
        self.bytes = self.open.values().map(Open::bytes).sum();
        self.open.values().map(|open| open.positions().count() as u64).sum()
    }

    /// Whether all chunks are known to exist.
    pub fn is_done(&self) -> bool {
        self.source == Source::Dry && self.open.is_empty()
    }

    /// Whether there are chunks that may or may not exist.
    pub fn is_uncertain(&self) -> bool {
        self.open.iter().any(|(unit, open)| open.doubts > 0 || !self.unsent.contains(unit))
    }

    /// How many units are open.
    pub fn open_count(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_positions_and_no_chunk_is_blank() {
        let mut open_chunks = OpenChunks::new(4);
        let line = |number: u64| BatchLine { number, text: format!("echo {number}") };
        assert_eq!(open_chunks.on_lines([1, 3, 12, 16].map(line).into()), [0, 3, 4]);
        let commands = |unit| open_chunks.commands(unit).expect("open").to_vec();
        assert_eq!(commands(0), ["", "echo 1", "", "echo 3"]);
        assert_eq!((commands(3), commands(4)), (vec!["echo 12".to_string()], vec!["echo 16".to_string()]));
        assert_eq!((open_chunks.bytes, open_chunks.filling.is_none()), (26, true));
        let lines = [0, 3, 4].map(|unit| open_chunks.created(unit, false).expect("open").lines);
        assert_eq!((lines, open_chunks.bytes), ([vec![1, 3], vec![12], vec![16]], 0));
    }
}
