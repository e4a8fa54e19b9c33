//! Admission: a service without room refuses a submit before anything is made.

use crate::harness::{Cluster, LIMIT, Proc, eventually};
use crate::plain::{Out, Plain, json_lines};

/// A service without a worker whose leader has these limits.
fn limited(name: &str, limits: &[&str]) -> (Cluster, Proc) {
    let cluster = Cluster::new(name);
    let master = cluster.start("m1", &[&["master", "--id", "m1"], limits].concat());
    cluster.leads("m1", LIMIT);
    (cluster, master)
}

fn submit(cluster: &Cluster, args: &[&str], lines: &str) -> Out {
    Plain::on(cluster, &[&["submit"], args].concat()).stdin(lines.as_bytes()).run()
}

/// Waits until the leader says so.
fn says(cluster: &Cluster, what: &str, value: u64) {
    let said = || {
        let status = cluster.status()?;
        status.pointer(what).filter(|said| **said == value).map(|_| ())
    };
    eventually(LIMIT, &format!("the leader says that {what} is {value}"), said);
}

#[test]
fn g08_what_is_pending_has_a_limit() {
    let (cluster, _master) = limited("admission", &["--max-pending", "100"]);
    let out = submit(&cluster, &["--from-file", "-", "--detach"], &"true\n".repeat(200));
    out.says(73, &["0 tasks are pending", "200 more", "the 100", "--max-pending", "nothing was submitted"]);
    let made = cluster.tree.children(&cluster.layout.tasks()).unwrap_or_default();
    assert!(out.stdout.is_empty() && made.is_empty(), "{made:?}");

    let nightly = ["--detach", "--id", "nightly", "true"];
    let id = submit(&cluster, &nightly, "").text();
    let keyed = ["--from-file", "-", "--detach", "--job", "whole", "--id", "day"];
    let lines = "true\n".repeat(99);
    submit(&cluster, &keyed, &lines).says(0, &["99 tasks submitted"]);
    says(&cluster, "/tasks/pending", 100);
    let status = Plain::on(&cluster, &["status"]).run();
    assert!(status.text().contains("\nlimits   100 of 100 pending, "), "{}", status.text());
    let status = &json_lines(&Plain::on(&cluster, &["status", "--json"]).run().text())[0];
    let bytes: usize = cluster.tasks().iter().map(|(_, task, _)| task.encode().len()).sum();
    let admission = serde_json::json!({"bytes": bytes, "max_pending": 100, "max_pending_bytes": 1 << 30});
    assert_eq!(status["admission"], admission);

    for args in [&["true"][..], &["--detach", "true"], &["--id", "other", "true"]] {
        submit(&cluster, args, "").says(73, &["100 tasks are pending", "1 more", "the 100"]);
    }
    assert_eq!(cluster.tasks().len(), 100);
    // A task that exists already adds nothing.
    let again = submit(&cluster, &nightly, "");
    assert_eq!((again.code, again.text()), (0, id), "{}", again.stderr);
    submit(&cluster, &["--detach", "--id", "nightly", "false"], "").says(65, &["something else"]);
    submit(&cluster, &keyed, &lines).says(0, &["99 tasks submitted"]);

    let _worker = cluster.worker("w1", &["--slots", "8"]);
    Plain::on(&cluster, &["wait", "whole"]).run().says(0, &["99 tasks: 99 succeeded"]);
    says(&cluster, "/tasks/done", 100);
    let out = submit(&cluster, &["echo room"], "");
    assert_eq!((out.code, out.text().as_str()), (0, "room\n"), "{}", out.stderr);
    let out = submit(&cluster, &["--from-file", "-"], &"true\n".repeat(100));
    out.says(0, &["100 tasks: 100 succeeded"]);
}

#[test]
fn g08_stored_tasks_have_a_limit_in_bytes() {
    let (cluster, _master) = limited("admission-bytes", &["--max-pending-bytes", "8KiB"]);
    let line = |bytes: usize| format!(": {}", "x".repeat(bytes));
    let batch = submit(&cluster, &["--from-file", "-"], &format!("{}\n", line(1_000)).repeat(9));
    batch.says(73, &["the data of all tasks takes 0 B", "the 8 KiB", "--max-pending-bytes"]);
    submit(&cluster, &[&line(9_000)], "").says(73, &["takes 0 B"]);
    assert_eq!(cluster.tasks().len(), 0);

    let id = cluster.submit_detached(&[&line(5_000)]);
    says(&cluster, "/tasks/pending", 1);
    submit(&cluster, &[&line(5_000)], "").says(73, &["takes 4.9 KiB"]);
    let _worker = cluster.worker("w1", &[]);
    says(&cluster, "/tasks/done", 1);
    // It still exists, though it ended.
    submit(&cluster, &[&line(5_000)], "").says(73, &["takes 5"]);
    cluster.tree.delete(&cluster.layout.task(&id)).expect("collected");
    says(&cluster, "/admission/bytes", 0);
    submit(&cluster, &[&line(5_000)], "").says(0, &[]);
}
