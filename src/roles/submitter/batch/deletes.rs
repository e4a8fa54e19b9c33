//! Which chunks were shown and are to be deleted. Bookkeeping only: it makes no calls.

use std::collections::{BTreeMap, BTreeSet};

use crate::roles::submitter::MAX_DELETES;

/// The chunks that are being deleted, or are to be.
#[derive(Debug, Default)]
pub struct Deletes {
    /// Chunks of which all was shown and that are being deleted, or are to be.
    deleting: BTreeMap<u64, Deleting>,
    /// Those of them that wait for their turn.
    waiting: BTreeSet<u64>,
    /// Chunks of which all was shown and that we do not delete.
    left: u64,
}

#[derive(Clone, Copy, Debug)]
struct Deleting {
    version: i32,
    /// Deletes that were in doubt.
    doubts: u32,
}

impl Deletes {
    /// All of a chunk was shown, as of this version.
    pub fn add(&mut self, unit: u64, version: i32) {
        self.deleting.insert(unit, Deleting { version, doubts: 0 });
        self.waiting.insert(unit);
    }

    /// All of a chunk was shown that the leader has to delete.
    pub fn leave(&mut self) {
        self.left += 1;
    }

    /// The next chunk to delete, with its version.
    pub fn next(&mut self) -> Option<(u64, i32)> {
        let unit = self.waiting.pop_first()?;
        Some((unit, self.deleting.get(&unit)?.version))
    }

    /// The chunk is gone, or stays.
    pub fn settled(&mut self, unit: u64) {
        self.deleting.remove(&unit);
    }

    /// A delete is in doubt. It is made again, but not for ever.
    pub fn doubt(&mut self, unit: u64) {
        let Some(deleting) = self.deleting.get_mut(&unit) else { return };
        deleting.doubts += 1;
        if deleting.doubts >= MAX_DELETES {
            self.deleting.remove(&unit);
            self.left += 1;
        }
    }

    /// A new connection: all has to be deleted that was not known to be gone.
    pub fn on_connected(&mut self) {
        self.waiting = self.deleting.keys().copied().collect();
    }

    /// Whether nothing is being deleted, or is to be.
    pub fn is_done(&self) -> bool {
        self.deleting.is_empty()
    }

    /// Chunks that were shown and still exist, if the batch ends now.
    pub fn left(&self) -> u64 {
        self.left + self.deleting.len() as u64
    }
}
