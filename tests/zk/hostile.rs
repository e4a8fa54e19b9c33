//! Fake servers: an answer of theirs, even an endless one, costs neither memory nor processor time.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::process::{helper, helper_with, until};
use super::*;

/// The fault of the fake server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It closes each connection at once.
    Closes,
    /// It answers with bytes that are no answer.
    Garbage,
    /// It answers the probe, and closes the connection of the client at its first request.
    ClosesAtFirstRequest,
    /// It answers the probe, and the client's connect request with two gigabytes.
    GiantConnectResponse,
    /// It answers the first request with two gigabytes.
    GiantReply,
    /// It answers the first request well, and then sends two gigabytes that nobody has asked for.
    GiantEvent,
    /// It answers the first request well, and then sends events without an end.
    Events,
}

/// More than any reply may have; no test must fill the machine.
const GIANT_SENT_MAX: usize = 700 * 1024 * 1024;

/// A server that does one thing wrong, and how many connections it was asked for.
struct Fake {
    port: u16,
    connections: Arc<AtomicU64>,
}

impl Fake {
    fn start(fault: Fault) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = counted.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || drop(serve(stream, fault, number)));
            }
        });
        Fake { port, connections }
    }

    fn servers(&self) -> Vec<(String, u16)> {
        vec![("127.0.0.1".to_owned(), self.port)]
    }
}

pub fn frame(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body)?;
    Ok(body)
}

pub fn send(stream: &mut TcpStream, body: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], body].concat())
}

/// Announces two gigabytes, and sends zeros for as long as anybody takes them.
fn send_giant(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(&i32::MAX.to_be_bytes())?;
    let zeros = vec![0; 256 * 1024];
    for _ in 0..GIANT_SENT_MAX / zeros.len() {
        stream.write_all(&zeros)?;
    }
    Ok(())
}

pub fn header(xid: i32, error: i32) -> Vec<u8> {
    [&xid.to_be_bytes()[..], &0_i64.to_be_bytes(), &error.to_be_bytes()].concat()
}

/// That a znode's data changed.
fn event(path: &str) -> Vec<u8> {
    let length = i32::try_from(path.len()).unwrap();
    let numbers = [3_i32, 3, length].map(i32::to_be_bytes).concat();
    [header(-1, 0), numbers, path.as_bytes().to_vec()].concat()
}

/// A probe is every connection with an even number: it is followed by the client.
fn serve(mut stream: TcpStream, fault: Fault, number: u64) -> std::io::Result<()> {
    if fault == Fault::Closes {
        return Ok(());
    }
    frame(&mut stream)?;
    let is_probe = number.is_multiple_of(2);
    match fault {
        Fault::Garbage => return stream.write_all(&[0xa5; 4096]),
        Fault::GiantConnectResponse if !is_probe => return send_giant(&mut stream),
        _ => {}
    }
    // Protocol version, timeout, session, password, not read-only.
    let answer = [&0_i32.to_be_bytes()[..], &6_000_i32.to_be_bytes(), &7_i64.to_be_bytes()].concat();
    send(&mut stream, &[&answer[..], &16_i32.to_be_bytes(), &[0; 17]].concat())?;
    loop {
        let request = frame(&mut stream)?;
        let xid = i32::from_be_bytes(request[..4].try_into().unwrap());
        let is_close = request[4..8] == (-11_i32).to_be_bytes();
        match fault {
            _ if is_close => return send(&mut stream, &header(xid, 0)),
            Fault::ClosesAtFirstRequest => return Ok(()),
            Fault::GiantReply => return send_giant(&mut stream),
            _ => send(&mut stream, &[&header(xid, 0)[..], &[0; 68]].concat())?,
        }
        match fault {
            Fault::GiantEvent => return send_giant(&mut stream),
            Fault::Events => loop {
                send(&mut stream, &event(&format!("/{}", "x".repeat(16_000))))?;
            },
            _ => {}
        }
    }
}

/// The most memory that a process ever had resident, in MiB.
fn peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
fn an_endless_reply_costs_the_connection_not_the_memory() {
    let _turn = turn();
    for (fault, event) in
        [(Fault::GiantConnectResponse, "Failed"), (Fault::GiantReply, "Failed"), (Fault::GiantEvent, "Down")]
    {
        let fake = Fake::start(fault);
        let (child, events, _logs) = helper(&fake.servers());
        let event_text = until(&events, event);
        // The next connections end in the same way.
        within(LONG, "three clients", || (fake.connections.load(Ordering::SeqCst) > 6).then_some(()));
        let peak = peak_mib(child.0.id());
        println!("{fault:?}: {event_text}; {peak} MiB");
        assert!(event_text.contains("64 MiB"), "{fault:?}: {event_text}");
        assert!(peak < 200, "{fault:?}: {peak} MiB");
    }
}

#[test]
fn undelivered_events_cost_the_connection_not_the_memory() {
    let _turn = turn();
    let fake = Fake::start(Fault::Events);
    let (mut child, events, _logs) = helper_with(&fake.servers(), &[("ZKMW_TEST_WAIT", "1")]);
    within(LONG, "a second client", || (fake.connections.load(Ordering::SeqCst) > 2).then_some(()));
    let peak = peak_mib(child.0.id());
    // The crate's own threads hold some memory on top of the 64 MiB. Without the limit it was 871 MiB and more.
    assert!(peak < 600, "{peak} MiB");
    child.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    let event_text = until(&events, "Down");
    println!("{event_text}; {peak} MiB");
    assert!(event_text.contains("too many watch events"), "{event_text}");
}

#[test]
fn servers_that_are_none_are_not_asked_in_a_busy_loop() {
    let _turn = turn();
    for fault in [Fault::Closes, Fault::Garbage, Fault::ClosesAtFirstRequest] {
        let fake = Fake::start(fault);
        let (child, events, logs) = helper(&fake.servers());
        let event_text = until(&events, "Failed");
        let (before, ticks) = (fake.connections.load(Ordering::SeqCst), cpu_ticks(child.0.id()));
        // Connections, ticks and lines are counted over this time.
        thread::sleep(Duration::from_secs(3));
        let connections = fake.connections.load(Ordering::SeqCst) - before;
        let ticks = cpu_ticks(child.0.id()) - ticks;
        let lines = logs.try_iter().filter(|line| !line.contains("DEBUG")).count();
        println!("{fault:?}: {event_text}; {connections} connections, {ticks} ticks, {lines} lines in 3 s");
        assert!(connections < 40, "{fault:?}: {connections} connections in 3 s");
        assert!(ticks < 15, "{fault:?}: {ticks} ticks in 3 s");
        assert!(lines < 10, "{fault:?}: {lines} lines in 3 s");
    }
}
