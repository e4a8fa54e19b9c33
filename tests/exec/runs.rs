//! Runs: what can be run, how it ends, and what is kept of its output.

use super::*;

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
fn standard_input_is_empty_and_the_streams_are_separate() {
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
    // As if we had been started with nohup, or by a shell in the background.
    for signal in [libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: no handler is set, and nobody sends us these.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
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

#[test]
fn oom_kills_tasks_first_and_a_foreign_sigkill_is_reported() {
    let mut rig = Rig::new();
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    let out = text(&rig.run(sh("cat /proc/self/oom_score_adj")).stdout);
    assert_eq!(out.trim(), (own + 500).clamp(0, 1000).to_string());
    let report = rig.run(sh("kill -9 $$"));
    let detail = report.detail.unwrap_or_default();
    assert!(detail.starts_with("killed by SIGKILL, which the worker did not send"), "{detail}");
    let (run, _) = rig.started(sh("sleep 600"));
    rig.executor.signal(run, GroupSignal::Kill);
    assert_eq!(rig.ended(run).detail, None);
    assert_eq!(rig.run(sh("exit 137")).detail, None);
}

// The kept part of the output.

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

pub fn gibibyte() {
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
    let (run, pid) =
        rig.started(sh(&format!("exec >&- 2>&-; echo $$ > {}; exec sleep 30", marker.display())));
    pid_in(&marker);
    // Its slot sleeps in poll, and goes on doing so.
    let slot = parent(pid);
    let mut asleep = 0;
    until("its slot sleeps", || {
        asleep = if state(slot) == Some('S') { asleep + 1 } else { 0 };
        asleep == 50
    });
    assert_eq!(rig.executor.live(), 1);
    rig.executor.signal(run, GroupSignal::Term);
    assert_eq!(rig.ended(run).ended, Ended::Signal(15));
}

/// The helper: runs a task with a service manager's variables in its environment.
pub fn service_vars() {
    assert!(std::env::var_os("NOTIFY_SOCKET").is_some());
    let report = Rig::new().run(sh("env | grep _OF_SERVICE; echo $KEPT"));
    assert_eq!(text(&report.stdout), "kept\n");
}

#[test]
fn tasks_do_not_inherit_the_service_managers_variables() {
    let dir = tempfile::tempdir().unwrap();
    let mut helper = Command::new(std::env::current_exe().unwrap());
    helper.args(["--exact", "helper", "--nocapture"]).env(ROLE, "service_vars").env(DIR, dir.path());
    for name in [
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "LISTEN_FDS",
        "JOURNAL_STREAM",
        "INVOCATION_ID",
        "SYSTEMD_EXEC_PID",
        "RUNTIME_DIRECTORY",
        "CREDENTIALS_DIRECTORY",
    ] {
        helper.env(name, "A_VALUE_OF_SERVICE");
    }
    let output = helper.env("KEPT", "kept").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
