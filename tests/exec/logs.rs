//! Logs: all that a run prints, in files, also when the disk, the writer or the slot fails.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zkmw::exec::LogSettings;

use super::*;

const MIB: u64 = 1 << 20;

fn settings(dir: &Path) -> LogSettings {
    LogSettings {
        dir: dir.join("logs/w"),
        limit: 100 * MIB,
        space: 1 << 30,
        keep: Duration::from_secs(86_400),
    }
}

fn rig(settings: LogSettings) -> Rig {
    Rig::by(Means { logs: Some(settings), ..plain() })
}

/// A task of this name.
fn task(name: &str, line: &str) -> RunSpec {
    let env = [("ZKMW_TASK", name), ("ZKMW_ATTEMPT", "1")];
    let env = env.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    RunSpec { env, ..sh(line) }
}

/// The content of a log's file; `None` if there is none.
fn log(dir: &Path, file: &str) -> Option<Vec<u8>> {
    fs::read(dir.join("logs/w").join(file)).ok()
}

/// All files of all logs, and how long they are.
fn all(dir: &Path) -> BTreeMap<String, u64> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let jobs: Vec<PathBuf> = entries(&dir.join("logs/w")).filter(|path| path.is_dir()).collect();
    let files = jobs.iter().flat_map(|job| entries(job));
    let name = |path: &Path| path.strip_prefix(dir.join("logs/w")).unwrap().display().to_string();
    files.map(|path| (name(&path), path.metadata().unwrap().len())).collect()
}

fn names(dir: &Path) -> Vec<String> {
    all(dir).into_keys().collect()
}

/// The process that writes the logs there.
fn writer(dir: &Path) -> u32 {
    let mut found = None;
    let wanted = dir.join("logs/w").display().to_string();
    until("a writer", || {
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        found = pids.find(|pid| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            words.contains("write-logs") && words.contains(&wanted)
        });
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn what_a_run_prints_is_kept_from_its_first_byte_to_its_last() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig(settings(dir.path()));
    for bytes in [70 << 10, 10 << 20] {
        let copy = dir.path().join("copy");
        let line = format!("head -c {bytes} /dev/urandom | tee {}; echo bad >&2", copy.display());
        let report = rig.run(task(&format!("J/{bytes}"), &line));
        assert_eq!((report.ended, report.stdout.omitted), (Ended::Exit(0), bytes - 4096));
        let (out, err) = (format!("J/{bytes}.1.out"), format!("J/{bytes}.1.err"));
        until("the log is complete", || log(dir.path(), &err).is_some_and(|err| err == b"bad\n"));
        assert!(log(dir.path(), &out) == Some(fs::read(copy).unwrap()), "{:?}", all(dir.path()));
    }
    assert_eq!(names(dir.path()).len(), 4, "none is cut: {:?}", all(dir.path()));
    let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        ["logs", "logs/w", "logs/w/J", "logs/w/J/71680.1.out"].map(mode),
        [0o700, 0o700, 0o700, 0o600]
    );
}

#[test]
fn what_prints_little_and_ends_soon_has_no_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig(settings(dir.path()));
    rig.run(task("J/short", "echo short; head -c 60000 /dev/zero"));
    rig.run(sh("head -c 100000 /dev/zero"));
    rig.run(task("J/long", "head -c 100000 /dev/zero"));
    until("a log", || log(dir.path(), "J/long.1.out").is_some_and(|log| log.len() == 100_000));
    assert_eq!(names(dir.path()), ["J/long.1.out"], "what is no task's has none either");
}

#[test]
fn what_runs_long_has_a_log_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig(settings(dir.path()));
    let fifo = dir.path().join("fifo");
    let line = format!("mkfifo {0}; echo early; read x <{0}; echo $x >&2", fifo.display());
    let (run, _) = rig.started(task("J~b/7", &line));
    until("a log", || log(dir.path(), "J~b/7.1.out").is_some_and(|log| log == b"early\n"));
    assert_eq!(names(dir.path()), ["J~b/7.1.out"]);
    fs::write(fifo, "late\n").unwrap();
    assert_eq!(text(&rig.ended(run).stderr), "late\n");
    until("the rest", || log(dir.path(), "J~b/7.1.err").is_some_and(|log| log == b"late\n"));
    assert_eq!(names(dir.path()), ["J~b/7.1.err", "J~b/7.1.out"]);
    // The same attempt once more.
    rig.run(task("J~b/7", "head -c 100000 /dev/zero"));
    until("a new log", || all(dir.path()) == BTreeMap::from([("J~b/7.1.out".to_owned(), 100_000)]));
}

#[test]
fn a_log_ends_at_its_limit_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig(LogSettings { limit: 200_000, ..settings(dir.path()) });
    let report = rig.run(task("J/t", "head -c 150000 /dev/zero; head -c 1000000 /dev/zero >&2"));
    assert_eq!((report.stdout.omitted, report.stderr.omitted), (150_000 - 4096, 1_000_000 - 4096));
    until("it is cut", || log(dir.path(), "J/t.1.cut").is_some_and(|why| why.ends_with(b"\n")));
    let why = String::from_utf8(log(dir.path(), "J/t.1.cut").unwrap()).unwrap();
    assert!(why.contains("200000 bytes (--log-limit"), "{why}");
    let kept = all(dir.path());
    assert_eq!((kept["J/t.1.out"] + kept["J/t.1.err"], kept.len()), (200_000, 3));
    let mut none = Rig::by(Means { logs: Some(LogSettings { limit: 0, ..settings(dir.path()) }), ..plain() });
    none.run(task("J/none", "head -c 100000 /dev/zero"));
    drop(none);
    assert!(!names(dir.path()).contains(&"J/none.1.out".to_owned()));
}

#[test]
fn the_oldest_logs_go_when_there_is_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig(LogSettings { space: 3 * MIB, ..settings(dir.path()) });
    for number in 1..=6 {
        rig.run(task(&format!("J/{number}"), "head -c 1000000 /dev/zero"));
        let file = format!("J/{number}.1.out");
        until("a log", || log(dir.path(), &file).is_some_and(|log| log.len() == 1_000_000));
        assert!(all(dir.path()).values().sum::<u64>() <= 3 * MIB, "{:?}", all(dir.path()));
    }
    assert_eq!(names(dir.path()), ["J/4.1.out", "J/5.1.out", "J/6.1.out"]);
    // A log that is being written is not deleted: it ends.
    let report = rig.run(task("J/much", "head -c 20000000 /dev/zero"));
    assert_eq!(report.ended, Ended::Exit(0));
    until("it is cut", || log(dir.path(), "J/much.1.cut").is_some_and(|why| why.ends_with(b"\n")));
    let kept = all(dir.path());
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert!(kept["J/much.1.out"] > 2 * MIB && kept["J/much.1.out"] <= 3 * MIB, "{kept:?}");
}

#[test]
fn logs_of_a_former_worker_are_removed_and_other_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("logs/w/OLD");
    let kept = dir.path().join("logs/w/J");
    for dir in [&old, &kept] {
        fs::create_dir_all(dir).unwrap();
        fs::set_permissions(dir, PermissionsExt::from_mode(0o700)).unwrap();
    }
    let put = |path: PathBuf, hours: u64| {
        fs::write(&path, "x").unwrap();
        let at = std::time::SystemTime::now() - Duration::from_secs(3600 * hours);
        fs::File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
    };
    put(old.join("t.1.out"), 30);
    put(old.join("t.1.cut"), 30);
    put(kept.join("a.1.out"), 30);
    put(kept.join("a.1.err"), 20);
    put(kept.join("b.1.out"), 30);
    put(kept.join("notes.txt"), 1000);
    put(kept.join(".hidden.1.out"), 1000);
    put(dir.path().join("logs/w/x.1.out"), 1000);
    std::os::unix::fs::symlink("/etc/hostname", kept.join("link.1.out")).unwrap();
    let rig = rig(settings(dir.path()));
    until("the old ones are gone", || !old.exists() && !kept.join("b.1.out").exists());
    let left: Vec<String> = names(dir.path());
    assert_eq!(left, ["J/.hidden.1.out", "J/a.1.err", "J/a.1.out", "J/link.1.out", "J/notes.txt"]);
    assert!(dir.path().join("logs/w/x.1.out").exists());
    drop(rig);
}

/// It must not be waited for.
#[test]
fn a_writer_that_hangs_keeps_no_run_from_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig(settings(dir.path()));
    let writer = writer(dir.path());
    kill(writer, Signal::STOP);
    let begun = Instant::now();
    let report = rig.run(task("J/loud", "head -c 50000000 /dev/zero; echo end"));
    assert_eq!((report.ended, report.stdout.omitted), (Ended::Exit(0), 50_000_004 - 4096));
    assert!(report.stdout.tail.ends_with(b"end\n"));
    // The next one does not even wait.
    let again = Instant::now();
    rig.run(task("J/again", "head -c 50000000 /dev/zero"));
    assert!(begun.elapsed() < Duration::from_secs(10) && again.elapsed() < Duration::from_secs(2));
    // Nor does a kill: this one waits for room when it comes.
    kill(writer, Signal::CONT);
    until("it says that it is not complete", || log(dir.path(), "J/loud.1.cut").is_some());
    assert!(log(dir.path(), "J/again.1.out").is_none());
}

#[test]
fn what_waits_for_the_writer_can_be_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig(settings(dir.path()));
    let writer = writer(dir.path());
    kill(writer, Signal::STOP);
    let (run, _) = rig.started(task("J/endless", "exec cat /dev/zero"));
    rig.executor.signal(run, GroupSignal::Kill);
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    kill(writer, Signal::CONT);
}

#[test]
fn a_killed_log_writer_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig(settings(dir.path()));
    let first = writer(dir.path());
    let fifo = dir.path().join("fifo");
    let line = format!("mkfifo {0}; echo early; read x <{0}; echo $x", fifo.display());
    let (run, _) = rig.started(task("J/during", &line));
    until("a log", || log(dir.path(), "J/during.1.out").is_some_and(|log| log == b"early\n"));
    kill(first, Signal::KILL);
    until("another writer", || !is_alive(first) && writer(dir.path()) != first);
    fs::write(fifo, "late\n").unwrap();
    assert_eq!(text(&rig.ended(run).stdout), "early\nlate\n");
    until("it says that it is not complete", || log(dir.path(), "J/during.1.cut").is_some());
    assert_eq!(log(dir.path(), "J/during.1.out").unwrap(), b"early\n");
    rig.run(task("J/after", "head -c 100000 /dev/zero"));
    until("a log", || log(dir.path(), "J/after.1.out").is_some_and(|log| log.len() == 100_000));
}

#[test]
fn what_a_run_printed_before_its_slot_was_killed_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig(settings(dir.path()));
    let (run, _) = rig.started(task("J/u", "head -c 100000 /dev/zero; sleep 0.2; kill -9 $PPID; sleep 1000"));
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    until("it says that it is not complete", || {
        log(dir.path(), "J/u.1.cut").is_some_and(|why| !why.is_empty())
    });
    assert_eq!(log(dir.path(), "J/u.1.out").unwrap().len(), 100_000);
}

#[test]
fn runs_go_on_where_no_log_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("logs"), "no directory").unwrap();
    let mut rig = rig(settings(dir.path()));
    for number in 0..3 {
        let report = rig.run(task(&format!("J/{number}"), "head -c 3000000 /dev/zero"));
        assert_eq!((report.ended, report.stdout.omitted), (Ended::Exit(0), 3_000_000 - 4096));
    }
}

#[test]
fn a_full_disk_cuts_logs_and_the_runs_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().to_str().unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k,mode=700", "zkmw", disk]).output();
    if !mount.as_ref().is_ok_and(|output| output.status.success()) {
        assert!(!rustix::process::geteuid().is_root(), "root cannot mount: {mount:?}");
        eprintln!("NOT TESTED: only root can mount a small disk");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        let mut rig = rig(settings(dir.path()));
        for number in 1..=3 {
            let report = rig.run(task(&format!("J/{number}"), "head -c 3000000 /dev/zero"));
            assert_eq!((report.ended, report.stdout.omitted), (Ended::Exit(0), 3_000_000 - 4096));
            until("it is cut", || log(dir.path(), &format!("J/{number}.1.cut")).is_some());
        }
        let kept = all(dir.path());
        assert!(kept["J/1.1.out"] > 30_000, "what there was room for: {kept:?}");
    });
    assert!(Command::new("umount").args(["-l", disk]).status().unwrap().success());
    result.unwrap();
}
