//! A ZooKeeper ensemble in memory: one log of committed transactions, and servers that have each applied a prefix
//! of it, as real ones (3.6 to 3.8) do.
//!
//! - A session is attached to one server. Its reads are answered from that server's state, so they may be old; its
//!   writes wait there until they are [forwarded](Ensemble::forward), and are answered when *that server* has
//!   applied their transactions. Its requests are answered in order, its replies and watch events are one stream.
//! - Watches fire when the server applies the transaction, one-shot and persistent ones as the project's session layer
//!   sets them. A session gets a change once for every persistent watch that covers it, as from the real client.
//! - Nothing happens by itself: the driver of the ensemble says when a server forwards, applies, crashes or is cut
//!   off, and what time it is. There is no chance in it, no clock and no thread.
//!
//! `tests/it/conformance.rs` compares it with real servers.

#[path = "ensemble/client.rs"]
mod client;
#[path = "ensemble/tree.rs"]
mod tree;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use zkmw::machine::{Call, ChangeKind, Instant, Refusal, Reply};

use client::Session;
pub use tree::Node;
use tree::Tree;

/// Servers are numbered from 0.
pub type ServerId = usize;

/// The value of [`Stat::ephemeral_owner`](zkmw::machine::Stat); 0 is nobody's, or an operator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub i64);

/// Names a request; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A message of a server to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Reply { request: RequestId, result: Result<Reply, Refusal> },
    Changed { path: String, kind: ChangeKind },
}

/// A committed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    pub zxid: i64,
    /// When it was committed.
    pub time: Instant,
    /// The session that asked for it; 0 for an operator.
    pub session: SessionId,
    pub op: Op,
}

/// The effect of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    OpenSession,
    /// Its ephemerals go with it.
    CloseSession {
        expired: bool,
    },
    /// The path is that which was created, with its sequence number.
    Create {
        path: String,
        data: Vec<u8>,
        ephemeral: bool,
    },
    /// The version is the new one.
    Set {
        path: String,
        data: Vec<u8>,
        version: i32,
    },
    Delete {
        path: String,
    },
    /// A write that was not possible takes a zxid too.
    Refused {
        path: String,
        refusal: Refusal,
    },
}

/// The part of a transaction that only the servers need.
struct Entry {
    /// The data, shared by all servers.
    data: Arc<Vec<u8>>,
    /// The request that led to it, and its answer.
    origin: Option<Origin>,
}

struct Origin {
    server: ServerId,
    request: RequestId,
    result: Result<Reply, Refusal>,
}

/// A request that a server has to forward to the leader.
struct Queued {
    session: SessionId,
    /// `None`: the session is to be closed.
    call: Option<(RequestId, Call)>,
}

struct Server {
    running: bool,
    linked: bool,
    /// How much of the log it has applied.
    applied: usize,
    tree: Tree,
    queue: VecDeque<Queued>,
    /// Those that are connected to it.
    sessions: BTreeSet<SessionId>,
}

/// The ensemble.
pub struct Ensemble {
    now: Instant,
    epoch_ms: i64,
    servers: Vec<Server>,
    leader: Option<ServerId>,
    /// The upper half of the zxid: how many leaders there were.
    epoch: i64,
    /// The lower half: the number of the leader's commits.
    counter: i64,
    log: Vec<Txn>,
    /// One for each of the log.
    entries: Vec<Entry>,
    /// All of the log.
    committed: Tree,
    sessions: BTreeMap<SessionId, Session>,
    alive: BTreeSet<SessionId>,
    /// No session expires before.
    expires: Option<Instant>,
    last_session: i64,
    last_request: u64,
    /// The changes of one transaction, in order; a buffer that is used again.
    changes: Vec<(String, ChangeKind)>,
}

impl Ensemble {
    /// All servers run and can reach each other. The clock of the ensemble is `epoch_ms` at the zero of ours.
    pub fn new(servers: usize, epoch_ms: i64) -> Ensemble {
        let server = |_| Server {
            running: true,
            linked: true,
            applied: 0,
            tree: Tree::new(),
            queue: VecDeque::new(),
            sessions: BTreeSet::new(),
        };
        let mut ensemble = Ensemble {
            now: Instant::default(),
            epoch_ms,
            servers: (0..servers).map(server).collect(),
            leader: None,
            epoch: 0,
            counter: 0,
            log: Vec::new(),
            entries: Vec::new(),
            committed: Tree::new(),
            sessions: BTreeMap::new(),
            alive: BTreeSet::new(),
            expires: None,
            last_session: 0,
            last_request: 0,
            changes: Vec::new(),
        };
        ensemble.elect();
        ensemble
    }

    /// Time passes; sessions that the leader has not heard of for longer than their timeout expire.
    pub fn set_time(&mut self, now: Instant) {
        self.now = self.now.max(now);
        if self.leader.is_none() || self.expires.is_none_or(|at| at >= self.now) {
            return;
        }
        let deadline = |id: &SessionId| {
            let session = &self.sessions[id];
            (session.heard + session.timeout, *id)
        };
        let mut deadlines: Vec<_> = self.alive.iter().map(deadline).collect();
        deadlines.sort_unstable();
        let overdue = deadlines.partition_point(|(at, _)| *at < self.now);
        for (_, id) in &deadlines[..overdue] {
            self.commit(*id, Op::CloseSession { expired: true }, None);
        }
        self.expires = deadlines.get(overdue).map(|(at, _)| *at);
    }

    /// Whether a server and the others can reach each other.
    pub fn set_link(&mut self, server: ServerId, up: bool) {
        self.servers[server].linked = up;
        self.elect();
    }

    /// The server is gone with all that it was asked for, and its connections with it.
    pub fn crash(&mut self, server: ServerId) {
        self.servers[server].running = false;
        self.servers[server].queue.clear();
        for session in std::mem::take(&mut self.servers[server].sessions) {
            self.disconnect(session);
        }
        self.elect();
    }

    /// It is back, and still has all that it had applied.
    pub fn restart(&mut self, server: ServerId) {
        self.servers[server].running = true;
        self.elect();
    }

    /// The leader. Without a quorum of servers that run and reach each other there is none, and nothing is committed.
    pub fn leader(&self) -> Option<ServerId> {
        self.leader
    }

    /// How much is committed that the server has not applied.
    pub fn lag(&self, server: ServerId) -> u64 {
        (self.log.len() - self.servers[server].applied) as u64
    }

    /// How many writes wait at the server.
    pub fn queued(&self, server: ServerId) -> usize {
        self.servers[server].queue.len()
    }

    fn in_quorum(&self, server: ServerId) -> bool {
        self.leader.is_some() && self.servers[server].running && self.servers[server].linked
    }

    /// A new leader hears of all sessions at once: none expires before its timeout has passed again.
    fn elect(&mut self) {
        let fit = |server: &Server| server.running && server.linked;
        let count = self.servers.iter().filter(|server| fit(server)).count();
        if count * 2 <= self.servers.len() {
            self.leader = None;
        } else if self.leader.is_none_or(|leader| !fit(&self.servers[leader])) {
            let able = (0..self.servers.len()).filter(|id| fit(&self.servers[*id]));
            self.leader = able.max_by_key(|id| (self.servers[*id].applied, *id));
            (self.epoch, self.counter) = (self.epoch + 1, 0);
            for id in &self.alive {
                self.sessions.get_mut(id).expect("it lives").heard = self.now;
            }
        }
    }

    /// The server applies one more transaction: its sessions are notified. False if there is none, or it is cut off.
    pub fn apply_next(&mut self, server: ServerId) -> bool {
        let at = self.servers[server].applied;
        if !self.in_quorum(server) || at == self.log.len() {
            return false;
        }
        let mut changes = std::mem::take(&mut self.changes);
        let (txn, entry) = (&self.log[at], &self.entries[at]);
        let applying = &mut self.servers[server];
        applying.applied += 1;
        applying.tree.apply(txn, &entry.data, ms(self.epoch_ms, txn.time), &mut changes);
        for id in &applying.sessions {
            let session = self.sessions.get_mut(id).expect("it is connected");
            for (path, kind) in &changes {
                session.notify(path, *kind);
            }
        }
        changes.clear();
        self.changes = changes;
        self.answer(server, at);
        true
    }

    /// Answers the request that led to a transaction, and the reads that waited for it.
    fn answer(&mut self, server: ServerId, at: usize) {
        let (txn, entry) = (&self.log[at], &self.entries[at]);
        let Some(session) = self.sessions.get_mut(&txn.session) else { return };
        if session.server != server || !session.connected {
            return;
        }
        match &txn.op {
            Op::OpenSession => session.opened = true,
            Op::CloseSession { .. } => session.over(),
            _ => {
                if let Some(origin) = entry.origin.as_ref().filter(|origin| origin.server == server) {
                    session.written(origin.request, origin.result.clone());
                }
            }
        }
        session.read(&self.servers[server].tree);
    }

    /// A new session at this server, if the server can have one agreed on.
    pub fn connect(&mut self, server: ServerId, timeout: Duration) -> Option<SessionId> {
        if !self.in_quorum(server) {
            return None;
        }
        self.last_session += 1;
        let id = SessionId(self.last_session);
        self.sessions.insert(id, Session::new(server, timeout, self.now));
        self.alive.insert(id);
        self.servers[server].sessions.insert(id);
        let expires = self.now + timeout;
        self.expires = Some(self.expires.map_or(expires, |at| at.min(expires)));
        self.commit(id, Op::OpenSession, None);
        Some(id)
    }

    /// The connection is gone, with its watches and its undelivered output. The session lives on, and its requests may
    /// still be forwarded.
    pub fn disconnect(&mut self, session: SessionId) {
        let Some(gone) = self.sessions.get_mut(&session) else { return };
        gone.disconnect();
        self.servers[gone.server].sessions.remove(&session);
    }

    /// The session asks for its end, behind all that it asked for before.
    pub fn close(&mut self, session: SessionId) {
        let Some(closing) = self.sessions.get_mut(&session).filter(|session| session.takes_requests()) else {
            return;
        };
        closing.closing = true;
        self.servers[closing.server].queue.push_back(Queued { session, call: None });
    }

    /// A sign of life got to the server. The leader learns of it if the server can reach it.
    pub fn heard(&mut self, session: SessionId) {
        if let Some(at) = self.sessions.get(&session).map(|session| session.server)
            && self.in_quorum(at)
            && let Some(session) = self.sessions.get_mut(&session)
        {
            session.heard = self.now;
        }
    }

    /// Whether the session lives, as the leader has it.
    pub fn is_alive(&self, session: SessionId) -> bool {
        self.alive.contains(&session)
    }

    /// Where the session is, or was.
    pub fn server_of(&self, session: SessionId) -> ServerId {
        self.sessions[&session].server
    }

    /// A request gets to the session's server. Without a connection nothing comes of it.
    pub fn request(&mut self, session: SessionId, call: Call) -> RequestId {
        self.last_request += 1;
        let request = RequestId(self.last_request);
        let Some(asking) = self.sessions.get_mut(&session).filter(|session| session.takes_requests()) else {
            return request;
        };
        let server = &mut self.servers[asking.server];
        if let Err(refusal) = client::check(&call) {
            asking.outbox.push_back(Output::Reply { request, result: Err(refusal) });
            return request;
        }
        if call.is_write() {
            server.queue.push_back(Queued { session, call: Some((request, call.clone())) });
        }
        asking.pending.push_back((request, call));
        asking.read(&server.tree);
        request
    }

    /// The server's oldest write gets to the leader, which commits or refuses it. False if there is none, or it can't.
    /// A request of a session that has ended is dropped.
    pub fn forward(&mut self, server: ServerId) -> bool {
        if !self.in_quorum(server) {
            return false;
        }
        let Some(Queued { session, call }) = self.servers[server].queue.pop_front() else { return false };
        if !self.is_alive(session) {
            return true;
        }
        self.sessions.get_mut(&session).expect("it lives").heard = self.now;
        match call {
            None => self.commit(session, Op::CloseSession { expired: false }, None),
            Some((request, call)) => {
                let op = self.committed.prepare(&call);
                self.commit(session, op, Some((server, request)));
            }
        }
        true
    }

    /// The nth of those writes that wait at a server for a session that is not connected any more is lost for ever.
    pub fn drop_queued(&mut self, server: ServerId, nth: usize) -> bool {
        let queue = &mut self.servers[server].queue;
        let disconnected = |queued: &Queued| !self.sessions[&queued.session].connected;
        let mut found = (0..queue.len()).filter(|at| disconnected(&queue[*at]));
        let Some(at) = found.nth(nth) else { return false };
        queue.remove(at);
        true
    }

    /// The next output for the session.
    pub fn take(&mut self, session: SessionId) -> Option<Output> {
        self.sessions.get_mut(&session)?.outbox.pop_front()
    }

    /// An operator creates or overwrites a znode. False without a quorum, or if it isn't possible.
    pub fn put(&mut self, path: &str, data: &[u8]) -> bool {
        let (path, data) = (path.to_owned(), data.to_vec());
        self.by_hand(&match self.committed.nodes.get(&path) {
            None => Call::Create { path, data, mode: zkmw::machine::CreateMode::Persistent },
            Some(node) => Call::Set { path, data, version: node.stat.version },
        })
    }

    /// An operator deletes a znode. False without a quorum, or if it isn't possible.
    pub fn remove(&mut self, path: &str) -> bool {
        self.by_hand(&Call::Delete { path: path.to_owned(), version: None })
    }

    fn by_hand(&mut self, call: &Call) -> bool {
        if self.leader.is_none() {
            return false;
        }
        let op = self.committed.prepare(call);
        let done = !matches!(op, Op::Refused { .. });
        self.commit(SessionId(0), op, None);
        done
    }

    /// The number that the next sequential child of a znode gets; creations go on from there.
    pub fn set_sequence(&mut self, path: &str, next: i32) {
        self.committed.nodes.get_mut(path).expect("a znode").set_sequence(next);
    }

    /// The committed transactions.
    pub fn log(&self) -> &[Txn] {
        &self.log
    }

    /// The znodes after all of them.
    pub fn tree(&self) -> &BTreeMap<String, Node> {
        &self.committed.nodes
    }

    fn commit(&mut self, session: SessionId, op: Op, from: Option<(ServerId, RequestId)>) {
        self.counter += 1;
        let zxid = (self.epoch << 32) | self.counter;
        let data = match &op {
            Op::Create { data, .. } | Op::Set { data, .. } => Arc::new(data.clone()),
            _ => Arc::default(),
        };
        if matches!(op, Op::CloseSession { .. }) {
            self.alive.remove(&session);
        }
        let txn = Txn { zxid, time: self.now, session, op };
        self.committed.apply(&txn, &data, ms(self.epoch_ms, txn.time), &mut self.changes);
        self.changes.clear();
        let origin = from.map(|(server, request)| Origin { server, request, result: self.result(&txn.op) });
        self.log.push(txn);
        self.entries.push(Entry { data, origin });
    }

    /// The answer to the write that was committed just now.
    fn result(&self, op: &Op) -> Result<Reply, Refusal> {
        Ok(match op {
            Op::Create { path, .. } => Reply::Created { path: path.clone() },
            Op::Set { path, .. } => Reply::Stat(self.committed.nodes[path].stat),
            Op::Refused { refusal, .. } => return Err(*refusal),
            Op::Delete { .. } | Op::OpenSession | Op::CloseSession { .. } => Reply::Deleted,
        })
    }
}

/// The ensemble's clock.
fn ms(epoch_ms: i64, now: Instant) -> i64 {
    epoch_ms + i64::try_from(now.as_nanos() / 1_000_000).expect("milliseconds")
}
