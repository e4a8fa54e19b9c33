//! A worker's share of a chunk: which lines it may start, what is over, and when that is to be written. What may be
//! started and written is the [`Holder`]'s to say; here is when.
//!
//! Bookkeeping alone: it makes no calls and starts nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::work::Work;
use crate::contract::MAX_DATA_BYTES;
use crate::contract::chunk::{CommandResult, bound_outputs};
use crate::contract::share::Share;
use crate::contract::task::{Reason, Task};
use crate::machine::{Instant, Stat};
use crate::recipes::holder::{Holder, Seen};
use crate::recipes::lease::Ticket;

/// Results are first written so long after the start of a share at the soonest: a quick one is written once, at its
/// end.
const FIRST_SAVE: Duration = Duration::from_millis(100);

/// So long after its start it is written how far a share has got, if others might take something of it.
const FIRST_WINDOW: Duration = Duration::from_millis(200);

/// The least time between two writes that are no end.
const SAVE_PACE: Duration = Duration::from_millis(200);

/// The most. It bounds how much runs again if the worker dies, and how late a result is seen.
const MAX_SAVE_PACE: Duration = Duration::from_secs(2);

/// Bytes a second that one share writes at most before its end: each write has all results so far.
const SAVED_BYTES_A_SECOND: u32 = 256 * 1024;

/// Writes of results take one in so many parts of the time at most: servers that are slow are written to less often.
const SAVE_SHARE: u32 = 20;

/// The window has what will be started within this time, or within two writes if these take longer.
const HORIZON: Duration = Duration::from_millis(400);

/// How fast this worker is.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Commands that it runs at once.
    pub slots: u32,
    /// How long one takes, on average, once one was seen.
    pub run: Option<Duration>,
    /// How long a write takes, on average.
    pub write: Duration,
}

/// A share.
#[derive(Debug)]
pub struct Portion {
    /// What may be started and written.
    pub holder: Holder,
    /// As it was given out.
    share: Share,
    /// When the newest known version was written.
    mtime_ms: i64,
    /// Lines that failed, and are to run again.
    again: BTreeMap<usize, CommandResult>,
    is_halted: bool,
    /// A slot was free for it, and the window had nothing more.
    is_starved: bool,
    /// The last write was refused.
    is_refused: bool,
    /// When the next write is due.
    pub save_at: Option<Instant>,
    started: Instant,
    /// When results were last sent to the servers, and how long these have a rest from them.
    saved: Option<(Instant, Duration)>,
    /// What was sent.
    sent: Option<Task>,
    /// Most bytes that the servers take in one write, as far as is known.
    pub limit: usize,
    /// What was read is older than what was known: it is read again once a write of our own is acknowledged.
    pub verifying: Option<Ticket>,
}

impl Portion {
    /// The share of this number, as it was read.
    pub fn new(number: u32, work: &Work, now: Instant) -> Portion {
        let mut holder = Holder::new(number);
        let share = work.task.share(number).unwrap_or_default();
        holder.read(work.version, work.task.clone());
        let mut portion = Portion {
            holder,
            share,
            mtime_ms: work.mtime_ms,
            again: BTreeMap::new(),
            is_halted: false,
            is_starved: false,
            is_refused: false,
            save_at: None,
            started: now,
            saved: None,
            sent: None,
            limit: MAX_DATA_BYTES,
            verifying: None,
        };
        portion.end_cancelled();
        portion
    }

    /// Which attempt of its lines it is, from 1.
    pub fn attempt(&self) -> u32 {
        self.share.earlier.saturating_add(1)
    }

    /// How often its lines have failed before.
    pub fn failures(&self) -> u32 {
        self.share.failures
    }

    /// Whether a worker died while its lines may have run there: they run one at a time, each once the result of the
    /// one before is written.
    pub fn is_suspect(&self) -> bool {
        self.share.deaths > 0
    }

    /// The next line to start; it counts as started.
    pub fn start_next(&mut self) -> Option<usize> {
        if self.is_suspect() && self.holder.running().next().is_some() {
            return None;
        }
        let next = self.holder.start_next();
        self.is_starved = next.is_none() && self.is_left();
        next
    }

    /// Whether lines are left that were not started.
    pub fn is_left(&self) -> bool {
        self.holder.unstarted().next().is_some()
    }

    /// Nothing more is started. What was not goes out of the window, so that others can have it.
    pub fn halt(&mut self) {
        self.is_starved |= !self.is_halted;
        self.is_halted = true;
    }

    /// Whether somebody wants this line cancelled.
    pub fn is_cancelled(&self, position: usize) -> bool {
        self.holder.known().is_some_and(|task| task.is_cancelled(position))
    }

    /// A line failed, and is to run again.
    pub fn failed(&mut self, position: usize, result: CommandResult) {
        self.again.insert(position, result);
        self.holder.stopped(position);
    }

    /// What is over, and what is to run again.
    pub fn take_ended(&mut self) -> [BTreeMap<usize, CommandResult>; 2] {
        [self.holder.take_results(), std::mem::take(&mut self.again)]
    }

    /// Lines that were not started, and that somebody wants cancelled, are over.
    fn end_cancelled(&mut self) {
        let unwanted: Vec<usize> =
            self.holder.unstarted().filter(|position| self.is_cancelled(*position)).collect();
        for position in unwanted {
            let result = self.share.unrun(Reason::Cancelled, "cancelled before it was started");
            self.holder.skip(position, result);
        }
    }

    /// When it is to be written, if something is to be and nothing is being written; and when that was planned before.
    pub fn plan_save(&mut self, now: Instant) -> Option<(Instant, Option<Instant>)> {
        let due = self.due(now)?;
        if self.save_at.is_some_and(|at| at <= due) {
            return None;
        }
        Some((due, self.save_at.replace(due)))
    }

    fn due(&self, now: Instant) -> Option<Instant> {
        let first = match () {
            () if !self.holder.may_write() => return None,
            () if self.holder.has_results() => self.started + FIRST_SAVE,
            () if self.holder.has_window() && !self.is_starved => return None,
            () if !self.is_left() => return None,
            () if !self.holder.has_window() => self.started + FIRST_WINDOW,
            () => now,
        };
        let due = self.saved.map_or(first, |(sent, rest)| sent + rest);
        // Nothing goes on before that is written. (What is short has a window that is long.)
        let is_urgent = (self.is_suspect() || self.is_starved) && !self.is_refused;
        Some(if is_urgent { now } else { due.max(now) })
    }

    /// The version to set, and the chunk with the results so far and the window, if they are to be written now.
    pub fn save(&mut self, pace: Pace) -> Option<(i32, Task)> {
        self.save_at = None;
        let ahead = match () {
            () if self.is_suspect() => 1,
            () if self.is_halted => 0,
            () => self.ahead(pace),
        };
        self.is_starved = false;
        let (version, mut task) = self.holder.send(ahead)?;
        bound_outputs(&mut task.results);
        Some((version, task))
    }

    fn ahead(&self, pace: Pace) -> u32 {
        let again = u32::try_from(self.again.len()).unwrap_or(u32::MAX);
        let rest = self.saved.map_or(Duration::ZERO, |(_, rest)| rest * 2);
        let soon = pace.run.map_or(0, |run| {
            let runs = rest.max(HORIZON).as_nanos() / run.as_nanos().max(1);
            u32::try_from(runs).unwrap_or(u32::MAX).saturating_mul(pace.slots)
        });
        pace.slots.saturating_add(soon).saturating_add(again)
    }

    /// This was sent now, with so many bytes.
    pub fn sent(&mut self, task: Task, bytes: usize, pace: Pace, now: Instant) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let rest = (Duration::from_secs(1) * bytes / SAVED_BYTES_A_SECOND).max(pace.write * SAVE_SHARE);
        self.saved = Some((now, rest.clamp(SAVE_PACE, MAX_SAVE_PACE)));
        self.sent = Some(task);
    }

    /// The write was applied, and made this version. Gives when it was sent, if it is still ours.
    pub fn written(&mut self, stat: &Stat) -> Option<Instant> {
        let task = self.sent.take()?;
        self.mtime_ms = stat.mtime_ms;
        self.is_refused = false;
        self.holder.written(stat.version, task);
        self.saved.map(|(sent, _)| sent)
    }

    /// What was sent was not applied, for somebody was faster, or nobody knows: the chunk is to be read.
    pub fn doubt(&mut self) {
        if self.sent.take().is_some() {
            self.holder.doubt();
        }
    }

    /// What was sent was refused, and will not come: the next write is later.
    pub fn save_later(&mut self) {
        self.sent = None;
        self.holder.refused();
        self.is_refused = true;
        self.saved = self.saved.map(|(sent, _)| (sent, MAX_SAVE_PACE));
    }

    /// The servers take no write as large: the next has less of the outputs.
    pub fn save_less(&mut self) {
        let bytes = self.sent.as_mut().map_or(0, |task| task.encode_within(self.limit).len());
        self.limit = self.limit.min(bytes / 4 * 3);
        self.save_later();
    }

    /// The chunk was read.
    pub fn read(&mut self, stat: &Stat, task: Task) -> Seen {
        let seen = self.holder.read(stat.version, task);
        if seen == Seen::Held {
            self.mtime_ms = stat.mtime_ms;
            self.verifying = None;
            self.end_cancelled();
        }
        seen
    }

    /// Whether a write is under way.
    pub fn is_writing(&self) -> bool {
        self.sent.is_some()
    }

    /// The chunk as it is known for certain; `None` if it is to be read.
    pub fn work(&self, mzxid: i64) -> Option<Work> {
        let task = self.holder.known().filter(|_| !self.holder.is_to_be_read())?.clone();
        Some(Work { task, version: self.holder.version()?, mzxid, mtime_ms: self.mtime_ms })
    }
}
