//! What became of each command of a chunk: every result is what happened, none is lost or changed, and what is over is
//! not run again.

use std::collections::{BTreeMap, BTreeSet};

use zkmw::contract::chunk::{CommandResult, Results};
use zkmw::contract::task::{Options, Reason, State, Task};
use zkmw::machine::Ended;

use super::tasks::is_late;
use super::{Complaints, Step, kind, replay, task_of};
use crate::member::Kind;
use crate::processes::{Run, Stage};
use crate::world::World;

/// How often that happened for which chunks are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Results were written down within an attempt.
    pub saves: usize,
    /// An attempt began with some commands over.
    pub resumed: usize,
    /// Chunks that ended with every command run.
    pub complete: usize,
}

/// The results that stand in a task, with an outcome or without.
pub fn results(task: &Task) -> &Results {
    task.outcome.as_ref().map_or(&task.results, |outcome| &outcome.results)
}

fn result(results: &Results, place: usize) -> Option<&CommandResult> {
    results.get(place).and_then(Option::as_ref)
}

/// Whether what stands of the commands after a write goes with what stood before, and with what happened. `again`:
/// what failed may be taken out, for it is to run again.
pub fn judge(
    old: &Task,
    new: &Task,
    again: bool,
    options: &Options,
    runs: &[&Run],
    step: &Step<'_>,
) -> Result<(), String> {
    for (place, line) in old.places() {
        match (result(results(old), place), result(results(new), place)) {
            (Some(before), Some(after)) if !is_same(before, after) => {
                return Err(format!("G2: the result of line {line} is overwritten"));
            }
            (Some(before), None) if before.succeeded() || !again => {
                return Err(format!("G2: the result of line {line} is lost"));
            }
            (None, Some(after)) => {
                let is_of = |run: &&&Run| {
                    let own = run.line == Some(line + 1) && run.attempt == old.attempt;
                    own && step.by == Some(run.who) && run.stage == Stage::Dead && run.end <= step.at
                };
                if !runs.iter().filter(is_of).any(|run| is_true(after, run, options)) {
                    return Err(format!("G2: the result of line {line} is not what happened"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_same(a: &CommandResult, b: &CommandResult) -> bool {
    let told = |result: &CommandResult| {
        (result.reason, result.exit_code, result.signal, result.stdout.captured().head.clone())
    };
    told(a) == told(b)
}

fn is_true(result: &CommandResult, run: &Run, options: &Options) -> bool {
    let ended = match (result.reason, run.ended) {
        (None, Some(Ended::Exit(0))) => true,
        (Some(Reason::Exit), Some(Ended::Exit(code))) => result.exit_code == Some(code),
        (Some(Reason::Signal), Some(Ended::Signal(signal))) => result.signal == Some(signal),
        (Some(Reason::Timeout), Some(_)) => run.signalled && is_late(run, options),
        _ => false,
    };
    ended && result.stdout.captured().head == run.output().as_bytes()
}

/// Whether a chunk that ended by itself ended so: every command over, and all of them well or not.
pub fn is_complete(task: &Task) -> Option<State> {
    let mut state = State::Done;
    for (place, _) in task.places() {
        if !result(results(task), place)?.succeeded() {
            state = State::Failed;
        }
    }
    Some(state)
}

/// Whether its worker may charge it: a command failed that was not ended for another reason, in this attempt or before.
pub fn has_failed(old: &Task, options: &Options, runs: &[&Run], at: u64) -> bool {
    let fair = |run: &&&Run| {
        let late = is_late(run, options);
        let failed = run.ended != Some(Ended::Exit(0)) || (late && run.signalled);
        run.attempt == old.attempt && run.end <= at && failed && (!run.signalled || late)
    };
    runs.iter().any(|run| fair(&run)) || results(old).iter().flatten().any(|result| !result.succeeded())
}

/// What is over when an attempt begins is not run in it.
pub fn check(world: &World, told: &mut Complaints) {
    let mut over: BTreeMap<String, Vec<(u64, u32, BTreeSet<u64>)>> = BTreeMap::new();
    each_chunk(world, |id, step, before, task| {
        if before.is_none_or(|before| before.attempt != task.attempt) {
            let lines = task.places().filter(|(place, _)| result(&task.results, *place).is_some());
            let lines = lines.map(|(_, line)| line + 1).collect();
            over.entry(id.to_string()).or_default().push((step.at, task.attempt, lines));
        }
    });
    for run in world.runs.iter().filter(|run| matches!(run.stage, Stage::Alive | Stage::Dead)) {
        let Some(line) = run.line else { continue };
        let attempts = over.get(&run.key).map(Vec::as_slice).unwrap_or_default();
        let began = attempts.iter().rfind(|(at, attempt, _)| *at <= run.begin && *attempt == run.attempt);
        if began.is_none_or(|(_, _, lines)| lines.contains(&line)) {
            let what = format!("line {} of {} runs in attempt {}, and was over", line, run.key, run.attempt);
            told.add(run.begin, what);
        }
    }
}

/// Counts.
pub fn tally(world: &World) -> Tally {
    let mut tally = Tally::default();
    each_chunk(world, |_, step, before, task| {
        let some = |task: &Task| results(task).iter().flatten().count();
        let Some(before) = before.filter(|before| before.outcome.is_none()) else { return };
        let by_worker = matches!(kind(world, step.by), Some(Kind::Worker { .. }));
        if task.attempt != before.attempt {
            tally.resumed += usize::from(some(task) > 0);
        } else if task.outcome.is_some() {
            tally.complete += usize::from(is_complete(task).is_some());
        } else if by_worker && some(task) > some(before) {
            tally.saves += 1;
        }
    });
    tally
}

fn each_chunk(world: &World, mut look: impl FnMut(&str, &Step<'_>, Option<&Task>, &Task)) {
    replay(world, |step, _| {
        let decode = |data: &[u8]| Task::decode(data).ok().filter(|task| task.commands.is_some());
        let Some(id) = task_of(step.path) else { return };
        if let Some(task) = step.after.and_then(|znode| decode(&znode.data)) {
            let before = step.before.and_then(|znode| decode(&znode.data));
            look(id, step, before.as_ref(), &task);
        }
    });
}
