//! Looks at tasks that an earlier leader gave out and that the mirror does not have. Its events come over another
//! way than answers, so a page may name a task that the mirror has yet to hear of; only a read tells whether it is
//! gone.

use super::editor::{Edit, Edited};
use super::{Master, Out};
use crate::contract::TaskId;
use crate::machine::Instant;

impl Master {
    /// Takes in what a look at a task has shown that an earlier leader gave out and the mirror does not have: one
    /// that stands will be in the mirror soon.
    pub(super) fn note_look(&mut self, task: &TaskId, edit: &Edit, edited: &Edited, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        if *edit != Edit::Peek || self.table.get(task).is_some() || !term.book.is_held(task) {
            return;
        }
        let stands = matches!(edited, Edited::Pending { .. });
        term.looked.insert(task.clone(), stands);
        if stands {
            self.tasks.read_again(task.dir(), out);
            self.tasks.read_again(task.as_str(), out);
        }
    }

    /// The mirror has seen a task go.
    pub(super) fn forget_look(&mut self, task: &TaskId) {
        if let Some(term) = &mut self.term {
            term.looked.remove(task);
            term.looks.forget(task);
        }
    }

    /// Settles each of these tasks.
    pub(super) fn settle_all(&mut self, tasks: &[TaskId], now: Instant, out: &mut Out) {
        for task in tasks {
            self.settle(task, now, out);
        }
    }
}
