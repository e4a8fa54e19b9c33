//! The worker: keeps its name, runs what its assignment says, and writes down how it ended.
//!
//! The life of an entry of the assignment:
//!
//! ```text
//! reading ──pending at this attempt──> ready ──free slot, lease, job defaults──> running ──all dead──> reporting
//!  │  ^                                                                                                 │
//!  │  └── verifying: an own write, then read again                                      outcome written │
//!  └── stale: it is another attempt, or gone ──────────────────────────────────────────> closed <───────┘
//! ```
//!
//! A run is killed for its timeout, for a revoked entry, at the end of a drain, and when the lease lapses.
//!
//! Nothing starts, and nothing goes on, without the lease. When the incarnation is dead (its lease lapsed, or a
//! registration was missing for an instant) everything is killed and handed back without a charge, and only then
//! does the next incarnation begin. A drain is the same for what outlasts its grace, and ends the process.

mod assigned_task;
mod chunk_writes;
mod drain;
mod entries;
mod execution;
mod portion;
mod reports;
mod runs;
mod starts;
mod stop_reason;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::contract::task::Options;
use crate::contract::worker::{Assignment, EntryId, ProcessIdentity, Registration};
use crate::contract::{Labels, Layout};
use crate::exit;
use crate::machine::{
    Action, Actions, Call, CallId, CallResult, Calls, ChangeKind, Event, Instant, Level, Refusal, Reply,
    Role, Routed, RunId, Stat, WatchMode, earlier,
};
use crate::recipes::lease::Lease;
use crate::recipes::past::Past;
use crate::recipes::registration::{Registrar, Step};
use crate::recipes::retry::{Condition, Retry};
use assigned_task::AssignedTask;
use reports::Reports;
use starts::Starts;
use stop_reason::Stop;

/// What a worker is started with.
#[derive(Clone, Debug)]
pub struct Params {
    /// The paths of all znodes.
    pub layout: Layout,
    /// Its id.
    pub id: String,
    /// Its process.
    pub process: ProcessIdentity,
    /// The process of an earlier worker of this id, proven to be gone with all that it ran.
    pub predecessor: Option<ProcessIdentity>,
    /// Tasks at once.
    pub slots: u32,
    /// What it says of itself.
    pub labels: Labels,
    /// How long a stopped task has before it is killed.
    pub grace: Duration,
    /// How long the end may wait for an ensemble that does not answer.
    pub close_timeout: Duration,
    /// Bytes kept of each output stream.
    pub output_limit: usize,
    /// The shell command line of the handlers that do the work, if not every task is a process of its own.
    pub handler: Option<String>,
    /// Chance, for the incarnations' names.
    pub seed: u64,
}

/// A worker reports nothing to standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {}

type Out = Actions<Report>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Working,
    /// No new task is started. Those that run go on until `term`, get SIGTERM then, and SIGKILL at `kill`.
    Draining {
        term: Instant,
        kill: Instant,
    },
    /// Everything is dead and written down; the assignment is being deleted.
    Leaving {
        until: Instant,
    },
}

/// The end of an incarnation, which is that of a drained worker: what it ran is dead and handed back, then its
/// assignment is deleted. An absent assignment means that nothing else had started, so nobody is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dying {
    /// What it ran is being killed and handed back.
    Settling,
    /// Its assignment is being deleted.
    Unassigning,
    /// Nothing is left of it but a registration.
    Over,
}

#[derive(Debug)]
enum Purpose {
    WatchAssignment,
    ReadAssignment,
    /// For an entry; `verified` if an own write was made before.
    ReadTask {
        id: EntryId,
        verified: bool,
    },
    ReadJob(String),
    /// What is known of a share is being written.
    Save(EntryId),
    /// Somebody changed a chunk of which something runs; `verified` if an own write was made before.
    Reread {
        id: EntryId,
        verified: bool,
    },
    DeleteAssignment,
}

/// One run.
#[derive(Debug)]
struct Run {
    id: EntryId,
    /// Which of the task's commands.
    command: usize,
    timeout: Option<Duration>,
    /// When it is to be stopped, or killed.
    timer: Option<Instant>,
    stop: Option<Stop>,
    /// Its program runs.
    begun: bool,
}

/// What is known of the own assignment.
#[derive(Debug, Default)]
struct AssignmentView {
    /// The newest version that was read on this connection.
    version: Option<i32>,
    /// The version that was read last, on whatever connection, and the transaction that wrote it.
    newest: Option<(i32, i64)>,
    /// A read of a changed version is under way, so there may soon be something to start.
    expected: bool,
}

/// The tasks that the assignment names, and what is needed to start them.
#[derive(Debug, Default)]
struct Assigned {
    tasks: BTreeMap<EntryId, AssignedTask>,
    /// Those of which something is to be started, in this order; some may be gone already.
    start_order: BTreeMap<u64, EntryId>,
    last_order: u64,
    /// How many were started and have not ended.
    started: usize,
    /// Defaults of the jobs of all entries; `None` while they are being read.
    jobs: BTreeMap<String, Option<Options>>,
}

/// What runs, and how many more runs may be started.
#[derive(Debug)]
struct Running {
    runs: BTreeMap<RunId, Run>,
    timers: BTreeSet<(Instant, RunId)>,
    starts: Starts,
}

/// When results of chunks are to be written, and how long writes and runs take.
#[derive(Debug, Default)]
struct Saves {
    due: BTreeSet<(Instant, EntryId)>,
    /// How long such a write takes, on average.
    write_time: Duration,
    /// How long a command runs, on average.
    run_time: Option<Duration>,
}

/// When the worker confirms that revoked entries are dead.
#[derive(Debug, Default)]
struct Confirmation {
    /// When it was confirmed last.
    last: Option<Instant>,
    /// When that is due again.
    at: Option<Instant>,
    /// Something happened that may make it due.
    due: bool,
}

/// What the ensemble refuses to this worker or has forgotten, and what its log and `STATUS=` say of that.
#[derive(Debug, Default)]
struct Health {
    /// The own assignment may not be read or deleted.
    retry: Retry,
    past: Past,
    condition: Condition,
}

/// The role.
#[derive(Debug)]
pub struct Worker {
    params: Params,
    connected: bool,
    registrar: Registrar,
    lease: Lease,
    mode: Mode,
    /// How far the end of a dead incarnation is.
    dying: Option<Dying>,
    view: AssignmentView,
    assigned: Assigned,
    running: Running,
    saves: Saves,
    reports: Reports,
    confirmation: Confirmation,
    calls: Calls<Purpose>,
    health: Health,
}

impl Worker {
    /// A worker that has not connected yet.
    pub fn new(params: Params) -> Worker {
        let body = Registration::new(&params.process, params.slots, params.labels.clone(), 0);
        let predecessor = params.predecessor.clone();
        let registrar = Registrar::new(&params.layout, &params.id, body, predecessor, params.seed);
        Worker {
            connected: false,
            lease: Lease::new(&params.layout, registrar.incarnation().as_str()),
            registrar,
            mode: Mode::Working,
            dying: None,
            view: AssignmentView::default(),
            assigned: Assigned::default(),
            running: Running {
                runs: BTreeMap::new(),
                timers: BTreeSet::new(),
                starts: Starts::new(params.slots, params.seed),
            },
            saves: Saves::default(),
            reports: Reports::new(&params.layout),
            confirmation: Confirmation::default(),
            calls: Calls::default(),
            health: Health::default(),
            params,
        }
    }

    fn assignment(&self) -> String {
        self.params.layout.assignment(self.registrar.incarnation())
    }

    fn on_lost(&mut self, out: &mut Out) {
        self.connected = false;
        self.calls.clear();
        self.view.version = None;
        self.health.retry.on_lost();
        self.registrar.on_lost();
        self.lease.on_lost();
        self.reports.on_lost();
        self.assigned.jobs.retain(|_, options| options.is_some());
        self.view.expected = false;
        self.doubt_all(out);
        if self.dying == Some(Dying::Unassigning) {
            self.dying = Some(Dying::Settling);
        }
    }

    /// The answers to what was being written of shares are not awaited any more, so nobody knows what became of that.
    fn doubt_all(&mut self, out: &mut Out) {
        for id in self.ids_of(|assigned| assigned.execution().is_some()) {
            if let Some(portion) = self.portion_mut(&id) {
                portion.doubt();
                portion.verifying = None;
            }
            self.finish_if_over(&id, out);
        }
    }

    /// Whether something is to be written down yet of what has ended.
    fn is_owing(&self) -> bool {
        !self.reports.is_empty() || self.assigned.started > 0
    }

    fn on_registrar(&mut self, step: Step, out: &mut Out) {
        let went_back = self.registrar.made_by().is_some_and(|own| self.health.past.went_back(own, out));
        if went_back && step == Step::Registered {
            return self.die("its incarnation is of the time before", out);
        }
        match step {
            Step::Pending => {}
            Step::Registered => {
                self.lease.rename_if_new(self.registrar.incarnation().as_str());
                self.lease.on_session(self.registrar.session_timeout());
                self.watch_assignment(out);
                self.restart_reads(out);
                self.reread_doubted(out);
                self.confirmation.due = true;
            }
            Step::Dead(why) => self.die(&why, out),
            Step::Taken { host, pid } => {
                let id = &self.params.id;
                let hint = "stop that one, or give this one another --id";
                out.fail(
                    exit::TRY_AGAIN,
                    format!("a worker {id} lives already: {host}, process {pid}; {hint}"),
                );
            }
        }
    }

    fn watch_assignment(&mut self, out: &mut Out) {
        let call = Call::Watch { path: self.assignment(), mode: WatchMode::Node };
        self.calls.issue(out, call, Purpose::WatchAssignment);
    }

    /// Nothing may go on that the lease does not cover.
    fn check_lease(&mut self, now: Instant, out: &mut Out) {
        if !self.running.runs.is_empty() && !self.lease.holds(now) {
            self.die("its session is not proven to live any more", out);
        }
    }

    /// What runs is being killed, and nobody could say how it would have ended. If nothing runs, nothing is lost.
    fn on_slots_lost(&mut self, why: &str, out: &mut Out) {
        out.log(Level::Warn, format!("what ran was killed: {why}"));
        if !self.running.runs.is_empty() {
            self.die("what it ran was killed", out);
        }
    }

    /// The incarnation is dead: kills what it runs. The next one begins when that is done.
    fn die(&mut self, why: &str, out: &mut Out) {
        if self.dying.is_some() {
            return;
        }
        out.log(Level::Warn, format!("worker {}: {why}; killing its tasks", self.registrar.incarnation()));
        self.dying = Some(Dying::Settling);
        self.registrar.abandon();
        self.calls.clear();
        // What was refused is not read again before all that it ran is dead, for what is read then is deleted.
        self.health.retry.on_lost();
        self.assigned.jobs.retain(|_, options| options.is_some());
        self.view.version = None;
        self.view.newest = None;
        self.doubt_all(out);
        self.kill_all(out);
    }

    /// Goes on with the end of a dead incarnation, and begins the next one when nothing of it is left. Only then,
    /// for the next one deletes its registration, upon which the leader charges what it still finds.
    fn finish_dying(&mut self, out: &mut Out) {
        match self.dying {
            Some(Dying::Settling) if self.running.runs.is_empty() && !self.is_owing() && self.connected => {
                self.dying = Some(Dying::Unassigning);
                self.read_assignment(out);
            }
            Some(Dying::Over) => {
                self.dying = None;
                self.view.version = None;
                self.view.newest = None;
                self.assigned.tasks.clear();
                self.assigned.start_order.clear();
                match self.mode {
                    Mode::Working => self.registrar.begin(self.connected, out),
                    Mode::Draining { .. } => {}
                    Mode::Leaving { .. } => out.push(Action::Exit(exit::OK)),
                }
            }
            None | Some(Dying::Settling | Dying::Unassigning) => {}
        }
    }

    /// The assignment is gone.
    fn on_unassigned(&mut self, out: &mut Out) {
        match self.dying {
            Some(_) => self.dying = Some(Dying::Over),
            None => out.push(Action::Exit(exit::OK)),
        }
    }

    fn on_reply(&mut self, id: CallId, result: &CallResult, now: Instant, out: &mut Out) {
        if let Routed::Mine(step) = self.registrar.on_reply(id, result, now, out) {
            self.on_registrar(step, out);
        } else if let Routed::Mine(()) = self.lease.on_reply(id, result, now, out) {
            self.after_own_write(out);
        } else if let Routed::Mine(step) = self.reports.on_reply(id, result, now, out) {
            self.on_report(step, out);
        } else if let Routed::Mine((purpose, Some(answer))) = self.calls.route(id, result) {
            self.on_answer(purpose, answer, now, out);
        }
    }

    fn on_answer(&mut self, purpose: Purpose, answer: Result<&Reply, Refusal>, now: Instant, out: &mut Out) {
        match (purpose, answer) {
            (Purpose::WatchAssignment, Ok(_)) => self.read_assignment(out),
            (Purpose::ReadAssignment, Ok(Reply::Data { data, stat })) => {
                self.view.expected = false;
                self.health.retry.done(out);
                self.on_assignment(data, stat, now, out);
            }
            (Purpose::ReadAssignment, Err(Refusal::NoNode)) if self.dying.is_some() => {
                self.on_unassigned(out)
            }
            (Purpose::ReadAssignment, Err(Refusal::NoNode)) => self.die("its assignment was deleted", out),
            // The entry is another by now, or another answer is awaited: this one may be older.
            (Purpose::ReadTask { id, verified }, _)
                if !self.assigned.tasks.get(&id).is_some_and(|assigned| assigned.awaits(verified)) => {}
            (Purpose::ReadTask { id, .. }, Ok(Reply::Data { data, stat })) => {
                self.on_task(&id, Some((data, stat)), now, out);
            }
            (Purpose::ReadTask { id, .. }, Err(Refusal::NoNode)) => self.on_task(&id, None, now, out),
            (Purpose::ReadTask { id, .. }, Err(refusal)) => {
                self.quarantine(&id, &refusal.to_string(), out);
            }
            (Purpose::ReadJob(dir), answer) => self.on_job(dir, answer, out),
            (Purpose::Save(id), answer) => self.on_saved(&id, answer, now, out),
            (Purpose::Reread { id, verified }, answer) => self.on_reread(&id, verified, answer, now, out),
            (Purpose::DeleteAssignment, Ok(_) | Err(Refusal::NoNode)) => self.on_unassigned(out),
            // The leader was faster with one more write: what it added was not started.
            (Purpose::DeleteAssignment, Err(Refusal::BadVersion)) => self.read_assignment(out),
            // Were it given up as it is, what is on it and did not start would be charged.
            (Purpose::DeleteAssignment, Err(refusal @ Refusal::Other(_))) => {
                let what = format!("cannot delete {}", self.assignment());
                self.health.retry.refused(&what, refusal, now, out);
            }
            (Purpose::DeleteAssignment, Err(refusal)) => {
                out.log(Level::Error, format!("{}: {refusal}", self.assignment()));
                self.on_unassigned(out);
            }
            (Purpose::WatchAssignment | Purpose::ReadAssignment, Err(refusal)) => {
                self.health.retry.refused(&self.assignment(), refusal, now, out);
            }
            (purpose, Ok(reply)) => out.fail(exit::BUG, format!("worker: {reply:?} answers {purpose:?}")),
        }
    }

    fn on_changed(&mut self, path: &str, kind: ChangeKind, out: &mut Out) {
        if path == self.assignment() && self.registrar.is_registered() {
            match (kind, self.mode) {
                (ChangeKind::Deleted, Mode::Leaving { .. }) => out.push(Action::Exit(exit::OK)),
                (ChangeKind::Deleted, _) => self.die("its assignment was deleted", out),
                (ChangeKind::Data, _) => {
                    // The lease is made sure of while the entries are being read.
                    self.view.expected = true;
                    self.read_assignment(out);
                }
                (ChangeKind::Created | ChangeKind::Children, _) => {}
            }
            return;
        }
        if let Routed::Mine(step) = self.registrar.on_changed(path, kind, out) {
            self.on_registrar(step, out);
        }
    }

    /// At most one read is waiting behind the one under way, whatever the number of changes.
    fn read_assignment(&mut self, out: &mut Out) {
        let call = Call::Get { path: self.assignment(), watch: false };
        self.calls.issue(out, call, Purpose::ReadAssignment);
    }

    fn on_assignment(&mut self, data: &[u8], stat: &Stat, now: Instant, out: &mut Out) {
        let version = stat.version;
        if self.view.version.is_some_and(|seen| seen > version) {
            return;
        }
        let is_first = self.view.version.replace(version).is_none();
        let newest = (version, stat.mzxid);
        let last = self.view.newest.replace(newest).unwrap_or(newest);
        // The first is read after a write of our own: it is the present.
        if is_first && self.dying.is_none() && (version < last.0 || stat.mzxid < last.1) {
            return self.die("an older copy of its assignment was restored", out);
        }
        if self.dying.is_some() || matches!(self.mode, Mode::Leaving { .. }) {
            // An absent assignment says that nothing is owed; when the last report is settled it is read again.
            if !self.is_owing() {
                let call = Call::Delete { path: self.assignment(), version: Some(version) };
                self.calls.issue(out, call, Purpose::DeleteAssignment);
            }
            return;
        }
        match Assignment::decode(data) {
            Ok(assignment) => self.merge(assignment.entries, is_first, now, out),
            // A foreign write: nothing says any more what this incarnation has to do.
            Err(malformed) => self.die(&format!("its assignment cannot be read ({malformed})"), out),
        }
    }

    fn report_condition(&mut self, out: &mut Out) {
        let incarnation = self.registrar.incarnation();
        let text = match self.mode {
            Mode::Working if !self.connected => "no connection to the ensemble".to_string(),
            Mode::Working if self.registrar.is_registered() => format!("registered as {incarnation}"),
            Mode::Working => "registering".to_string(),
            Mode::Draining { .. } | Mode::Leaving { .. } => "draining".to_string(),
        };
        let troubles = [self.registrar.trouble(), self.lease.trouble(), self.health.retry.trouble()];
        self.health.condition.report(text, troubles, out);
    }
}

impl Role for Worker {
    type Report = Report;

    fn step(&mut self, now: Instant, event: Event, out: &mut Out) {
        self.health.past.observe(&event);
        // First of all: what ended after the lease may have been killed for that, even by others, since this
        // process, or its machine, may have been suspended. That is not the task's failure.
        self.check_lease(now, out);
        match event {
            Event::Connected { timeout } => {
                self.connected = true;
                self.reports.on_connected(out);
                self.registrar.on_connected(timeout, out);
                if let Mode::Leaving { .. } = self.mode {
                    self.leave(out);
                }
            }
            Event::Lost { why } => {
                out.log(Level::Warn, format!("connection lost: {why}"));
                self.on_lost(out);
            }
            Event::Changed { path, kind } => self.on_changed(&path, kind, out),
            Event::Reply { id, result } => self.on_reply(id, &result, now, out),
            Event::Wake => self.registrar.on_wake(now, out),
            Event::Stop { again } => self.on_stop(again, now, out),
            Event::Started { run, .. } => self.on_started(run, now, out),
            Event::NotStarted { run, kind, why } => self.on_not_started(run, kind, &why, now, out),
            Event::Ended { run, report } => self.on_ended(run, &report, now, out),
            Event::SlotsLost { why } => self.on_slots_lost(&why, out),
            Event::Lines(_) => {}
        }
        self.finish_dying(out);
        if self.health.retry.is_due(now) {
            self.watch_assignment(out);
        }
        let needed =
            !self.running.runs.is_empty() || self.view.expected || !self.assigned.start_order.is_empty();
        self.lease.need(needed && self.registrar.is_registered(), now, out);
        self.stop_late(now, out);
        self.reports.wake(now, out);
        self.running.starts.wake(now);
        self.show_starts(out);
        self.start_ready(now, out);
        self.save(now, out);
        self.drain(now, out);
        self.confirm_revoked(now, out);
        self.report_condition(out);
    }

    fn next_wake(&self) -> Option<Instant> {
        let mode = match self.mode {
            Mode::Working => None,
            Mode::Draining { kill, .. } if self.running.runs.is_empty() => Some(kill),
            Mode::Draining { term, kill } => self.next_stop(term, kill),
            Mode::Leaving { until } => Some(until),
        };
        let lapse = self.lease.expires().filter(|_| !self.running.runs.is_empty() && self.dying.is_none());
        let refused = earlier(self.registrar.next_wake(), self.health.retry.next_wake());
        let own = earlier(mode, earlier(refused, self.lease.next_wake()));
        let pause = earlier(self.running.starts.next_wake(), self.reports.next_wake());
        earlier(earlier(own, self.confirmation.at), earlier(pause, earlier(lapse, self.next_deadline())))
    }

    fn assert_invariants(&self) {
        let running = self.running.runs.len();
        assert!(running <= self.params.slots as usize, "{running} of {} slots in use", self.params.slots);
        assert!(self.running.timers.len() <= running, "more timers than runs");
        // Each turn checks one, or a turn would cost more with every slot.
        if let Some((run, Run { id, .. })) = self.running.runs.first_key_value() {
            let execution = self.assigned.tasks.get(id).and_then(AssignedTask::execution);
            let known = execution.is_some_and(|execution| execution.runs.contains(run));
            assert!(known, "run {run:?} of task {id} has no execution");
        }
    }
}

#[cfg(test)]
mod tests;
