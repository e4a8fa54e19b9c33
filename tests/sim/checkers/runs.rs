//! G3: of the attempts of one task no two ever overlap, in true time, whatever became of their workers; likewise of the
//! commands of one election, and of one line of a chunk. And each run has a fencing token above that of the one before.

use std::collections::BTreeMap;

use super::{Complaints, replay, task_of};
use crate::member::Who;
use crate::processes::{Run, Stage};
use crate::world::World;

/// The time of a run, in which no other may run.
struct Span {
    who: Who,
    begin: u64,
    end: u64,
    epoch: i64,
}

pub fn check(world: &World, complaints: &mut Complaints) {
    let mut by_key: BTreeMap<(&str, Option<u64>), Vec<Span>> = BTreeMap::new();
    for run in world.runs.iter().filter(|run| matches!(run.stage, Stage::Alive | Stage::Ended)) {
        let end = if run.stage == Stage::Alive { u64::MAX } else { run.end };
        let span = Span { who: run.who, begin: run.begin, end, epoch: run.epoch };
        by_key.entry((&run.key, run.line)).or_default().push(span);
    }
    let name = |span: &Span| format!("{} (life {})", world.members[span.who.m].name, span.who.life);
    for ((key, line), spans) in &mut by_key {
        let key = format!("{key}{}", line.map(|line| format!(":{line}")).unwrap_or_default());
        spans.sort_by_key(|span| span.begin);
        for pair in spans.windows(2) {
            let (first, next) = (&pair[0], &pair[1]);
            if next.begin < first.end {
                complaints
                    .add(next.begin, format!("G3: {key} runs on {} and on {}", name(first), name(next)));
            }
            if next.epoch <= first.epoch {
                let (a, b) = (first.epoch, next.epoch);
                complaints.add(next.begin, format!("fence: {key} runs with epoch {b:x} after {a:x}"));
            }
        }
    }
    check_attempts(world, complaints);
}

/// No attempt of a task is run twice, and only the attempt that the task is at.
fn check_attempts(world: &World, complaints: &mut Complaints) {
    // When each task was made: a key may be used again when its task is long gone.
    let mut made: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    replay(world, |step, _| {
        if let (Some(task), None, Some(_)) = (task_of(step.path), step.before, step.after) {
            made.entry(task.to_string()).or_default().push(step.at);
        }
    });
    let mut seen: BTreeMap<(&str, usize, u32, Option<u64>), &Run> = BTreeMap::new();
    for run in world.runs.iter().filter(|run| run.attempt > 0 && run.stage != Stage::Never) {
        if run.stage == Stage::Waiting {
            continue;
        }
        let none = Vec::new();
        let times = made.get(&run.key).unwrap_or(&none);
        let life = times.iter().filter(|at| **at <= run.begin).count();
        if let Some(other) = seen.insert((&run.key, life, run.attempt, run.line), run) {
            let (a, b) = (&world.members[other.who.m].name, &world.members[run.who.m].name);
            complaints
                .add(run.begin, format!("attempt {} of {} runs on {a} and on {b}", run.attempt, run.key));
        }
    }
}
