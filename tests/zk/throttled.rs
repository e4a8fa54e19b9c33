//! Servers that refuse requests for now, as they do when they throttle them: a role that only reads or deletes never
//! notices it.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::hostile::{frame, header, send};
use super::*;

/// ZooKeeper's code for a request that it throttles. The crate has no name for it.
const THROTTLED_OP: i32 = -127;
const UNIMPLEMENTED: i32 = -6;
const CLOSE_SESSION: i32 = -11;
const DELETE: i32 = 2;
const EXISTS: i32 = 3;
const GET_DATA: i32 = 4;
const SET_DATA: i32 = 5;
const GET_CHILDREN: i32 = 8;
const PING: i32 = 11;
const ADD_WATCH: i32 = 106;

/// The error of a refused write: the crate takes each code that it does not know for that one.
const REFUSED: CallError = CallError::Refused(Refusal::Other(UNIMPLEMENTED));

/// The session timeout that the fake server grants, in milliseconds: it is asked for a heartbeat each third of it.
const TIMEOUT_MS: i32 = 1_500;

/// A server that takes each request for good, unless it refuses.
#[derive(Default)]
struct Fake {
    refuses: AtomicBool,
    /// So many of the first requests of each connection are refused.
    refuses_first: AtomicU64,
    /// It does not know persistent watches, and closes a connection that asks for one.
    is_old: AtomicBool,
    /// Of each kind of request, how many were refused.
    refused: Mutex<BTreeMap<i32, u64>>,
}

impl Fake {
    fn start() -> (Arc<Fake>, Vec<(String, u16)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let fake = Arc::new(Fake::default());
        let shared = Arc::clone(&fake);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let fake = Arc::clone(&shared);
                thread::spawn(move || drop(fake.serve(stream)));
            }
        });
        (fake, vec![("127.0.0.1".to_owned(), port)])
    }

    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        frame(&mut stream)?;
        // Protocol version, timeout, session, password, not read-only.
        let answer = [&0_i32.to_be_bytes()[..], &TIMEOUT_MS.to_be_bytes(), &7_i64.to_be_bytes()].concat();
        send(&mut stream, &[&answer[..], &16_i32.to_be_bytes(), &[0; 17]].concat())?;
        for number in 0.. {
            let request = frame(&mut stream)?;
            let xid = i32::from_be_bytes(request[..4].try_into().unwrap());
            let kind = i32::from_be_bytes(request[4..8].try_into().unwrap());
            match kind {
                CLOSE_SESSION => return send(&mut stream, &header(xid, 0)),
                PING => send(&mut stream, &header(xid, 0))?,
                ADD_WATCH if self.is_old.load(Ordering::SeqCst) => {
                    send(&mut stream, &header(xid, UNIMPLEMENTED))?;
                    // If it hung up in the same moment, the crate might not read the answer.
                    return frame(&mut stream).map(drop);
                }
                _ if self.refuses.load(Ordering::SeqCst)
                    || number < self.refuses_first.load(Ordering::SeqCst) =>
                {
                    *self.refused.lock().unwrap().entry(kind).or_default() += 1;
                    send(&mut stream, &header(xid, THROTTLED_OP))?;
                }
                // A number of bytes or of children, or the beginning of a znode's state.
                _ => send(&mut stream, &[&header(xid, 0)[..], &[0; 72]].concat())?,
            }
        }
        Ok(())
    }

    fn refused(&self, kind: i32) -> u64 {
        self.refused.lock().unwrap().get(&kind).copied().unwrap_or_default()
    }

    /// Waits until it has refused so many more of a kind.
    fn refuses_more(&self, kind: i32, count: u64) {
        let until = self.refused(kind) + count;
        within(LONG, "refused requests", || (self.refused(kind) >= until).then_some(()));
    }
}

fn downs(client: &Client) -> usize {
    client.seen.iter().filter(|event| matches!(event, SessionEvent::Down { .. })).count()
}

/// The answers to these calls, in whatever order they come.
fn replies(client: &mut Client, mut open: Vec<CallId>) -> BTreeMap<CallId, Result<Reply, CallError>> {
    let mut replies = BTreeMap::new();
    while !open.is_empty() {
        let (id, result) = client.wait(LONG, "a reply", |event| match event {
            SessionEvent::Reply { id, result } => Some((*id, result.clone())),
            _ => None,
        });
        open.retain(|other| *other != id);
        replies.insert(id, result);
    }
    replies
}

#[test]
fn throttled_reads_are_repeated_and_cost_no_connection() {
    let (fake, servers) = Fake::start();
    let mut client = Client::up(settings(&servers));
    fake.refuses.store(true, Ordering::SeqCst);
    let path = || "/a".to_owned();
    let reads = vec![
        client.send(Call::Get { path: path(), watch: true }),
        client.send(Call::Exists { path: path(), watch: false }),
        client.send(Call::Children { path: path() }),
        client.send(Call::Watch { path: path(), mode: WatchMode::Tree }),
    ];
    assert_eq!(client.set("/a", 0), Err(REFUSED), "a write may exceed a quota: roles decide");
    for kind in [GET_DATA, EXISTS, GET_CHILDREN, ADD_WATCH] {
        fake.refuses_more(kind, 2);
    }
    // Each heartbeat is refused, for longer than a session lives without one.
    fake.refuses_more(EXISTS, 8);
    assert!(
        !client
            .seen
            .iter()
            .any(|event| matches!(event, SessionEvent::Reply { id, .. } if reads.contains(id)))
    );
    fake.refuses.store(false, Ordering::SeqCst);
    for (id, result) in replies(&mut client, reads) {
        assert!(result.is_ok(), "{id:?}: {result:?}");
    }
    assert_eq!((downs(&client), fake.refused(SET_DATA)), (0, 1));
}

#[test]
fn a_throttled_delete_is_repeated_while_a_session_may_live() {
    let (fake, servers) = Fake::start();
    let mut client = Client::up(settings(&servers));
    let delete = || Call::Delete { path: "/a".to_owned(), version: Some(1) };
    fake.refuses.store(true, Ordering::SeqCst);
    let id = client.send(delete());
    fake.refuses_more(DELETE, 2);
    fake.refuses.store(false, Ordering::SeqCst);
    assert_eq!(client.reply(id), Ok(Reply::Deleted));
    fake.refuses.store(true, Ordering::SeqCst);
    let since = Instant::now();
    assert_eq!(client.call(delete()), Err(REFUSED));
    assert!(since.elapsed() < Duration::from_millis(TIMEOUT_MS as u64), "{:?}", since.elapsed());
}

#[test]
fn throttled_calls_count_as_not_sent_when_the_session_stops() {
    let (fake, servers) = Fake::start();
    let mut client = Client::up(settings(&servers));
    fake.refuses.store(true, Ordering::SeqCst);
    let id = client.send(Call::Get { path: "/a".to_owned(), watch: false });
    fake.refuses_more(GET_DATA, 4);
    let Client { session, events, .. } = client;
    assert_eq!(session.stop(Duration::from_secs(2)), Stopped::Closed);
    let results: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            SessionEvent::Reply { id: of, result } => Some((of, result)),
            _ => None,
        })
        .collect();
    assert_eq!(results, [(id, Err(CallError::NotSent))]);
}

#[test]
fn throttling_at_the_start_is_no_refusal_of_credentials() {
    let (fake, servers) = Fake::start();
    fake.refuses_first.store(4, Ordering::SeqCst);
    let mut client = Client::up(settings(&servers));
    assert!(
        !client.seen.iter().any(|event| matches!(event, SessionEvent::Failed { .. })),
        "{:?}",
        client.seen
    );
    assert!(client.exists("/a", false).is_ok());
}

#[test]
fn an_old_server_is_distinguished_from_a_throttling_one() {
    let (fake, servers) = Fake::start();
    fake.is_old.store(true, Ordering::SeqCst);
    let mut client = Client::up(settings(&servers));
    let watch = client.call(Call::Watch { path: "/a".to_owned(), mode: WatchMode::Tree });
    assert_eq!(watch, Err(CallError::Refused(Refusal::Unimplemented)));
    client.wait_down(LONG);
}

/// Takes one request at a time, and refuses what has waited for more than a millisecond.
const THROTTLES: &str = "-Dzookeeper.request_throttle_max_requests=1 -Dzookeeper.throttled_op_wait_time=1";

#[test]
fn a_flooded_server_that_throttles_refuses_writes_and_no_read() {
    let _turn = turn();
    let busy = Ensemble::alone("-busy", THROTTLES);
    let mut client = Client::up(Settings { threads: 64, ..settings(&busy.servers) });
    let path = fresh("busy");
    within(LONG, "a znode", || client.create(&path, CreateMode::Persistent).is_ok().then_some(()));
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    for _ in 0..2_000 {
        reads.push(client.send(Call::Get { path: path.clone(), watch: false }));
        let data = vec![7; 1_000];
        writes.push(client.send(Call::Create { path: fresh("more"), data, mode: CreateMode::Ephemeral }));
    }
    let results = replies(&mut client, [&reads[..], &writes[..]].concat());
    let refused = |ids: &[CallId]| ids.iter().filter(|id| results[id] == Err(REFUSED)).count();
    println!("{} of {} writes were refused", refused(&writes), writes.len());
    assert!(refused(&writes) > 0, "it does not throttle");
    assert_eq!(refused(&reads), 0, "reads were refused");
    assert!(results.values().all(|result| result.is_ok() || *result == Err(REFUSED)));
    assert_eq!(downs(&client), 0);
}
