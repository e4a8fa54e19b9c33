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
use zkmw::exec::{Claim, ExecEvent, Executor, NotStartedKind, Predecessor, RunFile};
use zkmw::machine::{Captured, Ended, GroupSignal, RunId, RunOutput, RunReport, RunSpec};

/// No single step of a test takes longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// The variable that makes `helper` do something.
const ROLE: &str = "ZKMW_EXEC_TEST_ROLE";
/// Where a helper finds and leaves files.
const DIR: &str = "ZKMW_EXEC_TEST_DIR";

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
        let (sender, events) = unbounded();
        let executor = Executor::new(sender, run_file).unwrap();
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
    RunSpec { argv, env: Vec::new(), output: RunOutput::Capture { limit: 4096 } }
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

// What runs, and how it ended.

#[test]
fn exit_codes_and_signals_come_through() {
    let mut rig = Rig::new();
    for code in [0, 1, 3, 126, 127, 255] {
        assert_eq!(rig.run(sh(&format!("exit {code}"))).ended, Ended::Exit(code));
    }
    for signal in [1, 6, 9, 15] {
        assert_eq!(rig.run(sh(&format!("kill -{signal} $$"))).ended, Ended::Signal(signal));
    }
}

#[test]
fn a_shell_line_is_expanded_and_arguments_are_not() {
    let mut rig = Rig::new();
    let mut line = sh("echo $A \"$0\"");
    line.env.push(("A".into(), "ä b".into()));
    assert_eq!(text(&rig.run(line).stdout), "ä b /bin/sh\n");
    assert_eq!(text(&rig.run(argv(&["echo", "$A", "", "*  x"])).stdout), "$A  *  x\n");
}

#[test]
fn standard_input_is_empty_and_the_streams_are_apart() {
    let report = Rig::new().run(sh("cat; echo out; echo err >&2"));
    assert_eq!((text(&report.stdout).as_str(), text(&report.stderr).as_str()), ("out\n", "err\n"));
    assert!(report.started_ms > 1_600_000_000_000 && report.ended_ms >= report.started_ms);
}

#[test]
fn only_the_three_standard_descriptors_are_inherited() {
    // Not close-on-exec, as a careless library may leave it.
    let leak = rustix::io::dup(fs::File::open("/dev/null").unwrap()).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&leak);
    let line = format!("[ -e /proc/$$/fd/2 ] && ! [ -e /proc/$$/fd/{number} ] && ! [ -e /proc/$$/fd/3 ]");
    assert_eq!(Rig::new().run(sh(&line)).ended, Ended::Exit(0));
}

#[test]
fn a_run_is_a_group_of_its_own_with_default_signals() {
    let mut rig = Rig::new();
    // Not through a shell: while it waits it blocks signals of its own accord.
    let out = text(&rig.run(argv(&["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"])).stdout);
    assert_eq!(out.lines().count(), 2);
    for line in out.lines() {
        let mask = u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
        // Of signals 1 to 31: glibc's posix_spawn leaves an internal one above them ignored.
        assert_eq!(mask & 0x7fff_ffff, 0, "{line}");
    }
    let out = text(&rig.run(argv(&["cut", "-d ", "-f1,5", "/proc/self/stat"])).stdout);
    let (pid, group) = out.trim().split_once(' ').unwrap();
    assert_eq!(pid, group);
}

// What is kept of the output.

#[test]
fn bytes_that_are_not_text_are_kept() {
    let report = Rig::new().run(sh(r"printf '\377\000\376x'; printf '\200' >&2"));
    assert_eq!(report.stdout.head, b"\xff\0\xfex");
    assert_eq!(report.stderr.head, b"\x80");
}

#[test]
fn head_tail_and_the_number_between_are_exact() {
    let mut rig = Rig::new();
    let all: Vec<u8> = (1..=200_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    let spec = argv(&["seq", "1", "200000"]);
    for limit in [0, 1, 2, 1001, 70_000, 300_000, all.len() - 1] {
        let got = rig.run(limited(limit, spec.clone())).stdout;
        let (head, tail) = (limit - limit / 2, limit / 2);
        assert_eq!(got.omitted, (all.len() - limit) as u64, "limit {limit}");
        assert!(got.head == all[..head] && got.tail == all[all.len() - tail..], "limit {limit}");
    }
    for limit in [all.len(), all.len() + 1] {
        let got = rig.run(limited(limit, spec.clone())).stdout;
        assert!(got == Captured { head: all.clone(), omitted: 0, tail: Vec::new() }, "limit {limit}");
    }
}

#[test]
fn both_streams_full_at_once_do_not_deadlock() {
    const BYTES: usize = 50_000_000;
    let line = format!("head -c {BYTES} /dev/zero >&2 & head -c {BYTES} /dev/zero; wait");
    let report = Rig::new().run(limited(100, sh(&line)));
    assert_eq!(report.ended, Ended::Exit(0));
    for stream in [report.stdout, report.stderr] {
        assert_eq!(stream.omitted as usize + stream.head.len() + stream.tail.len(), BYTES);
    }
}

#[test]
fn a_gibibyte_runs_through_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    assert!(spawn_helper("gibibyte", dir.path()).wait().unwrap().success());
}

fn gibibyte() {
    let resident_kib = || -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let mut rig = Rig::new();
    rig.run(sh("exit 0"));
    let (before_kib, begun) = (resident_kib(), Instant::now());
    let report = rig.run(limited(1 << 20, argv(&["head", "-c", "1073741824", "/dev/zero"])));
    let (grown_kib, took) = (resident_kib() - before_kib, begun.elapsed());
    eprintln!("1 GiB: {took:?}, resident set grown by {grown_kib} KiB");
    assert_eq!(report.stdout.omitted, (1 << 30) - (1 << 20));
    assert!(grown_kib < 4 << 10, "grown by {grown_kib} KiB");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_run_that_has_closed_its_output_lives_on_and_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("closed");
    let mut rig = Rig::new();
    rig.next = 740_123;
    let (run, _) = rig.started(sh(&format!("exec >&- 2>&-; echo $$ > {}; exec sleep 30", marker.display())));
    pid_in(&marker);
    // The thread that watches it sleeps in poll, and goes on doing so.
    let mut asleep = 0;
    until("its thread sleeps", || {
        let sleeps = fs::read_dir("/proc/self/task").unwrap().any(|task| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            stat.contains("(run-740123) S")
        });
        asleep = if sleeps { asleep + 1 } else { 0 };
        asleep == 50
    });
    assert_eq!(rig.executor.live(), 1);
    rig.executor.signal(run, GroupSignal::Term);
    assert_eq!(rig.ended(run).ended, Ended::Signal(15));
}

// Ended means ended.

#[test]
fn what_is_left_of_the_group_is_dead_before_the_end_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("left");
    let mut rig = Rig::new();
    for _ in 0..20 {
        let line = format!("(trap '' HUP TERM; sleep 30) & echo $! > {}; exit 3", left.display());
        assert_eq!(rig.run(sh(&line)).ended, Ended::Exit(3));
        assert!(!is_alive(pid_in(&left)));
    }
}

#[test]
fn a_big_rest_of_the_group_is_waited_for() {
    // To give back so much memory takes the kernel a while after the SIGKILL.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    let exe = std::env::current_exe().unwrap();
    let line = format!(
        "{ROLE}=big {DIR}={path} {} --exact helper & until [ -s {path}/big ]; do sleep 0.01; done",
        exe.display()
    );
    let report = Rig::new().run(sh(&line));
    let big = pid_in(&dir.path().join("big"));
    assert_eq!((report.ended, is_alive(big)), (Ended::Exit(0), false));
}

fn big(dir: &Path) {
    // In small pages it takes longest.
    rustix::thread::disable_transparent_huge_pages(true).unwrap();
    let memory = vec![1_u8; 400 << 20];
    fs::write(dir.join("big"), format!("{}\n", std::process::id())).unwrap();
    std::thread::sleep(PATIENCE);
    drop(memory);
}

#[test]
fn a_stopped_rest_of_the_group_dies_too() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("left");
    let line = format!(
        "sleep 30 & kill -STOP $!; until grep -q 'State:.T' /proc/$!/status; do :; done; echo $! > {}",
        left.display()
    );
    assert_eq!(Rig::new().run(sh(&line)).ended, Ended::Exit(0));
    assert!(!is_alive(pid_in(&left)));
}

#[test]
fn what_stands_in_the_pipes_at_the_end_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new();
    for _ in 0..20 {
        let report = rig.run(limited(4 << 20, helper_spec("wide_pipe", dir.path())));
        assert_eq!(report.ended, Ended::Exit(0));
        assert_eq!(report.stdout.head.iter().filter(|&&byte| byte == 1).count(), WIDE_PIPE_BYTES);
    }
}

/// As much as a pipe can be made to hold, so that much of it is still there when the writer is gone.
const WIDE_PIPE_BYTES: usize = 1 << 20;

fn wide_pipe() -> ! {
    let stdout = std::io::stdout();
    rustix::pipe::fcntl_setpipe_size(&stdout, WIDE_PIPE_BYTES).unwrap();
    let bytes = vec![1; WIDE_PIPE_BYTES];
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&stdout, rest).unwrap()..];
    }
    std::process::exit(0);
}

#[test]
fn one_that_left_the_group_and_holds_the_pipe_does_not_hold_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let escaped = dir.path().join("escaped");
    let mut rig = Rig::new();
    // One that is silent, and one that never stops writing.
    for command in ["sleep 30", "yes"] {
        let line = format!(
            "setsid sh -c 'echo $$ > {0}; exec {command}' & until [ -s {0} ]; do sleep 0.01; done; echo over",
            escaped.display()
        );
        let begun = Instant::now();
        let report = rig.run(sh(&line));
        let took = begun.elapsed();
        let pid = pid_in(&escaped);
        // `yes` gets SIGPIPE when we close our end; only the silent one is sure to be there still.
        assert!(command == "yes" || is_alive(pid), "a process out of the group is out of reach");
        kill(pid, Signal::KILL);
        fs::remove_file(&escaped).unwrap();
        assert_eq!(report.ended, Ended::Exit(0));
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
}

#[test]
fn a_zombie_that_nobody_reaps_does_not_hold_the_end() {
    // Its parent has left the group and never waits for it.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    let exe = std::env::current_exe().unwrap();
    let line = format!(
        "{ROLE}=bad_parent {DIR}={path} {} --exact helper & until [ -s {path}/child ]; do sleep 0.01; done",
        exe.display()
    );
    let report = Rig::new().run(sh(&line));
    let (child, parent) = (pid_in(&dir.path().join("child")), pid_in(&dir.path().join("parent")));
    assert_eq!((report.ended, state(child), is_alive(parent)), (Ended::Exit(0), Some('Z'), true));
    kill(parent, Signal::KILL);
}

#[allow(clippy::zombie_processes, reason = "a zombie is wanted")]
fn bad_parent(dir: &Path) {
    let child = Command::new("sleep").arg("30").spawn().unwrap();
    // To a group of its own; the child stays where it was born.
    setpgid(None, None).unwrap();
    fs::write(dir.join("parent"), format!("{}\n", std::process::id())).unwrap();
    fs::write(dir.join("child"), format!("{}\n", child.id())).unwrap();
    std::thread::sleep(PATIENCE);
}

// Signals.

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

#[test]
fn a_leader_that_moved_to_another_group_is_still_reached() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new();
    let (run, pid) = rig.started(helper_spec("mover", dir.path()));
    assert_eq!(pid_in(&dir.path().join("moved")), pid);
    rig.executor.signal(run, GroupSignal::Kill);
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
}

fn mover(dir: &Path) {
    let ours = Pid::from_raw(std::env::var("GROUP").unwrap().parse().unwrap());
    setpgid(None, ours).unwrap();
    fs::write(dir.join("moved"), format!("{}\n", std::process::id())).unwrap();
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
        assert!(matches!(rig.ended(run).ended, Ended::Signal(9 | 15)));
        // One that may be caught has to wait until there is a program to catch it.
        let run = rig.start(argv(&["sleep", "30"]));
        rig.executor.signal(run, GroupSignal::Term);
        assert_eq!(rig.ended(run).ended, Ended::Signal(15));
    }
}

// What cannot be started.

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

fn starved() {
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
    match role.as_str() {
        "gibibyte" => gibibyte(),
        "big" => big(dir),
        "wide_pipe" => wide_pipe(),
        "bad_parent" => bad_parent(dir),
        "mover" => mover(dir),
        "starved" => starved(),
        "worker" => worker(dir),
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
fn inherited_output_is_passed_on_and_an_ignored_sigchld_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    // Not by a shell's `trap`: dash does not ignore SIGCHLD when told to.
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

// The run file.

fn claim(dir: &Path) -> RunFile {
    match RunFile::claim(dir, "w7").unwrap() {
        Claim::Ours(run_file) => run_file,
        Claim::Held { pid } => panic!("held by {pid:?}"),
    }
}

/// Starts a worker that runs the line, and kills it the hard way once the line has written a pid to READY.
/// Returns the worker's pid, and that.
fn killed_worker(dir: &Path, line: &str) -> (u32, u32) {
    fs::write(dir.join("line"), line.replace("READY", dir.join("ready").to_str().unwrap())).unwrap();
    let mut helper = spawn_helper("worker", dir);
    let left = pid_in(&dir.join("ready"));
    pid_in(&dir.join("worker"));
    assert!(is_alive(left));
    match RunFile::claim(&dir.join("run"), "w7").unwrap() {
        Claim::Held { pid } => assert_eq!(pid, Some(helper.id())),
        Claim::Ours(_) => panic!("the lock does not hold"),
    }
    reap(&mut helper);
    (helper.id(), left)
}

#[test]
fn a_killed_worker_takes_the_leaders_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_, leader) = killed_worker(dir.path(), "echo $$ > READY; exec sleep 30");
    until("the leader is dead", || !is_alive(leader));
}

#[test]
fn a_successor_kills_what_a_killed_worker_left_and_has_its_proof() {
    let dir = tempfile::tempdir().unwrap();
    // The second has no environment, but the first proves that the group is ours.
    let (pid, left) = killed_worker(dir.path(), "sleep 31 & env -i sleep 31 & echo $! > READY; wait");
    match claim(&dir.path().join("run")).inspect_predecessor() {
        Predecessor::Gone { pid: gone, start_ticks, leftovers_killed } => {
            // The leader may have died before we looked, or not.
            assert!(gone == pid && start_ticks > 0 && leftovers_killed >= 2, "{leftovers_killed}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!is_alive(left));
}

#[test]
fn a_group_that_nothing_proves_to_be_ours_is_left_alone_and_spoils_the_proof() {
    let dir = tempfile::tempdir().unwrap();
    let (_, left) = killed_worker(dir.path(), "env -i sleep 31 & echo $! > READY; wait");
    let leader = fs::read_to_string(dir.path().join("run/w7.json")).unwrap();
    let leader: serde_json::Value = serde_json::from_str(&leader).unwrap();
    let leader = leader["groups"][0]["pgid"].as_u64().unwrap() as u32;
    until("nothing of the leader is left", || state(leader).is_none());
    assert!(fs::read(format!("/proc/{left}/environ")).unwrap().is_empty());
    let found = claim(&dir.path().join("run")).inspect_predecessor();
    let expected = "could not be proved";
    assert!(matches!(&found, Predecessor::Unknown { why } if why.contains(expected)), "{found:?}");
    assert!(is_alive(left));
    kill(left, Signal::KILL);
}

#[test]
fn the_name_is_free_again_once_the_executor_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::with(Some(claim(dir.path())));
    rig.run(sh("exit 0"));
    assert!(matches!(RunFile::claim(dir.path(), "w7").unwrap(), Claim::Held { .. }));
    assert!(matches!(RunFile::claim(dir.path(), "w8").unwrap(), Claim::Ours(_)));
    drop(rig);
    // The worker of the file is this very process, which lives.
    let found = claim(dir.path()).inspect_predecessor();
    assert_eq!(found, Predecessor::Alive { pid: std::process::id() });
}

#[test]
fn every_group_is_in_the_run_file_before_its_program_runs_and_not_after_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w7.json");
    let mut rig = Rig::with(Some(claim(dir.path())));
    let line = format!("grep -q '\"pgid\":'$$',' {}", path.display());
    let runs: Vec<RunId> = (0..60).map(|_| rig.start(sh(&line))).collect();
    for run in runs {
        assert_eq!(rig.ended(run).ended, Ended::Exit(0));
    }
    until("the list is empty", || fs::read_to_string(&path).unwrap().contains("\"groups\":[]"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&dir.path().join("w7.lock"))), (0o600, 0o600));
}

#[test]
fn a_recycled_number_is_neither_killed_nor_taken_for_the_predecessor() {
    let dir = tempfile::tempdir().unwrap();
    let (gone, _) = killed_worker(dir.path(), "echo $$ > READY; exec sleep 30");
    let mut bystander = Command::new("sleep").arg("30").process_group(0).spawn().unwrap();
    let path = dir.path().join("run/w7.json");
    let mut content: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // The group had the bystander's number, but was born earlier.
    let born = start_ticks(bystander.id());
    content["groups"] = serde_json::json!([{ "pgid": bystander.id(), "start_ticks": born - 1 }]);
    fs::write(&path, content.to_string()).unwrap();
    let run_file = claim(&dir.path().join("run"));
    let found = run_file.inspect_predecessor();
    assert!(matches!(found, Predecessor::Gone { pid, leftovers_killed: 0, .. } if pid == gone), "{found:?}");
    assert_eq!(bystander.try_wait().unwrap(), None);
    // The worker's own number may be taken by somebody else, too.
    content["groups"] = serde_json::json!([]);
    content["pid"] = bystander.id().into();
    content["start_ticks"] = (born - 1).into();
    fs::write(&path, content.to_string()).unwrap();
    assert!(matches!(run_file.inspect_predecessor(), Predecessor::Gone { .. }));
    content["start_ticks"] = born.into();
    fs::write(&path, content.to_string()).unwrap();
    assert_eq!(run_file.inspect_predecessor(), Predecessor::Alive { pid: bystander.id() });
    reap(&mut bystander);
}

#[test]
fn a_file_of_another_boot_or_namespace_or_version_or_a_broken_one_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    drop(Rig::with(Some(claim(dir.path()))));
    let path = dir.path().join("w7.json");
    let run_file = claim(dir.path());
    let is_unknown = |text: String| {
        fs::write(&path, text).unwrap();
        matches!(run_file.inspect_predecessor(), Predecessor::Unknown { .. })
    };
    let mut gone: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    gone["start_ticks"] = 1.into();
    assert!(!is_unknown(gone.to_string()));
    for (field, value) in [
        ("boot_id", serde_json::json!("00000000-0000-0000-0000-000000000000")),
        ("pid_ns", serde_json::json!(1)),
        ("v", serde_json::json!(2)),
        ("groups", serde_json::json!("none")),
    ] {
        let mut content = gone.clone();
        content[field] = value;
        assert!(is_unknown(content.to_string()), "{field}");
    }
    for (pgid, start_ticks) in [(0_u32, 7), (1, 7), (u32::MAX, 7), (30_000, 0)] {
        gone["groups"] = serde_json::json!([{ "pgid": pgid, "start_ticks": start_ticks }]);
        assert!(is_unknown(gone.to_string()), "{pgid}");
    }
    for text in ["", "{", "null"] {
        assert!(is_unknown(text.to_owned()), "{text}");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(run_file.inspect_predecessor(), Predecessor::None);
}

#[test]
fn the_run_directory_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("a/b");
    drop(claim(&inner));
    assert_eq!(fs::metadata(&inner).unwrap().permissions().mode() & 0o777, 0o700);
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(RunFile::claim(&inner, "w7").unwrap_err().to_string().contains("0700"));
    for name in ["", "a/b", "a\0b"] {
        assert!(RunFile::claim(dir.path(), name).is_err());
    }
}

#[test]
fn if_the_run_file_cannot_be_written_it_is_removed_and_the_runs_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w7.json");
    let mut rig = Rig::with(Some(claim(dir.path())));
    assert!(path.exists());
    // Nobody can open a directory for writing, root neither.
    fs::create_dir(dir.path().join("w7.json.next")).unwrap();
    assert_eq!(rig.run(sh(&format!("! [ -e {} ]", path.display()))).ended, Ended::Exit(0));
    // When it can be written again, the whole list is there again.
    fs::remove_dir(dir.path().join("w7.json.next")).unwrap();
    assert_eq!(rig.run(sh(&format!("grep -q '\"pgid\":'$$',' {}", path.display()))).ended, Ended::Exit(0));
}

#[test]
fn a_full_disk_removes_the_run_file_and_the_runs_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().to_str().unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16k,mode=700", "zkmw", disk]).output();
    if !mount.as_ref().is_ok_and(|output| output.status.success()) {
        assert!(!rustix::process::geteuid().is_root(), "root cannot mount: {mount:?}");
        eprintln!("NOT TESTED: only root can mount a small disk");
        return;
    }
    let path = dir.path().join("w7.json");
    let result = std::panic::catch_unwind(|| {
        let mut rig = Rig::with(Some(claim(dir.path())));
        assert!(path.exists());
        let filled = fs::write(dir.path().join("filler"), vec![0; 1 << 20]);
        assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(rig.run(sh(&format!("! [ -e {} ]", path.display()))).ended, Ended::Exit(0));
    });
    assert!(Command::new("umount").args(["-l", disk]).status().unwrap().success());
    result.unwrap();
}

// Not a test but a measurement: `cargo test --release --test exec -- --ignored --nocapture`.

#[test]
#[ignore = "a measurement"]
fn runs_per_second() {
    const TOTAL: u64 = 2000;
    let measured = |what: String, work: &mut dyn FnMut()| {
        let (begun, used) = (Instant::now(), cpu_ticks());
        work();
        let rate = TOTAL as f64 / begun.elapsed().as_secs_f64();
        let cpu_us = (cpu_ticks() - used) * 10_000 / TOTAL;
        eprintln!("{what}: {rate:.0} runs/s, {cpu_us} µs of processor time each");
    };
    for at_once in [1, 2, 8, 64] {
        // What the machine gives at this moment: the same without groups, pipes, or a thread for each run.
        measured(format!("{at_once:>3} at once, std alone"), &mut || {
            std::thread::scope(|scope| {
                let share = || (0..TOTAL / at_once).for_each(|_| assert!(true_by_std()));
                for _ in 0..at_once {
                    scope.spawn(share);
                }
            });
        });
        for with_file in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let mut rig = Rig::with(with_file.then(|| claim(dir.path())));
            measured(format!("{at_once:>3} at once, run file {with_file}"), &mut || {
                for _ in 0..at_once {
                    rig.start(argv(&["/bin/true"]));
                }
                let mut over = 0;
                while over < TOTAL {
                    if let ExecEvent::Ended { .. } = rig.events.recv_timeout(PATIENCE).unwrap() {
                        over += 1;
                        if rig.next <= TOTAL {
                            rig.start(argv(&["/bin/true"]));
                        }
                    }
                }
            });
        }
    }
}

fn true_by_std() -> bool {
    Command::new("/bin/true").status().unwrap().success()
}

/// Of this process and the children that it has reaped, in hundredths of a second.
fn cpu_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    fields.skip(11).take(4).map(|field| field.parse::<u64>().unwrap()).sum()
}
