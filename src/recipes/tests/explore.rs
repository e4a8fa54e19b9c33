//! Elections by chance: contenders, one directory, and every fault at every moment, from a seed.
//!
//! The model is one directory on one ensemble. A contender's calls reach it in any order; its replies and its
//! watch events come back over two queues that overtake each other. Who leads and loses its connection gives up, or
//! suspends its term and tries to hand it over to its next session, however long it took to connect. Contenders of
//! Curator's come and go between ours. Checked after every move:
//!
//! - of the contenders that lead, at most one still has its contender znode;
//! - who leads, and still has its znode, is before everyone whose znode exists too, but for its own others and for
//!   those with an inherited rank by which nobody leads;
//! - no term goes on after another has begun: the epochs of those that lead never fall;
//! - no peer of Curator's is the first by sequence numbers while one of ours leads.
//!
//! And when the faults end: exactly one leads, nobody is stuck, and a death wakes one other contender at most.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Asked, stat};
use crate::contract::contender::{Contender as Name, prefix_of_all};
use crate::machine::{
    Actions, Call, CallError, CallId, CallResult, ChangeKind, CreateMode, Prng, Refusal, Reply,
};
use crate::recipes::election::Election;

const DIR: &str = "/e";
const CONTENDERS: usize = 3;
const SEEDS: u64 = 3_000;
const MOVES: u64 = 400;

struct Znode {
    owner: i64,
    czxid: i64,
}

#[derive(Default)]
struct Server {
    zxid: i64,
    sequence: u64,
    znodes: BTreeMap<String, Znode>,
    /// Sessions that live, and the names that each watches.
    sessions: BTreeMap<i64, BTreeSet<String>>,
    /// What watches saw, and of which session they are.
    fired: Vec<(i64, String, ChangeKind)>,
}

impl Server {
    fn fire(&mut self, name: &str, kind: ChangeKind) {
        for (session, watches) in &mut self.sessions {
            if watches.remove(name) {
                self.fired.push((*session, name.to_string(), kind));
            }
        }
    }

    fn delete(&mut self, name: &str) -> CallResult {
        self.zxid += 1;
        match self.znodes.remove(name) {
            Some(_) => {
                self.fire(name, ChangeKind::Deleted);
                Ok(Reply::Deleted)
            }
            None => Err(CallError::Refused(Refusal::NoNode)),
        }
    }

    fn expire(&mut self, session: i64) {
        self.sessions.remove(&session);
        let own = self.znodes.iter().filter(|(_, znode)| znode.owner == session);
        for name in own.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            let _ = self.delete(&name);
        }
    }

    /// A call of a session that lives.
    fn apply(&mut self, session: i64, call: &Call) -> CallResult {
        let name = call.path().strip_prefix("/e/").unwrap_or("").to_string();
        match call {
            Call::Exists { .. } if name.is_empty() => Ok(Reply::Stat(stat(1))),
            Call::Exists { watch, .. } => {
                if *watch && let Some(watches) = self.sessions.get_mut(&session) {
                    watches.insert(name.clone());
                }
                let znode = self.znodes.get(&name).ok_or(CallError::Refused(Refusal::NoNode))?;
                Ok(Reply::Stat(stat(znode.czxid)))
            }
            Call::Create { mode: CreateMode::EphemeralSequential, .. } => {
                self.zxid += 1;
                let name = format!("{name}{:010}", self.sequence);
                self.sequence += 1;
                self.znodes.insert(name.clone(), Znode { owner: session, czxid: self.zxid });
                Ok(Reply::Created { path: format!("{DIR}/{name}") })
            }
            Call::Children { .. } => Ok(Reply::Children(self.znodes.keys().cloned().collect())),
            Call::Delete { .. } => self.delete(&name),
            other => panic!("an election makes no such call: {other:?}"),
        }
    }
}

struct Contender {
    election: Election,
    out: Actions<()>,
    session: Option<i64>,
    /// On their way to the server.
    calls: Vec<(CallId, Call)>,
    replies: VecDeque<(CallId, CallResult)>,
    events: VecDeque<(String, ChangeKind)>,
    woken: usize,
}

struct World {
    server: Server,
    contenders: Vec<Contender>,
    /// Writes in doubt: they may be applied for as long as their session lives.
    late: Vec<(i64, Call)>,
    prng: Prng,
    /// How many moves in which something gets on come for 40 in which anything may happen.
    calm: usize,
    /// Whether peers of Curator's contend too.
    peers: bool,
    /// The highest epoch with which one led whose contender existed.
    epoch: i64,
    /// Contenders to which a term was handed over.
    heirs: BTreeSet<String>,
}

impl World {
    fn new(seed: u64) -> World {
        let contender = |n: usize| Contender {
            election: Election::new(DIR, &format!("u{n}"), Vec::new()),
            out: Actions::default(),
            session: None,
            calls: Vec::new(),
            replies: VecDeque::new(),
            events: VecDeque::new(),
            woken: 0,
        };
        World {
            server: Server::default(),
            contenders: (0..CONTENDERS).map(contender).collect(),
            late: Vec::new(),
            prng: Prng::new(seed),
            calm: [0, 60, 200][(seed % 3) as usize],
            peers: seed.is_multiple_of(4),
            epoch: 0,
            heirs: BTreeSet::new(),
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.prng.next_u64() % limit as u64) as usize
    }

    fn connect(&mut self, who: usize) {
        self.server.zxid += 1;
        let session = self.server.zxid;
        self.server.sessions.insert(session, BTreeSet::new());
        let contender = &mut self.contenders[who];
        contender.session = Some(session);
        if contender.election.term().is_some() {
            contender.election.inherit(&mut contender.out);
        } else {
            contender.election.contend(&mut contender.out);
        }
    }

    /// The connection breaks: what was on its way is in doubt, what had been answered may still arrive.
    fn disconnect(&mut self, who: usize) {
        let Some(session) = self.contenders[who].session.take() else { return };
        for (id, call) in std::mem::take(&mut self.contenders[who].calls) {
            let sent = self.below(3) > 0;
            if sent && call.is_write() {
                if self.below(2) == 0 && self.server.sessions.contains_key(&session) {
                    let _ = self.server.apply(session, &call);
                } else {
                    self.late.push((session, call));
                }
            }
            let error = if sent { CallError::MaybeApplied } else { CallError::NotSent };
            let at = self.below(self.contenders[who].replies.len() + 1);
            self.contenders[who].replies.insert(at, (id, Err(error)));
        }
        while !self.contenders[who].replies.is_empty() {
            self.receive_reply(who);
            self.take_calls(who);
            for (id, _) in std::mem::take(&mut self.contenders[who].calls) {
                self.contenders[who].replies.push_back((id, Err(CallError::NotSent)));
            }
        }
        let suspends = self.below(4) > 0;
        let contender = &mut self.contenders[who];
        contender.events.clear();
        if suspends { contender.election.suspend() } else { contender.election.on_lost() }
    }

    fn receive_reply(&mut self, who: usize) {
        let contender = &mut self.contenders[who];
        if let Some((id, result)) = contender.replies.pop_front() {
            // Nobody else waits for replies: one that is not awaited is stale.
            let _ = contender.election.on_reply(id, &result, &mut contender.out);
        }
    }

    fn receive_event(&mut self, who: usize) {
        let contender = &mut self.contenders[who];
        if let Some((name, kind)) = contender.events.pop_front() {
            contender.election.on_changed(&format!("{DIR}/{name}"), kind, &mut contender.out);
            // A watch may be left of an earlier position in the same session; nobody acts on what that sees.
            contender.woken += usize::from(!contender.out.is_empty());
        }
    }

    fn take_calls(&mut self, who: usize) {
        let contender = &mut self.contenders[who];
        let asked = Asked::of(&mut contender.out);
        assert!(asked.exits.is_empty(), "{:?}", contender.election);
        contender.calls.extend(asked.calls);
    }

    /// The server takes one of the calls on their way.
    fn deliver(&mut self, who: usize) {
        let Some(session) = self.contenders[who].session else { return };
        if self.contenders[who].calls.is_empty() || !self.server.sessions.contains_key(&session) {
            return;
        }
        let at = self.below(self.contenders[who].calls.len());
        let (id, call) = self.contenders[who].calls.remove(at);
        let result = self.server.apply(session, &call);
        self.contenders[who].replies.push_back((id, result));
    }

    fn a_move(&mut self) {
        let who = self.below(CONTENDERS);
        match self.below(40 + self.calm) {
            0 => self.disconnect(who),
            1 => {
                // A session expires: of one that is connected, or what an earlier one left.
                let sessions: Vec<_> = self.server.sessions.keys().copied().collect();
                if !sessions.is_empty() {
                    let session = sessions[self.below(sessions.len())];
                    self.server.expire(session);
                }
            }
            kind @ (2 | 3) => {
                // An administrator deletes a contender, or changes its data.
                let names: Vec<_> = self.server.znodes.keys().cloned().collect();
                if !names.is_empty() {
                    let name = &names[self.below(names.len())];
                    if kind == 2 {
                        let _ = self.server.delete(name);
                    } else {
                        self.server.fire(name, ChangeKind::Data);
                    }
                }
            }
            4 => {
                let abandons = self.below(2) == 0;
                let contender = &mut self.contenders[who];
                let (election, out) = (&mut contender.election, &mut contender.out);
                if abandons { election.abandon(out) } else { election.withdraw(out) }
            }
            5 if self.peers && self.below(12) == 0 => self.peer(),
            5 | 6 if self.contenders[who].session.is_none() => self.connect(who),
            5 | 6 if self.contenders[who].election.is_out() => {
                let contender = &mut self.contenders[who];
                contender.election.contend(&mut contender.out);
            }
            7 if !self.late.is_empty() => {
                let at = self.below(self.late.len());
                let (session, call) = self.late.remove(at);
                if self.server.sessions.contains_key(&session) {
                    let _ = self.server.apply(session, &call);
                }
            }
            8 => {
                let contender = &mut self.contenders[who];
                contender.election.delete_replaced(&mut contender.out);
            }
            9..=20 => self.deliver(who),
            21..=32 => self.receive_reply(who),
            33..=39 => self.receive_event(who),
            _ if self.contenders[who].session.is_none() => self.connect(who),
            kind if kind % 3 == 0 => self.receive_event(who),
            kind if kind % 3 == 1 => self.receive_reply(who),
            _ => self.deliver(who),
        }
        self.settle();
    }

    /// A peer of Curator's contends.
    fn peer(&mut self) {
        self.server.zxid += 1;
        let (session, name) = (self.server.zxid, format!("_c_peer-latch-{:010}", self.server.sequence));
        self.server.sequence += 1;
        self.server.sessions.insert(session, BTreeSet::new());
        self.server.znodes.insert(name, Znode { owner: session, czxid: session });
    }

    /// Hands on what the last move caused, and checks what must always hold.
    fn settle(&mut self) {
        for who in 0..CONTENDERS {
            self.take_calls(who);
        }
        for (session, name, kind) in std::mem::take(&mut self.server.fired) {
            let holder = self.contenders.iter_mut().find(|c| c.session == Some(session));
            if let Some(contender) = holder {
                contender.events.push_back((name, kind));
            }
        }
        let leaders: Vec<_> = (0..CONTENDERS).filter(|who| self.leads(*who)).collect();
        assert!(leaders.len() <= 1, "{leaders:?} lead");
        for who in leaders {
            self.check_leader(who);
        }
    }

    fn check_leader(&mut self, who: usize) {
        let election = &self.contenders[who].election;
        let own = election.own_name().expect("a leader contends");
        let position = Name::parse(own).expect("a contender");
        let epoch = election.leading().expect("it leads");
        let fresh = position.rank == position.sequence;
        assert!(!fresh || epoch == self.server.znodes[own].czxid, "the epoch of a new term");
        assert!(fresh || epoch < self.server.znodes[own].czxid, "the epoch of a term that goes on");
        assert!(self.epoch <= epoch, "the term {epoch} goes on after {} began", self.epoch);
        if !fresh {
            self.heirs.insert(own.to_string());
        }
        self.epoch = epoch;
        let mine = prefix_of_all(&format!("u{who}"));
        let others = self.server.znodes.keys().filter(|name| !name.starts_with(&mine));
        let others = others.filter_map(|name| Name::parse(name));
        let before = others.filter(|other| {
            if other.respects_ranks {
                // One that inherited its rank leads only if that was proved.
                other.rank == other.sequence && *other < position
            } else {
                other.sequence < position.sequence
            }
        });
        assert_eq!(before.map(|other| other.name).next(), None, "{own} leads");
    }

    /// Whether it believes to lead and its contender still exists.
    fn leads(&self, who: usize) -> bool {
        let election = &self.contenders[who].election;
        election.leading().is_some()
            && election.own_name().is_some_and(|name| self.server.znodes.contains_key(name))
    }

    /// No more faults: dead sessions end, everyone connects and contends, and everything is delivered.
    fn heal(&mut self) {
        for who in 0..CONTENDERS {
            if self.contenders[who].session.is_some_and(|s| !self.server.sessions.contains_key(&s)) {
                self.disconnect(who);
            }
        }
        let held: Vec<_> = self.contenders.iter().filter_map(|c| c.session).collect();
        for session in self.server.sessions.keys().copied().collect::<Vec<_>>() {
            if !held.contains(&session) {
                self.server.expire(session);
            }
        }
        self.late.clear();
        self.quiesce();
        for who in 0..CONTENDERS {
            if self.contenders[who].session.is_none() {
                self.connect(who);
            }
        }
        self.quiesce();
        // Whose term could not be handed over is out, too.
        for contender in &mut self.contenders {
            if contender.election.is_out() {
                contender.election.contend(&mut contender.out);
            }
        }
        self.quiesce();
    }

    fn quiesce(&mut self) {
        for _ in 0..1_000 {
            self.settle();
            let idle = self.contenders.iter().all(|c| {
                c.calls.is_empty() && c.replies.is_empty() && c.events.is_empty() && c.out.is_empty()
            });
            if idle {
                return;
            }
            for who in 0..CONTENDERS {
                self.deliver(who);
                self.receive_event(who);
                self.receive_reply(who);
            }
        }
        panic!("it never comes to rest");
    }

    /// When nothing is on its way, exactly one leads and each other waits for the one before it.
    fn assert_settled(&self, live: usize) {
        let state = || self.contenders.iter().map(|c| format!("\n{:?}", c.election)).collect::<String>();
        let leaders = (0..CONTENDERS).filter(|who| self.leads(*who)).count();
        let claims = self.contenders.iter().filter(|c| c.election.leading().is_some()).count();
        let followers = self.contenders.iter().filter(|c| c.election.is_following()).count();
        assert_eq!((leaders, claims, followers), (1, 1, live - 1), "{}", state());
        assert_eq!(self.server.znodes.len(), live, "one contender each: {:?}", self.server.znodes.keys());
    }
}

fn run(seed: u64) -> usize {
    let mut world = World::new(seed);
    for who in 0..CONTENDERS {
        world.connect(who);
    }
    for _ in 0..MOVES {
        world.a_move();
    }
    world.heal();
    world.assert_settled(CONTENDERS);

    // One dies: its connection breaks, its session ends, and it does not come back.
    for contender in &mut world.contenders {
        contender.woken = 0;
    }
    let dead = world.below(CONTENDERS);
    let own = world.contenders[dead].election.own_name().map(str::to_string);
    let position = own.as_deref().and_then(Name::parse);
    let was_last = world.server.znodes.keys().all(|name| Name::parse(name) <= position);
    let session = world.contenders[dead].session.expect("it is connected");
    world.disconnect(dead);
    world.server.expire(session);
    world.quiesce();
    let woken: usize = world.contenders.iter().map(|c| c.woken).sum();
    assert_eq!(woken, usize::from(!was_last), "a death wakes the one behind it and nobody else");
    world.assert_settled(CONTENDERS - 1);
    world.heirs.len()
}

#[test]
fn one_leads_whatever_happens_and_one_wakes_at_a_death() {
    let mut handed_over = 0;
    for seed in 0..SEEDS {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(count) => handed_over += count,
            Err(panic) => {
                eprintln!("the seed was {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(handed_over > 200, "only {handed_over} terms were handed over");
}
