//! One task that the leader assigned to this worker, from the first read until its end is written. A state, and
//! questions about it.

use super::execution::Execution;
use super::work::Work;
use crate::recipes::lease::Ticket;

/// One entry of the assignment.
#[derive(Debug)]
pub struct AssignedTask {
    /// Its position in the order of starts.
    pub order: u64,
    /// The leader wants it dead.
    pub revoked: bool,
    /// The leader wants it back if it was not started.
    pub recalled: bool,
    /// The entry is no longer in the assignment: this is forgotten as soon as it is closed.
    pub removed: bool,
    /// What kind of task it is; plain until it was read.
    pub kind: Kind,
    /// How far it is.
    pub state: State,
}

/// What an entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A task with one command. It has one attempt at a time.
    Plain,
    /// A share of a chunk. Others may have shares of the same chunk, or this worker another.
    Share,
}

/// How far an entry is.
#[derive(Debug)]
pub enum State {
    /// Another attempt of the same task is not over here.
    Waiting,
    /// The task is being read; `verified` if an own write was made before.
    Reading { verified: bool },
    /// What was read does not fit: an own write is being made, then it is read again.
    Verifying { ticket: Ticket },
    /// It may be started.
    Ready(Box<Work>),
    /// It was started.
    Running(Box<Execution>),
    /// It ended, and that is being written into the task.
    Reporting,
    /// There is nothing to do; with `confirm`, the worker has to confirm that it is dead.
    Closed { confirm: bool },
    /// There is nothing that could be done.
    Quarantined,
}

impl AssignedTask {
    /// An entry that is to be read.
    pub fn new(revoked: bool, order: u64) -> AssignedTask {
        AssignedTask {
            order,
            revoked,
            recalled: false,
            removed: false,
            kind: Kind::Plain,
            state: State::Reading { verified: false },
        }
    }

    /// What was started of it.
    pub fn execution(&self) -> Option<&Execution> {
        match &self.state {
            State::Running(execution) => Some(execution),
            _ => None,
        }
    }

    /// Likewise.
    pub fn execution_mut(&mut self) -> Option<&mut Execution> {
        match &mut self.state {
            State::Running(execution) => Some(execution),
            _ => None,
        }
    }

    /// Whether it awaits the answer to such a reading.
    pub fn awaits(&self, verified: bool) -> bool {
        matches!(self.state, State::Reading { verified: v } if v == verified)
    }

    /// Whether it was started, and is not written down yet.
    pub fn is_busy(&self) -> bool {
        matches!(self.state, State::Running(_) | State::Reporting)
    }

    /// Whether it is still to be started.
    pub fn is_open(&self) -> bool {
        matches!(
            self.state,
            State::Waiting | State::Reading { .. } | State::Verifying { .. } | State::Ready(_)
        )
    }

    /// Whether its attempt is dead, and no report on it is owed.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, State::Closed { .. } | State::Quarantined)
    }
}
