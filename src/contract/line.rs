//! How users name a line of a batch: `BATCH/LINE`, LINE from 1, whatever task holds the line.

use std::fmt;

use super::{MAX_BATCH_LINES, TaskId, batch_unit, part_dir};

/// Digits of the number of a part, at least.
const PART_DIGITS: usize = 4;

/// The batch that a directory is a part of: `J~b` of `J~b~0001`.
pub fn batch_of(dir: &str) -> Option<&str> {
    let (batch, part) = dir.rsplit_once('~')?;
    let is_part = part.len() == PART_DIGITS && part.bytes().all(|byte| byte.is_ascii_digit());
    (is_part && !batch.is_empty()).then_some(batch)
}

/// What to call a line (from 0) of this task in words. A chunk that is in no batch has no names for its lines.
pub fn line_name(id: &TaskId, line: u64) -> String {
    let name = LineName::in_task(id, line).map(|name| name.to_string());
    name.unwrap_or_else(|| format!("{id} (line {})", line.saturating_add(1)))
}

/// The id of a task, or of one of its lines (from 0), as programs get it. Lines of a chunk that is in no batch
/// have that of their task.
pub fn id_of(id: &TaskId, line: Option<u64>) -> String {
    let name = line.and_then(|line| LineName::in_task(id, line));
    name.map_or_else(|| id.to_string(), |name| name.to_string())
}

/// A line, as a user names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LineName {
    /// The batch, with its job before it if it has one.
    pub batch: String,
    /// From 0.
    pub line: u64,
}

impl LineName {
    /// What an id means if it is no task's.
    pub fn of(id: &TaskId) -> Option<LineName> {
        let (batch, number) = id.as_str().split_once('/')?;
        let line: u64 = number.parse().ok()?;
        // One spelling: what begins with zeros is the name of a task.
        let is_line = (1..=MAX_BATCH_LINES).contains(&line) && line.to_string() == number;
        is_line.then(|| LineName { batch: batch.into(), line: line - 1 })
    }

    /// The name of a line of this task, if the task is in a batch.
    pub fn in_task(id: &TaskId, line: u64) -> Option<LineName> {
        batch_of(id.dir()).map(|batch| LineName { batch: batch.into(), line })
    }

    /// The part that it is in if each task has so many lines.
    pub fn part(&self, size: u32) -> String {
        part_dir(None, &self.batch, self.line / u64::from(size.max(1)))
    }

    /// The task that it is in, and its position there, if each task has so many lines.
    pub fn task(&self, size: u32) -> (TaskId, usize) {
        let size = u64::from(size.max(1));
        let id = batch_unit(None, &self.batch, self.line / size, size);
        (id, usize::try_from(self.line % size).unwrap_or(usize::MAX))
    }
}

impl fmt::Display for LineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.batch, self.line.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Option<LineName> {
        LineName::of(&TaskId::parse(text).expect("an id"))
    }

    #[test]
    fn a_line_has_one_name_whatever_the_chunking() {
        for (size, line) in [(1, 0), (1, 4_000), (100, 42), (100, 400_041), (7, 9_999_999)] {
            for job in [None, Some("J")] {
                let unit = line / u64::from(size);
                let (id, position) = (batch_unit(job, "b", unit, u64::from(size)), line % u64::from(size));
                let text = line_name(&id, line);
                let name = name(&text).expect("a line");
                assert_eq!((name.to_string(), name.task(size)), (text, (id.clone(), position as usize)));
                assert_eq!((name.part(size).as_str(), batch_of(id.dir())), (id.dir(), Some(&*name.batch)));
            }
        }
    }

    #[test]
    fn other_names_are_tasks() {
        for text in ["b/0", "b/007", "b/+1", "b/x", "b/10000001", "b~0000/0000001"] {
            assert_eq!(name(text), None, "{text}");
        }
        for dir in ["b", "_3f", "b~001", "b~000x", "~0001", "b~00000"] {
            assert_eq!(batch_of(dir), None, "{dir}");
        }
        let foreign = TaskId::new("_3f", "x");
        assert_eq!(line_name(&foreign, 4), "_3f/x (line 5)");
        assert_eq!((id_of(&foreign, Some(4)), id_of(&foreign, None)), ("_3f/x".into(), "_3f/x".into()));
        assert_eq!(id_of(&TaskId::new("J~b~0000", "0000000"), Some(4)), "J~b/5");
    }
}
