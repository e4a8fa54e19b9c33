//! Retry: a call that a daemon needs was refused. The daemon goes on by itself when the refusals end.
//!
//! Almost every refusal passes: a quota is raised, an ACL repaired, a directory made again, a server less busy. So a
//! daemon says once what is refused, tries again after a growing pause, and says when it is over. One refusal ends
//! it: if it may not do at its start what it needs, its credentials are wrong, or the ensemble's ACLs. Its service
//! manager reports that to a person, and starts it again.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::exit;
use crate::machine::{Action, Actions, Instant, Level, Refusal};

/// The pause after the first refusal: what was deleted by hand is gone as a whole by then, and service goes on soon.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause. It bounds how long a daemon idles after the cause has passed, and what it asks of the ensemble
/// until then.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// The pause after something of one znode of many was refused: a server that throttles passes soon, an ACL or a quota
/// when somebody has changed it, and others are served meanwhile.
const FIRST_PAUSE_OF_ONE: Duration = Duration::from_millis(500);

/// The longest such pause: short for a person who has just mended the cause, and one call each is no load.
const MAX_PAUSE_OF_ONE: Duration = Duration::from_secs(30);

/// How long one znode of many is left alone of which something was refused so often.
pub fn pause_of_one(refusals: u32) -> Duration {
    let factor = 1_u32.checked_shl(refusals.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_PAUSE_OF_ONE.saturating_mul(factor).min(MAX_PAUSE_OF_ONE)
}

/// One thing that has to be done, and may be refused.
#[derive(Debug, Default)]
pub struct Retry {
    /// What was refused since it was done, as it was logged. Without data of users in it, they are few.
    troubles: BTreeSet<String>,
    /// The newest of them.
    trouble: Option<String>,
    pause: Duration,
    at: Option<Instant>,
    /// It was done before: whatever is refused now may be permitted again.
    settled: bool,
}

impl Retry {
    /// It was refused: logs that, unless it was logged before, and asks for another try after a pause.
    pub fn refused<R>(&mut self, what: &str, refusal: Refusal, now: Instant, out: &mut Actions<R>) {
        let trouble = format!("{what}: {refusal}");
        if refusal == Refusal::NoAuth && !self.settled {
            return out.fail(exit::NOT_PERMITTED, format!("{trouble}; check --auth, and the ACL there"));
        }
        if self.troubles.insert(trouble.clone()) {
            let level = if is_expected(refusal) { Level::Warn } else { Level::Error };
            out.log(level, format!("{trouble}; trying again until it works"));
        }
        self.trouble = Some(trouble);
        self.again(now);
    }

    /// Something of ours was deleted by somebody else: it is made again after a pause.
    pub fn vanished<R>(&mut self, path: &str, now: Instant, out: &mut Actions<R>) {
        if self.at.is_none() {
            out.log(Level::Warn, format!("{path} was deleted by someone else: making it again"));
            self.again(now);
        }
    }

    fn again(&mut self, now: Instant) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
        self.at = Some(now + self.pause);
    }

    /// It was done.
    pub fn done<R>(&mut self, out: &mut Actions<R>) {
        self.settled = true;
        self.pause = Duration::ZERO;
        self.at = None;
        self.trouble = None;
        for trouble in std::mem::take(&mut self.troubles) {
            out.log(Level::Info, format!("this is over: {trouble}"));
        }
    }

    /// The connection is gone: what is to be tried is tried with the next one.
    pub fn on_lost(&mut self) {
        self.at = None;
    }

    /// Whether the time for another try has come. This is true once.
    pub fn is_due(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }

    /// When that is.
    pub fn next_wake(&self) -> Option<Instant> {
        self.at
    }

    /// What is refused, in words for people.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }
}

/// The condition of a daemon, as the log and the service manager have it.
#[derive(Debug, Default)]
pub struct Condition {
    logged: String,
    shown: String,
}

impl Condition {
    /// Logs what changed. Troubles were logged when they began.
    pub fn report<'a, R>(
        &mut self,
        text: String,
        troubles: impl IntoIterator<Item = Option<&'a str>>,
        out: &mut Actions<R>,
    ) {
        let mut shown = text.clone();
        for trouble in troubles.into_iter().flatten() {
            shown = format!("{shown}; {trouble}");
        }
        if text != self.logged {
            out.log(Level::Info, text.clone());
            self.logged = text;
        }
        if shown != self.shown {
            out.push(Action::Status(shown.clone()));
            self.shown = shown;
        }
    }
}

/// Whether the refusal comes of a znode that somebody deleted or changed, which takes a moment to be mended.
fn is_expected(refusal: Refusal) -> bool {
    match refusal {
        Refusal::NoNode | Refusal::NodeExists | Refusal::BadVersion | Refusal::NotEmpty => true,
        Refusal::NoAuth
        | Refusal::NoChildrenForEphemerals
        | Refusal::TooLarge
        | Refusal::BadArguments
        | Refusal::Unimplemented
        | Refusal::Other(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(out: &mut Actions<()>) -> Vec<Action<()>> {
        out.drain().collect()
    }

    #[test]
    fn a_passing_refusal_is_logged_once_and_retried_with_backoff() {
        let (mut retry, mut out) = (Retry::default(), Actions::default());
        let mut now = Instant::default();
        let mut delays = Vec::new();
        for _ in 0..8 {
            retry.refused("/z/status", Refusal::Other(-125), now, &mut out);
            let at = retry.next_wake().expect("another try");
            assert!(!retry.is_due(now));
            delays.push(at.since(now).as_millis());
            now = at;
            assert!(retry.is_due(now) && !retry.is_due(now), "once");
        }
        assert_eq!(delays, [50, 100, 200, 400, 800, 1_600, 2_000, 2_000]);
        assert!(
            matches!(&said(&mut out)[..], [Action::Log(Level::Error, text)] if text.contains("/z/status"))
        );
        assert!(retry.trouble().is_some_and(|trouble| trouble.contains("-125")));
        retry.done(&mut out);
        retry.done(&mut out);
        assert!(matches!(&said(&mut out)[..], [Action::Log(Level::Info, text)] if text.contains("over")));
        assert_eq!(retry.trouble(), None);
    }

    #[test]
    fn only_a_process_that_was_never_permitted_ends() {
        let (mut retry, mut out) = (Retry::default(), Actions::default());
        retry.refused("/z", Refusal::NoAuth, Instant::default(), &mut out);
        assert!(said(&mut out).contains(&Action::Exit(exit::NOT_PERMITTED)));
        let mut retry = Retry::default();
        retry.done(&mut out);
        retry.refused("/z", Refusal::NoAuth, Instant::default(), &mut out);
        assert!(matches!(said(&mut out)[..], [Action::Log(Level::Error, _)]));
        assert!(retry.next_wake().is_some());
    }
}
