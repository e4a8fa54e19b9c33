//! A batch: the lines of a file, stored as chunks, created through a window and collected as they end.
//!
//! A chunk that is not made yet is a *unit*. Windows are counted in units, but what the user is told in lines.
//! How many lines a chunk has is decided once, when the number of slots is known, and for a key by who came first.
//!
//! Every part (one directory) is watched as a whole before its first chunk is created, so a chunk costs no watch
//! and no read until it has results. What is held is the window's lines and a few bytes for each chunk that
//! waits for its outcome; lines are never read twice. A unit is `open` from the moment
//! its lines were read until its chunk is known to stand, whatever happens to connections in between. When all chunks
//! of a part stood, the part says so.

mod cleaner;
mod end;
mod entrance;
mod maker;
mod outline;
mod parts;
mod plan;
mod replies;
mod results;
mod warm;

use self::cleaner::Cleaner;
use self::entrance::Entrance;
use self::maker::{Maker, READ_AHEAD};
pub use self::outline::{MAX_CHOSEN, Outline, Sizes};
use self::parts::{Parts, part_of};
use self::plan::{Plan, name_in};
use self::results::{MAX_READS, Results};
use super::admission::Pace;
use super::mark::Mark;
use super::{DELETE_PATIENCE, keyed_batch_submitter};
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

/// What a batch is told.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchParams {
    /// Where everything stands.
    pub layout: Layout,
    /// A fresh ULID: the name of the batch, if the user brings no key, and of the submitter.
    pub ulid: String,
    /// The user's key.
    pub key: Option<String>,
    /// The job to put the batch into; else it is one itself.
    pub job: Option<String>,
    /// What was set for all its tasks.
    pub options: Options,
    /// What its file is like.
    pub outline: Outline,
    /// How many lines each chunk has, if the user says so.
    pub chunk: Option<u32>,
    /// What we make is for our credentials alone.
    pub credentials: bool,
    /// Don't wait.
    pub detach: bool,
    /// The tasks are to be cancelled if we die while we wait. Means nothing together with `detach`.
    pub orphan_cancel: bool,
    /// Cancel the tasks when we are interrupted. Means nothing together with `detach`.
    pub cancel_on_interrupt: bool,
}

/// A submitter of a batch. It routes events to its parts, each of which owns its state, and decides whose call has its
/// turn before whose.
#[derive(Debug)]
pub struct Batch {
    plan: Plan,
    detach: bool,
    cancel_on_interrupt: bool,
    online: bool,
    over: bool,
    /// The mark, if one is needed, stands on this connection.
    marked: bool,
    cancelling: bool,
    /// Only deletes are left, and there is no connection.
    give_up: Option<Instant>,
    entrance: Entrance,
    /// It has come in, for good.
    inside: bool,
    pace: Pace,
    /// Makes `tasks`, where that is missing.
    ensure: Ensure,
    /// It is doing so.
    ensuring: bool,
    /// What makes chunks.
    maker: Maker,
    /// Which of them stand without an outcome.
    parts: Parts,
    /// What was told of results.
    results: Results,
    /// What cleans up.
    cleaner: Cleaner,
    notice: Notice,
    mark: Mark,
    calls: Calls<Purpose>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Looks how many parts there are already.
    Room,
    /// Looks whether the first part of a keyed batch stands already, and how its chunks were made.
    FirstPart,
    MakePart(u64),
    ComparePart(u64),
    WatchPart(u64),
    /// Reads a part of which all chunks stood, to say so in it.
    ReadPart(u64),
    CompletePart(u64),
    Create(u64),
    /// Looks whether the chunk that has the key and number is ours.
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
        let key = params.key.as_ref().filter(|_| !params.detach).map(|_| keyed_batch_submitter(&name));
        let mark = Mark::new(
            &params.layout,
            &params.ulid,
            key,
            params.orphan_cancel && !params.detach,
            params.credentials,
        );
        let tries_again = options.max_attempts.is_some();
        Ok(Batch {
            pace: Pace::new(&params.layout),
            notice: Notice::new(&params.layout),
            mark,
            ensure: Ensure::new([params.layout.tasks()]),
            ensuring: false,
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
            detach: params.detach,
            cancel_on_interrupt: params.cancel_on_interrupt && !params.detach,
            online: false,
            over: false,
            marked: false,
            cancelling: false,
            give_up: None,
            entrance: Entrance::default(),
            inside: false,
            maker: Maker::new(1),
            parts: Parts::default(),
            cleaner: Cleaner::default(),
            calls: Calls::default(),
        })
    }

    /// Does whatever can be done now.
    fn pump(&mut self, now: Instant, out: &mut Actions<ClientReport>) {
        if self.over || !self.online || !self.marked {
            return;
        }
        if !self.inside {
            return self.look(now, out);
        }
        let Progress { submitted, total, .. } = self.results.progress();
        self.pace.keep(now, total.saturating_sub(submitted), out);
        if self.maker.asks_for_lines() {
            out.push(Action::ReadLines(READ_AHEAD));
        }
        self.warm_parts(out);
        self.clean_up(out);
        self.collect(out);
        self.complete_parts(out);
        self.create(out);
        self.end_if_done(out);
    }

    /// Asks for all that has to be known first, side by side.
    fn look(&mut self, now: Instant, out: &mut Actions<ClientReport>) {
        if self.entrance.asked {
            return;
        }
        self.entrance.ask(self.plan.keyed);
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
            let Some(unit) = self.maker.next().filter(|unit| self.parts.is_warm(part_of(*unit))) else {
                break;
            };
            // Before a chunk can be cancelled for certain it has to stand.
            let closed = self.pace.is_closed() && !self.cancelling;
            if closed && !(self.plan.keyed && self.pace.may_look()) {
                break;
            }
            let Some(commands) = self.maker.commands(unit) else { break };
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
            self.maker.begin(unit);
        }
    }

    /// The size of the chunks was set by who came first with the key.
    fn too_large(&mut self, unit: u64, bytes: usize, out: &mut Actions<ClientReport>) {
        let (path, lines) = (self.plan.path(unit), self.plan.lines_of(unit));
        self.maker.drop(unit);
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
            let Some((unit, version)) = self.cleaner.next() else { break };
            let call = Call::Delete { path: self.plan.path(unit), version: Some(version) };
            self.calls.issue(out, call, Purpose::Delete(unit));
        }
    }

    fn on_connected(&mut self, out: &mut Actions<ClientReport>) {
        self.online = true;
        self.forget_calls();
        self.give_up = None;
        self.maker.on_connected();
        self.parts.all_cold();
        self.entrance.asked = false;
        self.cleaner.on_connected();
        self.marked = false;
        let step = self.mark.on_connected(out);
        self.on_mark(step, out);
    }

    fn on_lost(&mut self, now: Instant) {
        self.marked = false;
        self.forget_calls();
        if self.is_waited_for() {
            self.give_up = Some(now + DELETE_PATIENCE);
        }
    }

    fn forget_calls(&mut self) {
        self.calls.clear();
        self.ensure.reset();
        self.ensuring = false;
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
            && !self.maker.changed(unit)
        {
            self.parts.mark_unread(unit);
        }
    }

    fn on_lines(&mut self, lines: Vec<BatchLine>) {
        for unit in self.maker.on_lines(lines) {
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
            self.online = false;
        }
        match event {
            Event::Connected { .. } => self.on_connected(out),
            Event::Lost { .. } => self.on_lost(now),
            Event::Changed { path, kind } => self.on_changed(&path, kind, out),
            Event::Reply { id, result } => self.on_reply(id, &result, out),
            Event::Lines(lines) => self.on_lines(lines),
            Event::Stop { again } => self.on_stop(again, out),
            Event::Wake => {
                if self.give_up.is_some_and(|give_up| give_up <= now) {
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
        let waits = self.online && self.marked && !self.over && !self.detach;
        self.notice.keep(now, waits && self.parts.pending_count() > 0, out);
    }

    fn next_wake(&self) -> Option<Instant> {
        let look = self.pace.next_wake().filter(|_| self.online && self.marked && !self.over);
        earlier(earlier(self.give_up, look), self.notice.next_wake())
    }

    fn assert_invariants(&self) {
        let Progress { submitted, done, failed, .. } = self.results.progress();
        let pending = self.parts.pending_commands() - self.results.early();
        let open = self.maker.open_count();
        assert!(open < 2 * READ_AHEAD, "{open} tasks are open");
        assert!(self.calls.len() <= MAX_CALLS, "too many calls in flight");
        assert!(
            self.detach || submitted == pending + done + failed,
            "a task was lost: {submitted} submitted, {pending} pending, {done} done, {failed} failed"
        );
    }
}

#[cfg(test)]
mod tests;
