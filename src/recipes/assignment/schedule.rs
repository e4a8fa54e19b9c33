//! When pages are to be read or written: at once, as far as the book's window allows, or when their time has come.
//! What is due leaves the times at once, whether or not it can be served, so nobody is woken for it twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::contract::Incarnation;
use crate::machine::Instant;

#[derive(Clone, Copy, Debug)]
struct Wait {
    lag: Duration,
    /// When it is over; set by the next [`Schedule::advance`].
    at: Option<Instant>,
}

/// The pages that something is to be done with.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    at_once: BTreeSet<Incarnation>,
    waits: BTreeMap<Incarnation, Wait>,
    /// Waits that have no time yet.
    fresh: BTreeSet<Incarnation>,
    times: BTreeSet<(Instant, Incarnation)>,
}

impl Schedule {
    /// As soon as the window allows.
    pub fn at_once(&mut self, incarnation: &Incarnation) {
        self.at_once.insert(incarnation.clone());
    }

    /// Within this time from the next [`Schedule::advance`], unless it is due earlier anyway.
    pub fn within(&mut self, incarnation: &Incarnation, lag: Duration) {
        if self.waits.get(incarnation).is_none_or(|wait| lag < wait.lag) {
            self.stop_waiting(incarnation);
            self.waits.insert(incarnation.clone(), Wait { lag, at: None });
            self.fresh.insert(incarnation.clone());
        }
    }

    /// Its time need not come any more.
    pub fn stop_waiting(&mut self, incarnation: &Incarnation) {
        self.fresh.remove(incarnation);
        if let Some(Wait { at: Some(at), .. }) = self.waits.remove(incarnation) {
            self.times.remove(&(at, incarnation.clone()));
        }
    }

    /// Nothing is to be done with it.
    pub fn forget(&mut self, incarnation: &Incarnation) {
        self.at_once.remove(incarnation);
        self.stop_waiting(incarnation);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Schedule::default();
    }

    /// It is `now`: whatever is due by then is to be done at once.
    pub fn advance(&mut self, now: Instant) {
        for incarnation in std::mem::take(&mut self.fresh) {
            if let Some(wait) = self.waits.get_mut(&incarnation) {
                let at = now + wait.lag;
                wait.at = Some(at);
                self.times.insert((at, incarnation));
            }
        }
        while let Some((at, incarnation)) = self.times.pop_first() {
            if at > now {
                self.times.insert((at, incarnation));
                break;
            }
            self.waits.remove(&incarnation);
            self.at_once.insert(incarnation);
        }
    }

    /// The next that is to be done at once.
    pub fn pop(&mut self) -> Option<Incarnation> {
        self.at_once.pop_first()
    }

    /// When [`Schedule::advance`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        self.times.first().map(|(at, _)| *at)
    }
}
