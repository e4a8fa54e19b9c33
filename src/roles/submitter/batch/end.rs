//! The end of a batch: all is done, or it can't go on, or its user wants an end before.

use super::{Batch, Cancel};
use crate::machine::{Action, Actions, Level};
use crate::roles::client::{ClientReport, INTERRUPTED, Progress};

impl Batch {
    /// Whether only deletes can be left to do.
    pub(super) fn is_waited_for(&self) -> bool {
        self.open_chunks.is_done() && self.parts.pending_count() == 0
    }

    pub(super) fn end_if_done(&mut self, out: &mut Actions<ClientReport>) {
        let is_done = self.is_waited_for() && self.deletes.is_done() && self.parts.are_complete();
        if is_done && !self.over {
            self.end(out);
        }
    }

    pub(super) fn end(&mut self, out: &mut Actions<ClientReport>) {
        self.over = true;
        let left = self.deletes.left();
        if left > 0 {
            let why = "a connection was lost while they were made or deleted";
            let words =
                "outcomes that were shown still exist, and the leader deletes them after its --result-ttl";
            out.log(Level::Warn, format!("{left} {words}: {why}"));
        }
        let progress = self.results.progress();
        if progress.total == 0 {
            out.log(Level::Warn, "the batch has no lines: nothing was submitted");
        } else if self.waiting.is_detached() {
            let (name, submitted) = (self.plan.name(), progress.submitted);
            out.push(Action::Report(ClientReport::Detached { name, submitted }));
        } else {
            out.push(Action::Report(ClientReport::Summary(progress)));
        }
        out.push(Action::Exit(self.results.code()));
    }

    /// It can't go on. Says what becomes of what was made.
    pub(super) fn fail(&mut self, code: i32, why: String, out: &mut Actions<ClientReport>) {
        self.over = true;
        let stays = self.what_stays().map_or(String::new(), |stays| format!("; {stays}"));
        out.fail(code, format!("{why}{stays}"));
    }

    /// What becomes of what was made so far; `None` if nothing was.
    fn what_stays(&self) -> Option<String> {
        let Progress { submitted, total, .. } = self.results.progress();
        if submitted == 0 && !self.open_chunks.is_uncertain() {
            return None;
        }
        let words = format!("{submitted} of {total} tasks were submitted for certain");
        if self.mark.id().is_some() {
            return Some(format!("{words}; what of them has not ended is cancelled (--orphan cancel)"));
        }
        let again = if self.plan.keyed && submitted < total { "; the same submit again goes on" } else { "" };
        Some(format!("{words} and go on: zkmw wait {} comes back to them{again}", self.plan.name()))
    }

    pub(super) fn on_stop(&mut self, again: bool, out: &mut Actions<ClientReport>) {
        if self.is_waited_for() && !self.waiting.is_detached() {
            self.end(out);
        } else if self.what_stays().is_none() {
            self.fail(INTERRUPTED, "interrupted; nothing was submitted".to_string(), out);
        } else if again || self.cancel == Cancel::Never {
            self.fail(INTERRUPTED, "interrupted".to_string(), out);
        } else {
            out.log(
                Level::Warn,
                format!("cancelling {}; interrupt again to leave it alone", self.plan.name()),
            );
            self.cancel = Cancel::Wanted;
            // A chunk that certainly does not exist is not created any more.
            let open = self.open_chunks.stop();
            self.results.cut(open);
            self.parts.mark_all_unread();
        }
    }
}
