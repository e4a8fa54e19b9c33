//! Properties that only a process of its own shows: its processor time, its log, and its being stopped.

use super::*;

/// Not a test: a process with one session, which prints its events.
#[test]
fn helper_process() {
    let Ok(servers) = std::env::var("ZKMW_TEST_SERVERS") else { return };
    env_logger::builder().parse_filters("debug,zookeeper=off,mio=off").init();
    let servers: Vec<_> =
        servers.split(',').map(|port| ("127.0.0.1".to_owned(), port.parse().unwrap())).collect();
    let mut client = Client::start(settings(&servers));
    if std::env::var_os("ZKMW_TEST_WAIT").is_some() {
        let _ = std::io::stdin().read_line(&mut String::new());
    }
    while let Some(event) = client.next(Duration::from_secs(60)) {
        println!("@{event:?}");
    }
}

/// Ended when it is dropped.
pub struct Helper(pub Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn helper(
    servers: &[(String, u16)],
) -> (Helper, crossbeam_channel::Receiver<String>, crossbeam_channel::Receiver<String>) {
    helper_with(servers, &[])
}

/// The same with further variables. With `ZKMW_TEST_WAIT` it reads no event before it is given a line.
pub fn helper_with(
    servers: &[(String, u16)],
    variables: &[(&str, &str)],
) -> (Helper, crossbeam_channel::Receiver<String>, crossbeam_channel::Receiver<String>) {
    let ports: Vec<String> = servers.iter().map(|(_, port)| port.to_string()).collect();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process::helper_process", "--nocapture"])
        .env("ZKMW_TEST_SERVERS", ports.join(","))
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (events, logs) = (crossbeam_channel::unbounded(), crossbeam_channel::unbounded());
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some((_, event)) = line.split_once('@') {
                let _ = events.0.send(event.to_owned());
            }
        }
    });
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let _ = logs.0.send(line);
        }
    });
    (Helper(child), events.1, logs.1)
}

/// The next event that begins so.
pub fn until(events: &crossbeam_channel::Receiver<String>, what: &str) -> String {
    loop {
        let event = events.recv_timeout(LONG).unwrap_or_else(|_| panic!("no {what}"));
        if event.starts_with(what) {
            return event;
        }
    }
}

/// When the next event came that begins so.
fn until_now(events: &crossbeam_channel::Receiver<String>, what: &str) -> Instant {
    until(events, what);
    Instant::now()
}

#[test]
fn g10_an_outage_costs_little_and_passes() {
    let (_turn, ensemble) = ensemble();
    let (child, events, logs) = helper(&ensemble.servers);
    until(&events, "Up");
    ensemble.run(&["kill", "1", "2", "3"]);
    until(&events, "Down");
    until(&events, "Failed");
    let logged: Vec<String> = logs.try_iter().collect();
    let before = (Instant::now(), cpu_ticks(child.0.id()));
    // An outage has to last for something to be measured.
    thread::sleep(Duration::from_secs(4));
    let ticks = cpu_ticks(child.0.id()) - before.1;
    let share = ticks as f64 * 0.01 / before.0.elapsed().as_secs_f64();
    let info = |lines: &[String]| lines.iter().filter(|line| !line.contains("DEBUG")).count();
    let flood: Vec<String> = logs.try_iter().collect();
    println!(
        "outage: {:.1} % of a core, {} log lines, {} with debug",
        share * 100.0,
        info(&flood),
        flood.len()
    );
    assert!(share < 0.05, "{share}");
    assert!(info(&logged) + info(&flood) < 10, "{logged:?} {flood:?}");
    ensemble.run(&["start", "1", "2", "3"]);
    let back = Instant::now();
    let up = until_now(&events, "Up");
    println!("all back: up {:?} later", up.duration_since(back));
    assert!(up.duration_since(back) < Duration::from_secs(2));
}

#[test]
fn a_client_suspended_past_its_timeout_says_so_and_goes_on() {
    let (_turn, ensemble) = ensemble();
    let (child, events, _logs) = helper(&ensemble.servers);
    until(&events, "Up");
    let pid = i32::try_from(child.0.id()).unwrap();
    signal_pid(pid, Signal::STOP);
    // The timeout is 6 s, and the servers check every 2 s: only time can expire a session.
    thread::sleep(Duration::from_secs(9));
    signal_pid(pid, Signal::CONT);
    let woken = Instant::now();
    let down = until_now(&events, "Down");
    let up = until_now(&events, "Up");
    println!("woken: down after {:?}, up after {:?}", down.duration_since(woken), up.duration_since(woken));
    assert!(down.duration_since(woken) < Duration::from_millis(500));
    assert!(up.duration_since(woken) < Duration::from_secs(2));
}

#[test]
fn a_busy_client_is_not_taken_for_expired() {
    let (_turn, ensemble) = ensemble();
    let busy = zkmw::zk::Settings {
        session_timeout: Duration::from_secs(10),
        threads: 64,
        ..settings(&ensemble.servers)
    };
    let mut client = Client::up(busy);
    let root = fresh("load");
    client.create(&root, CreateMode::Persistent).unwrap();
    let (started, mut sent, mut done, mut in_flight) = (Instant::now(), 0_u64, 0_u64, 0);
    while started.elapsed() < Duration::from_secs(8) || in_flight > 0 {
        while in_flight < 128 && started.elapsed() < Duration::from_secs(8) {
            let path = format!("{root}/{sent}");
            client.send(Call::Create { path, data: vec![1; 100], mode: CreateMode::Persistent });
            sent += 1;
            in_flight += 1;
        }
        match client.next(LONG).expect("an event") {
            SessionEvent::Reply { result, .. } => {
                assert!(result.is_ok(), "{result:?}");
                in_flight -= 1;
                done += 1;
            }
            other => panic!("{other:?}"),
        }
        client.seen.clear();
    }
    let rate = done as f64 / started.elapsed().as_secs_f64();
    println!("64 threads: {rate:.0} creates a second");
}
