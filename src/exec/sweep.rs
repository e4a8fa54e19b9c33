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
use super::mark::{Bears, Mark, OWNER_VAR, RUN_VAR};
use super::proc::{Look, Stat, kill_exactly, look};

/// The first pause between two blows at what is left of a run; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// So many looks in a row must find nothing: one may miss a process that just forked.
const LOOKS_FOR_PROOF: u32 = 2;
/// What does not die within this is logged.
const WARN_AFTER: Duration = Duration::from_secs(10);

/// What is to die.
#[derive(Debug)]
pub(super) struct Sweep<'a> {
    /// What the executor's runs carry in their environment.
    pub(super) token: &'a str,
    /// Id and birth, in ticks since boot, of each group.
    pub(super) groups: &'a BTreeMap<u32, u64>,
    /// When the executor was started, in ticks since boot.
    pub(super) since: u64,
    /// When their leaders surely were not reaped yet, in ticks since boot.
    pub(super) held_until: u64,
    /// Where the runs have their cgroups, if they have any.
    pub(super) cgroups: Option<&'a Path>,
    /// With it, also what has left the groups, or was never told, if it was born in a tick before this one: of two
    /// things in one tick nobody knows which came first.
    pub(super) strays_born_before: Option<u64>,
}

/// What a look has found alive. What could not be looked at may live as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Struck {
    /// What must die, whether it could be killed or not.
    pub(super) found: usize,
    pub(super) killed: usize,
    /// Strays that are too young to be judged yet.
    pub(super) spared: usize,
    /// One of which nobody can tell whether it must die, and why.
    pub(super) unseen: Option<String>,
}

impl Struck {
    /// Whether, as far as one look can tell, nothing is left.
    pub(super) fn is_clean(&self) -> bool {
        self.found == 0 && self.spared == 0 && self.unseen.is_none()
    }
}

impl Sweep<'_> {
    /// Sends SIGKILL to all that lives.
    pub(super) fn strike(&self) -> io::Result<Struck> {
        let Look { all, unseen } = look()?;
        let mut struck = Struck { unseen, ..Struck::default() };
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
        if let Some(tick) = self.strays_born_before {
            self.find_strays(&all, tick, &mut doomed, &mut struck)?;
        }
        add_descendants(&all, &mut doomed);
        doomed.remove(&std::process::id());
        for stat in all.iter().filter(|stat| !stat.dead && doomed.contains(&stat.pid)) {
            struck.found += 1;
            struck.killed += usize::from(kill_exactly(stat));
        }
        Ok(struck)
    }

    /// Adds what bears our mark, or lives in one of our cgroups.
    fn find_strays(
        &self,
        all: &[Stat],
        born_before: u64,
        doomed: &mut BTreeSet<u32>,
        struck: &mut Struck,
    ) -> io::Result<()> {
        let confined = self.cgroups.map_or(Ok(Vec::new()), cgroup::members)?;
        let confined: BTreeSet<u32> = confined.into_iter().collect();
        let mark = Mark { variable: OWNER_VAR, value: self.token, since: self.since };
        let own = std::process::id();
        for stray in all.iter().filter(|stat| !stat.dead && stat.pid != own) {
            let bears = if confined.contains(&stray.pid) { Bears::Yes } else { mark.on(stray) };
            match bears {
                Bears::Yes if stray.start_ticks < born_before => drop(doomed.insert(stray.pid)),
                Bears::Yes => struck.spared += 1,
                Bears::Unreadable => struck.unseen = Some(format!("process {}", stray.pid)),
                Bears::No => {}
            }
        }
        Ok(())
    }
}

/// What is to be killed of one run, besides its group.
#[derive(Debug)]
pub(super) struct RunStrays<'a> {
    /// The value of [`RUN_VAR`] in its processes.
    pub(super) mark: &'a str,
    /// When the run's leader was born, in ticks since boot.
    pub(super) since: u64,
}

impl RunStrays<'_> {
    /// Kills what bears the mark, and what such processes have started, until nothing is found: for ever, if need be.
    /// What cannot be looked at is waited for, unless it belongs to one of the groups that `others` tells: those of
    /// other runs.
    pub(super) fn end(&self, others: impl Fn() -> BTreeSet<u32>) {
        let begun = Instant::now();
        let (mut pause, mut warned, mut clean) = (FIRST_PAUSE, false, 0);
        loop {
            let left = self.strike(&others());
            clean = if left.is_none() { clean + 1 } else { 0 };
            if clean == LOOKS_FOR_PROOF {
                return;
            }
            let Some(left) = left else { continue };
            if begun.elapsed() >= WARN_AFTER && !warned {
                warned = true;
                log::warn!("the end of a task is not told as long as something of it may live: {left}");
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One look; what it has found alive, in words.
    fn strike(&self, others: &BTreeSet<u32>) -> Option<String> {
        let Look { all, mut unseen } = match look() {
            Ok(look) => look,
            Err(error) => return Some(format!("cannot list the processes ({error})")),
        };
        let mark = Mark { variable: RUN_VAR, value: self.mark, since: self.since };
        let mut doomed: BTreeSet<u32> = BTreeSet::new();
        for stat in all.iter().filter(|stat| stat.pid != std::process::id()) {
            match mark.on(stat) {
                Bears::Yes => drop(doomed.insert(stat.pid)),
                Bears::Unreadable if !others.contains(&stat.group) => {
                    unseen =
                        Some(format!("cannot look at process {}; if it is the task's, kill it", stat.pid));
                }
                Bears::Unreadable | Bears::No => {}
            }
        }
        if doomed.is_empty() {
            return unseen;
        }
        add_descendants(&all, &mut doomed);
        for stat in all.iter().filter(|stat| !stat.dead && doomed.contains(&stat.pid)) {
            kill_exactly(stat);
        }
        Some(format!("{} processes that it left behind do not die", doomed.len()))
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
    use crate::exec::proc::stat;

    #[test]
    fn a_stray_that_may_be_younger_than_the_blow_lives() {
        let token = format!("sweep-test-{}", std::process::id());
        let mut stray = Command::new("sleep").arg("600").env(OWNER_VAR, &token).spawn().unwrap();
        let born = stat(stray.id()).unwrap().unwrap().start_ticks;
        let nothing = BTreeMap::new();
        let strike = |tick| {
            let strays_born_before = Some(tick);
            let sweep = Sweep {
                token: &token,
                groups: &nothing,
                since: 0,
                held_until: 0,
                cgroups: None,
                strays_born_before,
            };
            let Struck { killed, spared, .. } = sweep.strike().unwrap();
            (killed, spared)
        };
        let found = [strike(born), strike(born + 1)];
        stray.kill().unwrap();
        stray.wait().unwrap();
        assert_eq!(found, [(0, 1), (1, 0)]);
    }

    #[test]
    fn children_of_children_are_found_in_any_order() {
        let process = |pid, parent| Stat {
            pid,
            parent,
            group: pid,
            start_ticks: 1,
            dead: false,
            stopped: false,
            exiting: false,
        };
        let all = [process(9, 8), process(8, 7), process(7, 5), process(6, 1), process(5, 1)];
        let mut doomed = BTreeSet::from([5]);
        add_descendants(&all, &mut doomed);
        assert_eq!(doomed, BTreeSet::from([5, 7, 8, 9]));
    }
}
