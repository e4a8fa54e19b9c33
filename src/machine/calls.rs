//! Which replies a recipe or role awaits, and what one owner of calls made of a reply.

use std::collections::BTreeMap;

use super::{Action, Actions, Call, CallError, CallId, CallResult, Refusal, Reply};

/// What one owner of calls made of a reply, or of another event that has one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a reply that is not ours has to be offered to the next owner"]
pub enum Routed<T> {
    /// It is for somebody else, or stale: ask the next owner.
    NotMine,
    /// It was for this owner, and this follows from it.
    Mine(T),
}

impl<T> Routed<T> {
    /// What follows, as something else.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Routed<U> {
        match self {
            Routed::NotMine => Routed::NotMine,
            Routed::Mine(what) => Routed::Mine(f(what)),
        }
    }
}

/// What the ensemble answered; `None` if the connection broke before it did, and [`super::Event::Lost`] follows.
pub type Answer<'a> = Option<Result<&'a Reply, Refusal>>;

/// The answer to a call about a znode that need not exist: `None` if it does not.
///
/// # Errors
/// Any refusal but [`Refusal::NoNode`].
pub fn if_exists(answer: Result<&Reply, Refusal>) -> Result<Option<&Reply>, Refusal> {
    match answer {
        Ok(reply) => Ok(Some(reply)),
        Err(Refusal::NoNode) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// The calls that a recipe or role awaits, each with what it is for.
#[derive(Debug)]
pub struct Calls<P> {
    awaited: BTreeMap<CallId, P>,
}

impl<P> Default for Calls<P> {
    fn default() -> Self {
        Calls { awaited: BTreeMap::new() }
    }
}

impl<P> Calls<P> {
    /// Makes a call.
    pub fn issue<R>(&mut self, out: &mut Actions<R>, call: Call, purpose: P) -> CallId {
        let id = CallId(out.fresh_id());
        out.push(Action::Call { id, call });
        self.awaited.insert(id, purpose);
        id
    }

    /// Takes in the reply to one of these calls: what the call was for, and the answer. The call is no longer awaited.
    pub fn route<'a>(&mut self, id: CallId, result: &'a CallResult) -> Routed<(P, Answer<'a>)> {
        match self.awaited.remove(&id) {
            Some(purpose) => Routed::Mine((purpose, answered(result))),
            None => Routed::NotMine,
        }
    }

    /// How many are awaited.
    pub fn len(&self) -> usize {
        self.awaited.len()
    }

    /// Whether none is awaited.
    pub fn is_empty(&self) -> bool {
        self.awaited.is_empty()
    }

    /// What the awaited calls are for, oldest first.
    pub fn purposes(&self) -> impl Iterator<Item = &P> {
        self.awaited.values()
    }

    /// Forgets all; their replies will be stale.
    pub fn clear(&mut self) {
        self.awaited.clear();
    }
}

/// What the ensemble answered. Without an answer the connection is gone, and [`super::Event::Lost`] follows.
pub fn answered(result: &CallResult) -> Answer<'_> {
    match result {
        Ok(reply) => Some(Ok(reply)),
        Err(CallError::Refused(refusal)) => Some(Err(*refusal)),
        Err(CallError::NotSent | CallError::MaybeApplied) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_taken_once_and_only_where_it_was_awaited() {
        let mut out: Actions<()> = Actions::default();
        let mut calls = Calls::default();
        let mut other: Calls<()> = Calls::default();
        let id = calls.issue(&mut out, Call::Children { path: "/".into() }, "why");
        let result = Ok(Reply::Children(Vec::new()));
        assert_eq!(other.route(id, &result), Routed::NotMine);
        assert!(matches!(calls.route(id, &result), Routed::Mine(("why", Some(Ok(_))))));
        assert_eq!(calls.route(id, &result), Routed::NotMine);
    }
}
