//! The short form of the benchmark: the budget's counts and sizes, which no noise touches. One batch is run,
//! every process behind a proxy of its own that counts what it asks for, and the transaction log is read afterwards;
//! each test then checks one figure. Must not judge times: `scripts/bench` does.

use std::fmt::Write as _;
use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use crate::harness::proxy::{Counts, Proxy};
use crate::harness::{Cluster, Ensemble, LIMIT, Op, Proc, eventually};

/// Tasks of the batch.
const TASKS: u32 = 2_000;
/// Lines of the quick batch: enough for chunks of full size on all slots.
const LINES: u32 = 40_000;

/// Workers, and slots of each.
const WORKERS: u32 = 2;
const SLOTS: &str = "8";

/// The longest that the tests' servers grant: leases and heartbeats shall not count for much.
const SESSION: &str = "10s";

/// Tasks that are run before anything is counted, so that every slot has a handler: sixteen interpreters that start
/// at once on a busy machine take seconds.
const WARM_UP: u32 = 64;

/// The quickest that there is to run tasks.
const HANDLER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/handler.py");

/// How long a batch may take on a busy machine.
const BATCH: Duration = Duration::from_secs(240);

/// How long nothing is done, to see that nothing is written.
const IDLE: Duration = Duration::from_secs(6);

/// Pending tasks before memory is first measured, so that all threads have what they need, and from then on.
const PENDING_FIRST: u32 = 3_000;
const PENDING_MORE: u32 = 30_000;

/// Reads that a batch costs once, however many tasks it has, such as of its directory. The figures for a task leave
/// them out.
const ONCE_A_BATCH: u64 = 20;

/// Bounds of the budget for tasks that have a znode each. Each is read by the leader, by its worker unless its entry
/// carried it along, and, when it has ended, by the leader and its submitter; the rest is a share of assignments and
/// registrations.
const WRITES_A_TASK: f64 = 3.1;
const READS_A_TASK: f64 = 4.0;
const STANDBY_READS_A_TASK: f64 = 2.0;

/// The same bounds for lines of a batch without flags, which end as fast as possible.
const WRITES_A_LINE: f64 = 0.06;
const READS_A_LINE: f64 = 0.06;
const BYTES_A_TASK: f64 = 1_024.0;

/// A process, alone behind its proxy.
struct Watched {
    role: String,
    proxy: Proxy,
    proc: Proc,
}

/// The counts of one role.
struct RoleFigures {
    role: String,
    /// From the first submit to the last outcome that was collected.
    batch: Counts,
    /// While there was nothing to do.
    idle: Counts,
    /// Paths that were listed, from the beginning on.
    listings: Vec<String>,
}

/// The figures of one run.
struct Figures {
    /// Tasks, or lines, of the batch.
    of: u32,
    roles: Vec<RoleFigures>,
    /// Writes below the root, by what is at the top of their path: of the batch, and while idle.
    written: Counted,
    written_idle: Counted,
    /// Why tasks got on to another attempt, each of which is one more write.
    again: Counted,
}

/// How many, by what.
type Counted = std::collections::BTreeMap<String, u64>;

fn behind(outside: &Cluster, role: &str, start: impl FnOnce(&Cluster) -> Proc) -> Watched {
    let proxy = Proxy::start(&outside.ensemble.connect, &outside.root);
    let cluster = Cluster::on(&outside.ensemble, &format!("{}-{role}", outside.root.trim_start_matches('/')))
        .with(&["--session-timeout", SESSION, "--root", &outside.root])
        .with_zk(&proxy.connect());
    let proc = start(&cluster);
    Watched { role: role.to_string(), proxy, proc }
}

/// A file with a batch of cheap tasks.
fn batch_file(cluster: &Cluster, tasks: u32, command: &str) -> String {
    let path = cluster.dir().join(format!("batch-{tasks}"));
    fs::write(&path, format!("{command}\n").repeat(tasks as usize)).expect("a file");
    path.display().to_string()
}

/// All figures; the first that asks has them measured.
fn figures() -> &'static Figures {
    static FIGURES: OnceLock<Figures> = OnceLock::new();
    FIGURES.get_or_init(|| measure("budget", &[], "true", &["--chunk", "1"], TASKS))
}

/// Likewise, of a batch without any flag, whose lines take next to no time.
fn quick_figures() -> &'static Figures {
    static FIGURES: OnceLock<Figures> = OnceLock::new();
    FIGURES.get_or_init(|| measure("budget-quick", &["--handler", HANDLER], "add 1 2", &[], LINES))
}

fn measure(name: &str, executor: &[&str], command: &str, chunks: &[&str], of: u32) -> Figures {
    let outside = Cluster::on(&Ensemble::shared(), name);
    let leader = behind(&outside, "leader", |cluster| cluster.master("m1"));
    outside.leads("m1", LIMIT);
    let standby = behind(&outside, "standby", |cluster| cluster.master("m2"));
    eventually(LIMIT, "the standby has loaded", || {
        standby.proc.stderr().contains("tasks loaded").then_some(())
    });
    let mut all = vec![leader, standby];
    for number in 1..=WORKERS {
        let id = format!("w{number}");
        let args = [&["--slots", SLOTS], executor].concat();
        all.push(behind(&outside, &id, |cluster| cluster.worker(&id, &args)));
    }
    outside.registered(&["w1", "w2"]);
    eventually(LIMIT, "the leader knows its workers", || {
        (outside.status()?["workers"] == WORKERS).then_some(())
    });
    let warm_up = outside
        .submit(&["--chunk", "1", "--from-file", &batch_file(&outside, WARM_UP, command)])
        .wait_exit(BATCH);
    assert_eq!(warm_up.code, 0, "{}", warm_up.stderr);
    at_rest(&outside);
    let before: Vec<Counts> = all.iter().map(|one| one.proxy.counts()).collect();
    let from = outside.tree.sync();
    let file = batch_file(&outside, of, command);
    let args = [chunks, &["--from-file", &file]].concat();
    let mut submitter = behind(&outside, "submitter", |cluster| cluster.submit(&args));
    let exit = submitter.proc.wait_exit(BATCH);
    assert_eq!(exit.code, 0, "{}", exit.stderr);
    at_rest(&outside);
    let done: Vec<Counts> = all.iter().map(|one| one.proxy.counts()).collect();
    let rest = outside.tree.sync();
    // Nothing may happen now: this time is the measurement.
    std::thread::sleep(IDLE);
    let end = outside.tree.sync();
    let mut roles: Vec<RoleFigures> = all
        .iter()
        .zip(before.iter().zip(&done))
        .map(|(one, (before, done))| RoleFigures {
            role: one.role.clone(),
            batch: done.since(before),
            idle: one.proxy.counts().since(done),
            listings: one.proxy.listings(),
        })
        .collect();
    roles.push(RoleFigures {
        role: submitter.role,
        batch: submitter.proxy.counts(),
        idle: Counts::default(),
        listings: submitter.proxy.listings(),
    });
    Figures {
        of,
        roles,
        written: written(&outside, from, rest),
        written_idle: written(&outside, rest, end),
        again: again(&outside, from, rest),
    }
}

/// Waits until every entry is removed and the summary says so: nothing is left to be written then.
fn at_rest(cluster: &Cluster) {
    eventually(LIMIT, "all entries are removed", || {
        cluster.assignments().iter().all(|(_, assignment, _)| assignment.entries.is_empty()).then_some(())
    });
    eventually(LIMIT, "the summary says that nothing is left", || {
        let tasks = cluster.status()?["tasks"].clone();
        let left = ["pending", "assigned", "running", "done", "failed"].iter().any(|state| tasks[state] != 0);
        (!left).then_some(())
    });
    eventually(LIMIT, "no task is left", || {
        let has_none = |path: String| cluster.tree.children(&path).is_none_or(|all| all.is_empty());
        cluster.jobs().iter().all(|part| has_none(cluster.layout.job(part))).then_some(())
    });
}

/// Writes below the root between two moments, by the kind of znode.
fn written(cluster: &Cluster, from: i64, to: i64) -> Counted {
    let mut counted = Counted::new();
    for txn in cluster.history().iter().filter(|txn| txn.zxid > from && txn.zxid <= to) {
        if let Some(path) = txn.path() {
            let below = path.strip_prefix(&cluster.root).unwrap_or_default().trim_start_matches('/');
            let kind = below.split('/').next().unwrap_or_default();
            *counted.entry(kind.to_string()).or_insert(0) += 1;
        }
    }
    counted
}

/// The last remark of each task that was set without an outcome, between two moments.
fn again(cluster: &Cluster, from: i64, to: i64) -> Counted {
    let mut counted = Counted::new();
    for txn in cluster.history().iter().filter(|txn| txn.zxid > from && txn.zxid <= to) {
        let Op::Set { path, data, .. } = &txn.op else { continue };
        let Some(task) = cluster.layout.task_at(path).map(|_| as_json(data)) else { continue };
        let last = task["history"].as_array().and_then(|history| history.last());
        if let Some(remark) = last.filter(|_| task["outcome"].is_null()) {
            *counted.entry(remark["why"].to_string()).or_insert(0) += 1;
        }
    }
    counted
}

fn as_json(data: &[u8]) -> serde_json::Value {
    serde_json::from_slice(data).unwrap_or_default()
}

/// The requests of each role, for a message.
fn requests(figures: &Figures) -> String {
    let mut text = format!("written: {:?}\nanother attempt: {:?}\n", figures.written, figures.again);
    for role in &figures.roles {
        let _ = writeln!(text, "{}: {}", role.role, role.batch);
    }
    text
}

/// Reads of the batch, for each of its tasks or lines.
fn reads_each(reads: u64, figures: &Figures) -> f64 {
    reads.saturating_sub(ONCE_A_BATCH) as f64 / f64::from(figures.of)
}

#[track_caller]
fn at_most(figure: f64, bound: f64, what: &str) {
    assert!(figure <= bound, "{figure:.3} is more than {bound}: {what}");
    println!("{figure:.3} of {bound}: {what}");
}

/// Two ways of counting: requests, and committed writes. If they differed, neither count would mean anything.
#[test]
fn budget_is_counted_alike_by_proxies_and_log() {
    let figures = figures();
    let writes = |role: &RoleFigures| role.batch.at("tasks").writes();
    let asked: u64 = figures.roles.iter().map(writes).sum();
    let committed = figures.written["tasks"];
    // Refused requests are in one count only.
    assert!(committed <= asked && asked <= committed + committed / 100, "{}", requests(figures));
}

#[test]
fn budget_writes_per_task() {
    for (figures, bound) in [(figures(), WRITES_A_TASK), (quick_figures(), WRITES_A_LINE)] {
        let writes: u64 = figures.written.values().sum();
        at_most(
            writes as f64 / f64::from(figures.of),
            bound,
            &format!("writes a task\n{}", requests(figures)),
        );
    }
}

#[test]
fn budget_reads_per_task() {
    for (figures, bound) in [(figures(), READS_A_TASK), (quick_figures(), READS_A_LINE)] {
        let roles = figures.roles.iter().filter(|role| role.role != "standby");
        let reads: u64 = roles.map(|role| role.batch.below_root().reads()).sum();
        at_most(reads_each(reads, figures), bound, &format!("reads a task\n{}", requests(figures)));
    }
}

#[test]
fn budget_reads_of_a_standby_per_task() {
    let figures = figures();
    let standby = figures.roles.iter().find(|role| role.role == "standby").expect("there is one");
    let reads = reads_each(standby.batch.below_root().reads(), figures);
    at_most(reads, STANDBY_READS_A_TASK, &format!("a standby's reads a task\n{}", requests(figures)));
}

#[test]
fn budget_nothing_is_listed_again() {
    for role in figures().roles.iter().filter(|role| role.role != "submitter") {
        let listings = role.batch.listings() + role.idle.listings();
        assert_eq!(listings, 0, "{} listed again; all it ever listed: {:#?}", role.role, role.listings);
    }
}

#[test]
fn budget_idle_roles_write_nothing() {
    let figures = figures();
    assert!(figures.written_idle.is_empty(), "written while idle: {:?}", figures.written_idle);
    for role in &figures.roles {
        assert_eq!(role.idle.writes(), 0, "{} wrote while idle: {}", role.role, role.idle);
    }
}

#[test]
fn budget_memory_per_pending_task() {
    let cluster = Cluster::on(&Ensemble::shared(), "budget-memory").with(&["--session-timeout", SESSION]);
    let leader = cluster.master("m1");
    cluster.leads("m1", LIMIT);
    let mut known = 0;
    let mut make = |count: u32| {
        known += count;
        let file = batch_file(&cluster, count, "true");
        let args = ["--detach", "--chunk", "1", "--require", "nobody=has-this", "--from-file", &file];
        let exit = cluster.submit(&args).wait_exit(BATCH);
        assert_eq!(exit.code, 0, "{}", exit.stderr);
        eventually(BATCH, "the leader knows them", || {
            (cluster.status()?["tasks"]["pending"] == known).then_some(())
        });
        leader.quiet(LIMIT);
        leader.memory()
    };
    let before = make(PENDING_FIRST);
    let after = make(PENDING_MORE);
    let each = after.saturating_sub(before) as f64 / f64::from(PENDING_MORE);
    at_most(each, BYTES_A_TASK, &format!("bytes of the leader's memory a pending task, {before} to {after}"));
}
