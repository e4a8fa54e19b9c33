//! The life of one handler, on a thread of its own: its start and its answers.
//!
//! The thread lives as long as the process, whose death signal is tied to it. It sleeps where answers come; at an answer
//! it tells the run's end, after it has put the handler back among those that idle. Whatever else happens to the handler
//! is its end (`end`).
//!
//! It must not: take a line for an answer to a request that is not wholly written; or let a handler idle that has got a
//! signal.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, read, write};

use super::answer::{self, Lines, Said};
use super::desk::{Busy, Desk, Handed, Job, Seat, Work};
use super::pauses::{Cause, Death};
use super::{Gate, NO_LEASE, Pool};
use crate::exec::child::{self, Failure};
use crate::exec::descriptors::{Reserve, too_few};
use crate::exec::guard::LINGER;
use crate::exec::mark::run_mark;
use crate::exec::proc;
use crate::exec::run::{self, POLL_FAILED_PAUSE, now_ms};
use crate::exec::stopped::{LOOK_EVERY, StopWatch};
use crate::exec::{ExecEvent, NotStartedKind};
use crate::machine::{RunId, RunReport, RunSpec};

/// When the first request of a handler is told to have started, if it has neither answered nor ended by then. A shell
/// that finds no such program says so much sooner.
const STARTED_AFTER: Duration = Duration::from_secs(1);
/// One that ends closes its pipes a moment before it is dead.
const DEAD_AFTER_CLOSE: Duration = Duration::from_millis(200);
/// How often it is looked at if no pidfd could be opened (no descriptors left).
const LOOK_WITHOUT_PIDFD: Duration = Duration::from_millis(20);

/// From its start to its end, with the request that it was started for.
pub(super) fn live(pool: &Arc<Pool>, id: RunId, gate: Gate, mut reserve: Reserve, job: Job, spec: &RunSpec) {
    let shared = &pool.shared;
    let never = |run: RunId, kind: NotStartedKind, why: String| {
        shared.table.dead(id);
        pool.not_started(run, kind, why);
        shared.table.remove(id);
    };
    if pool.pause(id) {
        let why = "it was told to end while it waited for a handler".to_owned();
        return never(job.run, NotStartedKind::Transient, why);
    }
    let wake = match eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) {
        Ok(wake) => wake,
        Err(_) => return never(job.run, NotStartedKind::Shortage, too_few()),
    };
    reserve.start();
    let mark = run_mark(&shared.token, shared.number, id);
    let since = proc::now_ticks();
    let born = Instant::now();
    let child = match child::spawn(id, spec, (&shared.token, &mark), shared, &gate) {
        Ok(child) => child,
        Err(Failure { kind, why }) => {
            drop(reserve);
            // It may have got as far as into its cgroup.
            shared.cgroups.iter().for_each(|cgroups| cgroups.empty(id));
            pool.died(Death { born, answered: false, cause: Cause::Fault });
            shared.roll.gone(id);
            let kind = match kind {
                NotStartedKind::Transient => NotStartedKind::Transient,
                // A handler is the worker's, whatever is wrong with it.
                NotStartedKind::Shortage | NotStartedKind::Permanent => NotStartedKind::Shortage,
            };
            return never(job.run, kind, format!("there is no handler for it: {why}"));
        }
    };
    let program = spec.argv.last().cloned().unwrap_or_default();
    drop(gate);
    Handler::new(pool, id, child, wake, reserve, Birth { born, since, mark, program }).live(job);
}

/// What is kept of its start.
pub(super) struct Birth {
    pub(super) born: Instant,
    /// The same in ticks since boot.
    pub(super) since: u64,
    /// The mark in its environment.
    pub(super) mark: String,
    /// For messages.
    pub(super) program: String,
}

/// What its thread knows of a handler.
pub(super) struct Handler<'a> {
    pub(super) pool: &'a Arc<Pool>,
    pub(super) desk: Arc<Desk>,
    stdout: Arc<OwnedFd>,
    pidfd: Option<OwnedFd>,
    pub(super) lines: Lines,
    pub(super) birth: Birth,
    /// For its end.
    pub(super) reserve: Reserve,
    /// It has answered before.
    pub(super) answered: bool,
    /// The guard has still to be told that it has nothing to do.
    lingering: bool,
    /// It has a request of which it was not told yet that it has started.
    untold: bool,
    /// There is a rest of a line to be written.
    writing: bool,
    stopped: StopWatch,
    looked: Instant,
}

/// What there is to be looked at.
struct Ready {
    stdout: bool,
    leader: bool,
    wake: bool,
    stdin: bool,
    /// Nothing, for as long as was waited.
    paused: bool,
}

/// Why it is used no more.
pub(super) enum End {
    /// Its process is dead.
    Dead,
    /// It did what no handler may do.
    Broken(String),
    /// It has answered, but has got a signal.
    Answered { run: RunId, told: bool, report: Box<RunReport> },
}

impl<'a> Handler<'a> {
    fn new(
        pool: &'a Arc<Pool>,
        id: RunId,
        mut child: Child,
        wake: OwnedFd,
        reserve: Reserve,
        birth: Birth,
    ) -> Handler<'a> {
        let pid = child.id();
        let piped = "a handler is started with pipes";
        let stdin = nonblocking(child.stdin.take().expect(piped).into());
        let stdout = nonblocking(child.stdout.take().expect(piped).into());
        let start_ticks = proc::stat(pid).ok().flatten().map_or(0, |stat| stat.start_ticks);
        let pidfd = run::open_pidfd(pid);
        let seat = Mutex::new(Seat { stdin: Some(stdin), work: Work::Idle, proven: false });
        pool.shared.table.running(id, pid, Some(Arc::clone(&stdout)));
        Handler {
            pool,
            desk: Arc::new(Desk { id, pid, start_ticks, wake, seat }),
            stdout,
            pidfd,
            lines: Lines::default(),
            birth,
            reserve,
            answered: false,
            lingering: false,
            untold: false,
            writing: false,
            stopped: StopWatch::default(),
            looked: Instant::now(),
        }
    }

    fn live(mut self, job: Job) {
        let end = match self.take_first(job) {
            None => self.serve(),
            Some(end) => end,
        };
        self.retire(end);
    }

    /// The request that it was started for; why it is used no more, if it is not.
    fn take_first(&mut self, job: Job) -> Option<End> {
        let run = job.run;
        let handed = if self.pool.shared.table.is_fit(self.desk.id) {
            self.desk.hand_over(job, &self.pool.shared)
        } else {
            Handed::Refused(job)
        };
        match handed {
            Handed::Done => None,
            Handed::NoLease => {
                self.pool.not_started(run, NotStartedKind::Transient, NO_LEASE.to_owned());
                self.pool.idles(&self.desk);
                None
            }
            Handed::Refused(job) => {
                let busy = Busy::new(job, now_ms());
                self.desk.lock().work = Work::Busy(busy);
                Some(self.closed("it takes no request"))
            }
        }
    }

    /// Until it is used no more.
    fn serve(&mut self) -> End {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    log::warn!("cannot poll the pipes of handler {}: {error}", self.desk.pid);
                    std::thread::sleep(POLL_FAILED_PAUSE);
                    Ready {
                        stdout: true,
                        leader: self.pidfd.is_none(),
                        wake: true,
                        stdin: true,
                        paused: false,
                    }
                }
            };
            if ready.paused {
                self.pause();
            }
            if ready.wake {
                self.look_at_work();
            }
            if self.writing
                && (ready.wake || ready.stdin)
                && let Some(end) = self.write_on()
            {
                return end;
            }
            let is_dead = ready.leader && run::is_over(self.desk.pid);
            if (ready.stdout || is_dead)
                && let Some(end) = self.listen(is_dead)
            {
                return end;
            }
            if self.looked.elapsed() >= LOOK_EVERY {
                self.look_if_stopped();
            }
        }
    }

    /// Whether it is stopped while it has a request.
    fn look_if_stopped(&mut self) {
        self.looked = Instant::now();
        if let Work::Busy(busy) = &self.desk.lock().work {
            self.stopped.look(self.desk.pid, || format!("the handler of {}", busy.task()));
        }
    }

    /// Until there is something to be looked at.
    fn wait(&self) -> Result<Ready, Errno> {
        let pause = match (self.lingering, self.untold, &self.pidfd) {
            (true, ..) => Some(LINGER),
            (false, true, _) => Some(STARTED_AFTER),
            (false, false, Some(_)) => Some(LOOK_EVERY),
            (false, false, None) => Some(LOOK_WITHOUT_PIDFD),
        };
        let pause = pause.map(run::timespec);
        let stdin = if self.writing { self.desk.lock().stdin.clone() } else { None };
        // What is not there is looked at twice in place of it, and its answer is not used.
        let leader = self.pidfd.as_ref().unwrap_or(&self.stdout);
        let mut sources = [
            PollFd::from_borrowed_fd(self.stdout.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(leader.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.desk.wake.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stdin.as_deref().unwrap_or(&self.stdout).as_fd(), PollFlags::OUT),
        ];
        let used = if stdin.is_some() { 4 } else { 3 };
        let ready = poll(&mut sources[..used], pause.as_ref())?;
        let [stdout, leader, wake, stdin] = sources.map(|source| !source.revents().is_empty());
        Ok(Ready { stdout, leader: leader || self.pidfd.is_none(), wake, stdin, paused: ready == 0 })
    }

    /// Nothing has happened for a while.
    fn pause(&mut self) {
        if std::mem::take(&mut self.lingering)
            && let Some(guard) = &self.pool.shared.guard
        {
            guard.settle(self.desk.pid);
        }
        self.tell_started();
    }

    /// The request that it has got has begun, as far as that was left to us to tell.
    fn tell_started(&mut self) {
        if !self.untold {
            return;
        }
        if let Work::Busy(busy) = &mut self.desk.lock().work
            && busy.rest.is_empty()
        {
            busy.tell_started(self.desk.pid, &self.pool.shared);
            self.untold = false;
        }
    }

    /// Whoever handed a request over has left something to us.
    fn look_at_work(&mut self) {
        // A counter: one read takes all.
        let _ = read(&self.desk.wake, &mut [0; 8]);
        if let Work::Busy(busy) = &self.desk.lock().work {
            self.writing = !busy.rest.is_empty();
            self.untold = !busy.told;
        }
    }

    /// Writes what the pipe has room for of the rest of a line.
    fn write_on(&mut self) -> Option<End> {
        let mut seat = self.desk.lock();
        let Seat { stdin: Some(stdin), work: Work::Busy(busy), proven } = &mut *seat else {
            self.writing = false;
            return None;
        };
        match write(stdin.as_ref(), &busy.rest) {
            Ok(written) => {
                busy.handed |= written > 0;
                busy.rest.drain(..written);
                self.writing = !busy.rest.is_empty();
                if *proven && !self.writing {
                    busy.tell_started(self.desk.pid, &self.pool.shared);
                    self.untold = false;
                }
                None
            }
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(_) => {
                drop(seat);
                Some(self.closed("it closed its standard input"))
            }
        }
    }

    /// Takes in what it says; all that it has said, if it is dead.
    fn listen(&mut self, is_dead: bool) -> Option<End> {
        loop {
            match self.lines.read(&self.stdout) {
                Said::Line => {
                    if let Some(end) = self.answer(is_dead) {
                        return Some(end);
                    }
                    if !is_dead {
                        return None;
                    }
                }
                Said::Some if is_dead => {}
                Said::Nothing | Said::Some if !is_dead => {
                    self.tell_started();
                    return None;
                }
                Said::Nothing | Said::Some => return Some(End::Dead),
                Said::End if is_dead => return Some(End::Dead),
                Said::End => return Some(self.closed("it closed its standard output")),
                Said::Wrong(why) => return Some(End::Broken(why)),
            }
        }
    }

    /// It has said a line, and it is the end of a run, or of the handler.
    fn answer(&mut self, is_dead: bool) -> Option<End> {
        let shared = &self.pool.shared;
        let mut seat = self.desk.lock();
        let Work::Busy(Busy { run, limit, started_ms, rest, told, .. }) = &seat.work else {
            return Some(End::Broken("it said something without having been asked".to_owned()));
        };
        if !rest.is_empty() {
            return Some(End::Broken("it answered before it had the whole request".to_owned()));
        }
        let (run, started_ms, told) = (*run, *started_ms, *told);
        let verdict = match answer::judge(self.lines.line(), run, *limit) {
            Ok(verdict) => verdict,
            Err(why) => return Some(End::Broken(why)),
        };
        seat.work = if is_dead { Work::Over } else { Work::Idle };
        seat.proven = true;
        drop(seat);
        self.lines.clear();
        if !std::mem::replace(&mut self.answered, true) {
            self.pool.works();
        }
        self.untold = false;
        self.stopped = StopWatch::default();
        let mut report = Some(Box::new(verdict.report(started_ms)));
        let (mut lingering, pid) = (false, self.desk.pid);
        let over = shared.table.answered(run, self.desk.id, || {
            lingering = shared.guard.as_ref().is_some_and(|guard| guard.rest(pid));
            if !is_dead {
                // Before anybody hears that there is a slot to be filled.
                self.pool.idles(&self.desk);
            }
            if !told {
                let _ = shared.events.send(ExecEvent::Started { run, pid });
            }
            if let Some(report) = report.take() {
                let _ = shared.events.send(ExecEvent::Ended { run, report: *report });
            }
        });
        self.lingering = lingering;
        report.filter(|_| !over).map(|report| End::Answered { run, told, report })
    }

    /// It takes no more, or says no more: dead or dying, or broken.
    fn closed(&self, why: &str) -> End {
        let until = Instant::now() + DEAD_AFTER_CLOSE;
        while !run::is_over(self.desk.pid) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return End::Broken(why.to_owned());
            }
            self.await_leader(Some(left));
        }
        End::Dead
    }

    /// Until it may be dead, for this long at most.
    pub(super) fn await_leader(&self, longest: Option<Duration>) {
        let Some(pidfd) = &self.pidfd else { return std::thread::sleep(POLL_FAILED_PAUSE) };
        let mut source = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        match poll(&mut source, longest.map(run::timespec).as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => std::thread::sleep(POLL_FAILED_PAUSE),
        }
    }
}

/// So that neither reading nor writing waits.
fn nonblocking(pipe: OwnedFd) -> Arc<OwnedFd> {
    let set = fcntl_getfl(&pipe).and_then(|flags| fcntl_setfl(&pipe, flags | OFlags::NONBLOCK));
    if let Err(error) = set {
        // It cannot fail on a pipe of ours.
        log::error!("a handler may keep its thread waiting: {error}");
    }
    Arc::new(pipe)
}
