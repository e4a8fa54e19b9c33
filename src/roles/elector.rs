//! The elector: a candidate in an election. If it has a command, it runs it only while it leads.
//!
//! It owns one candidate's part in an election, a lease, and at most one run. It must never let a run outlive
//! what protects it:
//!
//! - A run is started only by the leader, with the epoch of its contender as the fencing token, and only when a
//!   lease write that was *sent after* it began to lead was acknowledged. Each run has an epoch of its own: when
//!   it is over, however it ended, its contender is withdrawn or already gone.
//! - While it leads, a run lives under a lease that is renewed. A lease that lapses is SIGKILL at once.
//! - A lost connection ends nothing as long as the lease holds, for our contender exists so long, and nobody else
//!   leads. The next session takes the lead over if it can (see `recipes::election::term`), and renews the lease from
//!   then on. The old contender is deleted only when the lease of the new session ends later than that of the old one.
//! - Without leadership nothing is renewed, so a run that is being stopped is killed at the end of its grace or
//!   of the lease, whichever comes first: before our old session can end and another can lead.
//! - If the lead was not handed over, the old contender is deleted only when the run's whole group is dead: a new
//!   session exists, and thereby deletes what the old one left, not before that.
//! - The process does not end, and its session is not closed, while the run's group lives. An end that a recipe
//!   asks for waits as well.
//!
//! How it ends, as the best supervisors do: a daemon that is asked to stop and does so has succeeded (0). With
//! `once` it represents the command in a script, as `flock` and `consul lock` do, so it ends as the command
//! did, also when it had to stop it; and if it was stopped before the command ran, it ends as a command that
//! SIGTERM killed would have (143), so that no script goes on as if the work had been done.
//!
//! What it can't know: a command that ended by itself in the same moment in which it was asked to stop, because
//! leadership was lost, counts as interrupted and is run again. So `once` means at least once.

mod refused;
mod report;
mod session;
mod state;

use std::time::Duration;

pub use report::Report;
use state::{Kill, Run, Session, State, Then};

use crate::contract::{Layout, is_component};
use crate::exit;
use crate::machine::{
    Action, Actions, Ended, Event, GroupSignal, Instant, Level, NotStartedKind, Role, Routed, RunId,
    RunOutput, RunReport, RunSpec, earlier,
};
use crate::recipes::election::Election;
use crate::recipes::ensure::Ensure;
use crate::recipes::lease::Lease;
use crate::recipes::past::Past;
use crate::recipes::retry::Retry;

/// A run that was shorter than this is followed by a pause without leadership.
const SHORT_RUN: Duration = Duration::from_secs(1);

/// The pause after the first short run; it doubles with each that follows.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);

/// The longest pause.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// A leader that can't get its lease within so many session timeouts makes way for others.
const LEASE_PATIENCE_TIMEOUTS: u32 = 2;

/// The exit code for a command that can't be started, as shells have it.
const NOT_STARTED: i32 = 127;

/// The exit code of what SIGTERM killed.
const TERMINATED: i32 = exit::SIGNAL_BASE + 15;

/// What an elector is given.
#[derive(Clone, Debug)]
pub struct Params {
    /// The directory of the election.
    pub dir: String,
    /// The directory of the leases.
    pub layout: Layout,
    /// Shown to the others; a user id.
    pub id: String,
    /// Fresh for each process.
    pub uuid: String,
    /// Program and arguments; without them the elector only reports its state.
    pub command: Option<Vec<String>>,
    /// Added to the command's environment, besides `ZKMW_EPOCH`.
    pub env: Vec<(String, String)>,
    /// How long a command may take to stop.
    pub grace: Duration,
    /// End when the command ends by itself, with its code.
    pub once: bool,
}

/// The elector role.
#[derive(Debug)]
pub struct Elector {
    params: Params,
    election: Election,
    ensure: Ensure,
    lease: Lease,
    /// It may not be a candidate.
    retry: Retry,
    /// It may not make the directory of leases.
    directory: Retry,
    past: Past,
    session: Session,
    state: State,
    /// Its state, as last reported; `None` before it ever was a candidate.
    reported: Option<Report>,
    /// Pauses of short runs since the last run that was not short.
    short_runs: u32,
}

impl Elector {
    /// An elector that waits for its first connection.
    ///
    /// # Panics
    /// If id and uuid can't be part of a znode's name, or the command has no program: the configuration is
    /// checked before.
    pub fn new(params: Params) -> Elector {
        let holder = format!("{}.{}", params.id, params.uuid);
        assert!(is_component(&holder), "{holder:?} can't be part of a name");
        assert!(params.command.as_ref().is_none_or(|argv| !argv.is_empty()), "a command has a program");
        Elector {
            election: Election::new(&params.dir, &params.uuid, params.id.clone().into_bytes()),
            ensure: Ensure::new([params.layout.leases()]),
            lease: Lease::new(&params.layout, &holder),
            retry: Retry::default(),
            directory: Retry::default(),
            past: Past::default(),
            session: Session::Down,
            state: State::Candidate,
            reported: None,
            short_runs: 0,
            params,
        }
    }

    fn holder(&self) -> String {
        format!("{}.{}", self.params.id, self.params.uuid)
    }

    /// The run whose group may be alive.
    fn run(&self) -> Option<Run> {
        match self.state {
            State::Running(run) | State::Stopping { run, .. } => Some(run),
            State::Candidate | State::Acquiring { .. } | State::BackingOff { .. } | State::Over => None,
        }
    }

    fn on_stop(&mut self, again: bool, now: Instant, out: &mut Actions<Report>) {
        match &mut self.state {
            State::Candidate | State::Acquiring { .. } | State::BackingOff { .. } => {
                self.end(self.code_without_run(), out);
            }
            State::Running(run) => {
                let run = *run;
                out.log(Level::Info, "stopping: the command is asked to end");
                self.stop_run(run, now, Then::Stop, out);
                if again {
                    self.kill(out);
                }
            }
            State::Stopping { then, .. } => {
                if *then == Then::Rejoin {
                    *then = Then::Stop;
                }
                if again {
                    self.kill(out);
                }
            }
            State::Over => {}
        }
    }

    /// The exit code of a stop that no command lived to see.
    fn code_without_run(&self) -> i32 {
        if self.params.once && self.params.command.is_some() { TERMINATED } else { exit::OK }
    }

    /// Asks the command to end, within its grace.
    fn stop_run(&mut self, run: Run, now: Instant, then: Then, out: &mut Actions<Report>) {
        out.push(Action::Signal { run: run.id, signal: GroupSignal::Term });
        out.push(Action::Status("stopping the command".into()));
        self.state = State::Stopping { run, kill: Kill::At(now + self.params.grace), then };
    }

    /// The command is being killed; however it ends, that was not its own doing.
    fn on_slots_lost(&mut self, why: &str, now: Instant, out: &mut Actions<Report>) {
        out.log(Level::Warn, format!("what ran was killed: {why}"));
        self.kill_and_rejoin(now, out);
    }

    /// Kills the command, and becomes a candidate again when it is dead, unless there is another reason for its end.
    fn kill_and_rejoin(&mut self, now: Instant, out: &mut Actions<Report>) {
        if let State::Running(run) = self.state {
            self.state = State::Stopping { run, kill: Kill::At(now), then: Then::Rejoin };
        }
        self.kill(out);
    }

    /// Kills the group of a run that is being stopped.
    fn kill(&mut self, out: &mut Actions<Report>) {
        if let State::Stopping { run, kill, .. } = &mut self.state
            && *kill != Kill::Sent
        {
            out.push(Action::Signal { run: run.id, signal: GroupSignal::Kill });
            *kill = Kill::Sent;
            // It needs no lead any more, and none may be handed over when the lease was over for a moment.
            self.election.abandon(out);
        }
    }

    fn on_ended(&mut self, id: RunId, report: &RunReport, now: Instant, out: &mut Actions<Report>) {
        let Some(run) = self.run().filter(|run| run.id == id) else { return };
        let code = match report.ended {
            Ended::Exit(code) => code,
            Ended::Signal(signal) => exit::SIGNAL_BASE + signal,
            // Only a handler's run can, and this is a program's.
            Ended::Broken => exit::BUG,
        };
        let how = match report.ended {
            Ended::Exit(code) => format!("ended with code {code}"),
            Ended::Signal(signal) => format!("was ended by signal {signal}"),
            Ended::Broken => "ended in nobody knows which way".to_string(),
        };
        out.log(Level::Info, format!("the command {how} (epoch {})", run.epoch));
        match &self.state {
            State::Stopping { then: Then::Rejoin, .. } => self.rejoin(run, Duration::ZERO, now, out),
            State::Stopping { then: Then::Stop, .. } => {
                self.end(if self.params.once { code } else { exit::OK }, out);
            }
            State::Stopping { then: Then::Fail(code), .. } => self.end(*code, out),
            // Not we: the lease had ended, or its slot was lost.
            State::Running(_) if report.signalled => self.rejoin(run, Duration::ZERO, now, out),
            State::Running(_) if self.params.once => self.end(code, out),
            State::Running(_) => {
                let backoff = self.backoff_after(now.since(run.started) < SHORT_RUN);
                self.rejoin(run, backoff, now, out);
            }
            State::Candidate | State::Acquiring { .. } | State::BackingOff { .. } | State::Over => {}
        }
    }

    fn on_not_started(
        &mut self,
        id: RunId,
        kind: NotStartedKind,
        why: &str,
        now: Instant,
        out: &mut Actions<Report>,
    ) {
        let Some(run) = self.run().filter(|run| run.id == id) else { return };
        let program = self.params.command.as_ref().and_then(|argv| argv.first()).map_or("", String::as_str);
        out.log(Level::Error, format!("the command {program:?} could not be started: {why}"));
        match &self.state {
            State::Stopping { then: Then::Fail(code), .. } => self.end(*code, out),
            State::Running(_) | State::Stopping { .. }
                if self.params.once && kind == NotStartedKind::Permanent =>
            {
                self.end(NOT_STARTED, out);
            }
            State::Stopping { then: Then::Stop, .. } => self.end(self.code_without_run(), out),
            State::Running(_) | State::Stopping { then: Then::Rejoin, .. } => {
                let backoff = self.backoff_after(true);
                self.rejoin(run, backoff, now, out);
            }
            State::Candidate | State::Acquiring { .. } | State::BackingOff { .. } | State::Over => {}
        }
    }

    /// How long to stay away after a run.
    fn backoff_after(&mut self, short: bool) -> Duration {
        if !short {
            self.short_runs = 0;
            return Duration::ZERO;
        }
        let doublings = self.short_runs.min(16);
        self.short_runs += 1;
        (FIRST_BACKOFF * 2_u32.pow(doublings)).min(MAX_BACKOFF)
    }

    /// The run is dead: makes way for others, then goes to the end of the line.
    fn rejoin(&mut self, run: Run, backoff: Duration, now: Instant, out: &mut Actions<Report>) {
        if backoff > Duration::ZERO || self.election.term() == Some(run.epoch) {
            self.election.withdraw(out);
            self.state = State::BackingOff { until: now + backoff };
        } else {
            // Its contender was deleted, and the election creates another by itself; or there is no session.
            self.state = State::Candidate;
            // Or it was refused something, and could not be a candidate again while the command lived.
            if self.election.is_out() && matches!(self.session, Session::Entered { .. }) {
                self.election.contend(out);
            }
        }
        if let Session::Waiting { timeout } | Session::Inheriting { timeout } = self.session {
            self.enter(timeout, out);
        }
    }

    /// Asks for the end of the process. The contender goes first, so that a standby need not wait for the close.
    fn end(&mut self, code: i32, out: &mut Actions<Report>) {
        self.election.withdraw(out);
        out.push(Action::Status("ending".into()));
        out.push(Action::Exit(code));
        self.state = State::Over;
    }

    /// Nothing may go on that the lease does not cover.
    fn check_lease(&mut self, now: Instant, out: &mut Actions<Report>) {
        if matches!(self.state, State::Running(_)) && !self.lease.holds(now) {
            out.log(Level::Error, "the lease ended: the command is killed at once");
            self.kill_and_rejoin(now, out);
        }
    }

    /// Does what follows from its state now. `why` says what would have ended its lead.
    fn advance(&mut self, why: &str, now: Instant, out: &mut Actions<Report>) {
        if let State::BackingOff { until } = self.state
            && until <= now
            && self.election.is_out()
        {
            self.state = State::Candidate;
            if let Session::Entered { .. } = self.session {
                self.election.contend(out);
            }
        }
        if let State::Acquiring { epoch, .. } = self.state
            && self.election.leading() != Some(epoch)
        {
            self.ensure.reset();
            self.state = State::Candidate;
        }
        if let (State::Candidate, Some(epoch), Session::Entered { timeout, .. }, true) =
            (&self.state, self.election.leading(), self.session, self.params.command.is_some())
        {
            let patience_ends = now + timeout * LEASE_PATIENCE_TIMEOUTS;
            self.state = State::Acquiring { epoch, ticket: None, patience_ends };
            self.ensure.start(out);
        }
        match self.state {
            State::Acquiring { epoch, ticket, patience_ends } => {
                if ticket.is_some_and(|ticket| self.lease.has(ticket)) && self.lease.holds(now) {
                    self.start(epoch, now, out);
                } else if patience_ends <= now {
                    out.log(Level::Warn, "leading, but no lease could be had: making way for others");
                    self.ensure.reset();
                    self.election.withdraw(out);
                    let backoff = self.backoff_after(true);
                    self.state = State::BackingOff { until: now + backoff };
                }
            }
            State::Running(run) if self.election.term() != Some(run.epoch) => {
                out.log(Level::Warn, format!("no longer leading ({why}): the command is asked to end"));
                self.stop_run(run, now, Then::Rejoin, out);
            }
            State::Running(_)
            | State::Candidate
            | State::Stopping { .. }
            | State::BackingOff { .. }
            | State::Over => {}
        }
        if let State::Stopping { kill: Kill::At(at), .. } = self.state
            && (at <= now || !self.lease.holds(now))
        {
            out.log(Level::Warn, "the command is killed");
            self.kill(out);
        }
        self.hand_over(out);
    }

    fn start(&mut self, epoch: i64, now: Instant, out: &mut Actions<Report>) {
        assert!(self.lease.holds(now), "never started without a lease");
        assert_eq!(self.election.leading(), Some(epoch), "never started without leading");
        let Some(argv) = self.params.command.clone() else { return };
        let mut env = self.params.env.clone();
        env.push(("ZKMW_EPOCH".into(), epoch.to_string()));
        out.log(Level::Info, format!("starting the command (epoch {epoch})"));
        let id = out.run(RunSpec { argv, env, request: None, output: RunOutput::Inherit });
        self.state = State::Running(Run { id, epoch, started: now });
    }

    /// Whether something depends on the lease, and leadership does still protect it.
    fn needs_lease(&self) -> bool {
        let leads = |epoch| self.election.leading() == Some(epoch);
        match self.state {
            State::Acquiring { epoch, ticket: Some(_), .. } => leads(epoch),
            State::Running(run) | State::Stopping { run, kill: Kill::At(_), .. } => leads(run.epoch),
            State::Acquiring { ticket: None, .. }
            | State::Stopping { kill: Kill::Sent, .. }
            | State::Candidate
            | State::BackingOff { .. }
            | State::Over => false,
        }
    }

    /// Reports a change of its state.
    fn report_change(&mut self, why: &str, out: &mut Actions<Report>) {
        let report = match (self.election.leading(), self.election.behind()) {
            (Some(epoch), _) => Some(Report::Leading { epoch }),
            (None, Some(behind)) => Some(Report::Following { behind: behind.to_string() }),
            // Its rank is being read, and its contender exists: nothing is lost yet.
            (None, None) if self.election.own_name().is_some() || self.election.term().is_some() => return,
            (None, None) => match self.reported {
                None | Some(Report::Lost { .. }) => return,
                Some(Report::Leading { .. } | Report::Following { .. }) => {
                    Some(Report::Lost { why: why.to_string() })
                }
            },
        };
        if self.reported == report {
            return;
        }
        if let Some(report) = &report {
            out.log(Level::Info, report.to_string());
            out.push(Action::Status(report.to_string()));
            if self.params.command.is_none() {
                out.push(Action::Report(report.clone()));
            }
        }
        self.reported = report;
    }

    /// Lets no end through while a run's group lives: it is stopped first.
    fn hold_exit(&mut self, now: Instant, out: &mut Actions<Report>) {
        let asked: Vec<_> = out.drain().collect();
        let mut code = None;
        for action in asked {
            match action {
                Action::Exit(_) if code.is_some() => {}
                Action::Exit(asked) => code = Some(asked),
                other => out.push(other),
            }
        }
        let Some(code) = code else { return };
        match &mut self.state {
            State::Running(run) => {
                let run = *run;
                self.stop_run(run, now, Then::Fail(code), out);
            }
            State::Stopping { then, .. } => *then = Then::Fail(code),
            State::Candidate | State::Acquiring { .. } | State::BackingOff { .. } | State::Over => {
                out.push(Action::Exit(code));
                self.state = State::Over;
            }
        }
    }
}

impl Role for Elector {
    type Report = Report;

    fn step(&mut self, now: Instant, event: Event, out: &mut Actions<Report>) {
        if let State::Over = self.state {
            return;
        }
        self.past.observe(&event);
        // First of all: if we, or the machine, were suspended, its slot has killed the command at the end of the lease.
        // That is no end of its own.
        self.check_lease(now, out);
        let mut why = String::from("its contender was withdrawn or deleted");
        match event {
            Event::Connected { timeout } => self.on_connected(timeout, out),
            Event::Lost { why: reason } => {
                self.on_lost(&reason, now, out);
                why = format!("the connection was lost: {reason}");
                if self.run().is_none() {
                    out.push(Action::Status("no connection to the ensemble".into()));
                }
            }
            Event::Changed { path, kind } => self.election.on_changed(&path, kind, out),
            Event::Reply { id, result } => {
                if let Routed::Mine(step) = self.ensure.on_reply(id, &result, out) {
                    self.on_ensured(&step, now, out);
                } else if let Routed::NotMine = self.election.on_reply(id, &result, out) {
                    // Nobody else is left: a reply that is not the lease's either is stale.
                    let _ = self.lease.on_reply(id, &result, now, out);
                }
            }
            Event::Stop { again } => self.on_stop(again, now, out),
            Event::Started { run, pid } => {
                if self.run().is_some_and(|known| known.id == run) {
                    out.log(Level::Info, format!("the command runs as process {pid}"));
                }
            }
            Event::NotStarted { run, kind, why } => {
                self.on_not_started(run, kind, &why, now, out);
            }
            Event::Ended { run, report } => {
                self.on_ended(run, &report, now, out);
            }
            Event::SlotsLost { why } => self.on_slots_lost(&why, now, out),
            Event::Wake | Event::Lines(_) => {}
        }
        match self.state {
            State::Over => return,
            State::BackingOff { until } if until > now => {
                why = format!("contending again {} s after the command ended", until.since(now).as_secs());
            }
            State::Candidate
            | State::Acquiring { .. }
            | State::Running(_)
            | State::Stopping { .. }
            | State::BackingOff { .. } => {}
        }
        self.retry_refused(now, out);
        self.advance(&why, now, out);
        let needed = self.needs_lease();
        self.lease.need(needed, now, out);
        self.report_change(&why, out);
        self.hold_exit(now, out);
    }

    fn next_wake(&self) -> Option<Instant> {
        let refused = earlier(self.retry.next_wake(), self.directory.next_wake());
        let lease = earlier(self.lease.next_wake(), refused);
        match &self.state {
            State::Candidate => lease,
            State::Acquiring { patience_ends, .. } => earlier(lease, Some(*patience_ends)),
            State::Running(_) => earlier(lease, self.lease.expires()),
            State::Stopping { kill: Kill::At(at), .. } => {
                earlier(earlier(lease, self.lease.expires()), Some(*at))
            }
            State::Stopping { kill: Kill::Sent, .. } | State::Over => None,
            // Until its contender is deleted there is nothing to wake for.
            State::BackingOff { until } => self.election.is_out().then_some(*until),
        }
    }

    fn assert_invariants(&self) {
        match &self.state {
            State::Running(run) => {
                assert_eq!(self.election.term(), Some(run.epoch), "a run is its leader's");
                let leads = self.election.leading().is_some();
                assert_eq!(matches!(self.session, Session::Entered { .. }), leads, "a run is its session's");
                assert!(self.lease.expires().is_some(), "a run has a lease");
            }
            State::Acquiring { epoch, .. } => {
                assert_eq!(self.election.leading(), Some(*epoch), "a lease is for a leader");
            }
            State::Stopping { .. } | State::Candidate | State::BackingOff { .. } | State::Over => {}
        }
        if self.params.command.is_none() {
            let idle = matches!(self.state, State::Candidate | State::Over);
            assert!(idle, "without a command there is nothing to run: {:?}", self.state);
        }
        let follows = self.run().is_some() && self.election.term() == self.run().map(|run| run.epoch);
        match self.session {
            Session::Down => assert!(self.election.is_out() || follows, "no connection, no contender"),
            Session::Inheriting { .. } => {
                assert!(
                    follows || matches!(self.state, State::Over),
                    "only the lead of a run is handed over"
                );
            }
            Session::Waiting { .. } => {
                assert!(self.election.own_name().is_none(), "no process contends whose command is not dead");
                let waits = self.run().is_some() || matches!(self.state, State::Over);
                assert!(waits, "nothing to wait for");
            }
            Session::Entered { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests;
