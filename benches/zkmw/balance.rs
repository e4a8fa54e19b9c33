//! (i) How even work is spread: lines of mixed length, as a process each, beside an ideal list schedule of the same
//! lengths. Must not measure how fast processes are started: the lengths are much longer than that.

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
const FLEET: (usize, usize) = (3, 2);

/// Makespans of the batch over that of the ideal schedule.
pub fn run(bench: &mut Bench) {
    let lengths = lengths();
    let lines: String = lengths.iter().map(|length| format!("sleep {length:.4}\n")).collect();
    let ideal = schedule(&lengths, FLEET.0 * FLEET.1);
    let service = Service::start(&bench.ensemble, "balance", FLEET, &Executor::Process);
    // What ran before is how long the leader thinks that runs take.
    service.run("sleep 0.05\n".repeat(LINES / 20).as_str(), &[]);
    let mut ratios = Samples::default();
    for _ in 0..bench.options.repeats {
        let took = service.run(&lines, &[]);
        say(&format!("{took:.2} s, ideal {ideal:.2} s"));
        ratios.0.push(took / ideal);
    }
    service.stop();
    let how =
        format!("{LINES} lines, sigma {SIGMA}, mean {} ms, {} x {} slots", MEAN * 1e3, FLEET.0, FLEET.1);
    bench.report.row("balance", "makespan over the ideal", "", ratios.clone(), &how);
    bench.report.measured(budget::BALANCE, ratios, how);
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

/// When all are over if each in turn takes the slot that is free first.
fn schedule(lengths: &[f64], slots: usize) -> f64 {
    let mut free = vec![0.0_f64; slots];
    for length in lengths {
        if let Some(first) = free.iter_mut().min_by(|a, b| a.total_cmp(b)) {
            *first += length;
        }
    }
    free.into_iter().fold(0.0, f64::max)
}
