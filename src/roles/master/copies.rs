//! What a leader knows of tasks from copies that were made before them, so that neither it nor their workers read them.
//!
//! Such a copy stands before the first of its tasks is created, and names only tasks that nobody tried to create before.
//! So if it was made in this term, all its tasks were, and nobody else ever gave one of them out.

use std::collections::BTreeMap;

use super::{Master, Out};
use crate::contract::copies::{Copies, MAX_COPIES, first_made};
use crate::contract::worker::Seen;
use crate::contract::{Layout, TaskId, name_of};
use crate::machine::{Call, CallId, CallResult, Calls, Reply};

/// Tasks of which copies are kept. Of more their workers read them.
const MAX_KEPT: usize = 32_768;

/// Copies of tasks that were not given out yet.
#[derive(Debug, Default)]
pub struct Copybook {
    /// By directory and the name of the first task, as they were made.
    kept: BTreeMap<(String, String), BTreeMap<String, Seen>>,
    count: usize,
    /// The directories and first tasks of what is being read.
    calls: Calls<(String, String)>,
}

/// The directory, and the first task of which a znode has copies.
fn key(path: &str) -> Option<(String, String)> {
    let (dir, name) = path.split_once('/')?;
    Some((dir.to_string(), first_made(name)?.to_string()))
}

impl Copybook {
    /// Copies were made; they are read if there is room for them.
    pub fn on_made(&mut self, layout: &Layout, path: &str, out: &mut Out) {
        let Some(key) = key(path) else { return };
        if self.count + (self.calls.len() + 1) * MAX_COPIES <= MAX_KEPT {
            let call = Call::Get { path: format!("{}/{path}", layout.tasks()), watch: false };
            self.calls.issue(out, call, key);
        }
    }

    /// They are there no more: their tasks are over, or their submitter is gone.
    fn on_gone(&mut self, path: &str) {
        if let Some(gone) = key(path).and_then(|key| self.kept.remove(&key)) {
            self.count -= gone.len();
        }
    }

    /// Takes in a reply; false if it is somebody else's. `announced`: the write with which this term began.
    pub fn on_reply(&mut self, id: CallId, result: &CallResult, announced: Option<i64>) -> bool {
        let Some(key) = self.calls.take(id) else { return false };
        let Ok(Reply::Data { data, stat }) = result else { return true };
        let Ok(copies) = Copies::decode(data) else { return true };
        if announced.is_some_and(|announced| stat.czxid > announced) && stat.ephemeral_owner != 0 {
            // Its tasks are younger than this.
            let young = |(name, seen): (String, Seen)| (name, Seen { mzxid: stat.czxid, ..seen });
            let tasks: BTreeMap<_, _> =
                copies.tasks.into_iter().filter(|(_, seen)| seen.version == 0).map(young).collect();
            self.count += tasks.len();
            let before = self.kept.insert(key, tasks);
            self.count -= before.map_or(0, |before| before.len());
        }
        true
    }

    /// What the task was made as; that is not kept any longer.
    pub fn take(&mut self, task: &TaskId) -> Option<Seen> {
        let (dir, name) = (task.dir(), name_of(task.as_str()));
        let at = (dir.to_string(), name.to_string());
        let (_, tasks) = self.kept.range_mut(..=at).next_back().filter(|(key, _)| key.0 == dir)?;
        let seen = tasks.remove(name)?;
        self.count -= 1;
        Some(seen)
    }
}

impl Master {
    /// Something stands beside tasks, or does no longer.
    pub(super) fn on_beside(&mut self, path: &str, gone: bool, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        if gone {
            term.copies.on_gone(path);
        } else {
            term.copies.on_made(&self.params.layout, path, out);
        }
    }
}
