//! Shares of chunks: cuts, removals, what holders have to read; and tasks that run alone.

use std::collections::BTreeMap;

use super::dispatch::end_all;
use super::*;
use crate::contract::chunk::CommandResult;

const CHUNK: &str = "_00/c";

fn chunk(world: &mut World, lines: usize) {
    let commands = vec!["x".to_string(); lines];
    let chunk = Task::new(Payload::Chunk { first_line: 0, commands }, Options::default());
    world.put("/z/tasks/_00", b"");
    world.put(&format!("/z/tasks/{CHUNK}"), &chunk.encode());
}

fn change(world: &mut World, change: impl FnOnce(&mut Task)) {
    world.change(&format!("/z/tasks/{CHUNK}"), change);
}

/// The holder of this share says how far it is.
fn flush(world: &mut World, number: u32, over: &[usize], ahead: u32) {
    let results: BTreeMap<usize, CommandResult> =
        over.iter().map(|position| (*position, CommandResult::default())).collect();
    change(world, |task| task.flush(number, &results, ahead));
}

/// A leader of a worker with two slots, which has a chunk of so many lines.
fn leader(lines: usize) -> (World, RoleDriver<Master>) {
    let mut world = World::new();
    worker(&mut world, "w~1", 2);
    chunk(&mut world, lines);
    let mut master = master("m");
    master.connect(&mut world);
    assert_eq!(world.entries("/z/assign/w~1"), [entry(CHUNK, 1, false)]);
    (world, master)
}

fn settle(world: &mut World, master: &mut RoleDriver<Master>) {
    for _ in 0..8 {
        world.pass(Duration::from_millis(200));
        master.go(world);
    }
}

#[test]
fn a_free_slot_gets_a_cut_once_the_window_is_known() {
    let (mut world, mut master) = leader(10);
    worker(&mut world, "w~2", 2);
    settle(&mut world, &mut master);
    assert!(world.entries("/z/assign/w~2").is_empty(), "any line may be running");
    flush(&mut world, 1, &[0], 3);
    settle(&mut world, &mut master);
    assert_eq!(world.entries("/z/assign/w~2"), [entry(CHUNK, 2, false)]);
    let task = world.task(&format!("/z/tasks/{CHUNK}"));
    let lines: Vec<usize> = task.shares.iter().map(|share| task.open_lines(share).len()).collect();
    assert_eq!(lines, [4, 5], "nine are left for four slots, rounded up");
    assert_eq!(world.entries("/z/assign/w~1"), [entry(CHUNK, 1, false)], "its holder is not asked");
}

#[test]
fn all_that_a_worker_has_not_started_is_cut_off_when_it_drains() {
    let (mut world, mut master) = leader(10);
    flush(&mut world, 1, &[], 2);
    settle(&mut world, &mut master);
    let mut draining = registration(2);
    draining.draining = true;
    world.put("/z/workers/w~1~0", &draining.encode());
    settle(&mut world, &mut master);
    let task = world.task(&format!("/z/tasks/{CHUNK}"));
    let lines: Vec<usize> = task.shares.iter().map(|share| task.open_lines(share).len()).collect();
    assert_eq!(lines, [2, 8]);
}

#[test]
fn an_entry_goes_with_its_share_and_others_of_the_chunk_stay() {
    let (mut world, mut master) = leader(6);
    flush(&mut world, 1, &[], 2);
    worker(&mut world, "w~2", 2);
    settle(&mut world, &mut master);
    assert_eq!(world.entries("/z/assign/w~2"), [entry(CHUNK, 2, false)]);
    flush(&mut world, 2, &[3, 4, 5], 2);
    settle(&mut world, &mut master);
    assert_eq!(world.entries("/z/assign/w~2"), [entry(CHUNK, 3, false)], "the next is cut off for it");
    assert_eq!(world.entries("/z/assign/w~1"), [entry(CHUNK, 1, false)]);
}

#[test]
fn a_cancelled_line_goes_to_its_holder_or_ends_at_once() {
    let (mut world, mut master) = leader(4);
    flush(&mut world, 1, &[], 2);
    change(&mut world, |task| assert!(task.cut(1, 2) && task.cancel_line(0) && task.cancel_line(3)));
    settle(&mut world, &mut master);
    let task = world.task(&format!("/z/tasks/{CHUNK}"));
    assert_eq!(task.command_state(3), Some(State::Cancelled), "nobody had it");
    assert!(task.is_open(0) && task.is_open(2));
    let assignment = Assignment::decode(&world.znodes["/z/assign/w~1"].data).expect("an assignment");
    let own = assignment.entries.iter().find(|entry| entry.attempt == 1).expect("it is held");
    assert!(own.recheck.is_some() && !own.revoked, "its holder has to end it");
}

#[test]
fn a_chunk_of_blank_lines_that_is_cancelled_ends() {
    let mut world = World::new();
    chunk(&mut world, 2);
    change(&mut world, |task| {
        task.commands = Some(vec![" ".into(), String::new()]);
        task.cancel = true;
    });
    let mut master = master("m");
    master.connect(&mut world);
    settle(&mut world, &mut master);
    assert!(world.task(&format!("/z/tasks/{CHUNK}")).outcome.is_some());
}

/// A leader of a worker that has `_00/a`, and of `_00/s`: of its three attempts two ended with their workers' deaths.
fn leader_of_a_suspect() -> (World, RoleDriver<Master>) {
    let mut world = World::new();
    worker(&mut world, "w~1", 2);
    task(&mut world, "_00/a", |_| {});
    let mut master = master("m");
    master.connect(&mut world);
    task(&mut world, "_00/s", |task| (task.deaths, task.attempt) = (2, 3));
    master.go(&mut world);
    (world, master)
}

#[test]
fn a_line_at_its_last_attempt_runs_alone_on_a_reserved_worker() {
    let (mut world, mut master) = leader_of_a_suspect();
    task(&mut world, "_00/t", |_| {});
    master.go(&mut world);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/a", 1, false)], "it has to have nothing else");
    end_all(&mut world, "w~1", 5);
    master.go(&mut world);
    settle(&mut world, &mut master);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/s", 3, false)], "and gets nothing beside it");
    end_all(&mut world, "w~1", 5);
    settle(&mut world, &mut master);
    assert_eq!(world.entries("/z/assign/w~1"), [entry("_00/t", 1, false)]);
}

#[test]
fn a_worker_is_not_kept_free_for_what_is_gone() {
    let (mut world, mut master) = leader_of_a_suspect();
    world.remove("/z/tasks/_00/s");
    master.go(&mut world);
    task(&mut world, "_00/t", |_| {});
    master.go(&mut world);
    let assignment = world.entries("/z/assign/w~1");
    assert_eq!(assignment, [entry("_00/a", 1, false), entry("_00/t", 1, false)]);
}

/// A move of the last term came late, when another worker had been given the share, and took it from that one while it
/// ran: the simulator found it.
#[test]
fn nothing_is_assigned_while_a_move_of_the_last_term_may_arrive() {
    let (mut world, mut master) = leader(3);
    world.expire(world.znodes["/z/workers/w~1~0"].stat.ephemeral_owner);
    master.hold = |call| matches!(call, Call::Set { path, .. } if path.starts_with("/z/tasks/"));
    settle(&mut world, &mut master);
    let moves = |(_, call): &(_, Call)| (master.hold)(call).then(|| call.clone());
    let late = master.calls.iter().find_map(moves).expect("it is moved");
    let session = master.lose(&mut world, |_| false);
    // Its worker is back, and gives back all that it had, before it takes another name.
    world.remove("/z/assign/w~1");
    worker(&mut world, "w~2", 2);
    master.hold = |_| false;
    master.connect(&mut world);
    settle(&mut world, &mut master);
    assert!(world.entries("/z/assign/w~2").is_empty(), "the move may still come");
    world.apply(session, &late).expect("it comes");
    world.expire(session);
    settle(&mut world, &mut master);
    assert_eq!(world.entries("/z/assign/w~2"), [entry(CHUNK, 2, false)]);
}

/// No worker has the lines that a cut takes, so a cut in doubt delays no takeover.
#[test]
fn with_only_a_cut_in_doubt_a_leader_leads_again_at_once() {
    let (mut world, mut master) = leader(10);
    master.hold = |call| matches!(call, Call::Set { path, .. } if path.starts_with("/z/tasks/"));
    worker(&mut world, "w~2", 2);
    flush(&mut world, 1, &[0], 3);
    settle(&mut world, &mut master);
    assert!(master.calls.iter().any(|(_, call)| (master.hold)(call)), "it is cut");
    master.lose(&mut world, |_| false);
    master.hold = |_| false;
    master.connect(&mut world);
    settle(&mut world, &mut master);
    assert_eq!(world.entries("/z/assign/w~2"), [entry(CHUNK, 2, false)]);
}
