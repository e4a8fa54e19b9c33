//! Shares: which lines of a chunk are whose. A chunk is one register under compare-and-set; everything that happens
//! to its lines is one write of that znode, and no name is ever made.
//!
//! A line is *open* while it has no result. Each open line is in exactly one share, and a chunk has an outcome if and
//! only if none is open. A share has a *number*, which is with one incarnation at most: so an entry that names chunk
//! and number is stale as soon as the number is gone. Numbers only grow, and the lines of a number only get fewer.
//!
//! The *window* of a share are its first `ahead` open lines, or all. Its holder starts lines in their order, and only
//! those in the window. Lines behind it can be given to others without asking the holder, even if the holder is
//! suspended. `tests/sim/shares.rs` searches for a counterexample with lost replies and late writes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::result::{CommandResult, Reason};
use super::{Incarnation, is_default};

/// Most shares that a chunk is cut into. Deaths may make more of them, one each, but never more than it has lines.
pub const MAX_SHARES: usize = 16;

/// Positions of lines in a chunk, as ranges without their ends, in order, none touching the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lines(pub(super) Vec<(u32, u32)>);

/// A part of a chunk's open lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Share {
    /// Its number.
    pub attempt: u32,
    /// Its lines; those that have a result count no more.
    pub lines: Lines,
    /// How many of its open lines the holder may have started; absent before it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u32>,
    /// Workers that died while these lines may have run there.
    #[serde(default, skip_serializing_if = "is_default")]
    pub deaths: u32,
    /// How often the lines failed and are to run again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub failures: u32,
    /// How often the lines were given out before, whatever became of that.
    #[serde(default, skip_serializing_if = "is_default")]
    pub earlier: u32,
    /// Not to be started until so long after `since_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// The `mtime` of the version that the write replaced which set `delay_ms`. (The chunk's own moves with every
    /// write.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<i64>,
    /// The incarnation that vouches that nothing of it runs there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_by: Option<Incarnation>,
}

impl Lines {
    /// These positions, in any order.
    pub fn of(positions: impl IntoIterator<Item = usize>) -> Lines {
        let mut positions: Vec<u32> =
            positions.into_iter().filter_map(|position| u32::try_from(position).ok()).collect();
        positions.sort_unstable();
        positions.dedup();
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for position in positions {
            match ranges.last_mut() {
                Some((_, end)) if *end == position => *end += 1,
                _ => ranges.push((position, position + 1)),
            }
        }
        Lines(ranges)
    }

    /// The positions below `end`, in order.
    pub fn below(&self, end: usize) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().flat_map(move |(from, to)| *from as usize..(*to as usize).min(end))
    }

    /// Whether the position is one of them.
    pub fn has(&self, position: usize) -> bool {
        self.0.iter().any(|(from, to)| (*from as usize..*to as usize).contains(&position))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|(from, to)| from >= to)
    }

    /// Whether they are in order, do not touch, and end at `end` at the latest.
    pub(super) fn is_sound(&self, end: usize) -> bool {
        let in_order = self.0.windows(2).all(|two| two[0].1 < two[1].0);
        in_order && self.0.iter().all(|(from, to)| from < to && *to as usize <= end)
    }
}

/// Who gives the lines of a share to others, and what that says of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Its holder has died: what it may have started is suspected.
    Death {
        /// So many deaths end a line.
        limit: u32,
    },
    /// It was taken back, or not even started, and nothing of it runs.
    Revoked,
}

/// How a worker gives back what it had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// Why.
    pub why: String,
    /// How long the next attempt is to wait, if at all.
    pub delay_ms: Option<u64>,
    /// It had better be on another worker: this one could not start it.
    pub avoid: bool,
}

impl Release {
    /// For this reason, to be started again at once and wherever.
    pub fn because(why: &str) -> Release {
        Release { why: why.to_string(), ..Release::default() }
    }
}

/// What becomes of the lines of a share that have no result, now that nothing of it runs at its holder any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Others get them.
    Release(Release),
    /// They end as cancelled if somebody wishes that, and stay where they are if not.
    Cancel,
}

/// How the work on a share ended at its holder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ending {
    /// Results of its lines.
    pub results: BTreeMap<usize, CommandResult>,
    /// Lines that failed and are to run again, and how long they are to wait, in ms. The results are for those that
    /// somebody wants cancelled by now.
    pub again: BTreeMap<usize, CommandResult>,
    /// See `again`.
    pub again_ms: u64,
    /// What becomes of the others; `None` if there are none.
    pub rest: Option<Rest>,
}

impl Share {
    /// A share of these lines of another, with a number of its own, as if nothing had been.
    pub(super) fn of(number: u32, positions: &[usize], from: &Share) -> Share {
        Share {
            attempt: number,
            lines: Lines::of(positions.iter().copied()),
            // What is suspected runs one at a time wherever it is.
            ahead: (from.deaths > 0).then_some(1),
            deaths: from.deaths,
            failures: from.failures,
            earlier: from.earlier,
            ..Share::default()
        }
    }

    /// The result of one of its lines that nobody ran to its end.
    pub fn unrun(&self, reason: Reason, why: &str) -> CommandResult {
        let attempt = Some(self.earlier.saturating_add(1)).filter(|attempt| *attempt != 1);
        CommandResult { attempt, ..CommandResult::unrun(reason, why) }
    }

    /// When it may be started, by the ensemble's clock in ms; 0 if at once.
    pub fn not_before_ms(&self) -> i64 {
        match (self.delay_ms, self.since_ms) {
            (Some(delay), Some(since)) => since.saturating_add_unsigned(delay),
            _ => 0,
        }
    }
}
