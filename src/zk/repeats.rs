//! Calls that a server refuses for a reason that says nothing about them, as it does when it throttles requests: they
//! are made again after a growing pause, over the same connection.
//!
//! A refused call was not applied. So a read may be made again for as long as the connection lives, and a delete for as
//! long as a call can be in doubt. What a refused create or set means (it may be a quota) is for the roles to say.
//!
//! Pure. The pool asks what becomes of a refusal, the supervisor says when a pause is over.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::machine::{Call, Instant, Refusal};

/// The pause before a call is made again doubles from here: a server that was busy for a moment costs little time.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest pause. It bounds what refused calls cost a busy server, and how late they come when it is not any more.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// When nothing was refused for so long, it is over. A server that throttles does so now and then: to log each time
/// would fill the log.
const CALM: Duration = Duration::from_secs(10);

/// How a call was refused so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    times: u32,
    since: Instant,
    refusal: Refusal,
}

impl Refused {
    /// The answer when the connection has ended. A server that does not know a kind of call refuses it and hangs
    /// up.
    pub fn verdict(&self) -> Option<Refusal> {
        (self.refusal == Refusal::Unimplemented && self.times == 1).then_some(self.refusal)
    }

    fn pause(&self) -> Duration {
        let factor = 1_u32.checked_shl(self.times.saturating_sub(1)).unwrap_or(u32::MAX);
        PAUSE_FIRST.saturating_mul(factor).min(PAUSE_MAX)
    }
}

/// The call once more, if it may be made again when it is refused.
pub fn repeatable(call: &Call) -> Option<Call> {
    (!matches!(call, Call::Create { .. } | Call::Set { .. })).then(|| call.clone())
}

/// Calls that wait until they are made again.
#[derive(Debug, Default)]
pub struct Repeats {
    waiting: BTreeMap<(Instant, u64), Call>,
    /// When something was refused last, until the end of the refusals was logged.
    last: Option<Instant>,
}

impl Repeats {
    /// A call was refused, after it had been refused like that before. If it is to be made again, gives how it was
    /// refused so far. `in_doubt` is how long a call over this connection may be in doubt.
    pub fn put_off(
        &mut self,
        (number, call): (u64, Call),
        refusal: Refusal,
        before: Option<Refused>,
        in_doubt: Duration,
        now: Instant,
    ) -> Option<Refused> {
        if !passes(refusal) {
            return None;
        }
        let (times, since) = before.map_or((0, now), |before| (before.times, before.since));
        let refused = Refused { times: times.saturating_add(1), since, refusal };
        let at = now + refused.pause();
        // Nothing may be deleted so late: a new leader waits for what its predecessors may still delete, since names of
        // tasks may be used again.
        if call.is_write() && at.since(since) >= in_doubt {
            return None;
        }
        self.waiting.insert((at, number), call);
        Some(refused)
    }

    /// Whether it is to be logged that calls are refused. It is to be asked at each refusal.
    pub fn is_news(&mut self, now: Instant) -> bool {
        self.last.replace(now).is_none()
    }

    /// Whether to log that the refusals are over.
    pub fn is_over(&mut self, now: Instant) -> bool {
        let is_calm = |last: &mut Instant| now.since(*last) >= CALM;
        self.waiting.is_empty() && self.last.take_if(is_calm).is_some()
    }

    /// The next call whose pause is over.
    pub fn due(&mut self, now: Instant) -> Option<(u64, Call)> {
        let first = self.waiting.first_entry().filter(|first| first.key().0 <= now)?;
        let ((_, number), call) = first.remove_entry();
        Some((number, call))
    }

    /// When the next pause is over.
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    /// Nothing is made again: the connection is over.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }
}

/// Whether the same call may be accepted later, for any caller.
fn passes(refusal: Refusal) -> bool {
    // `Unimplemented` is said of watches alone, also when they are throttled: the crate has one code for both.
    matches!(refusal, Refusal::Other(_) | Refusal::Unimplemented)
}

/// What a call does, in words for people.
pub fn describe(call: &Call) -> String {
    let what = match call {
        Call::Create { .. } => "create",
        Call::Set { .. } => "change",
        Call::Delete { .. } => "delete",
        Call::Get { .. } => "read",
        Call::Exists { .. } => "check",
        Call::Children { .. } => "list",
        Call::Acl { .. } => "read the ACL of",
        Call::Watch { .. } => "watch",
    };
    format!("{what} {}", call.path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{CreateMode, WatchMode};

    const THROTTLED: Refusal = Refusal::Other(-6);
    const IN_DOUBT: Duration = Duration::from_secs(6);

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn get() -> Call {
        Call::Get { path: "/a".into(), watch: false }
    }

    #[test]
    fn the_backoff_grows_to_two_seconds_and_reads_go_on_for_ever() {
        let (mut repeats, mut refused, mut now) = (Repeats::default(), None, at(0));
        let mut delays = Vec::new();
        for _ in 0..1_000 {
            refused = repeats.put_off((7, get()), THROTTLED, refused, IN_DOUBT, now);
            assert!(refused.is_some());
            let due = repeats.next_due().unwrap();
            assert_eq!(repeats.due(at(due.as_nanos() / 1_000_000 - 1)), None, "before its time");
            assert_eq!(repeats.due(due), Some((7, get())));
            delays.push(due.since(now).as_millis());
            now = due;
        }
        assert_eq!(delays[..8], [50, 100, 200, 400, 800, 1_600, 2_000, 2_000]);
        assert_eq!(delays[999], 2_000);
    }

    #[test]
    fn a_delete_is_repeated_only_while_it_may_be_in_doubt() {
        let delete = || Call::Delete { path: "/a".into(), version: Some(3) };
        let mut repeats = Repeats::default();
        let first = repeats.put_off((1, delete()), THROTTLED, None, IN_DOUBT, at(0));
        let second = repeats.put_off((1, delete()), THROTTLED, first, IN_DOUBT, at(5_899));
        assert!(second.is_some(), "it is made again before six seconds are over");
        assert_eq!(repeats.put_off((1, delete()), THROTTLED, second, IN_DOUBT, at(5_999)), None);
    }

    #[test]
    fn what_the_roles_decide_on_is_not_repeated() {
        let mut repeats = Repeats::default();
        for refusal in [Refusal::NoNode, Refusal::NoAuth, Refusal::BadVersion, Refusal::NotEmpty] {
            assert_eq!(repeats.put_off((1, get()), refusal, None, IN_DOUBT, at(0)), None, "{refusal}");
        }
        let create = Call::Create { path: "/a".into(), data: Vec::new(), mode: CreateMode::Persistent };
        assert_eq!(repeatable(&create), None);
        assert_eq!(repeatable(&Call::Set { path: "/a".into(), data: Vec::new(), version: 0 }), None);
        assert_eq!(repeatable(&get()), Some(get()));
    }

    #[test]
    fn a_watch_that_ends_the_connection_means_an_old_server() {
        let watch = || Call::Watch { path: "/a".into(), mode: WatchMode::Tree };
        let mut repeats = Repeats::default();
        let first = repeats.put_off((1, watch()), Refusal::Unimplemented, None, IN_DOUBT, at(0)).unwrap();
        assert_eq!(first.verdict(), Some(Refusal::Unimplemented));
        let again = repeats.put_off((1, watch()), Refusal::Unimplemented, Some(first), IN_DOUBT, at(50));
        assert_eq!(again.unwrap().verdict(), None, "a server that goes on knows it");
        let read = repeats.put_off((2, get()), THROTTLED, None, IN_DOUBT, at(50)).unwrap();
        assert_eq!(read.verdict(), None);
    }

    #[test]
    fn it_is_said_once_and_once_that_it_is_over() {
        let mut repeats = Repeats::default();
        assert!(!repeats.is_over(at(0)), "nothing was refused");
        assert!(repeats.is_news(at(0)));
        repeats.put_off((1, get()), THROTTLED, None, IN_DOUBT, at(0));
        assert!(!repeats.is_news(at(9_000)));
        assert!(!repeats.is_over(at(30_000)), "one waits");
        repeats.due(at(30_000));
        assert!(!repeats.is_news(at(30_000)));
        assert!(!repeats.is_over(at(39_999)));
        assert!(repeats.is_over(at(40_000)));
        assert!(!repeats.is_over(at(60_000)), "it was said");
        assert!(repeats.is_news(at(60_001)));
    }
}
