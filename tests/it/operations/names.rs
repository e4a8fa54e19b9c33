//! Tasks in no job, named by their ULID or their key alone.

use zkmw::contract::TaskId;

use crate::harness::LIMIT;
use crate::plain::{Plain, Service};

#[test]
fn a_task_in_no_job_is_known_by_its_name_alone() {
    let service = Service::new("names", &["--slots", "2"]);
    let cluster = &service.cluster;
    let run = |args: &[&str]| Plain::on(cluster, args).run();
    let long = cluster.submit_detached(&["sleep 1000"]);
    let (_, ulid) = long.as_str().split_once('/').expect("an id");
    let shown = run(&["show", ulid]);
    assert!(shown.code == 0 && shown.text().starts_with(&format!("id        {long}\n")), "{shown:?}");
    let out = run(&["cancel", ulid]);
    assert_eq!((out.code, out.text()), (0, format!("{long}: is being cancelled\n")));
    let out = run(&["wait", ulid]);
    assert!(out.code == 1 && out.stderr.contains(&format!("the task {long} was cancelled")), "{out:?}");

    let out = run(&["submit", "--detach", "--id", "nightly", "exit 3"]);
    let keyed = TaskId::parse(out.text().trim()).expect("an id");
    cluster.ended(&keyed, LIMIT);
    assert_eq!(run(&["wait", "nightly"]).code, 3);
    // A job may have the same name, so only its whole id changes it.
    run(&["retry", "nightly"]).says(65, &["nightly: no such job"]);
    assert_eq!(run(&["retry", keyed.as_str()]).code, 0);
    run(&["wait", "nobody"]).says(65, &["there is no job nobody"]);
    run(&["show", "nightly"]).says(64, &["nightly is a job", keyed.as_str()]);
}
