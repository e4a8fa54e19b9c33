//! Whose a process is, by the variables in its environment with which we start everything.
//!
//! A process that cannot be inspected counts as ours, unless something proves that it is not.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::process::getuid;

use super::cgroup::without_leaf;
use super::proc::{ProcessStat, is_gone, stat};

/// The variable that marks what an executor has started; its value is [`super::proc::Identity::token`].
pub(super) const OWNER_VAR: &str = "ZKMW_OWNER";

/// More than the kernel gives to any program, arguments included (6 MiB).
const LONGEST_ENVIRONMENT_BYTES: u64 = 8 << 20;

/// A variable by which a process is recognised.
#[derive(Clone, Copy, Debug)]
pub(super) struct EnvMark<'a> {
    pub(super) variable: &'a str,
    pub(super) value: &'a str,
    /// In ticks since boot. A process that was born before has no such mark, so its environment need not be readable.
    pub(super) since: u64,
}

/// Whether a process bears a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bears {
    /// It was started with it, and hasn't changed its environment since.
    Yes,
    /// It does not, or it is gone.
    No,
    /// It may: its environment cannot be read now.
    Unreadable,
}

impl EnvMark<'_> {
    /// Whether this process bears it.
    pub(super) fn on(&self, process: &ProcessStat) -> Bears {
        // Process 1 was started by the kernel, or together with the container.
        if process.dead || process.pid == 1 || process.start_ticks < self.since {
            return Bears::No;
        }
        let found = match environment(process.pid) {
            Ok(environ) if environ.is_empty() => return self.on_empty(process),
            Ok(environ) => self.is_in(&environ),
            Err(error) if is_gone(&error) => return Bears::No,
            Err(error) => {
                let refused = error.kind() == io::ErrorKind::PermissionDenied;
                return if refused && is_elsewhere(process.pid) { Bears::No } else { Bears::Unreadable };
            }
        };
        // The number may have changed hands between the two reads.
        if found && process.is_still() { Bears::Yes } else { Bears::No }
    }

    /// A process without an environment: started so, or on its way out. The latter may still hold locks.
    fn on_empty(&self, process: &ProcessStat) -> Bears {
        match stat(process.pid) {
            Ok(Some(now)) if now.start_ticks != process.start_ticks || now.dead => Bears::No,
            Ok(Some(now)) if now.exiting => Bears::Unreadable,
            Ok(_) => Bears::No,
            Err(_) => Bears::Unreadable,
        }
    }

    fn is_in(&self, environ: &[u8]) -> bool {
        let EnvMark { variable, value, .. } = self;
        let wanted = format!("{variable}={value}");
        environ.split(|&byte| byte == 0).any(|found| found == wanted.as_bytes())
    }
}

/// Reads a file of `/proc` that holds an environment. A process may say of itself that its environment is all of its
/// memory.
fn read_environment(path: &Path) -> io::Result<Vec<u8>> {
    let mut environ = Vec::new();
    File::open(path)?.take(LONGEST_ENVIRONMENT_BYTES + 1).read_to_end(&mut environ)?;
    if environ.len() as u64 > LONGEST_ENVIRONMENT_BYTES {
        return Err(io::Error::other("its environment is too long"));
    }
    Ok(environ)
}

/// The environment of a process, of which one thread may have ended before the others, even the first.
fn environment(pid: u32) -> io::Result<Vec<u8>> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let environ = read_environment(&folder.join("environ"))?;
    if !environ.is_empty() {
        return Ok(environ);
    }
    for thread in fs::read_dir(folder.join("task"))? {
        match read_environment(&thread?.path().join("environ")) {
            Ok(environ) if environ.is_empty() => {}
            Err(error) if is_gone(&error) => {}
            other => return other,
        }
    }
    Ok(Vec::new())
}

/// Whether a process that we may not inspect is proved not to be ours: it has another user, or another control group.
/// (Set-user-id programs started by a task are out of our reach without a control group.)
fn is_elsewhere(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    match status.as_deref().map(real_user) {
        Ok(Some(user)) if user != getuid().as_raw() => return true,
        Ok(_) => {}
        Err(error) => return is_gone(error),
    }
    let cgroup = |of: &str| fs::read_to_string(format!("/proc/{of}/cgroup"));
    match (cgroup("self"), cgroup(&pid.to_string())) {
        (Ok(own), Ok(other)) => !is_within(&own, &other),
        (_, Err(error)) => is_gone(&error),
        (Err(_), Ok(_)) => false,
    }
}

/// The real user in the text of a `status` file.
fn real_user(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().next()?.parse().ok()
}

/// Whether, by the texts of two `cgroup` files, the other process may be in our control group or below it.
fn is_within(own: &str, other: &str) -> bool {
    fn path(text: &str) -> Option<&Path> {
        text.lines().find_map(|line| line.strip_prefix("0::")).map(Path::new)
    }
    match (path(own).map(without_leaf), path(other)) {
        (Some(own), Some(other)) => other.starts_with(own),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_user_or_cgroup_proves_that_it_is_not_ours() {
        assert_eq!(real_user("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\n"), Some(1000));
        assert_eq!(real_user("Name:\tx\n"), None);
        assert!(is_within("0::/a/b\n", "0::/a/b\n") && is_within("0::/a/b\n", "0::/a/b/c\n"));
        assert!(is_within("0::/a/zkmw-worker\n", "0::/a/zkmw-1-2.0/3\n"));
        assert!(!is_within("0::/a/b\n", "0::/a/bc\n") && !is_within("0::/a/b\n", "0::/a\n"));
        assert!(is_within("5:cpu:/a\n", "5:cpu:/b\n"), "without version 2 nothing is known");
        assert!(is_elsewhere(u32::MAX), "there is none");
        assert!(!is_elsewhere(std::process::id()));
    }

    #[test]
    fn an_endless_environment_is_not_read_to_its_end() {
        assert!(read_environment("/dev/zero".as_ref()).is_err());
        assert!(!read_environment("/proc/self/environ".as_ref()).unwrap().is_empty());
    }

    #[test]
    fn a_process_older_than_the_mark_needs_no_check() {
        let own = stat(std::process::id()).unwrap().unwrap();
        let (variable, value) = std::env::vars().find(|(_, value)| !value.is_empty()).unwrap();
        let mark = |since| EnvMark { variable: &variable, value: &value, since };
        assert_eq!(mark(own.start_ticks).on(&own), Bears::Yes);
        assert_eq!(mark(own.start_ticks + 1).on(&own), Bears::No);
        let other = ProcessStat { start_ticks: own.start_ticks + 1, ..own };
        assert_eq!(mark(0).on(&other), Bears::No, "its number belongs to another process now");
    }
}
