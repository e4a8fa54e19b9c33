//! Test support for clients. [`ClientDriver`] holds a few znodes in memory and applies the calls of one role to them,
//! one at a time, so that a test can inspect each call, lose its answer, or act between two calls. It keeps versions,
//! one-shot watches and persistent watches. It is no ensemble: it has no sessions and does not reorder. The simulator
//! has both.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::{ClientReport, Ended, breaks_connection};
use crate::contract::parent_of;
use crate::contract::status::{Admission, Counts, LeaderStatus, Status};
use crate::contract::task::{Outcome, Reason, State, Task};
use crate::machine::{
    Action, Actions, BatchLine, Call, CallError, CallId, CallResult, ChangeKind, Event, Instant, Level,
    Refusal, Reply, Role, Stat, WatchMode, turn,
};

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is carried out and answered.
    Answered,
    /// It is carried out, its answer is lost, and the connection with it.
    AppliedUnanswered,
    /// It is not carried out, and its answer is lost with the connection.
    DroppedUnanswered,
    /// It did not leave the process, and the connection is lost.
    NotSent,
    /// It is refused for this reason.
    Refused(Refusal),
}

/// A role and the znodes that it works on.
pub struct ClientDriver<T: Role<Report = ClientReport>> {
    pub role: T,
    pub znodes: BTreeMap<String, (Vec<u8>, Stat)>,
    pub reports: Vec<ClientReport>,
    pub logs: Vec<(Level, String)>,
    pub exit: Option<i32>,
    /// Every call that was made.
    pub made: Vec<Call>,
    /// Calls that were not answered yet.
    pub pending: VecDeque<(CallId, Call)>,
    pub now: Instant,
    /// Lines of the batch that were not read yet.
    pub lines: VecDeque<BatchLine>,
    zxid: i64,
    once: BTreeSet<String>,
    trees: BTreeSet<String>,
    /// Events that were not delivered to the role yet.
    pub changes: VecDeque<Event>,
    pub online: bool,
    /// Znodes below which not everybody may create.
    pub closed: BTreeSet<String>,
    out: Actions<ClientReport>,
}

impl<T: Role<Report = ClientReport>> ClientDriver<T> {
    /// A driver with these persistent znodes, in this order.
    pub fn new(role: T, paths: &[&str]) -> ClientDriver<T> {
        let mut driver = ClientDriver {
            role,
            znodes: BTreeMap::new(),
            reports: Vec::new(),
            logs: Vec::new(),
            exit: None,
            made: Vec::new(),
            pending: VecDeque::new(),
            now: Instant::default(),
            lines: VecDeque::new(),
            zxid: 100,
            once: BTreeSet::new(),
            trees: BTreeSet::new(),
            changes: VecDeque::new(),
            online: false,
            closed: BTreeSet::new(),
            out: Actions::default(),
        };
        for path in paths {
            driver.put(path, b"");
        }
        driver
    }

    /// Somebody else writes a znode.
    pub fn put(&mut self, path: &str, data: &[u8]) {
        match self.znodes.get(path).map(|(_, stat)| stat.version) {
            None => drop(self.apply(&Call::Create {
                path: path.into(),
                data: data.to_vec(),
                mode: crate::machine::CreateMode::Persistent,
            })),
            Some(version) => {
                drop(self.apply(&Call::Set { path: path.into(), data: data.to_vec(), version }));
            }
        }
    }

    /// Somebody else deletes a znode.
    pub fn remove(&mut self, path: &str) {
        drop(self.apply(&Call::Delete { path: path.into(), version: None }));
    }

    /// The task at this path.
    pub fn task(&self, path: &str) -> Task {
        Task::decode(&self.znodes[path].0).expect("a task")
    }

    /// A worker ends the task.
    pub fn end(&mut self, path: &str, outcome: Outcome) {
        let mut task = self.task(path);
        task.outcome = Some(outcome);
        self.put(path, &task.encode());
    }

    /// The role takes in an event.
    pub fn event(&mut self, event: Event) {
        assert_eq!(self.exit, None, "the process has ended before {event:?}");
        let broken = breaks_connection(&event);
        turn(&mut self.role, self.now, event, &mut self.out);
        let actions: Vec<_> = self.out.drain().collect();
        let calls = actions.iter().any(|action| matches!(action, Action::Call { .. }));
        assert!(
            !(broken && calls),
            "a call on a connection that has just been reported as lost: {actions:?}"
        );
        for action in actions {
            assert_eq!(self.exit, None, "{action:?} after the end");
            match action {
                Action::Call { id, call } => {
                    assert!(self.online, "{call:?} without a connection");
                    self.made.push(call.clone());
                    self.pending.push_back((id, call));
                }
                Action::Report(report) => self.reports.push(report),
                Action::Log(level, text) => self.logs.push((level, text)),
                Action::Exit(code) => self.exit = Some(code),
                Action::ReadLines(n) => {
                    let n = n.min(self.lines.len());
                    let lines = self.lines.drain(..n).collect();
                    self.changes.push_back(Event::Lines(lines));
                }
                other => panic!("a client asked for {other:?}"),
            }
        }
    }

    /// A new session comes up.
    pub fn connect(&mut self) {
        self.online = true;
        self.event(Event::Connected { timeout: Duration::from_secs(10) });
    }

    /// The connection breaks: calls without an answer may or may not have been applied.
    pub fn lose(&mut self) {
        while let Some((id, _)) = self.pending.pop_front() {
            self.event(Event::Reply { id, result: Err(CallError::MaybeApplied) });
            if self.exit.is_some() {
                return;
            }
        }
        self.online = false;
        self.once.clear();
        self.trees.clear();
        self.changes.retain(|event| matches!(event, Event::Lines(_)));
        self.event(Event::Lost { why: "test".into() });
    }

    /// Gives the next call this fate, then delivers what watches saw. False if there was no call.
    pub fn play(&mut self, fate: Fate) -> bool {
        let Some((id, call)) = self.pending.pop_front() else { return false };
        let result = match fate {
            Fate::Answered => self.apply(&call),
            Fate::AppliedUnanswered => {
                drop(self.apply(&call));
                Err(CallError::MaybeApplied)
            }
            Fate::DroppedUnanswered => Err(CallError::MaybeApplied),
            Fate::NotSent => Err(CallError::NotSent),
            Fate::Refused(refusal) => Err(CallError::Refused(refusal)),
        };
        let lost = matches!(result, Err(CallError::MaybeApplied | CallError::NotSent));
        self.event(Event::Reply { id, result });
        if lost && self.exit.is_none() {
            self.lose();
        }
        self.notify();
        true
    }

    /// Delivers to the role what watches saw.
    pub fn notify(&mut self) {
        while self.exit.is_none() {
            let Some(event) = self.changes.pop_front() else { break };
            self.event(event);
        }
    }

    /// Answers calls until the role has none left.
    pub fn settle(&mut self) {
        self.notify();
        let mut left = 200_000;
        while self.exit.is_none() && self.play(Fate::Answered) {
            left -= 1;
            assert!(left > 0, "it never settles");
        }
    }

    /// Answers calls until one like this is next.
    pub fn settle_until(&mut self, is_it: impl Fn(&Call) -> bool) {
        self.notify();
        while !self.pending.front().is_some_and(|(_, call)| is_it(call)) {
            assert!(self.play(Fate::Answered), "no such call was made: {:?}", self.made);
        }
    }

    /// What the ensemble does with a call.
    pub fn apply(&mut self, call: &Call) -> CallResult {
        let path = call.path();
        let refused = |refusal| Err(CallError::Refused(refusal));
        let stat = self.znodes.get(path).map(|(_, stat)| *stat);
        self.zxid += 1;
        match (call, stat) {
            (Call::Create { .. }, Some(_)) => refused(Refusal::NodeExists),
            (Call::Create { data, .. }, None) => {
                if parent_of(path).is_some_and(|parent| !self.znodes.contains_key(parent)) {
                    return refused(Refusal::NoNode);
                }
                let stat =
                    Stat { czxid: self.zxid, mzxid: self.zxid, ctime_ms: self.zxid, ..Stat::default() };
                self.znodes.insert(path.into(), (data.clone(), stat));
                self.notify_watches(path, ChangeKind::Created);
                Ok(Reply::Created { path: path.into() })
            }
            (Call::Watch { mode, .. }, _) => {
                assert_eq!(*mode, WatchMode::Tree);
                self.trees.insert(path.into());
                Ok(Reply::Watching)
            }
            (_, None) => refused(Refusal::NoNode),
            (Call::Set { version, .. } | Call::Delete { version: Some(version), .. }, Some(stat))
                if *version != stat.version =>
            {
                refused(Refusal::BadVersion)
            }
            (Call::Set { data, .. }, Some(stat)) => {
                let stat = Stat { version: stat.version + 1, mzxid: self.zxid, ..stat };
                self.znodes.insert(path.into(), (data.clone(), stat));
                self.notify_watches(path, ChangeKind::Data);
                Ok(Reply::Stat(stat))
            }
            (Call::Delete { .. }, Some(_)) => {
                self.znodes.remove(path);
                self.notify_watches(path, ChangeKind::Deleted);
                Ok(Reply::Deleted)
            }
            (Call::Get { watch, .. }, Some(stat)) => {
                if *watch {
                    self.once.insert(path.into());
                }
                Ok(Reply::Data { data: self.znodes[path].0.clone(), stat })
            }
            (Call::Exists { .. }, Some(stat)) => {
                let num_children = i32::try_from(self.children(path).len()).expect("few");
                Ok(Reply::Stat(Stat { num_children, ..stat }))
            }
            (Call::Acl { .. }, Some(_)) => Ok(Reply::Acl { open: !self.closed.contains(path) }),
            (Call::Children { .. }, Some(_)) => Ok(Reply::Children(self.children(path))),
        }
    }

    fn children(&self, path: &str) -> Vec<String> {
        let prefix = format!("{path}/");
        let below = self.znodes.range(prefix.clone()..).map_while(|(at, _)| at.strip_prefix(&prefix));
        below.filter(|name| !name.contains('/')).map(str::to_string).collect()
    }

    fn notify_watches(&mut self, path: &str, kind: ChangeKind) {
        let tree = self.trees.iter().any(|root| path == root || path.starts_with(&format!("{root}/")));
        if self.once.remove(path) || tree {
            self.changes.push_back(Event::Changed { path: path.into(), kind });
        }
    }

    /// The ids and states of the outcomes that were reported.
    pub fn ended(&self) -> Vec<(String, State)> {
        self.all_ended().map(|ended| (ended.id.to_string(), ended.outcome.state)).collect()
    }

    /// The outcomes that were reported, of tasks and of commands.
    pub fn all_ended(&self) -> impl Iterator<Item = &Ended> {
        self.reports.iter().flat_map(|report| match report {
            ClientReport::Ended(ended) => ended.as_slice(),
            _ => &[],
        })
    }

    /// Whether something was logged that has this in it.
    pub fn logged(&self, part: &str) -> bool {
        self.logs.iter().any(|(_, text)| text.contains(part))
    }

    /// How many calls like this were made.
    pub fn count(&self, is_it: impl Fn(&Call) -> bool) -> usize {
        self.made.iter().filter(|call| is_it(call)).count()
    }
}

/// A leader's summary of this load and these limits.
pub fn status(pending: u64, bytes: u64, max_pending: u64, max_pending_bytes: u64) -> Vec<u8> {
    let leader = LeaderStatus { id: "m1".into(), host: "h".into(), pid: 1, epoch: 1 };
    let mut status = Status::new(leader, Vec::new(), Counts { pending, ..Counts::default() }, false);
    status.admission = Some(Admission { bytes, max_pending, max_pending_bytes });
    status.encode()
}

pub fn is_create(call: &Call) -> bool {
    matches!(call, Call::Create { .. })
}

pub fn is_delete(call: &Call) -> bool {
    matches!(call, Call::Delete { .. })
}

pub fn is_set(call: &Call) -> bool {
    matches!(call, Call::Set { .. })
}

pub fn is_get(call: &Call) -> bool {
    matches!(call, Call::Get { .. })
}

pub fn done() -> Outcome {
    Outcome { exit_code: Some(0), ..Outcome::unrun(State::Done, None, "", 1) }
}

pub fn failed(code: i32) -> Outcome {
    Outcome { exit_code: Some(code), ..Outcome::unrun(State::Failed, Some(Reason::Exit), "", 1) }
}
