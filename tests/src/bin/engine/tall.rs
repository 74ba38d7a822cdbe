//! A tree of runs with the shape that merging leaves behind, built at once: filling a volume of
//! 10^7 inodes by creates takes hours, and reads only ask for the shape.
//!
//! * Each level from 1 on is full, up to the last. An inode's items are all in one of them, drawn
//!   at random, so that the runs of each level go over all inodes.
//! * Level 0 has one run less than makes a merge begin, each with new versions of a thousand inodes
//!   from everywhere.
//! * Of runs that hold no inodes, but names and indices, there are the manifest's entries and
//!   filters that deny everything.
//!
//! What this module deliberately doesn't know: who reads it.

use crate::device::{Device, Traffic};
use outrider_core::arena::Arena;
use outrider_core::format::block::{BlockHeader, Magic, seal};
use outrider_core::format::btree::{BlockRef, NodeHeader, NodeItemHeader, SLOTS_AT};
use outrider_core::format::key::{Key, KeyBytes};
use outrider_core::format::records::ManifestEntry;
use outrider_core::format::root::{Extent, LEVELS};
use outrider_core::format::run::{FilterWriter, RunBlock, SEGMENT_BLOCKS, Value};
use outrider_core::format::super_block::Super;
use outrider_core::format::wire::message::ManifestRoot;
use outrider_core::format::{CommitNo, Ino, RunId, Seq};
use outrider_core::lsm::build::{BuildSpace, Refused, RunBuilder, Sealed, filter_blocks};
use outrider_core::lsm::choose::Policy;
use outrider_core::lsm::manifest::Run;
use outrider_core::txn::trees::MANIFEST;
use outrider_hal::{BLOCK_BYTES, Block, BlockNo, BlockOp};
use outrider_tests::region::Region;
use outrider_tests::rng::Rng;
use std::collections::BTreeSet;
use zerocopy::{FromZeros, IntoBytes};

/// The first inode; those before it are directories.
const FIRST_INO: u64 = 64;
/// Inodes of each run of level 0.
const CHANGED: u64 = 1000;
/// The inode, and the link back to its name of 16 bytes.
const VALUES: [&[u8]; 2] = [&[7; 144], &[7; 41]];
/// Of so many bytes of an inode's six items ...
const BYTES: u64 = 453;
/// ... so many are of those two ...
const BYTES_OF_INODE: u64 = 247;
/// ... and so many of those in indices.
const BYTES_OF_INDEX: u64 = 62;
/// Bytes of such items in a segment.
const SEGMENT_BYTES: u64 = 1_000_000;
/// Items of a node of the manifest: two thirds of what fits.
const PER_NODE: [usize; 2] = [9, 40];
/// Filter blocks of a run that holds no inodes.
const FILTERS: u16 = 5;
const SEQ: u64 = 5;

/// A tree.
pub(crate) struct Tall {
    /// Its manifest.
    pub(crate) root: ManifestRoot,
    /// Runs of each level.
    pub(crate) levels: [u64; LEVELS],
    inodes: u64,
}

impl Tall {
    /// An inode of it.
    pub(crate) fn random_ino(&self, rng: &mut Rng) -> Ino {
        Ino(FIRST_INO + rng.below(self.inodes))
    }
}

/// Builds a tree of so many inodes.
pub(crate) fn build(device: &mut Device, volume: &Super, inodes: u64, rng: &mut Rng) -> Tall {
    let mut measure = Arena::measuring();
    drop(BuildSpace::carve(&mut measure));
    let mut region = Region::new(measure.bytes_used());
    let (memory, lease) = region.lend();
    let mut arena = Arena::new(memory).expect("regions are aligned");
    let mut builder = Builder {
        device,
        volume,
        blkno: 1 << 14,
        number: 0,
        space: Some(BuildSpace::carve(&mut arena).expect("measured")),
        pool: Vec::new(),
        runs: Vec::new(),
    };
    for order in 1..Policy::STANDARD.level_0_runs {
        builder.add_changes(order, inodes, rng);
    }
    let quotas = quotas(inodes * BYTES / SEGMENT_BYTES + 1);
    for level in 1..=quotas.len() {
        builder.add_level(level as u8, &quotas, inodes);
    }
    let root = builder.manifest();
    let mut levels = [0; LEVELS];
    builder.runs.iter().for_each(|run| levels[usize::from(run.level)] += 1);
    drop(builder);
    drop(lease);
    Tall { root, levels, inodes }
}

/// Runs of the levels from 1 on.
fn quotas(mut runs: u64) -> Vec<u64> {
    let mut quotas = Vec::new();
    while runs > 0 {
        let most = Policy::STANDARD.fanout.pow(quotas.len() as u32 + 1);
        quotas.push(runs.min(most));
        runs -= runs.min(most);
    }
    quotas
}

/// Which level has this inode, if these are the levels' runs.
fn level_of(ino: u64, quotas: &[u64]) -> usize {
    let mixed = ino.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut at = (mixed ^ mixed >> 29) % quotas.iter().sum::<u64>();
    1 + quotas
        .iter()
        .position(|runs| {
            let here = at < *runs;
            at = at.saturating_sub(*runs);
            here
        })
        .expect("below the sum")
}

struct Builder<'a> {
    device: &'a mut Device,
    volume: &'a Super,
    /// The first block that nothing has.
    blkno: u64,
    /// The last run's number.
    number: u64,
    space: Option<BuildSpace<'static>>,
    pool: Vec<&'static mut Block>,
    runs: Vec<Run>,
}

type Item = (Key, Value<'static>);

impl Builder<'_> {
    /// Adds a run of level 0.
    fn add_changes(&mut self, order: u64, inodes: u64, rng: &mut Rng) {
        let mut inos = BTreeSet::new();
        while inos.len() < CHANGED.min(inodes) as usize {
            inos.insert(FIRST_INO + rng.below(inodes));
        }
        let mut items: Vec<Item> = Vec::new();
        for (at, ino) in inos.iter().enumerate() {
            let (old, new) = (Seq(1 + ino * 3), Seq(inodes * 4 + at as u64));
            items.push((Key::meta_seq(old, Ino(*ino)), Value::Tombstone));
            items.push((Key::meta_seq(new, Ino(*ino)), Value::Bytes(&[])));
            items.push((Key::inode(Ino(*ino)), Value::Bytes(VALUES[0])));
        }
        items.sort_by_key(|(key, _)| KeyBytes::from(*key));
        self.add_runs(0, order, items.len() as u64, items.into_iter());
    }

    /// Fills a level.
    fn add_level(&mut self, level: u8, quotas: &[u64], inodes: u64) {
        let inos = FIRST_INO..FIRST_INO + inodes;
        let inos = inos.filter(|ino| level_of(*ino, quotas) == usize::from(level));
        let items = inos.flat_map(|ino| {
            let keys = [Key::inode(Ino(ino)), Key::backref(Ino(ino), Ino(2), ino)];
            [0, 1].map(|at| (keys[at], Value::Bytes(VALUES[at])))
        });
        let per_segment = 2 * SEGMENT_BYTES / BYTES_OF_INODE;
        self.add_runs(level, 0, per_segment, items);
        let runs = quotas[usize::from(level) - 1];
        let of_index = runs * BYTES_OF_INDEX / BYTES;
        let of_names = (runs * (BYTES - BYTES_OF_INODE) / BYTES).saturating_sub(of_index);
        self.add_entries(level, of_index, |at| Key::meta_seq(Seq(at), Ino(9)));
        self.add_entries(level, of_names, |at| Key::readdir(Ino(2), at));
    }

    /// Adds runs of which nobody will read more than the filter.
    fn add_entries(&mut self, level: u8, count: u64, key: impl Fn(u64) -> Key) {
        for at in 0..count {
            let mut entry = ManifestEntry::new_zeroed();
            let extent = self.take();
            (entry.run, entry.blkno) = (RunId(self.number).into(), extent.blkno);
            (entry.items, entry.item_blocks) = (14_000.into(), 249.into());
            entry.index_blocks = 2.into();
            entry.filter_blocks = FILTERS.into();
            for index in 249 + 2..249 + 2 + u32::from(FILTERS) {
                let filter = FilterWriter::new(self.fresh());
                let blkno = extent.start().plus(index.into());
                let at = RunBlock { blkno, run: RunId(self.number), index };
                let block = filter.seal(&self.volume.volume(), &at);
                self.write(Some(Sealed { blkno, block }));
            }
            for key in [key(2 * at), key(2 * at + 1)].map(KeyBytes::from) {
                entry.zones[usize::from(key.zone) - 1].append(&key);
            }
            self.runs.push(Run::new(level, 0, entry));
        }
    }

    /// Room and a number for a run.
    fn take(&mut self) -> Extent {
        let start = BlockNo(self.blkno);
        self.blkno += SEGMENT_BLOCKS;
        self.number += 1;
        Extent::new(start, SEGMENT_BLOCKS)
    }

    fn fresh(&mut self) -> &'static mut Block {
        // The pool keeps what it has; the process ends soon.
        self.pool.pop().unwrap_or_else(|| Box::leak(Box::new(Block::ZERO)))
    }

    /// Adds runs of these items, with about so many in each.
    fn add_runs(&mut self, level: u8, order: u64, per_run: u64, items: impl Iterator<Item = Item>) {
        let mut run: Option<RunBuilder<'static>> = None;
        for (key, value) in items {
            let key = KeyBytes::from(key);
            loop {
                let at = match &mut run {
                    Some(at) => at,
                    None => run.insert(self.begin(per_run)),
                };
                match at.push(&key, &value) {
                    Ok(()) => break,
                    Err(Refused::Block) => {
                        let sealed = at.turn(self.fresh());
                        self.write(sealed);
                    }
                    Err(Refused::Full) => {
                        let full = run.take().expect("it has refused");
                        self.finish(level, order, full);
                    }
                }
            }
        }
        if let Some(last) = run {
            self.finish(level, order, last);
        }
    }

    fn begin(&mut self, items: u64) -> RunBuilder<'static> {
        let extent = self.take();
        let filter: Vec<_> = (0..filter_blocks(items)).map(|_| self.fresh()).collect();
        let space = self.space.take().expect("one run at a time");
        let (volume, secret) = (self.volume.volume(), &self.volume.fields().name_key);
        RunBuilder::new(&volume, secret, RunId(self.number), extent, space, filter)
    }

    fn finish(&mut self, level: u8, order: u64, mut run: RunBuilder<'static>) {
        loop {
            let (sealed, unused) = run.finish(self.fresh());
            self.pool.extend(unused);
            if sealed.is_none() {
                break;
            }
            self.write(sealed);
        }
        let (entry, space) = run.entry();
        self.space = Some(space);
        self.runs.push(Run::new(level, order, entry));
    }

    fn write(&mut self, sealed: Option<Sealed<'static>>) {
        let Some(Sealed { blkno, block }) = sealed else { return };
        self.device.carry_out(&mut BlockOp::Write(blkno, block), &mut Traffic::default());
        self.pool.push(block);
    }

    /// Writes the tree of all runs.
    fn manifest(&mut self) -> ManifestRoot {
        self.runs.sort_by_key(|run| run.key().as_bytes().to_vec());
        let runs = self.runs.iter();
        let mut items: Vec<(Vec<u8>, Vec<u8>)> = runs
            .map(|run| (run.key().as_bytes().to_vec(), run.entry.as_bytes().to_vec()))
            .collect();
        let mut height = 0;
        while height == 0 || items.len() > 1 {
            let nodes = items.chunks(PER_NODE[usize::from(height > 0)]);
            items = nodes
                .map(|node| {
                    let at = self.node(height, node);
                    (node[0].0.clone(), at.as_bytes().to_vec())
                })
                .collect();
            height += 1;
        }
        let blkno = BlockNo(self.blkno - 1);
        ManifestRoot { commit: CommitNo(SEQ), blkno, seq: SEQ, height }
    }

    fn node(&mut self, level: u8, items: &[(Vec<u8>, Vec<u8>)]) -> BlockRef {
        let mut block = Block::ZERO;
        let mut heap = BLOCK_BYTES;
        for (index, (key, value)) in items.iter().enumerate() {
            let key = if level > 0 && index == 0 { &[] } else { &key[..] };
            let (key_bytes, value_bytes) = (key.len() as u8, (value.len() as u16).into());
            let header = NodeItemHeader { key_bytes, reserved: 0, value_bytes };
            let item = [header.as_bytes(), key, value].concat();
            heap -= item.len();
            block.0[heap..][..item.len()].copy_from_slice(&item);
            block.0[SLOTS_AT + 2 * index..][..2].copy_from_slice(&(heap as u16).to_le_bytes());
        }
        let header = NodeHeader {
            block: BlockHeader::new_zeroed(),
            kind: MANIFEST.0,
            level,
            count: (items.len() as u16).into(),
            heap: (heap as u16).into(),
            holes: 0.into(),
            reserved: [0; 8],
        };
        block.0[..SLOTS_AT].copy_from_slice(header.as_bytes());
        let blkno = BlockNo(self.blkno);
        self.blkno += 1;
        seal(&mut block, &self.volume.volume(), Magic::Btree, blkno, SEQ);
        self.device.carry_out(&mut BlockOp::Write(blkno, &mut block), &mut Traffic::default());
        BlockRef::new(blkno, SEQ)
    }
}
