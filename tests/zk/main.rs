//! The session layer against real servers: what breaks, which events it reports, and how long that takes.

mod hostile;
mod limits;
mod process;
mod support;
mod throttled;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::*;
use zkmw::machine::{Call, CallError, CallId, CallResult, ChangeKind, CreateMode, Refusal, Reply, WatchMode};
use zkmw::zk::{Failure, SessionEvent, Settings, Stopped};

const REFUSED_NO_NODE: CallError = CallError::Refused(Refusal::NoNode);

#[test]
fn calls_do_what_they_say() {
    let (_turn, ensemble) = ensemble();
    let mut client = Client::up(settings(&ensemble.servers));
    let path = fresh("calls");
    assert_eq!(client.exists(&path, false), Err(REFUSED_NO_NODE));
    assert_eq!(client.create(&path, CreateMode::Persistent), Ok(path.clone()));
    let again = client.create(&path, CreateMode::Persistent);
    assert_eq!(again, Err(CallError::Refused(Refusal::NodeExists)));
    let child = client.create(&format!("{path}/n-"), CreateMode::EphemeralSequential).unwrap();
    assert_eq!(child, format!("{path}/n-0000000000"));
    let below = client.create(&format!("{child}/x"), CreateMode::Persistent);
    assert_eq!(below, Err(CallError::Refused(Refusal::NoChildrenForEphemerals)));
    let owner = client.exists(&child, false).unwrap().ephemeral_owner;
    assert_ne!(owner, 0);
    let children = client.call(Call::Children { path: path.clone() });
    assert_eq!(children, Ok(Reply::Children(vec!["n-0000000000".into()])));
    let stat = client.set(&path, 0);
    assert!(matches!(stat, Ok(Reply::Stat(stat)) if stat.version == 1 && stat.num_children == 1), "{stat:?}");
    assert_eq!(client.set(&path, 0), Err(CallError::Refused(Refusal::BadVersion)));
    let data = client.call(Call::Get { path: path.clone(), watch: false });
    assert!(matches!(&data, Ok(Reply::Data { data, stat }) if data == b"y" && stat.version == 1), "{data:?}");
    let delete = client.call(Call::Delete { path: path.clone(), version: Some(1) });
    assert_eq!(delete, Err(CallError::Refused(Refusal::NotEmpty)));
    assert_eq!(client.call(Call::Delete { path: child, version: None }), Ok(Reply::Deleted));
    assert_eq!(client.call(Call::Delete { path, version: Some(1) }), Ok(Reply::Deleted));
}

#[test]
fn a_harmful_request_is_refused_and_a_million_bytes_are_not() {
    let (_turn, ensemble) = ensemble();
    let mut client = Client::up(settings(&ensemble.servers));
    let path = fresh("large");
    let create =
        |size| Call::Create { path: path.clone(), data: vec![7; size], mode: CreateMode::Persistent };
    assert_eq!(client.call(create(1_000_001)), Err(CallError::Refused(Refusal::TooLarge)));
    assert_eq!(client.call(create(1_000_000)), Ok(Reply::Created { path: path.clone() }));
    let data = client.call(Call::Get { path: path.clone(), watch: false });
    assert!(matches!(&data, Ok(Reply::Data { data, .. }) if data.len() == 1_000_000));
    for bad in ["", "x", "/a/", "/a//b", "/a/../b", "/a\0"] {
        let refused = client.exists(bad, false);
        assert_eq!(refused, Err(CallError::Refused(Refusal::BadArguments)), "{bad:?}");
    }
    let tree = client.call(Call::Watch { path: "/".into(), mode: WatchMode::Tree });
    assert_eq!(tree, Err(CallError::Refused(Refusal::BadArguments)));
    assert!(client.seen.iter().all(|event| !matches!(event, SessionEvent::Down { .. })));
}

#[test]
fn watches_fire_once_or_persistently_and_in_order() {
    let (_turn, ensemble) = ensemble();
    let mut client = Client::up(settings(&ensemble.servers));
    let (once, node, tree) = (fresh("once"), fresh("node"), fresh("tree"));
    // One-shot, on a znode that is not there yet.
    assert_eq!(client.exists(&once, true), Err(REFUSED_NO_NODE));
    client.create(&once, CreateMode::Persistent).unwrap();
    assert_eq!(client.changes(1), [(once.clone(), ChangeKind::Created)]);
    client.set(&once, 0).unwrap();
    // Node: everything about one znode. A one-shot watch on top must not end it (ZOOKEEPER-4466).
    client.call(Call::Watch { path: node.clone(), mode: WatchMode::Node }).unwrap();
    client.create(&node, CreateMode::Persistent).unwrap();
    client.call(Call::Get { path: node.clone(), watch: true }).unwrap();
    client.set(&node, 0).unwrap();
    client.set(&node, 1).unwrap();
    client.create(&format!("{node}/below"), CreateMode::Persistent).unwrap();
    let kinds = [ChangeKind::Created, ChangeKind::Data, ChangeKind::Data, ChangeKind::Children];
    assert_eq!(client.changes_so_far(), kinds.map(|kind| (node.clone(), kind)));
    // Tree: in order, nothing lost.
    client.create(&tree, CreateMode::Persistent).unwrap();
    client.call(Call::Watch { path: tree.clone(), mode: WatchMode::Tree }).unwrap();
    let mut writer = Client::up(settings(&ensemble.servers));
    let mut want = Vec::new();
    for number in 0..200 {
        let child = format!("{tree}/{number}");
        writer.create(&child, CreateMode::Persistent).unwrap();
        writer.set(&child, 0).unwrap();
        want.push((child.clone(), ChangeKind::Created));
        want.push((child, ChangeKind::Data));
    }
    assert_eq!(client.changes(400), want);
}

#[test]
fn a_persistent_watch_survives_a_one_shot_on_the_same_znode() {
    let (_turn, ensemble) = ensemble();
    let mut client = Client::up(settings(&ensemble.servers));
    let mut writer = Client::up(settings(&ensemble.servers));
    let node = fresh("both");
    writer.create(&node, CreateMode::Persistent).unwrap();
    client.sync();
    client.call(Call::Watch { path: node.clone(), mode: WatchMode::Node }).unwrap();
    client.call(Call::Watch { path: node.clone(), mode: WatchMode::Node }).unwrap();
    client.call(Call::Get { path: node.clone(), watch: true }).unwrap();
    client.exists(&node, true).unwrap();
    for version in 0..5 {
        writer.set(&node, version).unwrap();
    }
    writer.call(Call::Delete { path: node.clone(), version: None }).unwrap();
    let mut want = vec![(node.clone(), ChangeKind::Data); 5];
    want.push((node.clone(), ChangeKind::Deleted));
    assert_eq!(client.changes(6), want);
    assert_eq!(client.changes_so_far(), [], "each change is reported once");
}

#[test]
fn a_chroot_is_not_seen_in_paths_and_its_absence_is() {
    let (_turn, ensemble) = ensemble();
    let chroot = fresh("chroot");
    let mut outside = Client::up(settings(&ensemble.servers));
    let rooted = zkmw::zk::Settings { chroot: Some(chroot.clone()), ..settings(&ensemble.servers) };
    let mut client = Client::start(rooted);
    let failure = client.wait(LONG, "Failed", |event| match event {
        SessionEvent::Failed { why } => Some(why.clone()),
        _ => None,
    });
    assert_eq!(failure, Failure::NoChroot { path: chroot.clone() });
    outside.create(&chroot, CreateMode::Persistent).unwrap();
    client.wait_up(Duration::from_secs(2));
    client.call(Call::Watch { path: "/".into(), mode: WatchMode::Node }).unwrap();
    client.call(Call::Watch { path: "/a".into(), mode: WatchMode::Tree }).unwrap();
    outside.set(&chroot, 0).unwrap();
    assert_eq!(client.changes(1), [("/".into(), ChangeKind::Data)]);
    assert_eq!(client.create("/a", CreateMode::Persistent), Ok("/a".into()));
    assert_eq!(client.create("/a/s-", CreateMode::EphemeralSequential), Ok("/a/s-0000000000".into()));
    outside.sync();
    assert!(outside.exists(&format!("{chroot}/a/s-0000000000"), false).is_ok());
    let kinds: BTreeSet<String> = client.changes_so_far().into_iter().map(|c| c.0).collect();
    assert!(kinds.iter().all(|path| path == "/" || path.starts_with("/a")), "{kinds:?}");
}

#[test]
fn the_negotiated_timeout_is_reported() {
    let (_turn, ensemble) = ensemble();
    for (asked, granted) in [(1, 4), (6, 6), (100, 40)] {
        let asked = Duration::from_secs(asked);
        let mut client =
            Client::start(zkmw::zk::Settings { session_timeout: asked, ..settings(&ensemble.servers) });
        assert_eq!(client.wait_up(LONG).1, Duration::from_secs(granted));
    }
}

#[test]
fn credentials_are_sent_after_each_reconnect_or_refused() {
    let (_turn, ensemble) = ensemble();
    let to: SocketAddr = format!("127.0.0.1:{}", ensemble.servers[0].1).parse().unwrap();
    let forwarder = Forwarder::start("127.0.0.1:0", to).unwrap();
    let auth = vec![("digest".to_owned(), b"user:secret".to_vec())];
    let mut client = Client::up(zkmw::zk::Settings { auth, ..settings(&[forwarder.server()]) });
    let path = fresh("secret");
    client.create(&path, CreateMode::Persistent).unwrap();
    let mut stranger = Client::up(settings(&ensemble.servers));
    let get = Call::Get { path: path.clone(), watch: false };
    // A follower may not have it yet, so the stranger writes first.
    stranger.sync();
    assert_eq!(stranger.call(get.clone()), Err(CallError::Refused(Refusal::NoAuth)));
    for _ in 0..2 {
        forwarder.cut();
        client.wait_down(LONG);
        client.wait_up(LONG);
        assert!(client.call(get.clone()).is_ok());
    }
    let auth = vec![("nonsense".to_owned(), Vec::new())];
    let mut refused = Client::start(zkmw::zk::Settings { auth, ..settings(&ensemble.servers) });
    let failure = refused.wait(LONG, "Failed", |event| match event {
        SessionEvent::Failed { why } => Some(why.clone()),
        _ => None,
    });
    assert_eq!(failure, Failure::AuthFailed { scheme: "nonsense".into() });
}

/// A listener whose queue is full: the kernel drops further connection requests.
fn black_hole() -> (rustix::fd::OwnedFd, Vec<TcpStream>, SocketAddr) {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
    let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    listen(&listener, 0).unwrap();
    let address = SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
    let mut fillers = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        fillers.push(stream);
        assert!(fillers.len() < 50, "the queue does not fill");
    }
    (listener, fillers, address)
}

#[test]
fn hosts_that_swallow_or_have_no_address_cost_little() {
    let (_turn, ensemble) = ensemble();
    let (_listener, _fillers, hole) = black_hole();
    let mut servers = vec![("127.0.0.1".to_owned(), hole.port()), ("misspelt.invalid".to_owned(), 2181)];
    let only_bad = Client::start(settings(&servers[1..])).wait(LONG, "Failed", |event| match event {
        SessionEvent::Failed { why } => Some(why.clone()),
        _ => None,
    });
    assert!(matches!(&only_bad, Failure::Unresolvable { names } if names[0].0 == "misspelt.invalid:2181"));
    servers.extend(ensemble.servers.clone());
    for _ in 0..8 {
        let started = Instant::now();
        drop(Client::up(settings(&servers)));
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
    let swallowed = Client::start(settings(&servers[..1])).wait(LONG, "Failed", |event| match event {
        SessionEvent::Failed { why } => Some(why.clone()),
        _ => None,
    });
    assert!(swallowed.to_string().contains("no connection within 400ms"), "{swallowed}");
}

#[test]
fn ipv6_works() {
    let (_turn, ensemble) = ensemble();
    let to: SocketAddr = format!("127.0.0.1:{}", ensemble.servers[0].1).parse().unwrap();
    let Ok(forwarder) = Forwarder::start("[::1]:0", to) else {
        eprintln!("no IPv6 here: not tested");
        return;
    };
    let rooted = zkmw::zk::Settings { chroot: Some("/zookeeper".into()), ..settings(&[forwarder.server()]) };
    let mut client = Client::start(rooted);
    assert_eq!(client.wait_up(LONG).2, forwarder.address);
    assert!(client.exists("/quota", false).is_ok());
}

/// Keeps `count` creates in flight until the connection is down; checks that each call is answered once and
/// before `Down`; returns how many were in doubt.
fn busy_until_down(client: &mut Client, count: usize, limit: Duration) -> usize {
    let root = fresh("busy");
    client.create(&root, CreateMode::Persistent).unwrap();
    let mut awaited = BTreeSet::new();
    let create =
        |n: u64| Call::Create { path: format!("{root}/{n}"), data: vec![], mode: CreateMode::Persistent };
    let mut next = 0;
    let deadline = Instant::now() + limit;
    let mut in_doubt = 0;
    loop {
        while awaited.len() < count {
            awaited.insert(client.send(create(next)));
            next += 1;
        }
        client.seen.clear();
        match client.next(deadline.saturating_duration_since(Instant::now())).expect("still up") {
            SessionEvent::Reply { id, result } => {
                assert!(awaited.remove(&id), "answered twice: {id:?}");
                match result {
                    Ok(_) => {}
                    Err(CallError::NotSent) => {}
                    Err(CallError::MaybeApplied) => in_doubt += 1,
                    other => panic!("{other:?}"),
                }
            }
            SessionEvent::Down { .. } => {
                // A call that is still unanswered was made after Down was sent: it must not have been sent itself.
                while !awaited.is_empty() {
                    let late = client.next(Duration::from_millis(500)).expect("an answer");
                    let SessionEvent::Reply { id, result } = late else {
                        panic!("{late:?} instead of an answer")
                    };
                    assert!(awaited.remove(&id), "answered twice: {id:?}");
                    assert_eq!(result, Err(CallError::NotSent), "what was sent is answered before Down");
                }
                return in_doubt;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_killed_server_costs_milliseconds_and_no_call_its_reply() {
    let (_turn, ensemble) = ensemble();
    for idle in [false, true] {
        let mut client = Client::start(settings(&ensemble.servers));
        let started = Instant::now();
        let (_, _, server) = client.wait_up(LONG);
        let connected = started.elapsed();
        let number = ensemble.number_of(server);
        let killer = thread::scope(|scope| {
            let at = scope.spawn(|| {
                thread::sleep(Duration::from_millis(300)); // so that calls are in flight
                let at = Instant::now();
                ensemble.signal(&number, Signal::KILL);
                at
            });
            if idle {
                client.wait_down(LONG);
            } else {
                busy_until_down(&mut client, 64, LONG);
            }
            (at.join().unwrap(), Instant::now())
        });
        let down = killer.1.duration_since(killer.0);
        client.seen.clear();
        client.wait_up(LONG);
        let late = client.seen.iter().any(|event| matches!(event, SessionEvent::Reply { .. }));
        assert!(!late, "{:?}", client.seen);
        let last = CallId(u64::MAX - client.generation);
        client.session.call(client.generation - 1, last, Call::Children { path: "/".into() });
        assert_eq!(
            client.reply(last),
            Err(CallError::NotSent),
            "it was meant for the connection that is gone"
        );
        println!(
            "idle {idle}: connect {connected:?}; kill -9 of the server: down after {down:?}, up after {:?}",
            killer.0.elapsed()
        );
        assert!(down < Duration::from_millis(1500), "{down:?}");
        ensemble.run(&["start", &number]);
    }
}

#[test]
fn a_stopped_server_is_noticed_within_half_the_timeout() {
    let (_turn, ensemble) = ensemble();
    let mut client = Client::start(settings(&ensemble.servers));
    let (_, timeout, server) = client.wait_up(LONG);
    let number = ensemble.number_of(server);
    let path = fresh("stop");
    client.create(&path, CreateMode::Persistent).unwrap();
    ensemble.signal(&number, Signal::STOP);
    let stopped = Instant::now();
    let in_flight = client.send(Call::Get { path, watch: false });
    assert_eq!(client.reply(in_flight), Err(CallError::MaybeApplied));
    client.wait_down(Duration::ZERO.max(Duration::from_millis(200)));
    let down = stopped.elapsed();
    client.wait_up(LONG);
    println!("SIGSTOP of the server: down after {down:?}, up after {:?}", stopped.elapsed());
    assert!(down < timeout / 2 + Duration::from_millis(300), "{down:?}");
    ensemble.signal(&number, Signal::CONT);
    // The hung server goes on: no event of the old connection may arrive.
    client.seen.clear();
    assert_eq!(client.exists("/nothing", false), Err(REFUSED_NO_NODE));
    assert_eq!(client.seen.len(), 1, "{:?}", client.seen);
}

#[test]
fn stopping_is_bounded_and_takes_the_ephemerals_with_it() {
    let (_turn, ensemble) = ensemble();
    let path = fresh("ephemeral");
    let mut client = Client::start(settings(&ensemble.servers));
    let (_, _, server) = client.wait_up(LONG);
    client.create(&path, CreateMode::Ephemeral).unwrap();
    // An observer on the same server: what it reads after the close was confirmed is not stale.
    let same = ensemble.servers.iter().find(|(_, port)| *port == server.port()).cloned().unwrap();
    let mut observer = Client::up(settings(&[same]));
    assert!(observer.exists(&path, false).is_ok());
    let started = Instant::now();
    assert_eq!(client.session.stop(Duration::from_secs(2)), Stopped::Closed);
    println!("stop: {:?}", started.elapsed());
    assert_eq!(observer.exists(&path, false), Err(REFUSED_NO_NODE));
    assert!(matches!(client.events.try_recv(), Ok(SessionEvent::Down { .. })));

    let limit = Duration::from_secs(1);
    let mut client = Client::start(settings(&ensemble.servers));
    let (_, _, server) = client.wait_up(LONG);
    ensemble.signal(&ensemble.number_of(server), Signal::STOP);
    let id = client.send(Call::Exists { path: path.clone(), watch: false });
    let started = Instant::now();
    assert_eq!(client.session.stop(limit), Stopped::Unconfirmed);
    println!("stop with a hung server: {:?}", started.elapsed());
    assert!(started.elapsed() < limit + Duration::from_millis(200), "{:?}", started.elapsed());
    // The stop may have come before a thread took the call up.
    let unanswered =
        |result: &CallResult| matches!(result, Err(CallError::MaybeApplied | CallError::NotSent));
    // A stop that is short of time returns before the session has reported its end.
    let reply = client.events.recv_timeout(LONG);
    assert!(
        matches!(&reply, Ok(SessionEvent::Reply { id: of, result }) if *of == id && unanswered(result)),
        "the call is answered before Down: {reply:?}"
    );
    assert!(matches!(client.events.recv_timeout(LONG), Ok(SessionEvent::Down { .. })));
    ensemble.signal(&ensemble.number_of(server), Signal::CONT);

    let (_listener, _fillers, hole) = black_hole();
    let client = Client::start(settings(&[("127.0.0.1".to_owned(), hole.port())]));
    let started = Instant::now();
    assert_eq!(client.session.stop(limit), Stopped::NothingUp);
    assert!(started.elapsed() < Duration::from_millis(50), "{:?}", started.elapsed());
}

#[test]
fn a_worn_connection_is_made_anew() {
    let (_turn, ensemble) = ensemble();
    let mut client = Client::start_limited(settings(&ensemble.servers), 10);
    client.wait_up(LONG);
    let path = fresh("worn");
    client.create(&path, CreateMode::Ephemeral).unwrap();
    for _ in 0..9 {
        client.exists("/", false).unwrap();
    }
    client.wait_down(LONG);
    client.wait_up(LONG);
    // Its session was not closed: a lease may rest on it, and its ephemerals exist until the successor has them.
    client.sync();
    assert!(client.exists(&path, false).is_ok());
}

#[test]
fn twenty_connections_leave_nothing_behind() {
    let (_turn, ensemble) = ensemble();
    let to: SocketAddr = format!("127.0.0.1:{}", ensemble.servers[0].1).parse().unwrap();
    let forwarder = Forwarder::start("127.0.0.1:0", to).unwrap();
    let mut client = Client::up(settings(&[forwarder.server()]));
    let mut first = None;
    let started = Instant::now();
    for cycle in 0..20 {
        for _ in 0..16 {
            client.send(Call::Children { path: "/".into() });
        }
        forwarder.cut();
        client.wait_down(LONG);
        client.wait_up(LONG);
        client.seen.clear();
        if cycle == 4 {
            first = Some(settled());
        }
    }
    let cycles = started.elapsed();
    let (threads, descriptors, memory) = first.unwrap();
    let (threads_now, descriptors_now, memory_now) = within(LONG, "threads and descriptors are back", || {
        let now = settled();
        (now.0.len() <= threads.len() && now.1 <= descriptors + 2).then_some(now)
    });
    println!(
        "20 cycles in {cycles:?}; threads {}, descriptors {descriptors} to {descriptors_now}, {memory} to \
         {memory_now} KiB",
        threads_now.len()
    );
    assert!(memory_now < memory + 6_000, "{memory} KiB grew to {memory_now}");
}

fn settled() -> (Vec<String>, usize, u64) {
    within(LONG, "the reaper is done", || {
        let threads = session_threads();
        // The crate's timer has a thread of its own, which inherits the name "io".
        let clients = threads.iter().filter(|name| *name == "io").count();
        (clients <= 2 && !threads.contains(&"zk-reaper".to_owned()))
            .then(|| (threads, open_descriptors(), resident_kib()))
    })
}

#[test]
fn two_of_three_servers_down_is_an_outage_that_passes() {
    let (_turn, ensemble) = ensemble();
    let mut client = Client::start(settings(&ensemble.servers));
    client.wait_up(LONG);
    ensemble.run(&["kill", "1", "2"]);
    client.wait_down(LONG);
    let failure = client.wait(LONG, "Failed", |event| match event {
        SessionEvent::Failed { why } => Some(why.clone()),
        _ => None,
    });
    assert!(matches!(&failure, Failure::Unreachable { tried, .. } if tried.len() == 3), "{failure}");
    println!("{failure}");
    ensemble.run(&["start", "1"]);
    let back = Instant::now();
    client.wait_up(LONG);
    println!("up {:?} after the quorum was seen back", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
}

#[test]
fn a_client_that_cannot_connect_after_its_probe_does_not_spin() {
    let (_turn, ensemble) = ensemble();
    let to: SocketAddr = format!("127.0.0.1:{}", ensemble.servers[0].1).parse().unwrap();
    let forwarder = Forwarder::start("127.0.0.1:0", to).unwrap();
    forwarder.only_probes.store(true, std::sync::atomic::Ordering::SeqCst);
    let mut client = Client::start(settings(&[forwarder.server()]));
    client.wait(LONG, "Failed", |event| matches!(event, SessionEvent::Failed { .. }).then_some(()));
    // The crate would go on for as long as its session could live: six seconds.
    within(Duration::from_secs(2), "the client's threads are gone", || {
        session_threads().iter().all(|name| name != "io").then_some(())
    });
}

#[test]
fn a_consumer_that_does_not_listen_blocks_nobody() {
    let (_turn, ensemble) = ensemble();
    let mut client = Client::up(settings(&ensemble.servers));
    let path = fresh("unwatched");
    client.create(&path, CreateMode::Persistent).unwrap();
    client.call(Call::Watch { path: path.clone(), mode: WatchMode::Node }).unwrap();
    let mut writer = Client::up(settings(&ensemble.servers));
    let started = Instant::now();
    let mut awaited: BTreeSet<_> =
        (0..3000).map(|_| client.send(Call::Exists { path: "/".into(), watch: false })).collect();
    awaited.extend((0..1000).map(|_| client.send(Call::Exists { path: "x".into(), watch: false })));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    for version in 0..200 {
        writer.set(&path, version).unwrap();
    }
    assert_eq!(client.changes(200).len(), 200);
    while awaited.len()
        > client.seen.iter().filter(|event| matches!(event, SessionEvent::Reply { .. })).count()
    {
        client.next(LONG).expect("a reply");
    }
    let mut answered = 0;
    for event in &client.seen {
        if let SessionEvent::Reply { id, .. } = event {
            answered += usize::from(awaited.remove(id));
        }
    }
    while !awaited.is_empty() {
        match client.next(LONG).expect("a reply") {
            SessionEvent::Reply { id, .. } => answered += usize::from(awaited.remove(&id)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answered, 4000);
}

#[test]
fn sessions_in_one_process_do_not_share_connections() {
    let (_turn, ensemble) = ensemble();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let to: SocketAddr = format!("127.0.0.1:{}", ensemble.servers[0].1).parse().unwrap();
    thread::scope(|scope| {
        // Other threads open and close sockets and epoll instances all the time.
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                use rustix::event::epoll;
                let stream = TcpStream::connect(to);
                let instance = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
                if let Ok(stream) = &stream {
                    epoll::add(&instance, stream, epoll::EventData::new_u64(7), epoll::EventFlags::IN)
                        .unwrap();
                }
                thread::sleep(Duration::from_micros(200));
            }
        });
        let starting: Vec<_> =
            (0..6).map(|_| scope.spawn(|| Client::up(settings(&ensemble.servers)))).collect();
        let mut clients: Vec<Client> = starting.into_iter().map(|client| client.join().unwrap()).collect();
        while let Some(client) = clients.pop() {
            assert_eq!(client.session.stop(Duration::from_secs(2)), Stopped::Closed);
            for other in &mut clients {
                other.seen.clear();
                assert!(other.exists("/", false).is_ok());
                assert_eq!(other.seen.len(), 1, "{:?}", other.seen);
            }
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
    });
}
