//! (d) Many tasks pending: what a batch takes beside them, what they cost the leader, how soon another one leads, how
//! long the longest listing is. All sizes stand side by side and are measured in turn. Must not let the backlog run.

use crate::client::Client;
use crate::plot::{Curve, Plot, Scale};
use crate::report::budget;
use crate::service::{Service, largest};
use crate::stats::{Samples, human};
use crate::throughput::over;
use crate::{Bench, say};

/// Calls that the looking client may have in flight.
const THREADS: usize = 2;

/// The budget compares 100,000 pending with 1,000, and takeover with 100.
const MANY: usize = 100_000;
const FEW: usize = 1_000;
const FEWEST: usize = 100;

/// Bytes.
const KIB: f64 = 1_024.0;

/// Takeovers of each repeat.
const TAKEOVERS: usize = 5;

/// From so many on, a process's other memory does not matter to the memory for each task.
const ENOUGH: usize = 10_000;

/// A service with a backlog, and what was measured there.
struct Size {
    pending: usize,
    service: Service,
    rates: Samples,
    takeovers: Samples,
    /// Bytes for each pending task.
    bytes: f64,
}

/// All sizes.
pub fn run(bench: &mut Bench) {
    let mut sizes: Vec<Size> = Vec::new();
    for pending in bench.options.pending.clone() {
        sizes.push(start(bench, pending));
    }
    let mut looker = Client::connect(&bench.ensemble.connect, THREADS);
    let tasks = bench.options.tasks;
    let mut limits = Samples::default();
    for _ in 0..bench.options.repeats {
        limits.0.push(bench.limit.measure() / 3.0);
        for size in &mut sizes {
            let rate = tasks as f64 / size.service.batch(tasks, &[]);
            size.rates.0.push(rate);
            say(&format!("{} pending: {} tasks/s", human(size.pending as f64), human(rate)));
        }
    }
    takeovers(bench.options.repeats, &mut sizes, &mut looker);
    for size in &sizes {
        rows(bench, size, &mut looker);
    }
    verdicts(bench, &sizes);
    plots(bench, &sizes, &limits);
    for Size { pending, service, .. } in sizes {
        let layout = service.cluster.layout.clone();
        service.stop();
        Service::delete_backlog(&bench.ensemble.connect, &layout, pending);
    }
}

/// In turn over all sizes. Single ones scatter, so a repeat is the median of a few.
fn takeovers(repeats: usize, sizes: &mut [Size], looker: &mut Client) {
    for _ in 0..repeats {
        let mut few = vec![Samples::default(); sizes.len()];
        for turn in 0..TAKEOVERS {
            // To and fro: what went before one is warm in the servers.
            let mut order: Vec<_> = sizes.iter_mut().zip(&mut few).collect();
            if turn % 2 == 1 {
                order.reverse();
            }
            for (size, few) in order {
                // Loading a backlog that is larger yet takes minutes.
                if size.pending <= MANY || few.0.is_empty() {
                    few.0.push(1_000.0 * size.service.takeover(looker));
                }
            }
        }
        for (size, few) in sizes.iter_mut().zip(few) {
            say(&format!("{} pending: takeover {} ms", human(size.pending as f64), human(few.median())));
            size.takeovers.0.push(few.median());
        }
    }
}

fn start(bench: &Bench, pending: usize) -> Size {
    say(&format!("making {} tasks that stay pending", human(pending as f64)));
    let service = Service::start(
        &bench.ensemble,
        &format!("pending-{pending}"),
        bench.options.fleet,
        &bench.cheapest(),
    );
    // What a process needs once and for all, such as its threads' memory, is had before the first reading.
    service.batch((bench.options.tasks / 10).max(1), &[]);
    let resident = |service: &Service| service.masters[0].memory() as f64;
    let before = resident(&service);
    service.backlog(pending);
    let bytes = (resident(&service) - before) / pending as f64;
    Size { pending, service, rates: Samples::default(), takeovers: Samples::default(), bytes }
}

fn rows(bench: &mut Bench, size: &Size, looker: &mut Client) {
    let what = |what: &str| format!("{} pending: {what}", human(size.pending as f64));
    let remark = format!("batches of {} beside them", bench.options.tasks);
    let (children, bytes) = largest(looker, &size.service.cluster.layout);
    let report = &mut bench.report;
    report.seen(f64::from(children.0), f64::from(bytes.0));
    report.row("pending", what("throughput"), "tasks/s", size.rates.clone(), &remark);
    report.row("pending", what("takeover after SIGTERM"), "ms", size.takeovers.clone(), "to the last page");
    let each = Samples(vec![size.bytes]);
    report.row("pending", what("leader's memory for each"), "bytes", each, "VmRSS after less before");
    let now = size.service.masters[0].memory() as f64 / 1_048_576.0;
    report.row(
        "pending",
        what("leader's memory"),
        "MiB",
        Samples(vec![now]),
        "of one that loaded them at its start",
    );
    report.row("pending", what("longest listing"), "children", one(children.0), &children.1);
    report.row("pending", what("largest znode"), "bytes", one(bytes.0), &bytes.1);
}

fn one(number: i32) -> Samples {
    Samples(vec![f64::from(number)])
}

fn verdicts(bench: &mut Bench, sizes: &[Size]) {
    let of = |pending: usize| sizes.iter().find(|size| size.pending == pending);
    let Some(most) = sizes.iter().rfind(|size| size.pending <= MANY).or(sizes.last()) else { return };
    let told = |size: &Size, other: &Size| {
        let smaller = if size.pending < MANY { ", less than the budget speaks of" } else { "" };
        format!("{} over {}{smaller}", human(size.pending as f64), human(other.pending as f64))
    };
    if let Some(few) = of(FEW).filter(|few| few.pending < most.pending) {
        bench.report.measured(budget::FLAT, most.rates.over(&few.rates), told(most, few));
    }
    if let Some(few) = of(FEWEST).filter(|few| few.pending < most.pending) {
        bench.report.measured(budget::TAKEOVER, most.takeovers.over(&few.takeovers), told(most, few));
    }
    let large: Vec<&Size> = sizes.iter().filter(|size| size.pending >= ENOUGH).collect();
    if !large.is_empty() {
        let kib = Samples(large.iter().map(|size| size.bytes / KIB).collect());
        let numbers: Vec<String> = large.iter().map(|size| human(size.pending as f64)).collect();
        bench.report.measured(budget::MEMORY, kib, format!("at {} pending", numbers.join(", ")));
    }
}

fn plots(bench: &mut Bench, sizes: &[Size], limits: &Samples) {
    let x = || ("tasks pending".to_string(), Scale::Logarithmic);
    let points = |of: &dyn Fn(&Size) -> Samples| {
        sizes.iter().map(|size| (size.pending as f64, of(size))).collect::<Vec<_>>()
    };
    let below = format!("batches of {} empty tasks beside them", human(bench.options.tasks as f64));
    let (zkmw, limit) = (points(&|size| size.rates.clone()), points(&|_| limits.clone()));
    let plot = over("throughput-over-pending", "Throughput over the backlog", below, x(), zkmw, limit);
    bench.report.plots.push(plot);
    let large: Vec<(f64, Samples)> = points(&|size| Samples(vec![size.bytes]));
    let large: Vec<(f64, Samples)> =
        large.into_iter().filter(|(pending, _)| *pending >= FEW as f64).collect();
    let bound: Vec<(f64, Samples)> = large.iter().map(|(x, _)| (*x, Samples(vec![KIB]))).collect();
    bench.report.plots.push(Plot {
        name: "memory-over-pending",
        title: "The leader's memory for each pending task".to_string(),
        below: "resident memory with the backlog, less without it, over its size".to_string(),
        x: x(),
        y: ("bytes a task".to_string(), Scale::Linear),
        curves: vec![
            Curve::bound("the budget, 1 KiB", &bound, 1.0),
            Curve::measured("the leader's memory", large),
        ],
    });
    bench.report.plots.push(Plot {
        name: "takeover-over-pending",
        title: "Takeover over the backlog".to_string(),
        below: "from SIGTERM to the leader until every page carries the next one's epoch".to_string(),
        x: x(),
        y: ("milliseconds".to_string(), Scale::Linear),
        curves: vec![Curve::measured("takeover", points(&|size| size.takeovers.clone()))],
    });
}
