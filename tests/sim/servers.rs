//! The servers' own work: they forward writes, learn of commits, ping, fail and come back. The time of each is drawn;
//! its effect is up to the ensemble.

use std::collections::VecDeque;

use zkmw::machine::ChangeKind;

use super::ensemble::{ServerId, SessionId};
use super::member::Who;
use super::swarm::{MS, SECOND, SERVERS};
use super::world::{Ev, World};

/// Half of the ensemble's tick: so often followers report to the leader the sessions that they have heard of.
const PING_EVERY: u64 = SECOND;

/// A server, as far as the driver has to know.
#[derive(Debug, Default)]
pub struct Server {
    pub down: bool,
    /// It is cut off from the others until then.
    pub cut: u64,
    /// It learns of nothing until then.
    pub lags: u64,
    forwarding: bool,
    applying: bool,
}

impl Server {
    /// Whether it takes new sessions.
    pub fn serves(&self, now: u64) -> bool {
        !self.down && self.cut <= now
    }
}

/// A server's end of a connection.
#[derive(Debug)]
pub struct Line {
    pub server: ServerId,
    pub who: Who,
    pub generation: u64,
    pub open: bool,
    /// Nothing gets to the server before then.
    pub stalled: u64,
    /// When the last packet, and the last watch event, will be at the process.
    pub last: u64,
    pub last_change: u64,
    /// Watch events on their way, in their order.
    pub changes: VecDeque<(String, ChangeKind)>,
    /// How long the log was when the session was open.
    pub opened: u64,
    /// Heard of since the last ping.
    touched: bool,
}

impl Line {
    pub fn new(server: ServerId, who: Who, opened: u64) -> Line {
        Line {
            server,
            who,
            generation: 0,
            open: true,
            stalled: 0,
            last: 0,
            last_change: 0,
            changes: VecDeque::new(),
            opened,
            touched: false,
        }
    }
}

impl World {
    /// The server has heard of the session; the leader learns of it with the next ping.
    pub fn touch(&mut self, session: SessionId) {
        let Some(line) = self.lines.get_mut(&session) else { return };
        line.touched = true;
        if self.ens.leader() == Some(line.server) {
            self.ens.heard(session);
        }
    }

    pub fn on_ping(&mut self) {
        for (session, line) in &mut self.lines {
            let server = &self.servers[line.server];
            if line.touched && server.serves(self.now) {
                line.touched = false;
                self.ens.heard(*session);
            }
        }
        self.lines.retain(|session, line| line.open || self.ens.is_alive(*session));
        self.after(PING_EVERY, Ev::Ping);
    }

    pub fn forward_soon(&mut self, server: ServerId) {
        if !self.servers[server].forwarding {
            self.servers[server].forwarding = true;
            let delay = self.dice.between(50_000, MS);
            self.after(delay, Ev::Forward(server));
        }
    }

    pub fn on_forward(&mut self, server: ServerId) {
        self.servers[server].forwarding = false;
        if self.ens.forward(server) {
            self.forward_soon(server);
        }
    }

    /// Runs after anything that may have been committed: every server will learn of it, and then its sessions get their
    /// output.
    pub fn settle_servers(&mut self) {
        self.trace_log();
        for server in 0..SERVERS {
            if !self.servers[server].applying && !self.servers[server].down && self.ens.lag(server) > 0 {
                self.servers[server].applying = true;
                let delay = if self.ens.leader() == Some(server) {
                    100_000
                } else {
                    let most = if self.healed { MS } else { self.swarm.apply };
                    self.dice.between(100_000, most)
                };
                let at = (self.now + delay).max(self.servers[server].lags);
                self.at(at, Ev::Apply(server));
            }
        }
    }

    pub fn on_apply(&mut self, server: ServerId) {
        self.servers[server].applying = false;
        if self.servers[server].cut > self.now {
            return;
        }
        // Commits come in bundles.
        let many = self.dice.between(1, 8);
        for _ in 0..many {
            if !self.ens.apply_next(server) {
                break;
            }
        }
        let sessions: Vec<_> = self
            .lines
            .iter()
            .filter(|(_, line)| line.server == server && line.open)
            .map(|(s, _)| *s)
            .collect();
        for session in sessions {
            self.poll(session);
            if !self.ens.is_alive(session) {
                // The server closes the connection of a session that has ended.
                let who = self.lines[&session].who;
                let travel = self.travel();
                self.on_fin(session);
                if self.lives(who) && self.members[who.m].net.as_ref().is_some_and(|n| n.session == session) {
                    let generation = self.members[who.m].net.as_ref().map_or(0, |net| net.generation);
                    self.after(travel, Ev::Break(who, generation));
                }
            }
        }
    }

    /// The server learns that the connection is over; the session lives on.
    pub fn on_fin(&mut self, session: SessionId) {
        if let Some(line) = self.lines.get_mut(&session).filter(|line| line.open) {
            line.open = false;
            self.ens.disconnect(session);
        }
    }

    /// The wish to close a session gets to the server, if anything does.
    pub fn on_close(&mut self, session: SessionId) {
        let Some(line) = self.lines.get(&session).filter(|line| line.open) else { return };
        let (server, m) = (line.server, line.who.m);
        let reached = self.cuts[m][server].0 <= self.now && self.servers[server].serves(self.now);
        if reached && self.ens.leader().is_some() {
            self.ens.close(session);
        }
        self.on_fin(session);
        self.forward_soon(server);
    }

    /// All connections to a server break.
    pub fn drop_clients(&mut self, server: ServerId) {
        let sessions: Vec<_> = self
            .lines
            .iter()
            .filter(|(_, line)| line.server == server && line.open)
            .map(|(s, _)| *s)
            .collect();
        for session in sessions {
            let (who, generation) = (self.lines[&session].who, self.lines[&session].generation);
            self.on_fin(session);
            let (out, back) = self.cuts[who.m][server];
            if out <= self.now && back <= self.now {
                let travel = self.travel();
                self.after(travel, Ev::Break(who, generation));
            }
            self.hurt(who);
        }
    }

    /// A server is reachable for the others again.
    pub fn on_join(&mut self, server: ServerId) {
        if self.servers[server].cut > self.now || self.servers[server].down {
            return;
        }
        // It may have lost the requests of its clients meanwhile. Then it has closed their connections too.
        if self.dice.per_mille(300) {
            self.drop_clients(server);
            while self.ens.drop_queued(server, 0) {}
        }
        self.ens.set_link(server, true);
        self.trace("server", || format!("{server} is back in the quorum"));
        self.forward_all();
    }

    pub fn on_restart(&mut self, server: ServerId) {
        if !self.servers[server].down {
            return;
        }
        self.servers[server].down = false;
        self.ens.restart(server);
        self.trace("server", || format!("{server} is up again"));
        self.forward_all();
    }

    fn forward_all(&mut self) {
        for server in 0..SERVERS {
            self.forward_soon(server);
        }
    }

    pub fn crash_server(&mut self, server: ServerId, back_in: u64) {
        if self.servers[server].down {
            return;
        }
        self.trace("server", || format!("** {server} dies **"));
        self.drop_clients(server);
        self.servers[server].down = true;
        self.ens.crash(server);
        self.after(back_in, Ev::Restart(server));
    }

    pub fn cut_server(&mut self, server: ServerId, until: u64) {
        if self.servers[server].down || self.servers[server].cut > self.now {
            return;
        }
        self.trace("server", || format!("** {server} is cut off **"));
        self.servers[server].cut = until;
        self.ens.set_link(server, false);
        self.at(until, Ev::Join(server));
        // It notices that after a while, and closes its clients' connections.
        let notices = self.dice.around(2 * SECOND);
        if self.now + notices < until {
            self.after(notices, Ev::Drop(server));
        }
    }

    fn trace_log(&mut self) {
        if !self.tracing {
            return;
        }
        let log = self.ens.log();
        for txn in &log[self.traced.min(log.len())..] {
            let by = self.history.by(txn.session).map_or("-", |who| self.members[who.m].name.as_str());
            let text = format!("{:?}", txn.op);
            let short: String = text.chars().take(400).collect();
            let seconds = (self.now - SECOND) as f64 / SECOND as f64;
            println!(
                "{seconds:>10.4} {:<8} zxid {:x} by {by} ({}): {short}",
                "ENSEMBLE", txn.zxid, txn.session.0
            );
        }
        self.traced = log.len();
    }
}
