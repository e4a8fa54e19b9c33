//! A session as its server sees it: its requests, its watches, and its undelivered output.
//! Also what the project's session layer does by itself: which calls it refuses, which watches it does not set.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use zkmw::machine::{Call, ChangeKind, Instant, Refusal, Reply, WatchMode};

use super::tree::Tree;
use super::{Output, RequestId, ServerId};

/// The session layer's limit.
const DATA_MAX: usize = 1_000_000;

/// A session.
pub struct Session {
    pub server: ServerId,
    pub timeout: Duration,
    /// When the leader heard of it last.
    pub heard: Instant,
    pub connected: bool,
    /// Its server knows that it was opened; no request is answered before.
    pub opened: bool,
    /// It has asked for its end.
    pub closing: bool,
    /// The requests without an answer, in order.
    pub pending: VecDeque<(RequestId, Call)>,
    pub outbox: VecDeque<Output>,
    once: BTreeSet<String>,
    persistent: BTreeMap<String, WatchMode>,
}

impl Session {
    pub fn new(server: ServerId, timeout: Duration, now: Instant) -> Session {
        Session {
            server,
            timeout,
            heard: now,
            connected: true,
            opened: false,
            closing: false,
            pending: VecDeque::new(),
            outbox: VecDeque::new(),
            once: BTreeSet::new(),
            persistent: BTreeMap::new(),
        }
    }

    pub fn takes_requests(&self) -> bool {
        self.connected && !self.closing
    }

    pub fn disconnect(&mut self) {
        self.connected = false;
        self.outbox.clear();
        self.over();
    }

    /// Its server knows that it has ended: no request is answered any more.
    pub fn over(&mut self) {
        self.closing = true;
        self.pending.clear();
        self.once.clear();
        self.persistent.clear();
    }

    /// The oldest request that waits was a write, and this came of it.
    pub fn written(&mut self, request: RequestId, result: Result<Reply, Refusal>) {
        if let Some((oldest, _)) = self.pending.pop_front() {
            assert_eq!(oldest, request, "a session's requests are answered in order");
            self.outbox.push_back(Output::Reply { request, result });
        }
    }

    /// Answers the reads before the next write.
    pub fn read(&mut self, tree: &Tree) {
        while self.opened
            && let Some((request, call)) = self.pending.pop_front_if(|(_, call)| !call.is_write())
        {
            let result = self.answer(tree, &call);
            self.outbox.push_back(Output::Reply { request, result });
        }
    }

    fn answer(&mut self, tree: &Tree, call: &Call) -> Result<Reply, Refusal> {
        let node = tree.nodes.get(call.path()).ok_or(Refusal::NoNode);
        match call {
            Call::Get { path, watch } => {
                let node = node?;
                self.watch_once(path, *watch);
                Ok(Reply::Data { data: node.data.to_vec(), stat: node.stat })
            }
            Call::Exists { path, watch } => {
                self.watch_once(path, *watch);
                Ok(Reply::Stat(node?.stat))
            }
            Call::Children { .. } => Ok(Reply::Children(node?.children().iter().cloned().collect())),
            // Every znode here is open to all.
            Call::Acl { .. } => node.map(|_| Reply::Acl { open: true }),
            Call::Watch { path, mode } => {
                // The server would forget the mode of before, and the client would go by it.
                let before = self.persistent.insert(path.clone(), *mode);
                assert!(before.is_none_or(|before| before == *mode), "two kinds of watch on {path}");
                self.once.remove(path);
                Ok(Reply::Watching)
            }
            write => unreachable!("{write:?} is no read"),
        }
    }

    /// The session layer sets no one-shot watch where a persistent one is.
    fn watch_once(&mut self, path: &str, watch: bool) {
        if watch && !self.persistent.contains_key(path) {
            self.once.insert(path.to_owned());
        }
    }

    /// The server sends one event, however many watches it fires. The client gives it to each persistent watch that
    /// covers the path, or else to the one-shot watch.
    pub fn notify(&mut self, path: &str, kind: ChangeKind) {
        let own = self.persistent.get(path);
        let trees = if self.persistent.is_empty() { 0 } else { self.trees_over(path) };
        let children = kind == ChangeKind::Children;
        let fires = (!children && self.once.remove(path))
            || own == Some(&WatchMode::Node)
            || (!children && trees > 0);
        if fires {
            let times = trees + usize::from(own == Some(&WatchMode::Node));
            for _ in 0..times.max(1) {
                self.outbox.push_back(Output::Changed { path: path.to_owned(), kind });
            }
        }
    }

    fn trees_over(&self, path: &str) -> usize {
        let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).chain([path.len()]);
        ends.filter(|end| self.persistent.get(&path[..*end]) == Some(&WatchMode::Tree)).count()
    }
}

/// The calls that the session layer refuses by itself.
pub fn check(call: &Call) -> Result<(), Refusal> {
    let path = call.path();
    let names = path.strip_prefix('/').ok_or(Refusal::BadArguments)?;
    if path != "/" && names.split('/').any(|name| matches!(name, "" | "." | "..")) {
        return Err(Refusal::BadArguments);
    }
    match call {
        Call::Create { data, .. } | Call::Set { data, .. } if data.len() > DATA_MAX => Err(Refusal::TooLarge),
        Call::Set { version, .. } | Call::Delete { version: Some(version), .. } if *version < 0 => {
            Err(Refusal::BadArguments)
        }
        Call::Create { .. } | Call::Delete { .. } | Call::Watch { mode: WatchMode::Tree, .. }
            if path == "/" =>
        {
            Err(Refusal::BadArguments)
        }
        _ => Ok(()),
    }
}
