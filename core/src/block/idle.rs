//! Frames that may be taken for another block, and which of them goes first.
//!
//! Item blocks of runs are many, and what was in one is known to whoever read it; all other blocks
//! are the way to them, few, and asked for again and again. So item blocks don't push out others:
//! of those that nobody uses only a small share is kept, as long as others want the rest.
//!
//! # Invariants
//!
//! * An idle frame is free, or clean without pins; it is in one of the two lists, and its kind and
//!   state say in which.
//! * Free frames go first. Then item blocks, the least recently used first, as long as more are
//!   idle than their share; then all others, in the same order; then what is left.
//!
//! What this module deliberately doesn't know: when a frame becomes idle.

use super::list::List;
use super::{Frame, State};
use crate::format::block::Magic;

/// Item blocks may have this part of the frames, if there are blocks that want the rest.
const ITEMS_PART: u32 = 16;

/// The idle frames.
pub(super) struct Idle {
    items: List,
    /// Free ones first, then all that aren't item blocks.
    others: List,
    items_max: u32,
}

impl Idle {
    /// None of so many frames.
    pub(super) fn new(frames: u32) -> Idle {
        Idle { items: List::EMPTY, others: List::EMPTY, items_max: frames / ITEMS_PART }
    }

    /// How many there are.
    pub(super) fn len(&self) -> u32 {
        self.items.len() + self.others.len()
    }

    /// Adds a frame that was used just now, or holds nothing.
    pub(super) fn add(&mut self, frames: &mut [Frame<'_>], index: u32) {
        if frames[index as usize].state == State::Free {
            self.others.push_front(frames, index);
        } else {
            self.list_of(&frames[index as usize]).push_back(frames, index);
        }
    }

    /// Takes this frame, whose block is still in it.
    pub(super) fn remove(&mut self, frames: &mut [Frame<'_>], index: u32) {
        self.list_of(&frames[index as usize]).remove(frames, index);
    }

    /// Takes the one whose block, if it has one, is missed least.
    pub(super) fn pop(&mut self, frames: &mut [Frame<'_>]) -> Option<u32> {
        let is_free = |index: u32| frames[index as usize].state == State::Free;
        let keeps_items =
            self.items.len() <= self.items_max || self.others.front().is_some_and(is_free);
        let (first, second) = match keeps_items {
            true => (&mut self.others, &mut self.items),
            false => (&mut self.items, &mut self.others),
        };
        first.pop_front(frames).or_else(|| second.pop_front(frames))
    }

    fn list_of(&mut self, frame: &Frame<'_>) -> &mut List {
        match frame.state {
            State::Clean if frame.magic == Magic::RunItems => &mut self.items,
            State::Clean | State::Free => &mut self.others,
            State::Reading | State::Dirty | State::Writing | State::Doomed | State::Orphan => {
                unreachable!("an idle frame is free or clean")
            }
        }
    }
}
