//! The units of a batch: which lines make which chunk. A unit is so many lines of the file, blank ones included;
//! which line is in which follows from its number alone. Bookkeeping alone: it makes no calls.

use crate::contract::task::Payload;
use crate::machine::BatchLine;

/// What one chunk is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Which one, from 0.
    pub number: u64,
    /// What its chunk runs.
    pub payload: Payload,
    /// How many lines of it have something on them.
    pub commands: u16,
    /// Their bytes.
    pub bytes: usize,
}

/// Puts lines together.
#[derive(Debug)]
pub struct Units {
    size: u64,
    /// The unit whose lines come at present.
    filling: Option<Unit>,
}

impl Units {
    /// Units of so many lines.
    pub fn new(size: u32) -> Units {
        Units { size: u64::from(size.max(1)), filling: None }
    }

    /// Takes in the next line with something on it; gives the unit that is complete, if one is. Those without any
    /// such line don't occur.
    pub fn add(&mut self, line: BatchLine) -> Option<Unit> {
        let BatchLine { number, text } = line;
        let (unit, place) = (number / self.size, number % self.size);
        let complete = self.filling.take_if(|filling| filling.number != unit);
        let first_line = unit * self.size;
        let filling = self.filling.get_or_insert_with(|| Unit {
            number: unit,
            payload: Payload::Chunk { first_line, commands: Vec::new() },
            commands: 0,
            bytes: 0,
        });
        filling.commands += 1;
        filling.bytes += text.len();
        if let Payload::Chunk { commands, .. } = &mut filling.payload {
            // Blank lines keep the places of those that follow.
            commands.resize(usize::try_from(place).unwrap_or(0), String::new());
            commands.push(text);
        }
        complete
    }

    /// There are no more lines: gives what is left.
    pub fn finish(&mut self) -> Option<Unit> {
        self.filling.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: u64) -> BatchLine {
        BatchLine { number, text: format!("echo {number}") }
    }

    #[test]
    fn lines_keep_their_places_in_a_chunk_and_blank_chunks_do_not_occur() {
        let mut units = Units::new(4);
        let complete: Vec<Unit> = [1, 3, 12, 16].into_iter().filter_map(|n| units.add(line(n))).collect();
        let complete: Vec<Unit> = complete.into_iter().chain(units.finish()).collect();
        let chunk = |first_line, commands: &[&str]| Payload::Chunk {
            first_line,
            commands: commands.iter().map(|text| (*text).to_string()).collect(),
        };
        let payloads: Vec<Payload> = complete.iter().map(|unit| unit.payload.clone()).collect();
        assert_eq!(
            payloads,
            [chunk(0, &["", "echo 1", "", "echo 3"]), chunk(12, &["echo 12"]), chunk(16, &["echo 16"])]
        );
        let told: Vec<_> = complete.iter().map(|unit| (unit.number, unit.commands, unit.bytes)).collect();
        assert_eq!(told, [(0, 2, 12), (3, 1, 7), (4, 1, 7)]);
        assert_eq!(units.finish(), None);
    }
}
