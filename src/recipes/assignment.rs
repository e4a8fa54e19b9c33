//! Assignment: the leader's book of who has which task.
//!
//! A page is one incarnation's assignment znode. Every change is a compare-and-set of the page, as many entries
//! as there are in one write, one write a page at a time. A new leader rewrites every page with its own epoch
//! before it changes any; from then on a deposed leader's writes fail on the version.

mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use self::page::{Held, Load};
use self::page::{Page, PageState, Revoked};
use crate::contract::worker::{Assignment, Entry, MAX_ENTRIES, Seen};
use crate::contract::{Incarnation, Layout, TaskId, name_of};
use crate::machine::{
    Actions, Call, CallError, CallId, CallResult, Calls, ChangeKind, Instant, Level, Refusal, Reply,
    WatchMode,
};

/// Calls of the book that may be in flight at once.
const WINDOW: usize = 128;

/// How soon a change of a page has to be written. Whatever is written takes all changes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// A slot is free, or something is to be killed.
    Now,
    /// A worker has enough to do for the moment.
    Soon,
    /// It tells the worker nothing that matters.
    Later,
}

impl Haste {
    fn lag(self) -> Duration {
        match self {
            Haste::Now => Duration::ZERO,
            Haste::Soon => Duration::from_millis(15),
            Haste::Later => Duration::from_millis(500),
        }
    }
}

/// What became known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Every page that stood at the takeover carries our epoch.
    Ready,
    /// A page was read, and can be written to from now on.
    Opened(Incarnation),
    /// A page was written.
    Written(Incarnation),
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
    /// Pages to be written when their time has come, and after how long; the time is set at the next flush.
    waiting: BTreeMap<Incarnation, (Duration, Option<Instant>)>,
    /// Pages of which the load, or whether they are open, may have changed since somebody asked.
    touched: BTreeSet<Incarnation>,
    unreadable: BTreeSet<Incarnation>,
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
            waiting: BTreeMap::new(),
            touched: BTreeSet::new(),
            unreadable: BTreeSet::new(),
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
        self.waiting.clear();
        self.touched.clear();
        self.unreadable.clear();
        self.calls.clear();
        self.state = State::Shut;
    }

    /// Whether the takeover does not go on, for something was refused.
    pub fn is_stuck(&self) -> bool {
        self.state == State::TakingOver && self.calls.is_empty()
    }

    /// Whether every page carries our epoch.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Who has the task, and how.
    pub fn holder(&self, task: &TaskId) -> Option<(&Incarnation, Held)> {
        let incarnation = self.holders.get(task)?;
        let held = self.pages.get(incarnation)?.get(task)?;
        Some((incarnation, *held))
    }

    /// Whether a page may be added to now.
    pub fn is_open(&self, incarnation: &Incarnation) -> bool {
        self.pages.get(incarnation).is_some_and(Page::is_open)
    }

    /// The pages whose content is unknown.
    pub fn unreadable(&self) -> impl Iterator<Item = &Incarnation> {
        self.unreadable.iter()
    }

    /// Whether the incarnation has a page.
    pub fn has(&self, incarnation: &Incarnation) -> bool {
        self.pages.contains_key(incarnation)
    }

    /// The incarnations that have a page.
    pub fn incarnations(&self) -> impl Iterator<Item = &Incarnation> {
        self.pages.keys()
    }

    /// The tasks on a page, in the order in which they are started.
    pub fn entries(&self, incarnation: &Incarnation) -> impl DoubleEndedIterator<Item = (&TaskId, &Held)> {
        self.pages.get(incarnation).into_iter().flat_map(Page::entries)
    }

    /// How much is on a page that may be added to now, and has room.
    pub fn load(&self, incarnation: &Incarnation) -> Option<Load> {
        let page = self.pages.get(incarnation).filter(|page| page.is_open() && page.len() < MAX_ENTRIES)?;
        Some(page.load())
    }

    /// The incarnations whose [`Book::load`] may be another than when this was last asked.
    pub fn take_touched(&mut self) -> BTreeSet<Incarnation> {
        std::mem::take(&mut self.touched)
    }

    /// Something else that matters to who gets tasks has changed with this incarnation.
    pub fn touch(&mut self, incarnation: &Incarnation) {
        self.touched.insert(incarnation.clone());
    }

    /// What a task that is held is like, as far as the load goes.
    pub fn describe(&mut self, task: &TaskId, width: u32, suspect: bool) {
        self.change(task, |page| page.describe(task, width, suspect));
    }

    /// A task that is held is over, as far as anybody can tell: it takes up no slot any more.
    pub fn make_ghost(&mut self, task: &TaskId) {
        self.change(task, |page| page.make_ghost(task));
    }

    /// Asks the incarnation that has the task to release it, if it was not started.
    pub fn recall(&mut self, task: &TaskId) {
        if self.change(task, |page| page.recall(task)) {
            self.mark_holder(task, Haste::Now);
        }
    }

    /// These tasks, and no others, are set aside by the worker: they take up no slots.
    pub fn set_aside(&mut self, incarnation: &Incarnation, aside: &[TaskId]) {
        if self.pages.get_mut(incarnation).is_some_and(|page| page.set_aside(aside)) {
            self.touched.insert(incarnation.clone());
        }
    }

    fn change(&mut self, task: &TaskId, change: impl FnOnce(&mut Page) -> bool) -> bool {
        let Some(incarnation) = self.holders.get(task) else { return false };
        let changed = self.pages.get_mut(incarnation).is_some_and(change);
        if changed {
            self.touched.insert(incarnation.clone());
        }
        changed
    }

    /// The page differs from what was written.
    fn mark(&mut self, incarnation: &Incarnation, haste: Haste) {
        let Some(page) = self.pages.get_mut(incarnation) else { return };
        page.dirty = true;
        if haste == Haste::Now {
            page.urgent = true;
            self.to_do.insert(incarnation.clone());
        } else {
            let lag = haste.lag();
            let wait = self.waiting.entry(incarnation.clone()).or_insert((lag, None));
            if lag < wait.0 {
                *wait = (lag, None);
            }
        }
    }

    fn mark_holder(&mut self, task: &TaskId, haste: Haste) {
        if let Some(incarnation) = self.holders.get(task).cloned() {
            self.mark(&incarnation, haste);
        }
    }

    /// Gives a task that nobody has to an incarnation whose page is open.
    pub fn assign(&mut self, incarnation: &Incarnation, task: &TaskId, held: Held, haste: Haste) {
        debug_assert!(self.is_ready() && self.is_open(incarnation) && !self.holders.contains_key(task));
        if let Some(page) = self.pages.get_mut(incarnation) {
            page.push(task.clone(), held);
            self.touched.insert(incarnation.clone());
            self.holders.insert(task.clone(), incarnation.clone());
            self.mark(incarnation, haste);
        }
    }

    /// What was just read of a task that was just given out goes along, so that its worker need not read it.
    pub fn carry(&mut self, task: &TaskId, seen: Seen) {
        if let Some(page) = self.holders.get(task).and_then(|holder| self.pages.get_mut(holder)) {
            page.carry(task, seen);
        }
    }

    /// Takes a task off its living holder's page: its attempt is known to be dead. Who may get it again is in a hurry.
    pub fn strip(&mut self, task: &TaskId, haste: Haste) {
        if let Some(incarnation) = self.holders.get(task).cloned() {
            self.strike(&incarnation, task, haste);
        }
    }

    fn strike(&mut self, incarnation: &Incarnation, task: &TaskId, haste: Haste) {
        self.release(incarnation, task);
        self.mark(incarnation, haste);
    }

    /// Forgets that a task is on a dead incarnation's page; the page itself will go.
    pub fn release(&mut self, incarnation: &Incarnation, task: &TaskId) {
        if let Some(page) = self.pages.get_mut(incarnation) {
            page.remove(task);
            self.touched.insert(incarnation.clone());
        }
        if self.holders.get(task) == Some(incarnation) {
            self.holders.remove(task);
        }
    }

    /// Asks the incarnation that has the task to kill it.
    pub fn revoke(&mut self, task: &TaskId, haste: Haste) {
        if self.change(task, |page| page.revoke(task)) {
            self.mark_holder(task, haste);
        }
    }

    /// When [`Book::flush`] has something to write if nothing happens before.
    pub fn next_wake(&self) -> Option<Instant> {
        self.waiting.values().filter_map(|(_, at)| *at).min()
    }

    /// The incarnation says that what was revoked up to this version of its page is dead. Gives those tasks,
    /// which are on the page no more, with the attempts they were given out as.
    pub fn acknowledge(&mut self, incarnation: &Incarnation, through: i32) -> Vec<(TaskId, u32)> {
        let Some(page) = self.pages.get(incarnation) else { return Vec::new() };
        let dead = page.dead_through(through);
        // Not off its holder's page: that may be another, where the next attempt runs.
        for (task, _) in &dead {
            self.strike(incarnation, task, Haste::Now);
        }
        dead
    }

    /// Deletes the page of a dead incarnation, once nothing is on it.
    pub fn close<R>(&mut self, incarnation: &Incarnation, out: &mut Actions<R>) {
        let Some(page) = self.pages.get_mut(incarnation) else { return };
        if page.state == PageState::Idle && page.is_empty() {
            page.state = PageState::Closing;
            self.touched.insert(incarnation.clone());
            page.dirty = false;
            let call =
                Call::Delete { path: self.layout.assignment(incarnation), version: Some(page.version) };
            self.calls.issue(out, call, Purpose::Close(incarnation.clone()));
        }
    }

    /// Writes what is due, as far as the window allows.
    pub fn flush<R>(&mut self, now: Instant, out: &mut Actions<R>) {
        for (incarnation, (lag, at)) in &mut self.waiting {
            if *at.get_or_insert(now + *lag) <= now {
                self.to_do.insert(incarnation.clone());
            }
        }
        self.pump(out);
    }

    fn pump<R>(&mut self, out: &mut Actions<R>) {
        while self.calls.len() < WINDOW {
            let Some(incarnation) = self.to_do.pop_first() else { break };
            let path = self.layout.assignment(&incarnation);
            let Some(page) = self.pages.get_mut(&incarnation) else { continue };
            match page.state {
                PageState::Reading => {
                    self.calls.issue(out, Call::Get { path, watch: false }, Purpose::Read(incarnation));
                }
                PageState::Idle if page.dirty => {
                    self.waiting.remove(&incarnation);
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
            ChangeKind::Data if self.unreadable.contains(&incarnation) => self.read(&incarnation),
            ChangeKind::Data | ChangeKind::Children => {}
        }
        self.pump(out);
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
        self.pump(out);
        let busy = |page: &Page| matches!(page.state, PageState::Reading | PageState::Writing);
        if self.state == State::TakingOver && self.calls.is_empty() && !self.pages.values().any(busy) {
            self.state = State::Ready;
            steps.push(Step::Ready);
        }
        true
    }

    fn open(&mut self, incarnation: Incarnation) {
        if !self.pages.contains_key(&incarnation) {
            self.pages.insert(incarnation.clone(), Page::new());
            self.to_do.insert(incarnation);
        }
    }

    fn read(&mut self, incarnation: &Incarnation) {
        if let Some(page) = self.pages.get_mut(incarnation) {
            page.state = PageState::Reading;
            self.unreadable.remove(incarnation);
            self.touched.insert(incarnation.clone());
            self.to_do.insert(incarnation.clone());
        }
    }

    fn drop_page(&mut self, incarnation: &Incarnation, steps: &mut Vec<Step>) {
        let Some(mut page) = self.pages.remove(incarnation) else { return };
        let tasks = page.take_all();
        self.forget_holder(incarnation, &tasks);
        self.to_do.remove(incarnation);
        self.waiting.remove(incarnation);
        self.unreadable.remove(incarnation);
        self.touched.insert(incarnation.clone());
        steps.push(Step::Closed(incarnation.clone(), tasks));
    }

    /// Nobody knows what is on the page.
    fn lose(&mut self, incarnation: &Incarnation) {
        if let Some(page) = self.pages.get_mut(incarnation) {
            page.state = PageState::Unreadable;
            self.unreadable.insert(incarnation.clone());
            self.touched.insert(incarnation.clone());
        }
    }

    fn forget_holder(&mut self, incarnation: &Incarnation, tasks: &[TaskId]) {
        for task in tasks {
            if self.holders.get(task) == Some(incarnation) {
                self.holders.remove(task);
            }
        }
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
                self.lose(incarnation);
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
        self.touched.insert(incarnation.clone());
        if page.ours {
            // A stranger wrote over what we know better.
            page.dirty = true;
            return;
        }
        // An earlier read of the page, if there was one, is void: a deposed leader's write came in between.
        page.dirty = self.state == State::TakingOver;
        let earlier = page.take_all();
        self.forget_holder(incarnation, &earlier);
        if !earlier.is_empty() {
            steps.push(Step::Closed(incarnation.clone(), earlier));
        }
        match read {
            Ok(read) => self.take_in(incarnation, read.entries),
            Err(malformed) => {
                self.lose(incarnation);
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
    fn take_in(&mut self, incarnation: &Incarnation, entries: Vec<Entry>) {
        for entry in entries {
            let mut revoked = if entry.revoked { Revoked::Wanted } else { Revoked::No };
            let elsewhere = self.holder(&entry.task).map(|(other, held)| (other.clone(), held.attempt));
            match elsewhere {
                Some((other, attempt)) if other != *incarnation && attempt >= entry.attempt => {
                    revoked = Revoked::Wanted;
                }
                Some(_) | None => {
                    self.revoke(&entry.task, Haste::Now);
                    self.holders.insert(entry.task.clone(), incarnation.clone());
                }
            }
            if let Some(page) = self.pages.get_mut(incarnation) {
                page.dirty |= revoked == Revoked::Wanted && !entry.revoked;
                let mut held = Held::new(entry.attempt, 1, false);
                (held.inherited, held.revoked, held.recalled) = (true, revoked, entry.recalled);
                page.push(entry.task, held);
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
                page.sent(stat.version);
                if page.urgent {
                    self.to_do.insert(incarnation.clone());
                }
                steps.push(Step::Written(incarnation.clone()));
            }
            Err(Refusal::NoNode) => self.drop_page(incarnation, steps),
            Err(Refusal::BadVersion) => {
                page.unsend();
                self.read(incarnation);
            }
            Ok(_) => {}
            Err(refusal) => {
                page.unsend();
                self.lose(incarnation);
                steps.push(Step::Refused(self.layout.assignment(incarnation), refusal));
            }
        }
    }
}
