//! What a leader makes of groups, in which workers write the outcomes of many tasks at once.
//!
//! - While their author lives, a group tells the leader early that its tasks take up no slots any more: a *hint*, of which
//!   nothing depends but how soon the worker gets more.
//! - When an incarnation is dead, its groups are the truth about tasks on its page. They are looked for by an *inquest*, which
//!   lists the directories of those tasks after the death was known, so that it sees all that the dead has written, and writes
//!   each place over itself before it believes what it read there, so that nothing of the dead can come late.
//! - When nothing is left of an incarnation, neither a registration nor a page, all of its tasks are settled, and what is
//!   still there of its groups is deleted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::leading::Term;
use super::{Master, Out};
use crate::contract::copies::{Copies, ended_by};
use crate::contract::task::{Outcome, Task};
use crate::contract::{Incarnation, Layout, TaskId, name_of};
use crate::machine::{Call, CallError, CallId, CallResult, Calls, Level, Refusal, Reply};
use crate::recipes::mirror::Beside;

/// Groups that are read for hints at a time; other groups give none.
const MAX_HINTS: usize = 64;

/// Calls of inquests under way at once; further ones wait.
const WINDOW: usize = 32;

#[derive(Debug)]
enum Purpose {
    Hint {
        dir: String,
        by: Incarnation,
    },
    List {
        dir: String,
        by: Incarnation,
    },
    Read {
        path: String,
        by: Incarnation,
    },
    /// Writes what was read over itself.
    Fence {
        path: String,
        by: Incarnation,
        data: Vec<u8>,
    },
    Delete,
}

/// What is known of the groups of a dead incarnation.
#[derive(Debug, Default)]
struct Inquest {
    /// Directories that were or are being listed.
    dirs: BTreeSet<String>,
    /// Calls that were not answered yet.
    open: usize,
    /// By task and attempt.
    ended: BTreeMap<(TaskId, u32), Outcome>,
}

/// A leader's view of groups.
#[derive(Debug)]
pub struct Groups {
    layout: Layout,
    calls: Calls<Purpose>,
    hints: BTreeMap<(String, Incarnation), usize>,
    /// Whether every place that is made from now on will be told.
    hears: bool,
    inquests: BTreeMap<Incarnation, Inquest>,
    waiting: VecDeque<(Call, Purpose)>,
    under_way: usize,
    /// There may be groups of whom nothing else is left.
    untidy: bool,
    /// So many of those are being deleted.
    deleting: usize,
    /// Those whose groups are not deleted, for what is in them could not be taken over.
    spared: BTreeSet<Incarnation>,
}

impl Groups {
    /// A view of nothing.
    pub fn new(layout: &Layout) -> Groups {
        Groups {
            layout: layout.clone(),
            calls: Calls::default(),
            hints: BTreeMap::new(),
            hears: false,
            inquests: BTreeMap::new(),
            waiting: VecDeque::new(),
            under_way: 0,
            untidy: true,
            deleting: 0,
            spared: BTreeSet::new(),
        }
    }

    /// Something was deleted upon which nothing may be left of somebody but groups.
    pub fn touch(&mut self) {
        self.untidy = true;
    }

    /// Something in groups of this incarnation could not be taken over: they are left for somebody to look at.
    pub fn spare(&mut self, by: &Incarnation) {
        self.spared.insert(by.clone());
    }

    /// A group was written.
    fn read_hint(&mut self, dir: &str, path: &str, by: Incarnation, out: &mut Out) {
        if self.hints.values().sum::<usize>() < MAX_HINTS {
            *self.hints.entry((dir.to_string(), by.clone())).or_insert(0) += 1;
            let call = Call::Get { path: self.layout.below_groups(path), watch: false };
            self.calls.issue(out, call, Purpose::Hint { dir: dir.to_string(), by });
        }
    }

    fn end_hint(&mut self, dir: &str, by: &Incarnation) {
        let key = (dir.to_string(), by.clone());
        if let Some(count) = self.hints.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.hints.remove(&key);
            }
        }
    }

    /// Whether a hint is on its way that may concern tasks of this directory that the incarnation has.
    pub fn awaits_hint(&self, dir: &str, by: &Incarnation) -> bool {
        !self.hints.is_empty() && self.hints.contains_key(&(dir.to_string(), by.clone()))
    }

    /// Looks for what a dead incarnation wrote of tasks in these directories. To be called after its death was known.
    pub fn inquire<'a>(&mut self, by: &Incarnation, dirs: impl Iterator<Item = &'a str>, out: &mut Out) {
        let inquest = self.inquests.entry(by.clone()).or_default();
        for dir in dirs {
            if inquest.dirs.insert(dir.to_string()) {
                inquest.open += 1;
                let call = Call::Children { path: self.layout.below_groups(dir) };
                self.waiting.push_back((call, Purpose::List { dir: dir.to_string(), by: by.clone() }));
            }
        }
        self.pump(out);
    }

    /// Whether everything is known.
    pub fn is_known(&self, by: &Incarnation) -> bool {
        self.inquests.get(by).is_some_and(|inquest| inquest.open == 0)
    }

    /// How a task of a dead incarnation ended at this attempt, if it did.
    pub fn outcome(&self, by: &Incarnation, task: &TaskId, attempt: u32) -> Option<&Outcome> {
        self.inquests.get(by)?.ended.get(&(task.clone(), attempt))
    }

    /// Its page is closed: all its tasks are settled.
    pub fn conclude(&mut self, by: &Incarnation) {
        self.inquests.remove(by);
        self.untidy = true;
    }

    /// Places that are made from now on will be told of, so what is listed will be all there is.
    pub fn start(&mut self, out: &mut Out) {
        self.hears = true;
        self.pump(out);
    }

    fn pump(&mut self, out: &mut Out) {
        while self.hears
            && self.under_way < WINDOW
            && let Some((call, purpose)) = self.waiting.pop_front()
        {
            self.under_way += 1;
            self.calls.issue(out, call, purpose);
        }
    }

    fn on_listed(&mut self, dir: &str, by: &Incarnation, names: &[String]) {
        for name in names.iter().filter(|name| ended_by(name).as_ref() == Some(by)) {
            self.read(format!("{dir}/{name}"), by);
        }
    }

    /// What stands there is taken for the last word only once it was written over: a write of the dead that is still on its
    /// way fails from then on.
    fn on_read(&mut self, path: String, by: &Incarnation, data: Vec<u8>, version: i32) {
        let Some(inquest) = self.inquests.get_mut(by) else { return };
        inquest.open += 1;
        let call = Call::Set { path: self.layout.below_groups(&path), data: data.clone(), version };
        self.waiting.push_back((call, Purpose::Fence { path, by: by.clone(), data }));
    }

    fn on_fenced(&mut self, path: &str, by: &Incarnation, data: &[u8]) -> Result<(), String> {
        let Some(inquest) = self.inquests.get_mut(by) else { return Ok(()) };
        let ended = outcomes(path, data)?.into_iter();
        inquest.ended.extend(ended.map(|(task, outcome)| ((task, outcome.attempt), outcome)));
        Ok(())
    }

    fn read(&mut self, path: String, by: &Incarnation) {
        let Some(inquest) = self.inquests.get_mut(by) else { return };
        inquest.open += 1;
        let call = Call::Get { path: self.layout.below_groups(&path), watch: false };
        self.waiting.push_back((call, Purpose::Read { path, by: by.clone() }));
    }
}

/// The outcomes in the group at this path below `groups`.
fn outcomes(path: &str, data: &[u8]) -> Result<Vec<(TaskId, Outcome)>, String> {
    let copies = Copies::decode(data).map_err(|malformed| malformed.to_string())?;
    let dir = path.split('/').next().unwrap_or_default();
    let ended = copies.tasks.into_iter().filter_map(|(name, seen)| {
        let outcome = Task::decode(seen.data.as_bytes()).ok()?.outcome?;
        Some((TaskId::parse(&format!("{dir}/{name}"))?, outcome))
    });
    Ok(ended.collect())
}

impl Master {
    /// Goes on with what waits until it will be told of every place.
    pub(super) fn hear_of_groups(&mut self, out: &mut Out) {
        if self.tasks.hears_of_groups()
            && let Some(term) = &mut self.term
        {
            term.groups.start(out);
        }
    }

    /// A group stands, or does no longer.
    pub(super) fn on_group(&mut self, path: &str, how: Beside, out: &mut Out) {
        let Some((dir, by)) =
            path.split_once('/').and_then(|(dir, name)| Some((dir, ended_by(name_of(name))?)))
        else {
            return;
        };
        if how == Beside::Gone {
            if let Some(paths) = self.groups.get_mut(&by) {
                paths.remove(path);
                if paths.is_empty() {
                    self.groups.remove(&by);
                }
            }
            // There may be more than are deleted at a time.
            if let Some(term) = self.term.as_mut().filter(|_| !self.fleet.lives(&by)) {
                term.groups.touch();
            }
            return;
        }
        self.groups.entry(by.clone()).or_default().insert(path.to_string());
        let lives = self.fleet.lives(&by);
        let Some(term) = &mut self.term else { return };
        if !lives {
            term.groups.touch();
            // It was made when the list had been read: its author lives after all, and does not know yet that it must not.
            if how == Beside::Made && term.groups.inquests.contains_key(&by) {
                term.groups.read(path.to_string(), &by);
                term.groups.pump(out);
            }
        } else if how == Beside::Changed {
            term.groups.read_hint(dir, path, by, out);
        }
    }

    /// Takes in a reply; false if it is somebody else's.
    pub(super) fn on_groups_reply(&mut self, id: CallId, result: &CallResult, out: &mut Out) -> bool {
        let Some(term) = &mut self.term else { return false };
        let groups = &mut term.groups;
        let Some(purpose) = groups.calls.take(id) else { return false };
        match purpose {
            Purpose::Delete => groups.deleting -= 1,
            Purpose::Hint { dir, by } => {
                groups.end_hint(&dir, &by);
                if let Ok(Reply::Data { data, .. }) = result {
                    self.on_hint(&dir, &by, data);
                }
            }
            Purpose::List { .. } | Purpose::Read { .. } | Purpose::Fence { .. } => {
                self.on_inquest_reply(purpose, result, out);
            }
        }
        true
    }

    fn on_inquest_reply(&mut self, purpose: Purpose, result: &CallResult, out: &mut Out) {
        let Some(Term { groups, burials, .. }) = &mut self.term else { return };
        let (Purpose::List { by, .. } | Purpose::Read { by, .. } | Purpose::Fence { by, .. }) = &purpose
        else {
            return;
        };
        let by = by.clone();
        groups.under_way -= 1;
        match (purpose, result) {
            // The connection is gone, and the term with it.
            (_, Err(CallError::NotSent | CallError::MaybeApplied)) => return,
            (Purpose::List { dir, .. }, Ok(Reply::Children(names))) => groups.on_listed(&dir, &by, names),
            (Purpose::Read { path, .. }, Ok(Reply::Data { data, stat })) => {
                groups.on_read(path, &by, data.clone(), stat.version);
            }
            // It was faster, or another leader was.
            (Purpose::Fence { path, .. }, Err(CallError::Refused(Refusal::BadVersion))) => {
                groups.read(path, &by)
            }
            // Whether it could be written over or not, what was read was written by it.
            (Purpose::Fence { path, data, .. }, _) => {
                if let Err(malformed) = groups.on_fenced(&path, &by, &data) {
                    let path = self.params.layout.below_groups(&path);
                    out.log(Level::Error, format!("{path} is no group ({malformed}): what it told is lost"));
                }
            }
            // A directory without groups, or a place that its author deleted when all in it was settled.
            (_, Err(CallError::Refused(Refusal::NoNode))) => {}
            (Purpose::List { dir: path, .. } | Purpose::Read { path, .. }, result) => {
                let why = result.as_ref().err().map_or_else(|| "no answer".to_string(), ToString::to_string);
                let path = self.params.layout.below_groups(&path);
                out.log(
                    Level::Error,
                    format!("{path}: {why}; what {by} wrote there is not known, and its groups stay"),
                );
                groups.spare(&by);
            }
            (Purpose::Hint { .. } | Purpose::Delete, _) => {}
        }
        if let Some(inquest) = groups.inquests.get_mut(&by) {
            inquest.open = inquest.open.saturating_sub(1);
        }
        groups.pump(out);
        burials.wake(&by);
    }

    /// These tasks of a living worker are over, and take up no slots from now on. Whether they are gone is told by their
    /// own events.
    fn on_hint(&mut self, dir: &str, by: &Incarnation, data: &[u8]) {
        let Some(term) = &mut self.term else { return };
        for (task, outcome) in outcomes(dir, data).unwrap_or_default() {
            let held = term.book.holder(&task).filter(|(incarnation, _)| *incarnation == by);
            let Some((_, held)) = held.filter(|(_, held)| held.attempt == outcome.attempt) else { continue };
            term.roster.note_run(by, outcome.ran_ms(), held.width);
            term.book.make_ghost(&task);
            term.summary.touch();
        }
    }

    /// The task is gone, and what its worker wrote with others is being read: it most probably ended.
    pub(super) fn expect_ended(&mut self, task: &TaskId) {
        let Some(term) = &mut self.term else { return };
        let holder = term.book.holder(task).map(|(incarnation, _)| incarnation);
        if holder.is_some_and(|incarnation| term.groups.awaits_hint(task.dir(), incarnation)) {
            term.book.make_ghost(task);
        }
    }

    /// Deletes groups of whom nothing else is left.
    pub(super) fn tidy_groups(&mut self, out: &mut Out) {
        let complete = self.tasks.is_complete() && self.workers.is_complete();
        let Some(term) = self.term.as_mut().filter(|term| term.is_leading() && complete) else { return };
        if term.groups.deleting > 0 || !std::mem::take(&mut term.groups.untidy) {
            return;
        }
        let (fleet, book) = (&self.fleet, &term.book);
        let spared = std::mem::take(&mut term.groups.spared);
        let is_left = |by: &&Incarnation| !fleet.lives(by) && !book.has(by) && !spared.contains(*by);
        let left = self.groups.iter().filter(|(by, _)| is_left(by)).flat_map(|(_, paths)| paths);
        for path in left.take(WINDOW) {
            term.groups.deleting += 1;
            let path = self.params.layout.below_groups(path);
            // Without a version: the name is used once.
            term.groups.calls.issue(out, Call::Delete { path, version: None }, Purpose::Delete);
        }
        term.groups.spared = spared;
    }

    /// A burial may go on when it is known what the dead wrote; here it is sought.
    pub(super) fn inquire(&mut self, by: &Incarnation, out: &mut Out) {
        let Some(term) = &mut self.term else { return };
        let dirs: BTreeSet<String> = term.book.entries(by).map(|(task, _)| task.dir().to_string()).collect();
        let dirs = dirs.iter().map(String::as_str).filter(|dir| crate::contract::is_apart(dir));
        term.groups.inquire(by, dirs, out);
    }
}
