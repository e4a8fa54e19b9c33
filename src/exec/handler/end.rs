//! The end of a handler: killed as a run is, and then the end of the run that it had is reported.
//!
//! It must not report anything before every process of the group is dead.

use std::sync::atomic::Ordering;

use super::backoff::{Cause, Death};
use super::handler_slot::{Busy, HandlerWork};
use super::life::{End, Handler};
use crate::clock;
use crate::exec::{ExecEvent, NotStartedKind};
use crate::machine::{Captured, Ended, RunReport};

/// What a shell exits with if the program is there and cannot be run, and if it is not there.
const MISSING: [i32; 2] = [126, 127];

impl Handler<'_> {
    /// The handler is not used any more.
    pub(super) fn retire(mut self, end: End) {
        self.pool.retire(self.handler_slot.mailbox.id());
        let work = {
            let mut state = self.handler_slot.lock();
            state.stdin = None;
            std::mem::replace(&mut state.work, HandlerWork::Over)
        };
        let busy = match work {
            HandlerWork::Busy(busy) => Some(busy),
            HandlerWork::Idle | HandlerWork::Over => None,
        };
        let at_fault = busy.is_some() || matches!(end, End::Broken(_));
        if !matches!(end, End::Dead) {
            self.pool.hub.kill(self.handler_slot.mailbox.id());
        }
        self.await_death(None);
        let Some(death) = self.dead.take() else { return };
        let cause = match (death.signalled, at_fault) {
            (true, _) => Cause::Signalled,
            (false, true) => Cause::Fault,
            (false, false) => Cause::Idle,
        };
        self.log(&end, death.ended, cause);
        self.pool.died(Death { born: self.born, answered: self.answered, cause });
        match (end, busy) {
            (End::Answered { run, start_reported, mut report }, _) => {
                if !start_reported {
                    let _ = self
                        .pool
                        .hub
                        .events
                        .send(ExecEvent::Started { run, pid: self.handler_slot.mailbox.pid() });
                }
                report.signalled = death.signalled && !self.handler_slot.had_said.load(Ordering::SeqCst);
                self.pool.over(run, ExecEvent::Ended { run, report: *report });
            }
            (end @ (End::Dead | End::Broken(_)), Some(busy)) => self.report(&end, busy, &death),
            (End::Dead | End::Broken(_), None) => {}
        }
    }

    /// The end of the run that it had.
    fn report(&self, end: &End, mut busy: Busy, death: &RunReport) {
        let (pid, how) = (self.handler_slot.mailbox.pid(), death.ended);
        let missing = match how {
            Ended::Exit(code) => !self.answered && MISSING.contains(&code) && !death.signalled,
            Ended::Signal(_) | Ended::Broken => false,
        };
        let program = &self.program;
        if missing {
            self.pool.missing(&format!(
                "the worker's handler, {program:?}, cannot be run: its shell {} (127: there is no such program; 126: \
                 it is none)",
                in_words(how)
            ));
        }
        if !busy.handed || (missing && !busy.start_reported) {
            let why =
                format!("the worker's handler, {program:?}, {} before it took any request", in_words(how));
            let kind = match death.signalled {
                true => NotStartedKind::Transient,
                false => NotStartedKind::Shortage,
            };
            return self.pool.not_started(busy.run, kind, why);
        }
        busy.report_started(pid, &self.pool.hub);
        let (ended, detail) = match (end, how) {
            (End::Broken(why), _) => (Ended::Broken, format!("its handler, process {pid}, broke: {why}")),
            (End::Dead | End::Answered { .. }, how) => {
                let partly = if self.lines.is_empty() { "" } else { "; it had said a part of one" };
                let why = death.detail.as_ref().map_or(String::new(), |why| format!(" ({why})"));
                let detail =
                    format!("its handler, process {pid}, {} without an answer{partly}{why}", in_words(how));
                let is_own = !missing && how != Ended::Exit(0);
                (if is_own { how } else { Ended::Broken }, detail)
            }
        };
        let report = RunReport {
            ended,
            detail: Some(detail),
            stdout: Captured::default(),
            stderr: Captured::default(),
            started_ms: busy.started_ms,
            ended_ms: clock::wall_ms(),
            signalled: death.signalled,
        };
        self.pool.over(busy.run, ExecEvent::Ended { run: busy.run, report });
    }

    fn log(&self, end: &End, how: Ended, cause: Cause) {
        let (pid, how) = (self.handler_slot.mailbox.pid(), in_words(how));
        match (end, cause) {
            (_, Cause::Signalled) => log::debug!("handler {pid} got a signal to end, and {how}"),
            (End::Broken(why), _) => log::warn!("handler {pid} broke, and was killed: {why}"),
            (End::Dead | End::Answered { .. }, Cause::Fault) => {
                log::warn!("handler {pid} {how} while it had a request");
            }
            (End::Dead | End::Answered { .. }, Cause::Idle) => {
                log::info!("handler {pid} {how}; it had nothing to do");
            }
        }
    }
}

fn in_words(how: Ended) -> String {
    match how {
        Ended::Exit(code) => format!("exited with {code}"),
        Ended::Signal(signal) => format!("was killed by signal {signal}"),
        Ended::Broken => "broke".to_owned(),
    }
}
