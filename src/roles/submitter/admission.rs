//! Admission: whether the service has room for what is about to be added, by the figures in its leader's `status`.
//!
//! A [`Gate`] reads them once; [`Pace`] is the gate of a batch, which goes on reading them while it creates. Nothing
//! here writes, and nothing rests on it but the ensemble's health: where there are no figures, all is admitted.

use std::time::Duration;

use crate::contract::Layout;
use crate::contract::status::Status;
use crate::machine::{Actions, Call, CallId, CallResult, Calls, Instant, Level, Reply, Routed};
use crate::roles::client::sized;

/// The least time between two reads by a batch that is under way: the leader writes no more often.
const PACE: Duration = Duration::from_secs(1);

/// A batch with no more lines to create than this does not read again: it is done before that would matter.
const UNHEEDED: u64 = 1_000;

/// What would be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Commands: tasks, or lines of a batch.
    pub tasks: u64,
    /// Bytes of their data.
    pub bytes: u64,
}

/// The least that can be wished for. Where it is too much, the service is full.
const ANY: Demand = Demand { tasks: 1, bytes: 1 };

/// Why the demand is more than there is room for, if it is.
fn excess(status: &Status, demand: Demand) -> Option<String> {
    let admission = status.admission?;
    let (pending, leader) = (status.pending(), &status.leader.id);
    let (max, max_bytes) = (admission.max_pending, admission.max_pending_bytes);
    if pending.saturating_add(demand.tasks) > max {
        let more = demand.tasks;
        let limit = format!("the {max} that the leader {leader} admits (--max-pending of zkmw master)");
        return Some(format!("{pending} tasks are pending, and {more} more would exceed {limit}"));
    }
    if admission.bytes.saturating_add(demand.bytes) > max_bytes {
        let (stored, more, max) = (sized(admission.bytes), sized(demand.bytes), sized(max_bytes));
        let limit = format!("the {max} that the leader {leader} admits (--max-pending-bytes of zkmw master)");
        return Some(format!("the data of all tasks takes {stored}, and {more} more would exceed {limit}"));
    }
    None
}

/// The result of a reply that was meant for a [`Gate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: the connection is gone.
    Nothing,
    /// There is room, as far as is known.
    Admitted,
    /// As far as the leader knows, which has not read all tasks yet.
    Unsure,
    /// There is none, and why.
    Refused(String),
}

/// Reads whether there is room for a demand.
#[derive(Debug)]
pub struct Gate {
    path: String,
    demand: Demand,
    calls: Calls<()>,
    /// What was read last, if it could be understood.
    status: Option<Status>,
}

impl Gate {
    /// A gate for this demand.
    pub fn new(layout: &Layout, demand: Demand) -> Gate {
        Gate { path: layout.status(), demand, calls: Calls::default(), status: None }
    }

    /// Checks, on a new session or once more.
    pub fn ask<R>(&mut self, out: &mut Actions<R>) {
        self.calls.clear();
        self.calls.issue(out, Call::Get { path: self.path.clone(), watch: false }, ());
    }

    /// Whether an answer is still to come.
    pub fn is_asking(&self) -> bool {
        !self.calls.is_empty()
    }

    /// The session is gone.
    pub fn on_lost(&mut self) {
        self.calls.clear();
    }

    /// Takes in a reply.
    pub fn on_reply(&mut self, id: CallId, result: &CallResult) -> Routed<Answer> {
        self.calls.route(id, result).map(|((), answer)| {
            // A leader that can't be understood, or none that ever led, is no reason to refuse.
            self.status = match answer {
                None => return Answer::Nothing,
                Some(Ok(Reply::Data { data, .. })) => Status::decode(data).ok(),
                Some(Ok(_) | Err(_)) => None,
            };
            self.judge()
        })
    }

    /// Whether there was room, by what was read last.
    fn judge(&self) -> Answer {
        let Some(status) = &self.status else { return Answer::Admitted };
        match excess(status, self.demand) {
            Some(why) => Answer::Refused(why),
            None if status.loading => Answer::Unsure,
            None => Answer::Admitted,
        }
    }

    /// The message for a user whose demand was refused for this reason.
    pub fn advice(&self, why: &str) -> String {
        let fewer = if self.demand.tasks > 1 { ", submit fewer at a time" } else { "" };
        format!(
            "{why}; nothing was submitted. Wait until there is room (zkmw status shows it){fewer}, or raise the \
             limit at all masters"
        )
    }
}

/// The gate of a batch: first for all of it, then for any more of it. Several batches that were admitted may be too
/// much together, so the later parts wait while the service is full.
#[derive(Debug)]
pub struct Pace {
    gate: Gate,
    /// When the summary was last asked for.
    asked: Instant,
    /// The summary was read on behalf of the whole batch.
    has_read: bool,
    stage: PaceStage,
    /// While the service was full, a chunk was compared that does not exist.
    saw_absent: bool,
    logged_full: bool,
}

/// How far a batch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PaceStage {
    /// It was not admitted yet.
    Outside,
    /// It was admitted as a whole, or has begun earlier. The service has room.
    Open,
    /// The same, and the service is full.
    Closed,
}

impl Pace {
    /// The gate for a batch.
    pub fn new(layout: &Layout) -> Pace {
        let (gate, asked) = (Gate::new(layout, ANY), Instant::default());
        Pace {
            gate,
            asked,
            has_read: false,
            stage: PaceStage::Outside,
            saw_absent: false,
            logged_full: false,
        }
    }

    /// Checks whether all of the batch may come in.
    pub fn enter<R>(&mut self, now: Instant, out: &mut Actions<R>) {
        self.asked = now;
        self.has_read = false;
        self.gate.ask(out);
    }

    /// Checks again, if it is time and the batch has so many lines left to create that it matters.
    pub fn keep<R>(&mut self, now: Instant, left: u64, out: &mut Actions<R>) {
        if self.stage == PaceStage::Outside {
            self.stage = PaceStage::Open;
        }
        self.gate.demand = ANY;
        let matters = self.is_closed() || left > UNHEEDED;
        if matters && !self.gate.is_asking() && self.asked + PACE <= now {
            self.enter(now, out);
        }
    }

    /// Whether the summary was read on behalf of the whole batch.
    pub fn has_read_status(&self) -> bool {
        self.has_read
    }

    /// How many slots the service has; 0 if nobody says.
    pub fn slots(&self) -> u32 {
        self.gate.status.as_ref().map_or(0, |status| status.slots)
    }

    /// The message for a user whose batch would add so much, if that is too much.
    pub fn refuses(&mut self, demand: Demand) -> Option<String> {
        self.gate.demand = demand;
        match self.gate.judge() {
            Answer::Refused(why) => Some(self.gate.advice(&why)),
            Answer::Nothing | Answer::Unsure | Answer::Admitted => None,
        }
    }

    /// Whether nothing more is to be created for now.
    pub fn is_closed(&self) -> bool {
        self.stage == PaceStage::Closed
    }

    /// Whether, while it is closed, tasks that a batch with a key made earlier may still be found.
    pub fn may_compare(&self) -> bool {
        !self.saw_absent
    }

    /// A chunk was compared and does not exist: those after it don't either.
    pub fn on_absent(&mut self) {
        self.saw_absent |= self.is_closed();
    }

    /// The session is gone.
    pub fn on_lost(&mut self) {
        self.gate.on_lost();
    }

    /// When the next check is due.
    pub fn next_wake(&self) -> Option<Instant> {
        (self.is_closed() && !self.gate.is_asking()).then(|| self.asked + PACE)
    }

    /// Takes in a reply.
    pub fn on_reply<R>(&mut self, id: CallId, result: &CallResult, out: &mut Actions<R>) -> Routed<()> {
        self.gate.on_reply(id, result).map(|answer| self.on_answer(answer, out))
    }

    fn on_answer<R>(&mut self, answer: Answer, out: &mut Actions<R>) {
        self.has_read |= answer != Answer::Nothing;
        match answer {
            // A batch that waits for room goes on waiting until a leader knows that there is some.
            Answer::Nothing | Answer::Unsure => {}
            Answer::Admitted if self.stage == PaceStage::Closed => self.stage = PaceStage::Open,
            Answer::Admitted => {}
            Answer::Refused(why) if self.stage != PaceStage::Outside => {
                self.stage = PaceStage::Closed;
                if !self.logged_full {
                    self.logged_full = true;
                    out.log(Level::Warn, format!("{why}; what is left of the batch waits for room"));
                }
            }
            Answer::Refused(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::status::{Admission, Counts, LeaderStatus};

    fn status(pending: u64, assigned: u64, bytes: u64) -> Status {
        let leader = LeaderStatus { id: "m1".into(), host: "h".into(), pid: 1, epoch: 1 };
        let counts = Counts { pending, assigned, done: 1_000, quarantined: 1_000, ..Counts::default() };
        let mut status = Status::new(leader, Vec::new(), counts, false);
        status.admission = Some(Admission { bytes, max_pending: 100, max_pending_bytes: 4_096 });
        status
    }

    fn demand(tasks: u64, bytes: u64) -> Demand {
        Demand { tasks, bytes }
    }

    #[test]
    fn the_last_that_fits_is_admitted_and_one_more_is_not() {
        assert_eq!(excess(&status(60, 30, 0), demand(10, 1)), None);
        let why = excess(&status(60, 30, 0), demand(11, 1)).expect("too many");
        for words in ["90 tasks are pending", "11 more", "the 100", "m1", "--max-pending of"] {
            assert!(why.contains(words), "{words}: {why}");
        }
        assert_eq!(excess(&status(0, 0, 4_000), demand(1, 96)), None);
        let why = excess(&status(0, 0, 4_000), demand(1, 97)).expect("too much");
        for words in ["3.9 KiB", "97 B", "the 4 KiB", "m1", "--max-pending-bytes"] {
            assert!(why.contains(words), "{words}: {why}");
        }
        assert!(excess(&status(u64::MAX, u64::MAX, u64::MAX), demand(u64::MAX, u64::MAX)).is_some());
    }

    #[test]
    fn ended_or_quarantined_tasks_do_not_count_as_pending() {
        assert_eq!(excess(&status(0, 0, 0), demand(100, 1)), None);
    }

    #[test]
    fn a_leader_that_names_no_limits_admits_everything() {
        let mut unlimited = status(u64::MAX, 0, u64::MAX);
        unlimited.admission = None;
        assert_eq!(excess(&unlimited, demand(u64::MAX, u64::MAX)), None);
    }
}
