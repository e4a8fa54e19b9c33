//! G3: of the runs of one task no two ever overlap, in true time, whatever became of their workers; likewise of the
//! commands of one election. And each run has a fencing token above that of the one before.

use std::collections::BTreeMap;

use super::{Complaints, replay, task_of};
use crate::processes::{Run, Stage};
use crate::world::World;

pub fn check(world: &World, told: &mut Complaints) {
    let mut by_key: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
    for run in world.runs.iter().filter(|run| matches!(run.stage, Stage::Alive | Stage::Dead)) {
        by_key.entry(&run.key).or_default().push(run);
    }
    let name = |run: &Run| format!("{} (life {})", world.members[run.who.m].name, run.who.life);
    for (key, runs) in &mut by_key {
        runs.sort_by_key(|run| run.begin);
        for pair in runs.windows(2) {
            let (first, next) = (pair[0], pair[1]);
            let end = if first.stage == Stage::Alive { u64::MAX } else { first.end };
            if next.begin < end {
                told.add(next.begin, format!("G3: {key} runs on {} and on {}", name(first), name(next)));
            }
            if next.epoch <= first.epoch {
                let (a, b) = (first.epoch, next.epoch);
                told.add(next.begin, format!("fence: {key} runs with epoch {b:x} after {a:x}"));
            }
        }
    }
    check_attempts(world, told);
}

/// No attempt of a task is run twice, and only the attempt that the task is at.
fn check_attempts(world: &World, told: &mut Complaints) {
    // When each task was made: a key may be used again when its task is long gone.
    let mut made: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    replay(world, |step, _| {
        if let (Some(task), None, Some(_)) = (task_of(step.path), step.before, step.after) {
            made.entry(task.to_string()).or_default().push(step.at);
        }
    });
    let mut seen: BTreeMap<(&str, usize, u32), &Run> = BTreeMap::new();
    for run in world.runs.iter().filter(|run| run.attempt > 0 && run.stage != Stage::Never) {
        if run.stage == Stage::Waiting {
            continue;
        }
        let none = Vec::new();
        let times = made.get(&run.key).unwrap_or(&none);
        let life = times.iter().filter(|at| **at <= run.begin).count();
        if let Some(other) = seen.insert((&run.key, life, run.attempt), run) {
            let (a, b) = (&world.members[other.who.m].name, &world.members[run.who.m].name);
            told.add(run.begin, format!("attempt {} of {} runs on {a} and on {b}", run.attempt, run.key));
        }
    }
}
