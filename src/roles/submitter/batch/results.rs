//! What the user sees of a batch: its progress, and the result of each line, as it comes and exactly once.
//!
//! A worker writes the results of a chunk several times a second, so of each chunk one read is under way at a time:
//! where servers are slow, one read takes in what several writes have brought. Makes no calls.

use std::collections::{BTreeMap, BTreeSet};

use crate::contract::task::State;
use crate::exit;
use crate::machine::{Action, Actions, Level};
use crate::roles::client::{ClientReport, Ended, Progress, Tally};

/// Reads in flight: each answer may be a whole znode.
pub const MAX_READS: usize = 32;

/// Complaints about single chunks that are logged; the summary counts the others.
pub const MAX_COMPLAINTS: u32 = 20;

/// What is known of results.
#[derive(Debug, Default)]
pub struct Results {
    /// What failed may be tried again, so it is not known to have failed before its chunk is over.
    tries_again: bool,
    progress: Progress,
    reported: Progress,
    tally: Tally,
    complaints: u32,
    /// Lines that were shown, by unit, of those that are not over.
    shown: BTreeMap<u64, BTreeSet<u64>>,
    /// How many these are.
    count: u64,
    /// Units that are being read.
    reading: BTreeSet<u64>,
    /// Those of them that have changed since.
    changed: BTreeSet<u64>,
}

impl Results {
    /// Of so many lines. If they may be `tried_again`, what failed of a chunk is shown at its end.
    pub fn new(total: u64, tries_again: bool) -> Results {
        let progress = Progress { total, ..Progress::default() };
        Results { tries_again, progress, ..Results::default() }
    }

    /// How far the batch is.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Lines that exist and whose result was not shown.
    pub fn awaited(&self) -> u64 {
        let Progress { submitted, done, failed, .. } = self.progress;
        submitted.saturating_sub(done).saturating_sub(failed)
    }

    /// How many lines of chunks that are not over were shown.
    pub fn early(&self) -> u64 {
        self.count
    }

    /// What the batch exits with, as far as is known.
    pub fn code(&self) -> i32 {
        self.tally.code()
    }

    /// So many more lines exist.
    pub fn submitted(&mut self, lines: u64) {
        self.progress.submitted += lines;
    }

    /// Only so many more lines will be created.
    pub fn cut(&mut self, lines: u64) {
        self.progress.total = self.progress.submitted + lines;
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

    /// Reads in flight.
    pub fn reads(&self) -> usize {
        self.reading.len()
    }

    /// The connection is gone, and with it what was being read.
    pub fn on_lost(&mut self) {
        self.reading.clear();
        self.changed.clear();
    }

    /// A chunk that is not over has these results: shows those that were not shown.
    pub fn came(&mut self, unit: u64, mut ended: Vec<Ended>, out: &mut Actions<ClientReport>) {
        let shown = self.shown.entry(unit).or_default();
        ended.retain(|command| {
            let is_final = !self.tries_again || command.outcome.state == State::Done;
            is_final && command.line.is_some_and(|line| shown.insert(line))
        });
        self.count += ended.len() as u64;
        self.show(ended, out);
    }

    /// A chunk is over, with these results: shows those that were not shown.
    pub fn over(&mut self, unit: u64, mut ended: Vec<Ended>, out: &mut Actions<ClientReport>) {
        let shown = self.forget(unit);
        ended.retain(|command| command.line.is_none_or(|line| !shown.contains(&line)));
        self.show(ended, out);
    }

    /// What became of a chunk of so many lines will never be known.
    pub fn lost(&mut self, unit: u64, lines: u16, why: String, out: &mut Actions<ClientReport>) {
        let shown = self.forget(unit).len() as u64;
        self.progress.failed += u64::from(lines).saturating_sub(shown);
        self.tally.wrong(exit::FAILED);
        self.complain(why, out);
    }

    fn forget(&mut self, unit: u64) -> BTreeSet<u64> {
        let shown = self.shown.remove(&unit).unwrap_or_default();
        self.count -= shown.len() as u64;
        shown
    }

    fn show(&mut self, ended: Vec<Ended>, out: &mut Actions<ClientReport>) {
        if ended.is_empty() {
            return;
        }
        let done = ended.iter().filter(|command| command.outcome.state == State::Done).count();
        self.progress.done += done as u64;
        if done < ended.len() {
            self.progress.failed += (ended.len() - done) as u64;
            self.tally.wrong(exit::FAILED);
        }
        out.push(Action::Report(ClientReport::Ended(ended)));
    }

    /// Logs something about one chunk, unless there was too much of it.
    pub fn complain(&mut self, why: String, out: &mut Actions<ClientReport>) {
        self.complaints += 1;
        if self.complaints <= MAX_COMPLAINTS {
            out.log(Level::Error, why);
        }
        if self.complaints == MAX_COMPLAINTS {
            out.log(Level::Error, "there may be more such tasks; they are only counted from here on");
        }
    }

    /// Reports how far the batch is, if that has changed.
    pub fn report(&mut self, out: &mut Actions<ClientReport>) -> bool {
        let is_new = self.progress != self.reported;
        if is_new {
            self.reported = self.progress;
            out.push(Action::Report(ClientReport::Progress(self.progress)));
        }
        is_new
    }
}
