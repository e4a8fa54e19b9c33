//! The end of a handler: killed and buried as a run's process is, and then the end of the run that it had is told.
//!
//! It must not tell anything before every process of the group is dead.

use super::desk::{Busy, Work};
use super::life::{End, Handler};
use super::pauses::{Cause, Death};
use crate::exec::run::{self, now_ms};
use crate::exec::sweep::RunStrays;
use crate::exec::table::Signalled;
use crate::exec::{ExecEvent, NotStartedKind};
use crate::machine::{Captured, Ended, RunReport};

/// What a shell exits with if the program is there and cannot be run, and if it is not there.
const MISSING: [i32; 2] = [126, 127];

impl Handler<'_> {
    /// It is used no more.
    pub(super) fn retire(mut self, end: End) {
        let (id, pid) = (self.desk.id, self.desk.pid);
        let shared = &self.pool.shared;
        self.pool.retire(id);
        let work = {
            let mut seat = self.desk.lock();
            seat.stdin = None;
            std::mem::replace(&mut seat.work, Work::Over)
        };
        let busy = match work {
            Work::Busy(busy) => Some(busy),
            Work::Idle | Work::Over => None,
        };
        let at_fault = busy.is_some() || matches!(end, End::Broken(_));
        if !matches!(end, End::Dead) {
            shared.table.kill_broken(id);
        }
        while !run::is_over(pid) {
            self.await_leader(None);
        }
        let ended_ms = now_ms();
        self.reserve.end();
        let strays = RunStrays { mark: &self.birth.mark, since: self.birth.since };
        let (how, signalled) = shared.bury(id, pid, &strays, !at_fault);
        let cause = match (signalled.in_life, at_fault) {
            (true, _) => Cause::Told,
            (false, true) => Cause::Fault,
            (false, false) => Cause::Idle,
        };
        self.log(&end, how, cause);
        self.pool.died(Death { born: self.birth.born, answered: self.answered, cause });
        shared.roll.gone(id);
        shared.table.dead(id);
        match (end, busy) {
            (End::Answered { run, told, mut report }, _) => {
                if !told {
                    let _ = shared.events.send(ExecEvent::Started { run, pid });
                }
                report.signalled = signalled.in_life && !signalled.after_words;
                let _ = shared.events.send(ExecEvent::Ended { run, report: *report });
                shared.table.remove(run);
            }
            (end @ (End::Dead | End::Broken(_)), Some(busy)) => {
                self.tell(&end, busy, how, signalled, ended_ms)
            }
            (End::Dead | End::Broken(_), None) => {}
        }
        shared.table.remove(id);
    }

    /// The end of the run that it had.
    fn tell(&self, end: &End, mut busy: Busy, how: Ended, signalled: Signalled, ended_ms: i64) {
        let (pid, shared) = (self.desk.pid, &self.pool.shared);
        let missing = match how {
            Ended::Exit(code) => !self.answered && MISSING.contains(&code) && !signalled.in_life,
            Ended::Signal(_) | Ended::Broken => false,
        };
        let program = &self.birth.program;
        if missing {
            self.pool.missing(&format!(
                "the worker's handler, {program:?}, cannot be run: its shell {} (127: there is no such program; 126: \
                 it is none)",
                in_words(how)
            ));
        }
        if !busy.handed || (missing && !busy.told) {
            let why =
                format!("the worker's handler, {program:?}, {} before it took any request", in_words(how));
            let kind = match signalled.in_life {
                true => NotStartedKind::Transient,
                false => NotStartedKind::Shortage,
            };
            return self.pool.not_started(busy.run, kind, why);
        }
        busy.tell_started(pid, shared);
        let (ended, detail) = match (end, how) {
            (End::Broken(why), _) => (Ended::Broken, format!("its handler, process {pid}, broke: {why}")),
            (End::Dead | End::Answered { .. }, how) => {
                let partly = if self.lines.is_empty() { "" } else { "; it had said a part of one" };
                let detail =
                    format!("its handler, process {pid}, {} without an answer{partly}", in_words(how));
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
            ended_ms,
            signalled: signalled.in_life,
        };
        let _ = shared.events.send(ExecEvent::Ended { run: busy.run, report });
        shared.table.remove(busy.run);
    }

    fn log(&self, end: &End, how: Ended, cause: Cause) {
        let (pid, how) = (self.desk.pid, in_words(how));
        match (end, cause) {
            (_, Cause::Told) => log::debug!("handler {pid} was told to end, and {how}"),
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
