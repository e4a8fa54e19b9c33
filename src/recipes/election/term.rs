//! Handing a term over from a lost session to the next one, for a leader whose work is protected by a lease
//! meanwhile.
//!
//! The contender of the lost session, X, exists until that session ends, and nobody else leads before. The next
//! session creates Y, whose name has X's rank, so that in the order Y is where X is. Then it lists. If X is in
//! that list, which is no older than Y, then X existed when Y was created: one of ours has had that
//! rank at every instant since the term began. A process that sees that X is gone sees that Y is there, for servers
//! apply changes in one order. So the term goes on, with its epoch. If X is not in the list, somebody else may have
//! led: Y is deleted, and the term is over.
//!
//! Y must never lead by its rank alone. Its creation may be applied late, when X is gone and another leads
//! already.
//!
//! A process that does not go by ranks (a `LeaderLatch` of Curator's, or a zkmw from before there were any) would lead
//! as soon as X is gone if it is before Y by sequence numbers. Then the term is not handed over. Those that
//! come later are behind Y.
//!
//! The epoch stays that of the first contender of the term: a contender between X and Y has a greater one, and
//! must not find a still greater one in use before it leads.

use super::{Election, Purpose, State};
use crate::contract::contender::{self, Contender};
use crate::machine::{Actions, Call, CreateMode, Level};

/// What a leader leads by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Term {
    /// The czxid of its first contender.
    pub(super) epoch: i64,
    /// That one's rank.
    rank: String,
    /// Contenders of ours, of which one existed at every instant since the term began. The last is the newest.
    contenders: Vec<String>,
}

impl Term {
    /// The term of a contender that is the first of all.
    pub(super) fn begin(epoch: i64, own: &str) -> Term {
        let rank = Contender::parse(own).map_or_else(String::new, |own| own.rank.to_string());
        Term { epoch, rank, contenders: vec![own.to_string()] }
    }
}

impl Election {
    /// The epoch of a term that may go on: it leads, or leads again if its term can be handed over. Between two
    /// sessions nothing but the lease of the lost one says that nobody else leads.
    pub fn term(&self) -> Option<i64> {
        match &self.state {
            State::Leading { term, .. } | State::Suspended(term) | State::Inheriting { term, .. } => {
                Some(term.epoch)
            }
            _ => None,
        }
    }

    /// The connection is gone. A leader keeps its term, to hand it over to the next session with [`Election::inherit`].
    pub fn suspend(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Out);
        self.on_lost();
        if let State::Leading { term, .. } | State::Suspended(term) | State::Inheriting { term, .. } = state {
            self.state = State::Suspended(term);
        }
    }

    /// A session is up: tries to hand a suspended term over to it. In the end [`Election::leading`] has the epoch of
    /// the term, or [`Election::term`] has none any more.
    pub fn inherit<R>(&mut self, out: &mut Actions<R>) {
        let State::Suspended(term) = &self.state else { return };
        let term = term.clone();
        let call = Call::Create {
            path: self.path(&contender::inheriting_prefix(&self.uuid, &term.rank)),
            data: self.data.clone(),
            mode: CreateMode::EphemeralSequential,
        };
        self.calls.issue(out, call, Purpose::Inherit);
        self.state = State::Inheriting { name: None, term };
    }

    /// Ends a term that was not handed over yet. Its contender exists until its session ends.
    pub fn abandon<R>(&mut self, out: &mut Actions<R>) {
        if matches!(self.state, State::Suspended(_) | State::Inheriting { .. }) {
            self.withdraw(out);
        }
    }

    /// Deletes the contenders of earlier sessions from which the term was handed over. Not before whatever they protect
    /// is protected by the present session for as long.
    pub fn delete_replaced<R>(&mut self, out: &mut Actions<R>) {
        let State::Leading { term, .. } = &mut self.state else { return };
        let newest = term.contenders.len().saturating_sub(1);
        let replaced: Vec<String> = term.contenders.drain(..newest).collect();
        for name in replaced {
            self.delete_old(&name, out);
        }
    }

    /// A contender with an inherited rank was created.
    pub(super) fn on_heir<R>(&mut self, created: &str, out: &mut Actions<R>) {
        match &mut self.state {
            State::Inheriting { name, .. } => {
                *name = Some(created.to_string());
                self.read_own(out);
            }
            // It is to get an ordinary rank by now, and must not lead by this one.
            State::Entering => {
                self.delete_old(created, out);
                self.contend(out);
            }
            State::Out
            | State::Ranking { .. }
            | State::Following { .. }
            | State::Leading { .. }
            | State::Suspended(_)
            | State::Leaving => self.delete_old(created, out),
        }
    }

    /// The directory is gone, with all contenders in it.
    pub(super) fn on_no_heir<R>(&mut self, out: &mut Actions<R>) {
        if let State::Inheriting { .. } = self.state {
            self.state = State::Out;
        } else if self.state == State::Entering {
            self.contend(out);
        }
    }

    /// Goes on with the term if the list, which is no older than the own contender, proves that it never ended.
    pub(super) fn prove<R>(&mut self, czxid: i64, names: &[String], out: &mut Actions<R>) {
        let State::Inheriting { name: Some(own), term } = &self.state else { return };
        let (own, mut term) = (own.clone(), term.clone());
        term.contenders.retain(|name| names.contains(name));
        if let Some(why) = self.objection(&own, &term, names) {
            out.log(
                Level::Warn,
                format!("the lead in {} can't be handed over to the new session: {why}", self.dir),
            );
            return self.withdraw(out);
        }
        let prefix = contender::prefix_of_all(&self.uuid);
        // Those of sessions in which nothing was proved.
        let unproved = names
            .iter()
            .filter(|name| name.starts_with(&prefix) && **name != own && !term.contenders.contains(name));
        unproved.for_each(|name| self.delete_old(name, out));
        term.contenders.push(own.clone());
        self.state = State::Leading { name: own, czxid, term };
    }

    /// Why the term can't go on with this contender.
    fn objection(&self, own: &str, term: &Term, names: &[String]) -> Option<String> {
        if term.contenders.is_empty() || !names.iter().any(|name| name == own) {
            return Some("its contender of the session before is gone, so another may lead".into());
        }
        let Some(own) = Contender::parse(own).filter(|own| own.rank == term.rank) else {
            return Some(format!("the sequence numbers there are beyond their end ({own})"));
        };
        let prefix = contender::prefix_of_all(&self.uuid);
        let others =
            names.iter().filter(|name| !name.starts_with(&prefix)).filter_map(|name| Contender::parse(name));
        let mut unaware = others.filter(|other| !other.respects_ranks && other.sequence < own.sequence);
        let unaware = unaware.next()?;
        Some(format!(
            "{} contends behind it, of a library or version that does not know how to be handed over",
            unaware.name
        ))
    }
}
