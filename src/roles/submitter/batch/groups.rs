//! A batch learns what became of many of its tasks at once, where workers write outcomes as groups.
//!
//! What stands in a group stands nowhere else, and is as good as if it stood in the task: it is shown, and the task deleted.
//! Should the task have been changed meanwhile, it is deleted all the same, as long as it is at the attempt that was shown.
//! A group that the batch never hears of costs time and nothing else: its worker writes into the tasks after a while.

use super::parts::part_of;
use super::windows::{MAX_COLLECTS, MAX_UNDELETED};
use super::{Batch, Purpose};
use crate::contract::copies::{Copies, MAX_COPIES, is_of_ended};
use crate::contract::task::Task;
use crate::contract::{TaskId, name_of, parent_of};
use crate::machine::{Actions, Call, ChangeKind, Level, Refusal, Reply};
use crate::roles::client::ClientReport;

/// Reads of groups in flight; the rest of the window is for tasks whose outcomes stand in none.
const MAX_GROUP_READS: usize = 3;

/// How often a task that was shown is looked at because it changed before it could be deleted. What is left then is deleted
/// by the leader, in time.
const MAX_LOOKS: u32 = 8;

const _: () = assert!(MAX_GROUP_READS * MAX_COPIES < MAX_COLLECTS, "some can be read at any time");

impl Batch {
    /// Some znode beside the tasks changed.
    pub(super) fn on_beside(&mut self, path: &str, kind: ChangeKind) {
        if kind == ChangeKind::Data && is_of_ended(name_of(path)) {
            self.queue_group(path.to_string());
        }
    }

    /// A group is to be read, after those that came before.
    pub(super) fn queue_group(&mut self, path: String) {
        if !self.groups.contains(&path) {
            self.groups.push_back(path);
        }
    }

    /// Reads groups, as far as what they tell of can be deleted soon.
    pub(super) fn read_groups(&mut self, out: &mut Actions<ClientReport>) {
        while self.group_reads < MAX_GROUP_READS
            && self.collects < MAX_COLLECTS
            && self.deleting.len() + self.awaited() + MAX_COPIES <= MAX_UNDELETED
            && let Some(path) = self.groups.pop_front()
        {
            self.calls.issue(out, Call::Get { path: path.clone(), watch: false }, Purpose::ReadGroup(path));
            self.collects += 1;
            self.group_reads += 1;
        }
    }

    /// How many outcomes may come of what is being read.
    pub(super) fn awaited(&self) -> usize {
        self.reads + self.group_reads * MAX_COPIES
    }

    /// Takes in a group. If it is gone, all that was in it is settled; if it cannot be read, its worker sees to that.
    pub(super) fn on_group(
        &mut self,
        path: String,
        result: Result<&Reply, Refusal>,
        out: &mut Actions<ClientReport>,
    ) {
        let (Ok(Reply::Data { data, .. }), Some(dir)) = (result, parent_of(&path).map(name_of)) else {
            return;
        };
        let Ok(group) = Copies::decode(data) else { return };
        let mut early = false;
        for (name, seen) in group.tasks {
            let Some(unit) = self.unit_at(&self.layout.below_tasks(&format!("{dir}/{name}"))) else {
                continue;
            };
            if let Some(open) = self.open.get_mut(&unit) {
                // It ended before we heard that it was made.
                open.told = true;
                early = true;
                self.ears.told.insert(part_of(unit));
            } else if self.parts.commands(unit).is_some()
                && let Ok(task) = Task::decode(seen.data.as_bytes())
                && task.outcome.is_some()
            {
                self.ears.told.insert(part_of(unit));
                self.ended(unit, task, seen.version, out);
            }
        }
        if early {
            self.early_groups.insert(path);
        }
    }

    /// Groups that told of tasks too early are read again.
    pub(super) fn read_early_groups(&mut self) {
        for path in std::mem::take(&mut self.early_groups) {
            self.queue_group(path);
        }
    }

    /// The connection is gone; what was not taken in yet is read on the next.
    pub(super) fn forget_group_reads(&mut self) {
        let reads = self.calls.purposes().filter_map(|purpose| match purpose {
            Purpose::ReadGroup(path) => Some(path.clone()),
            _ => None,
        });
        for path in reads.collect::<Vec<_>>() {
            self.queue_group(path);
        }
        self.read_early_groups();
        self.group_reads = 0;
    }

    /// A task of which an outcome was shown was changed since it was written.
    pub(super) fn look_before_deleting(&mut self, unit: u64, out: &mut Actions<ClientReport>) {
        let Some(deleting) = self.deleting.get_mut(&unit) else { return };
        deleting.looks += 1;
        if deleting.looks > MAX_LOOKS {
            return self.leave(unit);
        }
        self.calls.issue(out, Call::Get { path: self.path(unit), watch: false }, Purpose::Recheck(unit));
        self.collects += 1;
    }

    pub(super) fn on_rechecked(
        &mut self,
        unit: u64,
        result: Result<&Reply, Refusal>,
        out: &mut Actions<ClientReport>,
    ) {
        let Some(deleting) = self.deleting.get_mut(&unit) else { return };
        match result {
            Ok(Reply::Data { data, stat })
                if Task::decode(data).is_ok_and(|task| task.attempt == deleting.attempt) =>
            {
                deleting.version = stat.version;
                self.shown.push_back(unit);
                return;
            }
            Ok(_) => {
                let id: TaskId = self.id(unit);
                out.log(Level::Warn, format!("the task {id} was changed by someone after its outcome"));
            }
            Err(Refusal::NoNode) => {}
            Err(refusal) => {
                out.log(Level::Warn, format!("cannot look at the task {}: {refusal}", self.path(unit)));
            }
        }
        self.deleting.remove(&unit);
    }
}
