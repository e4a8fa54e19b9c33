//! Lease: the proof that our session lives, and until when that proof holds.
//!
//! A read proves nothing, because a server that is cut off from the quorum still answers reads. An acknowledged
//! *write* proves that the session lived when it was committed. It does not prove that the leader of the ensemble
//! counts the timeout from there: a request that a follower passes on does not touch its session. The leader
//! hears of life only in the follower's answers to its pings, every half tick (ZooKeeper's `LearnerHandler.run`,
//! cases `PING` and `REQUEST`, and `SessionTrackerImpl.checkSession`). If the follower is cut off right after it
//! acknowledged our write, the leader has last heard of what was sent before that: by the session layer's
//! heartbeat at most a third of the timeout before, and by the pings up to half a tick more. So the session lives
//! at least until the write's *send* time + T - T/3 - half a tick, and the lease ends a margin before.
//!
//! One case remains in which the *first* write after a time without need proves less: the follower had been cut
//! off for a while, during which it still answered our heartbeats, and came back less than a ping before.
//! The session may then end at any moment after the write. Only a chain of three writes, each sent after the one
//! before was acknowledged and half a tick later, would exclude that, and nothing could start before it; later
//! renewals form that chain.
//!
//! It is renewed only while something depends on it, so who is idle writes nothing.
//!
//! The writes go to an ephemeral of its own that nobody watches, so that renewing wakes nobody. The same writes
//! serve as the "write of one's own" after which a read on the same connection is not stale.

use std::time::Duration;

use super::ensure::{self, Ensure};
use super::retry::Retry;
use crate::contract::Layout;
use crate::machine::{
    Action, Actions, Call, CallId, CallResult, Calls, CreateMode, Instant, Refusal, Reply, Routed, earlier,
};

/// The longest silence of a session that is up, as a part of its timeout: the session layer's heartbeat.
const SILENCE_PART: u32 = 3;

/// The margin is at least this long (the default tick of an ensemble), if the timeout allows it: half a tick of
/// it for the leader's pings, the rest for clocks and for the time that killing takes.
const MIN_MARGIN: Duration = Duration::from_secs(2);

/// The margin is at least this part of the timeout, for clocks that differ and ensembles with a longer tick.
const MARGIN_PART: u32 = 10;

/// A needed lease is renewed this often per timeout, so that one write may fail or wait for a new connection.
const RENEWALS: u32 = 6;

/// A wish for a write that begins later than the wish; see [`Lease::fresh`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// The lease of one holder.
#[derive(Debug)]
pub struct Lease {
    layout: Layout,
    holder: String,
    /// Number of the present znode; a new one with each session.
    n: u64,
    state: State,
    calls: Calls<Purpose>,
    ensure: Ensure,
    retry: Retry,
    timeout: Duration,
    needed: bool,
    /// Its end has passed, and [`Lease::need`] was called since: no wake is asked for it again.
    lapsed: bool,
    /// Until when the session is proven to live, less the margin.
    until: Option<Instant>,
    /// When the last write was sent, acknowledged or not.
    sent: Option<Instant>,
    /// Writes begun, and the highest of those that were acknowledged.
    begun: u64,
    acked: u64,
    /// Tickets up to this number were given out.
    wanted: u64,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum State {
    /// No session, or none that may be relied on.
    Down,
    /// A write was refused. After a pause the directory is checked, and then the write is made again.
    Refused,
    /// The znode is not there yet.
    Absent,
    /// It exists in this version.
    Exists { version: i32 },
}

#[derive(Debug)]
enum Purpose {
    Write { sent: Instant, index: u64 },
    Recheck,
}

impl Lease {
    /// A lease without proof, for `holder`, a name that nobody else uses.
    pub fn new(layout: &Layout, holder: &str) -> Lease {
        Lease {
            layout: layout.clone(),
            holder: holder.to_string(),
            n: 0,
            state: State::Down,
            calls: Calls::default(),
            ensure: Ensure::new([layout.leases()]),
            retry: Retry::default(),
            timeout: Duration::ZERO,
            needed: false,
            lapsed: false,
            until: None,
            sent: None,
            begun: 0,
            acked: 0,
            wanted: 0,
        }
    }

    /// A session is up whose end would be the end of what the lease protects.
    pub fn on_session(&mut self, timeout: Duration) {
        self.n += 1;
        self.timeout = timeout;
        self.state = State::Absent;
        self.sent = None;
    }

    /// The session is gone; what was proven holds until it ends.
    pub fn on_lost(&mut self) {
        self.go_down();
        self.wanted = self.acked;
    }

    fn go_down(&mut self) {
        self.calls.clear();
        self.ensure.reset();
        self.retry.on_lost();
        self.state = State::Down;
    }

    /// The holder begins a new life under a new name: nothing is proven for it.
    pub fn rename(&mut self, holder: &str) {
        self.holder = holder.to_string();
        self.go_down();
        self.until = None;
        self.sent = None;
    }

    /// The same, if the name is another than before.
    pub fn rename_if_new(&mut self, holder: &str) {
        if self.holder != holder {
            self.rename(holder);
        }
    }

    /// Until when the session is proven to live, less the margin.
    pub fn expires(&self) -> Option<Instant> {
        self.until
    }

    /// Whether the session is proven to live now.
    pub fn holds(&self, now: Instant) -> bool {
        self.expires().is_some_and(|until| now < until)
    }

    /// Says whether anything depends on the lease, and renews it when it is time.
    pub fn need<R>(&mut self, needed: bool, now: Instant, out: &mut Actions<R>) {
        self.needed = needed;
        self.lapsed = !self.holds(now);
        if self.retry.is_due(now) {
            self.ensure.start(out);
        }
        if self.is_due() && self.renew_at().is_some_and(|at| at <= now) {
            self.write(now, out);
        }
    }

    /// Asks for a write that begins now or later. When [`Lease::has`] the ticket, a read on this connection
    /// sees at least everything that was committed before the wish.
    pub fn fresh<R>(&mut self, now: Instant, out: &mut Actions<R>) -> Ticket {
        self.wanted = self.begun + 1;
        if self.calls.is_empty() {
            self.write(now, out);
        }
        Ticket(self.wanted)
    }

    /// Whether the ticket's write was acknowledged.
    pub fn has(&self, ticket: Ticket) -> bool {
        self.acked >= ticket.0
    }

    /// When [`Lease::need`] should be called again at the latest.
    pub fn next_wake(&self) -> Option<Instant> {
        let renew = if self.is_due() { self.renew_at() } else { None };
        let expires = if self.needed && !self.lapsed { self.expires() } else { None };
        earlier(earlier(renew, expires), self.retry.next_wake())
    }

    /// What is refused to it, in words for people.
    pub fn trouble(&self) -> Option<&str> {
        self.retry.trouble()
    }

    /// Takes in a reply.
    pub fn on_reply<R>(
        &mut self,
        id: CallId,
        result: &CallResult,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Routed<()> {
        if let Routed::Mine(step) = self.ensure.on_reply(id, result, out) {
            self.on_ensured(step, now, out);
            return Routed::Mine(());
        }
        self.calls.route(id, result).map(|(purpose, answer)| {
            if let Some(answer) = answer {
                self.on_answer(purpose, answer, now, out);
            }
        })
    }

    /// The directory of leases was checked after a refusal.
    fn on_ensured<R>(&mut self, step: ensure::Step, now: Instant, out: &mut Actions<R>) {
        match step {
            ensure::Step::Pending => {}
            ensure::Step::Done => {
                self.state = State::Absent;
                if self.is_due() {
                    self.write(now, out);
                }
            }
            ensure::Step::Refused(path, refusal) => self.retry.refused(&path, refusal, now, out),
        }
    }

    fn on_answer<R>(
        &mut self,
        purpose: Purpose,
        answer: Result<&Reply, Refusal>,
        now: Instant,
        out: &mut Actions<R>,
    ) {
        match (purpose, answer) {
            (Purpose::Write { sent, index }, Ok(reply)) => {
                let silence = self.timeout / SILENCE_PART;
                let margin = MIN_MARGIN.max(self.timeout / MARGIN_PART).min(self.timeout / 3);
                let until = sent + (self.timeout - silence - margin);
                let until = self.until.map_or(until, |before| before.max(until));
                self.until = Some(until);
                out.push(Action::Lease(until));
                self.retry.done(out);
                self.lapsed = false;
                self.acked = index;
                let version = if let Reply::Stat(stat) = reply { stat.version } else { 0 };
                self.state = State::Exists { version };
                if self.wanted > self.acked {
                    self.write(now, out);
                }
            }
            // Somebody touched a znode that is only ours. Its version is all that we want of it.
            (Purpose::Write { .. }, Err(Refusal::BadVersion | Refusal::NodeExists)) => {
                self.calls.issue(out, Call::Exists { path: self.path(), watch: false }, Purpose::Recheck);
            }
            (Purpose::Recheck, Ok(Reply::Stat(stat))) => {
                self.state = State::Exists { version: stat.version };
                self.write(now, out);
            }
            (Purpose::Write { .. } | Purpose::Recheck, Err(Refusal::NoNode)) => {
                // Perhaps with its directory. What was proven before still holds.
                self.retry.vanished(&self.path(), now, out);
                self.n += 1;
                self.state = State::Refused;
            }
            (_, answer) => {
                let what = format!("cannot renew the lease {}", self.path());
                self.retry.refused(&what, answer.err().unwrap_or(Refusal::Other(0)), now, out);
                self.state = State::Refused;
            }
        }
    }

    /// Whether somebody needs the lease, or waits for a write that failed.
    fn is_due(&self) -> bool {
        self.needed || self.wanted > self.acked
    }

    /// When the next write is due; `None` while one is under way or none can be made.
    fn renew_at(&self) -> Option<Instant> {
        if matches!(self.state, State::Down | State::Refused) || !self.calls.is_empty() {
            return None;
        }
        Some(self.sent.map_or(Instant::default(), |sent| sent + self.timeout / RENEWALS))
    }

    fn path(&self) -> String {
        self.layout.lease(&self.holder, self.n)
    }

    fn write<R>(&mut self, now: Instant, out: &mut Actions<R>) {
        let path = self.path();
        let call = match self.state {
            State::Down | State::Refused => return,
            State::Absent => Call::Create { path, data: Vec::new(), mode: CreateMode::Ephemeral },
            State::Exists { version } => Call::Set { path, data: Vec::new(), version },
        };
        self.begun += 1;
        self.sent = Some(now);
        self.calls.issue(out, call, Purpose::Write { sent: now, index: self.begun });
    }
}
