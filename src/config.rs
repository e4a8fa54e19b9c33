//! Flags > `ZKMW_*` > file > defaults, into one validated [`Config`].
//!
//! [`load`] is a function of its arguments (and of the host's name and number of cores, for defaults): it owns no
//! state, reads the process's environment only through the function that it is given, and prints nothing.
//! The values of a `Config` are valid and need no further check. Every setting is declared once, in the table in
//! `settings.rs`; a credential is never in a message nor in `Debug`.

mod assemble;
mod cli;
mod file;
mod given;
mod invalid;
mod layers;
mod parse;
mod settings;
mod variables;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::contract::task::State;
use crate::contract::{Labels, TaskId};
use crate::exec::RunLimits;
use crate::exit;
use crate::roles::client::walk::Target;
use crate::roles::client::{ListColumn, TaskStatus};

pub use variables::unknown_variables;

/// The file that is read if nobody names one.
pub const DEFAULT_FILE: &str = "/etc/zkmw/zkmw.toml";

/// What this process is to do, complete and valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where ZooKeeper is and how to deal with it.
    pub ensemble: Ensemble,
    /// How many `-v` minus how many `-q`; `RUST_LOG` wins over it.
    pub verbosity: i8,
    /// The command and its settings.
    pub command: Command,
}

/// Where ZooKeeper is and how to deal with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Ensemble {
    /// Host (an IPv6 address without brackets) and port; at least one.
    pub servers: Vec<(String, u16)>,
    /// The znode that every path is below, as seen by the ensemble; none is `/`.
    pub chroot: Option<String>,
    /// The znode (below the chroot) that all of ours are below: absolute, no slash at the end, not `/`.
    pub root: String,
    /// To ask the ensemble for; it may clamp it.
    pub session_timeout: Duration,
    /// How long to wait for the first connection; none is for ever.
    pub connect_timeout: Option<Duration>,
    /// How long the end of the session may take.
    pub close_timeout: Duration,
    /// Credentials, in the order to give them in.
    pub auth: Vec<Auth>,
}

/// A credential for the ensemble.
#[derive(Clone, Debug, PartialEq)]
pub struct Auth {
    /// Such as `digest`.
    pub scheme: String,
    /// Such as `USER:PASSWORD`.
    pub credential: Secret,
}

/// A text that is never shown by accident.
#[derive(Clone, PartialEq)]
pub struct Secret(String);

impl Secret {
    fn new(text: &str) -> Secret {
        Secret(text.to_owned())
    }

    /// The text itself; for the ensemble only.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What `--zk` says.
#[derive(Clone, Debug, PartialEq)]
struct ZkAddress {
    servers: Vec<(String, u16)>,
    chroot: Option<String>,
}

/// The command, with its settings.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Run a command on one machine at a time.
    Elector(ElectorConfig),
    /// Assign tasks.
    Master(MasterConfig),
    /// Run tasks.
    Worker(WorkerConfig),
    /// Put tasks in.
    Submit(SubmitConfig),
    /// Show the leader, the workers and counts.
    Status {
        /// One JSON object a line.
        json: bool,
        /// Again and again.
        watch: bool,
    },
    /// List tasks.
    List(ListConfig),
    /// Show the workers.
    Workers {
        /// One JSON object a line.
        json: bool,
        /// Again and again.
        watch: bool,
    },
    /// Show the elections.
    Elections {
        /// One JSON object a line.
        json: bool,
    },
    /// Say why a task has no outcome.
    Why {
        /// The task.
        id: TaskId,
        /// One JSON object.
        json: bool,
    },
    /// Show all about a task.
    Show {
        /// Which.
        id: TaskId,
        /// One JSON object a line.
        json: bool,
    },
    /// Wait for tasks.
    Wait(IdsConfig),
    /// Cancel tasks.
    Cancel(IdsConfig),
    /// Run tasks again.
    Retry(IdsConfig),
    /// Delete outcomes.
    Delete(DeleteConfig),
}

impl Command {
    /// Whether it runs until it is stopped.
    pub fn is_daemon(&self) -> bool {
        matches!(self, Command::Elector(_) | Command::Master(_) | Command::Worker(_))
    }
}

/// The settings of `zkmw elector`.
#[derive(Clone, Debug, PartialEq)]
pub struct ElectorConfig {
    /// What this contender is called.
    pub id: String,
    /// The znode of the election; not one of our own directories.
    pub path: String,
    /// From SIGTERM to SIGKILL for the command.
    pub grace: Duration,
    /// Exit when the command does.
    pub once: bool,
    /// One JSON object a line.
    pub json: bool,
    /// The program and its arguments; empty if it is only to take part. It never leaves this machine, so it need not
    /// be UTF-8.
    pub command: Vec<OsString>,
}

/// The settings of `zkmw master`.
#[derive(Clone, Debug, PartialEq)]
pub struct MasterConfig {
    /// What this master is called.
    pub id: String,
    /// How long outcomes are kept that nobody collects.
    pub result_ttl: Duration,
    /// How long empty jobs are kept.
    pub job_ttl: Duration,
    /// How many commands may be without an outcome; at least one.
    pub max_pending: u64,
    /// How many failed outcomes are kept.
    pub max_failed: u64,
    /// How much data all tasks may have; at least one byte.
    pub max_pending_bytes: u64,
}

/// The settings of `zkmw worker`.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerConfig {
    /// What this worker is called.
    pub id: String,
    /// How many tasks at a time; at least one.
    pub slots: u32,
    /// What tasks can require.
    pub labels: Labels,
    /// How long running tasks may go on after SIGTERM.
    pub grace: Duration,
    /// The shell command line of a handler, if tasks are not to be processes of their own; not blank.
    pub handler: Option<String>,
    /// How much of a task's output is kept.
    pub output_limit_bytes: usize,
    /// Absolute; need not exist yet.
    pub run_dir: PathBuf,
    /// The name of the user whose tasks are, if that is not the worker's.
    pub run_as: Option<String>,
    /// Give tasks a minimal environment.
    pub clean_env: bool,
    /// How much each task may have.
    pub limits: RunLimits,
    /// The same.
    pub state_dir: PathBuf,
    /// What is kept of what tasks print.
    pub logs: LogsConfig,
}

/// How much a worker keeps of what tasks print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogsConfig {
    /// Bytes of one run; nothing is kept if it is 0.
    pub limit: u64,
    /// Bytes of all.
    pub space: u64,
    /// For how long.
    pub keep: Duration,
}

/// The settings of `zkmw submit`.
#[derive(Clone, Debug, PartialEq)]
pub struct SubmitConfig {
    /// What to run.
    pub task: TaskSource,
    /// How many lines of a batch go into one znode; none if not given, and for what is no batch.
    pub chunk: Option<u32>,
    /// The job to put it into, if the user names one.
    pub job: Option<String>,
    /// The user's own key.
    pub id: Option<String>,
    /// Do not wait.
    pub detach: bool,
    /// How long the task may run.
    pub timeout: Option<Duration>,
    /// How long it may wait for its start.
    pub expire_after: Option<Duration>,
    /// None if not given: then an exit code other than 0 is final.
    pub max_attempts: Option<u32>,
    /// Before the second attempt; none if not given.
    pub retry_backoff: Option<Duration>,
    /// Higher goes first; none if not given.
    pub priority: Option<i32>,
    /// Labels that the worker must have.
    pub require: Labels,
    /// Variables for the task.
    pub env: BTreeMap<String, String>,
    /// If this submitter dies.
    pub orphan: Orphan,
    /// Cancel on SIGINT and SIGTERM.
    pub cancel_on_interrupt: bool,
    /// A single task whose output was cut has succeeded all the same.
    pub allow_truncated: bool,
    /// Show a progress bar for a batch, if standard error is a terminal.
    pub progress: bool,
    /// One JSON object a line.
    pub json: bool,
}

/// What a submitter submits.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskSource {
    /// One shell command line; not blank.
    Line(String),
    /// A program and its arguments; never empty.
    Program(Vec<String>),
    /// A batch from a file, a shell command line a line.
    File(PathBuf),
    /// A batch from standard input.
    Stdin,
}

/// What happens to a task whose submitter is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphan {
    /// Nothing.
    Keep,
    /// It is cancelled.
    Cancel,
}

/// The settings of `zkmw list`.
#[derive(Clone, Debug, PartialEq)]
pub struct ListConfig {
    /// Only this directory below `tasks`.
    pub job: Option<String>,
    /// Only these; empty is all.
    pub states: Vec<TaskStatus>,
    /// Only those of this worker.
    pub worker: Option<String>,
    /// Only those that were created at this time or later.
    pub since: Option<Moment>,
    /// Only those that were created before.
    pub until: Option<Moment>,
    /// The columns of the text; the default ones if there are none.
    pub columns: Vec<ListColumn>,
    /// At most so many.
    pub limit: u32,
    /// One JSON object a line.
    pub json: bool,
}

/// A time that a user names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// So long ago.
    Ago(Duration),
    /// In ms since 1970.
    At(i64),
}

impl Moment {
    /// In ms since 1970, if it is this time now.
    pub fn at_ms(self, now_ms: i64) -> i64 {
        match self {
            Moment::Ago(time) => {
                now_ms.saturating_sub_unsigned(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
            }
            Moment::At(ms) => ms,
        }
    }
}

/// The settings of `zkmw wait`, `cancel` and `retry`.
#[derive(Clone, Debug, PartialEq)]
pub struct IdsConfig {
    /// Which, in the order given; at least one.
    pub ids: Vec<Target>,
    /// One JSON object a line.
    pub json: bool,
}

/// The settings of `zkmw delete`.
#[derive(Clone, Debug, PartialEq)]
pub struct DeleteConfig {
    /// Which, in the order given.
    pub ids: Vec<Target>,
    /// What ended so; empty is all, but not of all tasks that there are.
    pub states: Vec<State>,
    /// What ended so long ago.
    pub older_than: Option<Duration>,
    /// One JSON object a line.
    pub json: bool,
}

/// Why there is no `Config`, or that help was asked for: what to print, where, and how to exit.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigError {
    /// See [`exit`].
    pub exit_code: i32,
    /// Complete, without a line's end.
    pub message: String,
    /// Help and the version are results; all else goes to standard error.
    pub to_stdout: bool,
}

impl ConfigError {
    fn new(exit_code: i32, message: &str) -> ConfigError {
        ConfigError { exit_code, message: format!("zkmw: {message}"), to_stdout: false }
    }

    fn usage(message: &str) -> ConfigError {
        ConfigError::new(exit::USAGE, message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// The configuration from the arguments (the first is the program's name), the environment and the file.
pub fn load(
    args: impl Iterator<Item = OsString>,
    env: impl Fn(&str) -> Option<OsString>,
    default_file: &Path,
) -> Result<Config, ConfigError> {
    assemble::load_on(&assemble::Host::this(), args, &env, default_file)
}

#[cfg(test)]
mod tests;
