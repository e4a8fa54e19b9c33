//! Elections: G7 (a contender's death is told to one other at most), and an elected command runs only while the
//! contender that its epoch names stands, or one to which that one's place was handed over: at every instant one of
//! them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Complaints, replay};
use crate::life::ELECTION;
use crate::member::Who;
use crate::processes::{Run, Stage};
use crate::world::World;

/// A contender, and from when until when it stood.
struct Contender {
    /// Whose it was, and whose place it has: the uuid, and the number of the first contender there.
    place: (String, String),
    since: u64,
    until: u64,
}

/// Reads `_c_<uuid>-ranked-latch-<number>` and `_c_<uuid>-rank-<number of the first>-latch-<number>`.
fn place(path: &str) -> (String, String) {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let (head, number) = name.rsplit_once("latch-").unwrap_or((name, ""));
    match head.split_once("-rank-") {
        Some((uuid, rank)) => (uuid.to_string(), rank.trim_end_matches('-').to_string()),
        None => (head.trim_end_matches("-ranked-").to_string(), number.to_string()),
    }
}

/// Until when there was at every instant one of those in the place of this one.
fn held_until(first: &Contender, all: &BTreeMap<i64, Contender>) -> u64 {
    // In the order of their creation.
    let others = all.values().filter(|other| other.place == first.place && other.since >= first.since);
    others.fold(first.until, |until, next| if next.since <= until { until.max(next.until) } else { until })
}

/// Whose contender it was, by its path and when it went: a name comes again when the directory was made anew.
type Ends = BTreeMap<(String, u64), Option<Who>>;

/// Who but its owner was told of each end.
fn woken_by_ends<'a>(world: &'a World, ends: &'a Ends) -> BTreeMap<&'a (String, u64), BTreeSet<&'a str>> {
    let mut woken: BTreeMap<&(String, u64), BTreeSet<&str>> = BTreeMap::new();
    for (path, told) in &world.history.woken {
        for (at, who) in told {
            let end = ends.range((path.clone(), 0)..=(path.clone(), *at)).next_back();
            if let Some((end, _)) = end.filter(|(_, owner)| **owner != Some(*who)) {
                woken.entry(end).or_default().insert(world.members[who.m].name.as_str());
            }
        }
    }
    woken
}

pub fn check(world: &World, told: &mut Complaints) {
    let mut contenders: BTreeMap<i64, Contender> = BTreeMap::new();
    let mut ends: Ends = BTreeMap::new();
    replay(world, |step, _| {
        if !step.path.contains("latch-") {
            return;
        }
        if let (None, Some(znode)) = (step.before, step.after) {
            let place = place(step.path);
            contenders.insert(znode.czxid, Contender { place, since: step.at, until: u64::MAX });
        }
        let (Some(znode), None) = (step.before, step.after) else { return };
        contenders.entry(znode.czxid).and_modify(|contender| contender.until = step.at);
        ends.insert((step.path.to_string(), step.at), world.history.by(znode.owner));
    });
    for ((path, at), woken) in woken_by_ends(world, &ends) {
        if woken.len() > 1 {
            told.add(*at, format!("G7: the end of {path} wakes {woken:?}"));
        }
    }
    for run in world.runs.iter().filter(|run| run.key == ELECTION) {
        if !matches!(run.stage, Stage::Alive | Stage::Dead) {
            continue;
        }
        let name = &world.members[run.who.m].name;
        let end = if run.stage == Stage::Alive { world.now } else { run.end };
        let held = contenders.get(&run.epoch).map(|first| (first.since, held_until(first, &contenders)));
        if !held.is_some_and(|(since, until)| since <= run.begin && end <= until) {
            let epoch = run.epoch;
            told.add(
                run.begin,
                format!("G3: the command of {name} (epoch {epoch:x}) runs until {end} beside its contenders: {held:?}"),
            );
        }
    }
}

/// How many commands of electors began before this time.
pub fn begun_before(world: &World, at: u64) -> usize {
    let began = |run: &&Run| matches!(run.stage, Stage::Alive | Stage::Dead) && run.begin < at;
    world.runs.iter().filter(|run| run.key == ELECTION).filter(began).count()
}
