//! What `/proc` says about processes, and how one that is not our unreaped child is killed: through a pidfd.
//!
//! Facts of the kernel's on which this and `group` rest:
//!
//! - A process is named for ever by (boot, pid namespace, pid, start time).
//! - A number is not given to a new process while any process, zombies included, has it as pid, group or
//!   session. So a process whose pid is a group's id, and which isn't that group's leader, proves that every
//!   process of that group is gone.
//! - A pidfd never refers to another process than the one that it was opened for.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use serde::{Deserialize, Serialize};

/// The kernel's flag for a process that is being ended.
const PF_EXITING: i64 = 0x4;

/// What is read of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProcessStat {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) group: u32,
    pub(super) session: u32,
    /// When the process was born, in ticks since boot.
    pub(super) start_ticks: u64,
    /// A zombie, all its threads: it will never run again.
    pub(super) dead: bool,
    /// It was stopped by a signal. (By a debugger it may be for a moment at each of its system calls.)
    pub(super) stopped: bool,
    /// Its first thread at least is on its way out.
    pub(super) exiting: bool,
}

impl ProcessStat {
    /// `None` if this isn't the text of a `stat` file.
    fn parse(text: &[u8]) -> Option<ProcessStat> {
        // The second field is the program's name in brackets, and may hold anything, brackets too.
        let open = text.iter().position(|&byte| byte == b'(')?;
        let close = text.iter().rposition(|&byte| byte == b')')?;
        let pid = std::str::from_utf8(&text[..open]).ok()?.trim().parse().ok()?;
        let fields: Vec<&str> =
            std::str::from_utf8(text.get(close + 1..)?).ok()?.split_ascii_whitespace().collect();
        // proc(5) counts from 1, and the first of these is its third.
        let field = |number: usize| fields.get(number - 3).copied();
        // Of a process that is being removed just now the kernel says `-1` for its group, and that it has no threads.
        let number = |of: usize| field(of)?.parse::<i64>().ok();
        let id = |of: usize| number(of).map(|id| u32::try_from(id).unwrap_or(0));
        let threads = number(20)?;
        // A process whose first thread has ended shows as a zombie although its other threads run on.
        let dead = threads == 0 || (matches!(field(3)?, "Z" | "X" | "x") && threads == 1);
        Some(ProcessStat {
            pid,
            parent: id(4)?,
            group: id(5)?,
            session: id(6)?,
            start_ticks: field(22)?.parse().ok()?,
            dead,
            stopped: field(3)? == "T",
            exiting: dead || number(9)? & PF_EXITING != 0,
        })
    }

    /// Whether the process with this number is this one, and not yet gone.
    pub(super) fn is_still(&self) -> bool {
        matches!(stat(self.pid), Ok(Some(now)) if now.start_ticks == self.start_ticks)
    }
}

/// The process with this pid; `None` if there is none. Fails if `/proc` cannot be read.
pub(super) fn stat(pid: u32) -> io::Result<Option<ProcessStat>> {
    match fs::read(format!("/proc/{pid}/stat")) {
        Ok(text) => Ok(Some(
            ProcessStat::parse(&text)
                .ok_or_else(|| io::Error::other(format!("cannot parse /proc/{pid}/stat")))?,
        )),
        Err(error) if is_gone(&error) => {
            // Without this, a /proc that isn't mounted would prove that everybody is dead.
            fs::metadata("/proc/self/stat").map(|_| None)
        }
        Err(error) => Err(error),
    }
}

/// The process ended during the read.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// The result of one scan of `/proc`. It is no snapshot: a process that forks and ends meanwhile may be missed.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Every process that we may see. Those of other users are missing if `/proc` is mounted so (`hidepid`,
    /// `ProtectProc`).
    pub(super) all: Vec<ProcessStat>,
    /// A process of which nothing could be read. As long as there is one, the scan proves nothing.
    pub(super) unseen: Option<String>,
}

/// Reads every process.
///
/// # Errors
///
/// If `/proc` cannot be listed.
pub(super) fn scan() -> io::Result<Scan> {
    let mut found = Scan::default();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        match stat(pid) {
            Ok(stat) => found.all.extend(stat),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => found.unseen = Some(format!("process {pid} ({error})")),
        }
    }
    Ok(found)
}

/// The session of a keeper or a slot: its id is its leader's pid, so the leader's start time makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessSession {
    pub(super) id: u32,
    /// In ticks since boot; 0 if it could not be learnt.
    pub(super) start_ticks: u64,
}

/// Names a process as no other ever was or will be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) boot_id: String,
    /// Inode of the pid namespace: pids mean nothing outside of it.
    pub(super) pid_ns: u64,
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
}

impl Identity {
    /// Our own. Fails without a readable `/proc`.
    pub(super) fn own() -> io::Result<Identity> {
        use std::os::unix::fs::MetadataExt;
        let pid = std::process::id();
        let own = stat(pid)?.ok_or_else(|| io::Error::other("/proc belongs to another pid namespace"))?;
        Ok(Identity {
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            pid_ns: fs::metadata("/proc/self/ns/pid")?.ino(),
            pid,
            start_ticks: own.start_ticks,
        })
    }

    /// The value of [`super::mark::OWNER_VAR`] in what this process starts: unique as long as the machine is up.
    pub(super) fn token(&self) -> String {
        format!("{}.{}.{}", self.pid_ns, self.pid, self.start_ticks)
    }
}

/// SIGKILL to this very process, if it is still in its group.
pub(super) fn kill_exactly(process: &ProcessStat) -> bool {
    let Ok(pidfd) = pidfd_open(to_pid(process.pid), PidfdFlags::empty()) else { return false };
    // Read after the pidfd was opened: if it is the same now, the pidfd is of it.
    let is_same = matches!(stat(process.pid), Ok(Some(now))
        if now.start_ticks == process.start_ticks && now.group == process.group);
    is_same && pidfd_send_signal(&pidfd, Signal::KILL).is_ok()
}

/// # Panics
///
/// If it is 0 or no pid at all: the kernel takes such numbers for "everybody".
pub(super) fn to_pid(pid: u32) -> Pid {
    let pid = i32::try_from(pid).ok().filter(|&pid| pid > 1).and_then(Pid::from_raw);
    pid.expect("a child's pid is above 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_is_no_trouble() {
        let line = b"42 (a) S 1 (b) c) Z 7 8 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        let stat = ProcessStat::parse(line).unwrap();
        let expected = ProcessStat {
            pid: 42,
            parent: 7,
            group: 8,
            session: 9,
            start_ticks: 12345,
            dead: true,
            stopped: false,
            exiting: true,
        };
        assert_eq!(stat, expected);
        let threads_left = b"42 (x) Z 7 8 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 12345 0 0";
        assert!(!ProcessStat::parse(threads_left).unwrap().dead);
        for cut in 0..line.len() - 6 {
            let _ = ProcessStat::parse(&line[..cut]);
        }
    }

    #[test]
    fn a_process_that_is_being_removed_counts_as_ended() {
        let line = b"1494 (sh) X 0 -1 -1 0 -1 4227084 50 0 0 0 0 0 0 0 20 0 0 0 98765 0 0";
        let stat = ProcessStat {
            pid: 1494,
            parent: 0,
            group: 0,
            session: 0,
            start_ticks: 98765,
            dead: true,
            stopped: false,
            exiting: true,
        };
        assert_eq!(ProcessStat::parse(line), Some(stat));
        // The letter may have been read a moment before the rest.
        let line = b"1494 (sh) R 0 -1 -1 0 -1 4227084 50 0 0 0 0 0 0 0 20 0 0 0 98765 0 0";
        assert_eq!(ProcessStat::parse(line), Some(stat));
        let line = b"1494 (sh) R 7 8 8 0 -1 4194308 50 0 0 0 0 0 0 0 20 0 1 0 98765 0 0";
        let exiting = ProcessStat { parent: 7, group: 8, session: 8, dead: false, ..stat };
        assert_eq!(ProcessStat::parse(line), Some(exiting));
    }

    #[test]
    fn our_own_process_is_recognised() {
        let own = Identity::own().unwrap();
        assert_eq!(own.pid, std::process::id());
        assert!(scan().unwrap().all.iter().any(|stat| stat.pid == own.pid));
    }
}
