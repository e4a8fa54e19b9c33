//! A batch comes in: whether there is room for it, and how many lines a chunk shall have.

use super::plan::Plan;
use crate::contract::MAX_CHILDREN;
use crate::contract::task::Job;
use crate::machine::{Refusal, Reply};
use crate::roles::submitter::admission::Pace;

/// What has to be known before anything is made.
#[derive(Debug)]
pub struct Entrance {
    /// How many lines each chunk shall have, if the user says so.
    chunk: Option<u32>,
    stage: Stage,
    /// Directories that there are in `tasks`.
    children: Option<u64>,
    first_part: FirstPart,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was asked on this connection.
    Unknown,
    /// It was asked.
    Looking,
    /// The batch has come in, for good.
    In,
}

/// The first part of a keyed batch, as it stood when this connection was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstPart {
    Unknown,
    Missing,
    /// With so many lines a chunk, if it says so.
    Stands {
        chunk: Option<u32>,
    },
}

/// What a look came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// More has to be known.
    Pending,
    /// The batch has come in.
    In,
    /// There is no room for it, and why.
    Refused(String),
}

impl Entrance {
    /// The entrance of a batch whose chunks shall have so many lines, if the user says so.
    pub fn new(chunk: Option<u32>) -> Entrance {
        Entrance { chunk, stage: Stage::Unknown, children: None, first_part: FirstPart::Unknown }
    }

    /// How far it is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// All is being asked for now.
    pub fn look(&mut self, keyed: bool) {
        self.stage = Stage::Looking;
        self.children = None;
        self.first_part = if keyed { FirstPart::Unknown } else { FirstPart::Missing };
    }

    /// A new connection: what was asked on the last one is asked again.
    pub fn on_connected(&mut self) {
        if self.stage == Stage::Looking {
            self.stage = Stage::Unknown;
        }
    }

    /// Takes in how many directories there are.
    pub fn on_room(&mut self, result: Result<&Reply, Refusal>) -> Result<(), Refusal> {
        self.children = Some(match result {
            Ok(Reply::Stat(stat)) => u64::try_from(stat.num_children).unwrap_or(0),
            Ok(_) | Err(Refusal::NoNode) => 0,
            Err(refusal) => return Err(refusal),
        });
        Ok(())
    }

    /// Takes in whether the batch has begun already.
    pub fn on_first_part(&mut self, result: Result<&Reply, Refusal>) -> Result<(), Refusal> {
        self.first_part = match result {
            Ok(Reply::Data { data, .. }) => {
                FirstPart::Stands { chunk: Job::decode(data).ok().and_then(|job| job.chunk) }
            }
            Ok(_) | Err(Refusal::NoNode) => FirstPart::Missing,
            Err(refusal) => return Err(refusal),
        };
        Ok(())
    }

    /// Goes on when all is known: how many directories there are, what the service admits, and for a key whether the
    /// batch has begun already. Decides how many lines a chunk has.
    pub fn enter(&mut self, plan: &mut Plan, orphan_of: Option<&str>, pace: &mut Pace) -> Entry {
        let Some(children) = self.children else { return Entry::Pending };
        let theirs = match self.first_part {
            FirstPart::Unknown => return Entry::Pending,
            FirstPart::Missing => None,
            FirstPart::Stands { chunk } => chunk,
        };
        if self.stage != Stage::Looking || !pace.has_looked() {
            return Entry::Pending;
        }
        let size = self.chunk.or(theirs).filter(|size| *size > 0);
        plan.size = size.unwrap_or_else(|| plan.outline.choose(pace.slots()));
        let refused = is_full(plan, children).or_else(|| pace.refuses(plan.demand(orphan_of)));
        match refused {
            // What stands of it already is part of what there is.
            Some(why) if self.first_part == FirstPart::Missing => Entry::Refused(why),
            _ => {
                self.stage = Stage::In;
                Entry::In
            }
        }
    }
}

/// Why its directories find no room beside so many others, if they don't.
fn is_full(plan: &Plan, children: u64) -> Option<String> {
    let (parts, above) = (plan.parts(), plan.layout.tasks());
    let is_full = children + parts > u64::from(MAX_CHILDREN.unsigned_abs());
    is_full.then(|| format!("there is no room for {parts} more directories in {above}; try again later"))
}
