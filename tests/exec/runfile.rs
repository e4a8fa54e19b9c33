//! The run file: a successor proves with it which processes are its predecessor's, and kills them.

use super::*;
use rustix::process::{WaitOptions, waitpid};

pub fn claim(dir: &Path) -> RunFile {
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

/// The ids of the sessions in a run file.
fn sessions_in(path: &Path) -> Vec<u32> {
    let content: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let sessions = content["sessions"].as_array().unwrap();
    sessions.iter().map(|session| session["id"].as_u64().unwrap() as u32).collect()
}

/// The session of a process.
fn session(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().parse().unwrap()
}

/// How many processes of a session live.
fn alive_in(id: u32) -> usize {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_alive(*pid) && is_in(*pid, id)).count()
}

fn is_in(pid: u32, id: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().unwrap_or_default().split_whitespace().nth(3) == Some(&id.to_string())
}

/// The same, and its keeper and slots in the same moment.
fn killed_with_all(dir: &Path, line: &str) -> (u32, u32, Vec<u32>) {
    fs::write(dir.join("line"), line.replace("READY", dir.join("ready").to_str().unwrap())).unwrap();
    let mut helper = spawn_helper("worker", dir);
    let left = pid_in(&dir.join("ready"));
    pid_in(&dir.join("worker"));
    let sessions = sessions_in(&dir.join("run/w7.json"));
    // A stopped process cannot act when the others die.
    kill(helper.id(), Signal::STOP);
    until("it is stopped", || state(helper.id()) == Some('T'));
    sessions.iter().for_each(|pid| kill(*pid, Signal::KILL));
    reap(&mut helper);
    (helper.id(), left, sessions)
}

#[test]
fn a_killed_worker_takes_all_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_, leader) = killed_worker(dir.path(), "setsid env -i sleep 30 & echo $! > READY; wait");
    until("the process without group and mark has ended", || !is_alive(leader));
}

#[test]
fn a_successor_kills_what_a_killed_worker_left_and_has_proof() {
    let dir = tempfile::tempdir().unwrap();
    // The second has no environment, but the first proves that the session is ours.
    let (pid, left, _) = killed_with_all(dir.path(), "sleep 31 & env -i sleep 31 & echo $! > READY; wait");
    match claim(&dir.path().join("run")).inspect_predecessor() {
        Predecessor::Gone { pid: gone, start_ticks, leftovers_killed } => {
            // The leader may have died before our check, or not.
            assert!(gone == pid && start_ticks > 0 && leftovers_killed >= 2, "{leftovers_killed}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!is_alive(left));
}

#[test]
fn an_unproven_session_is_left_alone_and_spoils_the_proof() {
    let dir = tempfile::tempdir().unwrap();
    let (_, left, sessions) = killed_with_all(dir.path(), "env -i sleep 31 & echo $! > READY; wait");
    // Orphans come to this process, if another test has made it a subreaper.
    until("nothing of the leaders is left", || {
        let reap = |leader: &u32| waitpid(Pid::from_raw(leader.cast_signed()), WaitOptions::NOHANG);
        sessions.iter().for_each(|leader| {
            let _ = reap(leader);
        });
        let others = alive_in(session(left)) - 1;
        sessions.iter().all(|leader| state(*leader).is_none()) && others == 0
    });
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
fn every_session_is_in_the_run_file_before_a_program_runs_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w7.json");
    let mut rig = Rig::with(Some(claim(dir.path())));
    let line = format!("grep -q '\"id\":'$(cut -d' ' -f6 /proc/$$/stat)',' {}", path.display());
    let runs: Vec<RunId> = (0..60).map(|_| rig.start(sh(&line))).collect();
    for run in runs {
        assert_eq!(rig.ended(run).ended, Ended::Exit(0));
    }
    drop(rig);
    assert!(sessions_in(&path).is_empty());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&dir.path().join("w7.lock"))), (0o600, 0o600));
}

#[test]
fn a_reused_pid_is_not_killed_nor_taken_for_the_predecessor() {
    let dir = tempfile::tempdir().unwrap();
    let (gone, _) = killed_worker(dir.path(), "echo $$ > READY; exec sleep 30");
    let mut bystander = Command::new("sleep").arg("30").process_group(0).spawn().unwrap();
    let path = dir.path().join("run/w7.json");
    let mut content: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // The session had the bystander's number, but was born earlier.
    let born = start_ticks(bystander.id());
    content["sessions"] = serde_json::json!([{ "id": bystander.id(), "start_ticks": born - 1 }]);
    fs::write(&path, content.to_string()).unwrap();
    let run_file = claim(&dir.path().join("run"));
    let found = run_file.inspect_predecessor();
    assert!(matches!(found, Predecessor::Gone { pid, leftovers_killed: 0, .. } if pid == gone), "{found:?}");
    assert_eq!(bystander.try_wait().unwrap(), None);
    // Another process may have the worker's own pid, too.
    content["sessions"] = serde_json::json!([]);
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
fn a_foreign_or_broken_run_file_proves_nothing() {
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
        ("v", serde_json::json!(1)),
        ("sessions", serde_json::json!("none")),
    ] {
        let mut content = gone.clone();
        content[field] = value;
        assert!(is_unknown(content.to_string()), "{field}");
    }
    for (id, start_ticks) in [(0_u32, 7), (1, 7), (u32::MAX, 7), (30_000, 0)] {
        gone["sessions"] = serde_json::json!([{ "id": id, "start_ticks": start_ticks }]);
        assert!(is_unknown(gone.to_string()), "{id}");
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
fn an_unwritable_run_file_is_removed_and_the_runs_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w7.json");
    let mut rig = Rig::with(Some(claim(dir.path())));
    assert!(path.exists());
    // No user can open a directory for writing, not even root.
    fs::create_dir(dir.path().join("w7.json.next")).unwrap();
    assert_eq!(rig.run(sh(&format!("! [ -e {} ]", path.display()))).ended, Ended::Exit(0));
    // When it can be written again, the whole list is there again.
    fs::remove_dir(dir.path().join("w7.json.next")).unwrap();
    assert_eq!(rig.run(sh(&format!("[ -e {} ]", path.display()))).ended, Ended::Exit(0));
    assert_eq!(sessions_in(&path).len(), 2, "the keeper's and one slot's");
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
