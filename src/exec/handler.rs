//! Handlers: processes that outlive runs, and are given those with a request, one at a time, as a line each.
//!
//! Owns which handlers idle, and how long to wait before another is started. A request goes to the one that was used
//! last, and is written by the thread that asked for the run (`desk`); without an idle one a further handler is started,
//! on a thread of its own that lives as long as it does (`life`) and reads its answers (`answer`).
//!
//! It must not: hand anything over without a lease that holds; use a handler again that was sent a signal, or whose
//! answer was none; or tell of a run's end while that handler's group lives. What a handler started and left running
//! when it *answered* is its own affair, until it ends itself.

mod answer;
mod desk;
mod end;
mod life;
mod pauses;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::descriptors::too_few;
use super::run::Shared;
use super::table::FIRST_HANDLER;
use super::{ExecEvent, NotStartedKind, STACK_BYTES, no_thread};
use crate::machine::{RunId, RunOutput, RunSpec};
use crate::threads;
use desk::{Desk, Handed, Job};
use pauses::{Death, Pauses};

/// How long idle handlers may take to end by themselves after the end of their standard input.
const END_OF_INPUT_GRACE: Duration = Duration::from_millis(500);
/// Why a request is not handed over.
const NO_LEASE: &str = "the lease had ended before it began, or there was no guard";

/// All handlers of an executor. They run the same program, with the same environment.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Those that have nothing to do, the one that was used last at the end.
    idle: Vec<Arc<Desk>>,
    /// How many handlers there have ever been.
    made: u64,
    pauses: Pauses,
    /// It was told that there is no such program, and nothing has been answered since.
    told_missing: bool,
    /// No handler idles any more: it is told to end.
    closed: bool,
}

impl Pool {
    pub(super) fn new(shared: Arc<Shared>) -> Pool {
        Pool { shared, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the request to a handler that idles, or starts one for it.
    ///
    /// # Panics
    ///
    /// If the id is in use.
    pub(super) fn start(self: &Arc<Self>, run: RunId, mut spec: RunSpec) {
        let limit = match spec.output {
            RunOutput::Capture { limit } => limit,
            RunOutput::Inherit => 0,
        };
        // What is left of the spec is about the handler; that it has a request marks it as one.
        let request = spec.request.replace(String::new()).unwrap_or_default();
        let mut job = Job { run, request, limit };
        loop {
            let Some(desk) = self.lock().idle.pop() else { break };
            if !self.shared.table.hand(run, desk.id) {
                // It was told to end meanwhile.
                continue;
            }
            match desk.hand_over(job, &self.shared) {
                Handed::Done => return,
                Handed::NoLease => {
                    self.not_started(run, NotStartedKind::Transient, NO_LEASE.to_owned());
                    self.idles(&desk);
                    return;
                }
                Handed::Refused(back) => {
                    // It hears nothing any more, but nobody says that it is dead.
                    self.shared.table.remove(run);
                    self.shared.table.kill_broken(desk.id);
                    job = back;
                }
            }
        }
        self.start_handler(job, spec);
    }

    fn start_handler(self: &Arc<Self>, job: Job, spec: RunSpec) {
        let run = job.run;
        let Some(reserve) = self.shared.stock.take() else {
            return self.not_started(run, NotStartedKind::Shortage, too_few());
        };
        let gate = match eventfd(0, EventfdFlags::CLOEXEC) {
            Ok(gate) => Arc::new(gate),
            Err(_) => return self.not_started(run, NotStartedKind::Shortage, too_few()),
        };
        let id = {
            let mut inner = self.lock();
            inner.made += 1;
            RunId(FIRST_HANDLER + inner.made)
        };
        self.shared.table.add(id, Arc::clone(&gate));
        self.shared.table.hand(run, id);
        let pool = Arc::clone(self);
        let name = format!("handler-{}", id.0 - FIRST_HANDLER);
        let live = move || life::live(&pool, id, gate, reserve, job, &spec);
        if let Err(error) = threads::spawn_sized(&name, STACK_BYTES, live) {
            self.not_started(run, NotStartedKind::Shortage, no_thread(&error));
            self.shared.table.remove(id);
        }
    }

    /// Nothing of the run was handed to anybody: tells so and forgets it. It is never the run's own fault.
    fn not_started(&self, run: RunId, kind: NotStartedKind, why: String) {
        let _ = self.shared.events.send(ExecEvent::NotStarted { run, kind, why });
        self.shared.table.remove(run);
    }

    /// It has nothing to do from now on.
    fn idles(&self, desk: &Arc<Desk>) {
        let mut inner = self.lock();
        if inner.closed {
            desk.close();
        } else {
            inner.idle.push(Arc::clone(desk));
        }
    }

    /// It is none of those that idle.
    fn retire(&self, id: RunId) {
        self.lock().idle.retain(|desk| desk.id != id);
    }

    /// Waits as long as handlers that failed before demand; whether this one was told to end meanwhile.
    fn pause(&self, id: RunId) -> bool {
        let until = self.lock().pauses.until();
        until.is_some_and(|until| self.shared.table.wait_told_to_end(id, until))
    }

    /// A handler works.
    fn works(&self) {
        let mut inner = self.lock();
        inner.pauses.answered();
        inner.told_missing = false;
    }

    /// A handler is dead, or could not be started.
    fn died(&self, death: Death) {
        // What was killed because there was no lease has not failed.
        let lapsed = self.shared.guard.as_ref().is_some_and(|guard| guard.is_lapsed());
        if !lapsed {
            self.lock().pauses.died(death, Instant::now());
        }
    }

    /// Says once that the handler's program is not there.
    fn missing(&self, why: &str) {
        if !std::mem::replace(&mut self.lock().told_missing, true) {
            log::error!("{why}; no task can be run until that is mended");
        }
    }

    /// Ends the standard input of all that idle, and waits a moment for them to end.
    pub(super) fn close(&self) {
        let idle = {
            let mut inner = self.lock();
            inner.closed = true;
            std::mem::take(&mut inner.idle)
        };
        idle.iter().for_each(|desk| desk.close());
        let idle: Vec<RunId> = idle.iter().map(|desk| desk.id).collect();
        self.shared.table.wait_dead_of(&idle, END_OF_INPUT_GRACE);
    }
}

/// The gate at which a handler's process waits until it is on record.
type Gate = Arc<OwnedFd>;
