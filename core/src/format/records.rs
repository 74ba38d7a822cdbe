//! What stands in the server's trees: free space, the manifest, clients, what is lent to them, and
//! space that has to wait.
//!
//! | tree | key | value | one entry is |
//! |---|---|---|---|
//! | free by block | [`BlockKey`] | [`Length`] | a free extent |
//! | free by length | [`LengthKey`] | none | the same extent |
//! | manifest | [`ManifestKey`] | [`ManifestEntry`] | a run |
//! | clients | [`ClientKey`] | [`ClientRecord`], or an answer's payload | a client, or what it was last answered |
//! | loans | [`LoanKey`] | a list | extents of one pool lent to a client |
//! | open sequence numbers | [`OpenSeqKey`] | [`OpenSeq`] | a client's open transaction |
//! | freed | [`FreedKey`] | a list | extents freed by a commit |
//! | quarantine | [`QuarantineKey`] | a list | extents somebody may still write |
//!
//! # Invariants
//!
//! * Keys are big-endian, so that comparing their bytes compares their fields in order.
//! * Free extents are keyed by their *last* block: a search from block b finds the extent that
//!   holds b, or the next one.
//! * All other extents stand in lists: 1 to [`LIST_MAX`] extents, ascending and disjoint. What
//!   belongs together then costs one entry for many extents, however scattered they are, so that
//!   recording it is bounded by how much it is and not by where it lies.
//! * Every block of the volume from block 256 on is in exactly one place: a free extent, a freed
//!   one, a loan, a quarantined extent, a reserve of the root, a btree node, a run, or a file's
//!   extent.
//!
//! What this module deliberately doesn't know: how trees work.

use super::btree::VALUE_BYTES_MAX;
use super::key::KeyBytes;
use super::root::Extent;
use super::run::{INDEX_KEYS, SEGMENT_BLOCKS};
use super::{BlockNo, ClientId, RunId};
use crate::error::Corruption;
use crate::record;
use zerocopy::FromBytes;
use zerocopy::big_endian::{U16 as BigU16, U32 as BigU32, U64 as BigU64};
use zerocopy::little_endian::{U16, U32, U64};

record! {
    /// Key of a free extent by address.
    pub struct BlockKey [8] {
        /// Its last block.
        last: BigU64,
    }

    /// Key of a free extent by length.
    pub struct LengthKey [16] {
        /// How many blocks it has.
        blocks: BigU64,
        /// Its last block.
        last: BigU64,
    }

    /// How long an extent is whose last block stands in the key.
    pub struct Length [8] {
        /// Blocks.
        count: U64,
    }

    /// Key of a run in the manifest.
    pub struct ManifestKey [36] {
        /// 0 for what clients wrote; greater ones hold what was merged.
        level: u8,
        /// Its least key.
        first: KeyBytes,
        /// Which of two runs in level 0 is newer: the greater. Given by the server when it records
        /// a run.
        order: BigU64,
    }

    /// A run.
    pub struct ManifestEntry [248] {
        /// Its number.
        run: U64,
        /// Its first block.
        blkno: U64,
        /// Items in it, tombstones included.
        items: U32,
        /// How many of them are tombstones.
        tombstones: U32,
        /// Blocks of items.
        item_blocks: U16,
        /// Blocks of its index.
        index_blocks: U16,
        /// Blocks of its filter.
        filter_blocks: U16,
        /// Zero.
        reserved: U16,
        /// Its least and greatest key in each zone: index, private, fs and lock. Both zero where it
        /// has none.
        zones: [ZoneRange; 4],
    }

    /// The keys of a run within a zone.
    pub struct ZoneRange [54] {
        /// The least.
        first: KeyBytes,
        /// The greatest.
        last: KeyBytes,
    }

    /// Key of what is known of a client.
    pub struct ClientKey [9] {
        /// The client.
        client: BigU64,
        /// A [`ClientPart`].
        part: u8,
    }

    /// A client that is mounted.
    pub struct ClientRecord [128] {
        /// Drawn by the mount before its first greeting, so that a repeated one finds this record.
        nonce: [u8; 16],
        /// Name of the host, UTF-8, zero-padded: for people.
        name: [u8; 48],
        /// The host, the same after a reboot; 0 if that means nothing.
        host_id: [u8; 16],
        /// What the host calls its present boot: a client of an earlier one is gone.
        boot_id: [u8; 16],
        /// The transaction whose answer is kept; 0: none yet.
        transaction: U64,
        /// The loan request whose answer is kept; 0: none yet.
        loan: U64,
        /// A [`ClientState`].
        state: u8,
        /// Bit 0: mounted read-only. Bit 1: a voter. Bit 2: evicted, and what it may still write in
        /// place is not waited for any more.
        flags: u8,
        /// Zero.
        reserved: [u8; 14],
    }

    /// Key of a list of extents that are lent.
    pub struct LoanKey [11] {
        /// To whom.
        client: BigU64,
        /// What they are extents of: a [`Pool`].
        pool: u8,
        /// Counts the lists of this client and pool; for [`Pool::Compaction`] it is 0 or 1, of
        /// which each has its list or none.
        part: BigU16,
    }

    /// Key of an open transaction.
    pub struct OpenSeqKey [16] {
        /// Its number.
        seq: BigU64,
        /// Whose it is.
        client: BigU64,
    }

    /// An open transaction.
    pub struct OpenSeq [8] {
        /// What its client has changed, and is not durable, bears this number or a later one.
        floor: U64,
    }

    /// Key of a list of extents that were freed.
    pub struct FreedKey [12] {
        /// The commit that freed them.
        commit: BigU64,
        /// Counts the lists of this commit.
        part: BigU32,
    }

    /// Key of a list of quarantined extents.
    pub struct QuarantineKey [11] {
        /// What kind of owner must be proven gone: an [`OwnerKind`].
        kind: u8,
        /// Which one: a round, or a client.
        owner: BigU64,
        /// Counts the lists of this owner.
        part: BigU16,
    }
}

/// Extents in a list at the most: as many as fit the value of a tree's item.
pub const LIST_MAX: usize = VALUE_BYTES_MAX / size_of::<Extent>();

/// Which record of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ClientPart {
    /// The [`ClientRecord`].
    Client = 0,
    /// Payload of the answer to its last transaction.
    TransactionAnswer = 1,
    /// Payload of the answer to its last loan request.
    LoanAnswer = 2,
}

/// How a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ClientState {
    /// It is mounted.
    Mounted = 1,
    /// It has said farewell; what it was lent is being taken back.
    Leaving = 2,
    /// It was evicted; what it was lent is quarantined until it is proven gone.
    Evicted = 3,
}

/// What can be lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Pool {
    /// Blocks for file data.
    Data = 1,
    /// Blocks for runs.
    Runs = 2,
    /// Inode numbers.
    Inodes = 3,
    /// Run numbers.
    RunIds = 4,
    /// Blocks for what a compaction makes, a list for each.
    Compaction = 5,
}

/// Who must be proven gone before quarantined space can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum OwnerKind {
    /// The leader of a round, if there was one.
    Round = 1,
    /// A client.
    Client = 2,
}

macro_rules! parse_number {
    ($( $name:ident { $($variant:ident),* } )*) => { $(
        impl $name {
            /// What this number stands for, if for anything.
            pub fn parse(number: u8) -> Result<$name, Corruption> {
                $( if number == $name::$variant as u8 { return Ok($name::$variant); } )*
                Err(Corruption::Value)
            }
        }
    )* };
}

parse_number! {
    ClientPart { Client, TransactionAnswer, LoanAnswer }
    ClientState { Mounted, Leaving, Evicted }
    Pool { Data, Runs, Inodes, RunIds, Compaction }
    OwnerKind { Round, Client }
}

/// The extent whose last block is `last` and which has `count` blocks, if there is one in a volume
/// of `blocks` blocks.
pub fn extent(last: BigU64, count: &Length, blocks: u64) -> Result<Extent, Corruption> {
    let start = last.get().checked_sub(count.count.get()).and_then(|before| before.checked_add(1));
    let extent = Extent::new(BlockNo(start.ok_or(Corruption::Bounds)?), count.count.get());
    if extent.is_inside(blocks) { Ok(extent) } else { Err(Corruption::Bounds) }
}

/// The extents of a list, if the value of an item is one.
pub fn list(value: &[u8]) -> Result<&[Extent], Corruption> {
    let extents = <[Extent]>::ref_from_bytes(value).map_err(|_| Corruption::Bounds)?;
    if extents.is_empty() || extents.len() > LIST_MAX {
        return Err(Corruption::Bounds);
    }
    if extents.iter().any(|extent| extent.is_empty() || extent.checked_end().is_none()) {
        return Err(Corruption::Value);
    }
    match extents.is_sorted_by(|a, b| a.end() <= b.start()) {
        true => Ok(extents),
        false => Err(Corruption::Order),
    }
}

impl Length {
    /// This many.
    #[must_use]
    pub fn new(count: u64) -> Length {
        Length { count: count.into() }
    }
}

impl BlockKey {
    /// The key of an extent.
    #[must_use]
    pub fn of(extent: &Extent) -> BlockKey {
        BlockKey::at(extent.last())
    }

    /// Where a search begins for the extent that holds this block, or the next one.
    #[must_use]
    pub fn at(blkno: BlockNo) -> BlockKey {
        BlockKey { last: blkno.0.into() }
    }
}

impl LengthKey {
    /// The key of an extent.
    #[must_use]
    pub fn of(extent: &Extent) -> LengthKey {
        LengthKey { blocks: extent.len().into(), last: extent.last().0.into() }
    }

    /// Where a search begins for the shortest extent of at least this length.
    #[must_use]
    pub fn at_least(blocks: u64) -> LengthKey {
        LengthKey { blocks: blocks.into(), last: 0.into() }
    }

    /// The extent of this key, if it lies in a volume of `blocks` blocks.
    pub fn extent(&self, blocks: u64) -> Result<Extent, Corruption> {
        extent(self.last, &Length::new(self.blocks.get()), blocks)
    }
}

impl ClientKey {
    /// The key of one of a client's records.
    #[must_use]
    pub fn new(client: ClientId, part: ClientPart) -> ClientKey {
        ClientKey { client: client.0.into(), part: part as u8 }
    }
}

impl ClientRecord {
    /// In `flags`: what an evicted client may still write in place is not waited for any more.
    pub const CALM: u8 = 4;
}

impl ManifestEntry {
    /// Blocks of the run.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        let parts = [self.item_blocks, self.index_blocks, self.filter_blocks];
        parts.iter().map(|part| u64::from(part.get())).sum()
    }

    /// Where the run stands.
    #[must_use]
    pub fn extent(&self) -> Extent {
        Extent::new(BlockNo(self.blkno.get()), self.blocks())
    }

    /// The run's number.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.run.into()
    }

    /// The run's least and greatest key of all zones.
    #[must_use]
    pub fn range(&self) -> Option<(KeyBytes, KeyBytes)> {
        let mut used = self.zones.iter().filter(|zone| !zone.is_empty());
        let first = used.next()?;
        Some((first.first, used.next_back().unwrap_or(first).last))
    }

    /// Checks that this can be a run of a volume of `blocks` blocks.
    pub fn check(&self, blocks: u64) -> Result<(), Corruption> {
        let items = usize::from(self.item_blocks.get());
        if self.reserved.get() != 0 {
            return Err(Corruption::Reserved);
        }
        if self.run().0 == 0
            || items == 0
            || usize::from(self.index_blocks.get()) != items.div_ceil(INDEX_KEYS)
            || self.blocks() > SEGMENT_BLOCKS
            || self.tombstones > self.items
            || self.items.get() < u32::from(self.item_blocks.get())
        {
            return Err(Corruption::Value);
        }
        if !self.extent().is_inside(blocks) {
            return Err(Corruption::Bounds);
        }
        let mut zone_numbers = 1..;
        let mut in_order = |zone: &ZoneRange| {
            let number = zone_numbers.next();
            zone.is_empty()
                || (zone.first <= zone.last
                    && Some(zone.first.zone) == number
                    && Some(zone.last.zone) == number)
        };
        if self.zones.iter().all(&mut in_order) && self.range().is_some() {
            Ok(())
        } else {
            Err(Corruption::Order)
        }
    }
}

impl ZoneRange {
    /// No keys.
    pub const EMPTY: ZoneRange = ZoneRange { first: KeyBytes::ZERO, last: KeyBytes::ZERO };

    /// Whether there are no keys in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // Most aren't, and show it in the first byte.
        self.first.zone == 0 && *self == ZoneRange::EMPTY
    }

    /// Widens the range so that it has this key, which is greater than all in it.
    pub fn append(&mut self, key: &KeyBytes) {
        if self.is_empty() {
            self.first = *key;
        }
        self.last = *key;
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockKey, LIST_MAX, LengthKey, ManifestEntry, ZoneRange, extent, list};
    use crate::error::Corruption;
    use crate::format::key::{Key, KeyBytes};
    use crate::format::root::Extent;
    use crate::format::{BlockNo, Ino};
    use zerocopy::{FromZeros, IntoBytes};

    const BLOCKS: u64 = 1 << 16;

    #[test]
    fn a_list_is_ascending_and_disjoint() {
        let extent = |start, blocks| Extent::new(BlockNo(start), blocks);
        let check = |extents: &[Extent]| list(extents.as_bytes()).map(|_| ());
        assert_eq!(check(&[extent(5, 2), extent(7, 1), extent(90, 100)]), Ok(()));
        assert_eq!(check(&[extent(5, 2), extent(6, 1)]), Err(Corruption::Order));
        assert_eq!(check(&[extent(9, 2), extent(6, 1)]), Err(Corruption::Order));
        assert_eq!(check(&[extent(9, 0)]), Err(Corruption::Value));
        assert_eq!(check(&[extent(u64::MAX, 2)]), Err(Corruption::Value));
        assert_eq!(check(&[]), Err(Corruption::Bounds));
        assert_eq!(check(&[extent(9, 1); LIST_MAX + 1]), Err(Corruption::Bounds));
        assert_eq!(list(&[0; 17]).map(|_| ()), Err(Corruption::Bounds));
    }

    #[test]
    fn an_extent_survives_its_keys() {
        let here = Extent::new(BlockNo(256), 300);
        let key = LengthKey::of(&here);
        assert_eq!(key.extent(BLOCKS), Ok(here));
        let length = super::Length::new(300);
        assert_eq!(extent(BlockKey::of(&here).last, &length, BLOCKS), Ok(here));
        assert_eq!(extent(300.into(), &length, BLOCKS), Err(Corruption::Bounds));
        assert_eq!(extent(5.into(), &length, BLOCKS), Err(Corruption::Bounds));
        assert_eq!(extent(u64::MAX.into(), &length, BLOCKS), Err(Corruption::Bounds));
        let none = super::Length::new(0);
        assert_eq!(extent(u64::MAX.into(), &none, BLOCKS), Err(Corruption::Bounds));
    }

    fn run() -> ManifestEntry {
        let mut entry = ManifestEntry::new_zeroed();
        entry.run = 1.into();
        entry.blkno = 1000.into();
        entry.items = 400.into();
        entry.item_blocks = 151.into();
        entry.index_blocks = 2.into();
        entry.filter_blocks = 1.into();
        entry.zones[2].append(&KeyBytes::from(Key::inode(Ino(1))));
        entry.zones[2].append(&KeyBytes::from(Key::inode(Ino(9))));
        entry
    }

    #[test]
    fn only_what_can_be_a_run_is_one() {
        let altered = |change: fn(&mut ManifestEntry)| {
            let mut entry = run();
            change(&mut entry);
            entry.check(BLOCKS)
        };
        assert_eq!(altered(|_| ()), Ok(()));
        assert_eq!(run().extent(), Extent::new(BlockNo(1000), 154));
        assert_eq!(run().range().unwrap().1, KeyBytes::from(Key::inode(Ino(9))));
        assert_eq!(altered(|e| e.run = 0.into()), Err(Corruption::Value));
        assert_eq!(altered(|e| e.index_blocks = 1.into()), Err(Corruption::Value));
        assert_eq!(altered(|e| e.filter_blocks = 200.into()), Err(Corruption::Value));
        assert_eq!(altered(|e| e.tombstones = 401.into()), Err(Corruption::Value));
        assert_eq!(altered(|e| e.blkno = (BLOCKS - 100).into()), Err(Corruption::Bounds));
        assert_eq!(altered(|e| e.reserved = 1.into()), Err(Corruption::Reserved));
        assert_eq!(altered(|e| e.zones[2] = ZoneRange::EMPTY), Err(Corruption::Order));
        assert_eq!(altered(|e| e.zones.swap(1, 2)), Err(Corruption::Order));
        assert_eq!(altered(|e| e.zones[2].last.zone = 4), Err(Corruption::Order));
    }
}
