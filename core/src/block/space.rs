//! The blocks that the open commit may write, and those it has freed.
//!
//! # Invariants
//!
//! * Blocks are taken only from the extents the commit was given, which the last durable root
//!   names.
//! * A block that was in use when the commit began and is freed by it is *freed*: it is not taken
//!   again in this commit. It waits in a list of extents, sorted and merged where they touch.
//! * Of the blocks it frees, those of versions that somebody still reads are *kept*, in a list of
//!   their own: the next commit must not take them either.
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
    freed: List<'m>,
    kept: List<'m>,
    /// Blocks of versions up to this one are kept when they are freed.
    keep_to: u64,
    touched: bool,
}

impl<'m> Space<'m> {
    /// Carves the lists: `limits.fresh` extents to write to, `limits.freed` extents that were
    /// freed, those that are kept counted, and as many returned blocks as there are dirty frames.
    pub(super) fn carve(arena: &mut Arena<'m>, limits: &Limits) -> Result<Space<'m>, ArenaFull> {
        Ok(Space {
            fresh: arena.slice(limits.fresh, |_| Extent::default())?,
            fresh_at: 0,
            fresh_end: 0,
            fresh_blocks: 0,
            returned: arena.slice(limits.dirty, |_| BlockNo(0))?,
            returned_len: 0,
            freed: List::carve(arena, limits)?,
            kept: List::carve(arena, limits)?,
            keep_to: 0,
            touched: false,
        })
    }

    /// Forgets every extent.
    pub fn clear(&mut self) {
        (self.fresh_at, self.fresh_end, self.fresh_blocks) = (0, 0, 0);
        (self.returned_len, self.touched) = (0, false);
        (self.freed.len, self.kept.len) = (0, 0);
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

    /// How many more extents the lists of freed and kept ones take together.
    #[must_use]
    pub fn freed_room(&self) -> u32 {
        // Together they never have more than one of them could: so each fits into the other.
        (self.freed.extents.len() - self.freed.len - self.kept.len) as u32
    }

    /// What was freed and isn't kept: sorted, merged.
    #[must_use]
    pub fn freed(&self) -> &[Extent] {
        self.freed.extents()
    }

    /// The last of the freed extents, removed from the list.
    pub fn pop_freed(&mut self) -> Option<Extent> {
        self.freed.pop()
    }

    /// Has blocks of versions up to this one kept when they are freed from now on; 0: none.
    pub fn keep_to(&mut self, version: u64) {
        self.keep_to = version;
    }

    /// What was freed and is kept: sorted, merged.
    #[must_use]
    pub fn kept(&self) -> &[Extent] {
        self.kept.extents()
    }

    /// The last of the kept extents, removed from the list.
    pub fn pop_kept(&mut self) -> Option<Extent> {
        self.kept.pop()
    }

    /// Nobody reads what was kept: it was freed like all else.
    pub fn forget_kept(&mut self) {
        while let Some(extent) = self.kept.pop() {
            self.freed.insert(extent);
        }
    }

    /// Frees a block of this version that was in use when the commit began. There must be
    /// [room](Self::freed_room) for it.
    pub fn free(&mut self, blkno: BlockNo, version: u64) {
        self.touched = true;
        if is_active(Mutant::FreedWrittenAtOnce) && self.returned_len < self.returned.len() {
            return self.put_back(blkno);
        }
        let list = if version <= self.keep_to { &mut self.kept } else { &mut self.freed };
        list.insert(Extent { blkno, blocks: 1 });
    }
}

/// Extents that don't touch, ascending.
struct List<'m> {
    extents: &'m mut [Extent],
    len: usize,
}

impl<'m> List<'m> {
    fn carve(arena: &mut Arena<'m>, limits: &Limits) -> Result<List<'m>, ArenaFull> {
        Ok(List { extents: arena.slice(limits.freed, |_| Extent::default())?, len: 0 })
    }

    fn extents(&self) -> &[Extent] {
        &self.extents[..self.len]
    }

    fn pop(&mut self) -> Option<Extent> {
        self.len = self.len.checked_sub(1)?;
        Some(self.extents[self.len])
    }

    /// Adds an extent of which nothing is there.
    fn insert(&mut self, extent: Extent) {
        let extents = &mut self.extents[..self.len];
        let at = extents.partition_point(|other| other.blkno < extent.blkno);
        let after = extents.get(at).is_some_and(|next| next.blkno == extent.end());
        let before = at.checked_sub(1);
        if let Some(before) = before.filter(|&before| extents[before].end() == extent.blkno) {
            extents[before].blocks += extent.blocks;
            if after {
                extents[before].blocks += extents[at].blocks;
                extents.copy_within(at + 1.., at);
                self.len -= 1;
            }
        } else if after {
            let blocks = extents[at].blocks + extent.blocks;
            extents[at] = Extent { blkno: extent.blkno, blocks };
        } else {
            self.extents.copy_within(at..self.len, at + 1);
            self.extents[at] = extent;
            self.len += 1;
        }
    }
}
