//! (i) How even work is spread: lines of mixed length, as a process each, beside an ideal list schedule of the same
//! lengths; and the same while one worker is stopped for a while. Must not measure how fast processes are started: the
//! lengths are much longer than that.

use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use zkmw::machine::Prng;

use crate::report::budget;
use crate::service::{Executor, Service};
use crate::stats::Samples;
use crate::{Bench, say};

/// Lines of the batch.
const LINES: usize = 2_000;

/// Their mean, in seconds, and the spread of their logarithms.
const MEAN: f64 = 0.05;
const SIGMA: f64 = 1.2;

/// The same lengths each time.
const SEED: u64 = 20_261_130;

/// Workers, and slots of each.
const POOL: (usize, usize) = (3, 2);

/// How long a worker is stopped, in seconds: long enough to matter, and much shorter than its session.
const STOPPED: f64 = 2.0;

/// Makespans of the batch over those of ideal schedules.
pub fn run(bench: &mut Bench) {
    let lengths = lengths();
    let lines: String = lengths.iter().map(|length| format!("sleep {length:.4}\n")).collect();
    let slots = POOL.0 * POOL.1;
    let ideal = schedule(&lengths, slots, 0, 0.0..0.0);
    let away = ideal / 2.0..ideal / 2.0 + STOPPED;
    let ideal_stopped = schedule(&lengths, slots, POOL.1, away.clone());
    let service = Service::start(&bench.ensemble, "balance", POOL, &Executor::Process);
    // The leader estimates the length of runs from earlier ones.
    service.run("sleep 0.05\n".repeat(LINES / 20).as_str(), &[]);
    let mut times = [Samples::default(), Samples::default()];
    for _ in 0..bench.options.repeats {
        let took = service.run(&lines, &[]);
        say(&format!("{took:.2} s, ideal {ideal:.2} s"));
        times[0].0.push(took);
        let took = service.run_and(&lines, &[], |from| stop_worker(&service, from, &away));
        say(&format!("{took:.2} s with a worker stopped for {STOPPED} s, ideal {ideal_stopped:.2} s"));
        times[1].0.push(took);
    }
    service.stop();
    let how = format!("{LINES} lines, sigma {SIGMA}, mean {} ms, {} x {} slots", MEAN * 1e3, POOL.0, POOL.1);
    let over = |times: &Samples, ideal: f64| Samples(times.0.iter().map(|time| time / ideal).collect());
    let ratios = over(&times[0], ideal);
    let mut row = |what: &str, samples, remark: &str| bench.report.row("balance", what, "", samples, remark);
    row("makespan over the ideal", ratios.clone(), &how);
    let stopped = format!("SIGSTOP for {STOPPED} s in the middle");
    row("a worker stopped: makespan over the ideal", over(&times[1], ideal), &stopped);
    row("the same over the ideal without its slots", over(&times[1], ideal_stopped), "they are away as long");
    bench.report.measured(budget::BALANCE, ratios, how);
}

/// Stops the first worker, which started to work about `from`, for this time of the batch.
fn stop_worker(service: &Service, from: Instant, away: &Range<f64>) {
    let wait_until = |seconds: f64| {
        thread::sleep((from + Duration::from_secs_f64(seconds)).saturating_duration_since(Instant::now()));
    };
    wait_until(away.start);
    service.workers[0].stop();
    wait_until(away.end);
    service.workers[0].cont();
}

/// Log-normal lengths with this mean.
fn lengths() -> Vec<f64> {
    let mut prng = Prng::new(SEED);
    // In (0, 1], for the logarithm.
    let mut uniform = || ((prng.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    let mu = MEAN.ln() - SIGMA * SIGMA / 2.0;
    let mut length = || {
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
        SIGMA.mul_add(radius * angle.cos(), mu).exp()
    };
    (0..LINES).map(|_| length()).collect()
}

/// When all are over if each in turn takes the slot that is free first. The first `stopped` slots start nothing while
/// they are `away`; what runs there goes on.
fn schedule(lengths: &[f64], slots: usize, stopped: usize, away: Range<f64>) -> f64 {
    let mut free = vec![0.0_f64; slots];
    for length in lengths {
        let starts = free.iter_mut().enumerate().map(|(slot, free)| {
            let waits = slot < stopped && away.contains(free);
            (if waits { away.end } else { *free }, free)
        });
        if let Some((start, first)) = starts.min_by(|a, b| a.0.total_cmp(&b.0)) {
            *first = start + length;
        }
    }
    free.into_iter().fold(0.0, f64::max)
}
