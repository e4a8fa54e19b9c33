//! (b) `true` as a process: a plain batch on one worker, in turn with programs that run commands as well; a process
//! task that is alone; and the command `zkmw submit true`, from start to exit and in parts. Must not let the caller's
//! control groups decide unseen.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::harness::Cluster;
use crate::latency::{CALM, stretch};
use crate::peers::{AT_ONCE, Peer};
use crate::report::budget;
use crate::service::{Executor, SESSION, Service};
use crate::stats::{Samples, human};
use crate::throughput::WARM_UP;
use crate::{Bench, say};

/// Slots of the worker that has many.
const MANY: usize = 16;

/// The time that the whole command may take besides the quorum writes that it waits for, in ms.
const COMMAND_MS: f64 = 15.0;

/// The parts of `zkmw submit true`: each ends when its log (`-vv`) says this, the last one with the process.
const PARTS: [(&str, &str); 6] = [
    ("start: until it asks a server", "asking the ZooKeeper server"),
    ("probe: until that grants a session", "grants sessions"),
    ("connect: until its own session is up", "ZooKeeper session up"),
    ("create: until the task is made", " is made"),
    ("run: until its outcome was read", "has its outcome"),
    ("collect: the task deleted, the session closed, the process ended", ""),
];

/// A service with one worker, and its measurements.
struct Kind {
    name: String,
    service: Service,
    rates: Samples,
}

/// The whole case.
pub fn run(bench: &mut Bench) {
    let count = bench.options.tasks;
    let (peers, missing) = Peer::all();
    missing.iter().for_each(|why| note(bench, why));
    let mut kinds = kinds(bench);
    let mut rates: Vec<Samples> = peers.iter().map(|_| Samples::default()).collect();
    for kind in &kinds {
        kind.service.batch((count / WARM_UP).max(1), &[]);
    }
    for repeat in 0..bench.options.repeats {
        for (peer, rates) in peers.iter().zip(&mut rates) {
            let rate = peer.measure(kinds[0].service.cluster.dir(), count);
            say(&format!("{repeat}: {}: {} a second", peer.name(), human(rate)));
            rates.0.push(rate);
        }
        for kind in &mut kinds {
            let rate = count as f64 / kind.service.batch(count, &[]);
            say(&format!("{repeat}: {}: {} a second", kind.name, human(rate)));
            kind.rates.0.push(rate);
        }
    }
    report(bench, &peers, &rates, &kinds);
    alone(bench, &kinds[0].service);
    kinds.into_iter().for_each(|kind| kind.service.stop());
}

fn note(bench: &mut Bench, text: &str) {
    say(text);
    bench.report.notes.push(text.to_string());
}

/// Few slots and many, as they are here; and the same without control groups.
fn kinds(bench: &mut Bench) -> Vec<Kind> {
    let start = |bench: &Bench, slots: usize, program: Option<&Path>| {
        let cluster = Cluster::on(&bench.ensemble, "process");
        let cluster = program.into_iter().fold(cluster, Cluster::with_program);
        Service::start_on(cluster, (1, slots), &Executor::Process, SESSION)
    };
    let kind = |slots: usize, groups: &str, service| Kind {
        name: format!("zkmw, one worker with {slots} slots, {groups}"),
        service,
        rates: Samples::default(),
    };
    let both = [AT_ONCE, MANY];
    let services = both.map(|slots| (slots, start(bench, slots, None)));
    if !has_groups(&services[0].1) {
        note(bench, "no control groups here: all was measured without, and nothing beside them");
        return services
            .into_iter()
            .map(|(slots, service)| kind(slots, "no control groups", service))
            .collect();
    }
    let mut kinds: Vec<Kind> =
        services.into_iter().map(|(slots, service)| kind(slots, "control groups", service)).collect();
    let Some(program) = hidden(kinds[0].service.cluster.dir()) else {
        note(bench, "only root can hide the control groups: nothing was measured without them");
        return kinds;
    };
    for slots in both {
        let service = start(bench, slots, Some(&program));
        assert!(!has_groups(&service), "its control groups could not be hidden");
        kinds.push(kind(slots, "no control groups", service));
    }
    kinds
}

/// Whether a task has another cgroup than its worker.
fn has_groups(service: &Service) -> bool {
    let task = service.cluster.run(&["submit", "grep ^0:: /proc/self/cgroup"]).stdout;
    let worker = fs::read_to_string(format!("/proc/{}/cgroup", service.workers[0].pid())).unwrap_or_default();
    !worker.lines().any(|line| line == task.trim())
}

/// A program that is zkmw where no cgroup of version 2 is mounted; `None` if we may not do so.
fn hidden(folder: &Path) -> Option<PathBuf> {
    let path = folder.join("zkmw-without-cgroups");
    let program = env!("CARGO_BIN_EXE_zkmw");
    let text = format!(
        "#!/bin/sh\n\
         exec unshare --mount --propagation private sh -c '\n\
         grep \" - cgroup2 \" /proc/self/mountinfo | cut -d \" \" -f 5 | sort -r | while read -r at; do\n\
         umount -l \"$at\" || exit 1\n\
         done || exit 1\n\
         exec \"$@\"' sh '{program}' \"$@\"\n"
    );
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    let status = Command::new(&path).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success()).then_some(path)
}

/// The rows, and the lines of the budget.
fn report(bench: &mut Bench, peers: &[Peer], rates: &[Samples], kinds: &[Kind]) {
    let count = bench.options.tasks;
    let how = format!("{} lines of a plain batch, end to end, with their results", human(count as f64));
    for (peer, rates) in peers.iter().zip(rates) {
        bench.report.row("process", peer.name(), "runs/s", rates.clone(), "");
    }
    for kind in kinds {
        bench.report.row("process", kind.name.clone(), "tasks/s", kind.rates.clone(), &how);
    }
    let few = kinds[0].rates.clone();
    for (peer, rates) in peers.iter().zip(rates) {
        let line = match peer {
            Peer::Xargs => budget::XARGS,
            Peer::Gearman(_) => budget::GEARMAN,
            Peer::Parallel => budget::PARALLEL,
        };
        bench.report.measured(line, few.over(rates), how.clone());
    }
    bench.report.measured(budget::SLOTS, kinds[1].rates.over(&few), how.clone());
    if let [with, _, without, _] = kinds {
        let factors = with.rates.over(&without.rates).0.into_iter().map(|ratio| ratio.max(1.0 / ratio));
        bench.report.measured(budget::GROUPS, Samples(factors.collect()), format!("{AT_ONCE} slots; {how}"));
    }
}

/// A task that is alone, and the whole command, in turn with quorum writes.
fn alone(bench: &mut Bench, service: &Service) {
    let (repeats, submits) = (bench.options.repeats, bench.options.submits);
    let each = submits.div_ceil(repeats);
    let [mut tasks, mut writes, mut whole, mut ratios, mut rest] = [(); 5].map(|()| Samples::default());
    let mut parts = PARTS.map(|_| Samples::default());
    for _ in 0..repeats {
        let (task, write) = stretch(bench, service, each, CALM);
        let mut commands = Samples::default();
        for _ in 0..each {
            std::thread::sleep(CALM);
            commands.0.push(command(service, &[]).last().copied().unwrap_or(f64::NAN));
            std::thread::sleep(CALM);
            let ends = command(service, &["-vv"]);
            let begins = std::iter::once(&0.0).chain(&ends);
            for (part, (end, begin)) in parts.iter_mut().zip(ends.iter().zip(begins)) {
                part.0.push(end - begin);
            }
        }
        ratios.0.push(task.median() / write.median());
        rest.0.push((commands.median() - COMMAND_MS) / write.median());
        say(&format!(
            "alone: create to outcome {} ms, one write {} ms, the whole command {} ms",
            human(task.median()),
            human(write.median()),
            human(commands.median())
        ));
        tasks.0.push(task.median());
        writes.0.push(write.median());
        whole.0.push(commands.median());
    }
    let remark = format!("medians of {each}, each after 10 ms of calm");
    bench.report.row("process", "alone: create to outcome", "ms", tasks, &remark);
    bench.report.row("process", "one quorum write", "ms", writes, &remark);
    bench.report.row("process", "`zkmw submit true`, start to exit", "ms", whole, &remark);
    for ((name, _), part) in PARTS.iter().zip(parts) {
        let remark = format!("of {} commands", part.0.len());
        bench.report.row("process", format!("… {name}"), "ms", part, &remark);
    }
    bench.report.measured(budget::ALONE, ratios, remark.clone());
    bench.report.measured(budget::COMMAND, rest, remark);
}

/// Runs `zkmw submit true`; when each of [`PARTS`] had ended, as far as it says so, in ms. The last is that of the
/// process.
fn command(service: &Service, more: &[&str]) -> Vec<f64> {
    let cluster = &service.cluster;
    let mut command = Command::new(env!("CARGO_BIN_EXE_zkmw"));
    command.args(["--zk", &cluster.ensemble.connect, "--root", &cluster.root, "--session-timeout", SESSION]);
    command.args(more).args(["submit", "true"]).env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let from = Instant::now();
    let since = || 1_000.0 * from.elapsed().as_secs_f64();
    let mut child = command.spawn().expect("it starts");
    let mut ends = Vec::new();
    let mut awaited = PARTS.iter().map(|(_, text)| *text).filter(|text| !text.is_empty()).peekable();
    for line in BufReader::new(child.stderr.take().expect("a pipe")).lines() {
        let line = line.expect("it can be read");
        if awaited.next_if(|text| line.contains(text)).is_some() {
            ends.push(since());
        }
    }
    assert!(child.wait().expect("it is our child").success(), "a submit failed");
    ends.push(since());
    assert!(more.is_empty() || ends.len() == PARTS.len(), "its log does not show all its parts");
    ends
}
