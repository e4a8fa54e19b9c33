//! Which lines of a chunk are waited for, and which of them were shown.

use std::collections::{BTreeMap, BTreeSet};

use crate::contract::TaskId;
use crate::contract::line::LineName;
use crate::contract::task::Task;
use crate::roles::client::Ended;

/// A task that is waited for.
#[derive(Debug)]
pub struct Watched {
    /// The user named it, and it was not seen at all yet.
    pub doubtful: bool,
    /// The lines that are meant, if not all.
    named: BTreeMap<usize, LineName>,
    /// All are meant.
    whole: bool,
    /// How many commands it has; 1 until it was read.
    width: u64,
    /// The positions of what was shown.
    shown: BTreeSet<usize>,
}

impl Watched {
    /// Nothing of a task yet.
    pub fn new(named: bool) -> Watched {
        let (named, doubtful) = (BTreeMap::new(), named);
        Watched { doubtful, named, whole: false, width: 1, shown: BTreeSet::new() }
    }

    /// Waits for this line of it too, or for all.
    pub fn take_up(&mut self, line: Option<(usize, LineName)>) {
        self.whole |= line.is_none();
        self.named.extend(line);
    }

    /// How many commands it counts for.
    pub fn commands(&self) -> u64 {
        if self.whole { self.width } else { self.named.len() as u64 }
    }

    /// How many of them were not shown.
    pub fn open(&self) -> u64 {
        self.commands().saturating_sub(self.shown.len() as u64)
    }

    /// Whether all of it is waited for.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether it is waited for as a task of its own is.
    pub fn is_one_line(&self) -> bool {
        !self.whole && self.named.len() == 1
    }

    /// The names of the lines that are meant; none if all are.
    pub fn names(&self) -> Vec<String> {
        if self.whole { Vec::new() } else { self.named.values().map(LineName::to_string).collect() }
    }

    /// What to call it.
    pub fn name(&self, id: &TaskId) -> String {
        match self.names().as_slice() {
            [name] => name.clone(),
            _ => id.to_string(),
        }
    }

    /// What ended since the last read, of a chunk as it is now; and lines that were named and are none.
    pub fn take_new(&mut self, id: &TaskId, task: &Task) -> (Vec<Ended>, Vec<String>) {
        let lines: BTreeMap<usize, u64> = task.positions().collect();
        self.width = lines.len() as u64;
        let (mut ended, mut unknown) = (Vec::new(), Vec::new());
        for (position, name) in &self.named {
            if !lines.contains_key(position) && self.shown.insert(*position) {
                unknown.push(name.to_string());
            }
        }
        for (position, line) in lines {
            if !(self.whole || self.named.contains_key(&position)) || self.shown.contains(&position) {
                continue;
            }
            let Some(outcome) = task.command_outcome(position) else { continue };
            self.shown.insert(position);
            ended.push(Ended { id: id.clone(), line: Some(line), outcome, alone: false });
        }
        (ended, unknown)
    }
}
