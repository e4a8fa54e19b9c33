//! Election: leader is who has the first contender; everyone else watches the one just before its own.
//!
//! The names are those of Curator's `LeaderLatch`, and so is their order, so that a Curator peer can take part in the
//! same election. One deliberate difference: a contender is never adopted from an earlier session. Each session
//! creates a new contender, at the end, and deletes what earlier sessions of this process left, so that a standby
//! that kept its connection takes over at once.
//!
//! Only a contender whose creation was acknowledged on the present connection counts as ours, and a connection
//! is a session; so the contender's `ephemeralOwner` is the present session by construction.
//!
//! A leader whose work outlives its connection may *hand its term over* to its next session instead: see
//! `election/term.rs`.

mod term;

use self::term::Term;
use super::ensure::{self, Ensure};
use crate::contract::contender::{self, Contender};
use crate::contract::{contender_rank, name_of};
use crate::exit;
use crate::machine::{
    Actions, Call, CallId, CallResult, Calls, ChangeKind, CreateMode, Level, Refusal, Reply, Routed,
};

/// Sequence numbers from here on are near their end, which is 2,147,483,647.
const SEQUENCE_ENDS: i64 = 2_000_000_000;

/// One candidate's part in an election.
#[derive(Debug)]
pub struct Election {
    dir: String,
    uuid: String,
    data: Vec<u8>,
    ensure: Ensure,
    state: State,
    calls: Calls<Purpose>,
    /// A fault of the directory is logged once in the life of the process.
    reported_foreign: bool,
    reported_sequence: bool,
    /// It could not take part, for this reason: see [`Election::take_refused`].
    refused: Option<(String, Refusal)>,
    /// What it led by in a session whose writes may still come: see [`Election::on_lost_in_doubt`].
    left: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// It takes no part: it has no connection, or does not want to.
    Out,
    /// The directory is checked, then the contender is created.
    Entering,
    /// The contender exists; its rank is not known yet.
    Ranking { name: String },
    /// The contender comes after `before`.
    Following { name: String, czxid: i64, before: String },
    /// The contender is the first, or inherited the rank of an own one that was.
    Leading { name: String, czxid: i64, term: Term },
    /// It led, and has no connection. Its contender exists as long as that session lives.
    Suspended(Term),
    /// It led in the session before. The contender that inherits that rank is created, then read, then searched for in
    /// a list.
    Inheriting { name: Option<String>, term: Term },
    /// The contender is being deleted, or will be as soon as its creation is answered.
    Leaving,
}

#[derive(Debug)]
enum Purpose {
    Create,
    /// Creates a contender that inherits a rank.
    Inherit,
    /// Reads the own contender and watches it.
    Own,
    List {
        czxid: i64,
    },
    WatchBefore {
        name: String,
    },
    DeleteOld,
    DeleteOwn,
}

impl Election {
    /// A candidate in `dir`; `uuid` is its own for as long as the process lives, `data` is shown to others.
    pub fn new(dir: &str, uuid: &str, data: Vec<u8>) -> Election {
        Election {
            dir: dir.to_string(),
            uuid: uuid.to_string(),
            data,
            ensure: Ensure::new([dir.to_string()]),
            state: State::Out,
            calls: Calls::default(),
            reported_foreign: false,
            reported_sequence: false,
            refused: None,
            left: None,
        }
    }

    /// Contends, on a connection that is up and when nothing of an earlier term goes on.
    pub fn contend<R>(&mut self, out: &mut Actions<R>) {
        if self.is_creating() {
            // Of two creations, one would leave a contender of this live session that nobody knows or deletes.
            self.state = State::Entering;
            return;
        }
        self.calls.clear();
        self.state = State::Entering;
        self.ensure.start(out);
    }

    /// Withdraws: deletes the own contender, even one that is only being created.
    /// [`Election::is_out`] says when it is gone.
    pub fn withdraw<R>(&mut self, out: &mut Actions<R>) {
        match &self.state {
            State::Out | State::Leaving => {}
            State::Suspended(_) => self.state = State::Out,
            State::Entering | State::Inheriting { name: None, .. } => {
                self.ensure.reset();
                // A creation can't be called back. When it is answered, what it made is deleted.
                self.state = if self.is_creating() { State::Leaving } else { State::Out };
            }
            // The contender that it was to replace still exists: it may still protect something.
            State::Ranking { name }
            | State::Following { name, .. }
            | State::Inheriting { name: Some(name), .. } => {
                let name = name.clone();
                self.delete_own(&name, out);
            }
            State::Leading { name, .. } => {
                let name = name.clone();
                self.delete_replaced(out);
                self.delete_own(&name, out);
            }
        }
    }

    /// The connection is gone, and leadership with it.
    pub fn on_lost(&mut self) {
        self.calls.clear();
        self.ensure.reset();
        self.state = State::Out;
    }

    /// The connection is gone, and what it wrote as the leader may still come. It leaves the contender by which it led:
    /// that goes with its session, whose writes are dead then, and nobody leads before.
    pub fn on_lost_in_doubt(&mut self) {
        if let State::Leading { name, .. } = &self.state {
            self.left = Some(name.clone());
        }
        self.on_lost();
    }

    /// The epoch, if this candidate leads: the czxid of the contender with which its term began. It only grows from
    /// leader to leader.
    pub fn leading(&self) -> Option<i64> {
        match &self.state {
            State::Leading { term, .. } => Some(term.epoch),
            _ => None,
        }
    }

    /// The transaction that made the own contender, once its rank is known: a write of our own on this connection.
    pub fn made_by(&self) -> Option<i64> {
        match self.state {
            State::Following { czxid, .. } | State::Leading { czxid, .. } => Some(czxid),
            _ => None,
        }
    }

    /// Whether the rank is known and it is not the first.
    pub fn is_following(&self) -> bool {
        matches!(self.state, State::Following { .. })
    }

    /// The name of the contender that it waits for, if its rank is known and not the first.
    pub fn behind(&self) -> Option<&str> {
        match &self.state {
            State::Following { before, .. } => Some(before),
            _ => None,
        }
    }

    /// Whether it has no contender and creates none.
    pub fn is_out(&self) -> bool {
        self.state == State::Out
    }

    /// The name of the own contender, if it exists.
    pub fn own_name(&self) -> Option<&str> {
        match &self.state {
            State::Inheriting { name, .. } => name.as_deref(),
            State::Ranking { name } | State::Following { name, .. } | State::Leading { name, .. } => {
                Some(name)
            }
            State::Out | State::Entering | State::Suspended(_) | State::Leaving => None,
        }
    }

    /// The path of a contender.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }

    /// Takes in a change of a watched znode.
    pub fn on_changed<R>(&mut self, path: &str, kind: ChangeKind, out: &mut Actions<R>) {
        if path.rsplit_once('/').is_none_or(|(dir, _)| dir != self.dir) {
            return;
        }
        let name = name_of(path);
        match &self.state {
            State::Out | State::Entering | State::Suspended(_) | State::Leaving => {}
            State::Inheriting { name: own, .. } => {
                if own.as_deref() == Some(name) && kind == ChangeKind::Deleted {
                    self.state = State::Out;
                } else if own.as_deref() == Some(name) {
                    self.read_own(out);
                }
            }
            State::Ranking { name: own }
            | State::Following { name: own, .. }
            | State::Leading { name: own, .. }
                if own == name =>
            {
                if kind == ChangeKind::Deleted {
                    out.log(
                        Level::Warn,
                        format!("the contender {path} was deleted by someone else; contending again"),
                    );
                    self.contend(out);
                } else {
                    self.read_own(out);
                }
            }
            State::Following { name: own, czxid, before } if before == name => {
                let (own, czxid) = (own.clone(), *czxid);
                self.state = State::Ranking { name: own };
                self.list(czxid, out);
            }
            State::Ranking { .. } | State::Following { .. } | State::Leading { .. } => {}
        }
    }

    /// What was refused to it, if anything was: then it is out, and the caller that asks for it becomes a candidate
    /// again later.
    pub fn take_refused(&mut self) -> Option<(String, Refusal)> {
        self.refused.take()
    }

    /// Takes in a reply.
    pub fn on_reply<R>(&mut self, id: CallId, result: &CallResult, out: &mut Actions<R>) -> Routed<()> {
        if let Routed::Mine(step) = self.ensure.on_reply(id, result, out) {
            match step {
                ensure::Step::Pending => {}
                ensure::Step::Done => self.create(out),
                ensure::Step::Refused(path, refusal) => self.refuse(path, refusal),
            }
            return Routed::Mine(());
        }
        self.calls.route(id, result).map(|(purpose, answer)| {
            if let Some(answer) = answer {
                self.on_answer(purpose, answer, out);
            }
        })
    }

    fn on_answer<R>(&mut self, purpose: Purpose, answer: Result<&Reply, Refusal>, out: &mut Actions<R>) {
        match (purpose, answer) {
            (Purpose::Create | Purpose::Inherit, Ok(Reply::Created { path }))
                if self.state == State::Leaving =>
            {
                self.delete_own(name_of(path), out);
            }
            (Purpose::Create | Purpose::Inherit, Err(Refusal::NoNode)) if self.state == State::Leaving => {
                self.state = State::Out;
            }
            (Purpose::Create, Ok(Reply::Created { path })) => {
                self.state = State::Ranking { name: name_of(path).to_string() };
                self.read_own(out);
            }
            (Purpose::Create, Err(Refusal::NoNode)) => self.contend(out),
            (Purpose::Inherit, Ok(Reply::Created { path })) => self.on_heir(name_of(path), out),
            (Purpose::Inherit, Err(Refusal::NoNode)) => self.on_no_heir(out),
            (Purpose::Own, Ok(Reply::Stat(stat))) => self.on_own(stat.czxid, out),
            // The directory may have been deleted with all that was in it.
            (Purpose::Own | Purpose::List { .. }, Err(Refusal::NoNode)) => self.on_gone(out),
            (Purpose::List { czxid }, Ok(Reply::Children(names))) => {
                // Each of them checks whether the list is for its state.
                self.prove(czxid, names, out);
                self.rank(czxid, names, out);
            }
            (Purpose::WatchBefore { .. }, Ok(_)) => {}
            (Purpose::WatchBefore { name }, Err(Refusal::NoNode)) => {
                self.on_changed(&self.path(&name), ChangeKind::Deleted, out);
            }
            // What can't be deleted goes with its session.
            (Purpose::DeleteOld, Ok(_) | Err(_)) => {}
            (Purpose::DeleteOwn, Ok(_) | Err(Refusal::NoNode)) => self.state = State::Out,
            (_, Err(refusal)) => self.refuse(self.dir.clone(), refusal),
            (purpose, Ok(reply)) => {
                out.fail(exit::BUG, format!("election in {}: {reply:?} answers {purpose:?}", self.dir));
            }
        }
    }

    /// A contender of ours may exist nevertheless: our next contender deletes it.
    fn refuse(&mut self, path: String, refusal: Refusal) {
        self.on_lost();
        self.refused = Some((path, refusal));
    }

    /// The own contender is gone.
    fn on_gone<R>(&mut self, out: &mut Actions<R>) {
        if let State::Inheriting { .. } = self.state {
            self.state = State::Out;
        } else {
            self.contend(out);
        }
    }

    /// The own contender was read.
    fn on_own<R>(&mut self, czxid: i64, out: &mut Actions<R>) {
        match &self.state {
            State::Ranking { .. } | State::Inheriting { .. } => self.list(czxid, out),
            // A change of its data had used up the watch, and what exists there now is not what we created.
            State::Following { czxid: own, .. } | State::Leading { czxid: own, .. } if *own != czxid => {
                self.contend(out);
            }
            State::Out
            | State::Entering
            | State::Following { .. }
            | State::Leading { .. }
            | State::Suspended(_)
            | State::Leaving => {}
        }
    }

    fn is_creating(&self) -> bool {
        self.calls.purposes().any(|purpose| matches!(purpose, Purpose::Create | Purpose::Inherit))
    }

    fn delete_own<R>(&mut self, name: &str, out: &mut Actions<R>) {
        self.calls.clear();
        let call = Call::Delete { path: self.path(name), version: None };
        self.calls.issue(out, call, Purpose::DeleteOwn);
        self.state = State::Leaving;
    }

    fn create<R>(&mut self, out: &mut Actions<R>) {
        let call = Call::Create {
            path: self.path(&contender::prefix(&self.uuid)),
            data: self.data.clone(),
            mode: CreateMode::EphemeralSequential,
        };
        self.calls.issue(out, call, Purpose::Create);
    }

    fn read_own<R>(&mut self, out: &mut Actions<R>) {
        if let Some(name) = self.own_name() {
            let call = Call::Exists { path: self.path(name), watch: true };
            self.calls.issue(out, call, Purpose::Own);
        }
    }

    fn list<R>(&mut self, czxid: i64, out: &mut Actions<R>) {
        self.calls.issue(out, Call::Children { path: self.dir.clone() }, Purpose::List { czxid });
    }

    /// Deletes a contender of ours that is of no use any more.
    fn delete_old<R>(&mut self, name: &str, out: &mut Actions<R>) {
        let call = Call::Delete { path: self.path(name), version: None };
        self.calls.issue(out, call, Purpose::DeleteOld);
    }

    /// Finds the own rank in a list of all contenders. The list is no older than our own creation, because it
    /// was read on the connection that made it.
    fn rank<R>(&mut self, czxid: i64, names: &[String], out: &mut Actions<R>) {
        let State::Ranking { name: own } = &self.state else { return };
        let own = own.clone();
        let prefix = contender::prefix_of_all(&self.uuid);
        let own_rank = Contender::parse(&own);
        let mut before: Option<Contender<'_>> = None;
        let mut foreign = Vec::new();
        let mut found = false;
        self.left.take_if(|left| !names.contains(left));
        for name in names {
            let Some(other) = Contender::parse(name) else {
                foreign.push(name.as_str());
                continue;
            };
            if *name == own {
                found = true;
            } else if name.starts_with(&prefix) && self.left.as_ref() != Some(name) {
                self.delete_old(name, out);
            } else if Some(other) < own_rank && before.is_none_or(|best| other > best) {
                before = Some(other);
            }
        }
        self.report_foreign(&foreign, out);
        self.report_sequence(&own, out);
        if !found {
            return self.contend(out);
        }
        self.state = match before {
            None => {
                let term = Term::begin(czxid, &own);
                State::Leading { name: own, czxid, term }
            }
            Some(Contender { name, .. }) => {
                let call = Call::Exists { path: self.path(name), watch: true };
                self.calls.issue(out, call, Purpose::WatchBefore { name: name.to_string() });
                if self.left.as_deref() == Some(name) {
                    let text = "nobody leads until the session by which it led has ended: writes of it may still come";
                    out.log(Level::Info, text.to_string());
                }
                State::Following { name: own, czxid, before: name.to_string() }
            }
        };
    }

    /// Contenders of another library follow other rules: they ignore ours, and we ignore theirs.
    fn report_foreign<R>(&mut self, names: &[&str], out: &mut Actions<R>) {
        let Some(first) = names.first().filter(|_| !self.reported_foreign) else { return };
        self.reported_foreign = true;
        let (dir, count) = (&self.dir, names.len());
        out.log(
            Level::Warn,
            format!(
                "{dir} has contenders ({count}) that are neither zkmw's nor those of Curator's LeaderLatch, such as \
                 {first}: they do not count here, and we do not count for them, so one of them may lead at the same \
                 time as one of us. Give each kind a directory of its own, and delete what nobody needs"
            ),
        );
    }

    /// The order of Curator is no longer that of arrival when sequence numbers have become negative.
    fn report_sequence<R>(&mut self, own: &str, out: &mut Actions<R>) {
        let number: Option<i64> = contender_rank(own).and_then(|rank| rank.parse().ok());
        if self.reported_sequence || number.is_none_or(|number| (0..SEQUENCE_ENDS).contains(&number)) {
            return;
        }
        self.reported_sequence = true;
        out.log(
            Level::Warn,
            format!(
                "the sequence numbers of {} are near their end, or beyond it ({own}): then the last contender leads. \
                 Stop all that contend there, and delete the directory; it is made again",
                self.dir
            ),
        );
    }
}
