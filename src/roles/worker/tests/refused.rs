//! Outcomes that the servers do not take, for their size or for a quota.

use super::*;

/// A worker whose only task has printed so many bytes.
fn printed(world: &mut World, bytes: usize) -> Desk<Worker> {
    let mut desk = worker(|params| params.slots = 2);
    desk.connect(world);
    task(world, "_00/a");
    assign(world, &desk, &[("_00/a", 1, false)]);
    desk.go(world);
    let (run, _) = desk.runs.pop_first().expect("a run");
    let stdout = Captured { head: vec![b'x'; bytes], ..Captured::default() };
    let report = RunReport {
        ended: Ended::Exit(3),
        detail: None,
        stdout,
        stderr: Captured::default(),
        started_ms: 0,
        ended_ms: 0,
        signalled: false,
    };
    desk.event(world, Event::Ended { run, report });
    desk
}

#[test]
fn what_the_servers_do_not_take_is_shortened_until_they_do() {
    let mut world = World::new();
    let mut desk = printed(&mut world, 110_000);
    world.limit = Some(100_000);
    desk.go(&mut world);
    let outcome = world.task("/z/tasks/_00/a").outcome.expect("an outcome");
    let kept = outcome.stdout.captured();
    assert_eq!(
        (outcome.exit_code, kept.head.len() as u64 + kept.tail.len() as u64 + kept.omitted),
        (Some(3), 110_000)
    );
    assert!(kept.head.len() > 20_000, "{}", kept.head.len());
    let said = desk.logs.iter().filter(|line| line.contains("jute.maxbuffer")).count();
    assert_eq!(said, 1, "{:?}", desk.logs);
}

#[test]
fn what_not_even_the_shortest_fits_of_is_set_aside() {
    let mut world = World::new();
    let mut desk = printed(&mut world, 1_000);
    world.limit = Some(60);
    desk.go(&mut world);
    world.limit = None;
    assert!(
        world.task("/z/tasks/_00/a").outcome.is_none()
            && desk.logs.iter().any(|line| line.contains("set aside"))
    );
}

/// Quota and throttling have codes that the client library does not know.
const QUOTA: Refusal = Refusal::Other(-6);

#[test]
fn what_a_quota_refuses_is_kept_and_written_when_it_was_raised() {
    let mut world = World::new();
    let mut desk = printed(&mut world, 100);
    world.refused.insert("/z/tasks/_00/a".into(), QUOTA);
    desk.go(&mut world);
    for _ in 0..40 {
        world.pass(Duration::from_secs(1));
        desk.event(&world, Event::Wake);
        desk.go(&mut world);
    }
    let said = desk.logs.iter().filter(|line| line.contains("quota")).count();
    assert_eq!(said, 1, "{:?}", desk.logs);
    task(&mut world, "_00/b");
    assign(&mut world, &desk, &[("_00/a", 1, false), ("_00/b", 1, false)]);
    desk.go(&mut world);
    assert_eq!(desk.runs.len(), 1, "others run meanwhile");
    world.refused.clear();
    world.pass(Duration::from_secs(15));
    desk.event(&world, Event::Wake);
    desk.go(&mut world);
    let outcome = world.task("/z/tasks/_00/a").outcome.expect("an outcome");
    assert_eq!((outcome.exit_code, outcome.stdout.kept_bytes()), (Some(3), 100));
    assert!(desk.logs.iter().any(|line| line.contains("takes all outcomes again")), "{:?}", desk.logs);
}

#[test]
fn who_is_to_end_waits_for_a_quota_no_longer_than_it_may() {
    let mut world = World::new();
    let mut desk = printed(&mut world, 100);
    world.refused.insert("/z/tasks/_00/a".into(), QUOTA);
    desk.go(&mut world);
    desk.event(&world, Event::Stop { again: false });
    for _ in 0..20 {
        world.pass(Duration::from_secs(1));
        desk.event(&world, Event::Wake);
        desk.go(&mut world);
    }
    assert_eq!(desk.exit, Some(0));
    assert!(desk.logs.iter().any(|line| line.contains("did not take it down")), "{:?}", desk.logs);
}
