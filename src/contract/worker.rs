//! What workers and the leader write for each other: registrations and assignments.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::{Extra, Labels, Malformed, TaskId, VERSION, is_default, one, version};
use crate::machine::Stat;

/// Most entries of one assignment; each is well below 400 bytes, so it fits a znode.
pub const MAX_ENTRIES: usize = 1_000;

/// Most tasks that a registration names as quarantined.
pub const MAX_QUARANTINED: usize = 100;

/// Entries that a worker may have started beyond its slots, whose outcomes are being written down. It starts entries in
/// their order: of those without an outcome only the first `slots` + this many can have been started.
pub const START_AHEAD: usize = 192;

/// Likewise in commands, of which a share of a chunk has many.
pub const START_AHEAD_LINES: usize = 512;

/// Most data of a task that an entry carries along.
pub const MAX_SEEN_BYTES: usize = 1_000;

/// Most data of tasks that one version of an assignment carries along.
pub const MAX_SEEN_IN_ALL: usize = 10_000;

/// Most bytes of what a registration says of a worker's health, as encoded.
pub const MAX_UNHEALTHY_BYTES: usize = 300;

/// Most slots of one worker.
pub const MAX_SLOTS: u32 = 1_000;

/// A worker's registration: who it is, what it can do, how far it got.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    #[serde(default = "version")]
    v: u32,
    /// The process that wrote it.
    #[serde(flatten)]
    pub process: ProcessIdentity,
    /// Tasks that it runs at once.
    pub slots: u32,
    /// What it says of itself.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// It takes no further tasks.
    #[serde(default, skip_serializing_if = "is_default")]
    pub draining: bool,
    /// Tasks that it can run at a time for now, if fewer than `slots`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usable: Option<u32>,
    /// Why it could not start a task, until it can again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<String>,
    /// All entries that were revoked in this version of its assignment, or an earlier one, are dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_through: Option<i32>,
    /// Tasks whose outcome it cannot write; they take up no slot.
    #[serde(rename = "aside", default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<TaskId>,
    /// The czxid of this incarnation's first registration; absent in the first itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<i64>,
    /// The session timeout that the ensemble granted to it.
    pub session_timeout_ms: u64,
    #[serde(flatten)]
    extra: Extra,
}

/// Who a worker's process is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The machine's name.
    pub host: String,
    /// The kernel's id of this boot of the machine.
    pub boot_id: String,
    /// The pid namespace that its pid is of.
    pub pid_ns: u64,
    /// Its number.
    pub pid: u32,
    /// When it started, in the kernel's ticks since boot.
    pub start_time: u64,
}

impl Registration {
    /// A first registration.
    pub fn new(
        process: &ProcessIdentity,
        slots: u32,
        labels: Labels,
        session_timeout_ms: u64,
    ) -> Registration {
        let process = process.clone();
        Registration { v: VERSION, process, slots, labels, session_timeout_ms, ..Registration::default() }
    }

    /// Tasks that it can run at a time now.
    pub fn usable_slots(&self) -> u32 {
        self.usable.map_or(self.slots, |usable| usable.min(self.slots))
    }

    /// Reads a registration.
    pub fn decode(data: &[u8]) -> Result<Registration, Malformed> {
        let registration: Registration = super::decode(data)?;
        if registration.slots == 0 || registration.slots > MAX_SLOTS {
            return Err(Malformed(format!("it has {} slots, not 1 to {MAX_SLOTS}", registration.slots)));
        }
        Ok(registration)
    }

    /// Writes a registration.
    pub fn encode(&self) -> Vec<u8> {
        super::encode(self)
    }
}

/// What an entry names: a task at an attempt, or a share of a chunk, with its number instead of the attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    /// The task.
    pub task: TaskId,
    /// Its attempt, or the number of the share.
    pub attempt: u32,
}

impl EntryId {
    /// This attempt of a task, or share of a chunk.
    pub fn new(task: &TaskId, attempt: u32) -> EntryId {
        EntryId { task: task.clone(), attempt }
    }

    /// Where all of a task are among others.
    pub fn all_of(task: &TaskId) -> RangeInclusive<EntryId> {
        EntryId::new(task, 0)..=EntryId::new(task, u32::MAX)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (attempt {})", self.task, self.attempt)
    }
}

/// One task in an assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The task.
    pub task: TaskId,
    /// The attempt that it is at, or the number of the share of a chunk; an entry with an old one is stale. Of a chunk
    /// there may be several entries.
    #[serde(default = "one")]
    pub attempt: u32,
    /// To be killed, or not to be started.
    #[serde(default, skip_serializing_if = "is_default")]
    pub revoked: bool,
    /// Another worker could run it now: it is to be released, unless it was started.
    #[serde(default, skip_serializing_if = "is_default")]
    pub recalled: bool,
    /// Of a share: this version of the chunk has something that the worker should know. A worker that knows an earlier
    /// one reads it.
    #[serde(rename = "look", default, skip_serializing_if = "Option::is_none")]
    pub recheck: Option<i32>,
    /// The task as the leader had just read it, so that its worker need not. It is there in one version of the
    /// assignment at most, and only of small tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
}

/// A task's znode as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its data.
    pub data: String,
    /// Its version then.
    pub version: i32,
    /// The transaction that had written it.
    #[serde(default)]
    pub mzxid: i64,
}

impl Entry {
    /// What it names.
    pub fn id(&self) -> EntryId {
        EntryId::new(&self.task, self.attempt)
    }
}

impl Seen {
    /// From what was read, if it is text and short enough for an entry.
    pub fn of(data: &[u8], stat: &Stat) -> Option<Seen> {
        let text = str::from_utf8(data).ok().filter(|text| text.len() <= MAX_SEEN_BYTES)?;
        Some(Seen { data: text.to_string(), version: stat.version, mzxid: stat.mzxid })
    }
}

/// What one incarnation has to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    #[serde(default = "version")]
    v: u32,
    /// The czxid of the contender of the leader that wrote it; 0 if none has yet.
    #[serde(default)]
    pub epoch: i64,
    /// The tasks.
    #[serde(default)]
    pub entries: Vec<Entry>,
    #[serde(flatten)]
    extra: Extra,
}

impl Assignment {
    /// An assignment by the leader of this epoch.
    pub fn new(epoch: i64, entries: Vec<Entry>) -> Assignment {
        Assignment { v: VERSION, epoch, entries, extra: Extra::new() }
    }

    /// Reads an assignment.
    pub fn decode(data: &[u8]) -> Result<Assignment, Malformed> {
        super::decode(data)
    }

    /// Writes an assignment.
    pub fn encode(&self) -> Vec<u8> {
        super::encode(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::MAX_DATA_BYTES;

    #[test]
    fn a_full_assignment_fits_a_znode() {
        let task = TaskId::new(&"j".repeat(128 + 1 + 128 + 5), &"t".repeat(128));
        let entry =
            Entry { task, attempt: u32::MAX, revoked: true, recalled: true, recheck: None, seen: None };
        let mut entries = vec![entry; MAX_ENTRIES];
        // What takes most bytes when it is a string in a string.
        let data = "\u{1}".repeat(MAX_SEEN_BYTES);
        for entry in &mut entries[..MAX_SEEN_IN_ALL / MAX_SEEN_BYTES] {
            entry.seen = Some(Seen { data: data.clone(), version: i32::MIN, mzxid: i64::MIN });
        }
        assert!(Assignment::new(i64::MAX, entries).encode().len() <= MAX_DATA_BYTES);
    }

    #[test]
    fn slots_have_limits() {
        let registration =
            |slots| Registration::new(&ProcessIdentity::default(), slots, Labels::new(), 1).encode();
        assert!(Registration::decode(&registration(1)).is_ok());
        assert!(Registration::decode(&registration(0)).is_err());
        assert!(Registration::decode(&registration(MAX_SLOTS + 1)).is_err());
    }
}
