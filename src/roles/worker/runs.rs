//! What a worker runs: started in the order of its assignment, stopped when it must end, and taken in when it ended.
//!
//! Entries are started strictly in their order, and at most as many as it has slots and [`START_AHEAD`] more are
//! started and not written down. So when a worker dies, a leader knows which of its entries cannot have been started,
//! and charges none of those.

use std::time::Duration;

use super::assigned_task::{AssignedTask, State};
use super::execution::Execution;
use super::reports::Want;
use super::starts::Failed;
use super::stop_reason::{Stop, StopReason};
use super::work::Work;
use super::{Mode, Out, Run, Worker};
use crate::contract::handler::Request;
use crate::contract::line::id_of;
use crate::contract::share::Release;
use crate::contract::task::{Options, Payload};
use crate::contract::worker::{EntryId, MAX_UNHEALTHY_BYTES, START_AHEAD, START_AHEAD_LINES};
use crate::contract::{TaskId, is_shared, shortened};
use crate::machine::{
    Action, GroupSignal, Instant, Level, NotStartedKind, RunId, RunOutput, RunReport, RunSpec, earlier,
};

/// A task that outlasts a drain's grace gets SIGTERM so long before SIGKILL, but not before half of the grace is
/// over: a short one would otherwise leave no time to end in peace.
pub const TERM_BEFORE_KILL: Duration = Duration::from_secs(5);

/// A task that could not be started for something that passes by itself waits so long, in ms.
const TRANSIENT_DELAY_MS: u64 = 1_000;

/// What the next entry in the order of starts allows.
enum Head {
    /// It is not there any more, or all of it was started.
    Gone,
    /// It cannot be started yet, and what follows waits for it.
    Waits,
    /// More of it may be started once what was written of it exists; what follows goes on.
    Passes,
    /// This command of it.
    Start(usize),
}

impl Worker {
    /// How many more commands may be started and without a result in the ensemble.
    fn room(&self) -> usize {
        let slots = self.params.slots as usize;
        if self.assigned.started + self.reports.len() >= slots + START_AHEAD {
            return 0;
        }
        let executions = self.assigned.tasks.values().filter_map(AssignedTask::execution);
        let unwritten: usize = executions
            .map(|execution| execution.portion.as_ref().map_or(1, |portion| portion.holder.unwritten()))
            .sum();
        (slots + START_AHEAD_LINES).saturating_sub(unwritten + self.reports.commands())
    }

    /// Starts what may be started.
    pub(super) fn start_ready(&mut self, now: Instant, out: &mut Out) {
        let may = self.mode == Mode::Working
            && self.dying.is_none()
            && self.registrar.is_registered()
            && self.lease.holds(now);
        if !may {
            return;
        }
        if self.assigned.start_order.is_empty() || self.running.runs.len() >= self.running.starts.allowed() {
            return;
        }
        let mut room = self.room();
        let mut next = 0;
        while room > 0 && self.running.runs.len() < self.running.starts.allowed() {
            let first =
                self.assigned.start_order.range(next..).next().map(|(order, id)| (*order, id.clone()));
            let Some((order, id)) = first else { return };
            match self.head(&id, order, now) {
                Head::Gone => {
                    self.assigned.start_order.remove(&order);
                    // There may have been nothing to start: a chunk may be all blank, or have all its results already.
                    self.finish_if_over(&id, out);
                }
                Head::Waits => return,
                Head::Passes => {
                    self.plan_save(&id, now);
                    next = order + 1;
                }
                Head::Start(command) => {
                    room -= 1;
                    self.start(&id, command, now, out);
                }
            }
        }
    }

    fn head(&mut self, id: &EntryId, order: u64, now: Instant) -> Head {
        let Some(assigned) = self.assigned.tasks.get_mut(id).filter(|assigned| assigned.order == order)
        else {
            return Head::Gone;
        };
        match &mut assigned.state {
            State::Waiting | State::Reading { .. } | State::Verifying { .. } => return Head::Waits,
            State::Reporting | State::Closed { .. } | State::Quarantined => {
                return Head::Gone;
            }
            State::Running(execution) => return next_of(execution),
            State::Ready(_) => {}
        }
        let none = Options::default();
        let dir = id.task.dir();
        let job =
            if is_shared(dir) { Some(&none) } else { self.assigned.jobs.get(dir).and_then(Option::as_ref) };
        let Some(job) = job else { return Head::Waits };
        let State::Ready(work) = std::mem::replace(&mut assigned.state, State::Closed { confirm: false })
        else {
            return Head::Gone;
        };
        let mut execution = Box::new(Execution::new(*work, id.attempt, job, now));
        let first = next_of(&mut execution);
        assigned.state = State::Running(execution);
        self.assigned.started += 1;
        first
    }

    fn start(&mut self, id: &EntryId, command: usize, now: Instant, out: &mut Out) {
        let Some(execution) = self.assigned.tasks.get_mut(id).and_then(|assigned| assigned.execution_mut())
        else {
            return;
        };
        let run = RunId(out.fresh_id());
        let timeout = execution.options.timeout_ms.map(Duration::from_millis);
        let spec = match &self.params.handler {
            Some(handler) => {
                ask(handler, run, &id.task, execution, command, &self.params.id, self.params.output_limit)
            }
            None => spawn(&id.task, execution, command, &self.params.id, self.params.output_limit),
        };
        out.push(Action::Run { run, spec });
        execution.runs.insert(run);
        self.running
            .runs
            .insert(run, Run { id: id.clone(), command, timeout, timer: None, stop: None, begun: false });
        self.plan_save(id, now);
    }

    /// The program runs: its time begins, however long it took to get there.
    pub(super) fn on_started(&mut self, id: RunId, now: Instant, out: &mut Out) {
        let Some(run) = self.running.runs.get_mut(&id) else { return };
        run.begun = true;
        if let Some(timeout) = run.timeout.filter(|_| run.stop.is_none()) {
            self.set_timer(id, Some(now + timeout));
        }
        if self.running.starts.is_limited() && self.running.starts.worked(self.begun(), now) {
            out.log(Level::Info, "tasks can be started here again");
        }
    }

    /// How many programs run.
    fn begun(&self) -> usize {
        self.running.runs.values().filter(|run| run.begun).count()
    }

    /// When something is to be done to a run.
    fn set_timer(&mut self, id: RunId, at: Option<Instant>) {
        let Some(run) = self.running.runs.get_mut(&id) else { return };
        if let Some(before) = std::mem::replace(&mut run.timer, at) {
            self.running.timers.remove(&(before, id));
        }
        if let Some(at) = at {
            self.running.timers.insert((at, id));
        }
    }

    /// Has a run end until it is killed, unless it is being stopped already.
    pub(super) fn stop_run(&mut self, run: RunId, why: StopReason, kill: Instant, out: &mut Out) {
        let Some(known) = self.running.runs.get_mut(&run).filter(|run| run.stop.is_none()) else { return };
        known.stop = Some(Stop { why, kill, killed: false });
        self.set_timer(run, Some(kill));
        out.push(Action::Signal { run, signal: GroupSignal::Term });
    }

    /// Stops what ran past its timeout, and kills what was stopped and did not end.
    pub(super) fn stop_late(&mut self, now: Instant, out: &mut Out) {
        while let Some((at, run)) = self.running.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.running.timers.remove(&(at, run));
            let Some(known) = self.running.runs.get_mut(&run) else { continue };
            known.timer = None;
            match &mut known.stop {
                None => self.stop_run(run, StopReason::Timeout, now + self.params.grace, out),
                Some(stop) => {
                    stop.killed = true;
                    out.push(Action::Signal { run, signal: GroupSignal::Kill });
                }
            }
        }
    }

    /// Stops what still runs at the end of a drain's grace.
    pub(super) fn stop_running(&mut self, term: Instant, kill: Instant, now: Instant, out: &mut Out) {
        let runs: Vec<RunId> = self.running.runs.keys().copied().collect();
        for run in runs {
            let Some(known) = self.running.runs.get_mut(&run) else { continue };
            if let Some(stop) = known.stop.as_mut().filter(|stop| !stop.killed) {
                stop.kill = stop.kill.min(kill);
                let kill = stop.kill;
                self.set_timer(run, Some(kill));
            } else if known.stop.is_none() && term <= now {
                self.stop_run(run, StopReason::Drain, kill, out);
            }
        }
        self.stop_late(now, out);
    }

    /// No more commands of chunks are started: what is over of them is written down, the rest is handed back.
    pub(super) fn halt_all(&mut self, why: StopReason, out: &mut Out) {
        for execution in self.assigned.tasks.values_mut().filter_map(AssignedTask::execution_mut) {
            execution.halt(why);
        }
        for id in self.ids_of(|assigned| assigned.execution().is_some()) {
            self.finish_if_over(&id, out);
        }
    }

    /// Kills everything at once: the incarnation is dead.
    pub(super) fn kill_all(&mut self, out: &mut Out) {
        for assigned in self.assigned.tasks.values_mut() {
            assigned.removed = true;
        }
        self.running.timers.clear();
        for (id, run) in &mut self.running.runs {
            run.timer = None;
            run.stop = Some(Stop { why: StopReason::Dead, kill: Instant::default(), killed: true });
            out.push(Action::Signal { run: *id, signal: GroupSignal::Kill });
        }
        self.assigned.tasks.retain(|_, assigned| assigned.is_busy());
        self.assigned.start_order.clear();
        self.halt_all(StopReason::Dead, out);
    }

    /// The next time at which a run wants something done to it.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let save = self.saves.due.first().map(|(at, _)| *at).filter(|_| self.connected);
        earlier(self.running.timers.first().map(|(at, _)| *at), save)
    }

    /// The next step of a drain.
    pub(super) fn next_stop(&self, term: Instant, kill: Instant) -> Option<Instant> {
        let term = self.running.runs.values().any(|run| run.stop.is_none()).then_some(term);
        let pending = |run: &Run| run.stop.is_some_and(|stop| !stop.killed);
        earlier(term, self.running.runs.values().any(pending).then_some(kill))
    }

    /// A run could not even be started.
    pub(super) fn on_not_started(
        &mut self,
        run: RunId,
        kind: NotStartedKind,
        why: &str,
        now: Instant,
        out: &mut Out,
    ) {
        let Some(run) = self.take_run(run) else { return };
        let by = self.registrar.incarnation().clone();
        let mut line = None;
        if let Some(execution) =
            self.assigned.tasks.get_mut(&run.id).and_then(|assigned| assigned.execution_mut())
        {
            line = execution.payload(run.command).1;
            match kind {
                NotStartedKind::Permanent => execution.not_started(run.command, why, &by),
                NotStartedKind::Transient => {
                    let delay_ms = Some(TRANSIENT_DELAY_MS);
                    execution.put_off(Release { delay_ms, ..Release::because(why) });
                }
                NotStartedKind::Shortage => {
                    execution.put_off(Release { avoid: true, ..Release::because(why) })
                }
            }
        }
        self.finish_if_over(&run.id, out);
        self.plan_save(&run.id, now);
        if kind == NotStartedKind::Shortage && run.stop.is_none() {
            self.on_shortage(&id_of(&run.id.task, line), why, now, out);
        }
    }

    /// A start failed because something is short here: what waits goes to others, and fewer runs are started for a
    /// while.
    fn on_shortage(&mut self, name: &str, why: &str, now: Instant, out: &mut Out) {
        let why = shortened(why, MAX_UNHEALTHY_BYTES);
        let (level, pause) = match self.running.starts.failed(self.begun(), &why, now) {
            Failed::Known => return,
            Failed::First(pause) => (Level::Warn, pause),
            Failed::Again(pause) => (Level::Debug, pause),
        };
        let (allowed, seconds) = (self.running.starts.allowed(), pause.as_secs_f32());
        out.log(
            level,
            format!(
                "the task {name} was not started: {why}. It goes to another worker. This one runs {allowed} \
                 tasks at a time for now, and tries one more in {seconds:.1} s"
            ),
        );
        self.show_starts(out);
        for id in self.ids_of(AssignedTask::is_open) {
            if let Some(assigned) = self.assigned.tasks.get_mut(&id) {
                assigned.recalled = true;
            }
            self.give_back(&id, out);
        }
    }

    /// The registration says how many tasks may run at a time, if fewer than there are slots, and why.
    pub(super) fn show_starts(&mut self, out: &mut Out) {
        let usable = Some(self.running.starts.allowed()).filter(|_| self.running.starts.is_limited());
        let usable = usable.and_then(|usable| u32::try_from(usable).ok());
        let unhealthy = self.running.starts.why();
        let body = self.registrar.body();
        if body.usable != usable || body.unhealthy.as_deref() != unhealthy {
            let unhealthy = unhealthy.map(str::to_string);
            self.registrar.publish(|body| (body.usable, body.unhealthy) = (usable, unhealthy), out);
        }
    }

    /// A run is over, and its group dead.
    pub(super) fn on_ended(&mut self, run: RunId, report: &RunReport, now: Instant, out: &mut Out) {
        let Some(run) = self.take_run(run) else { return };
        let by = self.registrar.incarnation().clone();
        self.note_run_time(report);
        if let Some(execution) =
            self.assigned.tasks.get_mut(&run.id).and_then(|assigned| assigned.execution_mut())
        {
            execution.ended(run.command, run.stop.map(|stop| stop.why), report, &by);
        }
        self.finish_if_over(&run.id, out);
        self.plan_save(&run.id, now);
    }

    fn take_run(&mut self, id: RunId) -> Option<Run> {
        self.set_timer(id, None);
        let run = self.running.runs.remove(&id)?;
        if let Some(execution) =
            self.assigned.tasks.get_mut(&run.id).and_then(|assigned| assigned.execution_mut())
        {
            execution.runs.remove(&id);
        }
        Some(run)
    }

    /// What was started of an entry is over: that is to be written down from now on. What is on its way of a share
    /// comes first.
    pub(super) fn finish_if_over(&mut self, id: &EntryId, out: &mut Out) {
        let Some(assigned) = self.assigned.tasks.get_mut(id) else { return };
        let is_over = |execution: &Execution| {
            execution.is_over() && !execution.portion.as_ref().is_some_and(|portion| portion.is_writing())
        };
        if !assigned.execution().is_some_and(is_over) {
            return;
        }
        let State::Running(mut execution) = std::mem::replace(&mut assigned.state, State::Reporting) else {
            return;
        };
        self.assigned.started -= 1;
        let want = execution.want();
        if let Some(at) = execution.portion.as_mut().and_then(|portion| portion.save_at.take()) {
            self.saves.due.remove(&(at, id.clone()));
        }
        let known = match &execution.portion {
            Some(portion) => portion.work(execution.work.mzxid),
            None => Some(execution.work),
        };
        self.owe(id, known.as_ref(), want, out);
    }

    pub(super) fn owe(&mut self, id: &EntryId, known: Option<&Work>, want: Want, out: &mut Out) {
        let by = self.registrar.incarnation().clone();
        self.reports.add(id, &by, known, want, out);
    }
}

/// What to do next of an entry that was started.
fn next_of(execution: &mut Execution) -> Head {
    match execution.start_next() {
        Some(command) => Head::Start(command),
        None if execution.portion.as_ref().is_some_and(|portion| portion.is_left())
            && !execution.is_halted() =>
        {
            Head::Passes
        }
        None => Head::Gone,
    }
}

/// A process for a command.
fn spawn(id: &TaskId, execution: &Execution, command: usize, worker: &str, limit: usize) -> RunSpec {
    let (payload, line) = execution.payload(command);
    let argv = match payload {
        Payload::Program(argv) => argv,
        Payload::Shell(line) => shell(line),
        Payload::Chunk { .. } => Vec::new(),
    };
    let mut env: Vec<_> = execution.options.env.clone().unwrap_or_default().into_iter().collect();
    env.extend(private(worker));
    for (key, value) in [
        ("ZKMW_TASK", id_of(id, line)),
        ("ZKMW_ATTEMPT", execution.attempt().to_string()),
        ("ZKMW_EPOCH", execution.work.mzxid.to_string()),
    ] {
        env.push((key.to_string(), value));
    }
    env.extend(line.map(|line| ("ZKMW_LINE".to_string(), line.saturating_add(1).to_string())));
    RunSpec { argv, env, request: None, output: RunOutput::Capture { limit } }
}

/// A request to the handler for a command.
fn ask(
    handler: &str,
    run: RunId,
    id: &TaskId,
    execution: &Execution,
    command: usize,
    worker: &str,
    limit: usize,
) -> RunSpec {
    let (payload, line) = execution.payload(command);
    let name = id_of(id, line);
    let mut request = Request::new(run.0, &name, execution.attempt(), execution.work.mzxid, worker);
    request.line = line.map(|line| line.saturating_add(1));
    request.env = execution.options.env.as_ref();
    request.timeout_ms = execution.options.timeout_ms;
    match &payload {
        Payload::Shell(line) => request.command = Some(line),
        Payload::Program(argv) => request.argv = Some(argv),
        Payload::Chunk { .. } => {}
    }
    RunSpec {
        argv: shell(handler.to_string()),
        env: private(worker).into(),
        request: Some(request.encode()),
        output: RunOutput::Capture { limit },
    }
}

fn shell(line: String) -> Vec<String> {
    vec!["/bin/sh".into(), "-c".into(), line]
}

/// The worker's own name and credentials are not for the task; what is empty counts as not set.
fn private(worker: &str) -> [(String, String); 3] {
    [("ZKMW_ID", ""), ("ZKMW_AUTH", ""), ("ZKMW_WORKER", worker)]
        .map(|(key, value)| (key.to_string(), value.to_string()))
}
