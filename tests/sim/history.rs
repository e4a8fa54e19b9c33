//! The records for the checkers: the owner of each session, the clients' reports to their users, and the members that
//! were notified of each contender's end. The driver writes it; nothing reads it while the simulation goes on.

use std::collections::BTreeMap;

use zkmw::machine::ChangeKind;
use zkmw::roles::client::ClientReport;

use super::ensemble::SessionId;
use super::member::Who;

/// The record of a client.
#[derive(Clone, Debug, Default)]
pub struct Client {
    pub reports: Vec<(u64, ClientReport)>,
    pub exit: Option<(u64, i32)>,
    pub killed: bool,
    pub interrupted: bool,
}

/// All that happened.
#[derive(Debug, Default)]
pub struct History {
    pub sessions: BTreeMap<SessionId, Who>,
    pub clients: BTreeMap<usize, Client>,
    /// The members that were notified of a contender's deletion, and when.
    pub woken: BTreeMap<String, Vec<(u64, Who)>>,
    /// Lives that a fault may have cost their session, and since when.
    pub hurt: BTreeMap<u64, u64>,
    /// The member of each life.
    pub lives: BTreeMap<u64, (usize, String)>,
}

impl History {
    pub fn began(&mut self, who: Who, name: &str) {
        self.lives.insert(who.life, (who.m, name.to_string()));
        self.clients.entry(who.m).or_default();
    }

    pub fn opened(&mut self, session: SessionId, who: Who) {
        self.sessions.insert(session, who);
    }

    /// The owner of a session.
    pub fn by(&self, session: SessionId) -> Option<Who> {
        self.sessions.get(&session).copied()
    }

    pub fn report(&mut self, m: usize, now: u64, report: ClientReport) {
        self.clients.entry(m).or_default().reports.push((now, report));
    }

    pub fn exited(&mut self, m: usize, now: u64, code: i32) {
        self.clients.entry(m).or_default().exit = Some((now, code));
    }

    pub fn killed(&mut self, m: usize) {
        self.clients.entry(m).or_default().killed = true;
    }

    pub fn interrupted(&mut self, m: usize) {
        self.clients.entry(m).or_default().interrupted = true;
    }

    pub fn changed(&mut self, who: Who, now: u64, path: &str, kind: ChangeKind) {
        if kind == ChangeKind::Deleted && path.contains("latch-") {
            self.woken.entry(path.to_string()).or_default().push((now, who));
        }
    }
}
