//! Chunks and their shares, write by write, and each run of a line against the chunk at the begin of the run:
//!
//! - I1 Each open line is in exactly one share; an outcome exists if and only if none is open.
//! - I2 Numbers only grow; a number's lines only get fewer; a number that is gone never returns.
//! - I3 A number is on assignments of one incarnation (`assignments`).
//! - I4 When a line is started it is open, in a share that its worker was given, and in the window.
//! - I5 A result is true, is written once, after the process group has ended, and goes only by a retry.
//! - I6 Lines leave a number only by a cut behind the window, after its holder's failure, by its holder, or by a retry.
//! - I7 Deaths rise by one, by a leader, for lines in the window; suspects run one at a time; a line is poison only at
//!   the limit, and only if it ran alone.
//! - I8 A worker does not start a line that it knows to be cancelled.
//! - I9 A chunk is cut into no more than so many shares.

use std::collections::{BTreeMap, BTreeSet};

use zkmw::contract::chunk::{CommandResult, Results};
use zkmw::contract::share::{MAX_SHARES, Share};
use zkmw::contract::task::{Options, Reason, Task};
use zkmw::contract::worker::Assignment;
use zkmw::machine::Ended;

use super::tasks::is_late;
use super::{Complaints, Step, Tree, child, kind, path_of, replay, task_of};
use crate::member::Kind;
use crate::processes::{Run, Stage};
use crate::world::World;

/// How often chunks were saved, resumed, ended and cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Results were written while other lines ran.
    pub saves: usize,
    /// Lines moved on with others over.
    pub resumed: usize,
    /// Chunks that ended.
    pub complete: usize,
    /// Something was cut off a share.
    pub cuts: usize,
    /// Lines were suspected of a death.
    pub suspects: usize,
}

/// The results of a task, with an outcome or without.
pub fn results(task: &Task) -> &Results {
    task.outcome.as_ref().map_or(&task.results, |outcome| &outcome.results)
}

fn result(task: &Task, position: usize) -> Option<&CommandResult> {
    results(task).get(position).and_then(Option::as_ref)
}

fn owner(task: &Task, position: usize) -> Option<Share> {
    task.all_shares().into_iter().find(|share| share.lines.has(position))
}

/// The facts by which a write of a chunk is judged, besides the chunk.
pub struct Facts<'a> {
    pub options: &'a Options,
    /// All runs of its lines.
    pub runs: Vec<&'a Run>,
    /// The life of the worker that has this number.
    pub holder: &'a dyn Fn(u32) -> Option<u64>,
    /// Whether the number's holder has no registration any more, or has given the number up.
    pub has_given_up: &'a dyn Fn(u32) -> bool,
}

/// Whether a chunk after a write agrees with the chunk before it, and with the facts.
pub fn judge(
    old: &Task,
    new: &Task,
    facts: &Facts<'_>,
    world: &World,
    step: &Step<'_>,
) -> Result<(), String> {
    let by = kind(world, step.by);
    let is_client = matches!(by, Some(Kind::Client(_)));
    let open = |task: &Task| task.positions().filter(|(position, _)| task.is_open(*position)).count();
    let (before, after) = (open(old), open(new));
    // A chunk that never had an open line gets its outcome from the first process that finds that.
    let is_left =
        new.positions().any(|(position, _)| old.is_open(position) && result(new, position).is_none());
    if new.outcome.is_none() && after == 0 && before > 0 || new.outcome.is_some() && is_left {
        return Err("I1: an outcome exists if and only if no line is open".into());
    }
    numbers(old, new)?;
    if new.all_shares().iter().any(|share| share.deaths > 0 && share.ahead != Some(1)) {
        return Err("I7: suspects of a worker failure may run together".into());
    }
    for (position, line) in old.positions() {
        let is_again = is_client && new.is_open(position);
        match (result(old, position), result(new, position)) {
            (Some(was), Some(is)) if !is_same(was, is) => {
                return Err(format!("I5: the result of line {line} is overwritten"));
            }
            (Some(was), None) if !is_again || was.succeeded() => {
                return Err(format!("I5: the result of line {line} is lost"));
            }
            (None, Some(is)) if old.outcome.is_none() => {
                is_result_true(old, position, line, is, facts, by, step)?
            }
            _ => {}
        }
    }
    if old.outcome.is_none() && new.outcome.is_none() {
        moves(old, new, facts, by, step)?;
    }
    Ok(())
}

/// I2, I9.
fn numbers(old: &Task, new: &Task) -> Result<(), String> {
    let (before, after) = (old.all_shares(), new.all_shares());
    for share in &after {
        match before.iter().find(|other| other.attempt == share.attempt) {
            Some(other) if share.lines.below(1_000).any(|position| !other.lines.has(position)) => {
                return Err(format!("I2: number {} gets lines", share.attempt));
            }
            None if share.attempt <= old.attempt => {
                return Err(format!("I2: number {} comes back", share.attempt));
            }
            _ => {}
        }
    }
    let fresh = after.iter().filter(|share| share.attempt > old.attempt).count();
    if new.attempt < old.attempt || new.attempt as usize > old.attempt as usize + fresh.max(1) {
        return Err("I2: the highest number is not one that was given".into());
    }
    let cut = after.len() > before.len() && after.iter().all(|share| share.deaths == 0);
    if cut && after.len() > MAX_SHARES && before.len() >= MAX_SHARES {
        return Err(format!("I9: it has {} shares", after.len()));
    }
    Ok(())
}

/// I5, and the half of I7 that is about poison.
fn is_result_true(
    old: &Task,
    position: usize,
    line: u64,
    is: &CommandResult,
    facts: &Facts<'_>,
    by: Option<&Kind>,
    step: &Step<'_>,
) -> Result<(), String> {
    let Some(share) = owner(old, position) else { return Err(format!("line {line} was in no share")) };
    let of_worker = matches!(by, Some(Kind::Worker { .. }));
    let wrong = |why: &str| Err(format!("I5: the result of line {line} {why}"));
    let attempt = share.earlier + 1;
    let own = |run: &&&Run| run.line == Some(line + 1) && run.attempt == attempt;
    let alive =
        |run: &&Run| own(&run) && run.begin <= step.at && (run.stage == Stage::Alive || run.end > step.at);
    if facts.runs.iter().any(alive) {
        return wrong("is written while it runs");
    }
    match is.reason {
        Some(Reason::Cancelled) if old.is_cancelled(position) => return Ok(()),
        Some(Reason::Cancelled) => return wrong("is that it was cancelled, and nobody wanted that"),
        Some(Reason::Expired) if facts.options.expire_ms.is_some() && !of_worker => return Ok(()),
        Some(Reason::Poison) => {
            let limit = facts.options.attempts();
            let alone = limit == 1 || old.window(&share).len() == 1;
            return match share.deaths + 1 >= limit && alone && matches!(by, Some(Kind::Master)) {
                true => Ok(()),
                false => Err(format!("I7: line {line} is blamed after {} deaths", share.deaths + 1)),
            };
        }
        _ => {}
    }
    if (facts.holder)(share.attempt) != step.by.map(|by| by.life) {
        return wrong("is written by a process that does not have it");
    }
    let ran =
        |run: &&&Run| own(run) && step.by == Some(run.who) && run.stage == Stage::Ended && run.end <= step.at;
    if !facts.runs.iter().filter(ran).any(|run| is_true(is, run, facts.options)) {
        return wrong("is not what happened");
    }
    Ok(())
}

/// I6, and the other half of I7.
fn moves(
    old: &Task,
    new: &Task,
    facts: &Facts<'_>,
    by: Option<&Kind>,
    step: &Step<'_>,
) -> Result<(), String> {
    for (position, line) in
        old.positions().filter(|(position, _)| old.is_open(*position) && new.is_open(*position))
    {
        let (Some(from), Some(to)) = (owner(old, position), owner(new, position)) else { continue };
        if from.attempt == to.attempt {
            continue;
        }
        let in_window = old.window(&from).contains(&position);
        let stays = new.share(from.attempt).is_some();
        let is_suspected = to.deaths != from.deaths;
        let ok = match by {
            Some(Kind::Master) if stays => from.ahead.is_some() && !in_window && !is_suspected,
            Some(Kind::Master) => {
                let is_charged = is_suspected && to.deaths == from.deaths + 1 && in_window;
                (is_charged || !is_suspected) && (facts.has_given_up)(from.attempt)
            }
            Some(Kind::Worker { .. }) => {
                let is_holder = (facts.holder)(from.attempt) == step.by.map(|by| by.life);
                is_holder && !is_suspected && to.earlier == from.earlier + 1
            }
            Some(Kind::Client(_) | Kind::Elector { .. }) | None => false,
        };
        if !ok {
            return Err(format!("I6, I7: line {line} goes from {from:?} to {to:?}"));
        }
        let alive = |run: &&&Run| {
            let own = run.line == Some(line + 1) && run.attempt == from.earlier + 1;
            own && run.begin <= step.at && (run.stage == Stage::Alive || run.end > step.at)
        };
        if facts.runs.iter().any(|run| alive(&run)) {
            return Err(format!("G3: line {line} moves on while it runs"));
        }
        let again = to.failures != from.failures;
        if again && (to.failures != from.failures + 1 || !has_failed(line, &from, facts, step.at)) {
            return Err(format!("line {line} runs again, and did not fail"));
        }
    }
    Ok(())
}

/// Whether a line failed, and was not ended for another reason.
fn has_failed(line: u64, share: &Share, facts: &Facts<'_>, at: u64) -> bool {
    facts.options.max_attempts.is_some()
        && facts.runs.iter().any(|run| {
            let late = is_late(run, facts.options);
            let failed = run.ended != Some(Ended::Exit(0)) || (late && run.signalled);
            let own = run.line == Some(line + 1) && run.attempt == share.earlier + 1 && run.end <= at;
            own && failed && (!run.signalled || late)
        })
}

fn is_same(a: &CommandResult, b: &CommandResult) -> bool {
    let summary = |result: &CommandResult| {
        (result.reason, result.exit_code, result.signal, result.stdout.captured().head.clone())
    };
    summary(a) == summary(b)
}

fn is_true(result: &CommandResult, run: &Run, options: &Options) -> bool {
    // A command that its worker stopped in order to end runs again, however it ended.
    let by_itself = !run.signalled;
    let ended = match (result.reason, run.ended) {
        (None, Some(Ended::Exit(0))) => by_itself,
        (Some(Reason::Exit), Some(Ended::Exit(code))) => by_itself && result.exit_code == Some(code),
        (Some(Reason::Signal), Some(Ended::Signal(signal))) => by_itself && result.signal == Some(signal),
        (Some(Reason::Timeout), Some(_)) => run.signalled && is_late(run, options),
        (Some(Reason::Handler), Some(Ended::Broken)) => by_itself,
        _ => false,
    };
    ended && result.stdout.captured().head == run.output().as_bytes()
}

/// I4, I8: checks each run of a line against the chunk at its begin. Gives the numbers by which lines ran.
pub fn check(world: &World, complaints: &mut Complaints) -> BTreeMap<usize, u32> {
    let is_line = |run: &Run| run.line.is_some() && matches!(run.stage, Stage::Alive | Stage::Ended);
    let mut runs: Vec<usize> = (0..world.runs.len()).filter(|at| is_line(&world.runs[*at])).collect();
    runs.sort_by_key(|at| std::cmp::Reverse(world.runs[*at].begin));
    let mut numbers = BTreeMap::new();
    let mut given = Given::default();
    let tree = replay(world, |step, tree| {
        while let Some(at) = runs.pop_if(|at| world.runs[*at].begin < step.at) {
            start(world, at, tree, &given, &mut numbers, complaints);
        }
        given.note(step);
    });
    while let Some(at) = runs.pop() {
        start(world, at, &tree, &given, &mut numbers, complaints);
    }
    numbers
}

/// The lives that were given each number.
#[derive(Default)]
pub struct Given {
    lives: BTreeMap<String, u64>,
    numbers: BTreeMap<(String, u32), BTreeSet<u64>>,
}

impl Given {
    pub fn note(&mut self, step: &Step<'_>) {
        let Some(name) = child(step.path, "assign") else { return };
        if let (Some(by), None) = (step.by, step.before) {
            self.lives.insert(name.to_string(), by.life);
        }
        let Some(assignment) = step.after.and_then(|znode| Assignment::decode(&znode.data).ok()) else {
            return;
        };
        let Some(life) = self.lives.get(name) else { return };
        for entry in assignment.entries {
            self.numbers.entry((entry.task.to_string(), entry.attempt)).or_default().insert(*life);
        }
    }
}

fn start(
    world: &World,
    at: usize,
    tree: &Tree,
    given: &Given,
    numbers: &mut BTreeMap<usize, u32>,
    complaints: &mut Complaints,
) {
    let run = &world.runs[at];
    let Some(line) = run.line else { return };
    let Some(task) = tree.get(&path_of(&run.key)).and_then(|znode| Task::decode(&znode.data).ok()) else {
        return complaints.add(run.begin, format!("I4: line {line} of {} runs, and that is gone", run.key));
    };
    let position = task.positions().find(|(_, of)| of + 1 == line).map(|(position, _)| position);
    let share = position.and_then(|position| Some((position, owner(&task, position)?)));
    let Some((position, share)) = share.filter(|(position, _)| task.is_open(*position)) else {
        return complaints.add(run.begin, format!("I4: line {line} of {} runs, and is over", run.key));
    };
    numbers.insert(at, share.attempt);
    let is_given = given.numbers.get(&(run.key.clone(), share.attempt));
    let name = &world.members[run.who.m].name;
    if !is_given.is_some_and(|lives| lives.contains(&run.who.life)) {
        let what = format!("I4: {name} runs line {line} of {} and has not got its share {share:?}", run.key);
        complaints.add(run.begin, what);
    } else if !task.window(&share).contains(&position) || run.attempt != share.earlier + 1 {
        let what = format!(
            "I4: {name} runs line {line} of {} as attempt {} outside of the window of {share:?}",
            run.key, run.attempt
        );
        complaints.add(run.begin, what);
    }
}

/// Counts what happened to the chunks.
pub fn tally(world: &World) -> Tally {
    let mut tally = Tally::default();
    replay(world, |step, _| {
        let decode = |data: &[u8]| Task::decode(data).ok().filter(|task| task.commands.is_some());
        let both =
            task_of(step.path).and_then(|_| Some((decode(&step.before?.data)?, decode(&step.after?.data)?)));
        let Some((before, task)) = both.filter(|(before, _)| before.outcome.is_none()) else { return };
        let some = |task: &Task| results(task).iter().flatten().count();
        let by = kind(world, step.by);
        if task.outcome.is_some() {
            tally.complete += 1;
        } else if task.attempt != before.attempt {
            tally.resumed += usize::from(some(&task) > 0);
            let by_master = matches!(by, Some(Kind::Master));
            let stays = before.all_shares().iter().all(|share| task.share(share.attempt).is_some());
            tally.cuts += usize::from(by_master && stays);
            let deaths = |task: &Task| task.all_shares().iter().map(|share| share.deaths).sum::<u32>();
            tally.suspects += usize::from(by_master && deaths(&task) > deaths(&before));
        } else if matches!(by, Some(Kind::Worker { .. })) && some(&task) > some(&before) {
            tally.saves += 1;
        }
    });
    tally
}
