//! A batch takes in the answers to its calls.

use super::parts::{Over, part_of};
use super::{Batch, Deleting, Purpose};
use crate::contract::Labels;
use crate::contract::task::{State, Task};
use crate::exit;
use crate::machine::{Action, Actions, Call, CallError, CallId, CallResult, Level, Refusal, Reply};
use crate::recipes::ensure;
use crate::roles::client::notice::Word;
use crate::roles::client::{ClientReport, commands_ended, refusal_code};
use crate::roles::submitter::{MAX_DELETES, access, mark};

type Out = Actions<ClientReport>;

impl Batch {
    pub(super) fn on_reply(&mut self, id: CallId, result: &CallResult, out: &mut Out) {
        if let Some(step) = self.access.on_reply(id, result, out) {
            match step {
                access::Step::Pending => {}
                access::Step::Fit => self.marked = self.mark.on_connected(out),
                access::Step::Unfit(why) => self.fail(exit::NOT_PERMITTED, why, out),
            }
            return;
        }
        if let Some(step) = self.mark.on_reply(id, result, out) {
            match step {
                mark::Step::Pending => {}
                mark::Step::Standing => self.marked = true,
                mark::Step::Refused(refusal) => self.refused("leave a mark below", None, refusal, out),
            }
            return;
        }
        if let Some(step) = self.ensure.on_reply(id, result, out) {
            match step {
                ensure::Step::Pending => {}
                ensure::Step::Done => self.ensuring = false,
                ensure::Step::Refused(path, refusal) => {
                    self.fail(refusal_code(refusal), format!("cannot make {path}: {refusal}"), out);
                }
            }
            return;
        }
        if self.pace.on_reply(id, result, out) {
            return self.enter(out);
        }
        let required = self.options.require.as_ref().unwrap_or(const { &Labels::new() });
        if let Some(word) = self.notice.on_reply(id, result, required, out) {
            if let Some(Word { level, reason }) = word {
                let pending = self.parts.pending_commands() - self.early.count();
                let name = self.name();
                out.log(level, format!("waiting for {pending} tasks of {name}: {reason}"));
            }
            return;
        }
        let Some(purpose) = self.calls.take(id) else { return };
        match purpose {
            Purpose::Create(_) | Purpose::Compare(_) => self.creates -= 1,
            Purpose::Read(unit) => {
                (self.collects, self.reads) = (self.collects - 1, self.reads - 1);
                if self.early.end_read(unit) {
                    self.parts.mark_unread(unit);
                }
            }
            Purpose::Cancel(_) | Purpose::Delete(_) => self.collects -= 1,
            Purpose::Room | Purpose::FirstPart => {}
            Purpose::MakePart(_)
            | Purpose::ComparePart(_)
            | Purpose::WatchPart(_)
            | Purpose::ReadPart(_)
            | Purpose::CompletePart(_) => self.warming -= 1,
        }
        let result = match result {
            Ok(reply) => Ok(reply),
            Err(CallError::Refused(refusal)) => Err(*refusal),
            Err(CallError::NotSent) => return,
            Err(CallError::MaybeApplied) => return self.on_doubt(purpose),
        };
        match purpose {
            Purpose::Room | Purpose::FirstPart => self.on_room(purpose, result, out),
            Purpose::MakePart(part) => self.on_part_made(part, result, out),
            Purpose::ComparePart(part) => self.on_part_compared(part, result, out),
            Purpose::WatchPart(part) => match result {
                Ok(_) => self.on_part_watched(part),
                Err(refusal) => self.refused("watch", Some(part), refusal, out),
            },
            Purpose::ReadPart(part) => self.on_part_read(part, result, out),
            Purpose::CompletePart(part) => self.on_part_completed(part, result, out),
            Purpose::Create(unit) => self.on_created(unit, result, out),
            Purpose::Compare(unit) => self.on_compared(unit, result, out),
            Purpose::Read(unit) => self.on_read(unit, result, out),
            Purpose::Cancel(unit) => self.on_cancelled(unit, result, out),
            Purpose::Delete(unit) => self.on_deleted(unit, result, out),
        }
    }

    /// The connection is gone; everything but this is found out anew on the next.
    fn on_doubt(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Create(unit) => {
                if let Some(open) = self.open.get_mut(&unit) {
                    open.doubts += 1;
                }
            }
            Purpose::Delete(unit) => {
                if let Some(deleting) = self.deleting.get_mut(&unit) {
                    deleting.tries += 1;
                    if deleting.tries >= MAX_DELETES {
                        self.leave(unit);
                    }
                }
            }
            _ => {}
        }
    }

    /// The leader is left to delete the task.
    fn leave(&mut self, unit: u64) {
        self.left += u64::from(self.deleting.remove(&unit).is_some());
    }

    /// What concerns a part, or all, and can't be helped.
    pub(super) fn refused(&mut self, what: &str, part: Option<u64>, refusal: Refusal, out: &mut Out) {
        let path = part.map_or_else(|| self.layout.root().to_string(), |part| self.part_path(part));
        self.fail(refusal_code(refusal), format!("cannot {what} {path}: {refusal}"), out);
    }

    fn on_created(&mut self, unit: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        match result {
            Ok(_) => self.stands(unit, false, out),
            Err(Refusal::NodeExists) if self.keyed => {
                let call = Call::Get { path: self.path(unit), watch: false };
                self.calls.issue(out, call, Purpose::Compare(unit));
                self.creates += 1;
            }
            // The name is ours alone, so it can only be a request that was in doubt.
            Err(Refusal::NodeExists) => self.stands(unit, true, out),
            // The leader deletes empty jobs.
            Err(Refusal::NoNode) => {
                self.unsent.insert(unit);
                self.parts.unmade(part_of(unit));
            }
            Err(refusal) => self.on_create_refused(unit, refusal, out),
        }
    }

    /// A line, or a chunk, can't be made. The batch ends.
    fn on_create_refused(&mut self, unit: u64, refusal: Refusal, out: &mut Out) {
        let is_too_large = refusal == Refusal::TooLarge;
        let hint = if is_too_large && self.units.size() > 1 { "; a smaller --chunk may pass" } else { "" };
        let (path, lines) = (self.path(unit), self.lines_of(unit));
        // No earlier request for it was carried out, either: the servers would have refused that as well.
        self.open.remove(&unit);
        let why = format!("cannot create the task {path} ({lines}): {refusal}{hint}");
        self.fail(refusal_code(refusal), why, out);
    }

    fn on_compared(&mut self, unit: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        let data = match result {
            Ok(Reply::Data { data, .. }) => data,
            Err(Refusal::NoNode) => {
                self.unsent.insert(unit);
                return self.pace.on_missed();
            }
            Err(refusal) => {
                let why = format!("cannot read the task {}: {refusal}", self.path(unit));
                return self.fail(refusal_code(refusal), why, out);
            }
            Ok(reply) => return self.bug(reply, out),
        };
        let (id, lines) = (self.id(unit), self.lines_of(unit));
        let Some(open) = self.open.get(&unit) else { return };
        match Task::decode(data) {
            Ok(task) if task.same_request(&self.task(&open.payload)) => {
                self.mark.stand_for(task.options.orphan_of.as_ref(), out);
                self.stands(unit, true, out);
            }
            Ok(_) => {
                let why = format!("the task {id} ({lines}) exists already and asks for something else");
                self.fail(exit::DATA, why, out);
            }
            Err(malformed) => {
                let why = format!("{id} ({lines}) exists already and is no task: {malformed}");
                self.fail(exit::DATA, why, out);
            }
        }
    }

    /// Which lines a task has, in words.
    pub(super) fn lines_of(&self, unit: u64) -> String {
        let (size, first) = (self.units.size(), unit.saturating_mul(self.units.size()));
        match size {
            1 => format!("line {}", first.saturating_add(1)),
            _ => format!("lines {} to {}", first.saturating_add(1), first.saturating_add(size)),
        }
    }

    /// The task stands, for certain; `before` our last request did.
    fn stands(&mut self, unit: u64, before: bool, out: &mut Out) {
        let Some(open) = self.open.remove(&unit) else { return };
        self.open_bytes = self.open_bytes.saturating_sub(open.bytes);
        self.parts.stood(unit, open.commands, self.part_lines(part_of(unit)));
        self.progress.submitted += u64::from(open.commands);
        if self.detach {
            let id = self.id(unit);
            out.push(Action::Report(ClientReport::Submitted { id, detached: true }));
            return;
        }
        // What was made by the only request in doubt is not made once more by it.
        let doubt = if before { open.doubts != 1 } else { open.doubts > 0 };
        self.parts.stands(unit, doubt, open.commands);
        if before || open.changed || self.cancelling {
            self.parts.mark_unread(unit);
        }
    }

    fn on_read(&mut self, unit: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        if self.parts.commands(unit).is_none() {
            return;
        }
        match result {
            Ok(Reply::Data { data, stat }) => match Task::decode(data) {
                Ok(task) if task.outcome.is_some() => self.ended(unit, task, stat.version, out),
                Ok(mut task) if self.cancelling && !task.cancel => {
                    task.cancel = true;
                    let call =
                        Call::Set { path: self.path(unit), data: task.encode(), version: stat.version };
                    self.calls.issue(out, call, Purpose::Cancel(unit));
                    self.collects += 1;
                }
                Ok(task) => self.results_came(unit, &task, out),
                Err(malformed) => {
                    let why = format!("the task {} can no longer be read: {malformed}", self.path(unit));
                    self.lost(unit, why, out);
                }
            },
            Err(Refusal::NoNode) => {
                let id = self.id(unit);
                let why = format!("the task {id} was deleted by someone before its outcome was seen");
                self.lost(unit, why, out);
            }
            Err(refusal) => {
                let why = format!("cannot read the task {}: {refusal}", self.path(unit));
                self.lost(unit, why, out);
            }
            Ok(reply) => self.bug(reply, out),
        }
    }

    /// Shows what became of each command. What follows happens only if that succeeded.
    pub(super) fn ended(&mut self, unit: u64, task: Task, version: i32, out: &mut Out) {
        let is_ours = self.has_our_lines(unit, &task);
        let mut ended = commands_ended(&self.id(unit), &task);
        // One outcome for each command that was submitted, or nothing that is counted would add up.
        if !is_ours || self.parts.commands(unit).map(usize::from) != Some(ended.len()) {
            let why = format!("the task {} was changed by someone: it has other lines", self.id(unit));
            return self.lost(unit, why, out);
        }
        let Some(Over { doubt, .. }) = self.parts.over(unit) else { return };
        let succeeded = ended.iter().all(|command| command.outcome.state == State::Done);
        self.early.finish(unit, &mut ended);
        self.show(ended, out);
        // What ended badly stays, to be looked at and to be run again.
        if self.keyed || !succeeded {
            return;
        }
        if doubt {
            // The request in doubt might make it anew.
            self.left += 1;
        } else {
            self.deleting.insert(unit, Deleting { version, tries: 0 });
            self.shown.push_back(unit);
        }
    }

    /// The task's outcome will never be seen.
    fn lost(&mut self, unit: u64, why: String, out: &mut Out) {
        if let Some(Over { commands, .. }) = self.parts.over(unit) {
            self.progress.failed += u64::from(commands) - self.early.finish(unit, &mut Vec::new());
            self.tally.wrong(exit::FAILED);
            self.complain(why, out);
        }
    }

    fn on_cancelled(&mut self, unit: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        match result {
            Ok(_) => {}
            // Whoever changed it has got on with it, so this comes to an end.
            Err(Refusal::BadVersion | Refusal::NoNode) => self.parts.mark_unread(unit),
            Err(refusal) => {
                let why = format!("cannot cancel the task {}: {refusal}", self.path(unit));
                self.fail(refusal_code(refusal), why, out);
            }
        }
    }

    fn on_deleted(&mut self, unit: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        self.deleting.remove(&unit);
        match result {
            Ok(_) | Err(Refusal::NoNode) => {}
            Err(Refusal::BadVersion) => {
                let id = self.id(unit);
                out.log(Level::Warn, format!("the task {id} was changed by someone after its outcome"));
            }
            Err(refusal) => {
                let why = format!("cannot delete the task {}: {refusal}", self.path(unit));
                self.complain(why, out);
            }
        }
    }

    pub(super) fn bug(&mut self, reply: &Reply, out: &mut Out) {
        let why = format!("a call about the batch {} was answered with {reply:?}", self.name());
        self.fail(exit::BUG, why, out);
    }
}
