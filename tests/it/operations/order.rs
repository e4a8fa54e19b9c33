//! Which task goes first, and where it goes.

use std::fs;
use std::path::PathBuf;

use zkmw::contract::TaskId;

use crate::harness::{Cluster, LIMIT, eventually};
use crate::plain::Service;

/// A worker with one slot, which is taken until [`Queue::open`]; what is added meanwhile notes when it ran.
struct Queue {
    service: Service,
    gate: PathBuf,
    order: PathBuf,
    last: Vec<TaskId>,
}

impl Queue {
    fn new(name: &str) -> Queue {
        let service = Service::new(name, &["--slots", "1"]);
        let (gate, order) = (service.cluster.dir().join("gate"), service.cluster.dir().join("order"));
        let line = format!("until [ -e {} ]; do sleep .02; done", gate.display());
        let id = service.cluster.submit_detached(&["--priority", "1000", &line]);
        service.cluster.assigned(&id);
        Queue { service, gate, order, last: Vec::new() }
    }

    fn add(&mut self, what: &str, args: &[&str]) {
        let line = format!("echo {what} >>{}", self.order.display());
        self.last.push(self.service.cluster.submit_detached(&[args, &[&line]].concat()));
    }

    /// Frees the slot once the leader knows of all, and gives the order in which they ran.
    fn open(&self) -> Vec<String> {
        let cluster = &self.service.cluster;
        eventually(LIMIT, "the leader knows all", || {
            cluster.status().filter(|status| status["tasks"]["pending"] == self.last.len())
        });
        fs::write(&self.gate, "").expect("opened");
        for id in &self.last {
            cluster.ended(id, LIMIT);
        }
        fs::read_to_string(&self.order).expect("written").lines().map(str::to_string).collect()
    }
}

#[test]
fn a_higher_priority_always_goes_first() {
    let mut queue = Queue::new("priorities");
    for (what, priority) in
        [("low", "-5"), ("mid-1", "0"), ("high-1", "5"), ("mid-2", "0"), ("top", "6"), ("high-2", "5")]
    {
        // In one job, so that no turn-taking between jobs plays a part.
        queue.add(what, &["--priority", priority, "--job", "one"]);
    }
    assert_eq!(queue.open(), ["top", "high-1", "high-2", "mid-1", "mid-2", "low"]);
}

#[test]
fn jobs_of_one_priority_take_turns_and_each_keeps_its_order() {
    let mut queue = Queue::new("turns");
    for n in 1..=6 {
        queue.add(&format!("big-{n}"), &["--job", "big"]);
    }
    for n in 1..=3 {
        queue.add(&format!("small-{n}"), &["--job", "small"]);
    }
    let order = queue.open();
    for job in ["big", "small"] {
        let of_job: Vec<&String> = order.iter().filter(|what| what.starts_with(job)).collect();
        assert!(of_job.is_sorted(), "in the order of creation: {order:?}");
    }
    let first: Vec<&str> = order[..6].iter().filter_map(|what| what.split('-').next()).collect();
    assert!(first.windows(2).all(|two| two[0] != two[1]), "they take turns: {order:?}");
}

#[test]
fn a_task_goes_only_where_all_its_labels_are() {
    let cluster = Cluster::new("labels");
    let _master = cluster.master("m1");
    let _plain = cluster.worker("plain", &["--slots", "4"]);
    let _gpu = cluster.worker("gpu", &["--slots", "4", "--label", "gpu=yes", "--label", "zone=eu1"]);
    let _other = cluster.worker("other", &["--slots", "4", "--label", "gpu=no", "--label", "zone=eu1"]);
    cluster.registered(&["gpu", "other", "plain"]);
    let unassigned = cluster.submit_detached(&["--require", "gpu=yes", "--require", "zone=us1", "true"]);
    for (require, allowed) in [
        (&["--require", "gpu=yes"][..], &["gpu"][..]),
        (&["--require", "gpu=yes", "--require", "zone=eu1"], &["gpu"]),
        (&["--require", "gpu=no"], &["other"]),
        (&["--require", "zone=eu1"], &["gpu", "other"]),
        (&[], &["gpu", "other", "plain"]),
    ] {
        for _ in 0..3 {
            let exit = cluster.run(&[&["submit"], require, &["echo $ZKMW_WORKER"]].concat());
            let worker = exit.stdout.trim().split('~').next().expect("a name").to_string();
            assert!(allowed.contains(&worker.as_str()), "{require:?} ran on {worker}");
        }
    }
    assert!(cluster.task(&unassigned).expect("it waits").0.outcome.is_none());
    assert_eq!(cluster.assigned_to(&unassigned), None);
    // The worker that it waits for comes, and it runs at once.
    let _late = cluster.worker("late", &["--label", "gpu=yes", "--label", "zone=us1"]);
    let outcome = cluster.ended(&unassigned, LIMIT).outcome.expect("ended");
    assert!(outcome.worker.expect("a worker").as_str().starts_with("late~"));
}

#[test]
fn the_least_loaded_worker_gets_the_next_task() {
    let cluster = Cluster::new("least-loaded");
    let _master = cluster.master("m1");
    let _w1 = cluster.worker("w1", &["--slots", "3", "--label", "mine=w1"]);
    let _w2 = cluster.worker("w2", &["--slots", "3", "--label", "mine=w2"]);
    cluster.registered(&["w1", "w2"]);
    let worker_of = |args: &[&str]| {
        let id = cluster.submit_detached(&[args, &["sleep 100"]].concat());
        cluster.assigned(&id).split('~').next().expect("a name").to_string()
    };
    for _ in 0..2 {
        assert_eq!(worker_of(&["--require", "mine=w1"]), "w1");
    }
    assert_eq!([worker_of(&[]), worker_of(&[])], ["w2", "w2"], "where there is less to do");
    let mut last = [worker_of(&[]), worker_of(&[])];
    last.sort();
    assert_eq!(last, ["w1", "w2"], "then one each");
    // All slots are taken: the next one waits with the leader, and is assigned to no worker.
    let waits = cluster.submit_detached(&["echo ran"]);
    eventually(LIMIT, "it is counted", || cluster.status().filter(|status| status["tasks"]["pending"] == 1));
    assert_eq!(cluster.assigned_to(&waits), None);
}
