//! Mirror: keeps a role informed of everything below a directory by one persistent watch on the whole tree.
//!
//! It lists only when it starts, in parts, and never because something changed: a change names its znode, and
//! that znode alone is read. It holds what is on its way, not what was seen, so its memory does not grow with
//! the tree. After a lost connection its role forgets what it knew, and the mirror starts again.
//!
//! Replies and events reach us over different threads, so a change of a znode that is being read makes it be
//! read once more; a caller that keeps what was seen keeps the newest `mzxid`. The end of a znode is reported when its
//! event comes, never because a read found nothing: the order of two znodes' events would be lost.

use std::collections::{BTreeMap, BTreeSet};

use crate::machine::{
    Actions, Call, CallId, CallResult, Calls, ChangeKind, Refusal, Reply, Routed, Stat, WatchMode,
};

/// Listings of one mirror that may be under way at once.
const MAX_LISTINGS: usize = 4;

/// No further directory is listed while so many znodes of earlier listings are still to be read.
const MAX_BACKLOG: usize = 20_000;

/// So many znodes that were refused are remembered, to be tried again: each costs a call a time.
const MAX_REFUSED: usize = 1_000;

/// What became known of a znode, by its path below the mirrored directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Change {
    /// It exists; it is being read.
    Appeared { path: String },
    /// It was changed after everything was reported; it is read with the next [`Mirror::catch_up`] but one, or when
    /// [`Mirror::read_again`] asks for it, if it is still there.
    Touched { path: String },
    /// It was read. This may come again for the same state, or for an older one after a newer.
    Seen { path: String, data: Vec<u8>, stat: Stat },
    /// It is gone.
    Gone { path: String },
    /// It, or the list of its children, may not be read. This is its whole path: if it is the mirrored directory
    /// itself, nothing is reported until the mirror is started again. Others are read again with
    /// [`Mirror::try_refused`].
    Refused { path: String, refusal: Refusal },
    /// Everything that existed when the mirror started has been reported.
    Complete,
}

/// Follows everything below a directory.
#[derive(Debug)]
pub struct Mirror {
    root: String,
    depth: usize,
    window: usize,
    calls: Calls<Purpose>,
    /// Being read, and what happened to it meanwhile.
    reading: BTreeMap<String, Overtaken>,
    /// To be read because it changed, by its level: goes first, and directories before what is in them.
    changed: BTreeSet<(usize, String)>,
    /// Those that changed lately, and are to be read when they still are there later: since the last
    /// [`Mirror::catch_up`], and before it.
    lately: [BTreeSet<String>; 2],
    is_lazy: bool,
    /// To be read because a listing named it.
    listed: Vec<String>,
    /// Directories to be listed.
    to_list: Vec<String>,
    /// Being read, or about to be, because a listing named it.
    initial: BTreeSet<String>,
    /// What was reported as gone while lists were on their way, which may be older and still name it.
    gone: BTreeSet<String>,
    /// What was refused; true if its children are to be listed as well.
    refused: BTreeMap<String, bool>,
    state: State,
}

/// The events of a znode while it was being read.
#[derive(Clone, Copy, Debug, Default)]
struct Overtaken {
    /// It changed, or is there again, so it is read again.
    again: bool,
    /// It went, so the answer may be of what was there before.
    stale: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Off,
    /// Its watch may not be set yet.
    Starting,
    Loading,
    Complete,
}

#[derive(Debug)]
enum Purpose {
    Watch,
    List(String),
    Read(String),
}

impl Mirror {
    /// Follows what is up to `depth` levels below `root`, with at most `window` reads at once.
    pub fn new(root: String, depth: usize, window: usize) -> Mirror {
        Mirror {
            root,
            depth,
            window,
            calls: Calls::default(),
            reading: BTreeMap::new(),
            changed: BTreeSet::new(),
            lately: Default::default(),
            is_lazy: false,
            listed: Vec::new(),
            to_list: Vec::new(),
            initial: BTreeSet::new(),
            gone: BTreeSet::new(),
            refused: BTreeMap::new(),
            state: State::Off,
        }
    }

    /// Starts, on a connection that is up and has no watch of this mirror.
    pub fn start<R>(&mut self, out: &mut Actions<R>) {
        self.reset();
        self.state = State::Starting;
        // The watch is set before the list is read, so nothing falls between them.
        self.calls.issue(out, Call::Watch { path: self.root.clone(), mode: WatchMode::Tree }, Purpose::Watch);
    }

    /// Forgets what is on its way: the connection is gone.
    pub fn reset(&mut self) {
        let root = std::mem::take(&mut self.root);
        *self = Mirror { is_lazy: self.is_lazy, ..Mirror::new(root, self.depth, self.window) };
    }

    /// Whether it was started on this connection.
    pub fn is_started(&self) -> bool {
        self.state != State::Off
    }

    /// The path of what is there below the mirrored directory.
    fn whole(&self, below: &str) -> String {
        if below.is_empty() { self.root.clone() } else { format!("{}/{below}", self.root) }
    }

    /// Whether everything that existed at the start has been reported.
    pub fn is_complete(&self) -> bool {
        self.state == State::Complete
    }

    /// Takes in a change of a watched znode, which is ours if it is not above or beside the mirrored directory.
    pub fn on_changed<R>(
        &mut self,
        path: &str,
        kind: ChangeKind,
        out: &mut Actions<R>,
    ) -> Routed<Vec<Change>> {
        let Some(below) = path.strip_prefix(self.root.as_str()) else { return Routed::NotMine };
        if below.is_empty() {
            return Routed::Mine(Vec::new());
        }
        let Some(below) = below.strip_prefix('/') else { return Routed::NotMine };
        if self.state == State::Off || level(below) > self.depth {
            return Routed::Mine(Vec::new());
        }
        Routed::Mine(self.on_changed_below(below, kind, out))
    }

    fn on_changed_below<R>(&mut self, below: &str, kind: ChangeKind, out: &mut Actions<R>) -> Vec<Change> {
        let mut changes = Vec::new();
        match kind {
            ChangeKind::Children => {}
            // What a read under way shows is older than that, or of another znode of this name.
            ChangeKind::Deleted => {
                self.changed.remove(&(level(below), below.to_string()));
                if !self.reading.contains_key(below) {
                    self.initial.remove(below);
                }
                self.forget_lately(below);
                if let Some(overtaken) = self.reading.get_mut(below) {
                    *overtaken = Overtaken { again: false, stale: true };
                }
                if self.lists() {
                    self.gone.insert(below.to_string());
                }
                self.refused.remove(below);
                changes.push(Change::Gone { path: below.to_string() });
            }
            ChangeKind::Created | ChangeKind::Data => {
                self.gone.remove(below);
                if kind == ChangeKind::Created {
                    changes.push(Change::Appeared { path: below.to_string() });
                }
                changes.extend(self.note_change(below, kind));
            }
        }
        self.pump(out);
        changes
    }

    /// Sees to it that it is read again, at once or later; a change whose read is put off is reported.
    fn note_change(&mut self, below: &str, kind: ChangeKind) -> Option<Change> {
        let complete = self.state == State::Complete;
        if let Some(overtaken) = self.reading.get_mut(below) {
            overtaken.again = true;
        } else if complete
            && (self.is_lazy || kind == ChangeKind::Data)
            && !self.is_dir(below)
            && !self.is_reading(below)
        {
            if !self.lately[1].contains(below) {
                self.lately[0].insert(below.to_string());
            }
            return (!self.is_lazy).then(|| Change::Touched { path: below.to_string() });
        } else {
            self.enlist([below.to_string()]);
        }
        None
    }

    /// Whether it is being read, or about to be.
    pub fn is_reading(&self, below: &str) -> bool {
        self.reading.contains_key(below) || self.changed.contains(&(level(below), below.to_string()))
    }

    fn is_dir(&self, below: &str) -> bool {
        level(below) < self.depth
    }

    fn enlist(&mut self, znodes: impl IntoIterator<Item = String>) {
        self.changed.extend(znodes.into_iter().map(|below| (level(&below), below)));
    }

    fn forget_lately(&mut self, below: &str) {
        for set in &mut self.lately {
            set.remove(below);
        }
    }

    /// Whether all changed znodes may be read later: not before the next [`Mirror::catch_up`] but one. What is gone by
    /// then is not read at all.
    pub fn take_time<R>(&mut self, is_lazy: bool, out: &mut Actions<R>) {
        self.is_lazy = is_lazy;
        if !is_lazy {
            let lately = std::mem::take(&mut self.lately);
            self.enlist(lately.into_iter().flatten());
            self.pump(out);
        }
    }

    /// Whether there is something to catch up on.
    pub fn is_behind(&self) -> bool {
        self.lately.iter().any(|set| !set.is_empty())
    }

    /// Reads what changed before this was last called.
    pub fn catch_up<R>(&mut self, out: &mut Actions<R>) {
        let [now, before] = std::mem::take(&mut self.lately);
        self.enlist(before);
        self.lately[1] = now;
        self.pump(out);
    }

    /// Whether a znode was changed, and what was seen of it is older.
    pub fn is_behind_on(&self, below: &str) -> bool {
        self.lately.iter().any(|set| set.contains(below))
    }

    /// Reads a znode once more; it will be reported as seen or gone.
    pub fn read_again<R>(&mut self, below: &str, out: &mut Actions<R>) {
        self.forget_lately(below);
        if self.state != State::Off && !self.reading.contains_key(below) {
            self.enlist([below.to_string()]);
            self.pump(out);
        }
    }

    /// Whether something was refused, and is to be tried again.
    pub fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Tries again what was refused. No watch reports that an ACL was repaired, so the caller has to ask now and then.
    pub fn try_refused<R>(&mut self, out: &mut Actions<R>) {
        for (below, lists) in std::mem::take(&mut self.refused) {
            if lists {
                self.to_list.push(below.clone());
            }
            if !self.reading.contains_key(&below) {
                self.enlist([below]);
            }
        }
        self.pump(out);
    }

    /// It is tried again with [`Mirror::try_refused`]. Without its watch or its first list a mirror would be a picture:
    /// it never becomes complete.
    fn refuse(&mut self, below: &str, lists: bool, answer: Result<&Reply, Refusal>) -> Change {
        if below.is_empty() {
            self.reset();
        } else if self.refused.len() < MAX_REFUSED || self.refused.contains_key(below) {
            *self.refused.entry(below.to_string()).or_default() |= lists;
        }
        Change::Refused { path: self.whole(below), refusal: answer.err().unwrap_or(Refusal::Other(0)) }
    }

    /// Whether lists are on their way, or about to be.
    fn lists(&self) -> bool {
        self.state != State::Complete || !self.to_list.is_empty() || self.calls.len() > self.reading.len()
    }

    /// Takes in a reply.
    pub fn on_reply<R>(
        &mut self,
        id: CallId,
        result: &CallResult,
        out: &mut Actions<R>,
    ) -> Routed<Vec<Change>> {
        self.calls.route(id, result).map(|(purpose, answer)| match answer {
            Some(answer) => self.on_answer(purpose, answer, out),
            None => {
                // What is still answered must not make it complete.
                self.reset();
                Vec::new()
            }
        })
    }

    fn on_answer<R>(
        &mut self,
        purpose: Purpose,
        answer: Result<&Reply, Refusal>,
        out: &mut Actions<R>,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        match purpose {
            Purpose::Watch => match answer {
                Ok(_) => {
                    self.state = State::Loading;
                    self.to_list.push(String::new());
                }
                other => changes.push(self.refuse("", false, other)),
            },
            Purpose::List(dir) => match answer {
                Ok(Reply::Children(names)) => self.on_listed(&dir, names, &mut changes),
                Err(Refusal::NoNode) => {}
                other => changes.push(self.refuse(&dir, true, other)),
            },
            Purpose::Read(path) => {
                let Overtaken { again, stale } = self.reading.remove(&path).unwrap_or_default();
                self.initial.remove(&path);
                if again {
                    self.enlist([path.clone()]);
                }
                match answer {
                    Ok(_) if stale => {}
                    Ok(Reply::Data { data, stat }) => {
                        changes.push(Change::Seen { path, data: data.clone(), stat: *stat });
                    }
                    // Its end is reported by its event alone, so after all that came before it: a worker
                    // makes a new registration before it deletes the old one, and answers come another way.
                    Err(Refusal::NoNode) => {}
                    other => changes.push(self.refuse(&path, false, other)),
                }
            }
        }
        self.pump(out);
        if self.state == State::Loading && self.is_loaded() {
            self.state = State::Complete;
            changes.push(Change::Complete);
        }
        if !self.lists() {
            self.gone.clear();
        }
        changes
    }

    /// Whether all that lists named was read. What changes meanwhile need not be: there may always be some.
    fn is_loaded(&self) -> bool {
        let listing = self.calls.len() > self.reading.len();
        !listing && self.initial.is_empty() && self.listed.is_empty() && self.to_list.is_empty()
    }

    fn on_listed(&mut self, dir: &str, names: &[String], changes: &mut Vec<Change>) {
        for name in names {
            let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
            if self.gone.contains(&path) {
                continue;
            }
            changes.push(Change::Appeared { path: path.clone() });
            if self.is_dir(&path) {
                // What is in a directory may depend on what the directory says, so that is read first.
                self.to_list.push(path.clone());
                self.initial.insert(path.clone());
                self.enlist([path]);
            } else {
                self.listed.push(path);
            }
        }
    }

    /// Keeps the window full.
    fn pump<R>(&mut self, out: &mut Actions<R>) {
        // No event reports a change or a deletion that comes before the watch is set.
        if self.state == State::Starting {
            return;
        }
        while self.reading.len() < self.window {
            let path = match self.changed.pop_first() {
                Some((_, path)) => path,
                None => {
                    let Some(path) = self.listed.pop() else { break };
                    self.initial.insert(path.clone());
                    path
                }
            };
            if self.reading.contains_key(&path) {
                continue;
            }
            let call = Call::Get { path: self.whole(&path), watch: false };
            self.reading.insert(path.clone(), Overtaken::default());
            self.calls.issue(out, call, Purpose::Read(path));
        }
        let listings = self.calls.len() - self.reading.len();
        for _ in listings..MAX_LISTINGS {
            if self.listed.len() >= MAX_BACKLOG {
                break;
            }
            let Some(dir) = self.to_list.pop() else { break };
            self.calls.issue(out, Call::Children { path: self.whole(&dir) }, Purpose::List(dir));
        }
    }
}

/// How far below the mirrored directory it is: 1 for its children.
fn level(below: &str) -> usize {
    below.split('/').count()
}
