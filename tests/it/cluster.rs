//! ZooKeeper in cluster mode: servers are killed, stopped and started again, and the roles go on.

use std::fs;
use std::time::{Duration, Instant};

use zkmw::contract::task::{State, Task};
use zkmw::contract::{TaskId, name_of};

use crate::harness::ensemble::Setup;
use crate::harness::history::BAD_VERSION;
use crate::harness::{Cluster, DEATH, Ensemble, LIMIT, Op, Proc, SESSION, eventually, wall_clock_ms};

/// The server that a service of ours was connected to last, by its log.
pub fn server_of(ensemble: &Ensemble, process: &Proc) -> u32 {
    eventually(LIMIT, "it is connected", || {
        let log = process.stderr();
        let last = log.lines().rev().find_map(|line| line.split_once("connected to 127.0.0.1:"))?;
        let port = last.1.split(',').next()?.parse().ok()?;
        Some(ensemble.server_on(port))
    })
}

/// How often a service of ours has connected.
fn connections(process: &Proc) -> usize {
    process.stderr().matches("connected to ").count()
}

/// The connect string of these servers.
fn connect_to(ensemble: &Ensemble, ids: &[u32]) -> String {
    ids.iter().map(|id| ensemble.connect_to(*id)).collect::<Vec<_>>().join(",")
}

/// Puts a task in and has it done: everything works.
#[track_caller]
fn works(cluster: &Cluster, text: &str) {
    let exit = cluster.run(&["submit", &format!("echo {text}")]);
    assert_eq!((exit.code, exit.stdout.trim()), (0, text), "{}", exit.stderr);
}

/// A task that runs until the file `go` is there, and prints its attempt.
fn until_go(cluster: &Cluster) -> String {
    let (runs, go) = (cluster.dir().join("runs"), cluster.dir().join("go"));
    let (runs, go) = (runs.display(), go.display());
    format!("echo $ZKMW_ATTEMPT >>{runs}; until [ -e {go} ]; do sleep .05; done; echo attempt $ZKMW_ATTEMPT")
}

/// The attempts at [`until_go`] that were started.
fn runs(cluster: &Cluster) -> Vec<String> {
    let text = fs::read_to_string(cluster.dir().join("runs")).unwrap_or_default();
    text.lines().map(str::to_string).collect()
}

/// One after the other: the server that the worker is connected to, the ensemble's leader, then every server once
/// (G10: a rolling restart interrupts no running task).
#[test]
fn g10_killed_servers_interrupt_no_running_task() {
    let ensemble = Ensemble::start(3);
    // The ensemble takes a while to elect, and of ten seconds a lease has more than four.
    let cluster = Cluster::on(&ensemble, "rolling").with(&["--session-timeout", "10s"]);
    let m1 = cluster.master("m1");
    let w1 = cluster.worker("w1", &["--slots", "2"]);
    cluster.registered(&["w1"]);
    let mut submit = cluster.submit(&[&until_go(&cluster)]);
    eventually(LIMIT, "it runs", || (runs(&cluster).len() == 1).then_some(()));
    let incarnation = cluster.assigned(&cluster.the_task());
    let kill_and_go_on = |server: u32, why: &str| {
        let on_it: Vec<_> = [&m1, &w1].into_iter().filter(|p| server_of(&ensemble, p) == server).collect();
        let before: Vec<_> = on_it.iter().map(|process| connections(process)).collect();
        let start = Instant::now();
        ensemble.kill(server);
        for (process, before) in on_it.iter().zip(before) {
            eventually(LIMIT, "it is connected to another", || (connections(process) > before).then_some(()));
        }
        works(&cluster, why);
        eprintln!("{why}: a task was done {:?} after server {server} was killed", start.elapsed());
        ensemble.start_again(&[server]);
    };
    kill_and_go_on(server_of(&ensemble, &w1), "the-workers-server");
    kill_and_go_on(ensemble.leader(), "the-ensembles-leader");
    for server in 1..=3 {
        kill_and_go_on(server, "rolling");
    }
    assert_eq!(cluster.assigned(&cluster.the_task()), incarnation, "the incarnation outlived every session");
    fs::write(cluster.dir().join("go"), "").expect("a file");
    let exit = submit.wait_exit(LIMIT);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "attempt 1\n"), "{}", exit.stderr);
    assert_eq!(runs(&cluster).len(), 1, "it was never interrupted");
    assert!(cluster.tasks().is_empty());
}

/// G6: a leader whose server dies makes way at once: it deletes its own contender over another server.
#[test]
fn g06_a_leader_that_loses_its_connection_is_replaced_at_once() {
    let ensemble = Ensemble::start(3);
    let cluster = Cluster::on(&ensemble, "lost-connection");
    let _w1 = cluster.worker("w1", &["--slots", "1"]);
    cluster.registered(&["w1"]);
    // Not on the ensemble's leader: its end would cost an election of servers.
    let on_follower = |id: &str, not: Option<u32>| {
        let masters = std::iter::repeat_with(|| cluster.master(id)).take(30);
        let mut masters = masters.map(|master| {
            let server = server_of(&ensemble, &master);
            (master, server)
        });
        masters
            .find(|(_, server)| *server != ensemble.leader() && Some(*server) != not)
            .expect("one in three")
    };
    let (_m1, server) = on_follower("m1", None);
    let first = cluster.leads("m1", LIMIT);
    let (_m2, _) = on_follower("m2", Some(server));
    eventually(LIMIT, "both are contenders", || {
        let ids: Vec<_> = cluster.contenders().into_iter().map(|contender| contender.id).collect();
        (ids == ["m1", "m2"]).then_some(())
    });
    let killed_ms = ensemble.kill_now(server);
    let second = cluster.leads("m2", LIMIT);
    eventually(LIMIT, "it took over", || {
        cluster.assignments().iter().all(|(_, a, _)| a.epoch == second.epoch).then_some(())
    });
    let writes = cluster.assignment_writes();
    let took_over =
        writes.iter().find(|(_, _, written)| written.epoch == second.epoch).expect("it rewrote it");
    let after_ms = took_over.0.time_ms - killed_ms;
    eprintln!("takeover {after_ms} ms after the leader's server was killed");
    assert!(after_ms < 500, "{after_ms} ms");
    assert!(cluster.contenders().iter().all(|contender| contender.path != first.path));
}

/// The quorum is lost for longer than any lease, and every role is there again soon after it: G10.
#[test]
fn g10_an_outage_of_the_quorum_passes() {
    outage(&[1, 2], "quorum-lost");
}

#[test]
fn g10_an_outage_of_all_servers_passes() {
    outage(&[1, 2, 3], "all-lost");
}

/// How long servers are away: longer than any lease.
const OUTAGE: Duration = Duration::from_secs(8);

/// An outage of these servers.
fn outage(victims: &[u32], name: &str) {
    let ensemble = Ensemble::start(3);
    let cluster = Cluster::on(&ensemble, name);
    let m1 = cluster.master("m1");
    cluster.leads("m1", LIMIT);
    let m2 = cluster.master("m2");
    eventually(LIMIT, "both are contenders", || (cluster.contenders().len() == 2).then_some(()));
    let w1 = cluster.worker("w1", &["--slots", "1"]);
    cluster.registered(&["w1"]);
    let mut running = cluster.submit(&[&until_go(&cluster)]);
    eventually(LIMIT, "it runs", || (runs(&cluster).len() == 1).then_some(()));
    let id = cluster.the_task();
    let mut queued = cluster.submit(&["echo queued"]);
    eventually(LIMIT, "both exist", || (cluster.tasks().len() == 2).then_some(()));
    let roles = [("m1", &m1), ("m2", &m2), ("w1", &w1), ("running", &running), ("queued", &queued)];

    let lost_ms = wall_clock_ms();
    play_outage(&ensemble, victims, &roles);
    let back = Instant::now();
    let back_ms = wall_clock_ms();
    fs::write(cluster.dir().join("go"), "").expect("a file");
    let exit = running.wait_exit(LIMIT);
    assert_eq!(
        (exit.code, exit.stdout.as_str()),
        (0, "attempt 2\n"),
        "killed with its lease: {}",
        exit.stderr
    );
    let exit = queued.wait_exit(LIMIT);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "queued\n"), "{}", exit.stderr);
    eprintln!("all tasks were done {:?} after the quorum was back", back.elapsed());
    eventually(LIMIT, "both are contenders again", || (cluster.contenders().len() == 2).then_some(()));
    cluster.registered(&["w1"]);
    assert_back_soon(&cluster, &id, lost_ms, back_ms);
}

/// Kills these servers, starts them again after the outage, and waits for the quorum. The roles hardly use the
/// processor meanwhile.
fn play_outage(ensemble: &Ensemble, victims: &[u32], roles: &[(&str, &Proc)]) {
    let cpu: Vec<_> = roles.iter().map(|(_, process)| process.cpu()).collect();
    for server in victims {
        ensemble.kill(*server);
    }
    std::thread::sleep(OUTAGE); // not to let things settle: it is how long the outage lasts
    for ((name, process), before) in roles.iter().zip(cpu) {
        let used = process.cpu().checked_sub(before).expect("it only grows");
        eprintln!("{name} used {used:?} in {OUTAGE:?}");
        assert!(used < OUTAGE / 20, "{name} used {used:?} in {OUTAGE:?}");
    }
    for server in victims {
        ensemble.start_no_wait(*server);
    }
    let mode = |server| ensemble.four_letters(server, "srvr").is_some_and(|answer| answer.contains("Mode: "));
    eventually(LIMIT, "the quorum is back", || (1..=3).any(mode).then_some(()));
}

/// By the ensemble's own log, a master leads and the worker is registered soon after the quorum was back, and nothing
/// is charged to the task.
fn assert_back_soon(cluster: &Cluster, id: &TaskId, lost_ms: i64, back_ms: i64) {
    let (mut leads, mut registered, mut moves) = (None, None, Vec::new());
    for txn in cluster.history().iter().filter(|txn| txn.time_ms > lost_ms + 1_000) {
        match &txn.op {
            Op::Set { path, .. } if *path == cluster.layout.status() => leads = leads.or(Some(txn.time_ms)),
            Op::Create { path, .. } if path.starts_with(&cluster.layout.workers()) => {
                registered = registered.or(Some(txn.time_ms));
            }
            Op::Set { path, data, .. } if *path == cluster.layout.task(id) => {
                moves.push(Task::decode(data).expect("a task"));
            }
            _ => {}
        }
    }
    let charged: u32 = moves.iter().map(|task| task.charged + task.deaths).sum();
    assert_eq!(charged, 0, "an outage is charged to no task: {moves:#?}");
    for (what, at) in [("a master led", leads), ("the worker was registered", registered)] {
        let after_ms = at.unwrap_or_else(|| panic!("never: {what}")) - back_ms;
        eprintln!("{what} {after_ms} ms after the quorum was back");
        // Two seconds, and one more for a machine that also starts servers meanwhile.
        assert!(after_ms < 3_000, "{what} only {after_ms} ms after the quorum was back");
    }
}

/// G10: a worker that alone is cut off for longer than its lease, and is back before its session could end, kills
/// its runs and hands the tasks back. The leader, which noticed nothing, charges no task for it.
#[test]
fn g10_a_worker_that_was_cut_off_hands_back_uncharged() {
    let ensemble = Ensemble::start(3);
    let cluster = Cluster::on(&ensemble, "cut-off").with(&["--session-timeout", "10s"]);
    let server = ensemble.followers()[0];
    let others: Vec<u32> = (1..=3).filter(|other| *other != server).collect();
    let _m1 = cluster.start("m1", &["master", "--id", "m1", "--zk", &connect_to(&ensemble, &others)]);
    let w1 = cluster.worker("w1", &["--slots", "1", "--zk", &ensemble.connect_to(server)]);
    cluster.registered(&["w1"]);
    let mut submit = cluster.submit(&["--zk", &connect_to(&ensemble, &others), &until_go(&cluster)]);
    eventually(LIMIT, "it runs", || (runs(&cluster).len() == 1).then_some(()));
    let id = cluster.the_task();
    ensemble.kill(server);
    eventually(SESSION, "its lease ends", || w1.stderr().contains("killing its tasks").then_some(()));
    ensemble.start_again(&[server]);
    eventually(LIMIT, "it runs again", || (runs(&cluster).len() >= 2).then_some(()));
    fs::write(cluster.dir().join("go"), "").expect("a file");
    let exit = submit.wait_exit(LIMIT);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "attempt 2\n"), "{}", exit.stderr);
    let path = cluster.layout.task(&id);
    let history = cluster.history();
    let writes = history.iter().filter_map(|txn| match &txn.op {
        Op::Set { path: of, data, .. } if *of == path => Some(Task::decode(data).expect("a task")),
        _ => None,
    });
    let charged: Vec<_> = writes.filter(|task| task.charged + task.deaths > 0).collect();
    assert!(charged.is_empty(), "{charged:#?}");
    assert_eq!(runs(&cluster), ["1", "2"]);
}

/// G1: what `submit` has printed outlives every process of ours and any minority of the servers.
#[test]
fn g01_a_submitted_task_outlives_everything() {
    let ensemble = Ensemble::start(3);
    let cluster = Cluster::on(&ensemble, "durable");
    let (m1, w1) = (cluster.master("m1"), cluster.worker("w1", &["--slots", "1"]));
    cluster.registered(&["w1"]);
    cluster.leads("m1", LIMIT);
    let running = cluster.submit_detached(&[&until_go(&cluster)]);
    eventually(LIMIT, "it runs", || (runs(&cluster).len() == 1).then_some(()));
    let pending = cluster.submit_detached(&["echo pending"]);
    let victim = ensemble.leader();
    m1.kill();
    w1.kill();
    ensemble.kill(victim);
    drop((m1, w1));
    let submitted_meanwhile = cluster.submit_detached(&["echo meanwhile"]);
    // No role runs yet: the tasks exist, on the servers that are left.
    for id in [&running, &pending, &submitted_meanwhile] {
        assert!(cluster.task(id).is_some_and(|(task, _)| task.outcome.is_none()), "{id}");
    }
    ensemble.start_again(&[victim]);
    let other = (1..=3).find(|server| *server != victim).expect("three");
    ensemble.kill(other);
    fs::write(cluster.dir().join("go"), "").expect("a file");
    let _m2 = cluster.master("m2");
    let _w2 = cluster.worker("w2", &["--slots", "1"]);
    for id in [&running, &pending, &submitted_meanwhile] {
        let task = cluster.ended(id, LIMIT);
        assert_eq!(task.outcome.map(|outcome| outcome.state), Some(State::Done), "{id}");
    }
    let exit = cluster.run(&["wait", &running.to_string()]);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "attempt 2\n"), "{}", exit.stderr);
}

/// G9: a service that ends after SIGTERM leaves no ephemerals.
#[test]
fn g09_a_clean_exit_leaves_no_ephemerals() {
    let cluster = Cluster::new("clean-exit");
    let mut m1 = cluster.master("m1");
    cluster.leads("m1", LIMIT);
    let mut w1 = cluster.worker("w1", &["--slots", "1"]);
    cluster.registered(&["w1"]);
    works(&cluster, "so-that-there-is-a-lease");
    let mut submit = cluster.submit(&["--require", "nobody=has", "true"]);
    eventually(LIMIT, "the task exists", || {
        cluster.tasks().into_iter().find(|(_, task, _)| task.options.require.is_some())
    });
    for process in [&mut submit, &mut w1, &mut m1] {
        process.term();
        let exit = process.wait_exit(SESSION / 2);
        assert!(exit.code == 0 || exit.code == 128 + 15, "{exit:?}");
    }
    cluster.tree.sync();
    let left: Vec<_> = cluster.tree.dump(&cluster.root).into_iter().collect();
    let ephemerals: Vec<_> = left.iter().filter(|(_, (_, stat))| stat.ephemeral_owner != 0).collect();
    assert!(ephemerals.is_empty(), "{ephemerals:?}");
    assert!(cluster.assignments().is_empty(), "a worker that leaves deletes its assignment");
    assert_eq!(cluster.tasks().len(), 1, "an interrupted submitter leaves its task alone");
}

/// G9: a server that hangs delays no exit for longer than `--close-timeout`.
#[test]
fn g09_an_exit_takes_no_longer_than_its_close_timeout() {
    let ensemble = Ensemble::start(1);
    let cluster = Cluster::on(&ensemble, "hung").with(&["--close-timeout", "1s"]);
    let mut m1 = cluster.master("m1");
    cluster.leads("m1", LIMIT);
    let mut w1 = cluster.worker("w1", &["--slots", "1"]);
    cluster.registered(&["w1"]);
    ensemble.stop(1);
    for process in [&mut w1, &mut m1] {
        let start = Instant::now();
        process.term();
        let exit = process.wait_exit(LIMIT);
        let took = start.elapsed();
        eprintln!("ended {took:?} after TERM, with a hung server");
        assert_eq!(exit.code, 0, "{exit:?}");
        assert!(took < Duration::from_millis(1_500), "{took:?}");
    }
    ensemble.cont(1);
    eventually(LIMIT, "their ephemerals go with their sessions", || {
        (cluster.contenders().is_empty() && cluster.registrations().is_empty()).then_some(())
    });
}

/// G5, the hardest case: a leader's write is in the buffers of a server that hangs. The leader is replaced; then the
/// server goes on, and the write arrives, with a session that still lives. Its version refuses it.
#[test]
fn g05_a_late_write_of_a_deposed_leader_is_refused() {
    // A server's held-back write is lost if the others drop the server before it goes on.
    let setup = Setup { sync: Some(LIMIT), ..Setup::default() };
    let ensemble = Ensemble::start_with(3, setup);
    let everywhere = Cluster::on(&ensemble, "late-write");
    // On a follower, so that the quorum goes on without it.
    let connected = |n: u32| {
        // Each has a name of its own, since an earlier one's contender exists for a while.
        let id = format!("m1-{n}");
        let m1 = everywhere.master(&id);
        let server = server_of(&ensemble, &m1);
        (m1, id, server)
    };
    let on_follower = |(_, _, server): &(Proc, String, u32)| *server != ensemble.leader();
    let (m1, id, hung) = (1..20).map(connected).find(on_follower).expect("one in three is with the leader");
    let first = everywhere.leads(&id, DEATH + LIMIT);
    let others: Vec<u32> = (1..=3).filter(|server| *server != hung).collect();
    let cluster = everywhere.with_zk(&connect_to(&ensemble, &others));
    let _m2 = cluster.master("m2");
    eventually(LIMIT, "m2 is a standby", || {
        cluster.contenders().into_iter().any(|contender| contender.id == "m2").then_some(())
    });
    let _w1 = cluster.worker("w1", &["--slots", "1"]);
    cluster.registered(&["w1"]);
    // It fails at once and is to be tried again after a while: the leader assigns it then by its own clock, without
    // any event from its server.
    let id: TaskId = cluster.submit_detached(&[
        "--max-attempts",
        "2",
        "--retry-backoff",
        "800ms",
        "echo $ZKMW_ATTEMPT; [ $ZKMW_ATTEMPT = 2 ]",
    ]);
    eventually(LIMIT, "the leader knows that it is to be tried again", || {
        let (task, _) = cluster.task(&id)?;
        (task.attempt == 2 && cluster.assigned_to(&id).is_none()).then_some(())
    });
    ensemble.stop(hung);
    let second = cluster.leads("m2", DEATH);
    let taken_over = eventually(LIMIT, "m2 rewrites the assignment", || {
        let (_, assignment, stat) = cluster.assignments().into_iter().next()?;
        (assignment.epoch == second.epoch).then_some(stat.mzxid)
    });
    ensemble.cont(hung);
    let late = eventually(LIMIT, "the late write arrives, and is refused", || {
        let history = cluster.history();
        let late = |op: &Op| *op == Op::Refused { code: BAD_VERSION };
        history.into_iter().find(|txn| {
            txn.session == first.session && txn.zxid > taken_over && (late(&txn.op) || txn.path().is_some())
        })
    });
    assert_eq!(late.op, Op::Refused { code: BAD_VERSION }, "it was applied: {late:?}");
    let task = cluster.ended(&id, LIMIT);
    assert_eq!(task.outcome.map(|outcome| outcome.state), Some(State::Done));
    let epochs: Vec<_> = cluster.assignment_writes().iter().map(|(_, _, written)| written.epoch).collect();
    assert!(epochs.is_sorted(), "{epochs:?}");
    assert!(cluster.contenders().iter().all(|contender| contender.path != first.path));
    assert_eq!(name_of(&second.path), name_of(&cluster.contenders()[0].path), "m2 leads on");
    drop(m1);
}
