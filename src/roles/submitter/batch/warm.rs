//! The parts of a batch are made, watched, and in the end marked as complete.

use super::{Batch, Purpose};
use crate::contract::Layout;
use crate::contract::task::Job;
use crate::exit;
use crate::machine::{Actions, Call, CallId, CallResult, CreateMode, Level, Refusal, Reply, WatchMode};
use crate::recipes::ensure::{Ensure, Step};
use crate::roles::client::ClientReport;

type Out = Actions<ClientReport>;

/// Parts that are made or watched at a time.
pub const MAX_WARMING: usize = 16;

/// What is under way with directories.
#[derive(Debug)]
pub struct Warmer {
    /// Makes `tasks`, where that is missing.
    ensure: Ensure,
    /// It is doing so.
    ensuring: bool,
    /// Calls about parts in flight.
    calls: usize,
}

impl Warmer {
    /// With nothing under way.
    pub fn new(layout: &Layout) -> Warmer {
        Warmer { ensure: Ensure::new([layout.tasks()]), ensuring: false, calls: 0 }
    }

    /// Whether a call about another part may be made.
    fn has_room(&self) -> bool {
        self.calls < MAX_WARMING
    }

    /// An answer about a part came.
    pub fn answered(&mut self) {
        self.calls -= 1;
    }

    /// A directory above is not there.
    fn root_is_missing(&mut self, out: &mut Out) {
        if !self.ensuring {
            self.ensuring = true;
            self.ensure.start(out);
        }
    }

    /// Takes in a reply; `None` if it is somebody else's, else what could not be made.
    pub fn on_reply(
        &mut self,
        id: CallId,
        result: &CallResult,
        out: &mut Out,
    ) -> Option<Result<(), (String, Refusal)>> {
        Some(match self.ensure.on_reply(id, result, out)? {
            Step::Pending => Ok(()),
            Step::Done => {
                self.ensuring = false;
                Ok(())
            }
            Step::Refused(path, refusal) => Err((path, refusal)),
        })
    }

    /// The connection is gone.
    pub fn on_lost(&mut self) {
        self.ensure.reset();
        (self.ensuring, self.calls) = (false, 0);
    }

    /// Calls about parts in flight.
    pub fn calls(&self) -> usize {
        self.calls
    }
}

impl Batch {
    /// Makes the parts, and sets their watches.
    pub(super) fn warm_parts(&mut self, out: &mut Out) {
        while !self.warmer.ensuring && self.warmer.has_room() {
            let Some((part, made)) = self.parts.next_cold() else { break };
            if made {
                self.watch_part(part, out);
            } else {
                let (path, data) = (self.plan.part_path(part), self.plan.part_data(part).encode());
                let call = Call::Create { path, data, mode: CreateMode::Persistent };
                self.issue_for_part(call, Purpose::MakePart(part), out);
            }
        }
    }

    fn issue_for_part(&mut self, call: Call, purpose: Purpose, out: &mut Out) {
        self.calls.issue(out, call, purpose);
        self.warmer.calls += 1;
    }

    pub(super) fn on_part_made(&mut self, part: u64, result: Result<&Reply, Refusal>, out: &mut Out) {
        match result {
            Err(Refusal::NodeExists) if self.plan.keyed => {
                let call = Call::Get { path: self.plan.part_path(part), watch: false };
                self.issue_for_part(call, Purpose::ComparePart(part), out);
            }
            // The name is ours alone.
            Ok(_) | Err(Refusal::NodeExists) => self.on_part_stands(part, out),
            Err(Refusal::NoNode) => {
                self.parts.unmade(part);
                self.warmer.root_is_missing(out);
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
            Ok(_) => return self.on_part_stands(part, out),
            Err(malformed) => format!("and is no job: {malformed}"),
        };
        self.fail(exit::DATA, format!("{} exists already {why}", self.plan.part_path(part)), out);
    }

    fn on_part_stands(&mut self, part: u64, out: &mut Out) {
        self.parts.made(part);
        self.watch_part(part, out);
    }

    /// Nobody waits for a detached batch, so it needs no watch.
    fn watch_part(&mut self, part: u64, out: &mut Out) {
        if self.detach {
            return self.parts.warmed(part);
        }
        let call = Call::Watch { path: self.plan.part_path(part), mode: WatchMode::Tree };
        self.issue_for_part(call, Purpose::WatchPart(part), out);
    }

    /// We are told of all that happens in the part from now on.
    pub(super) fn on_part_watched(&mut self, part: u64) {
        self.maker.watched(part);
        self.parts.warmed(part);
    }

    /// Says in parts that all their chunks stood: who waits for them takes what is missing there for collected.
    pub(super) fn complete_parts(&mut self, out: &mut Out) {
        while self.warmer.has_room() {
            let Some(part) = self.parts.next_stood() else { break };
            let call = Call::Get { path: self.plan.part_path(part), watch: false };
            self.issue_for_part(call, Purpose::ReadPart(part), out);
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
                    self.issue_for_part(call, Purpose::CompletePart(part), out);
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
            Err(Refusal::BadVersion) => self.parts.stood_again(part),
            Err(refusal) => self.on_not_completed(part, refusal, out),
        }
    }

    fn on_not_completed(&mut self, part: u64, refusal: Refusal, out: &mut Out) {
        self.parts.completed(part);
        // All that was in it was collected, and the leader has deleted it.
        if refusal != Refusal::NoNode {
            let path = self.plan.part_path(part);
            let words = "zkmw wait will not know what of it has succeeded and was collected";
            out.log(Level::Warn, format!("cannot mark {path} as complete: {refusal}; {words}"));
        }
    }
}
