//! What is kept of an output stream: the first half of the limit and the last, byte for byte.
//!
//! Memory is bounded by the limit whatever comes, and grows only as bytes come. It must not wait for a pipe.

use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, ioctl_fionbio, read};

use crate::machine::Captured;

/// Bytes read from a pipe at once: what a pipe holds, unless somebody made it larger.
pub(super) const READ_BYTES: usize = 64 << 10;
/// Bytes read from a pipe after the run is dead. More than any pipe holds (1 MiB unless root allowed more); what comes
/// beyond is from a process that somebody else has started and given the pipe to.
const DRAIN_BYTES: u64 = 4 << 20;

/// One output stream of a run.
#[derive(Debug)]
pub(super) struct Stream {
    /// `None` once everybody has closed it, or if it is not a pipe of ours.
    pub(super) pipe: Option<OwnedFd>,
    pub(super) capture: Capture,
}

impl Stream {
    /// Keeps so many bytes of what comes from the pipe.
    pub(super) fn new(pipe: Option<OwnedFd>, limit: usize) -> Stream {
        let nonblocking = |pipe: &OwnedFd| ioctl_fionbio(pipe, true).is_ok();
        // It cannot fail on a pipe of ours. If it does, losing output is better than waiting for ever.
        Stream { pipe: pipe.filter(nonblocking), capture: Capture::new(limit) }
    }

    /// Reads once into this buffer, which has what came then; how many bytes, 0 if there is nothing now or never again.
    pub(super) fn read(&mut self, buffer: &mut Vec<u8>) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        buffer.clear();
        buffer.reserve(READ_BYTES);
        match read(pipe, spare_capacity(buffer)) {
            Ok(0) => self.pipe = None,
            Ok(_) => self.capture.push(buffer),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.pipe = None,
        }
        buffer.len()
    }

    /// Reads what is there, up to [`DRAIN_BYTES`], and shows it.
    pub(super) fn drain(&mut self, buffer: &mut Vec<u8>, mut show: impl FnMut(&[u8])) {
        let mut drained = 0;
        while drained < DRAIN_BYTES {
            match self.read(buffer) {
                0 => break,
                bytes => drained += bytes as u64,
            }
            show(buffer);
        }
        self.pipe = None;
    }
}

/// Keeps the first and the last bytes of a stream.
#[derive(Debug)]
pub(super) struct Capture {
    head_limit: usize,
    tail_limit: usize,
    head: Vec<u8>,
    /// A ring once it is full; `oldest` is then the index of its oldest byte.
    tail: Vec<u8>,
    oldest: usize,
    total: u64,
}

impl Capture {
    /// Keeps `limit` bytes at most.
    pub(super) fn new(limit: usize) -> Capture {
        let tail_limit = limit / 2;
        Capture {
            head_limit: limit - tail_limit,
            tail_limit,
            head: Vec::new(),
            tail: Vec::new(),
            oldest: 0,
            total: 0,
        }
    }

    /// Takes in what came next.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (first, rest) = bytes.split_at(bytes.len().min(self.head_limit - self.head.len()));
        self.head.extend_from_slice(first);
        self.push_tail(rest);
    }

    fn push_tail(&mut self, bytes: &[u8]) {
        if bytes.len() >= self.tail_limit {
            self.tail.clear();
            self.tail.extend_from_slice(&bytes[bytes.len() - self.tail_limit..]);
            self.oldest = 0;
            return;
        }
        let (grow, wrap) = bytes.split_at(bytes.len().min(self.tail_limit - self.tail.len()));
        self.tail.extend_from_slice(grow);
        let (to_end, from_start) = wrap.split_at(wrap.len().min(self.tail.len() - self.oldest));
        self.tail[self.oldest..self.oldest + to_end.len()].copy_from_slice(to_end);
        self.tail[..from_start.len()].copy_from_slice(from_start);
        if !wrap.is_empty() {
            self.oldest = (self.oldest + wrap.len()) % self.tail_limit;
        }
    }

    /// What was kept.
    pub(super) fn finish(mut self) -> Captured {
        self.tail.rotate_left(self.oldest);
        let omitted = self.total - (self.head.len() + self.tail.len()) as u64;
        if omitted == 0 {
            self.head.append(&mut self.tail);
        }
        Captured { head: self.head, omitted, tail: self.tail }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::machine::Prng;

    #[test]
    fn a_pipe_that_never_gets_empty_is_read_for_a_while_only() {
        let endless = File::open("/dev/zero").unwrap();
        let mut stream = Stream::new(Some(endless.into()), 0);
        stream.drain(&mut Vec::new(), |_| {});
        let omitted = stream.capture.finish().omitted;
        assert!((DRAIN_BYTES..=DRAIN_BYTES + READ_BYTES as u64).contains(&omitted), "{omitted}");
    }

    /// The same, from the whole stream.
    fn plainly(limit: usize, all: &[u8]) -> Captured {
        if all.len() <= limit {
            return Captured { head: all.to_vec(), omitted: 0, tail: Vec::new() };
        }
        let (head, tail) = (limit - limit / 2, limit / 2);
        Captured {
            head: all[..head].to_vec(),
            omitted: (all.len() - limit) as u64,
            tail: all[all.len() - tail..].to_vec(),
        }
    }

    #[test]
    fn keeps_the_first_and_last_bytes_however_they_come() {
        let mut prng = Prng::new(7);
        for _ in 0..20_000 {
            let limit = (prng.next_u64() % 20) as usize;
            let all: Vec<u8> = (0..prng.next_u64() % 60).map(|n| n as u8).collect();
            let mut capture = Capture::new(limit);
            let mut rest = &all[..];
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(rest.len().min((prng.next_u64() % 25) as usize));
                capture.push(chunk);
                rest = after;
            }
            assert_eq!(capture.finish(), plainly(limit, &all), "limit {limit}, {} bytes", all.len());
        }
    }
}
