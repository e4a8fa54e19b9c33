//! What becomes of an assignment when the ensemble has answered: it was read, written, or refused.

use super::worker_assignment::{Changes, Held, Revoked, SyncState};
use super::{AssignmentTable, Deed, State, Step};
use crate::contract::Incarnation;
use crate::contract::worker::{Assignment, Entry};
use crate::machine::{Actions, Level, Refusal, Reply};

impl AssignmentTable {
    pub(super) fn on_read<R>(
        &mut self,
        incarnation: &Incarnation,
        result: Result<&Reply, Refusal>,
        steps: &mut Vec<Step>,
        out: &mut Actions<R>,
    ) {
        let (data, version, mzxid) = match result {
            Ok(Reply::Data { data, stat }) => (data, stat.version, stat.mzxid),
            Err(Refusal::NoNode) => return self.drop_assignment(incarnation, steps),
            Ok(_) => return,
            Err(refusal) => return self.refuse(incarnation, Deed::Read, refusal, steps, out),
        };
        let Some(assignment) = self.assignments.get_mut(incarnation) else { return };
        assignment.version = version;
        assignment.state = SyncState::Idle;
        let read = Assignment::decode(data);
        // Its writer had become a leader before: an epoch after its own assignment's is from another ensemble.
        if let Ok(read) = &read
            && read.epoch > self.epoch
            && read.epoch < mzxid
        {
            return steps.push(Step::Deposed { epoch: read.epoch });
        }
        self.touched.insert(incarnation.clone());
        if assignment.ours {
            // A stranger wrote over what we know better.
            assignment.set_dirty();
            return self.at_once(incarnation);
        }
        // An earlier read of the assignment, if there was one, is stale: a deposed leader wrote in between.
        let is_to_be_claimed = self.state == State::TakingOver || self.unclaimed.contains(incarnation);
        assignment.changes = if is_to_be_claimed { Changes::Pending } else { Changes::None };
        let earlier = assignment.take_all();
        self.forget_holder(incarnation, &earlier);
        if !earlier.is_empty() {
            steps.push(Step::Closed(incarnation.clone(), earlier));
        }
        self.at_once(incarnation);
        match read {
            Ok(read) => self.take_in(incarnation, read.entries),
            Err(malformed) => {
                self.lose(incarnation);
                let path = self.layout.assignment(incarnation);
                return out
                    .log(Level::Error, format!("{path} is no assignment ({malformed}): it is left alone"));
            }
        }
        // What is on the assignment must leave the queue now: a standby's queue holds all that is pending.
        steps.push(Step::Opened(incarnation.clone()));
    }

    /// Takes over what is on an assignment. The same may be on two, if a leader that died had written only one half
    /// of its move from one to the other. Then the entry that is read later is stale, and is revoked, so that it goes
    /// when its worker has vouched for it.
    fn take_in(&mut self, incarnation: &Incarnation, entries: Vec<Entry>) {
        for entry in entries {
            let id = entry.id();
            let is_elsewhere = self.holders.get(&id).is_some_and(|other| other != incarnation);
            let revoked = if entry.revoked || is_elsewhere { Revoked::Wanted } else { Revoked::No };
            if !is_elsewhere {
                self.holders.insert(id.clone(), incarnation.clone());
            }
            if let Some(assignment) = self.assignments.get_mut(incarnation) {
                if revoked == Revoked::Wanted && !entry.revoked {
                    assignment.set_dirty();
                }
                assignment.push_written(id, Held::inherited(revoked, entry.recalled, entry.recheck));
            }
        }
    }

    pub(super) fn on_written<R>(
        &mut self,
        incarnation: &Incarnation,
        result: Result<&Reply, Refusal>,
        steps: &mut Vec<Step>,
        out: &mut Actions<R>,
    ) {
        let Some(assignment) = self.assignments.get_mut(incarnation) else { return };
        match result {
            Ok(Reply::Stat(stat)) => {
                if assignment.was_refused() {
                    self.touched.insert(incarnation.clone());
                }
                if assignment.sent(stat.version) {
                    let path = self.layout.assignment(incarnation);
                    out.log(Level::Info, format!("{path} can be written again: its worker gets tasks again"));
                }
                if assignment.changes == Changes::Urgent {
                    self.at_once(incarnation);
                }
                self.unclaimed.remove(incarnation);
                steps.push(Step::Written(incarnation.clone()));
            }
            Err(Refusal::NoNode) => self.drop_assignment(incarnation, steps),
            Err(Refusal::BadVersion) => {
                assignment.set_unsent();
                self.read(incarnation);
            }
            Ok(_) => {}
            Err(refusal) => self.refuse(incarnation, Deed::Write, refusal, steps, out),
        }
    }

    /// The ensemble refused something of an assignment. It is tried again after a pause.
    pub(super) fn refuse<R>(
        &mut self,
        incarnation: &Incarnation,
        deed: Deed,
        refusal: Refusal,
        steps: &mut Vec<Step>,
        out: &mut Actions<R>,
    ) {
        let Some(assignment) = self.assignments.get_mut(incarnation) else { return };
        if deed == Deed::Write && refusal == Refusal::TooLarge {
            // What is left of the assignment after this fits, for it was written before.
            self.max_bytes = self.max_bytes.min(assignment.bytes) / 2;
        }
        let (unsent, pause) = match deed {
            Deed::Read => (Vec::new(), assignment.refuse(SyncState::Unreadable)),
            Deed::Write => (assignment.unsend(), assignment.refuse(SyncState::Refused)),
            Deed::Delete => (Vec::new(), assignment.refuse_deletion()),
        };
        if assignment.is_refused_anew() {
            let (deed, so) = match deed {
                Deed::Read => ("be read", "its worker gets no tasks until it can"),
                Deed::Write => ("be written", "its worker gets no new tasks until it can; others do"),
                Deed::Delete => ("be deleted", "it is kept, though nothing is on it"),
            };
            let path = self.layout.assignment(incarnation);
            let todo = "check its ACL and the quotas above it";
            let text = format!("{path} cannot {deed} ({refusal}): {so}. It is tried again and again; {todo}");
            out.log(Level::Error, text);
        }
        self.note_unclaimed(incarnation);
        self.touched.insert(incarnation.clone());
        self.rest(incarnation);
        self.within(incarnation, pause);
        // Another worker can have what this one never read.
        self.forget_holder(incarnation, &unsent);
        steps.push(Step::AssignmentRefused(incarnation.clone(), unsent));
    }
}
