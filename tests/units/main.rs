//! The units of `scripts/systemd` under a real systemd, as process 1 of a container (`tests/units/run` makes it). The
//! checks are in `tests/units/checks`.

use std::io::Write as _;
use std::process::Command;

/// What `run` exits with where this machine cannot start the container.
const SKIPPED: i32 = 77;

#[test]
fn the_units_do_their_work_under_a_real_systemd() {
    let run = format!("{}/tests/units/run", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(run);
    command.arg(env!("CARGO_BIN_EXE_zkmw"));
    // A choice of checks, or a mutation, is for whoever calls the script by hand.
    command.env_remove("CHECKS").env_remove("MUTATE");
    let output = command.output().expect("tests/units/run can be run");
    let (checks, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(SKIPPED) {
        // Past the test harness, which shows nothing of a test that passes.
        let reason = errors.lines().last().unwrap_or_default();
        let _ = writeln!(std::io::stderr(), "SKIPPED: the units under a real systemd: {reason}");
        return;
    }
    assert!(output.status.success(), "{checks}{errors}");
    assert!(checks.ends_with("0 checks failed\n"), "{checks}{errors}");
}
