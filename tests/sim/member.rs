//! A process of zkmw: a production role, the events on their way to it, and the loop that plays the shell's part.
//! Its surroundings (connection, runs, chance) belong to others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use zkmw::machine::{
    Action, Actions, BatchLine, CallError, CallId, CallResult, ChangeKind, Event, Instant, Role, RunId, turn,
};
use zkmw::roles::client::ClientReport;
use zkmw::roles::{elector, master, worker};

use super::net::Net;
use super::users::ClientSpec;

/// A member's index, and one of its lives. An event for an earlier life is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    pub m: usize,
    pub life: u64,
}

/// The reports of roles to their users.
#[derive(Clone, Debug)]
pub enum Shown {
    Client(ClientReport),
    Elector,
}

/// A role of any kind.
pub trait Program {
    fn turn(&mut self, now: Instant, event: Event);
    fn next_wake(&self) -> Option<Instant>;
    fn drain(&mut self) -> Vec<Action<Shown>>;
}

/// How a report of a role is kept.
pub trait Show {
    fn show(self) -> Shown;
}

impl Show for ClientReport {
    fn show(self) -> Shown {
        Shown::Client(self)
    }
}

impl Show for elector::Report {
    fn show(self) -> Shown {
        Shown::Elector
    }
}

impl Show for master::Report {
    fn show(self) -> Shown {
        match self {}
    }
}

impl Show for worker::Report {
    fn show(self) -> Shown {
        match self {}
    }
}

/// A role with its actions that are not carried out yet.
pub struct Playing<R: Role> {
    role: R,
    out: Actions<R::Report>,
}

impl<R: Role> Playing<R> {
    pub fn new(role: R) -> Playing<R> {
        Playing { role, out: Actions::default() }
    }
}

impl<R: Role<Report: Show>> Program for Playing<R> {
    fn turn(&mut self, now: Instant, event: Event) {
        turn(&mut self.role, now, event, &mut self.out);
    }

    fn next_wake(&self) -> Option<Instant> {
        self.role.next_wake()
    }

    fn drain(&mut self) -> Vec<Action<Shown>> {
        let show = |action: Action<R::Report>| match action {
            Action::Call { id, call } => Action::Call { id, call },
            Action::Run { run, spec } => Action::Run { run, spec },
            Action::Signal { run, signal } => Action::Signal { run, signal },
            Action::Lease(until) => Action::Lease(until),
            Action::Report(report) => Action::Report(report.show()),
            Action::Log(level, text) => Action::Log(level, text),
            Action::Status(text) => Action::Status(text),
            Action::ReadLines(count) => Action::ReadLines(count),
            Action::Exit(code) => Action::Exit(code),
        };
        self.out.drain().map(show).collect()
    }
}

/// The kind of a member.
#[derive(Clone, Debug)]
pub enum Kind {
    Master,
    /// `name` is its number: two members may have one.
    Worker {
        name: u64,
        slots: u32,
        zone: bool,
    },
    Elector {
        once: bool,
    },
    Client(Box<ClientSpec>),
}

impl Kind {
    /// Whether it runs processes.
    pub fn runs(&self) -> bool {
        matches!(self, Kind::Worker { .. } | Kind::Elector { .. })
    }

    pub fn is_client(&self) -> bool {
        matches!(self, Kind::Client(_))
    }
}

/// A clock that was set some time and goes at a rate of its own.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub offset: u64,
    /// Parts per million that it is fast.
    pub drift: i64,
}

impl Clock {
    /// The time that it shows at this true time.
    pub fn at(self, now: u64) -> Instant {
        let gained = i128::from(now) * i128::from(self.drift) / 1_000_000;
        Instant::from_nanos(u64::try_from(i128::from(self.offset) + i128::from(now) + gained).unwrap_or(0))
    }

    /// When it will show this, or a little later.
    pub fn when(self, shown: Instant) -> u64 {
        let shown = i128::from(shown.as_nanos()) - i128::from(self.offset);
        u64::try_from(shown.max(0) * 1_000_000 / (1_000_000 + i128::from(self.drift))).unwrap_or(0) + 2
    }
}

/// An event of the session layer.
#[derive(Debug)]
pub enum SessionEvent {
    Up { generation: u64, timeout: std::time::Duration },
    Down { generation: u64, why: String },
    Changed { generation: u64, path: String, kind: ChangeKind },
    Reply { id: CallId, result: CallResult },
}

/// How many of its last log lines are kept of each member.
const WORDS: usize = 14;

/// A process, live or ended.
pub struct Member {
    pub name: String,
    pub kind: Kind,
    pub life: u64,
    pub program: Option<Box<dyn Program>>,
    pub clock: Clock,
    pub sessions: VecDeque<SessionEvent>,
    pub execs: VecDeque<Event>,
    /// Signals to end that were not seen yet, and whether one was.
    pub signals: u32,
    pub signalled: bool,
    /// The connection that the role knows of, and the calls that it awaits.
    pub known: Option<u64>,
    pub outstanding: BTreeSet<CallId>,
    pub generation: u64,
    pub net: Option<Net>,
    /// The next pause after a failed round, and after a connection that lived for a short time.
    pub pause: u64,
    pub flapped: u64,
    /// It is suspended until then.
    pub stopped: u64,
    /// Every turn takes up to so long, until then.
    pub slow: (u64, u64),
    pub turning: bool,
    pub wake: u64,
    /// The lease as the keeper knows it, and the time at which the next keeper is ready.
    pub lease: Option<Instant>,
    pub without_keeper: u64,
    pub runs: BTreeMap<RunId, usize>,
    pub lines: VecDeque<BatchLine>,
    pub words: VecDeque<String>,
    /// It is started again when it has ended.
    pub comes_back: bool,
    /// Since when it was asked to end, in this life.
    pub asked: Option<u64>,
}

impl Member {
    pub fn new(name: String, kind: Kind, clock: Clock) -> Member {
        let comes_back = !kind.is_client();
        Member {
            name,
            kind,
            life: 0,
            program: None,
            clock,
            sessions: VecDeque::new(),
            execs: VecDeque::new(),
            signals: 0,
            signalled: false,
            known: None,
            outstanding: BTreeSet::new(),
            generation: 0,
            net: None,
            pause: 0,
            flapped: 0,
            stopped: 0,
            slow: (0, 0),
            turning: false,
            wake: u64::MAX,
            lease: None,
            without_keeper: 0,
            runs: BTreeMap::new(),
            lines: VecDeque::new(),
            words: VecDeque::new(),
            comes_back,
            asked: None,
        }
    }

    /// Drops everything that was under way to the process.
    pub fn forget(&mut self) {
        self.program = None;
        self.sessions.clear();
        self.execs.clear();
        self.signals = 0;
        self.signalled = false;
        self.known = None;
        self.outstanding.clear();
        self.net = None;
        self.pause = 0;
        self.flapped = 0;
        self.stopped = 0;
        self.slow = (0, 0);
        self.turning = false;
        self.wake = u64::MAX;
        self.lease = None;
        self.without_keeper = 0;
        self.runs.clear();
        self.asked = None;
    }

    /// Keeps the last log lines.
    pub fn say(&mut self, words: String) {
        if self.words.len() >= WORDS {
            self.words.pop_front();
        }
        self.words.push_back(words);
    }

    /// Whether anything waits to be taken in, besides time.
    pub fn has_input(&self) -> bool {
        !self.sessions.is_empty() || !self.execs.is_empty() || self.signals > 0
    }

    /// The next event of the session layer, as the shell would give it to the role.
    pub fn hear(&mut self, now: Instant) -> Option<Event> {
        match self.sessions.pop_front()? {
            SessionEvent::Up { generation, timeout } => {
                self.known = Some(generation);
                Some(Event::Connected { timeout })
            }
            SessionEvent::Down { generation, why } => {
                if self.known != Some(generation) {
                    return None;
                }
                self.known = None;
                let program = self.program.as_mut()?;
                for id in std::mem::take(&mut self.outstanding) {
                    program.turn(now, Event::Reply { id, result: Err(CallError::NotSent) });
                }
                Some(Event::Lost { why })
            }
            SessionEvent::Changed { generation, path, kind } => {
                (self.known == Some(generation)).then_some(Event::Changed { path, kind })
            }
            SessionEvent::Reply { id, result } => {
                self.outstanding.remove(&id).then_some(Event::Reply { id, result })
            }
        }
    }
}
