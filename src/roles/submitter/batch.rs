//! A batch: the lines of a file, stored as chunks, created through a window and collected as they end.
//!
//! A chunk that is not made yet is a *unit*. Windows and bits are counted in units, but what the user is told in lines.
//! How many lines a chunk has is decided once, when the number of slots is known, and for a key by who came first.
//!
//! Every part (one directory) is watched as a whole before its first chunk is created, so a chunk costs no watch
//! and no read until it has results. What is held is the window's lines and a few bits for each chunk that
//! waits for its outcome; lines are never read twice. A unit is `open` from the moment
//! its lines were read until its chunk is known to stand, whatever happens to connections in between. When all chunks
//! of a part stood, the part says so.

mod early;
mod end;
mod entrance;
mod outline;
mod parts;
mod replies;
mod units;
mod warm;
mod windows;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use self::early::Early;
pub use self::outline::{MAX_CHOSEN, Outline, Sizes};
use self::parts::Parts;
use self::units::Units;
use self::windows::{MAX_CREATES, MAX_UNDELETED, READ_AHEAD};
use super::access::Access;
use super::admission::Pace;
use super::mark::Mark;
use super::{DELETE_PATIENCE, keyed_batch_submitter};
use crate::contract::chunk::MAX_CHUNK_COMMANDS;
use crate::contract::task::{Job, Options, Payload, Task};
use crate::contract::{LINES_PER_PART, Layout, MAX_BATCH_LINES, MAX_TASK_BYTES, TaskId, batch_unit, name_of};
use crate::exit;
use crate::machine::{Action, Actions, Calls, ChangeKind, Event, Instant, Level, Role, earlier};
use crate::recipes::ensure::Ensure;
use crate::roles::client::notice::Notice;
use crate::roles::client::{ClientReport, Progress, Tally, Unfit, breaks_connection};

/// Parts that are made or watched at a time.
const MAX_WARMING: usize = 16;

/// Complaints about single tasks that are logged; the summary counts the others.
const MAX_COMPLAINTS: u32 = 20;

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

/// A submitter of a batch.
#[derive(Debug)]
pub struct Batch {
    layout: Layout,
    job: Option<String>,
    batch: String,
    keyed: bool,
    options: Options,
    outline: Outline,
    chunk: Option<u32>,
    detach: bool,
    cancel_on_interrupt: bool,
    online: bool,
    over: bool,
    early: Early,
    /// The mark, if one is needed, stands on this connection.
    marked: bool,
    room: Room,
    first_part: FirstPart,
    /// Directories that there are in `tasks`.
    children: Option<u64>,
    pace: Pace,
    /// `tasks` is being made.
    ensuring: bool,
    source: Source,
    /// Without a size until it has been decided.
    units: Units,
    /// Units that were read and whose tasks are not known to stand.
    open: BTreeMap<u64, Open>,
    open_bytes: usize,
    /// Those of them that are not being created.
    unsent: BTreeSet<u64>,
    parts: Parts,
    /// Tasks whose outcome was shown and that are being deleted, or are to be.
    deleting: BTreeMap<u64, Deleting>,
    /// Those of them that wait for their turn.
    shown: VecDeque<u64>,
    /// Tasks whose outcome was shown and that we do not delete.
    left: u64,
    cancelling: bool,
    complaints: u32,
    /// Only deletes are left, and there is no connection.
    give_up: Option<Instant>,
    progress: Progress,
    reported: Progress,
    tally: Tally,
    access: Access,
    notice: Notice,
    mark: Mark,
    ensure: Ensure,
    calls: Calls<Purpose>,
    creates: usize,
    /// Reads, cancels and deletes in flight.
    collects: usize,
    /// Reads among them.
    reads: usize,
    warming: usize,
}

/// Whether the parts find room below `tasks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Unknown,
    Looking,
    Found,
}

/// The first part of a keyed batch, as it stood when this connection was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstPart {
    Unknown,
    Missing,
    /// With so many lines a chunk, if it says so.
    Stands {
        chunk: Option<u32>,
    },
}

/// Where lines come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Idle,
    Asked,
    Dry,
}

#[derive(Debug)]
struct Open {
    payload: Payload,
    commands: u16,
    bytes: usize,
    /// Creations that were in doubt.
    doubts: u32,
    /// It changed before its creation was acknowledged.
    changed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Deleting {
    version: i32,
    tries: u32,
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

/// The name of a batch in a job, or of one that is a job itself.
fn name_in(job: Option<&str>, batch: &str) -> String {
    job.map_or_else(|| batch.to_string(), |job| format!("{job}~{batch}"))
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
        let mark = Mark::new(&params.layout, &params.ulid, key, params.orphan_cancel && !params.detach);
        Ok(Batch {
            pace: Pace::new(&params.layout),
            access: Access::new(&params.layout, params.credentials),
            notice: Notice::new(&params.layout),
            mark,
            ensure: Ensure::new([params.layout.tasks()]),
            layout: params.layout,
            job: params.job,
            keyed: params.key.is_some(),
            batch: params.key.unwrap_or(params.ulid),
            options,
            progress: Progress { total: params.outline.lines, ..Progress::default() },
            outline: params.outline,
            chunk: params.chunk,
            detach: params.detach,
            cancel_on_interrupt: params.cancel_on_interrupt && !params.detach,
            online: false,
            over: false,
            early: Early::default(),
            marked: false,
            room: Room::Unknown,
            first_part: FirstPart::Unknown,
            children: None,
            ensuring: false,
            source: Source::Idle,
            units: Units::default(),
            open: BTreeMap::new(),
            open_bytes: 0,
            unsent: BTreeSet::new(),
            parts: Parts::default(),
            deleting: BTreeMap::new(),
            shown: VecDeque::new(),
            left: 0,
            cancelling: false,
            complaints: 0,
            give_up: None,
            reported: Progress::default(),
            tally: Tally::default(),
            calls: Calls::default(),
            creates: 0,
            collects: 0,
            reads: 0,
            warming: 0,
        })
    }

    /// What to tell `wait`, `list` or `cancel` to mean this batch.
    pub fn name(&self) -> String {
        name_in(self.job.as_deref(), &self.batch)
    }

    fn id(&self, unit: u64) -> TaskId {
        batch_unit(self.job.as_deref(), &self.batch, unit, self.units.size())
    }

    fn path(&self, unit: u64) -> String {
        self.layout.task(&self.id(unit))
    }

    fn part_path(&self, part: u64) -> String {
        self.layout.job(self.id(part * LINES_PER_PART).dir())
    }

    /// The unit that has its task at this path.
    fn unit_at(&self, path: &str) -> Option<u64> {
        let line: u64 = name_of(path).parse().ok()?;
        let unit = line / self.units.size();
        (line < MAX_BATCH_LINES && self.path(unit) == path).then_some(unit)
    }

    /// What stands in a part: the options, how lines are put together, and how many there are.
    fn part_data(&self, part: u64) -> Job {
        let mut job = Job::new(self.options.clone());
        job.chunk = Some(self.units.size() as u32);
        job.lines = Some(self.part_lines(part));
        job
    }

    fn part_lines(&self, part: u64) -> u64 {
        self.outline.lines_of_part(part, self.units.size())
    }

    /// The task for a unit. Its options are the part's, but for the mark: a batch that is submitted again under
    /// its key adds tasks to a part that was made by a submitter that is gone.
    fn task(&self, payload: &Payload) -> Task {
        let orphan_of = self.mark.id().map(str::to_string);
        let mut task = Task::new(payload.clone(), Options { orphan_of, ..Options::default() });
        task.keyed = self.keyed;
        task
    }

    /// Logs something about one task, unless there was too much of it.
    fn complain(&mut self, why: String, out: &mut Actions<ClientReport>) {
        self.complaints += 1;
        if self.complaints <= MAX_COMPLAINTS {
            out.log(Level::Error, why);
        }
        if self.complaints == MAX_COMPLAINTS {
            out.log(Level::Error, "there may be more such tasks; they are only counted from here on");
        }
    }

    /// Does whatever can be done now.
    fn pump(&mut self, now: Instant, out: &mut Actions<ClientReport>) {
        if self.over || !self.online || !self.marked {
            return;
        }
        match self.room {
            Room::Unknown => self.look_for_room(now, out),
            Room::Looking => {}
            Room::Found => {
                let Progress { submitted, total, .. } = self.progress;
                let left = total.saturating_sub(submitted).div_ceil(self.units.size());
                self.pace.keep(now, left, out);
                self.read_lines(out);
                self.warm_parts(out);
                self.clean_up(out);
                self.collect(out);
                self.complete_parts(out);
                self.create(out);
                self.end_if_done(out);
            }
        }
    }

    fn on_connected(&mut self, out: &mut Actions<ClientReport>) {
        self.online = true;
        self.forget_calls();
        self.give_up = None;
        self.unsent = self.open.keys().copied().collect();
        self.parts.all_cold();
        if self.room == Room::Looking {
            self.room = Room::Unknown;
        }
        self.marked = self.access.on_connected(out) && self.mark.on_connected(out);
        self.shown = self.deleting.keys().copied().collect();
    }

    fn on_lost(&mut self, now: Instant) {
        self.marked = false;
        self.forget_calls();
        if self.is_waited_for() {
            self.give_up = Some(now + DELETE_PATIENCE);
        }
    }

    fn forget_calls(&mut self) {
        self.early.on_lost();
        self.calls.clear();
        self.ensure.reset();
        self.access.on_lost();
        self.mark.on_lost();
        self.pace.on_lost();
        self.ensuring = false;
        (self.creates, self.collects, self.reads, self.warming) = (0, 0, 0, 0);
    }

    fn on_changed(&mut self, path: &str, kind: ChangeKind) {
        // A creation is our own. A deletion is read too, to be sure.
        if kind == ChangeKind::Created || kind == ChangeKind::Children {
            return;
        }
        let Some(unit) = self.unit_at(path) else { return };
        match self.open.get_mut(&unit) {
            Some(open) => open.changed = true,
            None => self.parts.mark_unread(unit),
        }
    }

    fn report_progress(&mut self, out: &mut Actions<ClientReport>) {
        if self.progress != self.reported && !self.over {
            self.reported = self.progress;
            self.notice.on_progress();
            out.push(Action::Report(ClientReport::Progress(self.progress)));
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
            Event::Changed { path, kind } if self.mark.on_changed(&path, kind, out) => {}
            Event::Changed { path, kind } => self.on_changed(&path, kind),
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
            | Event::Unguarded { .. } => {}
        }
        self.pump(now, out);
        self.report_progress(out);
        let waits = self.online && self.marked && !self.over && !self.detach;
        self.notice.keep(now, waits && self.parts.pending_count() > 0, out);
    }

    fn next_wake(&self) -> Option<Instant> {
        let look = self.pace.next_wake().filter(|_| self.online && self.marked && !self.over);
        earlier(earlier(self.give_up, look), self.notice.next_wake())
    }

    fn assert_invariants(&self) {
        let Progress { submitted, done, failed, .. } = self.progress;
        let pending = self.parts.pending_commands() - self.early.count();
        assert!(self.open.len() < 2 * READ_AHEAD, "{} tasks are open", self.open.len());
        assert!(self.creates <= MAX_CREATES && self.warming <= MAX_WARMING, "too many calls in flight");
        assert!(self.deleting.len() + self.reads <= MAX_UNDELETED, "{} deletes pile up", self.deleting.len());
        assert!(
            self.detach || submitted == pending + done + failed,
            "a task was lost: {submitted} submitted, {pending} pending, {done} done, {failed} failed"
        );
    }
}

#[cfg(test)]
mod tests;
