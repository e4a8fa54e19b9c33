//! What cleanup has under way, and when it is due next: the state that [`super::cleanup`] works on.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::contract::TaskId;
use crate::machine::{Answer, CallId, CallResult, Calls, Instant, Routed};

/// How long an outcome is kept whose delete was refused, before the next try. Mostly it is an ACL, and a person who
/// repaired that can wait.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(60);

/// What a call of the janitor is for.
#[derive(Debug)]
pub enum Purpose {
    /// To delete a task with its outcome.
    DeleteTask(TaskId),
    /// To delete an empty job.
    DeleteJob(String),
    /// To list the submitters that wait, after an own write, for the tasks that were known before it.
    ListSubmitters(BTreeMap<TaskId, Box<str>>),
}

/// The state of a leader's cleanup.
#[derive(Debug, Default)]
pub struct Janitor {
    pub(super) calls: Calls<Purpose>,
    pub(super) next_jobs: Option<Instant>,
    pub(super) next_orphans: Option<Instant>,
    /// Tasks with a submitter, as they were when an own write was asked for.
    pub(super) suspects: Option<BTreeMap<TaskId, Box<str>>>,
    /// Submitters that were not there, and since when.
    pub(super) missing: BTreeMap<Box<str>, Instant>,
    /// From when on outcomes are deleted.
    pub(super) deletes_from: Option<Instant>,
    /// Outcomes whose delete was refused, and when to try again.
    pub(super) kept: Vec<TaskId>,
    pub(super) kept_until: Option<Instant>,
}

impl Janitor {
    /// Takes in a reply: what was asked for, and the answer.
    pub fn on_reply<'a>(&mut self, id: CallId, result: &'a CallResult) -> Routed<(Purpose, Answer<'a>)> {
        self.calls.route(id, result)
    }

    /// It could not be deleted: that is tried again later.
    pub fn keep(&mut self, task: TaskId, now: Instant) {
        self.kept.push(task);
        self.kept_until.get_or_insert(now + KEPT_FOR);
    }

    /// Whether outcomes may be deleted.
    pub fn may_delete(&self, now: Instant) -> bool {
        self.deletes_from.is_some_and(|from| from <= now)
    }
}
