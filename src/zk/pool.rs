//! The calls: which are outstanding, on which connection, and in which order their events are reported.
//!
//! One lock guards the table of calls and the queue of events together, so the three promises at the top of
//! `machine.rs` hold by construction: a thread that takes a call out of the table puts its reply into the queue of
//! events under the same lock, and `Down` is put in only when the table is empty.
//!
//! A thread that holds the lock never blocks: not on the consumer of the events (another thread waits for it), and
//! not on the crate.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};

use super::SessionEvent;
use super::client::End;
use super::connection::Connection;
use super::repeats::{Refused, Repeats, describe, repeatable};
use super::request::{self, LargeWrite, Unanswered};
use crate::clock::now;
use crate::machine::{Call, CallError, CallId, CallResult, ChangeKind, Instant, Refusal};
use crate::threads;

/// Watch events that may wait for the consumer. Past that the connection is given up: what was missed is read
/// again after the next one.
const CHANGES_WAITING_MAX: usize = 200_000;
/// The same for the bytes of their paths: 200,000 paths of ours have a tenth of it.
const CHANGES_WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Threads that did not come back from a call even though its connection was killed, beyond which no thread is
/// replaced any more. (A kill frees them within milliseconds; this only bounds what cannot happen.)
const ASTRAY_MAX: usize = 256;

/// Where an outstanding call is.
enum Stage {
    /// Not given to the crate yet, or refused and to be made again.
    Queued,
    /// A thread makes it.
    InFlight,
    /// Its thread came back without an answer; the end of the connection will answer it.
    InDoubt,
}

struct Outstanding {
    id: CallId,
    stage: Stage,
    large: Option<LargeWrite>,
    refused: Option<Refused>,
}

/// A call for a thread to make.
struct CallJob {
    number: u64,
    call: Call,
    connection: Arc<Connection>,
}

#[derive(Default)]
struct State {
    up: Option<Arc<Connection>>,
    /// When the session is to be closed by, once that is wanted.
    stop_by: Option<Instant>,
    /// Nothing more will come: the supervisor has ended.
    over: bool,
    next_number: u64,
    outstanding: BTreeMap<u64, Outstanding>,
    queue: VecDeque<(u64, Call)>,
    repeats: Repeats,
    /// Threads for calls, and how many of them wait for one.
    threads: usize,
    idle: usize,
    /// The last one that was wanted could not be had.
    short: bool,
    /// Threads whose call was answered in their stead, and which have not come back yet.
    astray: usize,
    /// Events that did not fit into the consumer's channel, in order.
    waiting: VecDeque<SessionEvent>,
    /// The deliverer holds events that come before all that are in `waiting`.
    delivering: bool,
    changes_waiting: usize,
    changes_waiting_bytes: usize,
    /// Somebody waits until what is in flight is answered.
    draining: bool,
}

/// See the module's description.
pub struct CallPool {
    state: Mutex<State>,
    work: Condvar,
    delivery: Condvar,
    /// Notified when a call that was in flight has been answered.
    landed: Condvar,
    events: Sender<SessionEvent>,
    threads_max: usize,
    requests_max: u64,
    /// Made over the present connection.
    requests: AtomicU64,
}

impl CallPool {
    /// A pool, and the thread that delivers its events.
    pub fn start(
        events: Sender<SessionEvent>,
        threads_max: usize,
        requests_max: u64,
    ) -> anyhow::Result<Arc<CallPool>> {
        let pool = Arc::new(CallPool {
            state: Mutex::default(),
            work: Condvar::new(),
            delivery: Condvar::new(),
            landed: Condvar::new(),
            events,
            threads_max,
            requests_max,
            requests: AtomicU64::new(0),
        });
        let deliverer = Arc::clone(&pool);
        let started = threads::spawn_small("zk-events", move || deliverer.deliver());
        // The first thread for calls is there from the start: with it alone a role gets on.
        if let Err(error) = started.and_then(|()| pool.hire(&mut pool.lock())) {
            pool.over();
            return Err(error.into());
        }
        Ok(pool)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a call in. Never blocks.
    pub fn call(self: &Arc<CallPool>, generation: u64, id: CallId, call: Call) {
        let checked = request::check(&call);
        let mut state = self.lock();
        if let Err(refusal) = checked {
            return self.reply(&mut state, id, Err(CallError::Refused(refusal)));
        }
        let up = state.up.as_ref().filter(|up| up.life.generation == generation);
        let Some(up) = up.filter(|_| state.stop_by.is_none()) else {
            return self.reply(&mut state, id, Err(CallError::NotSent));
        };
        let large = LargeWrite::of(&call, up.chroot_length);
        if large.as_ref().is_some_and(|write| write.length > up.request_max) {
            return self.reply(&mut state, id, Err(CallError::Refused(Refusal::TooLarge)));
        }
        let number = state.next_number;
        state.next_number += 1;
        if state.idle <= state.queue.len() && state.threads < self.threads_max && state.astray < ASTRAY_MAX {
            let hired = self.hire(&mut state);
            self.make_do(&mut state, hired);
        }
        if state.threads == 0 {
            // Not even one thread is to be had: those that there were have not come back from a connection that was
            // killed. A caller that learns that its call was not sent expects the loss next.
            if let Some(up) = &state.up {
                up.life.end(End::Lost("no thread for calls is to be had".to_owned()));
            }
            return self.reply(&mut state, id, Err(CallError::NotSent));
        }
        state.outstanding.insert(number, Outstanding { id, stage: Stage::Queued, large, refused: None });
        state.queue.push_back((number, call));
        let someone_waits = state.idle > 0;
        drop(state);
        if someone_waits {
            self.work.notify_one();
        }
    }

    /// With fewer threads fewer calls are made at a time. That is said once, until one more can be had again.
    fn make_do(&self, state: &mut State, hired: io::Result<()>) {
        match hired {
            Ok(()) => state.short = false,
            Err(error) if !state.short => {
                state.short = true;
                let (threads, max) = (state.threads, self.threads_max);
                log::warn!(
                    "{threads} of {max} threads for calls can be had, so fewer calls are made at a time: \
                     {error}; see ulimit -u"
                );
            }
            Err(_) => {}
        }
    }

    fn hire(self: &Arc<CallPool>, state: &mut State) -> io::Result<()> {
        let pool = Arc::clone(self);
        threads::spawn_small("zk-call", move || pool.work())?;
        state.threads += 1;
        Ok(())
    }

    /// The life of a thread for calls.
    fn work(&self) {
        threads::yield_to_others();
        while let Some(job) = self.next_job() {
            let again = repeatable(&job.call);
            let outcome = request::make(&job.connection.client, job.call);
            if !self.finish(job.number, &job.connection, outcome, again) {
                return;
            }
        }
    }

    fn next_job(&self) -> Option<CallJob> {
        let mut state = self.lock();
        loop {
            if state.over {
                state.threads -= 1;
                return None;
            }
            if let Some(job) = self.take_job(&mut state) {
                return Some(job);
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn take_job(&self, state: &mut State) -> Option<CallJob> {
        let connection = Arc::clone(state.up.as_ref()?);
        if connection.life.ended().is_some() {
            return None; // what is still queued will be answered as not sent
        }
        let (number, call) = state.queue.pop_front()?;
        if self.requests.fetch_add(1, Ordering::Relaxed) + 1 >= self.requests_max {
            connection.life.end(End::Worn);
        }
        if let Some(outstanding) = state.outstanding.get_mut(&number) {
            outstanding.stage = Stage::InFlight;
        }
        Some(CallJob { number, call, connection })
    }

    /// Answers a call, unless that has been done, or it is to be made again; whether the thread is still wanted.
    fn finish(
        &self,
        number: u64,
        connection: &Connection,
        outcome: Result<CallResult, Unanswered>,
        again: Option<Call>,
    ) -> bool {
        let mut state = self.lock();
        let Some(outstanding) = state.outstanding.get_mut(&number) else {
            // The connection ended meanwhile, and another thread counts instead of this one.
            state.astray -= 1;
            let wanted = state.threads < self.threads_max;
            state.threads += usize::from(wanted);
            return wanted;
        };
        match outcome {
            Ok(result) => {
                connection.life.answered();
                if let (Some(call), Err(CallError::Refused(refusal))) = (again, &result)
                    && !state.draining
                    && let Some(news) = put_off(&mut state, (number, call), *refusal, connection)
                {
                    drop(state);
                    connection.life.wake();
                    if let Some(news) = news {
                        log::warn!("{news}");
                    }
                    return true;
                }
                if let Some(outstanding) = state.outstanding.remove(&number) {
                    self.reply(&mut state, outstanding.id, result);
                }
                if state.draining {
                    self.landed.notify_all();
                }
            }
            Err(why) => {
                outstanding.stage = Stage::InDoubt;
                self.landed.notify_all();
                connection.life.end(End::Lost(why.to_string()));
            }
        }
        true
    }

    /// Has the calls made again whose pause is over; when that is to be asked again.
    pub fn repeat(&self, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        while let Some(due) = state.repeats.due(now) {
            state.queue.push_back(due);
            self.work.notify_one();
        }
        let (next, is_over) = (state.repeats.next_due(), state.repeats.is_over(now));
        drop(state);
        if is_over {
            log::info!("the ZooKeeper servers answer again what they refused");
        }
        next
    }

    fn reply(&self, state: &mut State, id: CallId, result: CallResult) {
        self.report(state, SessionEvent::Reply { id, result });
    }

    /// A new connection is up; `false` if there shall be none any more.
    pub fn up(&self, connection: &Arc<Connection>) -> bool {
        let mut state = self.lock();
        if state.stop_by.is_some() {
            return false;
        }
        assert!(state.up.is_none() && state.outstanding.is_empty(), "one connection at a time");
        self.requests.store(0, Ordering::Relaxed);
        state.up = Some(Arc::clone(connection));
        let (generation, timeout) = (connection.life.generation, connection.timeout);
        self.report(&mut state, SessionEvent::Up { generation, timeout, server: connection.server });
        true
    }

    /// The connection is over: answers every outstanding call, then reports the end. Gives the longest of the large
    /// writes that were in flight.
    pub fn down(&self, generation: u64, why: String) -> Option<LargeWrite> {
        let mut state = self.lock();
        state.up = None;
        state.queue.clear();
        state.repeats.clear();
        let mut longest: Option<LargeWrite> = None;
        for (_, outstanding) in std::mem::take(&mut state.outstanding) {
            if let (Some(large), Stage::InFlight | Stage::InDoubt) = (outstanding.large, &outstanding.stage) {
                // Of several that are as long it is always the same, so that who dies again over it is found out.
                let key = |write: &LargeWrite| (write.length, Reverse(write.path.clone()));
                longest = longest.into_iter().chain([large]).max_by_key(key);
            }
            let error = match outstanding.stage {
                Stage::Queued => CallError::NotSent,
                Stage::InDoubt => CallError::MaybeApplied,
                Stage::InFlight => {
                    state.threads -= 1;
                    state.astray += 1;
                    CallError::MaybeApplied
                }
            };
            let verdict = outstanding.refused.and_then(|refused| refused.verdict());
            self.reply(&mut state, outstanding.id, Err(verdict.map_or(error, CallError::Refused)));
        }
        self.report(&mut state, SessionEvent::Down { generation, why });
        longest
    }

    /// Before a session is closed in good order: what is queued is answered as not sent, and what is in flight
    /// gets time to be answered.
    pub fn drain(&self, limit: Duration) {
        let mut state = self.lock();
        state.queue.clear();
        state.repeats.clear();
        let queued = |_: &u64, outstanding: &mut Outstanding| matches!(outstanding.stage, Stage::Queued);
        let queued: Vec<_> = state.outstanding.extract_if(.., queued).collect();
        for (_, outstanding) in queued {
            self.reply(&mut state, outstanding.id, Err(CallError::NotSent));
        }
        state.draining = true;
        let until = now() + limit;
        while state.outstanding.values().any(|outstanding| matches!(outstanding.stage, Stage::InFlight)) {
            let left = until.since(now());
            if left.is_zero() {
                return;
            }
            let waited = self.landed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Reports a failed round.
    pub fn failed(&self, why: super::Failure) {
        self.report(&mut self.lock(), SessionEvent::Failed { why });
    }

    /// Takes in a watch event of a connection; of an earlier one it is dropped.
    pub fn changed(&self, generation: u64, path: String, kind: ChangeKind) {
        let mut state = self.lock();
        let Some(connection) = &state.up else { return };
        if connection.life.generation != generation {
            return;
        }
        if state.changes_waiting >= CHANGES_WAITING_MAX
            || state.changes_waiting_bytes >= CHANGES_WAITING_BYTES_MAX
        {
            connection.life.end(End::Lost("too many watch events wait to be handled".to_owned()));
            return;
        }
        self.report(&mut state, SessionEvent::Changed { generation, path, kind });
    }

    /// Wants the session closed by then; whether one is up.
    pub fn stop(&self, by: Instant) -> bool {
        let mut state = self.lock();
        state.stop_by = Some(by);
        state.up.is_some()
    }

    /// When the session is to be closed by, once that is wanted.
    pub fn stop_by(&self) -> Option<Instant> {
        self.lock().stop_by
    }

    /// Ends all threads, as soon as they have nothing left to do.
    pub fn over(&self) {
        self.lock().over = true;
        self.work.notify_all();
        self.delivery.notify_all();
    }

    /// Puts an event into the consumer's channel, or behind those that wait for room in it.
    fn report(&self, state: &mut State, event: SessionEvent) {
        let mut event = event;
        if !state.delivering && state.waiting.is_empty() {
            match self.events.try_send(event) {
                Ok(()) | Err(TrySendError::Disconnected(_)) => return,
                Err(TrySendError::Full(back)) => event = back,
            }
        }
        if let SessionEvent::Changed { path, .. } = &event {
            state.changes_waiting += 1;
            state.changes_waiting_bytes += path.len();
        }
        state.waiting.push_back(event);
        self.delivery.notify_one();
    }

    /// The life of the thread that waits for the consumer.
    fn deliver(&self) {
        let mut state = self.lock();
        loop {
            if let Some(event) = state.waiting.pop_front() {
                if let SessionEvent::Changed { path, .. } = &event {
                    state.changes_waiting -= 1;
                    state.changes_waiting_bytes -= path.len();
                }
                state.delivering = true;
                drop(state);
                let gone = self.events.send(event).is_err();
                state = self.lock();
                state.delivering = false;
                if gone {
                    state.waiting.clear();
                    (state.changes_waiting, state.changes_waiting_bytes) = (0, 0);
                }
            } else if state.over {
                return;
            } else {
                state = self.delivery.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// Sees to it that a refused call is made again, if it may be; then gives what is to be logged, if anything is.
#[allow(clippy::option_option)]
fn put_off(
    state: &mut State,
    (number, call): (u64, Call),
    refusal: Refusal,
    connection: &Connection,
) -> Option<Option<String>> {
    let now = now();
    let outstanding = state.outstanding.get_mut(&number)?;
    let text = describe(&call);
    let in_doubt = connection.timeout;
    let refused = state.repeats.put_off((number, call), refusal, outstanding.refused, in_doubt, now)?;
    (outstanding.stage, outstanding.refused) = (Stage::Queued, Some(refused));
    let server = connection.server;
    Some(state.repeats.is_news(now).then(|| {
        format!(
            "the ZooKeeper server {server} refuses for now to {text} ({refusal}), as servers do that throttle \
             requests: it is asked again until it answers; so is what else it refuses (see throttled_op_wait_time)"
        )
    }))
}
