//! Where things stand on the device, and how large the fixed ones are.
//!
//! ```text
//! block  0..16    not ours: boot sectors, partition tables
//!        16       super block
//!        32..39   quorum blocks, one for each of 7 slots
//!        64..128  ring of 32 pairs of roots
//!        256..    everything else: metadata blocks, runs, file data
//!        last     spare copy of the super block
//! ```

use super::{BlockNo, CommitNo, Term};
use crate::mutant::{Mutant, is_active};

/// The super block.
pub const SUPER_BLKNO: BlockNo = BlockNo(16);
/// The quorum block of slot 0; the others follow.
pub const QUORUM_BLKNO: BlockNo = BlockNo(32);
/// Voters a volume can have.
pub const SLOTS: usize = 7;
/// The first block of the first pair of roots.
pub const ROOT_BLKNO: BlockNo = BlockNo(64);
/// Pairs of roots: a round writes the pair of its number modulo this.
pub const ROOT_PAIRS: u64 = 32;
/// First block that is allocated to anything.
pub const FIRST_BLKNO: BlockNo = BlockNo(256);
/// Smallest volume: what the reserves of [`super::root`] take, and as much again for use.
pub const BLOCKS_MIN: u64 = (64 << 20) / super::BLOCK_BYTES as u64;
/// Largest volume, and so largest address plus one: 2^52 blocks, 16 EiB of bytes.
pub const BLOCKS_MAX: u64 = 1 << 52;

/// The quorum block of this slot.
#[must_use]
pub fn quorum_blkno(slot: u8) -> BlockNo {
    assert!(usize::from(slot) < SLOTS);
    QUORUM_BLKNO.plus(u64::from(slot))
}

/// Where the root of this commit stands: in the pair of the term's round, the two taken in turn.
#[must_use]
pub fn root_blkno(term: Term, commit: CommitNo) -> BlockNo {
    let pair = if is_active(Mutant::SharedRoots) { 0 } else { term.round() % ROOT_PAIRS };
    let which = if is_active(Mutant::RootInPlace) { 0 } else { commit.0 % 2 };
    ROOT_BLKNO.plus(2 * pair + which)
}

/// The spare super block of a device of this many blocks.
#[must_use]
pub fn spare_blkno(blocks: u64) -> BlockNo {
    BlockNo(blocks - 1)
}
