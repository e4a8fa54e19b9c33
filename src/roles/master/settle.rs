//! Brings queue, assignments and outcomes into line with what is known of one task. Every change of what is known of a
//! task ends here.
//!
//! An entry of a page names a task at an attempt, or a share of a chunk by its number. Of a plain task only one attempt
//! may be with anybody at a time; shares have no line in common, so each is by itself. A number that is gone never
//! comes back, and nothing of it runs: its lines have results, or its holder gave them back, or is dead.
//!
//! What an earlier leader gave out, and the mirror does not have, is looked at: events come over another way than
//! answers, so a page may name a task that the mirror has yet to hear of. And while an assignment cannot be read,
//! nobody knows what is on it, so nothing that might be is given out or ended.

use std::time::Duration;

use super::editor::{Edit, Edited};
use super::leading::Term;
use super::table::{Pending, Phase, Unit};
use super::{Master, Out};
use crate::contract::worker::EntryId;
use crate::contract::{Incarnation, TaskId};
use crate::machine::{Instant, Level};
use crate::recipes::assignment::{Doubt, Held, Urgency};
use crate::recipes::queue::Place;

/// A leader whose contender is gone can write nothing after so many session timeouts: it has heard of it, or its
/// session is dead. One would do if every master had ours.
const DEPOSED_TIMEOUTS: u32 = 2;

/// Tasks wait for so long at most for the assignment of a dead worker that may not be read. After that what it had may
/// be run at the same attempt again: better than that one ACL stops all.
const DEAD_UNREAD: Duration = Duration::from_secs(60);

impl Master {
    pub(super) fn settle(&mut self, task: &TaskId, now: Instant, out: &mut Out) {
        let ensemble_ms = self.term.as_ref().and_then(|term| Some(term.clock?.now_ms(now)));
        self.queue.remove_all(task);
        let Some(term) = self.term.as_mut().filter(|term| term.is_leading()) else {
            return self.enqueue(task, ensemble_ms);
        };
        if term.editor.is_editing(task) {
            return;
        }
        for (id, incarnation, held) in term.book.entries_of(task) {
            self.settle_entry(&id, &incarnation, held, now, out);
        }
        self.note_behind(task);
        self.settle_unheld(task, ensemble_ms, now, out);
    }

    fn settle_entry(
        &mut self,
        id: &EntryId,
        incarnation: &Incarnation,
        held: Held,
        now: Instant,
        out: &mut Out,
    ) {
        let task = &id.task;
        let Some(term) = &mut self.term else { return };
        // What is on a dead incarnation's page is up to its failover.
        if !self.fleet.lives(incarnation) || term.failovers.contains(incarnation) {
            return;
        }
        let Some(known) = self.table.get(task) else { return self.settle_missing(id, held, out) };
        let is_late = match &known.phase {
            Phase::Pending(pending) => pending.is_chunk && pending.whole.attempt < id.attempt,
            Phase::Ended { attempt, .. } => *attempt < id.attempt,
            Phase::Malformed | Phase::Aside => false,
        };
        // Somebody had it run again, and the leader before us gave it out: the mirror is late. It is asked once.
        if is_late && (!term.looked.contains_key(task) || self.tasks.is_reading(task.as_str())) {
            if term.looked.insert(task.clone(), true).is_none() {
                self.tasks.read_again(task.as_str(), out);
            }
            return;
        }
        match &known.phase {
            Phase::Pending(pending) => {
                let unit = pending.unit(id.attempt);
                match unit {
                    Some(_) if pending.cancel => term.book.revoke(id, Urgency::Now),
                    Some(unit) => {
                        term.book.describe(id, unit.held());
                        if unit.cancel_lines {
                            term.book.look(id, known.version);
                        }
                    }
                    None if pending.is_chunk => term.book.strip(id, Urgency::Now),
                    None if pending.whole.attempt > id.attempt => {
                        if pending.whole.released_by.as_ref() == Some(incarnation) {
                            term.book.strip(id, Urgency::Now);
                        } else {
                            term.book.revoke(id, Urgency::Now);
                        }
                    }
                    None => {}
                }
                if let Some(ran_ms) = pending.run_ms {
                    term.loads.note_run(incarnation, ran_ms, 1, now);
                }
            }
            Phase::Ended { ran_ms, is_chunk, by, .. } if *is_chunk || by.as_ref() == Some(incarnation) => {
                term.loads.note_run(incarnation, *ran_ms, 1, now);
                // Nobody can get it again, so that is written when something else is.
                term.book.strip(id, Urgency::Later);
            }
            // Its worker does not know yet that it is over.
            Phase::Ended { .. } | Phase::Malformed => term.book.revoke(id, Urgency::Now),
            Phase::Aside => {}
        }
    }

    /// An entry of a task that the mirror does not have.
    fn settle_missing(&mut self, id: &EntryId, held: Held, out: &mut Out) {
        let task = &id.task;
        let Some(term) = &mut self.term else { return };
        // It may be one that is yet to be read. (What this leader gave out it knew, so that is gone.)
        if held.inherited && !self.tasks.is_complete() && !term.gone.contains(task) {
            return;
        }
        // The mirror may be late: the task may have been made and given out just before the takeover.
        if held.inherited && term.looked.get(task) != Some(&false) {
            if !term.looked.contains_key(task) {
                term.editor.begin(task, Edit::Peek, out);
            }
            return;
        }
        // A task that is gone ended most probably, and was collected before we saw its outcome. Its entry is
        // revoked, to be certain; until the worker vouches that it is dead it takes up no slot.
        term.book.revoke(id, Urgency::Later);
        term.book.make_ghost(id);
    }

    /// Notes the shares of which others could have something.
    fn note_behind(&mut self, task: &TaskId) {
        let Some(term) = &mut self.term else { return };
        let before: Vec<EntryId> = term.behind.range(EntryId::all_of(task)).cloned().collect();
        before.iter().for_each(|id| {
            term.behind.remove(id);
        });
        let Some(pending) = self.table.pending(task) else { return };
        let ids = pending
            .units()
            .iter()
            .filter(|unit| unit.behind() > 0)
            .map(|unit| EntryId::new(task, unit.attempt));
        let held: Vec<EntryId> = ids.filter(|id| term.book.holder(id).is_some()).collect();
        term.behind.extend(held);
    }

    /// What nobody has of a task ends, moves, or is queued.
    fn settle_unheld(&mut self, task: &TaskId, ensemble_ms: Option<i64>, now: Instant, out: &mut Out) {
        let Some(term) = &self.term else { return };
        let Some(Phase::Pending(pending)) = self.table.get(task).map(|known| &known.phase) else { return };
        let unheld = unheld(term, task, pending);
        // It may still run where its page is gone.
        let is_held_back = term.held_back.values().any(|tasks| tasks.contains(task));
        if unheld.is_empty() || is_held_back {
            return;
        }
        if self.tasks.is_behind_on(task.as_str()) {
            return self.tasks.read_again(task.as_str(), out);
        }
        let expired = pending.expires_ms != 0 && ensemble_ms.is_some_and(|now| now >= pending.expires_ms);
        let cancelled = pending.cancel || unheld.iter().any(|unit| unit.cancel_lines);
        if cancelled || expired {
            let held = term.book.entries_of(task).into_iter().map(|(id, _, _)| id.attempt).collect();
            self.end_unstarted(task, Edit::End { expired: !cancelled, held }, now, out);
        } else if let Some(lost) = unheld.iter().find(|unit| unit.ahead.is_some() && !unit.need.suspect) {
            // Somebody had it, and its page is gone: a number is given out once.
            let edit = Edit::Move { from: lost.attempt, worker: None, charge: None };
            self.end_unstarted(task, edit, now, out);
        } else {
            self.enqueue(task, ensemble_ms);
        }
    }

    /// Puts what nobody has of a pending task where it belongs: in the queue, or among what waits.
    fn enqueue(&mut self, task: &TaskId, ensemble_ms: Option<i64>) {
        let Some(known) = self.table.get(task) else { return };
        let Phase::Pending(pending) = &known.phase else { return };
        if pending.cancel {
            return;
        }
        let (priority, czxid) = (pending.priority, known.czxid);
        let units = match &self.term {
            Some(term) => unheld(term, task, pending),
            None => pending.units().to_vec(),
        };
        for unit in units {
            let waits = unit.not_before_ms != 0 && ensemble_ms.is_none_or(|now| now < unit.not_before_ms);
            if waits {
                self.table.delayed.insert((unit.not_before_ms, task.clone()));
            } else {
                let place = Place { priority, need: unit.need, czxid };
                self.queue.insert(&EntryId::new(task, unit.attempt), place);
            }
        }
    }

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

/// What nobody has of a task. Of one that is no chunk only one attempt may be with anybody.
fn unheld(term: &Term, task: &TaskId, pending: &Pending) -> Vec<Unit> {
    if !pending.is_chunk && term.book.is_held(task) {
        return Vec::new();
    }
    let is_free = |unit: &&Unit| term.book.holder(&EntryId::new(task, unit.attempt)).is_none();
    pending.units().iter().filter(is_free).cloned().collect()
}
