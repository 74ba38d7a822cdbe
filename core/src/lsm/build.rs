//! A run being built: items go in, in key order, and sealed blocks come out.
//!
//! ```text
//!   new --> push* <--> turn   -->   finish* --------------> entry
//!           items       a block      the last item block,    what the manifest
//!                       is full      then index and filter   is to say
//! ```
//!
//! # Invariants
//!
//! * Blocks come out in the order in which they stand on the device, each exactly once.
//! * The run never outgrows the extent it was given: an item is refused while there is still room
//!   for the index and filter blocks of what is in already.
//! * Memory is bounded by the caller's: one block for items at a time, the filter's blocks, and the
//!   first keys of at most a segment's item blocks.
//!
//! What this module deliberately doesn't know: where items come from, and how blocks are written.

use crate::arena::{Arena, ArenaFull};
use crate::format::block::Volume;
use crate::format::key::{KeyBytes, Zone};
use crate::format::records::ManifestEntry;
use crate::format::root::Extent;
use crate::format::run::{
    FILTER_ITEMS, FilterWriter, INDEX_KEYS, IndexWriter, ItemsWriter, RunBlock, SEGMENT_BLOCKS,
    Value, filter_block, filter_hash,
};
use crate::format::{Block, BlockNo, RunId};
use zerocopy::FromZeros;

/// Filter blocks of a run at the most: enough for as many items as fit a segment at their smallest.
pub const FILTER_BLOCKS_MAX: usize = 10;

/// Blocks of memory that a run being built holds at the most: its filter, and one for items.
pub const BLOCKS_HELD_MAX: usize = FILTER_BLOCKS_MAX + 1;

/// Memory for building one run at a time.
#[derive(Debug)]
pub struct BuildSpace<'m> {
    firsts: &'m mut [KeyBytes],
}

impl<'m> BuildSpace<'m> {
    /// Carves it.
    pub fn carve(arena: &mut Arena<'m>) -> Result<BuildSpace<'m>, ArenaFull> {
        Ok(BuildSpace { firsts: arena.slice(SEGMENT_BLOCKS as u32, |_| KeyBytes::ZERO)? })
    }
}

/// A block that is to be written.
#[derive(Debug)]
pub struct Sealed<'m> {
    /// Where to.
    pub blkno: BlockNo,
    /// Its bytes.
    pub block: &'m mut Block,
}

/// Why an item was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It needs a new block: give one to [`RunBuilder::turn`], then push again.
    Block,
    /// The run is full: finish it, and begin another with this item.
    Full,
}

/// A run being built.
pub struct RunBuilder<'m> {
    volume: Volume,
    filter_key: [u8; 16],
    extent: Extent,
    space: BuildSpace<'m>,
    items: Option<ItemsWriter<'m>>,
    filter: heapless::Vec<FilterWriter<'m>, FILTER_BLOCKS_MAX>,
    entry: ManifestEntry,
    index_written: u16,
    filter_written: u16,
}

/// Filter blocks for a run of about this many items.
#[must_use]
pub fn filter_blocks(items: u64) -> usize {
    let blocks = items.div_ceil(u64::from(FILTER_ITEMS));
    usize::try_from(blocks).unwrap_or(usize::MAX).clamp(1, FILTER_BLOCKS_MAX)
}

/// Blocks that are enough for a run of this many items and bytes, as counted by
/// [`item_bytes`](crate::format::run::item_bytes), if they make one run at all.
#[must_use]
pub fn blocks_for(items: u64, bytes: u64) -> Option<u64> {
    // The last item of a block may leave unused nearly what the largest one takes.
    let largest = crate::format::run::VALUE_BYTES_MAX as u64 + 31;
    let used_min = crate::format::run::ITEMS_BYTES as u64 - largest;
    let item_blocks = bytes.div_ceil(used_min).max(1);
    let index_blocks = item_blocks.div_ceil(INDEX_KEYS as u64);
    let blocks = item_blocks + index_blocks + filter_blocks(items) as u64;
    (blocks <= SEGMENT_BLOCKS).then_some(blocks)
}

impl<'m> RunBuilder<'m> {
    /// Begins a run in an extent of at most a segment, with as many filter blocks as are given: one
    /// to [`FILTER_BLOCKS_MAX`].
    pub fn new(
        volume: &Volume,
        filter_key: &[u8; 16],
        run: RunId,
        extent: Extent,
        space: BuildSpace<'m>,
        filter: impl IntoIterator<Item = &'m mut Block>,
    ) -> RunBuilder<'m> {
        let filter: heapless::Vec<_, FILTER_BLOCKS_MAX> =
            filter.into_iter().map(FilterWriter::new).collect();
        assert!(!filter.is_empty() && extent.len() <= SEGMENT_BLOCKS);
        let mut entry = ManifestEntry::new_zeroed();
        entry.run = run.into();
        entry.blkno = extent.blkno;
        entry.filter_blocks = (filter.len() as u16).into();
        RunBuilder {
            volume: *volume,
            filter_key: *filter_key,
            extent,
            space,
            items: None,
            filter,
            entry,
            index_written: 0,
            filter_written: 0,
        }
    }

    /// Appends an item whose key is greater than that of the one before.
    pub fn push(&mut self, key: &KeyBytes, value: &Value<'_>) -> Result<(), Refused> {
        let started = self.entry.item_blocks.get();
        match &mut self.items {
            Some(items) if items.fits(value) => items.push(key, value),
            Some(_) | None => {
                let blocks = blocks_with(started + 1, self.entry.filter_blocks.get());
                return Err(match blocks <= self.extent.len() {
                    true => Refused::Block,
                    false => Refused::Full,
                });
            }
        }
        self.count(key, value);
        Ok(())
    }

    fn count(&mut self, key: &KeyBytes, value: &Value<'_>) {
        let last = usize::from(self.entry.item_blocks.get() - 1);
        if self.space.firsts[last] == KeyBytes::ZERO {
            self.space.firsts[last] = *key;
        }
        let hash = filter_hash(&self.filter_key, key);
        let filter_at = filter_block(hash, self.filter.len() as u32);
        self.filter[filter_at as usize].insert(hash);
        self.entry.items += 1;
        if *value == Value::Tombstone {
            self.entry.tombstones += 1;
        }
        assert!((Zone::Index as u8..=Zone::Lock as u8).contains(&key.zone), "not an item's key");
        self.entry.zones[usize::from(key.zone - Zone::Index as u8)].append(key);
    }

    /// Starts the next item block in `fresh`, and gives the one before to be written.
    pub fn turn(&mut self, fresh: &'m mut Block) -> Option<Sealed<'m>> {
        let sealed = self.seal_items();
        let started = self.entry.item_blocks.get();
        self.space.firsts[usize::from(started)] = KeyBytes::ZERO;
        self.entry.item_blocks += 1;
        self.items = Some(ItemsWriter::new(fresh));
        sealed
    }

    fn seal_items(&mut self) -> Option<Sealed<'m>> {
        let items = self.items.take()?;
        let at = self.at(u32::from(self.entry.item_blocks.get()) - 1);
        Some(Sealed { blkno: at.blkno, block: items.seal(&self.volume, &at) })
    }

    fn at(&self, index: u32) -> RunBlock {
        let blkno = self.extent.start().plus(u64::from(index));
        RunBlock { blkno, run: self.entry.run(), index }
    }

    /// Gives the next block of what is left to be written: the last item block, then index blocks,
    /// which need memory, then filter blocks. None: that was all. Unused memory comes back.
    pub fn finish(&mut self, fresh: &'m mut Block) -> (Option<Sealed<'m>>, Option<&'m mut Block>) {
        if let Some(sealed) = self.seal_items() {
            return (Some(sealed), Some(fresh));
        }
        let items = self.entry.item_blocks.get();
        let index_blocks = items.div_ceil(INDEX_KEYS as u16);
        self.entry.index_blocks = index_blocks.into();
        if self.index_written < index_blocks {
            let from = usize::from(self.index_written) * INDEX_KEYS;
            let keys = &self.space.firsts[from..usize::from(items)];
            let mut index = IndexWriter::new(fresh);
            keys.iter().take(INDEX_KEYS).for_each(|key| index.push(key));
            let at = self.at(u32::from(items) + u32::from(self.index_written));
            self.index_written += 1;
            return (Some(Sealed { blkno: at.blkno, block: index.seal(&self.volume, &at) }), None);
        }
        let before = u32::from(items) + u32::from(index_blocks);
        if self.filter.is_empty() {
            return (None, Some(fresh));
        }
        let at = self.at(before + u32::from(self.filter_written));
        self.filter_written += 1;
        let block = self.filter.remove(0).seal(&self.volume, &at);
        (Some(Sealed { blkno: at.blkno, block }), Some(fresh))
    }

    /// Gives up: all the memory comes back.
    #[must_use]
    pub fn abandon(self) -> (BuildSpace<'m>, heapless::Vec<&'m mut Block, BLOCKS_HELD_MAX>) {
        let mut blocks: heapless::Vec<_, BLOCKS_HELD_MAX> = heapless::Vec::new();
        blocks.extend(self.filter.into_iter().map(FilterWriter::abandon));
        blocks.extend(self.items.map(ItemsWriter::abandon));
        (self.space, blocks)
    }

    /// What the manifest is to say of the run, once [`finish`](Self::finish) has given its last
    /// block, and the memory for the next run.
    #[must_use]
    pub fn entry(self) -> (ManifestEntry, BuildSpace<'m>) {
        assert!(self.filter.is_empty() && self.items.is_none(), "not finished");
        (self.entry, self.space)
    }
}

fn blocks_with(item_blocks: u16, filter_blocks: u16) -> u64 {
    let index_blocks = item_blocks.div_ceil(INDEX_KEYS as u16);
    u64::from(item_blocks) + u64::from(index_blocks) + u64::from(filter_blocks)
}

#[cfg(test)]
mod tests;
