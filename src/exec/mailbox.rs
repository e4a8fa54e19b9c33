//! A handler's mailbox: what became of the handler's process, from the hub to the handler's thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{retry_on_intr, write};

use super::NotStartedKind;
use crate::machine::{RunId, RunReport};

/// What became of a handler's process.
#[derive(Debug)]
pub(super) enum Note {
    /// It runs.
    Started {
        /// The leader of its group.
        pid: u32,
        /// Its slot.
        slot: u32,
    },
    /// It does not run and never did.
    NotStarted {
        /// Whose fault it is.
        kind: NotStartedKind,
        /// The reason.
        why: String,
    },
    /// Every process of its group is dead.
    Ended(Box<RunReport>),
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Mailbox {
    id: RunId,
    /// Wakes the handler's thread.
    wake: OwnedFd,
    /// The leader of the handler's group; 0 before it has one.
    pid: AtomicU32,
    slot: AtomicU32,
    notes: Mutex<Vec<Note>>,
}

impl Mailbox {
    /// The mailbox of a handler that is not started yet.
    pub(super) fn new(id: RunId) -> io::Result<Mailbox> {
        Ok(Mailbox {
            id,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            pid: AtomicU32::new(0),
            slot: AtomicU32::new(0),
            notes: Mutex::default(),
        })
    }

    /// Its number among runs.
    pub(super) fn id(&self) -> RunId {
        self.id
    }

    /// The leader of its group.
    pub(super) fn pid(&self) -> u32 {
        self.pid.load(Ordering::SeqCst)
    }

    /// The number of the slot that it runs in.
    pub(super) fn slot(&self) -> u32 {
        self.slot.load(Ordering::SeqCst)
    }

    /// Something became of its process.
    pub(super) fn note(&self, note: Note) {
        if let Note::Started { pid, slot } = &note {
            self.slot.store(*slot, Ordering::SeqCst);
            self.pid.store(*pid, Ordering::SeqCst);
        }
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
        self.wake();
    }

    /// What became of its process since.
    pub(super) fn take_notes(&self) -> Vec<Note> {
        std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is readable when the handler's thread is woken.
    pub(super) fn waker(&self) -> &OwnedFd {
        &self.wake
    }

    /// Wakes the handler's thread.
    pub(super) fn wake(&self) {
        if let Err(error) = retry_on_intr(|| write(&self.wake, &1_u64.to_ne_bytes())) {
            log::error!("cannot wake the thread of handler {}: {error}", self.pid());
        }
    }
}
