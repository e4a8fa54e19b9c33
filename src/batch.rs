//! Batch files: the whole of one is checked before anything of it is submitted, then its lines are handed out a
//! few at a time.
//!
//! A file is read twice, standard input is copied to an anonymous temporary file first; in either case what is
//! handed out is what was checked, or an error. Nothing here knows of tasks in the ensemble.

mod chunks;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write as _};
use std::path::Path;

use crate::contract::output::escaped_len;
use crate::contract::task::{Options, Payload, Task};
use crate::contract::{MAX_BATCH_LINES, MAX_TASK_BYTES};
use crate::exit;
use crate::machine::BatchLine;
use crate::roles::client::Unfit;
use crate::roles::submitter::Outline;

/// Longest line: Linux takes no single argument over 128 KiB, and `/bin/sh -c` gets the whole line as one.
pub const MAX_LINE_BYTES: usize = 120 * 1024;

/// Bytes that a task may need beside its command, with what a submitter adds to it.
const TASK_OVERHEAD: usize = 1024;

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 64 * 1024;

/// What some editors put before the first line of a file in UTF-8. It is no part of a command.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A batch that was checked.
#[derive(Debug)]
pub struct BatchReader {
    name: String,
    reader: BufReader<File>,
    /// Of the lines with something on them.
    outline: Outline,
    /// Bytes that the longest of them takes as JSON.
    longest: usize,
    /// The number of the next line.
    at: u64,
    /// Lines handed out.
    given: u64,
    max_lines: u64,
    line: Vec<u8>,
}

impl BatchReader {
    /// Checks the file at `path`, or all of standard input if that is `-`.
    ///
    /// # Errors
    /// If it can't be read, or has a line that can't be a command, or too many lines.
    pub fn open(path: &Path) -> Result<BatchReader, Unfit> {
        if path == Path::new("-") {
            return BatchReader::spool(io::stdin().lock(), "standard input");
        }
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| unreadable(&name, &e))?;
        let kind = file.metadata().map_err(|e| unreadable(&name, &e))?.file_type();
        if kind.is_dir() {
            return Err(unfit(exit::DATA, format!("{name} is a directory, not a file with a batch")));
        }
        // What can't be read twice (a pipe, a terminal) is copied.
        if kind.is_file() {
            BatchReader::check(file, name, MAX_BATCH_LINES)
        } else {
            BatchReader::spool(file, &name)
        }
    }

    /// Copies all of `source` to a temporary file, and checks that.
    ///
    /// # Errors
    /// As [`BatchReader::open`].
    pub fn spool<R: Read>(mut source: R, name: &str) -> Result<BatchReader, Unfit> {
        let dir = std::env::temp_dir();
        let full = |e: &io::Error| {
            let dir = dir.display();
            unfit(
                exit::TRY_AGAIN,
                format!("cannot copy {name} to a temporary file in {dir} (see TMPDIR): {e}"),
            )
        };
        let mut file = tempfile::tempfile_in(&dir).map_err(|e| full(&e))?;
        let mut bytes = vec![0; COPY_BYTES];
        loop {
            match source.read(&mut bytes) {
                Ok(0) => break,
                Ok(n) => file.write_all(&bytes[..n]).map_err(|e| full(&e))?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(unreadable(name, &e)),
            }
        }
        BatchReader::check(file, name.to_string(), MAX_BATCH_LINES)
    }

    fn check(file: File, name: String, max_lines: u64) -> Result<BatchReader, Unfit> {
        let reader = BufReader::new(file);
        let mut batch = BatchReader {
            name,
            reader,
            outline: Outline::default(),
            longest: 0,
            at: 0,
            given: 0,
            max_lines,
            line: Vec::new(),
        };
        batch.rewind()?;
        while let Some(line) = batch.read_line()? {
            batch.outline.count(line.number, line.text.len());
            batch.longest = batch.longest.max(escaped_len(&line.text));
        }
        batch.rewind()?;
        batch.measure_sizes()?;
        Ok(batch)
    }

    fn rewind(&mut self) -> Result<(), Unfit> {
        self.at = 0;
        self.reader.seek(SeekFrom::Start(0)).map_err(|e| unreadable(&self.name, &e))?;
        Ok(())
    }

    /// What is known of its lines.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }

    /// The next `n` lines; fewer only at the end.
    ///
    /// # Errors
    /// If the file is no longer what was checked.
    pub fn next(&mut self, n: usize) -> Result<Vec<BatchLine>, Unfit> {
        let mut lines = Vec::new();
        while lines.len() < n && self.given < self.outline.lines {
            match self.read_line()? {
                Some(line) if line.number < self.outline.end => lines.push(line),
                _ => return Err(self.was_changed()),
            }
            self.given += 1;
        }
        Ok(lines)
    }

    fn was_changed(&self) -> Unfit {
        unfit(exit::DATA, format!("{} was changed while it was being submitted", self.name))
    }

    /// The next line with something on it.
    fn read_line(&mut self) -> Result<Option<BatchLine>, Unfit> {
        loop {
            self.line.clear();
            // One byte more than the longest line, with its end and a mark: then it is too long, whatever follows.
            let limit = (MAX_LINE_BYTES + 3 + BYTE_ORDER_MARK.len()) as u64;
            let read = (&mut self.reader).take(limit).read_until(b'\n', &mut self.line);
            if read.map_err(|e| unreadable(&self.name, &e))? == 0 {
                return Ok(None);
            }
            let number = self.at;
            self.at += 1;
            let mut line = self.line.as_slice();
            if number == 0 {
                line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
            }
            line = line.strip_suffix(b"\n").unwrap_or(line);
            line = line.strip_suffix(b"\r").unwrap_or(line);
            let text = self.text(number, line)?;
            if !text.trim().is_empty() {
                if number >= self.max_lines {
                    let why = format!("{} has more than {} lines", self.name, self.max_lines);
                    return Err(unfit(exit::TOO_MUCH, why));
                }
                return Ok(Some(BatchLine { number, text: text.to_string() }));
            }
        }
    }

    fn text<'a>(&self, number: u64, line: &'a [u8]) -> Result<&'a str, Unfit> {
        let bad = |why: String| {
            let position = format!("{}, line {}", self.name, number.saturating_add(1));
            unfit(exit::DATA, format!("{position}: {why}; nothing was submitted"))
        };
        if line.len() > MAX_LINE_BYTES {
            return Err(bad(format!("it has more than {MAX_LINE_BYTES} bytes")));
        }
        if let Some(at) = line.iter().position(|byte| *byte == 0) {
            return Err(bad(format!("it has a NUL byte, as byte {}", at + 1)));
        }
        let text = std::str::from_utf8(line)
            .map_err(|e| bad(format!("it is not UTF-8, from byte {} on", e.valid_up_to() + 1)))?;
        // As JSON a byte may become six, so the task of a short line can be too large.
        if text.len() * 6 + TASK_OVERHEAD > MAX_TASK_BYTES {
            let task = Task::new(Payload::Shell(text.to_string()), Options::default());
            if task.encode().len() + TASK_OVERHEAD > MAX_TASK_BYTES {
                return Err(bad(format!("as JSON it takes more than {MAX_TASK_BYTES} bytes")));
            }
        }
        Ok(text)
    }
}

fn unfit(code: i32, why: String) -> Unfit {
    Unfit { code, why }
}

fn unreadable(name: &str, error: &io::Error) -> Unfit {
    unfit(exit::DATA, format!("cannot read {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(bytes: &[u8]) -> Result<BatchReader, Unfit> {
        BatchReader::spool(bytes, "test")
    }

    fn all(bytes: &[u8]) -> Vec<(u64, String)> {
        let mut batch = read(bytes).expect("valid");
        let lines = batch.next(1_000).expect("unchanged");
        assert_eq!(lines.len() as u64, batch.outline().lines);
        assert_eq!(batch.next(1), Ok(Vec::new()));
        lines.into_iter().map(|line| (line.number, line.text)).collect()
    }

    #[test]
    fn lines_keep_their_numbers_and_blank_ones_are_skipped() {
        let lines = all(b"a\n\n  \t\nb \r\n\r\nc");
        assert_eq!(lines, [(0, "a".into()), (3, "b ".into()), (5, "c".into())]);
        let batch = read(b"a\n\n\nb \r\n\n").expect("valid");
        let Outline { lines, bytes, end, .. } = *batch.outline();
        assert_eq!((end, lines, bytes), (4, 2, 3));
        assert_eq!(all(b""), []);
        assert_eq!(all(b"\n\n"), []);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        assert_eq!(all(b"\xef\xbb\xbfa\nb"), [(0, "a".into()), (1, "b".into())]);
        assert_eq!(all(b"\xef\xbb\xbf\na"), [(1, "a".into())]);
        // Anywhere else it is what it says: a blank of no width.
        assert_eq!(all("a\n\u{feff}b".as_bytes()), [(0, "a".into()), (1, "\u{feff}b".into())]);
        let longest = [BYTE_ORDER_MARK, &vec![b'x'; MAX_LINE_BYTES], b"\r\nnext"].concat();
        assert_eq!(all(&longest).len(), 2);
        let longer = [BYTE_ORDER_MARK, &vec![b'x'; MAX_LINE_BYTES + 1], b"\r\nnext"].concat();
        assert!(read(&longer).expect_err("refused").why.contains("line 1: it has more than"));
    }

    #[test]
    fn a_failing_source_is_distinguished_from_a_failing_temp_file() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("no such luck"))
            }
        }
        let unfit = BatchReader::spool(Broken, "test").expect_err("unreadable");
        assert_eq!((unfit.code, unfit.why.as_str()), (exit::DATA, "cannot read test: no such luck"));
        let unfit = BatchReader::open(Path::new("/")).expect_err("no file");
        assert_eq!(
            (unfit.code, unfit.why.as_str()),
            (exit::DATA, "/ is a directory, not a file with a batch")
        );
    }

    #[test]
    fn fewer_lines_than_asked_for_come_only_at_the_end() {
        let mut batch = read(b"1\n\n2\n3\n").expect("valid");
        assert_eq!(batch.next(2).map(|lines| lines.len()), Ok(2));
        assert_eq!(batch.next(2).map(|lines| lines.len()), Ok(1));
        assert_eq!(batch.next(2).map(|lines| lines.len()), Ok(0));
    }

    #[test]
    fn the_first_bad_line_is_named_before_anything_is_handed_out() {
        let long = [b"ok\n".as_slice(), &vec![b'x'; MAX_LINE_BYTES + 1]].concat();
        let escaped = [b"ok\n".as_slice(), &vec![1; MAX_LINE_BYTES / 2]].concat();
        for (bytes, words) in [
            (b"ok\n\nnul\0here\n".as_slice(), "test, line 3: it has a NUL byte, as byte 4"),
            (b"ok\n\xff\n", "test, line 2: it is not UTF-8, from byte 1 on"),
            (&long, "test, line 2: it has more than 122880 bytes"),
            (&escaped, "test, line 2: as JSON it takes more than"),
        ] {
            let unfit = read(bytes).expect_err("refused");
            assert!(unfit.code == exit::DATA && unfit.why.contains(words), "{unfit}");
        }
    }

    #[test]
    fn the_longest_line_is_taken_whatever_its_end() {
        for end in ["", "\n", "\r\n"] {
            let bytes = format!("{}{end}next", "x".repeat(MAX_LINE_BYTES));
            let lines = if end.is_empty() { 1 } else { 2 };
            let text = if end.is_empty() { &bytes[..MAX_LINE_BYTES] } else { &bytes };
            assert_eq!(all(text.as_bytes()).len(), lines, "{end:?}");
        }
    }

    #[test]
    fn a_batch_has_a_limit_in_lines() {
        let check = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().expect("file");
            file.write_all(bytes).expect("written");
            BatchReader::check(file, "test".into(), 3)
        };
        assert_eq!(check(b"a\nb\nc\n\n\n").expect("blank lines do no harm").outline().lines, 3);
        assert_eq!(check(b"a\n\n\nb").expect_err("one too many").code, exit::TOO_MUCH);
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_noticed() {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(b"a\nb\nc\n").expect("written");
        let mut batch = BatchReader::open(file.path()).expect("valid");
        file.as_file().set_len(0).expect("cut");
        // The first lines may be in a buffer already; missing lines must not count as the end.
        let got = batch.next(10);
        assert!(got.is_err() || got.as_ref().is_ok_and(|lines| lines.len() == 3), "{got:?}");
        assert!(BatchReader::open(Path::new("/nonexistent/file")).is_err());
    }
}
