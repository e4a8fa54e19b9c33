//! What a master knows stands: its picture of all jobs and tasks, from two mirrors.
//!
//! Of what stands in `tasks` every master hears, so that a standby has it in memory when it takes over. Of what stands apart,
//! in `batches`, only who leads does, for a standby would have to hear of each of a million tasks that are over within the
//! second: it has them read when it takes over, and gives them out as they become known. Who led once goes on
//! hearing of them, until its connection is lost.

use std::collections::BTreeSet;

use super::Out;
use crate::contract::{Layout, is_apart};
use crate::machine::{CallId, CallResult, ChangeKind};
use crate::recipes::mirror::{Change, Mirror};

/// Reads of tasks that one mirror may have under way at once.
const READS: usize = 128;

/// The mirrors of what stands, as one.
#[derive(Debug)]
pub struct Stand {
    shared: Mirror,
    apart: Mirror,
}

impl Stand {
    /// Nothing is known yet.
    pub fn new(layout: &Layout) -> Stand {
        Stand {
            shared: Mirror::new(layout.tasks(), 2, READS),
            apart: Mirror::new(layout.batches(), 2, READS),
        }
    }

    /// Starts to follow what every master hears of, without haste.
    pub fn start(&mut self, out: &mut Out) {
        self.shared.start(out);
        self.shared.take_time(true, out);
    }

    /// From now on it is followed with haste, or without; with haste the rest as well.
    pub fn lead(&mut self, leads: bool, out: &mut Out) {
        self.shared.take_time(!leads, out);
        if self.apart.is_started() {
            self.apart.take_time(!leads, out);
        } else if leads {
            self.apart.start(out);
        }
    }

    /// Forgets what is on its way: the connection is gone.
    pub fn reset(&mut self) {
        self.shared.reset();
        self.apart.reset();
    }

    /// Whether all that stood when the lead was taken has been told.
    pub fn is_complete(&self) -> bool {
        self.shared.is_complete() && self.apart.is_complete()
    }

    /// Takes in a reply; `None` if it is somebody else's.
    pub fn on_reply(&mut self, id: CallId, result: &CallResult, out: &mut Out) -> Option<Vec<Change>> {
        let shared = self.shared.on_reply(id, result, out).map(|changes| placed(changes, false));
        shared.or_else(|| Some(placed(self.apart.on_reply(id, result, out)?, true)))
    }

    /// Takes in a change of a watched znode; `None` if it is no job and no task.
    pub fn on_changed(&mut self, path: &str, kind: ChangeKind, out: &mut Out) -> Option<Vec<Change>> {
        let shared = self.shared.on_changed(path, kind, out).map(|changes| placed(changes, false));
        shared.or_else(|| Some(placed(self.apart.on_changed(path, kind, out)?, true)))
    }

    fn of(&mut self, path: &str) -> &mut Mirror {
        if is_apart(dir_of(path)) { &mut self.apart } else { &mut self.shared }
    }

    /// See [`Mirror::read_again`].
    pub fn read_again(&mut self, path: &str, out: &mut Out) {
        self.of(path).read_again(path, out);
    }

    /// See [`Mirror::believe`].
    pub fn believe(&mut self, dir: &str) -> BTreeSet<String> {
        self.of(dir).believe(dir)
    }

    /// See [`Mirror::doubt`].
    pub fn doubt(&mut self, dir: &str, out: &mut Out) {
        self.of(dir).doubt(dir, out);
    }

    /// See [`Mirror::is_behind_on`].
    pub fn is_behind_on(&self, path: &str) -> bool {
        let mirror = if is_apart(dir_of(path)) { &self.apart } else { &self.shared };
        mirror.is_behind_on(path)
    }

    /// See [`Mirror::is_behind`].
    pub fn is_behind(&self) -> bool {
        self.shared.is_behind() || self.apart.is_behind()
    }

    /// See [`Mirror::catch_up`].
    pub fn catch_up(&mut self, out: &mut Out) {
        self.shared.catch_up(out);
        self.apart.catch_up(out);
    }
}

fn dir_of(path: &str) -> &str {
    path.split_once('/').map_or(path, |(dir, _)| dir)
}

/// Without what stands where its name says that it does not: no path of ours leads there.
fn placed(mut changes: Vec<Change>, apart: bool) -> Vec<Change> {
    changes.retain(|change| match change {
        Change::Appeared { path }
        | Change::Born { path }
        | Change::Touched { path }
        | Change::Seen { path, .. }
        | Change::Gone { path }
        | Change::Beside { path, .. } => is_apart(dir_of(path)) == apart,
        Change::Refused { .. } | Change::Complete => true,
    });
    changes
}
