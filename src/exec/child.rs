//! How a child is started: the command, what it does between fork and exec, and why a start failed.
//!
//! Between fork and exec the child dies with us (`PR_SET_PDEATHSIG`), leads a session of its own, writes its group id
//! into the roll's pipe and waits at its gate until the roll is written and the guard is told, so no group ever runs
//! that is not on record. What comes through the gate is the time by which it must begin.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, FdFlags, fcntl_setfd, read, retry_on_intr};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal, setsid};

use super::NotStartedKind;
use super::descriptors::{restore_limit, too_few};
use super::guard::NO_ROOM;
use super::mark::{OWNER_VAR, RUN_VAR};
use super::memory::go_sooner;
use super::proc::boottime_nanos;
use super::roll::Announcer;
use super::run::Shared;
use crate::machine::{RunId, RunOutput, RunSpec};

/// Bytes of `/proc/self/status` in which the number of descriptors stands; it is the tenth line or so.
const STATUS_BYTES: usize = 1024;
/// The first descriptor that is not inherited.
const FIRST_PRIVATE_FD: i32 = 3;
/// The last of the signals that are not real-time signals.
const LAST_SIGNAL: libc::c_int = 31;
/// What the child reports if it fails between fork and exec; exec itself never does.
const FAILED_BEFORE_EXEC: Errno = Errno::CANCELED;
/// What it reports if it came too late to begin; exec itself never does.
const TOO_LATE: Errno = Errno::TIME;

/// What a service manager tells a service of itself, its sockets, its run files and its credentials. None of it is
/// for what the service starts: a task that speaks to the watchdog would speak for us. Folders that the unit gives to
/// tasks (`STATE_DIRECTORY`, `CACHE_DIRECTORY`, `LOGS_DIRECTORY`, `CONFIGURATION_DIRECTORY`) are.
const SERVICE_VARS: [&str; 15] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "INVOCATION_ID",
    "SYSTEMD_EXEC_PID",
    "MANAGERPID",
    "RUNTIME_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
];
/// Says that standard error is the journal. That is true of what has ours.
const JOURNAL_VAR: &str = "JOURNAL_STREAM";

/// Takes out of the environment of what we start what only we are told.
pub(super) fn forget_service(command: &mut Command) {
    for name in SERVICE_VARS {
        command.env_remove(name);
    }
}

/// What it reports if something was wanting that its end needs; exec itself never does.
const NO_ROOM_LEFT: Errno = Errno::NOSR;

/// Why there is no child.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: NotStartedKind,
    pub(super) why: String,
}

/// Starts the child and returns when it has executed its program, or died at the gate.
///
/// Its environment carries our token, and the run's own mark. The thread that calls must live as long as the child:
/// `PR_SET_PDEATHSIG` is tied to it.
pub(super) fn spawn(
    run: RunId,
    spec: &RunSpec,
    (token, mark): (&str, &str),
    shared: &Shared,
    gate: &Arc<OwnedFd>,
) -> Result<Child, Failure> {
    let Some((program, arguments)) = spec.argv.split_first() else {
        return Err(Failure {
            kind: NotStartedKind::Permanent,
            why: "there is no program to run".to_owned(),
        });
    };
    refuse_nul(spec)?;
    let mut command = Command::new(program);
    forget_service(&mut command);
    let has_our_stderr = spec.request.is_some() || spec.output == RunOutput::Inherit;
    if !has_our_stderr {
        command.env_remove(JOURNAL_VAR);
    }
    command.args(arguments).envs(spec.env.iter().map(|(name, value)| (name, value))).env(OWNER_VAR, token);
    command.env(RUN_VAR, mark);
    command.stdin(Stdio::null());
    if spec.request.is_some() {
        // A handler. What it says to its standard error is about itself, and for whoever reads our log.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
    } else if let RunOutput::Capture { .. } = spec.output {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let (roll, gate, parent) = (shared.roll.clone(), Arc::clone(gate), getpid());
    let score = shared.memory.score();
    // An errno of its own, so that a failure here isn't taken for one of exec's.
    let before_exec = move || match prepare(run, parent, &score, &roll, &gate) {
        Ok(()) => Ok(()),
        Err(known @ (TOO_LATE | NO_ROOM_LEFT)) => Err(io::Error::from(known)),
        Err(_) => Err(io::Error::from(FAILED_BEFORE_EXEC)),
    };
    // SAFETY: after fork in a process with threads only async-signal-safe calls are allowed. The closure makes
    // bare system calls on memory of its own stack: it neither allocates nor locks nor panics.
    unsafe { command.pre_exec(before_exec) };
    command.spawn().map_err(|error| explain(spec, program, &error))
}

/// What the child does between fork and exec. Makes bare system calls only.
fn prepare(run: RunId, parent: Pid, score: &str, roll: &Announcer, gate: &OwnedFd) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // If our parent died before that call, the signal never comes.
    if getppid() != Some(parent) {
        return Err(Errno::SRCH);
    }
    // A session of its own is a group of its own, and has no terminal: who reads from one in the background is stopped.
    setsid()?;
    // Without it, it has our chances when memory runs out, and runs all the same.
    let _ = go_sooner(score);
    keep_descriptors_private()?;
    heed_all_signals();
    roll.announce(run)?;
    let mut not_after = [0; 8];
    retry_on_intr(|| read(gate, &mut not_after))?;
    let not_after = u64::from_ne_bytes(not_after);
    if not_after == NO_ROOM {
        return Err(NO_ROOM_LEFT);
    }
    // Nothing more is opened here. The program needs not know that we may have more.
    restore_limit();
    // We, or the machine, may have stood still since the run was decided on. The guard kills us from then on.
    if boottime_nanos() < not_after { Ok(()) } else { Err(TOO_LATE) }
}

/// Marks every descriptor but 0, 1 and 2 as close-on-exec, whoever forgot to. Runs in the child.
///
/// A listing of `/proc/self/fd` would say which there are, but the kernel makes an inode for each entry, in
/// every child anew: with many runs at once that cost more than all the rest of a start.
fn keep_descriptors_private() -> Result<(), Errno> {
    // SAFETY: a bare system call, which closes nothing.
    let marked = unsafe {
        let (first, last) = (FIRST_PRIVATE_FD as libc::c_uint, libc::c_uint::MAX);
        libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC)
    };
    if marked == 0 {
        return Ok(());
    }
    // Linux before 5.11, or a filter that does not know the call.
    for number in FIRST_PRIVATE_FD..descriptor_slots()? {
        // SAFETY: this is the only thread after fork, so nobody closes it meanwhile. If it isn't open the
        // kernel says so, and nothing else is done with it.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        match fcntl_setfd(fd, FdFlags::CLOEXEC) {
            Ok(()) | Err(Errno::BADF) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives every signal its default action. What whoever started us ignored (`nohup`, a shell without job control) would be
/// ignored by what we run as well, and a shell cannot even trap it then. Runs in the child.
fn heed_all_signals() {
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: it is async-signal-safe and sets no handler. For the two that have no other action it fails, and need not work.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// How many descriptors the process has room for at present: all that are open are below. Runs in the child.
fn descriptor_slots() -> Result<i32, Errno> {
    const STATUS: &CStr = c"/proc/self/status";
    const KEY: &[u8] = b"\nFDSize:\t";
    let file = openat(CWD, STATUS, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0; STATUS_BYTES];
    let length = retry_on_intr(|| read(&file, &mut buffer))?;
    let text = buffer.get(..length).unwrap_or_default();
    let at = text.windows(KEY.len()).position(|window| window == KEY).ok_or(Errno::NODATA)?;
    let value = text.get(at + KEY.len()..).unwrap_or_default();
    let end = value.iter().position(|&byte| byte == b'\n').ok_or(Errno::NODATA)?;
    let digits = value.get(..end).unwrap_or_default();
    digits
        .iter()
        .try_fold(0_i32, |number, &digit| match digit {
            b'0'..=b'9' => number.checked_mul(10)?.checked_add(i32::from(digit - b'0')),
            _ => None,
        })
        .ok_or(Errno::NODATA)
}

fn refuse_nul(spec: &RunSpec) -> Result<(), Failure> {
    let permanent = |why: String| Err(Failure { kind: NotStartedKind::Permanent, why });
    if let Some(at) = spec.argv.iter().position(|argument| argument.contains('\0')) {
        return permanent(format!("argument {at} contains a NUL byte"));
    }
    // An empty name or one with `=` would arrive as another variable.
    let is_bad = |name: &str| name.is_empty() || name.contains(['\0', '=']);
    match spec.env.iter().find(|(name, value)| is_bad(name) || value.contains('\0')) {
        Some((name, _)) => permanent(format!("not a valid environment variable: {name:?}")),
        None => Ok(()),
    }
}

/// What the errno of a failed start means to the user.
fn explain(spec: &RunSpec, program: &str, error: &io::Error) -> Failure {
    let permanent = |why: String| Failure { kind: NotStartedKind::Permanent, why };
    let now = |kind: NotStartedKind, why: &str| Failure {
        kind,
        why: format!("cannot start {program:?} now: {why} ({error})"),
    };
    let (transient, short) =
        (|why: &str| now(NotStartedKind::Transient, why), |why: &str| now(NotStartedKind::Shortage, why));
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => permanent(explain_missing(program)),
        Some(Errno::ACCESS) => permanent(explain_forbidden(program)),
        Some(Errno::TOOBIG) => {
            let bytes: usize = spec.argv.iter().map(|argument| argument.len() + 1).sum();
            permanent(format!(
                "cannot start {program:?}: the arguments, {bytes} bytes, are more than the system takes \
                 (one alone may have 128 KiB)"
            ))
        }
        Some(
            Errno::NOTDIR
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::PERM
            | Errno::NOEXEC
            | Errno::INVAL
            | Errno::ISDIR
            | Errno::LIBBAD,
        ) => permanent(format!("cannot start {program:?}: {error}")),
        Some(Errno::AGAIN | Errno::NOMEM) => {
            short("no room for another process; raise the limit (ulimit -u, TasksMax=, memory)")
        }
        Some(Errno::MFILE | Errno::NFILE | NO_ROOM_LEFT) => Failure {
            kind: NotStartedKind::Shortage,
            why: format!("cannot start {program:?} now: {}", too_few()),
        },
        Some(Errno::TXTBSY) => transient("the program is being written"),
        Some(TOO_LATE) => transient("the lease had ended before it began, or there was no guard"),
        Some(FAILED_BEFORE_EXEC) => short("the child could not be prepared"),
        _ => short("the system refused"),
    }
}

fn explain_missing(program: &str) -> String {
    if !program.contains('/') {
        return format!("no such program: {program:?} is not in PATH");
    }
    match fs::symlink_metadata(Path::new(program)) {
        Ok(_) => format!(
            "cannot start {program:?}: the interpreter it asks for, or a link's target, does not exist"
        ),
        Err(_) => format!("no such program: {program:?}"),
    }
}

fn explain_forbidden(program: &str) -> String {
    if fs::metadata(Path::new(program)).is_ok_and(|found| found.is_dir()) {
        format!("cannot start {program:?}: it is a directory")
    } else {
        format!("cannot start {program:?}: it is not executable, or its directory or file system forbids it")
    }
}
