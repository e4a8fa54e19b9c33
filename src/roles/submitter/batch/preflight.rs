//! Preflight: what a batch has to know before it creates anything. Is there room, and how many lines does a chunk have?

use super::plan::Plan;
use crate::contract::MAX_CHILDREN;
use crate::contract::task::Job;
use crate::machine::{Refusal, Reply};
use crate::roles::submitter::admission::Pace;

/// What has to be known before anything is created.
#[derive(Debug, Default)]
pub struct Preflight {
    stage: Stage,
    /// How many directories `tasks` has.
    children: Option<u64>,
    first_part: Option<FirstPart>,
}

/// The first part of a keyed batch, as it was when this connection was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstPart {
    Missing,
    /// It may say how many lines its chunks have.
    Exists {
        chunk: Option<u32>,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Nothing was asked on this connection.
    #[default]
    Unasked,
    /// The questions were sent on this connection.
    Asked,
    /// The batch was admitted. That is never taken back.
    Admitted,
}

/// Whether a batch is admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Something has to be known first.
    Unknown,
    /// There is room.
    Admitted,
    /// There is none, for this reason.
    Refused(String),
}

impl Preflight {
    /// Whether the questions were sent on this connection.
    pub fn is_asked(&self) -> bool {
        self.stage == Stage::Asked
    }

    /// Whether the batch was admitted.
    pub fn is_admitted(&self) -> bool {
        self.stage == Stage::Admitted
    }

    /// A new connection: the questions are asked again, unless the batch was admitted.
    pub fn on_connected(&mut self) {
        if self.stage == Stage::Asked {
            self.stage = Stage::Unasked;
        }
    }

    /// All questions are being sent.
    pub fn ask(&mut self, keyed: bool) {
        let first_part = (!keyed).then_some(FirstPart::Missing);
        *self = Preflight { stage: Stage::Asked, children: None, first_part };
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
        self.first_part = Some(match result {
            Ok(Reply::Data { data, .. }) => {
                FirstPart::Exists { chunk: Job::decode(data).ok().and_then(|job| job.chunk) }
            }
            Ok(_) | Err(Refusal::NoNode) => FirstPart::Missing,
            Err(refusal) => return Err(refusal),
        });
        Ok(())
    }

    /// Goes on when all is known: how many directories there are, what the service admits, and for a key whether the
    /// batch has begun already. Decides how many lines a chunk has.
    pub fn enter(&mut self, plan: &mut Plan, orphan_of: Option<&str>, pace: &mut Pace) -> Entry {
        let (Some(children), Some(first_part), true) =
            (self.children, self.first_part, pace.has_read_status())
        else {
            return Entry::Unknown;
        };
        let theirs = match first_part {
            FirstPart::Missing => None,
            FirstPart::Exists { chunk } => chunk,
        };
        let size = plan.chunk.or(theirs).filter(|size| *size > 0);
        plan.size = size.unwrap_or_else(|| plan.outline.choose(pace.slots()));
        let refused = is_full(plan, children).or_else(|| pace.refuses(plan.demand(orphan_of)));
        // A batch that began earlier is part of the load already.
        match refused.filter(|_| first_part == FirstPart::Missing) {
            Some(why) => Entry::Refused(why),
            None => {
                self.stage = Stage::Admitted;
                Entry::Admitted
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
