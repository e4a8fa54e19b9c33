//! The parts that the integration tests share: ensembles, processes of the binary, the znode tree, and its history.
//!
//! How to write a test:
//!
//! ```ignore
//! let cluster = Cluster::new("name-of-the-test");          // a root of its own in the shared ensemble
//! let m1 = cluster.master("m1");                           // a process; killed when `m1` is dropped
//! let w1 = cluster.worker("w1", &["--slots", "2"]);
//! let exit = cluster.run(&["submit", "echo hi"]);          // to its end: code, stdout, stderr
//! assert_eq!((exit.code, exit.stdout.as_str()), (0, "hi\n"));
//! let (task, stat) = cluster.task("_3f/01H…").expect("it exists");          // the tree, decoded …
//! let raw = cluster.tree.get("/t-…/status");                                // … and raw
//! cluster.eventually("w1 is registered", LIMIT, || (cluster.registrations().len() == 1).then_some(()));
//! let sets = cluster.history();                            // every write that was ever committed below the root
//! ```
//!
//! - **[`Ensemble`]**: `Ensemble::shared()` (three servers, ticks of 500 ms; don't hurt them), or
//!   `Ensemble::start(n)` for one that may be hurt: `kill(i)`, `stop(i)`, `cont(i)`, `start_again(&[i])`,
//!   `start_no_wait(i)`, `leader()`, `ports()`, `four_letters(i, "mntr")`. Servers are numbered from 1.
//! - **[`Cluster`]**: a root in an ensemble, with what runs on it. `Cluster::on(&ensemble, name)`; settings with
//!   `.with(&["--session-timeout", "9s"])` (the default is [`SESSION`]).
//!   `master`, `worker`, `elector`, `submit` and `start` start a process, `run` waits for its end.
//! - **[`Proc`]**: `term()`, `kill()`, `stop()`, `cont()`, `pid()`, `stdout()`, `stderr()`, `wait_exit(limit)`,
//!   `is_running()`, `cpu()`, `memory()`, `quiet(limit)`. On a panic the end of its standard error is printed.
//! - **[`Tree`]** (`cluster.tree`): `get`, `exists`, `children`, `create`, `set`, `delete`, `dump(root)`, over the
//!   project's own session layer; absolute paths. Reads and writes that could not be sent are tried again.
//! - **[`history::Txn`]** (`cluster.history()`): the servers' transaction log, decoded: each write with its zxid,
//!   its session and what it did, also those that were *refused*. Complete, unlike the events of any watch.
//! - **[`proxy::Proxy`]**: in front of the ensemble for one process (`Cluster::with_zk(&proxy.connect())`); counts what
//!   that asks for, reads and listings too, with no hook in it.
//! - **[`eventually`]**: waits for a condition, with a limit. Tests never sleep "to let things settle".
//!
//! However the test binary ends, a reaper process (a shell that reads a pipe) ends the servers and processes that it
//! left, and removes its folder.

pub mod ensemble;
pub mod history;
pub mod keeper_process;
pub mod process;
pub mod proxy;
pub mod tree;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use zkmw::contract::contender::Contender as Name;
use zkmw::contract::task::Task;
use zkmw::contract::worker::{Assignment, Registration};
use zkmw::contract::{Layout, TaskId, name_of};
use zkmw::machine::Stat;

pub use ensemble::Ensemble;
pub use history::{Op, Txn};
pub use process::{Exit, Proc};
pub use tree::Tree;

/// Long enough for anything that should take a second, on a machine that has other things to do.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The session timeout of the processes that tests start. Much shorter ones let leases lapse on a busy machine: of
/// six seconds a lease has two.
pub const SESSION: Duration = Duration::from_secs(6);

/// How long the death of a process may go unnoticed: its session's timeout, and what the guarantees add to it.
pub const DEATH: Duration = Duration::from_millis(6_000 + 500 + 1_000);

/// A line of the shell by which a task kills its worker: the parent of the keeper of its slot.
pub const KILL_WORKER: &str =
    "keeper=$(cut -d' ' -f4 /proc/$PPID/stat); kill -9 $(cut -d' ' -f4 /proc/$keeper/stat)";

/// Waits until `check` gives something.
///
/// # Panics
/// If it does not within `limit`; the message says that `what` did not happen.
#[track_caller]
pub fn eventually<T>(limit: Duration, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Checks that something holds, over and over, for a while: for what must *not* happen.
#[track_caller]
pub fn throughout(time: Duration, what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert!(check(), "after {:?} it no longer held: {what}", start.elapsed());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Now, as the servers (which run on this machine) write it in a transaction.
pub fn wall_clock_ms() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().expect("a time after 1970");
    i64::try_from(since.as_millis()).expect("a time before the year 292,000,000")
}

/// One contender, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    pub path: String,
    /// The id of its owner.
    pub id: String,
    /// Its czxid: the epoch of its owner when that leads.
    pub epoch: i64,
    pub session: i64,
}

/// A root in an ensemble, and the processes of the binary that a test starts on it.
pub struct Cluster {
    pub ensemble: Arc<Ensemble>,
    pub root: String,
    pub layout: Layout,
    pub tree: Tree,
    dir: PathBuf,
    zk: String,
    program: PathBuf,
    common: Vec<String>,
    started: AtomicU32,
}

impl Cluster {
    /// A root of its own in the shared ensemble.
    pub fn new(name: &str) -> Cluster {
        Cluster::on(&Ensemble::shared(), name)
    }

    /// A root of its own in this ensemble.
    pub fn on(ensemble: &Arc<Ensemble>, name: &str) -> Cluster {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let unique = format!("{name}-{}-{count}", std::process::id());
        let dir = process::base_dir().join(format!("c-{unique}"));
        std::fs::create_dir_all(&dir).expect("a folder");
        std::fs::write(dir.join("empty.toml"), "").expect("a file");
        let root = format!("/t-{unique}");
        Cluster {
            ensemble: Arc::clone(ensemble),
            layout: Layout::new(&root),
            tree: Tree::connect(&ensemble.connect),
            zk: ensemble.connect.clone(),
            program: env!("CARGO_BIN_EXE_zkmw").into(),
            root,
            dir,
            common: vec!["--session-timeout".into(), format!("{}s", SESSION.as_secs())],
            started: AtomicU32::new(0),
        }
    }

    /// Settings for every process started from now on; later ones win.
    pub fn with(mut self, args: &[&str]) -> Cluster {
        self.common.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Another connect string, such as that of one server.
    pub fn with_zk(mut self, zk: &str) -> Cluster {
        self.zk = zk.to_string();
        self
    }

    /// Another build of the binary, which all processes come of.
    pub fn with_program(mut self, program: &Path) -> Cluster {
        self.program = program.to_path_buf();
        self
    }

    /// A folder of the test's own.
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// Starts the binary: `args` begin with the command. `label` names its output files.
    pub fn start(&self, label: &str, args: &[&str]) -> Proc {
        self.start_program(&self.program, label, args, |_| {})
    }

    /// Starts a copy of the binary; `prepare` may change the command before.
    pub fn start_program(
        &self,
        program: &Path,
        label: &str,
        args: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Proc {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let mut all: Vec<String> = vec!["--zk".into(), self.zk.clone(), "--root".into(), self.root.clone()];
        all.extend(["--config".into(), self.dir.join("empty.toml").display().to_string()]);
        all.extend(self.common.clone());
        all.extend(args.iter().map(ToString::to_string));
        Proc::start_program(program, label, &self.dir.join(format!("{number}-{label}")), &all, prepare)
    }

    /// A master.
    pub fn master(&self, id: &str) -> Proc {
        self.start(id, &["master", "--id", id])
    }

    /// A worker, with its run files and logs in the test's folder.
    pub fn worker(&self, id: &str, args: &[&str]) -> Proc {
        let [run_dir, state_dir] = ["run", "state"].map(|name| self.dir.join(name).display().to_string());
        let dirs = ["--run-dir", &run_dir, "--state-dir", &state_dir];
        self.start(id, &[&["worker", "--id", id], &dirs[..], args].concat())
    }

    /// An elector of the election `elections/default` below the root.
    pub fn elector(&self, id: &str, args: &[&str]) -> Proc {
        self.start(id, &[&["elector", "--id", id], args].concat())
    }

    /// A submitter, waiting or not.
    pub fn submit(&self, args: &[&str]) -> Proc {
        self.start("submit", &[&["submit"], args].concat())
    }

    /// Runs a command of the binary to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Exit {
        self.start(args.first().copied().unwrap_or("none"), args).wait_exit(LIMIT)
    }

    /// Puts a task in and gives its id.
    #[track_caller]
    pub fn submit_detached(&self, args: &[&str]) -> TaskId {
        let exit = self.run(&[&["submit", "--detach"], args].concat());
        assert_eq!(exit.code, 0, "{exit:?}");
        TaskId::parse(exit.stdout.trim()).unwrap_or_else(|| panic!("no id: {exit:?}"))
    }

    /// [`eventually`], under the name that reads well.
    #[track_caller]
    pub fn eventually<T>(&self, what: &str, limit: Duration, check: impl FnMut() -> Option<T>) -> T {
        eventually(limit, what, check)
    }

    // The methods below read the present: each writes first, since a follower may answer with the past.

    /// Contenders of the masters, in the order in which they will lead.
    pub fn contenders(&self) -> Vec<Contender> {
        self.contenders_below(&self.layout.master())
    }

    /// Contenders of any election, in the order in which they will lead.
    pub fn contenders_below(&self, dir: &str) -> Vec<Contender> {
        self.tree.sync();
        let mut found = Vec::new();
        for name in self.tree.children(dir).unwrap_or_default() {
            let path = format!("{dir}/{name}");
            if let Some((data, stat)) = self.tree.get(&path) {
                let id = String::from_utf8_lossy(&data).into_owned();
                found.push(Contender { path, id, epoch: stat.czxid, session: stat.ephemeral_owner });
            }
        }
        found.sort_by(|a, b| Name::parse(name_of(&a.path)).cmp(&Name::parse(name_of(&b.path))));
        found
    }

    /// The leader that *says so*: the first contender, if `status` is by it.
    pub fn leader(&self) -> Option<Contender> {
        let first = self.contenders().into_iter().next()?;
        let status = self.status()?;
        (status["leader"]["epoch"] == first.epoch).then_some(first)
    }

    /// Waits until this master leads and has said so.
    #[track_caller]
    pub fn leads(&self, id: &str, limit: Duration) -> Contender {
        eventually(limit, &format!("{id} leads"), || self.leader().filter(|leader| leader.id == id))
    }

    /// The leader's summary.
    pub fn status(&self) -> Option<serde_json::Value> {
        let (data, _) = self.tree.get(&self.layout.status())?;
        serde_json::from_slice(&data).ok()
    }

    /// The registrations: names, contents and stats, in the order of the names.
    pub fn registrations(&self) -> Vec<(String, Registration, Stat)> {
        self.tree.sync();
        let mut found = Vec::new();
        for name in self.tree.children(&self.layout.workers()).unwrap_or_default() {
            let Some((data, stat)) = self.tree.get(&format!("{}/{name}", self.layout.workers())) else {
                continue;
            };
            if let Ok(registration) = Registration::decode(&data) {
                found.push((name, registration, stat));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    /// Waits until these workers, and no others, are registered, each once.
    #[track_caller]
    pub fn registered(&self, ids: &[&str]) {
        eventually(LIMIT, &format!("{ids:?} are registered"), || {
            let names = self.registrations();
            let mut found: Vec<_> = names.iter().filter_map(|(name, ..)| name.split('~').next()).collect();
            found.sort_unstable();
            (found == ids).then_some(())
        });
    }

    /// The assignments: incarnation and content.
    pub fn assignments(&self) -> Vec<(String, Assignment, Stat)> {
        self.tree.sync();
        let mut found = Vec::new();
        for name in self.tree.children(&self.layout.assign()).unwrap_or_default() {
            let Some((data, stat)) = self.tree.get(&format!("{}/{name}", self.layout.assign())) else {
                continue;
            };
            if let Ok(assignment) = Assignment::decode(&data) {
                found.push((name, assignment, stat));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    /// Waits until a worker has the task, and gives its incarnation.
    #[track_caller]
    pub fn assigned(&self, id: &TaskId) -> String {
        eventually(LIMIT, &format!("{id} is assigned"), || self.assigned_to(id))
    }

    /// Waits until there is a task, and gives its id (the first one's).
    #[track_caller]
    pub fn the_task(&self) -> TaskId {
        eventually(LIMIT, "there is a task", || self.tasks().into_iter().next().map(|(id, ..)| id))
    }

    /// Which incarnation has the task, by the assignments; a second one would break G3.
    pub fn assigned_to(&self, id: &TaskId) -> Option<String> {
        let has = |assignment: &Assignment| assignment.entries.iter().any(|entry| entry.task == *id);
        self.assignments().into_iter().find(|(_, assignment, _)| has(assignment)).map(|(name, ..)| name)
    }

    /// A task as it is now.
    pub fn task(&self, id: &TaskId) -> Option<(Task, Stat)> {
        let (data, stat) = self.tree.get(&self.layout.task(id))?;
        Some((Task::decode(&data).expect("a task"), stat))
    }

    /// The directories of all tasks.
    pub fn jobs(&self) -> Vec<String> {
        self.tree.children(&self.layout.tasks()).unwrap_or_default()
    }

    /// All tasks that exist.
    pub fn tasks(&self) -> Vec<(TaskId, Task, Stat)> {
        self.tree.sync();
        let mut found = Vec::new();
        for dir in self.jobs() {
            for name in self.tree.children(&self.layout.job(&dir)).unwrap_or_default() {
                let id = TaskId::new(&dir, &name);
                if let Some((task, stat)) = self.task(&id) {
                    found.push((id, task, stat));
                }
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    /// Waits until the task has an outcome.
    #[track_caller]
    pub fn ended(&self, id: &TaskId, limit: Duration) -> Task {
        eventually(limit, &format!("{id} has an outcome"), || {
            self.task(id).map(|(task, _)| task).filter(|task| task.outcome.is_some())
        })
    }

    /// Every write below the root that was ever committed, or refused (those have no path), in order.
    pub fn history(&self) -> Vec<Txn> {
        let all = history::read(&self.ensemble, &self.tree);
        all.into_iter().filter(|txn| txn.path().is_none_or(|path| path.starts_with(&self.root))).collect()
    }

    /// The writes of assignments: zxid, session, incarnation, what was written.
    pub fn assignment_writes(&self) -> Vec<(Txn, String, Assignment)> {
        let dir = format!("{}/", self.layout.assign());
        let mut writes = Vec::new();
        for txn in self.history() {
            if let Op::Set { path, data, .. } = &txn.op
                && path.starts_with(&dir)
            {
                let assignment = Assignment::decode(data).expect("an assignment");
                writes.push((txn.clone(), name_of(path).to_string(), assignment));
            }
        }
        writes
    }
}
