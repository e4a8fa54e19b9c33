//! What is kept of an output stream: the first half of the limit and the last, byte for byte.
//!
//! Owns no descriptor; memory is bounded by the limit whatever is pushed, and grows only as bytes come.

use crate::machine::Captured;

/// Keeps the first and the last bytes of a stream.
#[derive(Debug)]
pub(super) struct Capture {
    head_limit: usize,
    tail_limit: usize,
    head: Vec<u8>,
    /// A ring once it is full; `oldest` is then where its oldest byte stands.
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
    use super::*;
    use crate::machine::Prng;

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
