//! The one thread that makes connections, watches over them, and ends them.
//!
//! It alone says `Up`, `Down` and `Failed`. It sleeps until a connection's life ends, a heartbeat is due or
//! overdue, or the session is to stop; a pulse wakes it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use super::client::{ConnectionLife, End};
use super::connection::{Connection, ConnectionPlan, NotMade};
use super::pool::CallPool;
use super::probe::{CONNECT_WITHIN, Grant, NoSession, probe};
use super::resolve::Resolver;
use super::suspects::Suspects;
use super::{Attempt, Failure, Settings, Stopped};
use crate::clock::now;
use crate::machine::{Instant, Prng};
use crate::threads;

/// The pause after a failed round doubles from here…
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// …up to here: guarantee G10 has to find a quorum that returned within 2 s.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long a server may take to answer each of the first requests. A server that hangs costs a round so much,
/// and guarantee G10 allows no more; one that is slower than that would not answer heartbeats in time either.
const ANSWER_WITHIN: Duration = Duration::from_millis(1200);
/// The next server is asked when those before it have not answered for so long.
const STAGGER: Duration = Duration::from_millis(150);
/// A server that failed is tried after all others for so long.
const SHUNNED_FOR: Duration = Duration::from_secs(30);
/// A connection that lived for less counts as a failed one: what costs one connection may cost the next as soon.
const FLAPPING: Duration = Duration::from_secs(5);
/// The pause after a connection that lived for less than that doubles up to here. It can be longer than the other one:
/// there is a quorum, and each new session costs a few writes and lines in logs.
const FLAPPING_PAUSE_MAX: Duration = Duration::from_secs(1);
/// The longest sleep while a connection is up: `recv_timeout` does not count while the machine is suspended.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// For so long it counts that what a connection needs was found to be there.
const FOUND_FOR: Duration = Duration::from_secs(1);
/// How long a connection that made its last request may take to get its answers.
const RETIRE_WITHIN: Duration = Duration::from_secs(1);

/// See the module's description.
pub struct Supervisor {
    settings: Settings,
    pool: Arc<CallPool>,
    pulse: (Sender<()>, Receiver<()>),
    resolver: Resolver,
    prng: Prng,
    generation: u64,
    shunned: BTreeMap<SocketAddr, Instant>,
    last_failure: Option<Failure>,
    suspects: Suspects,
    /// The longest request over the connection before: the log has named it.
    warned_of: usize,
    /// When it was found at the start that the first connection can have what it needs. It must not be made before.
    enough: Option<Receiver<Instant>>,
}

/// How a connection ended.
enum Attended {
    /// It was closed because the session is to stop.
    Stopped(Stopped),
    Lost,
    Worn,
}

/// A pause that doubles each time.
struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    fn new(max: Duration) -> Backoff {
        Backoff { next: PAUSE_MIN, max }
    }

    fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause
    }
}

impl Supervisor {
    /// A supervisor that is woken through `pulse`, and makes no connection before something comes through `enough`.
    pub fn new(
        settings: Settings,
        pool: Arc<CallPool>,
        pulse: (Sender<()>, Receiver<()>),
        enough: Receiver<Instant>,
        seed: u64,
    ) -> Supervisor {
        Supervisor {
            settings,
            pool,
            pulse,
            resolver: Resolver::default(),
            prng: Prng::new(seed),
            generation: 0,
            shunned: BTreeMap::new(),
            last_failure: None,
            suspects: Suspects::default(),
            warned_of: usize::MAX,
            enough: Some(enough),
        }
    }

    /// Runs until the session is to stop.
    pub fn run(mut self) -> Stopped {
        threads::yield_to_others();
        let stopped = self.rounds();
        self.pool.over();
        stopped
    }

    fn rounds(&mut self) -> Stopped {
        let (mut failed, mut flapped) = (Backoff::new(PAUSE_MAX), Backoff::new(FLAPPING_PAUSE_MAX));
        while self.pool.stop_by().is_none() {
            let pause = match self.round() {
                Ok(connection) => {
                    failed = Backoff::new(PAUSE_MAX);
                    let since = now();
                    match self.attend(connection) {
                        Attended::Stopped(stopped) => return stopped,
                        Attended::Worn => continue,
                        Attended::Lost if now().since(since) < FLAPPING => flapped.pause(),
                        Attended::Lost => {
                            flapped = Backoff::new(FLAPPING_PAUSE_MAX);
                            continue;
                        }
                    }
                }
                Err(failure) => {
                    self.note(failure);
                    failed.pause()
                }
            };
            let jittered = self.jittered(pause);
            self.sleep(jittered);
        }
        Stopped::NothingUp
    }

    /// Between half of it and all.
    fn jittered(&mut self, pause: Duration) -> Duration {
        let part = self.prng.next_u64() % 512 + 512;
        pause * u32::try_from(part).unwrap_or(1024) / 1024
    }

    /// Sleeps, unless the session is to stop.
    fn sleep(&self, pause: Duration) {
        let until = now() + pause;
        while self.pool.stop_by().is_none() && now() < until {
            // A pulse of a life that ended long ago wakes us too early; then we sleep on.
            let _ = self.pulse.1.recv_timeout(until.since(now()));
        }
    }

    /// Reports a failure, unless it is the one that was reported last.
    fn note(&mut self, failure: Failure) {
        if self.last_failure.as_ref() == Some(&failure) {
            return;
        }
        log::debug!("no ZooKeeper session: {failure}");
        self.last_failure = Some(failure.clone());
        self.pool.failed(failure);
    }

    /// Tries every address once.
    fn round(&mut self) -> Result<Arc<Connection>, Failure> {
        let resolved = self.resolver.resolve(&self.settings.servers);
        if resolved.addresses.is_empty() {
            return Err(Failure::Unresolvable { names: resolved.unresolved });
        }
        let (answer, answers) = bounded(resolved.addresses.len());
        let mut order = self.in_order(resolved.addresses).into_iter();
        let (mut tried, mut asked) = (Vec::new(), 0);
        while self.pool.stop_by().is_none() {
            let wait = match order.next() {
                Some(server) => {
                    asked += 1;
                    self.ask(server, answer.clone());
                    STAGGER
                }
                None if tried.len() == asked => break,
                None => ANSWER_WITHIN + CONNECT_WITHIN,
            };
            // The servers are asked one by one and still side by side: one that hangs must not hide one that
            // serves. The first that grants a session is taken; the other probes end by themselves.
            let Ok((server, granted)) = answers.recv_timeout(wait) else { continue };
            if granted.is_ok() {
                log::debug!("the ZooKeeper server {server} grants sessions");
            }
            match granted
                .map_err(|why| NotMade::ThisServer(why.to_string()))
                .and_then(|grant| self.connect(server, grant))
            {
                Ok(connection) => {
                    self.shunned.remove(&server);
                    self.last_failure = None;
                    return Ok(Arc::new(connection));
                }
                Err(NotMade::Verdict(failure)) => return Err(failure),
                Err(NotMade::ThisServer(why)) => {
                    log::debug!("{server}: {why}");
                    self.shunned.insert(server, now());
                    tried.push(Attempt { server, why });
                }
            }
        }
        tried.sort_by_key(|attempt| attempt.server);
        Err(Failure::Unreachable { tried, unresolved: resolved.unresolved })
    }

    /// Probes a server on a thread of its own.
    fn ask(&self, server: SocketAddr, answer: Sender<(SocketAddr, Result<Grant, NoSession>)>) {
        log::debug!("asking the ZooKeeper server {server} for a session");
        let (timeout, suspect) = (self.settings.session_timeout, self.suspects.length());
        let failed = answer.clone();
        let started = threads::spawn_small("zk-probe", move || {
            let _ = answer.try_send((server, probe(server, timeout, ANSWER_WITHIN, suspect)));
        });
        if let Err(error) = started {
            let _ = failed.try_send((server, Err(NoSession::NoThread(error))));
        }
    }

    /// A random order, but those that failed lately last, the latest at the end.
    fn in_order(&mut self, mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
        for last in (1..addresses.len()).rev() {
            let other = self.prng.next_u64() % (last as u64 + 1);
            addresses.swap(last, usize::try_from(other).unwrap_or(last));
        }
        let now = now();
        self.shunned.retain(|_, since| now.since(*since) < SHUNNED_FOR);
        addresses.sort_by_key(|address| self.shunned.get(address).copied());
        addresses
    }

    fn connect(&mut self, server: SocketAddr, grant: Grant) -> Result<Connection, NotMade> {
        self.generation += 1;
        let generation = self.generation;
        let pool = Arc::clone(&self.pool);
        let found = self.enough.take().and_then(|enough| enough.recv().ok());
        Connection::make(ConnectionPlan {
            enough: found.is_some_and(|at| now().since(at) < FOUND_FOR),
            settings: &self.settings,
            server,
            timeout: grant.timeout,
            request_max: self.suspects.request_max(grant.request_max),
            answer_within: ANSWER_WITHIN,
            life: Arc::new(ConnectionLife::new(generation, self.pulse.0.clone())),
            report: Arc::new(move |path, kind| pool.changed(generation, path, kind)),
        })
    }

    /// Watches over a connection to its end.
    fn attend(&mut self, connection: Arc<Connection>) -> Attended {
        let generation = connection.life.generation;
        if !self.pool.up(&connection) {
            return Attended::Stopped(self.close(&connection));
        }
        let server = connection.server;
        log::debug!("ZooKeeper session up at {server}, timeout {:?}", connection.timeout);
        self.warn_of_limit(&connection);
        let end = self.watch_over(&connection);
        let Some(end) = end else {
            self.pool.drain(self.time_to_stop() / 2);
            let stopped = self.close(&connection);
            connection.kill();
            self.pool.down(generation, "stopped".to_owned());
            return Attended::Stopped(stopped);
        };
        match end {
            End::Worn => {
                // The session is not closed: its ephemerals must exist until its successor has replaced them, as after
                // any other loss. A worker's or an elector's lease says that it does, and what they run goes on.
                self.pool.drain(RETIRE_WITHIN);
                connection.kill();
                self.pool.down(generation, "a connection makes only so many requests".to_owned());
                Attended::Worn
            }
            End::Lost(why) => {
                log::debug!("ZooKeeper session at {server} down: {why}");
                self.shunned.insert(server, now());
                connection.kill();
                self.suspects.connection_died(self.pool.down(generation, why));
                Attended::Lost
            }
        }
    }

    /// Says once that writes will be refused because a server has a small limit.
    fn warn_of_limit(&mut self, connection: &Connection) {
        let limit = connection.request_max;
        if limit < self.warned_of {
            log::warn!(
                "connections to the ZooKeeper server {} end at requests of more than about {limit} bytes, so larger \
                 writes are refused here: raise jute.maxbuffer on all servers",
                connection.server
            );
        }
        self.warned_of = limit;
    }

    fn close(&self, connection: &Connection) -> Stopped {
        if connection.close(self.time_to_stop()) { Stopped::Closed } else { Stopped::Unconfirmed }
    }

    fn time_to_stop(&self) -> Duration {
        self.pool.stop_by().map_or(Duration::ZERO, |by| by.since(now()))
    }

    /// Waits for the end of the connection, and brings it about when a heartbeat is overdue; `None` if the
    /// session is to stop.
    fn watch_over(&self, connection: &Connection) -> Option<End> {
        let life = &connection.life;
        let mut pulse = Heartbeat::new(connection);
        loop {
            if let Some(end) = life.ended() {
                return Some(end.clone());
            }
            if self.pool.stop_by().is_some() {
                return None;
            }
            let now = now();
            let repeat = self.pool.repeat(now).map_or(CHECK_EVERY, |at| at.since(now));
            match pulse.advance(connection, now) {
                Ok(sleep) => {
                    let _ = self.pulse.1.recv_timeout(sleep.min(repeat).min(CHECK_EVERY));
                }
                Err(why) => life.end(End::Lost(why.to_string())),
            }
        }
    }
}

/// Why a connection is given up.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error("a heartbeat failed")]
    Failed,
    #[error("a heartbeat came to nothing")]
    NotSent,
    #[error("nothing was heard for {0:?}: the session has expired")]
    Expired(Duration),
    #[error("{server} did not answer for {after:?}")]
    NoAnswer { server: SocketAddr, after: Duration },
}

/// Whether the server still answers, asked every third of the session timeout.
struct Heartbeat {
    timeout: Duration,
    /// When the request was sent that was answered last: the session lived after that.
    proved: Instant,
    /// The one that is under way: when it was sent, and where its answer comes.
    beating: Option<(Instant, Receiver<bool>)>,
}

impl Heartbeat {
    fn new(connection: &Connection) -> Heartbeat {
        Heartbeat { timeout: connection.timeout, proved: now(), beating: None }
    }

    /// Does what is due. Gives for how long there is nothing to do.
    fn advance(&mut self, connection: &Connection, now: Instant) -> Result<Duration, Silence> {
        if let Some((sent, answer)) = &self.beating {
            match answer.try_recv() {
                Ok(true) => {
                    self.proved = *sent;
                    self.beating = None;
                }
                Ok(false) => return Err(Silence::Failed),
                Err(TryRecvError::Disconnected) => return Err(Silence::NotSent),
                Err(TryRecvError::Empty) => {}
            }
        }
        if now.since(self.proved) > self.timeout {
            // Overdue heartbeats are noticed long before: this process, or its machine, was suspended.
            return Err(Silence::Expired(now.since(self.proved)));
        }
        let Some((sent, _)) = &self.beating else {
            let due = self.proved + self.timeout / 3;
            if now < due {
                return Ok(due.since(now));
            }
            self.beating = Some((now, connection.beat()));
            return Ok(self.timeout / 6);
        };
        let overdue = self.overdue(*sent, connection.life.last_answer());
        if now >= overdue {
            return Err(Silence::NoAnswer { server: connection.server, after: now.since(*sent) });
        }
        Ok(overdue.since(now))
    }

    /// A sixth of the timeout after the heartbeat was sent. While other answers still come, a busy server gets
    /// as much again: a heartbeat waits behind all writes of its session.
    fn overdue(&self, sent: Instant, last_answer: Instant) -> Instant {
        (sent.max(last_answer) + self.timeout / 6).min(sent + self.timeout / 3)
    }
}
