//! How a task ended, and how a command of a chunk would have ended as a task of its own.

use serde::{Deserialize, Serialize};

use super::output::Output;
use super::result::{CommandResult, Reason, Results, State};
use super::{Incarnation, shortened};

/// Most bytes of a result's detail, as encoded.
const MAX_DETAIL_BYTES: usize = 200;

/// How a task ended. It is final.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// In which way.
    pub state: State,
    /// Why, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Its exit code, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that killed it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// More about it, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The attempt that ended so.
    pub attempt: u32,
    /// Who ran it; absent if nobody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Incarnation>,
    /// When the attempt started, by the worker's clock, ms since 1970.
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
    /// Of a chunk: what became of each command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Results,
}

impl Outcome {
    /// An outcome of a task that nobody ran to its end.
    pub fn unrun(state: State, reason: Option<Reason>, detail: &str, attempt: u32) -> Outcome {
        Outcome {
            state,
            reason,
            exit_code: None,
            signal: None,
            detail: Some(detail.to_string()),
            attempt,
            worker: None,
            started_ms: None,
            ended_ms: None,
            stdout: Output::default(),
            stderr: Output::default(),
            results: Results::new(),
        }
    }

    /// How it ended, without what it printed, and without what became of the commands of a chunk.
    pub fn bare(&self) -> Outcome {
        let Outcome { state, reason, exit_code, signal, attempt, started_ms, ended_ms, .. } = *self;
        let (detail, worker) = (self.detail.clone(), self.worker.clone());
        let unrun = Outcome::unrun(state, reason, "", attempt);
        Outcome { exit_code, signal, detail, worker, started_ms, ended_ms, ..unrun }
    }

    /// How long the attempt ran, in ms by the worker's clock; 0 if that is not known.
    pub fn ran_ms(&self) -> u64 {
        let times = self.started_ms.zip(self.ended_ms);
        times.map_or(0, |(from, to)| to.saturating_sub(from).max(0)).unsigned_abs()
    }
}

impl CommandResult {
    /// The result of a command that ended as a task of its own would have ended with this outcome.
    pub fn of(outcome: Outcome) -> CommandResult {
        let done = outcome.state == State::Done;
        let reason = match outcome.state {
            State::Done | State::Failed => outcome.reason,
            State::Cancelled => Some(Reason::Cancelled),
            State::Expired => Some(Reason::Expired),
        };
        let detail = outcome.detail.map(|detail| shortened(&detail, MAX_DETAIL_BYTES));
        CommandResult {
            reason,
            exit_code: outcome.exit_code.filter(|code| !done || *code != 0),
            signal: outcome.signal,
            detail,
            attempt: Some(outcome.attempt).filter(|attempt| *attempt != 1),
            worker: outcome.worker,
            started_ms: outcome.started_ms,
            ended_ms: outcome.ended_ms,
            stdout: outcome.stdout,
            stderr: outcome.stderr,
        }
    }

    /// The outcome that the command would have as a task of its own; `worker` is that of the chunk.
    pub fn outcome(&self, worker: Option<&Incarnation>) -> Outcome {
        let state = self.state();
        Outcome {
            state,
            reason: self.reason.filter(|_| state == State::Failed),
            exit_code: self.exit_code.or(if state == State::Done { Some(0) } else { None }),
            signal: self.signal,
            detail: self.detail.clone(),
            attempt: self.attempt.unwrap_or(1),
            worker: self.worker.clone().or_else(|| worker.cloned()),
            started_ms: self.started_ms,
            ended_ms: self.ended_ms,
            stdout: self.stdout.clone(),
            stderr: self.stderr.clone(),
            results: Results::new(),
        }
    }
}
