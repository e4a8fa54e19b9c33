//! What a client says while it has no connection. It is pure: it gets the time and the reason as arguments. Services
//! log each failure.

use std::time::Duration;

use crate::machine::Instant;
use crate::roles::client::notice::{MAX_PAUSE, QUIET};

/// A time without a connection, from its first moment on.
#[derive(Debug)]
pub struct Outage {
    say_at: Instant,
    pause: Duration,
    said: Option<String>,
}

impl Outage {
    /// It begins.
    pub fn new(now: Instant) -> Outage {
        Outage { say_at: now + QUIET, pause: QUIET, said: None }
    }

    /// Whether to say the reason now: it is news, and nothing was said a moment ago.
    pub fn is_due(&mut self, now: Instant, why: &str) -> bool {
        if now < self.say_at || self.said.as_deref() == Some(why) {
            return false;
        }
        self.said = Some(why.to_owned());
        self.say_at = now + self.pause;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        true
    }

    /// When to say this reason, if at all.
    pub fn next_wake(&self, why: &str) -> Option<Instant> {
        (self.said.as_deref() != Some(why)).then_some(self.say_at)
    }

    /// Whether the user knows of it.
    pub fn was_said(&self) -> bool {
        self.said.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_logged_at_most_every_three_seconds() {
        let start = Instant::from_nanos(1);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut outage = Outage::new(start);
        assert!(!outage.is_due(at(2), "a") && !outage.was_said());
        assert_eq!(outage.next_wake("a"), Some(at(3)));
        assert!(outage.is_due(at(3), "a") && outage.was_said());
        assert!(!outage.is_due(at(100), "a") && outage.next_wake("a").is_none());
        assert!(outage.is_due(at(100), "b"));
        // Reasons that take turns are no flood.
        let said = (0..3_600).filter(|n| outage.is_due(at(101 + n), ["a", "b"][usize::from(n % 2 == 0)]));
        assert!((60..=70).contains(&said.count()));
    }
}
