//! All about one task: its znode, its job's defaults, who has it, and why it has no outcome yet.

use super::running::{self, Running};
use crate::contract::share::Share;
use crate::contract::task::{Job, Options, Task};
use crate::contract::worker::Registration;
use crate::contract::{Layout, TaskId, is_shared, is_ulid, name_of};
use crate::exit;
use crate::machine::{
    Action, Actions, Call, CallId, CallResult, Calls, Event, Instant, Level, Refusal, Reply, Role, Routed,
    Stat,
};
use crate::roles::client::service_state::{ServiceReader, ServiceState};
use crate::roles::client::wait_reasons::{self, TaskFacts, WaitReason};
use crate::roles::client::walk::{Found, Target, Walk};
use crate::roles::client::{
    ClientReport, INTERRUPTED, Shown, ShownLine, Tally, breaks_connection, refusal_code,
};

/// The parameters of a show.
#[derive(Clone, Debug, PartialEq)]
pub struct ShowParams {
    /// The paths.
    pub layout: Layout,
    /// The task, or the line of a batch.
    pub id: TaskId,
    /// Only the state and the reasons are reported.
    pub only_reasons: bool,
    /// The time, in ms since 1970 by the clock of this machine.
    pub now_ms: i64,
}

/// One who shows a task.
#[derive(Debug)]
pub struct Show {
    layout: Layout,
    walk: Walk,
    /// What the user's words mean.
    target: Option<Found>,
    over: bool,
    running: Running,
    found: Option<(Task, Stat)>,
    defaults: Options,
    /// The worker that has it has reported that it cannot write the outcome.
    is_quarantined: bool,
    service: ServiceReader,
    only_reasons: bool,
    now_ms: i64,
    calls: Calls<Purpose>,
}

/// A line of a chunk, with the share that it is in.
#[derive(Debug)]
struct LineFacts {
    line: running::Line,
    share: Option<Share>,
    /// Open lines of the share before it.
    before: usize,
}

#[derive(Debug)]
enum Purpose {
    Task,
    Job,
    Registration,
}

impl Show {
    /// One who shows this task.
    pub fn new(params: ShowParams) -> Show {
        Show {
            running: Running::with_unregistered(&params.layout),
            service: ServiceReader::new(&params.layout),
            only_reasons: params.only_reasons,
            now_ms: params.now_ms,
            is_quarantined: false,
            walk: Walk::new(&params.layout, [Target::Task(params.id)]),
            layout: params.layout,
            target: None,
            over: false,
            found: None,
            defaults: Options::default(),
            calls: Calls::default(),
        }
    }

    fn fail(&mut self, code: i32, why: String, out: &mut Actions<ClientReport>) {
        self.over = true;
        out.fail(code, why);
    }

    fn read(&mut self, out: &mut Actions<ClientReport>) {
        let Some(Found { id, .. }) = &self.target else { return };
        self.calls.issue(out, Call::Get { path: self.layout.task(id), watch: false }, Purpose::Task);
    }

    fn on_reply(&mut self, id: CallId, result: &CallResult, out: &mut Actions<ClientReport>) {
        if let Routed::Mine(step) = self.walk.on_reply(id, result) {
            if let Some((code, why)) = step.settle(&mut Tally::default(), out) {
                self.fail(code, why, out);
            } else if self.walk.is_over() && self.target.is_none() {
                // It may not be read, as was logged.
                self.over = true;
                out.push(Action::Exit(exit::NOT_PERMITTED));
            }
            return;
        }
        if let Routed::Mine(step) = self.running.on_reply(id, result, out) {
            return match step {
                running::Step::Pending => {}
                running::Step::Done => self.read_registration(out),
                running::Step::Refused(path, refusal) => {
                    self.fail(refusal_code(refusal), format!("cannot read {path}: {refusal}"), out);
                }
            };
        }
        if let Routed::Mine(state) = self.service.on_reply(id, result, out) {
            if let Some(state) = state {
                self.answer(&state, out);
            }
            return;
        }
        // Without an answer the connection is gone; everything is read again on the next.
        if let Routed::Mine((purpose, Some(answer))) = self.calls.route(id, result) {
            self.on_answer(purpose, answer, out);
        }
    }

    fn on_answer(
        &mut self,
        purpose: Purpose,
        answer: Result<&Reply, Refusal>,
        out: &mut Actions<ClientReport>,
    ) {
        let Some(Found { id, line, .. }) = self.target.clone() else { return };
        match (purpose, answer) {
            (Purpose::Task, Ok(Reply::Data { data, stat })) => match Task::decode(data) {
                Ok(task) => {
                    self.found = Some((task, *stat));
                    let call = Call::Get { path: self.layout.job(id.dir()), watch: false };
                    self.calls.issue(out, call, Purpose::Job);
                }
                Err(malformed) => {
                    let why = format!("the znode {} is no task: {malformed}", self.layout.task(&id));
                    self.fail(exit::DATA, why, out);
                }
            },
            (Purpose::Task, Err(Refusal::NoNode)) => {
                let why = match line {
                    // It may have been named by a ULID alone.
                    None if is_shared(id.dir()) && is_ulid(name_of(id.as_str())) => {
                        let hint = format!("see zkmw list --job {}", name_of(id.as_str()));
                        format!("there is no task {id}; if a batch has this ULID, {hint}")
                    }
                    None => format!("there is no task {id}"),
                    Some((_, name)) => {
                        format!("there is no line {name}, or it has succeeded and was collected")
                    }
                };
                self.fail(exit::DATA, why, out);
            }
            (Purpose::Job, Ok(Reply::Data { data, .. })) => {
                match Job::decode(data) {
                    Ok(job) => self.defaults = job.options,
                    Err(malformed) => {
                        let path = self.layout.job(id.dir());
                        out.log(Level::Warn, format!("the znode {path} is no job: {malformed}"));
                    }
                }
                self.running.start(out);
            }
            (Purpose::Job, Err(Refusal::NoNode)) => self.running.start(out),
            (Purpose::Registration, Ok(Reply::Data { data, .. })) => {
                let registration = Registration::decode(data);
                self.is_quarantined = registration.is_ok_and(|own| own.quarantined.contains(&id));
                self.service.start(out);
            }
            // It is gone, or no business of ours.
            (Purpose::Registration, Err(_)) => self.service.start(out),
            (_, Err(refusal)) => {
                let why = format!("cannot read the task {}: {refusal}", self.layout.task(&id));
                self.fail(refusal_code(refusal), why, out);
            }
            (purpose, Ok(reply)) => {
                let why = format!("{purpose:?} of {id} was answered with {reply:?}");
                self.fail(exit::BUG, why, out);
            }
        }
    }

    /// Reads the registration of the worker that has the task, if one has it.
    fn read_registration(&mut self, out: &mut Actions<ClientReport>) {
        let (Some(Found { id, .. }), Some((task, _))) = (&self.target, &self.found) else { return };
        let worker = match self.line_facts() {
            Some(facts) => facts.line.holder,
            None => self.running.worker_of(id, task).filter(|_| task.outcome.is_none()).cloned(),
        };
        match worker.and_then(|worker| self.running.registration(&worker)) {
            Some(path) => _ = self.calls.issue(out, Call::Get { path, watch: false }, Purpose::Registration),
            None => self.service.start(out),
        }
    }

    /// The line that is meant, if one is and the chunk has it.
    fn line_facts(&self) -> Option<LineFacts> {
        let (Found { id, line, .. }, (task, _)) = (self.target.as_ref()?, self.found.as_ref()?);
        let (position, _) = line.as_ref().filter(|_| task.commands.is_some())?;
        let line = self.running.lines(id, task).into_iter().find(|line| line.position == *position)?;
        let share = task.all_shares().into_iter().find(|share| share.lines.has(*position));
        let open = share.as_ref().map_or(Vec::new(), |share| task.open_lines(share));
        let before = open.iter().filter(|open| *open < position).count();
        Some(LineFacts { line, share, before })
    }

    fn answer(&mut self, service: &ServiceState, out: &mut Actions<ClientReport>) {
        let facts = self.line_facts();
        let Some((task, stat)) = self.found.take() else { return };
        let Some(Found { id, line, .. }) = self.target.take() else { return };
        let options = task.options.or(&self.defaults);
        let mut worker = self.running.worker_of(&id, &task).filter(|_| task.outcome.is_none()).cloned();
        let line = match (line.filter(|_| task.commands.is_some()), &facts) {
            (None, _) => None,
            (Some((_, name)), None) => {
                return self.fail(exit::DATA, format!("there is no line {name}"), out);
            }
            (Some((position, name)), Some(facts)) => {
                worker = facts.line.holder.clone();
                Some(ShownLine { name, position, status: facts.line.status })
            }
        };
        let mut shown = Shown { id, line, task, stat, options, worker, reasons: Vec::new() };
        shown.reasons = self.reasons(&shown, facts.as_ref(), service);
        self.over = true;
        let report = if self.only_reasons { ClientReport::Why } else { ClientReport::Shown };
        out.push(Action::Report(report(Box::new(shown))));
        out.push(Action::Exit(exit::OK));
    }
}

impl Show {
    /// Why the task, or its line, has no outcome.
    fn reasons(&self, shown: &Shown, line: Option<&LineFacts>, service: &ServiceState) -> Vec<WaitReason> {
        let share = line.and_then(|facts| facts.share.as_ref());
        let number = share.map(|share| share.attempt);
        let facts = TaskFacts {
            task: &shown.task,
            changed_ms: shown.stat.mtime_ms,
            line: line.map(|facts| (facts.line.position, facts.before)),
            share,
            status: shown.status(),
            worker: shown.worker.as_ref(),
            is_quarantined: self.is_quarantined,
            revoked: self.running.revoked_at(&shown.id, number),
            unregistered: self.running.unregistered_holder(&shown.id, &shown.task, number),
            now_ms: self.now_ms,
        };
        let required = shown.options.require.clone().unwrap_or_default();
        wait_reasons::of_task(&facts, &required, service)
    }
}

impl Role for Show {
    type Report = ClientReport;

    fn step(&mut self, _now: Instant, event: Event, out: &mut Actions<ClientReport>) {
        if self.over {
            return;
        }
        let broken = breaks_connection(&event);
        match event {
            Event::Connected { .. } => {
                self.calls.clear();
                self.service.clear();
                self.running.on_lost();
                self.walk.on_connected();
                if self.target.is_some() {
                    self.read(out);
                }
            }
            Event::Lost { .. } => {
                self.calls.clear();
                self.service.clear();
                self.running.on_lost();
                self.walk.on_lost();
            }
            Event::Reply { id, result } => self.on_reply(id, &result, out),
            Event::Stop { .. } => self.fail(INTERRUPTED, "interrupted".to_string(), out),
            Event::Changed { .. }
            | Event::Wake
            | Event::Started { .. }
            | Event::NotStarted { .. }
            | Event::Ended { .. }
            | Event::SlotsLost { .. }
            | Event::Lines(_) => {}
        }
        if !self.over
            && !broken
            && self.target.is_none()
            && let Some(found) = self.walk.next(out)
        {
            self.target = Some(found);
            self.read(out);
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        None
    }

    fn assert_invariants(&self) {
        assert!(self.calls.len() <= 1, "one question at a time");
    }
}
