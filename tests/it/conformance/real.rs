//! The real side: sessions of the project's session layer, each through a forwarder that can cut it off.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use zkmw::machine::{Call, CallError, CallId, ChangeKind, CreateMode, Refusal, Reply};
use zkmw::zk::{Session, SessionEvent, Settings, Stopped};

use super::super::harness::{Ensemble, LIMIT, eventually};
use super::script::{Script, Seen, Step};

/// The session timeout: short for the sake of those that expire, long enough for a busy machine.
const T: Duration = Duration::from_secs(4);

/// The sessions.
pub struct Real {
    clients: Vec<Client>,
}

impl Real {
    /// A session at each of these servers (counted from 0).
    pub fn start(ensemble: &Arc<Ensemble>, servers: &[usize]) -> Real {
        let ports = ensemble.ports();
        Real { clients: servers.iter().map(|server| Client::start(ports[*server])).collect() }
    }

    pub fn play(&mut self, script: &Script) -> Vec<Seen> {
        script.steps.iter().map(|step| self.step(step)).collect()
    }

    pub fn stop(self) {
        for client in self.clients {
            assert_eq!(client.session.stop(LIMIT), Stopped::Closed);
        }
    }

    fn step(&mut self, step: &Step) -> Seen {
        match step {
            Step::Call { by, call } => Seen::Reply(self.clients[*by].call(call.clone())),
            Step::ReadChanges { by, marker, ordered } => {
                let mut changes = self.clients[*by].read_changes(marker);
                if !ordered {
                    changes.sort_by_key(|(path, kind)| (path.clone(), *kind as u8));
                }
                Seen::Changes(changes)
            }
            Step::Reopen { by } => {
                self.clients[*by].reopen();
                Seen::Nothing
            }
            Step::Cut { by } => {
                self.clients[*by].cut();
                Seen::Nothing
            }
            Step::Expire { by, witness } => {
                let client = &mut self.clients[*by];
                eventually(LIMIT, "the session expires", || {
                    let call = Call::Exists { path: witness.clone(), watch: false };
                    (client.call(call) == Err(Refusal::NoNode)).then_some(())
                });
                Seen::Nothing
            }
        }
    }
}

struct Client {
    forwarder: Forwarder,
    session: Session,
    events: Receiver<SessionEvent>,
    generation: u64,
    calls: u64,
    changes: VecDeque<(String, ChangeKind)>,
}

fn open(port: u16) -> (Session, Receiver<SessionEvent>) {
    let settings = Settings {
        servers: vec![("127.0.0.1".to_owned(), port)],
        chroot: None,
        session_timeout: T,
        auth: Vec::new(),
        threads: 1,
    };
    let (sender, events) = bounded(1_000);
    (Session::start(settings, sender).expect("a session"), events)
}

impl Client {
    fn start(port: u16) -> Client {
        let forwarder = Forwarder::start(port);
        let (session, events) = open(forwarder.port);
        let mut client =
            Client { forwarder, session, events, generation: 0, calls: 0, changes: VecDeque::new() };
        client.wait_up();
        client
    }

    fn next(&mut self) -> SessionEvent {
        self.events.recv_timeout(LIMIT).expect("an event")
    }

    fn wait_up(&mut self) {
        loop {
            match self.next() {
                SessionEvent::Up { generation, .. } => {
                    self.generation = generation;
                    self.changes.clear();
                    return;
                }
                SessionEvent::Down { .. } | SessionEvent::Failed { .. } => {}
                other => panic!("before the session is up: {other:?}"),
            }
        }
    }

    /// One event of this connection; the answer, if it is that.
    fn hear(&mut self) -> Option<(CallId, Result<Reply, CallError>)> {
        match self.next() {
            SessionEvent::Reply { id, result } => return Some((id, result)),
            SessionEvent::Changed { path, kind, .. } => self.changes.push_back((path, kind)),
            other => panic!("nobody asked for it: {other:?}"),
        }
        None
    }

    fn call(&mut self, call: Call) -> Result<Reply, Refusal> {
        self.calls += 1;
        let id = CallId(self.calls);
        self.session.call(self.generation, id, call.clone());
        let limit = Instant::now() + LIMIT;
        while Instant::now() < limit {
            let Some((of, result)) = self.hear() else { continue };
            assert_eq!(of, id);
            return result.map_err(|error| match error {
                CallError::Refused(refusal) => refusal,
                lost => panic!("{call:?}: {lost}"),
            });
        }
        panic!("no answer to {call:?}");
    }

    /// The changes that were reported until now: the marker's event comes after all others.
    fn read_changes(&mut self, marker: &str) -> Vec<(String, ChangeKind)> {
        let path = marker.to_owned();
        assert_eq!(self.call(Call::Exists { path: path.clone(), watch: true }), Err(Refusal::NoNode));
        self.call(Call::Create { path, data: Vec::new(), mode: CreateMode::Persistent }).expect("a marker");
        loop {
            if let Some(at) = self.changes.iter().position(|(path, _)| path == marker) {
                let changes = self.changes.drain(..at).collect();
                self.changes.pop_front();
                return changes;
            }
            assert_eq!(self.hear(), None);
        }
    }

    fn reopen(&mut self) {
        let (session, events) = open(self.forwarder.port);
        let closing = std::mem::replace(&mut self.session, session);
        assert_eq!(closing.stop(LIMIT), Stopped::Closed);
        self.events = events;
        self.wait_up();
    }

    fn cut(&mut self) {
        self.forwarder.cut();
        loop {
            match self.next() {
                SessionEvent::Down { .. } => break,
                SessionEvent::Changed { .. } => {}
                other => panic!("before the session is down: {other:?}"),
            }
        }
        self.wait_up();
    }
}

/// Passes connections on to a server, and can cut them.
struct Forwarder {
    port: u16,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Forwarder {
    fn start(to: u16) -> Forwarder {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let open = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&open);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                pump(near.try_clone().expect("a descriptor"), far.try_clone().expect("a descriptor"));
                pump(far, near.try_clone().expect("a descriptor"));
                shared.lock().expect("no panic").push(near);
            }
        });
        Forwarder { port, open }
    }

    fn cut(&self) {
        for stream in self.open.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
}
