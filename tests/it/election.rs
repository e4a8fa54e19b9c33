//! Elections: one of three leads, never two, eventually one; takeovers, and what a deposed leader can still do.

use zkmw::contract::name_of;
use zkmw::contract::task::{Options, Payload, Task};
use zkmw::contract::worker::Assignment;

use std::fs;
use std::time::Duration;

use crate::harness::{
    Cluster, Contender, DEATH, Ensemble, LIMIT, Op, Proc, Txn, eventually, throughout, wall_clock_ms,
};

/// The reports of an elector without a command, as its standard output has them.
fn reports(elector: &Proc) -> Vec<String> {
    elector.stdout().lines().map(str::to_string).collect()
}

/// Three electors (or more) of one election, in the order of their contenders.
struct Electors {
    cluster: Cluster,
    processes: Vec<(String, Proc)>,
    started: usize,
}

impl Electors {
    fn three(name: &str) -> Electors {
        let mut electors = Electors { cluster: Cluster::new(name), processes: Vec::new(), started: 0 };
        for _ in 0..3 {
            electors.one_more();
        }
        electors
    }

    /// Starts one more, behind the others.
    #[track_caller]
    fn one_more(&mut self) {
        self.started += 1;
        let id = format!("e{}", self.started);
        let process = self.cluster.elector(&id, &[]);
        self.processes.push((id, process));
        self.agree();
    }

    fn contenders(&self) -> Vec<Contender> {
        self.cluster.contenders_below(&format!("{}/elections/default", self.cluster.root))
    }

    /// Waits until the tree has exactly those that live, in their order, and each of them has printed the very position
    /// that it has in the tree: the first leads with its czxid as the epoch, each other is behind the one before it.
    #[track_caller]
    fn agree(&self) -> Vec<Contender> {
        eventually(DEATH + LIMIT, "tree and electors agree", || {
            let contenders = self.contenders();
            let ids: Vec<_> = contenders.iter().map(|contender| contender.id.as_str()).collect();
            if ids != self.processes.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>() {
                return None;
            }
            for (position, (_, process)) in self.processes.iter().enumerate() {
                let expected = match position {
                    0 => format!("leading, epoch {}", contenders[0].epoch),
                    _ => format!("waiting behind {}", name_of(&contenders[position - 1].path)),
                };
                if reports(process).last() != Some(&expected) {
                    return None;
                }
            }
            Some(contenders)
        })
    }

    /// Ends the elector at this position, by TERM or by KILL, and checks that only the next one took notice.
    #[track_caller]
    fn lose(&mut self, position: usize, gracefully: bool) {
        let (id, mut process) = self.processes.remove(position);
        let before: Vec<_> = self.processes.iter().map(|(_, process)| reports(process)).collect();
        let signalled_ms = wall_clock_ms();
        if gracefully {
            process.term();
            assert_eq!(process.wait_exit(LIMIT).code, 0);
        } else {
            process.kill();
        }
        self.agree();
        let gone_ms = self.gone_ms(&id) - signalled_ms;
        eprintln!(
            "{id} at position {position} was gone {gone_ms} ms after {}",
            if gracefully { "TERM" } else { "KILL" }
        );
        assert!(gone_ms < if gracefully { 500 } else { i64::try_from(DEATH.as_millis()).unwrap_or(0) });
        for (at, (other, process)) in self.processes.iter().enumerate() {
            // The one behind it now has its position.
            let expected = before[at].len() + usize::from(at == position);
            assert_eq!(
                reports(process).len(),
                expected,
                "{other} after the end of {id}: {:?}",
                reports(process)
            );
        }
    }

    /// When the contender with this id went, by the ensemble's clock: its session ended, or it was deleted.
    fn gone_ms(&self, id: &str) -> i64 {
        let history = self.cluster.history();
        let born = history.iter().find_map(|txn| match &txn.op {
            Op::Create { path, data, ephemeral: true }
                if data == id.as_bytes() && path.contains("/elections/") =>
            {
                Some(txn.session)
            }
            _ => None,
        });
        let session = born.expect("it was a contender");
        let ends = |txn: &&Txn| txn.session == session && txn.op == Op::SessionEnds;
        history.iter().find(ends).expect("its session ended").time_ms
    }

    /// The epochs with which the live electors have led.
    fn epochs(&self) -> Vec<i64> {
        let mut epochs: Vec<i64> = Vec::new();
        for (_, process) in &self.processes {
            epochs.extend(
                reports(process)
                    .iter()
                    .filter_map(|line| line.strip_prefix("leading, epoch ")?.parse::<i64>().ok()),
            );
        }
        epochs
    }
}

#[test]
fn election_three_electors_one_leads() {
    let electors = Electors::three("one-leads");
    let contenders = electors.agree();
    throughout(Duration::from_secs(2), "one leads", || electors.epochs() == [contenders[0].epoch]);
    assert_eq!(electors.agree(), contenders);
}

#[test]
fn election_term_to_any_of_three() {
    let mut electors = Electors::three("term");
    for position in [0, 1, 2] {
        electors.lose(position, true);
        electors.one_more();
    }
}

#[test]
fn election_kill_to_any_of_three() {
    let mut electors = Electors::three("kill");
    for position in [0, 1, 2] {
        electors.lose(position, false);
        electors.one_more();
    }
    electors.lose(0, false);
    electors.lose(0, false);
    assert_eq!(electors.processes.len(), 1, "eventually one");
}

#[test]
fn election_a_stopped_leader_wakes_up_at_the_end_of_the_line() {
    let mut electors = Electors::three("stopped-elector");
    let first = electors.agree().remove(0);
    electors.processes[0].1.stop();
    let (id, old) = electors.processes.remove(0);
    let second = electors.agree().remove(0);
    assert!(second.epoch > first.epoch);
    let woken = reports(&old).len();
    old.cont();
    electors.processes.push((id, old));
    electors.agree();
    let after = reports(&electors.processes[2].1);
    assert!(after[woken].starts_with("lost: "), "the first thing it says: {after:?}");
    assert!(after[woken..].iter().all(|line| !line.starts_with("leading")), "{after:?}");
}

/// Never two: the command of each elector holds a lock for as long as it lives, and notes if it did not get it.
#[test]
fn election_never_two_commands_at_once_when_leaders_stop() {
    never_two_commands("never-two-term", &["TERM", "TERM", "TERM"]);
}

/// One leader after the other gets its signal. A stopped one stays so until its successor runs.
fn never_two_commands(name: &str, signals: &[&str]) {
    let cluster = Cluster::new(name);
    let dir = cluster.dir().display().to_string();
    let script = format!(
        "exec 9>{dir}/lock; flock -n 9 || {{ echo $ZKMW_EPOCH two >>{dir}/runs; exit 1; }}; \
         echo $ZKMW_EPOCH one >>{dir}/runs; sleep 600 & wait"
    );
    let elector = |number: usize| {
        cluster.elector(&format!("e{number}"), &["--grace", "1s", "--", "/bin/sh", "-c", &script])
    };
    let mut electors: Vec<(String, Proc)> =
        (1..=3).map(|number| (format!("e{number}"), elector(number))).collect();
    let path = format!("{}/elections/default", cluster.root);
    let runs = || -> Vec<(i64, String)> {
        let text = fs::read_to_string(cluster.dir().join("runs")).unwrap_or_default();
        let line =
            |line: &str| Some((line.split_once(' ')?.0.parse().ok()?, line.split_once(' ')?.1.to_string()));
        text.lines().filter_map(line).collect()
    };
    for (round, signal) in signals.iter().enumerate() {
        let leader = eventually(DEATH + LIMIT, "the leader's command runs", || {
            let leader = cluster.contenders_below(&path).into_iter().next()?;
            (runs().last()?.0 == leader.epoch).then_some(leader)
        });
        let at = electors.iter().position(|(id, _)| *id == leader.id).expect("one of ours");
        let (_, victim) = &electors[at];
        match *signal {
            "KILL" => victim.kill(),
            "TERM" => victim.term(),
            _ => victim.stop(),
        }
        eventually(DEATH + LIMIT, "another one runs it", || (runs().last()?.0 > leader.epoch).then_some(()));
        // The victim's successor is the last contender.
        let id = format!("e{}", round + 4);
        electors[at] = (id, elector(round + 4));
    }
    let runs = runs();
    assert!(runs.iter().all(|(_, how)| how == "one"), "two at once: {runs:?}");
    assert!(runs.is_sorted() && runs.len() == signals.len() + 1, "the fencing token only grows: {runs:?}");
}

/// G5: the leader is stopped past its session timeout, another leads, the old one wakes up: none of its writes is
/// applied, and it contends again, at the end of the line.
#[test]
fn g05_a_leader_that_wakes_up_after_its_session_changes_nothing() {
    let cluster = Cluster::new("stopped-leader");
    let mut m1 = cluster.master("m1");
    let first = cluster.leads("m1", LIMIT);
    let mut m2 = cluster.master("m2");
    eventually(LIMIT, "both are contenders", || (cluster.contenders().len() == 2).then_some(()));
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
    eventually(LIMIT, "m1 is a contender again, behind m2", || {
        let ids: Vec<_> = cluster.contenders().into_iter().map(|contender| contender.id).collect();
        (ids == ["m2", "m1"]).then_some(())
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
        eventually(LIMIT, &format!("{id} is a standby, and knows all"), || {
            let log = process.stderr();
            (log.contains("2000 tasks loaded") && log.contains("standby")).then_some(())
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
    // The new leader does assign tasks.
    let exit = cluster.run(&["submit", "echo led"]);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "led\n"), "{}", exit.stderr);
    drop(next);
}

/// Which sessions have a watch on which path, as a server's `wchp` prints it.
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

/// G7: each contender is watched by its owner and by the one behind it, and by no other. So a death wakes one.
#[track_caller]
fn each_is_watched_by_the_next_alone(ensemble: &Ensemble, contenders: &[Contender]) {
    for (position, contender) in contenders.iter().enumerate() {
        let mut expected: Vec<i64> = contenders[position..].iter().take(2).map(|c| c.session).collect();
        expected.sort_unstable();
        let what = format!("contender {position} is watched by its owner and by the next");
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
            eventually(LIMIT, "it is a contender", || (cluster.contenders().len() == number).then_some(()));
            master
        })
        .collect();
    each_is_watched_by_the_next_alone(&ensemble, &cluster.contenders());
    let logs = |which: &[usize]| which.iter().map(|at| masters[*at].stderr()).collect::<Vec<_>>();
    // One in the middle dies. Only the one behind it lists the contenders again; then it watches the one before.
    let before = logs(&[0, 1, 4]);
    masters[2].kill();
    eventually(LIMIT, "its contender is gone", || (cluster.contenders().len() == 4).then_some(()));
    each_is_watched_by_the_next_alone(&ensemble, &cluster.contenders());
    assert_eq!(cluster.leads("m1", LIMIT).id, "m1");
    assert_eq!(logs(&[0, 1, 4]), before, "no other master does anything");
    // The leader dies: the next leads, the others go on as they were.
    let before = logs(&[3, 4]);
    masters[0].term();
    cluster.leads("m2", LIMIT);
    eventually(LIMIT, "three are left", || (cluster.contenders().len() == 3).then_some(()));
    each_is_watched_by_the_next_alone(&ensemble, &cluster.contenders());
    assert_eq!(logs(&[3, 4]), before, "the others do nothing");
}

/// G3 for electors: when an elector is killed or stopped, its command has ended before another one's begins.
#[test]
fn g03_never_two_commands_at_once_when_leaders_die_or_hang() {
    never_two_commands("never-two", &["KILL", "TERM", "STOP", "KILL"]);
}
