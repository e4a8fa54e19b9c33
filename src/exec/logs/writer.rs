//! The writer: the process that writes a worker's logs. Its one thread may wait for a disk as long as it likes.
//!
//! It ends when its worker is gone and every slot has passed on what it had. It must not speak for anything else: no
//! run ends later, and no lease, for what happens here.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};

use super::super::system::detach;
use super::super::system::timespec;
use super::super::wire::Link;
use super::shelf::Shelf;
use super::{FromWriter, HEADER_BYTES, LogName, ToWriter, kind};
use crate::contract::log::LogFile;

/// Bytes read from a slot at once: what its pipe holds.
const READ_BYTES: usize = 64 << 10;
/// Bytes kept of the words that say why a log is not complete.
const MOST_WORDS_BYTES: usize = 1_000;
/// The name in short lists of processes.
const NAME: &std::ffi::CStr = c"zkmw-logs";

/// The life of a writer: what `zkmw write-logs DIR SPACE KEEP` does. Its standard input is the worker's socket.
///
/// # Errors
///
/// If no worker has started it.
pub fn run(words: &[OsString]) -> anyhow::Result<()> {
    let [dir, space, keep] = words else { anyhow::bail!("only a worker starts this") };
    let number = |word: &OsString| word.to_str().and_then(|word| word.parse::<u64>().ok());
    let space = number(space).context("SPACE is no number")?;
    let keep = Duration::from_secs(number(keep).context("KEEP is no number")?);
    let link = Link::new(detach(NAME)?);
    let shelf = Shelf::new(PathBuf::from(dir), space, keep);
    let mut writer = Writer { link, shelf, logs: Vec::new(), buffer: Vec::new() };
    while !(writer.link.is_closed() && writer.logs.is_empty()) {
        writer.turn();
    }
    Ok(())
}

struct Writer {
    link: Link,
    shelf: Shelf,
    logs: Vec<Log>,
    buffer: Vec<u8>,
}

/// A log that is being written.
struct Log {
    name: LogName,
    /// Its path, without an ending.
    base: PathBuf,
    /// What its slot has read.
    pipe: OwnedFd,
    pieces: Pieces,
    out: File,
    /// Made with its first byte.
    err: Option<File>,
    /// Why it is not complete.
    cut: Vec<u8>,
}

impl Writer {
    fn turn(&mut self) {
        let pause = timespec(self.shelf.pause());
        let closed = self.link.is_closed();
        let wanted = if self.link.has_unsent() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut sources: Vec<PollFd<'_>> =
            self.logs.iter().map(|log| PollFd::new(&log.pipe, PollFlags::IN)).collect();
        if !closed {
            sources.push(PollFd::from_borrowed_fd(self.link.as_fd(), wanted));
        }
        let polled = poll(&mut sources, Some(&pause));
        let mut ready: Vec<bool> = match polled {
            Ok(_) => sources.iter().map(|source| !source.revents().is_empty()).collect(),
            // Out of memory, or interrupted: everything counts as ready, and nothing waits.
            Err(_) => vec![true; sources.len()],
        };
        self.shelf.remove_old();
        let says = !closed && ready.pop().unwrap_or(false);
        let mut ready = ready.into_iter();
        let Writer { link, shelf, logs, buffer } = self;
        logs.retain_mut(|log| {
            if !ready.next().unwrap_or(false) {
                return true;
            }
            let over = log.read(buffer, shelf);
            let goes_on = matches!(over, Ok(false));
            if let Err(why) = &over {
                log.mark(&why.to_string(), shelf);
                let LogName { task, attempt, .. } = &log.name;
                link.say(&FromWriter::Warning(format!(
                    "the log of task {task}, attempt {attempt}, is cut: {why}"
                )));
            }
            if !goes_on {
                shelf.end(&log.base);
            }
            goes_on
        });
        if says {
            self.hear();
        }
    }

    /// Takes in what the worker says.
    fn hear(&mut self) {
        self.link.flush();
        self.link.receive();
        while let Some(said) = self.link.next() {
            let name = match said {
                ToWriter::Log(name) => name,
                ToWriter::Cut(name) => {
                    self.shelf.cut(&name);
                    continue;
                }
            };
            // Without it there was no room for a descriptor, and the slot finds nobody at the other end.
            let Some(pipe) = self.link.take_descriptor() else { continue };
            if let Err(error) = self.begin(name.clone(), pipe) {
                let LogName { task, attempt, .. } = name;
                let why = format!("task {task}, attempt {attempt}, has no log: {error:#}");
                self.link.say(&FromWriter::Warning(why));
            }
        }
    }

    fn begin(&mut self, name: LogName, pipe: OwnedFd) -> anyhow::Result<()> {
        let base = self.shelf.begin(&name)?;
        // The same attempt once more, before all was read of it the last time.
        self.logs.retain(|log| log.base != base);
        let made = self.shelf.make(&base, LogFile::Out);
        let out = made.inspect_err(|_| self.shelf.end(&base));
        let out = out.with_context(|| format!("cannot make {}.out", base.display()))?;
        let pieces = Pieces::default();
        self.logs.push(Log { name, base, pipe, pieces, out, err: None, cut: Vec::new() });
        Ok(())
    }
}

/// Why a log is not complete.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("cannot read it from its slot ({0})")]
    Read(Errno),
    #[error("cannot write it ({0}); make room, or see --state-dir and --log-space of the worker")]
    Write(#[from] io::Error),
    #[error("logs of what runs take all of the worker's --log-space")]
    NoSpace,
}

impl Log {
    /// Writes what came. Gives whether that was all.
    fn read(&mut self, buffer: &mut Vec<u8>, shelf: &mut Shelf) -> Result<bool, Cut> {
        buffer.clear();
        buffer.reserve(READ_BYTES);
        match read(&self.pipe, spare_capacity(buffer)) {
            Ok(0) => {
                // The slot, or the keeper, logs that the slot was killed, or waited too long for us.
                self.mark("its slot ended, or had waited in vain, before it had passed on all of it", shelf);
                return Ok(true);
            }
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(error) => return Err(Cut::Read(error)),
        }
        let Log { pieces, out, err, cut, base, .. } = self;
        let mut ended = false;
        pieces.take(buffer, |kind, bytes| {
            let file = match kind {
                kind::OUT => &mut *out,
                kind::ERR => match err {
                    Some(file) => file,
                    None => err.insert(shelf.make(base, LogFile::Err)?),
                },
                kind::CUT => {
                    cut.extend(&bytes[..bytes.len().min(MOST_WORDS_BYTES.saturating_sub(cut.len()))]);
                    return Ok(());
                }
                _ => {
                    ended = true;
                    return Ok(());
                }
            };
            if !shelf.take(bytes.len() as u64) {
                return Err(Cut::NoSpace);
            }
            Ok(file.write_all(bytes)?)
        })?;
        if !self.cut.is_empty() && self.pieces.left == 0 {
            let why = std::mem::take(&mut self.cut);
            self.mark(&String::from_utf8_lossy(&why), shelf);
        }
        Ok(ended)
    }

    /// It will not be complete, and that is to be seen.
    fn mark(&self, why: &str, shelf: &mut Shelf) {
        shelf.mark(&self.base, why);
    }
}

/// What a slot has sent, taken to pieces however it comes.
#[derive(Debug, Default)]
struct Pieces {
    header: [u8; HEADER_BYTES],
    /// How much of the header has come.
    have: usize,
    /// How much of the piece has not.
    left: usize,
}

impl Pieces {
    fn take(
        &mut self,
        mut bytes: &[u8],
        mut to: impl FnMut(u8, &[u8]) -> Result<(), Cut>,
    ) -> Result<(), Cut> {
        while !bytes.is_empty() {
            if self.have < HEADER_BYTES {
                let (of_header, rest) = bytes.split_at(bytes.len().min(HEADER_BYTES - self.have));
                self.header[self.have..self.have + of_header.len()].copy_from_slice(of_header);
                self.have += of_header.len();
                bytes = rest;
                if self.have < HEADER_BYTES {
                    return Ok(());
                }
                let [_, length @ ..] = self.header;
                self.left = u32::from_le_bytes(length) as usize;
            }
            let (piece, rest) = bytes.split_at(bytes.len().min(self.left));
            self.left -= piece.len();
            bytes = rest;
            to(self.header[0], piece)?;
            if self.left == 0 {
                self.have = 0;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::header;
    use super::*;
    use crate::machine::Prng;

    #[test]
    fn pieces_are_put_together_however_they_come() {
        let mut prng = Prng::new(7);
        for _ in 0..2_000 {
            let (mut sent, mut wanted) = (Vec::new(), Vec::new());
            for number in 0..prng.next_u64() % 6 {
                let (kind, bytes) = ((number % 4) as u8, vec![number as u8; (prng.next_u64() % 9) as usize]);
                sent.extend(header(kind, bytes.len()));
                sent.extend(&bytes);
                wanted.push((kind, bytes));
            }
            let (mut pieces, mut got) = (Pieces::default(), Vec::<(u8, Vec<u8>)>::new());
            let mut rest = &sent[..];
            while !rest.is_empty() {
                let (part, after) = rest.split_at(rest.len().min(1 + (prng.next_u64() % 12) as usize));
                let is_new =
                    |got: &[(u8, Vec<u8>)], kind: u8| got.last().is_none_or(|(last, _)| *last != kind);
                pieces
                    .take(part, |kind, bytes| {
                        if is_new(&got, kind) {
                            got.push((kind, Vec::new()));
                        }
                        got.iter_mut().last().into_iter().for_each(|(_, all)| all.extend(bytes));
                        Ok(())
                    })
                    .unwrap();
                rest = after;
            }
            assert_eq!((got, pieces.left), (wanted, 0));
        }
    }
}
