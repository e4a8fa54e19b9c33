//! The runs of workers and electors: process groups that take some time and end in some way. Also the keeper, which
//! lives on the worker's machine and by its clock, and kills when the worker has ended or its lease is over.

use zkmw::contract::TaskId;
use zkmw::contract::line::LineName;
use zkmw::contract::task::Job;
use zkmw::machine::{
    Captured, Ended, Event, GroupSignal, Instant, NotStartedKind, RunId, RunReport, RunSpec,
};

use super::life::{ELECTION, ROOT};
use super::member::Who;
use super::swarm::MS;
use super::world::{EPOCH_MS, Ev, World};

/// The mean time that runs take when all is healed.
const QUICK: u64 = 300 * MS;

const TERM: i32 = 15;
const KILL: i32 = 9;

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It was asked for.
    Waiting,
    Alive,
    Ended,
    /// It never began.
    Never,
}

/// A run, and all that is true of it.
#[derive(Clone, Debug)]
pub struct Run {
    pub who: Who,
    pub id: RunId,
    /// The task's id, or the election.
    pub key: String,
    /// The line, from 1, if it is one command of a chunk.
    pub line: Option<u64>,
    pub attempt: u32,
    pub epoch: i64,
    pub stage: Stage,
    pub begin: u64,
    pub end: u64,
    pub ended: Option<Ended>,
    /// It was asked to end, or killed.
    pub signalled: bool,
    /// A signal that came before it began.
    early_signal: Option<GroupSignal>,
    stubborn: bool,
    command: String,
}

impl Run {
    /// The output that it prints.
    pub fn output(&self) -> String {
        let line = self.line.map(|line| format!(":{line}")).unwrap_or_default();
        format!("{}{line}#{} by {}", self.key, self.attempt, self.who.life)
    }
}

impl World {
    pub fn start_run(&mut self, who: Who, id: RunId, spec: &RunSpec) {
        let find =
            |name: &str| spec.env.iter().rfind(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let name = find("ZKMW_TASK").unwrap_or(ELECTION);
        let run = Run {
            who,
            id,
            key: self.chunk_of(name).unwrap_or_else(|| name.to_string()),
            line: find("ZKMW_LINE").and_then(|n| n.parse().ok()),
            attempt: find("ZKMW_ATTEMPT").and_then(|n| n.parse().ok()).unwrap_or(0),
            epoch: find("ZKMW_EPOCH").and_then(|n| n.parse().ok()).unwrap_or(0),
            stage: Stage::Waiting,
            begin: 0,
            end: 0,
            ended: None,
            signalled: false,
            early_signal: None,
            stubborn: false,
            command: spec.argv.last().cloned().unwrap_or_default(),
        };
        let index = self.runs.len();
        self.runs.push(run);
        self.members[who.m].runs.insert(id, index);
        let most = if self.dice.per_mille(50) { 200 * MS } else { 5 * MS };
        let delay = self.dice.below(most) + MS / 4;
        self.after(delay, Ev::RunBegins(index));
    }

    /// The task that a line of a batch is in.
    fn chunk_of(&self, name: &str) -> Option<String> {
        let name = LineName::of(&TaskId::parse(name)?)?;
        let below = format!("{ROOT}/tasks/{}~", name.batch);
        let below = self.ens.tree().range(below.clone()..).take_while(|(path, _)| path.starts_with(&below));
        let mut parts = below.filter(|(_, node)| !node.children().is_empty());
        let size = parts.find_map(|(_, node)| Job::decode(&node.data).ok()?.chunk)?;
        Some(name.task(size).0.to_string())
    }

    pub fn on_run_begins(&mut self, index: usize) {
        let who = self.runs[index].who;
        if self.runs[index].stage != Stage::Waiting {
            return;
        }
        if !self.lives(who) {
            self.runs[index].stage = Stage::Never;
            return;
        }
        let stopped = self.members[who.m].stopped;
        if stopped > self.now {
            let later = stopped + self.dice.below(5 * MS);
            return self.at(later, Ev::RunBegins(index));
        }
        let covered = self.members[who.m].lease.is_some_and(|until| self.local(who.m) < until);
        let kept = self.members[who.m].without_keeper <= self.now;
        if !covered || !kept {
            self.runs[index].stage = Stage::Never;
            let why = if kept { "the lease is over" } else { "there is no keeper" };
            let event = Event::NotStarted {
                run: self.runs[index].id,
                kind: NotStartedKind::Transient,
                why: why.into(),
            };
            self.members[who.m].runs.remove(&self.runs[index].id);
            return self.after(MS, Ev::Exec(who, event));
        }
        // When all is healed, the remaining work must not take longer than the wait for it.
        let mean = if self.healed { self.swarm.run_for.min(QUICK) } else { self.swarm.run_for };
        let lasts = self.dice.around(mean) + MS;
        let stubborn = self.dice.per_mille(150);
        let dice = self.dice.below(100);
        let run = &mut self.runs[index];
        run.stage = Stage::Alive;
        run.begin = self.now;
        run.stubborn = stubborn;
        let (id, command, early_signal) = (run.id, run.command.clone(), run.early_signal);
        let how = match command.as_str() {
            "fail" => Ended::Exit(3),
            "flaky" if dice < 60 => Ended::Exit(1),
            "signal" => Ended::Signal(11),
            _ => Ended::Exit(0),
        };
        self.trace(&self.members[who.m].name, || {
            let run = &self.runs[index];
            format!("## runs {} attempt {} for {} ms ##", run.key, run.attempt, lasts / MS)
        });
        if command == "poison" && !self.healed {
            self.after(lasts / 2, Ev::Kill(who));
        }
        self.after(lasts, Ev::RunEnds(index, how));
        self.after(MS, Ev::Exec(who, Event::Started { run: id, pid: index as u32 }));
        if let Some(signal) = early_signal {
            self.signal_run(who, id, signal);
        }
    }

    pub fn on_run_ends(&mut self, index: usize, how: Ended) {
        if self.runs[index].stage != Stage::Alive {
            return;
        }
        let run = &mut self.runs[index];
        run.stage = Stage::Ended;
        run.end = self.now;
        run.ended = Some(how);
        self.trace(&self.members[self.runs[index].who.m].name, || {
            format!("## {} attempt {} has ended: {how:?} ##", self.runs[index].key, self.runs[index].attempt)
        });
        let delay = self.dice.between(MS / 10, 5 * MS);
        self.after(delay, Ev::RunReported(index));
    }

    pub fn on_run_reported(&mut self, index: usize) {
        let run = &self.runs[index];
        let (who, id) = (run.who, run.id);
        let Some(ended) = run.ended else { return };
        let wall = |at: u64| EPOCH_MS + (at / MS) as i64;
        let stdout = Captured { head: run.output().into_bytes(), ..Captured::default() };
        let (started_ms, ended_ms) = (wall(run.begin), wall(run.end));
        let (stderr, signalled) = (Captured::default(), run.signalled);
        let report = RunReport { ended, detail: None, stdout, stderr, started_ms, ended_ms, signalled };
        if self.lives(who) {
            self.members[who.m].runs.remove(&id);
            self.on_exec(who, Event::Ended { run: id, report });
        }
    }

    pub fn signal_run(&mut self, who: Who, id: RunId, signal: GroupSignal) {
        let Some(index) = self.members[who.m].runs.get(&id).copied() else { return };
        match self.runs[index].stage {
            Stage::Waiting => {
                let early = &mut self.runs[index].early_signal;
                if *early != Some(GroupSignal::Kill) {
                    *early = Some(signal);
                }
            }
            Stage::Alive => {
                self.runs[index].signalled = true;
                if signal == GroupSignal::Kill {
                    let delay = self.dice.between(MS / 2, 10 * MS);
                    self.after(delay, Ev::RunEnds(index, Ended::Signal(KILL)));
                } else if !self.runs[index].stubborn {
                    let how = match self.dice.below(4) {
                        // It cleans up, and says that all is well.
                        0 => Ended::Exit(0),
                        1 => Ended::Exit(128 + TERM),
                        _ => Ended::Signal(TERM),
                    };
                    let delay = self.dice.below(300 * MS);
                    self.after(delay, Ev::RunEnds(index, how));
                }
            }
            Stage::Ended | Stage::Never => {}
        }
    }

    /// The guardian of the member's runs kills them all, each within `most`. Gives the time at which that is done.
    pub fn kill_runs(&mut self, m: usize, most: u64) -> u64 {
        let runs: Vec<usize> = self.members[m].runs.values().copied().collect();
        let mut done = self.now;
        for index in runs {
            if self.runs[index].stage == Stage::Alive {
                self.runs[index].signalled = true;
                let delay = self.dice.between(MS / 2, most);
                done = done.max(self.now + delay);
                self.after(delay, Ev::RunEnds(index, Ended::Signal(KILL)));
            }
        }
        done
    }

    pub fn kill_runs_at_once(&mut self, m: usize) {
        for index in self.members[m].runs.values().copied().collect::<Vec<_>>() {
            self.on_run_ends(index, Ended::Signal(KILL));
        }
    }

    pub fn extend_lease(&mut self, who: Who, until: Instant) {
        self.members[who.m].lease = Some(until);
        let at = self.members[who.m].clock.when(until);
        self.at(at, Ev::Keeper(who));
    }

    /// The keeper checks its clock.
    pub fn on_keeper(&mut self, who: Who) {
        let over = self.members[who.m].lease.is_some_and(|until| self.local(who.m) >= until);
        if self.lives(who) && over && !self.members[who.m].runs.is_empty() {
            self.trace(&self.members[who.m].name, || "its lease is over: the keeper kills".into());
            self.kill_runs(who.m, 20 * MS);
        }
    }

    /// The keeper dies; so do all runs, and a new keeper is made.
    pub fn lose_keeper(&mut self, m: usize) {
        let who = self.who(m);
        if !self.lives(who) || !self.members[m].kind.runs() {
            return;
        }
        self.trace(&self.members[m].name, || "** its keeper dies **".into());
        let without = self.dice.between(MS, 500 * MS);
        self.members[m].without_keeper = self.now + without;
        self.kill_runs(m, 20 * MS);
        self.after(0, Ev::Exec(who, Event::SlotsLost { why: "it died".into() }));
        self.after(without, Ev::KeeperBack(who));
    }
}
