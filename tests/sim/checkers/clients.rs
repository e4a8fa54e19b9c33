//! The clients' reports to their users: an id only of a task that exists, an outcome only as it was written, and the
//! exit code that belongs to it. And no client waits for ever.

use std::collections::BTreeMap;

use zkmw::contract::TaskId;
use zkmw::contract::task::{Outcome, State, Task};
use zkmw::exit;
use zkmw::roles::client::{ClientReport, Ended, INTERRUPTED, commands_ended, exit_code};
use zkmw::roles::operator::Verb;

use super::{Complaints, kind, replay, task_of};
use crate::history::Client;
use crate::member::Kind;
use crate::users::{ClientSpec, Wish};
use crate::world::World;

#[derive(Default)]
struct Known {
    /// When it was made, and when it went.
    made: Vec<u64>,
    gone: Vec<u64>,
    /// With the line, of a chunk's commands.
    outcomes: Vec<(u64, Option<u64>, Outcome)>,
    /// Nobody collected it in time.
    aged: bool,
}

/// All tasks that ever existed, by id.
fn all_tasks(world: &World) -> BTreeMap<String, Known> {
    let mut tasks: BTreeMap<String, Known> = BTreeMap::new();
    replay(world, |step, _| {
        let Some(id) = task_of(step.path) else { return };
        let known = tasks.entry(id.to_string()).or_default();
        match (step.before, step.after) {
            (None, _) => known.made.push(step.at),
            (_, None) => {
                known.gone.push(step.at);
                known.aged |= matches!(kind(world, step.by), Some(Kind::Master));
            }
            _ => {}
        }
        let Some(task) = step.after.and_then(|znode| Task::decode(&znode.data).ok()) else { return };
        // Of a chunk that has not ended, the results that it has.
        if let (Some(id), Some(_)) = (TaskId::parse(id), &task.commands) {
            let ended = commands_ended(&id, &task).into_iter();
            known.outcomes.extend(ended.map(|ended| (step.at, ended.line, ended.outcome)));
        } else if let Some(outcome) = task.outcome {
            known.outcomes.push((step.at, None, outcome));
        }
    });
    tasks
}

pub fn check(world: &World, complaints: &mut Complaints) {
    let tasks = all_tasks(world);
    for (m, member) in world.members.iter().enumerate() {
        let Kind::Client(spec) = &member.kind else { continue };
        let Some(client) = world.history.clients.get(&m) else { continue };
        let mut wrong = |what: String| {
            let at = client.exit.map_or(world.now, |(at, _)| at);
            complaints.add(at, format!("{}: {what} ({spec:?}, exit {:?})", member.name, client.exit));
        };
        if client.exit.is_none() && !client.killed {
            wrong("never ends".into());
        }
        if client.exit.is_some_and(|(_, code)| code == exit::BUG) {
            wrong("finds a bug".into());
        }
        for (at, report) in &client.reports {
            if let Err(what) = report_holds(*at, report, &tasks) {
                wrong(what);
            }
        }
        let ulids: Vec<String> = world
            .history
            .lives
            .iter()
            .filter(|(_, (n, _))| *n == m)
            .map(|(life, _)| format!("01S{life:023}"))
            .collect();
        let missed =
            tasks.iter().any(|(id, known)| known.aged && ulids.iter().any(|ulid| id.contains(ulid.as_str())));
        if let Err(what) = code_fits(spec, client, missed, collected(client, &tasks)) {
            wrong(what);
        }
        let own = |id: &&String| ulids.iter().any(|ulid| id.contains(ulid.as_str()));
        let own: Vec<&String> = tasks.keys().filter(own).collect();
        if matches!(spec.wish, Wish::Single(_)) && own.len() > 1 {
            wrong(format!("wants one task, and makes {own:?}"));
        }
        if refused(client) && !own.is_empty() {
            wrong(format!("is refused, and makes {own:?}"));
        }
    }
}

/// Whether the service refused its request as too much.
fn refused(client: &Client) -> bool {
    client.exit.is_some_and(|(_, code)| code == exit::TOO_MUCH)
}

fn report_holds(at: u64, report: &ClientReport, tasks: &BTreeMap<String, Known>) -> Result<(), String> {
    match report {
        ClientReport::Submitted { id, .. } | ClientReport::SubmittedLines { id, .. } => {
            let made = tasks.get(id.as_str()).is_some_and(|known| known.made.iter().any(|made| *made <= at));
            if made { Ok(()) } else { Err(format!("G1: reports {id}, which was never made")) }
        }
        ClientReport::Ended(all) => all.iter().try_for_each(|ended| was_written(at, ended, tasks)),
        _ => Ok(()),
    }
}

fn was_written(at: u64, ended: &Ended, tasks: &BTreeMap<String, Known>) -> Result<(), String> {
    let known = tasks.get(ended.id.as_str());
    let is_it = |line: &Option<u64>, outcome: &Outcome| {
        line.is_none_or(|line| ended.line == Some(line)) && *outcome == ended.outcome
    };
    let mut outcomes = known.into_iter().flat_map(|known| &known.outcomes);
    if outcomes.any(|(when, line, outcome)| *when <= at && is_it(line, outcome)) {
        Ok(())
    } else {
        Err(format!("reports an outcome of {} that was never written", ended.id))
    }
}

fn ended(client: &Client) -> Vec<&Outcome> {
    let mut outcomes = Vec::new();
    for (_, report) in &client.reports {
        if let ClientReport::Ended(all) = report {
            outcomes.extend(all.iter().map(|ended| &ended.outcome));
        }
    }
    outcomes
}

/// Whether a task that it reported was gone when it ended.
fn collected(client: &Client, tasks: &BTreeMap<String, Known>) -> bool {
    let until = client.exit.map_or(u64::MAX, |(at, _)| at);
    client.reports.iter().any(|(_, report)| {
        let ClientReport::Submitted { id, .. } = report else { return false };
        tasks.get(id.as_str()).is_some_and(|known| known.gone.iter().any(|gone| *gone <= until))
    })
}

/// Whether the exit code agrees with the wish and with what happened.
fn code_fits(spec: &ClientSpec, client: &Client, missed: bool, collected: bool) -> Result<(), String> {
    let Some((_, code)) = client.exit else { return Ok(()) };
    if client.interrupted && code == INTERRUPTED {
        return Ok(());
    }
    if refused(client) && matches!(spec.wish, Wish::Single(_) | Wish::Batch(_)) {
        let report = client.reports.iter().find(|(_, report)| !matches!(report, ClientReport::Progress(_)));
        return report.map_or(Ok(()), |report| Err(format!("it is refused, and reports {report:?}")));
    }
    let outcomes = ended(client);
    let submitted = client.reports.iter().any(|(_, report)| matches!(report, ClientReport::Submitted { .. }));
    let detached = client.reports.iter().any(|(_, report)| matches!(report, ClientReport::Detached { .. }));
    // Another client may have used the same key, and a client that comes too late finds nothing.
    let keyed = spec.key.is_some() || missed;
    // A client that detached waits for the end all the same when an interrupt makes it cancel the task.
    let waits = !spec.detach || (client.interrupted && spec.cancel);
    let ok = match &spec.wish {
        Wish::Single(_) if spec.detach && waits && !outcomes.is_empty() => {
            outcomes.iter().all(|o| code == exit_code(o))
        }
        // It waits only since it was interrupted, and others took the outcome while it was cut off.
        Wish::Single(_) if spec.detach && waits && code == exit::FAILED => collected,
        Wish::Single(_) if spec.detach => (code == exit::OK && submitted) || (code == exit::DATA && keyed),
        Wish::Single(_) => match outcomes.as_slice() {
            [outcome] => code == exit_code(outcome),
            // Somebody else had the key, or collected first.
            [] => keyed && (code == exit::DATA || code == exit::FAILED || code == exit::TRY_AGAIN),
            _ => false,
        },
        Wish::Batch(_) if spec.detach => (code == exit::OK && detached) || (code == exit::DATA && keyed),
        Wish::Batch(lines) => {
            let good = outcomes.iter().filter(|outcome| outcome.state == State::Done).count();
            match code {
                exit::OK => good == lines.len(),
                // A client that cancels its batch creates no more of it.
                exit::FAILED => {
                    let cut_short = client.interrupted && spec.cancel;
                    good < lines.len() && (outcomes.len() == lines.len() || keyed || cut_short)
                }
                _ => keyed,
            }
        }
        Wish::Wait(_) => match code {
            exit::OK => outcomes.iter().all(|outcome| outcome.state == State::Done),
            exit::DATA => outcomes.is_empty(),
            _ => true,
        },
        // A line cannot be deleted alone.
        Wish::Operate(Verb::Delete(_), _) if code == exit::USAGE => true,
        Wish::Operate(Verb::Cancel | Verb::Retry | Verb::Delete(_), _) => {
            matches!(code, exit::OK | exit::FAILED | exit::DATA | exit::TRY_AGAIN)
        }
    };
    if ok { Ok(()) } else { Err(format!("its exit code does not fit what happened: {outcomes:?}")) }
}
