//! A second connection for deletes: it lives and dies with the first.

use super::*;

/// A client whose deletes go over a second connection, and what passes on all that it says.
pub fn with_deletes_aside(ensemble: &Ensemble) -> (Client, Forwarder) {
    let to: SocketAddr = format!("127.0.0.1:{}", ensemble.servers[0].1).parse().unwrap();
    let forwarder = Forwarder::start("127.0.0.1:0", to).unwrap();
    let settings = settings(&[forwarder.server()]);
    (Client::up(Settings { deletes_aside: true, ..settings }), forwarder)
}

#[test]
fn what_is_deleted_goes_over_a_second_connection_that_is_watched_over_as_well() {
    let (_turn, ensemble) = ensemble();
    let (mut client, forwarder) = with_deletes_aside(&ensemble);
    let delete = |path: &str| Call::Delete { path: path.into(), version: Some(0) };
    let paths = [fresh("aside"), fresh("aside"), fresh("aside")];
    for path in &paths {
        client.create(path, CreateMode::Persistent).unwrap();
    }
    assert_eq!(client.call(delete(&paths[0])), Ok(Reply::Deleted));
    assert_eq!(client.exists(&paths[0], false), Err(REFUSED_NO_NODE), "the same server");
    forwarder.hold_last();
    let held = client.send(delete(&paths[1]));
    assert!(client.exists(&paths[1], false).is_ok(), "the first connection goes on");
    let started = Instant::now();
    assert_eq!(client.reply(held), Err(CallError::MaybeApplied));
    client.wait_down(LONG);
    assert!(started.elapsed() < Duration::from_secs(4), "noticed by its heartbeat: {:?}", started.elapsed());
    client.wait_up(LONG);
    assert_eq!(client.call(delete(&paths[2])), Ok(Reply::Deleted));
}

#[test]
fn two_connections_are_one_they_end_together() {
    let (_turn, ensemble) = ensemble();
    let (mut client, forwarder) = with_deletes_aside(&ensemble);
    let path = fresh("together");
    client.create(&path, CreateMode::Ephemeral).unwrap();
    forwarder.cut_last();
    client.wait_down(LONG);
    client.wait_up(LONG);
    assert!(client.exists(&path, false).is_ok(), "the session was not closed");
    let again = fresh("together");
    client.create(&again, CreateMode::Ephemeral).unwrap();
    assert_eq!(client.session.stop(Duration::from_secs(2)), Stopped::Closed);
    let mut other = Client::up(settings(&ensemble.servers));
    other.sync();
    assert_eq!(other.exists(&again, false), Err(REFUSED_NO_NODE));
}
