//! When memory runs out: tasks go before their worker, and an outcome says what is known of it.
//!
//! The kernel does not report which process it has killed. It counts how many, in the control group of the worker or,
//! where that is not readable, on the whole machine. So a message here is only as certain as the count.

use std::ffi::CStr;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use libc::SIGKILL;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, write};

use super::cgroup::home;
use crate::exit;
use crate::machine::Ended;

/// How much sooner than us the kernel takes what we run, in thousandths of all memory: a worker may be larger than most
/// tasks where little memory is allowed, and without it nobody says what became of them.
const SOONER: i32 = 500;
/// The highest score that there is.
const HIGHEST: i32 = 1000;
/// How old a count may be that a run begins with.
const READ_EVERY: Duration = Duration::from_secs(1);
/// A shell exits with this code if SIGKILL killed the program that it had started.
const SHELL_KILLED: i32 = exit::SIGNAL_BASE + SIGKILL;

/// What an executor knows of memory.
#[derive(Debug)]
pub(super) struct Memory {
    /// The file with the kernel's count, and the processes that it covers.
    count: PathBuf,
    whose: &'static str,
    /// What was read last, and when: to read it costs as much as to start a small program.
    last: Option<(Instant, Kills)>,
}

/// How often the kernel had killed for want of memory; `None` if it doesn't say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kills(Option<u64>);

impl Memory {
    pub(super) fn new() -> Memory {
        let of_group = home().ok().map(|group| group.join("memory.events"));
        let (count, whose) = match of_group.filter(|events| events.exists()) {
            Some(events) => (events, "the worker's control group"),
            None => ("/proc/vmstat".into(), "this machine"),
        };
        Memory { count, whose, last: None }
    }

    /// How often it had killed a second ago at most.
    pub(super) fn kills(&mut self) -> Kills {
        match self.last {
            Some((read, kills)) if read.elapsed() < READ_EVERY => kills,
            Some(_) | None => self.kills_now(),
        }
    }

    fn kills_now(&mut self) -> Kills {
        let kills = Kills(fs::read_to_string(&self.count).ok().as_deref().and_then(kills_in));
        self.last = Some((Instant::now(), kills));
        kills
    }

    /// The detail of a run that ended so without a signal of ours. `before` is the count of kills at its start.
    pub(super) fn explain(&mut self, ended: Ended, before: Kills) -> Option<String> {
        if !matches!(ended, Ended::Signal(SIGKILL) | Ended::Exit(SHELL_KILLED)) {
            return None;
        }
        let more = match (before.0, self.kills_now().0) {
            (Some(before), Some(now)) => now.saturating_sub(before),
            _ => 0,
        };
        in_words(ended, more, self.whose)
    }
}

/// What [`go_sooner`] is to be given.
pub(super) fn score() -> String {
    let own = fs::read_to_string("/proc/self/oom_score_adj").ok();
    let own = own.and_then(|score| score.trim().parse().ok()).unwrap_or(0);
    score_of_tasks(own).to_string()
}

fn score_of_tasks(own: i32) -> i32 {
    (own + SOONER).clamp(0, HIGHEST)
}

/// The number in the text of a `memory.events`, or of `/proc/vmstat`.
fn kills_in(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

fn in_words(ended: Ended, kills: u64, whose: &str) -> Option<String> {
    let killed = "killed by SIGKILL, which the worker did not send";
    let meanwhile = format!(
        "while it ran, the kernel killed {kills} process{} of {whose} for want of memory",
        if kills == 1 { "" } else { "es" }
    );
    match (ended, kills) {
        (Ended::Signal(_), 0) => Some(killed.to_owned()),
        (Ended::Signal(_), _) => Some(format!("{killed}; {meanwhile}")),
        (Ended::Exit(_) | Ended::Broken, 0) => None,
        (Ended::Exit(_) | Ended::Broken, _) => Some(meanwhile),
    }
}

/// Has the kernel take this process sooner. For the child between fork and exec: makes bare system calls only.
pub(super) fn go_sooner(score: &str) -> Result<(), Errno> {
    const OWN: &CStr = c"/proc/self/oom_score_adj";
    let file = openat(CWD, OWN, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    write(&file, score.as_bytes()).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_go_before_their_worker_and_never_enjoy_its_protection() {
        assert_eq!([-1000, -500, 0, 200, 800, 1000].map(score_of_tasks), [0, 0, 500, 700, 1000, 1000]);
    }

    #[test]
    fn both_of_the_kernels_texts_are_understood() {
        assert_eq!(kills_in("low 0\nmax 3\noom 2\noom_kill 7\noom_group_kill 1\n"), Some(7));
        assert_eq!(kills_in("nr_free 5\noom_kill 12\ndrop_slab 0\n"), Some(12));
        assert_eq!(kills_in("nr_free 5\n"), None);
    }

    #[test]
    fn only_what_is_known_is_said() {
        let says = |ended, kills| in_words(ended, kills, "this machine").unwrap_or_default();
        assert_eq!(says(Ended::Signal(9), 0), "killed by SIGKILL, which the worker did not send");
        assert!(says(Ended::Signal(9), 2).ends_with("killed 2 processes of this machine for want of memory"));
        assert!(says(Ended::Exit(137), 1).starts_with("while it ran, the kernel killed 1 process of"));
        assert_eq!(says(Ended::Exit(137), 0), "");
        let mut memory = Memory::new();
        assert_eq!(memory.explain(Ended::Exit(1), Kills(Some(0))), None);
        assert_eq!(memory.explain(Ended::Signal(15), Kills(Some(0))), None);
    }
}
