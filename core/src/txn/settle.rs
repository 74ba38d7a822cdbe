//! The end of a commit: where the blocks it freed go, and where the next commit's come from.
//!
//! # Invariants
//!
//! * The next reserve consists of blocks that nothing refers to once this commit is durable: what
//!   is left of this one's reserve, what this commit has freed of its trees, and extents that this
//!   commit takes out of the free tree. None of these last is written in this commit, because no
//!   durable root names them yet.
//! * It fits the root: at most [`RESERVE_EXTENTS`] pieces.
//! * When nothing is free, what a leader might have written who is proven gone is taken too: a
//!   volume whose leaders died one after the other gets its space back though no request has room.
//! * Settling ends. A tree's node is copied once in a commit, so each round of changes frees fewer
//!   blocks than the one before, down to none; and each list that is put away takes more pieces
//!   than putting it away makes.
//! * What settling may need is kept back from requests by [`MARGIN`].
//! * What is kept for readers goes onto lists before all else, if without it the next reserve has
//!   as many blocks as a commit must have; otherwise nothing is kept any more, and it is part of
//!   the reserve. So a commit never has less because somebody reads.
//!
//! What this module deliberately doesn't know: how a commit is written.

use super::kept::Kept;
use super::takeover::Gone;
use super::trees::Trees;
use crate::block::{Cache, Extent as SpaceExtent, Margin, Pins};
use crate::btree::Tree;
use crate::error::{Corruption, Error, Stop};
use crate::format::records::{FreedKey, LIST_MAX, OwnerKind, QuarantineKey, list};
use crate::format::root::{Extent, RESERVE_EXTENTS};
use crate::format::run::SEGMENT_BLOCKS;
use crate::format::{BlockNo, CommitNo};
use heapless::Vec;
use zerocopy::{FromBytes, IntoBytes};

/// What requests leave for settling.
///
/// | for | blocks |
/// |---|---|
/// | taking an extent out of the free trees: a path and both siblings in one, two such paths in the other, and what may be split | 16 + 32 + 14 |
/// | up to 12 lists put away at the right edge of the tree of freed extents: a path, and a leaf and its parents for every fourth | 6 + 12 |
/// | | 80 |
pub const MARGIN: Margin = Margin { dirty: 80, blocks: 80, freed: 80 };

/// With fewer blocks than this the reserve is filled up: what the largest transaction and settling
/// may take, and a merge's change, whose path in the manifest is no longer than four blocks: that
/// is a million runs.
pub const RESERVE_MIN: u64 = 448;
/// How large it is made then.
pub const RESERVE_TARGET: u64 = 640;
/// With more blocks than this some are put away.
pub const RESERVE_MAX: u64 = 1024;

/// Free blocks that nothing is lent from. They are for reserves: with them a full volume can be
/// deleted from, and several leaders in a row can take over although none of those before them is
/// proven gone.
pub const FREE_MIN: u64 = 4 * RESERVE_TARGET;

/// Free blocks that clients are lent nothing from: those, and room for a merge, since a full volume
/// gets its space back by merging. That is as much as the largest merge may take, but for a volume
/// under 256 MiB, of which it would be too large a part: there merges are small too, or have to
/// wait for a file to be deleted.
#[must_use]
pub fn lend_floor(volume_blocks: u64) -> u64 {
    FREE_MIN + MERGE_BLOCKS_MAX.min(volume_blocks / 16)
}

/// Free blocks that clients are lent nothing from for file data: those, and some that runs may
/// still be written to, since deletes are recorded in runs.
#[must_use]
pub fn data_floor(volume_blocks: u64) -> u64 {
    lend_floor(volume_blocks) + RUN_BLOCKS_MAX.min(volume_blocks / 32)
}

/// Free blocks below which nothing is kept for readers of older roots: what files are lent nothing
/// from, and as much as one pool may be lent.
#[must_use]
pub fn keep_floor(volume_blocks: u64) -> u64 {
    data_floor(volume_blocks) + volume_blocks / 64
}

/// Where the part of the volume begins that runs are written to first, and files last. Files have
/// the lowest free blocks, so what they leave free, [`data_floor`], is the last of the volume, with
/// nothing between but runs: merging makes long extents of it again.
#[must_use]
pub fn run_zone(volume_blocks: u64) -> BlockNo {
    BlockNo(volume_blocks - (4 * data_floor(volume_blocks)).min(volume_blocks / 4))
}

/// Blocks kept for the runs of full transactions, of a few clients.
const RUN_BLOCKS_MAX: u64 = 32 * SEGMENT_BLOCKS;

/// Blocks of the largest merge: thirteen segments, and what is made of them may be wasted on ends.
pub const MERGE_BLOCKS_MAX: u64 = 14 * SEGMENT_BLOCKS;

/// Pieces the reserve may have before settling puts some away. The rest of the root's room is for
/// the extents taken last, and for what that frees.
const PIECES_MAX: usize = RESERVE_EXTENTS - 24;

/// The extents of a reserve, as they are collected.
pub type Reserve = Vec<Extent, RESERVE_EXTENTS>;

/// What one commit's settling has done so far.
#[derive(Debug, Default)]
pub struct Settling {
    /// Extents for the next commit that this one must not write.
    pub(super) taken: Vec<Extent, 4>,
    /// Nothing is left to be taken.
    exhausted: bool,
    /// Lists put away in this commit, by requests too.
    lists: u32,
}

/// What a commit has freed: this pile of it goes onto a list.
#[derive(Debug, Clone, Copy)]
enum Pile {
    /// What nobody reads.
    Freed,
    /// What is kept for readers.
    Kept,
}

/// What is known of those who led before.
#[derive(Debug, Clone, Default)]
pub struct Earlier {
    /// Leaders of rounds before this one.
    pub than: u64,
    /// Which of them are gone.
    pub gone: Gone,
}

impl Settling {
    /// Lists of extents freed by this commit so far: the number of the next one.
    #[must_use]
    pub fn lists(&self) -> u32 {
        self.lists
    }

    /// The list of this number is being put away.
    pub fn next_list(&mut self) -> u32 {
        self.lists += 1;
        self.lists - 1
    }

    /// Whether nothing more could be found for the next reserve.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Does what is left to be done, and gives the next commit's reserve. Run again from the top
    /// when it was stopped for a block.
    pub fn run(
        &mut self,
        commit: CommitNo,
        trees: &mut Trees,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
        kept: &mut Kept<'_>,
        earlier: &Earlier,
    ) -> Result<Reserve, Stop> {
        loop {
            if kept.version(commit) == 0 {
                // Nobody reads any more.
                cache.space().forget_kept();
            }
            let blocks = self.blocks(cache);
            let space = cache.space();
            let pieces = space.pieces() + space.freed().len();
            let freed = !space.freed().is_empty();
            let is_short = blocks < RESERVE_MIN;
            let may_fill = !self.exhausted && !self.taken.is_full();
            if freed && (pieces > PIECES_MAX || blocks > RESERVE_MAX) {
                self.put_away(Pile::Freed, commit, trees, cache, pins, kept)?;
            } else if !space.kept().is_empty() {
                match is_short {
                    false => self.put_away(Pile::Kept, commit, trees, cache, pins, kept)?,
                    true if may_fill => self.fill_up_beside(trees, cache, pins, kept, earlier)?,
                    true => kept.give_up(),
                }
            } else if is_short && may_fill {
                self.fill_up(RESERVE_TARGET, trees, cache, pins, kept, earlier)?;
            } else {
                return self.collect(cache).ok_or(Error::NoSpace.into());
            }
            pins.restart();
        }
    }

    /// Blocks the next reserve has so far.
    fn blocks(&self, cache: &mut Cache<'_>) -> u64 {
        let taken: u64 = self.taken.iter().map(Extent::len).sum();
        let freed: u64 = cache.space().freed().iter().map(|extent| extent.blocks).sum();
        cache.space().available() + freed + taken
    }

    /// Puts a list of extents of this pile into the tree of freed extents.
    fn put_away(
        &mut self,
        pile: Pile,
        commit: CommitNo,
        trees: &mut Trees,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
        kept: &mut Kept<'_>,
    ) -> Result<(), Stop> {
        let key = FreedKey { commit: commit.0.into(), part: self.lists.into() };
        let space = cache.space();
        let piled = match pile {
            Pile::Freed => space.freed().len(),
            Pile::Kept => space.kept().len(),
        };
        let count = piled.min(LIST_MAX);
        let mut plan = cache.plan();
        let bytes = count * size_of::<Extent>();
        trees.freed.plan_insert(key.as_bytes(), bytes, &mut plan, cache, pins)?;
        let mut update = match (cache.reserve_closing(&plan, pins), pile) {
            // Readers come last.
            (Err(Stop::Fail(Error::NoSpace)), Pile::Kept) => {
                kept.give_up();
                return Ok(());
            }
            (reserved, Pile::Freed | Pile::Kept) => reserved?,
        };
        let mut extents: Vec<Extent, LIST_MAX> = Vec::new();
        while extents.len() < count {
            let space = cache.space();
            let extent = match pile {
                Pile::Freed => space.pop_freed(),
                Pile::Kept => space.pop_kept(),
            };
            let extent = extent.expect("counted");
            extents.push(Extent::new(extent.blkno, extent.blocks)).expect("counted");
        }
        extents.reverse();
        self.lists += 1;
        trees.freed.put(key.as_bytes(), extents.as_bytes(), &mut update, cache);
        match pile {
            Pile::Freed => {}
            Pile::Kept => kept.note(&key, &extents),
        }
        Ok(())
    }

    /// Fills up the reserve because what is kept isn't part of it; or, if that can't be, has it be
    /// part of it.
    fn fill_up_beside(
        &mut self,
        trees: &mut Trees,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
        kept: &mut Kept<'_>,
        earlier: &Earlier,
    ) -> Result<(), Stop> {
        match self.fill_up(RESERVE_TARGET, trees, cache, pins, kept, earlier) {
            Err(Stop::Fail(Error::NoSpace)) => kept.give_up(),
            filled => drop(filled?),
        }
        Ok(())
    }

    /// Takes an extent for the next commit: a free one of at most this many blocks, one of what
    /// earlier leaders might have written who are gone, or one that was freed by an earlier commit.
    /// If nothing else is free, nothing is kept any more.
    pub fn fill_up(
        &mut self,
        blocks: u64,
        trees: &mut Trees,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
        kept: &mut Kept<'_>,
        earlier: &Earlier,
    ) -> Result<Option<Extent>, Stop> {
        let taken = match trees.free.find(blocks, cache, pins)? {
            Some(whole) => {
                let part = Extent::new(whole.start(), whole.len().min(blocks));
                let mut plan = cache.plan();
                let take = trees.free.plan_take(whole, part, &mut plan, cache, pins)?;
                let mut update = cache.reserve_closing(&plan, pins)?;
                Some(trees.free.take(take, &mut update, cache))
            }
            None => match take_quarantined(earlier, trees, cache, pins)? {
                Some(extent) => Some(extent),
                None => {
                    kept.give_up();
                    take_freed(trees, cache, pins)?
                }
            },
        };
        match taken {
            Some(extent) => self.taken.push(extent).expect("asked only while there is room"),
            None => self.exhausted = true,
        }
        Ok(taken)
    }

    /// Empties the commit's space into the next reserve. None: there are more pieces than fit,
    /// which takes a volume so full and so fragmented that none could be put away.
    fn collect(&mut self, cache: &mut Cache<'_>) -> Option<Reserve> {
        let mut reserve = Reserve::new();
        let space = cache.space();
        let here = |extent: SpaceExtent| Extent::new(extent.blkno, extent.blocks);
        while let Some(extent) = space.pop_unused() {
            reserve.push(here(extent)).ok()?;
        }
        while let Some(extent) = space.pop_freed() {
            reserve.push(here(extent)).ok()?;
        }
        reserve.extend_from_slice(&self.taken).ok()?;
        reserve.sort_unstable_by_key(|extent| extent.start());
        join(&mut reserve);
        Some(reserve)
    }
}

/// Takes the last extent of the oldest list of freed extents. None: there are no lists.
fn take_freed(
    trees: &mut Trees,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<Option<Extent>, Stop> {
    let Some(item) = trees.freed.first(cache, pins)? else { return Ok(None) };
    let leaf = item.leaf;
    let corrupt = |what| Error::Corrupt { blkno: leaf, what };
    let key = *FreedKey::ref_from_bytes(item.key).map_err(|_| corrupt(Corruption::Bounds))?;
    let extents = list(item.value).map_err(corrupt)?;
    let extents = Vec::from_slice(extents).expect("a list is bounded");
    take_last(&mut trees.freed, key.as_bytes(), &extents, cache, pins).map(Some)
}

/// Takes the last extent of the first list of what earlier leaders might have written who are gone.
/// None: there are no such lists.
fn take_quarantined(
    earlier: &Earlier,
    trees: &mut Trees,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<Option<Extent>, Stop> {
    if earlier.gone.acting().is_none() {
        return Ok(None);
    }
    let kind = OwnerKind::Round as u8;
    let mut from = QuarantineKey { kind, owner: 0.into(), part: 0.into() };
    let mark = pins.mark();
    loop {
        let item = trees.quarantine.next(from.as_bytes(), cache, pins)?;
        let Some(item) = item else { return Ok(None) };
        let leaf = item.leaf;
        let corrupt = |what| Error::Corrupt { blkno: leaf, what };
        let key = QuarantineKey::ref_from_bytes(item.key);
        let key = *key.map_err(|_| corrupt(Corruption::Bounds))?;
        let round = key.owner.get();
        if key.kind != kind || round >= earlier.than {
            return Ok(None);
        }
        if earlier.gone.has(round) {
            let extents = list(item.value).map_err(corrupt)?;
            let extents = Vec::from_slice(extents).expect("a list is bounded");
            let tree = &mut trees.quarantine;
            return take_last(tree, key.as_bytes(), &extents, cache, pins).map(Some);
        }
        from = QuarantineKey { owner: (round + 1).into(), part: 0.into(), ..key };
        pins.drop_to(mark);
    }
}

/// Takes the last of these extents, which this tree has at this key.
fn take_last(
    tree: &mut Tree,
    key: &[u8],
    extents: &Vec<Extent, LIST_MAX>,
    cache: &mut Cache<'_>,
    pins: &mut Pins<'_>,
) -> Result<Extent, Stop> {
    let (last, rest) = extents.split_last().expect("a list is not empty");
    let mut plan = cache.plan();
    match rest.is_empty() {
        true => tree.plan_delete(key, &mut plan, cache, pins)?,
        false => tree.plan_replace(key, size_of_val(rest), &mut plan, cache, pins)?,
    }
    let mut update = cache.reserve_closing(&plan, pins)?;
    match rest.is_empty() {
        true => tree.delete(key, &mut update, cache),
        false => tree.put(key, rest.as_bytes(), &mut update, cache),
    }
    Ok(*last)
}

/// Joins ascending extents that touch.
fn join(extents: &mut Reserve) {
    let mut kept = 0;
    for index in 1..extents.len() {
        let next = extents[index];
        if extents[kept].end() == next.start() {
            let len = extents[kept].len() + next.len();
            extents[kept] = Extent::new(extents[kept].start(), len);
        } else {
            kept += 1;
            extents[kept] = next;
        }
    }
    extents.truncate(kept + 1);
}

/// The block numbers of a reserve that a commit is given to write to.
pub fn give(reserve: &[Extent], cache: &mut Cache<'_>) -> Result<(), Error> {
    cache.space().clear();
    for extent in reserve {
        let extent = SpaceExtent { blkno: BlockNo(extent.blkno.get()), blocks: extent.len() };
        // The cache's limits have room for all of a root's extents.
        cache.space().give(extent).map_err(|_| Error::NoSpace)?;
    }
    Ok(())
}
