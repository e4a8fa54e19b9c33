//! Settings on the real binary, from everywhere that they may come from; and the cost of idle roles.

use std::fs;
use std::time::Duration;

use crate::harness::{Cluster, LIMIT, eventually, throughout};
use crate::plain::{Plain, Service};

#[test]
fn settings_come_from_flags_variables_and_the_file() {
    let cluster = Cluster::new("settings");
    let (zk, root) = (&cluster.ensemble.connect, &cluster.root);
    let run_dir = cluster.dir().join("run");
    let file = cluster.dir().join("zkmw.toml");
    let text = format!(
        "zk = \"{zk}\"\nroot = \"{root}\"\nsession-timeout = \"6s\"\n[worker]\nid = \"from-file\"\nslots = 3\n\
         run-dir = \"{}\"\nlabel = {{ kind = \"file\" }}\n[submit]\npriority = 7\n",
        run_dir.display()
    );
    fs::write(&file, text).expect("written");
    let file = file.display().to_string();

    let _master = Plain::new(&["master", "--config", &file]).spawn();
    let mut worker = Plain::new(&["worker", "--slots", "2"])
        .env("ZKMW_CONFIG", &file)
        .env("ZKMW_SLOTS", "5")
        .env("ZKMW_LABEL", "kind=variable")
        .spawn();
    let registration = eventually(LIMIT, "it is registered", || {
        assert!(worker.is_running(), "{}", worker.stderr());
        cluster.registrations().pop().map(|(_, registration, stat)| (stat, registration))
    });
    let (_, registration) = registration;
    assert_eq!(registration.slots, 2, "a flag wins over a variable");
    assert_eq!(registration.labels["kind"], "variable", "a variable wins over the file");
    assert_eq!(registration.session_timeout_ms, 6_000, "what nothing else says comes from the file");
    cluster.registered(&["from-file"]);
    let out = Plain::new(&["submit", "--detach", "true"])
        .env("ZKMW_ZK", zk)
        .env("ZKMW_ROOT", root)
        .env("ZKMW_REQUIRE", "kind=variable")
        .env("ZKMW_CONFIG", &file)
        .run();
    assert_eq!(out.code, 0, "{out:?}");
    let id = zkmw::contract::TaskId::parse(out.text().trim()).expect("an id");
    let task = cluster.ended(&id, LIMIT);
    assert_eq!(task.options.priority, Some(7));
    assert_eq!(task.options.require.expect("labels")["kind"], "variable");
    // A chroot precedes the root.
    let out = Plain::new(&["status", "--json", "--zk", &format!("{zk}{root}"), "--root", "/other"]).run();
    assert!(out.code == 0 && out.text().contains("\"leader\":null"), "{out:?}");
}

#[test]
fn a_wrong_variable_or_file_is_78_and_named() {
    let dir = Cluster::new("wrong-settings").dir().clone();
    let file = |text: &str| {
        let path = dir.join("wrong.toml");
        fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    Plain::new(&["worker"]).env("ZKMW_SLOTS", "0").run().says(78, &["ZKMW_SLOTS"]);
    Plain::new(&["status"]).env("ZKMW_SESSION_TIMEOUT", "fast").run().says(78, &["ZKMW_SESSION_TIMEOUT"]);
    for (text, words) in [
        ("slots = 3\nnonsense = 1\n", "nonsense"),
        ("[worker]\nslots = 0\n", "slots"),
        ("zk = \n", "line 1"),
        ("[worker]\nresult-ttl = \"1h\"\n", "result-ttl"),
    ] {
        Plain::new(&["status", "--config", &file(text)]).run().says(78, &["wrong.toml", words]);
    }
    Plain::new(&["status", "--config", "/no/such.toml"]).run().says(78, &["/no/such.toml"]);
}

/// No role writes while nothing happens: the ensemble's transaction id does not change.
#[test]
fn idle_roles_write_nothing() {
    let ensemble = crate::harness::Ensemble::start(1);
    let cluster = Cluster::on(&ensemble, "idle").with(&["--session-timeout", "4s"]);
    let mut service = Service::on(cluster, &[]);
    let mut standby = service.cluster.master("m2");
    // While an elector's command runs it renews its lease; one without a command has none.
    let mut elector = service.cluster.elector("e1", &[]);
    let mut waiting = service.cluster.submit(&["--require", "none=such", "true"]);
    service.cluster.the_task();
    service.is_unharmed();
    let dir = format!("{}/elections/default", service.cluster.root);
    eventually(LIMIT, "e1 is a contender", || {
        (service.cluster.contenders_below(&dir).len() == 1).then_some(())
    });
    eventually(LIMIT, "m2 is a standby", || (service.cluster.contenders().len() == 2).then_some(()));
    let zxid = || {
        let answer = ensemble.four_letters(1, "srvr").expect("an answer");
        answer.lines().find_map(|line| line.strip_prefix("Zxid: ").map(str::to_string)).expect("a zxid")
    };
    // The summary follows what happened by a second at most, and no lease outlasts what it is for.
    let mut last = zxid();
    let mut since = std::time::Instant::now();
    eventually(LIMIT, "nothing has been written for 6 s", || {
        let now = zxid();
        if now != last {
            (last, since) = (now, std::time::Instant::now());
        }
        std::thread::sleep(Duration::from_millis(100));
        (since.elapsed() > Duration::from_secs(6)).then_some(())
    });
    // From then on for good: longer than the session timeout, any pace and any renewal.
    throughout(Duration::from_secs(5), "nothing is written", || {
        std::thread::sleep(Duration::from_millis(100));
        zxid() == last
    });
    for process in [&mut standby, &mut elector, &mut waiting] {
        assert!(process.is_running());
    }
    service.is_unharmed();
}

/// A slip in a variable's name is not passed over. A client, which may be a task's, only warns.
#[test]
fn a_variable_that_is_no_setting_is_refused_by_daemons() {
    let cluster = Cluster::new("unknown-variable");
    for daemon in ["master", "worker", "elector"] {
        let out = Plain::on(&cluster, &[daemon]).env("ZKMW_SLOT", "3").run();
        out.says(78, &["the variable ZKMW_SLOT is no setting; did you mean ZKMW_SLOTS?"]);
    }
    let out = Plain::on(&cluster, &["status"]).env("ZKMW_SLOT", "3").run();
    out.says(0, &["warn: the variable ZKMW_SLOT is no setting"]);
    // Variables of tasks, and settings of other commands, are no slips.
    let out = Plain::on(&cluster, &["status"]).env("ZKMW_EPOCH", "3").env("ZKMW_SLOTS", "3").run();
    assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{out:?}");
}

/// Bash itself reads the script, and completes a command and an option with it.
#[test]
fn bash_completes_commands_and_options() {
    let script = r#"
        source <("$ZKMW" completions bash)
        COMP_WORDS=(zkmw sub); COMP_CWORD=1; _zkmw zkmw sub zkmw; echo "${COMPREPLY[@]}"
        COMP_WORDS=(zkmw list --sin); COMP_CWORD=2; _zkmw zkmw --sin list; echo "${COMPREPLY[@]}"
    "#;
    let mut bash = std::process::Command::new("bash");
    let out = bash.args(["-c", script]).env("ZKMW", env!("CARGO_BIN_EXE_zkmw")).output().expect("bash runs");
    let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!((out.status.code(), &*text, &*errors), (Some(0), "submit\n--since\n", ""));
}
