//! Process groups for real: what runs, what is kept of its output, and that its end is an end.
//!
//! Some tests need a process of their own to misuse; they start this binary again with a [`ROLE`].

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use rustix::process::{Pid, Resource, Rlimit, Signal, getpgrp, kill_process, setpgid, setrlimit};
use zkmw::exec::{Claim, Confinement, ExecEvent, Executor, Means, NotStartedKind, Predecessor, RunFile};
use zkmw::machine::{Captured, Ended, GroupSignal, RunId, RunOutput, RunReport, RunSpec};

mod crowd;
mod ended;
mod handler;
mod handler_lease;
mod keeper;
#[path = "../it/harness/keeper_process.rs"]
mod keeper_process;
mod limits;
mod logs;
mod lost;
mod runfile;
mod runs;
mod signals;
mod starts;
mod strays;
mod terminal;
mod user;

use crowd::{shield, shielded, unkillable};
use ended::{bad_parent, big, wide_pipe};
use runfile::claim;
use runs::{gibibyte, service_vars};
use signals::mover;
use starts::{crowded, raised, starved, threadless};
use terminal::{at_terminal, stops};

/// No single step of a test takes longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// The variable that makes `helper` do something.
const ROLE: &str = "ZKMW_EXEC_TEST_ROLE";
/// Where a helper finds and leaves files.
const DIR: &str = "ZKMW_EXEC_TEST_DIR";

/// Without a lease, and without control groups.
fn plain() -> Means {
    let program = env!("CARGO_BIN_EXE_zkmw").into();
    let confinement = Confinement::default();
    Means { run_file: None, program, leased: false, cgroups: false, confinement, logs: None }
}

struct Rig {
    executor: Executor,
    events: Receiver<ExecEvent>,
    over: BTreeMap<RunId, ExecEvent>,
    next: u64,
}

impl Rig {
    fn new() -> Rig {
        Rig::with(None)
    }

    fn with(run_file: Option<RunFile>) -> Rig {
        Rig::by(Means { run_file, ..plain() })
    }

    fn by(means: Means) -> Rig {
        let (sender, events) = unbounded();
        let executor = Executor::new(sender, means).unwrap();
        Rig { executor, events, over: BTreeMap::new(), next: 1 }
    }

    fn start(&mut self, spec: RunSpec) -> RunId {
        let run = RunId(self.next);
        self.next += 1;
        self.executor.start(run, spec);
        run
    }

    /// The run's last event.
    fn over(&mut self, run: RunId) -> ExecEvent {
        self.awaited(run, false)
    }

    /// The same, where slots may be lost.
    fn over_or_lost(&mut self, run: RunId) -> ExecEvent {
        self.awaited(run, true)
    }

    fn awaited(&mut self, run: RunId, may_be_lost: bool) -> ExecEvent {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.over.remove(&run) {
                return event;
            }
            match self.events.recv_deadline(until).expect("no event came") {
                ExecEvent::Started { .. } => {}
                ExecEvent::NotStarted { run, kind, why } => {
                    let before = self.over.insert(run, ExecEvent::NotStarted { run, kind, why });
                    assert_eq!(before, None);
                }
                ExecEvent::SlotsLost { why } => assert!(may_be_lost, "{why}"),
                ExecEvent::Ended { run, report } => {
                    assert_eq!(self.over.insert(run, ExecEvent::Ended { run, report }), None);
                }
            }
        }
    }

    fn ended(&mut self, run: RunId) -> RunReport {
        match self.over(run) {
            ExecEvent::Ended { report, .. } => report,
            other => panic!("{other:?}"),
        }
    }

    fn not_started(&mut self, spec: RunSpec) -> (NotStartedKind, String) {
        let run = self.start(spec);
        match self.over(run) {
            ExecEvent::NotStarted { kind, why, .. } => (kind, why),
            other => panic!("{other:?}"),
        }
    }

    fn run(&mut self, spec: RunSpec) -> RunReport {
        let run = self.start(spec);
        self.ended(run)
    }

    fn started(&mut self, spec: RunSpec) -> (RunId, u32) {
        let run = self.start(spec);
        match self.events.recv_timeout(PATIENCE).unwrap() {
            ExecEvent::Started { run: started, pid } if started == run => (run, pid),
            other => panic!("{other:?}"),
        }
    }
}

fn argv(argv: &[&str]) -> RunSpec {
    let argv = argv.iter().map(|&word| word.to_owned()).collect();
    RunSpec { argv, env: Vec::new(), request: None, output: RunOutput::Capture { limit: 4096 } }
}

fn sh(line: &str) -> RunSpec {
    argv(&["/bin/sh", "-c", line])
}

fn limited(limit: usize, spec: RunSpec) -> RunSpec {
    RunSpec { output: RunOutput::Capture { limit }, ..spec }
}

fn text(captured: &Captured) -> String {
    assert_eq!(captured.omitted, 0);
    String::from_utf8(captured.head.clone()).unwrap()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The pid in a file that a task writes, as soon as its line is complete.
fn pid_in(path: &Path) -> u32 {
    let mut pid = None;
    until(&format!("a pid in {}", path.display()), || {
        let text = fs::read_to_string(path).unwrap_or_default();
        pid = text.strip_suffix('\n').and_then(|line| line.parse().ok());
        pid.is_some()
    });
    pid.unwrap()
}

/// The state letter of a process; `None` if there is none.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

fn parent(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn is_alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z' && state != 'X')
}

fn kill(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal);
}

fn start_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap()
}

/// Whether the process of this status file ignores the signal.
fn ignores(status: &str, signal: u32) -> bool {
    let status = fs::read_to_string(status).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & (1 << (signal - 1)) != 0
}

fn reap(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

// Helpers: this binary again.

fn spawn_helper(role: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper", "--nocapture"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn helper_spec(role: &str, dir: &Path) -> RunSpec {
    let mut spec = argv(&[std::env::current_exe().unwrap().to_str().unwrap(), "--exact", "helper"]);
    let group = getpgrp().as_raw_nonzero().to_string();
    let variables = [(ROLE, role), (DIR, dir.to_str().unwrap()), ("GROUP", &group)];
    spec.env = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    spec
}

/// Not a test: what the other tests start as a process of its own.
#[test]
fn helper() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let dir = std::env::var(DIR).unwrap();
    let dir = Path::new(&dir);
    if let Some((_, play)) =
        keeper::SCENARIOS.iter().chain(&handler_lease::SCENARIOS).find(|(name, _)| *name == role)
    {
        return play();
    }
    match role.as_str() {
        "gibibyte" => gibibyte(),
        "big" => big(dir),
        "wide_pipe" => wide_pipe(),
        "at_terminal" => at_terminal(),
        "bad_parent" => bad_parent(dir),
        "shield" => shield(),
        "shielded" => shielded(dir),
        "unkillable" => unkillable(dir),
        "mover" => mover(dir),
        "crowded" => crowded(),
        "raised" => raised(),
        "starved" => starved(),
        "threadless" => threadless(),
        "service_vars" => service_vars(),
        "stops" => stops(),
        "suspended" => user::suspended(dir),
        "clean_env" => user::clean_env(),
        "inside" => limits::inside(),
        "crowded_group" => limits::crowded_group(),
        "worker" => worker(dir),
        "leasing" => lost::leasing(dir),
        "pid_one" => lost::pid_one(),
        "reported_in_the_end" => lost::reported_in_the_end(),
        "blind" => lost::blind(),
        "reports" => reports(dir),
        other => panic!("no role {other}"),
    }
}

/// A worker with a run file that runs the line in `dir/line` until it is killed.
fn worker(dir: &Path) {
    let mut rig = Rig::with(Some(claim(&dir.join("run"))));
    rig.started(sh(&fs::read_to_string(dir.join("line")).unwrap()));
    fs::write(dir.join("worker"), format!("{}\n", std::process::id())).unwrap();
    std::thread::sleep(PATIENCE);
}

/// Writes how a run ended, and lets another print to our own output.
fn reports(dir: &Path) {
    assert!(ignores("/proc/self/status", 17), "SIGCHLD should be ignored at first");
    let mut rig = Rig::new();
    let ended = rig.run(sh("exit 3")).ended;
    let report = rig.run(RunSpec { output: RunOutput::Inherit, ..sh("echo passed on; echo loud >&2") });
    assert_eq!((report.stdout, report.stderr), (Captured::default(), Captured::default()));
    fs::write(dir.join("ended"), format!("{ended:?}")).unwrap();
}

#[test]
fn output_is_inherited_and_an_ignored_sigchld_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    // Not by a shell's `trap`: dash cannot ignore SIGCHLD.
    let output = Command::new("env")
        .arg("--ignore-signal=CHLD")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "helper", "--nocapture"])
        .env(ROLE, "reports")
        .env(DIR, dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("passed on\n"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("loud\n"));
    assert_eq!(fs::read_to_string(dir.path().join("ended")).unwrap(), "Exit(3)");
}
