//! What was refused to an elector, and is tried again; and whether the ensemble went back.

use super::state::{Session, State};
use super::{Elector, Report};
use crate::machine::{Action, Actions, Instant, Level};
use crate::recipes::ensure;

impl Elector {
    pub(super) fn on_ensured(&mut self, step: &ensure::Step, now: Instant, out: &mut Actions<Report>) {
        match step {
            ensure::Step::Pending => {}
            ensure::Step::Done => {
                self.directory.done(out);
                if let State::Acquiring { ticket, .. } = &mut self.state {
                    *ticket = Some(self.lease.fresh(now, out));
                }
            }
            ensure::Step::Refused(path, refusal) => {
                let what = format!("cannot make the directory {path} for leases");
                self.directory.refused(&what, *refusal, now, out);
            }
        }
    }

    /// Tries again what was refused.
    pub(super) fn retry_refused(&mut self, now: Instant, out: &mut Actions<Report>) {
        if let Some((path, refusal)) = self.election.take_refused() {
            self.retry.refused(&format!("cannot contend in {path}"), refusal, now, out);
            if let Some(trouble) = self.retry.trouble() {
                out.push(Action::Status(trouble.to_string()));
            }
        }
        let is_out = matches!(self.session, Session::Entered { .. }) && self.election.is_out();
        if self.retry.is_due(now) && is_out && matches!(self.state, State::Candidate) {
            self.election.contend(out);
        }
        if self.directory.is_due(now) && matches!(self.state, State::Acquiring { ticket: None, .. }) {
            self.ensure.start(out);
        }
        if self.election.is_following() || self.election.leading().is_some() {
            self.retry.done(out);
        }
        let went_back = self.election.made_by().is_some_and(|own| self.past.went_back(own, out));
        if matches!(self.state, State::Running(_)) && went_back {
            // Its contender exists in the older copy as well, but perhaps not all who came before it are known there.
            out.log(Level::Warn, "the command is killed: its lead is of the time before");
            self.kill_and_rejoin(now, out);
        }
    }
}
