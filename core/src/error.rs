//! Why an operation stopped: it must wait, or it has failed.
//!
//! Restartable functions return `Result<T, Stop>`. [`Stop::Wait`] is not an error: the caller parks
//! the request, and runs the same function again from the top once the named thing has happened.
//! Until its last `?` such a function has changed nothing that another could see.

use outrider_hal::{BlockNo, IoError};

/// Why a restartable function did not finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Run it again from the top when this has happened.
    Wait(Wait),
    /// It can't be done.
    Fail(Error),
}

/// What a parked request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The block is being read.
    Block(BlockNo),
    /// A frame of the block cache; one waiter is woken for each frame that becomes free.
    Frame,
    /// The next commit: the open one has no room left for what the request may change.
    Commit,
    /// Nothing: injected by tests to prove that the function can be run again from the top.
    Again,
}

/// Why an operation can't be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// A block does not hold what the reference to it promised.
    Corrupt {
        /// Address of the block that was read.
        blkno: BlockNo,
        /// Which check failed.
        what: Corruption,
    },
    /// The device failed to transfer a block.
    Io {
        /// Address of the block.
        blkno: BlockNo,
        /// What the device said.
        error: IoError,
    },
    /// The volume has no space left for this.
    NoSpace,
    /// The record to be created exists.
    Exists,
    /// The record doesn't exist.
    NotFound,
}

/// The check that a block failed. One variant for each check, in the order they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Corruption {
    /// The checksum doesn't match the bytes.
    Checksum,
    /// A block of another kind stands here.
    Kind,
    /// A block of another volume stands here.
    Volume,
    /// The block was written for another address.
    Misdirected,
    /// An older or newer block than the one referred to stands here.
    Stale,
    /// A count, length or offset points outside the block.
    Bounds,
    /// The items are not in order, or lie outside the range their parent gives.
    Order,
    /// The level in the tree is not the one its parent gives.
    Level,
    /// A reserved byte is not zero.
    Reserved,
    /// A field holds a value that has no meaning.
    Value,
    /// Two structures that must agree don't.
    Mismatch,
}

impl Corruption {
    /// Whether it may come from a root that is out of date: something else stands where the root
    /// says that a block is.
    #[must_use]
    pub fn is_stale(self) -> bool {
        match self {
            Corruption::Checksum
            | Corruption::Kind
            | Corruption::Volume
            | Corruption::Misdirected
            | Corruption::Stale => true,
            Corruption::Bounds
            | Corruption::Order
            | Corruption::Level
            | Corruption::Reserved
            | Corruption::Value
            | Corruption::Mismatch => false,
        }
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Fail(error)
    }
}

impl From<Wait> for Stop {
    fn from(wait: Wait) -> Stop {
        Stop::Wait(wait)
    }
}
