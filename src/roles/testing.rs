//! Test support for roles that mirror a tree through persistent watches. [`World`] holds znodes in memory and knows
//! sessions. [`RoleDriver`] applies the calls of one role to it, so that a test can hold back an answer, lose a
//! connection, or act between two calls. The test decides what is held back; everything else happens in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::contract::parent_of;
use crate::contract::task::Task;
use crate::contract::worker::Assignment;
use crate::machine::{
    Action, Actions, Call, CallError, CallId, ChangeKind, CreateMode, Event, GroupSignal, Instant, Refusal,
    Reply, Role, RunId, RunSpec, Stat, WatchMode, turn,
};

/// The session timeout that this world grants.
pub const T: Duration = Duration::from_secs(10);

/// A znode.
#[derive(Clone, Debug)]
pub struct Node {
    pub data: Vec<u8>,
    pub stat: Stat,
}

/// What a session watches, and the changes that were not delivered to it yet.
#[derive(Debug, Default)]
pub struct Session {
    trees: BTreeSet<String>,
    nodes: BTreeSet<String>,
    once: BTreeSet<String>,
    pub changes: VecDeque<Event>,
}

/// The znodes, and the sessions that are alive.
#[derive(Debug, Default)]
pub struct World {
    pub now: Instant,
    pub znodes: BTreeMap<String, Node>,
    pub sessions: BTreeMap<i64, Session>,
    /// Paths that may not be touched.
    pub refused: BTreeMap<String, Refusal>,
    /// Paths that may be read but not written.
    pub writes_refused: BTreeMap<String, Refusal>,
    /// No path with this prefix may be written.
    pub below_refused: Option<(String, Refusal)>,
    /// Most bytes of data that the servers take.
    pub limit: Option<usize>,
    zxid: i64,
    sequence: i64,
    last_session: i64,
}

impl World {
    /// A world with the directories of the layout below `/z`.
    pub fn new() -> World {
        let mut world = World { zxid: 100, ..World::default() };
        for dir in ["/z", "/z/master", "/z/workers", "/z/assign", "/z/tasks", "/z/submitters", "/z/leases"] {
            world.put(dir, b"");
        }
        world
    }

    pub fn pass(&mut self, by: Duration) {
        self.now = self.now + by;
    }

    /// Somebody else writes a znode.
    pub fn put(&mut self, path: &str, data: &[u8]) {
        let (path, data) = (path.to_string(), data.to_vec());
        let call = match self.znodes.get(&path).map(|node| node.stat.version) {
            None => Call::Create { path, data, mode: CreateMode::Persistent },
            Some(version) => Call::Set { path, data, version },
        };
        self.apply(0, &call).expect("put");
    }

    /// Somebody else deletes a znode.
    pub fn remove(&mut self, path: &str) {
        self.apply(0, &Call::Delete { path: path.to_string(), version: None }).expect("remove");
    }

    pub fn task(&self, path: &str) -> Task {
        Task::decode(&self.znodes[path].data).expect("a task")
    }

    /// Somebody else changes a task.
    pub fn change(&mut self, path: &str, change: impl FnOnce(&mut Task)) {
        let mut task = self.task(path);
        change(&mut task);
        self.put(path, &task.encode());
    }

    /// The entries of an assignment: task, attempt, and whether it is revoked.
    pub fn entries(&self, path: &str) -> Vec<(String, u32, bool)> {
        let assignment = Assignment::decode(&self.znodes[path].data).expect("an assignment");
        assignment
            .entries
            .into_iter()
            .map(|entry| (entry.task.to_string(), entry.attempt, entry.revoked))
            .collect()
    }

    pub fn open(&mut self) -> i64 {
        self.last_session += 1;
        self.sessions.insert(self.last_session, Session::default());
        self.last_session
    }

    /// A copy of all data, for [`World::restore`].
    pub fn copy(&self) -> (BTreeMap<String, Node>, i64) {
        (self.znodes.clone(), self.zxid)
    }

    /// An older copy replaces the data; every connection was lost before. Transactions go on from those of the copy,
    /// or in a new epoch, as those of an ensemble of several servers do.
    pub fn restore(&mut self, (znodes, zxid): (BTreeMap<String, Node>, i64), new_epoch: bool) {
        self.zxid = if new_epoch { self.zxid + 1_000 } else { zxid };
        self.znodes = znodes;
        self.sessions.clear();
    }

    /// The session expires: its ephemerals are deleted.
    pub fn expire(&mut self, session: i64) {
        self.sessions.remove(&session);
        let own = self.znodes.iter().filter(|(_, node)| node.stat.ephemeral_owner == session);
        for path in own.map(|(path, _)| path.clone()).collect::<Vec<_>>() {
            self.remove(&path);
        }
    }

    pub fn apply(&mut self, session: i64, call: &Call) -> Result<Reply, Refusal> {
        if let Some(refusal) = self.refusal(call) {
            return Err(refusal);
        }
        let found = self.znodes.get(call.path()).map(|node| node.stat);
        match call {
            Call::Create { path, data, mode } => self.create(session, path, data, *mode),
            Call::Set { path, data, version } => {
                let (zxid, ms) = self.commit();
                let node = self.znodes.get_mut(path).ok_or(Refusal::NoNode)?;
                if node.stat.version != *version {
                    return Err(Refusal::BadVersion);
                }
                node.data = data.clone();
                node.stat.version += 1;
                (node.stat.mzxid, node.stat.mtime_ms) = (zxid, ms);
                let stat = node.stat;
                self.notify_watches(path, ChangeKind::Data);
                Ok(Reply::Stat(stat))
            }
            Call::Delete { path, version } => {
                let stat = found.ok_or(Refusal::NoNode)?;
                if version.is_some_and(|version| version != stat.version) {
                    return Err(Refusal::BadVersion);
                }
                let below = format!("{path}/");
                if self.znodes.range(below.clone()..).next().is_some_and(|(path, _)| path.starts_with(&below))
                {
                    return Err(Refusal::NotEmpty);
                }
                self.commit();
                self.znodes.remove(path);
                self.notify_watches(path, ChangeKind::Deleted);
                Ok(Reply::Deleted)
            }
            Call::Get { path, watch } => {
                let node = self.znodes.get(path).ok_or(Refusal::NoNode)?.clone();
                self.watch_once(session, path, *watch);
                Ok(Reply::Data { data: node.data, stat: node.stat })
            }
            Call::Exists { path, watch } => {
                self.watch_once(session, path, *watch);
                found.map(Reply::Stat).ok_or(Refusal::NoNode)
            }
            Call::Children { path } => {
                found.ok_or(Refusal::NoNode)?;
                let below = format!("{path}/");
                let names = self.znodes.keys().filter_map(|path| path.strip_prefix(&below));
                Ok(Reply::Children(names.filter(|name| !name.contains('/')).map(str::to_string).collect()))
            }
            Call::Acl { .. } => found.map(|_| Reply::Acl { open: true }).ok_or(Refusal::NoNode),
            Call::Watch { path, mode } => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    match mode {
                        WatchMode::Tree => session.trees.insert(path.clone()),
                        WatchMode::Node => session.nodes.insert(path.clone()),
                    };
                }
                Ok(Reply::Watching)
            }
        }
    }

    /// What a test has this server refuse.
    fn refusal(&self, call: &Call) -> Option<Refusal> {
        if let Some(refusal) = self.refused.get(call.path()) {
            return Some(*refusal);
        }
        if !call.is_write() {
            return None;
        }
        if let Some(refusal) = self.writes_refused.get(call.path()) {
            return Some(*refusal);
        }
        if let Some((below, refusal)) = &self.below_refused
            && call.path().starts_with(below)
        {
            return Some(*refusal);
        }
        match call {
            Call::Create { data, .. } | Call::Set { data, .. } => {
                self.limit.filter(|limit| data.len() > *limit).map(|_| Refusal::TooLarge)
            }
            _ => None,
        }
    }

    fn create(&mut self, session: i64, path: &str, data: &[u8], mode: CreateMode) -> Result<Reply, Refusal> {
        if let Some(parent) = parent_of(path)
            && !self.znodes.contains_key(parent)
        {
            return Err(Refusal::NoNode);
        }
        let mut path = path.to_owned();
        if mode == CreateMode::EphemeralSequential {
            path = format!("{path}{:010}", self.sequence);
            self.sequence += 1;
        } else if self.znodes.contains_key(&path) {
            return Err(Refusal::NodeExists);
        }
        let (zxid, ms) = self.commit();
        let owner = if mode == CreateMode::Persistent { 0 } else { session };
        let stat = Stat {
            czxid: zxid,
            mzxid: zxid,
            ctime_ms: ms,
            mtime_ms: ms,
            ephemeral_owner: owner,
            ..Stat::default()
        };
        self.znodes.insert(path.clone(), Node { data: data.to_vec(), stat });
        self.notify_watches(&path, ChangeKind::Created);
        Ok(Reply::Created { path })
    }

    fn commit(&mut self) -> (i64, i64) {
        self.zxid += 1;
        (self.zxid, i64::try_from(self.now.as_nanos() / 1_000_000).expect("ms") + 1_000_000)
    }

    fn watch_once(&mut self, session: i64, path: &str, watch: bool) {
        if watch && let Some(session) = self.sessions.get_mut(&session) {
            session.once.insert(path.to_string());
        }
    }

    fn notify_watches(&mut self, path: &str, kind: ChangeKind) {
        for session in self.sessions.values_mut() {
            let in_tree = |tree: &String| path.starts_with(&format!("{tree}/")) || path == tree;
            if session.trees.iter().any(in_tree) || session.nodes.contains(path) || session.once.remove(path)
            {
                session.changes.push_back(Event::Changed { path: path.to_string(), kind });
            }
        }
    }
}

/// One role, its connection, and the calls that are not answered yet.
pub struct RoleDriver<T: Role> {
    pub role: T,
    out: Actions<T::Report>,
    pub session: Option<i64>,
    pub calls: VecDeque<(CallId, Call)>,
    pub runs: BTreeMap<RunId, RunSpec>,
    pub signals: Vec<(RunId, GroupSignal)>,
    pub logs: Vec<String>,
    pub exit: Option<i32>,
    /// Calls that are held back for now.
    pub hold: fn(&Call) -> bool,
}

impl<R: Role> RoleDriver<R> {
    pub fn new(role: R) -> RoleDriver<R> {
        RoleDriver {
            role,
            out: Actions::default(),
            session: None,
            calls: VecDeque::new(),
            runs: BTreeMap::new(),
            signals: Vec::new(),
            logs: Vec::new(),
            exit: None,
            hold: |_| false,
        }
    }

    pub fn event(&mut self, world: &World, event: Event) {
        if self.exit.is_some() {
            return;
        }
        turn(&mut self.role, world.now, event, &mut self.out);
        for action in self.out.drain() {
            match action {
                Action::Call { id, call } => self.calls.push_back((id, call)),
                Action::Run { run, spec } => {
                    self.runs.insert(run, spec);
                }
                Action::Signal { run, signal } => self.signals.push((run, signal)),
                Action::Log(_, text) => self.logs.push(text),
                Action::Exit(code) => self.exit = self.exit.or(Some(code)),
                Action::Lease(_) | Action::Report(_) | Action::Status(_) | Action::ReadLines(_) => {}
            }
        }
    }

    /// A new session, and everything that follows.
    pub fn connect(&mut self, world: &mut World) {
        self.session = Some(world.open());
        self.event(world, Event::Connected { timeout: T });
        self.go(world);
    }

    /// The connection breaks; the session stays until it is expired. Calls under way are carried out if `applied`.
    pub fn lose(&mut self, world: &mut World, applied: impl Fn(&Call) -> bool) -> i64 {
        let session = self.session.take().expect("connected");
        for (id, call) in std::mem::take(&mut self.calls) {
            if applied(&call) {
                let _ = world.apply(session, &call);
            }
            self.event(world, Event::Reply { id, result: Err(CallError::MaybeApplied) });
        }
        self.event(world, Event::Lost { why: "test".into() });
        session
    }

    /// Answers the first call that is not held; false if there is none.
    pub fn answer(&mut self, world: &mut World) -> bool {
        let Some(at) = self.calls.iter().position(|(_, call)| !(self.hold)(call)) else { return false };
        let (id, call) = self.calls.remove(at).expect("there");
        let result = match self.session {
            Some(session) if world.sessions.contains_key(&session) => {
                world.apply(session, &call).map_err(CallError::Refused)
            }
            _ => Err(CallError::NotSent),
        };
        self.event(world, Event::Reply { id, result });
        true
    }

    /// Delivers the next change; false if there is none.
    pub fn deliver(&mut self, world: &mut World) -> bool {
        let session = self.session.and_then(|session| world.sessions.get_mut(&session));
        let Some(event) = session.and_then(|session| session.changes.pop_front()) else { return false };
        self.event(world, event);
        true
    }

    /// Delivers changes, answers calls and wakes the role until nothing is left to do.
    pub fn go(&mut self, world: &mut World) {
        let mut wakes = 0;
        while self.exit.is_none() {
            if self.deliver(world) || self.answer(world) {
                wakes = 0;
            } else if self.role.next_wake().is_some_and(|at| at <= world.now) {
                wakes += 1;
                assert!(wakes < 20, "it wants to be woken again and again, and does nothing");
                self.event(world, Event::Wake);
            } else {
                return;
            }
        }
    }
}
