//! Chaos on real servers: three ZooKeeper servers and every role as real processes, each on a host with a network of
//! its own, many users, and a nemesis that kills, stops, restarts, cuts off, delays and loses. Afterwards checkers read
//! all records, and a report for people is written.
//!
//! - `net`: the hosts' networks and the switch between them.
//! - `plan`: the plan of the nemesis, from a seed. `nemesis` carries it out.
//! - `hosts`: the hosts and their services. `load`: the users. `task.sh`, `elector.sh`: the commands that run.
//! - `history`: the records of a run. `check`: what must hold of them. `report`, `svg`: the report.
//!
//! `scripts/chaos` sets the variables that [`Options`] reads. Must not touch the machine's own network.

mod check;
// The harness of the integration tests; not all of it is needed here.
#[allow(dead_code, unused_imports)]
#[path = "../it/harness/mod.rs"]
mod harness;
mod history;
mod hosts;
mod load;
mod nemesis;
mod net;
mod plan;
mod report;
mod svg;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use check::{CHECKS, Evidence};
use harness::ensemble::{Setup, copy_files};
use harness::{Cluster, Ensemble};
use history::{Clock, History};
use hosts::{ELECTORS, HOSTS, MASTERS, OBSERVER, SERVERS, Services, Setting, WORKERS};
use load::Load;
use nemesis::Nemesis;
use net::Net;

/// How long everything may take to come to rest after the last fault was healed.
const REST: Duration = Duration::from_secs(120);

/// Keeps the servers' logs complete: a server that missed writes gets these, and never a snapshot instead.
const JAVA_OPTIONS: &str = "-Dzookeeper.commitLogCount=1000000 -Dzookeeper.snapshotSizeFactor=1000000";

/// The settings of a run.
#[derive(Debug)]
struct Options {
    seed: u64,
    length: Duration,
    /// Kinds of faults to leave out.
    without: Vec<String>,
    report: PathBuf,
    loopback: bool,
    keep: bool,
}

impl Options {
    fn from_environment() -> Options {
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let number = |name: &str| {
            text(name)
                .map(|text| text.parse::<f64>().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
        };
        let seed = text("ZKMW_CHAOS_SEED").map(|text| text.parse().expect("ZKMW_CHAOS_SEED is a number"));
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | harness_millis());
        let folder = format!("chaos-{seed}-{}", std::process::id());
        let report = text("ZKMW_CHAOS_REPORT").map(PathBuf::from);
        let without = text("ZKMW_CHAOS_WITHOUT").unwrap_or_default();
        let without: Vec<String> = without.split([',', ' ']).map(str::to_string).collect();
        for kind in without.iter().filter(|kind| !kind.is_empty()) {
            let known = plan::KINDS.iter().any(|(known, _)| known == kind);
            assert!(known, "ZKMW_CHAOS_WITHOUT: there is no kind of fault {kind}");
        }
        Options {
            seed,
            length: Duration::from_secs_f64(60.0 * number("ZKMW_CHAOS_MINUTES").unwrap_or(3.0)),
            without,
            report: report.unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(folder)),
            loopback: text("ZKMW_CHAOS_LOOPBACK").is_some(),
            keep: text("ZKMW_CHAOS_KEEP").is_some(),
        }
    }
}

fn harness_millis() -> u64 {
    u64::try_from(harness::wall_clock_ms()).unwrap_or(0) & 0xf_ffff
}

/// Past libtest's capture: a run of minutes should not be silent, and its seed must be known whatever happens.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "chaos: {text}");
}

#[test]
fn chaos_on_real_servers_loses_nothing() {
    let options = Options::from_environment();
    std::fs::create_dir_all(&options.report).expect("a folder for the report");
    let (seed, minutes) = (options.seed, options.length.as_secs_f64() / 60.0);
    say(&format!("seed {seed}, {minutes} minutes, report in {}", options.report.display()));
    let net = Arc::new(hosts_of(&options));
    let run = run(&options, &net);
    let broken = report::write(&options.report, &run);
    say(&format!("report: {}", options.report.join("chaos.md").display()));
    if broken.is_empty() && !options.keep {
        let _ = std::fs::remove_dir_all(options.report.join("files"));
    }
    assert!(
        broken.is_empty(),
        "{} broken (seed {seed}; {}/files has everything):\n{}",
        broken.len(),
        options.report.display(),
        broken.join("\n")
    );
}

fn hosts_of(options: &Options) -> Net {
    if options.loopback {
        say("all on loopback, as asked for: no partitions, losses or delays");
        return Net::shared(&HOSTS);
    }
    Net::separate(&HOSTS, options.seed).unwrap_or_else(|error| {
        say(&format!(
            "NO NETWORK NAMESPACES here ({error}): all on loopback, without partitions, losses and delays"
        ));
        Net::shared(&HOSTS)
    })
}

/// All that a run came to.
struct Run {
    seed: u64,
    length: Duration,
    without: Vec<String>,
    separate: bool,
    planned: usize,
    begin: f64,
    healed: f64,
    rested: f64,
    clock: Clock,
    history: History,
    evidence: Evidence,
    packets: [u64; 4],
}

fn run(options: &Options, net: &Arc<Net>) -> Run {
    // This thread, and all that it starts from now on, sees the network as the observer does.
    net.hosts[OBSERVER].enter_thread();
    let clock = Clock::start();
    let ensemble = servers(net);
    let cluster = Cluster::on(&ensemble, "chaos");
    let dir = options.report.join("files");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(dir.join("logs")).expect("a folder");
    std::fs::write(dir.join("empty.toml"), "").expect("a file");
    let setting = Setting { dir: dir.clone(), zk: ensemble.connect.clone(), root: cluster.root.clone() };
    let mut services = Services::start(&setting, net, clock);
    harness::eventually(REST, "all services are ready", || (unrest(&cluster).is_empty()).then_some(()));
    let load = Load::start(&setting, net, clock, options.seed);
    let plan = plan::plan(options.seed, options.length, &options.without, net.is_separate());
    let begin = clock.now();
    say(&format!("{} faults planned; all services are ready after {begin:.1} s", plan.len()));
    let mut nemesis = Nemesis::new(&ensemble, net, &mut services, &load, clock);
    nemesis.run(&plan, begin, options.length);
    let mut history = nemesis.history;
    let healed = clock.now();
    say("healed; waiting until all is done");
    let (records, mut complaints, mut leftovers) = settle(load, &mut services, &mut history, &cluster);
    let rested = clock.now();
    say(&format!("at rest after {:.1} s", rested - healed));
    services.end(&mut history);
    leftovers.extend(remains(&cluster));
    complaints.append(&mut services.complaints);
    let (log, gap) = history::log(&ensemble, &cluster.tree, 3);
    keep_servers(&ensemble, &dir.join("servers"));
    let evidence = Evidence {
        layout: cluster.layout.clone(),
        gap,
        lives: history::lives(&log, &cluster.layout, clock),
        log,
        notes: history::notes(&dir.join("tasks"), clock),
        leads: history::leads(&dir.join("electors"), clock),
        records,
        complaints,
        leftovers,
    };
    let counts = &net.counts;
    let packets = [&counts.forwarded, &counts.cut, &counts.dropped, &counts.delayed]
        .map(|count| count.load(std::sync::atomic::Ordering::Relaxed));
    Run {
        seed: options.seed,
        length: options.length,
        without: options.without.clone(),
        separate: net.is_separate(),
        planned: plan.len(),
        begin,
        healed,
        rested,
        clock,
        history,
        evidence,
        packets,
    }
}

fn servers(net: &Net) -> Arc<Ensemble> {
    let folder = harness::process::base_dir().join("namespaces");
    let mut setup = Setup {
        hosts: Vec::new(),
        enter: String::new(),
        java_options: JAVA_OPTIONS.to_string(),
        ..Setup::default()
    };
    if net.is_separate() {
        net::link_namespaces(&net.hosts[SERVERS], &folder).expect("links can be made");
        setup.hosts = net.hosts[SERVERS].iter().map(|host| host.address.clone()).collect();
        setup.enter = format!("nsenter --net={}/%", folder.display());
    }
    Ensemble::start_with(3, setup)
}

/// Copies the servers' logs and data: a search for a missing write needs both.
fn keep_servers(ensemble: &Ensemble, into: &Path) {
    for server in 1..=3_u32 {
        let (from, to) = (ensemble.dir.join(server.to_string()), into.join(server.to_string()));
        std::fs::create_dir_all(&to).expect("a folder");
        copy_files(&from.join("log"), &to);
        copy_files(&from.join("data"), &to);
    }
}

/// Waits until all users have their outcomes, and all is at rest.
fn settle(
    load: Load,
    services: &mut Services,
    history: &mut History,
    cluster: &Cluster,
) -> (Vec<load::Record>, Vec<String>, Vec<String>) {
    let start = Instant::now();
    load.no_more();
    let mut left = vec!["nothing was checked".to_string()];
    while start.elapsed() < REST && !left.is_empty() {
        services.check(history);
        std::thread::sleep(Duration::from_millis(100));
        left = if load.at_work() > 0 || !services.all_run() {
            vec![format!("{} users are at work; all services run: {}", load.at_work(), services.all_run())]
        } else {
            unrest(cluster)
        };
    }
    let (records, complaints) = load.finish();
    (records, complaints, left)
}

/// Differences from a service at rest, in which every process is registered and nothing is left to do.
fn unrest(cluster: &Cluster) -> Vec<String> {
    let mut left = Vec::new();
    let mut names: Vec<String> = cluster.contenders().into_iter().map(|contender| contender.id).collect();
    names.sort();
    if names != HOSTS[MASTERS] {
        left.push(format!("masters in the election: {names:?}"));
    }
    let elections = format!("{}/elections/default", cluster.root);
    let mut names: Vec<String> =
        cluster.contenders_below(&elections).into_iter().map(|contender| contender.id).collect();
    names.sort();
    if names != HOSTS[ELECTORS] {
        left.push(format!("electors in the election: {names:?}"));
    }
    let registered: Vec<String> = cluster.registrations().into_iter().map(|(name, ..)| name).collect();
    let ids: Vec<&str> = registered.iter().filter_map(|name| name.split('~').next()).collect();
    if ids != HOSTS[WORKERS] {
        left.push(format!("workers that are registered: {registered:?}"));
    }
    for (name, assignment, _) in cluster.assignments() {
        if !registered.iter().any(|registration| registration.starts_with(&name)) {
            left.push(format!("the assignment {name} of a failed incarnation"));
        } else if !assignment.entries.is_empty() {
            left.push(format!("entries in the assignment {name}: {:?}", assignment.entries));
        }
    }
    let pending = cluster.tasks().into_iter().filter(|(_, task, _)| task.outcome.is_none());
    left.extend(pending.map(|(id, task, _)| format!("{id} is pending at attempt {}", task.attempt)));
    left
}

/// Leftovers after all services have stopped: only tasks with their outcomes may exist.
fn remains(cluster: &Cluster) -> Vec<String> {
    cluster.tree.sync();
    let dump = cluster.tree.dump(&cluster.root);
    let ephemeral = dump.iter().filter(|(_, (_, stat))| stat.ephemeral_owner != 0);
    let mut left: Vec<String> =
        ephemeral.map(|(path, _)| format!("left when all had ended: {path}")).collect();
    left.extend(
        cluster
            .assignments()
            .into_iter()
            .map(|(name, ..)| format!("left when all had ended: assignment {name}")),
    );
    left
}

/// The findings of every check, in order.
fn judge(evidence: &Evidence) -> Vec<(&'static str, Vec<check::Violation>)> {
    CHECKS.iter().map(|(name, check)| (*name, check(evidence))).collect()
}
