//! The binary as a user's shell has it: variables, standard input, and output byte for byte. And a small service to
//! do things to, which can say whether it is unharmed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Cluster, LIMIT, Proc, eventually, process};

/// A command line of the binary with its surroundings. No variable of zkmw's is passed on.
pub struct Plain {
    command: Command,
    stdin: Stdio,
    stdout: Option<File>,
}

/// How it ended, and what it wrote.
#[derive(Debug)]
pub struct Out {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// A process that runs in the background, killed when dropped.
pub struct Background {
    child: Child,
    out: tempfile::NamedTempFile,
    err: tempfile::NamedTempFile,
}

impl Plain {
    /// The binary with these arguments and nothing else.
    pub fn new(args: &[&str]) -> Plain {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zkmw"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("ZKMW_") || text == "RUST_LOG" || text == "NOTIFY_SOCKET" {
                command.env_remove(&name);
            }
        }
        command.args(args);
        Plain { command, stdin: Stdio::null(), stdout: None }
    }

    /// The same on a cluster.
    pub fn on(cluster: &Cluster, args: &[&str]) -> Plain {
        let common = ["--zk", &cluster.ensemble.connect, "--root", &cluster.root, "--session-timeout", "6s"];
        Plain::new(&[&common, args].concat())
    }

    pub fn env(mut self, name: &str, value: &str) -> Plain {
        self.command.env(name, value);
        self
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Plain {
        self.command.arg(arg);
        self
    }

    pub fn stdin(mut self, bytes: &[u8]) -> Plain {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        file.seek(SeekFrom::Start(0)).expect("rewound");
        self.stdin = file.into();
        self
    }

    /// Standard output goes to this file.
    pub fn stdout_to(mut self, path: &str) -> Plain {
        self.stdout = Some(File::options().write(true).open(path).expect("it can be opened"));
        self
    }

    /// Started by this command line.
    pub fn through(mut self, words: &[&str]) -> Plain {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(self.command.get_program()).args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        self.command = command;
        self
    }

    pub fn spawn(mut self) -> Background {
        let file = || tempfile::NamedTempFile::new_in(process::base_dir()).expect("a file");
        let (out, err) = (file(), file());
        let to = |file: &tempfile::NamedTempFile| -> File { file.reopen().expect("a file") };
        let stdout = self.stdout.unwrap_or_else(|| to(&out));
        let child = self.command.stdin(self.stdin).stdout(stdout).stderr(to(&err)).spawn().expect("starts");
        process::notify_reaper(&format!("pid {}", child.id()));
        Background { child, out, err }
    }

    #[track_caller]
    pub fn run(self) -> Out {
        self.spawn().end(LIMIT)
    }

    #[track_caller]
    pub fn run_within(self, limit: Duration) -> Out {
        self.spawn().end(limit)
    }
}

impl Background {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }

    pub fn signal(&mut self, signal: rustix::process::Signal) {
        assert!(self.is_running(), "it has ended: {}", self.stderr());
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a pid"), signal).expect("a signal can be sent");
    }

    /// Its output so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.out.path()).unwrap_or_default()).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.err.path()).unwrap_or_default()).into_owned()
    }

    #[track_caller]
    pub fn end(&mut self, limit: Duration) -> Out {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                break status;
            }
            assert!(start.elapsed() < limit, "it does not end within {limit:?}: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        };
        let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
        Out { code, stdout: fs::read(self.out.path()).unwrap_or_default(), stderr: self.stderr() }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        process::notify_reaper(&format!("gone {}", self.child.id()));
        if std::thread::panicking() {
            eprintln!("--- a process in the background, its standard error:\n{}", self.stderr());
        }
    }
}

impl Out {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Asserts the exit code, and that all these words are in the message.
    #[track_caller]
    pub fn says(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {:?}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }
}

/// JSON lines.
#[track_caller]
pub fn json_lines(text: &str) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
    text.lines().map(parse).collect()
}

/// The names of an object's fields, sorted.
pub fn fields(value: &Value) -> Vec<String> {
    let mut names: Vec<String> = value.as_object().expect("an object").keys().cloned().collect();
    names.sort();
    names
}

/// A master and a worker on a root of their own.
pub struct Service {
    pub cluster: Cluster,
    pub master: Proc,
    pub worker: Proc,
}

impl Service {
    /// `worker` are more arguments for the worker, `w1`.
    #[track_caller]
    pub fn new(name: &str, worker: &[&str]) -> Service {
        Service::on(Cluster::new(name), worker)
    }

    #[track_caller]
    pub fn on(cluster: Cluster, worker: &[&str]) -> Service {
        let master = cluster.master("m1");
        let worker = cluster.worker("w1", worker);
        cluster.registered(&["w1"]);
        cluster.leads("m1", LIMIT);
        Service { cluster, master, worker }
    }

    /// Both roles still run, and a good task is done.
    #[track_caller]
    pub fn is_unharmed(&mut self) {
        assert!(self.master.is_running(), "the master is gone: {}", self.master.stderr());
        assert!(self.worker.is_running(), "the worker is gone: {}", self.worker.stderr());
        let exit = self.cluster.run(&["submit", "echo fine"]);
        assert_eq!((exit.code, exit.stdout.as_str()), (0, "fine\n"), "{exit:?}");
        for log in [self.master.stderr(), self.worker.stderr()] {
            assert!(!log.contains("panicked"), "{log}");
        }
    }
}

/// Waits until the file has a line, and gives all of it.
#[track_caller]
pub fn file_says(path: &std::path::Path) -> String {
    eventually(LIMIT, &format!("{} is written", path.display()), || {
        fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'))
    })
}

/// An argument that is no UTF-8.
pub fn not_utf8() -> OsString {
    use std::os::unix::ffi::OsStringExt as _;
    OsString::from_vec(b"echo \xff".to_vec())
}
