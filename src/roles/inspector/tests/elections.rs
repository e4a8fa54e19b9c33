//! Elections, and who leads each.

use super::*;

fn elections(driver: &mut ClientDriver<Elections>) -> Vec<(String, Option<String>, u64)> {
    driver.connect();
    driver.settle();
    let rows = driver.reports.iter().map(|report| match report {
        ClientReport::Election(row) => row,
        other => panic!("no election: {other:?}"),
    });
    let rows =
        rows.map(|row| (row.path.clone(), row.first.as_ref().map(|one| one.id.clone()), row.contenders));
    rows.collect()
}

fn elections_driver() -> ClientDriver<Elections> {
    let params = ElectionsParams { layout: Layout::new("/z") };
    let mut driver = ClientDriver::new(Elections::new(params), &["/z", "/z/master", "/z/elections"]);
    driver.put(SECOND, b"m2");
    driver.put(FIRST, b"m1");
    for dir in ["mail", "mail/eu", "mail/lock-0000000001", "team", "team/nightly", "old"] {
        driver.put(&format!("/z/elections/{dir}"), b"");
    }
    driver.put("/z/elections/mail/_c_aaaa-latch-0000000007", b"mail1");
    driver.put("/z/elections/mail/eu/_c_aaaa-latch-0000000009", b"mail-eu");
    driver.put("/z/master/junk", b"");
    driver.put("/z/elections/team/nightly/_c_bbbb-latch-0000000003", b"n1");
    driver
}

#[test]
fn elections_are_listed_with_those_who_lead() {
    let expected = [
        ("/z/elections/mail", Some("mail1"), 1),
        ("/z/elections/mail/eu", Some("mail-eu"), 1),
        ("/z/elections/old", None, 0),
        ("/z/elections/team/nightly", Some("n1"), 1),
        ("/z/master", Some("m1"), 2),
    ];
    let expected = expected.map(|(path, id, count)| (path.to_string(), id.map(str::to_string), count));
    let mut driver = elections_driver();
    assert_eq!((elections(&mut driver), driver.exit), (expected.to_vec(), Some(0)));
    let calls = driver.made.len();
    for at in 0..calls {
        let mut driver = elections_driver();
        driver.connect();
        for _ in 0..at {
            driver.play(Fate::Answered);
        }
        driver.play(Fate::DroppedUnanswered);
        assert_eq!((elections(&mut driver), driver.exit), (expected.to_vec(), Some(0)), "{at}");
    }
    let mut nothing = ClientDriver::new(Elections::new(ElectionsParams { layout: Layout::new("/z") }), &[]);
    assert_eq!((elections(&mut nothing), nothing.exit), (vec![], Some(0)));
    // Without contenders the masters have a row all the same.
    let params = ElectionsParams { layout: Layout::new("/z") };
    let mut idle = ClientDriver::new(Elections::new(params), &["/z", "/z/master"]);
    assert_eq!(elections(&mut idle), [("/z/master".to_string(), None, 0)]);
}

#[test]
fn an_election_that_may_not_be_read_is_no_end() {
    let mut driver = elections_driver();
    driver.connect();
    driver.play(Fate::Refused(Refusal::NoAuth));
    driver.settle();
    assert_eq!((driver.exit, driver.reports.len()), (Some(exit::NOT_PERMITTED), 1), "{:?}", driver.reports);
    assert!(driver.logged("cannot read the election /z/elections"), "{:?}", driver.logs);
}
