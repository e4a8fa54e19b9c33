//! Assignment: the leader's table of who has which task.
//!
//! Each incarnation has one assignment znode. Every change of it is a compare-and-set that takes as many entries along
//! as are there, and an assignment has at most one write under way. A new leader rewrites every assignment with its own
//! epoch before it changes any. From then on a deposed leader's writes fail on the version.

mod answers;
mod worker_assignment;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::worker_assignment::{Changes, Revoked, SyncState, WorkerAssignment};
pub use self::worker_assignment::{Held, Isolation, Load};
use crate::contract::worker::{EntryId, MAX_SEEN_IN_ALL, Seen};
use crate::contract::{Incarnation, Layout, MAX_DATA_BYTES, TaskId, name_of};
use crate::machine::{
    Actions, Call, CallId, CallResult, Calls, ChangeKind, Instant, Refusal, Reply, Routed, WatchMode,
};

/// Calls of the assignment table that may be in flight at once.
const WINDOW: usize = 128;

/// The most that the entries of an assignment may have. What is carried along beside them may double when it is
/// encoded.
const MAX_ASSIGNMENT_BYTES: usize = MAX_DATA_BYTES - 4 * MAX_SEEN_IN_ALL;

/// How soon a change of an assignment has to be written. Whatever is written takes all changes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A slot is free, or something is to be killed.
    Now,
    /// A worker has enough to do for the moment.
    Soon,
    /// The worker needs nothing of it.
    Later,
}

impl Urgency {
    fn lag(self) -> Duration {
        match self {
            Urgency::Now => Duration::ZERO,
            Urgency::Soon => Duration::from_millis(15),
            Urgency::Later => Duration::from_millis(500),
        }
    }
}

/// What became known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Every assignment that existed at the takeover carries our epoch.
    Ready,
    /// An assignment was read, and can be written to from now on.
    Opened(Incarnation),
    /// An assignment was written.
    Written(Incarnation),
    /// An assignment is gone; it had these entries.
    Closed(Incarnation, Vec<EntryId>),
    /// Another leader of a higher epoch wrote an assignment.
    Deposed {
        /// The other's.
        epoch: i64,
    },
    /// An assignment was refused. It is tried again with a growing pause, and is not added to until it passes. These
    /// were on it in memory only, and were removed from it.
    AssignmentRefused(Incarnation, Vec<EntryId>),
    /// The directory may not be read.
    Refused(String, Refusal),
}

/// What is done with an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Read,
    Write,
    Delete,
}

/// Why an assignment may say what we do not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It may not be read.
    Unread,
    /// It is no assignment.
    Malformed,
    /// It does not carry our epoch: somebody who led before us might write to it.
    Unwritten,
}

#[derive(Debug)]
enum Purpose {
    Watch,
    List,
    Read(Incarnation),
    Write(Incarnation),
    Close(Incarnation),
}

/// The assignment table.
#[derive(Debug)]
pub struct AssignmentTable {
    layout: Layout,
    epoch: i64,
    assignments: BTreeMap<Incarnation, WorkerAssignment>,
    holders: BTreeMap<EntryId, Incarnation>,
    /// It is this time.
    now: Instant,
    /// When assignments are to be read or written: each once, as its own [`WorkerAssignment::due`] says.
    due: BTreeSet<(Instant, Incarnation)>,
    /// Assignments of which the load, or whether they are open, may have changed since somebody asked.
    touched: BTreeSet<Incarnation>,
    /// Assignments that may say what we do not know: they could not be read, or existed at the takeover and do not
    /// carry our epoch, so that a deposed leader might write to them.
    unclaimed: BTreeSet<Incarnation>,
    /// The most that the entries of an assignment may have: less than [`MAX_ASSIGNMENT_BYTES`] if the servers did not
    /// take an assignment.
    max_bytes: usize,
    calls: Calls<Purpose>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Shut,
    TakingOver,
    Ready,
}

impl AssignmentTable {
    /// An assignment table that is shut: only a leader opens it.
    pub fn new(layout: &Layout) -> AssignmentTable {
        AssignmentTable {
            layout: layout.clone(),
            epoch: 0,
            assignments: BTreeMap::new(),
            holders: BTreeMap::new(),
            now: Instant::default(),
            due: BTreeSet::new(),
            touched: BTreeSet::new(),
            unclaimed: BTreeSet::new(),
            max_bytes: MAX_ASSIGNMENT_BYTES,
            calls: Calls::default(),
            state: State::Shut,
        }
    }

    /// Reads every assignment and rewrites it with our epoch. The caller made a write of its own on this connection
    /// before, so what is read is the present.
    pub fn take_over<R>(&mut self, epoch: i64, out: &mut Actions<R>) {
        *self = AssignmentTable {
            epoch,
            now: self.now,
            state: State::TakingOver,
            ..AssignmentTable::new(&self.layout)
        };
        self.calls.issue(
            out,
            Call::Watch { path: self.layout.assign(), mode: WatchMode::Tree },
            Purpose::Watch,
        );
    }

    /// Whether the takeover does not go on, for something was refused.
    pub fn is_stuck(&self) -> bool {
        self.state == State::TakingOver && self.calls.is_empty()
    }

    /// Whether every assignment carries our epoch.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// All entries of a task, and whose they are.
    pub fn entries_of(&self, task: &TaskId) -> Vec<(EntryId, Incarnation, Held)> {
        let held = |(id, incarnation): (&EntryId, &Incarnation)| {
            let held = self.assignments.get(incarnation)?.get(id)?;
            Some((id.clone(), incarnation.clone(), *held))
        };
        self.holders.range(EntryId::all_of(task)).filter_map(held).collect()
    }

    /// Whether somebody has the task, or a share of it.
    pub fn is_held(&self, task: &TaskId) -> bool {
        self.holders.range(EntryId::all_of(task)).next().is_some()
    }

    /// Who has what an entry names, and how.
    pub fn holder(&self, task: &EntryId) -> Option<(&Incarnation, Held)> {
        let incarnation = self.holders.get(task)?;
        let held = self.assignments.get(incarnation)?.get(task)?;
        Some((incarnation, *held))
    }

    /// Whether an assignment may be added to now.
    pub fn is_open(&self, incarnation: &Incarnation) -> bool {
        self.assignments.get(incarnation).is_some_and(WorkerAssignment::is_open)
    }

    /// The assignments that may say what we do not know, and why.
    pub fn unclaimed(&self) -> impl Iterator<Item = (&Incarnation, Doubt)> {
        let doubt = |assignment: &WorkerAssignment| match assignment.state {
            SyncState::Reading | SyncState::Unreadable if assignment.was_refused() => Doubt::Unread,
            SyncState::Reading | SyncState::Unreadable => Doubt::Malformed,
            SyncState::Idle | SyncState::Writing | SyncState::Closing | SyncState::Refused => {
                Doubt::Unwritten
            }
        };
        self.unclaimed
            .iter()
            .filter_map(move |incarnation| Some((incarnation, doubt(self.assignments.get(incarnation)?))))
    }

    /// Whether the incarnation has an assignment.
    pub fn has(&self, incarnation: &Incarnation) -> bool {
        self.assignments.contains_key(incarnation)
    }

    /// The incarnations that have an assignment.
    pub fn incarnations(&self) -> impl Iterator<Item = &Incarnation> {
        self.assignments.keys()
    }

    /// The tasks on an assignment, in the order in which they are started.
    pub fn entries(&self, incarnation: &Incarnation) -> impl DoubleEndedIterator<Item = (&EntryId, &Held)> {
        self.assignments.get(incarnation).into_iter().flat_map(WorkerAssignment::entries)
    }

    /// How much is on an assignment that may be added to now, and has room.
    pub fn load(&self, incarnation: &Incarnation) -> Option<Load> {
        let assignment = self
            .assignments
            .get(incarnation)
            .filter(|assignment| assignment.is_open() && assignment.has_room(self.max_bytes))?;
        Some(assignment.load())
    }

    /// The incarnations whose [`AssignmentTable::load`] may be another than when this was last asked.
    pub fn take_touched(&mut self) -> BTreeSet<Incarnation> {
        std::mem::take(&mut self.touched)
    }

    /// Something else that matters to who gets tasks has changed with this incarnation.
    pub fn touch(&mut self, incarnation: &Incarnation) {
        self.touched.insert(incarnation.clone());
    }

    /// What a task that is held is like, as far as the load goes.
    pub fn describe(&mut self, task: &EntryId, like: Held) {
        self.change(task, |held| {
            (held.width, held.isolation, held.presumed_done) = (like.width, like.isolation, false);
        });
    }

    /// An assigned task is probably done: its entry takes up no slot any more.
    pub fn presume_done(&mut self, task: &EntryId) {
        self.change(task, |held| held.presumed_done = true);
    }

    /// Asks the holder of a share to read its chunk, at least in this version.
    pub fn recheck(&mut self, id: &EntryId, version: i32) {
        if self.change(id, |held| held.recheck = held.recheck.max(Some(version))) {
            self.mark_holder(id, Urgency::Now);
        }
    }

    /// Asks the incarnation that has the task to release it, if it was not started.
    pub fn recall(&mut self, task: &EntryId) {
        if self.change(task, |held| held.recalled = true) {
            self.mark_holder(task, Urgency::Now);
        }
    }

    /// The worker quarantined these tasks and no others: they take up no slots.
    pub fn set_quarantined(&mut self, incarnation: &Incarnation, quarantined: &[TaskId]) {
        if self
            .assignments
            .get_mut(incarnation)
            .is_some_and(|assignment| assignment.set_quarantined(quarantined))
        {
            self.touched.insert(incarnation.clone());
        }
    }

    fn change(&mut self, task: &EntryId, change: impl FnOnce(&mut Held)) -> bool {
        let Some(incarnation) = self.holders.get(task) else { return false };
        let changed =
            self.assignments.get_mut(incarnation).is_some_and(|assignment| assignment.change(task, change));
        if changed {
            self.touched.insert(incarnation.clone());
        }
        changed
    }

    /// The assignment differs from what was written.
    fn mark(&mut self, incarnation: &Incarnation, urgency: Urgency) {
        let Some(assignment) = self.assignments.get_mut(incarnation) else { return };
        assignment.changes = match urgency {
            Urgency::Now => Changes::Urgent,
            Urgency::Soon | Urgency::Later => assignment.changes.max(Changes::Pending),
        };
        match assignment.state {
            SyncState::Idle | SyncState::Writing => self.within(incarnation, urgency.lag()),
            // Goes along with what follows the answer, or the pause.
            SyncState::Reading | SyncState::Closing | SyncState::Refused | SyncState::Unreadable => {}
        }
    }

    /// Something is to be done with the assignment within this time, unless it is due earlier anyway.
    fn within(&mut self, incarnation: &Incarnation, lag: Duration) {
        let Some(assignment) = self.assignments.get_mut(incarnation) else { return };
        let at = self.now + lag;
        if assignment.due.is_none_or(|due| at < due) {
            if let Some(due) = assignment.due.replace(at) {
                self.due.remove(&(due, incarnation.clone()));
            }
            self.due.insert((at, incarnation.clone()));
        }
    }

    fn at_once(&mut self, incarnation: &Incarnation) {
        self.within(incarnation, Duration::ZERO);
    }

    /// Nothing is to be done with the assignment.
    fn rest(&mut self, incarnation: &Incarnation) {
        if let Some(due) = self.assignments.get_mut(incarnation).and_then(|assignment| assignment.due.take())
        {
            self.due.remove(&(due, incarnation.clone()));
        }
    }

    fn mark_holder(&mut self, task: &EntryId, urgency: Urgency) {
        if let Some(incarnation) = self.holders.get(task).cloned() {
            self.mark(&incarnation, urgency);
        }
    }

    /// Gives a task that nobody has to an incarnation whose assignment is open.
    pub fn assign(&mut self, incarnation: &Incarnation, task: &EntryId, held: Held, urgency: Urgency) {
        debug_assert!(self.is_ready() && self.is_open(incarnation) && !self.holders.contains_key(task));
        if let Some(assignment) = self.assignments.get_mut(incarnation) {
            assignment.push(task.clone(), held);
            self.touched.insert(incarnation.clone());
            self.holders.insert(task.clone(), incarnation.clone());
            self.mark(incarnation, urgency);
        }
    }

    /// What was just read of a task that was just given out goes along, so that its worker need not read it.
    pub fn carry(&mut self, task: &EntryId, seen: Seen) {
        // Servers that take only short assignments get only what is necessary.
        if self.max_bytes == MAX_ASSIGNMENT_BYTES
            && let Some(assignment) =
                self.holders.get(task).and_then(|holder| self.assignments.get_mut(holder))
        {
            assignment.carry(task, seen);
        }
    }

    /// Removes a task from its live holder's assignment: its attempt is known to be dead. The urgency is that of the
    /// next assignment of the task.
    pub fn strip(&mut self, task: &EntryId, urgency: Urgency) {
        if let Some(incarnation) = self.holders.get(task).cloned() {
            self.strike(&incarnation, task, urgency);
        }
    }

    fn strike(&mut self, incarnation: &Incarnation, task: &EntryId, urgency: Urgency) {
        self.release(incarnation, task);
        self.mark(incarnation, urgency);
    }

    /// Forgets that a task is on a dead incarnation's assignment; the assignment itself will go.
    pub fn release(&mut self, incarnation: &Incarnation, task: &EntryId) {
        if let Some(assignment) = self.assignments.get_mut(incarnation) {
            assignment.remove(task);
            self.touched.insert(incarnation.clone());
        }
        if self.holders.get(task) == Some(incarnation) {
            self.holders.remove(task);
        }
    }

    /// Asks the incarnation that has the task to kill it.
    pub fn revoke(&mut self, task: &EntryId, urgency: Urgency) {
        let revoke = |held: &mut Held| {
            if held.revoked == Revoked::No {
                held.revoked = Revoked::Wanted;
            }
        };
        if self.change(task, revoke) {
            self.mark_holder(task, urgency);
        }
    }

    /// When [`AssignmentTable::flush`] has something to do if nothing happens before. Where the window is full, the
    /// next answer comes first.
    pub fn next_wake(&self) -> Option<Instant> {
        let first = self.due.first().filter(|_| self.calls.len() < WINDOW);
        first.map(|(at, _)| *at)
    }

    /// The incarnation says that what was revoked up to this version of its assignment is dead. Gives those entries,
    /// which are removed from the assignment.
    pub fn acknowledge(&mut self, incarnation: &Incarnation, through: i32) -> Vec<EntryId> {
        let Some(assignment) = self.assignments.get(incarnation) else { return Vec::new() };
        let dead = assignment.dead_through(through);
        // Not off its holder's assignment: that may be another, where the next attempt runs.
        for task in &dead {
            self.strike(incarnation, task, Urgency::Now);
        }
        dead
    }

    /// Deletes the assignment of a dead incarnation, once nothing is on it.
    pub fn close<R>(&mut self, incarnation: &Incarnation, out: &mut Actions<R>) {
        let Some(assignment) = self.assignments.get_mut(incarnation) else { return };
        // What may not be deleted is clean, and waits for its time.
        let may = assignment.state == SyncState::Idle
            || (assignment.state == SyncState::Refused && assignment.is_dirty());
        if may && assignment.is_empty() {
            (assignment.state, assignment.changes) = (SyncState::Closing, Changes::None);
            let call =
                Call::Delete { path: self.layout.assignment(incarnation), version: Some(assignment.version) };
            self.calls.issue(out, call, Purpose::Close(incarnation.clone()));
            self.touched.insert(incarnation.clone());
            self.rest(incarnation);
        }
    }

    /// It is `now`: what is marked from now on waits from here.
    pub fn tick(&mut self, now: Instant) {
        self.now = now;
    }

    /// Reads and writes what is due, as far as the window allows.
    pub fn flush<R>(&mut self, out: &mut Actions<R>) {
        while self.calls.len() < WINDOW {
            let Some((at, incarnation)) = self.due.pop_first() else { break };
            if at > self.now {
                self.due.insert((at, incarnation));
                break;
            }
            let path = self.layout.assignment(&incarnation);
            let Some(assignment) = self.assignments.get_mut(&incarnation) else { continue };
            assignment.due = None;
            match assignment.state {
                SyncState::Idle | SyncState::Refused if assignment.is_dirty() => {
                    // One that was refused, and then read, is closed from here until it passes.
                    self.touched.insert(incarnation.clone());
                    let data = assignment.write(self.epoch);
                    let call = Call::Set { path, data, version: assignment.version };
                    self.calls.issue(out, call, Purpose::Write(incarnation));
                }
                SyncState::Reading | SyncState::Unreadable | SyncState::Refused => {
                    assignment.state = SyncState::Reading;
                    self.calls.issue(out, Call::Get { path, watch: false }, Purpose::Read(incarnation));
                }
                SyncState::Writing if assignment.is_dirty() => assignment.changes = Changes::Urgent,
                // Clean, or it is seen to when the call that is under way is answered.
                SyncState::Idle | SyncState::Writing | SyncState::Closing => {}
            }
        }
    }

    /// Takes in a change of a znode, which is ours if it is an assignment.
    pub fn on_changed<R>(&mut self, path: &str, kind: ChangeKind, out: &mut Actions<R>) -> Routed<Vec<Step>> {
        if path.rsplit_once('/').is_none_or(|(dir, _)| dir != self.layout.assign()) {
            return Routed::NotMine;
        }
        let mut steps = Vec::new();
        if self.state == State::Shut {
            return Routed::Mine(steps);
        }
        let Some(incarnation) = Incarnation::parse(name_of(path)) else { return Routed::Mine(steps) };
        match kind {
            ChangeKind::Created => self.open(incarnation),
            ChangeKind::Deleted => self.drop_assignment(&incarnation, &mut steps),
            // Mostly the echo of our own writes; a stranger's is met by the version check of the next.
            ChangeKind::Data if self.is_unreadable(&incarnation) => self.read(&incarnation),
            ChangeKind::Data | ChangeKind::Children => {}
        }
        self.flush(out);
        Routed::Mine(steps)
    }

    /// Takes in a reply.
    pub fn on_reply<R>(
        &mut self,
        id: CallId,
        result: &CallResult,
        out: &mut Actions<R>,
    ) -> Routed<Vec<Step>> {
        self.calls.route(id, result).map(|(purpose, answer)| {
            let mut steps = Vec::new();
            if let Some(answer) = answer {
                self.on_answer(purpose, answer, &mut steps, out);
            }
            steps
        })
    }

    fn on_answer<R>(
        &mut self,
        purpose: Purpose,
        answer: Result<&Reply, Refusal>,
        steps: &mut Vec<Step>,
        out: &mut Actions<R>,
    ) {
        match (purpose, answer) {
            (Purpose::Watch, Ok(_)) => {
                self.calls.issue(out, Call::Children { path: self.layout.assign() }, Purpose::List);
            }
            (Purpose::List, Ok(Reply::Children(names))) => {
                for incarnation in names.iter().filter_map(|name| Incarnation::parse(name)) {
                    self.open(incarnation);
                }
            }
            (Purpose::Watch | Purpose::List, Err(refusal)) => {
                return steps.push(Step::Refused(self.layout.assign(), refusal));
            }
            (Purpose::Read(incarnation), answer) => self.on_read(&incarnation, answer, steps, out),
            (Purpose::Write(incarnation), answer) => self.on_written(&incarnation, answer, steps, out),
            (Purpose::Close(incarnation), answer) => match answer {
                Ok(_) | Err(Refusal::NoNode) => self.drop_assignment(&incarnation, steps),
                Err(Refusal::BadVersion) => self.read(&incarnation),
                Err(refusal) => self.refuse(&incarnation, Deed::Delete, refusal, steps, out),
            },
            (Purpose::List, Ok(_)) => {}
        }
        self.flush(out);
        let busy = |assignment: &WorkerAssignment| {
            matches!(assignment.state, SyncState::Reading | SyncState::Writing)
        };
        if self.state == State::TakingOver && self.calls.is_empty() && !self.assignments.values().any(busy) {
            self.state = State::Ready;
            steps.push(Step::Ready);
        }
    }

    fn open(&mut self, incarnation: Incarnation) {
        if !self.assignments.contains_key(&incarnation) {
            self.assignments.insert(incarnation.clone(), WorkerAssignment::default());
            self.at_once(&incarnation);
        }
    }

    fn is_unreadable(&self, incarnation: &Incarnation) -> bool {
        self.assignments.get(incarnation).is_some_and(|assignment| assignment.state == SyncState::Unreadable)
    }

    fn read(&mut self, incarnation: &Incarnation) {
        if let Some(assignment) = self.assignments.get_mut(incarnation) {
            assignment.state = SyncState::Reading;
            self.touched.insert(incarnation.clone());
            self.at_once(incarnation);
        }
    }

    fn drop_assignment(&mut self, incarnation: &Incarnation, steps: &mut Vec<Step>) {
        self.rest(incarnation);
        let Some(mut assignment) = self.assignments.remove(incarnation) else { return };
        let tasks = assignment.take_all();
        self.forget_holder(incarnation, &tasks);
        self.unclaimed.remove(incarnation);
        self.touched.insert(incarnation.clone());
        steps.push(Step::Closed(incarnation.clone(), tasks));
    }

    /// Nobody knows what is on the assignment.
    fn lose(&mut self, incarnation: &Incarnation) {
        if let Some(assignment) = self.assignments.get_mut(incarnation) {
            assignment.state = SyncState::Unreadable;
            self.rest(incarnation);
            self.touched.insert(incarnation.clone());
        }
        self.note_unclaimed(incarnation);
    }

    /// An assignment that existed at the takeover, and that we have not written yet, may have unknown entries. (On an
    /// assignment that was made since then is nothing but what we wrote.)
    fn note_unclaimed(&mut self, incarnation: &Incarnation) {
        let is_ours = self.assignments.get(incarnation).is_none_or(|assignment| assignment.ours);
        if self.state == State::TakingOver && !is_ours {
            self.unclaimed.insert(incarnation.clone());
        }
    }

    fn forget_holder(&mut self, incarnation: &Incarnation, tasks: &[EntryId]) {
        for task in tasks {
            if self.holders.get(task) == Some(incarnation) {
                self.holders.remove(task);
            }
        }
    }
}
