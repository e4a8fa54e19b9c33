//! What the file of a batch is like, and how many of its lines go into a chunk. All that a submitter has to know of a
//! file before it reads the lines.

use crate::contract::LINES_PER_PART;

/// Most lines of a chunk where the user leaves it to us: the ensemble's share of a line is small enough then.
pub const MAX_CHOSEN: u32 = 100;

/// Chunks that there shall be for each slot, so that the last ones end at about the same time.
const CHUNKS_PER_SLOT: u64 = 16;

/// Slots that are assumed where nobody says how many there are.
const ASSUMED_SLOTS: u32 = 8;

/// The sizes of chunks, up to [`MAX_CHOSEN`] lines, that suit a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes(u128);

const _: () = assert!(MAX_CHOSEN < u128::BITS);

impl Sizes {
    /// Every size suits.
    pub const ALL: Sizes = Sizes(u128::MAX);

    /// These do, and one line always does.
    pub fn of(sizes: impl Iterator<Item = u32>) -> Sizes {
        Sizes(sizes.filter(|size| *size <= MAX_CHOSEN).fold(1 << 1, |all, size| all | 1 << size))
    }

    /// The largest that suits, up to this one and to [`MAX_CHOSEN`].
    pub fn largest(self, most: u32) -> u32 {
        let most = most.clamp(1, MAX_CHOSEN);
        (1..=most).rev().find(|size| self.0 & 1 << size != 0).unwrap_or(1)
    }
}

/// What a file is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// How many lines there are to submit.
    pub lines: u64,
    /// How many bytes they have in sum.
    pub bytes: u64,
    /// One more than the number of the last of them.
    pub end: u64,
    /// How many lines a chunk may have.
    pub sizes: Sizes,
    /// How many of each [`LINES_PER_PART`] lines of the file, in turn, are to be submitted.
    pub blocks: Vec<u32>,
}

impl Outline {
    /// How many lines each chunk shall have where the user leaves it to us. One number for the whole batch, for it
    /// decides how chunks are named.
    pub fn choose(&self, slots: u32) -> u32 {
        let slots = u64::from(if slots == 0 { ASSUMED_SLOTS } else { slots });
        let even = self.lines / (CHUNKS_PER_SLOT * slots);
        self.sizes.largest(u32::try_from(even).unwrap_or(u32::MAX))
    }

    /// How many lines of a part, with chunks of this size, are to be submitted.
    pub fn lines_of_part(&self, part: u64, size: u64) -> u64 {
        let from = usize::try_from(part * size).unwrap_or(usize::MAX);
        let blocks = self.blocks.iter().skip(from).take(usize::try_from(size).unwrap_or(usize::MAX));
        blocks.map(|lines| u64::from(*lines)).sum()
    }

    /// Takes in that a line is to be submitted.
    pub fn count(&mut self, number: u64, bytes: usize) {
        self.lines += 1;
        self.bytes += bytes as u64;
        self.end = number + 1;
        let block = usize::try_from(number / LINES_PER_PART).unwrap_or(usize::MAX);
        if self.blocks.len() <= block {
            self.blocks.resize(block + 1, 0);
        }
        self.blocks[block] += 1;
    }
}

impl Default for Outline {
    fn default() -> Outline {
        Outline { lines: 0, bytes: 0, end: 0, sizes: Sizes::ALL, blocks: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(lines: u64) -> Outline {
        Outline { lines, ..Outline::default() }
    }

    #[test]
    fn each_slot_gets_several_chunks_of_at_most_a_hundred_lines() {
        let of = |lines, slots| outline(lines).choose(slots);
        assert_eq!((of(0, 1), of(31, 1), of(32, 1), of(160, 1)), (1, 1, 2, 10));
        assert_eq!((of(1_000_000, 6), of(2_000, 6), of(100, 6)), (100, 20, 1));
        assert_eq!((of(u64::MAX, 1), of(1_280, 0), of(u64::MAX, u32::MAX)), (100, 10, 100));
    }

    #[test]
    fn a_size_that_suits_is_taken_and_one_line_always_does() {
        let sizes = Sizes::of([7, 40, 1_000].into_iter());
        let largest: Vec<_> = [0, 1, 6, 7, 39, 40, 100, 5_000].map(|most| sizes.largest(most)).into();
        assert_eq!(largest, [1, 1, 1, 7, 7, 40, 40, 40]);
        assert_eq!((Sizes::ALL.largest(33), Sizes::ALL.largest(1_000)), (33, 100));
    }

    #[test]
    fn lines_are_counted_by_part() {
        let mut outline = Outline::default();
        for number in [0, LINES_PER_PART - 1, LINES_PER_PART, 7 * LINES_PER_PART] {
            outline.count(number, 10);
        }
        assert_eq!((outline.lines, outline.bytes, outline.end), (4, 40, 7 * LINES_PER_PART + 1));
        let of = |size| (0..5).map(|part| outline.lines_of_part(part, size)).collect::<Vec<_>>();
        assert_eq!(
            (of(1), of(2), of(1_000)),
            (vec![2, 1, 0, 0, 0], vec![3, 0, 0, 1, 0], vec![4, 0, 0, 0, 0])
        );
    }
}
