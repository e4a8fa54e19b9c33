//! The keeper's process, as the worker starts it, waits for it, and starts another.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::io::retry_on_intr;
use rustix::process::{Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::cgroup::{self, Cgroups};
use super::children::{self, keepers};
use super::hub::{self, Hub};
use super::keeper::SLOTS_END_WITHIN;
use super::mark::{Bears, EnvMark, OWNER_VAR};
use super::proc::{self, to_pid};
use super::wire::{self, Hello, Link, ToKeeper};
use super::{Confinement, ExecEvent, RunLimits, Unavailable};

/// What a keeper calls itself before the word `slots`.
const KEEPER_NAME: &str = "zkmw";
/// The pause before another keeper is started, after a second one that lived shorter than [`LONG_LIFE`] or could not be
/// started; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A keeper that lived so long was no failure from the start.
const LONG_LIFE: Duration = Duration::from_secs(10);
/// The first pause between two checks of what a dead keeper has left.
const FIRST_CHECK: Duration = Duration::from_micros(500);
/// The process that becomes the parent of all orphans.
const INIT: u32 = 1;
/// A process that does not die within this is reported.
const WARN_AFTER: Duration = Duration::from_secs(10);
/// The longest such pause.
const LAST_CHECK: Duration = Duration::from_millis(500);

/// Variables by which a service manager describes itself, its sockets, its run files and its credentials. None of it is
/// for what the service starts: a task that speaks to the watchdog would speak for us. Folders that the unit gives to
/// tasks (`STATE_DIRECTORY`, `CACHE_DIRECTORY`, `LOGS_DIRECTORY`, `CONFIGURATION_DIRECTORY`) are.
const SERVICE_VARS: [&str; 15] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "INVOCATION_ID",
    "SYSTEMD_EXEC_PID",
    "MANAGERPID",
    "RUNTIME_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
];

/// How keepers are started.
#[derive(Debug)]
pub(super) struct Starter {
    /// What is started, with the word `slots`.
    pub(super) program: PathBuf,
    /// What runs carry in their environment.
    pub(super) token: String,
    pub(super) own: proc::Identity,
    /// The number of this executor among those of this process.
    pub(super) number: u32,
    pub(super) wants_cgroups: bool,
    pub(super) oom_score: String,
    pub(super) descriptors: Option<u64>,
    pub(super) confinement: Confinement,
    /// Children that this process had before: none of ours.
    pub(super) strangers: BTreeSet<u32>,
}

impl Starter {
    /// Starts a keeper, with a folder of control groups of its own.
    pub(super) fn start(&self, hub: &Hub) -> anyhow::Result<(Child, Option<Cgroups>)> {
        let why_not = |error: &std::io::Error| log::debug!("no cgroups for what runs: {error}");
        let limits = &self.confinement.limits;
        let wanted = self.wants_cgroups || !limits.is_empty();
        let made = wanted.then(|| Cgroups::make(&self.own, self.number, limits));
        let cgroups = match made {
            Some(Err(error)) if !limits.is_empty() => return Err(no_limits(limits, &error).into()),
            made => made.and_then(|made| made.inspect_err(why_not).ok()),
        };
        let (ours, theirs) = wire::pair().context("cannot make a socket")?;
        let mut command = Command::new(&self.program);
        for name in SERVICE_VARS {
            command.env_remove(name);
        }
        // So that lists of processes show what it is, and not where its program was found.
        command.arg0(KEEPER_NAME).arg("slots").env(OWNER_VAR, &self.token).stdin(theirs);
        let page = hub.page.memfd().try_clone_to_owned().context("no room for a descriptor")?;
        let mut child = {
            // Held, so that nobody finds it among our children before it is known as a keeper.
            let mut keepers = keepers();
            let child = command.spawn().with_context(|| format!("cannot run {}", self.program.display()))?;
            keepers.insert(child.id());
            child
        };
        let hello = Hello {
            cgroups: cgroups.as_ref().map(|cgroups| cgroups.base().to_string_lossy().into_owned()),
            oom_score: self.oom_score.clone(),
            descriptors: self.descriptors,
            confinement: self.confinement.clone(),
        };
        let pid = child.id();
        let start_ticks = proc::stat(pid).ok().flatten().map_or(0, |stat| stat.start_ticks);
        let mut link: Link = ours;
        link.say_with(&ToKeeper::Hello(Box::new(hello)), vec![page]);
        let base = cgroups.as_ref().map(|cgroups| cgroups.base().to_path_buf());
        if let Err(error) = hub.take_keeper(hub::KeeperHandle { pid, start_ticks, link }, base) {
            // Its socket is closed, so it ends, and has started nothing.
            let _ = child.wait();
            keepers().remove(&pid);
            return Err(error).context("cannot listen to it");
        }
        Ok((child, cgroups))
    }

    /// Waits for the end of each keeper, and starts the next one, until the hub stops.
    pub(super) fn keep(&self, hub: &Arc<Hub>, first: (Child, Option<Cgroups>)) {
        let (mut child, mut cgroups) = first;
        // The first one is replaced at once: what ran is to run again soon.
        let mut pause = Duration::ZERO;
        loop {
            let born = Instant::now();
            let (why, is_clean) = await_end(&mut child);
            keepers().remove(&child.id());
            let stopping = hub.stopping.load(Ordering::SeqCst);
            if !stopping {
                log::error!("the keeper of slots, process {}, ended ({why}): killing what runs", child.id());
                let _ = hub
                    .events
                    .send(ExecEvent::SlotsLost { why: format!("the keeper of slots ended ({why})") });
            }
            self.inherit(&hub.close_slots(), cgroups.take(), is_clean);
            hub.keeper_gone("the keeper of slots ended, and what ran was killed");
            if stopping {
                return;
            }
            if born.elapsed() >= LONG_LIFE {
                pause = Duration::ZERO;
            }
            (child, cgroups) = loop {
                std::thread::sleep(pause);
                pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                if hub.stopping.load(Ordering::SeqCst) {
                    return hub.keeper_gone("the keeper of slots ended, and what ran was killed");
                }
                match self.start(hub) {
                    Ok(started) => break started,
                    Err(error) => {
                        log::error!("nothing can be run without a keeper of slots: {error:#}");
                        hub.no_keeper(&format!("cannot start a keeper of slots: {error:#}"));
                    }
                }
            };
            log::info!("another keeper of slots: process {}", child.id());
        }
    }

    /// The keeper's slots, and what they ran, are our children now. Slots end what they run, and then end. A
    /// slot that has not ended in time is killed, and so are the processes that ended slots have left.
    fn inherit(&self, slots: &[u32], cgroups: Option<Cgroups>, is_clean: bool) {
        let begun = Instant::now();
        let (mut pause, mut warned) = (FIRST_CHECK, false);
        loop {
            let left: Vec<u32> = slots.iter().copied().filter(|slot| children::is_ours(*slot)).collect();
            // A process that cannot be inspected may live.
            let listed = children::try_list();
            let mut is_unclear = listed.is_err();
            let mut others = Vec::new();
            for pid in listed.unwrap_or_default().into_iter().filter(|pid| !slots.contains(pid)) {
                match self.is_of_slots(pid, slots, is_clean) {
                    Ok(true) => others.push(pid),
                    Ok(false) => {}
                    Err(_) => is_unclear = true,
                }
            }
            if left.is_empty() && others.is_empty() && !is_unclear {
                break;
            }
            children::resume_these(&left);
            if begun.elapsed() >= SLOTS_END_WITHIN {
                children::kill(left.iter().copied());
            }
            children::kill(others.iter().copied());
            if begun.elapsed() >= WARN_AFTER && !std::mem::replace(&mut warned, true) {
                log::warn!(
                    "what a keeper has left does not die, or cannot be seen: {left:?}, {others:?}; still waiting"
                );
            }
            for pid in left.into_iter().chain(others).filter(|pid| children::has_ended(*pid)) {
                children::reap(pid);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LAST_CHECK);
        }
        if let Some(cgroups) = cgroups {
            cgroup::kill_and_wait(cgroups.base(), None);
        }
    }

    /// Whether a child of this process was started by one of these slots. We start keepers only, so any other child
    /// was, unless the slots had no child left (`is_clean`), or other processes' children can become ours.
    fn is_of_slots(&self, pid: u32, slots: &[u32], is_clean: bool) -> std::io::Result<bool> {
        if self.strangers.contains(&pid) || keepers().contains(&pid) {
            return Ok(false);
        }
        let may_be_others = self.own.pid == INIT || !self.strangers.is_empty();
        if !is_clean && !may_be_others {
            return Ok(true);
        }
        let mark = EnvMark { variable: OWNER_VAR, value: &self.token, since: self.own.start_ticks };
        let stat = proc::stat(pid)?;
        Ok(stat.is_some_and(|stat| slots.contains(&stat.session) || mark.on(&stat) != Bears::No))
    }
}

/// Why it ended, and whether it had no slots left. Lets it go on if it is stopped.
fn await_end(child: &mut Child) -> (String, bool) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
    let pid = to_pid(child.id());
    loop {
        match retry_on_intr(|| waitid(WaitId::Pid(pid), options)) {
            Ok(Some(status)) if status.stopped() => {
                let _ = kill_process(pid, Signal::CONT);
                // It is sent until it is taken.
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG);
            }
            seen => {
                return match child.wait() {
                    Ok(status) => (status.to_string(), status.success()),
                    Err(error) => (format!("{seen:?}, {error}"), false),
                };
            }
        }
    }
}

/// Why runs can have no limits.
fn no_limits(limits: &RunLimits, error: &std::io::Error) -> Unavailable {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Unavailable>()) {
        Some(Unavailable(why)) => Unavailable(why.clone()),
        None => Unavailable(format!(
            "{}: this worker can have no control groups ({error}); it needs version 2 of them, Linux 5.14, and to be \
             root's or a service with Delegate=yes",
            limits.settings()
        )),
    }
}
