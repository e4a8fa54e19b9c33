//! Gives a handler its work: which run it has, and the writing of the request's line.
//!
//! Owns the handler's standard input and its work. The thread that asks for the run writes the line, because the
//! handler's own thread sleeps until an answer comes. That one writes only the rest for which the pipe had no room.
//!
//! It must not write a line before the slot knows that its handler has something to do, nor after the lease has ended:
//! a thread that is suspended between the check of the clock and the write finds the group dead when it goes on.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr, writev};

use crate::clock;
use crate::exec::ExecEvent;
use crate::exec::hub::Hub;
use crate::exec::mailbox::Mailbox;
use crate::machine::RunId;

/// A request that is to be handed over.
#[derive(Debug)]
pub(super) struct HandlerJob {
    pub(super) run: RunId,
    /// The line, without its end.
    pub(super) request: String,
    /// How much is kept of each output.
    pub(super) limit: usize,
}

/// A request that a handler has, or has a part of.
#[derive(Debug)]
pub(super) struct Busy {
    pub(super) run: RunId,
    pub(super) limit: usize,
    pub(super) started_ms: i64,
    request: String,
    /// What is not written yet of the line.
    pub(super) rest: Vec<u8>,
    /// Something of it was written.
    pub(super) handed: bool,
    /// `Started` was sent.
    pub(super) start_reported: bool,
}

/// One handler.
#[derive(Debug)]
pub struct HandlerSlot {
    /// What became of its process; the hub fills it.
    pub(super) mailbox: Arc<Mailbox>,
    /// Where it writes.
    pub(super) stdout: OnceLock<OwnedFd>,
    pub(super) state: Mutex<HandlerState>,
    asked_to_end: AtomicBool,
    /// It had written something when it first got a signal to end.
    pub(super) had_said: AtomicBool,
}

#[derive(Debug)]
pub(super) struct HandlerState {
    /// Does not block. `None` when nothing more may be written.
    pub(super) stdin: Option<Arc<OwnedFd>>,
    pub(super) work: HandlerWork,
    /// It has answered before, so it is known that there is such a program.
    pub(super) proven: bool,
}

#[derive(Debug)]
pub(super) enum HandlerWork {
    Idle,
    Busy(Busy),
    /// It gets nothing any more.
    Over,
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Handed {
    /// The handler has it, or its thread sees to that.
    Done,
    /// Nothing may begin now.
    NoLease,
    /// The handler takes no further request.
    Refused(HandlerJob),
}

impl HandlerSlot {
    /// One that is not started yet.
    pub(super) fn new(id: RunId) -> io::Result<HandlerSlot> {
        Ok(HandlerSlot {
            mailbox: Arc::new(Mailbox::new(id)?),
            stdout: OnceLock::new(),
            state: Mutex::new(HandlerState { stdin: None, work: HandlerWork::Idle, proven: false }),
            asked_to_end: AtomicBool::new(false),
            had_said: AtomicBool::new(false),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HandlerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a signal was sent to it, so that it is not used again.
    pub(super) fn is_asked_to_end(&self) -> bool {
        self.asked_to_end.load(Ordering::SeqCst)
    }

    /// A signal is sent to it.
    pub(super) fn ask_to_end(&self) {
        if !self.asked_to_end.swap(true, Ordering::SeqCst) {
            let had_said = self.stdout.get().is_some_and(is_readable);
            self.had_said.store(had_said, Ordering::SeqCst);
        }
    }

    /// Gives a request to a handler that has nothing to do. The pool knows that it has it.
    pub(super) fn hand_over(&self, job: HandlerJob, hub: &Hub) -> Handed {
        // Held until `Started` is sent: no answer is taken in before.
        let mut state = self.lock();
        let HandlerState { stdin: Some(stdin), work: work @ HandlerWork::Idle, proven } = &mut *state else {
            return Handed::Refused(job);
        };
        if !hub.begin(self.mailbox.slot()) {
            self.rests(hub);
            return Handed::NoLease;
        }
        let started_ms = clock::wall_ms();
        let line = [IoSlice::new(job.request.as_bytes()), IoSlice::new(b"\n")];
        let written = match retry_on_intr(|| writev(stdin.as_ref(), &line)) {
            Ok(written) => written,
            Err(Errno::AGAIN) => 0,
            Err(_) => {
                *work = HandlerWork::Over;
                return Handed::Refused(job);
            }
        };
        let mut busy = Busy::new(job, started_ms);
        busy.handed = written > 0;
        if written <= busy.request.len() {
            busy.rest = [&busy.request.as_bytes()[written..], b"\n"].concat();
            self.mailbox.wake();
        } else if *proven {
            busy.report_started(self.mailbox.pid(), hub);
        } else {
            // Its thread reports the start, when it is clear that there is such a program.
            self.mailbox.wake();
        }
        *work = HandlerWork::Busy(busy);
        Handed::Done
    }

    /// It has nothing to do that a lease is needed for.
    pub(super) fn rests(&self, hub: &Hub) {
        hub.rest(self.mailbox.slot());
    }

    /// Ends its standard input.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.stdin = None;
        if matches!(state.work, HandlerWork::Idle) {
            state.work = HandlerWork::Over;
        }
    }
}

/// Whether there is something to read now.
fn is_readable(pipe: &OwnedFd) -> bool {
    let mut source = [PollFd::new(pipe, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let polled = retry_on_intr(|| poll(&mut source, Some(&at_once)));
    polled.is_ok() && source.iter().any(|source| source.revents().contains(PollFlags::IN))
}

impl Busy {
    /// A request of which nothing is written yet.
    pub(super) fn new(job: HandlerJob, started_ms: i64) -> Busy {
        let HandlerJob { run, request, limit } = job;
        Busy { run, limit, started_ms, request, rest: Vec::new(), handed: false, start_reported: false }
    }

    /// What the request is about, for messages.
    pub(super) fn task(&self) -> String {
        let request: Option<serde_json::Value> = serde_json::from_str(&self.request).ok();
        let task = request.as_ref().and_then(|request| request.get("task")?.as_str());
        task.map_or_else(|| format!("run {}", self.run.0), |task| format!("task {task}"))
    }

    /// Reports once that it runs.
    pub(super) fn report_started(&mut self, pid: u32, hub: &Hub) {
        if !std::mem::replace(&mut self.start_reported, true) {
            let _ = hub.events.send(ExecEvent::Started { run: self.run, pid });
        }
    }
}
