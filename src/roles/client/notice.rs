//! Why a client waits: read and reported when nothing has happened for a while, once, and again when that has changed.
//!
//! It reads seldom, since it reads only while nothing happens, and never writes. It reports what the leader's summary
//! and the contenders show; nothing rests on that.

use std::time::Duration;

use crate::contract::contender::Contender;
use crate::contract::status::{Status, WorkerRow};
use crate::contract::{Labels, Layout};
use crate::machine::{
    Actions, Call, CallId, CallResult, Calls, Instant, Level, Refusal, Reply, Routed, if_exists,
};

/// The longest that a user waits without a word. The shell has the same patience with servers.
pub const QUIET: Duration = Duration::from_secs(3);

/// From check to check the pause doubles up to this: a thousand idle clients cost the ensemble 50 reads a second.
pub const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Why nothing happens, as far as can be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    NoMaster,
    NoLeader,
    Loading,
    NoWorker,
    Draining,
    NoLabels,
    Unreadable,
    /// Nothing is wrong: the task runs, or others have their turn.
    AtWork,
}

/// Reports why a client waits.
#[derive(Debug)]
pub struct Notice {
    layout: Layout,
    /// When to check, while something is waited for.
    next_check: Option<Instant>,
    pause: Duration,
    said: Option<Why>,
    calls: Calls<Purpose>,
}

/// The reads of a check, one after the other.
#[derive(Debug)]
enum Purpose {
    Contenders,
    /// When the first contender was created: by that it is known whether the summary is its own.
    First,
    Status {
        first: i64,
    },
}

impl Notice {
    /// For a client of this service.
    pub fn new(layout: &Layout) -> Notice {
        Notice { layout: layout.clone(), next_check: None, pause: QUIET, said: None, calls: Calls::default() }
    }

    /// Something that was waited for has happened.
    pub fn on_progress(&mut self) {
        self.calls.clear();
        (self.next_check, self.pause) = (None, QUIET);
        // The fault is over. That all is well was logged, and is no news.
        self.said = self.said.take().filter(|said| *said == Why::AtWork);
    }

    /// Checks if it is time. Something is waited for, or nothing is, or there is no connection.
    pub fn keep<R>(&mut self, now: Instant, waits: bool, out: &mut Actions<R>) {
        if !waits {
            self.calls.clear();
            self.next_check = None;
            return;
        }
        let next_check = *self.next_check.get_or_insert(now + self.pause);
        if next_check <= now && self.calls.is_empty() {
            self.pause = (self.pause * 2).min(MAX_PAUSE);
            self.next_check = Some(now + self.pause);
            self.calls.issue(out, Call::Children { path: self.layout.master() }, Purpose::Contenders);
        }
    }

    /// When the next check is due.
    pub fn next_wake(&self) -> Option<Instant> {
        self.next_check.filter(|_| self.calls.is_empty())
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
        self.calls.route(id, result).map(|(purpose, answer)| {
            if let Some(answer) = answer
                && let Some((why, reason)) = self.go_on(purpose, answer, required, out)
                && let Some(level) = self.say(why)
            {
                out.log(level, format!("waiting for {}: {reason}", awaited()));
            }
        })
    }

    /// Goes on with the check, or gives its result.
    fn go_on<R>(
        &mut self,
        purpose: Purpose,
        answer: Result<&Reply, Refusal>,
        required: &Labels,
        out: &mut Actions<R>,
    ) -> Option<(Why, String)> {
        let reply = match if_exists(answer) {
            Ok(reply) => reply,
            Err(refusal) => {
                let root = self.layout.root();
                let reason = format!("how the service below {root} is may not be read: {refusal}");
                return Some((Why::Unreadable, reason));
            }
        };
        Some(match (purpose, reply) {
            (Purpose::Contenders, Some(Reply::Children(names))) => {
                match names.iter().filter_map(|name| Contender::parse(name)).min() {
                    Some(first) => {
                        let path = format!("{}/{}", self.layout.master(), first.name);
                        self.calls.issue(out, Call::Exists { path, watch: false }, Purpose::First);
                        return None;
                    }
                    None => no_master(),
                }
            }
            (Purpose::First, Some(Reply::Stat(stat))) => {
                let call = Call::Get { path: self.layout.status(), watch: false };
                self.calls.issue(out, call, Purpose::Status { first: stat.czxid });
                return None;
            }
            (Purpose::Status { first }, Some(Reply::Data { data, .. })) => match Status::decode(data) {
                // A later leader's is as good: the contenders have changed since they were listed.
                Ok(status) if status.leader.epoch >= first => judge(&status, required),
                Ok(_) | Err(_) => no_leader(),
            },
            (Purpose::Contenders, _) => no_master(),
            (Purpose::First | Purpose::Status { .. }, _) => no_leader(),
        })
    }

    /// The level at which to report this, unless it was reported.
    fn say(&mut self, why: Why) -> Option<Level> {
        if self.said.as_ref() == Some(&why) {
            return None;
        }
        let level = match (&why, &self.said) {
            (Why::AtWork, None) => Level::Notice,
            // A fault that was logged is also logged when it is over.
            _ => Level::Warn,
        };
        self.said = Some(why);
        Some(level)
    }
}

fn no_master() -> (Why, String) {
    (Why::NoMaster, "no master is running; start one (zkmw master)".to_string())
}

fn no_leader() -> (Why, String) {
    (Why::NoLeader, "no master leads yet; see zkmw status".to_string())
}

/// What the leader's summary says about tasks that wait.
fn judge(status: &Status, required: &Labels) -> (Why, String) {
    let leader = &status.leader.id;
    if status.workers == 0 {
        let reason = format!("the leader {leader} has no workers; start one (zkmw worker)");
        return (Why::NoWorker, reason);
    }
    // Of those that are not listed nothing is known.
    let is_complete = status.worker_list.len() == status.workers as usize;
    let fits = |worker: &&WorkerRow| {
        required.iter().all(|(key, value)| worker.labels.get(key).is_some_and(|label| label == value))
    };
    let mut fitting = status.worker_list.iter().filter(fits).peekable();
    if is_complete && fitting.peek().is_none() {
        let labels: Vec<String> = required.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let labels = labels.join(", ");
        let reason = format!("none of the workers has what the task requires: {labels}; see zkmw status");
        return (Why::NoLabels, reason);
    }
    if is_complete && fitting.all(|worker| worker.draining) {
        let reason = "the workers that could run it are draining, and take no more tasks; see zkmw status";
        return (Why::Draining, reason.to_string());
    }
    if status.loading {
        return (Why::Loading, format!("the leader {leader} is still reading the tasks"));
    }
    let (slots, tasks) = (status.slots, &status.tasks);
    let (running, waiting) = (tasks.running, tasks.pending + tasks.assigned);
    let reason = format!("the service is at work ({running} tasks run on {slots} slots, {waiting} wait)");
    (Why::AtWork, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::status::{Counts, LeaderStatus};
    use crate::machine::{Action, CallError, Stat};

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
        bench.says(Level::Warn, "draining");
        bench.status = Some(status(vec![worker(Some("yes"), false)], EPOCH));
        bench.says(Level::Warn, "at work");
    }

    #[test]
    fn recovery_is_logged_once_and_at_a_low_level() {
        let mut bench = Bench::new();
        bench.status = Some(status(vec![worker(None, false)], EPOCH));
        bench.says(Level::Notice, "2 slots");
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
