//! Judges a run by its records, without the code that is judged: the reports to users, the notes of the tasks and of
//! the electors' commands, and the servers' logs. Each check describes what broke, with the id of the task if it is
//! about one. Must not read anything that still runs.

use std::collections::BTreeMap;

use serde_json::Value;
use zkmw::contract::line::LineName;
use zkmw::contract::task::{Outcome, Reason, State, Task};
use zkmw::contract::worker::{Assignment, Entry};
use zkmw::contract::{Layout, TaskId, name_of};

use crate::harness::{Op, Txn};
use crate::history::{Lead, Life, Note, Written};
use crate::load::{Asked, Deed, Kind, Record};

/// Exit codes that mean a bug: our own, a panic's, an abort's, a wild pointer's.
const BUGS: [i32; 4] = [zkmw::exit::BUG, 101, 134, 139];

/// All that is judged.
pub struct Evidence {
    pub layout: Layout,
    pub log: Vec<Txn>,
    /// Writes are missing from the log.
    pub gap: bool,
    pub lives: BTreeMap<TaskId, Life>,
    pub notes: BTreeMap<String, Vec<Note>>,
    pub leads: Vec<Lead>,
    pub records: Vec<Record>,
    /// Misbehaviour of services and users.
    pub complaints: Vec<String>,
    /// Leftovers at a time when all should have been done.
    pub leftovers: Vec<String>,
}

/// Something that broke.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    pub what: String,
    /// The task whose story explains it.
    pub task: Option<TaskId>,
}

fn about(id: &TaskId, what: impl Into<String>) -> Violation {
    Violation { what: format!("{id}: {}", what.into()), task: Some(id.clone()) }
}

fn plain(what: impl Into<String>) -> Violation {
    Violation { what: what.into(), task: None }
}

type Check = fn(&Evidence) -> Vec<Violation>;

/// All checks, each with the statement that holds when nothing broke.
pub const CHECKS: [(&str, Check); 12] = [
    ("the servers' log is complete", log_is_complete),
    ("the servers forgot nothing: every write follows on the one before", nothing_forgotten),
    ("nothing was lost: every task that existed has an outcome, and every reported id existed", nothing_lost),
    ("one outcome each; attempts never fall", one_outcome),
    ("every report to a user agrees with the log", reports_agree_with_log),
    ("every result is what the task does", right_result),
    ("no two attempts overlapped", no_overlap),
    ("every attempt ran once at most, in order, with a rising token", attempts_once),
    ("one leader at a time: no assignment's epoch went back", one_leader),
    ("every attempt was on one worker's assignment alone at a time", one_holder),
    ("one elector's command at a time, with a rising token", one_elector),
    ("all was drained after healing, and services stop when asked", drained),
];

fn log_is_complete(evidence: &Evidence) -> Vec<Violation> {
    let mut found = Vec::new();
    if evidence.gap || evidence.log.is_empty() {
        found.push(plain("the servers' logs have a gap"));
    }
    for (id, life) in evidence.lives.iter().filter(|(_, life)| life.unreadable > 0) {
        found.push(about(id, format!("{} times it was no task", life.unreadable)));
    }
    found
}

/// A server that became the leader without every committed write went on from older data: a version is written twice,
/// or a deleted znode is written again. Other violations may follow from this, and no client can repair it.
fn nothing_forgotten(evidence: &Evidence) -> Vec<Violation> {
    // With the version, unless it was deleted.
    let mut last: BTreeMap<&str, (i64, Option<i32>)> = BTreeMap::new();
    let mut found = Vec::new();
    for txn in &evidence.log {
        let (path, version) = match &txn.op {
            Op::Create { path, .. } => (path, Some(0)),
            Op::Set { path, version, .. } => (path, Some(*version)),
            Op::Delete { path } => (path, None),
            Op::SessionBegins | Op::SessionEnds | Op::Refused { .. } | Op::Other { .. } => continue,
        };
        let before = last.insert(path, (txn.zxid, version));
        if let (Op::Set { version, .. }, Some((earlier, before))) = (&txn.op, before)
            && before.is_none_or(|before| before + 1 != *version)
        {
            let was = before.map_or("deleted it".into(), |before| format!("wrote version {before}"));
            let zxid = txn.zxid;
            let what = format!("{path}: {zxid:#x} wrote version {version} after {earlier:#x} {was}");
            found.push(Violation { what, task: evidence.layout.task_at(path) });
        }
    }
    found
}

/// The ids that were reported to users, with the record.
fn reported_ids(evidence: &Evidence) -> Vec<(TaskId, &Record)> {
    let submits = |record: &&Record| !matches!(record.deed, Deed::Wait | Deed::Cancel | Deed::Retry);
    let ids = |record| {
        let printed: Vec<Value> = Record::printed(record);
        printed.into_iter().filter_map(move |line| Some((task_at(line["id"].as_str()?)?, record)))
    };
    evidence.records.iter().filter(submits).flat_map(ids).collect()
}

fn nothing_lost(evidence: &Evidence) -> Vec<Violation> {
    let mut found = Vec::new();
    for (id, record) in reported_ids(evidence) {
        if !evidence.lives.contains_key(&id) {
            found.push(about(&id, format!("{} reported it, and it never existed", record.label)));
        }
    }
    for (id, life) in &evidence.lives {
        match life.written.last() {
            None => found.push(about(id, "it was never a task")),
            Some(last) if last.task.outcome.is_none() && life.deleted.is_some() => {
                found.push(about(id, "it was deleted without an outcome"));
            }
            Some(last) if last.task.outcome.is_none() => found.push(about(id, "it has no outcome")),
            Some(_) => {}
        }
    }
    found
}

fn one_outcome(evidence: &Evidence) -> Vec<Violation> {
    let mut found = Vec::new();
    for (id, life) in &evidence.lives {
        if life.created > 1 {
            found.push(about(id, format!("it was created {} times", life.created)));
        }
        for pair in life.written.windows(2) {
            let (before, after) = (&pair[0].task, &pair[1].task);
            let step = after.attempt.wrapping_sub(before.attempt);
            if step > 1 {
                let (from, to) = (before.attempt, after.attempt);
                found.push(about(id, format!("its attempt went from {from} to {to}")));
            }
            match (&before.outcome, &after.outcome) {
                (Some(old), Some(new)) if old != new => found.push(about(id, "its outcome was changed")),
                (Some(old), None) if old.state == State::Done || step != 1 => {
                    found.push(about(id, "its outcome was taken away, and not by a retry"));
                }
                (None, Some(new)) if step != 0 || new.attempt != after.attempt => {
                    found.push(about(id, format!("an outcome of attempt {} at another one", new.attempt)));
                }
                _ => {}
            }
        }
    }
    found
}

/// The exit code of a submitter that waited for this alone.
fn code_of(outcome: &Outcome) -> Option<i32> {
    match (outcome.state, outcome.reason) {
        (State::Done, _) => Some(0),
        (State::Failed, Some(Reason::Exit)) => outcome.exit_code,
        (State::Failed, Some(Reason::Signal)) => outcome.signal.map(|signal| 128 + signal),
        (State::Failed, Some(Reason::Timeout)) => Some(zkmw::exit::TIMEOUT),
        _ => Some(zkmw::exit::FAILED),
    }
}

fn reports_agree_with_log(evidence: &Evidence) -> Vec<Violation> {
    let mut found = Vec::new();
    for record in evidence.records.iter().filter(|record| !record.hurt) {
        let label = format!("{} ({:?})", record.label, record.deed);
        let Some(exit) = &record.exit else {
            found.push(plain(format!("{label} did not end")));
            continue;
        };
        let (code, printed) = (exit.code, record.printed());
        if BUGS.contains(&code) {
            found.push(plain(format!("{label} exited with {code}: {}", tail(&exit.stderr))));
            continue;
        }
        match record.deed {
            Deed::Cancel | Deed::Retry => {}
            Deed::Detached | Deed::DetachedBatch => {
                if code != 0 || printed.len() != record.asked.len() {
                    let ids = printed.len();
                    let end = tail(&exit.stderr);
                    found.push(plain(format!("{label} exited with {code} and reported {ids} ids: {end}")));
                }
            }
            Deed::Batch => {
                let all_done = printed.iter().all(|line| line["state"] == "done");
                if printed.len() != record.asked.len() || (code == 0) != all_done || code > 1 {
                    found.push(plain(format!(
                        "{label} exited with {code}, reported {} outcomes of {}: {}",
                        printed.len(),
                        record.asked.len(),
                        tail(&exit.stderr)
                    )));
                }
                found.extend(
                    printed.iter().filter_map(|line| check_reported_outcome(evidence, &label, line, None)),
                );
            }
            Deed::Single | Deed::Keyed | Deed::Wait => {
                let gone = |id: &String| {
                    task_at(id).and_then(|id| evidence.lives.get(&id)).is_some_and(|l| l.deleted.is_some())
                };
                if let [line] = &printed[..] {
                    found.extend(check_reported_outcome(evidence, &label, line, Some(code)));
                } else if !(record.deed == Deed::Wait && record.about.as_ref().is_some_and(gone)) {
                    let (outs, end) = (printed.len(), tail(&exit.stderr));
                    found.push(plain(format!("{label} exited with {code}, reported {outs} outcomes: {end}")));
                }
            }
        }
    }
    found
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}

/// The task of this id, or that of the line: each chunk has one here, its batches being small.
fn task_at(text: &str) -> Option<TaskId> {
    let id = TaskId::parse(text)?;
    Some(LineName::of(&id).map_or(id, |line| line.task(1).0))
}

/// The outcome of the task's command. A chunk has only one line here, since the batches are small.
fn outcome_of(task: &Task) -> Option<Outcome> {
    if task.commands.is_some() { task.command_outcome(0) } else { task.outcome.clone() }
}

/// A reported outcome must be one that the task had. The exit code for a single task must agree with it.
fn check_reported_outcome(
    evidence: &Evidence,
    label: &str,
    line: &Value,
    code: Option<i32>,
) -> Option<Violation> {
    let Some(id) = line["id"].as_str().and_then(task_at) else {
        return Some(plain(format!("{label} reported no task: {line}")));
    };
    let Some(life) = evidence.lives.get(&id) else { return Some(about(&id, format!("{label} reported it"))) };
    let as_reported = |outcome: &Outcome| {
        line["state"] == outcome.state.as_str()
            && line["attempt"] == outcome.attempt
            && line["exit_code"].as_i64() == outcome.exit_code.map(i64::from)
            && serde_json::to_value(&outcome.stdout).is_ok_and(|text| text == line["stdout"])
            // The worker must agree as well: a task runs again if the servers lose a write that they had shown.
            && serde_json::to_value(&outcome.worker).is_ok_and(|worker| worker == line["worker"])
            && line["started_ms"].as_i64() == outcome.started_ms
    };
    let is_line = life.written.first().is_some_and(|written| written.task.commands.is_some());
    let had = life.written.iter().filter_map(|written| outcome_of(&written.task)).find(as_reported);
    match had {
        None => {
            Some(about(&id, format!("{label} reported an outcome that is not in the servers' logs: {line}")))
        }
        // A client that waits for lines exits with 0 only if all of them succeeded.
        Some(outcome)
            if is_line && code.is_some_and(|code| (code == 0) != (outcome.state == State::Done)) =>
        {
            Some(about(&id, format!("{label} exited with {code:?} for {outcome:?}")))
        }
        Some(outcome) if !is_line && code.is_some() && code != code_of(&outcome) => {
            Some(about(&id, format!("{label} exited with {code:?} for {outcome:?}")))
        }
        Some(_) => None,
    }
}

/// The name that the task's command carries.
pub fn name_in(life: &Life) -> Option<&str> {
    let task = &life.written.first()?.task;
    task.command.as_ref().or_else(|| task.commands.as_ref()?.first())?.split(' ').nth(4)
}

fn right_result(evidence: &Evidence) -> Vec<Violation> {
    let asked: BTreeMap<&str, &Asked> = evidence
        .records
        .iter()
        .flat_map(|record| &record.asked)
        .map(|asked| (asked.name.as_str(), asked))
        .collect();
    let mut found = Vec::new();
    for (id, life) in &evidence.lives {
        let (Some(name), Some(last)) = (name_in(life), life.written.last()) else { continue };
        let (Some(asked), Some(outcome)) = (asked.get(name), outcome_of(&last.task)) else { continue };
        // Each attempt of a line but the last failed, or lost its worker.
        let charged = match last.task.commands {
            Some(_) => outcome.attempt,
            None => last.task.charged + last.task.deaths,
        };
        // A line that has a result can no longer be cancelled.
        let wished = |written: &Written| written.task.cancel || !written.task.cancel_lines.is_empty();
        let cancel = life.written.iter().any(wished);
        if let Some(why) = wrong(asked, &outcome, cancel, charged) {
            found.push(about(id, format!("{why}: {outcome:?}")));
        }
        let ran_out = matches!(outcome.reason, None | Some(Reason::Exit)) && outcome.exit_code.is_some();
        let noted = evidence.notes.get(name).map_or(&[][..], Vec::as_slice);
        let ended = |note: &Note| {
            note.what == "end" && note.attempt == outcome.attempt && note.code == outcome.exit_code
        };
        if ran_out && outcome.state != State::Cancelled && !noted.iter().any(ended) {
            found.push(about(id, format!("attempt {} has an outcome and did not end so", outcome.attempt)));
        }
    }
    found
}

/// Why a task of this kind can't have ended so, if it can't.
fn wrong(asked: &Asked, outcome: &Outcome, cancel: bool, charged: u32) -> Option<&'static str> {
    let limit = if asked.kind == Kind::Flaky { 9 } else { 3 };
    if outcome.state == State::Cancelled {
        return (!cancel).then_some("nobody cancelled it");
    }
    if outcome.reason == Some(Reason::Poison) {
        return (charged < limit).then_some("too few of its workers died");
    }
    let output = format!("out {} {}\n", asked.name, outcome.attempt);
    let printed = outcome.stdout.captured().head == output.as_bytes();
    match asked.kind {
        Kind::Slow => (outcome.reason != Some(Reason::Timeout)).then_some("it runs past its timeout"),
        Kind::Suicide => (outcome.signal != Some(9)).then_some("it kills itself"),
        Kind::Flaky if outcome.state == State::Failed => (charged < limit).then_some("it had attempts left"),
        Kind::Plain | Kind::Trap | Kind::Polite | Kind::Fork | Kind::Flaky => {
            let right = outcome.exit_code == Some(asked.code)
                && (outcome.state == State::Done) == (asked.code == 0)
                && printed;
            (!right).then_some("not its code, or not its output")
        }
    }
}

fn no_overlap(evidence: &Evidence) -> Vec<Violation> {
    let mut found = Vec::new();
    for (name, notes) in &evidence.notes {
        for note in notes.iter().filter(|note| note.what == "overlap") {
            let (attempt, worker, at) = (note.attempt, &note.worker, note.at);
            let what = format!("attempt {attempt} on {worker} found another one alive at {at:.2} s");
            found.push(of_name(evidence, name, &what));
        }
        // Only the holder of the lock writes notes, so a note of a former attempt is an overlap too.
        let mut latest = 0;
        for note in notes.iter().filter(|note| note.what != "overlap") {
            if note.attempt < latest {
                let what = format!("attempt {} wrote {} after {latest} had begun", note.attempt, note.what);
                found.push(of_name(evidence, name, &what));
            }
            latest = latest.max(note.attempt);
        }
    }
    found
}

fn of_name(evidence: &Evidence, name: &str, what: &str) -> Violation {
    match evidence.lives.iter().find(|(_, life)| name_in(life) == Some(name)) {
        Some((id, _)) => about(id, format!("({name}) {what}")),
        None => plain(format!("{name}: {what}")),
    }
}

fn attempts_once(evidence: &Evidence) -> Vec<Violation> {
    let lives: BTreeMap<&str, &Life> =
        evidence.lives.values().filter_map(|life| Some((name_in(life)?, life))).collect();
    let mut found = Vec::new();
    for (name, notes) in &evidence.notes {
        let most =
            lives.get(name.as_str()).and_then(|life| life.written.last()).map_or(0, |w| w.task.attempt);
        let starts: Vec<&Note> = notes.iter().filter(|note| note.what != "end").collect();
        if let Some(note) = starts.iter().find(|note| note.attempt > most) {
            found.push(of_name(evidence, name, &format!("attempt {} ran: it had {most}", note.attempt)));
        }
        for pair in starts.windows(2) {
            if pair[1].attempt <= pair[0].attempt || pair[1].token <= pair[0].token {
                let what = format!("it was started as {:?} after {:?}", pair[1], pair[0]);
                found.push(of_name(evidence, name, &what));
            }
        }
    }
    found
}

/// The writes of assignments, each with its incarnation and its data.
fn assignments(evidence: &Evidence) -> Vec<(&Txn, &str, Assignment)> {
    let prefix = format!("{}/", evidence.layout.assign());
    let assignment = |txn| match &Txn::path(txn).filter(|path| path.starts_with(&prefix)).map(name_of) {
        Some(name) => match &txn.op {
            Op::Create { data, .. } | Op::Set { data, .. } => {
                Some((txn, *name, Assignment::decode(data).ok()?))
            }
            _ => None,
        },
        None => None,
    };
    evidence.log.iter().filter_map(assignment).collect()
}

/// The terms of leaders by the summaries: epoch, name, and begin in ms.
pub fn terms(log: &[Txn], layout: &Layout) -> Vec<(i64, String, i64)> {
    let mut terms: Vec<(i64, String, i64)> = Vec::new();
    for txn in log.iter().filter(|txn| txn.path() == Some(&layout.status())) {
        if let Op::Create { data, .. } | Op::Set { data, .. } = &txn.op
            && let Ok(status) = serde_json::from_slice::<Value>(data)
            && let Some(epoch) = status["leader"]["epoch"].as_i64()
            && terms.last().is_none_or(|(last, ..)| *last != epoch)
        {
            terms.push((epoch, status["leader"]["id"].as_str().unwrap_or("?").to_string(), txn.time_ms));
        }
    }
    terms
}

fn one_leader(evidence: &Evidence) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut latest: BTreeMap<&str, i64> = BTreeMap::new();
    for (txn, name, assignment) in assignments(evidence) {
        let before = latest.insert(name, assignment.epoch).unwrap_or(0);
        if assignment.epoch < before {
            let (zxid, epoch) = (txn.zxid, assignment.epoch);
            found.push(plain(format!("assignment {name}: epoch {epoch} after {before}, at zxid {zxid:#x}")));
        }
    }
    for pair in terms(&evidence.log, &evidence.layout).windows(2) {
        if pair[1].0 < pair[0].0 {
            found.push(plain(format!("{} wrote the summary after {}: {pair:?}", pair[1].1, pair[0].1)));
        }
    }
    found
}

/// An entry that was never started may go to another worker when the assignment that named it is gone.
fn one_holder(evidence: &Evidence) -> Vec<Violation> {
    let prefix = format!("{}/", evidence.layout.assign());
    let mut found = Vec::new();
    let mut current: BTreeMap<&str, Vec<Entry>> = BTreeMap::new();
    for txn in &evidence.log {
        let Some(name) = txn.path().filter(|path| path.starts_with(&prefix)).map(name_of) else { continue };
        let (Op::Create { data, .. } | Op::Set { data, .. }) = &txn.op else {
            current.remove(name);
            continue;
        };
        let Ok(assignment) = Assignment::decode(data) else { continue };
        for entry in assignment.entries.iter().filter(|entry| !entry.revoked) {
            let same = |other: &Entry| other.task == entry.task && other.attempt == entry.attempt;
            let mut others = current.iter().filter(|(other, _)| **other != name);
            if let Some((holder, _)) = others.find(|(_, entries)| entries.iter().any(same)) {
                let (attempt, zxid) = (entry.attempt, txn.zxid);
                let what = format!("attempt {attempt} given to {name} while {holder} had it, zxid {zxid:#x}");
                found.push(about(&entry.task, what));
            }
        }
        current.insert(name, assignment.entries);
    }
    found
}

fn one_elector(evidence: &Evidence) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut latest = 0;
    for lead in &evidence.leads {
        match lead.what.as_str() {
            "overlap" => found.push(plain(format!("an elector's command found another alive: {lead:?}"))),
            "start" if lead.token <= latest => {
                found.push(plain(format!("an elector's token did not rise from {latest}: {lead:?}")));
            }
            _ if lead.token < latest => {
                found.push(plain(format!("an elector's command wrote after {latest} had begun: {lead:?}")));
            }
            _ => {}
        }
        latest = latest.max(lead.token);
    }
    if evidence.leads.is_empty() {
        found.push(plain("no elector's command ever ran"));
    }
    found
}

fn drained(evidence: &Evidence) -> Vec<Violation> {
    evidence.leftovers.iter().chain(&evidence.complaints).map(plain).collect()
}

/// All records of a task, for a person who searches for the cause of a violation.
pub fn story(evidence: &Evidence, id: &TaskId, clock: crate::history::Clock) -> Vec<String> {
    let Some(life) = evidence.lives.get(id) else { return vec![format!("{id}: it never existed")] };
    let mut lines: Vec<(f64, String)> = Vec::new();
    for written in &life.written {
        let task = &written.task;
        let outcome = task.outcome.as_ref().map_or_else(String::new, |outcome| {
            let worker = outcome.worker.as_ref().map_or("nobody", |worker| worker.as_str());
            format!(", {} by {worker} (code {:?})", outcome.state.as_str(), outcome.exit_code)
        });
        let why = task.history.last().map_or_else(String::new, |remark| format!(", before: {}", remark.why));
        let (attempt, charged, zxid) = (task.attempt, task.charged + task.deaths, written.zxid);
        lines
            .push((written.at, format!("log {zxid:#x}: attempt {attempt}, charged {charged}{why}{outcome}")));
    }
    lines.extend(life.deleted.map(|at| (at, "log: deleted".to_string())));
    for (txn, name, assignment) in assignments(evidence) {
        for entry in assignment.entries.iter().filter(|entry| entry.task == *id) {
            let revoked = if entry.revoked { " (revoked)" } else { "" };
            let text =
                format!("assignment {name}, epoch {}: attempt {}{revoked}", assignment.epoch, entry.attempt);
            lines.push((clock.of_wall(txn.time_ms), text));
        }
    }
    for note in name_in(life).and_then(|name| evidence.notes.get(name)).into_iter().flatten() {
        let text =
            format!("{} of attempt {} on {}, token {}", note.what, note.attempt, note.worker, note.token);
        lines.push((note.at, text));
    }
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    lines.dedup_by(|a, b| a.1 == b.1);
    lines.into_iter().map(|(at, text)| format!("{at:9.2} s  {text}")).collect()
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
