//! How often a leader reads a chunk that runs. Its worker writes results several times a second; read are the first of
//! them, and then when half of what was left should be over. What comes in between is read with what else was put off,
//! about a second later, so that the end of a chunk is never missed for longer.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Master;
use crate::contract::TaskId;
use crate::machine::Instant;

/// The pause after a read where nobody knows how long commands take.
const UNKNOWN: Duration = Duration::from_millis(200);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// From when on a change of a chunk is read at once.
#[derive(Debug, Default)]
pub struct Looks(BTreeMap<TaskId, Instant>);

impl Looks {
    /// Whether a change of the task is to be read at once.
    pub fn is_due(&self, task: &TaskId, now: Instant) -> bool {
        self.0.get(task).is_none_or(|from| *from <= now)
    }

    /// The task was read, with so many commands left; each keeps one of the worker's slots for so long, if that is
    /// known.
    fn note(&mut self, task: &TaskId, left: u32, slots: u32, cost: Option<Duration>, now: Instant) {
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

impl Master {
    /// A task was read.
    pub(super) fn note_read(&mut self, task: &TaskId, now: Instant) {
        let Some(term) = &mut self.term else { return };
        let holder = term.book.entries_of(task).into_iter().next().map(|(_, incarnation, _)| incarnation);
        match (holder, self.table.pending(task)) {
            (Some(holder), Some(pending)) => {
                let (slots, cost) = term.roster.pace_of(&holder);
                let left = pending.units().iter().map(|unit| unit.width).sum();
                term.looks.note(task, left, slots, cost, now);
            }
            _ => term.looks.forget(task),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_read_when_half_of_what_was_left_should_be_over() {
        let (mut looks, task) = (Looks::default(), TaskId::new("j", "t"));
        let at = |ms: u64| Instant::default() + Duration::from_millis(ms);
        assert!(looks.is_due(&task, at(0)), "the first change");
        looks.note(&task, 40, 2, Some(Duration::from_millis(20)), at(0));
        assert!(!looks.is_due(&task, at(199)) && looks.is_due(&task, at(200)));
        looks.note(&task, 40, 2, Some(Duration::from_secs(60)), at(0));
        assert!(!looks.is_due(&task, at(999)) && looks.is_due(&task, at(1_000)));
        looks.note(&task, 40, 2, None, at(0));
        assert!(!looks.is_due(&task, at(199)) && looks.is_due(&task, at(200)));
        looks.note(&task, 1, 2, Some(Duration::from_secs(60)), at(200));
        assert!(looks.is_due(&task, at(200)), "the next change is its end");
    }
}
