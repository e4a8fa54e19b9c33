//! What a worker and its handlers say to each other, a line of JSON each; see `docs/handler.md`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::output::Output;
use super::{MAX_DATA_BYTES, Malformed, VERSION};

/// Longest answer, in bytes, its line's end included. A handler that says more has broken. An outcome has no room for
/// more.
pub const MAX_ANSWER_BYTES: usize = MAX_DATA_BYTES;

/// One task, or one line of a batch, for a handler.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Request<'a> {
    v: u32,
    /// Identifies this request among all of the worker's process. The answer has to repeat it.
    pub id: u64,
    /// The id of the task, or the name of the line of a batch.
    pub task: &'a str,
    /// The number of the line in its batch, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The attempt.
    pub attempt: u32,
    /// The fencing token.
    pub epoch: i64,
    /// The worker's id.
    pub worker: &'a str,
    /// What a shell would be given; either this or `argv`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<&'a str>,
    /// A program and its arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<&'a [String]>,
    /// What the submitter wants in the environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<&'a BTreeMap<String, String>>,
    /// How long it may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl<'a> Request<'a> {
    /// A request for `task`, which says nothing yet of what is to be done.
    pub fn new(id: u64, task: &'a str, attempt: u32, epoch: i64, worker: &'a str) -> Request<'a> {
        Request { v: VERSION, id, task, attempt, epoch, worker, ..Request::default() }
    }

    /// The line, without its end.
    pub fn encode(&self) -> String {
        // It has only string keys and no fallible serialisers.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A handler's answer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Answer {
    /// That of the request.
    pub id: u64,
    /// As a process would exit: 0 is success. At most 255.
    #[serde(default)]
    pub exit_code: u8,
    /// What is kept as standard output.
    #[serde(default)]
    pub stdout: Output,
    /// What is kept as standard error.
    #[serde(default)]
    pub stderr: Output,
}

impl Answer {
    /// Reads an answer to the request with this id.
    ///
    /// # Errors
    /// [`Malformed`] if it is no JSON object, or answers something else.
    pub fn decode(line: &[u8], id: u64) -> Result<Answer, Malformed> {
        let answer: Answer = super::decode(line)?;
        if answer.id != id {
            return Err(Malformed(format!("it answers the request {}, not {id}", answer.id)));
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_answer_is_success() {
        let answer = Answer::decode(br#"{"id":7}"#, 7).expect("an answer");
        assert_eq!((answer.exit_code, answer.stdout.is_empty()), (0, true));
        for bad in [
            &br#"{"id":8}"#[..],
            b"",
            b"ok",
            b"{}",
            br#"{"id":7,"exit_code":256}"#,
            br#"{"id":7,"stdout":1}"#,
        ] {
            assert!(Answer::decode(bad, 7).is_err());
        }
    }

    #[test]
    fn a_request_says_only_what_is_known() {
        let mut request = Request::new(7, "j/t", 1, 9, "w");
        request.command = Some("echo \"hi\"");
        let line =
            r#"{"v":1,"id":7,"task":"j/t","attempt":1,"epoch":9,"worker":"w","command":"echo \"hi\""}"#;
        assert_eq!(request.encode(), line);
    }
}
