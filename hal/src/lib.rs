//! What a platform gives an Outrider node, and nothing else: blocks, byte streams, time, entropy,
//! a console.
//!
//! The traits are small so that three very different platforms can offer them: Linux (files, block
//! devices and sockets), a virtual machine without an operating system (virtio), and a simulator.
//!
//! # Invariants
//!
//! * Nothing here blocks. A device that can't take a request hands it back; a stream that has no
//!   bytes says so.
//! * A buffer has one owner. It travels *by value* with the request that uses it and comes back
//!   with the completion, so a device may transfer straight into it, and neither side can look at
//!   it half-way.
//! * Every accepted request completes exactly once, in any order, successfully or not.
//!
//! What this crate deliberately doesn't know: what a block holds, who listens at a port, and how
//! requests depend on each other. There is no ordering between requests in flight except the one a
//! [`Flush`](BlockOp::Flush) promises.
#![no_std]

mod block;
mod net;
mod platform;

pub use block::{
    BLOCK_BYTES, Block, BlockDevice, BlockNo, BlockOp, BlockRequest, BlockResult, Completion,
    IoError, Tag,
};
pub use net::{Endpoint, NetError, Network, Stream, StreamId};
pub use platform::{Clock, Console, Entropy, Instant};
