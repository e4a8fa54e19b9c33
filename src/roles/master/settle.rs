//! Brings queue, assignments and outcomes into line with what is known of one task. Every change of what is known of a
//! task ends here.
//!
//! An entry of a page names a task at an attempt, or a share of a chunk by its number. Of a plain task only one attempt
//! may be with anybody at a time; shares have no line in common, so each is by itself. A number that is gone never
//! comes back, and nothing of it runs: its lines have results, or its holder gave them back, or is dead.

use super::closed::is_held_back;
use super::editor::Edit;
use super::leading::Term;
use super::table::{Pending, Phase, Unit};
use super::{Master, Out};
use crate::contract::worker::EntryId;
use crate::contract::{Incarnation, TaskId};
use crate::machine::Instant;
use crate::recipes::assignment::{Haste, Held};
use crate::recipes::queue::Place;

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
            self.settle_entry(&id, &incarnation, held, out);
        }
        self.note_behind(task);
        self.settle_unheld(task, ensemble_ms, now, out);
    }

    fn settle_entry(&mut self, id: &EntryId, incarnation: &Incarnation, held: Held, out: &mut Out) {
        let task = &id.task;
        let Some(term) = &mut self.term else { return };
        // What is on a dead incarnation's page is up to its burial.
        if !self.fleet.lives(incarnation) || term.burials.contains(incarnation) {
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
                    Some(_) if pending.cancel => term.book.revoke(id, Haste::Now),
                    Some(unit) => {
                        term.book.describe(id, unit.held());
                        if unit.cancel_lines {
                            term.book.look(id, known.version);
                        }
                    }
                    None if pending.is_chunk => term.book.strip(id, Haste::Now),
                    None if pending.whole.attempt > id.attempt => {
                        if pending.whole.released_by.as_ref() == Some(incarnation) {
                            term.book.strip(id, Haste::Now);
                        } else {
                            term.book.revoke(id, Haste::Now);
                        }
                    }
                    None => {}
                }
                if let Some(ran_ms) = pending.run_ms {
                    term.roster.note_run(incarnation, ran_ms, 1);
                }
            }
            Phase::Ended { ran_ms, is_chunk, by, .. } if *is_chunk || by.as_ref() == Some(incarnation) => {
                term.roster.note_run(incarnation, *ran_ms, 1);
                // Nobody can get it again, so that is written when something else is.
                term.book.strip(id, Haste::Later);
            }
            // Its worker does not know yet that it is over.
            Phase::Ended { .. } | Phase::Malformed => term.book.revoke(id, Haste::Now),
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
        term.book.revoke(id, Haste::Later);
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
        if unheld.is_empty() || is_held_back(task, term.held_back.values()) {
            return;
        }
        if self.tasks.is_behind_on(task.as_str()) {
            return self.tasks.read_again(task.as_str(), out);
        }
        let expired = pending.expires_ms != 0 && ensemble_ms.is_some_and(|now| now >= pending.expires_ms);
        let held = || {
            let all = term.book.entries_of(task);
            all.into_iter().map(|(id, _, _)| id.attempt).collect::<Vec<u32>>()
        };
        if pending.cancel || unheld.iter().any(|unit| unit.cancel_lines) {
            let edit = Edit::Cancel { held: held() };
            self.end_unstarted(task, edit, now, out);
        } else if expired {
            let edit = Edit::Expire { held: held() };
            self.end_unstarted(task, edit, now, out);
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
}

/// What nobody has of a task. Of one that is no chunk only one attempt may be with anybody.
fn unheld(term: &Term, task: &TaskId, pending: &Pending) -> Vec<Unit> {
    if !pending.is_chunk && term.book.is_held(task) {
        return Vec::new();
    }
    let is_free = |unit: &&Unit| term.book.holder(&EntryId::new(task, unit.attempt)).is_none();
    pending.units().iter().filter(is_free).cloned().collect()
}
