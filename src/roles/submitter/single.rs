//! One task: create it, wait for its outcome, show it, delete it.
//!
//! Owns how far the task has got; that outlives a connection, and each new session takes it up again. It never
//! deletes what it may not: a keyed task (the key has to work after the outcome was read), one that another
//! submitter made, or one whose creation was ever in doubt (it might be made again by the doubtful request).

mod end;

use super::admission::{Answer, Demand, Gate};
use super::mark::{self, Mark};
use super::{Cancel, DELETE_PATIENCE, MAX_DELETES, Waiting, keyed_submitter};
use crate::contract::task::{Options, Payload, Task};
use crate::contract::{Labels, Layout, MAX_CHILDREN, MAX_TASK_BYTES, TaskId, is_shared, shared_job};
use crate::exit;
use crate::machine::{
    Action, Actions, Call, CallError, CallId, CallResult, Calls, ChangeKind, CreateMode, Event, Instant,
    Level, Refusal, Reply, Role, Routed, Stat,
};
use crate::recipes::ensure::{self, Ensure};
use crate::roles::client::notice::Notice;
use crate::roles::client::{ClientReport, Unfit, breaks_connection, refusal_code};

/// Changes by others that a wish to cancel may run into.
const MAX_CONFLICTS: u32 = 20;

/// The parameters of a single submit.
#[derive(Clone, Debug, PartialEq)]
pub struct SingleParams {
    /// The paths.
    pub layout: Layout,
    /// A fresh ULID: the name of the task, if the user brings no key, and of the submitter.
    pub ulid: String,
    /// The user's key.
    pub key: Option<String>,
    /// The job to put the task into; else a shared one.
    pub job: Option<String>,
    /// What to run.
    pub payload: Payload,
    /// What was set for it.
    pub options: Options,
    /// What we make is for our credentials alone.
    pub credentials: bool,
    /// Whether it waits for the outcome.
    pub waiting: Waiting,
    /// Cancel the task when we are interrupted.
    pub cancel_on_interrupt: bool,
    /// A success counts as one also if not all of its output was kept.
    pub allow_truncated: bool,
}

/// A submitter of one task.
#[derive(Debug)]
pub struct Single {
    layout: Layout,
    id: TaskId,
    task: Task,
    waiting: Waiting,
    allow_truncated: bool,
    link: Connection,
    phase: Phase,
    origin: Origin,
    cancel: Cancel,
    conflicts: u32,
    room: Room,
    mark: Mark,
    ensure: Ensure,
    notice: Notice,
    calls: Calls<Purpose>,
}

/// Who may have created the task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Origin {
    /// Creations that were in doubt, and may be applied yet for all that is known.
    doubts: u32,
    /// The task existed before us.
    attached: bool,
}

impl Origin {
    /// Whether the task is ours, and no request in doubt could create it anew.
    fn is_certainly_ours(self) -> bool {
        !self.attached && self.doubts == 0
    }
}

/// Whether there is room for the task.
#[derive(Debug)]
struct Room {
    /// What the service admits.
    gate: Gate,
    /// The stat of the job's directory, while the gate's answer is awaited.
    found: Option<Result<Reply, Refusal>>,
    /// Why the task can't be created on this session, if it can't. It may exist nevertheless.
    denied: Option<String>,
}

/// Whether there is a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    Down,
    Up {
        /// The task changed while it was being read.
        changed: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It is not known yet that the task exists.
    Submitting,
    /// It exists, and its outcome was not seen yet.
    Waiting,
    /// It succeeded, which was shown; `tries` deletes were answered with doubt.
    Deleting {
        version: i32,
        tries: u32,
        give_up: Option<Instant>,
        /// What to exit with then.
        code: i32,
    },
    /// The end was asked for.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Checks whether the job's directory has room.
    Room,
    /// Checks whether `tasks` has room for the job's directory.
    JobRoom,
    Create,
    /// Checks whether the task that has our key is ours.
    Compare,
    Read,
    Cancel,
    Delete,
}

impl Single {
    /// A submitter of the task that `params` describe.
    ///
    /// # Errors
    /// If that can't be a task.
    pub fn new(params: SingleParams) -> Result<Single, Unfit> {
        let name = params.key.as_ref().unwrap_or(&params.ulid);
        let job = params.job.unwrap_or_else(|| shared_job(name));
        let id = TaskId::new(&job, name);
        let key = params.key.as_ref().filter(|_| !params.waiting.is_detached()).map(|_| keyed_submitter(&id));
        let mark =
            Mark::new(&params.layout, &params.ulid, key, params.waiting.orphan_cancel(), params.credentials);
        let options = Options { orphan_of: mark.id().map(str::to_string), ..params.options };
        let mut task = Task::new(params.payload, options);
        task.keyed = params.key.is_some();
        let bytes = task.encode().len();
        if bytes > MAX_TASK_BYTES {
            let why = format!("the task takes {bytes} bytes; at most {MAX_TASK_BYTES} are allowed");
            return Err(Unfit { code: exit::DATA, why });
        }
        let demand = Demand { tasks: 1, bytes: bytes as u64 };
        Ok(Single {
            room: Room { gate: Gate::new(&params.layout, demand), found: None, denied: None },
            mark,
            ensure: Ensure::new([params.layout.job(&job)]),
            notice: Notice::new(&params.layout),
            layout: params.layout,
            id,
            task,
            waiting: params.waiting,
            allow_truncated: params.allow_truncated,
            link: Connection::Down,
            phase: Phase::Submitting,
            origin: Origin::default(),
            cancel: Cancel::new(params.cancel_on_interrupt),
            conflicts: 0,
            calls: Calls::default(),
        })
    }

    /// The task's id. The user may see it only when it is reported.
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    fn path(&self) -> String {
        self.layout.task(&self.id)
    }

    fn call(&mut self, call: Call, purpose: Purpose, out: &mut Actions<ClientReport>) {
        self.calls.issue(out, call, purpose);
    }

    fn over(&mut self, code: i32, out: &mut Actions<ClientReport>) {
        self.phase = Phase::Over;
        out.push(Action::Exit(code));
    }

    fn fail(&mut self, code: i32, why: String, out: &mut Actions<ClientReport>) {
        self.phase = Phase::Over;
        out.fail(code, why);
    }

    fn refused(&mut self, what: &str, refusal: Refusal, out: &mut Actions<ClientReport>) {
        let why = format!("cannot {what} the task {}: {refusal}", self.path());
        self.fail(refusal_code(refusal), why, out);
    }

    /// Takes the work up on a new session.
    fn resume(&mut self, out: &mut Actions<ClientReport>) {
        match &mut self.phase {
            // If the task is there already, it doesn't matter how full its job is.
            Phase::Submitting if self.origin.doubts > 0 => self.create(out),
            Phase::Submitting => {
                (self.room.found, self.room.denied) = (None, None);
                self.room.gate.ask(out);
                let path = self.layout.job(self.id.dir());
                self.call(Call::Exists { path, watch: false }, Purpose::Room, out);
            }
            Phase::Waiting => self.read(out),
            Phase::Deleting { give_up, .. } => {
                *give_up = None;
                self.delete(out);
            }
            Phase::Over => {}
        }
    }

    fn create(&mut self, out: &mut Actions<ClientReport>) {
        let (path, data) = (self.path(), self.task.encode());
        self.call(Call::Create { path, data, mode: CreateMode::Persistent }, Purpose::Create, out);
    }

    fn read(&mut self, out: &mut Actions<ClientReport>) {
        let changed = self.calls.purposes().any(|purpose| *purpose == Purpose::Read);
        self.note_changed(changed);
        if changed {
            return;
        }
        self.call(Call::Get { path: self.path(), watch: true }, Purpose::Read, out);
    }

    /// Notes whether the task has changed while it was being read.
    fn note_changed(&mut self, changed: bool) {
        if self.link != Connection::Down {
            self.link = Connection::Up { changed };
        }
    }

    fn delete(&mut self, out: &mut Actions<ClientReport>) {
        if let Phase::Deleting { version, .. } = self.phase {
            let call = Call::Delete { path: self.path(), version: Some(version) };
            self.call(call, Purpose::Delete, out);
        }
    }

    fn on_reply(&mut self, id: CallId, result: &CallResult, out: &mut Actions<ClientReport>) {
        if let Routed::Mine(step) = self.mark.on_reply(id, result, out) {
            return self.on_mark(step, out);
        }
        if let Routed::Mine(step) = self.ensure.on_reply(id, result, out) {
            return match step {
                ensure::Step::Pending => {}
                ensure::Step::Done => self.create(out),
                ensure::Step::Refused(path, refusal) => {
                    self.fail(refusal_code(refusal), format!("cannot make {path}: {refusal}"), out);
                }
            };
        }
        if let Routed::Mine(answer) = self.room.gate.on_reply(id, result) {
            return match answer {
                Answer::Nothing => {}
                Answer::Admitted | Answer::Unsure => self.enter(out),
                Answer::Refused(why) => {
                    self.room.denied = Some(self.room.gate.advice(&why));
                    self.enter(out);
                }
            };
        }
        let required = self.task.options.require.as_ref().unwrap_or(const { &Labels::new() });
        let awaited = || format!("the task {}", self.id);
        if let Routed::Mine(()) = self.notice.on_reply(id, result, required, awaited, out) {
            return;
        }
        match self.calls.route(id, result) {
            Routed::NotMine => {}
            Routed::Mine((purpose, Some(answer))) => self.on_answer(purpose, answer, out),
            Routed::Mine((purpose, None)) if *result == Err(CallError::MaybeApplied) => {
                self.on_doubt(purpose, out);
            }
            Routed::Mine((_, None)) => {}
        }
    }

    fn on_mark(&mut self, step: mark::Step, out: &mut Actions<ClientReport>) {
        match step {
            mark::Step::Pending => {}
            mark::Step::Ready => self.resume(out),
            mark::Step::Unfit(why) => self.fail(exit::NOT_PERMITTED, why, out),
            mark::Step::Refused(refusal) => self.refused("leave a mark for", refusal, out),
        }
    }

    fn on_answer(
        &mut self,
        purpose: Purpose,
        answer: Result<&Reply, Refusal>,
        out: &mut Actions<ClientReport>,
    ) {
        match purpose {
            Purpose::Room => {
                self.room.found = Some(answer.cloned());
                self.enter(out);
            }
            Purpose::JobRoom => self.on_job_room(answer, out),
            Purpose::Create => self.on_created(answer, out),
            Purpose::Compare => self.on_compared(answer, out),
            // The outcome was shown: what is found now, or not found any more, is no news.
            Purpose::Read | Purpose::Cancel if self.phase != Phase::Waiting => {}
            Purpose::Read => self.on_read(answer, out),
            Purpose::Cancel => self.on_cancelled(answer, out),
            Purpose::Delete => self.on_deleted(answer, out),
        }
    }

    fn on_doubt(&mut self, purpose: Purpose, out: &mut Actions<ClientReport>) {
        match (purpose, &mut self.phase) {
            (Purpose::Create, _) => self.origin.doubts += 1,
            (Purpose::Delete, Phase::Deleting { tries, .. }) => {
                *tries += 1;
                if *tries >= MAX_DELETES {
                    self.leave_to_leader(out);
                }
            }
            // Reads are made again on the next session, and show whether a cancel was applied.
            _ => {}
        }
    }

    /// Goes on when both are known: what the job's directory has, and what the service admits.
    fn enter(&mut self, out: &mut Actions<ClientReport>) {
        if self.room.gate.is_asking() {
            return;
        }
        let Some(found) = self.room.found.take() else { return };
        match found {
            _ if self.room.denied.is_some() => self.deny(out),
            Ok(Reply::Stat(stat)) if stat.num_children < MAX_CHILDREN => self.create(out),
            Ok(_) => {
                let job = self.id.dir();
                let why =
                    format!("the job {job} is full: it has {MAX_CHILDREN} tasks or more; try again later");
                self.room.denied = Some(why);
                self.deny(out);
            }
            Err(Refusal::NoNode) if is_shared(self.id.dir()) => self.ensure.start(out),
            Err(Refusal::NoNode) => {
                let path = self.layout.tasks();
                self.call(Call::Exists { path, watch: false }, Purpose::JobRoom, out);
            }
            Err(refusal) => self.refused("read the job of", refusal, out),
        }
    }

    /// The task can't be made; the one with our key may be one of those that there is no room for.
    fn deny(&mut self, out: &mut Actions<ClientReport>) {
        if self.task.keyed {
            self.compare(out);
        } else if let Some(why) = self.room.denied.take() {
            self.fail(exit::TOO_MUCH, why, out);
        }
    }

    fn on_job_room(&mut self, result: Result<&Reply, Refusal>, out: &mut Actions<ClientReport>) {
        match result {
            Ok(Reply::Stat(stat)) if stat.num_children >= MAX_CHILDREN => {
                let (tasks, n) = (self.layout.tasks(), stat.num_children);
                let why = format!("there is no room for another job: {tasks} has {n}; try again later");
                self.fail(exit::TOO_MUCH, why, out);
            }
            Ok(_) | Err(Refusal::NoNode) => self.ensure.start(out),
            Err(refusal) => self.refused("read the jobs beside that of", refusal, out),
        }
    }

    fn on_created(&mut self, result: Result<&Reply, Refusal>, out: &mut Actions<ClientReport>) {
        match result {
            Ok(_) => self.confirmed(out),
            // The name is ours alone, so it can only be a request that was in doubt. If there was one, it is so no
            // more.
            Err(Refusal::NodeExists) if self.origin.doubts > 0 && !self.task.keyed => {
                self.origin.doubts -= 1;
                self.confirmed(out);
            }
            Err(Refusal::NodeExists) => self.compare(out),
            // The leader deletes empty jobs.
            Err(Refusal::NoNode) => self.ensure.start(out),
            Err(refusal) => self.refused("create", refusal, out),
        }
    }

    fn compare(&mut self, out: &mut Actions<ClientReport>) {
        self.note_changed(false);
        self.call(Call::Get { path: self.path(), watch: true }, Purpose::Compare, out);
    }

    fn on_compared(&mut self, result: Result<&Reply, Refusal>, out: &mut Actions<ClientReport>) {
        let (data, stat) = match result {
            Ok(Reply::Data { data, stat }) => (data, stat),
            Err(Refusal::NoNode) => match self.room.denied.take() {
                Some(why) => return self.fail(exit::TOO_MUCH, why, out),
                None => return self.create(out),
            },
            Err(refusal) => return self.refused("read", refusal, out),
            Ok(reply) => return self.bug(reply, out),
        };
        let id = &self.id;
        match Task::decode(data) {
            Ok(task) if task.same_request(&self.task) => {
                self.origin.attached = true;
                self.mark.adopt(task.options.orphan_of.as_ref(), out);
                out.log(Level::Info, format!("the task {id} exists already"));
                let was_over = self.report_submitted(out);
                if !was_over {
                    self.take_in(task, *stat, out);
                }
            }
            Ok(_) => {
                let why = format!("the task {id} exists already and asks for something else");
                self.fail(exit::DATA, why, out);
            }
            Err(malformed) => {
                let why = format!("the znode {} exists already and is no task: {malformed}", self.path());
                self.fail(exit::DATA, why, out);
            }
        }
    }

    fn confirmed(&mut self, out: &mut Actions<ClientReport>) {
        let was_over = self.report_submitted(out);
        if !was_over {
            self.read(out);
        }
    }

    /// The task exists, for certain; true if that is all that was wanted.
    fn report_submitted(&mut self, out: &mut Actions<ClientReport>) -> bool {
        let id = self.id.clone();
        out.log(Level::Debug, format!("the task {id} is made"));
        out.push(Action::Report(ClientReport::Submitted { id, detached: self.waiting.is_detached() }));
        if self.waiting.is_detached() && self.cancel != Cancel::Wanted {
            self.over(exit::OK, out);
            return true;
        }
        self.phase = Phase::Waiting;
        false
    }

    fn on_read(&mut self, result: Result<&Reply, Refusal>, out: &mut Actions<ClientReport>) {
        match result {
            Ok(Reply::Data { data, stat }) => match Task::decode(data) {
                Ok(task) => self.take_in(task, *stat, out),
                Err(malformed) => {
                    let why = format!("the task {} can no longer be read: {malformed}", self.path());
                    self.fail(exit::DATA, why, out);
                }
            },
            Err(Refusal::NoNode) => {
                let why = format!("the task {} was deleted by someone before its outcome was seen", self.id);
                self.fail(exit::FAILED, why, out);
            }
            Err(refusal) => self.refused("read", refusal, out),
            Ok(reply) => self.bug(reply, out),
        }
    }

    /// Takes in the task as it is now; a watch will report its next change.
    fn take_in(&mut self, mut task: Task, stat: Stat, out: &mut Actions<ClientReport>) {
        if let Some(outcome) = task.outcome.take() {
            out.log(Level::Debug, format!("the task {} has its outcome", self.id));
            return self.ended(outcome, stat.version, out);
        }
        self.notice.on_task(&task, stat.mtime_ms);
        if self.cancel == Cancel::Wanted && !task.cancel {
            task.cancel = true;
            let call = Call::Set { path: self.path(), data: task.encode(), version: stat.version };
            self.call(call, Purpose::Cancel, out);
        } else if self.link == (Connection::Up { changed: true }) {
            self.read(out);
        }
    }

    fn on_cancelled(&mut self, result: Result<&Reply, Refusal>, out: &mut Actions<ClientReport>) {
        match result {
            // The change is our own, but the same watch may have reported another change too.
            Ok(_) | Err(Refusal::NoNode) => self.read(out),
            Err(Refusal::BadVersion) if self.conflicts < MAX_CONFLICTS => {
                self.conflicts += 1;
                self.read(out);
            }
            Err(Refusal::BadVersion) => {
                let why = format!("the task {0} keeps changing; try again: zkmw cancel {0}", self.id);
                self.fail(exit::TRY_AGAIN, why, out);
            }
            Err(refusal) => self.refused("cancel", refusal, out),
        }
    }

    fn bug(&mut self, reply: &Reply, out: &mut Actions<ClientReport>) {
        self.fail(exit::BUG, format!("a call about the task {} was answered with {reply:?}", self.id), out);
    }

    fn on_changed(&mut self, path: &str, kind: ChangeKind, out: &mut Actions<ClientReport>) {
        if let Routed::Mine(()) = self.mark.on_changed(path, kind, out) {
            return;
        }
        if self.link == Connection::Down || path != self.path() {
            return;
        }
        match self.phase {
            Phase::Waiting if self.calls.is_empty() => self.read(out),
            // Events and replies come on different ways: a change may be reported before the read that it follows.
            Phase::Submitting | Phase::Waiting => self.note_changed(true),
            Phase::Deleting { .. } | Phase::Over => {}
        }
    }
}

impl Role for Single {
    type Report = ClientReport;

    fn step(&mut self, now: Instant, event: Event, out: &mut Actions<ClientReport>) {
        if self.phase == Phase::Over {
            return;
        }
        if breaks_connection(&event) {
            self.link = Connection::Down;
        }
        match event {
            Event::Connected { .. } => {
                self.link = Connection::Up { changed: false };
                self.calls.clear();
                self.ensure.reset();
                let step = self.mark.on_connected(out);
                self.on_mark(step, out);
            }
            Event::Lost { .. } => {
                self.calls.clear();
                self.room.gate.on_lost();
                self.ensure.reset();
                self.mark.on_lost();
                if let Phase::Deleting { give_up, .. } = &mut self.phase {
                    *give_up = Some(now + DELETE_PATIENCE);
                }
            }
            Event::Changed { path, kind } => self.on_changed(&path, kind, out),
            Event::Reply { id, result } => self.on_reply(id, &result, out),
            Event::Wake => {
                if let Phase::Deleting { give_up: Some(give_up), .. } = self.phase
                    && give_up <= now
                {
                    self.leave_to_leader(out);
                }
            }
            Event::Stop { again } => self.on_stop(again, out),
            Event::Started { .. }
            | Event::NotStarted { .. }
            | Event::Ended { .. }
            | Event::SlotsLost { .. }
            | Event::Lines(_) => {}
        }
        self.notice.keep(now, self.link != Connection::Down && self.phase == Phase::Waiting, out);
    }

    fn next_wake(&self) -> Option<Instant> {
        match self.phase {
            Phase::Deleting { give_up, .. } => give_up,
            Phase::Submitting | Phase::Waiting | Phase::Over => self.notice.next_wake(),
        }
    }

    fn assert_invariants(&self) {
        assert!(self.calls.len() <= 2, "calls pile up: {:?}", self.calls);
        if let Phase::Deleting { .. } = self.phase {
            assert!(
                !self.task.keyed && self.origin.is_certainly_ours(),
                "deleting what is not ours to delete"
            );
        }
    }
}

#[cfg(test)]
mod tests;
