//! The page: memory that the worker, its keeper and all slots share. It holds the lease, and of each slot until when
//! what it runs may run as far as the slot knows.
//!
//! The lease is one word: its deadline, and whether a process has found it over. The process that finds the deadline
//! passed sets *over* by compare-exchange before it kills; a renewal is a compare-exchange too. So a renewal that
//! comes late either counts for all, or fails, and its caller knows that what runs is being killed.
//!
//! It must not: use any clock but `CLOCK_BOOTTIME`, which goes on while the machine sleeps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::clock;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Most slots of an executor, handlers' included.
pub(super) const MOST_SLOTS: u32 = 1 << 15;
/// Where the slots' parts begin.
const HEAD_BYTES: usize = 4096;
/// Of a slot: fields that different processes write are in different cache lines.
const SLOT_BYTES: usize = 64;
const PAGE_BYTES: usize = HEAD_BYTES + MOST_SLOTS as usize * SLOT_BYTES;
/// Set in the lease's word when it was found over.
const OVER: u64 = 1;

/// A lease without an end, for those who need none.
pub(super) const ENDLESS: u64 = u64::MAX >> 1;

/// The shared memory, mapped.
#[derive(Debug)]
pub(super) struct SharedPage {
    start: NonNull<u8>,
    memfd: OwnedFd,
}

// SAFETY: what is mapped is reached through atomics alone.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

/// A slot's part of the page.
#[derive(Debug)]
#[repr(C)]
pub(super) struct SlotPart {
    /// Until when what it runs may run, as far as it knows: then it checks the lease again. 0 while nothing runs.
    pub(super) armed: AtomicU64,
    /// Whether it has something to run. A handler may have nothing.
    pub(super) busy: AtomicU32,
    /// Whether the slot is checking if it has to kill, or kills.
    pub(super) killing: AtomicU32,
    /// How far the process that it starts has come, for that one to write.
    pub(super) step: AtomicU32,
    /// Why it came no further.
    pub(super) errno: AtomicU32,
    /// That process, once its program is about to run; 0 before. The sender of a program sets it.
    pub(super) leader: AtomicU32,
}

const _: () = assert!(size_of::<SlotPart>() <= SLOT_BYTES);

/// What became of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    /// It counts.
    Counts {
        /// The time before had passed, and nobody had found that out.
        late: bool,
        /// It ends earlier than before: a process that checks again at the earlier deadline checks too late.
        shorter: bool,
    },
    /// Somebody has found the lease over, and kills.
    Over,
}

impl SharedPage {
    /// A page on which nothing may run yet.
    pub(super) fn new() -> io::Result<SharedPage> {
        let memfd = memfd_create(c"zkmw-page", MemfdFlags::CLOEXEC)?;
        ftruncate(&memfd, PAGE_BYTES as u64)?;
        SharedPage::map(memfd)
    }

    /// The page that somebody else has made.
    pub(super) fn map(memfd: OwnedFd) -> io::Result<SharedPage> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping, at no fixed address. Its file is as long as that, and nobody makes it shorter.
        let start = unsafe { mmap(ptr::null_mut(), PAGE_BYTES, access, MapFlags::SHARED, &memfd, 0)? };
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at no address"))?;
        Ok(SharedPage { start, memfd })
    }

    /// For another process.
    pub(super) fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: in bounds, aligned, and only ever used as this.
        unsafe { self.start.cast().as_ref() }
    }

    /// What belongs to this slot.
    ///
    /// # Panics
    ///
    /// If the number is [`MOST_SLOTS`] or more.
    pub(super) fn part(&self, slot: u32) -> &SlotPart {
        assert!(slot < MOST_SLOTS, "there is no slot {slot}");
        // SAFETY: in bounds, aligned, and only ever used as this.
        unsafe { self.start.add(HEAD_BYTES + slot as usize * SLOT_BYTES).cast().as_ref() }
    }

    /// Until when what runs may run; `None` if the lease was found over.
    pub(super) fn deadline(&self) -> Option<u64> {
        let word = self.word().load(Ordering::SeqCst);
        (word & OVER == 0).then_some(word >> 1)
    }

    /// Whether something may begin now. Makes bare system calls only.
    pub(super) fn holds(&self) -> bool {
        self.deadline().is_some_and(|deadline| clock::now().as_nanos() < deadline)
    }

    /// The deadline of the lease, while it holds. `None` if it is over for good: then the caller kills what it runs.
    pub(super) fn check_lease(&self) -> Option<u64> {
        let mut word = self.word().load(Ordering::SeqCst);
        loop {
            // The clock is read after the word: a process that was suspended in between finds the word changed.
            if word & OVER != 0 {
                return None;
            }
            if clock::now().as_nanos() < word >> 1 {
                return Some(word >> 1);
            }
            match self.word().compare_exchange(word, word | OVER, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return None,
                Err(now) => word = now,
            }
        }
    }

    /// From now on what runs may run until then.
    pub(super) fn renew(&self, until: u64) -> Renewal {
        let mut word = self.word().load(Ordering::SeqCst);
        loop {
            if word & OVER != 0 {
                return Renewal::Over;
            }
            let until = until.min(ENDLESS) << 1;
            match self.word().compare_exchange(word, until, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(before) => {
                    let late = clock::now().as_nanos() >= before >> 1;
                    return Renewal::Counts { late, shorter: until < before };
                }
                Err(now) => word = now,
            }
        }
    }

    /// Begins a new lease, when all that ran under the last one is dead, and nothing that was sent under it can begin.
    pub(super) fn begin_anew(&self, until: u64) {
        self.word().store(until.min(ENDLESS) << 1, Ordering::SeqCst);
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, with this length; no reference outlives the page.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), PAGE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_renewal_counts_unless_the_lapse_was_noticed() {
        let page = SharedPage::new().unwrap();
        assert!(!page.holds());
        assert_eq!(page.renew(ENDLESS), Renewal::Counts { late: true, shorter: false });
        assert_eq!((page.holds(), page.check_lease()), (true, Some(ENDLESS)));
        assert_eq!(page.renew(1), Renewal::Counts { late: false, shorter: true });
        assert_eq!((page.holds(), page.deadline()), (false, Some(1)));
        assert_eq!(page.renew(2), Renewal::Counts { late: true, shorter: false });
        assert_eq!(page.check_lease(), None);
        assert_eq!((page.renew(ENDLESS), page.holds(), page.deadline()), (Renewal::Over, false, None));
        page.begin_anew(ENDLESS);
        assert!(page.holds());
    }

    /// Of a process that renews and one that checks, exactly one wins.
    #[test]
    fn at_the_deadline_one_wins() {
        let page = SharedPage::new().unwrap();
        for _ in 0..2_000 {
            page.begin_anew(clock::now().as_nanos() + 20_000);
            let (renewed, over) = std::thread::scope(|scope| {
                let renews = scope.spawn(|| {
                    while clock::now().as_nanos() < page.deadline().unwrap_or(0) {}
                    page.renew(ENDLESS)
                });
                let checks = scope.spawn(|| {
                    loop {
                        match page.check_lease() {
                            None => return true,
                            Some(ENDLESS) => return false,
                            Some(_) => {}
                        }
                    }
                });
                (renews.join().unwrap(), checks.join().unwrap())
            });
            assert_eq!(over, renewed == Renewal::Over);
        }
    }

    #[test]
    fn each_process_sees_the_same() {
        let page = SharedPage::new().unwrap();
        let other = SharedPage::map(page.memfd().try_clone_to_owned().unwrap()).unwrap();
        page.renew(77);
        other.part(MOST_SLOTS - 1).armed.store(5, Ordering::SeqCst);
        assert_eq!((other.deadline(), page.part(MOST_SLOTS - 1).armed.load(Ordering::SeqCst)), (Some(77), 5));
    }
}
