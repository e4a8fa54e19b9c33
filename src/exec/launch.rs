//! A child as `fork` and `exec` make it, born in a cgroup if there is one for it.
//!
//! `std::process::Command` cannot do that. Whoever moves a process into a cgroup after its birth makes the kernel wait until
//! no processor is in the midst of a fork or an exit: 10 ms and more on an idle machine, while nobody on it may start a
//! process or a thread. What is born there (`CLONE_INTO_CGROUP`, Linux 5.7, clone(2)) costs no more than any other child.
//!
//! Between the fork and exec the child must make bare system calls only, and neither allocate nor lock: another thread may
//! have held any lock, and does not exist there.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr;

use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, setpgid, waitid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::proc::to_pid;

/// The flag of clone3; more than fits in the type that the libc crate has for it, which so has 0.
const CLONE_INTO_CGROUP: u64 = 1 << 33;
/// Bytes in which the child tells why it could not begin.
const REPORT_BYTES: usize = size_of::<i32>();
/// What the child exits with then; nobody looks at it.
const NOT_BEGUN: i32 = 127;

/// Where a child's standard input, output and error go. `None` is where ours go.
pub(super) type Streams = [Option<OwnedFd>; 3];

/// Why there is no child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoChild {
    /// There never was one.
    Fork(Errno),
    /// It could not begin, and is dead and reaped.
    Begin(Errno),
}

/// What is to be run, as `exec` takes it.
#[derive(Debug)]
pub(super) struct Image {
    argv: Vec<CString>,
    env: Vec<CString>,
}

impl Image {
    /// A program with its arguments and the whole of its environment.
    ///
    /// # Errors
    ///
    /// `INVAL` if there is a NUL byte in any of it, or nothing to run.
    pub(super) fn new(
        argv: &[String],
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Image, Errno> {
        let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| Errno::INVAL);
        let argv = argv.iter().map(|word| text(word.clone().into_bytes())).collect::<Result<Vec<_>, _>>()?;
        let assign = |(name, value): (OsString, OsString)| {
            text([name.into_vec(), b"=".to_vec(), value.into_vec()].concat())
        };
        let env = env.into_iter().map(assign).collect::<Result<Vec<_>, _>>()?;
        if argv.is_empty() { Err(Errno::INVAL) } else { Ok(Image { argv, env }) }
    }

    /// Starts it as the leader of a group of its own, and returns its pid when it has executed its program, or died on
    /// the way there. `before_exec` is the last that the child does, and says whether it may begin.
    ///
    /// The program is looked for as execvp(3) does it, in the `PATH` of the child's environment.
    pub(super) fn launch(
        &self,
        streams: &Streams,
        cgroup: Option<BorrowedFd<'_>>,
        before_exec: impl Fn() -> Result<(), Errno>,
    ) -> Result<u32, NoChild> {
        // All that has to be allocated.
        let (argv, env) = (pointers(&self.argv), pointers(&self.env));
        let (report, reporter) = pipe_with(PipeFlags::CLOEXEC).map_err(NoChild::Fork)?;
        let Some(pid) = fork(cgroup).map_err(NoChild::Fork)? else {
            // `before_exec` may need a descriptor.
            drop(report);
            let why = begin(&argv, &env, streams, before_exec);
            let _ = retry_on_intr(|| write(&reporter, &why.raw_os_error().to_ne_bytes()));
            // SAFETY: it ends the child at once; nothing of ours that it has a copy of is dropped or flushed.
            unsafe { libc::_exit(NOT_BEGUN) };
        };
        drop(reporter);
        let mut why = [0; REPORT_BYTES];
        // So few bytes come at once or not at all: then its program runs, or it died.
        match retry_on_intr(|| read(&report, &mut why)) {
            Ok(REPORT_BYTES) => {}
            Ok(_) | Err(_) => return Ok(pid),
        }
        let _ = retry_on_intr(|| waitid(WaitId::Pid(to_pid(pid)), WaitIdOptions::EXITED));
        Err(NoChild::Begin(Errno::from_raw_os_error(i32::from_ne_bytes(why))))
    }
}

/// A list as C has it.
fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// The pid of a new child; `None` in the child itself.
fn fork(cgroup: Option<BorrowedFd<'_>>) -> Result<Option<u32>, Errno> {
    let pid = match cgroup {
        // SAFETY: the child calls nothing but what may be called after a fork (see `begin`).
        None => libc::c_long::from(unsafe { libc::fork() }),
        Some(cgroup) => {
            // SAFETY: all its fields are numbers, and 0 means nothing asked for.
            let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
            how.flags = CLONE_INTO_CGROUP;
            how.exit_signal = libc::SIGCHLD as u64;
            how.cgroup = cgroup.as_raw_fd() as u64;
            // SAFETY: without `CLONE_VM` and a stack it returns twice just as fork does, with memory of its own. What libc
            // does on top at a fork is for children that allocate, or use its streams.
            unsafe { libc::syscall(libc::SYS_clone3, &raw mut how, size_of::<libc::clone_args>()) }
        }
    };
    match pid {
        0 => Ok(None),
        pid => match u32::try_from(pid) {
            Ok(pid) => Ok(Some(pid)),
            Err(_) => {
                let error = std::io::Error::last_os_error().raw_os_error();
                Err(error.map_or(Errno::INVAL, Errno::from_raw_os_error))
            }
        },
    }
}

unsafe extern "C" {
    /// In which execvp looks for `PATH`, and which it hands on.
    static mut environ: *const *const libc::c_char;
}

/// The child's life until exec, which returns only if it failed: why. Makes bare system calls only.
fn begin(
    argv: &[*const libc::c_char],
    env: &[*const libc::c_char],
    [stdin, stdout, stderr]: &Streams,
    before_exec: impl Fn() -> Result<(), Errno>,
) -> Errno {
    let prepare = || {
        stdin.iter().try_for_each(|fd| dup2_stdin(fd.as_fd()))?;
        stdout.iter().try_for_each(|fd| dup2_stdout(fd.as_fd()))?;
        stderr.iter().try_for_each(|fd| dup2_stderr(fd.as_fd()))?;
        setpgid(None, None)?;
        before_exec()
    };
    if let Err(why) = prepare() {
        return why;
    }
    let Some(program) = argv.first() else { return Errno::INVAL };
    // SAFETY: this is the only thread of the process. Both lists end with a null pointer, and the texts live.
    unsafe {
        environ = env.as_ptr();
        libc::execvp(*program, argv.as_ptr());
    }
    let error = std::io::Error::last_os_error().raw_os_error();
    error.map_or(Errno::INVAL, Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::cgroup::Cgroups;
    use crate::exec::proc::Identity;
    use crate::machine::RunId;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    /// What it says, once it is over.
    fn said(argv: &[&str], env: &[(&str, &str)], cgroup: Option<BorrowedFd<'_>>) -> Result<String, NoChild> {
        let argv: Vec<String> = argv.iter().map(|&word| word.to_owned()).collect();
        let image = Image::new(&argv, env.iter().map(|&(name, value)| (name.into(), value.into()))).unwrap();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let streams = [None, Some(writer), None];
        let pid = image.launch(&streams, cgroup, || Ok(()))?;
        drop(streams);
        let mut text = String::new();
        fs::File::from(reader).read_to_string(&mut text).unwrap();
        waitid(WaitId::Pid(to_pid(pid)), WaitIdOptions::EXITED).unwrap();
        Ok(text)
    }

    #[test]
    fn a_program_is_looked_for_in_the_path_of_its_own_environment_which_is_all_that_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("says");
        // Without a first line that names an interpreter: a shell runs it, as execvp has it.
        fs::write(&program, "export -p; echo \"$0 $1\"").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().to_str().unwrap();
        let text = said(&["says", "it"], &[("PATH", path), ("ONLY", "this")], None).unwrap();
        assert!(text.contains("ONLY='this'") && !text.contains("HOME="), "{text}");
        assert!(text.ends_with(&format!("{path}/says it\n")), "{text}");
        let missing = said(&["says"], &[("PATH", "/nowhere")], None);
        assert_eq!(missing, Err(NoChild::Begin(Errno::NOENT)));
    }

    #[test]
    fn a_child_is_born_in_its_cgroup() {
        let own = Identity::own().unwrap();
        let Ok(cgroups) = Cgroups::make(&own, 900) else { return };
        let run = RunId(1);
        let cradle = cgroups.cradle(run).unwrap();
        let text = said(&["/bin/cat", "/proc/self/cgroup"], &[], Some(cradle.as_fd())).unwrap();
        let name = cgroups.base().file_name().unwrap().to_str().unwrap();
        assert!(text.lines().any(|line| line.ends_with(&format!("/{name}/1"))), "{text}");
        // What is no cgroup bears nobody; then the next try is another, or none.
        let folder = tempfile::tempdir().unwrap();
        let folder = fs::File::open(folder.path()).unwrap();
        let refused = said(&["/bin/true"], &[], Some(folder.as_fd()));
        assert!(matches!(refused, Err(NoChild::Fork(_))), "{refused:?}");
        cgroups.not_born(run, Errno::BUSY);
        assert!(!cgroups.has(run) && cgroups.cradle(run).is_some());
        cgroups.not_born(run, Errno::NOSYS);
        assert!(!cgroups.has(run) && cgroups.cradle(run).is_none());
    }
}
