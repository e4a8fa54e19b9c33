//! The znodes as one server has them: the transaction that a write leads to, and the changes that it makes.
//! It knows no connection and no watch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use zkmw::machine::{Call, ChangeKind, CreateMode, Refusal, Stat};

use super::{Op, SessionId, Txn};

/// A znode.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub data: Arc<Vec<u8>>,
    pub stat: Stat,
    children: BTreeSet<String>,
    /// The next sequence number: how many children were ever created. Deletions don't count.
    sequence: i32,
}

impl Node {
    /// The names of the children.
    pub fn children(&self) -> &BTreeSet<String> {
        &self.children
    }

    pub(super) fn set_sequence(&mut self, next: i32) {
        self.sequence = next;
    }
}

/// All znodes.
pub struct Tree {
    pub nodes: BTreeMap<String, Node>,
    ephemerals: BTreeMap<SessionId, BTreeSet<String>>,
}

/// The path of the parent, and the name below it; `None` for the root.
fn split(path: &str) -> Option<(&str, &str)> {
    let (parent, name) = path.rsplit_once('/').filter(|(_, name)| !name.is_empty())?;
    Some((if parent.is_empty() { "/" } else { parent }, name))
}

impl Tree {
    /// Nothing but the root.
    pub fn new() -> Tree {
        Tree { nodes: BTreeMap::from([("/".to_owned(), Node::default())]), ephemerals: BTreeMap::new() }
    }

    /// The operation that the leader makes of a write. Its checks have the order of a real leader's.
    pub fn prepare(&self, call: &Call) -> Op {
        let op = match call {
            Call::Create { path, data, mode } => self.prepare_create(path, data, *mode),
            Call::Set { path, data, version } => self.prepare_set(path, data, *version),
            Call::Delete { path, version } => self.prepare_delete(path, *version),
            read => unreachable!("{read:?} is no write"),
        };
        op.unwrap_or_else(|refusal| Op::Refused { path: call.path().to_owned(), refusal })
    }

    fn prepare_create(&self, path: &str, data: &[u8], mode: CreateMode) -> Result<Op, Refusal> {
        let (parent, _) = split(path).ok_or(Refusal::BadArguments)?;
        let parent = self.nodes.get(parent).ok_or(Refusal::NoNode)?;
        let path = match mode {
            CreateMode::EphemeralSequential => format!("{path}{:010}", parent.sequence),
            CreateMode::Persistent | CreateMode::Ephemeral => path.to_owned(),
        };
        if self.nodes.contains_key(&path) {
            return Err(Refusal::NodeExists);
        }
        if parent.stat.ephemeral_owner != 0 {
            return Err(Refusal::NoChildrenForEphemerals);
        }
        Ok(Op::Create { path, data: data.to_vec(), ephemeral: mode != CreateMode::Persistent })
    }

    fn prepare_set(&self, path: &str, data: &[u8], version: i32) -> Result<Op, Refusal> {
        let current = self.nodes.get(path).ok_or(Refusal::NoNode)?.stat.version;
        if current != version {
            return Err(Refusal::BadVersion);
        }
        Ok(Op::Set { path: path.to_owned(), data: data.to_vec(), version: current.wrapping_add(1) })
    }

    fn prepare_delete(&self, path: &str, version: Option<i32>) -> Result<Op, Refusal> {
        let node = self.nodes.get(path).ok_or(Refusal::NoNode)?;
        if version.is_some_and(|version| version != node.stat.version) {
            return Err(Refusal::BadVersion);
        }
        if !node.children.is_empty() {
            return Err(Refusal::NotEmpty);
        }
        Ok(Op::Delete { path: path.to_owned() })
    }

    /// Carries out a transaction that is possible, and lists in order the changes that a watch would see.
    pub fn apply(
        &mut self,
        txn: &Txn,
        data: &Arc<Vec<u8>>,
        ms: i64,
        changes: &mut Vec<(String, ChangeKind)>,
    ) {
        match &txn.op {
            Op::Create { path, ephemeral, .. } => {
                let owner = if *ephemeral { txn.session } else { SessionId(0) };
                let stat = Stat {
                    czxid: txn.zxid,
                    mzxid: txn.zxid,
                    pzxid: txn.zxid,
                    ctime_ms: ms,
                    mtime_ms: ms,
                    ephemeral_owner: owner.0,
                    data_length: length(data),
                    ..Stat::default()
                };
                self.insert(path, Node { data: Arc::clone(data), stat, ..Node::default() }, changes);
            }
            Op::Set { path, version, .. } => {
                let node = self.nodes.get_mut(path).expect("it was checked");
                node.data = Arc::clone(data);
                node.stat.version = *version;
                (node.stat.mzxid, node.stat.mtime_ms) = (txn.zxid, ms);
                node.stat.data_length = length(data);
                changes.push((path.clone(), ChangeKind::Data));
            }
            Op::Delete { path } => self.delete(path, txn.zxid, changes),
            Op::CloseSession { .. } => {
                for path in self.ephemerals.remove(&txn.session).unwrap_or_default() {
                    self.delete(&path, txn.zxid, changes);
                }
            }
            Op::OpenSession | Op::Refused { .. } => {}
        }
    }

    fn insert(&mut self, path: &str, node: Node, changes: &mut Vec<(String, ChangeKind)>) {
        let (parent_path, name) = split(path).expect("the root is not created");
        let parent = self.nodes.get_mut(parent_path).expect("it was checked");
        parent.children.insert(name.to_owned());
        parent.sequence = parent.sequence.wrapping_add(1);
        parent.stat.num_children += 1;
        parent.stat.pzxid = node.stat.czxid;
        if node.stat.ephemeral_owner != 0 {
            let owner = SessionId(node.stat.ephemeral_owner);
            self.ephemerals.entry(owner).or_default().insert(path.to_owned());
        }
        self.nodes.insert(path.to_owned(), node);
        changes.push((path.to_owned(), ChangeKind::Created));
        changes.push((parent_path.to_owned(), ChangeKind::Children));
    }

    fn delete(&mut self, path: &str, zxid: i64, changes: &mut Vec<(String, ChangeKind)>) {
        let gone = self.nodes.remove(path).expect("it was checked");
        let (parent_path, name) = split(path).expect("the root is not deleted");
        let parent = self.nodes.get_mut(parent_path).expect("a parent goes after its children");
        parent.children.remove(name);
        parent.stat.num_children -= 1;
        parent.stat.pzxid = zxid;
        if let Some(own) = self.ephemerals.get_mut(&SessionId(gone.stat.ephemeral_owner)) {
            own.remove(path);
        }
        changes.push((path.to_owned(), ChangeKind::Deleted));
        changes.push((parent_path.to_owned(), ChangeKind::Children));
    }
}

fn length(data: &[u8]) -> i32 {
    i32::try_from(data.len()).expect("the session layer refuses more")
}
