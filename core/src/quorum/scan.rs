//! Reading all voters' blocks, and remembering since when each has not changed.
//!
//! # Invariants
//!
//! * A scan reads all [`SLOTS`] blocks, configured or not, each once, and is over when all of them
//!   have been read or failed. All its reads are submitted after it began.
//! * What a slot was seen to say counts as unchanged from the *completion* of the first read that
//!   showed it, to the *start* of the last scan that still did. Both ends err on the safe side.
//! * A block that could not be read proves nothing: it neither changed, nor did it stay.
//!
//! What this module deliberately doesn't know: what follows from what it saw.

use super::timing::Timing;
use crate::arena::{Arena, ArenaFull};
use crate::crc32c::crc32c;
use crate::error::Corruption;
use crate::format::block::Volume;
use crate::format::quorum::{Ballot, Incarnation, LEASE_MS_MAX, SLOTS, Slot, parse};
use outrider_hal::{Block, BlockNo, BlockOp, BlockRequest, Completion, Instant, IoError, Tag};

/// What was last seen of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// It has not been read yet.
    Unread,
    /// No voter has used it yet.
    Blank,
    /// This is what its voter says.
    Valid(Ballot),
    /// What stands there is not a quorum block of this volume and slot. Not a torn write: see
    /// [`crate::format::quorum`].
    Invalid(Corruption),
    /// The device failed to read it.
    Unreadable(IoError),
}

impl Sight {
    /// What the slot's voter says, if anything.
    #[must_use]
    pub fn ballot(&self) -> Option<&Ballot> {
        match self {
            Sight::Valid(ballot) => Some(ballot),
            Sight::Unread | Sight::Blank | Sight::Invalid(_) | Sight::Unreadable(_) => None,
        }
    }

    /// Whether it is known what the slot's voter says, if only that there is none.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        match self {
            Sight::Blank | Sight::Valid(_) => true,
            Sight::Unread | Sight::Invalid(_) | Sight::Unreadable(_) => false,
        }
    }
}

/// Tells two versions of a block apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Print {
    Blank,
    Version(u64, Incarnation),
    Checksum(u32),
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    sight: Sight,
    /// What the last successful read showed, and when the first one that showed it completed.
    print: Option<(Print, Instant)>,
}

/// The memory of a scan: one block for each slot.
pub(super) struct ScanBlocks<'m>([Option<&'m mut Block>; SLOTS]);

impl<'m> ScanBlocks<'m> {
    pub(super) fn carve(arena: &mut Arena<'m>) -> Result<ScanBlocks<'m>, ArenaFull> {
        let mut blocks = arena.slice(SLOTS as u32, |_| Block::ZERO)?.iter_mut();
        Ok(ScanBlocks(core::array::from_fn(|_| blocks.next())))
    }
}

/// Reads of all voters' blocks, at most one for each slot in flight.
pub(super) struct Scan<'m> {
    volume: Volume,
    base: BlockNo,
    tag_base: u64,
    blocks: [Option<&'m mut Block>; SLOTS],
    seen: [Seen; SLOTS],
    /// Slots still to be read, one bit each.
    unsent: u8,
    /// Slots being read, one bit each.
    in_flight: u8,
    /// Number of the last scan that began; 0 before the first.
    number: u64,
    began: Instant,
}

impl<'m> Scan<'m> {
    /// The tags of its requests are `tag_base` and the [`SLOTS`]` - 1` numbers after it.
    pub(super) fn new(
        volume: Volume,
        base: BlockNo,
        tag_base: u64,
        blocks: ScanBlocks<'m>,
    ) -> Scan<'m> {
        Scan {
            volume,
            base,
            tag_base,
            blocks: blocks.0,
            seen: [Seen { sight: Sight::Unread, print: None }; SLOTS],
            unsent: 0,
            in_flight: 0,
            number: 0,
            began: Instant::default(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.unsent | self.in_flight == 0
    }

    /// Number of the last scan that began; 0 before the first.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// When the last scan began.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    pub(super) fn sight(&self, slot: Slot) -> &Sight {
        &self.seen[slot.index()].sight
    }

    pub(super) fn begin(&mut self, now: Instant) {
        assert!(self.is_idle(), "one scan at a time");
        self.unsent = (1 << SLOTS) - 1;
        self.number += 1;
        self.began = now;
    }

    pub(super) fn poll_request(&mut self) -> Option<BlockRequest<'m>> {
        if self.unsent == 0 {
            return None;
        }
        let index = self.unsent.trailing_zeros() as usize;
        self.unsent &= !(1 << index);
        self.in_flight |= 1 << index;
        let block = self.blocks[index].take().expect("a slot that is not read owns its block");
        let blkno = self.base.plus(index as u64);
        let tag = Tag(self.tag_base + index as u64);
        Some(BlockRequest { tag, op: BlockOp::Read(blkno, block) })
    }

    /// Takes a read's completion; the answer is whether the scan is over.
    pub(super) fn handle_completion(&mut self, now: Instant, done: Completion<'m>) -> bool {
        let BlockOp::Read(_, block) = done.op else {
            unreachable!("tags of reads come back with reads");
        };
        let slot = Slot::ALL[(done.tag.0 - self.tag_base) as usize];
        self.in_flight &= !(1 << slot.index());
        let (sight, print) = match done.result {
            Ok(()) => self.look(block, slot),
            Err(error) => (Sight::Unreadable(error), None),
        };
        let seen = &mut self.seen[slot.index()];
        seen.sight = sight;
        if let Some(print) = print
            && seen.print.is_none_or(|(old, _)| old != print)
        {
            seen.print = Some((print, now));
        }
        self.blocks[slot.index()] = Some(block);
        self.is_idle()
    }

    fn look(&self, block: &Block, slot: Slot) -> (Sight, Option<Print>) {
        match parse(block, &self.volume, self.base, slot) {
            Ok(None) => (Sight::Blank, Some(Print::Blank)),
            Ok(Some(ballot)) => {
                (Sight::Valid(ballot), Some(Print::Version(ballot.seq, ballot.incarnation)))
            }
            Err(what) => (Sight::Invalid(what), Some(Print::Checksum(crc32c(&block.0)))),
        }
    }

    /// When what the slot shows now was first seen, if it could ever be read.
    pub(super) fn unchanged_since(&self, slot: Slot) -> Option<Instant> {
        self.seen[slot.index()].print.map(|(_, since)| since)
    }

    /// Starts to watch the slot anew, as if it had changed just now.
    pub(super) fn forget(&mut self, slot: Slot, now: Instant) {
        if let Some((_, since)) = &mut self.seen[slot.index()].print {
            *since = now;
        }
    }

    /// When a scan must begin to find the slot unchanged for a whole lease of its voter.
    pub(super) fn quiet_at(&self, slot: Slot, timing: &Timing) -> Option<Instant> {
        let lease_ms = match self.sight(slot) {
            Sight::Valid(ballot) => ballot.lease_ms,
            // It may have said anything.
            Sight::Invalid(_) => LEASE_MS_MAX,
            Sight::Unread | Sight::Blank | Sight::Unreadable(_) => 0,
        };
        Some(self.unchanged_since(slot)?.plus(timing.window(lease_ms)))
    }

    /// Whether the last scan found the slot as it had been for a whole lease of its voter.
    pub(super) fn is_quiet(&self, slot: Slot, timing: &Timing) -> bool {
        let readable = match self.sight(slot) {
            Sight::Blank | Sight::Valid(_) | Sight::Invalid(_) => true,
            Sight::Unread | Sight::Unreadable(_) => false,
        };
        readable && self.quiet_at(slot, timing).is_some_and(|at| at <= self.began)
    }
}
