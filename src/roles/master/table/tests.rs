//! What a master knows of tasks, as it reads them.

use super::*;
use crate::recipes::queue::MAX_LABEL_SETS;

fn stat(mzxid: i64) -> Stat {
    Stat { czxid: 1, mzxid, mtime_ms: mzxid * 10, ..Stat::default() }
}

#[test]
fn the_newest_read_wins_whatever_the_order() {
    let mut table = Table::default();
    let task = TaskId::new("j", "t");
    let now = Instant::default();
    assert_eq!(table.see(&task, br#"{"command":"x"}"#, &stat(5)), Update::DirUnknown);
    assert_eq!(table.see_dir("j", b"", &stat(1), now), (vec![task.clone()], None));
    assert_eq!(table.see(&task, br#"{"command":"x","attempt":2}"#, &stat(7)), Update::Changed);
    assert_eq!(table.see(&task, br#"{"command":"x"}"#, &stat(5)), Update::Stale);
    assert_eq!(table.pending(&task).map(|p| p.whole.attempt), Some(2));
    let ended = br#"{"command":"x","outcome":{"state":"done","attempt":2}}"#;
    assert_eq!(table.see(&task, ended, &stat(8)), Update::Changed);
    assert_eq!((table.counts().pending, table.counts().done, table.outcomes.len()), (0, 1, 1));
    assert!(table.remove(&task, now) && !table.remove(&task, now));
    assert_eq!((table.counts(), table.outcomes.len(), table.len()), (Counts::default(), 0, 0));
}

#[test]
fn commands_are_counted_whatever_the_chunking() {
    let mut table = Table::default();
    let (single, chunk) = (TaskId::new("_00", "s"), TaskId::new("_00", "c"));
    table.see(&single, br#"{"command":"x"}"#, &stat(1));
    let running = br#"{"commands":["a"," ","b","c","d"],"results":[{},null,{"reason":"exit"}]}"#;
    table.see(&chunk, running, &stat(2));
    let counts = Counts { pending: 3, done: 1, failed: 1, ..Counts::default() };
    assert_eq!(table.counts(), counts);
    let over = br#"{"commands":["a"," ","b","c","d"],"outcome":{"state":"expired","attempt":1,
        "results":[{},null,{"reason":"exit"},{"reason":"cancelled"}]}}"#;
    table.see(&chunk, over, &stat(3));
    let ended = Counts { pending: 1, done: 1, failed: 1, cancelled: 1, expired: 1, ..Counts::default() };
    assert_eq!(table.counts(), ended);
    table.quarantine(&single);
    assert_eq!((table.counts().pending, table.counts().quarantined), (0, 1));
    table.remove(&single, Instant::default());
    table.remove(&chunk, Instant::default());
    assert_eq!(table.counts(), Counts::default());
}

#[test]
fn garbage_is_counted_and_reported_once() {
    let mut table = Table::default();
    let task = TaskId::new("_00", "t");
    assert!(matches!(table.see(&task, b"garbage", &stat(1)), Update::Malformed(_)));
    assert_eq!(table.see(&task, b"garbage2", &stat(2)), Update::Changed);
    assert_eq!(table.counts().malformed, 1);
}

#[test]
fn the_bytes_are_correct_after_every_change() {
    let mut table = Table::default();
    let (a, b) = (TaskId::new("_00", "a"), TaskId::new("_00", "b"));
    let (short, long) = (br#"{"command":"x"}"#, br#"{"command":"x","outcome":{"state":"done","attempt":1}}"#);
    table.see(&a, short, &stat(1));
    table.see(&b, b"garbage", &stat(2));
    assert_eq!(table.bytes(), short.len() as u64 + 7);
    table.see(&a, long, &stat(3));
    table.see(&a, short, &stat(1));
    assert_eq!(table.bytes(), long.len() as u64 + 7, "an old read changes nothing");
    table.quarantine(&a);
    table.remove(&b, Instant::default());
    assert_eq!(table.bytes(), long.len() as u64, "a quarantined task still exists");
    table.remove(&a, Instant::default());
    table.remove(&a, Instant::default());
    assert_eq!(table.bytes(), 0);
}

#[test]
fn a_jobs_defaults_count_where_the_task_says_nothing() {
    let mut table = Table::default();
    table.see_dir("j", br#"{"v":1,"priority":7,"expire_ms":5}"#, &stat(1), Instant::default());
    let task = TaskId::new("j", "t");
    table.see(&task, br#"{"command":"x","priority":-2}"#, &Stat { ctime_ms: 100, ..stat(2) });
    let pending = table.pending(&task).map(|p| (p.priority, p.expires_ms));
    assert_eq!(pending, Some((-2, 105)));
    assert_eq!((table.attempts_in("j", false), table.attempts_in("k", false)), (Some(3), None));
    assert_eq!(table.expiring.first(), Some(&(105, task)));
}

#[test]
fn a_task_beyond_the_limit_of_label_sets_waits_for_a_free_one() {
    let mut table = Table::default();
    let task = |n: usize| TaskId::new("_00", &format!("t{n}"));
    let data = |n: usize| format!(r#"{{"command":"x","require":{{"k":"{n}"}}}}"#).into_bytes();
    for n in 0..=MAX_LABEL_SETS {
        table.see(&task(n), &data(n), &stat(n as i64 + 1));
    }
    let last = task(MAX_LABEL_SETS);
    assert!(table.pending(&last).is_none() && table.take_numberable().is_none());
    table.see(&task(5), &data(6), &stat(20_000));
    assert_eq!((table.take_numberable(), table.take_numberable()), (Some(last.clone()), None));
    let read = table.see(&last, &data(MAX_LABEL_SETS), &stat(MAX_LABEL_SETS as i64 + 1));
    assert!(read == Update::Changed && table.pending(&last).is_some());
    table.remove(&task(6), Instant::default());
    assert!(!table.needs.has_room(), "another task requires the same");
    table.remove(&task(5), Instant::default());
    assert!(table.needs.has_room());
}
