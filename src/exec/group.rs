//! Groups whose leader is not our unreaped child: is anything of them left, and if so, an end to it.
//!
//! Such a group's number may by now belong to somebody else, so nothing is sent to the number: members are
//! killed one by one, through pidfds, after one of them was proved to be ours.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, getpid, test_kill_process_group, waitid};

use super::mark::{Bears, Mark, OWNER_VAR};
use super::proc::{Look, Stat, kill_exactly, look, stat, to_pid};

/// The first pause between two looks at a group; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
/// The longest pause between two looks at a group.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// What was killed is mostly gone within this; only then `/proc` is searched, which takes milliseconds.
const SEARCH_AFTER: Duration = Duration::from_millis(8);
/// A group that isn't empty after this is worth a warning.
const WARN_AFTER: Duration = Duration::from_secs(10);
/// So many searches in a row must find nothing alive: one may miss a process that just forked.
const SEARCHES_FOR_PROOF: u32 = 2;

/// A group whose leader is not our unreaped child, so that its number may by now belong to somebody else.
#[derive(Debug)]
pub(super) struct Suspect<'a> {
    pub(super) pgid: u32,
    /// The start time of the leader if it may still stand; `None` if it was reaped.
    pub(super) leader_start_ticks: Option<u64>,
    /// No process of the group was born after this, in ticks since boot.
    pub(super) last_birth_ticks: u64,
    /// What its processes carry in their environment, if they didn't change it.
    pub(super) token: &'a str,
    /// At this time the leader was not reaped yet, in ticks since boot, or 0: a process of a later group with the
    /// same number is younger.
    pub(super) held_until: u64,
}

/// What is left of a group.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// Every process of it is gone, or is a zombie.
    Nothing,
    /// Some live.
    Alive(Vec<Stat>),
    /// There is such a group, but none of its processes can be seen.
    Unseen,
}

impl Suspect<'_> {
    /// Kills what provably belongs to the group and waits until it is empty: for ever, or for this long.
    ///
    /// It takes long if a process cannot be killed now (uninterruptible sleep) or not by us (another user's),
    /// or if no member can be proved to be ours.
    pub(super) fn make_empty(&self, give_up_after: Option<Duration>) -> Emptied {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut warned = false;
        let mut clean_searches = 0;
        let mut killed = BTreeSet::new();
        loop {
            if self.is_surely_empty() {
                break Emptied { empty: true, killed: killed.len() };
            }
            if begun.elapsed() >= SEARCH_AFTER {
                let left = self.search(&mut killed);
                clean_searches = if left == Left::Nothing { clean_searches + 1 } else { 0 };
                if clean_searches == SEARCHES_FOR_PROOF {
                    break Emptied { empty: true, killed: killed.len() };
                }
                if begun.elapsed() >= WARN_AFTER && !warned {
                    warned = true;
                    log::warn!("process group {} does not die; still waiting for {left:?}", self.pgid);
                }
            }
            if give_up_after.is_some_and(|bound| begun.elapsed() >= bound) {
                break Emptied { empty: false, killed: killed.len() };
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One look at `/proc`: reaps and kills what can be, adding it to `killed` as (pid, start time).
    fn search(&self, killed: &mut BTreeSet<(u32, u64)>) -> Left {
        let Ok(Look { all, unseen }) = look() else { return Left::Unseen };
        reap_adopted(&all, self.pgid);
        let left = match self.left(&all) {
            // It may be a member.
            Left::Nothing if unseen.is_some() => Left::Unseen,
            left => left,
        };
        if let Left::Alive(members) = &left {
            killed.extend(self.kill(&all, members));
        }
        left
    }

    /// Whether the group is empty, without a look at `/proc`. `false` is no proof of the contrary.
    fn is_surely_empty(&self) -> bool {
        test_kill_process_group(to_pid(self.pgid)) == Err(Errno::SRCH) && !self.leader_lives()
    }

    /// A leader may have moved to another group; it is one of ours all the same.
    fn leader_lives(&self) -> bool {
        self.leader_start_ticks.is_some()
            && !matches!(stat(self.pgid), Ok(leader) if !leader.is_some_and(|stat| self.leads(&stat) && !stat.dead))
    }

    fn leads(&self, stat: &Stat) -> bool {
        stat.pid == self.pgid && Some(stat.start_ticks) == self.leader_start_ticks
    }

    /// What is left, judged from `all` processes.
    fn left(&self, all: &[Stat]) -> Left {
        let members: Vec<Stat> =
            all.iter().filter(|stat| stat.group == self.pgid || self.leads(stat)).copied().collect();
        let namesake = all.iter().find(|stat| stat.pid == self.pgid);
        if namesake.is_some_and(|stat| !self.leads(stat)) {
            return Left::Nothing;
        }
        if members.is_empty() {
            return Left::Unseen;
        }
        if members.iter().all(|stat| stat.dead || stat.start_ticks > self.last_birth_ticks) {
            return Left::Nothing;
        }
        Left::Alive(members.into_iter().filter(|stat| !stat.dead).collect())
    }

    /// The members that live, if one of them proves that the group is ours.
    pub(super) fn proven_members(&self, all: &[Stat]) -> Vec<Stat> {
        match self.left(all) {
            Left::Alive(members) if self.is_proven(all, &members) => members,
            Left::Alive(_) | Left::Nothing | Left::Unseen => Vec::new(),
        }
    }

    fn is_proven(&self, all: &[Stat], members: &[Stat]) -> bool {
        let mark = Mark { variable: OWNER_VAR, value: self.token, since: 0 };
        all.iter().any(|stat| self.leads(stat))
            || members.iter().any(|stat| stat.start_ticks < self.held_until || mark.on(stat) == Bears::Yes)
    }

    /// SIGKILL to these members, if one of them proves that the group is ours. Who got it, as (pid, start time).
    ///
    /// A group's number is taken as long as one of its processes lives, so one proof does for all.
    fn kill(&self, all: &[Stat], members: &[Stat]) -> Vec<(u32, u64)> {
        if !self.is_proven(all, members) {
            return Vec::new();
        }
        let killed = members.iter().filter(|member| kill_exactly(member));
        killed.map(|member| (member.pid, member.start_ticks)).collect()
    }
}

/// What [`Suspect::make_empty`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Emptied {
    /// Whether every process of the group is surely dead.
    pub(super) empty: bool,
    /// How many processes were killed.
    pub(super) killed: usize,
}

/// Reaps the zombies of a group which the kernel gave to us because their parents are dead: when we are
/// process 1 of a container nobody else does it, and each would keep its number for ever.
fn reap_adopted(all: &[Stat], pgid: u32) {
    let own = getpid().as_raw_nonzero().get().unsigned_abs();
    for zombie in all.iter().filter(|stat| stat.dead && stat.group == pgid && stat.parent == own) {
        // A leader is the child of a run, which reaps it itself.
        if zombie.pid != pgid {
            let _ = waitid(WaitId::Pid(to_pid(zombie.pid)), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, group: u32, start_ticks: u64) -> Stat {
        Stat { pid, parent: 1, group, start_ticks, dead: false, stopped: false, exiting: false }
    }

    fn suspect(leader_start_ticks: Option<u64>) -> Suspect<'static> {
        Suspect { pgid: 50, leader_start_ticks, last_birth_ticks: 200, token: "t", held_until: 0 }
    }

    #[test]
    fn a_group_whose_number_has_a_new_owner_is_empty() {
        let all = [process(50, 50, 150), process(51, 50, 151)];
        assert_eq!(suspect(Some(100)).left(&all), Left::Nothing);
        assert_eq!(suspect(None).left(&all), Left::Nothing);
        assert_eq!(suspect(Some(150)).left(&all), Left::Alive(all.to_vec()));
        // The new owner needs not lead a group of its own.
        assert_eq!(suspect(Some(100)).left(&[process(50, 7, 150)]), Left::Nothing);
    }

    #[test]
    fn without_a_leader_births_decide() {
        let old = process(51, 50, 200);
        assert_eq!(suspect(None).left(&[old]), Left::Alive(vec![old]));
        assert_eq!(suspect(None).left(&[process(51, 50, 201)]), Left::Nothing);
        assert_eq!(suspect(None).left(&[Stat { dead: true, ..old }]), Left::Nothing);
        assert_eq!(suspect(None).left(&[process(51, 49, 100)]), Left::Unseen);
    }

    #[test]
    fn nobody_is_killed_without_proof() {
        let own = crate::exec::proc::stat(std::process::id()).unwrap().unwrap();
        let of_ours = Suspect {
            pgid: own.group,
            leader_start_ticks: None,
            last_birth_ticks: u64::MAX,
            token: "somebody else's",
            held_until: own.start_ticks,
        };
        assert_eq!(of_ours.kill(&[own], &[own]), Vec::new());
        let held = Suspect { held_until: own.start_ticks + 1, ..of_ours };
        assert!(held.is_proven(&[own], &[own]));
    }

    /// A bystander that leads a group of its own.
    fn sleeper(token: &str) -> std::process::Child {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new("sleep");
        command.arg("30").env(OWNER_VAR, token).process_group(0).spawn().unwrap()
    }

    #[test]
    fn a_group_is_not_called_empty_while_one_lives_and_is_killed_only_if_it_is_ours() {
        let mut child = sleeper("yours");
        let pgid = child.id();
        let start_ticks = stat(pgid).unwrap().unwrap().start_ticks;
        // As if its leader were another one, long gone; else the leader alone would prove whose it is.
        let inner = |token, leader_start_ticks| {
            let suspect =
                Suspect { pgid, leader_start_ticks, last_birth_ticks: u64::MAX, token, held_until: 0 };
            suspect.make_empty(Some(Duration::from_secs(10)))
        };
        assert_eq!(inner("mine", Some(start_ticks + 1)), Emptied { empty: true, killed: 0 });
        assert_eq!(child.try_wait().unwrap(), None);
        assert_eq!(inner("mine", Some(start_ticks)), Emptied { empty: true, killed: 1 });
        assert!(child.wait().unwrap().code().is_none());
    }

    #[test]
    fn a_member_without_our_mark_is_waited_for_but_not_killed() {
        use std::os::unix::process::CommandExt;
        let (mut leader, token) = (sleeper("mine"), "mine");
        let pgid = leader.id();
        let mut stranger =
            std::process::Command::new("sleep").arg("30").process_group(pgid as i32).spawn().unwrap();
        leader.kill().unwrap();
        leader.wait().unwrap();
        let suspect =
            Suspect { pgid, leader_start_ticks: None, last_birth_ticks: u64::MAX, token, held_until: 0 };
        let bound = Some(Duration::from_millis(50));
        assert_eq!(suspect.make_empty(bound), Emptied { empty: false, killed: 0 });
        assert_eq!(stranger.try_wait().unwrap(), None);
        stranger.kill().unwrap();
        // It is a zombie and our child: reaped, so that its number is free again.
        assert_eq!(suspect.make_empty(None), Emptied { empty: true, killed: 0 });
        assert_eq!(stat(stranger.id()).unwrap(), None);
    }
}
