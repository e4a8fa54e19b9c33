//! The run file: which process a worker is, and which sessions its slots lead, for its successor on the same host.
//!
//! A restarted worker that can prove its predecessor and everything under it dead needs not wait for the old
//! session's end. So the file must never lack a session that lives: it is written before a program reaches a slot, and
//! if it cannot be written it is removed. It may well list one that is dead.
//!
//! It is replaced by a rename and never synced: it is good for this boot only, and whatever kills the process
//! but not the machine leaves the kernel's copy alone. The lock is a file of its own, because a rename would
//! take the locked one away.

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
use super::leftovers::Leftovers;
use super::proc::{self, Identity, ProcessSession};

/// The format's version; another one is not understood.
const VERSION: u32 = 2;
/// How long leftovers of a predecessor may take to die.
const LEFTOVERS_DIE_WITHIN: Duration = Duration::from_secs(5);
/// How long a lock is tried for: children that die with the predecessor may hold it for a moment.
const LOCK_WITHIN: Duration = Duration::from_secs(1);
/// The pause between two tries for the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Others must not write where we read what to kill.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// A run file is never longer than this many bytes.
const LONGEST_FILE_BYTES: u64 = 4 << 20;

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    v: u32,
    boot_id: String,
    pid_ns: u64,
    pid: u32,
    start_ticks: u64,
    sessions: Vec<ProcessSession>,
    /// Where runs have their cgroups, if they have any.
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
    /// It is dead, and so is all that it ran.
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

/// The process that has the name on this host.
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
    /// The new content is written here, and then replaces `path`.
    next_path: PathBuf,
    own: Identity,
    cgroup: Option<PathBuf>,
    /// The last write succeeded.
    is_written: bool,
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
        make_private_dir(dir, "run directory")?;
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
        Ok(Claim::Ours(RunFile {
            path,
            next_path,
            own,
            cgroup: None,
            is_written: false,
            warned: false,
            _lock: lock,
        }))
    }

    /// What the file proves about the worker that wrote it. Kills the processes that the worker has left, and waits
    /// until they are dead, for 5 s at most.
    ///
    /// Ask before the file is given to an executor, which begins a new one.
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
            Err(error) => unknown(format!("cannot find process {}: {error}", content.pid)),
        }
    }

    /// From the next list on it says where runs have their cgroups.
    pub(super) fn set_cgroup(&mut self, cgroup: Option<PathBuf>) {
        self.cgroup = cgroup;
    }

    /// Whether it says what was to be written last; it is removed otherwise.
    pub(super) fn is_written(&self) -> bool {
        self.is_written
    }

    /// Replaces the list. If that fails the file is removed, lest anybody take an old list for proof; the runs
    /// go on.
    pub(super) fn write(&mut self, sessions: &[ProcessSession]) {
        let written = self.replace(sessions);
        self.is_written = written.is_ok();
        let Err(error) = written else { return };
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
                "cannot remove {}, which no longer lists every session; remove it by hand before this \
                 worker is restarted: {error}",
                self.path.display()
            );
        }
    }

    fn replace(&self, sessions: &[ProcessSession]) -> io::Result<()> {
        let Identity { boot_id, pid_ns, pid, start_ticks } = self.own.clone();
        let (sessions, cgroup) = (sessions.to_vec(), self.cgroup.clone());
        let content = Content { v: VERSION, boot_id, pid_ns, pid, start_ticks, sessions, cgroup };
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

/// Makes a directory of this name for people, if it isn't there, and sees to it that nobody else can write there.
pub(super) fn make_private_dir(dir: &Path, name: &str) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the {name} {}", dir.display()))?;
    let found = fs::metadata(dir).with_context(|| format!("cannot inspect {}", dir.display()))?;
    ensure!(
        found.uid() == geteuid().as_raw() && found.mode() & WRITABLE_BY_OTHERS == 0,
        "the {name} {} belongs to somebody else, or others may write to it; use one of mode 0700",
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

/// The process of the file is dead: sees to it that all that it ran is, too.
fn kill_leftovers(content: &Content) -> Predecessor {
    let Content { boot_id, pid_ns, pid, start_ticks, sessions, cgroup, .. } = content;
    let unknown = |why: String| Predecessor::Unknown { why };
    let is_none = |session: &&ProcessSession| {
        i32::try_from(session.id).is_err() || session.id <= 1 || session.start_ticks == 0
    };
    if let Some(session) = sessions.iter().find(is_none) {
        return unknown(format!("{session:?} names no session"));
    }
    let old = Identity { boot_id: boot_id.clone(), pid_ns: *pid_ns, pid: *pid, start_ticks: *start_ticks };
    let until = Instant::now() + LEFTOVERS_DIE_WITHIN;
    if let Some(cgroup) = cgroup {
        let prefix = cgroup::prefix(*pid, *start_ticks);
        if !cgroup.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
            return unknown(format!("{} is no cgroup of the worker's", cgroup.display()));
        }
        if !cgroup::kill_and_wait(cgroup, Some(until.saturating_duration_since(Instant::now()))) {
            return unknown(format!("the cgroup {} does not get empty", cgroup.display()));
        }
        cgroup::remove(cgroup);
    }
    match (Leftovers { sessions, token: &old.token(), since: *start_ticks }).end(until) {
        Ok(killed) => Predecessor::Gone { pid: *pid, start_ticks: *start_ticks, leftovers_killed: killed },
        Err(why) => unknown(why.to_string()),
    }
}
