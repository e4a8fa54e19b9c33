//! The simulator: the production roles on an ensemble in memory, in a world in which everything goes wrong that can,
//! drawn from a seed. A seed is an exact reproduction. Afterwards checkers judge what happened, by the ensemble's own
//! log and the true times of all runs.
//!
//! `ZKMW_SEED=7` plays one seed and prints everything; `ZKMW_SEEDS=0..1000` plays many. See `scripts/simulate`.

mod checkers;
// Some of it is there for the comparison with real servers alone.
#[allow(dead_code)]
mod ensemble;
mod ensemble_rules;
mod faults;
mod history;
mod life;
mod member;
mod net;
mod play;
mod processes;
mod servers;
mod shares;
mod swarm;
mod users;
mod world;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use play::{Outcome, play};
use swarm::{Fault, MS, SECOND, Swarm};

/// The seeds that are played by default: few without optimisation.
const SEEDS: Range<u64> = if cfg!(debug_assertions) { 0..100 } else { 0..2_000 };

/// Failures that are printed in full.
const MAX_PRINTED: usize = 100;

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_else(|_| panic!("{text:?} is no number: give 7, or 0..1000"))
}

/// The seeds that were asked for, and whether to print everything.
fn wanted() -> (Range<u64>, bool) {
    if let Ok(seed) = std::env::var("ZKMW_SEED") {
        let seed = number(&seed);
        return (seed..seed + 1, true);
    }
    match std::env::var("ZKMW_SEEDS") {
        Ok(range) => match range.split_once("..") {
            Some((first, end)) => (number(first)..number(end), false),
            None => (0..number(&range), false),
        },
        Err(_) => (SEEDS, false),
    }
}

/// Plays all of them on so many threads; the failures, by seed.
fn play_all(seeds: Range<u64>, jobs: usize, tracing: bool) -> Vec<(u64, Outcome)> {
    let next = AtomicU64::new(seeds.start);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = play(seed, Swarm::new(seed), tracing);
                    if !outcome.complaints.is_empty() {
                        let mut failed = failed.lock().expect("no panic while it is held");
                        failed.push((seed, outcome));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().expect("all threads are over");
    failed.sort_by_key(|(seed, _)| *seed);
    failed
}

#[test]
fn whatever_happens_nothing_is_lost_and_nothing_runs_twice() {
    let (seeds, tracing) = wanted();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = std::env::var("ZKMW_JOBS").map_or(cores, |jobs| number(&jobs) as usize);
    let count = seeds.end.saturating_sub(seeds.start);
    let started = Instant::now();
    let failed = play_all(seeds, jobs.max(1), tracing);
    let took = started.elapsed().as_secs_f64();
    println!("{count} seeds in {took:.1} s: {:.0} a second, {} failed", count as f64 / took, failed.len());
    for (seed, outcome) in failed.iter().take(MAX_PRINTED) {
        println!("\nseed {seed}:");
        for complaint in &outcome.complaints {
            println!("  {complaint}");
        }
        println!("  again, with all that happens: ZKMW_SEED={seed} scripts/simulate");
    }
    let seeds: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
    assert!(seeds.is_empty(), "{} of {count} seeds fail: {:?}", seeds.len(), &seeds[..seeds.len().min(100)]);
}

#[test]
fn a_seed_is_an_exact_reproduction() {
    for seed in 0..5 {
        let (first, again) = (play(seed, Swarm::new(seed), false), play(seed, Swarm::new(seed), false));
        assert_eq!(first.digest, again.digest, "seed {seed}");
        assert_ne!(first.digest, play(seed + 1, Swarm::new(seed + 1), false).digest, "seed {seed}");
    }
}

#[test]
fn without_faults_all_is_well() {
    for seed in 0..20 {
        let outcome = play(seed, Swarm::calm(seed), false);
        assert!(outcome.complaints.is_empty(), "seed {seed}: {:#?}", outcome.complaints);
        assert!(outcome.runs > 0, "seed {seed} ran nothing");
    }
}

/// Commands that never end by themselves, and servers that are restarted one after the other, each when the last
/// serves.
#[test]
fn a_rolling_restart_moves_no_elector() {
    let mut restarts = 0;
    for seed in 0..40 {
        let swarm = Swarm {
            electors: 3,
            timeout: 10 * SECOND,
            safety: 90 * SECOND,
            tasks: 0,
            apply: 5 * MS,
            spikes: 0,
            run_for: 9_000 * SECOND,
            faults: vec![(Fault::RestartNext, 4 * SECOND)],
            ..Swarm::calm(seed)
        };
        let outcome = play(seed, swarm, false);
        assert!(outcome.complaints.is_empty(), "seed {seed}: {:#?}", outcome.complaints);
        assert_eq!(outcome.elected, 1, "seed {seed}: a command was moved, or none ran");
        restarts += outcome.restarts;
    }
    assert!(restarts > 400, "only {restarts} servers were restarted");
}

#[test]
fn chunks_are_written_down_cut_short_and_taken_up_again() {
    let (mut saves, mut resumed, mut complete) = (0, 0, 0);
    for seed in 0..100 {
        let swarm = Swarm { chunked: 1_000, lines: 24, tasks: 48, ..Swarm::new(seed) };
        let outcome = play(seed, swarm, false);
        assert!(outcome.complaints.is_empty(), "seed {seed}: {:#?}", outcome.complaints);
        saves += outcome.chunks.saves;
        resumed += outcome.chunks.resumed;
        complete += outcome.chunks.complete;
    }
    assert!(saves > 50 && resumed > 50 && complete > 250, "{saves} {resumed} {complete}");
}
