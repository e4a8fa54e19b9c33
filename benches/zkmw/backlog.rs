//! (d) Many commands pending, as lines of a batch or as single tasks: the time of a batch beside them, their
//! cost for a leader and a standby, how soon another master leads, how long the longest listing is. All sizes exist
//! side by side and are measured in turn. Must not let the backlog run.

use crate::client::Client;
use crate::harness::Cluster;
use crate::plot::{Curve, Plot, Scale};
use crate::report::budget;
use crate::service::{Service, largest};
use crate::stats::{Samples, human};
use crate::takeover::Signal;
use crate::throughput::SINGLE;
use crate::{Bench, say};

/// Calls that the measuring client may have in flight.
const THREADS: usize = 2;

/// The budget compares 1,000,000 lines pending with 1,000, and takeover with 100.
const MANY: usize = 1_000_000;
const FEW: usize = 1_000;
const FEWEST: usize = 100;

/// Bytes that the budget allows for a pending line, and for a single task.
const BYTES_A_LINE: f64 = 64.0;
const KIB: f64 = 1_024.0;

/// A batch of lines beside the backlog has so many for each of the options' tasks, and one of single tasks one for so
/// many of them: each takes some seconds.
const LINES_A_TASK: usize = 5;
const TASKS_A_SINGLE: usize = 4;

/// Takeovers after SIGTERM of each repeat, of lines. Servers are warm for the size that was measured last, so a repeat
/// goes over the sizes in both directions.
const TAKEOVERS: usize = 2;

/// Session timeout of the masters, the default of the service: each takeover after SIGKILL waits for it.
const MASTERS_SESSION: &str = "10s";

/// From so many on, a process's other memory does not matter to the memory for each.
const ENOUGH: usize = 10_000;

/// How pending commands are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// As a batch that was submitted without any flag.
    Lines,
    /// A znode each.
    Single,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Lines => "lines",
            Kind::Single => "single tasks",
        }
    }

    /// The arguments of `submit`.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Kind::Lines => &[],
            Kind::Single => &SINGLE,
        }
    }

    /// Commands of the batches beside the backlog, which are stored as that is.
    fn batch(self, bench: &Bench) -> usize {
        match self {
            Kind::Lines => bench.options.tasks * LINES_A_TASK,
            Kind::Single => bench.options.tasks.div_ceil(TASKS_A_SINGLE),
        }
    }
}

/// A service with a backlog, and what was measured there.
struct Size {
    kind: Kind,
    pending: usize,
    service: Service,
    rates: Samples,
    /// Milliseconds from SIGTERM, from SIGKILL, and from the end of the session of the killed one.
    terminated: Samples,
    killed: Samples,
    expired: Samples,
    /// Bytes for each pending command, of the leader and of the standby.
    bytes: [f64; 2],
}

impl Size {
    fn start(bench: &Bench, kind: Kind, pending: usize) -> Size {
        say(&format!("making {} {} that stay pending", human(pending as f64), kind.name()));
        let name = format!("pending-{pending}-{}", kind.name().replace(' ', "-"));
        let cluster = Cluster::on(&bench.ensemble, &name);
        let mut service = Service::start_on(cluster, bench.options.pool, &bench.cheapest(), MASTERS_SESSION);
        // A process gets what it needs once and for all, such as its threads' memory, before the first reading.
        service.batch((kind.batch(bench) / 10).max(1), kind.flags());
        let resident =
            |service: &Service| [0, 1].map(|master: usize| service.masters[master].memory() as f64);
        service.leader_first();
        let before = resident(&service);
        service.backlog(pending, kind.flags());
        let after = resident(&service);
        let bytes = [0, 1].map(|master: usize| (after[master] - before[master]) / pending as f64);
        let none = Samples::default;
        let (rates, terminated, killed, expired) = (none(), none(), none(), none());
        Size { kind, pending, service, rates, terminated, killed, expired, bytes }
    }

    fn name(&self) -> String {
        format!("{} {} pending", human(self.pending as f64), self.kind.name())
    }
}

/// All sizes.
pub fn run(bench: &mut Bench) {
    let mut sizes: Vec<Size> = Vec::new();
    for (kind, numbers) in
        [(Kind::Lines, bench.options.pending.clone()), (Kind::Single, bench.options.pending_single.clone())]
    {
        sizes.extend(numbers.into_iter().map(|pending| Size::start(bench, kind, pending)));
    }
    let mut looker = Client::connect(&bench.ensemble.connect, THREADS);
    let limits = rates(bench, &mut sizes);
    for repeat in 0..bench.options.repeats {
        terminate(&mut sizes, &mut looker);
        kill(&mut sizes, &mut looker, repeat);
    }
    for size in &mut sizes {
        size.service.leader_first();
        rows(bench, size, &mut looker);
    }
    verdicts(bench, &sizes);
    plots(bench, &sizes, &limits);
    for Size { service, .. } in sizes {
        let layout = service.cluster.layout.clone();
        service.stop();
        Service::delete_tasks(&bench.ensemble.connect, &layout);
    }
}

/// Batches beside all sizes, in turn with W.
fn rates(bench: &mut Bench, sizes: &mut [Size]) -> Samples {
    let mut limits = Samples::default();
    for repeat in 0..bench.options.repeats {
        limits.0.push(bench.limit.measure());
        for size in to_and_fro(repeat, sizes.iter_mut().collect()) {
            let commands = size.kind.batch(bench);
            let rate = commands as f64 / size.service.batch(commands, size.kind.flags());
            size.rates.0.push(rate);
            say(&format!("{}: {} commands/s", size.name(), human(rate)));
        }
    }
    limits
}

/// A repeat of takeovers after SIGTERM.
fn terminate(sizes: &mut [Size], looker: &mut Client) {
    let mut few = vec![Samples::default(); sizes.len()];
    for turn in 0..TAKEOVERS {
        for (size, few) in to_and_fro(turn, sizes.iter_mut().zip(&mut few).collect()) {
            // A standby takes long to read single tasks, and no bound depends on them.
            if size.kind == Kind::Lines || turn == 0 {
                few.0.push(size.service.takeover(looker, Signal::Term).since_signal);
            }
        }
    }
    for (size, few) in sizes.iter_mut().zip(few) {
        say(&format!("{}: takeover after SIGTERM {} ms", size.name(), human(few.median())));
        size.terminated.0.push(few.median());
    }
}

/// A repeat of takeovers after SIGKILL, with the fewest and the most lines alone: each takes a session timeout.
fn kill(sizes: &mut [Size], looker: &mut Client, repeat: usize) {
    let mut lines: Vec<&mut Size> = sizes.iter_mut().filter(|size| size.kind == Kind::Lines).collect();
    if lines.len() > 2 {
        lines.drain(1..lines.len() - 1);
    }
    for size in to_and_fro(repeat, lines) {
        let takeover = size.service.takeover(looker, Signal::Kill);
        let (all, part) = (human(takeover.since_signal), human(takeover.since_end));
        say(&format!("{}: takeover after SIGKILL {all} ms, {part} ms of it later", size.name()));
        size.killed.0.push(takeover.since_signal);
        size.expired.0.push(takeover.since_end);
    }
}

/// In every second turn from the last to the first.
fn to_and_fro<T>(turn: usize, mut all: Vec<T>) -> Vec<T> {
    if turn % 2 == 1 {
        all.reverse();
    }
    all
}

fn rows(bench: &mut Bench, size: &Size, looker: &mut Client) {
    let remark = format!("batches of {} beside them", human(size.kind.batch(bench) as f64));
    let (children, bytes) = largest(looker, &size.service.cluster.layout);
    let report = &mut bench.report;
    report.seen(f64::from(children.0), f64::from(bytes.0));
    let mut row = |what: &str, unit, samples: Samples, remark: &str| {
        report.row("pending", format!("{}: {what}", size.name()), unit, samples, remark);
    };
    row("throughput", "commands/s", size.rates.clone(), &remark);
    row("takeover after SIGTERM", "ms", size.terminated.clone(), "to the last assignment");
    if !size.killed.0.is_empty() {
        let remark = format!("masters' sessions of {MASTERS_SESSION}");
        row("takeover after SIGKILL", "ms", size.killed.clone(), &remark);
        row("the same from the session's end", "ms", size.expired.clone(), "");
    }
    for (master, role) in ["leader", "standby"].into_iter().enumerate() {
        let each = Samples(vec![size.bytes[master]]);
        row(&format!("{role}'s memory for each"), "bytes", each, "VmRSS after less before");
        let now = Samples(vec![size.service.masters[master].memory() as f64 / KIB / KIB]);
        row(&format!("{role}'s memory"), "MiB", now, "of one that loaded them at its start");
    }
    row("longest listing", "children", one(children.0), &children.1);
    row("largest znode", "bytes", one(bytes.0), &bytes.1);
}

fn one(number: i32) -> Samples {
    Samples(vec![f64::from(number)])
}

fn verdicts(bench: &mut Bench, sizes: &[Size]) {
    let lines: Vec<&Size> = sizes.iter().filter(|size| size.kind == Kind::Lines).collect();
    let of = |pending: usize| lines.iter().find(|size| size.pending == pending);
    if let Some(most) = lines.last() {
        let how = |other: &Size| {
            let smaller = if most.pending < MANY { ", less than the budget speaks of" } else { "" };
            format!("{} over {}{smaller}", human(most.pending as f64), human(other.pending as f64))
        };
        if let Some(few) = of(FEW).filter(|few| few.pending < most.pending) {
            bench.report.measured(budget::FLAT, most.rates.over(&few.rates), how(few));
        }
        if let Some(few) = of(FEWEST).filter(|few| few.pending < most.pending) {
            bench.report.measured(budget::TAKEOVER, most.terminated.over(&few.terminated), how(few));
            bench.report.measured(budget::EXPIRY, most.expired.over(&few.expired), how(few));
        }
    }
    for (kind, line, unit) in
        [(Kind::Lines, budget::LINE_MEMORY, 1.0), (Kind::Single, budget::TASK_MEMORY, KIB)]
    {
        let large: Vec<&Size> =
            sizes.iter().filter(|size| size.kind == kind && size.pending >= ENOUGH).collect();
        if !large.is_empty() {
            let bytes = large.iter().flat_map(|size| size.bytes.map(|bytes| bytes / unit)).collect();
            let numbers: Vec<String> = large.iter().map(|size| human(size.pending as f64)).collect();
            bench.report.measured(line, Samples(bytes), format!("at {} pending", numbers.join(" and ")));
        }
    }
}

fn plots(bench: &mut Bench, sizes: &[Size], limits: &Samples) {
    let limit = points(sizes, |_| limits.clone());
    bench.report.plots.push(plot(
        "throughput-over-pending",
        "Throughput over the backlog",
        format!("batches of {} empty lines beside it", human(Kind::Lines.batch(bench) as f64)),
        "commands a second",
        vec![
            Curve::measured("zkmw", points(sizes, |size| size.rates.clone())),
            Curve::bound("the budget, 2.5 × W", &limit, 2.5),
            Curve::measured("the ensemble's limit, W", limit),
        ],
    ));
    bench.report.plots.push(plot(
        "takeover-over-pending",
        "Takeover over the backlog",
        "until every assignment carries the next leader's epoch".to_string(),
        "milliseconds",
        vec![
            Curve::measured("from SIGTERM", points(sizes, |size| size.terminated.clone())),
            Curve::measured(
                "from the end of a killed leader's session",
                points(sizes, |size| size.expired.clone()),
            ),
        ],
    ));
    let large = |of: &dyn Fn(&Size) -> f64| {
        let mut all = points(sizes, |size| Samples(vec![of(size)]));
        all.retain(|(pending, _)| *pending >= ENOUGH as f64);
        all
    };
    let curves = vec![
        Curve::bound("the budget, 64 bytes", &large(&|_| BYTES_A_LINE), 1.0),
        Curve::measured("the leader's", large(&|size| size.bytes[0])),
        Curve::measured("the standby's", large(&|size| size.bytes[1])),
    ];
    if curves.iter().all(|curve| !curve.points.is_empty()) {
        let below = "resident memory with the backlog, less without it, over its size".to_string();
        let title = "Memory for each pending line";
        bench.report.plots.push(plot("memory-over-pending", title, below, "bytes a line", curves));
    }
}

/// The measurements with each number of lines pending, where there are any.
fn points(sizes: &[Size], of: impl Fn(&Size) -> Samples) -> Vec<(f64, Samples)> {
    let lines = sizes.iter().filter(|size| size.kind == Kind::Lines);
    let all = lines.map(|size| (size.pending as f64, of(size)));
    all.filter(|(_, samples)| !samples.0.is_empty()).collect()
}

fn plot(name: &'static str, title: &str, below: String, unit: &str, curves: Vec<Curve>) -> Plot {
    Plot {
        name,
        title: title.to_string(),
        below,
        x: ("lines pending".to_string(), Scale::Logarithmic),
        y: (unit.to_string(), Scale::Linear),
        curves,
    }
}
