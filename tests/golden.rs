//! The contract as bytes: each file in `tests/golden` is the data of one znode.
//!
//! This version must write the same bytes as every version before it, and must read these files back without loss.
//! `docs/contract.md` shows the same files, and is compared with them.
//!
//! `ZKMW_BLESS=1 cargo test --test golden` writes the files again; the difference is the review. (The files have
//! no line's end, since znodes have none. The examples in the document are changed by hand.)

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use zkmw::contract::chunk::CommandResult;
use zkmw::contract::share::Move;
use zkmw::contract::status::{Admission, Counts, EndedWorker, LeaderStatus, Status, WorkerRow};
use zkmw::contract::task::{Job, Options, Outcome, Output, Payload, Reason, State, Task};
use zkmw::contract::worker::{Assignment, Entry, ProcessIdentity, Registration, Seen};
use zkmw::contract::{Incarnation, Labels, TaskId};
use zkmw::machine::Captured;

/// The type that a znode is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Task,
    Job,
    Registration,
    Assignment,
    Status,
}

impl Kind {
    /// Reads the data and writes it again.
    fn again(self, data: &[u8]) -> Result<Vec<u8>, String> {
        let text = |malformed: zkmw::contract::Malformed| malformed.to_string();
        match self {
            Kind::Task => Task::decode(data).map(|read| read.encode()).map_err(text),
            Kind::Job => Job::decode(data).map(|read| read.encode()).map_err(text),
            Kind::Registration => Registration::decode(data).map(|read| read.encode()).map_err(text),
            Kind::Assignment => Assignment::decode(data).map(|read| read.encode()).map_err(text),
            Kind::Status => Status::decode(data).map(|read| read.encode()).map_err(text),
        }
    }
}

/// A file, what it is, and how its content is made.
struct Golden {
    file: &'static str,
    kind: Kind,
    make: fn() -> Vec<u8>,
}

const fn golden(file: &'static str, kind: Kind, make: fn() -> Vec<u8>) -> Golden {
    Golden { file, kind, make }
}

/// Every file that is written as this version writes it.
const GOLDEN: &[Golden] = &[
    golden("task-new.json", Kind::Task, || shell("echo hi").encode()),
    golden("task-program.json", Kind::Task, task_program),
    golden("task-waiting.json", Kind::Task, task_waiting),
    golden("task-foreign-field.json", Kind::Task, task_foreign_field),
    golden("task-done.json", Kind::Task, task_done),
    golden("task-failed-exit.json", Kind::Task, task_failed_exit),
    golden("task-failed-signal.json", Kind::Task, task_failed_signal),
    golden("task-failed-timeout.json", Kind::Task, task_failed_timeout),
    golden("task-failed-poison.json", Kind::Task, task_failed_poison),
    golden("task-failed-not-started.json", Kind::Task, task_failed_not_started),
    golden("task-cancelled.json", Kind::Task, task_cancelled),
    golden("task-expired.json", Kind::Task, task_expired),
    golden("task-unwanted.json", Kind::Task, task_unwanted),
    golden("task-chunk-new.json", Kind::Task, || chunk().encode()),
    golden("task-chunk-running.json", Kind::Task, task_chunk_running),
    golden("task-chunk-cancelling.json", Kind::Task, task_chunk_cancelling),
    golden("task-chunk-failed.json", Kind::Task, task_chunk_failed),
    golden("task-chunk-dropped.json", Kind::Task, task_chunk_dropped),
    golden("job-part.json", Kind::Job, job_part),
    golden("job.json", Kind::Job, || Job::new(all_options()).encode()),
    golden("job-without-defaults.json", Kind::Job, || Job::new(Options::default()).encode()),
    golden("registration-first.json", Kind::Registration, || registration(|_| {}).encode()),
    golden("registration-later.json", Kind::Registration, registration_later),
    golden("assignment-new.json", Kind::Assignment, || Assignment::new(0, Vec::new()).encode()),
    golden("assignment.json", Kind::Assignment, assignment),
    golden("status.json", Kind::Status, status),
];

/// Data that people and foreign programs may write, with the file that this version makes of it.
const BY_HAND: &[(&str, Kind, &str)] = &[
    ("task-by-hand.json", Kind::Task, "task-new.json"),
    ("job-by-hand.json", Kind::Job, "job-without-defaults.json"),
];

fn shell(line: &str) -> Task {
    Task::new(Payload::Shell(line.into()), Options::default())
}

fn incarnation() -> Incarnation {
    Incarnation::new("w7", 0x01d3_c0ff_ee00_beef)
}

fn labels() -> Labels {
    BTreeMap::from([("gpu".to_string(), "yes".to_string()), ("zone".to_string(), "eu1".to_string())])
}

/// Every option is set.
fn all_options() -> Options {
    Options {
        priority: Some(-5),
        timeout_ms: Some(300_000),
        expire_ms: Some(86_400_000),
        max_attempts: Some(5),
        retry_backoff_ms: Some(2_000),
        require: Some(labels()),
        env: Some(BTreeMap::from([("LANG".to_string(), "C".to_string())])),
        orphan_of: Some("01JD2M8Q3T5V7X9Z1B3D5F7H9K".into()),
    }
}

fn captured(head: &[u8], omitted: u64, tail: &[u8]) -> Output {
    Output::new(&Captured { head: head.to_vec(), omitted, tail: tail.to_vec() })
}

fn task_program() -> Vec<u8> {
    let argv = ["./train", "--epochs", "3"].map(str::to_string).to_vec();
    let mut task = Task::new(Payload::Program(argv), all_options());
    task.keyed = true;
    task.encode()
}

/// On its second attempt, which waits for its time, and somebody wants it cancelled.
fn task_waiting() -> Vec<u8> {
    let mut task = shell("./import 42");
    task.options.max_attempts = Some(3);
    task.next_attempt(Some(incarnation()), "it exited with 1");
    task.charged = 1;
    task.delay_ms = Some(1_000);
    task.released_by = Some(incarnation());
    task.cancel = true;
    task.encode()
}

/// Fields of others come last, in their order, and are not touched.
fn task_foreign_field() -> Vec<u8> {
    let text = r#"{"v":1,"command":"echo hi","attempt":1,"x-ticket":{"id":4711,"tags":["a",null,1.5]},"note":"über"}"#;
    text.as_bytes().to_vec()
}

fn ran(state: State, reason: Option<Reason>) -> Outcome {
    Outcome {
        state,
        reason,
        exit_code: None,
        signal: None,
        detail: None,
        attempt: 1,
        worker: Some(incarnation()),
        started_ms: Some(1_767_225_600_000),
        ended_ms: Some(1_767_225_600_250),
        stdout: Output::default(),
        stderr: Output::default(),
        results: Vec::new(),
    }
}

fn with(outcome: Outcome) -> Vec<u8> {
    let mut task = shell("./import 42");
    task.attempt = outcome.attempt;
    task.outcome = Some(outcome);
    task.encode()
}

/// Text on both streams.
fn task_done() -> Vec<u8> {
    let mut outcome = ran(State::Done, None);
    outcome.exit_code = Some(0);
    outcome.stdout = captured("grüße\n".as_bytes(), 0, b"");
    outcome.stderr = captured(b"a warning\n", 0, b"");
    with(outcome)
}

/// Bytes that are no text, and output that was too long to be kept whole.
fn task_failed_exit() -> Vec<u8> {
    let mut outcome = ran(State::Failed, Some(Reason::Exit));
    outcome.exit_code = Some(3);
    outcome.stdout = captured(b"\xff\xfe\x00\x01", 0, b"");
    outcome.stderr = captured(b"first lines\n", 123_456, b"\xffthe end\n");
    with(outcome)
}

fn task_failed_signal() -> Vec<u8> {
    let mut outcome = ran(State::Failed, Some(Reason::Signal));
    outcome.signal = Some(11);
    with(outcome)
}

fn task_failed_timeout() -> Vec<u8> {
    let mut outcome = ran(State::Failed, Some(Reason::Timeout));
    outcome.signal = Some(15);
    with(outcome)
}

fn task_failed_poison() -> Vec<u8> {
    let why = "its worker died 3 times while it had this task";
    let mut outcome = Outcome::unrun(State::Failed, Some(Reason::Poison), why, 3);
    outcome.worker = Some(incarnation());
    let mut task = shell("./import 42");
    task.next_attempt(Some(incarnation()), "its worker died");
    task.next_attempt(Some(incarnation()), "its worker died");
    task.charged = 3;
    task.outcome = Some(outcome);
    task.encode()
}

fn task_failed_not_started() -> Vec<u8> {
    let why = "no such program: \"./import\"";
    let mut outcome = Outcome::unrun(State::Failed, Some(Reason::NotStarted), why, 1);
    outcome.worker = Some(incarnation());
    with(outcome)
}

fn task_cancelled() -> Vec<u8> {
    let mut task = shell("./import 42");
    task.cancel = true;
    task.outcome = Some(Outcome::unrun(State::Cancelled, None, "cancelled before it was started", 1));
    task.encode()
}

/// It has a key, and somebody wants it deleted.
fn task_unwanted() -> Vec<u8> {
    let mut task = shell("./import 42");
    (task.keyed, task.delete) = (true, true);
    task.outcome = Some(Outcome::unrun(State::Expired, None, "its deadline passed before it was started", 1));
    task.encode()
}

fn task_expired() -> Vec<u8> {
    let mut task = shell("./import 42");
    task.options.expire_ms = Some(60_000);
    let why = "its deadline passed before it was started";
    task.outcome = Some(Outcome::unrun(State::Expired, None, why, 1));
    task.encode()
}

/// It has a key, and all was dropped but how it ended.
fn task_chunk_dropped() -> Vec<u8> {
    let mut task = Task::decode(&task_chunk_failed()).expect("a task");
    task.keyed = true;
    assert!(task.drop_request());
    task.encode()
}

/// Lines 101 to 104 of a batch; the second is blank.
fn chunk() -> Task {
    let commands = ["./import 42", "", "./import 43", "./import 44"].map(str::to_string).to_vec();
    Task::new(Payload::Chunk { first_line: 100, commands }, Options::default())
}

/// It exited with 0 and printed this.
fn good(text: &str) -> CommandResult {
    CommandResult {
        started_ms: Some(1_767_225_600_000),
        ended_ms: Some(1_767_225_600_250),
        stdout: captured(text.as_bytes(), 0, b""),
        ..CommandResult::default()
    }
}

/// The worker died while the first command may have run there; the second one is over, and another worker has the rest.
fn task_chunk_running() -> Vec<u8> {
    let mut task = chunk();
    task.flush(1, &BTreeMap::new(), 1);
    assert!(task.cut(1, 2) && task.move_on(1, Some(&incarnation()), &Move::Death { limit: 3 }));
    task.flush(
        2,
        &BTreeMap::from([(2, CommandResult { worker: Some(successor()), ..good("43 rows\n") })]),
        8,
    );
    task.encode()
}

/// Somebody wants the last two commands cancelled.
fn task_chunk_cancelling() -> Vec<u8> {
    let mut task = chunk();
    assert!(task.cancel_line(2) && task.cancel_line(3));
    task.encode()
}

/// Two commands succeeded, in two attempts, and one failed.
fn task_chunk_failed() -> Vec<u8> {
    let mut task = chunk();
    task.next_attempt(Some(incarnation()), "its worker was stopped");
    let first = CommandResult { worker: Some(incarnation()), ..good("42 rows\n") };
    let (reason, exit_code) = (Some(Reason::Exit), Some(3));
    let last = CommandResult { reason, exit_code, stderr: captured(b"no such file\n", 0, b""), ..good("") };
    task.end(Outcome {
        exit_code: Some(1),
        detail: Some("1 of 3 commands failed".into()),
        attempt: 2,
        worker: Some(successor()),
        results: vec![Some(first), None, Some(CommandResult::default()), Some(last)],
        ..ran(State::Failed, Some(Reason::Exit))
    });
    task.encode()
}

fn successor() -> Incarnation {
    Incarnation::new("w8", 0x02d3_c0ff_ee00_beef)
}

/// The last part of a batch of 1,000,250 lines that was submitted with `--chunk 100`: all its chunks existed.
fn job_part() -> Vec<u8> {
    let mut job = Job::new(Options::default());
    (job.chunk, job.lines, job.made) = (Some(100), Some(200_250), true);
    job.encode()
}

fn registration(change: impl FnOnce(&mut Registration)) -> Registration {
    let process = ProcessIdentity {
        host: "node7".into(),
        boot_id: "3f6c9a52-7d0e-4b7e-9c61-5a2f0d1e8b44".into(),
        pid_ns: 4_026_531_836,
        pid: 4_711,
        start_time: 123_456,
    };
    let mut registration = Registration::new(&process, 8, Labels::new(), 10_000);
    change(&mut registration);
    registration
}

/// Every field is set.
fn registration_later() -> Vec<u8> {
    let registration = registration(|registration| {
        registration.labels = labels();
        registration.draining = true;
        registration.usable = Some(1);
        registration.unhealthy = Some("cannot start \"/bin/sh\" now: too many open files".into());
        registration.revoked_through = Some(17);
        registration.quarantined = vec![TaskId::new("_3f", "nightly")];
        registration.since = Some(4_294_967_338);
    });
    registration.encode()
}

fn assignment() -> Vec<u8> {
    let entry = |dir: &str, task: &str, attempt, revoked| Entry {
        task: TaskId::new(dir, task),
        attempt,
        revoked,
        recalled: false,
        recheck: None,
        seen: None,
    };
    let mut entries = vec![
        entry("_3f", "nightly", 1, false),
        entry("import~k1~0000", "0000042", 2, true),
        entry("_7a", "hello", 1, false),
    ];
    let data = r#"{"v":1,"command":"echo hello","attempt":1}"#.to_string();
    entries[2].seen = Some(Seen { data, version: 0, mzxid: 4_294_967_340 });
    Assignment::new(4_294_967_299, entries).encode()
}

fn status() -> Vec<u8> {
    let leader = LeaderStatus { id: "m1".into(), host: "node1".into(), pid: 42, epoch: 4_294_967_299 };
    let worker = WorkerRow {
        id: "w7".into(),
        host: "node7".into(),
        pid: 4_711,
        slots: 8,
        running: 1,
        assigned: 2,
        draining: false,
        usable: Some(1),
        unhealthy: Some("cannot start \"/bin/sh\" now: too many open files".into()),
        labels: labels(),
    };
    let tasks = Counts {
        pending: 10,
        running: 1,
        assigned: 2,
        done: 3,
        failed: 1,
        cancelled: 1,
        expired: 1,
        malformed: 0,
        quarantined: 0,
    };
    let mut status = Status::new(leader, vec![worker], tasks, false);
    status.admission =
        Some(Admission { bytes: 20_480, max_pending: 10_000_000, max_pending_bytes: 1_073_741_824 });
    let ended = |id: &str, drained| EndedWorker { id: id.into(), at_ms: 1_767_225_600_000, drained };
    status.ended_workers = vec![ended("w3", true), ended("w9", false)];
    status.encode()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn read(file: &str) -> Vec<u8> {
    let path = folder().join(file);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn shown(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}

#[test]
fn written_data_never_changes() {
    let bless = std::env::var_os("ZKMW_BLESS").is_some_and(|value| value == "1");
    for Golden { file, make, .. } in GOLDEN {
        let made = make();
        if bless {
            fs::write(folder().join(file), &made).expect("write");
        }
        assert_eq!(shown(&read(file)), shown(&made), "{file}: the contract has changed");
    }
}

#[test]
fn data_that_is_read_is_written_back_byte_for_byte() {
    for Golden { file, kind, .. } in GOLDEN {
        let data = read(file);
        let again = kind.again(&data).unwrap_or_else(|why| panic!("{file} is refused: {why}"));
        assert_eq!(shown(&again), shown(&data), "{file}");
    }
}

#[test]
fn hand_made_data_is_completed() {
    for (file, kind, becomes) in BY_HAND {
        let again = kind.again(&read(file)).unwrap_or_else(|why| panic!("{file} is refused: {why}"));
        assert_eq!(shown(&again), shown(&read(becomes)), "{file}");
    }
}

#[test]
fn every_file_is_tested() {
    let tested = GOLDEN.iter().map(|golden| golden.file).chain(BY_HAND.iter().map(|(file, ..)| *file));
    let tested: BTreeSet<String> = tested.map(str::to_string).collect();
    let found = fs::read_dir(folder()).expect("list").map(|entry| entry.expect("entry").file_name());
    let found: BTreeSet<String> = found.map(|name| name.to_string_lossy().into_owned()).collect();
    assert_eq!(found, tested);
}

/// A field that is not known survives in every kind of znode, with its value, and changes nothing else.
#[test]
fn foreign_fields_survive() {
    for Golden { file, kind, .. } in GOLDEN {
        let data = shown(&read(file));
        let foreign = r#","x-foreign":{"b":[1,null,{"a":"ä"}],"a":18446744073709551615}}"#;
        let with = format!("{}{foreign}", data.strip_suffix('}').expect("an object"));
        let again = kind.again(with.as_bytes()).unwrap_or_else(|why| panic!("{file} is refused: {why}"));
        assert_eq!(shown(&again), with, "{file}");
    }
}

/// Another version is refused, whatever else the data says; no version counts as the first.
#[test]
fn other_versions_are_refused() {
    for Golden { file, kind, .. } in GOLDEN {
        let data = shown(&read(file));
        let rest = data.strip_prefix(r#"{"v":1"#).expect("the version comes first");
        for version in ["2", "0", r#""1""#, "1.5", "[1]"] {
            let other = format!(r#"{{"v":{version}{rest}"#);
            let why = kind.again(other.as_bytes()).expect_err("another version");
            assert!(why.contains("version"), "{file}, version {version}: {why}");
        }
        let without = format!("{{{}", rest.trim_start_matches(','));
        let again = kind.again(without.as_bytes()).unwrap_or_else(|why| panic!("{file}: {why}"));
        assert_eq!(shown(&again), data, "{file} without a version");
    }
}

/// Each field of the golden files is one that this version knows: under another name it would be a foreign one,
/// and its meaning would be lost.
#[test]
fn every_field_is_known() {
    for Golden { file, kind, .. } in GOLDEN.iter().filter(|golden| golden.file != "task-foreign-field.json") {
        let data = read(file);
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&data).expect("object");
        for name in fields.keys() {
            let mut without = fields.clone();
            let value = without.remove(name).expect("it is there");
            without.insert(format!("{name}x"), value);
            let renamed = serde_json::to_vec(&without).expect("json");
            let again = kind.again(&renamed);
            // A known field that is renamed is either missed, or written again under its own name, or was
            // left out because it says nothing. A foreign one would keep its position.
            if let Ok(again) = again {
                assert_ne!(shown(&again), shown(&data), "{file}: {name} is not known");
                let order: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_slice(&again).expect("object");
                assert_eq!(
                    order.keys().next_back(),
                    Some(&format!("{name}x")),
                    "{file}: {name} is not known"
                );
            }
        }
    }
}

/// The output streams of the golden outcomes, byte for byte.
#[test]
fn outputs_are_read_back() {
    let outcome = |file: &str| Task::decode(&read(file)).expect("a task").outcome.expect("an outcome");
    let done = outcome("task-done.json");
    assert_eq!(done.stdout.captured().head, "grüße\n".as_bytes());
    let failed = outcome("task-failed-exit.json");
    assert_eq!(failed.stdout.captured().head, b"\xff\xfe\x00\x01");
    let cut = failed.stderr.captured();
    assert_eq!(
        (&cut.head[..], cut.omitted, &cut.tail[..]),
        (&b"first lines\n"[..], 123_456, &b"\xffthe end\n"[..])
    );
}

/// Every example in `docs/contract.md` that names a golden file shows that file, and every file is shown.
#[test]
fn the_document_shows_the_files() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/contract.md");
    let text = fs::read_to_string(&path).expect("docs/contract.md");
    let mut shown_files = BTreeSet::new();
    for part in text.split("<!-- golden: ").skip(1) {
        let (file, rest) = part.split_once(" -->").expect("a marker has an end");
        let block = rest.split_once("```json\n").and_then(|(_, block)| block.split_once("```"));
        let (block, _) = block.unwrap_or_else(|| panic!("{file}: no example follows the marker"));
        let example: serde_json::Value =
            serde_json::from_str(block).unwrap_or_else(|error| panic!("{file}: {error}"));
        // As text, so that the order of the fields counts too.
        let written: serde_json::Value = serde_json::from_slice(&read(file)).expect("json");
        assert_eq!(example.to_string(), written.to_string(), "docs/contract.md, {file}");
        shown_files.insert(file.to_string());
    }
    let all = GOLDEN.iter().map(|golden| golden.file).chain(BY_HAND.iter().map(|(file, ..)| *file));
    let missing: Vec<&str> = all.filter(|file| !shown_files.contains(*file)).collect();
    assert!(missing.is_empty(), "docs/contract.md does not show {missing:?}");
}
