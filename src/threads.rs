//! Every thread of ours is started here, so that none can panic unseen.
//!
//! A process that goes on without one of its threads is worse than one that ends: it holds its session or its tasks,
//! its watchdog is fed, and it does nothing. When it ends, others take over, and the service manager starts it again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};

use crossbeam_channel::bounded;

use crate::exit;

/// Enough for a thread that calls little besides the system.
const SMALL_STACK: usize = 256 * 1024;

/// Starts a thread. If it panics, the process ends.
///
/// # Errors
/// If there is no thread to be had.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    spawn_to_join(name, body).map(drop)
}

/// The same of one whose end is waited for.
///
/// # Errors
/// If there is no thread to be had.
pub fn spawn_to_join(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    start(thread::Builder::new(), name, body)
}

/// The same with a small stack.
///
/// # Errors
/// If there is no thread to be had.
pub fn spawn_small(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    spawn_sized(name, SMALL_STACK, body)
}

/// The same with a stack of so many bytes.
///
/// # Errors
/// If there is no thread to be had.
pub fn spawn_sized(name: &str, stack: usize, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    start(thread::Builder::new().stack_size(stack), name, body).map(drop)
}

fn start(
    builder: thread::Builder,
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let title = name.to_owned();
    builder.name(name.to_owned()).spawn(move || {
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            log::error!(
                "thread {title} panicked, so the process ends: this is a bug in zkmw; please report it with \
                 the log above"
            );
            std::process::exit(exit::BUG);
        }
    })
}

/// From now on this thread, and what it starts, never interrupts who runs when it is woken (`SCHED_BATCH`, see
/// sched(7)). Answers and events come in bursts; a thread that waits for its turn then finds several of them, and
/// servers on the same machine keep theirs. It still takes an idle processor at once. A process that was started
/// with a policy of its own keeps it.
pub fn yield_to_others() {
    // SAFETY: both calls concern the calling thread alone, and the parameter lives through the second.
    unsafe {
        if libc::sched_getscheduler(0) == libc::SCHED_OTHER {
            let none = libc::sched_param { sched_priority: 0 };
            // Nothing depends on it, and it may be forbidden (seccomp).
            libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const none);
        }
    }
}

/// Has so many further threads for a moment.
///
/// # Errors
/// If they cannot be had at once.
pub fn try_having(count: usize) -> io::Result<()> {
    let (end, until) = bounded::<()>(0);
    let wait = |_| {
        let until = until.clone();
        thread::Builder::new().name("trial".to_owned()).spawn(move || until.recv().is_ok())
    };
    let started: io::Result<Vec<_>> = (0..count).map(wait).collect();
    drop(end);
    // One that ended counts until it is joined.
    started?.into_iter().for_each(|thread| drop(thread.join()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    /// Not a test by itself: a process with a thread that panics.
    #[test]
    fn a_process_of_which_a_thread_panics() {
        if std::env::var_os("ZKMW_TEST_PANIC").is_some() {
            super::spawn_small("careless", || panic!("on purpose")).unwrap();
            std::thread::sleep(Duration::from_secs(60));
        }
    }

    #[test]
    fn a_panic_in_a_thread_ends_the_process() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "threads::tests::a_process_of_which_a_thread_panics", "--nocapture"])
            .env("ZKMW_TEST_PANIC", "1")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(crate::exit::BUG), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("on purpose"), "{output:?}");
    }
}
