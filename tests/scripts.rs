//! The scripts that users run, as they run them.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

fn script(name: &str) -> Command {
    let mut command = Command::new(format!("{}/scripts/{name}", env!("CARGO_MANIFEST_DIR")));
    // The scripts must not see the settings of the tests' own environment.
    for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ZKMW_")) {
        command.env_remove(variable);
    }
    command
}

/// `systemd-analyze verify` is silent, and `security` gives each unit at most 3.0.
#[test]
fn the_units_are_valid_and_hardened() {
    let output = script("test-units").output().expect("scripts/test-units can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for unit in ["zkmw-master.service", "zkmw-worker@.service", "zkmw-elector@.service"] {
        assert!(text.contains(&format!("ok   {unit}")), "{text}");
    }
}

/// A PATH for `scripts/setup` with these stubs and the few tools that it cannot do without. The stub of apt-get fails.
fn setup_with(stubs: &[(&str, &str)]) -> (String, i32) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut scripts = vec![("apt-get", "echo \"apt-get $*\" >&2; exit 100"), ("sudo", "exec \"$@\"")];
    scripts.extend(stubs);
    for (name, body) in scripts {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/bash\n{body}\n")).expect("a stub");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    }
    for tool in ["bash", "dirname", "sed", "env"] {
        let path = ["/usr/bin", "/bin"].map(|bin| format!("{bin}/{tool}"));
        let path = path.iter().find(|path| std::path::Path::new(path).exists()).expect("a tool");
        std::os::unix::fs::symlink(path, dir.path().join(tool)).expect("a link");
    }
    let mut setup = script("setup");
    setup.env("PATH", dir.path()).env("HOME", dir.path()).env_remove("CARGO_HOME").env_remove("JAVA_HOME");
    let output = setup.output().expect("scripts/setup can be run");
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code().unwrap_or(-1))
}

/// Nothing is downloaded for a user that has to install cargo first.
#[test]
fn setup_asks_for_cargo_before_it_installs_anything() {
    let (said, code) = setup_with(&[]);
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("no cargo") && !said.contains("apt-get"), "{said}");
}

#[test]
fn setup_installs_what_the_tests_call() {
    let (said, code) = setup_with(&[("cargo", "exit 0")]);
    assert_eq!(code, 69, "{said}");
    let installed = said.lines().find(|line| line.starts_with("setup: installing")).expect("a line about it");
    let kernel = if cfg!(target_arch = "x86_64") { "user-mode-linux" } else { "git" };
    for package in ["git", "procps", "util-linux", "mount", "gcc", kernel] {
        assert!(installed.split(' ').any(|word| word == package), "{package}: {installed}");
    }
}

/// The main job, with real files, while a leader and a worker are killed: every sum is right.
#[test]
fn the_quickstart_survives_a_leader_and_a_worker_failure() {
    let output = script("quickstart").env("ZKMW_BIN", env!("CARGO_BIN_EXE_zkmw")).output();
    let output = output.expect("scripts/quickstart can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for words in ["killed the leader", "killed the worker", "sums are right"] {
        assert!(text.contains(words), "{words} is not said in:\n{text}");
    }
}

/// Each bug that `scripts/plant` plants is still one that can be planted.
#[test]
fn every_planted_bug_applies() {
    let root = env!("CARGO_MANIFEST_DIR");
    let bugs = std::fs::read_dir(format!("{root}/tests/sim/bugs")).expect("tests/sim/bugs");
    let mut patches: Vec<_> = bugs.map(|bug| bug.expect("a file").path()).collect();
    patches.sort();
    assert!(patches.len() >= 12, "only {} bugs", patches.len());
    for patch in patches {
        let output = Command::new("git").args(["apply", "--check"]).arg(&patch).current_dir(root).output();
        let output = output.expect("git can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
