//! What a leader owns, beside the view: its term, the assignments, and what is under way.
//!
//! The files beside this one say what it does with that: see the order in which they may call each other in
//! `docs/design/code-map.md`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::Out;
use super::chunk_reads::ChunkReads;
use super::decide::Check;
use super::editor::Editor;
use super::failover::Failovers;
use super::janitor::Janitor;
use super::loads::WorkerLoads;
use super::status_writer::StatusWriter;
use super::view::View;
use crate::contract::status::EndedWorker;
use crate::contract::worker::EntryId;
use crate::contract::{Incarnation, Layout, TaskId};
use crate::machine::{Calls, Instant, Stat, earlier};
use crate::recipes::assignment::AssignmentTable;

/// How long an assignment without entries is kept whose worker is not registered. It is taken for one that is about to
/// register.
pub(super) const UNREGISTERED_GRACE: Duration = Duration::from_secs(60);

/// The ensemble's clock, as the last acknowledged own write showed it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What it showed, in ms since 1970.
    pub mtime_ms: i64,
    /// When the acknowledgement came.
    pub at: Instant,
}

impl Clock {
    /// Milliseconds since 1970, now, by the ensemble's clock.
    pub fn now_ms(&self, now: Instant) -> i64 {
        self.mtime_ms.saturating_add(i64::try_from(now.since(self.at).as_millis()).unwrap_or(i64::MAX))
    }

    /// When the ensemble's clock will show this time.
    pub fn instant_of(&self, ms: i64) -> Instant {
        self.at + Duration::from_millis(u64::try_from(ms.saturating_sub(self.mtime_ms)).unwrap_or(0))
    }
}

/// How far a term is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TermStage {
    /// It writes `status`, so that what is read afterwards is the present.
    Announcing,
    /// It rewrites every assignment with its epoch.
    TakingOver,
    /// It reads who is registered.
    Checking,
    /// It assigns tasks.
    Assigning {
        /// Since when.
        since: Instant,
    },
}

/// One term: from the election to the loss of the lead.
#[derive(Debug)]
pub struct Term {
    /// The czxid of the contender that leads.
    pub epoch: i64,
    /// How far it is.
    pub stage: TermStage,
    /// The transaction with which the term was announced: nobody assigned before what was created after it.
    pub announced: Option<i64>,
    /// Workers that died before the list of workers came; it may be older than their deaths.
    pub died: BTreeSet<Incarnation>,
    /// The list of registrations, while it is asked for.
    pub listing: Calls<()>,
}

impl Term {
    fn new(epoch: i64) -> Term {
        Term {
            epoch,
            stage: TermStage::Announcing,
            announced: None,
            died: BTreeSet::new(),
            listing: Calls::default(),
        }
    }

    /// Whether tasks are assigned.
    pub fn is_assigning(&self) -> bool {
        matches!(self.stage, TermStage::Assigning { .. })
    }

    /// For how long tasks have been assigned.
    pub fn assigns_for(&self, now: Instant) -> Duration {
        match self.stage {
            TermStage::Assigning { since } => now.since(since),
            TermStage::Announcing | TermStage::TakingOver | TermStage::Checking => Duration::ZERO,
        }
    }

    /// Whether a znode was created in this term, so that nobody else ever assigned it.
    pub fn is_newer(&self, stat: &Stat) -> bool {
        self.announced.is_some_and(|announced| stat.czxid > announced)
    }

    /// The stage in words.
    pub fn describe(&self) -> String {
        let stage = if self.is_assigning() { "leading" } else { "taking over" };
        format!("{stage}, epoch {}", self.epoch)
    }
}

/// What the leader cannot decide yet, since it does not know enough.
#[derive(Debug, Default)]
pub struct Doubts {
    /// Tasks of assignments that are gone while their workers live.
    pub held_back: BTreeMap<Incarnation, BTreeSet<TaskId>>,
    /// Tasks that are to be ended or moved, and may run by an assignment that was never read.
    pub undecided: BTreeSet<TaskId>,
    /// Tasks in assignments of earlier leaders that the mirror does not have, or of which it knows an earlier attempt:
    /// what came of the question whether they exist.
    pub checked: BTreeMap<TaskId, Check>,
    /// Tasks in such assignments that went before the mirror was complete.
    pub gone: BTreeSet<TaskId>,
}

/// What the leader knows of the work of its workers.
#[derive(Debug, Default)]
pub struct Scheduler {
    /// How much each worker has to do.
    pub loads: WorkerLoads,
    /// Shares of which something could be cut off.
    pub uncut: BTreeSet<EntryId>,
    /// When changes of running chunks are to be read.
    pub chunk_reads: ChunkReads,
    /// When to see whether work that waits should go elsewhere.
    pub balance_at: Option<Instant>,
}

/// A leader.
#[derive(Debug)]
pub struct Leader {
    pub(super) view: View,
    pub(super) term: Term,
    pub(super) clock: Option<Clock>,
    pub(super) assignments: AssignmentTable,
    pub(super) editor: Editor,
    pub(super) status: StatusWriter,
    pub(super) scheduler: Scheduler,
    pub(super) failovers: Failovers,
    pub(super) janitor: Janitor,
    pub(super) doubts: Doubts,
    /// Empty assignments of incarnations that are not registered, and since when they are known.
    pub(super) unregistered: BTreeMap<Incarnation, Instant>,
    /// The last workers that ended in this term, the latest first.
    pub(super) ended_workers: VecDeque<EndedWorker>,
}

impl Leader {
    /// The leader of a term that begins.
    pub fn new(mut view: View, epoch: i64, out: &mut Out) -> Leader {
        view.on_term(false, out);
        let layout: &Layout = &view.params.layout;
        let mut status = StatusWriter::new(layout.status());
        status.force();
        Leader {
            term: Term::new(epoch),
            clock: None,
            assignments: AssignmentTable::new(layout),
            editor: Editor::new(layout),
            status,
            scheduler: Scheduler::default(),
            failovers: Failovers::default(),
            janitor: Janitor::default(),
            doubts: Doubts::default(),
            unregistered: BTreeMap::new(),
            ended_workers: VecDeque::new(),
            view,
        }
    }

    /// When anything but the janitor wants to be woken.
    pub(super) fn next_wake_of_parts(&self) -> Option<Instant> {
        let unregistered = self.unregistered.values().min().map(|since| *since + UNREGISTERED_GRACE);
        let retry = earlier(self.assignments.next_wake(), self.editor.next_wake());
        let own = earlier(self.scheduler.balance_at, retry);
        earlier(self.view.next_wake(), earlier(earlier(self.status.next_wake(), unregistered), own))
    }
}
