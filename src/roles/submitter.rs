//! Submitter: creates tasks in the ensemble and waits for their outcomes, unless it is detached.
//!
//! [`Single`] is for one task, [`Batch`] for the lines of a file. Both keep one promise: an id is reported only
//! when the task's creation was acknowledged, so whatever was printed survives us (G1).

use std::time::Duration;

use crate::contract::TaskId;

mod admission;
mod batch;
mod mark;
mod single;

pub use batch::{Batch, BatchParams, MAX_CHOSEN, Outline, Sizes};
pub use single::{Single, SingleParams};

/// Whether a submitter waits for the outcomes of its tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It ends when everything is submitted.
    Detached,
    /// It waits for all outcomes.
    Attached {
        /// The tasks are cancelled if it dies while it waits.
        orphan_cancel: bool,
    },
}

impl Waiting {
    fn is_detached(self) -> bool {
        self == Waiting::Detached
    }

    /// Whether the leader cancels the tasks of a submitter that is gone.
    fn orphan_cancel(self) -> bool {
        self == Waiting::Attached { orphan_cancel: true }
    }
}

/// What an interrupt of its user means to a submitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancel {
    /// The tasks run on.
    Never,
    /// The tasks are to be cancelled.
    OnInterrupt,
    /// It was interrupted, and the tasks are being cancelled.
    Wanted,
}

impl Cancel {
    fn new(on_interrupt: bool) -> Cancel {
        if on_interrupt { Cancel::OnInterrupt } else { Cancel::Never }
    }
}

/// The id of the submitter of a task with a key, in all of its lives. No id that a user gives has `~` in it, and no
/// batch's name two of them, so it is nobody else's.
fn keyed_submitter(id: &TaskId) -> String {
    id.as_str().replace('/', "~~")
}

/// Likewise of a batch, by its name.
fn keyed_batch_submitter(name: &str) -> String {
    format!("{name}~~")
}

/// How long an outage may keep us from deleting a task whose outcome was shown; then the leader will do it.
const DELETE_PATIENCE: Duration = Duration::from_secs(5);

/// Deletes whose answer may get lost before the leader is left to do it.
const MAX_DELETES: u32 = 2;
