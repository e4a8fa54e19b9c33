//! The end of a single submit: the outcome is shown, and the task deleted; or its user wants an end before.

use super::{Phase, Purpose, Single};
use crate::contract::task::{Outcome, Task};
use crate::machine::{Action, Actions, Call, Level, Refusal, Reply};
use crate::roles::client::{ClientReport, Ended, INTERRUPTED, exit_code};

impl Single {
    /// Shows the outcome. What follows happens only if that succeeded.
    pub(super) fn ended(&mut self, outcome: Outcome, version: i32, out: &mut Actions<ClientReport>) {
        let code = exit_code(&outcome);
        let ended = Ended { id: self.id.clone(), line: None, outcome, alone: true };
        out.push(Action::Report(ClientReport::Ended(Box::new(ended))));
        if self.task.keyed || self.attached || self.doubts > 0 {
            return self.over(code, out);
        }
        self.phase = Phase::Deleting { version, code, tries: 0, give_up: None };
        self.delete(out);
    }

    pub(super) fn on_deleted(&mut self, result: Result<&Reply, Refusal>, out: &mut Actions<ClientReport>) {
        let Phase::Deleting { code, .. } = self.phase else { return };
        match result {
            Ok(_) | Err(Refusal::NoNode) => self.over(code, out),
            Err(Refusal::BadVersion) => {
                self.call(Call::Get { path: self.path(), watch: false }, Purpose::ReadLast, out);
            }
            Err(refusal) => {
                out.log(Level::Warn, format!("cannot delete the task {}: {refusal}", self.path()));
                self.over(code, out);
            }
        }
    }

    pub(super) fn on_read_last(&mut self, result: Result<&Reply, Refusal>, out: &mut Actions<ClientReport>) {
        let Phase::Deleting { code, .. } = self.phase else { return };
        if let Ok(Reply::Data { data, .. }) = result {
            let what = match Task::decode(data) {
                Ok(task) if task.outcome.is_none() => "was retried by someone",
                _ => "was changed by someone",
            };
            let id = &self.id;
            out.log(Level::Warn, format!("the task {id} {what} after this outcome: see zkmw wait {id}"));
        }
        self.over(code, out);
    }

    pub(super) fn leave_to_leader(&mut self, code: i32, out: &mut Actions<ClientReport>) {
        out.log(Level::Info, format!("the task {} is left for the leader to delete", self.id));
        self.over(code, out);
    }

    /// The user wants an end.
    pub(super) fn on_stop(&mut self, again: bool, out: &mut Actions<ClientReport>) {
        let creating = self.doubts > 0 || self.calls.purposes().any(|purpose| *purpose == Purpose::Create);
        match self.phase {
            Phase::Over => {}
            // The outcome was shown, so nothing is left that the user waits for.
            Phase::Deleting { code, .. } => self.leave_to_leader(code, out),
            Phase::Submitting if !creating => {
                self.fail(INTERRUPTED, "interrupted; nothing was submitted".to_string(), out);
            }
            Phase::Submitting | Phase::Waiting if self.cancel_on_interrupt && !again => {
                let id = &self.id;
                out.log(Level::Warn, format!("cancelling {id}; interrupt again to leave it alone"));
                self.cancelling = true;
                if self.online && self.phase == Phase::Waiting {
                    self.read(out);
                }
            }
            Phase::Submitting => {
                let why = format!("interrupted; it may have been submitted: zkmw wait {} tells", self.id);
                self.fail(INTERRUPTED, why, out);
            }
            Phase::Waiting => {
                let why = format!("interrupted; the task goes on: zkmw wait {} comes back to it", self.id);
                self.fail(INTERRUPTED, why, out);
            }
        }
    }
}
