//! A batch learns what became of many of its tasks at once, where workers make copies of what ended.
//!
//! As long as copies come in, a task that changed is not read at once: mostly a copy of it comes soon. What none came of
//! is read. When little is left nothing is waited for, since workers don't make copies of few.

use std::time::Duration;

use super::parts::part_of;
use super::windows::{MAX_COLLECTS, MAX_UNDELETED};
use super::{Batch, Purpose, Source};
use crate::contract::copies::{Copies, MAX_COPIES, is_of_ended};
use crate::contract::task::Task;
use crate::contract::{name_of, parent_of};
use crate::machine::{Actions, Call, ChangeKind, Instant, Refusal, Reply};
use crate::roles::client::ClientReport;

/// How long after the last that was told of copies more are reckoned with.
const ALIVE: Duration = Duration::from_millis(500);

/// A task that changed is read once, or at most twice this time later if no copy came.
const PATIENCE: Duration = Duration::from_millis(500);

/// Reads of copies in flight; the rest of the window is for tasks of which none come.
const MAX_COPY_READS: usize = 3;

const _: () = assert!(MAX_COPY_READS * MAX_COPIES < MAX_COLLECTS, "some can be read at any time");

/// So few tasks are not worth waiting for copies of them.
const FEW: u64 = MAX_COPIES as u64;

impl Batch {
    /// Some znode beside the tasks changed.
    pub(super) fn on_beside(&mut self, path: &str, kind: ChangeKind, now: Instant) {
        if kind != ChangeKind::Deleted && kind != ChangeKind::Children && is_of_ended(name_of(path)) {
            self.copies_at = Some(now);
            self.copies.insert(path.to_string());
        }
    }

    /// A task changed: it is to be read, now or a little later.
    pub(super) fn on_task_changed(&mut self, unit: u64, now: Instant) {
        if self.awaits_copies(now) {
            self.parts.mark_late(unit);
            if self.parts.is_late() {
                self.late_at.get_or_insert(now + PATIENCE);
            }
        } else {
            self.parts.mark_unread(unit);
        }
    }

    fn awaits_copies(&self, now: Instant) -> bool {
        let much = self.source != Source::Dry || self.parts.pending_count() > FEW;
        much && !self.cancelling && self.copies_at.is_some_and(|at| now.since(at) < ALIVE)
    }

    /// Sees to it that what no copy came of is read.
    pub(super) fn age(&mut self, now: Instant) {
        let Some(at) = self.late_at else { return };
        if !self.awaits_copies(now) {
            self.parts.age();
            self.parts.age();
            self.late_at = None;
        } else if at <= now {
            self.parts.age();
            self.late_at = self.parts.is_late().then(|| now + PATIENCE);
        }
    }

    /// Reads copies, as far as what they tell of can be deleted soon.
    pub(super) fn read_copies(&mut self, out: &mut Actions<ClientReport>) {
        while self.copy_reads < MAX_COPY_READS
            && self.collects < MAX_COLLECTS
            && self.deleting.len() + self.reads + MAX_COPIES <= MAX_UNDELETED
            && let Some(path) = self.copies.pop_first()
        {
            self.calls.issue(out, Call::Get { path: path.clone(), watch: false }, Purpose::ReadCopies(path));
            self.collects += 1;
            self.reads += MAX_COPIES;
            self.copy_reads += 1;
        }
    }

    /// Whatever is wrong with copies, the tasks are read.
    pub(super) fn on_copies(
        &mut self,
        path: &str,
        result: Result<&Reply, Refusal>,
        out: &mut Actions<ClientReport>,
    ) {
        let (Ok(Reply::Data { data, .. }), Some(dir)) = (result, parent_of(path)) else { return };
        let Ok(copies) = Copies::decode(data) else { return };
        for (name, seen) in copies.tasks {
            let Some(unit) = self.unit_at(&format!("{dir}/{name}")) else { continue };
            // Before its watch stands a task is not read either.
            if self.parts.commands(unit).is_none() || !self.parts.is_warm(part_of(unit)) {
                continue;
            }
            if let Ok(task) = Task::decode(seen.data.as_bytes())
                && task.outcome.is_some()
            {
                self.ended(unit, task, seen.version, out);
            }
        }
    }
}
