//! What a master knows of one task: as little as it needs, so that a million of them fit.

use super::outcomes::KeptOutcomes;
use crate::contract::Incarnation;
use crate::contract::chunk::{LineCounts, Results};
use crate::contract::share::Share;
use crate::contract::status::Counts;
use crate::contract::task::{Outcome, Task};
use crate::recipes::assignment::{Held, Isolation};
use crate::recipes::queue::Need;

/// A task, as far as a master needs it.
#[derive(Debug)]
pub struct KnownTask {
    /// When it was created, as the ensemble counts.
    pub czxid: i64,
    /// When it was last changed, likewise.
    pub mzxid: i64,
    /// When it was last changed, by the ensemble's clock.
    pub mtime_ms: i64,
    /// Its version then.
    pub version: i32,
    /// How much data it had then.
    pub bytes: u32,
    /// How many of its commands were in each state then.
    pub lines: LineCounts,
    /// Its content then.
    pub phase: Phase,
}

/// What cleanup may do with an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// It is kept for its time, and may be shortened.
    Whole,
    /// All was dropped but how it ended, so it takes no room that matters.
    Shortened,
    /// Somebody wants it deleted.
    Unwanted,
}

/// How far a task is.
#[derive(Debug)]
pub enum Phase {
    /// It has no outcome.
    Pending(Pending),
    /// It has one.
    Ended {
        /// The attempt that ended.
        attempt: u32,
        /// Who ran it to its end.
        by: Option<Incarnation>,
        /// For how long, or how long a command of it on average; 0 if that is not known.
        ran_ms: u64,
        /// It is a chunk.
        is_chunk: bool,
        /// Its user brought the id.
        keyed: bool,
        /// What cleanup may do with it.
        retention: Retention,
    },
    /// It cannot be read as a task.
    Malformed,
    /// It is a task that cannot be written.
    Quarantined,
}

/// A task without an outcome.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Pending {
    /// The task itself, or the whole of a chunk that has no shares yet.
    pub whole: Unit,
    /// The shares of a chunk, if it has any.
    pub shares: Vec<Unit>,
    pub is_chunk: bool,
    pub priority: i32,
    /// By the ensemble's clock; 0 if never.
    pub expires_ms: i64,
    pub cancel: bool,
    pub orphan_of: Option<Box<str>>,
    /// How long a command of a chunk runs, on average, if some have.
    pub run_ms: Option<u64>,
}

/// What an entry of an assignment can name: a task at its attempt, or a share.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Unit {
    pub attempt: u32,
    /// How many commands it has to run.
    pub width: u32,
    /// How many of them its holder may have started, if it has said so.
    pub ahead: Option<u32>,
    pub need: Need,
    /// By the ensemble's clock; 0 if at once.
    pub not_before_ms: i64,
    pub released_by: Option<Incarnation>,
    /// Somebody wants some of its lines cancelled.
    pub cancel_lines: bool,
}

impl Unit {
    /// How many of its commands are behind its window, so that others can have them.
    pub fn behind(&self) -> u32 {
        self.ahead.map_or(0, |ahead| self.width.saturating_sub(ahead))
    }

    /// How it counts in an assignment. A suspect runs one command at a time.
    pub fn held(&self) -> Held {
        let width = if self.need.suspect { self.width.min(1) } else { self.width };
        let mut held = Held::new(width, self.need.suspect);
        if self.need.is_alone() {
            held.isolation = Isolation::Alone;
        }
        held
    }
}

impl Pending {
    /// All that entries can name of it.
    pub fn units(&self) -> &[Unit] {
        if self.shares.is_empty() { std::slice::from_ref(&self.whole) } else { &self.shares }
    }

    /// What an entry with this number names.
    pub fn unit(&self, attempt: u32) -> Option<&Unit> {
        self.units().iter().find(|unit| unit.attempt == attempt)
    }
}

impl Phase {
    /// The phase of a task that was read with this outcome.
    pub fn ended(read: &Task, outcome: &Outcome) -> Phase {
        let is_chunk = read.commands.is_some();
        let ran_ms = if is_chunk { run_ms(&outcome.results).unwrap_or(0) } else { outcome.ran_ms() };
        let retention = match (read.delete, read.digest.is_some()) {
            (true, _) => Retention::Unwanted,
            (false, true) => Retention::Shortened,
            (false, false) => Retention::Whole,
        };
        let (attempt, by) = (outcome.attempt, outcome.worker.clone());
        Phase::Ended { attempt, by, ran_ms, is_chunk, keyed: read.keyed, retention }
    }
}

/// A share of a chunk whose tasks need this and have so many attempts.
pub fn unit_of(task: &Task, share: &Share, need: Need, attempts: u32) -> Unit {
    let open = task.open_lines(share);
    Unit {
        attempt: share.attempt,
        width: u32::try_from(open.len()).unwrap_or(u32::MAX),
        ahead: share.ahead,
        need: need.of(share.deaths > 0, share.deaths.saturating_add(1) >= attempts),
        not_before_ms: share.not_before_ms(),
        released_by: share.released_by.clone(),
        cancel_lines: open.iter().any(|position| task.cancel_lines.has(*position)),
    }
}

/// How long a command ran, on average of those that did.
pub fn run_ms(results: &Results) -> Option<u64> {
    let ran = results.iter().flatten().filter_map(|result| {
        let ran = result.ended_ms?.saturating_sub(result.started_ms?);
        u64::try_from(ran).ok()
    });
    let (count, sum) = ran.fold((0, 0_u64), |(count, sum), ran| (count + 1, sum.saturating_add(ran)));
    sum.checked_div(count)
}

/// What it is for the index of outcomes, if it has one.
pub fn kept(known: &KnownTask) -> Option<KeptOutcomes> {
    let Phase::Ended { retention, .. } = known.phase else { return None };
    let failed = if retention == Retention::Whole { known.lines.ended_badly() } else { 0 };
    let is_unwanted = retention == Retention::Unwanted;
    Some(KeptOutcomes { mtime_ms: known.mtime_ms, failed, bytes: u64::from(known.bytes), is_unwanted })
}

/// Changes the counts by the commands of a task.
pub fn count(counts: &mut Counts, known: &KnownTask, change: impl Fn(&mut u64, u64)) {
    let LineCounts { open, done, failed, cancelled, expired } = known.lines;
    match &known.phase {
        Phase::Pending(_) | Phase::Ended { .. } => change(&mut counts.pending, open.into()),
        Phase::Malformed => change(&mut counts.malformed, 1),
        Phase::Quarantined => change(&mut counts.quarantined, open.max(1).into()),
    }
    change(&mut counts.done, done.into());
    change(&mut counts.failed, failed.into());
    change(&mut counts.cancelled, cancelled.into());
    change(&mut counts.expired, expired.into());
}
