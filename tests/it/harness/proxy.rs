//! Proxies in front of an ensemble that read along: they count the requests of a process, from outside it, by operation
//! and by the first component of the path below the root.
//!
//! Knows ZooKeeper's frames from client to server: a length (4 bytes), and then, but for the first frame of a
//! connection, which asks for a session, the request's number (4), its operation (4), and for most the path with its
//! length. All big-endian. Must not change, delay or drop anything.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// No request is longer, by the servers' own limit (`jute.maxbuffer`) and what surrounds the data.
const FRAME_MAX: usize = 2 * 1024 * 1024;

/// Listings whose paths are kept, for a message.
const LISTINGS_KEPT: usize = 100;

/// The component of paths that don't lie below the root.
const ELSEWHERE: &str = "elsewhere";

/// The kind of a request. Codes that need no name are `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    Session,
    Create,
    Delete,
    Exists,
    Get,
    Set,
    Children,
    Ping,
    Watch,
    Auth,
    Close,
    Other(i32),
}

impl Asked {
    fn of(code: i32) -> Asked {
        match code {
            // create, create2, createContainer, createTTL
            1 | 15 | 19 | 21 => Asked::Create,
            2 | 20 => Asked::Delete,
            3 => Asked::Exists,
            4 => Asked::Get,
            5 => Asked::Set,
            // getChildren, getChildren2
            8 | 12 => Asked::Children,
            11 => Asked::Ping,
            100 => Asked::Auth,
            106 => Asked::Watch,
            -11 => Asked::Close,
            code => Asked::Other(code),
        }
    }

    fn has_path(self) -> bool {
        use Asked::{Auth, Close, Other, Ping, Session};
        !matches!(self, Session | Ping | Auth | Close | Other(_))
    }
}

/// Requests, counted by kind and by the first component below the root, or `elsewhere`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub BTreeMap<(Asked, String), u64>);

impl Counts {
    /// Requests that came since.
    pub fn since(&self, earlier: &Counts) -> Counts {
        let less = |(key, count): (&(Asked, String), &u64)| {
            let less = count - earlier.0.get(key).copied().unwrap_or(0);
            (less > 0).then(|| (key.clone(), less))
        };
        Counts(self.0.iter().filter_map(less).collect())
    }

    fn sum(&self, of: impl Fn(Asked) -> bool) -> u64 {
        self.0.iter().filter(|((asked, _), _)| of(*asked)).map(|(_, count)| count).sum()
    }

    /// Writes to znodes, refused ones among them.
    pub fn writes(&self) -> u64 {
        self.sum(|asked| matches!(asked, Asked::Create | Asked::Delete | Asked::Set))
    }

    /// Everything else that a process asks for by itself: all but writes and the upkeep of the session.
    pub fn reads(&self) -> u64 {
        use Asked::{Auth, Close, Create, Delete, Ping, Session, Set};
        self.sum(|asked| !matches!(asked, Create | Delete | Set | Session | Ping | Auth | Close))
    }

    /// Listings.
    pub fn listings(&self) -> u64 {
        self.sum(|asked| asked == Asked::Children)
    }

    /// Pings.
    pub fn pings(&self) -> u64 {
        self.sum(|asked| asked == Asked::Ping)
    }

    /// Only requests for znodes below the root: without the session's upkeep and its heartbeats, which grow with time.
    pub fn below_root(&self) -> Counts {
        let below =
            self.0.iter().filter(|((_, directory), _)| !directory.is_empty() && directory != ELSEWHERE);
        Counts(below.map(|(key, count)| (key.clone(), *count)).collect())
    }

    /// Only requests for this component below the root.
    pub fn at(&self, directory: &str) -> Counts {
        let at = self.0.iter().filter(|((_, at), _)| at == directory);
        Counts(at.map(|(key, count)| (key.clone(), *count)).collect())
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |((asked, directory), count): (&(Asked, String), &u64)| match directory.as_str() {
            "" => format!("{asked:?} {count}"),
            directory => format!("{asked:?} {directory} {count}"),
        };
        let parts: Vec<String> = self.0.iter().map(part).collect();
        f.write_str(&parts.join(", "))
    }
}

/// State that all threads of a proxy share.
#[derive(Default)]
struct Shared {
    root: String,
    over: AtomicBool,
    counts: Mutex<Counts>,
    listings: Mutex<Vec<String>>,
}

/// One listener for each server. The connections that it has stay when it is dropped; no new ones are taken.
pub struct Proxy {
    ports: Vec<u16>,
    shared: Arc<Shared>,
}

impl Proxy {
    /// In front of every server of a connect string; paths are counted separately below `root`.
    pub fn start(connect: &str, root: &str) -> Proxy {
        let shared = Arc::new(Shared { root: root.to_string(), ..Shared::default() });
        let mut ports = Vec::new();
        for server in connect.split(',') {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            ports.push(listener.local_addr().expect("an address").port());
            let (server, shared) = (server.to_string(), Arc::clone(&shared));
            thread::spawn(move || accept(&listener, &server, &shared));
        }
        Proxy { ports, shared }
    }

    /// Where a process finds the ensemble behind this.
    pub fn connect(&self) -> String {
        let servers: Vec<String> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        servers.join(",")
    }

    /// All that was asked up to now.
    pub fn counts(&self) -> Counts {
        self.shared.counts.lock().expect("no panic").clone()
    }

    /// The paths of the first listings.
    pub fn listings(&self) -> Vec<String> {
        self.shared.listings.lock().expect("no panic").clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        for port in &self.ports {
            // Wakes the thread that waits for a connection.
            let _ = TcpStream::connect(("127.0.0.1", *port));
        }
    }
}

fn accept(listener: &TcpListener, server: &str, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.over.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        // A server that is down appears to be down through the proxy as well: the connection ends at once.
        let Ok(server) = TcpStream::connect(server) else { continue };
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let _ = client.set_nodelay(true);
            let _ = server.set_nodelay(true);
            let _ = both_ways(&client, &server, &shared);
        });
    }
}

fn both_ways(client: &TcpStream, server: &TcpStream, shared: &Shared) -> io::Result<()> {
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    let back = thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
    let done = read_along(client, server, shared);
    let _ = server.shutdown(Shutdown::Write);
    let _ = back.join();
    done
}

/// Passes frames on, each counted before it goes.
fn read_along(client: &TcpStream, server: &TcpStream, shared: &Shared) -> io::Result<()> {
    let (mut reader, mut writer) = (BufReader::new(client), BufWriter::new(server));
    let (mut frame, mut first) = (Vec::new(), true);
    // An end between two frames is the client's.
    while !reader.fill_buf()?.is_empty() {
        let mut length = [0; 4];
        reader.read_exact(&mut length)?;
        let bytes = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if bytes > FRAME_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no frame of ZooKeeper's"));
        }
        frame.resize(bytes, 0);
        reader.read_exact(&mut frame)?;
        note(shared, &frame, first);
        first = false;
        writer.write_all(&length)?;
        writer.write_all(&frame)?;
        if reader.buffer().is_empty() {
            writer.flush()?;
        }
    }
    writer.flush()
}

fn note(shared: &Shared, frame: &[u8], first: bool) {
    let int = |at: usize| Some(i32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?));
    let asked = if first { Asked::Session } else { int(4).map_or(Asked::Other(0), Asked::of) };
    let mut path = "";
    if asked.has_path()
        && let Some(length) = int(8).and_then(|length| usize::try_from(length).ok())
        && let Some(bytes) = frame.get(12..12 + length)
    {
        path = std::str::from_utf8(bytes).unwrap_or_default();
    }
    let directory = match path.strip_prefix(&shared.root) {
        _ if path.is_empty() => "",
        Some("") => "/",
        Some(below) if below.starts_with('/') => below[1..].split('/').next().unwrap_or_default(),
        _ => ELSEWHERE,
    };
    *shared.counts.lock().expect("no panic").0.entry((asked, directory.to_string())).or_insert(0) += 1;
    if asked == Asked::Children {
        let mut listings = shared.listings.lock().expect("no panic");
        if listings.len() < LISTINGS_KEPT {
            listings.push(path.to_string());
        }
    }
}
