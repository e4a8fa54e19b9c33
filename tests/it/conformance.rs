//! The simulator's ensemble does what real servers do: one script of calls and faults runs on both, and every reply,
//! stat and watch event is compared. Zxids, times and session ids differ; their order and their equality do not.
//!
//! A script is made on the model (so that it can draw versions and names that exist) and then played on the servers
//! through the project's own session layer. Sessions of a script are all at one server, or each at another.

mod compare;
#[path = "../sim/ensemble.rs"]
#[allow(dead_code)]
mod ensemble;
mod model;
mod real;
mod script;
mod written;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::harness::Ensemble;
use compare::compare;
use model::Model;
use real::Real;
use script::Script;

/// Scripts that are drawn.
const SCRIPTS: u64 = 240;

/// Scripts under way at a time: those with a cut mostly wait for a session's end.
const AT_ONCE: usize = 16;

/// Sessions of a script.
const SESSIONS: usize = 3;

/// Plays a script on the servers and compares; what differs, if anything does.
fn play(real: &mut Real, script: &Script) -> Result<(), String> {
    compare(script, &real.play(script)).map_err(|why| format!("{}: {why}", script.name))
}

#[test]
fn random_scripts_agree_on_the_model_and_real_servers() {
    let ensemble = Ensemble::start(3);
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let counts = Mutex::new(script::Counts::default());
    let seeds = match std::env::var("ZKMW_SEED") {
        Ok(seed) => seed.parse().map(|seed: u64| seed..seed + 1).expect("a seed"),
        Err(_) => 0..SCRIPTS,
    };
    std::thread::scope(|scope| {
        for worker in 0..AT_ONCE {
            let (ensemble, seeds) = (Arc::clone(&ensemble), seeds.clone());
            let (next, failed, counts) = (&next, &failed, &counts);
            scope.spawn(move || {
                let together = worker % 3;
                let spread = worker % 4 == 3;
                let servers = (0..SESSIONS).map(|at| if spread { at } else { together }).collect::<Vec<_>>();
                let mut real = Real::start(&ensemble, &servers);
                while let Some(seed) = Some(seeds.start + next.fetch_add(1, Ordering::Relaxed))
                    && seed < seeds.end
                {
                    let script = Model::new(SESSIONS).draw(seed, spread);
                    counts.lock().expect("no panic").add(&script);
                    if let Err(why) = play(&mut real, &script) {
                        failed.lock().expect("no panic").push(why);
                    }
                }
                real.stop();
            });
        }
    });
    let failed = failed.into_inner().expect("no panic");
    assert!(
        failed.is_empty(),
        "{} scripts differ:\n{}",
        failed.len(),
        failed[..failed.len().min(5)].join("\n")
    );
    if seeds.end - seeds.start > 1 {
        counts.into_inner().expect("no panic").assert_complete();
    }
}

#[test]
fn written_scripts_agree_on_the_model_and_real_servers() {
    let ensemble = Ensemble::start(3);
    for (name, steps) in written::scripts() {
        let mut real = Real::start(&ensemble, &[1; SESSIONS]);
        let script = Model::new(SESSIONS).record(name, steps);
        if let Err(why) = play(&mut real, &script) {
            panic!("{why}");
        }
        real.stop();
    }
}
