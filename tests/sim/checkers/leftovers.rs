//! The end of a play: when everything is healed and all work is done, nothing is left over and nobody writes.

use super::super::ensemble::Op;
use crate::life::{ELECTION, ROOT};
use crate::member::Kind;
use crate::swarm::SECOND;
use crate::world::World;

/// Znodes and processes that should not exist, or are missing; empty if all has settled.
pub fn unsettled(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for (m, member) in world.members.iter().enumerate() {
        if member.kind.is_client() && world.lives(world.who(m)) {
            found.push(format!("{} still runs", member.name));
        }
    }
    let wanted = |is: fn(&Kind) -> bool| {
        world.members.iter().filter(|member| member.comes_back && is(&member.kind)).count()
    };
    let masters = wanted(|kind| matches!(kind, Kind::Master));
    let workers = wanted(|kind| matches!(kind, Kind::Worker { .. }));
    let electors = wanted(|kind| matches!(kind, Kind::Elector { .. }));
    let mut count = [0; 4];
    for (path, node) in world.ens.tree() {
        let Some(below) = path.strip_prefix(ROOT) else { continue };
        let parts: Vec<&str> = below.split('/').skip(1).collect();
        match parts.as_slice() {
            ["tasks", dir] if !zkmw::contract::is_shared(dir) => found.push(format!("{path} exists")),
            ["tasks", _, _] => found.push(format!("{path} exists: {}", String::from_utf8_lossy(&node.data))),
            ["master", _] => count[0] += 1,
            ["workers", _] => count[1] += 1,
            ["assign", name] => {
                count[2] += 1;
                let prefix = format!("{ROOT}/workers/{name}~");
                if !world.ens.tree().keys().any(|path| path.starts_with(&prefix)) {
                    found.push(format!("{path} is nobody's: {}", String::from_utf8_lossy(&node.data)));
                }
            }
            ["submitters", _] => found.push(format!("{path} exists")),
            _ if path.starts_with(ELECTION) && path.len() > ELECTION.len() => count[3] += 1,
            _ => {}
        }
    }
    let expected = [masters, workers, workers, electors];
    for ((what, count), expected) in
        ["contenders", "registrations", "assignments", "electors"].into_iter().zip(count).zip(expected)
    {
        if count != expected {
            found.push(format!("{count} {what} instead of {expected}"));
        }
    }
    found
}

/// Writes after this time, when nobody should write.
pub fn writes_since(world: &World, since: u64) -> Vec<String> {
    let late = world.ens.log().iter().rev().take_while(|txn| txn.time.as_nanos() > since);
    late.filter(|txn| !matches!(txn.op, Op::Refused { .. } if txn.session.0 == 0))
        .map(|txn| {
            let by = world.history.by(txn.session).map_or("nobody", |who| world.members[who.m].name.as_str());
            let at = txn.time.as_nanos().saturating_sub(SECOND) as f64 / SECOND as f64;
            let text: String = format!("{:?}", txn.op).chars().take(200).collect();
            format!("idle: at {at:.3} {by} writes {text}")
        })
        .collect()
}
