//! Who has the word, and what is said when it is wrong.

use super::*;
use crate::config::settings::{AllowedIn, Fallback, Shape, TABLE, Verb};
use crate::exec::RunLimits;

#[test]
fn defaults_of_daemons() {
    let config = zkmw("master").ok();
    assert_eq!(
        config,
        Config {
            ensemble: Ensemble {
                servers: vec![("127.0.0.1".to_owned(), 2181)],
                chroot: None,
                root: "/zkmw".to_owned(),
                session_timeout: secs(10),
                connect_timeout: None,
                close_timeout: secs(5),
                auth: vec![],
            },
            verbosity: 0,
            command: Command::Master(MasterConfig {
                id: "host7-42".to_owned(),
                result_ttl: secs(24 * 3600),
                job_ttl: secs(3600),
                max_pending: 10_000_000,
                max_failed: 100_000,
                max_pending_bytes: 1 << 30,
            }),
        }
    );
    assert_eq!(
        zkmw("worker").worker(),
        WorkerConfig {
            id: "host7".to_owned(),
            slots: 6,
            labels: map(&[]),
            grace: secs(30),
            handler: None,
            output_limit_bytes: 65536,
            run_dir: "/tmp/zkmw-1000".into(),
            run_as: None,
            clean_env: false,
            state_dir: "/tmp/zkmw-1000".into(),
            logs: LogsConfig { limit: 100 << 20, space: 1 << 30, keep: secs(86_400) },
            limits: RunLimits::default(),
        }
    );
    assert_eq!(
        zkmw("elector").elector(),
        ElectorConfig {
            id: "host7-42".to_owned(),
            path: "/zkmw/elections/default".to_owned(),
            grace: secs(10),
            once: false,
            json: false,
            command: vec![],
        }
    );
}

#[test]
fn defaults_of_clients() {
    assert_eq!(
        zkmw("submit true").submit(),
        SubmitConfig {
            task: TaskSource::Line("true".to_owned()),
            chunk: None,
            job: None,
            id: None,
            detach: false,
            timeout: None,
            expire_after: None,
            max_attempts: None,
            retry_backoff: None,
            priority: None,
            require: map(&[]),
            env: map(&[]),
            orphan: Orphan::Keep,
            cancel_on_interrupt: false,
            allow_truncated: false,
            progress: true,
            json: false,
        }
    );
    assert_eq!(
        zkmw("list").list(),
        ListConfig {
            job: None,
            states: vec![],
            worker: None,
            since: None,
            until: None,
            columns: vec![],
            limit: 1000,
            json: false,
        }
    );
    assert_eq!(zkmw("status").ok().command, Command::Status { json: false, watch: false });
}

#[test]
fn daemons_wait_for_ever_and_clients_do_not() {
    for verb in Verb::ALL {
        let words =
            if matches!(verb.name(), "submit" | "show" | "why" | "wait" | "cancel" | "retry" | "delete") {
                " x/y"
            } else {
                ""
            };
        let config = zkmw(&format!("{}{words}", verb.name())).ok();
        let expected = if verb.is_daemon() { None } else { Some(secs(30)) };
        assert_eq!(config.ensemble.connect_timeout, expected, "{verb:?}");
        assert_eq!(config.command.is_daemon(), verb.is_daemon());
    }
    assert_eq!(zkmw("master --connect-timeout 3s").ok().ensemble.connect_timeout, Some(secs(3)));
    assert_eq!(zkmw("status --connect-timeout none").ok().ensemble.connect_timeout, None);
}

/// Each layer over all those below it: args, variable and its value, the command's table, the top of the file, and
/// what is read of the configuration.
#[track_caller]
fn check_layers<T: PartialEq + std::fmt::Debug>(
    args: &str,
    flags: &str,
    (variable, value): (&str, &str),
    table: &str,
    top: &str,
    see: impl Fn(&World) -> T,
    expected: [T; 5],
) {
    let verb = args.split(' ').next().expect("a command");
    let whole = format!("{top}\n[{verb}]\n{table}\n");
    let worlds = [
        zkmw(args),
        zkmw(args).file(top),
        zkmw(args).file(&whole),
        zkmw(args).file(&whole).env(variable, value),
        zkmw(&format!("{args} {flags}")).file(&whole).env(variable, value),
    ];
    for (n, (world, expected)) in worlds.iter().zip(expected).enumerate() {
        assert_eq!(see(world), expected, "{args} {flags}, layer {n}");
    }
}

#[test]
fn precedence_of_settings_of_workers() {
    check_layers(
        "worker",
        "--slots 5",
        ("ZKMW_SLOTS", "4"),
        "slots = 3",
        "slots = 2",
        |w| w.worker().slots,
        [6, 2, 3, 4, 5],
    );
    check_layers(
        "worker",
        "--grace 5s",
        ("ZKMW_GRACE", "4s"),
        "grace = '3s'",
        "grace = '2s'",
        |w| w.worker().grace,
        [secs(30), secs(2), secs(3), secs(4), secs(5)],
    );
    check_layers(
        "worker",
        "--run-dir /5",
        ("ZKMW_RUN_DIR", "/4"),
        "run_dir = '/3'",
        "run-dir = '/2'",
        |w| w.worker().run_dir,
        ["/tmp/zkmw-1000", "/2", "/3", "/4", "/5"].map(PathBuf::from),
    );
    check_layers(
        "worker",
        "--label n=5 --label m=5",
        ("ZKMW_LABEL", "n=4, m=4"),
        "label = { n = '3', m = 3 }",
        "label = ['n=2']",
        |w| w.worker().labels,
        [
            map(&[]),
            map(&[("n", "2")]),
            map(&[("n", "3"), ("m", "3")]),
            map(&[("n", "4"), ("m", "4")]),
            map(&[("n", "5"), ("m", "5")]),
        ],
    );
}

#[test]
fn precedence_of_settings_of_clients() {
    check_layers(
        "status",
        "--no-json",
        ("ZKMW_JSON", "yes"),
        "json = false",
        "json = true",
        |w| w.ok().command,
        [false, true, false, true, false].map(|json| Command::Status { json, watch: false }),
    );
    check_layers(
        "submit x",
        "--timeout none",
        ("ZKMW_TIMEOUT", "4m"),
        "timeout = 'none'",
        "timeout = '2m'",
        |w| w.submit().timeout,
        [None, Some(secs(120)), None, Some(secs(240)), None],
    );
    check_layers(
        "submit x",
        "--progress",
        ("ZKMW_NO_PROGRESS", "1"),
        "no_progress = 0",
        "no-progress = true",
        |w| w.submit().progress,
        [true, false, true, false, true],
    );
    check_layers(
        "list",
        "--state failed",
        ("ZKMW_STATE", "done"),
        "state = 'running'",
        "state = 'pending'",
        |w| w.list().states,
        [
            vec![],
            vec![TaskStatus::Pending],
            vec![TaskStatus::Running],
            vec![TaskStatus::Ended(State::Done)],
            vec![TaskStatus::Ended(State::Failed)],
        ],
    );
}

#[test]
fn precedence_of_settings_of_masters_and_ensembles() {
    check_layers(
        "master",
        "--zk h5",
        ("ZKMW_ZK", "h4:4"),
        "zk = 'h3:3'",
        "zk = 'h2:2'",
        |w| w.ok().ensemble.servers[0].0.clone(),
        ["127.0.0.1", "h2", "h3", "h4", "h5"].map(str::to_owned),
    );
    check_layers(
        "master",
        "--auth a:5 --auth b:5",
        ("ZKMW_AUTH", "a:4\nb:4,c d\n"),
        "auth = ['a:3', 'b:3']",
        "auth = 'a:2, b:2'",
        |w| w.ok().ensemble.auth.iter().map(|a| a.credential.reveal().to_owned()).collect::<Vec<_>>(),
        [vec![], vec!["2, b:2"], vec!["3", "3"], vec!["4", "4,c d"], vec!["5", "5"]]
            .map(|list| list.into_iter().map(str::to_owned).collect()),
    );
    check_layers(
        "master",
        "-vvvvv",
        ("ZKMW_VERBOSE", "4"),
        "verbose = 3",
        "verbose = 2",
        |w| w.ok().verbosity,
        [0, 2, 3, 4, 5],
    );
}

#[test]
fn verbose_and_quiet_are_one_setting() {
    assert_eq!(zkmw("-v master -vq").ok().verbosity, 1);
    assert_eq!(zkmw("-q master -q").env("ZKMW_VERBOSE", "3").ok().verbosity, -2);
    assert_eq!(zkmw("master").env("ZKMW_VERBOSE", "1").file("quiet = 5").ok().verbosity, 1);
    assert_eq!(zkmw("master").file("quiet = true").ok().verbosity, -1);
}

#[test]
fn flags_of_every_command_come_before_it_or_after_it() {
    let config = zkmw("--zk h1 --root /a --auth x:1 worker --root /b --auth y:2 --slots 2").ok();
    assert_eq!(config.ensemble.servers, [("h1".to_owned(), 2181)]);
    assert_eq!(config.ensemble.root, "/b");
    assert_eq!(config.ensemble.auth.len(), 2);
    assert_eq!(zkmw("worker --slots 2 --slots 3").worker().slots, 3);
    assert_eq!(zkmw("list --json --no-json --json").list(), zkmw("list --json").list());
    zkmw("--slots 2 worker").fails_with(exit::USAGE, "--slots");
}

#[test]
fn what_a_command_does_not_know_does_not_disturb_it() {
    let world =
        zkmw("status").env("ZKMW_SLOTS", "nonsense").env("ZKMW_TIMEOUT", "1").file("slots = 3\n[master]\n");
    assert_eq!(world.ok().command, Command::Status { json: false, watch: false });
    // But a file is checked as a whole.
    zkmw("status")
        .file("\n[worker]\nslots = 0")
        .fails(78, "zkmw: slots: '0' (from FILE, line 3) is not valid: must be between 1 and 1000");
}

#[test]
fn an_empty_variable_is_not_set() {
    assert_eq!(zkmw("worker").env("ZKMW_SLOTS", "").file("slots = 3").worker().slots, 3);
    // An empty array takes back what a weaker source has set, and an empty flag is wrong.
    assert_eq!(zkmw("worker").file("label = 'a=1'\n[worker]\nlabel = []").worker().labels, map(&[]));
    zkmw("worker --label").arg("").fails_with(64, "label: '' (from --label) is not valid: must be KEY=VALUE");
}

#[test]
fn wrong_values_say_which_and_where_from() {
    let reason = "must be between 1 and 1000";
    zkmw("worker --slots 0").fails(64, &format!("zkmw: slots: '0' (from --slots) is not valid: {reason}"));
    zkmw("worker --slots -1").fails(64, &format!("zkmw: slots: '-1' (from --slots) is not valid: {reason}"));
    zkmw("worker")
        .env("ZKMW_SLOTS", "0")
        .fails(78, &format!("zkmw: slots: '0' (from ZKMW_SLOTS) is not valid: {reason}"));
    zkmw("worker")
        .file("# a\n\nslots = 0\n")
        .fails(78, &format!("zkmw: slots: '0' (from FILE, line 3) is not valid: {reason}"));
    zkmw("worker")
        .file("[worker]\nlabel = ['a=1', 'b/2']\n")
        .fails(78, "zkmw: label: 'b/2' (from FILE, line 2) is not valid: must be KEY=VALUE, such as gpu=yes");
    zkmw("status").env("ZKMW_JSON", "maybe").fails_with(78, "json: 'maybe' (from ZKMW_JSON) is not valid");
    zkmw("worker")
        .env("ZKMW_SLOTS", OsString::from_vec(b"\xff".to_vec()))
        .fails_with(78, "(from ZKMW_SLOTS) is not valid: must be UTF-8");
    zkmw("worker --id")
        .arg("a\nb")
        .fails_with(64, r"id: 'a\nb' (from --id) is not valid: the control character");
    let (_, message) = zkmw("worker --id").arg("x".repeat(300)).err();
    assert!(message.len() < 250, "{message}");
}

/// Every setting that can be wrong says so, from every source that may have it.
#[test]
fn every_setting_is_checked_in_every_layer() {
    for setting in TABLE {
        let spec = setting.spec();
        if matches!(spec.name, "config" | "from-file") {
            continue;
        }
        let verb = spec.verbs[0].name();
        let wrong = "\u{1}wrong/";
        let where_to = |source: &str| {
            format!("zkmw: {}: {}({source}) is not valid: ", spec.name, {
                if spec.secret { "the value " } else { r"'\u{1}wrong/' " }
            })
        };
        if matches!(spec.shape, Shape::Value(_) | Shape::List(..)) {
            zkmw(verb)
                .arg("x")
                .args_fix(verb)
                .arg(format!("--{}", spec.name))
                .arg(wrong)
                .fails_with(64, &where_to(&format!("from --{}", spec.name)));
        }
        if spec.allowed_in == AllowedIn::Anywhere {
            zkmw(verb)
                .arg("x")
                .args_fix(verb)
                .env(&spec.variable(), wrong)
                .fails_with(78, &where_to(&format!("from {}", spec.variable())));
            let key = spec.name.replace('-', "_");
            zkmw(verb)
                .file(&format!("[{verb}]\n{key} = '\\u0001wrong/'").replace('\'', "\""))
                .arg("x")
                .args_fix(verb)
                .fails_with(78, &where_to("from FILE, line 2"));
        }
    }
}

impl World {
    /// Takes the word away again where the command takes none.
    fn args_fix(mut self, verb: &str) -> World {
        if verb != "submit" {
            self.args.retain(|a| a != "x");
        }
        self
    }
}

#[test]
fn keys_of_the_file() {
    let fails =
        |text: &str, message: &str| zkmw("status").file(text).fails(78, &format!("zkmw: FILE{message}"));
    fails("\nslot = 3", ", line 2: unknown key 'slot'; did you mean 'slots'?");
    fails("sesion_timeout = '3s'", ", line 1: unknown key 'sesion_timeout'; did you mean 'session-timeout'?");
    fails("[worke]\nslots = 3", ", line 1: unknown key 'worke'; did you mean 'worker'?");
    fails("zzz = 3", ", line 1: unknown key 'zzz'");
    fails("[master]\nslots = 3", ", line 2: unknown key 'slots' in [master]; it belongs to [worker]");
    fails("[worker]\nslot = 3", ", line 2: unknown key 'slot' in [worker]; did you mean 'slots'?");
    fails("worker = 3", ", line 1: worker must be a table: [worker]");
    fails(
        "result_ttl = '1h'\nresult-ttl = '2h'",
        ", line 1: 'result-ttl' is set twice (with '-' and with '_')",
    );
    zkmw("worker").file("slots = 1.5").fails(
        78,
        "zkmw: slots: '1.5' (from FILE, line 1) is not valid: must be a whole number between 1 and 1000",
    );
    fails("slots = [1]", ", line 1: slots must be one value, not an array");
    fails("grace = 1979-05-27", ", line 1: grace must not be a date");
    fails("root = { a = 1 }", ", line 1: root must be a value, not a table");
    fails("[submit]\nid = 'k'", ", line 2: 'id' can't be set in a file; use --id");
    fails("config = 'x'", ", line 1: 'config' can't be set in a file; use --config");
    fails("from_file = 'x'", ", line 1: 'from_file' can't be set in a file; use --from-file");
}

/// A host's name for its worker must not become the key of every task that is submitted there.
#[test]
fn a_key_is_about_one_call() {
    let world = zkmw("submit x").file("id = 'w7'").env("ZKMW_ID", "w8").env("ZKMW_FROM_FILE", "-");
    assert_eq!(world.submit().id, None);
    assert_eq!(zkmw("worker").file("id = 'w7'").worker().id, "w7");
    assert_eq!(zkmw("submit x --id k1").submit().id.as_deref(), Some("k1"));
}

#[test]
fn where_the_file_is() {
    zkmw("status --config /nonexistent")
        .fails_with(78, "the configuration file '/nonexistent' cannot be read");
    zkmw("status").env("ZKMW_CONFIG", "/nonexistent").fails_with(78, "cannot be read");
    zkmw("status --config /").fails_with(78, "the configuration file '/' cannot be read");
    zkmw("status --config /dev/zero").fails_with(78, "is larger than 1 MiB");
    zkmw("status --config /dev/null").env("ZKMW_CONFIG", "/nonexistent").ok();
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"slots = 9").expect("written");
    let named = zkmw("worker").file("slots = 3\ngrace = '1s'").arg("--config").arg(file.path());
    assert_eq!((named.worker().slots, named.worker().grace), (9, secs(30)), "one file is read, not both");
    file.write_all(b"\xff").expect("written");
    named.fails_with(78, "is not UTF-8");
}

#[test]
fn secrets_are_never_shown() {
    const SECRET: &str = "hunter2";
    let all = [
        zkmw("master --auth").arg("digest:hunter2"),
        zkmw("master --auth").arg("hunter2"),
        zkmw("master --auth").arg("di-gest:hunter2"),
        zkmw("master --atuh=digest:u:hunter2"),
        zkmw("master --auth digest:u:hunter2 --json"),
        zkmw("master --auth digest:u:hunter2 --root x"),
        zkmw("master").env("ZKMW_AUTH", "digest:hunter2"),
        zkmw("master").env("ZKMW_AUTH", OsString::from_vec(b"digest:u:hunter2\xff".to_vec())),
        zkmw("master").file("auth = 'digest:hunter2'"),
        zkmw("master").file("auth = 'digest:u:hunter2"),
        zkmw("master").file("auth = digest:u:hunter2"),
        zkmw("master").file("auth = ['digest:u:hunter2', 'hunter2']"),
        zkmw("master").file("auth = ['digest:u:hunter2' 'digest:u:hunter2']"),
        zkmw("master").file("auth = { digest = 'hunter2' }"),
        zkmw("master").file("auth = [['hunter2']]"),
        zkmw("submit x --env a-b=hunter2"),
        zkmw("submit x --env hunter2"),
    ];
    for world in all {
        let (_, message) = world.err();
        assert!(!message.contains(SECRET), "{message}");
    }
    let config = zkmw("master --auth digest:u:hunter2").ok();
    assert_eq!(config.ensemble.auth[0].credential.reveal(), "u:hunter2");
    assert!(!format!("{config:?} {config:#?}").contains(SECRET));
    assert!(format!("{config:?}").contains("digest"));
}

#[test]
fn the_table_is_sound() {
    let mut names = std::collections::BTreeSet::new();
    for setting in TABLE {
        let spec = setting.spec();
        let (has_variable, has_key) =
            (spec.allowed_in != AllowedIn::Flag, spec.allowed_in == AllowedIn::Anywhere);
        let is_of_task = parse::is_set_by_worker(&spec.variable());
        assert!(!has_variable || !is_of_task, "{} is set for tasks", spec.variable());
        let is_table = Verb::from_name(spec.name).is_some();
        assert!(!has_key || !is_table, "{}: a key must not be a table too", spec.name);
        assert!(!spec.help.ends_with('.') && spec.help.starts_with(char::is_uppercase), "{}", spec.help);
        if let Fallback::Text(text) = spec.default {
            assert!(setting.check(&[text.into()]).is_ok(), "{}'s default is wrong", spec.name);
        }
        for verb in spec.verbs {
            assert!(names.insert((*verb, spec.name)), "{} is there twice for {verb:?}", spec.name);
            if let Shape::Switch { negation } = spec.shape {
                assert!(names.insert((*verb, negation)), "{negation} is there twice for {verb:?}");
            }
        }
        for other in
            TABLE.iter().map(|s| s.spec()).filter(|s| s.name == spec.name && s.allowed_in == spec.allowed_in)
        {
            let same = std::mem::discriminant(&other.shape) == std::mem::discriminant(&spec.shape);
            assert!(same, "{} is written in two ways", spec.name);
        }
    }
}
