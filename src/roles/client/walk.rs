//! Walk: from what a user names (tasks, jobs, everything) to the tasks it means, a directory at a time.
//!
//! It holds the names of one directory, never of a whole job, and hands each task out once. What is created
//! behind its back is not searched for: a walk is over when it has seen all that existed when it came by.

use std::collections::{BTreeSet, VecDeque};

pub use super::seek::Found;
use super::seek::Seek;
use super::{Tally, refusal_code};
use crate::contract::line::batch_of;
use crate::contract::task::Job;
use crate::contract::{Layout, TaskId, is_component, is_ulid, shared_job};
use crate::exit;
use crate::machine::{Actions, Call, CallId, CallResult, Calls, Level, Refusal, Reply, Routed, if_exists};

/// What a user names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One task, or one line of a batch.
    Task(TaskId),
    /// All tasks in the directory of this name, and in those whose names go on with `~` after it.
    Job(String),
    /// All tasks.
    All,
}

impl Target {
    /// Whether the directory of this name belongs to it.
    fn has_dir(&self, dir: &str) -> bool {
        match self {
            Target::Task(_) => false,
            Target::Job(job) => {
                dir.strip_prefix(job.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('~'))
            }
            Target::All => true,
        }
    }
}

/// A part of a batch, as it was before it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its directory.
    pub dir: String,
    /// How many lines it has in all.
    pub lines: u64,
    /// All of them existed before it was listed.
    pub made: bool,
}

/// Which names stand for tasks in shared jobs, where no job has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BareNames {
    /// None.
    None,
    /// ULIDs, which belong to one task for ever. Jobs and keys may have the same names, so a change takes no key.
    Ulids,
    /// ULIDs and keys.
    All,
}

impl BareNames {
    fn has(self, name: &str) -> bool {
        match self {
            BareNames::None => false,
            BareNames::Ulids => is_ulid(name),
            BareNames::All => true,
        }
    }
}

/// A walk over what a user named.
#[derive(Debug)]
pub struct Walk {
    layout: Layout,
    todo: VecDeque<Target>,
    /// The meaning of the first target is being read.
    seek: Option<Seek>,
    /// Its meaning, if that had to be read.
    found: Option<Found>,
    /// Which names that no job has may be those of tasks in shared jobs.
    bare_names: BareNames,
    /// Such a name, while it is not known whether there is a task.
    bare: Option<String>,
    /// The tasks that the user named, so that they are not met again in their jobs.
    named: BTreeSet<TaskId>,
    /// Directories of the present target that are still to be listed.
    dirs: VecDeque<String>,
    /// Whether parts are read before they are listed.
    reads_parts: bool,
    /// What the first of the directories says, once it was read.
    part: Option<Job>,
    /// Parts that were listed, and not taken.
    parts: Vec<Part>,
    /// Names in the present directory that were not handed out yet.
    dir: String,
    names: VecDeque<String>,
    calls: Calls<Purpose>,
    online: bool,
}

#[derive(Debug)]
enum Purpose {
    Jobs,
    Tasks(String),
    Part,
    Seek,
    Bare(String),
}

/// What a reply meant for [`Walk`] led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask for the next task.
    Pending,
    /// There is no such job.
    Unknown(String),
    /// This directory can't be listed.
    Refused(String, Refusal),
    /// This directory may not be listed by us. The walk goes on with the next.
    PassedOver(String),
}

/// What to say of a directory that we may not list.
pub fn passed_over(path: &str) -> String {
    format!("{path} is passed over: {}; it was made with other credentials (--auth)", Refusal::NoAuth)
}

impl Step {
    /// For roles that only read: a job that is unknown, or may not be read, is reported and counted, and the walk goes
    /// on. Gives the exit code and the words if it cannot.
    pub fn settle<R>(self, tally: &mut Tally, out: &mut Actions<R>) -> Option<(i32, String)> {
        match self {
            Step::Pending => None,
            Step::Unknown(job) => {
                out.log(Level::Error, format!("there is no job {job}"));
                tally.wrong(exit::DATA);
                None
            }
            Step::PassedOver(path) => {
                out.log(Level::Error, passed_over(&path));
                tally.wrong(exit::NOT_PERMITTED);
                None
            }
            Step::Refused(path, refusal) => {
                Some((refusal_code(refusal), format!("cannot list {path}: {refusal}")))
            }
        }
    }
}

impl Walk {
    /// A walk over these, in this order.
    pub fn new<I: IntoIterator<Item = Target>>(layout: &Layout, targets: I) -> Walk {
        let mut named = BTreeSet::new();
        let todo = targets.into_iter().filter(|target| match target {
            Target::Task(id) => named.insert(id.clone()),
            Target::Job(_) | Target::All => true,
        });
        Walk {
            layout: layout.clone(),
            todo: todo.collect(),
            bare_names: BareNames::None,
            bare: None,
            seek: None,
            found: None,
            named,
            dirs: VecDeque::new(),
            reads_parts: false,
            part: None,
            parts: Vec::new(),
            dir: String::new(),
            names: VecDeque::new(),
            calls: Calls::default(),
            online: false,
        }
    }

    /// The same, which reads what the parts of batches say before it lists them.
    pub fn with_parts(self) -> Walk {
        Walk { reads_parts: true, ..self }
    }

    /// The same for users who may name a task in a shared job by its name alone.
    pub fn with_bare_names(self, bare_names: BareNames) -> Walk {
        Walk { bare_names, ..self }
    }

    /// The parts that were listed since this was asked last.
    pub fn take_parts(&mut self) -> Vec<Part> {
        std::mem::take(&mut self.parts)
    }

    /// A connection is up.
    pub fn on_connected(&mut self) {
        self.calls.clear();
        // Another server may show an older list than what was read.
        self.part = None;
        self.online = true;
    }

    /// The connection is gone; what was being listed will be listed again.
    pub fn on_lost(&mut self) {
        self.calls.clear();
        self.online = false;
    }

    /// The next task, if it is known already; otherwise searches for it.
    pub fn next<R>(&mut self, out: &mut Actions<R>) -> Option<Found> {
        while let Some(name) = self.names.pop_front() {
            let id = TaskId::new(&self.dir, &name);
            if !self.named.contains(&id) {
                return Some(Found { id, named: false, line: None });
            }
        }
        if let (true, Some(Target::Task(id))) = (self.dirs.is_empty(), self.todo.front()) {
            let as_task = Found { id: id.clone(), named: true, line: None };
            self.seek = self.seek.take().or_else(|| Seek::new(id));
            return self.settle_seek(as_task, out);
        }
        if self.online && self.calls.is_empty() {
            if let Some(dir) = self.dirs.front() {
                let (path, dir) = (self.layout.job(dir), dir.clone());
                if self.reads_parts && self.part.is_none() && batch_of(&dir).is_some() {
                    self.calls.issue(out, Call::Get { path, watch: false }, Purpose::Part);
                } else {
                    self.calls.issue(out, Call::Children { path }, Purpose::Tasks(dir));
                }
            } else if let Some(name) = self.bare.clone() {
                let path = self.layout.task(&bare_task(&name));
                self.calls.issue(out, Call::Exists { path, watch: false }, Purpose::Bare(name));
            } else if !self.todo.is_empty() {
                self.calls.issue(out, Call::Children { path: self.layout.tasks() }, Purpose::Jobs);
            }
        }
        None
    }

    /// The first target, if its meaning is known; otherwise reads that.
    fn settle_seek<R>(&mut self, as_task: Found, out: &mut Actions<R>) -> Option<Found> {
        let found = match (&self.seek, self.found.take()) {
            (_, Some(found)) => found,
            (None, None) => as_task,
            (Some(seek), None) => {
                if self.online && self.calls.is_empty() {
                    self.calls.issue(out, seek.call(&self.layout), Purpose::Seek);
                }
                return None;
            }
        };
        self.seek = None;
        self.todo.pop_front();
        Some(found)
    }

    fn on_sought(&mut self, answer: Result<&Reply, Refusal>) -> Step {
        let Some(seek) = &mut self.seek else { return Step::Pending };
        match seek.on_answer(answer) {
            Ok(found) => {
                self.found = found;
                Step::Pending
            }
            Err(refusal) => {
                let path = seek.call(&self.layout).path().to_string();
                self.seek = None;
                self.todo.pop_front();
                if refusal == Refusal::NoAuth { Step::PassedOver(path) } else { Step::Refused(path, refusal) }
            }
        }
    }

    /// Whether every task was handed out.
    pub fn is_over(&self) -> bool {
        self.todo.is_empty() && self.dirs.is_empty() && self.names.is_empty() && self.bare.is_none()
    }

    /// Takes in a reply.
    pub fn on_reply(&mut self, id: CallId, result: &CallResult) -> Routed<Step> {
        self.calls.route(id, result).map(|(purpose, answer)| match (purpose, answer) {
            (_, None) => Step::Pending,
            (Purpose::Seek, Some(answer)) => self.on_sought(answer),
            (Purpose::Part, Some(answer)) => {
                // Its fault is reported when it is listed.
                self.part = Some(match answer {
                    Ok(Reply::Data { data, .. }) => Job::decode(data).unwrap_or_default(),
                    Ok(_) | Err(_) => Job::default(),
                });
                Step::Pending
            }
            (Purpose::Bare(name), Some(answer)) => self.on_bare(name, answer),
            (Purpose::Jobs, Some(answer)) => match names_in(answer) {
                Ok(names) => self.on_jobs(names),
                Err(refusal) => Step::Refused(self.layout.tasks(), refusal),
            },
            (Purpose::Tasks(dir), Some(answer)) => match names_in(answer) {
                Ok(names) => self.on_tasks(dir, names),
                Err(Refusal::NoAuth) => {
                    self.part = None;
                    self.dirs.pop_front();
                    Step::PassedOver(self.layout.job(&dir))
                }
                Err(refusal) => Step::Refused(self.layout.job(&dir), refusal),
            },
        })
    }

    fn on_jobs(&mut self, mut names: Vec<String>) -> Step {
        let target = self.todo.pop_front();
        names.retain(|dir| target.as_ref().is_some_and(|target| target.has_dir(dir)));
        self.dirs = names.into();
        match target {
            Some(Target::Job(job)) if self.dirs.is_empty() && self.bare_names.has(&job) => {
                self.bare = Some(job);
                Step::Pending
            }
            Some(Target::Job(job)) if self.dirs.is_empty() => Step::Unknown(job),
            Some(Target::Job(_) | Target::Task(_) | Target::All) | None => Step::Pending,
        }
    }

    /// Takes in whether there is a task of a name that no job has.
    fn on_bare(&mut self, name: String, answer: Result<&Reply, Refusal>) -> Step {
        self.bare = None;
        let id = bare_task(&name);
        match if_exists(answer) {
            Ok(Some(_)) => {
                if self.named.insert(id.clone()) {
                    self.todo.push_front(Target::Task(id));
                }
                Step::Pending
            }
            Ok(None) => Step::Unknown(name),
            Err(Refusal::NoAuth) => Step::PassedOver(self.layout.task(&id)),
            Err(refusal) => Step::Refused(self.layout.task(&id), refusal),
        }
    }

    fn on_tasks(&mut self, dir: String, names: Vec<String>) -> Step {
        self.dirs.pop_front();
        if let Some(Job { lines: Some(lines), made, .. }) = self.part.take() {
            self.parts.push(Part { dir: dir.clone(), lines, made });
        }
        self.dir = dir;
        self.names = names.into();
        Step::Pending
    }
}

/// The task in a shared job that has this ULID, or this key, as its name.
pub fn bare_task(name: &str) -> TaskId {
    TaskId::new(&shared_job(name), name)
}

/// The names in a listing, in order; none if the directory does not exist. A name that users can't have as part
/// of an id is nothing that we could act on.
fn names_in(answer: Result<&Reply, Refusal>) -> Result<Vec<String>, Refusal> {
    let Some(Reply::Children(names)) = if_exists(answer)? else { return Ok(Vec::new()) };
    let mut names: Vec<String> = names.iter().filter(|name| is_component(name)).cloned().collect();
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Action, CallError};

    /// Answers listings from `dirs` until the walk is over; gives what it handed out.
    fn walk(targets: Vec<Target>, dirs: &[(&str, &[&str])]) -> (Vec<String>, Vec<String>) {
        let mut walk = Walk::new(&Layout::new("/z"), targets);
        walk.on_connected();
        let mut out: Actions<()> = Actions::default();
        let (mut found, mut unknown) = (Vec::new(), Vec::new());
        while !walk.is_over() {
            while let Some(task) = walk.next(&mut out) {
                found.push(task.id.to_string());
            }
            for action in out.drain().collect::<Vec<_>>() {
                let Action::Call { id, call } = action else { panic!("{action:?}") };
                let names = match call.path().strip_prefix("/z/tasks").expect("below the root") {
                    "" => dirs.iter().map(|(dir, _)| (*dir).to_string()).collect(),
                    path => {
                        let dir = path.split_once('/').expect("a directory").1;
                        let names = dirs.iter().find(|(name, _)| dir == *name).expect("listed").1;
                        names.iter().map(|name| (*name).to_string()).collect()
                    }
                };
                if let Routed::Mine(Step::Unknown(job)) = walk.on_reply(id, &Ok(Reply::Children(names))) {
                    unknown.push(job);
                }
            }
        }
        (found, unknown)
    }

    #[test]
    fn a_job_is_all_its_directories_and_no_others() {
        let dirs: &[(&str, &[&str])] = &[
            ("J~b~0001", &["3"]),
            ("J~b~0000", &["2", "1"]),
            ("J", &["k"]),
            ("J2", &["no"]),
            ("J~c~0000", &["4"]),
            ("_00", &["x"]),
        ];
        let job = |name: &str| vec![Target::Job(name.into())];
        assert_eq!(walk(job("J"), dirs).0, ["J/k", "J~b~0000/1", "J~b~0000/2", "J~b~0001/3", "J~c~0000/4"]);
        assert_eq!(walk(job("J~b"), dirs).0, ["J~b~0000/1", "J~b~0000/2", "J~b~0001/3"]);
        assert_eq!(walk(job("nope"), dirs), (vec![], vec!["nope".to_string()]));
        let both = vec![Target::Task(TaskId::new("a", "b")), Target::Job("_00".into())];
        assert_eq!(walk(both, dirs).0, ["a/b", "_00/x"]);
        assert_eq!(walk(vec![Target::All], dirs).0.len(), 7);
        let task = || Target::Task(TaskId::new("J", "k"));
        assert_eq!(walk(vec![task(), Target::All, task()], dirs).0.len(), 7, "each once");
    }

    /// What a name leads to that no job has, if there is a task of that name or not.
    fn bare(kind: BareNames, exists: Result<Reply, CallError>) -> (Vec<String>, Vec<Step>) {
        let mut walk = Walk::new(&Layout::new("/z"), [Target::Job("nightly".into())]).with_bare_names(kind);
        let mut out: Actions<()> = Actions::default();
        let (mut found, mut steps) = (Vec::new(), Vec::new());
        walk.on_connected();
        while !walk.is_over() {
            found.extend(walk.next(&mut out).map(|found| found.id.to_string()));
            for action in out.drain().collect::<Vec<_>>() {
                let Action::Call { id, call } = action else { panic!("{action:?}") };
                let result = match &call {
                    Call::Exists { path, .. } => {
                        assert_eq!(*path, format!("/z/tasks/{}/nightly", shared_job("nightly")));
                        exists.clone()
                    }
                    _ => Ok(Reply::Children(vec!["J".into()])),
                };
                if let Routed::Mine(step) = walk.on_reply(id, &result)
                    && step != Step::Pending
                {
                    steps.push(step);
                }
            }
        }
        (found, steps)
    }

    #[test]
    fn a_name_that_no_job_has_may_be_a_tasks() {
        let id = bare_task("nightly").to_string();
        let exists = Ok(Reply::Stat(crate::machine::Stat::default()));
        assert_eq!(bare(BareNames::All, exists.clone()), (vec![id.clone()], vec![]));
        let unknown = || vec![Step::Unknown("nightly".into())];
        assert_eq!(bare(BareNames::Ulids, exists), (vec![], unknown()), "it may have been a job");
        let refused = |refusal| Err(CallError::Refused(refusal));
        assert_eq!(bare(BareNames::All, refused(Refusal::NoNode)), (vec![], unknown()));
        let path = format!("/z/tasks/{id}");
        assert_eq!(bare(BareNames::All, refused(Refusal::NoAuth)), (vec![], vec![Step::PassedOver(path)]));
    }

    #[test]
    fn a_lost_listing_is_made_again() {
        let mut walk = Walk::new(&Layout::new("/z"), [Target::All]);
        let mut out: Actions<()> = Actions::default();
        assert_eq!(walk.next(&mut out), None);
        assert!(out.is_empty(), "no call without a connection");
        for _ in 0..2 {
            walk.on_connected();
            assert_eq!(walk.next(&mut out), None);
            assert_eq!(walk.next(&mut out), None);
            assert_eq!(out.drain().count(), 1, "one listing at a time");
            walk.on_lost();
        }
        assert!(!walk.is_over());
    }
}
