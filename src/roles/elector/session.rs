//! From one session to the next: a new one is entered, or takes the lead of the one before over while the command runs.

use std::time::Duration;

use super::state::{Kill, Session, State};
use super::{Elector, Report};
use crate::machine::{Action, Actions, Instant, Level};

impl Elector {
    /// Begins a session's part: only when nothing of an earlier one goes on.
    pub(super) fn enter(&mut self, timeout: Duration, out: &mut Actions<Report>) {
        self.session = Session::Entered { timeout, inherited: None };
        // What an earlier session proved is no proof for this one.
        self.lease.rename(&self.holder());
        self.lease.on_session(timeout);
        if let State::Candidate = self.state {
            self.election.contend(out);
        }
    }

    pub(super) fn on_connected(&mut self, timeout: Duration, out: &mut Actions<Report>) {
        let Some(run) = self.run() else {
            out.push(Action::Status("finding its rank in the election".into()));
            return self.enter(timeout, out);
        };
        if self.election.term() == Some(run.epoch) {
            self.session = Session::Inheriting { timeout };
            self.election.inherit(out);
        } else {
            self.session = Session::Waiting { timeout };
            out.log(Level::Info, "connected; contending again when the command is dead");
        }
    }

    pub(super) fn on_lost(&mut self, why: &str, now: Instant, out: &mut Actions<Report>) {
        self.session = Session::Down;
        match self.state {
            State::Running(run) | State::Stopping { run, kill: Kill::At(_), .. }
                if self.election.term() == Some(run.epoch) =>
            {
                self.election.suspend();
                let left = self.lease.expires().map_or(Duration::ZERO, |until| until.since(now));
                let (epoch, left) = (run.epoch, left.as_secs_f64());
                out.log(
                    Level::Warn,
                    format!(
                        "the connection was lost: {why}. The command runs on as long as the lease \
                         holds, {left:.1} s"
                    ),
                );
                let status = format!("leading, epoch {epoch}; connection lost, lease for {left:.1} s more");
                out.push(Action::Status(status));
            }
            State::Candidate
            | State::Acquiring { .. }
            | State::Running(_)
            | State::Stopping { .. }
            | State::BackingOff { .. }
            | State::Over => self.election.on_lost(),
        }
        self.retry.on_lost();
        self.directory.on_lost();
        self.lease.on_lost();
        self.ensure.reset();
    }

    /// Follows the lead from one session to the next.
    pub(super) fn hand_over(&mut self, out: &mut Actions<Report>) {
        match self.session {
            Session::Inheriting { timeout } => match (self.election.leading(), self.election.term()) {
                (Some(epoch), _) => {
                    let inherited = self.lease.expires();
                    self.session = Session::Entered { timeout, inherited };
                    // From here on the end of this session is the end of what the lease protects.
                    self.lease.on_session(timeout);
                    let report = Report::Leading { epoch };
                    out.log(Level::Info, format!("connected again: {report}, as before"));
                    out.push(Action::Status(report.to_string()));
                }
                (None, Some(_)) => {}
                (None, None) => self.session = Session::Waiting { timeout },
            },
            Session::Entered { timeout, inherited: Some(before) } if self.lease.expires() > Some(before) => {
                self.session = Session::Entered { timeout, inherited: None };
                self.election.delete_replaced(out);
            }
            Session::Down | Session::Waiting { .. } | Session::Entered { .. } => {}
        }
    }
}
