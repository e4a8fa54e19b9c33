//! Batch files that can't be, and one that is very long.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use zkmw::contract::MAX_CHILDREN;

use crate::harness::process::{base_dir, notify_reaper};
use crate::harness::{Cluster, Ensemble, LIMIT, eventually};
use crate::plain::{Plain, Service};

#[test]
fn a_bad_line_is_named_and_nothing_is_submitted() {
    let mut service = Service::new("bad-batch", &["--slots", "2"]);
    let huge = [b"echo one\n\n".as_slice(), &vec![b'x'; 2 << 20], b"\necho two\n"].concat();
    let cases: [(&[u8], &[&str]); 4] = [
        (b"echo one\necho two\0\n", &["line 2", "NUL", "nothing was submitted"]),
        (b"echo one\n\n\necho \xff\xfe\n", &["line 4", "UTF-8", "nothing was submitted"]),
        (&huge, &["line 3", "122880", "nothing was submitted"]),
        (b"echo one\xc3", &["line 1", "UTF-8"]),
    ];
    for (bytes, words) in cases {
        Plain::on(&service.cluster, &["submit", "--from-file", "-"]).stdin(bytes).run().says(65, words);
        let path = service.cluster.dir().join("batch");
        std::fs::write(&path, bytes).expect("written");
        let out = Plain::on(&service.cluster, &["submit", "--detach", "--from-file"]).arg(&path).run();
        out.says(65, words);
        out.says(65, &["/batch"]);
        assert!(out.stdout.is_empty(), "{out:?}");
    }
    let out = Plain::on(&service.cluster, &["submit", "--from-file", "/no/such/file"]).run();
    out.says(65, &["/no/such/file", "No such file"]);
    Plain::on(&service.cluster, &["submit", "--from-file", "/etc"]).run().says(65, &["/etc is a directory"]);
    let full = Plain::on(&service.cluster, &["submit", "--from-file", "-"]).env("TMPDIR", "/no/such/dir");
    full.stdin(b"true\n").run().says(75, &["/no/such/dir", "TMPDIR"]);
    let out = Plain::on(&service.cluster, &["submit", "--from-file", "-"]).stdin(b"\n \n").run();
    out.says(0, &["nothing was submitted"]);
    let tasks = service.cluster.tree.children(&service.cluster.layout.tasks()).unwrap_or_default();
    assert!(tasks.is_empty(), "{tasks:?}");
    service.is_unharmed();
}

/// G8. In an ensemble of its own, with room for that many znodes.
#[test]
fn a_hundred_thousand_lines_keep_every_directory_small() {
    const LINES: usize = 100_001;
    let dir = base_dir().join("e-long-batch");
    notify_reaper(&format!("dir {}", dir.display()));
    let mut up = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/ensemble"));
    up.arg("--dir").arg(&dir).args(["up", "1"]).stdin(Stdio::null());
    let up = up.env("ZKMW_ENSEMBLE_HEAP", "512m").output().expect("scripts/ensemble starts");
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    let connect = String::from_utf8_lossy(&up.stdout).trim().to_string();
    let ensemble = Arc::new(Ensemble { dir, connect, setup: Default::default() });
    let cluster = Cluster::on(&ensemble, "long-batch");

    let lines = "true\n".repeat(LINES);
    let out =
        Plain::on(&cluster, &["submit", "--detach", "--job", "big", "--chunk", "1", "--from-file", "-"])
            .stdin(lines.as_bytes())
            .run_within(Duration::from_secs(120));
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert_eq!(out.text().lines().count(), LINES, "an id a line");
    out.says(0, &["100001 tasks submitted", "zkmw wait big~"]);
    let tasks = cluster.layout.tasks();
    let parts = cluster.tree.children(&tasks).expect("parts");
    assert_eq!(parts.len(), LINES.div_ceil(4_000), "{parts:?}");
    let counts: Vec<i32> = parts
        .iter()
        .map(|part| cluster.tree.exists(&format!("{tasks}/{part}")).expect("a part").num_children)
        .collect();
    assert!(counts.iter().all(|count| *count <= MAX_CHILDREN), "{counts:?}");
    assert_eq!(counts.iter().sum::<i32>(), i32::try_from(LINES).expect("small"));
}

/// G8: our own writers stop at 4,000. The leader logs more than 5,000, made by others, and all of them run.
#[test]
fn a_full_job_is_73_and_an_excess_by_others_is_reported() {
    let service = Service::new("full-job", &["--slots", "1"]);
    let (tree, layout) = (&service.cluster.tree, &service.cluster.layout);
    let exit =
        service.cluster.run(&["submit", "--job", "full", "--detach", "--require", "none=such", "true"]);
    assert_eq!(exit.code, 0, "{exit:?}");
    let fill = |from: usize, to: usize| {
        std::thread::scope(|scope| {
            for part in 0..4 {
                scope.spawn(move || {
                    for n in (from..to).filter(|n| n % 4 == part) {
                        let path = format!("{}/{n}", layout.job("full"));
                        tree.create(&path, br#"{"command":"true","require":{"none":"such"}}"#)
                            .expect("created");
                    }
                });
            }
        });
    };
    fill(1, 4_000);
    let submit = ["submit", "--job", "full", "--detach", "true"];
    Plain::on(&service.cluster, &submit).run().says(73, &["the job full is full", "4000"]);
    assert!(!service.master.stderr().contains("full"), "nothing to report yet: {}", service.master.stderr());
    fill(4_000, 5_002);
    let log = eventually(LIMIT, "it is reported", || {
        Some(service.master.stderr())
            .filter(|log| log.contains("/full has") && log.contains("children: too many"))
    });
    assert_eq!(log.lines().filter(|line| line.contains("/full")).count(), 1, "once: {log}");
    let mut service = service;
    service.is_unharmed();
}
