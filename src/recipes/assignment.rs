//! Assignment: the leader's book of who has which task.
//!
//! A page is one incarnation's assignment znode. Every change is a compare-and-set of the page, as many entries
//! as there are in one write, one write a page at a time. A new leader rewrites every page with its own epoch
//! before it changes any; from then on a deposed leader's writes fail on the version.

use std::collections::{BTreeMap, BTreeSet};

use crate::contract::worker::{Assignment, Entry, MAX_ENTRIES};
use crate::contract::{Incarnation, Layout, TaskId, name_of};
use crate::machine::{
    Actions, Call, CallError, CallId, CallResult, Calls, ChangeKind, Level, Refusal, Reply, WatchMode,
};

/// Calls of the book that may be in flight at once.
const WINDOW: usize = 128;

/// What became known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Every page that stood at the takeover carries our epoch.
    Ready,
    /// A page can be written to from now on.
    Opened(Incarnation),
    /// A page is gone; these tasks stood on it.
    Closed(Incarnation, Vec<TaskId>),
    /// Another leader of a higher epoch wrote a page.
    Deposed {
        /// The other's.
        epoch: i64,
    },
    /// The directory, or a page, may not be read or written.
    Refused(String, Refusal),
}

/// A task on a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The attempt that it was given out as.
    pub attempt: u32,
    /// Somebody who led before gave it out.
    pub inherited: bool,
    revoked: Revoked,
}

impl Held {
    /// Whether it is, or is about to be, revoked.
    pub fn is_revoked(&self) -> bool {
        self.revoked != Revoked::No
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Revoked {
    No,
    Wanted,
    InFlight,
    /// In this version of the page at the latest.
    Since(i32),
}

/// One incarnation's assignment.
#[derive(Debug)]
struct Page {
    version: i32,
    entries: BTreeMap<TaskId, Held>,
    state: PageState,
    /// What is in memory differs from what was written.
    dirty: bool,
    /// It carries our epoch, so we know better than the ensemble what is to stand there.
    ours: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageState {
    Reading,
    Idle,
    Writing,
    Closing,
    /// It is no assignment; nobody knows what its incarnation runs.
    Unreadable,
}

#[derive(Debug)]
enum Purpose {
    Watch,
    List,
    Read(Incarnation),
    Write(Incarnation),
    Close(Incarnation),
}

/// The book.
#[derive(Debug)]
pub struct Book {
    layout: Layout,
    epoch: i64,
    pages: BTreeMap<Incarnation, Page>,
    holders: BTreeMap<TaskId, Incarnation>,
    /// Pages to be read or written as soon as the window allows.
    to_do: BTreeSet<Incarnation>,
    calls: Calls<Purpose>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Shut,
    TakingOver,
    Ready,
}

impl Book {
    /// A book that is shut: only a leader opens it.
    pub fn new(layout: &Layout) -> Book {
        Book {
            layout: layout.clone(),
            epoch: 0,
            pages: BTreeMap::new(),
            holders: BTreeMap::new(),
            to_do: BTreeSet::new(),
            calls: Calls::default(),
            state: State::Shut,
        }
    }

    /// Reads every page and rewrites it with our epoch. The caller made a write of its own on this connection
    /// before, so what is read is the present.
    pub fn take_over<R>(&mut self, epoch: i64, out: &mut Actions<R>) {
        self.shut();
        self.epoch = epoch;
        self.state = State::TakingOver;
        self.calls.issue(
            out,
            Call::Watch { path: self.layout.assign(), mode: WatchMode::Tree },
            Purpose::Watch,
        );
    }

    /// Forgets all: we lead no more.
    pub fn shut(&mut self) {
        self.pages.clear();
        self.holders.clear();
        self.to_do.clear();
        self.calls.clear();
        self.state = State::Shut;
    }

    /// Whether every page carries our epoch.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Who has the task, and how.
    pub fn holder(&self, task: &TaskId) -> Option<(&Incarnation, Held)> {
        let incarnation = self.holders.get(task)?;
        let held = self.pages.get(incarnation)?.entries.get(task)?;
        Some((incarnation, *held))
    }

    /// How many tasks are held.
    pub fn held(&self) -> usize {
        self.holders.len()
    }

    /// Whether a page may be added to now.
    pub fn is_open(&self, incarnation: &Incarnation) -> bool {
        self.pages
            .get(incarnation)
            .is_some_and(|page| matches!(page.state, PageState::Idle | PageState::Writing))
    }

    /// Whether there is a page whose content is unknown.
    pub fn is_unreadable(&self, incarnation: &Incarnation) -> bool {
        self.pages.get(incarnation).is_some_and(|page| page.state == PageState::Unreadable)
    }

    /// The incarnations that have a page.
    pub fn incarnations(&self) -> impl Iterator<Item = &Incarnation> {
        self.pages.keys()
    }

    /// The tasks on a page.
    pub fn entries(&self, incarnation: &Incarnation) -> impl Iterator<Item = (&TaskId, &Held)> {
        self.pages.get(incarnation).into_iter().flat_map(|page| page.entries.iter())
    }

    /// How many entries fit on the page besides those there.
    pub fn room(&self, incarnation: &Incarnation) -> usize {
        self.pages.get(incarnation).map_or(0, |page| MAX_ENTRIES.saturating_sub(page.entries.len()))
    }

    /// Gives a task that nobody has to an incarnation whose page is open.
    pub fn assign(&mut self, incarnation: &Incarnation, task: &TaskId, attempt: u32) {
        debug_assert!(self.is_ready() && self.is_open(incarnation) && !self.holders.contains_key(task));
        if let Some(page) = self.pages.get_mut(incarnation) {
            page.entries.insert(task.clone(), Held { attempt, inherited: false, revoked: Revoked::No });
            page.dirty = true;
            self.holders.insert(task.clone(), incarnation.clone());
            self.to_do.insert(incarnation.clone());
        }
    }

    /// Takes a task off its living holder's page: its attempt is known to be dead.
    pub fn strip(&mut self, task: &TaskId) {
        if let Some(incarnation) = self.holders.get(task).cloned() {
            self.strike(&incarnation, task);
        }
    }

    fn strike(&mut self, incarnation: &Incarnation, task: &TaskId) {
        self.release(incarnation, task);
        if let Some(page) = self.pages.get_mut(incarnation) {
            page.dirty = true;
        }
        self.to_do.insert(incarnation.clone());
    }

    /// Forgets that a task is on a dead incarnation's page; the page itself will go.
    pub fn release(&mut self, incarnation: &Incarnation, task: &TaskId) {
        if let Some(page) = self.pages.get_mut(incarnation) {
            page.entries.remove(task);
        }
        if self.holders.get(task) == Some(incarnation) {
            self.holders.remove(task);
        }
    }

    /// Asks the incarnation that has the task to kill it.
    pub fn revoke(&mut self, task: &TaskId) {
        let Some(incarnation) = self.holders.get(task) else { return };
        let Some(page) = self.pages.get_mut(incarnation) else { return };
        if let Some(held) = page.entries.get_mut(task)
            && held.revoked == Revoked::No
        {
            held.revoked = Revoked::Wanted;
            page.dirty = true;
            self.to_do.insert(incarnation.clone());
        }
    }

    /// The incarnation says that what was revoked up to this version of its page is dead. Gives those tasks,
    /// which are on the page no more, with the attempts they were given out as.
    pub fn acknowledge(&mut self, incarnation: &Incarnation, through: i32) -> Vec<(TaskId, u32)> {
        let Some(page) = self.pages.get(incarnation) else { return Vec::new() };
        let dead = |held: &Held| matches!(held.revoked, Revoked::Since(version) if version <= through);
        let dead = page.entries.iter().filter(|(_, held)| dead(held));
        let dead: Vec<_> = dead.map(|(task, held)| (task.clone(), held.attempt)).collect();
        // Not off its holder's page: that may be another, where the next attempt runs.
        for (task, _) in &dead {
            self.strike(incarnation, task);
        }
        dead
    }

    /// Deletes the page of a dead incarnation, once nothing is on it.
    pub fn close<R>(&mut self, incarnation: &Incarnation, out: &mut Actions<R>) {
        let Some(page) = self.pages.get_mut(incarnation) else { return };
        if page.state == PageState::Idle && page.entries.is_empty() {
            page.state = PageState::Closing;
            page.dirty = false;
            let call =
                Call::Delete { path: self.layout.assignment(incarnation), version: Some(page.version) };
            self.calls.issue(out, call, Purpose::Close(incarnation.clone()));
        }
    }

    /// Writes what changed, as far as the window allows.
    pub fn flush<R>(&mut self, out: &mut Actions<R>) {
        while self.calls.len() < WINDOW {
            let Some(incarnation) = self.to_do.pop_first() else { break };
            let path = self.layout.assignment(&incarnation);
            let Some(page) = self.pages.get_mut(&incarnation) else { continue };
            match page.state {
                PageState::Reading => {
                    self.calls.issue(out, Call::Get { path, watch: false }, Purpose::Read(incarnation));
                }
                PageState::Idle if page.dirty => {
                    let data = page.write(self.epoch);
                    let call = Call::Set { path, data, version: page.version };
                    self.calls.issue(out, call, Purpose::Write(incarnation));
                }
                // Idle and clean, or flushed again when the call that is under way is answered.
                PageState::Idle | PageState::Writing | PageState::Closing | PageState::Unreadable => {}
            }
        }
    }

    /// Takes in a change; false if it is not about assignments.
    pub fn on_changed<R>(
        &mut self,
        path: &str,
        kind: ChangeKind,
        steps: &mut Vec<Step>,
        out: &mut Actions<R>,
    ) -> bool {
        if path.rsplit_once('/').is_none_or(|(dir, _)| dir != self.layout.assign()) {
            return false;
        }
        if self.state == State::Shut {
            return true;
        }
        let Some(incarnation) = Incarnation::parse(name_of(path)) else { return true };
        match kind {
            ChangeKind::Created => self.open(incarnation),
            ChangeKind::Deleted => self.drop_page(&incarnation, steps),
            // Mostly the echo of our own writes; a stranger's is met by the version check of the next.
            ChangeKind::Data if self.is_unreadable(&incarnation) => self.read(&incarnation),
            ChangeKind::Data | ChangeKind::Children => {}
        }
        self.flush(out);
        true
    }

    /// Takes in a reply; false if it is somebody else's.
    pub fn on_reply<R>(
        &mut self,
        id: CallId,
        result: &CallResult,
        steps: &mut Vec<Step>,
        out: &mut Actions<R>,
    ) -> bool {
        let Some(purpose) = self.calls.take(id) else { return false };
        let result = match result {
            Ok(reply) => Ok(reply),
            Err(CallError::Refused(refusal)) => Err(*refusal),
            Err(CallError::NotSent | CallError::MaybeApplied) => return true,
        };
        match (purpose, result) {
            (Purpose::Watch, Ok(_)) => {
                self.calls.issue(out, Call::Children { path: self.layout.assign() }, Purpose::List);
            }
            (Purpose::List, Ok(Reply::Children(names))) => {
                for incarnation in names.iter().filter_map(|name| Incarnation::parse(name)) {
                    self.open(incarnation);
                }
            }
            (Purpose::Watch | Purpose::List, Err(refusal)) => {
                steps.push(Step::Refused(self.layout.assign(), refusal));
                return true;
            }
            (Purpose::Read(incarnation), result) => self.on_read(&incarnation, result, steps, out),
            (Purpose::Write(incarnation), result) => self.on_written(&incarnation, result, steps),
            (Purpose::Close(incarnation), result) => match result {
                Ok(_) | Err(Refusal::NoNode) => self.drop_page(&incarnation, steps),
                Err(_) => self.read(&incarnation),
            },
            (Purpose::List, Ok(_)) => {}
        }
        self.flush(out);
        let busy = |page: &Page| matches!(page.state, PageState::Reading | PageState::Writing);
        if self.state == State::TakingOver && self.calls.is_empty() && !self.pages.values().any(busy) {
            self.state = State::Ready;
            steps.push(Step::Ready);
        }
        true
    }

    fn open(&mut self, incarnation: Incarnation) {
        if !self.pages.contains_key(&incarnation) {
            let page = Page {
                version: 0,
                entries: BTreeMap::new(),
                state: PageState::Reading,
                dirty: false,
                ours: false,
            };
            self.pages.insert(incarnation.clone(), page);
            self.to_do.insert(incarnation);
        }
    }

    fn read(&mut self, incarnation: &Incarnation) {
        if let Some(page) = self.pages.get_mut(incarnation) {
            page.state = PageState::Reading;
            self.to_do.insert(incarnation.clone());
        }
    }

    fn drop_page(&mut self, incarnation: &Incarnation, steps: &mut Vec<Step>) {
        let Some(page) = self.pages.remove(incarnation) else { return };
        for task in page.entries.keys() {
            if self.holders.get(task) == Some(incarnation) {
                self.holders.remove(task);
            }
        }
        self.to_do.remove(incarnation);
        steps.push(Step::Closed(incarnation.clone(), page.entries.into_keys().collect()));
    }

    fn on_read<R>(
        &mut self,
        incarnation: &Incarnation,
        result: Result<&Reply, Refusal>,
        steps: &mut Vec<Step>,
        out: &mut Actions<R>,
    ) {
        let path = self.layout.assignment(incarnation);
        let (data, version, mzxid) = match result {
            Ok(Reply::Data { data, stat }) => (data, stat.version, stat.mzxid),
            Err(Refusal::NoNode) => return self.drop_page(incarnation, steps),
            Ok(_) => return,
            Err(refusal) => {
                if let Some(page) = self.pages.get_mut(incarnation) {
                    page.state = PageState::Unreadable;
                }
                return steps.push(Step::Refused(path, refusal));
            }
        };
        let Some(page) = self.pages.get_mut(incarnation) else { return };
        page.version = version;
        page.state = PageState::Idle;
        let read = Assignment::decode(data);
        // Whoever wrote it had been made a leader before: an epoch after its own page's is from another ensemble.
        if let Ok(read) = &read
            && read.epoch > self.epoch
            && read.epoch < mzxid
        {
            return steps.push(Step::Deposed { epoch: read.epoch });
        }
        self.to_do.insert(incarnation.clone());
        if page.ours {
            // A stranger wrote over what we know better.
            page.dirty = true;
            return;
        }
        // An earlier read of the page, if there was one, is void: a deposed leader's write came in between.
        page.dirty = self.state == State::TakingOver;
        let earlier = std::mem::take(&mut page.entries);
        for task in earlier.keys() {
            if self.holders.get(task) == Some(incarnation) {
                self.holders.remove(task);
            }
        }
        if !earlier.is_empty() {
            steps.push(Step::Closed(incarnation.clone(), earlier.into_keys().collect()));
        }
        match read {
            Ok(read) => self.load(incarnation, read.entries),
            Err(malformed) => {
                page.state = PageState::Unreadable;
                return out
                    .log(Level::Error, format!("{path} is no assignment ({malformed}): it is left alone"));
            }
        }
        // What is on the page must leave the queue now: a standby's queue holds all that is pending.
        steps.push(Step::Opened(incarnation.clone()));
    }

    /// Takes over what is on a page. A task may be on two, if a leader that died had written only one half of its
    /// move from one to the other. Then the later attempt's holder has it; the other entry is void, and is revoked,
    /// so that it goes when its worker has vouched for it.
    fn load(&mut self, incarnation: &Incarnation, entries: Vec<Entry>) {
        for entry in entries {
            let mut revoked = if entry.revoked { Revoked::Wanted } else { Revoked::No };
            let elsewhere = self.holder(&entry.task).map(|(other, held)| (other.clone(), held.attempt));
            match elsewhere {
                Some((other, attempt)) if other != *incarnation && attempt >= entry.attempt => {
                    revoked = Revoked::Wanted;
                }
                Some(_) | None => {
                    self.revoke(&entry.task);
                    self.holders.insert(entry.task.clone(), incarnation.clone());
                }
            }
            if let Some(page) = self.pages.get_mut(incarnation) {
                page.dirty |= revoked == Revoked::Wanted && !entry.revoked;
                let held = Held { attempt: entry.attempt, inherited: true, revoked };
                page.entries.insert(entry.task, held);
            }
        }
    }

    fn on_written(
        &mut self,
        incarnation: &Incarnation,
        result: Result<&Reply, Refusal>,
        steps: &mut Vec<Step>,
    ) {
        let Some(page) = self.pages.get_mut(incarnation) else { return };
        match result {
            Ok(Reply::Stat(stat)) => {
                page.state = PageState::Idle;
                page.version = stat.version;
                page.ours = true;
                for held in page.entries.values_mut().filter(|held| held.revoked == Revoked::InFlight) {
                    held.revoked = Revoked::Since(stat.version);
                }
                if page.dirty {
                    self.to_do.insert(incarnation.clone());
                }
                steps.push(Step::Opened(incarnation.clone()));
            }
            Err(Refusal::NoNode) => self.drop_page(incarnation, steps),
            Err(Refusal::BadVersion) => {
                page.unsend();
                self.read(incarnation);
            }
            Ok(_) => {}
            Err(refusal) => {
                page.unsend();
                page.state = PageState::Unreadable;
                steps.push(Step::Refused(self.layout.assignment(incarnation), refusal));
            }
        }
    }
}

impl Page {
    /// The data to write; the page is then clean and being written.
    fn write(&mut self, epoch: i64) -> Vec<u8> {
        self.dirty = false;
        self.state = PageState::Writing;
        for held in self.entries.values_mut().filter(|held| held.revoked == Revoked::Wanted) {
            held.revoked = Revoked::InFlight;
        }
        let entry = |(task, held): (&TaskId, &Held)| Entry {
            task: task.clone(),
            attempt: held.attempt,
            revoked: held.is_revoked(),
        };
        Assignment::new(epoch, self.entries.iter().map(entry).collect()).encode()
    }

    /// The last write was not applied.
    fn unsend(&mut self) {
        self.dirty = true;
        for held in self.entries.values_mut().filter(|held| held.revoked == Revoked::InFlight) {
            held.revoked = Revoked::Wanted;
        }
    }
}
