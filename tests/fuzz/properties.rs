//! Properties of the data that this code writes: it is read back as it was, under names that lead to it alone. Also the
//! order of contenders, compared with Curator's.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;
use zkmw::contract::chunk::{CommandResult, MAX_CHUNK_COMMANDS, Results};
use zkmw::contract::status::{Admission, Counts, EndedWorker, LeaderStatus, Status, WorkerRow};
use zkmw::contract::task::{Job, Options, Outcome, Output, Payload, Reason, State, Task};
use zkmw::contract::worker::{Assignment, Entry, ProcessIdentity, Registration, Seen};
use zkmw::contract::{
    Incarnation, LATCH, Layout, MAX_BATCH_LINES, MAX_DATA_BYTES, MAX_TASK_BYTES, MAX_TASK_ID_BYTES, TaskId,
    batch_unit, contender, contender_rank, is_user_id, name_of, parse_registration, uuid,
};
use zkmw::machine::Captured;

use crate::targets::is_path;

/// Cases of each property.
const CASES: u32 = 96;

/// The same cases each time: a run of the tests is no lottery. Others come with `PROPTEST_RNG_SEED`.
const SEED: u64 = 1;

fn config() -> ProptestConfig {
    let given = ProptestConfig::default();
    let rng_seed = match given.rng_seed {
        RngSeed::Random => RngSeed::Fixed(SEED),
        fixed @ RngSeed::Fixed(_) => fixed,
    };
    ProptestConfig { cases: CASES, failure_persistence: None, rng_seed, ..given }
}

/// Names that users may give, the longest among them.
fn user_id() -> impl Strategy<Value = String> {
    let good =
        vec(any::<char>(), 1..130).prop_map(|chars| chars.into_iter().filter(|c| is_user_id(&c.to_string())));
    prop_oneof![
        good.prop_map(|chars| {
            let mut id = "w".to_string();
            for char in chars {
                if id.len() + char.len_utf8() <= 128 {
                    id.push(char);
                }
            }
            id
        }),
        Just("i".repeat(128)),
        Just("_00".to_string()),
    ]
}

fn incarnation() -> impl Strategy<Value = Incarnation> {
    (user_id(), any::<u64>()).prop_map(|(worker, number)| Incarnation::new(&worker, number))
}

fn task_id() -> impl Strategy<Value = TaskId> {
    prop_oneof![
        (user_id(), user_id()).prop_map(|(job, name)| TaskId::new(&job, &name)),
        (proptest::option::of(user_id()), user_id(), 0..MAX_BATCH_LINES)
            .prop_map(|(job, batch, line)| batch_unit(job.as_deref(), &batch, line, 1)),
    ]
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(any::<String>(), any::<String>(), 0..4)
}

fn options() -> impl Strategy<Value = Options> {
    let numbers = (any::<Option<i32>>(), any::<[Option<u64>; 3]>(), any::<Option<u32>>());
    let texts = (
        proptest::option::of(labels()),
        proptest::option::of(labels()),
        proptest::option::of(any::<String>()),
    );
    (numbers, texts).prop_map(|((priority, ms, max_attempts), (require, env, orphan_of))| Options {
        priority,
        timeout_ms: ms[0],
        expire_ms: ms[1],
        max_attempts,
        retry_backoff_ms: ms[2],
        require,
        env,
        orphan_of,
    })
}

/// Text, bytes, and text that is cut anywhere.
fn captured() -> impl Strategy<Value = Captured> {
    let bytes = || prop_oneof![vec(any::<u8>(), 0..64), any::<String>().prop_map(String::into_bytes)];
    prop_oneof![
        bytes().prop_map(|head| Captured { head, omitted: 0, tail: Vec::new() }),
        (bytes(), 0..u64::MAX / 2, bytes()).prop_map(|(head, omitted, tail)| Captured {
            head,
            omitted,
            tail
        }),
        (vec(select(&['ä', 'x', '🦓', '\0'][..]), 1..40), 0..40_usize, 0..40_usize).prop_map(
            |(text, a, b)| {
                let bytes = text.into_iter().collect::<String>().into_bytes();
                let (a, b) = (a.min(bytes.len()), b.min(bytes.len()));
                Captured { head: bytes[..a].to_vec(), omitted: 7, tail: bytes[b..].to_vec() }
            }
        ),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let states = select(&[State::Done, State::Failed, State::Cancelled, State::Expired][..]);
    let reasons = select(
        &[Reason::Exit, Reason::Signal, Reason::Timeout, Reason::Poison, Reason::NotStarted, Reason::Handler]
            [..],
    );
    let ends = (states, proptest::option::of(reasons), any::<[Option<i32>; 2]>(), any::<Option<String>>());
    let runs = (any::<u32>(), proptest::option::of(incarnation()), any::<[Option<i64>; 2]>());
    (ends, runs, captured(), captured()).prop_map(
        |(
            (state, reason, [exit_code, signal], detail),
            (attempt, worker, [started_ms, ended_ms]),
            out,
            err,
        )| Outcome {
            state,
            reason,
            exit_code,
            signal,
            detail,
            attempt,
            worker,
            started_ms,
            ended_ms,
            stdout: Output::new(&out),
            stderr: Output::new(&err),
            results: Vec::new(),
        },
    )
}

fn result() -> impl Strategy<Value = CommandResult> {
    (outcome().boxed(), any::<[bool; 3]>()).prop_map(|(outcome, [fails, moved, elsewhere])| {
        let mut result = CommandResult::of(outcome);
        if !fails {
            (result.reason, result.exit_code) = (None, None);
        }
        result.attempt = result.attempt.filter(|_| moved);
        result.worker = result.worker.filter(|_| elsewhere);
        result
    })
}

/// Results of some of so many commands.
fn results(commands: usize) -> impl Strategy<Value = Results> {
    vec(proptest::option::of(result().boxed()), 0..=commands.min(4)).boxed()
}

/// A chunk, ended or not, with the results that it has.
fn chunk() -> impl Strategy<Value = Task> {
    let commands = vec(prop_oneof![any::<String>(), Just(String::new())], 1..6);
    let whole = commands.prop_flat_map(|commands| {
        let all = commands.len();
        (
            Just(commands),
            any::<u64>(),
            options(),
            results(all),
            proptest::option::of((outcome().boxed(), results(all))).boxed(),
            vec(0..all, 0..3).boxed(),
        )
    });
    whole.prop_map(|(commands, first_line, options, results, ended, cancelled)| {
        let mut task = Task::new(Payload::Chunk { first_line, commands }, options);
        task.results = results;
        for position in cancelled {
            task.cancel_line(position);
        }
        if let Some((outcome, results)) = ended {
            task.end(Outcome { results, ..outcome });
        }
        task
    })
}

/// In boxes: as they are, strategies that are made of others take more of the stack than a test thread has.
fn task() -> impl Strategy<Value = Task> {
    prop_oneof![3 => single().boxed(), 1 => chunk().boxed()]
}

fn single() -> impl Strategy<Value = Task> {
    let payload = prop_oneof![
        any::<String>().prop_map(Payload::Shell),
        vec(any::<String>(), 1..4).prop_map(Payload::Program)
    ];
    let moves = vec((proptest::option::of(incarnation()), any::<String>()), 0..12);
    let flags = (any::<bool>(), any::<bool>(), any::<u32>(), any::<Option<u64>>());
    let ends = (proptest::option::of(incarnation()), proptest::option::of(outcome()));
    (payload, options(), moves, flags, ends).prop_map(
        |(payload, options, moves, (keyed, cancel, charged, delay_ms), (released_by, outcome))| {
            let mut task = Task::new(payload, options);
            for (worker, why) in moves {
                task.next_attempt(worker, &why);
            }
            (task.keyed, task.cancel, task.charged, task.delay_ms) = (keyed, cancel, charged, delay_ms);
            (task.released_by, task.outcome) = (released_by, outcome);
            task
        },
    )
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_task_is_read_back(task in task()) {
        let data = task.encode();
        prop_assert_eq!(Task::decode(&data), Ok(task));
    }

    #[test]
    fn each_command_of_a_chunk_has_at_most_one_outcome(task in chunk()) {
        let commands = task.commands.clone().expect("a chunk");
        let outcomes: Vec<_> = (0..commands.len() + 2).map(|at| task.command_outcome(at)).collect();
        let blank = |at: usize| commands.get(at).is_none_or(|command| command.trim().is_empty());
        for (at, outcome) in outcomes.iter().enumerate() {
            prop_assert!(!blank(at) || outcome.is_none());
            prop_assert!(outcome.as_ref().is_none_or(|outcome| outcome.results.is_empty()));
        }
        let positions: Vec<usize> = task.positions().map(|(at, _)| at).collect();
        prop_assert!(positions.iter().all(|at| !blank(*at)));
        // Every command of a chunk that has ended has an outcome.
        let over = positions.iter().filter(|at| outcomes[**at].is_some()).count();
        prop_assert!(task.outcome.is_none() || over == positions.len());
    }

    #[test]
    fn every_job_is_read_back(
        options in options(), chunk in any::<Option<u32>>(), lines in any::<Option<u64>>(), made in any::<bool>(),
    ) {
        let mut job = Job::new(options);
        (job.chunk, job.lines, job.made) = (chunk, lines, made);
        prop_assert_eq!(Job::decode(&job.encode()), Ok(job));
    }

    #[test]
    fn every_registration_is_read_back(
        host in any::<String>(), boot in any::<String>(), numbers in any::<[u64; 4]>(), pid in any::<u32>(),
        slots in 1..=1_000_u32, labels in labels(), draining in any::<bool>(), through in any::<Option<i32>>(),
        quarantined in vec(task_id(), 0..4), since in any::<Option<i64>>(),
    ) {
        let [pid_ns, start_time, timeout, _] = numbers;
        let process = ProcessIdentity { host, boot_id: boot, pid_ns, pid, start_time };
        let mut registration = Registration::new(&process, slots, labels, timeout);
        (registration.draining, registration.revoked_through) = (draining, through);
        registration.usable = draining.then_some(slots / 2);
        registration.unhealthy = draining.then(|| "\u{1}".repeat(40));
        (registration.quarantined, registration.since) = (quarantined, since);
        prop_assert_eq!(Registration::decode(&registration.encode()), Ok(registration));
    }

    #[test]
    fn every_assignment_is_read_back(
        epoch in any::<i64>(),
        entries in vec((task_id(), any::<u32>(), any::<bool>(), any::<Option<(String, i32, i64)>>()), 0..20),
    ) {
        let seen = |(data, version, mzxid)| Seen { data, version, mzxid };
        let entry = |(task, attempt, revoked, read): (_, _, _, Option<_>)| Entry {
            task,
            attempt,
            revoked,
            recalled: revoked,
            recheck: None,
            seen: read.map(seen),
        };
        let assignment = Assignment::new(epoch, entries.into_iter().map(entry).collect());
        prop_assert_eq!(Assignment::decode(&assignment.encode()), Ok(assignment));
    }

    #[test]
    fn every_summary_is_read_back(
        id in any::<String>(), host in any::<String>(), pid in any::<u32>(), epoch in any::<i64>(),
        rows in vec((user_id(), labels(), any::<u16>(), any::<bool>()), 0..4), counts in any::<[u64; 9]>(),
        loading in any::<bool>(), admission in any::<Option<[u64; 3]>>(),
        ended in vec((user_id(), any::<i64>(), any::<bool>()), 0..4),
    ) {
        let row = |(id, labels, n, draining): (String, _, u16, bool)| {
            let n = u32::from(n);
            let (usable, unhealthy) = (draining.then_some(n), draining.then(|| id.clone()));
            WorkerRow {
                host: id.clone(), id, pid: n, slots: n, running: n, assigned: n, draining, usable, unhealthy, labels,
            }
        };
        let [pending, running, assigned, done, failed, cancelled, expired, malformed, quarantined] = counts;
        let counts = Counts { pending, running, assigned, done, failed, cancelled, expired, malformed, quarantined };
        let leader = LeaderStatus { id, host, pid, epoch };
        let mut status = Status::new(leader, rows.into_iter().map(row).collect(), counts, loading);
        status.admission = admission.map(|[bytes, max_pending, max_pending_bytes]| {
            Admission { bytes, max_pending, max_pending_bytes }
        });
        let worker = |(id, at_ms, drained)| EndedWorker { id, at_ms, drained };
        status.ended_workers = ended.into_iter().map(worker).collect();
        prop_assert_eq!(Status::decode(&status.encode()), Ok(status));
    }

    /// No byte is invented, and none is missing without being counted.
    #[test]
    fn every_output_is_read_back(captured in captured()) {
        let json = serde_json::to_vec(&Output::new(&captured)).expect("JSON");
        let back = serde_json::from_slice::<Output>(&json).expect("it is read").captured();
        prop_assert!(captured.head.starts_with(&back.head) && captured.tail.ends_with(&back.tail));
        let bytes = |c: &Captured| c.head.len() as u64 + c.omitted + c.tail.len() as u64;
        prop_assert_eq!(bytes(&captured), bytes(&back));
        prop_assert!(captured.head.len() - back.head.len() <= 3 && captured.tail.len() - back.tail.len() <= 3);
    }

    #[test]
    fn an_outcome_always_fits(line in 0..250_000_usize, sizes in any::<[u16; 4]>(), byte in any::<u8>()) {
        let mut task = Task::new(Payload::Shell("x".repeat(line)), Options::default());
        let output = |a: u16, b: u16| {
            let (head, tail) = (vec![byte; usize::from(a) * 2], vec![byte; usize::from(b) * 2]);
            Output::new(&Captured { head, omitted: 1, tail })
        };
        let mut outcome = Outcome::unrun(State::Done, None, "", 1);
        (outcome.stdout, outcome.stderr) = (output(sizes[0], sizes[1]), output(sizes[2], sizes[3]));
        task.outcome = Some(outcome);
        let data = task.encode_to_fit();
        prop_assert!(data.len() <= MAX_DATA_BYTES);
        prop_assert_eq!(Task::decode(&data), Ok(task));
    }

    /// A task of the largest size can be read after each of its writes, whatever happens to it.
    #[test]
    fn a_task_can_be_read_after_every_write(
        fill in 0..=100_usize, what in select(&["x", "\"", "\\", "\u{1}", "ä", "🦓"][..]), is_chunk in any::<bool>(),
        moves in vec((select(NASTY), 0..200_000_usize, 1..=128_usize), 0..12), end in any::<Option<[u16; 2]>>(),
        limit in proptest::option::of(0..MAX_DATA_BYTES),
    ) {
        let mut task = largest(what, fill, is_chunk);
        for (at, (nasty, times, name)) in moves.iter().enumerate() {
            let by = Incarnation::new(&"\"".repeat(*name), u64::MAX);
            let mut failed = Outcome::unrun(State::Failed, Some(Reason::NotStarted), &nasty.repeat(*times), 1);
            (failed.worker, failed.started_ms, failed.ended_ms) = (Some(by.clone()), Some(i64::MAX), Some(i64::MAX));
            if is_chunk && at + 1 == moves.len() {
                task.results = vec![Some(CommandResult::of(failed)); task.commands.as_ref().map_or(0, Vec::len)];
            }
            task.next_attempt(Some(by.clone()), &nasty.repeat(*times));
            task.avoid(&by);
            (task.released_by, task.delay_ms, task.cancel) = (Some(by), Some(u64::MAX), at % 2 == 0);
            let data = task.encode_to_fit();
            prop_assert!(data.len() <= MAX_DATA_BYTES, "{} bytes", data.len());
            prop_assert_eq!(Task::decode(&data), Ok(task.clone()));
        }
        if let Some([out, err]) = end {
            let (nasty, times, _) = moves.first().copied().unwrap_or((what, 1, 1));
            let mut outcome = Outcome::unrun(State::Failed, Some(Reason::NotStarted), &nasty.repeat(times), u32::MAX);
            let output = |bytes: u16| {
                let head = vec![nasty.as_bytes()[0]; usize::from(bytes) * 2];
                Output::new(&Captured { head, omitted: u64::MAX / 2, tail: Vec::new() })
            };
            (outcome.stdout, outcome.stderr) = (output(out), output(err));
            task.end(outcome);
            let data = task.encode_to_fit();
            prop_assert!(data.len() <= MAX_DATA_BYTES, "{} bytes", data.len());
            prop_assert_eq!(Task::decode(&data), Ok(task.clone()));
        }
        // A server that takes less gets as little as is possible, and that can be read as well.
        let smaller = limit.map(|limit| task.encode_within(limit));
        prop_assert!(smaller.is_none_or(|data| Task::decode(&data).is_ok()));
    }

    #[test]
    fn names_are_parsed_back(
        incarnation in incarnation(), n in any::<u64>(), id in task_id(), bits in any::<(u64, u64)>(),
    ) {
        let layout = Layout::new("/r/o");
        let registration = layout.registration(&incarnation, n);
        prop_assert_eq!(parse_registration(name_of(&registration)), Some((incarnation.clone(), n)));
        let assignment = layout.assignment(&incarnation);
        prop_assert_eq!(Incarnation::parse(name_of(&assignment)), Some(incarnation.clone()));
        prop_assert!(incarnation.as_str().starts_with(incarnation.worker()));
        prop_assert!(id.as_str().len() <= MAX_TASK_ID_BYTES);
        prop_assert_eq!(TaskId::parse(id.as_str()), Some(id.clone()));
        let contender = format!("/r/o/master/{}0000000000", contender::prefix(&uuid(bits.0, bits.1)));
        let lease = layout.lease(incarnation.as_str(), n);
        for path in [registration, assignment, layout.task(&id), contender, lease] {
            prop_assert!(is_path(&path), "{:?}", path);
        }
    }

    /// Two lines of a batch never share a name, and part and number can be read from it.
    #[test]
    fn no_two_lines_share_a_name(key in user_id(), job in proptest::option::of(user_id()), a in 0..MAX_BATCH_LINES) {
        let id = batch_unit(job.as_deref(), &key, a, 1);
        let (rest, part) = id.dir().rsplit_once('~').expect("a part");
        let (line, part): (u64, u64) =
            (id.as_str().rsplit('/').next().expect("a name").parse().expect("a line"), part.parse().expect("a number"));
        prop_assert_eq!((line, part), (a, a / 4_000));
        prop_assert_eq!(rest.to_string(), job.map_or(key.clone(), |job| format!("{job}~{key}")));
    }

    #[test]
    fn chunks_are_named_after_their_first_line(key in user_id(), line in 0..MAX_BATCH_LINES, size in 1..=1_000_u64) {
        let unit = line / size;
        let id = batch_unit(None, &key, unit, size);
        let (part, name) = (unit / 4_000, unit * size);
        prop_assert_eq!(id.as_str(), format!("{key}~{part:04}/{name:07}"));
    }

    #[test]
    fn contenders_are_sorted_as_by_curator(
        numbers in vec(select(SEQUENCES), 0..12), more in vec(any::<i32>(), 0..12), odd in vec(select(ODD), 0..4),
        bits in any::<u64>(),
    ) {
        let sequential = numbers.iter().chain(&more).enumerate();
        let mut names: Vec<String> = sequential
            // As ZooKeeper appends it: ten digits, or the sign and ten digits.
            .map(|(at, n)| format!("{}{n:010}", contender::prefix(&uuid(bits, at as u64))))
            .collect();
        names.extend(odd.iter().map(ToString::to_string));
        let mut theirs = names.clone();
        theirs.sort_by(|a, b| curator_compare(a, b));
        names.sort_by_key(|name| contender_rank(name).map(str::to_string));
        let ranks = |names: &[String]| names.iter().map(|n| curator_fix(n).to_string()).collect::<Vec<_>>();
        prop_assert_eq!(ranks(&names), ranks(&theirs));
    }
}

/// Texts that take more bytes in JSON than by themselves, and texts that do not.
const NASTY: &[&str] = &["\"", "\\", "\u{1}", "\n", "ä", "x", "🦓\u{7f}"];

/// A task that is filled with this text, up to so many percent of the size that a submitted task may have.
fn largest(what: &str, percent: usize, is_chunk: bool) -> Task {
    let bytes = |text: &str| serde_json::to_string(text).expect("JSON").len() - 2;
    let times = (MAX_TASK_BYTES - 200) * percent / 100 / bytes(what);
    let payload = if is_chunk {
        let lines = MAX_CHUNK_COMMANDS;
        let line = what.repeat((times.saturating_sub(3 * lines) / lines).max(1));
        Payload::Chunk { first_line: 0, commands: vec![line; lines] }
    } else {
        Payload::Shell(what.repeat(times))
    };
    Task::new(payload, Options::default())
}

/// Where sequence numbers begin, wrap, and come back.
const SEQUENCES: &[i32] = &[0, 1, 9, 10, i32::MAX - 1, i32::MAX, i32::MIN, i32::MIN + 1, -10, -9, -1];

/// Names of peers that were made by hand.
const ODD: &[&str] =
    &["latch-", "x-latch-latch-7", "_c_latch-1-latch-0000000003", "a-latch-x", "b-latch-0000000010"];

/// `StandardLockInternalsDriver.standardFixForSorting` of Curator, literally.
fn curator_fix(str: &str) -> &str {
    let lock_name = LATCH;
    let index = str.rfind(lock_name);
    if let Some(mut index) = index {
        index += lock_name.len();
        return if index <= str.len() { &str[index..] } else { "" };
    }
    str
}

/// The comparison in `LockInternals.getSortedChildren`: `String.compareTo`, which is by UTF-16 units.
fn curator_compare(lhs: &str, rhs: &str) -> std::cmp::Ordering {
    curator_fix(lhs).encode_utf16().cmp(curator_fix(rhs).encode_utf16())
}
