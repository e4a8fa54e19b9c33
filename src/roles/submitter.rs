//! Submitter: puts tasks into the ensemble and, unless it is told not to, waits for their outcomes.
//!
//! [`Single`] is for one task. Both keep one promise: an id is reported only
//! when the task's creation was acknowledged, so whatever was printed survives us (G1).

mod mark;
mod single;

pub use single::{Single, SingleParams};
