//! What follows a worker's death: each of its unfinished tasks goes on to its next attempt, then its assignment
//! is deleted.
//!
//! Whom to charge is decided over all of them together: those that were revoked are not charged; if some had
//! been charged before, only those are, since they are the suspects. What stood too far behind on the page to have been
//! started is neither.

use std::collections::BTreeMap;

use super::dispatch::{Roster, charge_window, entries_of};
use super::editor::{Edit, Edited};
use super::{Master, Out};
use crate::contract::task::Outcome;
use crate::contract::{Incarnation, TaskId};
use crate::machine::{Instant, Refusal};
use crate::recipes::assignment::Book;

/// The tasks of one dead incarnation.
#[derive(Debug)]
pub struct Burial {
    incarnation: Incarnation,
    tasks: BTreeMap<TaskId, Stage>,
    /// They in the order in which they were to be started.
    order: Vec<TaskId>,
    /// How many of those without an outcome can have been started, if that is known.
    window: Option<usize>,
}

#[derive(Clone, Debug, PartialEq)]
enum Stage {
    /// It is not known yet whether it was charged before.
    Looking { attempt: u32, revoked: bool },
    /// It is to be moved on.
    Known { attempt: u32, revoked: bool, charged: u32 },
    /// It ended, and that stands in a group. It is to be written into the task.
    Ended(Box<Outcome>),
    /// It is to be moved on, and it is decided whether that is charged.
    Decided { attempt: u32, charge: bool },
    /// It is being moved on.
    Moving,
    /// The entry is dealt with.
    Done,
}

impl Burial {
    /// The burial of an incarnation that had these tasks, in this order, at these attempts, revoked or not. Of those
    /// that have no outcome, only so many can have been started; if that is not known, all.
    pub fn new(incarnation: &Incarnation, tasks: Vec<(TaskId, u32, bool)>, window: Option<usize>) -> Burial {
        let order = tasks.iter().map(|(task, _, _)| task.clone()).collect();
        let stage = |(task, attempt, revoked)| (task, Stage::Looking { attempt, revoked });
        let tasks = tasks.into_iter().map(stage).collect();
        Burial { incarnation: incarnation.clone(), tasks, order, window }
    }

    /// The tasks that must be looked at, whether now or when they were edited for another reason.
    pub fn to_look_at(&self) -> impl Iterator<Item = &TaskId> {
        self.tasks.iter().filter(|(_, stage)| matches!(stage, Stage::Looking { .. })).map(|(task, _)| task)
    }

    /// Takes in what came of an edit; false if the task has no part in this burial.
    pub fn on_edited(&mut self, task: &TaskId, edit: &Edit, edited: &Edited) -> bool {
        let Some(stage) = self.tasks.get_mut(task) else { return false };
        *stage = match (stage.clone(), edit, edited) {
            (Stage::Looking { attempt, revoked }, Edit::Peek, Edited::Pending { attempt: now, charged })
                if attempt == *now =>
            {
                Stage::Known { attempt, revoked, charged: *charged }
            }
            // It has an outcome, or is at another attempt, or cannot be read: the entry is void.
            (Stage::Looking { .. }, Edit::Peek, _) => Stage::Done,
            (Stage::Moving, Edit::Tell(outcome), Edited::Refused(Refusal::BadVersion)) => {
                Stage::Ended(outcome.clone())
            }
            (Stage::Moving, Edit::Move { .. } | Edit::Tell(_), _) => Stage::Done,
            (stage, _, _) => stage,
        };
        true
    }

    /// What the dead wrote elsewhere, before anything is decided: `outcome` gives how a task ended at an attempt.
    pub fn hear(&mut self, outcome: impl Fn(&TaskId, u32) -> Option<Outcome>) {
        for (task, stage) in &mut self.tasks {
            if let Stage::Known { attempt, .. } = *stage
                && let Some(outcome) = outcome(task, attempt)
            {
                *stage = Stage::Ended(Box::new(outcome));
            }
        }
    }

    /// The moves to begin, when everything is known. `attempts` gives how many charged attempts a task has whose
    /// own options don't say, if that is known already. A move counts as begun only by [`Burial::begun`].
    pub fn moves(&mut self, attempts: impl Fn(&TaskId) -> Option<u32>) -> Vec<(TaskId, Edit)> {
        if self.to_look_at().next().is_some() {
            return Vec::new();
        }
        self.decide();
        let mut moves = Vec::new();
        for (task, stage) in &self.tasks {
            if let Stage::Ended(outcome) = stage {
                moves.push((task.clone(), Edit::Tell(outcome.clone())));
            }
            let Stage::Decided { attempt, charge } = *stage else { continue };
            let charge = if charge {
                let Some(attempts) = attempts(task) else { continue };
                Some(attempts)
            } else {
                None
            };
            moves
                .push((task.clone(), Edit::Move { from: attempt, worker: self.incarnation.clone(), charge }));
        }
        moves
    }

    /// Decides who is charged, once everything is known.
    fn decide(&mut self) {
        let known: Vec<(TaskId, u32, bool, u32)> = self
            .order
            .iter()
            .filter_map(|task| match self.tasks.get(task) {
                Some(Stage::Known { attempt, revoked, charged }) => {
                    Some((task.clone(), *attempt, *revoked, *charged))
                }
                _ => None,
            })
            .collect();
        let window = self.window.unwrap_or(usize::MAX);
        let suspects = known.iter().take(window).any(|(_, _, revoked, charged)| !revoked && *charged > 0);
        for (place, (task, attempt, revoked, charged)) in known.into_iter().enumerate() {
            let charge = place < window && !revoked && (!suspects || charged > 0);
            self.tasks.insert(task, Stage::Decided { attempt, charge });
        }
    }

    /// The task's move is under way.
    pub fn begun(&mut self, task: &TaskId) {
        if let Some(stage) = self.tasks.get_mut(task) {
            *stage = Stage::Moving;
        }
    }

    /// The tasks whose entries are dealt with; each is given once.
    pub fn take_done(&mut self) -> Vec<TaskId> {
        let is_done = |stage: &Stage| matches!(stage, Stage::Done);
        let done: Vec<_> =
            self.tasks.iter().filter(|(_, s)| is_done(s)).map(|(task, _)| task.clone()).collect();
        self.tasks.retain(|_, stage| !is_done(stage));
        done
    }

    /// Whether every entry is dealt with.
    pub fn is_over(&self) -> bool {
        self.tasks.is_empty()
    }
}

impl Master {
    /// Begins the burial of an incarnation that is dead.
    pub(super) fn bury(&mut self, incarnation: &Incarnation, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        if term.burials.contains_key(incarnation) || !term.book.has(incarnation) {
            return;
        }
        let burial = burial_of(incarnation, &term.book, &term.roster);
        term.book.touch(incarnation);
        for task in burial.to_look_at() {
            term.editor.begin(task, Edit::Peek, out);
        }
        term.burials.insert(incarnation.clone(), burial);
        self.inquire(incarnation, out);
    }

    /// Goes on with burials; those that are over end with the deletion of the assignment.
    pub(super) fn continue_burials(&mut self, now: Instant, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        let mut settled = Vec::new();
        let mut again = Vec::new();
        for (incarnation, burial) in &mut term.burials {
            // The page may have been read, or read again, after the death was known.
            if burial.is_over() && term.book.entries(incarnation).next().is_some() {
                *burial = burial_of(incarnation, &term.book, &term.roster);
                again.push(incarnation.clone());
            }
            // An edit for another reason may have been under way when this one was wished for.
            for task in burial.to_look_at() {
                term.editor.begin(task, Edit::Peek, out);
            }
            if again.contains(incarnation) || !term.groups.is_known(incarnation) {
                continue;
            }
            let groups = &term.groups;
            burial.hear(|task, attempt| groups.outcome(incarnation, task, attempt).cloned());
            let (table, complete) = (&self.table, self.tasks.is_complete());
            for (task, edit) in burial.moves(|task| table.attempts_in(task.dir(), complete)) {
                if term.editor.begin(&task, edit, out) {
                    burial.begun(&task);
                }
            }
            for task in burial.take_done() {
                term.book.release(incarnation, &task);
                settled.push(task);
            }
            if burial.is_over() {
                term.book.close(incarnation, out);
            }
        }
        let book = &term.book;
        term.burials.retain(|incarnation, _| book.has(incarnation));
        for incarnation in again {
            self.inquire(&incarnation, out);
        }
        for task in settled {
            self.settle(&task, now, out);
        }
    }
}

fn burial_of(incarnation: &Incarnation, book: &Book, roster: &Roster) -> Burial {
    let window = charge_window(roster, incarnation);
    Burial::new(incarnation, entries_of(book, incarnation), window)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charged(entries: &[(&str, bool, u32)]) -> Vec<(String, bool)> {
        charged_of(entries, None)
    }

    fn charged_of(entries: &[(&str, bool, u32)], window: Option<usize>) -> Vec<(String, bool)> {
        let incarnation = Incarnation::new("w", 1);
        let id = |name: &str| TaskId::new("j", name);
        let tasks = entries.iter().map(|(name, revoked, _)| (id(name), 4, *revoked)).collect();
        let mut burial = Burial::new(&incarnation, tasks, window);
        for (name, _, charged) in entries {
            assert!(burial.moves(|_| Some(3)).is_empty(), "not before all is known");
            assert!(burial.on_edited(
                &id(name),
                &Edit::Peek,
                &Edited::Pending { attempt: 4, charged: *charged }
            ));
        }
        let charge = |edit| matches!(edit, Edit::Move { from: 4, charge: Some(3), .. });
        burial.moves(|_| Some(3)).into_iter().map(|(task, edit)| (task.to_string(), charge(edit))).collect()
    }

    #[test]
    fn all_are_charged_if_none_was_before() {
        assert_eq!(
            charged(&[("a", false, 0), ("b", false, 0)]),
            [("j/a".into(), true), ("j/b".into(), true)]
        );
    }

    #[test]
    fn only_the_suspects_are_charged_if_there_are_any() {
        assert_eq!(
            charged(&[("a", false, 0), ("b", false, 1)]),
            [("j/a".into(), false), ("j/b".into(), true)]
        );
    }

    #[test]
    fn the_revoked_are_never_charged_and_no_suspects() {
        assert_eq!(
            charged(&[("a", false, 0), ("b", true, 1)]),
            [("j/a".into(), true), ("j/b".into(), false)]
        );
    }

    #[test]
    fn what_cannot_have_been_started_is_neither_charged_nor_a_suspect() {
        let entries = [("z", false, 0), ("b", false, 0), ("a", false, 1)];
        let expected = [("j/a".into(), false), ("j/b".into(), true), ("j/z".into(), true)];
        assert_eq!(charged_of(&entries, Some(2)), expected);
    }

    #[test]
    fn a_void_entry_is_dealt_with_at_once() {
        let incarnation = Incarnation::new("w", 1);
        let task = TaskId::new("j", "a");
        let mut burial = Burial::new(&incarnation, vec![(task.clone(), 1, false)], None);
        burial.on_edited(&task, &Edit::Peek, &Edited::Pending { attempt: 2, charged: 0 });
        assert!(burial.moves(|_| Some(3)).is_empty());
        assert_eq!(burial.take_done(), [task]);
        assert!(burial.is_over());
    }
}
