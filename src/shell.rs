//! The shell: the one loop in which a role meets the world. Channels and time go in as events, actions go out.
//!
//! It is the only caller of [`turn`] and has the program's only `select!`. It decides nothing by itself but what
//! concerns the process: when the first connection took too long, what a second signal means, when a turn took
//! too long, and that the end is bounded.

mod outage;
mod pacing;

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use anyhow::Context as _;
use crossbeam_channel::{Receiver, Sender, after, bounded, never, select, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};
use signal_hook::iterator::Signals;

use self::outage::Outage;
use self::pacing::Pacing;
use crate::clock::now;
use crate::exec::{Confinement, ExecEvent, Executor, LogSettings, Means, OWN_PROGRAM, RunFile};
use crate::exit;
use crate::machine::{Action, Actions, BatchLine, CallError, CallId, Event, Instant, Level, Role, turn};
use crate::service::Service;
use crate::threads;
use crate::zk::{self, Failure, Session, SessionEvent};

/// Session events that may wait for the loop; further ones wait in the session layer, which has a limit too.
const MAX_SESSION_EVENTS: usize = 4_096;

/// A turn that takes longer than this is logged: nothing else happens meanwhile.
const SLOW_TURN: Duration = Duration::from_millis(200);

/// Most session events that are taken in one after the other before anything else is.
const MAX_STREAK: u32 = 64;

/// Where messages of [`Level::Notice`] are logged.
pub const NOTICES: &str = "zkmw::notices";

/// Names no connection: what is called over it is not sent.
const NO_GENERATION: u64 = 0;

/// The longest wait without a read of the clock, which goes on while the machine is suspended and so may jump.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Gives up to so many further lines of a batch; fewer mean that there are no more.
pub type BatchLines = Box<dyn FnMut(usize) -> anyhow::Result<Vec<BatchLine>>>;

/// What the loop needs besides its role.
pub struct Surroundings {
    /// Where ZooKeeper is.
    pub zk: zk::Settings,
    /// How long the first connection may take; none is for ever.
    pub connect_timeout: Option<Duration>,
    /// How long the end of the session may take.
    pub close_timeout: Duration,
    /// Whether the role runs processes.
    pub runs: bool,
    /// Where the sessions of what runs are written down.
    pub run_file: Option<RunFile>,
    /// In what these processes differ from this one.
    pub confinement: Confinement,
    /// Where all is kept that runs print, if it is.
    pub logs: Option<LogSettings>,
    /// Where the lines of a batch come from.
    pub batch: Option<BatchLines>,
    /// Whether it is a service: it reports its status to the service manager, and ignores SIGHUP.
    pub daemon: bool,
}

/// What can come in.
enum Incoming {
    Session(SessionEvent),
    Exec(ExecEvent),
    Signal(i32),
    /// The role's wish to be woken, the watchdog's turn, or nothing at all.
    Time,
}

struct Shell<'a, T: Role> {
    role: T,
    out: Actions<T::Report>,
    show: &'a mut dyn FnMut(T::Report) -> io::Result<()>,
    session: Session,
    executor: Option<Executor>,
    batch: Option<BatchLines>,
    sessions: Receiver<SessionEvent>,
    execs: Receiver<ExecEvent>,
    signals: Receiver<i32>,
    /// The connection that is up, as far as the role knows.
    generation: Option<u64>,
    /// Calls of the role that were not answered yet.
    outstanding: BTreeSet<CallId>,
    /// Until when the first connection must be up.
    connect_by: Option<Instant>,
    last_failure: Option<Failure>,
    /// A client has no connection, and says so to its user.
    outage: Option<Outage>,
    /// Who was asked for a session, for messages.
    servers: String,
    ever_connected: bool,
    signalled: Option<i32>,
    daemon: bool,
    service: Service,
    pacing: Pacing,
    /// How many session events were taken in one after the other.
    streak: u32,
}

/// Runs a role to its end, and gives its exit code.
///
/// # Errors
/// If the loop cannot have what it needs: threads, signals, a clock.
pub fn run<T: Role>(
    role: T,
    surroundings: Surroundings,
    show: &mut dyn FnMut(T::Report) -> io::Result<()>,
) -> anyhow::Result<i32> {
    let signals = listen(surroundings.daemon).context("cannot listen for signals")?;
    if !surroundings.runs {
        // Roles that run processes do without it: the processes would inherit it.
        threads::yield_to_others();
    }
    let (session_sender, sessions) = bounded(MAX_SESSION_EVENTS);
    let (exec_sender, execs) = unbounded();
    let executor = match surroundings.runs {
        true => {
            let means = Means {
                run_file: surroundings.run_file,
                program: OWN_PROGRAM.into(),
                leased: true,
                cgroups: true,
                confinement: surroundings.confinement,
                logs: surroundings.logs,
            };
            let executor = Executor::new(exec_sender, means);
            Some(executor.context("cannot run processes")?)
        }
        false => None,
    };
    let execs = if executor.is_some() { execs } else { never() };
    let servers: Vec<String> =
        surroundings.zk.servers.iter().map(|(host, port)| format!("{host}:{port}")).collect();
    let session = Session::start(surroundings.zk, session_sender)?;
    let shell = Shell {
        role,
        out: Actions::default(),
        show,
        session,
        executor,
        batch: surroundings.batch,
        sessions,
        execs,
        signals,
        generation: None,
        outstanding: BTreeSet::new(),
        connect_by: surroundings.connect_timeout.map(|limit| now() + limit),
        last_failure: None,
        outage: (!surroundings.daemon).then(|| Outage::new(now())),
        servers: servers.join(","),
        ever_connected: false,
        signalled: None,
        daemon: surroundings.daemon,
        service: Service::new(surroundings.daemon),
        pacing: Pacing::default(),
        streak: 0,
    };
    Ok(shell.run(surroundings.close_timeout))
}

impl<T: Role> Shell<'_, T> {
    fn run(mut self, close_timeout: Duration) -> i32 {
        let mut code = None;
        self.service.ready(&format!("waiting for the ensemble at {}", self.servers));
        while code.is_none() {
            self.service.tick(now());
            let incoming = self.next_event();
            let start = now();
            code = self.turn(incoming, start);
            let took = now().since(start);
            if took > SLOW_TURN {
                log::warn!("a turn took {} ms", took.as_millis());
            }
        }
        self.service.ending(close_timeout);
        // What still runs is killed before the session ends, so that nobody else starts it meanwhile.
        drop(self.executor.take());
        let stopped = self.session.stop(close_timeout);
        log::debug!("session: {stopped:?}");
        // The process is about to end, and a successor waits for processors: a million tasks are not freed one by one.
        std::mem::forget(self.role);
        let code = code.unwrap_or(exit::BUG);
        match self.signalled {
            Some(signal) if code == exit::INTERRUPTED => exit::SIGNAL_BASE + signal,
            _ => code,
        }
    }

    /// The program's only `select!`.
    fn next_event(&mut self) -> Incoming {
        // To wait on several channels costs more than many a turn, and what comes comes in bursts.
        if self.streak < MAX_STREAK {
            self.streak += 1;
            if let Ok(event) = self.sessions.try_recv() {
                return Incoming::Session(event);
            }
            if let Ok(event) = self.execs.try_recv() {
                return Incoming::Exec(event);
            }
        }
        self.streak = 0;
        let time = now();
        let outage = self.outage.as_ref().and_then(|outage| outage.next_wake(&self.why_offline()));
        let connect_by = self.connect_by.filter(|_| !self.ever_connected);
        let role = self.role.next_wake().map(|wish| self.pacing.wake_at(wish));
        let wake = [role, connect_by, self.service.next_tick(), outage];
        let wake = wake.into_iter().flatten().min();
        let wait = wake.map_or(MAX_WAIT, |at| at.since(time).min(MAX_WAIT));
        select! {
            recv(self.sessions) -> event => event.map_or(Incoming::Time, Incoming::Session),
            recv(self.execs) -> event => event.map_or(Incoming::Time, Incoming::Exec),
            recv(self.signals) -> signal => signal.map_or(Incoming::Time, Incoming::Signal),
            recv(after(wait)) -> _ => Incoming::Time,
        }
    }

    /// One turn, and what follows from it; the exit code when the role is at its end.
    fn turn(&mut self, incoming: Incoming, time: Instant) -> Option<i32> {
        let event = match incoming {
            Incoming::Session(event) => match self.on_session(event) {
                Ok(event) => event?,
                Err(code) => return Some(code),
            },
            Incoming::Exec(ExecEvent::Started { run, pid }) => Event::Started { run, pid },
            Incoming::Exec(ExecEvent::NotStarted { run, kind, why }) => Event::NotStarted { run, kind, why },
            Incoming::Exec(ExecEvent::Ended { run, report }) => Event::Ended { run, report },
            Incoming::Exec(ExecEvent::SlotsLost { why }) => Event::SlotsLost { why },
            Incoming::Signal(signal) => {
                let again = self.signalled.replace(signal).is_some();
                self.service.stopping(time);
                Event::Stop { again }
            }
            Incoming::Time => {
                self.say_outage(time);
                if !self.ever_connected && self.connect_by.is_some_and(|at| at <= time) {
                    return Some(self.no_ensemble());
                }
                if self.role.next_wake().is_none_or(|wish| self.pacing.wake_at(wish) > time) {
                    return None;
                }
                Event::Wake
            }
        };
        let woken = event == Event::Wake;
        turn(&mut self.role, time, event, &mut self.out);
        let code = self.carry_out();
        if woken && code.is_none() && self.pacing.woken(time, self.role.next_wake()) {
            log::error!(target: "zkmw", "this process was woken for something that it did not do, and goes on with \
                delays. This is a bug in zkmw: please report it, with the log before this line");
        }
        code
    }

    /// What a session event is to the role, if anything; or the exit code if there is no going on.
    fn on_session(&mut self, event: SessionEvent) -> Result<Option<Event>, i32> {
        Ok(match event {
            SessionEvent::Up { generation, timeout, server } => {
                log::info!(target: "zkmw", "connected to {server}, session timeout {} ms", timeout.as_millis());
                self.generation = Some(generation);
                self.ever_connected = true;
                self.last_failure = None;
                if self.outage.take().is_some_and(|outage| outage.was_said()) {
                    log::warn!(target: "zkmw", "connected to ZooKeeper: {server}");
                }
                Some(Event::Connected { timeout })
            }
            SessionEvent::Down { generation, why } => {
                (self.generation == Some(generation)).then(|| self.on_down(why))
            }
            SessionEvent::Changed { generation, path, kind } => {
                (self.generation == Some(generation)).then_some(Event::Changed { path, kind })
            }
            SessionEvent::Reply { id, result } => {
                self.outstanding.remove(&id).then_some(Event::Reply { id, result })
            }
            SessionEvent::Failed { why } => {
                if !self.ever_connected
                    && let Some(code) = hopeless(&why)
                {
                    log::error!("{why}");
                    return Err(code);
                }
                if self.daemon {
                    log::warn!(target: "zkmw", "{why}; trying on");
                } else {
                    log::info!("{why}; trying on");
                }
                if !self.ever_connected {
                    self.service.status(&format!("waiting for the ensemble: {why}"));
                }
                self.last_failure = Some(why);
                None
            }
        })
    }

    /// The connection is gone. A call without an answer was made too late, when the end was on its way to us: it was
    /// not sent. The role gets these replies before the loss, as promised.
    fn on_down(&mut self, why: String) -> Event {
        self.generation = None;
        self.outage = (!self.daemon).then(|| Outage::new(now()));
        for id in std::mem::take(&mut self.outstanding) {
            let event = Event::Reply { id, result: Err(CallError::NotSent) };
            turn(&mut self.role, now(), event, &mut self.out);
        }
        Event::Lost { why }
    }

    fn no_ensemble(&self) -> i32 {
        log::error!("no ensemble within --connect-timeout: {}; see --zk", self.why_offline());
        exit::UNAVAILABLE
    }

    /// Why there is no connection, as far as is known.
    fn why_offline(&self) -> String {
        match &self.last_failure {
            Some(why) => why.to_string(),
            None => format!("no answer yet from {}", self.servers),
        }
    }

    /// Says to a client's user what it waits for, when that is due.
    fn say_outage(&mut self, time: Instant) {
        let why = self.why_offline();
        if self.outage.as_mut().is_some_and(|outage| outage.is_due(time, &why)) {
            let limit = self.connect_by.filter(|_| !self.ever_connected).map(|at| at.since(time).as_secs());
            let until = limit
                .map_or_else(String::new, |left| format!("; it gives up in {left} s (--connect-timeout)"));
            log::warn!(target: "zkmw", "waiting for ZooKeeper: {why}{until}");
        }
    }

    /// Carries out what the turn asked for, in its order, and what that leads to.
    fn carry_out(&mut self) -> Option<i32> {
        while !self.out.is_empty() {
            let actions: Vec<_> = self.out.drain().collect();
            for action in actions {
                match action {
                    Action::Call { id, call } => {
                        self.outstanding.insert(id);
                        self.session.call(self.generation.unwrap_or(NO_GENERATION), id, call);
                    }
                    Action::Run { run, spec } => {
                        if let Some(executor) = &self.executor {
                            executor.start(run, spec);
                        }
                    }
                    Action::Signal { run, signal } => {
                        if let Some(executor) = &self.executor {
                            executor.signal(run, signal);
                        }
                    }
                    Action::Lease(until) => {
                        if let Some(Err(late)) = self.executor.as_ref().map(|executor| executor.lease(until))
                        {
                            // At once: what it brings must not come before it.
                            turn(
                                &mut self.role,
                                now(),
                                Event::SlotsLost { why: late.to_string() },
                                &mut self.out,
                            );
                        }
                    }
                    Action::Report(report) => {
                        if let Err(error) = (self.show)(report) {
                            return Some(cannot_show(&error));
                        }
                    }
                    Action::Log(level, text) => {
                        let target = if level == Level::Notice { NOTICES } else { "zkmw" };
                        log::log!(target: target, level_of(level), "{text}");
                    }
                    Action::Status(text) => self.service.status(&text),
                    Action::ReadLines(count) => {
                        let lines = match self.batch.as_mut().map(|next| next(count)) {
                            Some(Ok(lines)) => lines,
                            Some(Err(error)) => {
                                log::error!("{error:#}");
                                return Some(exit::DATA);
                            }
                            None => Vec::new(),
                        };
                        turn(&mut self.role, now(), Event::Lines(lines), &mut self.out);
                    }
                    Action::Exit(code) => return Some(code),
                }
            }
        }
        None
    }
}

/// Whether trying on makes no sense, and what to exit with then.
fn hopeless(why: &Failure) -> Option<i32> {
    match why {
        Failure::NoChroot { .. } => Some(exit::CONFIG),
        Failure::AuthFailed { .. } | Failure::AuthNeeded => Some(exit::NOT_PERMITTED),
        Failure::Unresolvable { .. } | Failure::Unreachable { .. } => None,
    }
}

/// The results have nowhere to go. The user who closed the pipe knows it, so only other errors are logged.
fn cannot_show(error: &io::Error) -> i32 {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return exit::SIGNAL_BASE + SIGPIPE;
    }
    log::error!("cannot write the results: {error}");
    exit::NOT_SHOWN
}

fn level_of(level: Level) -> log::Level {
    match level {
        Level::Error => log::Level::Error,
        Level::Warn => log::Level::Warn,
        Level::Notice | Level::Info => log::Level::Info,
        Level::Debug => log::Level::Debug,
    }
}

/// TERM, INT and HUP, as they come. A closed terminal does not end a daemon, nor a client under `nohup`, which has HUP
/// ignored when it starts; any other client says how to come back, as it does at TERM.
pub fn listen(daemon: bool) -> anyhow::Result<Receiver<i32>> {
    let ignores_hup = daemon || ignored_at_start(SIGHUP);
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let (sender, receiver): (Sender<i32>, _) = unbounded();
    let forward = move || {
        for signal in signals.forever() {
            if !(ignores_hup && signal == SIGHUP) && sender.send(signal).is_err() {
                break;
            }
        }
    };
    threads::spawn_small("signals", forward)?;
    Ok(receiver)
}

/// Whether the parent had this process ignore this signal. False where `/proc` can't be read.
fn ignored_at_start(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}
