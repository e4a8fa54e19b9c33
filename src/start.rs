//! From a [`Config`] to a role that runs: the only place where settings become what roles are made of, and
//! where chance, names and processes of this host are looked up for them.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use crate::batch::BatchReader;
use crate::config::{
    Command, Config, DeleteConfig, ElectorConfig, Ensemble, IdsConfig, ItemRef, ListConfig, MasterConfig,
    Orphan, SubmitConfig, TaskSource, TaskState, WorkerConfig,
};
use crate::contract::task::{Options, Payload, State};
use crate::contract::worker::ProcessIdentity;
use crate::contract::{Layout, TaskId, fnv1a, is_shared, uuid};
use crate::exec::{self, Claim, Predecessor, RunFile};
use crate::exit;
use crate::machine::Role;
use crate::report::View;
use crate::roles::client::walk::Target;
use crate::roles::client::{ClientReport, Shade, Unfit};
use crate::roles::inspector::{List, ListParams, Show, ShowParams, StatusOf, StatusParams};
use crate::roles::operator::{Deletion, Operator, OperatorParams, Verb};
use crate::roles::submitter::{Batch, BatchParams, Single, SingleParams};
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

/// Does what the configuration says, and gives the exit code.
///
/// # Errors
/// What nobody can go on with, such as threads or `/proc` that cannot be had.
pub fn start(config: Config) -> anyhow::Result<i32> {
    let layout = Layout::new(&config.ensemble.root);
    let ensemble = config.ensemble;
    match config.command {
        Command::Master(settings) => run_master(&ensemble, layout, settings),
        Command::Worker(settings) => run_worker(&ensemble, layout, settings),
        Command::Submit(settings) => submit(&ensemble, layout, settings),
        Command::Status { json } => {
            run_client(StatusOf::new(StatusParams { layout }), &ensemble, (json, false), None)
        }
        Command::Elector(settings) => run_elector(&ensemble, layout, settings),
        Command::List(settings) => list(&ensemble, layout, settings),
        Command::Show { id, json } => match id.task {
            Some(task) => {
                let id = TaskId::new(&id.job, &task);
                run_client(Show::new(ShowParams { layout, id }), &ensemble, (json, false), None)
            }
            None => {
                log::error!("{} is a job: name one task, or see `zkmw list --job {}`", id.job, id.job);
                Ok(exit::USAGE)
            }
        },
        Command::Wait(IdsConfig { ids, json }) => match targets(&ids) {
            Ok(targets) => {
                run_client(Waiter::new(WaitParams { layout, targets }), &ensemble, (json, true), None)
            }
            Err(code) => Ok(code),
        },
        Command::Cancel(settings) => operate(Verb::Cancel, &ensemble, layout, settings),
        Command::Retry(settings) => operate(Verb::Retry, &ensemble, layout, settings),
        Command::Delete(settings) => delete(&ensemble, layout, settings),
    }
}

fn operate(verb: Verb, ensemble: &Ensemble, layout: Layout, settings: IdsConfig) -> anyhow::Result<i32> {
    match targets(&settings.ids) {
        Ok(targets) => {
            let role = Operator::new(OperatorParams { layout, verb, targets });
            run_client(role, ensemble, (settings.json, false), None)
        }
        Err(code) => Ok(code),
    }
}

fn delete(ensemble: &Ensemble, layout: Layout, settings: DeleteConfig) -> anyhow::Result<i32> {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let ago = |time: Duration| i64::try_from(since_1970.saturating_sub(time).as_millis()).unwrap_or(i64::MAX);
    let state = |state: TaskState| match shade(state) {
        Shade::Ended(state) => Some(state),
        Shade::Pending | Shade::Assigned | Shade::Running | Shade::Cancelling => None,
    };
    let verb = Verb::Delete(Deletion {
        states: settings.states.into_iter().filter_map(state).collect(),
        before_ms: settings.older_than.map(ago),
        settled_ms: ago(ensemble.session_timeout * SETTLED_TIMEOUTS),
    });
    let targets = match settings.ids.as_slice() {
        [] => Ok(vec![Target::All]),
        ids => targets(ids),
    };
    match targets {
        Ok(targets) => {
            let role = Operator::new(OperatorParams { layout, verb, targets });
            run_client(role, ensemble, (settings.json, false), None)
        }
        Err(code) => Ok(code),
    }
}

fn shade(state: TaskState) -> Shade {
    match state {
        TaskState::Pending => Shade::Pending,
        TaskState::Assigned => Shade::Assigned,
        TaskState::Running => Shade::Running,
        TaskState::Cancelling => Shade::Cancelling,
        TaskState::Done => Shade::Ended(State::Done),
        TaskState::Failed => Shade::Ended(State::Failed),
        TaskState::Cancelled => Shade::Ended(State::Cancelled),
        TaskState::Expired => Shade::Ended(State::Expired),
    }
}

fn list(ensemble: &Ensemble, layout: Layout, settings: ListConfig) -> anyhow::Result<i32> {
    let role = List::new(ListParams {
        layout,
        job: settings.job,
        states: settings.states.into_iter().map(shade).collect(),
        limit: u64::from(settings.limit),
    });
    run_client(role, ensemble, (settings.json, false), None)
}

fn run_elector(ensemble: &Ensemble, layout: Layout, settings: ElectorConfig) -> anyhow::Result<i32> {
    let mut command = Vec::new();
    for argument in settings.command {
        match argument.into_string() {
            Ok(argument) => command.push(argument),
            Err(argument) => {
                log::error!("the argument {argument:?} is not UTF-8");
                return Ok(exit::DATA);
            }
        }
    }
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
    let around =
        Surroundings { daemon: true, runs, sweep_always: true, ..surroundings(ensemble, CLIENT_THREADS) };
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
        sweep_always: false,
        batch: None,
        daemon: false,
    }
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
    let (run_file, predecessor) = match claim(&settings, &service(ensemble), &process) {
        Ok(claimed) => claimed,
        Err(code) => return Ok(code),
    };
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
    let around =
        Surroundings { daemon: true, runs: true, run_file, close_timeout, ..surroundings(ensemble, threads) };
    shell::run(role, around, &mut |report| match report {})
}

/// A short name for the service that these settings lead to: the servers, in any order, and the root.
fn service(ensemble: &Ensemble) -> String {
    let mut servers = ensemble.servers.clone();
    servers.sort();
    let chroot = ensemble.chroot.as_deref().unwrap_or_default();
    format!("{:08x}", fnv1a(&format!("{servers:?}{chroot}{}", ensemble.root)))
}

/// Claims the worker's name on this host, and learns what became of who had it before. Without a run file the
/// worker works all the same; only a successor of it has to wait.
fn claim(
    settings: &WorkerConfig,
    service: &str,
    own: &ProcessIdentity,
) -> Result<(Option<RunFile>, Option<ProcessIdentity>), i32> {
    // One host may have workers of one name in several services.
    let name = format!("{}@{service}", settings.id);
    let run_file = match RunFile::claim(&settings.run_dir, &name) {
        Ok(Claim::Ours(run_file)) => run_file,
        Ok(Claim::Held { pid }) => {
            let process = pid.map_or_else(|| "a process".to_string(), |pid| format!("process {pid}"));
            let hint = "stop that one, or give this one another --id";
            log::error!("a worker {} lives already: {}, {process}; {hint}", settings.id, own.host);
            return Err(exit::TRY_AGAIN);
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

fn run_client<T: Role<Report = ClientReport>>(
    role: T,
    ensemble: &Ensemble,
    (json, progress): (bool, bool),
    batch: Option<shell::BatchLines>,
) -> anyhow::Result<i32> {
    let mut view = View::of_process(json, progress);
    let mut around = surroundings(ensemble, CLIENT_THREADS);
    around.batch = batch;
    shell::run(role, around, &mut |report| view.show(report))
}

/// The tasks and jobs that were named. The shared jobs are nobody's, so they cannot be named as a whole.
fn targets(ids: &[ItemRef]) -> Result<Vec<Target>, i32> {
    let target = |id: &ItemRef| match &id.task {
        Some(task) => Ok(Target::Task(TaskId::new(&id.job, task))),
        None if is_shared(&id.job) => {
            log::error!("{} is a shared job, with the tasks of many users in it: name the tasks", id.job);
            Err(exit::USAGE)
        }
        None => Ok(Target::Job(id.job.clone())),
    };
    ids.iter().map(target).collect()
}

fn submit(ensemble: &Ensemble, layout: Layout, settings: SubmitConfig) -> anyhow::Result<i32> {
    let options = options(&settings);
    let look = (settings.json, settings.progress);
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
        detach: settings.detach,
        orphan_cancel: settings.orphan == Orphan::Cancel,
        cancel_on_interrupt: settings.cancel_on_interrupt,
    });
    match single {
        Ok(role) => run_client(role, ensemble, look, None),
        Err(unfit) => Ok(tell(&unfit)),
    }
}

fn submit_batch(
    ensemble: &Ensemble,
    layout: Layout,
    settings: &SubmitConfig,
    path: &Path,
) -> anyhow::Result<i32> {
    let mut reader = match BatchReader::open(path) {
        Ok(reader) => reader,
        Err(unfit) => return Ok(tell(&unfit)),
    };
    if let Some(Err(unfit)) = settings.chunk.map(|size| reader.check_chunk(size)) {
        return Ok(tell(&unfit));
    }
    let batch = Batch::new(BatchParams {
        layout,
        ulid: ulid::Ulid::generate().to_string(),
        key: settings.id.clone(),
        job: settings.job.clone(),
        options: options(settings),
        outline: reader.outline().clone(),
        chunk: settings.chunk,
        credentials: !ensemble.auth.is_empty(),
        detach: settings.detach,
        orphan_cancel: settings.orphan == Orphan::Cancel,
        cancel_on_interrupt: settings.cancel_on_interrupt,
    });
    let lines: shell::BatchLines =
        Box::new(move |count| reader.next(count).map_err(|unfit| anyhow::anyhow!("{unfit}")));
    match batch {
        Ok(role) => run_client(role, ensemble, (settings.json, settings.progress), Some(lines)),
        Err(unfit) => Ok(tell(&unfit)),
    }
}

fn tell(unfit: &Unfit) -> i32 {
    log::error!("{unfit}");
    unfit.code
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
