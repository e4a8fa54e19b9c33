//! Starts: programs that cannot be started, many at once, and the end of the executor.

use super::*;
use rustix::process::prlimit;

#[test]
fn a_failed_start_is_reported_with_its_reason() {
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
    // The listing has one open, too.
    let used = fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1;
    let limit = Rlimit { current: Some(used + 4), maximum: Some(4096) };
    setrlimit(Resource::Nofile, limit).unwrap();
    // Each needs a slot of its own.
    let runs: Vec<RunId> = (0..12).map(|_| rig.start(sh("sleep 600"))).collect();
    let (mut started, mut refused) = (Vec::new(), 0);
    while started.len() + refused < runs.len() {
        match rig.events.recv_timeout(PATIENCE).unwrap() {
            ExecEvent::Started { run, .. } => started.push(run),
            ExecEvent::NotStarted { kind, why, .. } => {
                assert!(kind == NotStartedKind::Shortage && why.contains("LimitNOFILE"), "{why}");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(!started.is_empty() && refused > 0, "{started:?} {refused}");
    // The existing slots are still used.
    rig.executor.signal(started[0], GroupSignal::Kill);
    assert_eq!(rig.ended(started[0]).ended, Ended::Signal(9));
    assert_eq!(rig.run(sh("exit 5")).ended, Ended::Exit(5));
    setrlimit(Resource::Nofile, Rlimit { current: Some(4096), maximum: Some(4096) }).unwrap();
    assert_eq!(rig.run(sh("exit 5")).ended, Ended::Exit(5));
}

#[test]
fn want_of_processes_is_transient_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let output = crate::crowd::as_nobody("threadless", dir.path());
    assert!(output.status.success(), "{output:?}");
}

/// The helper: an ordinary user with too many processes already.
pub fn threadless() {
    let mut rig = Rig::new();
    let keeper = Pid::from_raw(crate::keeper::keeper_pid().cast_signed());
    let limit = rustix::process::getrlimit(Resource::Nproc);
    prlimit(keeper, Resource::Nproc, Rlimit { current: Some(1), ..limit }).unwrap();
    for handler in [false, true] {
        let request = handler.then(|| "{}".to_owned());
        let (kind, why) = rig.not_started(RunSpec { request, ..sh("exit 0") });
        assert!(kind == NotStartedKind::Shortage && why.contains("ulimit -u"), "{why}");
    }
    prlimit(keeper, Resource::Nproc, limit).unwrap();
    assert!(rig.executor.is_idle());
    assert_eq!(rig.run(sh("exit 5")).ended, Ended::Exit(5));
}

#[test]
fn nothing_is_started_whose_end_could_not_be_brought_about() {
    let dir = tempfile::tempdir().unwrap();
    assert!(spawn_helper("crowded", dir.path()).wait().unwrap().success());
}

/// The helper: starts more than it may have descriptors for.
pub fn crowded() {
    let complaints = crate::terminal::Lines::default();
    log::set_boxed_logger(Box::new(complaints.clone())).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    setrlimit(Resource::Nofile, Rlimit { current: Some(40), maximum: Some(40) }).unwrap();
    let mut rig = Rig::by(Means { cgroups: true, ..plain() });
    let runs: Vec<RunId> = (0..60).map(|_| rig.start(sh("setsid sleep 600 & sleep 600"))).collect();
    let mut started = 0;
    until("each has started, or has not", || {
        while let Ok(event) = rig.events.try_recv() {
            match event {
                ExecEvent::Started { .. } => started += 1,
                ExecEvent::NotStarted { run, kind, why } => {
                    assert!(kind == NotStartedKind::Shortage && why.contains("LimitNOFILE"), "{why}");
                    rig.over.insert(run, ExecEvent::NotStarted { run, kind, why });
                }
                other => panic!("{other:?}"),
            }
        }
        started + rig.over.len() == runs.len()
    });
    assert!(started > 3 && !rig.over.is_empty(), "{started} started");
    assert!(rig.executor.kill_all());
    for run in runs {
        rig.over(run);
    }
    assert_eq!(complaints.all(), Vec::<String>::new());
    assert_eq!(rig.run(sh("exit 7")).ended, Ended::Exit(7));
}

#[test]
fn a_worker_raises_its_descriptor_limit_but_not_for_its_tasks() {
    let dir = tempfile::tempdir().unwrap();
    assert!(spawn_helper("raised", dir.path()).wait().unwrap().success());
}

/// The helper: has a low soft limit, and runs more than that allows for.
pub fn raised() {
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), maximum: Some(4096) }).unwrap();
    let mut rig = Rig::new();
    let runs: Vec<RunId> = (0..100).map(|_| rig.start(sh("ulimit -n; exec sleep 600"))).collect();
    for _ in &runs {
        let event = rig.events.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(event, ExecEvent::Started { .. }), "{event:?}");
    }
    // Each has said so by the time at which it sleeps.
    until("all sleep", || sleepers(std::process::id()) == runs.len());
    assert!(rig.executor.kill_all());
    for run in runs {
        assert_eq!(text(&rig.ended(run).stdout), "100\n");
    }
}

// Many, all, and the end of the executor.

#[test]
fn a_thousand_at_once() {
    let mut rig = Rig::new();
    let runs: Vec<RunId> = (0..1_000).map(|n| rig.start(sh(&format!("echo {n}; exit {}", n % 7)))).collect();
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
        match rig.over(run) {
            ExecEvent::Ended { report, .. } => assert_eq!(report.ended, Ended::Signal(9)),
            ExecEvent::NotStarted { kind, .. } => assert_eq!(kind, NotStartedKind::Transient),
            other => panic!("{other:?}"),
        }
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

/// How many processes below this one are a `sleep`.
fn sleepers(pid: u32) -> usize {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let children: Vec<u32> =
        lists.flat_map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<_>>()).collect();
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    usize::from(name == "sleep\n") + children.into_iter().map(sleepers).sum::<usize>()
}

/// Renewals of the lease wake no slot that has nothing to do.
#[test]
fn idle_slots_sleep() {
    let mut rig = crate::keeper::leased_rig();
    rig.executor.lease(zkmw::clock::now() + Duration::from_millis(500)).unwrap();
    let runs: Vec<RunId> = (0..20).map(|_| rig.start(sh("echo $PPID; sleep 0.2"))).collect();
    let slot = |report: RunReport| text(&report.stdout).trim().parse::<u32>().unwrap();
    let slots: Vec<u32> = runs.into_iter().map(|run| slot(rig.ended(run))).collect();
    let woken = || -> u64 {
        let status = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let count = |status: String| {
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse::<u64>().unwrap()
        };
        slots.iter().map(status).map(count).sum()
    };
    // Each checks once more when the lease ends that it knew.
    let (mut before, mut same) = (0, 0);
    until("none of them wakes up any more", || {
        rig.executor.lease(zkmw::clock::now() + Duration::from_millis(500)).unwrap();
        std::thread::sleep(Duration::from_millis(10));
        let now = woken();
        same = if now == before { same + 1 } else { 0 };
        before = now;
        same == 100
    });
}
