//! How a task ended, and what is kept of what it printed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::Incarnation;
use super::chunk::Results;
use crate::machine::Captured;

/// In which way a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// With exit code 0.
    Done,
    /// In any other way; the reason tells.
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

/// How a task ended, for good.
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

/// Bytes in JSON: a string where they are UTF-8 and that is not longer than `{"base64":"…"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Bytes {
    Text(String),
    Binary { base64: String },
}

impl Bytes {
    fn of(bytes: &[u8]) -> Bytes {
        let base64_len = bytes.len().div_ceil(3) * 4 + r#"{"base64":""}"#.len();
        match std::str::from_utf8(bytes) {
            Ok(text) if escaped_len(text) <= base64_len => Bytes::Text(text.to_string()),
            _ => Bytes::Binary { base64: BASE64.encode(bytes) },
        }
    }

    /// About how many bytes they are.
    fn len(&self) -> usize {
        match self {
            Bytes::Text(text) => text.len(),
            Bytes::Binary { base64 } => base64.len() / 4 * 3,
        }
    }

    /// The bytes; what is no base64 is given as it stands, so that a foreign slip loses nothing.
    fn to_vec(&self) -> Vec<u8> {
        match self {
            Bytes::Text(text) => text.clone().into_bytes(),
            Bytes::Binary { base64 } => BASE64.decode(base64).unwrap_or_else(|_| base64.clone().into_bytes()),
        }
    }
}

/// Bytes that `text` takes as a JSON string, quotes included.
pub fn escaped_len(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum::<usize>() + 2
}

/// What is kept of an output stream, in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Kept {
    Cut { head: Bytes, omitted: u64, tail: Bytes },
    All(Bytes),
}

/// What is kept of an output stream: all of it, or its head and tail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Output(Kept);

impl Default for Output {
    fn default() -> Self {
        Output(Kept::All(Bytes::Text(String::new())))
    }
}

impl Output {
    /// Encodes what was captured. Where something was left out, the cuts are moved off the middle of a UTF-8
    /// character, so that text stays text.
    pub fn new(captured: &Captured) -> Output {
        if captured.omitted == 0 && captured.tail.is_empty() {
            return Output(Kept::All(Bytes::of(&captured.head)));
        }
        let head_len = captured.head.len() - partial_char_at_end(&captured.head);
        let tail_from = partial_char_at_start(&captured.tail);
        let moved = (captured.head.len() - head_len) + tail_from;
        Output(Kept::Cut {
            head: Bytes::of(&captured.head[..head_len]),
            omitted: captured.omitted + moved as u64,
            tail: Bytes::of(&captured.tail[tail_from..]),
        })
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Output::default()
    }

    /// The bytes back.
    pub fn captured(&self) -> Captured {
        match &self.0 {
            Kept::All(bytes) => Captured { head: bytes.to_vec(), omitted: 0, tail: Vec::new() },
            Kept::Cut { head, omitted, tail } => {
                Captured { head: head.to_vec(), omitted: *omitted, tail: tail.to_vec() }
            }
        }
    }

    /// How many bytes were printed and not kept.
    pub fn omitted(&self) -> u64 {
        match &self.0 {
            Kept::All(_) => 0,
            Kept::Cut { omitted, .. } => *omitted,
        }
    }

    /// How many bytes are kept, as they were printed.
    pub fn kept_bytes(&self) -> usize {
        match &self.0 {
            Kept::All(bytes) => bytes.len(),
            Kept::Cut { head, tail, .. } => head.len() + tail.len(),
        }
    }

    /// Drops about half of it from the middle; false if there is nothing left to drop.
    pub(super) fn shorten(&mut self) -> bool {
        let Captured { mut head, omitted, mut tail } = self.captured();
        let kept = head.len() + tail.len();
        if kept == 0 {
            return false;
        }
        let quarter = kept / 4;
        if tail.is_empty() {
            tail = head.split_off(head.len() / 2);
        }
        head.truncate(quarter);
        tail.drain(..tail.len().saturating_sub(quarter));
        let dropped = kept - head.len() - tail.len();
        *self = Output::new(&Captured { head, omitted: omitted + dropped as u64, tail });
        true
    }
}

/// How many bytes at the end begin a UTF-8 character and don't finish it; 0 if the rest is no UTF-8 anyway.
fn partial_char_at_end(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(e) if e.error_len().is_none() => bytes.len() - e.valid_up_to(),
        _ => 0,
    }
}

/// How many bytes at the start (at most 3) end a UTF-8 character that began before.
fn partial_char_at_start(bytes: &[u8]) -> usize {
    let skip = bytes.iter().take(3).take_while(|b| (0x80..0xc0).contains(*b)).count();
    if std::str::from_utf8(&bytes[skip..]).is_ok() { skip } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(head: &[u8], omitted: u64, tail: &[u8]) -> Captured {
        Captured { head: head.to_vec(), omitted, tail: tail.to_vec() }
    }

    #[test]
    fn output_keeps_every_byte() {
        for bytes in [&b"plain\n"[..], b"", b"\xff\xfe\0x", "grüße".as_bytes(), &[0u8; 100]] {
            let output = Output::new(&captured(bytes, 0, b""));
            let json = serde_json::to_string(&output).expect("json");
            let back: Output = serde_json::from_str(&json).expect("back");
            assert_eq!(back.captured(), captured(bytes, 0, b""), "{json}");
        }
        assert_eq!(serde_json::to_string(&Output::new(&captured(b"hi", 0, b""))).expect("json"), r#""hi""#);
        let zeros = serde_json::to_string(&Output::new(&captured(&[0; 64], 0, b""))).expect("json");
        assert!(zeros.contains("base64"), "shorter than \\u0000: {zeros}");
    }

    #[test]
    fn a_cut_inside_a_character_does_not_turn_text_into_base64() {
        let text = "ää".as_bytes();
        let output = Output::new(&captured(&text[..3], 10, &text[1..]));
        assert_eq!(output.captured(), captured("ä".as_bytes(), 12, "ä".as_bytes()));
        let binary = Output::new(&captured(b"\xff\xc3", 1, b"\x80\xff"));
        assert_eq!(binary.captured(), captured(b"\xff\xc3", 1, b"\x80\xff"), "binary stays as it was cut");
    }
}
