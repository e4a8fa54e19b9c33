//! One connection, which is one session: made, used, and ended for ever at the first doubt.
//!
//! It connects to a server, proves that the session works, beats and closes. What ends it is in `client`.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded};
use zookeeper::{ZkError, ZooKeeper};

use super::client::{Client, ConnectionLife, End, Report};
use super::meter;
use super::request;
use super::{Failure, Settings};
use crate::{resource_check, threads};

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

type Errand = Box<dyn FnOnce(&ZooKeeper) + Send>;

/// A connection that works, or did.
pub struct Connection {
    pub client: Arc<Client>,
    /// To the keeper: a thread for the session layer's own requests, whatever else is in flight.
    errands: Sender<Errand>,
    /// Whether it lives.
    pub life: Arc<ConnectionLife>,
    /// The server at the other end.
    pub server: SocketAddr,
    /// The negotiated session timeout.
    pub timeout: Duration,
    /// A longer request makes the server hang up, as far as is known.
    pub request_max: usize,
    pub chroot_length: usize,
}

/// Everything needed for making a connection to one server.
pub struct ConnectionPlan<'a> {
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
    pub life: Arc<ConnectionLife>,
    /// Where watch events go.
    pub report: Report,
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
    pub fn make(plan: ConnectionPlan<'_>) -> Result<Connection, NotMade> {
        let this_server = |error: anyhow::Error| NotMade::ThisServer(format!("{error:#}"));
        let ConnectionPlan { settings, server, timeout, request_max, answer_within, life, report, enough } =
            plan;
        let client = Arc::new(make_client(server, settings, enough, &life, &report).map_err(this_server)?);
        meter::watch(&client).map_err(this_server)?;
        let errands = start_keeper(Arc::clone(&client)).map_err(this_server)?;
        let chroot_length = settings.chroot.as_ref().map_or(0, String::len);
        let connection = Connection { client, errands, life, server, timeout, request_max, chroot_length };
        connection.prove(settings, answer_within)?;
        connection.client.take_socket(server).map_err(this_server)?;
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

    /// Ends the connection, and frees the threads that wait for an answer. Never blocks.
    pub fn kill(&self) {
        self.client.kill();
    }

    /// The first requests: credentials, since a server may insist on them before all else, then a check of the
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

    /// Has another thread do something; `None` if that did not end within the limit.
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

/// Made one at a time in a process, so that each finds its own descriptors.
fn make_client(
    server: SocketAddr,
    settings: &Settings,
    enough: bool,
    life: &Arc<ConnectionLife>,
    report: &Report,
) -> anyhow::Result<Client> {
    // A client that panicked while it was made poisons nothing that we use.
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    // Where it gets none the crate panics, partly on threads of its own.
    if !enough {
        resource_check::check(DESCRIPTORS, THREADS)?;
    }
    let target = format!("{server}{}", settings.chroot.as_deref().unwrap_or(""));
    Client::make(&target, settings, life, report)
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
            // A chroot that we may not read exists.
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
                client.life().end(End::Lost("malformed answer".to_owned()));
            }
            client.came_back();
        }
    };
    threads::spawn_small("zk-keeper", keep).context("no thread for the heartbeat")?;
    Ok(errands)
}
