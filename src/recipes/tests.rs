//! Unit tests of the recipes, through what they offer to roles; and what these tests share.

mod assignment;
mod election;
mod ensure;
mod explore;
mod lease;
mod mirror;

use std::time::Duration;

use crate::machine::{Action, Actions, Call, CallError, CallId, CallResult, Instant, Refusal, Stat};

pub(super) const LOST: CallResult = Err(CallError::MaybeApplied);
pub(super) const NO_NODE: CallResult = Err(CallError::Refused(Refusal::NoNode));

pub(super) fn refused(refusal: Refusal) -> CallResult {
    Err(CallError::Refused(refusal))
}

pub(super) fn at_ms(ms: u64) -> Instant {
    Instant::default() + Duration::from_millis(ms)
}

pub(super) fn stat(czxid: i64) -> Stat {
    Stat { czxid, ephemeral_owner: 1, ..Stat::default() }
}

/// What was asked for since the last call: the calls, and the codes of exits.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub calls: Vec<(CallId, Call)>,
    pub exits: Vec<i32>,
}

impl Asked {
    pub(super) fn of(out: &mut Actions<()>) -> Asked {
        let mut asked = Asked::default();
        for action in out.drain() {
            match action {
                Action::Call { id, call } => asked.calls.push((id, call)),
                Action::Exit(code) => asked.exits.push(code),
                _ => {}
            }
        }
        asked
    }

    /// The only call; panics if there are more or none.
    pub(super) fn one(out: &mut Actions<()>) -> (CallId, Call) {
        let mut asked = Asked::of(out);
        assert_eq!((asked.calls.len(), asked.exits.len()), (1, 0), "{asked:?}");
        asked.calls.remove(0)
    }

    /// Asserts that nothing was asked for.
    #[track_caller]
    pub(super) fn none(out: &mut Actions<()>) {
        let asked = Asked::of(out);
        assert!(asked.calls.is_empty() && asked.exits.is_empty(), "{asked:?}");
    }
}
