//! Descriptors: as many as we may have, and enough for a run before it starts.
//!
//! A run that was started with the last descriptor could not be watched, nor its strays be looked for, nor its
//! control group be killed. So each has in reserve what it will need, and leaves some for everybody else.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most descriptors that we ask for. Far more than any worker needs, and few enough for whoever counts up to the limit.
const MOST: u64 = 1 << 20;
/// What a start takes at its worst: a gate, three pipes, the null device, the pipe through which `exec` fails, a
/// pidfd, and what wakes a handler's thread.
const FOR_START: usize = 12;
/// What the end takes: a list of processes, and what is read of one of them, or a pidfd of it.
const FOR_END: usize = 2;
/// What is left for all else at any time: the run file, control groups, the guard's pipe, a new connection.
const FOR_OTHERS: usize = 8;
/// The first descriptor that is none of the three standard ones.
const FIRST: i32 = 3;

/// The soft limit that we were started with, for what we start: a program that uses `select` breaks above 1,024.
static INHERITED: OnceLock<Option<u64>> = OnceLock::new();

/// Raises our limit as far as we may.
pub(super) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    INHERITED.get_or_init(|| current);
    let most = maximum.unwrap_or(MOST).min(MOST);
    if current.is_some_and(|current| current < most)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum })
    {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}

/// Gives a child the limit that we were started with. Makes bare system calls only.
pub(super) fn restore_limit() {
    let Some(inherited) = INHERITED.get() else { return };
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = match (*inherited, maximum) {
        (Some(current), Some(maximum)) => Some(current.min(maximum)),
        (current, maximum) => current.or(maximum),
    };
    // Fewer are always allowed. Where it fails all the same, the program has more than it had.
    let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
}

/// From which runs take what they need.
#[derive(Debug)]
pub(super) struct Stock {
    /// Whatever can be duplicated.
    model: OwnedFd,
    taking: Mutex<()>,
}

/// What one run has in reserve.
#[derive(Debug)]
pub(super) struct Reserve(Vec<OwnedFd>);

impl Stock {
    pub(super) fn new() -> io::Result<Stock> {
        Ok(Stock { model: eventfd(0, EventfdFlags::CLOEXEC)?, taking: Mutex::new(()) })
    }

    /// Enough for a run, if there is.
    pub(super) fn take(&self) -> Option<Reserve> {
        // One at a time: what is tried for others must not be missing to the next.
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let duplicate = |_| fcntl_dupfd_cloexec(&self.model, FIRST);
        let taken: Result<Vec<OwnedFd>, Errno> =
            (0..FOR_START + FOR_END + FOR_OTHERS).map(duplicate).collect();
        let mut taken = taken.ok()?;
        taken.truncate(FOR_START + FOR_END);
        Some(Reserve(taken))
    }
}

impl Reserve {
    /// The end begins.
    pub(super) fn end(&mut self) {
        self.0.clear();
    }

    /// The start begins: gives it what was kept for it.
    pub(super) fn start(&mut self) {
        self.0.truncate(FOR_END);
    }
}

/// Why nothing can be started, in words.
pub(super) fn too_few() -> String {
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
    format!(
        "too many open files: raise the limit (ulimit -n, LimitNOFILE=; now {limit}), or have fewer slots"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_shrinks_to_what_the_end_needs() {
        let stock = Stock::new().unwrap();
        let mut reserve = stock.take().unwrap();
        assert_eq!(reserve.0.len(), FOR_START + FOR_END);
        reserve.start();
        assert_eq!(reserve.0.len(), FOR_END);
    }
}
