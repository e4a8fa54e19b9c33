//! A task's znode: what was asked for, how far it got, and its outcome, all in one.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::{
    Extra, Incarnation, Labels, MAX_DATA_BYTES, MAX_TASK_BYTES, Malformed, VERSION, is_false, is_zero, one,
    version,
};
use crate::machine::Captured;

/// Charged attempts that a task has when its submitter names no number.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 3;

/// The pause before the first retry when the submitter names none, in ms.
pub const DEFAULT_RETRY_BACKOFF_MS: u64 = 1_000;

/// The longest pause before a retry, in ms, however often the backoff was doubled.
pub const MAX_RETRY_BACKOFF_MS: u64 = 3_600_000;

/// What a task may grow by, beyond [`MAX_TASK_BYTES`], before it has an outcome: by its history.
const HISTORY_BYTES: usize = 16 * 1024;

/// How many remarks on earlier attempts a task keeps.
pub const MAX_HISTORY: usize = 8;

/// What can be set for a task or, as a default, for all tasks of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Higher goes first; 0 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// How long one attempt may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// How long after its creation a task may still be started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expire_ms: Option<u64>,
    /// Charged attempts. When it is given, an attempt that ends with a non-zero code is charged and tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// The pause before the first retry; it doubles with each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_backoff_ms: Option<u64>,
    /// Labels that the worker must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require: Option<Labels>,
    /// Added to the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// The submitter's mark (a name below `submitters`, without its number) if the task is to be cancelled when
    /// that submitter is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphan_of: Option<String>,
}

impl Options {
    /// These options, with the job's where they say nothing.
    pub fn or(&self, job: &Options) -> Options {
        Options {
            priority: self.priority.or(job.priority),
            timeout_ms: self.timeout_ms.or(job.timeout_ms),
            expire_ms: self.expire_ms.or(job.expire_ms),
            max_attempts: self.max_attempts.or(job.max_attempts),
            retry_backoff_ms: self.retry_backoff_ms.or(job.retry_backoff_ms),
            require: self.require.clone().or_else(|| job.require.clone()),
            env: self.env.clone().or_else(|| job.env.clone()),
            orphan_of: self.orphan_of.clone().or_else(|| job.orphan_of.clone()),
        }
    }

    /// How many charged attempts there are in all; at least 1.
    pub fn attempts(&self) -> u32 {
        self.max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS).max(1)
    }

    /// The pause before the attempt that follows `charged` charged ones (at least 1).
    pub fn backoff_ms(&self, charged: u32) -> u64 {
        let first = self.retry_backoff_ms.unwrap_or(DEFAULT_RETRY_BACKOFF_MS);
        first.saturating_mul(1 << charged.saturating_sub(1).min(32)).min(MAX_RETRY_BACKOFF_MS)
    }
}

/// A directory of tasks: defaults for what is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    #[serde(default = "version")]
    v: u32,
    /// The defaults.
    #[serde(flatten)]
    pub options: Options,
    #[serde(flatten)]
    extra: Extra,
}

impl Job {
    /// A job with these defaults.
    pub fn new(options: Options) -> Job {
        Job { v: VERSION, options, extra: Extra::new() }
    }

    /// Reads a job. One made by hand may be empty: it has no defaults.
    pub fn decode(data: &[u8]) -> Result<Job, Malformed> {
        if data.is_empty() { Ok(Job::new(Options::default())) } else { super::decode(data) }
    }

    /// Writes a job.
    pub fn encode(&self) -> Vec<u8> {
        super::encode(self)
    }
}

/// Why an earlier attempt was not the last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// The attempt.
    pub attempt: u32,
    /// The incarnation that had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Incarnation>,
    /// What became of it, in words.
    pub why: String,
    #[serde(flatten)]
    extra: Extra,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    #[serde(default = "version")]
    v: u32,
    /// A line for `/bin/sh -c`; either this or `argv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// A program and its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// What was set for it.
    #[serde(flatten)]
    pub options: Options,
    /// Set when the submitter brought the id: only the leader deletes it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub keyed: bool,
    /// The fence: rises with every move.
    #[serde(default = "one")]
    pub attempt: u32,
    /// Attempts that count against `max_attempts`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub charged: u32,
    /// Not to be started until so long after this was written, that is, after the znode's mtime. Being relative,
    /// it needs nobody's clock but the ensemble's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Somebody wants it cancelled.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cancel: bool,
    /// The incarnation that vouches that its attempt, the one before this, is dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_by: Option<Incarnation>,
    /// What became of the last few attempts before this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Remark>,
    /// How it ended, for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    #[serde(flatten)]
    extra: Extra,
}

/// What a task runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A line for `/bin/sh -c`.
    Shell(String),
    /// A program and its arguments.
    Program(Vec<String>),
}

impl Task {
    /// A new task.
    pub fn new(payload: Payload, options: Options) -> Task {
        let (command, argv) = match payload {
            Payload::Shell(line) => (Some(line), None),
            Payload::Program(argv) => (None, Some(argv)),
        };
        Task {
            v: VERSION,
            command,
            argv,
            options,
            keyed: false,
            attempt: 1,
            charged: 0,
            delay_ms: None,
            cancel: false,
            released_by: None,
            history: Vec::new(),
            outcome: None,
            extra: Extra::new(),
        }
    }

    /// Reads a task.
    ///
    /// # Errors
    /// [`Malformed`] if it is no JSON object of this version, or names nothing, or two things, to run.
    pub fn decode(data: &[u8]) -> Result<Task, Malformed> {
        let task: Task = super::decode(data)?;
        match (&task.command, &task.argv) {
            (Some(_), None) => {}
            (None, Some(argv)) if !argv.is_empty() => {}
            (None, Some(_)) => return Err(Malformed("its argv is empty".into())),
            (None, None) => return Err(Malformed("it has neither command nor argv".into())),
            (Some(_), Some(_)) => return Err(Malformed("it has both command and argv".into())),
        }
        if task.outcome.is_none() && data.len() > MAX_TASK_BYTES + HISTORY_BYTES {
            let most = MAX_TASK_BYTES + HISTORY_BYTES;
            return Err(Malformed(format!(
                "it has {} bytes, more than {most}: its outcome might not fit",
                data.len()
            )));
        }
        if task.attempt == 0 {
            return Err(Malformed("its attempt is 0: the first is 1".into()));
        }
        Ok(task)
    }

    /// Writes a task.
    pub fn encode(&self) -> Vec<u8> {
        super::encode(self)
    }

    /// Writes a task whose outcome may have to be cut: the outputs are shortened until it fits a znode.
    pub fn encode_to_fit(&mut self) -> Vec<u8> {
        loop {
            let data = self.encode();
            let Some(outcome) = self.outcome.as_mut() else { return data };
            if data.len() <= MAX_DATA_BYTES || !(outcome.stdout.shorten() | outcome.stderr.shorten()) {
                return data;
            }
        }
    }

    /// What it runs. A decoded task has exactly one of the two forms.
    pub fn payload(&self) -> Payload {
        match (&self.command, &self.argv) {
            (Some(line), _) => Payload::Shell(line.clone()),
            (None, argv) => Payload::Program(argv.clone().unwrap_or_default()),
        }
    }

    /// Whether both ask for the same thing: what was set by submitters is equal.
    pub fn same_request(&self, other: &Task) -> bool {
        // Who waits for it is not part of what is asked for.
        let options = |task: &Task| Options { orphan_of: None, ..task.options.clone() };
        self.payload() == other.payload() && options(self) == options(other)
    }

    /// Moves the task on to its next attempt, which voids this one.
    pub fn next_attempt(&mut self, worker: Option<Incarnation>, why: &str) {
        let why = why.to_string();
        self.history.push(Remark { attempt: self.attempt, worker, why, extra: Extra::new() });
        if self.history.len() > MAX_HISTORY {
            self.history.remove(0);
        }
        self.attempt = self.attempt.saturating_add(1);
        self.delay_ms = None;
        self.released_by = None;
    }
}

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
        }
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

    /// The bytes; what is no base64 is given as it stands, so that a foreign slip loses nothing.
    fn to_vec(&self) -> Vec<u8> {
        match self {
            Bytes::Text(text) => text.clone().into_bytes(),
            Bytes::Binary { base64 } => BASE64.decode(base64).unwrap_or_else(|_| base64.clone().into_bytes()),
        }
    }
}

/// Bytes that `text` takes as a JSON string, quotes included.
fn escaped_len(text: &str) -> usize {
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

    /// Drops about half of it from the middle; false if there is nothing left to drop.
    fn shorten(&mut self) -> bool {
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
    fn a_task_made_by_hand_is_read() {
        let task = Task::decode(br#"{"command":"echo hi"}"#).expect("valid");
        assert_eq!((task.payload(), task.attempt, task.charged), (Payload::Shell("echo hi".into()), 1, 0));
    }

    #[test]
    fn what_is_no_task_is_refused_with_the_reason() {
        for (data, word) in [
            (&b""[..], "empty"),
            (b"garbage", "expected"),
            (b"[1]", "invalid"),
            (br#"{"v":99,"command":"x"}"#, "version is 99"),
            (br#"{"v":"1","command":"x"}"#, "version is \"1\""),
            (br#"{"v":1}"#, "neither"),
            (br#"{"command":"x","argv":["y"]}"#, "both"),
            (br#"{"argv":[]}"#, "empty"),
            (br#"{"command":"x","attempt":0}"#, "attempt"),
            (br#"{"command":"x","attempt":-1}"#, "invalid"),
        ] {
            let why = Task::decode(data).expect_err("refused").to_string();
            assert!(why.contains(word), "{why}");
        }
        assert!(Task::decode(&vec![b'['; 100_000]).is_err());
    }

    #[test]
    fn a_task_beside_which_no_outcome_would_fit_is_none() {
        let task = |bytes| Task::new(Payload::Shell("x".repeat(bytes)), Options::default());
        assert!(Task::decode(&task(MAX_TASK_BYTES).encode()).is_ok());
        assert!(Task::decode(&task(MAX_TASK_BYTES + HISTORY_BYTES).encode()).is_err());
        let mut ended = task(MAX_TASK_BYTES + HISTORY_BYTES);
        ended.outcome = Some(Outcome::unrun(State::Done, None, "", 1));
        assert!(Task::decode(&ended.encode()).is_ok(), "what has an outcome is shown");
    }

    #[test]
    fn unknown_fields_are_kept() {
        let data = br#"{"v":1,"command":"x","attempt":1,"colour":{"r":1},"zz":[null]}"#;
        let task = Task::decode(data).expect("valid");
        let again: serde_json::Value = serde_json::from_slice(&task.encode()).expect("json");
        assert_eq!(again["colour"]["r"], 1);
        assert_eq!(again["zz"], serde_json::json!([null]));
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

    #[test]
    fn an_outcome_is_shortened_until_it_fits() {
        let mut task = Task::new(Payload::Shell("x".repeat(200_000)), Options::default());
        let mut outcome = Outcome::unrun(State::Done, None, "", 1);
        outcome.stdout = Output::new(&captured(&vec![0xff; 400_000], 5, &[1]));
        outcome.stderr = Output::new(&captured(b"short", 0, b""));
        task.outcome = Some(outcome);
        let data = task.encode_to_fit();
        assert!(data.len() <= MAX_DATA_BYTES && data.len() > MAX_DATA_BYTES / 2, "{}", data.len());
        let kept = task.outcome.expect("outcome").stdout.captured();
        assert_eq!(kept.head.len() as u64 + kept.tail.len() as u64 + kept.omitted, 400_006);
    }

    #[test]
    fn backoff_doubles_and_is_capped() {
        let options = Options { retry_backoff_ms: Some(100), ..Options::default() };
        assert_eq!((options.backoff_ms(1), options.backoff_ms(2), options.backoff_ms(4)), (100, 200, 800));
        assert_eq!(options.backoff_ms(4_000_000), MAX_RETRY_BACKOFF_MS);
    }

    #[test]
    fn history_is_bounded() {
        let mut task = Task::new(Payload::Shell("x".into()), Options::default());
        for _ in 0..100 {
            task.next_attempt(None, "its worker died");
        }
        assert_eq!((task.attempt, task.history.len(), task.history[0].attempt), (101, MAX_HISTORY, 93));
    }
}
