//! The scenarios that zkmw grew out of, named masters/workers/submitters: each says which role fails, and what that
//! costs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use zkmw::contract::TaskId;
use zkmw::contract::task::{Reason, State, Task};

use crate::harness::{Cluster, DEATH, KILL_WORKER, LIMIT, Op, SESSION, Txn, eventually, process};

/// A task that proves G3 by itself: it holds a lock for as long as any of its processes lives, notes its attempt
/// and its pid in `DIR/runs`, and exits with 99 if the lock was held.
pub fn locked(dir: &Path, name: &str, then: &str) -> String {
    let (lock, runs) = (dir.join(format!("{name}.lock")), dir.join(format!("{name}.runs")));
    let note = format!("echo $ZKMW_ATTEMPT $$ $ZKMW_WORKER $ZKMW_EPOCH >>{}", runs.display());
    format!("exec 9>{}; flock -n 9 || {{ {note}; exit 99; }}; {note}; {then}", lock.display())
}

/// One start of a [`locked`] task.
#[derive(Clone, Debug)]
pub struct Start {
    pub attempt: u32,
    pub pid: u32,
    pub worker: String,
    pub epoch: i64,
}

/// The starts that a [`locked`] task noted.
pub fn starts(dir: &Path, name: &str) -> Vec<Start> {
    let text = fs::read_to_string(dir.join(format!("{name}.runs"))).unwrap_or_default();
    let start = |line: &str| {
        let [attempt, pid, worker, epoch] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        let (attempt, pid, epoch) = (attempt.parse().ok()?, pid.parse().ok()?, epoch.parse().ok()?);
        Some(Start { attempt, pid, worker: worker.to_string(), epoch })
    };
    text.lines().filter_map(start).collect()
}

/// Waits until the task has started so often, and gives all starts.
#[track_caller]
pub fn started(dir: &Path, name: &str, times: usize, limit: Duration) -> Vec<Start> {
    eventually(limit, &format!("{name} has started {times} times"), || {
        Some(starts(dir, name)).filter(|starts| starts.len() >= times)
    })
}

/// By which transaction each task got its outcome.
fn ended_at(cluster: &Cluster) -> BTreeMap<TaskId, i64> {
    let outcome = |txn: Txn| {
        let Op::Set { path, data, .. } = &txn.op else { return None };
        let id = cluster.layout.task_at(path)?;
        Task::decode(data).ok()?.outcome?;
        Some((id, txn.zxid))
    };
    cluster.history().into_iter().filter_map(outcome).collect()
}

/// How often an outcome was written to this task; G2 says once.
fn outcomes_written(cluster: &Cluster, id: &TaskId) -> usize {
    let path = cluster.layout.task(id);
    let mut count = 0;
    for txn in cluster.history() {
        if let Op::Set { path: of, data, .. } = &txn.op
            && *of == path
            && Task::decode(data).is_ok_and(|task| task.outcome.is_some())
        {
            count += 1;
        }
    }
    count
}

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
    assert_eq!(cluster.run(&["submit", "echo out"]).code, 0);
    let left = cluster.tasks();
    let failed = |task: &Task| task.outcome.as_ref().is_some_and(|outcome| outcome.exit_code == Some(7));
    assert!(
        left.len() == 1 && left.iter().all(|(_, task, _)| failed(task)),
        "what ended badly stays: {left:?}"
    );
    let writes = cluster.assignment_writes();
    assert!(!writes.is_empty() && writes.iter().all(|(_, _, written)| written.epoch == leader.epoch));
}

/// Also G3: the failed worker's run has ended before the task runs again, or the lock would be held.
#[test]
fn s_1_1_1_worker_fails() {
    let cluster = Cluster::new("worker-fails");
    let _m1 = cluster.master("m1");
    let w1 = cluster.worker("w1", &["--slots", "1"]);
    cluster.registered(&["w1"]);
    // A part of its group ignores TERM and would outlive its leader.
    let then =
        "(trap '' TERM; sleep 600) & [ $ZKMW_ATTEMPT -gt 1 ] && { echo second; kill -9 $!; exit 5; }; wait";
    let mut submit = cluster.submit(&[&locked(cluster.dir(), "t", then)]);
    let first = started(cluster.dir(), "t", 1, LIMIT).remove(0);
    let id = cluster.the_task();
    let old = cluster.assigned(&id);

    let killed = Instant::now();
    w1.kill();
    let (task, _) = eventually(DEATH, "the task is queued again", || {
        cluster.task(&id).filter(|(task, _)| task.attempt == 2)
    });
    eprintln!("queued again after {:?}", killed.elapsed());
    assert_eq!((task.charged, task.deaths), (0, 1), "a death counts");
    assert!(!process::is_alive(first.pid), "the keeper killed what the worker ran");

    let _w1 = cluster.worker("w1", &["--slots", "1"]);
    let exit = submit.wait_exit(LIMIT);
    assert_eq!((exit.code, exit.stdout.as_str()), (5, "second\n"), "{}", exit.stderr);
    let starts = starts(cluster.dir(), "t");
    assert_eq!(starts.len(), 2, "{starts:?}");
    assert_eq!((first.attempt, starts[1].attempt), (1, 2));
    assert!(starts[1].epoch > first.epoch, "the fencing token grows: {starts:?}");
    assert_eq!(cluster.tasks().len(), 1, "what failed stays");
    assert_eq!(outcomes_written(&cluster, &id), 1);
    assert!(
        cluster.assignments().iter().all(|(incarnation, ..)| *incarnation != old),
        "the failed incarnation's assignment is deleted"
    );
}

#[test]
fn s_1_1_1_submitter_fails() {
    let cluster = Cluster::new("submitter-fails");
    let _m1 = cluster.master("m1");
    let _w1 = cluster.worker("w1", &["--slots", "1"]);
    cluster.registered(&["w1"]);
    let go = cluster.dir().join("go");
    let line =
        locked(cluster.dir(), "t", &format!("until [ -e {} ]; do sleep .05; done; echo late", go.display()));
    let mut submit = cluster.submit(&[&line]);
    let start = started(cluster.dir(), "t", 1, LIMIT).remove(0);
    let id = cluster.the_task();
    submit.kill();
    assert_eq!(submit.wait_exit(LIMIT).code, 128 + 9);
    // Its session ends, and with it every ephemeral of it; the task takes no notice.
    eventually(DEATH, "the submitter's mark is gone", || {
        cluster.tree.children(&cluster.layout.submitters()).is_none_or(|marks| marks.is_empty()).then_some(())
    });
    assert!(process::is_alive(start.pid), "the task runs on");
    fs::write(&go, "").expect("a file");
    let task = cluster.ended(&id, LIMIT);
    let outcome = task.outcome.expect("an outcome");
    assert_eq!((outcome.state, outcome.attempt, task.charged), (State::Done, 1, 0));
    let exit = cluster.run(&["wait", &id.to_string()]);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "late\n"), "{}", exit.stderr);
    assert!(cluster.task(&id).is_some(), "wait never deletes");
    assert_eq!((starts(cluster.dir(), "t").len(), outcomes_written(&cluster, &id)), (1, 1));
}

#[test]
fn s_1_1_1_submitter_fails_and_its_orphan_is_cancelled() {
    let cluster = Cluster::new("orphan");
    let _m1 = cluster.master("m1");
    let _w1 = cluster.worker("w1", &["--slots", "1"]);
    cluster.registered(&["w1"]);
    let submit = cluster.submit(&["--orphan", "cancel", &locked(cluster.dir(), "t", "sleep 600")]);
    let start = started(cluster.dir(), "t", 1, LIMIT).remove(0);
    let id = cluster.the_task();
    submit.kill();
    // The session ends after T. The leader checks every T, and must miss the submitter in two checks with at
    // least T between them.
    let task = cluster.ended(&id, DEATH + 4 * SESSION);
    assert_eq!(task.outcome.map(|outcome| outcome.state), Some(State::Cancelled));
    assert!(!process::is_alive(start.pid), "the outcome is written when the group has ended");
    assert_eq!(outcomes_written(&cluster, &id), 1);
}

/// G4: killed, the tasks are queued again within T + a tick + 1 s, and nothing else is disturbed.
#[test]
fn s_1_2_1_worker_fails_g04() {
    let cluster = Cluster::new("one-of-two-fails");
    let _m1 = cluster.master("m1");
    let w1 = cluster.worker("w1", &["--slots", "1"]);
    let w2 = cluster.worker("w2", &["--slots", "1"]);
    cluster.registered(&["w1", "w2"]);
    let go = cluster.dir().join("go");
    let wait = format!("until [ -e {} ]; do sleep .05; done; echo $ZKMW_ATTEMPT", go.display());
    let mut submits: Vec<_> =
        ["a", "b"].iter().map(|name| cluster.submit(&[&locked(cluster.dir(), name, &wait)])).collect();
    let a = started(cluster.dir(), "a", 1, LIMIT).remove(0);
    let b = started(cluster.dir(), "b", 1, LIMIT).remove(0);
    assert_ne!(a.worker, b.worker, "each has one: {a:?} {b:?}");

    let (victim, survivor, hurt, spared) =
        if a.worker.starts_with("w1") { (&w1, "w2", 0, 1) } else { (&w2, "w1", 0, 1) };
    let killed = Instant::now();
    victim.kill();
    let id = eventually(DEATH, "the killed worker's task is queued again", || {
        cluster.tasks().into_iter().find(|(_, task, _)| task.attempt == 2).map(|(id, ..)| id)
    });
    eprintln!("queued again after {:?}", killed.elapsed());
    // The survivor has one slot, in which the other task runs: the killed worker's task waits for it.
    assert_eq!(cluster.assigned_to(&id), None);
    assert!(process::is_alive(b.pid));
    fs::write(&go, "").expect("a file");
    let exits: Vec<_> = submits.iter_mut().map(|submit| submit.wait_exit(LIMIT)).collect();
    assert_eq!((exits[hurt].code, exits[hurt].stdout.as_str()), (0, "2\n"), "{}", exits[hurt].stderr);
    assert_eq!((exits[spared].code, exits[spared].stdout.as_str()), (0, "1\n"), "{}", exits[spared].stderr);
    let again = starts(cluster.dir(), "a");
    assert_eq!(again.len(), 2, "{again:?}");
    assert!(again[1].worker.starts_with(survivor), "{again:?}");
    assert_eq!(starts(cluster.dir(), "b").len(), 1, "the survivor's task was not disturbed");
    assert_eq!(outcomes_written(&cluster, &id), 1);
}

/// G4: after a graceful stop, at once and uncharged.
#[test]
fn g04_a_graceful_stop_hands_its_tasks_over_at_once() {
    let cluster = Cluster::new("drain");
    let _m1 = cluster.master("m1");
    let mut w1 = cluster.worker("w1", &["--slots", "1", "--grace", "0s"]);
    cluster.registered(&["w1"]);
    let mut submit = cluster.submit(&[&locked(
        cluster.dir(),
        "t",
        "[ $ZKMW_ATTEMPT -gt 1 ] && { echo moved; exit; }; trap '' TERM; sleep 600 & wait",
    )]);
    let first = started(cluster.dir(), "t", 1, LIMIT).remove(0);
    let id = cluster.the_task();
    let _w2 = cluster.worker("w2", &["--slots", "1"]);
    cluster.registered(&["w1", "w2"]);
    let stopped = Instant::now();
    w1.term();
    let exit = submit.wait_exit(SESSION);
    let took = stopped.elapsed();
    eprintln!("moved and run after {took:?}");
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "moved\n"), "{}", exit.stderr);
    assert!(took < SESSION / 2, "a graceful stop waits for no session's end: {took:?}");
    assert!(!process::is_alive(first.pid));
    assert_eq!(w1.wait_exit(LIMIT).code, 0);
    cluster.registered(&["w2"]);
    let path = cluster.layout.task(&id);
    for txn in cluster.history() {
        if let Op::Set { path: of, data, .. } = &txn.op
            && *of == path
        {
            assert_eq!(Task::decode(data).expect("a task").charged, 0, "a drain is not charged");
        }
    }
    assert_eq!(outcomes_written(&cluster, &id), 1);
}

#[test]
fn s_2_2_1_workers_share_the_tasks_of_two_submitters() {
    let cluster = Cluster::new("share");
    let _m1 = cluster.master("m1");
    let _m2 = cluster.master("m2");
    let _w1 = cluster.worker("w1", &["--slots", "2"]);
    let _w2 = cluster.worker("w2", &["--slots", "2"]);
    cluster.registered(&["w1", "w2"]);
    // Two submitters with a batch each. Each task is long enough that one worker alone could not have taken them all
    // before the other one read its assignment.
    let names: Vec<String> = (0..12).map(|number| format!("t{number}")).collect();
    let mut submits = Vec::new();
    for (file, names) in [("a", &names[..6]), ("b", &names[6..])] {
        let line = |name: &String| locked(cluster.dir(), name, &format!("sleep .3; echo {name}"));
        let path = cluster.dir().join(file);
        fs::write(&path, names.iter().map(line).collect::<Vec<_>>().join("\n")).expect("a file");
        let submit = cluster.submit(&["--job", file, "--from-file", &path.display().to_string()]);
        submits.push((submit, names));
    }
    for (submit, names) in &mut submits {
        let exit = submit.wait_exit(LIMIT);
        assert_eq!(exit.code, 0, "{}", exit.stderr);
        let mut printed: Vec<_> = exit.stdout.lines().collect();
        printed.sort_unstable();
        let mut expected: Vec<_> = names.iter().map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(printed, expected, "each submitter gets its own");
    }
    let mut by_worker = [0, 0];
    for name in &names {
        let starts = starts(cluster.dir(), name);
        assert_eq!(starts.len(), 1, "each ran once: {name} {starts:?}");
        by_worker[usize::from(starts[0].worker.starts_with("w2"))] += 1;
    }
    assert!(by_worker.iter().all(|count| *count >= 3), "both took their share: {by_worker:?}");
    assert!(cluster.tasks().is_empty(), "all were collected");
    let ended = ended_at(&cluster);
    for (txn, incarnation, assignment) in cluster.assignment_writes() {
        // A revoked entry only waits for the worker's report that it has ended. An entry whose task has ended waits for
        // the next write.
        let over = |task: &TaskId| ended.get(task).is_some_and(|zxid| *zxid < txn.zxid);
        let given = assignment.entries.iter().filter(|entry| !entry.revoked && !over(&entry.task)).count();
        // Of runs of 0.3 s as many may wait as are started within 0.4 s.
        assert!(given <= 4, "{incarnation} was given {given} tasks at once for its 2 slots");
    }
}

#[test]
fn s_2_2_2_the_backup_resumes() {
    let cluster = Cluster::new("backup");
    let m1 = cluster.master("m1");
    let first = cluster.leads("m1", LIMIT);
    let _m2 = cluster.master("m2");
    eventually(LIMIT, "both are contenders", || (cluster.contenders().len() == 2).then_some(()));
    let _w1 = cluster.worker("w1", &["--slots", "1"]);
    let _w2 = cluster.worker("w2", &["--slots", "1"]);
    cluster.registered(&["w1", "w2"]);
    let go = cluster.dir().join("go");
    let wait = format!("until [ -e {} ]; do sleep .05; done; echo $ZKMW_ATTEMPT", go.display());
    let mut running: Vec<_> =
        ["a", "b"].iter().map(|name| cluster.submit(&[&locked(cluster.dir(), name, &wait)])).collect();
    started(cluster.dir(), "a", 1, LIMIT);
    started(cluster.dir(), "b", 1, LIMIT);
    let mut queued: Vec<_> =
        ["c", "d"].iter().map(|name| cluster.submit(&[&format!("echo {name}")])).collect();
    eventually(LIMIT, "all four exist", || (cluster.tasks().len() == 4).then_some(()));

    m1.kill();
    // While nobody leads, tasks run on and end, submitters show their outcomes, and new tasks can be submitted.
    let mut orphaned = cluster.submit(&["echo e"]);
    fs::write(&go, "").expect("a file");
    for submit in &mut running {
        let exit = submit.wait_exit(SESSION / 2);
        assert_eq!((exit.code, exit.stdout.as_str()), (0, "1\n"), "{}", exit.stderr);
    }
    let second = cluster.leads("m2", DEATH);
    assert!(second.epoch > first.epoch);
    for (submit, text) in queued.iter_mut().chain([&mut orphaned]).zip(["c\n", "d\n", "e\n"]) {
        let exit = submit.wait_exit(LIMIT);
        assert_eq!((exit.code, exit.stdout.as_str()), (0, text), "{}", exit.stderr);
    }
    assert!(cluster.tasks().is_empty());
    assert_eq!((starts(cluster.dir(), "a").len(), starts(cluster.dir(), "b").len()), (1, 1));
    let epochs: Vec<_> = cluster.assignment_writes().iter().map(|(_, _, written)| written.epoch).collect();
    assert!(epochs.is_sorted() && epochs.last() == Some(&second.epoch), "{epochs:?}");
}

/// A worker that was stopped beyond its session's end wakes up with a result in its hands: the task had ended
/// meanwhile, and another worker has it by now. G2: that result is refused.
#[test]
fn g02_the_result_of_a_zombie_is_refused() {
    let cluster = Cluster::new("zombie");
    let _m1 = cluster.master("m1");
    let w1 = cluster.worker("w1", &["--slots", "1"]);
    cluster.registered(&["w1"]);
    let (dir, go) = (cluster.dir().clone(), cluster.dir().join("go"));
    let until = |name: &str| format!("until [ -e {} ]; do sleep .02; done", dir.join(name).display());
    let then = format!(
        "[ $ZKMW_ATTEMPT = 1 ] && {{ {}; echo zombie; exit 3; }}; {}; echo second",
        until("end"),
        until("go")
    );
    let mut submit = cluster.submit(&[&locked(&dir, "t", &then)]);
    let first = started(&dir, "t", 1, LIMIT).remove(0);
    let id = cluster.the_task();
    let old = cluster.assigned(&id);
    let _w2 = cluster.worker("w2", &["--slots", "1"]);
    cluster.registered(&["w1", "w2"]);

    w1.stop();
    // It ends by itself, well before the lease does, and its worker cannot write the outcome.
    fs::write(dir.join("end"), "").expect("a file");
    eventually(SESSION, "the first attempt has ended", || {
        matches!(process::state(first.pid), None | Some('Z')).then_some(())
    });
    let second = started(&dir, "t", 2, DEATH).remove(1);
    assert!(second.worker.starts_with("w2"), "{second:?}");
    w1.cont();
    // It comes back as a new incarnation, with nothing to do.
    eventually(LIMIT, "w1 is registered anew", || {
        let names: Vec<_> = cluster.registrations().into_iter().map(|(name, ..)| name).collect();
        let again = |name: &&String| name.starts_with("w1~") && !name.starts_with(&old);
        names.iter().find(again).map(|_| ())
    });
    let (task, _) = cluster.task(&id).expect("it exists");
    assert!(task.outcome.is_none() && task.attempt == 2, "{task:?}");
    fs::write(&go, "").expect("a file");
    let exit = submit.wait_exit(LIMIT);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "second\n"), "{}", exit.stderr);
    assert_eq!((outcomes_written(&cluster, &id), starts(&dir, "t").len()), (1, 2));
}

/// G11: the poison task alone is blamed; neighbours are not charged for it.
#[test]
fn g11_a_task_that_kills_its_workers_fails_after_three_attempts() {
    let cluster = Cluster::new("poison");
    let _m1 = cluster.master("m1");
    let new_worker = || cluster.worker("w1", &["--slots", "2"]);
    let mut worker = new_worker();
    cluster.registered(&["w1"]);
    let (n_runs, go) = (cluster.dir().join("n.runs"), cluster.dir().join("go"));
    let until = |file: &Path| format!("until [ -e {} ]; do sleep .05; done", file.display());
    let line =
        format!("[ $ZKMW_ATTEMPT = 1 ] || {{ {}; sleep .2; }}; {KILL_WORKER}; sleep 600", until(&n_runs));
    let start = Instant::now();
    let poison = cluster.submit_detached(&[&locked(cluster.dir(), "p", &line)]);
    assert_eq!(worker.wait_exit(LIMIT).code, 128 + 9);
    eventually(DEATH, "its first death counts", || {
        cluster.task(&poison).filter(|(task, _)| (task.charged, task.deaths) == (0, 1))
    });
    // From now on it is suspected, and a neighbour is always there when it strikes.
    let neighbour = cluster.submit_detached(&[&locked(cluster.dir(), "n", &until(&go))]);
    // As systemd would: each time the worker dies it is started again.
    let task = eventually(4 * DEATH, "the poison task is blamed", || {
        if !worker.is_running() {
            worker = new_worker();
        }
        let (task, _) = cluster.task(&poison)?;
        if task.deaths == 2 && !go.exists() {
            // From now on it runs alone, so the neighbour has to end.
            fs::write(&go, "").expect("a file");
        }
        Some(task).filter(|task| task.outcome.is_some())
    });
    eprintln!("blamed after {:?}", start.elapsed());
    let outcome = task.outcome.as_ref().expect("an outcome");
    assert_eq!((outcome.state, outcome.reason), (State::Failed, Some(Reason::Poison)), "{task:?}");
    assert_eq!((task.charged, starts(cluster.dir(), "p").len()), (3, 3), "{task:?}");
    if !worker.is_running() {
        worker = new_worker();
    }
    let ended = cluster.ended(&neighbour, LIMIT);
    assert_eq!((ended.charged, ended.attempt), (0, 2), "the last time it was not there: {ended:?}");
    assert_eq!(ended.outcome.map(|outcome| outcome.state), Some(State::Done));
    let exit = cluster.run(&["wait", &poison.to_string()]);
    assert_ne!(exit.code, 0);
    assert!(exit.stderr.contains("worker"), "it says why: {}", exit.stderr);
    drop(worker);
}

/// G12: whatever znodes exist below the root, roles go on, and report them once.
#[test]
fn g12_garbage_never_stops_a_role() {
    let cluster = Cluster::new("garbage");
    let mut m1 = cluster.master("m1");
    let mut w1 = cluster.worker("w1", &["--slots", "2"]);
    cluster.registered(&["w1"]);
    cluster.leads("m1", LIMIT);
    let layout = &cluster.layout;
    let long = "x".repeat(600_000);
    let garbage: Vec<(String, &[u8])> = vec![
        (format!("{}/foreign", layout.root()), b"\xff\x00"),
        (format!("{}/stranger", layout.master()), b"no contender"),
        (format!("{}/stranger", layout.workers()), b"{}"),
        (format!("{}/w9~1~1", layout.workers()), b"not json"),
        (format!("{}/w9~0000000000000001", layout.assign()), b"not json"),
        (format!("{}/stranger", layout.assign()), b""),
        (format!("{}/stranger~x", layout.leases()), b"\x00"),
        (format!("{}/stranger", layout.submitters()), b""),
        (layout.job("bad"), b"{\"v\":2}"),
        (format!("{}/bad/empty", layout.tasks()), b""),
        (format!("{}/bad/text", layout.tasks()), b"echo hi"),
        (format!("{}/bad/version", layout.tasks()), b"{\"v\":99,\"command\":\"true\"}"),
        (format!("{}/bad/zero", layout.tasks()), b"{\"command\":\"true\",\"attempt\":0}"),
        (format!("{}/bad/both", layout.tasks()), b"{\"command\":\"true\",\"argv\":[\"true\"]}"),
        (format!("{}/bad/deep", layout.tasks()), b"[[[[[[[[[[[[[[[[[[[[[[[[[[[["),
        (format!("{}/bad/deep/er", layout.tasks()), b"x"),
        (format!("{}/bad/long", layout.tasks()), long.as_bytes()),
    ];
    for (path, data) in &garbage {
        cluster.tree.create(path, data).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    let exit = cluster.run(&["submit", "echo still"]);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "still\n"), "{}", exit.stderr);
    // A second master reads all of it at its start, and takes over from it.
    let mut m2 = cluster.master("m2");
    eventually(LIMIT, "both are contenders", || (cluster.contenders().len() >= 2).then_some(()));
    m1.term();
    assert_eq!(m1.wait_exit(LIMIT).code, 0);
    let exit = cluster.run(&["submit", "--job", "bad", "echo again"]);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "again\n"), "{}", exit.stderr);
    for (path, data) in &garbage {
        let (now, stat) = cluster.tree.get(path).unwrap_or_else(|| panic!("{path} is gone"));
        assert!(now == *data && stat.version == 0, "{path} was touched");
    }
    for name in ["empty", "text", "version", "zero", "both", "deep", "long"] {
        let lines = m2.stderr().matches(&format!("/bad/{name} ")).count();
        assert_eq!(lines, 1, "{name} is reported once: {}", m2.stderr());
    }
    let status = eventually(LIMIT, "the malformed are counted", || {
        cluster.status().filter(|status| status["tasks"]["malformed"].as_u64() >= Some(7))
    });
    assert_eq!(status["leader"]["id"], "m2");
    assert!(m2.is_running() && w1.is_running());
}
