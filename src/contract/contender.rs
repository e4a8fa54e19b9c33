//! Contenders' names: their order, and which one inherited the rank of an earlier contender of the same process.
//!
//! The order is that of Curator's `LeaderLatch`, with one addition: an elector whose session was replaced may give the
//! *rank* of its old contender to a new one. Whether it may lead by that is for `recipes::election` to decide.

use super::{LATCH, contender_rank};

/// The part between the uuid and `latch-` in the names of contenders that respect inherited ranks.
const RESPECTS: &str = "-ranked-";

/// The part before the rank in the name of a contender that inherited one.
const INHERITED: &str = "-rank-";

/// What a contender's name says. The order is that in which contenders lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contender<'a> {
    /// The sequence number of the contender that was the first of its term; the own one if it inherited none.
    pub rank: &'a str,
    /// The own sequence number.
    pub sequence: &'a str,
    /// Two of one sequence number can only be made by hand; their names decide, so that not both lead.
    pub name: &'a str,
    /// Whether its process goes by ranks. Other processes go by sequence numbers alone.
    pub respects_ranks: bool,
}

impl<'a> Contender<'a> {
    /// Reads a name; `None` is a contender of a library whose order is another.
    pub fn parse(name: &'a str) -> Option<Contender<'a>> {
        let sequence = contender_rank(name)?;
        let head = name.strip_suffix(sequence)?.strip_suffix(LATCH)?;
        let inherited =
            head.strip_suffix('-').and_then(|head| head.rsplit_once(INHERITED)).map(|(_, rank)| rank);
        // With a rank behind its own number, a process that does not go by ranks would lead before it.
        let inherited = inherited.filter(|rank| rank.parse::<i32>().is_ok() && *rank <= sequence);
        let ours = head.starts_with("_c_");
        Some(Contender {
            rank: inherited.filter(|_| ours).unwrap_or(sequence),
            sequence,
            name,
            respects_ranks: ours && (inherited.is_some() || head.ends_with(RESPECTS)),
        })
    }
}

/// How the names of all contenders with this uuid begin.
pub fn prefix_of_all(uuid: &str) -> String {
    format!("_c_{uuid}-")
}

/// The name, without its sequence number, of a contender with this uuid that goes to the end of the line.
pub fn prefix(uuid: &str) -> String {
    format!("_c_{uuid}{RESPECTS}{LATCH}")
}

/// Likewise, of one that inherits this rank.
pub fn inheriting_prefix(uuid: &str, rank: &str) -> String {
    format!("_c_{uuid}{INHERITED}{rank}-{LATCH}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str) -> (&str, &str, bool) {
        let read = Contender::parse(name).expect("a contender");
        (read.rank, read.sequence, read.respects_ranks)
    }

    #[test]
    fn names_are_read_back() {
        let uuid = "3f6c9a52-7d0e-4b7e-9c61-5a2f0d1e8b44";
        let plain = format!("{}0000000007", prefix(uuid));
        assert_eq!(read(&plain), ("0000000007", "0000000007", true));
        for rank in ["0000000007", "-2147483648"] {
            let heir = format!("{}0000000012", inheriting_prefix(uuid, rank));
            assert_eq!(read(&heir), (rank, "0000000012", true));
            assert!(heir.starts_with(&prefix_of_all(uuid)) && plain.starts_with(&prefix_of_all(uuid)));
            // As Curator's `ProtectedUtils` wants them: `_c_`, 36 characters, a dash.
            assert_eq!(heir.as_bytes().get(39), Some(&b'-'));
        }
    }

    #[test]
    fn only_what_we_could_have_written_inherits() {
        for (name, respects) in [
            ("_c_u-latch-0000000003", false),
            ("latch-0000000003", false),
            ("x-rank-0000000001-latch-0000000003", false),
            ("_c_u-rank-0000000009-latch-0000000003", false),
            ("_c_u-rank-one-latch-0000000003", false),
            ("_c_u-rank-0000000001latch-0000000003", false),
            ("_c_u-ranked-latch-0000000003", true),
        ] {
            assert_eq!(read(name), ("0000000003", "0000000003", respects), "{name}");
        }
        assert_eq!(Contender::parse("0a__lock__0000000000"), None);
    }

    #[test]
    fn an_inherited_rank_comes_right_behind_the_original() {
        let mut names = [
            "_c_b-ranked-latch-0000000008",
            "_c_a-rank-0000000003-latch-0000000009",
            "_c_d-latch-0000000010",
            "_c_a-ranked-latch-0000000003",
            "_c_a-rank-0000000003-latch-0000000011",
        ];
        names.sort_by_key(|name| Contender::parse(name));
        let sequences: Vec<_> = names.iter().map(|name| read(name).1[8..].to_string()).collect();
        assert_eq!(sequences, ["03", "09", "11", "08", "10"]);
    }
}
