//! The life of one handler, on a thread of its own: its start and its answers.
//!
//! The thread sleeps where answers come; at an answer it reports the run's end, after it has put the handler back among
//! those that idle. Whatever else happens to the handler is its end (`end`).
//!
//! It must not: take a line for an answer to a request that is not wholly written; or let a handler idle that has got a
//! signal.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};

use super::answer::{self, AnswerBuffer, Said};
use super::backoff::{Cause, Death};
use super::handler_slot::{Busy, Handed, HandlerJob, HandlerSlot, HandlerState, HandlerWork};
use super::{HandlerPool, NO_LEASE};
use crate::clock;
use crate::exec::descriptors::too_few;
use crate::exec::mailbox::Note;
use crate::exec::stopped::{CHECK_EVERY, StopWatch};
use crate::exec::system::timespec;
use crate::exec::wire::{Program, Streams};
use crate::exec::{ExecEvent, NotStartedKind};
use crate::machine::{RunId, RunReport, RunSpec};

/// The start of a handler's first request is reported after this time, if it has neither answered nor ended by then. A
/// shell that finds no such program says so much sooner.
const STARTED_AFTER: Duration = Duration::from_secs(1);
/// One that ends closes its pipes a moment before it is dead.
const DEAD_AFTER_CLOSE: Duration = Duration::from_millis(200);
/// The pause after a `poll` that failed for want of memory.
const POLL_FAILED_PAUSE: Duration = Duration::from_millis(20);

/// From its start to its end, with the request that it was started for.
pub(super) fn live(pool: &Arc<HandlerPool>, handler_slot: Arc<HandlerSlot>, job: HandlerJob, spec: RunSpec) {
    if pool.pause(&handler_slot) {
        let why = "it was stopped while it waited for a handler".to_owned();
        return pool.not_started(job.run, NotStartedKind::Transient, why);
    }
    let born = Instant::now();
    let program = spec.argv.last().cloned().unwrap_or_default();
    if let Err((kind, why)) = start(pool, &handler_slot, spec) {
        pool.died(Death { born, answered: false, cause: Cause::Fault });
        let kind = match kind {
            NotStartedKind::Transient => NotStartedKind::Transient,
            // A handler is the worker's, whatever is wrong with it.
            NotStartedKind::Shortage | NotStartedKind::Permanent => NotStartedKind::Shortage,
        };
        return pool.not_started(job.run, kind, format!("there is no handler for it: {why}"));
    }
    Handler {
        pool,
        handler_slot,
        lines: AnswerBuffer::default(),
        born,
        program,
        dead: None,
        answered: false,
        start_unreported: false,
        writing: false,
        stopped: StopWatch::default(),
        checked: Instant::now(),
    }
    .live(job);
}

/// Starts it in a slot, and waits until it runs.
fn start(
    pool: &Arc<HandlerPool>,
    handler_slot: &Arc<HandlerSlot>,
    spec: RunSpec,
) -> Result<(), (NotStartedKind, String)> {
    let short = |_| (NotStartedKind::Shortage, too_few());
    let (stdin, requests) = pipe_with(PipeFlags::CLOEXEC).map_err(short)?;
    let (answers, stdout) = pipe_with(PipeFlags::CLOEXEC).map_err(short)?;
    let _ = handler_slot.stdout.set(nonblocking(answers));
    handler_slot.lock().stdin = Some(Arc::new(nonblocking(requests)));
    let program = Program {
        run: handler_slot.mailbox.id().0,
        argv: spec.argv,
        env: spec.env,
        streams: Streams::Handler,
    };
    pool.hub.start_handler(&handler_slot.mailbox, program, [stdin, stdout]);
    loop {
        let _ = poll(&mut [PollFd::new(handler_slot.mailbox.waker(), PollFlags::IN)], None);
        let _ = read(handler_slot.mailbox.waker(), &mut [0; 8]);
        let mut notes = handler_slot.mailbox.take_notes().into_iter();
        match notes.next() {
            None => {}
            Some(Note::Started { .. }) => {
                // Later notes are for `serve`.
                notes.for_each(|note| handler_slot.mailbox.note(note));
                return Ok(());
            }
            Some(Note::NotStarted { kind, why }) => return Err((kind, why)),
            // The slot was lost before it had reported that the handler runs.
            Some(Note::Ended(report)) => {
                return Err((NotStartedKind::Transient, report.detail.unwrap_or_default()));
            }
        }
    }
}

/// What its thread knows of a handler.
pub(super) struct Handler<'a> {
    pub(super) pool: &'a Arc<HandlerPool>,
    pub(super) handler_slot: Arc<HandlerSlot>,
    pub(super) lines: AnswerBuffer,
    pub(super) born: Instant,
    /// For messages.
    pub(super) program: String,
    /// How it ended, when every process of its group is dead.
    pub(super) dead: Option<Box<RunReport>>,
    /// It has answered before.
    pub(super) answered: bool,
    /// It has a request whose start was not reported yet.
    start_unreported: bool,
    /// There is a rest of a line to be written.
    writing: bool,
    stopped: StopWatch,
    checked: Instant,
}

/// What is ready.
struct Ready {
    stdout: bool,
    wake: bool,
    stdin: bool,
    /// Nothing, for as long as was waited.
    paused: bool,
}

/// Why the handler is not used any more.
pub(super) enum End {
    /// Its process is dead.
    Dead,
    /// It did what no handler may do.
    Broken(String),
    /// It has answered, but has got a signal.
    Answered { run: RunId, start_reported: bool, report: Box<RunReport> },
}

impl Handler<'_> {
    fn live(mut self, job: HandlerJob) {
        let end = match self.take_first(job) {
            None => self.serve(),
            Some(end) => end,
        };
        self.retire(end);
    }

    /// Gives it the request that it was started for. Why it is not used any more, if that fails.
    fn take_first(&mut self, job: HandlerJob) -> Option<End> {
        let run = job.run;
        let handed = match self.handler_slot.is_asked_to_end() {
            false => self.handler_slot.hand_over(job, &self.pool.hub),
            true => Handed::Refused(job),
        };
        match handed {
            Handed::Done => None,
            Handed::NoLease => {
                self.pool.not_started(run, NotStartedKind::Transient, NO_LEASE.to_owned());
                self.pool.lock().idles(&self.handler_slot);
                None
            }
            Handed::Refused(job) => {
                let busy = Busy::new(job, clock::wall_ms());
                self.handler_slot.lock().work = HandlerWork::Busy(busy);
                Some(self.closed("it takes no request"))
            }
        }
    }

    /// Serves requests until the handler is not used any more.
    fn serve(&mut self) -> End {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    log::warn!(
                        "cannot poll the pipes of handler {}: {error}",
                        self.handler_slot.mailbox.pid()
                    );
                    std::thread::sleep(POLL_FAILED_PAUSE);
                    Ready { stdout: true, wake: true, stdin: true, paused: false }
                }
            };
            if ready.paused {
                self.report_started();
            }
            if ready.wake {
                self.check_work();
            }
            if self.writing
                && (ready.wake || ready.stdin)
                && let Some(end) = self.write_on()
            {
                return end;
            }
            let is_dead = self.dead.is_some();
            if (ready.stdout || is_dead)
                && let Some(end) = self.listen(is_dead)
            {
                return end;
            }
            if self.checked.elapsed() >= CHECK_EVERY {
                self.check_if_stopped();
            }
        }
    }

    /// Whether it is stopped while it has a request.
    fn check_if_stopped(&mut self) {
        self.checked = Instant::now();
        if let HandlerWork::Busy(busy) = &self.handler_slot.lock().work
            && let Some(warning) = self
                .stopped
                .check(self.handler_slot.mailbox.pid(), &format!("the handler of {}", busy.task()))
        {
            log::warn!("{warning}");
        }
    }

    /// Waits until something is ready.
    fn wait(&self) -> Result<Ready, Errno> {
        // A request that is handed to a handler that is known to work does not wake this thread.
        let pause = timespec(if self.start_unreported { STARTED_AFTER } else { CHECK_EVERY });
        let stdin = if self.writing { self.handler_slot.lock().stdin.clone() } else { None };
        let mut sources = vec![PollFd::new(self.handler_slot.mailbox.waker(), PollFlags::IN)];
        sources.extend(self.handler_slot.stdout.get().map(|stdout| PollFd::new(stdout, PollFlags::IN)));
        sources.extend(stdin.iter().map(|stdin| PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::OUT)));
        let ready = poll(&mut sources, Some(&pause))?;
        let is_ready = |at: usize| sources.get(at).is_some_and(|source| !source.revents().is_empty());
        Ok(Ready { wake: is_ready(0), stdout: is_ready(1), stdin: is_ready(2), paused: ready == 0 })
    }

    /// The request that it has got has begun: reports that, unless it was reported.
    fn report_started(&mut self) {
        if !self.start_unreported {
            return;
        }
        if let HandlerWork::Busy(busy) = &mut self.handler_slot.lock().work
            && busy.rest.is_empty()
        {
            busy.report_started(self.handler_slot.mailbox.pid(), &self.pool.hub);
            self.start_unreported = false;
        }
    }

    /// A part of a request was left to this thread, or something became of the process.
    fn check_work(&mut self) {
        // A counter: one read takes all.
        let _ = read(self.handler_slot.mailbox.waker(), &mut [0; 8]);
        self.take_notes();
        if let HandlerWork::Busy(busy) = &self.handler_slot.lock().work {
            self.writing = !busy.rest.is_empty();
            self.start_unreported = !busy.start_reported;
        }
    }

    fn take_notes(&mut self) {
        for note in self.handler_slot.mailbox.take_notes() {
            match note {
                Note::Ended(report) => self.dead = Some(report),
                Note::Started { .. } | Note::NotStarted { .. } => {}
            }
        }
    }

    /// Writes what the pipe has room for of the rest of a line.
    fn write_on(&mut self) -> Option<End> {
        let mut state = self.handler_slot.lock();
        let HandlerState { stdin: Some(stdin), work: HandlerWork::Busy(busy), proven } = &mut *state else {
            self.writing = false;
            return None;
        };
        match write(stdin.as_ref(), &busy.rest) {
            Ok(written) => {
                busy.handed |= written > 0;
                busy.rest.drain(..written);
                self.writing = !busy.rest.is_empty();
                if *proven && !self.writing {
                    busy.report_started(self.handler_slot.mailbox.pid(), &self.pool.hub);
                    self.start_unreported = false;
                }
                None
            }
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(_) => {
                drop(state);
                Some(self.closed("it closed its standard input"))
            }
        }
    }

    /// Reads its answers; all that are left, if it is dead.
    fn listen(&mut self, is_dead: bool) -> Option<End> {
        let handler_slot = Arc::clone(&self.handler_slot);
        let stdout = handler_slot.stdout.get()?;
        loop {
            match self.lines.read(stdout) {
                Said::Line => {
                    if let Some(end) = self.answer(is_dead) {
                        return Some(end);
                    }
                    if !is_dead {
                        return None;
                    }
                }
                Said::Some if is_dead => {}
                Said::Nothing | Said::Some if !is_dead => {
                    self.report_started();
                    return None;
                }
                Said::Nothing | Said::Some => return Some(End::Dead),
                Said::End if is_dead => return Some(End::Dead),
                Said::End => return Some(self.closed("it closed its standard output")),
                Said::Wrong(why) => return Some(End::Broken(why)),
            }
        }
    }

    /// Takes in a line of the handler: the end of a run, or of the handler.
    fn answer(&mut self, is_dead: bool) -> Option<End> {
        let hub = &self.pool.hub;
        let mut state = self.handler_slot.lock();
        let HandlerWork::Busy(Busy { run, limit, started_ms, rest, start_reported, .. }) = &state.work else {
            return Some(End::Broken("it said something without having been asked".to_owned()));
        };
        if !rest.is_empty() {
            return Some(End::Broken("it answered before it had the whole request".to_owned()));
        }
        let (run, started_ms, start_reported) = (*run, *started_ms, *start_reported);
        let verdict = match answer::judge(self.lines.line(), run, *limit) {
            Ok(verdict) => verdict,
            Err(malformed) => return Some(End::Broken(format!("its answer is malformed: {malformed}"))),
        };
        state.work = if is_dead { HandlerWork::Over } else { HandlerWork::Idle };
        state.proven = true;
        drop(state);
        self.lines.clear();
        if !std::mem::replace(&mut self.answered, true) {
            self.pool.works();
        }
        self.start_unreported = false;
        self.stopped = StopWatch::default();
        let mut report = Some(Box::new(verdict.report(started_ms)));
        let pid = self.handler_slot.mailbox.pid();
        let over = self.pool.answered(run, &self.handler_slot, !is_dead, || {
            if !start_reported {
                let _ = hub.events.send(ExecEvent::Started { run, pid });
            }
            if let Some(report) = report.take() {
                let _ = hub.events.send(ExecEvent::Ended { run, report: *report });
            }
        });
        report.filter(|_| !over).map(|report| End::Answered { run, start_reported, report })
    }

    /// It takes no further request, or sends no further answer: it is dead, dying or broken.
    fn closed(&mut self, why: &str) -> End {
        self.await_death(Some(DEAD_AFTER_CLOSE));
        if self.dead.is_some() { End::Dead } else { End::Broken(why.to_owned()) }
    }

    /// Until every process of its group is dead, for this long at most.
    pub(super) fn await_death(&mut self, longest: Option<Duration>) {
        let until = longest.map(|longest| Instant::now() + longest);
        loop {
            self.take_notes();
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if self.dead.is_some() || left == Some(Duration::ZERO) {
                return;
            }
            let _ = poll(
                &mut [PollFd::new(self.handler_slot.mailbox.waker(), PollFlags::IN)],
                left.map(timespec).as_ref(),
            );
            let _ = read(self.handler_slot.mailbox.waker(), &mut [0; 8]);
        }
    }
}

/// So that neither reading nor writing waits.
fn nonblocking(pipe: OwnedFd) -> OwnedFd {
    let set = fcntl_getfl(&pipe).and_then(|flags| fcntl_setfl(&pipe, flags | OFlags::NONBLOCK));
    if let Err(error) = set {
        // It cannot fail on a pipe of ours.
        log::error!("a handler may keep its thread waiting: {error}");
    }
    pipe
}
