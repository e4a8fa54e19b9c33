//! All tasks and jobs that a master knows, with an index for each question that is asked of them.

use std::collections::{BTreeMap, BTreeSet};

use super::carried::Carried;
use super::known::{KnownTask, Pending, Phase, Unit, count, kept, run_ms, unit_of};
use super::outcomes::Outcomes;
use crate::contract::chunk::LineCounts;
use crate::contract::status::Counts;
use crate::contract::task::{Job, Options, Task};
use crate::contract::worker::{EntryId, Seen};
use crate::contract::{Incarnation, MAX_CHILDREN_TOLERATED, MAX_TASK_ID_BYTES, Malformed, TaskId, is_shared};
use crate::machine::{Instant, Stat};
use crate::recipes::queue::Needs;

/// How many znodes have their trouble logged one by one. Of further ones only the number is reported.
const MAX_REPORTED: usize = 1_000;

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

/// What a read of a task showed.
#[derive(Debug, PartialEq, Eq)]
pub enum Update {
    /// Nothing new.
    Stale,
    /// Something new.
    Changed,
    /// Its directory must be read first, then it again.
    DirUnknown,
    /// It is no task. This is reported once.
    Malformed(Malformed),
}

/// Why the phase of a pending task is not known.
enum Unknown {
    /// Its directory was not read.
    Dir,
    /// What it needs has no number: there are too many sets of labels.
    Need,
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
    /// Pending tasks as they were read.
    pub carried: Carried,
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

    /// How many bytes of data all existing tasks have.
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
    /// yet. `complete` is whether every existing task has been read.
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
        let decoded = match task.as_str().len() {
            length if length > MAX_TASK_ID_BYTES => {
                Err(Malformed(format!("its id has {length} bytes, more than {MAX_TASK_ID_BYTES}")))
            }
            _ => Task::decode(data),
        };
        self.avoid.remove(task);
        self.carried.take(task);
        let lines = decoded.as_ref().map_or_else(|_| LineCounts::default(), Task::line_counts);
        let (phase, trouble) = match decoded {
            Ok(read) => match self.phase_of(task, read, stat) {
                Ok(phase) => (phase, None),
                Err(Unknown::Dir) => {
                    self.waiting.entry(task.dir().to_string()).or_default().insert(task.clone());
                    return Update::DirUnknown;
                }
                Err(Unknown::Need) => {
                    let trouble =
                        "too many different sets of required labels are in use; it waits until one is not";
                    (Phase::Quarantined, Some(Malformed(trouble.into())))
                }
            },
            Err(malformed) => (Phase::Malformed, Some(malformed)),
        };
        let (czxid, mzxid, mtime_ms, version) = (stat.czxid, stat.mzxid, stat.mtime_ms, stat.version);
        let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let waits = matches!(phase, Phase::Quarantined);
        self.put(task, KnownTask { czxid, mzxid, mtime_ms, version, bytes, lines, phase });
        if waits {
            self.unnumbered.insert(task.clone());
        }
        match trouble.filter(|_| self.report(task.as_str())) {
            Some(malformed) => Update::Malformed(malformed),
            None => Update::Changed,
        }
    }

    fn phase_of(&mut self, task: &TaskId, mut read: Task, stat: &Stat) -> Result<Phase, Unknown> {
        if let Some(outcome) = &read.outcome {
            return Ok(Phase::ended(&read, outcome));
        }
        let pending = self.pending_of(task, &read, stat)?;
        if !read.avoid.is_empty() {
            self.avoid.insert(task.clone(), std::mem::take(&mut read.avoid));
        }
        Ok(Phase::Pending(pending))
    }

    fn pending_of(&mut self, id: &TaskId, task: &Task, stat: &Stat) -> Result<Pending, Unknown> {
        let none = Options::default();
        let job = if is_shared(id.dir()) { &none } else { self.options(id.dir()).ok_or(Unknown::Dir)? };
        let options = task.options.or(job);
        let attempts = options.attempts();
        let last = task.charged.saturating_add(task.deaths).saturating_add(1) >= attempts;
        let need = self.needs.number(options.require.as_ref(), task.deaths > 0, last);
        let need = need.ok_or(Unknown::Need)?;
        let expires_ms = options.expire_ms.map_or(0, |ms| stat.ctime_ms.saturating_add_unsigned(ms));
        Ok(Pending {
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
        })
    }

    /// A task is gone. Gives the time from which its directory is empty, if it is now.
    pub fn remove(&mut self, task: &TaskId, now: Instant) -> bool {
        if let Some(waiting) = self.waiting.get_mut(task.dir()) {
            waiting.remove(task);
        }
        let Some(known) = self.tasks.remove(task) else { return false };
        self.unindex(task, &known);
        self.avoid.remove(task);
        self.carried.take(task);
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

    /// The task may be assigned as it was just read, if it is pending and there is room: its worker need not read it.
    pub fn keep_seen(&mut self, task: &TaskId, seen: Seen) {
        if self.pending(task).is_some() {
            self.carried.keep(task, seen);
        }
    }

    /// Leaves a task alone from now on, for it cannot be written.
    pub fn quarantine(&mut self, task: &TaskId) {
        if let Some(mut known) = self.tasks.remove(task) {
            self.unindex(task, &known);
            if let Some(dir) = self.dirs.get_mut(task.dir()) {
                dir.tasks -= 1;
            }
            known.phase = Phase::Quarantined;
            self.put(task, known);
        }
    }

    /// Takes out an outcome that is going to be deleted. Gives the version of its task, and whether that has a key.
    pub fn take_outcome(&mut self, task: &TaskId) -> Option<(i32, bool)> {
        let known = self.tasks.get(task)?;
        self.outcomes.remove(task, kept(known)?);
        Some((known.version, matches!(known.phase, Phase::Ended { keyed: true, .. })))
    }

    /// Puts back an outcome that was not deleted: it is to be deleted in its turn.
    pub fn keep_outcome(&mut self, task: &TaskId) {
        if let Some(known) = self.tasks.get(task)
            && let Some(kept) = kept(known)
        {
            self.outcomes.insert(task, kept);
        }
    }

    /// Whether the trouble with this znode is to be logged: once, and not for too many znodes.
    pub fn report(&mut self, name: &str) -> bool {
        self.reported.len() < MAX_REPORTED && self.reported.insert(name.to_string())
    }

    /// A directory that has more children than it should, unless that was reported before.
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
        // Before the last read is forgotten, which may need the same.
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

#[cfg(test)]
mod tests;
