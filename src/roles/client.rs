//! What all client roles have in common: the reports that they give to their user, and what an outcome or a
//! refusal means as an exit code. It holds no state and makes no calls; the view decides the form of a report.

pub mod notice;
mod seek;
pub mod service_state;
pub mod wait_reasons;
pub mod walk;

#[cfg(test)]
pub(crate) mod testing;

use std::fmt;

use crate::contract::line::{LineName, batch_of, line_name};
use crate::contract::status::Status;
use crate::contract::task::{Options, Outcome, Reason, State, Task};
use crate::contract::{Incarnation, Malformed, TaskId};
use crate::exit;
use crate::machine::{Event, Refusal, Stat, answered};
use wait_reasons::WaitReason;

/// Exit code of a waiting client that was interrupted: that of a shell for SIGINT.
pub const INTERRUPTED: i32 = exit::SIGNAL_BASE + 2;

/// Characters of a command that are shown where it shares a line.
const MAX_COMMAND_CHARS: usize = 60;

/// ZooKeeper's code for a quota that would be exceeded.
const QUOTA_EXCEEDED: i32 = -125;

/// What a client role reports to its user.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientReport {
    /// The task exists in the ensemble, for certain. Its user sees the id if nobody waits for the outcome.
    Submitted {
        /// The task.
        id: TaskId,
        /// Nobody waits for its outcome.
        detached: bool,
    },
    /// These lines of a batch exist in the ensemble, for certain, and nobody waits for their outcomes.
    SubmittedLines {
        /// The chunk that they are in.
        id: TaskId,
        /// From 0.
        lines: Vec<u64>,
    },
    /// A batch exists in the ensemble, all of it for certain, and nobody waits for it.
    Detached {
        /// Its name for `wait`.
        name: String,
        /// How many tasks it has.
        submitted: u64,
    },
    /// These ended, in this order. They are shown one by one, and flushed together.
    Ended(Vec<Ended>),
    /// How far a batch, or a wait for several, has got.
    Progress(Progress),
    /// The counts of a batch, or of a wait for several.
    Summary(Progress),
    /// How the service is.
    Status(Box<StatusReport>),
    /// The workers, as the leader's summary has them.
    Workers(Box<StatusReport>),
    /// One election.
    Election(Box<ElectionRow>),
    /// One task of a list.
    Row(Box<Row>),
    /// All about one task.
    Shown(Box<Shown>),
    /// Why one task has no outcome.
    Why(Box<Shown>),
    /// What became of a wish to cancel or retry a task.
    Noted(Noted),
}

impl ClientReport {
    /// What the user has to know if this can't be shown to him: what has happened all the same, so that he does not do
    /// it again, and how to come back to it.
    pub fn what_stays(&self) -> Option<String> {
        match self {
            ClientReport::Submitted { id, .. } => {
                Some(format!("the task {id} was submitted: zkmw wait {id} comes back to it"))
            }
            ClientReport::SubmittedLines { id, lines } => {
                let first = line_name(id, *lines.first()?);
                let batch =
                    batch_of(id.dir()).map_or(String::new(), |batch| format!(" or zkmw wait {batch}"));
                Some(format!(
                    "the task {first} was submitted, and others: zkmw wait {first}{batch} comes back to them"
                ))
            }
            ClientReport::Detached { name, submitted } => {
                Some(format!("all {submitted} tasks were submitted: zkmw wait {name} comes back to them"))
            }
            ClientReport::Ended(ended) => {
                let (name, dir) = ended.first().map(|ended| (ended.name(), ended.id.dir()))?;
                let mut words =
                    format!("the task {name} has ended, and its outcome stays: see zkmw wait {name}");
                if let Some(batch) = batch_of(dir) {
                    words +=
                        &format!("; the others of the batch go on: zkmw wait {batch} comes back to them");
                }
                Some(words)
            }
            ClientReport::Summary(_) => Some("all outcomes were shown".to_string()),
            ClientReport::Noted(Noted { id, message, .. }) => Some(format!("{id} {message}")),
            ClientReport::Progress(_)
            | ClientReport::Status(_)
            | ClientReport::Workers(_)
            | ClientReport::Election(_)
            | ClientReport::Row(_)
            | ClientReport::Shown(_)
            | ClientReport::Why(_) => None,
        }
    }
}

/// What became of each command of a chunk that has ended, as if it were a task of its own, but for the id.
pub fn commands_ended(id: &TaskId, task: &Task) -> Vec<Ended> {
    let command = |(at, line)| {
        let outcome = task.command_outcome(at)?;
        Some(Ended { id: id.clone(), line: Some(line), outcome, alone: false })
    };
    task.positions().filter_map(command).collect()
}

/// The outcome of a task, or of a command of a chunk, that was waited for.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// The task.
    pub id: TaskId,
    /// Its line in the batch, from 0.
    pub line: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// It is the only one: its exit code becomes ours, so a plain one needs no words.
    pub alone: bool,
}

impl Ended {
    /// What its user calls it.
    pub fn name(&self) -> String {
        self.line.map_or_else(|| self.id.to_string(), |line| line_name(&self.id, line))
    }
}

/// How many tasks of several are how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// They exist in the ensemble, for certain.
    pub submitted: u64,
    /// They ended as done.
    pub done: u64,
    /// They ended otherwise, or are lost.
    pub failed: u64,
    /// How many there are; 0 while that is not known.
    pub total: u64,
}

/// How the service is.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusReport {
    /// The summary in the ensemble, if there is one that can be read.
    pub status: Option<Status>,
    /// Whether the first contender wrote the summary: only then it describes the present.
    pub current: bool,
    /// The ids of the contenders, first the first; of those beyond the first few only the znodes' names.
    pub contenders: Vec<String>,
}

/// One election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectionRow {
    /// Its directory.
    pub path: String,
    /// The first contender. It leads, or is about to.
    pub first: Option<FirstContender>,
    /// How many contenders there are.
    pub contenders: u64,
}

/// The first contender of an election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstContender {
    /// The id of its process.
    pub id: String,
    /// When the contender was created, in ms since 1970 by the ensemble's clock.
    pub created_ms: i64,
    /// The czxid of the contender: the epoch, or fencing token, of its term, unless it took the term over from another
    /// contender of its process.
    pub epoch: i64,
}

/// A state as users see it: that of a task without an outcome is refined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaskStatus {
    /// It waits for a worker, or for its time.
    Pending,
    /// It is a line of a chunk that a live worker has, and is not to be started there yet.
    Assigned,
    /// It is in a live worker's assignment, and may run.
    Running,
    /// It is in a live worker's assignment, and is to be cancelled: it may run until its grace is over.
    Cancelling,
    /// It has this outcome.
    Ended(State),
}

impl TaskStatus {
    /// Of a task that this worker has, if any.
    pub fn of(task: &Task, worker: Option<&Incarnation>) -> TaskStatus {
        match (&task.outcome, worker) {
            (Some(outcome), _) => TaskStatus::Ended(outcome.state),
            (None, Some(_)) if task.cancel => TaskStatus::Cancelling,
            (None, Some(_)) => TaskStatus::Running,
            (None, None) => TaskStatus::Pending,
        }
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            TaskStatus::Pending => "pending",
            TaskStatus::Assigned => "assigned",
            TaskStatus::Running => "running",
            TaskStatus::Cancelling => "cancelling",
            TaskStatus::Ended(state) => state.as_str(),
        }
    }
}

/// A column of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ListColumn {
    Id,
    State,
    Exit,
    Attempt,
    Priority,
    Worker,
    Age,
    Duration,
    Command,
}

impl ListColumn {
    /// All, in the order in which the help names them.
    pub const ALL: [ListColumn; 9] = [
        ListColumn::Id,
        ListColumn::State,
        ListColumn::Exit,
        ListColumn::Attempt,
        ListColumn::Priority,
        ListColumn::Worker,
        ListColumn::Age,
        ListColumn::Duration,
        ListColumn::Command,
    ];

    /// Its name. In capitals it is the heading.
    pub fn name(self) -> &'static str {
        match self {
            ListColumn::Id => "id",
            ListColumn::State => "state",
            ListColumn::Exit => "exit",
            ListColumn::Attempt => "attempt",
            ListColumn::Priority => "priority",
            ListColumn::Worker => "worker",
            ListColumn::Age => "age",
            ListColumn::Duration => "duration",
            ListColumn::Command => "command",
        }
    }

    /// The column of this name.
    pub fn from_name(name: &str) -> Option<ListColumn> {
        ListColumn::ALL.into_iter().find(|column| column.name() == name)
    }
}

/// One task of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The task, or the line of a batch.
    pub name: String,
    /// What it is, or why it can't be read.
    pub task: Result<RowTask, Unreadable>,
}

/// Why a list shows nothing of a task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Its znode is no task.
    #[error("{0}")]
    Malformed(Malformed),
    /// It may not be read.
    #[error("{0}")]
    Refused(Refusal),
}

/// What a list shows of a task.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct RowTask {
    pub status: TaskStatus,
    /// Of a line that is not over nobody knows.
    pub attempt: Option<u32>,
    /// Its own priority; the job's default is not read.
    pub priority: i32,
    /// Who has it, or had it to its end.
    pub worker: Option<Incarnation>,
    /// When its znode was created, in ms since 1970 by the ensemble's clock.
    pub created_ms: i64,
    /// How long ago that was when the list began, in ms.
    pub age_ms: i64,
    /// How it ended, without its outputs.
    pub outcome: Option<Outcome>,
    /// The start of its command, on one line.
    pub command: String,
}

/// All about one task, or one line of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// The task.
    pub id: TaskId,
    /// The line that was asked for, if one was.
    pub line: Option<ShownLine>,
    /// The data of its znode.
    pub task: Task,
    /// Of its znode.
    pub stat: Stat,
    /// What holds for it: its own options, and its job's where it has none.
    pub options: Options,
    /// Who has it, if it is in a live worker's assignment.
    pub worker: Option<Incarnation>,
    /// Why it has no outcome: all reasons that apply.
    pub reasons: Vec<WaitReason>,
}

/// A line of a batch that is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownLine {
    /// Its name.
    pub name: LineName,
    /// Its position in its task.
    pub position: usize,
    /// Its state.
    pub status: TaskStatus,
}

impl Shown {
    /// Its state.
    pub fn status(&self) -> TaskStatus {
        self.line
            .as_ref()
            .map_or_else(|| TaskStatus::of(&self.task, self.worker.as_ref()), |line| line.status)
    }
}

/// What became of a wish about a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// The task, or the job, as far as the user's words could be understood.
    pub id: String,
    /// `cancel`, `retry` or `delete`.
    pub verb: &'static str,
    /// Whether the wish is, or need not be, fulfilled.
    pub ok: bool,
    /// What happened.
    pub message: String,
}

/// The exit code that says how a task ended.
pub fn exit_code(outcome: &Outcome) -> i32 {
    // A foreign outcome may say anything; 0 is for the tasks that are done alone.
    let failing = |code: Option<i32>| code.filter(|code| (1..=255).contains(code)).unwrap_or(exit::FAILED);
    let by_signal = |signal: Option<i32>| failing(signal.and_then(|n| n.checked_add(exit::SIGNAL_BASE)));
    match (outcome.state, outcome.reason) {
        (State::Done, _) => exit::OK,
        (State::Cancelled | State::Expired, _)
        | (State::Failed, Some(Reason::Poison | Reason::Cancelled | Reason::Expired)) => exit::FAILED,
        (State::Failed, Some(Reason::Exit)) => failing(outcome.exit_code),
        (State::Failed, Some(Reason::Signal)) => by_signal(outcome.signal),
        (State::Failed, Some(Reason::Timeout)) => exit::TIMEOUT,
        (State::Failed, Some(Reason::NotStarted)) => not_started_code(outcome),
        (State::Failed, Some(Reason::Handler)) => exit::FAILED,
        (State::Failed, None) if outcome.signal.is_some() => by_signal(outcome.signal),
        (State::Failed, None) => failing(outcome.exit_code),
    }
}

/// As a shell has it: 127 for a program that is missing, 126 for one that can't be run. The contract has no field
/// for that; a worker's words show it (`exec` says "cannot start" of a program that is there), and 127 is the guess.
fn not_started_code(outcome: &Outcome) -> i32 {
    let is_there = |detail: &String| {
        let detail = detail.to_ascii_lowercase();
        detail.contains("cannot start") || detail.contains("permission denied")
    };
    match outcome.exit_code {
        Some(code @ (126 | 127)) => code,
        _ if outcome.detail.as_ref().is_some_and(is_there) => 126,
        _ => 127,
    }
}

/// How a task ended, in words that follow its id.
pub fn verdict(outcome: &Outcome) -> String {
    let mut text = match (outcome.state, outcome.reason) {
        (State::Done, _) => "succeeded".to_string(),
        (State::Cancelled, _) => "was cancelled".to_string(),
        (State::Expired, _) => "expired before it was started".to_string(),
        (State::Failed, Some(Reason::Timeout)) => "ran past its timeout and was killed".to_string(),
        (State::Failed, Some(Reason::Poison)) => "was given up: its workers died under it".to_string(),
        (State::Failed, Some(Reason::NotStarted)) => "could not be started".to_string(),
        (State::Failed, reason) => match (reason, outcome.exit_code, outcome.signal) {
            (Some(Reason::Signal) | None, _, Some(signal)) => format!("was killed by signal {signal}"),
            (_, Some(code), _) => format!("failed with exit code {code}"),
            _ => "failed".to_string(),
        },
    };
    if let Some(detail) = outcome.detail.as_ref().filter(|detail| !detail.is_empty()) {
        text.push_str(": ");
        text.push_str(detail);
    }
    text
}

/// Whether the exit code alone says how it ended.
pub fn is_plain(outcome: &Outcome) -> bool {
    outcome.state == State::Done
        || (outcome.state == State::Failed
            && outcome.reason == Some(Reason::Exit)
            && outcome.exit_code == Some(exit_code(outcome)))
}

/// Nothing that a terminal would obey: such words may come from anybody's znode.
pub fn clean(text: &str) -> String {
    let visible = |c: char| if c.is_control() { c.escape_default().collect() } else { vec![c] };
    text.chars().flat_map(visible).collect()
}

/// As much of a command as has room on a line, cleaned.
pub fn start_of(command: &str) -> String {
    match command.char_indices().nth(MAX_COMMAND_CHARS) {
        Some((end, _)) => clean(&command[..end]) + "…",
        None => clean(command),
    }
}

/// A number of bytes in words, rounded down: `512 B`, `3.1 MiB`, `1 GiB`.
pub fn sized(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >> shift > 0 {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return match (tenths / 10, tenths % 10) {
                (whole, 0) => format!("{whole} {unit}"),
                (whole, tenth) => format!("{whole}.{tenth} {unit}"),
            };
        }
    }
    format!("{bytes} B")
}

/// The exit code for a refusal that nothing can be done about.
pub fn refusal_code(refusal: Refusal) -> i32 {
    match refusal {
        Refusal::NoAuth => exit::NOT_PERMITTED,
        Refusal::TooLarge | Refusal::Other(QUOTA_EXCEEDED) => exit::TOO_MUCH,
        Refusal::BadArguments => exit::DATA,
        Refusal::NoNode | Refusal::NodeExists | Refusal::BadVersion | Refusal::NotEmpty => exit::TRY_AGAIN,
        // An ensemble that cannot do what is needed: nothing of this process has to be changed for that.
        Refusal::NoChildrenForEphemerals | Refusal::Unimplemented | Refusal::Other(_) => exit::TRY_AGAIN,
    }
}

/// Whether the event shows that the connection is gone, even if its `Lost` is still to come: whatever is asked of
/// it now will not be sent, and asking again for what has just failed would go on and on.
pub fn breaks_connection(event: &Event) -> bool {
    match event {
        Event::Lost { .. } => true,
        Event::Reply { result, .. } => answered(result).is_none(),
        Event::Connected { .. }
        | Event::Changed { .. }
        | Event::Wake
        | Event::Stop { .. }
        | Event::Started { .. }
        | Event::NotStarted { .. }
        | Event::Ended { .. }
        | Event::SlotsLost { .. }
        | Event::Lines(_) => false,
    }
}

/// A client can't do what it was asked to do; found before anything was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// The exit code that goes with it.
    pub code: i32,
    /// What is wrong, and with what.
    pub why: String,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Unfit {}

/// The common exit code of several tasks: theirs if all that went wrong went wrong in one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    code: Option<i32>,
}

impl Tally {
    /// Counts something that went wrong.
    pub fn wrong(&mut self, code: i32) {
        self.code = Some(match self.code {
            None => code,
            Some(same) if same == code => code,
            Some(_) => exit::FAILED,
        });
    }

    /// The code.
    pub fn code(self) -> i32 {
        self.code.unwrap_or(exit::OK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(reason: Option<Reason>, exit_code: Option<i32>, signal: Option<i32>) -> Outcome {
        Outcome { exit_code, signal, ..Outcome::unrun(State::Failed, reason, "", 1) }
    }

    #[test]
    fn a_task_ends_as_its_program_did() {
        let code = |outcome: Outcome| exit_code(&outcome);
        assert_eq!(code(Outcome::unrun(State::Done, None, "", 1)), 0);
        assert_eq!(code(failed(Some(Reason::Exit), Some(7), None)), 7);
        assert_eq!(code(failed(Some(Reason::Signal), None, Some(9))), 137);
        assert_eq!(code(failed(Some(Reason::Timeout), None, Some(9))), 124);
        assert_eq!(code(failed(Some(Reason::Poison), None, None)), 1);
        assert_eq!(code(Outcome::unrun(State::Cancelled, None, "", 1)), 1);
        assert_eq!(code(Outcome::unrun(State::Expired, None, "", 1)), 1);
        let not_started = |why: &str| Outcome::unrun(State::Failed, Some(Reason::NotStarted), why, 1);
        assert_eq!(code(not_started("no such program: \"x\" is not in PATH")), 127);
        assert_eq!(code(not_started("cannot start \"x\": it is a directory")), 126);
        assert_eq!(code(not_started("Permission denied (os error 13)")), 126);
    }

    #[test]
    fn a_failure_never_appears_as_a_success() {
        for outcome in [
            failed(Some(Reason::Exit), Some(0), None),
            failed(Some(Reason::Exit), Some(256), None),
            failed(Some(Reason::Exit), None, None),
            failed(Some(Reason::Signal), None, Some(i32::MAX)),
            failed(Some(Reason::Signal), None, Some(-128)),
            failed(None, None, None),
        ] {
            assert_eq!(exit_code(&outcome), 1, "{outcome:?}");
            assert!(!is_plain(&outcome));
        }
    }

    #[test]
    fn sizes_are_in_the_largest_unit_that_fits() {
        let all = [(0, "0 B"), (1_023, "1023 B"), (1_024, "1 KiB"), (1_600, "1.5 KiB"), (1 << 30, "1 GiB")];
        for (bytes, text) in all {
            assert_eq!(sized(bytes), text);
        }
        assert_eq!((sized(3_300_000), sized(u64::MAX)), ("3.1 MiB".into(), "16777215.9 TiB".into()));
    }

    #[test]
    fn several_faults_of_one_kind_keep_their_code() {
        let mut tally = Tally::default();
        assert_eq!(tally.code(), 0);
        tally.wrong(65);
        tally.wrong(65);
        assert_eq!(tally.code(), 65);
        tally.wrong(77);
        assert_eq!(tally.code(), 1);
    }
}
