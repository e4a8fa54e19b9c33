//! What follows from what is known of a task: pure functions from facts to decisions. [`super::reconcile`] collects the
//! facts and carries the decisions out.
//!
//! An entry of an assignment names a task at an attempt, or a share of a chunk by its number. Of a plain task only one
//! attempt may be with anybody at a time; shares have no line in common, so each is decided without the others. A
//! number that is gone never comes back, and nothing of it runs: its lines have results, or its worker released them,
//! or is dead.

use std::time::Duration;

use crate::recipes::assignment::{Doubt, Urgency};

/// What came of a question whether a task exists that an earlier leader assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// It exists.
    Exists,
    /// It does not, or it has an outcome.
    Absent,
}

/// What the mirror has of the task that an entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskFacts {
    /// The mirror does not have it.
    Missing {
        /// The mirror has read all tasks, or reported the end of this one.
        is_gone: bool,
    },
    /// It has no outcome, and the entry names something of it.
    Open {
        /// Somebody wants the task cancelled.
        cancel: bool,
        /// Somebody wants some of the entry's lines cancelled.
        cancel_lines: bool,
    },
    /// It has no outcome. It is a chunk, and has no share with the entry's number.
    NoShare {
        /// The numbers of the chunk are below that of the entry.
        is_older: bool,
    },
    /// It has no outcome. It is at a later attempt than the entry.
    LaterAttempt {
        /// The worker of the entry moved it there.
        released: bool,
    },
    /// It has no outcome. It is at an earlier attempt than the entry.
    EarlierAttempt,
    /// It has an outcome.
    Ended {
        /// Of an attempt before that of the entry.
        is_older: bool,
        /// The worker of the entry wrote the outcome, or the task is a chunk, whose results its workers write.
        knows: bool,
    },
    /// It cannot be read as a task.
    Malformed,
    /// It is a task that cannot be written.
    Quarantined,
}

/// What is known of an entry whose worker is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryFacts {
    /// Its task.
    pub task: TaskFacts,
    /// An earlier leader assigned it.
    pub inherited: bool,
    /// The task is being read.
    pub is_reading: bool,
    /// The leader asked whether the task exists.
    pub check: Option<Check>,
}

/// What becomes of an entry whose worker is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryDecision {
    /// Nothing.
    Keep,
    /// Nothing, until the mirror has read the task once more.
    ReadAgain,
    /// Nothing, until the ensemble has answered whether the task exists.
    AskWhetherItExists,
    /// It runs on, and takes up the slots that the task needs now.
    Continue {
        /// Its worker has to read which lines are cancelled.
        cancel_lines: bool,
    },
    /// Its worker has to kill it and to say so.
    Revoke,
    /// Its worker has to confirm that nothing of it runs. It takes up no slot until then.
    RevokePresumedDone,
    /// It is taken off the assignment, for nothing of it runs.
    Remove(Urgency),
}

/// Decides what becomes of an entry whose worker is alive.
pub fn decide_entry(facts: &EntryFacts) -> EntryDecision {
    let is_late = match facts.task {
        TaskFacts::NoShare { is_older } | TaskFacts::Ended { is_older, .. } => is_older,
        TaskFacts::Missing { .. }
        | TaskFacts::Open { .. }
        | TaskFacts::LaterAttempt { .. }
        | TaskFacts::EarlierAttempt
        | TaskFacts::Malformed
        | TaskFacts::Quarantined => false,
    };
    // Somebody had it run again, and the leader before us assigned it: the mirror is late. It is asked once.
    if is_late && (facts.check.is_none() || facts.is_reading) {
        return EntryDecision::ReadAgain;
    }
    match facts.task {
        TaskFacts::Missing { is_gone } => decide_missing(facts, is_gone),
        TaskFacts::Open { cancel: true, .. } => EntryDecision::Revoke,
        TaskFacts::Open { cancel: false, cancel_lines } => EntryDecision::Continue { cancel_lines },
        TaskFacts::NoShare { .. } | TaskFacts::LaterAttempt { released: true } => {
            EntryDecision::Remove(Urgency::Now)
        }
        // Its worker does not know yet that it is over.
        TaskFacts::LaterAttempt { released: false }
        | TaskFacts::Ended { knows: false, .. }
        | TaskFacts::Malformed => EntryDecision::Revoke,
        // Nobody can get it again, so that is written when something else is.
        TaskFacts::Ended { knows: true, .. } => EntryDecision::Remove(Urgency::Later),
        TaskFacts::EarlierAttempt | TaskFacts::Quarantined => EntryDecision::Keep,
    }
}

/// Events come over another way than answers, so an assignment may name a task that the mirror has yet to hear of.
fn decide_missing(facts: &EntryFacts, is_gone: bool) -> EntryDecision {
    // What this leader assigned it knew, so that is gone.
    if facts.inherited {
        match facts.check {
            _ if !is_gone => return EntryDecision::Keep,
            // It may have been made and assigned just before the takeover.
            None => return EntryDecision::AskWhetherItExists,
            // The mirror will have it soon.
            Some(Check::Exists) => return EntryDecision::Keep,
            Some(Check::Absent) => {}
        }
    }
    // It ended most probably, and was collected before its outcome was seen. Its worker says so, to be certain.
    EntryDecision::RevokePresumedDone
}

/// What is known of the part of a pending task that nobody has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreeFacts {
    /// There is such a part.
    pub is_any: bool,
    /// It may still run where its assignment is gone.
    pub held_back: bool,
    /// The task changed since it was read.
    pub is_outdated: bool,
    /// Somebody wants it cancelled, or some of its lines, or its deadline passed.
    pub ends: Option<Ending>,
    /// A share that somebody had, and whose assignment is gone.
    pub lost: Option<u32>,
}

/// Why what nobody has of a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Somebody wants it cancelled.
    Cancelled,
    /// Its deadline passed.
    Expired,
}

/// What becomes of the part of a pending task that nobody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeDecision {
    /// Nothing.
    Wait,
    /// Nothing, until the task is read.
    ReadAgain,
    /// It gets its outcome.
    End(Ending),
    /// It goes on as another share.
    MoveOn {
        /// The share.
        from: u32,
    },
    /// It is queued.
    Queue,
}

/// Decides what becomes of the part of a pending task that nobody has.
pub fn decide_free(facts: &FreeFacts) -> FreeDecision {
    if !facts.is_any || facts.held_back {
        return FreeDecision::Wait;
    }
    if facts.is_outdated {
        return FreeDecision::ReadAgain;
    }
    match (facts.ends, facts.lost) {
        (Some(ending), _) => FreeDecision::End(ending),
        // A number is assigned once.
        (None, Some(from)) => FreeDecision::MoveOn { from },
        (None, None) => FreeDecision::Queue,
    }
}

/// A leader whose contender is gone can write nothing after so many session timeouts: it has heard of it, or its
/// session is dead. One would do if every master had ours.
const DEPOSED_TIMEOUTS: u32 = 2;

/// How long tasks wait for the assignment of a dead worker that may not be read. After that what it had may be run at
/// the same attempt again: better than that one ACL stops all.
pub(super) const DEAD_UNREAD: Duration = Duration::from_secs(60);

/// What is known of an assignment that this leader did not take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AssignmentFacts {
    /// Its worker is registered.
    pub is_alive: bool,
    /// Why it may say what the leader does not know.
    pub doubt: Doubt,
    /// For how long the leader has assigned.
    pub assigns_for: Duration,
    /// The session timeout.
    pub timeout: Duration,
}

/// Whether such an assignment may name any task, so that no task may be assigned. Of a dead worker nothing runs any
/// more, so it holds up the others only for a while.
pub fn may_hide_tasks(facts: &AssignmentFacts) -> bool {
    match (facts.is_alive, facts.doubt) {
        (true, Doubt::Unread | Doubt::Malformed) => true,
        (true, Doubt::Unwritten) => facts.assigns_for < facts.timeout * DEPOSED_TIMEOUTS,
        (false, Doubt::Unread) => facts.assigns_for < DEAD_UNREAD,
        (false, Doubt::Malformed | Doubt::Unwritten) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_an_entry_follows_from_a_table() {
        use EntryDecision as D;
        use TaskFacts as F;
        let (asked, exists, absent) = (None, Some(Check::Exists), Some(Check::Absent));
        // The task, whether it is inherited, whether it is being read, the check, and the decision.
        let cases = [
            (F::Missing { is_gone: false }, true, false, asked, D::Keep),
            (F::Missing { is_gone: false }, true, false, absent, D::Keep),
            (F::Missing { is_gone: true }, true, false, asked, D::AskWhetherItExists),
            (F::Missing { is_gone: true }, true, false, exists, D::Keep),
            (F::Missing { is_gone: true }, true, false, absent, D::RevokePresumedDone),
            (F::Missing { is_gone: false }, false, false, asked, D::RevokePresumedDone),
            (
                F::Open { cancel: false, cancel_lines: false },
                true,
                true,
                asked,
                D::Continue { cancel_lines: false },
            ),
            (
                F::Open { cancel: false, cancel_lines: true },
                false,
                false,
                asked,
                D::Continue { cancel_lines: true },
            ),
            (F::Open { cancel: true, cancel_lines: false }, false, false, asked, D::Revoke),
            (F::NoShare { is_older: false }, true, false, asked, D::Remove(Urgency::Now)),
            (F::NoShare { is_older: true }, true, false, asked, D::ReadAgain),
            (F::NoShare { is_older: true }, true, true, exists, D::ReadAgain),
            (F::NoShare { is_older: true }, true, false, exists, D::Remove(Urgency::Now)),
            (F::LaterAttempt { released: true }, false, false, asked, D::Remove(Urgency::Now)),
            (F::LaterAttempt { released: false }, false, false, asked, D::Revoke),
            (F::EarlierAttempt, true, false, asked, D::Keep),
            (F::Ended { is_older: true, knows: true }, true, false, asked, D::ReadAgain),
            (F::Ended { is_older: true, knows: false }, true, false, exists, D::Revoke),
            (F::Ended { is_older: false, knows: false }, false, false, asked, D::Revoke),
            (F::Ended { is_older: false, knows: true }, false, false, asked, D::Remove(Urgency::Later)),
            (F::Malformed, false, false, asked, D::Revoke),
            (F::Quarantined, false, false, asked, D::Keep),
        ];
        for (task, inherited, is_reading, check, decision) in cases {
            let facts = EntryFacts { task, inherited, is_reading, check };
            assert_eq!(decide_entry(&facts), decision, "{facts:?}");
        }
    }

    #[test]
    fn what_nobody_has_is_queued_unless_a_fact_forbids_it() {
        let free = FreeFacts { is_any: true, ..FreeFacts::default() };
        let (ends, lost) = (Some(Ending::Cancelled), Some(7));
        let cases = [
            (FreeFacts::default(), FreeDecision::Wait),
            (free, FreeDecision::Queue),
            (FreeFacts { held_back: true, ends, ..free }, FreeDecision::Wait),
            (FreeFacts { is_outdated: true, ends, ..free }, FreeDecision::ReadAgain),
            (FreeFacts { ends, lost, ..free }, FreeDecision::End(Ending::Cancelled)),
            (FreeFacts { ends: Some(Ending::Expired), ..free }, FreeDecision::End(Ending::Expired)),
            (FreeFacts { lost, ..free }, FreeDecision::MoveOn { from: 7 }),
        ];
        for (facts, decision) in cases {
            assert_eq!(decide_free(&facts), decision, "{facts:?}");
        }
    }

    #[test]
    fn an_unknown_assignment_stops_all_while_it_may_be_acted_on() {
        let timeout = Duration::from_secs(10);
        let hides = |is_alive, doubt, assigns_for_s| {
            let assigns_for = Duration::from_secs(assigns_for_s);
            may_hide_tasks(&AssignmentFacts { is_alive, doubt, assigns_for, timeout })
        };
        assert!(hides(true, Doubt::Unread, 1_000) && hides(true, Doubt::Malformed, 1_000));
        assert!(hides(true, Doubt::Unwritten, 19) && !hides(true, Doubt::Unwritten, 20));
        assert!(hides(false, Doubt::Unread, 59) && !hides(false, Doubt::Unread, 60));
        assert!(!hides(false, Doubt::Malformed, 0) && !hides(false, Doubt::Unwritten, 0));
    }
}
