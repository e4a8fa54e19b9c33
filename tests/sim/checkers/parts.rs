//! A part of a batch is marked as complete only after all its lines have existed in chunks: a client that waits for it
//! takes a chunk that is missing then for a collected one.

use std::collections::BTreeMap;

use zkmw::contract::task::{Job, Task};

use super::{Complaints, child, replay, task_of};
use crate::world::World;

pub fn check(world: &World, complaints: &mut Complaints) {
    // The lines of each chunk that ever existed, by its part and its name.
    let mut existed: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    replay(world, |step, _| {
        let Some(after) = step.after else {
            // A client with the same key may create it again, of other lines.
            return drop(child(step.path, "tasks").and_then(|dir| existed.remove(dir)));
        };
        if let Some((dir, name)) = task_of(step.path).and_then(|id| id.split_once('/')) {
            if let Ok(task) = Task::decode(&after.data) {
                let lines = task.positions().count() as u64;
                existed.entry(dir.to_string()).or_default().insert(name.to_string(), lines);
            }
        } else if let Some(dir) = child(step.path, "tasks")
            && let Ok(Job { made: true, lines, .. }) = Job::decode(&after.data)
        {
            let count = existed.get(dir).map_or(0, |chunks| chunks.values().sum());
            if lines != Some(count) {
                complaints.add(
                    step.at,
                    format!("{dir} says that all of its {lines:?} lines existed, and {count} did"),
                );
            }
        }
    });
}
