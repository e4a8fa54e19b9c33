//! Other programs that run commands, measured with `true`: `xargs`, Gearman's command line, GNU parallel.
//! Must not need any of them to be installed.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{eventually, process};

/// Where daemons are, besides the folders of `PATH`.
const DAEMONS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// How long gearmand and its workers may take to be ready.
const START: Duration = Duration::from_secs(20);

/// Runs at a time, and so Gearman's workers and clients.
pub const AT_ONCE: usize = 2;

/// GNU parallel gets this much less to do: it takes as long for it.
const SLOWER: usize = 5;

/// The name of Gearman's function.
const FUNCTION: &str = "bench";

/// One of them, ready to be measured.
pub enum Peer {
    Xargs,
    Gearman(Gearman),
    Parallel,
}

impl Peer {
    /// Those that are installed; and for each other one, why it is left out.
    pub fn all() -> (Vec<Peer>, Vec<String>) {
        let (mut peers, mut missing) = (Vec::new(), Vec::new());
        let mut add = |name: &str, programs: &[&str], peer: fn() -> Peer| match programs
            .iter()
            .find(|program| find(program).is_none())
        {
            None => peers.push(peer()),
            Some(program) => missing.push(format!("{name} was left out: {program} is not installed")),
        };
        add("xargs", &["xargs"], || Peer::Xargs);
        add("Gearman", &["gearmand", "gearman"], || Peer::Gearman(Gearman::start()));
        add("GNU parallel", &["parallel"], || Peer::Parallel);
        (peers, missing)
    }

    /// Its name for the report.
    pub fn name(&self) -> &'static str {
        match self {
            Peer::Xargs => "xargs -P2 -n1 sh -c true",
            Peer::Gearman(_) => "gearmand, two `gearman -w … true`, two clients",
            Peer::Parallel => "parallel -j2 true",
        }
    }

    /// Runs `true` about so often; returns the rate per second.
    pub fn measure(&self, folder: &Path, count: usize) -> f64 {
        match self {
            Peer::Xargs => rate(vec![("xargs", vec!["-P2", "-n1", "sh", "-c", "true"])], folder, count),
            Peer::Gearman(gearman) => {
                let args = || [&gearman.address()[..], &["-n", "-f", FUNCTION]].concat();
                // A client waits for each job before it sends the next one.
                rate((0..AT_ONCE).map(|_| ("gearman", args())).collect(), folder, count / AT_ONCE)
            }
            Peer::Parallel => {
                rate(vec![("parallel", vec!["--will-cite", "-j2", "true"])], folder, count.div_ceil(SLOWER))
            }
        }
    }
}

/// Has each of these programs run so many lines, all at once; returns the lines per second of all together.
fn rate(programs: Vec<(&str, Vec<&str>)>, folder: &Path, lines: usize) -> f64 {
    let path = folder.join("numbers");
    let mut file = File::create(&path).expect("a file");
    (1..=lines).for_each(|number| writeln!(file, "{number}").expect("written"));
    drop(file);
    let all = programs.len() * lines;
    let from = Instant::now();
    let start = |(program, args): (&str, Vec<&str>)| {
        let program = find(program).expect("it was found before");
        let input = File::open(&path).expect("it was just written");
        Running(start(Command::new(program).args(args).stdin(input)))
    };
    let mut running: Vec<Running> = programs.into_iter().map(start).collect();
    for child in &mut running {
        let status = child.0.wait().expect("it is our child");
        assert!(status.success(), "it failed: {status}");
    }
    all as f64 / from.elapsed().as_secs_f64()
}

fn start(command: &mut Command) -> Child {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    process::notify_reaper(&format!("pid {}", child.id()));
    child
}

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        process::notify_reaper(&format!("gone {}", self.0.id()));
    }
}

/// gearmand and its workers.
pub struct Gearman {
    port: String,
    _running: Vec<Running>,
}

impl Gearman {
    fn start() -> Gearman {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port().to_string();
        drop(listener);
        let mut gearman = Gearman { port, _running: Vec::new() };
        let daemon = find("gearmand").expect("it was found before");
        let args = ["--listen", "127.0.0.1", "--port", &gearman.port, "--log-file", "none"];
        let mut running = vec![Running(start(Command::new(daemon).args(args).stdin(Stdio::null())))];
        let program = find("gearman").expect("it was found before");
        let to = || Command::new(&program);
        let listens = || std::net::TcpStream::connect(format!("127.0.0.1:{}", gearman.port)).ok();
        eventually(START, "gearmand listens", listens);
        for _ in 0..AT_ONCE {
            let args = [&gearman.address()[..], &["-w", "-f", FUNCTION, "true"]].concat();
            running.push(Running(start(to().args(args).stdin(Stdio::null()))));
        }
        gearman._running = running;
        gearman
    }

    fn address(&self) -> [&str; 4] {
        ["-h", "127.0.0.1", "-p", &self.port]
    }
}

/// Where a program is.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(DAEMONS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}
