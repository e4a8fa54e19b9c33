//! Pending tasks as a leader read them, for entries to carry along, so that workers need not read them.

use std::collections::BTreeMap;

use crate::contract::TaskId;
use crate::contract::worker::Seen;

/// How much is kept: some hundred small tasks. The workers read whatever is behind that in the queue.
const MAX_BYTES: usize = 64 * 1024;

/// Tasks as they were read.
#[derive(Debug, Default)]
pub struct Carried {
    tasks: BTreeMap<TaskId, Seen>,
    bytes: usize,
}

impl Carried {
    /// Keeps a task that was not kept, if there is room.
    pub fn keep(&mut self, task: &TaskId, seen: Seen) {
        if self.bytes + seen.data.len() <= MAX_BYTES {
            self.bytes += seen.data.len();
            self.tasks.insert(task.clone(), seen);
        }
    }

    /// What was kept of a task. It is out of date when the task has changed, or is assigned.
    pub fn take(&mut self, task: &TaskId) -> Option<Seen> {
        let seen = self.tasks.remove(task)?;
        self.bytes -= seen.data.len();
        Some(seen)
    }

    /// A term is over: others may have changed what was kept in it.
    pub fn clear(&mut self) {
        *self = Carried::default();
    }
}
