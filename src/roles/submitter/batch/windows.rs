//! The windows of a batch: how much of it is open at a time, and which call has its turn before which.

use super::parts::part_of;
use super::units::Unit;
use super::{Batch, Deleting, Open, Purpose, Source};
use crate::contract::MAX_TASK_BYTES;
use crate::exit;
use crate::machine::{Action, Actions, BatchLine, Call, CreateMode};
use crate::roles::client::ClientReport;

/// Creates in flight.
pub(super) const MAX_CREATES: usize = 512;

/// The same while as much is being collected as may be.
pub(super) const MIN_CREATES: usize = 32;

/// Tasks that stand and have not ended, beyond which no more are made than end, as long as they end quickly. A few seconds'
/// work for a fast service; more would only be held in memory by the servers and the masters.
pub(super) const MAX_AHEAD: u64 = 20_000;

/// Deletes that wait or are in flight: with as many, tasks end quickly.
pub(super) const RUSH: usize = 64;

/// Reads and deletes in flight.
pub(super) const MAX_COLLECTS: usize = 1_024;

/// Reads in flight: each answer may be a whole znode.
pub(super) const MAX_READS: usize = 32;

/// Tasks whose outcome was shown and that stand still; beyond that no further outcome is read.
pub(super) const MAX_UNDELETED: usize = 2 * MAX_COLLECTS;

/// Bytes of open lines beyond which no more are asked for.
pub(super) const MAX_OPEN_BYTES: usize = 8 * 1024 * 1024;

/// Lines that are asked for at a time, and the number of open units below which more are asked for.
pub(super) const READ_AHEAD: usize = 2 * MAX_CREATES;

impl Batch {
    pub(super) fn read_lines(&mut self, out: &mut Actions<ClientReport>) {
        let room = self.open.len() < READ_AHEAD && self.open_bytes < MAX_OPEN_BYTES;
        if self.source == Source::Idle && room {
            self.source = Source::Asked;
            out.push(Action::ReadLines(READ_AHEAD));
        }
    }

    pub(super) fn on_lines(&mut self, lines: Vec<BatchLine>) {
        if self.source == Source::Dry {
            return;
        }
        self.source = if lines.len() < READ_AHEAD { Source::Dry } else { Source::Idle };
        for line in lines {
            if let Some(unit) = self.units.add(line) {
                self.open(unit);
            }
        }
        if self.source == Source::Dry
            && let Some(unit) = self.units.finish()
        {
            self.open(unit);
        }
    }

    fn open(&mut self, unit: Unit) {
        let Unit { number, payload, commands, bytes } = unit;
        self.parts.open(part_of(number));
        self.open.insert(number, Open { payload, commands, bytes, doubts: 0, changed: false });
        self.open_bytes += bytes;
        self.unsent.insert(number);
    }

    pub(super) fn create(&mut self, out: &mut Actions<ClientReport>) {
        if self.parts.pending_count() >= MAX_AHEAD && self.deleting.len() >= RUSH {
            return;
        }
        // Who cannot keep up with what ends makes no more of it: tasks would only stand for longer.
        let most = if self.collects < MAX_COLLECTS { MAX_CREATES } else { MIN_CREATES };
        while self.creates < most {
            // In order; what cannot be created yet holds up only what comes after it.
            let is_ready = |unit: &u64| self.parts.is_warm(part_of(*unit));
            let Some(unit) = self.unsent.first().copied().filter(is_ready) else { break };
            // Before a task can be cancelled for certain it has to stand.
            let closed = self.pace.is_closed() && !self.cancelling;
            if closed && !(self.keyed && self.pace.may_look()) {
                break;
            }
            self.unsent.remove(&unit);
            let Some(Open { payload, .. }) = self.open.get(&unit) else { continue };
            let path = self.path(unit);
            if closed {
                self.calls.issue(out, Call::Get { path, watch: false }, Purpose::Compare(unit));
            } else {
                let data = self.task(payload).encode();
                if data.len() > MAX_TASK_BYTES {
                    return self.too_large(unit, data.len(), out);
                }
                self.calls.issue(
                    out,
                    Call::Create { path, data, mode: CreateMode::Persistent },
                    Purpose::Create(unit),
                );
            }
            self.creates += 1;
        }
    }

    /// The size of the chunks was set by who came first with the key.
    fn too_large(&mut self, unit: u64, bytes: usize, out: &mut Actions<ClientReport>) {
        let (path, lines) = (self.path(unit), self.lines_of(unit));
        self.open.remove(&unit);
        let why = format!(
            "cannot create {path} ({lines}): the chunk has {bytes} bytes; at most {MAX_TASK_BYTES} are allowed"
        );
        self.fail(exit::DATA, why, out);
    }

    pub(super) fn collect(&mut self, out: &mut Actions<ClientReport>) {
        while self.collects < MAX_COLLECTS
            && self.reads < MAX_READS
            && self.deleting.len() + self.reads < MAX_UNDELETED
        {
            let Some(unit) = self.parts.next_unread() else { break };
            if !self.early.begin_read(unit) {
                continue;
            }
            self.calls.issue(out, Call::Get { path: self.path(unit), watch: false }, Purpose::Read(unit));
            self.collects += 1;
            self.reads += 1;
        }
        let before = match self.open.first_key_value() {
            Some((unit, _)) => part_of(*unit),
            None if self.source == Source::Dry => u64::MAX,
            None => 0,
        };
        self.parts.retire(before);
    }

    /// Deletes what was shown before more is read: what is gone soon need not be read by masters.
    pub(super) fn clean_up(&mut self, out: &mut Actions<ClientReport>) {
        while self.collects < MAX_COLLECTS {
            let Some(unit) = self.shown.pop_front() else { break };
            if let Some(Deleting { version, .. }) = self.deleting.get(&unit) {
                let call = Call::Delete { path: self.path(unit), version: Some(*version) };
                self.calls.issue(out, call, Purpose::Delete(unit));
                self.collects += 1;
            }
        }
    }
}
