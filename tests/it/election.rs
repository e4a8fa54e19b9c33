//! Who leads: one of three, never two, eventually one; takeovers, and what a deposed leader can still do.

use zkmw::contract::task::{Options, Payload, Task};
use zkmw::contract::worker::Assignment;

use crate::harness::{Cluster, Contender, DEATH, Ensemble, LIMIT, Op, Proc, eventually, wall_clock_ms};

/// G5: the leader is stopped past its session timeout, another leads, the old one wakes up: none of its writes is
/// applied, and it stands again at the end.
#[test]
fn g05_a_leader_that_wakes_up_after_its_session_changes_nothing() {
    let cluster = Cluster::new("stopped-leader");
    let mut m1 = cluster.master("m1");
    let first = cluster.leads("m1", LIMIT);
    let mut m2 = cluster.master("m2");
    eventually(LIMIT, "both stand", || (cluster.contenders().len() == 2).then_some(()));
    let _w1 = cluster.worker("w1", &["--slots", "1"]);
    cluster.registered(&["w1"]);
    let mut submits: Vec<_> =
        (0..6).map(|number| cluster.submit(&[&format!("sleep .3; echo {number}")])).collect();
    eventually(LIMIT, "something was given out", || {
        cluster.assignments().iter().any(|(_, a, _)| !a.entries.is_empty()).then_some(())
    });
    m1.stop();
    let second = cluster.leads("m2", DEATH);
    assert!(second.epoch > first.epoch);
    m1.cont();
    eventually(LIMIT, "m1 stands again, behind m2", || {
        let standing: Vec<_> = cluster.contenders().into_iter().map(|contender| contender.id).collect();
        (standing == ["m2", "m1"]).then_some(())
    });
    for (number, submit) in submits.iter_mut().enumerate() {
        let exit = submit.wait_exit(LIMIT);
        assert_eq!((exit.code, exit.stdout), (0, format!("{number}\n")), "{}", exit.stderr);
    }
    let history = cluster.history();
    let led = history.iter().position(|txn| {
        matches!(&txn.op, Op::Set { path, data, .. } if *path == cluster.layout.status()
            && serde_json::from_slice::<serde_json::Value>(data).is_ok_and(|s| s["leader"]["epoch"] == second.epoch))
    });
    for txn in &history[led.expect("m2 said that it leads")..] {
        assert!(txn.session != first.session || txn.path().is_none(), "by the deposed leader: {txn:?}");
        if let Op::Set { path, data, .. } = &txn.op
            && path.starts_with(&cluster.layout.assign())
        {
            assert_eq!(Assignment::decode(data).expect("an assignment").epoch, second.epoch, "{txn:?}");
        }
    }
    assert!(m1.stderr().contains("connection lost"), "{}", m1.stderr());
    assert!(m1.is_running() && m2.is_running());
    assert!(cluster.tasks().is_empty());
}

/// Puts `count` tasks that no worker may take into one job.
fn backlog(cluster: &Cluster, count: usize) {
    let job = cluster.layout.job("backlog");
    cluster.tree.create(&job, b"").expect("a job");
    let options =
        Options { require: Some([("no".to_string(), "body".to_string())].into()), ..Options::default() };
    let task = Task::new(Payload::Shell("true".into()), options).encode();
    std::thread::scope(|scope| {
        for part in 0..16 {
            let (task, job) = (&task, &job);
            scope.spawn(move || {
                for number in (part..count).step_by(16) {
                    cluster.tree.create(&format!("{job}/{number:06}"), task).expect("a task");
                }
            });
        }
    });
}

/// When the leader of this epoch first wrote an assignment, by the ensemble's clock.
fn took_over_ms(cluster: &Cluster, epoch: i64) -> i64 {
    let writes = cluster.assignment_writes();
    let first = writes.iter().find(|(_, _, written)| written.epoch == epoch);
    first.expect("it rewrote the assignment").0.time_ms
}

/// G6, and the budget's takeover: gracefully in < 500 ms, killed within T + a tick + 1 s; with 2,000 pending tasks.
#[test]
fn g06_takeovers_are_quick_whatever_the_backlog() {
    let cluster = Cluster::new("takeover");
    let _w1 = cluster.worker("w1", &["--slots", "1"]);
    let mut leader = cluster.master("m0");
    cluster.leads("m0", LIMIT);
    cluster.registered(&["w1"]);
    backlog(&cluster, 2_000);
    let standby = |id: &str| {
        let process = cluster.master(id);
        eventually(LIMIT, &format!("{id} stands by, and knows all"), || {
            let log = process.stderr();
            (log.contains("2000 tasks loaded") && log.contains("standing by")).then_some(())
        });
        process
    };
    let mut graceful_ms = Vec::new();
    for number in 1..=3 {
        let id = format!("m{number}");
        let next = standby(&id);
        let signalled_ms = wall_clock_ms();
        leader.term();
        let contender = cluster.leads(&id, LIMIT);
        assert_eq!(leader.wait_exit(LIMIT).code, 0);
        eventually(LIMIT, "it took over", || {
            cluster.assignments().iter().all(|(_, a, _)| a.epoch == contender.epoch).then_some(())
        });
        graceful_ms.push(took_over_ms(&cluster, contender.epoch) - signalled_ms);
        leader = next;
    }
    let next = standby("m4");
    let signalled_ms = wall_clock_ms();
    leader.kill();
    let contender = cluster.leads("m4", LIMIT);
    eventually(LIMIT, "it took over", || {
        cluster.assignments().iter().all(|(_, a, _)| a.epoch == contender.epoch).then_some(())
    });
    let killed_ms = took_over_ms(&cluster, contender.epoch) - signalled_ms;
    eprintln!("takeover with 2,000 pending: {graceful_ms:?} ms after TERM, {killed_ms} ms after KILL");
    graceful_ms.sort_unstable();
    assert!(graceful_ms[1] < 500, "the median after TERM: {graceful_ms:?} ms");
    assert!(u128::try_from(killed_ms).is_ok_and(|ms| ms <= DEATH.as_millis()), "{killed_ms} ms");
    // The new leader leads in earnest.
    let exit = cluster.run(&["submit", "echo led"]);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "led\n"), "{}", exit.stderr);
    drop(next);
}

/// Which sessions have a watch on which path, as a server's `wchp` tells it.
fn watchers(ensemble: &Ensemble, path: &str) -> Vec<i64> {
    let answer = ensemble.four_letters(1, "wchp").expect("an answer");
    let mut found = Vec::new();
    let mut ours = false;
    for line in answer.lines() {
        match line.strip_prefix('\t') {
            None => ours = line == path,
            Some(session) if ours => {
                let hex = session.trim().trim_start_matches("0x");
                found.push(u64::from_str_radix(hex, 16).expect("a session").cast_signed());
            }
            Some(_) => {}
        }
    }
    found.sort_unstable();
    found
}

/// G7: each contender is watched by its owner and by the one behind it, and by nobody else. So a death wakes one.
#[track_caller]
fn each_is_watched_by_the_next_alone(ensemble: &Ensemble, contenders: &[Contender]) {
    for (place, contender) in contenders.iter().enumerate() {
        let mut expected: Vec<i64> = contenders[place..].iter().take(2).map(|c| c.session).collect();
        expected.sort_unstable();
        let what = format!("contender {place} is watched by its owner and by the next");
        eventually(LIMIT, &what, || (watchers(ensemble, &contender.path) == expected).then_some(()));
    }
    let dir = contenders[0].path.rsplit_once('/').expect("a directory").0;
    assert!(watchers(ensemble, dir).is_empty(), "nobody watches the directory");
}

#[test]
fn g07_a_death_wakes_only_the_next_contender() {
    // One server, so that it knows all watches.
    let ensemble = Ensemble::start(1);
    let cluster = Cluster::on(&ensemble, "no-herd");
    let masters: Vec<Proc> = (1..=5)
        .map(|number| {
            let master = cluster.master(&format!("m{number}"));
            eventually(LIMIT, "it stands", || (cluster.contenders().len() == number).then_some(()));
            master
        })
        .collect();
    each_is_watched_by_the_next_alone(&ensemble, &cluster.contenders());
    let logs = |which: &[usize]| which.iter().map(|at| masters[*at].stderr()).collect::<Vec<_>>();
    // One in the middle dies: only the one behind it looks again, and then watches the one before the dead.
    let before = logs(&[0, 1, 4]);
    masters[2].kill();
    eventually(LIMIT, "its contender is gone", || (cluster.contenders().len() == 4).then_some(()));
    each_is_watched_by_the_next_alone(&ensemble, &cluster.contenders());
    assert_eq!(cluster.leads("m1", LIMIT).id, "m1");
    assert_eq!(logs(&[0, 1, 4]), before, "nobody changes what it does");
    // The leader dies: the next leads, the others go on as they were.
    let before = logs(&[3, 4]);
    masters[0].term();
    cluster.leads("m2", LIMIT);
    eventually(LIMIT, "three are left", || (cluster.contenders().len() == 3).then_some(()));
    each_is_watched_by_the_next_alone(&ensemble, &cluster.contenders());
    assert_eq!(logs(&[3, 4]), before, "nobody else changes what it does");
}
