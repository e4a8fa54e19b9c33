//! The life of each task, write by write: G1 (nothing vanishes without an outcome), G2 (one outcome, and a true one),
//! and attempts counted right (each rise has a reason, and is charged only when that is one to charge for).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use zkmw::contract::task::{Job, Options, Outcome, Reason, State, Task};
use zkmw::contract::worker::{Assignment, Entry, START_AHEAD, START_AHEAD_LINES};
use zkmw::contract::{Incarnation, TaskId, parse_registration};
use zkmw::machine::Ended;

use super::chunks;
use super::{Complaints, Step, Tree, kind, path_of, replay, task_of};
use crate::life::ROOT;
use crate::member::Kind;
use crate::processes::{Run, Stage};
use crate::swarm::MS;
use crate::world::World;

struct Ledger<'a> {
    world: &'a World,
    runs: BTreeMap<&'a str, Vec<&'a Run>>,
    /// The life that made each assignment.
    lives: BTreeMap<String, u64>,
    /// Ids that were chosen by nobody, and so are used once.
    made: BTreeSet<String>,
    /// Incarnations that were without a registration, and since when.
    unregistered: BTreeMap<String, u64>,
    /// Tasks whose outcome was kept for its time.
    aged: BTreeSet<String>,
    /// The tasks that were ever on each assignment, or were moved from it: the leader knows of an entry before it is
    /// written, and the write may be late, or lost.
    given: BTreeMap<String, BTreeSet<TaskId>>,
    /// The incarnations to which each attempt of a task, or share of a chunk, was assigned, and when. There can be more
    /// than one: it may be handed back unstarted, or its name may be used again.
    numbers: BTreeMap<(String, u32), Vec<(String, u64)>>,
}

pub fn check(world: &World, complaints: &mut Complaints) {
    let mut runs: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
    for run in world.runs.iter().filter(|run| matches!(run.stage, Stage::Alive | Stage::Ended)) {
        runs.entry(&run.key).or_default().push(run);
    }
    let mut ledger = Ledger {
        world,
        runs,
        lives: BTreeMap::new(),
        made: BTreeSet::new(),
        unregistered: BTreeMap::new(),
        aged: BTreeSet::new(),
        given: BTreeMap::new(),
        numbers: BTreeMap::new(),
    };
    replay(world, |step, _| {
        let assignment = step.after.and_then(|znode| Assignment::decode(&znode.data).ok());
        if let (Some(name), Some(assignment)) = (super::child(step.path, "assign"), assignment) {
            let before = step.before.and_then(|znode| Assignment::decode(&znode.data).ok());
            let is_new = |entry: &&Entry| {
                !before.as_ref().is_some_and(|assignment| super::assignments::has(assignment, entry))
            };
            for entry in assignment.entries.iter().filter(is_new) {
                let key = (entry.task.to_string(), entry.attempt);
                ledger.numbers.entry(key).or_default().push((name.to_string(), step.at));
            }
            let tasks = assignment.entries.into_iter().map(|entry| entry.task);
            ledger.given.entry(name.to_string()).or_default().extend(tasks);
        }
        let task = step.after.and_then(|znode| Task::decode(&znode.data).ok());
        let holder = task.and_then(|task| task.history.last()?.worker.clone());
        if let (Some(id), Some(holder)) = (task_of(step.path).and_then(TaskId::parse), holder) {
            ledger.given.entry(holder.to_string()).or_default().insert(id);
        }
    });
    replay(world, |step, tree| {
        if let (Some(name), Some(by), None) = (super::child(step.path, "assign"), step.by, step.before) {
            ledger.lives.insert(name.to_string(), by.life);
        }
        if let (Some(name), None) = (super::child(step.path, "workers"), step.after)
            && let Some((incarnation, _)) = parse_registration(name)
            && registrations(tree, &incarnation) <= 1
        {
            ledger.unregistered.entry(incarnation.to_string()).or_insert(step.at);
        }
        let Some(id) = task_of(step.path) else { return };
        if id.contains("garbage") {
            return;
        }
        ledger.check_change(id, step, tree, complaints);
    });
}

impl Ledger<'_> {
    fn check_change(&mut self, id: &str, step: &Step<'_>, tree: &Tree, complaints: &mut Complaints) {
        let decode = |data: &[u8]| Task::decode(data);
        match (step.before, step.after) {
            (None, Some(znode)) => {
                // A client that is suspended for the outcome's whole life, with its create in doubt, makes it again.
                if id.contains("01S") && !self.made.insert(id.to_string()) && !self.aged.contains(id) {
                    complaints.add(step.at, format!("{id} is made once more"));
                }
                if let Err(why) = decode(&znode.data) {
                    complaints.add(step.at, format!("{id} is no task: {why}"));
                }
            }
            (Some(before), Some(after)) => {
                let Ok(old) = decode(&before.data) else { return };
                match decode(&after.data) {
                    Ok(new) => self.write(id, &old, &new, step, tree, complaints),
                    Err(why) => complaints.add(step.at, format!("{id} is a task no more: {why}")),
                }
            }
            (Some(before), None) => {
                let Ok(old) = decode(&before.data) else { return };
                let age = step.at.saturating_sub(before.changed);
                if old.outcome.is_none() {
                    complaints.add(step.at, format!("G1: {id} vanishes without an outcome"));
                }
                let least = 2 * self.world.swarm.timeout;
                // The oldest failed tasks without a key are deleted sooner.
                let is_excess = !old.keyed && !has_succeeded(&old) && self.world.swarm.max_failed < 1_000;
                let is_early = old.delete || is_excess;
                let ttl = if is_early { least } else { self.world.swarm.result_ttl.max(least) };
                match kind(self.world, step.by) {
                    Some(Kind::Master) if age + MS < ttl => {
                        complaints
                            .add(step.at, format!("the outcome of {id} is deleted after {} ms", age / MS));
                    }
                    Some(Kind::Client(_)) if old.keyed => {
                        complaints.add(step.at, format!("{id} has a key and is deleted by a client"));
                    }
                    Some(Kind::Client(_)) if !has_succeeded(&old) => {
                        complaints.add(step.at, format!("{id} ended badly and is deleted by a client"));
                    }
                    Some(Kind::Master) => drop(self.aged.insert(id.to_string())),
                    _ => {}
                }
            }
            (None, None) => {}
        }
    }

    fn options(&self, id: &str, task: &Task, tree: &Tree) -> Options {
        let dir = id.split('/').next().unwrap_or_default();
        let job = tree.get(&path_of(dir)).filter(|_| !zkmw::contract::is_shared(dir));
        let job = job.and_then(|znode| Job::decode(&znode.data).ok()).map(|job| job.options);
        task.options.or(&job.unwrap_or_default())
    }

    fn write(
        &self,
        id: &str,
        old: &Task,
        new: &Task,
        step: &Step<'_>,
        tree: &Tree,
        complaints: &mut Complaints,
    ) {
        let by = kind(self.world, step.by);
        let options = self.options(id, old, tree);
        let mut wrong =
            |what: &str| complaints.add(step.at, format!("{id}: {what} (by {by:?}; {old:?} -> {new:?})"));
        if !new.same_request(old) && !matches!(by, Some(Kind::Client(_))) {
            wrong("what was asked for is changed");
        }
        if new.digest.is_some() && old.digest.is_none() {
            if !self.may_be_shortened(old, new, step) {
                wrong("it is shortened, and should not be, or not so");
            }
            return;
        }
        if old.commands.is_some() {
            if let Err(what) = self.chunk(id, old, new, &options, step, tree) {
                wrong(&what);
            }
            return;
        }
        match (&old.outcome, &new.outcome) {
            (Some(a), Some(b)) if a != b || new.attempt != old.attempt => {
                wrong("G2: the outcome is overwritten")
            }
            (Some(_), Some(_)) => {}
            (Some(a), None) => {
                let is_retry = matches!(by, Some(Kind::Client(_))) && a.state != State::Done;
                if !is_retry || new.attempt != old.attempt + 1 || new.charged != 0 {
                    wrong("G2: the outcome is taken away, and that is no retry");
                }
            }
            (None, Some(outcome)) => {
                if let Err(what) = self.outcome(id, old, new, outcome, &options, step) {
                    wrong(&what);
                }
            }
            (None, None) if new.attempt == old.attempt => {
                if (new.charged, new.deaths) != (old.charged, old.deaths) {
                    wrong("charged within an attempt");
                }
            }
            (None, None) if new.attempt != old.attempt + 1 => wrong("the attempt does not rise by one"),
            (None, None) => {
                if let Err(what) = self.rise(id, old, new, &options, step, tree) {
                    wrong(&what);
                }
            }
        }
        if new.outcome.is_none() && new.charged + new.deaths >= options.attempts() {
            wrong("goes on although all its attempts are used up");
        }
    }

    /// A leader may shorten a task with a key that failed some time ago.
    fn may_be_shortened(&self, old: &Task, new: &Task, step: &Step<'_>) -> bool {
        let changed = step.before.map_or(0, |znode| znode.changed);
        let is_old = step.at.saturating_sub(changed) + MS >= 2 * self.world.swarm.timeout;
        let is_leader = matches!(kind(self.world, step.by), Some(Kind::Master));
        is_old && is_leader && is_rightly_dropped(old, new)
    }

    fn chunk(
        &self,
        id: &str,
        old: &Task,
        new: &Task,
        options: &Options,
        step: &Step<'_>,
        tree: &Tree,
    ) -> Result<(), String> {
        if !new.same_request(old) {
            return Ok(());
        }
        let incarnations = |number: u32| {
            let key = (id.to_string(), number);
            self.numbers.get(&key).into_iter().flatten().filter(|(_, since)| *since <= step.at)
        };
        let holder = |number: u32| {
            let (incarnation, _) = incarnations(number).next_back()?;
            self.lives.get(incarnation).copied()
        };
        let has_given_up = |number: u32| {
            incarnations(number).all(|(incarnation, _)| {
                let parsed = Incarnation::parse(incarnation);
                let assignment = tree.get(&format!("{ROOT}/assign/{incarnation}"));
                let assignment = assignment.and_then(|znode| Assignment::decode(&znode.data).ok());
                let named =
                    |entry: &Entry| entry.task.as_str() == id && entry.attempt == number && !entry.revoked;
                let holds = assignment.is_some_and(|assignment| assignment.entries.iter().any(named));
                !holds
                    || self.unregistered.contains_key(incarnation)
                    || parsed.is_none_or(|i| !registered(tree, &i))
            })
        };
        let runs = self.runs_of(id).collect();
        let facts = chunks::Facts { options, runs, holder: &holder, has_given_up: &has_given_up };
        chunks::judge(old, new, &facts, self.world, step)
    }

    fn runs_of(&self, id: &str) -> impl Iterator<Item = &Run> {
        self.runs.get(id).into_iter().flatten().copied()
    }

    fn alive(&self, id: &str, at: u64) -> bool {
        self.runs_of(id).any(|run| run.begin <= at && (run.stage == Stage::Alive || run.end > at))
    }

    fn outcome(
        &self,
        id: &str,
        old: &Task,
        new: &Task,
        outcome: &Outcome,
        options: &Options,
        step: &Step<'_>,
    ) -> Result<(), String> {
        if outcome.attempt != old.attempt || new.attempt != old.attempt {
            return Err("the outcome is that of another attempt".into());
        }
        if self.alive(id, step.at) {
            return Err("an outcome is written while it runs".into());
        }
        let by = kind(self.world, step.by);
        if matches!(by, Some(Kind::Client(_)) | None) {
            return Err("an outcome is written by a client".into());
        }
        let ran = |how: fn(&Run, &Outcome) -> bool| {
            let fits = |run: &Run| {
                run.attempt == old.attempt
                    && how(run, outcome)
                    && run.end <= step.at
                    && step.by == Some(run.who)
            };
            let text = outcome.stdout.captured().head;
            self.runs_of(id).any(|run| fits(run) && text == run.output().as_bytes())
        };
        let ok = match (outcome.state, outcome.reason) {
            // A command that its worker stopped in order to end runs again, however it ended.
            (State::Done, _) => ran(|run, _| run.ended == Some(Ended::Exit(0)) && !run.signalled),
            (State::Failed, Some(Reason::Exit | Reason::Signal | Reason::Handler)) => {
                ran(|run, outcome| exited(run, outcome) && !run.signalled)
            }
            (State::Failed, Some(Reason::Timeout)) => {
                let stopped =
                    |run: &Run| run.attempt == old.attempt && run.signalled && is_late(run, options);
                ran(exited) && self.runs_of(id).any(stopped)
            }
            (State::Failed, Some(Reason::Poison)) => new.charged >= options.attempts(),
            (State::Failed, Some(Reason::NotStarted) | None) => false,
            (State::Cancelled, _) => {
                old.cancel || new.cancel || old.options.orphan_of.is_some() || options.orphan_of.is_some()
            }
            (State::Expired, _) => options.expire_ms.is_some(),
            (State::Failed, Some(Reason::Cancelled | Reason::Expired)) => false,
        };
        if !ok {
            return Err("G2: the outcome is not what happened".into());
        }
        if new.charged > options.attempts() || new.charged > old.charged + old.deaths + 1 {
            return Err("charged too often".into());
        }
        Ok(())
    }

    /// The task moves on to its next attempt.
    fn rise(
        &self,
        id: &str,
        old: &Task,
        new: &Task,
        options: &Options,
        step: &Step<'_>,
        tree: &Tree,
    ) -> Result<(), String> {
        if self.alive(id, step.at) {
            return Err("G3: moves on while it runs".into());
        }
        let against = |task: &Task| task.charged + task.deaths;
        let charged = against(new) != against(old);
        if charged && against(new) != against(old) + 1 {
            return Err("charged by more than one".into());
        }
        match kind(self.world, step.by) {
            Some(Kind::Worker { .. }) if charged && options.max_attempts.is_none() => {
                Err("tried again although nobody asked for that".into())
            }
            Some(Kind::Worker { .. }) if charged => {
                let run =
                    self.runs_of(id).filter(|run| run.attempt == old.attempt && run.end <= step.at).last();
                let Some(run) = run else { return Err("charged by a worker that did not run it".into()) };
                let late = is_late(run, options);
                // A run that succeeded by itself was not stopped, however long it took.
                if run.ended == Some(Ended::Exit(0)) && !(late && run.signalled) {
                    return Err("charged although it succeeded".into());
                }
                if run.signalled && !late {
                    return Err("charged although its worker ended it".into());
                }
                Ok(())
            }
            Some(Kind::Worker { .. }) => Ok(()),
            Some(Kind::Master) => self.moved(id, old, new, charged, step, tree),
            _ => Err("moved on by somebody else".into()),
        }
    }

    /// A leader moves a task on because its worker has failed.
    fn moved(
        &self,
        id: &str,
        old: &Task,
        new: &Task,
        charged: bool,
        step: &Step<'_>,
        tree: &Tree,
    ) -> Result<(), String> {
        let Some(holder) = new.history.last().and_then(|remark| remark.worker.as_ref()) else {
            return Err("moved on, and nobody had it".into());
        };
        // Without a charge, the worker has confirmed that the attempt has ended, and hands it back.
        if charged && registered(tree, holder) && !self.unregistered.contains_key(holder.as_str()) {
            return Err(format!("moved on while {holder} is registered"));
        }
        let assignment = tree.get(&format!("{ROOT}/assign/{holder}"));
        // A leader may have planned entries for the assignment that were never written.
        let before_failure =
            assignment.zip(self.unregistered.get(holder.as_str())).is_some_and(|(p, died)| p.changed < *died);
        let assignment = assignment.and_then(|znode| Assignment::decode(&znode.data).ok());
        let wanted = TaskId::parse(id);
        let mut entries = assignment.iter().flat_map(|assignment| &assignment.entries).enumerate();
        let found =
            entries.find(|(_, entry)| Some(&entry.task) == wanted.as_ref() && entry.attempt == old.attempt);
        let entry = found.map(|(_, entry)| entry);
        // An entry far behind on the assignment cannot have been started.
        let before = assignment
            .iter()
            .flat_map(|assignment| &assignment.entries)
            .take(found.map_or(0, |(ahead, _)| ahead));
        let lines: usize = before.map(|entry| lines_of(entry, tree)).sum();
        let far_behind = found.is_some_and(|(ahead, _)| ahead > START_AHEAD || lines > START_AHEAD_LINES);
        // The holder may have failed before it was given the task.
        if charged && entry.is_some_and(|entry| entry.revoked) {
            return Err("charged although it was revoked".into());
        }
        if !charged
            && before_failure
            && !far_behind
            && !old.cancel
            && entry.is_some_and(|entry| !entry.revoked)
        {
            return Err(format!("not charged although {holder} died with it"));
        }
        let life = self.lives.get(holder.as_str()).copied().unwrap_or(0);
        let hurt = self.world.history.hurt.get(&life).is_some_and(|since| *since <= step.at);
        // A known gap: a worker that gives up its name before it is sure of it may have been given tasks for a moment.
        let ran = self.runs_of(id).any(|run| run.attempt == old.attempt && run.who.life == life);
        if charged && !hurt && ran {
            return Err(format!("charged although nothing was done to {holder} (life {life})"));
        }
        Ok(())
    }
}

/// Whether the outcome says how it exited.
fn exited(run: &Run, outcome: &Outcome) -> bool {
    run.ended.is_some_and(|ended| match ended {
        Ended::Exit(code) => outcome.exit_code == Some(code),
        Ended::Signal(signal) => outcome.signal == Some(signal),
        Ended::Broken => outcome.reason == Some(Reason::Handler),
    })
}

/// Whether its worker may have taken it for one that was past its timeout, by a clock that is a little fast and that
/// it read before the run began.
pub fn is_late(run: &Run, options: &Options) -> bool {
    options.timeout_ms.is_some_and(|ms| {
        Duration::from_nanos(run.end - run.begin) + Duration::from_millis(ms / 10 + 200)
            >= Duration::from_millis(ms)
    })
}

/// How many commands an entry may have had started.
fn lines_of(entry: &Entry, tree: &Tree) -> usize {
    let task = tree.get(&path_of(entry.task.as_str())).and_then(|znode| Task::decode(&znode.data).ok());
    let share = task.as_ref().and_then(|task| Some((task, task.share(entry.attempt)?)));
    share.map_or(1, |(task, share)| task.window(&share).len())
}

/// Whether a registration of the incarnation exists.
fn registered(tree: &Tree, incarnation: &Incarnation) -> bool {
    registrations(tree, incarnation) > 0
}

fn registrations(tree: &Tree, incarnation: &Incarnation) -> usize {
    let prefix = format!("{ROOT}/workers/{incarnation}~");
    let own = tree.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
    own.filter(|(_, znode)| znode.owner.0 != 0).count()
}

/// Whether only those parts are gone that may be dropped of a failed task with a key.
fn is_rightly_dropped(old: &Task, new: &Task) -> bool {
    let summary = |outcome: Outcome| (outcome.state, outcome.reason, outcome.exit_code, outcome.signal);
    let ended = |task: &Task| task.outcome.clone().map(summary);
    let lines = |task: &Task| {
        task.positions().map(|(at, _)| task.command_outcome(at).map(summary)).collect::<Vec<_>>()
    };
    let fence = |task: &Task| (task.attempt, task.keyed, task.delete, task.first_line, task.charged);
    old.keyed
        && !has_succeeded(old)
        && ended(old).is_some()
        && ended(old) == ended(new)
        && lines(old) == lines(new)
        && fence(old) == fence(new)
}

/// Whether all that it runs ended well.
fn has_succeeded(task: &Task) -> bool {
    let is_done = |outcome: Option<Outcome>| outcome.is_some_and(|outcome| outcome.state == State::Done);
    is_done(task.outcome.clone()) && task.positions().all(|(at, _)| is_done(task.command_outcome(at)))
}
