//! Copies: tells what was written into tasks once more, many together, to who waits for them.
//!
//! Whatever goes wrong here costs a read elsewhere and nothing else, so nothing is tried twice. What is told was
//! acknowledged by the ensemble before, so it is true of the version that it names.
//!
//! Several znodes take turns for each directory: who reads has that many writes' time before what he was told of is
//! written over. They are ephemeral, and deleted when nothing more comes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::contract::copies::{Copies, MAX_COPIES, MAX_COPIES_BYTES, MIN_COPIES, ended_name};
use crate::contract::worker::Seen;
use crate::contract::{Incarnation, Layout, TaskId, name_of};
use crate::machine::{
    Actions, Call, CallError, CallId, CallResult, Calls, CreateMode, Instant, Reply, earlier,
};

/// Directories of which copies are made at a time.
const MAX_DIRS: usize = 4;

/// Znodes that take turns for one directory.
const TURNS: usize = 4;

/// How long what ended waits for company. What has too little by then is not told.
const TOGETHER: Duration = Duration::from_millis(250);

/// How long after the last write the znodes of a directory stay.
const IDLE: Duration = Duration::from_secs(1);

/// Makes copies of what one incarnation ended.
#[derive(Debug)]
pub struct Publisher {
    layout: Layout,
    by: Incarnation,
    /// Directories whose submitters read copies.
    wanted: BTreeSet<String>,
    dirs: BTreeMap<String, Dir>,
    /// Of the last znode; no name is used twice.
    number: u64,
    calls: Calls<Purpose>,
}

#[derive(Debug, Default)]
struct Dir {
    /// What ended and was not told yet, and how much data that is.
    fresh: BTreeMap<String, Seen>,
    bytes: usize,
    /// When it is told at the latest.
    due: Option<Instant>,
    znodes: [Option<Znode>; TURNS],
    turn: usize,
    writing: bool,
    /// When the znodes go if nothing more comes.
    until: Instant,
}

#[derive(Debug)]
struct Znode {
    path: String,
    version: i32,
}

#[derive(Debug)]
enum Purpose {
    Make { dir: String, turn: usize, path: String },
    Set { dir: String, turn: usize },
    Delete,
}

impl Dir {
    fn is_full(&self) -> bool {
        self.fresh.len() >= MAX_COPIES
            || (self.fresh.len() >= MIN_COPIES && self.bytes >= MAX_COPIES_BYTES / 2)
    }

    /// What goes into one znode.
    fn take(&mut self) -> BTreeMap<String, Seen> {
        let mut taken = BTreeMap::new();
        let mut bytes = 0;
        while let Some(first) = self.fresh.first_entry() {
            bytes += first.get().data.len();
            if taken.len() >= MAX_COPIES || bytes > MAX_COPIES_BYTES {
                break;
            }
            let (name, seen) = first.remove_entry();
            self.bytes -= seen.data.len();
            taken.insert(name, seen);
        }
        taken
    }

    fn drop_fresh(&mut self) {
        self.fresh.clear();
        self.bytes = 0;
    }
}

impl Publisher {
    /// Copies of nothing.
    pub fn new(layout: &Layout, by: &Incarnation) -> Publisher {
        Publisher {
            layout: layout.clone(),
            by: by.clone(),
            wanted: BTreeSet::new(),
            dirs: BTreeMap::new(),
            number: 0,
            calls: Calls::default(),
        }
    }

    /// The session is gone, and all znodes with it.
    pub fn on_lost(&mut self) {
        self.calls.clear();
        self.dirs.clear();
    }

    /// From now on what is told is told by this incarnation.
    pub fn rename(&mut self, by: &Incarnation) {
        self.by = by.clone();
    }

    /// The submitter of the tasks of this directory reads copies.
    pub fn want(&mut self, dir: &str) {
        self.wanted.insert(dir.to_string());
    }

    /// Forgets which directories want copies, but for these.
    pub fn retain(&mut self, is_needed: impl Fn(&str) -> bool) {
        self.wanted.retain(|dir| is_needed(dir));
    }

    /// A task has ended, and this stands in it.
    pub fn add(&mut self, task: &TaskId, seen: Seen, now: Instant) {
        let dir = task.dir();
        if !self.wanted.contains(dir) || (self.dirs.len() >= MAX_DIRS && !self.dirs.contains_key(dir)) {
            return;
        }
        let dir = self.dirs.entry(dir.to_string()).or_default();
        if dir.is_full() && dir.writing {
            // The ensemble does not keep up, and what is told late was read by then.
            dir.drop_fresh();
        }
        dir.due.get_or_insert(now + TOGETHER);
        dir.bytes += seen.data.len();
        if let Some(before) = dir.fresh.insert(name_of(task.as_str()).to_string(), seen) {
            dir.bytes -= before.data.len();
        }
    }

    /// Writes what is to be written by now.
    pub fn pump<R>(&mut self, now: Instant, out: &mut Actions<R>) {
        let (calls, number) = (&mut self.calls, &mut self.number);
        self.dirs.retain(|name, dir| {
            if dir.writing {
                return true;
            }
            let is_due = dir.due.is_some_and(|due| due <= now);
            if is_due && dir.fresh.len() < MIN_COPIES {
                dir.drop_fresh();
                dir.due = None;
            } else if is_due || dir.is_full() {
                let data = Copies::new(dir.take()).encode();
                dir.due = (!dir.fresh.is_empty()).then(|| now + TOGETHER);
                dir.until = now + IDLE;
                dir.turn = (dir.turn + 1) % TURNS;
                dir.writing = true;
                let turn = dir.turn;
                if let Some(Znode { path, version }) = &dir.znodes[turn] {
                    let call = Call::Set { path: path.clone(), data, version: *version };
                    calls.issue(out, call, Purpose::Set { dir: name.clone(), turn });
                } else {
                    *number += 1;
                    let path = format!("{}/{}", self.layout.job(name), ended_name(&self.by, *number));
                    let call = Call::Create { path: path.clone(), data, mode: CreateMode::Ephemeral };
                    calls.issue(out, call, Purpose::Make { dir: name.clone(), turn, path });
                }
            }
            let stays = dir.writing || dir.due.is_some() || dir.until > now;
            if !stays {
                for znode in dir.znodes.iter_mut().filter_map(Option::take) {
                    // Without a version: the name is used once.
                    calls.issue(out, Call::Delete { path: znode.path, version: None }, Purpose::Delete);
                }
            }
            stays
        });
    }

    /// Takes in a reply; false if it is somebody else's.
    pub fn on_reply(&mut self, id: CallId, result: &CallResult) -> bool {
        let Some(purpose) = self.calls.take(id) else { return false };
        let (name, turn, made) = match purpose {
            Purpose::Make { dir, turn, path } => (dir, turn, Some(path)),
            Purpose::Set { dir, turn } => (dir, turn, None),
            Purpose::Delete => return true,
        };
        let Some(dir) = self.dirs.get_mut(&name) else { return true };
        dir.writing = false;
        match (result, made) {
            (Ok(Reply::Created { .. }), Some(path)) => dir.znodes[turn] = Some(Znode { path, version: 0 }),
            (Ok(Reply::Stat(stat)), None) => {
                if let Some(znode) = &mut dir.znodes[turn] {
                    znode.version = stat.version;
                }
            }
            // The connection is about to be lost, and all of this with it.
            (Err(CallError::NotSent | CallError::MaybeApplied), _) => {}
            // Somebody else took it away, or wrote over it.
            (_, None) => dir.znodes[turn] = None,
            (_, Some(_)) => {
                self.wanted.remove(&name);
                dir.drop_fresh();
                dir.due = None;
            }
        }
        true
    }

    /// When something is to be done, if nothing happens before.
    pub fn next_wake(&self) -> Option<Instant> {
        let idle = self.dirs.values().filter(|dir| !dir.writing);
        idle.map(|dir| dir.due.unwrap_or(dir.until)).fold(None, |first, at| earlier(first, Some(at)))
    }
}
