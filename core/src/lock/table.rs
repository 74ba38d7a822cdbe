//! Slots of locks, found by name.
//!
//! A hash table with chains; both the chains and the list of free slots run through one array.
//!
//! What this module deliberately doesn't know: what is kept in a slot.

use super::LockName;
use super::list::NONE;
use crate::arena::{Arena, ArenaFull};

/// Slots of locks, found by name.
pub(super) struct Table<'m> {
    /// Name of the lock in each slot.
    names: &'m mut [Option<LockName>],
    /// The slot behind each in its chain, or in the list of free slots.
    chain: &'m mut [u32],
    /// First slot of each chain; a power of two of them.
    buckets: &'m mut [u32],
    /// Slots that were taken since all were free; the others are free too, and in no list.
    touched: u32,
    /// First free slot of those.
    free: u32,
    used: u32,
}

impl<'m> Table<'m> {
    /// A table of this many slots, at least 1.
    pub(super) fn carve(arena: &mut Arena<'m>, slots: u32) -> Result<Table<'m>, ArenaFull> {
        Ok(Table {
            names: arena.slice(slots, |_| None)?,
            chain: arena.slice(slots, |_| NONE)?,
            buckets: arena.slice(slots.next_power_of_two(), |_| NONE)?,
            touched: 0,
            free: NONE,
            used: 0,
        })
    }

    /// Frees all slots. Work: the chains, and the slots that were taken since it was done last.
    pub(super) fn clear(&mut self) {
        self.names[..self.touched as usize].fill(None);
        self.buckets.fill(NONE);
        (self.touched, self.free, self.used) = (0, NONE, 0);
    }

    pub(super) fn used(&self) -> u32 {
        self.used
    }

    pub(super) fn slots(&self) -> u32 {
        self.names.len() as u32
    }

    /// Name of the lock in the slot.
    pub(super) fn name(&self, slot: u32) -> Option<LockName> {
        self.names[slot as usize]
    }

    fn bucket(&self, name: &LockName) -> usize {
        // The high bits of the product depend on all of the name's.
        let bits = self.buckets.len().trailing_zeros();
        name.hash().checked_shr(64 - bits).unwrap_or(0) as usize
    }

    pub(super) fn find(&self, name: &LockName) -> Option<u32> {
        let mut slot = self.buckets[self.bucket(name)];
        while slot != NONE {
            if self.names[slot as usize].as_ref() == Some(name) {
                return Some(slot);
            }
            slot = self.chain[slot as usize];
        }
        None
    }

    /// A slot for a lock that has none; nothing when all are taken.
    pub(super) fn insert(&mut self, name: LockName) -> Option<u32> {
        assert!(self.find(&name).is_none(), "a lock has one slot");
        let slot = match self.free {
            NONE if self.touched == self.slots() => return None,
            NONE => {
                self.touched += 1;
                self.touched - 1
            }
            free => {
                self.free = self.chain[free as usize];
                free
            }
        };
        let bucket = self.bucket(&name);
        self.chain[slot as usize] = self.buckets[bucket];
        self.buckets[bucket] = slot;
        self.names[slot as usize] = Some(name);
        self.used += 1;
        Some(slot)
    }

    /// Frees a slot that is taken.
    pub(super) fn remove(&mut self, slot: u32) {
        let name = self.names[slot as usize].take().expect("a slot that is taken");
        let bucket = self.bucket(&name);
        let next = self.chain[slot as usize];
        let mut at = self.buckets[bucket];
        if at == slot {
            self.buckets[bucket] = next;
        } else {
            while self.chain[at as usize] != slot {
                at = self.chain[at as usize];
            }
            self.chain[at as usize] = next;
        }
        self.chain[slot as usize] = self.free;
        self.free = slot;
        self.used -= 1;
    }
}
