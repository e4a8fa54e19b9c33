//! Handlers: their requests, their answers, and the end of those that do not answer.
//!
//! The executor does not read a request, so these are words for a shell: the id, and what to do with it.

use super::*;
use zkmw::contract::handler::Request;

/// Runs the words of the request; `ok WORDS` answers, and `say LINE` says anything.
pub const SHELL: &str = r#"
    ok() { printf '{"id":%s,"stdout":"%s"}\n' "$id" "$*"; }
    say() { printf '%s\n' "$*"; }
    while read -r id line; do eval "$line"; done
"#;

/// A request for the next run.
pub fn ask(rig: &Rig, handler: &str, words: &str) -> RunSpec {
    RunSpec { request: Some(format!("{} {words}", rig.next)), ..sh(handler) }
}

/// How a request to [`SHELL`] ended.
pub fn asked(rig: &mut Rig, words: &str) -> RunReport {
    rig.run(ask(rig, SHELL, words))
}

/// A request to [`SHELL`], once its start is reported; and the handler's pid.
pub fn begun(rig: &mut Rig, words: &str) -> (RunId, u32) {
    rig.started(ask(rig, SHELL, words))
}

/// The handler that answers now.
pub fn handler(rig: &mut Rig) -> u32 {
    text(&asked(rig, "ok $$").stdout).parse().unwrap()
}

#[track_caller]
fn broken(rig: &mut Rig, words: &str, why: &str) {
    let report = asked(rig, words);
    let detail = report.detail.unwrap_or_default();
    assert!(report.ended == Ended::Broken && detail.contains(why), "{words}: {:?}, {detail}", report.ended);
    assert!(!report.signalled, "{words}");
}

#[test]
fn an_answer_has_a_code_and_two_outputs() {
    let mut rig = Rig::new();
    let report =
        asked(&mut rig, r#"say "{\"id\":$id,\"exit_code\":3,\"stdout\":\"a\nb\",\"stderr\":\"c\"}""#);
    assert_eq!((report.ended, report.detail, report.signalled), (Ended::Exit(3), None, false));
    assert_eq!((text(&report.stdout).as_str(), text(&report.stderr).as_str()), ("a\nb", "c"));
    assert!(report.started_ms > 1_600_000_000_000 && report.ended_ms >= report.started_ms);
    let cut = rig.run(limited(4, ask(&rig, SHELL, "ok abcdefg"))).stdout;
    assert_eq!(cut, Captured { head: b"ab".into(), omitted: 3, tail: b"fg".into() });
}

#[test]
fn one_handler_for_each_request_at_a_time_and_the_warmest_first() {
    let mut rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let first = handler(&mut rig);
    for _ in 0..20 {
        assert_eq!(handler(&mut rig), first);
    }
    let wait = format!("until [ -s {} ]; do sleep 0.01; done; ok $$", go.display());
    let (held, pid) = begun(&mut rig, &wait);
    assert_eq!(pid, first);
    let second = handler(&mut rig);
    assert_ne!(second, first);
    assert_eq!(handler(&mut rig), second);
    fs::write(&go, "1").unwrap();
    assert_eq!(rig.ended(held).ended, Ended::Exit(0));
    assert_eq!(handler(&mut rig), first, "it was used last");
}

#[test]
fn a_handler_that_ends_with_a_request_ends_the_run_likewise() {
    let mut rig = Rig::new();
    let first = handler(&mut rig);
    let report = asked(&mut rig, "exit 3");
    assert_eq!(report.ended, Ended::Exit(3));
    assert!(report.detail.unwrap().contains(&first.to_string()));
    assert!(!is_alive(first));
    assert_eq!(asked(&mut rig, "kill -9 $$").ended, Ended::Signal(9));
    assert_eq!(asked(&mut rig, "printf '{\"id\":%s' $id; exit 4").ended, Ended::Exit(4));
    // Nothing was answered, so nothing has succeeded.
    broken(&mut rig, "exit 0", "exited with 0 without an answer");
    assert_eq!(asked(&mut rig, "ok").ended, Ended::Exit(0));
}

#[test]
fn an_answer_counts_although_the_handler_ends_right_after_it() {
    let mut rig = Rig::new();
    for _ in 0..3 {
        let report = asked(&mut rig, "ok $$; exit 3");
        let pid = text(&report.stdout).parse().unwrap();
        assert_eq!(report.ended, Ended::Exit(0));
        until("it is gone", || state(pid).is_none());
    }
}

#[test]
fn what_is_no_answer_breaks_the_handler() {
    let mut rig = Rig::new();
    broken(&mut rig, "say garbage", "its answer is malformed");
    broken(&mut rig, r#"say "{\"id\":999999}""#, "it answers the request 999999");
    // In one write: a second line that comes later is an answer without a request.
    broken(&mut rig, r#"printf '{"id":%s}\n{"id":%s}\n' $id $id"#, "more than one line");
    broken(&mut rig, "exec >&-; sleep 600", "closed its standard output");
    broken(&mut rig, "printf x; exec >&-; sleep 600", "closed its standard output");
    broken(&mut rig, r#"say "{\"id\":$id,\"exit_code\":256}""#, "its answer is malformed");
    assert_eq!(asked(&mut rig, "ok").ended, Ended::Exit(0));
}

#[test]
fn an_endless_line_breaks_the_handler_in_bounded_memory() {
    let mut rig = Rig::new();
    handler(&mut rig);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("child");
    broken(
        &mut rig,
        &format!("yes | tr -d '\\n' & echo $! >{}; wait", file.display()),
        "more than an answer",
    );
    assert!(!is_alive(pid_in(&file)), "the whole group has ended before that is reported");
}

#[test]
fn what_is_said_unasked_ends_the_handler_and_nobodys_run() {
    let mut rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let line = format!("(until [ -s {} ]; do sleep 0.01; done; echo late) & ok $$", go.display());
    let first: u32 = text(&asked(&mut rig, &line).stdout).parse().unwrap();
    fs::write(&go, "1").unwrap();
    until("it has ended", || !is_alive(first));
    assert_ne!(handler(&mut rig), first);
}

#[test]
fn a_handler_that_dies_idle_is_replaced_without_a_charge() {
    let mut rig = Rig::new();
    let first = handler(&mut rig);
    kill(first, Signal::KILL);
    until("it has ended", || state(first).is_none());
    let begun = Instant::now();
    assert_ne!(handler(&mut rig), first);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

// Signals.

#[test]
fn a_hanging_handler_is_ended_with_all_of_its_group() {
    let mut rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    for (signal, number) in [(GroupSignal::Term, 15), (GroupSignal::Kill, 9)] {
        let first = handler(&mut rig);
        let file = dir.path().join(number.to_string());
        let (run, pid) = begun(&mut rig, &format!("sleep 600 & echo $! >{}; wait", file.display()));
        assert_eq!(pid, first);
        let child = pid_in(&file);
        rig.executor.signal(run, signal);
        let report = rig.ended(run);
        assert_eq!((report.ended, report.signalled), (Ended::Signal(number), true));
        assert!(!is_alive(child) && !is_alive(first));
    }
    // Nothing has failed: there is no pause.
    assert_eq!(asked(&mut rig, "ok").ended, Ended::Exit(0));
}

#[test]
fn a_handler_that_shrugs_off_term_is_killed() {
    let mut rig = Rig::new();
    handler(&mut rig);
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let line = format!("trap '' TERM; echo $$ >{}; while :; do sleep 0.02; done", ready.display());
    let (run, _) = begun(&mut rig, &line);
    let pid = pid_in(&ready);
    rig.executor.signal(run, GroupSignal::Term);
    assert!(is_alive(pid));
    rig.executor.signal(run, GroupSignal::Kill);
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    assert!(!is_alive(pid));
}

#[test]
fn a_late_answer_is_reported_as_late_and_its_handler_goes() {
    let mut rig = Rig::new();
    let first = handler(&mut rig);
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let line = format!(
        "over=; trap 'over=1' TERM; echo $$ >{}; until [ $over ]; do sleep 0.02; done; ok late",
        ready.display()
    );
    let (run, _) = begun(&mut rig, &line);
    pid_in(&ready);
    rig.executor.signal(run, GroupSignal::Term);
    let report = rig.ended(run);
    assert_eq!(
        (report.ended, report.signalled, text(&report.stdout).as_str()),
        (Ended::Exit(0), true, "late")
    );
    assert!(!is_alive(first), "it has ended when that is reported");
    assert_eq!(asked(&mut rig, "ok").ended, Ended::Exit(0));
}

#[test]
fn a_signal_right_after_the_request_is_not_lost() {
    let mut rig = Rig::new();
    for round in 0..40 {
        if round % 2 == 0 {
            handler(&mut rig);
        }
        let run = rig.start(ask(&rig, SHELL, "sleep 600"));
        rig.executor.signal(run, [GroupSignal::Term, GroupSignal::Kill][round / 2 % 2]);
        match rig.over(run) {
            ExecEvent::Ended { report, .. } => {
                assert!(matches!(report.ended, Ended::Signal(9 | 15)) && report.signalled, "{report:?}");
            }
            ExecEvent::NotStarted { kind, .. } => assert_eq!(kind, NotStartedKind::Transient),
            other => panic!("{other:?}"),
        }
    }
}

// Starts.

#[test]
fn a_request_waits_for_the_backoff_and_can_be_killed_meanwhile() {
    let mut rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let starts = dir.path().join("starts");
    let failing = format!("date +%s%N >>{}; read -r line; exit 5", starts.display());
    for _ in 0..4 {
        assert_eq!(rig.run(ask(&rig, &failing, "")).ended, Ended::Exit(5));
    }
    let starts = fs::read_to_string(&starts).unwrap();
    let starts: Vec<u64> = starts.lines().map(|line| line.parse().unwrap()).collect();
    let gaps_ms: Vec<u64> = starts.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000).collect();
    assert!(gaps_ms.iter().zip([100, 200, 400]).all(|(gap, least)| *gap >= least), "{gaps_ms:?}");
    let waiting = rig.start(ask(&rig, &failing, ""));
    rig.executor.signal(waiting, GroupSignal::Kill);
    match rig.over(waiting) {
        ExecEvent::NotStarted { kind, why, .. } => {
            assert!(kind == NotStartedKind::Transient && why.contains("waited"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_handler_that_is_not_there_is_the_workers_fault() {
    let mut rig = Rig::new();
    for handler in ["/no/such/handler --flag", "/dev/null"] {
        let (kind, why) = rig.not_started(ask(&rig, handler, ""));
        assert!(kind == NotStartedKind::Shortage && why.contains(handler), "{kind:?} {why}");
    }
    let (kind, why) = rig.not_started(RunSpec { request: Some("1".into()), ..argv(&["/no/such/shell"]) });
    assert!(kind == NotStartedKind::Shortage && why.contains("/no/such/shell"), "{kind:?} {why}");
    // It may be there again.
    assert_eq!(asked(&mut rig, "ok").ended, Ended::Exit(0));
}

#[test]
fn a_request_may_be_longer_than_a_pipe_holds() {
    let mut rig = Rig::new();
    let long = "a".repeat(300_000);
    for _ in 0..3 {
        let request = format!(r#"{{"id":{},"stdout":"{long}"}}"#, rig.next);
        let spec = RunSpec { request: Some(request), ..sh("sleep 0.05; exec cat") };
        let report = rig.run(limited(400_000, spec));
        assert_eq!((report.ended, report.stdout.head.len()), (Ended::Exit(0), long.len()));
    }
}

#[test]
fn its_environment_is_the_workers_and_marked() {
    let mut rig = Rig::new();
    let mut spec = ask(&rig, SHELL, "ok $A ${ZKMW_OWNER:+marked}");
    spec.env.push(("A".into(), "b".into()));
    assert_eq!(text(&rig.run(spec).stdout), "b marked");
}

// Ends.

#[test]
fn what_it_left_running_is_its_own_affair_until_it_ends() {
    let mut rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("left");
    let line = format!("sleep 600 & echo $! >{}; ok $$", file.display());
    let pid: u32 = text(&asked(&mut rig, &line).stdout).parse().unwrap();
    let left = pid_in(&file);
    assert_eq!(handler(&mut rig), pid);
    assert!(is_alive(left));
    assert_eq!(asked(&mut rig, "exit 3").ended, Ended::Exit(3));
    assert!(!is_alive(left));
}

#[test]
fn handlers_leave_nothing_and_may_end_at_the_end_of_input() {
    let dir = tempfile::tempdir().unwrap();
    let bye = dir.path().join("bye");
    for polite in [true, false] {
        let mut rig = Rig::new();
        let last = if polite { format!("echo $$ >{}", bye.display()) } else { "sleep 600".to_owned() };
        let spec = ask(&rig, &format!("{SHELL}\n{last}"), "ok $$");
        let pid: u32 = text(&rig.run(spec).stdout).parse().unwrap();
        let dropped = Instant::now();
        drop(rig);
        assert!(state(pid).is_none() && dropped.elapsed() < Duration::from_secs(5));
        assert_eq!(fs::read_to_string(&bye).is_ok(), polite, "{polite}");
        let _ = fs::remove_file(&bye);
    }
}

#[test]
fn its_session_is_in_the_run_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w7.json");
    let mut rig = Rig::with(Some(claim(dir.path())));
    let pid = handler(&mut rig);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().to_owned();
    let content = fs::read_to_string(&path).unwrap();
    assert!(content.contains(&format!("\"id\":{session},")), "idle, it is there all the same: {content}");
}

/// `examples/handler.py`, asked as a worker asks.
#[test]
fn the_example_keeps_the_protocol() {
    let mut rig = Rig::new();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/handler.py");
    let ask = |rig: &mut Rig, command: &str| {
        let mut request = Request::new(rig.next, "j/t", 2, 9, "w7");
        request.command = Some(command);
        let spec = RunSpec { request: Some(request.encode()), ..sh(&format!("exec python3 {program}")) };
        let report = rig.run(spec);
        (report.ended, text(&report.stdout), text(&report.stderr))
    };
    let ok = |out: &str| (Ended::Exit(0), out.to_owned(), String::new());
    assert_eq!(ask(&mut rig, "add 1 2"), ok("3\n"));
    assert_eq!(ask(&mut rig, "whoami"), ok("j/t, attempt 2 on w7\n"));
    for (command, code, what) in [
        ("add one", 1, "ValueError"),
        ("add \"1", 1, "No closing quotation"),
        ("nothing", 127, "there is no task 'nothing'"),
    ] {
        let (ended, out, err) = ask(&mut rig, command);
        assert!(
            ended == Ended::Exit(code) && out.is_empty() && err.contains(what),
            "{command}: {ended:?} {err}"
        );
    }
}

/// `cat` repeats its input: so a request is its answer.
#[test]
fn many_requests_are_quick() {
    const REQUESTS: u32 = 2_000;
    let mut rig = Rig::new();
    let echo = |rig: &mut Rig| {
        let spec = RunSpec { request: Some(format!(r#"{{"id":{}}}"#, rig.next)), ..sh("exec cat") };
        assert_eq!(rig.run(spec).ended, Ended::Exit(0));
    };
    echo(&mut rig);
    let begun = Instant::now();
    for _ in 0..REQUESTS {
        echo(&mut rig);
    }
    let took = begun.elapsed();
    eprintln!("{REQUESTS} requests, one at a time: {took:?}, {:.1} µs each", took.as_micros() as f64 / 2e3);
    assert!(took < PATIENCE, "{took:?}");
}
