//! A part of a batch says that it is complete when all its lines stood in chunks, and not before: who waits for it
//! takes what is missing then for collected.

use std::collections::BTreeMap;

use zkmw::contract::task::{Job, Task};

use super::{Complaints, child, replay, task_of};
use crate::world::World;

pub fn check(world: &World, told: &mut Complaints) {
    // Lines of each chunk that ever stood, by its part and its name.
    let mut stood: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    replay(world, |step, _| {
        let Some(after) = step.after else {
            // Whoever has the key may make it anew, of other lines.
            return drop(child(step.path, "tasks").and_then(|dir| stood.remove(dir)));
        };
        if let Some((dir, name)) = task_of(step.path).and_then(|id| id.split_once('/')) {
            if let Ok(task) = Task::decode(&after.data) {
                let lines = task.positions().count() as u64;
                stood.entry(dir.to_string()).or_default().insert(name.to_string(), lines);
            }
        } else if let Some(dir) = child(step.path, "tasks")
            && let Ok(Job { made: true, lines, .. }) = Job::decode(&after.data)
        {
            let count = stood.get(dir).map_or(0, |chunks| chunks.values().sum());
            if lines != Some(count) {
                told.add(
                    step.at,
                    format!("{dir} says that all of its {lines:?} lines stood, and {count} did"),
                );
            }
        }
    });
}
