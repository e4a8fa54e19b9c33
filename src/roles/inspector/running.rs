//! Which tasks are with a worker: those that a live incarnation's assignment names, and does not revoke. One that is
//! revoked because the task is cancelled stays there until its processes are dead, so the worker has that, too.
//!
//! A picture, not a mirror: it is as old as the reads that made it.

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
    /// Incarnations with a registration.
    live: BTreeSet<Incarnation>,
    to_read: Vec<Incarnation>,
    /// By task and attempt, which of a chunk is the number of a share.
    tasks: BTreeMap<(TaskId, u32), Held>,
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
    /// An empty picture.
    pub fn new(layout: &Layout) -> Running {
        Running {
            layout: layout.clone(),
            live: BTreeSet::new(),
            to_read: Vec::new(),
            tasks: BTreeMap::new(),
            calls: Calls::default(),
        }
    }

    /// Makes the picture, on a connection that is up.
    pub fn start<R>(&mut self, out: &mut Actions<R>) {
        *self = Running::new(&self.layout);
        self.calls.issue(out, Call::Children { path: self.layout.workers() }, Purpose::Workers);
    }

    /// The connection is gone; what was being read is not awaited any more.
    pub fn on_lost(&mut self) {
        self.calls.clear();
    }

    /// Who has this task, at the attempt that it is at; of a chunk who has a share of it.
    pub fn worker_of(&self, id: &TaskId, task: &Task) -> Option<&Incarnation> {
        let numbers = match task.commands {
            Some(_) => task.all_shares().iter().map(|share| share.attempt).collect(),
            None => vec![task.attempt],
        };
        numbers.into_iter().find_map(|number| self.holder(id, number, task))
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
                self.live = names.map(|(incarnation, _)| incarnation).collect();
                self.calls.issue(out, Call::Children { path: self.layout.assign() }, Purpose::Assignments);
            }
            (Purpose::Assignments, Some(Reply::Children(names))) => {
                let names = names.iter().filter_map(|name| Incarnation::parse(name));
                self.to_read = names.filter(|incarnation| self.live.contains(incarnation)).collect();
            }
            (Purpose::Assignment(incarnation), Some(Reply::Data { data, .. })) => {
                match Assignment::decode(data) {
                    Ok(assignment) => {
                        for Entry { task, attempt, revoked, .. } in assignment.entries {
                            // The entry of a task that was moved may still be on the other assignment.
                            let key = (task, attempt);
                            if !revoked || !self.tasks.contains_key(&key) {
                                self.tasks.insert(key, Held { revoked, worker: incarnation.clone() });
                            }
                        }
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
}
