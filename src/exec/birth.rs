//! How a slot starts a program: what it is given, what the child does between clone and exec, and why a start failed.
//!
//! The child is born in its control group (`CLONE_INTO_CGROUP`), leads a process group of its own, becomes another
//! user's if it is to, and dies with its slot (`PR_SET_PDEATHSIG`). The slot is suspended until it has executed
//! its program or ended (`vfork`), so the child leaves its result in the slot's part of the page.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::Ordering;

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, fchown, openat};
use rustix::io::{Errno, FdFlags, fcntl_setfd, read, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};

use super::children::reap;
use super::descriptors::{restore_limit, too_few};
use super::mark::OWNER_VAR;
use super::memory::go_sooner;
use super::shared_page::{SharedPage, SlotPart};
use super::user::User;
use super::vfork::vfork;
use super::wire::{Hello, Program, Streams};
use super::{Confinement, NotStartedKind, RunLimits};

/// Bytes of `/proc/self/status` that have the number of descriptors; it is the tenth line or so.
const STATUS_BYTES: usize = 1024;
/// The first descriptor that is not inherited.
const FIRST_PRIVATE_FD: RawFd = 3;
/// The last of the signals that are not real-time signals.
const LAST_SIGNAL: libc::c_int = 31;

mod c {
    unsafe extern "C" {
        /// Our environment, as `execvp` sees it.
        pub(super) static mut environ: *const *const libc::c_char;
    }
}

/// How far the child has come.
mod step {
    pub(super) const BORN: u32 = 0;
    pub(super) const NOT_PREPARED: u32 = 1;
    pub(super) const TOO_LATE: u32 = 2;
    /// It is about to execute its program.
    pub(super) const READY: u32 = 3;
    pub(super) const NOT_EXECUTED: u32 = 4;
    pub(super) const NOT_THAT_USER: u32 = 5;
}

/// Says that standard error is the journal. It is true of a program that has our standard error.
const JOURNAL_VAR: &str = "JOURNAL_STREAM";
/// The search path in a minimal environment, as most systems have it for their users.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Variables of ours that a minimal environment has, if we have them. By the first a successor recognises our programs.
const KEPT: [&str; 3] = [OWNER_VAR, "LANG", "TZ"];
/// The same, where programs are the worker's user's.
const KEPT_OF_USER: [&str; 4] = ["HOME", "USER", "LOGNAME", "SHELL"];

/// Why there is no program.
#[derive(Debug)]
pub(super) struct StartFailure {
    pub(super) kind: NotStartedKind,
    pub(super) why: String,
}

/// Why no program runs.
#[derive(Debug)]
pub(super) enum StartRefusal {
    /// Nobody can be born in that control group.
    Cgroup,
    /// There is no program.
    Failed(StartFailure),
}

impl From<StartFailure> for StartRefusal {
    fn from(failure: StartFailure) -> StartRefusal {
        StartRefusal::Failed(failure)
    }
}

/// A program that was started.
#[derive(Debug)]
pub(super) struct Born {
    pub(super) leader: u32,
    /// Where it writes, if we keep that.
    pub(super) stdout: Option<OwnedFd>,
    /// Where it writes its errors, if we keep that.
    pub(super) stderr: Option<OwnedFd>,
}

/// What all programs of a slot are given.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    environ: Vec<(OsString, CString)>,
    pub(super) oom_score: String,
    pub(super) descriptors: Option<u64>,
    pub(super) limits: RunLimits,
    user: Option<User>,
    ignored: Vec<libc::c_int>,
}

/// Where a program is born.
#[derive(Clone, Copy, Debug)]
pub(super) enum CgroupEntry<'a> {
    /// Without a control group of its own.
    None,
    /// In this one.
    Into(BorrowedFd<'a>),
    /// It enters this one before it runs its program, by the list of processes: the kernel lets no process be born
    /// in another group. The kernel makes a process that enters wait for up to 10 ms.
    Enters(BorrowedFd<'a>),
}

impl Surroundings {
    /// What the worker says, and of the environment of this process what they may have.
    pub(super) fn new(hello: Hello) -> Surroundings {
        let Hello { oom_score, descriptors, confinement, cgroups: _ } = hello;
        let environ = environment(std::env::vars_os(), &confinement).into_iter();
        let environ = environ.filter_map(|(name, value)| {
            let line = [name.clone().into_vec(), value.into_vec()].join(&b'=');
            Some((name, CString::new(line).ok()?))
        });
        let (environ, ignored) = (environ.collect(), ignored_signals());
        let Confinement { limits, user, .. } = confinement;
        Surroundings { environ, oom_score, descriptors, limits, user, ignored }
    }

    /// The program's environment.
    fn of(&self, program: &Program) -> Vec<CString> {
        let mut replaced: BTreeSet<&str> = program.env.iter().map(|(name, _)| name.as_str()).collect();
        if matches!(program.streams, Streams::Capture { .. }) {
            replaced.insert(JOURNAL_VAR);
        }
        let kept = self
            .environ
            .iter()
            .filter(|(name, _)| !name.to_str().is_some_and(|name| replaced.contains(name)));
        let added =
            program.env.iter().filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok());
        kept.map(|(_, line)| line.clone()).chain(added).collect()
    }
}

/// What of these variables programs have, and more.
fn environment(
    ours: impl Iterator<Item = (OsString, OsString)>,
    confinement: &Confinement,
) -> BTreeMap<OsString, OsString> {
    let Confinement { user, clean_env, .. } = confinement;
    let is_kept = |name: &OsString| {
        KEPT.iter().any(|kept| name == kept) || user.is_none() && KEPT_OF_USER.iter().any(|kept| name == kept)
    };
    let mut environ: BTreeMap<_, _> = ours.filter(|(name, _)| !clean_env || is_kept(name)).collect();
    if *clean_env {
        environ.insert("PATH".into(), PATH.into());
    }
    environ.extend(user.iter().flat_map(User::variables));
    environ
}

/// What the child needs, made before it is born: between clone and exec it only makes system calls.
struct Child<'a> {
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// What becomes 0, 1 and 2, where that is not ours.
    streams: [Option<BorrowedFd<'a>>; 3],
    surroundings: &'a Surroundings,
    entry: CgroupEntry<'a>,
    page: &'a SharedPage,
    parent: libc::pid_t,
}

/// Starts the program, and returns when it runs; with `pipes`, a handler's standard input and output.
pub(super) fn start(
    program: &Program,
    slot: u32,
    pipes: Option<&(OwnedFd, OwnedFd)>,
    surroundings: &Surroundings,
    entry: CgroupEntry<'_>,
    page: &SharedPage,
) -> Result<Born, StartRefusal> {
    let name = program.argv.first().cloned().unwrap_or_default();
    let short = |error: Errno| explain(program, &name, error);
    refuse_unfit(program)?;
    let argv: Vec<CString> =
        program.argv.iter().filter_map(|word| CString::new(word.as_str()).ok()).collect();
    let environ = surroundings.of(program);
    let captured = matches!(program.streams, Streams::Capture { .. });
    let pipe = || captured.then(|| pipe_with(PipeFlags::CLOEXEC)).transpose().map_err(short);
    let (stdout, stderr) = (pipe()?, pipe()?);
    let streams = match pipes {
        Some((stdin, stdout)) => [Some(stdin), Some(stdout), None],
        None => [None, stdout.as_ref().map(|(_, end)| end), stderr.as_ref().map(|(_, end)| end)],
    };
    if let Some(user) = &surroundings.user {
        // So that it can open them again, as `/dev/stdout`. If this fails, it can still use them.
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        for end in streams.iter().flatten() {
            let _ = fchown(end, Some(uid), Some(gid));
        }
    }
    let child = Child {
        argv: pointers(&argv),
        envp: pointers(&environ),
        streams: streams.map(|end| end.map(std::os::fd::AsFd::as_fd)),
        surroundings,
        entry,
        page,
        parent: rustix::process::getpid().as_raw_nonzero().get(),
    };
    let part = page.part(slot);
    part.step.store(step::BORN, Ordering::SeqCst);
    let refused = |error| match error {
        Errno::AGAIN | Errno::NOMEM => StartRefusal::Failed(short(error)),
        _ => StartRefusal::Cgroup,
    };
    let leader = child.be_born(slot).map_err(refused)?;
    if part.step.load(Ordering::SeqCst) == step::READY {
        let ours = |pipe: Option<(OwnedFd, OwnedFd)>| pipe.map(|(end, _)| end);
        return Ok(Born { leader: leader.unsigned_abs(), stdout: ours(stdout), stderr: ours(stderr) });
    }
    let failure = not_ready(program, &name, surroundings, part);
    reap(leader.unsigned_abs());
    let never_ran = part.step.load(Ordering::SeqCst) == step::BORN;
    if never_ran && matches!(entry, CgroupEntry::Into(_)) {
        // So kernels do where the group, or one above it, was killed before.
        return Err(StartRefusal::Cgroup);
    }
    Err(failure.into())
}

/// Why a child did not get as far as its program, by the step that it had reached.
fn not_ready(program: &Program, name: &str, surroundings: &Surroundings, part: &SlotPart) -> StartFailure {
    let errno = || Errno::from_raw_os_error(part.errno.load(Ordering::SeqCst).cast_signed().max(1));
    match part.step.load(Ordering::SeqCst) {
        step::NOT_EXECUTED => explain(program, name, errno()),
        step::NOT_PREPARED => now(name, NotStartedKind::Shortage, "the child could not be prepared", errno()),
        step::NOT_THAT_USER => {
            let user = surroundings.user.as_ref().map_or("another", |user| &user.name);
            let why = format!("it could not become the user {user}");
            now(name, NotStartedKind::Shortage, &why, errno())
        }
        step::TOO_LATE => StartFailure {
            kind: NotStartedKind::Transient,
            why: format!("cannot start {name:?} now: the lease had ended before it began"),
        },
        _ => StartFailure {
            kind: NotStartedKind::Transient,
            why: format!("cannot start {name:?} now: it was killed before it began"),
        },
    }
}

fn pointers(of: &[CString]) -> Vec<*const libc::c_char> {
    of.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

impl Child<'_> {
    /// Makes the child, which does not come back from here.
    fn be_born(&self, slot: u32) -> Result<libc::pid_t, Errno> {
        let group = match self.entry {
            CgroupEntry::Into(group) => Some(group),
            CgroupEntry::None | CgroupEntry::Enters(_) => None,
        };
        // It searches its program there.
        // SAFETY: this process has no other thread. The child, which shares our memory, reads the list. It lives
        // as long as we are suspended.
        let ours = unsafe { ptr::replace(&raw mut c::environ, self.envp.as_ptr()) };
        let born = vfork(group, self.argv.len(), &|| self.live(slot));
        // SAFETY: as above.
        unsafe { c::environ = ours };
        born
    }

    /// What the child does. It comes back only if there is no program.
    fn live(&self, slot: u32) {
        let part = self.page.part(slot);
        let failed = |step: u32, error: Errno| {
            part.errno.store(error.raw_os_error().unsigned_abs(), Ordering::SeqCst);
            part.step.store(step, Ordering::SeqCst);
        };
        let user = self.surroundings.user.as_ref();
        let prepared = self
            .prepare()
            .map_err(|error| (step::NOT_PREPARED, error))
            .and_then(|()| user.map_or(Ok(()), User::become_it).map_err(|error| (step::NOT_THAT_USER, error)))
            .and_then(|()| self.die_with_parent().map_err(|error| (step::NOT_PREPARED, error)));
        match prepared {
            Err((step, error)) => failed(step, error),
            // We, or the machine, may have been suspended since the run was decided on.
            Ok(()) if !self.page.holds() => failed(step::TOO_LATE, Errno::TIME),
            Ok(()) => {
                part.leader.store(std::process::id(), Ordering::SeqCst);
                part.step.store(step::READY, Ordering::SeqCst);
                // SAFETY: the list ends with a null, and its strings live. So it is with the environment.
                unsafe { libc::execvp(self.argv[0], self.argv.as_ptr()) };
                failed(step::NOT_EXECUTED, last_errno());
                part.leader.store(0, Ordering::SeqCst);
            }
        }
    }

    /// What it may no longer do when it is another user's.
    fn prepare(&self) -> Result<(), Errno> {
        // SAFETY: a bare system call about this process.
        check(unsafe { libc::setpgid(0, 0) })?;
        if let CgroupEntry::Enters(list) = self.entry {
            rustix::io::write(list, b"0")?;
        }
        // If this fails, the program runs with our own score when memory runs out.
        let _ = go_sooner(&self.surroundings.oom_score);
        for (number, stream) in (0..).zip(&self.streams) {
            if let Some(stream) = stream {
                // SAFETY: a bare system call; that one of the numbers becomes another file is what is wanted.
                check(unsafe { libc::dup2(stream.as_raw_fd(), number) })?;
            }
        }
        keep_descriptors_private()?;
        heed_all_signals(&self.surroundings.ignored)?;
        // Nothing more is opened here. The program needs not know that we may have more.
        restore_limit(self.surroundings.descriptors);
        Ok(())
    }

    /// Last of all: who becomes another user's loses that signal.
    fn die_with_parent(&self) -> Result<(), Errno> {
        // SAFETY: bare system calls about this process.
        unsafe {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            // If our parent died before that call, the signal never comes.
            if libc::getppid() == self.parent { Ok(()) } else { Err(Errno::SRCH) }
        }
    }
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    match result {
        0.. => Ok(()),
        _ => Err(last_errno()),
    }
}

fn last_errno() -> Errno {
    io::Error::last_os_error()
        .raw_os_error()
        .filter(|code| *code > 0)
        .map_or(Errno::IO, Errno::from_raw_os_error)
}

/// Marks every descriptor but 0, 1 and 2 as close-on-exec, wherever it was opened. Runs in the child.
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
        // SAFETY: this is the only thread, so nobody closes it meanwhile. If it isn't open the kernel says so, and
        // nothing else is done with it.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        match fcntl_setfd(fd, FdFlags::CLOEXEC) {
            Ok(()) | Err(Errno::BADF) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The signals that this process ignores.
fn ignored_signals() -> Vec<libc::c_int> {
    let is_ignored = |signal: &libc::c_int| {
        // SAFETY: all zeros are a valid value of it; nothing is set.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let asked = libc::sigaction(*signal, ptr::null(), &raw mut action);
            asked == 0 && action.sa_sigaction == libc::SIG_IGN
        }
    };
    (1..=LAST_SIGNAL).filter(is_ignored).collect()
}

/// Gives these signals their default action, and blocks none. A program inherits the signals that we ignore, or that
/// our parent ignored (`nohup`, a shell without job control), and a shell cannot even trap those. Handlers do not
/// outlive the exec. Runs in the child.
fn heed_all_signals(ignored: &[libc::c_int]) -> Result<(), Errno> {
    // SAFETY: sets no handler.
    unsafe {
        for signal in ignored {
            libc::signal(*signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()))
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
    let digits = text.get(at + KEY.len()..).unwrap_or_default().split(|&byte| byte == b'\n').next();
    let digits = std::str::from_utf8(digits.unwrap_or_default()).unwrap_or_default();
    digits.parse().map_err(|_| Errno::NODATA)
}

fn refuse_unfit(program: &Program) -> Result<(), StartFailure> {
    let permanent = |why: String| Err(StartFailure { kind: NotStartedKind::Permanent, why });
    if program.argv.is_empty() {
        return permanent("there is no program to run".to_owned());
    }
    if let Some(at) = program.argv.iter().position(|argument| argument.contains('\0')) {
        return permanent(format!("argument {at} contains a NUL byte"));
    }
    // An empty name or one with `=` would arrive as another variable.
    let is_bad = |name: &str| name.is_empty() || name.contains(['\0', '=']);
    match program.env.iter().find(|(name, value)| is_bad(name) || value.contains('\0')) {
        Some((name, _)) => permanent(format!("not a valid environment variable: {name:?}")),
        None => Ok(()),
    }
}

fn now(name: &str, kind: NotStartedKind, why: &str, error: Errno) -> StartFailure {
    let error = io::Error::from(error);
    StartFailure { kind, why: format!("cannot start {name:?} now: {why} ({error})") }
}

/// What the errno of a failed start means to the user.
fn explain(program: &Program, name: &str, errno: Errno) -> StartFailure {
    let error = io::Error::from(errno);
    let permanent = |why: String| StartFailure { kind: NotStartedKind::Permanent, why };
    let short = |why: &str| now(name, NotStartedKind::Shortage, why, errno);
    match errno {
        Errno::NOENT => permanent(explain_missing(name)),
        Errno::ACCESS => permanent(explain_forbidden(name)),
        Errno::TOOBIG => {
            let bytes: usize = program.argv.iter().map(|argument| argument.len() + 1).sum();
            permanent(format!(
                "cannot start {name:?}: the arguments, {bytes} bytes, are more than the system takes \
                 (one alone may have 128 KiB)"
            ))
        }
        Errno::NOTDIR
        | Errno::LOOP
        | Errno::NAMETOOLONG
        | Errno::PERM
        | Errno::NOEXEC
        | Errno::INVAL
        | Errno::ISDIR
        | Errno::LIBBAD => permanent(format!("cannot start {name:?}: {error}")),
        Errno::AGAIN | Errno::NOMEM => {
            short("no room for another process; raise the limit (ulimit -u, TasksMax=, memory)")
        }
        Errno::MFILE | Errno::NFILE => StartFailure {
            kind: NotStartedKind::Shortage,
            why: format!("cannot start {name:?} now: {}", too_few()),
        },
        Errno::TXTBSY => now(name, NotStartedKind::Transient, "the program is being written", errno),
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
