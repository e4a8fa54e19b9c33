//! Which writes cost connections: a server with a small `jute.maxbuffer` hangs up on a longer request, without a word,
//! and a client that writes the same again does so for ever.
//!
//! Pure. The supervisor says over which write a connection died, has the next server asked about its length
//! ([`probe`](super::probe::probe)), and learns here how long a request over the new connection may be.

use super::request::LargeWrite;

/// After so many connections in a row died over writes of one znode, though the server takes requests of that length,
/// they are refused. A server can have a leader with a smaller limit than its own, which can't be asked.
/// A rolling restart of three servers may cost three connections.
const DEATHS_MAX: u32 = 5;

/// See the module's description.
#[derive(Debug, Default)]
pub struct Suspects {
    /// The length of the longest write over which a connection died, until a server has taken such a one.
    longest: usize,
    /// The write over which the latest connection died: the shortest, if there were more in a row of this znode.
    last: Option<LargeWrite>,
    /// How many connections in a row died over a write of that znode.
    deaths: u32,
}

impl Suspects {
    /// A connection died while this large write was in flight, the longest of all.
    pub fn connection_died(&mut self, over: Option<LargeWrite>) {
        let Some(write) = over else {
            (self.last, self.deaths) = (None, 0);
            return;
        };
        self.longest = self.longest.max(write.length);
        match &mut self.last {
            Some(last) if last.path == write.path => {
                self.deaths = self.deaths.saturating_add(1);
                last.length = last.length.min(write.length);
            }
            _ => (self.last, self.deaths) = (Some(write), 1),
        }
    }

    /// The length of request to ask the next server about; zero if nothing is suspected.
    pub fn length(&self) -> usize {
        self.longest
    }

    /// How long a request may be over a connection to a server that takes so much, as far as it was asked.
    pub fn request_max(&mut self, taken: usize) -> usize {
        if taken == usize::MAX {
            self.longest = 0;
        }
        match &self.last {
            Some(last) if self.deaths >= DEATHS_MAX => taken.min(last.length - 1),
            _ => taken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &str, length: usize) -> Option<LargeWrite> {
        Some(LargeWrite { length, path: path.to_owned() })
    }

    #[test]
    fn the_longest_write_is_asked_about_until_a_server_takes_it() {
        let mut suspects = Suspects::default();
        assert_eq!((suspects.length(), suspects.request_max(usize::MAX)), (0, usize::MAX));
        suspects.connection_died(write("/a", 110_000));
        suspects.connection_died(write("/b", 50_000));
        assert_eq!(suspects.length(), 110_000);
        assert_eq!(suspects.request_max(99_000), 99_000);
        suspects.connection_died(None);
        assert_eq!(suspects.length(), 110_000, "another server may still have that limit");
        assert_eq!((suspects.request_max(usize::MAX), suspects.length()), (usize::MAX, 0));
    }

    #[test]
    fn a_write_that_ends_five_connections_is_refused() {
        let mut suspects = Suspects::default();
        for length in [9_000, 8_000, 8_500, 9_000] {
            suspects.connection_died(write("/a", length));
            assert_eq!(suspects.request_max(usize::MAX), usize::MAX);
        }
        suspects.connection_died(write("/a", 9_000));
        assert_eq!(suspects.request_max(usize::MAX), 7_999);
        suspects.connection_died(write("/a", 5_000));
        assert_eq!(suspects.request_max(usize::MAX), 4_999, "what is still too long costs one more each");
        suspects.connection_died(write("/b", 5_000));
        assert_eq!(suspects.request_max(usize::MAX), usize::MAX);
    }
}
