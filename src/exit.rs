//! The exit codes, after `sysexits.h`. Where a task's own code could be mistaken for one of these, `--json` shows
//! which it is.

/// All went well.
pub const OK: i32 = 0;
/// Some task failed.
pub const FAILED: i32 = 1;
/// The command line is wrong.
pub const USAGE: i32 = 64;
/// What was submitted cannot be a task.
pub const DATA: i32 = 65;
/// No ensemble within `--connect-timeout`.
pub const UNAVAILABLE: i32 = 69;
/// A bug in zkmw.
pub const BUG: i32 = 70;
/// Too much for the ensemble.
pub const TOO_MUCH: i32 = 73;
/// The task succeeded, and not all of its output was kept: `EX_CANTCREAT`, the output that was wanted can't be made.
/// To run it again would do it twice.
pub const TRUNCATED: i32 = 73;
/// What happened could not be shown: the output can't be written. To do it again would do it twice.
pub const NOT_SHOWN: i32 = 74;
/// Try again later.
pub const TRY_AGAIN: i32 = 75;
/// Not permitted by an ACL.
pub const NOT_PERMITTED: i32 = 77;
/// A setting is wrong.
pub const CONFIG: i32 = 78;
/// The task ran past its timeout.
pub const TIMEOUT: i32 = 124;
/// The user interrupted it; the process exits with 128 + the signal.
pub const INTERRUPTED: i32 = 130;
/// Added to the number of the signal that ended something.
pub const SIGNAL_BASE: i32 = 128;
