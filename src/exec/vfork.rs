//! `vfork`, into a control group if need be: the child shares the memory of its parent, which is suspended until the
//! child has executed its program or ended. Copying the parent's page tables, and then writing to pages that both have,
//! would be a sixth of what a small program costs.
//!
//! As glibc does it in `posix_spawn`, which knows no control group before 2.39: with `CLONE_VM | CLONE_VFORK`, and a
//! stack of its own for the child, which must not come back into frames that the parent returns from. glibc's `clone`
//! gives such a stack, but does not know `clone3`, which alone knows control groups; so that call is made here.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Of `clone3`, from `linux/sched.h`: it does not fit into the type that libc gives it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// The child's stack, without what `execvp` puts there. A page that is not touched costs nothing.
const STACK_BYTES: usize = 256 << 10;
/// `execvp` puts a pointer there for each argument, if it finds a script without a first line.
const BYTES_AN_ARGUMENT: usize = 16;
/// The largest alignment that a stack needs, and what its size is rounded to.
const STACK_ALIGNMENT: usize = 4096;

/// What a child that has not executed its program ends with; nobody sees it.
const NOT_EXECUTED: libc::c_int = 127;

/// Memory for a child's stack.
struct Stack {
    start: *mut c_void,
    bytes: usize,
}

impl Stack {
    fn new(arguments: usize) -> Result<Stack, Errno> {
        let bytes = (STACK_BYTES + arguments * BYTES_AN_ARGUMENT).next_multiple_of(STACK_ALIGNMENT);
        let flags = MapFlags::PRIVATE | MapFlags::STACK | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping, at no fixed address.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags)? };
        Ok(Stack { start, bytes })
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, with this length. The child has another stack now, or none.
        let _ = unsafe { munmap(self.start, self.bytes) };
    }
}

/// Makes a child that lives so, in this control group or in ours, and returns when it has executed its program or
/// ended.
/// `arguments` is how many its program has. A child that comes back from its life ends.
///
/// What the child does must not panic, allocate, lock, or write to anything that the parent does not expect to have
/// changed.
///
/// # Errors
///
/// `NOSYS` also if there is a group, and no way to be born in one.
pub(super) fn vfork<F>(
    group: Option<BorrowedFd<'_>>,
    arguments: usize,
    live: &F,
) -> Result<libc::pid_t, Errno>
where
    F: Fn(),
{
    let stack = Stack::new(arguments)?;
    let born = match clone3(group, &stack, live) {
        Err(Errno::NOSYS) if group.is_none() => clone(&stack, live),
        born => born,
    };
    drop(stack);
    born
}

/// Where a child begins.
extern "C" fn begin<F: Fn()>(live: *mut c_void) -> libc::c_int {
    // SAFETY: its parent is suspended, so the memory that it has lent stays valid.
    unsafe { (*live.cast::<F>())() };
    // SAFETY: ends this process, and runs nothing that its parent meant to run at its own end.
    unsafe { libc::_exit(NOT_EXECUTED) }
}

/// By way of glibc: where a filter of system calls knows the older one only, and on other processors.
fn clone<F: Fn()>(stack: &Stack, live: &F) -> Result<libc::pid_t, Errno> {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is as large as that, and nobody else uses it; the parent is suspended while the child uses what
    // both have, and has no other thread.
    let born = unsafe {
        let top = stack.start.byte_add(stack.bytes);
        libc::clone(begin::<F>, top, flags, ptr::from_ref(live).cast_mut().cast())
    };
    if born < 0 { Err(last_errno()) } else { Ok(born) }
}

/// The arguments of the system call, for a child with this stack, born in this cgroup.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn arguments(group: Option<BorrowedFd<'_>>, stack: &Stack) -> libc::clone_args {
    // SAFETY: all zeros are a valid value of it.
    let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
    how.flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
    how.exit_signal = libc::SIGCHLD as u64;
    how.stack = stack.start as u64;
    how.stack_size = stack.bytes as u64;
    if let Some(group) = group {
        how.flags |= CLONE_INTO_CGROUP;
        how.cgroup = group.as_raw_fd() as u64;
    }
    how
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn clone3<F>(group: Option<BorrowedFd<'_>>, stack: &Stack, live: &F) -> Result<libc::pid_t, Errno>
where
    F: Fn(),
{
    let how = arguments(group, stack);
    let (begin, live) = (begin::<F> as extern "C" fn(*mut c_void) -> libc::c_int, ptr::from_ref(live));
    let result: isize;
    // SAFETY: the parent comes out of the call as out of any other. The child comes out of it with the same registers
    // but for the result and the stack, calls `begin`, and does not come back from there.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") &raw const how,
            in("rsi") size_of::<libc::clone_args>(),
            in("r8") live,
            in("r9") begin,
            out("rcx") _,
            out("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x9",
            "blr x10",
            "brk 1",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") &raw const how => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x9") live,
            in("x10") begin,
        );
    }
    match i32::try_from(result) {
        Ok(pid @ 1..) => Ok(pid),
        Ok(error) => Err(Errno::from_raw_os_error(error.saturating_neg().max(1))),
        Err(_) => Err(Errno::RANGE),
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn clone3<F>(_: Option<BorrowedFd<'_>>, _: &Stack, _: &F) -> Result<libc::pid_t, Errno>
where
    F: Fn(),
{
    Err(Errno::NOSYS)
}

fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::exec::children::reap;
    use crate::machine::Ended;

    /// In both ways. (Other threads of this process go on meanwhile, and share nothing with the child.)
    #[test]
    fn a_child_shares_our_memory_and_we_wait_for_it() {
        let written = AtomicU32::new(0);
        let live = || {
            written.fetch_add(1, Ordering::SeqCst);
        };
        let stack = Stack::new(1_000).unwrap();
        let ways: [&dyn Fn() -> Result<libc::pid_t, Errno>; 3] =
            [&|| vfork(None, 3, &live), &|| clone3(None, &stack, &live), &|| clone(&stack, &live)];
        for (number, way) in (1..).zip(ways) {
            let pid = match way() {
                Ok(pid) => pid,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(written.load(Ordering::SeqCst), number);
            assert_eq!(reap(pid.unsigned_abs()), Ended::Exit(NOT_EXECUTED));
        }
    }
}
