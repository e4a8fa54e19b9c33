//! One seed from its beginning to its end: a time of faults, the healing, the time until all is done, and a quiet
//! minute. Then the checkers have the word.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::checkers::chunks::{self, Tally};
use super::checkers::{self, elections, leftovers};
use super::member::Kind;
use super::swarm::{SECOND, Swarm};
use super::world::{Ev, World};

/// By when all must be done after the healing.
const SETTLES_WITHIN: u64 = 240 * SECOND;

/// How long after the healing the electors are asked to end.
const ELECTORS_END: u64 = 15 * SECOND;

/// How long writes may go on after the end of all work, before it must be quiet.
const CALMS_WITHIN: u64 = 30 * SECOND;

/// How long it must be quiet then.
const QUIET: u64 = 60 * SECOND;

/// The result of a seed.
pub struct Outcome {
    pub complaints: Vec<String>,
    pub digest: u64,
    pub runs: usize,
    pub chunks: Tally,
    /// Commands of electors that began before all was healed.
    pub elected: usize,
    /// Servers that were restarted in their turn.
    pub restarts: usize,
}

/// Plays a seed.
pub fn play(seed: u64, swarm: Swarm, tracing: bool) -> Outcome {
    let mut world = World::new(seed, swarm, tracing);
    if tracing {
        println!("{:?}", world.swarm);
    }
    let played = catch_unwind(AssertUnwindSafe(|| go(&mut world)));
    let mut complaints = match played {
        Ok(complaints) => complaints,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string()));
            vec![format!("panic: {}", text.unwrap_or_default())]
        }
    };
    complaints.extend(checkers::all(&world));
    let log = world.ens.log().iter();
    let digest =
        log.fold(world.digest, |digest, txn| (digest ^ txn.zxid as u64).wrapping_mul(0x100_0000_01b3));
    Outcome {
        complaints,
        digest,
        runs: world.runs.len(),
        chunks: chunks::tally(&world),
        elected: elections::begun_before(&world, world.heals_at),
        restarts: world.restarts,
    }
}

fn go(world: &mut World) -> Vec<String> {
    world.run_until(world.heals_at);
    world.heal();
    let healed = world.now;
    let mut electors = true;
    let mut settled = false;
    while world.now < healed + SETTLES_WITHIN {
        world.run_until(world.now + SECOND);
        if electors && world.now >= healed + ELECTORS_END {
            electors = false;
            end_electors(world);
        }
        if !electors && leftovers::unsettled(world).is_empty() {
            settled = true;
            break;
        }
    }
    if !settled {
        let mut stuck = vec![format!("not settled within {} s:", SETTLES_WITHIN / SECOND)];
        stuck.extend(leftovers::unsettled(world));
        stuck.extend(last_words(world));
        return stuck;
    }
    world.run_until(world.now + CALMS_WITHIN);
    let quiet = world.now;
    world.run_until(quiet + QUIET);
    let mut found = leftovers::unsettled(world);
    found.extend(leftovers::writes_since(world, quiet));
    found
}

fn end_electors(world: &mut World) {
    for m in 0..world.members.len() {
        if matches!(world.members[m].kind, Kind::Elector { .. }) {
            world.members[m].comes_back = false;
            world.after(0, Ev::Signal(world.who(m)));
        }
    }
}

/// The last log lines of every member, and the assignments.
fn last_words(world: &World) -> Vec<String> {
    let mut words = Vec::new();
    for (path, node) in world.ens.tree() {
        if path.starts_with("/z/assign/") || path.starts_with("/z/workers/") || path.starts_with("/z/master/")
        {
            words.push(format!("{path}: {}", String::from_utf8_lossy(&node.data)));
        }
    }
    for (m, member) in world.members.iter().enumerate() {
        if world.lives(world.who(m)) || !member.kind.is_client() {
            let session = member.net.as_ref().map(|net| net.session.0);
            words.push(format!("{} (life {}, session {session:?}):", member.name, member.life));
            words.extend(member.words.iter().map(|word| format!("    {word}")));
        }
    }
    words
}
