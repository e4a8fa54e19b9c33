//! The service that is measured: real processes of the binary on a root of their own, and what the system tells of
//! them. Must not look into them, and not judge.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use zkmw::contract::task::{Job, Options as TaskOptions, Payload, Task};
use zkmw::contract::worker::Assignment;
use zkmw::contract::{LINES_PER_PART, Layout, batch_task};
use zkmw::machine::Call;

use crate::client::{Client, create};
use crate::harness::{Cluster, Ensemble, Proc, eventually};

/// Session timeout of everything that is measured: nobody shall be taken for dead on a busy machine.
pub const SESSION: &str = "30s";

/// How long a service may take to stand, for each worker, and in any case.
const START_EACH: Duration = Duration::from_millis(500);
const START: Duration = Duration::from_secs(60);

/// How long a process may take to end.
const END: Duration = Duration::from_secs(60);

/// How long a batch may take: so long for each task, and in any case.
const TASK: Duration = Duration::from_millis(50);
const BATCH: Duration = Duration::from_secs(120);

/// How long masters may take to learn of a new pending task, each.
const LEARN: Duration = Duration::from_millis(20);

/// Calls in flight when a backlog is made.
const BACKLOG_IN_FLIGHT: usize = 128;

/// What masters admit: more than they do unasked, for batches run beside a backlog of a million.
const MAX_PENDING: &str = "2000000";

/// A label that no worker has, so that the backlog stays where it is.
const NOBODY: (&str, &str) = ("backlog", "stays");

/// What runs the tasks.
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
    /// Where it lives.
    pub cluster: Cluster,
    /// The one that leads comes first.
    pub masters: Vec<Proc>,
    /// The workers.
    pub workers: Vec<Proc>,
    fleet: (usize, usize),
    executor: Executor,
    started: usize,
}

impl Service {
    /// Starts it, and waits until everything stands.
    pub fn start(
        ensemble: &Arc<Ensemble>,
        name: &str,
        fleet: (usize, usize),
        executor: &Executor,
    ) -> Service {
        Service::start_on(Cluster::on(ensemble, name), fleet, executor)
    }

    /// The same on a root that the caller made, of a binary that it chose.
    pub fn start_on(cluster: Cluster, fleet: (usize, usize), executor: &Executor) -> Service {
        let cluster = cluster.with(&["--session-timeout", SESSION]);
        let mut service = Service {
            cluster,
            masters: vec![],
            workers: vec![],
            fleet,
            executor: executor.clone(),
            started: 0,
        };
        let leader = service.new_master();
        let id = format!("m{}", service.started);
        service.cluster.leads(&id, START);
        let standby = service.new_master();
        service.masters = vec![leader, standby];
        for number in 0..fleet.0 {
            let worker = service.new_worker(number);
            service.workers.push(worker);
        }
        let limit = START + START_EACH * u32::try_from(fleet.0).expect("a sane number");
        let wanted = u64::try_from(fleet.0).expect("a sane number");
        eventually(limit, "all workers are known to the leader", || {
            (service.number("/workers")? == wanted).then_some(())
        });
        service.loaded(1);
        service
    }

    fn new_master(&mut self) -> Proc {
        self.started += 1;
        let id = format!("m{}", self.started);
        self.cluster.start(&id, &["master", "--id", &id, "--max-pending", MAX_PENDING])
    }

    fn new_worker(&self, number: usize) -> Proc {
        let slots = self.fleet.1.to_string();
        let mut args = vec!["--slots", &slots];
        let program;
        if let Executor::Handler(path) = &self.executor {
            program = path.display().to_string();
            args.extend(["--handler", &program]);
        }
        self.cluster.worker(&format!("w{number}"), &args)
    }

    /// A number in the leader's summary, by its JSON pointer.
    pub fn number(&self, pointer: &str) -> Option<u64> {
        self.cluster.status()?.pointer(pointer)?.as_u64()
    }

    /// Waits until a master has read all that stands, which it logs once.
    pub fn loaded(&self, master: usize) {
        let limit = START + LEARN * u32::try_from(self.number("/tasks/pending").unwrap_or(0)).unwrap_or(0);
        let proc = &self.masters[master];
        eventually(limit, "a master has loaded", || proc.stderr().contains("tasks loaded").then_some(()));
    }

    /// Runs a batch of `true` to its end with all outcomes collected, and gives the seconds that it took.
    pub fn batch(&self, tasks: usize, more: &[&str]) -> f64 {
        self.run(&"true\n".repeat(tasks), more)
    }

    /// The same of these lines.
    pub fn run(&self, lines: &str, more: &[&str]) -> f64 {
        let mut submit = self.submit_lines(lines, more);
        let from = Instant::now();
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

    /// Makes tasks that no worker may run, and waits until the masters know of them what they will.
    pub fn backlog(&self, count: usize) {
        make_backlog(&self.cluster.ensemble.connect, &self.cluster.layout, count);
        let limit = START + LEARN * u32::try_from(count).expect("a sane number");
        eventually(limit, "the leader knows the backlog", || {
            (self.number("/tasks/pending")? == count as u64).then_some(())
        });
        for master in &self.masters {
            master.quiet(limit);
        }
    }

    /// Deletes it again, once the masters have ended: what comes next shall have servers as before.
    pub fn delete_backlog(connect: &str, layout: &Layout, count: usize) {
        let mut client = Client::connect(connect, BACKLOG_IN_FLIGHT);
        let count = u64::try_from(count).expect("a sane number");
        let path = |line| layout.task(&batch_task(None, "backlog", line));
        let delete = |line| Call::Delete { path: path(line), version: None };
        client.pipeline(BACKLOG_IN_FLIGHT, (0..count).map(delete));
    }

    /// Stops the leader, and gives the seconds from the signal until every worker's page carries the new leader's
    /// epoch, as a watching client sees it. Then the old one is started again and stands by.
    pub fn takeover(&mut self, client: &mut Client) -> f64 {
        let old = self.cluster.leader().expect("somebody leads").epoch;
        let dir = self.cluster.layout.assign();
        let pages: Vec<String> = client.children(&dir).iter().map(|name| format!("{dir}/{name}")).collect();
        let mut open: Vec<String> =
            pages.into_iter().filter(|page| epoch(client, page) == Some(old)).collect();
        assert!(!open.is_empty(), "there are pages of the leader");
        let from = Instant::now();
        self.masters[0].term();
        while !open.is_empty() {
            let path = client.wait_change(END).expect("somebody takes over");
            if epoch(client, &path).is_some_and(|epoch| epoch != old) {
                open.retain(|page| *page != path);
            }
        }
        let seconds = from.elapsed().as_secs_f64();
        let exit = self.masters[0].wait_exit(END);
        assert_eq!(exit.code, 0, "{}", last_lines(&exit.stderr));
        self.masters.remove(0);
        let standby = self.new_master();
        self.masters.push(standby);
        self.loaded(1);
        let limit = START + LEARN * u32::try_from(self.number("/tasks/pending").unwrap_or(0)).unwrap_or(0);
        eventually(limit + BATCH, "the leader has read what stands", || {
            self.cluster.leader()?;
            (self.cluster.status()?["loading"] == false).then_some(())
        });
        for master in &self.masters {
            master.quiet(START);
        }
        seconds
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

/// The epoch on a page, which is watched from now on.
fn epoch(client: &mut Client, page: &str) -> Option<i64> {
    let (data, _) = client.get(page, true)?;
    Some(Assignment::decode(&data).ok()?.epoch)
}

/// The end of a log.
pub fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// Tasks of jobs that require what nobody has.
fn make_backlog(connect: &str, layout: &Layout, count: usize) {
    let mut client = Client::connect(connect, BACKLOG_IN_FLIGHT);
    let require = [(NOBODY.0.to_string(), NOBODY.1.to_string())].into_iter().collect();
    let job = Job::new(TaskOptions { require: Some(require), ..TaskOptions::default() }).encode();
    let task = Task::new(Payload::Shell("true".into()), TaskOptions::default()).encode();
    let count = u64::try_from(count).expect("a sane number");
    client.ensure(&layout.tasks(), b"");
    for first in (0..count).step_by(usize::try_from(LINES_PER_PART).expect("a small number")) {
        client.ensure(&layout.job(batch_task(None, "backlog", first).dir()), &job);
        let last = (first + LINES_PER_PART).min(count);
        let create = |line| create(&layout.task(&batch_task(None, "backlog", line)), &task);
        client.pipeline(BACKLOG_IN_FLIGHT, (first..last).map(create));
    }
}

/// The most children of any znode of a root, and the most bytes of any (of tasks only a sample is looked at).
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
