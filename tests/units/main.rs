//! The units of `scripts/systemd` under a real systemd, as process 1 of a container (`tests/units/run` makes it). The
//! checks are in `tests/units/checks`.

use std::io::Write as _;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// The exit code of `run` where this machine cannot start the container.
const SKIPPED: i32 = 77;

/// One container at a time: some checks measure how long something takes.
static MACHINE: Mutex<()> = Mutex::new(());

#[test]
fn the_units_do_their_work_under_a_real_systemd() {
    // A choice of checks, or a mutation, is for a person who calls the script by hand.
    works("run", |command| command.env_remove("CHECKS"));
}

/// On a kernel of its own, since this machine may have no controllers of control groups to spare.
#[test]
fn a_worker_of_systemds_limits_its_tasks_where_the_kernel_can() {
    if !cfg!(target_arch = "x86_64") {
        let _ = writeln!(std::io::stderr(), "SKIPPED: user-mode Linux is for one architecture only");
        return;
    }
    let checks = works("kernel", |command| command.env("CHECKS", "start confined"));
    assert!(checks.is_none_or(|checks| checks.contains("ok   limits hold after a restart")));
}

/// The output of the script, if this machine can start the container.
fn works(script: &str, choose: impl Fn(&mut Command) -> &mut Command) -> Option<String> {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new(format!("{}/tests/units/{script}", env!("CARGO_MANIFEST_DIR")));
    command.arg(env!("CARGO_BIN_EXE_zkmw")).env_remove("MUTATE");
    let output = choose(&mut command).output().expect("the script can be run");
    let (checks, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(SKIPPED) {
        // Past the test harness, which shows nothing of a test that passes.
        let reason = errors.lines().last().unwrap_or_default();
        let _ = writeln!(std::io::stderr(), "SKIPPED: the units under a real systemd: {reason}");
        return None;
    }
    assert!(output.status.success(), "{checks}{errors}");
    assert!(checks.ends_with("0 checks failed\n"), "{checks}{errors}");
    Some(checks.into_owned())
}
