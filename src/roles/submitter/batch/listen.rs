//! A batch learns what becomes of its tasks: from groups of outcomes, or by hearing of every change of its parts.
//!
//! Of a part that is watched, two changes are told for each task, its creation and its deletion, that are the batch's own. Where
//! outcomes come in groups nothing else is told there, so a large batch begins without, and is told of groups alone. What
//! is told in no group shows by being late: then the part is watched, and what is pending in it read once. That is
//!
//! - at once, if so few tasks are left that they would be no group;
//! - when no group told of anything for [`SILENCE`];
//! - when groups have told of a part, or of one after it, for [`LONG`], and it is not over.
//!
//! Most outcomes that stand in no group are so seen within three seconds, and all within [`LONG`] of when their part's turn came.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Batch, MAX_WARMING, Purpose, Source};
use crate::contract::LINES_PER_PART;
use crate::machine::{Actions, Call, CreateMode, Instant, Refusal, Reply, WatchMode, earlier};
use crate::roles::client::ClientReport;

/// Where no group tells of anything for so long, outcomes are looked for elsewhere.
pub const SILENCE: Duration = Duration::from_secs(3);

/// A part whose turn has come is over in less than this, where its outcomes come in groups.
pub const LONG: Duration = Duration::from_secs(5);

/// So few tasks may all end without a group.
pub const FEW: u64 = 128;

/// What a batch knows of how it is told of outcomes.
#[derive(Debug, Default)]
pub struct Ears {
    /// No group has told of anything for long, so nothing is left to groups alone.
    pub silent: bool,
    /// Parts of which groups told in this turn.
    pub told: BTreeSet<u64>,
    /// The last part of which any told.
    newest: Option<u64>,
    /// When a group last told of anything, or there was nothing to tell.
    told_at: Option<Instant>,
    /// When to look whether it is too long ago.
    pub look_at: Option<Instant>,
}

impl Batch {
    /// Makes the parts, and sets their watches.
    pub(super) fn warm_parts(&mut self, out: &mut Actions<ClientReport>) {
        while !self.ensuring && self.warming < MAX_WARMING {
            let Some((part, made)) = self.parts.next_cold() else { break };
            self.warming += 1;
            if made {
                self.watch_part(part, out);
            } else {
                let data = self.part_data().encode();
                let path = self.part_path(part);
                let call = Call::Create { path, data, mode: CreateMode::Persistent };
                self.calls.issue(out, call, Purpose::MakePart(part));
            }
        }
    }

    /// The part stands.
    pub(super) fn on_part_stands(&mut self, part: u64, out: &mut Actions<ClientReport>) {
        self.warming += 1;
        if self.is_apart {
            let path = self.groups_path(part);
            let call = Call::Create { path, data: Vec::new(), mode: CreateMode::Persistent };
            self.calls.issue(out, call, Purpose::MakeGroups(part));
        } else {
            self.parts.made(part);
            self.watch_part(part, out);
        }
    }

    /// The directory of the part's groups stands, or cannot.
    pub(super) fn on_groups_made(
        &mut self,
        part: u64,
        result: Result<&Reply, Refusal>,
        out: &mut Actions<ClientReport>,
    ) {
        match result {
            Ok(_) | Err(Refusal::NodeExists) => {
                self.parts.made(part);
                self.warming += 1;
                self.watch_part(part, out);
            }
            Err(Refusal::NoNode) => self.on_part_missing(part, out),
            Err(refusal) => self.refused("make the groups of", Some(part), refusal, out),
        }
    }

    /// Nobody waits for a detached batch, so it needs no watch.
    fn watch_part(&mut self, part: u64, out: &mut Actions<ClientReport>) {
        let (path, purpose) = if self.detach {
            self.warming -= 1;
            return self.parts.hears(part);
        } else if self.is_apart {
            (self.groups_path(part), Purpose::WatchGroups(part))
        } else {
            (self.part_path(part), Purpose::WatchPart(part))
        };
        self.calls.issue(out, Call::Watch { path, mode: WatchMode::Tree }, purpose);
    }

    /// We are told of the part's groups from now on. Of what stood before that, a group may have told already.
    pub(super) fn on_groups_watched(&mut self, part: u64, out: &mut Actions<ClientReport>) {
        if self.ears.silent || self.parts.has_pending(part) {
            self.hear(part, out);
        } else {
            self.parts.warmed(part);
        }
    }

    fn hear(&mut self, part: u64, out: &mut Actions<ClientReport>) {
        self.warming += 1;
        let call = Call::Watch { path: self.part_path(part), mode: WatchMode::Tree };
        self.calls.issue(out, call, Purpose::WatchPart(part));
    }

    /// We are told of all that happens in the part from now on. What is being created may stand by now, and have ended before
    /// that.
    pub(super) fn on_heard(&mut self, part: u64) {
        let units = part * LINES_PER_PART..(part + 1) * LINES_PER_PART;
        for (_, open) in self.open.range_mut(units).filter(|(unit, _)| !self.unsent.contains(unit)) {
            open.changed = true;
        }
        self.parts.hears(part);
    }

    /// Watches the parts of which more has to be heard than groups tell.
    pub(super) fn listen(&mut self, now: Instant, out: &mut Actions<ClientReport>) {
        let told = std::mem::take(&mut self.ears.told);
        for part in &told {
            self.parts.told(*part, now);
        }
        // Tasks are run in their order: the turn of what comes before has come as well.
        let newest = told.last().copied().max(self.ears.newest);
        self.ears.newest = newest;
        let before = self.parts.deaf().filter(|(part, since)| since.is_none() && Some(*part) < newest);
        for part in before.map(|(part, _)| part).collect::<Vec<_>>() {
            self.parts.told(part, now);
        }
        // What stands in groups that wait to be read will be told.
        let is_told = !told.is_empty() || !self.groups.is_empty() || self.group_reads > 0;
        if is_told || self.parts.pending_count() == 0 {
            self.ears.told_at = Some(now);
        }
        let silent_at = *self.ears.told_at.get_or_insert(now) + SILENCE;
        let is_last = self.source == Source::Dry && self.open.is_empty();
        let few = is_last && self.parts.pending_count() <= FEW;
        self.ears.silent = self.cancelling || silent_at <= now;
        let all = self.ears.silent || few;
        let is_due = |since: Option<Instant>| all || since.is_some_and(|since| since + LONG <= now);
        let room = MAX_WARMING.saturating_sub(self.warming);
        let due = self.parts.deaf().filter(|(_, since)| is_due(*since)).map(|(part, _)| part);
        for part in due.take(room).collect::<Vec<_>>() {
            self.parts.will_hear(part);
            self.hear(part, out);
        }
        let waiting = self.parts.deaf().filter(|(_, since)| !is_due(*since));
        let long = waiting.map(|(_, since)| since.map(|since| since + LONG));
        // What is due, and found no room, goes on with the next reply.
        self.ears.look_at =
            long.reduce(earlier).map(|long| earlier(long, Some(silent_at)).unwrap_or(silent_at));
    }

    fn groups_path(&self, part: u64) -> String {
        self.layout.below_groups(self.id(part * LINES_PER_PART).dir())
    }
}
