//! Between a process and a server: connections, packets, heartbeats. It keeps the promises of `src/zk`, with its
//! bounds: a connection is a session; every call is answered once, and before the loss is reported; a session that is
//! silent is given up. Everything that those promises leave open is drawn: which of the calls of a turn is sent first,
//! in which order replies are taken in, how far watch events are behind them, and the fate of packets on their way when
//! a connection breaks.

use std::collections::BTreeMap;
use std::time::Duration;

use zkmw::machine::{Call, CallError, CallId, CallResult, Instant, Refusal};

use super::ensemble::{Output, SessionId};
use super::member::{SessionEvent, Who};
use super::servers::Line;
use super::swarm::{MS, SECOND, SERVERS};
use super::world::{Ev, World};

/// The backoff between rounds of connecting.
const PAUSE_MIN: u64 = 50 * MS;
const PAUSE_MAX: u64 = 500 * MS;
/// A connection that lived for less is followed by a pause that doubles each time, too.
const FLAPPING: u64 = 5 * SECOND;
const FLAPPING_PAUSE_MAX: u64 = SECOND;
/// The backoff before a throttled call is made again.
const REPEAT_MIN: u64 = 50 * MS;
const REPEAT_MAX: u64 = 2 * SECOND;
/// ZooKeeper's code for a request that it throttles.
const THROTTLED_OP: i32 = -127;
/// How long a server that does not answer costs.
const STAGGER: u64 = 150 * MS;

/// A process's end of a connection.
#[derive(Debug)]
pub struct Net {
    pub generation: u64,
    pub session: SessionId,
    pub server: usize,
    pub since: u64,
    /// Calls without an answer; true if they were sent.
    pub inflight: BTreeMap<CallId, bool>,
    /// Calls that were throttled: since when, and how often.
    throttled: BTreeMap<CallId, (u64, u32)>,
    /// When the heartbeat was sent that was answered last, and the one that was not answered yet.
    proved: Instant,
    beating: Option<Instant>,
    last_answer: Instant,
}

impl World {
    /// How long a packet takes.
    pub fn travel(&mut self) -> u64 {
        let (low, high) = self.swarm.latency;
        let travel = self.dice.between(low, high);
        if !self.healed && self.dice.per_mille(self.swarm.spikes) { travel * 100 } else { travel }
    }

    /// How long a thread waits for its turn on a processor.
    fn scheduling_delay(&mut self) -> u64 {
        match self.dice.below(16) {
            0 => self.dice.below(20 * MS),
            1..4 => self.dice.below(2 * MS),
            _ => self.dice.below(100_000),
        }
    }

    /// A round of connecting.
    pub fn on_connect(&mut self, who: Who) {
        if !self.lives(who) || self.members[who.m].net.is_some() {
            return;
        }
        if self.members[who.m].stopped > self.now {
            return self.at(self.members[who.m].stopped, Ev::Connect(who));
        }
        let first = self.dice.below(SERVERS as u64) as usize;
        let step = self.dice.between(1, 2) as usize;
        let mut cost = self.travel() * 2;
        for n in 0..SERVERS {
            let server = (first + n * step) % SERVERS;
            let (out, back) = self.cuts[who.m][server];
            let reached = out <= self.now && back <= self.now && self.servers[server].serves(self.now);
            let timeout = Duration::from_nanos(self.swarm.timeout);
            let session = if reached { self.ens.connect(server, timeout) } else { None };
            if let Some(session) = session {
                self.history.opened(session, who);
                let opened = self.ens.log().len() as u64;
                self.lines.insert(session, Line::new(server, who, opened));
                self.trace(&self.members[who.m].name, || {
                    format!("gets session {} at server {server}", session.0)
                });
                return self.after(cost, Ev::Up(who, session));
            }
            cost += STAGGER;
        }
        self.connect_later(who, cost);
    }

    fn connect_later(&mut self, who: Who, more: u64) {
        let pause = self.members[who.m].pause.clamp(PAUSE_MIN, PAUSE_MAX);
        self.members[who.m].pause = pause * 2;
        self.connect_after(who, pause, more);
    }

    /// Between half of the pause and all of it.
    fn connect_after(&mut self, who: Who, pause: u64, more: u64) {
        let pause = pause / 2 + self.dice.below(pause / 2);
        self.after(pause + more, Ev::Connect(who));
    }

    pub fn on_up(&mut self, who: Who, session: SessionId) {
        let line = self.lines.get(&session).filter(|line| line.open).map(|line| (line.server, line.opened));
        let Some((server, opened)) = line.filter(|_| self.lives(who)) else {
            self.on_fin(session);
            if self.lives(who) {
                self.connect_later(who, 0);
            }
            return;
        };
        if self.members[who.m].stopped > self.now {
            return self.at(self.members[who.m].stopped, Ev::Up(who, session));
        }
        // A server answers a wish for a session when it has itself applied that it is open, and all before that.
        if (self.ens.log().len() as u64).saturating_sub(self.ens.lag(server)) < opened {
            return self.after(2 * MS, Ev::Up(who, session));
        }
        let now = self.local(who.m);
        let timeout = Duration::from_nanos(self.swarm.timeout);
        let member = &mut self.members[who.m];
        member.pause = 0;
        member.generation += 1;
        let generation = member.generation;
        member.net = Some(Net {
            generation,
            session,
            server,
            since: self.now,
            inflight: BTreeMap::new(),
            throttled: BTreeMap::new(),
            proved: now,
            beating: None,
            last_answer: now,
        });
        self.lines.entry(session).and_modify(|line| line.generation = generation);
        self.deliver(who.m, SessionEvent::Up { generation, timeout });
        self.after(0, Ev::HeartbeatCheck(who, generation));
    }

    fn net(&mut self, who: Who, generation: u64) -> Option<&mut Net> {
        if !self.lives(who) {
            return None;
        }
        self.members[who.m].net.as_mut().filter(|net| net.generation == generation)
    }

    /// The session layer's heartbeat.
    pub fn on_heartbeat_check(&mut self, who: Who, generation: u64) {
        if self.net(who, generation).is_none() {
            return;
        }
        if self.members[who.m].stopped > self.now {
            return self.at(self.members[who.m].stopped + MS, Ev::HeartbeatCheck(who, generation));
        }
        let now = self.local(who.m);
        let timeout = Duration::from_nanos(self.swarm.timeout);
        let Some(net) = self.net(who, generation) else { return };
        if now.since(net.proved) > timeout {
            return self.lose(who, "the session has expired");
        }
        let (sleep, beat) = match net.beating {
            None if now < net.proved + timeout / 3 => ((net.proved + timeout / 3).since(now), false),
            None => (timeout / 6, true),
            Some(sent) => {
                let overdue = (sent.max(net.last_answer) + timeout / 6).min(sent + timeout / 3);
                if now >= overdue {
                    return self.lose(who, "the server did not answer");
                }
                (overdue.since(now), false)
            }
        };
        let session = net.session;
        if beat {
            net.beating = Some(now);
            let delay = self.scheduling_delay() + self.travel();
            self.after(delay, Ev::Beat(who, generation, session, now));
        }
        let sleep = (sleep.as_nanos() as u64).max(MS);
        self.after(sleep, Ev::HeartbeatCheck(who, generation));
    }

    pub fn on_beat(&mut self, who: Who, generation: u64, session: SessionId, sent: Instant) {
        let Some(at) = self.arrival(session, who) else { return };
        if at > self.now {
            return self.at(at, Ev::Beat(who, generation, session, sent));
        }
        self.touch(session);
        if self.ens.is_alive(session) {
            let travel = self.travel();
            self.after(travel, Ev::BeatBack(who, generation, sent));
        }
    }

    pub fn on_beat_back(&mut self, who: Who, generation: u64, sent: Instant) {
        let Some(server) = self.net(who, generation).map(|net| net.server) else { return };
        let back = self.cuts[who.m][server].1;
        if back > self.now {
            return self.at(back, Ev::BeatBack(who, generation, sent));
        }
        if let Some(net) = self.net(who, generation) {
            net.proved = sent;
            net.beating = None;
        }
    }

    /// When a packet of this session gets to its server; `None` if never.
    fn arrival(&self, session: SessionId, who: Who) -> Option<u64> {
        let line = self.lines.get(&session).filter(|line| line.open)?;
        Some(line.stalled.max(self.cuts[who.m][line.server].0))
    }

    /// A role makes a call.
    pub fn call(&mut self, who: Who, id: CallId, call: Call) {
        self.trace(&self.members[who.m].name, || format!("-> {} {}", id.0, brief(&call)));
        let member = &mut self.members[who.m];
        member.outstanding.insert(id);
        let (known, net) = (member.known, member.net.as_mut());
        let Some(net) = net.filter(|net| known == Some(net.generation)) else {
            return self.not_sent(who.m, id);
        };
        net.inflight.insert(id, false);
        let generation = net.generation;
        let delay = self.scheduling_delay();
        self.after(delay, Ev::Depart(who, generation, id, call));
    }

    pub fn on_depart(&mut self, who: Who, generation: u64, id: CallId, call: Call) {
        if self.net(who, generation).is_none() {
            return;
        }
        if self.members[who.m].stopped > self.now {
            let later = self.members[who.m].stopped + self.dice.below(MS);
            return self.at(later, Ev::Depart(who, generation, id, call));
        }
        let Some(net) = self.net(who, generation) else { return };
        let Some(sent) = net.inflight.get_mut(&id) else { return };
        *sent = true;
        let session = net.session;
        if call.is_write() && !self.healed && self.dice.per_mille(self.swarm.break_writes) {
            let most = 4 * self.swarm.latency.1 + 2 * self.swarm.apply;
            let delay = self.dice.below(most);
            self.after(delay, Ev::Break(who, generation));
        }
        let travel = self.travel();
        self.after(travel, Ev::Arrive(session, who, generation, id, call));
    }

    /// A call reaches the server.
    pub fn on_arrive(&mut self, session: SessionId, who: Who, generation: u64, id: CallId, call: Call) {
        let Some(at) = self.arrival(session, who) else { return };
        if at > self.now {
            // Packets that one cause held back are released in any order.
            let at = at + self.dice.below(MS);
            return self.at(at, Ev::Arrive(session, who, generation, id, call));
        }
        let Some(server) = self.lines.get(&session).map(|line| line.server) else { return };
        let is_write = call.is_write();
        self.touch(session);
        if let Some(refusal) = self.refusal(who, &call) {
            let travel = self.travel();
            let refused = Err(CallError::Refused(refusal));
            return self.after(travel, Ev::Answer(who, generation, id, refused));
        }
        if self.is_throttled(server, &call) {
            return self.repeat(who, generation, id, call);
        }
        let request = self.ens.request(session, call);
        self.requests.insert(request, (who, generation, id));
        if is_write {
            self.forward_soon(server);
        }
        self.poll(session);
    }

    /// A call was throttled: the session layer makes it again after a pause, a delete only for as long as a session
    /// lives.
    fn repeat(&mut self, who: Who, generation: u64, id: CallId, call: Call) {
        let (travel, now, timeout) = (self.travel(), self.now, self.swarm.timeout);
        let Some(net) = self.net(who, generation) else { return };
        let (since, times) = net.throttled.entry(id).or_insert((now, 0));
        let pause = (REPEAT_MIN << (*times).min(10)).min(REPEAT_MAX);
        *times += 1;
        if call.is_write() && now + pause - *since >= timeout {
            let refused = Err(CallError::Refused(Refusal::Other(THROTTLED_OP)));
            return self.after(travel, Ev::Answer(who, generation, id, refused));
        }
        // It was not applied, so it counts as not sent.
        net.inflight.entry(id).and_modify(|sent| *sent = false);
        self.after(travel + pause, Ev::Depart(who, generation, id, call));
    }

    /// Everything that the server has for this session goes on its way.
    pub fn poll(&mut self, session: SessionId) {
        while let Some(output) = self.ens.take(session) {
            let Some(line) = self.lines.get(&session).filter(|line| line.open) else { continue };
            let (who, generation, at) = (line.who, line.generation, line.last);
            // The server sends one stream, and two threads process it.
            let arrives = at.max(self.now + self.travel());
            let thread = self.scheduling_delay();
            let Some(line) = self.lines.get_mut(&session) else { continue };
            line.last = arrives;
            match output {
                Output::Reply { request, result } => {
                    if let Some((who, generation, id)) = self.requests.remove(&request) {
                        let result = result.map_err(CallError::Refused);
                        self.at(arrives + thread, Ev::Answer(who, generation, id, result));
                    }
                }
                Output::Changed { path, kind } => {
                    line.last_change = line.last_change.max(arrives + thread);
                    let at = line.last_change;
                    line.changes.push_back((path, kind));
                    self.at(at, Ev::Change(who, generation));
                }
            }
        }
    }

    pub fn on_answer(&mut self, who: Who, generation: u64, id: CallId, result: CallResult) {
        let Some(server) = self.net(who, generation).map(|net| net.server) else { return };
        let back = self.cuts[who.m][server].1;
        if back > self.now {
            return self.at(back, Ev::Answer(who, generation, id, result));
        }
        if self.members[who.m].stopped > self.now {
            let later = self.members[who.m].stopped + self.scheduling_delay();
            return self.at(later, Ev::Answer(who, generation, id, result));
        }
        let now = self.local(who.m);
        let Some(net) = self.net(who, generation) else { return };
        if net.inflight.remove(&id).is_some() {
            net.throttled.remove(&id);
            net.last_answer = now;
            self.deliver(who.m, SessionEvent::Reply { id, result });
        }
    }

    /// One more watch event gets to the role. However long each was held back, they come in the order of the stream.
    pub fn on_change(&mut self, who: Who, generation: u64) {
        let Some((server, session)) = self.net(who, generation).map(|net| (net.server, net.session)) else {
            return;
        };
        let back = self.cuts[who.m][server].1;
        if back > self.now {
            return self.at(back, Ev::Change(who, generation));
        }
        if self.members[who.m].stopped > self.now {
            return self.at(self.members[who.m].stopped + MS, Ev::Change(who, generation));
        }
        let next = self.lines.get_mut(&session).and_then(|line| line.changes.pop_front());
        let Some((path, kind)) = next else { return };
        self.history.changed(who, self.now, &path, kind);
        self.deliver(who.m, SessionEvent::Changed { generation, path, kind });
    }

    pub fn on_break(&mut self, who: Who, generation: u64) {
        if self.net(who, generation).is_some() {
            self.lose(who, "the connection broke");
        }
    }

    /// The process's end of the connection is over. Packets on their way may still get to the server, also late.
    pub fn lose(&mut self, who: Who, why: &str) {
        let Some(net) = self.members[who.m].net.take() else { return };
        self.hurt(who);
        self.trace(&self.members[who.m].name, || format!("** loses session {}: {why} **", net.session.0));
        for (id, sent) in net.inflight {
            let error = if sent { CallError::MaybeApplied } else { CallError::NotSent };
            self.deliver(who.m, SessionEvent::Reply { id, result: Err(error) });
        }
        self.deliver(who.m, SessionEvent::Down { generation: net.generation, why: why.to_string() });
        let timeout = self.swarm.timeout;
        let (stall, fin) = match self.dice.below(6) {
            // Packets on their way are lost with the connection.
            0 | 1 => (0, 0),
            // They arrive, and then the end of the connection.
            2 | 3 => (0, self.travel() * 2),
            // They arrive late.
            4 => {
                let stall = self.dice.below(timeout / 4);
                (stall, stall + 50 * MS)
            }
            _ => {
                let stall = self.dice.below(timeout);
                (stall, stall + 50 * MS)
            }
        };
        if let Some(line) = self.lines.get_mut(&net.session) {
            line.stalled = self.now + stall;
        }
        if fin == 0 {
            self.on_fin(net.session);
        } else {
            self.after(fin, Ev::Fin(net.session));
        }
        if self.now.saturating_sub(net.since) >= FLAPPING {
            self.members[who.m].flapped = 0;
            self.after(MS, Ev::Connect(who));
        } else {
            let pause = self.members[who.m].flapped.clamp(PAUSE_MIN, FLAPPING_PAUSE_MAX);
            self.members[who.m].flapped = pause * 2;
            self.connect_after(who, pause, 0);
        }
    }
}

/// A call in few words.
pub fn brief(call: &Call) -> String {
    let text = |data: &[u8]| String::from_utf8_lossy(&data[..data.len().min(300)]).into_owned();
    match call {
        Call::Create { path, data, mode } => format!("create {path} {mode:?} {}", text(data)),
        Call::Set { path, data, version } => format!("set {path} v{version} {}", text(data)),
        Call::Delete { path, version } => format!("delete {path} {version:?}"),
        Call::Get { path, watch } => format!("get {path}{}", if *watch { " +watch" } else { "" }),
        Call::Exists { path, watch } => format!("exists {path}{}", if *watch { " +watch" } else { "" }),
        Call::Children { path } => format!("children {path}"),
        Call::Acl { path } => format!("acl {path}"),
        Call::Watch { path, mode } => format!("watch {path} {mode:?}"),
    }
}
