//! Elections: G7 (a contender's death is told to one other at most), and an elected command runs only while the
//! contender that its epoch names stands.

use std::collections::BTreeMap;

use super::{Complaints, replay};
use crate::life::ELECTION;
use crate::processes::Stage;
use crate::world::World;

pub fn check(world: &World, told: &mut Complaints) {
    let mut contenders: BTreeMap<i64, (u64, u64)> = BTreeMap::new();
    replay(world, |step, _| {
        if !step.path.contains("latch-") {
            return;
        }
        if let (None, Some(znode)) = (step.before, step.after) {
            contenders.insert(znode.czxid, (step.at, u64::MAX));
        }
        let (Some(znode), None) = (step.before, step.after) else { return };
        contenders.entry(znode.czxid).and_modify(|(_, until)| *until = step.at);
        let owner = world.history.by(znode.owner);
        let woken = world.history.woken.get(step.path);
        let others: Vec<&str> = woken
            .into_iter()
            .flatten()
            .filter(|who| Some(**who) != owner)
            .map(|who| world.members[who.m].name.as_str())
            .collect();
        if others.len() > 1 {
            told.add(step.at, format!("G7: the end of {} wakes {others:?}", step.path));
        }
    });
    for run in world.runs.iter().filter(|run| run.key == ELECTION) {
        if !matches!(run.stage, Stage::Alive | Stage::Dead) {
            continue;
        }
        let name = &world.members[run.who.m].name;
        let end = if run.stage == Stage::Alive { world.now } else { run.end };
        match contenders.get(&run.epoch) {
            Some((since, until)) if *since <= run.begin && end <= *until => {}
            other => told.add(
                run.begin,
                format!(
                    "G3: the command of {name} (epoch {:x}) runs until {end} beside its contender: {other:?}",
                    run.epoch
                ),
            ),
        }
    }
}
