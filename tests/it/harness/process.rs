//! Processes of the binary: started, signalled, ended. And the reaper, which ends what a test binary leaves behind.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::eventually;

/// A process is quiet when it used no more processor time than `QUIET_CPU` in `QUIET_FOR`.
const QUIET_FOR: Duration = Duration::from_millis(500);
const QUIET_CPU: Duration = Duration::from_millis(10);

/// How a process ended, and what it printed.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Its exit code, or 128 + the signal that ended it, as a shell reports it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A process of the binary, killed when dropped.
pub struct Proc {
    label: String,
    child: Child,
    files: PathBuf,
    status: Option<ExitStatus>,
}

impl Proc {
    /// Starts the binary. `files` is where its output goes, with `.out` and `.err` appended.
    pub fn start(label: &str, files: &Path, args: &[String]) -> Proc {
        Proc::start_as(label, files, args, |_| {})
    }

    /// Starts the binary; `prepare` may change the command before.
    pub fn start_as(label: &str, files: &Path, args: &[String], prepare: impl FnOnce(&mut Command)) -> Proc {
        Proc::start_program(Path::new(env!("CARGO_BIN_EXE_zkmw")), label, files, args, prepare)
    }

    /// Starts a copy of the binary.
    pub fn start_program(
        program: &Path,
        label: &str,
        files: &Path,
        args: &[String],
        prepare: impl FnOnce(&mut Command),
    ) -> Proc {
        let create = |name: &str| File::create(files.with_extension(name)).expect("an output file");
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(create("out")).stderr(create("err"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("ZKMW_")
                || text == "RUST_LOG"
                || text == "NOTIFY_SOCKET"
                || text == "WATCHDOG_USEC"
            {
                command.env_remove(&name);
            }
        }
        prepare(&mut command);
        let child = command.spawn().expect("the binary starts");
        notify_reaper(&format!("pid {}", child.id()));
        Proc { label: label.to_string(), child, files: files.to_path_buf(), status: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The test's name for it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> String {
        self.file("out")
    }

    /// Its log so far.
    pub fn stderr(&self) -> String {
        self.file("err")
    }

    fn file(&self, name: &str) -> String {
        let bytes = fs::read(self.files.with_extension(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn term(&self) {
        self.signal(Signal::TERM);
    }

    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// SIGSTOP, and waits until it is stopped.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        eventually(Duration::from_secs(5), "the process is stopped", || {
            matches!(state(self.pid()), Some('T' | 't')).then_some(())
        });
    }

    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// # Panics
    /// If it has ended: its pid may be someone else's.
    pub fn signal(&self, signal: Signal) {
        assert!(self.status.is_none(), "{} has ended", self.label);
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a pid");
        // Our own child that was not waited for: a zombie at worst, never a stranger.
        kill_process(pid, signal).expect("a signal can be sent");
    }

    pub fn is_running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("it is our child");
            if self.status.is_some() {
                notify_reaper(&format!("gone {}", self.child.id()));
            }
        }
        self.status.is_none()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> Exit {
        let what = format!("{} (pid {}) ends", self.label, self.pid());
        let status = eventually(limit, &what, || {
            self.is_running();
            self.status
        });
        let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
        Exit { code, stdout: self.stdout(), stderr: self.stderr() }
    }

    /// Processor time that it has used, in user and kernel mode.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it lives");
        let fields: Vec<&str> = stat.rsplit_once(')').expect("a stat line").1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap_or(0) + fields[12].parse::<u64>().unwrap_or(0);
        // USER_HZ is 100 on Linux.
        Duration::from_millis(ticks * 10)
    }

    /// Waits until it has nothing to do: until it used hardly any processor time for a while.
    #[track_caller]
    pub fn quiet(&self, limit: Duration) {
        let mut since = (Instant::now(), self.cpu());
        eventually(limit, &format!("{} comes to rest", self.label), || {
            if since.0.elapsed() < QUIET_FOR {
                return None;
            }
            let now = self.cpu();
            let used = now.saturating_sub(since.1);
            since = (Instant::now(), now);
            (used <= QUIET_CPU).then_some(())
        });
    }

    /// Bytes that it has in memory.
    pub fn memory(&self) -> u64 {
        memory(self.pid(), "VmRSS").expect("it lives")
    }
}

/// Bytes that a process has in memory now (`VmRSS`), or had at most (`VmHWM`); `None` if it is gone.
pub fn memory(pid: u32, field: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1_024)
}

impl Drop for Proc {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            notify_reaper(&format!("gone {}", self.child.id()));
        }
        if std::thread::panicking() {
            let log = self.stderr();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("--- {} (pid {}), the end of its standard error:\n{tail}", self.label, self.pid());
        }
    }
}

/// The state letter of a process, if there is one.
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether the process is there and no zombie.
pub fn is_alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z' && state != 'X')
}

/// The folder of this test binary; the reaper removes it.
pub fn base_dir() -> PathBuf {
    let dir = std::env::temp_dir().join(format!("zkmw-it-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a folder for the tests");
    dir
}

/// The reaper notes the processes that run. When the pipe closes, because we ended in whatever way, it ends those that
/// are left.
const REAPER: &str = r#"
    trap '' INT TERM HUP
    declare -A live dirs
    while read -r verb what; do
        case $verb in
            pid) live[$what]=1 ;;
            gone) unset "live[$what]" ;;
            dir) dirs[$what]=1 ;;
            down) unset "dirs[$what]" ;;
        esac
    done
    for pid in "${!live[@]}"; do kill -KILL "$pid" 2>/dev/null; done
    for dir in "${!dirs[@]}"; do "$1" --dir "$dir" down; done
    rm -rf "$2"
"#;

/// Sends a line to the reaper: `pid N`, `gone N`, `dir D` (an ensemble runs there), `down D`.
pub fn notify_reaper(line: &str) {
    static REAPERS_PIPE: OnceLock<Mutex<std::process::ChildStdin>> = OnceLock::new();
    let pipe = REAPERS_PIPE.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/ensemble");
        let mut command = Command::new("bash");
        command.args(["-c", REAPER, "reaper"]).arg(script).arg(base_dir());
        // A group of its own, so that Ctrl-C does not reach it.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Mutex::new(command.spawn().expect("bash starts").stdin.take().expect("a pipe"))
    });
    let mut pipe = pipe.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    writeln!(pipe, "{line}").expect("the reaper reads");
}
