//! A task as the worker knows it from the ensemble, with the version against which it is written.

use crate::contract::task::Task;

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
