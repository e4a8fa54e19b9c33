//! The decoders, and what must hold of each for any input. A check panics, with the reason.

use std::ffi::OsString;
use std::fmt::Debug;
use std::path::Path;

use serde_json::{Map, Value};
use zkmw::batch::{BatchReader, MAX_LINE_BYTES};
use zkmw::contract::chunk::MAX_CHUNK_COMMANDS;
use zkmw::contract::contender::Contender;
use zkmw::contract::status::Status;
use zkmw::contract::task::{Job, Task};
use zkmw::contract::worker::{Assignment, Registration};
use zkmw::contract::{
    Incarnation, Layout, MAX_DATA_BYTES, Malformed, TaskId, contender_rank, is_component, is_shared,
    is_user_id, job_of, name_of, parent_of, parse_registration, shared_job,
};

use crate::memory::peak;

/// The most bytes that a decoder may have at one time, for each byte of its input: `[[],[],…` is the worst JSON …
const MEMORY_FACTOR: usize = 160;
/// … the configuration file is a person's own, and at most 1 MiB …
const CONFIG_FACTOR: usize = 128;
/// … and beside that.
const MEMORY_BASE: usize = 64 * 1024;
/// The longest reason for a refusal: it is logged.
const MAX_REASON_BYTES: usize = 1_024;

/// One decoder and its check.
pub struct Target {
    pub name: &'static str,
    pub check: fn(&[u8]),
}

pub const TARGETS: &[Target] = &[
    Target { name: "task", check: json::<Task> },
    Target { name: "job", check: json::<Job> },
    Target { name: "registration", check: json::<Registration> },
    Target { name: "assignment", check: json::<Assignment> },
    Target { name: "status", check: json::<Status> },
    Target { name: "names", check: names },
    Target { name: "config", check: config },
    Target { name: "batch", check: batch },
];

/// A znode in JSON.
trait Znode: Sized + Clone + PartialEq + Debug {
    /// Every field that the contract names at the top.
    const FIELDS: &'static [&'static str];
    fn decode(data: &[u8]) -> Result<Self, Malformed>;
    fn encode(&self) -> Vec<u8>;
    /// Further uses of the value.
    fn use_it(self) {}
}

macro_rules! znode {
    ($type:ty, $fields:expr, $use_it:expr) => {
        impl Znode for $type {
            const FIELDS: &'static [&'static str] = $fields;
            fn decode(data: &[u8]) -> Result<Self, Malformed> {
                <$type>::decode(data)
            }
            fn encode(&self) -> Vec<u8> {
                self.encode()
            }
            fn use_it(self) {
                $use_it(self)
            }
        }
    };
}

znode!(
    Task,
    &[
        "v",
        "command",
        "argv",
        "commands",
        "first_line",
        "digest",
        "results",
        "shares",
        "cancel_lines",
        "priority",
        "timeout_ms",
        "expire_ms",
        "max_attempts",
        "retry_backoff_ms",
        "require",
        "env",
        "orphan_of",
        "keyed",
        "attempt",
        "charged",
        "delay_ms",
        "cancel",
        "delete",
        "released_by",
        "avoid",
        "history",
        "outcome",
    ],
    use_task
);
znode!(
    Job,
    &[
        "v",
        "priority",
        "timeout_ms",
        "expire_ms",
        "max_attempts",
        "retry_backoff_ms",
        "require",
        "env",
        "orphan_of",
        "chunk",
        "lines",
        "made",
    ],
    |_| ()
);
znode!(
    Registration,
    &[
        "v",
        "host",
        "boot_id",
        "pid_ns",
        "pid",
        "start_time",
        "slots",
        "labels",
        "draining",
        "usable",
        "unhealthy",
        "revoked_through",
        "aside",
        "since",
        "session_timeout_ms",
    ],
    |_| ()
);
znode!(Assignment, &["v", "epoch", "entries"], |_| ());
znode!(
    Status,
    &["v", "leader", "workers", "slots", "worker_list", "tasks", "loading", "admission", "ended_workers"],
    |_| ()
);

fn use_task(mut task: Task) {
    let _ = (
        task.payload(),
        task.options.attempts(),
        task.options.backoff_ms(task.charged),
        task.same_request(&task),
    );
    assert!(task.options.backoff_ms(u32::MAX) <= zkmw::contract::task::MAX_RETRY_BACKOFF_MS);
    if let Some(outcome) = &task.outcome {
        let _ = (outcome.stdout.captured(), outcome.stderr.captured());
    }
    let positions: Vec<_> = task.positions().collect();
    assert!(positions.len() <= MAX_CHUNK_COMMANDS);
    let over = positions.iter().filter(|(at, _)| task.command_outcome(*at).is_some()).count();
    assert!(
        task.width() as usize <= positions.len().max(1)
            && (task.outcome.is_none() || over == positions.len())
    );
    let before = task.history.last().cloned();
    task.next_attempt(None, "it was fuzzed");
    assert_ne!(task.history.last(), before.as_ref());
    if task.encode().len() > MAX_DATA_BYTES && task.outcome.is_some() {
        task.encode_to_fit();
    }
}

/// A refusal is short, and can be shown on a terminal.
#[track_caller]
fn check_reason(why: &str) {
    assert!(why.len() <= MAX_REASON_BYTES, "the reason has {} bytes", why.len());
    assert!(!why.is_empty() && !why.chars().any(char::is_control), "{why:?}");
}

fn json<T: Znode>(data: &[u8]) {
    let (decoded, bytes) = peak(|| T::decode(data));
    let most = MEMORY_FACTOR * data.len().min(MAX_DATA_BYTES) + MEMORY_BASE;
    assert!(bytes <= most, "decoding {} bytes took {bytes}", data.len());
    let value = match decoded {
        Ok(value) => value,
        Err(why) => return check_reason(&why.to_string()),
    };
    assert!(data.len() <= MAX_DATA_BYTES, "{} bytes were taken", data.len());
    let again = value.encode();
    check_unknown(data, &again, T::FIELDS);
    // Numbers may be written longer than they were (1e9): then it may no longer fit.
    match T::decode(&again) {
        Ok(back) => {
            assert_eq!(back, value, "it is another after it was written");
            assert_eq!(back.encode(), again, "written twice, it differs");
        }
        Err(why) => assert!(
            again.len() > data.len() && data.len() > MAX_DATA_BYTES / 8,
            "its own data is refused: {why}"
        ),
    }
    value.use_it();
}

/// Errors that the parser reports only for values that it keeps.
const UNSEEN: [&str; 3] =
    ["number out of range", "unexpected end of hex escape", "lone leading surrogate in hex escape"];

/// The fields that the contract does not name are there again, last and in their order, with their values.
fn check_unknown(data: &[u8], again: &[u8], known: &[&str]) {
    let unknown = |data: &[u8]| -> Option<Map<String, Value>> {
        match serde_json::from_slice(data) {
            Ok(Value::Object(fields)) => {
                Some(fields.into_iter().filter(|(key, _)| !known.contains(&key.as_str())).collect())
            }
            // A number that is too large for any type, or half a character, may be in an ignored field.
            Err(error) if UNSEEN.iter().any(|why| error.to_string().starts_with(why)) => None,
            other => panic!("what was read is no object: {other:?}"),
        }
    };
    // A job may be empty.
    let before = if data.is_empty() { Some(Map::new()) } else { unknown(data) };
    let Some(before) = before else { return };
    let after = unknown(again).expect("what was written has no such numbers");
    assert!(before.iter().eq(after.iter()), "unknown fields: {before:?} became {after:?}");
    let all: Map<String, Value> = serde_json::from_slice(again).expect("an object");
    let last: Vec<_> = all.keys().skip(all.len() - after.len()).collect();
    assert!(last.into_iter().eq(after.keys()), "unknown fields are not last");
    remarks(data, again);
}

/// Unknown fields in a remark of the history are kept too: every writer copies them.
fn remarks(data: &[u8], again: &[u8]) {
    let unknown = |data: &[u8]| -> Vec<Map<String, Value>> {
        let known = |key: &str| matches!(key, "attempt" | "worker" | "why");
        let value: Value = serde_json::from_slice(data).unwrap_or_default();
        // Only a task's history is known: that of anything else is a field like others.
        let history = value["history"]
            .as_array()
            .filter(|_| value.get("attempt").is_some())
            .cloned()
            .unwrap_or_default();
        let fields = |remark: Value| remark.as_object().cloned().unwrap_or_default();
        history.into_iter().map(|r| fields(r).into_iter().filter(|(key, _)| !known(key)).collect()).collect()
    };
    let (before, after) = (unknown(data), unknown(again));
    if !before.is_empty() {
        assert_eq!(before, after, "what is in the history");
    }
}

/// ZooKeeper's `PathUtils.validatePath`, written down again from its source: by UTF-16 units, as Java sees them.
pub fn is_path(path: &str) -> bool {
    if path == "/" {
        return true;
    }
    let bad =
        |unit: u16| matches!(unit, 0x0000..=0x001f | 0x007f..=0x009f | 0xd800..=0xf8ff | 0xfff0..=0xffff);
    path.starts_with('/')
        && !path.ends_with('/')
        && !path.encode_utf16().any(bad)
        && path[1..].split('/').all(|component| !matches!(component, "" | "." | ".."))
}

/// Ids, names, paths, suffixes: each is read as it was written, and leads nowhere else.
pub fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let text = text.as_ref();
    let most = MEMORY_FACTOR * text.len() + MEMORY_BASE;
    let ((), bytes) = peak(|| {
        let _ = (contender_rank(text), job_of(text), is_user_id(text), shared_job(text), TaskId::parse(text));
        let _ = (parse_registration(text), Incarnation::parse(text), name_of(text), parent_of(text));
    });
    assert!(bytes <= most, "{bytes} bytes");
    let layout = Layout::new("/root");
    assert_eq!(is_component(text), is_path(&format!("/x/{text}")) && !text.contains('/'), "{text:?}");
    if let Some(id) = TaskId::parse(text) {
        assert_eq!(id.as_str(), text);
        let path = layout.task(&id);
        assert!(is_path(&path) && path.matches('/').count() == 4, "{path:?}");
        assert_eq!(TaskId::new(id.dir(), name_of(&path)), id);
        assert_eq!(parent_of(&path), Some(layout.job(id.dir()).as_str()));
        assert!(!job_of(id.dir()).contains('~'));
    }
    if let Some(incarnation) = Incarnation::parse(text) {
        assert_eq!(incarnation.as_str(), text);
        assert!(is_user_id(incarnation.worker()) && is_path(&layout.assignment(&incarnation)));
    }
    if let Some((incarnation, n)) = parse_registration(text) {
        // Two names of one registration would be one entry in a leader's list of live workers.
        assert_eq!(name_of(&layout.registration(&incarnation, n)), text);
    }
    assert!(is_shared(&shared_job(text)) && is_component(&shared_job(text)));
    assert!(!is_user_id(text) || is_component(text));
    if let Some(rank) = contender_rank(text) {
        assert!(text.ends_with(rank) && !rank.contains("latch-"));
        let read = Contender::parse(text).expect("a contender");
        assert_eq!((read.name, read.sequence), (text, rank));
        assert!(
            read.rank <= read.sequence && (read.respects_ranks || read.rank == read.sequence),
            "{read:?}"
        );
    }
}

/// The configuration file, whichever command reads it.
fn config(data: &[u8]) {
    thread_local! {
        static FILE: tempfile::NamedTempFile = tempfile::NamedTempFile::new().expect("a file");
    }
    FILE.with(|file| {
        std::fs::write(file.path(), data).expect("written");
        let args = ["zkmw", "status", "--zk", "127.0.0.1:2181", "--config"].map(OsString::from);
        let args = args.into_iter().chain([file.path().into()]);
        let none = Path::new("/nonexistent");
        let (loaded, bytes) = peak(|| zkmw::config::load(args, |_| None, none).map(|_| ()));
        // Beside the file's own there are the tables of commands and settings.
        assert!(bytes <= CONFIG_FACTOR * data.len() + 64 * MEMORY_BASE, "{} bytes took {bytes}", data.len());
        if let Err(error) = loaded {
            let text = error.to_string();
            assert!(!text.chars().any(|char| char.is_control() && char != '\n'), "{text:?}");
        }
    });
}

/// Chosen chunks fit, and a refusal names a size that fits.
fn chunked(batch: &mut BatchReader) {
    for slots in [0, 1, 1_000] {
        let chosen = batch.outline().choose(slots);
        assert!((1..=100).contains(&chosen));
        assert_eq!(batch.check_chunk(chosen), Ok(()));
    }
    if let Err(unfit) = batch.check_chunk(MAX_CHUNK_COMMANDS as u32) {
        let fits = unfit.why.rsplit(' ').next().and_then(|size| size.parse().ok()).expect("a size");
        assert_eq!(batch.check_chunk(fits), Ok(()), "{unfit}");
    }
}

/// A batch: the lines that are handed out are the lines of the file.
fn batch(data: &[u8]) {
    let (read, bytes) = peak(|| BatchReader::spool(data, "fuzz"));
    // Lines are not kept: at any time there are one line and two buffers.
    assert!(bytes <= 8 * MAX_LINE_BYTES + MEMORY_BASE, "{} bytes took {bytes}", data.len());
    let mut batch = match read {
        Ok(batch) => batch,
        Err(unfit) => return check_reason(&unfit.why),
    };
    chunked(&mut batch);
    let given = batch.next(usize::MAX).expect("it did not change");
    let text = std::str::from_utf8(data).expect("checked");
    // A byte-order mark is no part of the first line.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).enumerate();
    let expected: Vec<_> = lines.filter(|(_, line)| !line.trim().is_empty()).collect();
    assert_eq!(given.len(), expected.len());
    for (line, (number, text)) in given.iter().zip(expected) {
        assert_eq!((line.number, line.text.as_str()), (number as u64, text));
    }
}
