//! Results that a chunk has before its end: shown as they come, each once.
//!
//! Its worker writes them several times a second, so of each chunk one read is under way at a time: where servers are
//! slow, one read takes in what several writes have brought.

use std::collections::{BTreeMap, BTreeSet};

use super::Batch;
use crate::contract::task::{State, Task};
use crate::exit;
use crate::machine::{Action, Actions};
use crate::roles::client::{ClientReport, Ended, commands_ended};

/// What was shown of chunks that are not over, and which of them are being read.
#[derive(Debug, Default)]
pub struct Early {
    /// Lines that were shown, by unit.
    shown: BTreeMap<u64, BTreeSet<u64>>,
    /// How many these are.
    count: u64,
    reading: BTreeSet<u64>,
    /// Those of them that have changed since.
    changed: BTreeSet<u64>,
}

impl Early {
    /// How many lines of units that are not over were shown.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether a unit may be read now; if not, it is named again when the read that is under way is answered.
    pub fn begin_read(&mut self, unit: u64) -> bool {
        let may = self.reading.insert(unit);
        if !may {
            self.changed.insert(unit);
        }
        may
    }

    /// A read was answered. Whether the unit has to be read once more.
    pub fn end_read(&mut self, unit: u64) -> bool {
        self.reading.remove(&unit);
        self.changed.remove(&unit)
    }

    /// The connection is gone, and with it what was being read.
    pub fn on_lost(&mut self) {
        self.reading.clear();
        self.changed.clear();
    }

    /// Leaves those that were not shown, which are from now on.
    fn take_new(&mut self, unit: u64, mut ended: Vec<Ended>) -> Vec<Ended> {
        let shown = self.shown.entry(unit).or_default();
        ended.retain(|command| command.line.is_some_and(|line| shown.insert(line)));
        self.count += ended.len() as u64;
        ended
    }

    /// The unit is over: leaves those that were not shown. Gives how many were.
    pub fn finish(&mut self, unit: u64, ended: &mut Vec<Ended>) -> u64 {
        let shown = self.shown.remove(&unit).unwrap_or_default();
        self.count -= shown.len() as u64;
        ended.retain(|command| command.line.is_none_or(|line| !shown.contains(&line)));
        shown.len() as u64
    }
}

impl Batch {
    /// Shows the results that a chunk has so far. What failed, and is tried again, is not known to have failed.
    pub(super) fn results_came(&mut self, unit: u64, task: &Task, out: &mut Actions<ClientReport>) {
        if !self.has_our_lines(unit, task) {
            return;
        }
        let is_final = self.options.max_attempts.is_none();
        let mut ended = commands_ended(&self.id(unit), task);
        ended.retain(|command| is_final || command.outcome.state == State::Done);
        let ended = self.early.take_new(unit, ended);
        self.show(ended, out);
    }

    /// Whether nobody put other lines into the task.
    pub(super) fn has_our_lines(&self, unit: u64, task: &Task) -> bool {
        task.first_line == unit.saturating_mul(self.units.size())
    }

    /// Shows and counts what became of these commands.
    pub(super) fn show(&mut self, ended: Vec<Ended>, out: &mut Actions<ClientReport>) {
        if ended.is_empty() {
            return;
        }
        let done = ended.iter().filter(|command| command.outcome.state == State::Done).count();
        self.progress.done += done as u64;
        if done < ended.len() {
            self.progress.failed += (ended.len() - done) as u64;
            self.tally.wrong(exit::FAILED);
        }
        out.push(Action::Report(ClientReport::ended(ended)));
    }
}
