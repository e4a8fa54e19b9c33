//! Assignments and registrations: G5 (only the master that its epoch names writes an assignment, and epochs never go
//! back), one holder for each attempt, no entry removed from an assignment while it runs, and an incarnation that has
//! lost its registration has ended for ever, with all that it ran.

use std::collections::BTreeMap;

use zkmw::contract::parse_registration;
use zkmw::contract::task::Task;
use zkmw::contract::worker::{Assignment, Entry, Registration};

use super::{Complaints, Step, Tree, child, kind, path_of, replay, task_of};
use crate::ensemble::SessionId;
use crate::life::ROOT;
use crate::member::Kind;
use crate::processes::{Run, Stage};
use crate::world::World;

#[derive(Default)]
struct Ledger<'a> {
    /// The incarnations that were given each attempt, and when each was given it first.
    given: BTreeMap<(String, u32), BTreeMap<String, u64>>,
    /// The life behind each incarnation.
    lives: BTreeMap<String, u64>,
    /// When an incarnation's last registration went.
    gaps: BTreeMap<String, u64>,
    /// Runs by task and attempt, or number of a share.
    runs: BTreeMap<(&'a str, u32), Vec<&'a Run>>,
    /// Incarnations that deleted their own last registration.
    left: BTreeMap<String, SessionId>,
    /// The session whose contender each epoch names.
    contenders: BTreeMap<i64, SessionId>,
    /// The entries that were put on each assignment, by which transactions, and when.
    puts: BTreeMap<(String, String, u32), Vec<(i64, u64)>>,
    /// The entries that were removed from each assignment, by which transaction, and when.
    removals: Vec<(String, Entry, i64, u64)>,
    /// The transactions that made each task: a key may be used again.
    made: BTreeMap<String, Vec<i64>>,
}

pub fn check(world: &World, numbers: &BTreeMap<usize, u32>, complaints: &mut Complaints) {
    let mut ledger = Ledger::default();
    let number = |at: usize, run: &Run| numbers.get(&at).copied().unwrap_or(run.attempt);
    let tasks = || world.runs.iter().enumerate().filter(|(_, run)| run.attempt > 0);
    for (at, run) in tasks().filter(|(_, run)| run.stage != Stage::Waiting) {
        ledger.runs.entry((&run.key, number(at, run))).or_default().push(run);
    }
    replay(world, |step, tree| {
        if let Some(name) = child(step.path, "assign") {
            ledger.assignment(world, name, step, tree, complaints);
        } else if let Some(name) = child(step.path, "workers") {
            ledger.registration(name, step, tree, complaints);
        } else if let (Some(_), None, Some(znode)) = (child(step.path, "master"), step.before, step.after) {
            ledger.contenders.insert(znode.czxid, znode.owner);
        } else if let (Some(task), None) = (task_of(step.path), step.before) {
            ledger.made.entry(task.to_string()).or_default().push(step.zxid);
        }
    });
    for (name, entry, zxid, at) in &ledger.removals {
        ledger.removed(world, name, entry, *zxid, *at, complaints);
    }
    for (at, run) in tasks() {
        if matches!(run.stage, Stage::Alive | Stage::Ended) {
            ledger.run(world, run, number(at, run), complaints);
        }
    }
}

impl<'a> Ledger<'a> {
    fn assignment(
        &mut self,
        world: &World,
        name: &str,
        step: &Step<'_>,
        tree: &Tree,
        complaints: &mut Complaints,
    ) {
        if step.before.is_none()
            && let Some(by) = step.by
        {
            self.lives.insert(name.to_string(), by.life);
        }
        let Some(after) = step.after else { return };
        let Ok(new) = Assignment::decode(&after.data) else { return };
        let old = step.before.and_then(|znode| Assignment::decode(&znode.data).ok());
        self.check_epoch(world, name, step, old.as_ref(), &new, complaints);
        for entry in old.iter().flat_map(|old| &old.entries).filter(|entry| !has(&new, entry)) {
            self.removals.push((name.to_string(), entry.clone(), step.zxid, step.at));
        }
        for entry in &new.entries {
            let key = (entry.task.to_string(), entry.attempt);
            self.given.entry(key).or_default().entry(name.to_string()).or_insert(step.at);
            if old.as_ref().is_some_and(|old| has(old, entry)) {
                continue;
            }
            let key = (name.to_string(), entry.task.to_string(), entry.attempt);
            self.puts.entry(key).or_default().push((step.zxid, step.at));
            if may_run(entry, tree) {
                check_holder(name, entry, step, tree, complaints);
            }
        }
    }

    /// G5. A write may be applied late, as long as no other leader has taken over.
    fn check_epoch(
        &self,
        world: &World,
        name: &str,
        step: &Step<'_>,
        old: Option<&Assignment>,
        new: &Assignment,
        complaints: &mut Complaints,
    ) {
        let owner = self.contenders.get(&new.epoch);
        if let Some(Kind::Master) = kind(world, step.by)
            && owner != Some(&step.session)
        {
            let by = step.session;
            complaints.add(
                step.at,
                format!("G5: {name} is written with epoch {:x} of {owner:?} by {by:?}", new.epoch),
            );
        }
        if let Some(old) = old.filter(|old| old.epoch > new.epoch) {
            complaints.add(
                step.at,
                format!("G5: the epoch of {name} goes back from {:x} to {:x}", old.epoch, new.epoch),
            );
        }
    }

    /// The worker that had this entry must have ended the run of its task.
    fn removed(
        &self,
        world: &World,
        name: &str,
        entry: &Entry,
        zxid: i64,
        at: u64,
        complaints: &mut Complaints,
    ) {
        let made = self.made.get(entry.task.as_str());
        let made = |before: i64| made.into_iter().flatten().filter(|made| **made <= before).count();
        let key = (name.to_string(), entry.task.to_string(), entry.attempt);
        let puts = || self.puts.get(&key).into_iter().flatten();
        let put = puts().map(|(put, _)| *put).rfind(|put| *put < zxid).unwrap_or(zxid);
        let life = self.lives.get(name).copied().unwrap_or(0);
        let runs = self.runs.get(&(entry.task.as_str(), entry.attempt)).into_iter().flatten();
        for run in runs.filter(|run| run.who.life == life && made(run.epoch) <= made(zxid)) {
            // The name's next task, which the same worker was given after this one was taken off.
            let is_next =
                made(put) < made(run.epoch) && puts().any(|(put, since)| *put > zxid && *since <= run.begin);
            let over = run.stage == Stage::Never || (run.stage == Stage::Ended && run.end <= at);
            if !over && !is_next {
                let holder = &world.members[run.who.m].name;
                let (task, attempt) = (&entry.task, entry.attempt);
                complaints.add(
                    at,
                    format!("{task} attempt {attempt} is removed from {name}, and {holder} runs it"),
                );
            }
        }
    }

    fn registration(&mut self, name: &str, step: &Step<'_>, tree: &Tree, complaints: &mut Complaints) {
        let Some((incarnation, _)) = parse_registration(name) else { return };
        let znode = step.before.or(step.after);
        if znode.is_none_or(|znode| znode.owner.0 == 0) {
            return;
        }
        let prefix = format!("{ROOT}/workers/{incarnation}~");
        let others = tree.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        let others = others.filter(|(path, _)| *path != step.path).count();
        let incarnation = incarnation.to_string();
        match (step.before, step.after) {
            (None, Some(znode)) => {
                // A write of its earlier session may land late.
                if self.left.get(&incarnation).is_some_and(|session| *session <= step.session) {
                    complaints.add(
                        step.at,
                        format!("{incarnation} is registered again after it deleted its registration"),
                    );
                }
                if let Err(why) = Registration::decode(&znode.data) {
                    complaints.add(step.at, format!("{name} is no registration: {why}"));
                }
            }
            (Some(_), None) if others == 0 => {
                self.gaps.entry(incarnation.clone()).or_insert(step.at);
                let own = step.by.is_some_and(|by| self.lives.get(&incarnation) == Some(&by.life));
                if own && !step.ended {
                    self.left.insert(incarnation, step.session);
                }
            }
            _ => {}
        }
    }

    /// A run was given to its worker, and ends before the incarnation that had it.
    fn run(&self, world: &World, run: &Run, number: u32, complaints: &mut Complaints) {
        let name = &world.members[run.who.m].name;
        let given = self.given.get(&(run.key.clone(), number));
        let own: Vec<(&String, &u64)> = given
            .into_iter()
            .flatten()
            .filter(|(incarnation, _)| self.lives.get(*incarnation) == Some(&run.who.life))
            .collect();
        if !own.iter().any(|(_, since)| **since <= run.begin) {
            complaints.add(
                run.begin,
                format!("{name} runs {} attempt {}, which it was never given", run.key, run.attempt),
            );
        }
        let end = if run.stage == Stage::Alive { u64::MAX } else { run.end };
        if !own.is_empty()
            && own.iter().all(|(incarnation, _)| self.gaps.get(*incarnation).is_some_and(|gap| *gap < end))
        {
            complaints.add(
                run.begin,
                format!("{name} runs {} attempt {} although its incarnation has ended", run.key, run.attempt),
            );
        }
    }
}

/// Whether anybody may run the entry: its task exists, and its attempt or share is not over.
fn may_run(entry: &Entry, tree: &Tree) -> bool {
    let task = tree.get(&path_of(entry.task.as_str()));
    let task = task.and_then(|znode| Task::decode(&znode.data).ok());
    task.is_some_and(|task| match task.commands {
        Some(_) => task.share(entry.attempt).is_some(),
        None => task.outcome.is_none() && task.attempt == entry.attempt,
    })
}

/// No other assignment has the entry.
fn check_holder(name: &str, entry: &Entry, step: &Step<'_>, tree: &Tree, complaints: &mut Complaints) {
    let prefix = format!("{ROOT}/assign/");
    let assignments = tree.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
    for (path, znode) in assignments.filter(|(path, _)| *path != step.path) {
        if Assignment::decode(&znode.data).is_ok_and(|assignment| has(&assignment, entry)) {
            let (task, attempt) = (&entry.task, entry.attempt);
            complaints
                .add(step.at, format!("{task} attempt {attempt} is given to {name} while it is on {path}"));
        }
    }
}

/// Whether this attempt or share is on the assignment.
pub fn has(assignment: &Assignment, entry: &Entry) -> bool {
    assignment.entries.iter().any(|other| other.task == entry.task && other.attempt == entry.attempt)
}
