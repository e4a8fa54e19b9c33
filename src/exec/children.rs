//! Our own children, as the kernel reports them. No other process has the number of a child that we have not reaped.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Signal, kill_process, kill_process_group};

use super::proc::{self, to_pid};
use crate::machine::Ended;

/// Keepers of all executors of this process, and what writes their logs: none is what another one has left.
static KEEPERS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

pub(super) fn keepers() -> MutexGuard<'static, BTreeSet<u32>> {
    KEEPERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What there is of our children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Children {
    /// This one has ended, and is not reaped.
    Ended(u32),
    /// There are some, and all live.
    Running,
    /// We have no child.
    None,
}

/// A child that has ended, if there is one. Leaves out the children that were made to end with another signal than
/// `SIGCHLD`: only a keeper makes such.
pub(super) fn next_ended() -> Children {
    wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
}

/// The same for children that were made to end with another signal.
pub(super) fn next_ended_clone() -> Children {
    wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WCLONE)
}

/// Whether this child, which is not reaped, has ended.
pub(super) fn has_ended(pid: u32) -> bool {
    wait(libc::P_PID, pid, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) == Children::Ended(pid)
}

/// Lets all children go on that are stopped.
pub(super) fn resume() {
    let flags = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
    while let Children::Ended(stopped) = wait(libc::P_ALL, 0, flags) {
        let _ = kill_process(to_pid(stopped), Signal::CONT);
    }
}

/// Lets these children go on, if they are stopped.
pub(super) fn resume_these(children: &[u32]) {
    for child in children {
        let _ = kill_process(to_pid(*child), Signal::CONT);
    }
}

fn wait(which: libc::idtype_t, pid: u32, flags: libc::c_int) -> Children {
    loop {
        // SAFETY: all zeros are a valid value of it, and the kernel fills it in.
        let (result, pid) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let result = libc::waitid(which, pid, &raw mut info, flags);
            (result, info.si_pid())
        };
        match result {
            0 if pid > 0 => return Children::Ended(pid.unsigned_abs()),
            0 => return Children::Running,
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return Children::None,
        }
    }
}

/// Reaps a child that has ended, or waits until it has.
pub(super) fn reap(pid: u32) -> Ended {
    let mut status = 0;
    loop {
        // SAFETY: a bare system call.
        let reaped = unsafe { libc::waitpid(pid.cast_signed(), &raw mut status, libc::__WALL) };
        if reaped >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    if libc::WIFSIGNALED(status) {
        Ended::Signal(libc::WTERMSIG(status))
    } else {
        Ended::Exit(libc::WEXITSTATUS(status))
    }
}

/// Ours that live, or are not reaped, as far as that can be seen. Only [`Children::None`] proves that there are none.
pub(super) fn list() -> Vec<u32> {
    try_list().unwrap_or_default()
}

/// The same; an error if it cannot be seen.
pub(super) fn try_list() -> io::Result<Vec<u32>> {
    list_of(std::process::id())
}

/// Whether this process is a child of ours that lives, or is not reaped.
pub(super) fn is_ours(pid: u32) -> bool {
    wait(libc::P_PID, pid, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL) != Children::None
}

/// SIGKILL to the children of a process that was killed itself and is not reaped, and to the groups that they lead.
/// It reaps nobody any more, so nobody else can have their numbers.
pub(super) fn kill_those_of(killed: u32) {
    for child in list_of(killed).unwrap_or_default() {
        let _ = kill_process_group(to_pid(child), Signal::KILL);
        let _ = kill_process(to_pid(child), Signal::KILL);
    }
}

fn list_of(parent: u32) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    let mut has_lists = false;
    for thread in fs::read_dir(format!("/proc/{parent}/task"))? {
        match fs::read_to_string(thread?.path().join("children")) {
            Ok(text) => {
                has_lists = true;
                found.extend(text.split_ascii_whitespace().flat_map(str::parse::<u32>));
            }
            // The thread has ended, or the kernel has no such lists.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
    if !has_lists {
        // A kernel without lists of children.
        found.extend(
            proc::scan()?.all.iter().filter(|process| process.parent == parent).map(|process| process.pid),
        );
    }
    Ok(found)
}

/// SIGKILL to these children, which are not reaped.
pub(super) fn kill(children: impl IntoIterator<Item = u32>) {
    for child in children {
        let _ = kill_process(to_pid(child), Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Other tests have children in this process too.
    #[test]
    fn a_child_is_listed_seen_to_end_and_reaped() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id();
        assert!(list().contains(&pid) && !has_ended(pid));
        kill([pid]);
        while !has_ended(pid) {
            std::thread::yield_now();
        }
        assert_ne!(next_ended(), Children::None);
        assert_eq!(reap(pid), Ended::Signal(9));
        assert!(!list().contains(&pid) && !has_ended(pid));
        assert!(child.wait().is_err(), "it was reaped");
    }
}
