//! The benchmark's volume: made on the spot, and read from the outside.
//!
//! What this module deliberately doesn't know: nodes.

use crate::device::{Device, Traffic};
use outrider_core::arena::{Arena, REGION_ALIGN};
use outrider_core::format::btree::{Node as TreeNode, TreeRoot};
use outrider_core::format::item::Time;
use outrider_core::format::layout::SUPER_BLKNO;
use outrider_core::format::records::{ManifestEntry, ManifestKey};
use outrider_core::format::run::{Items, Value};
use outrider_core::format::super_block::{Identity, Super, Unverified};
use outrider_core::lsm::manifest::Run;
use outrider_core::mkfs::{Mkfs, Recipe};
use outrider_core::node::{Action, Event, Node};
use outrider_hal::{BLOCK_BYTES, Block, BlockNo, BlockRequest, Completion, Endpoint, Instant};
use siphasher::sip::SipHasher13;
use std::collections::HashSet;
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
    // Newest first.
    runs.sort_by_key(|run| (run.level, u64::MAX - run.order));
    let mut content = Content::default();
    let (mut seen, mut block) = (HashSet::new(), Block::ZERO);
    for run in &runs {
        let place = run.place();
        let blocks = place.item_blocks() + place.index_blocks() + place.filter_blocks();
        content.run_bytes += u64::from(blocks) * BLOCK_BYTES as u64;
        for nth in 0..place.item_blocks() {
            let at = place.items(nth);
            device.read(at.blkno, &mut block);
            let items = Items::open(&block, &volume.volume(), &at).expect("the tree is whole");
            for index in 0..items.count() {
                let (key, value) = items.get(index);
                let hash = SipHasher13::new().hash(key.as_bytes());
                if seen.insert(hash)
                    && let Value::Bytes(bytes) = value
                {
                    content.items += 1;
                    content.live_bytes += (key.as_bytes().len() + bytes.len()) as u64;
                }
            }
        }
    }
    content
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
