//! The users: threads that submit tasks of all kinds, wait for some, cancel and retry others, one after the other, as
//! processes of the real binary on the clients' hosts. Owns these processes, and the record of each request
//! and its output; the nemesis may hurt them through [`Load::hurt`].

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use zkmw::machine::Prng;

use crate::harness::{Exit, Proc};
use crate::history::Clock;
use crate::hosts::{CLIENTS, Setting};
use crate::net::Net;
use crate::plan::Hurt;

/// Users at work at a time.
const USERS: u64 = 7;

/// Most lines of a batch.
const MAX_LINES: u64 = 12;

/// How a task's program behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// Ignores SIGTERM.
    Trap,
    /// Exits with 0 on SIGTERM, with its work undone.
    Polite,
    Fork,
    Suicide,
    Flaky,
    /// Runs past its timeout.
    Slow,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Plain | Kind::Slow => "plain",
            Kind::Trap => "trap",
            Kind::Polite => "polite",
            Kind::Fork => "fork",
            Kind::Suicide => "suicide",
            Kind::Flaky => "flaky",
        }
    }
}

/// One task that was asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The name of its file of notes, and part of its command.
    pub name: String,
    pub kind: Kind,
    pub code: i32,
    pub command: String,
}

/// The command that a user ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Submits a task and waits.
    Single,
    Detached,
    Batch,
    DetachedBatch,
    /// The same key twice, one after the other, the second waits.
    Keyed,
    Wait,
    Cancel,
    Retry,
}

/// One process of the binary, from its start to its end.
#[derive(Clone, Debug)]
pub struct Record {
    pub deed: Deed,
    pub number: u32,
    pub label: String,
    pub asked: Vec<Asked>,
    /// For `wait`, `cancel` and `retry`: the task that it was about.
    pub about: Option<String>,
    pub from: f64,
    pub until: f64,
    pub exit: Option<Exit>,
    /// The nemesis ended it.
    pub hurt: bool,
}

impl Record {
    /// The objects that it printed, one a line.
    pub fn printed(&self) -> Vec<serde_json::Value> {
        let out = self.exit.as_ref().map_or("", |exit| exit.stdout.as_str());
        out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// A process at work.
struct AtWork {
    number: u32,
    process: Proc,
    hurt: bool,
    stopped: bool,
}

struct Shared {
    setting: Setting,
    net: Arc<Net>,
    clock: Clock,
    ends: AtomicBool,
    count: AtomicU32,
    at_work: Mutex<Vec<AtWork>>,
    records: Mutex<Vec<Record>>,
    /// Ids of tasks that nobody waits for.
    loose: Mutex<Vec<String>>,
}

/// The users of a run.
pub struct Load {
    shared: Arc<Shared>,
    users: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(setting: &Setting, net: &Arc<Net>, clock: Clock, seed: u64) -> Load {
        std::fs::create_dir_all(setting.dir.join("tasks")).expect("a folder");
        let shared = Arc::new(Shared {
            setting: setting.clone(),
            net: Arc::clone(net),
            clock,
            ends: AtomicBool::new(false),
            count: AtomicU32::new(0),
            at_work: Mutex::default(),
            records: Mutex::default(),
            loose: Mutex::default(),
        });
        let user = |number: u64| {
            let shared = Arc::clone(&shared);
            let chance = Prng::new(seed.wrapping_mul(1_000).wrapping_add(number));
            std::thread::spawn(move || User { shared: &shared, chance }.work())
        };
        let users = (0..USERS).map(user).collect();
        Load { shared, users }
    }

    /// Hurts a submitter that is at work; gives its number and a description. [`Load::cont`] continues a stopped one.
    pub fn hurt(&self, how: Hurt, pick: u64) -> Option<(u32, String)> {
        let mut at_work = self.shared.at_work.lock().expect("no panic");
        let count = u64::try_from(at_work.len()).ok().filter(|count| *count > 0)?;
        let one = &mut at_work[usize::try_from(pick % count).ok()?];
        if one.hurt || one.stopped || !one.process.is_running() {
            return None;
        }
        let what = match how {
            Hurt::Kill => {
                one.hurt = true;
                one.process.kill();
                "killed"
            }
            Hurt::Term => {
                one.hurt = true;
                one.process.term();
                "asked to end"
            }
            Hurt::Stop => {
                one.stopped = true;
                one.process.stop();
                "stopped"
            }
        };
        Some((one.number, format!("submitter {} {what}", one.number)))
    }

    /// Lets stopped submitters go on: this one, or all.
    pub fn cont(&self, which: Option<u32>) {
        for one in self.shared.at_work.lock().expect("no panic").iter_mut() {
            if one.stopped && which.is_none_or(|number| number == one.number) && one.process.is_running() {
                one.process.cont();
                one.stopped = false;
            }
        }
    }

    /// Nothing new is submitted.
    pub fn no_more(&self) {
        self.shared.ends.store(true, Ordering::SeqCst);
    }

    /// How many are still at work.
    pub fn at_work(&self) -> usize {
        self.shared.at_work.lock().expect("no panic").len()
    }

    /// The records of all users, and complaints about those that are still at work.
    pub fn finish(self) -> (Vec<Record>, Vec<String>) {
        self.no_more();
        let mut complaints = Vec::new();
        for one in self.shared.at_work.lock().expect("no panic").iter_mut() {
            let text = format!("submitter {} still waited when all should have been done", one.number);
            complaints.push(text);
            if one.process.is_running() {
                one.hurt = true;
                one.process.kill();
            }
        }
        for user in self.users {
            if user.join().is_err() {
                complaints.push("a user's thread has panicked".to_string());
            }
        }
        let records = std::mem::take(&mut *self.shared.records.lock().expect("no panic"));
        (records, complaints)
    }
}

/// The host of a submitter.
pub fn host_of(number: u32) -> usize {
    CLIENTS.start + usize::try_from(number).unwrap_or(0) % CLIENTS.len()
}

struct User<'a> {
    shared: &'a Shared,
    chance: Prng,
}

impl User<'_> {
    fn work(&mut self) {
        while !self.shared.ends.load(Ordering::SeqCst) {
            match self.below(20) {
                0..=7 => self.single(),
                8..=11 => self.detached(),
                12..=13 => self.batch(Deed::Batch),
                14 => self.batch(Deed::DetachedBatch),
                15 => self.keyed(),
                16 => self.about(Deed::Cancel),
                17 => self.about(Deed::Retry),
                _ => self.about(Deed::Wait),
            }
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.chance.next_u64() % limit
    }

    /// 10 ms to 20 s, most of them short.
    fn secs(&mut self) -> f64 {
        let (low, high) = match self.below(20) {
            0..=9 => (10, 300),
            10..=16 => (300, 2_500),
            17..=18 => (2_500, 7_000),
            _ => (7_000, 20_000),
        };
        let ms = u32::try_from(low + self.below(high - low)).unwrap_or(0);
        f64::from(ms) / 1_000.0
    }

    fn task(&mut self, number: u32, line: u64, kinds: &[Kind]) -> Asked {
        let picked = usize::try_from(self.below(u64::try_from(kinds.len()).unwrap_or(1))).unwrap_or(0);
        let (name, kind) = (format!("t{number:05}-{line}"), kinds[picked]);
        let code = if self.below(6) == 0 { i32::try_from(1 + self.below(50)).unwrap_or(1) } else { 0 };
        let code = if kind == Kind::Flaky { 0 } else { code };
        let secs = if kind == Kind::Slow { 60.0 } else { self.secs() };
        let script = format!("{}/tests/chaos/task.sh", env!("CARGO_MANIFEST_DIR"));
        let folder = self.shared.setting.dir.join("tasks");
        let command = format!("exec sh {script} {} {name} {} {secs} {code}", folder.display(), kind.word());
        Asked { name, kind, code, command }
    }

    /// Runs the binary to its end, whatever that is.
    fn run(
        &mut self,
        deed: Deed,
        number: u32,
        args: &[&str],
        asked: Vec<Asked>,
        about: Option<&str>,
    ) -> Record {
        let shared = self.shared;
        let label = format!("c{number:05}");
        // A submitter that can't connect for a while is no failure here.
        let all: Vec<String> =
            ["--connect-timeout", "none"].iter().chain(args).map(ToString::to_string).collect();
        let from = shared.clock.now();
        let process = shared.setting.start(&shared.net.hosts[host_of(number)], &label, &all);
        shared.at_work.lock().expect("no panic").push(AtWork {
            number,
            process,
            hurt: false,
            stopped: false,
        });
        let (exit, hurt) = loop {
            std::thread::sleep(Duration::from_millis(20));
            let mut at_work = shared.at_work.lock().expect("no panic");
            let index = at_work.iter().position(|one| one.number == number).expect("it was put there");
            if !at_work[index].process.is_running() {
                let mut one = at_work.swap_remove(index);
                break (one.process.wait_exit(Duration::from_secs(1)), one.hurt);
            }
        };
        let about = about.map(str::to_string);
        let until = shared.clock.now();
        let record = Record { deed, number, label, asked, about, from, until, exit: Some(exit), hurt };
        shared.records.lock().expect("no panic").push(record.clone());
        record
    }

    fn number(&self) -> u32 {
        self.shared.count.fetch_add(1, Ordering::SeqCst)
    }

    fn single(&mut self) {
        let number = self.number();
        const KINDS: [Kind; 7] =
            [Kind::Plain, Kind::Plain, Kind::Trap, Kind::Polite, Kind::Fork, Kind::Suicide, Kind::Flaky];
        let slow = self.below(12) == 0;
        let asked = self.task(number, 0, if slow { &[Kind::Slow] } else { &KINDS });
        let mut args = vec!["submit", "--json"];
        match asked.kind {
            Kind::Slow => args.extend(["--timeout", "1s"]),
            Kind::Flaky => args.extend(["--max-attempts", "9", "--retry-backoff", "300ms"]),
            _ => {}
        }
        let command = asked.command.clone();
        args.push(&command);
        self.run(Deed::Single, number, &args, vec![asked], None);
    }

    fn detached(&mut self) {
        let number = self.number();
        let asked = self.task(number, 0, &[Kind::Plain, Kind::Trap, Kind::Fork]);
        let command = asked.command.clone();
        let args = ["submit", "--json", "--detach", &command];
        let record = self.run(Deed::Detached, number, &args, vec![asked], None);
        self.remember(&record);
    }

    fn remember(&self, record: &Record) {
        let ids = record.printed().into_iter().filter_map(|line| Some(line["id"].as_str()?.to_string()));
        self.shared.loose.lock().expect("no panic").extend(ids);
    }

    fn batch(&mut self, deed: Deed) {
        let number = self.number();
        let lines = 3 + self.below(MAX_LINES - 2);
        let asked: Vec<Asked> = (0..lines)
            .map(|line| self.task(number, line, &[Kind::Plain, Kind::Polite, Kind::Fork]))
            .collect();
        let file: PathBuf = self.shared.setting.dir.join("logs").join(format!("batch-{number}"));
        let text: Vec<&str> = asked.iter().map(|asked| asked.command.as_str()).collect();
        std::fs::write(&file, text.join("\n")).expect("a file");
        let file = file.display().to_string();
        let mut args = vec!["submit", "--json", "--no-progress", "--from-file", &file];
        if deed == Deed::DetachedBatch {
            args.push("--detach");
        }
        let record = self.run(deed, number, &args, asked, None);
        if deed == Deed::DetachedBatch {
            self.remember(&record);
        }
    }

    fn keyed(&mut self) {
        let number = self.number();
        let asked = self.task(number, 0, &[Kind::Plain]);
        let (command, key) = (asked.command.clone(), format!("key-{number}"));
        let args = ["submit", "--json", "--detach", "--id", &key, &command];
        self.run(Deed::Detached, number, &args, vec![asked.clone()], None);
        let args = ["submit", "--json", "--id", &key, &command];
        let second = self.number();
        self.run(Deed::Keyed, second, &args, vec![asked], None);
    }

    /// Something about a task that nobody waits for.
    fn about(&mut self, deed: Deed) {
        let picked = self.chance.next_u64();
        let id = {
            let mut loose = self.shared.loose.lock().expect("no panic");
            let Some(count) = u64::try_from(loose.len()).ok().filter(|count| *count > 0) else { return };
            loose.remove(usize::try_from(picked % count).unwrap_or(0))
        };
        let (number, verb) = match deed {
            Deed::Cancel => (self.number(), "cancel"),
            Deed::Retry => (self.number(), "retry"),
            _ => (self.number(), "wait"),
        };
        self.run(deed, number, &[verb, "--json", &id], Vec::new(), Some(&id));
        if deed != Deed::Wait {
            self.shared.loose.lock().expect("no panic").push(id);
        }
    }
}
