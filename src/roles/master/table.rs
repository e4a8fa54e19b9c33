//! What a master knows of every task and job: little for each, so that a million of them fit.

use std::collections::{BTreeMap, BTreeSet};

use super::outcomes::{Kept, Outcomes};
use crate::contract::chunk::{LineCounts, Results};
use crate::contract::share::Share;
use crate::contract::status::Counts;
use crate::contract::task::{Job, Options, Task};
use crate::contract::worker::{EntryId, Seen};
use crate::contract::{Incarnation, MAX_CHILDREN_TOLERATED, MAX_TASK_ID_BYTES, Malformed, TaskId, is_shared};
use crate::machine::{Instant, Stat};
use crate::recipes::assignment::Held;
use crate::recipes::queue::{Need, Needs};

/// Znodes whose trouble is told one by one; of further ones only the number is.
const MAX_REPORTED: usize = 1_000;

/// So much is kept of what entries could carry along: some hundred small tasks. What stands behind that in the queue is
/// read by its worker.
const MAX_SEEN_KEPT: usize = 64 * 1024;

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
    /// How many of its commands were how far then.
    pub lines: LineCounts,
    /// What it said then.
    pub phase: Phase,
}

/// How far a task is.
#[derive(Debug)]
pub enum Phase {
    /// It has no outcome.
    Pending(Pending),
    /// It has one.
    Ended {
        /// As which attempt.
        attempt: u32,
        /// Who ran it to its end.
        by: Option<Incarnation>,
        /// For how long, or how long a command of it on average; 0 if that is not told.
        ran_ms: u64,
        /// It is a chunk.
        is_chunk: bool,
        /// Its user brought the id.
        keyed: bool,
        /// All was dropped but how it ended.
        is_dropped: bool,
        /// Somebody wants it deleted.
        is_doomed: bool,
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
    /// What it is if it is no chunk, or one of which everything is one share.
    pub whole: Unit,
    /// The shares of a chunk, if there are several, or one that says more than that.
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

    /// What it is on an assignment. What is suspected runs one command at a time.
    pub fn held(&self) -> Held {
        let width = if self.need.suspect { self.width.min(1) } else { self.width };
        let mut held = Held::new(width, self.need.suspect);
        held.alone = self.need.is_alone();
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

/// A directory of tasks.
#[derive(Debug, Default)]
pub struct Dir {
    /// Its defaults, once they were read.
    pub options: Option<Options>,
    /// Its version then.
    pub version: i32,
    /// Tasks known in it.
    pub tasks: i32,
    /// Since when it has had none.
    pub empty_since: Option<Instant>,
    reported_full: bool,
}

/// What came of a look at a task.
#[derive(Debug, PartialEq, Eq)]
pub enum Update {
    /// Nothing new.
    Stale,
    /// Something new.
    Changed,
    /// Its directory must be read first, then it again.
    DirUnknown,
    /// It is no task; told once.
    Malformed(Malformed),
}

/// All tasks and jobs.
#[derive(Debug, Default)]
pub struct Table {
    tasks: BTreeMap<TaskId, KnownTask>,
    dirs: BTreeMap<String, Dir>,
    /// Tasks whose directory is not known yet.
    waiting: BTreeMap<String, BTreeSet<TaskId>>,
    /// Tasks with an outcome, in the order in which they are deleted.
    pub outcomes: Outcomes,
    /// Tasks to be expired, by time.
    pub expiring: BTreeSet<(i64, TaskId)>,
    /// Tasks that wait for their time and would be queued otherwise, by the ensemble's clock.
    pub delayed: BTreeSet<(i64, TaskId)>,
    /// Tasks that somebody wants cancelled.
    pub cancelling: BTreeSet<TaskId>,
    /// Tasks that go with their submitter.
    pub orphanable: BTreeMap<TaskId, Box<str>>,
    /// Workers that could not start a pending task, of those few where there are any.
    avoid: BTreeMap<TaskId, Vec<Incarnation>>,
    /// Pending tasks as they were read, to be carried along when they are given out; and how much that is.
    seen: BTreeMap<TaskId, Seen>,
    seen_bytes: usize,
    /// The sets of labels that tasks without an outcome require.
    pub needs: Needs,
    /// Tasks that wait until one set less is required.
    unnumbered: BTreeSet<TaskId>,
    counts: Counts,
    /// Of all tasks in sum.
    bytes: u64,
    reported: BTreeSet<String>,
}

impl Table {
    /// A task.
    pub fn get(&self, task: &TaskId) -> Option<&KnownTask> {
        self.tasks.get(task)
    }

    /// A task without an outcome.
    pub fn pending(&self, task: &TaskId) -> Option<&Pending> {
        match &self.tasks.get(task)?.phase {
            Phase::Pending(pending) => Some(pending),
            Phase::Ended { .. } | Phase::Malformed | Phase::Quarantined => None,
        }
    }

    /// What an entry names, if it is without a result.
    pub fn unit(&self, id: &EntryId) -> Option<&Unit> {
        self.pending(&id.task)?.unit(id.attempt)
    }

    /// How many commands there are in each state; `pending` counts the assigned ones too.
    pub fn counts(&self) -> Counts {
        self.counts.clone()
    }

    /// Bytes of data of all tasks that stand, whatever they are; kept as they come and go.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All tasks.
    pub fn ids(&self) -> impl Iterator<Item = &TaskId> {
        self.tasks.keys()
    }

    /// How many tasks there are.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// The defaults of a directory, if it was read.
    pub fn options(&self, dir: &str) -> Option<&Options> {
        self.dirs.get(dir)?.options.as_ref()
    }

    /// How many charged attempts a task of this directory has if it does not say; `None` if that is not known
    /// yet. `complete` is whether all that stands has been seen.
    pub fn attempts_in(&self, dir: &str, complete: bool) -> Option<u32> {
        let none = Options::default();
        let known = if is_shared(dir) { Some(&none) } else { self.options(dir) };
        known.or(complete.then_some(&none)).map(Options::attempts)
    }

    /// Takes in a directory. Gives the tasks that waited for it, and what is wrong with it.
    pub fn see_dir(
        &mut self,
        name: &str,
        data: &[u8],
        stat: &Stat,
        now: Instant,
    ) -> (Vec<TaskId>, Option<Malformed>) {
        let (job, malformed) = match Job::decode(data) {
            Ok(job) => (job, None),
            Err(malformed) => (Job::new(Options::default()), Some(malformed)),
        };
        let dir = self.dirs.entry(name.to_string()).or_default();
        dir.options = Some(job.options);
        dir.version = stat.version;
        if dir.tasks == 0 {
            dir.empty_since.get_or_insert(now);
        }
        let waiting = self.waiting.remove(name).map(|tasks| tasks.into_iter().collect()).unwrap_or_default();
        (waiting, malformed.filter(|_| self.report(name)))
    }

    /// A directory that has been empty since before `before` is going to be deleted; it is not named again until
    /// it has been empty for as long once more. Shared jobs never are.
    pub fn take_empty_dir(&mut self, before: Instant, now: Instant) -> Option<(String, i32)> {
        let is_old = |dir: &Dir| {
            dir.tasks == 0 && dir.options.is_some() && dir.empty_since.is_some_and(|s| s <= before)
        };
        let (name, dir) = self.dirs.iter_mut().find(|(name, dir)| is_old(dir) && !is_shared(name))?;
        dir.empty_since = Some(now);
        Some((name.clone(), dir.version))
    }

    /// A directory is gone.
    pub fn drop_dir(&mut self, name: &str) {
        self.dirs.remove(name);
        self.waiting.remove(name);
    }

    /// Takes in a task.
    pub fn see(&mut self, task: &TaskId, data: &[u8], stat: &Stat) -> Update {
        if self.tasks.get(task).is_some_and(|known| known.mzxid >= stat.mzxid) {
            return Update::Stale;
        }
        let mut trouble = None;
        let decoded = match task.as_str().len() {
            length if length > MAX_TASK_ID_BYTES => {
                Err(Malformed(format!("its id has {length} bytes, more than {MAX_TASK_ID_BYTES}")))
            }
            _ => Task::decode(data),
        };
        self.avoid.remove(task);
        self.take_seen(task);
        let lines = decoded.as_ref().map_or_else(|_| LineCounts::default(), Task::line_counts);
        let phase = match decoded {
            Ok(mut read) => match read.outcome {
                Some(outcome) => {
                    let is_chunk = read.commands.is_some();
                    let ran_ms =
                        if is_chunk { run_ms(&outcome.results).unwrap_or(0) } else { outcome.ran_ms() };
                    let (attempt, by) = (outcome.attempt, outcome.worker);
                    let (keyed, is_doomed, is_dropped) = (read.keyed, read.delete, read.digest.is_some());
                    Phase::Ended { attempt, by, ran_ms, is_chunk, keyed, is_dropped, is_doomed }
                }
                None => match self.pending_of(task, &read, stat) {
                    Some(Some(pending)) => {
                        if !read.avoid.is_empty() {
                            self.avoid.insert(task.clone(), std::mem::take(&mut read.avoid));
                        }
                        Phase::Pending(pending)
                    }
                    Some(None) => {
                        trouble = Some(Malformed(
                            "too many different sets of required labels are in use; it \
                             waits until one is not"
                                .into(),
                        ));
                        Phase::Quarantined
                    }
                    None => {
                        self.waiting.entry(task.dir().to_string()).or_default().insert(task.clone());
                        return Update::DirUnknown;
                    }
                },
            },
            Err(malformed) => {
                trouble = Some(malformed);
                Phase::Malformed
            }
        };
        let (czxid, mzxid, mtime_ms, version) = (stat.czxid, stat.mzxid, stat.mtime_ms, stat.version);
        let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let waits = matches!((&phase, &trouble), (Phase::Quarantined, Some(_)));
        self.put(task, KnownTask { czxid, mzxid, mtime_ms, version, bytes, lines, phase });
        if waits {
            self.unnumbered.insert(task.clone());
        }
        match trouble.filter(|_| self.report(task.as_str())) {
            Some(malformed) => Update::Malformed(malformed),
            None => Update::Changed,
        }
    }

    /// `None` if the directory is not known yet; `Some(None)` if there are too many sets of labels.
    fn pending_of(&mut self, id: &TaskId, task: &Task, stat: &Stat) -> Option<Option<Pending>> {
        let none = Options::default();
        let job = if is_shared(id.dir()) { &none } else { self.options(id.dir())? };
        let options = task.options.or(job);
        let attempts = options.attempts();
        let last = task.charged.saturating_add(task.deaths).saturating_add(1) >= attempts;
        let Some(need) = self.needs.number(options.require.as_ref(), task.deaths > 0, last) else {
            return Some(None);
        };
        let expires_ms = options.expire_ms.map_or(0, |ms| stat.ctime_ms.saturating_add_unsigned(ms));
        Some(Some(Pending {
            whole: Unit {
                attempt: task.attempt,
                width: task.width(),
                ahead: None,
                need,
                not_before_ms: task.delay_ms.map_or(0, |ms| stat.mtime_ms.saturating_add_unsigned(ms)),
                released_by: task.released_by.clone(),
                cancel_lines: !task.cancel_lines.is_empty(),
            },
            shares: task.shares.iter().map(|share| unit_of(task, share, need, attempts)).collect(),
            is_chunk: task.commands.is_some(),
            priority: options.priority.unwrap_or(0),
            expires_ms,
            cancel: task.cancel,
            orphan_of: options.orphan_of.map(String::into_boxed_str),
            run_ms: run_ms(&task.results),
        }))
    }

    /// A task is gone. Gives the time from which its directory is empty, if it is now.
    pub fn remove(&mut self, task: &TaskId, now: Instant) -> bool {
        if let Some(waiting) = self.waiting.get_mut(task.dir()) {
            waiting.remove(task);
        }
        let Some(known) = self.tasks.remove(task) else { return false };
        self.unindex(task, &known);
        self.avoid.remove(task);
        self.take_seen(task);
        if let Some(dir) = self.dirs.get_mut(task.dir()) {
            dir.tasks -= 1;
            if dir.tasks == 0 {
                dir.empty_since = Some(now);
            }
        }
        true
    }

    /// The workers that could not start the task: others are preferred.
    pub fn avoid(&self, task: &TaskId) -> &[Incarnation] {
        self.avoid.get(task).map_or(&[], Vec::as_slice)
    }

    /// The task may be given out as it was just read, if it is pending and there is room: its worker need not read it.
    pub fn keep_seen(&mut self, task: &TaskId, seen: Seen) {
        if self.pending(task).is_some() && self.seen_bytes + seen.data.len() <= MAX_SEEN_KEPT {
            self.seen_bytes += seen.data.len();
            self.seen.insert(task.clone(), seen);
        }
    }

    /// What was kept of a task. It is out of date when the task has changed, or is given out.
    pub fn take_seen(&mut self, task: &TaskId) -> Option<Seen> {
        let seen = self.seen.remove(task)?;
        self.seen_bytes -= seen.data.len();
        Some(seen)
    }

    /// A term is over: others may have changed what was kept in it.
    pub fn forget_seen(&mut self) {
        self.seen.clear();
        self.seen_bytes = 0;
    }

    /// The task cannot be written; it is left alone from now on.
    pub fn set_aside(&mut self, task: &TaskId) {
        if let Some(mut known) = self.tasks.remove(task) {
            self.unindex(task, &known);
            if let Some(dir) = self.dirs.get_mut(task.dir()) {
                dir.tasks -= 1;
            }
            known.phase = Phase::Quarantined;
            self.put(task, known);
        }
    }

    /// The outcome is going to be deleted: it is not named again. Gives the version of its task, and whether that has a
    /// key.
    pub fn take_outcome(&mut self, task: &TaskId) -> Option<(i32, bool)> {
        let known = self.tasks.get(task)?;
        self.outcomes.remove(task, kept(known)?);
        Some((known.version, matches!(known.phase, Phase::Ended { keyed: true, .. })))
    }

    /// An outcome that was to be deleted, and was not: it is to be deleted in its turn.
    pub fn keep_outcome(&mut self, task: &TaskId) {
        if let Some(known) = self.tasks.get(task)
            && let Some(kept) = kept(known)
        {
            self.outcomes.insert(task, kept);
        }
    }

    /// Whether the trouble with this znode is to be told: once, and not of too many.
    pub fn report(&mut self, name: &str) -> bool {
        self.reported.len() < MAX_REPORTED && self.reported.insert(name.to_string())
    }

    /// A directory that has more children than it should, if there is one that was not told yet.
    pub fn overfull(&mut self, name: &str) -> Option<i32> {
        let dir = self.dirs.get_mut(name)?;
        if dir.tasks <= MAX_CHILDREN_TOLERATED || dir.reported_full {
            return None;
        }
        dir.reported_full = true;
        Some(dir.tasks)
    }

    /// Some tasks that waited for a set of labels less, if there is room now: they are to be read again.
    pub fn take_numberable(&mut self) -> Option<TaskId> {
        let task = self.needs.has_room().then(|| self.unnumbered.pop_first()).flatten()?;
        if let Some(known) = self.tasks.get_mut(&task) {
            // So that the read is news.
            known.mzxid -= 1;
        }
        Some(task)
    }

    fn put(&mut self, task: &TaskId, known: KnownTask) {
        // Before the last look is forgotten, which may hold the same.
        if let Phase::Pending(pending) = &known.phase {
            self.needs.hold(pending.whole.need);
        }
        if let Some(old) = self.tasks.remove(task) {
            self.unindex(task, &old);
        } else {
            let dir = self.dirs.entry(task.dir().to_string()).or_default();
            dir.tasks += 1;
            dir.empty_since = None;
        }
        match &known.phase {
            Phase::Pending(pending) => {
                if pending.expires_ms != 0 {
                    self.expiring.insert((pending.expires_ms, task.clone()));
                }
                if pending.cancel {
                    self.cancelling.insert(task.clone());
                }
                if let Some(submitter) = &pending.orphan_of {
                    self.orphanable.insert(task.clone(), submitter.clone());
                }
            }
            Phase::Ended { .. } | Phase::Malformed | Phase::Quarantined => {}
        }
        if let Some(kept) = kept(&known) {
            self.outcomes.insert(task, kept);
        }
        count(&mut self.counts, &known, |count, more| *count += more);
        self.bytes += u64::from(known.bytes);
        self.tasks.insert(task.clone(), known);
    }

    fn unindex(&mut self, task: &TaskId, known: &KnownTask) {
        match &known.phase {
            Phase::Pending(pending) => {
                self.expiring.remove(&(pending.expires_ms, task.clone()));
                for unit in pending.units() {
                    self.delayed.remove(&(unit.not_before_ms, task.clone()));
                }
                self.cancelling.remove(task);
                self.orphanable.remove(task);
                self.needs.release(pending.whole.need);
            }
            Phase::Ended { .. } => {}
            Phase::Malformed | Phase::Quarantined => {
                self.unnumbered.remove(task);
            }
        }
        if let Some(kept) = kept(known) {
            self.outcomes.remove(task, kept);
        }
        count(&mut self.counts, known, |count, fewer| *count -= fewer);
        self.bytes -= u64::from(known.bytes);
    }
}

/// A share of a chunk whose tasks need this and have so many attempts.
fn unit_of(task: &Task, share: &Share, need: Need, attempts: u32) -> Unit {
    let open = task.open_lines(share);
    Unit {
        attempt: share.attempt,
        width: u32::try_from(open.len()).unwrap_or(u32::MAX),
        ahead: share.ahead,
        need: need.of(share.deaths > 0, share.deaths.saturating_add(1) >= attempts),
        not_before_ms: share.not_before_ms(),
        released_by: share.released_by.clone(),
        cancel_lines: open.iter().any(|place| task.cancel_lines.has(*place)),
    }
}

/// How long a command ran, on average of those that did.
fn run_ms(results: &Results) -> Option<u64> {
    let ran = results.iter().flatten().filter_map(|result| {
        let ran = result.ended_ms?.saturating_sub(result.started_ms?);
        u64::try_from(ran).ok()
    });
    let (count, sum) = ran.fold((0, 0_u64), |(count, sum), ran| (count + 1, sum.saturating_add(ran)));
    sum.checked_div(count)
}

/// What it is for the index of outcomes, if it has one.
fn kept(known: &KnownTask) -> Option<Kept> {
    let Phase::Ended { is_dropped, is_doomed, .. } = known.phase else { return None };
    let failed = if is_dropped || is_doomed { 0 } else { known.lines.ended_badly() };
    Some(Kept { mtime_ms: known.mtime_ms, failed, bytes: u64::from(known.bytes), is_doomed })
}

/// Changes the counts by the commands of a task.
fn count(counts: &mut Counts, known: &KnownTask, change: impl Fn(&mut u64, u64)) {
    let LineCounts { open, done, failed, cancelled, expired } = known.lines;
    match &known.phase {
        Phase::Pending(_) | Phase::Ended { .. } => change(&mut counts.pending, open.into()),
        Phase::Malformed => change(&mut counts.malformed, 1),
        Phase::Quarantined => change(&mut counts.aside, open.max(1).into()),
    }
    change(&mut counts.done, done.into());
    change(&mut counts.failed, failed.into());
    change(&mut counts.cancelled, cancelled.into());
    change(&mut counts.expired, expired.into());
}

#[cfg(test)]
mod tests;
