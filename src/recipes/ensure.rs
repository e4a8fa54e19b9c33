//! Ensure: makes sure that directories exist, with reads alone if they do.

use std::collections::BTreeSet;

use crate::contract::parent_of;
use crate::machine::{Actions, Call, CallId, CallResult, Calls, CreateMode, Refusal, Reply, Routed};

/// Makes sure that some directories exist.
#[derive(Debug)]
pub struct Ensure {
    /// Parents before children.
    paths: Vec<String>,
    missing: BTreeSet<usize>,
    calls: Calls<Purpose>,
    done: bool,
}

#[derive(Debug)]
enum Purpose {
    Check(usize),
    Create(usize),
}

/// What a reply meant for [`Ensure`] led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// More replies are awaited, or the connection is gone.
    Pending,
    /// All directories exist.
    Done,
    /// This directory could not be checked or created.
    Refused(String, Refusal),
}

impl Ensure {
    /// For these directories and all above them.
    pub fn new<I: IntoIterator<Item = String>>(directories: I) -> Ensure {
        let mut all = BTreeSet::new();
        for directory in directories {
            let mut at = Some(directory.as_str());
            while let Some(path) = at {
                all.insert(path.to_string());
                at = parent_of(path);
            }
        }
        // A parent is a prefix of its child, so the set's order puts it first.
        let paths = all.into_iter().collect();
        Ensure { paths, missing: BTreeSet::new(), calls: Calls::default(), done: false }
    }

    /// Checks, on a connection that is up.
    pub fn start<R>(&mut self, out: &mut Actions<R>) {
        self.reset();
        for (at, path) in self.paths.iter().enumerate() {
            self.calls.issue(out, Call::Exists { path: path.clone(), watch: false }, Purpose::Check(at));
        }
    }

    /// Forgets all calls: the connection is gone.
    pub fn reset(&mut self) {
        self.calls.clear();
        self.missing.clear();
        self.done = false;
    }

    /// Takes in a reply.
    pub fn on_reply<R>(&mut self, id: CallId, result: &CallResult, out: &mut Actions<R>) -> Routed<Step> {
        self.calls.route(id, result).map(|(purpose, answer)| match answer {
            Some(answer) => self.on_answer(purpose, answer, out),
            None => {
                // What is still answered must not make it complete.
                self.reset();
                Step::Pending
            }
        })
    }

    fn on_answer<R>(
        &mut self,
        purpose: Purpose,
        answer: Result<&Reply, Refusal>,
        out: &mut Actions<R>,
    ) -> Step {
        match (purpose, answer) {
            (Purpose::Check(_), Ok(_)) => {}
            (Purpose::Check(at), Err(Refusal::NoNode)) => {
                self.missing.insert(at);
            }
            (Purpose::Create(at), Ok(_) | Err(Refusal::NodeExists)) => {
                self.missing.remove(&at);
            }
            // Its parent was deleted after we had seen it. (Without a parent of ours above it, it is the chroot
            // of the connect string that is missing, and another check does not bring that back.)
            (Purpose::Create(at), Err(Refusal::NoNode)) if parent_of(&self.paths[at]).is_some() => {
                self.start(out);
                return Step::Pending;
            }
            (Purpose::Check(at) | Purpose::Create(at), Err(refusal)) => {
                return Step::Refused(self.paths[at].clone(), refusal);
            }
        }
        if !self.calls.is_empty() {
            return Step::Pending;
        }
        let Some(&at) = self.missing.first() else {
            self.done = true;
            return Step::Done;
        };
        let path = self.paths[at].clone();
        let call = Call::Create { path, data: Vec::new(), mode: CreateMode::Persistent };
        self.calls.issue(out, call, Purpose::Create(at));
        Step::Pending
    }

    /// Whether it is under way: replies are awaited.
    pub fn is_running(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Whether it is one of the directories.
    pub fn has(&self, path: &str) -> bool {
        self.paths.iter().any(|own| own == path)
    }

    /// Whether all were seen to exist on this connection.
    pub fn is_done(&self) -> bool {
        self.done
    }
}
