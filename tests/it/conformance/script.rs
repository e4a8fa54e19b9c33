//! Scripts: their steps, the results, and how often each kind of step and result occurs in all of them.

use std::collections::BTreeMap;

use zkmw::machine::{Call, ChangeKind, CreateMode, Refusal, Reply, WatchMode};

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A session makes a call, and waits for the answer.
    Call { by: usize, call: Call },
    /// A session reads all changes that were reported to it. It sees nothing else of the marker, which is a path. The
    /// changes of one transaction to many znodes come in no order.
    ReadChanges { by: usize, marker: String, ordered: bool },
    /// A session ends, and another replaces it.
    Reopen { by: usize },
    /// A session's connection is cut, and another session replaces it. The first one lives on.
    Cut { by: usize },
    /// The session before expires, and with it this ephemeral of its.
    Expire { by: usize, witness: String },
}

/// The result of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    Reply(Result<Reply, Refusal>),
    Changes(Vec<(String, ChangeKind)>),
    Nothing,
}

/// A script, with the model's results.
pub struct Script {
    pub name: String,
    pub steps: Vec<Step>,
    pub seen: Vec<Seen>,
}

/// How often each kind of call, answer, event and fault occurred.
#[derive(Default)]
pub struct Counts(BTreeMap<String, u32>);

/// Kinds that the scripts together must have met. The numbers are for all that is drawn.
const EXPECTED: &[&str] = &[
    "create Persistent ok",
    "create Persistent NoNode",
    "create Persistent NodeExists",
    "create Persistent NoChildrenForEphemerals",
    "create Ephemeral ok",
    "create Ephemeral NodeExists",
    "create EphemeralSequential ok",
    "create EphemeralSequential NoNode",
    "create EphemeralSequential NoChildrenForEphemerals",
    "set ok",
    "set NoNode",
    "set BadVersion",
    "delete at a version ok",
    "delete at a version NoNode",
    "delete at a version BadVersion",
    "delete at a version NotEmpty",
    "delete any ok",
    "delete any NoNode",
    "delete any NotEmpty",
    "get ok",
    "get NoNode",
    "get and watch ok",
    "get and watch NoNode",
    "exists ok",
    "exists NoNode",
    "exists and watch ok",
    "exists and watch NoNode",
    "children ok",
    "children NoNode",
    "watch Node ok",
    "watch Tree ok",
    "event Created",
    "event Deleted",
    "event Data",
    "event Children",
    "reopen",
    "cut",
    "expire",
];

/// So often at least, each.
const OFTEN: u32 = 20;

impl Counts {
    pub fn add(&mut self, script: &Script) {
        for (step, seen) in script.steps.iter().zip(&script.seen) {
            match (step, seen) {
                (Step::Call { call, .. }, Seen::Reply(result)) => self.one(kind_of(call, result)),
                (_, Seen::Changes(changes)) => {
                    changes.iter().for_each(|(_, kind)| self.one(format!("event {kind:?}")));
                }
                (Step::Reopen { .. }, _) => self.one("reopen".to_owned()),
                (Step::Cut { .. }, _) => self.one("cut".to_owned()),
                (Step::Expire { .. }, _) => self.one("expire".to_owned()),
                other => panic!("{other:?}"),
            }
        }
    }

    fn one(&mut self, what: String) {
        *self.0.entry(what).or_default() += 1;
    }

    pub fn assert_complete(&self) {
        let count = |what: &&&str| self.0.get(**what).copied().unwrap_or(0);
        let rare: Vec<_> = EXPECTED.iter().filter(|what| count(what) < OFTEN).collect();
        assert!(rare.is_empty(), "not, or hardly ever, met: {rare:?}; {:?}", self.0);
    }
}

fn kind_of(call: &Call, result: &Result<Reply, Refusal>) -> String {
    let what = match call {
        Call::Create { mode: CreateMode::Persistent, .. } => "create Persistent",
        Call::Create { mode: CreateMode::Ephemeral, .. } => "create Ephemeral",
        Call::Create { mode: CreateMode::EphemeralSequential, .. } => "create EphemeralSequential",
        Call::Set { .. } => "set",
        Call::Delete { version: Some(_), .. } => "delete at a version",
        Call::Delete { version: None, .. } => "delete any",
        Call::Get { watch: false, .. } => "get",
        Call::Get { watch: true, .. } => "get and watch",
        Call::Exists { watch: false, .. } => "exists",
        Call::Exists { watch: true, .. } => "exists and watch",
        Call::Children { .. } => "children",
        Call::Acl { .. } => "acl",
        Call::Watch { mode: WatchMode::Node, .. } => "watch Node",
        Call::Watch { mode: WatchMode::Tree, .. } => "watch Tree",
    };
    match result {
        Ok(_) => format!("{what} ok"),
        Err(refusal) => format!("{what} {refusal:?}"),
    }
}
