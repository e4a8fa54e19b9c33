//! Which tasks are with a worker: those that a live incarnation's assignment names, and does not revoke. One that is
//! revoked because the task is cancelled stays there until its processes are dead, so the worker has that, too.
//!
//! A picture, not a mirror: it is as old as the reads that made it. It can include what incarnations without a
//! registration have.

use std::collections::{BTreeMap, BTreeSet};

use crate::contract::task::Task;
use crate::contract::worker::{Assignment, Entry};
use crate::contract::{Incarnation, Layout, TaskId, parse_registration};
use crate::machine::{Actions, Call, CallId, CallResult, Calls, Level, Refusal, Reply, Routed, if_exists};
use crate::roles::client::TaskStatus;

/// Assignments that are read at a time.
const MAX_READS: usize = 64;

/// The tasks that are with workers.
#[derive(Debug)]
pub struct Running {
    layout: Layout,
    /// The assignments of incarnations without a registration are read, too.
    with_unregistered: bool,
    /// Incarnations with a registration, and the numbers of their registrations.
    live: BTreeMap<Incarnation, u64>,
    to_read: Vec<Incarnation>,
    /// By task and attempt, which of a chunk is the number of a share.
    tasks: BTreeMap<(TaskId, u32), Held>,
    /// The same of incarnations without a registration.
    unregistered: BTreeMap<(TaskId, u32), Incarnation>,
    calls: Calls<Purpose>,
}

/// An entry of an assignment.
#[derive(Debug)]
struct Held {
    revoked: bool,
    worker: Incarnation,
}

/// A line of a chunk.
#[derive(Debug)]
pub struct Line {
    /// Its position there.
    pub position: usize,
    /// Its number in the batch, from 0.
    pub line: u64,
    /// Its state.
    pub status: TaskStatus,
    /// Who has it.
    pub holder: Option<Incarnation>,
}

#[derive(Debug)]
enum Purpose {
    Workers,
    Assignments,
    Assignment(Incarnation),
}

/// What a reply meant for [`Running`] led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// More replies are awaited, or the connection is gone.
    Pending,
    /// The picture is complete.
    Done,
    /// This znode can't be read.
    Refused(String, Refusal),
}

impl Running {
    /// An empty picture of what live incarnations have.
    pub fn new(layout: &Layout) -> Running {
        Running {
            layout: layout.clone(),
            with_unregistered: false,
            live: BTreeMap::new(),
            to_read: Vec::new(),
            tasks: BTreeMap::new(),
            unregistered: BTreeMap::new(),
            calls: Calls::default(),
        }
    }

    /// An empty picture of what all incarnations have.
    pub fn with_unregistered(layout: &Layout) -> Running {
        Running { with_unregistered: true, ..Running::new(layout) }
    }

    /// Makes the picture, on a connection that is up.
    pub fn start<R>(&mut self, out: &mut Actions<R>) {
        *self = Running { with_unregistered: self.with_unregistered, ..Running::new(&self.layout) };
        self.calls.issue(out, Call::Children { path: self.layout.workers() }, Purpose::Workers);
    }

    /// The connection is gone; what was being read is not awaited any more.
    pub fn on_lost(&mut self) {
        self.calls.clear();
    }

    /// Who has this task, at the attempt that it is at; of a chunk who has a share of it.
    pub fn worker_of(&self, id: &TaskId, task: &Task) -> Option<&Incarnation> {
        numbers_of(task).into_iter().find_map(|number| self.holder(id, number, task))
    }

    /// A live incarnation that has to end or release this task, or an earlier attempt of it; of a chunk this share, if
    /// one is named.
    pub fn revoked_at(&self, id: &TaskId, share: Option<u32>) -> Option<&Incarnation> {
        let (first, last) = share.map_or((0, u32::MAX), |number| (number, number));
        let entries = self.tasks.range((id.clone(), first)..=(id.clone(), last));
        entries.map(|(_, held)| held).find(|held| held.revoked).map(|held| &held.worker)
    }

    /// An incarnation without a registration that has this task; of a chunk this share, if one is named.
    pub fn unregistered_holder(&self, id: &TaskId, task: &Task, share: Option<u32>) -> Option<&Incarnation> {
        let numbers = share.map_or_else(|| numbers_of(task), |number| vec![number]);
        numbers.into_iter().find_map(|number| self.unregistered.get(&(id.clone(), number)))
    }

    /// The path of a live incarnation's registration.
    pub fn registration(&self, incarnation: &Incarnation) -> Option<String> {
        self.live.get(incarnation).map(|number| self.layout.registration(incarnation, *number))
    }

    fn holder(&self, id: &TaskId, number: u32, task: &Task) -> Option<&Incarnation> {
        let held = self.tasks.get(&(id.clone(), number))?;
        (!held.revoked || task.cancel).then_some(&held.worker)
    }

    /// The lines of a chunk, each with its state and who has it, or had it to its end.
    pub fn lines(&self, id: &TaskId, task: &Task) -> Vec<Line> {
        let mut held = BTreeMap::new();
        for share in task.all_shares() {
            if let Some(worker) = self.holder(id, share.attempt, task) {
                let window: BTreeSet<usize> = task.window(&share).into_iter().collect();
                for position in task.open_lines(&share) {
                    held.insert(position, (worker, window.contains(&position)));
                }
            }
        }
        let line = |(position, line)| {
            let holder = held.get(&position);
            let status = match (task.command_state(position), holder) {
                (Some(state), _) => TaskStatus::Ended(state),
                (None, None) => TaskStatus::Pending,
                (None, Some(_)) if task.is_cancelled(position) => TaskStatus::Cancelling,
                (None, Some((_, true))) => TaskStatus::Running,
                (None, Some((_, false))) => TaskStatus::Assigned,
            };
            Line { position, line, status, holder: holder.map(|(worker, _)| (*worker).clone()) }
        };
        task.positions().map(line).collect()
    }

    /// Takes in a reply.
    pub fn on_reply<R>(&mut self, id: CallId, result: &CallResult, out: &mut Actions<R>) -> Routed<Step> {
        self.calls.route(id, result).map(|(purpose, answer)| match answer {
            Some(answer) => self.on_answer(purpose, answer, out),
            None => Step::Pending,
        })
    }

    fn on_answer<R>(
        &mut self,
        purpose: Purpose,
        answer: Result<&Reply, Refusal>,
        out: &mut Actions<R>,
    ) -> Step {
        let reply = match if_exists(answer) {
            Ok(reply) => reply,
            Err(refusal) => {
                let path = match &purpose {
                    Purpose::Workers => self.layout.workers(),
                    Purpose::Assignments => self.layout.assign(),
                    Purpose::Assignment(incarnation) => self.layout.assignment(incarnation),
                };
                if refusal != Refusal::NoAuth {
                    return Step::Refused(path, refusal);
                }
                out.log(Level::Warn, format!("{path}: {refusal}; tasks that run may be shown as pending"));
                None
            }
        };
        match (purpose, reply) {
            (Purpose::Workers, Some(Reply::Children(names))) => {
                let names = names.iter().filter_map(|name| parse_registration(name));
                self.live = names.collect();
                self.calls.issue(out, Call::Children { path: self.layout.assign() }, Purpose::Assignments);
            }
            (Purpose::Assignments, Some(Reply::Children(names))) => {
                let names = names.iter().filter_map(|name| Incarnation::parse(name));
                let is_read =
                    |incarnation: &Incarnation| self.with_unregistered || self.live.contains_key(incarnation);
                self.to_read = names.filter(is_read).collect();
            }
            (Purpose::Assignment(incarnation), Some(Reply::Data { data, .. })) => {
                match Assignment::decode(data) {
                    Ok(assignment) => {
                        self.take_entries(&incarnation, assignment.entries);
                    }
                    Err(malformed) => {
                        let path = self.layout.assignment(&incarnation);
                        out.log(Level::Warn, format!("{path} is no assignment: {malformed}"));
                    }
                }
            }
            _ => {}
        }
        while self.calls.len() < MAX_READS {
            let Some(incarnation) = self.to_read.pop() else { break };
            let call = Call::Get { path: self.layout.assignment(&incarnation), watch: false };
            self.calls.issue(out, call, Purpose::Assignment(incarnation));
        }
        if self.calls.is_empty() { Step::Done } else { Step::Pending }
    }

    fn take_entries(&mut self, incarnation: &Incarnation, entries: Vec<Entry>) {
        for Entry { task, attempt, revoked, .. } in entries {
            let key = (task, attempt);
            if !self.live.contains_key(incarnation) {
                self.unregistered.insert(key, incarnation.clone());
                continue;
            }
            // The entry of a task that was moved may still be on the other assignment.
            if !revoked || !self.tasks.contains_key(&key) {
                self.tasks.insert(key, Held { revoked, worker: incarnation.clone() });
            }
        }
    }
}

/// The attempt of a task, or the numbers of a chunk's shares.
fn numbers_of(task: &Task) -> Vec<u32> {
    match task.commands {
        Some(_) => task.all_shares().iter().map(|share| share.attempt).collect(),
        None => vec![task.attempt],
    }
}
