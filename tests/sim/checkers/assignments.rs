//! Assignments and registrations: G5 (the assignment's writer is who its epoch says, and epochs never go back), one
//! holder for each attempt, nothing taken off an assignment while it runs, and an incarnation that was without a
//! registration is dead for ever, with all that it ran.

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
    /// Which incarnation had which attempt, and when it was given that first.
    given: BTreeMap<(String, u32), BTreeMap<String, u64>>,
    /// The life behind each incarnation.
    lives: BTreeMap<String, u64>,
    /// When an incarnation's last registration went.
    gaps: BTreeMap<String, u64>,
    /// Runs by task and attempt, or number of a share.
    runs: BTreeMap<(&'a str, u32), Vec<&'a Run>>,
    /// Incarnations that took their own last registration away.
    left: BTreeMap<String, SessionId>,
    /// Whose contender each epoch is.
    contenders: BTreeMap<i64, SessionId>,
    /// What was put on which assignment, by which transactions, and when.
    puts: BTreeMap<(String, String, u32), Vec<(i64, u64)>>,
    /// What was taken off which assignment, and the transaction that did it.
    strikes: Vec<(String, Entry, i64, u64)>,
    /// The transactions that made each task: a key may be used again.
    made: BTreeMap<String, Vec<i64>>,
}

pub fn check(world: &World, numbers: &BTreeMap<usize, u32>, told: &mut Complaints) {
    let mut ledger = Ledger::default();
    let number = |at: usize, run: &Run| numbers.get(&at).copied().unwrap_or(run.attempt);
    let tasks = || world.runs.iter().enumerate().filter(|(_, run)| run.attempt > 0);
    for (at, run) in tasks().filter(|(_, run)| run.stage != Stage::Waiting) {
        ledger.runs.entry((&run.key, number(at, run))).or_default().push(run);
    }
    replay(world, |step, tree| {
        if let Some(name) = child(step.path, "assign") {
            ledger.assignment(world, name, step, tree, told);
        } else if let Some(name) = child(step.path, "workers") {
            ledger.registration(name, step, tree, told);
        } else if let (Some(_), None, Some(znode)) = (child(step.path, "master"), step.before, step.after) {
            ledger.contenders.insert(znode.czxid, znode.owner);
        } else if let (Some(task), None) = (task_of(step.path), step.before) {
            ledger.made.entry(task.to_string()).or_default().push(step.zxid);
        }
    });
    for (name, entry, zxid, at) in &ledger.strikes {
        ledger.taken_off(world, name, entry, *zxid, *at, told);
    }
    for (at, run) in tasks() {
        if matches!(run.stage, Stage::Alive | Stage::Dead) {
            ledger.run(world, run, number(at, run), told);
        }
    }
}

impl<'a> Ledger<'a> {
    fn assignment(&mut self, world: &World, name: &str, step: &Step<'_>, tree: &Tree, told: &mut Complaints) {
        if step.before.is_none()
            && let Some(by) = step.by
        {
            self.lives.insert(name.to_string(), by.life);
        }
        let Some(after) = step.after else { return };
        let Ok(new) = Assignment::decode(&after.data) else { return };
        let old = step.before.and_then(|znode| Assignment::decode(&znode.data).ok());
        // A write may land late, while nobody has taken over: then it changes what nobody else has changed.
        if let Some(Kind::Master) = kind(world, step.by)
            && self.contenders.get(&new.epoch) != Some(&step.session)
        {
            let owner = self.contenders.get(&new.epoch);
            told.add(
                step.at,
                format!(
                    "G5: {name} is written with epoch {:x} of {owner:?} by {:?}",
                    new.epoch, step.session
                ),
            );
        }
        if let Some(old) = &old {
            if old.epoch > new.epoch {
                told.add(
                    step.at,
                    format!("G5: the epoch of {name} goes back from {:x} to {:x}", old.epoch, new.epoch),
                );
            }
            for entry in old.entries.iter().filter(|entry| !has(&new, entry)) {
                self.strikes.push((name.to_string(), entry.clone(), step.zxid, step.at));
            }
        }
        for entry in &new.entries {
            if !old.as_ref().is_some_and(|old| has(old, entry)) {
                let key = (name.to_string(), entry.task.to_string(), entry.attempt);
                self.puts.entry(key).or_default().push((step.zxid, step.at));
            }
            let key = (entry.task.to_string(), entry.attempt);
            self.given.entry(key).or_default().entry(name.to_string()).or_insert(step.at);
            // What is gone, or over, may be given to anybody: nobody will run it.
            let task = tree.get(&path_of(entry.task.as_str()));
            let task = task.and_then(|znode| Task::decode(&znode.data).ok());
            let runs = task.is_some_and(|task| match task.commands {
                Some(_) => task.share(entry.attempt).is_some(),
                None => task.outcome.is_none() && task.attempt == entry.attempt,
            });
            if !runs {
                continue;
            }
            if old.as_ref().is_some_and(|old| has(old, entry)) {
                continue;
            }
            for (path, znode) in
                tree.range(format!("{ROOT}/assign/")..).take_while(|(p, _)| p.starts_with("/z/assign/"))
            {
                if path != step.path
                    && Assignment::decode(&znode.data).is_ok_and(|assignment| has(&assignment, entry))
                {
                    told.add(
                        step.at,
                        format!(
                            "{} attempt {} is given to {name} while it stands on {path}",
                            entry.task, entry.attempt
                        ),
                    );
                }
            }
        }
    }

    /// Whoever had this has nothing to do with it any more.
    fn taken_off(&self, world: &World, name: &str, entry: &Entry, zxid: i64, at: u64, told: &mut Complaints) {
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
            let over = run.stage == Stage::Never || (run.stage == Stage::Dead && run.end <= at);
            if !over && !is_next {
                let holder = &world.members[run.who.m].name;
                told.add(
                    at,
                    format!(
                        "{} attempt {} is struck off {name}, and {holder} runs it",
                        entry.task, entry.attempt
                    ),
                );
            }
        }
    }

    fn registration(&mut self, name: &str, step: &Step<'_>, tree: &Tree, told: &mut Complaints) {
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
                // What its session before had in flight may land late.
                if self.left.get(&incarnation).is_some_and(|session| *session <= step.session) {
                    told.add(
                        step.at,
                        format!("{incarnation} is registered again after it took its registration away"),
                    );
                }
                if let Err(why) = Registration::decode(&znode.data) {
                    told.add(step.at, format!("{name} is no registration: {why}"));
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

    /// A run was given to its worker, and is dead when the incarnation that had it is.
    fn run(&self, world: &World, run: &Run, number: u32, told: &mut Complaints) {
        let name = &world.members[run.who.m].name;
        let given = self.given.get(&(run.key.clone(), number));
        let own: Vec<(&String, &u64)> = given
            .into_iter()
            .flatten()
            .filter(|(incarnation, _)| self.lives.get(*incarnation) == Some(&run.who.life))
            .collect();
        if !own.iter().any(|(_, since)| **since <= run.begin) {
            told.add(
                run.begin,
                format!("{name} runs {} attempt {}, which it was never given", run.key, run.attempt),
            );
        }
        let end = if run.stage == Stage::Alive { u64::MAX } else { run.end };
        if !own.is_empty()
            && own.iter().all(|(incarnation, _)| self.gaps.get(*incarnation).is_some_and(|gap| *gap < end))
        {
            told.add(
                run.begin,
                format!("{name} runs {} attempt {} although its incarnation is dead", run.key, run.attempt),
            );
        }
    }
}

/// Whether this attempt or share stands on the assignment.
pub fn has(assignment: &Assignment, entry: &Entry) -> bool {
    assignment.entries.iter().any(|other| other.task == entry.task && other.attempt == entry.attempt)
}
