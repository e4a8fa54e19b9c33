//! A master that waits its turn: it keeps the view and the queue of a leader, and writes nothing.

use std::time::Duration;

use super::Out;
use super::view::{News, View};
use crate::contract::TaskId;
use crate::machine::Instant;

/// A standby reads what changed once, or at most twice this time later: most tasks are gone by then.
pub(super) const CATCH_UP_PACE: Duration = Duration::from_secs(1);

/// What a standby owns.
#[derive(Debug)]
pub struct Standby {
    pub(super) view: View,
}

impl Standby {
    /// The standby on a new session.
    pub fn new(view: View) -> Standby {
        Standby { view }
    }

    /// The standby that a leader becomes. The leader's queue left out what was assigned; a standby's holds all.
    pub fn after_term(mut view: View, out: &mut Out) -> Standby {
        view.on_term(true, out);
        let tasks: Vec<_> = view.table.ids().cloned().collect();
        let mut standby = Standby { view };
        for task in tasks {
            standby.requeue(&task);
        }
        standby
    }

    /// Takes in what became known.
    pub fn on_news(&mut self, news: &News) {
        match news {
            News::TaskRead { task, .. } | News::TaskGone(task) => self.requeue(task),
            News::TaskChanged(_)
            | News::JobRead
            | News::TasksLoaded
            | News::WorkerRegistered(_)
            | News::WorkerDied(_)
            | News::WorkersLoaded => {}
        }
    }

    fn requeue(&mut self, task: &TaskId) {
        let units = match self.view.table.pending(task) {
            Some(pending) if !pending.cancel => pending.units().to_vec(),
            Some(_) | None => Vec::new(),
        };
        self.view.set_queued(task, &units, None);
    }

    /// Does what is due.
    pub fn act(&mut self, now: Instant, out: &mut Out) {
        self.view.catch_up(CATCH_UP_PACE, now, out);
        self.view.try_forbidden(now, out);
    }
}
