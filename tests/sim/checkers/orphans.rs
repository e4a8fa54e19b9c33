//! No task is cancelled as an orphan while a client waits for it. A client that submits again under a key takes over
//! the task that it had left.

use std::collections::BTreeMap;

use zkmw::contract::task::Task;
use zkmw::contract::{TaskId, shared_job};

use super::{Complaints, child, kind, replay, task_of};
use crate::member::Kind;
use crate::swarm::SECOND;
use crate::users::{ClientSpec, Wish};
use crate::world::World;

pub fn check(world: &World, complaints: &mut Complaints) {
    // A leader that read the marks before this one existed may cancel late, but not for longer than its session
    // lives.
    let late = world.swarm.timeout + 2 * SECOND;
    // Since when each member has had a mark, and how many it has.
    let mut marked: BTreeMap<usize, (u64, usize)> = BTreeMap::new();
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    replay(world, |step, _| {
        if child(step.path, "submitters").is_some() {
            match (step.after, step.by) {
                (Some(_), Some(who)) => {
                    owners.insert(step.path.to_string(), who.m);
                    marked.entry(who.m).or_insert((step.at, 0)).1 += 1;
                }
                (Some(_), None) => {}
                (None, _) => {
                    let Some(m) = owners.remove(step.path) else { return };
                    if let Some((_, left)) = marked.get_mut(&m) {
                        *left -= 1;
                        if *left == 0 {
                            marked.remove(&m);
                        }
                    }
                }
            }
            return;
        }
        let Some(id) = task_of(step.path).and_then(TaskId::parse) else { return };
        let task = |znode: Option<&super::Znode>| znode.and_then(|znode| Task::decode(&znode.data).ok());
        let (Some(old), Some(new)) = (task(step.before), task(step.after)) else { return };
        if old.cancel || !new.cancel || !matches!(kind(world, step.by), Some(Kind::Master)) {
            return;
        }
        for (m, (since, _)) in &marked {
            let Kind::Client(spec) = &world.members[*m].kind else { continue };
            if since + late < step.at && wants(spec, &id) {
                let name = &world.members[*m].name;
                complaints.add(step.at, format!("{id} is cancelled as an orphan, and {name} waits for it"));
            }
        }
    });
}

/// Whether the task is the one that this user has submitted under its key.
fn wants(spec: &ClientSpec, id: &TaskId) -> bool {
    let Some(key) = spec.key.as_ref().filter(|_| spec.orphan && !spec.detach) else { return false };
    let (dir, name) = id.as_str().split_once('/').expect("a task's id");
    let job = spec.job.as_deref();
    match &spec.wish {
        Wish::Single(_) => name == key && job.map_or_else(|| shared_job(key) == dir, |job| job == dir),
        Wish::Batch(_) => match job {
            Some(job) => dir.starts_with(&format!("{job}~{key}~")),
            None => dir.starts_with(&format!("{key}~")),
        },
        Wish::Wait(_) | Wish::Operate(..) => false,
    }
}
