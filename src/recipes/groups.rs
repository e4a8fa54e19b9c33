//! Group commit: outcomes of many tasks written as one znode, in place of one write into each task.
//!
//! It is what databases do with their logs (DeWitt et al., "Implementation Techniques for Main Memory Database Systems",
//! SIGMOD 1984, §5.2): while one write is under way, what ends meanwhile gathers for the next. What does not come to a
//! group in time is written alone.
//!
//! A group is the only place where the outcomes in it stand, so it stays until all its tasks are *settled*: gone, or with
//! an outcome of their own. Whoever waits for them takes them from the group and deletes them; whatever nobody took for
//! 5 s is written alone after all. Until then its author answers for it, and when that is dead the leader does.
//!
//! A group is written into a *place*: a znode that was made empty, and is written over when its last group is settled. So
//! every group is a compare-and-set on a znode that is known to stand, and whoever takes over from a dead author can make sure
//! that no write of it comes late: by one write of his own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::contract::copies::{Copies, MAX_COPIES, MAX_COPIES_BYTES, MIN_GROUP, ended_name};
use crate::contract::worker::Seen;
use crate::contract::{Incarnation, Layout, TaskId, name_of};
use crate::machine::{
    Actions, Call, CallError, CallId, CallResult, Calls, CreateMode, Instant, Refusal, Reply, earlier,
};

/// How long an outcome waits for company.
const TOGETHER: Duration = Duration::from_millis(50);

/// So many need not wait for more.
const ENOUGH: usize = 96;

/// Groups being written at a time.
const MAX_WRITING: usize = 2;

/// What could not be written for so long is written alone, however busy groups of other directories are.
const OVERDUE: Duration = Duration::from_millis(500);

/// Places that there are at a time. If all are taken, all is written alone.
const MAX_PLACES: usize = 64;

/// What nobody took from a group for so long is written alone.
const STALE: Duration = Duration::from_secs(5);

/// How long a place is kept that nothing is written into.
const IDLE: Duration = Duration::from_secs(2);

/// A request whose answer was lost is carried out within so many session timeouts, or never.
const DOUBT_TIMEOUTS: u32 = 2;

/// The groups of one incarnation.
#[derive(Debug)]
pub struct Groups {
    layout: Layout,
    by: Incarnation,
    /// Directories whose submitters take outcomes from groups.
    wanted: BTreeSet<String>,
    /// What ended and is in no group yet, by directory.
    waiting: BTreeMap<String, Waiting>,
    places: BTreeMap<u64, Place>,
    /// The place of the group that each task is in which is not settled.
    of: BTreeMap<TaskId, u64>,
    /// Of the last place; no name is used twice.
    number: u64,
    timeout: Duration,
    calls: Calls<Purpose>,
}

#[derive(Debug, Default)]
struct Waiting {
    ended: BTreeMap<TaskId, Seen>,
    due: Option<Instant>,
}

/// A znode that has one group at a time.
#[derive(Debug)]
struct Place {
    path: String,
    dir: String,
    version: i32,
    /// How many tasks of its group are not settled.
    open: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is being made, empty.
    Making,
    /// Nothing in it is needed any more, since then.
    Free(Option<Instant>),
    Writing,
    /// A group stands, since then.
    Standing(Instant),
    /// What is open is being written alone, for nobody took it.
    Alone,
    /// Likewise, for nobody knows what stands here. What was asked for has happened by this time, or never will.
    Doubtful(Option<Instant>),
    /// The same after that time: it is to be deleted.
    Spent,
    Deleting,
}

#[derive(Debug)]
enum Purpose {
    Make(u64),
    Write(u64),
    Delete(u64),
}

/// What became of outcomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// They stand in a group.
    Written(Vec<TaskId>),
    /// They are to be written alone.
    Alone(Vec<TaskId>),
}

impl Waiting {
    /// Whether it is to be written by now.
    fn is_due(&self, now: Instant) -> bool {
        let is_late = self.due.is_none_or(|due| due <= now);
        self.ended.len() >= ENOUGH || (is_late && !self.ended.is_empty())
    }
}

impl Groups {
    /// No groups.
    pub fn new(layout: &Layout, by: &Incarnation) -> Groups {
        Groups {
            layout: layout.clone(),
            by: by.clone(),
            wanted: BTreeSet::new(),
            waiting: BTreeMap::new(),
            places: BTreeMap::new(),
            of: BTreeMap::new(),
            number: 0,
            timeout: Duration::ZERO,
            calls: Calls::default(),
        }
    }

    /// The submitter of the tasks of this directory takes outcomes from groups.
    pub fn want(&mut self, dir: &str) {
        self.wanted.insert(dir.to_string());
    }

    /// Whether it does.
    pub fn is_wanted(&self, dir: &str) -> bool {
        self.wanted.contains(dir)
    }

    /// Forgets which directories want groups, but for these.
    pub fn retain(&mut self, is_needed: impl Fn(&str) -> bool) {
        self.wanted.retain(|dir| is_needed(dir));
    }

    /// How many outcomes are neither in a group that stands, nor given back to be written alone.
    pub fn unwritten(&self) -> usize {
        let writing = self.places.values().filter(|place| place.state == State::Writing);
        self.waiting.values().map(|waiting| waiting.ended.len()).sum::<usize>()
            + writing.map(|place| place.open).sum::<usize>()
    }

    /// A task has ended, and this is to stand in it.
    pub fn add(&mut self, task: &TaskId, seen: Seen) {
        self.waiting.entry(task.dir().to_string()).or_default().ended.insert(task.clone(), seen);
    }

    /// The task is to be written alone, wherever it is.
    pub fn drop_waiting(&mut self, task: &TaskId) {
        if let Some(waiting) = self.waiting.get_mut(task.dir()) {
            waiting.ended.remove(task);
        }
    }

    /// A session of this timeout is up: what was lost is done again.
    pub fn on_connected<R>(&mut self, timeout: Duration, out: &mut Actions<R>) {
        self.timeout = timeout;
        for (number, place) in self.places.iter().filter(|(_, place)| place.state == State::Deleting) {
            let call = Call::Delete { path: place.path.clone(), version: None };
            self.calls.issue(out, call, Purpose::Delete(*number));
        }
    }

    /// The session is gone. Nobody knows which of the groups being written stand; what is in none is given back.
    pub fn on_lost(&mut self) -> Vec<TaskId> {
        self.calls.clear();
        let waiting = std::mem::take(&mut self.waiting);
        let mut alone: Vec<TaskId> =
            waiting.into_values().flat_map(|waiting| waiting.ended.into_keys()).collect();
        let is_open = |place: &Place| matches!(place.state, State::Making | State::Writing);
        let open: Vec<u64> = self.places.iter().filter(|(_, p)| is_open(p)).map(|(n, _)| *n).collect();
        for number in open {
            alone.extend(self.leave(number, State::Doubtful(None)));
        }
        alone
    }

    /// From now on an incarnation of this name makes groups. What another made is up to the leader.
    pub fn rename(&mut self, by: &Incarnation) {
        if self.by != *by {
            self.by = by.clone();
            self.waiting.clear();
            self.places.clear();
            self.of.clear();
            self.calls.clear();
        }
    }

    /// The open tasks of a place, from now on written alone.
    fn leave(&mut self, number: u64, state: State) -> Vec<TaskId> {
        if let Some(place) = self.places.get_mut(&number) {
            place.state = state;
        }
        self.tasks_in(number)
    }

    /// The tasks of a place that are not settled.
    fn tasks_in(&self, number: u64) -> Vec<TaskId> {
        self.of.iter().filter(|(_, of)| **of == number).map(|(task, _)| task.clone()).collect()
    }

    /// A task is gone, or has an outcome of its own.
    pub fn settled<R>(&mut self, task: &TaskId, out: &mut Actions<R>) {
        let Some(number) = self.of.remove(task) else { return };
        let Some(place) = self.places.get_mut(&number) else { return };
        place.open -= 1;
        self.clear(number, out);
    }

    /// Uses a place for something else, or deletes it, if nothing in it is needed any more.
    fn clear<R>(&mut self, number: u64, out: &mut Actions<R>) {
        let Some(place) = self.places.get_mut(&number).filter(|place| place.open == 0) else { return };
        match place.state {
            State::Standing(_) | State::Alone => place.state = State::Free(None),
            State::Spent => self.delete(number, out),
            _ => {}
        }
    }

    fn delete<R>(&mut self, number: u64, out: &mut Actions<R>) {
        let Some(place) = self.places.get_mut(&number) else { return };
        place.state = State::Deleting;
        // Without a version: the name is used once.
        let call = Call::Delete { path: place.path.clone(), version: None };
        self.calls.issue(out, call, Purpose::Delete(number));
    }

    /// Writes what is to be written by now; gives what is to be written alone.
    pub fn pump<R>(&mut self, now: Instant, out: &mut Actions<R>) -> Vec<TaskId> {
        let mut alone = self.age(now, out);
        let mut waiting = std::mem::take(&mut self.waiting);
        for waiting in waiting.values_mut() {
            waiting.due.get_or_insert(now + TOGETHER);
        }
        let mut dirs: Vec<(Option<Instant>, String)> =
            waiting.iter().filter(|(_, w)| w.is_due(now)).map(|(dir, w)| (w.due, dir.clone())).collect();
        // Whoever has waited longest comes first.
        dirs.sort();
        for (_, dir) in dirs {
            if let Some(waiting) = waiting.get_mut(&dir) {
                alone.extend(self.write_due(&dir, waiting, now, out));
            }
        }
        waiting.retain(|_, waiting| !waiting.ended.is_empty());
        self.waiting = waiting;
        alone
    }

    /// Writes what is due of one directory; gives what is to be written alone.
    fn write_due<R>(
        &mut self,
        dir: &str,
        waiting: &mut Waiting,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Vec<TaskId> {
        while waiting.is_due(now) {
            let due = waiting.due.unwrap_or(now);
            let is_alone = waiting.ended.len() < MIN_GROUP || due + OVERDUE <= now || !self.is_wanted(dir);
            if is_alone {
                return std::mem::take(&mut waiting.ended).into_keys().collect();
            }
            let writing = self.places.values().filter(|place| place.state == State::Writing).count();
            match self.place_for(dir, out) {
                Some(_) if writing >= MAX_WRITING => return Vec::new(),
                Some(number) => {
                    self.write(number, waiting, out);
                    waiting.due = Some(now + TOGETHER);
                }
                // One is being made.
                None if self
                    .places
                    .values()
                    .any(|place| place.state == State::Making && place.dir == dir) =>
                {
                    return Vec::new();
                }
                None => return std::mem::take(&mut waiting.ended).into_keys().collect(),
            }
        }
        Vec::new()
    }

    /// A free place of the directory; if there is none, one is made, as long as there are not too many.
    fn place_for<R>(&mut self, dir: &str, out: &mut Actions<R>) -> Option<u64> {
        let is_free = |place: &Place| matches!(place.state, State::Free(_)) && place.dir == dir;
        if let Some((number, _)) = self.places.iter().find(|(_, place)| is_free(place)) {
            return Some(*number);
        }
        let is_made = |place: &Place| place.state == State::Making && place.dir == dir;
        if self.places.len() < MAX_PLACES && self.is_wanted(dir) && !self.places.values().any(is_made) {
            self.number += 1;
            let path = format!("{}/{}", self.layout.below_groups(dir), ended_name(&self.by, self.number));
            let place =
                Place { path: path.clone(), dir: dir.to_string(), version: 0, open: 0, state: State::Making };
            self.places.insert(self.number, place);
            let data = Copies::new(BTreeMap::new()).encode();
            let call = Call::Create { path, data, mode: CreateMode::Persistent };
            self.calls.issue(out, call, Purpose::Make(self.number));
        }
        None
    }

    /// Sees to places for which a time has come; gives what is to be written alone.
    fn age<R>(&mut self, now: Instant, out: &mut Actions<R>) -> Vec<TaskId> {
        let (mut stale, mut spent, mut idle) = (Vec::new(), Vec::new(), Vec::new());
        for (number, place) in &mut self.places {
            match &mut place.state {
                State::Standing(since) => {
                    if *since + STALE <= now {
                        stale.push(*number);
                    }
                }
                State::Doubtful(until) => {
                    if *until.get_or_insert(now + self.timeout * DOUBT_TIMEOUTS) <= now {
                        spent.push(*number);
                    }
                }
                State::Free(since) => {
                    if *since.get_or_insert(now) + IDLE <= now {
                        idle.push(*number);
                    }
                }
                State::Making | State::Writing | State::Alone | State::Spent | State::Deleting => {}
            }
        }
        for number in spent {
            self.leave(number, State::Spent);
            self.clear(number, out);
        }
        for number in idle {
            self.delete(number, out);
        }
        stale.into_iter().flat_map(|number| self.leave(number, State::Alone)).collect()
    }

    /// Writes one group of what waits, as much as fits.
    fn write<R>(&mut self, number: u64, waiting: &mut Waiting, out: &mut Actions<R>) {
        let Some(place) = self.places.get_mut(&number) else { return };
        let mut tasks = BTreeMap::new();
        let mut bytes = 0;
        while let Some(first) = waiting.ended.first_entry() {
            bytes += first.get().data.len();
            if tasks.len() >= MAX_COPIES || bytes > MAX_COPIES_BYTES {
                break;
            }
            let (task, seen) = first.remove_entry();
            tasks.insert(name_of(task.as_str()).to_string(), seen);
            self.of.insert(task, number);
        }
        (place.open, place.state) = (tasks.len(), State::Writing);
        let (path, version) = (place.path.clone(), place.version);
        let call = Call::Set { path, data: Copies::new(tasks).encode(), version };
        self.calls.issue(out, call, Purpose::Write(number));
    }

    /// Takes in a reply; `None` if it is somebody else's.
    pub fn on_reply<R>(
        &mut self,
        id: CallId,
        result: &CallResult,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Option<Step> {
        let nothing = || Some(Step::Written(Vec::new()));
        let (number, is_write) = match (self.calls.take(id)?, result) {
            (Purpose::Make(number), _) => (number, false),
            (Purpose::Write(number), _) => (number, true),
            // The connection is about to be lost; it is deleted on the next.
            (Purpose::Delete(_), Err(CallError::NotSent | CallError::MaybeApplied)) => return nothing(),
            (Purpose::Delete(number), _) => {
                self.places.remove(&number);
                return nothing();
            }
        };
        let is_awaited = |place: &&mut Place| matches!(place.state, State::Making | State::Writing);
        let Some(place) = self.places.get_mut(&number).filter(is_awaited) else { return nothing() };
        match result {
            Ok(reply) => {
                if let Reply::Stat(stat) = reply {
                    place.version = stat.version;
                }
                place.state = if is_write { State::Standing(now) } else { State::Free(Some(now)) };
                let tasks = self.tasks_in(number);
                self.clear(number, out);
                Some(Step::Written(tasks))
            }
            Err(CallError::NotSent | CallError::MaybeApplied) => {
                Some(Step::Alone(self.leave(number, State::Doubtful(None))))
            }
            // No group stands there. Somebody may have written over the place, or may not want us to write here at all.
            Err(CallError::Refused(refusal)) => {
                if !is_write || *refusal != Refusal::BadVersion {
                    self.wanted.remove(&place.dir);
                }
                let tasks = self.leave(number, State::Spent);
                self.of.retain(|_, of| *of != number);
                if let Some(place) = self.places.get_mut(&number) {
                    place.open = 0;
                }
                if is_write {
                    self.clear(number, out);
                } else {
                    self.places.remove(&number);
                }
                Some(Step::Alone(tasks))
            }
        }
    }

    /// When something is to be done, if nothing happens before.
    pub fn next_wake(&self) -> Option<Instant> {
        let (mut writing, mut first) = (0, None);
        for place in self.places.values() {
            match place.state {
                State::Writing => writing += 1,
                State::Standing(since) => first = earlier(first, Some(since + STALE)),
                State::Doubtful(until) => first = earlier(first, until),
                State::Free(since) => first = earlier(first, since.map(|since| since + IDLE)),
                State::Making | State::Alone | State::Spent | State::Deleting => {}
            }
        }
        for (dir, waiting) in &self.waiting {
            let is_made = |place: &Place| place.state == State::Making && place.dir == *dir;
            let waits = writing >= MAX_WRITING || self.places.values().any(is_made);
            let due = waiting.due.map(|due| if waits { due + OVERDUE } else { due });
            first = earlier(first, due);
        }
        first
    }
}
