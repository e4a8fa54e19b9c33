//! Queue: which task is next.
//!
//! Strict priority; between the jobs of one priority in turn, so that a job of a million tasks starves nobody;
//! within a job in the order of creation. No operation costs more when more tasks are queued, but for the
//! logarithm of an ordered map.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::contract::{Labels, TaskId, job_of};

/// What a task needs of a worker, as a small number; see [`Needs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    labels: u32,
    /// It was charged before, so it goes only where no other such task is: the poison convicts itself.
    pub suspect: bool,
    /// It may not be charged any more, so it does not wait at a worker, where it might be for what another one did.
    pub prompt: bool,
}

/// The sets of labels that tasks require, each held once.
#[derive(Debug, Default)]
pub struct Needs {
    sets: Vec<Labels>,
    numbers: BTreeMap<Labels, u32>,
}

/// Most different sets of required labels that are told apart. Tasks with further ones wait for a restart of
/// the leader; the roles report them.
pub const MAX_LABEL_SETS: usize = 10_000;

impl Needs {
    /// The number of this set of labels; `None` if there are too many different ones.
    pub fn number(&mut self, labels: Option<&Labels>, suspect: bool, prompt: bool) -> Option<Need> {
        let none = Labels::new();
        let labels = labels.unwrap_or(&none);
        if let Some(&number) = self.numbers.get(labels) {
            return Some(Need { labels: number, suspect, prompt });
        }
        if self.sets.len() >= MAX_LABEL_SETS {
            return None;
        }
        let number = u32::try_from(self.sets.len()).ok()?;
        self.sets.push(labels.clone());
        self.numbers.insert(labels.clone(), number);
        Some(Need { labels: number, suspect, prompt })
    }

    /// Whether a worker with these labels will do.
    pub fn fits(&self, need: Need, offered: &Labels) -> bool {
        let required = self.sets.get(need.labels as usize);
        required.is_some_and(|required| required.iter().all(|(key, value)| offered.get(key) == Some(value)))
    }
}

/// Priorities beyond this, either way, count as this; so the number of lanes is bounded.
pub const MAX_PRIORITY: i32 = 1_000;

/// Where a queued task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Higher goes first.
    pub priority: i32,
    /// What it needs.
    pub need: Need,
    /// When it was created, as the ensemble counts.
    pub czxid: i64,
}

type Line = BTreeSet<(i64, TaskId)>;

/// The tasks of one priority. A lane stays when it is empty, for it knows whose turn it is.
#[derive(Debug, Default)]
struct Lane {
    jobs: BTreeMap<String, BTreeMap<Need, Line>>,
    /// The job that was served last.
    last: String,
}

/// Tasks that could be started now.
#[derive(Debug, Default)]
pub struct Queue {
    lanes: BTreeMap<Reverse<i32>, Lane>,
    places: BTreeMap<TaskId, Place>,
}

impl Queue {
    /// Puts a task in, or moves it to another place.
    pub fn insert(&mut self, task: &TaskId, mut place: Place) {
        place.priority = place.priority.clamp(-MAX_PRIORITY, MAX_PRIORITY);
        if self.places.get(task) == Some(&place) {
            return;
        }
        self.remove(task);
        let lane = self.lanes.entry(Reverse(place.priority)).or_default();
        let job = job_of(task.dir());
        if !lane.jobs.contains_key(job) {
            lane.jobs.insert(job.to_string(), BTreeMap::new());
        }
        if let Some(lines) = lane.jobs.get_mut(job) {
            lines.entry(place.need).or_default().insert((place.czxid, task.clone()));
        }
        self.places.insert(task.clone(), place);
    }

    /// Takes a task out; false if it is not queued.
    pub fn remove(&mut self, task: &TaskId) -> bool {
        let Some(place) = self.places.remove(task) else { return false };
        let Some(lane) = self.lanes.get_mut(&Reverse(place.priority)) else { return false };
        let job = job_of(task.dir());
        if let Some(lines) = lane.jobs.get_mut(job) {
            if let Some(line) = lines.get_mut(&place.need) {
                line.remove(&(place.czxid, task.clone()));
                if line.is_empty() {
                    lines.remove(&place.need);
                }
            }
            if lines.is_empty() {
                lane.jobs.remove(job);
            }
        }
        true
    }

    /// How many tasks are queued.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether this one is.
    pub fn contains(&self, task: &TaskId) -> bool {
        self.places.contains_key(task)
    }

    /// Some queued task, for checks.
    pub fn sample(&self) -> Option<&TaskId> {
        self.places.keys().next()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Queue::default();
    }

    /// Takes out the task that is next among those whose need `can` be met.
    pub fn pop(&mut self, mut can: impl FnMut(Need) -> bool) -> Option<(TaskId, Need)> {
        let mut next = None;
        for lane in self.lanes.values_mut() {
            let after = lane.jobs.range::<str, _>((Bound::Excluded(lane.last.as_str()), Bound::Unbounded));
            let found = after
                .chain(lane.jobs.range::<str, _>((Bound::Unbounded, Bound::Included(lane.last.as_str()))))
                .find_map(|(job, lines)| {
                    let firsts = lines
                        .iter()
                        .filter(|(need, _)| can(**need))
                        .filter_map(|(need, l)| Some((l.first()?, *need)));
                    firsts
                        .min_by_key(|(first, _)| *first)
                        .map(|(first, need)| (job.clone(), first.1.clone(), need))
                });
            if let Some((job, task, need)) = found {
                lane.last = job;
                next = Some((task, need));
                break;
            }
        }
        let (task, need) = next?;
        self.remove(&task);
        Some((task, need))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(needs: &mut Needs, priority: i32, czxid: i64) -> Place {
        Place { priority, need: needs.number(None, false, false).expect("room"), czxid }
    }

    fn drain(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(|_| true)).map(|(task, _)| task.to_string()).collect()
    }

    #[test]
    fn priority_then_jobs_in_turn_then_order_of_creation() {
        let (mut queue, mut needs) = (Queue::default(), Needs::default());
        for (n, job) in ["a~0000", "a~0001", "a~0000", "b", "c", "c"].iter().enumerate() {
            queue.insert(&TaskId::new(job, &format!("t{n}")), place(&mut needs, 0, 100 - n as i64));
        }
        queue.insert(&TaskId::new("z", "urgent"), place(&mut needs, 5, 999));
        queue.insert(&TaskId::new("z", "late"), place(&mut needs, -5, 1));
        let order = drain(&mut queue);
        assert_eq!(
            order,
            ["z/urgent", "a~0000/t2", "b/t3", "c/t5", "a~0001/t1", "c/t4", "a~0000/t0", "z/late"]
        );
        assert!(queue.is_empty());
    }

    #[test]
    fn what_cannot_be_served_holds_nothing_up() {
        let (mut queue, mut needs) = (Queue::default(), Needs::default());
        let gpu: Labels = [("gpu".to_string(), "yes".to_string())].into();
        let picky = needs.number(Some(&gpu), false, false).expect("room");
        queue.insert(&TaskId::new("a", "picky"), Place { priority: 9, need: picky, czxid: 1 });
        queue.insert(&TaskId::new("a", "plain"), place(&mut needs, 0, 2));
        let plain_worker = Labels::new();
        let popped = queue.pop(|need| needs.fits(need, &plain_worker)).map(|(task, _)| task.to_string());
        assert_eq!(popped.as_deref(), Some("a/plain"));
        assert_eq!(queue.pop(|need| needs.fits(need, &plain_worker)), None);
        assert!(queue.pop(|need| needs.fits(need, &gpu)).is_some());
    }

    #[test]
    fn inserting_again_moves() {
        let (mut queue, mut needs) = (Queue::default(), Needs::default());
        let task = TaskId::new("a", "t");
        queue.insert(&task, place(&mut needs, 0, 1));
        queue.insert(&task, place(&mut needs, 7, 1));
        assert_eq!((queue.len(), drain(&mut queue).len(), queue.remove(&task)), (1, 1, false));
    }
}
