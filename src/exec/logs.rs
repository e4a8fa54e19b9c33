//! Logs: all that a run prints, in files of its worker's.
//!
//! A disk can hang, and a process that waits for it cannot be killed. So no process that a run depends on writes files:
//! neither a slot, which has to see the end of the lease, nor the worker, whose sockets would stay open as long as one
//! thread of it waits. A process of its own, the [`writer`], does. A slot ([`feed`]) passes on what a run prints
//! through a pipe of its own, without waiting; the worker ([`carrier`]) starts the writer, and hands it the other end
//! of each pipe.
//!
//! A run that prints little and ends soon has no log, and costs nothing but a copy of what it printed.

mod carrier;
mod feed;
mod shelf;
mod writer;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::contract::log::LogName;

pub(super) use carrier::Carrier;
pub(super) use feed::Feeds;
pub use writer::run as write_logs;

/// What a worker keeps of what its runs print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Where; absolute. It is made, and belongs to this worker alone.
    pub dir: PathBuf,
    /// Most bytes of a run.
    pub limit: u64,
    /// Most bytes of all runs.
    pub space: u64,
    /// For how long after its last byte.
    pub keep: Duration,
}

/// The subcommand of the writer: which only a worker starts, so no help text names it.
pub const WRITE_LOGS: &str = "write-logs";

/// To the writer.
#[derive(Debug, Serialize, Deserialize)]
enum ToWriter {
    /// This run has a log from now on; where it comes from is with it.
    Log(LogName),
    /// What this run prints is not taken any more; it may be that a former writer had begun with it.
    Cut(LogName),
}

/// From the writer.
#[derive(Debug, Serialize, Deserialize)]
enum FromWriter {
    /// For the log, as a warning.
    Warning(String),
}

/// The header of each piece in a slot's pipe: its kind, and how many bytes follow.
const HEADER_BYTES: usize = 5;

/// Kinds of pieces.
mod kind {
    /// Of the standard output.
    pub(super) const OUT: u8 = 0;
    /// Of the standard error.
    pub(super) const ERR: u8 = 1;
    /// Why the log is not complete.
    pub(super) const CUT: u8 = 2;
    /// The run has ended, and that was all.
    pub(super) const END: u8 = 3;
}

fn header(kind: u8, length: usize) -> [u8; HEADER_BYTES] {
    let mut header = [kind; HEADER_BYTES];
    // Pieces are what was read from a pipe at once.
    header[1..].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    header
}
