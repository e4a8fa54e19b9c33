//! The two clocks: the one that roles live by, and the one on the wall.

use std::time::SystemTime;

use rustix::time::{ClockId, clock_gettime};

use crate::machine::Instant;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Now, on `CLOCK_BOOTTIME`, which goes on while the machine is suspended. Makes one system call, and nothing else.
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Instant::from_nanos(seconds * NANOS_PER_SECOND + u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Milliseconds since 1970, on the wall clock. It can be set, so nothing is decided by it.
pub fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
