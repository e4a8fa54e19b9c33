//! Reports as programs read them: one JSON object a line on standard output. Field names are for keeps; a field
//! without a value is left out or null, as each object says.
//!
//! A task that nobody waits for: `id`, `state` (`"pending"`).
//!
//! A task's outcome: `id`, `line` (from 1; of a batch alone), `state` (`"done"`, `"failed"`, `"cancelled"`,
//! `"expired"`), `reason` (`"exit"`, `"signal"`, `"timeout"`, `"poison"`, `"not-started"`, `"handler"` or null),
//! `exit_code`, `signal`, `detail`, `attempt`, `worker`, `started_ms`, `ended_ms` (all null where there is none), and
//! `stdout` and `stderr`, each a string, or `{"base64"}`, or, where the middle was not kept,
//! `{"head","omitted","tail"}` with the former two forms for head and tail.
//!
//! The `id` of a line of a batch is `BATCH/LINE`, whatever task holds it. Of a chunk that is in no batch the `id`
//! is the same in all its lines.

use std::collections::BTreeSet;
use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::{ListForm, text};
use crate::contract::line::{id_of, line_name};
use crate::contract::status::LeaderStatus;
use crate::contract::task::{Outcome, State};
use crate::roles::client::{ClientReport, ElectionRow, Ended, Noted, Row, Shown, StatusReport, TaskStatus};

/// Writes a report.
pub fn write(report: &ClientReport, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    if let ClientReport::Ended(tasks) = report {
        return tasks.iter().try_for_each(|task| object(&ended(task), out));
    }
    if let ClientReport::SubmittedLines { id, lines } = report {
        return lines.iter().try_for_each(|line| object(&pending(&line_name(id, *line)), out));
    }
    let value = match report {
        ClientReport::Submitted { id, .. } => pending(id.as_str()),
        ClientReport::Progress(_) | ClientReport::Ended(_) | ClientReport::SubmittedLines { .. } => {
            return Ok(());
        }
        // On standard output every line is a task.
        ClientReport::Summary(_) | ClientReport::Detached { .. } => {
            return text::write(report, out, err, &mut ListForm::default());
        }
        ClientReport::Status(report) => status(report),
        ClientReport::Workers(report) => {
            return workers(report).iter().try_for_each(|worker| object(worker, out));
        }
        ClientReport::Election(row) => election(row),
        ClientReport::Row(task) => row(task),
        ClientReport::Shown(task) => shown(task),
        ClientReport::Why(task) => why(task),
        ClientReport::Noted(note) => noted(note),
    };
    object(&value, out)
}

fn pending(id: &str) -> Value {
    json!({"id": id, "state": TaskStatus::Pending.as_str()})
}

fn object(value: &Value, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

fn ended(task: &Ended) -> Value {
    let mut object = Map::new();
    object.insert("id".into(), json!(id_of(&task.id, task.line)));
    if let Some(line) = task.line {
        object.insert("line".into(), json!(line.saturating_add(1)));
    }
    outcome(&task.outcome, &mut object);
    Value::Object(object)
}

fn outcome(outcome: &Outcome, object: &mut Map<String, Value>) {
    let fields = [
        ("state", json!(outcome.state)),
        ("reason", json!(outcome.reason)),
        ("exit_code", json!(outcome.exit_code)),
        ("signal", json!(outcome.signal)),
        ("detail", json!(outcome.detail)),
        ("attempt", json!(outcome.attempt)),
        ("worker", json!(outcome.worker)),
        ("started_ms", json!(outcome.started_ms)),
        ("ended_ms", json!(outcome.ended_ms)),
        ("stdout", json!(outcome.stdout)),
        ("stderr", json!(outcome.stderr)),
    ];
    object.extend(fields.map(|(name, value)| (name.to_string(), value)));
}

fn leader(leader: &LeaderStatus) -> Value {
    json!({"id": leader.id, "host": leader.host, "pid": leader.pid, "epoch": leader.epoch})
}

/// `leader` (`id`, `host`, `pid`, `epoch`; null if nobody leads for certain), `next` (the id of who is about to
/// lead, else null), `last_leader` (as `leader`: who wrote a stale summary, else null), `stale` (whether what
/// follows `standbys` was written by a former leader, or by nobody), `standbys` (ids in the order in which they
/// will lead), `workers`, `slots` (numbers), `worker_list` (the first 500), `tasks` (numbers by state), `admission`
/// (`bytes`, `max_pending`, `max_pending_bytes`; null if the leader does not say), `loading`.
fn status(report: &StatusReport) -> Value {
    let written = report.status.as_ref().map(|status| leader(&status.leader));
    let (leader, last) = if report.current { (written, None) } else { (None, written) };
    let next = if report.current { None } else { report.contenders.first() };
    let standbys = report.contenders.get(1..).unwrap_or_default();
    let status = report.status.as_ref();
    json!({
        "leader": leader,
        "next": next,
        "last_leader": last,
        "stale": !report.current,
        "standbys": standbys,
        "workers": status.map_or(0, |status| status.workers),
        "slots": status.map_or(0, |status| status.slots),
        "worker_list": status.map(|status| &status.worker_list).into_iter().flatten().collect::<Vec<_>>(),
        "tasks": status.map(|status| status.tasks.clone()).unwrap_or_default(),
        "admission": status.and_then(|status| status.admission),
        "loading": status.is_some_and(|status| status.loading),
    })
}

/// One object for each worker of the summary: its fields as in `worker_list` of the status, `registered`, `stale` (as
/// of the status) and `last_end` (`at_ms`, `drained`; null if the leader has seen none). Workers that ended and are not
/// listed follow, with `id`, `stale`, `last_end` and `registered`: false, or null if the summary does not list all
/// workers.
fn workers(report: &StatusReport) -> Vec<Value> {
    let Some(status) = &report.status else { return Vec::new() };
    let end_of = |id: &str| {
        let ended = status.ended_workers.iter().find(|ended| ended.id == id);
        ended.map(|ended| json!({"at_ms": ended.at_ms, "drained": ended.drained}))
    };
    let with_end = |mut object: Value, id: &str, registered: bool| {
        object["registered"] = json!(registered);
        object["stale"] = json!(!report.current);
        object["last_end"] = json!(end_of(id));
        object
    };
    let listed: BTreeSet<&str> = status.worker_list.iter().map(|worker| worker.id.as_str()).collect();
    let ended: BTreeSet<&str> = status.ended_workers.iter().map(|ended| ended.id.as_str()).collect();
    let registered = status.worker_list.iter().map(|worker| with_end(json!(worker), &worker.id, true));
    let is_complete = status.worker_list.len() == status.workers as usize;
    let others = ended.difference(&listed).map(|id| {
        let mut other = with_end(json!({"id": id}), id, false);
        if !is_complete {
            other["registered"] = Value::Null;
        }
        other
    });
    registered.chain(others).collect()
}

/// `path`, `contenders` (their number), and `leader`: null, or `id`, `epoch` and `contending_since_ms` of the first
/// contender, which leads or is about to.
fn election(row: &ElectionRow) -> Value {
    let leader = row
        .first
        .as_ref()
        .map(|first| json!({"id": first.id, "epoch": first.epoch, "contending_since_ms": first.created_ms}));
    json!({"path": row.path, "contenders": row.contenders, "leader": leader})
}

/// `id`, `state` (`"pending"`, `"assigned"`, `"running"`, `"cancelling"` or that of its outcome), `attempt` (null of a
/// line that is not over), `priority`, `worker` (who has it, or had it to its end), `reason`, `exit_code`, `signal`
/// (as of an outcome), `created_ms` (the ensemble's clock), `started_ms`, `ended_ms` (as of an outcome), `command` (its
/// start); of what is no task `id`, `state` (`"malformed"`) and `detail`.
fn row(row: &Row) -> Value {
    match &row.task {
        Ok(task) => json!({
            "id": row.name,
            "state": task.status.as_str(),
            "attempt": task.attempt,
            "priority": task.priority,
            "worker": task.worker,
            "reason": task.outcome.as_ref().and_then(|outcome| outcome.reason),
            "exit_code": task.outcome.as_ref().and_then(|outcome| outcome.exit_code),
            "signal": task.outcome.as_ref().and_then(|outcome| outcome.signal),
            "created_ms": task.created_ms,
            "started_ms": task.outcome.as_ref().and_then(|outcome| outcome.started_ms),
            "ended_ms": task.outcome.as_ref().and_then(|outcome| outcome.ended_ms),
            "command": task.command,
        }),
        Err(why) => json!({"id": row.name, "state": "malformed", "detail": why.to_string()}),
    }
}

/// `id`, `state`, `command` or `argv`, `attempt`, `charged`, `max_attempts`, `keyed`, `cancel`, `options` (those
/// that hold, named as in the contract), `assigned_to`, `reasons`, `delay_ms`, `history`, `created_ms`, `changed_ms`
/// (the ensemble's clock), `version`, and `outcome`: null or an object as for an outcome, without `id`. Of a chunk
/// also `commands`, `first_line` (from 0, as in the contract) and `results`: an object as for an outcome for each
/// command that is not blank; of one that is not over `state` is `"pending"`, the outputs are empty, and all else is
/// null. Of a line of a batch `id` is `BATCH/LINE`, `line` says which, `command`, `state`, `cancel` and `outcome` are
/// its own, and `attempt`, `charged` and `history` are left out.
fn shown(shown: &Shown) -> Value {
    let task = &shown.task;
    let ended = task.outcome.as_ref().map(|ended| {
        let mut object = Map::new();
        outcome(ended, &mut object);
        object
    });
    let mut value = json!({
        "id": shown.id,
        "state": shown.status().as_str(),
        "command": task.command,
        "argv": task.argv,
        "attempt": task.attempt,
        "charged": task.charged,
        "deaths": task.deaths,
        "max_attempts": shown.options.attempts(),
        "keyed": task.keyed,
        "cancel": task.cancel,
        "options": shown.options,
        "assigned_to": shown.worker,
        "reasons": reasons(shown),
        "delay_ms": task.delay_ms,
        "history": task.history,
        "created_ms": shown.stat.ctime_ms,
        "changed_ms": shown.stat.mtime_ms,
        "version": shown.stat.version,
        "outcome": ended,
    });
    if let Some(line) = &shown.line {
        let command = task.commands.as_ref().and_then(|commands| commands.get(line.position));
        let ended = task.command_outcome(line.position).map(|ended| {
            let mut object = Map::new();
            outcome(&ended, &mut object);
            object
        });
        value["id"] = json!(line.name.to_string());
        value["line"] = json!(line.name.line.saturating_add(1));
        value["command"] = json!(command);
        value["cancel"] = json!(task.is_cancelled(line.position));
        value["outcome"] = json!(ended);
        if let Some(object) = value.as_object_mut() {
            // They are the whole's.
            object.retain(|name, _| !["attempt", "charged", "deaths", "history"].contains(&name.as_str()));
        }
    } else if task.commands.is_some() {
        value["commands"] = json!(task.commands);
        value["first_line"] = json!(task.first_line);
        value["results"] = results(shown);
    }
    value
}

/// All reasons why a task has no outcome, each with `reason` (its name, which never changes) and `text`.
fn reasons(shown: &Shown) -> Value {
    shown.reasons.iter().map(|why| json!({"reason": why.code(), "text": why.to_string()})).collect()
}

/// `id`, `state` and `reasons` (as of a task that is shown; empty if it has an outcome).
fn why(shown: &Shown) -> Value {
    let name = shown.line.as_ref().map_or_else(|| shown.id.to_string(), |line| line.name.to_string());
    json!({"id": name, "state": shown.status().as_str(), "reasons": reasons(shown)})
}

fn results(shown: &Shown) -> Value {
    let result = |(at, line)| {
        let (id, line) = (shown.id.clone(), Some(line));
        match shown.task.command_outcome(at) {
            Some(outcome) => ended(&Ended { id, line, outcome, alone: false }),
            None => {
                let outcome = Outcome { detail: None, ..Outcome::unrun(State::Done, None, "", 0) };
                let mut value = ended(&Ended { id, line, outcome, alone: false });
                (value["state"], value["attempt"]) = (json!(TaskStatus::Pending.as_str()), Value::Null);
                value
            }
        }
    };
    shown.task.positions().map(result).collect()
}

/// `id`, `verb` (`"cancel"` or `"retry"`), `ok`, `message`.
fn noted(note: &Noted) -> Value {
    json!({"id": note.id, "verb": note.verb, "ok": note.ok, "message": note.message})
}
