//! When changes of a running chunk are read.
//!
//! Its worker writes results several times a second. The first change is read at once, and then one when half of what
//! was left should be over. What comes in between is read with what else was put off, about a second later, so that the
//! end of a chunk is never missed for longer.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::contract::TaskId;
use crate::machine::Instant;

/// The pause after a read where nobody knows how long commands take.
const UNKNOWN: Duration = Duration::from_millis(200);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// From when on a change of a chunk is read at once.
#[derive(Debug, Default)]
pub struct ChunkReads(BTreeMap<TaskId, Instant>);

impl ChunkReads {
    /// Whether a change of the task is to be read at once.
    pub fn is_due(&self, task: &TaskId, now: Instant) -> bool {
        self.0.get(task).is_none_or(|from| *from <= now)
    }

    /// The task was read, with so many commands left; each keeps one of the worker's slots for so long, if that is
    /// known.
    pub fn note(&mut self, task: &TaskId, left: u32, slots: u32, cost: Option<Duration>, now: Instant) {
        if left > 1 {
            let half = cost.map_or(UNKNOWN, |cost| cost.saturating_mul(left) / slots.max(1) / 2);
            self.0.insert(task.clone(), now + half.min(LONGEST));
        } else {
            self.0.remove(task);
        }
    }

    /// The task is over, gone, or nobody's.
    pub fn forget(&mut self, task: &TaskId) {
        self.0.remove(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_read_when_half_of_what_was_left_should_be_over() {
        let (mut reads, task) = (ChunkReads::default(), TaskId::new("j", "t"));
        let at = |ms: u64| Instant::default() + Duration::from_millis(ms);
        assert!(reads.is_due(&task, at(0)), "the first change");
        reads.note(&task, 40, 2, Some(Duration::from_millis(20)), at(0));
        assert!(!reads.is_due(&task, at(199)) && reads.is_due(&task, at(200)));
        reads.note(&task, 40, 2, Some(Duration::from_secs(60)), at(0));
        assert!(!reads.is_due(&task, at(999)) && reads.is_due(&task, at(1_000)));
        reads.note(&task, 40, 2, None, at(0));
        assert!(!reads.is_due(&task, at(199)) && reads.is_due(&task, at(200)));
        reads.note(&task, 1, 2, Some(Duration::from_secs(60)), at(200));
        assert!(reads.is_due(&task, at(200)), "the next change is its end");
    }
}
