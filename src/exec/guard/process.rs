//! The guard process: kills what an executor runs when that has died, or when the lease ends.
//!
//! It owns the list of groups that it was told, and nothing else: no connection, no decision. It must not
//! kill anything that is not proved to be a run of its executor, nor anything that was started under a lease
//! that holds.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsString};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_setfl, fstat};
use rustix::io::{Errno, read};
use rustix::process::{setpriority_process, setsid};
use rustix::stdio::stdin;
use rustix::thread::set_name;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

use super::message::{MESSAGE_BYTES, Message};
use crate::exec::cgroup;
use crate::exec::proc::{birth_in, boottime_nanos, ticks_of};
use crate::exec::sweep::{Struck, Sweep};

/// Messages read at once.
const MESSAGES_AT_ONCE: usize = 256;
/// The pause between two blows while something that must die lives. It doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// So many looks in a row must find nothing alive before it is believed.
const LOOKS_FOR_PROOF: u32 = 3;
/// What does not die within this is told.
const WARN_AFTER: Duration = Duration::from_secs(10);
/// Its name in short lists of processes, which is `exe` for whoever was started as `/proc/self/exe`.
const THREAD_NAME: &CStr = c"zkmw-guard";
/// A guard comes before most others: it acts seldom, and then at once. Only root may have that.
const NICE: i32 = -10;

/// The life of a guard; `args` are those after the subcommand. Returns when there is nothing left to guard.
///
/// # Errors
///
/// If it was not started by an executor, or lacks what it stands on.
pub fn run(args: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let args: Vec<OsString> = args.collect();
    let (token, cgroups) = match args.as_slice() {
        [token] => (token, None),
        [token, cgroups] => (token, Some(PathBuf::from(cgroups))),
        _ => bail!("it is started by workers and electors, and by nobody else"),
    };
    let token = token.to_str().context("not a token")?.to_owned();
    let kind = fstat(stdin()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if kind != Ok(FileType::Fifo) {
        bail!("it is started by workers and electors, and by nobody else");
    }
    settle();
    fcntl_setfl(stdin(), OFlags::NONBLOCK).context("cannot set up standard input")?;
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK);
    let timer = timer.context("cannot make a timer")?;
    let guard = Guardian {
        since: birth_in(&token),
        token,
        cgroups,
        timer,
        until: 0,
        groups: BTreeMap::new(),
        held_until: 0,
        doomed: BTreeMap::new(),
        clean: 0,
        end: None,
    };
    guard.watch();
    Ok(())
}

/// Out of the way of what could end it together with its executor. Whatever of it fails, it guards all the same.
fn settle() {
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGALRM, SIGPIPE, SIGUSR1, SIGUSR2] {
        let _ = signal_hook::flag::register(signal, Arc::default());
    }
    let _ = setsid();
    let _ = set_name(THREAD_NAME);
    let _ = std::env::set_current_dir("/");
    let _ = setpriority_process(None, NICE);
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
}

/// Why there is nothing more to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It said so.
    Stop,
    /// It is dead.
    Dead,
}

struct Guardian {
    token: String,
    /// When the executor was started, in ticks since boot.
    since: u64,
    cgroups: Option<PathBuf>,
    timer: OwnedFd,
    until: u64,
    /// Id and birth of each group that may live.
    groups: BTreeMap<u32, u64>,
    /// When the executor lived last that we know of, in ticks since boot; it reaps no leader of a group that it has
    /// not called gone, but a moment before it does.
    held_until: u64,
    /// Those of them that lived when the lease ended.
    doomed: BTreeMap<u32, u64>,
    /// So many looks in a row found nothing of the doomed alive.
    clean: u32,
    end: Option<End>,
}

impl Guardian {
    fn watch(mut self) {
        let mut pause = None;
        while self.end.is_none() {
            self.wait(pause);
            // In this order: everything that was written before `now` counts, above all a longer lease.
            let now = boottime_nanos();
            self.listen();
            if self.end.is_none() {
                self.held_until = ticks_of(now);
            }
            let killing = self.end.is_none() && self.strike(now);
            pause =
                killing.then(|| pause.map_or(FIRST_PAUSE, |last: Duration| (last * 2).min(LONGEST_PAUSE)));
        }
        if self.end == Some(End::Dead) {
            self.bury();
        }
    }

    /// Until there is something to read, the lease ends, or the pause is over.
    fn wait(&self, pause: Option<Duration>) {
        let over = Timespec { tv_sec: 0, tv_nsec: 0 };
        let lapsed = self.is_lapsed(boottime_nanos());
        let nanos = |pause: Duration| pause.as_nanos().min(999_999_999) as _;
        let limit = pause.map(|pause| Timespec { tv_sec: 0, tv_nsec: nanos(pause) });
        if !lapsed {
            let value = Timespec {
                tv_sec: (self.until / 1_000_000_000) as _,
                tv_nsec: (self.until % 1_000_000_000) as _,
            };
            let at = Itimerspec { it_interval: over, it_value: value };
            if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &at) {
                log::error!("cannot set the timer: {error}");
            }
        }
        let mut sources = vec![PollFd::from_borrowed_fd(stdin(), PollFlags::IN)];
        if !lapsed {
            sources.push(PollFd::from_borrowed_fd(self.timer.as_fd(), PollFlags::IN));
        }
        match poll(&mut sources, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                log::error!("cannot wait: {error}");
                std::thread::sleep(FIRST_PAUSE);
            }
        }
    }

    fn is_lapsed(&self, now: u64) -> bool {
        now >= self.until
    }

    /// Takes in everything that was said.
    fn listen(&mut self) {
        let mut buffer = [0; MESSAGE_BYTES * MESSAGES_AT_ONCE];
        loop {
            let filled = match read(stdin(), &mut buffer) {
                Ok(0) => {
                    self.end = self.end.or(Some(End::Dead));
                    return;
                }
                Ok(filled) => filled,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    log::error!("cannot read what the executor says: {error}");
                    self.end = Some(End::Dead);
                    return;
                }
            };
            let (messages, _) = buffer[..filled].as_chunks::<MESSAGE_BYTES>();
            for message in messages {
                self.take_in(Message::decode(message));
            }
        }
    }

    fn take_in(&mut self, message: Option<Message>) {
        match message {
            Some(Message::Here { pgid, start_ticks }) => {
                self.groups.insert(pgid, start_ticks);
            }
            Some(Message::Gone { pgid }) => {
                self.groups.remove(&pgid);
                self.doomed.remove(&pgid);
            }
            Some(Message::Lease { until }) => self.until = until,
            Some(Message::Stop) => self.end = Some(End::Stop),
            None => {
                log::error!("the executor says what nobody understands: taking it for dead");
                self.end = Some(End::Dead);
            }
        }
    }

    /// Dooms what the lease did not cover at the time `now`, since when everything was heard; whether it has ended.
    fn doom(&mut self, now: u64) -> bool {
        let lapsed = self.is_lapsed(now);
        if lapsed {
            let new = self.groups.iter().filter(|(pgid, _)| !self.doomed.contains_key(pgid)).count();
            if new > 0 {
                log::warn!("the lease ended: killing {new} process groups");
                self.doomed = self.groups.clone();
                self.clean = 0;
            }
        }
        lapsed
    }

    /// Kills what the lease does not cover; whether something that must die may live.
    fn strike(&mut self, now: u64) -> bool {
        let lapsed = self.doom(now);
        if self.doomed.is_empty() || self.clean == LOOKS_FOR_PROOF {
            return false;
        }
        if lapsed && let Some(cgroups) = &self.cgroups {
            // All at once, before anything could fork. Nothing in there began under a longer lease: that would be
            // in the pipe. (Who ran nothing any more may renew and begin in this very moment: see Known gaps.)
            let _ = fs::write(cgroups.join("cgroup.kill"), "1");
        }
        // Whoever left its group dies too, also if it was born after the end; not what a longer lease might cover, nor
        // in the tick of `now`: that is for the next blow, or for the executor that lives and renews its lease.
        let born_before = lapsed.then(|| ticks_of(now));
        let sweep = Sweep {
            token: &self.token,
            since: self.since,
            groups: &self.doomed,
            held_until: self.held_until,
            cgroups: self.cgroups.as_deref(),
            strays_born_before: born_before,
        };
        match sweep.strike() {
            Ok(struck) => self.clean = if struck.is_clean() { self.clean + 1 } else { 0 },
            Err(error) => {
                self.clean = 0;
                log::error!("cannot look for processes: {error}");
            }
        }
        true
    }

    /// The executor is dead: kills everything that it ran, and waits for the end of it.
    fn bury(&self) {
        let begun = Instant::now();
        if let Some(cgroups) = &self.cgroups {
            // All at once, before anything could fork.
            let _ = fs::write(cgroups.join("cgroup.kill"), "1");
        }
        let (mut clean, mut pause, mut warned, mut killed) = (0, FIRST_PAUSE, false, 0);
        while clean < LOOKS_FOR_PROOF {
            let sweep = Sweep {
                token: &self.token,
                since: self.since,
                groups: &self.groups,
                held_until: self.held_until,
                cgroups: self.cgroups.as_deref(),
                strays_born_before: Some(u64::MAX),
            };
            let late = begun.elapsed() >= WARN_AFTER;
            match sweep.strike() {
                Ok(Struck { found: 0, unseen: Some(unseen), .. }) if late => {
                    log::error!(
                        "a dead worker may have started {unseen}, which cannot be looked at: end it by hand"
                    );
                    break;
                }
                Ok(struck) => {
                    clean = if struck.is_clean() { clean + 1 } else { 0 };
                    killed += struck.killed;
                }
                Err(error) => {
                    clean = 0;
                    log::error!("cannot look for processes: {error}");
                }
            }
            if late && !warned {
                warned = true;
                log::error!("what a dead worker ran does not die; still trying");
            }
            std::thread::sleep(pause);
            pause = if clean > 0 { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        }
        if let Some(cgroups) = &self.cgroups {
            cgroup::kill_and_wait(cgroups, None);
            cgroup::remove(cgroups);
        }
        if killed > 0 {
            log::warn!("its executor is dead: killed what it ran");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_ends_after_the_last_message_was_looked_for_has_not_ended_yet() {
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC).unwrap();
        let groups = BTreeMap::from([(5, 1)]);
        let (doomed, until) = (BTreeMap::new(), 1_000);
        let mut guard = Guardian {
            token: String::new(),
            since: 0,
            cgroups: None,
            timer,
            until,
            groups,
            held_until: 0,
            doomed,
            clean: 0,
            end: None,
        };
        // By now the clock says much more.
        assert!(!guard.doom(999) && guard.doomed.is_empty());
        guard.take_in(Some(Message::Lease { until: 1_500 }));
        assert!(!guard.doom(1_000) && guard.doomed.is_empty());
        assert!(guard.doom(1_500) && guard.doomed.contains_key(&5));
    }
}
