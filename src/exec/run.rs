//! The life of one run, on a thread of its own: start, watch, and an end that is one.
//!
//! The order at the end is what the guarantee "one attempt at a time" rests on:
//!
//! 1. The leader is a zombie: nobody else can have its number, so SIGKILL to the group is safe.
//! 2. It is reaped under the table's lock; from now on nothing is sent to the number.
//! 3. We wait, for ever if need be, until no process of the group is left, and end what has left it.
//! 4. What they wrote stands in the pipes now. It is read without waiting: a process that has left the group
//!    may hold a pipe open for ever.
//! 5. Only then the end is told.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Sender;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, read};
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, waitid};

use super::capture::Capture;
use super::cgroup::Cgroups;
use super::child::{self, Failure};
use super::descriptors::{Reserve, Stock};
use super::group::Suspect;
use super::guard::Guard;
use super::mark::run_mark;
use super::memory::Memory;
use super::proc;
use super::roll::Announcer;
use super::stopped::{LOOK_EVERY, StopWatch};
use super::sweep::RunStrays;
use super::table::{Signalled, Table};
use super::{ExecEvent, NotStartedKind};
use crate::machine::{Ended, RunId, RunOutput, RunReport, RunSpec};

/// Bytes read from a pipe at once: what a pipe holds, unless somebody made it larger.
pub(super) const READ_BYTES: usize = 64 << 10;
/// Bytes read from a pipe after the group is dead. More than any pipe holds (1 MiB unless root allowed more);
/// what comes beyond is from a process that has left the group.
const DRAIN_BYTES: u64 = 4 << 20;
/// How often the leader is looked at if no pidfd could be opened (no descriptors left).
const LOOK_WITHOUT_PIDFD: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// The pause after a `poll` that failed for want of memory.
pub(super) const POLL_FAILED_PAUSE: Duration = Duration::from_millis(20);

/// The variable that names a task to its program.
const TASK_VAR: &str = "ZKMW_TASK";

/// What the threads of all runs share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) stock: Stock,
    pub(super) memory: Memory,
    pub(super) table: Arc<Table>,
    pub(super) events: Sender<ExecEvent>,
    pub(super) roll: Announcer,
    pub(super) guard: Option<Arc<Guard>>,
    pub(super) cgroups: Option<Arc<Cgroups>>,
    /// Marks in the environment what this process has started.
    pub(super) token: String,
    /// Whether what has left its group is looked for even if its run succeeded.
    pub(super) sweep_always: bool,
    /// Tells the executors of this process apart.
    pub(super) number: u32,
}

impl Shared {
    /// There is no process: tells so and forgets the run.
    pub(super) fn not_started(&self, run: RunId, kind: NotStartedKind, why: String) {
        self.over(run, ExecEvent::NotStarted { run, kind, why });
    }

    /// Every process of the run is dead: tells so and forgets it.
    fn over(&self, run: RunId, event: ExecEvent) {
        self.roll.gone(run);
        self.table.dead(run);
        // Nobody listens any more: so be it.
        let _ = self.events.send(event);
        self.table.remove(run);
    }

    /// Ends what has left the run's group: in its cgroup all of it. Without one, a task that succeeded by itself gets no
    /// further attempt that it could disturb, and to look for it costs more than many a task; so only others are looked after.
    fn end_strays(&self, run: RunId, strays: &RunStrays<'_>, succeeded: bool) {
        match &self.cgroups {
            Some(cgroups) if cgroups.has(run) => cgroups.empty(run),
            Some(_) | None if succeeded && !self.sweep_always => {}
            Some(_) | None => strays.end(|| self.table.leaders()),
        }
    }

    /// From the fork to the end. Runs on the run's own thread.
    pub(super) fn live(&self, run: RunId, spec: &RunSpec, gate: Arc<OwnedFd>, mut reserve: Reserve) {
        let mark = run_mark(&self.token, self.number, run);
        let strays = RunStrays { mark: &mark, since: proc::now_ticks() };
        let kills = self.memory.kills();
        reserve.start();
        let mut child = match child::spawn(run, spec, (&self.token, &mark), self, &gate) {
            Ok(child) => child,
            Err(Failure { kind, why }) => {
                drop(reserve);
                // It may have got as far as into its cgroup.
                self.cgroups.iter().for_each(|cgroups| cgroups.empty(run));
                return self.not_started(run, kind, why);
            }
        };
        drop(gate);
        let started_ms = now_ms();
        let leader = child.id();
        self.table.running(run, leader, None);
        let _ = self.events.send(ExecEvent::Started { run, pid: leader });
        let mut stdout = Stream::new(child.stdout.take().map(OwnedFd::from), spec.output);
        let mut stderr = Stream::new(child.stderr.take().map(OwnedFd::from), spec.output);

        watch(leader, open_pidfd(leader), &mut stdout, &mut stderr, || name_of(spec));
        let ended_ms = now_ms();
        reserve.end();
        let (ended, signalled) = self.bury(run, leader, &strays, true);
        stdout.drain();
        stderr.drain();
        let detail = if signalled.in_life { None } else { self.memory.explain(ended, kills) };

        let (stdout, stderr) = (stdout.capture.finish(), stderr.capture.finish());
        self.over(
            run,
            ExecEvent::Ended {
                run,
                report: RunReport {
                    ended,
                    detail,
                    stdout,
                    stderr,
                    started_ms,
                    ended_ms,
                    signalled: signalled.in_life,
                },
            },
        );
    }

    /// The leader is a zombie: ends, for good, what is left of it. One that exits with 0 unasked has succeeded only if
    /// it `may_succeed`.
    pub(super) fn bury(
        &self,
        run: RunId,
        leader: u32,
        strays: &RunStrays<'_>,
        may_succeed: bool,
    ) -> (Ended, Signalled) {
        let (status, signalled) = self.table.reap(run, leader);
        let ended = how_it_ended(leader, status);
        Suspect {
            pgid: leader,
            leader_start_ticks: None,
            last_birth_ticks: proc::now_ticks(),
            token: &self.token,
            held_until: 0,
        }
        .make_empty(None);
        self.end_strays(run, strays, may_succeed && ended == Ended::Exit(0) && !signalled.in_life);
        (ended, signalled)
    }
}

/// One output stream of a run.
struct Stream {
    /// `None` once everybody has closed it.
    pipe: Option<OwnedFd>,
    capture: Capture,
    buffer: Vec<u8>,
}

impl Stream {
    fn new(pipe: Option<OwnedFd>, output: RunOutput) -> Stream {
        let limit = match output {
            RunOutput::Capture { limit } => limit,
            RunOutput::Inherit => 0,
        };
        let pipe = pipe.filter(|pipe| {
            let nonblocking = fcntl_getfl(pipe).and_then(|flags| fcntl_setfl(pipe, flags | OFlags::NONBLOCK));
            // It cannot fail on a pipe of ours. If it does, losing output is better than waiting for ever.
            nonblocking.inspect_err(|error| log::error!("cannot read from a pipe: {error}")).is_ok()
        });
        Stream { pipe, capture: Capture::new(limit), buffer: Vec::new() }
    }

    /// Reads once; how many bytes, 0 if there is nothing now or never again.
    fn read(&mut self) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        self.buffer.clear();
        // Reserved on first use only: most runs print little or nothing.
        self.buffer.reserve(READ_BYTES);
        match read(pipe, spare_capacity(&mut self.buffer)) {
            Ok(0) => self.pipe = None,
            Ok(_) => self.capture.push(&self.buffer),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => {
                log::warn!("cannot read from a pipe: {error}");
                self.pipe = None;
            }
        }
        self.buffer.len()
    }

    /// Reads what is there, up to [`DRAIN_BYTES`].
    fn drain(&mut self) {
        let mut drained = 0;
        while drained < DRAIN_BYTES {
            match self.read() {
                0 => break,
                bytes => drained += bytes as u64,
            }
        }
        self.pipe = None;
    }
}

/// `None` if there are no descriptors left.
pub(super) fn open_pidfd(leader: u32) -> Option<OwnedFd> {
    let pidfd = pidfd_open(proc::to_pid(leader), PidfdFlags::empty());
    pidfd
        .inspect_err(|error| log::warn!("no pidfd for process {leader}, looking at it in turns: {error}"))
        .ok()
}

/// What is run, for the log.
fn name_of(spec: &RunSpec) -> String {
    let task = spec.env.iter().find(|(name, _)| name == TASK_VAR);
    task.map_or_else(|| "the command".to_owned(), |(_, task)| format!("task {task}"))
}

/// Reads both streams until the leader is a zombie.
fn watch(
    leader: u32,
    pidfd: Option<OwnedFd>,
    stdout: &mut Stream,
    stderr: &mut Stream,
    name: impl Fn() -> String,
) {
    let (mut stopped, mut looked) = (StopWatch::default(), Instant::now());
    let look_every = timespec(LOOK_EVERY);
    let timeout = if pidfd.is_some() { &look_every } else { &LOOK_WITHOUT_PIDFD };
    loop {
        let sources = [pidfd.as_ref(), stdout.pipe.as_ref(), stderr.pipe.as_ref()];
        let ready = match wait_for(sources, Some(timeout)) {
            Ok(ready) => ready,
            Err(Errno::INTR) => continue,
            Err(error) => {
                log::warn!("cannot poll the pipes of process {leader}: {error}");
                std::thread::sleep(POLL_FAILED_PAUSE);
                [true; 3]
            }
        };
        let [leader_ready, stdout_ready, stderr_ready] = ready;
        if stdout_ready {
            stdout.read();
        }
        if stderr_ready {
            stderr.read();
        }
        if (leader_ready || pidfd.is_none()) && is_over(leader) {
            return;
        }
        if looked.elapsed() >= LOOK_EVERY {
            looked = Instant::now();
            stopped.look(leader, &name);
        }
    }
}

/// Waits until one of the sources has something to say; which ones have.
fn wait_for(sources: [Option<&OwnedFd>; 3], timeout: Option<&Timespec>) -> Result<[bool; 3], Errno> {
    let mut polled: Vec<PollFd<'_>> =
        sources.iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)).collect();
    poll(&mut polled, timeout)?;
    let mut answers = polled.iter().map(|fd| !fd.revents().is_empty());
    Ok(sources.map(|source| source.is_some() && answers.next() == Some(true)))
}

/// Whether the leader is a zombie; it stays one. A leader that somebody else has reaped counts, too.
pub(super) fn is_over(leader: u32) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    match waitid(WaitId::Pid(proc::to_pid(leader)), options) {
        Ok(status) => status.is_some(),
        Err(error) => error != Errno::INTR,
    }
}

fn how_it_ended(leader: u32, status: Result<Option<WaitIdStatus>, Errno>) -> Ended {
    let status = status.map(|status| status.and_then(|status| decode(&status)));
    match status {
        Ok(Some(ended)) => ended,
        other => {
            log::error!("process {leader} was reaped by somebody else, so its exit code is lost: {other:?}");
            Ended::Signal(Signal::KILL.as_raw())
        }
    }
}

fn decode(status: &WaitIdStatus) -> Option<Ended> {
    let exit = status.exit_status().map(Ended::Exit);
    exit.or_else(|| status.terminating_signal().map(Ended::Signal))
}

pub(super) fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as _, tv_nsec: time.subsec_nanos().into() }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::process::{Command, Stdio};

    #[test]
    fn a_pipe_that_never_gets_empty_is_read_for_a_while_only() {
        let endless = File::open("/dev/zero").unwrap();
        let mut stream = Stream::new(Some(endless.into()), RunOutput::Capture { limit: 0 });
        stream.drain();
        let omitted = stream.capture.finish().omitted;
        assert!((DRAIN_BYTES..=DRAIN_BYTES + READ_BYTES as u64).contains(&omitted), "{omitted}");
    }

    #[test]
    fn without_a_pidfd_the_end_is_seen_all_the_same() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "echo out; exec >&-; sleep 0.1; exit 3"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = RunOutput::Capture { limit: 10 };
        let mut stdout = Stream::new(child.stdout.take().map(OwnedFd::from), output);
        let name = || "it".to_owned();
        watch(child.id(), None, &mut stdout, &mut Stream::new(None, output), name);
        assert_eq!(stdout.capture.finish().head, b"out\n");
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}
