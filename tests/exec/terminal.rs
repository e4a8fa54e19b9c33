//! Terminals, and stopped processes.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

use super::*;

/// A new terminal: its master, and the name of its other end.
fn terminal() -> (OwnedFd, std::ffi::CString) {
    use std::os::fd::FromRawFd;
    // SAFETY: the descriptor is new and ours, and the name is copied before another call.
    unsafe {
        let master = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        assert!(master >= 0 && libc::grantpt(master) == 0 && libc::unlockpt(master) == 0);
        let name = std::ffi::CStr::from_ptr(libc::ptsname(master)).to_owned();
        (OwnedFd::from_raw_fd(master), name)
    }
}

#[test]
fn a_run_that_reads_from_the_terminal_is_not_stopped_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (master, name) = terminal();
    let mut helper = Command::new(std::env::current_exe().unwrap());
    helper.args(["--exact", "helper", "--nocapture"]).env(ROLE, "at_terminal").env(DIR, dir.path());
    let in_terminal = move || {
        // SAFETY: bare system calls. A session leader that opens a terminal has it for its own.
        let opened = unsafe { libc::setsid() >= 0 && libc::open(name.as_ptr(), libc::O_RDWR) >= 0 };
        if opened { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes bare system calls only.
    unsafe { helper.pre_exec(in_terminal) };
    let output = helper.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(master.as_raw_fd() >= 0);
}

/// The helper: has a terminal.
pub fn at_terminal() {
    assert!(fs::File::open("/dev/tty").is_ok(), "the helper should have a terminal");
    let mut rig = Rig::new();
    let (run, pid) = rig.started(argv(&["dd", "if=/dev/tty", "count=1"]));
    until("it has ended, or is stopped", || rig.executor.is_idle() || state(pid) == Some('T'));
    assert_ne!(state(pid), Some('T'));
    assert_eq!(rig.ended(run).ended, Ended::Exit(1));
}

#[test]
fn what_is_stopped_is_logged_once_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut helper = Command::new(std::env::current_exe().unwrap());
    helper.args(["--exact", "helper", "--nocapture"]).env(ROLE, "stops").env(DIR, dir.path());
    let mut helper = helper.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = String::new();
    helper.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(helper.wait().unwrap().success(), "{log}");
    for task in ["task j/leader: process", "task j/child: process", "the handler of task j/asked: process"] {
        assert_eq!(log.matches(task).count(), 1, "{task}: {log}");
    }
    assert_eq!(log.matches("is stopped").count(), 3, "{log}");
}

/// The helper: runs that stop, and go on as its log says.
pub fn stops() {
    let lines = Lines::default();
    log::set_boxed_logger(Box::new(lines.clone())).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let mut rig = Rig::new();
    let named = |task: &str, mut spec: RunSpec| {
        spec.env.push(("ZKMW_TASK".to_owned(), task.to_owned()));
        spec
    };
    let leader = rig.start(named("j/leader", sh("kill -STOP $$; exit 3")));
    let child = rig.start(named("j/child", sh("sh -c 'kill -STOP $$; exit 4'; exit $?")));
    let request = Some(r#"{"v":1,"id":3,"task":"j/asked"}"#.to_owned());
    let handler = sh("read line; kill -STOP $$; exit 5");
    let asked = rig.start(RunSpec { request, ..handler });
    for _ in 0..3 {
        until("a log line says how to go on", || lines.continue_one());
    }
    assert_eq!(rig.ended(leader).ended, Ended::Exit(3));
    assert_eq!(rig.ended(child).ended, Ended::Exit(4));
    assert_eq!(rig.ended(asked).ended, Ended::Exit(5));
}

/// The log, a line each.
#[derive(Clone, Default)]
pub struct Lines(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

impl Lines {
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Follows the oldest line that wasn't followed yet, if there is one.
    fn continue_one(&self) -> bool {
        let Some(line) = self.0.lock().unwrap().pop() else { return false };
        let Some(command) = line.split(['(', ')']).find(|part| part.starts_with("kill")) else {
            return false;
        };
        Command::new("/bin/sh").args(["-c", command]).status().unwrap().success()
    }
}

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        eprintln!("{line}");
        self.0.lock().unwrap().push(line);
    }

    fn flush(&self) {}
}
