//! The exit codes of `zkmw`, after `sysexits.h` where it has a word for it.
//!
//! A waiting `submit` and an `elector` pass on the code of the command that they ran, which may be any of these
//! too; `--json` tells them apart.

/// All went well.
pub const OK: u8 = 0;
/// Some task failed.
pub const TASK_FAILED: u8 = 1;
/// Bad usage of the command line.
pub const USAGE: u8 = 64;
/// Bad input data: a task that can't be stored, a key that is taken by another task.
pub const DATA: u8 = 65;
/// No ensemble could be reached within `--connect-timeout`.
pub const NO_ENSEMBLE: u8 = 69;
/// A bug in zkmw.
pub const BUG: u8 = 70;
/// Too much for the ensemble: a limit on sizes or numbers is reached.
pub const TOO_MUCH: u8 = 73;
/// Nothing is wrong for good; try again.
pub const TRY_AGAIN: u8 = 75;
/// Not permitted by the ensemble's access control.
pub const NOT_PERMITTED: u8 = 77;
/// Bad configuration: a wrong value from a variable or from the file.
pub const CONFIG: u8 = 78;
/// The task ran past its `--timeout`.
pub const TIMED_OUT: u8 = 124;
/// Ended by signal n: this plus n.
pub const SIGNAL_BASE: u8 = 128;
