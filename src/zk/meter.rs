//! Bounds what a server may send before it comes to the end of one reply.
//!
//! The crate takes whatever length a server announces, and reads on and on into one buffer. Replies come one after the
//! other, so while that happens nothing else comes out of the crate. The kernel counts what a socket has received: if
//! that grows by more than a reply may have, and the crate has handed nothing over meanwhile, the connection is killed.
//!
//! A thread for each connection, which sleeps while the server is silent, and never checks more often than
//! [`CHECK_EVERY`].

use std::mem::{MaybeUninit, offset_of, size_of};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client::Client;
use crate::threads;

/// The most that one reply may have. The longest that zkmw has use for is a list of 5,000 names, or a znode's data,
/// and both have a megabyte at most, unless somebody has raised the limit.
const REPLY_MAX: u64 = 64 * 1024 * 1024;
/// While data comes, the socket is checked no more often. A server on the same machine sends some 30 MiB in this
/// time.
const CHECK_EVERY: Duration = Duration::from_millis(20);
/// The longest wait for data. It needs no end, for the end of the connection is one; but every wait here has a limit.
const WAIT_MAX: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Starts to watch a client. The thread ends with it.
pub fn watch(client: &Arc<Client>) -> anyhow::Result<()> {
    let client = Arc::downgrade(client);
    threads::spawn_small("zk-meter", move || measure(&client)).context("no thread for measuring replies")
}

fn measure(client: &Weak<Client>) {
    let mut meter = Meter::default();
    while let Some(client) = client.upgrade().filter(|client| !client.has_ended()) {
        let (socket, for_good) = client.socket();
        if let Some(bytes) = socket.as_ref().and_then(|socket| received(socket))
            && meter.is_too_much(bytes, client.handed_over())
        {
            let limit = REPLY_MAX / 1024 / 1024;
            client.give_up(format!("the server sent more than {limit} MiB without the end of a reply"));
            return;
        }
        drop(client); // or it would live for as long as the server is silent
        if let (Some(socket), true) = (&socket, for_good) {
            let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&WAIT_MAX)); // interrupted: as good as data
        }
        thread::sleep(CHECK_EVERY);
    }
}

/// What was received when the crate last handed something over.
#[derive(Default)]
struct Meter {
    handed_over: u64,
    bytes: u64,
}

impl Meter {
    fn is_too_much(&mut self, bytes: u64, handed_over: u64) -> bool {
        // Fewer bytes: it is another socket, since the client still connects.
        if handed_over != self.handed_over || bytes < self.bytes {
            *self = Meter { handed_over, bytes };
        }
        bytes - self.bytes > REPLY_MAX
    }
}

/// How many bytes a TCP socket has received; `None` before Linux 4.1.
fn received(socket: &OwnedFd) -> Option<u64> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes no more than `length` bytes, which is the size of `info`; the descriptor is open.
    let result = unsafe {
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        libc::getsockopt(socket.as_raw_fd(), level, option, info.as_mut_ptr().cast(), &raw mut length)
    };
    let needed = offset_of!(libc::tcp_info, tcpi_bytes_received) + size_of::<u64>();
    // SAFETY: it is made of integers, and whatever the kernel did not write is zero.
    let info = unsafe { info.assume_init() };
    (result == 0 && length as usize >= needed).then_some(info.tcpi_bytes_received)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_over_starts_the_count_again() {
        let mut meter = Meter::default();
        assert!(!meter.is_too_much(REPLY_MAX, 0));
        assert!(!meter.is_too_much(REPLY_MAX + 1, 1));
        assert!(!meter.is_too_much(2 * REPLY_MAX + 1, 1));
        assert!(meter.is_too_much(2 * REPLY_MAX + 2, 1));
        assert!(!meter.is_too_much(10, 1), "another socket");
        assert!(meter.is_too_much(REPLY_MAX + 11, 1));
    }

    #[test]
    fn a_socket_counts_what_it_received() {
        use std::io::Write;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near: OwnedFd = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap().into();
        let mut far = listener.accept().unwrap().0;
        far.write_all(&[0; 1000]).unwrap();
        poll(&mut [PollFd::new(&near, PollFlags::IN)], Some(&WAIT_MAX)).unwrap();
        assert_eq!(received(&near), Some(1000));
    }
}
