//! The rules that every simulation must keep, checked against the records: the ensemble's log of transactions, the true
//! times of runs, and the clients' reports to their users. Nothing here reads the state of a role.

pub mod assignments;
pub mod chunks;
pub mod clients;
pub mod elections;
pub mod leftovers;
pub mod orphans;
pub mod parts;
pub mod runs;
pub mod tasks;

use std::collections::BTreeMap;

use zkmw::contract::Layout;

use super::ensemble::{Op, SessionId, Txn};
use super::life::ROOT;
use super::member::{Kind, Who};
use super::swarm::SECOND;
use super::world::World;

/// A znode, as the log has it.
#[derive(Clone, Debug)]
pub struct Znode {
    pub data: Vec<u8>,
    pub czxid: i64,
    pub version: i32,
    pub owner: SessionId,
    pub changed: u64,
}

/// The tree at some time.
pub type Tree = BTreeMap<String, Znode>;

/// One change of one znode.
pub struct Step<'a> {
    pub zxid: i64,
    pub at: u64,
    pub session: SessionId,
    /// The member that did it; none for outsiders and for the ensemble itself.
    pub by: Option<Who>,
    pub path: &'a str,
    pub before: Option<&'a Znode>,
    pub after: Option<&'a Znode>,
    /// The session that owned it ended.
    pub ended: bool,
}

/// The findings of the checkers.
pub struct Complaints {
    pub all: Vec<String>,
}

impl Complaints {
    pub fn add(&mut self, at: u64, what: String) {
        if self.all.len() < 20 {
            self.all.push(format!("at {:.4}: {what}", at.saturating_sub(SECOND) as f64 / SECOND as f64));
        }
    }
}

/// The kind of a member.
pub fn kind(world: &World, who: Option<Who>) -> Option<&Kind> {
    who.map(|who| &world.members[who.m].kind)
}

/// Replays the log. `visit` gets each change, with the tree before it.
pub fn replay(world: &World, mut visit: impl FnMut(&Step<'_>, &Tree)) -> Tree {
    let mut tree = Tree::new();
    for txn in world.ens.log() {
        for (path, after, ended) in changes(txn, &tree) {
            let step = Step {
                zxid: txn.zxid,
                at: txn.time.as_nanos(),
                session: txn.session,
                by: world.history.by(txn.session),
                path: &path,
                before: tree.get(&path),
                after: after.as_ref(),
                ended,
            };
            visit(&step, &tree);
            match after {
                Some(znode) => drop(tree.insert(path, znode)),
                None => drop(tree.remove(&path)),
            }
        }
    }
    tree
}

/// The znodes that a transaction changes: their new states, and whether the end of their session deletes them.
fn changes(txn: &Txn, tree: &Tree) -> Vec<(String, Option<Znode>, bool)> {
    let at = txn.time.as_nanos();
    match &txn.op {
        Op::Create { path, data, ephemeral } => {
            let owner = if *ephemeral { txn.session } else { SessionId(0) };
            let (data, zxid) = (data.clone(), txn.zxid);
            let znode = Znode { data, czxid: zxid, version: 0, owner, changed: at };
            vec![(path.clone(), Some(znode), false)]
        }
        Op::Set { path, data, .. } => {
            let Some(old) = tree.get(path) else { return Vec::new() };
            let version = old.version + 1;
            let znode = Znode { data: data.clone(), version, changed: at, ..old.clone() };
            vec![(path.clone(), Some(znode), false)]
        }
        Op::Delete { path, .. } => vec![(path.clone(), None, false)],
        Op::CloseSession { .. } => {
            let own = tree.iter().filter(|(_, znode)| znode.owner == txn.session);
            own.map(|(path, _)| (path.clone(), None, true)).collect()
        }
        _ => Vec::new(),
    }
}

/// The name of a direct child of one of our directories.
pub fn child<'a>(path: &'a str, dir: &str) -> Option<&'a str> {
    let name = path.strip_prefix(ROOT)?.strip_prefix('/')?.strip_prefix(dir)?.strip_prefix('/')?;
    (!name.contains('/')).then_some(name)
}

/// The part of a path below the directory of jobs.
fn below(path: &str) -> Option<&str> {
    path.strip_prefix(ROOT)?.strip_prefix("/tasks/")
}

/// The path of a job, or of a task in it.
pub fn path_of(below: &str) -> String {
    Layout::new(ROOT).below_tasks(below)
}

/// The id of the task at a path.
pub fn task_of(path: &str) -> Option<&str> {
    let id = below(path)?;
    let (_, name) = id.split_once('/')?;
    (!name.contains('/')).then_some(id)
}

/// All complaints about a simulation.
pub fn all(world: &World) -> Vec<String> {
    let mut complaints = Complaints { all: Vec::new() };
    runs::check(world, &mut complaints);
    tasks::check(world, &mut complaints);
    let numbers = chunks::check(world, &mut complaints);
    assignments::check(world, &numbers, &mut complaints);
    parts::check(world, &mut complaints);
    elections::check(world, &mut complaints);
    clients::check(world, &mut complaints);
    orphans::check(world, &mut complaints);
    complaints.all
}
