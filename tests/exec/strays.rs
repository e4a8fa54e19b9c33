//! Processes that leave their process group: they end with their run, for its slot adopts them. In a cgroup none hides.

use super::*;

/// An executor that gives each run a cgroup; `None` if this machine does not let us.
fn confined() -> Option<Rig> {
    let rig = Rig::by(Means { cgroups: true, ..plain() });
    if !has_cgroups() {
        eprintln!("no cgroups to be had here: only what does without them is tested");
        return None;
    }
    Some(rig)
}

pub fn has_cgroups() -> bool {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned();
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().any(|mount| {
        let trial = Path::new(&format!("{mount}{own}")).join(format!("zkmw-test-{}", std::process::id()));
        let made = Path::new(mount).join("cgroup.procs").exists() && fs::create_dir(&trial).is_ok();
        let usable = made && trial.join("cgroup.kill").exists();
        let _ = fs::remove_dir(&trial);
        usable
    })
}

/// A run that leaves behind a process in a session of its own, and ends with `code`. The pid of what it left.
fn leave_behind(mut rig: Rig, code: i32) -> u32 {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stray");
    let line = format!(
        "setsid sh -c 'trap \"\" TERM HUP; sleep 600 & echo $! >{file}; wait' & \
         until [ -s {file} ]; do sleep 0.01; done; exit {code}",
        file = file.display()
    );
    assert_eq!(rig.run(sh(&line)).ended, Ended::Exit(code));
    pid_in(&file)
}

#[test]
fn strays_of_a_run_are_killed_before_its_end_is_reported() {
    for code in [0, 3] {
        assert!(!is_alive(leave_behind(Rig::new(), code)));
        if let Some(rig) = confined() {
            assert!(!is_alive(leave_behind(rig, code)));
        }
    }
}

/// It may have a further attempt: it ran past its timeout, say.
#[test]
fn a_run_that_exits_0_upon_sigterm_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stray");
    let line = format!(
        "trap 'exit 0' TERM; setsid sh -c 'trap \"\" TERM; sleep 600 & echo $! >{}; wait' & while :; do wait; done",
        file.display()
    );
    let mut rig = Rig::new();
    let (run, _) = rig.started(sh(&line));
    let stray = pid_in(&file);
    rig.executor.signal(run, GroupSignal::Term);
    assert_eq!(rig.ended(run).ended, Ended::Exit(0));
    assert!(!is_alive(stray));
}

/// Not even a process that has cleared its environment, and lost its parents.
#[test]
fn in_a_cgroup_nothing_hides() {
    let Some(mut rig) = confined() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stray");
    let line = format!(
        "env -i setsid sh -c 'sleep 600 & echo $! >{file}' & until [ -s {file} ]; do sleep 0.01; done; sleep 600",
        file = file.display()
    );
    let (run, _) = rig.started(sh(&line));
    let stray = pid_in(&file);
    assert!(is_alive(stray));
    rig.executor.signal(run, GroupSignal::Kill);
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    assert!(!is_alive(stray));
}

/// The folder of the cgroup of which a run says that it is its own.
fn cgroup_of(rig: &mut Rig) -> std::path::PathBuf {
    let report = rig.run(sh("grep ^0:: /proc/self/cgroup"));
    let own = text(&report.stdout).trim().trim_start_matches("0::").to_owned();
    let folders = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|mount| format!("{mount}{own}"));
    folders.iter().map(Path::new).find(|folder| folder.join("cgroup.kill").exists()).unwrap().to_owned()
}

fn cgroups_in(base: &Path) -> usize {
    fs::read_dir(base).unwrap().flatten().filter(|entry| entry.path().is_dir()).count()
}

#[test]
fn what_could_not_be_started_leaves_no_cgroup_behind() {
    let Some(mut rig) = confined() else { return };
    let base = cgroup_of(&mut rig).parent().unwrap().to_owned();
    for _ in 0..10 {
        rig.not_started(argv(&["/no/such/program"]));
    }
    assert_eq!(cgroups_in(&base), 1);
}

/// A task may freeze its own cgroup, or make others below: none of that may meet the next one.
#[test]
fn what_a_run_has_made_of_its_cgroup_does_not_meet_the_next() {
    let Some(mut rig) = confined() else { return };
    let first = cgroup_of(&mut rig);
    let below = first.join("below/deeper");
    assert_eq!(rig.run(sh(&format!("mkdir -p {}", below.display()))).ended, Ended::Exit(0));
    assert!(!below.parent().unwrap().exists(), "{} is left", below.display());
    let second = cgroup_of(&mut rig);
    let (frozen, _) = rig.started(sh(&format!("echo 1 >{}/cgroup.freeze; sleep 600", second.display())));
    until("it is frozen", || fs::read_to_string(second.join("cgroup.events")).unwrap().contains("frozen 1"));
    rig.executor.signal(frozen, GroupSignal::Kill);
    assert_eq!(rig.ended(frozen).ended, Ended::Signal(9));
    assert_eq!(rig.run(sh("exit 3")).ended, Ended::Exit(3));
    let base = first.parent().unwrap().to_owned();
    drop(rig);
    assert!(!base.exists(), "{} is left", base.display());
}

#[test]
fn cgroups_are_used_again_and_none_is_left_behind() {
    let Some(mut rig) = confined() else { return };
    let cgroup = |rig: &mut Rig| {
        let report = rig.run(sh("grep ^0:: /proc/self/cgroup"));
        text(&report.stdout).trim().trim_start_matches("0::").to_owned()
    };
    let first = cgroup(&mut rig);
    assert!(first.contains(&format!("zkmw-{}-", std::process::id())), "{first}");
    assert_eq!(cgroup(&mut rig), first);
    let base = Path::new(&first).parent().unwrap().to_owned();
    let exists = || {
        ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .iter()
            .any(|mount| Path::new(&format!("{mount}{}", base.display())).exists())
    };
    assert!(exists());
    drop(rig);
    assert!(!exists(), "{} is left", base.display());
}
