//! What a dead worker has left running on this machine, and an end to it: for its successor, who is nobody's parent
//! here.
//!
//! A keeper and each slot lead a session, in which all that they start is born. As long as a process of a session lives
//! nobody else can have its number. But when all are gone it may be given to somebody else. So members of a session are
//! killed only after one of them was proved to be the worker's: its leader, by its birth, or one that bears the
//! worker's mark in its environment. What has left its session is known by that mark, and what such processes have
//! started by their parents. Nothing is signalled by its number alone. Who cleared its environment, and left its
//! session, and lost its parents is out of reach here, unless it is in a control group.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use super::mark::{Bears, EnvMark, OWNER_VAR};
use super::proc::ProcessSession;
use super::proc::{ProcessStat, Scan, kill_exactly, scan};

/// The first pause between two checks; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// So many checks in a row must find nothing: one may miss a process that just forked.
const SCANS_FOR_PROOF: u32 = 2;

/// What a worker that is dead may have left.
#[derive(Debug)]
pub(super) struct Leftovers<'a> {
    pub(super) sessions: &'a [ProcessSession],
    /// What its runs carry in their environment.
    pub(super) token: &'a str,
    /// When it was started, in ticks since boot.
    pub(super) since: u64,
}

/// Why something that a dead worker has started may still run.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unproved {
    #[error("cannot list the processes: {0}")]
    Scan(#[from] io::Error),
    #[error("{0}")]
    Unseen(String),
    #[error("whether process {pid} is one of its processes cannot be found out")]
    Unreadable { pid: u32 },
    #[error("session {id} could not be proved to be the worker's and dead")]
    Session { id: u32 },
    #[error("processes {0:?} do not die")]
    Undying(BTreeSet<u32>),
}

/// The result of one scan.
#[derive(Debug, Default)]
struct Found {
    /// The processes that must die.
    doomed: BTreeSet<u32>,
    /// Why it is not known whether that is all.
    unclear: Option<Unproved>,
}

impl Leftovers<'_> {
    /// Kills them all, and waits until they are dead, but no longer than until then. Gives how many were killed.
    pub(super) fn end(&self, until: Instant) -> Result<usize, Unproved> {
        let mut killed = BTreeSet::new();
        let (mut pause, mut clean) = (FIRST_PAUSE, 0);
        loop {
            let all = scan()?;
            let found = self.find(&all);
            let doomed = all.all.iter().filter(|stat| found.doomed.contains(&stat.pid));
            let signalled = doomed.filter(|stat| kill_exactly(stat)).map(|stat| (stat.pid, stat.start_ticks));
            killed.extend(signalled);
            let is_clean = found.doomed.is_empty() && found.unclear.is_none();
            clean = if is_clean { clean + 1 } else { 0 };
            if clean == SCANS_FOR_PROOF {
                return Ok(killed.len());
            }
            if Instant::now() >= until {
                return Err(found.unclear.unwrap_or(Unproved::Undying(found.doomed)));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn find(&self, scan: &Scan) -> Found {
        let mut found = Found { unclear: scan.unseen.clone().map(Unproved::Unseen), ..Found::default() };
        let mark = EnvMark { variable: OWNER_VAR, value: self.token, since: self.since };
        let own = std::process::id();
        let alive: Vec<&ProcessStat> = scan.all.iter().filter(|stat| !stat.dead && stat.pid != own).collect();
        for stat in &alive {
            match mark.on(stat) {
                Bears::Yes => drop(found.doomed.insert(stat.pid)),
                Bears::Unreadable => {
                    found.unclear = Some(Unproved::Unreadable { pid: stat.pid });
                }
                Bears::No => {}
            }
        }
        for session in self.sessions {
            let namesake = scan.all.iter().find(|stat| stat.pid == session.id);
            if namesake.is_some_and(|stat| stat.start_ticks != session.start_ticks) {
                // Its number was given to somebody else, so nothing of it lives.
                continue;
            }
            let members: Vec<u32> =
                alive.iter().filter(|stat| stat.session == session.id).map(|stat| stat.pid).collect();
            if namesake.is_some() || members.iter().any(|pid| found.doomed.contains(pid)) {
                found.doomed.extend(members);
            } else if !members.is_empty() {
                found.unclear = Some(Unproved::Session { id: session.id });
            }
        }
        add_descendants(&alive, &mut found.doomed);
        found.doomed.remove(&own);
        found
    }
}

/// Adds the children of those that are there, and theirs.
fn add_descendants(alive: &[&ProcessStat], doomed: &mut BTreeSet<u32>) {
    loop {
        let is_new = |stat: &&&ProcessStat| doomed.contains(&stat.parent) && !doomed.contains(&stat.pid);
        let children: Vec<u32> = alive.iter().filter(is_new).map(|stat| stat.pid).collect();
        if children.is_empty() {
            return;
        }
        doomed.extend(children);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent: u32, session: u32, start_ticks: u64) -> ProcessStat {
        let stat = ProcessStat { pid, parent, group: pid, session, start_ticks, ..ProcessStat::default() };
        assert!(!stat.dead);
        stat
    }

    #[test]
    fn descendants_die_with_the_session_leader() {
        let session = ProcessSession { id: 4_000_001, start_ticks: 70 };
        let leftovers = Leftovers { sessions: &[session], token: "no such token", since: u64::MAX };
        let found = |all: Vec<ProcessStat>| leftovers.find(&Scan { all, unseen: None });
        let family = vec![
            process(4_000_001, 1, 4_000_001, 70),
            process(4_000_002, 1, 4_000_001, 80),
            process(4_000_003, 4_000_002, 4_000_003, 90),
            process(4_000_004, 1, 4_000_004, 90),
        ];
        assert_eq!(found(family.clone()).doomed, BTreeSet::from([4_000_001, 4_000_002, 4_000_003]));
        let orphans = found(family[1..].to_vec());
        assert!(orphans.doomed.is_empty() && orphans.unclear.is_some(), "nothing proves whose it is");
        let mut recycled = family;
        recycled[0].start_ticks = 71;
        let found = found(recycled);
        assert!(found.doomed.is_empty() && found.unclear.is_none());
    }
}
