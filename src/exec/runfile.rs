//! The run file: which process a worker is, and which process groups live under it, for its successor on the
//! same host.
//!
//! A restarted worker that can prove its predecessor and everything under it dead needs not wait for the old
//! session's end. So the file must never lack a group that lives: it is written before the group's program
//! runs, and if it cannot be written it is removed. It may well list one that is dead.
//!
//! It is replaced by a rename and never synced: it is good for this boot only, and whatever kills the process
//! but not the machine leaves the kernel's copy alone. The lock is a file of its own, because a rename would
//! take the locked one away.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use super::cgroup;
use super::group::Suspect;
use super::proc::{self, Identity};
use super::sweep::Sweep;

/// The format's version; another one is not understood.
const VERSION: u32 = 1;
/// How long leftovers of a predecessor may take to die.
const LEFTOVERS_DIE_WITHIN: Duration = Duration::from_secs(5);
/// How long a lock is tried for: children that die with the predecessor may hold it for a moment.
const LOCK_WITHIN: Duration = Duration::from_secs(1);
/// The pause between two tries for the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// The pause between two looks at what has left its group.
const STRAYS_PAUSE: Duration = Duration::from_millis(10);
/// So many looks in a row must find nothing: one may miss a process that just forked.
const LOOKS_FOR_PROOF: u32 = 2;
/// Others must not write where we read what to kill.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// A run file is never longer than this many bytes.
const LONGEST_FILE_BYTES: u64 = 4 << 20;

/// A process group: its id is its leader's pid, so the leader's start time makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Group {
    pub(super) pgid: u32,
    /// In ticks since boot; 0 if it could not be learnt.
    pub(super) start_ticks: u64,
}

/// What stands in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    v: u32,
    boot_id: String,
    pid_ns: u64,
    pid: u32,
    start_ticks: u64,
    groups: Vec<Group>,
    /// Where the groups have their cgroups, if they have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cgroup: Option<PathBuf>,
}

/// What the run file proves about the worker of the same name that ran here before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Predecessor {
    /// There is no run file: nothing is known, so nothing is proved.
    None,
    /// It lives.
    Alive {
        /// Its pid.
        pid: u32,
    },
    /// It is dead, and so is every process of its groups.
    Gone {
        /// The pid that it had.
        pid: u32,
        /// When it was started, in ticks since boot.
        start_ticks: u64,
        /// How many processes that it had left behind were killed just now.
        leftovers_killed: usize,
    },
    /// There is a run file, but it proves nothing.
    Unknown {
        /// Why not, for the log.
        why: String,
    },
}

/// Who has the name on this host.
#[derive(Debug)]
pub enum Claim {
    /// We have it, until the run file is dropped.
    Ours(RunFile),
    /// Another process has it.
    Held {
        /// Its pid, if it can be read.
        pid: Option<u32>,
    },
}

/// The run file of one worker, locked.
#[derive(Debug)]
pub struct RunFile {
    path: PathBuf,
    /// What is written before it takes the place of `path`.
    next_path: PathBuf,
    own: Identity,
    cgroup: Option<PathBuf>,
    warned: bool,
    /// Held locked; it is closed on exec.
    _lock: File,
}

impl RunFile {
    /// Claims the name `worker` in the run directory, which is made if need be (mode 0700).
    ///
    /// # Errors
    ///
    /// If the name cannot be part of a file name, if the directory or the lock cannot be made, if others may
    /// write to the directory, or if `/proc` cannot be read. The worker can do without a run file then.
    pub fn claim(dir: &Path, worker: &str) -> anyhow::Result<Claim> {
        ensure!(
            !worker.is_empty() && !worker.contains(['/', '\0']),
            "{worker:?} cannot be the name of a run file"
        );
        make_private_dir(dir)?;
        let lock_path = dir.join(format!("{worker}.lock"));
        let lock = open_private(OpenOptions::new().create(true).truncate(false), &lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        let path = dir.join(format!("{worker}.json"));
        if !try_lock(&lock).with_context(|| format!("cannot lock {}", lock_path.display()))? {
            let holder = read(&path).ok().and_then(|text| serde_json::from_slice::<Content>(&text).ok());
            return Ok(Claim::Held { pid: holder.map(|content| content.pid) });
        }
        let own = Identity::own().context("cannot learn who we are from /proc")?;
        let next_path = dir.join(format!("{worker}.json.next"));
        Ok(Claim::Ours(RunFile { path, next_path, own, cgroup: None, warned: false, _lock: lock }))
    }

    /// What the file proves about the worker that wrote it; kills what is left of its groups and waits until
    /// that is dead, for 5 s at most.
    ///
    /// Ask before the file is given to an executor, which begins it anew.
    pub fn inspect_predecessor(&self) -> Predecessor {
        let unknown = |why: String| Predecessor::Unknown { why };
        let text = match read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Predecessor::None,
            Err(error) => return unknown(format!("cannot read {}: {error}", self.path.display())),
        };
        let content = match serde_json::from_slice::<Content>(&text) {
            Ok(content) => content,
            Err(error) => return unknown(format!("cannot parse {}: {error}", self.path.display())),
        };
        if content.v != VERSION {
            return unknown(format!("{} is of version {}", self.path.display(), content.v));
        }
        if content.boot_id != self.own.boot_id || content.pid_ns != self.own.pid_ns {
            return unknown("it ran before a reboot, on another host or in another container".to_owned());
        }
        match proc::stat(content.pid) {
            Ok(Some(stat)) if stat.start_ticks == content.start_ticks && !stat.dead => {
                Predecessor::Alive { pid: content.pid }
            }
            Ok(_) => kill_leftovers(&content),
            Err(error) => unknown(format!("cannot look for process {}: {error}", content.pid)),
        }
    }

    /// From the next list on it says where the groups have their cgroups.
    pub(super) fn set_cgroup(&mut self, cgroup: Option<PathBuf>) {
        self.cgroup = cgroup;
    }

    /// Replaces the list. If that fails the file is removed, lest anybody take an old list for proof; the runs
    /// go on.
    pub(super) fn write(&mut self, groups: &[Group]) {
        let Err(error) = self.replace(groups) else { return };
        let invalidated = invalidate(&self.path);
        if !self.warned {
            self.warned = true;
            log::warn!(
                "cannot write {}: {error}; if this worker is killed, its successor must wait for the end of \
                 its session",
                self.next_path.display()
            );
        }
        if let Err(error) = invalidated {
            log::error!(
                "cannot remove {}, which no longer lists every process group; remove it by hand before this \
                 worker is restarted: {error}",
                self.path.display()
            );
        }
    }

    fn replace(&self, groups: &[Group]) -> io::Result<()> {
        let Identity { boot_id, pid_ns, pid, start_ticks } = self.own.clone();
        let (groups, cgroup) = (groups.to_vec(), self.cgroup.clone());
        let content = Content { v: VERSION, boot_id, pid_ns, pid, start_ticks, groups, cgroup };
        let text = serde_json::to_vec(&content)?;
        open_private(OpenOptions::new().create(true).truncate(true), &self.next_path)?.write_all(&text)?;
        fs::rename(&self.next_path, &self.path)
    }
}

/// Makes sure that the file proves nothing.
fn invalidate(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            OpenOptions::new().write(true).truncate(true).open(path).map(|_| ())
        }
        _ => Ok(()),
    }
}

fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.write(true).mode(0o600).open(path)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let length = fs::metadata(path)?.len();
    if length > LONGEST_FILE_BYTES {
        return Err(io::Error::other(format!("{length} bytes are too many")));
    }
    fs::read(path)
}

fn make_private_dir(dir: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the run directory {}", dir.display()))?;
    let found = fs::metadata(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    ensure!(
        found.uid() == geteuid().as_raw() && found.mode() & WRITABLE_BY_OTHERS == 0,
        "the run directory {} belongs to somebody else, or others may write to it; use one of mode 0700",
        dir.display()
    );
    Ok(())
}

/// Whether the lock is ours.
fn try_lock(lock: &File) -> io::Result<bool> {
    let until = Instant::now() + LOCK_WITHIN;
    loop {
        match retry_on_intr(|| flock(lock, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOCK_PAUSE),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The process of the file is dead: sees to it that its groups are, too.
fn kill_leftovers(content: &Content) -> Predecessor {
    let Content { boot_id, pid_ns, pid, start_ticks, .. } = content;
    let old = Identity { boot_id: boot_id.clone(), pid_ns: *pid_ns, pid: *pid, start_ticks: *start_ticks };
    let token = old.token();
    let until = Instant::now() + LEFTOVERS_DIE_WITHIN;
    let mut leftovers_killed = 0;
    for group in &content.groups {
        if i32::try_from(group.pgid).is_err() || group.pgid <= 1 || group.start_ticks == 0 {
            return Predecessor::Unknown { why: format!("{group:?} names no process group") };
        }
        let suspect = Suspect {
            pgid: group.pgid,
            leader_start_ticks: Some(group.start_ticks),
            last_birth_ticks: u64::MAX,
            token: &token,
            held_until: 0,
        };
        let emptied = suspect.make_empty(Some(until.saturating_duration_since(Instant::now())));
        leftovers_killed += emptied.killed;
        if !emptied.empty {
            let why = format!("process group {} could not be proved to be the worker's and dead", group.pgid);
            return Predecessor::Unknown { why };
        }
    }
    match kill_strays(content, &token, until) {
        Ok(killed) => leftovers_killed += killed,
        Err(why) => return Predecessor::Unknown { why },
    }
    Predecessor::Gone { pid: *pid, start_ticks: *start_ticks, leftovers_killed }
}

/// The same for what has left its group; how many were killed.
fn kill_strays(content: &Content, token: &str, until: Instant) -> Result<usize, String> {
    if let Some(cgroup) = &content.cgroup {
        let prefix = cgroup::prefix(content.pid, content.start_ticks);
        if !cgroup.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
            return Err(format!("{} is no cgroup of the worker's", cgroup.display()));
        }
        if !cgroup::kill_and_wait(cgroup, Some(until.saturating_duration_since(Instant::now()))) {
            return Err(format!("the cgroup {} does not get empty", cgroup.display()));
        }
        cgroup::remove(cgroup);
    }
    let nothing = BTreeMap::new();
    let sweep = Sweep {
        token,
        groups: &nothing,
        since: content.start_ticks,
        held_until: 0,
        cgroups: None,
        strays_born_before: Some(u64::MAX),
    };
    let (mut killed, mut clean) = (0, 0);
    loop {
        let struck = sweep.strike().map_err(|error| format!("cannot look for processes: {error}"))?;
        killed += struck.killed;
        clean = if struck.is_clean() { clean + 1 } else { 0 };
        if clean == LOOKS_FOR_PROOF {
            return Ok(killed);
        }
        if Instant::now() >= until {
            let what_lives = |unseen| format!("whether {unseen} is one of its processes cannot be found out");
            let undead = || "what has left its process group does not die".to_owned();
            return Err(struck.unseen.map_or_else(undead, what_lives));
        }
        std::thread::sleep(STRAYS_PAUSE);
    }
}
