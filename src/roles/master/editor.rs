//! Changes of tasks that a leader makes: read, decide, compare-and-set, and again if somebody was faster.
//!
//! Each is correct for any leader, since it is decided on the very version that it replaces.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::contract::share::Move;
use crate::contract::task::{Outcome, Reason, State, Task};
use crate::contract::{Incarnation, Layout, TaskId};
use crate::machine::{
    Actions, Call, CallError, CallId, CallResult, Calls, Instant, Level, Refusal, Reply, Routed, Stat,
};
use crate::recipes::retry::pause_of_one;

/// Edits under way at once; further ones wait.
const WINDOW: usize = 128;

/// How often an edit is begun again because the task changed in between.
const MAX_TRIES: u32 = 20;

/// After how many refusals, in about a minute, a task is quarantined that its ACL keeps from being changed: its owner
/// made the ACL. Quotas and throttling are the service's, and the leader waits for their end.
const MAX_FORBIDDEN: u32 = 8;

/// A change of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// It is only read.
    Peek,
    /// Its outcome becomes `expired`, or `cancelled` if that is still wanted. Of a chunk that ends the lines that
    /// nobody has.
    End {
        /// Its deadline passed.
        expired: bool,
        /// Shares that somebody has.
        held: Vec<u32>,
    },
    /// Some of what was not started of a share becomes another.
    Cut {
        /// The share.
        number: u32,
        /// The slots for which it is, and those that its holder has.
        slots: (u32, u32),
    },
    /// It is marked to be cancelled, because its submitter is gone.
    Orphan,
    /// Drops all but how it ended, if it still has this version: a task that ended again is kept whole.
    Shrink {
        /// The version.
        version: i32,
    },
    /// It goes on from an attempt that is dead to the next, or fails if that was its last.
    Move {
        /// The attempt that is dead, or the number of the share.
        from: u32,
        /// Who had it, if that is known.
        worker: Option<Incarnation>,
        /// Whether it counts, and out of how many if the task itself does not say.
        charge: Option<u32>,
    },
}

/// The result of an edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edited {
    /// It was made, or there was no need for it any more. This is the task as it is now.
    Written {
        /// The task.
        data: Vec<u8>,
        /// When and as which version.
        stat: Stat,
    },
    /// There was no need for it any more.
    Done,
    /// The task was seen without an outcome.
    Pending {
        /// Its attempt, or the numbers of its shares; each with how many commands may have been started of it.
        windows: Vec<(u32, usize)>,
    },
    /// The task cannot be read or written.
    Refused(Refusal),
}

/// What a reply led to.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The edit goes on, or the connection is gone.
    Pending,
    /// An edit is over.
    Finished {
        /// Its task.
        task: TaskId,
        /// The edit.
        edit: Edit,
        /// Its result.
        edited: Edited,
    },
}

#[derive(Debug)]
struct Work {
    edit: Edit,
    tries: u32,
    refusals: u32,
}

/// The edits of one leader.
#[derive(Debug)]
pub struct Editor {
    layout: Layout,
    works: BTreeMap<TaskId, Work>,
    queue: VecDeque<TaskId>,
    /// Edits that were refused, and when they are tried again.
    paused: BTreeSet<(Instant, TaskId)>,
    /// A refusal was logged, and no edit has passed since.
    is_refusal_logged: bool,
    /// An edit that others must not meet is in doubt: see [`Editor::is_in_doubt`].
    in_doubt: bool,
    calls: Calls<Purpose>,
}

#[derive(Debug)]
enum Purpose {
    Read(TaskId),
    Write(TaskId, Vec<u8>),
}

impl Editor {
    /// An editor of the tasks in this layout.
    pub fn new(layout: &Layout) -> Editor {
        Editor {
            layout: layout.clone(),
            works: BTreeMap::new(),
            queue: VecDeque::new(),
            paused: BTreeSet::new(),
            is_refusal_logged: false,
            in_doubt: false,
            calls: Calls::default(),
        }
    }

    /// Whether an edit of the task is under way.
    pub fn is_editing(&self, task: &TaskId) -> bool {
        self.works.contains_key(task)
    }

    /// Begins an edit; false if one of this task is under way already.
    pub fn begin<R>(&mut self, task: &TaskId, edit: Edit, out: &mut Actions<R>) -> bool {
        if self.works.contains_key(task) {
            return false;
        }
        self.works.insert(task.clone(), Work { edit, tries: 0, refusals: 0 });
        self.queue.push_back(task.clone());
        self.pump(out);
        true
    }

    /// Whether a write may still arrive that ends or moves a task which the next leader takes for free. Assigning it
    /// changes no task, so that write would pass, and another worker would get a task that runs.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// When [`Editor::resume`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        self.paused.first().map(|(at, _)| *at)
    }

    /// Tries again what was refused, and whose pause is over.
    pub fn resume<R>(&mut self, now: Instant, out: &mut Actions<R>) {
        while self.paused.first().is_some_and(|(at, _)| *at <= now) {
            self.queue.extend(self.paused.pop_first().map(|(_, task)| task));
        }
        self.pump(out);
    }

    /// Takes in a reply.
    pub fn on_reply<R>(
        &mut self,
        id: CallId,
        result: &CallResult,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Routed<Step> {
        self.calls.route(id, result).map(|(purpose, answer)| match answer {
            Some(answer) => self.on_answer(purpose, answer, now, out),
            None => {
                if let (Purpose::Write(task, _), Err(CallError::MaybeApplied)) = (&purpose, result) {
                    self.in_doubt |= self.works.get(task).is_some_and(|work| takes(&work.edit));
                }
                Step::Pending
            }
        })
    }

    fn on_answer<R>(
        &mut self,
        purpose: Purpose,
        answer: Result<&Reply, Refusal>,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Step {
        let (Purpose::Read(task) | Purpose::Write(task, _)) = &purpose;
        let task = task.clone();
        let edited = match (purpose, answer) {
            (Purpose::Read(_), Ok(Reply::Data { data, stat })) => self.decide(&task, data, stat, out),
            (Purpose::Write(_, data), Ok(Reply::Stat(stat))) => {
                self.is_refusal_logged = false;
                Some(Edited::Written { data, stat: *stat })
            }
            (Purpose::Read(_) | Purpose::Write(..), Err(Refusal::NoNode)) => Some(Edited::Done),
            (Purpose::Write(..), Err(Refusal::BadVersion)) => self.again(&task),
            (Purpose::Read(_) | Purpose::Write(..), Err(refusal)) => self.refused(&task, refusal, now, out),
            (Purpose::Read(_) | Purpose::Write(..), Ok(_)) => Some(Edited::Refused(Refusal::Other(0))),
        };
        let finished = edited.and_then(|edited| Some((self.works.remove(&task)?.edit, edited)));
        self.pump(out);
        match finished {
            Some((edit, edited)) => Step::Finished { task, edit, edited },
            None => Step::Pending,
        }
    }

    fn again(&mut self, task: &TaskId) -> Option<Edited> {
        let work = self.works.get_mut(task)?;
        work.tries += 1;
        if work.tries > MAX_TRIES {
            return Some(Edited::Refused(Refusal::BadVersion));
        }
        self.queue.push_back(task.clone());
        None
    }

    /// Tries again after a pause, unless the refusal is for good.
    fn refused<R>(
        &mut self,
        task: &TaskId,
        refusal: Refusal,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Option<Edited> {
        let work = self.works.get_mut(task)?;
        work.refusals = work.refusals.saturating_add(1);
        if !passes(refusal, work.refusals) {
            return Some(Edited::Refused(refusal));
        }
        if !std::mem::replace(&mut self.is_refusal_logged, true) {
            let path = self.layout.task(task);
            let text = format!(
                "{path} cannot be changed ({refusal}): it is tried again; check its ACL and the quotas"
            );
            out.log(Level::Warn, text);
        }
        self.paused.insert((now + pause_of_one(work.refusals), task.clone()));
        None
    }

    fn pump<R>(&mut self, out: &mut Actions<R>) {
        while self.calls.len() < WINDOW {
            let Some(task) = self.queue.pop_front() else { break };
            let call = Call::Get { path: self.layout.task(&task), watch: false };
            self.calls.issue(out, call, Purpose::Read(task));
        }
    }

    fn decide<R>(&mut self, id: &TaskId, data: &[u8], stat: &Stat, out: &mut Actions<R>) -> Option<Edited> {
        let Ok(mut task) = Task::decode(data) else { return Some(Edited::Done) };
        let edit = &self.works.get(id)?.edit;
        let shrinks = matches!(edit, Edit::Shrink { version } if *version == stat.version);
        if task.outcome.is_some() != shrinks {
            return Some(Edited::Done);
        }
        if *edit == Edit::Peek {
            return Some(Edited::Pending { windows: windows(&task) });
        }
        if !apply(edit, &mut task) {
            // What was believed of a share is out of date.
            let is_news = matches!(edit, Edit::Cut { .. });
            return Some(if is_news {
                Edited::Written { data: data.to_vec(), stat: *stat }
            } else {
                Edited::Done
            });
        }
        let data = task.encode_to_fit();
        let call = Call::Set { path: self.layout.task(id), data: data.clone(), version: stat.version };
        self.calls.issue(out, call, Purpose::Write(id.clone(), data));
        None
    }
}

/// Whether the same edit may pass later, after so many refusals.
fn passes(refusal: Refusal, refusals: u32) -> bool {
    match refusal {
        // Quotas, throttling, and whatever the client crate has no name for.
        Refusal::Other(_) => true,
        Refusal::NoAuth => refusals < MAX_FORBIDDEN,
        Refusal::NoNode
        | Refusal::NodeExists
        | Refusal::BadVersion
        | Refusal::NotEmpty
        | Refusal::NoChildrenForEphemerals
        | Refusal::TooLarge
        | Refusal::BadArguments
        | Refusal::Unimplemented => false,
    }
}

/// Whether the edit takes something from the worker that has it by then. A cut takes lines behind a window, which no
/// worker has. A mark takes nothing. No worker has a task that has ended.
fn takes(edit: &Edit) -> bool {
    match edit {
        Edit::End { .. } | Edit::Move { .. } => true,
        Edit::Peek | Edit::Cut { .. } | Edit::Orphan | Edit::Shrink { .. } => false,
    }
}

/// How much of a task may have been started, by attempts or numbers of shares.
fn windows(task: &Task) -> Vec<(u32, usize)> {
    match task.commands {
        Some(_) => task.all_shares().iter().map(|share| (share.attempt, task.window(share).len())).collect(),
        None => vec![(task.attempt, 1)],
    }
}

/// Makes the edit on a task, which has no outcome unless the edit is about that. False if there is no need for it.
fn apply(edit: &Edit, task: &mut Task) -> bool {
    let is_chunk = task.commands.is_some();
    match edit {
        Edit::Peek => false,
        Edit::End { expired, held } => {
            let (state, reason, why) = match expired {
                true => (State::Expired, Reason::Expired, "its deadline passed before it was started"),
                false => (State::Cancelled, Reason::Cancelled, "cancelled before it was started"),
            };
            if is_chunk {
                return task.end_unheld(held, reason, why);
            }
            let ends = *expired || task.cancel;
            if ends {
                task.end(Outcome::unrun(state, None, why, task.attempt));
            }
            ends
        }
        Edit::Cut { number, slots: (own, others) } => {
            let Some(share) = task.share(*number) else { return false };
            let open = task.open_lines(&share).len() as u64;
            let all = u64::from(*own).saturating_add(u64::from(*others)).max(1);
            let most = (open * u64::from(*own)).div_ceil(all);
            task.cut(*number, usize::try_from(most).unwrap_or(usize::MAX))
        }
        Edit::Orphan => !std::mem::replace(&mut task.cancel, true),
        Edit::Shrink { .. } => task.drop_request(),
        Edit::Move { from, worker, charge } if is_chunk => {
            let default = charge.unwrap_or(0);
            let max = if task.options.max_attempts.is_some() { task.options.attempts() } else { default };
            let how = if charge.is_some() { Move::Death { limit: max } } else { Move::Revoked };
            task.move_on(*from, worker.as_ref(), &how)
        }
        Edit::Move { from, worker, charge } => {
            if task.attempt != *from {
                return false;
            }
            let Some(default) = charge else {
                task.next_attempt(worker.clone(), "handed back");
                return true;
            };
            task.deaths = task.deaths.saturating_add(1);
            let charged = task.charged.saturating_add(task.deaths);
            let max = if task.options.max_attempts.is_some() { task.options.attempts() } else { *default };
            if charged < max {
                task.next_attempt(worker.clone(), "its worker died");
            } else {
                let why = format!("its worker died {} times while it had this task", task.deaths);
                (task.charged, task.deaths) = (charged, 0);
                let mut outcome = Outcome::unrun(State::Failed, Some(Reason::Poison), &why, task.attempt);
                outcome.worker.clone_from(worker);
                task.end(outcome);
            }
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::task::{Options, Payload};

    fn moved(task: &mut Task, from: u32, charge: Option<u32>) -> bool {
        apply(&Edit::Move { from, worker: Some(Incarnation::new("w", 1)), charge }, task)
    }

    #[test]
    fn a_move_is_made_only_from_the_attempt_that_is_dead() {
        let mut task = Task::new(Payload::Shell("x".into()), Options::default());
        assert!(!moved(&mut task, 2, Some(3)));
        assert!(moved(&mut task, 1, None));
        assert_eq!((task.attempt, task.charged), (2, 0));
    }

    #[test]
    fn the_last_charged_attempt_ends_in_failure() {
        let mut task = Task::new(Payload::Shell("x".into()), Options::default());
        assert!(moved(&mut task, 1, Some(3)) && moved(&mut task, 2, Some(3)));
        assert_eq!((task.attempt, task.charged, task.deaths, task.outcome.is_none()), (3, 0, 2, true));
        assert!(moved(&mut task, 3, Some(3)));
        let outcome = task.outcome.expect("outcome");
        assert_eq!(
            (outcome.state, outcome.reason, outcome.attempt),
            (State::Failed, Some(Reason::Poison), 3)
        );
    }

    #[test]
    fn a_cancel_that_is_not_wanted_any_more_is_not_made() {
        let mut task = Task::new(Payload::Shell("x".into()), Options::default());
        assert!(!apply(&Edit::End { expired: false, held: Vec::new() }, &mut task) && task.outcome.is_none());
        assert!(apply(&Edit::Orphan, &mut task) && !apply(&Edit::Orphan, &mut task));
        assert!(apply(&Edit::End { expired: false, held: Vec::new() }, &mut task));
        assert_eq!(task.outcome.map(|o| o.state), Some(State::Cancelled));
    }
}
