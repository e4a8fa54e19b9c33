//! Handlers under lease and keeper: a busy one dies with its worker or the lease, an idle one outlives a lease.
//!
//! Each scenario has a process of its own, as with the keeper itself.

use super::handler::{ask, asked, begun, handler};
use super::keeper::{LONG, RENEWED, SHORT, keeper_pid, leased, leased_rig, play};
use super::*;
use zkmw::clock::now;

/// Scenarios, each the role of a helper.
pub const SCENARIOS: [(&str, fn()); 7] = [
    ("handler_no_lease", no_lease),
    ("handler_lapse", lapse),
    ("handler_short_leases", short_leases),
    ("handler_late_renewal", late_renewal),
    ("handler_keeperless", without_keeper),
    ("handler_worker", worker),
    ("handler_rate", rate),
];

fn no_lease() {
    let mut rig = leased_rig();
    let (kind, why) = rig.not_started(ask(&rig, "exec cat", ""));
    assert!(kind == NotStartedKind::Transient && why.contains("lease"), "{kind:?} {why}");
    rig.executor.lease(now() + LONG).unwrap();
    let warm = handler(&mut rig);
    rig.executor.lease(now()).unwrap();
    let spec = ask(&rig, "exec cat", "");
    let (kind, why) = rig.not_started(spec);
    assert!(kind == NotStartedKind::Transient && why.contains("lease"), "{kind:?} {why}");
    let _ = warm;
}

/// Idle for as long as anybody likes; busy no longer than the lease.
fn lapse() {
    let (mut rig, _) = leased(LONG);
    let warm = handler(&mut rig);
    rig.executor.lease(now() + RENEWED).unwrap();
    let until = now() + RENEWED + SHORT;
    super::until("the lease is long over", || now() >= until);
    assert!(is_alive(warm));
    rig.executor.lease(now() + LONG).unwrap();
    assert_eq!(handler(&mut rig), warm, "it is still warm");
    let until = now() + RENEWED;
    rig.executor.lease(until).unwrap();
    let (run, pid) = begun(&mut rig, "trap '' TERM; (trap '' TERM; sleep 600) & wait");
    assert_eq!(pid, warm);
    let report = rig.ended(run);
    assert_eq!((report.ended, report.signalled), (Ended::Signal(9), true), "its slot did that");
    assert!(now() >= until && !is_alive(warm));
}

/// Leases that end while the keeper still takes an idle handler for a busy one: no request is killed for that.
fn short_leases() {
    let mut rig = leased_rig();
    for _ in 0..30 {
        rig.executor.lease(now() + LONG).unwrap();
        for _ in 0..3 {
            let report = asked(&mut rig, "ok");
            assert_eq!(report.ended, Ended::Exit(0), "{report:?}");
        }
        assert_eq!(handler_threads(), 1, "it is the same one");
        rig.executor.lease(now()).unwrap();
    }
}

fn handler_threads() -> usize {
    let names = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = names.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    names.filter(|name| name.starts_with("handler-")).count()
}

fn late_renewal() {
    let (mut rig, _) = leased(LONG);
    let warm = handler(&mut rig);
    let until = now() + RENEWED;
    rig.executor.lease(until).unwrap();
    let (run, pid) = begun(&mut rig, "sleep 600");
    assert_eq!(pid, warm);
    // Its slot has found out that it is late.
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    rig.executor.lease(now() + LONG).unwrap();
    assert_eq!(asked(&mut rig, "ok").ended, Ended::Exit(0));
}

fn without_keeper() {
    let (mut rig, _) = leased(LONG);
    let warm = handler(&mut rig);
    let (run, busy) = begun(&mut rig, "sleep 600");
    assert_eq!(busy, warm);
    let idle = handler(&mut rig);
    assert_ne!(idle, busy);
    kill(keeper_pid(), Signal::KILL);
    let next = rig.events.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(&next, ExecEvent::SlotsLost { .. }), "{next:?}");
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    until("the idle one has ended, too", || !is_alive(idle));
    until("requests are taken again", || {
        let run = rig.start(ask(&rig, super::handler::SHELL, "ok"));
        matches!(rig.over(run), ExecEvent::Ended { report, .. } if report.ended == Ended::Exit(0))
    });
}

/// Has one busy handler with a child, and an idle one, under a lease that it renews until it is stopped.
fn worker() {
    let dir = std::env::var(DIR).unwrap();
    let dir = Path::new(&dir);
    let mut rig = leased_rig();
    rig.executor.lease(now() + RENEWED).unwrap();
    handler(&mut rig);
    let line = format!("trap '' TERM; sleep 600 & echo $! >{}; wait", dir.join("child").display());
    let (_, busy) = begun(&mut rig, &line);
    let idle = handler(&mut rig);
    fs::write(dir.join("busy"), format!("{busy}\n")).unwrap();
    fs::write(dir.join("idle"), format!("{idle}\n")).unwrap();
    super::until("it is stopped or killed", || {
        rig.executor.lease(now() + RENEWED).unwrap();
        std::thread::sleep(RENEWED / 40);
        false
    });
}

/// How often the process went to sleep.
fn naps(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// The processor time that this process has used, in all its threads but in no child.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// Two at a time.
fn rate() {
    const REQUESTS: u64 = 20_000;
    let (mut rig, _) = leased(LONG);
    let keeper = keeper_pid();
    let next = |rig: &mut Rig| {
        let request = Some(format!(r#"{{"id":{}}}"#, rig.next));
        rig.start(RunSpec { request, ..sh("exec cat") });
    };
    let (naps_before, cpu_before, begun) = (naps(keeper), cpu(), Instant::now());
    next(&mut rig);
    next(&mut rig);
    let mut ended = 0;
    while ended < REQUESTS {
        match rig.events.recv_timeout(PATIENCE).unwrap() {
            ExecEvent::Started { .. } => {}
            ExecEvent::Ended { report, .. } if report.ended == Ended::Exit(0) => {
                ended += 1;
                next(&mut rig);
            }
            other => panic!("{other:?}"),
        }
    }
    let (took, cpu, naps) = (begun.elapsed(), cpu() - cpu_before, naps(keeper) - naps_before);
    eprintln!(
        "{REQUESTS} requests, two at a time: {took:?}, {cpu:?} of ours; the keeper woke up {naps} times"
    );
    assert!(naps < REQUESTS / 20, "{naps}");
}

#[test]
fn a_request_does_not_wake_the_keeper() {
    play("handler_rate");
}

#[test]
fn nothing_is_handed_over_without_a_lease() {
    play("handler_no_lease");
}

#[test]
fn an_idle_handler_outlives_a_lease_and_a_busy_one_does_not() {
    play("handler_lapse");
}

#[test]
fn no_request_is_killed_for_a_lease_that_ended_before_it() {
    play("handler_short_leases");
}

#[test]
fn a_lease_that_is_renewed_too_late_kills_busy_handlers() {
    play("handler_late_renewal");
}

#[test]
fn without_a_keeper_handlers_are_killed_and_started_again() {
    play("handler_keeperless");
}

/// Does not stay stopped.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        reap(&mut self.0);
    }
}

#[test]
fn handlers_die_with_their_workers_lease_or_with_the_worker() {
    let dir = tempfile::tempdir().unwrap();
    let worker = Worker(spawn_helper("handler_worker", dir.path()));
    let [child, busy, idle] = ["child", "busy", "idle"].map(|name| pid_in(&dir.path().join(name)));
    assert!(is_alive(child) && is_alive(busy) && is_alive(idle));
    kill(worker.0.id(), Signal::STOP);
    until("the busy one has ended", || !is_alive(child) && !is_alive(busy));
    assert_eq!(state(worker.0.id()), Some('T'), "nobody but the keeper has done that");
    drop(worker);
    until("the idle one has ended", || !is_alive(idle));
}

#[test]
fn a_killed_workers_handlers_and_their_children_die() {
    let dir = tempfile::tempdir().unwrap();
    let mut worker = Worker(spawn_helper("handler_worker", dir.path()));
    let pids = ["child", "busy", "idle"].map(|name| pid_in(&dir.path().join(name)));
    worker.0.kill().unwrap();
    until("all have ended", || pids.iter().all(|pid| !is_alive(*pid)));
}
