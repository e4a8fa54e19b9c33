//! Runs that were asked to end, and how they ended: a run that ends after a signal of ours has no end of its own.

use super::*;

/// How the task runs: with a drain in the middle of it, and exits with `code`; `signalled` if SIGTERM came before that.
fn drained(code: i32, signalled: bool, max_attempts: Option<u32>) -> Task {
    let (mut world, mut driver) = started(|task| task.options.max_attempts = max_attempts);
    drain(&mut world, &mut driver);
    end_after(&world, &mut driver, Ended::Exit(code), signalled);
    driver.go(&mut world);
    assert_eq!(driver.exit, Some(0), "{:?}", driver.logs);
    world.task("/z/tasks/_00/a")
}

/// A worker that runs this task.
fn started(change: impl FnOnce(&mut Task)) -> (World, RoleDriver<Worker>) {
    let mut world = World::new();
    let mut driver = worker(|_| {});
    driver.connect(&mut world);
    task(&mut world, "_00/a");
    world.change("/z/tasks/_00/a", change);
    assign(&mut world, &driver, &[("_00/a", 1, false)]);
    driver.go(&mut world);
    let run = *driver.runs.keys().next().expect("asked for");
    driver.event(&world, Event::Started { run, pid: 5 });
    (world, driver)
}

/// The worker drains until it sends SIGTERM.
fn drain(world: &mut World, driver: &mut RoleDriver<Worker>) {
    driver.event(world, Event::Stop { again: false });
    assert!(driver.signals.is_empty(), "what runs has its time");
    world.pass(Duration::from_secs(3));
    driver.event(world, Event::Wake);
    assert!(matches!(driver.signals[..], [(_, GroupSignal::Term)]), "{:?}", driver.signals);
}

#[test]
fn a_run_that_ends_after_a_drains_sigterm_runs_again_uncharged() {
    for code in [0, 3, 143] {
        for max_attempts in [None, Some(1), Some(3)] {
            let task = drained(code, true, max_attempts);
            assert_eq!((task.attempt, task.charged, task.deaths), (2, 0, 0), "{code}, {max_attempts:?}");
            assert_eq!(task.outcome, None);
        }
    }
}

#[test]
fn a_run_that_ends_before_a_drains_sigterm_counts_as_it_ended() {
    let task = drained(0, false, None);
    assert_eq!(task.outcome.map(|outcome| outcome.state), Some(OutcomeState::Done));
    let outcome = drained(3, false, None).outcome.expect("an outcome");
    assert_eq!((outcome.state, outcome.exit_code), (OutcomeState::Failed, Some(3)));
    let task = drained(3, false, Some(3));
    assert_eq!(
        (task.attempt, task.charged, task.outcome),
        (2, 1, None),
        "it is tried again, and that counts"
    );
}

/// Its worker had asked it to end, and then lost its session as well.
#[test]
fn a_run_ended_by_sigterm_before_a_session_loss_runs_again() {
    for timeout_ms in [None, Some(1_000)] {
        let (mut world, mut driver) = started(|task| task.options.timeout_ms = timeout_ms);
        match timeout_ms {
            None => drain(&mut world, &mut driver),
            Some(_) => {
                world.pass(Duration::from_secs(2));
                driver.event(&world, Event::Wake);
                assert!(matches!(driver.signals[..], [(_, GroupSignal::Term)]), "{:?}", driver.signals);
            }
        }
        driver.event(&world, Event::SlotsLost { why: "it was killed".into() });
        end_after(&world, &mut driver, Ended::Exit(0), true);
        driver.go(&mut world);
        let task = world.task("/z/tasks/_00/a");
        assert_eq!((task.attempt, task.charged, task.outcome), (2, 0, None), "{timeout_ms:?}");
    }
}

/// A cancel and a timeout have an end of their own, whatever the task makes of SIGTERM.
#[test]
fn a_cancelled_or_timed_out_run_ends_so_whatever_its_code() {
    for code in [0, 3, 143] {
        let (mut world, mut driver) = started(|_| {});
        world.change("/z/tasks/_00/a", |task| task.cancel = true);
        assign(&mut world, &driver, &[("_00/a", 1, true)]);
        driver.go(&mut world);
        assert!(matches!(driver.signals[..], [(_, GroupSignal::Term)]), "{:?}", driver.signals);
        // A drain that begins meanwhile changes nothing.
        driver.event(&world, Event::Stop { again: false });
        end_after(&world, &mut driver, Ended::Exit(code), true);
        driver.go(&mut world);
        let outcome = world.task("/z/tasks/_00/a").outcome.expect("an outcome");
        assert_eq!((outcome.state, outcome.exit_code), (OutcomeState::Cancelled, Some(code)));

        let (mut world, mut driver) = started(|task| task.options.timeout_ms = Some(1_000));
        world.pass(Duration::from_secs(2));
        driver.event(&world, Event::Wake);
        driver.event(&world, Event::Stop { again: false });
        end_after(&world, &mut driver, Ended::Exit(code), true);
        driver.go(&mut world);
        let outcome = world.task("/z/tasks/_00/a").outcome.expect("an outcome");
        let expected = (OutcomeState::Failed, Some(Reason::Timeout), Some(code));
        assert_eq!((outcome.state, outcome.reason, outcome.exit_code), expected);
    }
}
