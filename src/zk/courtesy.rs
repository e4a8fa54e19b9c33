//! How threads that mostly wait are to be scheduled.

/// From now on this thread, and what it starts, never interrupts who runs when it is woken (`SCHED_BATCH`, see
/// sched(7)). Answers and events come in bursts; a thread that waits for its turn then finds several of them, and
/// servers on the same machine keep theirs. An idle processor is taken at once all the same. Whoever was started
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
