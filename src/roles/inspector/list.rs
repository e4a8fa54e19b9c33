//! A list of tasks, in the order of their ids within each job, as far as it goes.
//!
//! It reads through a window and reports in order, so it holds no more than the window however long the list is.

use std::collections::BTreeMap;
use std::ops::Range;

use super::running::{self, Running};
use crate::contract::line::line_name;
use crate::contract::task::{Outcome, Task};
use crate::contract::{Incarnation, Layout, TaskId};
use crate::exit;
use crate::machine::{
    Action, Actions, Call, CallId, CallResult, Calls, Event, Instant, Level, Refusal, Reply, Role, Routed,
};
use crate::roles::client::walk::{Target, Walk};
use crate::roles::client::{
    ClientReport, INTERRUPTED, Row, RowTask, Tally, TaskStatus, Unreadable, breaks_connection, refusal_code,
    start_of,
};

/// Tasks that are read, or were read and wait for their turn.
const WINDOW: usize = 128;

/// The parameters of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct ListParams {
    /// The paths.
    pub layout: Layout,
    /// The job whose tasks are listed; else all.
    pub job: Option<String>,
    /// The states that are listed; all if there are none.
    pub states: Vec<TaskStatus>,
    /// Only tasks that a worker of this id has, or had to their end.
    pub worker: Option<String>,
    /// Only tasks that were created then, in ms since 1970 by the ensemble's clock.
    pub created_ms: Range<i64>,
    /// How many tasks to list at most.
    pub limit: u64,
    /// The time now, in ms since 1970.
    pub now_ms: i64,
}

/// One who lists tasks.
#[derive(Debug)]
pub struct List {
    layout: Layout,
    filter: Filter,
    now_ms: i64,
    left: u64,
    walk: Walk,
    online: bool,
    over: bool,
    running: Running,
    /// The picture of what runs is made.
    has_running: bool,
    /// Tasks from the first that was not reported yet, by their position in the list.
    window: BTreeMap<u64, WindowEntry>,
    next: u64,
    calls: Calls<u64>,
    tally: Tally,
}

/// Which tasks are listed.
#[derive(Debug)]
struct Filter {
    /// In these states; in any if there are none.
    states: Vec<TaskStatus>,
    worker: Option<String>,
    created_ms: Range<i64>,
}

impl Filter {
    fn fits(&self, task: &RowTask) -> bool {
        let worker = task.worker.as_ref().map(Incarnation::worker);
        (self.states.is_empty() || self.states.contains(&task.status))
            && self.created_ms.contains(&task.created_ms)
            && self.worker.as_deref().is_none_or(|wanted| worker == Some(wanted))
    }

    /// Whether a task that cannot be read is listed: only if all tasks are.
    fn fits_unreadable(&self) -> bool {
        self.states.is_empty() && self.worker.is_none() && self.created_ms == (i64::MIN..i64::MAX)
    }
}

#[derive(Debug)]
enum WindowEntry {
    Reading(TaskId),
    /// What is listed of it.
    Read(Vec<Row>),
}

impl List {
    /// One who lists these.
    pub fn new(params: ListParams) -> List {
        let target = params.job.map_or(Target::All, Target::Job);
        let mut states = params.states;
        states.sort_unstable();
        List {
            walk: Walk::new(&params.layout, [target]),
            running: Running::new(&params.layout),
            layout: params.layout,
            // Running tasks matter only to distinguish them from pending ones.
            has_running: !states.is_empty()
                && states.iter().all(|state| matches!(state, TaskStatus::Ended(_))),
            filter: Filter { states, worker: params.worker, created_ms: params.created_ms },
            now_ms: params.now_ms,
            left: params.limit,
            online: false,
            over: false,
            window: BTreeMap::new(),
            next: 0,
            calls: Calls::default(),
            tally: Tally::default(),
        }
    }

    fn fail(&mut self, code: i32, why: String, out: &mut Actions<ClientReport>) {
        self.over = true;
        out.fail(code, why);
    }

    fn end(&mut self, out: &mut Actions<ClientReport>) {
        self.over = true;
        out.push(Action::Exit(self.tally.code()));
    }

    fn pump(&mut self, out: &mut Actions<ClientReport>) {
        if self.over || !self.online || !self.has_running {
            return;
        }
        self.report(out);
        while !self.over && self.window.len() < WINDOW {
            let Some(found) = self.walk.next(out) else { break };
            self.read(self.next, &found.id, out);
            self.window.insert(self.next, WindowEntry::Reading(found.id));
            self.next += 1;
        }
        if !self.over && self.window.is_empty() && self.walk.is_over() {
            self.end(out);
        }
    }

    fn read(&mut self, position: u64, id: &TaskId, out: &mut Actions<ClientReport>) {
        self.calls.issue(out, Call::Get { path: self.layout.task(id), watch: false }, position);
    }

    /// Reports what is next in order, as far as it was read.
    fn report(&mut self, out: &mut Actions<ClientReport>) {
        while let Some(first) = self.window.first_entry()
            && matches!(first.get(), WindowEntry::Read(_))
        {
            let WindowEntry::Read(rows) = first.remove() else { continue };
            for row in rows {
                if self.left == 0 {
                    out.log(Level::Warn, "there are more tasks than the limit: see --limit");
                    return self.end(out);
                }
                self.left -= 1;
                out.push(Action::Report(ClientReport::Row(Box::new(row))));
            }
        }
    }

    fn on_reply(&mut self, id: CallId, result: &CallResult, out: &mut Actions<ClientReport>) {
        if let Routed::Mine(step) = self.running.on_reply(id, result, out) {
            return match step {
                running::Step::Pending => {}
                running::Step::Done => self.has_running = true,
                running::Step::Refused(path, refusal) => {
                    self.fail(refusal_code(refusal), format!("cannot read {path}: {refusal}"), out);
                }
            };
        }
        if let Routed::Mine(step) = self.walk.on_reply(id, result) {
            if let Some((code, why)) = step.settle(&mut self.tally, out) {
                self.fail(code, why, out);
            }
            return;
        }
        let Routed::Mine((position, Some(answer))) = self.calls.route(id, result) else { return };
        let Some(WindowEntry::Reading(id)) = self.window.get(&position) else { return };
        let id = id.clone();
        let rows = match answer {
            Ok(Reply::Data { data, stat }) => self.rows(&id, data, stat.ctime_ms),
            // It was collected since its job was listed.
            Err(Refusal::NoNode) => Vec::new(),
            Err(refusal) if self.filter.fits_unreadable() => {
                vec![Row { name: id.to_string(), task: Err(Unreadable::Refused(refusal)) }]
            }
            Err(_) => Vec::new(),
            Ok(reply) => {
                return self.fail(exit::BUG, format!("the read of {id} was answered with {reply:?}"), out);
            }
        };
        self.window.insert(position, WindowEntry::Read(rows));
    }

    /// A task, or the lines of a chunk.
    fn rows(&self, id: &TaskId, data: &[u8], created_ms: i64) -> Vec<Row> {
        let task = match Task::decode(data) {
            Ok(task) => task,
            // A user who asks for certain states doesn't ask for tasks without one.
            Err(malformed) if self.filter.fits_unreadable() => {
                return vec![Row { name: id.to_string(), task: Err(Unreadable::Malformed(malformed)) }];
            }
            Err(_) => return Vec::new(),
        };
        let age_ms = self.now_ms.saturating_sub(created_ms).max(0);
        let priority = task.options.priority.unwrap_or(0);
        if let Some(commands) = &task.commands {
            let row = |line: running::Line| {
                let outcome = task.command_outcome(line.position).map(|outcome| outcome.bare());
                let worker = outcome.as_ref().and_then(|outcome| outcome.worker.clone()).or(line.holder);
                let (attempt, status) = (outcome.as_ref().map(|outcome| outcome.attempt), line.status);
                let command = commands.get(line.position).map_or(String::new(), |line| start_of(line));
                let task =
                    RowTask { status, attempt, priority, worker, created_ms, age_ms, outcome, command };
                (line_name(id, line.line), task)
            };
            let lines = self.running.lines(id, &task).into_iter().map(row);
            let lines = lines.filter(|(_, task)| self.filter.fits(task));
            return lines.map(|(name, task)| Row { name, task: Ok(task) }).collect();
        }
        let holder = self.running.worker_of(id, &task);
        let status = TaskStatus::of(&task, holder);
        let outcome = task.outcome.as_ref().map(Outcome::bare);
        let worker = outcome.as_ref().map_or(holder, |outcome| outcome.worker.as_ref()).cloned();
        let command = start_of(&task.command.unwrap_or_else(|| task.argv.unwrap_or_default().join(" ")));
        let attempt = Some(task.attempt);
        let task = RowTask { status, attempt, priority, worker, created_ms, age_ms, outcome, command };
        let row = self.filter.fits(&task).then(|| Row { name: id.to_string(), task: Ok(task) });
        row.into_iter().collect()
    }
}

impl Role for List {
    type Report = ClientReport;

    fn step(&mut self, _now: Instant, event: Event, out: &mut Actions<ClientReport>) {
        if self.over {
            return;
        }
        if breaks_connection(&event) {
            self.online = false;
        }
        match event {
            Event::Connected { .. } => {
                self.online = true;
                self.calls.clear();
                self.walk.on_connected();
                if !self.has_running {
                    self.running.start(out);
                }
                let again: Vec<(u64, TaskId)> = self.window.iter().filter_map(reading).collect();
                for (position, id) in again {
                    self.read(position, &id, out);
                }
            }
            Event::Lost { .. } => {
                self.calls.clear();
                self.walk.on_lost();
                self.running.on_lost();
            }
            Event::Reply { id, result } => self.on_reply(id, &result, out),
            Event::Stop { .. } => self.fail(INTERRUPTED, "interrupted".to_string(), out),
            Event::Changed { .. }
            | Event::Wake
            | Event::Started { .. }
            | Event::NotStarted { .. }
            | Event::Ended { .. }
            | Event::SlotsLost { .. }
            | Event::Lines(_) => {}
        }
        self.pump(out);
    }

    fn next_wake(&self) -> Option<Instant> {
        None
    }

    fn assert_invariants(&self) {
        assert!(self.window.len() <= WINDOW && self.calls.len() <= WINDOW, "the window is too large");
    }
}

fn reading((position, slot): (&u64, &WindowEntry)) -> Option<(u64, TaskId)> {
    match slot {
        WindowEntry::Reading(id) => Some((*position, id.clone())),
        WindowEntry::Read(_) => None,
    }
}
