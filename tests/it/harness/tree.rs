//! The znode tree, read and written by a test through the project's own session layer, one call at a time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use zkmw::machine::{Call, CallError, CallId, CallResult, CreateMode, Refusal, Reply, Stat};
use zkmw::zk::{Session, SessionEvent, Settings};

/// How long a call may take in all; an outage that a test makes is shorter.
const CALL_LIMIT: Duration = Duration::from_secs(60);

type Waiting = Arc<Mutex<BTreeMap<CallId, Sender<CallResult>>>>;

/// A connection of the test's own.
pub struct Tree {
    session: Session,
    /// Of the connection that was last reported to be up.
    generation: Arc<AtomicU64>,
    waiting: Waiting,
    next: AtomicU64,
}

impl Tree {
    /// Connects; the first call waits for it.
    pub fn connect(connect: &str) -> Tree {
        let server = |text: &str| {
            let (host, port) = text.rsplit_once(':').expect("a port");
            (host.to_string(), port.parse().expect("a port"))
        };
        let settings = Settings {
            servers: connect.split(',').map(server).collect(),
            chroot: None,
            session_timeout: Duration::from_secs(8),
            auth: Vec::new(),
            threads: 16,
        };
        let (sender, events) = bounded(1_000);
        let session = Session::start(settings, sender).expect("a session");
        let waiting = Waiting::default();
        let answers = Arc::clone(&waiting);
        let generation = Arc::new(AtomicU64::new(0));
        let up = Arc::clone(&generation);
        std::thread::spawn(move || {
            for event in events {
                if let SessionEvent::Up { generation, .. } = event {
                    up.store(generation, Ordering::SeqCst);
                }
                if let SessionEvent::Reply { id, result } = event
                    && let Some(to) = answers.lock().expect("no panic").remove(&id)
                {
                    let _ = to.send(result);
                }
            }
        });
        Tree { session, generation, waiting, next: AtomicU64::new(1) }
    }

    /// One call. A call that was certainly not applied, because there was no connection, is tried again.
    ///
    /// # Panics
    /// If there is no answer for a minute.
    #[track_caller]
    pub fn call(&self, call: &Call) -> CallResult {
        let start = Instant::now();
        loop {
            let id = CallId(self.next.fetch_add(1, Ordering::Relaxed));
            let (sender, answer) = bounded(1);
            self.waiting.lock().expect("no panic").insert(id, sender);
            self.session.call(self.generation.load(Ordering::SeqCst), id, call.clone());
            let left = CALL_LIMIT.saturating_sub(start.elapsed());
            let result = answer.recv_timeout(left).unwrap_or_else(|_| panic!("no answer to {call:?}"));
            match result {
                Err(CallError::NotSent) => {}
                Err(CallError::MaybeApplied) if !call.is_write() => {}
                other => return other,
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Data and stat, if the znode is there.
    #[track_caller]
    pub fn get(&self, path: &str) -> Option<(Vec<u8>, Stat)> {
        match self.call(&Call::Get { path: path.into(), watch: false }) {
            Ok(Reply::Data { data, stat }) => Some((data, stat)),
            Err(CallError::Refused(Refusal::NoNode)) => None,
            other => panic!("get {path}: {other:?}"),
        }
    }

    #[track_caller]
    pub fn exists(&self, path: &str) -> Option<Stat> {
        match self.call(&Call::Exists { path: path.into(), watch: false }) {
            Ok(Reply::Stat(stat)) => Some(stat),
            Err(CallError::Refused(Refusal::NoNode)) => None,
            other => panic!("exists {path}: {other:?}"),
        }
    }

    /// Names of the children, sorted, if the znode is there.
    #[track_caller]
    pub fn children(&self, path: &str) -> Option<Vec<String>> {
        match self.call(&Call::Children { path: path.into() }) {
            Ok(Reply::Children(mut names)) => {
                names.sort();
                Some(names)
            }
            Err(CallError::Refused(Refusal::NoNode)) => None,
            other => panic!("children of {path}: {other:?}"),
        }
    }

    /// Creates a persistent znode.
    #[track_caller]
    pub fn create(&self, path: &str, data: &[u8]) -> CallResult {
        self.create_as(path, data, CreateMode::Persistent)
    }

    #[track_caller]
    pub fn create_as(&self, path: &str, data: &[u8], mode: CreateMode) -> CallResult {
        self.call(&Call::Create { path: path.into(), data: data.to_vec(), mode })
    }

    #[track_caller]
    pub fn set(&self, path: &str, data: &[u8], version: i32) -> CallResult {
        self.call(&Call::Set { path: path.into(), data: data.to_vec(), version })
    }

    #[track_caller]
    pub fn delete(&self, path: &str) -> CallResult {
        self.call(&Call::Delete { path: path.into(), version: None })
    }

    /// The whole tree below `root`, which is in it too. A znode that vanishes meanwhile is left out.
    #[track_caller]
    pub fn dump(&self, root: &str) -> BTreeMap<String, (Vec<u8>, Stat)> {
        let mut found = BTreeMap::new();
        let mut open = vec![root.to_string()];
        while let Some(path) = open.pop() {
            let Some((data, stat)) = self.get(&path) else { continue };
            if stat.num_children > 0 {
                let names = self.children(&path).unwrap_or_default();
                open.extend(names.iter().map(|name| format!("{path}/{name}")));
            }
            found.insert(path, (data, stat));
        }
        found
    }

    /// A write of the test's own, so that what it reads next is the present; gives its zxid.
    #[track_caller]
    pub fn sync(&self) -> i64 {
        let path = format!("/it-sync-{}", self.next.fetch_add(1, Ordering::Relaxed));
        loop {
            let made = self.create_as(&path, b"", CreateMode::EphemeralSequential);
            if let Ok(Reply::Created { path }) = made
                && let Some(stat) = self.exists(&path)
            {
                let _ = self.delete(&path);
                return stat.czxid;
            }
        }
    }
}
