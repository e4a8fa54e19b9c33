//! The leader's `status` znode: its summary, its proof of the present, and its view of the ensemble's clock.
//!
//! Written when something changed, at most once a second; and when the leader needs a write of its own, after
//! which its reads are not stale, or the ensemble's time, which the reply carries.

use std::time::Duration;

use crate::machine::{
    Actions, Call, CallError, CallId, CallResult, Calls, CreateMode, Instant, Refusal, Reply,
};

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
    /// It may not be read or written.
    Refused(Refusal),
}

/// The writer of `status`.
#[derive(Debug)]
pub struct Summary {
    path: String,
    state: State,
    calls: Calls<Purpose>,
    written: Vec<u8>,
    sent: Option<Instant>,
    dirty: bool,
    forced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Absent,
    Standing { version: i32 },
}

#[derive(Debug)]
enum Purpose {
    Look,
    Write,
}

impl Summary {
    /// A writer for the znode at `path`.
    pub fn new(path: String) -> Summary {
        Summary {
            path,
            state: State::Unknown,
            calls: Calls::default(),
            written: Vec::new(),
            sent: None,
            dirty: true,
            forced: false,
        }
    }

    /// The summary changed.
    pub fn touch(&mut self) {
        self.dirty = true;
    }

    /// A write that begins now or later is needed, whatever it says.
    pub fn force(&mut self) {
        self.forced = true;
    }

    /// Whether a write was asked for, or is under way, that will tell the time.
    pub fn is_writing(&self) -> bool {
        self.forced || !self.calls.is_empty()
    }

    /// When [`Summary::offer`] is worth calling again.
    pub fn next_wake(&self) -> Option<Instant> {
        if !self.calls.is_empty() || !(self.dirty || self.forced) {
            return None;
        }
        Some(self.sent.filter(|_| !self.forced).map_or(Instant::default(), |sent| sent + PACE))
    }

    /// Writes what `text` gives, if it is time and something changed.
    pub fn offer<R>(&mut self, now: Instant, text: impl FnOnce() -> Vec<u8>, out: &mut Actions<R>) {
        if self.next_wake().is_none_or(|at| at > now) {
            return;
        }
        if self.state == State::Unknown {
            self.calls.issue(out, Call::Exists { path: self.path.clone(), watch: false }, Purpose::Look);
            return;
        }
        let data = text();
        self.dirty = false;
        if data == self.written && !self.forced {
            return;
        }
        self.forced = false;
        self.sent = Some(now);
        self.written = data.clone();
        let path = self.path.clone();
        let call = match self.state {
            State::Standing { version } => Call::Set { path, data, version },
            State::Absent | State::Unknown => Call::Create { path, data, mode: CreateMode::Persistent },
        };
        self.calls.issue(out, call, Purpose::Write);
    }

    /// Takes in a reply; `None` if it is somebody else's.
    pub fn on_reply(&mut self, id: CallId, result: &CallResult) -> Option<Step> {
        let purpose = self.calls.take(id)?;
        Some(match (purpose, result) {
            (_, Err(CallError::NotSent | CallError::MaybeApplied)) => Step::Pending,
            (Purpose::Look, Ok(Reply::Stat(stat))) => {
                self.state = State::Standing { version: stat.version };
                Step::Pending
            }
            (Purpose::Look, Err(CallError::Refused(Refusal::NoNode))) => {
                self.state = State::Absent;
                Step::Pending
            }
            (Purpose::Write, Ok(Reply::Stat(stat))) => {
                self.state = State::Standing { version: stat.version };
                Step::Written { mtime_ms: stat.mtime_ms, mzxid: stat.mzxid }
            }
            // A create's reply carries no time: write once more. So does whoever met another's write.
            (Purpose::Write, Ok(_) | Err(CallError::Refused(Refusal::BadVersion | Refusal::NodeExists))) => {
                self.state = State::Unknown;
                self.forced = true;
                Step::Pending
            }
            (_, Err(CallError::Refused(refusal))) => Step::Refused(*refusal),
            (Purpose::Look, Ok(_)) => Step::Pending,
        })
    }
}
