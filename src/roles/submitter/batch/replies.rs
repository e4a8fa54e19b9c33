//! A batch takes in the answers to its calls.

use super::open_chunks::{Made, OpenChunks};
use super::parts::{Chunk, part_of};
use super::preflight::Entry;
use super::{Batch, Connection, Purpose};
use crate::contract::Labels;
use crate::contract::task::{State, Task};
use crate::exit;
use crate::machine::{Action, Actions, Call, CallError, CallId, CallResult, Level, Refusal, Reply, Routed};
use crate::recipes::ensure;
use crate::roles::client::{ClientReport, commands_ended, refusal_code};
use crate::roles::submitter::{Cancel, mark};

type Out = Actions<ClientReport>;

impl Batch {
    pub(super) fn on_reply(&mut self, id: CallId, result: &CallResult, out: &mut Out) {
        if let Routed::Mine(step) = self.mark.on_reply(id, result, out) {
            return self.on_mark(step, out);
        }
        if let Routed::Mine(step) = self.ensure.on_reply(id, result, out) {
            return match step {
                ensure::Step::Pending | ensure::Step::Done => {}
                ensure::Step::Refused(path, refusal) => {
                    self.fail(refusal_code(refusal), format!("cannot make {path}: {refusal}"), out);
                }
            };
        }
        if let Routed::Mine(()) = self.pace.on_reply(id, result, out) {
            return self.enter(out);
        }
        let required = self.plan.options.require.as_ref().unwrap_or(const { &Labels::new() });
        let awaited = || format!("{} tasks of {}", self.results.awaited(), self.plan.name());
        if let Routed::Mine(()) = self.notice.on_reply(id, result, required, awaited, out) {
            return;
        }
        let Routed::Mine((purpose, answer)) = self.calls.route(id, result) else { return };
        if let Purpose::Read(unit) = purpose
            && self.results.end_read(unit)
        {
            self.parts.mark_unread(unit);
        }
        match answer {
            Some(answer) => self.on_answer(purpose, answer, out),
            None if *result == Err(CallError::MaybeApplied) => self.on_doubt(purpose),
            None => {}
        }
    }

    pub(super) fn on_mark(&mut self, step: mark::Step, out: &mut Out) {
        match step {
            mark::Step::Ready if self.link == Connection::Up => self.link = Connection::Marked,
            mark::Step::Pending | mark::Step::Ready => {}
            mark::Step::Unfit(why) => self.fail(exit::NOT_PERMITTED, why, out),
            mark::Step::Refused(refusal) => self.refused("leave a mark below", None, refusal, out),
        }
    }

    fn on_answer(&mut self, purpose: Purpose, answer: Result<&Reply, Refusal>, out: &mut Out) {
        match purpose {
            Purpose::Room => {
                let known = self.preflight.on_room(answer);
                self.on_preflight(known, out);
            }
            Purpose::FirstPart => {
                let known = self.preflight.on_first_part(answer);
                self.on_preflight(known, out);
            }
            Purpose::MakePart(part) => self.on_part_made(part, answer, out),
            Purpose::ComparePart(part) => self.on_part_compared(part, answer, out),
            Purpose::WatchPart(part) => match answer {
                Ok(_) => self.on_part_watched(part),
                Err(refusal) => self.refused("watch", Some(part), refusal, out),
            },
            Purpose::ReadPart(part) => self.on_part_read(part, answer, out),
            Purpose::CompletePart(part) => self.on_part_completed(part, answer, out),
            Purpose::Create(unit) => self.on_created(unit, answer, out),
            Purpose::Compare(unit) => self.on_compared(unit, answer, out),
            Purpose::Read(unit) => self.on_read(unit, answer, out),
            Purpose::Cancel(unit) => self.on_cancelled(unit, answer, out),
            Purpose::Delete(unit) => self.on_deleted(unit, answer, out),
        }
    }

    /// The answer was lost. Only creates and deletes need a note of that; everything else is read again on the next
    /// connection.
    fn on_doubt(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Create(unit) => self.open_chunks.doubt(unit),
            Purpose::Delete(unit) => self.deletes.doubt(unit),
            Purpose::Room
            | Purpose::FirstPart
            | Purpose::MakePart(_)
            | Purpose::ComparePart(_)
            | Purpose::WatchPart(_)
            | Purpose::ReadPart(_)
            | Purpose::CompletePart(_)
            | Purpose::Compare(_)
            | Purpose::Read(_)
            | Purpose::Cancel(_) => {}
        }
    }

    /// A call about a part, or about the whole batch, was refused for good.
    pub(super) fn refused(&mut self, what: &str, part: Option<u64>, refusal: Refusal, out: &mut Out) {
        let root = || self.plan.layout.root().to_string();
        let path = part.map_or_else(root, |part| self.plan.part_path(part));
        self.fail(refusal_code(refusal), format!("cannot {what} {path}: {refusal}"), out);
    }

    fn on_preflight(&mut self, known: Result<(), Refusal>, out: &mut Out) {
        match known {
            Ok(()) => self.enter(out),
            Err(refusal) => self.refused("read the jobs below", None, refusal, out),
        }
    }

    fn enter(&mut self, out: &mut Out) {
        if self.preflight.is_admitted() {
            return;
        }
        match self.preflight.enter(&mut self.plan, self.mark.id(), &mut self.pace) {
            Entry::Unknown => {}
            Entry::Admitted => self.open_chunks = OpenChunks::new(self.plan.size()),
            Entry::Refused(why) => self.fail(exit::TOO_MUCH, why, out),
        }
    }

    fn on_created(&mut self, unit: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        match result {
            Ok(_) => self.on_exists(unit, false, out),
            Err(Refusal::NodeExists) if self.plan.keyed => {
                let call = Call::Get { path: self.plan.path(unit), watch: false };
                self.calls.issue(out, call, Purpose::Compare(unit));
            }
            // Nobody else uses the name, so an earlier request of ours created it.
            Err(Refusal::NodeExists) => self.on_exists(unit, true, out),
            // The leader deletes empty jobs.
            Err(Refusal::NoNode) => {
                self.open_chunks.again(unit);
                self.parts.unmade(part_of(unit));
            }
            Err(refusal) => self.on_create_refused(unit, refusal, out),
        }
    }

    /// A chunk can't be created. The batch ends.
    fn on_create_refused(&mut self, unit: u64, refusal: Refusal, out: &mut Out) {
        let is_too_large = refusal == Refusal::TooLarge;
        let hint = if is_too_large && self.plan.size() > 1 { "; a smaller --chunk may pass" } else { "" };
        let (path, lines) = (self.plan.path(unit), self.plan.lines_of(unit));
        // No earlier request for it was carried out, either: the servers would have refused that too.
        self.open_chunks.drop(unit);
        let why = format!("cannot create the task {path} ({lines}): {refusal}{hint}");
        self.fail(refusal_code(refusal), why, out);
    }

    fn on_compared(&mut self, unit: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        let data = match result {
            Ok(Reply::Data { data, .. }) => data,
            Err(Refusal::NoNode) => {
                self.open_chunks.again(unit);
                return self.pace.on_absent();
            }
            Err(refusal) => {
                let why = format!("cannot read the task {}: {refusal}", self.plan.path(unit));
                return self.fail(refusal_code(refusal), why, out);
            }
            Ok(reply) => return self.bug(reply, out),
        };
        let what = self.plan.describe(unit);
        let Some(commands) = self.open_chunks.commands(unit) else { return };
        match Task::decode(data) {
            Ok(task) if task.same_request(&self.plan.task(unit, commands, self.mark.id())) => {
                self.mark.adopt(task.options.orphan_of.as_ref(), out);
                self.on_exists(unit, true, out);
            }
            Ok(_) => {
                let why = format!("{what} exists already and asks for something else");
                self.fail(exit::DATA, why, out);
            }
            Err(malformed) => {
                let why = format!("{what} exists already, and is no task: {malformed}");
                self.fail(exit::DATA, why, out);
            }
        }
    }

    /// The chunk exists, for certain; `before` says that it did so before our last request.
    fn on_exists(&mut self, unit: u64, before: bool, out: &mut Out) {
        let Some(made) = self.open_chunks.created(unit, before) else { return };
        let Made { lines, doubt, changed } = made;
        let commands = lines.len() as u16;
        self.parts.count_created(unit, commands, self.plan.part_lines(part_of(unit)));
        self.results.submitted(u64::from(commands));
        if self.waiting.is_detached() {
            let id = self.plan.id(unit);
            out.push(Action::Report(ClientReport::SubmittedLines { id, lines }));
            return;
        }
        self.parts.add(unit, Chunk { doubt, commands });
        if changed || self.cancel == Cancel::Wanted {
            self.parts.mark_unread(unit);
        }
    }

    fn on_read(&mut self, unit: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        if self.parts.commands(unit).is_none() {
            return;
        }
        match result {
            Ok(Reply::Data { data, stat }) => match Task::decode(data) {
                Ok(task) if task.outcome.is_some() => self.ended(unit, &task, stat.version, out),
                Ok(mut task) if self.cancel == Cancel::Wanted && !task.cancel => {
                    task.cancel = true;
                    let call =
                        Call::Set { path: self.plan.path(unit), data: task.encode(), version: stat.version };
                    self.calls.issue(out, call, Purpose::Cancel(unit));
                }
                Ok(task) if self.plan.has_our_lines(unit, &task) => {
                    self.results.came(unit, commands_ended(&self.plan.id(unit), &task), out);
                }
                Ok(_) => {}
                Err(malformed) => {
                    let why = format!("the task {} can no longer be read: {malformed}", self.plan.path(unit));
                    self.lost(unit, why, out);
                }
            },
            Err(Refusal::NoNode) => {
                let what = self.plan.describe(unit);
                let why = format!("{what} was deleted by someone before its outcome was seen");
                self.lost(unit, why, out);
            }
            Err(refusal) => {
                let why = format!("cannot read the task {}: {refusal}", self.plan.path(unit));
                self.lost(unit, why, out);
            }
            Ok(reply) => self.bug(reply, out),
        }
    }

    /// Shows how each command ended. What follows happens only if that succeeded.
    fn ended(&mut self, unit: u64, task: &Task, version: i32, out: &mut Out) {
        let is_ours = self.plan.has_our_lines(unit, task);
        let ended = commands_ended(&self.plan.id(unit), task);
        // One outcome for each command that was submitted, or nothing that is counted would add up.
        if !is_ours || self.parts.commands(unit).map(usize::from) != Some(ended.len()) {
            let why = format!("the task {} was changed by someone: it has other lines", self.plan.id(unit));
            return self.lost(unit, why, out);
        }
        let Some(Chunk { doubt, .. }) = self.parts.remove(unit) else { return };
        let succeeded = ended.iter().all(|command| command.outcome.state == State::Done);
        self.results.over(unit, ended, out);
        // What failed stays, for show and retry.
        if self.plan.keyed || !succeeded {
            return;
        }
        if doubt {
            // The request in doubt might create it again.
            self.deletes.leave();
        } else {
            self.deletes.add(unit, version);
        }
    }

    /// The task's outcome will never be seen.
    fn lost(&mut self, unit: u64, why: String, out: &mut Out) {
        if let Some(Chunk { commands, .. }) = self.parts.remove(unit) {
            self.results.lost(unit, commands, why, out);
        }
    }

    fn on_cancelled(&mut self, unit: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        match result {
            Ok(_) => {}
            // The process that changed it has made progress, so this ends.
            Err(Refusal::BadVersion | Refusal::NoNode) => self.parts.mark_unread(unit),
            Err(refusal) => {
                let why = format!("cannot cancel the task {}: {refusal}", self.plan.path(unit));
                self.fail(refusal_code(refusal), why, out);
            }
        }
    }

    fn on_deleted(&mut self, unit: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        self.deletes.settled(unit);
        match result {
            Ok(_) | Err(Refusal::NoNode) => {}
            Err(Refusal::BadVersion) => {
                let what = self.plan.describe(unit);
                out.log(Level::Warn, format!("{what} was changed by someone after its outcome"));
            }
            Err(refusal) => {
                let why = format!("cannot delete the task {}: {refusal}", self.plan.path(unit));
                self.results.complain(why, out);
            }
        }
    }

    pub(super) fn bug(&mut self, reply: &Reply, out: &mut Out) {
        let why = format!("a call about the batch {} was answered with {reply:?}", self.plan.name());
        self.fail(exit::BUG, why, out);
    }
}
