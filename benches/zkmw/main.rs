//! The benchmark: the service's real processes on an ensemble of three, measured side by side with what the ensemble
//! itself can do. `scripts/bench` runs it; `docs/benchmarks.md` says how each figure is measured.
//!
//! - `options`: the choices of a run. `limit`: W, the ensemble's own limit. `client`: a connection of our own.
//! - `service`: the processes that are measured. `takeover`: how soon a standby leads.
//! - `handler`: the executor that does nothing.
//! - `throughput`, `process` (with `peers`), `balance`, `latency`, `backlog`, `idle`, `million`, `against`: the cases.
//! - `report`, `stats`, `plot`: how the figures are shown.
//!
//! Must not need anything of the service that users do not have, and not compare figures of different runs.

mod against;
mod backlog;
mod balance;
mod client;
mod handler;
// The harness of the integration tests; not all of it is needed here.
#[allow(dead_code, unused_imports)]
#[path = "../../tests/it/harness/mod.rs"]
mod harness;
mod idle;
mod latency;
mod limit;
mod million;
mod options;
mod peers;
mod plot;
mod process;
mod report;
mod service;
mod stats;
mod takeover;
mod throughput;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use harness::Ensemble;
use harness::ensemble::Setup;
use limit::Limit;
use options::{CASES, Options};
use report::Report;
use service::Executor;
use stats::{Samples, human};

/// Ticks as ensembles have them by default: sessions of 30 s are granted.
const TICK: Duration = Duration::from_secs(2);

/// Servers with the whole compiler, as one runs them; the script's own save it for short tests.
const JAVA_OPTIONS: &str = "-XX:TieredStopAtLevel=4";

/// State that all cases share.
pub struct Bench {
    /// Sizes and choices.
    pub options: Options,
    /// The servers.
    pub ensemble: Arc<Ensemble>,
    /// The ensemble's own limit.
    pub limit: Limit,
    /// `--handler`, if there is one.
    pub handler: Option<Executor>,
    /// The results.
    pub report: Report,
}

/// Prints what the benchmark does now, besides the results.
pub fn say(text: &str) {
    eprintln!("bench: {text}");
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "handler") {
        handler::serve();
        return ExitCode::SUCCESS;
    }
    match Options::parse(&args) {
        Ok(options) => run(options),
        Err(why) => {
            say(&why);
            ExitCode::from(64)
        }
    }
}

fn run(options: Options) -> ExitCode {
    fs::create_dir_all(&options.out).expect("a folder for the report");
    let out = options.out.canonicalize().expect("a folder for the report");
    let mut bench = Bench::start(options);
    type Case = fn(&mut Bench);
    let cases: [Case; 10] = [
        throughput::empty,
        process::run,
        latency::run,
        throughput::workers,
        idle::run,
        throughput::batch,
        balance::run,
        backlog::run,
        against::run,
        million::run,
    ];
    for ((name, what), case) in CASES.iter().zip(cases) {
        if !bench.options.has(name) {
            continue;
        }
        say(&format!("case {name}: {what}"));
        let from = Instant::now();
        // A case that fails must not take the figures of the others with it.
        if catch_unwind(AssertUnwindSafe(|| case(&mut bench))).is_err() {
            bench.report.broken.push(format!("case {name}"));
        }
        say(&format!("case {name} took {:.0} s", from.elapsed().as_secs_f64()));
        bench.report.write(&out);
    }
    bench.finish();
    bench.report.write(&out);
    println!("{}", bench.report.text());
    println!("report: {}", out.join("bench.json").display());
    if bench.report.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Bench {
    fn start(options: Options) -> Bench {
        say(&format!("starting three servers with a heap of {}", options.heap));
        let setup = Setup {
            java_options: JAVA_OPTIONS.to_string(),
            tick: Some(TICK),
            heap: options.heap.clone(),
            ..Setup::default()
        };
        let ensemble = Ensemble::start_with(3, setup);
        say("warming the servers up, and finding their limit");
        let limit = Limit::find(&ensemble.connect, options.writes, options.warm_up);
        for ((sessions, in_flight), rates) in &limit.tried {
            let rate = human(rates.median());
            say(&format!("{sessions} sessions with {in_flight} calls in flight: {rate} writes a second"));
        }
        let handler = Executor::handler(&harness::process::base_dir());
        let mut report = Report::new();
        if handler.is_none() {
            report.notes.push("this binary has no --handler: empty tasks ran as a process each".to_string());
        }
        report.facts = facts(&options);
        let bench = Bench { options, ensemble, limit, handler, report };
        throughput::warm_up(&bench);
        bench
    }

    /// The cheapest executor that there is.
    pub fn cheapest(&self) -> Executor {
        self.handler.clone().unwrap_or(Executor::Process)
    }

    /// W, and what was tried to find it, go into the report last: when all of it is known.
    fn finish(&mut self) {
        for (shape, rates) in &self.limit.tried {
            let what = format!("{} sessions x {} in flight", shape.0, shape.1);
            self.report.row("limit", what, "writes/s", rates.clone(), "to find the best");
        }
        let (sessions, in_flight) = self.limit.shape;
        let remark = format!("{sessions} sessions x {in_flight} in flight, beside the cases");
        self.report.row("limit", "W", "writes/s", Samples(self.limit.all.clone()), &remark);
    }
}

/// The conditions that the figures depend on.
fn facts(options: &Options) -> serde_json::Map<String, serde_json::Value> {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_string();
    let cpu = read("/proc/cpuinfo");
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let memory = read("/proc/meminfo");
    let memory = memory.lines().next().unwrap_or_default().trim_start_matches("MemTotal:").trim();
    let facts = json!({
        "arguments": options.called, "cores": cores, "cpu": cpu, "memory": memory, "kernel": kernel,
        "servers": 3, "heap": options.heap, "tick_ms": TICK.as_millis() as u64, "session_timeout": service::SESSION,
        "zkmw": env!("CARGO_PKG_VERSION"), "tasks": options.tasks, "repeats": options.repeats,
        "pool": format!("{} workers x {} slots", options.pool.0, options.pool.1),
    });
    facts.as_object().cloned().unwrap_or_default()
}
