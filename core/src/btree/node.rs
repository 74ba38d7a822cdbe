//! Changing a node: the slotted page's side of an update.
//!
//! # Invariants
//!
//! * Callers make sure that what they add fits ([`fits`]); nothing here can fail.
//! * Items move only when a node has the room but not in one piece: then it is rebuilt from a copy.
//!
//! What this module deliberately doesn't know: trees, references, commits.

use crate::format::block::BlockHeader;
use crate::format::btree::{NODE_BYTES, Node, NodeHeader, NodeItemHeader, SLOTS_AT, item_cost};
use crate::format::{BLOCK_BYTES, Block};
use core::ops::Range;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const SLOT_BYTES: usize = size_of::<U16>();

/// A node of the open commit, and room for a copy of it.
pub(super) struct NodeMut<'b> {
    block: &'b mut Block,
    scratch: &'b mut Block,
}

/// Whether an item of this cost fits into the node as it is.
pub(super) fn fits(node: &Node<'_>, cost: usize) -> bool {
    node.bytes_used() + cost <= NODE_BYTES
}

impl<'b> NodeMut<'b> {
    pub(super) fn new((block, scratch): (&'b mut Block, &'b mut Block)) -> NodeMut<'b> {
        NodeMut { block, scratch }
    }

    fn header(&mut self) -> &mut NodeHeader {
        NodeHeader::mut_from_prefix(&mut self.block.0).expect("a block is larger than a header").0
    }

    pub(super) fn node(&self) -> Node<'_> {
        Node::new(self.block)
    }

    /// Makes it an empty node.
    pub(super) fn init(&mut self, kind: u8, level: u8) {
        *self.header() = NodeHeader {
            block: BlockHeader::new_zeroed(),
            kind,
            level,
            count: 0.into(),
            heap: (BLOCK_BYTES as u16).into(),
            holes: 0.into(),
            reserved: [0; 8],
        };
    }

    /// Adds an item, which must fit, before the one at `index`.
    pub(super) fn insert(&mut self, index: usize, key: &[u8], value: &[u8]) {
        let bytes = size_of::<NodeItemHeader>() + key.len() + value.len();
        let (count, heap) = (self.node().count(), self.node().heap());
        let slots_end = SLOTS_AT + count * SLOT_BYTES;
        if heap - slots_end < bytes + SLOT_BYTES {
            self.compact();
        }
        let offset = self.node().heap() - bytes;
        assert!(offset >= slots_end + SLOT_BYTES, "the caller checked that it fits");
        let item = &mut self.block.0[offset..][..bytes];
        let header = NodeItemHeader {
            key_bytes: key.len() as u8,
            reserved: 0,
            value_bytes: (value.len() as u16).into(),
        };
        let (head, rest) = item.split_at_mut(size_of::<NodeItemHeader>());
        head.copy_from_slice(header.as_bytes());
        rest[..key.len()].copy_from_slice(key);
        rest[key.len()..].copy_from_slice(value);
        let slot = SLOTS_AT + index * SLOT_BYTES;
        self.block.0.copy_within(slot..slots_end, slot + SLOT_BYTES);
        self.block.0[slot..][..SLOT_BYTES].copy_from_slice(&(offset as u16).to_le_bytes());
        let header = self.header();
        (header.count, header.heap) = ((count as u16 + 1).into(), (offset as u16).into());
    }

    /// Removes the items in this range.
    pub(super) fn remove(&mut self, range: Range<usize>) {
        let node = self.node();
        let count = node.count();
        let slots_bytes = range.len() * SLOT_BYTES;
        let bytes = range.clone().map(|index| node.cost(index)).sum::<usize>() - slots_bytes;
        let slots_end = SLOTS_AT + count * SLOT_BYTES;
        let tail = SLOTS_AT + range.end * SLOT_BYTES..slots_end;
        self.block.0.copy_within(tail, SLOTS_AT + range.start * SLOT_BYTES);
        self.block.0[slots_end - slots_bytes..slots_end].fill(0);
        let header = self.header();
        header.count = ((count - range.len()) as u16).into();
        header.holes += bytes as u16;
        if header.count == 0 {
            (header.heap, header.holes) = ((BLOCK_BYTES as u16).into(), 0.into());
        }
    }

    /// Replaces the value of an item by one of the same length.
    pub(super) fn overwrite(&mut self, index: usize, value: &[u8]) {
        let offset = self.node().offset(index);
        let at = offset + size_of::<NodeItemHeader>() + self.node().key(index).len();
        self.block.0[at..][..value.len()].copy_from_slice(value);
    }

    /// Adds copies of another node's items before the item at `index`; they must fit.
    pub(super) fn copy_from(&mut self, index: usize, from: &Node<'_>, range: Range<usize>) {
        for (at, of) in range.enumerate() {
            let (key, value) = from.item(of);
            self.insert(index + at, key, value);
        }
    }

    /// Closes the holes.
    fn compact(&mut self) {
        self.scratch.0.copy_from_slice(&self.block.0);
        let old = Node::new(self.scratch);
        let mut heap = BLOCK_BYTES;
        for index in 0..old.count() {
            let bytes = old.cost(index) - SLOT_BYTES;
            let from = old.offset(index);
            heap -= bytes;
            self.block.0[heap..][..bytes].copy_from_slice(&self.scratch.0[from..][..bytes]);
            let slot = SLOTS_AT + index * SLOT_BYTES;
            self.block.0[slot..][..SLOT_BYTES].copy_from_slice(&(heap as u16).to_le_bytes());
        }
        let slots_end = SLOTS_AT + old.count() * SLOT_BYTES;
        self.block.0[slots_end..heap].fill(0);
        let header = self.header();
        (header.heap, header.holes) = ((heap as u16).into(), 0.into());
    }
}

/// Bytes an item takes of a leaf.
pub(super) fn cost(key: &[u8], value: &[u8]) -> usize {
    item_cost(key.len(), value.len())
}
