//! Cases of throughput: batches from end to end, beside W. Must not count what was not collected.

use crate::limit::WRITES;
use crate::plot::{Curve, Plot, Scale};
use crate::report::budget;
use crate::service::Service;
use crate::stats::{Samples, human};
use crate::{Bench, say};

/// Slots of all workers together, where their number is varied.
const SLOTS_IN_ALL: usize = 64;

/// A service's batch before the first that counts is this much smaller.
pub const WARM_UP: usize = 10;

/// Lines of a batch as users submit it, for each task of the other cases: it takes about as long.
const LINES_A_TASK: usize = 10;

/// Rates of batches, and W beside each.
pub struct Rates {
    pub tasks: Samples,
    pub limit: Samples,
}

impl Rates {
    /// Over W/3, since a task costs three writes.
    fn over_tasks(&self) -> Samples {
        Samples(self.tasks.over(&self.limit).0.iter().map(|ratio| ratio * WRITES as f64).collect())
    }
}

/// Measures something, in tasks a second, in turn with W: before and after each.
fn in_turn(bench: &mut Bench, mut measure: impl FnMut(&mut Bench) -> f64) -> Rates {
    let mut rates = Rates { tasks: Samples::default(), limit: Samples::default() };
    let mut before = bench.limit.measure();
    for _ in 0..bench.options.repeats {
        let rate = measure(bench);
        let after = bench.limit.measure();
        say(&format!("{} tasks/s, W {} and {}", human(rate), human(before), human(after)));
        rates.tasks.0.push(rate);
        rates.limit.0.push(f64::midpoint(before, after));
        before = after;
    }
    rates
}

/// Runs batches in turn with measurements of W.
fn rates(bench: &mut Bench, service: &Service, tasks: usize, more: &[&str]) -> Rates {
    service.batch((tasks / WARM_UP).max(1), more);
    in_turn(bench, |_| tasks as f64 / service.batch(tasks, more))
}

/// Warms the servers up for tasks, as they were warmed up for W's writes: reads, watches and events take other ways
/// through a server, and its compiler takes its time with each.
pub fn warm_up(bench: &Bench) {
    let tasks = bench.options.warm_up / WRITES;
    say(&format!("warming the servers up with {} tasks", human(tasks as f64)));
    let service = Service::start(&bench.ensemble, "warm-up", bench.options.pool, &bench.cheapest());
    service.batch(tasks.max(1), &SINGLE);
    service.stop();
}

/// The flag that gives each line of a batch a znode of its own.
pub const SINGLE: [&str; 2] = ["--chunk", "1"];

/// (a) Empty tasks, each a znode of its own.
pub fn empty(bench: &mut Bench) {
    let (tasks, pool, executor) = (bench.options.tasks, bench.options.pool, bench.cheapest());
    let service = Service::start(&bench.ensemble, "empty", pool, &executor);
    let rates = rates(bench, &service, tasks, &SINGLE);
    service.stop();
    let ratio = rates.over_tasks();
    let remark = format!("{} tasks, {} workers x {} slots, {}", tasks, pool.0, pool.1, executor.name());
    bench.report.row("empty", "throughput", "tasks/s", rates.tasks, &remark);
    bench.report.row("empty", "over W/3", "", ratio.clone(), "");
    five_requests(bench);
    let how = format!("{} tasks, {}", human(tasks as f64), executor.name());
    bench.report.measured(budget::THROUGHPUT, ratio, how);
}

/// How much of W the five requests of a task leave, in turn with W.
fn five_requests(bench: &mut Bench) {
    say("the five requests of a task, and nothing else");
    let rates = in_turn(bench, |bench| bench.limit.five_requests());
    let over = rates.over_tasks();
    let what = "five requests a task, and nothing else";
    bench.report.row(
        "empty",
        what,
        "tasks/s",
        rates.tasks,
        "made, read, set, read, deleted by bare sessions",
    );
    bench.report.row(
        "empty",
        "the same over W/3",
        "",
        over,
        "what no service surpasses here that reads each task",
    );
}

/// (e) Few and many workers, all real processes.
pub fn workers(bench: &mut Bench) {
    let executor = bench.cheapest();
    let tasks = bench.options.tasks;
    let (mut curve, mut bare) = (Vec::new(), Vec::new());
    for count in bench.options.workers.clone() {
        let pool = (count, SLOTS_IN_ALL.div_ceil(count));
        say(&format!("{count} workers with {} slots each", pool.1));
        let service = Service::start(&bench.ensemble, &format!("workers-{count}"), pool, &executor);
        let rates = rates(bench, &service, tasks, &SINGLE);
        service.stop();
        let remark = format!("{tasks} tasks, {} slots each, {}", pool.1, executor.name());
        let what = format!("{} workers", human(count as f64));
        bench.report.row("workers", what, "tasks/s", rates.tasks.clone(), &remark);
        curve.push((count as f64, rates.tasks));
        bare.push((count as f64, Samples(rates.limit.0.iter().map(|limit| limit / WRITES as f64).collect())));
    }
    let below = format!("batches of {} empty tasks, {}", human(tasks as f64), executor.name());
    let x = ("workers (processes)".to_string(), Scale::Logarithmic);
    bench.report.plots.push(over(
        "throughput-over-workers",
        "Throughput over workers",
        below,
        x,
        curve,
        bare,
    ));
}

/// Throughput beside the ensemble's limit.
fn over(
    name: &'static str,
    title: &str,
    below: String,
    x: (String, Scale),
    zkmw: Vec<(f64, Samples)>,
    limit: Vec<(f64, Samples)>,
) -> Plot {
    let curves = vec![
        Curve::measured("zkmw", zkmw),
        Curve::bound("the budget, 0.4 × W/3", &limit, 0.4),
        Curve::measured("the ensemble's limit, W/3", limit),
    ];
    Plot {
        name,
        title: title.to_string(),
        below,
        x,
        y: ("tasks a second".to_string(), Scale::Linear),
        curves,
    }
}

/// (g) A batch as users submit it, with no other flag.
pub fn batch(bench: &mut Bench) {
    let Some(executor) = bench.handler.clone() else {
        bench.report.notes.push("no --handler: the case batch was left out".to_string());
        return;
    };
    let (pool, lines) = (bench.options.pool, bench.options.tasks * LINES_A_TASK);
    let service = Service::start(&bench.ensemble, "batch", pool, &executor);
    let rates = rates(bench, &service, lines, &[]);
    service.stop();
    let ratio = rates.tasks.over(&rates.limit);
    let remark = format!("{lines} lines, {}", executor.name());
    bench.report.row("batch", "throughput", "commands/s", rates.tasks, &remark);
    bench.report.row("batch", "over W", "", ratio.clone(), "");
    bench.report.measured(budget::BATCH, ratio, remark);
}
