//! What each kind of value may be.

use super::*;
use crate::config::parse::*;
use crate::config::settings::{self, Setting};

fn one<T>(setting: &Setting<T>, text: &str) -> Result<T, String> {
    setting.parser.parse(&[text.into()]).map_err(|bad| bad.reason.to_string())
}

#[test]
fn connect_strings() {
    let good = |text: &str| {
        let address = zk(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let servers: Vec<_> = address.servers.iter().map(|(h, p)| format!("{h} {p}")).collect();
        (servers.join(";"), address.chroot.unwrap_or_default())
    };
    let is = |servers: &str, chroot: &str| (servers.to_owned(), chroot.to_owned());
    assert_eq!(good("h1"), is("h1 2181", ""));
    assert_eq!(good("h1:1,h2.example.org,10.0.0.1:65535"), is("h1 1;h2.example.org 2181;10.0.0.1 65535", ""));
    assert_eq!(good("h1, my_zk:2 "), is("h1 2181;my_zk 2", ""));
    assert_eq!(good("h1,h2:3/a/b"), is("h1 2181;h2 3", "/a/b"));
    assert_eq!(good("h1/"), is("h1 2181", ""));
    assert_eq!(good("h1/a,b"), is("h1 2181", "/a,b"));
    assert_eq!(good("[::1]"), is("::1 2181", ""));
    assert_eq!(good("[2001:db8::7]:99,[::1]:1/c"), is("2001:db8::7 99;::1 1", "/c"));
    let bad = [
        ("", "missing"),
        (",", "missing"),
        ("h1,", "missing"),
        ("h1,,h2", "missing"),
        ("/a", "missing"),
        ("h1:", "port"),
        ("h1:0", "port"),
        ("h1:65536", "port"),
        ("h1:x", "port"),
        ("h1:+1", "port"),
        ("h1:1:2", "port"),
        (":1", "HOST:PORT"),
        ("h 1", "HOST:PORT"),
        ("h1;h2", "HOST:PORT"),
        ("hö", "HOST:PORT"),
        ("::1", "brackets"),
        ("2001:db8::7", "brackets"),
        ("[::1", "']'"),
        ("[h1]:1", "IPv6"),
        ("[::1]x", ":PORT"),
        ("[::1]:x", "port"),
        ("h1:1/a,h2:2/a", "once, after the last server"),
        ("h1/a/b,h2/a/b", "once, after the last server"),
        ("h1/a,h2:2", "once, after the last server"),
        ("h1/a/", "chroot must not end"),
        ("h1//a", "chroot must not have '//'"),
        ("h1/a/../b", "chroot must not have '.'"),
        ("h1/zookeeper", "chroot must not be in /zookeeper"),
        ("h1/a\u{1}", "chroot must not have the control character U+0001"),
    ];
    for (text, part) in bad {
        let reason = zk(text).expect_err(text).to_string();
        assert!(reason.contains(part), "{text}: {reason}");
    }
    assert!(zk(&vec!["h"; 64].join(",")).is_ok() && zk(&vec!["h"; 65].join(",")).is_err());
    assert!(zk(&"h".repeat(253)).is_ok() && zk(&"h".repeat(254)).is_err());
}

#[test]
fn znode_paths() {
    for good in ["/a", "/a/b", "/ä ö", "/a/...", "/zookeeperx", "/.a"] {
        assert_eq!(znode_path(good), Ok(good.to_owned()));
    }
    let bad = [
        "",
        "a",
        "/",
        "/a/",
        "//",
        "/a//b",
        "/.",
        "/a/..",
        "/a/./b",
        "/a\0",
        "/a\u{1f}",
        "/a\u{7f}",
        "/a\u{9f}",
        "/\u{e000}",
        "/\u{f8ff}",
        "/\u{fff0}",
        "/\u{1f600}",
        "/zookeeper",
        "/zookeeper/config",
    ];
    for bad in bad {
        znode_path(bad).expect_err(bad);
    }
    assert!(znode_path(&format!("/{}", "x".repeat(511))).is_ok());
    assert!(znode_path(&format!("/{}", "x".repeat(512))).is_err());
    zkmw("master --root /zkmw/")
        .fails_with(64, "root: '/zkmw/' (from --root) is not valid: must not end with '/'");
}

#[test]
fn elections_keep_out_of_our_own_directories() {
    assert_eq!(zkmw("elector --path /zkmw/elections/a/b").elector().path, "/zkmw/elections/a/b");
    assert_eq!(zkmw("elector --path /apps/a").elector().path, "/apps/a");
    assert_eq!(zkmw("elector --path /zkmwx").elector().path, "/zkmwx");
    assert_eq!(zkmw("elector --root /r/s").elector().path, "/r/s/elections/default");
    for path in ["/zkmw", "/zkmw/master", "/zkmw/tasks/a", "/zkmw/elections", "/zkmw/electionsx/a"] {
        zkmw(&format!("elector --path {path}")).fails_with(64, "elections may only be in /zkmw/elections");
    }
    zkmw("elector").env("ZKMW_PATH", "/r/master").env("ZKMW_ROOT", "/r").fails_with(78, "(from ZKMW_PATH)");
}

#[test]
fn times() {
    let timeout = |text: &str| zkmw("master").arg(format!("--session-timeout={text}")).load();
    assert_eq!(timeout("1m 30s").expect("good").ensemble.session_timeout, secs(90));
    assert_eq!(timeout("2s").expect("good").ensemble.session_timeout, secs(2));
    assert_eq!(timeout("10m").expect("good").ensemble.session_timeout, secs(600));
    for bad in ["1999ms", "601s", "0", "99999999999999999999s", "999999999999999h"] {
        let message = timeout(bad).expect_err(bad).message;
        assert!(message.ends_with("must be between 2s and 10m"), "{message}");
    }
    for bad in ["10", "1.5", "5"] {
        assert!(timeout(bad).expect_err(bad).message.contains("needs a unit"), "{bad}");
    }
    // In humantime M is a month, and so 5M not five minutes.
    for bad in ["", "s", "5M", "1month", "1y", "1year", "5 minuten", "-5s", "inf", "nan"] {
        let message = timeout(bad).expect_err(bad).message;
        assert!(message.contains("500ms, 10s, 5m, 24h or 7d"), "{message}");
    }
    assert_eq!(one(&settings::WORKER_GRACE, "0"), Ok(Duration::ZERO));
    assert_eq!(one(&settings::ELECTOR_GRACE, "0s"), Ok(Duration::ZERO));
    assert_eq!(one(&settings::RESULT_TTL, "7days"), Ok(secs(7 * 24 * 3600)));
    assert_eq!(one(&settings::JOB_TTL, "999ms"), Err("must be between 1s and 3650d".to_owned()));
    assert_eq!(one(&settings::TIMEOUT, "none"), Ok(None));
    assert_eq!(one(&settings::TIMEOUT, "0s"), Err("must be between 100ms and 365d; or none".to_owned()));
    assert_eq!(one(&settings::RETRY_BACKOFF, "1h"), Ok(secs(3600)));
    assert_eq!(one(&settings::RETRY_BACKOFF, "61m"), Err("must be between 0s and 1h".to_owned()));
    assert!(one(&settings::CLOSE_TIMEOUT, "none").is_err());
    assert_eq!(zkmw("submit x --expire-after 1h").submit().expire_after, Some(secs(3600)));
}

#[test]
fn sizes() {
    let good = [
        ("0", 0),
        ("500", 500),
        ("500B", 500),
        ("64KiB", 65536),
        ("96KiB", 98304),
        ("64 KiB", 65536),
        ("0MiB", 0),
    ];
    for (text, bytes) in good {
        assert_eq!(output_limit_bytes(text), Ok(bytes), "{text}");
    }
    for bad in [
        "",
        "KiB",
        "97KiB",
        "98305",
        "1MiB",
        "64K",
        "64KB",
        "64kib",
        "-1",
        "+5",
        "1.5KiB",
        "9999999999999999999999",
    ] {
        output_limit_bytes(bad).expect_err(bad);
    }
    output_limit_bytes("99999999999999999MiB").expect_err("too large to multiply");
}

#[test]
fn limits_for_what_is_pending() {
    for (text, bytes) in
        [("1", 1), ("100B", 100), ("512MiB", 512 << 20), ("1GiB", 1 << 30), ("1 TiB", 1 << 40)]
    {
        assert_eq!(max_pending_bytes(text), Ok(bytes), "{text}");
    }
    for bad in ["0", "0GiB", "1025GiB", "1099511627777", "+5", "1G", "", "99999999999TiB"] {
        max_pending_bytes(bad).expect_err(bad);
    }
    assert_eq!(
        (one(&settings::MAX_PENDING, "1"), one(&settings::MAX_PENDING, "1000000000")),
        (Ok(1), Ok(1_000_000_000))
    );
    for bad in ["0", "-1", "1000000001", "1k"] {
        one(&settings::MAX_PENDING, bad).expect_err(bad);
    }
}

#[test]
fn numbers() {
    assert_eq!((one(&settings::SLOTS, "1"), one(&settings::SLOTS, "1000")), (Ok(1), Ok(1_000)));
    for bad in ["0", "1001", "-1", "99999999999", "", "x", "1.5", " 1", "0x10"] {
        one(&settings::SLOTS, bad).expect_err(bad);
    }
    assert_eq!((one(&settings::PRIORITY, "-1000"), one(&settings::PRIORITY, "1000")), (Ok(-1000), Ok(1000)));
    assert!(one(&settings::PRIORITY, "-1001").is_err() && one(&settings::PRIORITY, "1001").is_err());
    assert_eq!(zkmw("submit x --priority -5 --max-attempts 7").submit().priority, Some(-5));
    assert_eq!(zkmw("submit x --max-attempts 7").submit().max_attempts, Some(7));
    assert!(one(&settings::MAX_ATTEMPTS, "0").is_err() && one(&settings::MAX_ATTEMPTS, "1001").is_err());
    assert_eq!(zkmw("list --limit 5 --job _3f").list().limit, 5);
    for (text, on) in
        [("true", true), ("YES", true), ("1", true), ("on", true), ("False", false), ("0", false)]
    {
        assert_eq!(boolean(text), Ok(on));
    }
    assert!(boolean("2").is_err() && boolean("").is_err());
    assert_eq!((count("true"), count("3"), count("0")), (Ok(1), Ok(3), Ok(0)));
    assert!(count("10").is_err() && count("-1").is_err());
}

#[test]
fn ids() {
    for good in ["w7", "a.b_c-d:e@f+g=h,i%20", "_x", "...", &"x".repeat(128)] {
        assert_eq!(id(good), Ok(good.to_owned()));
        assert!(crate::contract::is_user_id(good), "{good}");
    }
    let long = "x".repeat(129);
    let odd = [
        "",
        ".",
        "..",
        "a/b",
        "a~b",
        "a b",
        "a\tb",
        "a\0",
        "a\u{7f}",
        "ä",
        "\u{1f600}",
        "-a",
        "a'b",
        "a\"b",
        "a$b",
        "a*b",
        "a\\b",
        &long,
    ];
    for bad in odd {
        id(bad).expect_err(bad);
        for call in ["worker --id", "master --id", "elector --id", "submit x --id", "submit x --job"] {
            // As one argument, lest clap takes it for a flag.
            let mut world = zkmw(call);
            let flag = world.args.pop().expect("a flag").into_string().expect("UTF-8");
            world.arg(format!("{flag}={bad}")).fails_with(64, "is not valid: ");
        }
    }
    zkmw("worker --id").arg("x".repeat(300)).fails_with(64, "must have 1 to 128 characters");
    assert_eq!(job("nightly"), Ok("nightly".to_owned()));
    job("_3f").expect_err("a shared job");
    assert_eq!(one(&settings::LIST_JOB, "_3f"), Ok("_3f".to_owned()));
    assert_eq!(id_from_host_name("web-1.example.org"), "web-1.example.org");
    assert_eq!(id_from_host_name("Ada's box~"), "Ada-s-box-");
    assert_eq!(id_from_host_name(""), "host");
    assert_eq!(id_from_host_name("-.-"), "host");
    id(&format!("{}-4194304", id_from_host_name(&"ä.x".repeat(100)))).expect("fits with a pid");
}

#[test]
fn labels_of_workers_and_tasks() {
    let many = |n: usize| (0..n).map(|i| format!("k{i}=v")).collect::<Vec<_>>();
    assert_eq!(labels(&many(32)).map(|l| l.len()), Ok(32));
    let bad = labels(&many(33)).expect_err("too many");
    assert_eq!((bad.index, bad.reason.to_string().contains("at most 32")), (32, true));
    assert!(labels(&[format!("{}={}", "k".repeat(63), "v".repeat(63))]).is_ok());
    let (long_key, long_value) = (format!("{}=v", "k".repeat(64)), format!("k={}", "v".repeat(64)));
    for bad in ["k", "=v", "k=", "k=v=w", "k=v w", "k/l=v", "ä=v", "k=ä", &long_key, &long_value] {
        labels(&[bad.to_owned()]).expect_err(bad);
    }
    assert_eq!(labels(&["a=1".to_owned(), "a=1".to_owned()]), Ok(map(&[("a", "1")])));
    assert!(labels(&["a=1".to_owned(), "a=2".to_owned()]).is_err());
    let expected = map(&[("a", "1"), ("b", "2"), ("c.d", "3_-")]);
    assert_eq!(zkmw("worker --label a=1,b=2 --label c.d=3_-").worker().labels, expected);
    assert_eq!(zkmw("submit x").env("ZKMW_REQUIRE", "a=1 b=2\nc.d=3_-,").submit().require, expected);
}

#[test]
fn variables_of_tasks() {
    let submit = zkmw("submit x --env A=1,2 --env").arg("B=c d\ne").submit();
    assert_eq!(submit.env, map(&[("A", "1,2"), ("B", "c d\ne")]));
    assert_eq!(zkmw("submit x").env("ZKMW_ENV", "A=1 2\nB=\n").submit().env, map(&[("A", "1 2"), ("B", "")]));
    assert_eq!(
        zkmw("submit x").file("[submit.env]\nA = 1\nB = true").submit().env,
        map(&[("A", "1"), ("B", "true")])
    );
    assert_eq!(zkmw("submit x --env ZKMW_ZK=h1").submit().env, map(&[("ZKMW_ZK", "h1")]));
    for bad in ["A", "=1", "1A=1", "A-B=1", "ä=1", "A=\0", "ZKMW_TASK=1", "ZKMW_LINE=1", "ZKMW_OWNER=1"] {
        env(&[bad.to_owned()]).expect_err(bad);
    }
    let of = |n: usize| (0..n).map(|i| format!("A{i}=v")).collect::<Vec<_>>();
    assert!(env(&of(64)).is_ok() && env(&of(65)).is_err());
    let sized = |n: usize| format!("A={}", "x".repeat(n));
    assert!(env(&[sized(MAX_ENV_BYTES - 3)]).is_ok() && env(&[sized(MAX_ENV_BYTES - 2)]).is_err());
}

/// A task that calls zkmw itself has these in its environment, and they are about itself.
#[test]
fn what_a_task_finds_is_no_setting() {
    let plain = zkmw("submit x").ok();
    let mut world = zkmw("submit x");
    for name in ["TASK", "ATTEMPT", "EPOCH", "WORKER", "BIN", "ENSEMBLE", "ENSEMBLE_PORT"] {
        world = world.env(&format!("ZKMW_{name}"), "nonsense\u{1}");
    }
    assert_eq!(world.ok(), plain);
}

#[test]
fn states_to_list() {
    let list = zkmw("list --state done,failed --state pending --state done").list();
    assert_eq!(
        list.states,
        [TaskStatus::Ended(State::Done), TaskStatus::Ended(State::Failed), TaskStatus::Pending]
    );
    for state in STATES {
        assert_eq!(states(&[state.as_str().to_owned()]), Ok(vec![state]));
    }
    zkmw("list --state done,borken")
        .fails_with(64, "state: 'borken' (from --state) is not valid: must be pending,");
}

#[test]
fn credentials() {
    assert!(auth(&["digest:u:p".to_owned(), "x_509:a".to_owned()]).is_ok());
    for bad in ["", "digest", "digest:", "digest:u", ":x", "a b:c"] {
        auth(&[bad.to_owned()]).expect_err(bad);
    }
    let many = |n: usize| vec!["digest:u:p".to_owned(); n];
    assert!(auth(&many(16)).is_ok() && auth(&many(17)).is_err());
}

#[test]
fn what_tasks_have_of_their_own() {
    let worker = zkmw("worker --run-as nobody --clean-env").worker();
    assert_eq!((worker.run_as.as_deref(), worker.clean_env), (Some("nobody"), true));
    let worker = zkmw("worker --no-clean-env").file("run-as = 'u'\nclean-env = true").worker();
    assert_eq!((worker.run_as.as_deref(), worker.clean_env), (Some("u"), false));
    zkmw("worker --run-as a:b")
        .fails(64, "zkmw: run-as: 'a:b' (from --run-as) is not valid: must be the name of a user");
}

#[test]
fn state_directories() {
    let dir = |uid, env: &[(&str, &str)]| {
        let mut world = env.iter().fold(zkmw("worker"), |w, (k, v)| w.env(k, *v));
        world.uid = uid;
        world.worker().state_dir.display().to_string()
    };
    let (home, xdg) = (("HOME", "/home/u"), ("XDG_STATE_HOME", "/state/u"));
    assert_eq!(dir(7, &[home, xdg, ("STATE_DIRECTORY", "/var/lib/a:/var/lib/b")]), "/var/lib/a");
    assert_eq!(dir(0, &[home, xdg]), "/var/lib/zkmw");
    assert_eq!(dir(7, &[home, xdg]), "/state/u/zkmw");
    assert_eq!(dir(7, &[home]), "/home/u/.local/state/zkmw");
    assert_eq!(dir(7, &[("HOME", "relative"), ("TMPDIR", "/var/tmp")]), "/var/tmp/zkmw-7");
    zkmw("worker --state-dir x")
        .fails_with(64, "state-dir: 'x' (from --state-dir) is not valid: must be an absolute path");
}

#[test]
fn how_much_is_kept_of_what_tasks_print() {
    let logs = zkmw("worker --log-limit 0 --log-space 2TiB --log-keep 90s").worker().logs;
    assert_eq!(logs, LogsConfig { limit: 0, space: 2 << 40, keep: secs(90) });
    for bad in ["--log-limit much", "--log-limit -1", "--log-space 1025TiB", "--log-keep 0s"] {
        zkmw(&format!("worker {bad}")).fails_with(64, "is not valid");
    }
}

#[test]
fn limits_of_tasks() {
    let limits = |args: &str| zkmw(&format!("worker {args}")).worker().limits;
    assert_eq!(limits(""), RunLimits::default());
    let all = RunLimits { memory_bytes: Some(512 << 20), cpu_millis: Some(1_500), processes: Some(64) };
    assert_eq!(limits("--task-memory 512MiB --task-cpus 1.5 --task-pids 64"), all);
    let file = "[worker]\ntask-memory = '512MiB'\ntask-cpus = 1.5\ntask-pids = 64";
    assert_eq!(zkmw("worker").file(file).worker().limits, all);
    let millis = |text: &str| task_cpus(text).ok();
    assert_eq!(
        ["2", "0.01", "0.5", "1000", "3.125"].map(millis),
        [2_000, 10, 500, 1_000_000, 3_125].map(Some)
    );
    for bad in ["", "0", "0.001", "1000.1", "1.2345", "-1", "+1", ".5", "1.", "1e3", "99999999999"] {
        assert_eq!(millis(bad), None, "{bad}");
    }
    assert_eq!(["1MiB", "1PiB"].map(|text| task_memory(text).ok()), [1 << 20, 1 << 50].map(Some));
    for bad in ["1023KiB", "2PiB", "0", "much"] {
        task_memory(bad).expect_err(bad);
    }
    zkmw("worker --task-pids 0")
        .fails(64, "zkmw: task-pids: '0' (from --task-pids) is not valid: must be between 1 and 4194304");
}

#[test]
fn run_directories() {
    let dir = |uid, env: &[(&str, &str)]| {
        let mut world = env.iter().fold(zkmw("worker"), |w, (k, v)| w.env(k, *v));
        world.uid = uid;
        world.worker().run_dir.display().to_string()
    };
    let xdg = ("XDG_RUNTIME_DIR", "/run/user/7");
    assert_eq!(dir(7, &[xdg, ("RUNTIME_DIRECTORY", "/run/a:/run/b")]), "/run/a");
    assert_eq!(dir(0, &[xdg]), "/run/zkmw");
    assert_eq!(dir(0, &[("RUNTIME_DIRECTORY", "/run/a")]), "/run/a");
    assert_eq!(dir(7, &[xdg]), "/run/user/7/zkmw");
    assert_eq!(dir(7, &[("TMPDIR", "/var/tmp")]), "/var/tmp/zkmw-7");
    assert_eq!(dir(7, &[("XDG_RUNTIME_DIR", "relative"), ("TMPDIR", "")]), "/tmp/zkmw-7");
    zkmw("worker --run-dir x")
        .fails_with(64, "run-dir: 'x' (from --run-dir) is not valid: must be an absolute path");
}

#[test]
fn moments_are_ago_or_instants() {
    let since = |text: &str| zkmw(&format!("list --since {text}")).list().since;
    assert_eq!(since("2h"), Some(Moment::Ago(Duration::from_secs(7_200))));
    assert_eq!(since("1970-01-01T00:00:01Z"), Some(Moment::At(1_000)));
    assert_eq!((Moment::Ago(Duration::from_secs(1)).at_ms(5_000), Moment::At(7).at_ms(5_000)), (4_000, 7));
    zkmw("list --since yesterday").fails_with(64, "--since");
    zkmw("list --until 1960-01-01T00:00:00Z").fails_with(64, "must be a time ago such as 10m");
    zkmw("list --columns id,colour")
        .fails_with(64, "must be id, state, exit, attempt, priority, worker, age");
    let columns = zkmw("list --columns command,id").list().columns;
    assert_eq!(columns, [ListColumn::Command, ListColumn::Id]);
}
