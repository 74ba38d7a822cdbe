//! What travels between nodes: records, the frames in them, and their payloads.
//!
//! ```text
//!   connection := record*            one direction of a byte stream
//!   record     := RecordHeader body  checked: magic, length, checksum
//!   body       := greeting           the first two records of either side, see `greeting`
//!               | frame              all later ones
//!   frame      := FrameHeader payload
//!   payload    := a request's or an answer's, see `message`
//! ```
//!
//! # Invariants
//!
//! * A length is checked before anything is buffered for it, the checksum before anything is read
//!   as a number, and every number that can be meaningless before it is used.
//! * No message needs more than [`PAYLOAD_BYTES_MAX`], and each has a bound of its own.
//! * Numbers of kinds and of error codes are never reused. What is sent is known to the receiver:
//!   the greeting chose the version and the features, so an unknown kind is an error, not a guess.
//!   Only error codes may be newer than their reader, which then sees [`ErrorCode::Unknown`].
//!
//! # Versions and features
//!
//! | version | since it |
//! |---|---|
//! | 1 | everything described here |
//!
//! The first byte of a greeting's records, their order and the fields of [`greeting::Hello`] and
//! [`greeting::Challenge`] up to the versions stay as they are in every later version, so that any
//! two nodes can tell each other what they lack. A change of any other structure is a new version;
//! an optional addition is a feature bit. No feature bit is defined yet.
//!
//! What this module deliberately doesn't know: sequence numbers' rules, and who sends what when.

pub mod greeting;
pub mod message;

mod code;

pub use code::ErrorCode;

use crate::record;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// The newest protocol version this code speaks, and so far the only one.
pub const PROTOCOL_VERSION: u16 = 1;

/// Largest payload of a frame: that of a transaction with all its lists full.
///
/// | part | each | most | bytes |
/// |---|---|---|---|
/// | fixed part | 32 | 1 | 32 |
/// | runs | 256 | 8 | 2048 |
/// | extents used | 16 | 128 | 2048 |
/// | extents freed | 16 | 254 | 4064 |
/// | | | | **8192** |
pub const PAYLOAD_BYTES_MAX: usize = 8192;

/// Largest body of a record.
pub const BODY_BYTES_MAX: usize = size_of::<FrameHeader>() + PAYLOAD_BYTES_MAX;

/// Largest record.
pub const RECORD_BYTES_MAX: usize = size_of::<RecordHeader>() + BODY_BYTES_MAX;

/// First bytes of every record: `ORnw` in a hex dump.
pub const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"ORnw");

record! {
    /// First bytes of every record.
    pub struct RecordHeader [12] {
        /// [`RECORD_MAGIC`].
        magic: U32,
        /// Bytes of the body that follows.
        body_bytes: U32,
        /// CRC-32C, seeded with the connection's secret for this direction (0 during the greeting),
        /// of the number of records sent before this one as 8 bytes, the two fields above, and the
        /// body.
        crc: U32,
    }

    /// First bytes of every frame.
    pub struct FrameHeader [32] {
        /// Number of this message, from 1, one more than that of the one sent before it in this
        /// direction of the session; 0 in a frame that only acknowledges.
        seq: U64,
        /// Every message received up to this number has its outcome recorded at the sender.
        ack: U64,
        /// Name of the request: counts up per sender, from 1, and is repeated by the answer. 0 in a
        /// frame that only acknowledges.
        request: U64,
        /// What is asked or answered: a [`Kind`]; 0 in a frame that only acknowledges.
        kind: U16,
        /// [`FLAG_ANSWER`].
        flags: u8,
        /// Why the request failed: an [`ErrorCode`]; 0 in requests, and in answers when it did not.
        error: u8,
        /// Zero.
        reserved: [u8; 4],
    }
}

/// In [`FrameHeader::flags`]: the frame answers a request.
pub const FLAG_ANSWER: u8 = 1;

/// Why bytes are not what they should be. One variant for each check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// There are fewer or more bytes than the structure and its counts ask for.
    Length,
    /// A count is above its bound.
    Count,
    /// A reserved byte, or one that has no meaning here, is not zero.
    Reserved,
    /// A field holds a value that has no meaning.
    Value,
    /// A number that names something is 0.
    Zero,
    /// A range is empty, reversed, or ends past the last number there is.
    Range,
    /// A kind that does not exist, or that this side does not ask.
    Kind,
}

/// What is asked. The number is that on the wire: 1 to 127 are asked by clients, 129 to 255 by the
/// server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Wants a lock in some mode, or gives one up, or part of it. Answered at once.
    LockAsk = 1,
    /// Asks which of some nameless inodes nobody uses.
    Orphans = 2,
    /// Records what a client transaction wrote.
    Transaction = 3,
    /// Borrows space and numbers, and gives some back.
    Loan = 4,
    /// Asks for the current manifest root.
    Root = 5,
    /// Asks how full the volume is.
    Statfs = 6,
    /// Ends the session: the client leaves the volume.
    Farewell = 7,
    /// Asks who leads, and how it goes.
    Status = 8,
    /// Says that nothing of an earlier compaction is under way, and how many can be asked for.
    CompactReady = 9,
    /// Says what has come of a compaction.
    Compacted = 10,
    /// Says that a client is gone for good: an operator's word.
    Fence = 11,
    /// Asks how clients stand.
    Clients = 12,
    /// Asks who waits for a lock that another has.
    Waits = 13,
    /// Asks that what a root leads to stays as it is while it is read, for how long, or no longer.
    Pin = 14,
    /// Grants a lock, takes one back, or part of it, or refuses one. Answered at once.
    LockTell = 129,
    /// Asks which locks a client holds.
    Recover = 130,
    /// Asks for borrowed space back.
    Recall = 131,
    /// Asks which of some nameless inodes a client uses.
    InUse = 132,
    /// Asks to merge runs. Answered at once; what comes of it is said by [`Kind::Compacted`].
    Compact = 144,
}

/// Which end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// A mount, or a program that asks for the status.
    Client,
    /// The leader.
    Server,
}

/// How many requests of a kind may be unanswered at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// One of this kind.
    One,
    /// As many as the greeting agreed on, together with all other kinds of this sort.
    Shared,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 19] = [
        Kind::LockAsk,
        Kind::Orphans,
        Kind::Transaction,
        Kind::Loan,
        Kind::Root,
        Kind::Statfs,
        Kind::Farewell,
        Kind::Status,
        Kind::CompactReady,
        Kind::Compacted,
        Kind::Fence,
        Kind::Clients,
        Kind::Waits,
        Kind::Pin,
        Kind::LockTell,
        Kind::Recover,
        Kind::Recall,
        Kind::InUse,
        Kind::Compact,
    ];

    /// The kind of this number on the wire.
    #[must_use]
    pub fn from_wire(raw: u16) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u16 == raw)
    }

    /// Who asks it.
    #[must_use]
    pub const fn asker(self) -> Party {
        match self {
            Kind::LockAsk
            | Kind::Orphans
            | Kind::Transaction
            | Kind::Loan
            | Kind::Root
            | Kind::Statfs
            | Kind::Farewell
            | Kind::Status
            | Kind::CompactReady
            | Kind::Compacted
            | Kind::Fence
            | Kind::Clients
            | Kind::Waits
            | Kind::Pin => Party::Client,
            Kind::LockTell | Kind::Recover | Kind::Recall | Kind::InUse | Kind::Compact => {
                Party::Server
            }
        }
    }

    /// How many may be unanswered at once.
    #[must_use]
    pub const fn window(self) -> Window {
        match self {
            Kind::Orphans
            | Kind::Transaction
            | Kind::Loan
            | Kind::Farewell
            | Kind::CompactReady
            | Kind::Compacted
            | Kind::Fence
            | Kind::Clients
            | Kind::Waits
            | Kind::Pin
            | Kind::Recover
            | Kind::Recall
            | Kind::InUse
            | Kind::Compact => Window::One,
            Kind::LockAsk | Kind::Root | Kind::Statfs | Kind::Status | Kind::LockTell => {
                Window::Shared
            }
        }
    }

    /// Whether a request means something only to the server it was made for, or by: it is not sent
    /// to the next one.
    #[must_use]
    pub const fn is_of_one_term(self) -> bool {
        match self {
            Kind::LockAsk
            | Kind::LockTell
            | Kind::Recover
            | Kind::Recall
            | Kind::InUse
            | Kind::CompactReady
            | Kind::Compacted
            | Kind::Pin
            | Kind::Compact => true,
            Kind::Orphans
            | Kind::Transaction
            | Kind::Loan
            | Kind::Root
            | Kind::Statfs
            | Kind::Farewell
            | Kind::Status
            | Kind::Fence
            | Kind::Clients
            | Kind::Waits => false,
        }
    }
}

/// A frame whose header has been checked; its payload has not been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'b> {
    /// Every message up to this number has its outcome recorded at the sender.
    pub ack: u64,
    /// The message, unless the frame only acknowledges.
    pub message: Option<Message<'b>>,
}

/// A message as it stands in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'b> {
    /// Its number in this direction of the session; never 0.
    pub seq: u64,
    /// Name of the request that it is or answers; never 0.
    pub request: u64,
    /// Kind of that request.
    pub kind: Kind,
    /// Whether it is a request or an answer.
    pub part: Part,
    /// At most [`PAYLOAD_BYTES_MAX`].
    pub payload: &'b [u8],
}

/// Which half of an exchange a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A request.
    Request,
    /// The answer to one, and why it failed, if it did.
    Answer(Option<ErrorCode>),
}

impl<'b> Frame<'b> {
    /// Checks the header of a frame.
    pub fn parse(body: &'b [u8]) -> Result<Frame<'b>, Malformed> {
        let (header, payload) = take::<FrameHeader>(body)?;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Malformed::Length);
        }
        reserved(&header.reserved)?;
        if header.flags & !FLAG_ANSWER != 0 {
            return Err(Malformed::Value);
        }
        let ack = header.ack.get();
        if header.seq.get() == 0 {
            let idle = FrameHeader { ack: header.ack, ..FrameHeader::IDLE };
            return match *header == idle && payload.is_empty() {
                true => Ok(Frame { ack, message: None }),
                false => Err(Malformed::Zero),
            };
        }
        let answer = header.flags & FLAG_ANSWER != 0;
        let part = match (answer, ErrorCode::from_wire(header.error)) {
            (true, error) => Part::Answer(error),
            (false, None) => Part::Request,
            (false, Some(_)) => return Err(Malformed::Value),
        };
        if header.request.get() == 0 {
            return Err(Malformed::Zero);
        }
        let kind = Kind::from_wire(header.kind.get()).ok_or(Malformed::Kind)?;
        let (seq, request) = (header.seq.get(), header.request.get());
        Ok(Frame { ack, message: Some(Message { seq, request, kind, part, payload }) })
    }

    /// The header of this frame; its payload follows it.
    #[must_use]
    pub fn header(&self) -> FrameHeader {
        let ack = self.ack.into();
        let Some(message) = &self.message else {
            return FrameHeader { ack, ..FrameHeader::IDLE };
        };
        let (flags, error) = match message.part {
            Part::Request => (0, 0),
            Part::Answer(error) => (FLAG_ANSWER, error.map_or(0, ErrorCode::to_wire)),
        };
        FrameHeader {
            seq: message.seq.into(),
            ack,
            request: message.request.into(),
            kind: (message.kind as u16).into(),
            flags,
            error,
            reserved: [0; 4],
        }
    }
}

impl FrameHeader {
    /// A frame that acknowledges nothing.
    const IDLE: FrameHeader = FrameHeader {
        seq: U64::ZERO,
        ack: U64::ZERO,
        request: U64::ZERO,
        kind: U16::ZERO,
        flags: 0,
        error: 0,
        reserved: [0; 4],
    };
}

/// The structure at the start of `bytes`, and what follows it.
fn take<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
) -> Result<(&T, &[u8]), Malformed> {
    T::ref_from_prefix(bytes).map_err(|_| Malformed::Length)
}

/// The structure that `bytes` are, no more and no less.
fn whole<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
) -> Result<&T, Malformed> {
    T::ref_from_bytes(bytes).map_err(|_| Malformed::Length)
}

/// Checks that these bytes are zero.
fn reserved(bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(Malformed::Reserved) }
}

/// Checks that a number that names something does.
fn named(number: U64) -> Result<u64, Malformed> {
    if number.get() == 0 { Err(Malformed::Zero) } else { Ok(number.get()) }
}

#[cfg(test)]
mod tests;
