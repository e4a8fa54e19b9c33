//! How far an elector is: its session, its run, and what comes next.

use std::time::Duration;

use crate::machine::{Instant, RunId};
use crate::recipes::lease::Ticket;

/// The connection, which is a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Session {
    Down,
    /// It is up, but a run of an earlier one is not dead yet.
    Waiting {
        timeout: Duration,
    },
    /// It is up, and the lead is being handed over to it. The run goes on under the lease of an earlier one: a write
    /// over this one proves nothing for it before its contender has replaced the old one.
    Inheriting {
        timeout: Duration,
    },
    /// The election and the lease are this session's.
    Entered {
        timeout: Duration,
        /// The end of the lease of the session that the lead was handed over from, as long as that protects more than
        /// the lease of this one. So long the contender of that session has to exist.
        inherited: Option<Instant>,
    },
}

/// How far it is.
#[derive(Debug)]
pub(super) enum State {
    /// No run. It is a candidate, or will be when there is a session.
    Candidate,
    /// It leads, and waits for its lease: first for the directory, then for a write that begins now.
    Acquiring { epoch: i64, ticket: Option<Ticket>, patience_ends: Instant },
    /// The command runs; it leads, and its lease holds.
    Running(Run),
    /// The command was asked to stop; what comes when its group is dead.
    Stopping { run: Run, kill: Kill, then: Then },
    /// No run, and its contender is withdrawn, until then.
    BackingOff { until: Instant },
    /// The end was asked for. Nothing happens any more.
    Over,
}

/// A run of the command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) id: RunId,
    pub(super) epoch: i64,
    pub(super) started: Instant,
}

/// When SIGKILL is due, unless the lease ends before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kill {
    At(Instant),
    Sent,
}

/// What comes when the command is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Contend again.
    Rejoin,
    /// The user wants an end.
    Stop,
    /// A recipe can't go on: end with this code.
    Fail(i32),
}
