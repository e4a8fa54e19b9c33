//! A cgroup for each run, where we may have them: whatever a task starts stays in it, so it all dies.
//!
//! Needs cgroup v2 with `cgroup.kill` (Linux 5.14), and the right to make children of our own cgroup: root has it,
//! and a service whose unit says `Delegate=yes`. Without them runs are only process groups.
//!
//! The cgroups are children of one of ours, `zkmw-PID-BIRTH.N`, one for each slot, and are used again when they are
//! empty and were never killed: to make one costs as much as to start a small program.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::limits::{Hits, LEAF, RunLimits};
use super::proc::Identity;
use crate::machine::Ended;

/// The first pause between two checks of a cgroup that is being emptied; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A cgroup that isn't empty after this is worth a warning.
const WARN_AFTER: Duration = Duration::from_secs(10);

/// The folder of the cgroups of an executor's runs.
#[derive(Debug)]
pub(super) struct Cgroups {
    base: PathBuf,
}

impl Cgroups {
    /// Makes a folder for the runs of this process's executor with this number; the error says why there can be none.
    /// Each run will have these limits.
    pub(super) fn make(own: &Identity, number: u32, limits: &RunLimits) -> io::Result<Cgroups> {
        let home = home()?;
        let base = home.join(format!("{}{number}", prefix(own.pid, own.start_ticks)));
        fs::create_dir(&base)?;
        // Removed again, if that is all that can be had.
        let cgroups = Cgroups { base };
        let base = &cgroups.base;
        fs::metadata(base.join("cgroup.kill"))?;
        if !limits.is_empty() {
            limits.enable(&home, base).map_err(io::Error::other)?;
            // What the kernel refuses is known before the first task.
            let trial = RunGroup::make(base, 0, *limits);
            remove_below(base);
            trial?;
        }
        Ok(cgroups)
    }

    /// Their path.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        remove(&self.base);
    }
}

/// The cgroup of one slot's runs, with what is read of it while they run.
#[derive(Debug)]
pub(super) struct RunGroup {
    path: PathBuf,
    /// For programs that are born in it.
    dir: OwnedFd,
    /// For those that have to enter it.
    list: File,
    events: File,
    stat: File,
    limits: RunLimits,
    killed: bool,
}

/// What a run has made of its cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Something lives in it.
    Alive,
    /// It is empty, and the next run finds nothing there that one before has left.
    Clean,
    /// It is empty.
    Changed,
}

impl RunGroup {
    /// Makes it, or uses what is there.
    pub(super) fn make(base: &Path, slot: u32, limits: RunLimits) -> io::Result<RunGroup> {
        let path = base.join(slot.to_string());
        if !path.exists() {
            fs::create_dir(&path)?;
        }
        limits.apply(&path)?;
        Ok(RunGroup {
            dir: File::open(&path)?.into(),
            list: OpenOptions::new().write(true).open(path.join("cgroup.procs"))?,
            events: File::open(path.join("cgroup.events"))?,
            stat: File::open(path.join("cgroup.stat"))?,
            path,
            limits,
            killed: false,
        })
    }

    /// Replaces it with a new one. The kernel may kill a process at once that is born in a cgroup that was killed
    /// before, and files that a run has left in a file system in memory stay charged to the old one.
    pub(super) fn renew(&mut self) -> io::Result<()> {
        remove_below(&self.path);
        fs::remove_dir(&self.path)?;
        let (base, slot) = (self.path.parent(), self.path.file_name());
        let slot = slot.and_then(|slot| slot.to_str()?.parse().ok());
        let (Some(base), Some(slot)) = (base, slot) else {
            return Err(io::Error::other("no cgroup of a slot"));
        };
        *self = RunGroup::make(base, slot, self.limits)?;
        Ok(())
    }

    /// For a program that is to be born in it.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The file to which a process that enters writes its number.
    pub(super) fn list(&self) -> BorrowedFd<'_> {
        self.list.as_fd()
    }

    /// SIGKILL to all in it.
    pub(super) fn kill(&mut self) {
        self.killed = true;
        kill(&self.path);
    }

    /// What its limits have to do with a run that ended so.
    pub(super) fn explain(&self, ended: Ended) -> Option<String> {
        let hits = if self.limits.is_empty() { Hits::default() } else { self.limits.hits(&self.path) };
        self.limits.explain(ended, hits)
    }

    /// What is left in it.
    pub(super) fn left(&self) -> Left {
        let (mut events, mut stat) = ([0; 512], [0; 512]);
        // Somebody has removed it, so nothing is in it.
        let Some(events) = lines_of(&self.events, &mut events) else { return Left::Changed };
        if !events.contains(&&b"populated 0"[..]) {
            return Left::Alive;
        }
        let is_clean = !self.killed
            && events.contains(&&b"frozen 0"[..])
            && lines_of(&self.stat, &mut stat).is_some_and(|stat| stat.contains(&&b"nr_descendants 0"[..]))
            && !self.limits.are_strained(&self.path);
        if is_clean { Left::Clean } else { Left::Changed }
    }
}

/// The lines of a small file.
fn lines_of<'a>(file: &File, buffer: &'a mut [u8]) -> Option<Vec<&'a [u8]>> {
    let length = file.read_at(buffer, 0).ok()?;
    Some(buffer.get(..length)?.split(|&byte| byte == b'\n').collect())
}

/// What the names of the cgroups of this process's executors begin with.
pub(super) fn prefix(pid: u32, start_ticks: u64) -> String {
    format!("zkmw-{pid}-{start_ticks}.")
}

/// SIGKILL to everything in the cgroup and below.
pub(super) fn kill(path: &Path) {
    let _ = fs::write(path.join("cgroup.kill"), "1");
}

/// SIGKILL to everything in the cgroup and below, until nothing is left: for ever, or for this long. Whether it is
/// empty. A cgroup that isn't there is.
pub(super) fn kill_and_wait(path: &Path, give_up_after: Option<Duration>) -> bool {
    let begun = Instant::now();
    let (mut pause, mut warned) = (FIRST_PAUSE, false);
    loop {
        match is_populated(path) {
            Ok(false) => return true,
            Err(error) if is_gone(&error) => return true,
            Ok(true) | Err(_) => {}
        }
        let killed = fs::write(path.join("cgroup.kill"), "1");
        if begun.elapsed() >= WARN_AFTER && !warned {
            warned = true;
            log::warn!("{} does not get empty ({killed:?}); still waiting", path.display());
        }
        if give_up_after.is_some_and(|bound| begun.elapsed() >= bound) {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// There is no such cgroup, or it was removed.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// Removes the cgroups of an executor; what is populated stays.
pub(super) fn remove(base: &Path) {
    remove_below(base);
    if let Err(error) = fs::remove_dir(base)
        && error.kind() != io::ErrorKind::NotFound
    {
        log::debug!("cannot remove {}: {error}", base.display());
    }
}

/// Removes the cgroups below this one, and below them: a task may have made some.
fn remove_below(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn is_populated(path: &Path) -> io::Result<bool> {
    Ok(fs::read_to_string(path.join("cgroup.events"))?.lines().any(|line| line == "populated 1"))
}

/// The cgroup of version 2 that is ours to divide: our own, or the one above if we are in its [leaf](LEAF).
pub(super) fn home() -> io::Result<PathBuf> {
    let membership = fs::read_to_string("/proc/self/cgroup")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    locate(&membership, &mounts).ok_or_else(|| io::Error::other("no cgroup of version 2 that we can see"))
}

/// Our cgroup's folder, from the texts of `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn locate(membership: &str, mounts: &str) -> Option<PathBuf> {
    let own = membership.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mount = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (kind.split(' ').next() == Some("cgroup2")).then_some(mount)
    })?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let below = without_leaf(Path::new(own)).strip_prefix(root).ok()?;
    Some(Path::new(point).join(below))
}

/// A cgroup, or the one above it if it is a worker's leaf.
pub(super) fn without_leaf(cgroup: &Path) -> &Path {
    match cgroup.parent() {
        Some(home) if cgroup.file_name().is_some_and(|name| name == LEAF) => home,
        _ => cgroup,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_cgroup_is_found_under_whatever_is_mounted() {
        let found = |membership: &str, mounts: &str| locate(membership, mounts);
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let hybrid = "29 23 0:25 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      40 29 0:36 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let inner = "30 23 0:26 /docker/a /sys/fs/cgroup rw - cgroup2 cgroup rw";
        let service = "0::/system.slice/zkmw-worker@w1.service\n";
        assert_eq!(
            found(service, unified),
            Some("/sys/fs/cgroup/system.slice/zkmw-worker@w1.service".into())
        );
        assert_eq!(found("9:name=systemd:/\n0::/\n", hybrid), Some("/sys/fs/cgroup/unified/".into()));
        assert_eq!(found("0::/docker/a/b\n", inner), Some("/sys/fs/cgroup/b".into()));
        assert_eq!(found("0::/docker/a/b/zkmw-worker\n", inner), Some("/sys/fs/cgroup/b".into()));
        assert_eq!(found("0::/zkmw-worker\n", unified), Some("/sys/fs/cgroup/".into()));
        assert_eq!(found("0::/other\n", inner), None, "not below what is mounted");
        assert_eq!(found("5:cpu:/\n", unified), None, "no version 2");
        assert_eq!(found(service, ""), None);
    }
}
