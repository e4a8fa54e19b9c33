//! (h) As many tasks as fit: lines of a batch, and tasks that each have a znode of their own. Samples all sizes
//! while it goes on, for the peaks. Must not disturb it: a few reads a second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use zkmw::contract::Layout;

use crate::client::Client;
use crate::harness::process::memory;
use crate::service::{Service, last_lines};
use crate::stats::{Samples, human};
use crate::throughput::SINGLE;
use crate::{Bench, say};

/// How often all is sampled.
const EVERY: Duration = Duration::from_millis(500);

/// Of the directories of tasks, so many are sampled each time, in turn.
const DIRECTORIES: usize = 20;

/// How long it may take: so long for each task, and in any case.
const TASK: Duration = Duration::from_millis(20);
const IN_ANY_CASE: Duration = Duration::from_secs(300);

/// Both.
pub fn run(bench: &mut Bench) {
    let (lines, single) = bench.options.million;
    one(bench, "lines", lines, &[]);
    one(bench, "single", single, &SINGLE);
}

fn one(bench: &mut Bench, name: &str, tasks: usize, more: &[&str]) {
    let executor = bench.cheapest();
    let service = Service::start(&bench.ensemble, name, bench.options.pool, &executor);
    let before = bench.limit.measure();
    say(&format!("{} tasks, {name}", human(tasks as f64)));
    let from = Instant::now();
    let mut submit = service.submit(tasks, more);
    let roles = [
        ("leader", service.masters[0].pid()),
        ("standby", service.masters[1].pid()),
        ("worker", service.workers[0].pid()),
        ("submitter", submit.pid()),
    ];
    let looker = Sampler::start(&bench.ensemble.connect, service.cluster.layout.clone(), &roles);
    let exit = submit.wait_exit(IN_ANY_CASE + TASK * u32::try_from(tasks).expect("a sane number"));
    let seconds = from.elapsed().as_secs_f64();
    let peaks = looker.stop();
    assert_eq!(exit.code, 0, "{}", last_lines(&exit.stderr));
    let limit = f64::midpoint(before, bench.limit.measure());
    let what = |what: &str| format!("{} {name}: {what}", human(tasks as f64));
    let (rate, report) = (tasks as f64 / seconds, &mut bench.report);
    report.row("million", what("time"), "s", Samples(vec![seconds]), executor.name());
    report.row("million", what("throughput"), "tasks/s", Samples(vec![rate]), "");
    report.row("million", what("over W"), "", Samples(vec![rate / limit]), "W before and after");
    let most = |kind: &str| {
        let of_kind = peaks.iter().filter(|(name, _)| name.starts_with(kind));
        of_kind.map(|(_, peak)| *peak).fold(0.0, f64::max)
    };
    report.seen(most("children"), most("bytes"));
    for (name, peak) in peaks {
        let unit = if name.starts_with("memory") { "MiB" } else { "" };
        report.row("million", what(&name), unit, Samples(vec![peak]), "the peak");
    }
    service.stop();
}

/// A thread that samples memory and sizes until it is stopped.
struct Sampler {
    over: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<String, f64>>,
}

impl Sampler {
    fn start(connect: &str, layout: Layout, roles: &[(&'static str, u32)]) -> Sampler {
        let over = Arc::new(AtomicBool::new(false));
        let (connect, roles, seen) = (connect.to_string(), roles.to_vec(), Arc::clone(&over));
        let thread = thread::spawn(move || {
            let mut client = Client::connect(&connect, 2);
            let mut peaks = BTreeMap::new();
            let mut turn = 0;
            while !seen.load(Ordering::Relaxed) {
                sample(&mut client, &layout, &roles, &mut peaks, turn);
                turn += 1;
                thread::park_timeout(EVERY);
            }
            peaks
        });
        Sampler { over, thread }
    }

    fn stop(self) -> BTreeMap<String, f64> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().expect("the sampler did not panic")
    }
}

fn sample(
    client: &mut Client,
    layout: &Layout,
    roles: &[(&'static str, u32)],
    peaks: &mut BTreeMap<String, f64>,
    turn: usize,
) {
    let mut peak = |name: String, number: f64| {
        let entry = peaks.entry(name).or_insert(0.0);
        *entry = entry.max(number);
    };
    for (role, pid) in roles {
        // The system's own high-water mark; it vanishes with the process, so it is read at each turn.
        if let Some(bytes) = memory(*pid, "VmHWM") {
            peak(format!("memory of the {role}"), bytes as f64 / 1_048_576.0);
        }
    }
    let assign = layout.assign();
    let mut sampled: Vec<(String, &str)> = vec![(layout.status(), "status")];
    sampled.extend(
        client.children(&assign).iter().map(|assignment| (format!("{assign}/{assignment}"), "an assignment")),
    );
    let parts = client.children(&layout.tasks());
    for at in 0..DIRECTORIES.min(parts.len()) {
        let part = &parts[(turn * DIRECTORIES + at) % parts.len()];
        sampled.push((layout.job(part), "a directory of tasks"));
    }
    sampled.push((layout.tasks(), "a directory of jobs"));
    for (path, kind) in sampled {
        if let Some(stat) = client.stat(&path) {
            // A znode without data is a directory, one without children is none.
            if stat.data_length > 0 {
                peak(format!("bytes of {kind}"), f64::from(stat.data_length));
            }
            if stat.num_children > 0 {
                peak(format!("children of {kind}"), f64::from(stat.num_children));
            }
        }
    }
}
