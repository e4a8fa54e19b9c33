//! (f) Nothing to do: the requests of each role to the ensemble, seen by a proxy in front of it, and the processor time
//! that it takes. Must not give it anything to do.

use std::time::{Duration, Instant};

use crate::harness::proxy::Proxy;
use crate::harness::{Cluster, LIMIT, Proc, eventually};
use crate::report::budget;
use crate::service::{Executor, SESSION};
use crate::stats::Samples;
use crate::{Bench, say};

/// One process, alone behind its proxy.
struct Watched {
    role: &'static str,
    proxy: Proxy,
    proc: Proc,
}

/// Every role once.
pub fn run(bench: &mut Bench) {
    let watched = start(bench);
    for one in &watched {
        one.proc.quiet(LIMIT);
    }
    say(&format!("watching the idle roles for {:?}", bench.options.idle));
    let before: Vec<_> = watched.iter().map(|one| (one.proxy.counts(), one.proc.cpu())).collect();
    let from = Instant::now();
    wait(bench.options.idle);
    let minutes = from.elapsed().as_secs_f64() / 60.0;
    let mut writes = Samples::default();
    for (one, (counts, cpu)) in watched.iter().zip(before) {
        let during = one.proxy.counts().since(&counts);
        let cpu = one.proc.cpu().saturating_sub(cpu).as_secs_f64() * 1_000.0;
        let remark = during.to_string();
        let numbers = [
            ("writes", during.writes() as f64, "a minute"),
            ("reads", during.reads() as f64, "a minute"),
            ("pings", during.pings() as f64, "a minute"),
            ("processor time", cpu, "ms a minute"),
        ];
        for (what, number, unit) in numbers {
            let remark = if what == "reads" { remark.as_str() } else { "" };
            let samples = Samples(vec![number / minutes]);
            bench.report.row("idle", format!("{}: {what}", one.role), unit, samples, remark);
        }
        writes.0.push(during.writes() as f64 / minutes);
    }
    let worst = Samples(vec![writes.high()]);
    bench.report.measured(budget::IDLE, worst, format!("the worst of {} roles", watched.len()));
}

/// A time over which nothing may happen: this *is* the measurement.
fn wait(time: Duration) {
    std::thread::sleep(time);
}

fn start(bench: &Bench) -> Vec<Watched> {
    let ensemble = &bench.ensemble;
    let behind = |role: &'static str, root: &str, start: &dyn Fn(&Cluster) -> Proc| {
        let proxy = Proxy::start(&ensemble.connect, root);
        let cluster = Cluster::on(ensemble, role)
            .with(&["--session-timeout", SESSION, "--root", root])
            .with_zk(&proxy.connect());
        let proc = start(&cluster);
        Watched { role, proxy, proc }
    };
    let outside = Cluster::on(ensemble, "idle");
    let root = outside.root.clone();
    let leader = behind("leader", &root, &|cluster| cluster.master("m1"));
    outside.leads("m1", LIMIT);
    let standby = behind("standby", &root, &|cluster| cluster.master("m2"));
    let executor = bench.cheapest();
    let worker = behind("worker", &root, &|cluster| match &executor {
        Executor::Process => cluster.worker("w1", &["--slots", "4"]),
        Executor::Handler(path) => {
            cluster.worker("w1", &["--slots", "4", "--handler", &path.display().to_string()])
        }
    });
    let submitter =
        behind("submitter", &root, &|cluster| cluster.submit(&["--require", "nobody=has-this", "true"]));
    let elector = behind("elector", &root, &|cluster| cluster.elector("e1", &[]));
    eventually(LIMIT, "the leader knows of everything", || {
        let status = outside.status()?;
        (status["workers"] == 1 && status["tasks"]["pending"] == 1).then_some(())
    });
    vec![leader, standby, worker, submitter, elector]
}
