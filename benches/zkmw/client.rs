//! A connection of the benchmark's own, through the project's session layer: calls one after the other, or many in
//! flight. Knows znodes and not what they mean; must not retry, since a number measured over a failure means nothing.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use zkmw::machine::{Call, CallError, CallId, CallResult, CreateMode, Refusal, Reply, Stat};
use zkmw::zk::{Session, SessionEvent, Settings};

/// The session timeout that the benchmark asks for; longer than any pause of a busy machine.
const SESSION: Duration = Duration::from_secs(30);

/// How long anything that this client waits for may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Events that may lie unread.
const EVENTS: usize = 10_000;

/// A session that is up.
pub struct Client {
    session: Session,
    events: Receiver<SessionEvent>,
    generation: u64,
    next: u64,
    /// Paths that a watch reported, and nobody has asked for yet.
    changed: Vec<String>,
}

impl Client {
    /// Connects, with as many calls in flight at once as there are `threads`.
    pub fn connect(connect: &str, threads: usize) -> Client {
        let server = |text: &str| {
            let (host, port) = text.rsplit_once(':').expect("a port");
            (host.to_string(), port.parse().expect("a port"))
        };
        let settings = Settings {
            servers: connect.split(',').map(server).collect(),
            chroot: None,
            session_timeout: SESSION,
            auth: Vec::new(),
            threads,
        };
        let (sender, events) = bounded(EVENTS);
        let session = Session::start(settings, sender).expect("a session");
        let mut client = Client { session, events, generation: 0, next: 0, changed: Vec::new() };
        while client.generation == 0 {
            if let SessionEvent::Up { generation, .. } = client.event() {
                client.generation = generation;
            }
        }
        client
    }

    fn event(&self) -> SessionEvent {
        self.events.recv_timeout(LIMIT).expect("the session reports something")
    }

    fn send(&mut self, call: Call) -> CallId {
        self.next += 1;
        let id = CallId(self.next);
        self.session.call(self.generation, id, call);
        id
    }

    /// The next answer; events of watches are kept meanwhile.
    fn reply(&mut self) -> (CallId, CallResult) {
        loop {
            match self.event() {
                SessionEvent::Reply { id, result } => return (id, result),
                SessionEvent::Changed { path, .. } => self.changed.push(path),
                SessionEvent::Down { why, .. } => panic!("the benchmark's session is lost: {why}"),
                SessionEvent::Up { .. } | SessionEvent::Failed { .. } => {}
            }
        }
    }

    /// One call.
    pub fn call(&mut self, call: Call) -> CallResult {
        let sent = self.send(call);
        let (id, result) = self.reply();
        assert_eq!(id, sent, "nothing else is in flight");
        result
    }

    /// One call that must not fail.
    pub fn must(&mut self, call: Call) -> Reply {
        let text = format!("{call:?}");
        self.call(call).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// Makes a persistent znode, if it is not there.
    pub fn ensure(&mut self, path: &str, data: &[u8]) {
        match self.call(create(path, data)) {
            Ok(_) | Err(CallError::Refused(Refusal::NodeExists)) => {}
            Err(error) => panic!("create {path}: {error}"),
        }
    }

    /// Data and stat, if it is there; with `watch`, one change is reported.
    pub fn get(&mut self, path: &str, watch: bool) -> Option<(Vec<u8>, Stat)> {
        match self.call(Call::Get { path: path.into(), watch }) {
            Ok(Reply::Data { data, stat }) => Some((data, stat)),
            Err(CallError::Refused(Refusal::NoNode)) => None,
            other => panic!("get {path}: {other:?}"),
        }
    }

    /// The stat of the znode, if it is there.
    pub fn stat(&mut self, path: &str) -> Option<Stat> {
        match self.call(Call::Exists { path: path.into(), watch: false }) {
            Ok(Reply::Stat(stat)) => Some(stat),
            Err(CallError::Refused(Refusal::NoNode)) => None,
            other => panic!("exists {path}: {other:?}"),
        }
    }

    /// Names of the children; none if it is not there.
    pub fn children(&mut self, path: &str) -> Vec<String> {
        match self.call(Call::Children { path: path.into() }) {
            Ok(Reply::Children(names)) => names,
            Err(CallError::Refused(Refusal::NoNode)) => Vec::new(),
            other => panic!("children of {path}: {other:?}"),
        }
    }

    /// Waits until a watch reports any znode, or the time is over.
    pub fn wait_change(&mut self, limit: Duration) -> Option<String> {
        let until = Instant::now() + limit;
        while self.changed.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(SessionEvent::Changed { path, .. }) => self.changed.push(path),
                Ok(SessionEvent::Down { why, .. }) => panic!("the benchmark's session is lost: {why}"),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
        Some(self.changed.remove(0))
    }

    /// Makes all calls, with so many in flight; none may fail.
    pub fn pipeline(&mut self, in_flight: usize, calls: impl IntoIterator<Item = Call>) {
        let mut open = 0;
        let mut calls = calls.into_iter();
        loop {
            while open < in_flight
                && let Some(call) = calls.next()
            {
                self.send(call);
                open += 1;
            }
            if open == 0 {
                return;
            }
            let (_, result) = self.reply();
            if let Err(error) = result {
                panic!("a call of the benchmark failed: {error}");
            }
            open -= 1;
        }
    }
}

/// The creation of a persistent znode.
pub fn create(path: &str, data: &[u8]) -> Call {
    Call::Create { path: path.into(), data: data.to_vec(), mode: CreateMode::Persistent }
}
