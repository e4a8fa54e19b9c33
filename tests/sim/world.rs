//! The world: the true time, the queue of events, and all parts. It pops the next thing and gives it to
//! the part that it is for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use zkmw::machine::{Call, CallId, CallResult, Ended, Event, Instant};

use super::ensemble::{Ensemble, RequestId, ServerId, SessionId};
use super::history::History;
use super::member::{Clock, Kind, Member, SessionEvent, Who};
use super::processes::Run;
use super::servers::{Line, Server};
use super::swarm::{Dice, Fault, MS, SECOND, SERVERS, Swarm};

/// More events than this in one seed mean that some member loops without progress.
const MAX_EVENTS: u64 = 3_000_000;

/// The ensemble's clock when the simulation begins, in ms since 1970.
pub const EPOCH_MS: i64 = 1_700_000_000_000;

/// An event of the simulation.
#[derive(Debug)]
pub enum Ev {
    Turn(Who),
    Time(Who),
    Start(usize, u64),
    Resume(Who),
    Connect(Who),
    Up(Who, SessionId),
    HeartbeatCheck(Who, u64),
    Beat(Who, u64, SessionId, Instant),
    BeatBack(Who, u64, Instant),
    Depart(Who, u64, CallId, Call),
    Arrive(SessionId, Who, u64, CallId, Call),
    Answer(Who, u64, CallId, CallResult),
    Change(Who, u64),
    Break(Who, u64),
    Fin(SessionId),
    Close(SessionId),
    Forward(ServerId),
    Apply(ServerId),
    Ping,
    Join(ServerId),
    Restart(ServerId),
    Drop(ServerId),
    RunBegins(usize),
    RunEnds(usize, Ended),
    RunReported(usize),
    Exec(Who, Event),
    Keeper(Who),
    KeeperBack(Who),
    User,
    Again(usize),
    Fault(Fault),
    Signal(Who),
    Kill(Who),
}

/// Everything.
pub struct World {
    pub now: u64,
    pub dice: Dice,
    pub swarm: Swarm,
    pub ens: Ensemble,
    pub servers: [Server; SERVERS],
    pub lines: BTreeMap<SessionId, Line>,
    pub requests: BTreeMap<RequestId, (Who, u64, CallId)>,
    pub members: Vec<Member>,
    /// Until when a member does not reach a server, and a server not it.
    pub cuts: Vec<[(u64, u64); SERVERS]>,
    /// An assignment that masters may not write, whether an ACL forbids them all else too, and until when.
    pub refused: Option<(String, bool, u64)>,
    /// A server that refuses reads and deletes, how many of a thousand, and until when.
    pub throttled: Option<(usize, u64, u64)>,
    pub runs: Vec<Run>,
    pub history: History,
    pub lives: u64,
    pub asked: u64,
    /// Servers that were restarted in their turn.
    pub restarts: usize,
    pub healed: bool,
    pub heals_at: u64,
    pub digest: u64,
    pub events: u64,
    pub traced: usize,
    pub tracing: bool,
    /// When, in which order, and the index in `kept`: the items of the heap stay small.
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    kept: Vec<Option<Ev>>,
    free: Vec<usize>,
    seq: u64,
}

impl World {
    pub fn new(seed: u64, swarm: Swarm, tracing: bool) -> World {
        let mut world = World {
            now: SECOND,
            dice: Dice::new(seed),
            ens: Ensemble::new(SERVERS, EPOCH_MS),
            servers: std::array::from_fn(|_| Server::default()),
            lines: BTreeMap::new(),
            requests: BTreeMap::new(),
            members: Vec::new(),
            cuts: Vec::new(),
            refused: None,
            throttled: None,
            runs: Vec::new(),
            history: History::default(),
            lives: 0,
            asked: 0,
            restarts: 0,
            healed: false,
            heals_at: SECOND + swarm.safety,
            digest: 0,
            events: 0,
            traced: 0,
            tracing,
            queue: BinaryHeap::new(),
            kept: Vec::new(),
            free: Vec::new(),
            seq: 0,
            swarm,
        };
        world.ens.set_time(Instant::from_nanos(world.now));
        world.populate();
        world.after(0, Ev::Ping);
        for (fault, mean) in world.swarm.faults.clone() {
            let first = world.dice.around(mean);
            world.after(first, Ev::Fault(fault));
        }
        world.after(500 * MS, Ev::User);
        world
    }

    fn populate(&mut self) {
        for n in 0..self.swarm.masters {
            self.add(format!("m{n}"), Kind::Master);
        }
        for n in 0..self.swarm.workers {
            let slots = self.dice.between(1, 3) as u32;
            self.add(format!("w{n}"), Kind::Worker { name: n, slots, zone: n == 0 });
        }
        for n in 0..self.swarm.electors {
            self.add(format!("e{n}"), Kind::Elector { once: false });
        }
        for m in 0..self.members.len() {
            let delay = self.dice.below(2 * SECOND);
            self.after(delay, Ev::Start(m, 0));
        }
    }

    /// Adds a member. The caller starts it.
    pub fn add(&mut self, name: String, kind: Kind) -> usize {
        let drift = self.swarm.drift;
        let clock = Clock {
            offset: self.dice.below(100_000) * SECOND,
            drift: self.dice.below(2 * drift + 1) as i64 - drift as i64,
        };
        self.members.push(Member::new(name, kind, clock));
        self.cuts.push([(0, 0); SERVERS]);
        self.members.len() - 1
    }

    /// Something comes after this many ns.
    pub fn after(&mut self, delay: u64, ev: Ev) {
        self.at(self.now + delay, ev);
    }

    /// Something comes at this time.
    pub fn at(&mut self, at: u64, ev: Ev) {
        self.seq += 1;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.kept[slot] = Some(ev);
                slot
            }
            None => {
                self.kept.push(Some(ev));
                self.kept.len() - 1
            }
        };
        self.queue.push(Reverse((at.max(self.now), self.seq, slot)));
    }

    /// Whether this life of the member goes on.
    pub fn lives(&self, who: Who) -> bool {
        let member = &self.members[who.m];
        member.life == who.life && member.program.is_some()
    }

    /// The present life of a member.
    pub fn who(&self, m: usize) -> Who {
        Who { m, life: self.members[m].life }
    }

    /// The time on the member's clock.
    pub fn local(&self, m: usize) -> Instant {
        self.members[m].clock.at(self.now)
    }

    /// Writes a line of the trace, if somebody reads it.
    pub fn trace(&self, who: &str, what: impl FnOnce() -> String) {
        if self.tracing {
            println!("{:>10.4} {who:<8} {}", (self.now - SECOND) as f64 / SECOND as f64, what());
        }
    }

    /// Goes on until that time.
    pub fn run_until(&mut self, until: u64) {
        while self.queue.peek().is_some_and(|Reverse((at, _, _))| *at <= until) {
            let Some(Reverse((at, seq, slot))) = self.queue.pop() else { break };
            let Some(ev) = self.kept[slot].take() else { continue };
            self.free.push(slot);
            self.now = at;
            self.events += 1;
            assert!(self.events < MAX_EVENTS, "some member loops without progress");
            self.digest = (self.digest ^ at ^ seq.rotate_left(32)).wrapping_mul(0x100_0000_01b3);
            self.ens.set_time(Instant::from_nanos(self.now));
            self.handle(ev);
            self.settle_servers();
        }
        self.now = until;
    }

    fn handle(&mut self, ev: Ev) {
        match ev {
            Ev::Turn(who) => self.turn(who),
            Ev::Time(who) => self.on_time(who),
            Ev::Start(m, life) => self.on_start(m, life),
            Ev::Resume(who) => self.on_resume(who),
            Ev::Connect(who) => self.on_connect(who),
            Ev::Up(who, session) => self.on_up(who, session),
            Ev::HeartbeatCheck(who, generation) => self.on_heartbeat_check(who, generation),
            Ev::Beat(who, generation, session, sent) => self.on_beat(who, generation, session, sent),
            Ev::BeatBack(who, generation, sent) => self.on_beat_back(who, generation, sent),
            Ev::Depart(who, generation, id, call) => self.on_depart(who, generation, id, call),
            Ev::Arrive(session, who, generation, id, call) => {
                self.on_arrive(session, who, generation, id, call);
            }
            Ev::Answer(who, generation, id, result) => self.on_answer(who, generation, id, result),
            Ev::Change(who, generation) => self.on_change(who, generation),
            Ev::Break(who, generation) => self.on_break(who, generation),
            Ev::Fin(session) => self.on_fin(session),
            Ev::Close(session) => self.on_close(session),
            Ev::Forward(server) => self.on_forward(server),
            Ev::Apply(server) => self.on_apply(server),
            Ev::Ping => self.on_ping(),
            Ev::Join(server) => self.on_join(server),
            Ev::Restart(server) => self.on_restart(server),
            Ev::Drop(server) => self.drop_clients(server),
            Ev::RunBegins(run) => self.on_run_begins(run),
            Ev::RunEnds(run, how) => self.on_run_ends(run, how),
            Ev::RunReported(run) => self.on_run_reported(run),
            Ev::Exec(who, event) => self.on_exec(who, event),
            Ev::Keeper(who) => self.on_keeper(who),
            Ev::KeeperBack(who) => self.trace(&self.members[who.m].name, || "has a keeper again".into()),
            Ev::User => self.on_user(),
            Ev::Again(m) => self.on_again(m),
            Ev::Fault(fault) => self.on_fault(fault),
            Ev::Signal(who) => self.on_signal(who),
            Ev::Kill(who) => {
                if self.lives(who) {
                    self.crash(who.m, "killed");
                }
            }
        }
    }

    /// Something from the session layer for a member's loop.
    pub fn deliver(&mut self, m: usize, event: SessionEvent) {
        self.members[m].sessions.push_back(event);
        self.nudge(m);
    }

    /// The member has something to take in.
    pub fn nudge(&mut self, m: usize) {
        if !self.members[m].turning && self.members[m].program.is_some() {
            self.members[m].turning = true;
            let cost = self.turn_cost(m);
            self.after(cost, Ev::Turn(self.who(m)));
        }
    }

    fn turn_cost(&mut self, m: usize) -> u64 {
        let (until, most) = self.members[m].slow;
        if until > self.now { self.dice.below(most) } else { self.dice.between(5_000, 60_000) }
    }
}
