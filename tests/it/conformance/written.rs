//! Scripts written by hand: what roles rely on, one thing at a time, and the corners that chance rarely meets.

use zkmw::machine::{Call, CreateMode, WatchMode};

use super::script::Step;

use CreateMode::{Ephemeral, EphemeralSequential, Persistent};

/// More than the session layer lets through.
const TOO_MUCH: usize = 1_000_001;

fn call(by: usize, call: Call) -> Step {
    Step::Call { by, call }
}

fn create(by: usize, path: &str, mode: CreateMode) -> Step {
    call(by, Call::Create { path: path.into(), data: b"x".to_vec(), mode })
}

fn set(by: usize, path: &str, version: i32) -> Step {
    call(by, Call::Set { path: path.into(), data: b"yy".to_vec(), version })
}

fn delete(by: usize, path: &str, version: Option<i32>) -> Step {
    call(by, Call::Delete { path: path.into(), version })
}

fn get(by: usize, path: &str, watch: bool) -> Step {
    call(by, Call::Get { path: path.into(), watch })
}

fn exists(by: usize, path: &str, watch: bool) -> Step {
    call(by, Call::Exists { path: path.into(), watch })
}

fn children(by: usize, path: &str) -> Step {
    call(by, Call::Children { path: path.into() })
}

fn watch(by: usize, path: &str, mode: WatchMode) -> Step {
    call(by, Call::Watch { path: path.into(), mode })
}

fn changes(by: usize, marker: &str) -> Step {
    Step::ReadChanges { by, marker: format!("/{marker}"), ordered: true }
}

fn changes_any_order(by: usize, marker: &str) -> Step {
    Step::ReadChanges { by, marker: format!("/{marker}"), ordered: false }
}

/// Each with its name.
pub fn scripts() -> Vec<(&'static str, Vec<Step>)> {
    vec![
        ("refusals, in the order in which servers check", refusals()),
        ("what the session layer refuses", refused_by_ourselves()),
        ("sequence numbers", sequences()),
        ("one-shot watches", one_shots()),
        ("persistent watches", persistent()),
        ("watches that overlap", overlaps()),
        ("stats of a directory", directory()),
        ("a session is closed", closed()),
        ("a connection is cut", cut()),
    ]
}

fn refusals() -> Vec<Step> {
    vec![
        create(0, "/w1", Persistent),
        create(0, "/w1", Persistent),
        create(0, "/w1/no/a", Persistent),
        create(0, "/w1/no/a", Ephemeral),
        create(0, "/w1/no/a-", EphemeralSequential),
        create(0, "/w1/e", Ephemeral),
        create(1, "/w1/e", Ephemeral),
        create(1, "/w1/e", Persistent),
        create(0, "/w1/e/a", Persistent),
        create(0, "/w1/e/a", Ephemeral),
        create(0, "/w1/e/a-", EphemeralSequential),
        set(0, "/w1/no", 0),
        set(0, "/w1/e", 1),
        set(1, "/w1/e", 0),
        set(1, "/w1/e", 0),
        delete(0, "/w1/no", None),
        delete(0, "/w1/no", Some(3)),
        // The version is checked before the children.
        delete(0, "/w1", Some(1)),
        delete(0, "/w1", Some(0)),
        delete(0, "/w1", None),
        delete(1, "/w1/e", Some(0)),
        delete(1, "/w1/e", Some(1)),
        get(0, "/w1/no", false),
        exists(0, "/w1/no", false),
        children(0, "/w1/no"),
        children(0, "/w1"),
        delete(1, "/w1", Some(0)),
        children(0, "/w1"),
    ]
}

fn refused_by_ourselves() -> Vec<Step> {
    let mut steps = vec![create(0, "/w2", Persistent)];
    for path in ["w2", "", "/w2/", "//w2", "/w2/./a", "/w2/.."] {
        steps.extend([create(0, path, Persistent), get(0, path, true), children(0, path)]);
    }
    let data = vec![0; TOO_MUCH];
    steps.extend([
        call(0, Call::Create { path: "/w2/a".into(), data: data.clone(), mode: Persistent }),
        call(0, Call::Set { path: "/w2".into(), data, version: 0 }),
        call(0, Call::Set { path: "/w2".into(), data: vec![0; TOO_MUCH - 1], version: 0 }),
        exists(1, "/w2", false),
        set(0, "/w2", -1),
        delete(0, "/w2", Some(-1)),
        delete(0, "/", None),
        create(0, "/", Persistent),
        watch(0, "/", WatchMode::Tree),
        exists(0, "/w2", false),
    ]);
    steps
}

fn sequences() -> Vec<Step> {
    vec![
        create(0, "/w3", Persistent),
        create(0, "/w3/s-", EphemeralSequential),
        create(1, "/w3/s-", EphemeralSequential),
        // Other prefixes and other kinds of children count too; deletions, refusals and sets don't.
        create(1, "/w3/other-", EphemeralSequential),
        create(1, "/w3/p", Persistent),
        create(1, "/w3/p", Persistent),
        create(1, "/w3/s-", EphemeralSequential),
        delete(1, "/w3/s-0000000000", None),
        delete(1, "/w3/p", Some(0)),
        create(0, "/w3/s-", EphemeralSequential),
        set(0, "/w3", 0),
        create(0, "/w3/p", Persistent),
        // One level lower is another parent.
        create(0, "/w3/p/s-", EphemeralSequential),
        create(0, "/w3/s-", EphemeralSequential),
        Step::Reopen { by: 0 },
        create(0, "/w3/s-", EphemeralSequential),
        children(1, "/w3"),
        children(1, "/w3/p"),
        delete(1, "/w3/p", None),
        create(0, "/w3/p", Persistent),
        create(0, "/w3/p/s-", EphemeralSequential),
        exists(1, "/w3", false),
    ]
}

fn one_shots() -> Vec<Step> {
    vec![
        create(0, "/w4", Persistent),
        // A get of a znode that isn't there leaves no watch, an exists does.
        get(0, "/w4/a", true),
        exists(1, "/w4/a", true),
        create(2, "/w4/a", Persistent),
        changes(0, "w4-1"),
        changes(1, "w4-2"),
        set(2, "/w4/a", 0),
        changes(1, "w4-3"),
        // Both together report once.
        get(0, "/w4/a", true),
        exists(0, "/w4/a", true),
        get(1, "/w4/a", true),
        set(2, "/w4/a", 1),
        set(2, "/w4/a", 2),
        changes(0, "w4-4"),
        changes(1, "w4-5"),
        // A session's own change is reported to it too. A child is no change of its parent.
        get(0, "/w4/a", true),
        create(0, "/w4/a/b", Persistent),
        changes(0, "w4-6"),
        delete(0, "/w4/a/b", None),
        delete(0, "/w4/a", None),
        changes(0, "w4-7"),
        // A refused write is no change.
        exists(0, "/w4/a", true),
        exists(1, "/w4", true),
        set(1, "/w4/a", 0),
        delete(1, "/w4/a", None),
        create(1, "/w4/a/b", Persistent),
        set(1, "/w4", 7),
        changes(0, "w4-8"),
        changes(1, "w4-9"),
        create(1, "/w4/a", Ephemeral),
        changes(0, "w4-10"),
        get(0, "/w4/a", true),
        Step::Reopen { by: 1 },
        changes(0, "w4-11"),
    ]
}

fn persistent() -> Vec<Step> {
    vec![
        create(0, "/w5", Persistent),
        watch(0, "/w5", WatchMode::Node),
        watch(1, "/w5", WatchMode::Tree),
        // On a znode that isn't there.
        watch(2, "/w5/a", WatchMode::Node),
        create(0, "/w5/a", Persistent),
        create(0, "/w5/a/b", Persistent),
        create(1, "/w5/a/c-", EphemeralSequential),
        set(2, "/w5/a/b", 0),
        set(2, "/w5/a", 0),
        set(2, "/w5", 0),
        delete(2, "/w5/a/b", None),
        delete(2, "/w5/a/c-0000000001", None),
        delete(2, "/w5/a", None),
        changes(0, "w5-1"),
        changes(1, "w5-2"),
        changes(2, "w5-3"),
        // They stay.
        create(0, "/w5/a", Ephemeral),
        set(0, "/w5", 1),
        delete(0, "/w5/a", None),
        delete(0, "/w5", None),
        create(0, "/w5", Persistent),
        changes(0, "w5-4"),
        changes(1, "w5-5"),
        changes(2, "w5-6"),
        // A name that begins alike is not below.
        create(0, "/w5-not", Persistent),
        changes(1, "w5-7"),
        watch(0, "/", WatchMode::Node),
        set(1, "/w5", 0),
        changes(1, "w5-8"),
    ]
}

fn overlaps() -> Vec<Step> {
    vec![
        create(0, "/w6", Persistent),
        create(0, "/w6/a", Persistent),
        // A one-shot first, then a persistent watch on the same path, and the other way round.
        get(0, "/w6/a", true),
        watch(0, "/w6/a", WatchMode::Node),
        watch(1, "/w6/a", WatchMode::Node),
        exists(1, "/w6/a", true),
        get(2, "/w6/a", true),
        watch(2, "/w6", WatchMode::Tree),
        set(0, "/w6/a", 0),
        set(0, "/w6/a", 1),
        changes(0, "w6-1"),
        changes(1, "w6-2"),
        changes(2, "w6-3"),
        // Trees in trees, and a node in them.
        watch(2, "/w6/a/t", WatchMode::Tree),
        watch(2, "/w6/a", WatchMode::Node),
        create(0, "/w6/a/t", Persistent),
        exists(2, "/w6/a/t/u", true),
        create(0, "/w6/a/t/u", Persistent),
        create(0, "/w6/a/t/u/v", Ephemeral),
        set(0, "/w6/a/t/u/v", 0),
        delete(0, "/w6/a/t/u/v", None),
        delete(0, "/w6/a/t/u", None),
        changes(2, "w6-4"),
        // The same watch twice.
        watch(2, "/w6", WatchMode::Tree),
        watch(1, "/w6/a", WatchMode::Node),
        delete(0, "/w6/a/t", None),
        delete(0, "/w6/a", None),
        changes(1, "w6-5"),
        changes(2, "w6-6"),
    ]
}

fn directory() -> Vec<Step> {
    vec![
        create(0, "/w7", Persistent),
        exists(1, "/w7", false),
        create(0, "/w7/a", Persistent),
        exists(1, "/w7", false),
        create(0, "/w7/a/deep", Persistent),
        exists(1, "/w7", false),
        set(0, "/w7", 0),
        get(1, "/w7", false),
        set(0, "/w7/a", 0),
        exists(1, "/w7", false),
        delete(0, "/w7/a/deep", None),
        exists(1, "/w7/a", false),
        delete(0, "/w7/a", Some(1)),
        exists(1, "/w7", false),
        call(0, Call::Set { path: "/w7".into(), data: Vec::new(), version: 1 }),
        get(1, "/w7", false),
        // A znode that is created again begins anew.
        delete(0, "/w7", None),
        create(1, "/w7", Ephemeral),
        get(0, "/w7", false),
    ]
}

fn closed() -> Vec<Step> {
    vec![
        create(0, "/w8", Persistent),
        create(1, "/w8/a", Ephemeral),
        create(1, "/w8/s-", EphemeralSequential),
        create(2, "/w8/other", Ephemeral),
        watch(0, "/w8", WatchMode::Tree),
        watch(2, "/w8", WatchMode::Node),
        get(2, "/w8/a", true),
        watch(1, "/w8", WatchMode::Tree),
        Step::Reopen { by: 1 },
        changes_any_order(0, "w8-1"),
        changes_any_order(2, "w8-2"),
        exists(1, "/w8", false),
        children(1, "/w8"),
        // The new session has no watch, and owns what it creates.
        create(1, "/w8/a", Ephemeral),
        get(0, "/w8/a", false),
        get(0, "/w8/other", false),
        changes(1, "w8-3"),
        changes(0, "w8-4"),
    ]
}

fn cut() -> Vec<Step> {
    vec![
        create(0, "/w9", Persistent),
        create(0, "/w9/a", Ephemeral),
        create(0, "/w9/l-", EphemeralSequential),
        watch(0, "/w9", WatchMode::Tree),
        exists(0, "/w9/b", true),
        watch(1, "/w9", WatchMode::Tree),
        changes(0, "w9-1"),
        Step::Cut { by: 0 },
        // The old session's ephemerals still exist, and its successor can't have them. Its watches are gone.
        create(0, "/w9/a", Ephemeral),
        get(0, "/w9/a", true),
        create(1, "/w9/b", Persistent),
        changes(0, "w9-2"),
        Step::Expire { by: 0, witness: "/w9/a".into() },
        changes(0, "w9-3"),
        changes_any_order(1, "w9-4"),
        create(0, "/w9/a", Ephemeral),
        create(0, "/w9/l-", EphemeralSequential),
        get(1, "/w9/a", false),
        exists(1, "/w9", false),
        children(1, "/w9"),
    ]
}
