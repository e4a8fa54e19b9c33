//! What a command means for a task as it is now: what to write, and what to report about which line. Decided anew on
//! each version.

use std::collections::BTreeMap;

use super::Verb;
use crate::contract::TaskId;
use crate::contract::is_shared;
use crate::contract::line::{LineName, line_name};
use crate::contract::task::{NO_DEADLINE_MS, Outcome, State, Task};
use crate::exit;
use crate::roles::client::verdict;

/// The lines of a task that a command names, by their positions; none if it names the whole task.
pub type Lines = BTreeMap<usize, LineName>;

/// Whom a wish does not change, and why.
#[derive(Debug, PartialEq)]
pub struct Unchanged {
    /// The task, or the line.
    pub name: String,
    /// The exit code, if that is not what the user wished.
    pub problem: Option<i32>,
    /// What follows the name.
    pub message: String,
}

/// What is to be done about a task as it is now.
#[derive(Debug, Default, PartialEq)]
pub struct Decision {
    /// The task as it is to be written, if anything changes.
    pub write: Option<Box<Task>>,
    /// The task is to be deleted instead.
    pub deletes: bool,
    /// Whom that changes, with what follows the name.
    pub changed: Vec<(String, String)>,
    /// Whom it does not.
    pub left: Vec<Unchanged>,
}

impl Decision {
    pub(super) fn leave(
        &mut self,
        name: impl Into<String>,
        problem: Option<i32>,
        message: impl Into<String>,
    ) {
        self.left.push(Unchanged { name: name.into(), problem, message: message.into() });
    }

    /// Whether what was to be written, and may have been, is what this came from. Of a retry the history shows it, for
    /// more may have happened since.
    pub fn is_applied_in(&self, task: &Task, verb: &Verb) -> bool {
        let Some(write) = &self.write else { return false };
        let is_cancelled =
            |position: usize| task.is_cancelled(position) || task.command_state(position).is_some();
        let lines = write.commands.as_ref().map_or(0, Vec::len);
        match (verb, &task.commands) {
            (Verb::Delete(_), _) => task.delete,
            (Verb::Cancel, _) if write.cancel => task.cancel,
            (Verb::Cancel, _) => write.cancel_lines.below(lines).all(is_cancelled),
            (Verb::Retry, None) => task.attempt >= write.attempt,
            (Verb::Retry, Some(_)) => write.history.last().is_some_and(|ours| task.history.contains(ours)),
        }
    }
}

/// What the command is about, each with its name: the named lines, or all lines, or a task that is no chunk.
pub(super) fn meant(id: &TaskId, task: &Task, lines: &Lines) -> Vec<(Option<usize>, String)> {
    if task.commands.is_none() {
        return vec![(None, name_of_whole(id, lines))];
    }
    match lines.is_empty() {
        true => task.positions().map(|(position, line)| (Some(position), line_name(id, line))).collect(),
        false => lines.iter().map(|(position, name)| (Some(*position), name.to_string())).collect(),
    }
}

/// Whether there is a command at the position.
fn is_there(task: &Task, position: Option<usize>) -> bool {
    let command = |position| task.commands.as_ref().and_then(|commands| commands.get(position));
    position
        .is_none_or(|position| command(position).is_some_and(|command: &String| !command.trim().is_empty()))
}

fn outcome_of(task: &Task, position: Option<usize>) -> Option<Outcome> {
    position.map_or_else(|| task.outcome.clone(), |position| task.command_outcome(position))
}

/// The name of a task that is no chunk: that of the line, if a batch has one line in each task.
fn name_of_whole(id: &TaskId, lines: &Lines) -> String {
    lines.values().next().map_or_else(|| id.to_string(), LineName::to_string)
}

const NO_LINE: &str = "there is no such line";

const SUCCEEDED: &str = "has succeeded: only what failed, expired or was cancelled can be retried";

const DROPPED: &str = "cannot run again: its command was dropped, for too much had ended badly. Submit it with another \
                       --id, or delete it and submit it once more";

const NOT_ENDED: &str = "has not ended yet: there is nothing to retry";

/// Cancels the task, or lines of it.
pub fn cancel(id: &TaskId, mut task: Task, lines: &Lines) -> Decision {
    let mut decision = Decision::default();
    let whole = task.commands.is_none() || lines.is_empty();
    for (position, name) in meant(id, &task, lines) {
        let is_wished = position.map_or(task.cancel, |position| task.is_cancelled(position));
        match outcome_of(&task, position) {
            _ if !is_there(&task, position) => decision.leave(name, Some(exit::DATA), NO_LINE),
            Some(outcome) if outcome.state == State::Cancelled => {
                decision.leave(name, None, "was cancelled already");
            }
            Some(outcome) => {
                decision.leave(name, None, format!("has ended already: it {}", verdict(&outcome)));
            }
            None if is_wished => decision.leave(name, None, "is being cancelled"),
            None if whole || position.is_some_and(|position| task.cancel_line(position)) => {
                decision.changed.push((name, "is being cancelled".to_string()));
            }
            None => {}
        }
    }
    task.cancel |= whole;
    decision.write = (!decision.changed.is_empty()).then(|| Box::new(task));
    decision
}

/// Has run again what ended badly of the task, or of these lines of it.
pub fn retry(id: &TaskId, mut task: Task, lines: &Lines) -> Decision {
    let (mut decision, mut again) = (Decision::default(), Vec::new());
    for (position, name) in meant(id, &task, lines) {
        match outcome_of(&task, position).map(|outcome| outcome.state) {
            _ if !is_there(&task, position) => decision.leave(name, Some(exit::DATA), NO_LINE),
            Some(State::Done) => decision.leave(name, Some(exit::FAILED), SUCCEEDED),
            None => decision.leave(name, Some(exit::FAILED), NOT_ENDED),
            Some(_) if task.digest.is_some() => decision.leave(name, Some(exit::DATA), DROPPED),
            Some(State::Failed | State::Cancelled | State::Expired) => again.push((position, name)),
        }
    }
    if again.is_empty() {
        return decision;
    }
    let positions: Vec<usize> = again.iter().filter_map(|(position, _)| *position).collect();
    let had_ended = task.outcome.is_some();
    let will = match task.commands {
        None => Ok(rerun_task(&mut task)),
        Some(_) => rerun_lines(&mut task, &positions),
    };
    for (_, name) in again {
        match &will {
            Ok(words) => decision.changed.push((name, words.clone())),
            Err(why) => decision.leave(name, Some(exit::TRY_AGAIN), *why),
        }
    }
    if will.is_err() {
        return decision;
    }
    if had_ended {
        renew(id, &mut task);
    }
    decision.write = Some(Box::new(task));
    decision
}

fn rerun_task(task: &mut Task) -> String {
    if let Some(outcome) = task.outcome.take() {
        let why = format!("retried by a user; it had ended as {}", outcome.state.as_str());
        task.next_attempt(outcome.worker.clone(), &why);
        task.released_by = outcome.worker;
    }
    format!("will run again, as attempt {}", task.attempt)
}

/// Others of its lines may run meanwhile: nothing happens to them.
fn rerun_lines(task: &mut Task, positions: &[usize]) -> Result<String, &'static str> {
    if task.cancel && task.outcome.is_none() {
        return Err("is being cancelled with the others: wait for that, and retry it then");
    }
    let again = task.positions().filter(|(position, _)| positions.contains(position));
    let numbers: Vec<String> = again.map(|(_, line)| (line + 1).to_string()).collect();
    task.remark(task.attempt, None, &format!("retried by a user: lines {}", numbers.join(", ")));
    match task.rerun(positions) {
        true => Ok("will run again".to_string()),
        false => {
            Err("cannot run again yet, for its neighbours are spread over too many workers: try again when \
                      some of them have ended")
        }
    }
}

/// Failures of a task that had ended do not count any more.
fn renew(id: &TaskId, task: &mut Task) {
    (task.charged, task.deaths) = (0, 0);
    task.cancel = false;
    task.delete = false;
    // The deadline may also be its job's, which counts from the task's creation, as its own does.
    if !is_shared(id.dir()) || task.options.expire_ms.is_some() {
        task.options.expire_ms = Some(NO_DEADLINE_MS);
    }
}
