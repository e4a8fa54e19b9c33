//! Turns the servers' names into addresses, again for every round of connecting, and never for long.
//!
//! `getaddrinfo` can block for half a minute. Each name is resolved on a thread of its own; one that is late is
//! left running, its answer used when it comes, and no second one started for the same name meanwhile. A name
//! that does not resolve does not spoil the others.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use crate::threads;

/// How long a round waits for names when it has no address at all.
const WAIT_FOR_ANY: Duration = Duration::from_secs(2);
/// How long it waits for the rest when it has one.
const WAIT_FOR_MORE: Duration = Duration::from_millis(200);
/// More addresses than this of one name are ignored.
const ADDRESSES_MAX: usize = 64;

type Answer = Result<Vec<SocketAddr>, LookupError>;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
enum LookupError {
    #[error("{0}")]
    Failed(io::Error),
    #[error("no thread for looking it up")]
    NoThread,
    #[error("looking it up takes long")]
    Late,
    #[error("looking it up failed")]
    Died,
}

/// What is known of the servers' names.
#[derive(Default)]
pub struct Resolver {
    pending: BTreeMap<String, Receiver<Answer>>,
}

/// The result of one round.
#[derive(Debug, Default)]
pub struct Resolved {
    /// Each address once.
    pub addresses: Vec<SocketAddr>,
    /// The names without one, and why.
    pub unresolved: Vec<(String, String)>,
}

impl Resolver {
    /// Resolves the names of all servers.
    pub fn resolve(&mut self, servers: &[(String, u16)]) -> Resolved {
        let mut resolved = Resolved::default();
        let mut names = Vec::new();
        for (host, port) in servers {
            match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
                Ok(address) => resolved.add(vec![SocketAddr::new(address, *port)]),
                Err(_) => {
                    self.start(host, *port);
                    names.push(key(host, *port));
                }
            }
        }
        let started = Instant::now();
        for name in names {
            let wait = if resolved.addresses.is_empty() { WAIT_FOR_ANY } else { WAIT_FOR_MORE };
            match self.take(&name, started + wait) {
                Ok(addresses) => resolved.add(addresses),
                Err(why) => resolved.unresolved.push((name, why.to_string())),
            }
        }
        resolved
    }

    fn start(&mut self, host: &str, port: u16) {
        let name = key(host, port);
        if self.pending.contains_key(&name) {
            return;
        }
        let (answer, receiver) = bounded(1);
        let host = host.to_owned();
        let started = threads::spawn("zk-resolve", move || {
            let found = (host.as_str(), port).to_socket_addrs();
            let found = found.map(|found| found.take(ADDRESSES_MAX).collect());
            let _ = answer.send(found.map_err(LookupError::Failed));
        });
        if started.is_ok() {
            self.pending.insert(name, receiver);
        }
    }

    fn take(&mut self, name: &str, deadline: Instant) -> Answer {
        let Some(receiver) = self.pending.get(name) else {
            return Err(LookupError::NoThread);
        };
        match receiver.recv_deadline(deadline) {
            Ok(answer) => {
                self.pending.remove(name);
                answer
            }
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => Err(LookupError::Late),
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => {
                self.pending.remove(name);
                Err(LookupError::Died)
            }
        }
    }
}

fn key(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

impl Resolved {
    fn add(&mut self, addresses: Vec<SocketAddr>) {
        for address in addresses {
            if !self.addresses.contains(&address) {
                self.addresses.push(address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_need_no_lookup_and_occur_once() {
        let servers =
            [("127.0.0.1".into(), 1), ("::1".into(), 2), ("[::1]".into(), 2), ("127.0.0.1".into(), 1)];
        let resolved = Resolver::default().resolve(&servers);
        assert_eq!(resolved.addresses, ["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()]);
        assert!(resolved.unresolved.is_empty());
    }
}
