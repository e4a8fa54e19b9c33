//! How soon a standby leads when the leader ends, as a client with watches sees it. Must not count the time that a
//! process needs to start again: it waits for that afterwards.

use std::time::Instant;

use zkmw::contract::worker::Assignment;

use crate::client::Client;
use crate::harness::eventually;
use crate::service::{BATCH, END, START, Service, last_lines};

/// The way in which a leader ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It leaves the election itself.
    Term,
    /// The ensemble has to notice: its session has to end.
    Kill,
}

impl Signal {
    /// The exit code of a process that it ended, as a shell reports it.
    fn exit_code(self) -> i32 {
        match self {
            Signal::Term => 0,
            Signal::Kill => 137,
        }
    }
}

/// Milliseconds until every worker's assignment carries the next leader's epoch, which is when that may give out tasks.
#[derive(Clone, Copy, Debug)]
pub struct Takeover {
    /// From the signal.
    pub since_signal: f64,
    /// From the end of the old leader's contender: without the time that the ensemble takes to give up a session.
    pub since_end: f64,
}

impl Service {
    /// Ends the leader, and waits until the standby leads. Then another standby is started, and is ready and quiet.
    pub fn takeover(&mut self, client: &mut Client, signal: Signal) -> Takeover {
        let old = self.leader_first();
        let dir = self.cluster.layout.assign();
        let assignments: Vec<String> =
            client.children(&dir).iter().map(|name| format!("{dir}/{name}")).collect();
        let mut open: Vec<String> = assignments
            .into_iter()
            .filter(|assignment| epoch(client, assignment) == Some(old.epoch))
            .collect();
        assert!(!open.is_empty(), "there are assignments of the leader");
        client.get(&old.path, true).expect("the leader's contender exists");
        let from = Instant::now();
        match signal {
            Signal::Term => self.masters[0].term(),
            Signal::Kill => self.masters[0].kill(),
        }
        // A session's watches fire in the order of the changes: the contender ends before an assignment changes hands.
        let mut ended = from;
        while !open.is_empty() {
            let path = client.wait_change(END).expect("somebody takes over");
            if path == old.path {
                ended = Instant::now();
            } else if epoch(client, &path).is_some_and(|epoch| epoch != old.epoch) {
                open.retain(|assignment| *assignment != path);
            }
        }
        assert!(ended > from, "the end of the contender was seen");
        let ms = |since: Instant| 1_000.0 * since.elapsed().as_secs_f64();
        let takeover = Takeover { since_signal: ms(from), since_end: ms(ended) };
        let exit = self.masters[0].wait_exit(END);
        assert_eq!(exit.code, signal.exit_code(), "{}", last_lines(&exit.stderr));
        self.restore_standby();
        takeover
    }

    /// Replaces the master that ended, and waits until the replacement is a standby and quiet.
    fn restore_standby(&mut self) {
        self.masters.remove(0);
        let standby = self.new_master();
        self.masters.push(standby);
        self.loaded(1);
        eventually(self.time_to_load() + BATCH, "the leader has read all tasks", || {
            self.cluster.leader()?;
            (self.cluster.status()?["loading"] == false).then_some(())
        });
        for master in &self.masters {
            master.quiet(START);
        }
    }
}

/// The epoch on an assignment, which is watched from now on.
fn epoch(client: &mut Client, assignment: &str) -> Option<i64> {
    let (data, _) = client.get(assignment, true)?;
    Some(Assignment::decode(&data).ok()?.epoch)
}
