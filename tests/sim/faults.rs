//! The faults, and how they are healed.

use zkmw::machine::{Call, Refusal};

use super::life::ROOT;
use super::member::{Kind, Who};
use super::swarm::{Fault, MS, SECOND, SERVERS};
use super::users::ClientSpec;
use super::world::{Ev, World};

/// ZooKeeper's code for a quota that is used up.
const QUOTA_EXCEEDED: i32 = -125;

impl World {
    /// The live members of this kind.
    fn live_members(&self, is: impl Fn(&Kind) -> bool) -> Vec<Who> {
        let all = self.members.iter().enumerate();
        all.filter(|(_, member)| member.program.is_some() && is(&member.kind))
            .map(|(m, member)| Who { m, life: member.life })
            .collect()
    }

    fn victim(&mut self, is: impl Fn(&Kind) -> bool) -> Option<Who> {
        let all = self.live_members(is);
        self.dice.pick(&all).copied()
    }

    /// Something happens to this life of the member that may cost it its session.
    pub fn hurt(&mut self, who: Who) {
        self.history.hurt.entry(who.life).or_insert(self.now);
    }

    /// A time that is mostly short, at most until all is healed.
    fn spell(&mut self, mean: u64) -> u64 {
        let spell = self.dice.around(mean);
        (self.now + spell).min(self.heals_at).max(self.now)
    }

    pub fn on_fault(&mut self, fault: Fault) {
        if self.healed {
            return;
        }
        let mean =
            self.swarm.faults.iter().find(|(kind, _)| *kind == fault).map_or(SECOND, |(_, mean)| *mean);
        let next = self.dice.around(mean);
        self.after(next, Ev::Fault(fault));
        match fault {
            Fault::CrashMaster => self.crash_one(|kind| matches!(kind, Kind::Master)),
            Fault::CrashWorker => self.crash_one(|kind| matches!(kind, Kind::Worker { .. })),
            Fault::CrashElector => self.crash_one(|kind| matches!(kind, Kind::Elector { .. })),
            Fault::CrashClient => self.crash_client(),
            Fault::Stop => self.stop_one(),
            Fault::Break => self.break_one(),
            Fault::CutLink | Fault::CutMember => self.cut(fault == Fault::CutMember),
            Fault::CutServer => self.cut_one_server(),
            Fault::CrashServer => self.crash_one_server(),
            Fault::RestartNext => self.restart_next(),
            Fault::LoseQuorum => self.lose_quorum(),
            Fault::Lag => self.lag_one_server(),
            Fault::Slow => self.slow_one(),
            Fault::Term => {
                let again = self.dice.per_mille(300);
                self.ask(|kind| !kind.is_client(), again);
            }
            Fault::Interrupt => {
                let again = self.dice.per_mille(200);
                self.ask(Kind::is_client, again);
            }
            Fault::Double => self.double(),
            Fault::LoseKeeper => self.lose_one_keeper(),
            Fault::Garbage => self.garbage(),
            Fault::Refuse => self.refuse(),
            Fault::Throttle => self.throttle(),
            Fault::Vanish => self.vanish(),
        }
    }

    fn crash_one(&mut self, is: impl Fn(&Kind) -> bool) {
        if let Some(who) = self.victim(is) {
            self.hurt(who);
            self.crash(who.m, "is killed");
        }
    }

    fn stop_one(&mut self) {
        let Some(who) = self.victim(|_| true) else { return };
        let mean = if self.dice.per_mille(500) { SECOND } else { 2 * self.swarm.timeout };
        let until = self.spell(mean);
        self.stop(who, until);
    }

    fn break_one(&mut self) {
        let Some(who) = self.victim(|_| true) else { return };
        self.hurt(who);
        let generation = self.members[who.m].generation;
        self.on_break(who, generation);
    }

    fn slow_one(&mut self) {
        let Some(who) = self.victim(|_| true) else { return };
        self.hurt(who);
        let until = self.spell(4 * SECOND);
        let most = self.dice.between(1, 300) * MS;
        self.members[who.m].slow = (until, most);
    }

    fn lose_one_keeper(&mut self) {
        if let Some(who) = self.victim(Kind::runs) {
            self.lose_keeper(who.m);
        }
    }

    fn any_server(&mut self) -> usize {
        self.dice.below(SERVERS as u64) as usize
    }

    fn cut_one_server(&mut self) {
        let server = self.any_server();
        let until = self.spell(4 * SECOND);
        self.hurt_clients(server);
        self.cut_server(server, until);
    }

    fn crash_one_server(&mut self) {
        let server = self.any_server();
        let back = self.dice.around(3 * SECOND);
        self.hurt_clients(server);
        self.crash_server(server, back);
    }

    fn restart_next(&mut self) {
        if self.servers.iter().all(|server| server.serves(self.now)) {
            let back = self.dice.between(200 * MS, 2 * SECOND);
            self.crash_server(self.restarts % SERVERS, back);
            self.restarts += 1;
        }
    }

    fn lose_quorum(&mut self) {
        let spared = self.any_server();
        let back = self.dice.around(6 * SECOND);
        for server in (0..SERVERS).filter(|server| *server != spared) {
            let later = self.dice.below(SECOND);
            self.hurt_clients(server);
            self.crash_server(server, back + later);
        }
        self.hurt_clients(spared);
    }

    fn lag_one_server(&mut self) {
        let server = self.any_server();
        let spell = self.dice.around(SECOND);
        self.trace("server", || format!("** {server} lags for {} ms **", spell / MS));
        self.servers[server].lags = self.now + spell;
        self.hurt_clients(server);
    }

    /// A client with a key mostly comes again, and takes over the task that it left.
    fn crash_client(&mut self) {
        let Some(who) = self.victim(Kind::is_client) else { return };
        self.hurt(who);
        self.crash(who.m, "is killed");
        let comes_again = matches!(&self.members[who.m].kind, Kind::Client(spec) if spec.key.is_some());
        if comes_again && self.dice.per_mille(700) {
            let pause = self.dice.around(2 * SECOND);
            self.after(pause, Ev::Again(who.m));
        }
    }

    /// A user makes the same request once more.
    pub fn on_again(&mut self, m: usize) {
        if let (false, Kind::Client(spec)) = (self.healed, &self.members[m].kind) {
            let spec = ClientSpec::clone(spec);
            self.send("again", spec);
        }
    }

    /// Every member at this server may lose its session.
    fn hurt_clients(&mut self, server: usize) {
        for who in self.live_members(|_| true) {
            if self.members[who.m].net.as_ref().is_none_or(|net| net.server == server) {
                self.hurt(who);
            }
        }
    }

    pub fn stop(&mut self, who: Who, until: u64) {
        self.hurt(who);
        self.trace(&self.members[who.m].name, || {
            format!("** is suspended for {} ms **", (until - self.now) / MS)
        });
        self.members[who.m].stopped = until;
        self.at(until, Ev::Resume(who));
    }

    /// Nothing gets through between a member and one server, or all, in one direction or in both.
    fn cut(&mut self, all: bool) {
        let Some(who) = self.victim(|_| true) else { return };
        self.hurt(who);
        let timeout = self.swarm.timeout;
        let until = self.spell(timeout);
        let (out, back) = match self.dice.below(4) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        let present = self.members[who.m].net.as_ref().map(|net| net.server);
        for server in 0..SERVERS {
            if all || present == Some(server) {
                let cut = &mut self.cuts[who.m][server];
                *cut = (if out { until } else { cut.0 }, if back { until } else { cut.1 });
            }
        }
        self.trace(&self.members[who.m].name, || {
            let span = (until - self.now) / MS;
            format!("** cut off for {span} ms (out {out}, back {back}, all servers {all}) **")
        });
    }

    fn ask(&mut self, is: impl Fn(&Kind) -> bool, again: bool) {
        if let Some(who) = self.victim(is) {
            self.on_signal(who);
            if again {
                let later = self.patience();
                self.after(later, Ev::Signal(who));
            }
        }
    }

    /// Somebody starts a worker whose name is taken.
    fn double(&mut self) {
        let name = self.dice.below(self.swarm.workers);
        let n = self.members.len();
        if n > 80 {
            return;
        }
        let m = self.add(format!("w{name}'{n}"), Kind::Worker { name, slots: 1, zone: false });
        self.members[m].comes_back = false;
        self.on_start(m, 0);
        let lasts = self.dice.around(30 * SECOND);
        let who = self.who(m);
        self.after(lasts, Ev::Kill(who));
    }

    /// An outsider writes foreign data.
    fn garbage(&mut self) {
        const WHAT: &[&[u8]] = &[
            b"",
            b"garbage",
            b"{",
            b"[]",
            b"{\"v\":2,\"command\":\"ok\"}",
            b"{\"v\":1}",
            b"\xff\xfe",
            b"{\"command\":1}",
            b"{\"command\":\"ok\",\"attempt\":0}",
        ];
        let what = WHAT[self.dice.below(WHAT.len() as u64) as usize];
        let n = self.dice.below(6);
        let path = match self.dice.below(9) {
            0 => format!("{ROOT}/tasks/garbage{n}"),
            1 => format!("{ROOT}/tasks/garbage{n}/x{n}"),
            2 => format!("{ROOT}/tasks/_0{n}/garbage{n}"),
            3 => format!("{ROOT}/workers/garbage{n}"),
            4 => format!("{ROOT}/workers/garbage~{n}~0"),
            5 => format!("{ROOT}/assign/garbage{n}"),
            6 => format!("{ROOT}/master/garbage{n}"),
            7 => format!("{ROOT}/tasks/garbage~000{n}"),
            _ => format!("{ROOT}/status"),
        };
        self.trace("outsider", || format!("writes {path}"));
        self.ens.put(&path, what);
    }

    /// An assignment is closed to masters.
    fn refuse(&mut self) {
        let assignments = format!("{ROOT}/assign/");
        let tree = self.ens.tree();
        let assignments: Vec<String> =
            tree.keys().filter(|path| path.starts_with(&assignments)).cloned().collect();
        let Some(assignment) = self.dice.pick(&assignments).cloned() else { return };
        let forbidden = self.dice.per_mille(300);
        let until = self.spell(4 * SECOND);
        self.trace("server", || format!("** refuses {assignment} (by an ACL: {forbidden}) **"));
        self.refused = Some((assignment, forbidden, until));
    }

    /// Why a master may not make a call now. An ACL forbids all calls, a quota only those that write data.
    pub fn refusal(&self, who: Who, call: &Call) -> Option<Refusal> {
        let (assignment, forbidden, until) = self.refused.as_ref()?;
        let is_master = matches!(self.members[who.m].kind, Kind::Master);
        if !is_master || call.path() != assignment || *until <= self.now {
            return None;
        }
        let grows = matches!(call, Call::Create { .. } | Call::Set { .. });
        if *forbidden { Some(Refusal::NoAuth) } else { grows.then_some(Refusal::Other(QUOTA_EXCEEDED)) }
    }

    /// A server refuses requests.
    fn throttle(&mut self) {
        let server = self.any_server();
        let part = self.dice.between(50, 900);
        let until = self.spell(4 * SECOND);
        self.trace("server", || format!("** {server} refuses {part} in a thousand reads and deletes **"));
        self.throttled = Some((server, part, until));
        self.hurt_clients(server);
    }

    /// Whether a server refuses a call now, which its client then makes again.
    pub fn is_throttled(&mut self, server: usize, call: &Call) -> bool {
        let Some((throttled, part, until)) = self.throttled else { return false };
        let may = !matches!(call, Call::Create { .. } | Call::Set { .. });
        may && throttled == server && until > self.now && self.dice.per_mille(part)
    }

    /// An outsider deletes the summary, a lease, or an empty directory. (A registration, an assignment or a contender
    /// proves that its holder may run something. Without it runs can overlap, and no code can prevent that, so the
    /// checkers could not stay as they are.)
    fn vanish(&mut self) {
        let tree = self.ens.tree();
        let is_ours = |path: &str| {
            path == format!("{ROOT}/status") || path.starts_with(&format!("{ROOT}/leases/")) || {
                let name = path.strip_prefix(ROOT).and_then(|below| below.strip_prefix('/'));
                name.is_some_and(|name| !name.contains('/'))
            }
        };
        let has_children = |path: &str| {
            let below = format!("{path}/");
            tree.range(below.clone()..).next().is_some_and(|(child, _)| child.starts_with(&below))
        };
        let all: Vec<String> =
            tree.keys().filter(|path| is_ours(path) && !has_children(path)).cloned().collect();
        let Some(path) = self.dice.pick(&all).cloned() else { return };
        self.trace("outsider", || format!("deletes {path}"));
        self.ens.remove(&path);
    }

    /// All faults are over: ended members come back, suspended ones go on, and every link works.
    pub fn heal(&mut self) {
        self.trace("-", || "==== everything is healed ====".into());
        self.healed = true;
        (self.refused, self.throttled) = (None, None);
        for cut in &mut self.cuts {
            *cut = [(0, 0); SERVERS];
        }
        for server in 0..SERVERS {
            self.servers[server].cut = self.servers[server].cut.min(self.now);
            self.servers[server].lags = 0;
            self.on_restart(server);
            self.on_join(server);
        }
        // The outsider removes its data.
        let tree = self.ens.tree();
        let foreign: Vec<String> =
            tree.keys().rev().filter(|path| path.contains("garbage")).cloned().collect();
        for path in foreign {
            self.ens.remove(&path);
        }
        for m in 0..self.members.len() {
            let who = self.who(m);
            self.members[m].slow = (0, 0);
            if self.members[m].name.contains('\'') && self.lives(who) {
                self.crash(m, "has done enough");
            }
        }
    }
}
