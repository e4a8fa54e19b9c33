//! Signals reach the whole group, and no other process.

use super::*;

#[test]
fn a_group_that_shrugs_off_term_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (ready, got) = (dir.path().join("ready"), dir.path().join("got"));
    let mut rig = Rig::new();
    let line = format!(
        "trap 'echo 1 > {}' TERM; echo $$ > {}; while :; do sleep 0.02; done",
        got.display(),
        ready.display()
    );
    let (run, pid) = rig.started(sh(&line));
    assert_eq!(pid_in(&ready), pid);
    rig.executor.signal(run, GroupSignal::Term);
    pid_in(&got);
    assert!(is_alive(pid));
    rig.executor.signal(run, GroupSignal::Kill);
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    assert!(!is_alive(pid));
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let (ready, got) = (dir.path().join("ready"), dir.path().join("got"));
    let mut rig = Rig::new();
    // The leader ignores it and ends when its child has got it.
    let line = format!(
        "sh -c 'trap \"echo 1 > {got}\" TERM; echo 1 > {ready}; until [ -s {got} ]; do sleep 0.02; done' & \
         trap '' TERM; until [ -s {got} ]; do sleep 0.02; done; exit 7",
        got = got.display(),
        ready = ready.display()
    );
    let (run, pid) = rig.started(sh(&line));
    pid_in(&ready);
    until("the leader ignores TERM", || ignores(&format!("/proc/{pid}/status"), 15));
    rig.executor.signal(run, GroupSignal::Term);
    assert_eq!(rig.ended(run).ended, Ended::Exit(7));
}

#[test]
fn a_stopped_group_acts_on_term() {
    let mut rig = Rig::new();
    let (run, pid) = rig.started(sh("kill -STOP $$"));
    until("it is stopped", || state(pid) == Some('T'));
    rig.executor.signal(run, GroupSignal::Term);
    assert_eq!(rig.ended(run).ended, Ended::Signal(15));
}

/// A leader that has moved to another group of its session still dies.
#[test]
fn a_leader_cannot_get_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new();
    let (run, pid) = rig.started(helper_spec("mover", dir.path()));
    assert_eq!(pid_in(&dir.path().join("tried")), pid);
    rig.executor.signal(run, GroupSignal::Kill);
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
}

pub fn mover(dir: &Path) {
    let ours = Pid::from_raw(std::env::var("GROUP").unwrap().parse().unwrap());
    assert_eq!(setpgid(None, ours), Err(rustix::io::Errno::PERM), "it is of another session");
    assert_eq!(rustix::process::setsid(), Err(rustix::io::Errno::PERM));
    setpgid(None, rustix::process::getppid()).unwrap();
    fs::write(dir.join("tried"), format!("{}\n", std::process::id())).unwrap();
    std::thread::sleep(PATIENCE);
}

#[test]
fn a_signal_after_the_end_hits_nobody() {
    let mut rig = Rig::new();
    let (run, pid) = rig.started(sh("exit 0"));
    rig.ended(run);
    let mut namesake = spawn_with_pid(pid);
    rig.executor.signal(run, GroupSignal::Kill);
    rig.executor.signal(RunId(999), GroupSignal::Kill);
    rig.executor.kill_all();
    if let Some(namesake) = &mut namesake {
        assert_eq!(namesake.try_wait().unwrap(), None);
        reap(namesake);
    }
}

/// A bystander that leads a group of this very number, if the kernel lets us choose (root, checkpoint/restore).
fn spawn_with_pid(pid: u32) -> Option<Child> {
    for _ in 0..200 {
        if let Err(error) = fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()) {
            eprintln!("WEAKER TEST: cannot choose a pid: {error}");
            return None;
        }
        let mut child = Command::new("sleep").arg("30").process_group(0).spawn().unwrap();
        if child.id() == pid {
            return Some(child);
        }
        reap(&mut child);
    }
    eprintln!("WEAKER TEST: somebody else always got pid {pid}");
    None
}

#[test]
fn a_signal_right_after_the_start_is_not_lost() {
    let mut rig = Rig::new();
    for _ in 0..100 {
        let run = rig.start(sh("sleep 30"));
        rig.executor.signal(run, GroupSignal::Term);
        rig.executor.signal(run, GroupSignal::Kill);
        rig.executor.signal(run, GroupSignal::Term);
        match rig.over(run) {
            ExecEvent::Ended { report, .. } => {
                assert!(matches!(report.ended, Ended::Signal(9 | 15)), "{report:?}");
                assert!(report.signalled && report.detail.is_none(), "the executor killed it: {report:?}");
            }
            // Its slot was not there yet.
            ExecEvent::NotStarted { kind, .. } => assert_eq!(kind, NotStartedKind::Transient),
            other => panic!("{other:?}"),
        }
        // A signal that may be caught has to wait until there is a program to catch it.
        rig.run(sh("exit 0"));
        let run = rig.start(argv(&["sleep", "30"]));
        rig.executor.signal(run, GroupSignal::Term);
        assert_eq!(rig.ended(run).ended, Ended::Signal(15));
    }
}
