//! Btree nodes: a slotted page behind the block header, and the references that lead to them.
//!
//! ```text
//! 0                48            48 + 2 * count           heap                           4096
//! | BlockHeader 32 |              |                        |                               |
//! | the rest of    | slots: u16   |   unused               |  items, in any order, and the |
//! | NodeHeader 16  | offset, in   |                        |  holes that removed ones left |
//! |                | key order    |                        |                               |
//! item: NodeItemHeader 4 | key | value
//! ```
//!
//! # Invariants
//!
//! * Keys are compared as bytes, shorter first when one is the other's beginning, and are strictly
//!   ascending in a node.
//! * Items lie between `heap` and the end of the block and don't overlap; their sizes and `holes`
//!   add up to the size of that area. Bytes no item covers mean nothing.
//! * A leaf (level 0) has keys of 1 to [`KEY_BYTES_MAX`] bytes and values of at most
//!   [`VALUE_BYTES_MAX`], so that at least four items fit.
//! * An inner node has 1 to [`INNER_ITEMS_MAX`] items, each value a [`BlockRef`] to a child one
//!   level down. The key of an item is the lowest the child may hold; that of the first item is
//!   empty, it takes what is below the second. Every inner node has room for its items with keys of
//!   full length, so a separator can always be replaced by a longer one.
//! * An empty tree has height 0 and no node.
//!
//! What this module deliberately doesn't know: how nodes are found and changed, and what any tree
//! holds.

use super::block::BlockHeader;
use super::{BLOCK_BYTES, Block, BlockNo};
use crate::error::Corruption;
use crate::record;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U64};

record! {
    /// Leads to a block: where it is, and which version of it.
    pub struct BlockRef [16] {
        /// Address, in blocks. 0 in a reference to nothing.
        blkno: U64,
        /// Sequence in the block's header: for a node, the number of the commit that wrote it.
        seq: U64,
    }

    /// Leads to a tree.
    pub struct TreeRoot [24] {
        /// The root node; all zero when the tree is empty.
        node: BlockRef,
        /// Levels of nodes: 0 for an empty tree, 1 when the root is a leaf.
        height: u8,
        /// Zero.
        reserved: [u8; 7],
    }

    /// First bytes of a node.
    pub struct NodeHeader [48] {
        /// As in all metadata blocks. `seq` is the number of the commit that wrote the node.
        block: BlockHeader,
        /// Which kind of tree the node is part of.
        kind: u8,
        /// Distance from the leaves; 0 is a leaf.
        level: u8,
        /// Items in the node, and slots behind this header.
        count: U16,
        /// Offset of the lowest item in the block; the size of a block when there is none.
        heap: U16,
        /// Bytes from `heap` on that no item covers.
        holes: U16,
        /// Zero.
        reserved: [u8; 8],
    }

    /// First bytes of an item, its key and value behind it.
    pub struct NodeItemHeader [4] {
        /// Length of the key.
        key_bytes: u8,
        /// Zero.
        reserved: u8,
        /// Length of the value.
        value_bytes: U16,
    }
}

impl BlockRef {
    /// To nothing.
    pub const NONE: BlockRef = BlockRef { blkno: U64::ZERO, seq: U64::ZERO };

    /// To version `seq` of the block at `blkno`.
    #[must_use]
    pub const fn new(blkno: BlockNo, seq: u64) -> BlockRef {
        BlockRef { blkno: U64::new(blkno.0), seq: U64::new(seq) }
    }

    /// The address.
    #[must_use]
    pub fn blkno(&self) -> BlockNo {
        BlockNo(self.blkno.get())
    }

    /// The version.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq.get()
    }
}

impl TreeRoot {
    /// Of a tree that holds nothing.
    pub const EMPTY: TreeRoot = TreeRoot { node: BlockRef::NONE, height: 0, reserved: [0; 7] };
}

/// Most levels a tree may have. Inner nodes are at least half full as a rule, so that six levels
/// lead to tens of millions of leaves.
pub const HEIGHT_MAX: usize = 6;
/// Longest key.
pub const KEY_BYTES_MAX: usize = 48;
/// Longest value.
pub const VALUE_BYTES_MAX: usize = 896;
/// Where the slots begin.
pub const SLOTS_AT: usize = size_of::<NodeHeader>();
/// Bytes of a node that slots and items share.
pub const NODE_BYTES: usize = BLOCK_BYTES - SLOTS_AT;
/// Most items of an inner node.
pub const INNER_ITEMS_MAX: usize = NODE_BYTES / item_cost(KEY_BYTES_MAX, size_of::<BlockRef>());

const _: () = assert!(4 * item_cost(KEY_BYTES_MAX, VALUE_BYTES_MAX) <= NODE_BYTES);
const _: () = assert!(KEY_BYTES_MAX <= u8::MAX as usize);

/// Bytes of a node that an item takes, its slot counted.
#[must_use]
pub const fn item_cost(key_bytes: usize, value_bytes: usize) -> usize {
    size_of::<U16>() + size_of::<NodeItemHeader>() + key_bytes + value_bytes
}

/// A node's bytes, checked by [`parse`] when they were read, or made by us.
#[derive(Clone, Copy)]
pub struct Node<'b>(&'b Block);

impl<'b> Node<'b> {
    /// The node in a block that has passed [`parse`].
    #[must_use]
    pub fn new(block: &'b Block) -> Node<'b> {
        Node(block)
    }

    fn header(&self) -> &'b NodeHeader {
        NodeHeader::ref_from_prefix(&self.0.0).expect("a block is larger than a header").0
    }

    /// Which kind of tree it is part of.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.header().kind
    }

    /// Distance from the leaves.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.header().level
    }

    /// Items in it.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::from(self.header().count.get())
    }

    /// Offset of the lowest item.
    #[must_use]
    pub fn heap(&self) -> usize {
        usize::from(self.header().heap.get())
    }

    /// Bytes from `heap` on that no item covers.
    #[must_use]
    pub fn holes(&self) -> usize {
        usize::from(self.header().holes.get())
    }

    /// Bytes its items take, slots counted: what [`item_cost`] says of each, added up.
    #[must_use]
    pub fn bytes_used(&self) -> usize {
        self.count() * size_of::<U16>() + BLOCK_BYTES - self.heap() - self.holes()
    }

    /// Offset of item `index` in the block.
    #[must_use]
    pub fn offset(&self, index: usize) -> usize {
        let at = SLOTS_AT + index * size_of::<U16>();
        usize::from(u16::from_le_bytes([self.0.0[at], self.0.0[at + 1]]))
    }

    /// Key and value of item `index`.
    #[must_use]
    pub fn item(&self, index: usize) -> (&'b [u8], &'b [u8]) {
        let (header, rest) = self.item_header(index);
        let (key, rest) = rest.split_at(usize::from(header.key_bytes));
        (key, &rest[..usize::from(header.value_bytes.get())])
    }

    fn item_header(&self, index: usize) -> (&'b NodeItemHeader, &'b [u8]) {
        NodeItemHeader::ref_from_prefix(&self.0.0[self.offset(index)..])
            .expect("an item was parsed")
    }

    /// Key of item `index`.
    #[must_use]
    pub fn key(&self, index: usize) -> &'b [u8] {
        let (header, rest) = self.item_header(index);
        &rest[..usize::from(header.key_bytes)]
    }

    /// What item `index` takes of the node.
    #[must_use]
    pub fn cost(&self, index: usize) -> usize {
        let (header, _) = self.item_header(index);
        item_cost(usize::from(header.key_bytes), usize::from(header.value_bytes.get()))
    }

    /// The child of item `index` of an inner node.
    #[must_use]
    pub fn child(&self, index: usize) -> BlockRef {
        *BlockRef::ref_from_bytes(self.item(index).1).expect("an inner node was parsed")
    }

    /// Index of the item with this key, or of the first above it.
    pub fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle).cmp(key) {
                core::cmp::Ordering::Less => low = middle + 1,
                core::cmp::Ordering::Equal => return Ok(middle),
                core::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }
}

/// Checks everything about a node that can be told from its own bytes. Afterwards every function of
/// [`Node`] is safe to call with an index below its count.
pub fn parse(block: &Block) -> Result<(), Corruption> {
    let node = Node::new(block);
    let header = node.header();
    if usize::from(header.level) >= HEIGHT_MAX {
        return Err(Corruption::Level);
    }
    let inner = header.level > 0;
    let (count, heap) = (node.count(), node.heap());
    let slots_end = SLOTS_AT + count * size_of::<U16>();
    if slots_end > heap || heap > BLOCK_BYTES || node.holes() > BLOCK_BYTES - heap {
        return Err(Corruption::Bounds);
    }
    if inner && (count == 0 || count > INNER_ITEMS_MAX) {
        return Err(Corruption::Bounds);
    }
    if header.reserved != [0; 8] {
        return Err(Corruption::Reserved);
    }
    let mut cover = Cover([0; BLOCK_BYTES / 64]);
    let mut bytes = 0;
    for index in 0..count {
        bytes += parse_item(block, node.offset(index), heap, inner && index == 0, &mut cover)?;
        if inner && node.item(index).1.len() != size_of::<BlockRef>() {
            return Err(Corruption::Bounds);
        }
        if index > 0 && node.key(index - 1) >= node.key(index) {
            return Err(Corruption::Order);
        }
    }
    if heap + bytes + node.holes() != BLOCK_BYTES {
        return Err(Corruption::Bounds);
    }
    Ok(())
}

/// Checks the item at `offset` and returns its size without slot.
fn parse_item(
    block: &Block,
    offset: usize,
    heap: usize,
    keyless: bool,
    cover: &mut Cover,
) -> Result<usize, Corruption> {
    if offset < heap {
        return Err(Corruption::Bounds);
    }
    let bytes = block.0.get(offset..).ok_or(Corruption::Bounds)?;
    let (header, _) = NodeItemHeader::ref_from_prefix(bytes).map_err(|_| Corruption::Bounds)?;
    let (key, value) = (usize::from(header.key_bytes), usize::from(header.value_bytes.get()));
    let end = offset + size_of::<NodeItemHeader>() + key + value;
    if key > KEY_BYTES_MAX || value > VALUE_BYTES_MAX || (key == 0) != keyless {
        return Err(Corruption::Bounds);
    }
    if end > BLOCK_BYTES || !cover.add(offset, end) {
        return Err(Corruption::Bounds);
    }
    if header.reserved != 0 {
        return Err(Corruption::Reserved);
    }
    Ok(end - offset)
}

/// Which bytes of a block belong to an item: one bit each.
struct Cover([u64; BLOCK_BYTES / 64]);

impl Cover {
    /// Adds a range of bytes. False when one of them was there.
    fn add(&mut self, start: usize, end: usize) -> bool {
        let mut at = start;
        while at < end {
            let upto = end.min((at / 64 + 1) * 64);
            let mask = (u64::MAX >> (64 - (upto - at))) << (at % 64);
            if self.0[at / 64] & mask != 0 {
                return false;
            }
            self.0[at / 64] |= mask;
            at = upto;
        }
        true
    }
}
