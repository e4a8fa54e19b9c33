//! What a leader knows of tasks from copies that were made before them, so that neither it nor their workers read them.
//!
//! A worker runs such a task unread, so it must be certain that nobody was ever given it. A copy is used only if it was
//! made in this term, for a task of which this leader heard after it heard of the copy (events come in the order of what they
//! tell, so the task is younger), and that it has not given out, read, or heard of again since.

use std::collections::{BTreeMap, BTreeSet};

use super::{Master, Out};
use crate::contract::copies::{Copies, first_made, is_of_ended};
use crate::contract::worker::Seen;
use crate::contract::{Layout, TaskId, name_of};
use crate::machine::{Call, CallId, CallResult, Calls, Reply};
use crate::recipes::mirror::Beside;

/// Znodes of which the copies are kept, each of at most [`MAX_COPIES`](crate::contract::copies::MAX_COPIES) tasks. Other
/// tasks are read by their workers.
const MAX_GROUPS: usize = 128;

/// Tasks of one group of which is noted what happened to them while the copies are being read.
const MAX_NOTED: usize = 4_000;

/// The directory, and the first of the tasks of which a znode has copies.
type Key = (String, String);

/// Copies of tasks that were not given out yet.
#[derive(Debug, Default)]
pub struct Copybook {
    groups: BTreeMap<Key, Group>,
    calls: Calls<Key>,
}

/// The copies of one znode.
#[derive(Debug, Default)]
struct Group {
    /// Nothing while they are being read.
    copies: Option<BTreeMap<String, Seen>>,
    /// Tasks of which a first event came after that of the copies, and nothing else since.
    born: BTreeSet<String>,
    /// Those of which something else came before the copies were read.
    spent: BTreeSet<String>,
}

fn key(path: &str) -> Option<Key> {
    let (dir, name) = path.split_once('/')?;
    Some((dir.to_string(), first_made(name)?.to_string()))
}

impl Copybook {
    /// Copies were made; they are read if there is room for them.
    pub fn on_made(&mut self, layout: &Layout, path: &str, out: &mut Out) {
        let Some(key) = key(path).filter(|key| !self.groups.contains_key(key)) else { return };
        if self.groups.len() < MAX_GROUPS {
            let call = Call::Get { path: layout.below_tasks(path), watch: false };
            self.groups.insert(key.clone(), Group::default());
            self.calls.issue(out, call, key);
        }
    }

    /// They are there no more: their tasks are over, or their submitter is gone.
    fn on_gone(&mut self, path: &str) {
        if let Some(key) = key(path) {
            self.groups.remove(&key);
        }
    }

    /// Takes in a reply; false if it is somebody else's. `announced`: the write with which this term began.
    pub fn on_reply(&mut self, id: CallId, result: &CallResult, announced: Option<i64>) -> bool {
        let Some(key) = self.calls.take(id) else { return false };
        let read = match result {
            Ok(Reply::Data { data, stat }) if stat.ephemeral_owner != 0 => {
                let is_new = announced.is_some_and(|announced| stat.czxid > announced);
                Copies::decode(data).ok().filter(|_| is_new).map(|copies| (copies.tasks, stat.czxid))
            }
            _ => None,
        };
        let Some(group) = self.groups.get_mut(&key) else { return true };
        let (tasks, czxid) = read.unwrap_or_default();
        let is_good = |(name, seen): &(String, Seen)| seen.version == 0 && !group.spent.contains(name);
        // The tasks are younger than that.
        let young = |(name, seen): (String, Seen)| (name, Seen { mzxid: czxid, ..seen });
        let copies: BTreeMap<_, _> = tasks.into_iter().filter(is_good).map(young).collect();
        group.born.retain(|name| copies.contains_key(name));
        group.spent.clear();
        group.copies = Some(copies);
        self.drop_if_empty(&key);
        true
    }

    fn drop_if_empty(&mut self, key: &Key) {
        let empty = |group: &Group| group.copies.as_ref().is_some_and(BTreeMap::is_empty);
        if self.groups.get(key).is_some_and(empty) {
            self.groups.remove(key);
        }
    }

    /// The group in which the task would be.
    fn group(&mut self, task: &TaskId) -> Option<(Key, &mut Group)> {
        let at = (task.dir().to_string(), name_of(task.as_str()).to_string());
        let (key, group) = self.groups.range_mut(..=at).next_back()?;
        (key.0 == task.dir()).then(|| (key.clone(), group))
    }

    /// The task was made just now.
    pub fn on_born(&mut self, task: &TaskId) {
        let name = name_of(task.as_str());
        if let Some((_, group)) = self.group(task)
            && group.copies.as_ref().is_none_or(|copies| copies.contains_key(name))
            && group.born.len() < MAX_NOTED
        {
            group.born.insert(name.to_string());
        }
    }

    /// What the task was made as, if that is certain to be what stands there. From now on it no longer is: so this is
    /// called whenever the task is given out, and whenever anything is heard of it.
    pub fn take(&mut self, task: &TaskId) -> Option<Seen> {
        if self.groups.is_empty() {
            return None;
        }
        let (key, group) = self.group(task)?;
        let name = name_of(task.as_str());
        let born = group.born.remove(name);
        let seen = match &mut group.copies {
            Some(copies) => copies.remove(name),
            // So much happens only where these copies are not ours to understand.
            None if group.spent.len() >= MAX_NOTED => {
                self.groups.remove(&key);
                None
            }
            None => {
                group.spent.insert(name.to_string());
                None
            }
        };
        self.drop_if_empty(&key);
        seen.filter(|_| born)
    }
}

impl Master {
    /// Something stands beside tasks, or does no longer.
    pub(super) fn on_beside(&mut self, path: &str, how: Beside, out: &mut Out) {
        if is_of_ended(name_of(path)) {
            return self.on_group(path, how, out);
        }
        let Some(term) = &mut self.term else { return };
        match how {
            Beside::Made => term.copies.on_made(&self.params.layout, path, out),
            // Its tasks may be older than this leader knows.
            Beside::Found | Beside::Changed => {}
            Beside::Gone => term.copies.on_gone(path),
        }
    }

    /// Something was heard of the task besides that it was made.
    pub(super) fn void_copy(&mut self, task: &TaskId) {
        if let Some(term) = &mut self.term {
            term.copies.take(task);
        }
    }
}
