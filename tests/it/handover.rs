//! Electors that lose their connection: the command of the one that leads runs on, as long as its lease can be proved.

use std::fs;
use std::time::Duration;

use crate::cluster::server_of;
use crate::harness::{Cluster, Ensemble, LIMIT, Proc, eventually, process, throughout};
use crate::rolling::roll;

/// Of ten seconds a lease has more than four, which is enough for an election of servers.
const SESSION: Duration = Duration::from_secs(10);

/// A note of an elector's command.
#[derive(Clone, Debug, PartialEq)]
struct Note {
    /// `start`, `term` when it got SIGTERM, `two` when another one ran.
    what: String,
    epoch: i64,
    pid: u32,
}

/// One election on servers of its own.
struct Election {
    cluster: Cluster,
}

impl Election {
    fn on(ensemble: &std::sync::Arc<Ensemble>, name: &str) -> Election {
        let timeout = format!("{}s", SESSION.as_secs());
        Election { cluster: Cluster::on(ensemble, name).with(&["--session-timeout", &timeout]) }
    }

    /// An elector whose command runs until SIGTERM, under a lock that is held as long as it lives.
    fn elector(&self, id: &str, more: &[&str]) -> Proc {
        let dir = self.cluster.dir().display();
        let script = format!(
            "note() {{ echo $1 $ZKMW_EPOCH $$ >>{dir}/notes; }}; \
             exec 9>{dir}/lock; flock -n 9 || {{ note two; exit 1; }}; \
             trap 'note term; exit 0' TERM; note start; while :; do sleep .1; done"
        );
        self.cluster.elector(id, &[more, &["--", "/bin/sh", "-c", &script]].concat())
    }

    fn notes(&self) -> Vec<Note> {
        let text = fs::read_to_string(self.cluster.dir().join("notes")).unwrap_or_default();
        let note = |line: &str| {
            let [what, epoch, pid] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
            Some(Note { what: what.into(), epoch: epoch.parse().ok()?, pid: pid.parse().ok()? })
        };
        text.lines().map(|line| note(line).unwrap_or_else(|| panic!("no note: {line}"))).collect()
    }

    /// The only note so far: of a command that runs.
    fn first(&self) -> Note {
        let first = eventually(LIMIT, "a command runs", || self.notes().into_iter().next());
        assert_eq!(first.what, "start");
        first
    }

    /// Ids of all contenders, in the order in which they will lead.
    fn contenders(&self) -> Vec<String> {
        let dir = format!("{}/elections/default", self.cluster.root);
        self.cluster.contenders_below(&dir).into_iter().map(|contender| contender.id).collect()
    }

    #[track_caller]
    fn wait_contenders(&self, ids: &[&str]) {
        eventually(LIMIT, &format!("{ids:?} are the contenders"), || {
            (self.contenders() == ids).then_some(())
        });
    }
}

/// How often the elector has taken its lead over from one session to another.
fn handovers(elector: &Proc) -> usize {
    elector.stderr().lines().filter(|line| line.contains("connected again: leading")).count()
}

#[test]
fn g10_a_rolling_restart_moves_no_elector() {
    let ensemble = Ensemble::start(3);
    let election = Election::on(&ensemble, "rolls-electors");
    let mut e1 = election.elector("e1", &[]);
    let first = election.first();
    let _others = [election.elector("e2", &[]), election.elector("e3", &[])];
    eventually(LIMIT, "all are contenders", || (election.contenders().len() == 3).then_some(()));

    roll(&election.cluster, 2);
    let handovers = eventually(LIMIT, "it leads on", || {
        let count = handovers(&e1);
        (count >= 2 && election.contenders().len() == 3).then_some(count)
    });
    eprintln!("two rolling restarts: {handovers} handovers, none moved");
    assert_eq!(election.notes(), std::slice::from_ref(&first), "the same process, with the same epoch");
    assert!(process::is_alive(first.pid));
    assert_eq!(election.contenders()[0], "e1");

    e1.term();
    assert_eq!(e1.wait_exit(LIMIT).code, 0);
    let notes = eventually(LIMIT, "another one leads", || {
        let notes = election.notes();
        (notes.len() == 3).then_some(notes)
    });
    let whats: Vec<_> = notes.iter().map(|note| note.what.as_str()).collect();
    assert_eq!(whats, ["start", "term", "start"]);
    assert!(notes[2].epoch > first.epoch, "{notes:?}");
}

#[test]
fn a_killed_server_of_the_leading_elector_disturbs_nothing() {
    let ensemble = Ensemble::start(3);
    let election = Election::on(&ensemble, "killed-server");
    let e1 = election.elector("e1", &[]);
    let first = election.first();
    let _e2 = election.elector("e2", &[]);
    election.wait_contenders(&["e1", "e2"]);
    ensemble.kill(server_of(&ensemble, &e1));
    eventually(LIMIT, "it leads over another server", || (handovers(&e1) == 1).then_some(()));
    // Its old contender is deleted, not left to the end of its session.
    eventually(SESSION / 2, "one contender each", || (election.contenders().len() == 2).then_some(()));
    // The old session ends meanwhile, and so would its lease.
    throughout(SESSION + Duration::from_secs(3), "it was not notified of anything", || {
        election.notes() == std::slice::from_ref(&first) && process::is_alive(first.pid)
    });
}

#[test]
fn an_isolated_elector_kills_its_command_before_another_leads() {
    let ensemble = Ensemble::start(3);
    let election = Election::on(&ensemble, "cut-off");
    let only = ensemble.followers()[0];
    let mut e1 = election.elector("e1", &["--zk", &ensemble.connect_to(only)]);
    let first = election.first();
    let _e2 = election.elector("e2", &[]);
    election.wait_contenders(&["e1", "e2"]);

    ensemble.kill(only);
    throughout(Duration::from_secs(1), "the lease holds", || process::is_alive(first.pid));
    eventually(SESSION, "the lease ends", || (!process::is_alive(first.pid)).then_some(()));
    assert_eq!(election.notes(), std::slice::from_ref(&first), "killed, and nobody ran before");
    let notes = eventually(LIMIT, "the other one leads", || {
        let notes = election.notes();
        (notes.len() > 1).then_some(notes)
    });
    assert_eq!((notes.len(), notes[1].what.as_str()), (2, "start"), "{notes:?}");
    assert!(notes[1].epoch > first.epoch, "{notes:?}");
    assert!(e1.is_running() && handovers(&e1) == 0);
    // Once its server is back, it is the last contender.
    ensemble.start_again(&[only]);
    election.wait_contenders(&["e2", "e1"]);
}
