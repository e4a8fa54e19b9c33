//! A batch: the lines of a file, submitted as chunks.
//!
//! The life of a batch:
//!
//! 1. *Preflight* (`preflight`, `admission`). The submitter reads the leader's summary and counts the directories below
//!    `tasks`. If there is no room, it ends. It decides once how many lines a chunk has; for a batch with a key that
//!    began earlier, the first part says so. From then on `plan` knows the path of every chunk.
//! 2. *Parts* (`parts`, `part_calls`). A part is a directory with up to `LINES_PER_PART` chunks. The submitter creates
//!    it and sets one persistent watch on all of it, before it creates the first chunk there. So a chunk costs no
//!    watch, and no read until it has results.
//! 3. *Window* (`open_chunks`). Lines are read ahead and put together to chunks. A chunk is *open* from the moment
//!    its lines were read until it is known to exist, whatever happens to connections in between. Lines are read once,
//!    and memory holds those of open chunks only.
//! 4. *Replies* (`replies`). An acknowledged create makes the chunk *pending*. If the answer was lost, the create is
//!    sent again on the next connection, and `NodeExists` says that the first one was applied.
//! 5. *Results* (`results`). The watch reports that a pending chunk changed; the submitter reads it and shows each
//!    result once. When the chunk has its outcome, it is no longer pending.
//! 6. *Clean-up* (`deletes`, `part_calls`). A chunk whose lines all succeeded is deleted. A part whose chunks were all
//!    created is marked as complete: what is missing there later has succeeded and was collected.
//! 7. *Done* (`end`). When no chunk is open or pending, the summary is shown and the process exits.
//!
//! Code that runs before a chunk exists calls it a *unit*. Calls are counted in units, progress in lines.

mod deletes;
mod end;
mod open_chunks;
mod outline;
mod part_calls;
mod parts;
mod plan;
mod preflight;
mod replies;
mod results;

use self::deletes::Deletes;
use self::open_chunks::{OpenChunks, READ_AHEAD};
pub use self::outline::{MAX_CHOSEN, Outline, Sizes};
use self::parts::{Parts, part_of};
use self::plan::{Plan, name_in};
use self::preflight::Preflight;
use self::results::{MAX_READS, Results};
use super::admission::Pace;
use super::mark::Mark;
use super::{Cancel, DELETE_PATIENCE, Waiting, keyed_batch_submitter};
use crate::contract::chunk::MAX_CHUNK_COMMANDS;
use crate::contract::task::{Job, Options};
use crate::contract::{Layout, MAX_BATCH_LINES, MAX_TASK_BYTES};
use crate::exit;
use crate::machine::{
    Action, Actions, BatchLine, Call, Calls, ChangeKind, CreateMode, Event, Instant, Role, Routed, earlier,
};
use crate::recipes::ensure::Ensure;
use crate::roles::client::notice::Notice;
use crate::roles::client::{ClientReport, Progress, Unfit, breaks_connection};

/// Calls about parts and chunks in flight, as many as a client has threads: servers carry out many at a time more
/// cheaply than few (docs/design/performance.md).
const MAX_CALLS: usize = 640;

/// The configuration of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchParams {
    /// The paths.
    pub layout: Layout,
    /// A fresh ULID: the name of the batch, if the user brings no key, and of the submitter.
    pub ulid: String,
    /// The user's key.
    pub key: Option<String>,
    /// The job to put the batch into; else it is one itself.
    pub job: Option<String>,
    /// What was set for all its tasks.
    pub options: Options,
    /// The properties of its file.
    pub outline: Outline,
    /// How many lines each chunk has, if the user set it.
    pub chunk: Option<u32>,
    /// What we create is readable with our credentials only.
    pub credentials: bool,
    /// Whether it waits for the outcomes.
    pub waiting: Waiting,
    /// Cancel the tasks when we are interrupted. Means nothing together with `detach`.
    pub cancel_on_interrupt: bool,
}

/// A submitter of a batch. It routes events to the fields below, each of which owns its state, and decides which calls
/// go first.
#[derive(Debug)]
pub struct Batch {
    plan: Plan,
    waiting: Waiting,
    cancel: Cancel,
    link: Connection,
    over: bool,
    preflight: Preflight,
    pace: Pace,
    /// Creates `tasks`, if it is missing.
    ensure: Ensure,
    /// Chunks that are not known to exist.
    open_chunks: OpenChunks,
    /// Parts, and the chunks in them that have no outcome yet.
    parts: Parts,
    /// What was shown to the user.
    results: Results,
    /// Chunks that are to be deleted.
    deletes: Deletes,
    notice: Notice,
    mark: Mark,
    calls: Calls<Purpose>,
}

/// Whether there is a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    /// There is none.
    Down {
        /// Only deletes are left: when to end without them.
        give_up: Option<Instant>,
    },
    /// There is one. It has no mark yet.
    Up,
    /// There is one. The mark, if one is needed, exists on it.
    Marked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Counts the directories below `tasks`.
    Room,
    /// Reads the first part of a keyed batch: whether it exists, and how many lines its chunks have.
    FirstPart,
    MakePart(u64),
    ComparePart(u64),
    WatchPart(u64),
    /// Reads a part whose chunks were all created, to mark it as complete.
    ReadPart(u64),
    CompletePart(u64),
    Create(u64),
    /// Reads a chunk that exists already under our key: is it the same request?
    Compare(u64),
    Read(u64),
    Cancel(u64),
    Delete(u64),
}

impl Batch {
    /// A submitter of the batch that `params` describe.
    ///
    /// # Errors
    /// If that can't be a batch.
    pub fn new(params: BatchParams) -> Result<Batch, Unfit> {
        let BatchParams { outline, chunk, .. } = &params;
        if outline.end > MAX_BATCH_LINES {
            let why = format!("the batch has {} lines; at most {MAX_BATCH_LINES} are allowed", outline.end);
            return Err(Unfit { code: exit::TOO_MUCH, why });
        }
        if let Some(chunk) = chunk.filter(|chunk| *chunk > MAX_CHUNK_COMMANDS as u32) {
            let why = format!("chunks of {chunk} lines; at most {MAX_CHUNK_COMMANDS} are allowed");
            return Err(Unfit { code: exit::TOO_MUCH, why });
        }
        let options = Options { orphan_of: None, ..params.options };
        let bytes = Job::new(options.clone()).encode().len();
        if bytes > MAX_TASK_BYTES {
            let why = format!("the options take {bytes} bytes; at most {MAX_TASK_BYTES} are allowed");
            return Err(Unfit { code: exit::DATA, why });
        }
        let name = name_in(params.job.as_deref(), params.key.as_ref().unwrap_or(&params.ulid));
        let key = params
            .key
            .as_ref()
            .filter(|_| !params.waiting.is_detached())
            .map(|_| keyed_batch_submitter(&name));
        let mark =
            Mark::new(&params.layout, &params.ulid, key, params.waiting.orphan_cancel(), params.credentials);
        let tries_again = options.max_attempts.is_some();
        Ok(Batch {
            pace: Pace::new(&params.layout),
            notice: Notice::new(&params.layout),
            mark,
            ensure: Ensure::new([params.layout.tasks()]),
            results: Results::new(params.outline.lines, tries_again),
            plan: Plan {
                layout: params.layout,
                job: params.job,
                keyed: params.key.is_some(),
                batch: params.key.unwrap_or(params.ulid),
                options,
                outline: params.outline,
                chunk: params.chunk,
                size: 1,
            },
            waiting: params.waiting,
            cancel: Cancel::new(params.cancel_on_interrupt && !params.waiting.is_detached()),
            link: Connection::Down { give_up: None },
            over: false,
            preflight: Preflight::default(),
            open_chunks: OpenChunks::new(1),
            parts: Parts::default(),
            deletes: Deletes::default(),
            calls: Calls::default(),
        })
    }

    /// Does whatever can be done now.
    fn pump(&mut self, now: Instant, out: &mut Actions<ClientReport>) {
        if self.over || self.link != Connection::Marked {
            return;
        }
        if !self.preflight.is_admitted() {
            return self.ask_preflight(now, out);
        }
        let Progress { submitted, total, .. } = self.results.progress();
        self.pace.keep(now, total.saturating_sub(submitted), out);
        if self.open_chunks.asks_for_lines() {
            out.push(Action::ReadLines(READ_AHEAD));
        }
        self.prepare_parts(out);
        self.clean_up(out);
        self.collect(out);
        self.complete_parts(out);
        self.create(out);
        self.end_if_done(out);
    }

    /// Sends all questions of the preflight at once.
    fn ask_preflight(&mut self, now: Instant, out: &mut Actions<ClientReport>) {
        if self.preflight.is_asked() {
            return;
        }
        self.preflight.ask(self.plan.keyed);
        self.pace.enter(now, out);
        self.calls.issue(out, Call::Exists { path: self.plan.layout.tasks(), watch: false }, Purpose::Room);
        if self.plan.keyed {
            let call = Call::Get { path: self.plan.part_path(0), watch: false };
            self.calls.issue(out, call, Purpose::FirstPart);
        }
    }

    /// Whether another call may be made.
    fn has_room(&self) -> bool {
        self.calls.len() < MAX_CALLS
    }

    fn create(&mut self, out: &mut Actions<ClientReport>) {
        while self.has_room() {
            let Some(unit) = self.open_chunks.next().filter(|unit| self.parts.is_watched(part_of(*unit)))
            else {
                break;
            };
            // A chunk can be cancelled for certain only when it exists.
            let closed = self.pace.is_closed() && self.cancel != Cancel::Wanted;
            if closed && !(self.plan.keyed && self.pace.may_compare()) {
                break;
            }
            let Some(commands) = self.open_chunks.commands(unit) else { break };
            let path = self.plan.path(unit);
            if closed {
                self.calls.issue(out, Call::Get { path, watch: false }, Purpose::Compare(unit));
            } else {
                let data = self.plan.task(unit, commands, self.mark.id()).encode();
                if data.len() > MAX_TASK_BYTES {
                    return self.too_large(unit, data.len(), out);
                }
                let call = Call::Create { path, data, mode: CreateMode::Persistent };
                self.calls.issue(out, call, Purpose::Create(unit));
            }
            self.open_chunks.begin(unit);
        }
    }

    /// Another submitter with the same key chose the size of the chunks, and one of ours does not fit.
    fn too_large(&mut self, unit: u64, bytes: usize, out: &mut Actions<ClientReport>) {
        let (path, lines) = (self.plan.path(unit), self.plan.lines_of(unit));
        self.open_chunks.drop(unit);
        let why = format!(
            "cannot create {path} ({lines}): the chunk has {bytes} bytes; at most {MAX_TASK_BYTES} are allowed"
        );
        self.fail(exit::DATA, why, out);
    }

    fn collect(&mut self, out: &mut Actions<ClientReport>) {
        while self.has_room() && self.results.reads() < MAX_READS {
            let Some(unit) = self.parts.next_unread() else { break };
            if self.results.begin_read(unit) {
                let call = Call::Get { path: self.plan.path(unit), watch: false };
                self.calls.issue(out, call, Purpose::Read(unit));
            }
        }
    }

    /// Deletes what was shown before more is read: what is gone soon need not be read by masters.
    fn clean_up(&mut self, out: &mut Actions<ClientReport>) {
        while self.has_room() {
            let Some((unit, version)) = self.deletes.next() else { break };
            let call = Call::Delete { path: self.plan.path(unit), version: Some(version) };
            self.calls.issue(out, call, Purpose::Delete(unit));
        }
    }

    fn on_connected(&mut self, out: &mut Actions<ClientReport>) {
        self.link = Connection::Up;
        self.forget_calls();
        self.open_chunks.on_connected();
        self.parts.on_connected();
        self.preflight.on_connected();
        self.deletes.on_connected();
        let step = self.mark.on_connected(out);
        self.on_mark(step, out);
    }

    fn on_lost(&mut self, now: Instant) {
        self.forget_calls();
        self.link = Connection::Down { give_up: self.is_waited_for().then(|| now + DELETE_PATIENCE) };
    }

    /// When to end although deletes are left.
    fn give_up(&self) -> Option<Instant> {
        match self.link {
            Connection::Down { give_up } => give_up,
            Connection::Up | Connection::Marked => None,
        }
    }

    fn forget_calls(&mut self) {
        self.calls.clear();
        self.ensure.reset();
        self.results.on_lost();
        self.mark.on_lost();
        self.pace.on_lost();
    }

    fn on_changed(&mut self, path: &str, kind: ChangeKind, out: &mut Actions<ClientReport>) {
        if let Routed::Mine(()) = self.mark.on_changed(path, kind, out) {
            return;
        }
        // A creation is our own. A deletion is read too, to be sure.
        if kind == ChangeKind::Created || kind == ChangeKind::Children {
            return;
        }
        if let Some(unit) = self.plan.unit_at(path)
            && !self.open_chunks.changed(unit)
        {
            self.parts.mark_unread(unit);
        }
    }

    fn on_lines(&mut self, lines: Vec<BatchLine>) {
        for unit in self.open_chunks.on_lines(lines) {
            self.parts.open(part_of(unit));
        }
    }
}

impl Role for Batch {
    type Report = ClientReport;

    fn step(&mut self, now: Instant, event: Event, out: &mut Actions<ClientReport>) {
        if self.over {
            return;
        }
        if breaks_connection(&event) {
            self.link = Connection::Down { give_up: None };
        }
        match event {
            Event::Connected { .. } => self.on_connected(out),
            Event::Lost { .. } => self.on_lost(now),
            Event::Changed { path, kind } => self.on_changed(&path, kind, out),
            Event::Reply { id, result } => self.on_reply(id, &result, out),
            Event::Lines(lines) => self.on_lines(lines),
            Event::Stop { again } => self.on_stop(again, out),
            Event::Wake => {
                if self.give_up().is_some_and(|give_up| give_up <= now) {
                    self.end(out);
                }
            }
            Event::Started { .. }
            | Event::NotStarted { .. }
            | Event::Ended { .. }
            | Event::SlotsLost { .. } => {}
        }
        self.pump(now, out);
        if !self.over && self.results.report(out) {
            self.notice.on_progress();
        }
        let waits = self.link == Connection::Marked && !self.over && !self.waiting.is_detached();
        self.notice.keep(now, waits && self.parts.pending_count() > 0, out);
    }

    fn next_wake(&self) -> Option<Instant> {
        let check = self.pace.next_wake().filter(|_| self.link == Connection::Marked && !self.over);
        earlier(earlier(self.give_up(), check), self.notice.next_wake())
    }

    fn assert_invariants(&self) {
        let Progress { submitted, done, failed, .. } = self.results.progress();
        let pending = self.parts.pending_commands() - self.results.early();
        let open = self.open_chunks.open_count();
        assert!(open < 2 * READ_AHEAD, "{open} tasks are open");
        assert!(self.calls.len() <= MAX_CALLS, "too many calls in flight");
        assert!(
            self.waiting.is_detached() || submitted == pending + done + failed,
            "a task was lost: {submitted} submitted, {pending} pending, {done} done, {failed} failed"
        );
    }
}

#[cfg(test)]
mod tests;
