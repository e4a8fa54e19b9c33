//! Registration: how a worker gets its name, keeps it over reconnects, and knows when it has lost it.
//!
//! One life of a worker is an *incarnation*: an assignment znode, created first and once, and then at every
//! instant at least one registration. An incarnation that was without one for an instant is dead for ever, since
//! the leader may have given its tasks away. So after a reconnect the new registration is created *before* the
//! last acknowledged one is deleted, and only `Ok` on that delete proves that there was no gap.
//!
//! A newcomer with a name that is taken waits until the other's session must have ended, or deletes the other's
//! registration at once if its process is proven to be gone. It registers only when none exists, and then checks
//! recheck: of two, the one whose incarnation registered first keeps the name.

mod contest;
mod publish;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::ensure::{self, Ensure};
use super::retry::Retry;
use crate::contract::worker::{ProcessIdentity, Registration};
use crate::contract::{Incarnation, Layout};
use crate::exit;
use crate::machine::{
    Actions, Call, CallId, CallResult, Calls, ChangeKind, CreateMode, Instant, Prng, Refusal, Reply, Routed,
    WatchMode, earlier,
};

/// A registration whose process died exists for its session timeout and up to a tick more; this much longer we
/// wait before we take its worker to be alive.
const RIVAL_GRACE: Duration = Duration::from_secs(5);

/// Earlier incarnations of this process whose registrations are deleted when they are met.
const MAX_EARLIER: usize = 64;

/// What an event led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Not decided yet.
    Pending,
    /// The present incarnation is registered, without a gap since it began.
    Registered,
    /// The present incarnation is dead: whatever it runs must be killed, then [`Registrar::begin`] called.
    Dead(String),
    /// Another worker of this name lives.
    Taken {
        /// Where it lives.
        host: String,
        /// Its process there.
        pid: u32,
    },
}

/// The worker's side of registration.
#[derive(Debug)]
pub struct Registrar {
    layout: Layout,
    worker: String,
    prng: Prng,
    predecessor: Option<ProcessIdentity>,
    ensure: Ensure,
    /// What the registration should say; `since` is filled in here.
    body: Registration,
    life: Life,
    /// The transaction that made the newest registration, once that is known.
    made_by: Option<i64>,
    /// What the newest registration was created with.
    created: Registration,
    /// Earlier incarnations of this process.
    earlier: BTreeSet<Incarnation>,
    rivals: Option<Rivals>,
    /// Whether the present incarnation's name was used in any call.
    tried: bool,
    retry: Retry,
    state: State,
    calls: Calls<Purpose>,
}

/// One incarnation and its registrations.
#[derive(Debug)]
struct Life {
    incarnation: Incarnation,
    /// Number of the newest registration that was tried.
    n: u64,
    /// The registration up to which there was no gap: the first whose creation was acknowledged, then each that was
    /// acknowledged while the one before was still there to be deleted.
    proven: Option<u64>,
    /// Whether the other registrations of this name were listed again after this incarnation had registered.
    rechecked: bool,
}

impl Life {
    fn new(incarnation: Incarnation) -> Life {
        Life { incarnation, n: 0, proven: None, rechecked: false }
    }
}

/// Registrations with our name that the first list showed.
#[derive(Debug)]
struct Rivals {
    names: BTreeSet<String>,
    until: Instant,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Offline,
    /// The incarnation is dead; the role has to begin another.
    Dead,
    /// Waits for the answer to the last incarnation's registration: until then it may still be created.
    Landing,
    Ensuring,
    /// Something was refused: it begins again after a pause.
    Refused,
    /// Reads who has our name; `again` once we are registered ourselves.
    Listing {
        recheck: bool,
        found: BTreeMap<String, Option<(Registration, i64)>>,
    },
    /// Waits for the rivals to go.
    Waiting,
    Assigning,
    Registering,
    /// Reads the own registration, which was just created, then deletes the one that it replaces.
    Confirming {
        replaces: Option<u64>,
    },
    Registered {
        version: i32,
        written: Box<Registration>,
        writing: bool,
    },
    /// The name is another's.
    Yielded,
}

#[derive(Debug)]
enum Purpose {
    List,
    Read(String),
    RemovePredecessor,
    RemoveEarlier,
    WatchRival,
    Assign,
    Register,
    WatchOwn,
    Own,
    Replace,
    Publish(Box<Registration>),
    /// Checks whether somebody else has changed the own registration.
    Inspect,
    Leave,
}

impl Registrar {
    /// A worker that has not registered yet. `predecessor` is a process of this name that is proven to be gone.
    pub fn new(
        layout: &Layout,
        worker: &str,
        body: Registration,
        predecessor: Option<ProcessIdentity>,
        seed: u64,
    ) -> Registrar {
        let mut prng = Prng::new(seed);
        let incarnation = Incarnation::new(worker, prng.next_u64());
        let directories =
            [layout.workers(), layout.assign(), layout.leases(), layout.tasks(), layout.submitters()];
        Registrar {
            layout: layout.clone(),
            worker: worker.to_string(),
            prng,
            predecessor,
            ensure: Ensure::new(directories),
            life: Life::new(incarnation),
            made_by: None,
            created: body.clone(),
            body,
            earlier: BTreeSet::new(),
            rivals: None,
            tried: false,
            retry: Retry::default(),
            state: State::Offline,
            calls: Calls::default(),
        }
    }

    /// The present incarnation; it may not be registered yet.
    pub fn incarnation(&self) -> &Incarnation {
        &self.life.incarnation
    }

    /// Whether the present incarnation is registered on the present connection.
    pub fn is_registered(&self) -> bool {
        matches!(self.state, State::Registered { .. })
    }

    /// The transaction that made the newest registration: a write of our own on this connection.
    pub fn made_by(&self) -> Option<i64> {
        self.made_by
    }

    /// Whether the present incarnation was registered before, and is about to be on the present connection.
    pub fn is_returning(&self) -> bool {
        self.life.proven.is_some()
            && !matches!(self.state, State::Dead | State::Yielded | State::Registered { .. })
    }

    /// The session timeout that was granted last.
    pub fn session_timeout(&self) -> Duration {
        Duration::from_millis(self.body.session_timeout_ms)
    }

    /// A new session is up.
    pub fn on_connected<R>(&mut self, timeout: Duration, out: &mut Actions<R>) {
        self.calls.clear();
        self.body.session_timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        match self.state {
            State::Dead | State::Yielded => {}
            _ if self.life.proven.is_some() => self.register(out),
            _ => {
                // Nothing was acknowledged, so what may be in doubt is given up with its incarnation.
                if std::mem::replace(&mut self.tried, true) {
                    self.begin_life();
                }
                self.prepare(out);
            }
        }
    }

    /// The connection, and with it the session, is gone; the registration may exist for a while.
    pub fn on_lost(&mut self) {
        self.calls.clear();
        self.ensure.reset();
        self.retry.on_lost();
        // A statement about an assignment is written again after the assignment was read again.
        self.body.revoked_through = None;
        self.made_by = None;
        if !matches!(self.state, State::Dead | State::Yielded) {
            self.state = State::Offline;
        }
    }

    /// Gives up the present incarnation, for a reason outside this recipe (its lease lapsed, its assignment is
    /// gone). [`Registrar::begin`] starts the next.
    pub fn abandon(&mut self) {
        // A registration on its way is waited for, or it could be created after the next incarnation has deleted all
        // others.
        if self.state != State::Registering {
            self.calls.clear();
        }
        self.state = State::Dead;
    }

    /// Begins the next incarnation, when all that the last one ran is dead.
    pub fn begin<R>(&mut self, connected: bool, out: &mut Actions<R>) {
        self.begin_life();
        self.tried = connected;
        self.state = State::Offline;
        if self.calls.purposes().any(|purpose| matches!(purpose, Purpose::Register)) {
            self.state = State::Landing;
        } else if connected {
            self.prepare(out);
        }
    }

    fn prepare<R>(&mut self, out: &mut Actions<R>) {
        self.state = State::Ensuring;
        self.ensure.start(out);
    }

    /// Changes what the registration says, and writes it when that is possible.
    pub fn publish<R>(&mut self, change: impl FnOnce(&mut Registration), out: &mut Actions<R>) {
        change(&mut self.body);
        self.flush(out);
    }

    /// What the registration says or is about to say.
    pub fn body(&self) -> &Registration {
        &self.body
    }

    /// When [`Registrar::on_wake`] is to be called.
    pub fn next_wake(&self) -> Option<Instant> {
        earlier(self.rivals_until(), self.retry.next_wake())
    }

    fn rivals_until(&self) -> Option<Instant> {
        match (&self.state, &self.rivals) {
            (State::Waiting, Some(rivals)) => Some(rivals.until),
            _ => None,
        }
    }

    /// Checks again when the rivals had their time, and tries again what was refused.
    pub fn on_wake<R>(&mut self, now: Instant, out: &mut Actions<R>) {
        if self.rivals_until().is_some_and(|at| at <= now) {
            self.list(false, out);
        }
        if self.retry.is_due(now) {
            if self.state == State::Refused {
                // Without a registration nobody knows the incarnation; its assignment may exist already, and none is
                // made twice.
                if self.life.proven.is_none() {
                    self.begin_life();
                }
                self.prepare(out);
            } else {
                self.flush(out);
            }
        }
    }

    /// What is refused to it, in words for people.
    pub fn trouble(&self) -> Option<&str> {
        self.retry.trouble()
    }

    /// Takes in a change of a watched znode, which is ours if it is a registration.
    pub fn on_changed<R>(&mut self, path: &str, kind: ChangeKind, out: &mut Actions<R>) -> Routed<Step> {
        if path.rsplit_once('/').is_none_or(|(dir, _)| dir != self.layout.workers()) {
            return Routed::NotMine;
        }
        let is_own = self.path(self.life.n) == path;
        if kind == ChangeKind::Data && self.is_registered() && is_own {
            self.calls.issue(out, Call::Exists { path: path.to_string(), watch: false }, Purpose::Inspect);
        }
        if kind != ChangeKind::Deleted {
            return Routed::Mine(Step::Pending);
        }
        if self.state == State::Waiting {
            self.list(false, out);
        } else if is_own
            && matches!(
                self.state,
                State::Confirming { .. } | State::Listing { recheck: true, .. } | State::Registered { .. }
            )
        {
            return Routed::Mine(self.die(&format!("its registration {path} was deleted")));
        }
        Routed::Mine(Step::Pending)
    }

    /// Takes in a reply.
    pub fn on_reply<R>(
        &mut self,
        id: CallId,
        result: &CallResult,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Routed<Step> {
        if let Routed::Mine(step) = self.ensure.on_reply(id, result, out) {
            match step {
                ensure::Step::Pending => {}
                ensure::Step::Done if self.life.proven.is_some() => self.register(out),
                ensure::Step::Done => self.list(false, out),
                ensure::Step::Refused(path, refusal) => self.refused(&path, refusal, now, out),
            }
            return Routed::Mine(Step::Pending);
        }
        self.calls.route(id, result).map(|(purpose, answer)| match answer {
            Some(answer) => self.on_answer(purpose, answer, now, out),
            None => Step::Pending,
        })
    }

    fn on_answer<R>(
        &mut self,
        purpose: Purpose,
        answer: Result<&Reply, Refusal>,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Step {
        match (purpose, answer) {
            (purpose @ (Purpose::List | Purpose::Read(_)), answer) => {
                return self.on_listing(purpose, answer, now, out);
            }
            (Purpose::WatchRival, Err(Refusal::NoNode)) => self.list(false, out),
            (Purpose::WatchRival, Ok(_) | Err(_)) => {}
            (Purpose::RemovePredecessor, Ok(_) | Err(Refusal::NoNode)) => self.list(false, out),
            (Purpose::RemovePredecessor, Err(refusal)) => {
                self.refused(&self.layout.workers(), refusal, now, out);
            }
            (Purpose::RemoveEarlier | Purpose::Leave, Ok(_) | Err(_)) => {}
            (Purpose::Assign, Ok(_)) => self.register(out),
            (Purpose::Assign, Err(refusal)) => self.refused(&self.layout.assign(), refusal, now, out),
            (Purpose::Register, answer) if self.state == State::Registering => {
                return self.on_registered(answer, now, out);
            }
            (Purpose::Register, Ok(_) | Err(_)) => {
                if self.state == State::Landing {
                    self.prepare(out);
                }
            }
            (purpose @ (Purpose::WatchOwn | Purpose::Own | Purpose::Replace), answer) => {
                return self.on_confirm(purpose, answer, now, out);
            }
            (Purpose::Publish(body), answer) => return self.on_published(body, answer, now, out),
            (Purpose::Inspect, Ok(Reply::Stat(stat))) => self.mend(stat.version, out),
            (Purpose::Inspect, Ok(_) | Err(_)) => {}
        }
        Step::Pending
    }

    fn path(&self, n: u64) -> String {
        self.layout.registration(&self.life.incarnation, n)
    }

    fn begin_life(&mut self) {
        if self.earlier.len() >= MAX_EARLIER {
            self.earlier.pop_first();
        }
        self.earlier.insert(self.life.incarnation.clone());
        self.life = Life::new(Incarnation::new(&self.worker, self.prng.next_u64()));
        self.rivals = None;
        self.body.since = None;
        self.body.revoked_through = None;
    }

    /// Creates the next registration.
    fn register<R>(&mut self, out: &mut Actions<R>) {
        if self.life.proven.is_some() {
            self.life.n += 1;
        }
        self.create(out);
    }

    fn create<R>(&mut self, out: &mut Actions<R>) {
        self.state = State::Registering;
        self.created = self.body.clone();
        let call = Call::Create {
            path: self.path(self.life.n),
            data: self.body.encode(),
            mode: CreateMode::Ephemeral,
        };
        self.calls.issue(out, call, Purpose::Register);
    }

    fn on_registered<R>(
        &mut self,
        result: Result<&Reply, Refusal>,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Step {
        match result {
            Ok(_) => {
                let replaces = self.life.proven;
                self.life.proven.get_or_insert(self.life.n);
                self.state = State::Confirming { replaces };
                let call = Call::Watch { path: self.path(self.life.n), mode: WatchMode::Node };
                self.calls.issue(out, call, Purpose::WatchOwn);
            }
            Err(Refusal::NoNode) => self.prepare(out),
            // An earlier try, in doubt then, was applied: it belongs to a session that is lost.
            Err(Refusal::NodeExists) => {
                self.life.n += 1;
                self.create(out);
            }
            Err(Refusal::TooLarge) if self.shorten() => self.create(out),
            Err(refusal) => self.refused(&self.layout.workers(), refusal, now, out),
        }
        Step::Pending
    }

    fn on_confirm<R>(
        &mut self,
        purpose: Purpose,
        result: Result<&Reply, Refusal>,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Step {
        let State::Confirming { replaces } = self.state else { return Step::Pending };
        match (purpose, result) {
            (Purpose::WatchOwn, Ok(_)) => {
                let call = Call::Exists { path: self.path(self.life.n), watch: false };
                self.calls.issue(out, call, Purpose::Own);
            }
            (Purpose::Own, Ok(Reply::Stat(stat))) => {
                self.body.since.get_or_insert(stat.czxid);
                self.made_by = Some(stat.czxid);
                match replaces {
                    None => self.list(true, out),
                    Some(old) => {
                        let call = Call::Delete { path: self.path(old), version: None };
                        self.calls.issue(out, call, Purpose::Replace);
                    }
                }
            }
            (Purpose::Replace, Ok(_)) => {
                self.life.proven = Some(self.life.n);
                if !self.life.rechecked {
                    self.list(true, out);
                    return Step::Pending;
                }
                return self.finish(out);
            }
            (Purpose::Replace | Purpose::Own, Err(Refusal::NoNode)) => {
                return self.die("its session had ended before it was back");
            }
            (_, Err(refusal)) => self.refused(&self.layout.workers(), refusal, now, out),
            (purpose, Ok(reply)) => {
                out.fail(exit::BUG, format!("registration: {reply:?} answers {purpose:?}"));
            }
        }
        Step::Pending
    }

    fn finish<R>(&mut self, out: &mut Actions<R>) -> Step {
        self.life.rechecked = true;
        self.retry.done(out);
        self.state =
            State::Registered { version: 0, written: Box::new(self.created.clone()), writing: false };
        self.flush(out);
        Step::Registered
    }

    fn die(&mut self, why: &str) -> Step {
        self.abandon();
        Step::Dead(why.to_string())
    }

    /// Something in this directory was refused. Its own name would be another with each try, and each be logged.
    fn refused<R>(&mut self, dir: &str, refusal: Refusal, now: Instant, out: &mut Actions<R>) {
        self.calls.clear();
        self.ensure.reset();
        self.state = State::Refused;
        let what = self.with_size(format!("cannot register worker {} in {dir}", self.worker), refusal);
        self.retry.refused(&what, refusal, now, out);
    }
}
