//! What an elector without a command reports to its user, as a line of text or of JSON.

use std::fmt;

/// The state of an elector without a command: one for each change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Report {
    /// It leads. The epoch only grows from leader to leader.
    Leading { epoch: i64 },
    /// It waits for the end of this contender.
    Following { behind: String },
    /// It neither leads nor waits any more.
    Lost { why: String },
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Leading { epoch } => write!(f, "leading, epoch {epoch}"),
            Report::Following { behind } => write!(f, "waiting behind {behind}"),
            // A line is a report, so a reason must not contain one.
            Report::Lost { why } => write!(f, "lost: {}", why.replace(['\n', '\r'], " ")),
        }
    }
}

impl Report {
    /// The report as a JSON object.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Report::Leading { epoch } => serde_json::json!({ "state": "leading", "epoch": epoch }),
            Report::Following { behind } => serde_json::json!({ "state": "following", "behind": behind }),
            Report::Lost { why } => serde_json::json!({ "state": "lost", "why": why }),
        }
    }
}
