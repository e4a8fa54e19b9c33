//! Brings queue, assignments and outcomes into line with what is known of one task. Every change of what is known of a
//! task ends in [`Leader::reconcile`], which collects facts, lets [`super::decide`] decide, and does what was decided.

use std::collections::BTreeSet;

use super::Out;
use super::decide::{
    AssignmentFacts, Check, DEAD_UNREAD, Ending, EntryDecision, EntryFacts, FreeDecision, FreeFacts,
    TaskFacts, decide_entry, decide_free, may_hide_tasks,
};
use super::editor::{Edit, Edited};
use super::known::{KnownTask, Pending, Phase, Unit};
use super::leader::Leader;
use crate::contract::worker::EntryId;
use crate::contract::{Incarnation, TaskId};
use crate::machine::{Instant, Level};
use crate::recipes::assignment::{Doubt, Held, Urgency};

impl Leader {
    /// Brings everything into line with what is known of a task.
    pub(super) fn reconcile(&mut self, task: &TaskId, now: Instant, out: &mut Out) {
        let ensemble_ms = self.clock.map(|clock| clock.now_ms(now));
        let queued = if !self.term.is_assigning() {
            if self.is_cancelled(task) { Vec::new() } else { self.free_units(task) }
        } else if self.editor.is_editing(task) {
            Vec::new()
        } else {
            for (id, incarnation, held) in self.assignments.entries_of(task) {
                self.reconcile_entry(&id, &incarnation, held, now, out);
            }
            self.note_uncut(task);
            self.reconcile_free(task, ensemble_ms, now, out)
        };
        self.view.set_queued(task, &queued, ensemble_ms);
    }

    /// Reconciles each of these tasks.
    pub(super) fn reconcile_all(&mut self, tasks: &[TaskId], now: Instant, out: &mut Out) {
        for task in tasks {
            self.reconcile(task, now, out);
        }
    }

    fn is_cancelled(&self, task: &TaskId) -> bool {
        self.view.table.pending(task).is_some_and(|pending| pending.cancel)
    }

    fn reconcile_entry(
        &mut self,
        id: &EntryId,
        incarnation: &Incarnation,
        held: Held,
        now: Instant,
        out: &mut Out,
    ) {
        // Entries of a dead incarnation are up to its failover.
        if !self.view.workers.is_alive(incarnation) || self.failovers.contains(incarnation) {
            return;
        }
        let task = &id.task;
        let known = self.view.table.get(task);
        let facts = EntryFacts {
            task: match known {
                Some(known) => task_facts(known, id, incarnation),
                None => TaskFacts::Missing {
                    is_gone: self.view.tasks.is_complete() || self.doubts.gone.contains(task),
                },
            },
            inherited: held.is_inherited(),
            is_reading: self.view.tasks.is_reading(task.as_str()),
            check: self.doubts.checked.get(task).copied(),
        };
        let decision = decide_entry(&facts);
        if decision != EntryDecision::ReadAgain
            && let Some(ran_ms) = known.and_then(|known| run_known_by(known, &facts.task))
        {
            self.scheduler.loads.note_run(incarnation, ran_ms, 1, now);
        }
        self.carry_out(id, decision, out);
    }

    fn carry_out(&mut self, id: &EntryId, decision: EntryDecision, out: &mut Out) {
        match decision {
            EntryDecision::Keep => {}
            EntryDecision::ReadAgain => {
                if self.doubts.checked.insert(id.task.clone(), Check::Exists).is_none() {
                    self.view.tasks.read_again(id.task.as_str(), out);
                }
            }
            EntryDecision::AskWhetherItExists => {
                self.editor.begin(&id.task, Edit::Peek, out);
            }
            EntryDecision::Continue { cancel_lines } => {
                let (table, known) = (&self.view.table, self.view.table.get(&id.task));
                let (Some(unit), Some(known)) = (table.unit(id), known) else { return };
                self.assignments.describe(id, unit.held());
                if cancel_lines {
                    self.assignments.recheck(id, known.version);
                }
            }
            EntryDecision::Revoke => self.assignments.revoke(id, Urgency::Now),
            EntryDecision::RevokePresumedDone => {
                self.assignments.revoke(id, Urgency::Later);
                self.assignments.presume_done(id);
            }
            EntryDecision::Remove(urgency) => self.assignments.strip(id, urgency),
        }
    }

    /// Notes the shares of which others could have something.
    fn note_uncut(&mut self, task: &TaskId) {
        let uncut = &mut self.scheduler.uncut;
        let before: Vec<EntryId> = uncut.range(EntryId::all_of(task)).cloned().collect();
        before.iter().for_each(|id| {
            uncut.remove(id);
        });
        let Some(pending) = self.view.table.pending(task) else { return };
        let ids = pending
            .units()
            .iter()
            .filter(|unit| unit.behind() > 0)
            .map(|unit| EntryId::new(task, unit.attempt));
        uncut.extend(ids.filter(|id| self.assignments.holder(id).is_some()));
    }

    /// Ends or moves on what nobody has of a task, or gives what of it is to be queued.
    fn reconcile_free(
        &mut self,
        task: &TaskId,
        ensemble_ms: Option<i64>,
        now: Instant,
        out: &mut Out,
    ) -> Vec<Unit> {
        let Some(pending) = self.view.table.pending(task) else { return Vec::new() };
        let free = self.free_units(task);
        let is_expired = pending.expires_ms != 0 && ensemble_ms.is_some_and(|now| now >= pending.expires_ms);
        let is_cancelled = pending.cancel || free.iter().any(|unit| unit.cancel_lines);
        let decision = decide_free(&FreeFacts {
            is_any: !free.is_empty(),
            held_back: self.doubts.held_back.values().any(|tasks| tasks.contains(task)),
            is_outdated: self.view.tasks.is_behind_on(task.as_str()),
            ends: match (is_cancelled, is_expired) {
                (true, _) => Some(Ending::Cancelled),
                (false, true) => Some(Ending::Expired),
                (false, false) => None,
            },
            lost: free
                .iter()
                .find(|unit| unit.ahead.is_some() && !unit.need.suspect)
                .map(|unit| unit.attempt),
        });
        match decision {
            FreeDecision::Wait => {}
            FreeDecision::ReadAgain => self.view.tasks.read_again(task.as_str(), out),
            FreeDecision::End(ending) => {
                let entries = self.assignments.entries_of(task);
                let held = entries.into_iter().map(|(id, _, _)| id.attempt).collect();
                let edit = Edit::End { expired: ending == Ending::Expired, held };
                self.edit_unstarted(task, edit, now, out);
            }
            FreeDecision::MoveOn { from } => {
                self.edit_unstarted(task, Edit::Move { from, worker: None, charge: None }, now, out);
            }
            FreeDecision::Queue => return free,
        }
        Vec::new()
    }

    /// What nobody has of a pending task. Of one that is no chunk only one attempt may be with anybody.
    fn free_units(&self, task: &TaskId) -> Vec<Unit> {
        let Some(pending) = self.view.table.pending(task) else { return Vec::new() };
        if !pending.is_chunk && self.assignments.is_held(task) {
            return Vec::new();
        }
        let is_free = |unit: &&Unit| self.assignments.holder(&EntryId::new(task, unit.attempt)).is_none();
        pending.units().iter().filter(is_free).cloned().collect()
    }

    /// Ends, or moves on, what is on no assignment, unless it may be on one that this leader has not read: then it
    /// may run.
    fn edit_unstarted(&mut self, task: &TaskId, edit: Edit, now: Instant, out: &mut Out) {
        if self.tasks_may_be_hidden(now, out) {
            self.doubts.undecided.insert(task.clone());
        } else {
            self.editor.begin(task, edit, out);
        }
    }

    /// Takes up again what had to wait until every assignment is known. Each of those that are refused is tried again
    /// after a pause, and each answer leads here.
    pub(super) fn decide_undecided(&mut self, now: Instant, out: &mut Out) {
        if self.doubts.undecided.is_empty() || self.tasks_may_be_hidden(now, out) {
            return;
        }
        for task in std::mem::take(&mut self.doubts.undecided) {
            self.reconcile(&task, now, out);
        }
    }

    /// Takes in what came of the question whether a task exists that an earlier leader assigned and the mirror does not
    /// have: one that exists will be in the mirror soon.
    pub(super) fn note_check(&mut self, task: &TaskId, edit: &Edit, edited: &Edited, out: &mut Out) {
        if *edit != Edit::Peek || self.view.table.get(task).is_some() || !self.assignments.is_held(task) {
            return;
        }
        let check = match edited {
            Edited::Pending { .. } => Check::Exists,
            Edited::Written { .. } | Edited::Done | Edited::Refused(_) => Check::Absent,
        };
        self.doubts.checked.insert(task.clone(), check);
        if check == Check::Exists {
            self.view.tasks.read_again(task.dir(), out);
            self.view.tasks.read_again(task.as_str(), out);
        }
    }

    /// Whether nobody may get a task, for some earlier leader may have assigned it: in an assignment that was never
    /// read, or that it might still write.
    pub(super) fn tasks_may_be_hidden(&mut self, now: Instant, out: &mut Out) -> bool {
        let (assigns_for, timeout) = (self.term.assigns_for(now), self.view.timeout);
        let hides = |(incarnation, doubt): &(&Incarnation, Doubt)| {
            let is_alive = self.view.workers.is_alive(incarnation);
            may_hide_tasks(&AssignmentFacts { is_alive, doubt: *doubt, assigns_for, timeout })
        };
        let Some((hidden, doubt)) = self.assignments.unclaimed().find(hides) else { return false };
        if doubt != Doubt::Unwritten && self.view.table.report(&format!("unreadable {hidden}")) {
            let until = match self.view.workers.is_alive(hidden) {
                true => {
                    "until it can, or until that worker is gone, for nobody knows what it runs".to_string()
                }
                false => {
                    format!("until it can, or for {} s, for nobody knows what it ran", DEAD_UNREAD.as_secs())
                }
            };
            out.log(
                Level::Error,
                format!("the assignment of {hidden} cannot be read: no task is given out {until}"),
            );
        }
        true
    }

    /// The tasks that the assignments of these incarnations name.
    pub(super) fn tasks_held_by<'a>(
        &self,
        incarnations: impl IntoIterator<Item = &'a Incarnation>,
    ) -> Vec<TaskId> {
        let entries = incarnations.into_iter().flat_map(|incarnation| self.assignments.entries(incarnation));
        let tasks: BTreeSet<&TaskId> = entries.map(|(id, _)| &id.task).collect();
        tasks.into_iter().cloned().collect()
    }
}

/// What an entry of this worker has to know of its task.
fn task_facts(known: &KnownTask, id: &EntryId, incarnation: &Incarnation) -> TaskFacts {
    match &known.phase {
        Phase::Pending(pending) => pending_facts(pending, id, incarnation),
        Phase::Ended { attempt, by, is_chunk, .. } => TaskFacts::Ended {
            is_older: *attempt < id.attempt,
            knows: *is_chunk || by.as_ref() == Some(incarnation),
        },
        Phase::Malformed => TaskFacts::Malformed,
        Phase::Quarantined => TaskFacts::Quarantined,
    }
}

fn pending_facts(pending: &Pending, id: &EntryId, incarnation: &Incarnation) -> TaskFacts {
    let at = pending.whole.attempt;
    match pending.unit(id.attempt) {
        Some(unit) => TaskFacts::Open { cancel: pending.cancel, cancel_lines: unit.cancel_lines },
        None if pending.is_chunk => TaskFacts::NoShare { is_older: at < id.attempt },
        None if at > id.attempt => {
            TaskFacts::LaterAttempt { released: pending.whole.released_by.as_ref() == Some(incarnation) }
        }
        None => TaskFacts::EarlierAttempt,
    }
}

/// How long a command of the task ran, where that says something about the worker that has the entry.
fn run_known_by(known: &KnownTask, facts: &TaskFacts) -> Option<u64> {
    match (&known.phase, facts) {
        (Phase::Pending(pending), _) => pending.run_ms,
        (Phase::Ended { ran_ms, .. }, TaskFacts::Ended { knows: true, .. }) => Some(*ran_ms),
        (Phase::Ended { .. } | Phase::Malformed | Phase::Quarantined, _) => None,
    }
}
