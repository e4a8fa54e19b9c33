//! Starts that fail because this process, or its machine, is short of something: how many runs there may be at a time
//! until that is over, and when another is tried.
//!
//! As TCP finds out what a network takes (slow start, congestion avoidance): what runs when a start fails is what
//! there is room for. One more is tried after a pause, which grows as long as that fails; when it works, twice as
//! many may run. It makes no calls.

use std::time::Duration;

use crate::machine::{Instant, Prng};

/// The pause after the first failure. A shortage often lasts for a moment only.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause: each try costs some task a move, and nobody waits longer than this after the shortage is over.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Failures with more time than this between them have nothing to do with each other.
const FORGET: Duration = Duration::from_secs(120);

/// Which starts are possible.
#[derive(Debug)]
pub struct Starts {
    /// Runs at a time when nothing is short.
    slots: usize,
    limit: Option<Limit>,
    /// One after the other, each not long after the one before.
    failures: u32,
    failed: Option<Instant>,
    /// So that workers on one machine do not try together.
    prng: Prng,
}

/// Something is short, or was a moment ago.
#[derive(Debug)]
struct Limit {
    /// So many are known to run at a time.
    proven: usize,
    /// So many may.
    allowed: usize,
    /// When one more may be tried.
    pause_until: Option<Instant>,
    /// Why a start failed, until one more than before has worked.
    why: Option<String>,
}

/// What a failure led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Failed {
    /// Nothing more is to be started for so long, beyond what runs. It is the first failure since starts worked.
    First(Duration),
    /// The same, and it was logged before.
    Again(Duration),
    /// Nothing more: it was begun together with one that has failed already.
    Known,
}

impl Starts {
    /// As many as there are slots.
    pub fn new(slots: u32, seed: u64) -> Starts {
        Starts { slots: slots as usize, limit: None, failures: 0, failed: None, prng: Prng::new(seed) }
    }

    /// How many may run at a time.
    pub fn allowed(&self) -> usize {
        self.limit.as_ref().map_or(self.slots, |limit| limit.allowed)
    }

    /// Whether fewer may run than there are slots.
    pub fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Why a start failed, until starts work again.
    pub fn why(&self) -> Option<&str> {
        self.limit.as_ref()?.why.as_deref()
    }

    /// When [`Starts::wake`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        self.limit.as_ref()?.pause_until
    }

    /// Ends the pause when its time has come: one more may be tried.
    pub fn wake(&mut self, now: Instant) {
        if let Some(limit) = &mut self.limit
            && limit.pause_until.take_if(|until| *until <= now).is_some()
        {
            limit.allowed = limit.proven + 1;
        }
    }

    /// A start failed for this reason while so many ran.
    pub fn failed(&mut self, running: usize, why: &str, now: Instant) -> Failed {
        if self.limit.as_ref().is_some_and(|limit| limit.pause_until.is_some()) {
            return Failed::Known;
        }
        if self.failed.is_some_and(|last| last + FORGET <= now) {
            self.failures = 0;
        }
        let longest = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(MAX_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.failed = Some(now);
        let percent = 75 + u32::try_from(self.prng.next_u64() % 26).unwrap_or(0);
        let pause = longest * percent / 100;
        let was_known = self.why().is_some();
        self.limit = Some(Limit {
            proven: running,
            allowed: running,
            pause_until: Some(now + pause),
            why: Some(why.to_string()),
        });
        if was_known { Failed::Again(pause) } else { Failed::First(pause) }
    }

    /// A start worked, and so many run now; true if that ends a state in which starts had failed.
    pub fn worked(&mut self, running: usize, now: Instant) -> bool {
        if self.failed.is_some_and(|last| last + FORGET <= now) {
            // Where no more tasks come than had run then, nothing would ever prove that it is over.
            return self.limit.take().is_some_and(|limit| limit.why.is_some());
        }
        let Some(limit) = self.limit.as_mut().filter(|limit| running > limit.proven) else { return false };
        limit.proven = running;
        if limit.pause_until.is_some() {
            // It was begun before the failure.
            limit.allowed = running;
            return false;
        }
        limit.allowed = running * 2;
        let was_unwell = limit.why.take().is_some();
        if limit.allowed >= self.slots {
            self.limit = None;
        }
        was_unwell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(failed: &Failed) -> Duration {
        match failed {
            Failed::First(pause) | Failed::Again(pause) => *pause,
            Failed::Known => Duration::ZERO,
        }
    }

    #[test]
    fn the_backoff_grows_while_starts_fail_and_runs_go_on() {
        let mut starts = Starts::new(8, 1);
        let (zero, mut now) = (Instant::default(), Instant::default());
        assert!(matches!(starts.failed(0, "no room", now), Failed::First(_)));
        // Of eight that were begun together six fail, in any order.
        assert!(
            !starts.worked(1, zero)
                && starts.failed(1, "no room", now) == Failed::Known
                && !starts.worked(2, zero)
        );
        assert_eq!((starts.allowed(), starts.why()), (2, Some("no room")));
        let mut delays = Vec::new();
        for _ in 0..9 {
            now = starts.next_wake().expect("a pause");
            starts.wake(now);
            assert_eq!((starts.allowed(), starts.next_wake()), (3, None));
            let failed = starts.failed(2, "no room", now);
            assert!(matches!(failed, Failed::Again(_)), "said once");
            delays.push(pause(&failed));
        }
        assert!(delays[0] >= FIRST_PAUSE && delays.iter().all(|pause| *pause <= MAX_PAUSE), "{delays:?}");
        assert!(delays[8] >= MAX_PAUSE * 3 / 4, "{delays:?}");
    }

    #[test]
    fn when_it_is_over_all_slots_are_used_again_step_by_step() {
        let (mut starts, zero) = (Starts::new(8, 1), Instant::default());
        starts.failed(0, "no room", zero);
        starts.wake(starts.next_wake().expect("a pause"));
        assert!(starts.worked(1, zero) && starts.why().is_none());
        assert!(!starts.worked(1, zero) && starts.allowed() == 2);
        assert!(!starts.worked(2, zero) && starts.allowed() == 4 && !starts.worked(4, zero));
        assert!(!starts.is_limited() && starts.allowed() == 8);
    }

    /// It was reported for ever where no more tasks came than had run when a start failed.
    #[test]
    fn what_was_short_is_forgotten_when_starts_work_long_after_it() {
        let mut starts = Starts::new(8, 1);
        let at = |seconds| Instant::default() + Duration::from_secs(seconds);
        starts.failed(3, "no room", at(0));
        starts.wake(at(60));
        assert!(!starts.worked(1, at(61)) && starts.why().is_some(), "so much was known");
        assert!(starts.worked(2, at(120)) && !starts.is_limited());
    }

    #[test]
    fn a_failure_long_after_the_last_one_is_a_first_one() {
        let mut starts = Starts::new(2, 1);
        for n in 0..20_u32 {
            let now = Instant::default() + FORGET * n;
            assert!(pause(&starts.failed(0, "no room", now)) <= FIRST_PAUSE);
            starts.wake(now + MAX_PAUSE);
            assert!(starts.worked(1, Instant::default()));
        }
    }
}
