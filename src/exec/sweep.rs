//! One blow at everything that an executor has started: its groups, and what has left them.
//!
//! For those who are not the executor itself, or act when it cannot: nothing is signalled by its number alone.
//! What has left its group (`setsid`) is known by the mark in its environment, and what such a process or a
//! member of a group has started, by its parents; whoever cleared its environment *and* lost its parents is out
//! of reach here.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::cgroup;
use super::group::Suspect;
use super::proc::{RUN_VAR, Stat, carries, carries_mark, kill_exactly, processes};

/// The first pause between two blows at what is left of a run; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// So many looks in a row must find nothing: one may miss a process that just forked.
const LOOKS_FOR_PROOF: u32 = 2;
/// What does not die within this is told.
const WARN_AFTER: Duration = Duration::from_secs(10);

/// What is to die.
#[derive(Debug)]
pub(super) struct Sweep<'a> {
    /// What the executor's runs carry in their environment.
    pub(super) token: &'a str,
    /// Id and birth, in ticks since boot, of each group.
    pub(super) groups: &'a BTreeMap<u32, u64>,
    /// When their leaders surely were not reaped yet, in ticks since boot.
    pub(super) held_until: u64,
    /// Where the runs have their cgroups, if they have any.
    pub(super) cgroups: Option<&'a Path>,
    /// With it, also what has left the groups, or was never told, if it was born in a tick before this one: of two
    /// things in one tick nobody knows which came first.
    pub(super) strays_born_before: Option<u64>,
}

/// What a blow found alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Struck {
    pub(super) killed: usize,
    /// Strays that are too young to be judged yet.
    pub(super) spared: usize,
}

impl Sweep<'_> {
    /// Sends SIGKILL to all that lives.
    pub(super) fn strike(&self) -> io::Result<Struck> {
        let all = processes()?;
        let mut doomed: BTreeSet<u32> = BTreeSet::new();
        for (&pgid, &start_ticks) in self.groups {
            let suspect = Suspect {
                pgid,
                leader_start_ticks: Some(start_ticks),
                last_birth_ticks: u64::MAX,
                token: self.token,
                held_until: self.held_until,
            };
            doomed.extend(suspect.proven_members(&all).iter().map(|stat| stat.pid));
        }
        let mut spared = 0;
        if let Some(tick) = self.strays_born_before {
            let confined: BTreeSet<u32> = self.cgroups.map(cgroup::members).into_iter().flatten().collect();
            let is_ours = |stat: &&Stat| confined.contains(&stat.pid) || carries(stat, self.token);
            for stray in all.iter().filter(|stat| !stat.dead).filter(is_ours) {
                if stray.start_ticks < tick {
                    doomed.insert(stray.pid);
                } else {
                    spared += 1;
                }
            }
        }
        add_descendants(&all, &mut doomed);
        doomed.remove(&std::process::id());
        let living = all.iter().filter(|stat| !stat.dead && doomed.contains(&stat.pid));
        Ok(Struck { killed: living.filter(|stat| kill_exactly(stat)).count(), spared })
    }
}

/// Kills what carries the mark of one run, and what such processes have started, until nothing is found.
pub(super) fn end_run(mark: &str) {
    let begun = Instant::now();
    let (mut pause, mut warned, mut clean) = (FIRST_PAUSE, false, 0);
    loop {
        let Ok(all) = processes() else { return };
        let marked = |stat: &&Stat| !stat.dead && carries_mark(stat, RUN_VAR, mark);
        let mut doomed: BTreeSet<u32> = all.iter().filter(marked).map(|stat| stat.pid).collect();
        clean = if doomed.is_empty() { clean + 1 } else { 0 };
        if clean == LOOKS_FOR_PROOF {
            return;
        }
        if doomed.is_empty() {
            continue;
        }
        add_descendants(&all, &mut doomed);
        for stat in all.iter().filter(|stat| !stat.dead && doomed.contains(&stat.pid)) {
            kill_exactly(stat);
        }
        if begun.elapsed() >= WARN_AFTER && !warned {
            warned = true;
            log::warn!("{} processes that a task left behind do not die; still waiting", doomed.len());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Adds the children of those that are there, and theirs.
fn add_descendants(all: &[Stat], doomed: &mut BTreeSet<u32>) {
    loop {
        let before = doomed.len();
        let children: Vec<u32> = all
            .iter()
            .filter(|stat| doomed.contains(&stat.parent) && !doomed.contains(&stat.pid))
            .map(|stat| stat.pid)
            .collect();
        doomed.extend(children);
        if doomed.len() == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::exec::proc::{OWNER_VAR, stat};

    #[test]
    fn a_stray_that_may_be_younger_than_the_blow_lives() {
        let token = format!("sweep-test-{}", std::process::id());
        let mut stray = Command::new("sleep").arg("600").env(OWNER_VAR, &token).spawn().unwrap();
        let born = stat(stray.id()).unwrap().unwrap().start_ticks;
        let nothing = BTreeMap::new();
        let strike = |tick| {
            let strays_born_before = Some(tick);
            let sweep =
                Sweep { token: &token, groups: &nothing, held_until: 0, cgroups: None, strays_born_before };
            sweep.strike().unwrap()
        };
        let found = [strike(born), strike(born + 1)];
        stray.kill().unwrap();
        stray.wait().unwrap();
        assert_eq!(found, [Struck { killed: 0, spared: 1 }, Struck { killed: 1, spared: 0 }]);
    }

    #[test]
    fn children_of_children_are_found_in_any_order() {
        let process = |pid, parent| Stat { pid, parent, group: pid, start_ticks: 1, dead: false };
        let all = [process(9, 8), process(8, 7), process(7, 5), process(6, 1), process(5, 1)];
        let mut doomed = BTreeSet::from([5]);
        add_descendants(&all, &mut doomed);
        assert_eq!(doomed, BTreeSet::from([5, 7, 8, 9]));
    }
}
