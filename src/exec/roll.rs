//! The roll of live groups: one thread that hears of every group before its program runs, writes the run file,
//! puts it into a cgroup, tells the guard, and only then opens the gate at which the child waits.
//!
//! It has a thread of its own because the thread that forks is held inside `Command::spawn` until exec. What
//! has piled up while the file was being written goes into the next write together.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::getpid;

use super::cgroup::{Cgroups, Entered};
use super::guard::{Guard, NO_ROOM, WHENEVER};
use super::proc;
use super::runfile::{Group, RunFile};
use super::table::Table;
use crate::machine::RunId;
use crate::threads;

/// Bytes of a message. Far below `PIPE_BUF`, so that messages of many writers never mix.
const MESSAGE_BYTES: usize = 16;
/// Messages taken in at once.
const MESSAGES_AT_ONCE: usize = 64;

/// What is said through the pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    /// By the child, before exec: this group waits at its gate.
    Here { run: RunId, pid: u32 },
    /// By the run: every process of the group is dead, or there never was one.
    Gone { run: RunId },
    /// By the executor: no run is left.
    Stop,
}

impl Message {
    fn encode(self) -> [u8; MESSAGE_BYTES] {
        let (kind, pid, run) = match self {
            Message::Here { run, pid } => (1_u32, pid, run.0),
            Message::Gone { run } => (2, 0, run.0),
            Message::Stop => (3, 0, 0),
        };
        let mut bytes = [0; MESSAGE_BYTES];
        bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        bytes[4..8].copy_from_slice(&pid.to_ne_bytes());
        bytes[8..].copy_from_slice(&run.to_ne_bytes());
        bytes
    }

    fn decode(bytes: &[u8; MESSAGE_BYTES]) -> Message {
        let [k0, k1, k2, k3, p0, p1, p2, p3, run @ ..] = *bytes;
        let run = RunId(u64::from_ne_bytes(run));
        match u32::from_ne_bytes([k0, k1, k2, k3]) {
            1 => Message::Here { run, pid: u32::from_ne_bytes([p0, p1, p2, p3]) },
            2 => Message::Gone { run },
            kind => {
                assert_eq!(kind, 3, "only we write into the pipe of the roll");
                Message::Stop
            }
        }
    }
}

/// The writing end of the roll's pipe.
#[derive(Clone, Debug)]
pub(super) struct Announcer(Arc<OwnedFd>);

impl Announcer {
    /// For the child, between fork and exec: makes bare system calls only.
    pub(super) fn announce(&self, run: RunId) -> Result<(), Errno> {
        let pid = getpid().as_raw_nonzero().get().unsigned_abs();
        self.send(Message::Here { run, pid })
    }

    /// The run's group is empty.
    pub(super) fn gone(&self, run: RunId) {
        if let Err(error) = self.send(Message::Gone { run }) {
            log::error!("cannot tell the roll that run {} is over: {error}", run.0);
        }
    }

    fn send(&self, message: Message) -> Result<(), Errno> {
        retry_on_intr(|| write(&self.0, &message.encode())).map(|_| ())
    }
}

/// The thread that keeps the roll.
#[derive(Debug)]
pub(super) struct Roll {
    announcer: Announcer,
    thread: JoinHandle<()>,
}

impl Roll {
    /// Starts the thread; from now on `run_file` says that this process is the worker.
    pub(super) fn start(
        table: Arc<Table>,
        mut run_file: Option<RunFile>,
        guard: Option<Arc<Guard>>,
        cgroups: Option<Arc<Cgroups>>,
    ) -> anyhow::Result<Roll> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        if let Some(file) = &mut run_file {
            file.set_cgroup(cgroups.as_ref().map(|cgroups| cgroups.base().to_path_buf()));
            file.write(&[]);
        }
        let keeper = Keeper { reader, table, run_file, guard, cgroups, live: Vec::new() };
        let thread =
            threads::spawn_to_join("exec-roll", move || keeper.keep()).context("cannot start a thread")?;
        Ok(Roll { announcer: Announcer(Arc::new(writer)), thread })
    }

    pub(super) fn announcer(&self) -> &Announcer {
        &self.announcer
    }

    /// Ends the thread, and so gives up the run file. Only when no run is left.
    pub(super) fn stop(self) {
        if self.announcer.send(Message::Stop).is_ok() {
            // If it panicked, the process is ending.
            let _ = self.thread.join();
        }
    }
}

struct Keeper {
    reader: OwnedFd,
    table: Arc<Table>,
    run_file: Option<RunFile>,
    guard: Option<Arc<Guard>>,
    cgroups: Option<Arc<Cgroups>>,
    live: Vec<(RunId, Group)>,
}

impl Keeper {
    fn keep(mut self) {
        let mut buffer = [0; MESSAGE_BYTES * MESSAGES_AT_ONCE];
        loop {
            let filled = match retry_on_intr(|| read(&self.reader, &mut buffer)) {
                Ok(0) => return,
                Ok(filled) => filled,
                Err(error) => {
                    log::error!("cannot read the pipe of the roll: {error}");
                    return;
                }
            };
            // The pipe holds whole messages only, and the buffer is a multiple of one.
            let (messages, cut) = buffer[..filled].as_chunks::<MESSAGE_BYTES>();
            assert!(cut.is_empty(), "a message to the roll was cut");
            if !self.take_in(messages) {
                return;
            }
        }
    }

    /// Whether to go on.
    fn take_in(&mut self, messages: &[[u8; MESSAGE_BYTES]]) -> bool {
        let (mut at_gate, mut refused) = (Vec::new(), Vec::new());
        let mut go_on = true;
        for message in messages {
            match Message::decode(message) {
                Message::Here { run, pid } => {
                    // The child stands at its gate, so it is there to be looked up.
                    let start_ticks = match proc::stat(pid) {
                        Ok(stat) => stat.map_or(0, |stat| stat.start_ticks),
                        Err(error) => {
                            // It could not be named to anybody who has to kill it.
                            log::error!("cannot look at process {pid}: {error}; it does not start");
                            refused.push((run, pid));
                            continue;
                        }
                    };
                    self.live.push((run, Group { pgid: pid, start_ticks }));
                    at_gate.push((run, pid, start_ticks));
                }
                Message::Gone { run } => {
                    let gone = self.live.extract_if(.., |(other, _)| *other == run);
                    gone.for_each(|(_, group)| self.guard.iter().for_each(|guard| guard.gone(group.pgid)));
                }
                Message::Stop => go_on = false,
            }
        }
        if let Some(file) = &mut self.run_file {
            let groups: Vec<Group> = self.live.iter().map(|(_, group)| *group).collect();
            file.write(&groups);
        }
        for (run, pid) in refused {
            self.table.open_gate(run, pid, NO_ROOM);
        }
        for (run, pid, start_ticks) in at_gate {
            if self.cgroups.as_ref().is_some_and(|cgroups| cgroups.enter(run, pid) == Entered::NoRoom) {
                self.table.open_gate(run, pid, NO_ROOM);
                continue;
            }
            let not_after = self.guard.as_ref().map_or(WHENEVER, |guard| guard.here(pid, start_ticks));
            self.table.open_gate(run, pid, not_after);
        }
        go_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_pipe() {
        let run = RunId(u64::MAX - 5);
        for message in [Message::Here { run, pid: 4_000_000 }, Message::Gone { run }, Message::Stop] {
            assert_eq!(Message::decode(&message.encode()), message);
        }
    }
}
