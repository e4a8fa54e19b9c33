//! The calls about parts: create, watch, and in the end mark as complete.

use super::{Batch, Purpose};
use crate::contract::task::Job;
use crate::exit;
use crate::machine::{Actions, Call, CreateMode, Level, Refusal, Reply, WatchMode};
use crate::roles::client::ClientReport;

type Out = Actions<ClientReport>;

impl Batch {
    /// Creates the parts, and sets their watches.
    pub(super) fn prepare_parts(&mut self, out: &mut Out) {
        while !self.ensure.is_running() && self.has_room() {
            let Some((part, made)) = self.parts.next_unwatched() else { break };
            if made {
                self.watch_part(part, out);
            } else {
                let (path, data) = (self.plan.part_path(part), self.plan.part_data(part).encode());
                let call = Call::Create { path, data, mode: CreateMode::Persistent };
                self.calls.issue(out, call, Purpose::MakePart(part));
            }
        }
    }

    pub(super) fn on_part_made(&mut self, part: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        match result {
            Err(Refusal::NodeExists) if self.plan.keyed => {
                let call = Call::Get { path: self.plan.part_path(part), watch: false };
                self.calls.issue(out, call, Purpose::ComparePart(part));
            }
            // The name is ours alone.
            Ok(_) | Err(Refusal::NodeExists) => self.on_part_exists(part, out),
            Err(Refusal::NoNode) => {
                self.parts.unmade(part);
                if !self.ensure.is_running() {
                    self.ensure.start(out);
                }
            }
            Err(refusal) => self.refused("make", Some(part), refusal, out),
        }
    }

    pub(super) fn on_part_compared(&mut self, part: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        let data = match result {
            Ok(Reply::Data { data, .. }) => data,
            Err(Refusal::NoNode) => return self.parts.unmade(part),
            Err(refusal) => return self.refused("read", Some(part), refusal, out),
            Ok(reply) => return self.bug(reply, out),
        };
        let ours = self.plan.part_data(part);
        let why = match Job::decode(data) {
            Ok(job) if job.chunk != ours.chunk => match job.chunk {
                Some(theirs) => format!(
                    "with other options: it has chunks of {theirs} lines, not of {}; say --chunk {theirs}, or take \
                     another --id",
                    self.plan.size()
                ),
                None => "and was not made for chunks of lines; take another --id".to_string(),
            },
            Ok(job) if job.options != ours.options => "with other options".to_string(),
            Ok(job) if job.lines.is_some_and(|lines| Some(lines) != ours.lines) => {
                let (theirs, ours) = (job.lines.unwrap_or(0), ours.lines.unwrap_or(0));
                format!("and asks for something else: it has {theirs} lines, not {ours}; take another --id")
            }
            Ok(_) => return self.on_part_exists(part, out),
            Err(malformed) => format!("and is no job: {malformed}"),
        };
        self.fail(exit::DATA, format!("{} exists already {why}", self.plan.part_path(part)), out);
    }

    fn on_part_exists(&mut self, part: u64, out: &mut Out) {
        self.parts.made(part);
        self.watch_part(part, out);
    }

    /// Nobody waits for a detached batch, so it needs no watch.
    fn watch_part(&mut self, part: u64, out: &mut Out) {
        if self.waiting.is_detached() {
            return self.parts.watched_now(part);
        }
        let call = Call::Watch { path: self.plan.part_path(part), mode: WatchMode::Tree };
        self.calls.issue(out, call, Purpose::WatchPart(part));
    }

    /// The watch reports all changes in the part from now on.
    pub(super) fn on_part_watched(&mut self, part: u64) {
        self.open_chunks.watched(part);
        self.parts.watched_now(part);
    }

    /// Marks parts whose chunks were all created: a waiter then knows that a missing chunk was collected.
    pub(super) fn complete_parts(&mut self, out: &mut Out) {
        while self.has_room() {
            let Some(part) = self.parts.next_created() else { break };
            let call = Call::Get { path: self.plan.part_path(part), watch: false };
            self.calls.issue(out, call, Purpose::ReadPart(part));
        }
    }

    pub(super) fn on_part_read(&mut self, part: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        match result {
            Ok(Reply::Data { data, stat }) => match Job::decode(data) {
                Ok(mut job) if !job.made => {
                    job.made = true;
                    job.lines = Some(self.plan.part_lines(part));
                    let call = Call::Set {
                        path: self.plan.part_path(part),
                        data: job.encode(),
                        version: stat.version,
                    };
                    self.calls.issue(out, call, Purpose::CompletePart(part));
                }
                _ => self.parts.completed(part),
            },
            Ok(reply) => self.bug(reply, out),
            Err(refusal) => self.on_not_completed(part, refusal, out),
        }
    }

    pub(super) fn on_part_completed(&mut self, part: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        match result {
            Ok(_) => self.parts.completed(part),
            Err(Refusal::BadVersion) => self.parts.created_again(part),
            Err(refusal) => self.on_not_completed(part, refusal, out),
        }
    }

    fn on_not_completed(&mut self, part: u64, refusal: Refusal, out: &mut Out) {
        self.parts.completed(part);
        // All its chunks were collected, and the leader has deleted it.
        if refusal != Refusal::NoNode {
            let path = self.plan.part_path(part);
            let words = "zkmw wait will not know what of it has succeeded and was collected";
            out.log(Level::Warn, format!("cannot mark {path} as complete: {refusal}; {words}"));
        }
    }
}
