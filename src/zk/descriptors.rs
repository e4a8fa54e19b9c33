//! Finds the descriptors of a client that the `zookeeper` crate hides, so that its connection can be ended.
//!
//! The crate has no way to give up a connection: its calls have no limit, and its `close` waits for the server.
//! But its I/O thread sleeps in an epoll instance of its own, and `/proc` shows which one, and which socket is
//! in it. Everything is identified by the inode of its socket, never by the number of a descriptor: numbers are
//! used again the moment that another thread closes one.
//!
//! Needs Linux. Touches no descriptor but duplicates of its own.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::event::epoll;
use rustix::net::{Shutdown, sockopt};
use rustix::pipe::{PipeFlags, pipe_with};

/// The token under which the crate registers its socket (`io.rs`, `const ZK`).
const SOCKET_TOKEN: u64 = 1;

/// How long the crate's I/O thread may take to register its socket after `connect` returned.
const REGISTERED_WITHIN: Duration = Duration::from_secs(2);

/// The sockets that this process has open, by inode.
pub fn open_sockets() -> anyhow::Result<HashSet<u64>> {
    let mut sockets = HashSet::new();
    for (_, target) in open_descriptors()? {
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        sockets.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
    }
    Ok(sockets)
}

/// The number and target of each open descriptor; one that is closed meanwhile is left out.
fn open_descriptors() -> anyhow::Result<Vec<(RawFd, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").context("cannot list /proc/self/fd")? {
        let Ok(entry) = entry else { continue };
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        found.push((number, target.to_string_lossy().into_owned()));
    }
    Ok(found)
}

/// A duplicate of whatever has that number now. The caller has to check what it got.
fn duplicate(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the descriptor is borrowed for one fcntl only. If another thread closed it meanwhile, the kernel
    // answers EBADF; if the number was used again, we get a duplicate of something else, which the callers
    // notice by its inode and drop without having used it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_dupfd_cloexec(borrowed, 0).ok()
}

/// A socket in an epoll instance: its number at the time of registering, and its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registered {
    number: RawFd,
    inode: u64,
}

/// What an epoll instance holds under the crate's token, from the text of its `fdinfo`.
fn registered_socket(fdinfo: &str) -> Option<Registered> {
    for line in fdinfo.lines().filter_map(|line| line.strip_prefix("tfd:")) {
        // "  10 events: 8000201d data:                1  pos:0 ino:1b27 sdev:9"; data, ino and sdev are hex.
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = words.first().and_then(|word| word.parse().ok());
        let data = words.iter().position(|word| *word == "data:").and_then(|at| words.get(at + 1));
        let inode = words.iter().find_map(|word| word.strip_prefix("ino:"));
        let data = data.and_then(|word| u64::from_str_radix(word, 16).ok());
        let inode = inode.and_then(|word| u64::from_str_radix(word, 16).ok());
        if let (Some(number), Some(SOCKET_TOKEN), Some(inode)) = (number, data, inode) {
            return Some(Registered { number, inode });
        }
    }
    None
}

fn socket_in(epoll: &OwnedFd) -> Option<Registered> {
    let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{}", epoll.as_raw_fd())).ok()?;
    registered_socket(&fdinfo)
}

/// The power to end a client's connection at any time, without its help.
#[derive(Debug)]
pub struct Killer {
    epoll: OwnedFd,
    /// The read end of a pipe that nobody can write to: it reports a hang-up for ever.
    hung_up: OwnedFd,
    socket: OnceLock<Arc<OwnedFd>>,
}

impl Killer {
    /// Finds the epoll instance of the client that was just made, by its socket, which is none of `before`.
    ///
    /// Only one client at a time may be made in a process, or they could be confused.
    pub fn find(before: &HashSet<u64>) -> anyhow::Result<Killer> {
        let (hung_up, _) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        let deadline = Instant::now() + REGISTERED_WITHIN;
        loop {
            for (number, target) in open_descriptors()? {
                if target != "anon_inode:[eventpoll]" {
                    continue;
                }
                let Some(epoll) = duplicate(number) else { continue };
                let socket = socket_in(&epoll);
                if socket.is_some_and(|socket| !before.contains(&socket.inode)) {
                    return Ok(Killer { epoll, hung_up, socket: OnceLock::new() });
                }
            }
            if Instant::now() >= deadline {
                return Err(anyhow!("the client's socket is not to be found in /proc/self/fdinfo"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The client's socket, and whether it stays the same: not while the client still connects.
    pub fn socket(&self) -> (Option<Arc<OwnedFd>>, bool) {
        match self.socket.get() {
            Some(taken) => (Some(Arc::clone(taken)), true),
            None => (self.find_socket().ok().map(Arc::new), false),
        }
    }

    fn find_socket(&self) -> anyhow::Result<OwnedFd> {
        let registered = socket_in(&self.epoll).context("the client has no socket any more")?;
        let socket = duplicate(registered.number).context("the client's socket is closed already")?;
        let inode = rustix::fs::fstat(&socket).context("fstat")?.st_ino;
        if inode != registered.inode {
            return Err(anyhow!("the client's socket was replaced"));
        }
        Ok(socket)
    }

    /// Takes hold of the client's socket, which must be connected to `peer`.
    pub fn take_socket(&self, peer: SocketAddr) -> anyhow::Result<()> {
        let socket = self.find_socket()?;
        let found = rustix::net::getpeername(&socket).context("getpeername")?;
        let found = found.and_then(|found| SocketAddr::try_from(found).ok());
        let found = found.context("the client's socket is not an internet socket")?;
        if (found.ip(), found.port()) != (peer.ip(), peer.port()) {
            return Err(anyhow!("the client is connected to {found}, not to {peer}"));
        }
        // The crate leaves Nagle's algorithm on: a small request would wait for the answer to the one before.
        sockopt::set_tcp_nodelay(&socket, true).context("TCP_NODELAY")?;
        let _ = self.socket.set(Arc::new(socket)); // taken already: one is as good as the other
        Ok(())
    }

    /// Ends the connection. It never blocks, and it may be done again.
    ///
    /// A shutdown of the socket ends the connection at the server, and wakes the I/O thread of a connected client.
    /// While a client is still connecting, however, the crate answers a lost socket with a new one, over and over, and
    /// without a word to its listener. A hang-up reported under the socket's token reaches the listener in every
    /// state.
    pub fn kill(&self) {
        if let Some(socket) = self.socket.get() {
            // It may be shut down already; then there is nothing left to do.
            let _ = rustix::net::shutdown(socket, Shutdown::Both);
        }
        let token = epoll::EventData::new_u64(SOCKET_TOKEN);
        match epoll::add(&self.epoll, &self.hung_up, token, epoll::EventFlags::HUP) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => log::warn!("cannot hang up on a ZooKeeper client: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_found_under_the_crates_token() {
        let fdinfo = "pos:\t0\nflags:\t02000002\n\
            tfd:        8 events: 80000019 data: ffffffffffffffff  pos:0 ino:7b sdev:d\n\
            tfd:       10 events: 8000201d data:                1  pos:0 ino:1b27 sdev:9\n";
        assert_eq!(registered_socket(fdinfo), Some(Registered { number: 10, inode: 0x1b27 }));
        assert_eq!(registered_socket("tfd: 10 events: 1d data: 2 pos:0 ino:1b27 sdev:9"), None);
        assert_eq!(registered_socket("tfd: 10 events: 1d data: 1"), None);
    }
}
