//! Makes chunks: reads lines ahead, puts them together, and knows which chunks are open, that is, read and not known to
//! stand. Bookkeeping alone: it makes no calls.

use std::collections::{BTreeMap, BTreeSet};

use super::parts::part_of;
use super::units::{Unit, Units};
use crate::contract::LINES_PER_PART;
use crate::contract::task::Payload;
use crate::machine::BatchLine;

/// Creates in flight.
pub const MAX_CREATES: usize = 512;

/// Bytes of open lines beyond which no more are asked for.
pub const MAX_OPEN_BYTES: usize = 8 * 1024 * 1024;

/// Lines that are asked for at a time, and the number of open units below which more are asked for.
pub const READ_AHEAD: usize = 2 * MAX_CREATES;

/// What makes chunks.
#[derive(Debug)]
pub struct Maker {
    source: Source,
    units: Units,
    /// Units that were read and whose chunks are not known to stand.
    open: BTreeMap<u64, Open>,
    bytes: usize,
    /// Those of them that are not being created.
    unsent: BTreeSet<u64>,
    /// Creations and comparisons in flight.
    calls: usize,
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
    payload: Payload,
    commands: u16,
    bytes: usize,
    /// Creations that were in doubt.
    doubts: u32,
    /// It changed before its creation was acknowledged.
    changed: bool,
}

/// A chunk that is known to stand.
#[derive(Debug)]
pub struct Made {
    /// How many lines of it have something on them.
    pub commands: u16,
    payload: Payload,
    /// A request for it may yet be carried out.
    pub doubt: bool,
    /// It changed meanwhile.
    pub changed: bool,
}

impl Made {
    /// The lines of it that have something on them.
    pub fn lines(&self) -> Vec<u64> {
        let Payload::Chunk { first_line, commands } = &self.payload else { return Vec::new() };
        let lines = (*first_line..).zip(commands).filter(|(_, text)| !text.trim().is_empty());
        lines.map(|(line, _)| line).collect()
    }
}

impl Maker {
    /// A maker of chunks of so many lines.
    pub fn new(size: u32) -> Maker {
        Maker {
            source: Source::Idle,
            units: Units::new(size),
            open: BTreeMap::new(),
            bytes: 0,
            unsent: BTreeSet::new(),
            calls: 0,
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

    /// Takes in lines; gives the units that are open by them.
    pub fn on_lines(&mut self, lines: Vec<BatchLine>) -> Vec<u64> {
        if self.source == Source::Dry {
            return Vec::new();
        }
        self.source = if lines.len() < READ_AHEAD { Source::Dry } else { Source::Idle };
        let mut units: Vec<Unit> = lines.into_iter().filter_map(|line| self.units.add(line)).collect();
        if self.source == Source::Dry {
            units.extend(self.units.finish());
        }
        units.into_iter().map(|unit| self.open(unit)).collect()
    }

    fn open(&mut self, unit: Unit) -> u64 {
        let Unit { number, payload, commands, bytes } = unit;
        self.open.insert(number, Open { payload, commands, bytes, doubts: 0, changed: false });
        self.bytes += bytes;
        self.unsent.insert(number);
        number
    }

    /// The next unit to be created, in order: what cannot be created yet holds up only what comes after it.
    pub fn next(&self) -> Option<u64> {
        self.unsent.first().copied()
    }

    /// The unit is being created, or compared.
    pub fn begin(&mut self, unit: u64) {
        self.unsent.remove(&unit);
        self.calls += 1;
    }

    /// An answer about a unit came.
    pub fn answered(&mut self) {
        self.calls -= 1;
    }

    /// Creations and comparisons in flight.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// What an open unit runs.
    pub fn payload(&self, unit: u64) -> Option<&Payload> {
        self.open.get(&unit).map(|open| &open.payload)
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

    /// All changes in the part are told from now on. What is being created may stand by now, and have results before
    /// that.
    pub fn watched(&mut self, part: u64) {
        let units = part * LINES_PER_PART..(part + 1) * LINES_PER_PART;
        for (_, open) in self.open.range_mut(units).filter(|(unit, _)| !self.unsent.contains(unit)) {
            open.changed = true;
        }
    }

    /// The chunk stands, for certain; `before` our last request did.
    pub fn stands(&mut self, unit: u64, before: bool) -> Option<Made> {
        let open = self.open.remove(&unit)?;
        self.bytes = self.bytes.saturating_sub(open.bytes);
        // What was made by the only request in doubt is not made once more by it.
        let doubt = if before { open.doubts != 1 } else { open.doubts > 0 };
        Some(Made { commands: open.commands, payload: open.payload, doubt, changed: before || open.changed })
    }

    /// The chunk stands for certain not, and never will.
    pub fn drop(&mut self, unit: u64) {
        self.open.remove(&unit);
    }

    /// A new connection: nothing is in flight.
    pub fn on_connected(&mut self) {
        self.unsent = self.open.keys().copied().collect();
    }

    /// The connection is gone.
    pub fn on_lost(&mut self) {
        self.calls = 0;
    }

    /// Makes nothing more but what may stand already. Gives how many lines that has.
    pub fn stop(&mut self) -> u64 {
        self.source = Source::Dry;
        let unsent = &self.unsent;
        self.open.retain(|unit, open| open.doubts > 0 || !unsent.contains(unit));
        self.unsent.retain(|unit| self.open.contains_key(unit));
        self.bytes = self.open.values().map(|open| open.bytes).sum();
        self.open.values().map(|open| u64::from(open.commands)).sum()
    }

    /// Whether all chunks are known to stand.
    pub fn is_done(&self) -> bool {
        self.source == Source::Dry && self.open.is_empty()
    }

    /// Whether there are chunks that may stand or not.
    pub fn is_uncertain(&self) -> bool {
        self.open.iter().any(|(unit, open)| open.doubts > 0 || !self.unsent.contains(unit))
    }

    /// In no part before this one chunks will be made.
    pub fn first_part(&self) -> u64 {
        match self.open.first_key_value() {
            Some((unit, _)) => part_of(*unit),
            None if self.source == Source::Dry => u64::MAX,
            None => 0,
        }
    }

    /// How many units are open.
    pub fn open_count(&self) -> usize {
        self.open.len()
    }
}
