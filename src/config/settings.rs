//! The table of settings: each is declared here once, with its name, its commands, its default, its parser and
//! its help. The flags, the variables, the keys of the file, the help and the checks are all made from it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use super::invalid::{BadItem, Invalid};
use super::parse::{self, duration, number, time_or_none};
use crate::contract::Labels;
use crate::contract::chunk::MAX_CHUNK_COMMANDS;
use crate::contract::task::{MAX_RETRY_BACKOFF_MS, State};
use crate::contract::worker::MAX_SLOTS;
use crate::roles::client::{ListColumn, TaskStatus};

use super::{Auth, Moment, Orphan, ZkAddress};

/// The commands of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Elector,
    Master,
    Worker,
    Submit,
    Status,
    Workers,
    Elections,
    List,
    Show,
    Why,
    Wait,
    Cancel,
    Retry,
    Delete,
}

impl Verb {
    pub const ALL: [Verb; 14] = [
        Verb::Elector,
        Verb::Master,
        Verb::Worker,
        Verb::Submit,
        Verb::Status,
        Verb::Workers,
        Verb::Elections,
        Verb::List,
        Verb::Show,
        Verb::Why,
        Verb::Wait,
        Verb::Cancel,
        Verb::Retry,
        Verb::Delete,
    ];

    /// The word on the command line, and the name of the table in the file.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Elector => "elector",
            Verb::Master => "master",
            Verb::Worker => "worker",
            Verb::Submit => "submit",
            Verb::Status => "status",
            Verb::Workers => "workers",
            Verb::Elections => "elections",
            Verb::List => "list",
            Verb::Show => "show",
            Verb::Why => "why",
            Verb::Wait => "wait",
            Verb::Cancel => "cancel",
            Verb::Retry => "retry",
            Verb::Delete => "delete",
        }
    }

    pub fn from_name(name: &str) -> Option<Verb> {
        Verb::ALL.into_iter().find(|v| v.name() == name)
    }

    /// Whether it runs until it is stopped, and so waits for an ensemble for as long as it takes.
    pub fn is_daemon(self) -> bool {
        matches!(self, Verb::Elector | Verb::Master | Verb::Worker)
    }
}

/// How a setting is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One value; the last one given counts.
    Value(&'static str),
    /// Several values. All values of one source count, and replace those of weaker sources.
    List(&'static str, Separator),
    /// On or off. `--no-NAME` overrides a weaker source (or `--NAME`, where NAME begins with `no-`).
    Switch { negation: &'static str },
    /// A flag that may be repeated, with its letter.
    Count(char),
}

/// How several values are written in one text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Separator {
    /// Commas or whitespace, wherever the text comes from.
    Words,
    /// A line each in a variable; elsewhere a text is one value, whatever is in it.
    Lines,
}

/// Where a setting may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedIn {
    Anywhere,
    /// Not in the file.
    FlagOrVariable,
    /// Only on the command line: it is about one call, and would do harm to all others.
    Flag,
}

/// The value of a setting that nobody gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// A text, parsed like any other.
    Text(&'static str),
    /// Made by code, or none; the text says what.
    Described(&'static str),
    /// There is no value.
    Nothing,
}

/// All about a setting but its type.
#[derive(Debug)]
pub struct Spec {
    /// The long flag; the variable's and the key's name follow from it.
    pub name: &'static str,
    pub verbs: &'static [Verb],
    pub shape: Shape,
    pub default: Fallback,
    pub allowed_in: AllowedIn,
    /// Its value is never shown, in no message.
    pub secret: bool,
    pub help: &'static str,
}

impl Spec {
    /// `ZKMW_` and the flag in upper case.
    pub fn variable(&self) -> String {
        format!("ZKMW_{}", self.name.replace('-', "_").to_ascii_uppercase())
    }

    pub fn is_of(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }

    pub fn is_common(&self) -> bool {
        self.verbs.len() == Verb::ALL.len()
    }
}

/// From the given texts to a value.
pub enum Parser<T> {
    One(fn(&str) -> Result<T, Invalid>),
    Many(fn(&[String]) -> Result<T, BadItem>),
    /// Paths need not be UTF-8.
    Path(fn(&OsStr) -> Result<T, Invalid>),
}

impl<T> Parser<T> {
    /// Items are never empty, but for a list that was given as empty.
    pub fn parse(&self, items: &[OsString]) -> Result<T, BadItem> {
        let bad = |reason: Invalid| BadItem { index: 0, reason };
        if let (Parser::Path(parse), [item]) = (self, items) {
            return parse(item).map_err(bad);
        }
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let reason = || BadItem { index, reason: Invalid::NotUtf8 };
            texts.push(item.to_str().ok_or_else(reason)?.to_owned());
        }
        match (self, texts.as_slice()) {
            (Parser::One(parse), [text]) => parse(text).map_err(bad),
            (Parser::Many(parse), texts) => parse(texts),
            (Parser::One(_) | Parser::Path(_), _) => Err(bad(Invalid::Form("one value"))),
        }
    }
}

/// One line of the table.
pub struct Setting<T> {
    pub spec: Spec,
    pub parser: Parser<T>,
}

/// A setting of whatever type.
pub trait AnySetting: Sync {
    fn spec(&self) -> &Spec;
    /// Whether the texts would do.
    fn check(&self, items: &[OsString]) -> Result<(), BadItem>;
}

impl<T> AnySetting for Setting<T> {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn check(&self, items: &[OsString]) -> Result<(), BadItem> {
        self.parser.parse(items).map(|_| ())
    }
}

/// The setting that `verb` knows by that name.
pub fn find(verb: Verb, name: &str) -> Option<&'static dyn AnySetting> {
    TABLE.iter().copied().find(|s| s.spec().name == name && s.spec().is_of(verb))
}

macro_rules! settings {
    ($($id:ident: $type:ty = ($name:literal, $verbs:expr, $shape:expr, $default:expr, $allowed_in:ident
        $(, $secret:ident)?) $parser:expr, $help:expr;)*) => {
        $(pub static $id: Setting<$type> = Setting {
            spec: Spec {
                name: $name,
                verbs: $verbs,
                shape: $shape,
                default: $default,
                allowed_in: AllowedIn::$allowed_in,
                secret: false $(|| settings!(@$secret))?,
                help: $help,
            },
            parser: $parser,
        };)*
        /// All settings, in the order of the help.
        pub static TABLE: &[&dyn AnySetting] = &[$(&$id),*];
    };
    (@secret) => { true };
}

use Fallback::{Described, Nothing, Text};
use Parser::{Many, One, Path};
use Separator::{Lines, Words};
use Shape::{Count, List, Switch, Value};
use Verb::{
    Cancel, Delete, Elections, Elector, Master, Retry, Show, Status, Submit, Wait, Why, Worker, Workers,
};

const ALL: &[Verb] = &Verb::ALL;
const JSON: Shape = Switch { negation: "no-json" };
const LABELS: Shape = List("K=V", Words);

const SECOND: Duration = Duration::from_secs(1);
const TENTH: Duration = Duration::from_millis(100);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The highest limit for tasks without an outcome.
const MAX_MAX_PENDING: u64 = 1_000_000_000;

/// What Linux can have of processes and threads.
const MAX_TASK_PIDS: u64 = 1 << 22;

settings! {
    // --- of every command

    ZK: ZkAddress = ("zk", ALL, Value("SERVERS"), Text("127.0.0.1:2181"), Anywhere)
        One(parse::zk),
        "The ensemble, as HOST:PORT,HOST:PORT,…[/chroot]. The port is 2181 if it is left out. IPv6 addresses are \
        in brackets";
    ROOT: String = ("root", ALL, Value("PATH"), Text("/zkmw"), Anywhere)
        One(parse::znode_path),
        "The znode that has all znodes of this service. Services with different roots know nothing of each other";
    SESSION_TIMEOUT: Duration = ("session-timeout", ALL, Value("TIME"), Text("10s"), Anywhere)
        One(|text| duration(text, 2 * SECOND, 600 * SECOND)),
        "After this time without a sign of life the ensemble ends this process's session, 2s to 10m. The ensemble \
        may have narrower limits";
    CONNECT_TIMEOUT: Option<Duration> = ("connect-timeout", ALL, Value("TIME"),
        Described("30s; none for elector, master and worker"), Anywhere)
        One(|text| time_or_none(text, DAY)),
        "How long to wait for the first connection. Then zkmw exits with 69. 'none' waits for ever";
    CLOSE_TIMEOUT: Duration = ("close-timeout", ALL, Value("TIME"), Text("5s"), Anywhere)
        One(|text| duration(text, TENTH, 600 * SECOND)),
        "How long the session may take to close at the end, 100ms to 10m";
    AUTH: Vec<Auth> = ("auth", ALL, List("SCHEME:CREDENTIAL", Lines), Nothing, Anywhere, secret)
        Many(parse::auth),
        "Credential for the ensemble, such as digest:USER:PASSWORD. May be repeated. Every user of this host can \
        read command lines, so prefer the file or ZKMW_AUTH (one a line)";
    CONFIG: PathBuf = ("config", ALL, Value("FILE"), Described("/etc/zkmw/zkmw.toml if there is one"),
        FlagOrVariable)
        Path(|text| Ok(text.into())),
        "Read settings from this TOML file";
    VERBOSE: i8 = ("verbose", ALL, Count('v'), Nothing, Anywhere)
        One(parse::count),
        "Log more on standard error. May be repeated. RUST_LOG overrides it";
    QUIET: i8 = ("quiet", ALL, Count('q'), Nothing, Anywhere)
        One(parse::count),
        "Log less. May be repeated. RUST_LOG overrides it";

    // --- the process's name

    DAEMON_ID: String = ("id", &[Elector, Master], Value("ID"), Described("host name-process id"),
        Anywhere)
        One(parse::id),
        "The name of this process in logs, in status and in the election";
    WORKER_ID: String = ("id", &[Worker], Value("ID"), Described("the host name"), Anywhere)
        One(parse::id),
        "The name of this worker. Two workers must not have the same name at the same time. A worker should keep \
        its name over restarts";
    TASK_KEY: String = ("id", &[Submit], Value("KEY"), Described("a new one"), Flag)
        One(parse::id),
        "Your own key for the task. Submitting it again finds the same task and does not run it twice. Another \
        task with the same key is an error (65)";

    // --- elector

    PATH: String = ("path", &[Elector], Value("PATH"), Described("ROOT/elections/default"), Anywhere)
        One(parse::znode_path),
        "The znode of the election. Electors with the same path compete with each other";
    ELECTOR_GRACE: Duration = ("grace", &[Elector], Value("TIME"), Text("10s"), Anywhere)
        One(|text| duration(text, Duration::ZERO, DAY)),
        "How long the command may take to end after SIGTERM. Then it gets SIGKILL, and sooner if the session ends \
        before";
    ONCE: bool = ("once", &[Elector], Switch { negation: "no-once" }, Nothing, Anywhere)
        One(parse::boolean),
        "Exit as the command exits. Otherwise the elector competes again and runs the command again";

    // --- master

    RESULT_TTL: Duration = ("result-ttl", &[Master], Value("TIME"), Text("24h"), Anywhere)
        One(|text| duration(text, SECOND, 10 * YEAR)),
        "How long to keep outcomes that nobody has collected, and all failed outcomes, 1s or more";
    MAX_FAILED: u64 = ("max-failed", &[Master], Value("N"), Text("100000"), Anywhere)
        One(|text| number(text, 0, MAX_MAX_PENDING)),
        "Keep the failed outcomes of at most N commands, 0 to 1000000000. They take at most a quarter of \
        --max-pending-bytes. The oldest are deleted first. A task with a key is kept without its command and output";
    JOB_TTL: Duration = ("job-ttl", &[Master], Value("TIME"), Text("1h"), Anywhere)
        One(|text| duration(text, SECOND, 10 * YEAR)),
        "How long to keep a job that has become empty, 1s or more";
    MAX_PENDING: u64 = ("max-pending", &[Master], Value("N"), Text("10000000"), Anywhere)
        One(|text| number(text, 1, MAX_MAX_PENDING)),
        "Refuse further tasks (73) if so many commands have no outcome, 1 to 1000000000. The leader's value holds \
        for all submitters, so give all masters the same";
    MAX_PENDING_BYTES: u64 = ("max-pending-bytes", &[Master], Value("SIZE"), Text("1GiB"), Anywhere)
        One(parse::max_pending_bytes),
        "Refuse further tasks (73) if the data of all tasks takes so many bytes, with outcomes and without, 1B to \
        1TiB. Every server holds it in memory";

    // --- worker

    SLOTS: u32 = ("slots", &[Worker], Value("N"), Described("the number of cores"), Anywhere)
        One(|text| number(text, 1, MAX_SLOTS)),
        "How many tasks to run at a time, 1 to 1000";
    LABEL: Labels = ("label", &[Worker], LABELS, Nothing, Anywhere)
        Many(parse::labels),
        "A property of this worker that tasks can require, such as gpu=yes. May be repeated, up to 32";
    WORKER_GRACE: Duration = ("grace", &[Worker], Value("TIME"), Text("30s"), Anywhere)
        One(|text| duration(text, Duration::ZERO, DAY)),
        "How long running tasks may go on after SIGTERM. Then they are killed, and other workers run them again";
    HANDLER: String = ("handler", &[Worker], Value("COMMAND"), Described("none: each task is a process of its own"),
        Anywhere)
        One(parse::handler),
        "Run tasks by handlers. A handler is this shell command line. Each slot starts it at most once. It reads \
        a line of JSON for each task on standard input, and answers with a line on standard output \
        (docs/handler.md)";
    OUTPUT_LIMIT: usize = ("output-limit", &[Worker], Value("SIZE"), Text("64KiB"), Anywhere)
        One(parse::output_limit_bytes),
        "How many bytes of each output of a task to keep with its outcome, 0 to 96KiB";
    RUN_DIR: PathBuf = ("run-dir", &[Worker], Value("DIR"),
        Described("$RUNTIME_DIRECTORY, else /run/zkmw if root, else $XDG_RUNTIME_DIR/zkmw, else zkmw-UID in the \
        directory for temporary files"), Anywhere)
        Path(parse::absolute_dir),
        "The directory for the run file, which lists the processes that run. After a crash the next worker on \
        this host kills what is left of them";
    RUN_AS: String = ("run-as", &[Worker], Value("USER"), Described("the worker's own user"), Anywhere)
        One(parse::user),
        "Run tasks as this user of this host, with its groups and home directory. They cannot get more rights \
        (sudo, set-user-id). Only root can start such a worker";
    CLEAN_ENV: bool = ("clean-env", &[Worker], Switch { negation: "no-clean-env" }, Nothing, Anywhere)
        One(parse::boolean),
        "Give tasks a minimal environment (PATH, HOME, USER, LOGNAME, SHELL, LANG, TZ) and their own variables \
        instead of the worker's environment";
    TASK_MEMORY: u64 = ("task-memory", &[Worker], Value("SIZE"), Described("no limit"), Anywhere)
        One(parse::task_memory),
        "How much memory a task may have, 1MiB to 1PiB. Its processes and its files in memory count. A task that \
        needs more is killed, and fails. This and the next two need control groups with controllers \
        (docs/operations.md). Without them the worker exits with 78";
    TASK_CPUS: u32 = ("task-cpus", &[Worker], Value("N"), Described("no limit"), Anywhere)
        One(parse::task_cpus),
        "How many processors a task may use, 0.01 to 1000, such as 0.5 or 2";
    TASK_PIDS: u64 = ("task-pids", &[Worker], Value("N"), Described("no limit"), Anywhere)
        One(|text| number(text, 1, MAX_TASK_PIDS)),
        "How many processes and threads a task may have at a time, 1 to 4194304";

    STATE_DIR: PathBuf = ("state-dir", &[Worker], Value("DIR"),
        Described("$STATE_DIRECTORY, else /var/lib/zkmw if root, else $XDG_STATE_HOME/zkmw, else ~/.local/state/zkmw, \
        else zkmw-UID in the directory for temporary files"), Anywhere)
        Path(parse::absolute_dir),
        "The directory for data that is kept after this worker. What tasks print is in task-logs/ID@SERVICE there";
    LOG_LIMIT: u64 = ("log-limit", &[Worker], Value("SIZE"), Text("100MiB"), Anywhere)
        One(parse::log_bytes),
        "Keep up to this many bytes of what a task prints in log files here. A task has log files if it prints \
        more than 64 KiB or runs for longer than 1 s. 0 keeps none";
    LOG_SPACE: u64 = ("log-space", &[Worker], Value("SIZE"), Text("1GiB"), Anywhere)
        One(parse::log_bytes),
        "How many bytes all log files may take together. The oldest are deleted first";
    LOG_KEEP: Duration = ("log-keep", &[Worker], Value("TIME"), Text("24h"), Anywhere)
        One(|text| duration(text, SECOND, 10 * YEAR)),
        "How long to keep log files, 1s or more";

    // --- submit

    FROM_FILE: PathBuf = ("from-file", &[Submit], Value("FILE"), Nothing, Flag)
        Path(|text| Ok(text.into())),
        "Submit a batch. Every line of FILE is a shell command line of its own. - reads standard input";
    CHUNK: u32 = ("chunk", &[Submit], Value("N"), Described("up to 100, by the lines and the slots"), Flag)
        One(|text| number(text, 1, MAX_CHUNK_COMMANDS as u32)),
        "Store N lines of a batch in each znode, 1 to 1000. Each line is reported by itself, at most half a \
        second after it ended if the results of N lines take less than 100 KiB";
    JOB: String = ("job", &[Submit], Value("NAME"), Described("a shared one; for a batch a new one"),
        Anywhere)
        One(parse::job),
        "The job that gets the task";
    DETACH: bool = ("detach", &[Submit], Switch { negation: "no-detach" }, Nothing, Anywhere)
        One(parse::boolean),
        "Print the id and exit without waiting for the outcome";
    TIMEOUT: Option<Duration> = ("timeout", &[Submit], Value("TIME"), Text("none"), Anywhere)
        One(|text| time_or_none(text, YEAR)),
        "How long the task may run, 100ms or more. Then it is killed and has failed (124)";
    EXPIRE_AFTER: Option<Duration> = ("expire-after", &[Submit], Value("TIME"), Text("none"), Anywhere)
        One(|text| time_or_none(text, YEAR)),
        "How long the task may wait for its start, 100ms or more. Then it has expired and never runs";
    MAX_ATTEMPTS: u32 = ("max-attempts", &[Submit], Value("N"), Nothing, Anywhere)
        One(|text| number(text, 1, 1000)),
        "Run the task up to N times until it succeeds, 1 to 1000. Without it a task that exits with an error has \
        failed at once, and a task whose workers fail has failed after three attempts";
    RETRY_BACKOFF: Duration = ("retry-backoff", &[Submit], Value("TIME"), Described("1s"), Anywhere)
        One(|text| duration(text, Duration::ZERO, Duration::from_millis(MAX_RETRY_BACKOFF_MS))),
        "How long to wait before the second attempt, up to 1h. The time doubles before each further attempt";
    PRIORITY: i32 = ("priority", &[Submit], Value("N"), Described("0"), Anywhere)
        One(|text| number(text, -1000, 1000)),
        "Tasks with a higher priority always start first, -1000 to 1000";
    REQUIRE: Labels = ("require", &[Submit], LABELS, Nothing, Anywhere)
        Many(parse::labels),
        "Run only on a worker with this label. May be repeated, and then all are required";
    ENV: BTreeMap<String, String> = ("env", &[Submit], List("NAME=VALUE", Lines), Nothing, Anywhere, secret)
        Many(parse::env),
        "A variable for the task's environment. May be repeated, up to 64 variables and 16 KiB in sum. ZooKeeper \
        stores it as it is, so do not put secrets here";
    ORPHAN: Orphan = ("orphan", &[Submit], Value("keep|cancel"), Text("keep"), Anywhere)
        One(parse::orphan),
        "What to do with the task if this process ends while it waits";
    CANCEL_ON_INTERRUPT: bool = ("cancel-on-interrupt", &[Submit], Switch { negation: "no-cancel-on-interrupt" },
        Nothing, Anywhere)
        One(parse::boolean),
        "Cancel the task on SIGINT or SIGTERM. Otherwise the task goes on";
    ALLOW_TRUNCATED: bool = ("allow-truncated", &[Submit], Switch { negation: "no-allow-truncated" }, Nothing, Anywhere)
        One(parse::boolean),
        "Exit with 0 if a single task succeeded and printed more than its worker keeps. Otherwise the exit code \
        is 73. In both cases a message says what is missing";
    NO_PROGRESS: bool = ("no-progress", &[Submit], Switch { negation: "progress" }, Nothing, Anywhere)
        One(parse::boolean),
        "Show no progress bar for a batch. There is none if standard error is no terminal";

    // --- status, workers

    WATCH: bool = ("watch", &[Status, Workers], Switch { negation: "no-watch" }, Nothing, Flag)
        One(parse::boolean),
        "Show it again every 2 s, until it is interrupted. A terminal is cleared before each time";

    // --- list

    LIST_JOB: String = ("job", &[Verb::List], Value("JOB"), Described("all"), Anywhere)
        One(parse::segment),
        "List only the tasks of this job";
    STATE: Vec<TaskStatus> = ("state", &[Verb::List], Shape::List("STATE", Words), Described("all"), Anywhere)
        Many(parse::states),
        "List only tasks in this state: pending, assigned, running, cancelling, done, failed, cancelled or \
        expired. May be repeated";
    LIST_WORKER: String = ("worker", &[Verb::List], Value("ID"), Described("all"), Flag)
        One(parse::id),
        "List only tasks that this worker has, or had to their end";
    SINCE: Moment = ("since", &[Verb::List], Value("TIME"), Described("all"), Flag)
        One(parse::moment),
        "List only tasks that were created at this time or later: how long ago, as 2h, or an instant, as \
        2026-01-31T12:00:00Z";
    UNTIL: Moment = ("until", &[Verb::List], Value("TIME"), Described("all"), Flag)
        One(parse::moment),
        "List only tasks that were created before this time, written as for --since";
    COLUMNS: Vec<ListColumn> = ("columns", &[Verb::List], Shape::List("NAME", Words),
        Described("id,state,exit,attempt,worker,age,duration,command"), Anywhere)
        Many(parse::columns),
        "The columns to print: id, state, exit, attempt, priority, worker, age, duration or command. Without effect \
        on --json";
    LIMIT: u32 = ("limit", &[Verb::List], Value("N"), Text("1000"), Anywhere)
        One(|text| number(text, 1, 1_000_000)),
        "List at most N tasks, 1 to 1000000";

    // --- delete

    DELETE_STATE: Vec<State> = ("state", &[Delete], Shape::List("STATE", Words), Described("all"), Flag)
        Many(parse::ended_states),
        "Delete only tasks that ended in this state: done, failed, cancelled or expired. May be repeated. Without \
        an ID all jobs are searched. A part of a batch that is stored together is deleted as a whole";
    OLDER_THAN: Option<Duration> = ("older-than", &[Delete], Value("TIME"), Nothing, Flag)
        One(|text| time_or_none(text, YEAR)),
        "Delete only tasks that ended at least this long ago, by this machine's clock";

    // --- of most commands

    JSON_OUTPUT: bool = ("json",
        &[Elector, Submit, Status, Workers, Elections, Verb::List, Show, Why, Wait, Cancel, Retry, Delete],
        JSON, Nothing, Anywhere)
        One(parse::boolean),
        "Print one JSON object a line, for programs";
}
