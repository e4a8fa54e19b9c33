//! Reports: what a worker has to write into the tasks that it ran, until it is certain what became of it.
//!
//! Every report is a compare-and-set with the version that was read before the attempt started. Whenever that
//! fails, or its reply is lost, the task is read back and decided upon again: the same attempt without an outcome
//! means that the report is still owed; anything else means that it is settled, by us or by somebody else.
//!
//! A write that is too large for the servers is shortened until they take it. What they refuse for a reason that may
//! pass (a quota, too many requests) is owed until it does: it is tried again after a growing pause, and after a
//! while with less output.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::work::Work;
use crate::contract::chunk::bound_outputs;
use crate::contract::share::{Ending, Release, Rest};
use crate::contract::task::{Outcome, State, Task};
use crate::contract::worker::EntryId;
use crate::contract::{Incarnation, Layout, MAX_DATA_BYTES};
use crate::machine::{
    Actions, Call, CallId, CallResult, Calls, Instant, Level, Refusal, Reply, Routed, Stat,
};

/// How often a report is tried again because the task changed in between.
const MAX_TRIES: u32 = 20;

/// The pause after a refusal that may pass; it doubles with each that follows without a success.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause: so late, at most, is an outcome once the quota was raised.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// Reports that are tried again together.
const TRIED_TOGETHER: usize = 64;

/// What is refused for so long is tried with half the output each time. A quota may be large enough for the rest:
/// then at least its end is known.
const WHOLE_FOR: Duration = Duration::from_secs(60);

/// What is to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Want {
    /// How it ended. This counts even if somebody wished to cancel the task meanwhile: it is what happened.
    Outcome(Box<Outcome>),
    /// This, if the task was indeed cancelled; otherwise nothing.
    Cancelled(Box<Outcome>),
    /// There is to be another attempt: this one was cut short, or it failed and counts.
    Again {
        /// StopReason, and when.
        release: Release,
        /// Whether it counts.
        is_charged: bool,
    },
    /// Of a share of a chunk nothing runs here any more.
    Share(Box<Ending>),
}

impl Want {
    /// Whether the task has to be read to know what is to be written.
    fn depends(&self) -> bool {
        match self {
            Want::Cancelled(_) => true,
            Want::Share(ending) => ending.rest == Some(Rest::Cancel),
            Want::Outcome(_) | Want::Again { .. } => false,
        }
    }

    /// Of how many commands it says how they ended.
    fn commands(&self) -> usize {
        match self {
            Want::Share(ending) => ending.results.len() + ending.again.len(),
            Want::Outcome(_) | Want::Cancelled(_) | Want::Again { .. } => 1,
        }
    }
}

/// What became of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The task has it.
    Written,
    /// The task is somebody else's by now, or gone; or there was nothing to write.
    Stale,
    /// It can never be written.
    Impossible(String),
}

/// What a reply to a report's call led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The report is still owed.
    Pending,
    /// The report on this entry is owed no longer.
    Settled(EntryId, Settled),
}

#[derive(Debug)]
struct Report {
    by: Incarnation,
    /// The attempt, or the number of the share.
    attempt: u32,
    want: Want,
    tries: u32,
    /// Most bytes that the task may have with it: what has more was refused.
    limit: usize,
    /// Bytes that the last write had.
    tried: usize,
    /// Since when it has been refused for a reason that may pass.
    refused: Option<Instant>,
}

#[derive(Debug)]
enum Purpose {
    Read(EntryId),
    Write(EntryId),
}

/// The reports of a worker.
#[derive(Debug)]
pub struct Reports {
    layout: Layout,
    owed: BTreeMap<EntryId, Report>,
    connected: bool,
    calls: Calls<Purpose>,
    /// Those that were refused for a reason that may pass, and are not being tried.
    refused: VecDeque<EntryId>,
    pause: Duration,
    try_at: Option<Instant>,
    /// The refusals were logged, and their end was not.
    refusal_logged: bool,
}

impl Reports {
    /// No reports.
    pub fn new(layout: &Layout) -> Reports {
        Reports {
            layout: layout.clone(),
            owed: BTreeMap::new(),
            connected: false,
            calls: Calls::default(),
            refused: VecDeque::new(),
            pause: Duration::ZERO,
            try_at: None,
            refusal_logged: false,
        }
    }

    /// Whether anything is owed.
    pub fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    /// How many are owed.
    pub fn len(&self) -> usize {
        self.owed.len()
    }

    /// Of how many commands they say how they ended.
    pub fn commands(&self) -> usize {
        self.owed.values().map(|report| report.want.commands()).sum()
    }

    /// Takes on a report on a task as it was last known, if that is certain.
    pub fn add<R>(
        &mut self,
        id: &EntryId,
        by: &Incarnation,
        known: Option<&Work>,
        want: Want,
        out: &mut Actions<R>,
    ) {
        let (by, attempt) = (by.clone(), id.attempt);
        let report = Report { by, attempt, want, tries: 0, limit: MAX_DATA_BYTES, tried: 0, refused: None };
        let known = known.filter(|_| !report.want.depends());
        let written = known.map(|work| {
            let mut task = work.task.clone();
            apply(&report, &mut task, work.mtime_ms);
            (task, work.version)
        });
        self.owed.insert(id.clone(), report);
        if !self.connected {
            return;
        }
        match written {
            Some((mut task, version)) => self.write(id, &mut task, version, out),
            None => self.read(id, out),
        }
    }

    /// A session is up: whatever is owed is read back.
    pub fn on_connected<R>(&mut self, out: &mut Actions<R>) {
        self.calls.clear();
        self.connected = true;
        self.refused.clear();
        let tasks: Vec<_> = self.owed.keys().cloned().collect();
        for task in tasks {
            self.read(&task, out);
        }
    }

    /// The session is gone; what was in flight is in doubt.
    pub fn on_lost(&mut self) {
        self.calls.clear();
        self.connected = false;
    }

    /// Takes in a reply.
    pub fn on_reply<R>(
        &mut self,
        id: CallId,
        result: &CallResult,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Routed<Step> {
        self.calls.route(id, result).map(|(purpose, answer)| {
            let Some(answer) = answer else { return Step::Pending };
            let (Purpose::Read(task) | Purpose::Write(task)) = &purpose;
            let task = task.clone();
            match self.on_answer(&purpose, answer, now, out) {
                Some(settled) => self.settle(task, settled, now),
                None => Step::Pending,
            }
        })
    }

    /// What became of the report; `None` if it is still owed.
    fn on_answer<R>(
        &mut self,
        purpose: &Purpose,
        answer: Result<&Reply, Refusal>,
        now: Instant,
        out: &mut Actions<R>,
    ) -> Option<Settled> {
        match (purpose, answer) {
            (Purpose::Read(task), Ok(Reply::Data { data, stat })) => self.on_read(task, data, stat, out),
            (Purpose::Write(task), Ok(Reply::Stat(_))) => {
                self.on_written(task, out);
                Some(Settled::Written)
            }
            (Purpose::Write(task), Err(Refusal::TooLarge)) => self.on_too_large(task, out),
            (Purpose::Read(task), Err(refusal @ Refusal::Other(_))) => {
                self.on_refused(task, refusal, now, out);
                None
            }
            (Purpose::Write(task), Err(refusal @ Refusal::Other(_))) => {
                self.on_refused(task, refusal, now, out);
                self.shorten_in_time(task, now);
                None
            }
            (Purpose::Read(_) | Purpose::Write(_), Err(Refusal::NoNode)) => Some(Settled::Stale),
            (Purpose::Write(task), Err(Refusal::BadVersion)) => self.on_changed_meanwhile(task, out),
            (Purpose::Read(_) | Purpose::Write(_), Err(refusal)) => {
                Some(Settled::Impossible(refusal.to_string()))
            }
            (Purpose::Read(_) | Purpose::Write(_), Ok(_)) => {
                Some(Settled::Impossible("an answer that is none".into()))
            }
        }
    }

    /// The task was changed between the read and the write: it is read again, unless that happens too often.
    fn on_changed_meanwhile<R>(&mut self, task: &EntryId, out: &mut Actions<R>) -> Option<Settled> {
        let tries = self.owed.get_mut(task).map_or(u32::MAX, |report| {
            // Others write their shares of a chunk into it all the time.
            report.tries += u32::from(!matches!(report.want, Want::Share(_)));
            report.tries
        });
        if tries > MAX_TRIES {
            return Some(Settled::Impossible("somebody else keeps changing the task".into()));
        }
        self.read(task, out);
        None
    }

    fn settle(&mut self, task: EntryId, settled: Settled, now: Instant) -> Step {
        let was_refused = self.owed.remove(&task).is_some_and(|report| report.refused.is_some());
        if was_refused && !self.refused.is_empty() {
            // So may the others be, of which only some are tried at a time.
            self.try_at = Some(now);
        }
        Step::Settled(task, settled)
    }

    /// When [`Reports::wake`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        self.try_at.filter(|_| self.connected && !self.refused.is_empty())
    }

    /// Tries again what was refused, when its time has come.
    pub fn wake<R>(&mut self, now: Instant, out: &mut Actions<R>) {
        if self.next_wake().is_some_and(|at| at <= now) {
            self.try_at = None;
            for task in self.refused.drain(..self.refused.len().min(TRIED_TOGETHER)).collect::<Vec<_>>() {
                self.read(&task, out);
            }
        }
    }

    /// One was written: what was refused is worth another try soon.
    fn on_written<R>(&mut self, task: &EntryId, out: &mut Actions<R>) {
        self.pause = Duration::ZERO;
        let is_refused = |(other, report): (&EntryId, &Report)| other != task && report.refused.is_some();
        if self.refusal_logged && !self.owed.iter().any(is_refused) {
            self.refusal_logged = false;
            out.log(Level::Info, "the ensemble takes all outcomes again");
        }
    }

    /// The servers take no request as large as that: the task is read, and written with less output. Asking costs them
    /// nothing.
    fn on_too_large<R>(&mut self, id: &EntryId, out: &mut Actions<R>) -> Option<Settled> {
        let report = self.owed.get_mut(id)?;
        if report.tried > report.limit {
            let why = format!(
                "the servers take no {} bytes (jute.maxbuffer), and it cannot be shortened",
                report.tried
            );
            return Some(Settled::Impossible(why));
        }
        if report.limit == MAX_DATA_BYTES {
            let (path, bytes) = (self.layout.task(&id.task), report.tried);
            let why = "the servers take no request as large (jute.maxbuffer)";
            out.log(Level::Warn, format!("{path}: {why}: {bytes} bytes; its output is cut"));
        }
        report.limit = report.tried / 4 * 3;
        self.read(id, out);
        None
    }

    fn on_refused<R>(&mut self, id: &EntryId, refusal: Refusal, now: Instant, out: &mut Actions<R>) {
        let Some(report) = self.owed.get_mut(id) else { return };
        report.refused.get_or_insert(now);
        self.refused.push_back(id.clone());
        if !std::mem::replace(&mut self.refusal_logged, true) {
            let path = self.layout.task(&id.task);
            out.log(
                Level::Error,
                format!(
                    "{path}: {refusal} (a quota that is exceeded, too many requests): its outcome is kept here, and \
                     written when the ensemble takes it. Check the quotas above it; nothing is lost \
                     while this worker lives"
                ),
            );
        }
        if self.try_at.is_none() {
            self.pause = (self.pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
            self.try_at = Some(now + self.pause);
        }
    }

    /// A write was refused: if that goes on for long, the next has less output.
    fn shorten_in_time(&mut self, id: &EntryId, now: Instant) {
        if let Some(report) = self.owed.get_mut(id)
            && report.refused.is_some_and(|since| since + WHOLE_FOR <= now)
        {
            report.limit = report.limit.min(report.tried) / 2;
        }
    }

    fn read<R>(&mut self, task: &EntryId, out: &mut Actions<R>) {
        let call = Call::Get { path: self.layout.task(&task.task), watch: false };
        self.calls.issue(out, call, Purpose::Read(task.clone()));
    }

    fn write<R>(&mut self, id: &EntryId, task: &mut Task, version: i32, out: &mut Actions<R>) {
        let limit = self.owed.get(id).map_or(MAX_DATA_BYTES, |report| report.limit);
        let data = task.encode_within(limit);
        if let Some(report) = self.owed.get_mut(id) {
            report.tried = data.len();
        }
        self.calls.issue(
            out,
            Call::Set { path: self.layout.task(&id.task), data, version },
            Purpose::Write(id.clone()),
        );
    }

    fn on_read<R>(
        &mut self,
        id: &EntryId,
        data: &[u8],
        stat: &Stat,
        out: &mut Actions<R>,
    ) -> Option<Settled> {
        let report = self.owed.get(id)?;
        let Ok(mut task) = Task::decode(data) else { return Some(Settled::Stale) };
        if let Want::Share(_) = report.want {
            // A number that is gone never returns: whatever was owed is written, or others have the lines.
            if task.share(report.attempt).is_none() || !apply(report, &mut task, stat.mtime_ms) {
                return Some(Settled::Stale);
            }
            self.write(id, &mut task, stat.version, out);
            return None;
        }
        if let Some(outcome) = &task.outcome {
            let ours = outcome.attempt == report.attempt && outcome.worker.as_ref() == Some(&report.by);
            return Some(if ours { Settled::Written } else { Settled::Stale });
        }
        if task.attempt != report.attempt {
            let ours = task.released_by.as_ref() == Some(&report.by) && task.attempt == report.attempt + 1;
            return Some(if ours { Settled::Written } else { Settled::Stale });
        }
        if !apply(report, &mut task, stat.mtime_ms) {
            return Some(Settled::Stale);
        }
        self.write(id, &mut task, stat.version, out);
        None
    }
}

/// Makes the report on a task that is at its attempt and has no outcome, and was written at `mtime_ms`; false if
/// there is nothing to write.
fn apply(report: &Report, task: &mut Task, mtime_ms: i64) -> bool {
    let by = &report.by;
    let unrun = |why: &str| {
        let mut outcome = Outcome::unrun(State::Cancelled, None, why, report.attempt);
        outcome.worker = Some(by.clone());
        outcome
    };
    match &report.want {
        Want::Outcome(outcome) => task.end((**outcome).clone()),
        Want::Cancelled(outcome) => {
            if !task.cancel {
                return false;
            }
            task.end((**outcome).clone());
        }
        // A task that was stopped, or failed, and was to be cancelled anyway gets no further attempt.
        Want::Again { release, .. } if task.cancel => task.end(unrun(&release.why)),
        Want::Again { release, is_charged } => {
            if release.avoid {
                task.avoid(by);
            }
            task.charged = task.charged.saturating_add(u32::from(*is_charged));
            task.next_attempt(Some(by.clone()), &release.why);
            task.released_by = Some(by.clone());
            task.delay_ms = release.delay_ms;
        }
        Want::Share(ending) => {
            let changed = task.end_share(report.attempt, ending, by, mtime_ms);
            bound_outputs(task.outcome.as_mut().map_or(&mut task.results, |outcome| &mut outcome.results));
            return changed;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::TaskId;
    use crate::contract::task::{Options, Payload};
    use crate::machine::{Action, CallError, Stat};

    struct Bench {
        reports: Reports,
        out: Actions<()>,
        id: EntryId,
        by: Incarnation,
        task: Task,
    }

    impl Bench {
        fn new(want: Want) -> Bench {
            let mut bench = Bench {
                reports: Reports::new(&Layout::new("/z")),
                out: Actions::default(),
                id: EntryId::new(&TaskId::new("_00", "t"), 1),
                by: Incarnation::new("w", 7),
                task: Task::new(Payload::Shell("x".into()), Options::default()),
            };
            bench.reports.on_connected(&mut bench.out);
            let work = Work { task: bench.task.clone(), version: 5, mzxid: 1, mtime_ms: 0 };
            bench.reports.add(&bench.id, &bench.by, Some(&work), want, &mut bench.out);
            bench
        }

        fn call(&mut self) -> (CallId, Call) {
            let calls: Vec<_> = self.out.drain().collect();
            match <[Action<()>; 1]>::try_from(calls).expect("one call") {
                [Action::Call { id, call }] => (id, call),
                [other] => panic!("{other:?}"),
            }
        }

        fn answer(&mut self, id: CallId, result: CallResult) -> Option<Settled> {
            match self.reports.on_reply(id, &result, Instant::default(), &mut self.out) {
                Routed::Mine(Step::Settled(_, settled)) => Some(settled),
                Routed::Mine(Step::Pending) => None,
                Routed::NotMine => panic!("the reply is awaited"),
            }
        }

        /// Loses the reply to the write under way, and reads this back afterwards.
        fn read_back(&mut self, task: &Task) -> Option<Settled> {
            let (write, _) = self.call();
            assert_eq!(self.answer(write, Err(CallError::MaybeApplied)), None);
            self.reports.on_lost();
            self.reports.on_connected(&mut self.out);
            let (read, call) = self.call();
            assert!(matches!(call, Call::Get { .. }));
            self.answer(
                read,
                Ok(Reply::Data { data: task.encode(), stat: Stat { version: 9, ..Stat::default() } }),
            )
        }
    }

    fn done(by: &Incarnation) -> Outcome {
        let mut outcome = Outcome::unrun(State::Done, None, "", 1);
        outcome.worker = Some(by.clone());
        outcome
    }

    fn outcome() -> Want {
        Want::Outcome(Box::new(done(&Incarnation::new("w", 7))))
    }

    #[test]
    fn an_outcome_is_set_with_the_version_read_before_the_start() {
        let mut bench = Bench::new(outcome());
        let (id, call) = bench.call();
        assert!(matches!(call, Call::Set { version: 5, .. }));
        assert_eq!(bench.answer(id, Ok(Reply::Stat(Stat::default()))), Some(Settled::Written));
        assert!(bench.reports.is_empty());
    }

    #[test]
    fn a_doubtful_outcome_is_read_and_written_again_only_if_owed() {
        let mut bench = Bench::new(outcome());
        let task = bench.task.clone();
        assert_eq!(bench.read_back(&task), None);
        assert!(matches!(bench.call().1, Call::Set { version: 9, .. }));

        let mut bench = Bench::new(outcome());
        let mut task = bench.task.clone();
        task.outcome = Some(done(&bench.by.clone()));
        assert_eq!(bench.read_back(&task), Some(Settled::Written));

        let mut bench = Bench::new(outcome());
        let mut task = bench.task.clone();
        task.next_attempt(None, "its worker died");
        assert_eq!(bench.read_back(&task), Some(Settled::Stale), "a zombie's result is refused");
    }

    #[test]
    fn an_outcome_is_kept_although_a_cancel_was_requested() {
        let mut bench = Bench::new(outcome());
        let mut task = bench.task.clone();
        task.cancel = true;
        assert_eq!(bench.read_back(&task), None);
        let (_, Call::Set { data, .. }) = bench.call() else { panic!("a write") };
        assert_eq!(Task::decode(&data).expect("task").outcome.map(|o| o.state), Some(State::Done));
    }

    #[test]
    fn cancelled_is_written_only_if_it_was_wished() {
        for cancel in [true, false] {
            let mut bench = Bench::new(Want::Cancelled(Box::new(done(&Incarnation::new("w", 7)))));
            let (read, call) = bench.call();
            assert!(matches!(call, Call::Get { .. }));
            let mut task = bench.task.clone();
            task.cancel = cancel;
            let settled = bench.answer(read, Ok(Reply::Data { data: task.encode(), stat: Stat::default() }));
            assert_eq!(settled, if cancel { None } else { Some(Settled::Stale) });
        }
    }

    #[test]
    fn a_release_is_not_charged_and_a_retry_is() {
        for (is_charged, charged, delay_ms) in [(false, 0, None), (true, 1, Some(70))] {
            let release = Release { delay_ms, ..Release::because("drained, or exit 1") };
            let mut bench = Bench::new(Want::Again { release, is_charged });
            let (_, Call::Set { data, .. }) = bench.call() else { panic!("a write") };
            let task = Task::decode(&data).expect("task");
            assert_eq!((task.attempt, task.charged, task.delay_ms), (2, charged, delay_ms));
            assert_eq!(task.released_by, Some(bench.by));
        }
    }

    #[test]
    fn what_is_refused_for_ever_is_said() {
        let mut bench = Bench::new(outcome());
        let (id, _) = bench.call();
        let refused = bench.answer(id, Err(CallError::Refused(Refusal::NoAuth)));
        assert!(matches!(refused, Some(Settled::Impossible(why)) if why.contains("permitted")));
    }
}
