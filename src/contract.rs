//! The znode contract: the public API that everything else rests on, in any language.
//!
//! Here are the path and the name of each znode; its data is in [`task`], [`worker`] and
//! [`status`]. `docs/contract.md` says the same for foreign clients, and the files under `tests/golden` pin it.
//! Nothing here knows who reads or writes a znode, or when.
//!
//! Data is JSON with `"v":1` (absent means 1). Fields that are not known here are kept and ignored.

pub mod chunk;
pub mod contender;
pub mod dropped;
pub mod handler;
pub mod line;
pub mod log;
pub mod outcome;
pub mod output;
pub mod result;
pub mod share;
mod sharing;
pub mod status;
pub mod task;
pub mod worker;

use std::collections::BTreeMap;
use std::fmt;

/// The version of the contract that this code reads and writes.
pub const VERSION: u32 = 1;

/// Most children that our own writers put under one znode.
pub const MAX_CHILDREN: i32 = 4_000;

/// Most children that any znode of ours may have; an excess made by others is reported.
pub const MAX_CHILDREN_TOLERATED: i32 = 5_000;

/// Most bytes of data in a znode of ours.
pub const MAX_DATA_BYTES: usize = 512 * 1024;

/// Most bytes of a task as it is submitted, encoded, so that an outcome fits beside it.
pub const MAX_TASK_BYTES: usize = 256 * 1024;

/// Longest id of a task, `job/task`, in bytes: that of our own batches is 391.
pub const MAX_TASK_ID_BYTES: usize = 400;

/// How many shared jobs take the tasks that have no job of their own.
pub const SHARED_JOBS: u32 = 256;

/// Tasks of a batch that go into one part, that is, one directory: lines, where a task has one.
pub const LINES_PER_PART: u64 = 4_000;

/// Most lines of one batch, so that `tasks` itself stays below [`MAX_CHILDREN_TOLERATED`].
pub const MAX_BATCH_LINES: u64 = 10_000_000;

/// Longest id that a user can give to a worker, master, job or task, in bytes.
pub const MAX_ID_BYTES: usize = 128;

/// The part of a contender's name before the sequence number, as in Curator's `LeaderLatch`.
pub const LATCH: &str = "latch-";

/// Most bytes that words have which zkmw writes into a task (why it failed, why an attempt was not the last), as
/// encoded. They may quote anything, such as a program's name of 120 KiB. The names of the workers that had the last
/// attempts are as long in all.
pub const MAX_WORDS_BYTES: usize = 1_024;

/// Longest reason that is given for a refusal, in bytes. Reasons quote what was found, which may be anything.
const MAX_REASON_BYTES: usize = 512;

/// Why data could not be read as what its path says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl Malformed {
    /// A reason that may have parts of the data in it: it is made short, and fit for a log and a terminal.
    fn quoting(reason: &str) -> Malformed {
        let mut text = String::new();
        for char in reason.chars() {
            if text.len() >= MAX_REASON_BYTES {
                text.push('…');
                break;
            }
            if char.is_control() { text.extend(char.escape_default()) } else { text.push(char) }
        }
        Malformed(text)
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

/// Fields of a znode that this version does not know, kept as they were.
pub type Extra = serde_json::Map<String, serde_json::Value>;

/// Labels of a worker, or those that a task requires.
pub type Labels = BTreeMap<String, String>;

/// Reads a JSON znode and checks its version before anything else is made of it.
fn decode<T: serde::de::DeserializeOwned>(data: &[u8]) -> Result<T, Malformed> {
    if data.is_empty() {
        return Err(Malformed("it is empty".into()));
    }
    if data.len() > MAX_DATA_BYTES {
        return Err(Malformed(format!("it has {} bytes, more than {MAX_DATA_BYTES}", data.len())));
    }
    // The parser checks the bytes of a text only where it wants that text: an ignored field could hold any bytes.
    let text = std::str::from_utf8(data)
        .map_err(|e| Malformed(format!("it is not UTF-8, from byte {} on", e.valid_up_to() + 1)))?;
    #[derive(serde::Deserialize)]
    struct Versioned {
        v: Option<serde_json::Value>,
    }
    let versioned: Versioned = serde_json::from_str(text).map_err(|e| Malformed::quoting(&e.to_string()))?;
    match versioned.v {
        None => {}
        Some(v) if v == serde_json::json!(VERSION) => {}
        Some(v) => {
            let why = format!("its version is {v}, and this zkmw knows only {VERSION}");
            return Err(Malformed::quoting(&why));
        }
    }
    serde_json::from_str(text).map_err(|e| Malformed::quoting(&e.to_string()))
}

/// Writes a JSON znode.
fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    // Our types have only string keys and no fallible serialisers.
    serde_json::to_vec(value).unwrap_or_default()
}

fn one() -> u32 {
    1
}

fn version() -> u32 {
    VERSION
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A task's path below `tasks`, and its id for users: `job/task`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct TaskId(Box<str>);

impl TaskId {
    /// The task `name` in the directory `job`.
    pub fn new(job: &str, name: &str) -> TaskId {
        TaskId(format!("{job}/{name}").into())
    }

    /// Reads `job/task`.
    pub fn parse(text: &str) -> Option<TaskId> {
        let (job, name) = text.split_once('/')?;
        (is_component(job) && is_component(name)).then(|| TaskId(text.into()))
    }

    /// The directory that the task is in.
    pub fn dir(&self) -> &str {
        self.0.split_once('/').map_or("", |(dir, _)| dir)
    }

    /// `job/task`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The job that a directory of tasks belongs to: all parts of a batch are one job.
pub fn job_of(dir: &str) -> &str {
    dir.split_once('~').map_or(dir, |(job, _)| job)
}

/// Whether the directory is one of the shared jobs `_00` … `_ff`, which are never deleted.
pub fn is_shared(dir: &str) -> bool {
    dir.len() == 3
        && dir.starts_with('_')
        && dir[1..].bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether it is a ULID, which is the name of a task that was submitted without a key: 26 digits of Crockford's
/// base 32 (<https://github.com/ulid/spec>).
pub fn is_ulid(text: &str) -> bool {
    let is_digit = |c: char| c.is_ascii_digit() || (c.is_ascii_uppercase() && !"ILOU".contains(c));
    text.len() == 26 && text.chars().all(is_digit)
}

/// The shared job for a task name: the low byte of its FNV-1a hash (32 bits; Fowler, Noll, Vo).
pub fn shared_job(name: &str) -> String {
    format!("_{:02x}", fnv1a(name) % SHARED_JOBS)
}

/// The FNV-1a hash of 32 bits (Fowler, Noll, Vo).
pub fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Where unit `unit` (from 0) of a batch goes that has `size` lines in each task. It is named after the first of them.
/// It follows from its arguments alone, so that a batch that is submitted again with the same key meets its own tasks.
pub fn batch_unit(job: Option<&str>, batch: &str, unit: u64, size: u64) -> TaskId {
    TaskId::new(&part_dir(job, batch, unit), &format!("{:07}", unit.saturating_mul(size)))
}

/// The directory of a unit of a batch.
pub fn part_dir(job: Option<&str>, batch: &str, unit: u64) -> String {
    let part = unit / LINES_PER_PART;
    match job {
        Some(job) => format!("{job}~{batch}~{part:04}"),
        None => format!("{batch}~{part:04}"),
    }
}

/// Whether the text can be one component of a znode's path, as ZooKeeper's `PathUtils` sees it.
pub fn is_component(text: &str) -> bool {
    !text.is_empty()
        && text != "."
        && text != ".."
        && !text
            .chars()
            .any(|c| c == '/' || c.is_control() || matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..))
}

/// Whether users may give this id to a worker, a master, a job or a task.
pub fn is_user_id(text: &str) -> bool {
    is_component(text) && text.len() <= MAX_ID_BYTES && !text.contains('~')
}

/// One life of a worker: `<worker>~<incarnation>`. Once without a registration it is dead for ever.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Incarnation(Box<str>);

impl Incarnation {
    /// The incarnation of `worker` with this fresh number.
    pub fn new(worker: &str, number: u64) -> Incarnation {
        Incarnation(format!("{worker}~{number:016x}").into())
    }

    /// Reads `<worker>~<incarnation>`.
    pub fn parse(text: &str) -> Option<Incarnation> {
        let (worker, number) = text.split_once('~')?;
        (is_user_id(worker) && is_user_id(number)).then(|| Incarnation(text.into()))
    }

    /// The worker's id.
    pub fn worker(&self) -> &str {
        self.0.split_once('~').map_or("", |(worker, _)| worker)
    }

    /// `<worker>~<incarnation>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads a registration's (or lease's) name, `<worker>~<incarnation>~<n>`. Numbers have one spelling: with `01`
/// beside `1` two registrations would count as one, and the end of one as the end of both.
pub fn parse_registration(name: &str) -> Option<(Incarnation, u64)> {
    let (incarnation, text) = name.rsplit_once('~')?;
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some((Incarnation::parse(incarnation)?, number))
}

/// What decides the order of contenders (unless one [inherited](contender) a rank): the text after the last `latch-`,
/// compared as text, as Curator's `StandardLockInternalsDriver.standardFixForSorting` does. A sequence number that
/// overflowed is negative and so comes first, there as here. `None` is a contender of another library.
pub fn contender_rank(name: &str) -> Option<&str> {
    name.rfind(LATCH).map(|at| &name[at + LATCH.len()..])
}

/// A random (version 4) UUID from 128 random bits.
pub fn uuid(high: u64, low: u64) -> String {
    let high = (high & !0xf000) | 0x4000;
    let low = (low & !(0b11 << 62)) | (0b10 << 62);
    let (a, b, c) = (high >> 32, (high >> 16) & 0xffff, high & 0xffff);
    format!("{a:08x}-{b:04x}-{c:04x}-{:04x}-{:012x}", low >> 48, low & 0xffff_ffff_ffff)
}

/// The paths of everything below one root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: String,
}

impl Layout {
    /// The layout below `root`, an absolute path without a slash at its end.
    pub fn new(root: &str) -> Layout {
        Layout { root: root.to_string() }
    }

    /// The root itself.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The directory of the masters' contenders.
    pub fn master(&self) -> String {
        format!("{}/master", self.root)
    }

    /// The directory of registrations.
    pub fn workers(&self) -> String {
        format!("{}/workers", self.root)
    }

    /// The directory of assignments.
    pub fn assign(&self) -> String {
        format!("{}/assign", self.root)
    }

    /// The directory of jobs.
    pub fn tasks(&self) -> String {
        format!("{}/tasks", self.root)
    }

    /// The directory of waiting submitters.
    pub fn submitters(&self) -> String {
        format!("{}/submitters", self.root)
    }

    /// The directory of leases.
    pub fn leases(&self) -> String {
        format!("{}/leases", self.root)
    }

    /// The directory of the electors' elections.
    pub fn elections(&self) -> String {
        format!("{}/elections", self.root)
    }

    /// The leader's summary.
    pub fn status(&self) -> String {
        format!("{}/status", self.root)
    }

    /// What this path, `dir` or `dir/name`, names below [`Layout::tasks`].
    pub fn below_tasks(&self, path: &str) -> String {
        format!("{}/tasks/{path}", self.root)
    }

    /// The task that a path names, if it can name one.
    pub fn task_at(&self, path: &str) -> Option<TaskId> {
        TaskId::parse(path.strip_prefix(self.root.as_str())?.strip_prefix("/tasks/")?)
    }

    /// The directory of jobs' directory `dir`.
    pub fn job(&self, dir: &str) -> String {
        self.below_tasks(dir)
    }

    /// A task.
    pub fn task(&self, id: &TaskId) -> String {
        self.below_tasks(id.as_str())
    }

    /// An assignment.
    pub fn assignment(&self, incarnation: &Incarnation) -> String {
        format!("{}/assign/{incarnation}", self.root)
    }

    /// The `n`th registration of an incarnation.
    pub fn registration(&self, incarnation: &Incarnation, n: u64) -> String {
        format!("{}/workers/{incarnation}~{n}", self.root)
    }

    /// The `n`th lease of a holder (an incarnation, or an elector's id and number).
    pub fn lease(&self, holder: &str, n: u64) -> String {
        format!("{}/leases/{holder}~{n}", self.root)
    }

    /// A mark of a waiting submitter; `n` is used once.
    pub fn submitter(&self, id: &str, n: &str) -> String {
        format!("{}/submitters/{id}~{n}", self.root)
    }
}

/// The beginning of a text, if it would take more than `limit` bytes as a JSON string without its quotes.
pub fn shortened(text: &str, limit: usize) -> String {
    const CUT: char = '…';
    if output::escaped_len(text) <= limit + 2 {
        return text.to_string();
    }
    let mut left = limit.saturating_sub(CUT.len_utf8());
    let fits = |char: &char| {
        let bytes = output::escaped_len(char.encode_utf8(&mut [0; 4])) - 2;
        left.checked_sub(bytes).inspect(|rest| left = *rest).is_some()
    };
    let mut short: String = text.chars().take_while(fits).collect();
    short.push(CUT);
    short
}

/// The last component of a path.
pub fn name_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// The path without its last component; `None` for `/` and for what is directly below it.
pub fn parent_of(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(parent, _)| parent).filter(|parent| !parent.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_line_always_goes_to_the_same_part() {
        assert_eq!(batch_unit(None, "B", 0, 1).as_str(), "B~0000/0000000");
        assert_eq!(batch_unit(None, "B", 3_999, 1).as_str(), "B~0000/0003999");
        assert_eq!(batch_unit(Some("J"), "B", 4_000, 1).as_str(), "J~B~0001/0004000");
        assert_eq!(batch_unit(None, "B", 3_999, 100).as_str(), "B~0000/0399900");
        assert_eq!(batch_unit(Some("J"), "B", 4_000, 100).as_str(), "J~B~0001/0400000");
        assert_eq!(job_of("J~B~0001"), "J");
    }

    #[test]
    fn only_what_is_two_levels_below_tasks_is_a_task() {
        let layout = Layout::new("/z");
        let id = TaskId::new("B~0000", "1");
        assert_eq!(
            (layout.task(&id).as_str(), layout.task_at("/z/tasks/B~0000/1")),
            ("/z/tasks/B~0000/1", Some(id))
        );
        for path in ["/z/workers/a/b", "/y/tasks/a/b", "/z/tasks/a", "/z/tasks/a/b/c"] {
            assert_eq!(layout.task_at(path), None, "{path}");
        }
    }

    #[test]
    fn shared_jobs_are_distinguished_from_others() {
        assert!(is_shared("_0f") && is_shared(&shared_job("anything")));
        assert!(!is_shared("_0F") && !is_shared("_000") && !is_shared("x0f") && !is_shared("_0"));
        assert!(!is_shared("_é"));
    }

    #[test]
    fn shared_job_is_the_low_byte_of_fnv1a() {
        // FNV-1a 32 of "foobar" is 0xbf9cf968 (the authors' own test vector).
        assert_eq!(shared_job("foobar"), "_68");
    }

    #[test]
    fn contenders_sort_as_curators_do() {
        let uuid = uuid(u64::MAX, u64::MAX);
        assert_eq!(uuid, "ffffffff-ffff-4fff-bfff-ffffffffffff");
        let name = format!("{}0000000007", contender::prefix(&uuid));
        assert_eq!(contender_rank(&name), Some("0000000007"));
        assert!(contender_rank("x-latch--2147483648") < contender_rank("x-latch-0000000001"));
        assert_eq!(contender_rank("a__lock__0000000001"), None);
    }

    #[test]
    fn ids_have_limits() {
        assert!(is_user_id("w7") && is_user_id("täsk.1"));
        for bad in ["", ".", "..", "a/b", "a~b", "a\0b", "a\nb", "a\u{85}b", &"x".repeat(129)] {
            assert!(!is_user_id(bad), "{bad:?}");
        }
    }

    #[test]
    fn names_are_read_back() {
        let incarnation = Incarnation::new("w7", 0xabc);
        assert_eq!(incarnation.as_str(), "w7~0000000000000abc");
        assert_eq!(parse_registration("w7~0000000000000abc~3"), Some((incarnation, 3)));
        for bad in ["w7", "w7~1", "~1~2", "w7~1~x", "w7~~1", "w7~1~01", "w7~1~+1"] {
            assert_eq!(parse_registration(bad), None, "{bad}");
        }
        assert_eq!(TaskId::parse("_3f/01H").map(|t| t.dir().to_string()), Some("_3f".into()));
        assert!(
            TaskId::parse("a/b/c").is_none() && TaskId::parse("a").is_none() && TaskId::parse("/a").is_none()
        );
        assert_eq!((name_of("/a/b"), parent_of("/a/b"), parent_of("/a")), ("b", Some("/a"), None));
    }
}
