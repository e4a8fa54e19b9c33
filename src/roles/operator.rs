//! Operator: cancels tasks, or sends those that ended badly round again. Each wish is one compare-and-set of the
//! task's znode, decided anew whenever somebody else was faster or a connection was lost in between.
//!
//! A retry never starts beside an attempt that still runs: an outcome is written only when its attempt is dead,
//! so the outcome's writer is named as who vouches for that.

use std::collections::BTreeMap;

use super::client::walk::{self, Found, Target, Walk};
use super::client::{ClientReport, INTERRUPTED, Noted, Tally, breaks_connection, refusal_code, verdict};
use crate::contract::chunk::{self, Results};
use crate::contract::task::{NO_DEADLINE_MS, Outcome, State, Task};
use crate::contract::{Layout, TaskId, is_shared, name_of};
use crate::exit;
use crate::machine::{
    Action, Actions, Call, CallError, CallId, CallResult, Calls, Event, Instant, Level, Refusal, Reply, Role,
};

/// Tasks that are worked on at a time.
const MAX_OPEN: usize = 64;

/// Changes by others that one task may meet with before it is given up.
const MAX_CONFLICTS: u32 = 20;

/// What is wished for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// That it ends as cancelled, if it has not ended yet.
    Cancel,
    /// That it runs again, if it failed, expired or was cancelled.
    Retry,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Verb::Cancel => "cancel",
            Verb::Retry => "retry",
        }
    }
}

/// What an operator is told.
#[derive(Clone, Debug, PartialEq)]
pub struct OperatorParams {
    /// Where everything stands.
    pub layout: Layout,
    /// What to do.
    pub verb: Verb,
    /// To what.
    pub targets: Vec<Target>,
}

/// One who cancels or retries tasks.
#[derive(Debug)]
pub struct Operator {
    layout: Layout,
    verb: Verb,
    walk: Walk,
    online: bool,
    over: bool,
    open: BTreeMap<TaskId, Open>,
    calls: Calls<(TaskId, Step)>,
    /// Tasks of whole jobs that the wish does not concern.
    passed_over: u64,
    tally: Tally,
}

#[derive(Debug)]
struct Open {
    /// The user named it; otherwise it is one of a job, and need not be fit for the wish.
    named: bool,
    conflicts: u32,
    /// The attempt that our write, whose answer was lost, was to leave the task at.
    doubt: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Read,
    /// Leaves the task at this attempt.
    Write(u32),
}

/// What is to be done about a task as it stands.
#[derive(Debug, PartialEq)]
enum Decision {
    Write(Box<Task>),
    /// Nothing: it is as wished for, or that does not concern it.
    Leave {
        ok: bool,
        message: String,
    },
}

impl Operator {
    /// An operator for these.
    pub fn new(params: OperatorParams) -> Operator {
        Operator {
            walk: Walk::new(&params.layout, params.targets),
            layout: params.layout,
            verb: params.verb,
            online: false,
            over: false,
            open: BTreeMap::new(),
            calls: Calls::default(),
            passed_over: 0,
            tally: Tally::default(),
        }
    }

    fn fail(&mut self, code: i32, why: String, out: &mut Actions<ClientReport>) {
        self.over = true;
        out.fail(code, why);
    }

    fn note(&mut self, id: &str, problem: Option<i32>, message: String, out: &mut Actions<ClientReport>) {
        if let Some(code) = problem {
            self.tally.wrong(code);
        }
        let (id, verb, ok) = (id.to_string(), self.verb.as_str(), problem.is_none());
        out.push(Action::Report(ClientReport::Noted(Noted { id, verb, ok, message })));
    }

    fn pump(&mut self, out: &mut Actions<ClientReport>) {
        while self.online && self.open.len() < MAX_OPEN {
            let Some(Found { id, named }) = self.walk.next(out) else { break };
            self.open.insert(id.clone(), Open { named, conflicts: 0, doubt: None });
            self.read(id, out);
        }
        if self.open.is_empty() && self.walk.is_over() {
            self.over = true;
            if self.passed_over > 0 {
                let n = self.passed_over;
                out.log(Level::Warn, format!("{n} other tasks of the jobs named were left as they are"));
            }
            out.push(Action::Exit(self.tally.code()));
        }
    }

    fn read(&mut self, id: TaskId, out: &mut Actions<ClientReport>) {
        let call = Call::Get { path: self.layout.task(&id), watch: false };
        self.calls.issue(out, call, (id, Step::Read));
    }

    fn on_reply(&mut self, id: CallId, result: &CallResult, out: &mut Actions<ClientReport>) {
        if let Some(step) = self.walk.on_reply(id, result) {
            match step {
                walk::Step::Pending => {}
                walk::Step::Unknown(job) => self.note(&job, Some(exit::DATA), "no such job".into(), out),
                walk::Step::PassedOver(path) => {
                    self.note(name_of(&path), Some(exit::NOT_PERMITTED), walk::passed_over(&path), out);
                }
                walk::Step::Refused(path, refusal) => {
                    self.fail(refusal_code(refusal), format!("cannot list {path}: {refusal}"), out);
                }
            }
            return;
        }
        let Some((id, step)) = self.calls.take(id) else { return };
        let Some(open) = self.open.get_mut(&id) else { return };
        match (step, result) {
            (Step::Read, Ok(Reply::Data { data, stat })) => self.on_task(id, data, stat.version, out),
            (Step::Write(attempt), Ok(_)) => {
                self.open.remove(&id);
                let message = match self.verb {
                    Verb::Cancel => "is being cancelled".to_string(),
                    Verb::Retry => format!("will run again, as attempt {attempt}"),
                };
                self.note(id.as_str(), None, message, out);
            }
            (Step::Write(_), Err(CallError::Refused(Refusal::BadVersion))) => {
                open.conflicts += 1;
                if open.conflicts > MAX_CONFLICTS {
                    self.open.remove(&id);
                    let message = "keeps changing; try again".to_string();
                    self.note(id.as_str(), Some(exit::TRY_AGAIN), message, out);
                } else {
                    self.read(id, out);
                }
            }
            (_, Err(CallError::Refused(Refusal::NoNode))) => self.on_gone(&id, out),
            (_, Err(CallError::Refused(refusal))) => {
                self.open.remove(&id);
                self.note(id.as_str(), Some(refusal_code(*refusal)), refusal.to_string(), out);
            }
            // It is read again on the next connection, and that tells whether the write was applied.
            (Step::Write(attempt), Err(CallError::MaybeApplied)) => open.doubt = Some(attempt),
            (_, Err(CallError::NotSent | CallError::MaybeApplied)) => {}
            (Step::Read, Ok(reply)) => {
                self.fail(exit::BUG, format!("the read of {id} was answered with {reply:?}"), out);
            }
        }
    }

    fn on_gone(&mut self, id: &TaskId, out: &mut Actions<ClientReport>) {
        match self.open.remove(id) {
            Some(Open { named: true, .. }) => {
                self.note(id.as_str(), Some(exit::DATA), "no such task".into(), out);
            }
            // It was collected since its job was listed.
            Some(Open { named: false, .. }) | None => self.passed_over += 1,
        }
    }

    fn on_task(&mut self, id: TaskId, data: &[u8], version: i32, out: &mut Actions<ClientReport>) {
        let Some(Open { named, doubt, .. }) = self.open.get(&id) else { return };
        let (named, doubt) = (*named, *doubt);
        let task = match Task::decode(data) {
            Ok(task) => task,
            Err(malformed) => {
                self.open.remove(&id);
                return self.note(id.as_str(), Some(exit::DATA), format!("is no task: {malformed}"), out);
            }
        };
        let decision = match self.verb {
            Verb::Cancel => cancel(task),
            Verb::Retry => retry(&id, task, doubt),
        };
        match decision {
            Decision::Write(task) => {
                let path = self.layout.task(&id);
                let attempt = task.attempt;
                let mut task = task;
                // Results say who ran them when they are kept for another attempt, and so may have outgrown the znode.
                let call = Call::Set { path, data: task.encode_to_fit(), version };
                self.calls.issue(out, call, (id, Step::Write(attempt)));
            }
            Decision::Leave { ok, message } => {
                self.open.remove(&id);
                if named || (ok && doubt.is_some()) {
                    self.note(id.as_str(), (!ok).then_some(exit::FAILED), message, out);
                } else {
                    self.passed_over += 1;
                }
            }
        }
    }
}

fn leave(ok: bool, message: impl Into<String>) -> Decision {
    Decision::Leave { ok, message: message.into() }
}

fn cancel(mut task: Task) -> Decision {
    match &task.outcome {
        Some(outcome) if outcome.state == State::Cancelled => leave(true, "was cancelled already"),
        Some(outcome) => leave(true, format!("has ended already: it {}", verdict(outcome))),
        None if task.cancel => leave(true, "is being cancelled"),
        None => {
            task.cancel = true;
            Decision::Write(Box::new(task))
        }
    }
}

/// `doubt`: a write of ours that was to leave the task at that attempt may have been applied.
fn retry(id: &TaskId, mut task: Task, doubt: Option<u32>) -> Decision {
    if let Some(attempt) = doubt.filter(|attempt| task.attempt >= *attempt) {
        return leave(true, format!("will run again, as attempt {attempt}"));
    }
    let Some(outcome) = task.outcome.take() else {
        return leave(false, "has not ended yet: there is nothing to retry");
    };
    if outcome.state == State::Done {
        return leave(false, "has succeeded: only what failed, expired or was cancelled can be retried");
    }
    let why = format!("retried by a user; it had ended as {}", outcome.state.as_str());
    task.results = succeeded(&outcome);
    task.next_attempt(outcome.worker.clone(), &why);
    task.released_by = outcome.worker;
    task.charged = 0;
    task.cancel = false;
    // The deadline may also be its job's, which counts from the task's creation, as its own does.
    if !is_shared(id.dir()) || task.options.expire_ms.is_some() {
        task.options.expire_ms = Some(NO_DEADLINE_MS);
    }
    Decision::Write(Box::new(task))
}

/// What need not run again of a chunk. Who ran it, and when, is said by each result itself from now on.
fn succeeded(outcome: &Outcome) -> Results {
    let mut results = chunk::succeeded(&outcome.results);
    for result in results.iter_mut().flatten() {
        result.attempt.get_or_insert(outcome.attempt);
        result.worker = result.worker.take().or_else(|| outcome.worker.clone());
    }
    results
}

impl Role for Operator {
    type Report = ClientReport;

    fn step(&mut self, _now: Instant, event: Event, out: &mut Actions<ClientReport>) {
        if self.over {
            return;
        }
        if breaks_connection(&event) {
            self.online = false;
        }
        match event {
            Event::Connected { .. } => {
                self.online = true;
                self.calls.clear();
                self.walk.on_connected();
                let open: Vec<TaskId> = self.open.keys().cloned().collect();
                for id in open {
                    self.read(id, out);
                }
            }
            Event::Lost { .. } => {
                self.calls.clear();
                self.walk.on_lost();
            }
            Event::Reply { id, result } => self.on_reply(id, &result, out),
            Event::Stop { .. } => {
                let verb = self.verb.as_str();
                let why = format!("interrupted; what was not reported may be done or not: {verb} it again");
                self.fail(INTERRUPTED, why, out);
            }
            Event::Changed { .. }
            | Event::Wake
            | Event::Started { .. }
            | Event::NotStarted { .. }
            | Event::Ended { .. }
            | Event::Unguarded { .. }
            | Event::Lines(_) => {}
        }
        if !self.over {
            self.pump(out);
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        None
    }

    fn assert_invariants(&self) {
        assert!(self.open.len() <= MAX_OPEN, "too many tasks at a time");
        assert!(self.calls.len() <= self.open.len() || self.over, "two calls about one task");
    }
}

#[cfg(test)]
mod tests;
