//! Free space: which extents of the volume belong to nobody.
//!
//! # Invariants
//!
//! * Two trees hold the same extents: one by last block, one by length. Each change is planned and
//!   applied to both at once, so they can't differ.
//! * Free extents are disjoint and never touch: what is given back is joined with its neighbours.
//! * [`free_blocks`](FreeSpace::free_blocks) is changed in the same apply as the trees, and nowhere
//!   else.
//! * Giving back what is free already is found out when it is planned, and changes nothing. So is a
//!   count that a root got wrong, as soon as it can't be: a volume that says more than it has, or
//!   less than nothing, is not written any more.
//!
//! A plan takes one extent or gives one, because the second of two might have to change what the
//! first will have made.
//!
//! What this module deliberately doesn't know: who space goes to and comes from, and how much must
//! be kept back.

use crate::block::{Cache, Pins, Plan, Reservation};
use crate::btree::{Tree, TreeKind};
use crate::error::{Corruption, Error, Stop};
use crate::format::BlockNo;
use crate::format::records::{BlockKey, Length, LengthKey, extent};
use crate::format::root::{Extent, RootBlock};
use zerocopy::{FromBytes, IntoBytes};

/// Kind of the nodes of the tree by address.
pub const BY_BLOCK: TreeKind = TreeKind(1);
/// Kind of the nodes of the tree by length.
pub const BY_LENGTH: TreeKind = TreeKind(2);

/// The free extents of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeSpace {
    by_block: Tree,
    by_length: Tree,
    free_blocks: u64,
    volume_blocks: u64,
}

/// A planned removal: `part` of the free extent `whole`.
#[derive(Debug, Clone, Copy)]
pub struct Take {
    whole: Extent,
    part: Extent,
}

/// A planned return, and the free extents it touches.
#[derive(Debug, Clone, Copy)]
pub struct Give {
    extent: Extent,
    before: Option<Extent>,
    after: Option<Extent>,
}

impl FreeSpace {
    /// No free space, in a volume of this many blocks.
    #[must_use]
    pub fn empty(volume_blocks: u64) -> FreeSpace {
        FreeSpace {
            by_block: Tree::empty(BY_BLOCK),
            by_length: Tree::empty(BY_LENGTH),
            free_blocks: 0,
            volume_blocks,
        }
    }

    /// The free space that a root leads to.
    pub fn open(root: &RootBlock, volume_blocks: u64) -> Result<FreeSpace, Corruption> {
        Ok(FreeSpace {
            by_block: Tree::open(BY_BLOCK, &root.free_by_block)?,
            by_length: Tree::open(BY_LENGTH, &root.free_by_length)?,
            free_blocks: root.free_blocks.get(),
            volume_blocks,
        })
    }

    /// Enters it into a root.
    pub fn store(&self, root: &mut RootBlock) {
        root.free_by_block = self.by_block.root();
        root.free_by_length = self.by_length.root();
        root.free_blocks = self.free_blocks.into();
    }

    /// Blocks in all free extents.
    #[must_use]
    pub fn free_blocks(&self) -> u64 {
        self.free_blocks
    }

    /// Blocks of the volume.
    #[must_use]
    pub fn volume_blocks(&self) -> u64 {
        self.volume_blocks
    }

    /// The shortest free extent of at least this many blocks, or, if there is none, the longest.
    /// None: nothing is free.
    pub fn find(
        &self,
        blocks: u64,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Option<Extent>, Stop> {
        let mark = pins.mark();
        let wanted = LengthKey::at_least(blocks);
        let mut found = self.by_length.next(wanted.as_bytes(), cache, pins)?.map(|item| item.key);
        if found.is_none() {
            pins.drop_to(mark);
            found = self.by_length.last(cache, pins)?.map(|item| item.key);
        }
        let found = found.map(|key| self.length_key(key)).transpose()?;
        pins.drop_to(mark);
        Ok(found)
    }

    fn length_key(&self, key: &[u8]) -> Result<Extent, Stop> {
        let corrupt = |what| Error::Corrupt { blkno: self.by_length.root().node.blkno(), what };
        let key = LengthKey::ref_from_bytes(key).map_err(|_| corrupt(Corruption::Bounds))?;
        Ok(key.extent(self.volume_blocks).map_err(corrupt)?)
    }

    /// The free extent that holds this block, or else the next one.
    pub fn find_at(
        &self,
        blkno: BlockNo,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Option<Extent>, Stop> {
        let node = self.by_block.root().node.blkno();
        let corrupt = |what| Error::Corrupt { blkno: node, what };
        let Some(item) = self.by_block.next(BlockKey::at(blkno).as_bytes(), cache, pins)? else {
            return Ok(None);
        };
        let key = BlockKey::ref_from_bytes(item.key).map_err(|_| corrupt(Corruption::Bounds))?;
        let length = Length::ref_from_bytes(item.value).map_err(|_| corrupt(Corruption::Bounds))?;
        Ok(Some(extent(key.last, length, self.volume_blocks).map_err(corrupt)?))
    }

    /// Plans to take `part` out of the free extent `whole`, as it was found in this run.
    pub fn plan_take(
        &self,
        whole: Extent,
        part: Extent,
        plan: &mut Plan,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Take, Stop> {
        assert!(!part.is_empty() && part.start() >= whole.start() && part.end() <= whole.end());
        if part.len() > self.free_blocks {
            return Err(self.miscounted());
        }
        let take = Take { whole, part };
        let (left, right) = take.rests();
        self.by_length.plan_delete(LengthKey::of(&whole).as_bytes(), plan, cache, pins)?;
        match right {
            Some(_) => self.plan_put_block(&whole, plan, cache, pins)?,
            None => {
                self.by_block.plan_delete(BlockKey::of(&whole).as_bytes(), plan, cache, pins)?;
            }
        }
        if let Some(left) = left {
            self.plan_put_block(&left, plan, cache, pins)?;
        }
        for rest in [left, right].into_iter().flatten() {
            self.by_length.plan_put(LengthKey::of(&rest).as_bytes(), 0, plan, cache, pins)?;
        }
        Ok(take)
    }

    fn plan_put_block(
        &self,
        extent: &Extent,
        plan: &mut Plan,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<(), Stop> {
        let key = BlockKey::of(extent);
        self.by_block.plan_put(key.as_bytes(), size_of::<Length>(), plan, cache, pins)
    }

    /// Takes what was planned, and says what it is.
    pub fn take(&mut self, take: Take, update: &mut Reservation, cache: &mut Cache<'_>) -> Extent {
        let Take { whole, part } = take;
        let (left, right) = take.rests();
        self.by_length.delete(LengthKey::of(&whole).as_bytes(), update, cache);
        match right {
            Some(right) => self.put_block(&right, update, cache),
            None => self.by_block.delete(BlockKey::of(&whole).as_bytes(), update, cache),
        }
        if let Some(left) = left {
            self.put_block(&left, update, cache);
        }
        for rest in [left, right].into_iter().flatten() {
            self.by_length.put(LengthKey::of(&rest).as_bytes(), &[], update, cache);
        }
        self.free_blocks -= part.len();
        part
    }

    /// There are more free blocks than their count says, or fewer.
    fn miscounted(&self) -> Stop {
        let blkno = self.by_block.root().node.blkno();
        Error::Corrupt { blkno, what: Corruption::Value }.into()
    }

    fn put_block(&mut self, extent: &Extent, update: &mut Reservation, cache: &mut Cache<'_>) {
        let length = Length::new(extent.len());
        self.by_block.put(BlockKey::of(extent).as_bytes(), length.as_bytes(), update, cache);
    }

    /// Plans to give an extent back. [`Error::Exists`]: some of it is free already, or it can't be
    /// an extent of the volume.
    pub fn plan_give(
        &self,
        extent: Extent,
        plan: &mut Plan,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<Give, Stop> {
        if !extent.is_inside(self.volume_blocks) {
            return Err(Error::Exists.into());
        }
        // What ends just before the extent, or at its first block or later.
        let probe = BlockNo(extent.start().0 - 1);
        let mut next = self.find_at(probe, cache, pins)?;
        let before = next.filter(|found| found.end() == extent.start());
        if before.is_some() {
            next = self.find_at(extent.start(), cache, pins)?;
        }
        if next.is_some_and(|next| next.start() < extent.end()) {
            return Err(Error::Exists.into());
        }
        if extent.len() > self.volume_blocks.saturating_sub(self.free_blocks) {
            return Err(self.miscounted());
        }
        let after = next.filter(|next| next.start() == extent.end());
        let give = Give { extent, before, after };
        if let Some(before) = before {
            self.by_block.plan_delete(BlockKey::of(&before).as_bytes(), plan, cache, pins)?;
        }
        for old in [before, after].into_iter().flatten() {
            self.by_length.plan_delete(LengthKey::of(&old).as_bytes(), plan, cache, pins)?;
        }
        let joined = give.joined();
        self.plan_put_block(&joined, plan, cache, pins)?;
        self.by_length.plan_put(LengthKey::of(&joined).as_bytes(), 0, plan, cache, pins)?;
        Ok(give)
    }

    /// Gives back what was planned.
    pub fn give(&mut self, give: Give, update: &mut Reservation, cache: &mut Cache<'_>) {
        if let Some(before) = give.before {
            self.by_block.delete(BlockKey::of(&before).as_bytes(), update, cache);
        }
        for old in [give.before, give.after].into_iter().flatten() {
            self.by_length.delete(LengthKey::of(&old).as_bytes(), update, cache);
        }
        let joined = give.joined();
        self.put_block(&joined, update, cache);
        self.by_length.put(LengthKey::of(&joined).as_bytes(), &[], update, cache);
        self.free_blocks += give.extent.len();
    }
}

impl Take {
    /// What is left of the whole on either side.
    fn rests(&self) -> (Option<Extent>, Option<Extent>) {
        let Take { whole, part } = self;
        let between = |from: BlockNo, to: BlockNo| {
            let extent = Extent::new(from, to.0 - from.0);
            (!extent.is_empty()).then_some(extent)
        };
        (between(whole.start(), part.start()), between(part.end(), whole.end()))
    }
}

impl Give {
    /// The extent with its neighbours.
    fn joined(&self) -> Extent {
        let start = self.before.map_or(self.extent.start(), |before| before.start());
        let end = self.after.map_or(self.extent.end(), |after| after.end());
        Extent::new(start, end.0 - start.0)
    }
}
