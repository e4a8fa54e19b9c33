//! What the files are called in which a worker keeps what a run printed: `DIRECTORY/TASK.ATTEMPT.out`, `….err`, and
//! `….cut`, which says why the other two are not complete.
//!
//! They are in `task-logs/WORKER@SERVICE` below the worker's state directory. A name shows task and attempt to
//! people as well: letters, digits, `_`, `-`, `~` and dots stay as they are, all else is `%` and two hexadecimal
//! digits a byte.

use serde::{Deserialize, Serialize};

use super::fnv1a;

/// The folder of all workers' logs, below a state directory. Tasks may have theirs there, and call some of them `logs`.
pub const LOGS: &str = "task-logs";
/// The longest part of a name that names a task, or its directory: file systems take 255 bytes, and the attempt,
/// a line and the ending come after it.
const MAX_PART_BYTES: usize = 200;
/// The separator before the digest of a part that is too long for a name.
const DIGEST: &str = "%~";
/// The prefix of a line's number in a task that belongs to no batch.
const LINE: char = ',';

/// Which run a log is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogName {
    /// As its user calls it: `JOB/TASK`, or `BATCH/LINE`.
    pub task: String,
    /// The line, from 1, if it has a number.
    pub line: Option<u64>,
    /// Which attempt.
    pub attempt: u32,
}

/// What a file of a log has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFile {
    /// The standard output.
    Out,
    /// The standard error.
    Err,
    /// Why it is not complete.
    Cut,
}

impl LogFile {
    /// All of them.
    pub const ALL: [LogFile; 3] = [LogFile::Out, LogFile::Err, LogFile::Cut];

    fn ending(self) -> &'static str {
        match self {
            LogFile::Out => ".out",
            LogFile::Err => ".err",
            LogFile::Cut => ".cut",
        }
    }

    /// The file's name.
    pub fn of(self, stem: &str) -> String {
        format!("{stem}{}", self.ending())
    }

    /// The stem of a file's name; `None` if that is no log's.
    pub fn stem_in(name: &str) -> Option<&str> {
        let stem = LogFile::ALL.iter().find_map(|file| name.strip_suffix(file.ending()))?;
        let (task, attempt) = stem.rsplit_once('.')?;
        let is_number = !attempt.is_empty() && attempt.bytes().all(|byte| byte.is_ascii_digit());
        (is_number && is_part(task)).then_some(stem)
    }
}

impl LogName {
    /// The directory that its files are in.
    pub fn dir(&self) -> String {
        part(self.task.split_once('/').map_or("", |(dir, _)| dir))
    }

    /// The name of its files, without the ending.
    pub fn stem(&self) -> String {
        let name = self.task.split_once('/').map_or(self.task.as_str(), |(_, name)| name);
        // A line of a batch has it as its name.
        let line = self.line.map(|line| line.to_string()).filter(|line| line != name);
        let line = line.map_or_else(String::new, |line| format!("{LINE}{line}"));
        format!("{}{line}.{}", part(name), self.attempt)
    }
}

/// Whether it may be the name of such a directory, or of a task and a line in one.
pub fn is_part(text: &str) -> bool {
    let is_ours = |byte: u8| is_plain(byte) || matches!(byte, b'.' | b'%' | b',');
    !text.is_empty() && !text.starts_with('.') && text.bytes().all(is_ours)
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'~')
}

/// A part of an id as a part of a path.
fn part(text: &str) -> String {
    let mut encoded = String::new();
    for (at, byte) in text.bytes().enumerate() {
        let next = match byte {
            b'.' if at > 0 => ".".to_owned(),
            _ if is_plain(byte) => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        if encoded.len() + next.len() > MAX_PART_BYTES {
            let reversed: String = text.chars().rev().collect();
            return format!("{encoded}{DIGEST}{:08x}{:08x}", fnv1a(text), fnv1a(&reversed));
        }
        encoded.push_str(&next);
    }
    if encoded.is_empty() { DIGEST.to_owned() } else { encoded }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn path(task: &str, line: Option<u64>, attempt: u32) -> String {
        let name = LogName { task: task.to_owned(), line, attempt };
        format!("{}/{}", name.dir(), name.stem())
    }

    #[test]
    fn names_show_task_line_and_attempt() {
        assert_eq!(path("_3f/01J5", None, 1), "_3f/01J5.1");
        assert_eq!(path("J~b/7", Some(7), 2), "J~b/7.2");
        assert_eq!(path("J/t", Some(7), 2), "J/t,7.2");
        assert_eq!(path("J/a b,c.d", None, 1), "J/a%20b%2Cc.d.1");
        assert_eq!(path("./.x%2F\n", None, 3), "%2E/%2Ex%252F%0A.3");
        assert_eq!(path("é/日", None, 1), "%C3%A9/%E6%97%A5.1");
        assert_eq!(LogFile::Err.of("01J5.1"), "01J5.1.err");
    }

    #[test]
    fn no_two_tasks_have_one_name_and_none_leaves_its_directory() {
        let long = |end: char| format!("J/{}{end}", "é".repeat(195));
        let tasks =
            [&long('a'), &long('b'), "J/..", "J/.", "J/", "/x", "J/a%", "J/a%25", "J/a,1", "J/%~", "../../x"];
        let mut seen = BTreeSet::new();
        for (task, line) in tasks.iter().flat_map(|task| [(task, None), (task, Some(1))]) {
            let name = LogName { task: (*task).to_owned(), line, attempt: u32::MAX };
            let (dir, file) = (name.dir(), LogFile::Cut.of(&name.stem()));
            assert!(is_part(&dir) && dir.len() <= 255 && file.len() <= 255, "{dir}/{file}");
            assert_eq!(LogFile::stem_in(&file), Some(name.stem().as_str()));
            assert!(!file.contains('/') && !dir.contains('/'));
            assert!(seen.insert((dir, file)), "{task}");
        }
    }

    #[test]
    fn what_is_not_ours_is_known() {
        for name in [
            "x",
            "x.out",
            "x.1",
            "x.1.log",
            ".1.out",
            "x.a.out",
            "x..out",
            ".x.1.out",
            "a b.1.out",
            "x.1.out~",
        ] {
            assert_eq!(LogFile::stem_in(name), None, "{name}");
        }
        assert!(!is_part("lost+found") && !is_part(".git") && !is_part(""));
    }
}
