//! How many lines of a batch fit into one task. It follows from the file alone, so that a batch that is submitted
//! again is cut as it was cut before.

use super::{BatchReader, TASK_OVERHEAD, unfit};
use crate::contract::MAX_TASK_BYTES;
use crate::contract::outcome::escaped_len;
use crate::exit;
use crate::roles::client::Unfit;

/// Most lines of a chunk where the user leaves it to us: the ensemble's share of a command is small enough then.
const AUTO_LINES: u64 = 100;

/// Chunks that a small batch is cut into at least, so that there is something for every worker.
const AUTO_CHUNKS: u64 = 64;

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
}

impl Candidate {
    fn new(size: u64) -> Candidate {
        Candidate { size, chunk: 0, bytes: 0, burst: None }
    }

    fn add(&mut self, number: u64, bytes: usize) {
        let chunk = number / self.size;
        if chunk != self.chunk {
            (self.chunk, self.bytes) = (chunk, 0);
        }
        self.bytes += bytes;
        // What a task of one line may have was checked, by other words, when the line was read.
        if self.size > 1 && self.bytes > room(self.size) {
            self.burst.get_or_insert(chunk);
        }
    }
}

/// Bytes for the lines of a chunk of this size, each with its comma.
fn room(size: u64) -> usize {
    let blanks = usize::try_from(size).unwrap_or(usize::MAX).saturating_mul(BLANK_BYTES);
    MAX_TASK_BYTES.saturating_sub(TASK_OVERHEAD).saturating_sub(blanks)
}

impl BatchReader {
    /// How many lines each task shall have where the user leaves that to us.
    ///
    /// # Errors
    /// If the file is no longer what was checked.
    pub fn choose_chunk(&mut self) -> Result<u32, Unfit> {
        let most = AUTO_LINES.min(self.lines / AUTO_CHUNKS).max(1);
        let size = if self.fits_for_certain(most) { most } else { self.largest(most)? };
        Ok(u32::try_from(size).unwrap_or(1))
    }

    /// Checks that tasks can have so many lines.
    ///
    /// # Errors
    /// If one of them would be too large, or the file is no longer what was checked.
    pub fn check_chunk(&mut self, size: u32) -> Result<(), Unfit> {
        let size = u64::from(size.max(1));
        if self.fits_for_certain(size) {
            return Ok(());
        }
        let mut candidates = [Candidate::new(size)];
        self.measure(&mut candidates)?;
        let [Candidate { burst: Some(chunk), .. }] = candidates else { return Ok(()) };
        let (first, last) = (chunk * size + 1, ((chunk + 1) * size).min(self.end));
        let largest = self.largest(size - 1)?;
        let why = format!(
            "{}, lines {first} to {last}: together they take more than {} bytes as JSON, too much for one task; \
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
        self.measure(&mut candidates)?;
        Ok(candidates.iter().rev().find(|candidate| candidate.burst.is_none()).map_or(1, |fits| fits.size))
    }

    /// Reads the whole file once more.
    fn measure(&mut self, candidates: &mut [Candidate]) -> Result<(), Unfit> {
        self.rewind()?;
        let mut lines = 0;
        while let Some(line) = self.read_line()? {
            lines += 1;
            let bytes = escaped_len(&line.text) + 1;
            for candidate in candidates.iter_mut().filter(|candidate| candidate.burst.is_none()) {
                candidate.add(line.number, bytes);
            }
        }
        if lines != self.lines {
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
    fn left_to_us_a_small_batch_is_cut_into_many_and_a_large_one_into_hundreds_of_lines() {
        let of = |lines: usize| read(&vec!["echo x".to_string(); lines]).choose_chunk().expect("fits");
        assert_eq!((of(0), of(1), of(127), of(128), of(640)), (1, 1, 1, 2, 10));
        assert_eq!((of(6_400), of(50_000)), (100, 100));
    }

    #[test]
    fn left_to_us_no_task_is_too_large_whatever_is_in_the_lines() {
        for line in ["x".repeat(10_000), "\u{1}".repeat(3_000), "\"\\".repeat(30_000)] {
            let mut lines = vec!["echo x".to_string(); 6_400];
            lines[3_250..3_270].fill(line.clone());
            let size = read(&lines).choose_chunk().expect("fits") as usize;
            let bytes = largest_task(&lines, size);
            assert!(bytes <= MAX_TASK_BYTES, "{size}: {bytes}");
            let larger =
                (size + 1..=100).find(|larger| largest_task(&lines, *larger) + 2_000 < MAX_TASK_BYTES);
            assert_eq!(larger, None, "{size} for {} bytes", line.len());
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_the_lines_and_what_would() {
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
