//! The keeper, as the executor uses it. Each scenario has a process of its own: a keeper kills every process that
//! carries the mark of its worker.

use super::keeper_process::keeper_of;
use super::*;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{fcntl_dupfd_cloexec, write};
use rustix::pipe::{PipeFlags, pipe_with};

use rustix::stdio::{dup2_stderr, stderr};
use zkmw::clock::now;
use zkmw::machine::Instant as Boottime;

/// Long enough to last for a test.
pub const LONG: Duration = Duration::from_secs(600);
/// How long a lease is that is renewed all the time.
pub const RENEWED: Duration = Duration::from_secs(2);
/// How long the lease of a scenario is in which it ends.
pub const SHORT: Duration = Duration::from_millis(400);

/// Scenarios, each the role of a helper.
pub const SCENARIOS: [(&str, fn()); 11] = [
    ("keeper_no_lease", no_lease),
    ("keeper_lapse", lapse),
    ("keeper_renewal", renewal),
    ("keeper_late_renewal", late_renewal),
    ("keeper_killed", killed),
    ("keeper_hangs", hangs),
    ("keeper_strays", strays),
    ("keeper_mute", mute),
    ("keeper_hopper", hopper),
    ("keeper_hidden", hidden),
    ("keeper_nested", nested),
];

#[track_caller]
pub fn play(role: &str) {
    let dir = tempfile::tempdir().unwrap();
    let status = spawn_helper(role, dir.path()).wait().unwrap();
    assert!(status.success(), "{role}: {status}");
}

pub fn leased_rig() -> Rig {
    Rig::by(Means { leased: true, ..plain() })
}

pub fn leased(lease: Duration) -> (Rig, Boottime) {
    let rig = leased_rig();
    let until = now() + lease;
    rig.executor.lease(until).unwrap();
    (rig, until)
}

pub fn keeper_pid() -> u32 {
    wait_keeper(std::process::id())
}

/// Waits for the keeper of a process's executor.
pub fn wait_keeper(worker: u32) -> u32 {
    let mut found = None;
    until("there is a keeper", || {
        found = keeper_of(worker);
        found.is_some()
    });
    found.unwrap()
}

fn no_lease() {
    let mut rig = leased_rig();
    let of_keeper = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", keeper_pid())).unwrap();
    assert!(of_keeper("cmdline").starts_with("zkmw\0slots\0"), "{:?}", of_keeper("cmdline"));
    super::until("it has its name", || of_keeper("comm") == "zkmw-keeper\n");
    let (kind, why) = rig.not_started(sh("exit 0"));
    assert!(kind == NotStartedKind::Transient && why.contains("lease"), "{kind:?} {why}");
    let known = "it is known that what was refused does not run";
    super::until(known, || rig.executor.lease(now()).is_ok());
    assert_eq!(rig.not_started(sh("exit 0")).0, NotStartedKind::Transient);
    super::until(known, || rig.executor.lease(now() + LONG).is_ok());
    assert_eq!(rig.run(sh("exit 3")).ended, Ended::Exit(3));
}

fn lapse() {
    let (mut rig, until) = leased(SHORT);
    let run = rig.start(sh("trap '' TERM; (trap '' TERM; sleep 600) & wait"));
    // Nobody but the keeper kills here.
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    let late = now().since(until);
    assert!(now() >= until && late < Duration::from_secs(5), "{late:?} late");
}

fn renewal() {
    let (mut rig, _) = leased(RENEWED);
    let (run, pid) = rig.started(sh("sleep 600"));
    let start = Instant::now();
    while start.elapsed() < RENEWED * 2 {
        rig.executor.lease(now() + RENEWED).unwrap();
        assert!(is_alive(pid), "it is covered");
        std::thread::sleep(RENEWED / 40);
    }
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
}

fn late_renewal() {
    let (mut rig, until) = leased(SHORT);
    let (run, _) = rig.started(sh("sleep 600"));
    // Its slot has found out that it is late.
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    assert!(now() >= until);
    rig.executor.lease(now() + LONG).unwrap();
    assert_eq!(rig.run(sh("exit 3")).ended, Ended::Exit(3));
}

/// The event comes before the ends, whatever the order of deaths.
fn killed() {
    let (mut rig, _) = leased(LONG);
    let runs = [rig.started(sh("sleep 600")).0, rig.started(sh("trap '' TERM; sleep 600")).0];
    let first = keeper_pid();
    kill(first, Signal::KILL);
    let next = rig.events.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(&next, ExecEvent::SlotsLost { why } if why.contains("signal: 9")), "{next:?}");
    for run in runs {
        assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    }
    assert_ne!(keeper_pid(), first);
    // The new one knows the lease.
    until("it runs again", || {
        let run = rig.start(sh("exit 3"));
        matches!(rig.over(run), ExecEvent::Ended { report, .. } if report.ended == Ended::Exit(3))
    });
}

/// Its worker lets it go on.
fn hangs() {
    let (mut rig, _) = leased(LONG);
    let keeper = keeper_pid();
    for _ in 0..3 {
        kill(keeper, Signal::STOP);
        // Each needs another slot, which only the keeper makes.
        let (_, pid) = rig.started(sh("sleep 600"));
        assert!(is_alive(pid));
    }
    assert_eq!(keeper_pid(), keeper);
}

/// A process that has left its group, and lost its parents, dies with the lease as well.
fn strays() {
    let dir = std::env::var(DIR).unwrap();
    let file = Path::new(&dir).join("stray");
    let (mut rig, until) = leased(Duration::from_secs(2));
    let line = format!("setsid sh -c 'sleep 600 & echo $! >{}' & wait; sleep 600", file.display());
    let run = rig.start(sh(&line));
    let stray = pid_in(&file);
    assert!(is_alive(stray));
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    super::until("the stray has ended", || !is_alive(stray));
    assert!(now() >= until);
}

/// Nobody reads its log: a pager, a terminal that is stopped. In that case a worker hangs.
fn mute() {
    let (_reader, full) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
    while write(&full, &[0; 4096]).is_ok() {}
    fcntl_setfl(&full, OFlags::empty()).unwrap();
    let loud = fcntl_dupfd_cloexec(stderr(), 3).unwrap();
    dup2_stderr(&full).unwrap();
    let rig = leased_rig();
    // An assertion that fails must be able to say so.
    dup2_stderr(&loud).unwrap();
    let mut rig = rig;
    rig.executor.lease(now() + SHORT).unwrap();
    let run = rig.start(sh("sleep 600"));
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    // It can end, too, with the rest of its log unwritten.
    let keeper = keeper_pid();
    drop(rig);
    super::until("the keeper is gone", || !is_alive(keeper));
}

/// Runs the script under a lease that it renews until it is stopped.
fn hopper() {
    let dir = std::env::var(DIR).unwrap();
    let mut rig = Rig::by(Means { leased: true, cgroups: true, ..plain() });
    rig.executor.lease(now() + RENEWED).unwrap();
    rig.started(sh(&format!("sh {dir}/hop.sh; sleep 600")));
    fs::write(Path::new(&dir).join("pid"), format!("{}\n", std::process::id())).unwrap();
    super::until("it is stopped and killed", || {
        rig.executor.lease(now() + RENEWED).unwrap();
        std::thread::sleep(RENEWED / 40);
        false
    });
}

/// On a `/proc` where a user may read only its own processes; the others are listed.
fn hidden() {
    let error = fs::read("/proc/1/stat").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    lapse();
}

/// The command of an elector is often an executor, too.
fn nested() {
    let _rig = leased_rig();
    let environ = fs::read(format!("/proc/{}/environ", keeper_pid())).unwrap();
    let marks = environ.split(|byte| *byte == 0).filter(|variable| variable.starts_with(b"ZKMW_OWNER="));
    let marks: Vec<String> = marks.map(|mark| String::from_utf8_lossy(mark).into_owned()).collect();
    let own = format!(".{}.{}", std::process::id(), start_ticks(std::process::id()));
    assert!(marks.len() == 1 && marks[0].ends_with(&own), "{marks:?} should end with {own}");
}

#[test]
fn nothing_runs_without_a_lease() {
    play("keeper_no_lease");
}

#[test]
fn when_the_lease_ends_the_keeper_kills() {
    play("keeper_lapse");
}

#[test]
fn what_is_renewed_in_time_goes_on() {
    play("keeper_renewal");
}

#[test]
fn a_lease_that_is_renewed_too_late_kills() {
    play("keeper_late_renewal");
}

#[test]
fn a_keeper_that_dies_is_reported_and_replaced() {
    play("keeper_killed");
}

#[test]
fn a_keeper_that_is_stopped_goes_on() {
    play("keeper_hangs");
}

#[test]
fn the_keeper_finds_what_has_left_its_group() {
    play("keeper_strays");
}

#[test]
fn a_keeper_whose_log_nobody_reads_kills_all_the_same() {
    play("keeper_mute");
}

/// Does not stay stopped.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        reap(&mut self.0);
    }
}

/// One that has a new process all the time, each an orphan in a session of its own, and none of them marked.
#[test]
fn in_a_cgroup_the_keeper_kills_what_is_never_long_the_same() {
    if !super::strays::has_cgroups() {
        eprintln!("no cgroups to be had here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("hop.sh");
    let line = format!("env -i setsid sh {} </dev/null >/dev/null 2>&1 &\n", script.display());
    fs::write(&script, line).unwrap();
    let worker = Stopped(spawn_helper("keeper_hopper", dir.path()));
    assert_eq!(pid_in(&dir.path().join("pid")), worker.0.id());
    let wanted = script.to_str().unwrap().as_bytes();
    let hops = || {
        fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            command.split(|byte| *byte == 0).any(|word| word == wanted)
        })
    };
    until("it hops", hops);
    kill(worker.0.id(), Signal::STOP);
    let mut quiet = 0;
    until("it hops no more", || {
        quiet = if hops() { 0 } else { quiet + 1 };
        quiet == 50
    });
}

/// A worker that ends the processes of another one's failed predecessor must not take it for one of them.
#[test]
fn a_keeper_bears_the_mark_of_its_own_worker() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Rig::new().run(helper_spec("keeper_nested", dir.path())).ended, Ended::Exit(0));
}

#[test]
fn what_a_keeper_may_not_see_does_not_keep_it_from_killing() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let with_hidepid = |command: &str| {
        let script = "mount --make-rprivate / && mount -t proc -o hidepid=1 proc /proc && \
            exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
        let mut unshare = Command::new("unshare");
        unshare
            .args(["-m", "sh", "-c", script, "sh", command])
            .env(ROLE, "keeper_hidden")
            .env(DIR, dir.path());
        unshare.stdout(Stdio::null()).args(["--exact", "helper", "--nocapture"]).status()
    };
    if !with_hidepid("/bin/true").is_ok_and(|status| status.success()) {
        eprintln!("only root can show this");
        return;
    }
    let own = std::env::current_exe().unwrap();
    let status = with_hidepid(own.to_str().unwrap()).unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn a_keeper_is_started_by_nobody_else() {
    let output = Command::new(env!("CARGO_BIN_EXE_zkmw")).arg("slots").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("only a worker or an elector"), "{output:?}");
}
