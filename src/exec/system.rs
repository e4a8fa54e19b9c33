//! System calls that the keeper, slots and the log writer share.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::event::Timespec;
use rustix::fs::{FileType, fstat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::setsid;
use rustix::time::{Itimerspec, TimerfdTimerFlags, timerfd_settime};

/// Where a slot has its socket.
pub(super) const SLOT_SOCKET: i32 = 3;

/// Makes this process, which a worker or an elector has started, one of its own: in a session without a terminal, out
/// of reach of signals to all of a group. Returns the socket that was its standard input.
pub(super) fn detach(name: &std::ffi::CStr) -> anyhow::Result<OwnedFd> {
    let stdin = rustix::stdio::stdin();
    let found = fstat(stdin).context("cannot inspect standard input")?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        bail!("only a worker or an elector starts this: its standard input is no socket");
    }
    let socket = fcntl_dupfd_cloexec(stdin, SLOT_SOCKET).context("no room for a descriptor")?;
    let null = File::open("/dev/null").context("cannot open /dev/null")?;
    // SAFETY: standard input becomes another file; nobody else in this process uses it.
    if unsafe { libc::dup2(null.as_raw_fd(), 0) } < 0 {
        bail!("cannot replace standard input: {}", std::io::Error::last_os_error());
    }
    let _ = setsid();
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGALRM,
        libc::SIGPIPE,
        libc::SIGUSR2,
        libc::SIGXFSZ,
    ] {
        // SAFETY: sets no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let _ = rustix::thread::set_name(name);
    Ok(socket)
}

/// A descriptor that receives these signals, which are blocked from now on.
pub(super) fn signals(which: &[libc::c_int]) -> std::io::Result<OwnedFd> {
    // SAFETY: bare system calls on a set of our own; the descriptor is new.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in which {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            fd @ 0.. => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

/// Sets a timer of `CLOCK_BOOTTIME` to this time, in nanoseconds; 0 stops it.
pub(super) fn set_timer(timer: &OwnedFd, at: u64) {
    let second = Duration::from_secs(1).as_nanos() as u64;
    let value = Timespec { tv_sec: (at / second).cast_signed(), tv_nsec: (at % second).cast_signed() };
    let until = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: value };
    let _ = timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &until);
}

/// A duration as the kernel takes it.
pub(super) fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as _, tv_nsec: time.subsec_nanos().into() }
}
