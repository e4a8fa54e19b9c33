//! A batch comes in: whether there is room for it, and how many lines a chunk shall have.

use super::units::Units;
use super::{Batch, FirstPart, Purpose, Room};
use crate::contract::task::{Job, Payload};
use crate::contract::{LINES_PER_PART, MAX_CHILDREN};
use crate::exit;
use crate::machine::{Actions, Call, Instant, Refusal, Reply};
use crate::roles::client::ClientReport;
use crate::roles::submitter::admission::Demand;

/// Bytes that a line takes in a chunk beside its own: two quotes and a comma.
const LINE_BYTES: u64 = 3;

impl Batch {
    /// Asks for all that has to be known first, side by side.
    pub(super) fn look_for_room(&mut self, now: Instant, out: &mut Actions<ClientReport>) {
        self.room = Room::Looking;
        self.children = None;
        self.first_part = if self.keyed { FirstPart::Unknown } else { FirstPart::Missing };
        self.pace.enter(now, out);
        self.calls.issue(out, Call::Exists { path: self.layout.tasks(), watch: false }, Purpose::Room);
        if self.keyed {
            let call = Call::Get { path: self.part_path(0), watch: false };
            self.calls.issue(out, call, Purpose::FirstPart);
        }
    }

    pub(super) fn on_room(
        &mut self,
        purpose: Purpose,
        result: Result<&Reply, Refusal>,
        out: &mut Actions<ClientReport>,
    ) {
        match (purpose, result) {
            (Purpose::Room, Ok(Reply::Stat(stat))) => {
                self.children = Some(u64::try_from(stat.num_children).unwrap_or(0));
            }
            (Purpose::Room, Ok(_) | Err(Refusal::NoNode)) => self.children = Some(0),
            (_, Ok(Reply::Data { data, .. })) => {
                let chunk = Job::decode(data).ok().and_then(|job| job.chunk);
                self.first_part = FirstPart::Stands { chunk };
            }
            (_, Ok(_) | Err(Refusal::NoNode)) => self.first_part = FirstPart::Missing,
            (_, Err(refusal)) => return self.refused("look at the jobs below", None, refusal, out),
        }
        self.enter(out);
    }

    /// Goes on when all is known: how many directories there are, what the service admits, and for a key whether the
    /// batch has begun already.
    pub(super) fn enter(&mut self, out: &mut Actions<ClientReport>) {
        let Some(children) = self.children else { return };
        if self.room != Room::Looking || self.first_part == FirstPart::Unknown || !self.pace.has_looked() {
            return;
        }
        let size = self.chunk.or(self.first_part.chunk()).filter(|size| *size > 0);
        self.units = Units::new(size.unwrap_or_else(|| self.outline.choose(self.pace.slots())));
        let refused = self.is_full(children).or_else(|| self.pace.refuses(self.demand()));
        match refused {
            // What stands of it already is part of what there is.
            Some(why) if self.first_part == FirstPart::Missing => self.fail(exit::TOO_MUCH, why, out),
            _ => self.room = Room::Found,
        }
    }

    /// Why its directories find no room beside so many others, if they don't.
    fn is_full(&self, children: u64) -> Option<String> {
        let parts = self.outline.end.div_ceil(self.units.size()).div_ceil(LINES_PER_PART);
        let above = self.layout.tasks();
        (children + parts > u64::from(MAX_CHILDREN.unsigned_abs()))
            .then(|| format!("there is no room for {parts} more directories in {above}; try again later"))
    }

    /// About: what JSON escapes in a line takes more.
    pub(super) fn demand(&self) -> Demand {
        let empty = self.task(&Payload::Chunk { first_line: 0, commands: Vec::new() }).encode().len() as u64;
        let tasks = self.outline.lines.min(self.outline.end.div_ceil(self.units.size()));
        let lines = self.outline.lines.saturating_mul(LINE_BYTES).saturating_add(self.outline.bytes);
        Demand { tasks, bytes: lines.saturating_add(tasks.saturating_mul(empty)) }
    }
}

impl FirstPart {
    /// How many lines its chunks have, if it stands and says so.
    fn chunk(self) -> Option<u32> {
        match self {
            FirstPart::Stands { chunk } => chunk,
            FirstPart::Unknown | FirstPart::Missing => None,
        }
    }
}
