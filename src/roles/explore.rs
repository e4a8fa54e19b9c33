//! Masters and workers together, by chance, on one world of znodes: sessions end, answers come in any order and
//! get lost, what was in doubt is applied late, processes stand still or die at any moment, users cancel, retry
//! and collect. Checked always: no task runs in two places at a time, and no outcome is overwritten but by a
//! retry. And when the faults end, every task ends.
//!
//! Not here: reads that are stale within one session, and anything of processes but their end. A process that
//! stands still has its tasks killed when its lease is over, as the guard does it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::master::{self, Master};
use super::testing::{Desk, T, World};
use super::worker::{self, Worker};
use crate::contract::task::{Options, Outcome, Payload, State, Task};
use crate::contract::worker::ProcessIdentity;
use crate::contract::{Labels, Layout};
use crate::machine::{
    Call, CallError, CallId, CallResult, Captured, Ended, Event, GroupSignal, Instant, Prng, Role, RunId,
    RunReport,
};

const SEEDS: u64 = 20;
const TICK: Duration = Duration::from_millis(50);
const FAULTS_UNTIL: Instant = Instant::from_nanos(120_000_000_000);
const END: Instant = Instant::from_nanos(300_000_000_000);
const TASKS: u64 = 30;

fn below(prng: &mut Prng, limit: u64) -> u64 {
    prng.next_u64() % limit
}

/// A process, and what is on its way to it.
struct Member<R: Role> {
    desk: Desk<R>,
    id: String,
    /// Answers to calls that were carried out.
    replies: Vec<(CallId, CallResult)>,
    ended: VecDeque<Event>,
    /// It stands still, or is gone, until then.
    still_until: Option<Instant>,
    /// Its connection is lost, and it was not told yet; or it has none.
    lost: bool,
    connect_at: Instant,
    stubborn: BTreeSet<RunId>,
}

/// What is common to all.
struct Ensemble {
    world: World,
    prng: Prng,
    /// Sessions without a connection, and when they end.
    ending: BTreeMap<i64, Instant>,
    /// Calls in doubt that may be carried out as long as their session lives.
    late: Vec<(i64, Call)>,
}

impl Ensemble {
    /// What nobody will answer any more: carried out now, late, or never.
    fn abandon(&mut self, session: i64, calls: impl Iterator<Item = (CallId, Call)>) {
        let ends = T - T / 3 - Duration::from_millis(below(&mut self.prng, 1_000));
        let more = Duration::from_millis(below(&mut self.prng, 4_000));
        self.ending.entry(session).or_insert(self.world.now + ends + more);
        for (_, call) in calls {
            match below(&mut self.prng, 3) {
                0 => {}
                1 => drop(self.world.apply(session, &call)),
                _ => self.late.push((session, call)),
            }
        }
    }

    fn tick(&mut self) {
        self.world.pass(TICK);
        let now = self.world.now;
        if !self.late.is_empty() && below(&mut self.prng, 10) == 0 {
            let at = below(&mut self.prng, self.late.len() as u64) as usize;
            let (session, call) = self.late.remove(at);
            if self.world.sessions.contains_key(&session) {
                drop(self.world.apply(session, &call));
            }
        }
        let over: Vec<_> = self.ending.iter().filter(|(_, at)| **at <= now).map(|(s, _)| *s).collect();
        for session in over {
            self.ending.remove(&session);
            self.world.expire(session);
        }
    }
}

impl<R: Role> Member<R> {
    fn new(role: R, id: &str, connect_at: Instant) -> Member<R> {
        Member {
            desk: Desk::new(role),
            id: id.to_string(),
            replies: Vec::new(),
            ended: VecDeque::new(),
            still_until: None,
            lost: false,
            connect_at,
            stubborn: BTreeSet::new(),
        }
    }

    /// The connection breaks; the role will hear of it.
    fn cut(&mut self, all: &mut Ensemble) {
        if let Some(session) = self.desk.session.filter(|_| !self.lost) {
            self.lost = true;
            all.abandon(session, self.desk.calls.clone().into_iter());
        }
    }

    /// One thing happens to it; false if there is nothing.
    fn step(&mut self, all: &mut Ensemble) -> bool {
        let world = &mut all.world;
        if self.desk.exit.is_some() || self.still_until.is_some_and(|at| at > world.now) {
            return false;
        }
        self.still_until = None;
        if self.desk.session.is_some_and(|session| !world.sessions.contains_key(&session)) {
            self.lost = true;
        }
        match below(&mut all.prng, 4) {
            0 if !self.ended.is_empty() => {
                let event = self.ended.pop_front().expect("there");
                self.desk.event(world, event);
            }
            1 if self.desk.session.is_some() && self.desk.hear(world) => {}
            2 if !self.replies.is_empty() => {
                let at = below(&mut all.prng, self.replies.len() as u64) as usize;
                let (id, result) = self.replies.swap_remove(at);
                self.desk.event(world, Event::Reply { id, result });
            }
            3 if !self.desk.calls.is_empty() && !self.lost => {
                let near = self.desk.calls.len().min(4) as u64;
                let at = below(&mut all.prng, near) as usize;
                let (id, call) = self.desk.calls.remove(at).expect("there");
                let result = world.apply(self.desk.session.expect("up"), &call);
                self.replies.push((id, result.map_err(CallError::Refused)));
            }
            _ if self.lost && below(&mut all.prng, 20) == 0 => {
                for (id, _) in std::mem::take(&mut self.desk.calls) {
                    self.replies.push((id, Err(CallError::MaybeApplied)));
                }
                for (id, result) in std::mem::take(&mut self.replies) {
                    self.desk.event(world, Event::Reply { id, result });
                }
                self.lost = false;
                self.desk.session = None;
                self.desk.calls.clear();
                self.connect_at = world.now + Duration::from_millis(below(&mut all.prng, 300));
                self.desk.event(world, Event::Lost { why: "chance".into() });
            }
            _ if self.desk.session.is_none() && self.connect_at <= world.now => {
                self.desk.calls.clear();
                self.desk.session = Some(world.open());
                self.desk.event(world, Event::Connected { timeout: T });
            }
            _ if self.desk.role.next_wake().is_some_and(|at| at <= world.now) => {
                self.desk.event(world, Event::Wake);
            }
            _ => return false,
        }
        true
    }
}

fn master(n: u64, life: u64) -> Master {
    Master::new(master::Params {
        layout: Layout::new("/z"),
        id: format!("m{n}"),
        host: "h".into(),
        pid: 1,
        uuid: format!("u{n}-{life}"),
        result_ttl: Duration::from_secs(3_600),
        job_ttl: Duration::from_secs(30),
    })
}

fn worker(n: u64, life: u64) -> Worker {
    Worker::new(worker::Params {
        layout: Layout::new("/z"),
        id: format!("w{n}"),
        process: ProcessIdentity { host: "h".into(), pid: life as u32, ..ProcessIdentity::default() },
        predecessor: None,
        slots: 2,
        labels: Labels::new(),
        grace: Duration::from_secs(2),
        close_timeout: Duration::from_secs(5),
        output_limit: 10,
        seed: n * 1_000 + life,
    })
}

struct Sim {
    all: Ensemble,
    masters: Vec<Member<Master>>,
    workers: Vec<Member<Worker>>,
    outcomes: BTreeMap<String, Outcome>,
    made: u64,
    life: u64,
    /// Most steps in a tick: the fewer, the longer everything is under way.
    pace: u64,
    /// A fault comes every so many ticks.
    fault_every: u64,
}

impl Sim {
    fn new(seed: u64) -> Sim {
        let all = Ensemble {
            world: World::new(),
            prng: Prng::new(seed),
            ending: BTreeMap::new(),
            late: Vec::new(),
        };
        let start = Instant::default();
        Sim {
            all,
            masters: (0..2).map(|n| Member::new(master(n, 0), &n.to_string(), start)).collect(),
            workers: (0..3).map(|n| Member::new(worker(n, 0), &n.to_string(), start)).collect(),
            outcomes: BTreeMap::new(),
            made: 0,
            life: 0,
            pace: [6, 15, 60][(seed % 3) as usize],
            fault_every: [15, 40][(seed / 3 % 2) as usize],
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        below(&mut self.all.prng, limit)
    }

    /// Panics if something runs in two places.
    fn check_runs(&self) {
        let mut running: BTreeMap<&str, &str> = BTreeMap::new();
        for member in &self.workers {
            for spec in member.desk.runs.values() {
                let task = &spec.env.iter().find(|(key, _)| key == "ZKMW_TASK").expect("named").1;
                if let Some(other) = running.insert(task, &member.id) {
                    panic!("{task} runs on {other} and on {}", member.id);
                }
            }
        }
    }

    /// Panics if an outcome was overwritten.
    fn check_outcomes(&mut self) {
        for (path, node) in self.all.world.znodes.range("/z/tasks/".to_string().."/z/tasks0".to_string()) {
            let Ok(task) = Task::decode(&node.data) else { continue };
            let Some(outcome) = task.outcome else { continue };
            let known = self.outcomes.entry(path.clone()).or_insert_with(|| outcome.clone());
            assert_eq!(*known, outcome, "{path} has another outcome");
        }
    }

    /// Ends a run; its worker hears of it later.
    fn end(member: &mut Member<Worker>, run: RunId, ended: Ended) {
        if member.desk.runs.remove(&run).is_some() {
            let none = Captured::default;
            let report = RunReport { ended, stdout: none(), stderr: none(), started_ms: 0, ended_ms: 0 };
            member.ended.push_back(Event::Ended { run, report });
        }
    }

    fn run_processes(&mut self) {
        let now = self.all.world.now;
        for member in &mut self.workers {
            for (run, signal) in std::mem::take(&mut member.desk.signals) {
                if signal == GroupSignal::Kill || !member.stubborn.contains(&run) {
                    Self::end(member, run, Ended::Signal(if signal == GroupSignal::Kill { 9 } else { 15 }));
                }
            }
            let runs: Vec<_> = member.desk.runs.keys().copied().collect();
            let guarded = member.still_until.is_some_and(|at| at > now);
            let lapsed = member.desk.role.lease_ends().is_none_or(|at| at <= now);
            for run in runs {
                let chance = below(&mut self.all.prng, 100);
                if guarded && lapsed {
                    Self::end(member, run, Ended::Signal(9));
                } else if chance == 0 {
                    Self::end(member, run, Ended::Exit(i32::from(below(&mut self.all.prng, 4) == 0)));
                } else if chance == 1 {
                    member.stubborn.insert(run);
                }
            }
        }
    }

    fn user(&mut self) {
        let world = &mut self.all.world;
        if self.made < TASKS {
            let dir = format!("j{}", self.made % 3);
            let mut options =
                Options { max_attempts: Some(3), retry_backoff_ms: Some(200), ..Options::default() };
            if self.made.is_multiple_of(2) {
                options.max_attempts = None;
            }
            options.orphan_of = self.made.is_multiple_of(5).then(|| "gone".to_string());
            let task = Task::new(Payload::Shell("x".into()), options);
            world.put(&format!("/z/tasks/{dir}"), b"");
            world.put(&format!("/z/tasks/{dir}/t{}", self.made), &task.encode());
            self.made += 1;
        }
        let n = below(&mut self.all.prng, self.made);
        let path = format!("/z/tasks/j{}/t{n}", n % 3);
        let choice = below(&mut self.all.prng, 6);
        if !world.znodes.contains_key(&path) {
            return;
        }
        let task = world.task(&path);
        match (choice, &task.outcome) {
            (0, None) => world.change(&path, |task| task.cancel = true),
            (1, Some(outcome)) if outcome.state != State::Done => {
                self.outcomes.remove(&path);
                world.change(&path, |task| {
                    let outcome = task.outcome.take().expect("ended");
                    task.next_attempt(outcome.worker.clone(), "retried");
                    task.released_by = outcome.worker;
                    (task.charged, task.cancel) = (0, false);
                });
            }
            (2, Some(_)) => {
                self.outcomes.remove(&path);
                world.remove(&path);
                if n.is_multiple_of(3) {
                    let task = Task::new(Payload::Shell("anew".into()), Options::default());
                    world.put(&path, &task.encode());
                }
            }
            _ => {}
        }
    }

    fn fault(&mut self) {
        let still = Duration::from_millis(200 + self.below(30_000));
        let (who, kind) = (self.below(5), self.below(6));
        let until = self.all.world.now + still;
        self.life += 1;
        let life = self.life;
        if who < 2 {
            let member = &mut self.masters[who as usize];
            match kind {
                0..3 => member.cut(&mut self.all),
                3 => {
                    member.cut(&mut self.all);
                    member.still_until = Some(until);
                }
                4 => {
                    member.cut(&mut self.all);
                    *member = Member::new(master(who, life), &who.to_string(), until);
                }
                _ => member.desk.event(&self.all.world, Event::Stop { again: false }),
            }
        } else {
            let who = who - 2;
            let member = &mut self.workers[who as usize];
            match kind {
                0..3 => member.cut(&mut self.all),
                3 => {
                    member.cut(&mut self.all);
                    member.still_until = Some(until);
                }
                4 => {
                    member.cut(&mut self.all);
                    *member = Member::new(worker(who, life), &who.to_string(), until);
                }
                _ => member.desk.event(&self.all.world, Event::Stop { again: false }),
            }
        }
    }

    /// Whoever exited is started anew; its session was closed.
    fn restart(&mut self) {
        self.life += 1;
        let (life, at) = (self.life, self.all.world.now + Duration::from_secs(1));
        for (n, member) in self.masters.iter_mut().enumerate() {
            if member.desk.exit.is_some() {
                member.desk.session.into_iter().for_each(|session| self.all.world.expire(session));
                *member = Member::new(master(n as u64, life), &n.to_string(), at);
            }
        }
        for (n, member) in self.workers.iter_mut().enumerate() {
            if member.desk.exit.is_some() {
                member.desk.runs.clear();
                member.desk.session.into_iter().for_each(|session| self.all.world.expire(session));
                *member = Member::new(worker(n as u64, life), &n.to_string(), at);
            }
        }
    }

    fn open(&self) -> Vec<String> {
        let tasks = self.all.world.znodes.range("/z/tasks/".to_string().."/z/tasks0".to_string());
        let open = tasks.filter(|(_, n)| Task::decode(&n.data).is_ok_and(|task| task.outcome.is_none()));
        open.map(|(path, node)| format!("{path}: {}", String::from_utf8_lossy(&node.data))).collect()
    }

    fn run(&mut self) {
        while self.all.world.now < END {
            self.all.tick();
            let busy = self.all.world.now < FAULTS_UNTIL;
            if busy && self.below(10) == 0 {
                self.user();
            }
            if busy && self.below(self.fault_every) == 0 {
                self.fault();
            }
            let steps = self.below(self.pace);
            for _ in 0..steps {
                let who = self.below(5) as usize;
                if who < 2 {
                    self.masters[who].step(&mut self.all);
                } else {
                    self.workers[who - 2].step(&mut self.all);
                    self.check_runs();
                }
            }
            self.check_outcomes();
            self.run_processes();
            self.restart();
            if !busy && self.open().is_empty() {
                return;
            }
        }
        let pages = self.all.world.znodes.range("/z/assign/".to_string().."/z/assign0".to_string());
        let pages: Vec<_> =
            pages.map(|(p, n)| format!("{p}: {}", String::from_utf8_lossy(&n.data))).collect();
        let stands: Vec<_> = self.all.world.znodes.keys().filter(|p| !p.contains("/tasks/")).collect();
        let logs: Vec<_> = self.masters.iter().map(|m| m.desk.logs.iter().rev().take(8)).collect();
        panic!("these never end: {:#?}\n{pages:#?}\n{stands:#?}\n{logs:#?}", self.open());
    }
}

#[test]
fn every_task_ends_once_and_runs_in_one_place_whatever_happens() {
    // SEED=7 plays one seed again, SEED=0..500 many.
    let number = |text: &str| text.parse::<u64>().expect("SEED is a number, or two with .. between");
    let seeds = match std::env::var("SEED").as_deref() {
        Ok(range) if range.contains("..") => {
            let (first, end) = range.split_once("..").expect("two");
            number(first)..number(end)
        }
        Ok(seed) => number(seed)..number(seed) + 1,
        Err(_) => 0..SEEDS,
    };
    let mut failed = Vec::new();
    for seed in seeds {
        let run = std::panic::catch_unwind(|| Sim::new(seed).run());
        if run.is_err() {
            failed.push(seed);
        }
    }
    assert!(failed.is_empty(), "seeds {failed:?}");
}
