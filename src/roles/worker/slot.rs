//! One entry of a worker's assignment, from being read to being written down. A state, and questions about it.

use super::course::Course;
use crate::contract::task::Task;
use crate::machine::Instant;
use crate::recipes::lease::Ticket;

/// One entry of the assignment.
#[derive(Debug)]
pub struct Slot {
    /// Its place in the order in which entries are started.
    pub order: u64,
    /// The leader wants it dead.
    pub revoked: bool,
    /// The leader wants it back if it was not started.
    pub recalled: bool,
    /// The entry is gone, and the slot goes as soon as it is closed.
    pub orphaned: bool,
    /// Of a share: it is one of a chunk that others may have shares of, or we another.
    pub is_share: bool,
    /// How far it is.
    pub state: State,
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
    Running(Box<Course>),
    /// It ended, and that is being written into the task.
    Reporting,
    /// There is nothing to do; with `vouch`, the leader must be told that it is dead.
    Closed { vouch: bool },
    /// There is nothing that could be done.
    Aside,
}

/// A task as it was read before its attempt started.
#[derive(Debug)]
pub struct Work {
    pub task: Task,
    /// The version that its outcome will be set against.
    pub version: i32,
    /// The transaction that wrote it: its fencing token.
    pub mzxid: i64,
    /// When that was, by the ensemble's clock in ms; 0 if it is not known.
    pub mtime_ms: i64,
}

/// Why and until when a run is being stopped.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    pub why: Why,
    pub kill: Instant,
    pub killed: bool,
}

/// Why a run is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It ran too long.
    Timeout,
    /// The leader wants the task dead.
    Revoked,
    /// Somebody wants this line of a chunk cancelled.
    Cancelled,
    /// The worker is to end.
    Drain,
    /// The incarnation is dead.
    Dead,
}

impl Slot {
    /// An entry that is to be read.
    pub fn new(revoked: bool, order: u64) -> Slot {
        Slot {
            order,
            revoked,
            recalled: false,
            orphaned: false,
            is_share: false,
            state: State::Reading { verified: false },
        }
    }

    /// What was started of it.
    pub fn course(&self) -> Option<&Course> {
        match &self.state {
            State::Running(course) => Some(course),
            _ => None,
        }
    }

    /// Likewise.
    pub fn course_mut(&mut self) -> Option<&mut Course> {
        match &mut self.state {
            State::Running(course) => Some(course),
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
        matches!(self.state, State::Closed { .. } | State::Aside)
    }
}
