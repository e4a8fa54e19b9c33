//! Wrong command lines, and ensembles that are not there.

use std::time::{Duration, Instant};

use crate::harness::Ensemble;
use crate::plain::{Plain, not_utf8};

const SHORT: Duration = Duration::from_secs(10);

#[test]
fn bad_usage_is_64_and_names_what_is_wrong() {
    let long = "x".repeat(300);
    let cases: &[(&[&str], &[&str])] = &[
        (&["master", "--nonsense"], &["--nonsense"]),
        (&["frobnicate"], &["frobnicate"]),
        (&[], &["Usage"]),
        (&["master", "--slots", "3"], &["--slots"]),
        (&["worker", "--slots", "0"], &["--slots", "0"]),
        (&["worker", "--slots", "2000"], &["--slots", "1000"]),
        (&["worker", "--slots", "many"], &["--slots", "many"]),
        (&["worker", "--id", "a/b"], &["--id", "a/b"]),
        (&["worker", "--id", "a~b"], &["--id", "a~b"]),
        (&["worker", "--id", &long], &["--id", "128"]),
        (&["worker", "--run-dir", "here"], &["--run-dir", "absolute"]),
        (&["master", "--id", ""], &["--id"]),
        (&["master", "--result-ttl", "10"], &["--result-ttl", "unit"]),
        (&["submit"], &["no task"]),
        (&["submit", ""], &["empty"]),
        (&["submit", " \t"], &["empty"]),
        (&["submit", "--", ""], &["empty"]),
        (&["submit", "a", "b"], &["quote"]),
        (&["submit", "--id", "a/b", "true"], &["--id", "a/b"]),
        (&["submit", "--id", &long, "true"], &["--id", "128"]),
        (&["submit", "--job", "a~b", "true"], &["--job"]),
        (&["submit", "--priority", "5000", "true"], &["--priority", "1000"]),
        (&["submit", "--timeout", "0s", "true"], &["--timeout"]),
        (&["submit", "--detach", "--orphan", "cancel", "true"], &["--orphan"]),
        (&["show", "a/b/c"], &["a/b/c", "JOB/TASK"]),
        (&["cancel"], &["cancel needs an ID"]),
        (&["list", "--state", "sleeping"], &["--state", "sleeping"]),
        (&["--root", "zkmw", "status"], &["--root", "zkmw"]),
    ];
    for (args, words) in cases {
        // If one is accepted, the role finds no ensemble.
        let out = Plain::new(args).env("ZKMW_ZK", "127.0.0.1:1").run_within(SHORT);
        out.says(64, words);
        assert!(out.stdout.is_empty(), "{args:?}: {out:?}");
    }
}

#[test]
fn a_task_that_cannot_be_stored_is_65() {
    let long = "x".repeat(125 * 1024);
    Plain::new(&["submit", &long]).run_within(SHORT).says(65, &["120 KiB"]);
    let piece = "x".repeat(100 * 1024);
    Plain::new(&["submit", "--", "echo", &piece, &piece]).run_within(SHORT).says(65, &["120 KiB"]);
    Plain::new(&["submit"]).arg(not_utf8()).run_within(SHORT).says(65, &["UTF-8"]);
}

#[test]
fn a_misspelt_connect_string_is_64() {
    for zk in ["", "localhost:99999", "localhost:x", "a:1:2", "zk1:2181/a//b", "zk1:2181/../x", "zk1,,zk2/"] {
        let out = Plain::new(&["--zk", zk, "status"]).run_within(SHORT);
        out.says(64, &["--zk"]);
    }
}

#[test]
fn an_ensemble_that_does_not_answer_is_69_in_time() {
    // Port 1 refuses; a name below .invalid never resolves; a listener that never answers hangs.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("an address").to_string();
    let run_dir = crate::harness::process::base_dir().join("no-ensemble-run").display().to_string();
    for (zk, word) in [
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("zk.invalid:2181", "zk.invalid"),
        (silent.as_str(), silent.as_str()),
    ] {
        for command in [&["status"][..], &["submit", "echo hi"], &["worker", "--run-dir", &run_dir]] {
            let args = [&["--zk", zk, "--connect-timeout", "500ms"], command].concat();
            let start = Instant::now();
            let out = Plain::new(&args).run_within(SHORT);
            out.says(69, &["no ensemble within --connect-timeout", word]);
            assert!(out.stdout.is_empty(), "an id was printed: {out:?}");
            assert!(start.elapsed() >= Duration::from_millis(500), "it gave up early: {:?}", start.elapsed());
        }
    }
}

#[test]
fn a_chroot_that_is_not_there_is_78() {
    let ensemble = Ensemble::shared();
    let zk = format!("{}/it/no-such-chroot", ensemble.connect);
    let run_dir = crate::harness::process::base_dir().join("no-chroot-run").display().to_string();
    for command in [&["status"][..], &["submit", "true"], &["master"], &["worker", "--run-dir", &run_dir]] {
        let out = Plain::new(&[&["--zk", &zk], command].concat()).run_within(SHORT);
        out.says(78, &["/it/no-such-chroot"]);
    }
}
