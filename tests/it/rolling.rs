//! A rolling restart of the ensemble under load: every server in turn, while tasks of all lengths run and submitters
//! wait. `ZKMW_ROLLS` says how often.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use zkmw::contract::task::Task;
use zkmw::contract::worker::Assignment;
use zkmw::contract::{TaskId, name_of, parse_registration};

use crate::harness::ensemble::Setup;
use crate::harness::{Cluster, Ensemble, LIMIT, Op, Txn, eventually, history, wall_clock_ms};
use crate::scenarios::{locked, starts};

/// How often every server is restarted when nothing else is said.
const ROLLS: u32 = 10;
/// Submitters that put in one task after the other. More than there are slots, so that tasks wait.
const SUBMITTERS: u32 = 8;
const WORKERS: [&str; 2] = ["w1", "w2"];
const SLOTS: usize = 3;
/// How long tasks take, in seconds: below and above what an election takes.
const LENGTHS: [&str; 6] = ["0", "0.1", "0.4", "1", "2.5", "5"];

/// On a busy machine an election takes up to 7 s. With the default timeout of 10 s a lease lasts for less, and a worker
/// then kills what it runs, as it has to. Here a lease has more than 12 s left at any time.
const SESSION_TIMEOUT: &str = "30s";
/// Servers grant up to twenty of them.
const TICK: Duration = Duration::from_millis(1500);

#[test]
fn g10_a_rolling_restart_under_load_interrupts_nothing() {
    let rolls: u32 =
        std::env::var("ZKMW_ROLLS").map_or(ROLLS, |text| text.parse().expect("a number of rounds"));
    let ensemble = Ensemble::start_with(3, Setup { tick: Some(TICK), ..Setup::default() });
    let cluster = Cluster::on(&ensemble, "rolls").with(&["--session-timeout", SESSION_TIMEOUT]);
    let slots = SLOTS.to_string();
    let _masters = [cluster.master("m1"), cluster.master("m2")];
    let workers: Vec<_> = WORKERS.iter().map(|id| cluster.worker(id, &["--slots", &slots])).collect();
    cluster.registered(&WORKERS);

    let (over, count) = (AtomicBool::new(false), AtomicU32::new(0));
    let restarts = std::thread::scope(|scope| {
        for _ in 0..SUBMITTERS {
            scope.spawn(|| submit_until(&cluster, &over, &count));
        }
        // However this ends, the submitters must.
        let restarts = std::panic::catch_unwind(|| roll(&cluster, rolls));
        over.store(true, Ordering::Relaxed);
        restarts
    });
    let restarts = restarts.unwrap_or_else(|panic| std::panic::resume_unwind(panic));

    let count = count.load(Ordering::Relaxed);
    for number in 0..count {
        let starts = starts(cluster.dir(), &format!("t{number}"));
        assert_eq!(starts.len(), 1, "t{number} was interrupted: {starts:?}");
    }
    let txns = history::read_all(&ensemble, &cluster.tree);
    assert_registered_throughout(&cluster, &txns);
    let lives: BTreeSet<_> = cluster.assignments().into_iter().map(|(incarnation, ..)| incarnation).collect();
    assert_eq!(lives.len(), workers.len(), "each has one incarnation: {lives:?}");
    report_gaps(&cluster, &txns, &restarts);
    eprintln!("{count} tasks ran once each, while {} servers were restarted", restarts.len());
    assert!(count > rolls * SUBMITTERS, "only {count} tasks were under way");
}

/// One task after the other. Each is started once; at another attempt than its first only if it was taken back before
/// that, because another worker had a slot for it (what an incarnation that died had would be known by its next life).
fn submit_until(cluster: &Cluster, over: &AtomicBool, count: &AtomicU32) {
    while !over.load(Ordering::Relaxed) {
        let number = count.fetch_add(1, Ordering::Relaxed);
        let length = LENGTHS[number as usize % LENGTHS.len()];
        let line =
            locked(cluster.dir(), &format!("t{number}"), &format!("sleep {length}; echo $ZKMW_ATTEMPT"));
        let exit = cluster.run(&["submit", &line]);
        let attempts: Vec<_> =
            starts(cluster.dir(), &format!("t{number}")).iter().map(|s| s.attempt).collect();
        let printed = exit.stdout.trim().parse().map(|attempt: u32| vec![attempt]);
        assert_eq!((exit.code, printed), (0, Ok(attempts)), "t{number}: {}", exit.stderr);
    }
}

/// Restarts every server so often. Gives when each restart began, and which it was of.
pub fn roll(cluster: &Cluster, rolls: u32) -> Vec<(i64, u32, bool)> {
    let mut restarts = Vec::new();
    for _ in 0..rolls {
        for server in 1..=3 {
            restarts.push((wall_clock_ms(), server, cluster.ensemble.leader() == server));
            cluster.ensemble.restart(server);
            let now = cluster.tree.sync();
            eventually(LIMIT, "the server has caught up", || {
                let answer = cluster.ensemble.four_letters(server, "srvr")?;
                let zxid = answer.lines().find_map(|line| line.strip_prefix("Zxid: 0x"))?;
                (i64::from_str_radix(zxid.trim(), 16).ok()? >= now).then_some(())
            });
        }
    }
    restarts
}

/// From its first registration on, a worker has one at every zxid.
#[track_caller]
fn assert_registered_throughout(cluster: &Cluster, txns: &[Txn]) {
    let dir = format!("{}/", cluster.layout.workers());
    let mut registered: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
    let mut made = 0;
    let mut last: Option<i64> = None;
    for txn in txns {
        let follows = |before: i64| txn.zxid == before + 1 || txn.zxid >> 32 > before >> 32;
        assert!(last.is_none_or(follows), "the log lacks what is between {last:x?} and {:x}", txn.zxid);
        last = Some(txn.zxid);
        match &txn.op {
            Op::Create { path, .. } if path.starts_with(&dir) => {
                let (incarnation, _) = parse_registration(name_of(path)).expect("a registration");
                let of_worker = registered.entry(incarnation.worker().to_string()).or_default();
                of_worker.insert(path.clone(), txn.session);
                made += 1;
            }
            Op::Delete { path } => registered.values_mut().for_each(|paths| _ = paths.remove(path)),
            Op::SessionEnds => {
                registered.values_mut().for_each(|paths| paths.retain(|_, session| *session != txn.session));
            }
            _ => {}
        }
        let without: Vec<_> =
            registered.iter().filter(|(_, paths)| paths.is_empty()).map(|(id, _)| id).collect();
        assert!(
            without.is_empty(),
            "no registration of {without:?} at zxid {:x}:\n{}",
            txn.zxid,
            around(cluster, txns, txn.zxid)
        );
    }
    assert!(made > WORKERS.len(), "no session of a worker was ever replaced");
    eprintln!("{made} registrations of {} workers, and never none", registered.len());
}

/// The writes that made and ended registrations around this one, each with the servers whose logs have it.
fn around(cluster: &Cluster, txns: &[Txn], zxid: i64) -> String {
    let logs: Vec<BTreeSet<i64>> = (1..=3)
        .map(|server| {
            let folder = cluster.ensemble.dir.join(server.to_string()).join("data/version-2");
            history::read_folder(&folder).into_iter().map(|txn| txn.zxid).collect()
        })
        .collect();
    let dir = format!("{}/", cluster.layout.workers());
    let sessions: BTreeSet<i64> = txns
        .iter()
        .filter(|txn| txn.path().is_some_and(|path| path.starts_with(&dir)))
        .map(|txn| txn.session)
        .collect();
    let concerned = |txn: &&Txn| match &txn.op {
        Op::Create { path, .. } | Op::Delete { path } => path.starts_with(&dir),
        Op::SessionBegins | Op::SessionEnds | Op::Refused { .. } => sessions.contains(&txn.session),
        Op::Set { .. } | Op::Other { .. } => false,
    };
    let of_workers: Vec<&Txn> = txns.iter().filter(concerned).collect();
    let at = of_workers.partition_point(|txn| txn.zxid < zxid);
    let mut text = String::new();
    for txn in &of_workers[at.saturating_sub(20)..(at + 10).min(of_workers.len())] {
        let servers: Vec<_> =
            (1..).zip(&logs).filter(|(_, log)| log.contains(&txn.zxid)).map(|(s, _)| s).collect();
        let what = match &txn.op {
            Op::Create { path, .. } => format!("create {path}"),
            Op::Delete { path } => format!("delete {path}"),
            op => format!("{op:?}"),
        };
        text += &format!("{:x} at {} by {:x}, in {servers:?}: {what}\n", txn.zxid, txn.time_ms, txn.session);
    }
    text
}

/// The tasks that the leader could have assigned, by the log.
#[derive(Default)]
struct Ledger {
    waiting: BTreeSet<TaskId>,
    assignments: BTreeMap<String, Vec<TaskId>>,
    ended: BTreeSet<TaskId>,
}

impl Ledger {
    /// Whether a task waits and a slot is free.
    fn has_work(&self) -> bool {
        let given: BTreeSet<_> = self.assignments.values().flatten().collect();
        let busy = given.iter().filter(|id| !self.ended.contains(**id)).count();
        busy < SLOTS * WORKERS.len() && self.waiting.iter().any(|id| !given.contains(id))
    }

    fn take_in(&mut self, cluster: &Cluster, op: &Op) -> bool {
        let id = |path: &str| cluster.layout.task_at(path);
        match op {
            Op::Create { path, .. } => self.waiting.extend(id(path)),
            Op::Set { path, data, .. } => {
                if let Some(id) = id(path)
                    && Task::decode(data).is_ok_and(|task| task.outcome.is_some())
                {
                    self.waiting.remove(&id);
                    self.ended.insert(id);
                } else if path.starts_with(&cluster.layout.assign()) {
                    let assignment = Assignment::decode(data).expect("an assignment");
                    let entries = assignment.entries.into_iter().map(|entry| entry.task).collect();
                    self.assignments.insert(path.clone(), entries);
                    return true;
                }
            }
            Op::Delete { path } => {
                if let Some(id) = id(path) {
                    self.waiting.remove(&id);
                    self.ended.insert(id);
                }
            }
            _ => {}
        }
        false
    }
}

/// For how long nothing was given out though a task waited and a slot was free, and for how long the ensemble took no
/// write at all, during which no assignment could be made either: for each restart the longest time.
fn report_gaps(cluster: &Cluster, txns: &[Txn], restarts: &[(i64, u32, bool)]) {
    let mut ledger = Ledger::default();
    let mut since: Option<i64> = None;
    let mut gaps = Vec::new();
    for txn in txns {
        let written = ledger.take_in(cluster, &txn.op);
        let has_work = ledger.has_work();
        if let Some(from) = since.filter(|_| written || !has_work) {
            gaps.push((from, txn.time_ms - from));
        }
        since =
            if has_work && !written { since.or(Some(txn.time_ms)) } else { has_work.then_some(txn.time_ms) };
    }
    let times = txns.windows(2).map(|pair| (pair[0].time_ms, pair[1].time_ms - pair[0].time_ms));
    let silences: Vec<_> = times.collect();
    let mut all = Vec::new();
    for (at, (from, server, led)) in restarts.iter().enumerate() {
        let to = restarts.get(at + 1).map_or(i64::MAX, |(next, ..)| *next);
        let within = |(start, length): &&(i64, i64)| *start < to && start + length > *from;
        let longest = |of: &[(i64, i64)]| of.iter().filter(within).map(|(_, ms)| *ms).max().unwrap_or(0);
        let (idle, silent) = (longest(&gaps), longest(&silences));
        let role = if *led { "leader" } else { "follower" };
        eprintln!(
            "restart {:2}, server {server}, {role:8}: work waited for at most {idle} ms, no write for {silent} ms",
            at + 1
        );
        all.push(idle.max(silent));
    }
    all.sort_unstable();
    // Not by a macro, whose lines are shown only of tests that fail.
    let _ = writeln!(
        std::io::stderr(),
        "no assignment could be made: {} ms at most, {} ms as a median",
        all[all.len() - 1],
        all[all.len() / 2]
    );
    // Or the log was not understood: a server that leads cannot be restarted without anything waiting for it.
    assert!(all[all.len() - 1] > 0, "no gap was seen at all");
}
