//! A task's znode: what was asked for, how far it got, and its outcome, all in one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::outcome::Outcome;
pub use super::output::Output;
use super::result::Results;
pub use super::result::{Reason, State};
use super::share::{Lines, Share};
use super::{
    Extra, Incarnation, Labels, MAX_DATA_BYTES, MAX_TASK_BYTES, MAX_WORDS_BYTES, Malformed, VERSION,
    is_default, one, shortened, version,
};

/// Most commands of one chunk.
pub const MAX_CHUNK_COMMANDS: usize = 1_000;

/// Charged attempts that a task has when its submitter names no number.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 3;

/// The pause before the first retry when the submitter names none, in ms.
pub const DEFAULT_RETRY_BACKOFF_MS: u64 = 1_000;

/// The longest pause before a retry, in ms, however often the backoff was doubled.
pub const MAX_RETRY_BACKOFF_MS: u64 = 3_600_000;

/// What a task may grow by, beyond [`MAX_TASK_BYTES`], before it has an outcome: by its history.
const HISTORY_BYTES: usize = 16 * 1024;

/// What a task may grow by while it is at its first attempt: somebody wants it cancelled.
const MARKS_BYTES: usize = 1024;

/// A number may have up to so many times its bytes when it is written again: `1e15` becomes `1000000000000000.0`.
const MOST_GROWTH: usize = 5;

/// How many remarks on earlier attempts a task keeps.
pub const MAX_HISTORY: usize = 8;

/// How many workers a task names that could not start it.
const MAX_AVOID: usize = 4;

/// Most bytes of a worker's name as encoded, and of some numbers beside it.
const NAME_BYTES: usize = 512;

const _: () = assert!(
    MAX_HISTORY * (MAX_WORDS_BYTES + NAME_BYTES) + MAX_AVOID * NAME_BYTES + MARKS_BYTES <= HISTORY_BYTES
);

/// The `expire_ms` of a task that has been retried: what it had, or its job has, counts from its creation and is
/// over. A century, so that it can be added to any time.
pub const NO_DEADLINE_MS: u64 = 100 * 365 * 86_400_000;

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
    /// Of a part of a batch: how many lines of the file each of its chunks has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<u32>,
    /// Of a part of a batch: how many lines it has, blank ones left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<u64>,
    /// Of a part of a batch: all its chunks were created. A chunk that is missing has succeeded and was collected.
    #[serde(default, skip_serializing_if = "is_default")]
    pub made: bool,
    #[serde(flatten)]
    extra: Extra,
}

impl Default for Job {
    fn default() -> Self {
        Job::new(Options::default())
    }
}

impl Job {
    /// A job with these defaults.
    pub fn new(options: Options) -> Job {
        Job { v: VERSION, options, chunk: None, lines: None, made: false, extra: Extra::new() }
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Task {
    #[serde(default = "version")]
    v: u32,
    /// A line for `/bin/sh -c`; either this, or `argv`, or `commands`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// A program and its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// The lines of a chunk, each for `/bin/sh -c`. Blank ones keep the positions of the others, and are not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands: Option<Vec<String>>,
    /// The number of the first of them in its batch, from 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub first_line: u64,
    /// Of what was asked for, where that was dropped after its outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What is over of them, from attempts before this one, and from this one as far as it was written down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Results,
    /// Which of its lines are whose; absent if all are one share, with the number `attempt`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// Which of its lines somebody wants cancelled.
    #[serde(default, skip_serializing_if = "Lines::is_empty")]
    pub cancel_lines: Lines,
    /// What was set for it.
    #[serde(flatten)]
    pub options: Options,
    /// Set when the submitter brought the id: only the leader deletes it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keyed: bool,
    /// The fence: rises with every move.
    #[serde(default = "one")]
    pub attempt: u32,
    /// Attempts that failed, which count against `max_attempts`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub charged: u32,
    /// Attempts in which its worker died, which count too. Only who is convicted for them has them among `charged`.
    /// (Of a chunk, its shares say so.)
    #[serde(default, skip_serializing_if = "is_default")]
    pub deaths: u32,
    /// Not to be started until so long after this was written, that is, after the znode's mtime. Being relative,
    /// it needs nobody's clock but the ensemble's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Somebody wants it cancelled.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cancel: bool,
    /// Somebody wants it deleted, now that it has an outcome: its leader does that.
    #[serde(default, skip_serializing_if = "is_default")]
    pub delete: bool,
    /// The incarnation that vouches that its attempt, the one before this, is dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_by: Option<Incarnation>,
    /// Workers that could not start it, the last few. Others are preferred.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<Incarnation>,
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
    /// Several lines for `/bin/sh -c`.
    Chunk {
        /// The number of the first in its batch, from 0.
        first_line: u64,
        /// The lines.
        commands: Vec<String>,
    },
}

impl Task {
    /// A new task.
    pub fn new(payload: Payload, options: Options) -> Task {
        let task = Task { v: VERSION, attempt: 1, options, ..Task::default() };
        match payload {
            Payload::Shell(line) => Task { command: Some(line), ..task },
            Payload::Program(argv) => Task { argv: Some(argv), ..task },
            Payload::Chunk { first_line, commands } => Task { first_line, commands: Some(commands), ..task },
        }
    }

    /// Reads a task.
    ///
    /// # Errors
    /// [`Malformed`] if it is no JSON object of this version, or names nothing, or two things, to run.
    pub fn decode(data: &[u8]) -> Result<Task, Malformed> {
        let task: Task = super::decode(data)?;
        task.check_payload()?;
        task.check_room(data.len())?;
        if task.digest.is_some() && task.outcome.is_none() {
            return Err(Malformed("its command was dropped, so it cannot run again".into()));
        }
        if task.attempt == 0 {
            return Err(Malformed("its attempt is 0: the first is 1".into()));
        }
        Ok(task)
    }

    /// Whether there is room for whatever will be written into it. It was read from so many bytes.
    fn check_room(&self, read: usize) -> Result<(), Malformed> {
        if self.outcome.is_some() || read <= MAX_TASK_BYTES / MOST_GROWTH {
            return Ok(());
        }
        // What results take is room that the outcome will have: they move there. The others go when it comes.
        let (results, shares, cancel_lines) = (Results::new(), Vec::new(), Lines::default());
        let bytes = Task { results, shares, cancel_lines, ..self.clone() }.encode().len();
        let is_new = self.attempt == 1 && self.history.is_empty();
        let most = MAX_TASK_BYTES + if is_new { MARKS_BYTES } else { HISTORY_BYTES };
        if bytes > most {
            let why = format!("it has {bytes} bytes, more than {most}: its outcome might not fit");
            return Err(Malformed(why));
        }
        Ok(())
    }

    fn check_payload(&self) -> Result<(), Malformed> {
        match (&self.command, &self.argv, &self.commands) {
            (Some(_), None, None) => {}
            (None, Some(argv), None) if !argv.is_empty() => {}
            (None, Some(_), None) => return Err(Malformed("its argv is empty".into())),
            (None, None, Some(commands)) if commands.is_empty() => {
                return Err(Malformed("its commands are empty".into()));
            }
            (None, None, Some(commands)) if commands.len() > MAX_CHUNK_COMMANDS => {
                let commands = commands.len();
                return Err(Malformed(format!("it has {commands} commands, more than {MAX_CHUNK_COMMANDS}")));
            }
            (None, None, Some(_)) => {}
            (None, None, None) => {
                return Err(Malformed("it has neither command nor argv nor commands".into()));
            }
            _ => return Err(Malformed("it has more than one of command, argv and commands".into())),
        }
        let commands = self.commands.as_ref().map_or(0, Vec::len);
        let results = self.outcome.iter().map(|outcome| &outcome.results).chain([&self.results]);
        if results.into_iter().any(|results| results.len() > commands) {
            return Err(Malformed("it has more results than commands".into()));
        }
        self.check_shares().map_err(|why| Malformed(why.into()))
    }

    /// Writes a task.
    pub fn encode(&self) -> Vec<u8> {
        super::encode(self)
    }

    /// Writes a task whose outcome, or results, may have to be cut: the outputs are shortened until it fits a znode.
    pub fn encode_to_fit(&mut self) -> Vec<u8> {
        self.encode_within(MAX_DATA_BYTES)
    }

    /// Writes a task that is to have no more than so many bytes. What it has beside its payload is shortened until it
    /// has, or until nothing is left that can go: first outputs, then words, then what became of earlier attempts.
    pub fn encode_within(&mut self, limit: usize) -> Vec<u8> {
        loop {
            let data = self.encode();
            if data.len() <= limit || !self.shorten() {
                return data;
            }
        }
    }

    /// Leaves out something of what is left to leave out; false if there is nothing.
    fn shorten(&mut self) -> bool {
        let outputs = |outcome: &mut Outcome| outcome.stdout.shorten() | outcome.stderr.shorten();
        if self.outcome.as_mut().is_some_and(outputs) | self.shorten_results() {
            return true;
        }
        let detail = self.outcome.as_mut().and_then(|outcome| outcome.detail.take());
        detail.is_some() || !std::mem::take(&mut self.history).is_empty()
    }

    /// What it runs. A decoded task has exactly one of the forms.
    pub fn payload(&self) -> Payload {
        match (&self.command, &self.commands) {
            (Some(line), _) => Payload::Shell(line.clone()),
            (None, Some(commands)) => {
                Payload::Chunk { first_line: self.first_line, commands: commands.clone() }
            }
            (None, None) => Payload::Program(self.argv.clone().unwrap_or_default()),
        }
    }

    /// Ends the task. The results of a chunk are in its outcome from now on.
    pub fn end(&mut self, mut outcome: Outcome) {
        (self.shares, self.cancel_lines) = (Vec::new(), Lines::default());
        let results = std::mem::take(&mut self.results);
        if outcome.results.is_empty() {
            outcome.results = results;
        }
        outcome.detail = outcome.detail.map(|detail| shortened(&detail, MAX_WORDS_BYTES));
        self.outcome = Some(outcome);
    }

    /// Notes that this worker could not start it.
    pub fn avoid(&mut self, by: &Incarnation) {
        self.avoid.retain(|other| other != by);
        if self.avoid.len() >= MAX_AVOID {
            self.avoid.remove(0);
        }
        self.avoid.push(by.clone());
    }

    /// Moves the task on to its next attempt, which voids this one.
    pub fn next_attempt(&mut self, worker: Option<Incarnation>, why: &str) {
        self.remark(self.attempt, worker, why);
        self.attempt = self.attempt.saturating_add(1);
        self.delay_ms = None;
        self.released_by = None;
    }

    /// Notes what became of an attempt that was not the last.
    pub fn remark(&mut self, attempt: u32, worker: Option<Incarnation>, why: &str) {
        let why = shortened(why, MAX_WORDS_BYTES);
        self.history.push(Remark { attempt, worker, why, extra: Extra::new() });
        if self.history.len() > MAX_HISTORY {
            self.history.remove(0);
        }
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::chunk::CommandResult;
    use crate::machine::Captured;

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
            (br#"{"command":"x","argv":["y"]}"#, "more than one"),
            (br#"{"commands":["x"],"argv":["y"]}"#, "more than one"),
            (br#"{"argv":[]}"#, "empty"),
            (br#"{"commands":[]}"#, "empty"),
            (br#"{"commands":["x"],"results":[null,{}]}"#, "more results than commands"),
            (br#"{"command":"x","outcome":{"state":"done","attempt":1,"results":[{}]}}"#, "more results"),
            (br#"{"command":"x","attempt":0}"#, "attempt"),
            (br#"{"command":"x","attempt":-1}"#, "invalid"),
        ] {
            let why = Task::decode(data).expect_err("refused").to_string();
            assert!(why.contains(word), "{why}");
        }
        assert!(Task::decode(&vec![b'['; 100_000]).is_err());
    }

    fn chunk(bytes: usize) -> Task {
        let commands = vec!["x".repeat(bytes), "y".into(), "z".into()];
        Task::new(Payload::Chunk { first_line: 0, commands }, Options::default())
    }

    #[test]
    fn a_task_beside_which_no_outcome_would_fit_is_none() {
        let task = |bytes| Task::new(Payload::Shell("x".repeat(bytes)), Options::default());
        assert!(Task::decode(&task(MAX_TASK_BYTES).encode()).is_ok());
        assert!(Task::decode(&task(MAX_TASK_BYTES + HISTORY_BYTES).encode()).is_err());
        let mut ended = task(MAX_TASK_BYTES + HISTORY_BYTES);
        ended.outcome = Some(Outcome::unrun(State::Done, None, "", 1));
        assert!(Task::decode(&ended.encode()).is_ok(), "what has an outcome is shown");
        let mut saved = chunk(MAX_TASK_BYTES - 1_000);
        let head = vec![b'x'; HISTORY_BYTES];
        let stdout = Output::new(&Captured { head, omitted: 0, tail: Vec::new() });
        saved.results = vec![Some(CommandResult { stdout, ..CommandResult::default() }); 3];
        assert!(
            Task::decode(&saved.encode()).is_ok(),
            "what was written down of a chunk becomes its outcome"
        );
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
