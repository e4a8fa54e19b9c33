//! The hosts, and the services on them: masters, workers and electors as processes of the real binary.
//! Owns the processes. Restarts a process that ended unasked, as an init system would; decides no fault.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::Proc;
use crate::harness::keeper_process::keeper_of;
use crate::history::{Clock, History};
use crate::net::{Host, Net};
use crate::plan::SESSION;

/// All hosts; a host's index in this list is its number. The last is ours: it sees everything.
pub const HOSTS: [&str; 16] =
    ["s1", "s2", "s3", "m1", "m2", "m3", "w1", "w2", "w3", "w4", "e1", "e2", "e3", "c1", "c2", "observer"];
pub const SERVERS: Range<usize> = 0..3;
pub const MASTERS: Range<usize> = 3..6;
pub const WORKERS: Range<usize> = 6..10;
pub const ELECTORS: Range<usize> = 10..13;
pub const CLIENTS: Range<usize> = 13..15;
pub const OBSERVER: usize = 15;

/// Slots of each worker, in their order.
const SLOTS: [&str; 4] = ["2", "3", "3", "4"];

/// The grace of running tasks when their worker is asked to stop.
const GRACE: Duration = Duration::from_secs(3);

/// How long a service may take to stop: the grace of what it runs, the end of its session, and a margin for a busy
/// machine.
pub const STOP_LIMIT: Duration = Duration::from_secs(3 + 5 + 8);

/// Before a service that has ended is started again.
const PAUSE: Duration = Duration::from_millis(500);

/// The exit codes with which a service may end unasked: its name is taken for now.
const MAY_END_WITH: [i32; 1] = [zkmw::exit::TRY_AGAIN];

/// The directory that a run writes to, and the settings that its processes share.
#[derive(Clone, Debug)]
pub struct Setting {
    pub dir: PathBuf,
    pub zk: String,
    pub root: String,
}

impl Setting {
    /// Flags of every process.
    pub fn common(&self) -> Vec<String> {
        let config = self.dir.join("empty.toml").display().to_string();
        let timeout = format!("{}s", SESSION.as_secs());
        let flags =
            ["--zk", &self.zk, "--root", &self.root, "--config", &config, "--session-timeout", &timeout];
        flags.map(str::to_string).to_vec()
    }

    /// Starts the binary on a host.
    pub fn start(&self, host: &Host, label: &str, args: &[String]) -> Proc {
        let all: Vec<String> = self.common().into_iter().chain(args.iter().cloned()).collect();
        Proc::start_as(label, &self.dir.join("logs").join(label), &all, |command| {
            command.env("RUST_LOG", "zkmw=debug");
            host.enter(command);
        })
    }
}

/// The state of a service.
enum State {
    Running(Proc),
    /// It was asked to stop at `since`, and is asked once more at `again`.
    Leaving {
        process: Proc,
        since: Instant,
        again: Option<Instant>,
    },
    /// It has ended, and is started again at this time; without a time it waits for [`Services::again`].
    Gone(Option<Instant>),
}

/// One master, worker or elector.
pub struct Service {
    pub host: usize,
    state: State,
    starts: u32,
}

/// All services.
pub struct Services {
    setting: Setting,
    hosts: Vec<Host>,
    services: Vec<Service>,
    clock: Clock,
    /// Misbehaviour that was seen.
    pub complaints: Vec<String>,
}

impl Services {
    /// Starts them all.
    pub fn start(setting: &Setting, net: &Net, clock: Clock) -> Services {
        let services = (MASTERS.start..ELECTORS.end)
            .map(|host| Service { host, state: State::Gone(Some(Instant::now())), starts: 0 })
            .collect();
        let (setting, hosts) = (setting.clone(), net.hosts.clone());
        let mut all = Services { setting, hosts, services, clock, complaints: Vec::new() };
        all.check(&mut History::default());
        all
    }

    /// The process of a host, if it lives and was not asked to stop.
    fn running(&mut self, host: usize) -> Option<&mut Proc> {
        match &mut self.services.iter_mut().find(|service| service.host == host)?.state {
            State::Running(process) => process.is_running().then_some(process),
            State::Leaving { .. } | State::Gone(_) => None,
        }
    }

    fn set(&mut self, host: usize, state: State) -> Option<State> {
        let service = self.services.iter_mut().find(|service| service.host == host)?;
        Some(std::mem::replace(&mut service.state, state))
    }

    /// SIGKILL; it stays away until [`Services::again`].
    pub fn kill(&mut self, host: usize) -> bool {
        let Some(process) = self.running(host) else { return false };
        process.kill();
        self.set(host, State::Gone(None));
        true
    }

    /// SIGKILL for its keeper, if it has one.
    pub fn kill_keeper(&mut self, host: usize) -> bool {
        let keeper = self.running(host).and_then(|process| keeper_of(process.pid()));
        keeper.is_some_and(|pid| signal(pid, Signal::KILL))
    }

    /// SIGSTOP for its keeper and all slots, if it has any.
    pub fn stop_slots(&mut self, host: usize) -> bool {
        let Some(keeper) = self.running(host).and_then(|process| keeper_of(process.pid())) else {
            return false;
        };
        for slot in children_of(keeper) {
            signal(slot, Signal::STOP);
        }
        signal(keeper, Signal::STOP)
    }

    /// Starts it, if it is away.
    pub fn again(&mut self, host: usize) {
        if let Some(service) = self.services.iter_mut().find(|service| service.host == host)
            && matches!(service.state, State::Gone(None))
        {
            service.state = State::Gone(Some(Instant::now()));
        }
    }

    pub fn stop(&mut self, host: usize) -> bool {
        self.running(host).is_some_and(|process| {
            process.stop();
            true
        })
    }

    pub fn cont(&mut self, host: usize) {
        if let Some(process) = self.running(host) {
            process.cont();
        }
    }

    /// SIGTERM; when it has ended it is started again. `twice`: another one after that time.
    pub fn restart(&mut self, host: usize, twice: Option<Duration>) -> bool {
        let Some(process) = self.running(host) else { return false };
        process.term();
        let since = Instant::now();
        if let Some(State::Running(process)) = self.set(host, State::Gone(None)) {
            self.set(host, State::Leaving { process, since, again: twice.map(|pause| since + pause) });
        }
        true
    }

    /// Notes which services have ended, and starts those that are due.
    pub fn check(&mut self, history: &mut History) {
        for number in 0..self.services.len() {
            let host = self.services[number].host;
            let state = std::mem::replace(&mut self.services[number].state, State::Gone(None));
            let next = self.next_state(host, state, history);
            self.services[number].state = next;
        }
    }

    fn next_state(&mut self, host: usize, state: State, history: &mut History) -> State {
        let now = Instant::now();
        match state {
            State::Running(mut process) => {
                if process.is_running() {
                    return State::Running(process);
                }
                let code = process.wait_exit(PAUSE).code;
                let text = format!("{} ended by itself with {code}", HOSTS[host]);
                if !MAY_END_WITH.contains(&code) {
                    self.complaints.push(format!("at {:.1} s {text}", self.clock.now()));
                }
                history.moment(self.clock.now(), host, "ended", &text);
                State::Gone(Some(now + PAUSE))
            }
            State::Leaving { mut process, since, again } => {
                if !process.is_running() {
                    let code = process.wait_exit(PAUSE).code;
                    if code != zkmw::exit::OK {
                        let text = format!("{} was asked to stop and exited with {code}", HOSTS[host]);
                        self.complaints.push(format!("at {:.1} s {text}", self.clock.now()));
                    }
                    return State::Gone(Some(now + PAUSE));
                }
                if since.elapsed() > STOP_LIMIT {
                    let text =
                        format!("{} was asked to stop and still ran after {STOP_LIMIT:?}", HOSTS[host]);
                    self.complaints.push(format!("at {:.1} s {text}", self.clock.now()));
                    return State::Gone(Some(now));
                }
                let again = again.filter(|at| {
                    if *at <= now {
                        process.term();
                    }
                    *at > now
                });
                State::Leaving { process, since, again }
            }
            State::Gone(Some(at)) if at <= now => State::Running(self.launch(host)),
            other => other,
        }
    }

    fn launch(&mut self, host: usize) -> Proc {
        let service = self.services.iter_mut().find(|service| service.host == host).expect("a service");
        service.starts += 1;
        let name = HOSTS[host];
        let label = format!("{name}-{}", service.starts);
        let dir = self.setting.dir.display();
        let grace = format!("{}s", GRACE.as_secs());
        let args: Vec<String> = if MASTERS.contains(&host) {
            ["master", "--id", name, "--result-ttl", "2m", "--job-ttl", "20s"].map(str::to_string).to_vec()
        } else if WORKERS.contains(&host) {
            let slots = SLOTS[host - WORKERS.start];
            let (run_dir, state_dir) = (format!("{dir}/run"), format!("{dir}/state"));
            let dirs = ["--run-dir", &run_dir, "--state-dir", &state_dir];
            [&["worker", "--id", name, "--slots", slots, "--grace", &grace], &dirs[..]]
                .concat()
                .into_iter()
                .map(str::to_string)
                .collect()
        } else {
            let script = format!("{}/tests/chaos/elector.sh", env!("CARGO_MANIFEST_DIR"));
            let steps = (20 + 17 * (service.starts % 5)).to_string();
            let log = format!("{dir}/electors");
            ["elector", "--id", name, "--grace", &grace, "--", "sh", &script, &log, name, &steps]
                .map(str::to_string)
                .to_vec()
        };
        self.setting.start(&self.hosts[host], &label, &args)
    }

    /// Whether every one runs.
    pub fn all_run(&mut self) -> bool {
        self.services.iter_mut().all(|service| match &mut service.state {
            State::Running(process) => process.is_running(),
            State::Leaving { .. } | State::Gone(_) => false,
        })
    }

    /// Asks all services to stop, and waits until they have.
    pub fn end(&mut self, history: &mut History) {
        for host in MASTERS.start..ELECTORS.end {
            self.restart(host, None);
        }
        let start = Instant::now();
        let leaves = |service: &Service| matches!(service.state, State::Leaving { .. });
        while start.elapsed() < STOP_LIMIT * 2 && self.services.iter().any(leaves) {
            for number in 0..self.services.len() {
                if leaves(&self.services[number]) {
                    let host = self.services[number].host;
                    let state = std::mem::replace(&mut self.services[number].state, State::Gone(None));
                    self.services[number].state = match self.next_state(host, state, history) {
                        State::Gone(_) => State::Gone(None),
                        other => other,
                    };
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The processes that this process started.
fn children_of(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let texts: Vec<String> = texts.collect();
    texts.iter().flat_map(|text| text.split_whitespace()).filter_map(|child| child.parse().ok()).collect()
}

/// Whether the signal was sent.
fn signal(pid: u32, signal: Signal) -> bool {
    Pid::from_raw(pid.cast_signed()).is_some_and(|pid| kill_process(pid, signal).is_ok())
}
