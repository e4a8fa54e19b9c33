//! Ended means ended: no process of the group is left, and nothing delays the end.

use super::*;

#[test]
fn the_rest_of_a_group_is_killed_before_its_end_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("left");
    let mut rig = Rig::new();
    for _ in 0..20 {
        let line = format!("(trap '' HUP TERM; sleep 30) & echo $! > {}; exit 3", left.display());
        assert_eq!(rig.run(sh(&line)).ended, Ended::Exit(3));
        assert!(!is_alive(pid_in(&left)));
    }
}

#[test]
fn a_big_rest_of_the_group_is_waited_for() {
    // To give back so much memory takes the kernel a while after the SIGKILL.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    let exe = std::env::current_exe().unwrap();
    let line = format!(
        "{ROLE}=big {DIR}={path} {} --exact helper & until [ -s {path}/big ]; do sleep 0.01; done",
        exe.display()
    );
    let report = Rig::new().run(sh(&line));
    let big = pid_in(&dir.path().join("big"));
    assert_eq!((report.ended, is_alive(big)), (Ended::Exit(0), false));
}

pub fn big(dir: &Path) {
    // With small memory pages it takes longest.
    rustix::thread::disable_transparent_huge_pages(true).unwrap();
    let memory = vec![1_u8; 400 << 20];
    fs::write(dir.join("big"), format!("{}\n", std::process::id())).unwrap();
    std::thread::sleep(PATIENCE);
    drop(memory);
}

#[test]
fn a_stopped_rest_of_the_group_dies_too() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("left");
    let line = format!(
        "sleep 30 & kill -STOP $!; until grep -q 'State:.T' /proc/$!/status; do :; done; echo $! > {}",
        left.display()
    );
    assert_eq!(Rig::new().run(sh(&line)).ended, Ended::Exit(0));
    assert!(!is_alive(pid_in(&left)));
}

#[test]
fn output_left_in_the_pipes_at_the_end_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new();
    for _ in 0..20 {
        let report = rig.run(limited(4 << 20, helper_spec("wide_pipe", dir.path())));
        assert_eq!(report.ended, Ended::Exit(0));
        assert_eq!(report.stdout.head.iter().filter(|&&byte| byte == 1).count(), WIDE_PIPE_BYTES);
    }
}

/// The most that a pipe can hold, so that much of it is still unread when the writer has ended.
const WIDE_PIPE_BYTES: usize = 1 << 20;

pub fn wide_pipe() -> ! {
    let stdout = std::io::stdout();
    rustix::pipe::fcntl_setpipe_size(&stdout, WIDE_PIPE_BYTES).unwrap();
    let bytes = vec![1; WIDE_PIPE_BYTES];
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&stdout, rest).unwrap()..];
    }
    std::process::exit(0);
}

#[test]
fn a_stray_that_holds_the_pipe_dies_and_delays_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let escaped = dir.path().join("escaped");
    let mut rig = Rig::new();
    // One that is silent, and one that never stops writing.
    for command in ["sleep 30", "yes"] {
        let line = format!(
            "setsid sh -c 'echo $$ > {0}; exec {command}' & until [ -s {0} ]; do sleep 0.01; done; echo over",
            escaped.display()
        );
        let begun = Instant::now();
        let report = rig.run(sh(&line));
        let took = begun.elapsed();
        let pid = pid_in(&escaped);
        assert!(!is_alive(pid), "{command}");
        fs::remove_file(&escaped).unwrap();
        assert_eq!(report.ended, Ended::Exit(0));
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
}

#[test]
fn an_unreaped_zombie_delays_no_end() {
    // Its parent has left the group and never waits for it.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    let exe = std::env::current_exe().unwrap();
    let line = format!(
        "{ROLE}=bad_parent {DIR}={path} {} --exact helper & until [ -s {path}/child ]; do sleep 0.01; done",
        exe.display()
    );
    let report = Rig::new().run(sh(&line));
    let (child, parent) = (pid_in(&dir.path().join("child")), pid_in(&dir.path().join("parent")));
    assert_eq!((report.ended, state(child), state(parent)), (Ended::Exit(0), None, None));
}

#[allow(clippy::zombie_processes, reason = "a zombie is wanted")]
pub fn bad_parent(dir: &Path) {
    let child = Command::new("sleep").arg("30").spawn().unwrap();
    // It moves to a group of its own; the child stays in the old one.
    setpgid(None, None).unwrap();
    fs::write(dir.join("parent"), format!("{}\n", std::process::id())).unwrap();
    fs::write(dir.join("child"), format!("{}\n", child.id())).unwrap();
    std::thread::sleep(PATIENCE);
}
