//! One run, checked block by block: its filter, then its index, then its items against both.
//!
//! # Invariants
//!
//! * A block that fails is told once; what would have been compared with it is not compared.
//! * What stops for a block has counted nothing twice: the cursor moves on item by item.
//!
//! What this module deliberately doesn't know: what other runs hold.

use super::finding::{Id, Log, Wrong};
use super::runs::Run;
use crate::block::{Cache, Pins};
use crate::error::{Corruption, Error, Stop};
use crate::format::BlockNo;
use crate::format::block::{Magic, Volume};
use crate::format::item::{
    Dirent, FileExtent, Inode, Mapping, VALUE_BYTES_MAX, XattrHead, parse_empty,
};
use crate::format::key::{ItemKey, KeyBytes};
use crate::format::records::{ManifestEntry, ZoneRange};
use crate::format::root::Extent;
use crate::format::run::{
    Filter, INDEX_KEYS, Index, Items, RunBlock, SEGMENT_BLOCKS, Value, filter_block, filter_hash,
};

/// What blocks of a run have failed: one bit each.
type Bad = [u64; SEGMENT_BLOCKS as usize / 64];

/// A run being checked.
pub(super) struct RunCheck {
    entry: ManifestEntry,
    /// Blocks done, in the order filter, index, items.
    done: u32,
    /// The next item of the block.
    item: u16,
    last: Option<KeyBytes>,
    items: u32,
    tombstones: u32,
    zones: [ZoneRange; 4],
    bad: Bad,
    /// All items could be read, and are where the manifest and their order say.
    is_whole: bool,
}

/// What checking a run goes by.
pub(super) struct Ground<'a> {
    pub(super) volume: &'a Volume,
    pub(super) volume_blocks: u64,
    pub(super) name_key: &'a [u8; 16],
}

/// What has come of a step.
pub(super) enum Progress {
    /// There is more to be done.
    More,
    /// The run is done: whether all its items could be read, and how many were.
    Done { whole: bool, items: u32 },
}

impl RunCheck {
    /// Of a run whose entry was checked. Its blocks are read ahead.
    pub(super) fn new(run: &Run, cache: &mut Cache<'_>) -> RunCheck {
        let items = u32::from(run.entry.item_blocks.get());
        let indexes = u32::from(run.entry.index_blocks.get());
        for index in 0..run.entry.blocks() as u32 {
            let magic = match index {
                index if index < items => Magic::RunItems,
                index if index < items + indexes => Magic::RunIndex,
                _ => Magic::RunFilter,
            };
            cache.hint_run(&run.block(index), magic);
        }
        RunCheck {
            entry: run.entry,
            done: 0,
            item: 0,
            last: None,
            items: 0,
            tombstones: 0,
            zones: [ZoneRange::EMPTY; 4],
            bad: [0; SEGMENT_BLOCKS as usize / 64],
            is_whole: true,
        }
    }

    fn at(&self, index: u32) -> RunBlock {
        let blkno = self.entry.extent().start().plus(u64::from(index));
        RunBlock { blkno, run: self.entry.run(), index }
    }

    fn is_bad(&self, index: u32) -> bool {
        self.bad[(index / 64) as usize] & 1 << (index % 64) != 0
    }

    fn set_bad(&mut self, index: u32) {
        self.bad[(index / 64) as usize] |= 1 << (index % 64);
    }

    /// Goes on: a block, or an item.
    pub(super) fn step(
        &mut self,
        ground: &Ground<'_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
        log: &mut Log,
    ) -> Result<Progress, Stop> {
        let items = u32::from(self.entry.item_blocks.get());
        let indexes = u32::from(self.entry.index_blocks.get());
        let filters = u32::from(self.entry.filter_blocks.get());
        if self.done < filters {
            let (at, volume) = (self.at(items + indexes + self.done), ground.volume);
            self.check_block(Id::RunFilter, Magic::RunFilter, &at, cache, pins, log, |block| {
                Filter::open(block, volume, &at).map(drop)
            })?;
            self.done += 1;
            return Ok(Progress::More);
        }
        if self.done < filters + indexes {
            let number = self.done - filters;
            let (at, volume) = (self.at(items + number), ground.volume);
            let keys = (items as usize - number as usize * INDEX_KEYS).min(INDEX_KEYS);
            self.check_block(Id::RunIndex, Magic::RunIndex, &at, cache, pins, log, |block| {
                match Index::open(block, volume, &at)?.keys().len() == keys {
                    true => Ok(()),
                    false => Err(Corruption::Mismatch),
                }
            })?;
            self.done += 1;
            return Ok(Progress::More);
        }
        let number = self.done - filters - indexes;
        if number < items {
            return self.step_items(number, ground, cache, pins, log);
        }
        let mut whole = !(0..items).any(|index| self.is_bad(index));
        let counted = (self.items, self.tombstones);
        let told = (self.entry.items.get(), self.entry.tombstones.get());
        if whole && (counted != told || self.zones != self.entry.zones) {
            log.put(Id::Manifest, self.entry.extent(), Wrong::MISMATCH);
            whole = self.zones == self.entry.zones;
        }
        Ok(Progress::Done { whole: whole && self.is_whole, items: self.items })
    }

    /// Obtains a block and opens it as what it is to be.
    #[expect(clippy::too_many_arguments, reason = "a block, and all that it is held against")]
    fn check_block(
        &mut self,
        id: Id,
        magic: Magic,
        at: &RunBlock,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
        log: &mut Log,
        open: impl FnOnce(&crate::format::Block) -> Result<(), Corruption>,
    ) -> Result<(), Stop> {
        let verdict = match cache.get_run(at, magic, pins) {
            Err(Stop::Wait(wait)) => return Err(wait.into()),
            Err(Stop::Fail(error)) => Err(error),
            Ok(frame) => {
                open(cache.block(frame)).map_err(|what| Error::Corrupt { blkno: at.blkno, what })
            }
        };
        if let Err(error) = verdict {
            log.put(id, Extent::new(at.blkno, 1), error);
            self.set_bad(at.index);
        }
        Ok(())
    }

    fn step_items(
        &mut self,
        number: u32,
        ground: &Ground<'_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
        log: &mut Log,
    ) -> Result<Progress, Stop> {
        let (at, volume) = (self.at(number), ground.volume);
        if self.item == 0 {
            self.check_block(Id::RunItems, Magic::RunItems, &at, cache, pins, log, |block| {
                Items::open(block, volume, &at).map(drop)
            })?;
        }
        if self.is_bad(number) {
            self.next_block();
            return Ok(Progress::More);
        }
        let frame = cache.get_run(&at, Magic::RunItems, pins)?;
        let key = *Items::opened(cache.block(frame)).get(self.item).0;
        let filtered = self.is_filtered(&key, ground, cache, pins)?;
        let indexed = self.item > 0 || self.is_indexed(number, &key, cache, pins)?;
        // Nothing stops from here on.
        let extent = Extent::new(at.blkno, 1);
        if !filtered {
            log.put(Id::RunFilter, extent, Wrong::MISMATCH);
        }
        if !indexed {
            log.put(Id::RunIndex, extent, Wrong::MISMATCH);
        }
        if self.last.is_some_and(|last| last >= key) {
            log.put(Id::RunItems, extent, Corruption::Order);
            self.is_whole = false;
        }
        self.last = Some(key);
        let items = Items::opened(cache.block(frame));
        let (_, value) = items.get(self.item);
        self.count(&key, &value);
        let parsed = parse(&key, &value);
        self.item += 1;
        if self.item == items.count() {
            self.next_block();
        }
        let parsed = parsed.and_then(|file| match file {
            Some(file) if !file.is_inside(ground.volume_blocks) => Err(Corruption::Bounds),
            Some(_) | None => Ok(()),
        });
        if let Err(what) = parsed {
            log.put_item(Id::Item, (at.blkno, key.into()), what);
        }
        Ok(Progress::More)
    }

    fn next_block(&mut self) {
        (self.done, self.item) = (self.done + 1, 0);
    }

    fn count(&mut self, key: &KeyBytes, value: &Value<'_>) {
        self.items += 1;
        if *value == Value::Tombstone {
            self.tombstones += 1;
        }
        // A key of no zone is told where it is parsed.
        let zone = usize::from(key.zone).checked_sub(1).and_then(|zone| self.zones.get_mut(zone));
        if let Some(zone) = zone {
            zone.append(key);
        }
    }

    /// Whether the filter admits the key, as far as its filter block can be read.
    fn is_filtered(
        &self,
        key: &KeyBytes,
        ground: &Ground<'_>,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<bool, Stop> {
        let blocks = u32::from(self.entry.filter_blocks.get());
        if blocks == 0 {
            return Ok(true);
        }
        let hash = filter_hash(ground.name_key, key);
        let before = u32::from(self.entry.item_blocks.get() + self.entry.index_blocks.get());
        let index = before + filter_block(hash, blocks);
        if self.is_bad(index) {
            return Ok(true);
        }
        let frame = cache.get_run(&self.at(index), Magic::RunFilter, pins)?;
        Ok(Filter::opened(cache.block(frame)).may_contain(hash))
    }

    /// Whether the index has this first key of an item block, as far as it can be read.
    fn is_indexed(
        &self,
        number: u32,
        key: &KeyBytes,
        cache: &mut Cache<'_>,
        pins: &mut Pins<'_>,
    ) -> Result<bool, Stop> {
        let (block, slot) = (number / INDEX_KEYS as u32, number as usize % INDEX_KEYS);
        let index = u32::from(self.entry.item_blocks.get()) + block;
        if self.is_bad(index) {
            return Ok(true);
        }
        let frame = cache.get_run(&self.at(index), Magic::RunIndex, pins)?;
        Ok(Index::opened(cache.block(frame)).keys().get(slot) == Some(key))
    }
}

/// Checks all of an item that can be told from itself; the blocks of the device it refers to.
fn parse(key: &KeyBytes, value: &Value<'_>) -> Result<Option<Extent>, Corruption> {
    let item = ItemKey::parse(&(*key).into())?;
    let Value::Bytes(bytes) = value else { return Ok(None) };
    let part = |bytes: &[u8]| match bytes.is_empty() || bytes.len() > VALUE_BYTES_MAX {
        true => Err(Corruption::Bounds),
        false => Ok(()),
    };
    match item {
        ItemKey::MetaSeq { .. } | ItemKey::DataSeq { .. } | ItemKey::Orphan(_) => {
            parse_empty(bytes)?;
        }
        ItemKey::Inode(_) => drop(Inode::parse(bytes)?),
        ItemKey::Xattr { part: 0, .. } => drop(XattrHead::parse(bytes)?),
        ItemKey::Xattr { .. } | ItemKey::Symlink { .. } => part(bytes)?,
        ItemKey::Dirent { .. } | ItemKey::Readdir { .. } | ItemKey::Backref { .. } => {
            if !Dirent::parse(bytes)?.agrees(&item) {
                return Err(Corruption::Mismatch);
            }
        }
        ItemKey::Extent { last, .. } => {
            let file = FileExtent::parse(last, bytes)?;
            return Ok(device_extent(&file));
        }
    }
    Ok(None)
}

fn device_extent(file: &FileExtent) -> Option<Extent> {
    let at: BlockNo = match file.mapping {
        Mapping::Data(at) | Mapping::Reserved(at) | Mapping::OfflineReserved(at) => at,
        Mapping::Offline => return None,
    };
    Some(Extent::new(at, file.len))
}
