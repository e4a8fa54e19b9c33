//! Assignments that the ensemble refuses to have read, written or deleted: what the log says of them, and who gets no
//! tasks because of them. The book tries them again (`recipes/assignment.rs`).

use std::time::Duration;

use super::editor::Edit;
use super::{Master, Out};
use crate::contract::{Incarnation, TaskId};
use crate::machine::{Instant, Level, Refusal};
use crate::recipes::assignment::{Deed, Doubt};

/// A leader whose contender is gone can write nothing after so many session timeouts: it has heard of it, or its
/// session is dead. One would do if every master had ours.
const DEPOSED_TIMEOUTS: u32 = 2;

/// Tasks wait for so long at most for the assignment of a dead worker that may not be read. After that what it had may
/// be run at the same attempt again: better than that one ACL stops all.
const DEAD_UNREAD: Duration = Duration::from_secs(60);

impl Master {
    /// Goes on with a takeover of which something was refused.
    pub(super) fn restart_term(&mut self, out: &mut Out) {
        if let Some(term) = &mut self.term
            && term.book.is_stuck()
        {
            term.book.take_over(term.epoch(), out);
        }
        self.check_workers(out);
    }

    /// Says what follows from an assignment that is refused.
    pub(super) fn on_page_refused(
        &mut self,
        incarnation: &Incarnation,
        deed: Deed,
        refusal: Refusal,
        out: &mut Out,
    ) {
        let (deed, so) = match deed {
            Deed::Read => ("be read", "its worker gets no tasks until it can"),
            Deed::Write => ("be written", "its worker gets no new tasks until it can; others do"),
            Deed::Delete => ("be deleted", "it is kept, though nothing is on it"),
        };
        let path = self.params.layout.assignment(incarnation);
        let todo = "look at its ACL and at quotas above it";
        let text = format!("{path} cannot {deed} ({refusal}): {so}. It is tried again and again; {todo}");
        out.log(Level::Error, text);
    }

    /// Says that it is over.
    pub(super) fn on_page_accepted(&mut self, incarnation: &Incarnation, out: &mut Out) {
        let path = self.params.layout.assignment(incarnation);
        out.log(Level::Info, format!("{path} can be written again: its worker gets tasks again"));
    }

    /// Ends, or moves on, what is on no assignment, unless it may be on one that this leader has not read: then it
    /// may run.
    pub(super) fn end_unstarted(&mut self, task: &TaskId, edit: Edit, now: Instant, out: &mut Out) {
        let is_blind = self.is_blind(now, out);
        let Some(term) = &mut self.term else { return };
        if is_blind {
            term.undecided.insert(task.clone());
        } else {
            term.editor.begin(task, edit, out);
        }
    }

    /// Takes up again what had to wait until every assignment is known. Each of those that are refused is tried again
    /// after a pause, and each answer leads here.
    pub(super) fn decide(&mut self, now: Instant, out: &mut Out) {
        if self.term.as_ref().is_none_or(|term| term.undecided.is_empty()) || self.is_blind(now, out) {
            return;
        }
        let undecided = self.term.as_mut().map(|term| std::mem::take(&mut term.undecided));
        for task in undecided.unwrap_or_default() {
            self.settle(&task, now, out);
        }
    }

    /// Whether nobody may get a task, for some earlier leader may have given it out: on an assignment that was never
    /// read, or that it might still write. Of a dead worker nothing runs any more, so it holds up the others only
    /// for a while.
    pub(super) fn is_blind(&mut self, now: Instant, out: &mut Out) -> bool {
        let Some(term) = &self.term else { return false };
        let leads_for = term.leads_since.map_or(Duration::ZERO, |since| now.since(since));
        let alone = leads_for >= self.connected.unwrap_or_default() * DEPOSED_TIMEOUTS;
        let hides =
            |(incarnation, doubt): &(&Incarnation, Doubt)| match (self.fleet.lives(incarnation), doubt) {
                (true, Doubt::Unread | Doubt::Malformed) => true,
                (true, Doubt::Unwritten) => !alone,
                (false, Doubt::Unread) => leads_for < DEAD_UNREAD,
                (false, Doubt::Malformed | Doubt::Unwritten) => false,
            };
        let Some((blind, doubt)) = term.book.unclaimed().find(hides) else { return false };
        if doubt != Doubt::Unwritten && self.table.report(&format!("unreadable {blind}")) {
            let until = match self.fleet.lives(blind) {
                true => {
                    "until it can, or until that worker is gone, for nobody knows what it runs".to_string()
                }
                false => {
                    format!("until it can, or for {} s, for nobody knows what it ran", DEAD_UNREAD.as_secs())
                }
            };
            out.log(
                Level::Error,
                format!("the assignment of {blind} cannot be read: no task is given out {until}"),
            );
        }
        true
    }
}
