//! The life of a process: it starts, takes turns, carries out the actions of its role, is suspended, dies, ends. The
//! order of things here is that of `src/shell.rs`.

use std::time::Duration;

use zkmw::contract::worker::ProcessIdentity;
use zkmw::contract::{Labels, Layout, uuid};
use zkmw::machine::{Action, CallError, Event, Instant};
use zkmw::roles::{elector, master, worker};

use super::member::{Kind, Playing, Program, SessionEvent, Shown, Who};
use super::swarm::{MS, SECOND};
use super::world::{Ev, World};

/// The root znode of the service.
pub const ROOT: &str = "/z";

/// The directory of the electors' election.
pub const ELECTION: &str = "/z/elections/e";

/// How long a graceful end may take.
const CLOSE_TIMEOUT: u64 = 5 * SECOND;

impl World {
    pub fn on_start(&mut self, m: usize, life: u64) {
        let member = &self.members[m];
        if member.program.is_some() || member.life != life {
            return;
        }
        // A new process on the same machine kills the runs that the last one left behind.
        self.kill_runs_at_once(m);
        self.lives += 1;
        let life = self.lives;
        let program = self.program(m, life);
        let member = &mut self.members[m];
        member.forget();
        member.life = life;
        member.program = Some(program);
        self.history.began(Who { m, life }, &self.members[m].name);
        self.trace(&self.members[m].name, || format!("starts (life {life})"));
        self.after(MS, Ev::Connect(Who { m, life }));
    }

    fn program(&mut self, m: usize, life: u64) -> Box<dyn Program> {
        let layout = Layout::new(ROOT);
        let ms = Duration::from_nanos;
        let (high, low) = (self.dice.bits(), self.dice.bits());
        let before = self.members[m].life;
        match &self.members[m].kind {
            Kind::Master => Box::new(Playing::new(master::Master::new(master::Params {
                layout,
                id: self.members[m].name.clone(),
                host: "h".into(),
                pid: life as u32,
                uuid: uuid(high, low),
                result_ttl: ms(self.swarm.result_ttl),
                job_ttl: ms(self.swarm.job_ttl),
                max_pending: self.swarm.max_pending,
                max_failed: self.swarm.max_failed,
                max_pending_bytes: 1 << 30,
            }))),
            Kind::Worker { name, slots, zone } => {
                let process = |life: u64| ProcessIdentity {
                    host: format!("h{m}"),
                    pid: life as u32,
                    start_time: life,
                    ..ProcessIdentity::default()
                };
                let mut labels = Labels::new();
                if *zone {
                    labels.insert("zone".into(), "a".into());
                }
                let proven = before > 0 && high.is_multiple_of(2);
                Box::new(Playing::new(worker::Worker::new(worker::Params {
                    layout,
                    id: format!("w{name}"),
                    process: process(life),
                    predecessor: proven.then(|| process(before)),
                    slots: *slots,
                    labels,
                    grace: ms(self.swarm.grace),
                    close_timeout: ms(CLOSE_TIMEOUT / 2),
                    handler: None,
                    output_limit: 1_000,
                    seed: low,
                })))
            }
            Kind::Elector { once } => Box::new(Playing::new(elector::Elector::new(elector::Params {
                dir: ELECTION.into(),
                layout,
                id: self.members[m].name.clone(),
                uuid: uuid(high, low),
                command: Some(vec!["elected".into()]),
                env: Vec::new(),
                grace: ms(self.swarm.grace),
                once: *once,
            }))),
            Kind::Client(spec) => spec.program(layout, life),
        }
    }

    pub fn on_resume(&mut self, who: Who) {
        if self.lives(who) && self.members[who.m].stopped <= self.now {
            self.trace(&self.members[who.m].name, || "goes on".into());
            self.nudge(who.m);
            self.schedule_wake(who.m);
        }
    }

    pub fn on_exec(&mut self, who: Who, event: Event) {
        if self.lives(who) {
            self.members[who.m].execs.push_back(event);
            self.nudge(who.m);
        }
    }

    pub fn on_time(&mut self, who: Who) {
        if self.lives(who) && self.members[who.m].wake <= self.now {
            self.members[who.m].wake = u64::MAX;
            self.nudge(who.m);
        }
    }

    /// One thing happens to the role.
    pub fn turn(&mut self, who: Who) {
        if !self.lives(who) {
            return;
        }
        let m = who.m;
        self.members[m].turning = false;
        if self.members[m].stopped > self.now {
            return;
        }
        let now = self.local(m);
        let ready = [
            !self.members[m].sessions.is_empty(),
            !self.members[m].execs.is_empty(),
            self.members[m].signals > 0,
            self.members[m].program.as_ref().and_then(|p| p.next_wake()).is_some_and(|at| at <= now),
        ];
        let choices: Vec<usize> = (0..ready.len()).filter(|n| ready[*n]).collect();
        let choice = self.dice.pick(&choices).copied();
        let member = &mut self.members[m];
        let event = match choice {
            Some(0) => member.hear(now),
            Some(1) => member.execs.pop_front(),
            Some(2) => {
                member.signals -= 1;
                let again = std::mem::replace(&mut member.signalled, true);
                Some(Event::Stop { again })
            }
            Some(_) => Some(Event::Wake),
            None => None,
        };
        if let Some(event) = event {
            self.trace(&self.members[m].name, || format!("<- {event:?}"));
            let woken = event == Event::Wake;
            if let Some(program) = &mut self.members[m].program {
                program.turn(now, event);
            }
            if !self.carry_out(who) {
                return;
            }
            if woken {
                self.check_served(m, now);
            }
        }
        if self.members[m].has_input() {
            self.nudge(m);
        }
        self.schedule_wake(m);
    }

    /// A role that does not serve what it is woken for would make the shell's loop spin.
    fn check_served(&self, m: usize, now: Instant) {
        let wish = self.members[m].program.as_ref().and_then(|program| program.next_wake());
        assert!(
            wish.is_none_or(|at| at > now),
            "{} was woken at {now:?} and wants to be woken again at {wish:?}: it did not serve what was due",
            self.members[m].name
        );
    }

    /// Schedules the wake-up that the role wants next.
    fn schedule_wake(&mut self, m: usize) {
        let member = &self.members[m];
        let Some(wish) = member.program.as_ref().and_then(|program| program.next_wake()) else { return };
        let at = member.clock.when(wish).max(self.now);
        if at < member.wake {
            self.members[m].wake = at;
            self.at(at, Ev::Time(self.who(m)));
        }
    }

    /// Carries out the role's actions; false if the process ended in doing so.
    fn carry_out(&mut self, who: Who) -> bool {
        let m = who.m;
        loop {
            let Some(program) = &mut self.members[m].program else { return false };
            let actions = program.drain();
            if actions.is_empty() {
                return true;
            }
            for action in actions {
                if !self.healed && self.dice.per_mille(self.swarm.die_in_turn) {
                    self.crash(m, "dies in the middle of a turn");
                    return false;
                }
                match action {
                    Action::Call { id, call } => self.call(who, id, call),
                    Action::Run { run, spec } => self.start_run(who, run, &spec),
                    Action::Signal { run, signal } => self.signal_run(who, run, signal),
                    Action::Lease(until) => self.extend_lease(who, until),
                    Action::Report(Shown::Client(report)) => {
                        self.trace(&self.members[m].name, || format!("reports {report:?}"));
                        self.history.report(m, self.now, report);
                    }
                    Action::Report(Shown::Elector) | Action::Status(_) => {}
                    Action::Log(_, text) => {
                        self.trace(&self.members[m].name, || format!("\"{text}\""));
                        let seconds = self.now as f64 / SECOND as f64 - 1.0;
                        self.members[m].say(format!("{seconds:.3} {text}"));
                    }
                    Action::ReadLines(count) => {
                        let now = self.local(m);
                        let member = &mut self.members[m];
                        let count = count.min(member.lines.len());
                        let lines = member.lines.drain(..count).collect();
                        if let Some(program) = &mut member.program {
                            program.turn(now, Event::Lines(lines));
                        }
                    }
                    Action::Exit(code) => {
                        self.exit(m, code);
                        return false;
                    }
                }
            }
        }
    }

    /// The process ends in good order: its runs are killed, then the session is closed.
    fn exit(&mut self, m: usize, code: i32) {
        self.trace(&self.members[m].name, || format!("exits with {code}"));
        self.history.exited(m, self.now, code);
        let killed_by = self.kill_runs(m, 20 * MS);
        if let Some(net) = self.members[m].net.take() {
            let close = killed_by.max(self.now) + self.travel();
            self.at(close, Ev::Close(net.session));
        }
        self.gone(m);
    }

    /// The process is gone from one moment to the next.
    pub fn crash(&mut self, m: usize, why: &str) {
        self.trace(&self.members[m].name, || format!("** {why} **"));
        self.history.killed(m);
        self.hurt(self.who(m));
        self.kill_runs(m, 50 * MS);
        if let Some(net) = self.members[m].net.take() {
            // The kernel closes the connection, unless the whole machine failed.
            let delay = if self.dice.per_mille(200) { 60 * SECOND } else { self.travel() };
            self.after(delay, Ev::Fin(net.session));
        }
        self.gone(m);
    }

    fn gone(&mut self, m: usize) {
        let life = self.members[m].life;
        self.members[m].program = None;
        self.members[m].net = None;
        if self.members[m].comes_back {
            let pause = if self.healed { SECOND } else { self.dice.around(2 * SECOND) };
            self.after(pause, Ev::Start(m, life));
        }
    }

    pub fn on_signal(&mut self, who: Who) {
        if self.lives(who) {
            self.trace(&self.members[who.m].name, || "** is asked to end **".into());
            self.members[who.m].signals += 1;
            self.members[who.m].asked.get_or_insert(self.now);
            self.history.interrupted(who.m);
            self.nudge(who.m);
        }
    }

    /// Answers a call for which there is no connection.
    pub fn not_sent(&mut self, m: usize, id: zkmw::machine::CallId) {
        self.deliver(m, SessionEvent::Reply { id, result: Err(CallError::NotSent) });
    }
}
