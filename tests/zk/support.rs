//! The parts that the tests of the session layer share: an ensemble of real servers, a session with its events, a
//! forwarder that can be cut, and a few reads of `/proc`.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use zkmw::machine::{Call, CallError, CallId, CallResult, ChangeKind, CreateMode, Reply, Stat};
use zkmw::zk::{Session, SessionEvent, Settings};

/// Longer than anything here may take.
pub const LONG: Duration = Duration::from_secs(20);

/// Three servers, shared by the tests that run one after the other, and ended with the last.
pub struct Ensemble {
    dir: PathBuf,
    pub servers: Vec<(String, u16)>,
}

static RUNNING: Mutex<Weak<Ensemble>> = Mutex::new(Weak::new());
static TURN: Mutex<()> = Mutex::new(());

/// The ensemble, for one test alone; all of its servers serve.
pub fn ensemble() -> (MutexGuard<'static, ()>, Arc<Ensemble>) {
    let shared = {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.upgrade().unwrap_or_else(|| {
            let started = Arc::new(Ensemble::up());
            *running = Arc::downgrade(&started);
            started
        })
    };
    let turn = turn();
    shared.heal();
    (turn, shared)
}

/// For a test that needs the machine for itself, and no ensemble.
pub fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn script() -> Command {
    let mut command = Command::new(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/ensemble"));
    command.stdin(Stdio::null());
    command
}

impl Ensemble {
    fn up() -> Ensemble {
        Ensemble::start("", "3", "")
    }

    /// One server of its own, whose JVM is given these options.
    pub fn alone(name: &str, java_options: &str) -> Ensemble {
        Ensemble::start(name, "1", java_options)
    }

    fn start(name: &str, servers: &str, java_options: &str) -> Ensemble {
        let dir = std::env::temp_dir().join(format!("zkmw-test-zk-{}{name}", std::process::id()));
        let mut up = script();
        up.env("ZKMW_ENSEMBLE_JAVA_OPTS", java_options).arg("--dir").arg(&dir).args(["up", servers]);
        let output = up.output().expect("scripts/ensemble");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let connect = String::from_utf8(output.stdout).expect("a connect string");
        let servers = connect.trim().split(',').map(|server| {
            let (host, port) = server.rsplit_once(':').expect("host:port");
            (host.to_owned(), port.parse().expect("a port"))
        });
        Ensemble { servers: servers.collect(), dir }
    }

    pub fn run(&self, args: &[&str]) -> String {
        self.output(script(), args)
    }

    /// The same with options for the JVM of the servers that it starts.
    pub fn run_with(&self, java_options: &str, args: &[&str]) -> String {
        let mut script = script();
        script.env("ZKMW_ENSEMBLE_JAVA_OPTS", java_options);
        self.output(script, args)
    }

    fn output(&self, mut script: Command, args: &[&str]) -> String {
        let output = script.arg("--dir").arg(&self.dir).args(args).output().expect("scripts/ensemble");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Server numbers begin at 1, in the order of the connect string.
    pub fn number_of(&self, server: SocketAddr) -> String {
        let at = self.servers.iter().position(|(_, port)| *port == server.port()).expect("one of ours");
        (at + 1).to_string()
    }

    /// Sends a signal without waiting for anything.
    pub fn signal(&self, number: &str, signal: rustix::process::Signal) {
        let pid = std::fs::read_to_string(self.dir.join(number).join("pid")).expect("pid");
        signal_pid(pid.trim().parse().expect("a pid"), signal);
    }

    fn heal(&self) {
        for line in self.run(&["status"]).lines() {
            let mut words = line.split_whitespace();
            let (number, mode) = (words.next().expect("number"), words.last().expect("mode"));
            match mode {
                "stopped" => drop(self.run(&["cont", number])),
                "ended" => drop(self.run(&["start", "--no-wait", number])),
                _ => {}
            }
        }
        let serving = || {
            let status = self.run(&["status"]);
            status.lines().all(|line| line.ends_with("leader") || line.ends_with("follower"))
        };
        within(LONG, "all servers serve", || serving().then_some(()));
    }
}

impl Drop for Ensemble {
    fn drop(&mut self) {
        let _ = script().arg("--dir").arg(&self.dir).arg("down").status();
    }
}

pub fn signal_pid(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("kill");
}

/// Waits for a condition.
pub fn within<T>(limit: Duration, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn settings(servers: &[(String, u16)]) -> Settings {
    Settings {
        servers: servers.to_vec(),
        chroot: None,
        session_timeout: Duration::from_secs(6),
        auth: Vec::new(),
        threads: 16,
    }
}

/// A session, its events as far as they were read, and a source of call ids.
pub struct Client {
    pub session: Session,
    pub events: Receiver<SessionEvent>,
    pub seen: Vec<SessionEvent>,
    /// Changes that no test has read yet.
    changes: Vec<(String, ChangeKind)>,
    next_id: u64,
    /// Of the connection that was last reported to be up.
    pub generation: u64,
}

impl Client {
    pub fn start(settings: Settings) -> Client {
        Client::start_limited(settings, zkmw::zk::REQUESTS_MAX)
    }

    pub fn start_limited(settings: Settings, requests_max: u64) -> Client {
        let (sender, events) = bounded(64);
        let session = Session::start_limited(settings, sender, requests_max).expect("start");
        Client { session, events, seen: Vec::new(), changes: Vec::new(), next_id: 0, generation: 0 }
    }

    /// Up already.
    pub fn up(settings: Settings) -> Client {
        let mut client = Client::start(settings);
        client.wait_up(LONG);
        client
    }

    pub fn next(&mut self, limit: Duration) -> Option<SessionEvent> {
        let event = self.events.recv_timeout(limit).ok()?;
        self.seen.push(event.clone());
        if let SessionEvent::Up { generation, .. } = event {
            self.generation = generation;
        }
        if let SessionEvent::Changed { path, kind, .. } = &event {
            self.changes.push((path.clone(), *kind));
        }
        Some(event)
    }

    pub fn wait<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut want: impl FnMut(&SessionEvent) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(event) = self.next(left) else {
                let last = self.seen.len().saturating_sub(10);
                panic!("not within {limit:?}: {what}; last events {:?}", &self.seen[last..]);
            };
            if let Some(found) = want(&event) {
                return found;
            }
        }
    }

    pub fn wait_up(&mut self, limit: Duration) -> (u64, Duration, SocketAddr) {
        self.wait(limit, "Up", |event| match event {
            SessionEvent::Up { generation, timeout, server } => Some((*generation, *timeout, *server)),
            _ => None,
        })
    }

    pub fn wait_down(&mut self, limit: Duration) -> String {
        self.wait(limit, "Down", |event| match event {
            SessionEvent::Down { why, .. } => Some(why.clone()),
            _ => None,
        })
    }

    /// The next so many changes.
    pub fn changes(&mut self, count: usize) -> Vec<(String, ChangeKind)> {
        while self.changes.len() < count {
            self.wait(LONG, "Changed", |event| matches!(event, SessionEvent::Changed { .. }).then_some(()));
        }
        self.changes.drain(..count).collect()
    }

    /// The changes that were reported until now: the event of a marker comes after all others.
    pub fn changes_so_far(&mut self) -> Vec<(String, ChangeKind)> {
        let marker = fresh("marker");
        let _ = self.exists(&marker, true);
        self.create(&marker, CreateMode::Persistent).unwrap();
        loop {
            if let Some(at) = self.changes.iter().position(|(path, _)| *path == marker) {
                let mut until = std::mem::take(&mut self.changes);
                until.truncate(at);
                return until;
            }
            self.next(LONG).expect("the marker's event");
        }
    }

    pub fn send(&mut self, call: Call) -> CallId {
        self.next_id += 1;
        let id = CallId(self.next_id);
        self.session.call(self.generation, id, call);
        id
    }

    pub fn reply(&mut self, id: CallId) -> CallResult {
        self.wait(LONG, "Reply", |event| match event {
            SessionEvent::Reply { id: of, result } if *of == id => Some(result.clone()),
            _ => None,
        })
    }

    pub fn call(&mut self, call: Call) -> CallResult {
        let id = self.send(call);
        self.reply(id)
    }

    pub fn create(&mut self, path: &str, mode: CreateMode) -> Result<String, CallError> {
        match self.call(Call::Create { path: path.into(), data: b"x".to_vec(), mode })? {
            Reply::Created { path } => Ok(path),
            other => panic!("{other:?}"),
        }
    }

    pub fn exists(&mut self, path: &str, watch: bool) -> Result<Stat, CallError> {
        match self.call(Call::Exists { path: path.into(), watch })? {
            Reply::Stat(stat) => Ok(stat),
            other => panic!("{other:?}"),
        }
    }

    /// A write of its own, after which reads see what others wrote before: a follower may lag.
    pub fn sync(&mut self) {
        self.create(&fresh("sync"), CreateMode::Persistent).unwrap();
    }

    pub fn set(&mut self, path: &str, version: i32) -> CallResult {
        self.call(Call::Set { path: path.into(), data: b"y".to_vec(), version })
    }
}

/// A path that no other test uses.
pub fn fresh(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("/t-{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Passes connections on to a server, and can cut them.
pub struct Forwarder {
    pub address: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
    /// One more connection is passed on, which is a probe; every later one is refused.
    pub only_probes: Arc<AtomicBool>,
}

impl Forwarder {
    pub fn start(listen: &str, to: SocketAddr) -> std::io::Result<Forwarder> {
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let open = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&open);
        let only_probes = Arc::new(AtomicBool::new(false));
        let picky = Arc::clone(&only_probes);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(to) else { continue };
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                pump(near.try_clone().unwrap(), far.try_clone().unwrap());
                pump(far, near.try_clone().unwrap());
                shared.lock().unwrap().push(near);
                if picky.load(Ordering::SeqCst) {
                    break; // from now on connections are refused
                }
            }
        });
        Ok(Forwarder { address, open, only_probes })
    }

    pub fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn server(&self) -> (String, u16) {
        (self.address.ip().to_string(), self.address.port())
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// Names of this process's threads that belong to the session layer or to the crate.
pub fn session_threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    let names = names.map(|name| name.trim().to_owned());
    let mut names: Vec<String> =
        names.filter(|name| name.starts_with("zk-") || name == "io" || name == "event").collect();
    names.sort();
    names
}

pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

pub fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Clock ticks (10 ms) of processor time that a process has used.
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
