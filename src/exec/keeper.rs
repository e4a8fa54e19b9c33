//! The keeper: makes slots, and sees to it that nothing of a slot that was lost lives on.
//!
//! A process of its own with one thread, so that it can fork slots without an exec. It adopts what a dead slot has
//! left. It starts slots only, so any other child of its own is such a thing, and gets SIGKILL. Slots are made to end
//! with another signal than `SIGCHLD`: `waitid` without `__WCLONE` reports adopted processes alone, and `ECHILD`
//! proves that there are none.
//!
//! It must not: wait for anybody but its children, write to standard error, or say that a slot is gone while something
//! of it lives.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::read;
use rustix::process::{Signal, kill_process, setsid};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

use super::birth::Surroundings;
use super::cgroup;
use super::children::{self, Children};
use super::proc::to_pid;
use super::shared_page::{ENDLESS, SharedPage};
use super::slot::Slot;
use super::system::{SLOT_SOCKET, detach, set_timer, signals, timespec};
use super::wire::{FromKeeper, Link, ToKeeper};
use crate::clock;

/// The signal with which a slot ends.
const SLOT_ENDS_WITH: libc::c_int = libc::SIGUSR1;
/// A slot that has not checked the lease so long after it ended, as far as the slot knew, counts as suspended.
pub(super) const SLACK: Duration = Duration::from_millis(100);
/// How long slots may take to end by themselves when the worker is gone.
pub(super) const SLOTS_END_WITHIN: Duration = Duration::from_millis(500);
/// The pause between two checks of a process that does not die.
const PAUSE: Duration = Duration::from_millis(2);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The names of both kinds of process in short lists.
const KEEPER_NAME: &std::ffi::CStr = c"zkmw-keeper";
const SLOT_NAME: &std::ffi::CStr = c"zkmw-slot";

/// The life of a keeper: what `zkmw slots` does. Its standard input is the worker's socket.
///
/// # Errors
///
/// If no worker has started it, or it lacks something that it needs.
pub fn run() -> anyhow::Result<()> {
    let mut link = Link::new(detach(KEEPER_NAME)?);
    become_subreaper();
    let hello = loop {
        link.receive();
        match link.next() {
            Some(ToKeeper::Hello(hello)) => break hello,
            Some(_) => bail!("the worker speaks another language"),
            None if link.is_closed() => return Ok(()),
            None => wait_for(&link),
        }
    };
    let page = link.take_descriptor().context("the worker has sent no page")?;
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let mut keeper = Keeper {
        link,
        page: SharedPage::map(page).context("cannot map the page")?,
        signals: signals(&[libc::SIGCHLD, SLOT_ENDS_WITH]).context("no room for a descriptor")?,
        timer: timerfd_create(TimerfdClockId::Boottime, flags).context("no room for a timer")?,
        cgroups: hello.cgroups.clone().map(PathBuf::from),
        surroundings: Surroundings::new(*hello),
        slots: BTreeMap::new(),
        closed_at: None,
        pause: PAUSE,
    };
    keeper.live();
    Ok(())
}

fn wait_for(link: &Link) {
    let _ = poll(&mut [PollFd::from_borrowed_fd(link.as_fd(), PollFlags::IN)], None);
}

/// Orphans of our descendants become our children.
pub(super) fn become_subreaper() {
    // SAFETY: a bare system call about this process.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

struct Keeper {
    link: Link,
    page: SharedPage,
    signals: OwnedFd,
    timer: OwnedFd,
    cgroups: Option<PathBuf>,
    surroundings: Surroundings,
    slots: BTreeMap<u32, Process>,
    /// When the worker went.
    closed_at: Option<Instant>,
    /// The pause until the next check of processes that do not die.
    pause: Duration,
}

/// A slot's process.
#[derive(Debug)]
struct Process {
    pid: u32,
    /// We have killed it.
    killed: bool,
    /// It is reaped; what it has left may live.
    dead: bool,
}

impl Keeper {
    fn live(&mut self) {
        while !(self.closed_at.is_some() && self.slots.is_empty()) {
            self.turn();
        }
        if let Some(base) = &self.cgroups {
            cgroup::remove(base);
        }
    }

    fn turn(&mut self) {
        let unclean = self.slots.values().any(|slot| slot.dead || slot.killed);
        let pause = match self.closed_at {
            _ if unclean => Some(self.pause),
            Some(at) => Some(SLOTS_END_WITHIN.saturating_sub(at.elapsed()).max(PAUSE)),
            None => None,
        };
        let pause = pause.map(timespec);
        let wanted = if self.link.has_unsent() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut sources = vec![
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.timer.as_fd(), PollFlags::IN),
        ];
        if self.closed_at.is_none() {
            sources.push(PollFd::from_borrowed_fd(self.link.as_fd(), wanted));
        }
        let _ = poll(&mut sources, pause.as_ref());
        let _ = read(&self.signals, &mut [0; 1024]);
        let _ = read(&self.timer, &mut [0; 8]);
        children::resume();
        self.reap_slots();
        self.clean();
        if self.closed_at.is_none() {
            self.hear();
        } else if self.closed_at.is_some_and(|at| at.elapsed() >= SLOTS_END_WITHIN) {
            self.slots.values_mut().for_each(Process::kill);
        }
        self.kill_suspended_slots();
        if self.slots.values().any(|slot| slot.killed && !slot.dead) {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Takes in what the worker says.
    fn hear(&mut self) {
        self.link.flush();
        self.link.receive();
        while let Some(frame) = self.link.next() {
            match frame {
                ToKeeper::Make { slot } => self.make(slot),
                ToKeeper::Kill { slot } => self.slots.get_mut(&slot).into_iter().for_each(Process::kill),
                ToKeeper::Wake | ToKeeper::Hello(_) => {}
            }
        }
        if self.link.is_closed() {
            self.closed_at = Some(Instant::now());
        }
    }

    /// Forks a slot.
    fn make(&mut self, slot: u32) {
        let Some(socket) = self.link.take_descriptor() else {
            return self.link.say(&FromKeeper::Refused { slot, errno: libc::EMFILE });
        };
        let part = self.page.part(slot);
        // What one of this number before has left.
        part.armed.store(0, Ordering::SeqCst);
        part.killing.store(0, Ordering::SeqCst);
        // SAFETY: this process has one thread, so a fork has a copy of all that it needs.
        let pid = unsafe { libc::syscall(libc::SYS_clone, SLOT_ENDS_WITH as libc::c_ulong, 0, 0, 0, 0) };
        match pid {
            0 => self.be_slot(slot, &socket),
            1.. => {
                let pid = u32::try_from(pid).unwrap_or(u32::MAX);
                self.slots.insert(slot, Process { pid, killed: false, dead: false });
                self.link.say(&FromKeeper::Made { slot, pid });
            }
            _ => {
                let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
                self.link.say(&FromKeeper::Refused { slot, errno });
            }
        }
    }

    /// The life of a slot, in a process of its own.
    fn be_slot(&self, number: u32, socket: &OwnedFd) -> ! {
        // SAFETY: what is closed is our parent's, and nothing here uses it any more.
        let socket = unsafe {
            if socket.as_raw_fd() != SLOT_SOCKET {
                libc::dup3(socket.as_raw_fd(), SLOT_SOCKET, libc::O_CLOEXEC);
            }
            libc::syscall(libc::SYS_close_range, SLOT_SOCKET + 1, libc::c_uint::MAX, 0);
            OwnedFd::from_raw_fd(SLOT_SOCKET)
        };
        let _ = setsid();
        become_subreaper();
        let _ = rustix::thread::set_name(SLOT_NAME);
        let surroundings = self.surroundings.clone();
        if let Ok(mut slot) = Slot::new(number, &self.page, socket, surroundings, self.cgroups.as_deref()) {
            slot.live();
        }
        // SAFETY: ends this process without what its parent meant to run at its own end.
        unsafe { libc::_exit(0) }
    }

    /// Reaps slots that are dead.
    fn reap_slots(&mut self) {
        while let Children::Ended(pid) = children::next_ended_clone() {
            children::reap(pid);
            if let Some(slot) = self.slots.values_mut().find(|slot| slot.pid == pid && !slot.dead) {
                slot.dead = true;
                self.pause = PAUSE;
            }
        }
    }

    /// Kills and reaps what dead slots have left; says that they are gone when nothing is.
    fn clean(&mut self) {
        while let Children::Ended(pid) = children::next_ended() {
            children::reap(pid);
        }
        let dead: Vec<u32> = self.slots.iter().filter(|(_, slot)| slot.dead).map(|(slot, _)| *slot).collect();
        if dead.is_empty() && children::next_ended() == Children::None {
            return;
        }
        let slots: Vec<u32> = self.slots.values().filter(|slot| !slot.dead).map(|slot| slot.pid).collect();
        children::kill(children::list().into_iter().filter(|pid| !slots.contains(pid)));
        let left = self.cgroups.as_deref().is_some_and(|base| dead.iter().any(|slot| !empties(base, *slot)));
        while let Children::Ended(pid) = children::next_ended() {
            children::reap(pid);
        }
        if left || children::next_ended() != Children::None {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            return;
        }
        for slot in dead {
            let killed = self.slots.remove(&slot).is_some_and(|slot| slot.killed);
            self.link.say(&FromKeeper::Gone { slot, killed });
        }
    }

    /// Kills slots that have not checked the lease when it was due, and arms the timer for the next check.
    fn kill_suspended_slots(&mut self) {
        let (now, slack) = (clock::now().as_nanos(), SLACK.as_nanos() as u64);
        let deadline = self.page.deadline();
        // The lease was made shorter, and a slot that hangs does not know.
        let is_over = deadline.is_some_and(|deadline| deadline.saturating_add(slack) <= now);
        let mut next = deadline.filter(|deadline| *deadline > now);
        for (number, slot) in self.slots.iter_mut().filter(|(_, slot)| !slot.dead) {
            match self.page.part(*number).armed.load(Ordering::SeqCst) {
                0 => {}
                armed if is_over || armed.saturating_add(slack) <= now => {
                    slot.kill();
                    // No signal may reach the slot, and its run has to die in that case too.
                    let group = self.cgroups.as_ref().map(|base| base.join(number.to_string()));
                    group.iter().for_each(|group| cgroup::kill(group));
                    children::kill_those_of(slot.pid);
                }
                armed => next = Some(next.map_or(armed, |next| next.min(armed))),
            }
        }
        let at = next.filter(|next| *next < ENDLESS).map_or(0, |next| next.saturating_add(slack));
        set_timer(&self.timer, at);
    }
}

impl Process {
    fn kill(&mut self) {
        // Until it is reaped nobody else can have its number.
        if !self.dead && !self.killed {
            self.killed = true;
            let _ = kill_process(to_pid(self.pid), Signal::KILL);
        }
    }
}

/// Kills what is in a dead slot's cgroup. Whether it is empty, and removed. The next slot of that number makes another.
fn empties(base: &Path, slot: u32) -> bool {
    let path = base.join(slot.to_string());
    let empty = cgroup::kill_and_wait(&path, Some(Duration::ZERO));
    if empty {
        cgroup::remove(&path);
    }
    empty
}
