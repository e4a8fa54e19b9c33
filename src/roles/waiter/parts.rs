//! What the parts of a batch say about lines that do not exist. In a part that was created as a whole, a missing line
//! has succeeded and was collected. In another part nobody knows, and a message says so.

use std::collections::BTreeMap;

use crate::contract::line::batch_of;
use crate::roles::client::walk::Part;

/// What is known of the lines of each part that was met.
#[derive(Debug, Default)]
pub struct AwaitedParts(BTreeMap<String, Lines>);

#[derive(Debug)]
struct Lines {
    all: u64,
    made: bool,
    seen: u64,
}

/// What became of lines that were not met.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// They succeeded, and were collected.
    pub collected: u64,
    /// Nobody knows: their batch was not made to its end. By batch.
    pub unknown: BTreeMap<String, u64>,
}

impl AwaitedParts {
    /// A part is about to be listed.
    pub fn meet(&mut self, part: Part) {
        let Part { dir, lines, made } = part;
        self.0.entry(dir).or_insert(Lines { all: lines, made, seen: 0 });
    }

    /// What became of so many lines in the directory is known.
    pub fn saw(&mut self, dir: &str, lines: u64) {
        if let Some(part) = self.0.get_mut(dir) {
            part.seen = part.seen.saturating_add(lines);
        }
    }

    /// Whether what goes from this directory has succeeded.
    pub fn is_made(&self, dir: &str) -> bool {
        self.0.get(dir).is_some_and(|part| part.made)
    }

    /// What became of the lines of which nothing was seen.
    pub fn missing(&self) -> Missing {
        let mut missing = Missing::default();
        for (dir, Lines { all, made, seen }) in &self.0 {
            let lines = all.saturating_sub(*seen);
            if *made {
                missing.collected += lines;
            } else if lines > 0 {
                *missing.unknown.entry(batch_of(dir).unwrap_or(dir).to_string()).or_default() += lines;
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_lines_succeeded_only_if_the_batch_is_complete() {
        let mut parts = AwaitedParts::default();
        for (dir, lines, made) in [("b~0000", 10, true), ("b~0001", 5, false), ("b~0002", 4, false)] {
            parts.meet(Part { dir: dir.into(), lines, made });
        }
        parts.saw("b~0000", 3);
        parts.saw("b~0001", 5);
        parts.saw("J", 7);
        assert!(parts.is_made("b~0000") && !parts.is_made("b~0001") && !parts.is_made("J"));
        let unknown = BTreeMap::from([("b".to_string(), 4)]);
        assert_eq!(parts.missing(), Missing { collected: 7, unknown });
    }
}
