//! The mark of a waiting submitter: an ephemeral by which the leader can tell that its tasks are orphaned.
//!
//! Each session makes a mark of its own, under a number that was never used, before it does anything else; the
//! mark of the session before may still stand then, so there is no gap that only the leader's patience covers.

use crate::contract::Layout;
use crate::machine::{Actions, Call, CallError, CallId, CallResult, Calls, CreateMode, Refusal};
use crate::recipes::ensure::{self, Ensure};

/// One submitter's mark, or the absence of one.
#[derive(Debug)]
pub struct Mark {
    layout: Layout,
    id: Option<String>,
    n: u64,
    ensure: Ensure,
    calls: Calls<()>,
}

/// What a reply meant for [`Mark`] led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// More replies are awaited, or the connection is gone.
    Pending,
    /// The mark stands.
    Standing,
    /// It can't be made.
    Refused(Refusal),
}

impl Mark {
    /// The mark of the submitter with this id; without one there is none.
    pub fn new(layout: &Layout, id: Option<String>) -> Mark {
        let ensure = Ensure::new([layout.submitters()]);
        Mark { layout: layout.clone(), id, n: 0, ensure, calls: Calls::default() }
    }

    /// What tasks have to name, if there is a mark.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// A new session is up: makes its mark. True if there is none to make.
    pub fn on_connected<R>(&mut self, out: &mut Actions<R>) -> bool {
        self.on_lost();
        if self.id.is_none() {
            return true;
        }
        self.n += 1;
        self.create(out);
        false
    }

    /// The session is gone.
    pub fn on_lost(&mut self) {
        self.calls.clear();
        self.ensure.reset();
    }

    /// Takes in a reply; `None` if it is somebody else's.
    pub fn on_reply<R>(&mut self, id: CallId, result: &CallResult, out: &mut Actions<R>) -> Option<Step> {
        if let Some(step) = self.ensure.on_reply(id, result, out) {
            return Some(match step {
                ensure::Step::Pending => Step::Pending,
                ensure::Step::Done => {
                    self.create(out);
                    Step::Pending
                }
                ensure::Step::Refused(_, refusal) => Step::Refused(refusal),
            });
        }
        self.calls.take(id)?;
        Some(match result {
            Ok(_) => Step::Standing,
            Err(CallError::NotSent | CallError::MaybeApplied) => Step::Pending,
            Err(CallError::Refused(Refusal::NoNode)) => {
                self.ensure.start(out);
                Step::Pending
            }
            Err(CallError::Refused(refusal)) => Step::Refused(*refusal),
        })
    }

    fn create<R>(&mut self, out: &mut Actions<R>) {
        if let Some(id) = &self.id {
            let path = self.layout.submitter(id, self.n);
            let call = Call::Create { path, data: Vec::new(), mode: CreateMode::Ephemeral };
            self.calls.issue(out, call, ());
        }
    }
}
