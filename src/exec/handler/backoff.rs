//! How long to wait before another handler is started: a program that dies at once must not be started as fast as
//! requests come.
//!
//! Owns the count of failures; it knows no process and reads no clock.

use std::time::{Duration, Instant};

/// The pause after the first failure; it doubles with each that follows without an answer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause. No request waits longer than this for its handler's start.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A handler that lived so long, and answered something, was no failure.
const LONG_LIFE: Duration = Duration::from_secs(5);

/// One that is dead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Death {
    /// When it was started.
    pub(super) born: Instant,
    /// Whether it ever answered.
    pub(super) answered: bool,
    pub(super) cause: Cause,
}

/// What it died of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// It broke, or ended, while it had a request; or could not be started.
    Fault,
    /// It had nothing to do.
    Idle,
    /// It got a signal to end from us.
    Signalled,
}

/// The failures so far.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Without an answer since.
    failures: u32,
    last_failure: Option<Instant>,
    /// The last death of one that lived short was an idle one.
    idle_before: bool,
    until: Option<Instant>,
}

impl Backoff {
    /// Nothing is to be started before then.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// One has answered for the first time.
    pub(super) fn answered(&mut self) {
        self.failures = 0;
        self.until = None;
    }

    pub(super) fn died(&mut self, death: Death, now: Instant) {
        let Death { born, answered, cause } = death;
        if answered && now.saturating_duration_since(born) >= LONG_LIFE {
            self.failures = 0;
            self.idle_before = false;
            return;
        }
        // One idle death is nobody's failure. If they go on, no handler lives to take a second request.
        let spared = cause == Cause::Idle && !std::mem::replace(&mut self.idle_before, cause == Cause::Idle);
        // Many are started together, and then die together: that is one failure.
        let of_the_same_start = self.last_failure.is_some_and(|last| born < last);
        if cause == Cause::Signalled || spared || of_the_same_start {
            return;
        }
        self.failures = if answered { 1 } else { self.failures.saturating_add(1) };
        self.last_failure = Some(now);
        let doubled = FIRST_PAUSE.saturating_mul(1_u32.checked_shl(self.failures - 1).unwrap_or(u32::MAX));
        self.until = Some(now + doubled.min(LONGEST_PAUSE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(born: Instant, answered: bool, cause: Cause) -> Death {
        Death { born, answered, cause }
    }

    /// The pause after each of so many deaths in a row.
    fn delays(of: impl Fn(Instant) -> Death, count: usize) -> Vec<u64> {
        let mut delays = Backoff::default();
        let mut now = Instant::now();
        let mut seen = Vec::new();
        for _ in 0..count {
            let death = of(now);
            now += Duration::from_millis(1);
            delays.died(death, now);
            let pause = delays.until().map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
            seen.push(pause.as_millis() as u64);
            now += pause;
        }
        seen
    }

    #[test]
    fn the_backoff_doubles_up_to_a_limit_and_an_answer_resets_it() {
        let silent = delays(|born| death(born, false, Cause::Fault), 70);
        assert_eq!(silent[..8], [100, 200, 400, 800, 1600, 3200, 6400, 10_000]);
        assert!(silent[8..].iter().all(|&pause| pause == 10_000));
        assert_eq!(delays(|born| death(born, true, Cause::Fault), 3), [100, 100, 100]);
    }

    #[test]
    fn what_is_no_failure_costs_no_pause() {
        let old = |cause| delays(move |now| death(now.checked_sub(LONG_LIFE).unwrap(), true, cause), 3);
        assert_eq!((old(Cause::Fault), old(Cause::Idle)), (vec![0; 3], vec![0; 3]));
        assert_eq!(delays(|born| death(born, false, Cause::Signalled), 3), [0, 0, 0]);
    }

    #[test]
    fn one_idle_death_is_spared() {
        assert_eq!(delays(|born| death(born, true, Cause::Idle), 3), [0, 100, 100]);
    }

    #[test]
    fn what_dies_together_fails_once() {
        let (born, mut delays) = (Instant::now(), Backoff::default());
        let (first, second) = (born + Duration::from_millis(5), born + Duration::from_millis(6));
        for now in [first, second] {
            delays.died(death(born, false, Cause::Fault), now);
        }
        assert_eq!(delays.until(), Some(first + FIRST_PAUSE));
    }
}
