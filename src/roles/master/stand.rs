//! What a master knows stands: its picture of all jobs, tasks and groups, from three mirrors.
//!
//! Of what stands in `tasks` every master hears, so that a standby has it in memory when it takes over. Of what stands apart,
//! in `batches`, and of `groups`, only who leads does, for a standby would have to hear of each of a million tasks that are
//! over within the second: it reads them when it has taken over, and gives them out as they become known. Who led once
//! goes on hearing of them, until its connection is lost.

use std::collections::BTreeSet;

use super::Out;
use crate::contract::copies::is_of_ended;
use crate::contract::{Layout, dir_of, is_apart, name_of};
use crate::machine::{CallId, CallResult, ChangeKind};
use crate::recipes::mirror::{Change, Mirror};

/// Reads of tasks that one mirror may have under way at once.
const READS: usize = 128;

/// The mirrors of what stands, as one.
#[derive(Debug)]
pub struct Stand {
    shared: Mirror,
    apart: Mirror,
    groups: Mirror,
    /// Whether the last two are followed on this connection.
    follows_all: bool,
}

/// Where a mirror was told of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tree {
    Tasks,
    Batches,
    Groups,
}

impl Stand {
    /// Nothing is known yet.
    pub fn new(layout: &Layout) -> Stand {
        Stand {
            shared: Mirror::new(layout.tasks(), 2, READS),
            apart: Mirror::new(layout.batches(), 2, READS),
            groups: Mirror::new(layout.groups(), 2, READS),
            follows_all: false,
        }
    }

    /// Starts to follow what is not followed: what every master hears of, and the rest if this one did before.
    /// A leader follows with haste.
    pub fn start_missing(&mut self, leads: bool, out: &mut Out) {
        if !self.shared.is_started() {
            self.shared.start(out);
            self.shared.take_time(!leads, out);
        }
        if self.follows_all {
            self.follow_all(out);
        }
    }

    /// Whether everything that is followed was told, and every change will be.
    pub fn is_whole(&self) -> bool {
        let rest = !self.follows_all || (self.apart.is_complete() && self.groups.is_complete());
        self.shared.is_complete() && rest
    }

    /// From now on all that is followed is followed with haste, or without.
    pub fn hurry(&mut self, leads: bool, out: &mut Out) {
        self.shared.take_time(!leads, out);
        self.apart.take_time(!leads, out);
    }

    /// Follows the rest as well, on this connection.
    pub fn follow_all(&mut self, out: &mut Out) {
        self.follows_all = true;
        for mirror in [&mut self.groups, &mut self.apart] {
            if !mirror.is_started() {
                mirror.start(out);
            }
        }
    }

    /// Forgets what is on its way: the connection is gone.
    pub fn reset(&mut self) {
        self.shared.reset();
        self.apart.reset();
        self.groups.reset();
        self.follows_all = false;
    }

    /// Whether all tasks that stood when the lead was taken have been told.
    pub fn is_complete(&self) -> bool {
        self.shared.is_complete() && self.apart.is_complete()
    }

    /// Whether every place that is made for groups from now on will be told.
    pub fn hears_of_groups(&self) -> bool {
        self.groups.hears()
    }

    /// Takes in a reply; `None` if it is somebody else's.
    pub fn on_reply(&mut self, id: CallId, result: &CallResult, out: &mut Out) -> Option<Vec<Change>> {
        if let Some(changes) = self.shared.on_reply(id, result, out) {
            return Some(placed(changes, Tree::Tasks));
        }
        if let Some(changes) = self.apart.on_reply(id, result, out) {
            return Some(placed(changes, Tree::Batches));
        }
        Some(placed(self.groups.on_reply(id, result, out)?, Tree::Groups))
    }

    /// Takes in a change of a watched znode; `None` if it is no job, no task and no group.
    pub fn on_changed(&mut self, path: &str, kind: ChangeKind, out: &mut Out) -> Option<Vec<Change>> {
        if let Some(changes) = self.shared.on_changed(path, kind, out) {
            return Some(placed(changes, Tree::Tasks));
        }
        if let Some(changes) = self.apart.on_changed(path, kind, out) {
            return Some(placed(changes, Tree::Batches));
        }
        Some(placed(self.groups.on_changed(path, kind, out)?, Tree::Groups))
    }

    fn mirror(&self, path: &str) -> &Mirror {
        if is_apart(dir_of(path)) { &self.apart } else { &self.shared }
    }

    fn mirror_mut(&mut self, path: &str) -> &mut Mirror {
        if is_apart(dir_of(path)) { &mut self.apart } else { &mut self.shared }
    }

    /// See [`Mirror::read_again`].
    pub fn read_again(&mut self, path: &str, out: &mut Out) {
        self.mirror_mut(path).read_again(path, out);
    }

    /// See [`Mirror::believe`].
    pub fn believe(&mut self, dir: &str) -> BTreeSet<String> {
        self.mirror_mut(dir).believe(dir)
    }

    /// See [`Mirror::doubt`].
    pub fn doubt(&mut self, dir: &str, out: &mut Out) {
        self.mirror_mut(dir).doubt(dir, out);
    }

    /// See [`Mirror::is_behind_on`].
    pub fn is_behind_on(&self, path: &str) -> bool {
        self.mirror(path).is_behind_on(path)
    }

    /// See [`Mirror::is_reading`].
    pub fn is_reading(&self, path: &str) -> bool {
        self.mirror(path).is_reading(path)
    }

    /// See [`Mirror::is_behind`].
    pub fn is_behind(&self) -> bool {
        self.shared.is_behind() || self.apart.is_behind()
    }

    /// See [`Mirror::has_refused`].
    pub fn has_refused(&self) -> bool {
        [&self.shared, &self.apart, &self.groups].into_iter().any(Mirror::has_refused)
    }

    /// See [`Mirror::try_refused`].
    pub fn try_refused(&mut self, out: &mut Out) {
        for mirror in [&mut self.shared, &mut self.apart, &mut self.groups] {
            mirror.try_refused(out);
        }
    }

    /// See [`Mirror::catch_up`].
    pub fn catch_up(&mut self, out: &mut Out) {
        self.shared.catch_up(out);
        self.apart.catch_up(out);
    }
}

/// Without what stands where its name says that it does not: no path of ours leads there.
fn placed(mut changes: Vec<Change>, tree: Tree) -> Vec<Change> {
    let is_here = |path: &str| is_apart(dir_of(path)) == (tree != Tree::Tasks);
    changes.retain(|change| match change {
        Change::Refused { .. } => true,
        Change::Complete => tree != Tree::Groups,
        Change::Beside { path, .. } => is_here(path) && is_of_ended(name_of(path)) == (tree == Tree::Groups),
        Change::Appeared { path }
        | Change::Born { path }
        | Change::Touched { path }
        | Change::Seen { path, .. }
        | Change::Gone { path } => is_here(path) && tree != Tree::Groups,
    });
    changes
}
