//! Whether the process may have the descriptors and threads that it needs: found out by having them for a moment.
//!
//! The limits come from many sources (`ulimit`, control groups, the whole system), and only trying knows them all. The
//! client library panics where it gets none, in threads that nobody hears of; so it is not called before there is
//! enough.

use std::fmt;
use std::io;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::threads;

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Descriptors,
    Threads,
    Memory,
}

/// There is too little of something.
#[derive(Debug)]
pub struct Shortage {
    what: What,
    /// How many were tried.
    wanted: usize,
    error: io::Error,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shortage { what, wanted, error } = self;
        let name = match what {
            What::Descriptors => "more descriptors",
            What::Threads | What::Memory => "more threads",
        };
        write!(
            f,
            "this process needs {wanted} {name} at this point and cannot have them: {error}; {}",
            what.remedy()
        )
    }
}

impl std::error::Error for Shortage {}

impl What {
    fn remedy(self) -> String {
        let now =
            |resource| getrlimit(resource).current.map_or("unlimited".to_owned(), |limit| limit.to_string());
        match self {
            What::Descriptors => {
                format!(
                    "raise the limit of open files (ulimit -n, LimitNOFILE=; now {})",
                    now(Resource::Nofile)
                )
            }
            What::Threads => format!(
                "raise the limit of threads (ulimit -u, LimitNPROC=; now {}; or TasksMax=, pids.max of \
                 the control group)",
                now(Resource::Nproc)
            ),
            What::Memory => format!("give it more memory (ulimit -v now {}, MemoryMax=)", now(Resource::As)),
        }
    }
}

/// Tries whether so many further descriptors and threads can be had at once.
///
/// # Errors
/// If not.
pub fn check(descriptors: usize, threads: usize) -> Result<(), Shortage> {
    let open = || eventfd(0, EventfdFlags::CLOEXEC);
    let opened: Result<Vec<_>, Errno> = (0..descriptors).map(|_| open()).collect();
    let opened = opened.map(drop).map_err(io::Error::from);
    opened.map_err(|error| Shortage { what: What::Descriptors, wanted: descriptors, error })?;
    threads::try_having(threads).map_err(|error| {
        let what = if error.kind() == io::ErrorKind::OutOfMemory { What::Memory } else { What::Threads };
        Shortage { what, wanted: threads, error }
    })
}

/// An error in words, with what to raise, if it came of too little of something.
pub fn explain(error: &anyhow::Error) -> Option<String> {
    if error.chain().any(|cause| cause.is::<Shortage>()) {
        return Some(format!("{error:#}"));
    }
    let codes = error.chain().filter_map(|cause| {
        let from_std = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        from_std.or_else(|| cause.downcast_ref::<Errno>().map(|code| code.raw_os_error()))
    });
    let what = |code| match Errno::from_raw_os_error(code) {
        Errno::MFILE | Errno::NFILE => Some(What::Descriptors),
        Errno::AGAIN => Some(What::Threads),
        Errno::NOMEM => Some(What::Memory),
        _ => None,
    };
    codes.filter_map(what).map(|what| format!("{error:#}; {}", what.remedy())).next()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn what_is_there_can_be_had() {
        check(16, 8).unwrap();
    }

    #[test]
    fn what_is_not_there_is_named_with_its_limit() {
        let error = io::Error::from(Errno::MFILE);
        let shortage = Shortage { what: What::Descriptors, wanted: 10, error }.to_string();
        let limit = getrlimit(Resource::Nofile).current.unwrap();
        assert!(shortage.contains("10 more descriptors"), "{shortage}");
        assert!(shortage.contains(&format!("ulimit -n, LimitNOFILE=; now {limit}")), "{shortage}");
    }

    #[test]
    fn an_error_that_came_of_a_limit_is_known_through_its_contexts() {
        let nested = |code: i32| {
            let error: Result<(), io::Error> = Err(io::Error::from_raw_os_error(code));
            error.context("cannot make a pipe").context("cannot start").unwrap_err()
        };
        assert!(explain(&nested(libc::EMFILE)).unwrap().contains("ulimit -n"));
        assert!(explain(&nested(libc::EAGAIN)).unwrap().contains("ulimit -u"));
        assert!(explain(&nested(libc::ENOMEM)).unwrap().contains("memory"));
        assert_eq!(explain(&nested(libc::ENOENT)), None);
        assert!(explain(&anyhow::Error::from(Errno::MFILE)).is_some());
    }
}
