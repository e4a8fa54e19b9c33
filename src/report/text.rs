//! Reports as people read them.

use std::io::{self, Write};

use crate::contract::Incarnation;
use crate::contract::line::line_name;
use crate::contract::task::{NO_DEADLINE_MS, Options, Outcome, Output, Payload, State, Task};
use crate::machine::Captured;
use crate::roles::client::{
    ClientReport, Ended, Noted, Progress, Row, Shown, StatusReport, TaskStatus, clean, exit_code, is_plain,
    sized, start_of, verdict,
};

/// Writes a report.
pub fn write(
    report: &ClientReport,
    out: &mut dyn Write,
    err: &mut dyn Write,
    headed: &mut bool,
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
        ClientReport::Row(task) => row(task, headed, out),
        ClientReport::Shown(task) => shown(task, out),
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
    // Both may be one terminal: what comes first shall stand first. Else it is flushed with what follows.
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

/// What is missing in between is told on standard error, never among the results.
fn omission(task: &Ended, omitted: u64, name: &str, err: &mut dyn Write) -> io::Result<()> {
    if omitted == 0 {
        return Ok(());
    }
    writeln!(err, "zkmw: the task {}: {omitted} bytes of its {name} were not kept", task.name())
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
    let contenders: Vec<String> = report.contenders.iter().map(|id| clean(id)).collect();
    let leader = report.status.as_ref().map(|status| &status.leader);
    match (contenders.as_slice(), leader) {
        ([], None) => writeln!(out, "leader   none: no master is running, and none ever led")?,
        ([], Some(last)) => {
            writeln!(out, "leader   none: no master is running ({} on {} was the last)", last.id, last.host)?;
        }
        ([_, standbys @ ..], Some(leader)) if report.current => {
            let (id, host, pid, epoch) = (&leader.id, &leader.host, leader.pid, leader.epoch);
            writeln!(out, "leader   {id} (host {host}, pid {pid}, epoch {epoch})")?;
            writeln!(out, "standbys {}", names(standbys))?;
        }
        ([next, standbys @ ..], last) => {
            write!(out, "leader   none yet: {next} is about to lead")?;
            if let Some(last) = last {
                write!(out, " ({} on {} was the last)", last.id, last.host)?;
            }
            writeln!(out)?;
            writeln!(out, "standbys {}", names(standbys))?;
        }
    }
    let Some(status) = &report.status else { return Ok(()) };
    if !report.current {
        writeln!(out, "What follows is what the last leader wrote; it may be old.")?;
    }
    if status.loading {
        writeln!(out, "The leader is still reading what stands: the numbers are not complete.")?;
    }
    let tasks = &status.tasks;
    writeln!(
        out,
        "tasks    {} pending, {} assigned, {} running, {} done, {} failed, {} cancelled, {} expired",
        tasks.pending,
        tasks.assigned,
        tasks.running,
        tasks.done,
        tasks.failed,
        tasks.cancelled,
        tasks.expired
    )?;
    if tasks.malformed + tasks.aside > 0 {
        writeln!(out, "         {} malformed, {} set aside", tasks.malformed, tasks.aside)?;
    }
    if let Some(admission) = &status.admission {
        let (pending, max) = (status.pending(), admission.max_pending);
        let (bytes, max_bytes) = (sized(admission.bytes), sized(admission.max_pending_bytes));
        writeln!(out, "limits   {pending} of {max} pending, {bytes} of {max_bytes}")?;
    }
    writeln!(out, "workers  {} with {} slots", status.workers, status.slots)?;
    for worker in &status.worker_list {
        let draining = if worker.draining { ", draining" } else { "" };
        let labels: Vec<String> =
            worker.labels.iter().map(|(key, value)| format!(" {key}={value}")).collect();
        let (host, pid, running, slots) = (&worker.host, worker.pid, worker.running, worker.slots);
        let waits = if worker.assigned > 0 { format!(", {} wait", worker.assigned) } else { String::new() };
        let (id, labels) = (&worker.id, labels.concat());
        let usable = worker.usable.map(|usable| format!(" ({usable} usable now)")).unwrap_or_default();
        writeln!(
            out,
            "  {id} (host {host}, pid {pid}) {running} tasks on {slots} slots{usable}{waits}{draining}{labels}"
        )?;
        if let Some(why) = &worker.unhealthy {
            writeln!(out, "    unhealthy: {why}")?;
        }
    }
    let listed = u32::try_from(status.worker_list.len()).unwrap_or(u32::MAX);
    match status.workers.saturating_sub(listed) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more"),
    }
}

fn names(ids: &[String]) -> String {
    if ids.is_empty() { "none".to_string() } else { ids.join(", ") }
}

fn row(row: &Row, headed: &mut bool, out: &mut dyn Write) -> io::Result<()> {
    if !*headed {
        *headed = true;
        let (id, state) = ("ID", "STATE");
        writeln!(
            out,
            "{id:<32} {state:<10} {:>4} {:>7} {:>8} {:<12} COMMAND",
            "EXIT", "ATTEMPT", "PRIORITY", "WORKER"
        )?;
    }
    let name = &row.name;
    match &row.task {
        Ok(task) => {
            let (state, priority) = (task.status.as_str(), task.priority);
            let dash = || "-".to_string();
            let attempt = task.attempt.map_or_else(dash, |attempt| attempt.to_string());
            let code = task.outcome.as_ref().map_or_else(dash, |outcome| exit_code(outcome).to_string());
            let worker = task.worker.as_ref().map_or("-", Incarnation::worker);
            writeln!(
                out,
                "{name:<32} {state:<10} {code:>4} {attempt:>7} {priority:>8} {worker:<12} {}",
                task.command
            )
        }
        Err(why) => {
            writeln!(out, "{name:<32} {:<10} {:>4} {:>7} {:>8} {:<12} {why}", "malformed", "-", "-", "-", "-")
        }
    }
}

fn shown(shown: &Shown, out: &mut dyn Write) -> io::Result<()> {
    let task = &shown.task;
    match &shown.line {
        Some(line) => writeln!(out, "id        {}", line.name)?,
        None => writeln!(out, "id        {}", shown.id)?,
    }
    payload(shown, out)?;
    write!(out, "state     {}", shown.status().as_str())?;
    match &shown.worker {
        Some(worker) => writeln!(out, " on {worker}")?,
        None => writeln!(out)?,
    }
    let is_wished = shown.line.as_ref().map_or(task.cancel, |line| task.is_cancelled(line.place));
    if is_wished && shown.status() == TaskStatus::Pending {
        writeln!(out, "          it is to be cancelled")?;
    }
    if shown.line.is_none() {
        let (attempt, charged, all) = (task.attempt, task.charged, shown.options.attempts());
        let died = match task.deaths {
            0 => String::new(),
            deaths => format!(", its worker died in {deaths} more"),
        };
        writeln!(out, "attempt   {attempt} ({charged} of {all} charged{died})")?;
    }
    options(&shown.options, out)?;
    if task.keyed {
        writeln!(out, "keyed     only the leader deletes it")?;
    }
    writeln!(out, "created   {} (ensemble's clock)", time(shown.stat.ctime_ms))?;
    writeln!(out, "changed   {} (version {})", time(shown.stat.mtime_ms), shown.stat.version)?;
    if let Some(delay) = task.delay_ms {
        let at = shown.stat.mtime_ms.saturating_add_unsigned(delay);
        writeln!(out, "not before {}", time(at))?;
    }
    if let Some(line) = &shown.line {
        return task.command_outcome(line.place).map_or(Ok(()), |line| outcome(&line, out));
    }
    for remark in &task.history {
        let worker = remark.worker.as_ref().map_or("nobody", |worker| worker.as_str());
        writeln!(out, "earlier   attempt {} by {worker}: {}", remark.attempt, clean(&remark.why))?;
    }
    if let Some(whole) = &task.outcome {
        outcome(whole, out)?;
    }
    commands(task, out)
}

fn payload(shown: &Shown, out: &mut dyn Write) -> io::Result<()> {
    let task = &shown.task;
    match (task.payload(), &shown.line) {
        (Payload::Chunk { commands, .. }, Some(line)) => {
            writeln!(out, "command   {}", clean(commands.get(line.place).map_or("", String::as_str)))
        }
        (Payload::Shell(line), _) => writeln!(out, "command   {}", clean(&line)),
        (Payload::Program(argv), _) => writeln!(out, "program   {argv:?}"),
        (Payload::Chunk { first_line, .. }, None) => {
            let (commands, last) =
                (task.places().count(), task.places().last().map_or(first_line, |place| place.1));
            let (first, last) = (first_line.saturating_add(1), last.saturating_add(1));
            writeln!(out, "commands  {commands}, of lines {first} to {last}")
        }
    }
}

fn outcome(outcome: &Outcome, out: &mut dyn Write) -> io::Result<()> {
    let (attempt, code) = (outcome.attempt, exit_code(outcome));
    writeln!(out, "outcome   attempt {attempt} {} (exit code {code})", clean(&verdict(outcome)))?;
    if let Some(worker) = &outcome.worker {
        writeln!(out, "worker    {worker}")?;
    }
    if let (Some(started), Some(ended)) = (outcome.started_ms, outcome.ended_ms) {
        let took = ended.saturating_sub(started);
        writeln!(out, "ran       {} to {} ({took} ms, worker's clock)", time(started), time(ended))?;
    }
    kept("stdout", &outcome.stdout, out)?;
    kept("stderr", &outcome.stderr, out)
}

/// The commands of a chunk, each with what became of it.
fn commands(task: &Task, out: &mut dyn Write) -> io::Result<()> {
    for (at, line) in task.places() {
        let line = line.saturating_add(1);
        let command = task.commands.as_ref().and_then(|commands| commands.get(at));
        let start = start_of(command.map_or("", String::as_str));
        let Some(outcome) = task.command_outcome(at) else {
            writeln!(out, "line {line:<7} {:<9}     {start}", TaskStatus::Pending.as_str())?;
            continue;
        };
        let code = exit_code(&outcome);
        writeln!(out, "line {line:<7} {:<9} {code:>3} {start}", outcome.state.as_str())?;
        if outcome.state != State::Done {
            writeln!(out, "             it {}", clean(&verdict(&outcome)))?;
        }
        kept("stdout", &outcome.stdout, out)?;
        kept("stderr", &outcome.stderr, out)?;
    }
    Ok(())
}

fn options(options: &Options, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "priority  {}", options.priority.unwrap_or(0))?;
    if let Some(timeout_ms) = options.timeout_ms {
        writeln!(out, "timeout   {timeout_ms} ms")?;
    }
    if let Some(expire_ms) = options.expire_ms.filter(|ms| *ms < NO_DEADLINE_MS) {
        writeln!(out, "expires   {expire_ms} ms after its creation")?;
    }
    for (key, value) in options.require.iter().flatten() {
        writeln!(out, "requires  {key}={value}")?;
    }
    for (key, value) in options.env.iter().flatten() {
        writeln!(out, "env       {key}={}", clean(value))?;
    }
    if let Some(submitter) = &options.orphan_of {
        writeln!(out, "orphan of {submitter}: cancelled when that submitter is gone")?;
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
