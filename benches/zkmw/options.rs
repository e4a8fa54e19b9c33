//! The choices of a benchmark's run: its command line. Must not start anything.

use std::path::PathBuf;
use std::time::Duration;

/// Names of the cases, with what each measures; those that fill the servers' memory come last.
pub const CASES: [(&str, &str); 10] = [
    ("empty", "tasks that do nothing, each a znode of its own, by the cheapest executor"),
    ("process", "`true` as a process, beside xargs, Gearman and GNU parallel; one submit from start to exit"),
    ("latency", "one submit at a time on an idle system"),
    ("workers", "throughput with few and many workers"),
    ("idle", "what a role does when there is nothing to do"),
    ("batch", "lines that do nothing, of a batch as users submit it"),
    ("balance", "lines of mixed length, over an ideal schedule"),
    ("pending", "throughput, memory and takeover with many commands pending"),
    ("against", "another build of zkmw in turn with this one; needs --against"),
    ("million", "as many tasks as fit, with the peak of everything"),
];

/// Sizes and choices of one run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cases to run.
    pub cases: Vec<String>,
    /// How often each measurement is repeated, alternating.
    pub repeats: usize,
    /// Tasks of a batch.
    pub tasks: usize,
    /// Writes of one measurement of W, and of warming up.
    pub writes: usize,
    pub warm_up: usize,
    /// Sizes of the backlog, of lines and of single tasks.
    pub pending: Vec<usize>,
    pub pending_single: Vec<usize>,
    /// Numbers of workers.
    pub workers: Vec<usize>,
    /// Workers and slots of each, in every case that does not vary them.
    pub pool: (usize, usize),
    /// Submits of the latency case.
    pub submits: usize,
    /// How long the idle service is watched.
    pub idle: Duration,
    /// Sizes of the million case: lines of a batch, and tasks that each have a znode of their own.
    pub million: (usize, usize),
    /// Another build of the binary.
    pub against: Option<PathBuf>,
    /// A server's heap.
    pub heap: String,
    /// Where the report goes.
    pub out: PathBuf,
    /// How it was called, for the report.
    pub called: String,
}

impl Options {
    /// Of ten minutes to half an hour.
    fn usual() -> Options {
        Options {
            cases: CASES.iter().map(|(name, _)| (*name).to_string()).collect(),
            repeats: 5,
            tasks: 20_000,
            writes: 24_000,
            warm_up: 100_000,
            pending: vec![100, 1_000, 100_000, 1_000_000],
            pending_single: vec![1_000, 100_000],
            workers: vec![1, 10, 100],
            pool: (2, 32),
            submits: 500,
            idle: Duration::from_secs(60),
            million: (1_000_000, 200_000),
            against: None,
            heap: "2g".to_string(),
            out: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../bench"),
            called: String::new(),
        }
    }

    /// To see that everything works; its figures say little.
    fn quick(self) -> Options {
        Options {
            repeats: 2,
            tasks: 1_000,
            writes: 6_000,
            warm_up: 30_000,
            pending: vec![100, 1_000, 10_000],
            pending_single: vec![1_000],
            workers: vec![1, 5],
            submits: 60,
            idle: Duration::from_secs(10),
            million: (20_000, 4_000),
            ..self
        }
    }

    /// An hour or two.
    fn full(self) -> Options {
        Options {
            pending: vec![100, 1_000, 10_000, 100_000, 1_000_000],
            pending_single: vec![100, 1_000, 10_000, 100_000, 1_000_000],
            workers: vec![1, 10, 100, 1_000],
            million: (1_000_000, 1_000_000),
            heap: "3g".to_string(),
            ..self
        }
    }

    /// Of the command line; the error is for people. Sizes that are named win over `--quick` and `--full`, wherever
    /// they are.
    pub fn parse(args: &[String]) -> Result<Options, String> {
        let mut options = Options::usual();
        if args.iter().any(|arg| arg == "--quick") {
            options = options.quick();
        }
        if args.iter().any(|arg| arg == "--full") {
            options = options.full();
        }
        options.called = args.join(" ");
        let mut args = args.iter();
        while let Some(name) = args.next() {
            // cargo says `--bench` to every benchmark.
            if matches!(name.as_str(), "--quick" | "--full" | "--bench") {
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{name} needs a value, or is unknown"))?;
            options.take(name, value)?;
        }
        Ok(options)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = |text: &str| -> Result<usize, String> {
            let number = text.replace('_', "").parse().ok().filter(|number| *number > 0);
            number.ok_or_else(|| format!("{name}: {text} is not a number above 0"))
        };
        let list = |text: &str| text.split(',').map(number).collect::<Result<Vec<usize>, String>>();
        match name {
            "--case" => {
                self.cases = value.split(',').map(str::to_string).collect();
                for case in &self.cases {
                    if !CASES.iter().any(|(known, _)| known == case) {
                        return Err(format!("--case: there is no case {case}"));
                    }
                }
            }
            "--repeats" => self.repeats = number(value)?,
            "--tasks" => self.tasks = number(value)?,
            "--writes" => self.writes = number(value)?,
            "--pending" => self.pending = list(value)?,
            "--pending-single" => self.pending_single = list(value)?,
            "--workers" => self.workers = list(value)?,
            "--pool" => {
                let (workers, slots) = value.split_once('x').ok_or("--pool: 2x32, for instance")?;
                self.pool = (number(workers)?, number(slots)?);
            }
            "--submits" => self.submits = number(value)?,
            "--idle" => self.idle = Duration::from_secs(number(value)? as u64),
            "--million" => {
                let numbers = list(value)?;
                let [lines, single] = numbers[..] else { return Err("--million: two numbers".into()) };
                self.million = (lines, single);
            }
            "--against" => self.against = Some(PathBuf::from(value)),
            "--heap" => self.heap = value.to_string(),
            "--out" => self.out = PathBuf::from(value),
            _ => return Err(format!("unknown option {name}")),
        }
        self.pending.sort_unstable();
        self.pending_single.sort_unstable();
        self.workers.sort_unstable();
        Ok(())
    }

    /// Whether a case is to be run.
    pub fn has(&self, case: &str) -> bool {
        self.cases.iter().any(|name| name == case)
    }
}
