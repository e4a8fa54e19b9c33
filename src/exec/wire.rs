//! What the worker, its keeper and its slots say to each other: frames on stream sockets, each its length and then its
//! content (postcard), with descriptors beside it where one needs them.
//!
//! Nobody waits here: what the socket has no room for is kept, and written when it has.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Confinement, NotStartedKind};
use crate::contract::log::LogName;
use crate::machine::{GroupSignal, RunReport};

/// Bytes of a frame's length.
const LENGTH_BYTES: usize = 4;
/// Longest frame. Arguments and environment of a program are at most 6 MiB, outputs at most twice `--output-limit`.
const LONGEST_BYTES: usize = 64 << 20;
/// Bytes that are read at once, where it is not known that more are to come.
const LEAST_READ_BYTES: usize = 4 << 10;
/// Most bytes that are read at once.
const MOST_READ_BYTES: usize = 1 << 20;
/// Most descriptors beside a frame: a handler's two pipes.
const MOST_DESCRIPTORS: usize = 2;

/// To a keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToKeeper {
    /// The first message. It carries the page.
    Hello(Box<Hello>),
    /// Make a slot; its end of a socket comes with it.
    Make {
        /// Which one.
        slot: u32,
    },
    /// Kill the slot, and what it runs.
    Kill {
        /// Which one.
        slot: u32,
    },
    /// Check the lease: a new one begins.
    Wake,
}

/// The settings of a keeper and of all its slots.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    /// Where runs have their control groups, if they may have any.
    pub(super) cgroups: Option<String>,
    /// The `oom_score_adj` of what runs.
    pub(super) oom_score: String,
    /// The limit of descriptors of what runs, if it is lower than ours.
    pub(super) descriptors: Option<u64>,
    pub(super) confinement: Confinement,
}

/// From a keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromKeeper {
    /// The slot is there.
    Made {
        /// Which one.
        slot: u32,
        /// Its process.
        pid: u32,
    },
    /// There is no room for it.
    Refused {
        /// Which one.
        slot: u32,
        /// Why not.
        errno: i32,
    },
    /// The slot is dead, and so is all that it ran.
    Gone {
        /// Which one.
        slot: u32,
        /// The keeper has killed it.
        killed: bool,
    },
    /// For the log, as a warning.
    Warning(String),
}

/// To a slot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToSlot {
    /// Run this. A handler's standard input and output come with it.
    Run(Program),
    /// Signal what runs, if it is this.
    Signal {
        /// The run.
        run: u64,
        /// What to send.
        signal: GroupSignal,
    },
    /// SIGKILL to this run, if it runs. It does not count as a signal to the run.
    Kill {
        /// The run.
        run: u64,
    },
    /// Check the lease: something runs again.
    Wake,
}

/// What a slot is to run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Program {
    pub(super) run: u64,
    pub(super) argv: Vec<String>,
    /// Added to the environment.
    pub(super) env: Vec<(String, String)>,
    pub(super) streams: Streams,
}

/// What a program has as its standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Streams {
    /// Nothing to read; what it writes is kept, up to so many bytes of each.
    Capture {
        /// Bytes kept of each stream.
        limit: usize,
        /// Most bytes of its log; 0 if it has none.
        log_limit: u64,
    },
    /// Nothing to read; it writes where we do.
    Inherit,
    /// It reads and writes what came with the frame; its errors go where ours do.
    Handler,
}

/// From a slot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromSlot {
    /// The program runs.
    Started {
        /// The run.
        run: u64,
        /// The leader of its group.
        pid: u32,
    },
    /// The program does not run, and never did. The slot is free.
    NotStarted {
        /// The run.
        run: u64,
        /// Whose fault it is.
        kind: NotStartedKind,
        /// The reason, for the user.
        why: String,
    },
    /// Every process of the run is dead. The slot is free.
    Ended {
        /// The run.
        run: u64,
        /// How it ended.
        report: RunReport,
    },
    /// For the log, as a warning.
    Warning(String),
    /// What runs has a log from now on; the pipe that it comes from is with it.
    Log(LogName),
    /// What runs has none any more.
    LogLost {
        /// Which one.
        name: LogName,
        /// Why not; `None` if the other end of its pipe was closed.
        why: Option<String>,
    },
}

/// One end of a socket, with what came in part and what is still to be written.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    received: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
    unsent: Vec<u8>,
    /// Descriptors that go with what is unsent, and from which byte on.
    attached: VecDeque<(usize, Vec<OwnedFd>)>,
    /// The other end is closed, and all its messages were read.
    closed: bool,
    /// The other end is gone: nobody reads what is written here.
    mute: bool,
}

/// Two ends of a socket.
pub(super) fn pair() -> io::Result<(Link, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let (ours, theirs) = socketpair(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    Ok((Link::new(ours), theirs))
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Link {
    /// An end that does not keep anybody waiting.
    pub(super) fn new(socket: OwnedFd) -> Link {
        Link {
            socket,
            received: Vec::new(),
            descriptors: VecDeque::new(),
            unsent: Vec::new(),
            attached: VecDeque::new(),
            closed: false,
            mute: false,
        }
    }

    /// Whether the other end is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether something waits for room in the socket.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Says something, at once if there is room.
    pub(super) fn say(&mut self, frame: &impl Serialize) {
        self.push(frame);
        self.flush();
    }

    /// Queues a message, to be sent together with the next one.
    pub(super) fn push(&mut self, frame: &impl Serialize) {
        let start = self.unsent.len();
        self.unsent.extend([0; LENGTH_BYTES]);
        let unsent = std::mem::take(&mut self.unsent);
        // Nothing that we say can fail to be written down.
        self.unsent = postcard::to_extend(frame, unsent).unwrap_or_default();
        if let Some(length) = self.unsent.len().checked_sub(start + LENGTH_BYTES) {
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            self.unsent[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        }
    }

    /// Says something that descriptors go with, at once if there is room.
    pub(super) fn say_with(&mut self, frame: &impl Serialize, fds: Vec<OwnedFd>) {
        self.attached.push_back((self.unsent.len(), fds));
        self.say(frame);
    }

    /// Writes what there is room for.
    pub(super) fn flush(&mut self) {
        while !self.unsent.is_empty() && !self.mute {
            match self.send() {
                Ok(sent) => {
                    self.unsent.drain(..sent);
                    self.attached.pop_front_if(|(at, _)| *at == 0);
                    self.attached.iter_mut().for_each(|(at, _)| *at -= sent);
                }
                Err(Errno::INTR) => {}
                // The second: too many descriptors are under way.
                Err(Errno::AGAIN | Errno::TOOMANYREFS) => return,
                Err(_) => self.mute = true,
            }
        }
        if self.mute {
            self.unsent.clear();
            self.attached.clear();
        }
    }

    /// Sends once; how many bytes. Descriptors go with the first byte of their frame.
    fn send(&self) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let with: Vec<BorrowedFd<'_>> = match self.attached.front() {
            Some((0, fds)) => fds.iter().map(AsFd::as_fd).collect(),
            Some(_) | None => Vec::new(),
        };
        if !with.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&with)) {
            return Err(Errno::INVAL);
        }
        let end = self.attached.iter().map(|(at, _)| *at).find(|at| *at > 0).unwrap_or(self.unsent.len());
        sendmsg(&self.socket, &[IoSlice::new(&self.unsent[..end])], &mut ancillary, SendFlags::NOSIGNAL)
    }

    /// Reads what is there, once; [`Link::next`] gives what is complete of it. Whether anything came.
    pub(super) fn receive(&mut self) -> bool {
        let filled = self.received.len();
        let announced = self.received.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
        let wanted =
            (LENGTH_BYTES + announced).saturating_sub(filled).clamp(LEAST_READ_BYTES, MOST_READ_BYTES);
        self.received.resize(filled + wanted, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut self.received[filled..])];
        let read = match recvmsg(&self.socket, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => {
                self.closed |= message.bytes == 0;
                message.bytes
            }
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                self.closed = true;
                0
            }
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.descriptors.extend(fds);
            }
        }
        self.received.truncate(filled + read);
        read > 0
    }

    /// The next complete frame. One that cannot be understood closes the link: both ends are of one build.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        let length = *self.received.first_chunk::<LENGTH_BYTES>()?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST_BYTES {
            self.closed = true;
            return None;
        }
        let content = self.received.get(LENGTH_BYTES..LENGTH_BYTES + length)?;
        let frame = postcard::from_bytes(content);
        self.received.drain(..LENGTH_BYTES + length);
        if self.received.is_empty() {
            // Slots are many, and large frames are rare.
            self.received.shrink_to(LEAST_READ_BYTES);
        }
        self.closed |= frame.is_err();
        frame.ok()
    }

    /// A descriptor that came with a frame.
    pub(super) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_whole_and_with_what_goes_with_them() {
        let (mut ours, theirs) = pair().unwrap();
        let mut theirs = Link::new(theirs);
        assert!(theirs.next::<ToSlot>().is_none());
        let program = |run: u64, length: usize| Program {
            run,
            argv: vec!["x".repeat(length)],
            env: vec![("A".to_owned(), "b".to_owned())],
            streams: Streams::Handler,
        };
        let (reader, writer) = std::io::pipe().unwrap();
        ours.say_with(&ToSlot::Run(program(1, 3)), vec![reader.into(), writer.into()]);
        // More than a socket holds.
        ours.say(&ToSlot::Run(program(2, 3 << 20)));
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        ours.say_with(&ToSlot::Wake, vec![writer.into()]);
        let mut seen = Vec::new();
        while seen.len() < 3 {
            theirs.receive();
            ours.flush();
            while let Some(frame) = theirs.next::<ToSlot>() {
                seen.push(match frame {
                    ToSlot::Run(program) => (program.run, program.argv[0].len()),
                    ToSlot::Signal { .. } | ToSlot::Kill { .. } | ToSlot::Wake => (0, 0),
                });
            }
        }
        assert_eq!(seen, [(1, 3), (2, 3 << 20), (0, 0)]);
        assert!((0..3).all(|_| theirs.take_descriptor().is_some()));
        assert!(theirs.take_descriptor().is_none() && !theirs.is_closed() && !ours.has_unsent());
        drop(ours);
        theirs.receive();
        assert!(theirs.is_closed());
    }

    #[test]
    fn what_is_no_frame_closes_the_link() {
        let (mut ours, theirs) = pair().unwrap();
        let mut theirs = Link::new(theirs);
        ours.say(&u64::MAX);
        theirs.receive();
        assert!(theirs.next::<ToSlot>().is_none() && theirs.is_closed());
    }
}
