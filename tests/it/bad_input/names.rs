//! Two workers of one name, and a worker whose predecessor is still registered.

use std::time::{Duration, Instant};

use zkmw::contract::worker::Registration;

use crate::harness::{Cluster, LIMIT, Op, eventually};
use crate::plain::{Plain, Service};

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[test]
fn a_second_worker_of_the_name_on_this_host_is_refused_at_once() {
    let mut service = Service::new("same-name", &[]);
    let before = service.cluster.registrations();
    let start = Instant::now();
    let mut second = service.cluster.worker("w1", &[]);
    let exit = second.wait_exit(LIMIT);
    assert_eq!(exit.code, 75, "{exit:?}");
    let pid = service.worker.pid().to_string();
    for word in ["w1", &host(), &pid, "--id"] {
        assert!(exit.stderr.contains(word), "{word}: {}", exit.stderr);
    }
    assert!(start.elapsed() < Duration::from_secs(3), "the lock refuses at once: {:?}", start.elapsed());
    assert_eq!(service.cluster.registrations(), before, "the first was not disturbed");
    service.is_unharmed();
}

/// No file shows the first worker. The ensemble shows it, once the first has outlived its own timeout.
#[test]
fn a_second_worker_of_the_name_with_another_run_dir_is_refused() {
    let mut service = Service::on(Cluster::new("same-name-2").with(&["--session-timeout", "3s"]), &[]);
    let before = service.cluster.registrations();
    let other = service.cluster.dir().join("other-run");
    let mut second = service.cluster.worker("w1", &["--run-dir", other.to_str().expect("UTF-8")]);
    let exit = second.wait_exit(LIMIT);
    assert_eq!(exit.code, 75, "{exit:?}");
    let pid = service.worker.pid().to_string();
    for word in ["w1", &host(), &pid, "--id"] {
        assert!(exit.stderr.contains(word), "{word}: {}", exit.stderr);
    }
    assert_eq!(service.cluster.registrations(), before, "the first was not disturbed");
    let workers = format!("{}/", service.cluster.layout.workers());
    let history = service.cluster.history();
    let created =
        history.iter().filter(|txn| matches!(&txn.op, Op::Create { path, .. } if path.starts_with(&workers)));
    assert_eq!(created.count(), 1, "the second did not register even for an instant");
    service.is_unharmed();
}

/// The registration of a worker, once it is one of this process.
#[track_caller]
fn registered(cluster: &Cluster, pid: u32) -> (String, Registration, i64) {
    eventually(LIMIT, "the worker is registered", || {
        let found =
            cluster.registrations().into_iter().find(|(_, registration, _)| registration.process.pid == pid);
        found.map(|(name, registration, stat)| (name, registration, stat.ephemeral_owner))
    })
}

/// When, as a zxid, something first happened.
fn first(cluster: &Cluster, what: impl Fn(i64, &Op) -> bool) -> Option<i64> {
    cluster.history().into_iter().find(|txn| what(txn.session, &txn.op)).map(|txn| txn.zxid)
}

#[test]
fn a_restarted_worker_with_proof_takes_its_name_back_at_once() {
    let cluster = Cluster::new("restart-proof").with(&["--session-timeout", "12s"]);
    let mut w1 = cluster.worker("w1", &[]);
    let (old, _, session) = registered(&cluster, w1.pid());
    w1.kill();
    w1.wait_exit(LIMIT);
    let start = Instant::now();
    let again = cluster.worker("w1", &[]);
    registered(&cluster, again.pid());
    let took = start.elapsed();
    eprintln!("registered again after {took:?}");
    assert!(took < Duration::from_secs(4), "well under the session timeout: {took:?}");
    let old = format!("{}/{old}", cluster.layout.workers());
    let deleted = first(&cluster, |_, op| *op == Op::Delete { path: old.clone() });
    assert!(deleted.is_some(), "the newcomer deleted it");
    let ended = first(&cluster, |of, op| of == session && *op == Op::SessionEnds);
    assert_eq!(ended, None, "the old session still lives");
}

#[test]
fn a_restarted_worker_without_proof_waits_for_session_end() {
    let cluster = Cluster::new("restart-no-proof").with(&["--session-timeout", "4s"]);
    let mut w1 = cluster.worker("w1", &[]);
    let (old, _, session) = registered(&cluster, w1.pid());
    w1.kill();
    w1.wait_exit(LIMIT);
    let other = cluster.dir().join("other-run");
    let again = cluster.worker("w1", &["--run-dir", other.to_str().expect("UTF-8")]);
    let (new, ..) = registered(&cluster, again.pid());
    let new = format!("{}/{new}", cluster.layout.workers());
    let created = first(&cluster, |_, op| matches!(op, Op::Create { path, .. } if *path == new));
    let ended = first(&cluster, |of, op| of == session && *op == Op::SessionEnds);
    assert!(ended.is_some() && created > ended, "session ended at {ended:?}, created at {created:?}");
    let old = format!("{}/{old}", cluster.layout.workers());
    assert_eq!(first(&cluster, |_, op| *op == Op::Delete { path: old.clone() }), None);
    assert!(again.stderr().contains("waiting") || again.stderr().contains("wait"), "{}", again.stderr());
}

/// A worker that cannot write its run file still works, and logs the consequence.
#[test]
fn a_run_dir_that_cannot_be_had_does_not_stop_a_worker() {
    let cluster = Cluster::new("no-run-dir");
    let _master = cluster.master("m1");
    let worker = cluster.worker("w1", &["--run-dir", "/proc/no/such"]);
    cluster.registered(&["w1"]);
    assert!(worker.stderr().contains("/proc/no/such"), "{}", worker.stderr());
    let out = Plain::on(&cluster, &["submit", "echo works"]).run();
    assert_eq!((out.code, out.text().as_str()), (0, "works\n"), "{}", out.stderr);
}
