//! The master: takes part in the election with everything already in memory; the one that leads assigns tasks.
//!
//! ```text
//!             Connected           first in line
//!   Offline ───────────► Standby ───────────────► Leader: announcing ─► taking over ─► checking ─► assigning
//!      ▲                    ▲ │                      │
//!      └────────────────────┼─┴──────── Lost ────────┤
//!                           └──── contender deleted, or deposed
//! ```
//!
//! *Announcing* writes `status`, so that what is read afterwards is the present. *Taking over* rewrites every
//! assignment with the new epoch. *Checking* reads who is registered, to find the dead. Then tasks are assigned,
//! even if not all of them are loaded yet.
//!
//! A standby has the same view of tasks and workers, and the same queue; it only does not act. The view comes from
//! mirrors. Assignments are read at the takeover alone, since nobody but a leader changes them.

mod balance;
mod carried;
mod chunk_reads;
mod cleanup;
mod decide;
mod dispatch;
mod editor;
mod events;
mod failover;
mod janitor;
mod known;
mod leader;
mod loads;
mod outcomes;
mod reconcile;
mod recovery;
mod registrations;
mod standby;
mod status_writer;
mod summary;
mod table;
mod takeover;
mod view;
mod workers;

use std::time::Duration;

use self::events::Lead;
use self::leader::Leader;
use self::standby::Standby;
use self::view::{Heard, Source, View};
use crate::contract::Layout;
use crate::exit;
use crate::machine::{
    Action, Actions, CallId, CallResult, ChangeKind, Event, Instant, Level, Role, Routed, earlier,
};
use crate::recipes::election::Election;
use crate::recipes::ensure;
use crate::recipes::mirror::Change;
use crate::recipes::past::Past;
use crate::recipes::retry::{Condition, Retry};

/// What a master is started with.
#[derive(Clone, Debug)]
pub struct Params {
    /// The paths of everything.
    pub layout: Layout,
    /// Its id, shown to users.
    pub id: String,
    /// The machine that it runs on.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// Its own, for as long as the process lives.
    pub uuid: String,
    /// How long an outcome that nobody collects is kept.
    pub result_ttl: Duration,
    /// How long an empty job is kept.
    pub job_ttl: Duration,
    /// How many tasks without an outcome may exist. Submitters heed it.
    pub max_pending: u64,
    /// How many failed commands are kept until their time.
    pub max_failed: u64,
    /// How many bytes of data all tasks may have, likewise.
    pub max_pending_bytes: u64,
}

/// A master reports nothing to standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {}

type Out = Actions<Report>;

/// The role: what outlives a connection, and the state that does not.
#[derive(Debug)]
pub struct Master {
    params: Params,
    election: Election,
    state: State,
    /// What it cannot do without was refused, or is gone.
    retry: Retry,
    past: Past,
    condition: Condition,
}

/// What a master is.
#[derive(Debug)]
enum State {
    /// It has no connection.
    Offline,
    /// It is connected and does not lead.
    Standby(Box<Standby>),
    /// It leads.
    Leader(Box<Leader>),
}

impl State {
    /// What it knows, while it is connected.
    fn view(&mut self) -> Option<&mut View> {
        match self {
            State::Offline => None,
            State::Standby(standby) => Some(&mut standby.view),
            State::Leader(leader) => Some(&mut leader.view),
        }
    }

    /// The epoch of its term, while it leads.
    fn epoch(&self) -> Option<i64> {
        match self {
            State::Offline | State::Standby(_) => None,
            State::Leader(leader) => Some(leader.term.epoch),
        }
    }

    /// The state after the election has decided: with this epoch it leads.
    fn elected(self, epoch: Option<i64>, out: &mut Out) -> State {
        let view = match self {
            State::Offline => return State::Offline,
            State::Standby(standby) => standby.view,
            State::Leader(leader) => leader.view,
        };
        match epoch {
            Some(epoch) => State::Leader(Box::new(Leader::new(view, epoch, out))),
            None => State::Standby(Box::new(Standby::after_term(view, out))),
        }
    }
}

impl Master {
    /// A master that has not connected yet.
    pub fn new(params: Params) -> Master {
        Master {
            election: Election::new(&params.layout.master(), &params.uuid, params.id.clone().into_bytes()),
            state: State::Offline,
            retry: Retry::default(),
            past: Past::default(),
            condition: Condition::default(),
            params,
        }
    }

    fn on_connected(&mut self, timeout: Duration, out: &mut Out) {
        let view = View::new(&self.params, timeout, out);
        self.state = State::Standby(Box::new(Standby::new(view)));
    }

    fn on_lost(&mut self) {
        self.retry.on_lost();
        match std::mem::replace(&mut self.state, State::Offline) {
            State::Leader(leader) if leader.editor.is_in_doubt() => self.election.on_lost_in_doubt(),
            State::Offline | State::Standby(_) | State::Leader(_) => self.election.on_lost(),
        }
    }

    fn on_reply(&mut self, id: CallId, result: &CallResult, now: Instant, out: &mut Out) {
        let Some(view) = self.state.view() else { return };
        match view.on_reply(id, result, out) {
            Routed::Mine(Heard::Directories(step)) => return self.on_directories(step, now, out),
            Routed::Mine(Heard::Changes(source, changes)) => {
                return self.on_changes(source, changes, now, out);
            }
            Routed::NotMine => {}
        }
        match self.election.on_reply(id, result, out) {
            Routed::Mine(()) => return,
            Routed::NotMine => {}
        }
        if let State::Leader(leader) = &mut self.state {
            let lead = leader.on_reply(id, result, now, &mut self.retry, out);
            self.on_lead(lead, out);
        }
    }

    fn on_directories(&mut self, step: ensure::Step, now: Instant, out: &mut Out) {
        match step {
            ensure::Step::Pending => {}
            ensure::Step::Done => self.start_missing(out),
            ensure::Step::Refused(path, refusal) => self.retry.refused(&path, refusal, now, out),
        }
    }

    /// All directories exist: starts what does not run, at first all of it.
    fn start_missing(&mut self, out: &mut Out) {
        let leads = self.state.epoch().is_some();
        if let Some(view) = self.state.view() {
            view.start_missing(!leads, out);
        }
        if self.election.is_out() {
            self.election.contend(out);
        }
        if let State::Leader(leader) = &mut self.state {
            leader.restart(out);
        }
    }

    /// Tries again what was refused, and makes what is gone.
    fn repair(&mut self, now: Instant, out: &mut Out) {
        if let Some((path, refusal)) = self.election.take_refused() {
            self.retry.refused(&format!("cannot contend in {path}"), refusal, now, out);
        }
        let is_settled = match &self.state {
            State::Offline => false,
            State::Standby(_) => self.election.is_following(),
            State::Leader(leader) => leader.term.is_assigning(),
        };
        let Some(view) = self.state.view() else { return };
        if self.retry.is_due(now) {
            view.ensure_directories(out);
        }
        if is_settled && view.is_complete() && self.retry.next_wake().is_none() {
            self.retry.done(out);
        }
    }

    fn on_changed(&mut self, path: &str, kind: ChangeKind, now: Instant, out: &mut Out) {
        let Some(view) = self.state.view() else { return };
        match view.on_changed(path, kind, now, &mut self.retry, out) {
            Routed::Mine((source, changes)) => return self.on_changes(source, changes, now, out),
            Routed::NotMine => {}
        }
        self.election.on_changed(path, kind, out);
        if let State::Leader(leader) = &mut self.state {
            let lead = leader.on_changed(path, kind, now, &mut self.retry, out);
            self.on_lead(lead, out);
        }
    }

    fn on_changes(&mut self, source: Source, changes: Vec<Change>, now: Instant, out: &mut Out) {
        let retry = &mut self.retry;
        for change in changes {
            match &mut self.state {
                State::Offline => {}
                State::Standby(standby) => {
                    if let Some(news) = standby.view.take_in(source, change, now, retry, out) {
                        standby.on_news(&news);
                    }
                }
                State::Leader(leader) => {
                    if let Some(news) = leader.view.take_in(source, change, now, retry, out) {
                        leader.on_news(news, now, out);
                    }
                    leader.status.touch();
                }
            }
        }
    }

    fn on_lead(&mut self, lead: Lead, out: &mut Out) {
        match lead {
            Lead::Continues => {}
            Lead::Deposed { epoch } => {
                // Our contender must be gone as well. The first of the two signs makes this master contend again.
                out.log(Level::Warn, format!("deposed by the leader of epoch {epoch}; contending again"));
                self.election.contend(out);
                self.follow_election(out);
            }
        }
    }

    /// Begins and ends terms as the election goes.
    fn follow_election(&mut self, out: &mut Out) {
        let leading = self.election.leading();
        if self.state.epoch() != leading {
            let state = std::mem::replace(&mut self.state, State::Offline);
            self.state = state.elected(leading, out);
        }
    }

    /// Does what is due.
    fn act(&mut self, now: Instant, out: &mut Out) {
        match &mut self.state {
            State::Offline => {}
            State::Standby(standby) => standby.act(now, out),
            State::Leader(leader) => leader.act(now, out),
        }
    }

    /// Shows the log and the service manager what this master is, when that changed.
    fn show(&mut self, out: &mut Out) {
        let (text, trouble) = match &self.state {
            State::Leader(leader) => (leader.term.describe(), leader.status.trouble()),
            State::Offline => ("no connection to the ensemble".to_string(), None),
            State::Standby(_) if self.election.is_following() => ("standby".to_string(), None),
            State::Standby(_) => ("connected".to_string(), None),
        };
        self.condition.report(text, [self.retry.trouble(), trouble], out);
    }
}

impl Role for Master {
    type Report = Report;

    fn step(&mut self, now: Instant, event: Event, out: &mut Out) {
        self.past.observe(&event);
        if let State::Leader(leader) = &mut self.state {
            leader.assignments.tick(now);
        }
        match event {
            Event::Connected { timeout } => self.on_connected(timeout, out),
            Event::Lost { why } => {
                out.log(Level::Warn, format!("connection lost: {why}"));
                self.on_lost();
            }
            Event::Changed { path, kind } => self.on_changed(&path, kind, now, out),
            Event::Reply { id, result } => self.on_reply(id, &result, now, out),
            Event::Stop { .. } => {
                out.push(Action::Status("stopping".into()));
                out.push(Action::Exit(exit::OK));
                return;
            }
            Event::Wake => {}
            // A master runs nothing and reads no lines.
            Event::Started { .. }
            | Event::NotStarted { .. }
            | Event::Ended { .. }
            | Event::SlotsLost { .. }
            | Event::Lines(_) => {}
        }
        self.repair(now, out);
        if let Some(own) = self.election.made_by() {
            // All that it knew was forgotten with the connection.
            self.past.went_back(own, out);
        }
        self.follow_election(out);
        self.act(now, out);
        self.show(out);
    }

    fn next_wake(&self) -> Option<Instant> {
        let state = match &self.state {
            State::Offline => None,
            State::Standby(standby) => standby.view.next_wake(),
            State::Leader(leader) => leader.next_wake(),
        };
        earlier(state, self.retry.next_wake())
    }

    fn assert_invariants(&self) {
        assert_eq!(self.election.leading(), self.state.epoch(), "a term that the election does not know");
        let State::Leader(leader) = &self.state else { return };
        if let Some(task) = leader.view.queue.sample() {
            assert!(leader.assignments.holder(task).is_none(), "task {task} is queued and assigned at once");
        }
    }
}

#[cfg(test)]
mod tests;
