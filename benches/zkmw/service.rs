//! The service that is measured: real processes of the binary on a root of their own, and what the system shows
//! of them. Must not read their state, and not judge.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use zkmw::contract::Layout;
use zkmw::machine::Call;

use crate::client::Client;
use crate::harness::{Cluster, Contender, Ensemble, Proc, eventually};

/// Session timeout of everything that is measured: no session shall expire on a busy machine.
pub const SESSION: &str = "30s";

/// How long a service may take to be ready, for each worker, and in any case.
const START_EACH: Duration = Duration::from_millis(500);
pub const START: Duration = Duration::from_secs(60);

/// How long a process may take to end.
pub const END: Duration = Duration::from_secs(60);

/// How long a batch may take: so long for each task, and in any case.
const TASK: Duration = Duration::from_millis(50);
pub const BATCH: Duration = Duration::from_secs(120);

/// How long masters may take to learn of a new pending task, each.
const LEARN: Duration = Duration::from_millis(20);

/// Calls in flight when a backlog is deleted.
const DELETES_IN_FLIGHT: usize = 128;

/// A label that no worker has, so that the backlog stays where it is.
const NOBODY: &str = "backlog=stays";

/// The kind of executor of the tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Executor {
    /// A process for each.
    Process,
    /// `--handler` with this program.
    Handler(PathBuf),
}

impl Executor {
    /// The cheapest that this binary has: `None` without the flag.
    pub fn handler(dir: &Path) -> Option<Executor> {
        if !has_flag("worker", "--handler") {
            return None;
        }
        let path = dir.join("handler");
        let program = std::env::current_exe().expect("our own program");
        let text = format!("#!/bin/sh\nexec '{}' handler\n", program.display());
        fs::write(&path, text).expect("a file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, mode).expect("a mode");
        Some(Executor::Handler(path))
    }

    /// For the report.
    pub fn name(&self) -> &'static str {
        match self {
            Executor::Process => "a process each",
            Executor::Handler(_) => "--handler",
        }
    }
}

/// Whether a command of the binary has a flag.
pub fn has_flag(command: &str, flag: &str) -> bool {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_zkmw")).args([command, "--help"]).output();
    let text = output.expect("the binary starts").stdout;
    String::from_utf8_lossy(&text).split_whitespace().any(|word| word == flag)
}

/// A leader, a standby and workers.
pub struct Service {
    /// Its root.
    pub cluster: Cluster,
    /// The one that leads comes first, as of [`Service::leader_first`].
    pub masters: Vec<Proc>,
    /// The workers.
    pub workers: Vec<Proc>,
    pool: (usize, usize),
    executor: Executor,
    masters_session: &'static str,
    started: usize,
}

impl Service {
    /// Starts it, and waits until all its processes are ready.
    pub fn start(ensemble: &Arc<Ensemble>, name: &str, pool: (usize, usize), executor: &Executor) -> Service {
        Service::start_on(Cluster::on(ensemble, name), pool, executor, SESSION)
    }

    /// The same on a root that the caller made, of a binary that it chose, with masters of this session timeout.
    pub fn start_on(
        cluster: Cluster,
        pool: (usize, usize),
        executor: &Executor,
        masters_session: &'static str,
    ) -> Service {
        let cluster = cluster.with(&["--session-timeout", SESSION]);
        let mut service = Service {
            cluster,
            masters: vec![],
            workers: vec![],
            pool,
            executor: executor.clone(),
            masters_session,
            started: 0,
        };
        let leader = service.new_master();
        let id = format!("m{}", service.started);
        service.cluster.leads(&id, START);
        let standby = service.new_master();
        service.masters = vec![leader, standby];
        for number in 0..pool.0 {
            let worker = service.new_worker(number);
            service.workers.push(worker);
        }
        let limit = START + START_EACH * u32::try_from(pool.0).expect("a sane number");
        let wanted = u64::try_from(pool.0).expect("a sane number");
        eventually(limit, "all workers are known to the leader", || {
            (service.number("/workers")? == wanted).then_some(())
        });
        service.loaded(1);
        service
    }

    /// Starts one more master.
    pub fn new_master(&mut self) -> Proc {
        self.started += 1;
        let id = format!("m{}", self.started);
        self.cluster.start(&id, &["master", "--id", &id, "--session-timeout", self.masters_session])
    }

    fn new_worker(&self, number: usize) -> Proc {
        let slots = self.pool.1.to_string();
        let mut args = vec!["--slots", &slots];
        let program;
        if let Executor::Handler(path) = &self.executor {
            program = path.display().to_string();
            args.extend(["--handler", &program]);
        }
        self.cluster.worker(&format!("w{number}"), &args)
    }

    /// Puts the one that leads first, and returns its id: on a busy machine a session may be lost.
    pub fn leader_first(&mut self) -> Contender {
        let leader = eventually(START, "somebody leads", || self.cluster.leader());
        let position = self.masters.iter().position(|master| master.label() == leader.id);
        self.masters.swap(0, position.expect("a master of ours leads"));
        leader
    }

    /// A number in the leader's summary, by its JSON pointer.
    pub fn number(&self, pointer: &str) -> Option<u64> {
        self.cluster.status()?.pointer(pointer)?.as_u64()
    }

    /// How long masters may take to read all that is pending.
    pub fn time_to_load(&self) -> Duration {
        START + LEARN * u32::try_from(self.number("/tasks/pending").unwrap_or(0)).unwrap_or(0)
    }

    /// Waits until a master has read all tasks that exist, which it logs once.
    pub fn loaded(&self, master: usize) {
        let proc = &self.masters[master];
        eventually(self.time_to_load(), "a master has loaded", || {
            proc.stderr().contains("tasks loaded").then_some(())
        });
    }

    /// Runs a batch of `true` to its end with all outcomes collected, and gives the seconds that it took.
    pub fn batch(&self, tasks: usize, more: &[&str]) -> f64 {
        self.run(&"true\n".repeat(tasks), more)
    }

    /// Like the above, with these lines.
    pub fn run(&self, lines: &str, more: &[&str]) -> f64 {
        self.run_and(lines, more, |_| ())
    }

    /// The same, and does something meanwhile, which is given the time of the start.
    pub fn run_and(&self, lines: &str, more: &[&str], meanwhile: impl FnOnce(Instant)) -> f64 {
        let mut submit = self.submit_lines(lines, more);
        let from = Instant::now();
        meanwhile(from);
        let limit = BATCH + TASK * u32::try_from(lines.lines().count()).expect("a sane number");
        let exit = submit.wait_exit(limit);
        let seconds = from.elapsed().as_secs_f64();
        assert_eq!(exit.code, 0, "the batch failed: {}", last_lines(&exit.stderr));
        seconds
    }

    /// Starts the submitter of a batch.
    pub fn submit(&self, tasks: usize, more: &[&str]) -> Proc {
        self.submit_lines(&"true\n".repeat(tasks), more)
    }

    fn submit_lines(&self, lines: &str, more: &[&str]) -> Proc {
        let file = self.cluster.dir().join("batch");
        fs::write(&file, lines).expect("a file");
        let file = file.display().to_string();
        self.cluster.submit(&[&["--from-file", &file, "--no-progress"], more].concat())
    }

    /// Submits commands that no worker may run, and waits until the masters know them.
    pub fn backlog(&self, count: usize, more: &[&str]) {
        let limit = START + LEARN * u32::try_from(count).expect("a sane number");
        let mut submit = self.submit(count, &[&["--detach", "--require", NOBODY], more].concat());
        let exit = submit.wait_exit(limit);
        assert_eq!(exit.code, 0, "the backlog was not submitted: {}", last_lines(&exit.stderr));
        eventually(limit, "the leader knows the backlog", || {
            (self.number("/tasks/pending")? == count as u64).then_some(())
        });
        for master in &self.masters {
            master.quiet(limit);
        }
    }

    /// Deletes all tasks, once the masters have ended: the next case shall have servers as before.
    pub fn delete_tasks(connect: &str, layout: &Layout) {
        let mut client = Client::connect(connect, DELETES_IN_FLIGHT);
        for job in client.children(&layout.tasks()) {
            let dir = layout.job(&job);
            let delete = |name| Call::Delete { path: format!("{dir}/{name}"), version: None };
            let tasks = client.children(&dir);
            client.pipeline(DELETES_IN_FLIGHT, tasks.into_iter().map(delete));
        }
    }

    /// Ends all of it as an operator would.
    pub fn stop(mut self) {
        for process in self.workers.iter().chain(&self.masters) {
            process.term();
        }
        for process in self.workers.iter_mut().chain(&mut self.masters) {
            let exit = process.wait_exit(END);
            assert_eq!(exit.code, 0, "{}", last_lines(&exit.stderr));
        }
    }
}

/// The end of a log.
pub fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// The most children of any znode of a root, and the most bytes of any (of tasks only a sample is read).
pub fn largest(client: &mut Client, layout: &Layout) -> ((i32, String), (i32, String)) {
    let (mut children, mut bytes) = ((0, String::new()), (0, String::new()));
    let mut open = vec![layout.root().to_string()];
    while let Some(path) = open.pop() {
        let Some(stat) = client.stat(&path) else { continue };
        let below = || path.strip_prefix(layout.root()).unwrap_or(&path).to_string();
        if stat.num_children > children.0 {
            children = (stat.num_children, below());
        }
        if stat.data_length > bytes.0 {
            bytes = (stat.data_length, below());
        }
        if stat.num_children > 0 {
            // The tasks of one part are alike.
            let is_part = path.starts_with(&layout.job(""));
            let most = if is_part { 10 } else { usize::MAX };
            let names = client.children(&path);
            open.extend(names.iter().take(most).map(|name| format!("{path}/{name}")));
        }
    }
    (children, bytes)
}
