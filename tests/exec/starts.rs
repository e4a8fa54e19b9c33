//! What cannot be started; many at once; the end of the executor.

use super::*;

#[test]
fn what_cannot_be_started_is_told_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    let orphan = dir.path().join("orphan");
    fs::write(&orphan, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&orphan, fs::Permissions::from_mode(0o755)).unwrap();
    let long = "x".repeat(200 << 10);
    let mut rig = Rig::new();
    let mut bad_env = sh("exit 0");
    bad_env.env.push(("A=B".into(), "c".into()));
    for (spec, expected) in [
        (argv(&["no-such-program-here"]), "no such program: \"no-such-program-here\" is not in PATH"),
        (argv(&["/no/such/program"]), "no such program: \"/no/such/program\""),
        (argv(&["/etc/passwd/x"]), "Not a directory"),
        (argv(&["/"]), "it is a directory"),
        (argv(&[plain.to_str().unwrap()]), "it is not executable"),
        (argv(&[orphan.to_str().unwrap()]), "the interpreter it asks for"),
        (argv(&["echo", &long]), "204806 bytes, are more than the system takes"),
        (argv(&["echo", "a\0b"]), "argument 1 contains a NUL byte"),
        (argv(&["a\0b"]), "argument 0 contains a NUL byte"),
        (argv(&[]), "there is no program to run"),
        (argv(&[""]), "no such program"),
        (bad_env, "not a valid environment variable: \"A=B\""),
    ] {
        let (kind, why) = rig.not_started(spec);
        assert!(why.contains(expected), "{why:?} should say {expected:?}");
        assert_eq!(kind, NotStartedKind::Permanent, "{why}");
    }
    assert!(rig.executor.kill_all());
    until("idle", || rig.executor.is_idle());
}

#[test]
fn want_of_descriptors_is_transient() {
    let dir = tempfile::tempdir().unwrap();
    assert!(spawn_helper("starved", dir.path()).wait().unwrap().success());
}

pub fn starved() {
    let mut rig = Rig::new();
    rig.run(sh("exit 0"));
    // The listing has one open, too.
    let used = fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1;
    let mut ended = 0;
    // With none to spare, and so that they run out at every stage of a start.
    for spare in 0..16 {
        let limit = Rlimit { current: Some(used + spare), maximum: Some(4096) };
        setrlimit(Resource::Nofile, limit).unwrap();
        let run = rig.start(sh("exit 5"));
        match rig.over(run) {
            ExecEvent::NotStarted { kind, why, .. } => {
                assert!(ended == 0 && why.contains("open files"), "{why}");
                assert_eq!(kind, NotStartedKind::Transient);
            }
            ExecEvent::Ended { report, .. } => {
                ended += 1;
                assert!(spare > 3);
                assert_eq!(report.ended, Ended::Exit(5));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(ended > 3);
}

// Many, all, and the end of the executor.

#[test]
fn two_hundred_at_once() {
    let mut rig = Rig::new();
    let runs: Vec<RunId> = (0..200).map(|n| rig.start(sh(&format!("echo {n}; exit {}", n % 7)))).collect();
    for (n, run) in runs.into_iter().enumerate() {
        let report = rig.ended(run);
        assert_eq!(report.ended, Ended::Exit((n % 7) as i32));
        assert_eq!(text(&report.stdout), format!("{n}\n"));
    }
    until("idle", || rig.executor.is_idle());
}

#[test]
fn kill_all_leaves_nobody_whatever_stage_they_are_in() {
    let mut rig = Rig::new();
    let runs: Vec<RunId> = (0..50).map(|_| rig.start(sh("sleep 30 & sleep 30"))).collect();
    assert!(rig.executor.kill_all());
    for run in runs {
        assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    }
    until("idle", || rig.executor.is_idle());
    assert_eq!(rig.run(sh("exit 4")).ended, Ended::Exit(4));
}

#[test]
fn dropping_the_executor_kills() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("inner");
    let mut rig = Rig::new();
    let (_, pid) = rig.started(sh(&format!("sleep 30 & echo $! > {}; wait", marker.display())));
    let inner = pid_in(&marker);
    drop(rig);
    assert!(!is_alive(pid) && !is_alive(inner));
}
