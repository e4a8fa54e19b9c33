//! An ensemble that does not permit everything to everyone.

use std::time::Duration;

use zkmw::contract::{TaskId, shared_job};
use zookeeper::{Acl, CreateMode, Permission, WatchedEvent, ZooKeeper};

use crate::harness::ensemble::Setup;
use crate::harness::{Cluster, Ensemble, LIMIT, eventually, process};
use crate::plain::{Plain, Service};

/// A client of the library, for what the session layer has no call for: ACLs.
fn client(cluster: &Cluster) -> ZooKeeper {
    let first = cluster.ensemble.connect.split(',').next().expect("a server");
    ZooKeeper::connect(first, Duration::from_secs(10), |_: WatchedEvent| {}).expect("a session")
}

const CREDENTIAL: &str = "digest:zkmw:secret";

#[test]
fn an_acl_that_forbids_is_77_and_the_right_credential_helps() {
    let cluster = Cluster::new("acl");
    let zk = client(&cluster);
    zk.add_auth("digest", b"zkmw:secret".to_vec()).expect("taken");
    zk.create(&cluster.root, Vec::new(), Acl::creator_all().clone(), CreateMode::Persistent).expect("made");
    zk.close().expect("closed");

    let run_dir = cluster.dir().join("run").display().to_string();
    let worker = ["worker", "--id", "w1", "--run-dir", &run_dir];
    for args in [&["submit", "echo hi"][..], &["master"], &worker] {
        for auth in [&[][..], &["--auth", "digest:zkmw:wrong"]] {
            let out = Plain::on(&cluster, &[args, auth].concat()).run();
            out.says(77, &[&cluster.root]);
            assert!(!out.stderr.contains("wrong"), "a credential is printed: {}", out.stderr);
        }
    }
    let out = Plain::on(&cluster, &["submit", "--auth", "nonsense:x", "true"]).run();
    assert_eq!(out.code, 77, "an unknown scheme: {out:?}");

    let _master = Plain::on(&cluster, &["master"]).env("ZKMW_AUTH", CREDENTIAL).spawn();
    let _worker = Plain::on(&cluster, &worker).env("ZKMW_AUTH", CREDENTIAL).spawn();
    let out = Plain::on(&cluster, &["submit", "echo permitted", "--auth", CREDENTIAL]).run();
    assert_eq!((out.code, out.text().as_str()), (0, "permitted\n"), "{}", out.stderr);
    // By a variable too, with a wrong one before it: all that are given count.
    let out = Plain::on(&cluster, &["submit", "echo too"]).env("ZKMW_AUTH", "digest:a:b\ndigest:zkmw:secret");
    let out = out.run();
    assert_eq!((out.code, out.text().as_str()), (0, "too\n"), "{}", out.stderr);
}

/// G12: an outcome that may not be written is reported, and the task quarantined, not run for ever.
#[test]
fn a_task_whose_outcome_may_not_be_written_is_quarantined() {
    let mut service = Service::new("read-only-task", &["--slots", "1"]);
    let (cluster, runs) = (&service.cluster, service.cluster.dir().join("runs"));
    let exit = cluster.run(&["submit", "true"]);
    assert_eq!(exit.code, 0, "it makes the directories above tasks: {exit:?}");
    let zk = client(cluster);
    let id = TaskId::new(&shared_job("forbidden"), "forbidden");
    let open = Acl::open_unsafe().clone();
    let _ = zk.create(&cluster.layout.job(id.dir()), Vec::new(), open, CreateMode::Persistent);
    let task = format!(r#"{{"command":"echo ran >>{}"}}"#, runs.display());
    let read_only = vec![Acl::new(Permission::READ, "world", "anyone")];
    zk.create(&cluster.layout.task(&id), task.into_bytes(), read_only, CreateMode::Persistent).expect("made");
    zk.close().expect("closed");
    eventually(LIMIT, "it is quarantined", || {
        cluster.status().filter(|status| status["tasks"]["aside"] == 1)
    });
    let log = service.worker.stderr();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(id.as_str())).collect();
    assert!(lines.iter().any(|line| line.contains("ERROR")), "{log}");
    // Several good tasks later it has still not run again, and its only slot is free.
    for _ in 0..3 {
        service.is_unharmed();
    }
    assert_eq!(std::fs::read_to_string(&runs).unwrap_or_default(), "ran\n");
    let out = Plain::on(&service.cluster, &["status"]).run();
    assert!(out.text().contains("1 quarantined"), "{}", out.text());
}

/// The job that it made would be its own for ever: other submitters, and `list`, would fail at the shared job.
#[test]
fn credentials_for_an_open_service_are_refused_at_once() {
    let mut service = Service::new("auth-on-open", &[]);
    let before = service.cluster.jobs();
    for args in [&["submit", "true"][..], &["submit", "--orphan", "cancel", "--job", "mine", "true"]] {
        let out = Plain::on(&service.cluster, &[args, &["--auth", CREDENTIAL]].concat()).run();
        out.says(77, &["without credentials", "Nothing was submitted", "--auth"]);
    }
    let batch = ["submit", "--from-file", "-", "--auth", CREDENTIAL];
    Plain::on(&service.cluster, &batch).stdin(b"true\n").run().says(77, &["without credentials"]);
    assert_eq!(service.cluster.jobs(), before, "nothing was made");
    let marks = service.cluster.tree.children(&service.cluster.layout.submitters()).unwrap_or_default();
    assert!(marks.is_empty(), "{marks:?}");
    // A client that only reads, or writes what exists, does no harm.
    let id = service.cluster.submit_detached(&["--require", "no=such", "true"]);
    for args in [&["list"][..], &["status"], &["cancel", id.as_str()]] {
        let out = Plain::on(&service.cluster, &[args, &["--auth", CREDENTIAL]].concat()).run();
        assert_eq!(out.code, 0, "{args:?}: {out:?}");
    }
    service.is_unharmed();
}

#[test]
fn an_unreadable_znode_is_skipped_and_reported() {
    let mut service = Service::new("closed-job", &[]);
    let cluster = &service.cluster;
    let id = cluster.submit_detached(&["--job", "open", "--require", "no=such", "true"]);
    let zk = client(cluster);
    zk.add_auth("digest", b"zkmw:secret".to_vec()).expect("taken");
    let closed = Acl::creator_all().clone();
    for path in [cluster.layout.job("closed"), format!("{}/w9~00000000000000000001", cluster.layout.assign())]
    {
        zk.create(&path, b"{}".to_vec(), closed.clone(), CreateMode::Persistent).expect("made");
    }
    zk.close().expect("closed");
    let out = Plain::on(cluster, &["list"]).run();
    out.says(77, &["tasks/closed is passed over", "not permitted", "--auth"]);
    assert!(out.text().contains(id.as_str()), "the others are listed: {out:?}");
    let out = Plain::on(cluster, &["list", "--job", "open"]).run();
    assert_eq!(out.code, 0, "{out:?}");
    let out = Plain::on(cluster, &["cancel", "closed", id.as_str()]).run();
    out.says(77, &["passed over"]);
    assert!(out.text().contains("is being cancelled"), "{out:?}");
    Plain::on(cluster, &["wait", "closed", id.as_str()]).run().says(1, &["passed over", "was cancelled"]);
    service.is_unharmed();
}

#[test]
fn servers_that_insist_on_credentials_are_77_and_say_so() {
    let java_options =
        "-Dzookeeper.enforce.auth.enabled=true -Dzookeeper.enforce.auth.schemes=digest".to_string();
    let ensemble = Ensemble::start_with(1, Setup { java_options, ..Setup::default() });
    let run_dir = process::base_dir().join("enforced-run").display().to_string();
    for args in [&["status"][..], &["submit", "true"], &["master"], &["worker", "--run-dir", &run_dir]] {
        let out = Plain::new(&[&["--zk", &ensemble.connect], args].concat()).run();
        out.says(77, &["without credentials", "--auth"]);
    }
    let status = ["--zk", &ensemble.connect, "--auth", CREDENTIAL, "status"];
    assert_eq!(Plain::new(&status).run().code, 0);
}
