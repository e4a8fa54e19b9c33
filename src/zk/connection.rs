//! One connection, which is one session: made, used, and ended for ever at the first doubt.
//!
//! The crate would reconnect by itself, badly: it loses watches and credentials, replaces an expired session
//! without a word, and spins when no server is there. So its I/O thread is unwound at the first loss, and its
//! power to block us is taken away by [`Killer`]: a kill frees every caller within milliseconds.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use crossbeam_channel::{Receiver, Sender, bounded};
use zookeeper::{Acl, AddWatchMode, WatchedEvent, Watcher, ZkError, ZkState, ZooKeeper};

use super::descriptors::{Killer, open_sockets};
use super::meter;
use super::request;
use super::{Failure, Settings};
use crate::clock::now;
use crate::machine::{ChangeKind, Instant, WatchMode};
use crate::{limits, threads};

/// Requests of the session layer itself that may wait for the keeper: a heartbeat and the closing.
const ERRANDS_MAX: usize = 4;

/// So often a new connection's first request is made until it is not refused, as servers refuse when they throttle
/// requests; then another server may be less busy…
const FIRST_TRIES: u32 = 10;
/// …with such pauses. In all that takes less time than a server has for its first answer.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What one connection needs of descriptors: the crate's epoll instance, its socket, and two pipes that wake it; the
/// killer's duplicates of the first two, and its own pipe; and one directory in `/proc` that is read.
pub const DESCRIPTORS: usize = 10;
/// And of threads: three of the crate's, the keeper, and the meter.
pub const THREADS: usize = 5;

/// Clients are made one at a time in a process, so that each finds its own descriptors.
static MAKING: Mutex<()> = Mutex::new(());

/// Why a connection came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It is lost, or can't be trusted.
    Lost(String),
    /// It works, but has made as many requests as one connection may.
    Worn,
}

/// Whether a connection lives; shared by all who use it.
pub struct Life {
    /// The number of the connection.
    pub generation: u64,
    end: OnceLock<End>,
    /// Set before a kill: from then on the I/O thread is unwound whatever it reports.
    doomed: AtomicBool,
    last_answer_nanos: AtomicU64,
    pulse: Sender<()>,
}

impl Life {
    /// A life that wakes the supervisor through `pulse` when it ends.
    pub fn new(generation: u64, pulse: Sender<()>) -> Life {
        let (end, doomed) = (OnceLock::new(), AtomicBool::new(false));
        Life { generation, end, doomed, last_answer_nanos: AtomicU64::new(0), pulse }
    }

    /// Ends it; the first reason stays. Never blocks.
    pub fn end(&self, end: End) {
        if self.end.set(end).is_ok() {
            self.wake();
        }
    }

    /// Has the supervisor look what there is to do.
    pub fn wake(&self) {
        let _ = self.pulse.try_send(()); // full: it is about to look anyway
    }

    /// Why it has ended, if it has.
    pub fn ended(&self) -> Option<&End> {
        self.end.get()
    }

    /// Takes note that the server answered something.
    pub fn answered(&self) {
        self.last_answer_nanos.fetch_max(now().as_nanos(), Ordering::Relaxed);
    }

    /// When the server last answered anything.
    pub fn last_answer(&self) -> Instant {
        Instant::from_nanos(self.last_answer_nanos.load(Ordering::Relaxed))
    }

    /// What the crate's I/O thread reports. It is that thread which runs this, so it can be ended here.
    fn hear(&self, state: ZkState) {
        match state {
            ZkState::Connected if !self.doomed.load(Ordering::SeqCst) => {}
            // The answer to our own closing: the thread ends by itself, after it has told the caller.
            ZkState::Closed => self.end(End::Lost("the session is closed".to_owned())),
            other => {
                self.end(End::Lost(format!("the connection broke ({other:?})")));
                // No panic hook runs for this. What the thread owned is dropped: its socket is closed, and
                // every caller that waits for an answer gets an error.
                resume_unwind(Box::new("connection given up"));
            }
        }
    }
}

/// Where watch events go: out of the crate's event thread at once, and nothing else happens there.
type Report = Arc<dyn Fn(String, ChangeKind) + Send + Sync>;

/// The default watcher. The event thread owns it, so when it is dropped the thread is gone.
struct Sink {
    life: Arc<Life>,
    report: Report,
    handed_over: Arc<AtomicU64>,
}

impl Watcher for Sink {
    fn handle(&self, event: WatchedEvent) {
        self.handed_over.fetch_add(1, Ordering::Relaxed);
        report(&self.report, event);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.life.end(End::Lost("the client's threads ended".to_owned()));
    }
}

fn report(to: &Report, event: WatchedEvent) {
    if let Some((path, kind)) = request::change(event) {
        to(path, kind);
    }
}

/// The crate's client with the power to end it.
pub struct Client {
    /// `None` only while it is being dropped.
    zookeeper: Option<ZooKeeper>,
    killer: Option<Killer>,
    life: Arc<Life>,
    /// The ACL of what it creates.
    pub acl: &'static Vec<Acl>,
    report: Report,
    /// Answers and events that the crate has come up with.
    handed_over: Arc<AtomicU64>,
    /// Paths with a standing watch.
    watched: Mutex<HashSet<String>>,
}

impl Client {
    /// The crate's client.
    pub fn zookeeper(&self) -> &ZooKeeper {
        self.zookeeper.as_ref().expect("it is taken out only by drop")
    }

    /// Whether a standing watch covers the path itself. Asking for a one-shot watch on top would make a server
    /// before 3.9 forget the standing one (ZOOKEEPER-4466), and the standing one tells all that it would tell.
    pub fn is_watched(&self, path: &str) -> bool {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).contains(path)
    }

    /// Sets a standing watch.
    pub fn watch(&self, path: &str, mode: WatchMode) -> Result<(), ZkError> {
        let mode = match mode {
            WatchMode::Node => AddWatchMode::Persistent,
            WatchMode::Tree => AddWatchMode::PersistentRecursive,
        };
        let (report_to, handed_over) = (Arc::clone(&self.report), Arc::clone(&self.handed_over));
        // The crate calls each watcher of a path that was ever added. One of them has to report.
        if self.is_watched(path) {
            return self.zookeeper().add_watch(path, mode, |_: WatchedEvent| {});
        }
        let watcher = move |event: WatchedEvent| {
            handed_over.fetch_add(1, Ordering::Relaxed);
            report(&report_to, event);
        };
        self.zookeeper().add_watch(path, mode, watcher)?;
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned());
        Ok(())
    }

    /// How many answers and events the crate has come up with.
    pub fn handed_over(&self) -> u64 {
        self.handed_over.load(Ordering::Relaxed)
    }

    /// Takes note that the crate came back from a call.
    pub fn came_back(&self) {
        self.handed_over.fetch_add(1, Ordering::Relaxed);
    }

    /// Its socket, and whether it stays the same.
    pub fn socket(&self) -> (Option<Arc<OwnedFd>>, bool) {
        self.killer.as_ref().map_or((None, false), Killer::socket)
    }

    /// Whether its connection has ended.
    pub fn has_ended(&self) -> bool {
        self.life.ended().is_some()
    }

    /// Ends it for this reason.
    pub fn give_up(&self, why: String) {
        self.life.end(End::Lost(why));
        self.kill();
    }

    fn kill(&self) {
        self.life.doomed.store(true, Ordering::SeqCst);
        self.life.end(End::Lost("given up".to_owned()));
        if let Some(killer) = &self.killer {
            killer.kill();
        }
    }
}

impl Drop for Client {
    /// The crate's own `drop` waits for the server. So the connection is killed first, and even then the drop
    /// is left to a thread that may wait.
    fn drop(&mut self) {
        self.kill();
        let doomed = (self.zookeeper.take(), self.killer.take());
        // In this order: the killer's pipe must hang in the epoll instance until the I/O thread is gone. If
        // there is no thread to be had, it is done here.
        let _ = threads::spawn_small("zk-reaper", move || {
            let (zookeeper, killer) = doomed;
            drop(zookeeper);
            drop(killer);
        });
    }
}

type Errand = Box<dyn FnOnce(&ZooKeeper) + Send>;

/// A connection that works, or did.
pub struct Connection {
    pub client: Arc<Client>,
    /// To the keeper: a thread for the session layer's own requests, whatever else is in flight.
    errands: Sender<Errand>,
    /// Whether it lives.
    pub life: Arc<Life>,
    /// The server at the other end.
    pub server: SocketAddr,
    /// The negotiated session timeout.
    pub timeout: Duration,
    /// A longer request makes the server hang up, as far as is known.
    pub request_max: usize,
    pub chroot_length: usize,
}

/// Everything needed for making a connection to one server.
pub struct Plan<'a> {
    /// What the user set.
    pub settings: &'a Settings,
    /// A server that granted us a session a moment ago.
    pub server: SocketAddr,
    /// The session timeout that it granted.
    pub timeout: Duration,
    /// A longer request makes the server hang up, as far as is known.
    pub request_max: usize,
    /// How long the server may take for each of the first requests.
    pub answer_within: Duration,
    /// It was found just now that there are descriptors and threads for it.
    pub enough: bool,
    /// The new connection's life.
    pub life: Arc<Life>,
    /// Where watch events go.
    pub report: Arc<dyn Fn(String, ChangeKind) + Send + Sync>,
}

/// Why a connection could not be made.
pub enum NotMade {
    /// Because of this server; another one may do.
    ThisServer(String),
    /// Every server would say the same.
    Verdict(Failure),
}

impl Connection {
    /// Connects to one server, and proves that the session works and that the chroot is there.
    pub fn make(plan: Plan<'_>) -> Result<Connection, NotMade> {
        let this_server = |error: anyhow::Error| NotMade::ThisServer(format!("{error:#}"));
        let client = Arc::new(make_client(&plan).map_err(this_server)?);
        meter::watch(&client).map_err(this_server)?;
        let errands = start_keeper(Arc::clone(&client)).map_err(this_server)?;
        let Plan { settings, server, timeout, request_max, answer_within, life, .. } = plan;
        let chroot_length = settings.chroot.as_ref().map_or(0, String::len);
        let connection = Connection { client, errands, life, server, timeout, request_max, chroot_length };
        connection.prove(settings, answer_within)?;
        if let Some(killer) = &connection.client.killer {
            killer.take_socket(server).map_err(this_server)?;
        }
        connection.life.answered();
        Ok(connection)
    }

    /// Starts a heartbeat. Whether it was answered comes through the receiver, announced by a pulse.
    pub fn beat(&self) -> Receiver<bool> {
        let (answer, receiver) = bounded(1);
        let life = Arc::clone(&self.life);
        let errand: Errand = Box::new(move |zookeeper| {
            // Whatever it answers, it answers in this session.
            let answered = zookeeper.exists("/", false).map_or_else(request::is_answer, |_| true);
            if answered {
                life.answered();
            }
            let _ = answer.send(answered);
            life.wake();
        });
        let _ = self.errands.try_send(errand); // full: then there will be no answer
        receiver
    }

    /// Closes the session; whether the server confirmed it within the limit.
    pub fn close(&self, limit: Duration) -> bool {
        self.ask(limit, |zookeeper| zookeeper.close().is_ok()).unwrap_or(false)
    }

    /// Ends the connection, and frees whoever waits for an answer. Never blocks.
    pub fn kill(&self) {
        self.client.kill();
    }

    /// The first requests: credentials, since a server may insist on them before all else, then a look at the
    /// chroot.
    fn prove(&self, settings: &Settings, within: Duration) -> Result<(), NotMade> {
        let (auth, chroot) = (settings.auth.clone(), settings.chroot.clone().unwrap_or_default());
        let limit = within * u32::try_from(auth.len() + 1).unwrap_or(u32::MAX);
        let why = match self.ask(limit, move |zookeeper| ask_first(zookeeper, auth, chroot)) {
            Some(Ok(())) if self.life.ended().is_none() => return Ok(()),
            Some(Ok(())) => "the connection broke at once".to_owned(),
            Some(Err(NotMade::ThisServer(why))) => match self.life.ended() {
                Some(End::Lost(end)) => format!("{why}: {end}"),
                Some(End::Worn) | None => why,
            },
            Some(Err(verdict @ NotMade::Verdict(_))) => {
                self.close(within); // so that trying again and again does not pile up sessions
                return Err(verdict);
            }
            None => format!("granted a session, but did not answer within {limit:?}"),
        };
        Err(NotMade::ThisServer(why))
    }

    /// Has the keeper do something; `None` if that did not come to an end within the limit.
    fn ask<R: Send + 'static>(
        &self,
        limit: Duration,
        errand: impl FnOnce(&ZooKeeper) -> R + Send + 'static,
    ) -> Option<R> {
        let (answer, receiver) = bounded(1);
        let errand: Errand = Box::new(move |zookeeper| {
            let _ = answer.send(errand(zookeeper));
        });
        self.errands.try_send(errand).ok()?;
        receiver.recv_timeout(limit).ok()
    }
}

impl Drop for Connection {
    /// The keeper may be blocked in a request, and holds the client until it is freed.
    fn drop(&mut self) {
        self.kill();
    }
}

fn make_client(plan: &Plan<'_>) -> anyhow::Result<Client> {
    // A client that panicked while it was made poisons nothing that we use.
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    // Where it gets none the crate panics, partly on threads of its own.
    if !plan.enough {
        limits::check(DESCRIPTORS, THREADS)?;
    }
    let before = open_sockets()?;
    let target = format!("{}{}", plan.server, plan.settings.chroot.as_deref().unwrap_or(""));
    let handed_over = Arc::default();
    let sink = Sink {
        life: Arc::clone(&plan.life),
        report: Arc::clone(&plan.report),
        handed_over: Arc::clone(&handed_over),
    };
    let asked = plan.settings.session_timeout;
    // It panics when the network is unreachable or descriptors run out.
    let zookeeper = catch_unwind(AssertUnwindSafe(|| ZooKeeper::connect(&target, asked, sink)))
        .map_err(|_| anyhow!("the client could not open a socket"))?
        .map_err(|error| anyhow!("the client did not start: {error:?}"))?;
    let listener = Arc::clone(&plan.life);
    zookeeper.add_listener(move |state| listener.hear(state));
    let acl = if plan.settings.auth.is_empty() { Acl::open_unsafe() } else { Acl::creator_all() };
    let mut client = Client {
        zookeeper: Some(zookeeper),
        killer: None,
        life: Arc::clone(&plan.life),
        acl,
        report: Arc::clone(&plan.report),
        handed_over,
        watched: Mutex::default(),
    };
    // If it isn't found, the crate's own `close` has to do, on the reaper's thread.
    client.killer = Some(Killer::find(&before)?);
    Ok(client)
}

fn ask_first(zookeeper: &ZooKeeper, auth: Vec<(String, Vec<u8>)>, chroot: String) -> Result<(), NotMade> {
    let this_server = |why| Err(NotMade::ThisServer(why));
    for (scheme, credential) in auth {
        match zookeeper.add_auth(&scheme, credential) {
            Ok(()) => {}
            Err(ZkError::AuthFailed) => return Err(NotMade::Verdict(Failure::AuthFailed { scheme })),
            Err(error) => return this_server(format!("no answer to the credentials: {error:?}")),
        }
    }
    for tries in 0..FIRST_TRIES {
        match zookeeper.exists("/", false) {
            // A chroot that we may not look at is there.
            Ok(Some(_)) | Err(ZkError::NoAuth) => return Ok(()),
            Ok(None) => return Err(NotMade::Verdict(Failure::NoChroot { path: chroot })),
            // The crate says so for each code that it does not know. One of them is of a server that serves nobody
            // without credentials (`enforce.auth.enabled`), and it ends the session with that. After any other, such as
            // that of a server that throttles requests, the next is answered.
            Err(ZkError::Unimplemented) => thread::sleep(FIRST_PAUSE),
            Err(_) if tries == 1 => return Err(NotMade::Verdict(Failure::AuthNeeded)),
            Err(error) => return this_server(format!("no answer to the first request: {error:?}")),
        }
    }
    this_server("it refuses requests, as servers do that throttle them".to_owned())
}

fn start_keeper(client: Arc<Client>) -> anyhow::Result<Sender<Errand>> {
    let (errands, received) = bounded::<Errand>(ERRANDS_MAX);
    let keep = move || {
        for errand in received {
            // The crate panics on a malformed answer. The errand's receiver sees that no answer came.
            if catch_unwind(AssertUnwindSafe(|| errand(client.zookeeper()))).is_err() {
                client.life.end(End::Lost("malformed answer".to_owned()));
            }
            client.came_back();
        }
    };
    threads::spawn_small("zk-keeper", keep).context("no thread for the heartbeat")?;
    Ok(errands)
}
