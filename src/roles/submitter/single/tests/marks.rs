//! What a submitter makes beside its task, and whether it may.

use super::*;

#[test]
fn credentials_for_an_open_service_are_refused_before_creates() {
    let with = |orphan_cancel| SingleParams {
        credentials: true,
        waiting: Waiting::Attached { orphan_cancel },
        ..params()
    };
    for orphan_cancel in [false, true] {
        let mut driver = ClientDriver::new(Single::new(with(orphan_cancel)).expect("a task"), &["/z"]);
        driver.connect();
        driver.settle();
        assert_eq!((driver.exit, driver.count(is_create)), (Some(exit::NOT_PERMITTED), 0));
        assert!(driver.logged("below /z,"), "{:?}", driver.logs);
    }
    // Only the service's own directory shows it: the root may have been made by hand, and open.
    let mut driver = ClientDriver::new(Single::new(with(true)).expect("a task"), &["/z", "/z/tasks"]);
    driver.closed.insert("/z/tasks".to_string());
    driver.connect();
    driver.play(Fate::NotSent);
    driver.connect();
    driver.settle();
    assert_eq!(driver.exit, None, "it waits: {:?}", driver.logs);
    // Once is enough.
    let checks = driver.count(|call| matches!(call, Call::Acl { .. }));
    driver.lose();
    driver.connect();
    driver.settle();
    assert_eq!(driver.count(|call| matches!(call, Call::Acl { .. })), checks);
    // Nothing exists: the first submitter makes it.
    let mut driver = ClientDriver::new(Single::new(with(false)).expect("a task"), &[]);
    driver.connect();
    driver.settle();
    assert!(driver.exit.is_none() && driver.znodes.contains_key("/z/tasks"));
}

/// The mark says that somebody wants the task. Every process that brings the key does.
#[test]
fn a_resubmit_under_a_key_marks_its_tasks_as_wanted() {
    let marks = |driver: &ClientDriver<Single>| {
        let below = driver.znodes.keys().filter_map(|path| path.strip_prefix("/z/submitters/"));
        below.map(str::to_string).collect::<Vec<_>>()
    };
    let mut first = waiting(SingleParams { waiting: Waiting::Attached { orphan_cancel: true }, ..keyed() });
    let submitter = first.task("/z/tasks/J/K").options.orphan_of.expect("it is named");
    assert_eq!(marks(&first), [format!("{submitter}~U.1")]);
    // It is killed, and its mark may exist yet. The same again, with the same wish or without, waits under its name.
    for orphan_cancel in [true, false] {
        let again =
            SingleParams { ulid: "V".into(), waiting: Waiting::Attached { orphan_cancel }, ..keyed() };
        let mut second = ClientDriver::new(Single::new(again).expect("fit"), &[]);
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
        waiting: Waiting::Attached { orphan_cancel: true },
        job: Some("J".into()),
        key: Some("L".into()),
        ..params()
    });
    assert_ne!(other.task("/z/tasks/J/L").options.orphan_of.as_ref(), Some(&submitter));
    let plain = waiting(keyed());
    assert!(plain.task("/z/tasks/J/K").options.orphan_of.is_none() && marks(&plain).is_empty());
}
