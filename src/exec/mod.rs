//! Process groups: started, watched, signalled, and surely dead before their end is told.
//!
//! Owns every process that zkmw runs for its user. Each run is a session, and so a process group, of its own, and has
//! a thread of its own (`run`); one `table` knows them all and guards signals against recycled numbers; the `roll`
//! writes every group into the run file (`runfile`) before its program runs; and the `guard`, a process of its own, kills them all when this process cannot.
//! Runs with a request share long-lived processes (`handler`), each a group of its own as well.
//!
//! It must not: decide what runs or when (the roles do), or say [`ExecEvent::Ended`] while a process of the
//! group lives. A process that leaves its group (`setsid`) is ended too where each run has a `cgroup`, and as far
//! as its environment tells whose it is (`sweep`) where not.

mod capture;
mod cgroup;
mod child;
mod descriptors;
mod group;
mod guard;
mod handler;
mod mark;
mod memory;
mod proc;
mod roll;
mod run;
mod runfile;
mod stopped;
mod sweep;
mod table;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::Sender;
use rustix::event::{EventfdFlags, eventfd};

use crate::contract::worker::ProcessIdentity;
pub use crate::machine::NotStartedKind;
use crate::machine::{GroupSignal, Instant, RunId, RunReport, RunSpec};
use crate::threads;
use cgroup::Cgroups;
use descriptors::{Stock, too_few};
use guard::Guard;
pub use guard::voice::Voice;
use handler::Pool;
use memory::Memory;
use roll::Roll;
use run::Shared;
pub use runfile::{Claim, Predecessor, RunFile};
use table::Table;

/// Who this process is, on this host.
///
/// # Errors
///
/// If `/proc` does not tell.
pub fn process_identity() -> anyhow::Result<ProcessIdentity> {
    let own = proc::Identity::own().context("cannot learn who we are from /proc")?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let proc::Identity { boot_id, pid_ns, pid, start_ticks } = own;
    Ok(ProcessIdentity { host, boot_id, pid_ns, pid, start_time: start_ticks })
}

/// The program that is running now, even if its file was replaced: its own guard.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// The life of a guard process: what `zkmw guard` does, with these arguments.
///
/// # Errors
///
/// If it was not started by an executor, or lacks what it stands on.
pub fn guard(args: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    guard::process::run(args)
}

/// Stack of a run's thread. `execvp` of a script without a first line copies its arguments to the stack.
const STACK_BYTES: usize = 512 << 10;
/// How long [`Executor::kill_all`] waits for what it has killed.
const KILL_ALL_WITHIN: Duration = Duration::from_secs(5);

/// What becomes of a run: `Started` and then `Ended`, or `NotStarted`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// The program runs.
    Started {
        /// The run.
        run: RunId,
        /// The leader of its group; the group's id, too.
        pid: u32,
    },
    /// The program does not run and never did.
    NotStarted {
        /// The run.
        run: RunId,
        /// Whose fault it is, and so whether another try could do better.
        kind: NotStartedKind,
        /// The reason, for the user.
        why: String,
    },
    /// Every process of the group is dead.
    Ended {
        /// The run.
        run: RunId,
        /// How it ended, and what it printed.
        report: RunReport,
    },
    /// The guard is gone, and every group gets SIGKILL. Their ends are told after this.
    Unguarded {
        /// What became of it.
        why: String,
    },
}

/// What an executor has besides processes, so that they end when they must.
#[derive(Debug, Default)]
pub struct Means {
    /// Where the groups that run are written down, for a successor.
    pub run_file: Option<RunFile>,
    /// The program that is started as the guard, with the arguments that [`guard`] takes after the word `guard`.
    /// With it nothing runs but under a [lease](Executor::lease). Without it runs end with this process only as far
    /// as the kernel sees to it.
    pub guard: Option<PathBuf>,
    /// Whether each run gets a cgroup, if we may have them.
    pub cgroups: bool,
    /// Whether what has left its group is looked for even if its run succeeded, and has no cgroup. It costs more than
    /// many a task.
    pub sweep_always: bool,
}

/// Runs process groups. Dropping it kills them all.
#[derive(Debug)]
pub struct Executor {
    shared: Arc<Shared>,
    handlers: Arc<Pool>,
    /// `None` only while it is dropped.
    roll: Option<Roll>,
    guard: Option<Arc<Guard>>,
}

impl Executor {
    /// Starts without any runs, and begins the run file, if there is one, anew.
    ///
    /// `events` must be unbounded, or read by another thread than the one that calls [`Executor::start`].
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or there is no room for a pipe and a thread.
    pub fn new(events: Sender<ExecEvent>, means: Means) -> anyhow::Result<Executor> {
        keep_zombies()?;
        descriptors::raise_limit();
        static EXECUTORS: AtomicU32 = AtomicU32::new(0);
        let number = EXECUTORS.fetch_add(1, Ordering::Relaxed);
        let own = proc::Identity::own().context("cannot learn who we are from /proc")?;
        let table = Arc::new(Table::default());
        let token = own.token();
        let why_not = |error: &std::io::Error| log::debug!("no cgroups for what runs: {error}");
        let cgroups = means.cgroups.then(|| Cgroups::make(&own, number).inspect_err(why_not).ok()).flatten();
        let cgroups = cgroups.map(Arc::new);
        let base = cgroups.as_ref().map(|cgroups| cgroups.base().to_path_buf());
        let start = |program| Guard::start(program, token.clone(), base, Arc::clone(&table), events.clone());
        let guard = means.guard.map(start).transpose()?.map(Arc::new);
        let roll = Roll::start(Arc::clone(&table), means.run_file, guard.clone(), cgroups.clone())?;
        let shared = Shared {
            stock: Stock::new().context("cannot make an eventfd")?,
            memory: Memory::new(),
            table,
            events,
            roll: roll.announcer().clone(),
            guard: guard.clone(),
            cgroups,
            token,
            number,
            sweep_always: means.sweep_always,
        };
        let shared = Arc::new(shared);
        let handlers = Arc::new(Pool::new(Arc::clone(&shared)));
        Ok(Executor { shared, handlers, roll: Some(roll), guard })
    }

    /// Starts a run; the answer is `Started` and then `Ended`, or `NotStarted`. One with a request goes to a handler.
    ///
    /// # Panics
    ///
    /// If the id is in use.
    pub fn start(&self, run: RunId, spec: RunSpec) {
        if spec.request.is_some() {
            return self.handlers.start(run, spec);
        }
        let no_room = |why: String| self.shared.not_started(run, NotStartedKind::Shortage, why);
        let Some(reserve) = self.shared.stock.take() else { return no_room(too_few()) };
        let gate = match eventfd(0, EventfdFlags::CLOEXEC) {
            Ok(gate) => Arc::new(gate),
            Err(_) => return no_room(too_few()),
        };
        self.shared.table.add(run, Arc::clone(&gate));
        let shared = Arc::clone(&self.shared);
        let live = move || shared.live(run, &spec, gate, reserve);
        if let Err(error) = threads::spawn_sized(&format!("run-{}", run.0), STACK_BYTES, live) {
            no_room(no_thread(&error));
        }
    }

    /// What runs may run until then, and what is started may begin before then. To be called by the thread that calls
    /// [`Executor::start`].
    ///
    /// # Errors
    ///
    /// If the lease before has ended, and something runs: the guard may have begun to kill. Then everything gets
    /// SIGKILL; it is as after [`ExecEvent::Unguarded`], whatever was sent before.
    pub fn lease(&self, until: Instant) -> Result<(), String> {
        self.guard.as_ref().map_or(Ok(()), |guard| guard.lease(until.as_nanos()))
    }

    /// Signals every process of the run's group; nothing happens if its leader has ended, for then what is
    /// left of the group has got SIGKILL anyway.
    ///
    /// A run that has not got to its program yet gets the signal as soon as it has, or never starts. A handler is not used
    /// again after a signal to its run, whatever it makes of it.
    pub fn signal(&self, run: RunId, signal: GroupSignal) {
        self.shared.table.signal(run, signal);
    }

    /// Sends SIGKILL to every group that there is now, handlers included, and waits for 5 s at most until all are dead;
    /// whether they are. Their events still come.
    pub fn kill_all(&self) -> bool {
        self.shared.table.kill_all();
        self.shared.table.wait_dead(KILL_ALL_WITHIN)
    }

    /// How many runs have been asked for whose last event has not been sent yet.
    pub fn live(&self) -> usize {
        self.shared.table.len()
    }

    /// Whether the last event of every run has been sent.
    pub fn is_idle(&self) -> bool {
        self.live() == 0
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.handlers.close();
        let dead = self.kill_all();
        // The thread of a run that was just told may hold on to them for a moment.
        self.shared.cgroups.iter().for_each(|cgroups| cgroups.close());
        if let Some(guard) = &self.guard {
            guard.stop(dead);
        }
        match self.roll.take() {
            Some(roll) if dead => roll.stop(),
            // The run file must go on saying that something lives.
            _ => log::error!("process groups outlive us that cannot be killed now"),
        }
    }
}

/// Why nothing can be started, in words.
fn no_thread(error: &std::io::Error) -> String {
    format!(
        "no room for another thread ({error}); raise the limit (ulimit -u, TasksMax=), or have fewer slots"
    )
}

/// If SIGCHLD is ignored, as a careless parent may have left it, the kernel reaps our children at once: their
/// exit codes would be lost, and their numbers given to others while we still signal them.
fn keep_zombies() -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let sigchld = signal_hook::consts::SIGCHLD;
    if ignored & (1 << (sigchld - 1)) != 0 {
        // Any handler will do.
        signal_hook::flag::register(sigchld, Arc::default()).context("cannot stop ignoring SIGCHLD")?;
    }
    Ok(())
}
