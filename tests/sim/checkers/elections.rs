//! Elections: G7 (the end of a contender notifies one other member at most), and an elected command runs only while the
//! contender that its epoch names exists, or another one to which its rank was handed over, without a gap between
//! them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Complaints, replay};
use crate::life::ELECTION;
use crate::member::Who;
use crate::processes::{Run, Stage};
use crate::world::World;

/// A contender, and the time for which it existed.
struct Contender {
    /// The uuid of its process, and the number of the first contender that had its rank.
    rank: (String, String),
    since: u64,
    until: u64,
}

/// Reads `_c_<uuid>-ranked-latch-<number>` and `_c_<uuid>-rank-<number of the first>-latch-<number>`.
fn rank_of(path: &str) -> (String, String) {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let (head, number) = name.rsplit_once("latch-").unwrap_or((name, ""));
    match head.split_once("-rank-") {
        Some((uuid, rank)) => (uuid.to_string(), rank.trim_end_matches('-').to_string()),
        None => (head.trim_end_matches("-ranked-").to_string(), number.to_string()),
    }
}

/// Until when the rank of this contender was held without a gap.
fn held_until(first: &Contender, all: &BTreeMap<i64, Contender>) -> u64 {
    // In the order of their creation.
    let others = all.values().filter(|other| other.rank == first.rank && other.since >= first.since);
    others.fold(first.until, |until, next| if next.since <= until { until.max(next.until) } else { until })
}

/// The owner of each contender, by its path and the time of its end: a new directory uses the same names again.
type Ends = BTreeMap<(String, u64), Option<Who>>;

/// The members that were notified of each end, without the owner.
fn woken_by_ends<'a>(world: &'a World, ends: &'a Ends) -> BTreeMap<&'a (String, u64), BTreeSet<&'a str>> {
    let mut woken: BTreeMap<&(String, u64), BTreeSet<&str>> = BTreeMap::new();
    for (path, notified) in &world.history.woken {
        for (at, who) in notified {
            let end = ends.range((path.clone(), 0)..=(path.clone(), *at)).next_back();
            if let Some((end, _)) = end.filter(|(_, owner)| **owner != Some(*who)) {
                woken.entry(end).or_default().insert(world.members[who.m].name.as_str());
            }
        }
    }
    woken
}

pub fn check(world: &World, complaints: &mut Complaints) {
    let mut contenders: BTreeMap<i64, Contender> = BTreeMap::new();
    let mut ends: Ends = BTreeMap::new();
    replay(world, |step, _| {
        if !step.path.contains("latch-") {
            return;
        }
        if let (None, Some(znode)) = (step.before, step.after) {
            let rank = rank_of(step.path);
            contenders.insert(znode.czxid, Contender { rank, since: step.at, until: u64::MAX });
        }
        let (Some(znode), None) = (step.before, step.after) else { return };
        contenders.entry(znode.czxid).and_modify(|contender| contender.until = step.at);
        ends.insert((step.path.to_string(), step.at), world.history.by(znode.owner));
    });
    for ((path, at), woken) in woken_by_ends(world, &ends) {
        if woken.len() > 1 {
            complaints.add(*at, format!("G7: the end of {path} wakes {woken:?}"));
        }
    }
    for run in world.runs.iter().filter(|run| run.key == ELECTION) {
        if !matches!(run.stage, Stage::Alive | Stage::Ended) {
            continue;
        }
        let name = &world.members[run.who.m].name;
        let end = if run.stage == Stage::Alive { world.now } else { run.end };
        let held = contenders.get(&run.epoch).map(|first| (first.since, held_until(first, &contenders)));
        if !held.is_some_and(|(since, until)| since <= run.begin && end <= until) {
            let command = format!("the command of {name} (epoch {:x})", run.epoch);
            complaints
                .add(run.begin, format!("G3: {command} runs until {end} beside its contenders: {held:?}"));
        }
    }
}

/// How many commands of electors began before this time.
pub fn begun_before(world: &World, at: u64) -> usize {
    let began = |run: &&Run| matches!(run.stage, Stage::Alive | Stage::Ended) && run.begin < at;
    world.runs.iter().filter(|run| run.key == ELECTION).filter(began).count()
}
