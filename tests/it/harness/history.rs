//! The history of an ensemble: the transaction log of a server, decoded. A watch reports that something changed,
//! and not how. The log has every write that was committed, in order, with the session that made it, and also
//! those that were refused.
//!
//! The format is that of ZooKeeper's `FileTxnLog`: a header of 16 bytes, then records of a checksum (8 bytes), a
//! length (4), a `TxnHeader` (client, cxid, zxid, time, type), the transaction and an end mark. All big-endian.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{Ensemble, LIMIT, Tree, eventually};

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    pub zxid: i64,
    /// The session that made the request; the `ephemeral_owner` of its ephemerals.
    pub session: i64,
    /// When, by the ensemble's clock, in ms since 1970.
    pub time_ms: i64,
    pub op: Op,
}

/// The effect of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Create {
        path: String,
        data: Vec<u8>,
        ephemeral: bool,
    },
    /// `version` is the new one.
    Set {
        path: String,
        data: Vec<u8>,
        version: i32,
    },
    Delete {
        path: String,
    },
    SessionBegins,
    SessionEnds,
    /// A write that changed nothing, with ZooKeeper's code: -103 is BadVersion, -110 NodeExists, -101 NoNode.
    Refused {
        code: i32,
    },
    Other {
        kind: i32,
    },
}

/// The code of a write refused because of the version it named.
pub const BAD_VERSION: i32 = -103;

impl Txn {
    /// The path of its znode, if it has one.
    pub fn path(&self) -> Option<&str> {
        match &self.op {
            Op::Create { path, .. } | Op::Set { path, .. } | Op::Delete { path } => Some(path),
            Op::SessionBegins | Op::SessionEnds | Op::Refused { .. } | Op::Other { .. } => None,
        }
    }
}

/// All transactions that were committed up to now.
pub fn read(ensemble: &Ensemble, tree: &Tree) -> Vec<Txn> {
    let now = tree.sync();
    let up = |mode: &str| matches!(mode, "leader" | "standalone" | "follower");
    let server = ensemble.status().into_iter().find(|server| up(&server.mode)).expect("a server serves");
    let folder = ensemble.dir.join(server.id.to_string()).join("data/version-2");
    eventually(LIMIT, "the log has our own write", || {
        let all = read_folder(&folder);
        all.last().is_some_and(|last| last.zxid >= now).then_some(all)
    })
}

/// The same from the logs of all servers: a server that was down lacks the transactions that it got as a snapshot.
pub fn read_all(ensemble: &Ensemble, tree: &Tree) -> Vec<Txn> {
    read(ensemble, tree);
    let mut all = BTreeMap::new();
    for server in ensemble.status() {
        let folder = ensemble.dir.join(server.id.to_string()).join("data/version-2");
        all.extend(read_folder(&folder).into_iter().map(|txn| (txn.zxid, txn)));
    }
    all.into_values().collect()
}

/// All transactions in one folder of a server.
pub fn read_folder(folder: &Path) -> Vec<Txn> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(folder).expect("a server's data").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(first) = name.strip_prefix("log.").and_then(|hex| i64::from_str_radix(hex, 16).ok()) {
            logs.push((first, entry.path()));
        }
    }
    logs.sort();
    let mut all: Vec<Txn> = Vec::new();
    for (_, path) in logs {
        let bytes = fs::read(path).unwrap_or_default();
        let mut rest = Bytes(bytes.get(16..).unwrap_or_default());
        // A record that is not complete yet, or the zeros after the last one, end the file.
        while let Some(txn) = record(&mut rest) {
            all.push(txn);
        }
    }
    all.sort_by_key(|txn| txn.zxid);
    all.dedup_by_key(|txn| txn.zxid);
    all
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn int(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn long(&mut self) -> Option<i64> {
        Some(i64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A length and so many bytes; a negative length is nothing.
    fn buffer(&mut self) -> Option<Vec<u8>> {
        let length = self.int()?;
        Some(self.take(usize::try_from(length).unwrap_or(0))?.to_vec())
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.buffer()?).ok()
    }
}

fn record(bytes: &mut Bytes<'_>) -> Option<Txn> {
    bytes.long()?;
    let length = usize::try_from(bytes.int()?).ok().filter(|length| *length > 0)?;
    let mut body = Bytes(bytes.take(length)?);
    bytes.take(1).filter(|end| *end == b"B")?;
    let (session, _cxid, zxid, time_ms) = (body.long()?, body.int()?, body.long()?, body.long()?);
    let op = match body.int()? {
        // create, create2, createContainer, createTTL
        1 | 15 | 19 | 21 => create(&mut body)?,
        2 | 20 => Op::Delete { path: body.text()? },
        5 => Op::Set { path: body.text()?, data: body.buffer()?, version: body.int()? },
        -10 => Op::SessionBegins,
        -11 => Op::SessionEnds,
        -1 => Op::Refused { code: body.int()? },
        kind => Op::Other { kind },
    };
    Some(Txn { zxid, session, time_ms, op })
}

fn create(body: &mut Bytes<'_>) -> Option<Op> {
    let (path, data) = (body.text()?, body.buffer()?);
    for _ in 0..body.int()? {
        body.int()?;
        body.text()?;
        body.text()?;
    }
    Some(Op::Create { path, data, ephemeral: body.take(1)? == [1] })
}
