//! What a submitter makes beside its task, and whether it may.

use super::*;

#[test]
fn credentials_for_an_open_service_are_refused_before_creates() {
    let with = |orphan_cancel| SingleParams { credentials: true, orphan_cancel, ..params() };
    for orphan_cancel in [false, true] {
        let mut desk = Desk::new(Single::new(with(orphan_cancel)).expect("a task"), &["/z"]);
        desk.connect();
        desk.settle();
        assert_eq!((desk.exit, desk.count(is_create)), (Some(exit::NOT_PERMITTED), 0));
        assert!(desk.logged("below /z,"), "{:?}", desk.logs);
    }
    // Only the service's own directory tells: the root may have been made by hand, and open.
    let mut desk = Desk::new(Single::new(with(true)).expect("a task"), &["/z", "/z/tasks"]);
    desk.closed.insert("/z/tasks".to_string());
    desk.connect();
    desk.play(Fate::NotSent);
    desk.connect();
    desk.settle();
    assert_eq!(desk.exit, None, "it waits: {:?}", desk.logs);
    // Once is enough.
    let looks = desk.count(|call| matches!(call, Call::Acl { .. }));
    desk.lose();
    desk.connect();
    desk.settle();
    assert_eq!(desk.count(|call| matches!(call, Call::Acl { .. })), looks);
    // Nothing stands: whoever comes first makes it.
    let mut desk = Desk::new(Single::new(with(false)).expect("a task"), &[]);
    desk.connect();
    desk.settle();
    assert!(desk.exit.is_none() && desk.znodes.contains_key("/z/tasks"));
}

/// The mark says that somebody wants the task. Whoever brings the key does, in whatever life.
#[test]
fn a_resubmit_under_a_key_marks_its_tasks_as_wanted() {
    let marks = |desk: &Desk<Single>| {
        let below = desk.znodes.keys().filter_map(|path| path.strip_prefix("/z/submitters/"));
        below.map(str::to_string).collect::<Vec<_>>()
    };
    let mut first = waiting(SingleParams { orphan_cancel: true, ..keyed() });
    let submitter = first.task("/z/tasks/J/K").options.orphan_of.expect("it is named");
    assert_eq!(marks(&first), [format!("{submitter}~U.1")]);
    // It is killed, and its mark may stand yet. The same again, with the same wish or without, waits under its name.
    for orphan_cancel in [true, false] {
        let again = SingleParams { ulid: "V".into(), orphan_cancel, ..keyed() };
        let mut second = Desk::new(Single::new(again).expect("fit"), &[]);
        second.znodes = std::mem::take(&mut first.znodes);
        second.connect();
        second.settle();
        assert_eq!(
            marks(&second),
            [format!("{submitter}~U.1"), format!("{submitter}~V.1")],
            "{orphan_cancel}"
        );
        second.lose();
        second.connect();
        second.settle();
        assert!(marks(&second).contains(&format!("{submitter}~V.2")), "on each session");
        second.znodes.retain(|path, _| !path.contains("~V."));
        first.znodes = second.znodes;
    }
    // A task that is to go on without us needs none, and of one with another key we know nothing.
    let other = waiting(SingleParams {
        orphan_cancel: true,
        job: Some("J".into()),
        key: Some("L".into()),
        ..params()
    });
    assert_ne!(other.task("/z/tasks/J/L").options.orphan_of.as_ref(), Some(&submitter));
    let plain = waiting(keyed());
    assert!(plain.task("/z/tasks/J/K").options.orphan_of.is_none() && marks(&plain).is_empty());
}
