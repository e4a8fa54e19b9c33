//! What a handler says: bytes become one line, and the line a report.
//!
//! Owns what was read and makes no whole line yet; never more than an answer may have. It must not take anything for an
//! answer that is not exactly one line to the request that was asked.

use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, read};

use crate::clock;
use crate::contract::Malformed;
use crate::contract::handler::{Answer, MAX_ANSWER_BYTES};
use crate::exec::capture::Capture;
use crate::exec::capture::READ_BYTES;
use crate::machine::{Captured, Ended, RunId, RunReport};

/// The bytes that came since the last answer.
#[derive(Debug, Default)]
pub(super) struct AnswerBuffer {
    said: Vec<u8>,
}

/// The result of one read of the pipe.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// There is nothing to be read now.
    Nothing,
    /// No whole line yet.
    Some,
    /// One line, and nothing after it: see [`AnswerBuffer::line`].
    Line,
    /// Everybody has closed it.
    End,
    /// What no handler may say.
    Wrong(String),
}

impl AnswerBuffer {
    /// Reads once from a pipe that does not keep us waiting.
    pub(super) fn read(&mut self, pipe: &OwnedFd) -> Said {
        let before = self.said.len();
        // Reserved on first use, and kept.
        self.said.reserve(READ_BYTES);
        match read(pipe, spare_capacity(&mut self.said)) {
            Ok(0) => Said::End,
            Ok(_) => self.judge(before),
            Err(Errno::AGAIN | Errno::INTR) => Said::Nothing,
            Err(error) => Said::Wrong(format!("it cannot be heard: {error}")),
        }
    }

    /// The result, if the first `before` bytes have no end of a line.
    fn judge(&self, before: usize) -> Said {
        let end = self.said[before..].iter().position(|&byte| byte == b'\n').map(|at| before + at);
        let length = end.map_or(self.said.len(), |end| end + 1);
        if length > MAX_ANSWER_BYTES || (end.is_none() && length == MAX_ANSWER_BYTES) {
            return Said::Wrong(format!("it said more than an answer's {MAX_ANSWER_BYTES} bytes"));
        }
        match end {
            None => Said::Some,
            Some(end) if end + 1 == self.said.len() => Said::Line,
            Some(_) => Said::Wrong("it said more than one line".to_owned()),
        }
    }

    /// The line, without its end; only after [`Said::Line`].
    pub(super) fn line(&self) -> &[u8] {
        self.said.strip_suffix(b"\n").unwrap_or(&self.said)
    }

    /// The line was an answer: what follows is the next one.
    pub(super) fn clear(&mut self) {
        self.said.clear();
        self.said.shrink_to(READ_BYTES);
    }

    /// Whether nothing came of a further answer.
    pub(super) fn is_empty(&self) -> bool {
        self.said.is_empty()
    }
}

/// The end of a run, as its handler reports it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) exit_code: i32,
    pub(super) stdout: Captured,
    pub(super) stderr: Captured,
}

impl Verdict {
    /// The end of a run that began then and ends now.
    pub(super) fn report(self, started_ms: i64) -> RunReport {
        let Verdict { exit_code, stdout, stderr } = self;
        let ended = Ended::Exit(exit_code);
        RunReport {
            ended,
            detail: None,
            stdout,
            stderr,
            started_ms,
            ended_ms: clock::wall_ms(),
            signalled: false,
        }
    }
}

/// Reads the answer to the request of this run, and keeps so many bytes of each output.
pub(super) fn judge(line: &[u8], run: RunId, limit: usize) -> Result<Verdict, Malformed> {
    let answer = Answer::decode(line, run.0)?;
    Ok(Verdict {
        exit_code: i32::from(answer.exit_code),
        stdout: shorten(answer.stdout.captured(), limit),
        stderr: shorten(answer.stderr.captured(), limit),
    })
}

/// At most `limit` bytes: the first half of it and the last.
fn shorten(mut captured: Captured, limit: usize) -> Captured {
    if captured.head.len() + captured.tail.len() <= limit {
        return captured;
    }
    if captured.omitted == 0 {
        let mut capture = Capture::new(limit);
        capture.push(&captured.head);
        return capture.finish();
    }
    // The handler itself has left out something in the middle.
    let tail_limit = limit / 2;
    let head = captured.head.len().min(limit - tail_limit);
    let cut = captured.tail.len().saturating_sub(tail_limit);
    captured.omitted += (captured.head.len() - head + cut) as u64;
    captured.head.truncate(head);
    captured.tail.drain(..cut);
    captured
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(parts: &[&[u8]]) -> Said {
        let mut lines = AnswerBuffer::default();
        let mut last = Said::Nothing;
        for part in parts {
            let before = lines.said.len();
            lines.said.extend_from_slice(part);
            last = lines.judge(before);
        }
        last
    }

    #[test]
    fn one_line_is_one_line_however_it_comes() {
        assert_eq!(said(&[b"{\"id\"", b":7}\n"]), Said::Line);
        assert_eq!(said(&[b"{\"id\"", b":7}"]), Said::Some);
        for more in [&b"x"[..], b"\n", b"{\"id\":8}\n"] {
            assert!(matches!(said(&[&[b"{\"id\":7}\n", more].concat()]), Said::Wrong(_)));
        }
    }

    #[test]
    fn an_answer_has_a_longest_length() {
        let long = vec![b' '; MAX_ANSWER_BYTES - 1];
        assert_eq!(said(&[&long, b"\n"]), Said::Line);
        assert!(matches!(said(&[&long, b" "]), Said::Wrong(_)));
        assert!(matches!(said(&[&long, b" \n"]), Said::Wrong(_)));
    }

    #[test]
    fn outputs_are_cut_in_the_middle() {
        let captured = |head: &[u8], omitted, tail: &[u8]| Captured {
            head: head.to_vec(),
            omitted,
            tail: tail.to_vec(),
        };
        assert_eq!(shorten(captured(b"abcdefg", 0, b""), 7), captured(b"abcdefg", 0, b""));
        assert_eq!(shorten(captured(b"abcdefg", 0, b""), 4), captured(b"ab", 3, b"fg"));
        assert_eq!(shorten(captured(b"abc", 5, b"xyz"), 4), captured(b"ab", 7, b"yz"));
        assert_eq!(shorten(captured(b"a", 5, b"xyz"), 3), captured(b"a", 7, b"z"));
        assert_eq!(shorten(captured(b"abc", 5, b"xyz"), 0), captured(b"", 11, b""));
    }
}
