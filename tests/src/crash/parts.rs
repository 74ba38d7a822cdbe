//! The metadata blocks of a volume, each with what it is part of: what there is to be damaged.
//!
//! What this module deliberately doesn't know: what damage does.

use crate::image::Image;
use outrider_core::format::block::{Magic, Volume, header, seal};
use outrider_core::format::btree::{Node, TreeRoot};
use outrider_core::format::layout::{
    QUORUM_BLKNO, ROOT_BLKNO, ROOT_PAIRS, SUPER_BLKNO, spare_blkno,
};
use outrider_core::format::records::ManifestEntry;
use outrider_core::format::root::Root;
use outrider_core::format::super_block::Super;
use outrider_core::format::{Block, BlockNo};
use std::rc::Rc;
use zerocopy::FromBytes;

/// What a block is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The super block.
    Super,
    /// Its spare.
    Spare,
    /// A voter's block.
    Quorum,
    /// The newest root.
    Root,
    /// Another root of the ring.
    OldRoot,
    /// A node of a tree of this kind.
    Node(u8),
    /// Items of a run.
    Items,
    /// Its index.
    Index,
    /// Its filter.
    Filter,
}

impl Part {
    /// The kind of such a block.
    #[must_use]
    pub fn magic(self) -> Magic {
        match self {
            Part::Super | Part::Spare => Magic::Super,
            Part::Quorum => Magic::Quorum,
            Part::Root | Part::OldRoot => Magic::Root,
            Part::Node(_) => Magic::Btree,
            Part::Items => Magic::RunItems,
            Part::Index => Magic::RunIndex,
            Part::Filter => Magic::RunFilter,
        }
    }

    /// Whether what refers to such a block says which version of it is meant.
    #[must_use]
    pub fn has_version(self) -> bool {
        match self {
            Part::Node(_) | Part::Items | Part::Index | Part::Filter => true,
            Part::Super | Part::Spare | Part::Quorum | Part::Root | Part::OldRoot => false,
        }
    }

    /// What the checksums of such blocks are made with.
    #[must_use]
    pub fn volume(self, volume: &Super) -> Volume {
        match self {
            Part::Super | Part::Spare => Volume { crc_seed: 0, ..volume.volume() },
            _ => volume.volume(),
        }
    }
}

/// A block, and what it is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// What it is part of.
    pub part: Part,
    /// Where it stands.
    pub blkno: BlockNo,
}

impl Place {
    /// Changes the block, and closes it again as if it were meant so.
    pub fn forge(&self, image: &mut Image, volume: &Super, change: impl FnOnce(&mut Block)) {
        let mut block = Block(image.block(self.blkno.0).0);
        let seq = header(&block).seq.get();
        change(&mut block);
        seal(&mut block, &self.part.volume(volume), self.part.magic(), self.blkno, seq);
        image.write(self.blkno.0, Rc::new(block));
    }
}

/// The newest root.
#[must_use]
pub fn newest(image: &Image, volume: &Super) -> Option<(BlockNo, Root)> {
    let at = |number| {
        let blkno = ROOT_BLKNO.plus(number);
        let root = Root::open(image.block(blkno.0), &volume.volume(), blkno, volume.blocks());
        Some((blkno, root.ok()?))
    };
    (0..2 * ROOT_PAIRS).filter_map(at).max_by_key(|(_, root)| root.rank())
}

/// All metadata blocks of a sound volume.
#[must_use]
pub fn parts(image: &Image, volume: &Super) -> Vec<Place> {
    let mut places = vec![
        Place { part: Part::Super, blkno: SUPER_BLKNO },
        Place { part: Part::Spare, blkno: spare_blkno(volume.blocks()) },
        Place { part: Part::Quorum, blkno: QUORUM_BLKNO },
        Place { part: Part::Quorum, blkno: QUORUM_BLKNO.plus(1) },
    ];
    let Some((newest, root)) = newest(image, volume) else { return places };
    for blkno in (0..2 * ROOT_PAIRS).map(|number| ROOT_BLKNO.plus(number)) {
        if image.block(blkno.0).0 != Block::ZERO.0 {
            let part = if blkno == newest { Part::Root } else { Part::OldRoot };
            places.push(Place { part, blkno });
        }
    }
    let fields = root.fields();
    let trees = [
        fields.free_by_block,
        fields.free_by_length,
        fields.manifest,
        fields.clients,
        fields.loans,
        fields.open_seqs,
        fields.freed,
        fields.quarantine,
    ];
    for (number, tree) in trees.iter().enumerate() {
        add_nodes(image, tree, number as u8 + 1, &mut places);
    }
    places
}

fn add_nodes(image: &Image, tree: &TreeRoot, kind: u8, places: &mut Vec<Place>) {
    if tree.height == 0 {
        return;
    }
    let blkno = tree.node.blkno();
    places.push(Place { part: Part::Node(kind), blkno });
    let node = Node::new(image.block(blkno.0));
    for index in 0..node.count() {
        if node.level() > 0 {
            let below = TreeRoot { node: node.child(index), height: tree.height - 1, ..*tree };
            add_nodes(image, &below, kind, places);
        } else if kind == MANIFEST
            && let Ok(entry) = ManifestEntry::ref_from_bytes(node.item(index).1)
        {
            add_run(entry, places);
        }
    }
}

/// The number of the manifest among the kinds of trees.
const MANIFEST: u8 = 3;

fn add_run(entry: &ManifestEntry, places: &mut Vec<Place>) {
    let counts = [
        (Part::Items, entry.item_blocks.get()),
        (Part::Index, entry.index_blocks.get()),
        (Part::Filter, entry.filter_blocks.get()),
    ];
    let mut blkno = entry.extent().start();
    for (part, count) in counts {
        for _ in 0..count {
            places.push(Place { part, blkno });
            blkno = blkno.plus(1);
        }
    }
}
