//! Workers with handlers, from the user's side.

use crate::harness::Cluster;
use crate::plain::{Plain, Service, json_lines};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/handler.py");

fn batch(cluster: &Cluster, args: &[&str], lines: &str) -> crate::plain::Out {
    Plain::on(cluster, &[&["submit", "--from-file", "-"], args].concat()).stdin(lines.as_bytes()).run()
}

#[test]
fn tasks_batches_and_chunks_are_answered_by_handlers() {
    let service = Service::new("handlers", &["--slots", "2", "--handler", EXAMPLE]);
    let cluster = &service.cluster;
    let exit = cluster.run(&["submit", "add 1 2"]);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "3\n"), "{exit:?}");
    let exit = cluster.run(&["submit", "no-such-function"]);
    assert!(exit.code != 0 && !exit.stderr.is_empty(), "{exit:?}");
    let lines: String = (0..200).map(|n| format!("add {n} 1000\n")).collect();
    for args in [&[][..], &["--chunk", "50"]] {
        let out = batch(cluster, args, &lines);
        out.says(0, &["200 tasks: 200 succeeded, 0 failed"]);
        let mut sums: Vec<u32> = out.text().lines().map(|line| line.parse().expect("a sum")).collect();
        sums.sort_unstable();
        assert_eq!(sums, (1_000..1_200).collect::<Vec<_>>());
    }
}

#[test]
fn a_handler_that_breaks_fails_its_task_alone() {
    // It answers nothing but what it is asked to say.
    let handler =
        "sed -u 's/.*\"id\":\\([0-9]*\\).*\"command\":\"\\([a-z]*\\)\".*/\\2 {\"id\":\\1}/; s/^good //'";
    let service = Service::new("broken-handler", &["--slots", "1", "--handler", handler]);
    let out = batch(&service.cluster, &["--json"], "good\nbad\ngood\n");
    assert_eq!(out.code, 1, "{out:?}");
    let mut ends = json_lines(&out.text());
    ends.sort_by_key(|end| end["line"].as_u64());
    let states: Vec<_> = ends.iter().map(|end| (end["state"].clone(), end["reason"].clone())).collect();
    let done = ("done".into(), serde_json::Value::Null);
    assert_eq!(states, [done.clone(), ("failed".into(), "handler".into()), done]);
    assert!(ends[1]["detail"].is_string(), "{}", ends[1]);
}
