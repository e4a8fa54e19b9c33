//! Which outcomes are deleted next: those that somebody wants deleted, those that nobody collected for long enough, and
//! the oldest failed ones beyond the limit. An index: it knows no times but those of the ensemble's clock.

use std::collections::BTreeSet;

use crate::contract::TaskId;

/// How long outcomes are kept, and how many failed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutcomeLimits {
    /// How long what nobody collects stays, in ms.
    pub ttl_ms: i64,
    /// How long every outcome stays, in ms: a create that was in doubt cannot be applied after that.
    pub least_ms: i64,
    /// The most failed commands that are kept, of those that are older than that.
    pub max_failed: u64,
    /// The most bytes of the tasks that they are in.
    pub max_failed_bytes: u64,
}

/// What an outcome is for this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptOutcomes {
    /// When it was last changed, by the ensemble's clock.
    pub mtime_ms: i64,
    /// Failed commands that can make room: 0 if the task was shortened, or is unwanted.
    pub failed: u64,
    /// The data of its task.
    pub bytes: u64,
    /// Somebody wants it deleted.
    pub is_unwanted: bool,
}

/// Tasks with an outcome, by their times.
#[derive(Debug, Default)]
pub struct Outcomes {
    all: BTreeSet<(i64, TaskId)>,
    unwanted: BTreeSet<(i64, TaskId)>,
    failed: BTreeSet<(i64, TaskId)>,
    /// Commands of the tasks in `failed`, and their bytes.
    commands: u64,
    bytes: u64,
}

impl Outcomes {
    /// A task has an outcome.
    pub fn insert(&mut self, task: &TaskId, kept: KeptOutcomes) {
        let entry = || (kept.mtime_ms, task.clone());
        self.all.insert(entry());
        if kept.is_unwanted {
            self.unwanted.insert(entry());
        }
        if kept.failed > 0 && self.failed.insert(entry()) {
            self.commands += kept.failed;
            self.bytes += kept.bytes;
        }
    }

    /// It has none any more, is gone, or is about to be.
    pub fn remove(&mut self, task: &TaskId, kept: KeptOutcomes) {
        let entry = (kept.mtime_ms, task.clone());
        self.all.remove(&entry);
        self.unwanted.remove(&entry);
        if self.failed.remove(&entry) {
            self.commands -= kept.failed;
            self.bytes -= kept.bytes;
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// The next to be deleted, and when it may be, by the ensemble's clock in ms; and whether only the limit of failed
    /// outcomes is the reason.
    pub fn next(&self, limits: &OutcomeLimits) -> Option<(i64, bool, TaskId)> {
        let is_full = self.commands > limits.max_failed || self.bytes > limits.max_failed_bytes;
        let due = |entry: Option<&(i64, TaskId)>, stays_ms: i64, is_excess: bool| {
            entry.map(|(ms, task)| (ms.saturating_add(stays_ms), is_excess, task.clone()))
        };
        let due = [
            due(self.all.first(), limits.ttl_ms.max(limits.least_ms), false),
            due(self.unwanted.first(), limits.least_ms, false),
            due(self.failed.first().filter(|_| is_full), limits.least_ms, true),
        ];
        due.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: OutcomeLimits =
        OutcomeLimits { ttl_ms: 1_000, least_ms: 20, max_failed: 3, max_failed_bytes: 500 };

    /// These times, commands that ended badly, and bytes.
    fn outcomes(kept: &[(i64, u64, u64)]) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for (n, (mtime_ms, failed, bytes)) in kept.iter().copied().enumerate() {
            let kept = KeptOutcomes { mtime_ms, failed, bytes, is_unwanted: false };
            outcomes.insert(&TaskId::new("j", &n.to_string()), kept);
        }
        outcomes
    }

    fn next(outcomes: &Outcomes) -> Option<(i64, String)> {
        outcomes.next(&LIMITS).map(|(ms, _, task)| (ms, task.to_string()))
    }

    #[test]
    fn the_oldest_failed_outcomes_go_first_beyond_the_limit() {
        let mut kept = outcomes(&[(5, 2, 10), (7, 1, 10), (6, 0, 900)]);
        assert_eq!(next(&kept), Some((1_005, "j/0".into())), "three are kept until their time");
        let one = KeptOutcomes { mtime_ms: 9, failed: 1, bytes: 10, is_unwanted: false };
        kept.insert(&TaskId::new("j", "3"), one);
        assert_eq!(next(&kept), Some((25, "j/0".into())));
        kept.remove(&TaskId::new("j", "0"), KeptOutcomes { mtime_ms: 5, failed: 2, ..one });
        assert_eq!(next(&kept), Some((1_006, "j/2".into())), "two are left");
        let large = outcomes(&[(5, 1, 300), (6, 1, 300)]);
        assert_eq!(next(&large), Some((25, "j/0".into())), "bytes count as well");
        assert_eq!(next(&outcomes(&[])), None);
    }

    #[test]
    fn what_somebody_wants_deleted_goes_as_soon_as_it_may() {
        let mut kept = outcomes(&[(5, 0, 10)]);
        let unwanted = KeptOutcomes { mtime_ms: 8, failed: 0, bytes: 10, is_unwanted: true };
        kept.insert(&TaskId::new("j", "x"), unwanted);
        assert_eq!(next(&kept), Some((28, "j/x".into())));
        kept.remove(&TaskId::new("j", "x"), unwanted);
        assert_eq!((next(&kept), kept.len()), (Some((1_005, "j/0".into())), 1));
    }
}
