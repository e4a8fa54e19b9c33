//! A cgroup for each run, where we may have them: whatever a task starts stays in it, so it all dies.
//!
//! Needs cgroup v2 with `cgroup.kill` (Linux 5.14), and the right to make children of our own cgroup: root has it,
//! and a service whose unit says `Delegate=yes`. Without them runs are process groups and no more.
//!
//! The cgroups are children of one of ours, `zkmw-PID-BIRTH.N`, and are used again when they are empty: to make one
//! costs as much as to start a small program. It must not let a run's end be told while its cgroup is populated.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::proc::Identity;
use crate::machine::RunId;

/// The first pause between two looks at a cgroup that is being emptied; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A cgroup that isn't empty after this is worth a warning.
const WARN_AFTER: Duration = Duration::from_secs(10);

/// The cgroups of an executor's runs.
#[derive(Debug)]
pub(super) struct Cgroups {
    base: PathBuf,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    made: u32,
    free: Vec<u32>,
    runs: BTreeMap<RunId, u32>,
    warned: bool,
}

/// What became of a process that was to have a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    Own,
    /// There can be none.
    None,
    /// Not now.
    NoRoom,
}

impl Cgroups {
    /// Makes a cgroup for the runs of this process's executor with this number; the error tells why there can be none.
    pub(super) fn make(own: &Identity, number: u32) -> io::Result<Cgroups> {
        let base = own_cgroup()?.join(format!("{}{number}", prefix(own.pid, own.start_ticks)));
        fs::create_dir(&base)?;
        if let Err(error) = fs::metadata(base.join("cgroup.kill")) {
            remove(&base);
            return Err(error);
        }
        Ok(Cgroups { base, slots: Mutex::default() })
    }

    /// Where they stand.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, slot: u32) -> PathBuf {
        self.base.join(slot.to_string())
    }

    /// Puts a process that has not run its program yet into a cgroup of the run's own. Where there can be none the
    /// run does without; where it is for want of descriptors or memory, it could not be killed later either.
    pub(super) fn enter(&self, run: RunId, pid: u32) -> Entered {
        let mut slots = self.lock();
        let used_before = slots.free.pop();
        let slot = used_before.unwrap_or_else(|| slots.next());
        match self.try_enter(&mut slots, run, slot, pid) {
            Ok(()) => return Entered::Own,
            Err(error) if is_want(&error) => {
                slots.free.push(slot);
                return Entered::NoRoom;
            }
            Err(_) => {}
        }
        // Whatever a task has made of it, or the kernel against us: another one tells which.
        self.discard(slot);
        let slot = slots.next();
        let Err(error) = self.try_enter(&mut slots, run, slot, pid) else { return Entered::Own };
        self.discard(slot);
        if is_want(&error) {
            return Entered::NoRoom;
        }
        if !std::mem::replace(&mut slots.warned, true) {
            log::warn!(
                "cannot use {}: {error}; a task that leaves its process group may live on",
                self.path(slot).display()
            );
        }
        Entered::None
    }

    fn try_enter(&self, slots: &mut Slots, run: RunId, slot: u32, pid: u32) -> io::Result<()> {
        let path = self.path(slot);
        if !path.exists() {
            fs::create_dir(&path)?;
        }
        fs::write(path.join("cgroup.procs"), pid.to_string())?;
        slots.runs.insert(run, slot);
        Ok(())
    }

    /// Removes all of them, as far as nothing lives there. None is used after that.
    pub(super) fn close(&self) {
        remove(&self.base);
    }

    /// It is not used again.
    fn discard(&self, slot: u32) {
        remove_below(&self.path(slot));
        let _ = fs::remove_dir(self.path(slot));
    }

    /// Whether the run has a cgroup.
    pub(super) fn has(&self, run: RunId) -> bool {
        self.lock().runs.contains_key(&run)
    }

    /// Kills what is left in the run's cgroup, waits until it is empty, for ever if need be, and gives it back.
    pub(super) fn empty(&self, run: RunId) {
        let Some(slot) = self.lock().runs.get(&run).copied() else { return };
        let path = self.path(slot);
        kill_and_wait(&path, None);
        let untouched = is_untouched(&path);
        if !untouched {
            self.discard(slot);
        }
        let mut slots = self.lock();
        slots.runs.remove(&run);
        if untouched {
            slots.free.push(slot);
        }
    }
}

impl Slots {
    fn next(&mut self) -> u32 {
        self.made += 1;
        self.made
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the names of the cgroups of this process's executors begin with.
pub(super) fn prefix(pid: u32, start_ticks: u64) -> String {
    format!("zkmw-{pid}-{start_ticks}.")
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

/// The processes in the cgroups below this one. None are in one that isn't there.
pub(super) fn members(base: &Path) -> io::Result<Vec<u32>> {
    let mut members = Vec::new();
    let entries = match fs::read_dir(base) {
        Err(error) if is_gone(&error) => return Ok(members),
        entries => entries?,
    };
    for entry in entries {
        match fs::read_to_string(entry?.path().join("cgroup.procs")) {
            Ok(text) => members.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
            // A cgroup that was removed meanwhile, or a file of the base's own.
            Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => return Err(error),
        }
    }
    Ok(members)
}

/// Whether something is wanting that may be there later.
fn is_want(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

/// There is no such cgroup, or no more.
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

/// Whether a cgroup that is empty is as it was made: not frozen, and without others below. The next run must find
/// nothing that one before has left there.
fn is_untouched(path: &Path) -> bool {
    let says = |file: &str, line: &str| {
        fs::read_to_string(path.join(file)).is_ok_and(|text| text.lines().any(|found| found == line))
    };
    says("cgroup.freeze", "0") && says("cgroup.stat", "nr_descendants 0")
}

fn is_populated(path: &Path) -> io::Result<bool> {
    Ok(fs::read_to_string(path.join("cgroup.events"))?.lines().any(|line| line == "populated 1"))
}

/// Our own cgroup of version 2.
pub(super) fn own_cgroup() -> io::Result<PathBuf> {
    let membership = fs::read_to_string("/proc/self/cgroup")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    locate(&membership, &mounts).ok_or_else(|| io::Error::other("no cgroup of version 2 that we can see"))
}

/// Our cgroup's folder, from the texts of `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn locate(membership: &str, mounts: &str) -> Option<PathBuf> {
    let own = membership.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mount = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        (kind.split(' ').next() == Some("cgroup2")).then_some(place)
    })?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let below = Path::new(own).strip_prefix(root).ok()?;
    Some(Path::new(point).join(below))
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
        assert_eq!(found("0::/other\n", inner), None, "not below what is mounted");
        assert_eq!(found("5:cpu:/\n", unified), None, "no version 2");
        assert_eq!(found(service, ""), None);
    }
}
