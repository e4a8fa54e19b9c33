//! G12: znodes with data that no role expects.

use zkmw::contract::task::{State, Task};
use zkmw::contract::{MAX_DATA_BYTES, TaskId, shared_job};

use crate::harness::{LIMIT, eventually};
use crate::plain::{Plain, Service, json_lines};

/// Makes the shared job of a task made by hand, unless others have made it.
fn by_hand(service: &Service, name: &str, data: &[u8]) -> TaskId {
    let id = TaskId::new(&shared_job(name), name);
    let _ = service.cluster.tree.create(&service.cluster.layout.tasks(), b"");
    let _ = service.cluster.tree.create(&service.cluster.layout.job(id.dir()), b"");
    service.cluster.tree.create(&service.cluster.layout.task(&id), data).expect("created");
    id
}

/// How many lines of the log name it.
fn lines_with(log: &str, what: &str) -> usize {
    log.lines().filter(|line| line.contains(what)).count()
}

#[test]
fn a_task_made_by_hand_runs_and_its_outcome_is_in_the_znode() {
    let mut service = Service::new("by-hand", &[]);
    let id = by_hand(&service, "mine", br#"{"command":"echo hi"}"#);
    let odd = by_hand(&service, "odd", br#"{"v":1,"argv":["echo","a b"],"colour":"red","attempt":1}"#);
    for (id, stdout) in [(&id, "hi\n"), (&odd, "a b\n")] {
        let outcome = service.cluster.ended(id, LIMIT).outcome.expect("ended");
        assert_eq!((outcome.state, outcome.exit_code), (State::Done, Some(0)));
        assert_eq!(outcome.stdout.captured().head, stdout.as_bytes());
    }
    let (raw, _) = service.cluster.tree.get(&service.cluster.layout.task(&odd)).expect("it stays");
    let json: serde_json::Value = serde_json::from_slice(&raw).expect("JSON");
    assert_eq!((&json["colour"], &json["outcome"]["stdout"]), (&"red".into(), &"a b\n".into()));
    service.is_unharmed();
}

#[test]
fn garbage_among_tasks_is_counted_reported_and_left_alone() {
    let mut service = Service::new("garbage-tasks", &[]);
    let large = vec![b'x'; MAX_DATA_BYTES + 1];
    let large_task = format!(r#"{{"command":"true","pad":"{}"}}"#, "x".repeat(600 * 1024));
    let cases: [(&str, &[u8]); 8] = [
        ("garbage", b"\x00\xff garbage"),
        ("newer", br#"{"v":99,"command":"true"}"#),
        ("empty", b""),
        ("list", b"[1,2]"),
        ("nothing-to-run", br#"{"v":1}"#),
        ("large", &large),
        ("large-task", large_task.as_bytes()),
        ("deep", &[b'['; 100_000]),
    ];
    let ids: Vec<TaskId> = cases.iter().map(|(name, data)| by_hand(&service, name, data)).collect();
    let cluster = &service.cluster;
    eventually(LIMIT, "all are counted", || {
        cluster.status().filter(|status| status["tasks"]["malformed"] == cases.len())
    });
    service.is_unharmed();
    // Another write to it makes no second line.
    let path = service.cluster.layout.task(&ids[0]);
    service.cluster.tree.set(&path, b"other garbage", 0).expect("written");
    service.is_unharmed();
    let log = service.master.stderr();
    for id in &ids {
        assert_eq!(lines_with(&log, id.as_str()), 1, "{id}: {log}");
    }
    assert_eq!(lines_with(&log, "version is 99"), 1, "{log}");
    for ((name, data), id) in cases.iter().zip(&ids).skip(1) {
        let (data_now, stat) = service.cluster.tree.get(&service.cluster.layout.task(id)).expect(name);
        assert!(data_now == *data && stat.version == 0, "{name} was left alone");
    }

    // Clients say what it is.
    let (cluster, newer) = (&service.cluster, ids[1].as_str());
    Plain::on(cluster, &["wait", newer]).run().says(65, &[newer, "version is 99"]);
    Plain::on(cluster, &["show", newer]).run().says(65, &[newer, "version is 99"]);
    Plain::on(cluster, &["cancel", newer]).run().says(65, &[newer, "version is 99"]);
    Plain::on(cluster, &["retry", newer]).run().says(65, &[newer, "version is 99"]);
    Plain::on(cluster, &["submit", "--id", "newer", "true"]).run().says(65, &["version is 99"]);
    let out = Plain::on(cluster, &["list", "--json"]).run();
    assert_eq!(out.code, 0, "{out:?}");
    let rows = json_lines(&out.text());
    assert_eq!(rows.iter().filter(|row| row["state"] == "malformed").count(), cases.len(), "{rows:?}");

    // A leader that finds the same data at its start does no worse.
    service.master.term();
    service.master.wait_exit(LIMIT);
    service.master = service.cluster.master("m2");
    service.cluster.leads("m2", LIMIT);
    service.is_unharmed();
    assert_eq!(lines_with(&service.master.stderr(), newer), 1, "{}", service.master.stderr());
}

#[test]
fn garbage_everywhere_else_stops_nobody() {
    let mut service = Service::new("garbage", &["--slots", "1"]);
    let (tree, layout) = (&service.cluster.tree, &service.cluster.layout);
    let large = vec![b'x'; MAX_DATA_BYTES + 1];
    for (n, data) in [&b"garbage"[..], b"", br#"{"v":99}"#, br#"{"slots":0}"#, &large].into_iter().enumerate()
    {
        // Below every directory: names that fit the directory, and names that fit none.
        for path in [
            format!("{}/w{n}x~000000000000000{n}~0", layout.workers()),
            format!("{}/junk-{n}", layout.workers()),
            format!("{}/w{n}x~000000000000000{n}", layout.assign()),
            format!("{}/junk-{n}", layout.assign()),
            format!("{}/junk-{n}", layout.leases()),
            format!("{}/junk-{n}", layout.submitters()),
            format!("{}/job-{n}", layout.tasks()),
        ] {
            tree.create(&path, data).expect("created");
        }
        // Contenders of another library, and ones that would come last in ours.
        tree.create(&format!("{}/junk-{n}", layout.master()), data).expect("created");
        let name =
            format!("{}/_c_00000000-0000-4000-8000-00000000000{n}-latch-900000000{n}", layout.master());
        tree.create(&name, data).expect("created");
        // A job that is garbage has no defaults, and what is in it runs.
        tree.create(&format!("{}/job-{n}/t", layout.tasks()), br#"{"command":"true"}"#).expect("created");
        let id = TaskId::new(&format!("job-{n}"), "t");
        assert_eq!(service.cluster.ended(&id, LIMIT).outcome.expect("ended").state, State::Done);
    }
    let status = tree.get(&layout.status()).expect("a summary").1.version;
    // The leader may write in between; then its summary remains.
    let _ = tree.set(&layout.status(), b"garbage", status);
    service.is_unharmed();
    let leads = |id: &str| {
        eventually(LIMIT, &format!("{id} leads, and the summary says so"), || {
            let status =
                json_lines(&Plain::on(&service.cluster, &["status", "--json"]).run().text()).remove(0);
            (status["leader"]["id"] == id && status["stale"] == false).then_some(())
        });
    };
    leads("m1");
    let log = service.master.stderr();
    for name in ["w0x~0000000000000000~0", "/junk-0", "job-0"] {
        assert!((1..=4).contains(&lines_with(&log, name)), "{name}: {log}");
    }

    // A leader that finds the same data at its start does no worse.
    service.master.term();
    service.master.wait_exit(LIMIT);
    let m2 = service.cluster.master("m2");
    leads("m2");
    service.master = m2;
    service.is_unharmed();
}

/// Damage to a live worker's assignment costs the worker that incarnation, and no task.
#[test]
fn garbage_in_a_workers_own_assignment_costs_one_incarnation() {
    let mut service = Service::new("garbage-own", &["--slots", "1"]);
    let cluster = &service.cluster;
    let gate = cluster.dir().join("gate");
    let line = format!("until [ -e {} ]; do sleep .05; done; echo through", gate.display());
    let mut submit = cluster.submit(&[&line]);
    let id = cluster.the_task();
    let old = cluster.assigned(&id);
    let path = format!("{}/{old}", cluster.layout.assign());
    eventually(LIMIT, "it is damaged", || {
        let version = cluster.tree.exists(&path)?.version;
        cluster.tree.set(&path, b"garbage", version).ok()
    });
    let again = eventually(LIMIT, "the task is assigned to a new incarnation", || {
        cluster.assigned_to(&id).filter(|new| *new != old)
    });
    assert!(again.starts_with("w1~"), "{again}");
    std::fs::write(&gate, "").expect("opened");
    let exit = submit.wait_exit(LIMIT);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "through\n"), "{exit:?}");
    service.is_unharmed();
}

/// A task is damaged while its submitter waits for it.
#[test]
fn a_task_that_is_damaged_during_a_wait_is_reported() {
    let mut service = Service::new("damaged", &["--slots", "2"]);
    let cluster = &service.cluster;
    let mut submit = cluster.submit(&["sleep 100"]);
    let id = cluster.the_task();
    cluster.assigned(&id);
    let path = cluster.layout.task(&id);
    eventually(LIMIT, "it is damaged", || {
        let (data, stat) = cluster.tree.get(&path)?;
        Task::decode(&data).expect("still a task");
        cluster.tree.set(&path, b"garbage", stat.version).ok()
    });
    let exit = submit.wait_exit(LIMIT);
    assert_eq!(exit.code, 65, "{exit:?}");
    assert!(exit.stderr.contains(id.as_str()), "{exit:?}");
    service.is_unharmed();
}

/// Damage to a live worker's registration takes nothing from it: not its work, nor the next task.
#[test]
fn garbage_in_a_workers_own_registration_is_mended() {
    let mut service = Service::new("garbage-registration", &["--slots", "2"]);
    let cluster = &service.cluster;
    let gate = cluster.dir().join("gate");
    let line = format!("until [ -e {} ]; do sleep .05; done; echo $ZKMW_ATTEMPT", gate.display());
    let mut submit = cluster.submit(&[&line]);
    let id = cluster.the_task();
    cluster.assigned(&id);
    let (name, before, _) = cluster.registrations().remove(0);
    let path = format!("{}/{name}", cluster.layout.workers());
    for data in [&b"garbage"[..], b"", br#"{"v":99}"#] {
        eventually(LIMIT, "it is damaged", || {
            let version = cluster.tree.exists(&path)?.version;
            cluster.tree.set(&path, data, version).ok()
        });
        eventually(LIMIT, "it is mended", || {
            cluster
                .registrations()
                .iter()
                .any(|(of, now, _)| *of == name && now.process == before.process)
                .then_some(())
        });
    }
    std::fs::write(&gate, "").expect("opened");
    let exit = submit.wait_exit(LIMIT);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "1\n"), "it was not disturbed: {exit:?}");
    service.is_unharmed();
}
