//! Holder: what the worker that has a share of a chunk may start, and what it writes of it.
//!
//! It starts lines in their order and only within the window that the newest version that it knows of allows. Two
//! rules make that safe against lost replies and late writes. A window that is made smaller counts from the *sending*
//! of the write, one that is made larger or moves on from its *acknowledgement*. And after a doubt the smaller of
//! both counts, until a later version is known: the write may still be on its way. `tests/sim/shares.rs` searches
//! what breaks otherwise.
//!
//! Bookkeeping alone: it makes no calls.

use std::collections::{BTreeMap, BTreeSet};

use crate::contract::chunk::CommandResult;
use crate::contract::share::Share;
use crate::contract::task::Task;

/// How a write of a holder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Write {
    /// None is under way.
    None,
    /// One is.
    Sent,
    /// One was, and nobody knows whether it is applied, or will be: the chunk has to be read.
    InDoubt,
}

/// What a version of the chunk is for a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Its number has open lines there.
    Held,
    /// It is older than one that was known.
    Older,
    /// The number is gone: there is nothing to do any more.
    Removed,
}

/// A worker's part in a chunk.
#[derive(Clone, Debug)]
pub struct Holder {
    number: u32,
    /// The newest known version, and its content.
    known: Option<(i32, Task)>,
    /// Its share there.
    share: Option<Share>,
    /// Lines that were started and have no result in that version.
    started: BTreeSet<usize>,
    /// Those of them that are over.
    over: BTreeMap<usize, CommandResult>,
    /// Those of them that ended, and are to have no result.
    stopped: BTreeSet<usize>,
    /// Lines that may be started.
    bound: BTreeSet<usize>,
    write: Write,
}

impl Holder {
    /// A holder of this number, which has read nothing yet.
    pub fn new(number: u32) -> Holder {
        Holder {
            number,
            known: None,
            share: None,
            started: BTreeSet::new(),
            over: BTreeMap::new(),
            stopped: BTreeSet::new(),
            bound: BTreeSet::new(),
            write: Write::None,
        }
    }

    /// The number of the share.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The newest version of the chunk that is known.
    pub fn version(&self) -> Option<i32> {
        self.known.as_ref().map(|(version, _)| *version)
    }

    /// The chunk in that version.
    pub fn known(&self) -> Option<&Task> {
        self.known.as_ref().map(|(_, task)| task)
    }

    /// Whether a limit was ever set.
    pub fn has_window(&self) -> bool {
        self.share.as_ref().is_some_and(|share| share.ahead.is_some())
    }

    /// Whether the line is one of its own, and has no result yet.
    pub fn has(&self, position: usize) -> bool {
        let is_ours = self.share.as_ref().is_some_and(|share| share.lines.has(position));
        is_ours && self.known().is_some_and(|task| task.is_open(position))
    }

    /// Its lines that were not started, in the window or not.
    pub fn unstarted(&self) -> impl Iterator<Item = usize> + '_ {
        let both = self.known().zip(self.share.as_ref());
        let open = both.into_iter().flat_map(|(task, share)| task.open_lines(share));
        open.filter(|position| !self.started.contains(position))
    }

    /// The next line to start, if one may be; it counts as started.
    pub fn start_next(&mut self) -> Option<usize> {
        let next = self.bound.pop_first()?;
        self.started.insert(next);
        Some(next)
    }

    /// A line that was not started is over, without having run.
    pub fn skip(&mut self, position: usize, result: CommandResult) {
        self.bound.remove(&position);
        self.started.insert(position);
        self.over.insert(position, result);
    }

    /// A line that was started is over, and its process group dead.
    pub fn ended(&mut self, position: usize, result: CommandResult) {
        if self.started.contains(&position) {
            self.over.insert(position, result);
        }
    }

    /// A line that was started ended, its process group is dead, and it has no result.
    pub fn stopped(&mut self, position: usize) {
        self.stopped.insert(position);
    }

    /// Lines that were started and are not over.
    pub fn running(&self) -> impl Iterator<Item = usize> + '_ {
        let runs = |position: &usize| !self.over.contains_key(position) && !self.stopped.contains(position);
        self.started.iter().copied().filter(runs)
    }

    /// How many lines were started, and have no result in the ensemble as far as is known.
    pub fn unwritten(&self) -> usize {
        self.started.len()
    }

    /// Whether lines are over that have no result yet.
    pub fn has_results(&self) -> bool {
        !self.over.is_empty()
    }

    /// The results of lines that have none yet.
    pub fn take_results(&mut self) -> BTreeMap<usize, CommandResult> {
        std::mem::take(&mut self.over)
    }

    /// Whether the chunk has to be read before anything can be written.
    pub fn is_to_be_read(&self) -> bool {
        self.known.is_none() || self.write == Write::InDoubt
    }

    /// Whether a write may be begun.
    pub fn may_write(&self) -> bool {
        self.known.is_some() && self.write == Write::None
    }

    /// The version to set, and the chunk with all results and a window of so many lines, or of as many more as were
    /// started; `None` if that would change nothing, or none may be begun.
    pub fn send(&mut self, ahead: u32) -> Option<(i32, Task)> {
        if !self.may_write() {
            return None;
        }
        let (version, task) = self.known.as_ref()?;
        let (version, mut next) = (*version, task.clone());
        let is_over = |position: &usize| self.over.contains_key(position);
        let open: Vec<usize> =
            task.open_lines(self.share.as_ref()?).into_iter().filter(|position| !is_over(position)).collect();
        let last = open.iter().rposition(|position| self.started.contains(position));
        let ahead = u32::try_from(last.map_or(1, |last| last + 1)).unwrap_or(u32::MAX).max(ahead);
        next.flush(self.number, &self.over, ahead);
        if next == *task {
            return None;
        }
        let window: BTreeSet<usize> = open.iter().copied().take(ahead as usize).collect();
        self.bound.retain(|position| window.contains(position));
        self.write = Write::Sent;
        Some((version, next))
    }

    /// The write was applied, and made this version.
    pub fn written(&mut self, version: i32, task: Task) -> Seen {
        self.write = Write::None;
        self.adopt(version, task)
    }

    /// What was sent was refused, since the chunk had changed, or nobody knows what became of it.
    pub fn doubt(&mut self) {
        self.write = Write::InDoubt;
    }

    /// What was sent was refused for what it is, so it will not come late.
    pub fn refused(&mut self) {
        self.write = Write::None;
    }

    /// The chunk was read.
    pub fn read(&mut self, version: i32, task: Task) -> Seen {
        let known = self.version();
        if known.is_some_and(|known| version < known) {
            return Seen::Older;
        }
        // The write that is in doubt may come yet, so what it took away stays away.
        let before = (known == Some(version)).then(|| self.bound.clone());
        let seen = self.adopt(version, task);
        if seen == Seen::Held {
            self.write = Write::None;
            if let Some(before) = before {
                self.bound.retain(|position| before.contains(position));
            }
        }
        seen
    }

    fn adopt(&mut self, version: i32, task: Task) -> Seen {
        let Some(share) = task.share(self.number) else { return Seen::Removed };
        let is_ours = |position: &usize| share.lines.has(*position) && task.is_open(*position);
        self.started.retain(|position| is_ours(position));
        self.over.retain(|position, _| is_ours(position));
        self.stopped.retain(|position| is_ours(position));
        let window = task.window(&share).into_iter();
        self.bound = window.filter(|position| !self.started.contains(position)).collect();
        self.known = Some((version, task));
        self.share = Some(share);
        Seen::Held
    }

    /// All that differs between two shares, beside its number and what it knows: the lines that were started, are over,
    /// and may be started; and whether its write is under way, or in doubt.
    pub fn state(&self) -> ([Vec<usize>; 3], [bool; 2]) {
        let started = self.started.iter().copied().collect();
        let over = self.over.keys().copied().collect();
        let bound = self.bound.iter().copied().collect();
        let write = [self.write == Write::Sent, self.write == Write::InDoubt];
        ([started, over, bound], write)
    }
}
