//! A server that throttles requests refuses some of any kind, for a moment. Nothing may be left undone for that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use zkmw::machine::Call;

use crate::harness::ensemble::Setup;
use crate::harness::tree::Tree;
use crate::harness::{Cluster, Ensemble, Proc, eventually};

/// Takes one request at a time, and refuses what has waited for more than two milliseconds.
const THROTTLES: &str = "-Dzookeeper.request_throttle_max_requests=1 -Dzookeeper.throttled_op_wait_time=2";

/// Writers at once: as many requests wait at the server, so that any other waits for too long.
const WRITERS: usize = 16;

/// The writers write for so long, then they pause for as long: a server that took nothing at all would be another test.
const SPELL: Duration = Duration::from_millis(300);

const TASKS: usize = 200;

/// A flooded server is slow.
const ENDED_WITHIN: Duration = Duration::from_secs(60);

/// Writes to a znode by turns, until it has to stop.
fn flood(tree: &Tree, stop: &AtomicBool) {
    let start = Instant::now();
    while !stop.load(Ordering::SeqCst) {
        let turn = start.elapsed().as_millis() / SPELL.as_millis();
        if turn.is_multiple_of(2) {
            let _ = tree.call(&Call::Set { path: "/flood".into(), data: vec![7; 1_000], version: 1 });
        } else {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Ends the flood, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn under_throttling_every_task_ends_and_none_is_quarantined() {
    let setup = Setup { java_options: THROTTLES.to_string(), ..Setup::default() };
    let ensemble = Ensemble::start_with(1, setup);
    let cluster = Cluster::on(&ensemble, "throttled");
    let mut maker = cluster.master("maker");
    cluster.leads("maker", Duration::from_secs(20));
    // Each task has to be read by the leader that comes later, and its job by the worker.
    for job in ["one", "two"] {
        let lines = cluster.dir().join(job);
        std::fs::write(&lines, "true\n".repeat(TASKS / 2)).expect("a batch");
        let lines = lines.display().to_string();
        let args = [
            &["submit", "--detach", "--job", job, "--id", job, "--chunk", "1"][..],
            &["--max-attempts", "2", "--from-file", &lines],
        ]
        .concat();
        // A batch is a flood itself, and a create that is refused may exceed a quota. Then it says: try again.
        eventually(ENDED_WITHIN, "a batch is made", || (cluster.run(&args).code == 0).then_some(()));
    }
    maker.term();
    maker.wait_exit(Duration::from_secs(20));
    let _ = cluster.tree.create("/flood", b"");
    let (tree, stop) = (Tree::connect(&ensemble.connect), AtomicBool::new(false));
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        for _ in 0..WRITERS {
            scope.spawn(|| flood(&tree, &stop));
        }
        let (master, worker) = (cluster.master("m"), cluster.worker("w", &["--slots", "4"]));
        eventually(ENDED_WITHIN, "all tasks end", || (ended(&cluster) == TASKS).then_some(()));
        eventually(ENDED_WITHIN, "the leader knows it", || (known(&cluster) == TASKS as u64).then_some(()));
        assert_reads_were_repeated(&[&master, &worker]);
    });
}

/// How many tasks have an outcome.
fn ended(cluster: &Cluster) -> usize {
    let tree = &cluster.tree;
    let names = |path: &str| tree.children(path).unwrap_or_default();
    let has_outcome = |path: &str| {
        let read = tree.get(path).map(|(data, _)| String::from_utf8_lossy(&data).contains("\"outcome\""));
        read.unwrap_or_default()
    };
    let ended = |job: String| {
        let job = cluster.layout.job(&job);
        names(&job).iter().filter(|name| has_outcome(&format!("{job}/{name}"))).count()
    };
    cluster.jobs().into_iter().map(ended).sum()
}

/// How many the leader says have ended well.
fn known(cluster: &Cluster) -> u64 {
    let status = cluster.tree.get(&cluster.layout.status()).map(|(data, _)| data).unwrap_or_default();
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap_or_default();
    status["tasks"]["done"].as_u64().unwrap_or_default()
}

/// Reads were refused, and made again; nothing was given up for that.
fn assert_reads_were_repeated(processes: &[&Proc]) {
    let logs: Vec<String> = processes.iter().map(|process| process.stderr()).collect();
    assert!(logs.iter().any(|log| log.contains("refuses for now to")), "nothing was throttled: {logs:#?}");
    for log in logs {
        assert!(!log.contains("quarantined") && !log.contains("given up"), "{log}");
    }
}
