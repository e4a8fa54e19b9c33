//! Malformed data: every decoder of the contract, the configuration file and batches, under millions of inputs made
//! of good ones. Also properties of names and of the data that this code writes.
//!
//! Each execution follows from its number alone. `ZKMW_FUZZ_SECONDS` says how long (30), `ZKMW_FUZZ_SEED` with which
//! numbers to begin; `ZKMW_FUZZ_ONLY=N` makes execution N again, alone. An input that fails is printed as a byte
//! string, and belongs into `found.rs` as a test with a name.

mod found;
mod memory;
mod mutate;
mod properties;
mod targets;

use std::cell::Cell;
use std::fs;
use std::io::Write as _;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mutate::{Prng, input};
use targets::{TARGETS, Target};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// How long one execution may take on a machine that has other things to do.
const HANGS: Duration = Duration::from_secs(30);

/// The number that a core shows when it makes no execution.
const IDLE: u64 = u64::MAX;

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn files(folder: &str, names: &dyn Fn(&str) -> bool) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found: Vec<_> =
        fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    found.sort();
    found.retain(|path| names(&path.file_name().expect("a name").to_string_lossy()));
    found.into_iter().map(|path| fs::read(path).expect("a file")).collect()
}

/// The seeds of each target's inputs: its golden files, or good texts.
fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let texts: &[&str] = match target.name {
        "names" => &[
            "_3f/nightly",
            "import~k1~0001/0004000",
            "w7~01d3c0ffee00beef",
            "w7~01d3c0ffee00beef~3",
            "/zkmw/tasks/_00/a",
            "_c_3f6c9a52-7d0e-4b7e-9c61-5a2f0d1e8b44-latch-0000000007",
            "_c_x-latch--2147483648",
            "_c_x-ranked-latch-0000000007",
            "_c_x-rank-0000000007-latch-0000000012",
            "a__lock__0000000001",
        ],
        "config" => &[
            "zk = \"a:1,b:2/chroot\"\nroot = \"/z\"\nsession-timeout = \"9s\"\n",
            "[worker]\nid = 'w'\nslots = 3\nlabel = { gpu = \"yes\" }\ngrace = \"5s\"\n\n[submit]\nenv = [\"A=b\"]\n",
            "[master]\nresult_ttl = \"24h\"\njob-ttl = \"1h\"\n[elector]\npath = \"/e\"\n",
        ],
        "batch" => &["a\n\nb \r\n\r\nc", "echo hi\necho $((6 * 7))\n", "\t\n \nlast"],
        kind => {
            let own = files("tests/golden", &|name| name.starts_with(kind));
            assert!(!own.is_empty(), "no golden files of {kind}");
            return own;
        }
    };
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Execution `n`.
fn execution(n: u64, seeds: &[Vec<Vec<u8>>]) -> (&'static Target, Vec<u8>) {
    let mut prng = Prng::new(n);
    // Strangers write tasks, and a task has the most to decode: every other execution is one.
    let at = if prng.one_in(2) { 0 } else { prng.below(TARGETS.len()) };
    (&TARGETS[at], input(&mut prng, &seeds[at]))
}

thread_local! {
    /// Set while a panic is only a finding, which is reported later.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

fn fails(target: &Target, data: &[u8]) -> bool {
    QUIET.set(true);
    let failed = catch_unwind(AssertUnwindSafe(|| (target.check)(data))).is_err();
    QUIET.set(false);
    failed
}

/// Panics of executions are not printed: there are many while an input is made smaller.
fn quiet_executions() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !QUIET.get() {
            hook(info);
        }
    }));
}

/// A byte string as Rust has it, if it is not too long to be read.
fn shown(data: &[u8]) -> String {
    const MOST: usize = 4_096;
    let more = if data.len() > MOST { format!("… ({} bytes)", data.len()) } else { String::new() };
    format!("{}{more}", data[..data.len().min(MOST)].escape_ascii())
}

/// Removes the bytes that the failure does not need.
fn smaller(target: &Target, data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    let mut step = data.len() / 2;
    let limit = Instant::now() + Duration::from_secs(10);
    while step > 0 {
        let mut at = 0;
        while at + step <= data.len() && Instant::now() < limit {
            let mut less = data.clone();
            less.drain(at..at + step);
            if fails(target, &less) { data = less } else { at += step }
        }
        step /= 2;
    }
    data
}

/// Makes executions until the time is up, or one fails: then that.
fn work(
    core: &AtomicU64,
    next: &AtomicU64,
    end: Instant,
    stop: &AtomicBool,
    seeds: &[Vec<Vec<u8>>],
) -> Option<u64> {
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        let n = next.fetch_add(1, Ordering::Relaxed);
        core.store(n, Ordering::Relaxed);
        let (target, data) = execution(n, seeds);
        if fails(target, &data) {
            stop.store(true, Ordering::Relaxed);
            core.store(IDLE, Ordering::Relaxed);
            return Some(n);
        }
    }
    core.store(IDLE, Ordering::Relaxed);
    None
}

/// Panics when an execution does not end, and leaves the numbers of those under way in a file, for one that ends the
/// whole process (by overflowing its stack).
fn watch(cores: &[AtomicU64], path: &PathBuf) {
    let mut since: Vec<_> = cores.iter().map(|_| (IDLE, Instant::now())).collect();
    while cores.iter().any(|core| core.load(Ordering::Relaxed) != IDLE) {
        for (core, (seen, at)) in cores.iter().zip(&mut since) {
            let now = core.load(Ordering::Relaxed);
            if now != *seen {
                (*seen, *at) = (now, Instant::now());
            }
            assert!(
                now == IDLE || at.elapsed() < HANGS,
                "execution {now} does not end: ZKMW_FUZZ_ONLY={now}"
            );
        }
        let _ = fs::write(path, format!("{:?}\n", since.iter().map(|(n, _)| *n).collect::<Vec<_>>()));
        std::thread::sleep(Duration::from_millis(100)); // the time between two checks
    }
}

#[test]
fn no_input_breaks_a_decoder() {
    let seeds: Vec<_> = TARGETS.iter().map(seeds).collect();
    if let Ok(only) = std::env::var("ZKMW_FUZZ_ONLY") {
        let (target, data) = execution(only.parse().expect("a number"), &seeds);
        eprintln!("{}: b\"{}\"", target.name, shown(&data));
        return (target.check)(&data);
    }
    quiet_executions();
    let first = number("ZKMW_FUZZ_SEED", 0);
    let time = Duration::from_secs(number("ZKMW_FUZZ_SECONDS", 30));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cores: Vec<AtomicU64> = (0..cores).map(|_| AtomicU64::new(first)).collect();
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let (start, end) = (Instant::now(), Instant::now() + time);
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fuzz-under-way");
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let works: Vec<_> =
            cores.iter().map(|core| scope.spawn(|| work(core, &next, end, &stop, &seeds))).collect();
        watch(&cores, &path);
        works.into_iter().filter_map(|work| work.join().expect("it catches panics")).collect()
    });
    let count = next.load(Ordering::Relaxed) - first;
    let rate = u128::from(count) * 1_000 / start.elapsed().as_millis().max(1);
    // Not by a macro, whose lines are shown only of tests that fail.
    let _ = writeln!(
        std::io::stderr(),
        "{count} executions on {} cores, {rate} a second, from number {first} on",
        cores.len()
    );
    // One is enough: the others are often the same.
    if let Some(n) = failed.first() {
        let (target, data) = execution(*n, &seeds);
        let data = smaller(target, &data);
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}-{n}", target.name));
        fs::write(&file, &data).expect("written");
        eprintln!("execution {n}: {} fails with b\"{}\"", target.name, shown(&data));
        eprintln!("(the input is in {}; all of it again: ZKMW_FUZZ_ONLY={n})", file.display());
        (target.check)(&data);
        panic!("execution {n} failed, and its smaller input does not: see above");
    }
    // Far below the count of the slowest machine, far above that of an idle loop.
    assert!(u128::from(count) > time.as_millis() / 10, "only {count} executions");
}
