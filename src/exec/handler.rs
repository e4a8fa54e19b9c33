//! Handlers: processes that outlive runs, and are given those with a request, one at a time, as a line each.
//!
//! Owns which handlers idle, which run is whose, and how long to wait before another is started. A request goes to the
//! one that was used last, and is written by the thread that asked for the run (`handler_slot`); without an idle one a
//! further handler is started, in a slot as every program is, and with a thread of its own that lives as long as it
//! does (`life`) and reads its answers (`answer`).
//!
//! It must not: hand anything over without a lease that holds; use a handler again that was sent a signal, or whose
//! answer was malformed; or report a run's end while that handler's group lives. Processes that a handler has left
//! running when it *answered* are the handler's own affair, until the handler ends.

mod answer;
mod backoff;
mod end;
mod handler_slot;
mod life;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::descriptors::too_few;
use super::hub::{FIRST_HANDLER, Hub};
use super::{ExecEvent, NotStartedKind};
use crate::machine::{GroupSignal, RunId, RunOutput, RunSpec};
use crate::threads;
use backoff::{Backoff, Death};
use handler_slot::HandlerSlot;
use handler_slot::{Handed, HandlerJob};

/// Stack of a handler's thread.
const STACK_BYTES: usize = 512 << 10;
/// How long idle handlers may take to end by themselves after the end of their standard input.
const END_OF_INPUT_GRACE: Duration = Duration::from_millis(500);
/// Why a request is not handed over.
const NO_LEASE: &str = "the lease had ended before it began, or there was no keeper of slots";

/// All handlers of an executor. They run the same program, with the same environment.
#[derive(Debug)]
pub(super) struct HandlerPool {
    hub: Arc<Hub>,
    inner: Mutex<PoolState>,
    /// Notified when a run gets a signal to end.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct PoolState {
    /// Those that have nothing to do, the one that was used last at the end.
    idle: Vec<Arc<HandlerSlot>>,
    /// Which handler has it, or will get it first of all.
    runs: BTreeMap<RunId, Arc<HandlerSlot>>,
    /// How many handlers there have ever been.
    made: u64,
    backoff: Backoff,
    /// There is no such program, as was reported, and nothing has been answered since.
    missing_reported: bool,
    /// No handler idles any more: its input is closed.
    closed: bool,
}

impl HandlerPool {
    pub(super) fn new(hub: Arc<Hub>) -> HandlerPool {
        HandlerPool { hub, inner: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
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
        let mut job = HandlerJob { run, request: spec.request.take().unwrap_or_default(), limit };
        loop {
            let Some(handler_slot) = self.take_idle(run) else { break };
            match handler_slot.hand_over(job, &self.hub) {
                Handed::Done => return,
                Handed::NoLease => {
                    self.not_started(run, NotStartedKind::Transient, NO_LEASE.to_owned());
                    self.lock().idles(&handler_slot);
                    return;
                }
                Handed::Refused(back) => {
                    // It gets nothing any more, but it is not known to be dead.
                    self.lock().runs.remove(&run);
                    self.hub.kill(handler_slot.mailbox.id());
                    job = back;
                }
            }
        }
        self.start_handler(job, spec);
    }

    /// One that idles and got no signal to end; it has the run now.
    fn take_idle(&self, run: RunId) -> Option<Arc<HandlerSlot>> {
        let mut inner = self.lock();
        loop {
            let handler_slot = inner.idle.pop()?;
            if !handler_slot.is_asked_to_end() {
                let before = inner.runs.insert(run, Arc::clone(&handler_slot));
                assert!(before.is_none(), "run {} was started twice", run.0);
                return Some(handler_slot);
            }
        }
    }

    fn start_handler(self: &Arc<Self>, job: HandlerJob, spec: RunSpec) {
        let run = job.run;
        let number = {
            let mut inner = self.lock();
            inner.made += 1;
            inner.made
        };
        let Ok(handler_slot) = HandlerSlot::new(RunId(FIRST_HANDLER + number)) else {
            return self.not_started(run, NotStartedKind::Shortage, too_few());
        };
        let (pool, handler_slot) = (Arc::clone(self), Arc::new(handler_slot));
        self.lock().runs.insert(run, Arc::clone(&handler_slot));
        let live = move || life::live(&pool, handler_slot, job, spec);
        if let Err(error) = threads::spawn_sized(&format!("handler-{number}"), STACK_BYTES, live) {
            let why = format!(
                "no room for another thread ({error}); raise the limit (ulimit -u, TasksMax=), or have fewer slots"
            );
            self.not_started(run, NotStartedKind::Shortage, why);
        }
    }

    /// Nothing of the run was handed to a handler: reports that and forgets it. It is never the run's own fault.
    fn not_started(&self, run: RunId, kind: NotStartedKind, why: String) {
        self.over(run, ExecEvent::NotStarted { run, kind, why });
    }

    /// Reports the run's last event, and forgets the run.
    fn over(&self, run: RunId, event: ExecEvent) {
        let mut inner = self.lock();
        inner.runs.remove(&run);
        // Nobody may listen any more, which is no fault.
        let _ = self.hub.events.send(event);
        self.changed.notify_all();
    }

    /// Its handler has answered. Unless that got a signal to end meanwhile, the run is over: it is forgotten, the
    /// handler idles if it is `alive`, and `report` reports the end. Otherwise it is over when the handler's group is
    /// dead.
    fn answered(
        &self,
        run: RunId,
        handler_slot: &Arc<HandlerSlot>,
        alive: bool,
        report: impl FnOnce(),
    ) -> bool {
        let mut inner = self.lock();
        let fit = !handler_slot.is_asked_to_end();
        if fit {
            inner.runs.remove(&run);
            handler_slot.rests(&self.hub);
            if alive {
                // Before anybody learns that a slot is free.
                inner.idles(handler_slot);
            }
            report();
            self.changed.notify_all();
        }
        fit
    }

    /// Signals the handler that has the run; whether one has.
    pub(super) fn signal(&self, run: RunId, signal: GroupSignal) -> bool {
        let inner = self.lock();
        let Some(handler_slot) = inner.runs.get(&run) else { return false };
        handler_slot.ask_to_end();
        self.hub.signal(handler_slot.mailbox.id(), signal);
        self.changed.notify_all();
        true
    }

    /// SIGKILL to all handlers that have a run. (Those that idle the hub knows.)
    pub(super) fn kill_all(&self) {
        let runs: Vec<RunId> = self.lock().runs.keys().copied().collect();
        for run in runs {
            self.signal(run, GroupSignal::Kill);
        }
    }

    /// How many runs are not over.
    pub(super) fn len(&self) -> usize {
        self.lock().runs.len()
    }

    /// Waits until no handler has a run. Whether that was so within `bound`.
    pub(super) fn wait_over(&self, bound: Duration) -> bool {
        let until = Instant::now() + bound;
        let mut inner = self.lock();
        while !inner.runs.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Removes it from those that idle.
    fn retire(&self, id: RunId) {
        self.lock().idle.retain(|handler_slot| handler_slot.mailbox.id() != id);
    }

    /// Waits as long as handlers that failed before demand; whether this one got a signal to end meanwhile.
    fn pause(&self, handler_slot: &HandlerSlot) -> bool {
        let mut inner = self.lock();
        let Some(until) = inner.backoff.until() else { return handler_slot.is_asked_to_end() };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || handler_slot.is_asked_to_end() {
                return handler_slot.is_asked_to_end();
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A handler works.
    fn works(&self) {
        let mut inner = self.lock();
        inner.backoff.answered();
        inner.missing_reported = false;
    }

    /// A handler is dead, or could not be started.
    fn died(&self, death: Death) {
        // What was killed because there was no lease has not failed.
        if self.hub.may_run() {
            self.lock().backoff.died(death, Instant::now());
        }
    }

    /// Says once that the handler's program is not there.
    fn missing(&self, why: &str) {
        if !std::mem::replace(&mut self.lock().missing_reported, true) {
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
        idle.iter().for_each(|handler_slot| handler_slot.close());
        let idle: Vec<RunId> = idle.iter().map(|handler_slot| handler_slot.mailbox.id()).collect();
        self.hub.wait_dead_of(&idle, END_OF_INPUT_GRACE);
    }
}

impl PoolState {
    /// It has nothing to do from now on.
    fn idles(&mut self, handler_slot: &Arc<HandlerSlot>) {
        if self.closed {
            handler_slot.close();
        } else {
            self.idle.push(Arc::clone(handler_slot));
        }
    }
}
