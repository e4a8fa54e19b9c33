//! A slot's side of logs: what its runs print, on its way to the writer.
//!
//! What is printed is kept here until it is much, or the run takes long; then a pipe is made for it, and all goes there
//! from the first byte on. If the writer falls behind, the slot reads no more of what its run prints until there is
//! room, so that a log is complete on a disk that is merely slow. If the writer makes no progress at all for a while,
//! the log is given up, and the run goes on without one.
//!
//! It must not wait.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::{Errno, write};
use rustix::pipe::{PipeFlags, pipe_with};

use super::super::wire::{FromSlot, Link, Program, Streams};
use super::{LogName, header, kind};

/// A run that prints more than this has a log.
const FROM_BYTES: u64 = 64 << 10;
/// And so has one that takes longer than this.
const FROM_TIME: Duration = Duration::from_secs(1);
/// What waits for the writer at most while the run goes on, but for what is read at once.
const MOST_UNSENT: usize = 1 << 20;
/// A writer that takes nothing for so long hangs. The output of a run waits for it once, and no longer than this.
const PATIENCE: Duration = Duration::from_secs(2);
/// Logs of runs that are over and wait for the writer: each has up to twice what is read of a pipe at the end.
const MOST_CLOSING: usize = 4;
/// The variables that name a run: of the task, its line and its attempt.
const TASK_VAR: &str = "ZKMW_TASK";
const LINE_VAR: &str = "ZKMW_LINE";
const ATTEMPT_VAR: &str = "ZKMW_ATTEMPT";

/// The logs of a slot.
#[derive(Debug, Default)]
pub(in super::super) struct Feeds {
    /// Of what runs.
    current: Option<Feed>,
    /// Of what is over.
    closing: Vec<Feed>,
}

/// One log.
#[derive(Debug)]
struct Feed {
    name: LogName,
    begun: Instant,
    /// How many bytes it takes yet.
    left: u64,
    limit: u64,
    printed: u64,
    /// The end that the writer reads, until it is sent.
    pipe: Option<OwnedFd>,
    unsent: VecDeque<u8>,
    /// Since when the writer has taken nothing of what waits.
    stalled: Option<Instant>,
    /// The reason why it is not complete was logged.
    cut: bool,
    /// Nobody takes it any more.
    given_up: bool,
}

impl Feeds {
    /// A run begins.
    pub(in super::super) fn begin(&mut self, program: &Program) {
        self.current = match program.streams {
            Streams::Capture { log_limit: limit @ 1.., .. } => {
                name_of(program).map(|name| Feed::new(name, limit))
            }
            Streams::Capture { .. } | Streams::Inherit | Streams::Handler => None,
        };
    }

    /// It has printed this, on its standard output (0) or error (1).
    pub(in super::super) fn push(&mut self, stream: usize, bytes: &[u8]) {
        if let Some(feed) = self.current.as_mut().filter(|_| !bytes.is_empty()) {
            feed.push(if stream == 0 { kind::OUT } else { kind::ERR }, bytes);
        }
    }

    /// Nothing more should be read of what runs.
    pub(in super::super) fn is_full(&self) -> bool {
        self.current.as_ref().is_some_and(Feed::is_full)
    }

    /// It is over, and all was read that it printed.
    pub(in super::super) fn end(&mut self, link: &mut Link) {
        self.advance(link);
        let Some(mut feed) = self.current.take().filter(|feed| feed.pipe.is_some()) else { return };
        feed.piece(kind::END, &[]);
        feed.flush(link);
        if feed.waits() {
            // Now all is known that there will be: what is not taken from here on is lost by somebody else's fault.
            feed.stalled = Some(Instant::now());
            self.closing.push(feed);
            let surplus = self.closing.len().saturating_sub(MOST_CLOSING);
            self.closing.drain(..surplus);
        }
    }

    /// Whether something waits for the writer of runs that are over.
    pub(in super::super) fn are_closing(&self) -> bool {
        !self.closing.is_empty()
    }

    /// What is to be polled for room.
    pub(in super::super) fn waiting(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let waiting = self.current.iter().chain(&self.closing).filter(|feed| feed.waits());
        waiting.filter_map(|feed| feed.pipe.as_ref()).map(AsFd::as_fd)
    }

    /// For how long nothing is due.
    pub(in super::super) fn pause(&self) -> Option<Duration> {
        let current = self.current.iter().filter_map(Feed::pause);
        let closing = self.closing.iter().map(Feed::patience_left);
        current.chain(closing).min()
    }

    /// Passes on what there is room for, and makes a log of what prints much or takes long.
    pub(in super::super) fn advance(&mut self, link: &mut Link) {
        if let Some(feed) = &mut self.current {
            if feed.is_due() {
                feed.open(link);
            }
            feed.flush(link);
            if feed.is_full() && feed.patience_left().is_zero() {
                let why = "what writes logs has taken nothing for 2 s; the disk may hang";
                feed.give_up(Some(why.to_owned()), link);
            }
        }
        self.closing.retain_mut(|feed| {
            feed.flush(link);
            feed.waits() && !feed.patience_left().is_zero()
        });
    }
}

impl Feed {
    fn new(name: LogName, limit: u64) -> Feed {
        Feed {
            name,
            begun: Instant::now(),
            left: limit,
            limit,
            printed: 0,
            pipe: None,
            unsent: VecDeque::new(),
            stalled: None,
            cut: false,
            given_up: false,
        }
    }

    fn push(&mut self, kind: u8, bytes: &[u8]) {
        if self.given_up {
            return;
        }
        self.printed += bytes.len() as u64;
        let taken = &bytes[..bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX))];
        self.left -= taken.len() as u64;
        if !taken.is_empty() {
            self.piece(kind, taken);
        }
        if taken.len() < bytes.len() && !std::mem::replace(&mut self.cut, true) {
            let why = format!("the run printed more than {} bytes (--log-limit of the worker)", self.limit);
            self.piece(kind::CUT, why.as_bytes());
        }
    }

    fn piece(&mut self, kind: u8, bytes: &[u8]) {
        self.unsent.extend(header(kind, bytes.len()));
        self.unsent.extend(bytes);
    }

    /// Whether there is to be a log of it now.
    fn is_due(&self) -> bool {
        let is_long = || self.begun.elapsed() >= FROM_TIME;
        self.pipe.is_none() && !self.given_up && (self.printed > FROM_BYTES || is_long())
    }

    fn is_full(&self) -> bool {
        self.pipe.is_some() && self.unsent.len() > MOST_UNSENT
    }

    fn waits(&self) -> bool {
        self.pipe.is_some() && !self.unsent.is_empty()
    }

    fn patience_left(&self) -> Duration {
        PATIENCE.saturating_sub(self.stalled.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    fn pause(&self) -> Option<Duration> {
        match self.pipe {
            _ if self.given_up => None,
            None => Some(FROM_TIME.saturating_sub(self.begun.elapsed())),
            Some(_) => self.is_full().then(|| self.patience_left()),
        }
    }

    /// Makes a pipe, and sends its other end away.
    fn open(&mut self, link: &mut Link) {
        let (theirs, ours) = match pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) {
            Ok(ends) => ends,
            Err(_) => return self.give_up(Some(super::super::descriptors::too_few()), link),
        };
        link.say_with(&FromSlot::Log(self.name.clone()), vec![theirs]);
        self.pipe = Some(ours);
    }

    fn flush(&mut self, link: &mut Link) {
        let Some(pipe) = &self.pipe else { return };
        while !self.unsent.is_empty() {
            match write(pipe, self.unsent.as_slices().0) {
                Ok(sent) => {
                    self.unsent.drain(..sent);
                    self.stalled = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.stalled.get_or_insert_with(Instant::now);
                    return;
                }
                Err(_) => return self.give_up(None, link),
            }
        }
        if self.unsent.capacity() > MOST_UNSENT / 2 {
            // A burst need not be paid for until the end of a long run.
            self.unsent = VecDeque::new();
        }
    }

    fn give_up(&mut self, why: Option<String>, link: &mut Link) {
        self.given_up = true;
        self.pipe = None;
        self.unsent = VecDeque::new();
        link.say(&FromSlot::LogLost { name: self.name.clone(), why });
    }
}

/// What a log of it is called; what is no task's has none.
fn name_of(program: &Program) -> Option<LogName> {
    // What was set last is what the worker has set.
    let value = |of: &str| program.env.iter().rfind(|(name, _)| name == of).map(|(_, value)| value.as_str());
    let task = value(TASK_VAR)?.to_owned();
    let line = value(LINE_VAR).and_then(|line| line.parse().ok());
    Some(LogName {
        task,
        line,
        attempt: value(ATTEMPT_VAR).and_then(|attempt| attempt.parse().ok()).unwrap_or(0),
    })
}
