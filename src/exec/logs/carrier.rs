//! The worker's side of logs: starts the writer, hands it the pipes that slots have made, and reports what it says.
//!
//! A thread of its own, that waits for sockets only. The worker's other threads never wait for it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{read, write};
use rustix::net::{Shutdown, shutdown};

use super::super::children::keepers;
use super::super::system::timespec;
use super::super::wire::{self, Link};
use super::{FromWriter, LogName, LogSettings, ToWriter, WRITE_LOGS};
use crate::threads;

/// What a writer calls itself.
const NAME: &str = "zkmw";
/// From one start of a writer to the next one, at least.
const RESTART_AFTER: Duration = Duration::from_secs(5);
/// A fault of the logs is reported once, and again after this time: it may be so with each task.
const WARN_EVERY: Duration = Duration::from_secs(600);
/// A writer that did not take what it was given gets nothing for so long: or each run would wait for it.
const SUSPENDED_FOR: Duration = Duration::from_secs(30);
/// Most of what waits for the thread, if it has to wait for another writer to start.
const MOST_ORDERS: usize = 1_000;
/// How long the writer may take at the end to write what it was given.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// The way to the writer.
#[derive(Debug)]
pub(in super::super) struct Carrier {
    orders: Mutex<VecDeque<Order>>,
    wake: OwnedFd,
    /// Closed when the thread ends.
    over: Receiver<()>,
}

#[derive(Debug)]
enum Order {
    /// A log begins.
    Begin(LogName, OwnedFd),
    /// A slot has given up a log, for this reason; or found its pipe closed.
    Lost(LogName, Option<String>),
    /// No slot lives any more.
    Stop,
}

/// What the thread has.
struct Hands {
    carrier: Arc<Carrier>,
    program: PathBuf,
    settings: LogSettings,
    writer: Option<Writer>,
    next_start: Instant,
    suspended_until: Option<Instant>,
    warned: Option<Instant>,
}

struct Writer {
    child: Child,
    link: Link,
}

impl Carrier {
    /// Starts a writer, and the thread that speaks to it.
    ///
    /// # Errors
    ///
    /// If there is no room for either.
    pub(in super::super) fn start(program: PathBuf, settings: LogSettings) -> io::Result<Arc<Carrier>> {
        let (alive, over) = bounded(0);
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let carrier = Arc::new(Carrier { orders: Mutex::default(), wake, over });
        let mut hands = Hands {
            carrier: Arc::clone(&carrier),
            program,
            settings,
            writer: None,
            next_start: Instant::now() + RESTART_AFTER,
            suspended_until: None,
            warned: None,
        };
        // Not by the thread: the descriptors that it takes for a moment would be missing in the count of those that
        // are free.
        hands.writer = Some(hands.spawn()?);
        threads::spawn("exec-logs", move || hands.live(alive))?;
        Ok(carrier)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Order>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: Order) {
        let mut orders = self.lock();
        // What is dropped closes a pipe, so a slot gives the log up.
        if orders.len() < MOST_ORDERS || matches!(order, Order::Stop) {
            orders.push_back(order);
        }
        drop(orders);
        let _ = write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// A run has a log from now on.
    pub(in super::super) fn begin(&self, name: LogName, pipe: OwnedFd) {
        self.order(Order::Begin(name, pipe));
    }

    /// A run has none any more.
    pub(in super::super) fn lost(&self, name: LogName, why: Option<String>) {
        self.order(Order::Lost(name, why));
    }

    /// All that was given to the writer is to be written; waits for that for 5 s at most.
    pub(in super::super) fn stop(&self) {
        self.order(Order::Stop);
        let _ = self.over.recv_timeout(ENDS_WITHIN);
    }
}

impl Hands {
    /// Until it has to stop, and the writer has ended.
    fn live(mut self, _alive: Sender<()>) {
        loop {
            if self.writer.is_none() && self.next_start <= Instant::now() {
                self.start();
            }
            self.wait();
            let _ = read(&self.carrier.wake, &mut [0; 8]);
            let orders = std::mem::take(&mut *self.carrier.lock());
            for order in orders {
                match order {
                    Order::Begin(name, pipe) => self.begin(name, pipe),
                    Order::Lost(name, why) => self.lost(name, why),
                    Order::Stop => return self.end(),
                }
            }
            self.hear();
        }
    }

    /// Until there is something to do.
    fn wait(&self) {
        let pause = self.next_start.saturating_duration_since(Instant::now());
        let pause = self.writer.is_none().then(|| timespec(pause));
        let mut sources = vec![PollFd::new(&self.carrier.wake, PollFlags::IN)];
        if let Some(writer) = &self.writer {
            let wanted =
                if writer.link.has_unsent() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            sources.push(PollFd::from_borrowed_fd(writer.link.as_fd(), wanted));
        }
        let _ = poll(&mut sources, pause.as_ref());
    }

    fn start(&mut self) {
        self.next_start = Instant::now() + RESTART_AFTER;
        match self.spawn() {
            Ok(writer) => self.writer = Some(writer),
            Err(error) => self.warn(&format!("cannot start what writes logs ({error}): tasks have none now")),
        }
    }

    /// It gets no environment: nothing in it is meant for it, and it bears no mark by which what runs is found and
    /// killed.
    fn spawn(&self) -> io::Result<Writer> {
        let (link, theirs) = wire::pair()?;
        let LogSettings { dir, space, keep, .. } = &self.settings;
        let words =
            [dir.clone().into_os_string(), space.to_string().into(), keep.as_secs().to_string().into()];
        let words: [OsString; 3] = words;
        let mut command = Command::new(&self.program);
        command.arg0(NAME).arg(WRITE_LOGS).args(words).env_clear().current_dir("/");
        let mut keepers = keepers();
        let child = command.stdin(theirs).stdout(Stdio::null()).spawn()?;
        keepers.insert(child.id());
        Ok(Writer { child, link })
    }

    /// Without a writer, or while it is suspended, the pipe is closed, and the slot gives the log up.
    fn begin(&mut self, name: LogName, pipe: OwnedFd) {
        if self.suspended_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let Some(writer) = &mut self.writer else { return };
        if writer.link.has_unsent() {
            self.suspended_until = Some(Instant::now() + SUSPENDED_FOR);
            return self.warn(&format!("task {} has no log: what writes them does not listen", name.task));
        }
        writer.link.say_with(&ToWriter::Log(name), vec![pipe]);
    }

    /// A log is not complete. If its pipe was closed, that may have been by a writer that was killed; so this writer
    /// is reported.
    fn lost(&mut self, name: LogName, why: Option<String>) {
        if let Some(why) = why {
            self.suspended_until = Some(Instant::now() + SUSPENDED_FOR);
            self.warn(&format!("the log of task {} is cut: {why}", name.task));
        } else if let Some(writer) = self.writer.as_mut().filter(|writer| !writer.link.has_unsent()) {
            writer.link.say(&ToWriter::Cut(name));
        }
    }

    /// Takes in what the writer says.
    fn hear(&mut self) {
        let Some(mut writer) = self.writer.take() else { return };
        writer.link.flush();
        writer.link.receive();
        while let Some(FromWriter::Warning(warning)) = writer.link.next() {
            self.warn(&warning);
        }
        if writer.link.is_closed() {
            let status = writer.reap();
            self.warn(&format!("what writes logs ended ({status}); logs of what runs now are cut"));
        } else {
            self.writer = Some(writer);
        }
    }

    fn warn(&mut self, warning: &str) {
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            log::warn!("{warning}. Runs go on; further warnings about logs are left out for 10 min");
        } else {
            log::debug!("{warning}");
        }
    }

    /// Lets the writer write all that it has, and end.
    fn end(mut self) {
        let Some(mut writer) = self.writer.take() else { return };
        let _ = shutdown(&writer.link, Shutdown::Write);
        let until = Instant::now() + ENDS_WITHIN;
        while !writer.link.is_closed() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // It hangs. When it goes on, it finds us gone, and ends.
                return;
            }
            let mut sources = [PollFd::from_borrowed_fd(writer.link.as_fd(), PollFlags::IN)];
            let _ = poll(&mut sources, Some(&timespec(left)));
            writer.link.receive();
        }
        writer.reap();
    }
}

impl Writer {
    /// It has closed its socket, which it does at its end.
    fn reap(&mut self) -> String {
        let pid = self.child.id();
        let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        keepers().remove(&pid);
        status
    }
}
