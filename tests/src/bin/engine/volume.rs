//! The benchmark's volume: made on the spot, and read from the outside.
//!
//! What this module deliberately doesn't know: nodes.

use crate::device::{Device, Traffic};
use outrider_core::arena::{Arena, REGION_ALIGN};
use outrider_core::format::btree::{Node as TreeNode, TreeRoot};
use outrider_core::format::item::Time;
use outrider_core::format::key::KeyBytes;
use outrider_core::format::layout::SUPER_BLKNO;
use outrider_core::format::records::{ManifestEntry, ManifestKey};
use outrider_core::format::run::{Items, Value};
use outrider_core::format::super_block::{ClusterLimits, Identity, Super, Unverified};
use outrider_core::lsm::manifest::Run;
use outrider_core::mkfs::{Mkfs, Recipe};
use outrider_core::node::{Action, Event, Node};
use outrider_hal::{BLOCK_BYTES, Block, BlockNo, BlockRequest, Completion, Endpoint, Instant};
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use zerocopy::{FromBytes, IntoBytes};

/// Makes a volume of the whole device.
pub(crate) fn format(device: &mut Device) -> Super {
    let mut voters = [None; 7];
    voters[0] = Some(Endpoint { addr: Ipv6Addr::LOCALHOST, port: 7000 });
    let identity = Identity {
        fsid: 0xbe_2c_11,
        uuid: [3; 16],
        label: [0; 64],
        blocks: device.blocks(),
        crc_seed: 77,
        name_key: [7; 16],
        cluster_key: [9; 32],
        voters,
        limits: ClusterLimits::standard(),
    };
    let recipe = Recipe { identity, now: Time { sec: 1_000_000, nsec: 0 } };
    let mut measure = Arena::measuring();
    drop(Mkfs::carve(&mut measure, &recipe));
    // The process ends soon.
    let region = vec![MaybeUninit::uninit(); measure.bytes_used() + REGION_ALIGN].leak();
    let pad = region.as_ptr().align_offset(REGION_ALIGN);
    let mut arena = Arena::new(&mut region[pad..]).expect("aligned");
    let mut mkfs = Mkfs::carve(&mut arena, &recipe).expect("measured").expect("a sane volume");
    let (now, mut traffic) = (Instant(1), Traffic::default());
    loop {
        // It is over when it says so.
        let _ = mkfs.step(now);
        while let Some(action) = mkfs.poll_action() {
            let Action::Block(BlockRequest { tag, mut op }) = action else { continue };
            device.carry_out(&mut op, &mut traffic);
            mkfs.handle(now, Event::Completed(Completion { tag, op, result: Ok(()) }));
        }
        if let Some(outcome) = mkfs.poll_outcome() {
            outcome.expect("nothing fails");
            break;
        }
    }
    let mut block = Block::ZERO;
    device.read(SUPER_BLKNO, &mut block);
    let volume = Unverified::new(&block).verify(SUPER_BLKNO, device.blocks());
    volume.expect("it was just made")
}

/// What the log-structured tree holds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Content {
    /// Items that a reader finds.
    pub(crate) items: u64,
    /// Bytes of their keys and values.
    pub(crate) live_bytes: u64,
    /// Bytes of all blocks of all runs.
    pub(crate) run_bytes: u64,
}

/// Reads all runs of a manifest that nobody changes meanwhile.
pub(crate) fn content(device: &Device, volume: &Super, manifest: &TreeRoot) -> Content {
    let mut runs = Vec::new();
    if manifest.height > 0 {
        collect(device, manifest.node.blkno(), &mut runs);
    }
    let mut content = Content::default();
    for place in runs.iter().map(Run::place) {
        let blocks = place.item_blocks() + place.index_blocks() + place.filter_blocks();
        content.run_bytes += u64::from(blocks) * BLOCK_BYTES as u64;
    }
    let mut sources = sources(runs);
    sources.iter_mut().for_each(|source| source.open(device, volume));
    loop {
        let heads = sources.iter().filter_map(Source::head);
        // Of equal keys that of the first source: the newest.
        let Some((key, value)) = heads.min_by_key(|(key, _)| **key) else { break };
        if let Value::Bytes(bytes) = value {
            content.items += 1;
            content.live_bytes += (key.as_bytes().len() + bytes.len()) as u64;
        }
        let key = *key;
        for source in &mut sources {
            if source.head().is_some_and(|head| *head.0 == key) {
                source.advance(device, volume);
            }
        }
    }
    content
}

/// Runs one behind the other, and where their items are read.
struct Source {
    /// The next one last.
    runs: Vec<Run>,
    nth: u16,
    item: u16,
    block: Block,
}

/// Each run of level 0, the newest first, then each level.
fn sources(mut runs: Vec<Run>) -> Vec<Source> {
    runs.sort_by_key(|run| (run.level, u64::MAX - run.order * u64::from(run.level == 0)));
    let apart = |a: &Run, b: &Run| a.level > 0 && a.level == b.level;
    let parts = runs.chunk_by(apart).map(|runs| {
        let mut runs = runs.to_vec();
        runs.sort_by_key(|run| core::cmp::Reverse(run.range().first));
        Source { runs, nth: 0, item: 0, block: Block::ZERO }
    });
    parts.collect()
}

impl Source {
    fn open(&mut self, device: &Device, volume: &Super) {
        let Some(run) = self.runs.last() else { return };
        let at = run.place().items(self.nth);
        device.read(at.blkno, &mut self.block);
        Items::open(&self.block, &volume.volume(), &at).expect("the tree is whole");
    }

    /// The next item.
    fn head(&self) -> Option<(&KeyBytes, Value<'_>)> {
        self.runs.last().map(|_| Items::opened(&self.block).get(self.item))
    }

    fn advance(&mut self, device: &Device, volume: &Super) {
        self.item += 1;
        if self.item < Items::opened(&self.block).count() {
            return;
        }
        (self.item, self.nth) = (0, self.nth + 1);
        if self.runs.last().is_some_and(|run| run.place().item_blocks() == self.nth) {
            self.nth = 0;
            self.runs.pop();
        }
        self.open(device, volume);
    }
}

fn collect(device: &Device, blkno: BlockNo, runs: &mut Vec<Run>) {
    let mut block = Block::ZERO;
    device.read(blkno, &mut block);
    let node = TreeNode::new(&block);
    for index in 0..node.count() {
        if node.level() > 0 {
            collect(device, node.child(index).blkno(), runs);
            continue;
        }
        let (key, value) = node.item(index);
        let key = ManifestKey::ref_from_bytes(key).expect("the tree is whole");
        let entry = ManifestEntry::ref_from_bytes(value).expect("the tree is whole");
        runs.push(Run::parse(key, entry, device.blocks()).expect("the tree is whole"));
    }
}
