//! The end of a batch: all is done, or it can't go on, or its user wants an end before.

use super::{Batch, Source};
use crate::machine::{Action, Actions, Level};
use crate::roles::client::{ClientReport, INTERRUPTED, Progress};

impl Batch {
    /// Whether only deletes can be left to do.
    pub(super) fn is_waited_for(&self) -> bool {
        self.source == Source::Dry && self.open.is_empty() && self.parts.pending_count() == 0
    }

    pub(super) fn end_if_done(&mut self, out: &mut Actions<ClientReport>) {
        let is_done = self.is_waited_for() && self.deleting.is_empty() && self.parts.are_complete();
        if is_done && !self.over {
            self.end(out);
        }
    }

    pub(super) fn end(&mut self, out: &mut Actions<ClientReport>) {
        self.over = true;
        let left = self.left + self.deleting.len() as u64;
        if left > 0 {
            let why = "a connection was lost while they were made or deleted";
            let words =
                "outcomes that were shown still stand, and the leader deletes them after its --result-ttl";
            out.log(Level::Warn, format!("{left} {words}: {why}"));
        }
        if self.progress.total == 0 {
            out.log(Level::Warn, "the batch has no lines: nothing was submitted");
        } else if self.detach {
            let (name, submitted) = (self.name(), self.progress.submitted);
            out.push(Action::Report(ClientReport::Detached { name, submitted }));
        } else {
            out.push(Action::Report(ClientReport::Summary(self.progress)));
        }
        out.push(Action::Exit(self.tally.code()));
    }

    /// It can't go on. Says what becomes of what was made.
    pub(super) fn fail(&mut self, code: i32, why: String, out: &mut Actions<ClientReport>) {
        self.over = true;
        let stays = self.what_stays().map_or(String::new(), |stays| format!("; {stays}"));
        out.fail(code, format!("{why}{stays}"));
    }

    /// What becomes of what was made so far; `None` if nothing was.
    fn what_stays(&self) -> Option<String> {
        let Progress { submitted, total, .. } = self.progress;
        let creating = self.open.iter().any(|(unit, open)| open.doubts > 0 || !self.unsent.contains(unit));
        if submitted == 0 && !creating {
            return None;
        }
        let words = format!("{submitted} of {total} tasks were submitted for certain");
        if self.mark.id().is_some() {
            return Some(format!("{words}; what of them has not ended is cancelled (--orphan cancel)"));
        }
        let again = if self.keyed && submitted < total { "; the same submit again goes on" } else { "" };
        Some(format!("{words} and go on: zkmw wait {} comes back to them{again}", self.name()))
    }

    pub(super) fn on_stop(&mut self, again: bool, out: &mut Actions<ClientReport>) {
        if self.is_waited_for() && !self.detach {
            self.end(out);
        } else if self.what_stays().is_none() {
            self.fail(INTERRUPTED, "interrupted; nothing was submitted".to_string(), out);
        } else if again || !self.cancel_on_interrupt {
            self.fail(INTERRUPTED, "interrupted".to_string(), out);
        } else {
            out.log(Level::Warn, format!("cancelling {}; interrupt again to leave it alone", self.name()));
            self.cancelling = true;
            self.source = Source::Dry;
            // What is certain not to stand is not created any more.
            let unsent = &self.unsent;
            self.open.retain(|unit, open| open.doubts > 0 || !unsent.contains(unit));
            self.unsent.retain(|unit| self.open.contains_key(unit));
            self.open_bytes = self.open.values().map(|open| open.bytes).sum();
            let open = self.open.values().map(|open| u64::from(open.commands)).sum::<u64>();
            self.progress.total = self.progress.submitted + open;
            self.parts.mark_all_unread();
        }
    }
}
