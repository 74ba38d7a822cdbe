//! The shared block device: 4 KiB blocks, requests in flight, completions in any order.

use core::fmt;

/// Bytes of a block, the unit of every transfer and of every address on the device.
pub const BLOCK_BYTES: usize = 4096;

/// One block of memory, aligned so that direct I/O and virtio can transfer into it as it is.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Block(pub [u8; BLOCK_BYTES]);

impl Block {
    /// A block of zeroes.
    pub const ZERO: Block = Block([0; BLOCK_BYTES]);
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({:02x?}..)", &self.0[..16])
    }
}

/// Address of a block on the device, counted in blocks from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockNo(pub u64);

impl BlockNo {
    /// The block `count` blocks further on. Saturates: an address past the device is refused there.
    #[must_use]
    pub const fn plus(self, count: u64) -> BlockNo {
        BlockNo(self.0.saturating_add(count))
    }
}

impl fmt::Display for BlockNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The submitter's own name for a request, given back with its completion and otherwise not looked
/// at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// What a request does. It owns the memory it uses.
#[derive(Debug)]
pub enum BlockOp<'m> {
    /// Fill the block from the device. After an error its bytes are unspecified.
    Read(BlockNo, &'m mut Block),
    /// Write the block. It is durable once a [`Flush`](BlockOp::Flush) submitted after this
    /// request's completion has completed; until then it may be lost, and may be torn at any
    /// sector.
    Write(BlockNo, &'m mut Block),
    /// Make every write that had completed when this was submitted durable.
    Flush,
}

/// A request: what to do, and the name its completion will carry.
#[derive(Debug)]
pub struct BlockRequest<'m> {
    /// Returned in [`Completion::tag`].
    pub tag: Tag,
    /// What to do.
    pub op: BlockOp<'m>,
}

/// How a request ended.
pub type BlockResult = Result<(), IoError>;

/// A finished request. Carries the request's operation, so that its memory comes back.
#[derive(Debug)]
pub struct Completion<'m> {
    /// The tag of the request.
    pub tag: Tag,
    /// The operation of the request, with its buffer.
    pub op: BlockOp<'m>,
    /// Whether it succeeded.
    pub result: BlockResult,
}

/// Why a transfer failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoError {
    /// The address lies at or past the end of the device.
    OutOfRange,
    /// The device reported an error, or is gone.
    Device,
    /// The device can't do this at all: a write to a read-only device.
    Unsupported,
}

/// A block device with several requests in flight.
pub trait BlockDevice<'m> {
    /// Size of the device in whole blocks.
    fn blocks(&self) -> u64;

    /// Takes the request, or hands it back when the device's queue is full. A request that was
    /// taken completes through [`poll`](Self::poll).
    fn submit(&mut self, request: BlockRequest<'m>) -> Result<(), BlockRequest<'m>>;

    /// The next completion, if there is one.
    fn poll(&mut self) -> Option<Completion<'m>>;
}
