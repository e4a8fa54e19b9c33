//! Root's workers whose tasks have fewer rights than they.

use std::os::unix::process::CommandExt;
use std::path::Path;

use rustix::process::geteuid;

use crate::harness::Cluster;
use crate::harness::ensemble::copy_files;
use crate::plain::{Out, Plain};

/// A setting is wrong.
const CONFIG: i32 = 78;
/// A user who is not root.
const STRANGER: u32 = 61_235;

/// A worker that ends before it connects to an ensemble.
#[track_caller]
fn refused(args: &[&str]) -> Out {
    let dir = tempfile::tempdir().expect("a folder");
    let run_dir = dir.path().display().to_string();
    let common = ["worker", "--zk", "127.0.0.1:1", "--run-dir", &run_dir];
    let out = Plain::new(&[&common, args].concat()).run();
    assert_eq!(out.code, CONFIG, "{out:?}");
    out
}

#[test]
fn tasks_of_another_user_have_none_of_the_workers_rights() {
    let cluster = Cluster::new("run-as");
    let _master = cluster.master("m");
    if !geteuid().is_root() {
        let why = refused(&["--run-as", "nobody"]).stderr;
        assert!(why.contains("only a worker that root has started"), "{why}");
        return;
    }
    let run_dir = cluster.dir().join("run").display().to_string();
    let worker = Plain::on(&cluster, &["worker", "--id", "w", "--run-dir", &run_dir, "--clean-env"])
        .env("ZKMW_RUN_AS", "nobody")
        .env("SECRET", "of the worker")
        .spawn();
    cluster.registered(&["w"]);
    let submit = |line: &str| {
        let out = Plain::on(&cluster, &["submit", "--env", "GIVEN=x", line]).run();
        (out.code, out.text())
    };
    let (code, text) = submit("id -un; echo $USER $GIVEN $SECRET; grep NoNewPrivs /proc/self/status");
    assert_eq!((code, text.as_str()), (0, "nobody\nnobody x\nNoNewPrivs:\t1\n"));
    let (code, text) = submit("env | sed 's/=.*//' | sort | xargs");
    let given = "GIVEN HOME";
    let ours = "ZKMW_ATTEMPT ZKMW_AUTH ZKMW_EPOCH ZKMW_ID ZKMW_OWNER ZKMW_TASK ZKMW_WORKER";
    let mut names: Vec<&str> = text.split_whitespace().collect();
    // Variables that a shell adds by itself, and one that this machine may lack.
    names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_", "LANG", "TZ"].contains(name));
    assert_eq!((code, names.join(" ")), (0, format!("{given} LOGNAME PATH SHELL USER {ours}")));
    let pid = worker.pid();
    let (code, _) = submit(&format!("kill -9 $PPID || kill -9 {pid} || cat /proc/{pid}/environ {run_dir}/*"));
    assert_ne!(code, 0);
    assert_eq!(submit("echo lives"), (0, "lives\n".to_owned()));
}

#[test]
fn a_worker_that_cannot_change_users_says_so_and_ends() {
    if geteuid().is_root() {
        let why = refused(&["--run-as", "no-such-user"]).stderr;
        assert!(why.contains("run-as: there is no user \"no-such-user\" on this machine"), "{why}");
        let why = refused(&["--run-as", "root"]).stderr;
        assert!(why.contains("run-as: root is root"), "{why}");
    }
    let out = as_stranger(&["--run-as", "nobody"]);
    assert_eq!(out.0, Some(CONFIG), "{}", out.1);
    assert!(out.1.contains("only a worker that root has started can run tasks as another user"), "{}", out.1);
}

/// The exit code and the errors of a worker that is not root's.
fn as_stranger(args: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let program = dir.path().join("zkmw");
    copy_files(Path::new(env!("CARGO_BIN_EXE_zkmw")), &program);
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(dir.path(), open).expect("a folder for everybody");
    let mut command = std::process::Command::new(&program);
    command.arg("worker").args(["--zk", "127.0.0.1:1", "--run-dir"]).arg(dir.path().join("run")).args(args);
    // Settings of the tests are none of its own.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ZKMW_")) {
        command.env_remove(name);
    }
    command.current_dir(Path::new("/"));
    if geteuid().is_root() {
        command.uid(STRANGER).gid(STRANGER);
    }
    let output = command.output().expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// On this machine as it is, and where there are no control groups of version 2 at all.
#[test]
fn limits_that_cannot_be_had_are_refused_before_anything_begins() {
    for (setting, controller, value) in
        [("task-memory", "memory", "1GiB"), ("task-cpus", "cpu", "0.5"), ("task-pids", "pids", "64")]
    {
        let dir = tempfile::tempdir().expect("a folder");
        let run_dir = dir.path().display().to_string();
        let flag = format!("--{setting}");
        let args = ["worker", "--zk", "127.0.0.1:1", "--run-dir", &run_dir, &flag, value];
        if geteuid().is_root() {
            let without = ["unshare", "--mount", "sh", "-c", "umount -R /sys/fs/cgroup && exec \"$@\"", "sh"];
            let out = Plain::new(&args).through(&without).run();
            assert_eq!(out.code, CONFIG, "{out:?}");
            let why = format!(
                "{setting}: this worker can have no control groups (no cgroup of version 2 that we can see)"
            );
            assert!(out.stderr.contains(&why) && out.stderr.contains("Delegate=yes"), "{out:?}");
        }
        let groups = own_group();
        let controllers = std::fs::read_to_string(format!("{groups}/cgroup.controllers")).unwrap_or_default();
        if !controllers.split_whitespace().any(|found| found == controller) {
            let why = refused(&args[5..]).stderr;
            assert!(why.contains(&format!("{setting}: ")), "{why}");
        }
    }
}

/// The control group of version 2 that we are in.
fn own_group() -> String {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned();
    let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let found = mounts.into_iter().find(|mount| Path::new(&format!("{mount}/cgroup.procs")).exists());
    format!("{}{own}", found.unwrap_or_default())
}
