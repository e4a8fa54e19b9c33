//! The end of a single submit: the outcome is shown, and a task that succeeded deleted; or its user wants an end
//! before.

use super::{Cancel, Connection, Phase, Purpose, Single};
use crate::contract::log::LogName;
use crate::contract::task::{Outcome, State};
use crate::exit;
use crate::machine::{Action, Actions, Level, Refusal, Reply};
use crate::roles::client::{ClientReport, Ended, INTERRUPTED, exit_code};

impl Single {
    /// Shows the outcome. What follows happens only if that succeeded.
    pub(super) fn ended(&mut self, outcome: Outcome, version: i32, out: &mut Actions<ClientReport>) {
        let succeeded = outcome.state == State::Done;
        let mut code = exit_code(&outcome);
        let truncated = self.truncated(&outcome);
        let ended = Ended { id: self.id.clone(), line: None, outcome, alone: true };
        out.push(Action::Report(ClientReport::Ended(vec![ended])));
        if let Some(why) = truncated {
            code = exit::TRUNCATED;
            out.log(Level::Error, why);
        }
        // What failed stays, for show and retry.
        if self.task.keyed || !self.origin.is_certainly_ours() || !succeeded {
            return self.over(code, out);
        }
        self.phase = Phase::Deleting { version, tries: 0, give_up: None, code };
        self.delete(out);
    }

    /// Why a success is a failure for its user: a user who pipes the output on must not take a part for the whole.
    fn truncated(&self, outcome: &Outcome) -> Option<String> {
        let omitted = outcome.stdout.omitted().saturating_add(outcome.stderr.omitted());
        if self.allow_truncated || outcome.state != State::Done || omitted == 0 {
            return None;
        }
        let id = &self.id;
        let log = LogName { task: id.to_string(), line: None, attempt: outcome.attempt };
        let kept = outcome.worker.as_ref().map_or_else(String::new, |worker| {
            let (worker, dir, stem) = (worker.worker(), log.dir(), log.stem());
            format!("; the worker {worker} may keep all of it for a while, below its --state-dir in {dir}/{stem}.*")
        });
        Some(format!(
            "the task {id} succeeded, but {omitted} bytes of what it printed are missing here{kept}; with \
             --allow-truncated that is no failure"
        ))
    }

    pub(super) fn on_deleted(&mut self, result: Result<&Reply, Refusal>, out: &mut Actions<ClientReport>) {
        let Phase::Deleting { code, .. } = self.phase else { return };
        match result {
            Ok(_) | Err(Refusal::NoNode) => {}
            Err(Refusal::BadVersion) => {
                let id = &self.id;
                out.log(
                    Level::Warn,
                    format!("the task {id} was changed by someone after this outcome: it stays"),
                );
            }
            Err(refusal) => {
                out.log(Level::Warn, format!("cannot delete the task {}: {refusal}", self.path()));
            }
        }
        self.over(code, out);
    }

    pub(super) fn leave_to_leader(&mut self, out: &mut Actions<ClientReport>) {
        let Phase::Deleting { code, .. } = self.phase else { return };
        out.log(Level::Info, format!("the task {} is left for the leader to delete", self.id));
        self.over(code, out);
    }

    /// The user wants an end.
    pub(super) fn on_stop(&mut self, again: bool, out: &mut Actions<ClientReport>) {
        let creating =
            self.origin.doubts > 0 || self.calls.purposes().any(|purpose| *purpose == Purpose::Create);
        match self.phase {
            Phase::Over => {}
            // The outcome was shown, so nothing is left that the user waits for.
            Phase::Deleting { .. } => self.leave_to_leader(out),
            Phase::Submitting if !creating => {
                self.fail(INTERRUPTED, "interrupted; nothing was submitted".to_string(), out);
            }
            Phase::Submitting | Phase::Waiting if self.cancel != Cancel::Never && !again => {
                let id = &self.id;
                out.log(Level::Warn, format!("cancelling {id}; interrupt again to leave it alone"));
                self.cancel = Cancel::Wanted;
                if self.link != Connection::Down && self.phase == Phase::Waiting {
                    self.read(out);
                }
            }
            Phase::Submitting => {
                let why =
                    format!("interrupted; it may have been submitted: zkmw wait {} shows that", self.id);
                self.fail(INTERRUPTED, why, out);
            }
            Phase::Waiting => {
                let why = format!("interrupted; the task goes on: zkmw wait {} comes back to it", self.id);
                self.fail(INTERRUPTED, why, out);
            }
        }
    }
}
