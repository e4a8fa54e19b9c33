//! Copies tell of nothing that did not stand in a task, or does not come to stand there if its task is made later.

use std::collections::BTreeMap;

use zkmw::contract::copies::{Copies, first_made, is_copies};
use zkmw::contract::{name_of, parent_of};

use super::{Complaints, child, path_of, replay, task_of};
use crate::world::World;

/// Goes through all copies.
pub fn check(world: &World, told: &mut Complaints) {
    let mut stood: BTreeMap<(String, i32), Vec<u8>> = BTreeMap::new();
    let mut made: BTreeMap<String, (i64, Vec<u8>)> = BTreeMap::new();
    replay(world, |step, _| {
        let Some(znode) = step.after else { return };
        if task_of(step.path).is_some() {
            if step.before.is_none()
                && let Some((at, data)) = made.get(step.path)
                && (*at >= step.zxid || *data != znode.data)
            {
                told.add(step.at, format!("{} is made as another than its copy says", step.path));
            }
            stood.insert((step.path.to_string(), znode.version), znode.data.clone());
        }
        let Some(dir) = dir_of_copies(step.path) else { return };
        match Copies::decode(&znode.data) {
            Ok(copies) if first_made(name_of(step.path)).is_some() => {
                for (name, seen) in copies.tasks {
                    let path = path_of(&format!("{dir}/{name}"));
                    // A request in doubt may be carried out late, when its tasks stand already: no leader may believe it
                    // then, and who does is found by what is run twice.
                    if !stood.contains_key(&(path.clone(), 0)) {
                        made.insert(path, (step.zxid, seen.data.into_bytes()));
                    }
                }
            }
            Ok(_) => {}
            Err(why) => told.add(step.at, format!("{} has no copies: {why}", step.path)),
        }
    });
}

/// The directory of the tasks of which a znode has copies.
fn dir_of_copies(path: &str) -> Option<&str> {
    // What an outsider wrote is nobody's word.
    let dir = parent_of(path).filter(|_| is_copies(name_of(path)) && !path.contains("garbage"))?;
    child(dir, "batches")
}
