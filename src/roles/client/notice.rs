//! Why a client waits: read and reported when nothing has happened for a while, once, and again when that has changed.
//!
//! It reads seldom, since it reads only while nothing happens, and never writes. It reports what the leader's summary
//! and the contenders show; nothing rests on that.

use std::time::Duration;

use super::service_state::ServiceReader;
use super::wait_reasons::{self, WaitReason};
use crate::contract::task::Task;
use crate::contract::{Labels, Layout};
use crate::machine::{Actions, CallId, CallResult, Instant, Level, Routed};

/// The longest that a user waits without a word. The shell has the same patience with servers.
pub const QUIET: Duration = Duration::from_secs(3);

/// From check to check the pause doubles up to this: a thousand idle clients cost the ensemble 50 reads a second.
pub const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Reports why a client waits.
#[derive(Debug)]
pub struct Notice {
    /// When to check, while something is waited for.
    next_check: Option<Instant>,
    pause: Duration,
    /// The codes of the reasons that were logged last: other numbers are no news.
    said: Vec<&'static str>,
    /// One of them was a fault. A fault that was logged is also logged when it is over.
    had_fault: bool,
    /// The task's attempt waits for its time.
    delay: Option<Delay>,
    /// The attempt of the task, and when its znode was written, as of the last read.
    version: Option<(u32, i64)>,
    reader: ServiceReader,
}

/// An attempt that waits for its time.
#[derive(Clone, Copy, Debug)]
struct Delay {
    attempt: u32,
    is_retry: bool,
    length: Duration,
    /// When it is over, as far as this process knows, and how long that is from now.
    until: Option<Instant>,
    left: Duration,
}

impl Delay {
    fn reason(self) -> Option<WaitReason> {
        let left_ms = i64::try_from(self.left.as_millis()).unwrap_or(i64::MAX);
        let Delay { attempt, is_retry, .. } = self;
        let reason = match is_retry {
            true => WaitReason::BackingOff { attempt: Some(attempt), left_ms },
            false => WaitReason::Delayed { left_ms },
        };
        (left_ms > 0).then_some(reason)
    }
}

impl Notice {
    /// For a client of this service.
    pub fn new(layout: &Layout) -> Notice {
        Notice {
            next_check: None,
            pause: QUIET,
            said: Vec::new(),
            had_fault: false,
            delay: None,
            version: None,
            reader: ServiceReader::new(layout),
        }
    }

    /// Something that was waited for has happened.
    pub fn on_progress(&mut self) {
        self.reader.clear();
        (self.next_check, self.pause) = (None, QUIET);
        // A fault is over. That all is well was logged, and is no news.
        if self.had_fault {
            self.said.clear();
        }
    }

    /// Takes in the only task that is waited for, as it was just read.
    pub fn on_task(&mut self, task: &Task, mtime_ms: i64) {
        let version = (task.attempt, mtime_ms);
        // Of a task that was there before nobody knows here how much of its delay has passed.
        let is_change = self.version.replace(version).is_some_and(|last| last != version);
        if !is_change {
            return;
        }
        let (attempt, is_retry, until) = (task.attempt, !task.history.is_empty(), None);
        self.delay = task.delay_ms.map(|ms| {
            let length = Duration::from_millis(ms);
            Delay { attempt, is_retry, length, until, left: length }
        });
        if self.delay.is_some() {
            self.said.clear();
        }
    }

    /// Checks if it is time. Something is waited for, or nothing is, or there is no connection.
    pub fn keep<R>(&mut self, now: Instant, waits: bool, out: &mut Actions<R>) {
        if let Some(delay) = &mut self.delay {
            let until = *delay.until.get_or_insert(now + delay.length);
            delay.left = until.since(now);
        }
        if !waits {
            self.reader.clear();
            self.next_check = None;
            return;
        }
        let next_check = *self.next_check.get_or_insert(now + self.pause);
        if next_check <= now && !self.reader.is_reading() {
            self.pause = (self.pause * 2).min(MAX_PAUSE);
            self.next_check = Some(now + self.pause);
            self.reader.start(out);
        }
    }

    /// When the next check is due.
    pub fn next_wake(&self) -> Option<Instant> {
        self.next_check.filter(|_| !self.reader.is_reading())
    }

    /// Takes in a reply. What is `awaited` needs a worker with the labels that are
    /// required, as far as the client knows.
    pub fn on_reply<R>(
        &mut self,
        id: CallId,
        result: &CallResult,
        required: &Labels,
        awaited: impl FnOnce() -> String,
        out: &mut Actions<R>,
    ) -> Routed<()> {
        self.reader.on_reply(id, result, out).map(|state| {
            let Some(state) = state else { return };
            let own = self.delay.and_then(Delay::reason).into_iter().collect();
            let reasons = wait_reasons::of_unknown(own, &state, required);
            if let Some(level) = self.level(&reasons) {
                let all = reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                out.log(level, format!("waiting for {}: {all}", awaited()));
            }
        })
    }

    /// The level at which to log these reasons, unless the same were logged last.
    fn level(&mut self, reasons: &[WaitReason]) -> Option<Level> {
        let codes: Vec<&'static str> = reasons.iter().map(WaitReason::code).collect();
        let has_fault = reasons.iter().any(WaitReason::is_fault);
        // Slots that get free and busy again are the normal state.
        let is_news = if has_fault || self.had_fault { codes != self.said } else { self.said.is_empty() };
        let level = if has_fault || self.had_fault { Level::Warn } else { Level::Notice };
        self.had_fault = has_fault;
        self.said = codes;
        is_news.then_some(level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::status::{Counts, LeaderStatus, Status, WorkerRow};
    use crate::contract::task::{Options, Payload};
    use crate::machine::{Action, Call, CallError, Refusal, Reply, Stat};

    const EPOCH: i64 = 7;

    fn status(workers: Vec<WorkerRow>, epoch: i64) -> Status {
        let leader = LeaderStatus { id: "m1".into(), host: "h".into(), pid: 1, epoch };
        Status::new(leader, workers, Counts::default(), false)
    }

    fn worker(gpu: Option<&str>, draining: bool) -> WorkerRow {
        let labels = gpu.map(|value| ("gpu".to_string(), value.to_string())).into_iter().collect();
        let (usable, unhealthy) = (None, None);
        let (id, host) = ("w".into(), "h".into());
        WorkerRow { id, host, pid: 1, slots: 2, running: 0, assigned: 0, draining, usable, unhealthy, labels }
    }

    /// A client that waits, and what it finds.
    struct Bench {
        notice: Notice,
        now: Instant,
        required: Labels,
        contenders: Vec<String>,
        status: Option<Status>,
        reads: usize,
    }

    impl Bench {
        fn new() -> Bench {
            let notice = Notice::new(&Layout::new("/z"));
            let now = Instant::from_nanos(1);
            let (required, contenders) = (Labels::new(), vec!["_c_x-latch-0000000001".to_string()]);
            Bench { notice, now, required, contenders, status: Some(status(Vec::new(), EPOCH)), reads: 0 }
        }

        /// So much time passes; what is said in it.
        fn pass(&mut self, time: Duration) -> Vec<(Level, String)> {
            let (end, mut said) = (self.now + time, Vec::new());
            let mut out: Actions<()> = Actions::default();
            loop {
                self.notice.keep(self.now, true, &mut out);
                let actions: Vec<_> = out.drain().collect();
                for action in &actions {
                    match action {
                        Action::Call { id, call } => {
                            self.reads += 1;
                            let result = self.answer(call);
                            let what = || "it".to_string();
                            let routed = self.notice.on_reply(*id, &result, &self.required, what, &mut out);
                            assert_eq!(routed, Routed::Mine(()));
                        }
                        Action::Log(level, text) => said.push((*level, text.clone())),
                        _ => panic!("{action:?}"),
                    }
                }
                if actions.is_empty() && out.is_empty() {
                    match self.notice.next_wake().filter(|at| *at <= end) {
                        Some(at) => self.now = at,
                        None => break,
                    }
                }
            }
            self.now = end;
            said
        }

        fn answer(&self, call: &Call) -> CallResult {
            match call {
                Call::Children { .. } => Ok(Reply::Children(self.contenders.clone())),
                Call::Exists { .. } => Ok(Reply::Stat(Stat { czxid: EPOCH, ..Stat::default() })),
                _ => match &self.status {
                    Some(status) => Ok(Reply::Data { data: status.encode(), stat: Stat::default() }),
                    None => Err(CallError::Refused(Refusal::NoNode)),
                },
            }
        }

        #[track_caller]
        fn says(&mut self, level: Level, part: &str) {
            let said = self.pass(MAX_PAUSE);
            let [(loud, text)] = said.as_slice() else { panic!("{said:?}") };
            assert!(
                *loud == level && text.starts_with("waiting for it: ") && text.contains(part),
                "{said:?}"
            );
        }
    }

    #[test]
    fn after_three_seconds_each_new_reason_is_shown_once() {
        let mut bench = Bench::new();
        assert_eq!(bench.pass(QUIET - Duration::from_millis(1)), []);
        assert_eq!(bench.reads, 0);
        let said = bench.pass(Duration::from_millis(1));
        assert!(said.len() == 1 && said[0].1.contains("no workers"), "{said:?}");
        assert_eq!(bench.pass(MAX_PAUSE * 10), []);
        bench.contenders.clear();
        bench.says(Level::Warn, "no master is running");
        bench.contenders = vec!["_c_x-latch-0000000002".to_string()];
        bench.status = Some(status(Vec::new(), EPOCH - 1));
        bench.says(Level::Warn, "no master leads yet");
        bench.status = None;
        assert_eq!(bench.pass(MAX_PAUSE), []);
        bench.required = Labels::from([("gpu".to_string(), "yes".to_string())]);
        bench.status = Some(status(vec![worker(None, false), worker(Some("no"), false)], EPOCH));
        bench.says(Level::Warn, "gpu=yes");
        bench.status = Some(status(vec![worker(None, false), worker(Some("yes"), true)], EPOCH));
        bench.says(Level::Warn, "take no more tasks");
        bench.status = Some(status(vec![worker(Some("yes"), false)], EPOCH));
        bench.says(Level::Warn, "at work");
    }

    #[test]
    fn a_task_that_backs_off_says_so_first() {
        let mut bench = Bench::new();
        bench.status = Some(status(vec![worker(None, false)], EPOCH));
        let mut task = Task::new(Payload::Shell("false".into()), Options::default());
        task.next_attempt(None, "it failed");
        task.delay_ms = Some(600_000);
        bench.notice.on_task(&Task::new(Payload::Shell("false".into()), Options::default()), 1);
        bench.says(Level::Notice, "at work");
        bench.notice.on_task(&task, 2);
        let said = bench.pass(MAX_PAUSE);
        let [(Level::Notice, text)] = said.as_slice() else { panic!("{said:?}") };
        assert!(
            text.starts_with("waiting for it: attempt 2 waits for about ") && text.ends_with(" has failed"),
            "{text}"
        );
        bench.notice.on_task(&task, 2);
        assert_eq!(bench.pass(MAX_PAUSE), [], "the same once more is no news");
        task.delay_ms = None;
        bench.notice.on_task(&task, 3);
        assert_eq!(bench.pass(MAX_PAUSE), [], "that it goes on is no news");
    }

    #[test]
    fn recovery_is_logged_once_and_at_a_low_level() {
        let mut bench = Bench::new();
        bench.status = Some(status(vec![worker(None, false)], EPOCH));
        bench.says(Level::Notice, "at work");
        bench.notice.on_progress();
        assert_eq!(bench.pass(MAX_PAUSE), []);
        bench.status = Some(status(Vec::new(), EPOCH));
        bench.says(Level::Warn, "no workers");
        // It got on, so that is over, and it is news if it is so again.
        bench.notice.on_progress();
        bench.says(Level::Warn, "no workers");
    }

    #[test]
    fn a_long_wait_asks_rarely_and_no_wait_never_asks() {
        let mut bench = Bench::new();
        drop(bench.pass(Duration::from_secs(3_600)));
        assert!((120..=210).contains(&bench.reads), "{} reads", bench.reads);
        for _ in 0..1_000 {
            bench.notice.on_progress();
            drop(bench.pass(QUIET - Duration::from_millis(1)));
        }
        assert!(bench.reads <= 210, "it gets on");
        let mut out: Actions<()> = Actions::default();
        bench.notice.keep(bench.now, false, &mut out);
        assert!(out.is_empty() && bench.notice.next_wake().is_none());
    }
}
