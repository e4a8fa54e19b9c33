//! Waiter: waits for tasks that somebody submitted, and shows their outcomes. It never writes.
//!
//! It watches so many tasks at a time and takes up another whenever one has ended, so its memory and its watches
//! don't grow with what it waits for. Of a job it waits for the tasks that exist when it comes by. A line of a batch is
//! shown when its result exists, whatever the other lines of its chunk do.

mod lines;
mod parts;

use std::collections::{BTreeMap, BTreeSet};

use self::lines::Watched;
use self::parts::AwaitedParts;

use super::client::notice::Notice;
use super::client::walk::{BareNames, Found, Target, Walk};
use super::client::{
    ClientReport, Ended, INTERRUPTED, Progress, Tally, breaks_connection, exit_code, refusal_code,
};
use crate::contract::task::{State, Task};
use crate::contract::{Labels, Layout, TaskId};
use crate::exit;
use crate::machine::{
    Action, Actions, Call, CallId, CallResult, Calls, Event, Instant, Level, Refusal, Reply, Role, Routed,
};

/// Tasks that are watched at a time.
const MAX_WATCHED: usize = 1_000;

/// Reads in flight.
const MAX_READS: usize = 64;

/// The parameters of a wait.
#[derive(Clone, Debug, PartialEq)]
pub struct WaitParams {
    /// The paths.
    pub layout: Layout,
    /// What to wait for.
    pub targets: Vec<Target>,
}

/// One who waits.
#[derive(Debug)]
pub struct Waiter {
    layout: Layout,
    walk: Walk,
    /// There is one task, and it is no chunk as far as is known: its exit code becomes ours.
    alone: bool,
    /// How many targets the user named.
    targets: usize,
    online: bool,
    over: bool,
    /// Tasks whose outcome was not seen yet.
    watched: BTreeMap<TaskId, Watched>,
    /// Those of them that have to be read. One that changes while it is being read comes in again.
    unread: BTreeSet<TaskId>,
    parts: AwaitedParts,
    calls: Calls<TaskId>,
    notice: Notice,
    progress: Progress,
    tally: Tally,
}

impl Waiter {
    /// A waiter for these.
    pub fn new(params: WaitParams) -> Waiter {
        Waiter {
            walk: Walk::new(&params.layout, params.targets.iter().cloned())
                .with_parts()
                .with_bare_names(BareNames::All),
            notice: Notice::new(&params.layout),
            layout: params.layout,
            alone: matches!(params.targets.as_slice(), [Target::Task(_)]),
            targets: params.targets.len(),
            online: false,
            over: false,
            watched: BTreeMap::new(),
            unread: BTreeSet::new(),
            parts: AwaitedParts::default(),
            calls: Calls::default(),
            progress: Progress::default(),
            tally: Tally::default(),
        }
    }

    fn fail(&mut self, code: i32, why: String, out: &mut Actions<ClientReport>) {
        self.over = true;
        out.fail(code, why);
    }

    /// Takes up more tasks, reads what has to be read, and ends when nothing is left.
    fn pump(&mut self, out: &mut Actions<ClientReport>) {
        while self.online && self.watched.len() < MAX_WATCHED {
            let Some(Found { id, named, line }) = self.walk.next(out) else { break };
            // A name alone may turn out to be a task's.
            self.alone |= named && self.targets == 1;
            let watched = self.watched.entry(id.clone()).or_insert_with(|| Watched::new(named));
            let before = watched.commands();
            watched.take_up(line);
            self.progress.submitted = self.progress.submitted + watched.commands() - before;
            self.unread.insert(id);
        }
        while self.online && self.calls.len() < MAX_READS {
            let Some(id) = self.unread.pop_first() else { break };
            let call = Call::Get { path: self.layout.task(&id), watch: true };
            self.calls.issue(out, call, id);
        }
        if !self.over && self.watched.is_empty() && self.walk.is_over() {
            self.end(out);
        }
    }

    fn end(&mut self, out: &mut Actions<ClientReport>) {
        self.over = true;
        let missing = self.parts.missing();
        self.progress.submitted += missing.collected;
        self.progress.done += missing.collected;
        for (batch, lines) in missing.unknown {
            let why = format!(
                "the batch {batch} was not submitted to its end, or not yet: of {lines} of its lines nobody knows \
                 whether they were never made, or have succeeded and were collected"
            );
            out.log(Level::Error, why);
            self.tally.wrong(exit::FAILED);
        }
        if self.progress.submitted == 0 && self.tally == Tally::default() {
            out.log(Level::Warn, "there is no task to wait for: all were collected already");
        }
        if !self.alone {
            let total = self.progress.submitted;
            out.push(Action::Report(ClientReport::Summary(Progress { total, ..self.progress })));
        }
        out.push(Action::Exit(self.tally.code()));
    }

    fn on_reply(&mut self, id: CallId, result: &CallResult, out: &mut Actions<ClientReport>) {
        if let Routed::Mine(step) = self.walk.on_reply(id, result) {
            if let Some((code, why)) = step.settle(&mut self.tally, out) {
                self.fail(code, why, out);
            }
            self.walk.take_parts().into_iter().for_each(|part| self.parts.meet(part));
            return;
        }
        // What the tasks require is not kept.
        let awaited = || awaited(&self.watched);
        if let Routed::Mine(()) = self.notice.on_reply(id, result, &Labels::new(), awaited, out) {
            return;
        }
        // Without an answer the connection is gone; everything is read again on the next.
        if let Routed::Mine((task, Some(answer))) = self.calls.route(id, result) {
            self.on_read(task, answer, out);
        }
    }

    fn on_read(&mut self, task: TaskId, answer: Result<&Reply, Refusal>, out: &mut Actions<ClientReport>) {
        let Some(watched) = self.watched.get_mut(&task) else { return };
        match answer {
            Ok(Reply::Data { data, .. }) => {
                watched.doubtful = false;
                match Task::decode(data) {
                    Ok(found) => self.found(task, found, out),
                    Err(malformed) => {
                        let why = format!("the znode {} is no task: {malformed}", self.layout.task(&task));
                        self.lost(&task, exit::DATA, why, out);
                    }
                }
            }
            Ok(reply) => self.fail(exit::BUG, format!("the read of {task} was answered with {reply:?}"), out),
            Err(Refusal::NoNode) if watched.doubtful => {
                let why = match watched.names().join(", ").as_str() {
                    "" => format!("there is no task {task}"),
                    names => format!("there is no line {names}, or it has succeeded and was collected"),
                };
                self.lost(&task, exit::DATA, why, out);
            }
            Err(Refusal::NoNode) if watched.is_whole() && self.parts.is_made(task.dir()) => {
                // It is one of the missing now.
                let (shown, open) = (watched.commands() - watched.open(), watched.open());
                self.progress.submitted -= open;
                self.parts.saw(task.dir(), shown);
                self.unread.remove(&task);
                self.watched.remove(&task);
            }
            Err(Refusal::NoNode) => {
                let name = watched.name(&task);
                let why = format!("the task {name} was deleted by someone before its outcome was seen");
                self.lost(&task, exit::FAILED, why, out);
            }
            Err(refusal) => {
                let why = format!("cannot read the task {}: {refusal}", self.layout.task(&task));
                self.lost(&task, refusal_code(refusal), why, out);
            }
        }
    }

    /// A chunk counts for its commands from when it was first read, and is waited for as a batch is.
    fn found(&mut self, id: TaskId, task: Task, out: &mut Actions<ClientReport>) {
        if task.commands.is_none() {
            let Some(outcome) = task.outcome else { return };
            let alone = self.alone;
            self.show(vec![Ended { id: id.clone(), line: None, outcome, alone }], out);
            self.forget(&id);
            return;
        }
        let is_over = task.outcome.is_some();
        let Some(watched) = self.watched.get_mut(&id) else { return };
        let before = watched.commands();
        let (ended, unknown) = watched.take_new(&id, &task);
        self.progress.submitted = self.progress.submitted + watched.commands() - before;
        self.alone &= watched.is_one_line();
        let (alone, is_settled) = (self.alone, is_over || watched.open() == 0);
        self.show(ended.into_iter().map(|one| Ended { alone, ..one }).collect(), out);
        for name in unknown {
            out.log(Level::Error, format!("there is no line {name}"));
            self.progress.failed += 1;
            self.tally.wrong(exit::DATA);
        }
        if is_settled {
            self.forget(&id);
        }
    }

    fn show(&mut self, ended: Vec<Ended>, out: &mut Actions<ClientReport>) {
        if ended.is_empty() {
            return;
        }
        self.notice.on_progress();
        for Ended { outcome, .. } in &ended {
            if outcome.state == State::Done {
                self.progress.done += 1;
            } else {
                self.progress.failed += 1;
                self.tally.wrong(if self.alone { exit_code(outcome) } else { exit::FAILED });
            }
        }
        out.push(Action::Report(ClientReport::Ended(ended)));
        self.report_progress(out);
    }

    /// The task's outcome will never be seen.
    fn lost(&mut self, id: &TaskId, code: i32, why: String, out: &mut Actions<ClientReport>) {
        let open = self.forget(id);
        out.log(Level::Error, why);
        self.progress.failed += open;
        self.tally.wrong(code);
        self.report_progress(out);
    }

    /// How many commands of the task were waited for still.
    fn forget(&mut self, id: &TaskId) -> u64 {
        self.unread.remove(id);
        let Some(watched) = self.watched.remove(id) else { return 0 };
        if watched.is_whole() {
            self.parts.saw(id.dir(), watched.commands());
        }
        watched.open()
    }

    fn report_progress(&self, out: &mut Actions<ClientReport>) {
        if !self.alone {
            let total = if self.walk.is_over() { self.progress.submitted } else { 0 };
            out.push(Action::Report(ClientReport::Progress(Progress { total, ..self.progress })));
        }
    }

    /// Everything that is waited for has to be read again: the watches are gone.
    fn on_connected(&mut self) {
        self.online = true;
        self.calls.clear();
        self.walk.on_connected();
        self.unread = self.watched.keys().cloned().collect();
    }

    fn on_changed(&mut self, path: &str) {
        if let Some(id) = self.layout.task_at(path)
            && self.watched.contains_key(&id)
        {
            self.unread.insert(id);
        }
    }
}

/// What is waited for, in words.
fn awaited(watched: &BTreeMap<TaskId, Watched>) -> String {
    let open: u64 = watched.values().map(Watched::open).sum();
    match watched.first_key_value() {
        Some((id, watched)) if open == 1 => format!("the task {}", watched.name(id)),
        _ => format!("{open} tasks"),
    }
}

impl Role for Waiter {
    type Report = ClientReport;

    fn step(&mut self, now: Instant, event: Event, out: &mut Actions<ClientReport>) {
        if self.over {
            return;
        }
        if breaks_connection(&event) {
            self.online = false;
        }
        match event {
            Event::Connected { .. } => self.on_connected(),
            Event::Lost { .. } => {
                self.calls.clear();
                self.walk.on_lost();
            }
            Event::Changed { path, .. } => self.on_changed(&path),
            Event::Reply { id, result } => self.on_reply(id, &result, out),
            Event::Stop { .. } => {
                let why = "interrupted; the tasks go on, and zkmw wait comes back to them".to_string();
                self.fail(INTERRUPTED, why, out);
            }
            Event::Wake
            | Event::Started { .. }
            | Event::NotStarted { .. }
            | Event::Ended { .. }
            | Event::SlotsLost { .. }
            | Event::Lines(_) => {}
        }
        if !self.over {
            self.pump(out);
        }
        let waits = self.online && !self.over && !self.watched.is_empty();
        self.notice.keep(now, waits, out);
    }

    fn next_wake(&self) -> Option<Instant> {
        self.notice.next_wake()
    }

    fn assert_invariants(&self) {
        assert!(self.watched.len() <= MAX_WATCHED, "too many tasks watched");
        assert!(self.calls.len() <= MAX_READS, "too many reads in flight");
        assert!(self.unread.len() <= self.watched.len(), "reading what nobody waits for");
    }
}

#[cfg(test)]
mod tests;
