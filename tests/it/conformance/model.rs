//! The model's side: plays steps on the simulator's ensemble one by one, and draws scripts as it goes.

use std::time::Duration;

use zkmw::machine::{Call, ChangeKind, CreateMode, Instant, Prng, Refusal, Reply, WatchMode};

use super::ensemble::{Ensemble, Output, SessionId};
use super::script::{Script, Seen, Step};

/// Steps of a drawn script, besides those that read events.
const STEPS: u64 = 50;

/// So many scripts, on average, hold one with a cut: it takes as long as a session does to expire.
const CUT_EVERY: u64 = 10;

/// The session timeout.
const T: Duration = Duration::from_secs(4);

/// The ensemble's clock at our zero.
const EPOCH_MS: i64 = 1_000_000;

/// The ensemble in memory, and the script until now.
pub struct Model {
    ensemble: Ensemble,
    now: Instant,
    sessions: Vec<SessionId>,
    changes: Vec<Vec<(String, ChangeKind)>>,
    script: Script,
    /// How many markers, witnesses and barriers there were.
    count: u64,
    /// The present version of each session's barrier, and whether others wrote since it was last set.
    barriers: Vec<(i32, bool)>,
}

impl Model {
    pub fn new(sessions: usize) -> Model {
        let mut ensemble = Ensemble::new(3, EPOCH_MS);
        let sessions: Vec<_> =
            (0..sessions).map(|at| ensemble.connect(at % 3, T).expect("a quorum")).collect();
        Model {
            changes: vec![Vec::new(); sessions.len()],
            barriers: vec![(0, false); sessions.len()],
            now: Instant::default(),
            script: Script { name: String::new(), steps: Vec::new(), seen: Vec::new() },
            count: 0,
            ensemble,
            sessions,
        }
    }

    /// Plays a written script.
    pub fn record(mut self, name: &str, steps: Vec<Step>) -> Script {
        self.script.name = name.to_owned();
        for step in steps {
            self.step(step);
        }
        self.script
    }

    /// Draws a script. If its sessions are `spread` over the servers, each writes before it reads what others wrote.
    pub fn draw(mut self, seed: u64, spread: bool) -> Script {
        self.script.name = format!("ZKMW_SEED={seed}");
        let mut dice = Dice { prng: Prng::new(seed), root: format!("/c{seed}"), spread };
        let make = |path: String| Call::Create { path, data: Vec::new(), mode: CreateMode::Persistent };
        self.call(0, make(dice.root.clone()));
        self.call(0, make(dice.own_dir()));
        for by in 0..self.sessions.len() {
            self.call(by, make(format!("{}/barrier-{by}", dice.own_dir())));
            self.witness(by, &dice);
        }
        for _ in 0..STEPS {
            let by = dice.below(self.sessions.len() as u64) as usize;
            match dice.below(100) {
                0..2 => self.replace(by, &dice, false),
                2..10 => self.read_changes(by, &dice, true),
                _ => {
                    let call = dice.call(&self.ensemble);
                    self.barrier(by, &call, &dice);
                    self.call(by, call);
                }
            }
        }
        if seed.is_multiple_of(CUT_EVERY) {
            let by = dice.below(self.sessions.len() as u64) as usize;
            self.replace(by, &dice, true);
        }
        self.finish(&dice);
        self.script
    }

    /// All events, and the whole tree.
    fn finish(&mut self, dice: &Dice) {
        self.read_all_changes(dice, true);
        self.barrier(0, &Call::Children { path: "/".into() }, dice);
        let below = format!("{}/", dice.root);
        let inside = |path: &String| *path == dice.root || path.starts_with(&below);
        let paths: Vec<String> = self.ensemble.tree().keys().filter(|path| inside(path)).cloned().collect();
        for path in paths {
            let leaf = self.ensemble.tree()[&path].children().is_empty();
            self.call(0, Call::Get { path: path.clone(), watch: false });
            if !leaf {
                self.call(0, Call::Children { path });
            }
        }
        self.sweep(dice);
    }

    /// The servers' sessions go on to the next script; they own nothing of this one then.
    fn sweep(&mut self, dice: &Dice) {
        let nodes = self.ensemble.tree().iter();
        let own = nodes.filter(|(_, node)| node.stat.ephemeral_owner != 0);
        for path in own.map(|(path, _)| path.clone()).collect::<Vec<_>>() {
            self.call(0, Call::Delete { path, version: None });
        }
        self.read_all_changes(dice, true);
    }

    fn call(&mut self, by: usize, call: Call) {
        self.step(Step::Call { by, call });
    }

    fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn witness(&mut self, by: usize, dice: &Dice) -> String {
        let path = format!("{}/witness-{by}-{}", dice.own_dir(), self.number());
        self.call(by, Call::Create { path: path.clone(), data: Vec::new(), mode: CreateMode::Ephemeral });
        path
    }

    fn read_changes(&mut self, by: usize, dice: &Dice, ordered: bool) {
        let marker = format!("{}/marker-{}", dice.own_dir(), self.number());
        self.step(Step::ReadChanges { by, marker, ordered });
    }

    fn read_all_changes(&mut self, dice: &Dice, ordered: bool) {
        for by in 0..self.sessions.len() {
            self.read_changes(by, dice, ordered);
        }
    }

    fn replace(&mut self, by: usize, dice: &Dice, cut: bool) {
        let witness = self.witness(by, dice);
        self.read_all_changes(dice, true);
        if cut {
            self.step(Step::Cut { by });
            self.call(by, Call::Get { path: witness.clone(), watch: true });
            self.step(Step::Expire { by, witness });
        } else {
            self.step(Step::Reopen { by });
        }
        self.read_all_changes(dice, false);
        self.witness(by, dice);
    }

    /// A write of the session's own, after which its server knows what others wrote before.
    fn barrier(&mut self, by: usize, call: &Call, dice: &Dice) {
        if dice.spread && !call.is_write() && self.barriers[by].1 {
            let path = format!("{}/barrier-{by}", dice.own_dir());
            let version = self.barriers[by].0;
            self.call(by, Call::Set { path, data: Vec::new(), version });
            self.barriers[by] = (version + 1, false);
        }
    }

    fn step(&mut self, step: Step) {
        let seen = match &step {
            Step::Call { by, call } => Seen::Reply(self.answer(*by, call.clone())),
            Step::ReadChanges { by, marker, ordered } => {
                self.mark(*by, marker);
                let mut changes = std::mem::take(&mut self.changes[*by]);
                let last = changes.pop().expect("the marker");
                assert_eq!(last, (marker.clone(), ChangeKind::Created));
                if !ordered {
                    changes.sort_by_key(|(path, kind)| (path.clone(), *kind as u8));
                }
                Seen::Changes(changes)
            }
            Step::Reopen { by } => {
                self.ensemble.close(self.sessions[*by]);
                self.settle();
                self.ensemble.disconnect(self.sessions[*by]);
                self.connect(*by);
                Seen::Nothing
            }
            Step::Cut { by } => {
                self.ensemble.disconnect(self.sessions[*by]);
                self.connect(*by);
                Seen::Nothing
            }
            Step::Expire { .. } => {
                self.expire();
                Seen::Nothing
            }
        };
        self.script.steps.push(step);
        self.script.seen.push(seen);
    }

    fn mark(&mut self, by: usize, marker: &str) {
        let path = marker.to_owned();
        assert_eq!(self.answer(by, Call::Exists { path: path.clone(), watch: true }), Err(Refusal::NoNode));
        let made = self.answer(by, Call::Create { path, data: Vec::new(), mode: CreateMode::Persistent });
        assert!(made.is_ok(), "{made:?}");
    }

    fn connect(&mut self, by: usize) {
        self.changes[by].clear();
        self.sessions[by] = self.ensemble.connect(by % 3, T).expect("a quorum");
        self.settle();
    }

    /// Time passes for all sessions; the connected ones send heartbeats.
    fn expire(&mut self) {
        for _ in 0..3 {
            self.now = self.now + T / 2;
            self.sessions.iter().for_each(|session| self.ensemble.heard(*session));
            self.ensemble.set_time(self.now);
        }
        self.settle();
    }

    fn answer(&mut self, by: usize, call: Call) -> Result<Reply, Refusal> {
        self.now = self.now + Duration::from_millis(2);
        self.ensemble.set_time(self.now);
        self.sessions.iter().for_each(|session| self.ensemble.heard(*session));
        if call.is_write() {
            self.barriers.iter_mut().enumerate().for_each(|(at, barrier)| barrier.1 |= at != by);
        }
        let asked = self.ensemble.request(self.sessions[by], call);
        let mut replies = self.settle();
        let Some((Output::Reply { request, result }, None)) = replies.pop().map(|last| (last, replies.pop()))
        else {
            panic!("not one reply");
        };
        assert_eq!(request, asked);
        result
    }

    /// Everything is forwarded and applied everywhere; the replies.
    fn settle(&mut self) -> Vec<Output> {
        for server in 0..3 {
            while self.ensemble.forward(server) {}
        }
        for server in 0..3 {
            while self.ensemble.apply_next(server) {}
        }
        let mut replies = Vec::new();
        for (session, changes) in self.sessions.iter().zip(&mut self.changes) {
            while let Some(output) = self.ensemble.take(*session) {
                match output {
                    Output::Changed { path, kind } => changes.push((path, kind)),
                    reply => replies.push(reply),
                }
            }
        }
        replies
    }
}

/// The random choices of a script.
struct Dice {
    prng: Prng,
    root: String,
    spread: bool,
}

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.prng.next_u64() % end
    }

    /// The directory of markers, witnesses and barriers. Nothing in it is watched but markers.
    fn own_dir(&self) -> String {
        format!("{}-own", self.root)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = self.below(from.len() as u64);
        &from[at as usize]
    }

    /// A znode of the script that exists, in so many of a hundred draws; else a name below one, which may exist too.
    fn path(&mut self, ensemble: &Ensemble, existing_percent: u64) -> String {
        let below = format!("{}/", self.root);
        let inside: Vec<&String> = ensemble.tree().keys().filter(|path| path.starts_with(&below)).collect();
        if !inside.is_empty() && self.below(100) < existing_percent {
            return (*self.pick(&inside)).clone();
        }
        let parent = match inside.is_empty() || self.below(3) == 0 {
            true => self.root.clone(),
            false => (*self.pick(&inside)).clone(),
        };
        // Not too deep, so that the same path is met again.
        let parent = if parent.matches('/').count() > 3 { self.root.clone() } else { parent };
        format!("{parent}/{}", self.pick(&["a", "b", "c", "latch-", "absent/a"]))
    }

    fn call(&mut self, ensemble: &Ensemble) -> Call {
        let data = vec![b'x'; self.below(5) as usize];
        let watch = self.below(2) == 0;
        match self.below(100) {
            0..22 => {
                let path = self.path(ensemble, 15);
                Call::Create { path, data, mode: CreateMode::Persistent }
            }
            22..32 => Call::Create { path: self.path(ensemble, 15), data, mode: CreateMode::Ephemeral },
            32..42 => {
                let path = format!("{}/latch-", self.path(ensemble, 85));
                let path = if self.below(2) == 0 { format!("{}/latch-", self.root) } else { path };
                Call::Create { path, data, mode: CreateMode::EphemeralSequential }
            }
            42..54 => {
                let path = self.path(ensemble, 85);
                let version = self.version(ensemble, &path);
                Call::Set { path, data, version }
            }
            54..68 => {
                let path = self.path(ensemble, 85);
                let version = (self.below(2) == 0).then(|| self.version(ensemble, &path));
                Call::Delete { path, version }
            }
            68..76 => Call::Get { path: self.path(ensemble, 80), watch },
            76..86 => Call::Exists { path: self.path(ensemble, 50), watch },
            86 => Call::Acl { path: self.path(ensemble, 80) },
            87..92 => Call::Children { path: self.path(ensemble, 80) },
            _ => {
                let path = if self.below(4) == 0 { self.root.clone() } else { self.path(ensemble, 60) };
                // One path, one kind of watch: no role sets both, and a server keeps only the later.
                let mode = match path == self.root || path.ends_with('a') {
                    true => WatchMode::Tree,
                    false => WatchMode::Node,
                };
                Call::Watch { path, mode }
            }
        }
    }

    /// The present version, mostly.
    fn version(&mut self, ensemble: &Ensemble, path: &str) -> i32 {
        let present = ensemble.tree().get(path).map_or(0, |node| node.stat.version);
        if self.below(4) == 0 { present + 1 } else { present }
    }
}
