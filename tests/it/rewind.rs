//! The ensemble's data goes back under a service: an older copy of it is restored, or all of it is lost.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::harness::{Cluster, DEATH, Ensemble, LIMIT, Proc, eventually};

/// How soon everybody is back at work: sessions that the copy brings back to life have to end first.
const AGAIN: Duration = Duration::from_secs(20);

struct Service {
    cluster: Cluster,
    daemons: Vec<Proc>,
    token: String,
    /// The length of each daemon's log when the data went back last.
    said: Vec<usize>,
}

impl Service {
    fn start(ensemble: &Arc<Ensemble>, name: &str) -> Service {
        let cluster = Cluster::on(ensemble, name);
        let token = cluster.dir().join("token").display().to_string();
        let command = format!("echo $ZKMW_EPOCH >{token}.new; mv {token}.new {token}; exec sleep 1000");
        let mut daemons = vec![cluster.master("m1"), cluster.master("m2")];
        daemons.extend(["w1", "w2"].map(|id| cluster.worker(id, &["--slots", "4"])));
        daemons.extend(["e1", "e2"].map(|id| cluster.elector(id, &["--", "sh", "-c", &command])));
        let said = vec![0; daemons.len()];
        let mut service = Service { cluster, daemons, said, token };
        service.works("the start");
        service
    }

    /// Every process runs and is a contender or registered, the summary is true, and a new task of each kind is done.
    #[track_caller]
    fn works(&mut self, after: &str) {
        let cluster = &self.cluster;
        let election = format!("{}/elections/default", cluster.root);
        eventually(AGAIN, &format!("everybody is registered or a contender after {after}"), || {
            let status = cluster.status()?;
            let leader = cluster.leader()?;
            let contenders = cluster.contenders_below(&election);
            let first = contenders.first()?;
            let token: i64 = fs::read_to_string(&self.token).ok()?.trim().parse().ok()?;
            // An elector that handed its lead over within the lease has the token of the contender before, and says so.
            let (elector, said) =
                self.daemons.iter().zip(&self.said).find(|(it, _)| it.label() == first.id)?;
            let handed_over = || {
                let again = format!("leading, epoch {token}, as before");
                token <= first.epoch && elector.stderr().get(*said..).is_some_and(|log| log.contains(&again))
            };
            let is_of_term = reported_epoch(elector) == Some(token);
            let elected = contenders.len() == 2 && is_of_term && (token == first.epoch || handed_over());
            let all = cluster.contenders().len() == 2 && cluster.registrations().len() == 2;
            (elected && all && status["workers"] == 2 && status["leader"]["id"] == leader.id).then_some(())
        });
        let exit = cluster.submit(&["echo on"]).wait_exit(AGAIN);
        assert_eq!((exit.code, exit.stdout.as_str()), (0, "on\n"), "after {after}: {exit:?}");
        for chunk in ["1", "4"] {
            let lines = self.lines("quick", "true\n", 40);
            let exit = cluster.submit(&["--chunk", chunk, "--from-file", &lines]).wait_exit(AGAIN);
            assert_eq!(exit.code, 0, "after {after}, chunks of {chunk}: {exit:?}");
        }
        for daemon in &mut self.daemons {
            assert!(daemon.is_running(), "{} ended after {after}", daemon.label());
        }
    }

    fn lines(&self, name: &str, line: &str, count: usize) -> String {
        let path = self.cluster.dir().join(name);
        fs::write(&path, line.repeat(count)).expect("a file");
        path.display().to_string()
    }

    /// Submitters that wait while the data goes back: `early` made tasks that are in the copy, `late` made others.
    fn waiters(&self, key: &str) -> Vec<Proc> {
        let lines = self.lines(key, "sleep .2\n", 60);
        let submit = |args: &[&str]| self.cluster.submit(&[args, &["--from-file", &lines]].concat());
        vec![
            submit(&["--id", &format!("keyed-{key}")]),
            submit(&["--chunk", "5"]),
            self.cluster.submit(&["sleep 2"]),
        ]
    }
}

/// The epoch with which an elector leads, as it said last.
fn reported_epoch(elector: &Proc) -> Option<i64> {
    let log = elector.stderr();
    let (_, words) = log.rsplit_once("leading, epoch ")?;
    words.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A service that is idle when the copy is taken, works on, and finds itself back there; and then once more, without
/// data.
#[track_caller]
fn goes_back(servers: u32, name: &str) {
    let ensemble = Ensemble::start(servers);
    let mut service = Service::start(&ensemble, name);
    let mut waiting = service.waiters("early");
    eventually(LIMIT, "they are there", || (service.cluster.tasks().len() > 3).then_some(()));
    let copy = ensemble.copy_data();
    for n in 0..10 {
        let exit = service.cluster.run(&["submit", &format!("echo {n}")]);
        assert_eq!(exit.code, 0, "{exit:?}");
    }
    waiting.extend(service.waiters("late"));
    for (copy, what) in [(Some(&copy), "the older copy"), (None, "the loss of all data")] {
        service.said = service.daemons.iter().map(|daemon| daemon.stderr().len()).collect();
        ensemble.rewind(copy.map(|copy| copy as &Path));
        service.works(what);
        for waiter in &mut waiting {
            let exit = waiter.wait_exit(AGAIN + DEATH);
            assert!([0, 1].contains(&exit.code), "after {what}: {exit:?}");
        }
        waiting = service.waiters(if copy.is_some() { "again" } else { "last" });
        eventually(LIMIT, "they are there", || (service.cluster.tasks().len() > 3).then_some(()));
    }
    for waiter in &mut waiting {
        assert_eq!(waiter.wait_exit(LIMIT).code, 0, "what began afterwards is not hurt");
    }
    let warned = |daemon: &&Proc| daemon.stderr().contains("the ensemble's data went back");
    let warned = service.daemons.iter().filter(warned).count();
    assert!(warned >= 4, "all that had seen what is no more say so: {warned}");
}

#[test]
fn g12_a_service_goes_on_when_its_only_server_went_back() {
    goes_back(1, "rewind-1");
}

#[test]
fn g12_a_service_goes_on_when_all_three_servers_went_back() {
    goes_back(3, "rewind-3");
}
