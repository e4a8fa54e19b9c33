//! The service's directories and znodes are deleted while it runs: each one, three times in a row, idle and under load.
//! It is made again, service goes on within seconds, no process exits, and no log fills.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use zkmw::contract::contender_rank;
use zkmw::machine::{CallError, Refusal};

use crate::harness::{Cluster, LIMIT, Proc, Tree, eventually};

/// How soon service must go on.
const SOON: Duration = Duration::from_secs(5);

/// How long a deletion is tried against processes that make again what it deletes.
const PATIENCE: Duration = Duration::from_millis(500);

/// Services side by side: a deletion is mostly waited for. More of them would be too much for two processors.
const SERVICES: usize = 2;

/// A service with all its roles.
struct Service {
    cluster: Cluster,
    daemons: Vec<Proc>,
    /// Where elected commands write their fencing tokens and processes, a line each.
    token: String,
}

impl Service {
    fn start(name: &str) -> Service {
        let cluster = Cluster::new(name);
        let token = cluster.dir().join("token").display().to_string();
        // When a contender is deleted, its command ends only after that is reported. Another one's may begin before.
        let command = format!("echo $ZKMW_EPOCH $$ >>{token}; exec sleep 1000");
        let mut daemons = vec![cluster.master("m1"), cluster.master("m2")];
        daemons.extend(["w1", "w2"].map(|id| cluster.worker(id, &["--slots", "4"])));
        daemons.extend(["e1", "e2"].map(|id| cluster.elector(id, &["--", "sh", "-c", &command])));
        cluster.registered(&["w1", "w2"]);
        let service = Service { cluster, daemons, token };
        service.elects(LIMIT);
        service
    }

    fn election(&self) -> String {
        format!("{}/elections/default", self.cluster.root)
    }

    /// The leading elector's command runs with its token, and both electors are contenders.
    #[track_caller]
    fn elects(&self, limit: Duration) {
        eventually(limit, "the command of the leading elector runs", || {
            let contenders = self.cluster.contenders_below(&self.election());
            let begun = fs::read_to_string(&self.token).ok()?;
            let epoch = contenders.first()?.epoch.to_string();
            let of_leader =
                |(token, pid): (&str, &str)| token == epoch && Path::new("/proc").join(pid).exists();
            let runs = begun.lines().filter_map(|line| line.split_once(' ')).any(of_leader);
            (contenders.len() == 2 && runs).then_some(())
        });
    }

    /// A new task is done in time, everybody is there, and says so.
    #[track_caller]
    fn goes_on(&mut self, what: &str) {
        let start = Instant::now();
        let mut submit = self.cluster.submit(&["echo on"]);
        let exit = submit.wait_exit(SOON);
        assert_eq!((exit.code, exit.stdout.as_str()), (0, "on\n"), "after {what} was deleted: {exit:?}");
        let left = SOON.saturating_sub(start.elapsed());
        eventually(left, &format!("the leader counts both workers after {what} was deleted"), || {
            let status = self.cluster.status()?;
            (self.cluster.contenders().len() == 2 && status["workers"] == 2).then_some(())
        });
        if what.contains("elections") || what == "the root" {
            self.elects(SOON);
        }
        for daemon in &mut self.daemons {
            assert!(daemon.is_running(), "{} ended after {what} was deleted", daemon.label());
        }
    }

    /// The znodes to delete: a name for each, and its present path.
    fn victims(&self) -> Vec<(&'static str, Option<String>)> {
        let layout = &self.cluster.layout;
        let below = |dir: String, last: bool| {
            let mut names = self.cluster.tree.children(&dir).unwrap_or_default();
            names.sort_by_key(|name| contender_rank(name).map(str::to_string));
            let name = if last { names.pop() } else { names.into_iter().next() };
            name.map(|name| format!("{dir}/{name}"))
        };
        vec![
            ("status", Some(layout.status())),
            ("master", Some(layout.master())),
            ("the leader's contender", below(layout.master(), false)),
            ("the standby's contender", below(layout.master(), true)),
            ("workers", Some(layout.workers())),
            ("a registration", below(layout.workers(), false)),
            ("assign", Some(layout.assign())),
            ("an assignment", below(layout.assign(), false)),
            ("leases", Some(layout.leases())),
            ("a lease", below(layout.leases(), false)),
            ("submitters", Some(layout.submitters())),
            ("elections", Some(format!("{}/elections", self.cluster.root))),
            ("the contender of elections' leader", below(self.election(), false)),
            ("the contender of elections' follower", below(self.election(), true)),
            ("a job", below(layout.tasks(), false)),
            ("tasks", Some(layout.tasks())),
            ("the root", Some(self.cluster.root.clone())),
        ]
    }

    /// Nothing is logged for ever.
    #[track_caller]
    fn comes_to_rest(&self) {
        let lines = || self.daemons.iter().map(|daemon| daemon.stderr().lines().count()).sum::<usize>();
        let mut since = (Instant::now(), lines());
        eventually(LIMIT, "the daemons have nothing more to log", || {
            let now = lines();
            if now != since.1 {
                since = (Instant::now(), now);
            }
            (since.0.elapsed() > Duration::from_secs(2)).then_some(())
        });
    }
}

/// Deletes a znode and all below it, as far as the processes that make it again let it.
fn vanish(tree: &Tree, path: &str) {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let found = tree.dump(path);
        for path in found.keys().rev() {
            match tree.delete(path) {
                Ok(_) | Err(CallError::Refused(Refusal::NoNode | Refusal::NotEmpty)) => {}
                other => panic!("delete {path}: {other:?}"),
            }
        }
        if tree.exists(path).is_none() {
            return;
        }
    }
}

/// Several services, each with another share of the znodes to delete: their positions in the list.
fn side_by_side(name: &str, play: fn(&mut Service, Vec<usize>)) {
    thread::scope(|scope| {
        for share in 0..SERVICES {
            scope.spawn(move || {
                let mut service = Service::start(&format!("{name}-{share}"));
                let positions = (share..service.victims().len()).step_by(SERVICES).collect();
                play(&mut service, positions);
                service.comes_to_rest();
            });
        }
    });
}

#[test]
fn g12_whatever_vanishes_is_made_again_while_nothing_happens() {
    side_by_side("vanish-idle", |service, positions| {
        for at in positions {
            for _ in 0..3 {
                let (what, path) = service.victims().swap_remove(at);
                let Some(path) = path else { continue };
                vanish(&service.cluster.tree, &path);
                service.goes_on(what);
            }
        }
    });
}

#[test]
fn g12_whatever_vanishes_is_made_again_under_load() {
    side_by_side("vanish-load", |service, positions| {
        let lines = service.cluster.dir().join("lines");
        fs::write(&lines, "sleep .05\n".repeat(400)).expect("a file");
        let lines = lines.display().to_string();
        let start = |service: &Service| service.cluster.submit(&["--from-file", &lines]);
        let mut load = start(service);
        for at in positions {
            for _ in 0..3 {
                if !load.is_running() {
                    load = start(service);
                }
                eventually(LIMIT, "the load is there", || {
                    let leases = service.cluster.tree.children(&service.cluster.layout.leases());
                    (!load.is_running() || leases.is_some_and(|leases| !leases.is_empty())).then_some(())
                });
                let (what, path) = service.victims().swap_remove(at);
                let Some(path) = path else { continue };
                vanish(&service.cluster.tree, &path);
                service.goes_on(what);
            }
        }
        // A task that was deleted counts as failed; the batch still ends.
        let exit = load.wait_exit(LIMIT);
        assert!([0, 1].contains(&exit.code), "{exit:?}");
    });
}
