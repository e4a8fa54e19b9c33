//! Why a run is being stopped, and until when it may end by itself.

use crate::machine::Instant;

/// Why and until when a run is being stopped.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    pub why: StopReason,
    pub kill: Instant,
    pub killed: bool,
}

/// Why a run is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
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
