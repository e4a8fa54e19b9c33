//! A worker's end, once its user wished for it: nothing new is started, what runs has its time, and what is owed is
//! written.

use std::time::Duration;

use super::runs::TERM_BEFORE_KILL;
use super::stop_reason::StopReason;
use super::{Mode, Out, Worker};
use crate::exit;
use crate::machine::{Action, Instant, Level};

/// How long a second signal leaves to what is being handed back: whatever has not arrived is charged. Some round trips
/// fit into it, and a user hardly notices it.
const LAST_MOMENT: Duration = Duration::from_millis(500);

impl Worker {
    pub(super) fn on_stop(&mut self, again: bool, now: Instant, out: &mut Out) {
        out.push(Action::Status("draining".into()));
        let term_before = (self.params.grace / 2).min(TERM_BEFORE_KILL);
        let (term, kill) = match (self.mode, again) {
            (Mode::Leaving { until }, true) => {
                self.mode = Mode::Leaving { until: until.min(now + LAST_MOMENT) };
                return;
            }
            (Mode::Leaving { .. }, false) => return,
            (Mode::Draining { .. }, false) => return,
            (_, true) => (now, now),
            (Mode::Working, false) => (now + (self.params.grace - term_before), now + self.params.grace),
        };
        let running = self.running.runs.len();
        out.log(
            Level::Info,
            format!("stopping; {running} tasks run, and have {} s", kill.since(now).as_secs()),
        );
        self.mode = Mode::Draining { term, kill };
        self.halt_all(StopReason::Drain, out);
        self.registrar.publish(|body| body.draining = true, out);
    }

    /// Goes on with the end, once the user wished for it.
    pub(super) fn drain(&mut self, now: Instant, out: &mut Out) {
        match self.mode {
            Mode::Working => {}
            Mode::Draining { term, kill } => {
                self.plan_saves(now);
                self.stop_running(term, kill, now, out);
                // What the ensemble does not take now it may take until the very end.
                let is_owed = self.connected && now < kill && self.is_owing();
                if self.running.runs.is_empty() && !is_owed {
                    self.mode = Mode::Leaving { until: now + self.params.close_timeout };
                    self.leave(out);
                }
            }
            Mode::Leaving { until } if until <= now => {
                if !self.reports.is_empty() {
                    let owed = self.reports.len();
                    out.log(
                        Level::Error,
                        format!("the ensemble took no outcome of {owed} tasks that ended: they run again"),
                    );
                }
                out.push(Action::Exit(exit::OK));
            }
            Mode::Leaving { .. } => {}
        }
    }

    pub(super) fn leave(&mut self, out: &mut Out) {
        if self.is_owing() || !self.connected || self.dying.is_some() {
            return;
        }
        if self.registrar.is_registered() && self.view.version.is_some() {
            self.read_assignment(out);
        } else if self.registrar.is_returning() {
            // Once it is registered, the assignment is watched and read, and that goes on with the end.
        } else if self.calls.is_empty() {
            out.push(Action::Exit(exit::OK));
        }
    }
}
