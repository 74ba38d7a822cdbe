//! The blocks that the open commit may write, and those it has freed.
//!
//! # Invariants
//!
//! * Blocks are taken only from the extents the commit was given, which the last durable root
//!   names.
//! * A block that was in use when the commit began and is freed by it is *freed*: it is not taken
//!   again in this commit. It waits in a list of extents, sorted and merged where they touch.
//! * A block that was taken in this commit and is freed again was never referred to by anything
//!   durable. It is *returned*, and is the first to be taken again. As fresh blocks are touched
//!   only while nothing is returned, there are never more returned blocks than were in use at once.
//! * Room for what an update may free is checked when it is planned, so freeing can't fail.
//!
//! What this module deliberately doesn't know: where the extents come from, and where freed ones
//! go.

use super::Limits;
use crate::arena::{Arena, ArenaFull};
use crate::mutant::{Mutant, is_active};
use outrider_hal::BlockNo;

/// A row of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Extent {
    /// The first.
    pub blkno: BlockNo,
    /// How many; at least one.
    pub blocks: u64,
}

impl Extent {
    fn end(&self) -> BlockNo {
        self.blkno.plus(self.blocks)
    }
}

/// The list of fresh extents is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceFull;

/// What a commit may write, and what it has freed.
pub struct Space<'m> {
    fresh: &'m mut [Extent],
    fresh_at: usize,
    fresh_end: usize,
    fresh_blocks: u64,
    returned: &'m mut [BlockNo],
    returned_len: usize,
    freed: &'m mut [Extent],
    freed_len: usize,
    touched: bool,
}

impl<'m> Space<'m> {
    /// Carves the lists: `limits.fresh` extents to write to, `limits.freed` extents that were
    /// freed, and as many returned blocks as there are dirty frames.
    pub(super) fn carve(arena: &mut Arena<'m>, limits: &Limits) -> Result<Space<'m>, ArenaFull> {
        Ok(Space {
            fresh: arena.slice(limits.fresh, |_| Extent::default())?,
            fresh_at: 0,
            fresh_end: 0,
            fresh_blocks: 0,
            returned: arena.slice(limits.dirty, |_| BlockNo(0))?,
            returned_len: 0,
            freed: arena.slice(limits.freed, |_| Extent::default())?,
            freed_len: 0,
            touched: false,
        })
    }

    /// Forgets every extent.
    pub fn clear(&mut self) {
        (self.fresh_at, self.fresh_end, self.fresh_blocks) = (0, 0, 0);
        (self.returned_len, self.freed_len, self.touched) = (0, 0, false);
    }

    /// Gives the commit an extent to write to. Extents of no blocks are ignored.
    pub fn give(&mut self, extent: Extent) -> Result<(), SpaceFull> {
        if extent.blocks == 0 {
            return Ok(());
        }
        *self.fresh.get_mut(self.fresh_end).ok_or(SpaceFull)? = extent;
        self.fresh_end += 1;
        self.fresh_blocks += extent.blocks;
        Ok(())
    }

    /// Blocks that can still be taken.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.fresh_blocks + self.returned_len as u64
    }

    /// In how many pieces they are: how often [`pop_unused`](Self::pop_unused) would answer.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.fresh_end - self.fresh_at + self.returned_len
    }

    /// Whether nothing was taken or freed since [`clear`](Self::clear).
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        !self.touched
    }

    /// A block to write to, if one is available.
    pub fn take(&mut self) -> Option<BlockNo> {
        self.touched = true;
        if self.returned_len > 0 {
            self.returned_len -= 1;
            return Some(self.returned[self.returned_len]);
        }
        let extent = self.fresh[..self.fresh_end].get_mut(self.fresh_at)?;
        let blkno = extent.blkno;
        *extent = Extent { blkno: blkno.plus(1), blocks: extent.blocks - 1 };
        if extent.blocks == 0 {
            self.fresh_at += 1;
        }
        self.fresh_blocks -= 1;
        Some(blkno)
    }

    /// Whether the block was given to this commit and has not been taken.
    #[must_use]
    pub fn is_fresh(&self, blkno: BlockNo) -> bool {
        let fresh = &self.fresh[self.fresh_at..self.fresh_end];
        fresh.iter().any(|extent| extent.blkno <= blkno && blkno < extent.end())
    }

    /// Puts back a block that was taken in this commit.
    pub fn put_back(&mut self, blkno: BlockNo) {
        self.returned[self.returned_len] = blkno;
        self.returned_len += 1;
    }

    /// The next extent that was given and not taken, removed from what is available.
    pub fn pop_unused(&mut self) -> Option<Extent> {
        if self.returned_len > 0 {
            return self.take().map(|blkno| Extent { blkno, blocks: 1 });
        }
        let extent = *self.fresh[..self.fresh_end].get(self.fresh_at)?;
        self.fresh_at += 1;
        self.fresh_blocks -= extent.blocks;
        Some(extent)
    }

    /// How many more extents the list of freed ones takes.
    #[must_use]
    pub fn freed_room(&self) -> u32 {
        (self.freed.len() - self.freed_len) as u32
    }

    /// What was freed: sorted, merged.
    #[must_use]
    pub fn freed(&self) -> &[Extent] {
        &self.freed[..self.freed_len]
    }

    /// The last of the freed extents, removed from the list.
    pub fn pop_freed(&mut self) -> Option<Extent> {
        self.freed_len = self.freed_len.checked_sub(1)?;
        Some(self.freed[self.freed_len])
    }

    /// Frees a block that was in use when the commit began. There must be
    /// [room](Self::freed_room) for it.
    pub fn free(&mut self, blkno: BlockNo) {
        self.touched = true;
        if is_active(Mutant::FreedWrittenAtOnce) && self.returned_len < self.returned.len() {
            return self.put_back(blkno);
        }
        let extents = &mut self.freed[..self.freed_len];
        let at = extents.partition_point(|extent| extent.blkno < blkno);
        let after = extents.get(at).is_some_and(|next| next.blkno == blkno.plus(1));
        if let Some(before) = at.checked_sub(1).filter(|&before| extents[before].end() == blkno) {
            extents[before].blocks += 1;
            if after {
                extents[before].blocks += extents[at].blocks;
                extents.copy_within(at + 1.., at);
                self.freed_len -= 1;
            }
        } else if after {
            extents[at] = Extent { blkno, blocks: extents[at].blocks + 1 };
        } else {
            self.freed.copy_within(at..self.freed_len, at + 1);
            self.freed[at] = Extent { blkno, blocks: 1 };
            self.freed_len += 1;
        }
    }
}
