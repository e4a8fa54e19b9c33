//! Descriptors: as many as we may have, while what we run gets the limit that we were started with.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most descriptors that we ask for. Far more than any worker needs, and few enough for a program that counts up to
/// the limit.
const MOST: u64 = 1 << 20;
/// The soft limit that we were started with, for what we start: a program that uses `select` breaks above 1,024.
static INHERITED: OnceLock<Option<u64>> = OnceLock::new();

/// Raises our limit as far as we may; the one that we were started with.
pub(super) fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    INHERITED.get_or_init(|| current);
    let most = maximum.unwrap_or(MOST).min(MOST);
    if current.is_some_and(|current| current < most)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum })
    {
        log::warn!("cannot raise the limit of open files: {error}");
    }
    INHERITED.get().copied().flatten()
}

/// Gives a child the limit that we were started with. Makes bare system calls only.
pub(super) fn restore_limit(inherited: Option<u64>) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = match (inherited, maximum) {
        (Some(current), Some(maximum)) => Some(current.min(maximum)),
        (current, maximum) => current.or(maximum),
    };
    // Fewer are always allowed. If this fails, the program has more than we had.
    let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
}

/// Why nothing can be started when descriptors run out, in words.
pub(super) fn too_few() -> String {
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
    format!(
        "too many open files: raise the limit (ulimit -n, LimitNOFILE=; now {limit}), or have fewer slots"
    )
}
