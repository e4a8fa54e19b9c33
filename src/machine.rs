//! The vocabulary of the state machines: what can happen to a role, and what it can ask for.
//!
//! A role is a pure state machine: [`turn`] gives it the time and one [`Event`], and it puts [`Action`]s into
//! [`Actions`]. It owns no thread, channel, clock, file, process or random number, so the same code runs under
//! the shell on a real ensemble and under a simulator.
//!
//! Three promises of the driver of a role:
//!
//! 1. **Every call is answered exactly once**, by an [`Event::Reply`] with its id, and before the
//!    [`Event::Lost`] of the connection it was made on. A call that was in flight when the connection broke is
//!    answered with [`CallError::MaybeApplied`], one that had not left the process with [`CallError::NotSent`].
//! 2. **A connection is a session.** After `Lost` nothing is connected until the next `Connected`, which is a
//!    *new* session: watches are gone, the old session's ephemerals may still exist for a while, and a write
//!    that was in doubt may even be applied later, until the old session is dead.
//! 3. **Actions are carried out in the order in which they were put in.** If one that shows something to the
//!    user fails, the program ends before the next.
//!
//! Calls in one turn run concurrently, so no two calls may be in flight whose order matters.

mod calls;
mod prng;
mod short;

use std::fmt;
use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::calls::{Answer, Calls, Routed, answered, if_exists};
pub use self::prng::Prng;

/// A point in time on a clock that goes on while the machine is suspended (`CLOCK_BOOTTIME`), in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

impl Instant {
    /// The instant `nanos` nanoseconds after the clock's zero.
    pub const fn from_nanos(nanos: u64) -> Instant {
        Instant(nanos)
    }

    /// Nanoseconds since the clock's zero.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, by: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Names a call for as long as the process lives; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// Names a process group that a role asked for; never used twice in the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunId(pub u64);

/// How a znode is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateMode {
    /// Stays until it is deleted.
    Persistent,
    /// Goes with the session.
    Ephemeral,
    /// Goes with the session; the server appends ten digits that rise with every child of the parent.
    EphemeralSequential,
}

/// What a persistent watch covers. Both kinds stay until the session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchMode {
    /// One znode: created, data changed, deleted, and children changed.
    Node,
    /// A znode and all below it: created, data changed, deleted. (Needs ZooKeeper 3.6.)
    Tree,
}

/// One request to the ensemble. Every write is create-only or checked against a version.
///
/// Paths are absolute within the connect string's chroot. Of data `Debug` shows no more than its size: it may be
/// large, and users have secrets in it.
#[derive(Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Call {
    /// Answered by [`Reply::Created`].
    Create { path: String, data: Vec<u8>, mode: CreateMode },
    /// Answered by [`Reply::Stat`].
    Set { path: String, data: Vec<u8>, version: i32 },
    /// `version: None` deletes any version: only for a znode whose name is never used again.
    /// Answered by [`Reply::Deleted`].
    Delete { path: String, version: Option<i32> },
    /// With `watch`, one change of the znode is reported. Answered by [`Reply::Data`].
    Get { path: String, watch: bool },
    /// With `watch`, one change of the znode (its creation, if it isn't there) is reported. Answered by
    /// [`Reply::Stat`], or refused with [`Refusal::NoNode`]; the watch is set in that case too.
    Exists { path: String, watch: bool },
    /// Answered by [`Reply::Children`], in no order.
    Children { path: String },
    /// Answered by [`Reply::Acl`].
    Acl { path: String },
    /// Answered by [`Reply::Watching`].
    Watch { path: String, mode: WatchMode },
}

impl Call {
    /// The path the call is about.
    pub fn path(&self) -> &str {
        match self {
            Call::Create { path, .. }
            | Call::Set { path, .. }
            | Call::Delete { path, .. }
            | Call::Get { path, .. }
            | Call::Exists { path, .. }
            | Call::Children { path }
            | Call::Acl { path }
            | Call::Watch { path, .. } => path,
        }
    }

    /// Whether the ensemble has to agree on it.
    pub fn is_write(&self) -> bool {
        matches!(self, Call::Create { .. } | Call::Set { .. } | Call::Delete { .. })
    }
}

/// What the ensemble keeps about a znode. Times are milliseconds since 1970 on the ensemble's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// The transaction that created the znode.
    pub czxid: i64,
    /// The transaction that last changed its data.
    pub mzxid: i64,
    /// When it was created.
    pub ctime_ms: i64,
    /// When its data last changed.
    pub mtime_ms: i64,
    /// How often its data changed.
    pub version: i32,
    /// The session it goes with; 0 for a persistent znode.
    pub ephemeral_owner: i64,
    /// Bytes of data.
    pub data_length: i32,
    /// How many children it has.
    pub num_children: i32,
    /// The transaction that last created or deleted a child.
    pub pzxid: i64,
}

/// The good answer to a [`Call`]. Of data and children `Debug` shows no more than their size.
#[derive(Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reply {
    /// The path as created, with the sequence number if one was asked for.
    Created {
        path: String,
    },
    Stat(Stat),
    Deleted,
    Data {
        data: Vec<u8>,
        stat: Stat,
    },
    Children(Vec<String>),
    /// Whether anybody may create znodes below, without credentials.
    Acl {
        open: bool,
    },
    Watching,
}

/// Why ZooKeeper, or the session layer before it, refused a call. It was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such znode (or, for a create, no parent).
    NoNode,
    /// There is one already.
    NodeExists,
    /// The znode's version is another.
    BadVersion,
    /// It has children.
    NotEmpty,
    /// The ACL forbids it.
    NoAuth,
    /// The parent is ephemeral.
    NoChildrenForEphemerals,
    /// More data than the session layer lets through, or than the servers take in one request: they hang up on it.
    TooLarge,
    /// Not a path, or otherwise not a call that can be made.
    BadArguments,
    /// The server does not know this kind of call: it is older than 3.6.
    Unimplemented,
    /// Any other code of the server's.
    Other(i32),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoNode => f.write_str("no such znode"),
            Refusal::NodeExists => f.write_str("the znode exists already"),
            Refusal::BadVersion => f.write_str("the znode was changed by someone else"),
            Refusal::NotEmpty => f.write_str("the znode has children"),
            Refusal::NoAuth => f.write_str("not permitted by the znode's ACL"),
            Refusal::NoChildrenForEphemerals => f.write_str("the parent is ephemeral"),
            Refusal::TooLarge => {
                f.write_str("more data than the servers take in one request (see jute.maxbuffer)")
            }
            Refusal::BadArguments => f.write_str("not a valid path"),
            Refusal::Unimplemented => {
                f.write_str("the server does not know this request (zkmw needs ZooKeeper 3.6 or later)")
            }
            Refusal::Other(code) => write!(f, "ZooKeeper error {code}"),
        }
    }
}

/// Why a call has no good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// It never left the process.
    NotSent,
    /// It may be applied, now or later, until its session is dead.
    MaybeApplied,
    /// It was not applied.
    Refused(Refusal),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::NotSent => f.write_str("not sent: no connection"),
            CallError::MaybeApplied => f.write_str("the connection was lost before the answer came"),
            CallError::Refused(refusal) => refusal.fmt(f),
        }
    }
}

/// The result of a call.
pub type CallResult = Result<Reply, CallError>;

/// A change that a watch reports. It is a hint to read again, and carries no data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ChangeKind {
    Created,
    Deleted,
    Data,
    Children,
}

/// What is to be run, as a process group of its own with an empty standard input; or, with a `request`, by a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSpec {
    /// Program and arguments; a shell line is `["/bin/sh", "-c", line]`.
    pub argv: Vec<String>,
    /// Added to the environment.
    pub env: Vec<(String, String)>,
    /// With it `argv` is the program of a handler: a process that outlives the run, takes this line (which has no
    /// line's end) on its standard input, and answers with one line on its standard output. The request's id is the
    /// number of its [`RunId`]: the answer has to repeat it. A handler has one run at a time; runs of one executor
    /// that have requests have the same `argv` and `env`.
    pub request: Option<String>,
    /// What becomes of its standard output and error.
    pub output: RunOutput,
}

/// What becomes of a run's standard output and error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunOutput {
    /// Kept, up to so many bytes of each: the first half and the last.
    Capture {
        /// Bytes kept of each stream.
        limit: usize,
    },
    /// Passed on to our own.
    Inherit,
}

/// What was kept of an output stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// The first bytes; all of them if `omitted` is 0.
    pub head: Vec<u8>,
    /// How many bytes between head and tail were dropped.
    pub omitted: u64,
    /// The last bytes, if any were dropped.
    pub tail: Vec<u8>,
}

/// Why a start failed, as far as it matters to what is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotStartedKind {
    /// The program or its arguments are at fault: it would fail again.
    Permanent,
    /// Something that passes by itself: the program is being written, there was no keeper of slots for a moment.
    Transient,
    /// This process, or its machine, is short of descriptors, processes or memory: whatever is started next may fail
    /// as well.
    Shortage,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// It returned this code, 0 to 255.
    Exit(i32),
    /// This signal killed it.
    Signal(i32),
    /// Its handler gave no answer that could be understood; [`RunReport::detail`] says more.
    Broken,
}

/// What is known of a run when every process of its group is dead. Times are ms since 1970, this host's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RunReport {
    pub ended: Ended,
    /// More about it, in words for people.
    pub detail: Option<String>,
    pub stdout: Captured,
    pub stderr: Captured,
    pub started_ms: i64,
    pub ended_ms: i64,
    /// A signal of ours came while its leader still lived, or its slot killed it when the lease was over; else it ended
    /// without us.
    pub signalled: bool,
}

/// What to send to a process group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum GroupSignal {
    Term,
    Kill,
}

/// One line of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchLine {
    /// 0-based number of the line in its file.
    pub number: u64,
    /// The line, without its end; not empty.
    pub text: String,
}

/// What can happen to a role.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Event {
    /// A new session is up; `timeout` is what the servers granted. Check the own ephemerals, read everything
    /// again, set the watches again.
    Connected { timeout: Duration },
    /// The connection, and with it the session, is gone. Ephemerals of it may exist for up to its timeout.
    Lost { why: String },
    /// A znode under a watch changed.
    Changed { path: String, kind: ChangeKind },
    /// The answer to a call.
    Reply { id: CallId, result: CallResult },
    /// The time that [`Role::next_wake`] asked for has come.
    Wake,
    /// The user wants an end: `again` when it is not the first time.
    Stop { again: bool },
    /// The process group runs; `pid` is its leader.
    Started { run: RunId, pid: u32 },
    /// The program could not be started, for this reason.
    NotStarted { run: RunId, kind: NotStartedKind, why: String },
    /// The run is over, and every process of its group is dead.
    Ended { run: RunId, report: RunReport },
    /// All that ran gets SIGKILL, and is reported as `Ended` after this: the keeper of slots is gone, or the lease was
    /// renewed too late. Nothing starts until there is another keeper.
    SlotsLost { why: String },
    /// The lines that [`Action::ReadLines`] asked for; fewer than asked for means that there are no more.
    Lines(Vec<BatchLine>),
}

/// How bad a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Level {
    Error,
    Warn,
    /// What a person at a terminal wants to know, and a log need not.
    Notice,
    Info,
    Debug,
}

/// What a role can ask for. `R` is what the role reports to its user.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Action<R> {
    Call {
        id: CallId,
        call: Call,
    },
    /// Answered by `Started` and `Ended`, or by `NotStarted`.
    Run {
        run: RunId,
        spec: RunSpec,
    },
    /// To every process of the group; nothing happens if it is gone.
    Signal {
        run: RunId,
        signal: GroupSignal,
    },
    /// What runs may run until then, and what is started from now on may begin before then: its slot kills it
    /// at that time, whatever became of this process. The last one counts; before the first, nothing may run.
    Lease(Instant),
    /// For the user, in the form that he chose; shown and flushed before the next action.
    Report(R),
    /// For the log.
    Log(Level, String),
    /// One line for the service manager.
    Status(String),
    /// Send up to so many further lines of the batch.
    ReadLines(usize),
    /// Close the session, then end the process with this code.
    Exit(i32),
}

/// What a turn asks for, in order; and the source of call and run ids.
#[derive(Debug)]
pub struct Actions<R> {
    list: Vec<Action<R>>,
    next_id: u64,
}

impl<R> Default for Actions<R> {
    fn default() -> Self {
        Actions { list: Vec::new(), next_id: 1 }
    }
}

impl<R> Actions<R> {
    /// Asks for anything.
    pub fn push(&mut self, action: Action<R>) {
        self.list.push(action);
    }

    /// Says why the role cannot go on, and ends it with this code (see [`crate::exit`]).
    pub fn fail(&mut self, code: i32, why: impl Into<String>) {
        self.log(Level::Error, why);
        self.push(Action::Exit(code));
    }

    /// Logs a message.
    pub fn log(&mut self, level: Level, text: impl Into<String>) {
        self.push(Action::Log(level, text.into()));
    }

    /// A number that was never given out before.
    pub fn fresh_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Starts a run and returns its name.
    pub fn run(&mut self, spec: RunSpec) -> RunId {
        let run = RunId(self.fresh_id());
        self.push(Action::Run { run, spec });
        run
    }

    /// Takes what was asked for, in order.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Action<R>> {
        self.list.drain(..)
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// A role as a pure state machine. Only [`turn`] calls `step`.
pub trait Role {
    /// What the role reports to its user.
    type Report;

    /// Takes in one event.
    fn step(&mut self, now: Instant, event: Event, out: &mut Actions<Self::Report>);

    /// When the role wants to be woken if nothing happens before. It may be earlier than now.
    fn next_wake(&self) -> Option<Instant>;

    /// Panics when the state contradicts itself. Called after every turn, in release builds too.
    fn assert_invariants(&self);
}

/// One turn of a role: the only way in which anything happens to it.
pub fn turn<T: Role>(role: &mut T, now: Instant, event: Event, out: &mut Actions<T::Report>) {
    role.step(now, event, out);
    role.assert_invariants();
}

/// The earlier of two wishes to be woken.
pub fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_saturates() {
        let late = Instant::from_nanos(5);
        assert_eq!(Instant::from_nanos(3).since(late), Duration::ZERO);
        assert_eq!(late + Duration::MAX, Instant::from_nanos(u64::MAX));
    }
}
