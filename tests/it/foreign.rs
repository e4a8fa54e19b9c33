//! Clients that are not ours: `examples/submit.py`, which knows `docs/contract.md` alone, and contenders of another
//! library. They run with the Python that `scripts/setup` makes.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Cluster, LIMIT, Op, eventually, process};

/// The Python that has kazoo.
fn python() -> PathBuf {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bin/python");
    let python = std::env::var_os("ZKMW_PYTHON").map_or(made, PathBuf::from);
    let kazoo = Command::new(&python).args(["-c", "import kazoo"]).stderr(Stdio::null()).status();
    assert!(
        kazoo.is_ok_and(|status| status.success()),
        "{} is no Python that has kazoo: run scripts/setup, or set ZKMW_PYTHON",
        python.display()
    );
    python
}

/// A Python process, killed when dropped.
struct Foreign {
    child: Child,
    files: PathBuf,
}

impl Foreign {
    fn start(cluster: &Cluster, args: &[&str]) -> Foreign {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let files = cluster.dir().join(format!("foreign-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let file = |name: &str| File::create(files.with_extension(name)).expect("an output file");
        // A shell that starts the tests in the background has SIGINT ignored, and Python would keep that.
        let mut command = Command::new("env");
        command
            .arg("--default-signal=INT")
            .arg(python())
            .args(args)
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"));
        let child = command.spawn().expect("Python starts");
        process::notify_reaper(&format!("pid {}", child.id()));
        Foreign { child, files }
    }

    /// `examples/submit.py`, at these servers.
    fn submit_at(cluster: &Cluster, connect: &str, args: &[&str]) -> Foreign {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/submit.py");
        let fixed = ["-B", script, "--connect", connect, "--root", &cluster.root];
        Foreign::start(cluster, &[&fixed, args].concat())
    }

    fn submit(cluster: &Cluster, args: &[&str]) -> Foreign {
        Foreign::submit_at(cluster, &cluster.ensemble.connect, args)
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("it was not waited for");
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.files.with_extension(name)).expect("its output")
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&self.bytes(name)).into_owned()
    }

    /// Its exit code.
    #[track_caller]
    fn ends(&mut self) -> i32 {
        let child = &mut self.child;
        let status = eventually(LIMIT, "Python ends", || child.try_wait().expect("our child"));
        process::notify_reaper(&format!("gone {}", self.child.id()));
        status.code().unwrap_or_else(|| panic!("{status}: {}", self.text("err")))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It has ended already, or is killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        process::notify_reaper(&format!("gone {}", self.child.id()));
    }
}

/// A service with one worker.
fn service(name: &str) -> (Cluster, Vec<process::Proc>) {
    let cluster = Cluster::new(name);
    let roles = vec![cluster.master("m1"), cluster.worker("w1", &["--slots", "2"])];
    cluster.registered(&["w1"]);
    (cluster, roles)
}

#[test]
fn a_foreign_client_submits_waits_and_cleans_up() {
    let (cluster, _roles) = service("foreign");
    let mut stay = 0;
    for (args, code, out, err) in [
        (&["echo out; echo err >&2; exit 7"][..], 7, &b"out\n"[..], "err\n"),
        (&["--job", "reports", "printf '\\377\\000'; kill -9 $$"], 137, b"\xff\0", ""),
        (&["printf 'gr\u{fc}\u{df}e'"], 0, "gr\u{fc}\u{df}e".as_bytes(), ""),
    ] {
        let mut client = Foreign::submit(&cluster, args);
        assert_eq!(client.ends(), code, "{args:?}: {}", client.text("err"));
        assert_eq!((client.bytes("out").as_slice(), client.text("err").as_str()), (out, err), "{args:?}");
        stay += usize::from(code != 0);
        assert_eq!(cluster.tasks().len(), stay, "{args:?}: what succeeded is deleted");
    }
    let mut long = Foreign::submit(&cluster, &["printf '<'; yes | head -c 1000000; printf '>'"]);
    assert_eq!(long.ends(), 0, "{}", long.text("err"));
    let out = long.text("out");
    let ends = out.starts_with("<y\n") && out.ends_with("y\n>");
    assert!(ends && out.contains(" bytes left out]") && out.len() < 100_000, "{} bytes", out.len());
}

/// It obeys the limits that the leader publishes.
#[test]
fn a_foreign_client_is_refused_by_a_full_service() {
    let cluster = Cluster::new("foreign-full");
    let _master = cluster.start("m1", &["master", "--id", "m1", "--max-pending", "1"]);
    cluster.leads("m1", LIMIT);
    cluster.submit_detached(&["true"]);
    let pending = || cluster.status().is_some_and(|status| status["tasks"]["pending"] == 1);
    eventually(LIMIT, "the leader says that it is full", || pending().then_some(()));
    let mut client = Foreign::submit(&cluster, &["true"]);
    assert_eq!((client.ends(), cluster.tasks().len()), (73, 1), "{}", client.text("err"));
    assert!(client.text("err").contains("1 tasks of 1 are pending"), "{}", client.text("err"));
    let _worker = cluster.worker("w1", &[]);
    let done = || cluster.status().is_some_and(|status| status["tasks"]["done"] == 1);
    eventually(LIMIT, "the leader says that it ended", || done().then_some(()));
    let mut client = Foreign::submit(&cluster, &["true"]);
    assert_eq!(client.ends(), 0, "{}", client.text("err"));
}

/// Interrupted, it prints a command to come back with, and that command works.
#[test]
fn a_foreign_client_that_is_interrupted_can_come_back() {
    let (cluster, _roles) = service("foreign-interrupted");
    let go = cluster.dir().join("go");
    let line = format!("until [ -e {} ]; do sleep .05; done; echo $ZKMW_ATTEMPT", go.display());
    let mut client = Foreign::submit(&cluster, &[&line]);
    let id = cluster.the_task();
    cluster.assigned(&id);
    client.signal(Signal::INT);
    assert_eq!(client.ends(), 130, "{}", client.text("err"));
    let text = client.text("err");
    let (_, again) = text.trim().split_once("submit.py --connect ").unwrap_or_else(|| panic!("{text}"));
    let words: Vec<&str> = again.split(' ').collect();
    assert_eq!(words[1..], ["--root", &cluster.root, "--wait", id.as_str()]);
    let mut client = Foreign::submit_at(&cluster, words[0], &words[3..]);
    std::fs::write(&go, "").expect("a file");
    assert_eq!((client.ends(), client.text("out").as_str()), (0, "1\n"), "{}", client.text("err"));
    assert!(cluster.task(&id).is_some(), "a client that only waits does not delete");
}

/// Stopped until its session and its watches are gone, it sees what it missed.
#[test]
fn a_foreign_client_outlives_its_session() {
    let (cluster, _roles) = service("foreign-session");
    let go = cluster.dir().join("go");
    let line = format!("until [ -e {} ]; do sleep .05; done; echo missed", go.display());
    let mut client = Foreign::submit(&cluster, &["--session-timeout", "2", &line]);
    let id = cluster.the_task();
    cluster.assigned(&id);
    let path = cluster.layout.task(&id);
    let history = cluster.history();
    let session = history.iter().find(|txn| txn.path() == Some(path.as_str())).expect("its create").session;
    client.signal(Signal::STOP);
    eventually(LIMIT, "its session ends", || {
        let ends = |txn: &crate::harness::Txn| txn.session == session && txn.op == Op::SessionEnds;
        cluster.history().iter().any(ends).then_some(())
    });
    // Only now, so that no event of the old session waits for it.
    std::fs::write(&go, "").expect("a file");
    cluster.ended(&id, LIMIT);
    client.signal(Signal::CONT);
    assert_eq!((client.ends(), client.text("out").as_str()), (0, "missed\n"), "{}", client.text("err"));
    assert!(cluster.tasks().is_empty(), "{:?}", cluster.tasks());
}

/// The server applies the create, and the reply is lost: it is submitted once, and left to the leader, since a doubtful
/// create may be applied late.
#[test]
fn a_foreign_client_whose_create_is_in_doubt_submits_once() {
    let (cluster, _roles) = service("foreign-doubt");
    let runs = cluster.dir().join("runs");
    let line = format!("echo once | tee -a {}", runs.display());
    // The job exists, or the first create would be refused.
    eventually(LIMIT, "the directory of tasks exists", || cluster.tree.exists(&cluster.layout.tasks()));
    cluster.tree.create(&cluster.layout.job("doubt"), b"").expect("a job");
    let cuts = Cutting::start(cluster.ensemble.ports()[0], b"\"command\"");
    let mut client = Foreign::submit_at(&cluster, &cuts.connect, &["--job", "doubt", &line]);
    assert_eq!((client.ends(), client.text("out").as_str()), (0, "once\n"), "{}", client.text("err"));
    assert!(cuts.cut.load(Ordering::Relaxed), "no reply was lost");
    assert_eq!(std::fs::read_to_string(&runs).expect("it ran"), "once\n");
    assert_eq!(cluster.tasks().len(), 1, "the leader deletes it");
    let is_task = |path: &str| path.matches('/').count() == 4 && path.contains("/tasks/");
    let history = cluster.history();
    let creates = history.iter().filter(|txn| matches!(&txn.op, Op::Create { path, .. } if is_task(path)));
    assert_eq!(creates.count(), 1);
}

/// A contender of kazoo's own recipe is among ours: master and elector log it, once, and lead.
#[test]
fn a_contender_of_another_library_is_reported() {
    const CONTEND: &str = "
import sys
from kazoo.client import KazooClient
client = KazooClient(sys.argv[1])
client.start()
for path in sys.argv[2:]:
    client.ensure_path(path)
    client.Lock(path, 'somebody').acquire()
print('contends', flush=True)
import time
time.sleep(600)
";
    let cluster = Cluster::new("foreign-contender");
    let (master, election) = (cluster.layout.master(), format!("{}/elections/default", cluster.root));
    let foreign = Foreign::start(&cluster, &["-c", CONTEND, &cluster.ensemble.connect, &master, &election]);
    eventually(LIMIT, "the foreign contenders exist", || {
        foreign.text("out").contains("contends").then_some(())
    });
    let roles = [cluster.master("m1"), cluster.elector("e1", &[])];
    for (role, dir) in roles.iter().zip([&master, &election]) {
        let names = cluster.tree.children(dir).expect("it exists");
        let name = names.iter().find(|name| name.contains("__lock__")).expect("kazoo's name");
        let line = format!(
            "{dir} has contenders (1) that are neither zkmw's nor those of Curator's LeaderLatch, such as {name}"
        );
        eventually(LIMIT, "it is reported", || role.stderr().contains(&line).then_some(()));
    }
    eventually(LIMIT, "the elector leads all the same", || {
        roles[1].stdout().contains("leading").then_some(())
    });
    eventually(LIMIT, "the master leads all the same", || {
        cluster.status().filter(|s| s["leader"]["id"] == "m1")
    });
    for role in &roles {
        assert_eq!(role.stderr().matches("neither zkmw's nor").count(), 1, "{}", role.stderr());
    }
}

/// Passes connections on to a server, and cuts the first one that sends `word`: the server has it, and no reply comes
/// back.
struct Cutting {
    connect: String,
    cut: Arc<AtomicBool>,
}

impl Cutting {
    fn start(port: u16, word: &'static [u8]) -> Cutting {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let connect = listener.local_addr().expect("its address").to_string();
        let cut = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&cut);
        // They end with the test binary.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let (from, to) = (server.try_clone().expect("a copy"), client.try_clone().expect("a copy"));
                std::thread::spawn(move || copy(from, to, |_| false));
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || {
                    copy(client, server, |bytes| {
                        let has = bytes.windows(word.len()).any(|window| window == word);
                        has && !seen.swap(true, Ordering::Relaxed)
                    });
                });
            }
        });
        Cutting { connect, cut }
    }
}

/// Copies until either side ends, or `cuts` is true of the bytes just read. These are passed on, after the way back is
/// shut.
fn copy(mut from: TcpStream, mut to: TcpStream, cuts: impl Fn(&[u8]) -> bool) {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                let cut = cuts(&buffer[..count]);
                if cut && from.shutdown(Shutdown::Both).is_err() {
                    break;
                }
                if to.write_all(&buffer[..count]).is_err() || cut {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // The other direction ends with this. Bytes that were written are delivered before the end is.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Write);
}
