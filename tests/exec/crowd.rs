//! Strays that are hard to find: among thousands of processes that come and go, or unreadable. No process that may
//! live is taken for an ended one.

use super::*;

/// Runs of the test. Each leaves one stray behind.
const RUNS: usize = 100;
/// So many of them at once.
const AT_ONCE: usize = 20;
/// Shells that make short processes, as fast as they can.
const SHELLS: usize = 8;

/// Shells that start processes which end at once.
struct Crowd(Vec<Child>);

impl Crowd {
    fn gather() -> Crowd {
        let line = "while :; do /bin/true; done";
        let shell = |_| Command::new("/bin/sh").args(["-c", line]).process_group(0).spawn().unwrap();
        Crowd((0..SHELLS).map(shell).collect())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(reap);
    }
}

#[test]
fn strays_are_found_although_other_processes_end_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let _crowd = Crowd::gather();
    let mut rig = Rig::new();
    let files: Vec<_> = (0..RUNS).map(|number| dir.path().join(number.to_string())).collect();
    let line = |file: &Path| {
        let file = file.display();
        format!(
            "setsid sh -c 'echo $$ >{file}; exec sleep 60' >/dev/null 2>&1 & \
             until [ -s {file} ]; do sleep 0.01; done; exit 1"
        )
    };
    for some in files.chunks(AT_ONCE) {
        let runs: Vec<RunId> = some.iter().map(|file| rig.start(sh(&line(file)))).collect();
        for run in runs {
            assert_eq!(rig.ended(run).ended, Ended::Exit(1));
        }
    }
    let strays: Vec<u32> = files.iter().map(|file| pid_in(file)).filter(|&pid| is_alive(pid)).collect();
    strays.iter().for_each(|&pid| kill(pid, Signal::KILL));
    assert_eq!(strays, Vec::<u32>::new(), "of {RUNS} strays these live on");
}

/// A run that leaves a stray behind in a session of its own, and waits. Its id, and the stray.
fn with_stray(rig: &mut Rig, dir: &Path, stray: &str) -> (RunId, u32) {
    let file = dir.join("stray");
    let line = format!("setsid {stray} & exec sleep 60");
    let mut spec = sh(&line);
    spec.env.push(("STRAY".to_owned(), file.display().to_string()));
    let (run, _) = rig.started(spec);
    (run, pid_in(&file))
}

#[test]
fn an_unreadable_process_that_a_run_left_dies_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let output = as_nobody("shielded", dir.path());
    assert!(output.status.success(), "{output:?}");
}

/// A process that `sudo` starts for a task of an ordinary user's worker, without a control group. (Root's worker may
/// kill it.)
#[test]
fn an_unkillable_process_is_waited_for_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can show this");
        return;
    }
    let setpriv = dir.path().join("setpriv");
    copy_program(Path::new("/usr/bin/setpriv"), &setpriv);
    fs::set_permissions(&setpriv, fs::Permissions::from_mode(0o4755)).unwrap();
    let output = std::thread::scope(|scope| {
        let helper = scope.spawn(|| as_nobody("unkillable", dir.path()));
        let stray = pid_in(&dir.path().join("warned"));
        kill(stray, Signal::KILL);
        helper.join().unwrap()
    });
    assert!(output.status.success(), "{output:?}");
}

/// The helper: its task has started a process that belongs to root.
pub fn unkillable(dir: &Path) {
    let complaints = crate::terminal::Lines::default();
    log::set_boxed_logger(Box::new(complaints.clone())).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let mut rig = Rig::new();
    let (setpriv, file) = (dir.join("setpriv"), dir.join("stray"));
    let line = format!(
        "{} --reuid 0 sh -c 'echo $$ >{file}; exec sleep 600' & until [ -s {file} ]; do sleep .01; done; exit 3",
        setpriv.display(),
        file = file.display()
    );
    let run = rig.start(sh(&line));
    let stray = pid_in(&file);
    until("it is reported that it does not die", || {
        complaints
            .all()
            .iter()
            .any(|line| line.contains("does not die") && line.contains(&format!("[{stray}]")))
    });
    assert!(is_alive(stray) && rig.executor.live() == 1 && !rig.over.contains_key(&run));
    fs::write(dir.join("warned"), format!("{stray}\n")).unwrap();
    assert_eq!(rig.ended(run).ended, Ended::Exit(3));
}

/// Copies a program. By a process of its own: one that another test forks meanwhile would have our descriptor for the
/// copy for a moment, and a file that is open for writing cannot be executed (`ETXTBSY`).
fn copy_program(from: &Path, into: &Path) {
    assert!(Command::new("cp").arg("--").args([from, into]).status().unwrap().success());
}

/// Plays a role as an ordinary user, which root is not.
pub fn as_nobody(role: &str, dir: &Path) -> std::process::Output {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
    let program = dir.join("exec");
    copy_program(&std::env::current_exe().unwrap(), &program);
    let mut helper = Command::new(program);
    helper.args(["--exact", "helper", "--nocapture"]).env(ROLE, role).env(DIR, dir);
    if rustix::process::geteuid().is_root() {
        helper.uid(NOBODY).gid(NOBODY).current_dir("/");
    }
    helper.output().unwrap()
}

/// A user who may do nothing.
const NOBODY: u32 = 65_534;

/// The helper: an ordinary user, whose task leaves a process behind that nobody may read.
pub fn shielded(dir: &Path) {
    let mut rig = Rig::new();
    let own = std::env::current_exe().unwrap();
    let stray = format!("env {ROLE}=shield {} --exact helper", own.display());
    let (run, stray) = with_stray(&mut rig, dir, &stray);
    assert!(fs::read(format!("/proc/{stray}/environ")).is_err());
    rig.executor.signal(run, GroupSignal::Kill);
    assert_eq!(rig.ended(run).ended, Ended::Signal(9));
    assert!(!is_alive(stray));
}

/// The helper's stray.
pub fn shield() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable).unwrap();
    fs::write(std::env::var("STRAY").unwrap(), format!("{}\n", std::process::id())).unwrap();
    std::thread::sleep(PATIENCE);
}
