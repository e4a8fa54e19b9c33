//! The worker's side of its slots: which slot runs what, and how it ended.
//!
//! Owns the sockets to the keeper and the slots, and the run file. Programs are sent by the thread that asks for them;
//! one thread takes in what all slots say, another one waits for the end of the keeper.
//!
//! It must not: send a program to a slot that is not in the run file, or report a run's end before its slot, or the
//! keeper instead of it, has reported that nothing of the run lives.

mod lease;
mod slots;

pub use lease::RenewedTooLate;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use rustix::event::{EventfdFlags, epoll, eventfd};

use super::logs::Carrier;
use super::mailbox::{Mailbox, Note};
use super::proc;
use super::proc::ProcessSession;
use super::runfile::RunFile;
use super::shared_page::{MOST_SLOTS, SharedPage};
use super::wire::{FromKeeper, FromSlot, Link, Program, ToSlot};
use super::{ExecEvent, NotStartedKind};
use crate::clock;
use crate::machine::{Captured, Ended, GroupSignal, RunId, RunReport};

/// Most answers of `epoll` at once.
const EVENTS_AT_ONCE: usize = 64;
/// Numbers of handlers are above this; those that roles give to runs are counted from 1.
pub(super) const FIRST_HANDLER: u64 = 1 << 63;
/// What the keeper's socket is known by among those of slots.
const KEEPER: u64 = u64::MAX;
/// And what wakes the thread.
const WAKE: u64 = u64::MAX - 1;

/// All slots of an executor, and the keeper.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) page: SharedPage,
    pub(super) events: Sender<ExecEvent>,
    epoll: OwnedFd,
    /// Wakes the thread that listens, at the end.
    wake: OwnedFd,
    inner: Mutex<HubState>,
    /// Notified when a run is over, or the keeper gone.
    changed: Condvar,
    pub(super) stopping: AtomicBool,
    /// The way to who writes logs, if anybody does.
    pub(super) logs: OnceLock<Arc<Carrier>>,
}

#[derive(Debug, Default)]
pub(super) struct HubState {
    pub(super) keeper: Option<KeeperHandle>,
    /// By their numbers.
    slots: Vec<SlotEntry>,
    /// Those that have nothing to do, the one that was used last at the end.
    idle: Vec<u32>,
    /// Which slot has it.
    runs: BTreeMap<RunId, u32>,
    run_file: Option<RunFile>,
    /// Why another keeper could not be started.
    no_keeper: Option<String>,
    /// The last keeper is gone.
    closed: bool,
}

/// The keeper that lives.
#[derive(Debug)]
pub(super) struct KeeperHandle {
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
    pub(super) link: Link,
}

/// One slot.
#[derive(Debug, Default)]
struct SlotEntry {
    /// The keeper was asked for it, and has not reported its end: until then its number is taken.
    asked: bool,
    /// Our end of its socket; `None` where there is no process, or none any more.
    link: Option<Link>,
    /// Its process and when that was born; `None` as long as it is being made.
    process: Option<ProcessSession>,
    work: Option<SlotWork>,
}

/// Descriptors that go to a slot with a program.
type Pipes = Option<[OwnedFd; 2]>;

/// What a slot has to do.
#[derive(Debug)]
struct SlotWork {
    run: RunId,
    /// What is sent as soon as the slot is there, with a handler's standard input and output.
    unsent: Option<(Program, Pipes)>,
    /// The handler's mailbox that gets what becomes of it; `None` if the role gets that.
    mailbox: Option<Arc<Mailbox>>,
    /// When the slot got it, and its leader.
    started: Option<(i64, u32)>,
    /// A signal of ours was sent.
    signalled: bool,
}

impl Hub {
    pub(super) fn new(events: Sender<ExecEvent>, run_file: Option<RunFile>) -> anyhow::Result<Hub> {
        let hub = Hub {
            page: SharedPage::new()?,
            events,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            inner: Mutex::default(),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            logs: OnceLock::new(),
        };
        epoll::add(&hub.epoll, &hub.wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        hub.lock().run_file = run_file;
        Ok(hub)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HubState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A keeper that has just been started, and where runs have their cgroups under it.
    pub(super) fn take_keeper(&self, keeper: KeeperHandle, cgroups: Option<PathBuf>) -> std::io::Result<()> {
        let mut inner = self.lock();
        inner.run_file.iter_mut().for_each(|file| file.set_cgroup(cgroups.clone()));
        self.listen(&keeper.link, KEEPER)?;
        inner.keeper = Some(keeper);
        inner.no_keeper = None;
        inner.write_run_file();
        Ok(())
    }

    fn listen(&self, link: &Link, number: u64) -> std::io::Result<()> {
        let data = epoll::EventData::new_u64(number);
        Ok(epoll::add(&self.epoll, link.as_fd(), data, epoll::EventFlags::IN)?)
    }

    /// Gives a program to a slot that is free, or to a new one.
    ///
    /// # Panics
    ///
    /// If the run's number is in use.
    pub(super) fn start(&self, run: RunId, program: Program) {
        self.give(SlotWork {
            run,
            unsent: Some((program, None)),
            mailbox: None,
            started: None,
            signalled: false,
        });
    }

    /// The same of a handler, whose mailbox gets what becomes of it.
    pub(super) fn start_handler(&self, mailbox: &Arc<Mailbox>, program: Program, pipes: [OwnedFd; 2]) {
        // What is left of a handler before does not say that this one has something to do.
        let unsent = Some((program, Some(pipes)));
        self.give(SlotWork {
            run: mailbox.id(),
            unsent,
            mailbox: Some(Arc::clone(mailbox)),
            started: None,
            signalled: false,
        });
    }

    fn give(&self, work: SlotWork) {
        let mut inner = self.lock();
        let run = work.run;
        assert!(!inner.runs.contains_key(&run), "run {} was started twice", run.0);
        match &inner.no_keeper {
            _ if inner.keeper.is_some() => {}
            None => {
                return self.not_started(&work, NotStartedKind::Transient, "there is no keeper of slots now");
            }
            Some(why) => return self.not_started(&work, NotStartedKind::Shortage, why),
        }
        if inner.run_file.as_ref().is_some_and(|file| !file.is_written()) {
            inner.write_run_file();
        }
        while let Some(number) = inner.idle.pop() {
            let slot = &inner.slots[number as usize];
            if slot.link.is_none() || slot.work.is_some() {
                // It is dead, or dying: what becomes of it the keeper says.
                continue;
            }
            inner.runs.insert(run, number);
            inner.slots[number as usize].work = Some(work);
            return self.send_first(&mut inner, number);
        }
        match self.make(&mut inner, work) {
            Ok(number) => drop(inner.runs.insert(run, number)),
            Err(refused) => {
                let (work, why) = *refused;
                self.not_started(&work, NotStartedKind::Shortage, &why.to_string());
            }
        }
    }

    /// Listens for room in the socket only as long as something waits for it.
    fn await_room(&self, link: &Link, number: u64) {
        if link.has_unsent() {
            let data = epoll::EventData::new_u64(number);
            let both = epoll::EventFlags::IN | epoll::EventFlags::OUT;
            let _ = epoll::modify(&self.epoll, link.as_fd(), data, both);
        }
    }

    /// Sends an event. Nobody may listen any more, which is no fault.
    fn send_event(&self, event: ExecEvent) {
        let _ = self.events.send(event);
    }

    /// Takes in what slots and the keeper say, until the end.
    pub(super) fn live(&self) {
        let mut ready = Vec::with_capacity(EVENTS_AT_ONCE);
        while !self.stopping.load(Ordering::SeqCst) {
            ready.clear();
            if epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), None).is_err() {
                continue;
            }
            let mut inner = self.lock();
            for event in &ready {
                let event: &epoll::Event = event;
                match event.data.u64() {
                    KEEPER => self.hear_keeper(&mut inner),
                    WAKE => {}
                    number => {
                        self.hear_slot(&mut inner, u32::try_from(number).unwrap_or(MOST_SLOTS));
                    }
                }
            }
        }
    }

    fn hear_keeper(&self, inner: &mut HubState) {
        let Some(keeper) = &mut inner.keeper else { return };
        keeper.link.flush();
        keeper.link.receive();
        self.settle_room(&keeper.link, KEEPER);
        let mut frames = Vec::new();
        while let Some(frame) = keeper.link.next() {
            frames.push(frame);
        }
        if keeper.link.is_closed() {
            let _ = epoll::delete(&self.epoll, keeper.link.as_fd());
        }
        let mut made = Vec::new();
        for frame in frames {
            match frame {
                FromKeeper::Made { slot, pid } => {
                    let start_ticks = proc::stat(pid).ok().flatten().map_or(0, |stat| stat.start_ticks);
                    inner.slots[slot as usize].process = Some(ProcessSession { id: pid, start_ticks });
                    made.push(slot);
                }
                FromKeeper::Refused { slot, errno } => self.refused(inner, slot, errno),
                FromKeeper::Gone { slot, killed } => self.gone(inner, slot, killed),
                FromKeeper::Warning(warning) => log::warn!("{warning}"),
            }
        }
        if !made.is_empty() {
            inner.write_run_file();
            made.iter().for_each(|slot| self.send_first(inner, *slot));
        }
    }

    fn settle_room(&self, link: &Link, number: u64) {
        if !link.has_unsent() {
            let data = epoll::EventData::new_u64(number);
            let _ = epoll::modify(&self.epoll, link.as_fd(), data, epoll::EventFlags::IN);
        }
    }

    /// Sends what a slot is to run, that is there and on record.
    fn send_first(&self, inner: &mut HubState, number: u32) {
        let HubState { slots, idle, .. } = inner;
        let SlotEntry { link, work, .. } = &mut slots[number as usize];
        // Without a link it is dead, and the keeper says when nothing of it lives.
        let Some(link) = link else { return };
        let Some(work) = work else {
            // Its run got a signal to end meanwhile.
            return idle.push(number);
        };
        let part = self.page.part(number);
        part.leader.store(0, Ordering::SeqCst);
        // A slot that hangs never reads its work. The keeper finds it by this deadline.
        part.armed.store(self.page.deadline().unwrap_or(0), Ordering::SeqCst);
        match work.unsent.take() {
            Some((program, None)) => link.say(&ToSlot::Run(program)),
            Some((program, Some(pipes))) => {
                part.busy.store(0, Ordering::SeqCst);
                link.say_with(&ToSlot::Run(program), pipes.into());
            }
            None => {}
        }
        self.await_room(link, number.into());
    }

    fn refused(&self, inner: &mut HubState, number: u32, errno: i32) {
        let slot = std::mem::take(&mut inner.slots[number as usize]);
        if let Some(work) = slot.work {
            let error = std::io::Error::from_raw_os_error(errno);
            let why = format!(
                "no room for another process ({error}); raise the limit (ulimit -u, TasksMax=, memory), or have \
                 fewer slots"
            );
            inner.runs.remove(&work.run);
            self.not_started(&work, NotStartedKind::Shortage, &why);
        }
        self.changed.notify_all();
    }

    /// There is no process, and there never was one.
    fn not_started(&self, work: &SlotWork, kind: NotStartedKind, why: &str) {
        let why = why.to_owned();
        match &work.mailbox {
            Some(mailbox) => mailbox.note(Note::NotStarted { kind, why }),
            None => self.send_event(ExecEvent::NotStarted { run: work.run, kind, why }),
        }
    }

    /// Nothing of the run lives.
    fn ended(&self, work: &SlotWork, report: RunReport) {
        match &work.mailbox {
            Some(mailbox) => mailbox.note(Note::Ended(Box::new(report))),
            None => self.send_event(ExecEvent::Ended { run: work.run, report }),
        }
    }

    /// Takes in the messages of a slot. Whether there was one.
    fn hear_slot(&self, inner: &mut HubState, number: u32) -> bool {
        let Some(slot) = inner.slots.get_mut(number as usize) else { return false };
        let Some(link) = &mut slot.link else { return false };
        let had_unsent = link.has_unsent();
        let came = link.receive();
        link.flush();
        if had_unsent {
            self.settle_room(link, number.into());
        }
        let mut is_free = false;
        while let Some(frame) = link.next() {
            match (frame, &mut slot.work) {
                (FromSlot::Started { run, pid }, Some(work)) if work.run.0 == run => {
                    self.started(work, number, pid);
                }
                (FromSlot::NotStarted { run, kind, why }, Some(work)) if work.run.0 == run => {
                    self.not_started(work, kind, &why);
                    is_free = true;
                }
                (FromSlot::Ended { run, report }, Some(work)) if work.run.0 == run => {
                    self.ended(work, report);
                    is_free = true;
                }
                (FromSlot::Warning(warning), _) => log::warn!("{warning}"),
                (FromSlot::Log(name), _) => {
                    // Where it goes nowhere, the slot finds nobody at the other end.
                    if let (Some(logs), Some(pipe)) = (self.logs.get(), link.take_descriptor()) {
                        logs.begin(name, pipe);
                    }
                }
                (FromSlot::LogLost { name, why }, _) => {
                    if let Some(logs) = self.logs.get() {
                        logs.lost(name, why);
                    }
                }
                // It was given up.
                (FromSlot::Started { .. } | FromSlot::NotStarted { .. } | FromSlot::Ended { .. }, _) => {}
            }
            if is_free && let Some(work) = slot.work.take() {
                inner.runs.remove(&work.run);
            }
        }
        if link.is_closed() {
            // What became of it the keeper says.
            slot.link = None;
        } else if is_free {
            inner.idle.push(number);
        }
        if is_free {
            self.changed.notify_all();
        }
        if slot.link.is_none() {
            inner.idle.retain(|idle| *idle != number);
        }
        came
    }

    /// A slot is dead, and nothing of what it ran lives.
    fn gone(&self, inner: &mut HubState, number: u32, killed: bool) {
        // Its last messages come first.
        while self.hear_slot(inner, number) {}
        inner.idle.retain(|idle| *idle != number);
        let slot = std::mem::take(&mut inner.slots[number as usize]);
        if let Some(mut work) = slot.work {
            inner.runs.remove(&work.run);
            self.report_if_started(&mut work, number);
            let what = if killed { "was suspended, and was killed" } else { "was killed by somebody" };
            self.lost(&work, &format!("the process of its slot {what}"), killed);
        }
        self.changed.notify_all();
    }

    /// A slot may be lost before it reports that its program ran. A program that kills its slot at once must be
    /// charged.
    fn report_if_started(&self, work: &mut SlotWork, number: u32) {
        let pid = self.page.part(number).leader.load(Ordering::SeqCst);
        if work.started.is_none() && work.unsent.is_none() && pid != 0 {
            self.started(work, number, pid);
        }
    }

    fn started(&self, work: &mut SlotWork, number: u32, pid: u32) {
        work.started = Some((clock::wall_ms(), pid));
        match &work.mailbox {
            Some(mailbox) => mailbox.note(Note::Started { pid, slot: number }),
            None => self.send_event(ExecEvent::Started { run: work.run, pid }),
        }
    }

    /// The run's slot is lost, and so is what it had printed.
    fn lost(&self, work: &SlotWork, why: &str, ours: bool) {
        let Some((started_ms, _)) = work.started else {
            return self.not_started(work, NotStartedKind::Transient, why);
        };
        let report = RunReport {
            ended: Ended::Signal(libc::SIGKILL),
            detail: Some(why.to_owned()),
            stdout: Captured::default(),
            stderr: Captured::default(),
            started_ms,
            ended_ms: clock::wall_ms(),
            signalled: work.signalled || ours,
        };
        self.ended(work, report);
    }

    /// The keeper is gone, and so is everything that ran.
    pub(super) fn keeper_gone(&self, why: &str) {
        let mut inner = self.lock();
        inner.keeper = None;
        inner.closed = self.stopping.load(Ordering::SeqCst);
        inner.idle.clear();
        let slots = std::mem::take(&mut inner.slots);
        inner.runs.clear();
        inner.write_run_file();
        for (number, slot) in (0..).zip(slots) {
            if let Some(mut work) = slot.work {
                self.report_if_started(&mut work, number);
                self.lost(&work, why, true);
            }
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Another keeper could not be started.
    pub(super) fn no_keeper(&self, why: &str) {
        self.lock().no_keeper = Some(why.to_owned());
    }

    /// Closes all sockets: slots kill what they run, and end. Their processes.
    pub(super) fn close_slots(&self) -> Vec<u32> {
        let mut inner = self.lock();
        inner.slots.iter_mut().for_each(|slot| slot.link = None);
        inner.slots.iter().filter_map(|slot| Some(slot.process?.id)).collect()
    }

    /// Signals a run, or a handler.
    pub(super) fn signal(&self, run: RunId, signal: GroupSignal) {
        self.send(run, true, &ToSlot::Signal { run: run.0, signal });
    }

    /// SIGKILL to a handler of our own accord: it does not count as a signal to its run.
    pub(super) fn kill(&self, handler: RunId) {
        self.send(handler, false, &ToSlot::Kill { run: handler.0 });
    }

    fn send(&self, run: RunId, counts: bool, frame: &ToSlot) {
        let mut inner = self.lock();
        let Some(number) = inner.runs.get(&run).copied() else { return };
        let slot = &mut inner.slots[number as usize];
        let Some(work) = &mut slot.work else { return };
        if work.unsent.is_some() {
            let work = slot.work.take();
            inner.runs.remove(&run);
            let why = "it was stopped before it began";
            work.iter().for_each(|work| self.not_started(work, NotStartedKind::Transient, why));
            return self.changed.notify_all();
        }
        work.signalled |= counts;
        let Some(link) = &mut slot.link else { return };
        link.say(frame);
        self.await_room(link, number.into());
    }

    /// SIGKILL to everything.
    pub(super) fn kill_all(&self) {
        let runs: Vec<RunId> = self.lock().runs.keys().copied().collect();
        runs.into_iter().for_each(|run| self.signal(run, GroupSignal::Kill));
    }

    /// Ends the keeper, and the thread that listens. The run file says so if all is `dead`.
    pub(super) fn stop(&self, dead: bool) {
        self.stopping.store(true, Ordering::SeqCst);
        let mut inner = self.lock();
        inner.slots.iter_mut().for_each(|slot| slot.link = None);
        if let Some(mut file) = inner.run_file.take().filter(|_| dead) {
            file.write(&[]);
        }
        inner.keeper = None;
        drop(inner);
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// How many runs are not over, without handlers.
    pub(super) fn len(&self) -> usize {
        self.lock().runs.range(..RunId(FIRST_HANDLER)).count()
    }

    /// Waits until nothing runs, no handler either. Whether that was so within `bound`.
    pub(super) fn wait_dead(&self, bound: Duration) -> bool {
        self.wait(bound, |inner| inner.runs.is_empty())
    }

    /// The same of these.
    pub(super) fn wait_dead_of(&self, awaited: &[RunId], bound: Duration) -> bool {
        self.wait(bound, |inner| !awaited.iter().any(|run| inner.runs.contains_key(run)))
    }

    /// Waits for the end of the last keeper; whether it came within `bound`.
    pub(super) fn wait_closed(&self, bound: Duration) -> bool {
        self.wait(bound, |inner| inner.closed)
    }

    fn wait(&self, bound: Duration, done: impl Fn(&HubState) -> bool) -> bool {
        let until = Instant::now() + bound;
        let mut inner = self.lock();
        while !done(&inner) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl HubState {
    /// Writes down whose sessions are ours.
    fn write_run_file(&mut self) {
        let Some(file) = &mut self.run_file else { return };
        let keeper = self
            .keeper
            .iter()
            .map(|keeper| ProcessSession { id: keeper.pid, start_ticks: keeper.start_ticks });
        let sessions: Vec<ProcessSession> =
            keeper.chain(self.slots.iter().filter_map(|slot| slot.process)).collect();
        file.write(&sessions);
    }
}
