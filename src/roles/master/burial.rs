//! What follows a worker's death: each of its unfinished tasks goes on to its next attempt, then its assignment
//! is deleted.
//!
//! Whom to charge is decided over all of them together: those that were revoked are not charged; if some had
//! been charged before, only those are, since they are the suspects. What stood too far behind on the page to have been
//! started is neither.

use std::collections::{BTreeMap, BTreeSet};

use super::dispatch::{Roster, charge_window, entries_of};
use super::editor::{Edit, Edited};
use super::{Master, Out};
use crate::contract::{Incarnation, TaskId};
use crate::machine::Instant;
use crate::recipes::assignment::Book;

/// The tasks of one dead incarnation. No step looks through all of them but the one decision: a thousand workers may
/// die at once.
#[derive(Debug)]
pub struct Burial {
    incarnation: Incarnation,
    tasks: BTreeMap<TaskId, Stage>,
    /// They in the order in which they were to be started.
    order: Vec<TaskId>,
    /// How many of those without an outcome can have been started, if that is known.
    window: Option<usize>,
    /// How many are not known yet, and those of them that a look has to be begun at.
    unknown: usize,
    unlooked: Vec<TaskId>,
    decided: bool,
    /// Those whose edit has to be begun.
    ready: Vec<TaskId>,
    /// Those of whom it is not known how many attempts they have, by their directories.
    parked: BTreeMap<String, Vec<TaskId>>,
    /// Those that are dealt with.
    done: Vec<TaskId>,
}

#[derive(Clone, Debug, PartialEq)]
enum Stage {
    /// It is not known yet whether it was charged before.
    Looking { attempt: u32, revoked: bool },
    /// It is to be moved on.
    Known { attempt: u32, revoked: bool, charged: u32 },
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
        let order: Vec<TaskId> = tasks.iter().map(|(task, _, _)| task.clone()).collect();
        let stage = |(task, attempt, revoked)| (task, Stage::Looking { attempt, revoked });
        let tasks: BTreeMap<_, _> = tasks.into_iter().map(stage).collect();
        Burial {
            incarnation: incarnation.clone(),
            unknown: tasks.len(),
            unlooked: tasks.keys().cloned().collect(),
            tasks,
            order,
            window,
            decided: false,
            ready: Vec::new(),
            parked: BTreeMap::new(),
            done: Vec::new(),
        }
    }

    /// The tasks that a look has to be begun at. Where another edit is under way, its end brings the task here again.
    pub fn take_unlooked(&mut self) -> Vec<TaskId> {
        std::mem::take(&mut self.unlooked)
    }

    /// Takes in what came of an edit; false if the task has no part in this burial.
    pub fn on_edited(&mut self, task: &TaskId, edit: &Edit, edited: &Edited) -> bool {
        let Some(stage) = self.tasks.get_mut(task) else { return false };
        match (&*stage, edit, edited) {
            (Stage::Looking { attempt, revoked }, Edit::Peek, Edited::Pending { attempt: now, charged })
                if attempt == now =>
            {
                *stage = Stage::Known { attempt: *attempt, revoked: *revoked, charged: *charged };
                self.unknown -= 1;
            }
            // It has an outcome, or is at another attempt, or cannot be read: the entry is void.
            (Stage::Looking { .. }, Edit::Peek, _) => {
                *stage = Stage::Done;
                self.unknown -= 1;
                self.done.push(task.clone());
            }
            (Stage::Looking { .. }, _, _) => self.unlooked.push(task.clone()),
            (Stage::Moving, Edit::Move { .. }, _) => {
                *stage = Stage::Done;
                self.done.push(task.clone());
            }
            // Its own edit could not be begun while this one was under way.
            (Stage::Decided { .. }, _, _) => self.ready.push(task.clone()),
            (Stage::Known { .. } | Stage::Done, _, _)
            | (Stage::Moving, Edit::Peek | Edit::Cancel | Edit::Expire | Edit::Orphan, _) => {}
        }
        true
    }

    /// The edits to begin, when everything is known, each once. `attempts` gives how many charged attempts a task has
    /// whose own options don't say, if that is known already. An edit counts as begun only by [`Burial::begun`]; one
    /// that could not be begun comes again when the other edit of its task is over.
    pub fn moves(&mut self, attempts: impl Fn(&TaskId) -> Option<u32>) -> Vec<(TaskId, Edit)> {
        if self.unknown > 0 {
            return Vec::new();
        }
        if !self.decided {
            self.decided = true;
            self.decide();
        }
        let mut moves = Vec::new();
        for task in std::mem::take(&mut self.ready) {
            match self.tasks.get(&task) {
                Some(&Stage::Decided { attempt: from, charge }) => {
                    let charge = if charge { attempts(&task).map(Some) } else { Some(None) };
                    let Some(charge) = charge else {
                        self.parked.entry(task.dir().to_string()).or_default().push(task);
                        continue;
                    };
                    let worker = self.incarnation.clone();
                    moves.push((task, Edit::Move { from, worker, charge }));
                }
                Some(Stage::Looking { .. } | Stage::Known { .. } | Stage::Moving | Stage::Done) | None => {}
            }
        }
        moves
    }

    /// How many attempts tasks of this directory have may be known now; or of all directories. Whether any waited for
    /// it.
    fn unpark(&mut self, dir: Option<&str>) -> bool {
        let unparked: Vec<TaskId> = match dir {
            Some(dir) => self.parked.remove(dir).unwrap_or_default(),
            None => std::mem::take(&mut self.parked).into_values().flatten().collect(),
        };
        self.ready.extend_from_slice(&unparked);
        !unparked.is_empty()
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
            self.ready.push(task.clone());
            self.tasks.insert(task, Stage::Decided { attempt, charge });
        }
        self.ready.sort();
    }

    /// The task's move is under way.
    pub fn begun(&mut self, task: &TaskId) {
        if let Some(stage) = self.tasks.get_mut(task) {
            *stage = Stage::Moving;
        }
    }

    /// The tasks whose entries are dealt with; each is given once.
    pub fn take_done(&mut self) -> Vec<TaskId> {
        let done = std::mem::take(&mut self.done);
        for task in &done {
            self.tasks.remove(task);
        }
        done
    }

    /// Whether every entry is dealt with.
    pub fn is_over(&self) -> bool {
        self.tasks.is_empty()
    }
}

/// All burials of a term, and which of them may go on.
#[derive(Debug, Default)]
pub struct Burials {
    all: BTreeMap<Incarnation, Burial>,
    /// Something happened with them since they were last looked at.
    due: BTreeSet<Incarnation>,
    /// Whose burials a task is part of: mostly one, and two if it stood on two pages.
    of_task: BTreeMap<TaskId, Vec<Incarnation>>,
}

impl Burials {
    /// Whether what the incarnation had is being moved on.
    pub fn contains(&self, incarnation: &Incarnation) -> bool {
        self.all.contains_key(incarnation)
    }

    /// Something happened that may let a burial go on.
    pub fn wake(&mut self, incarnation: &Incarnation) {
        if self.all.contains_key(incarnation) {
            self.due.insert(incarnation.clone());
        }
    }

    fn put(&mut self, burial: Burial) {
        self.drop(&burial.incarnation.clone());
        for task in burial.tasks.keys() {
            self.of_task.entry(task.clone()).or_default().push(burial.incarnation.clone());
        }
        self.due.insert(burial.incarnation.clone());
        self.all.insert(burial.incarnation.clone(), burial);
    }

    fn drop(&mut self, incarnation: &Incarnation) {
        if let Some(burial) = self.all.remove(incarnation) {
            burial.tasks.keys().for_each(|task| self.forget(task, incarnation));
        }
    }

    fn forget(&mut self, task: &TaskId, incarnation: &Incarnation) {
        if let Some(whose) = self.of_task.get_mut(task) {
            whose.retain(|other| other != incarnation);
            if whose.is_empty() {
                self.of_task.remove(task);
            }
        }
    }

    /// Takes in what came of an edit.
    pub fn on_edited(&mut self, task: &TaskId, edit: &Edit, edited: &Edited) {
        for incarnation in self.of_task.get(task).into_iter().flatten() {
            if let Some(burial) = self.all.get_mut(incarnation) {
                burial.on_edited(task, edit, edited);
                self.due.insert(incarnation.clone());
            }
        }
    }

    /// How many attempts tasks of this directory have may be known now; or of all directories.
    pub fn unpark(&mut self, dir: Option<&str>) {
        for (incarnation, burial) in &mut self.all {
            if burial.unpark(dir) {
                self.due.insert(incarnation.clone());
            }
        }
    }
}

impl Master {
    /// Begins the burial of an incarnation that is dead.
    pub(super) fn bury(&mut self, incarnation: &Incarnation) {
        let Some(term) = &mut self.term else { return };
        if term.burials.contains(incarnation) || !term.book.has(incarnation) {
            return;
        }
        term.burials.put(burial_of(incarnation, &term.book, &term.roster));
        term.book.touch(incarnation);
    }

    /// Goes on with burials; those that are over end with the deletion of the assignment.
    pub(super) fn continue_burials(&mut self, now: Instant, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        let mut settled = Vec::new();
        for incarnation in std::mem::take(&mut term.burials.due) {
            if !term.book.has(&incarnation) {
                term.burials.drop(&incarnation);
                continue;
            }
            let is_empty = term.book.entries(&incarnation).next().is_none();
            // The page may have been read, or read again, after the death was known.
            if !is_empty && term.burials.all.get(&incarnation).is_some_and(Burial::is_over) {
                term.burials.put(burial_of(&incarnation, &term.book, &term.roster));
                continue;
            }
            let Some(burial) = term.burials.all.get_mut(&incarnation) else { continue };
            for task in burial.take_unlooked() {
                term.editor.begin(&task, Edit::Peek, out);
            }
            let (table, complete) = (&self.table, self.tasks.is_complete());
            for (task, edit) in burial.moves(|task| table.attempts_in(task.dir(), complete)) {
                if term.editor.begin(&task, edit, out) {
                    burial.begun(&task);
                }
            }
            let done = burial.take_done();
            let is_over = burial.is_over();
            for task in done {
                term.book.release(&incarnation, &task);
                term.burials.forget(&task, &incarnation);
                settled.push(task);
            }
            if is_over {
                term.book.close(&incarnation, out);
                // Should there be more on the page, the next turn sees to it.
                if term.book.entries(&incarnation).next().is_some() {
                    term.burials.wake(&incarnation);
                }
            }
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

    #[test]
    fn an_edit_wakes_the_burials_of_its_task_and_no_other_and_no_step_gives_a_task_twice() {
        let mut burials = Burials::default();
        let whose = |n: usize| Incarnation::new("w", n as u64 + 1);
        for n in 0..50 {
            let tasks = (0..20).map(|k| (TaskId::new("j", &format!("{n}-{k}")), 1, false)).collect();
            burials.put(Burial::new(&whose(n), tasks, None));
        }
        for incarnation in std::mem::take(&mut burials.due) {
            let burial = burials.all.get_mut(&incarnation).expect("there");
            assert_eq!((burial.take_unlooked().len(), burial.take_unlooked().len()), (20, 0));
        }
        let pending = Edited::Pending { attempt: 1, charged: 0 };
        for k in 0..20 {
            burials.on_edited(&TaskId::new("j", &format!("7-{k}")), &Edit::Peek, &pending);
            assert_eq!(burials.due.iter().collect::<Vec<_>>(), [&whose(7)]);
        }
        let burial = burials.all.get_mut(&whose(7)).expect("there");
        assert!(burial.moves(|_| None).is_empty(), "nobody knows how many attempts they have");
        assert!(burial.moves(|_| Some(3)).is_empty(), "nobody said that this is known now");
        burials.due.clear();
        burials.unpark(Some("k"));
        assert!(burials.due.is_empty());
        burials.unpark(Some("j"));
        assert_eq!(burials.due.len(), 1);
        let burial = burials.all.get_mut(&whose(7)).expect("there");
        let moves = burial.moves(|_| Some(3));
        assert_eq!((moves.len(), burial.moves(|_| Some(3)).len()), (20, 0));
        // One could not be begun: another edit of its task was under way, and is over now.
        for (task, _) in &moves[1..] {
            burial.begun(task);
        }
        burials.on_edited(&moves[0].0, &Edit::Cancel, &Edited::Done);
        let burial = burials.all.get_mut(&whose(7)).expect("there");
        assert_eq!(burial.moves(|_| Some(3)), moves[..1]);
        for (task, edit) in &moves {
            burial.begun(task);
            burial.on_edited(task, edit, &Edited::Done);
        }
        assert!(burial.take_done().len() == 20 && burial.is_over());
    }
}
