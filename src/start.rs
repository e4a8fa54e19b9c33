//! From a [`Config`] to a role that runs: the only module where settings become the parameters of roles, and
//! where random numbers, names and processes of this host are read for them.

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Stderr, Stdout, Write as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::batch::BatchReader;
use crate::clock;
use crate::config::{
    Command, Config, DeleteConfig, ElectorConfig, Ensemble, IdsConfig, ListConfig, LogsConfig, MasterConfig,
    Orphan, SubmitConfig, TaskSource, WorkerConfig,
};
use crate::contract::log::LOGS;
use crate::contract::task::{Options, Payload};
use crate::contract::worker::ProcessIdentity;
use crate::contract::{Layout, TaskId, fnv1a, uuid};
use crate::exec::{self, Claim, Confinement, LogSettings, Predecessor, RunFile, Unavailable, User};
use crate::exit;
use crate::machine::Role;
use crate::report::ReportPrinter;
use crate::roles::client::walk::Target;
use crate::roles::client::{ClientReport, Unfit};
use crate::roles::inspector::{
    Elections, ElectionsParams, List, ListParams, Show, ShowParams, StatusForm, StatusOf, StatusParams,
};
use crate::roles::operator::{Deletion, Operator, OperatorParams, Verb};
use crate::roles::submitter::{Batch, BatchParams, Single, SingleParams, Waiting};
use crate::roles::waiter::{WaitParams, Waiter};
use crate::roles::{elector, master, worker};
use crate::shell::{self, Surroundings};
use crate::zk;

/// A create that was in doubt is dead after so many session timeouts: the master counts in the same way.
const SETTLED_TIMEOUTS: u32 = 2;

/// Calls that a master may have under way at once.
const MASTER_THREADS: usize = 128;

/// How long a master's memory outlives its session. To take back that of many tasks keeps a processor from everybody
/// else for milliseconds (a kernel does not let itself be interrupted in it), and a successor may be on this machine.
const HEAD_START: Duration = Duration::from_millis(100);

/// Calls of a worker, besides one for each slot.
const WORKER_THREADS: usize = 128;

/// Most calls of a worker.
const MAX_WORKER_THREADS: usize = 256;

/// Calls of everyone else.
const CLIENT_THREADS: usize = 640;

/// The time between two reports of a command that is watched. The leader writes its summary once a second.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// Does what the configuration says, and gives the exit code.
///
/// # Errors
/// What nobody can go on with, such as threads or `/proc` that cannot be had.
pub fn start(config: Config) -> anyhow::Result<i32> {
    run(config).or_else(|error| {
        let unfit = match error.downcast::<Unavailable>() {
            Ok(why) => unfit(exit::CONFIG, why.to_string()),
            Err(error) => error.downcast::<Unfit>()?,
        };
        log::error!("{unfit}");
        Ok(unfit.code)
    })
}

fn run(config: Config) -> anyhow::Result<i32> {
    let layout = Layout::new(&config.ensemble.root);
    let ensemble = config.ensemble;
    match config.command {
        Command::Master(settings) => run_master(&ensemble, layout, settings),
        Command::Worker(settings) => run_worker(&ensemble, layout, settings),
        Command::Submit(settings) => submit(&ensemble, layout, settings),
        Command::Status { json, watch } => status(&ensemble, layout, StatusForm::Summary, json, watch),
        Command::Workers { json, watch } => status(&ensemble, layout, StatusForm::Workers, json, watch),
        Command::Elections { json } => {
            run_client(Elections::new(ElectionsParams { layout }), &ensemble, (json, false), None)
        }
        Command::Elector(settings) => run_elector(&ensemble, layout, settings),
        Command::List(settings) => list(&ensemble, layout, settings),
        Command::Show { id, json } => run_client(show(layout, id, false), &ensemble, (json, false), None),
        Command::Why { id, json } => run_client(show(layout, id, true), &ensemble, (json, false), None),
        Command::Wait(IdsConfig { ids: targets, json }) => {
            run_client(Waiter::new(WaitParams { layout, targets }), &ensemble, (json, true), None)
        }
        Command::Cancel(IdsConfig { ids, json }) => operate(Verb::Cancel, &ensemble, layout, ids, json),
        Command::Retry(IdsConfig { ids, json }) => operate(Verb::Retry, &ensemble, layout, ids, json),
        Command::Delete(DeleteConfig { ids, states, older_than, json }) => {
            let now_ms = clock::wall_ms();
            let ago = |time: Duration| {
                now_ms.saturating_sub_unsigned(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
            };
            let settled_ms = ago(ensemble.session_timeout * SETTLED_TIMEOUTS);
            let deletion = Deletion { states, before_ms: older_than.map(ago), settled_ms };
            operate(Verb::Delete(deletion), &ensemble, layout, ids, json)
        }
    }
}

fn operate(
    verb: Verb,
    ensemble: &Ensemble,
    layout: Layout,
    targets: Vec<Target>,
    json: bool,
) -> anyhow::Result<i32> {
    let role = Operator::new(OperatorParams { layout, verb, targets });
    run_client(role, ensemble, (json, false), None)
}

fn list(ensemble: &Ensemble, layout: Layout, settings: ListConfig) -> anyhow::Result<i32> {
    let now_ms = clock::wall_ms();
    let since = settings.since.map_or(i64::MIN, |since| since.at_ms(now_ms));
    let until = settings.until.map_or(i64::MAX, |until| until.at_ms(now_ms));
    let role = List::new(ListParams {
        layout,
        job: settings.job,
        states: settings.states,
        worker: settings.worker,
        created_ms: since..until,
        limit: u64::from(settings.limit),
        now_ms,
    });
    let view = ReportPrinter::of_process(settings.json, false).with_columns(settings.columns);
    run_client_with(view, role, ensemble, None)
}

fn run_elector(ensemble: &Ensemble, layout: Layout, settings: ElectorConfig) -> anyhow::Result<i32> {
    let is_text = |argument: OsString| {
        let odd = |argument| unfit(exit::DATA, format!("the argument {argument:?} is not UTF-8"));
        argument.into_string().map_err(odd)
    };
    let command = settings.command.into_iter().map(is_text).collect::<Result<Vec<_>, _>>()?;
    let runs = !command.is_empty();
    let role = elector::Elector::new(elector::Params {
        dir: settings.path,
        layout,
        id: settings.id,
        uuid: uuid(chance(), chance()),
        command: Some(command).filter(|command| !command.is_empty()),
        env: Vec::new(),
        grace: settings.grace,
        once: settings.once,
    });
    let around = Surroundings { daemon: true, runs, ..surroundings(ensemble, CLIENT_THREADS) };
    shell::run(role, around, &mut |report: elector::Report| {
        let mut out = std::io::stdout().lock();
        if settings.json {
            writeln!(out, "{}", report.to_json())?
        } else {
            writeln!(out, "{report}")?
        }
        out.flush()
    })
}

fn surroundings(ensemble: &Ensemble, threads: usize) -> Surroundings {
    let auth =
        ensemble.auth.iter().map(|auth| (auth.scheme.clone(), auth.credential.reveal().as_bytes().to_vec()));
    Surroundings {
        zk: zk::Settings {
            servers: ensemble.servers.clone(),
            chroot: ensemble.chroot.clone(),
            session_timeout: ensemble.session_timeout,
            auth: auth.collect(),
            threads,
        },
        connect_timeout: ensemble.connect_timeout,
        close_timeout: ensemble.close_timeout,
        runs: false,
        run_file: None,
        confinement: Confinement::default(),
        logs: None,
        batch: None,
        daemon: false,
    }
}

fn unfit(code: i32, why: String) -> Unfit {
    Unfit { code, why }
}

/// 64 bits that nobody could foretell.
fn chance() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn run_master(ensemble: &Ensemble, layout: Layout, settings: MasterConfig) -> anyhow::Result<i32> {
    let process = exec::process_identity()?;
    let role = master::Master::new(master::Params {
        layout,
        id: settings.id,
        host: process.host,
        pid: process.pid,
        uuid: uuid(chance(), chance()),
        result_ttl: settings.result_ttl,
        job_ttl: settings.job_ttl,
        max_pending: settings.max_pending,
        max_failed: settings.max_failed,
        max_pending_bytes: settings.max_pending_bytes,
    });
    let around = Surroundings { daemon: true, ..surroundings(ensemble, MASTER_THREADS) };
    let code = shell::run(role, around, &mut |report| match report {});
    thread::sleep(HEAD_START);
    code
}

fn run_worker(ensemble: &Ensemble, layout: Layout, settings: WorkerConfig) -> anyhow::Result<i32> {
    let process = exec::process_identity()?;
    let confinement = confinement(&settings)?;
    let service = service(ensemble);
    let (run_file, predecessor) = claim(&settings, &service, &process)?;
    let logs = logs(&settings, &service);
    // What it still has to write may wait for half of it, the end of its session for the other.
    let close_timeout = ensemble.close_timeout / 2;
    let threads = (settings.slots as usize + WORKER_THREADS).min(MAX_WORKER_THREADS);
    let role = worker::Worker::new(worker::Params {
        layout,
        id: settings.id,
        process,
        predecessor,
        slots: settings.slots,
        labels: settings.labels,
        grace: settings.grace,
        close_timeout,
        output_limit: settings.output_limit_bytes,
        handler: settings.handler,
        seed: chance(),
    });
    let around = Surroundings {
        daemon: true,
        runs: true,
        run_file,
        confinement,
        logs,
        close_timeout,
        ..surroundings(ensemble, threads)
    };
    shell::run(role, around, &mut |report| match report {})
}

/// In what a worker's tasks differ from it.
fn confinement(settings: &WorkerConfig) -> Result<Confinement, Unfit> {
    let user = settings.run_as.as_deref().map(User::find).transpose();
    let user = user.map_err(|why| unfit(exit::CONFIG, format!("run-as: {why}")))?;
    Ok(Confinement { user, clean_env: settings.clean_env, limits: settings.limits })
}

/// A short name for the service that these settings lead to: the servers, in any order, and the root.
fn service(ensemble: &Ensemble) -> String {
    let mut servers = ensemble.servers.clone();
    servers.sort();
    let chroot = ensemble.chroot.as_deref().unwrap_or_default();
    format!("{:08x}", fnv1a(&format!("{servers:?}{chroot}{}", ensemble.root)))
}

/// What to call a worker on this host, which may have workers of one name in several services.
fn name_here(settings: &WorkerConfig, service: &str) -> String {
    format!("{}@{service}", settings.id)
}

/// Where a worker keeps all that its tasks print, if it does. An answer of a handler has all its output.
fn logs(settings: &WorkerConfig, service: &str) -> Option<LogSettings> {
    let dir = settings.state_dir.join(LOGS).join(name_here(settings, service));
    let LogsConfig { limit, space, keep } = settings.logs;
    let logs = LogSettings { dir, limit, space, keep };
    let keeps = limit > 0 && settings.handler.is_none();
    if keeps {
        log::debug!("all that tasks print is kept in {}", logs.dir.display());
    }
    keeps.then_some(logs)
}

/// Claims the worker's name on this host, and learns what became of who had it before. Without a run file the
/// worker works in that case too; only a successor of it has to wait.
fn claim(
    settings: &WorkerConfig,
    service: &str,
    own: &ProcessIdentity,
) -> Result<(Option<RunFile>, Option<ProcessIdentity>), Unfit> {
    let name = name_here(settings, service);
    let run_file = match RunFile::claim(&settings.run_dir, &name) {
        Ok(Claim::Ours(run_file)) => run_file,
        Ok(Claim::Held { pid }) => {
            let process = pid.map_or_else(|| "a process".to_string(), |pid| format!("process {pid}"));
            let hint = "stop that one, or give this one another --id";
            let why = format!("a worker {} lives already: {}, {process}; {hint}", settings.id, own.host);
            return Err(unfit(exit::TRY_AGAIN, why));
        }
        Err(error) => {
            log::warn!(
                "no run file in {}: {error:#}; a restart may have to wait",
                settings.run_dir.display()
            );
            return Ok((None, None));
        }
    };
    let predecessor = match run_file.inspect_predecessor() {
        Predecessor::Gone { pid, start_ticks, leftovers_killed } => {
            if leftovers_killed > 0 {
                log::warn!("killed {leftovers_killed} processes that worker {} had left behind", settings.id);
            }
            Some(ProcessIdentity { pid, start_time: start_ticks, ..own.clone() })
        }
        Predecessor::Unknown { why } => {
            log::info!("nothing is proven about an earlier worker {}: {why}", settings.id);
            None
        }
        Predecessor::None | Predecessor::Alive { .. } => None,
    };
    Ok((Some(run_file), predecessor))
}

fn status(
    ensemble: &Ensemble,
    layout: Layout,
    form: StatusForm,
    json: bool,
    watch: bool,
) -> anyhow::Result<i32> {
    let role = StatusOf::new(StatusParams { layout, form, every: watch.then_some(WATCH_EVERY) });
    let view = ReportPrinter::of_process(json, false);
    run_client_with(if watch { view.redrawing() } else { view }, role, ensemble, None)
}

fn show(layout: Layout, id: TaskId, only_reasons: bool) -> Show {
    Show::new(ShowParams { layout, id, only_reasons, now_ms: clock::wall_ms() })
}

fn run_client<T: Role<Report = ClientReport>>(
    role: T,
    ensemble: &Ensemble,
    (json, progress): (bool, bool),
    batch: Option<shell::BatchLines>,
) -> anyhow::Result<i32> {
    run_client_with(ReportPrinter::of_process(json, progress), role, ensemble, batch)
}

fn run_client_with<T: Role<Report = ClientReport>>(
    mut view: ReportPrinter<Stdout, Stderr>,
    role: T,
    ensemble: &Ensemble,
    batch: Option<shell::BatchLines>,
) -> anyhow::Result<i32> {
    let mut around = surroundings(ensemble, CLIENT_THREADS);
    around.batch = batch;
    shell::run(role, around, &mut |report| view.show(report))
}

fn submit(ensemble: &Ensemble, layout: Layout, settings: SubmitConfig) -> anyhow::Result<i32> {
    let options = options(&settings);
    let (format, waiting) = ((settings.json, settings.progress), waiting(&settings));
    let payload = match settings.task {
        TaskSource::Line(line) => Payload::Shell(line),
        TaskSource::Program(argv) => Payload::Program(argv),
        TaskSource::File(ref path) => return submit_batch(ensemble, layout, &settings, path),
        TaskSource::Stdin => return submit_batch(ensemble, layout, &settings, "-".as_ref()),
    };
    let single = Single::new(SingleParams {
        layout,
        ulid: ulid::Ulid::generate().to_string(),
        key: settings.id,
        job: settings.job,
        payload,
        options,
        credentials: !ensemble.auth.is_empty(),
        waiting,
        cancel_on_interrupt: settings.cancel_on_interrupt,
        allow_truncated: settings.allow_truncated,
    });
    run_client(single?, ensemble, format, None)
}

fn submit_batch(
    ensemble: &Ensemble,
    layout: Layout,
    settings: &SubmitConfig,
    path: &Path,
) -> anyhow::Result<i32> {
    let mut reader = BatchReader::open(path)?;
    settings.chunk.map(|size| reader.check_chunk(size)).transpose()?;
    let waiting = waiting(settings);
    let batch = Batch::new(BatchParams {
        layout,
        ulid: ulid::Ulid::generate().to_string(),
        key: settings.id.clone(),
        job: settings.job.clone(),
        options: options(settings),
        outline: reader.outline().clone(),
        chunk: settings.chunk,
        credentials: !ensemble.auth.is_empty(),
        waiting,
        cancel_on_interrupt: settings.cancel_on_interrupt,
    });
    let lines: shell::BatchLines =
        Box::new(move |count| reader.next(count).map_err(|unfit| anyhow::anyhow!("{unfit}")));
    run_client(batch?, ensemble, (settings.json, settings.progress), Some(lines))
}

/// Whether a submitter waits. If it does not, `--orphan` means nothing.
fn waiting(settings: &SubmitConfig) -> Waiting {
    match settings.detach {
        true => Waiting::Detached,
        false => Waiting::Attached { orphan_cancel: settings.orphan == Orphan::Cancel },
    }
}

fn options(settings: &SubmitConfig) -> Options {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Options {
        priority: settings.priority,
        timeout_ms: settings.timeout.map(ms),
        expire_ms: settings.expire_after.map(ms),
        max_attempts: settings.max_attempts,
        retry_backoff_ms: settings.retry_backoff.map(ms),
        require: Some(settings.require.clone()).filter(|require| !require.is_empty()),
        env: Some(settings.env.clone()).filter(|env| !env.is_empty()),
        orphan_of: None,
    }
}
