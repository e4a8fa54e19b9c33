//! What keeps the loop from spinning: a role that was woken and leaves what was due undone would be woken again at
//! once, for ever. Such a role has a bug; it costs a message and a delay, and not a processor.

use std::time::Duration;

use crate::machine::Instant;

/// How long a role that left undone what it was woken for is not woken again. Other events come at any time.
const PAUSE: Duration = Duration::from_millis(50);

/// When a role may be woken.
#[derive(Debug, Default)]
pub(super) struct Pacing {
    not_before: Option<Instant>,
    reported: bool,
}

impl Pacing {
    /// When a role is woken that wishes for this.
    pub fn wake_at(&self, wish: Instant) -> Instant {
        self.not_before.map_or(wish, |at| wish.max(at))
    }

    /// The role was woken at this time, and wants to be woken at that time next. Whether to report that it left undone
    /// what was due: once.
    pub fn woken(&mut self, at: Instant, wish: Option<Instant>) -> bool {
        let undone = wish.is_some_and(|wish| wish <= at);
        self.not_before = undone.then(|| at + PAUSE);
        undone && !std::mem::replace(&mut self.reported, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_ms(ms: u64) -> Instant {
        Instant::default() + Duration::from_millis(ms)
    }

    #[test]
    fn an_unserved_wake_up_is_delayed_and_logged_once() {
        let mut pacing = Pacing::default();
        assert_eq!(pacing.wake_at(at_ms(10)), at_ms(10));
        assert!(pacing.woken(at_ms(10), Some(at_ms(10))));
        assert_eq!(pacing.wake_at(at_ms(10)), at_ms(60));
        assert!(!pacing.woken(at_ms(60), Some(at_ms(10))));
        assert_eq!(pacing.wake_at(at_ms(10)), at_ms(110));
        assert!(!pacing.woken(at_ms(110), Some(at_ms(111))));
        assert_eq!(pacing.wake_at(at_ms(111)), at_ms(111));
    }
}
