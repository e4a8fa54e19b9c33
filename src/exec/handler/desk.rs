//! Where a handler is given its work: who has what, and the writing of the line.
//!
//! Owns the handler's standard input and what it has to do. A line is written by the thread that asks for the run, for
//! the handler's own is asleep where answers come; only what the pipe has no room for is left to that one.
//!
//! It must not write a line before the guard knows of the group, nor after the time that it then said is over: who is
//! stopped between the look at the clock and the write finds the group dead when it goes on.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::{Errno, retry_on_intr, write, writev};

use crate::exec::ExecEvent;
use crate::exec::guard::WHENEVER;
use crate::exec::proc::boottime_nanos;
use crate::exec::run::{Shared, now_ms};
use crate::machine::RunId;

/// A request that is to be handed over.
#[derive(Debug)]
pub(super) struct Job {
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
    pub(super) told: bool,
}

/// One handler.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) id: RunId,
    pub(super) pid: u32,
    /// 0 if it could not be learnt.
    pub(super) start_ticks: u64,
    /// Wakes the handler's thread when the line is not all that there is to be done.
    pub(super) wake: OwnedFd,
    pub(super) seat: Mutex<Seat>,
}

#[derive(Debug)]
pub(super) struct Seat {
    /// Does not keep us waiting. `None` when it is to hear no more.
    pub(super) stdin: Option<Arc<OwnedFd>>,
    pub(super) work: Work,
    /// It has answered before, so it is known that there is such a program.
    pub(super) proven: bool,
}

#[derive(Debug)]
pub(super) enum Work {
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
    /// The handler takes no more.
    Refused(Job),
}

impl Desk {
    pub(super) fn lock(&self) -> MutexGuard<'_, Seat> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a request to a handler that has nothing to do. The table knows that it has it.
    pub(super) fn hand_over(&self, job: Job, shared: &Shared) -> Handed {
        // Held until `Started` is sent: no answer is taken in before.
        let mut seat = self.lock();
        let Seat { stdin: Some(stdin), work: work @ Work::Idle, proven } = &mut *seat else {
            return Handed::Refused(job);
        };
        let not_after = match &shared.guard {
            Some(guard) => guard.begin(self.pid, self.start_ticks),
            None => WHENEVER,
        };
        let started_ms = now_ms();
        if boottime_nanos() >= not_after {
            if let Some(guard) = &shared.guard {
                guard.rest(self.pid);
                guard.settle(self.pid);
            }
            return Handed::NoLease;
        }
        let line = [IoSlice::new(job.request.as_bytes()), IoSlice::new(b"\n")];
        let written = match retry_on_intr(|| writev(stdin.as_ref(), &line)) {
            Ok(written) => written,
            Err(Errno::AGAIN) => 0,
            Err(_) => {
                *work = Work::Over;
                return Handed::Refused(job);
            }
        };
        let mut busy = Busy::new(job, started_ms);
        busy.handed = written > 0;
        if written <= busy.request.len() {
            busy.rest = [&busy.request.as_bytes()[written..], b"\n"].concat();
            self.wake();
        } else if *proven {
            busy.tell_started(self.pid, shared);
        } else {
            // Its thread tells so, when it is clear that there is such a program.
            self.wake();
        }
        *work = Work::Busy(busy);
        Handed::Done
    }

    fn wake(&self) {
        if let Err(error) = retry_on_intr(|| write(&self.wake, &1_u64.to_ne_bytes())) {
            log::error!("cannot wake the thread of handler {}: {error}", self.pid);
        }
    }

    /// Ends its standard input.
    pub(super) fn close(&self) {
        let mut seat = self.lock();
        seat.stdin = None;
        if matches!(seat.work, Work::Idle) {
            seat.work = Work::Over;
        }
    }
}

impl Busy {
    /// A request of which nothing is written yet.
    pub(super) fn new(job: Job, started_ms: i64) -> Busy {
        let Job { run, request, limit } = job;
        Busy { run, limit, started_ms, request, rest: Vec::new(), handed: false, told: false }
    }

    /// What the request is about, for messages.
    pub(super) fn task(&self) -> String {
        let request: Option<serde_json::Value> = serde_json::from_str(&self.request).ok();
        let task = request.as_ref().and_then(|request| request.get("task")?.as_str());
        task.map_or_else(|| format!("run {}", self.run.0), |task| format!("task {task}"))
    }

    /// Tells that it runs, once.
    pub(super) fn tell_started(&mut self, pid: u32, shared: &Shared) {
        if !std::mem::replace(&mut self.told, true) {
            let _ = shared.events.send(ExecEvent::Started { run: self.run, pid });
        }
    }
}
