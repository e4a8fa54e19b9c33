//! New slots, which the keeper makes when the worker asks for them.
//!
//! It must not: give work to a slot before the slot has a socket.

use super::{Hub, HubState, KEEPER, SlotEntry, SlotWork};
use crate::exec::descriptors::too_few;
use crate::exec::shared_page::MOST_SLOTS;
use crate::exec::wire::{self, Link, ToKeeper};

/// Why there is no new slot.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoSlot {
    #[error("there are {MOST_SLOTS} slots already")]
    TooMany,
    #[error("{}", too_few())]
    NoDescriptors,
    #[error("there is no keeper of slots now")]
    NoKeeper,
}

impl Hub {
    /// Asks for a new slot with this work, or gives the work back.
    pub(super) fn make(&self, inner: &mut HubState, work: SlotWork) -> Result<u32, Box<(SlotWork, NoSlot)>> {
        let is_free = |slot: &SlotEntry| !slot.asked;
        let number = inner.slots.iter().position(is_free).unwrap_or(inner.slots.len());
        let slot = match u32::try_from(number) {
            Ok(slot) if slot < MOST_SLOTS => slot,
            Ok(_) | Err(_) => return Err(Box::new((work, NoSlot::TooMany))),
        };
        let link = match self.ask_for(inner, slot) {
            Ok(link) => link,
            Err(why) => return Err(Box::new((work, why))),
        };
        if number == inner.slots.len() {
            inner.slots.push(SlotEntry::default());
        }
        inner.slots[number] = SlotEntry { asked: true, link: Some(link), process: None, work: Some(work) };
        Ok(slot)
    }

    /// Our end of the socket of a slot that the keeper is asked to make.
    fn ask_for(&self, inner: &mut HubState, slot: u32) -> Result<Link, NoSlot> {
        let (link, theirs) = wire::pair().map_err(|_| NoSlot::NoDescriptors)?;
        self.listen(&link, slot.into()).map_err(|_| NoSlot::NoDescriptors)?;
        let keeper = inner.keeper.as_mut().ok_or(NoSlot::NoKeeper)?;
        keeper.link.say_with(&ToKeeper::Make { slot }, vec![theirs]);
        self.await_room(&keeper.link, KEEPER);
        Ok(link)
    }
}
