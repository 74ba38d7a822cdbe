//! What a mount's kernel uses: inodes it has looked up or opened, and those that tasks work on.
//!
//! # Invariants
//!
//! * An inode has a slot only while something counts: a lookup, an open handle, a task, or that it
//!   is still to be named as an orphan.
//! * That of an inode that is only looked up, and has a name, is given to another when there is no
//!   other: a kernel names inodes by their numbers, and remembers as many as it has memory for. So
//!   who looks at more files than there are slots gets on, and a slot may have counted fewer
//!   lookups than are given back.
//! * An orphan is named once, when its last use has ended after its last name was seen to go.
//! * That the kernel has looked an inode up keeps it only if this mount has seen its last name go.
//!   What others have removed, the kernel remembers for as long as it likes: it would hold back the
//!   space for ever. Who still has such an inode and doesn't have it open finds it stale.
//! * Nor does that keep it for long. A kernel lets go of an inode at once when its last name goes,
//!   unless it remembers another name too, which somebody else has removed. So the second search
//!   for orphans that finds such an inode takes it for one that others have removed.
//!
//! What this module deliberately doesn't know: items, locks.

use super::Limits;
use crate::arena::{Arena, ArenaFull};
use crate::client::op::{Handle, OpError};
use crate::format::Ino;

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Slot {
    ino: Ino,
    lookups: u64,
    opens: u32,
    /// Tasks that only read.
    readers: u32,
    /// A task that changes.
    writer: bool,
    /// Its last name has gone.
    nameless: bool,
    /// A search for orphans has found it since.
    sighted: bool,
    /// To be named as an orphan.
    due: bool,
    /// The next slot of the chain, or of the free ones.
    next: u32,
}

#[derive(Debug, Clone, Copy)]
struct Opened {
    /// 0 when free.
    ino: Ino,
    generation: u32,
    next: u32,
}

/// The table.
pub(super) struct Table<'m> {
    chains: &'m mut [u32],
    slots: &'m mut [Slot],
    free: u32,
    used: u32,
    /// Where the search for a slot to be given to another goes on.
    hand: u32,
    due_count: u32,
    handles: &'m mut [Opened],
    handle_free: u32,
    handles_open: u32,
}

impl<'m> Table<'m> {
    pub(super) fn carve(arena: &mut Arena<'m>, limits: &Limits) -> Result<Table<'m>, ArenaFull> {
        let next = |index: u32, count: u32| if index + 1 < count { index + 1 } else { NONE };
        Ok(Table {
            chains: arena.slice(limits.inodes, |_| NONE)?,
            slots: arena.slice(limits.inodes, |index| Slot {
                ino: Ino(0),
                lookups: 0,
                opens: 0,
                readers: 0,
                writer: false,
                nameless: false,
                sighted: false,
                due: false,
                next: next(index, limits.inodes),
            })?,
            free: if limits.inodes == 0 { NONE } else { 0 },
            used: 0,
            hand: 0,
            due_count: 0,
            handles: arena.slice(limits.handles, |index| Opened {
                ino: Ino(0),
                generation: 0,
                next: next(index, limits.handles),
            })?,
            handle_free: if limits.handles == 0 { NONE } else { 0 },
            handles_open: 0,
        })
    }

    fn chain(&self, ino: Ino) -> usize {
        let hash = ino.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (hash % self.chains.len() as u64) as usize
    }

    fn find(&self, ino: Ino) -> Option<u32> {
        let mut id = *self.chains.get(self.chain(ino))?;
        while id != NONE && self.slots[id as usize].ino != ino {
            id = self.slots[id as usize].next;
        }
        (id != NONE).then_some(id)
    }

    fn get(&self, ino: Ino) -> Option<&Slot> {
        self.find(ino).map(|id| &self.slots[id as usize])
    }

    /// The inode's slot, a new one if it has none.
    fn slot(&mut self, ino: Ino) -> Result<&mut Slot, OpError> {
        let id = match self.find(ino) {
            Some(id) => id,
            None => {
                self.make_room();
                let id = self.free;
                let chain = self.chain(ino);
                let slot = self.slots.get_mut(id as usize).ok_or(OpError::NoMemory)?;
                self.free = slot.next;
                self.used += 1;
                *slot = Slot {
                    ino,
                    lookups: 0,
                    opens: 0,
                    readers: 0,
                    writer: false,
                    nameless: false,
                    sighted: false,
                    due: false,
                    next: self.chains[chain],
                };
                self.chains[chain] = id;
                id
            }
        };
        Ok(&mut self.slots[id as usize])
    }

    /// Frees the slot if nothing counts any more.
    fn settle(&mut self, ino: Ino) {
        let Some(id) = self.find(ino) else { return };
        let slot = &mut self.slots[id as usize];
        let used = slot.lookups > 0 || slot.opens > 0;
        if slot.nameless && !used && !slot.due {
            slot.due = true;
            slot.nameless = false;
            self.due_count += 1;
        }
        if used || slot.due || slot.readers > 0 || slot.writer {
            return;
        }
        self.remove(id);
    }

    /// Sees to it that a slot is free, if any can be.
    fn make_room(&mut self) {
        if self.free != NONE {
            return;
        }
        for _ in 0..self.slots.len() {
            let id = self.hand;
            self.hand = if id + 1 < self.slots.len() as u32 { id + 1 } else { 0 };
            let slot = &self.slots[id as usize];
            let worked_on = slot.readers > 0 || slot.writer;
            if slot.opens == 0 && !worked_on && !slot.nameless && !slot.due {
                return self.remove(id);
            }
        }
    }

    /// Frees a slot that is taken.
    fn remove(&mut self, id: u32) {
        let Slot { ino, next, .. } = self.slots[id as usize];
        let chain = self.chain(ino);
        let mut link = &mut self.chains[chain];
        while *link != id {
            link = &mut self.slots[*link as usize].next;
        }
        *link = next;
        self.slots[id as usize].next = self.free;
        self.slots[id as usize].ino = Ino(0);
        self.free = id;
        self.used -= 1;
    }

    /// Whether the inode must stay although it has no name.
    pub(super) fn uses(&self, ino: Ino) -> bool {
        let slot = self.get(ino);
        slot.is_some_and(|slot| slot.opens > 0 || (slot.nameless && slot.lookups > 0))
    }

    /// Sees to it that [`look_up`](Self::look_up) of this inode finds room.
    pub(super) fn reserve(&mut self, ino: Ino) -> Result<(), OpError> {
        if self.find(ino).is_some() {
            return Ok(());
        }
        self.make_room();
        if self.free == NONE { Err(OpError::NoMemory) } else { Ok(()) }
    }

    /// Counts a lookup.
    pub(super) fn look_up(&mut self, ino: Ino) -> Result<(), OpError> {
        self.slot(ino)?.lookups += 1;
        Ok(())
    }

    pub(super) fn forget(&mut self, ino: Ino, lookups: u64) {
        if let Some(id) = self.find(ino) {
            let slot = &mut self.slots[id as usize];
            slot.lookups = slot.lookups.saturating_sub(lookups);
            self.settle(ino);
        }
    }

    /// Notes that the inode's last name has gone. Without room for that, it is found when the
    /// volume is next searched for orphans.
    pub(super) fn lose_names(&mut self, ino: Ino) {
        if let Ok(slot) = self.slot(ino) {
            slot.sighted &= slot.nameless;
            slot.nameless = true;
            self.settle(ino);
        }
    }

    /// A search for orphans has found this one.
    pub(super) fn sight(&mut self, ino: Ino) {
        if let Some(id) = self.find(ino) {
            let slot = &mut self.slots[id as usize];
            if slot.nameless && slot.opens == 0 {
                slot.nameless = !slot.sighted;
                slot.sighted = true;
            }
        }
    }

    pub(super) fn poll_orphan(&mut self) -> Option<Ino> {
        if self.due_count == 0 {
            return None;
        }
        let slot = self.slots.iter_mut().find(|slot| slot.ino != Ino(0) && slot.due)?;
        slot.due = false;
        self.due_count -= 1;
        let ino = slot.ino;
        self.settle(ino);
        Some(ino)
    }

    /// Excludes other tasks from the inode, or only those that change it. Says whether none was
    /// there.
    pub(super) fn lock(&mut self, ino: Ino, exclusive: bool) -> Result<bool, OpError> {
        let slot = self.slot(ino)?;
        let free = !slot.writer && (!exclusive || slot.readers == 0);
        if free {
            slot.writer = exclusive;
            slot.readers += u32::from(!exclusive);
        }
        Ok(free)
    }

    pub(super) fn unlock(&mut self, ino: Ino, exclusive: bool) {
        if let Some(id) = self.find(ino) {
            let slot = &mut self.slots[id as usize];
            if exclusive {
                slot.writer = false;
            } else {
                slot.readers -= 1;
            }
            self.settle(ino);
        }
    }

    /// Whether the inode can be opened once more.
    pub(super) fn reserve_handle(&mut self, ino: Ino) -> Result<(), OpError> {
        if self.handle_free == NONE { Err(OpError::TooManyOpen) } else { self.reserve(ino) }
    }

    pub(super) fn open(&mut self, ino: Ino) -> Result<Handle, OpError> {
        let id = self.handle_free;
        if id == NONE {
            return Err(OpError::TooManyOpen);
        }
        self.slot(ino)?.opens += 1;
        let handle = &mut self.handles[id as usize];
        self.handle_free = handle.next;
        handle.ino = ino;
        handle.generation = handle.generation.wrapping_add(1);
        self.handles_open += 1;
        Ok(Handle(u64::from(handle.generation) << 32 | u64::from(id)))
    }

    fn opened(&self, handle: Handle) -> Option<usize> {
        let id = (handle.0 & u64::from(u32::MAX)) as usize;
        let opened = self.handles.get(id)?;
        let same = u64::from(opened.generation) == handle.0 >> 32 && opened.ino != Ino(0);
        same.then_some(id)
    }

    pub(super) fn is_open(&self, ino: Ino, handle: Handle) -> bool {
        self.opened(handle).is_some_and(|id| self.handles[id].ino == ino)
    }

    pub(super) fn close(&mut self, handle: Handle) {
        let Some(id) = self.opened(handle) else { return };
        let opened = &mut self.handles[id];
        let ino = opened.ino;
        opened.ino = Ino(0);
        opened.next = self.handle_free;
        self.handle_free = id as u32;
        self.handles_open -= 1;
        if let Some(slot) = self.find(ino) {
            self.slots[slot as usize].opens -= 1;
            self.settle(ino);
        }
    }

    /// Slots that are taken.
    pub(super) fn inodes_used(&self) -> u32 {
        self.used
    }

    pub(super) fn handles_open(&self) -> u32 {
        self.handles_open
    }
}

#[cfg(test)]
mod tests {
    use super::{Ino, Limits, OpError, Table};
    use crate::arena::Arena;
    use core::mem::MaybeUninit;

    const INODES: u32 = 4;

    fn with_table(test: impl FnOnce(&mut Table<'_>)) {
        let mut region = [MaybeUninit::uninit(); 1 << 12];
        let pad = region.as_ptr().align_offset(crate::arena::REGION_ALIGN);
        let mut arena = Arena::new(&mut region[pad..]).unwrap();
        let limits = Limits { inodes: INODES, handles: 8 };
        test(&mut Table::carve(&mut arena, &limits).unwrap());
    }

    #[test]
    fn what_is_only_looked_up_makes_room() {
        with_table(|table| {
            for ino in 1..100 {
                table.reserve(Ino(ino)).unwrap();
                table.look_up(Ino(ino)).unwrap();
                assert!(table.inodes_used() <= INODES);
            }
            for ino in 1..100 {
                table.forget(Ino(ino), 1);
            }
            assert_eq!(table.inodes_used(), 0);
        });
    }

    /// A kernel may remember for ever what has no name, if it had two.
    #[test]
    fn what_is_without_a_name_for_long_and_not_open_is_not_used() {
        with_table(|table| {
            table.look_up(Ino(3)).unwrap();
            table.sight(Ino(3));
            table.sight(Ino(3));
            table.lose_names(Ino(3));
            let handle = table.open(Ino(4)).unwrap();
            table.lose_names(Ino(4));
            table.sight(Ino(3));
            assert!(table.uses(Ino(3)), "somebody may just be looking at it");
            table.lose_names(Ino(3));
            for _ in 0..5 {
                table.sight(Ino(3));
                table.sight(Ino(4));
            }
            assert!(!table.uses(Ino(3)) && table.uses(Ino(4)));
            table.forget(Ino(3), 1);
            assert_eq!(table.poll_orphan(), None, "it was found by the search");
            table.close(handle);
            assert_eq!(table.poll_orphan(), Some(Ino(4)));
            assert_eq!(table.inodes_used(), 0);
        });
    }

    #[test]
    fn what_is_open_or_worked_on_or_without_a_name_stays() {
        with_table(|table| {
            let handle = table.open(Ino(1)).unwrap();
            assert!(table.lock(Ino(2), false).unwrap());
            table.look_up(Ino(3)).unwrap();
            table.lose_names(Ino(3));
            for ino in 10..30 {
                table.look_up(Ino(ino)).unwrap();
            }
            assert!(table.uses(Ino(1)) && table.uses(Ino(3)));
            assert!(!table.lock(Ino(2), true).unwrap(), "it is still worked on");
            assert!(table.lock(Ino(4), true).unwrap());
            assert_eq!(table.look_up(Ino(30)), Err(OpError::NoMemory));
            assert_eq!(table.reserve(Ino(30)), Err(OpError::NoMemory));
            table.close(handle);
            table.look_up(Ino(30)).unwrap();
            // Of what was looked up more often than was counted, more is given back.
            table.forget(Ino(30), 5);
            table.unlock(Ino(2), false);
            table.unlock(Ino(4), true);
            table.forget(Ino(3), 1);
            assert_eq!(table.poll_orphan(), Some(Ino(3)));
            assert_eq!(table.inodes_used(), 0);
        });
    }
}
