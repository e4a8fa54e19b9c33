//! What a leader makes of a page that is gone while its worker lives.
//!
//! A worker that drains, or gave its incarnation up, deletes its page when all that it ran is dead. But somebody else
//! may have deleted it, and then its worker runs on until it hears of that. It kills what it runs, hands it back, and
//! only then takes its registration away. So nobody else gets those tasks before that is gone.

use std::collections::BTreeSet;

use super::{Master, Out};
use crate::contract::{Incarnation, TaskId};
use crate::machine::Instant;

impl Master {
    /// A page is gone; these tasks stood on it.
    pub(super) fn on_closed(
        &mut self,
        incarnation: &Incarnation,
        tasks: Vec<TaskId>,
        now: Instant,
        out: &mut Out,
    ) {
        let Some(term) = &mut self.term else { return };
        // It may have been read as somebody's page, and not be closed at all.
        let is_gone = !term.book.has(incarnation);
        term.forget_newborn(incarnation);
        match self.fleet.get(incarnation) {
            None => term.roster.forget(incarnation),
            Some(registration) if is_gone && !registration.draining && !tasks.is_empty() => {
                term.held_back.entry(incarnation.clone()).or_default().extend(tasks.iter().cloned());
            }
            Some(_) => {}
        }
        self.settle_all(&tasks, now, out);
    }

    /// The worker's registration is gone: whatever it ran is dead.
    pub(super) fn give_back(&mut self, incarnation: &Incarnation, now: Instant, out: &mut Out) {
        let held_back = self.term.as_mut().and_then(|term| term.held_back.remove(incarnation));
        for task in held_back.unwrap_or_default() {
            self.settle(&task, now, out);
        }
    }
}

/// Whether the task may still run where its page is gone.
pub(super) fn is_held_back<'a>(
    task: &TaskId,
    mut held_back: impl Iterator<Item = &'a BTreeSet<TaskId>>,
) -> bool {
    held_back.any(|tasks| tasks.contains(task))
}
