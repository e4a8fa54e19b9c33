//! How many lines of a batch fit into one chunk, and how many suit one.

use super::{BatchReader, TASK_OVERHEAD, unfit};
use crate::contract::MAX_TASK_BYTES;
use crate::contract::output::escaped_len;
use crate::exit;
use crate::roles::client::Unfit;
use crate::roles::submitter::{MAX_CHOSEN, Sizes};

/// Bytes that a chunk may grow to with its results and still suit: it is read and written again and again.
const SUITABLE_BYTES: usize = 64 * 1024;

/// What the result of a line takes, about.
const RESULT_BYTES: usize = 450;

/// A line counts for no more, so that one long line does not leave all others alone in their chunks.
const MOST_COUNTED: usize = SUITABLE_BYTES / 2;

/// Bytes of JSON for a blank line between others, `"",`, which a chunk may have instead of any line.
const BLANK_BYTES: usize = 3;

/// A size, and the chunk of it that is being measured.
#[derive(Debug)]
struct Candidate {
    size: u64,
    chunk: u64,
    bytes: usize,
    /// The chunk, if there was one, that was too large.
    burst: Option<u64>,
    /// Bytes with results.
    grown: usize,
    suits: bool,
}

impl Candidate {
    fn new(size: u64) -> Candidate {
        Candidate { size, chunk: 0, bytes: 0, burst: None, grown: 0, suits: true }
    }

    fn add(&mut self, number: u64, bytes: usize) {
        let chunk = number / self.size;
        if chunk != self.chunk {
            (self.chunk, self.bytes, self.grown) = (chunk, 0, 0);
        }
        self.bytes += bytes;
        self.grown += (bytes + RESULT_BYTES).min(MOST_COUNTED);
        // What a chunk of one line may have was checked, by other words, when the line was read.
        if self.size > 1 && self.bytes > room(self.size) {
            self.burst.get_or_insert(chunk);
        }
        self.suits &= self.grown <= SUITABLE_BYTES && self.burst.is_none();
    }
}

/// Bytes for the lines of a chunk of this size, each with its comma.
fn room(size: u64) -> usize {
    let blanks = usize::try_from(size).unwrap_or(usize::MAX).saturating_mul(BLANK_BYTES);
    MAX_TASK_BYTES.saturating_sub(TASK_OVERHEAD).saturating_sub(blanks)
}

impl BatchReader {
    /// Measures which sizes of chunks suit the file.
    ///
    /// # Errors
    /// If the file is no longer what was checked.
    pub fn measure_sizes(&mut self) -> Result<(), Unfit> {
        if (self.longest + 1 + RESULT_BYTES) * MAX_CHOSEN as usize <= SUITABLE_BYTES {
            return Ok(());
        }
        let mut candidates: Vec<Candidate> = (1..=u64::from(MAX_CHOSEN)).map(Candidate::new).collect();
        self.measure(&mut candidates, |candidate| candidate.suits)?;
        let sizes = candidates.iter().filter(|candidate| candidate.suits).map(|candidate| candidate.size);
        self.outline.sizes = Sizes::of(sizes.filter_map(|size| u32::try_from(size).ok()));
        Ok(())
    }

    /// Checks that chunks can have so many lines.
    ///
    /// # Errors
    /// If one of them would be too large, or the file is no longer what was checked.
    pub fn check_chunk(&mut self, size: u32) -> Result<(), Unfit> {
        let size = u64::from(size.max(1));
        if self.fits_for_certain(size) {
            return Ok(());
        }
        let mut candidates = [Candidate::new(size)];
        self.measure(&mut candidates, |candidate| candidate.burst.is_none())?;
        let [Candidate { burst: Some(chunk), .. }] = candidates else { return Ok(()) };
        let (first, last) = (chunk * size + 1, ((chunk + 1) * size).min(self.outline.end));
        let largest = self.largest(size - 1)?;
        let why = format!(
            "{}, lines {first} to {last}: together they take more than {} bytes as JSON, too much for one chunk; \
             nothing was submitted. The largest --chunk for this file is {largest}",
            self.name,
            room(size)
        );
        Err(unfit(exit::DATA, why))
    }

    /// Whether even the longest line would fit that often.
    fn fits_for_certain(&self, size: u64) -> bool {
        let size_bytes = usize::try_from(size).unwrap_or(usize::MAX).saturating_mul(self.longest + 1);
        size <= 1 || size_bytes <= room(size)
    }

    /// The largest size up to `most` that fits. A smaller one need not fit because a larger one does: they are cut
    /// at other lines.
    fn largest(&mut self, most: u64) -> Result<u64, Unfit> {
        let mut candidates: Vec<Candidate> = (1..=most).map(Candidate::new).collect();
        self.measure(&mut candidates, |candidate| candidate.burst.is_none())?;
        Ok(candidates.iter().rev().find(|candidate| candidate.burst.is_none()).map_or(1, |fits| fits.size))
    }

    /// Reads the whole file once more, and shows each line to the candidates that are still in.
    fn measure(&mut self, candidates: &mut [Candidate], is_in: fn(&Candidate) -> bool) -> Result<(), Unfit> {
        self.rewind()?;
        let mut lines = 0;
        while let Some(line) = self.read_line()? {
            lines += 1;
            let bytes = escaped_len(&line.text) + 1;
            for candidate in candidates.iter_mut().filter(|candidate| is_in(candidate)) {
                candidate.add(line.number, bytes);
            }
        }
        if lines != self.outline.lines {
            return Err(self.was_changed());
        }
        self.rewind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::task::{Options, Payload, Task};

    fn read(lines: &[String]) -> BatchReader {
        BatchReader::spool(lines.join("\n").as_bytes(), "test").expect("valid")
    }

    fn sizes(reader: &BatchReader) -> Sizes {
        reader.outline().sizes
    }

    /// The bytes of the largest task if each has so many lines.
    fn largest_task(lines: &[String], size: usize) -> usize {
        let task = |(at, chunk): (usize, &[String])| {
            let first_line = (at * size) as u64;
            let payload = Payload::Chunk { first_line, commands: chunk.to_vec() };
            Task::new(payload, Options::default()).encode().len()
        };
        lines.chunks(size).enumerate().map(task).max().expect("lines")
    }

    #[test]
    fn of_short_lines_a_hundred_suit_a_chunk_and_of_long_ones_fewer() {
        let of = |bytes: usize| sizes(&read(&vec!["x".repeat(bytes); 300])).largest(100);
        assert_eq!((of(6), of(202), of(203), of(1_000)), (100, 100, 99, 45));
        assert_eq!((of(60_000), of(110_000)), (2, 2));
    }

    #[test]
    fn one_long_line_does_not_leave_all_others_alone() {
        let mut lines = vec!["echo x".to_string(); 6_400];
        lines[3_250] = "x".repeat(100_000);
        assert!(sizes(&read(&lines)).largest(100) > 50);
    }

    #[test]
    fn left_to_us_no_task_is_too_large_whatever_is_in_the_lines() {
        for line in ["x".repeat(10_000), "\u{1}".repeat(3_000), "\"\\".repeat(30_000)] {
            let mut lines = vec!["echo x".to_string(); 6_400];
            lines[3_250..3_270].fill(line.clone());
            let sizes = sizes(&read(&lines));
            for most in 1..=100 {
                let bytes = largest_task(&lines, sizes.largest(most) as usize);
                assert!(bytes <= MAX_TASK_BYTES, "{most}: {bytes}");
            }
        }
    }

    #[test]
    fn too_many_lines_are_reported_with_the_limit() {
        let mut lines = vec!["echo x".to_string(); 2_000];
        lines[900..903].fill("x".repeat(100_000));
        let mut reader = read(&lines);
        let unfit = reader.check_chunk(100).expect_err("too large");
        assert_eq!(unfit.code, exit::DATA);
        assert!(unfit.why.contains("test, lines 901 to 1000: together they take more than"), "{unfit}");
        // 900 and 901 go with what is before them if 902 is where a chunk begins.
        assert!(unfit.why.ends_with("The largest --chunk for this file is 82"), "{unfit}");
        assert_eq!((reader.check_chunk(82), reader.check_chunk(1)), (Ok(()), Ok(())));
        assert!(largest_task(&lines, 82) <= MAX_TASK_BYTES && largest_task(&lines, 83) > MAX_TASK_BYTES);
        assert_eq!(reader.next(5_000).map(|lines| lines.len()), Ok(2_000), "it begins where it began");
    }

    #[test]
    fn the_last_lines_are_named_as_far_as_there_are_any() {
        let lines = vec!["x".repeat(90_000); 4];
        let unfit = read(&lines).check_chunk(1_000).expect_err("too large");
        assert!(unfit.why.contains("lines 1 to 4:") && unfit.why.ends_with("is 2"), "{unfit}");
        assert_eq!(read(&lines).check_chunk(2), Ok(()));
    }

    #[test]
    fn blank_lines_count_for_what_they_take() {
        let mut lines = vec![String::new(); 1_000];
        let fits = room(1_000) - 3;
        lines[0] = "x".repeat(fits / 3);
        lines[500] = "x".repeat(fits / 3);
        lines[999] = "x".repeat(fits - 2 * (fits / 3) - 6);
        assert_eq!(read(&lines).check_chunk(1_000), Ok(()));
        assert!(largest_task(&lines, 1_000) <= MAX_TASK_BYTES);
        lines[999] += "x";
        assert!(read(&lines).check_chunk(1_000).is_err());
    }
}
