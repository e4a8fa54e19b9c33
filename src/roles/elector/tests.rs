//! The elector by itself: every state meets every loss, stop and late reply.

mod candidacy;
mod explore;
mod reconnecting;
mod running;
mod stopping;

use std::time::Duration;

use super::*;
use crate::machine::{
    Call, CallError, CallId, CallResult, Captured, ChangeKind, CreateMode, Refusal, Reply, RunReport, Stat,
    turn,
};

const T: Duration = Duration::from_secs(12);
/// How long a lease holds from the sending of its last write, with this T.
const LEASE_MS: u64 = 6_000;
const GRACE: Duration = Duration::from_secs(3);
const OTHER: &str = "_c_other-latch-0000000000";

fn at_ms(ms: u64) -> Instant {
    Instant::default() + Duration::from_millis(ms)
}

fn report(ended: Ended) -> RunReport {
    let (stdout, stderr) = (Captured::default(), Captured::default());
    RunReport { ended, detail: None, stdout, stderr, started_ms: 0, ended_ms: 0, signalled: false }
}

/// An elector and the ensemble as far as it sees it: calls wait until they are answered.
struct Bench {
    role: Elector,
    out: Actions<Report>,
    now_ms: u64,
    calls: Vec<(CallId, Call)>,
    /// Other contenders.
    others: Vec<&'static str>,
    /// How many contenders it has made so far.
    created: u64,
    /// Names and czxids of its contenders; the last is the present one.
    contenders: Vec<(String, i64)>,
    /// What was done, in order, in words.
    did: Vec<String>,
    runs: Vec<(RunId, RunSpec)>,
    /// The last status for the service manager, and the lease.
    status: String,
    leased_until: Option<Instant>,
}

impl Bench {
    fn new(change: impl FnOnce(&mut Params)) -> Bench {
        let mut params = Params {
            dir: "/z/elections/e".into(),
            layout: Layout::new("/z"),
            id: "me".into(),
            uuid: "u".into(),
            command: Some(vec!["job".into(), "-x".into()]),
            env: vec![("A".into(), "b".into())],
            grace: GRACE,
            once: false,
        };
        change(&mut params);
        Bench {
            role: Elector::new(params),
            out: Actions::default(),
            now_ms: 1_000,
            calls: Vec::new(),
            others: Vec::new(),
            created: 0,
            contenders: Vec::new(),
            did: Vec::new(),
            runs: Vec::new(),
            status: String::new(),
            leased_until: None,
        }
    }

    fn step(&mut self, event: Event) {
        turn(&mut self.role, at_ms(self.now_ms), event, &mut self.out);
        for action in self.out.drain() {
            match action {
                Action::Call { id, call } => self.calls.push((id, call)),
                Action::Run { run, spec } => {
                    self.did.push("run".into());
                    self.runs.push((run, spec));
                }
                Action::Signal { run, signal } => {
                    assert_eq!(Some(run), self.runs.last().map(|(run, _)| *run), "an old run is dead");
                    self.did.push(format!("{signal:?}"));
                }
                Action::Report(report) => self.did.push(report.to_string()),
                Action::Exit(code) => self.did.push(format!("exit {code}")),
                Action::Status(status) => self.status = status,
                Action::Lease(until) => self.leased_until = Some(until),
                Action::Log(..) => {}
                Action::ReadLines(_) => panic!("an elector reads no batch"),
            }
        }
    }

    fn own(&self) -> String {
        self.contenders.last().map(|(name, _)| name.clone()).unwrap_or_default()
    }

    /// The czxid of its newest contender.
    fn epoch(&self) -> i64 {
        100 + i64::try_from(self.created).expect("few")
    }

    /// The names of its contenders, shortened.
    fn contenders(&self) -> Vec<&str> {
        self.contenders.iter().map(|(name, _)| name.trim_start_matches("_c_u-")).collect()
    }

    /// The old session ends, and its contender goes: all but the newest if there is one of a new session.
    fn expire(&mut self, name: &str) {
        self.contenders.retain(|(contender, _)| !contender.ends_with(name));
    }

    /// What the ensemble says to a call.
    fn answer_to(&mut self, call: &Call) -> CallResult {
        let stat = |czxid| Ok(Reply::Stat(Stat { czxid, ephemeral_owner: 1, ..Stat::default() }));
        let missing = Err(CallError::Refused(Refusal::NoNode));
        match call {
            Call::Create { path, mode: CreateMode::EphemeralSequential, .. } => {
                self.created += 1;
                let path = format!("{path}{:010}", self.created);
                let name = path.trim_start_matches("/z/elections/e/").to_string();
                self.contenders.push((name, self.epoch()));
                Ok(Reply::Created { path })
            }
            Call::Create { path, .. } => Ok(Reply::Created { path: path.clone() }),
            Call::Exists { path, .. } | Call::Delete { path, .. } if path.contains("/_c_u-") => {
                let at = self.contenders.iter().position(|(name, _)| path.ends_with(name.as_str()));
                match (at, call) {
                    (None, _) => missing,
                    (Some(at), Call::Exists { .. }) => stat(self.contenders[at].1),
                    (Some(at), _) => {
                        self.contenders.remove(at);
                        Ok(Reply::Deleted)
                    }
                }
            }
            Call::Exists { .. } => stat(1),
            Call::Children { .. } => {
                let others = self.others.iter().map(|name| name.to_string());
                let own = self.contenders.iter().map(|(name, _)| name.clone());
                Ok(Reply::Children(others.chain(own).collect()))
            }
            Call::Set { version, .. } => {
                Ok(Reply::Stat(Stat { version: version + 1, ephemeral_owner: 1, ..Stat::default() }))
            }
            Call::Delete { .. } => Ok(Reply::Deleted),
            Call::Get { .. } | Call::Acl { .. } | Call::Watch { .. } => {
                panic!("an elector makes no such call: {call:?}")
            }
        }
    }

    /// Answers calls until there are none but those to be held back.
    fn answer_but(&mut self, held: fn(&Call) -> bool) {
        while let Some(at) = self.calls.iter().position(|(_, call)| !held(call)) {
            let (id, call) = self.calls.remove(at);
            let result = self.answer_to(&call);
            self.step(Event::Reply { id, result });
        }
    }

    fn answer(&mut self) {
        self.answer_but(|_| false);
    }

    fn connect(&mut self) {
        self.step(Event::Connected { timeout: T });
    }

    /// The connection breaks: what was under way is in doubt.
    fn lose(&mut self) {
        for (id, _) in std::mem::take(&mut self.calls) {
            self.step(Event::Reply { id, result: Err(CallError::MaybeApplied) });
        }
        self.calls.clear();
        self.step(Event::Lost { why: "gone".into() });
        assert!(self.calls.is_empty(), "no call without a connection");
    }

    /// Time passes; the role is woken when it wants to be, and the ensemble answers.
    fn pass(&mut self, ms: u64) {
        self.pass_with(ms, |_| false);
    }

    fn pass_with(&mut self, ms: u64, held: fn(&Call) -> bool) {
        let end_ms = self.now_ms + ms;
        let mut turns = 0;
        let mut last_ms = self.now_ms;
        while let Some(wake) = self.role.next_wake().filter(|wake| *wake <= at_ms(end_ms)) {
            let wake_ms = u64::try_from(wake.since(Instant::default()).as_millis()).expect("small");
            self.now_ms = self.now_ms.max(wake_ms);
            self.step(Event::Wake);
            self.answer_but(held);
            turns = if self.now_ms == last_ms { turns + 1 } else { 0 };
            last_ms = self.now_ms;
            assert!(turns < 10, "it spins: {:?}", self.role.state);
        }
        self.now_ms = end_ms;
    }

    fn ended(&mut self, ended: Ended) {
        let run = self.runs.last().expect("it ran").0;
        self.step(Event::Ended { run, report: report(ended) });
    }

    /// By its slot.
    fn killed(&mut self) {
        let run = self.runs.last().expect("it ran").0;
        self.step(Event::Ended { run, report: RunReport { signalled: true, ..report(Ended::Signal(9)) } });
    }

    fn deposed(&mut self) {
        let (name, _) = self.contenders.pop().expect("it contends");
        let path = format!("/z/elections/e/{name}");
        self.step(Event::Changed { path, kind: ChangeKind::Deleted });
    }

    /// What was done since the last call.
    fn did(&mut self) -> Vec<String> {
        std::mem::take(&mut self.did)
    }

    fn running(change: impl FnOnce(&mut Params)) -> Bench {
        let mut bench = Bench::new(change);
        bench.connect();
        bench.answer();
        assert_eq!(bench.did(), ["run"]);
        let run = bench.runs[0].0;
        bench.step(Event::Started { run, pid: 7 });
        bench
    }

    fn paths(&self) -> Vec<&str> {
        self.calls.iter().map(|(_, call)| call.path()).collect()
    }
}

fn is_lease_write(call: &Call) -> bool {
    call.is_write() && call.path().starts_with("/z/leases/")
}

fn is_contender_delete(call: &Call) -> bool {
    matches!(call, Call::Delete { .. })
}

fn creates_contender(call: &Call) -> bool {
    matches!(call, Call::Create { mode: CreateMode::EphemeralSequential, .. })
}
