//! The execution of an entry that was started: what runs of it, what is over, what is left, and what is to be written
//! down when nothing runs any more. A plain task has one command; of a chunk a worker has a share of the lines.
//!
//! Bookkeeping alone: it makes no calls and starts nothing.

use std::collections::BTreeSet;

use super::portion::Portion;
use super::reports::Want;
use super::stop_reason::StopReason;
use super::work::Work;
use crate::contract::Incarnation;
use crate::contract::chunk::{CommandResult, Results};
use crate::contract::share::{Ending, Release, Rest};
use crate::contract::task::{Options, Outcome, Output, Payload, Reason, State as OutcomeState};
use crate::machine::{Ended, Instant, RunId, RunReport};

/// The command of a plain task.
pub const PLAIN: usize = 0;

/// How a run ended, as far as it matters to the task.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    Success,
    Failed(Reason, String),
    /// It was killed because somebody wished to cancel it.
    Cancelled,
    /// It did not end by itself, for this reason, and has to run again.
    Cut(String),
}

/// What was started of an entry.
#[derive(Debug)]
pub struct Execution {
    /// The task as it was read; of a chunk, as it is known by now.
    pub work: Work,
    /// The task's options, with its job's where it has none.
    pub options: Options,
    /// What runs of it.
    pub runs: BTreeSet<RunId>,
    /// Of a chunk: the share. A plain task has none.
    pub portion: Option<Box<Portion>>,
    /// Why nothing more is started of it, and what becomes of what was not.
    halt: Option<Rest>,
    /// Of a plain task: it was started.
    is_started: bool,
    /// Of a plain task: how it ended.
    end: Option<Want>,
}

impl Execution {
    /// The execution of an entry, with this number if it is a share, of which nothing was started yet.
    pub fn new(work: Work, number: u32, job: &Options, now: Instant) -> Execution {
        let is_share = work.task.commands.is_some();
        Execution {
            options: work.task.options.or(job),
            runs: BTreeSet::new(),
            portion: is_share.then(|| Box::new(Portion::new(number, &work, now))),
            halt: None,
            is_started: false,
            end: None,
            work,
        }
    }

    /// What the command runs, and the number of its line if it is one of a chunk's, from 0.
    pub fn payload(&self, command: usize) -> (Payload, Option<u64>) {
        match &self.work.task.commands {
            Some(commands) => {
                let line = commands.get(command).cloned().unwrap_or_default();
                (Payload::Shell(line), Some(self.work.task.first_line.saturating_add(command as u64)))
            }
            None => (self.work.task.payload(), None),
        }
    }

    /// Which attempt it is: of the task, or of the lines.
    pub fn attempt(&self) -> u32 {
        self.portion.as_ref().map_or(self.work.task.attempt, |portion| portion.attempt())
    }

    /// The next command to start; it counts as started.
    pub fn start_next(&mut self) -> Option<usize> {
        match &mut self.portion {
            _ if self.halt.is_some() => None,
            Some(portion) => portion.start_next(),
            None => (!std::mem::replace(&mut self.is_started, true)).then_some(PLAIN),
        }
    }

    /// Nothing more is started of it. The first reason counts.
    pub fn halt(&mut self, why: StopReason) {
        match why {
            StopReason::Revoked => self.set_halt(Rest::Cancel),
            StopReason::Drain => self.put_off(Release::because("its worker was stopped")),
            StopReason::Dead => self.put_off(Release::because("its worker lost its session")),
            // It concerns a run, not the whole.
            StopReason::Timeout | StopReason::Cancelled => {}
        }
    }

    fn set_halt(&mut self, rest: Rest) {
        self.halt.get_or_insert(rest);
        if let Some(portion) = &mut self.portion {
            portion.halt();
        }
    }

    /// Whether nothing more is started of it.
    pub fn is_halted(&self) -> bool {
        self.halt.is_some()
    }

    /// Whether nothing runs of it, and nothing is to be started.
    pub fn is_over(&self) -> bool {
        if !self.runs.is_empty() {
            return false;
        }
        self.halt.is_some() || self.portion.as_ref().map_or(self.is_started, |portion| !portion.is_left())
    }

    /// Nothing more is started of it here, and that is not its own fault: it goes back.
    pub fn put_off(&mut self, release: Release) {
        self.set_halt(Rest::Release(release));
    }

    /// A command cannot be started, here or elsewhere.
    pub fn not_started(&mut self, command: usize, why: &str, by: &Incarnation) {
        let attempt = self.attempt();
        let mut outcome = Outcome::unrun(OutcomeState::Failed, Some(Reason::NotStarted), why, attempt);
        outcome.worker = Some(by.clone());
        match &mut self.portion {
            Some(portion) => portion.holder.ended(command, CommandResult::of(outcome)),
            None => self.end = Some(Want::Outcome(Box::new(outcome))),
        }
    }

    /// A command's run ended; `why` if we stopped it.
    pub fn ended(&mut self, command: usize, why: Option<StopReason>, report: &RunReport, by: &Incarnation) {
        let verdict = verdict(why, report);
        let (state, reason) = match &verdict {
            Verdict::Success => (OutcomeState::Done, None),
            Verdict::Failed(reason, _) => (OutcomeState::Failed, Some(*reason)),
            Verdict::Cancelled => (OutcomeState::Cancelled, None),
            Verdict::Cut(_) => (OutcomeState::Failed, None),
        };
        let outcome = outcome_of(report, state, reason, self.attempt(), by);
        let again = matches!(verdict, Verdict::Failed(..)).then(|| self.retry_ms()).flatten();
        let is_revoked = self.halt == Some(Rest::Cancel);
        let Some(portion) = &mut self.portion else {
            self.end = Some(plain_end(verdict, outcome, again));
            return;
        };
        match verdict {
            Verdict::Success => portion.holder.ended(command, CommandResult::of(outcome)),
            // A task that is to be dead anyway does not run again.
            Verdict::Failed(..) if again.is_some() && !is_revoked => {
                portion.failed(command, CommandResult::of(outcome));
                if portion.is_suspect() {
                    // Or the next would wait behind it for ever.
                    self.put_off(Release::because("one of its lines failed"));
                }
            }
            Verdict::Failed(..) => portion.holder.ended(command, CommandResult::of(outcome)),
            Verdict::Cancelled if portion.is_cancelled(command) => {
                let result = CommandResult { reason: Some(Reason::Cancelled), ..CommandResult::of(outcome) };
                portion.holder.ended(command, result);
            }
            // It has no result, and is run again or cancelled with all else.
            Verdict::Cancelled => self.halt(StopReason::Revoked),
            Verdict::Cut(why) => self.put_off(Release::because(&why)),
        }
    }

    /// The pause before the next attempt if this one failed; `None` if there is none.
    fn retry_ms(&self) -> Option<u64> {
        let task = &self.work.task;
        let (failures, deaths) =
            self.portion.as_ref().map_or((task.charged, task.deaths), |own| (own.failures(), 0));
        let failures = failures.saturating_add(1);
        let again = self.options.max_attempts.is_some_and(|max| failures.saturating_add(deaths) < max);
        again.then(|| self.options.backoff_ms(failures))
    }

    /// What is to be written down, now that it is over.
    pub fn want(&mut self) -> Want {
        let again_ms = self.retry_ms().unwrap_or(0);
        let rest = self.halt.take();
        if let Some(portion) = &mut self.portion {
            let [results, again] = portion.take_ended();
            return Want::Share(Box::new(Ending { results, again, again_ms, rest }));
        }
        self.end.take().unwrap_or_else(|| match rest {
            Some(Rest::Release(release)) => Want::Again { release, is_charged: false },
            Some(Rest::Cancel) | None => {
                Want::Again { release: Release::because("it was taken back"), is_charged: false }
            }
        })
    }
}

/// What is to be written of a plain task, which may run again after so many ms.
fn plain_end(verdict: Verdict, outcome: Outcome, again: Option<u64>) -> Want {
    match (verdict, again) {
        (Verdict::Cancelled, _) => Want::Cancelled(Box::new(outcome)),
        (Verdict::Cut(why), _) => Want::Again { release: Release::because(&why), is_charged: false },
        (Verdict::Failed(_, why), Some(_)) => {
            Want::Again { release: Release { why, delay_ms: again, avoid: false }, is_charged: true }
        }
        (Verdict::Success | Verdict::Failed(..), _) => Want::Outcome(Box::new(outcome)),
    }
}

/// What a run's end means; `why` if we stopped it.
fn verdict(why: Option<StopReason>, report: &RunReport) -> Verdict {
    let why = why.filter(|why| report.signalled || !has_own_end(*why, report.ended));
    match (why, report.ended) {
        (Some(StopReason::Revoked | StopReason::Cancelled), _) => Verdict::Cancelled,
        (Some(StopReason::Drain), _) => Verdict::Cut("its worker was stopped".into()),
        (Some(StopReason::Dead), _) => Verdict::Cut("its worker lost its session".into()),
        (Some(StopReason::Timeout), _) => Verdict::Failed(Reason::Timeout, "it ran past its timeout".into()),
        // Not we: the lease had ended, or its slot was lost.
        (None, _) if report.signalled => Verdict::Cut(
            report.detail.clone().unwrap_or_else(|| "it was killed at the end of the lease".into()),
        ),
        (None, Ended::Exit(0)) => Verdict::Success,
        (None, Ended::Exit(code)) => Verdict::Failed(Reason::Exit, format!("it exited with {code}")),
        (None, Ended::Signal(signal)) => {
            Verdict::Failed(Reason::Signal, format!("signal {signal} killed it"))
        }
        (None, Ended::Broken) => Verdict::Failed(Reason::Handler, "its handler broke".into()),
    }
}

/// Whether this is its own end if it came before our signal: then it counts as if we had sent none. What comes after
/// one is no end of its own even if it is an exit with 0, for many a program cleans up and exits with 0 upon SIGTERM.
fn has_own_end(why: StopReason, ended: Ended) -> bool {
    match why {
        StopReason::Timeout | StopReason::Drain => true,
        // Its slot may have killed it, for the same reason.
        StopReason::Dead => ended == Ended::Exit(0),
        // Somebody does not want it, however it ended.
        StopReason::Revoked | StopReason::Cancelled => false,
    }
}

fn outcome_of(
    report: &RunReport,
    state: OutcomeState,
    reason: Option<Reason>,
    attempt: u32,
    by: &Incarnation,
) -> Outcome {
    let (exit_code, signal) = match report.ended {
        Ended::Exit(code) => (Some(code), None),
        Ended::Signal(signal) => (None, Some(signal)),
        Ended::Broken => (None, None),
    };
    Outcome {
        state,
        reason,
        exit_code,
        signal,
        detail: report.detail.clone(),
        attempt,
        worker: Some(by.clone()),
        started_ms: Some(report.started_ms),
        ended_ms: Some(report.ended_ms),
        stdout: Output::new(&report.stdout),
        stderr: Output::new(&report.stderr),
        results: Results::new(),
    }
}
