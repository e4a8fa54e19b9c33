//! Queue: which task is next.
//!
//! Strict priority; between the jobs of one priority in turn, so that a job of a million tasks starves nobody;
//! within a job in the order of creation. No operation costs more when more tasks are queued, but for the
//! logarithm of an ordered map.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::contract::worker::EntryId;
use crate::contract::{Labels, TaskId, job_of};

/// What a task needs of a worker, as a small number; see [`Needs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    labels: u32,
    /// A worker died while it may have run there, so it goes only where no other such task is.
    pub suspect: bool,
    /// It may not be charged any more, so it does not wait at a worker, where it might be for what another one did.
    pub prompt: bool,
}

impl Need {
    /// Whether one more death ends what was suspected before: it runs alone, so that nobody is convicted for what
    /// another one did.
    pub fn is_alone(self) -> bool {
        self.suspect && self.prompt
    }

    /// The same labels, of something else of the same task.
    pub fn of(self, suspect: bool, prompt: bool) -> Need {
        Need { suspect, prompt, ..self }
    }
}

/// The sets of labels that tasks require, each held once, and for as long as a task requires it.
#[derive(Debug, Default)]
pub struct Needs {
    sets: BTreeMap<u32, (Labels, usize)>,
    numbers: BTreeMap<Labels, u32>,
    /// Never used twice, so that what is known of a number never is of another set.
    last: u32,
}

/// Most different sets of required labels that have numbers at a time. Tasks with further ones wait until one is
/// required no more; the roles report them.
pub const MAX_LABEL_SETS: usize = 10_000;

impl Needs {
    /// The number of this set of labels; `None` if there are too many different ones. To be held by [`Needs::hold`]
    /// before anything else is done here.
    pub fn number(&mut self, labels: Option<&Labels>, suspect: bool, prompt: bool) -> Option<Need> {
        let none = Labels::new();
        let labels = labels.unwrap_or(&none);
        if let Some(&number) = self.numbers.get(labels) {
            return Some(Need { labels: number, suspect, prompt });
        }
        if !self.has_room() {
            return None;
        }
        self.last = self.last.checked_add(1)?;
        self.sets.insert(self.last, (labels.clone(), 0));
        self.numbers.insert(labels.clone(), self.last);
        Some(Need { labels: self.last, suspect, prompt })
    }

    /// Whether there is room for one more set.
    pub fn has_room(&self) -> bool {
        self.sets.len() < MAX_LABEL_SETS
    }

    /// One more task requires it.
    pub fn hold(&mut self, need: Need) {
        if let Some((_, tasks)) = self.sets.get_mut(&need.labels) {
            *tasks += 1;
        }
    }

    /// One task less requires it.
    pub fn release(&mut self, need: Need) {
        let Some((labels, tasks)) = self.sets.get_mut(&need.labels) else { return };
        *tasks = tasks.saturating_sub(1);
        if *tasks == 0 {
            self.numbers.remove(labels);
            self.sets.remove(&need.labels);
        }
    }

    /// Whether a worker with these labels will do.
    pub fn fits(&self, need: Need, offered: &Labels) -> bool {
        let required = self.sets.get(&need.labels);
        required
            .is_some_and(|(required, _)| required.iter().all(|(key, value)| offered.get(key) == Some(value)))
    }
}

/// Priorities beyond this, either way, count as this; so the number of lanes is bounded.
pub const MAX_PRIORITY: i32 = 1_000;

/// What decides when a queued task has its turn, and who can get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueKey {
    /// Higher goes first.
    pub priority: i32,
    /// What it needs.
    pub need: Need,
    /// When it was created, as the ensemble counts.
    pub czxid: i64,
}

type Line = BTreeSet<(i64, EntryId)>;

/// The tasks with one need, by job.
type Jobs = BTreeMap<String, Line>;

/// The tasks of one priority. A lane stays when it is empty, for it knows whose turn it is.
#[derive(Debug, Default)]
struct Lane {
    open: BTreeMap<Need, Jobs>,
    /// Those whose need nobody can meet for now.
    blocked: BTreeMap<Need, Jobs>,
    /// The job that was served last.
    last: String,
}

impl Lane {
    fn side(&mut self, blocked: bool) -> &mut BTreeMap<Need, Jobs> {
        if blocked { &mut self.blocked } else { &mut self.open }
    }

    fn shift(&mut self, need: Need, block: bool) {
        if let Some(jobs) = self.side(!block).remove(&need) {
            self.side(block).insert(need, jobs);
        }
    }

    /// The first task of each need that is not blocked, in the order of their turns; with its job.
    fn firsts(&self) -> Vec<(bool, &String, &(i64, EntryId), Need)> {
        let firsts = self.open.iter().filter_map(|(need, jobs)| {
            let after = jobs.range::<str, _>((Bound::Excluded(self.last.as_str()), Bound::Unbounded)).next();
            let (again, (job, line)) = match after {
                Some(next) => (false, next),
                None => (true, jobs.first_key_value()?),
            };
            Some((again, job, line.first()?, *need))
        });
        let mut firsts: Vec<_> = firsts.collect();
        firsts.sort_unstable();
        firsts
    }
}

/// Tasks that could be started now.
#[derive(Debug, Default)]
pub struct Queue {
    lanes: BTreeMap<Reverse<i32>, Lane>,
    keys: BTreeMap<EntryId, QueueKey>,
    /// How many tasks have each need.
    needs: BTreeMap<Need, usize>,
    /// Those of the needs that nobody could meet when they were last asked for.
    blocked: BTreeSet<Need>,
}

impl Queue {
    /// Puts a task in, or moves it to where this key belongs.
    pub fn insert(&mut self, task: &EntryId, mut key: QueueKey) {
        key.priority = key.priority.clamp(-MAX_PRIORITY, MAX_PRIORITY);
        if self.keys.get(task) == Some(&key) {
            return;
        }
        self.remove(task);
        let blocked = self.blocked.contains(&key.need);
        let lane = self.lanes.entry(Reverse(key.priority)).or_default();
        let jobs = lane.side(blocked).entry(key.need).or_default();
        let job = job_of(task.task.dir());
        if !jobs.contains_key(job) {
            jobs.insert(job.to_string(), Line::new());
        }
        if let Some(line) = jobs.get_mut(job) {
            line.insert((key.czxid, task.clone()));
        }
        *self.needs.entry(key.need).or_insert(0) += 1;
        self.keys.insert(task.clone(), key);
    }

    /// Takes a task out; false if it is not queued.
    pub fn remove(&mut self, task: &EntryId) -> bool {
        let Some(key) = self.keys.remove(task) else { return false };
        let blocked = self.blocked.contains(&key.need);
        if let Some(lane) = self.lanes.get_mut(&Reverse(key.priority))
            && let Some(jobs) = lane.side(blocked).get_mut(&key.need)
        {
            let job = job_of(task.task.dir());
            if let Some(line) = jobs.get_mut(job) {
                line.remove(&(key.czxid, task.clone()));
                if line.is_empty() {
                    jobs.remove(job);
                }
            }
            if jobs.is_empty() {
                lane.side(blocked).remove(&key.need);
            }
        }
        if let Some(tasks) = self.needs.get_mut(&key.need) {
            *tasks -= 1;
            if *tasks == 0 {
                self.needs.remove(&key.need);
                self.blocked.remove(&key.need);
            }
        }
        true
    }

    /// Takes out whatever is queued of a task.
    pub fn remove_all(&mut self, task: &TaskId) {
        let all: Vec<EntryId> = self.keys.range(EntryId::all_of(task)).map(|(id, _)| id.clone()).collect();
        for id in all {
            self.remove(&id);
        }
    }

    fn block(&mut self, need: Need) {
        self.blocked.insert(need);
        self.lanes.values_mut().for_each(|lane| lane.shift(need, true));
    }

    /// Somebody came who can meet such needs. [`Queue::pop`] asks again only for those.
    pub fn unblock(&mut self, can: impl Fn(Need) -> bool) {
        for need in self.blocked.extract_if(.., |need| can(*need)) {
            self.lanes.values_mut().for_each(|lane| lane.shift(need, false));
        }
    }

    /// How many tasks are queued.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// What is to run alone, and nobody could take when it was last asked for.
    pub fn waits_alone(&self) -> impl Iterator<Item = Need> + '_ {
        self.blocked.iter().copied().filter(|need| need.is_alone())
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Some queued task, for checks.
    pub fn sample(&self) -> Option<&EntryId> {
        self.keys.keys().next()
    }

    /// Takes out the task that is next among those whose need `can` be met. A need that cannot be met is not asked for
    /// again until [`Queue::unblock`]: a turn must not cost more with every job and every set of labels.
    pub fn pop(&mut self, mut can: impl FnMut(Need) -> bool) -> Option<(EntryId, Need)> {
        let mut refused = BTreeSet::new();
        let mut next = None;
        for lane in self.lanes.values_mut() {
            let mut meets = |need| !refused.contains(&need) && (can(need) || !refused.insert(need));
            let found = lane.firsts().into_iter().find(|(_, _, _, need)| meets(*need));
            let found = found.map(|(_, job, (_, task), need)| (job.clone(), task.clone(), need));
            if let Some((job, task, need)) = found {
                lane.last = job;
                next = Some((task, need));
                break;
            }
        }
        refused.into_iter().for_each(|need| self.block(need));
        let (task, need) = next?;
        self.remove(&task);
        Some((task, need))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(job: &str, name: &str) -> EntryId {
        EntryId::new(&TaskId::new(job, name), 1)
    }

    fn key(needs: &mut Needs, priority: i32, czxid: i64) -> QueueKey {
        QueueKey { priority, need: needs.number(None, false, false).expect("room"), czxid }
    }

    fn drain(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(|_| true)).map(|(id, _)| id.task.to_string()).collect()
    }

    #[test]
    fn priority_then_jobs_in_turn_then_order_of_creation() {
        let (mut queue, mut needs) = (Queue::default(), Needs::default());
        for (n, job) in ["a~0000", "a~0001", "a~0000", "b", "c", "c"].iter().enumerate() {
            queue.insert(&id(job, &format!("t{n}")), key(&mut needs, 0, 100 - n as i64));
        }
        queue.insert(&id("z", "urgent"), key(&mut needs, 5, 999));
        queue.insert(&id("z", "late"), key(&mut needs, -5, 1));
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
        queue.insert(&id("a", "picky"), QueueKey { priority: 9, need: picky, czxid: 1 });
        queue.insert(&id("a", "plain"), key(&mut needs, 0, 2));
        let plain_worker = Labels::new();
        let popped = queue.pop(|need| needs.fits(need, &plain_worker)).map(|(id, _)| id.task.to_string());
        assert_eq!(popped.as_deref(), Some("a/plain"));
        assert_eq!(queue.pop(|need| needs.fits(need, &plain_worker)), None);
        queue.unblock(|need| needs.fits(need, &gpu));
        assert!(queue.pop(|need| needs.fits(need, &gpu)).is_some());
    }

    #[test]
    fn inserting_again_moves() {
        let (mut queue, mut needs) = (Queue::default(), Needs::default());
        let task = id("a", "t");
        queue.insert(&task, key(&mut needs, 0, 1));
        queue.insert(&task, key(&mut needs, 7, 1));
        assert_eq!((queue.len(), drain(&mut queue).len(), queue.remove(&task)), (1, 1, false));
    }

    /// It was 100,000 times in each turn, and each time every worker was checked.
    #[test]
    fn labels_that_no_worker_has_are_read_once_for_all_jobs() {
        let (mut queue, mut needs) = (Queue::default(), Needs::default());
        let set = |n: usize| Labels::from([("rack".to_string(), format!("r{n}"))]);
        for n in 0..100 {
            let need = needs.number(Some(&set(n)), false, false).expect("room");
            needs.hold(need);
            for job in 0..1_000 {
                let key = QueueKey { priority: job % 3, need, czxid: 1 };
                queue.insert(&id(&format!("j{job}"), &format!("t{n}")), key);
            }
        }
        let mut asked = 0;
        let mut pop = |queue: &mut Queue, can: &dyn Fn(Need) -> bool| {
            let popped = queue.pop(|need| {
                asked += 1;
                can(need)
            });
            (std::mem::take(&mut asked), popped.map(|(id, _)| id.task.to_string()))
        };
        assert_eq!(pop(&mut queue, &|_| false), (100, None));
        assert_eq!(pop(&mut queue, &|_| false), (0, None), "nothing has changed");
        queue.insert(
            &id("new", "t"),
            QueueKey {
                priority: 9,
                need: needs.number(Some(&set(7)), false, false).expect("room"),
                czxid: 9,
            },
        );
        assert_eq!(pop(&mut queue, &|_| false), (0, None), "nobody can take it either");
        queue.unblock(|need| needs.fits(need, &set(7)));
        assert_eq!(pop(&mut queue, &|_| true), (1, Some("new/t".into())));
        assert_eq!(pop(&mut queue, &|_| true), (1, Some("j101/t7".into())));
        assert_eq!(pop(&mut queue, &|_| true), (1, Some("j104/t7".into())), "jobs in turn");
        assert_eq!(pop(&mut queue, &|_| false), (1, None));
    }

    #[test]
    fn a_set_of_labels_that_no_task_requires_is_forgotten() {
        let mut needs = Needs::default();
        let set = |n: usize| Labels::from([("rack".to_string(), format!("r{n}"))]);
        let held: Vec<Need> = (0..MAX_LABEL_SETS)
            .map(|n| {
                let need = needs.number(Some(&set(n)), false, false).expect("room");
                needs.hold(need);
                need
            })
            .collect();
        assert!(!needs.has_room() && needs.number(Some(&set(99_999)), false, false).is_none());
        needs.hold(held[0]);
        needs.release(held[0]);
        assert!(!needs.has_room(), "one task requires it still");
        needs.release(held[0]);
        let new = needs.number(Some(&set(99_999)), false, false).expect("room");
        assert!(new != held[0] && !needs.fits(held[0], &set(0)) && needs.fits(new, &set(99_999)));
    }
}
