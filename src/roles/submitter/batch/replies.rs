//! A batch takes in the answers to its calls.

use super::parts::{Over, part_of};
use super::{Batch, Deleting, Purpose, Room};
use crate::contract::task::{Job, Task};
use crate::contract::{Labels, MAX_CHILDREN};
use crate::exit;
use crate::machine::{Action, Actions, Call, CallError, CallId, CallResult, Refusal, Reply};
use crate::recipes::ensure;
use crate::roles::client::notice::Word;
use crate::roles::client::{ClientReport, Ended, commands_ended, refusal_code};
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
        if let Some(refused) = self.pace.on_reply(id, result, out) {
            self.denied = refused.or(self.denied.take());
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
            Purpose::Create(_) | Purpose::Compare(_) | Purpose::MakeCopies(..) => self.creates -= 1,
            Purpose::Read(unit) => {
                (self.collects, self.reads) = (self.collects - 1, self.reads - 1);
                if self.early.end_read(unit) {
                    self.parts.mark_unread(unit);
                }
            }
            Purpose::ReadGroup(_) => {
                (self.collects, self.group_reads) = (self.collects - 1, self.group_reads - 1);
            }
            Purpose::Cancel(_) | Purpose::Delete(_) | Purpose::Recheck(_) | Purpose::DropCopies => {
                self.collects -= 1;
            }
            Purpose::Room | Purpose::FirstPart => {}
            Purpose::MakePart(_)
            | Purpose::ComparePart(_)
            | Purpose::WatchPart(_)
            | Purpose::MakeGroups(_)
            | Purpose::WatchGroups(_) => self.warming -= 1,
        }
        let result = match result {
            Ok(reply) => Ok(reply),
            Err(CallError::Refused(refusal)) => Err(*refusal),
            Err(CallError::NotSent | CallError::MaybeApplied) if matches!(purpose, Purpose::ReadGroup(_)) => {
                return self.on_doubt(purpose);
            }
            Err(CallError::NotSent) => return,
            Err(CallError::MaybeApplied) => return self.on_doubt(purpose),
        };
        match purpose {
            Purpose::Room | Purpose::FirstPart => self.on_room(purpose, result, out),
            Purpose::MakePart(part) => self.on_part_made(part, result, out),
            Purpose::ComparePart(part) => self.on_part_compared(part, result, out),
            Purpose::WatchPart(part) => match result {
                Ok(_) => self.on_heard(part),
                Err(refusal) => self.refused("watch", Some(part), refusal, out),
            },
            Purpose::MakeGroups(part) => self.on_groups_made(part, result, out),
            Purpose::WatchGroups(part) => match result {
                Ok(_) => self.on_groups_watched(part, out),
                Err(refusal) => self.refused("watch the groups of", Some(part), refusal, out),
            },
            Purpose::Create(unit) => self.on_created(unit, result, out),
            Purpose::Compare(unit) => self.on_compared(unit, result, out),
            Purpose::Read(unit) => self.on_read(unit, result, out),
            Purpose::ReadGroup(path) => self.on_group(path, result, out),
            Purpose::Recheck(unit) => self.on_rechecked(unit, result, out),
            Purpose::MakeCopies(group, path) => self.on_copies_made(group, path, result),
            Purpose::DropCopies => {}
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
            Purpose::ReadGroup(path) => self.queue_group(path),
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
    pub(super) fn leave(&mut self, unit: u64) {
        self.left += u64::from(self.deleting.remove(&unit).is_some());
    }

    /// What concerns a part, or all, and can't be helped.
    pub(super) fn refused(&mut self, what: &str, part: Option<u64>, refusal: Refusal, out: &mut Out) {
        let path = part.map_or_else(|| self.layout.root().to_string(), |part| self.part_path(part));
        self.fail(refusal_code(refusal), format!("cannot {what} {path}: {refusal}"), out);
    }

    fn on_room(&mut self, purpose: Purpose, result: Result<&Reply, Refusal>, out: &mut Out) {
        let fits = |n: i32| u64::try_from(n).unwrap_or(0) + self.part_count <= u64::from(MAX_CHILDREN as u32);
        match (purpose, result) {
            (Purpose::Room, Ok(Reply::Stat(stat))) if !fits(stat.num_children) => {
                let (above, parts) = (self.above(), self.part_count);
                let why =
                    format!("there is no room for {parts} more directories in {above}; try again later");
                self.denied = Some(why);
                self.enter(out);
            }
            (Purpose::Room, Ok(_) | Err(Refusal::NoNode)) => self.enter(out),
            (Purpose::FirstPart, Err(Refusal::NoNode)) => self.turn_away(out),
            (_, Ok(_)) => self.room = Room::Found,
            (_, Err(refusal)) => self.refused("look at the jobs below", None, refusal, out),
        }
    }

    /// Goes on when both are known: whether there is room for the parts, and what the service admits.
    fn enter(&mut self, out: &mut Out) {
        let is_looking = self.calls.purposes().any(|purpose| *purpose == Purpose::Room);
        if self.room != Room::Looking || is_looking || self.pace.is_asking() {
            return;
        }
        if self.denied.is_none() {
            self.room = Room::Found;
        } else if self.keyed {
            // What stands of it already is part of what there is.
            let call = Call::Exists { path: self.part_path(0), watch: false };
            self.calls.issue(out, call, Purpose::FirstPart);
        } else {
            self.turn_away(out);
        }
    }

    fn turn_away(&mut self, out: &mut Out) {
        if let Some(why) = self.denied.take() {
            self.fail(exit::TOO_MUCH, why, out);
        }
    }

    fn on_part_made(&mut self, part: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        match result {
            Err(Refusal::NodeExists) if self.keyed => {
                let call = Call::Get { path: self.part_path(part), watch: false };
                self.calls.issue(out, call, Purpose::ComparePart(part));
                self.warming += 1;
            }
            // The name is ours alone.
            Ok(_) | Err(Refusal::NodeExists) => self.on_part_stands(part, out),
            Err(Refusal::NoNode) => self.on_part_missing(part, out),
            Err(refusal) => self.refused("make", Some(part), refusal, out),
        }
    }

    /// A directory above is not there.
    pub(super) fn on_part_missing(&mut self, part: u64, out: &mut Out) {
        self.parts.unmade(part);
        if !self.ensuring {
            self.ensuring = true;
            self.ensure.start(out);
        }
    }

    fn on_part_compared(&mut self, part: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        let data = match result {
            Ok(Reply::Data { data, .. }) => data,
            Err(Refusal::NoNode) => return self.parts.unmade(part),
            Err(refusal) => return self.refused("read", Some(part), refusal, out),
            Ok(reply) => return self.bug(reply, out),
        };
        let path = self.part_path(part);
        match Job::decode(data) {
            Ok(job) if job.chunk != self.part_data().chunk => {
                let (theirs, ours) = (job.chunk.unwrap_or(1), self.units.size());
                let why = format!(
                    "{path} exists already, with other options: it has chunks of {theirs} lines, not of {ours}; \
                     say --chunk {theirs}, or take another --id"
                );
                self.fail(exit::DATA, why, out);
            }
            Ok(job) if job.options == self.options => self.on_part_stands(part, out),
            Ok(_) => self.fail(exit::DATA, format!("{path} exists already, with other options"), out),
            Err(malformed) => {
                self.fail(exit::DATA, format!("{path} exists already and is no job: {malformed}"), out);
            }
        }
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
        let hint = if is_too_large && self.units.are_chunks() { "; a smaller --chunk may pass" } else { "" };
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
    fn lines_of(&self, unit: u64) -> String {
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
        self.progress.submitted += u64::from(open.commands);
        if self.detach {
            let id = self.id(unit);
            out.push(Action::Report(ClientReport::Submitted { id, detached: true }));
            return;
        }
        // What was made by the only request in doubt is not made once more by it.
        let doubt = if before { open.doubts != 1 } else { open.doubts > 0 };
        self.parts.stands(unit, doubt, open.commands);
        // Once for all of them.
        if open.told && !self.open.values().any(|open| open.told) {
            self.read_early_groups();
        }
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
        let (attempt, is_ours) = (task.attempt, self.has_our_lines(unit, &task));
        let mut ended = if self.units.are_chunks() {
            commands_ended(&self.id(unit), &task)
        } else {
            let whole = |outcome| Ended { id: self.id(unit), line: Some(unit), outcome, alone: false };
            task.outcome.into_iter().map(whole).collect()
        };
        // One outcome for each command that was submitted, or nothing that is counted would add up.
        if !is_ours || self.parts.commands(unit).map(usize::from) != Some(ended.len()) {
            let why = format!("the task {} was changed by someone: it has other lines", self.id(unit));
            return self.lost(unit, why, out);
        }
        let Some(Over { doubt, .. }) = self.over(unit) else { return };
        self.early.finish(unit, &mut ended);
        self.show(ended, out);
        if self.keyed {
            return;
        }
        if doubt {
            // The request in doubt might make it anew.
            self.left += 1;
        } else {
            self.deleting.insert(unit, Deleting { version, attempt, tries: 0, looks: 0 });
            self.shown.push_back(unit);
        }
    }

    /// The task's outcome will never be seen.
    fn lost(&mut self, unit: u64, why: String, out: &mut Out) {
        if let Some(Over { commands, .. }) = self.over(unit) {
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
        if result == Err(Refusal::BadVersion) {
            return self.look_before_deleting(unit, out);
        }
        self.deleting.remove(&unit);
        match result {
            Ok(_) | Err(Refusal::NoNode) => {}
            Err(refusal) => {
                let why = format!("cannot delete the task {}: {refusal}", self.path(unit));
                self.complain(why, out);
            }
        }
    }

    fn bug(&mut self, reply: &Reply, out: &mut Out) {
        let why = format!("a call about the batch {} was answered with {reply:?}", self.name());
        self.fail(exit::BUG, why, out);
    }
}
