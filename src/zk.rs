//! The supervised session: the only module that names the `zookeeper` crate.
//!
//! A connection is a session here: it is made (`supervisor`: probe, connect, prove), used (`pool`), and
//! ended for ever at the first doubt (`connection`, `descriptors`); then another one is made. The crate
//! never reconnects by itself. docs/design/session.md says what it does wrong, and why this is the remedy.
//!
//! Keeps the promises at the top of `machine.rs`: each call is answered exactly once, and before the
//! [`SessionEvent::Down`] of the connection on which it was made. Answers and watch events come over different
//! threads: a read may be answered with a new value before the watch event of the change comes.

mod client;
mod connection;
mod descriptors;
mod meter;
mod pool;
mod probe;
mod repeats;
mod request;
mod resolve;
mod supervisor;
mod suspects;

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::clock;
use crate::machine::{Call, CallId, CallResult, ChangeKind};
use crate::resource_check;
use crate::threads;
use pool::CallPool;
use supervisor::Supervisor;

/// Requests over one connection before another replaces it. The crate numbers them with 32 bits, and from 2³¹ on
/// the numbers run towards those that ZooKeeper reserves; the session layer's own are not counted.
pub const REQUESTS_MAX: u64 = (1 << 31) - 10_000_000;

/// A longer path is refused, so that path and data together stay below the servers' limit.
const PATH_MAX: usize = 16 * 1024;

/// Beyond what `stop` may take by its limit: for answering the outstanding calls.
const STOP_SLACK: Duration = Duration::from_millis(100);

/// How long a session that was dropped rather than stopped may take to close, on its own thread.
const DROP_WITHIN: Duration = Duration::from_secs(2);

/// What a session needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Host (a name or an address) and port of each server.
    pub servers: Vec<(String, u16)>,
    /// The znode that is the root of all paths, without a trailing slash.
    pub chroot: Option<String>,
    /// The session timeout to ask for; the servers may grant another.
    pub session_timeout: Duration,
    /// Schemes and credentials. If there are any, znodes are created for their bearer alone, else for anyone.
    pub auth: Vec<(String, Vec<u8>)>,
    /// How many calls may be in flight at once.
    pub threads: usize,
}

/// What a session reports, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SessionEvent {
    /// A new session; `timeout` is what the server granted.
    Up { generation: u64, timeout: Duration, server: SocketAddr },
    /// It is gone, and so are its watches. Its ephemerals may exist for as long as its timeout.
    Down { generation: u64, why: String },
    /// A round of connecting failed, for another reason than the round before. Rounds go on.
    Failed { why: Failure },
    /// A watch saw something. Two persistent watches that overlap both report a change.
    Changed { generation: u64, path: String, kind: ChangeKind },
    /// The answer to a call.
    Reply { id: CallId, result: CallResult },
}

/// One server that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Attempt {
    pub server: SocketAddr,
    pub why: String,
}

/// Why a round of connecting failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No server's name has an address.
    Unresolvable {
        /// Each name, and why.
        names: Vec<(String, String)>,
    },
    /// No server serves.
    Unreachable {
        /// The servers, in the order of their addresses.
        tried: Vec<Attempt>,
        /// The names without an address, and why.
        unresolved: Vec<(String, String)>,
    },
    /// The ensemble serves, but the znode that shall be our root isn't there.
    NoChroot {
        /// The chroot.
        path: String,
    },
    /// The ensemble serves, but takes no credentials of this scheme, or not these.
    AuthFailed {
        /// The scheme.
        scheme: String,
    },
    /// The servers serve nobody who has given no credentials, or none of the schemes that they ask for.
    AuthNeeded,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        match self {
            Failure::Unresolvable { names } => {
                f.write_str("no server's name can be resolved: ")?;
                parts.extend(names.iter().map(|(name, why)| format!("{name}: {why}")));
            }
            Failure::Unreachable { tried, unresolved } => {
                f.write_str("no server can be used: ")?;
                parts.extend(tried.iter().map(|attempt| format!("{}: {}", attempt.server, attempt.why)));
                parts.extend(unresolved.iter().map(|(name, why)| format!("{name}: {why}")));
            }
            Failure::NoChroot { path } => parts.push(format!("the chroot {path} does not exist: create it")),
            Failure::AuthFailed { scheme } => {
                parts.push(format!("the servers do not accept the credentials of scheme {scheme:?}"));
            }
            Failure::AuthNeeded => parts.push(
                "the servers serve nobody without credentials of a scheme that they ask for \
                 (enforce.auth.schemes): give them with --auth"
                    .to_owned(),
            ),
        }
        f.write_str(&parts.join("; "))
    }
}

/// How a session stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The server confirmed that it is closed: its ephemerals are gone.
    Closed,
    /// No answer came within the limit: its ephemerals may exist for as long as its timeout.
    Unconfirmed,
    /// There was none.
    NothingUp,
}

/// A session, or the attempt to have one. Dropping it closes it in the background.
pub struct Session {
    pool: Arc<CallPool>,
    pulse: Sender<()>,
    ended: Receiver<Stopped>,
}

impl Session {
    /// Starts connecting. Everything else comes as an event.
    pub fn start(settings: Settings, events: Sender<SessionEvent>) -> anyhow::Result<Session> {
        Session::start_limited(settings, events, REQUESTS_MAX)
    }

    /// Like [`Session::start`], with another limit than [`REQUESTS_MAX`].
    pub fn start_limited(
        settings: Settings,
        events: Sender<SessionEvent>,
        requests_max: u64,
    ) -> anyhow::Result<Session> {
        validate(&settings)?;
        let pool =
            CallPool::start(events, settings.threads, requests_max).context("cannot start a thread")?;
        let (pulse, pulses) = bounded(1);
        let seed = RandomState::new().build_hasher().finish();
        let (found, enough) = bounded(1);
        let supervisor = Supervisor::new(settings, Arc::clone(&pool), (pulse.clone(), pulses), enough, seed);
        let (end, ended) = bounded(1);
        let started = threads::spawn("zk-session", move || {
            let _ = end.send(supervisor.run());
        });
        if started.is_err() {
            pool.over();
        }
        started.context("cannot start a thread")?;
        let session = Session { pool, pulse, ended };
        // Without them there would never be a connection. To try takes as long as a quorum write or two, so it is done
        // while the first server is being asked; nothing is made of the answer before.
        resource_check::check(connection::DESCRIPTORS, connection::THREADS)?;
        let _ = found.send(clock::now());
        Ok(session)
    }

    /// Makes a call over the connection of this generation, and over no other. Never blocks: the answer comes as an
    /// event, exactly once. If that connection is not up (any more), it is [`NotSent`](crate::machine::CallError):
    /// then, and only then, it may come after the `Down`, which was on its way already.
    pub fn call(&self, generation: u64, id: CallId, call: Call) {
        self.pool.call(generation, id, call);
    }

    /// Closes the session, within the limit. What is outstanding is answered before the last `Down`.
    pub fn stop(self, limit: Duration) -> Stopped {
        if !self.request_stop(limit) {
            // A round of connecting may be under way. It ends by itself, and no session was reported.
            return Stopped::NothingUp;
        }
        self.ended.recv_timeout(limit + STOP_SLACK).unwrap_or(Stopped::Unconfirmed)
    }

    fn request_stop(&self, limit: Duration) -> bool {
        let up = self.pool.stop(clock::now() + limit);
        let _ = self.pulse.try_send(()); // full: the supervisor is about to check anyway
        up
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.pool.stop_by().is_none() {
            self.request_stop(DROP_WITHIN);
        }
    }
}

fn validate(settings: &Settings) -> anyhow::Result<()> {
    ensure!(!settings.servers.is_empty(), "no server is named");
    ensure!(settings.threads > 0, "a session needs at least one thread for calls");
    ensure!(!settings.session_timeout.is_zero(), "the session timeout is zero");
    ensure!(settings.session_timeout.as_millis() <= i32::MAX as u128, "the session timeout is too long");
    if let Some(chroot) = &settings.chroot {
        ensure!(
            chroot != "/" && request::is_valid_path(chroot),
            "the chroot {chroot:?} is not a valid path below the root"
        );
    }
    Ok(())
}
