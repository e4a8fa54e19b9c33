//! Worker, keeper and slot die, are suspended or hang: the processes that are left end the run in time.

use super::keeper::{leased_rig, wait_keeper};
use super::runfile::claim;
use super::strays::has_cgroups;
use super::*;
use zkmw::clock::now;

/// How long a lease is that is renewed all the time.
const LEASE: Duration = Duration::from_millis(1500);
/// How often.
const RENEW_EVERY: Duration = Duration::from_millis(20);

/// A worker, and all below it, with one run.
struct Family {
    dir: tempfile::TempDir,
    worker: Child,
    keeper: u32,
    slot: u32,
    leader: u32,
    /// It has left its group, cleared its environment, and lost its parents.
    stray: u32,
}

/// The process that a test kills or stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Worker,
    Keeper,
    Slot,
}

use Target::{Keeper, Slot, Worker};

impl Family {
    fn new(cgroups: bool) -> Family {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        if cgroups {
            fs::write(file("cgroups"), "").unwrap();
        }
        let line = format!(
            "setsid env -i sh -c 'sleep 600 & echo $! >{}' & echo $$ >{}; wait; sleep 600",
            file("stray").display(),
            file("leader").display()
        );
        fs::write(file("line"), line).unwrap();
        let worker = spawn_helper("leasing", dir.path());
        let (leader, stray) = (pid_in(&file("leader")), pid_in(&file("stray")));
        let (slot, keeper) = (parent(leader), wait_keeper(worker.id()));
        assert_eq!(parent(slot), keeper);
        Family { dir, worker, keeper, slot, leader, stray }
    }

    fn pid(&self, target: Target) -> u32 {
        match target {
            Worker => self.worker.id(),
            Keeper => self.keeper,
            Slot => self.slot,
        }
    }

    /// Sends this to them, all in one moment.
    fn send(&self, signal: Signal, to: &[Target]) {
        to.iter().for_each(|target| kill(self.pid(*target), signal));
    }

    fn has_ended(&self) -> bool {
        !is_alive(self.leader) && !is_alive(self.stray)
    }

    /// With all its threads.
    fn is_stopped(&self, target: Target) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid(target))).unwrap();
        threads.flatten().all(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        for target in [Worker, Keeper, Slot] {
            kill(self.pid(target), Signal::CONT);
        }
        // The pid of an unreaped process belongs to no other process: these have an ancestor in this process.
        let _ = self.worker.kill();
        let _ = self.worker.wait();
        until("nothing of the run lives", || {
            [self.leader, self.stray]
                .iter()
                .filter(|pid| is_alive(**pid))
                .for_each(|pid| kill(*pid, Signal::KILL));
            self.has_ended()
        });
    }
}

/// The role of the helper: renews its lease, and notes how its run ends.
pub fn leasing(dir: &Path) {
    let cgroups = dir.join("cgroups").exists();
    let run_file = Some(claim(&dir.join("run")));
    let mut rig = Rig::by(Means { run_file, leased: true, cgroups, ..plain() });
    rig.executor.lease(now() + LEASE).unwrap();
    rig.start(sh(&fs::read_to_string(dir.join("line")).unwrap()));
    until("it is killed", || {
        let _ = rig.executor.lease(now() + LEASE);
        if let Ok(ExecEvent::Ended { report, .. }) = rig.events.recv_timeout(RENEW_EVERY) {
            fs::write(dir.join("ended"), format!("{:?} {}\n", report.ended, report.signalled)).unwrap();
        }
        false
    });
}

fn with_and_without_cgroups(play: impl Fn(bool)) {
    play(false);
    if has_cgroups() {
        play(true);
    }
}

#[test]
fn a_kill_of_any_of_the_three_ends_the_run() {
    with_and_without_cgroups(|cgroups| {
        for killed in [&[Worker][..], &[Keeper], &[Slot], &[Worker, Keeper], &[Worker, Slot], &[Keeper, Slot]]
        {
            let family = Family::new(cgroups);
            family.send(Signal::KILL, killed);
            until(&format!("{killed:?} were killed, cgroups {cgroups}: nothing lives"), || {
                family.has_ended()
            });
        }
    });
}

#[test]
fn the_run_of_a_suspended_worker_dies_with_the_lease() {
    with_and_without_cgroups(|cgroups| {
        for stopped in [&[Worker][..], &[Worker, Keeper], &[Worker, Slot]] {
            let family = Family::new(cgroups);
            family.send(Signal::STOP, stopped);
            until(&format!("{stopped:?} are stopped, cgroups {cgroups}: nothing lives"), || {
                family.has_ended()
            });
            until("it is stopped", || family.is_stopped(Worker));
        }
    });
}

#[test]
fn a_suspended_keeper_or_slot_of_a_live_worker_goes_on() {
    for stopped in [&[Keeper][..], &[Slot], &[Keeper, Slot]] {
        let family = Family::new(false);
        family.send(Signal::STOP, stopped);
        until(&format!("{stopped:?} go on"), || !stopped.iter().any(|target| family.is_stopped(*target)));
        assert!(is_alive(family.leader) && is_alive(family.stray));
        assert!(!family.dir.path().join("ended").exists());
    }
}

#[test]
fn the_run_dies_whichever_is_stopped_and_whichever_is_killed() {
    with_and_without_cgroups(|cgroups| {
        for (stopped, killed) in [
            (&[Worker][..], &[Slot][..]),
            (&[Worker], &[Keeper]),
            (&[Keeper], &[Slot]),
            (&[Keeper], &[Worker]),
            (&[Slot], &[Keeper]),
            (&[Slot], &[Worker]),
            (&[Worker, Keeper], &[Slot]),
        ] {
            let family = Family::new(cgroups);
            family.send(Signal::STOP, stopped);
            family.send(Signal::KILL, killed);
            if stopped.contains(&Worker) && stopped.contains(&Keeper) {
                // No process is left that could end one without parents.
                until("its main process has ended", || !is_alive(family.leader));
                family.send(Signal::CONT, &[Keeper]);
            }
            until(&format!("{stopped:?} stopped, {killed:?} killed: nothing lives"), || family.has_ended());
        }
    });
}

#[test]
fn after_all_were_suspended_past_the_lease_the_first_ends_it() {
    for first in [Worker, Keeper, Slot] {
        let family = Family::new(false);
        // In this order no running process is left that could wake another.
        for target in [Worker, Keeper, Slot] {
            family.send(Signal::STOP, &[target]);
            until("it is stopped", || family.is_stopped(target));
        }
        let stopped = Instant::now();
        until("the lease is over", || stopped.elapsed() > LEASE);
        assert!(is_alive(family.leader));
        family.send(Signal::CONT, &[first]);
        until(&format!("{first:?} goes on: nothing lives"), || family.has_ended());
    }
}

#[test]
fn a_task_that_kills_its_slot_has_failed_however_soon() {
    for line in ["kill -9 $PPID", "sleep 0.1; kill -9 $PPID; sleep 600"] {
        let mut rig = Rig::new();
        let run = rig.start(sh(line));
        match rig.over(run) {
            ExecEvent::Ended { report, .. } => {
                assert_eq!((report.ended, report.signalled), (Ended::Signal(9), false), "{line}");
                assert!(report.detail.unwrap().contains("its slot"), "{line}");
            }
            other => panic!("{line}: {other:?}"),
        }
        assert_eq!(rig.run(sh("exit 3")).ended, Ended::Exit(3));
    }
}

/// A process that hangs: only this test can let it go on.
struct Hung(u32);

impl Hung {
    /// With `births`, it hangs as soon as it starts a program. It can still be killed.
    fn new(pid: u32, births: bool) -> Hung {
        Hung::with(pid, births, if births { libc::PTRACE_O_TRACEVFORK } else { 0 })
    }

    /// It cannot even be killed, as if it waited for a disk.
    fn for_ever(pid: u32) -> Hung {
        Hung::with(pid, false, libc::PTRACE_O_TRACEEXIT)
    }

    fn with(pid: u32, births: bool, options: libc::c_int) -> Hung {
        let raw = pid.cast_signed();
        // SAFETY: system calls about another process.
        unsafe {
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, raw, 0, options), 0);
            if !births {
                assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, raw, 0, 0), 0);
            }
        }
        if !births {
            until("it hangs", || state(pid) == Some('t'));
        }
        Hung(pid)
    }

    /// Its parent can reap it only after that.
    fn let_parent_reap(&self) {
        // SAFETY: a bare system call.
        unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG) };
    }
}

/// A rig under a lease that is renewed until the run is over.
fn over_while_hung(rig: &mut Rig, hung: &Hung, run: RunId) -> ExecEvent {
    let mut over = None;
    until("its slot is given up, and the run with it", || {
        let _ = rig.executor.lease(now() + LEASE);
        hung.let_parent_reap();
        if let Ok(event) = rig.events.recv_timeout(RENEW_EVERY) {
            match &event {
                ExecEvent::Ended { run: of, .. } | ExecEvent::NotStarted { run: of, .. } if *of == run => {
                    over = Some(event);
                }
                _ => {}
            }
        }
        over.is_some()
    });
    assert!(!is_alive(hung.0));
    over.unwrap()
}

fn leased_with_slot() -> (Rig, u32) {
    let mut rig = leased_rig();
    rig.executor.lease(now() + LEASE).unwrap();
    let slot = text(&rig.run(sh("echo $PPID")).stdout).trim().parse().unwrap();
    (rig, slot)
}

#[test]
fn a_slot_that_hangs_before_a_start_is_abandoned_unstarted() {
    for in_birth in [false, true] {
        let (mut rig, slot) = leased_with_slot();
        let hung = Hung::new(slot, in_birth);
        let run = rig.start(sh("sleep 600"));
        match over_while_hung(&mut rig, &hung, run) {
            ExecEvent::NotStarted { kind, .. } => assert_eq!(kind, NotStartedKind::Transient),
            other => panic!("{other:?}"),
        }
        rig.executor.lease(now() + PATIENCE).unwrap();
        assert_eq!(rig.run(sh("exit 3")).ended, Ended::Exit(3));
    }
}

#[test]
fn what_a_slot_runs_dies_even_if_that_cannot_be_killed() {
    let mut rig = leased_rig();
    rig.executor.lease(now() + LEASE).unwrap();
    let (run, pid) = rig.started(sh("(sleep 600)"));
    let slot = parent(pid);
    let _hung = Hung::for_ever(slot);
    until("its run has ended", || {
        rig.executor.lease(now() + LEASE).unwrap();
        !is_alive(pid)
    });
    assert!(is_alive(slot) && rig.executor.live() == 1, "no end was reported");
    // SAFETY: a system call about another process.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, slot, 0, 0) };
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    assert!(!is_alive(slot));
}

#[test]
fn a_slot_that_hangs_with_a_run_is_killed_uncharged() {
    for ended in [false, true] {
        let (mut rig, slot) = leased_with_slot();
        let (run, pid) = rig.started(sh("sleep 600"));
        assert_eq!(parent(pid), slot);
        let hung = Hung::new(slot, false);
        if ended {
            kill(pid, Signal::KILL);
        }
        match over_while_hung(&mut rig, &hung, run) {
            ExecEvent::Ended { report, .. } => {
                assert_eq!((report.ended, report.signalled), (Ended::Signal(9), true));
                assert!(!is_alive(pid));
            }
            other => panic!("{other:?}"),
        }
        rig.executor.lease(now() + PATIENCE).unwrap();
        assert_eq!(rig.run(sh("exit 3")).ended, Ended::Exit(3));
    }
}

/// The helper: process 1, which all orphans get as their parent.
pub fn pid_one() {
    assert_eq!(std::process::id(), 1);
    let mut rig = Rig::new();
    let stranger = Command::new("sh").args(["-c", "sleep 600 >&- 2>&- & echo $!"]).output().unwrap();
    let stranger: u32 = String::from_utf8(stranger.stdout).unwrap().trim().parse().unwrap();
    for code in [0, 3] {
        let line = format!("setsid env -i sh -c 'sleep 600 & sleep 600 &' & exit {code}");
        assert_eq!(rig.run(sh(&line)).ended, Ended::Exit(code));
        assert_eq!(processes(), ["exec", "sleep", "zkmw-keeper", "zkmw-slot"]);
    }
    rig.started(sh("sleep 600"));
    kill(wait_keeper(1), Signal::KILL);
    until("the keeper is replaced, and all that was left to us has ended and is reaped", || {
        processes() == ["exec", "sleep", "zkmw-keeper"]
    });
    assert!(is_alive(stranger), "it is none of ours");
}

/// The names of all processes that we see, zombies too.
fn processes() -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let name = |entry: fs::DirEntry| {
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        let name = comm.trim();
        Some(if name.starts_with("exec-") { "exec".to_owned() } else { name.to_owned() })
    };
    let mut names: Vec<String> = all.filter_map(name).collect();
    names.sort();
    names
}

#[test]
fn as_process_one_it_reaps_what_runs_leave_and_spares_others() {
    let alone = |program: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child", "--mount-proc", program, "--exact", "helper"]);
        unshare.env(ROLE, "pid_one").env(DIR, "/").arg("--nocapture").stdout(Stdio::null()).status()
    };
    if !alone("/bin/true").is_ok_and(|status| status.success()) {
        eprintln!("only root can show this");
        return;
    }
    assert!(alone(std::env::current_exe().unwrap().to_str().unwrap()).unwrap().success());
}

/// The helper: each run is reported in the end, though slots are killed as soon as they start, and the keeper too.
pub fn reported_in_the_end() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let mut rig = Rig::new();
    let keeper = wait_keeper(std::process::id());
    let (stop, mut runs) = (AtomicBool::new(false), Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                slots_of(keeper).into_iter().for_each(|slot| kill(slot, Signal::KILL));
            }
        });
        for _ in 0..60 {
            runs.push(rig.start(argv(&["/bin/true"])));
            std::thread::sleep(Duration::from_micros(300));
        }
        stop.store(true, Ordering::SeqCst);
    });
    runs.extend((0..20).map(|_| rig.start(argv(&["/bin/true"]))));
    kill(keeper, Signal::KILL);
    let killed = Instant::now();
    while killed.elapsed() < Duration::from_millis(20) {
        runs.push(rig.start(argv(&["/bin/true"])));
        std::thread::sleep(Duration::from_micros(100));
    }
    for run in runs {
        rig.over_or_lost(run);
    }
    assert!(rig.executor.is_idle());
    until("it runs again", || {
        let run = rig.start(sh("exit 3"));
        matches!(rig.over_or_lost(run), ExecEvent::Ended { report, .. } if report.ended == Ended::Exit(3))
    });
}

fn slots_of(keeper: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap_or_default();
    children.split_whitespace().flat_map(str::parse).collect()
}

#[test]
fn each_run_is_reported_although_new_slots_and_keepers_die() {
    for _ in 0..5 {
        super::keeper::play("reported_in_the_end");
    }
}

/// The helper: has no descriptor to check with, when its keeper is killed and its slot is stopped.
pub fn blind() {
    let mut rig = Rig::new();
    let (run, pid) = rig.started(sh("sleep 600"));
    let (keeper, slot) = (wait_keeper(std::process::id()), parent(pid));
    let limits = rustix::process::getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limits }).unwrap();
    // Before its keeper can wake it.
    kill(keeper, Signal::KILL);
    kill(slot, Signal::STOP);
    let blind = Instant::now();
    while blind.elapsed() < Duration::from_secs(1) {
        if let Ok(event) = rig.events.recv_timeout(Duration::from_millis(10)) {
            assert!(matches!(event, ExecEvent::SlotsLost { .. }), "{event:?}");
        }
    }
    setrlimit(Resource::Nofile, limits).unwrap();
    let report = rig.ended(run);
    assert_eq!((report.ended, report.signalled), (Ended::Signal(9), true));
    assert!(!is_alive(pid), "its end was reported");
}

#[test]
fn a_slot_that_cannot_check_reports_no_end() {
    super::keeper::play("blind");
}
