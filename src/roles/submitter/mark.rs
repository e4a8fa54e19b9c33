//! The mark of a waiting submitter: an ephemeral by which the leader can tell that its tasks are orphaned.
//!
//! Each session makes a mark of its own, under a number that was never used, before it does anything else; the
//! mark of the session before may still stand then, so there is no gap that only the leader's patience covers. A mark that
//! somebody deletes is made again, under a new number.

use crate::contract::Layout;
use crate::machine::{
    Actions, Call, CallError, CallId, CallResult, Calls, ChangeKind, CreateMode, Level, Refusal, WatchMode,
};
use crate::recipes::ensure::{self, Ensure};

/// One submitter's mark, or the absence of one.
#[derive(Debug)]
pub struct Mark {
    layout: Layout,
    id: Option<String>,
    n: u64,
    ensure: Ensure,
    calls: Calls<Purpose>,
    /// Whether a mark stood in this session: then its submitter waits for none.
    stood: bool,
}

#[derive(Debug)]
enum Purpose {
    Create,
    Watch,
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
        Mark { layout: layout.clone(), id, n: 0, ensure, calls: Calls::default(), stood: false }
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
        self.stood = false;
    }

    /// Takes in a change of a watched znode; false if it is not the mark.
    pub fn on_changed<R>(&mut self, path: &str, kind: ChangeKind, out: &mut Actions<R>) -> bool {
        if self.path().as_deref() != Some(path) {
            return false;
        }
        if kind == ChangeKind::Deleted {
            out.log(Level::Warn, format!("{path} was deleted by someone else: making another"));
            self.n += 1;
            self.create(out);
        }
        true
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
        let purpose = self.calls.take(id)?;
        Some(match result {
            Ok(_) => {
                if let (Purpose::Create, Some(path)) = (purpose, self.path()) {
                    self.calls.issue(out, Call::Watch { path, mode: WatchMode::Tree }, Purpose::Watch);
                    if !std::mem::replace(&mut self.stood, true) {
                        return Some(Step::Standing);
                    }
                }
                Step::Pending
            }
            Err(CallError::NotSent | CallError::MaybeApplied) => Step::Pending,
            Err(CallError::Refused(Refusal::NoNode)) => {
                self.ensure.start(out);
                Step::Pending
            }
            // Its submitter waits already: the leader cancels what it waits for, if nobody mends that.
            Err(CallError::Refused(refusal)) if self.stood => {
                let path = self.path().unwrap_or_default();
                out.log(Level::Warn, format!("{path}: {refusal}; the leader takes this submitter for gone"));
                Step::Pending
            }
            Err(CallError::Refused(refusal)) => Step::Refused(*refusal),
        })
    }

    fn create<R>(&mut self, out: &mut Actions<R>) {
        if let Some(path) = self.path() {
            let call = Call::Create { path, data: Vec::new(), mode: CreateMode::Ephemeral };
            self.calls.issue(out, call, Purpose::Create);
        }
    }

    fn path(&self) -> Option<String> {
        Some(self.layout.submitter(self.id.as_ref()?, self.n))
    }
}
