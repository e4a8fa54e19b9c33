//! (c) One task at a time on an idle system, by a client of the contract that has its session already; in turn with
//! single writes over the same session. The servers that the sessions happen to use make a third of either, so each
//! repeat has a service and a session of its own. Must not have two tasks under way.

use std::time::{Duration, Instant};

use zkmw::contract::task::{Options as TaskOptions, Payload, Task};
use zkmw::contract::{TaskId, shared_job};
use zkmw::machine::Call;

use crate::client::{Client, create};
use crate::limit::one_write;
use crate::plot::{Curve, Plot, Scale};
use crate::report::budget;
use crate::service::{Executor, Service};
use crate::stats::{Samples, human};
use crate::{Bench, say};

/// How long one task may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Calls that a client may have in flight; it has one.
const THREADS: usize = 2;

/// Tasks before the first that counts.
const WARM_UP: usize = 20;

/// A pause in which all work that a task leaves behind ends. Without it, the system is not idle. Processors come to
/// rest as well, so that everything takes longer.
pub const CALM: Duration = Duration::from_millis(10);

/// Runs of the whole command, in each repeat.
const COMMANDS: usize = 4;

/// Both executors, each with a service of its own.
pub fn run(bench: &mut Bench) {
    let mut executors = vec![Executor::Process];
    executors.extend(bench.handler.clone());
    let mut curves = Vec::new();
    for executor in executors {
        curves.extend(one(bench, &executor, curves.is_empty()));
    }
    bench.report.plots.push(Plot {
        name: "latency",
        title: "From a task's create to its outcome".to_string(),
        below: "one at a time on an idle system, over an established session".to_string(),
        x: ("share of the tasks, %".to_string(), Scale::Linear),
        y: ("milliseconds".to_string(), Scale::Logarithmic),
        curves,
    });
}

/// The results of stretches of one pace, in milliseconds; the ratios are those of their medians.
struct Pace {
    name: &'static str,
    /// Before each task and each write.
    pause: Duration,
    tasks: Samples,
    writes: Samples,
    ratios: Samples,
}

impl Pace {
    fn new(name: &'static str, pause: Duration) -> Pace {
        let [tasks, writes, ratios] = [(); 3].map(|()| Samples::default());
        Pace { name, pause, tasks, writes, ratios }
    }

    fn add(&mut self, bench: &Bench, service: &Service, count: usize) {
        let (tasks, writes) = stretch(bench, service, count, self.pause);
        self.ratios.0.push(tasks.median() / writes.median());
        self.tasks.0.extend(tasks.0);
        self.writes.0.extend(writes.0);
    }

    /// Its rows of the table.
    fn report(&self, bench: &mut Bench, executor: &Executor) {
        say(&format!(
            "{}, {}: {} ms, one write {} ms; the ratios: {}",
            executor.name(),
            self.name,
            human(self.tasks.median()),
            human(self.writes.median()),
            self.ratios.0.iter().map(|one| human(*one)).collect::<Vec<_>>().join(", ")
        ));
        let remark = self.remark(executor);
        let mut row = |what: String, unit, samples| bench.report.row("latency", what, unit, samples, &remark);
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            row(format!("{name}, create to outcome"), "ms", Samples(vec![self.tasks.quantile(share)]));
            row(format!("{name}, one write"), "ms", Samples(vec![self.writes.quantile(share)]));
        }
        row("median over one write's".to_string(), "", self.ratios.clone());
    }

    fn remark(&self, executor: &Executor) -> String {
        format!("{} tasks {}, {}", self.tasks.0.len(), self.name, executor.name())
    }
}

fn one(bench: &mut Bench, executor: &Executor, with_write: bool) -> Vec<Curve> {
    let each = bench.options.submits.div_ceil(bench.options.repeats);
    let mut swift = Pace::new("back to back", Duration::ZERO);
    let mut calm = Pace::new("after 10 ms of calm", CALM);
    let mut whole = Samples::default();
    for _ in 0..bench.options.repeats {
        let service = Service::start(&bench.ensemble, "latency", bench.options.pool, executor);
        swift.add(bench, &service, each);
        calm.add(bench, &service, each);
        whole.0.extend(commands(&service).0);
        service.stop();
    }
    swift.report(bench, executor);
    calm.report(bench, executor);
    bench.report.row("latency", "the whole command `submit`", "ms", whole, executor.name());
    let remark = calm.remark(executor);
    bench.report.measured(budget::LATENCY, calm.ratios, remark);
    let mut curves = vec![distribution(executor.name(), &calm.tasks)];
    if with_write {
        curves.push(distribution("one quorum write", &calm.writes));
    }
    curves
}

/// Tasks and single writes in turn, with a pause before each, over one session, so both use the same server.
pub fn stretch(bench: &Bench, service: &Service, count: usize, pause: Duration) -> (Samples, Samples) {
    let mut user = Client::connect(&bench.ensemble.connect, THREADS);
    let path = format!("{}-write", service.cluster.root);
    user.ensure(&path, b"");
    let mut version = user.get(&path, false).expect("it was made").1.version;
    let (mut tasks, mut writes) = (Samples::default(), Samples::default());
    for number in 0..WARM_UP + count {
        std::thread::sleep(pause);
        let write = 1_000.0 * one_write(&mut user, &path, &mut version);
        std::thread::sleep(pause);
        let task = 1_000.0 * one_task(&mut user, service, number);
        if number >= WARM_UP {
            writes.0.push(write);
            tasks.0.push(task);
        }
    }
    (tasks, writes)
}

/// From the create to the arrival of the outcome, in seconds. Collects the task.
fn one_task(user: &mut Client, service: &Service, number: usize) -> f64 {
    let layout = &service.cluster.layout;
    let name = format!("bench-{number:07}");
    let id = TaskId::new(&shared_job(&name), &name);
    let data = Task::new(Payload::Shell("true".to_string()), TaskOptions::default()).encode();
    user.ensure(&layout.tasks(), b"");
    user.ensure(&layout.job(id.dir()), b"");
    let path = layout.task(&id);
    let from = Instant::now();
    user.must(create(&path, &data));
    loop {
        // One watch on one znode: the next change is reported.
        let (data, stat) = user.get(&path, true).expect("only we delete it");
        if Task::decode(&data).expect("a task").outcome.is_some() {
            let seconds = from.elapsed().as_secs_f64();
            user.must(Call::Delete { path, version: Some(stat.version) });
            // Its own deletion is reported as well, and would be taken for the next one's.
            user.wait_change(LIMIT).expect("the watch reports the deletion");
            return seconds;
        }
        user.wait_change(LIMIT).expect("the task ends");
    }
}

/// The whole command, from start to exit, for information.
pub fn commands(service: &Service) -> Samples {
    let one = |_| {
        let from = Instant::now();
        let exit = service.cluster.submit(&["true"]).wait_exit(LIMIT);
        assert_eq!(exit.code, 0, "{exit:?}");
        1_000.0 * from.elapsed().as_secs_f64()
    };
    Samples((0..COMMANDS).map(one).collect())
}

/// How long the quickest x % took at most.
fn distribution(name: &str, samples: &Samples) -> Curve {
    let point =
        |percent: u32| (f64::from(percent), Samples(vec![samples.quantile(f64::from(percent) / 100.0)]));
    Curve::measured(name, (1..=99).map(point).collect())
}
