//! Shares of chunks on real workers: no slot idles beside lines that were not started, and a line that kills its
//! workers is blamed alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::process::Proc;
use crate::harness::{Cluster, KILL_WORKER, LIMIT, eventually};

/// Which worker ran which line, in the order of their starts.
fn starts(file: &Path) -> Vec<(String, u32)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let pair = |line: &str| {
        let (worker, number) = line.split_once(' ')?;
        Some((worker.to_string(), number.parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn batch(cluster: &Cluster, lines: impl Iterator<Item = String>) -> String {
    let path = cluster.dir().join("batch");
    fs::write(&path, lines.collect::<Vec<_>>().join("\n")).expect("written");
    path.display().to_string()
}

/// A line that says that it starts, and does this.
fn noted(file: &Path, number: u32, then: &str) -> String {
    format!("echo $ZKMW_WORKER {number} >>{}; {then}", file.display())
}

/// A batch of 200 lines, of which the 90th kills its worker each time. The test starts the workers
/// again, as systemd would.
#[test]
fn g11_a_poison_line_fails_alone_and_its_neighbours_succeed() {
    let cluster = Cluster::new("poison-line");
    let _m1 = cluster.master("m1");
    let new = |id: &str| cluster.worker(id, &["--slots", "3"]);
    let mut workers: BTreeMap<&str, Proc> = ["w1", "w2"].map(|id| (id, new(id))).into();
    cluster.registered(&["w1", "w2"]);
    let ran = cluster.dir().join("ran");
    let line = |number: u32| {
        let kill = format!("{KILL_WORKER}; sleep 600");
        noted(&ran, number, if number == 90 { &kill } else { "sleep .02" })
    };
    let file = batch(&cluster, (1..=200).map(line));
    let begin = Instant::now();
    let mut submit = cluster.submit(&["--from-file", &file, "--chunk", "50"]);
    let mut deaths = 0;
    eventually(Duration::from_secs(60), "the batch is over", || {
        for (id, worker) in &mut workers {
            if !worker.is_running() {
                deaths += 1;
                *worker = new(id);
            }
        }
        (!submit.is_running()).then_some(())
    });
    let exit = submit.wait_exit(LIMIT);
    eprintln!("199 done and 1 blamed after {deaths} deaths, in {:?}", begin.elapsed());
    assert_eq!(exit.code, 1, "{}", exit.stderr);
    assert!(exit.stderr.contains("200 tasks: 199 succeeded, 1 failed"), "{}", exit.stderr);
    assert!(exit.stderr.contains("/90 was given up"), "{}", exit.stderr);
    assert_eq!(deaths, 3, "as often as a line may run");
    let mut times: BTreeMap<u32, usize> = BTreeMap::new();
    starts(&ran).iter().for_each(|(_, number)| *times.entry(*number).or_default() += 1);
    assert_eq!((times.len(), times[&90]), (200, 3));
    let again: Vec<_> = times.iter().filter(|(number, times)| **number != 90 && **times > 1).collect();
    assert!(again.len() <= 60 && again.iter().all(|(_, times)| **times <= 3), "{again:?}");
}

/// One worker has all lines, and is suspended. Lines that it has not started go to another that comes.
#[test]
fn the_unstarted_lines_of_a_suspended_worker_go_to_another() {
    let cluster = Cluster::new("stopped-share");
    let _m1 = cluster.master("m1");
    let w1 = cluster.worker("w1", &["--slots", "2"]);
    cluster.registered(&["w1"]);
    let ran = cluster.dir().join("ran");
    let file = batch(&cluster, (1..=20).map(|number| noted(&ran, number, "sleep .8")));
    let mut submit = cluster.submit(&["--from-file", &file, "--chunk", "20"]);
    eventually(LIMIT, "it runs, and its window is known", || {
        let (_, task, _) = cluster.tasks().pop()?;
        task.shares.first()?.ahead.filter(|ahead| *ahead < 10)
    });
    w1.stop();
    let before = starts(&ran).len();
    let _w2 = cluster.worker("w2", &["--slots", "2"]);
    eventually(Duration::from_secs(5), "the other runs what it has not started", || {
        starts(&ran).iter().any(|(worker, _)| worker.starts_with("w2")).then_some(())
    });
    w1.cont();
    let exit = submit.wait_exit(LIMIT);
    assert_eq!(exit.code, 0, "{}", exit.stderr);
    let all = starts(&ran);
    let mut numbers: Vec<u32> = all.iter().map(|(_, number)| *number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=20).collect::<Vec<_>>(), "each line ran once; {before} before it was suspended");
    let (own, others): (Vec<_>, Vec<_>) = all.iter().partition(|(worker, _)| worker.starts_with("w1"));
    assert!(own.len() >= 4 && others.len() >= 6, "both had their part: {all:?}");
}

/// A worker that is to end keeps what runs, for as long as its grace lasts, and nothing else.
#[test]
fn the_unstarted_lines_of_a_drain_go_to_another_at_once() {
    let cluster = Cluster::new("drained-share");
    let _m1 = cluster.master("m1");
    let mut w1 = cluster.worker("w1", &["--slots", "2", "--grace", "20s"]);
    cluster.registered(&["w1"]);
    let (ran, gate) = (cluster.dir().join("ran"), cluster.dir().join("gate"));
    let wait = format!("until [ -e {} ]; do sleep .05; done", gate.display());
    let line = |number: u32| noted(&ran, number, if number <= 2 { wait.as_str() } else { "true" });
    let file = batch(&cluster, (1..=12).map(line));
    let mut submit = cluster.submit(&["--from-file", &file, "--chunk", "12"]);
    eventually(LIMIT, "it runs, and its window is known", || {
        let (_, task, _) = cluster.tasks().pop()?;
        task.shares.first()?.ahead
    });
    let _w2 = cluster.worker("w2", &["--slots", "2"]);
    w1.term();
    eventually(Duration::from_secs(5), "the other has run all the rest", || {
        (starts(&ran).len() == 12).then_some(())
    });
    fs::write(&gate, "").expect("opened");
    assert_eq!(submit.wait_exit(LIMIT).code, 0);
    assert_eq!(w1.wait_exit(LIMIT).code, 0);
    let own = starts(&ran).into_iter().filter(|(worker, _)| worker.starts_with("w1")).count();
    assert_eq!((own, starts(&ran).len()), (2, 12), "nothing ran twice");
}
