//! Carries the plan out: at its time each fault begins, at its end it is healed, and all is written down. In the end
//! everything is whole again, whatever the plan was. Draws nothing, judges nothing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use crate::harness::Ensemble;
use crate::history::{Clock, Deed, History};
use crate::hosts::{HOSTS, SERVERS, Services};
use crate::load::{Load, host_of};
use crate::net::{Impaired, Link, Net};
use crate::plan::{Fault, Hurt, Planned};

/// The time between two checks of the clock and of the services.
const STEP: Duration = Duration::from_millis(10);

/// After a second SIGTERM.
const SECOND_TERM: Duration = Duration::from_millis(700);

/// How long a deed that is over at once is shown.
const MOMENT: Duration = Duration::from_millis(300);

/// The way to end a fault.
enum Undo {
    Start { host: usize },
    Cont { host: usize },
    StartServers { hosts: Vec<usize> },
    ContServer { host: usize },
    Links { links: Vec<Link>, impaired: Impaired },
    ContSubmitter { number: u32 },
    Nothing,
}

/// A fault that has begun.
struct Active {
    ends: f64,
    undo: Undo,
    deed: usize,
}

pub struct Nemesis<'a> {
    pub ensemble: &'a Ensemble,
    pub net: Arc<Net>,
    pub services: &'a mut Services,
    pub load: &'a Load,
    pub history: History,
    pub clock: Clock,
    active: Vec<Active>,
}

impl<'a> Nemesis<'a> {
    pub fn new(
        ensemble: &'a Ensemble,
        net: &Arc<Net>,
        services: &'a mut Services,
        load: &'a Load,
        clock: Clock,
    ) -> Nemesis<'a> {
        let (net, history) = (Arc::clone(net), History::default());
        Nemesis { ensemble, net, services, load, history, clock, active: Vec::new() }
    }

    /// From the beginning to the end of the plan, and then heals. `begin` is the plan's zero.
    pub fn run(&mut self, plan: &[Planned], begin: f64, length: Duration) {
        let mut next = plan.iter().peekable();
        while self.clock.now() < begin + length.as_secs_f64() {
            let now = self.clock.now();
            while let Some(due) = next.next_if(|planned| begin + planned.at.as_secs_f64() <= now) {
                self.begin(due);
            }
            self.end_those_due(now);
            self.services.check(&mut self.history);
            std::thread::sleep(STEP);
        }
        self.end_those_due(f64::INFINITY);
        self.load.cont(None);
        self.net.impair(&[]);
    }

    fn begin(&mut self, planned: &Planned) {
        let from = self.clock.now();
        let done = self.carry_out(&planned.fault);
        let Some((undo, hosts, text)) = done else { return };
        // A fault that needs no undoing is shown as a moment.
        let lasts = if matches!(undo, Undo::Nothing) { planned.lasts.min(MOMENT) } else { planned.lasts };
        let ends = from + lasts.as_secs_f64();
        let kind = planned.kind.to_string();
        self.history.deeds.push(Deed { from, until: ends, hosts, kind, text });
        self.active.push(Active { ends, undo, deed: self.history.deeds.len() - 1 });
        self.relink();
    }

    /// Nothing if the victim is not there.
    fn carry_out(&mut self, fault: &Fault) -> Option<(Undo, Vec<usize>, String)> {
        let name = |host: usize| HOSTS[host];
        Some(match fault {
            Fault::Kill { host } => {
                self.services.kill(*host).then_some(())?;
                (Undo::Start { host: *host }, vec![*host], format!("{} killed", name(*host)))
            }
            Fault::Stop { host } => {
                self.services.stop(*host).then_some(())?;
                (Undo::Cont { host: *host }, vec![*host], format!("{} stopped", name(*host)))
            }
            Fault::KillKeeper { host } => {
                self.services.kill_keeper(*host).then_some(())?;
                (Undo::Nothing, vec![*host], format!("the keeper of {} killed", name(*host)))
            }
            Fault::StopSlots { host } => {
                self.services.stop_slots(*host).then_some(())?;
                (Undo::Nothing, vec![*host], format!("the keeper of {} and its slots stopped", name(*host)))
            }
            Fault::Restart { host, twice } => {
                self.services.restart(*host, twice.then_some(SECOND_TERM)).then_some(())?;
                let how = if *twice { "asked twice to end" } else { "asked to end" };
                (Undo::Nothing, vec![*host], format!("{} {how}", name(*host)))
            }
            Fault::KillServers { hosts } => self.kill_servers(hosts.clone()),
            Fault::KillLeadingServer => {
                let leader = self.leading_server()?;
                self.kill_servers(vec![leader])
            }
            Fault::StopServer { host } => {
                self.ensemble.stop(id_of(*host));
                (Undo::ContServer { host: *host }, vec![*host], format!("{} stopped", name(*host)))
            }
            Fault::Links { what, links, impaired } => {
                (Undo::Links { links: links.clone(), impaired: *impaired }, rows(links), what.clone())
            }
            Fault::HurtSubmitter { how, pick } => {
                let (number, text) = self.load.hurt(*how, *pick)?;
                let undo = if *how == Hurt::Stop { Undo::ContSubmitter { number } } else { Undo::Nothing };
                (undo, vec![host_of(number)], text)
            }
        })
    }

    fn kill_servers(&self, hosts: Vec<usize>) -> (Undo, Vec<usize>, String) {
        for host in &hosts {
            self.ensemble.kill(id_of(*host));
        }
        let names: Vec<&str> = hosts.iter().map(|host| HOSTS[*host]).collect();
        let text = format!("{} killed", names.join(" and "));
        (Undo::StartServers { hosts: hosts.clone() }, hosts, text)
    }

    /// The host of the server that says that it leads.
    fn leading_server(&self) -> Option<usize> {
        SERVERS.into_iter().find(|host| {
            let answer = asked(&self.ensemble.connect_to(id_of(*host))).unwrap_or_default();
            answer.contains("Mode: leader")
        })
    }

    fn end_those_due(&mut self, now: f64) {
        let (due, active) = std::mem::take(&mut self.active).into_iter().partition(|one| one.ends <= now);
        self.active = active;
        let due: Vec<Active> = due;
        if due.is_empty() {
            return;
        }
        for one in due {
            match &one.undo {
                Undo::Start { host } => self.services.again(*host),
                Undo::Cont { host } => self.services.cont(*host),
                Undo::StartServers { hosts } => {
                    hosts.iter().for_each(|host| self.ensemble.start_no_wait(id_of(*host)));
                }
                Undo::ContServer { host } => self.ensemble.cont(id_of(*host)),
                Undo::ContSubmitter { number } => self.load.cont(Some(*number)),
                Undo::Links { .. } | Undo::Nothing => {}
            }
            self.history.deeds[one.deed].until = self.clock.now();
        }
        self.relink();
    }

    fn relink(&self) {
        let links = |one: &Active| match &one.undo {
            Undo::Links { links, impaired } => Some((links.clone(), *impaired)),
            _ => None,
        };
        self.net.impair(&self.active.iter().filter_map(links).collect::<Vec<_>>());
    }
}

/// The hosts that the links are about: those that all links have in common, else all their ends.
fn rows(links: &[Link]) -> Vec<usize> {
    let ends = |host: usize| links.iter().filter(move |(from, to)| *from == host || *to == host).count();
    let all: Vec<usize> = (0..HOSTS.len()).filter(|host| ends(*host) > 0).collect();
    let common: Vec<usize> = all.iter().copied().filter(|host| ends(*host) == links.len()).collect();
    if common.is_empty() { all } else { common }
}

/// The number of the server on this host.
fn id_of(host: usize) -> u32 {
    u32::try_from(host - SERVERS.start).expect("few servers") + 1
}

/// A server's answer to `srvr`, if it comes soon.
fn asked(address: &str) -> Option<String> {
    let limit = Duration::from_millis(500);
    let mut stream = TcpStream::connect_timeout(&address.parse().ok()?, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    stream.write_all(b"srvr").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
