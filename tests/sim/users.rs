//! Users: they submit, wait, cancel and retry, sometimes the same key twice, and sometimes lose patience. Each is a
//! member with a client's role; its time and its request are drawn.

use zkmw::contract::line::LineName;
use zkmw::contract::task::{Options, Payload, Task};
use zkmw::contract::{Labels, Layout, TaskId, is_shared};
use zkmw::machine::BatchLine;
use zkmw::roles::client::walk::Target;
use zkmw::roles::operator::{Deletion, Operator, OperatorParams, Verb};
use zkmw::roles::submitter::{Batch, BatchParams, Outline, Single, SingleParams, Waiting};
use zkmw::roles::waiter::{WaitParams, Waiter};

use super::member::{Kind, Playing, Program};
use super::swarm::SECOND;
use super::world::{Ev, World};

/// The request of a user.
#[derive(Clone, Debug)]
pub struct ClientSpec {
    pub wish: Wish,
    pub options: Options,
    pub key: Option<String>,
    pub job: Option<String>,
    /// Lines of a batch that make one chunk, if the user says so.
    pub chunk: Option<u32>,
    pub detach: bool,
    pub orphan: bool,
    pub cancel: bool,
}

/// The kind of it.
#[derive(Clone, Debug)]
pub enum Wish {
    Single(String),
    Batch(Vec<String>),
    Wait(Vec<Target>),
    Operate(Verb, Vec<Target>),
}

impl ClientSpec {
    fn waiting(&self) -> Waiting {
        if self.detach { Waiting::Detached } else { Waiting::Attached { orphan_cancel: self.orphan } }
    }

    /// The process for it.
    pub fn program(&self, layout: Layout, life: u64) -> Box<dyn Program> {
        let ulid = format!("01S{life:023}");
        match &self.wish {
            Wish::Single(command) => {
                let params = SingleParams {
                    layout,
                    ulid,
                    key: self.key.clone(),
                    job: self.job.clone(),
                    payload: Payload::Shell(command.clone()),
                    options: self.options.clone(),
                    credentials: false,
                    waiting: self.waiting(),
                    cancel_on_interrupt: self.cancel,
                    allow_truncated: true,
                };
                Box::new(Playing::new(Single::new(params).expect("a small task")))
            }
            Wish::Batch(lines) => {
                let params = BatchParams {
                    layout,
                    ulid,
                    key: self.key.clone(),
                    job: self.job.clone(),
                    options: self.options.clone(),
                    outline: outline(lines),
                    chunk: self.chunk,
                    credentials: false,
                    waiting: self.waiting(),
                    cancel_on_interrupt: self.cancel,
                };
                Box::new(Playing::new(Batch::new(params).expect("a small batch")))
            }
            Wish::Wait(targets) => {
                Box::new(Playing::new(Waiter::new(WaitParams { layout, targets: targets.clone() })))
            }
            Wish::Operate(verb, targets) => {
                let params = OperatorParams { layout, verb: verb.clone(), targets: targets.clone() };
                Box::new(Playing::new(Operator::new(params)))
            }
        }
    }

    fn lines(&self) -> Vec<BatchLine> {
        match &self.wish {
            Wish::Batch(lines) => {
                let numbered = lines.iter().zip(0..);
                numbered.map(|(text, number)| BatchLine { number, text: text.clone() }).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn outline(lines: &[String]) -> Outline {
    let mut outline = Outline::default();
    for (line, number) in lines.iter().zip(0..) {
        outline.count(number, line.len());
    }
    outline
}

impl World {
    /// Another user comes by.
    pub fn on_user(&mut self) {
        if self.healed {
            return;
        }
        let every = self.swarm.user_every;
        let next = self.dice.around(every);
        self.after(next, Ev::User);
        // The leader deletes all. (The checkers would take a deletion by a client for a collected outcome.)
        let wish = Deletion { settled_ms: -1, ..Deletion::default() };
        let (spec, name) = match self.dice.below(11) {
            0..6 => (self.submission(), "s"),
            6 | 7 => (self.plain(Wish::Wait(Vec::new())), "wait"),
            10 => (self.plain(Wish::Operate(Verb::Delete(wish), Vec::new())), "delete"),
            8 => (self.plain(Wish::Operate(Verb::Cancel, Vec::new())), "cancel"),
            _ => (self.plain(Wish::Operate(Verb::Retry, Vec::new())), "retry"),
        };
        let Some(spec) = spec else { return };
        self.send(name, spec);
    }

    /// Starts a client.
    pub fn send(&mut self, name: &str, spec: ClientSpec) -> usize {
        let lines = spec.lines();
        let n = self.members.len();
        let m = self.add(format!("{name}{n}"), Kind::Client(Box::new(spec)));
        self.on_start(m, 0);
        self.members[m].lines = lines.into();
        m
    }

    fn plain(&mut self, wish: Wish) -> Option<ClientSpec> {
        let target = self.target()?;
        let targets = vec![target];
        let wish = match wish {
            Wish::Operate(verb, _) => Wish::Operate(verb, targets),
            _ => Wish::Wait(targets),
        };
        let options = Options::default();
        let (key, job, chunk) = (None, None, None);
        Some(ClientSpec { wish, options, key, job, chunk, detach: false, orphan: false, cancel: false })
    }

    /// A task, a line of one, or a whole job, that exists.
    fn target(&mut self) -> Option<Target> {
        let tree = self.ens.tree();
        let jobs = tree.range("/z/tasks/".to_string()..);
        let names: Vec<&str> = jobs.map_while(|(path, _)| path.strip_prefix("/z/tasks/")).collect();
        let tasks: Vec<TaskId> = names.iter().filter_map(|name| TaskId::parse(name)).collect();
        let jobs: Vec<&str> =
            names.iter().filter(|name| !name.contains('/') && !is_shared(name)).copied().collect();
        if self.dice.per_mille(150) {
            return self.dice.pick(&jobs).map(|job| Target::Job((*job).to_string()));
        }
        let id = self.dice.pick(&tasks).cloned()?;
        let task = tree.get(&format!("/z/tasks/{id}")).and_then(|znode| Task::decode(&znode.data).ok());
        let lines: Vec<u64> = task.iter().flat_map(|task| task.positions().map(|(_, line)| line)).collect();
        let line = self.dice.pick(&lines).and_then(|line| LineName::in_task(&id, *line));
        let named =
            line.filter(|_| self.dice.per_mille(600)).and_then(|name| TaskId::parse(&name.to_string()));
        Some(Target::Task(named.unwrap_or(id)))
    }

    fn command(&mut self) -> String {
        if self.dice.per_mille(self.swarm.poison) {
            return "poison".into();
        }
        let all = ["ok", "ok", "ok", "ok", "ok", "fail", "flaky", "flaky", "signal"];
        all[self.dice.below(all.len() as u64) as usize].into()
    }

    fn options(&mut self) -> Options {
        let dice = &mut self.dice;
        let mut options = Options::default();
        if dice.per_mille(400) {
            options.max_attempts = Some(dice.between(1, 4) as u32);
            options.retry_backoff_ms = Some(dice.between(50, 2_000));
        }
        if dice.per_mille(100) {
            options.priority = Some(dice.below(5) as i32 - 2);
        }
        if dice.per_mille(120) {
            options.timeout_ms = Some(dice.between(100, 4_000));
        }
        if dice.per_mille(60) {
            options.expire_ms = Some(dice.between(500, 20_000));
        }
        if dice.per_mille(100) {
            let mut labels = Labels::new();
            labels.insert("zone".into(), "a".into());
            options.require = Some(labels);
        }
        options
    }

    fn submission(&mut self) -> Option<ClientSpec> {
        if self.asked >= self.swarm.tasks {
            return None;
        }
        let keyed = self.dice.per_mille(self.swarm.keyed);
        let detach = self.dice.per_mille(250);
        let batch = self.dice.per_mille(200);
        let mut chunk = None;
        if batch && self.dice.per_mille(self.swarm.chunked) {
            // The same number for all clients with a key, most of which mean the same task.
            chunk = Some(if keyed { 2 } else { self.dice.between(1, 8) as u32 });
        }
        let (wish, options) = if keyed && self.dice.per_mille(700) {
            // Clients with a key mostly mean the same task by it.
            let wish = if batch {
                Wish::Batch(vec!["ok".into(), "flaky".into(), "ok".into()])
            } else {
                Wish::Single("ok".into())
            };
            (wish, Options::default())
        } else if batch {
            let lines = self.dice.between(2, self.swarm.lines);
            (Wish::Batch((0..lines).map(|_| self.command()).collect()), self.options())
        } else {
            (Wish::Single(self.command()), self.options())
        };
        self.asked += match &wish {
            Wish::Batch(lines) => lines.len() as u64,
            _ => 1,
        };
        let key = format!("{}k{}", if batch { "b" } else { "" }, self.dice.below(4));
        let job = format!("j{}", self.dice.below(3));
        Some(ClientSpec {
            wish,
            options,
            key: keyed.then_some(key),
            job: self.dice.per_mille(350).then_some(job),
            chunk,
            detach,
            orphan: self.dice.per_mille(if keyed { 500 } else { 200 }),
            cancel: self.dice.per_mille(400),
        })
    }

    /// When a user loses his patience, he does it about so late.
    pub fn patience(&mut self) -> u64 {
        self.dice.around(2 * SECOND)
    }
}
