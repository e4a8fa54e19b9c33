//! A slot: a small process that is parent, reader and guard of the one program that it runs at a time.
//!
//! It is forked by the keeper, leads a session, and adopts what its programs leave behind. Whatever ends a run, the
//! order at its end is what the guarantee "one attempt at a time" rests on:
//!
//! 1. The leader is a zombie: nobody else can have its number, so SIGKILL to its group is safe.
//! 2. It is reaped, and all that lives of the run is killed: what is in its control group, and the slot's children.
//! 3. When the slot has no child (`ECHILD`) and the control group is empty, nothing of the run lives: a process that
//!    loses its parent becomes the slot's child.
//! 4. All that they wrote is in the pipes now, and is read without waiting.
//! 5. Only then the end is reported.
//!
//! It must not: wait for anybody but its own children, begin anything without a lease that holds, or let anything run
//! when the lease is over or the worker gone.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::read;
use rustix::process::{Signal, kill_process, kill_process_group};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

use super::NotStartedKind;
use super::birth::{self, Born, CgroupEntry, StartFailure, Surroundings};
use super::capture::Stream;
use super::cgroup::{Left, RunGroup};
use super::children::{self, Children};
use super::logs::Feeds;
use super::memory::{Kills, Memory};
use super::proc::to_pid;
use super::shared_page::SharedPage;
use super::stopped::{CHECK_EVERY, StopWatch};
use super::system::{set_timer, signals, timespec};
use super::wire::{FromSlot, Link, Program, Streams, ToSlot};
use crate::clock;
use crate::machine::{Ended, GroupSignal, RunReport};

/// The start of a run is reported after this time, or together with its end if it ends before.
const STARTED_AFTER: Duration = Duration::from_millis(2);
/// The first pause between two checks of a process that does not die; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A process that does not die within this is reported.
const WARN_AFTER: Duration = Duration::from_secs(10);
/// The variable that names a task to its program.
const TASK_VAR: &str = "ZKMW_TASK";

/// What a slot has.
pub(super) struct Slot<'a> {
    number: u32,
    page: &'a SharedPage,
    link: Link,
    /// Readable after a `SIGCHLD`.
    signals: OwnedFd,
    /// Readable when the lease has to be checked again.
    timer: OwnedFd,
    surroundings: Surroundings,
    memory: Memory,
    /// Where its runs have their control group, if they may have any.
    base: Option<&'a Path>,
    group: Option<RunGroup>,
    /// Programs cannot be born in their control group here.
    enters: bool,
    running: Option<RunningProgram>,
    logs: Feeds,
    buffer: Vec<u8>,
}

/// What it runs.
struct RunningProgram {
    run: u64,
    leader: u32,
    /// What to call it in the log.
    name: String,
    handler: bool,
    streams: [Stream; 2],
    started: Instant,
    started_ms: i64,
    kills: Kills,
    start_reported: bool,
    /// A signal of ours came while the leader lived.
    signalled: bool,
    ending: Option<Ending>,
    stopped: StopWatch,
    checked: Instant,
}

/// The leader is reaped.
struct Ending {
    ended: Ended,
    ended_ms: i64,
    since: Instant,
    pause: Duration,
    warned: bool,
}

impl<'a> Slot<'a> {
    /// A slot in this process, which blocks `SIGCHLD`.
    pub(super) fn new(
        number: u32,
        page: &'a SharedPage,
        socket: OwnedFd,
        surroundings: Surroundings,
        base: Option<&'a Path>,
    ) -> std::io::Result<Slot<'a>> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Slot {
            number,
            page,
            link: Link::new(socket),
            signals: signals(&[libc::SIGCHLD])?,
            timer: timerfd_create(TimerfdClockId::Boottime, flags)?,
            memory: Memory::new(),
            group: base.and_then(|base| RunGroup::make(base, number, surroundings.limits).ok()),
            base,
            surroundings,
            enters: false,
            running: None,
            logs: Feeds::default(),
            buffer: Vec::new(),
        })
    }

    /// Until the worker is gone, and all that ran is dead.
    pub(super) fn live(&mut self) {
        while !self.link.is_closed() || self.running.is_some() || self.logs.are_closing() {
            self.turn();
        }
    }

    /// Waits until there is something to do, and does it.
    fn turn(&mut self) {
        let closed = self.link.is_closed();
        let pause = self.pause().into_iter().chain(self.logs.pause()).min().map(timespec);
        let wanted = if self.link.has_unsent() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        // What cannot be passed on is not read.
        let reads = self.running.iter().filter(|_| !self.logs.is_full());
        let pipes = reads.flat_map(|running| &running.streams);
        let mut sources = vec![
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.timer.as_fd(), PollFlags::IN),
            // A closed socket would always be ready, so the timer is here instead of it, without events.
            match closed {
                true => PollFd::from_borrowed_fd(self.timer.as_fd(), PollFlags::empty()),
                false => PollFd::from_borrowed_fd(self.link.as_fd(), wanted),
            },
        ];
        sources.extend(
            pipes.filter_map(|stream| stream.pipe.as_ref()).map(|pipe| PollFd::new(pipe, PollFlags::IN)),
        );
        let logs_from = sources.len();
        sources.extend(self.logs.waiting().map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::OUT)));
        let polled = poll(&mut sources, pause.as_ref());
        let ready: Vec<bool> = match polled {
            Ok(_) => sources.iter().map(|source| !source.revents().is_empty()).collect(),
            // Out of memory, or interrupted: everything counts as ready, and nothing waits.
            Err(_) => vec![true; sources.len()],
        };
        if ready[3..logs_from].contains(&true) {
            self.read_streams();
        }
        if ready[1] {
            self.check_lease();
        }
        if ready[2] && !closed {
            self.hear();
        }
        if ready[0] {
            let _ = read(&self.signals, &mut [0; 1024]);
        }
        self.advance_run();
        self.logs.advance(&mut self.link);
    }

    /// For how long nothing is due.
    fn pause(&self) -> Option<Duration> {
        let running = self.running.as_ref()?;
        Some(match &running.ending {
            Some(ending) => ending.pause,
            None if !running.start_reported => STARTED_AFTER.saturating_sub(running.started.elapsed()),
            // Its worker checks that, and only while the handler has something to do.
            None if running.handler => return None,
            None => CHECK_EVERY.saturating_sub(running.checked.elapsed()),
        })
    }

    fn read_streams(&mut self) {
        for (number, stream) in self.running.iter_mut().flat_map(|running| &mut running.streams).enumerate() {
            stream.read(&mut self.buffer);
            self.logs.push(number, &self.buffer);
        }
    }

    /// Takes in what the worker says.
    fn hear(&mut self) {
        self.link.flush();
        self.link.receive();
        while let Some(frame) = self.link.next() {
            match frame {
                ToSlot::Run(program) => self.start(&program),
                ToSlot::Signal { run, signal } => {
                    if self.running.as_ref().is_some_and(|running| running.run == run) {
                        self.signal(signal);
                    }
                }
                ToSlot::Kill { run } => {
                    if self.running.as_ref().is_some_and(|running| running.run == run) {
                        self.kill();
                    }
                }
                ToSlot::Wake => self.arm(),
            }
        }
        if self.link.is_closed() {
            self.kill_of_our_own();
        }
    }

    /// Starts a program.
    fn start(&mut self, program: &Program) {
        let pipes = (program.streams == Streams::Handler)
            .then(|| Some((self.link.take_descriptor()?, self.link.take_descriptor()?)));
        let run = program.run;
        if self.running.is_some() {
            let why = "its slot has something else to do".to_owned();
            return self.link.say(&FromSlot::NotStarted { run, kind: NotStartedKind::Transient, why });
        }
        self.arm();
        let started = match pipes {
            _ if !self.page.holds() => {
                let why = "the lease had ended before it began, or there was no guard".to_owned();
                Err(StartFailure { kind: NotStartedKind::Transient, why })
            }
            Some(None) => {
                let why = super::descriptors::too_few();
                Err(StartFailure { kind: NotStartedKind::Shortage, why })
            }
            None => self.give_birth(program, None),
            Some(Some(pipes)) => self.give_birth(program, Some(&pipes)),
        };
        match started {
            Ok(born) => self.runs(program, born),
            Err(StartFailure { kind, why }) => {
                self.clean_group(self.group.as_ref().map_or(Left::Clean, RunGroup::left));
                self.link.say(&FromSlot::NotStarted { run, kind, why });
            }
        }
    }

    fn give_birth(
        &mut self,
        program: &Program,
        pipes: Option<&(OwnedFd, OwnedFd)>,
    ) -> Result<Born, StartFailure> {
        self.demand_group()?;
        let entry = match &self.group {
            None => CgroupEntry::None,
            Some(group) if self.enters => CgroupEntry::Enters(group.list()),
            Some(group) => CgroupEntry::Into(group.dir()),
        };
        let started = birth::start(program, self.number, pipes, &self.surroundings, entry, self.page);
        match (started, entry) {
            (Err(birth::StartRefusal::Cgroup), CgroupEntry::Into(_)) => {
                let killed =
                    self.group.as_ref().and_then(|group| group.explain(Ended::Signal(libc::SIGKILL)));
                if let Some(why) = killed {
                    let why = format!("it was {why}");
                    return Err(StartFailure { kind: NotStartedKind::Permanent, why });
                }
                // The kernel, or a filter of system calls, lets nobody be born in another group.
                self.enters = true;
                self.give_birth(program, pipes)
            }
            (Err(birth::StartRefusal::Cgroup), _) => Err(StartFailure {
                kind: NotStartedKind::Shortage,
                why: "the system refused another process".to_owned(),
            }),
            (Err(birth::StartRefusal::Failed(failure)), _) => Err(failure),
            (Ok(born), _) => Ok(born),
        }
    }

    /// What is to have limits has a control group, or does not begin.
    fn demand_group(&mut self) -> Result<(), StartFailure> {
        let limits = self.surroundings.limits;
        if self.group.is_none() && !limits.is_empty() {
            let nowhere = || std::io::Error::other("no control groups");
            let base = self.base.ok_or_else(nowhere);
            let made = base.and_then(|base| RunGroup::make(base, self.number, limits));
            self.group = Some(made.map_err(|error| StartFailure {
                kind: NotStartedKind::Shortage,
                why: format!("its limits ({}) cannot be had now: {error}", limits.settings()),
            })?);
        }
        Ok(())
    }

    fn runs(&mut self, program: &Program, born: Born) {
        let limit = match program.streams {
            Streams::Capture { limit, .. } => limit,
            Streams::Inherit | Streams::Handler => 0,
        };
        let task = program.env.iter().find(|(name, _)| name == TASK_VAR);
        let handler = program.streams == Streams::Handler;
        self.running = Some(RunningProgram {
            run: program.run,
            leader: born.leader,
            name: task.map_or_else(|| "the command".to_owned(), |(_, task)| format!("task {task}")),
            handler,
            streams: [Stream::new(born.stdout, limit), Stream::new(born.stderr, limit)],
            started: Instant::now(),
            started_ms: clock::wall_ms(),
            kills: self.memory.kills(),
            start_reported: false,
            signalled: false,
            ending: None,
            stopped: StopWatch::default(),
            checked: Instant::now(),
        });
        self.logs.begin(program);
        self.page.part(self.number).killing.store(0, Ordering::SeqCst);
        if handler {
            // Nobody waits for its end.
            self.report_started();
        }
    }

    fn report_started(&mut self) {
        if let Some(running) = &mut self.running
            && !std::mem::replace(&mut running.start_reported, true)
        {
            self.link.push(&FromSlot::Started { run: running.run, pid: running.leader });
            self.link.flush();
        }
    }

    /// Whether something runs that the lease has to hold for.
    fn is_busy(&self) -> bool {
        let part = self.page.part(self.number);
        self.running.as_ref().is_some_and(|running| !running.handler || part.busy.load(Ordering::SeqCst) != 0)
    }

    /// Arms the timer for the deadline of the lease, as it is now.
    fn arm(&mut self) {
        // One that was found over has ended long ago.
        self.arm_until(self.page.deadline().unwrap_or(1));
    }

    fn arm_until(&self, deadline: u64) {
        self.page.part(self.number).armed.store(deadline, Ordering::SeqCst);
        // A time of 0 would stop the timer.
        set_timer(&self.timer, deadline.max(1));
    }

    /// The lease has ended, or a process was suspended.
    fn check_lease(&mut self) {
        let _ = read(&self.timer, &mut [0; 8]);
        let part = self.page.part(self.number);
        part.armed.store(0, Ordering::SeqCst);
        // A worker that gives a handler something to do marks it as busy first, and then checks both.
        part.killing.store(1, Ordering::SeqCst);
        if self.is_busy() {
            match self.page.check_lease() {
                Some(deadline) => self.arm_until(deadline),
                // It stays marked until another program runs here.
                None => return self.kill_of_our_own(),
            }
        }
        part.killing.store(0, Ordering::SeqCst);
    }

    /// SIGKILL to all of the run, which is no end of its own.
    fn kill_of_our_own(&mut self) {
        self.note_signal();
        self.kill();
    }

    /// A signal is about to be sent; whether it counts, since the leader has not ended.
    fn note_signal(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        let counts = running.ending.is_none() && !children::has_ended(running.leader);
        running.signalled |= counts;
        counts
    }

    fn signal(&mut self, signal: GroupSignal) {
        let counts = self.note_signal();
        let Some(running) = &mut self.running else { return };
        if counts && signal == GroupSignal::Term {
            let leader = to_pid(running.leader);
            let _ = kill_process_group(leader, Signal::TERM);
            // One that is stopped must be able to act on it.
            let _ = kill_process_group(leader, Signal::CONT);
        }
        if signal == GroupSignal::Kill {
            self.kill();
        }
    }

    /// SIGKILL to all of the run.
    fn kill(&mut self) {
        let Some(running) = &self.running else { return };
        if running.ending.is_none() {
            let _ = kill_process_group(to_pid(running.leader), Signal::KILL);
            // It may have gone to another group of our session.
            let _ = kill_process(to_pid(running.leader), Signal::KILL);
        }
        self.kill_rest();
    }

    /// The same of what is not in the leader's group.
    fn kill_rest(&mut self) {
        if let Some(group) = &mut self.group {
            group.kill();
        }
        children::kill(children::list());
    }

    /// Reaps children that have ended, and goes on with the end of the run.
    fn advance_run(&mut self) {
        if self.running.is_none() {
            return;
        }
        let children = self.reap();
        let Some(running) = &mut self.running else { return };
        if running.ending.is_some() {
            let left = self.group.as_ref().map_or(Left::Clean, RunGroup::left);
            if children == Children::None && left != Left::Alive {
                self.end(left);
            } else {
                self.kill_again();
            }
        } else if !running.start_reported && running.started.elapsed() >= STARTED_AFTER {
            self.report_started();
        } else if !running.handler && running.checked.elapsed() >= CHECK_EVERY {
            running.checked = Instant::now();
            if let Some(warning) = running.stopped.check(running.leader, &running.name) {
                self.link.say(&FromSlot::Warning(warning));
            }
        }
    }

    /// Reaps all that have ended. Before the leader is, its group gets SIGKILL: until then that number is its own.
    fn reap(&mut self) -> Children {
        loop {
            let pid = match children::next_ended() {
                Children::Ended(pid) => pid,
                other => return other,
            };
            match &mut self.running {
                Some(running) if running.leader == pid && running.ending.is_none() => {
                    let _ = kill_process_group(to_pid(pid), Signal::KILL);
                    let (ended_ms, since) = (clock::wall_ms(), Instant::now());
                    let ended = children::reap(pid);
                    running.ending =
                        Some(Ending { ended, ended_ms, since, pause: FIRST_PAUSE, warned: false });
                }
                Some(_) | None => {
                    children::reap(pid);
                }
            }
        }
    }

    /// Something of it lives yet.
    fn kill_again(&mut self) {
        self.kill_rest();
        let Some(RunningProgram { ending: Some(ending), name, .. }) = &mut self.running else { return };
        ending.pause = (ending.pause * 2).min(LONGEST_PAUSE);
        if ending.since.elapsed() >= WARN_AFTER && !std::mem::replace(&mut ending.warned, true) {
            let warning = format!(
                "{name}: what it has started does not die: processes {:?}; still waiting",
                children::list()
            );
            self.link.say(&FromSlot::Warning(warning));
        }
    }

    /// Nothing of it lives, and that is how it has left its cgroup.
    fn end(&mut self, left: Left) {
        let Some(running) = self.running.take() else { return };
        let RunningProgram {
            run, streams, started_ms, signalled, kills, ending, start_reported, leader, ..
        } = running;
        let Some(Ending { ended, ended_ms, .. }) = ending else { return };
        let mut number = 0;
        let [stdout, stderr] = streams.map(|mut stream| {
            stream.drain(&mut self.buffer, |bytes| self.logs.push(number, bytes));
            number += 1;
            stream.capture.finish()
        });
        self.logs.end(&mut self.link);
        let limit = self.group.as_ref().and_then(|group| group.explain(ended));
        let detail = limit.or_else(|| self.memory.explain(ended, kills)).filter(|_| !signalled);
        self.clean_group(left);
        if !start_reported {
            self.link.push(&FromSlot::Started { run, pid: leader });
        }
        let report = RunReport { ended, detail, stdout, stderr, started_ms, ended_ms, signalled };
        self.link.push(&FromSlot::Ended { run, report });
        self.link.flush();
        self.buffer = Vec::new();
    }

    /// The next run finds its cgroup as if it were the first.
    fn clean_group(&mut self, left: Left) {
        let Some(group) = &mut self.group else { return };
        if left != Left::Clean
            && let Err(error) = group.renew()
        {
            self.group = None;
            self.link.say(&FromSlot::Warning(format!(
                "a slot has no control group any more ({error}); a task that leaves its process group may live on"
            )));
        }
    }
}
