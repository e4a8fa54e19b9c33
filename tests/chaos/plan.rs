//! The plan of the nemesis, drawn from a seed before the run begins: the same seed gives the same plan for ever.
//! Pure: no clock, no process. A plan does not know the later leaders, so some faults name a victim by its role.

use std::time::Duration;

use zkmw::machine::Prng;

use crate::hosts::{CLIENTS, ELECTORS, HOSTS, MASTERS, SERVERS, WORKERS};
use crate::net::{Impaired, Link};

/// The session timeout of everything in a run: of eight seconds a lease has more than three.
pub const SESSION: Duration = Duration::from_secs(8);

/// Nothing happens at first, so that everybody is there.
const FIRST: Duration = Duration::from_secs(4);

/// Between two faults in a storm, on average.
const BETWEEN_MS: u64 = 2_300;

/// A storm is followed by a calm, in which work gets done.
const STORM_MS: std::ops::Range<u64> = 15_000..40_000;
const CALM_MS: std::ops::Range<u64> = 4_000..10_000;

/// How long a fault lasts: most are over before a session could end, others end one.
const SHORT_MS: std::ops::Range<u64> = 200..2_500;
const LONG_MS: std::ops::Range<u64> = 9_000..14_000;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL for a role, which is started again at the end of the fault.
    Kill { host: usize },
    /// SIGKILL for the keeper of a worker or an elector, which starts another by itself.
    KillKeeper { host: usize },
    /// SIGSTOP for the keeper of a worker or an elector and for all slots, which are woken by those above them.
    StopSlots { host: usize },
    /// SIGSTOP, and SIGCONT at the end.
    Stop { host: usize },
    /// SIGTERM, a second one after a while or not, and a new process when the old one is gone.
    Restart { host: usize, twice: bool },
    /// SIGKILL for servers, by their hosts.
    KillServers { hosts: Vec<usize> },
    /// SIGKILL for the server that leads the ensemble then.
    KillLeadingServer,
    /// SIGSTOP for a server.
    StopServer { host: usize },
    /// A fault of links, with its description.
    Links { what: String, links: Vec<Link>, impaired: Impaired },
    /// A submitter that waits, one of those that there are then, gets SIGKILL, SIGTERM, or SIGSTOP until the end.
    HurtSubmitter { how: Hurt, pick: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hurt {
    Kill,
    Term,
    Stop,
}

/// A fault, its time, and the word by which its kind is counted and can be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub at: Duration,
    pub lasts: Duration,
    pub kind: &'static str,
    pub fault: Fault,
}

/// All kinds, with how often each is drawn. `freeze` is a stop that outlasts the session.
pub const KINDS: [(&str, u64); 29] = [
    ("kill-master", 6),
    ("kill-worker", 8),
    ("kill-elector", 4),
    ("kill-keeper", 3),
    ("stop-slots", 3),
    ("kill-server", 4),
    ("kill-leading-server", 4),
    ("kill-quorum", 2),
    ("kill-submitter", 3),
    ("term-submitter", 3),
    ("stop-submitter", 3),
    ("stop-master", 3),
    ("stop-worker", 4),
    ("stop-elector", 3),
    ("stop-server", 3),
    ("freeze-master", 4),
    ("freeze-worker", 6),
    ("freeze-elector", 4),
    ("freeze-server", 2),
    ("restart-master", 3),
    ("restart-worker", 5),
    ("restart-elector", 3),
    ("cut", 8),
    ("cut-one-way", 8),
    ("cut-between-servers", 4),
    ("isolate", 6),
    ("isolate-server", 3),
    ("lossy", 7),
    ("slow", 7),
];

/// Whether faults of this kind need links of our own.
pub fn needs_net(kind: &str) -> bool {
    ["cut", "isolate", "lossy", "slow"].iter().any(|word| kind.starts_with(word))
}

/// Draws the plan of a run of this length. `without` are kinds that are left out.
pub fn plan(seed: u64, length: Duration, without: &[String], net: bool) -> Vec<Planned> {
    let kinds: Vec<(&'static str, u64)> = KINDS
        .into_iter()
        .filter(|(kind, _)| !without.iter().any(|out| out == kind) && (net || !needs_net(kind)))
        .collect();
    let mut draw = Draw { chance: Prng::new(seed), busy: vec![Duration::ZERO; HOSTS.len()] };
    let mut planned: Vec<Planned> = Vec::new();
    let mut at = FIRST;
    let mut storm_ends = at + draw.millis(STORM_MS);
    while at < length {
        if let Some(next) = draw.fault(&kinds, at) {
            // A fault that would outlast the run is healed at its end.
            let lasts = next.lasts.min(length.saturating_sub(at));
            planned.push(Planned { lasts, ..next });
        }
        at += draw.millis(BETWEEN_MS / 5..BETWEEN_MS * 9 / 5);
        if at > storm_ends {
            at += draw.millis(CALM_MS);
            storm_ends = at + draw.millis(STORM_MS);
        }
    }
    planned
}

struct Draw {
    chance: Prng,
    /// Until when a process of a host is hurt: it is left alone so long.
    busy: Vec<Duration>,
}

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.chance.next_u64() % limit.max(1)
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        let length = range.end - range.start;
        Duration::from_millis(range.start + self.below(length))
    }

    fn one_of(&mut self, hosts: std::ops::Range<usize>) -> usize {
        let count = u64::try_from(hosts.len()).expect("few hosts");
        hosts.start + usize::try_from(self.below(count)).expect("a small number")
    }

    fn kind(&mut self, kinds: &[(&'static str, u64)]) -> Option<&'static str> {
        let mut left = self.below(kinds.iter().map(|(_, weight)| weight).sum());
        kinds.iter().find_map(|(kind, weight)| {
            let found = left < *weight;
            left = left.saturating_sub(*weight);
            found.then_some(*kind)
        })
    }

    /// One fault; nothing if its victim is hurt already.
    fn fault(&mut self, kinds: &[(&'static str, u64)], at: Duration) -> Option<Planned> {
        let kind = self.kind(kinds)?;
        let brief = self.below(10) < 6;
        let either = if brief { SHORT_MS } else { LONG_MS };
        let (verb, class) = kind.split_once('-').unwrap_or((kind, ""));
        let role = match class {
            "master" => Some(MASTERS),
            "worker" => Some(WORKERS),
            "elector" => Some(ELECTORS),
            _ => None,
        };
        if let Some(hosts) = role {
            let host = self.one_of(hosts);
            let (lasts, fault) = match verb {
                "kill" => (self.millis(either), Fault::Kill { host }),
                "stop" => (self.millis(SHORT_MS), Fault::Stop { host }),
                "freeze" => (self.millis(LONG_MS), Fault::Stop { host }),
                _ => (self.millis(SHORT_MS), Fault::Restart { host, twice: self.below(3) == 0 }),
            };
            return self.unless_busy(at, lasts, &[host], kind, fault);
        }
        if verb == "cut" || kind == "lossy" || kind == "slow" || verb == "isolate" {
            let lasts = self.millis(either);
            let fault = self.links(kind);
            return Some(Planned { at, lasts, kind, fault });
        }
        if let "kill-keeper" | "stop-slots" = kind {
            let host = self.one_of(WORKERS.start..ELECTORS.end);
            let kills = kind == "kill-keeper";
            let fault = if kills { Fault::KillKeeper { host } } else { Fault::StopSlots { host } };
            return self.unless_busy(at, Duration::from_millis(100), &[host], kind, fault);
        }
        let all: Vec<usize> = SERVERS.collect();
        let server = self.one_of(SERVERS);
        let (lasts, fault) = match kind {
            "kill-server" => (self.millis(either), Fault::KillServers { hosts: vec![server] }),
            "kill-leading-server" => (self.millis(either), Fault::KillLeadingServer),
            "kill-quorum" => {
                let hosts = all.iter().copied().filter(|host| *host != server).collect();
                (self.millis(either), Fault::KillServers { hosts })
            }
            "stop-server" => (self.millis(SHORT_MS), Fault::StopServer { host: server }),
            "freeze-server" => (self.millis(LONG_MS), Fault::StopServer { host: server }),
            _ => {
                let how = match verb {
                    "kill" => Hurt::Kill,
                    "term" => Hurt::Term,
                    _ => Hurt::Stop,
                };
                let fault = Fault::HurtSubmitter { how, pick: self.chance.next_u64() };
                return Some(Planned { at, lasts: self.millis(either), kind, fault });
            }
        };
        // One at a time of the servers: a minority, but where two of them are killed on purpose.
        self.unless_busy(at, lasts, &all, kind, fault)
    }

    fn unless_busy(
        &mut self,
        at: Duration,
        lasts: Duration,
        hosts: &[usize],
        kind: &'static str,
        fault: Fault,
    ) -> Option<Planned> {
        if hosts.iter().any(|host| self.busy[*host] > at) {
            return None;
        }
        // Two seconds more: a process that is started again needs time to come up.
        hosts.iter().for_each(|host| self.busy[*host] = at + lasts + Duration::from_secs(2));
        Some(Planned { at, lasts, kind, fault })
    }

    fn links(&mut self, kind: &str) -> Fault {
        let roles = MASTERS.start..CLIENTS.end;
        let cut = Impaired { cut: true, ..Impaired::default() };
        let (server, other) = (self.one_of(SERVERS), self.one_of(roles.clone()));
        let name = |host: usize| HOSTS[host];
        let both = |a: usize, b: usize| vec![(a, b), (b, a)];
        match kind {
            "cut" => {
                let what = format!("{} and {} cut off from each other", name(server), name(other));
                Fault::Links { what, links: both(server, other), impaired: cut }
            }
            "cut-one-way" => {
                let to_server = self.below(2) == 0;
                let (from, to) = if to_server { (other, server) } else { (server, other) };
                // From all servers as well, or there would be another way at once.
                let links = match self.below(2) {
                    0 => vec![(from, to)],
                    _ if to_server => SERVERS.map(|server| (other, server)).collect(),
                    _ => SERVERS.map(|server| (server, other)).collect(),
                };
                let what = format!("nothing from {} to {} ({} links)", name(from), name(to), links.len());
                Fault::Links { what, links, impaired: cut }
            }
            "cut-between-servers" => {
                let second = SERVERS.start + (server - SERVERS.start + 1) % SERVERS.len();
                let links = if self.below(2) == 0 { both(server, second) } else { vec![(server, second)] };
                let what = format!("{} to {} cut ({} links)", name(server), name(second), links.len());
                Fault::Links { what, links, impaired: cut }
            }
            "isolate" | "isolate-server" => {
                let host = if kind == "isolate" { other } else { server };
                let links = (0..HOSTS.len()).flat_map(|peer| both(host, peer)).collect();
                Fault::Links {
                    what: format!("{} isolated", name(host)),
                    links: seen_by_all(links),
                    impaired: cut,
                }
            }
            "lossy" => {
                let drop_permille = 10 + self.below(290);
                let (whose, links) = self.some_links(other);
                let what = format!("{whose} loses {} of 1,000 packets", drop_permille);
                Fault::Links { what, links, impaired: Impaired { drop_permille, ..Impaired::default() } }
            }
            _ => {
                let (delay_ms, jitter_ms) = (10 + self.below(490), self.below(200));
                let (whose, links) = self.some_links(other);
                let what = format!("{whose} is {delay_ms} to {} ms late", delay_ms + jitter_ms);
                Fault::Links {
                    what,
                    links,
                    impaired: Impaired { delay_ms, jitter_ms, ..Impaired::default() },
                }
            }
        }
    }

    /// All links of a role, of a server, or of everybody.
    fn some_links(&mut self, role: usize) -> (String, Vec<Link>) {
        let of = |host: usize| {
            let links = (0..HOSTS.len()).flat_map(|peer| [(host, peer), (peer, host)]).collect();
            (format!("every link of {}", HOSTS[host]), seen_by_all(links))
        };
        match self.below(4) {
            0 => {
                let all = (0..HOSTS.len()).flat_map(|from| (0..HOSTS.len()).map(move |to| (from, to)));
                ("every link".to_string(), seen_by_all(all.collect()))
            }
            1 => of(self.one_of(SERVERS)),
            _ => of(role),
        }
    }
}

/// Without the links of the observer, the last host: it must be able to ask for the leader.
fn seen_by_all(links: Vec<Link>) -> Vec<Link> {
    let observer = HOSTS.len() - 1;
    links.into_iter().filter(|(from, to)| from != to && *from != observer && *to != observer).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const LENGTH: Duration = Duration::from_secs(1_800);

    #[test]
    fn a_seed_gives_the_same_plan_and_another_one_another() {
        assert_eq!(plan(7, LENGTH, &[], true), plan(7, LENGTH, &[], true));
        assert_ne!(plan(7, LENGTH, &[], true), plan(8, LENGTH, &[], true));
    }

    #[test]
    fn every_kind_is_drawn_unless_it_is_left_out() {
        let kinds = |plan: Vec<Planned>| plan.iter().map(|next| next.kind).collect::<BTreeSet<_>>();
        let all: BTreeSet<_> = KINDS.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds(plan(1, LENGTH, &[], true)), all);
        let fewer = kinds(plan(1, LENGTH, &["freeze-worker".to_string()], false));
        assert!(!fewer.contains("freeze-worker") && !fewer.iter().any(|kind| needs_net(kind)), "{fewer:?}");
    }

    #[test]
    fn faults_end_in_time_and_no_victim_has_two_at_once() {
        let mut until = vec![Duration::ZERO; HOSTS.len()];
        for next in plan(3, LENGTH, &[], true) {
            assert!(next.at + next.lasts <= LENGTH, "{next:?}");
            if let Fault::Kill { host } | Fault::Stop { host } | Fault::Restart { host, .. } = next.fault {
                assert!(until[host] <= next.at, "{next:?}");
                until[host] = next.at + next.lasts;
            }
        }
    }
}
