//! Znodes in which there is something of many tasks of one directory together. Their names no task can have, and all have one
//! format, [`Copies`].
//!
//! *Copies* are of tasks that are about to be made: ephemeral, beside them, by their submitter, for the leader, which gives
//! them to workers. A copy is a help and never a truth: who has none reads the task.
//!
//! *Groups* are of tasks that have ended: each as its worker would have written it, with its outcome. What stands in a group
//! stands nowhere else, and is the truth. Groups stand in a directory of their own, so that who waits for outcomes need not hear
//! of every task that is made or deleted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::worker::Seen;
use super::{Extra, Incarnation, Malformed, VERSION, version};

/// Most tasks of which one znode has copies.
pub const MAX_COPIES: usize = 256;

/// Most data of tasks that one znode has copies of, in bytes as they stand in the tasks.
pub const MAX_COPIES_BYTES: usize = 64 * 1024;

/// Of fewer tasks than this no copies are made.
pub const MIN_COPIES: usize = 40;

/// Of fewer tasks than this no group is written. Since no outcome is written twice, no directory has more places for groups
/// than this part of its tasks.
pub const MIN_GROUP: usize = 8;

/// Tasks of a batch, by their numbers, of which the copies are made together before they are.
pub const MADE_TOGETHER: u64 = 250;

/// What the name of every such znode begins with: no task's, job's or worker's may.
const MARK: char = '~';

/// What the name begins with where there is a group of tasks that have ended.
const ENDED: &str = "~ended~";

/// What the name begins with where the copies are of tasks that are about to be made.
const MADE: &str = "~made~";

/// Whether a znode of this name is no task, wherever it stands.
pub fn is_copies(name: &str) -> bool {
    name.starts_with(MARK)
}

/// Whether it is a place for groups.
pub fn is_of_ended(name: &str) -> bool {
    name.starts_with(ENDED)
}

/// The name of the `n`th place of an incarnation for groups.
pub fn ended_name(by: &Incarnation, n: u64) -> String {
    format!("{ENDED}{by}~{n}")
}

/// Whose place for groups the znode of this name is, if it is one.
pub fn ended_by(name: &str) -> Option<Incarnation> {
    let (by, n) = name.strip_prefix(ENDED)?.rsplit_once('~')?;
    n.parse::<u64>().ok()?;
    Incarnation::parse(by)
}

/// The name of the znode in which a batch has copies of its tasks from this one on.
pub fn made_name(batch: &str, first: &str) -> String {
    format!("{MADE}{batch}~{first}")
}

/// The first of the tasks that are about to be made, if that is what the znode of this name has copies of.
pub fn first_made(name: &str) -> Option<&str> {
    name.strip_prefix(MADE)?.rsplit_once('~').map(|(_, first)| first)
}

/// Copies, or a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Copies {
    #[serde(default = "version")]
    v: u32,
    /// By the task's name within the directory: what stands in it, and as which version; in a group what would stand in it,
    /// and over which version.
    #[serde(default)]
    pub tasks: BTreeMap<String, Seen>,
    #[serde(flatten)]
    extra: Extra,
}

impl Copies {
    /// What there is of these tasks.
    pub fn new(tasks: BTreeMap<String, Seen>) -> Copies {
        Copies { v: VERSION, tasks, extra: Extra::new() }
    }

    /// Reads copies, or a group.
    pub fn decode(data: &[u8]) -> Result<Copies, Malformed> {
        let copies: Copies = super::decode(data)?;
        if copies.tasks.len() > MAX_COPIES {
            return Err(Malformed(format!(
                "it has copies of {} tasks, not {MAX_COPIES}",
                copies.tasks.len()
            )));
        }
        Ok(copies)
    }

    /// Writes them.
    pub fn encode(&self) -> Vec<u8> {
        super::encode(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::worker::MAX_SEEN_BYTES;
    use crate::contract::{LINES_PER_PART, MAX_CHILDREN_TOLERATED, MAX_DATA_BYTES, is_user_id};

    #[test]
    fn names_are_no_tasks_and_full_copies_fit_a_znode() {
        let name = ended_name(&Incarnation::new("w", 7), 3);
        assert_eq!(name, "~ended~w~0000000000000007~3");
        assert_eq!(ended_by(&name), Some(Incarnation::new("w", 7)));
        assert!(
            ["~ended~w~7", "~ended~w~7~x", "~ended~3", "~made~w~7~3"].iter().all(|no| ended_by(no).is_none())
        );
        assert!(is_copies(&name) && is_of_ended(&name) && !is_user_id(&name));
        assert_eq!(first_made(&made_name("B", "0000128")), Some("0000128"));
        assert!(is_copies(&made_name("B", "1")) && first_made(&name).is_none());
        assert!(is_copies("~x") && !is_of_ended("~x") && !is_copies("0000001"));
        let seen = Seen { data: "\u{1}".repeat(MAX_SEEN_BYTES), version: i32::MIN, mzxid: i64::MIN };
        let tasks = |count: usize| -> BTreeMap<_, _> {
            (0..count).map(|n| (format!("{n:0>128}"), seen.clone())).collect()
        };
        let full = Copies::new(tasks(MAX_COPIES_BYTES / MAX_SEEN_BYTES)).encode();
        assert!(full.len() <= MAX_DATA_BYTES, "{}", full.len());
        assert!(Copies::decode(&Copies::new(tasks(MAX_COPIES + 1)).encode()).is_err());
    }

    #[test]
    fn they_leave_room_for_the_tasks_of_a_directory() {
        let tasks = LINES_PER_PART as usize;
        let most = tasks + tasks / MIN_GROUP + tasks / MADE_TOGETHER as usize;
        assert!(most <= MAX_CHILDREN_TOLERATED as usize);
    }
}
