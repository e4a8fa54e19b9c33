//! The scenarios that zkmw grew out of, named masters/workers/submitters: who fails, and what that costs.

use crate::harness::{Cluster, LIMIT};

#[test]
fn s_1_1_1_all_goes_well() {
    let cluster = Cluster::new("all-well");
    let m1 = cluster.master("m1");
    let _w1 = cluster.worker("w1", &["--slots", "2"]);
    cluster.registered(&["w1"]);
    let leader = cluster.leads("m1", LIMIT);
    let exit = cluster.run(&["submit", "echo out; echo err >&2; exit 7"]);
    assert_eq!((exit.code, exit.stdout.as_str(), exit.stderr.as_str()), (7, "out\n", "err\n"));
    assert_eq!(cluster.status().expect("a summary")["leader"]["pid"], m1.pid());
    assert!(cluster.tasks().is_empty(), "a submitter that has its outcome deletes the task");
    for (_, _, assignment) in cluster.assignment_writes() {
        assert_eq!(assignment.epoch, leader.epoch);
    }
}
