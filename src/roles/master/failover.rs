//! How far the recovery from a worker failure is, and which tasks are charged. It makes no call: [`super::recovery`]
//! does.
//!
//! A task that may have been started is suspected, and charged. A revoked entry is not, nor one too far behind in the
//! assignment. A suspect runs where no other suspect is, and the last time alone. So no task fails for what another
//! did.

use std::collections::{BTreeMap, BTreeSet};

use super::editor::{Edit, Edited};
use crate::contract::worker::{EntryId, START_AHEAD, START_AHEAD_LINES};
use crate::contract::{Incarnation, TaskId};

/// The entries of one dead incarnation. Only the decision goes through all of them: a thousand workers may die at once.
#[derive(Debug)]
pub struct Failover {
    incarnation: Incarnation,
    entries: BTreeMap<EntryId, EntryStage>,
    /// The entries in the order in which they were to be started.
    order: Vec<EntryId>,
    /// How many slots it had, if that is known.
    slots: Option<usize>,
    /// How many entries are not known yet, and the tasks whose read has to be begun.
    unknown: usize,
    unread: Vec<TaskId>,
    decided: bool,
    /// Those whose edit has to be begun.
    ready: Vec<EntryId>,
    /// Those whose number of attempts is not known until their directory was read.
    parked: Vec<EntryId>,
    /// Those that are dealt with.
    done: Vec<EntryId>,
}

#[derive(Clone, Debug, PartialEq)]
enum EntryStage {
    /// It is not known yet how much of it may have been started.
    Reading { revoked: bool },
    /// It is to be moved on; so many of its commands may have been started.
    Weighed { revoked: bool, window: usize },
    /// It is to be moved on, and it is decided whether that is charged.
    Decided { charge: bool },
    /// It is being moved on.
    Moving,
    /// The entry is dealt with.
    Done,
}

impl Failover {
    /// The failover of an incarnation that had these entries, in this order, revoked or not. Of those that have no
    /// outcome, only so many can have been started as its slots allow; if they are not known, all.
    pub fn new(incarnation: &Incarnation, entries: Vec<(EntryId, bool)>, slots: Option<usize>) -> Failover {
        let order: Vec<EntryId> = entries.iter().map(|(id, _)| id.clone()).collect();
        let mut unread: Vec<TaskId> = order.iter().map(|id| id.task.clone()).collect();
        unread.sort();
        unread.dedup();
        let entries: BTreeMap<_, _> =
            entries.into_iter().map(|(id, revoked)| (id, EntryStage::Reading { revoked })).collect();
        Failover {
            incarnation: incarnation.clone(),
            unknown: entries.len(),
            unread,
            entries,
            order,
            slots,
            decided: false,
            ready: Vec::new(),
            parked: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Whose it is.
    pub fn incarnation(&self) -> &Incarnation {
        &self.incarnation
    }

    /// The tasks whose read has to be begun. Where another edit is under way, its end brings the task here again.
    pub fn take_unread(&mut self) -> Vec<TaskId> {
        std::mem::take(&mut self.unread)
    }

    /// Takes in the result of an edit.
    pub fn on_edited(&mut self, task: &TaskId, edit: &Edit, edited: &Edited) {
        let of_task = self.entries.range_mut(EntryId::all_of(task));
        for (id, stage) in of_task {
            match (&*stage, edit) {
                (EntryStage::Reading { revoked }, Edit::Peek) => {
                    let windows = match edited {
                        Edited::Pending { windows } => &windows[..],
                        Edited::Written { .. } | Edited::Done | Edited::Refused(_) => &[],
                    };
                    // Without one it has an outcome, or is at another attempt, or cannot be read: the entry is stale.
                    match windows.iter().find(|(attempt, _)| *attempt == id.attempt) {
                        Some((_, window)) => {
                            *stage = EntryStage::Weighed { revoked: *revoked, window: *window }
                        }
                        None => {
                            *stage = EntryStage::Done;
                            self.done.push(id.clone());
                        }
                    }
                    self.unknown -= 1;
                }
                (EntryStage::Reading { .. }, _) => {
                    if !self.unread.contains(task) {
                        self.unread.push(task.clone());
                    }
                }
                (EntryStage::Moving, Edit::Move { from, .. }) if *from == id.attempt => {
                    *stage = EntryStage::Done;
                    self.done.push(id.clone());
                }
                // Its own edit could not be begun while this one was under way.
                (EntryStage::Decided { .. }, _) => self.ready.push(id.clone()),
                (EntryStage::Weighed { .. } | EntryStage::Moving | EntryStage::Done, _) => {}
            }
        }
    }

    /// The edits to begin, once everything is known, each one time. `attempts` gives how many charged attempts a task
    /// has whose own options don't say, if that is known already. An edit counts as begun only by [`Failover::begun`];
    /// one that could not be begun comes again when the other edit of its task is over.
    pub fn moves(&mut self, attempts: impl Fn(&TaskId) -> Option<u32>) -> Vec<(EntryId, Edit)> {
        if self.unknown > 0 {
            return Vec::new();
        }
        if !self.decided {
            self.decided = true;
            self.decide();
        }
        let mut moves = Vec::new();
        for id in std::mem::take(&mut self.ready) {
            let Some(&EntryStage::Decided { charge }) = self.entries.get(&id) else { continue };
            let charge = if charge { attempts(&id.task).map(Some) } else { Some(None) };
            let Some(charge) = charge else {
                self.parked.push(id);
                continue;
            };
            let worker = Some(self.incarnation.clone());
            let edit = Edit::Move { from: id.attempt, worker, charge };
            moves.push((id, edit));
        }
        moves
    }

    /// Decides which entries are charged, once everything is known. A worker starts entries in their order, and of each
    /// what is in its window, so the lines before one in that order show whether it can have been started.
    fn decide(&mut self) {
        let (mut entries, mut commands) = (0, 0);
        for id in &self.order {
            let Some(EntryStage::Weighed { revoked, window }) = self.entries.get(id) else { continue };
            let is_in_reach = self
                .slots
                .is_none_or(|slots| entries < slots + START_AHEAD && commands < slots + START_AHEAD_LINES);
            (entries, commands) = (entries + 1, commands + window);
            let charge = is_in_reach && !revoked;
            self.ready.push(id.clone());
            self.entries.insert(id.clone(), EntryStage::Decided { charge });
        }
        self.ready.sort();
    }

    /// Notes that another worker has the entry by now.
    pub fn skip(&mut self, id: &EntryId) {
        self.entries.insert(id.clone(), EntryStage::Done);
        self.done.push(id.clone());
    }

    /// Notes that the entry's move is under way.
    pub fn begun(&mut self, id: &EntryId) {
        if let Some(stage) = self.entries.get_mut(id) {
            *stage = EntryStage::Moving;
        }
    }

    /// The entries that are dealt with; each is given once.
    pub fn take_done(&mut self) -> Vec<EntryId> {
        let done = std::mem::take(&mut self.done);
        for id in &done {
            self.entries.remove(id);
        }
        done
    }

    /// Whether an entry of this task is yet to be dealt with.
    pub fn has(&self, task: &TaskId) -> bool {
        self.entries.range(EntryId::all_of(task)).next().is_some()
    }

    /// Whether every entry is dealt with.
    pub fn is_over(&self) -> bool {
        self.entries.is_empty()
    }
}

/// All failovers of a term, and which of them may go on.
#[derive(Debug, Default)]
pub struct Failovers {
    all: BTreeMap<Incarnation, Failover>,
    /// Those with which something happened since they last went on.
    due: BTreeSet<Incarnation>,
    /// Whose failovers a task is part of: mostly one, and two if it was in two assignments.
    of_task: BTreeMap<TaskId, Vec<Incarnation>>,
}

impl Failovers {
    /// Whether what the incarnation had is being moved on.
    pub fn contains(&self, incarnation: &Incarnation) -> bool {
        self.all.contains_key(incarnation)
    }

    /// The failover of the incarnation, while there is one.
    pub fn get_mut(&mut self, incarnation: &Incarnation) -> Option<&mut Failover> {
        self.all.get_mut(incarnation)
    }

    /// Takes those that may go on.
    pub fn take_due(&mut self) -> BTreeSet<Incarnation> {
        std::mem::take(&mut self.due)
    }

    /// Notes that a failover may go on.
    pub fn wake(&mut self, incarnation: &Incarnation) {
        if self.all.contains_key(incarnation) {
            self.due.insert(incarnation.clone());
        }
    }

    /// Adds a failover, and drops an earlier one of the same incarnation.
    pub fn put(&mut self, failover: Failover) {
        self.drop(&failover.incarnation.clone());
        for id in failover.entries.keys() {
            let whose = self.of_task.entry(id.task.clone()).or_default();
            if !whose.contains(&failover.incarnation) {
                whose.push(failover.incarnation.clone());
            }
        }
        self.due.insert(failover.incarnation.clone());
        self.all.insert(failover.incarnation.clone(), failover);
    }

    /// Ends a failover: its assignment is gone.
    pub fn drop(&mut self, incarnation: &Incarnation) {
        if let Some(failover) = self.all.remove(incarnation) {
            failover.entries.keys().for_each(|id| self.forget(&id.task, incarnation));
        }
    }

    /// No entry of this task is left to be dealt with in the failover of the incarnation.
    pub fn forget(&mut self, task: &TaskId, incarnation: &Incarnation) {
        if let Some(whose) = self.of_task.get_mut(task) {
            whose.retain(|other| other != incarnation);
            if whose.is_empty() {
                self.of_task.remove(task);
            }
        }
    }

    /// Takes in the result of an edit.
    pub fn on_edited(&mut self, task: &TaskId, edit: &Edit, edited: &Edited) {
        for incarnation in self.of_task.get(task).into_iter().flatten() {
            if let Some(failover) = self.all.get_mut(incarnation) {
                failover.on_edited(task, edit, edited);
                self.due.insert(incarnation.clone());
            }
        }
    }

    /// Lets those go on that waited for a directory: one was read.
    pub fn unpark(&mut self) {
        for (incarnation, failover) in self.all.iter_mut().filter(|(_, failover)| !failover.parked.is_empty())
        {
            failover.ready.append(&mut failover.parked);
            self.due.insert(incarnation.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> EntryId {
        EntryId::new(&TaskId::new("j", name), 4)
    }

    /// Whether each of these entries, revoked or not and with so much that may have been started, is charged.
    fn charged(entries: &[(&str, bool, usize)], slots: Option<usize>) -> Vec<(String, bool)> {
        let assignment = entries.iter().map(|(name, revoked, _)| (id(name), *revoked)).collect();
        let mut failover = Failover::new(&Incarnation::new("w", 1), assignment, slots);
        for (name, _, window) in entries {
            assert!(failover.moves(|_| Some(3)).is_empty(), "not before all is known");
            let windows = vec![(3, 9), (4, *window)];
            failover.on_edited(&id(name).task, &Edit::Peek, &Edited::Pending { windows });
        }
        let charge = |edit| matches!(edit, Edit::Move { from: 4, charge: Some(3), .. });
        failover
            .moves(|_| Some(3))
            .into_iter()
            .map(|(id, edit)| (id.task.to_string(), charge(edit)))
            .collect()
    }

    #[test]
    fn started_tasks_are_charged_and_revoked_ones_are_not() {
        let expected = [("j/a".into(), true), ("j/b".into(), false), ("j/c".into(), true)];
        assert_eq!(charged(&[("c", false, 1), ("b", true, 1), ("a", false, 1)], Some(1)), expected);
    }

    #[test]
    fn what_cannot_have_been_started_is_not_charged() {
        let entries = [("z", false, START_AHEAD_LINES), ("b", false, 2), ("a", false, 1)];
        let expected = [("j/a".into(), false), ("j/b".into(), true), ("j/z".into(), true)];
        assert_eq!(charged(&entries, Some(2)), expected, "in the order of the assignment");
        assert!(charged(&entries, None).iter().all(|(_, charge)| *charge), "nobody knows its slots");
        let names: Vec<String> = (0..START_AHEAD + 3).map(|n| format!("{n:04}")).collect();
        let entries: Vec<_> = names.iter().map(|name| (name.as_str(), false, 0)).collect();
        assert_eq!(charged(&entries, Some(2)).iter().filter(|(_, charge)| *charge).count(), START_AHEAD + 2);
    }

    #[test]
    fn a_stale_entry_needs_no_read_and_shares_of_a_chunk_need_one() {
        let (old, held) = (id("a"), EntryId { attempt: 7, ..id("a") });
        let assignment = vec![(old.clone(), false), (held.clone(), false)];
        let mut failover = Failover::new(&Incarnation::new("w", 1), assignment, None);
        assert_eq!(failover.take_unread(), std::slice::from_ref(&old.task));
        failover.on_edited(&old.task, &Edit::Peek, &Edited::Pending { windows: vec![(7, 2)] });
        let moves = failover.moves(|_| Some(3));
        assert_eq!(moves.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&held]);
        assert_eq!(failover.take_done(), [old]);
        failover.begun(&held);
        let edit = Edit::Move { from: 4, worker: None, charge: None };
        failover.on_edited(&held.task, &edit, &Edited::Done);
        assert!(failover.take_done().is_empty(), "that was another share's");
        failover.on_edited(&held.task, &moves[0].1, &Edited::Done);
        assert!(failover.take_done() == [held] && failover.is_over());
    }

    #[test]
    fn an_edit_wakes_only_the_failovers_of_its_task() {
        let mut failovers = Failovers::default();
        let whose = |n: usize| Incarnation::new("w", n as u64 + 1);
        for n in 0..50 {
            let tasks = (0..20).map(|k| (id(&format!("{n}-{k}")), false)).collect();
            failovers.put(Failover::new(&whose(n), tasks, None));
        }
        for incarnation in std::mem::take(&mut failovers.due) {
            let failover = failovers.all.get_mut(&incarnation).expect("there");
            assert_eq!((failover.take_unread().len(), failover.take_unread().len()), (20, 0));
        }
        let pending = Edited::Pending { windows: vec![(4, 1)] };
        for k in 0..20 {
            failovers.on_edited(&TaskId::new("j", &format!("7-{k}")), &Edit::Peek, &pending);
            assert_eq!(failovers.due.iter().collect::<Vec<_>>(), [&whose(7)]);
        }
        let failover = failovers.all.get_mut(&whose(7)).expect("there");
        assert!(failover.moves(|_| None).is_empty(), "nobody knows how many attempts they have");
        assert!(failover.moves(|_| Some(3)).is_empty(), "nobody said that this is known now");
        failovers.due.clear();
        failovers.unpark();
        assert_eq!(failovers.due.iter().collect::<Vec<_>>(), [&whose(7)]);
        let failover = failovers.all.get_mut(&whose(7)).expect("there");
        let moves = failover.moves(|_| Some(3));
        assert_eq!((moves.len(), failover.moves(|_| Some(3)).len()), (20, 0));
        // One could not be begun: another edit of its task was under way, and is over now.
        for (id, _) in &moves[1..] {
            failover.begun(id);
        }
        failovers.on_edited(&moves[0].0.task, &Edit::Orphan, &Edited::Done);
        let failover = failovers.all.get_mut(&whose(7)).expect("there");
        assert_eq!(failover.moves(|_| Some(3)), moves[..1]);
        for (id, edit) in &moves {
            failover.begun(id);
            failover.on_edited(&id.task, edit, &Edited::Done);
        }
        assert!(failover.take_done().len() == 20 && failover.is_over());
    }
}
