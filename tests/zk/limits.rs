//! Limits of servers: requests that are too large for them, and connections that die soon.

use super::*;

/// A znode of its own with so many bytes.
fn create(client: &mut Client, size: usize) -> Result<Reply, CallError> {
    client.call(Call::Create { path: fresh("size"), data: vec![7; size], mode: CreateMode::Persistent })
}

#[test]
fn a_too_long_write_costs_one_connection_and_is_then_refused() {
    let small = Ensemble::alone("-small", "-Djute.maxbuffer=100000");
    let mut client = Client::up(settings(&small.servers));
    assert!(create(&mut client, 50_000).is_ok());
    assert_eq!(create(&mut client, 110_000), Err(CallError::MaybeApplied));
    client.wait_down(LONG);
    client.wait_up(LONG);
    for size in [110_000, 1_000_000, 101_000] {
        assert_eq!(create(&mut client, size), Err(CallError::Refused(Refusal::TooLarge)), "{size}");
    }
    assert!(create(&mut client, 95_000).is_ok(), "the server's limit is known within a few percent");
    // The limit is asked again, so one that was raised is noticed.
    small.run(&["kill", "1"]);
    client.wait_down(LONG);
    small.run_with("-Djute.maxbuffer=100000", &["start", "1"]);
    client.wait_up(LONG);
    assert_eq!(create(&mut client, 110_000), Err(CallError::Refused(Refusal::TooLarge)));
    small.run(&["kill", "1"]);
    client.wait_down(LONG);
    small.run_with("-Djute.maxbuffer=1048575", &["start", "1"]);
    client.wait_up(LONG);
    assert!(create(&mut client, 110_000).is_ok());
    let downs = client.seen.iter().filter(|event| matches!(event, SessionEvent::Down { .. }));
    assert_eq!(downs.count(), 3, "two of them by a kill");
}

#[test]
fn a_connection_that_ends_early_is_made_anew_with_backoff() {
    let (_turn, ensemble) = ensemble();
    let to: SocketAddr = format!("127.0.0.1:{}", ensemble.servers[0].1).parse().unwrap();
    let forwarder = Forwarder::start("127.0.0.1:0", to).unwrap();
    let mut client = Client::up(settings(&[forwarder.server()]));
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut connections = 0;
    while Instant::now() < deadline {
        forwarder.cut();
        client.wait_down(LONG);
        client.wait_up(LONG);
        connections += 1;
    }
    println!("{connections} connections within five seconds");
    // Without a pause there were more than a hundred.
    assert!(connections <= 20, "{connections} within five seconds");
}
