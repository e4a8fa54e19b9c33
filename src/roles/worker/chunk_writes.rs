//! What a worker writes into chunks of which it has shares while these run, and what it reads there.

use std::time::Duration;

use super::assigned_task::{AssignedTask, State};
use super::execution::Execution;
use super::portion::{Pace, Portion};
use super::stop_reason::StopReason;
use super::{Out, Purpose, Run, Worker};
use crate::contract::task::Task;
use crate::contract::worker::EntryId;
use crate::machine::{Call, Instant, Level, Refusal, Reply, RunId, RunReport};
use crate::recipes::holder::Seen;

/// How much the last write, or run, counts in what is known of how long they take: 1 in so many.
const MEMORY: u32 = 8;

impl Worker {
    pub(super) fn portion_mut(&mut self, id: &EntryId) -> Option<&mut Portion> {
        self.assigned.tasks.get_mut(id)?.execution_mut()?.portion.as_deref_mut()
    }

    fn pace(&self) -> Pace {
        let slots = u32::try_from(self.running.starts.allowed()).unwrap_or(u32::MAX);
        Pace { slots, run: self.saves.run_time, write: self.saves.write_time }
    }

    /// So long a command has run.
    pub(super) fn note_run_time(&mut self, report: &RunReport) {
        let ran = report.ended_ms.saturating_sub(report.started_ms).max(0);
        let ran = Duration::from_millis(ran.unsigned_abs());
        let before = self.saves.run_time.unwrap_or(ran);
        self.saves.run_time = Some((before * (MEMORY - 1) + ran) / MEMORY);
    }

    /// Sees to it that what is known of a share is written.
    pub(super) fn plan_save(&mut self, id: &EntryId, now: Instant) {
        if let Some((at, before)) = self.portion_mut(id).and_then(|portion| portion.plan_save(now)) {
            if let Some(before) = before {
                self.saves.due.remove(&(before, id.clone()));
            }
            self.saves.due.insert((at, id.clone()));
        }
    }

    /// Likewise of all shares.
    pub(super) fn plan_saves(&mut self, now: Instant) {
        for id in self.ids_of(|assigned| assigned.execution().is_some()) {
            self.plan_save(&id, now);
        }
    }

    /// Writes what is due.
    pub(super) fn save(&mut self, now: Instant, out: &mut Out) {
        if !self.connected {
            return;
        }
        let pace = self.pace();
        while self.saves.due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, id)) = self.saves.due.pop_first() else { return };
            let path = self.params.layout.task(&id.task);
            let Some(portion) = self.portion_mut(&id) else { continue };
            if let Some((version, mut task)) = portion.save(pace) {
                let data = task.encode_within(portion.limit);
                portion.sent(task, data.len(), pace, now);
                self.calls.issue(out, Call::Set { path, data, version }, Purpose::Save(id));
            }
        }
    }

    /// It was written, or not. If somebody changed the chunk, it is read, and the next write is set on that.
    pub(super) fn on_saved(
        &mut self,
        id: &EntryId,
        result: Result<&Reply, Refusal>,
        now: Instant,
        out: &mut Out,
    ) {
        let Some(portion) = self.portion_mut(id) else { return };
        match result {
            Ok(Reply::Stat(stat)) => {
                if let Some(sent) = portion.written(stat) {
                    self.saves.write_time = (self.saves.write_time * (MEMORY - 1) + now.since(sent)) / MEMORY;
                }
            }
            // It is gone, or no task any more: its end will show that.
            Ok(_) | Err(Refusal::NoNode) => portion.doubt(),
            Err(Refusal::BadVersion) => {
                portion.doubt();
                self.reread(id, false, out);
            }
            Err(Refusal::TooLarge) => portion.save_less(),
            Err(
                Refusal::Other(_)
                | Refusal::NodeExists
                | Refusal::NotEmpty
                | Refusal::NoAuth
                | Refusal::NoChildrenForEphemerals
                | Refusal::BadArguments
                | Refusal::Unimplemented,
            ) => portion.save_later(),
        }
        self.finish_if_over(id, out);
        self.plan_save(id, now);
    }

    fn reread(&mut self, id: &EntryId, verified: bool, out: &mut Out) {
        let call = Call::Get { path: self.params.layout.task(&id.task), watch: false };
        self.calls.issue(out, call, Purpose::Reread { id: id.clone(), verified });
    }

    /// The leader knows that this version of a chunk has something that its holders should know.
    pub(super) fn recheck(&mut self, id: &EntryId, version: i32, out: &mut Out) {
        let Some(assigned) = self.assigned.tasks.get_mut(id) else { return };
        if matches!(&assigned.state, State::Ready(work) if work.version < version) {
            assigned.state = State::Reading { verified: false };
            return self.read_task(id, out);
        }
        let Some(portion) = self.portion_mut(id) else { return };
        // What is on its way fails if that version is a later one, and then the chunk is read.
        if !portion.is_writing() && portion.holder.version().is_some_and(|known| known < version) {
            self.reread(id, false, out);
        }
    }

    /// A session is up: what may have been changed is read.
    pub(super) fn reread_doubted(&mut self, out: &mut Out) {
        let doubted =
            |execution: &Execution| execution.portion.as_ref().is_some_and(|own| own.holder.is_to_be_read());
        for id in self.ids_of(|assigned| assigned.execution().is_some_and(doubted)) {
            self.reread(&id, false, out);
        }
    }

    /// What was older than what was known is read again, now that an own write was acknowledged.
    pub(super) fn reread_verified(&mut self, out: &mut Out) {
        let lease = &self.lease;
        let again = |(id, assigned): (&EntryId, &mut AssignedTask)| {
            let portion = assigned.execution_mut()?.portion.as_mut()?;
            portion.verifying.take_if(|ticket| lease.has(*ticket)).map(|_| id.clone())
        };
        let again: Vec<EntryId> = self.assigned.tasks.iter_mut().filter_map(again).collect();
        for id in again {
            self.reread(&id, true, out);
        }
    }

    /// The chunk that somebody changed while a share of it runs.
    pub(super) fn on_reread(
        &mut self,
        id: &EntryId,
        verified: bool,
        result: Result<&Reply, Refusal>,
        now: Instant,
        out: &mut Out,
    ) {
        let Some(portion) = self.portion_mut(id).filter(|portion| !portion.is_writing()) else { return };
        let seen = match result {
            Ok(Reply::Data { data, stat }) => match Task::decode(data) {
                Ok(task) => portion.read(stat, task),
                Err(_) => Seen::Removed,
            },
            // That one read was refused says nothing of the next; the end will show that.
            Ok(_) | Err(Refusal::Other(_) | Refusal::NoAuth) => return,
            Err(_) => Seen::Removed,
        };
        match seen {
            Seen::Held => self.stop_unwanted(id, now, out),
            Seen::Older | Seen::Removed if !verified => {
                let ticket = self.lease.fresh(now, out);
                if let Some(portion) = self.portion_mut(id) {
                    portion.verifying = Some(ticket);
                }
            }
            Seen::Older | Seen::Removed => {
                let path = self.params.layout.task(&id.task);
                out.log(
                    Level::Warn,
                    format!("{path}: its share {} is not this worker's any more", id.attempt),
                );
                self.revoke(id, now, out);
            }
        }
        self.finish_if_over(id, out);
        self.plan_save(id, now);
    }

    /// Stops what runs of a share although somebody wants it cancelled, or it is not ours any more.
    fn stop_unwanted(&mut self, id: &EntryId, now: Instant, out: &mut Out) {
        let Some(portion) = self
            .assigned
            .tasks
            .get(id)
            .and_then(AssignedTask::execution)
            .and_then(|execution| execution.portion.as_ref())
        else {
            return;
        };
        let is_unwanted = |run: &Run| {
            run.id == *id && (portion.is_cancelled(run.command) || !portion.holder.has(run.command))
        };
        let unwanted: Vec<RunId> =
            self.running.runs.iter().filter(|(_, run)| is_unwanted(run)).map(|(run, _)| *run).collect();
        let kill = now + self.params.grace;
        for run in unwanted {
            self.stop_run(run, StopReason::Cancelled, kill, out);
        }
    }
}
