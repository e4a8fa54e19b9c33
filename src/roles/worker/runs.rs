//! The entries of a worker's assignment, one slot each: from being read to being written down.

use std::time::Duration;

use super::reports::Want;
use super::{Mode, Out, Purpose, Worker};
use crate::contract::task::{Options, Outcome, Output, Payload, Reason, State as OutcomeState, Task};
use crate::contract::worker::Entry;
use crate::contract::{TaskId, is_shared};
use crate::machine::{
    Action, Call, Ended, GroupSignal, Instant, RunId, RunOutput, RunReport, RunSpec, Stat, earlier,
};
use crate::recipes::lease::Ticket;

/// A task that outlasts a drain's grace gets SIGTERM so long before SIGKILL, but not before half of the grace is
/// over: a short one would otherwise leave no time to end in peace.
pub const TERM_BEFORE_KILL: Duration = Duration::from_secs(5);

/// The least time between two writes that only say that something revoked, and written down as ended, is dead.
const VOUCH_PACE: Duration = Duration::from_secs(1);

/// A task that could not be started because the machine is short of something waits so long, in ms.
const TRANSIENT_DELAY_MS: u64 = 1_000;

/// One entry of the assignment.
#[derive(Debug)]
pub struct Slot {
    /// The attempt that the entry names.
    pub attempt: u32,
    /// The leader wants it dead.
    pub revoked: bool,
    /// The entry is gone, and the slot goes as soon as it is closed.
    pub orphaned: bool,
    /// The same task, given out to us once more before we had heard what became of our report.
    pub next: Option<(u32, bool)>,
    /// How far it is.
    pub state: State,
}

/// How far an entry is.
#[derive(Debug)]
pub enum State {
    /// The task is being read; `verified` if an own write was made before.
    Reading { verified: bool },
    /// What was read does not fit: an own write is being made, then it is read again.
    Verifying { ticket: Ticket },
    /// It may be started.
    Ready(Box<Work>),
    /// It runs, and from its start on has this much time.
    Running {
        run: RunId,
        work: Box<Work>,
        timeout: Option<Duration>,
        deadline: Option<Instant>,
        stop: Option<Stop>,
    },
    /// It ended, and that is being written down.
    Reporting,
    /// There is nothing to do; with `vouch`, the leader must be told that it is dead.
    Closed { vouch: bool },
    /// There is nothing that could be done.
    Aside,
}

/// A task as it was read before its attempt started.
#[derive(Debug)]
pub struct Work {
    task: Task,
    /// The version that its outcome will be set against.
    version: i32,
    /// The transaction that wrote it: its fencing token.
    mzxid: i64,
}

/// Why and until when a run is being stopped.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    why: Why,
    kill: Instant,
    killed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Timeout,
    Revoked,
    Drain,
    Dead,
}

impl Slot {
    fn new(attempt: u32, revoked: bool) -> Slot {
        Slot { attempt, revoked, orphaned: false, next: None, state: State::Reading { verified: false } }
    }

    /// The run, if it runs.
    pub fn run(&self) -> Option<RunId> {
        match self.state {
            State::Running { run, .. } => Some(run),
            _ => None,
        }
    }

    /// Whether it is this run.
    pub fn is_running(&self, run: RunId) -> bool {
        self.run() == Some(run)
    }

    /// Whether it awaits the answer to such a reading.
    pub fn awaits(&self, attempt: u32, verified: bool) -> bool {
        self.attempt == attempt && matches!(self.state, State::Reading { verified: v } if v == verified)
    }

    /// Whether it takes up one of the worker's slots.
    pub fn is_busy(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Reporting)
    }

    /// Whether it is still to be started.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Reading { .. } | State::Verifying { .. } | State::Ready(_))
    }

    /// Whether its attempt is dead, and no report on it is owed.
    fn is_dead(&self) -> bool {
        matches!(self.state, State::Closed { .. } | State::Aside)
    }
}

impl Worker {
    /// Takes in a new version of the assignment.
    pub(super) fn merge(&mut self, entries: Vec<Entry>, now: Instant, out: &mut Out) {
        for slot in self.slots.values_mut() {
            slot.orphaned = true;
        }
        for entry in entries {
            match self.slots.get_mut(&entry.task) {
                None => {
                    self.slots.insert(entry.task.clone(), Slot::new(entry.attempt, entry.revoked));
                    self.read_task(&entry.task, out);
                }
                Some(slot) if slot.attempt == entry.attempt => {
                    slot.orphaned = false;
                    slot.revoked |= entry.revoked;
                }
                Some(slot) if slot.is_dead() => {
                    *slot = Slot::new(entry.attempt, entry.revoked);
                    self.read_task(&entry.task, out);
                }
                Some(slot) => {
                    slot.orphaned = false;
                    slot.next = Some((entry.attempt, entry.revoked));
                }
            }
        }
        self.slots.retain(|_, slot| !slot.orphaned || slot.is_busy());
        let revoked: Vec<_> =
            self.slots.iter().filter(|(_, s)| s.revoked || s.orphaned).map(|(t, _)| t.clone()).collect();
        for task in revoked {
            self.revoke(&task, now, out);
        }
    }

    fn revoke(&mut self, task: &TaskId, now: Instant, out: &mut Out) {
        let kill = now + self.params.grace;
        let Some(slot) = self.slots.get_mut(task) else { return };
        match &mut slot.state {
            State::Reading { .. } | State::Verifying { .. } | State::Ready(_) => {
                slot.state = State::Closed { vouch: true };
            }
            State::Running { run, stop, .. } => {
                if stop.is_none() {
                    *stop = Some(Stop { why: Why::Revoked, kill, killed: false });
                    out.push(Action::Signal { run: *run, signal: GroupSignal::Term });
                }
            }
            State::Reporting | State::Closed { .. } | State::Aside => {}
        }
    }

    pub(super) fn read_task(&mut self, task: &TaskId, out: &mut Out) {
        let Some(slot) = self.slots.get(task) else { return };
        let State::Reading { verified } = slot.state else { return };
        let call = Call::Get { path: self.params.layout.task(task), watch: false };
        let purpose = Purpose::ReadTask { task: task.clone(), attempt: slot.attempt, verified };
        self.calls.issue(out, call, purpose);
        let dir = task.dir();
        if !is_shared(dir) && !self.jobs.contains_key(dir) {
            self.jobs.insert(dir.to_string(), None);
            let call = Call::Get { path: self.params.layout.job(dir), watch: false };
            self.calls.issue(out, call, Purpose::ReadJob(dir.to_string()));
        }
    }

    /// A new session is up: what was being read when the last one ended is read again.
    pub(super) fn restart_reads(&mut self, out: &mut Out) {
        let open = |(task, slot): (&TaskId, &mut Slot)| {
            let reads = matches!(slot.state, State::Reading { .. } | State::Verifying { .. });
            if reads {
                slot.state = State::Reading { verified: false };
            }
            (reads || slot.is_open()).then(|| task.clone())
        };
        let open: Vec<_> = self.slots.iter_mut().filter_map(open).collect();
        for task in open {
            if let Some(slot) = self.slots.get_mut(&task) {
                slot.state = State::Reading { verified: false };
            }
            self.read_task(&task, out);
        }
    }

    /// Takes in a task that was read, or that is not there.
    pub(super) fn on_task(&mut self, id: &TaskId, read: Option<(&[u8], &Stat)>, now: Instant, out: &mut Out) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        let State::Reading { verified } = slot.state else { return };
        if let Some((data, stat)) = read
            && let Ok(task) = Task::decode(data)
            && task.outcome.is_none()
            && task.attempt == slot.attempt
        {
            let work = Work { task, version: stat.version, mzxid: stat.mzxid };
            slot.state = State::Ready(Box::new(work));
        } else if verified {
            // Even the present does not fit: the entry is void.
            slot.state = State::Closed { vouch: false };
        } else {
            slot.state = State::Verifying { ticket: self.lease.fresh(now, out) };
        }
    }

    /// An own write was acknowledged: what did not fit is read again.
    pub(super) fn after_own_write(&mut self, out: &mut Out) {
        let lease = &self.lease;
        let again = |(task, slot): (&TaskId, &mut Slot)| match slot.state {
            State::Verifying { ticket } if lease.has(ticket) => {
                slot.state = State::Reading { verified: true };
                Some(task.clone())
            }
            _ => None,
        };
        let again: Vec<_> = self.slots.iter_mut().filter_map(again).collect();
        for task in again {
            self.read_task(&task, out);
        }
    }

    /// Starts what may be started.
    pub(super) fn start_ready(&mut self, now: Instant, out: &mut Out) {
        if self.mode != Mode::Working
            || self.dying.is_some()
            || !self.registrar.is_standing()
            || !self.lease.holds(now)
        {
            return;
        }
        let mut free =
            (self.params.slots as usize).saturating_sub(self.slots.values().filter(|s| s.is_busy()).count());
        for (id, slot) in &mut self.slots {
            if free == 0 {
                return;
            }
            let State::Ready(_) = &slot.state else { continue };
            let none = Options::default();
            let job = if is_shared(id.dir()) {
                Some(&none)
            } else {
                self.jobs.get(id.dir()).and_then(Option::as_ref)
            };
            let Some(job) = job else { continue };
            let State::Ready(work) = std::mem::replace(&mut slot.state, State::Closed { vouch: false })
            else {
                continue;
            };
            let options = work.task.options.or(job);
            let spec = RunSpec {
                argv: match work.task.payload() {
                    Payload::Shell(line) => vec!["/bin/sh".into(), "-c".into(), line],
                    Payload::Program(argv) => argv,
                    Payload::Chunk { commands, .. } => {
                        vec!["/bin/sh".into(), "-c".into(), commands.join("\n")]
                    }
                },
                env: environment(id, &work, &options, &self.params.id),
                request: None,
                output: RunOutput::Capture { limit: self.params.output_limit },
            };
            let timeout = options.timeout_ms.map(Duration::from_millis);
            let run = out.run(spec);
            slot.state = State::Running { run, work, timeout, deadline: None, stop: None };
            self.runs.insert(run, id.clone());
            free -= 1;
        }
    }

    /// The program runs: its time begins, however long it took to get there.
    pub(super) fn on_started(&mut self, run: RunId, now: Instant) {
        let slot = self.runs.get(&run).and_then(|task| self.slots.get_mut(task));
        if let Some(State::Running { timeout: Some(timeout), deadline, .. }) =
            slot.map(|slot| &mut slot.state)
        {
            *deadline = Some(now + *timeout);
        }
    }

    /// Stops what ran past its timeout, and kills what was stopped and did not end.
    pub(super) fn stop_late(&mut self, now: Instant, out: &mut Out) {
        for slot in self.slots.values_mut() {
            let State::Running { run, deadline, stop, .. } = &mut slot.state else { continue };
            match stop {
                None if deadline.is_some_and(|at| at <= now) => {
                    *stop = Some(Stop { why: Why::Timeout, kill: now + self.params.grace, killed: false });
                    out.push(Action::Signal { run: *run, signal: GroupSignal::Term });
                }
                Some(stop) if stop.kill <= now && !stop.killed => {
                    stop.killed = true;
                    out.push(Action::Signal { run: *run, signal: GroupSignal::Kill });
                }
                None | Some(_) => {}
            }
        }
    }

    /// Stops what still runs at the end of a drain's grace.
    pub(super) fn stop_running(&mut self, term: Instant, kill: Instant, now: Instant, out: &mut Out) {
        for slot in self.slots.values_mut() {
            let State::Running { run, stop, .. } = &mut slot.state else { continue };
            if let Some(stop) = stop {
                stop.kill = stop.kill.min(kill);
            } else if term <= now {
                *stop = Some(Stop { why: Why::Drain, kill, killed: false });
                out.push(Action::Signal { run: *run, signal: GroupSignal::Term });
            }
        }
        self.stop_late(now, out);
    }

    /// Kills everything at once: the incarnation is dead.
    pub(super) fn kill_all(&mut self, out: &mut Out) {
        for slot in self.slots.values_mut() {
            slot.orphaned = true;
            if let State::Running { run, stop, .. } = &mut slot.state {
                *stop = Some(Stop { why: Why::Dead, kill: Instant::default(), killed: true });
                out.push(Action::Signal { run: *run, signal: GroupSignal::Kill });
            }
        }
        self.slots.retain(|_, slot| slot.is_busy());
    }

    /// The next time at which a run wants something done to it.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let next = |slot: &Slot| match &slot.state {
            State::Running { stop: Some(stop), .. } => Some(stop.kill).filter(|_| !stop.killed),
            State::Running { deadline, .. } => *deadline,
            _ => None,
        };
        self.slots.values().filter_map(next).min()
    }

    /// The next step of a drain.
    pub(super) fn next_stop(&self, term: Instant, kill: Instant) -> Option<Instant> {
        let unstopped = |slot: &Slot| matches!(slot.state, State::Running { stop: None, .. });
        let term = self.slots.values().any(unstopped).then_some(term);
        let pending =
            |slot: &Slot| matches!(&slot.state, State::Running { stop: Some(stop), .. } if !stop.killed);
        earlier(term, self.slots.values().any(pending).then_some(kill))
    }

    /// A run could not even be started.
    pub(super) fn on_not_started(&mut self, run: RunId, transient: bool, why: &str, out: &mut Out) {
        let Some(id) = self.runs.remove(&run) else { return };
        let Some(work) = self.take_work(&id) else { return };
        if transient {
            let want = Want::Release { why: why.to_string(), delay_ms: Some(TRANSIENT_DELAY_MS) };
            return self.owe(&id, &work, want, out);
        }
        let mut outcome =
            Outcome::unrun(OutcomeState::Failed, Some(Reason::NotStarted), why, work.task.attempt);
        outcome.worker = Some(self.registrar.incarnation().clone());
        self.owe(&id, &work, Want::Outcome(Box::new(outcome)), out);
    }

    /// A run is over, and its group dead.
    pub(super) fn on_ended(&mut self, run: RunId, report: RunReport, out: &mut Out) {
        let Some(id) = self.runs.remove(&run) else { return };
        let stop = match self.slots.get(&id).map(|slot| &slot.state) {
            Some(State::Running { stop, .. }) => *stop,
            _ => None,
        };
        let Some(work) = self.take_work(&id) else { return };
        // If we stood still it may have ended in time, and we looked at the clock before we heard of that.
        let why = stop.map(|stop| stop.why).filter(|why| *why != Why::Timeout || report.signalled);
        let want = self.want(&id, &work, why, &report);
        self.owe(&id, &work, want, out);
    }

    /// Takes the work out of a running slot, which is reporting from now on.
    fn take_work(&mut self, id: &TaskId) -> Option<Box<Work>> {
        let slot = self.slots.get_mut(id)?;
        match std::mem::replace(&mut slot.state, State::Reporting) {
            State::Running { work, .. } => Some(work),
            other => {
                slot.state = other;
                None
            }
        }
    }

    fn owe(&mut self, id: &TaskId, work: &Work, want: Want, out: &mut Out) {
        let by = self.registrar.incarnation().clone();
        self.reports.add(id, &by, &work.task, work.version, want, out);
    }

    /// What is to be written of a run that ended so.
    fn want(&self, id: &TaskId, work: &Work, why: Option<Why>, report: &RunReport) -> Want {
        let outcome = |state, reason| {
            let (exit_code, signal) = match report.ended {
                Ended::Exit(code) => (Some(code), None),
                Ended::Signal(signal) => (None, Some(signal)),
                Ended::Broken => (None, None),
            };
            Box::new(Outcome {
                state,
                reason,
                exit_code,
                signal,
                detail: None,
                attempt: work.task.attempt,
                worker: Some(self.registrar.incarnation().clone()),
                started_ms: Some(report.started_ms),
                ended_ms: Some(report.ended_ms),
                stdout: Output::new(&report.stdout),
                stderr: Output::new(&report.stderr),
                results: Vec::new(),
            })
        };
        let (reason, text) = match (why, report.ended) {
            (Some(Why::Revoked), _) => return Want::Cancelled(outcome(OutcomeState::Cancelled, None)),
            (_, Ended::Exit(0)) if why != Some(Why::Timeout) => {
                return Want::Outcome(outcome(OutcomeState::Done, None));
            }
            (Some(Why::Drain), _) => {
                return Want::Release { why: "its worker was stopped".into(), delay_ms: None };
            }
            (Some(Why::Dead), _) => {
                return Want::Release { why: "its worker lost its session".into(), delay_ms: None };
            }
            (Some(Why::Timeout), _) => (Reason::Timeout, "it ran past its timeout".to_string()),
            (None, Ended::Exit(code)) => (Reason::Exit, format!("it exited with {code}")),
            (None, Ended::Broken) => (Reason::Handler, "its handler broke".to_string()),
            (None, Ended::Signal(signal)) => (Reason::Signal, format!("signal {signal} killed it")),
        };
        let none = Options::default();
        let job = self.jobs.get(id.dir()).and_then(Option::as_ref).unwrap_or(&none);
        let options = work.task.options.or(job);
        let charged = work.task.charged.saturating_add(1);
        if options.max_attempts.is_some_and(|max| charged < max) {
            return Want::Retry { why: text, delay_ms: options.backoff_ms(charged) };
        }
        Want::Outcome(outcome(OutcomeState::Failed, Some(reason)))
    }

    /// A report is settled, or there was nothing to do.
    pub(super) fn close(&mut self, task: &TaskId, vouch: bool, out: &mut Out) {
        let Some(slot) = self.slots.get_mut(task) else { return };
        slot.state = State::Closed { vouch };
        if slot.orphaned || self.dying.is_some() {
            self.slots.remove(task);
        } else if let Some((attempt, revoked)) = slot.next.take() {
            *slot = Slot::new(attempt, revoked);
            if revoked {
                slot.state = State::Closed { vouch: true };
            } else {
                self.read_task(task, out);
            }
        }
    }

    /// Tells the leader that what it revoked is dead. Where an outcome of ours says so too, the leader mostly has
    /// seen it and strikes the entry off, so that this can wait.
    pub(super) fn vouch(&mut self, now: Instant, out: &mut Out) {
        self.vouch_at = None;
        let Some(version) = self.version.filter(|_| self.registrar.is_standing()) else { return };
        let mut revoked = self.slots.values().filter(|slot| slot.revoked).peekable();
        let vouched = self.registrar.body().revoked_through.is_some_and(|through| through >= version);
        if vouched || revoked.peek().is_none() || !revoked.clone().all(Slot::is_dead) {
            return;
        }
        let at_once = revoked.any(|slot| matches!(slot.state, State::Closed { vouch: true }));
        let at = self.vouched.map_or(now, |last| last + VOUCH_PACE);
        if at_once || at <= now {
            self.vouched = Some(now);
            self.registrar.publish(|body| body.revoked_through = Some(version), out);
        } else {
            self.vouch_at = Some(at);
        }
    }
}

/// What the task finds in its environment.
fn environment(id: &TaskId, work: &Work, options: &Options, worker: &str) -> Vec<(String, String)> {
    let mut env: Vec<_> = options.env.clone().unwrap_or_default().into_iter().collect();
    for (key, value) in [
        // The worker's own name and credentials are not for the task; what is empty counts as not set.
        ("ZKMW_ID", String::new()),
        ("ZKMW_AUTH", String::new()),
        ("ZKMW_TASK", id.to_string()),
        ("ZKMW_ATTEMPT", work.task.attempt.to_string()),
        ("ZKMW_EPOCH", work.mzxid.to_string()),
        ("ZKMW_WORKER", worker.to_string()),
    ] {
        env.push((key.to_string(), value));
    }
    env
}
