//! Why a task has no outcome: the reads, and the reasons.

use super::*;

fn reasons(name: &str, prepare: impl FnOnce(&mut ClientDriver<Show>)) -> (Vec<&'static str>, String) {
    let params = ShowParams { only_reasons: true, ..show_params(TaskId::new("J", name)) };
    let mut driver = ClientDriver::new(Show::new(params), &[]);
    fill(&mut driver);
    prepare(&mut driver);
    driver.connect();
    driver.settle();
    assert_eq!((driver.exit, driver.count(Call::is_write)), (Some(0), 0));
    let [ClientReport::Why(shown)] = driver.reports.as_slice() else { panic!("{:?}", driver.reports) };
    let texts: Vec<String> = shown.reasons.iter().map(ToString::to_string).collect();
    (shown.reasons.iter().map(|reason| reason.code()).collect(), texts.join("; "))
}

#[test]
fn why_gives_all_reasons_of_a_task() {
    let lead = |driver: &mut ClientDriver<Show>| {
        driver.put("/z/master", b"");
        driver.put(FIRST, b"m1");
        write_status(driver, FIRST);
    };
    assert_eq!(reasons("good", lead).0, Vec::<&str>::new());
    assert_eq!(reasons("run", lead).0, ["with-worker"]);
    assert_eq!(reasons("ending", lead).0, ["cancelling"]);
    assert_eq!(reasons("old", lead).0, ["no-worker"]);
    let (codes, text) = reasons("dead", |_| ());
    assert_eq!(codes, ["in-doubt", "no-master"]);
    assert!(text.starts_with("worker w has it and is not registered"), "{text}");
    assert_eq!(reasons("moved", |_| ()).0, ["revoked", "no-master"]);
    let quarantine = |driver: &mut ClientDriver<Show>| {
        let mut registration = Registration::new(&ProcessIdentity::default(), 1, Labels::new(), 10_000);
        registration.quarantined = vec![TaskId::new("J", "run")];
        let path = Layout::new("/z").registration(&Incarnation::new("w", 1), 1);
        driver.put(&path, &registration.encode());
    };
    assert_eq!(reasons("run", quarantine).0, ["quarantined"]);
}

#[test]
fn why_of_a_line_counts_the_lines_before_it() {
    let of_line = |name: &str| {
        let params = ShowParams { only_reasons: true, ..show_params(TaskId::parse(name).expect("an id")) };
        let mut driver = ClientDriver::new(Show::new(params), &[]);
        fill(&mut driver);
        put_chunk(&mut driver);
        driver.connect();
        driver.settle();
        let [ClientReport::Why(shown)] = driver.reports.as_slice() else { panic!("{:?}", driver.reports) };
        shown.reasons.clone()
    };
    let worker = Incarnation::new("w2", 7);
    assert_eq!(of_line("J~b/14"), [WaitReason::InShare { worker: worker.clone(), before: 1 }]);
    assert_eq!(of_line("J~b/15"), [WaitReason::Cancelling { worker }]);
    assert_eq!(of_line("J~b/16"), [WaitReason::NoMaster]);
    assert_eq!(of_line("J~b/11"), []);
}

#[test]
fn why_survives_a_loss_at_every_read() {
    for at in 0..12 {
        let params = ShowParams { only_reasons: true, ..show_params(TaskId::new("J", "run")) };
        let mut driver = ClientDriver::new(Show::new(params), &[]);
        fill(&mut driver);
        driver.connect();
        for _ in 0..at {
            driver.play(Fate::Answered);
        }
        if driver.exit.is_none() {
            driver.play(Fate::DroppedUnanswered);
            driver.connect();
            driver.settle();
        }
        assert_eq!((driver.exit, driver.reports.len()), (Some(0), 1), "{at}");
    }
}
