//! Searches all that can happen round the shares of a small chunk: workers that take shares, start lines, write and
//! die, replies that are lost while the write is applied at once, late, or never, reads of the past, cuts, failovers,
//! lines that are run once more. In every state each open line is in one share; a line is started only where the
//! present version allows it; and from every state the chunk can end.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use zkmw::contract::Incarnation;
use zkmw::contract::chunk::CommandResult;
use zkmw::contract::share::Move;
use zkmw::contract::task::{Options, Payload, Task};
use zkmw::recipes::holder::{Holder, Seen};

/// The bounds of a search.
#[derive(Clone, Copy)]
struct Scope {
    lines: usize,
    workers: usize,
    deaths: usize,
    doubts: usize,
    reruns: usize,
    /// Numbers, and versions, beyond which nothing is cut or run once more.
    most_numbers: u32,
    most_versions: i32,
}

/// A write that may be applied.
#[derive(Clone)]
struct Sent {
    by: usize,
    base: i32,
    body: Task,
}

#[derive(Clone)]
struct Worker {
    lives: bool,
    holder: Option<Holder>,
    /// It awaits the answer to its write.
    waits: bool,
}

#[derive(Clone)]
struct State {
    version: i32,
    task: Task,
    /// Earlier versions, the last first: a stale read may return one.
    past: VecDeque<(i32, Task)>,
    /// The worker that got each number.
    given: BTreeMap<u32, usize>,
    workers: Vec<Worker>,
    net: Vec<Sent>,
    deaths: usize,
    doubts: usize,
    reruns: usize,
}

const PAST: usize = 2;

fn by() -> Incarnation {
    Incarnation::new("w", 1)
}

fn task_key(task: &Task, key: &mut Vec<u8>) {
    key.push(u8::try_from(task.attempt).expect("few"));
    for share in task.all_shares() {
        key.push(u8::try_from(share.attempt).expect("few"));
        key.extend(share.lines.below(9).map(|position| 100 + position as u8));
        key.extend([share.ahead.map_or(99, |ahead| ahead as u8), share.deaths as u8]);
    }
    key.push(u8::from(task.outcome.is_some()));
    let results = task.outcome.as_ref().map_or(&task.results, |outcome| &outcome.results);
    key.extend(results.iter().map(|result| u8::from(result.is_some())));
    key.push(255);
}

fn holder_key(holder: &Holder, key: &mut Vec<u8>) {
    let (sets, write) = holder.state();
    key.extend([holder.number() as u8, u8::from(write[0]), u8::from(write[1])]);
    if let (Some(version), Some(task)) = (holder.version(), holder.known()) {
        key.push(version as u8);
        task_key(task, key);
    }
    for set in sets {
        key.extend(set.iter().map(|position| *position as u8));
        key.push(252);
    }
}

impl State {
    fn new(scope: Scope) -> State {
        let commands = vec!["x".to_string(); scope.lines];
        State {
            version: 0,
            task: Task::new(Payload::Chunk { first_line: 0, commands }, Options::default()),
            past: VecDeque::new(),
            given: BTreeMap::new(),
            workers: vec![Worker { lives: true, holder: None, waits: false }; scope.workers],
            net: Vec::new(),
            deaths: 0,
            doubts: 0,
            reruns: 0,
        }
    }

    /// A digest of all that matters of it.
    fn key(&self) -> u128 {
        let mut key = vec![self.version as u8, self.deaths as u8, self.doubts as u8, self.reruns as u8];
        task_key(&self.task, &mut key);
        for (version, task) in &self.past {
            key.push(*version as u8);
            task_key(task, &mut key);
        }
        key.extend(self.given.iter().flat_map(|(number, by)| [*number as u8, *by as u8]));
        for worker in &self.workers {
            key.extend([254, u8::from(worker.lives), u8::from(worker.waits)]);
            if let Some(holder) = &worker.holder {
                holder_key(holder, &mut key);
            }
        }
        let mut net: Vec<Vec<u8>> = self.net.iter().map(sent_key).collect();
        net.sort_unstable();
        key.extend(net.concat());
        let digest = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, &key).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        digest(1) << 64 | digest(2)
    }

    /// Somebody's write is applied.
    fn set(&mut self, task: Task) {
        let before = std::mem::replace(&mut self.task, task);
        check_step(&before, &self.task);
        self.past.push_front((self.version, before));
        self.past.truncate(PAST);
        self.version += 1;
    }

    fn with(&self, change: impl FnOnce(&mut State)) -> State {
        let mut next = self.clone();
        change(&mut next);
        // A write that can never be applied, and that nobody waits for, is dropped.
        let (version, workers) = (next.version, next.workers.clone());
        next.net.retain(|sent| sent.base == version || workers[sent.by].waits);
        for worker in &mut next.workers {
            if !worker.lives {
                (worker.holder, worker.waits) = (None, false);
            }
        }
        next
    }
}

fn sent_key(sent: &Sent) -> Vec<u8> {
    let mut key = vec![253, sent.by as u8, sent.base as u8];
    task_key(&sent.body, &mut key);
    key
}

fn open(task: &Task) -> BTreeSet<usize> {
    (0..task.commands.as_ref().map_or(0, Vec::len)).filter(|position| task.is_open(*position)).collect()
}

/// I1, I2: each open line is in one share; numbers only grow, and their lines only get fewer.
fn check_step(before: &Task, after: &Task) {
    let mut owned = BTreeSet::new();
    for share in after.all_shares() {
        for position in after.open_lines(&share) {
            assert!(owned.insert(position), "line {position} is in two shares: {:?}", after.shares);
        }
        if let Some(old) = before.share(share.attempt) {
            assert!(
                share.lines.below(9).all(|position| old.lines.has(position)),
                "number {} grew",
                share.attempt
            );
        } else {
            assert!(share.attempt > before.attempt, "number {} came back", share.attempt);
        }
    }
    assert_eq!(owned, open(after), "an open line is in no share");
    let has_result =
        |position: &usize| after.outcome.as_ref().is_some_and(|all| all.results[*position].is_some());
    let is_lost = |position: &usize| after.outcome.is_some() && !has_result(position);
    assert!(!open(before).iter().any(is_lost), "it has an outcome, and a line without a result");
    assert_eq!(after.outcome.is_some(), owned.is_empty());
}

fn leader(state: &State, scope: Scope, next: &mut Vec<State>) {
    let idle = state.workers.iter().position(|worker| worker.lives && worker.holder.is_none());
    // It may see the past.
    let seen = std::iter::once(&state.task).chain(state.past.iter().map(|(_, task)| task));
    let numbers: BTreeSet<u32> = seen.flat_map(|task| task.all_shares()).map(|share| share.attempt).collect();
    for number in numbers.into_iter().filter(|number| !state.given.contains_key(number)) {
        if let Some(to) = idle {
            next.push(state.with(|state| {
                state.given.insert(number, to);
                state.workers[to].holder = Some(Holder::new(number));
            }));
        }
    }
    for share in state.task.all_shares() {
        let mut cut = state.task.clone();
        let may = state.task.attempt < scope.most_numbers && state.version < scope.most_versions;
        if may && cut.cut(share.attempt, usize::MAX) {
            next.push(state.with(|state| state.set(cut)));
        }
        let has_failed = state.given.get(&share.attempt).is_some_and(|by| !state.workers[*by].lives);
        let mut moved = state.task.clone();
        if has_failed && moved.move_on(share.attempt, Some(&by()), &Move::Death { limit: 9 }) {
            next.push(state.with(|state| state.set(moved)));
        }
    }
    for position in 0..scope.lines {
        let mut again = state.task.clone();
        let may = state.reruns < scope.reruns
            && state.task.attempt < scope.most_numbers
            && state.version < scope.most_versions;
        if may && again.rerun(&[position]) {
            next.push(state.with(|state| {
                state.reruns += 1;
                state.set(again);
            }));
        }
    }
}

fn network(state: &State, scope: Scope, next: &mut Vec<State>) {
    for (at, sent) in state.net.iter().enumerate() {
        let waits = state.workers[sent.by].waits;
        if sent.base != state.version {
            next.push(state.with(|state| {
                let sent = state.net.remove(at);
                if waits {
                    state.workers[sent.by].doubted();
                }
            }));
            continue;
        }
        next.push(state.with(|state| {
            let sent = state.net.remove(at);
            state.set(sent.body.clone());
            if waits {
                state.workers[sent.by].answered(state.version, sent.body);
            }
        }));
        if waits && state.doubts < scope.doubts {
            // The reply is lost: of a write that was applied, or of one that may be applied later.
            next.push(state.with(|state| {
                let sent = state.net.remove(at);
                state.set(sent.body.clone());
                state.doubts += 1;
                state.workers[sent.by].doubted();
            }));
            next.push(state.with(|state| {
                state.doubts += 1;
                state.workers[state.net[at].by].doubted();
            }));
        }
    }
}

impl Worker {
    fn doubted(&mut self) {
        self.waits = false;
        self.holder.as_mut().expect("it wrote").doubt();
    }

    fn answered(&mut self, version: i32, task: Task) {
        self.waits = false;
        if self.holder.as_mut().expect("it wrote").written(version, task) == Seen::Removed {
            self.holder = None;
        }
    }
}

fn worker(state: &State, scope: Scope, at: usize, next: &mut Vec<State>) {
    let Some(holder) = &state.workers[at].holder else { return };
    if state.deaths < scope.deaths {
        next.push(state.with(|state| {
            state.deaths += 1;
            state.workers[at].lives = false;
        }));
    }
    if holder.is_to_be_read() && !state.workers[at].waits {
        let present = (state.version, state.task.clone());
        for (version, task) in std::iter::once(&present).chain(&state.past) {
            let mut read = holder.clone();
            match read.read(*version, task.clone()) {
                Seen::Held => next.push(state.with(|state| state.workers[at].holder = Some(read))),
                // After a write of its own it reads the present.
                Seen::Removed if *version == state.version => {
                    next.push(state.with(|state| state.workers[at].holder = None));
                }
                Seen::Removed | Seen::Older => {}
            }
        }
    }
    let running: Vec<usize> = holder.running().collect();
    let mut started = holder.clone();
    if running.is_empty()
        && let Some(position) = started.start_next()
    {
        let number = started.number();
        let share = state
            .task
            .share(number)
            .unwrap_or_else(|| panic!("{position} is started for {number}, which is gone"));
        assert!(
            state.task.window(&share).contains(&position),
            "line {position} is started, and not in the window of {share:?}"
        );
        next.push(state.with(|state| state.workers[at].holder = Some(started)));
    }
    for position in running {
        let mut ended = holder.clone();
        ended.ended(position, CommandResult::default());
        next.push(state.with(|state| state.workers[at].holder = Some(ended)));
    }
    for ahead in [1, 2] {
        let mut sent = holder.clone();
        if let Some((base, body)) = sent.send(ahead)
            && (state.version < scope.most_versions || holder.has_results())
        {
            next.push(state.with(|state| {
                state.workers[at] = Worker { holder: Some(sent), waits: true, lives: true };
                state.net.push(Sent { by: at, base, body });
            }));
        }
    }
}

/// Searches the scope; gives how many states there are.
fn search(scope: Scope) -> usize {
    let start = State::new(scope);
    let mut numbers: HashMap<u128, u32> = HashMap::from([(start.key(), 0)]);
    let mut queue = VecDeque::from([start]);
    // Steps, as (to, from), and the states in which the chunk has ended.
    let (mut steps, mut last): (Vec<(u32, u32)>, Vec<u32>) = (Vec::new(), Vec::new());
    let mut at = 0_u32;
    while let Some(state) = queue.pop_front() {
        if state.task.outcome.is_some() {
            last.push(at);
        }
        let mut next = Vec::new();
        leader(&state, scope, &mut next);
        network(&state, scope, &mut next);
        for number in 0..scope.workers {
            worker(&state, scope, number, &mut next);
        }
        for state in next {
            let fresh = numbers.len() as u32;
            let number = *numbers.entry(state.key()).or_insert(fresh);
            if number == fresh {
                queue.push_back(state);
            }
            steps.push((number, at));
        }
        at += 1;
    }
    let stuck = numbers.len() - can_end(numbers.len(), steps, last);
    assert_eq!(stuck, 0, "of {} states so many can't end", numbers.len());
    numbers.len()
}

/// From how many states one of `last` can be reached.
fn can_end(states: usize, mut steps: Vec<(u32, u32)>, mut last: Vec<u32>) -> usize {
    steps.sort_unstable();
    let mut ends = vec![false; states];
    while let Some(number) = last.pop() {
        if !std::mem::replace(&mut ends[number as usize], true) {
            let from = steps.partition_point(|(to, _)| *to < number);
            let before = steps[from..].iter().take_while(|(to, _)| *to == number);
            last.extend(before.map(|(_, from)| *from));
        }
    }
    ends.into_iter().filter(|ends| *ends).count()
}

#[test]
fn two_lines_never_run_twice_nor_get_lost_and_their_chunk_ends() {
    let scope =
        Scope { lines: 2, workers: 2, deaths: 1, doubts: 1, reruns: 0, most_numbers: 4, most_versions: 6 };
    let states = search(scope);
    assert!(states > 10_000, "{states}");
}

#[test]
fn two_lines_of_which_one_is_retried_never_run_twice() {
    let scope =
        Scope { lines: 2, workers: 2, deaths: 0, doubts: 1, reruns: 1, most_numbers: 4, most_versions: 5 };
    let states = search(scope);
    assert!(states > 10_000, "{states}");
}

#[test]
fn three_lines_never_run_twice_nor_get_lost_and_all_end() {
    let scope =
        Scope { lines: 3, workers: 2, deaths: 0, doubts: 1, reruns: 0, most_numbers: 3, most_versions: 4 };
    let states = search(scope);
    assert!(states > 10_000, "{states}");
}
