//! The crate's client, with the power to end it, and the life of a connection.
//!
//! The crate would reconnect by itself, badly: it loses watches and credentials, replaces an expired session without a
//! word, and spins when no server is there. So its I/O thread is unwound at the first loss, and its power to block us
//! is taken away by [`Killer`]: a kill frees every caller within milliseconds.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::anyhow;
use crossbeam_channel::Sender;
use zookeeper::{Acl, AddWatchMode, WatchedEvent, WatchedEventType, Watcher, ZkError, ZkState, ZooKeeper};

use super::descriptors::{Killer, open_sockets};
use super::{PATH_MAX, Settings};
use crate::clock::now;
use crate::machine::{ChangeKind, Instant, WatchMode};
use crate::threads;

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It is lost, or can't be trusted.
    Lost(String),
    /// It works, but has made as many requests as one connection may.
    Worn,
}

/// Whether a connection lives; shared by all who use it.
pub struct ConnectionLife {
    /// The number of the connection.
    pub generation: u64,
    end: OnceLock<End>,
    /// Set before a kill: from then on the I/O thread is unwound whatever it reports.
    doomed: AtomicBool,
    last_answer_nanos: AtomicU64,
    pulse: Sender<()>,
}

impl ConnectionLife {
    /// A life that wakes the supervisor through `pulse` when it ends.
    pub fn new(generation: u64, pulse: Sender<()>) -> ConnectionLife {
        let (end, doomed) = (OnceLock::new(), AtomicBool::new(false));
        ConnectionLife { generation, end, doomed, last_answer_nanos: AtomicU64::new(0), pulse }
    }

    /// Ends it; the first reason stays. Never blocks.
    pub fn end(&self, end: End) {
        if self.end.set(end).is_ok() {
            self.wake();
        }
    }

    /// Wakes the supervisor, which checks what is due.
    pub fn wake(&self) {
        let _ = self.pulse.try_send(()); // full: it is about to check anyway
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
            // The answer to our own close request: the thread answers the caller, then it ends by itself.
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
pub type Report = Arc<dyn Fn(String, ChangeKind) + Send + Sync>;

/// The default watcher. The event thread owns it, so when it is dropped the thread is gone.
struct Sink {
    life: Arc<ConnectionLife>,
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

/// What a watch saw; `None` for what is no change of a znode that we could name in a call.
fn change(event: WatchedEvent) -> Option<(String, ChangeKind)> {
    let kind = match event.event_type {
        WatchedEventType::NodeCreated => ChangeKind::Created,
        WatchedEventType::NodeDeleted => ChangeKind::Deleted,
        WatchedEventType::NodeDataChanged => ChangeKind::Data,
        WatchedEventType::NodeChildrenChanged => ChangeKind::Children,
        WatchedEventType::None | WatchedEventType::DataWatchRemoved | WatchedEventType::ChildWatchRemoved => {
            return None;
        }
    };
    let path = event.path.filter(|path| path.len() <= PATH_MAX)?;
    // The chroot's own path comes as "".
    Some((if path.is_empty() { "/".to_owned() } else { path }, kind))
}

fn report(to: &Report, event: WatchedEvent) {
    if let Some((path, kind)) = change(event) {
        to(path, kind);
    }
}

/// The crate's client with the power to end it.
pub struct Client {
    /// `None` only while it is being dropped.
    zookeeper: Option<ZooKeeper>,
    killer: Option<Killer>,
    life: Arc<ConnectionLife>,
    /// The ACL of what it creates.
    pub acl: &'static Vec<Acl>,
    report: Report,
    /// Answers and events that the crate has come up with.
    handed_over: Arc<AtomicU64>,
    /// Paths with a persistent watch.
    watched: Mutex<HashSet<String>>,
}

impl Client {
    /// Makes a client of one server (with the chroot behind it) whose life is this one.
    pub fn make(
        target: &str,
        settings: &Settings,
        life: &Arc<ConnectionLife>,
        report: &Report,
    ) -> anyhow::Result<Client> {
        let before = open_sockets()?;
        let handed_over = Arc::default();
        let sink = Sink {
            life: Arc::clone(life),
            report: Arc::clone(report),
            handed_over: Arc::clone(&handed_over),
        };
        let asked = settings.session_timeout;
        // It panics when the network is unreachable or descriptors run out.
        let zookeeper = catch_unwind(AssertUnwindSafe(|| ZooKeeper::connect(target, asked, sink)))
            .map_err(|_| anyhow!("the client could not open a socket"))?
            .map_err(|error| anyhow!("the client did not start: {error:?}"))?;
        let listener = Arc::clone(life);
        zookeeper.add_listener(move |state| listener.hear(state));
        let acl = if settings.auth.is_empty() { Acl::open_unsafe() } else { Acl::creator_all() };
        let mut client = Client {
            zookeeper: Some(zookeeper),
            killer: None,
            life: Arc::clone(life),
            acl,
            report: Arc::clone(report),
            handed_over,
            watched: Mutex::default(),
        };
        // If it isn't found, the crate's own `close` has to do, on the reaper's thread.
        client.killer = Some(Killer::find(&before)?);
        Ok(client)
    }
    /// The crate's client.
    pub fn zookeeper(&self) -> &ZooKeeper {
        self.zookeeper.as_ref().expect("it is taken out only by drop")
    }

    /// Whether a persistent watch covers the path itself. A one-shot watch on top would make a server before 3.9 forget
    /// the persistent one (ZOOKEEPER-4466), and the persistent one reports the same changes.
    pub fn is_watched(&self, path: &str) -> bool {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).contains(path)
    }

    /// Sets a persistent watch.
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

    /// The life of its connection.
    pub fn life(&self) -> &ConnectionLife {
        &self.life
    }

    /// Keeps the socket to this server at hand for a kill.
    pub fn take_socket(&self, server: SocketAddr) -> anyhow::Result<()> {
        self.killer.as_ref().map_or(Ok(()), |killer| killer.take_socket(server))
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

    /// Ends it, and frees all who wait for an answer. Never blocks.
    pub fn kill(&self) {
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
