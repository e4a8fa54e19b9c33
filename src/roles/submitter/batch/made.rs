//! A batch makes copies of its tasks before it makes them, many together, so that nobody has to read each.
//!
//! A task is created only after the copies with it are known to stand, or not to be wanted. After a lost connection none
//! are made of tasks of which a create may have been applied. A leader relies on both: see `src/roles/master/copies.rs`.

use std::collections::BTreeMap;

use super::parts::{Over, part_of};
use super::windows::{MAX_COLLECTS, MAX_CREATES, MAX_OPEN_BYTES, READ_AHEAD};
use super::{Batch, Open, Purpose, Source};
use crate::contract::copies::{Copies, MADE_TOGETHER, MAX_COPIES, MAX_COPIES_BYTES, MIN_COPIES, made_name};
use crate::contract::worker::{MAX_SEEN_BYTES, Seen};
use crate::contract::{LINES_PER_PART, name_of};
use crate::machine::{Actions, Call, CreateMode, Refusal, Reply};
use crate::roles::client::ClientReport;

/// Units of one group: those that have their copies in one znode.
const GROUP: u64 = MADE_TOGETHER;

const _: () =
    assert!(GROUP <= MAX_COPIES as u64 && LINES_PER_PART.is_multiple_of(GROUP), "a group is in one part");

/// Groups of which copies are made before their turn has come.
const GROUPS_AHEAD: usize = 4;

/// Znodes with copies that are left when their tasks are over; they go with the session. More are deleted.
const MAX_LEFT: usize = 32;

/// Most znodes with copies that stand. A leader keeps no more, and a session may not have any number of ephemerals.
const MAX_STANDING: usize = 128;

/// How far the copies of a group are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// They are being made.
    Making,
    /// They stand there.
    Standing(String),
    /// There are none.
    None,
}

impl Batch {
    /// Whether this unit may be created, as far as copies go.
    pub(super) fn is_copied(&self, unit: u64) -> bool {
        !self.is_apart
            || self.cancelling
            || matches!(self.made.get(&(unit / GROUP)), Some(Stage::Standing(_) | Stage::None))
    }

    /// Makes copies of what is to be created soon.
    pub(super) fn make_copies(&mut self, out: &mut Actions<ClientReport>) {
        if !self.is_apart || self.cancelling || self.pace.is_closed() {
            return;
        }
        let mut from = 0;
        for _ in 0..GROUPS_AHEAD {
            let Some(unit) = self.unsent.range(from..).next().copied() else { break };
            let group = unit / GROUP;
            from = (group + 1) * GROUP;
            if self.made.contains_key(&group) {
                continue;
            }
            if self.creates >= MAX_CREATES || !self.parts.is_warm(part_of(unit)) || !self.is_read_to(from) {
                break;
            }
            let copies = self.copies_of(group);
            let standing = self.made.values().filter(|stage| **stage != Stage::None).count();
            if copies.len() < MIN_COPIES || standing + self.copies_left.len() >= MAX_STANDING {
                self.made.insert(group, Stage::None);
                continue;
            }
            let (part, first) = (self.part_path(part_of(unit)), self.path(group * GROUP));
            let path = format!("{part}/{}", made_name(&self.batch, name_of(&first)));
            let data = Copies::new(copies).encode();
            let call = Call::Create { path: path.clone(), data, mode: CreateMode::Ephemeral };
            self.calls.issue(out, call, Purpose::MakeCopies(group, path));
            self.creates += 1;
            self.made.insert(group, Stage::Making);
        }
    }

    /// Whether all units before this one were read, or no more are for now.
    fn is_read_to(&self, end: u64) -> bool {
        let waits = self.open_bytes >= MAX_OPEN_BYTES || self.open.len() >= READ_AHEAD;
        self.source == Source::Dry || self.read_to >= end || waits
    }

    fn copies_of(&self, group: u64) -> BTreeMap<String, Seen> {
        let mut bytes = 0;
        let mut copies = BTreeMap::new();
        for (unit, Open { payload, .. }) in self.open.range(group * GROUP..(group + 1) * GROUP) {
            if !self.unsent.contains(unit) {
                continue;
            }
            let data = self.task(payload).encode();
            bytes += data.len();
            if bytes > MAX_COPIES_BYTES {
                break;
            }
            if data.len() <= MAX_SEEN_BYTES
                && let Ok(data) = String::from_utf8(data)
            {
                let name = name_of(&self.path(*unit)).to_string();
                copies.insert(name, Seen { data, version: 0, mzxid: 0 });
            }
        }
        copies
    }

    pub(super) fn on_copies_made(&mut self, group: u64, path: String, result: Result<&Reply, Refusal>) {
        let stage = if result.is_ok() { Stage::Standing(path) } else { Stage::None };
        self.made.insert(group, stage);
    }

    /// The session is gone, and the copies go with it. None are made again, for their tasks may stand by now, and be over.
    pub(super) fn forget_copies(&mut self) {
        for stage in self.made.values_mut() {
            *stage = Stage::None;
        }
        self.copies_left.clear();
    }

    /// A task is over, and with it perhaps all that its copies are of; tells what is known of it, if it was pending at all.
    pub(super) fn over(&mut self, unit: u64) -> Option<Over> {
        let over = self.parts.over(unit)?;
        if self.is_apart {
            self.over_groups.insert(unit / GROUP);
        }
        Some(over)
    }

    /// Forgets groups of which all tasks are over; deletes their copies, when there are many.
    pub(super) fn drop_copies(&mut self, out: &mut Actions<ClientReport>) {
        for group in std::mem::take(&mut self.over_groups) {
            let units = group * GROUP..(group + 1) * GROUP;
            let more = self.source != Source::Dry && self.read_to < units.end;
            let open = self.open.range(units.clone()).next().is_some();
            if more || open || self.parts.is_any_pending(units) {
                continue;
            }
            if let Some(Stage::Standing(path)) = self.made.remove(&group) {
                self.copies_left.push_back(path);
            }
        }
        while self.copies_left.len() > MAX_LEFT
            && self.collects < MAX_COLLECTS
            && let Some(path) = self.copies_left.pop_front()
        {
            // Without a version: the name is used once.
            self.calls.issue(out, Call::Delete { path, version: None }, Purpose::DropCopies);
            self.collects += 1;
        }
    }
}
