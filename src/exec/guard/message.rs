//! What an executor tells its guard, through a pipe.

/// Bytes of a message. Far below `PIPE_BUF`, so that a message is written whole or not at all.
pub(in crate::exec) const MESSAGE_BYTES: usize = 16;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exec) enum Message {
    /// This group is about to run its program.
    Here {
        /// Its id.
        pgid: u32,
        /// When its leader was born, in ticks since boot.
        start_ticks: u64,
    },
    /// Every process of this group is dead.
    Gone {
        /// Its id.
        pgid: u32,
    },
    /// What runs may run until then: nanoseconds of `CLOCK_BOOTTIME`.
    Lease {
        /// The end.
        until: u64,
    },
    /// Nothing runs any more, and nothing will: the end in peace.
    Stop,
}

impl Message {
    /// As it goes through the pipe: kind, number, and eight bytes more.
    pub(in crate::exec) fn encode(self) -> [u8; MESSAGE_BYTES] {
        let (kind, pgid, value) = match self {
            Message::Here { pgid, start_ticks } => (1_u32, pgid, start_ticks),
            Message::Gone { pgid } => (2, pgid, 0),
            Message::Lease { until } => (3, 0, until),
            Message::Stop => (4, 0, 0),
        };
        let mut bytes = [0; MESSAGE_BYTES];
        bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        bytes[4..8].copy_from_slice(&pgid.to_ne_bytes());
        bytes[8..].copy_from_slice(&value.to_ne_bytes());
        bytes
    }

    /// `None` if it is no message of ours.
    pub(in crate::exec) fn decode(bytes: &[u8; MESSAGE_BYTES]) -> Option<Message> {
        let [k0, k1, k2, k3, p0, p1, p2, p3, value @ ..] = *bytes;
        let pgid = u32::from_ne_bytes([p0, p1, p2, p3]);
        let value = u64::from_ne_bytes(value);
        Some(match u32::from_ne_bytes([k0, k1, k2, k3]) {
            1 => Message::Here { pgid, start_ticks: value },
            2 => Message::Gone { pgid },
            3 => Message::Lease { until: value },
            4 => Message::Stop,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_pipe() {
        let pgid = 4_000_000;
        for message in [
            Message::Here { pgid, start_ticks: u64::MAX - 3 },
            Message::Gone { pgid },
            Message::Lease { until: u64::MAX - 5 },
            Message::Stop,
        ] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        assert_eq!(Message::decode(&[9; MESSAGE_BYTES]), None);
    }
}
