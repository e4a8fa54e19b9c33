//! How a task or one command ended, in which way and why; and the results of the commands of a chunk.

use serde::{Deserialize, Serialize};

use super::output::Output;
use super::{Incarnation, MAX_DATA_BYTES};

/// Bytes of output, as kept, that the results of a chunk may have together; what is beyond is cut from the longest.
/// With the commands and all else it fits a znode most of the time. [`super::task::Task::encode_to_fit`] cuts the rest.
pub const CHUNK_OUTPUT_BYTES: usize = 192 * 1024;

/// In which way a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// With exit code 0.
    Done,
    /// In any other way: see the reason.
    Failed,
    /// By its user's wish.
    Cancelled,
    /// Its deadline passed while it was queued.
    Expired,
}

impl State {
    /// The word for it in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Done => "done",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
            State::Expired => "expired",
        }
    }
}

/// Why a task failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It exited with `exit_code`.
    Exit,
    /// `signal` killed it.
    Signal,
    /// It ran past its timeout and was killed.
    Timeout,
    /// Its workers died under it too often.
    Poison,
    /// Its program could not be started.
    NotStarted,
    /// The worker's handler gave no answer that could be understood.
    Handler,
    /// Only of a line of a chunk: it was cancelled. A task says so by its state.
    Cancelled,
    /// Likewise: its deadline passed before it was started.
    Expired,
}

/// What became of one command of a chunk. `{}` is one that exited with 0 and printed nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CommandResult {
    /// Why it failed; absent if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Its exit code, if it had one; absent also if that is 0 and it did not fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that killed it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// More about it, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Its own attempt, the one that ended so; absent if that was its first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Who ran it, if not who is named in the outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Incarnation>,
    /// When it started, by the worker's clock, ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<i64>,
    /// When it ended, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<i64>,
    /// Its standard output.
    #[serde(default, skip_serializing_if = "Output::is_empty")]
    pub stdout: Output,
    /// Its standard error.
    #[serde(default, skip_serializing_if = "Output::is_empty")]
    pub stderr: Output,
}

/// One for each command in turn: what became of it, or nothing if it is not over (or blank). Those at the end that
/// would be nothing are left out.
pub type Results = Vec<Option<CommandResult>>;

impl CommandResult {
    /// The result of a command that nobody ran to its end.
    pub fn unrun(reason: Reason, why: &str) -> CommandResult {
        CommandResult { reason: Some(reason), detail: Some(why.to_string()), ..CommandResult::default() }
    }

    /// Leaves out who ran it, and when; false if that is not known anyway.
    pub(super) fn forget_run(&mut self) -> bool {
        let known = self.worker.is_some() || self.started_ms.is_some() || self.ended_ms.is_some();
        (self.worker, self.started_ms, self.ended_ms) = (None, None, None);
        known
    }

    /// Whether it ended well.
    pub fn succeeded(&self) -> bool {
        self.reason.is_none()
    }

    /// In which way it ended.
    pub fn state(&self) -> State {
        match self.reason {
            None => State::Done,
            Some(Reason::Cancelled) => State::Cancelled,
            Some(Reason::Expired) => State::Expired,
            Some(
                Reason::Exit
                | Reason::Signal
                | Reason::Timeout
                | Reason::Poison
                | Reason::NotStarted
                | Reason::Handler,
            ) => State::Failed,
        }
    }

    /// Bytes of output that it keeps.
    pub fn output_bytes(&self) -> usize {
        self.stdout.kept_bytes() + self.stderr.kept_bytes()
    }
}

/// Cuts outputs if they are more than a chunk may keep.
pub fn bound_outputs(results: &mut Results) {
    let kept: usize = results.iter().flatten().map(CommandResult::output_bytes).sum();
    if kept > CHUNK_OUTPUT_BYTES {
        // Half of it, or each further result would shorten them again.
        shorten_outputs(results, CHUNK_OUTPUT_BYTES / 2);
    }
}

/// Cuts outputs, the longest first, until all results together keep no more than `limit` bytes of them.
pub(super) fn shorten_outputs(results: &mut Results, limit: usize) {
    let outputs = |results: &Results| -> Vec<usize> {
        let both = |result: &CommandResult| [result.stdout.kept_bytes(), result.stderr.kept_bytes()];
        results.iter().flatten().flat_map(both).collect()
    };
    loop {
        let sizes = outputs(results);
        let longest = sizes.iter().copied().max().unwrap_or(0);
        if sizes.iter().sum::<usize>() <= limit || longest == 0 {
            return;
        }
        for result in results.iter_mut().flatten() {
            for output in [&mut result.stdout, &mut result.stderr] {
                if output.kept_bytes() > longest / 2 {
                    output.shorten();
                }
            }
        }
    }
}

/// What need not run again: the results of commands that ended well.
pub fn succeeded(results: &Results) -> Results {
    let mut good: Results =
        results.iter().map(|result| result.clone().filter(CommandResult::succeeded)).collect();
    trim(&mut good);
    good
}

/// Takes the nothings off the end.
pub fn trim(results: &mut Results) {
    while results.last().is_some_and(Option::is_none) {
        results.pop();
    }
}

const _: () = assert!(CHUNK_OUTPUT_BYTES < MAX_DATA_BYTES);
