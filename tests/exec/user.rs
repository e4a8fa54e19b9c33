//! Programs of another user than their executor's, and with a minimal environment.

use super::*;
use zkmw::exec::User;

/// An ordinary user that every machine has.
const NOBODY: &str = "nobody";

/// An executor whose programs run as that user; `None`, with a reason, if we are not root.
fn by_nobody(means: Means) -> Option<Rig> {
    match User::find(NOBODY) {
        Ok(user) => {
            let confinement = Confinement { user: Some(user), ..means.confinement };
            Some(Rig::by(Means { confinement, ..means }))
        }
        Err(why) => {
            assert!(
                !rustix::process::geteuid().is_root() && why.to_string().contains("root has started"),
                "{why}"
            );
            None
        }
    }
}

/// A folder where everybody may write.
fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

fn output(of: &str, args: &[&str]) -> String {
    String::from_utf8(Command::new(of).args(args).output().unwrap().stdout).unwrap()
}

#[test]
fn a_program_has_only_the_ids_groups_and_home_of_its_user() {
    let Some(mut rig) = by_nobody(plain()) else { return };
    let user = User::find(NOBODY).unwrap();
    let entry = output("getent", &["passwd", NOBODY]);
    let entry: Vec<&str> = entry.trim_end().split(':').collect();
    let line = "grep -E '^(Uid|Gid|Groups|CapEff|CapPrm|NoNewPrivs):' /proc/self/status; \
                echo $HOME:$SHELL:$USER:$LOGNAME";
    let printed = text(&rig.run(sh(line)).stdout);
    let printed: Vec<&str> = printed.lines().map(|line| line.trim_end()).collect();
    let (uid, gid) = (user.uid, user.gid);
    let groups = output("id", &["-G", NOBODY]);
    assert_eq!(
        printed,
        [
            format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
            format!("Gid:\t{gid}\t{gid}\t{gid}\t{gid}"),
            format!("Groups:\t{}", groups.trim_end()),
            format!("CapPrm:\t{:016x}", 0),
            format!("CapEff:\t{:016x}", 0),
            "NoNewPrivs:\t1".to_owned(),
            format!("{}:{}:{NOBODY}:{NOBODY}", entry[5], entry[6]),
        ]
    );
}

#[test]
fn it_can_neither_kill_its_slot_nor_read_what_its_worker_has() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let run_file = Some(claim(&run_dir));
    let Some(mut rig) = by_nobody(Means { run_file, ..plain() }) else { return };
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let slot = text(&rig.run(sh("echo $PPID")).stdout);
    let own = std::process::id();
    for forbidden in [
        "kill -9 $PPID".to_owned(),
        "kill -STOP $PPID".to_owned(),
        format!("kill -9 {own}"),
        format!("cat /proc/{own}/environ"),
        "cat /proc/$PPID/environ".to_owned(),
        "ls /proc/$PPID/fd".to_owned(),
        format!("ls {}", run_dir.display()),
        format!("cat {}/*", run_dir.display()),
    ] {
        let report = rig.run(sh(&format!("{forbidden} >/dev/null 2>&1 || exit 3")));
        assert_eq!(report.ended, Ended::Exit(3), "{forbidden}");
    }
    assert_eq!(text(&rig.run(sh("echo $PPID")).stdout), slot, "the slot lives");
}

/// The helper: a worker that is stopped, with its keeper, while its slot is killed.
pub fn suspended(dir: &Path) {
    let mut rig = by_nobody(plain()).unwrap();
    let (_, leader) = rig.started(sh("exec sleep 600"));
    let stat = fs::read_to_string(format!("/proc/{leader}/stat")).unwrap();
    let slot: u32 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap();
    fs::write(dir.join("slot"), format!("{slot}\n")).unwrap();
    fs::write(dir.join("keeper"), format!("{}\n", keeper::keeper_pid())).unwrap();
    fs::write(dir.join("leader"), format!("{leader}\n")).unwrap();
    std::thread::sleep(PATIENCE);
}

/// Stopped processes, killed when dropped.
struct Stopped([u32; 2]);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.iter().for_each(|pid| kill(*pid, Signal::KILL));
    }
}

/// The kernel kills it, for no other process is there to do it.
#[test]
fn it_dies_with_its_slot() {
    if by_nobody(plain()).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut worker = spawn_helper("suspended", dir.path());
    let [leader, keeper, slot] = ["leader", "keeper", "slot"].map(|name| pid_in(&dir.path().join(name)));
    let stopped = Stopped([worker.id(), keeper]);
    for pid in stopped.0 {
        kill(pid, Signal::STOP);
        until("it is stopped", || state(pid) == Some('T'));
    }
    kill(slot, Signal::KILL);
    until("the program has ended", || !is_alive(leader));
    assert_eq!(stopped.0.map(state), [Some('T'), Some('T')]);
    drop(stopped);
    worker.wait().unwrap();
}

/// Without this, they are pipes that belong to root.
#[test]
fn it_can_open_its_standard_streams_anew() {
    let Some(mut rig) = by_nobody(plain()) else { return };
    let report = rig.run(sh("echo out >/dev/stdout && echo err >/dev/stderr && cat /dev/stdin"));
    assert_eq!(report.ended, Ended::Exit(0), "{report:?}");
    assert_eq!((text(&report.stdout).as_str(), text(&report.stderr).as_str()), ("out\n", "err\n"));
}

#[test]
fn handlers_are_that_users_too() {
    let Some(mut rig) = by_nobody(plain()) else { return };
    let line = r#"while read -r id; do echo "{\"id\":$id,\"stdout\":\"$(id -u)\"}" >/dev/stdout; done"#;
    let report = rig.run(handler::ask(&rig, line, ""));
    assert_eq!(text(&report.stdout), User::find(NOBODY).unwrap().uid.to_string(), "{report:?}");
}

#[test]
fn what_its_user_may_not_run_is_not_run() {
    let Some(mut rig) = by_nobody(plain()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    fs::write(&program, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let (kind, why) = rig.not_started(argv(&[program.to_str().unwrap()]));
    assert!(kind == NotStartedKind::Permanent && why.to_string().contains("forbids"), "{kind:?} {why}");
}

#[test]
fn users_that_are_not_there_or_may_do_all_are_refused() {
    if by_nobody(plain()).is_none() {
        return;
    }
    let why = User::find("no-such-user").unwrap_err();
    assert!(why.to_string().contains("there is no user \"no-such-user\" on this machine"), "{why}");
    assert!(User::find("root").unwrap_err().to_string().contains("root is root"));
}

/// The helper: prints the environments of programs, with the sandbox that the role's name asks for.
pub fn clean_env() {
    let clean = Confinement { clean_env: true, ..Confinement::default() };
    let show = |mut rig: Rig| {
        let spec = RunSpec { output: RunOutput::Inherit, ..argv(&["/usr/bin/env"]) };
        let env = vec![("ZKMW_TASK".to_owned(), "j/t".to_owned()), ("TZ".to_owned(), "Mars".to_owned())];
        println!("----");
        rig.run(RunSpec { env, ..spec });
    };
    show(Rig::by(Means { confinement: clean.clone(), ..plain() }));
    println!("----");
    by_nobody(Means { confinement: clean, ..plain() }).into_iter().for_each(show);
}

#[test]
fn a_minimal_environment_has_only_the_listed_variables() {
    let printed = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper", "--nocapture"])
        .env_clear()
        .envs([("HOME", "/h"), ("USER", "u"), ("LOGNAME", "l"), ("SHELL", "/s"), ("PATH", "/nowhere")])
        .envs([
            ("LANG", "C.UTF-8"),
            ("TZ", "UTC"),
            ("SECRET", "x"),
            ("ZKMW_LABEL", "a=b"),
            (ROLE, "clean_env"),
        ])
        .env(DIR, "/")
        .output()
        .unwrap();
    assert!(printed.status.success(), "{printed:?}");
    let printed = String::from_utf8(printed.stdout).unwrap();
    let environments: Vec<Vec<&str>> = printed
        .split("----\n")
        .map(|environment| {
            let mut lines: Vec<&str> = environment.lines().filter(|line| line.contains('=')).collect();
            lines.sort();
            lines
        })
        .filter(|lines| !lines.is_empty())
        .collect();
    let common = |home: [&str; 4]| {
        let [home, logname, shell, user] = home.map(str::to_owned);
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        [
            format!("HOME={home}"),
            "LANG=C.UTF-8".to_owned(),
            format!("LOGNAME={logname}"),
            format!("PATH={path}"),
            format!("SHELL={shell}"),
            "TZ=Mars".to_owned(),
            format!("USER={user}"),
            "ZKMW_TASK=j/t".to_owned(),
        ]
    };
    let without_mark = |lines: &[&str]| {
        let (marks, rest): (Vec<&str>, Vec<&str>) =
            lines.iter().partition(|line| line.starts_with("ZKMW_OWNER="));
        assert_eq!(marks.len(), 1, "a successor knows it by that");
        rest.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(without_mark(&environments[0]), common(["/h", "l", "/s", "u"]));
    if rustix::process::geteuid().is_root() {
        let entry = output("getent", &["passwd", NOBODY]);
        let entry: Vec<&str> = entry.trim_end().split(':').collect();
        assert_eq!(without_mark(&environments[1]), common([entry[5], NOBODY, entry[6], NOBODY]));
    }
}

#[test]
fn files_belong_to_the_user_and_folder_and_mask_to_the_worker() {
    let Some(mut rig) = by_nobody(plain()) else { return };
    let dir = open_dir();
    let line = format!("pwd; umask; touch {0}/file && stat -c %U {0}/file", dir.path().display());
    let printed = text(&rig.run(sh(&line)).stdout);
    let own = output("sh", &["-c", "pwd; umask"]);
    assert_eq!(printed, format!("{own}{NOBODY}\n"));
}
