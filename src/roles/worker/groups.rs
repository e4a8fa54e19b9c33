//! What a worker tells by groups: which outcomes, and what becomes of them there.

use super::reports::Want;
use super::slot::{State, Told, Work};
use super::{Mode, Out, Worker};
use crate::contract::TaskId;
use crate::contract::worker::Seen;
use crate::machine::{Instant, Stat};
use crate::recipes::groups::Step;

impl Worker {
    /// What was started of an entry is over, and this is to be written down of it: with others if that may be.
    pub(super) fn tell_or_owe(&mut self, id: &TaskId, work: Work, want: Want, out: &mut Out) {
        let outcome = match want {
            Want::Outcome(outcome) if self.may_tell(id, &work) => outcome,
            want => return self.owe(id, &work, want, out),
        };
        let mut task = work.task.clone();
        task.end((*outcome).clone());
        let stat = Stat { version: work.version, mzxid: work.mzxid, ..Stat::default() };
        match (Seen::of(&task.encode_to_fit(), &stat), self.slots.get_mut(id)) {
            (Some(seen), Some(slot)) => {
                slot.state = State::Telling(Box::new(Told { work, outcome }));
                self.groups.add(id, seen);
            }
            _ => self.owe(id, &work, Want::Outcome(outcome), out),
        }
    }

    fn may_tell(&self, id: &TaskId, work: &Work) -> bool {
        let works = self.mode == Mode::Working && self.dying.is_none();
        let is_asked_after = |slot: &super::Slot| slot.revoked || slot.orphaned || slot.next.is_some();
        works
            && self.connected
            && self.registrar.is_standing()
            && work.task.commands.is_none()
            && self.groups.is_wanted(id.dir())
            && !self.slots.get(id).is_none_or(is_asked_after)
    }

    /// Goes on with groups.
    pub(super) fn pump_groups(&mut self, now: Instant, out: &mut Out) {
        if self.connected {
            let alone = self.groups.pump(now, out);
            self.tell_alone(&alone, out);
        }
    }

    pub(super) fn on_group(&mut self, step: Step, out: &mut Out) {
        match step {
            Step::Alone(tasks) => self.tell_alone(&tasks, out),
            // What is being written alone since is settled when that is done, and not before.
            Step::Written(tasks) => {
                for task in tasks {
                    let Some(slot) = self.slots.get_mut(&task) else { continue };
                    match std::mem::replace(&mut slot.state, State::Reporting) {
                        State::Telling(told) => slot.state = State::Told(told),
                        other => slot.state = other,
                    }
                }
            }
        }
    }

    /// Writes outcomes that have a place in groups into their tasks.
    pub(super) fn tell_alone(&mut self, tasks: &[TaskId], out: &mut Out) {
        for task in tasks {
            let Some(slot) = self.slots.get_mut(task) else { continue };
            match std::mem::replace(&mut slot.state, State::Reporting) {
                State::Telling(told) | State::Told(told) => {
                    self.groups.drop_waiting(task);
                    let Told { work, outcome } = *told;
                    self.owe(task, &work, Want::Outcome(outcome), out);
                }
                other => slot.state = other,
            }
        }
    }

    /// The same of all: this incarnation comes to its end.
    pub(super) fn tell_all_alone(&mut self, out: &mut Out) {
        let told = |state: &State| matches!(state, State::Telling(_) | State::Told(_));
        let tasks: Vec<TaskId> =
            self.slots.iter().filter(|(_, slot)| told(&slot.state)).map(|(task, _)| task.clone()).collect();
        self.tell_alone(&tasks, out);
    }
}
