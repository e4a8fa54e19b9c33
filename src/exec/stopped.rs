//! Whether something of a run is stopped (`SIGSTOP`, `SIGTSTP`, `SIGTTIN`), so that it may never end: it is logged.
//!
//! Nothing reports that to us. We check now and then the leader and the processes that it has started. It must not do
//! anything about it, for a task may have stopped itself on purpose.

use std::fs;
use std::time::Duration;

use super::proc::{ProcessStat, stat};

/// The time between two checks. A task that is stopped for less is not reported.
pub(super) const CHECK_EVERY: Duration = Duration::from_secs(3);
/// So many checks in a row must find the same process stopped.
const CHECKS_FOR_PROOF: u32 = 2;
/// Most processes of a run that are checked, since a check has to stay cheap.
const MOST_PROCESSES: usize = 64;

/// The result of the checks of one run, or of one handler's.
#[derive(Debug, Default)]
pub(super) struct StopWatch {
    /// The process that was found stopped last, by pid and birth, and in how many checks in a row.
    found: Option<((u32, u64), u32)>,
    /// It was logged.
    warned: bool,
}

impl StopWatch {
    /// Checks, and reports once what is stopped; `task` names the task.
    pub(super) fn check(&mut self, leader: u32, task: &str) -> Option<String> {
        if self.warned {
            return None;
        }
        let Some(process) = first_stopped(leader) else {
            self.found = None;
            return None;
        };
        let identity = (process.pid, process.start_ticks);
        let before = self.found.filter(|(found, _)| *found == identity).map_or(0, |(_, checks)| checks);
        self.found = Some((identity, before + 1));
        if before + 1 < CHECKS_FOR_PROOF {
            return None;
        }
        self.warned = true;
        let target = if process.group == leader { format!("-{leader}") } else { process.pid.to_string() };
        Some(format!(
            "{task}: process {} is stopped, by a signal such as SIGSTOP; it takes up its slot until it goes on \
             (kill -CONT {target}) or is ended",
            process.pid
        ))
    }
}

/// Of the leader and its descendants the first that is stopped.
fn first_stopped(leader: u32) -> Option<ProcessStat> {
    let mut family = vec![leader];
    let mut next = 0;
    while let Some(&pid) = family.get(next) {
        next += 1;
        if let Ok(Some(process)) = stat(pid)
            && process.stopped
        {
            return Some(process);
        }
        let room = MOST_PROCESSES.saturating_sub(family.len());
        family.extend(children(pid).into_iter().take(room));
    }
    None
}

/// The processes that a process has started, as far as the kernel says.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_ascii_whitespace().flat_map(str::parse).collect::<Vec<u32>>()).collect()
}
