//! Puts the `Config` together: asks the layers for each setting, fills in what depends on the host, and checks
//! what only makes sense together.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cli::{self, Arguments};
use super::file::File;
use super::given::{quoted, variable};
use super::invalid::{Conflict, Invalid, InvalidCommand};
use super::layers::Layers;
use super::settings::{self, Verb};
use super::{
    Command, Config, ConfigError, DeleteConfig, ElectorConfig, Ensemble, IdsConfig, ListConfig, LogsConfig,
    MasterConfig, Orphan, SubmitConfig, TaskSource, WorkerConfig, parse,
};

use crate::contract::worker::MAX_SLOTS;
use crate::contract::{TaskId, is_shared, is_ulid};
use crate::exec::RunLimits;
use crate::exit;
use crate::roles::client::walk::{Target, bare_task};

/// The most ids on one command line.
const MAX_IDS: usize = 10_000;

/// What defaults depend on.
pub struct Host {
    pub name: String,
    pub pid: u32,
    pub uid: u32,
    pub cores: u32,
}

impl Host {
    /// The one that we are on.
    pub fn this() -> Host {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Host {
            name: parse::id_from_host_name(&name),
            pid: std::process::id(),
            uid: rustix::process::getuid().as_raw(),
            cores: u32::try_from(cores).unwrap_or(u32::MAX).clamp(1, MAX_SLOTS),
        }
    }
}

/// See [`super::load`].
pub fn load_on(
    host: &Host,
    args: impl Iterator<Item = OsString>,
    env: &dyn Fn(&str) -> Option<OsString>,
    default_file: &Path,
) -> Result<Config, ConfigError> {
    let Arguments { verb, flags, words, program } = cli::sort(args)?;
    let mut layers = Layers { verb, flags, env, file: File::default() };
    layers.file = match layers.get(&settings::CONFIG)? {
        Some(path) => File::read(&path, false)?,
        None => File::read(default_file, true)?,
    };
    let ensemble = ensemble(&layers)?;
    let verbosity = verbosity(&layers)?;
    let command = match verb {
        Verb::Elector => Command::Elector(elector(&layers, host, &ensemble.root, program)?),
        Verb::Master => Command::Master(MasterConfig {
            id: layers.get(&settings::DAEMON_ID)?.unwrap_or_else(|| daemon_id(host)),
            result_ttl: layers.get_always(&settings::RESULT_TTL)?,
            job_ttl: layers.get_always(&settings::JOB_TTL)?,
            max_pending: layers.get_always(&settings::MAX_PENDING)?,
            max_failed: layers.get_always(&settings::MAX_FAILED)?,
            max_pending_bytes: layers.get_always(&settings::MAX_PENDING_BYTES)?,
        }),
        Verb::Worker => Command::Worker(worker(&layers, host)?),
        Verb::Submit => Command::Submit(submit(&layers, words, program)?),
        Verb::Status => Command::Status { json: json(&layers)?, watch: watch(&layers)? },
        Verb::Workers => Command::Workers { json: json(&layers)?, watch: watch(&layers)? },
        Verb::Elections => Command::Elections { json: json(&layers)? },
        Verb::List => Command::List(ListConfig {
            job: layers.get(&settings::LIST_JOB)?,
            states: layers.get_or_default(&settings::STATE)?,
            worker: layers.get(&settings::LIST_WORKER)?,
            since: layers.get(&settings::SINCE)?,
            until: layers.get(&settings::UNTIL)?,
            columns: layers.get_or_default(&settings::COLUMNS)?,
            limit: layers.get_always(&settings::LIMIT)?,
            json: json(&layers)?,
        }),
        Verb::Show => Command::Show { id: one_task(verb, &words)?, json: json(&layers)? },
        Verb::Why => Command::Why { id: one_task(verb, &words)?, json: json(&layers)? },
        Verb::Wait => Command::Wait(IdsConfig { ids: own_ids(verb, &words)?, json: json(&layers)? }),
        Verb::Cancel => Command::Cancel(IdsConfig { ids: own_ids(verb, &words)?, json: json(&layers)? }),
        Verb::Retry => Command::Retry(IdsConfig { ids: own_ids(verb, &words)?, json: json(&layers)? }),
        Verb::Delete => Command::Delete(delete(&layers, &words)?),
    };
    Ok(Config { ensemble, verbosity, command })
}

fn watch(layers: &Layers<'_>) -> Result<bool, ConfigError> {
    layers.get_or_default(&settings::WATCH)
}

fn delete(layers: &Layers<'_>, words: &[OsString]) -> Result<DeleteConfig, ConfigError> {
    let states = layers.get_or_default(&settings::DELETE_STATE)?;
    let older_than = layers.get_or_default(&settings::OLDER_THAN)?;
    if words.is_empty() && states.is_empty() {
        let message = "delete needs an ID, or --state to delete all that ended so (see zkmw delete --help)";
        return Err(ConfigError::usage(message));
    }
    let ids = if words.is_empty() { vec![Target::All] } else { own_ids(layers.verb, words)? };
    Ok(DeleteConfig { ids, states, older_than, json: json(layers)? })
}

fn json(layers: &Layers<'_>) -> Result<bool, ConfigError> {
    layers.get_or_default(&settings::JSON_OUTPUT)
}

fn ensemble(layers: &Layers<'_>) -> Result<Ensemble, ConfigError> {
    let address = layers.get_always(&settings::ZK)?;
    let for_verb = if layers.verb.is_daemon() { None } else { Some(Duration::from_secs(30)) };
    Ok(Ensemble {
        servers: address.servers,
        chroot: address.chroot,
        root: layers.get_always(&settings::ROOT)?,
        session_timeout: layers.get_always(&settings::SESSION_TIMEOUT)?,
        connect_timeout: layers.get(&settings::CONNECT_TIMEOUT)?.unwrap_or(for_verb),
        close_timeout: layers.get_always(&settings::CLOSE_TIMEOUT)?,
        auth: layers.get_or_default(&settings::AUTH)?,
    })
}

/// `-v` and `-q` are one setting with two names: where one of them is given, a weaker source does not count.
fn verbosity(layers: &Layers<'_>) -> Result<i8, ConfigError> {
    let verbose = layers.get_or_default(&settings::VERBOSE)?;
    let quiet = layers.get_or_default(&settings::QUIET)?;
    let strength = |spec| layers.given(spec).map_or(0, |given| given.source.strength());
    let (v, q) = (strength(&settings::VERBOSE.spec), strength(&settings::QUIET.spec));
    Ok(if v >= q { verbose } else { 0 } - if q >= v { quiet } else { 0 })
}

fn daemon_id(host: &Host) -> String {
    format!("{}-{}", host.name, host.pid)
}

fn elector(
    layers: &Layers<'_>,
    host: &Host,
    root: &str,
    command: Vec<OsString>,
) -> Result<ElectorConfig, ConfigError> {
    let path = layers.get(&settings::PATH)?;
    if let Some(path) = &path
        && let Some(below) = format!("{path}/").strip_prefix(&format!("{root}/"))
        && below.strip_prefix("elections/").is_none_or(str::is_empty)
    {
        return Err(layers.refuse(&settings::PATH.spec, Conflict::ElectionInRoot(root.to_owned())));
    }
    if command.first().is_some_and(|program| program.is_empty()) {
        return Err(ConfigError::usage("the COMMAND after -- is empty"));
    }
    // It would end at once, and be run again for ever.
    if let [.., option, line] = command.as_slice()
        && option == "-c"
        && line.as_encoded_bytes().trim_ascii().is_empty()
    {
        let message = "the COMMAND after -- is a shell with an empty command line; in a unit, set \
                       ZKMW_ELECTOR_COMMAND in /etc/zkmw/elector-ELECTION.env";
        return Err(ConfigError::new(exit::CONFIG, message));
    }
    Ok(ElectorConfig {
        id: layers.get(&settings::DAEMON_ID)?.unwrap_or_else(|| daemon_id(host)),
        path: path.unwrap_or_else(|| format!("{root}/elections/default")),
        grace: layers.get_always(&settings::ELECTOR_GRACE)?,
        once: layers.get_or_default(&settings::ONCE)?,
        json: json(layers)?,
        command,
    })
}

fn worker(layers: &Layers<'_>, host: &Host) -> Result<WorkerConfig, ConfigError> {
    Ok(WorkerConfig {
        id: layers.get(&settings::WORKER_ID)?.unwrap_or_else(|| host.name.clone()),
        slots: layers.get(&settings::SLOTS)?.unwrap_or(host.cores),
        labels: layers.get_or_default(&settings::LABEL)?,
        grace: layers.get_always(&settings::WORKER_GRACE)?,
        handler: layers.get(&settings::HANDLER)?,
        output_limit_bytes: layers.get_always(&settings::OUTPUT_LIMIT)?,
        run_dir: match layers.get(&settings::RUN_DIR)? {
            Some(dir) => dir,
            None => default_run_dir(layers.env, host.uid),
        },
        run_as: layers.get(&settings::RUN_AS)?,
        clean_env: layers.get_or_default(&settings::CLEAN_ENV)?,
        limits: RunLimits {
            memory_bytes: layers.get(&settings::TASK_MEMORY)?,
            cpu_millis: layers.get(&settings::TASK_CPUS)?,
            processes: layers.get(&settings::TASK_PIDS)?,
        },
        state_dir: match layers.get(&settings::STATE_DIR)? {
            Some(dir) => dir,
            None => default_state_dir(layers.env, host.uid),
        },
        logs: LogsConfig {
            limit: layers.get_always(&settings::LOG_LIMIT)?,
            space: layers.get_always(&settings::LOG_SPACE)?,
            keep: layers.get_always(&settings::LOG_KEEP)?,
        },
    })
}

/// What variables are.
type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn default_run_dir(env: Env<'_>, uid: u32) -> PathBuf {
    if let Some(dir) = dir_of_unit(env, "RUNTIME_DIRECTORY") {
        return dir;
    }
    if uid == 0 {
        return PathBuf::from("/run/zkmw");
    }
    match dir_in(env, "XDG_RUNTIME_DIR") {
        Some(dir) => dir.join("zkmw"),
        None => temporary_dir(env, uid),
    }
}

fn default_state_dir(env: Env<'_>, uid: u32) -> PathBuf {
    if let Some(dir) = dir_of_unit(env, "STATE_DIRECTORY") {
        return dir;
    }
    if uid == 0 {
        return PathBuf::from("/var/lib/zkmw");
    }
    let of_home = || dir_in(env, "HOME").map(|home| home.join(".local/state"));
    match dir_in(env, "XDG_STATE_HOME").or_else(of_home) {
        Some(dir) => dir.join("zkmw"),
        None => temporary_dir(env, uid),
    }
}

fn absolute(dir: &OsStr) -> Option<PathBuf> {
    Some(PathBuf::from(dir)).filter(|dir| dir.is_absolute())
}

fn dir_in(env: Env<'_>, name: &str) -> Option<PathBuf> {
    variable(env, name).as_deref().and_then(absolute)
}

/// systemd gives several directories with colons between them.
fn dir_of_unit(env: Env<'_>, name: &str) -> Option<PathBuf> {
    let dirs = variable(env, name)?;
    dirs.to_str().and_then(|dirs| dirs.split(':').next()).and_then(|dir| absolute(dir.as_ref()))
}

fn temporary_dir(env: Env<'_>, uid: u32) -> PathBuf {
    dir_in(env, "TMPDIR").unwrap_or_else(|| PathBuf::from("/tmp")).join(format!("zkmw-{uid}"))
}

fn submit(
    layers: &Layers<'_>,
    words: Vec<OsString>,
    program: Vec<OsString>,
) -> Result<SubmitConfig, ConfigError> {
    let orphan = layers.get_always(&settings::ORPHAN)?;
    let detach = layers.get_or_default(&settings::DETACH)?;
    if detach && orphan == Orphan::Cancel {
        return Err(layers.refuse(&settings::ORPHAN.spec, Conflict::OrphanAtOnce));
    }
    let task = task_source(layers.get(&settings::FROM_FILE)?, words, program)?;
    let is_batch = matches!(task, TaskSource::File(_) | TaskSource::Stdin);
    let chunk = layers.get(&settings::CHUNK)?;
    if chunk.is_some() && !is_batch {
        return Err(layers.refuse(&settings::CHUNK.spec, Conflict::NoBatch));
    }
    Ok(SubmitConfig {
        task,
        chunk,
        job: layers.get(&settings::JOB)?,
        id: layers.get(&settings::TASK_KEY)?,
        detach,
        timeout: layers.get_always(&settings::TIMEOUT)?,
        expire_after: layers.get_always(&settings::EXPIRE_AFTER)?,
        max_attempts: layers.get(&settings::MAX_ATTEMPTS)?,
        retry_backoff: layers.get(&settings::RETRY_BACKOFF)?,
        priority: layers.get(&settings::PRIORITY)?,
        require: layers.get_or_default(&settings::REQUIRE)?,
        env: layers.get_or_default(&settings::ENV)?,
        orphan,
        cancel_on_interrupt: layers.get_or_default(&settings::CANCEL_ON_INTERRUPT)?,
        allow_truncated: layers.get_or_default(&settings::ALLOW_TRUNCATED)?,
        progress: !layers.get_or_default(&settings::NO_PROGRESS)?,
        json: json(layers)?,
    })
}

const TASK_FORMS: &str = "give one TASK, or -- PROGRAM [ARG]…, or --from-file FILE";

fn task_source(
    file: Option<PathBuf>,
    mut words: Vec<OsString>,
    program: Vec<OsString>,
) -> Result<TaskSource, ConfigError> {
    let usage =
        |what: &str| Err(ConfigError::usage(&format!("{what}; {TASK_FORMS} (see zkmw submit --help)")));
    if words.len() > 1 {
        return usage("submit takes one TASK, so quote it as one shell command line");
    }
    match (words.pop(), program.as_slice(), file) {
        (None, [], None) => usage("there is no task"),
        (None, [], Some(file)) if file.as_os_str().is_empty() => usage("the name of the file is empty"),
        (None, [], Some(file)) if file == Path::new("-") => Ok(TaskSource::Stdin),
        (None, [], Some(file)) => Ok(TaskSource::File(file)),
        (Some(line), [], None) => {
            let line = task_text("the task", line)?;
            if line.trim().is_empty() {
                return usage("the task is empty");
            }
            Ok(TaskSource::Line(line))
        }
        (None, [name, ..], None) => {
            if name.is_empty() {
                return usage("the program's name is empty");
            }
            let bytes = program.iter().map(|arg| arg.len() + 1).sum();
            parse::check_command_bytes(bytes).map_err(|reason| bad_task("the task", &reason))?;
            let texts: Result<Vec<_>, _> =
                program.into_iter().map(|arg| task_text("an argument of the task", arg)).collect();
            Ok(TaskSource::Program(texts?))
        }
        (Some(_), ..) | (None, [_, ..], Some(_)) => usage("the task is given in more than one way"),
    }
}

fn task_text(what: &str, text: OsString) -> Result<String, ConfigError> {
    let bytes = text.len();
    let text = parse::check_command_bytes(bytes)
        .and_then(|()| text.into_string().map_err(|_| InvalidCommand::NotUtf8));
    text.and_then(|text| parse::check_command_line(&text).map(|()| text))
        .map_err(|reason| bad_task(what, &reason))
}

fn bad_task(what: &str, reason: &InvalidCommand) -> ConfigError {
    ConfigError::new(exit::DATA, &format!("{what} {reason}"))
}

fn ids(verb: Verb, words: &[OsString]) -> Result<Vec<Target>, ConfigError> {
    if words.is_empty() {
        let message = format!("{} needs an ID (see zkmw {} --help)", verb.name(), verb.name());
        return Err(ConfigError::usage(&message));
    }
    if words.len() > MAX_IDS {
        return Err(ConfigError::usage(&format!("{} takes at most {MAX_IDS} ids at a time", verb.name())));
    }
    words
        .iter()
        .map(|word| {
            let id = word.to_str().ok_or(Invalid::NotUtf8).and_then(parse::target);
            id.map_err(|reason| ConfigError::usage(&format!("ID: {} is not valid: {reason}", quoted(word))))
        })
        .collect()
}

/// The shared jobs are nobody's, so they cannot be named as a whole.
fn own_ids(verb: Verb, words: &[OsString]) -> Result<Vec<Target>, ConfigError> {
    let ids = ids(verb, words)?;
    for id in &ids {
        if let Target::Job(job) = id
            && is_shared(job)
        {
            let why = "is a shared job, with the tasks of many users in it: name the tasks";
            return Err(ConfigError::usage(&format!("{job} {why}")));
        }
    }
    Ok(ids)
}

fn one_task(verb: Verb, words: &[OsString]) -> Result<TaskId, ConfigError> {
    match ids(verb, words)?.as_slice() {
        [Target::Task(id)] => Ok(id.clone()),
        [Target::Job(ulid)] if is_ulid(ulid) => Ok(bare_task(ulid)),
        [Target::Job(job)] => {
            let of_key = bare_task(job);
            let hint =
                format!("name one task, or see `zkmw list --job {job}`; the task of this key is {of_key}");
            Err(ConfigError::usage(&format!("{job} is a job: {hint}")))
        }
        _ => Err(ConfigError::usage(&format!("{} takes one ID", verb.name()))),
    }
}
