//! The one table of runs: which are there, how far each is, and the lock under which signals are sent.
//!
//! A signal is sent to a group only under the table's lock and only while its leader is our unreaped child, so
//! that its number cannot have been given to anybody else; the leader is reaped under the same lock.
//!
//! A handler stands in it under a number of its own. A run with a request stands in it as handed to a handler, and what
//! is sent to the run goes to that one's group.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr, write};
use rustix::process::{
    Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process, kill_process_group, waitid,
};

use super::proc::to_pid;
use crate::machine::{GroupSignal, RunId};

/// Numbers of handlers are this and above; those that roles give to runs are counted from 1.
pub(super) const FIRST_HANDLER: u64 = 1 << 63;

/// How far a run, or a handler, is.
#[derive(Debug)]
enum State {
    /// Not forked yet, or between fork and exec. A signal has to wait: before exec, the child still has our
    /// handlers, and one of them could make *us* believe that we were signalled. `killed` if it got SIGKILL at its
    /// gate, which is a signal of ours as well.
    Starting { gate: Arc<OwnedFd>, wanted: Option<GroupSignal>, killed: bool },
    /// The leader is our child and not reaped; `signalled` if a signal of ours came while it lived.
    Running { leader: u32, signalled: bool, answers: Option<Answers> },
    /// A request: this handler has it, or will get it first of all.
    Handed { handler: RunId },
    /// The leader is reaped; the rest of the group has got SIGKILL.
    Ending,
    /// Every process is dead; the event that says so is not sent yet.
    Dead,
}

/// What a handler says.
#[derive(Debug)]
struct Answers {
    pipe: Arc<OwnedFd>,
    /// Something was there to be read when it first got a signal of ours.
    before_signal: bool,
}

/// Whether, and when, a signal of ours came to one that is dead now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Signalled {
    /// It came while the leader lived.
    pub(super) in_life: bool,
    /// A handler had said something before it came.
    pub(super) after_words: bool,
}

/// All runs that are not over, and all handlers that live.
#[derive(Debug, Default)]
pub(super) struct Table {
    runs: Mutex<BTreeMap<RunId, State>>,
    /// Notified when a run is dead, or told to end before it has begun.
    changed: Condvar,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RunId, State>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run is about to be forked; its child will wait at `gate`.
    ///
    /// # Panics
    ///
    /// If the name is taken: run ids are never used twice.
    pub(super) fn add(&self, run: RunId, gate: Arc<OwnedFd>) {
        let before = self.lock().insert(run, State::Starting { gate, wanted: None, killed: false });
        assert!(before.is_none(), "run {} was started twice", run.0);
    }

    /// Lets the child go on to exec, if it does so before `not_after` (nanoseconds of `CLOCK_BOOTTIME`, not 0); or
    /// kills it if that was asked for meanwhile.
    pub(super) fn open_gate(&self, run: RunId, pid: u32, not_after: u64) {
        let mut runs = self.lock();
        let Some(State::Starting { gate, wanted, killed }) = runs.get_mut(&run) else {
            // The child was killed at the gate by somebody else.
            return;
        };
        let result = if *wanted == Some(GroupSignal::Kill) {
            *killed = true;
            // It waits for us, so it is still there, even if only as a zombie.
            kill_process(to_pid(pid), Signal::KILL)
        } else {
            retry_on_intr(|| write(&*gate, &not_after.to_ne_bytes())).map(|_| ())
        };
        if let Err(error) = result {
            log::error!("cannot let go run {}: {error}", run.0);
        }
    }

    /// The program runs; `answers` is where a handler writes.
    pub(super) fn running(&self, run: RunId, leader: u32, answers: Option<Arc<OwnedFd>>) {
        let mut runs = self.lock();
        let answers = answers.map(|pipe| Answers { pipe, before_signal: false });
        let (wanted, killed) = match runs.get(&run) {
            Some(State::Starting { wanted, killed, .. }) => (*wanted, *killed),
            _ => (None, false),
        };
        let mut state = State::Running { leader, signalled: killed, answers };
        if let Some(signal) = wanted {
            signal_one(&mut state, signal);
        }
        runs.insert(run, state);
    }

    /// To the whole group, if its leader is not reaped yet.
    pub(super) fn signal(&self, run: RunId, signal: GroupSignal) {
        let mut runs = self.lock();
        let target = match runs.get(&run) {
            Some(State::Handed { handler }) => *handler,
            _ => run,
        };
        if let Some(state) = runs.get_mut(&target) {
            signal_one(state, signal);
            if matches!(state, State::Starting { .. }) {
                self.changed.notify_all();
            }
        }
    }

    /// SIGKILL to every group.
    pub(super) fn kill_all(&self) {
        self.lock().values_mut().for_each(|state| signal_one(state, GroupSignal::Kill));
        self.changed.notify_all();
    }

    /// SIGKILL to every handler that has no request.
    pub(super) fn kill_idle_handlers(&self) {
        let mut runs = self.lock();
        let busy: BTreeSet<RunId> = runs.values().filter_map(State::handler).collect();
        let handlers = runs.range_mut(RunId(FIRST_HANDLER)..);
        let idle = handlers.filter(|(handler, _)| !busy.contains(handler));
        idle.for_each(|(_, state)| signal_one(state, GroupSignal::Kill));
    }

    /// SIGKILL to a handler's group, of our own accord: it does not count as a signal to its run.
    pub(super) fn kill_broken(&self, handler: RunId) {
        if let Some(State::Running { leader, .. }) = self.lock().get(&handler) {
            deliver(*leader, GroupSignal::Kill);
        }
    }

    /// The run goes to a handler, as long as that was not told to end; whether it does.
    ///
    /// # Panics
    ///
    /// If the name is taken: run ids are never used twice.
    pub(super) fn hand(&self, run: RunId, handler: RunId) -> bool {
        let mut runs = self.lock();
        let fit = match runs.get(&handler) {
            Some(State::Starting { .. } | State::Running { signalled: false, .. }) => true,
            Some(State::Running { .. } | State::Handed { .. } | State::Ending | State::Dead) | None => false,
        };
        if fit {
            let before = runs.insert(run, State::Handed { handler });
            assert!(before.is_none(), "run {} was started twice", run.0);
        }
        fit
    }

    /// Whether a handler runs and was not told to end.
    pub(super) fn is_fit(&self, handler: RunId) -> bool {
        matches!(self.lock().get(&handler), Some(State::Running { signalled: false, .. }))
    }

    /// Its handler has answered. Unless that got a signal meanwhile, the run is over: it is forgotten, and `tell` tells
    /// so before anything else can happen to the two. Otherwise it is over when the handler's group is dead.
    pub(super) fn answered(&self, run: RunId, handler: RunId, tell: impl FnOnce()) -> bool {
        let mut runs = self.lock();
        let fit = matches!(runs.get(&handler), Some(State::Running { signalled: false, .. }));
        if fit {
            runs.remove(&run);
            tell();
        }
        fit
    }

    /// Waits until one that has not begun is told to end, but no longer than until then; whether it was.
    pub(super) fn wait_told_to_end(&self, run: RunId, until: Instant) -> bool {
        let mut runs = self.lock();
        loop {
            if matches!(runs.get(&run), Some(State::Starting { wanted: Some(_), .. })) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            runs = self.changed.wait_timeout(runs, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The leader is a zombie: kills what is left of its group, and reaps it. Returns how it ended, and whether
    /// it had been signalled by us while it lived.
    pub(super) fn reap(&self, run: RunId, leader: u32) -> (Result<Option<WaitIdStatus>, Errno>, Signalled) {
        let mut runs = self.lock();
        send(leader, Signal::KILL);
        let status = retry_on_intr(|| waitid(WaitId::Pid(to_pid(leader)), WaitIdOptions::EXITED));
        let signalled = match runs.insert(run, State::Ending) {
            Some(State::Running { signalled, answers, .. }) => Signalled {
                in_life: signalled,
                after_words: answers.is_some_and(|answers| answers.before_signal),
            },
            _ => Signalled::default(),
        };
        (status, signalled)
    }

    /// Every process of the run is dead, or there never was one.
    pub(super) fn dead(&self, run: RunId) {
        self.lock().insert(run, State::Dead);
        self.changed.notify_all();
    }

    /// The run's last event is sent.
    pub(super) fn remove(&self, run: RunId) {
        self.lock().remove(&run);
        self.changed.notify_all();
    }

    /// The groups whose leaders are not reaped yet.
    pub(super) fn leaders(&self) -> BTreeSet<u32> {
        let leader = |state: &State| match state {
            State::Running { leader, .. } => Some(*leader),
            State::Starting { .. } | State::Handed { .. } | State::Ending | State::Dead => None,
        };
        self.lock().values().filter_map(leader).collect()
    }

    /// Runs whose last event is not sent yet.
    pub(super) fn len(&self) -> usize {
        self.lock().range(..RunId(FIRST_HANDLER)).count()
    }

    /// Waits until everything that is there now is dead; whether it came to that within `bound`.
    pub(super) fn wait_dead(&self, bound: Duration) -> bool {
        let awaited: Vec<RunId> = self.lock().keys().copied().collect();
        self.wait_dead_of(&awaited, bound)
    }

    /// The same of these.
    pub(super) fn wait_dead_of(&self, awaited: &[RunId], bound: Duration) -> bool {
        let until = Instant::now() + bound;
        let mut runs = self.lock();
        let is_dead = |state: Option<&State>| matches!(state, None | Some(State::Dead));
        while !awaited.iter().all(|run| is_dead(runs.get(run))) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            runs = self.changed.wait_timeout(runs, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl State {
    /// Which handler has it.
    fn handler(&self) -> Option<RunId> {
        match self {
            State::Handed { handler } => Some(*handler),
            State::Starting { .. } | State::Running { .. } | State::Ending | State::Dead => None,
        }
    }
}

fn signal_one(state: &mut State, signal: GroupSignal) {
    match state {
        State::Starting { wanted, .. } if *wanted != Some(GroupSignal::Kill) => *wanted = Some(signal),
        State::Running { leader, signalled, answers } => {
            if !*signalled && !has_exited(*leader) {
                *signalled = true;
                answers.iter_mut().for_each(|answers| answers.before_signal = is_readable(&answers.pipe));
            }
            deliver(*leader, signal);
        }
        State::Starting { .. } | State::Handed { .. } | State::Ending | State::Dead => {}
    }
}

/// Whether there is something to read now.
fn is_readable(pipe: &OwnedFd) -> bool {
    let mut source = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let looked = retry_on_intr(|| poll(&mut source, Some(&at_once)));
    looked.is_ok() && source.iter().any(|source| source.revents().contains(PollFlags::IN))
}

/// Whether it is a zombie. Who stood still hears of its end only after it has sent what is too late.
fn has_exited(leader: u32) -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(retry_on_intr(|| waitid(WaitId::Pid(to_pid(leader)), look)), Ok(Some(_)))
}

fn deliver(leader: u32, signal: GroupSignal) {
    match signal {
        GroupSignal::Term => {
            send(leader, Signal::TERM);
            // One that is stopped must be able to act on it.
            send(leader, Signal::CONT);
        }
        GroupSignal::Kill => send(leader, Signal::KILL),
    }
}

/// To the leader's group, which it cannot leave: it leads the session, too.
fn send(leader: u32, signal: Signal) {
    if let Err(error) = kill_process_group(to_pid(leader), signal)
        && error != Errno::SRCH
    {
        log::warn!("cannot send {signal:?} to process group {leader}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    /// One that runs until it gets a signal, or one that is dead and not reaped, gets one.
    fn signalled(program: &str, dead: bool) -> bool {
        let run = RunId(1);
        let table = Table::default();
        let (_, gate) = std::io::pipe().expect("pipe");
        table.add(run, Arc::new(gate.into()));
        let leader = Command::new(program).arg("1000").process_group(0).spawn().expect("spawn").id();
        if dead {
            let until_dead = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(to_pid(leader)), until_dead).expect("wait");
        }
        table.running(run, leader, None);
        table.signal(run, GroupSignal::Term);
        table.reap(run, leader).1.in_life
    }

    /// It is dead by the time its run is told to be running, and it was we who killed it.
    #[test]
    fn who_was_killed_at_its_gate_got_a_signal_of_ours() {
        let run = RunId(1);
        let table = Table::default();
        let (_, gate) = std::io::pipe().expect("pipe");
        table.add(run, Arc::new(gate.into()));
        let leader = Command::new("sleep").arg("1000").process_group(0).spawn().expect("spawn").id();
        table.signal(run, GroupSignal::Kill);
        table.open_gate(run, leader, u64::MAX);
        waitid(WaitId::Pid(to_pid(leader)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).expect("wait");
        table.running(run, leader, None);
        assert!(table.reap(run, leader).1.in_life);
    }

    #[test]
    fn a_signal_to_who_is_dead_already_does_not_count() {
        assert!(signalled("sleep", false));
        assert!(!signalled("true", true));
    }
}
