//! The command line: help, usage errors, and what is run.

use super::*;
use crate::config::parse::{MAX_COMMAND_BYTES, check_command_line};
use crate::config::settings::{TABLE, Verb};
use crate::contract::batch_unit;
use crate::roles::client::walk::bare_task;

fn not_utf8() -> OsString {
    OsString::from_vec(b"caf\xe9".to_vec())
}

#[test]
fn help_is_a_result() {
    let mut calls: Vec<_> = Verb::ALL.iter().map(|verb| format!("{} --help", verb.name())).collect();
    calls.extend(["--help", "-h", "help", "help submit", "submit -h"].map(str::to_owned));
    for call in calls {
        let e = zkmw(&call).load().expect_err("help");
        assert_eq!((e.exit_code, e.to_stdout), (0, true), "{call}");
        assert!(e.message.contains("Usage: zkmw") && e.message.contains("Examples:"), "{call}");
        for line in e.message.lines() {
            assert!(line.chars().count() <= 100, "{call}: too wide: {line}");
        }
        assert_eq!(e.message, e.message.trim_end());
        assert!(!e.message.contains('\u{1b}'));
    }
}

#[test]
fn help_names_every_setting_and_its_default() {
    for verb in Verb::ALL {
        let help = zkmw(&format!("{} --help", verb.name())).load().expect_err("help").message;
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for spec in TABLE.iter().map(|s| s.spec()).filter(|s| s.is_of(verb)) {
            assert!(help.contains(&format!("--{}", spec.name)), "{verb:?} {}", spec.name);
        }
        assert!(help.contains("[default: 127.0.0.1:2181]"), "{verb:?}");
    }
    let top = zkmw("--help").load().expect_err("help").message;
    for word in [
        "ZKMW_SESSION_TIMEOUT",
        "/etc/zkmw/zkmw.toml",
        "64   bad usage",
        "78   bad configuration",
        "RUST_LOG",
    ] {
        assert!(top.contains(word), "{word}");
    }
}

/// What the help says of the file must be true.
#[test]
fn the_file_in_the_help_is_a_good_one() {
    let top = zkmw("--help").load().expect_err("help").message;
    let from = top.find("  zk = ").expect("an example of a file");
    let example = top[from..].split("\n\n").next().expect("its end");
    let world = zkmw("worker").file(example);
    assert_eq!(world.ok().ensemble.servers.len(), 3);
    assert_eq!(world.worker().labels, map(&[("gpu", "yes"), ("zone", "eu1")]));
}

#[test]
fn version_is_a_result() {
    let e = zkmw("--version").load().expect_err("version");
    let expected = format!("zkmw {}", env!("CARGO_PKG_VERSION"));
    assert_eq!((e.exit_code, e.to_stdout, e.message), (0, true, expected));
}

#[test]
fn no_command_shows_help_as_an_error() {
    for call in ["", "--zk h1"] {
        let e = zkmw(call).load().expect_err("no command");
        assert_eq!((e.exit_code, e.to_stdout), (64, false));
        assert!(e.message.contains("Usage: zkmw"), "{e}");
    }
    let nothing = World::default().load().expect_err("not even a program's name");
    assert_eq!(nothing.exit_code, 64);
}

#[test]
fn bad_usage_is_64() {
    let calls = [
        "wrok",
        "worker --slot 3",
        "worker x",
        "worker --slots",
        "master --label a=b",
        "status --json=1",
        "list x",
        "show",
        "wait",
        "cancel",
        "retry",
        "delete",
        "delete --older-than 3d",
        "delete --state running",
        "show a b",
        "submit",
        "submit --",
        "submit a b",
        "submit x --zk",
        "elector x",
        "worker -x",
        "--json status",
        "submit x --timeout 5",
        "submit x --from-file y",
    ];
    for call in calls {
        assert_eq!(zkmw(call).err().0, 64, "{call}");
    }
    zkmw("wrok").fails_with(64, "zkmw: unrecognized subcommand 'wrok'");
    zkmw("worker --slot 3").fails_with(64, "zkmw: unexpected argument '--slot' found");
    zkmw("worker --slot 3").fails_with(64, "'--slots'");
    zkmw("submit echo -n hi")
        .fails_with(64, "tip: quote a shell command line as one argument, or put -- before");
    zkmw("wait").fails(64, "zkmw: wait needs an ID (see zkmw wait --help)");
    World::default().arg("zkmw").arg(not_utf8()).fails_with(64, "zkmw: ");
    zkmw("worker --id").arg(not_utf8()).fails_with(64, "(from --id) is not valid: must be UTF-8");
    zkmw("show").arg(not_utf8()).fails_with(64, "is not valid: must be UTF-8");
}

#[test]
fn three_forms_of_a_task() {
    assert_eq!(zkmw("submit").arg("echo  hi; ls").submit().task, TaskSource::Line("echo  hi; ls".to_owned()));
    assert_eq!(zkmw("submit --from-file -").submit().task, TaskSource::Stdin);
    assert_eq!(zkmw("submit --from-file ./a").submit().task, TaskSource::File("./a".into()));
    let odd = zkmw("submit --from-file").arg(not_utf8()).submit().task;
    assert_eq!(odd, TaskSource::File(not_utf8().into()));

    let forms = "give one TASK, or -- PROGRAM [ARG]…, or --from-file FILE (see zkmw submit --help)";
    zkmw("submit").fails(64, &format!("zkmw: there is no task; {forms}"));
    zkmw("submit --").fails(64, &format!("zkmw: there is no task; {forms}"));
    zkmw("submit a b")
        .fails(64, &format!("zkmw: submit takes one TASK, so quote it as one shell command line; {forms}"));
    for call in [
        "submit a -- b",
        "submit a --from-file f",
        "submit --from-file f -- b",
        "submit a --from-file f -- b",
    ] {
        zkmw(call).fails(64, &format!("zkmw: the task is given in more than one way; {forms}"));
    }
    for blank in ["", " ", "\n\t "] {
        zkmw("submit").arg(blank).fails(64, &format!("zkmw: the task is empty; {forms}"));
    }
    zkmw("submit --").arg("").fails(64, &format!("zkmw: the program's name is empty; {forms}"));
    zkmw("submit --from-file").arg("").fails(64, &format!("zkmw: the name of the file is empty; {forms}"));
}

#[test]
fn what_follows_two_dashes_is_untouched() {
    let words = ["prog", "--json", "-v", "--help", "--", "--zk", "", "a b", "--no-such"];
    let expected: Vec<String> = words.map(str::to_owned).to_vec();
    let world = words.iter().fold(zkmw("submit --detach --"), |w, word| w.arg(*word));
    let submit = world.submit();
    assert_eq!(submit.task, TaskSource::Program(expected));
    assert!(submit.detach && !submit.json);
    assert_eq!(world.ok().verbosity, 0);

    let world = words.iter().fold(zkmw("elector --once --"), |w, word| w.arg(*word)).arg(not_utf8());
    let elector = world.elector();
    assert_eq!(elector.command.len(), words.len() + 1);
    assert_eq!(elector.command[1], "--json");
    assert!(elector.once && !elector.json);
    zkmw("elector --").arg("").fails(64, "zkmw: the COMMAND after -- is empty");
}

#[test]
fn a_task_that_cannot_be_stored_is_65() {
    zkmw("submit").arg(not_utf8()).fails_with(65, "zkmw: the task is not UTF-8");
    zkmw("submit -- ls").arg(not_utf8()).fails_with(65, "zkmw: an argument of the task is not UTF-8");
    zkmw("submit").arg("a\0b").fails_with(65, "has a NUL byte in it");
    zkmw("submit -- a").arg("a\0b").fails_with(65, "has a NUL byte in it");

    let most = "x".repeat(MAX_COMMAND_BYTES);
    assert_eq!(zkmw("submit").arg(&most).submit().task, TaskSource::Line(most.clone()));
    zkmw("submit").arg(format!("{most}x")).fails(
        65,
        "zkmw: the task has 122881 bytes; at most 122880 (120 KiB) are possible. Put the data in a file or an \
         object store that the workers can read, and its name in the task",
    );
    let (name, rest) = ("cat", &most[..MAX_COMMAND_BYTES - 5]);
    zkmw("submit --").arg(name).arg(rest).ok();
    zkmw("submit --").arg(name).arg(rest).arg("").fails_with(65, "the task has 122881 bytes");
    // Characters of several bytes count as such.
    zkmw("submit").arg("é".repeat(MAX_COMMAND_BYTES / 2 + 1)).fails_with(65, "the task has 122882 bytes");
    assert!(check_command_line(&most).is_ok() && check_command_line(&format!("{most}x")).is_err());
}

#[test]
fn only_lines_of_a_batch_make_chunks() {
    let chunk = |call: &str| zkmw(call).submit().chunk;
    assert_eq!(chunk("submit --from-file f"), None);
    assert_eq!(chunk("submit --from-file f --chunk 1000"), Some(1000));
    for (bad, words) in [
        ("submit x --chunk 5", "chunk: '5' (from --chunk) is not valid: only the lines of a batch"),
        ("submit --chunk 7 -- x", "only the lines of a batch"),
        ("submit --from-file f --chunk 0", "must be between 1 and 1000"),
        ("submit --from-file f --chunk 1001", "must be between 1 and 1000"),
        ("submit --from-file f --chunk many", "must be a whole number between 1 and 1000"),
    ] {
        zkmw(bad).fails_with(64, words);
    }
}

#[test]
fn an_orphan_needs_a_parent() {
    assert_eq!(zkmw("submit x --orphan cancel").submit().orphan, Orphan::Cancel);
    zkmw("submit x --orphan cancel --detach").fails_with(64, "orphan: 'cancel' (from --orphan)");
    zkmw("submit x --detach")
        .file("orphan = 'cancel'")
        .fails_with(78, "(from FILE, line 1) is not valid: with --detach");
    assert!(zkmw("submit x --detach --orphan keep").file("orphan = 'cancel'").submit().detach);
}

#[test]
fn ids_of_tasks() {
    let wait = |call: &str| match zkmw(call).ok().command {
        Command::Wait(c) | Command::Cancel(c) | Command::Retry(c) => c,
        other => panic!("{other:?}"),
    };
    let ids = wait("wait --json _3f/01J9 import import~2/k:1").ids;
    let task = |job, name| Target::Task(TaskId::new(job, name));
    assert_eq!(ids, [task("_3f", "01J9"), Target::Job("import".into()), task("import~2", "k:1")]);
    assert!(wait("wait --json a").json && !wait("retry a").json);
    assert_eq!(wait("cancel a b").ids.len(), 2);
    let shown = zkmw("show a/b --json").ok().command;
    assert_eq!(shown, Command::Show { id: TaskId::new("a", "b"), json: true });
    assert_eq!(zkmw("workers --json").ok().command, Command::Workers { json: true, watch: false });
    assert_eq!(zkmw("elections").ok().command, Command::Elections { json: false });
    let bare = zkmw("show 01J9ZS1Y0M8T6X4W2V7R5Q3P1N").ok().command;
    let id = bare_task("01J9ZS1Y0M8T6X4W2V7R5Q3P1N");
    assert_eq!((bare, id.dir().len()), (Command::Show { id, json: false }, 3));
    let why = zkmw("why a/b").ok().command;
    assert_eq!(why, Command::Why { id: TaskId::new("a", "b"), json: false });
    let long = "x".repeat(300);
    for bad in ["", "/", "a/", "/a", "a/b/c", "a/..", ".", "a\n", &long] {
        zkmw("show").arg(bad).fails_with(64, "is not valid: must be JOB/TASK");
    }
    // What other clients may have named so.
    assert_eq!(parse::target("größe 1/é"), Ok(task("größe 1", "é")));
    // The longest id that we make ourselves.
    let longest = batch_unit(Some(&"j".repeat(128)), &"k".repeat(128), 9_999_999, 1);
    assert_eq!(parse::target(longest.as_str()), Ok(Target::Task(longest)));
    let too_many = (0..10_001).fold(zkmw("cancel"), |w, n| w.arg(n.to_string()));
    too_many.fails_with(64, "at most 10000 ids");
    zkmw("show a b").fails(64, "zkmw: show takes one ID");
    zkmw("show a").fails(
        64,
        &format!(
            "zkmw: a is a job: name one task, or see `zkmw list --job a`; the task of this key is {}",
            bare_task("a")
        ),
    );
    zkmw("wait a _3f").fails_with(64, "zkmw: _3f is a shared job, with the tasks of many users in it");
    zkmw("show _3f/a").ok();
}

#[test]
fn load_takes_the_real_host() {
    let args = ["zkmw", "worker"].map(OsString::from).into_iter();
    let empty = tempfile::tempdir().expect("a directory");
    let config = load(args, |_| None, &empty.path().join("zkmw.toml")).expect("defaults");
    let Command::Worker(worker) = config.command else { panic!("{config:?}") };
    assert!(!worker.id.is_empty() && worker.slots >= 1);
    parse::id(&worker.id).expect("the host's name is made fit");
}

#[test]
fn an_elector_refuses_a_shell_with_nothing_to_run() {
    for line in ["", "  "] {
        let world = zkmw("elector -- /bin/sh -c").arg(line);
        world.fails_with(exit::CONFIG, "set ZKMW_ELECTOR_COMMAND");
    }
    assert_eq!(zkmw("elector -- /bin/sh -c true").elector().command.len(), 3);
}
