//! File data between a request's memory and the device.
//!
//! # Invariants
//!
//! * Only whole blocks are transferred, from and to memory that is aligned for direct transfers:
//!   where a request's isn't, or covers a block in part, the bytes go through a block of the
//!   mover's own.
//! * Nothing outside the device is touched, whatever an extent says: one may come from a damaged
//!   item.
//!
//! What this module deliberately doesn't know: which file, and who asked.

use crate::disk::{Access, count_blocks, open_file, transfer_error};
use crate::fuse::Buffer;
use outrider_core::client::op::{Extent, IO_BYTES_MAX, Place};
use outrider_hal::{BLOCK_BYTES, BlockNo, IoError};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: usize = BLOCK_BYTES;

/// The device, for file data.
#[derive(Debug)]
pub struct DataDevice {
    file: File,
    blocks: u64,
}

/// Aligned memory of one thread, for what can't be transferred straight.
#[derive(Debug)]
pub(super) struct Bounce(Buffer);

impl Bounce {
    pub(super) fn new() -> Bounce {
        Bounce(Buffer::new(IO_BYTES_MAX as usize))
    }
}

/// Where a file's first byte of a transfer's memory is, rounded down to a block: memory for reading
/// begins with the whole block that holds the first byte asked for.
pub(super) const fn block_start(at: u64) -> u64 {
    at - at % BLOCK as u64
}

impl DataDevice {
    /// Opens the device, as all its users on this host do.
    pub fn open(path: &Path, access: Access) -> io::Result<DataDevice> {
        let file = open_file(path, access)?;
        let blocks = count_blocks(&file)?;
        Ok(DataDevice { file, blocks })
    }

    /// Where these blocks begin on the device.
    fn offset(&self, block: BlockNo, bytes: usize) -> Result<u64, IoError> {
        let count = bytes.div_ceil(BLOCK) as u64;
        let end = block.0.checked_add(count).ok_or(IoError::OutOfRange)?;
        if end > self.blocks { Err(IoError::OutOfRange) } else { Ok(block.0 * BLOCK as u64) }
    }

    fn read_blocks(&self, block: BlockNo, bytes: &mut [u8]) -> Result<(), IoError> {
        let at = self.offset(block, bytes.len())?;
        self.file.read_exact_at(bytes, at).map_err(|error| transfer_error(&error))
    }

    fn write_blocks(&self, block: BlockNo, bytes: &[u8]) -> Result<(), IoError> {
        let at = self.offset(block, bytes.len())?;
        self.file.write_all_at(bytes, at).map_err(|error| transfer_error(&error))
    }

    /// Reads the blocks of these extents. The memory's first byte is the file's at
    /// [`block_start`] of `base`, a place at or before the extents.
    pub(super) fn read(
        &self,
        extents: &[Extent],
        base: u64,
        memory: &mut [u8],
    ) -> Result<(), IoError> {
        for extent in extents {
            let from = block_start(extent.at).checked_sub(block_start(base));
            let from = from.ok_or(IoError::OutOfRange)? as usize;
            let to = from + extent.blocks() as usize * BLOCK;
            let bytes = memory.get_mut(from..to).ok_or(IoError::OutOfRange)?;
            match extent.place {
                Place::Blocks(block) => self.read_blocks(block, bytes)?,
                Place::Hole | Place::Fresh(_) => bytes.fill(0),
            }
        }
        Ok(())
    }

    /// Writes the data to these extents. The data's first byte is the file's at `base`.
    pub(super) fn write(
        &self,
        extents: &[Extent],
        base: u64,
        data: &[u8],
        bounce: &mut Bounce,
    ) -> Result<(), IoError> {
        for extent in extents {
            let from = extent.at.checked_sub(base).ok_or(IoError::OutOfRange)? as usize;
            let to = from + extent.len as usize;
            let data = data.get(from..to).ok_or(IoError::OutOfRange)?;
            self.write_extent(extent, data, bounce)?;
        }
        Ok(())
    }

    fn write_extent(
        &self,
        extent: &Extent,
        mut data: &[u8],
        bounce: &mut Bounce,
    ) -> Result<(), IoError> {
        let (mut block, fresh) = match extent.place {
            Place::Blocks(block) => (block, false),
            Place::Fresh(block) => (block, true),
            Place::Hole => return Err(IoError::OutOfRange),
        };
        let start = (extent.at % BLOCK as u64) as usize;
        if start > 0 || data.len() < BLOCK {
            let (head, rest) = data.split_at(data.len().min(BLOCK - start));
            self.write_part(block, fresh, start, head, bounce)?;
            (data, block) = (rest, block.plus(1));
        }
        let (whole, tail) = data.split_at(data.len() - data.len() % BLOCK);
        self.write_whole(block, whole, bounce)?;
        if tail.is_empty() {
            return Ok(());
        }
        let block = block.plus((whole.len() / BLOCK) as u64);
        self.write_part(block, fresh, 0, tail, bounce)
    }

    /// Writes part of a block, with zeros around it or what is there.
    fn write_part(
        &self,
        block: BlockNo,
        fresh: bool,
        start: usize,
        part: &[u8],
        bounce: &mut Bounce,
    ) -> Result<(), IoError> {
        let whole = &mut bounce.0[..BLOCK];
        if fresh {
            whole.fill(0);
        } else {
            self.read_blocks(block, whole)?;
        }
        whole[start..start + part.len()].copy_from_slice(part);
        self.write_blocks(block, whole)
    }

    /// Writes whole blocks.
    fn write_whole(&self, block: BlockNo, data: &[u8], bounce: &mut Bounce) -> Result<(), IoError> {
        if data.is_empty() {
            return Ok(());
        }
        if data.as_ptr().addr().is_multiple_of(BLOCK) {
            return self.write_blocks(block, data);
        }
        let moved = &mut bounce.0[..data.len()];
        moved.copy_from_slice(data);
        self.write_blocks(block, moved)
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Bounce, DataDevice, block_start};
    use crate::disk::Access;
    use crate::fuse::Buffer;
    use outrider_core::client::op::{Extent, Place};
    use outrider_hal::{BlockNo, IoError};
    use proptest::prelude::*;

    const BLOCKS: u64 = 64;

    fn device() -> (DataDevice, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        std::fs::write(&path, vec![0xee; BLOCKS as usize * BLOCK]).unwrap();
        (DataDevice::open(&path, Access::ReadWrite).unwrap(), dir)
    }

    /// What each block of a file is mapped to: to every other block of the device.
    fn place(kind: u8, block: u64) -> Place {
        match kind {
            0 => Place::Hole,
            1 => Place::Fresh(BlockNo(2 * block)),
            _ => Place::Blocks(BlockNo(2 * block)),
        }
    }

    fn extents(kinds: &[u8], at: u64, len: u64) -> Vec<Extent> {
        let mut extents = Vec::new();
        let mut from = at;
        while from < at + len {
            let block = from / BLOCK as u64;
            let to = ((block + 1) * BLOCK as u64).min(at + len);
            let place = place(kinds[block as usize], block);
            extents.push(Extent { at: from, len: (to - from) as u32, place });
            from = to;
        }
        extents
    }

    fn read(device: &DataDevice, kinds: &[u8], at: u64, len: u64) -> Vec<u8> {
        let mut memory = Buffer::new(20 * BLOCK);
        device.read(&extents(kinds, at, len), at, &mut memory).unwrap();
        let from = (at - block_start(at)) as usize;
        memory[from..from + len as usize].to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
        #[test]
        fn a_file_holds_what_was_written(
            mut kinds in prop::collection::vec(1..3u8, 16),
            writes in prop::collection::vec((0..15 * BLOCK as u64, 1..3 * BLOCK as u64), 1..6),
            reads in prop::collection::vec((0..12 * BLOCK as u64, 1..4 * BLOCK as u64), 3),
        ) {
            let (device, _dir) = device();
            let mut bounce = Bounce::new();
            let mut file: Vec<u8> =
                (0..16 * BLOCK).map(|at| if kinds[at / BLOCK] == 1 { 0 } else { 0xee }).collect();
            for (round, (at, len)) in writes.into_iter().enumerate() {
                let len = len.min(16 * BLOCK as u64 - at);
                let bytes: Vec<u8> = (0..len).map(|byte| (byte as u8) ^ round as u8).collect();
                let mut data = Buffer::new(len as usize);
                data.copy_from_slice(&bytes);
                device.write(&extents(&kinds, at, len), at, &data, &mut bounce).unwrap();
                file[at as usize..(at + len) as usize].copy_from_slice(&bytes);
                let (first, last) = (at as usize / BLOCK, (at + len - 1) as usize / BLOCK);
                kinds[first..=last].fill(2);
            }
            for (at, len) in reads {
                prop_assert_eq!(
                    &read(&device, &kinds, at, len)[..], &file[at as usize..(at + len) as usize]
                );
            }
            // Nothing else was touched.
            let mut between = Buffer::new(BLOCK);
            for block in 0..16 {
                device.read_blocks(BlockNo(2 * block + 1), &mut between).unwrap();
                prop_assert!(between.iter().all(|byte| *byte == 0xee));
            }
        }
    }

    #[test]
    fn long_extents_are_moved_at_once_and_holes_are_zeros() {
        let (device, _dir) = device();
        let at = 7;
        let data = Buffer::copy(&vec![b'x'; 10 * BLOCK]);
        let extent = Extent { at, len: data.len() as u32, place: Place::Fresh(BlockNo(20)) };
        device.write(&[extent], at, &data, &mut Bounce::new()).unwrap();
        let mut memory = Buffer::new(13 * BLOCK);
        let extent = Extent { place: Place::Blocks(BlockNo(20)), ..extent };
        let hole = Extent { at: 11 * BLOCK as u64, len: 9, place: Place::Hole };
        device.read(&[extent, hole], at, &mut memory).unwrap();
        let (zeros, rest) = memory.split_at(7);
        assert!(zeros.iter().all(|byte| *byte == 0));
        assert!(rest[..10 * BLOCK].iter().all(|byte| *byte == b'x'));
        assert!(rest[10 * BLOCK..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn nothing_outside_the_device_or_the_memory_is_touched() {
        let (device, _dir) = device();
        let mut memory = Buffer::new(2 * BLOCK);
        let extent = |len: usize, place| Extent { at: 0, len: len as u32, place };
        let far = [BlockNo(BLOCKS), BlockNo(BLOCKS - 1), BlockNo(u64::MAX)];
        for block in far {
            let extent = extent(BLOCK + 1, Place::Blocks(block));
            assert_eq!(device.read(&[extent], 0, &mut memory), Err(IoError::OutOfRange));
            let written = device.write(&[extent], 0, &memory, &mut Bounce::new());
            assert_eq!(written, Err(IoError::OutOfRange));
        }
        let large = extent(3 * BLOCK, Place::Hole);
        assert_eq!(device.read(&[large], 0, &mut memory), Err(IoError::OutOfRange));
        let large = extent(3 * BLOCK, Place::Fresh(BlockNo(0)));
        let written = device.write(&[large], 0, &memory, &mut Bounce::new());
        assert_eq!(written, Err(IoError::OutOfRange));
        assert_eq!(device.file.metadata().unwrap().len(), BLOCKS * BLOCK as u64);
    }
}
