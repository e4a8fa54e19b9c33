//! What a master does while it leads: takes over, gives tasks out, takes back what the dead had.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::balance::Looks;
use super::dispatch::WorkerLoads;
use super::editor::{self, Edit, Edited, Editor};
use super::failover::Failovers;
use super::janitor::Janitor;
use super::summary::{self, Summary};
use super::{Master, Out};
use crate::contract::worker::EntryId;
use crate::contract::{Incarnation, Layout, TaskId, parse_registration};
use crate::machine::{
    Answer, Call, CallId, CallResult, Calls, ChangeKind, Instant, Level, Reply, Routed, Stat, earlier,
};
use crate::recipes::assignment::{Book, Step};

/// An assignment without entries whose worker is not registered is taken for one that is about to register, for
/// so long.
const UNREGISTERED_GRACE: Duration = Duration::from_secs(60);

/// The ensemble's clock, as the last acknowledged own write showed it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    mtime_ms: i64,
    at: Instant,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Writes `status`, so that what is read afterwards is the present.
    Announcing,
    /// Rewrites every assignment with its epoch.
    TakingOver,
    /// Reads who is registered.
    Checking,
    /// Gives tasks out.
    Leading,
}

/// One leadership.
#[derive(Debug)]
pub struct Term {
    epoch: i64,
    stage: Stage,
    pub(super) book: Book,
    pub(super) editor: Editor,
    pub(super) looks: Looks,
    pub(super) summary: Summary,
    pub(super) clock: Option<Clock>,
    /// The transaction with which the term was announced: what was made after it nobody gave out before.
    announced: Option<i64>,
    pub(super) janitor: Janitor,
    pub(super) loads: WorkerLoads,
    pub(super) failovers: Failovers,
    /// Shares of which something could be cut off.
    pub(super) behind: BTreeSet<EntryId>,
    /// Tasks of pages that are gone while their workers live.
    pub(super) held_back: BTreeMap<Incarnation, BTreeSet<TaskId>>,
    /// Tasks that are cancelled or have expired, and may run by an assignment that was never read.
    pub(super) undecided: BTreeSet<TaskId>,
    /// Empty assignments of incarnations that are not registered, since when they are known.
    pub(super) unregistered: BTreeMap<Incarnation, Instant>,
    /// Those that died before the list of workers came; it may be older than their deaths.
    died: BTreeSet<Incarnation>,
    /// Tasks on pages of earlier leaders that the mirror does not have, or of which it knows an earlier attempt; and
    /// whether they were seen to stand.
    pub(super) looked: BTreeMap<TaskId, bool>,
    /// Tasks on such pages that went before all that stands was known.
    pub(super) gone: BTreeSet<TaskId>,
    /// Since when tasks are given out.
    pub(super) leads_since: Option<Instant>,
    /// The list of registrations, while it is asked for.
    calls: Calls<()>,
}

impl Term {
    fn new(layout: &Layout, epoch: i64) -> Term {
        let mut summary = Summary::new(layout.status());
        summary.force();
        Term {
            epoch,
            stage: Stage::Announcing,
            book: Book::new(layout),
            editor: Editor::new(layout),
            looks: Looks::default(),
            summary,
            clock: None,
            announced: None,
            janitor: Janitor::default(),
            loads: WorkerLoads::default(),
            failovers: Failovers::default(),
            behind: BTreeSet::new(),
            held_back: BTreeMap::new(),
            undecided: BTreeSet::new(),
            unregistered: BTreeMap::new(),
            died: BTreeSet::new(),
            looked: BTreeMap::new(),
            gone: BTreeSet::new(),
            leads_since: None,
            calls: Calls::default(),
        }
    }

    /// The czxid of the contender that leads.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Whether tasks are given out.
    pub fn is_leading(&self) -> bool {
        self.stage == Stage::Leading
    }

    /// Whether a znode was made in this term, so that nobody else ever gave it out.
    pub fn has_seen_made(&self, stat: &Stat) -> bool {
        self.announced.is_some_and(|announced| stat.czxid > announced)
    }

    /// What it is doing, in words.
    pub fn describe(&self) -> String {
        let stage = if self.is_leading() { "leading" } else { "taking over" };
        format!("{stage}, epoch {}", self.epoch)
    }

    /// When it wants to be woken.
    pub fn next_wake(&self) -> Option<Instant> {
        let unregistered = self.unregistered.values().min().map(|since| *since + UNREGISTERED_GRACE);
        let retry = earlier(self.book.next_wake(), self.editor.next_wake());
        let own = earlier(self.loads.balance_at, retry);
        earlier(earlier(self.summary.next_wake(), unregistered), own)
    }
}

impl Master {
    /// Begins and ends terms as the election goes.
    pub(super) fn follow_election(&mut self, now: Instant, out: &mut Out) {
        let leading = self.election.leading();
        if self.term.as_ref().map(Term::epoch) == leading {
            return;
        }
        self.term = leading.map(|epoch| Term::new(&self.params.layout, epoch));
        self.table.forget_seen();
        self.tasks.take_time(self.term.is_none(), out);
        // What nobody could take in the last term, somebody may in this one.
        self.queue.unblock(|_| true);
        if self.term.is_none() {
            // The queue left out what was assigned; a standby's holds all.
            let tasks: Vec<_> = self.table.ids().cloned().collect();
            for task in tasks {
                self.settle(&task, now, out);
            }
        }
    }

    /// Marks the summary as changed.
    pub(super) fn touch(&mut self) {
        if let Some(term) = &mut self.term {
            term.summary.touch();
        }
    }

    /// Does what is due: housekeeping, giving out, writing.
    pub(super) fn act(&mut self, now: Instant, out: &mut Out) {
        self.housekeep(now, out);
        self.decide(now, out);
        if let Some(term) = &mut self.term {
            term.editor.resume(now, out);
        }
        self.dispatch(now, out);
        self.balance(now, out);
        let Some(mut term) = self.term.take() else { return };
        term.book.flush(out);
        let offer = term.summary.next_wake().is_some_and(|at| at <= now);
        if offer {
            let summary = self.summarize(&term);
            term.summary.offer(now, &summary, out);
        }
        self.term = Some(term);
    }

    pub(super) fn on_term_changed(&mut self, path: &str, kind: ChangeKind, now: Instant, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        term.summary.on_changed(path, kind, now, out);
        if let Routed::Mine(steps) = term.book.on_changed(path, kind, out) {
            self.on_book(steps, now, out);
        }
    }

    pub(super) fn on_term_reply(&mut self, id: CallId, result: &CallResult, now: Instant, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        if let Routed::Mine(steps) = term.book.on_reply(id, result, out) {
            self.on_book(steps, now, out);
        } else if let Routed::Mine(step) = term.editor.on_reply(id, result, now, out) {
            match step {
                editor::Step::Pending => {}
                editor::Step::Finished { task, edit, edited } => {
                    self.on_edited(&task, &edit, edited, now, out);
                }
            }
        } else if let Routed::Mine(step) = term.summary.on_reply(id, result, now, out) {
            match step {
                summary::Step::Pending => {}
                summary::Step::Written { mtime_ms, mzxid } => {
                    term.announced.get_or_insert(mzxid);
                    term.clock = Some(Clock { mtime_ms, at: now });
                    if term.stage == Stage::Announcing {
                        term.stage = Stage::TakingOver;
                        term.book.take_over(term.epoch, out);
                    }
                    self.on_own_write(mtime_ms, now, out);
                }
                summary::Step::Homeless => {
                    self.retry.vanished(self.params.layout.root(), now, out);
                }
            }
        } else if let Routed::Mine(((), answer)) = term.calls.route(id, result) {
            self.on_workers_listed(answer, now, out);
        } else if let Routed::Mine((purpose, Some(answer))) = term.janitor.on_reply(id, result) {
            self.on_janitor_answer(purpose, answer, now, out);
        }
    }

    fn on_book(&mut self, steps: Vec<Step>, now: Instant, out: &mut Out) {
        for step in steps {
            let Some(term) = &mut self.term else { return };
            term.summary.touch();
            match step {
                Step::Ready => {
                    term.stage = Stage::Checking;
                    self.check_workers(out);
                }
                Step::Opened(incarnation) => {
                    let held = tasks_on(&term.book, [&incarnation]);
                    for (id, _) in term.book.entries(&incarnation) {
                        self.queue.remove(id);
                    }
                    // It was refused when the others were read.
                    let late = term.stage == Stage::Leading;
                    self.on_page(&incarnation, now, out);
                    if late {
                        self.settle_all(&held, now, out);
                    }
                }
                // Its worker may have read the page, and answered, before we heard that it is written.
                Step::Written(incarnation) => self.on_page(&incarnation, now, out),
                Step::Closed(incarnation, entries) => {
                    self.on_closed(&incarnation, tasks_of(&entries), now, out);
                }
                Step::Deposed { epoch } => {
                    // Our contender must be gone as well; whoever is told first stands again.
                    out.log(Level::Warn, format!("deposed by the leader of epoch {epoch}; standing again"));
                    self.election.stand(out);
                    self.follow_election(now, out);
                }
                Step::PageRefused(incarnation, entries) => {
                    term.failovers.wake(&incarnation);
                    self.settle_all(&tasks_of(&entries), now, out);
                }
                Step::Refused(path, refusal) => self.retry.refused(&path, refusal, now, out),
            }
        }
    }

    /// Goes on with a takeover of which something was refused.
    pub(super) fn restart_term(&mut self, out: &mut Out) {
        if let Some(term) = &mut self.term
            && term.book.is_stuck()
        {
            term.book.take_over(term.epoch(), out);
        }
        self.check_workers(out);
    }

    /// Lists the registrations as soon as the mirror would tell of the end of each. (What the mirror knows by then
    /// may be older than what was taken over, and what it tells later may overtake the list.)
    pub(super) fn check_workers(&mut self, out: &mut Out) {
        let Some(term) = self.term.as_mut().filter(|term| term.stage == Stage::Checking) else { return };
        if self.workers.is_complete() && term.calls.is_empty() {
            let call = Call::Children { path: self.params.layout.workers() };
            term.calls.issue(out, call, ());
        }
    }

    /// The list of registrations is younger than every assignment that was taken over. So an assignment with
    /// entries whose worker is not in it belongs to a dead incarnation.
    fn on_workers_listed(&mut self, answer: Answer<'_>, now: Instant, out: &mut Out) {
        let names = match answer {
            Some(Ok(Reply::Children(names))) => names,
            Some(Ok(_)) | None => return,
            Some(Err(refusal)) => {
                return self.retry.refused(&self.params.layout.workers(), refusal, now, out);
            }
        };
        let alive: BTreeSet<_> = names.iter().filter_map(|name| Some(parse_registration(name)?.0)).collect();
        let Some(term) = &mut self.term else { return };
        term.stage = Stage::Leading;
        term.leads_since = Some(now);
        let pages: Vec<_> = term.book.incarnations().cloned().collect();
        let held = tasks_on(&term.book, &pages);
        let died = std::mem::take(&mut term.died);
        for incarnation in pages.iter().filter(|incarnation| !alive.contains(incarnation)) {
            self.on_unregistered(incarnation, now);
        }
        for incarnation in &died {
            self.bury(incarnation);
        }
        let living: Vec<_> = self.fleet.incarnations().cloned().collect();
        for incarnation in &living {
            self.on_registration(incarnation, now, out);
        }
        let cancelling: Vec<_> = self.table.cancelling.iter().cloned().collect();
        for task in &cancelling {
            self.settle(task, now, out);
        }
        self.settle_all(&held, now, out);
    }

    /// A task went, perhaps before it was ever read.
    pub(super) fn note_gone(&mut self, task: &TaskId) {
        let complete = self.tasks.is_complete();
        if let Some(term) = self.term.as_mut().filter(|_| !complete)
            && term.book.entries_of(task).iter().any(|(_, _, held)| held.inherited)
        {
            term.gone.insert(task.clone());
        }
    }

    pub(super) fn on_tasks_complete(&mut self, now: Instant, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        term.failovers.unpark();
        term.gone.clear();
        let held = tasks_on(&term.book, term.book.incarnations());
        self.settle_all(&held, now, out);
    }

    fn on_page(&mut self, incarnation: &Incarnation, now: Instant, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        term.failovers.wake(incarnation);
        if self.fleet.lives(incarnation) {
            self.on_registration(incarnation, now, out);
        } else if term.is_leading() {
            self.on_unregistered(incarnation, now);
        }
    }

    fn on_unregistered(&mut self, incarnation: &Incarnation, now: Instant) {
        let Some(term) = &mut self.term else { return };
        if term.book.entries(incarnation).next().is_some() {
            self.bury(incarnation);
        } else {
            term.unregistered.entry(incarnation.clone()).or_insert(now);
        }
    }

    pub(super) fn on_registration(&mut self, incarnation: &Incarnation, now: Instant, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        if term.failovers.contains(incarnation) {
            return;
        }
        term.unregistered.remove(incarnation);
        term.book.touch(incarnation);
        let Some(registration) = self.fleet.get(incarnation) else { return };
        term.book.set_aside(incarnation, &registration.aside);
        let Some(through) = registration.revoked_through else { return };
        for id in term.book.acknowledge(incarnation, through) {
            // The same attempt is never given out twice: its worker may remember it as refused.
            let same = self.table.pending(&id.task).is_some_and(|pending| !pending.cancel)
                && self.table.unit(&id).is_some();
            let is_free = |term: &&mut Term| same && term.book.holder(&id).is_none();
            if let Some(term) = self.term.as_mut().filter(is_free) {
                let worker = Some(incarnation.clone());
                let edit = Edit::Move { from: id.attempt, worker, charge: None };
                term.editor.begin(&id.task, edit, out);
            }
            self.settle(&id.task, now, out);
        }
        self.touch();
    }

    pub(super) fn on_death(&mut self, incarnation: &Incarnation, now: Instant, out: &mut Out) {
        self.give_back(incarnation, now, out);
        let Some(term) = &mut self.term else { return };
        if term.stage == Stage::Leading {
            out.log(Level::Info, format!("worker {incarnation} is gone"));
            self.bury(incarnation);
        } else {
            term.died.insert(incarnation.clone());
        }
    }

    fn on_edited(&mut self, task: &TaskId, edit: &Edit, edited: Edited, now: Instant, out: &mut Out) {
        if let (Edited::Refused(refusal), Edit::Shrink { .. }) = (&edited, edit) {
            self.keep_outcome(task.clone(), *refusal, now, out);
        } else if let Edited::Refused(refusal) = &edited {
            let path = self.params.layout.task(task);
            out.log(Level::Error, format!("{path}: {refusal}; the task is set aside"));
            self.table.set_aside(task);
        }
        let Some(term) = &mut self.term else { return };
        term.failovers.on_edited(task, edit, &edited);
        // The mirror will read it too, but later: until then the task would be given out as it was before. But if
        // the mirror has seen it go, this answer is the older news, and nobody would ever correct it.
        if let Edited::Written { data, stat } = &edited
            && self.table.get(task).is_some()
        {
            self.on_task(task, data, stat, now, out);
        }
        self.note_look(task, edit, &edited, out);
        self.settle(task, now, out);
        self.touch();
    }

    /// Closes what was never registered.
    pub(super) fn close_unregistered(&mut self, now: Instant, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        let old = term.unregistered.extract_if(.., |_, since| *since + UNREGISTERED_GRACE <= now);
        for (incarnation, _) in old {
            term.book.close(&incarnation, out);
        }
    }
}

/// The tasks that these entries name.
fn tasks_of(entries: &[EntryId]) -> Vec<TaskId> {
    let tasks: BTreeSet<&TaskId> = entries.iter().map(|id| &id.task).collect();
    tasks.into_iter().cloned().collect()
}

/// The tasks that entries of these pages name.
fn tasks_on<'a>(book: &Book, pages: impl IntoIterator<Item = &'a Incarnation>) -> Vec<TaskId> {
    let entries = pages.into_iter().flat_map(|page| book.entries(page));
    let tasks: BTreeSet<&TaskId> = entries.map(|(id, _)| &id.task).collect();
    tasks.into_iter().cloned().collect()
}
