//! A batch and the room that there is for it.

use super::*;

#[test]
fn g08_a_batch_without_room_is_refused_before_it_creates() {
    let fill = |driver: &mut ClientDriver<Batch>| {
        for n in 0..MAX_CHILDREN_FOR_TEST {
            driver.put(&format!("/z/tasks/{n:05}"), b"");
        }
        driver.connect();
        driver.settle();
    };
    for params in [params(1), keyed(1)] {
        let mut driver = driver(params);
        fill(&mut driver);
        assert_eq!((driver.exit, driver.count(Call::is_write)), (Some(exit::TOO_MUCH), 0));
    }
    let mut again = driver(keyed(1));
    again.znodes = waiting(keyed(1)).znodes;
    fill(&mut again);
    assert_eq!(again.exit, None, "a key works where there is no room for others");
    let too_long = BatchParams { outline: outline([MAX_BATCH_LINES]), ..params(1) };
    assert_eq!(Batch::new(too_long).expect_err("unfit").code, exit::TOO_MUCH);
}

const MAX_CHILDREN_FOR_TEST: i32 = crate::contract::MAX_CHILDREN;

#[test]
fn a_batch_beyond_the_limits_is_refused_as_a_whole() {
    for params in [params(10), keyed(10)] {
        let per_task = driver(params.clone()).role.plan.demand(None).bytes / 10;
        let in_bytes = |left: u64| status(0, 50, 99, 50 + left);
        let mut loading = Status::decode(&status(3, 0, 13, 1 << 20)).expect("status");
        loading.loading = true;
        for (data, exit, made) in [
            (loading.encode(), None, 10),
            (status(3, 0, 13, 1 << 20), None, 10),
            (in_bytes(10 * per_task), None, 10),
            (status(4, 0, 13, 1 << 20), Some(exit::TOO_MUCH), 0),
            (in_bytes(10 * per_task - 1), Some(exit::TOO_MUCH), 0),
        ] {
            let mut driver = driver(params.clone());
            driver.put(STATUS, &data);
            driver.connect();
            driver.settle();
            assert_eq!(
                (driver.exit, tasks(&driver).len()),
                (exit, made),
                "{}",
                String::from_utf8_lossy(&data)
            );
            assert_eq!(driver.count(|call| call.path() == STATUS), 1, "a small one reads once");
            if exit.is_some() {
                assert_eq!(driver.count(Call::is_write), 0);
                assert!(
                    driver.logged("10 more") || driver.logged("--max-pending-bytes"),
                    "{:?}",
                    driver.logs
                );
                assert!(
                    driver.logged("nothing was submitted") && driver.logged("fewer"),
                    "{:?}",
                    driver.logs
                );
            }
        }
    }
}

#[test]
fn a_keyed_batch_goes_on_however_full_the_service_is() {
    let mut again = driver(keyed(10));
    again.znodes = waiting(keyed(10)).znodes;
    again.remove("/z/tasks/K~0000/0000009");
    again.put(STATUS, &status(9, 0, 10, 1 << 20));
    again.connect();
    again.settle();
    assert_eq!((again.exit, tasks(&again).len()), (None, 10));
}

/// Time passes, and the batch is woken as often as it wishes.
pub fn pass(driver: &mut ClientDriver<Batch>, ms: u64) {
    let until = driver.now + std::time::Duration::from_millis(ms);
    for _ in 0..100 {
        driver.settle();
        let Some(at) = driver.role.next_wake().filter(|at| *at <= until) else { break };
        driver.now = driver.now.max(at);
        driver.event(Event::Wake);
    }
    driver.now = until;
}

/// A batch of so many lines that is under way when the service becomes full.
pub fn overtaken(params: BatchParams) -> ClientDriver<Batch> {
    let mut driver = driver(params);
    driver.put(STATUS, &status(0, 0, 10_000, 1 << 30));
    driver.connect();
    driver.settle_until(|call| is_create(call) && call.path().ends_with("0000300"));
    driver.put(STATUS, &status(10_000, 0, 10_000, 1 << 30));
    driver.now = driver.now + std::time::Duration::from_secs(1);
    driver
}

#[test]
fn g08_a_batch_under_way_waits_while_full_and_says_so_once() {
    let mut driver = overtaken(params(2_000));
    pass(&mut driver, 5_000);
    let made = tasks(&driver).len();
    assert!((300..=300 + 2 * MAX_CALLS).contains(&made), "it stops: {made}");
    let checks = driver.count(|call| call.path() == STATUS);
    assert!((5..=7).contains(&checks), "once a second: {checks}");
    let complaints = driver.logs.iter().filter(|(_, text)| text.contains("waits for room")).count();
    assert_eq!((driver.exit, complaints), (None, 1), "{:?}", driver.logs);
    driver.lose();
    assert_eq!(driver.role.next_wake(), None, "there is nobody to ask");
    driver.connect();
    pass(&mut driver, 2_000);
    assert!(tasks(&driver).len() <= 300 + 2 * MAX_CALLS, "nor does a new session let it pass");
    // A new leader does not know all yet.
    let mut loading = Status::decode(&status(1, 0, 10_000, 1 << 30)).expect("status");
    loading.loading = true;
    driver.put(STATUS, &loading.encode());
    pass(&mut driver, 2_000);
    assert!(tasks(&driver).len() <= 300 + 2 * MAX_CALLS, "nor does a leader that is loading");
    // Room for one is room: how many come meanwhile is known a second later.
    driver.put(STATUS, &status(9_999, 0, 10_000, 1 << 30));
    pass(&mut driver, 2_000);
    assert_eq!(tasks(&driver).len(), 2_000, "it goes on by itself");
}

#[test]
fn a_read_that_was_lost_with_its_session_is_repeated() {
    let mut driver = overtaken(params(2_000));
    pass(&mut driver, 1_500);
    driver.now = driver.role.next_wake().expect("it reads again");
    driver.event(Event::Wake);
    assert!(driver.pending.iter().any(|(_, call)| call.path() == STATUS));
    driver.pending.clear();
    driver.lose();
    driver.connect();
    driver.put(STATUS, &status(0, 0, 10_000, 1 << 30));
    pass(&mut driver, 2_000);
    assert_eq!(tasks(&driver).len(), 2_000);
}

#[test]
fn a_batch_waits_for_all_checks_in_any_order() {
    for turn in 0..3 {
        let mut driver = driver(keyed(10));
        driver.put(STATUS, &status(4, 0, 13, 1 << 20));
        driver.connect();
        assert_eq!(driver.pending.len(), 3);
        driver.pending.rotate_left(turn);
        driver.settle();
        assert_eq!((driver.exit, driver.count(Call::is_write)), (Some(exit::TOO_MUCH), 0));
    }
}

#[test]
fn a_batch_that_is_nearly_done_checks_no_more() {
    let mut driver = overtaken(params(1_200));
    pass(&mut driver, 5_000);
    assert_eq!((tasks(&driver).len(), driver.count(|call| call.path() == STATUS)), (1_200, 1));
}

/// A keyed one still finds what it made earlier: that adds nothing.
#[test]
fn a_keyed_batch_that_waits_meets_its_own_tasks() {
    let mut first = waiting(keyed(2_000));
    first.event(Event::Stop { again: false });
    for line in 1_500..2_000 {
        first.remove(&format!("/z/tasks/K~0000/{line:07}"));
    }
    for line in 0..1_500 {
        first.end(&format!("/z/tasks/K~0000/{line:07}"), done());
    }
    let mut again = driver(keyed(2_000));
    again.znodes = first.znodes;
    again.put(STATUS, &status(0, 1 << 30, 10_000, 1 << 30));
    again.connect();
    again.settle_until(|call| is_create(call) && call.path().ends_with("0000100"));
    again.now = again.now + std::time::Duration::from_secs(1);
    pass(&mut again, 5_000);
    assert_eq!((again.exit, again.ended().len(), tasks(&again).len()), (None, 1_500, 1_500));
    let reads = again.count(|call| is_get(call) && call.path().starts_with("/z/tasks/K~0000/"));
    assert!(reads <= 3_000 + 2 * MAX_CALLS, "no chunk is read again and again: {reads}");
    again.put(STATUS, &status(0, 0, 10_000, 1 << 30));
    pass(&mut again, 2_000);
    assert_eq!(tasks(&again).len(), 2_000);
}
