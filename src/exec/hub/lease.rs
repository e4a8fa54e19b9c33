//! The lease, as the worker renews it, and handlers that begin and end something under it.
//!
//! It must not: renew a lease that somebody has found over while something runs.

use std::sync::atomic::Ordering;

use super::{Hub, KEEPER};
use crate::exec::shared_page::Renewal;
use crate::exec::wire::{ToKeeper, ToSlot};

/// The lease before was found over while something ran.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease was renewed too late")]
pub struct RenewedTooLate;

impl Hub {
    /// Whether something may run now.
    pub(in crate::exec) fn may_run(&self) -> bool {
        self.page.holds() && self.lock().keeper.is_some()
    }

    /// A handler is about to get something to do; whether it may. If not, it rests.
    pub(in crate::exec) fn begin(&self, slot: u32) -> bool {
        let part = self.page.part(slot);
        part.busy.store(1, Ordering::SeqCst);
        // In this order: a slot that kills marks that before it checks whether its handler is busy.
        if part.killing.load(Ordering::SeqCst) != 0 || !self.page.holds() {
            return false;
        }
        if part.armed.load(Ordering::SeqCst) == 0
            // The keeper finds a slot that hangs, as if the slot had armed itself.
            && part.armed.swap(self.page.deadline().unwrap_or(0), Ordering::SeqCst) == 0
            && let Some(link) = self.lock().slots.get_mut(slot as usize).and_then(|slot| slot.link.as_mut())
        {
            link.say(&ToSlot::Wake);
            self.await_room(link, slot.into());
        }
        true
    }

    /// It has nothing to do now.
    pub(in crate::exec) fn rest(&self, slot: u32) {
        self.page.part(slot).busy.store(0, Ordering::SeqCst);
    }

    /// What runs may run until then; `busy` if a handler has something to do.
    ///
    /// # Errors
    ///
    /// If the lease before was found over while something runs: that is being killed.
    pub(in crate::exec) fn lease(&self, until: u64, busy: bool) -> Result<(), RenewedTooLate> {
        match self.page.renew(until) {
            Renewal::Counts { late: false, shorter: false } => return Ok(()),
            Renewal::Counts { shorter: true, .. } => {
                let mut inner = self.lock();
                for (number, slot) in (0..).zip(&mut inner.slots) {
                    if let Some(link) = &mut slot.link {
                        link.say(&ToSlot::Wake);
                        self.await_room(link, number);
                    }
                }
            }
            Renewal::Counts { late: true, shorter: false } => {}
            Renewal::Over => {
                if busy || self.len() > 0 {
                    self.kill_all();
                    return Err(RenewedTooLate);
                }
                self.page.begin_anew(until);
            }
        }
        if let Some(keeper) = &mut self.lock().keeper {
            keeper.link.say(&ToKeeper::Wake);
            self.await_room(&keeper.link, KEEPER);
        }
        Ok(())
    }
}
