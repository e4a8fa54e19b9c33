//! RunLimits of runs. They need the controllers of control groups, which few machines have to spare for a test. So a
//! kernel of its own is started for them as an ordinary process (user-mode Linux), on the files of this machine,
//! which it only reads.

use super::*;
use zkmw::exec::{RunLimits, Unavailable};

const MIB: u64 = 1 << 20;
/// That kernel is slow, and has one processor.
const KERNEL_WITHIN: Duration = Duration::from_secs(120);

/// The tests that run on that kernel.
const SCENARIOS: [(&str, fn()); 8] = [
    ("a_worker_makes_room", makes_room),
    ("memory", memory),
    ("files_in_memory", files_in_memory),
    ("tight", tight),
    ("fork_bomb", fork_bomb),
    ("processors", processors),
    ("handlers", handlers),
    ("keeper", another_keeper),
];
/// How many of these also run as an ordinary user that owns its control group.
const BY_NOBODY: usize = 2;

fn limited(limits: RunLimits) -> Means {
    let confinement = Confinement { limits, ..Confinement::default() };
    Means { cgroups: true, confinement, ..plain() }
}

fn memory_of(bytes: u64) -> RunLimits {
    RunLimits { memory_bytes: Some(bytes), ..RunLimits::default() }
}

/// A line for a shell that uses so much memory.
fn uses(mebibytes: u64) -> String {
    format!("dd if=/dev/zero of=/dev/null bs={mebibytes}M count=1 2>&1")
}

fn detail(report: &RunReport) -> &str {
    report.detail.as_deref().unwrap_or_default()
}

/// The cgroup of version 2 that a process is in.
fn cgroup(pid: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
}

/// The executor's own process and its slots leave the group that is to be divided.
fn makes_room() {
    let home = cgroup("self");
    let home = home.strip_suffix("/zkmw-worker").unwrap_or(&home).to_owned();
    let limits = RunLimits { memory_bytes: Some(64 * MIB), cpu_millis: Some(500), processes: Some(20) };
    let mut rig = Rig::by(limited(limits));
    let leaf = format!("{home}/zkmw-worker");
    assert_eq!(cgroup("self"), leaf);
    let run = text(&rig.run(sh("cat /proc/self/cgroup; cat /proc/$PPID/cgroup")).stdout);
    let groups: Vec<&str> = run.lines().map(|line| line.strip_prefix("0::").unwrap()).collect();
    let group = groups[0].to_owned();
    assert!(group.starts_with(&format!("{home}/zkmw-")) && group.ends_with("/0"), "{groups:?}");
    assert_eq!(groups[1], leaf, "slots stay outside");
    assert_eq!(fs::read_to_string(format!("/sys/fs/cgroup{home}/cgroup.procs")).unwrap(), "");
    let line = format!("cd /sys/fs/cgroup{group} && cat memory.max memory.oom.group cpu.max pids.max");
    assert_eq!(text(&rig.run(sh(&line)).stdout), "67108864\n1\n50000 100000\n20\n");
    // Another one, in the same process, finds the room made.
    let mut another = Rig::by(limited(memory_of(64 * MIB)));
    assert_eq!(another.run(sh("exit 3")).ended, Ended::Exit(3));
}

/// A run that needs more is killed, and nothing else.
fn memory() {
    let mut rig = Rig::by(limited(memory_of(48 * MIB)));
    let (neighbour, pid) = rig.started(sh("sleep 600"));
    for _ in 0..2 {
        let report = rig.run(sh(&format!("({}) & wait; sleep 600", uses(200))));
        assert_eq!(report.ended, Ended::Signal(9), "the shell as well, though it needed little");
        assert!(detail(&report).ends_with("a task may have here: 48MiB (--task-memory)"), "{report:?}");
        // In the same slot.
        let report = rig.run(sh(&uses(20)));
        assert_eq!((report.ended, report.detail), (Ended::Exit(0), None));
    }
    assert!(is_alive(pid));
    rig.executor.signal(neighbour, GroupSignal::Kill);
    let report = rig.ended(neighbour);
    assert_eq!((report.ended, report.detail), (Ended::Signal(9), None), "what we kill needs no reason");
    // A signal from another process, in a group that has counted nothing.
    let report = rig.run(sh("kill -9 $$"));
    assert_eq!(detail(&report), "killed by SIGKILL, which the worker did not send");
}

/// Files that a run leaves in a file system in memory count against that run alone.
fn files_in_memory() {
    let mut rig = Rig::by(limited(memory_of(48 * MIB)));
    let file = |name: &str| format!("{}/{name}", std::env::var(DIR).unwrap());
    for name in ["a", "b"] {
        let line = format!("dd if=/dev/zero of={} bs=1M count=30 2>/dev/null", file(name));
        assert_eq!(rig.run(sh(&line)).ended, Ended::Exit(0));
        let report = rig.run(sh(&uses(30)));
        assert_eq!(report.ended, Ended::Exit(0), "{report:?}");
    }
    let line = format!("cat /dev/zero >{}", file("c"));
    let report = rig.run(sh(&line));
    assert!(report.ended == Ended::Signal(9) && detail(&report).contains("--task-memory"), "{report:?}");
    ["a", "b", "c"].iter().for_each(|name| fs::remove_file(file(name)).unwrap());
}

/// A program that does not even start says why, and its slot goes on.
fn tight() {
    let mut rig = Rig::by(limited(memory_of(MIB)));
    for _ in 0..2 {
        let run = rig.start(argv(&["/usr/bin/env", "perl", "-e", "$x = 'x' x 8000000"]));
        let why = match rig.over(run) {
            ExecEvent::NotStarted { why, .. } => why,
            ExecEvent::Ended { report, .. } => detail(&report).to_owned(),
            other => panic!("{other:?}"),
        };
        assert!(why.ends_with("a task may have here: 1MiB (--task-memory)"), "{why}");
    }
}

/// It has as many processes as it may, and dies like everything else.
fn fork_bomb() {
    let processes = 30;
    let mut rig = Rig::by(limited(RunLimits { processes: Some(processes), ..RunLimits::default() }));
    let (neighbour, pid) = rig.started(sh("sleep 600"));
    let (run, leader) = rig.started(argv(&["perl", "-e", "fork while 1"]));
    let group = format!("/sys/fs/cgroup{}", cgroup(&leader.to_string()));
    let number = |file: &str| -> u64 {
        let text = fs::read_to_string(format!("{group}/{file}")).unwrap();
        text.trim().trim_start_matches("max ").parse().unwrap()
    };
    until("it came to its limit", || {
        assert!(number("pids.current") <= processes);
        number("pids.events") > 100
    });
    assert!(is_alive(pid));
    // Others have room.
    assert_eq!(rig.run(sh("(exit 3) & wait $!")).ended, Ended::Exit(3));
    rig.executor.signal(run, GroupSignal::Kill);
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    until("all of it is gone", || {
        fs::read_to_string(format!("{group}/cgroup.procs")).unwrap_or_default().is_empty()
    });
    // One that ends by itself says what it lacked.
    let report = rig.run(sh("i=0; while [ $i -lt 40 ]; do sleep 600 & i=$((i + 1)); done; exit 1"));
    assert!(detail(&report).ends_with("a task may have 30 here (--task-pids)"), "{report:?}");
    rig.executor.signal(neighbour, GroupSignal::Kill);
    rig.ended(neighbour);
}

/// A fifth of a processor is a fifth.
fn processors() {
    let mut rig = Rig::by(limited(RunLimits { cpu_millis: Some(200), ..RunLimits::default() }));
    let begun = Instant::now();
    let (run, leader) = rig.started(sh("while :; do :; done"));
    let group = format!("/sys/fs/cgroup{}", cgroup(&leader.to_string()));
    let used = || -> u64 {
        let text = fs::read_to_string(format!("{group}/cpu.stat")).unwrap();
        text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap().parse().unwrap()
    };
    until("it has run for a while", || used() > 400_000);
    let (used, took) = (used(), begun.elapsed());
    // The first period may be given at once.
    assert!(u128::from(used) * 3 < took.as_micros(), "{used} us of {took:?}");
    rig.executor.signal(run, GroupSignal::Kill);
    rig.ended(run);
}

/// A handler is one run, as long as it lives.
fn handlers() {
    let mut rig = Rig::by(limited(memory_of(48 * MIB)));
    assert_eq!(text(&handler::asked(&mut rig, "ok fine").stdout), "fine");
    let report = handler::asked(&mut rig, &uses(200));
    assert!(report.ended == Ended::Signal(9) && detail(&report).contains("--task-memory"), "{report:?}");
    assert_eq!(text(&handler::asked(&mut rig, "ok again").stdout), "again");
}

/// A keeper that is started anew has the limits as well.
fn another_keeper() {
    let mut rig = Rig::by(limited(memory_of(48 * MIB)));
    assert_eq!(rig.run(sh(&uses(20))).ended, Ended::Exit(0));
    kill(keeper::keeper_pid(), Signal::KILL);
    let next = rig.events.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(next, ExecEvent::SlotsLost { .. }), "{next:?}");
    until("it runs again", || {
        let run = rig.start(sh(&uses(200)));
        matches!(rig.over(run), ExecEvent::Ended { report, .. } if detail(&report).contains("--task-memory"))
    });
}

/// The helper, on that kernel.
pub fn inside() {
    let all = rustix::process::geteuid().is_root();
    println!();
    for (name, show) in SCENARIOS.into_iter().take(if all { SCENARIOS.len() } else { BY_NOBODY }) {
        let begun = Instant::now();
        show();
        println!("shown: {name}\n{name} took {} ms", begun.elapsed().as_millis());
    }
}

/// The helper, on that kernel: another process is in its group.
pub fn crowded_group() {
    println!("\nrefused: {}", why_not(limited(memory_of(48 * MIB))));
}

/// Why there is no executor.
fn why_not(means: Means) -> String {
    let error = Executor::new(unbounded().0, means).unwrap_err();
    error.downcast::<Unavailable>().unwrap().to_string()
}

/// Process 1 of that kernel.
fn script() -> String {
    let own = std::env::current_exe().unwrap();
    let helper = |role: &str| {
        format!("env {ROLE}={role} {DIR}=/run TMPDIR=/run {} --exact helper --nocapture", own.display())
    };
    let (inside, crowded) = (helper("inside"), helper("crowded_group"));
    format!(
        "#!/bin/sh
        exec 2>&1
        PATH={path}
        mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t cgroup2 none /sys/fs/cgroup
        mount -t tmpfs -o mode=1777 run /run
        cd /sys/fs/cgroup
        echo +memory +cpu +pids >cgroup.subtree_control
        mkdir service crowded delegated
        sh -c 'echo $$ >service/cgroup.procs; exec {inside}'
        sh -c 'echo $$ >crowded/cgroup.procs; {crowded}; true'
        chown nobody delegated delegated/cgroup.procs delegated/cgroup.subtree_control
        caps=+dac_read_search # for the folder of this program, wherever that is
        as_nobody=\"setpriv --reuid nobody --clear-groups --inh-caps $caps --ambient-caps $caps\"
        sh -c \"echo \\$\\$ >delegated/cgroup.procs; exec $as_nobody {inside}\" | sed s/^/nobody,/
        echo everything was tried
        echo o >/proc/sysrq-trigger
        sleep 60
        ",
        path = std::env::var("PATH").unwrap(),
    )
}

#[test]
fn a_kernel_with_controllers_limits_runs_and_nothing_else() {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("user-mode Linux is for one architecture only");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let init = dir.path().join("init");
    fs::write(&init, script()).unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    let said = dir.path().join("said");
    let mut kernel = Command::new("linux.uml");
    kernel
        .args(["mem=1G", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "con=null", "con0=fd:0,fd:1"])
        .arg(format!("init={}", init.display()))
        // It keeps a folder there.
        .env("HOME", dir.path())
        .stdin(Stdio::null())
        .stdout(fs::File::create(&said).unwrap())
        .stderr(Stdio::null())
        .process_group(0);
    let mut kernel = kernel.spawn().expect("no linux.uml: run scripts/setup");
    let begun = Instant::now();
    while kernel.try_wait().unwrap().is_none() && begun.elapsed() < KERNEL_WITHIN {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Its processes are ordinary ones.
    let _ = rustix::process::kill_process_group(Pid::from_child(&kernel), Signal::KILL);
    let _ = kernel.wait();
    let said = String::from_utf8_lossy(&fs::read(said).unwrap()).replace('\r', "");
    let by_root = SCENARIOS.iter().map(|(name, _)| format!("\nshown: {name}\n"));
    let by_nobody = SCENARIOS[..BY_NOBODY].iter().map(|(name, _)| format!("\nnobody,shown: {name}\n"));
    for line in by_root.chain(by_nobody) {
        assert!(said.contains(&line), "{line}{said}");
    }
    let refused = said.lines().find_map(|line| line.strip_prefix("refused: ")).expect(&said);
    let others = "task-memory: the worker's control group /sys/fs/cgroup/crowded has other processes in it (";
    assert!(refused.starts_with(others) && refused.contains("Delegate=yes"), "{refused}");
    println!("{said}\n{} s", begun.elapsed().as_secs());
}
