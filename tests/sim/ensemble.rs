//! An ensemble in memory: interim.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use zkmw::contract::parent_of;
use zkmw::machine::{Call, ChangeKind, CreateMode, Instant, Refusal, Reply, Stat, WatchMode};

pub type ServerId = usize;
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub i64);
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

#[derive(Debug)]
pub enum Output {
    Reply { request: RequestId, result: Result<Reply, Refusal> },
    Changed { path: String, kind: ChangeKind },
}

#[derive(Debug)]
pub struct Txn {
    pub zxid: i64,
    pub time: Instant,
    pub session: SessionId,
    pub op: Op,
}

#[derive(Clone, Debug)]
pub enum Op {
    OpenSession,
    CloseSession { expired: bool },
    Create { path: String, data: Vec<u8>, ephemeral: bool },
    Set { path: String, data: Vec<u8>, version: i32 },
    Delete { path: String },
    Refused { path: String, refusal: Refusal },
}

#[derive(Clone, Debug)]
pub struct Node {
    pub data: Vec<u8>,
    pub stat: Stat,
    sequence: i32,
}

type Tree = BTreeMap<String, Rc<Node>>;

struct Queued {
    session: SessionId,
    request: RequestId,
    call: Call,
}

#[derive(Default)]
struct Server {
    down: bool,
    cut: bool,
    applied: usize,
    tree: Tree,
    queue: VecDeque<Queued>,
}

#[derive(Default)]
struct Session {
    server: Option<ServerId>,
    timeout: Duration,
    heard: Instant,
    outbox: VecDeque<Output>,
    once: BTreeSet<String>,
    nodes: BTreeSet<String>,
    trees: BTreeSet<String>,
    writes: usize,
    waiting: VecDeque<(RequestId, Call)>,
}

pub struct Ensemble {
    now: Instant,
    epoch_ms: i64,
    servers: Vec<Server>,
    sessions: BTreeMap<SessionId, Session>,
    log: Vec<Txn>,
    origin: Vec<Option<RequestId>>,
    tip: BTreeMap<String, Node>,
    next_session: i64,
    next_request: u64,
    leader: Option<ServerId>,
    next_expiry: Instant,
}

impl Ensemble {
    pub fn new(servers: usize, epoch_ms: i64) -> Ensemble {
        let mut ens = Ensemble {
            now: Instant::default(),
            epoch_ms,
            servers: (0..servers).map(|_| Server::default()).collect(),
            sessions: BTreeMap::new(),
            log: Vec::new(),
            origin: Vec::new(),
            tip: BTreeMap::new(),
            next_session: 1,
            next_request: 1,
            leader: Some(0),
            next_expiry: Instant::default(),
        };
        ens.elect();
        ens
    }

    pub fn set_time(&mut self, now: Instant) {
        self.now = now;
        if now < self.next_expiry || self.leader.is_none() {
            return;
        }
        self.next_expiry = now + Duration::from_millis(100);
        let over: Vec<_> =
            self.sessions.iter().filter(|(_, s)| now.since(s.heard) >= s.timeout).map(|(id, _)| *id).collect();
        for session in over {
            self.end(session, true);
        }
    }

    fn end(&mut self, session: SessionId, expired: bool) {
        if let Some(s) = self.sessions.get_mut(&session) {
            s.heard = Instant::from_nanos(u64::MAX);
        }
        self.tip.retain(|_, node| node.stat.ephemeral_owner != session.0);
        self.commit(session, Op::CloseSession { expired }, None);
    }

    fn commit(&mut self, session: SessionId, op: Op, origin: Option<RequestId>) -> i64 {
        let zxid = 0x100 + self.log.len() as i64 + 1;
        self.log.push(Txn { zxid, time: self.now, session, op });
        self.origin.push(origin);
        zxid
    }

    fn elect(&mut self) {
        let good: Vec<_> = (0..self.servers.len()).filter(|s| !self.servers[*s].down && !self.servers[*s].cut).collect();
        if good.len() * 2 <= self.servers.len() {
            self.leader = None;
            return;
        }
        if self.leader.is_none_or(|l| !good.contains(&l)) {
            self.leader = good.iter().copied().max_by_key(|s| self.servers[*s].applied);
            let leader = self.leader.expect("there");
            while self.apply_next(leader) {}
            for s in self.sessions.values_mut() {
                if s.heard != Instant::from_nanos(u64::MAX) {
                    s.heard = self.now;
                }
            }
        }
    }

    pub fn set_link(&mut self, server: ServerId, up: bool) {
        self.servers[server].cut = !up;
        self.elect();
    }

    pub fn crash(&mut self, server: ServerId) {
        self.servers[server].down = true;
        self.servers[server].queue.clear();
        self.elect();
    }

    pub fn restart(&mut self, server: ServerId) {
        self.servers[server].down = false;
        self.elect();
    }

    pub fn leader(&self) -> Option<ServerId> {
        self.leader
    }

    pub fn lag(&self, server: ServerId) -> u64 {
        (self.log.len() - self.servers[server].applied) as u64
    }

    pub fn apply_next(&mut self, server: ServerId) -> bool {
        let s = &self.servers[server];
        if s.down || s.cut || s.applied >= self.log.len() {
            return false;
        }
        let n = s.applied;
        self.servers[server].applied += 1;
        let (zxid, time, session, op) = {
            let t = &self.log[n];
            (t.zxid, t.time, t.session, t.op.clone())
        };
        let ms = self.epoch_ms + (time.as_nanos() / 1_000_000) as i64;
        let origin = self.origin[n];
        let mut result = Err(Refusal::Other(0));
        match op {
            Op::Create { path, data, ephemeral } => {
                let owner = if ephemeral { session.0 } else { 0 };
                make(&mut self.servers[server].tree, &path, data, owner, zxid, ms);
                self.tell(server, &path, ChangeKind::Created);
                result = Ok(Reply::Created { path });
            }
            Op::Set { path, data, .. } => {
                let mut node = (*self.servers[server].tree[&path]).clone();
                node.stat.data_length = data.len() as i32;
                node.data = data;
                node.stat.version += 1;
                (node.stat.mzxid, node.stat.mtime_ms) = (zxid, ms);
                result = Ok(Reply::Stat(node.stat));
                self.servers[server].tree.insert(path.clone(), Rc::new(node));
                self.tell(server, &path, ChangeKind::Data);
            }
            Op::Delete { path } => {
                unmake(&mut self.servers[server].tree, &path, zxid);
                self.tell(server, &path, ChangeKind::Deleted);
                result = Ok(Reply::Deleted);
            }
            Op::Refused { refusal, .. } => result = Err(refusal),
            Op::CloseSession { .. } => {
                let tree = &self.servers[server].tree;
                let own: Vec<_> =
                    tree.iter().filter(|(_, n)| n.stat.ephemeral_owner == session.0).map(|(p, _)| p.clone()).collect();
                for path in own {
                    unmake(&mut self.servers[server].tree, &path, zxid);
                    self.tell(server, &path, ChangeKind::Deleted);
                }
            }
            Op::OpenSession => {}
        }
        if let Some(request) = origin
            && let Some(s) = self.sessions.get_mut(&session)
            && s.server == Some(server)
        {
            s.outbox.push_back(Output::Reply { request, result });
            s.writes -= 1;
            self.read_on(session);
        }
        true
    }

    fn tell(&mut self, server: ServerId, path: &str, kind: ChangeKind) {
        let parent = parent_of(path).unwrap_or("/").to_string();
        for s in self.sessions.values_mut().filter(|s| s.server == Some(server)) {
            let in_tree = s.trees.iter().any(|t| path == t || path.strip_prefix(t.as_str()).is_some_and(|r| r.starts_with('/')));
            let told = s.once.remove(path) | s.nodes.contains(path) | in_tree;
            if told {
                s.outbox.push_back(Output::Changed { path: path.to_string(), kind });
            }
            if kind != ChangeKind::Data && s.nodes.contains(&parent) {
                s.outbox.push_back(Output::Changed { path: parent.clone(), kind: ChangeKind::Children });
            }
        }
    }

    pub fn connect(&mut self, server: ServerId, timeout: Duration) -> Option<SessionId> {
        if self.leader.is_none() || self.servers[server].down || self.servers[server].cut {
            return None;
        }
        let id = SessionId(self.next_session);
        self.next_session += 1;
        self.sessions.insert(id, Session { server: Some(server), timeout, heard: self.now, ..Session::default() });
        self.commit(id, Op::OpenSession, None);
        Some(id)
    }

    pub fn disconnect(&mut self, session: SessionId) {
        if let Some(s) = self.sessions.get_mut(&session) {
            s.server = None;
            s.outbox.clear();
            s.waiting.clear();
            s.writes = 0;
            s.once.clear();
            s.nodes.clear();
            s.trees.clear();
            if s.heard == Instant::from_nanos(u64::MAX) {
                self.sessions.remove(&session);
            }
        }
    }

    pub fn close(&mut self, session: SessionId) {
        if self.is_alive(session) {
            self.end(session, false);
        }
    }

    pub fn heard(&mut self, session: SessionId) {
        let now = self.now;
        if self.is_alive(session)
            && let Some(s) = self.sessions.get_mut(&session)
        {
            s.heard = now;
        }
    }

    pub fn is_alive(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|s| s.heard != Instant::from_nanos(u64::MAX))
    }

    pub fn request(&mut self, session: SessionId, call: Call) -> RequestId {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        let Some(s) = self.sessions.get_mut(&session) else { return request };
        let Some(server) = s.server else { return request };
        if call.is_write() {
            s.writes += 1;
            self.servers[server].queue.push_back(Queued { session, request, call });
        } else {
            s.waiting.push_back((request, call));
            self.read_on(session);
        }
        request
    }

    fn read_on(&mut self, session: SessionId) {
        while let Some(s) = self.sessions.get_mut(&session)
            && s.writes == 0
            && let Some((request, call)) = s.waiting.pop_front()
            && let Some(server) = s.server
        {
            let tree = &self.servers[server].tree;
            let result = match call {
                Call::Get { path, watch } => match tree.get(&path) {
                    Some(node) => {
                        if watch && !s.nodes.contains(&path) {
                            s.once.insert(path);
                        }
                        Ok(Reply::Data { data: node.data.clone(), stat: node.stat })
                    }
                    None => Err(Refusal::NoNode),
                },
                Call::Exists { path, watch } => {
                    let result = tree.get(&path).map(|n| Reply::Stat(n.stat)).ok_or(Refusal::NoNode);
                    if watch {
                        s.once.insert(path);
                    }
                    result
                }
                Call::Children { path } => {
                    let below = format!("{path}/");
                    if tree.contains_key(&path) {
                        let names = tree.range(below.clone()..).map_while(|(p, _)| p.strip_prefix(&below));
                        Ok(Reply::Children(names.filter(|n| !n.contains('/')).map(str::to_string).collect()))
                    } else {
                        Err(Refusal::NoNode)
                    }
                }
                Call::Watch { path, mode } => {
                    match mode {
                        WatchMode::Node => s.nodes.insert(path),
                        WatchMode::Tree => s.trees.insert(path),
                    };
                    Ok(Reply::Watching)
                }
                _ => Err(Refusal::Other(0)),
            };
            s.outbox.push_back(Output::Reply { request, result });
        }
    }

    pub fn forward(&mut self, server: ServerId) -> bool {
        if self.leader.is_none() || self.servers[server].down || self.servers[server].cut {
            return false;
        }
        let Some(Queued { session, request, call }) = self.servers[server].queue.pop_front() else { return false };
        if !self.is_alive(session) {
            return true;
        }
        let op = self.judge(session, call);
        self.commit(session, op, Some(request));
        true
    }

    fn judge(&mut self, session: SessionId, call: Call) -> Op {
        let zxid = 0x100 + self.log.len() as i64 + 1;
        let ms = self.epoch_ms + (self.now.as_nanos() / 1_000_000) as i64;
        let refused = |path: &str, refusal| Op::Refused { path: path.to_string(), refusal };
        match call {
            Call::Create { path, data, mode } => {
                let mut path = path;
                if let Some(parent) = parent_of(&path) {
                    match self.tip.get_mut(parent) {
                        None => return refused(&path, Refusal::NoNode),
                        Some(p) if p.stat.ephemeral_owner != 0 => {
                            return refused(&path, Refusal::NoChildrenForEphemerals);
                        }
                        Some(p) => {
                            if mode == CreateMode::EphemeralSequential {
                                path = format!("{path}{:010}", p.sequence);
                            }
                        }
                    }
                }
                if self.tip.contains_key(&path) {
                    return refused(&path, Refusal::NodeExists);
                }
                let ephemeral = mode != CreateMode::Persistent;
                let owner = if ephemeral { session.0 } else { 0 };
                if let Some(p) = parent_of(&path).and_then(|p| self.tip.get_mut(p)) {
                    p.sequence += 1;
                }
                let stat = Stat { czxid: zxid, mzxid: zxid, ctime_ms: ms, mtime_ms: ms, ephemeral_owner: owner, data_length: data.len() as i32, ..Stat::default() };
                self.tip.insert(path.clone(), Node { data: data.clone(), stat, sequence: 0 });
                Op::Create { path, data, ephemeral }
            }
            Call::Set { path, data, version } => match self.tip.get_mut(&path) {
                None => refused(&path, Refusal::NoNode),
                Some(n) if n.stat.version != version => refused(&path, Refusal::BadVersion),
                Some(n) => {
                    n.data = data.clone();
                    n.stat.version += 1;
                    n.stat.mzxid = zxid;
                    Op::Set { path, data, version }
                }
            },
            Call::Delete { path, version } => {
                let below = format!("{path}/");
                match self.tip.get(&path) {
                    None => refused(&path, Refusal::NoNode),
                    Some(n) if version.is_some_and(|v| v != n.stat.version) => refused(&path, Refusal::BadVersion),
                    Some(_) if self.tip.range(below.clone()..).next().is_some_and(|(p, _)| p.starts_with(&below)) => {
                        refused(&path, Refusal::NotEmpty)
                    }
                    Some(_) => {
                        self.tip.remove(&path);
                        Op::Delete { path }
                    }
                }
            }
            other => refused(other.path(), Refusal::BadArguments),
        }
    }

    pub fn drop_queued(&mut self, server: ServerId, nth: usize) -> bool {
        self.servers[server].queue.remove(nth).is_some()
    }

    pub fn take(&mut self, session: SessionId) -> Option<Output> {
        self.sessions.get_mut(&session)?.outbox.pop_front()
    }

    pub fn put(&mut self, path: &str, data: &[u8]) {
        let call = match self.tip.get(path) {
            Some(n) => Call::Set { path: path.into(), data: data.into(), version: n.stat.version },
            None => Call::Create { path: path.into(), data: data.into(), mode: CreateMode::Persistent },
        };
        let op = self.judge(SessionId(0), call);
        self.commit(SessionId(0), op, None);
    }

    pub fn remove(&mut self, path: &str) {
        let op = self.judge(SessionId(0), Call::Delete { path: path.into(), version: None });
        self.commit(SessionId(0), op, None);
    }

    pub fn log(&self) -> &[Txn] {
        &self.log
    }

    pub fn tree(&self) -> &BTreeMap<String, Node> {
        &self.tip
    }
}

fn make(tree: &mut Tree, path: &str, data: Vec<u8>, owner: i64, zxid: i64, ms: i64) {
    if let Some(parent) = parent_of(path)
        && let Some(node) = tree.get(parent)
    {
        let mut node = (**node).clone();
        node.stat.num_children += 1;
        node.stat.pzxid = zxid;
        tree.insert(parent.to_string(), Rc::new(node));
    }
    let stat = Stat { czxid: zxid, mzxid: zxid, ctime_ms: ms, mtime_ms: ms, ephemeral_owner: owner, data_length: data.len() as i32, pzxid: zxid, ..Stat::default() };
    tree.insert(path.to_string(), Rc::new(Node { data, stat, sequence: 0 }));
}

fn unmake(tree: &mut Tree, path: &str, zxid: i64) {
    if let Some(parent) = parent_of(path)
        && let Some(node) = tree.get(parent)
    {
        let mut node = (**node).clone();
        node.stat.num_children -= 1;
        node.stat.pzxid = zxid;
        tree.insert(parent.to_string(), Rc::new(node));
    }
    tree.remove(path);
}
