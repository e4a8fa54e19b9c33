//! Reports as people read them.

use std::io::{self, Write};

use super::ListForm;
use super::table::{Column, line, line_of};
use crate::contract::line::line_name;
use crate::contract::status::{Counts, Status, WorkerRow};
use crate::contract::task::{NO_DEADLINE_MS, Options, Outcome, Output, Payload, State, Task};
use crate::machine::Captured;
use crate::roles::client::{
    ClientReport, ElectionRow, Ended, ListColumn, Noted, Progress, Row, Shown, StatusReport, TaskStatus,
    clean, exit_code, is_plain, sized, start_of, verdict,
};

/// Writes a report.
pub fn write(
    report: &ClientReport,
    out: &mut dyn Write,
    err: &mut dyn Write,
    list: &mut ListForm,
) -> io::Result<()> {
    match report {
        ClientReport::Submitted { id, .. } => writeln!(out, "{id}"),
        ClientReport::SubmittedLines { id, lines } => {
            lines.iter().try_for_each(|line| writeln!(out, "{}", line_name(id, *line)))
        }
        ClientReport::Detached { name, submitted } => {
            writeln!(err, "zkmw: {submitted} tasks submitted; to wait for them: zkmw wait {name}")
        }
        ClientReport::Ended(tasks) => tasks.iter().try_for_each(|one| ended(one, out, err)),
        ClientReport::Progress(_) => Ok(()),
        ClientReport::Summary(progress) => summary(progress, err),
        ClientReport::Status(report) => status(report, out),
        ClientReport::Workers(report) => worker_table(report, out),
        ClientReport::Election(row) => election(row, &mut list.headed, out),
        ClientReport::Row(task) => row(task, list, out),
        ClientReport::Shown(task) => shown(task, out),
        ClientReport::Why(task) => why(task, out),
        ClientReport::Noted(note) => noted(note, out, err),
    }
}

fn ended(task: &Ended, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    let Captured { head, omitted, tail } = task.outcome.stdout.captured();
    out.write_all(&head)?;
    omission(task, omitted, "output", err)?;
    out.write_all(&tail)?;
    let is_plain = if task.alone { is_plain(&task.outcome) } else { task.outcome.state == State::Done };
    let needs_words = !is_plain || task.outcome.is_dropped();
    if omitted == 0 && !needs_words && task.outcome.stderr.is_empty() {
        return Ok(());
    }
    // Both may be one terminal, so the order has to be kept. Else it is flushed with what follows.
    out.flush()?;
    let Captured { head, omitted, tail } = task.outcome.stderr.captured();
    err.write_all(&head)?;
    omission(task, omitted, "error output", err)?;
    err.write_all(&tail)?;
    if needs_words {
        writeln!(err, "zkmw: the task {} {}", task.name(), clean(&verdict(&task.outcome)))?;
    }
    err.flush()
}

/// A note of missing bytes goes to standard error, never among the results.
fn omission(task: &Ended, omitted: u64, name: &str, err: &mut dyn Write) -> io::Result<()> {
    if omitted == 0 {
        return Ok(());
    }
    writeln!(err, "zkmw: the task {}: {omitted} bytes of its {name} were not kept", task.name())
}

/// The labels of `status`.
const STATUS: [Column; 1] = [Column::Left(8)];
/// The labels of `show`.
const SHOW: [Column; 1] = [Column::Left(9)];

/// A line with a label before it; a line without a label belongs to the one above.
fn field(
    out: &mut dyn Write,
    labels: [Column; 1],
    label: &str,
    text: impl std::fmt::Display,
) -> io::Result<()> {
    writeln!(out, "{}", line(labels, [label], &clean(&text.to_string())))
}

fn summary(progress: &Progress, err: &mut dyn Write) -> io::Result<()> {
    let Progress { submitted, done, failed, total } = progress;
    write!(err, "zkmw: {total} tasks: {done} succeeded, {failed} failed")?;
    let open = submitted.saturating_sub(done + failed);
    if open > 0 {
        write!(err, ", {open} not waited for")?;
    }
    writeln!(err)
}

fn status(report: &StatusReport, out: &mut dyn Write) -> io::Result<()> {
    leader(report, out)?;
    let Some(status) = &report.status else { return Ok(()) };
    if !report.current {
        writeln!(out, "What follows is what the last leader wrote; it may be old.")?;
    }
    if status.loading {
        writeln!(out, "The leader is still reading the tasks: the numbers are not complete.")?;
    }
    counts(status, out)?;
    workers(status, out)
}

fn leader(report: &StatusReport, out: &mut dyn Write) -> io::Result<()> {
    let contenders: Vec<String> = report.contenders.iter().map(|id| clean(id)).collect();
    let leader = report.status.as_ref().map(|status| &status.leader);
    let last = leader.map(|last| format!("({} on {} was the last)", last.id, last.host));
    let (now, standbys) = match (contenders.as_slice(), leader, last) {
        ([], _, None) => ("none: no master is running, and none ever led".to_string(), None),
        ([], _, Some(last)) => (format!("none: no master is running {last}"), None),
        ([_, standbys @ ..], Some(leader), _) if report.current => {
            let (id, host, pid, epoch) = (&leader.id, &leader.host, leader.pid, leader.epoch);
            (format!("{id} (host {host}, pid {pid}, epoch {epoch})"), Some(standbys))
        }
        ([next, standbys @ ..], _, last) => {
            let last = last.map(|last| format!(" {last}")).unwrap_or_default();
            (format!("none yet: {next} is about to lead{last}"), Some(standbys))
        }
    };
    field(out, STATUS, "leader", now)?;
    standbys.map_or(Ok(()), |standbys| field(out, STATUS, "standbys", names(standbys)))
}

fn counts(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let Counts {
        pending, assigned, running, done, failed, cancelled, expired, malformed, quarantined, ..
    } = &status.tasks;
    let tasks = format!(
        "{pending} pending, {assigned} assigned, {running} running, {done} done, {failed} failed, \
         {cancelled} cancelled, {expired} expired"
    );
    field(out, STATUS, "tasks", tasks)?;
    if malformed + quarantined > 0 {
        field(out, STATUS, "", format!("{malformed} malformed, {quarantined} quarantined"))?;
    }
    if let Some(admission) = &status.admission {
        let (pending, max) = (status.pending(), admission.max_pending);
        let (bytes, max_bytes) = (sized(admission.bytes), sized(admission.max_pending_bytes));
        field(out, STATUS, "limits", format!("{pending} of {max} pending, {bytes} of {max_bytes}"))?;
    }
    Ok(())
}

fn workers(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    field(out, STATUS, "workers", format!("{} with {} slots", status.workers, status.slots))?;
    for worker in &status.worker_list {
        let draining = if worker.draining { ", draining" } else { "" };
        let labels: String = worker.labels.iter().map(|(key, value)| format!(" {key}={value}")).collect();
        let (id, host, pid) = (&worker.id, &worker.host, worker.pid);
        let (running, slots) = (worker.running, worker.slots);
        let waits = if worker.assigned > 0 { format!(", {} wait", worker.assigned) } else { String::new() };
        let usable = worker.usable.map(|usable| format!(" ({usable} usable now)")).unwrap_or_default();
        let tasks = format!("{running} tasks on {slots} slots{usable}{waits}{draining}");
        writeln!(out, "{}", clean(&format!("  {id} (host {host}, pid {pid}) {tasks}{labels}")))?;
        if let Some(why) = &worker.unhealthy {
            writeln!(out, "    unhealthy: {}", clean(why))?;
        }
    }
    more_workers(status, out)
}

fn names(ids: &[String]) -> String {
    if ids.is_empty() { "none".to_string() } else { ids.join(", ") }
}

/// ID, HOST, PID, SLOTS, RUNNING, ASSIGNED and STATE of the workers; the labels follow.
const WORKERS: [Column; 7] = [
    Column::Left(16),
    Column::Left(16),
    Column::Right(7),
    Column::Right(5),
    Column::Right(7),
    Column::Right(8),
    Column::Left(10),
];

fn worker_table(report: &StatusReport, out: &mut dyn Write) -> io::Result<()> {
    let Some(status) = &report.status else {
        return writeln!(out, "No leader has written a summary yet: see zkmw status.");
    };
    if !report.current {
        writeln!(out, "No master leads now. What follows is what the last leader wrote; it may be old.")?;
    }
    let heading = ["ID", "HOST", "PID", "SLOTS", "RUNNING", "ASSIGNED", "STATE"];
    writeln!(out, "{}", line(WORKERS, heading, "LABELS"))?;
    for worker in &status.worker_list {
        let state = match worker {
            WorkerRow { draining: true, .. } => "draining",
            WorkerRow { unhealthy: Some(_), .. } => "unhealthy",
            WorkerRow { .. } => "ready",
        };
        let labels = worker.labels.iter().map(|(key, value)| format!("{key}={value}"));
        let labels = clean(&labels.collect::<Vec<_>>().join(" "));
        let (id, host, pid) = (clean(&worker.id), clean(&worker.host), worker.pid.to_string());
        let usable = worker.usable.map(|usable| format!("{usable}/")).unwrap_or_default();
        let (slots, running) = (format!("{usable}{}", worker.slots), worker.running.to_string());
        let cells = [&id, &host, &pid, &slots, &running, &worker.assigned.to_string(), state];
        writeln!(out, "{}", line(WORKERS, cells, &labels).trim_end())?;
        if let Some(why) = &worker.unhealthy {
            writeln!(out, "  unhealthy: {}", clean(why))?;
        }
    }
    more_workers(status, out)?;
    for ended in &status.ended_workers {
        let how =
            if ended.drained { "drained" } else { "its session ended, or its registration was deleted" };
        writeln!(out, "ended: {} at {}: {how}", clean(&ended.id), time(ended.at_ms))?;
    }
    Ok(())
}

/// How many workers are not listed.
fn more_workers(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let listed = u32::try_from(status.worker_list.len()).unwrap_or(u32::MAX);
    match status.workers.saturating_sub(listed) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more"),
    }
}

/// ELECTION, LEADER, CONTENDERS and EPOCH; the time follows.
const ELECTIONS: [Column; 4] = [Column::Left(32), Column::Left(20), Column::Right(10), Column::Right(16)];

fn election(row: &ElectionRow, headed: &mut bool, out: &mut dyn Write) -> io::Result<()> {
    if !*headed {
        *headed = true;
        let heading = ["ELECTION", "LEADER", "CONTENDERS", "EPOCH"];
        writeln!(out, "{}", line(ELECTIONS, heading, "CONTENDING SINCE"))?;
    }
    let (id, epoch, since) = match &row.first {
        Some(first) => (clean(&first.id), first.epoch.to_string(), time(first.created_ms)),
        None => ("-".to_string(), "-".to_string(), "-".to_string()),
    };
    let cells = [&clean(&row.path), &id, &row.contenders.to_string(), &epoch];
    writeln!(out, "{}", line(ELECTIONS, cells.map(String::as_str), &since))
}

/// The columns of a list where the user names none.
const DEFAULT_COLUMNS: [ListColumn; 8] = [
    ListColumn::Id,
    ListColumn::State,
    ListColumn::Exit,
    ListColumn::Attempt,
    ListColumn::Worker,
    ListColumn::Age,
    ListColumn::Duration,
    ListColumn::Command,
];

fn width_of(column: ListColumn) -> Column {
    match column {
        ListColumn::Id => Column::Left(32),
        ListColumn::State => Column::Left(10),
        ListColumn::Exit => Column::Right(4),
        ListColumn::Attempt => Column::Right(7),
        ListColumn::Priority | ListColumn::Duration => Column::Right(8),
        ListColumn::Worker => Column::Left(12),
        ListColumn::Age => Column::Right(5),
        ListColumn::Command => Column::Left(7),
    }
}

fn row(row: &Row, list: &mut ListForm, out: &mut dyn Write) -> io::Result<()> {
    if list.columns.is_empty() {
        list.columns = DEFAULT_COLUMNS.to_vec();
    }
    if !list.headed {
        list.headed = true;
        list_line(list, |column| column.name().to_uppercase(), out)?;
    }
    list_line(list, |column| cell(row, column), out)
}

/// A line of a list. The last cell may have any length.
fn list_line(list: &ListForm, cell: impl Fn(ListColumn) -> String, out: &mut dyn Write) -> io::Result<()> {
    let Some((last, columns)) = list.columns.split_last() else { return Ok(()) };
    let cells: Vec<String> = columns.iter().map(|column| cell(*column)).collect();
    let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
    let widths: Vec<Column> = columns.iter().map(|column| width_of(*column)).collect();
    let whole = line_of(&widths, &cells, &cell(*last));
    let whole = clean(whole.trim_end());
    let whole = whole.as_str();
    match list.width {
        Some(width) => writeln!(out, "{}", console::truncate_str(whole, width, "…")),
        None => writeln!(out, "{whole}"),
    }
}

fn cell(row: &Row, column: ListColumn) -> String {
    let dash = || "-".to_string();
    let task = match (&row.task, column) {
        (_, ListColumn::Id) => return row.name.clone(),
        (Ok(task), _) => task,
        (Err(_), ListColumn::State) => return "malformed".to_string(),
        (Err(why), ListColumn::Command) => return why.to_string(),
        (Err(_), _) => return dash(),
    };
    let outcome = task.outcome.as_ref();
    match column {
        ListColumn::Id => row.name.clone(),
        ListColumn::State => task.status.as_str().to_string(),
        ListColumn::Exit => outcome.map_or_else(dash, |outcome| exit_code(outcome).to_string()),
        ListColumn::Attempt => task.attempt.map_or_else(dash, |attempt| attempt.to_string()),
        ListColumn::Priority => task.priority.to_string(),
        ListColumn::Worker => task.worker.as_ref().map_or_else(dash, |worker| worker.worker().to_string()),
        ListColumn::Age => short_time(task.age_ms),
        ListColumn::Duration => outcome.and_then(ran_ms).map_or_else(dash, short_time),
        ListColumn::Command => task.command.clone(),
    }
}

/// How long the attempt ran that an outcome is of, in ms by its worker's clock.
fn ran_ms(outcome: &Outcome) -> Option<i64> {
    Some(outcome.ended_ms?.saturating_sub(outcome.started_ms?).max(0))
}

/// A time in at most five characters: `250ms`, `9.5s`, `42s`, `90m`, `36h`, `12d`.
fn short_time(ms: i64) -> String {
    const UNITS: [(i64, i64, &str); 4] = [
        (120_000, 1_000, "s"),
        (7_200_000, 60_000, "m"),
        (172_800_000, 3_600_000, "h"),
        (i64::MAX, 86_400_000, "d"),
    ];
    if ms < 1_000 {
        return format!("{ms}ms");
    }
    if ms < 10_000 {
        return format!("{}.{}s", ms / 1_000, ms % 1_000 / 100);
    }
    let unit = UNITS.iter().find(|(below, ..)| ms < *below);
    unit.map_or_else(|| format!("{ms}ms"), |(_, unit, name)| format!("{}{name}", ms / unit))
}

fn shown(shown: &Shown, out: &mut dyn Write) -> io::Result<()> {
    let task = &shown.task;
    match &shown.line {
        Some(line) => field(out, SHOW, "id", &line.name)?,
        None => field(out, SHOW, "id", &shown.id)?,
    }
    payload(shown, out)?;
    let worker = shown.worker.as_ref().map(|worker| format!(" on {worker}")).unwrap_or_default();
    field(out, SHOW, "state", format!("{}{worker}", shown.status().as_str()))?;
    let is_wished = shown.line.as_ref().map_or(task.cancel, |line| task.is_cancelled(line.position));
    if is_wished && shown.status() == TaskStatus::Pending {
        field(out, SHOW, "", "it is to be cancelled")?;
    }
    for reason in &shown.reasons {
        field(out, SHOW, "why", clean(&reason.to_string()))?;
    }
    if shown.line.is_none() {
        let (attempt, charged, all) = (task.attempt, task.charged, shown.options.attempts());
        let died = match task.deaths {
            0 => String::new(),
            deaths => format!(", its worker died in {deaths} more"),
        };
        field(out, SHOW, "attempt", format!("{attempt} ({charged} of {all} charged{died})"))?;
    }
    options(&shown.options, out)?;
    if task.keyed {
        field(out, SHOW, "keyed", "only the leader deletes it")?;
    }
    field(out, SHOW, "created", format!("{} (ensemble's clock)", time(shown.stat.ctime_ms)))?;
    let changed = format!("{} (version {})", time(shown.stat.mtime_ms), shown.stat.version);
    field(out, SHOW, "changed", changed)?;
    if let Some(delay) = task.delay_ms {
        field(out, SHOW, "not before", time(shown.stat.mtime_ms.saturating_add_unsigned(delay)))?;
    }
    if let Some(line) = &shown.line {
        return task.command_outcome(line.position).map_or(Ok(()), |line| outcome(&line, out));
    }
    for remark in &task.history {
        let worker = remark.worker.as_ref().map_or("nobody", |worker| worker.as_str());
        field(
            out,
            SHOW,
            "earlier",
            format!("attempt {} by {worker}: {}", remark.attempt, clean(&remark.why)),
        )?;
    }
    if let Some(whole) = &task.outcome {
        outcome(whole, out)?;
    }
    commands(task, out)
}

/// The state of a task, and all reasons why it has no outcome.
fn why(shown: &Shown, out: &mut dyn Write) -> io::Result<()> {
    let name = shown.line.as_ref().map_or_else(|| shown.id.to_string(), |line| line.name.to_string());
    let line = shown.line.as_ref().map(|line| line.position);
    let ended = line.map_or_else(|| shown.task.outcome.clone(), |at| shown.task.command_outcome(at));
    if let Some(outcome) = ended {
        return writeln!(out, "{name} is {}: it {}", shown.status().as_str(), clean(&verdict(&outcome)));
    }
    writeln!(out, "{name} is {}:", shown.status().as_str())?;
    shown.reasons.iter().try_for_each(|reason| writeln!(out, "  {}", clean(&reason.to_string())))
}

fn payload(shown: &Shown, out: &mut dyn Write) -> io::Result<()> {
    let task = &shown.task;
    match (task.payload(), &shown.line) {
        (Payload::Chunk { commands, .. }, Some(line)) => {
            field(out, SHOW, "command", clean(commands.get(line.position).map_or("", String::as_str)))
        }
        (Payload::Shell(line), _) => field(out, SHOW, "command", clean(&line)),
        (Payload::Program(argv), _) => field(out, SHOW, "program", format!("{argv:?}")),
        (Payload::Chunk { first_line, .. }, None) => {
            let (commands, last) =
                (task.positions().count(), task.positions().last().map_or(first_line, |position| position.1));
            let (first, last) = (first_line.saturating_add(1), last.saturating_add(1));
            field(out, SHOW, "commands", format!("{commands}, of lines {first} to {last}"))
        }
    }
}

fn outcome(outcome: &Outcome, out: &mut dyn Write) -> io::Result<()> {
    let (attempt, code) = (outcome.attempt, exit_code(outcome));
    let how = format!("attempt {attempt} {} (exit code {code})", clean(&verdict(outcome)));
    field(out, SHOW, "outcome", how)?;
    if let Some(worker) = &outcome.worker {
        field(out, SHOW, "worker", worker)?;
    }
    if let (Some(started), Some(ended)) = (outcome.started_ms, outcome.ended_ms) {
        let took = ended.saturating_sub(started);
        let ran = format!("{} to {} ({took} ms, worker's clock)", time(started), time(ended));
        field(out, SHOW, "ran", ran)?;
    }
    kept("stdout", &outcome.stdout, out)?;
    kept("stderr", &outcome.stderr, out)
}

/// The commands of a chunk with their states.
const COMMANDS: [Column; 4] = [Column::Left(4), Column::Left(7), Column::Left(9), Column::Right(3)];

/// The commands of a chunk, each with its outcome.
fn commands(task: &Task, out: &mut dyn Write) -> io::Result<()> {
    for (at, number) in task.positions() {
        let number = number.saturating_add(1).to_string();
        let command = task.commands.as_ref().and_then(|commands| commands.get(at));
        let start = start_of(command.map_or("", String::as_str));
        let Some(outcome) = task.command_outcome(at) else {
            let cells = ["line", &number, TaskStatus::Pending.as_str(), ""];
            writeln!(out, "{}", line(COMMANDS, cells, &start))?;
            continue;
        };
        let code = exit_code(&outcome).to_string();
        writeln!(out, "{}", line(COMMANDS, ["line", &number, outcome.state.as_str(), &code], &start))?;
        if outcome.state != State::Done {
            writeln!(out, "             it {}", clean(&verdict(&outcome)))?;
        }
        kept("stdout", &outcome.stdout, out)?;
        kept("stderr", &outcome.stderr, out)?;
    }
    Ok(())
}

fn options(options: &Options, out: &mut dyn Write) -> io::Result<()> {
    field(out, SHOW, "priority", options.priority.unwrap_or(0))?;
    if let Some(timeout_ms) = options.timeout_ms {
        field(out, SHOW, "timeout", format!("{timeout_ms} ms"))?;
    }
    if let Some(expire_ms) = options.expire_ms.filter(|ms| *ms < NO_DEADLINE_MS) {
        field(out, SHOW, "expires", format!("{expire_ms} ms after its creation"))?;
    }
    for (key, value) in options.require.iter().flatten() {
        field(out, SHOW, "requires", format!("{key}={value}"))?;
    }
    for (key, value) in options.env.iter().flatten() {
        field(out, SHOW, "env", format!("{key}={}", clean(value)))?;
    }
    if let Some(submitter) = &options.orphan_of {
        let when = format!("{submitter}: cancelled when that submitter is gone");
        field(out, SHOW, "orphan of", when)?;
    }
    Ok(())
}

/// An output in the midst of other text: under a heading, ended by a line's end.
fn kept(name: &str, output: &Output, out: &mut dyn Write) -> io::Result<()> {
    if output.is_empty() {
        return Ok(());
    }
    let Captured { head, omitted, tail } = output.captured();
    writeln!(out, "--- {name}")?;
    out.write_all(&head)?;
    if omitted > 0 {
        writeln!(out, "\n--- {omitted} bytes were not kept")?;
    }
    out.write_all(&tail)?;
    let last = tail.last().or(head.last());
    if last.is_some_and(|last| *last != b'\n') { writeln!(out) } else { Ok(()) }
}

/// Milliseconds since 1970 as RFC 3339, in UTC.
fn time(ms: i64) -> String {
    let since = u64::try_from(ms).unwrap_or(0);
    let at = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(since));
    // `humantime` panics beyond the year 9999, and a foreign znode may say anything.
    match at.filter(|_| since < 253_402_300_800_000) {
        Some(at) => humantime::format_rfc3339_millis(at).to_string(),
        None => format!("{ms} ms since 1970"),
    }
}

fn noted(note: &Noted, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    match note.ok {
        true => writeln!(out, "{}: {}", note.id, note.message),
        false => writeln!(err, "{}: {}", note.id, note.message),
    }
}

#[cfg(test)]
mod tests {
    use super::short_time;

    #[test]
    fn times_are_short_and_in_a_unit_that_suits_them() {
        let times = [0, 999, 1_000, 9_999, 10_000, 119_999, 120_000, 7_200_000, 172_800_000, i64::MAX - 1];
        let expected = ["0ms", "999ms", "1.0s", "9.9s", "10s", "119s", "2m", "2h", "2d", "106751991167d"];
        assert_eq!(times.map(short_time), expected);
    }
}
