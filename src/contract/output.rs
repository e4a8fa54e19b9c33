//! What is kept of what a task printed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::machine::Captured;

/// Bytes in JSON: a string where they are UTF-8 and that is not longer than `{"base64":"…"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Bytes {
    Text(String),
    Binary { base64: String },
}

impl Bytes {
    fn of(bytes: &[u8]) -> Bytes {
        let base64_len = bytes.len().div_ceil(3) * 4 + r#"{"base64":""}"#.len();
        match std::str::from_utf8(bytes) {
            Ok(text) if escaped_len(text) <= base64_len => Bytes::Text(text.to_string()),
            _ => Bytes::Binary { base64: BASE64.encode(bytes) },
        }
    }

    /// About how many bytes they are.
    fn len(&self) -> usize {
        match self {
            Bytes::Text(text) => text.len(),
            Bytes::Binary { base64 } => base64.len() / 4 * 3,
        }
    }

    /// The bytes. Text that is no base64 is returned as it is, so that a mistake of another program loses nothing.
    fn to_vec(&self) -> Vec<u8> {
        match self {
            Bytes::Text(text) => text.clone().into_bytes(),
            Bytes::Binary { base64 } => BASE64.decode(base64).unwrap_or_else(|_| base64.clone().into_bytes()),
        }
    }
}

/// Bytes that `text` takes as a JSON string, quotes included.
pub fn escaped_len(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum::<usize>() + 2
}

/// What is kept of an output stream, in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Kept {
    Cut { head: Bytes, omitted: u64, tail: Bytes },
    All(Bytes),
}

/// What is kept of an output stream: all of it, or its head and tail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Output(Kept);

impl Default for Output {
    fn default() -> Self {
        Output(Kept::All(Bytes::Text(String::new())))
    }
}

impl Output {
    /// Encodes what was captured. Where something was left out, the cuts are moved off the middle of a UTF-8
    /// character, so that text stays text.
    pub fn new(captured: &Captured) -> Output {
        if captured.omitted == 0 && captured.tail.is_empty() {
            return Output(Kept::All(Bytes::of(&captured.head)));
        }
        let head_len = captured.head.len() - partial_char_at_end(&captured.head);
        let tail_from = partial_char_at_start(&captured.tail);
        let moved = (captured.head.len() - head_len) + tail_from;
        Output(Kept::Cut {
            head: Bytes::of(&captured.head[..head_len]),
            omitted: captured.omitted + moved as u64,
            tail: Bytes::of(&captured.tail[tail_from..]),
        })
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Output::default()
    }

    /// The bytes back.
    pub fn captured(&self) -> Captured {
        match &self.0 {
            Kept::All(bytes) => Captured { head: bytes.to_vec(), omitted: 0, tail: Vec::new() },
            Kept::Cut { head, omitted, tail } => {
                Captured { head: head.to_vec(), omitted: *omitted, tail: tail.to_vec() }
            }
        }
    }

    /// How many bytes were printed and not kept.
    pub fn omitted(&self) -> u64 {
        match &self.0 {
            Kept::All(_) => 0,
            Kept::Cut { omitted, .. } => *omitted,
        }
    }

    /// How many bytes are kept, as they were printed.
    pub fn kept_bytes(&self) -> usize {
        match &self.0 {
            Kept::All(bytes) => bytes.len(),
            Kept::Cut { head, tail, .. } => head.len() + tail.len(),
        }
    }

    /// Drops about half of it from the middle; false if there is nothing left to drop.
    pub(super) fn shorten(&mut self) -> bool {
        let Captured { mut head, omitted, mut tail } = self.captured();
        let kept = head.len() + tail.len();
        if kept == 0 {
            return false;
        }
        let quarter = kept / 4;
        if tail.is_empty() {
            tail = head.split_off(head.len() / 2);
        }
        head.truncate(quarter);
        tail.drain(..tail.len().saturating_sub(quarter));
        let dropped = kept - head.len() - tail.len();
        *self = Output::new(&Captured { head, omitted: omitted + dropped as u64, tail });
        true
    }
}

/// How many bytes at the end begin a UTF-8 character and don't finish it; 0 if the rest is no UTF-8 anyway.
fn partial_char_at_end(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(e) if e.error_len().is_none() => bytes.len() - e.valid_up_to(),
        _ => 0,
    }
}

/// How many bytes at the start (at most 3) end a UTF-8 character that began before.
fn partial_char_at_start(bytes: &[u8]) -> usize {
    let skip = bytes.iter().take(3).take_while(|b| (0x80..0xc0).contains(*b)).count();
    if std::str::from_utf8(&bytes[skip..]).is_ok() { skip } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(head: &[u8], omitted: u64, tail: &[u8]) -> Captured {
        Captured { head: head.to_vec(), omitted, tail: tail.to_vec() }
    }

    #[test]
    fn output_keeps_every_byte() {
        for bytes in [&b"plain\n"[..], b"", b"\xff\xfe\0x", "grüße".as_bytes(), &[0u8; 100]] {
            let output = Output::new(&captured(bytes, 0, b""));
            let json = serde_json::to_string(&output).expect("json");
            let back: Output = serde_json::from_str(&json).expect("back");
            assert_eq!(back.captured(), captured(bytes, 0, b""), "{json}");
        }
        assert_eq!(serde_json::to_string(&Output::new(&captured(b"hi", 0, b""))).expect("json"), r#""hi""#);
        let zeros = serde_json::to_string(&Output::new(&captured(&[0; 64], 0, b""))).expect("json");
        assert!(zeros.contains("base64"), "shorter than \\u0000: {zeros}");
    }

    #[test]
    fn a_cut_inside_a_character_does_not_turn_text_into_base64() {
        let text = "ää".as_bytes();
        let output = Output::new(&captured(&text[..3], 10, &text[1..]));
        assert_eq!(output.captured(), captured("ä".as_bytes(), 12, "ä".as_bytes()));
        let binary = Output::new(&captured(b"\xff\xc3", 1, b"\x80\xff"));
        assert_eq!(binary.captured(), captured(b"\xff\xc3", 1, b"\x80\xff"), "binary stays as it was cut");
    }
}
