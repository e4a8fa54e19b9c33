//! Which lines of a batch go into which chunk, and the path of each chunk. Both follow from the batch and the size of
//! its chunks, which is decided once.

use super::outline::Outline;
use crate::contract::task::{Job, Options, Payload, Task};
use crate::contract::{LINES_PER_PART, Layout, MAX_BATCH_LINES, TaskId, batch_unit, name_of};
use crate::roles::submitter::admission::Demand;

/// Bytes that a line takes in a chunk beside its own: two quotes and a comma.
const LINE_BYTES: u64 = 3;

/// A batch, as far as it was planned.
#[derive(Debug)]
pub struct Plan {
    pub(super) layout: Layout,
    pub(super) job: Option<String>,
    pub(super) batch: String,
    pub(super) keyed: bool,
    pub(super) options: Options,
    pub(super) outline: Outline,
    /// How many lines each chunk shall have, if the user says so.
    pub(super) chunk: Option<u32>,
    /// How many lines each chunk has; 1 until that is decided.
    pub(super) size: u32,
}

/// The name of a batch in a job, or of one that is a job itself.
pub fn name_in(job: Option<&str>, batch: &str) -> String {
    job.map_or_else(|| batch.to_string(), |job| format!("{job}~{batch}"))
}

impl Plan {
    /// The name of this batch for `wait`, `list` and `cancel`.
    pub fn name(&self) -> String {
        name_in(self.job.as_deref(), &self.batch)
    }

    /// How many lines each chunk has.
    pub fn size(&self) -> u64 {
        u64::from(self.size.max(1))
    }

    /// The id of a chunk.
    pub fn id(&self, unit: u64) -> TaskId {
        batch_unit(self.job.as_deref(), &self.batch, unit, self.size())
    }

    /// The path of a chunk.
    pub fn path(&self, unit: u64) -> String {
        self.layout.task(&self.id(unit))
    }

    /// The path of a part.
    pub fn part_path(&self, part: u64) -> String {
        self.layout.job(self.id(part * LINES_PER_PART).dir())
    }

    /// The unit that has its chunk at this path.
    pub fn unit_at(&self, path: &str) -> Option<u64> {
        let line: u64 = name_of(path).parse().ok()?;
        let unit = line / self.size();
        (line < MAX_BATCH_LINES && self.path(unit) == path).then_some(unit)
    }

    /// Which lines a chunk has, in words.
    pub fn lines_of(&self, unit: u64) -> String {
        let (size, first) = (self.size(), unit.saturating_mul(self.size()));
        match size {
            1 => format!("line {}", first.saturating_add(1)),
            _ => format!("lines {} to {}", first.saturating_add(1), first.saturating_add(size)),
        }
    }

    /// What to call the lines of a unit to their user.
    pub fn describe(&self, unit: u64) -> String {
        format!("the batch {} ({})", self.name(), self.lines_of(unit))
    }

    /// How many parts there are.
    pub fn parts(&self) -> u64 {
        self.outline.end.div_ceil(self.size()).div_ceil(LINES_PER_PART)
    }

    /// How many lines a part has, blank ones left out.
    pub fn part_lines(&self, part: u64) -> u64 {
        self.outline.lines_of_part(part, self.size())
    }

    /// The data of a part: the options, how lines are put together, and how many there are.
    pub fn part_data(&self, part: u64) -> Job {
        let mut job = Job::new(self.options.clone());
        (job.chunk, job.lines) = (Some(self.size), Some(self.part_lines(part)));
        job
    }

    /// A chunk. Its options are the part's, but for the mark: a batch that is submitted again under its key adds chunks
    /// to a part that was made by a submitter that is gone.
    pub fn task(&self, unit: u64, commands: &[String], orphan_of: Option<&str>) -> Task {
        let payload =
            Payload::Chunk { first_line: unit.saturating_mul(self.size()), commands: commands.to_vec() };
        let orphan_of = orphan_of.map(str::to_string);
        let mut task = Task::new(payload, Options { orphan_of, ..Options::default() });
        task.keyed = self.keyed;
        task
    }

    /// Whether nobody put other lines into the chunk.
    pub fn has_our_lines(&self, unit: u64, task: &Task) -> bool {
        task.first_line == unit.saturating_mul(self.size())
    }

    /// What the batch adds to the load. An estimate: escapes of JSON are not counted.
    pub fn demand(&self, orphan_of: Option<&str>) -> Demand {
        let empty = self.task(0, &[], orphan_of).encode().len() as u64;
        let tasks = self.outline.lines.min(self.outline.end.div_ceil(self.size()));
        let lines = self.outline.lines.saturating_mul(LINE_BYTES).saturating_add(self.outline.bytes);
        Demand { tasks: self.outline.lines, bytes: lines.saturating_add(tasks.saturating_mul(empty)) }
    }
}
