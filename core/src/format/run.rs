//! A run: items in key order, written once into blocks that follow each other, and never changed.
//!
//! ```text
//!   item blocks ...           index blocks ...           filter blocks ...
//!   items in key order        first key of each          which (zone, first, ...) may be here
//!                             item block
//! ```
//!
//! A run in level 0 is as small as what a transaction wrote; in the levels below runs are
//! *segments* of at most [`SEGMENT_BLOCKS`]. The manifest says where a run stands and how many
//! blocks of each kind it has, so a lookup reads one filter block, one index block and one item
//! block.
//!
//! # Invariants
//!
//! * Every block's `seq` is the run's number, and each holds its index in the run: a block of
//!   another run, or another block of this one, is told from the one looked for.
//! * Keys strictly ascend, in a block and from block to block. An item lies in one block.
//! * The key of index entry n is the first key of item block n.
//! * A filter never denies what is there: for each item it holds the bits of
//!   [`filter_hash`] of its key.
//!
//! What this module deliberately doesn't know: which runs there are, and what the items mean.

use super::block::{self, BlockHeader, Magic, Promise, Volume};
use super::key::{Key, KeyBytes, Zone};
use super::{BLOCK_BYTES, Block, BlockNo, RunId};
use crate::error::Corruption;
use crate::record;
use siphasher::sip::SipHasher13;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// Blocks of a segment: 1 MiB.
pub const SEGMENT_BLOCKS: u64 = 256;
/// Longest value of an item.
pub const VALUE_BYTES_MAX: usize = 512;

record! {
    /// First bytes of every block of a run.
    pub struct RunHeader [40] {
        /// `magic` is `ORri`, `ORrx` or `ORrf`, `seq` the run's number.
        header: BlockHeader,
        /// Which block of the run this is, counted from its start.
        index: U32,
        /// Items of an item block, keys of an index block, 0 in a filter block.
        count: U16,
        /// Zero.
        reserved: U16,
    }

    /// What stands before the value of an item.
    pub struct RunItemHeader [29] {
        /// The item's key.
        key: KeyBytes,
        /// Bytes of the value that follows; [`TOMBSTONE`]: there is none, the item is deleted.
        value_bytes: U16,
    }
}

/// Marks an item as deleted, in the place of its value's length.
pub const TOMBSTONE: u16 = u16::MAX;

/// Bytes of an item block that items and their offsets share.
pub const ITEMS_BYTES: usize = BLOCK_BYTES - size_of::<RunHeader>();
/// Keys of a full index block.
pub const INDEX_KEYS: usize = ITEMS_BYTES / size_of::<KeyBytes>();
/// Bits of a filter block.
pub const FILTER_BITS: u32 = ITEMS_BYTES as u32 * 8;
/// Bits of the filter an item sets.
pub const FILTER_PROBES: u32 = 6;
/// Items for which one filter block is made: ten bits for each, one lookup in a hundred is sent to
/// a run in vain.
pub const FILTER_ITEMS: u32 = FILTER_BITS / 10;

const OFFSET_BYTES: usize = size_of::<U16>();

/// What an item holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// Nothing: the item was deleted, and hides older ones of its key.
    Tombstone,
}

impl Value<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Value::Bytes(bytes) => bytes,
            Value::Tombstone => &[],
        }
    }

    fn length(&self) -> u16 {
        match self {
            Value::Bytes(bytes) => bytes.len() as u16,
            Value::Tombstone => TOMBSTONE,
        }
    }
}

/// Bytes an item takes of [`ITEMS_BYTES`], its offset included.
#[must_use]
pub fn item_bytes(value: &Value<'_>) -> usize {
    size_of::<RunItemHeader>() + value.bytes().len() + OFFSET_BYTES
}

/// An item block being filled: items from the front, their offsets from the back.
#[derive(Debug)]
pub struct ItemsWriter<'b> {
    block: &'b mut Block,
    bytes_used: usize,
    count: u16,
}

impl<'b> ItemsWriter<'b> {
    /// Starts an empty item block.
    pub fn new(block: &'b mut Block) -> ItemsWriter<'b> {
        block.0.fill(0);
        ItemsWriter { block, bytes_used: 0, count: 0 }
    }

    /// Whether an item with this value still fits.
    #[must_use]
    pub fn fits(&self, value: &Value<'_>) -> bool {
        self.bytes_used + item_bytes(value) <= ITEMS_BYTES
    }

    /// Appends an item that fits and whose key is greater than the last one's.
    pub fn push(&mut self, key: &KeyBytes, value: &Value<'_>) {
        assert!(self.fits(value) && value.bytes().len() <= VALUE_BYTES_MAX);
        let bytes_items = self.bytes_used - usize::from(self.count) * OFFSET_BYTES;
        let start = size_of::<RunHeader>() + bytes_items;
        let header = RunItemHeader { key: *key, value_bytes: value.length().into() };
        let value_start = start + size_of::<RunItemHeader>();
        self.block.0[start..value_start].copy_from_slice(header.as_bytes());
        self.block.0[value_start..][..value.bytes().len()].copy_from_slice(value.bytes());
        self.count += 1;
        let offset_at = offset_at(self.count - 1);
        self.block.0[offset_at..][..OFFSET_BYTES].copy_from_slice(&(start as u16).to_le_bytes());
        self.bytes_used += item_bytes(value);
    }

    /// Gives the block back, with nothing in it that means anything.
    #[must_use]
    pub fn abandon(self) -> &'b mut Block {
        self.block
    }

    /// Closes the block, which holds at least one item, and gives it back.
    pub fn seal(self, volume: &Volume, at: &RunBlock) -> &'b mut Block {
        assert!(self.count > 0);
        seal_run(self.block, volume, Magic::RunItems, at, self.count)
    }
}

/// Where the offset of item `index` stands in the block.
fn offset_at(index: u16) -> usize {
    BLOCK_BYTES - (usize::from(index) + 1) * OFFSET_BYTES
}

fn seal_run<'b>(
    block: &'b mut Block,
    volume: &Volume,
    magic: Magic,
    at: &RunBlock,
    count: u16,
) -> &'b mut Block {
    let (header, _) =
        RunHeader::mut_from_prefix(&mut block.0).expect("a block is larger than its header");
    header.index = at.index.into();
    header.count = count.into();
    block::seal(block, volume, magic, at.blkno, at.run.0);
    block
}

/// Where a block of a run is expected, and as which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunBlock {
    /// Address of the block.
    pub blkno: BlockNo,
    /// The run.
    pub run: RunId,
    /// Which of its blocks.
    pub index: u32,
}

fn open_run<'b>(
    block: &'b Block,
    volume: &Volume,
    magic: Magic,
    at: &RunBlock,
) -> Result<&'b RunHeader, Corruption> {
    let promise = Promise { magic, blkno: at.blkno, seq: Some(at.run.0) };
    block::open(block, volume, &promise)?;
    let (header, _) =
        RunHeader::ref_from_prefix(&block.0).expect("a block is larger than its header");
    if header.index.get() != at.index {
        return Err(Corruption::Misdirected);
    }
    if header.reserved.get() != 0 {
        return Err(Corruption::Reserved);
    }
    Ok(header)
}

/// A verified item block.
#[derive(Debug, Clone, Copy)]
pub struct Items<'b> {
    block: &'b Block,
    count: u16,
}

impl<'b> Items<'b> {
    /// Checks an item block: afterwards every item lies inside it and keys ascend.
    pub fn open(block: &'b Block, volume: &Volume, at: &RunBlock) -> Result<Items<'b>, Corruption> {
        let count = open_run(block, volume, Magic::RunItems, at)?.count.get();
        let offsets_bytes = usize::from(count) * OFFSET_BYTES;
        if count == 0 || offsets_bytes > ITEMS_BYTES {
            return Err(Corruption::Bounds);
        }
        let items_end = BLOCK_BYTES - offsets_bytes;
        let mut expected = size_of::<RunHeader>();
        let mut last: Option<&KeyBytes> = None;
        for index in 0..count {
            // Items stand back to back in the order of their offsets, so none overlap.
            let start = read_offset(block, index);
            let bytes = block.0.get(start..items_end).ok_or(Corruption::Bounds)?;
            let (header, rest) =
                RunItemHeader::ref_from_prefix(bytes).map_err(|_| Corruption::Bounds)?;
            let value_bytes = match header.value_bytes.get() {
                TOMBSTONE => 0,
                bytes => usize::from(bytes),
            };
            if start != expected || value_bytes > VALUE_BYTES_MAX || value_bytes > rest.len() {
                return Err(Corruption::Bounds);
            }
            if last.is_some_and(|last| *last >= header.key) {
                return Err(Corruption::Order);
            }
            last = Some(&header.key);
            expected = start + size_of::<RunItemHeader>() + value_bytes;
        }
        Ok(Items { block, count })
    }

    /// A block that [`open`](Self::open) has accepted, looked at once more.
    #[must_use]
    pub fn opened(block: &'b Block) -> Items<'b> {
        let (header, _) =
            RunHeader::ref_from_prefix(&block.0).expect("a block is larger than its header");
        Items { block, count: header.count.get() }
    }

    /// Items in the block; at least one.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Item number `index`, below [`count`](Self::count).
    #[must_use]
    pub fn get(&self, index: u16) -> (&'b KeyBytes, Value<'b>) {
        assert!(index < self.count);
        let bytes = &self.block.0[read_offset(self.block, index)..];
        let (header, rest) = RunItemHeader::ref_from_prefix(bytes).expect("checked when opened");
        let value = match header.value_bytes.get() {
            TOMBSTONE => Value::Tombstone,
            bytes => Value::Bytes(&rest[..usize::from(bytes)]),
        };
        (&header.key, value)
    }

    /// Number of the first item whose key is at least this one; `count` if there is none.
    #[must_use]
    pub fn position(&self, key: &KeyBytes) -> u16 {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = u16::midpoint(low, high);
            if self.get(middle).0 < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

fn read_offset(block: &Block, index: u16) -> usize {
    let at = offset_at(index);
    usize::from(u16::from_le_bytes([block.0[at], block.0[at + 1]]))
}

/// An index block being filled with the first keys of item blocks.
#[derive(Debug)]
pub struct IndexWriter<'b> {
    block: &'b mut Block,
    count: u16,
}

impl<'b> IndexWriter<'b> {
    /// Starts an empty index block.
    pub fn new(block: &'b mut Block) -> IndexWriter<'b> {
        block.0.fill(0);
        IndexWriter { block, count: 0 }
    }

    /// Whether it has [`INDEX_KEYS`] keys.
    #[must_use]
    pub fn is_full(&self) -> bool {
        usize::from(self.count) == INDEX_KEYS
    }

    /// Appends the first key of the next item block.
    pub fn push(&mut self, key: &KeyBytes) {
        assert!(!self.is_full());
        let keys = <[KeyBytes]>::mut_from_prefix_with_elems(
            &mut self.block.0[size_of::<RunHeader>()..],
            INDEX_KEYS,
        );
        keys.expect("keys have no alignment and fit").0[usize::from(self.count)] = *key;
        self.count += 1;
    }

    /// Closes the block, which holds at least one key, and gives it back.
    pub fn seal(self, volume: &Volume, at: &RunBlock) -> &'b mut Block {
        assert!(self.count > 0);
        seal_run(self.block, volume, Magic::RunIndex, at, self.count)
    }
}

/// A verified index block.
#[derive(Debug, Clone, Copy)]
pub struct Index<'b> {
    keys: &'b [KeyBytes],
}

impl<'b> Index<'b> {
    /// Checks an index block.
    pub fn open(block: &'b Block, volume: &Volume, at: &RunBlock) -> Result<Index<'b>, Corruption> {
        let count = open_run(block, volume, Magic::RunIndex, at)?.count.get();
        if count == 0 || usize::from(count) > INDEX_KEYS {
            return Err(Corruption::Bounds);
        }
        let index = Index::opened(block);
        if !index.keys.is_sorted_by(|a, b| a < b) {
            return Err(Corruption::Order);
        }
        Ok(index)
    }

    /// A block that [`open`](Self::open) has accepted, looked at once more.
    #[must_use]
    pub fn opened(block: &'b Block) -> Index<'b> {
        let (header, rest) =
            RunHeader::ref_from_prefix(&block.0).expect("a block is larger than its header");
        let keys = <[KeyBytes]>::ref_from_prefix_with_elems(rest, usize::from(header.count.get()));
        Index { keys: keys.expect("keys have no alignment, their count was checked").0 }
    }

    /// The first keys of the item blocks it stands for.
    #[must_use]
    pub fn keys(&self) -> &'b [KeyBytes] {
        self.keys
    }

    /// Which of its item blocks holds the key, if any does: the last that doesn't begin behind it.
    /// None: the key lies before all of them.
    #[must_use]
    pub fn child(&self, key: &KeyBytes) -> Option<usize> {
        self.keys.partition_point(|first| first <= key).checked_sub(1)
    }
}

/// What a filter knows of a key: what those who look for an item know of it before they have found
/// it. For directory entries and extended attributes that is the owner, the kind and the name's
/// hash; for all else zone and owner.
#[must_use]
pub fn filter_hash(secret: &[u8; 16], key: &KeyBytes) -> u64 {
    let key = Key::from(*key);
    let (kind, second) = if is_by_name(&key) { (key.kind, key.second) } else { (0, 0) };
    let mut bytes = [0; 18];
    bytes[0] = key.zone;
    bytes[1] = kind;
    bytes[2..10].copy_from_slice(&key.first.to_le_bytes());
    bytes[10..].copy_from_slice(&second.to_le_bytes());
    SipHasher13::new_with_key(secret).hash(&bytes)
}

/// Whether who looks for this item knows a name, and not yet whether anything has it.
#[must_use]
pub fn is_by_name(key: &Key) -> bool {
    key.zone == Zone::Fs as u8
        && (key.kind == super::key::FsKind::Dirent as u8
            || key.kind == super::key::FsKind::Xattr as u8)
}

/// Which of `blocks` filter blocks has the bits of this hash. The other bits of the hash choose
/// them.
#[must_use]
pub fn filter_block(hash: u64, blocks: u32) -> u32 {
    ((u128::from(hash) * u128::from(blocks)) >> 64) as u32
}

/// The bits of a filter block that belong to a hash (double hashing: Kirsch and Mitzenmacher,
/// 2006).
fn filter_bits(hash: u64) -> impl Iterator<Item = usize> {
    let first = hash as u32;
    // Odd, so that the probes differ; from bits that don't choose the block.
    let step = (hash >> 24) as u32 | 1;
    (0..FILTER_PROBES).map(move |probe| {
        let mixed = first.wrapping_add(probe.wrapping_mul(step));
        ((u64::from(mixed) * u64::from(FILTER_BITS)) >> 32) as usize
    })
}

/// A filter block being filled.
#[derive(Debug)]
pub struct FilterWriter<'b>(&'b mut Block);

impl<'b> FilterWriter<'b> {
    /// Starts an empty filter block.
    pub fn new(block: &'b mut Block) -> FilterWriter<'b> {
        block.0.fill(0);
        FilterWriter(block)
    }

    /// Adds an item.
    pub fn insert(&mut self, hash: u64) {
        for bit in filter_bits(hash) {
            self.0.0[size_of::<RunHeader>() + bit / 8] |= 1 << (bit % 8);
        }
    }

    /// Gives the block back, with nothing in it that means anything.
    #[must_use]
    pub fn abandon(self) -> &'b mut Block {
        self.0
    }

    /// Closes the block, and gives it back.
    pub fn seal(self, volume: &Volume, at: &RunBlock) -> &'b mut Block {
        seal_run(self.0, volume, Magic::RunFilter, at, 0)
    }
}

/// A verified filter block.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'b>(&'b Block);

impl<'b> Filter<'b> {
    /// Checks a filter block.
    pub fn open(
        block: &'b Block,
        volume: &Volume,
        at: &RunBlock,
    ) -> Result<Filter<'b>, Corruption> {
        match open_run(block, volume, Magic::RunFilter, at)?.count.get() {
            0 => Ok(Filter(block)),
            _ => Err(Corruption::Value),
        }
    }

    /// A block that [`open`](Self::open) has accepted, looked at once more.
    #[must_use]
    pub fn opened(block: &'b Block) -> Filter<'b> {
        Filter(block)
    }

    /// Whether an item of this hash may be in the run. No means that there is none.
    #[must_use]
    pub fn may_contain(&self, hash: u64) -> bool {
        filter_bits(hash)
            .all(|bit| self.0.0[size_of::<RunHeader>() + bit / 8] & 1 << (bit % 8) != 0)
    }
}

#[cfg(test)]
mod tests;
