//! The directory of a worker's logs: how much is in it, and what has to go.
//!
//! It must not touch what is no log by its name, follow links, or remove what is being written.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use super::super::runfile::make_private_dir;
use crate::contract::log::{LogFile, LogName, is_part};

/// What a file takes at least, and what its size is rounded up to: a block of most file systems. So empty files count.
const BLOCK_BYTES: u64 = 4096;
/// When there is no room, so many tenths of the space are left: a scan of all files is too dear for every log.
const TENTHS_LEFT: u64 = 9;
/// The longest pause between two searches for logs that are too old, and the shortest.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// What is too old stays at most so much longer, as a part of the time that it is kept.
const KEEP_PARTS: u32 = 8;
/// So many directories are ours alone: `STATE/task-logs/WORKER`.
const OWN_DEPTH: usize = 3;
/// After a scan that has found no room, the next one comes after this.
const FULL_FOR: Duration = Duration::from_secs(1);

/// All logs of a worker.
#[derive(Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
    space: u64,
    keep: Duration,
    /// How much they take, or a little less than this.
    used: u64,
    /// Those that are being written: their paths, without an ending.
    open: BTreeSet<PathBuf>,
    next_removal: Instant,
    full_until: Option<Instant>,
    /// Nobody else can write to the directory of ours.
    is_private: bool,
}

/// A log as it was found.
#[derive(Debug)]
struct Found {
    written: SystemTime,
    dir: PathBuf,
    stem: String,
    bytes: u64,
}

impl Shelf {
    /// The directory, and what a former worker of the same name has left there. It is made if it isn't there; if that
    /// fails, it is tried again with each log.
    pub(super) fn new(dir: PathBuf, space: u64, keep: Duration) -> Shelf {
        let (open, next_removal) = (BTreeSet::new(), Instant::now());
        let mut shelf =
            Shelf { dir, space, keep, used: 0, open, next_removal, full_until: None, is_private: false };
        shelf.remove_old();
        shelf
    }

    /// The time until the next removal of old logs.
    pub(super) fn pause(&self) -> Duration {
        self.next_removal.saturating_duration_since(Instant::now())
    }

    /// Removes old logs, if it is time, and the oldest of too many.
    pub(super) fn remove_old(&mut self) {
        if self.pause().is_zero() {
            self.remove(self.space);
            let pause = (self.keep / KEEP_PARTS).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
            self.next_removal = Instant::now() + pause;
        }
    }

    /// A log begins: its path, without an ending. An older log of its name is removed.
    pub(super) fn begin(&mut self, name: &LogName) -> anyhow::Result<PathBuf> {
        if !self.is_private {
            // The state directory, `logs` in it, and ours: an owner of one of them could have us write anywhere.
            let ours: Vec<&Path> = self.dir.ancestors().take(OWN_DEPTH).collect();
            ours.into_iter().rev().try_for_each(|dir| make_private_dir(dir, "state directory"))?;
            self.is_private = true;
        }
        let dir = self.dir.join(name.dir());
        make_private_dir(&dir, "directory of logs")?;
        let (base, stem) = (dir.join(name.stem()), name.stem());
        for file in LogFile::ALL {
            let path = dir.join(file.of(&stem));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
        self.open.insert(base.clone());
        Ok(base)
    }

    /// A file of a log.
    pub(super) fn make(&mut self, base: &Path, file: LogFile) -> io::Result<File> {
        self.used += BLOCK_BYTES;
        let stem = base.file_name().unwrap_or_default().to_string_lossy();
        let path = base.with_file_name(file.of(&stem));
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    }

    /// A log that is being written, or was, is not complete.
    pub(super) fn mark(&mut self, base: &Path, why: &str) {
        // Where a disk is full, an empty file says enough. Of several reasons the first one counts.
        if let Ok(mut file) = self.make(base, LogFile::Cut) {
            let _ = writeln!(file, "{why}");
        }
    }

    /// The same of one that a former writer may have begun.
    pub(super) fn cut(&mut self, name: &LogName) {
        let (dir, stem) = (self.dir.join(name.dir()), name.stem());
        if dir.join(LogFile::Out.of(&stem)).exists() {
            self.mark(&dir.join(stem), "what wrote it had ended before it had all of it");
        }
    }

    /// Whether so much more may be written; what is old goes for it.
    pub(super) fn take(&mut self, bytes: u64) -> bool {
        if self.used.saturating_add(bytes) > self.space {
            if self.full_until.is_some_and(|until| Instant::now() < until) {
                return false;
            }
            self.remove((self.space / 10 * TENTHS_LEFT).saturating_sub(bytes));
            if self.used.saturating_add(bytes) > self.space {
                self.full_until = Some(Instant::now() + FULL_FOR);
                return false;
            }
        }
        self.used += bytes;
        true
    }

    /// Nothing more is written of it.
    pub(super) fn end(&mut self, base: &Path) {
        self.open.remove(base);
    }

    /// Removes logs that are too old, and then the oldest until at most this is left.
    fn remove(&mut self, most: u64) {
        let mut found = self.find();
        found.sort_by_key(|log| log.written);
        let mut used: u64 = found.iter().map(|log| log.bytes).sum();
        let now = SystemTime::now();
        for log in found {
            let is_old = now.duration_since(log.written).is_ok_and(|age| age > self.keep);
            if (is_old || used > most) && !self.open.contains(&log.dir.join(&log.stem)) && log.remove() {
                used -= log.bytes;
            }
        }
        self.used = used;
    }

    /// All logs that there are.
    fn find(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for dir in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let is_ours = dir.file_name().to_str().is_some_and(is_part);
            if is_ours && dir.file_type().is_ok_and(|kind| kind.is_dir()) {
                find_in(&dir.path(), &mut found);
            }
        }
        found
    }
}

/// The logs in a directory of logs. Files of one log are next to each other in the list.
fn find_in(dir: &Path, found: &mut Vec<Found>) {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(stem) = name.to_str().and_then(LogFile::stem_in) else { continue };
        // Of a link this describes the link itself.
        let Ok(about) = entry.metadata() else { continue };
        if about.is_file() {
            let bytes = about.len().next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES);
            files.push((stem.to_owned(), about.modified().unwrap_or(SystemTime::UNIX_EPOCH), bytes));
        }
    }
    files.sort();
    let first = found.len();
    for (stem, written, bytes) in files {
        match found.last_mut() {
            Some(log) if log.stem == stem && log.dir == dir => {
                log.written = log.written.max(written);
                log.bytes += bytes;
            }
            Some(_) | None => found.push(Found { written, dir: dir.to_owned(), stem, bytes }),
        }
    }
    if found.len() == first {
        // A directory that is empty serves nobody; any other stays.
        let _ = fs::remove_dir(dir);
    }
}

impl Found {
    /// Whether it is gone.
    fn remove(&self) -> bool {
        let removed = LogFile::ALL.map(|file| fs::remove_file(self.dir.join(file.of(&self.stem))));
        let is_gone = |result: &io::Result<()>| match result {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        let _ = fs::remove_dir(&self.dir);
        removed.iter().all(is_gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(1000);

    fn name(task: &str) -> LogName {
        LogName { task: task.to_owned(), line: None, attempt: 1 }
    }

    /// A log of so many blocks, written so many seconds ago.
    fn put(shelf: &mut Shelf, task: &str, blocks: usize, age: u64) -> PathBuf {
        let base = shelf.begin(&name(task)).unwrap();
        let mut file = shelf.make(&base, LogFile::Out).unwrap();
        assert!(shelf.take(blocks as u64 * BLOCK_BYTES));
        file.write_all(&vec![0; blocks * BLOCK_BYTES as usize]).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        base
    }

    fn left(dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        fs::read_dir(dir).unwrap().for_each(|dir| find_in(&dir.unwrap().path(), &mut found));
        let mut left: Vec<String> = found.into_iter().map(|log| log.stem).collect();
        left.sort();
        left
    }

    #[test]
    fn the_oldest_go_first_and_what_is_written_never() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state/logs/w");
        let mut shelf = Shelf::new(dir.clone(), 16 * BLOCK_BYTES, KEEP);
        for (task, age) in [("J/open", 900), ("K/b", 800), ("J/c", 700), ("J/d", 10)] {
            let base = put(&mut shelf, task, 2, age);
            if task != "J/open" {
                shelf.end(&base);
            }
        }
        assert!(shelf.take(8 * BLOCK_BYTES));
        assert_eq!(left(&dir), ["c.1", "d.1", "open.1"], "what is wanted is free, and a tenth of all");
        assert!(!dir.join("K").exists(), "a directory that is empty goes too");
        // What was allowed was not written.
        assert!(shelf.take(13 * BLOCK_BYTES));
        assert_eq!(left(&dir), ["open.1"]);
        assert!(!shelf.take(15 * BLOCK_BYTES), "what is being written stays");
        shelf.end(&dir.join("J/open.1"));
        assert!(!shelf.take(15 * BLOCK_BYTES), "there is no scan again at once");
        assert_eq!(left(&dir), ["open.1"]);
    }

    #[test]
    fn old_logs_go_by_their_last_byte_and_a_name_has_one_log() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state/logs/w");
        let mut shelf = Shelf::new(dir.clone(), 100 * BLOCK_BYTES, KEEP);
        for (task, age) in [("J/old", 1100), ("J/late", 1100), ("J/open", 1100), ("J/new", 900)] {
            let base = put(&mut shelf, task, 1, age);
            if task == "J/late" {
                shelf.make(&base, LogFile::Err).unwrap();
            }
            if task != "J/open" {
                shelf.end(&base);
            }
        }
        put(&mut shelf, "J/new", 3, 0);
        let again = Shelf::new(dir.clone(), 100 * BLOCK_BYTES, KEEP);
        assert_eq!(left(&dir), ["late.1", "new.1"], "a successor knows of nobody who writes");
        assert_eq!(again.used, 5 * BLOCK_BYTES);
        assert!(again.pause() > KEEP / 10);
    }

    #[test]
    fn where_others_can_write_nothing_is_written() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, PermissionsExt::from_mode(0o777)).unwrap();
        let mut shelf = Shelf::new(state.join("task-logs/w"), 1 << 20, KEEP);
        let refused = shelf.begin(&name("J/t")).unwrap_err().to_string();
        assert!(refused.contains("others may write to it"), "{refused}");
        assert!(!state.join("task-logs").exists());
    }
}
