//! (h) Another build of the binary in turn with this one, on the same servers: the cost or gain of a change. Only the
//! ratios count. Must not let one of the two go first in every repeat.

use std::path::{Path, PathBuf};

use crate::harness::Cluster;
use crate::latency::{CALM, commands, stretch};
use crate::service::{Executor, SESSION, Service};
use crate::stats::{Samples, human};
use crate::throughput::WARM_UP;
use crate::{Bench, say};

/// A batch of processes is this much smaller than one of tasks that do nothing.
const PROCESSES: usize = 5;

/// The measurements of one build in each repeat.
struct Build {
    name: &'static str,
    program: PathBuf,
    /// As [`FIGURES`] names them.
    figures: [Samples; FIGURES.len()],
}

/// Names and units.
const FIGURES: [(&str, &str); 5] = [
    ("tasks that do nothing", "tasks/s"),
    ("`true` as a process", "tasks/s"),
    ("a task that does nothing, create to outcome", "ms"),
    ("`true` as a process, create to outcome", "ms"),
    ("the whole command `submit true`", "ms"),
];

/// Both builds in turn.
pub fn run(bench: &mut Bench) {
    let Some(other) = bench.options.against.clone() else {
        bench.report.notes.push("no --against: the case against was left out".to_string());
        return;
    };
    let build = |name, program: &Path| Build {
        name,
        program: program.to_path_buf(),
        figures: [(); FIGURES.len()].map(|()| Samples::default()),
    };
    let mut builds = [build("this build", Path::new(env!("CARGO_BIN_EXE_zkmw"))), build("the other", &other)];
    for repeat in 0..bench.options.repeats {
        // The second finds the servers warmer than the first.
        for turn in 0..builds.len() {
            let build = &mut builds[(repeat + turn) % 2];
            let figures = measure(bench, &build.program);
            say(&format!("{}: {}", build.name, figures.map(human).join(", ")));
            for (samples, figure) in build.figures.iter_mut().zip(figures) {
                samples.0.push(figure);
            }
        }
    }
    let [this, other] = builds;
    for (at, (what, unit)) in FIGURES.into_iter().enumerate() {
        let (this, other) = (this.figures[at].clone(), other.figures[at].clone());
        let ratio = this.over(&other);
        bench.report.row("against", format!("{what}: this build"), unit, this, "");
        bench.report.row("against", format!("{what}: the other"), unit, other, "");
        bench.report.row("against", format!("{what}: over the other's"), "", ratio, "");
    }
}

/// One repeat of one build, in the order of [`FIGURES`].
fn measure(bench: &Bench, program: &Path) -> [f64; FIGURES.len()] {
    let (tasks, each) = (bench.options.tasks, bench.options.submits.div_ceil(bench.options.repeats));
    let mut figures = [0.0; FIGURES.len()];
    for (at, (executor, tasks)) in
        [(bench.cheapest(), tasks), (Executor::Process, tasks.div_ceil(PROCESSES))].into_iter().enumerate()
    {
        let cluster = Cluster::on(&bench.ensemble, "against").with_program(program);
        let service = Service::start_on(cluster, bench.options.pool, &executor, SESSION);
        service.batch(tasks.div_ceil(WARM_UP), &[]);
        figures[at] = tasks as f64 / service.batch(tasks, &[]);
        figures[2 + at] = stretch(bench, &service, each, CALM).0.median();
        if executor == Executor::Process {
            figures[4] = commands(&service).median();
        }
        service.stop();
    }
    figures
}
