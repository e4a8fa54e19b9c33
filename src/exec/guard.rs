//! The guard, seen from the executor: a process of ours that kills what we run when we no longer can.
//!
//! One guard serves all runs of an executor. It hears of every group before its program runs, and until when
//! what runs may run. Our death closes its pipe; if we are stopped, hang, or the machine slept, the time that it
//! was told last comes. In either case it sends SIGKILL to all.
//!
//! What is owed to it here:
//!
//! - No program runs of which it was not told: [`Guard::here`] says until when the child may begin, and without a
//!   guard that is never.
//! - If it dies, everything that runs gets SIGKILL, and the role is told before it hears of any end that this
//!   brings. Then another guard is started, and is told of what is not dead yet.
//! - A longer lease that was written only after the one before had ended may have come too late:
//!   [`Guard::lease`] says so.
//!
//! A handler runs something at times only, and may idle for hours without a lease. Its group is told gone when it has had
//! no request for a moment ([`LINGER`]), so that a busy one costs no message at all. A request may go to one whose group
//! is still known to the guard only as long as no lease has ended meanwhile; so what idled at such a time is killed.

pub(super) mod message;
pub(super) mod process;
pub(super) mod voice;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::Sender;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{Errno, retry_on_intr, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::ExecEvent;
use super::child;
use super::mark::{OWNER_VAR, RUN_VAR};
use super::proc::{boottime_nanos, to_pid};
use super::table::Table;
use crate::threads;
use message::Message;

/// What a guard calls itself before the word `guard`.
const GUARD_NAME: &str = "zkmw";
/// The pause before another guard is started, after one that lived shorter than [`LONG_LIFE`] or could not be
/// started; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A guard that lived so long was no failure from the start.
const LONG_LIFE: Duration = Duration::from_secs(10);

/// How long a handler's group that has nothing to do is left with the guard.
pub(super) const LINGER: Duration = Duration::from_millis(100);
/// It is not if the lease is as short as this: it would be killed if it came to be told a little late.
const SHORT_LEASE: Duration = Duration::from_millis(300);

/// For a child that may begin whenever it gets there.
pub(super) const WHENEVER: u64 = u64::MAX - 1;
/// For a child that may not begin: long ago. An eventfd takes no 0.
pub(super) const NEVER: u64 = 1;
/// For one that may not, since its end could not be brought about.
pub(super) const NO_ROOM: u64 = 2;

/// Keeps a guard alive, and tells it what it must know.
#[derive(Debug)]
pub(super) struct Guard {
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    program: PathBuf,
    /// What our runs carry in their environment.
    token: String,
    /// Where they have their cgroups.
    cgroups: Option<PathBuf>,
    table: Arc<Table>,
    events: Sender<ExecEvent>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The guard that lives: our unreaped child, and the writing end of its pipe.
    guard: Option<(u32, OwnedFd)>,
    until: u64,
    /// Each group that may live and that the guard was told of, by its id.
    groups: BTreeMap<u32, Group>,
    /// When the last of them went, on the clock of `until`.
    emptied_at: u64,
    stopping: bool,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    start_ticks: u64,
    /// It has something to run; only handlers may have nothing.
    busy: bool,
}

impl Guard {
    /// Starts the first guard: `program`, with the arguments that [`process::run`] takes.
    pub(super) fn start(
        program: PathBuf,
        token: String,
        cgroups: Option<PathBuf>,
        table: Arc<Table>,
        events: Sender<ExecEvent>,
    ) -> anyhow::Result<Guard> {
        let link = Arc::new(Link { program, token, cgroups, table, events, inner: Mutex::default() });
        let child = link.spawn().context("cannot start the guard process")?;
        let watched = Arc::clone(&link);
        threads::spawn("exec-guard", move || watched.keep(child)).context("cannot start a thread")?;
        Ok(Guard { link })
    }

    /// A child waits at its gate. Returns until when it may begin, in nanoseconds of `CLOCK_BOOTTIME`.
    pub(super) fn here(&self, pgid: u32, start_ticks: u64) -> u64 {
        let mut inner = self.link.lock();
        inner.groups.insert(pgid, Group { start_ticks, busy: true });
        if inner.tell(Message::Here { pgid, start_ticks }) { inner.until.max(NEVER) } else { NEVER }
    }

    /// The same of a handler that is about to get a request.
    pub(super) fn begin(&self, pgid: u32, start_ticks: u64) -> u64 {
        let mut inner = self.link.lock();
        match inner.groups.get_mut(&pgid) {
            Some(group) => {
                group.busy = true;
                if inner.guard.is_some() { inner.until.max(NEVER) } else { NEVER }
            }
            None => {
                drop(inner);
                self.here(pgid, start_ticks)
            }
        }
    }

    /// A handler has answered, and has nothing to do now. Whether the guard still has to be told, by [`Guard::settle`].
    pub(super) fn rest(&self, pgid: u32) -> bool {
        let mut inner = self.link.lock();
        let short = boottime_nanos().saturating_add(SHORT_LEASE.as_nanos() as u64) >= inner.until;
        if short {
            inner.gone(pgid);
        } else if let Some(group) = inner.groups.get_mut(&pgid) {
            group.busy = false;
        }
        !short
    }

    /// A handler that had nothing to do a moment ago is gone for the guard, unless it has something now.
    pub(super) fn settle(&self, pgid: u32) {
        let mut inner = self.link.lock();
        if inner.groups.get(&pgid).is_some_and(|group| !group.busy) {
            inner.gone(pgid);
        }
    }

    /// The group is dead.
    pub(super) fn gone(&self, pgid: u32) {
        self.link.lock().gone(pgid);
    }

    /// Whether nothing may run now.
    pub(super) fn is_lapsed(&self) -> bool {
        let inner = self.link.lock();
        inner.guard.is_none() || boottime_nanos() >= inner.until
    }

    /// What runs may run until then. Only one thread may call this and hand requests to handlers.
    ///
    /// # Errors
    ///
    /// If the time told before is over, and something runs: the guard may have begun to kill. Then everything is
    /// killed.
    pub(super) fn lease(&self, until: u64) -> Result<(), String> {
        let mut inner = self.link.lock();
        let before = std::mem::replace(&mut inner.until, until);
        inner.tell(Message::Lease { until });
        // Looked at after the message was written: what is in the pipe in time the guard reads before it acts.
        let late = boottime_nanos() >= before;
        let busy = inner.groups.values().any(|group| group.busy);
        let knew_some = !inner.groups.is_empty() || inner.emptied_at >= before;
        drop(inner);
        if late && busy {
            self.link.table.kill_all();
            return Err("the lease was renewed too late".to_owned());
        }
        if late && knew_some {
            // It may have begun to kill; and when it does, it takes all that bears our mark.
            self.link.table.kill_idle_handlers();
        }
        Ok(())
    }

    /// Ends the guard: in peace if everything is `dead`; otherwise it goes on killing without us.
    pub(super) fn stop(&self, dead: bool) {
        let mut inner = self.link.lock();
        inner.stopping = true;
        if dead {
            inner.tell(Message::Stop);
        }
        inner.guard = None;
    }
}

impl Inner {
    fn gone(&mut self, pgid: u32) {
        self.groups.remove(&pgid);
        if self.groups.is_empty() {
            self.emptied_at = boottime_nanos();
        }
        self.tell(Message::Gone { pgid });
    }

    /// Whether the guard will read it. A guard that doesn't read is killed.
    fn tell(&mut self, message: Message) -> bool {
        let Some((pid, pipe)) = &self.guard else { return false };
        match retry_on_intr(|| write(pipe, &message.encode())) {
            Ok(_) => true,
            Err(error) => {
                if error == Errno::AGAIN {
                    log::error!("the guard, process {pid}, does not read what it is told: killing it");
                    // It is our unreaped child as long as it stands here.
                    let _ = kill_process(to_pid(*pid), Signal::KILL);
                }
                false
            }
        }
    }
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a guard, and tells it how things stand.
    fn spawn(&self) -> anyhow::Result<Child> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        fcntl_setfl(&writer, OFlags::NONBLOCK).context("cannot set up a pipe")?;
        let mut command = Command::new(&self.program);
        child::forget_service(&mut command);
        let child = command
            // So that lists of processes show what it is, and not where its program was found.
            .arg0(GUARD_NAME)
            .args(["guard", &self.token])
            .args(&self.cgroups)
            // It must not be taken for a run: of ours, or of somebody's whose run we are.
            .env_remove(OWNER_VAR)
            .env_remove(RUN_VAR)
            .stdin(reader)
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let mut inner = self.lock();
        let until = inner.until;
        let groups: Vec<(u32, u64)> =
            inner.groups.iter().map(|(pgid, group)| (*pgid, group.start_ticks)).collect();
        inner.guard = Some((child.id(), writer));
        inner.tell(Message::Lease { until });
        for (pgid, start_ticks) in groups {
            inner.tell(Message::Here { pgid, start_ticks });
        }
        Ok(child)
    }

    /// Waits for the end of each guard, and starts the next one.
    fn keep(&self, first: Child) {
        let mut child = first;
        let mut pause = FIRST_PAUSE;
        loop {
            let born = Instant::now();
            let Some(why) = self.await_end(&mut child) else { return };
            log::error!("the guard, process {}, ended ({why}): killing what runs", child.id());
            let _ = self.events.send(ExecEvent::Unguarded { why: format!("the guard ended ({why})") });
            self.table.kill_all();
            if born.elapsed() >= LONG_LIFE {
                pause = FIRST_PAUSE;
            }
            child = loop {
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
                if self.lock().stopping {
                    return;
                }
                match self.spawn() {
                    Ok(child) => break child,
                    Err(error) => log::error!("nothing can be run without a guard: {error:#}"),
                }
            };
            log::info!("another guard: process {}", child.id());
        }
    }

    /// Why it ended; `None` if it was meant to.
    fn await_end(&self, child: &mut Child) -> Option<String> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let seen = retry_on_intr(|| waitid(WaitId::Pid(to_pid(child.id())), options));
        let stopping = {
            // While it is not reaped nobody else can have its number, so it leaves the link before that.
            let mut inner = self.lock();
            inner.guard = None;
            inner.stopping
        };
        let status = child.wait();
        match (stopping, seen, status) {
            (true, _, _) => None,
            (false, Ok(_), Ok(status)) => Some(status.to_string()),
            (false, seen, status) => Some(format!("{seen:?}, {status:?}")),
        }
    }
}
