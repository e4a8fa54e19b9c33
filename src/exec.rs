//! Processes: started, watched, signalled, and surely dead before their end is reported.
//!
//! Owns every process that zkmw runs for its user. The worker's side is the `hub`. It has one `keeper`, a process of
//! its own, which forks the slots; each `slot` is a process too, and parent, reader and guard of one run at a time.
//! All share the `shared_page`, which has the lease. Runs with a request share long-lived processes (`handler`), each
//! in a slot.
//!
//! It must not: decide what runs or when (the roles do), or say [`ExecEvent::Ended`] while a process of the run lives.

mod birth;
mod capture;
mod cgroup;
mod children;
mod descriptors;
mod handler;
mod hub;
mod keeper;
mod leftovers;
mod limits;
mod logs;
mod mailbox;
mod mark;
mod memory;
mod proc;
mod runfile;
mod shared_page;
mod slot;
mod spawn;
mod stopped;
mod system;
mod user;
mod vfork;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::Sender;

use crate::contract::worker::ProcessIdentity;
pub use crate::machine::NotStartedKind;
use crate::machine::{GroupSignal, Instant, RunId, RunOutput, RunReport, RunSpec};
use crate::threads;
use handler::HandlerPool;
use hub::Hub;
pub use hub::RenewedTooLate;
pub use limits::{RunLimits, Unavailable};
use logs::Carrier;
pub use logs::{LogSettings, WRITE_LOGS, write_logs};
pub use runfile::{Claim, Predecessor, RunFile};
use serde::{Deserialize, Serialize};
use shared_page::ENDLESS;
use spawn::Starter;
pub use user::User;
use wire::{Program, Streams};

/// The identity of this process on this host.
///
/// # Errors
///
/// If `/proc` does not say.
pub fn process_identity() -> anyhow::Result<ProcessIdentity> {
    let own = proc::Identity::own().context("cannot learn who we are from /proc")?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let proc::Identity { boot_id, pid_ns, pid, start_ticks } = own;
    Ok(ProcessIdentity { host, boot_id, pid_ns, pid, start_time: start_ticks })
}

/// The program that is running now, even if its file was replaced: its own keeper of slots.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// The life of a keeper of slots: what `zkmw slots` does.
///
/// # Errors
///
/// If no executor has started it, or it lacks something that it needs.
pub fn keep_slots() -> anyhow::Result<()> {
    keeper::run()
}

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
    /// The keeper is gone, and every group gets SIGKILL. Their ends are reported after this.
    SlotsLost {
        /// What became of it.
        why: String,
    },
}

/// What an executor has besides processes, so that they end when they must.
#[derive(Debug)]
pub struct Means {
    /// Where the sessions of what runs are written down, for a successor.
    pub run_file: Option<RunFile>,
    /// The program that is started as the keeper of slots, with the word `slots`: zkmw's own.
    pub program: PathBuf,
    /// Whether nothing runs but under a [lease](Executor::lease).
    pub leased: bool,
    /// Whether each slot gets a cgroup for its runs, if we may have them.
    pub cgroups: bool,
    /// Where all is kept that runs print, if it is.
    pub logs: Option<LogSettings>,
    /// In what runs differ from us.
    pub confinement: Confinement,
}

/// In what runs differ from the process that has them run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Whose they are; `None` if whose we are.
    pub user: Option<User>,
    /// Whether they have a minimal environment instead of ours.
    pub clean_env: bool,
    /// How much each may have.
    pub limits: RunLimits,
}

/// Runs process groups. Dropping it kills them all.
#[derive(Debug)]
pub struct Executor {
    hub: Arc<Hub>,
    handlers: Arc<HandlerPool>,
    leased: bool,
    log_limit: u64,
}

impl Executor {
    /// Starts without any runs. Begins a new run file, if there is one.
    ///
    /// `events` must be unbounded, or read by another thread than the one that calls [`Executor::start`].
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if runs are to have limits, and can't; any other if `/proc` cannot be read, or there is no room
    /// for a process, a socket and two threads.
    pub fn new(events: Sender<ExecEvent>, means: Means) -> anyhow::Result<Executor> {
        keep_zombies()?;
        static EXECUTORS: AtomicU32 = AtomicU32::new(0);
        let own = proc::Identity::own().context("cannot learn who we are from /proc")?;
        let strangers =
            children::try_list().context("cannot list our children in /proc")?.into_iter().collect();
        keeper::become_subreaper();
        let hub = Arc::new(Hub::new(events, means.run_file)?);
        if !means.leased {
            hub.page.begin_anew(ENDLESS);
        }
        let starter = Starter {
            program: means.program.clone(),
            token: own.token(),
            own,
            number: EXECUTORS.fetch_add(1, Ordering::Relaxed),
            wants_cgroups: means.cgroups,
            oom_score: memory::score(),
            descriptors: descriptors::raise_limit(),
            confinement: means.confinement,
            strangers,
        };
        let first = starter.start(&hub).context("cannot start the keeper of slots")?;
        let (listens, keeps) = (Arc::clone(&hub), Arc::clone(&hub));
        threads::spawn("exec", move || listens.live()).context("cannot start a thread")?;
        threads::spawn("exec-keeper", move || starter.keep(&keeps, first))
            .context("cannot start a thread")?;
        let log_limit = means.logs.as_ref().map_or(0, |logs| logs.limit);
        // After the keeper, which has us enter the control group that all of ours are in.
        if let Some(settings) = means.logs.filter(|logs| logs.limit > 0) {
            let carrier = Carrier::start(means.program, settings).context("cannot start what writes logs")?;
            let _ = hub.logs.set(carrier);
        }
        let handlers = Arc::new(HandlerPool::new(Arc::clone(&hub)));
        Ok(Executor { hub, handlers, leased: means.leased, log_limit })
    }

    /// Starts a run; the answer is `Started` and then `Ended`, or `NotStarted`.
    ///
    /// # Panics
    ///
    /// If the id is in use.
    pub fn start(&self, run: RunId, spec: RunSpec) {
        if spec.request.is_some() {
            return self.handlers.start(run, spec);
        }
        let streams = match spec.output {
            RunOutput::Capture { limit } => Streams::Capture { limit, log_limit: self.log_limit },
            RunOutput::Inherit => Streams::Inherit,
        };
        self.hub.start(run, Program { run: run.0, argv: spec.argv, env: spec.env, streams });
    }

    /// What runs may run until then, and what is started may begin before then.
    ///
    /// # Errors
    ///
    /// If the lease before was found over while something runs. Then everything gets SIGKILL; it is as after
    /// [`ExecEvent::SlotsLost`], whatever was sent before.
    pub fn lease(&self, until: Instant) -> Result<(), RenewedTooLate> {
        if self.leased { self.hub.lease(until.as_nanos(), self.handlers.len() > 0) } else { Ok(()) }
    }

    /// Signals every process of the run's group; nothing happens if its leader has ended, for then what is
    /// left of the group has got SIGKILL anyway.
    ///
    /// A run that has not got to its program yet gets the signal as soon as it has, or never starts.
    pub fn signal(&self, run: RunId, signal: GroupSignal) {
        if !self.handlers.signal(run, signal) {
            self.hub.signal(run, signal);
        }
    }

    /// Sends SIGKILL to every group that there is now, and waits for 5 s at most until all are dead; whether they are.
    /// Their events still come.
    pub fn kill_all(&self) -> bool {
        self.handlers.kill_all();
        self.hub.kill_all();
        self.hub.wait_dead(KILL_ALL_WITHIN) && self.handlers.wait_over(KILL_ALL_WITHIN)
    }

    /// How many runs have been asked for whose last event has not been sent yet.
    pub fn live(&self) -> usize {
        self.hub.len() + self.handlers.len()
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
        self.hub.stop(dead);
        if !dead || !self.hub.wait_closed(KILL_ALL_WITHIN) {
            // The run file goes on saying that something lives.
            log::error!("process groups outlive us that cannot be killed now");
        }
        self.hub.logs.get().into_iter().for_each(|logs| logs.stop());
    }
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
