//! Whether what a submitter with credentials makes can be used by the service: looked at before anything is made.
//!
//! What we make with credentials is for these alone. In a service that works without, masters could not read our task,
//! and a shared job that we were the first to need would be closed to everybody else for ever.

use crate::contract::Layout;
use crate::machine::{Actions, Call, CallError, CallId, CallResult, Calls, Refusal, Reply};

/// A look at who may create below `tasks`, or below the root if that is not there yet.
#[derive(Debug)]
pub struct Access {
    layout: Layout,
    /// Nothing is known yet, and it matters.
    unknown: bool,
    calls: Calls<String>,
}

/// What a reply meant for [`Access`] led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// More replies are awaited, or the connection is gone.
    Pending,
    /// Nothing speaks against making something.
    Fit,
    /// The service works without credentials; why that will not do, and what will.
    Unfit(String),
}

impl Access {
    /// A look for a submitter that has credentials or has not.
    pub fn new(layout: &Layout, credentials: bool) -> Access {
        Access { layout: layout.clone(), unknown: credentials, calls: Calls::default() }
    }

    /// A session is up: looks. True if there is nothing to look at.
    pub fn on_connected<R>(&mut self, out: &mut Actions<R>) -> bool {
        self.calls.clear();
        if self.unknown {
            self.look(self.layout.tasks(), out);
        }
        !self.unknown
    }

    /// The session is gone.
    pub fn on_lost(&mut self) {
        self.calls.clear();
    }

    fn look<R>(&mut self, path: String, out: &mut Actions<R>) {
        self.calls.issue(out, Call::Acl { path: path.clone() }, path);
    }

    /// Takes in a reply; `None` if it is somebody else's.
    pub fn on_reply<R>(&mut self, id: CallId, result: &CallResult, out: &mut Actions<R>) -> Option<Step> {
        let path = self.calls.take(id)?;
        Some(match result {
            Ok(Reply::Acl { open: true }) => Step::Unfit(format!(
                "anybody may create tasks below {path}, so this service works without credentials: its masters and \
                 workers could not read what is made with --auth. Nothing was submitted. Leave out --auth (also \
                 ZKMW_AUTH, or auth in the file), or give all masters, workers and clients the same"
            )),
            Err(CallError::NotSent | CallError::MaybeApplied) => Step::Pending,
            Err(CallError::Refused(Refusal::NoNode)) if path != self.layout.root() => {
                self.look(self.layout.root().to_string(), out);
                Step::Pending
            }
            // Who may not look here may not create either, and is told so when it tries. Without a root the first
            // who comes makes it.
            Ok(_) | Err(CallError::Refused(_)) => {
                self.unknown = false;
                Step::Fit
            }
        })
    }
}
