//! Election: leader is who has the first contender; everyone else watches the one just before its own.
//!
//! The names are those of Curator's `LeaderLatch`, and so is their order, so that a Curator peer can stand in
//! the same election. One deliberate difference: a contender is never adopted from an earlier session. Each
//! session stands anew, at the end, and deletes what earlier sessions of this process left, so that a standby
//! that kept its connection takes over at once.
//!
//! Only a contender whose creation was acknowledged on the present connection counts as ours, and a connection
//! is a session; so the contender's `ephemeralOwner` is the present session by construction.

use super::ensure::{self, Ensure};
use crate::contract::{contender_prefix, contender_rank, name_of};
use crate::exit;
use crate::machine::{
    Actions, Call, CallError, CallId, CallResult, Calls, ChangeKind, CreateMode, Level, Refusal, Reply,
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
    /// What is wrong with the directory, as far as it was told.
    told: Told,
    /// It could not take part, for this reason: see [`Election::take_refused`].
    refused: Option<(String, Refusal)>,
}

/// What was told, once in the life of the process.
#[derive(Debug, Default)]
struct Told {
    foreign: bool,
    sequence: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Not standing: no connection, or by choice.
    Out,
    /// The directory is looked for, then the contender is created.
    Entering,
    /// The contender stands; its place is not known yet.
    Placing { name: String },
    /// The contender stands behind `before`.
    Following { name: String, epoch: i64, before: String },
    /// First.
    Leading { name: String, epoch: i64 },
    /// The contender is being deleted, or will be as soon as its creation is answered.
    Leaving,
}

#[derive(Debug)]
enum Purpose {
    Create,
    /// Reads the own contender and watches it.
    Own,
    List {
        epoch: i64,
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
            told: Told::default(),
            refused: None,
        }
    }

    /// Stands for election, on a connection that is up and when nothing of an earlier term goes on.
    pub fn stand<R>(&mut self, out: &mut Actions<R>) {
        if self.is_creating() {
            // Of two creations, one would leave a contender of this live session that nobody knows or deletes.
            self.state = State::Entering;
            return;
        }
        self.calls.clear();
        self.state = State::Entering;
        self.ensure.start(out);
    }

    /// Stands no more: deletes the own contender, even one that is only being created.
    /// [`Election::is_out`] tells when it is gone.
    pub fn withdraw<R>(&mut self, out: &mut Actions<R>) {
        match &self.state {
            State::Out | State::Leaving => {}
            State::Entering => {
                self.ensure.reset();
                // A creation can't be called back. When it is answered, what it made is deleted.
                self.state = if self.is_creating() { State::Leaving } else { State::Out };
            }
            State::Placing { name } | State::Following { name, .. } | State::Leading { name, .. } => {
                let name = name.clone();
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

    /// The epoch, if this candidate leads: the czxid of its contender, which only grows from leader to leader.
    pub fn leading(&self) -> Option<i64> {
        match self.state {
            State::Leading { epoch, .. } => Some(epoch),
            _ => None,
        }
    }

    /// The transaction that made the own contender, once its place is known: a write of our own on this connection.
    pub fn made_by(&self) -> Option<i64> {
        match self.state {
            State::Following { epoch, .. } | State::Leading { epoch, .. } => Some(epoch),
            State::Out | State::Entering | State::Placing { .. } | State::Leaving => None,
        }
    }

    /// Whether the place is known and it is not the first.
    pub fn is_following(&self) -> bool {
        matches!(self.state, State::Following { .. })
    }

    /// The name of the contender that it waits for, if its place is known and not the first.
    pub fn behind(&self) -> Option<&str> {
        match &self.state {
            State::Following { before, .. } => Some(before),
            _ => None,
        }
    }

    /// Whether it neither stands nor is about to.
    pub fn is_out(&self) -> bool {
        self.state == State::Out
    }

    /// The name of the own contender, if it stands.
    pub fn own_name(&self) -> Option<&str> {
        match &self.state {
            State::Out | State::Entering | State::Leaving => None,
            State::Placing { name } | State::Following { name, .. } | State::Leading { name, .. } => {
                Some(name)
            }
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
            State::Out | State::Entering | State::Leaving => {}
            State::Placing { name: own }
            | State::Following { name: own, .. }
            | State::Leading { name: own, .. }
                if own == name =>
            {
                if kind == ChangeKind::Deleted {
                    out.log(
                        Level::Warn,
                        format!("the contender {path} was deleted by someone else; standing again"),
                    );
                    self.stand(out);
                } else {
                    self.read_own(out);
                }
            }
            State::Following { name: own, epoch, before } if before == name => {
                let (own, epoch) = (own.clone(), *epoch);
                self.state = State::Placing { name: own };
                self.list(epoch, out);
            }
            State::Placing { .. } | State::Following { .. } | State::Leading { .. } => {}
        }
    }

    /// What was refused to it, if anything was: then it is out, and whoever asks for it stands again later.
    pub fn take_refused(&mut self) -> Option<(String, Refusal)> {
        self.refused.take()
    }

    /// Takes in a reply; false if it is somebody else's.
    pub fn on_reply<R>(&mut self, id: CallId, result: &CallResult, out: &mut Actions<R>) -> bool {
        if let Some(step) = self.ensure.on_reply(id, result, out) {
            match step {
                ensure::Step::Pending => {}
                ensure::Step::Done => self.create(out),
                ensure::Step::Refused(path, refusal) => self.refuse(path, refusal),
            }
            return true;
        }
        let Some(purpose) = self.calls.take(id) else { return false };
        let result = match result {
            Ok(reply) => Ok(reply),
            Err(CallError::Refused(refusal)) => Err(*refusal),
            // The connection is gone; `Lost` follows.
            Err(CallError::NotSent | CallError::MaybeApplied) => return true,
        };
        match (purpose, result) {
            (Purpose::Create, Ok(Reply::Created { path })) if self.state == State::Leaving => {
                self.delete_own(name_of(path), out);
            }
            (Purpose::Create, Err(Refusal::NoNode)) if self.state == State::Leaving => {
                self.state = State::Out;
            }
            (Purpose::Create, Ok(Reply::Created { path })) => {
                self.state = State::Placing { name: name_of(path).to_string() };
                self.read_own(out);
            }
            (Purpose::Create, Err(Refusal::NoNode)) => self.stand(out),
            (Purpose::Own, Ok(Reply::Stat(stat))) => {
                match self.state {
                    State::Placing { .. } => self.list(stat.czxid, out),
                    // A change of its data had used up the watch, and what stands there now is not what we made.
                    State::Following { epoch, .. } | State::Leading { epoch, .. } if epoch != stat.czxid => {
                        self.stand(out);
                    }
                    State::Out
                    | State::Entering
                    | State::Following { .. }
                    | State::Leading { .. }
                    | State::Leaving => {}
                }
            }
            (Purpose::Own, Err(Refusal::NoNode)) => self.stand(out),
            (Purpose::List { epoch }, Ok(Reply::Children(names))) => self.place(epoch, names, out),
            // The directory was deleted with all that was in it, our contender too.
            (Purpose::List { .. }, Err(Refusal::NoNode)) => self.stand(out),
            (Purpose::WatchBefore { .. }, Ok(_)) => {}
            (Purpose::WatchBefore { name }, Err(Refusal::NoNode)) => {
                self.on_changed(&self.path(&name), ChangeKind::Deleted, out);
            }
            (Purpose::DeleteOld, Ok(_) | Err(Refusal::NoNode)) => {}
            (Purpose::DeleteOwn, Ok(_) | Err(Refusal::NoNode)) => self.state = State::Out,
            (_, Err(refusal)) => self.refuse(self.dir.clone(), refusal),
            (purpose, Ok(reply)) => {
                out.fail(exit::BUG, format!("election in {}: {reply:?} answers {purpose:?}", self.dir));
            }
        }
        true
    }

    /// A contender of ours may stand all the same: it is deleted by the next that stands.
    fn refuse(&mut self, path: String, refusal: Refusal) {
        self.on_lost();
        self.refused = Some((path, refusal));
    }

    fn is_creating(&self) -> bool {
        self.calls.purposes().any(|purpose| matches!(purpose, Purpose::Create))
    }

    fn delete_own<R>(&mut self, name: &str, out: &mut Actions<R>) {
        self.calls.clear();
        let call = Call::Delete { path: self.path(name), version: None };
        self.calls.issue(out, call, Purpose::DeleteOwn);
        self.state = State::Leaving;
    }

    fn create<R>(&mut self, out: &mut Actions<R>) {
        let call = Call::Create {
            path: self.path(&contender_prefix(&self.uuid)),
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

    fn list<R>(&mut self, epoch: i64, out: &mut Actions<R>) {
        self.calls.issue(out, Call::Children { path: self.dir.clone() }, Purpose::List { epoch });
    }

    /// Finds the own place in a list of all contenders. The list is no older than our own creation, because it
    /// was read on the connection that made it.
    fn place<R>(&mut self, epoch: i64, names: &[String], out: &mut Actions<R>) {
        let State::Placing { name: own } = &self.state else { return };
        let own = own.clone();
        let prefix = contender_prefix(&self.uuid);
        // Two of one rank can only be made by hand; their names decide, so that not both lead.
        let place = |name: &str| contender_rank(name).map(|rank| (rank.to_string(), name.to_string()));
        let own_place = place(&own);
        let mut before: Option<((String, String), &str)> = None;
        let mut foreign = Vec::new();
        let mut found = false;
        for name in names {
            let Some(place) = place(name) else {
                foreign.push(name.as_str());
                continue;
            };
            if *name == own {
                found = true;
            } else if name.starts_with(&prefix) {
                let call = Call::Delete { path: self.path(name), version: None };
                self.calls.issue(out, call, Purpose::DeleteOld);
            } else if Some(&place) < own_place.as_ref()
                && before.as_ref().is_none_or(|(best, _)| place > *best)
            {
                before = Some((place, name));
            }
        }
        self.report_foreign(&foreign, out);
        self.report_sequence(&own, out);
        if !found {
            return self.stand(out);
        }
        self.state = match before {
            None => State::Leading { name: own, epoch },
            Some((_, name)) => {
                let call = Call::Exists { path: self.path(name), watch: true };
                self.calls.issue(out, call, Purpose::WatchBefore { name: name.to_string() });
                State::Following { name: own, epoch, before: name.to_string() }
            }
        };
    }

    /// Who stands by another library's rules is not seen by us, nor we by them.
    fn report_foreign<R>(&mut self, names: &[&str], out: &mut Actions<R>) {
        let Some(first) = names.first().filter(|_| !self.told.foreign) else { return };
        self.told.foreign = true;
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
        if self.told.sequence || number.is_none_or(|number| (0..SEQUENCE_ENDS).contains(&number)) {
            return;
        }
        self.told.sequence = true;
        out.log(
            Level::Warn,
            format!(
                "the sequence numbers of {} are near their end, or beyond it ({own}): then who comes last goes first. \
                 Stop all that stand there, and delete the directory; it is made anew",
                self.dir
            ),
        );
    }
}
