//! Ensure: reads alone if all is there, parents before children, and never done on a lost connection.

use super::{Asked, LOST, NO_NODE, refused, stat};
use crate::machine::{Actions, Call, CallId, CallResult, CreateMode, Refusal, Reply, Routed};
use crate::recipes::ensure::{Ensure, Step};

fn exists() -> CallResult {
    Ok(Reply::Stat(stat(1)))
}

fn created(path: &str) -> CallResult {
    Ok(Reply::Created { path: path.into() })
}

/// An `Ensure` of /a/b and /a/c that checks, and its three checks: /a, /a/b, /a/c.
fn looking() -> (Ensure, Actions<()>, Vec<CallId>) {
    let mut out = Actions::default();
    let mut ensure = Ensure::new(["/a/c".to_string(), "/a/b".to_string()]);
    ensure.start(&mut out);
    let asked = Asked::of(&mut out).calls;
    let paths: Vec<_> = asked.iter().map(|(_, call)| call.path().to_string()).collect();
    assert_eq!(paths, ["/a", "/a/b", "/a/c"]);
    assert!(asked.iter().all(|(_, call)| !call.is_write()));
    (ensure, out, asked.into_iter().map(|(id, _)| id).collect())
}

#[test]
fn what_exists_is_only_read() {
    let (mut ensure, mut out, ids) = looking();
    assert_eq!(ensure.on_reply(ids[2], &exists(), &mut out), Routed::Mine(Step::Pending));
    assert_eq!(ensure.on_reply(ids[0], &exists(), &mut out), Routed::Mine(Step::Pending));
    assert_eq!(ensure.on_reply(ids[1], &exists(), &mut out), Routed::Mine(Step::Done));
    assert!(ensure.is_done());
    Asked::none(&mut out);
    assert_eq!(ensure.on_reply(ids[1], &exists(), &mut out), Routed::NotMine, "a reply counts once");
}

#[test]
fn parents_come_before_children_and_a_rival_is_no_error() {
    let (mut ensure, mut out, ids) = looking();
    for id in ids.into_iter().rev() {
        assert_eq!(ensure.on_reply(id, &NO_NODE, &mut out), Routed::Mine(Step::Pending));
    }
    for (path, answer) in
        [("/a", created("/a")), ("/a/b", refused(Refusal::NodeExists)), ("/a/c", created("/a/c"))]
    {
        assert!(!ensure.is_done());
        let (id, call) = Asked::one(&mut out);
        assert_eq!(call, Call::Create { path: path.into(), data: Vec::new(), mode: CreateMode::Persistent });
        let _ = ensure.on_reply(id, &answer, &mut out);
    }
    assert!(ensure.is_done());
    Asked::none(&mut out);
}

#[test]
fn what_is_forbidden_is_named() {
    let (mut ensure, mut out, ids) = looking();
    let step = ensure.on_reply(ids[1], &refused(Refusal::NoAuth), &mut out);
    assert_eq!(step, Routed::Mine(Step::Refused("/a/b".into(), Refusal::NoAuth)));
}

#[test]
fn a_lost_read_is_never_taken_for_an_existing_directory() {
    for lost_at in 0..3 {
        let (mut ensure, mut out, ids) = looking();
        assert_eq!(ensure.on_reply(ids[lost_at], &LOST, &mut out), Routed::Mine(Step::Pending));
        for id in ids {
            assert_ne!(ensure.on_reply(id, &exists(), &mut out), Routed::Mine(Step::Done));
        }
        assert!(!ensure.is_done());
        Asked::none(&mut out);
        ensure.reset();
        ensure.start(&mut out);
        assert_eq!(Asked::of(&mut out).calls.len(), 3);
    }
}

#[test]
fn a_doubtful_create_is_checked_on_the_next_connection() {
    let (mut ensure, mut out, ids) = looking();
    let _ = ensure.on_reply(ids[0], &exists(), &mut out);
    let _ = ensure.on_reply(ids[1], &NO_NODE, &mut out);
    let _ = ensure.on_reply(ids[2], &exists(), &mut out);
    let (id, _) = Asked::one(&mut out);
    assert_eq!(ensure.on_reply(id, &LOST, &mut out), Routed::Mine(Step::Pending));
    ensure.reset();
    assert_eq!(ensure.on_reply(id, &created("/a/b"), &mut out), Routed::NotMine, "stale");
    ensure.start(&mut out);
    for (id, call) in Asked::of(&mut out).calls {
        assert!(matches!(call, Call::Exists { .. }));
        let _ = ensure.on_reply(id, &exists(), &mut out);
    }
    assert!(ensure.is_done());
}

#[test]
fn a_parent_deleted_under_our_hands_is_made_again() {
    let (mut ensure, mut out, ids) = looking();
    let _ = ensure.on_reply(ids[0], &exists(), &mut out);
    let _ = ensure.on_reply(ids[1], &NO_NODE, &mut out);
    let _ = ensure.on_reply(ids[2], &exists(), &mut out);
    let (id, _) = Asked::one(&mut out);
    assert_eq!(ensure.on_reply(id, &NO_NODE, &mut out), Routed::Mine(Step::Pending));
    let checks = Asked::of(&mut out).calls;
    assert!(checks.len() == 3 && checks.iter().all(|(_, call)| matches!(call, Call::Exists { .. })));
}

/// ZooKeeper answers so when the connect string's chroot does not exist. Looking again would go on for ever.
#[test]
fn a_missing_chroot_is_refused() {
    let (mut ensure, mut out, ids) = looking();
    for id in ids {
        let _ = ensure.on_reply(id, &NO_NODE, &mut out);
    }
    let (id, _) = Asked::one(&mut out);
    let step = ensure.on_reply(id, &NO_NODE, &mut out);
    assert_eq!(step, Routed::Mine(Step::Refused("/a".into(), Refusal::NoNode)));
}

#[test]
fn replies_to_others_are_left_to_them() {
    let (mut ensure, mut out, _) = looking();
    assert_eq!(ensure.on_reply(CallId(999), &exists(), &mut out), Routed::NotMine);
}
