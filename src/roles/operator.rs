//! Operator: cancels tasks, or sends those that ended badly round again. Each wish is one compare-and-set of the
//! task's znode, decided again whenever somebody else was faster or a connection was lost in between.
//!
//! A retry never starts beside an attempt that still runs: an outcome is written only when its attempt is dead,
//! so the outcome's writer is named as who vouches for that.

mod decide;
mod delete;

use std::collections::BTreeMap;

use self::decide::{Decision, Lines, Unchanged};
pub use self::delete::Deletion;
use super::client::walk::{self, BareNames, Found, Target, Walk};
use super::client::{ClientReport, INTERRUPTED, Noted, Tally, breaks_connection, refusal_code};
use crate::contract::line::LineName;
use crate::contract::task::Task;
use crate::contract::{Layout, TaskId, name_of};
use crate::exit;
use crate::machine::{
    Action, Actions, Call, CallError, CallId, CallResult, Calls, Event, Instant, Level, Refusal, Reply, Role,
    Routed, Stat,
};

/// Tasks that are worked on at a time.
const MAX_OPEN: usize = 64;

/// Changes by others that one task may meet with before it is given up.
const MAX_CONFLICTS: u32 = 20;

/// What is wished for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// That it ends as cancelled, if it has not ended yet.
    Cancel,
    /// That it runs again, if it failed, expired or was cancelled.
    Retry,
    /// That its outcome is deleted, and the task with it.
    Delete(Deletion),
}

impl Verb {
    fn as_str(&self) -> &'static str {
        match self {
            Verb::Cancel => "cancel",
            Verb::Retry => "retry",
            Verb::Delete(_) => "delete",
        }
    }
}

/// The parameters of an operator.
#[derive(Clone, Debug, PartialEq)]
pub struct OperatorParams {
    /// The paths.
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
    /// Tasks and lines of whole jobs that the wish does not concern.
    passed_over: u64,
    tally: Tally,
}

/// What is wished of a task.
#[derive(Debug)]
struct Wish {
    /// The user named it; otherwise it is one of a job, and need not be fit for the wish.
    named: bool,
    /// The lines that are meant; none if the whole is.
    lines: Lines,
}

impl Wish {
    fn of(found: Found) -> Wish {
        Wish { named: found.named, lines: found.line.into_iter().collect() }
    }

    /// Both at once.
    fn join(&mut self, other: Wish) {
        self.named |= other.named;
        if self.lines.is_empty() || other.lines.is_empty() {
            self.lines.clear();
        } else {
            self.lines.extend(other.lines);
        }
    }
}

#[derive(Debug)]
struct Open {
    wish: Wish,
    /// What else is wished, after that.
    more: Option<Wish>,
    conflicts: u32,
    /// What was sent, and is not answered.
    sent: Option<Decision>,
    /// What was sent, and may have been applied: the answer was lost.
    doubt: Option<Decision>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Read,
    Write,
}

impl Operator {
    /// An operator for these.
    pub fn new(params: OperatorParams) -> Operator {
        Operator {
            walk: Walk::new(&params.layout, params.targets).with_bare_names(BareNames::Ulids),
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
            let Some(found) = self.walk.next(out) else { break };
            let (id, wish) = (found.id.clone(), Wish::of(found));
            match self.open.get_mut(&id) {
                Some(Open { more: Some(more), .. }) => more.join(wish),
                Some(open) => open.more = Some(wish),
                None => self.begin(id, wish, out),
            }
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

    fn begin(&mut self, id: TaskId, wish: Wish, out: &mut Actions<ClientReport>) {
        self.open.insert(id.clone(), Open { wish, more: None, conflicts: 0, sent: None, doubt: None });
        self.read(id, out);
    }

    /// The wish is dealt with. Gives it, and begins with what else is wished of the task.
    fn close(&mut self, id: &TaskId, out: &mut Actions<ClientReport>) -> Option<Wish> {
        let Open { wish, more, .. } = self.open.remove(id)?;
        if let Some(more) = more {
            self.begin(id.clone(), more, out);
        }
        Some(wish)
    }

    /// What came of a wish.
    fn report(&mut self, wish: &Wish, decision: Decision, out: &mut Actions<ClientReport>) {
        let only = decision.changed.is_empty();
        for (name, message) in decision.changed {
            self.note(&name, None, message, out);
        }
        for Unchanged { name, problem, message } in decision.left {
            if wish.named && (only || !wish.lines.is_empty()) {
                self.note(&name, problem, message, out);
            } else {
                self.passed_over += 1;
            }
        }
    }

    /// The wish cannot be fulfilled, for this reason.
    fn refuse(&mut self, id: &TaskId, code: i32, message: &str, out: &mut Actions<ClientReport>) {
        let Some(wish) = self.close(id, out) else { return };
        for name in names(id, &wish.lines) {
            self.note(&name, Some(code), message.to_string(), out);
        }
    }

    fn read(&mut self, id: TaskId, out: &mut Actions<ClientReport>) {
        let call = Call::Get { path: self.layout.task(&id), watch: false };
        self.calls.issue(out, call, (id, Step::Read));
    }

    fn on_reply(&mut self, id: CallId, result: &CallResult, out: &mut Actions<ClientReport>) {
        if let Routed::Mine(step) = self.walk.on_reply(id, result) {
            return self.on_walked(step, out);
        }
        let Routed::Mine(((id, step), answer)) = self.calls.route(id, result) else { return };
        let Some(open) = self.open.get_mut(&id) else { return };
        match (step, answer) {
            (Step::Read, Some(Ok(Reply::Data { data, stat }))) => self.on_task(id, data, stat, out),
            (Step::Write, Some(Ok(_))) => {
                let sent = open.sent.take().unwrap_or_default();
                if let Some(wish) = self.close(&id, out) {
                    self.report(&wish, sent, out);
                }
            }
            (Step::Write, Some(Err(Refusal::BadVersion))) => {
                open.conflicts += 1;
                if open.conflicts > MAX_CONFLICTS {
                    self.refuse(&id, exit::TRY_AGAIN, "keeps changing; try again", out);
                } else {
                    self.read(id, out);
                }
            }
            (_, Some(Err(Refusal::NoNode))) => self.on_gone(&id, out),
            (_, Some(Err(refusal))) => {
                self.refuse(&id, refusal_code(refusal), &refusal.to_string(), out);
            }
            // It is read again on the next connection, and that shows whether the write was applied.
            (Step::Write, None) if *result == Err(CallError::MaybeApplied) => open.doubt = open.sent.take(),
            (Step::Read | Step::Write, None) => {}
            (Step::Read, Some(Ok(reply))) => {
                self.fail(exit::BUG, format!("the read of {id} was answered with {reply:?}"), out);
            }
        }
    }

    fn on_walked(&mut self, step: walk::Step, out: &mut Actions<ClientReport>) {
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
    }

    fn on_gone(&mut self, id: &TaskId, out: &mut Actions<ClientReport>) {
        let ours = |open: &mut Open| open.sent.take().or(open.doubt.take()).filter(|sent| sent.deletes);
        if let Some(deleted) = self.open.get_mut(id).and_then(ours)
            && let Some(wish) = self.close(id, out)
        {
            return self.report(&wish, deleted, out);
        }
        match self.open.get(id) {
            Some(Open { wish, .. }) if wish.named => {
                let message = match wish.lines.is_empty() {
                    true => "no such task",
                    false => "there is no such line, or it has succeeded and was collected",
                };
                self.refuse(id, exit::DATA, message, out);
            }
            // It was collected since its job was listed.
            Some(_) | None => {
                self.passed_over += 1;
                self.close(id, out);
            }
        }
    }

    fn on_task(&mut self, id: TaskId, data: &[u8], stat: &Stat, out: &mut Actions<ClientReport>) {
        let Some(open) = self.open.get_mut(&id) else { return };
        let task = match Task::decode(data) {
            Ok(task) => task,
            Err(malformed) => {
                return self.refuse(&id, exit::DATA, &format!("is no task: {malformed}"), out);
            }
        };
        let applied = open.doubt.take_if(|sent| sent.is_applied_in(&task, &self.verb));
        let mut decision = match applied {
            Some(sent) => Decision { write: None, ..sent },
            None => match &self.verb {
                Verb::Cancel => decide::cancel(&id, task, &open.wish.lines),
                Verb::Retry => decide::retry(&id, task, &open.wish.lines),
                Verb::Delete(wish) => delete::delete(&id, task, stat, &open.wish.lines, wish),
            },
        };
        if let Some(task) = &mut decision.write {
            let (path, version) = (self.layout.task(&id), stat.version);
            let call = match decision.deletes {
                true => Call::Delete { path, version: Some(version) },
                // Results say who ran them when they are kept for another attempt, and so may have outgrown the znode.
                false => Call::Set { path, data: task.encode_to_fit(), version },
            };
            open.sent = Some(decision);
            self.calls.issue(out, call, (id, Step::Write));
        } else if let Some(wish) = self.close(&id, out) {
            self.report(&wish, decision, out);
        }
    }
}

/// What those are called whom a wish is about.
fn names(id: &TaskId, lines: &Lines) -> Vec<String> {
    match lines.is_empty() {
        true => vec![id.to_string()],
        false => lines.values().map(LineName::to_string).collect(),
    }
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
            | Event::SlotsLost { .. }
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
