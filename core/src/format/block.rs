//! The header all metadata blocks begin with, and the one gate between bytes and meaning.

use super::{BLOCK_BYTES, Block, BlockNo};
use crate::crc32c::crc32c_seeded;
use crate::error::Corruption;
use crate::mutant::{Mutant, is_active};
use crate::record;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

record! {
    /// First bytes of every metadata block.
    pub struct BlockHeader [32] {
        /// CRC-32C, seeded with the volume's secret, of every byte of the block after this field.
        crc: U32,
        /// What kind of block this is: a [`Magic`].
        magic: U32,
        /// The volume the block belongs to.
        fsid: U64,
        /// The block's own address, in blocks.
        blkno: U64,
        /// Tells versions of a block at one address apart. What it counts depends on the kind.
        seq: U64,
    }
}

/// Bytes of a block behind its header.
pub const BODY_BYTES: usize = BLOCK_BYTES - size_of::<BlockHeader>();

/// Kinds of metadata blocks. The values are four letters, so that a hex dump tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Magic {
    /// The super block and its spare.
    Super = u32::from_le_bytes(*b"ORsb"),
    /// A voter's quorum block.
    Quorum = u32::from_le_bytes(*b"ORqu"),
    /// A root: one half of one of the ring's pairs.
    Root = u32::from_le_bytes(*b"ORrt"),
    /// A node of a btree.
    Btree = u32::from_le_bytes(*b"ORbt"),
    /// A block of items of a run.
    RunItems = u32::from_le_bytes(*b"ORri"),
    /// A block of a run's index.
    RunIndex = u32::from_le_bytes(*b"ORrx"),
    /// A block of a run's filter.
    RunFilter = u32::from_le_bytes(*b"ORrf"),
}

/// What every block of a volume has in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// The volume's number.
    pub fsid: u64,
    /// Seed of the checksums: a secret drawn by mkfs. A block that a user's data happens to look
    /// like fails the check, because the user can't know it. 0 for super blocks, which hold it.
    pub crc_seed: u32,
}

/// What a reference to a block promises about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    /// The kind.
    pub magic: Magic,
    /// The address it is read from.
    pub blkno: BlockNo,
    /// Its version, where the reference knows it.
    pub seq: Option<u64>,
}

/// The header of a block, whatever it holds.
#[must_use]
pub fn header(block: &Block) -> &BlockHeader {
    BlockHeader::ref_from_prefix(&block.0).expect("a block is larger than its header").0
}

/// Checks that a block just read is what the reference to it promised. Afterwards its bytes are
/// those that [`seal`] closed over, though not necessarily meaningful ones.
pub fn open(block: &Block, volume: &Volume, promise: &Promise) -> Result<(), Corruption> {
    let header = header(block);
    let crc = crc32c_seeded(volume.crc_seed, &block.0[size_of::<U32>()..]);
    if header.crc.get() != crc && !is_active(Mutant::ChecksumSkipped) {
        return Err(Corruption::Checksum);
    }
    if header.magic.get() != promise.magic as u32 {
        return Err(Corruption::Kind);
    }
    if header.fsid.get() != volume.fsid {
        return Err(Corruption::Volume);
    }
    if header.blkno.get() != promise.blkno.0 {
        return Err(Corruption::Misdirected);
    }
    if promise.seq.is_some_and(|seq| header.seq.get() != seq) {
        return Err(Corruption::Stale);
    }
    Ok(())
}

/// Closes a block before it is written: fills in the header and the checksum over all the rest.
pub fn seal(block: &mut Block, volume: &Volume, magic: Magic, blkno: BlockNo, seq: u64) {
    let (header, _) =
        BlockHeader::mut_from_prefix(&mut block.0).expect("a block is larger than its header");
    *header = BlockHeader {
        crc: 0.into(),
        magic: (magic as u32).into(),
        fsid: volume.fsid.into(),
        blkno: blkno.0.into(),
        seq: seq.into(),
    };
    let crc = crc32c_seeded(volume.crc_seed, &block.0[size_of::<U32>()..]);
    block.0[..size_of::<U32>()].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::{Magic, Promise, Volume, open, seal};
    use crate::error::Corruption;
    use outrider_hal::{Block, BlockNo};

    const VOLUME: Volume = Volume { fsid: 7, crc_seed: 0x1234_5678 };
    const PROMISE: Promise = Promise { magic: Magic::Btree, blkno: BlockNo(99), seq: Some(5) };

    fn sealed() -> Block {
        let mut block = Block([0xa5; 4096]);
        seal(&mut block, &VOLUME, Magic::Btree, BlockNo(99), 5);
        block
    }

    #[test]
    fn what_was_sealed_opens() {
        assert_eq!(open(&sealed(), &VOLUME, &PROMISE), Ok(()));
        assert_eq!(open(&sealed(), &VOLUME, &Promise { seq: None, ..PROMISE }), Ok(()));
    }

    #[test]
    fn every_broken_promise_has_its_name() {
        let open = |volume, promise| open(&sealed(), &volume, &promise);
        let kind = Promise { magic: Magic::Root, ..PROMISE };
        let moved = Promise { blkno: BlockNo(98), ..PROMISE };
        let stale = Promise { seq: Some(6), ..PROMISE };
        assert_eq!(open(VOLUME, kind), Err(Corruption::Kind));
        assert_eq!(open(VOLUME, moved), Err(Corruption::Misdirected));
        assert_eq!(open(VOLUME, stale), Err(Corruption::Stale));
        assert_eq!(open(Volume { fsid: 8, ..VOLUME }, PROMISE), Err(Corruption::Volume));
        assert_eq!(open(Volume { crc_seed: 0, ..VOLUME }, PROMISE), Err(Corruption::Checksum));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for bit in (0..4096 * 8).step_by(7) {
            let mut block = sealed();
            block.0[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&block, &VOLUME, &PROMISE), Err(Corruption::Checksum));
        }
    }
}
