//! Ensembles of real servers, by `scripts/ensemble`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::process::{base_dir, is_alive, notify_reaper};
use super::{LIMIT, eventually, wall_clock_ms};

/// A server, as `scripts/ensemble status` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub id: u32,
    pub port: u16,
    pub pid: Option<u32>,
    pub mode: String,
}

/// An ensemble, brought down when dropped (the shared one: when the test binary ends).
#[derive(Debug)]
pub struct Ensemble {
    pub dir: PathBuf,
    pub connect: String,
    pub setup: Setup,
}

/// The set-up of an ensemble, where it is not the usual one: see the variables that `scripts/ensemble` reads.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The servers' addresses, if not all are 127.0.0.1.
    pub hosts: Vec<String>,
    /// A command that runs the rest of its line in the network of server `%`.
    pub enter: String,
    /// More options for the servers' Java.
    pub java_options: String,
    /// How long a follower may be silent before its leader drops it, if not the script's 4 s.
    pub sync: Option<Duration>,
    /// The length of a tick, if not [`Ensemble::TICK`]: sessions may last for 20 of them.
    pub tick: Option<Duration>,
    /// The heap of a server, such as `2g`, if not the script's 128 MiB.
    pub heap: String,
}

impl Ensemble {
    /// Length of a tick here: sessions may be as short as two of them.
    pub const TICK: Duration = Duration::from_millis(500);

    /// Three servers for all tests that do not hurt them.
    pub fn shared() -> Arc<Ensemble> {
        static SHARED: OnceLock<Arc<Ensemble>> = OnceLock::new();
        Arc::clone(SHARED.get_or_init(|| Ensemble::start(3)))
    }

    /// `n` servers of the test's own.
    pub fn start(n: u32) -> Arc<Ensemble> {
        Ensemble::start_with(n, Setup::default())
    }

    /// Like [`Ensemble::start`], with a set-up of its own.
    pub fn start_with(n: u32, setup: Setup) -> Arc<Ensemble> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = base_dir().join(format!("e-{count}"));
        notify_reaper(&format!("dir {}", dir.display()));
        let connect = script(&dir, &setup, &["up", &n.to_string()]).trim().to_string();
        Arc::new(Ensemble { dir, connect, setup })
    }

    pub fn status(&self) -> Vec<Server> {
        let text = script(&self.dir, &self.setup, &["status"]);
        let server = |line: &str| {
            let [id, port, pid, mode] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
            let (id, port) = (id.parse().expect("an id"), port.parse().expect("a port"));
            Server { id, port, pid: pid.parse().ok(), mode: mode.to_string() }
        };
        text.lines().map(server).collect()
    }

    /// Ports of the servers, in the order of their ids.
    pub fn ports(&self) -> Vec<u16> {
        self.connect.split(',').filter_map(|server| server.rsplit_once(':')?.1.parse().ok()).collect()
    }

    /// The server that listens on this port.
    pub fn server_on(&self, port: u16) -> u32 {
        let at = self.ports().iter().position(|p| *p == port).expect("a port of a server");
        u32::try_from(at).expect("few servers") + 1
    }

    /// The connect string of one server.
    pub fn connect_to(&self, id: u32) -> String {
        self.connect.split(',').nth(id as usize - 1).expect("a server").to_string()
    }

    /// The ensemble's leader (or the only server); waits while there is none.
    pub fn leader(&self) -> u32 {
        eventually(LIMIT, "the ensemble has a leader", || {
            let leads = |server: &Server| server.mode == "leader" || server.mode == "standalone";
            self.status().into_iter().find(leads).map(|server| server.id)
        })
    }

    /// Its followers.
    pub fn followers(&self) -> Vec<u32> {
        self.status().into_iter().filter(|server| server.mode == "follower").map(|server| server.id).collect()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self, id: u32) {
        script(&self.dir, &self.setup, &["kill", &id.to_string()]);
    }

    /// SIGKILL without waiting, where milliseconds count; the time just before it, see [`wall_clock_ms`].
    pub fn kill_now(&self, id: u32) -> i64 {
        let pid = self.status().into_iter().find(|server| server.id == id).and_then(|server| server.pid);
        let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("it runs");
        let now_ms = wall_clock_ms();
        kill_process(pid, Signal::KILL).expect("it can be killed");
        now_ms
    }

    /// SIGTERM, as for maintenance, and waits until it is gone; then starts it, and waits until it serves.
    pub fn restart(&self, id: u32) {
        let pid = self.status().into_iter().find(|server| server.id == id).and_then(|server| server.pid);
        let number = pid.expect("it runs");
        let pid = Pid::from_raw(i32::try_from(number).expect("a pid")).expect("a pid");
        kill_process(pid, Signal::TERM).expect("SIGTERM can be sent");
        eventually(LIMIT, "the server ends", || (!is_alive(number)).then_some(()));
        self.start_again(&[id]);
    }

    /// SIGSTOP: its sockets stay open, nothing answers.
    pub fn stop(&self, id: u32) {
        script(&self.dir, &self.setup, &["stop", &id.to_string()]);
    }

    pub fn cont(&self, id: u32) {
        script(&self.dir, &self.setup, &["cont", &id.to_string()]);
    }

    /// Starts servers again with the data they had, and waits until they serve.
    pub fn start_again(&self, ids: &[u32]) {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        script(
            &self.dir,
            &self.setup,
            &[&["start"], &ids.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat(),
        );
    }

    /// The same without waiting, for when there is no quorum yet.
    pub fn start_no_wait(&self, id: u32) {
        script(&self.dir, &self.setup, &["start", "--no-wait", &id.to_string()]);
    }

    fn ids(&self) -> Vec<u32> {
        (1..=u32::try_from(self.ports().len()).expect("few servers")).collect()
    }

    /// Copies the data of all servers, as it is, for [`Ensemble::rewind`].
    pub fn copy_data(&self) -> PathBuf {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let copy =
            self.dir.join(format!("copy-{}", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
        for id in self.ids() {
            let to = copy.join(id.to_string());
            std::fs::create_dir_all(&to).expect("a folder");
            copy_files(&self.dir.join(id.to_string()).join("data"), &to);
        }
        copy
    }

    /// SIGKILL to all servers, then an older copy replaces their data, or nothing does; they serve again.
    pub fn rewind(&self, copy: Option<&Path>) {
        for id in self.ids() {
            self.kill(id);
        }
        for id in self.ids() {
            let data = self.dir.join(id.to_string()).join("data");
            std::fs::remove_dir_all(data.join("version-2")).expect("the data of a server");
            if let Some(copy) = copy {
                copy_files(&copy.join(id.to_string()).join("data"), &data.join(".."));
            }
        }
        self.start_again(&self.ids());
    }

    /// A server's answer to a four letter word (those in the script's whitelist).
    pub fn four_letters(&self, id: u32, word: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.connect_to(id)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(word.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// A number that `mntr` prints.
    pub fn metric(&self, id: u32, name: &str) -> Option<f64> {
        let answer = self.four_letters(id, "mntr")?;
        answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t')?.trim().parse().ok())
    }
}

impl Drop for Ensemble {
    fn drop(&mut self) {
        let done = command(&self.dir, &self.setup, &["down"]).status();
        if done.is_ok_and(|status| status.success()) {
            notify_reaper(&format!("down {}", self.dir.display()));
        }
    }
}

/// Copies a file or a directory. By a process of its own: one that another test forks meanwhile would have our
/// descriptor for a copied program for a moment, and a file that is open for writing cannot be executed (`ETXTBSY`).
pub fn copy_files(from: &Path, into: &Path) {
    let copied = Command::new("cp").args(["-a", "--"]).args([from, into]).status();
    assert!(copied.is_ok_and(|status| status.success()), "cp {from:?} {into:?}");
}

fn command(dir: &Path, setup: &Setup, args: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/ensemble"));
    command.arg("--dir").arg(dir).args(args).stdin(Stdio::null());
    let tick = setup.tick.unwrap_or(Ensemble::TICK);
    command.env("ZKMW_ENSEMBLE_TICK", tick.as_millis().to_string());
    command.env("ZKMW_ENSEMBLE_HOSTS", setup.hosts.join(" ")).env("ZKMW_ENSEMBLE_ENTER", &setup.enter);
    if let Some(sync) = setup.sync {
        command.env("ZKMW_ENSEMBLE_SYNC", sync.as_millis().to_string());
    }
    if !setup.heap.is_empty() {
        command.env("ZKMW_ENSEMBLE_HEAP", &setup.heap);
    }
    if !setup.java_options.is_empty() {
        command.env("ZKMW_ENSEMBLE_JAVA_OPTS", &setup.java_options);
    }
    command
}

fn script(dir: &Path, setup: &Setup, args: &[&str]) -> String {
    let output = command(dir, setup, args).output().expect("scripts/ensemble starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "scripts/ensemble {args:?}: {}\n{err}", output.status);
    out.into_owned()
}
