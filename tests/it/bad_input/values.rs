//! G12: data that is well formed and senseless: values at their limits, names that lead elsewhere, and registrations
//! without a process.

use serde_json::json;
use zkmw::contract::TaskId;
use zkmw::contract::task::{Reason, State};
use zkmw::contract::worker::Registration;
use zkmw::machine::CreateMode;

use crate::harness::{Cluster, LIMIT, eventually};
use crate::plain::{Plain, Service};

/// A task made by hand, in a job of that name.
fn by_hand(cluster: &Cluster, job: &str, task: &serde_json::Value) -> TaskId {
    let id = TaskId::new(job, "t");
    let _ = cluster.tree.create(&cluster.layout.tasks(), b"");
    let _ = cluster.tree.create(&cluster.layout.job(job), b"");
    cluster.tree.create(&cluster.layout.task(&id), task.to_string().as_bytes()).expect("created");
    id
}

#[test]
fn values_at_their_limits_do_no_harm() {
    let mut service = Service::new("limits", &["--slots", "4"]);
    let cluster = &service.cluster;
    let large = json!({
        "timeout_ms": u64::MAX, "expire_ms": u64::MAX, "retry_backoff_ms": u64::MAX, "max_attempts": u32::MAX,
        "priority": i32::MAX, "attempt": u32::MAX, "charged": u32::MAX,
    });
    let with = |extra: serde_json::Value| {
        let mut task = extra;
        task.as_object_mut().expect("an object").entry("command").or_insert(json!("echo ran"));
        task
    };
    for (job, task) in [
        ("large", large.clone()),
        ("low", json!({"priority": i32::MIN, "max_attempts": 0})),
        ("released", json!({"released_by": "w1~0", "history": [{"attempt": 0, "why": ""}]})),
        ("orphan", json!({"orphan_of": "", "keyed": true})),
    ] {
        let id = by_hand(cluster, job, &with(task));
        let outcome = cluster.ended(&id, LIMIT).outcome.expect("ended");
        assert_eq!(outcome.state, State::Done, "{job}: {outcome:?}");
    }
    // The same as defaults of a job.
    let job = cluster.layout.job("defaults");
    cluster.tree.create(&job, large.to_string().as_bytes()).expect("created");
    let id = by_hand(cluster, "defaults", &json!({"command": "exit 1"}));
    eventually(LIMIT, "it was tried", || {
        let task = cluster.task(&id)?.0;
        (task.charged > 0 || task.outcome.is_some()).then_some(())
    });
    // One that waits for ever, one that was over before it began, one that fails at the last attempt there is.
    let never = by_hand(cluster, "never", &with(json!({"delay_ms": u64::MAX})));
    let over = by_hand(cluster, "over", &with(json!({"expire_ms": 0})));
    let last =
        json!({"command": "exit 1", "attempt": u32::MAX, "charged": u32::MAX - 1, "max_attempts": u32::MAX});
    let last = by_hand(cluster, "last", &last);
    assert_eq!(cluster.ended(&last, LIMIT).outcome.expect("ended").state, State::Failed);
    assert!(matches!(
        cluster.ended(&over, LIMIT).outcome.expect("ended").state,
        State::Expired | State::Done
    ));
    service.is_unharmed();
    assert!(service.cluster.task(&never).expect("it waits").0.outcome.is_none());
    let out = Plain::on(&service.cluster, &["show", never.as_str()]).run();
    assert_eq!(out.code, 0, "{out:?}");
}

#[test]
fn what_the_kernel_cannot_run_has_failed_with_a_reason() {
    let mut service = Service::new("unrunnable", &["--slots", "4"]);
    let cluster = &service.cluster;
    for (job, task) in [
        ("nul-command", json!({"command": "echo a\0b"})),
        ("nul-argument", json!({"argv": ["echo", "\0"]})),
        ("no-name", json!({"argv": ["", "x"]})),
        ("nul-variable", json!({"command": "true", "env": {"A\0B": "x"}})),
        ("nul-value", json!({"command": "true", "env": {"A": "x\0"}})),
        ("long-argument", json!({"argv": ["echo", "x".repeat(200 * 1024)]})),
        ("folder", json!({"argv": ["/tmp"]})),
    ] {
        let id = by_hand(cluster, job, &task);
        let outcome = cluster.ended(&id, LIMIT).outcome.expect("ended");
        assert_eq!(
            (outcome.state, outcome.reason),
            (State::Failed, Some(Reason::NotStarted)),
            "{job}: {outcome:?}"
        );
        assert!(outcome.detail.is_some_and(|why| !why.is_empty()), "{job} has no reason");
    }
    service.is_unharmed();
}

/// An assignment that names what is none of the worker's, or nothing at all.
#[test]
fn entries_that_lead_nowhere_are_ignored() {
    let mut service = Service::new("nowhere", &["--slots", "1"]);
    let cluster = &service.cluster;
    let (own, ..) = cluster.assignments().remove(0);
    let path = format!("{}/{own}", cluster.layout.assign());
    let done = cluster.submit_detached(&["true"]);
    cluster.ended(&done, LIMIT);
    let entry = |task: &str| json!({"task": task, "attempt": 1});
    let names = ["noslash", "", "/", "a/b/c", "../x", "a//b", "a\0b/c", "none/there", done.as_str()];
    let entries: Vec<_> = names.into_iter().map(entry).collect();
    let assignment = json!({"v": 1, "epoch": 1, "entries": entries}).to_string();
    eventually(LIMIT, "it is written", || {
        let version = cluster.tree.exists(&path)?.version;
        cluster.tree.set(&path, assignment.as_bytes(), version).ok()
    });
    service.is_unharmed();
    service.is_unharmed();
}

/// A persistent registration keeps no worker from a name, and no task from being assigned.
#[test]
fn a_registration_without_a_worker_counts_for_nothing() {
    let cluster = Cluster::new("nobody");
    let mut other = cluster.worker("w2", &[]);
    cluster.registered(&["w2"]);
    let (_, registration, _) = cluster.registrations().remove(0);
    other.term();
    other.wait_exit(LIMIT);
    let workers = cluster.layout.workers();
    for (name, data) in
        [("w1~00000000000000aa~0", registration.encode()), ("w1~00000000000000ab~1", b"garbage".into())]
    {
        cluster.tree.create(&format!("{workers}/{name}"), &data).expect("created");
    }
    cluster
        .tree
        .create(&format!("{}/w1~00000000000000ab", cluster.layout.assign()), b"garbage")
        .expect("created");
    let mut master = cluster.master("m1");
    let mut worker = cluster.worker("w1", &[]);
    cluster.leads("m1", LIMIT);
    let exit = cluster.run(&["submit", "echo fine"]);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "fine\n"), "{exit:?}: {}", worker.stderr());
    assert!(master.is_running() && worker.is_running());
    assert!(master.stderr().contains("is not ephemeral"), "{}", master.stderr());
}

/// A foreign worker that registers and does nothing is a worker like any other until it goes; then what it was given
/// runs elsewhere.
#[test]
fn a_foreign_registration_costs_no_task() {
    let mut service = Service::new("foreign-worker", &["--slots", "1"]);
    let cluster = &service.cluster;
    let (_, own, _) = cluster.registrations().remove(0);
    let mut foreign = serde_json::to_value(&own).expect("JSON");
    foreign["slots"] = json!(1000);
    foreign["aside"] = json!(["", "no/such", "x"]);
    foreign["session_timeout_ms"] = json!(u64::MAX);
    foreign["revoked_through"] = json!(i32::MAX);
    let data = foreign.to_string().into_bytes();
    Registration::decode(&data).expect("it can be read");
    cluster
        .tree
        .create(&format!("{}/alien~1", cluster.layout.assign()), br#"{"entries":[]}"#)
        .expect("created");
    let path = format!("{}/alien~1~0", cluster.layout.workers());
    cluster.tree.create_as(&path, &data, CreateMode::Ephemeral).expect("created");
    let taken = cluster.submit_detached(&["echo moved"]);
    assert_eq!(cluster.assigned(&taken), "alien~1", "it is the least loaded");
    // No worker may take its name while it exists, whatever it says of its session.
    let mut rival = cluster.worker("alien", &[]);
    eventually(LIMIT, "the rival waits or gives up", || {
        (rival.stderr().contains("waiting") || !rival.is_running()).then_some(())
    });
    assert!(!rival.stderr().contains("panicked"), "{}", rival.stderr());
    drop(rival);
    cluster.tree.delete(&path).expect("deleted");
    let task = cluster.ended(&taken, LIMIT);
    assert_eq!(task.attempt, 2);
    assert_eq!(task.outcome.expect("ended").stdout.captured().head, b"moved\n");
    service.is_unharmed();
}
