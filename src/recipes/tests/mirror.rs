//! Mirror: everything is seen once it exists, nothing that changed is missed, and a lost reply completes nothing.

use std::collections::VecDeque;

use super::{Asked, LOST, NO_NODE, refused, stat};
use crate::machine::{
    Action, Actions, Call, CallId, CallResult, ChangeKind, Refusal, Reply, Routed, WatchMode,
};
use crate::recipes::mirror::{Change, Mirror};

fn children(names: &[&str]) -> CallResult {
    Ok(Reply::Children(names.iter().map(|name| name.to_string()).collect()))
}

fn data(text: &str) -> CallResult {
    Ok(Reply::Data { data: text.into(), stat: stat(1) })
}

fn seen(path: &str, text: &str) -> Change {
    Change::Seen { path: path.into(), data: text.into(), stat: stat(1) }
}

fn appeared(path: &str) -> Change {
    Change::Appeared { path: path.into() }
}

fn gone(path: &str) -> Change {
    Change::Gone { path: path.into() }
}

struct Bench {
    mirror: Mirror,
    out: Actions<()>,
    calls: VecDeque<(CallId, Call)>,
}

impl Bench {
    /// A mirror of /r whose watch is set and whose root is being listed.
    fn listing(depth: usize, window: usize) -> (Bench, CallId) {
        let mut bench = Bench {
            mirror: Mirror::new("/r".into(), depth, window),
            out: Actions::default(),
            calls: VecDeque::new(),
        };
        bench.mirror.start(&mut bench.out);
        let (id, call) = Asked::one(&mut bench.out);
        assert_eq!(call, Call::Watch { path: "/r".into(), mode: WatchMode::Tree });
        assert_eq!(bench.reply(id, Ok(Reply::Watching)), []);
        let id = bench.next("/r");
        (bench, id)
    }

    /// A mirror that is complete and knows of nothing.
    fn complete() -> Bench {
        let (mut bench, list) = Bench::listing(1, 8);
        assert_eq!(bench.reply(list, children(&[])), [Change::Complete]);
        bench
    }

    fn reply(&mut self, id: CallId, result: CallResult) -> Vec<Change> {
        let Routed::Mine(changes) = self.mirror.on_reply(id, &result, &mut self.out) else {
            panic!("it is awaited")
        };
        self.calls.extend(Asked::of(&mut self.out).calls);
        changes
    }

    fn changed(&mut self, path: &str, kind: ChangeKind) -> Vec<Change> {
        let Routed::Mine(changes) = self.mirror.on_changed(path, kind, &mut self.out) else {
            panic!("it is below the root")
        };
        self.calls.extend(Asked::of(&mut self.out).calls);
        changes
    }

    /// Takes the call that is about this path.
    #[track_caller]
    fn next(&mut self, path: &str) -> CallId {
        self.calls.extend(Asked::of(&mut self.out).calls);
        let at = self.calls.iter().position(|(_, call)| call.path() == path);
        let at = at.unwrap_or_else(|| panic!("no call about {path} in {:?}", self.calls));
        self.calls.remove(at).expect("it is there").0
    }
}

#[test]
fn it_watches_before_it_lists_and_is_complete_when_all_was_read() {
    let (mut bench, list) = Bench::listing(2, 8);
    assert_eq!(bench.reply(list, children(&["j"])), [appeared("j")]);
    let (read, list) = match bench.calls.make_contiguous() {
        [(read, Call::Get { .. }), (list, Call::Children { .. })] => (*read, *list),
        other => panic!("{other:?}"),
    };
    bench.calls.clear();
    assert_eq!(bench.reply(read, data("J")), [seen("j", "J")]);
    assert_eq!(bench.reply(list, children(&["t"])), [appeared("j/t")]);
    assert!(!bench.mirror.is_complete());
    let read = bench.next("/r/j/t");
    assert_eq!(bench.reply(read, data("T")), [seen("j/t", "T"), Change::Complete]);
    assert!(bench.mirror.is_complete() && bench.calls.is_empty(), "below its depth nothing is listed");
}

#[test]
fn never_more_reads_at_once_than_its_window() {
    let (mut bench, list) = Bench::listing(1, 2);
    bench.reply(list, children(&["a", "b", "c", "d", "e"]));
    let mut seen = 0;
    while let Some((id, _)) = bench.calls.pop_front() {
        assert!(bench.calls.len() < 2);
        seen += bench.reply(id, data("x")).iter().filter(|c| matches!(c, Change::Seen { .. })).count();
    }
    assert!(seen == 5 && bench.mirror.is_complete());
}

#[test]
fn what_changes_while_it_is_read_is_read_once_more() {
    let mut bench = Bench::complete();
    assert_eq!(bench.changed("/r/a", ChangeKind::Created), [appeared("a")]);
    let first = bench.next("/r/a");
    assert_eq!(bench.changed("/r/a", ChangeKind::Data), []);
    assert_eq!(bench.changed("/r/a", ChangeKind::Data), []);
    assert!(bench.calls.is_empty(), "one read at a time");
    assert_eq!(bench.reply(first, data("old")), [seen("a", "old")]);
    let second = bench.next("/r/a");
    assert_eq!(bench.reply(second, data("new")), [seen("a", "new")]);
    assert!(bench.calls.is_empty());
}

#[test]
fn a_deletion_is_reported_even_during_a_read() {
    let mut bench = Bench::complete();
    bench.changed("/r/a", ChangeKind::Created);
    let first = bench.next("/r/a");
    assert_eq!(bench.changed("/r/a", ChangeKind::Deleted), [gone("a")]);
    assert_eq!(bench.reply(first, data("old")), [], "that is older than its end");
    assert_eq!(bench.changed("/r/a", ChangeKind::Deleted), [gone("a")], "and twice does no harm");
    assert!(bench.calls.is_empty(), "what is gone is not read again");
}

#[test]
fn what_went_and_came_back_while_it_was_read_is_read_again() {
    let mut bench = Bench::complete();
    bench.changed("/r/a", ChangeKind::Created);
    let first = bench.next("/r/a");
    bench.changed("/r/a", ChangeKind::Deleted);
    bench.changed("/r/a", ChangeKind::Created);
    assert_eq!(bench.reply(first, data("of the first")), []);
    let second = bench.next("/r/a");
    assert_eq!(bench.reply(second, data("of the second")), [seen("a", "of the second")]);
}

#[test]
fn a_lazy_mirror_does_not_read_what_is_gone_by_then() {
    let mut bench = Bench::complete();
    let mut out = Actions::<()>::default();
    bench.mirror.take_time(true, &mut out);
    bench.changed("/r/a", ChangeKind::Created);
    bench.changed("/r/b", ChangeKind::Created);
    bench.mirror.catch_up(&mut out);
    assert!(out.is_empty() && bench.calls.is_empty() && bench.mirror.is_behind());
    bench.changed("/r/a", ChangeKind::Deleted);
    bench.mirror.catch_up(&mut out);
    let calls: Vec<_> = out.drain().collect();
    assert!(matches!(&calls[..], [Action::Call { call, .. }] if call.path() == "/r/b"), "{calls:?}");
    bench.changed("/r/c", ChangeKind::Created);
    bench.mirror.take_time(false, &mut out);
    assert_eq!(out.drain().count(), 1, "who is in a hurry reads at once");
}

/// A worker makes its next registration before it deletes the last one: a reader that sees the end of that first takes
/// it for dead. The simulator found it (seed 21746): its tasks were moved on while they ran.
#[test]
fn a_deletion_is_reported_in_order_even_if_read_before() {
    let mut bench = Bench::complete();
    assert_eq!(bench.changed("/r/w~0", ChangeKind::Data), [touched("w~0")]);
    assert!(bench.calls.is_empty(), "whether it is read now is up to the role");
    bench.mirror.read_again("w~0", &mut bench.out);
    let read = bench.next("/r/w~0");
    assert_eq!(bench.reply(read, NO_NODE), []);
    assert_eq!(bench.changed("/r/w~1", ChangeKind::Created), [appeared("w~1")]);
    assert_eq!(bench.changed("/r/w~0", ChangeKind::Deleted), [gone("w~0")]);
}

#[test]
fn a_list_that_is_older_than_an_end_does_not_undo_it() {
    let (mut bench, list) = Bench::listing(1, 8);
    assert_eq!(bench.changed("/r/a", ChangeKind::Deleted), [gone("a")]);
    assert_eq!(bench.reply(list, children(&["a"])), [Change::Complete]);
}

#[test]
fn what_is_deleted_between_its_listing_and_its_reading_is_gone() {
    let (mut bench, list) = Bench::listing(1, 1);
    bench.reply(list, children(&["a", "b"]));
    let (first, call) = bench.calls.pop_front().expect("one read");
    let other = if call.path() == "/r/a" { "b" } else { "a" };
    assert_eq!(bench.changed(&format!("/r/{other}"), ChangeKind::Deleted), [gone(other)]);
    bench.reply(first, data("x"));
    let second = bench.next(&format!("/r/{other}"));
    assert_eq!(bench.reply(second, NO_NODE), [Change::Complete]);
}

#[test]
fn events_that_arrive_before_the_watch_is_acknowledged_count() {
    let mut out = Actions::default();
    let mut mirror = Mirror::new("/r".into(), 1, 8);
    mirror.start(&mut out);
    let (watch, _) = Asked::one(&mut out);
    assert_eq!(mirror.on_changed("/r/a", ChangeKind::Created, &mut out), Routed::Mine(vec![appeared("a")]));
    Asked::none(&mut out);
    assert!(mirror.is_reading("a"));
    assert_eq!(mirror.on_reply(watch, &Ok(Reply::Watching), &mut out), Routed::Mine(vec![]));
    let calls = Asked::of(&mut out).calls;
    let id = |path: &str| calls.iter().find(|(_, call)| call.path() == path).expect("asked").0;
    assert_ne!(mirror.on_reply(id("/r/a"), &data("A"), &mut out), Routed::NotMine);
    assert!(!mirror.is_complete(), "the listing is still to come");
    assert_ne!(mirror.on_reply(id("/r"), &children(&[]), &mut out), Routed::NotMine);
    assert!(mirror.is_complete());
}

#[test]
fn what_is_not_below_the_root_belongs_to_others() {
    let mut bench = Bench::complete();
    for path in ["/r2/a", "/x", "/"] {
        assert_eq!(
            bench.mirror.on_changed(path, ChangeKind::Created, &mut bench.out),
            Routed::NotMine,
            "{path}"
        );
    }
    assert_eq!(bench.changed("/r", ChangeKind::Data), []);
    assert_eq!(bench.changed("/r/a/too/deep", ChangeKind::Created), []);
    assert!(bench.calls.is_empty());
}

#[test]
fn without_its_watch_it_is_never_complete() {
    let mut out = Actions::default();
    let mut mirror = Mirror::new("/r".into(), 1, 8);
    mirror.start(&mut out);
    let (watch, _) = Asked::one(&mut out);
    let changes = mirror.on_reply(watch, &refused(Refusal::Unimplemented), &mut out);
    assert_eq!(
        changes,
        Routed::Mine(vec![Change::Refused { path: "/r".into(), refusal: Refusal::Unimplemented }])
    );
    assert!(!mirror.is_complete());
    Asked::none(&mut out);
}

/// With several reads under way, a broken connection answers some with doubt and some well. It used to count
/// the doubtful ones as still under way, and panicked at the next reply.
#[test]
fn a_good_reply_after_a_lost_one_neither_panics_nor_completes() {
    let (mut bench, list) = Bench::listing(1, 8);
    bench.reply(list, children(&["a", "b", "c"]));
    let ids: Vec<_> = bench.calls.drain(..).map(|(id, _)| id).collect();
    assert_eq!(bench.reply(ids[0], LOST), []);
    for id in &ids[1..] {
        assert_eq!(bench.mirror.on_reply(*id, &data("x"), &mut bench.out), Routed::NotMine, "stale");
    }
    assert_eq!(bench.changed("/r/a", ChangeKind::Data), []);
    assert!(!bench.mirror.is_complete() && bench.calls.is_empty());
}

/// A listing that was lost proves nothing; the last good reply used to be followed by "complete".
#[test]
fn a_lost_listing_is_not_an_empty_directory() {
    let (mut bench, list) = Bench::listing(2, 8);
    bench.reply(list, children(&["j"]));
    let list = bench.calls.iter().find(|(_, call)| matches!(call, Call::Children { .. })).expect("it").0;
    let read = bench.calls.iter().find(|(_, call)| matches!(call, Call::Get { .. })).expect("it").0;
    bench.reply(list, LOST);
    assert_eq!(bench.mirror.on_reply(read, &data("J"), &mut bench.out), Routed::NotMine);
    assert!(!bench.mirror.is_complete());
    bench.mirror.start(&mut bench.out);
    assert!(matches!(Asked::one(&mut bench.out).1, Call::Watch { .. }));
}

/// What changes between a read and the watch is seen by no event: the simulator found it (seed 7115547), a task that
/// was moved on meanwhile was given out as it had been before, and waited for ever. Nor is an end (seed 21413): a
/// task that went meanwhile kept its job for ever.
#[test]
fn nothing_is_read_before_the_watch_is_set() {
    let mut bench =
        Bench { mirror: Mirror::new("/r".into(), 1, 8), out: Actions::default(), calls: VecDeque::new() };
    bench.mirror.start(&mut bench.out);
    let watch = bench.next("/r");
    bench.mirror.read_again("a", &mut bench.out);
    Asked::none(&mut bench.out);
    bench.reply(watch, Ok(Reply::Watching));
    let read = bench.next("/r/a");
    assert_eq!(bench.reply(read, data("new")), [seen("a", "new")]);
}

fn touched(path: &str) -> Change {
    Change::Touched { path: path.into() }
}

/// A mirror of directories with something in them, which is complete and is reading the directory d.
fn reading_d() -> (Bench, CallId) {
    let (mut bench, list) = Bench::listing(2, 2);
    assert_eq!(bench.reply(list, children(&[])), [Change::Complete]);
    bench.changed("/r/d", ChangeKind::Created);
    let read = bench.next("/r/d");
    (bench, read)
}

#[test]
fn what_changes_is_read_only_if_it_stays_or_is_asked_for() {
    let (mut bench, read) = reading_d();
    bench.reply(read, data("D"));
    for name in ["a", "b", "c"] {
        assert_eq!(bench.changed(&format!("/r/d/{name}"), ChangeKind::Data), [touched(&format!("d/{name}"))]);
    }
    assert!(bench.calls.is_empty() && bench.mirror.is_behind_on("d/a"));
    bench.changed("/r/d/a", ChangeKind::Deleted);
    assert!(!bench.mirror.is_behind_on("d/a"));
    bench.mirror.read_again("d/b", &mut bench.out);
    bench.next("/r/d/b");
    assert!(!bench.mirror.is_behind_on("d/b"), "it is being read");
    bench.mirror.catch_up(&mut bench.out);
    assert!(bench.out.is_empty());
    bench.mirror.catch_up(&mut bench.out);
    bench.next("/r/d/c");
    assert!(!bench.mirror.is_behind());
}

#[test]
fn directories_are_read_before_what_is_in_them() {
    let (mut bench, read) = reading_d();
    bench.reply(read, data("D"));
    for name in ["a", "b", "c"] {
        bench.changed(&format!("/r/d/{name}"), ChangeKind::Created);
    }
    bench.changed("/r/e", ChangeKind::Created);
    let a = bench.next("/r/d/a");
    bench.reply(a, data("A"));
    bench.next("/r/e");
}

/// Where there is always something to read, it would never be complete.
#[test]
fn it_is_complete_once_everything_listed_was_read() {
    let (mut bench, list) = Bench::listing(1, 8);
    assert_eq!(bench.reply(list, children(&["a", "b"])), [appeared("a"), appeared("b")]);
    bench.changed("/r/c", ChangeKind::Created);
    let (a, b) = (bench.next("/r/a"), bench.next("/r/b"));
    bench.changed("/r/a", ChangeKind::Data);
    assert_eq!(bench.changed("/r/b", ChangeKind::Deleted), [gone("b")]);
    assert_eq!(bench.reply(a, data("A")), [seen("a", "A")]);
    assert!(!bench.mirror.is_complete());
    assert_eq!(bench.reply(b, data("B")), [Change::Complete], "a and c are still being read");
    let (a, c) = (bench.next("/r/a"), bench.next("/r/c"));
    assert_eq!(bench.reply(c, data("C")), [seen("c", "C")]);
    assert_eq!(bench.reply(a, data("A2")), [seen("a", "A2")]);
}
