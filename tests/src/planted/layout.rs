//! A volume in its blocks: runs, the records of all trees, the root.
//!
//! # Invariants
//!
//! * Each tree is one leaf; each run has up to a few hundred items.
//! * Free is what nothing else has, unless somebody says otherwise.
//!
//! What this module deliberately doesn't know: what the items mean.

use super::draft::{Client, Draft, VOLUME_BLOCKS};
use crate::image::Image;
use outrider_core::format::block::{self, Magic, Volume};
use outrider_core::format::btree::{BlockRef, TreeRoot};
use outrider_core::format::item::{FileExtent, Mapping};
use outrider_core::format::key::{ItemKey, Key, KeyBytes};
use outrider_core::format::layout::{
    FIRST_BLKNO, QUORUM_BLKNO, ROOT_BLKNO, SUPER_BLKNO, spare_blkno,
};
use outrider_core::format::quorum::{Slot, emit_blank};
use outrider_core::format::records::{
    BlockKey, ClientKey, ClientPart, FreedKey, Length, LengthKey, LoanKey, ManifestEntry,
    ManifestKey, OpenSeq, OpenSeqKey, OwnerKind, Pool, QuarantineKey,
};
use outrider_core::format::root::{Extent, Root, RootBlock};
use outrider_core::format::run::{
    Filter, FilterWriter, INDEX_KEYS, IndexWriter, ItemsWriter, RunBlock, Value, filter_block,
    filter_hash,
};
use outrider_core::format::super_block::Super;
use outrider_core::format::{ClientId, CommitNo, RunId, Seq, Term};
use outrider_hal::{BLOCK_BYTES, Block, BlockNo};
use std::collections::BTreeMap;
use std::rc::Rc;
use zerocopy::{FromZeros, IntoBytes};

/// The commit whose root the volume has.
const COMMIT: CommitNo = CommitNo(9);
const TERM: Term = Term::new(3, 0);
/// Nodes of trees stand from the first block on; then the reserve, then runs.
const RESERVE: u64 = 272;
const RESERVE_BLOCKS: u64 = 100;
const TAKEOVER: u64 = 400;
const RUNS: u64 = 512;
/// How far back the change before an inode's last is.
const BEFORE: u64 = 40;
/// Items of a run: few, so that there are several.
const RUN_ITEMS: usize = 9;

/// The trees, by the number of their kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Tree {
    /// Free extents by block.
    FreeByBlock = 1,
    /// Free extents by length.
    FreeByLength = 2,
    /// Runs.
    Manifest = 3,
    /// Clients.
    Clients = 4,
    /// What is lent to them.
    Loans = 5,
    /// Their open transactions.
    OpenSeqs = 6,
    /// What was freed.
    Freed = 7,
    /// What may still be written.
    Quarantine = 8,
}

impl Tree {
    /// All there are.
    pub const ALL: [Tree; 8] = [
        Tree::FreeByBlock,
        Tree::FreeByLength,
        Tree::Manifest,
        Tree::Clients,
        Tree::Loans,
        Tree::OpenSeqs,
        Tree::Freed,
        Tree::Quarantine,
    ];

    /// Where its only node stands.
    #[must_use]
    pub fn leaf(self) -> BlockNo {
        FIRST_BLKNO.plus(self as u64)
    }

    fn root(self, root: &mut RootBlock) -> &mut TreeRoot {
        match self {
            Tree::FreeByBlock => &mut root.free_by_block,
            Tree::FreeByLength => &mut root.free_by_length,
            Tree::Manifest => &mut root.manifest,
            Tree::Clients => &mut root.clients,
            Tree::Loans => &mut root.loans,
            Tree::OpenSeqs => &mut root.open_seqs,
            Tree::Freed => &mut root.freed,
            Tree::Quarantine => &mut root.quarantine,
        }
    }
}

/// Items, or tombstones.
type Versions<'a> = Vec<(Key, Option<&'a [u8]>)>;

/// A run as it is to be.
struct Written<'a> {
    level: u8,
    order: u64,
    run: u64,
    items: Versions<'a>,
}

/// See the module.
#[derive(Clone)]
pub struct Layout {
    /// The volume.
    pub volume: Super,
    /// The root, but for where its trees begin.
    pub root: RootBlock,
    /// The records of each tree.
    pub records: BTreeMap<Tree, BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Blocks of runs.
    pub blocks: BTreeMap<u64, Block>,
    /// Blocks that somebody has.
    owned: Vec<Extent>,
}

fn extent(start: u64, blocks: u64) -> Extent {
    Extent::new(BlockNo(start), blocks)
}

impl Layout {
    pub(super) fn of(draft: &Draft) -> Layout {
        let mut layout = Layout {
            volume: draft.volume,
            root: RootBlock::empty(),
            records: Tree::ALL.map(|tree| (tree, BTreeMap::new())).into(),
            blocks: BTreeMap::new(),
            owned: vec![extent(FIRST_BLKNO.0 + 1, 8), extent(TAKEOVER, 48)],
        };
        let root = &mut layout.root;
        root.term = TERM.into();
        root.next_client = 4.into();
        root.next_ino = 4096.into();
        root.next_seq = 300.into();
        root.next_run = 1000.into();
        root.next_job = 1.into();
        root.takeover[2] = TAKEOVER.into();
        root.reserve[0] = extent(RESERVE, RESERVE_BLOCKS);
        layout.owned.push(root.reserve[0]);
        for (key, value) in &draft.items {
            if let Ok(ItemKey::Extent { last, .. }) = ItemKey::parse(key)
                && let Ok(FileExtent { len, mapping, .. }) = FileExtent::parse(last, value)
            {
                match mapping {
                    Mapping::Data(at) | Mapping::Reserved(at) | Mapping::OfflineReserved(at) => {
                        layout.owned.push(Extent::new(at, len));
                    }
                    Mapping::Offline => {}
                }
            }
        }
        layout.put_runs(draft);
        draft.clients.iter().for_each(|client| layout.put_client(client));
        let freed = FreedKey { commit: COMMIT.0.into(), part: 0.into() };
        layout.put(Tree::Freed, freed.as_bytes(), draft.freed.as_bytes());
        let kind = OwnerKind::Client as u8;
        let key = QuarantineKey { kind, owner: 2.into(), part: 0.into() };
        layout.put(Tree::Quarantine, key.as_bytes(), draft.quarantine.as_bytes());
        layout.owned.extend(draft.freed.iter().chain(&draft.quarantine));
        layout.put_free();
        layout
    }

    /// Puts a record into a tree.
    ///
    /// # Panics
    ///
    /// Never: all trees are there.
    pub fn put(&mut self, tree: Tree, key: &[u8], value: &[u8]) {
        let records = self.records.get_mut(&tree).expect("all trees are there");
        records.insert(key.to_vec(), value.to_vec());
    }

    /// The records of a tree.
    ///
    /// # Panics
    ///
    /// Never: all trees are there.
    pub fn of_tree(&mut self, tree: Tree) -> &mut BTreeMap<Vec<u8>, Vec<u8>> {
        self.records.get_mut(&tree).expect("all trees are there")
    }

    /// Spreads the items over levels 2 and 1 and two ages of level 0, each fourth in each. Some
    /// have older versions below, or tombstones; and entries that indices had once have tombstones
    /// above.
    fn put_runs(&mut self, draft: &Draft) {
        let mut levels: [Versions<'_>; 4] = Default::default();
        for (at, (key, value)) in draft.items.iter().enumerate() {
            let value = &value[..];
            if let Ok(ItemKey::MetaSeq { seq, ino }) = ItemKey::parse(key) {
                // Where it stood before the inode was changed.
                let gone = Key::meta_seq(Seq(seq.0 - BEFORE), ino);
                levels[3].push((gone, Some(&[])));
                levels[1].push((gone, None));
            }
            match at % 4 {
                0 => levels[3].push((*key, Some(value))),
                1 => levels[2].push((*key, Some(value))),
                2 => {
                    levels[1].push((*key, Some(value)));
                    levels[3].push((*key, Some(value)));
                }
                _ => {
                    levels[0].push((*key, Some(value)));
                    levels[2].push((*key, None));
                }
            }
        }
        let (mut run, mut at) = (10, RUNS);
        for (place, mut items) in levels.into_iter().enumerate() {
            items.sort_by_key(|(key, _)| *key);
            for chunk in items.chunks(RUN_ITEMS.max(items.len().div_ceil(3))) {
                // The first two are in level 0.
                let level = place.saturating_sub(1) as u8;
                let order = if level == 0 { 500 - place as u64 } else { 0 };
                let items = chunk.to_vec();
                at = self.put_run(&Written { level, order, run, items }, at);
                run += 1;
            }
        }
    }

    /// Writes a run, and says where the next may begin.
    fn put_run(&mut self, run: &Written<'_>, start: u64) -> u64 {
        let (volume, name_key) = (self.volume.volume(), self.volume.fields().name_key);
        let mut entry = ManifestEntry::new_zeroed();
        (entry.run, entry.blkno) = (run.run.into(), start.into());
        let (blocks, firsts) = item_blocks(run, &mut entry);
        entry.item_blocks = (blocks.len() as u16).into();
        entry.index_blocks = (blocks.len().div_ceil(INDEX_KEYS) as u16).into();
        let filters = run.items.len().div_ceil(3000) as u32;
        entry.filter_blocks = (filters as u16).into();
        let mut index = 0;
        let mut next = || {
            let blkno = BlockNo(start + u64::from(index));
            index += 1;
            RunBlock { blkno, run: RunId(run.run), index: index - 1 }
        };
        for items in blocks {
            let (at, mut block) = (next(), Block::ZERO);
            let mut writer = ItemsWriter::new(&mut block);
            items.iter().for_each(|(key, value)| writer.push(key, value));
            writer.seal(&volume, &at);
            self.blocks.insert(at.blkno.0, block);
        }
        for keys in firsts.chunks(INDEX_KEYS) {
            let (at, mut block) = (next(), Block::ZERO);
            let mut writer = IndexWriter::new(&mut block);
            keys.iter().for_each(|key| writer.push(key));
            writer.seal(&volume, &at);
            self.blocks.insert(at.blkno.0, block);
        }
        for filter in 0..filters {
            let (at, mut block) = (next(), Block::ZERO);
            let mut writer = FilterWriter::new(&mut block);
            let hashes = run.items.iter().map(|(key, _)| filter_hash(&name_key, &(*key).into()));
            hashes.filter(|hash| filter_block(*hash, filters) == filter).for_each(|hash| {
                writer.insert(hash);
            });
            writer.seal(&volume, &at);
            assert!(Filter::open(&block, &volume, &at).is_ok());
            self.blocks.insert(at.blkno.0, block);
        }
        let first = run.items[0].0.into();
        let key = ManifestKey { level: run.level, first, order: run.order.into() };
        self.put(Tree::Manifest, key.as_bytes(), entry.as_bytes());
        self.root.level_runs[usize::from(run.level)] += 1;
        self.owned.push(entry.extent());
        entry.extent().end().0
    }

    fn put_client(&mut self, client: &Client) {
        let number = client.number;
        let key = |part| ClientKey::new(ClientId(number), part);
        self.put(Tree::Clients, key(ClientPart::Client).as_bytes(), client.record.as_bytes());
        for (part, is_kept) in
            [ClientPart::TransactionAnswer, ClientPart::LoanAnswer].into_iter().zip(client.answers)
        {
            if is_kept {
                self.put(Tree::Clients, key(part).as_bytes(), b"an answer");
            }
        }
        for seq in &client.open_seqs {
            let key = OpenSeqKey { seq: (*seq).into(), client: number.into() };
            let open = OpenSeq { floor: (*seq).into() };
            self.put(Tree::OpenSeqs, key.as_bytes(), open.as_bytes());
        }
        for pool in [Pool::Data, Pool::Runs, Pool::Inodes, Pool::RunIds] {
            let of_pool = client.loans.iter().filter(|(of, _)| *of == pool);
            let extents: Vec<Extent> = of_pool.map(|(_, extent)| *extent).collect();
            if matches!(pool, Pool::Data | Pool::Runs) {
                self.owned.extend(&extents);
            }
            // Lists of one, to have several.
            for (part, extent) in extents.iter().enumerate() {
                let part = (part as u16).into();
                let key = LoanKey { client: number.into(), pool: pool as u8, part };
                self.put(Tree::Loans, key.as_bytes(), extent.as_bytes());
            }
        }
    }

    fn put_free(&mut self) {
        let mut owned = self.owned.clone();
        owned.push(Extent::new(spare_blkno(VOLUME_BLOCKS), 1));
        owned.sort_by_key(Extent::start);
        let mut at = FIRST_BLKNO.0;
        for taken in owned {
            if taken.start().0 > at {
                self.add_free(&extent(at, taken.start().0 - at));
            }
            at = at.max(taken.end().0);
        }
    }

    fn add_free(&mut self, free: &Extent) {
        self.root.free_blocks += free.len();
        let length = Length::new(free.len());
        self.put(Tree::FreeByBlock, BlockKey::of(free).as_bytes(), length.as_bytes());
        self.put(Tree::FreeByLength, LengthKey::of(free).as_bytes(), &[]);
    }

    /// What stands on the device.
    ///
    /// # Panics
    ///
    /// When the records of a tree don't fit a leaf.
    #[must_use]
    pub fn image(&self) -> Image {
        let volume = self.volume.volume();
        let mut image = Image::new(VOLUME_BLOCKS);
        for at in [SUPER_BLKNO, spare_blkno(VOLUME_BLOCKS)] {
            let mut block = Block::ZERO;
            self.volume.seal(&mut block, at);
            image.write(at.0, Rc::new(block));
        }
        for slot in Slot::ALL {
            let mut block = Block::ZERO;
            emit_blank(&mut block, &volume, QUORUM_BLKNO, slot);
            image.write(slot.blkno(QUORUM_BLKNO).0, Rc::new(block));
        }
        for (blkno, block) in &self.blocks {
            image.write(*blkno, Rc::new(block.clone()));
        }
        let mut root = self.root;
        for (tree, records) in &self.records {
            let at = tree.leaf();
            let reference = BlockRef::new(at, COMMIT.0);
            *tree.root(&mut root) = TreeRoot { node: reference, height: 1, ..TreeRoot::EMPTY };
            image.write(at.0, Rc::new(leaf(*tree, records, &volume)));
        }
        let mut block = Block::ZERO;
        let at = Root::seal(&root, &volume, COMMIT, &mut block);
        image.write(at.0, Rc::new(block));
        image
    }
}

/// Where the root stands.
#[must_use]
pub fn root_at() -> BlockNo {
    ROOT_BLKNO.plus(2 * (TERM.round() % 32) + COMMIT.0 % 2)
}

type Items<'a> = Vec<(KeyBytes, Value<'a>)>;

/// The items of a run as they stand in blocks, and the first key of each; counts them.
fn item_blocks<'a>(
    run: &Written<'a>,
    entry: &mut ManifestEntry,
) -> (Vec<Items<'a>>, Vec<KeyBytes>) {
    let (mut blocks, mut firsts): (Vec<Items<'_>>, Vec<KeyBytes>) = (Vec::new(), Vec::new());
    let mut scratch = Block::ZERO;
    let mut writer = ItemsWriter::new(&mut scratch);
    for (key, value) in &run.items {
        let (key, value) = (KeyBytes::from(*key), value.map_or(Value::Tombstone, Value::Bytes));
        entry.items += 1;
        entry.tombstones += u32::from(value == Value::Tombstone);
        entry.zones[usize::from(key.zone) - 1].append(&key);
        if blocks.is_empty() || !writer.fits(&value) {
            writer = ItemsWriter::new(writer.abandon());
            blocks.push(Vec::new());
            firsts.push(key);
        }
        writer.push(&key, &value);
        blocks.last_mut().expect("one was begun").push((key, value));
    }
    (blocks, firsts)
}

/// A leaf with these records: see the section on btrees in FORMAT.md.
fn leaf(tree: Tree, records: &BTreeMap<Vec<u8>, Vec<u8>>, volume: &Volume) -> Block {
    let mut block = Block::ZERO;
    let mut heap = BLOCK_BYTES;
    for (slot, (key, value)) in records.iter().enumerate() {
        heap -= 4 + key.len() + value.len();
        let item = &mut block.0[heap..];
        item[0] = key.len() as u8;
        item[2..4].copy_from_slice(&(value.len() as u16).to_le_bytes());
        item[4..4 + key.len()].copy_from_slice(key);
        item[4 + key.len()..4 + key.len() + value.len()].copy_from_slice(value);
        let at = 48 + 2 * slot;
        assert!(at + 2 <= heap, "the records don't fit a leaf");
        block.0[at..at + 2].copy_from_slice(&(heap as u16).to_le_bytes());
    }
    block.0[32] = tree as u8;
    block.0[34..36].copy_from_slice(&(records.len() as u16).to_le_bytes());
    block.0[36..38].copy_from_slice(&(heap as u16).to_le_bytes());
    block::seal(&mut block, volume, Magic::Btree, tree.leaf(), COMMIT.0);
    block
}
