//! Writes the leader's `status` znode: its summary, its proof of the present, and its view of the ensemble's clock.
//!
//! Written when something changed, at most once a second; and when the leader needs a write of its own, after
//! which its reads are not stale, or the ensemble's time, which the reply carries.

use std::time::Duration;

use crate::contract::MAX_DATA_BYTES;
use crate::contract::status::Status;
use crate::machine::{
    Actions, Call, CallId, CallResult, Calls, ChangeKind, CreateMode, Instant, Refusal, Reply, Routed,
    WatchMode,
};
use crate::recipes::retry::Retry;

/// The least time between two writes that nothing but the summary's content asks for.
const PACE: Duration = Duration::from_secs(1);

/// What a reply led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// More replies are awaited.
    Pending,
    /// It was written.
    Written {
        /// When it was committed, by the ensemble's clock.
        mtime_ms: i64,
        /// The transaction of it.
        mzxid: i64,
    },
    /// The root directory is gone.
    RootGone,
}

/// The writer of `status`.
#[derive(Debug)]
pub struct StatusWriter {
    path: String,
    state: State,
    calls: Calls<Purpose>,
    written: Vec<u8>,
    /// The most bytes that the servers accept, as far as they have shown.
    max_bytes: usize,
    sent: Option<Instant>,
    dirty: bool,
    forced: bool,
    /// Whether a watch reports its end.
    watched: bool,
    retry: Retry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Absent,
    Exists { version: i32 },
}

#[derive(Debug)]
enum Purpose {
    Watch,
    Exists,
    Write,
}

impl StatusWriter {
    /// A writer for the znode at `path`.
    pub fn new(path: String) -> StatusWriter {
        StatusWriter {
            path,
            state: State::Unknown,
            calls: Calls::default(),
            written: Vec::new(),
            max_bytes: MAX_DATA_BYTES,
            sent: None,
            dirty: true,
            forced: false,
            watched: false,
            retry: Retry::default(),
        }
    }

    /// Notes that the summary changed.
    pub fn touch(&mut self) {
        self.dirty = true;
    }

    /// Asks for a write that begins now or later, whatever it says.
    pub fn force(&mut self) {
        self.forced = true;
    }

    /// Whether a write was asked for, or is under way, that will give the time.
    pub fn is_writing(&self) -> bool {
        self.forced || !self.calls.is_empty()
    }

    /// When [`StatusWriter::offer`] is worth calling again.
    pub fn next_wake(&self) -> Option<Instant> {
        if !self.calls.is_empty() || !(self.dirty || self.forced) {
            return None;
        }
        let due = self.sent.filter(|_| !self.forced).map_or(Instant::default(), |sent| sent + PACE);
        Some(self.retry.next_wake().map_or(due, |again| due.max(again)))
    }

    /// What is refused to it, in words for people.
    pub fn trouble(&self) -> Option<&str> {
        self.retry.trouble()
    }

    /// Takes in a change of the znode: if somebody deletes it, it is made again, whether or not there is news.
    pub fn on_changed<R>(&mut self, path: &str, kind: ChangeKind, now: Instant, out: &mut Actions<R>) {
        if path == self.path && kind == ChangeKind::Deleted {
            self.retry.vanished(path, now, out);
            self.state = State::Unknown;
            self.forced = true;
        }
    }

    /// Writes the summary, if it is time and something changed.
    pub fn offer<R>(&mut self, now: Instant, summary: &Status, out: &mut Actions<R>) {
        if self.next_wake().is_none_or(|at| at > now) {
            return;
        }
        self.retry.is_due(now);
        if !std::mem::replace(&mut self.watched, true) {
            let call = Call::Watch { path: self.path.clone(), mode: WatchMode::Node };
            self.calls.issue(out, call, Purpose::Watch);
        }
        if self.state == State::Unknown {
            self.calls.issue(out, Call::Exists { path: self.path.clone(), watch: false }, Purpose::Exists);
            return;
        }
        let data = summary.encode_within(self.max_bytes);
        self.dirty = false;
        if data == self.written && !self.forced {
            return;
        }
        self.forced = false;
        self.sent = Some(now);
        self.written = data.clone();
        let path = self.path.clone();
        let call = match self.state {
            State::Exists { version } => Call::Set { path, data, version },
            State::Absent | State::Unknown => Call::Create { path, data, mode: CreateMode::Persistent },
        };
        self.calls.issue(out, call, Purpose::Write);
    }

    /// Takes in a reply.
    pub fn on_reply<R>(
        &mut self,
        id: CallId,
        result: &CallResult,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Routed<Step> {
        self.calls.route(id, result).map(|(purpose, answer)| match answer {
            Some(answer) => self.on_answer(purpose, answer, now, out),
            None => Step::Pending,
        })
    }

    fn on_answer<R>(
        &mut self,
        purpose: Purpose,
        answer: Result<&Reply, Refusal>,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Step {
        match (purpose, answer) {
            (Purpose::Exists, Ok(Reply::Stat(stat))) => {
                self.state = State::Exists { version: stat.version };
                Step::Pending
            }
            (Purpose::Exists, Err(Refusal::NoNode)) => {
                self.state = State::Absent;
                Step::Pending
            }
            (Purpose::Write, Ok(Reply::Stat(stat))) => {
                self.state = State::Exists { version: stat.version };
                self.retry.done(out);
                Step::Written { mtime_ms: stat.mtime_ms, mzxid: stat.mzxid }
            }
            // A create's reply carries no time, so it is written once more; likewise when another process wrote it.
            (Purpose::Write, Ok(_) | Err(Refusal::BadVersion | Refusal::NodeExists)) => {
                self.state = State::Unknown;
                self.forced = true;
                Step::Pending
            }
            // A takeover waits for this write. It is refused for good only if nothing can be left out any more.
            (Purpose::Write, Err(Refusal::TooLarge)) if self.written.len() <= self.max_bytes => {
                self.max_bytes = self.written.len() / 2;
                self.forced = true;
                Step::Pending
            }
            (purpose, Err(refusal)) => {
                // Deleted since it was last seen, or since its directory was.
                let root_gone = refusal == Refusal::NoNode && self.state == State::Absent;
                self.watched &= !matches!(purpose, Purpose::Watch);
                self.state = State::Unknown;
                self.forced = true;
                if root_gone || refusal != Refusal::NoNode {
                    self.retry.refused(&self.path, refusal, now, out);
                } else {
                    self.retry.vanished(&self.path, now, out);
                }
                if root_gone { Step::RootGone } else { Step::Pending }
            }
            (Purpose::Exists | Purpose::Watch, Ok(_)) => Step::Pending,
        }
    }
}
