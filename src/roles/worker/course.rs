//! The course of an entry that was started: what runs of it, what is over, what is left, and what is to be written
//! down when nothing runs any more. A plain task has one command, a chunk as many as it has lines.
//!
//! Bookkeeping alone: it makes no calls and starts nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use super::reports::Want;
use super::slot::{Why, Work};
use crate::contract::Incarnation;
use crate::contract::chunk::{CHUNK_OUTPUT_BYTES, CommandResult, Results, shorten_outputs};
use crate::contract::task::{Options, Outcome, Output, Payload, Reason, State as OutcomeState, Task};
use crate::machine::{Ended, Instant, RunId, RunReport};

/// A command of a chunk that is to be started.
pub const PLAIN: usize = 0;

/// Results of a chunk are first written so long after its start at the soonest: a quick chunk is written once, at its
/// end.
const FIRST_SAVE: Duration = Duration::from_millis(100);

/// The least time between two writes of results that are no end.
const SAVE_PACE: Duration = Duration::from_millis(200);

/// The most. It bounds how much runs again if the worker dies, and how late a result is seen.
const MAX_SAVE_PACE: Duration = Duration::from_secs(2);

/// Bytes a second that one chunk writes at most before its end: each write has all results so far.
const SAVED_BYTES_A_SECOND: u32 = 256 * 1024;

/// Writes of results take one in so many parts of the time at most: servers that are slow are written to less often.
const SAVE_SHARE: u32 = 20;

/// How a run ended, as far as it matters to the task.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    Success,
    Failed(Reason, String),
    /// It was killed because somebody wished to cancel the task.
    Revoked,
    /// It did not end by itself, for this reason, and has to run again.
    Cut(String),
}

/// Why nothing more is started of it.
#[derive(Clone, Debug, PartialEq)]
enum Halt {
    Revoked,
    /// It goes back, uncharged, for this reason; the next attempt waits so long.
    Released {
        why: String,
        delay_ms: Option<u64>,
        avoid: bool,
    },
}

/// What was started of an entry.
#[derive(Debug)]
pub struct Course {
    pub work: Work,
    /// The task's options, with its job's where it has none.
    pub options: Options,
    /// What runs of it.
    pub runs: BTreeSet<RunId>,
    /// The first command that was not looked at yet.
    next: usize,
    halt: Option<Halt>,
    /// How the command of a plain task ended.
    end: Option<Want>,
    /// Of a chunk: what is over.
    results: Results,
    output_bytes: usize,
    /// Results that came since the last write of results.
    unsaved: usize,
    /// Results are being written, or can't be.
    saving: bool,
    /// When the next write is due.
    pub save_at: Option<Instant>,
    started: Instant,
    /// When results were last sent to the servers, and how long these have a rest from them.
    saved: Option<(Instant, Duration)>,
}

impl Course {
    /// The course of a task of which nothing was started yet.
    pub fn new(mut work: Work, job: &Options, now: Instant) -> Course {
        let results = std::mem::take(&mut work.task.results);
        Course {
            options: work.task.options.or(job),
            runs: BTreeSet::new(),
            next: 0,
            halt: None,
            end: None,
            output_bytes: results.iter().flatten().map(CommandResult::output_bytes).sum(),
            results,
            unsaved: 0,
            saving: false,
            save_at: None,
            started: now,
            saved: None,
            work,
        }
    }

    fn is_chunk(&self) -> bool {
        self.work.task.commands.is_some()
    }

    /// What the command runs, and the number of its line if it is one of a chunk's, from 1.
    pub fn payload(&self, command: usize) -> (Payload, Option<u64>) {
        match &self.work.task.commands {
            Some(commands) => {
                let line = commands.get(command).cloned().unwrap_or_default();
                (Payload::Shell(line), Some(self.work.task.first_line + command as u64 + 1))
            }
            None => (self.work.task.payload(), None),
        }
    }

    /// The next command to start; it counts as started.
    pub fn start_next(&mut self) -> Option<usize> {
        if self.halt.is_some() {
            return None;
        }
        let Some(commands) = &self.work.task.commands else {
            let first = self.next == PLAIN;
            self.next = 1;
            return first.then_some(PLAIN);
        };
        while let Some(line) = commands.get(self.next) {
            let command = self.next;
            self.next += 1;
            if !line.trim().is_empty() && !self.is_result(command) {
                return Some(command);
            }
        }
        None
    }

    fn is_result(&self, command: usize) -> bool {
        self.results.get(command).is_some_and(Option::is_some)
    }

    /// Nothing more is started of it. What is said first counts.
    pub fn halt(&mut self, why: Why) {
        let released = |why: &str| Halt::Released { why: why.to_string(), delay_ms: None, avoid: false };
        let halt = match why {
            Why::Revoked => Halt::Revoked,
            Why::Drain => released("its worker was stopped"),
            Why::Dead => released("its worker lost its session"),
            // It concerns a run, not the whole.
            Why::Timeout => return,
        };
        self.halt.get_or_insert(halt);
    }

    /// Whether nothing runs of it, and nothing is to be started.
    pub fn is_over(&self) -> bool {
        self.runs.is_empty() && (self.halt.is_some() || !self.is_left())
    }

    fn is_left(&self) -> bool {
        match &self.work.task.commands {
            Some(commands) => {
                let open = |(at, line): (usize, &String)| !line.trim().is_empty() && !self.is_result(at);
                commands.iter().enumerate().skip(self.next).any(open)
            }
            None => self.next == PLAIN,
        }
    }

    /// A command could not be started, and that is not its own fault: another attempt may, after this many ms. With
    /// `avoid` it had better be on another worker.
    pub fn put_off(&mut self, why: &str, delay_ms: Option<u64>, avoid: bool) {
        self.halt.get_or_insert(Halt::Released { why: why.to_string(), delay_ms, avoid });
    }

    /// A command cannot be started, here or elsewhere.
    pub fn not_started(&mut self, command: usize, why: &str, by: &Incarnation) {
        let attempt = self.work.task.attempt;
        let mut outcome = Outcome::unrun(OutcomeState::Failed, Some(Reason::NotStarted), why, attempt);
        outcome.worker = Some(by.clone());
        if self.is_chunk() {
            self.put(command, CommandResult::of(outcome));
        } else {
            self.end = Some(Want::Outcome(Box::new(outcome)));
        }
    }

    /// A command's run ended; `why` if we had stopped it.
    pub fn ended(&mut self, command: usize, why: Option<Why>, report: &RunReport, by: &Incarnation) {
        let verdict = verdict(why, report.ended);
        let (state, reason) = match &verdict {
            Verdict::Success => (OutcomeState::Done, None),
            Verdict::Failed(reason, _) => (OutcomeState::Failed, Some(*reason)),
            Verdict::Revoked => (OutcomeState::Cancelled, None),
            Verdict::Cut(_) => (OutcomeState::Failed, None),
        };
        let outcome = outcome_of(report, state, reason, self.work.task.attempt, by);
        if self.is_chunk() {
            match verdict {
                Verdict::Success | Verdict::Failed(..) => self.put(command, CommandResult::of(outcome)),
                // It has no result, and is run again or cancelled with all else.
                Verdict::Revoked => self.halt(Why::Revoked),
                Verdict::Cut(why) => {
                    self.halt.get_or_insert(Halt::Released { why, delay_ms: None, avoid: false });
                }
            }
            return;
        }
        self.end = Some(match verdict {
            Verdict::Success => Want::Outcome(Box::new(outcome)),
            Verdict::Revoked => Want::Cancelled(Box::new(outcome)),
            Verdict::Cut(why) => Want::Release { why, delay_ms: None, avoid: false, results: Results::new() },
            Verdict::Failed(_, why) => match self.retry_ms() {
                Some(delay_ms) => Want::Retry { why, delay_ms, results: Results::new() },
                None => Want::Outcome(Box::new(outcome)),
            },
        });
    }

    /// The pause before the next attempt if this one failed; `None` if there is none.
    fn retry_ms(&self) -> Option<u64> {
        let charged = self.work.task.charged.saturating_add(1);
        let again = self.options.max_attempts.is_some_and(|max| charged < max);
        again.then(|| self.options.backoff_ms(charged))
    }

    fn put(&mut self, command: usize, result: CommandResult) {
        if self.results.len() <= command {
            self.results.resize(command + 1, None);
        }
        self.output_bytes += result.output_bytes();
        self.results[command] = Some(result);
        self.unsaved += 1;
        if self.output_bytes > CHUNK_OUTPUT_BYTES {
            // Not to the brim, or it would be done anew with each result.
            shorten_outputs(&mut self.results, CHUNK_OUTPUT_BYTES / 2);
            self.output_bytes = self.results.iter().flatten().map(CommandResult::output_bytes).sum();
        }
    }

    /// What is to be written down, now that it is over.
    pub fn want(&mut self, by: &Incarnation) -> Want {
        let released = |halt: Option<Halt>| match halt {
            Some(Halt::Released { why, delay_ms, avoid }) => (why, delay_ms, avoid),
            Some(Halt::Revoked) | None => ("it was taken back".to_string(), None, false),
        };
        if !self.is_chunk() {
            return self.end.take().unwrap_or_else(|| {
                let (why, delay_ms, avoid) = released(self.halt.take());
                Want::Release { why, delay_ms, avoid, results: Results::new() }
            });
        }
        let commands = self.work.task.commands.as_deref().unwrap_or_default();
        let blank = |line: &String| line.trim().is_empty();
        // What is complete stands, whoever wished for its end meanwhile.
        if commands.iter().enumerate().any(|(at, line)| !blank(line) && !self.is_result(at)) {
            if self.halt == Some(Halt::Revoked) {
                return Want::Cancelled(Box::new(self.whole(OutcomeState::Cancelled, None, None, by)));
            }
            let (why, delay_ms, avoid) = released(self.halt.take());
            return Want::Release { why, delay_ms, avoid, results: std::mem::take(&mut self.results) };
        }
        let failed = self.results.iter().flatten().filter(|result| !result.succeeded()).count();
        if failed == 0 {
            return Want::Outcome(Box::new(self.whole(OutcomeState::Done, None, None, by)));
        }
        let all = commands.iter().filter(|line| !blank(line)).count();
        let why = format!("{failed} of {all} commands failed");
        if let Some(delay_ms) = self.retry_ms() {
            return Want::Retry { why, delay_ms, results: std::mem::take(&mut self.results) };
        }
        let reason = Some(Reason::Exit);
        Want::Outcome(Box::new(self.whole(OutcomeState::Failed, reason, Some(why), by)))
    }

    /// The outcome of a chunk.
    fn whole(
        &mut self,
        state: OutcomeState,
        reason: Option<Reason>,
        detail: Option<String>,
        by: &Incarnation,
    ) -> Outcome {
        let attempt = self.work.task.attempt;
        let mut outcome = Outcome::unrun(state, reason, "", attempt);
        let own = |result: &&CommandResult| result.attempt.unwrap_or(1) == attempt;
        outcome.started_ms = self.results.iter().flatten().filter(own).filter_map(|r| r.started_ms).min();
        outcome.ended_ms = self.results.iter().flatten().filter(own).filter_map(|r| r.ended_ms).max();
        outcome.exit_code = match state {
            OutcomeState::Done => Some(0),
            OutcomeState::Failed => Some(1),
            OutcomeState::Cancelled | OutcomeState::Expired => None,
        };
        outcome.detail = detail;
        outcome.worker = Some(by.clone());
        outcome.results = std::mem::take(&mut self.results);
        for result in outcome.results.iter_mut().flatten() {
            result.worker = result.worker.take().filter(|worker| worker != by);
        }
        outcome
    }

    /// When its results are to be written, if there are any, nothing is being written, and that was not planned yet.
    pub fn plan_save(&mut self, now: Instant) -> Option<Instant> {
        if !self.wants_save() || self.save_at.is_some() {
            return None;
        }
        let due = self.saved.map_or(self.started + FIRST_SAVE, |(sent, rest)| sent + rest);
        self.save_at = Some(due.max(now));
        self.save_at
    }

    fn wants_save(&self) -> bool {
        self.is_chunk() && !self.saving && self.unsaved > 0 && self.halt.is_none()
    }

    /// The task with the results so far, if they are to be written now.
    pub fn save(&mut self) -> Option<Task> {
        self.save_at = None;
        if !self.wants_save() {
            return None;
        }
        self.saving = true;
        self.unsaved = 0;
        let mut task = self.work.task.clone();
        task.results = self.results.clone();
        Some(task)
    }

    /// So many bytes were sent now. A write takes so long on average.
    pub fn sent(&mut self, bytes: usize, write_time: Duration, now: Instant) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let rest = (Duration::from_secs(1) * bytes / SAVED_BYTES_A_SECOND).max(write_time * SAVE_SHARE);
        self.saved = Some((now, rest.clamp(SAVE_PACE, MAX_SAVE_PACE)));
    }

    /// The results stand, in this version. Gives when they were sent.
    pub fn saved(&mut self, version: i32) -> Option<Instant> {
        self.saving = false;
        self.work.version = version;
        self.saved.map(|(sent, _)| sent)
    }

    /// The servers take no write as large: the next has less of the outputs, if there is any to leave out.
    pub fn save_less(&mut self) {
        if self.output_bytes > 0 {
            shorten_outputs(&mut self.results, self.output_bytes / 2);
            self.output_bytes = self.results.iter().flatten().map(CommandResult::output_bytes).sum();
            self.unsaved();
        }
    }

    /// The results may not be written now: a while later they may.
    pub fn save_later(&mut self) {
        self.saved = self.saved.map(|(sent, _)| (sent, MAX_SAVE_PACE));
        self.unsaved();
    }

    /// The connection is gone: what was on its way is written again.
    pub fn on_lost(&mut self) {
        if self.saving {
            self.unsaved();
        }
    }

    /// Nobody knows whether the results stand. The next write will find out.
    pub fn unsaved(&mut self) {
        self.saving = false;
        self.unsaved += 1;
    }
}

/// What a run's end means.
fn verdict(why: Option<Why>, ended: Ended) -> Verdict {
    match (why, ended) {
        (Some(Why::Revoked), _) => Verdict::Revoked,
        (_, Ended::Exit(0)) if why != Some(Why::Timeout) => Verdict::Success,
        (Some(Why::Drain), _) => Verdict::Cut("its worker was stopped".into()),
        (Some(Why::Dead), _) => Verdict::Cut("its worker lost its session".into()),
        (Some(Why::Timeout), _) => Verdict::Failed(Reason::Timeout, "it ran past its timeout".into()),
        (None, Ended::Exit(code)) => Verdict::Failed(Reason::Exit, format!("it exited with {code}")),
        (None, Ended::Signal(signal)) => {
            Verdict::Failed(Reason::Signal, format!("signal {signal} killed it"))
        }
        (None, Ended::Broken) => Verdict::Failed(Reason::Handler, "its handler broke".into()),
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
