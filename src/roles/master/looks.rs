//! Looks at tasks that an earlier leader gave out and that the mirror does not have. Its events come over another
//! way than answers, so a page may name a task that the mirror has yet to hear of; only a read tells whether it is gone.

use super::editor::{Edit, Edited};
use super::leading::UNREAD;
use super::table::Known;
use super::{Master, Out};
use crate::contract::TaskId;
use crate::machine::Instant;

impl Master {
    /// Takes in what a look at a task has shown that an earlier leader gave out and the mirror does not have: one
    /// that stands will be in the mirror soon.
    pub(super) fn note_look(&mut self, task: &TaskId, edit: &Edit, edited: &Edited, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        if *edit != Edit::Peek || self.table.get(task).is_some() || term.book.holder(task).is_none() {
            return;
        }
        let stands = matches!(edited, Edited::Pending { .. });
        term.looked.insert(task.clone(), stands);
        if stands {
            self.tasks.read_again(task.dir(), out);
            self.tasks.read_again(task.as_str(), out);
        }
    }

    /// Reads what was given out without having been read, and is held still: should it be no task, or at another attempt,
    /// its worker leaves it alone, and nobody would know.
    pub(super) fn read_what_is_held(&mut self, now: Instant, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        while let Some((_, task)) = term.unread.pop_front_if(|(at, _)| *at <= now) {
            let believed = self.table.get(&task).is_some_and(Known::is_believed);
            if believed && term.book.holder(&task).is_some() {
                self.tasks.read_again(task.as_str(), out);
            }
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

    /// Settles tasks that an earlier leader gave out.
    pub(super) fn settle_held(&mut self, held: Vec<TaskId>, now: Instant, out: &mut Out) {
        self.settle_all(&held, now, out);
        if let Some(term) = &mut self.term {
            term.unread.extend(held.into_iter().map(|task| (now + UNREAD, task)));
        }
    }
}
