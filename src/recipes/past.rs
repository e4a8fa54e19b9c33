//! Past: whether the ensemble's data went back, because an older copy of it was restored, or all of it was lost.
//!
//! Transactions have numbers that only grow. A write of one's own is later than all that one has seen before it was
//! made, whatever server answered; a lagging one changes nothing about that. So if its number is smaller than one
//! that was seen on an earlier connection, the ensemble has forgotten that one. This proves it, and may miss it: a
//! restored ensemble of several servers begins a new epoch, whose numbers are larger. So no role relies on it. A role
//! compares what it remembers beyond a connection with what it reads after a write of its own. This recipe warns of
//! what no role can see: fencing tokens are such numbers, and may be given out a second time.

use crate::machine::{Actions, Event, Level, Reply};

/// What one process has seen of the ensemble's transactions.
#[derive(Debug, Default)]
pub struct Past {
    /// The largest number that was seen.
    newest: i64,
    /// The same, before the present connection.
    before: i64,
}

impl Past {
    /// Notes what an event shows. To be called with every one, first of all.
    pub fn observe(&mut self, event: &Event) {
        match event {
            Event::Connected { .. } => self.before = self.newest,
            Event::Reply { result: Ok(Reply::Stat(stat) | Reply::Data { stat, .. }), .. } => {
                self.newest = self.newest.max(stat.czxid).max(stat.mzxid).max(stat.pzxid);
            }
            _ => {}
        }
    }

    /// Takes the number of a write of one's own on the present connection. True if the ensemble went back; that is
    /// logged once.
    pub fn went_back<R>(&mut self, own: i64, out: &mut Actions<R>) -> bool {
        if own >= self.before {
            return false;
        }
        out.log(
            Level::Warn,
            format!(
                "the ensemble's data went back: transaction {} was seen, and now a write has number {own}. An older \
                 copy was restored, or data was lost. Tasks may run again, and fencing tokens (ZKMW_EPOCH) may \
                 repeat: see \"When the ensemble's data goes back\" in operations.md",
                self.before
            ),
        );
        (self.newest, self.before) = (own, own);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::machine::{CallId, Stat};

    fn seen(zxid: i64) -> Event {
        let stat = Stat { mzxid: zxid, ..Stat::default() };
        Event::Reply { id: CallId(1), result: Ok(Reply::Stat(stat)) }
    }

    #[test]
    fn only_an_own_write_proves_that_the_ensemble_went_back() {
        let (mut past, mut out) = (Past::default(), Actions::<()>::default());
        let up = Event::Connected { timeout: Duration::from_secs(10) };
        past.observe(&up);
        assert!(!past.went_back(5, &mut out), "nothing was seen before");
        past.observe(&seen(100));
        assert!(!past.went_back(50, &mut out), "that may have been seen after the write was made");
        past.observe(&up);
        past.observe(&seen(90));
        assert!(!past.went_back(101, &mut out), "a server that lags shows the past, and proves nothing");
        assert!(out.is_empty());
        past.observe(&up);
        assert!(past.went_back(60, &mut out));
        assert_eq!(out.drain().count(), 1);
        assert!(!past.went_back(61, &mut out) && out.is_empty());
    }
}
