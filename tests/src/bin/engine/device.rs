//! The benchmark's device: a sparse file, through the page cache, that counts what is asked of it.
//!
//! # Invariants
//!
//! * A request is done when `carry_out` returns. Nothing fails, and a flush moves nothing: what is
//!   measured is what a node asks of a device, not a device.
//!
//! What this module deliberately doesn't know: who asks.

use outrider_core::format::block::Magic;
use outrider_hal::{BLOCK_BYTES, Block, BlockNo, BlockOp};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Sub;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Kinds of blocks that are read, told by their headers; the last is all that is no metadata
/// of the trees.
pub(crate) const KINDS: [(&str, Option<Magic>); 5] = [
    ("manifest", Some(Magic::Btree)),
    ("filter", Some(Magic::RunFilter)),
    ("index", Some(Magic::RunIndex)),
    ("items", Some(Magic::RunItems)),
    ("other", None),
];

/// What was asked of the device.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traffic {
    /// Blocks read, of each kind.
    pub(crate) reads: [u64; KINDS.len()],
    /// Blocks written.
    pub(crate) writes: u64,
    /// Flushes.
    pub(crate) flushes: u64,
}

impl Traffic {
    /// All blocks read.
    pub(crate) fn read(&self) -> u64 {
        self.reads.iter().sum()
    }

    /// Bytes written.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.writes * BLOCK_BYTES as u64
    }
}

impl Sub for Traffic {
    type Output = Traffic;

    fn sub(self, before: Traffic) -> Traffic {
        Traffic {
            reads: std::array::from_fn(|kind| self.reads[kind] - before.reads[kind]),
            writes: self.writes - before.writes,
            flushes: self.flushes - before.flushes,
        }
    }
}

/// The device. Its file goes with it.
pub(crate) struct Device {
    file: File,
    path: PathBuf,
    blocks: u64,
    /// Time spent in here.
    pub(crate) busy: Duration,
}

impl Device {
    /// A device of zeros in a new file of this directory.
    pub(crate) fn create(dir: &Path, blocks: u64) -> io::Result<Device> {
        let path = dir.join(format!("outrider-engine-{}", std::process::id()));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let device = Device { file, path, blocks, busy: Duration::ZERO };
        device.file.set_len(blocks * BLOCK_BYTES as u64)?;
        Ok(device)
    }

    /// Its size.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Does what is asked, and counts it.
    pub(crate) fn carry_out(&mut self, op: &mut BlockOp<'_>, traffic: &mut Traffic) {
        let start = Instant::now();
        match op {
            BlockOp::Read(blkno, block) => {
                self.read(*blkno, block);
                traffic.reads[kind(block)] += 1;
            }
            BlockOp::Write(blkno, block) => {
                let written = self.file.write_all_at(&block.0, at(*blkno));
                written.expect("there is room for the volume");
                traffic.writes += 1;
            }
            BlockOp::Flush => traffic.flushes += 1,
        }
        self.busy += start.elapsed();
    }

    /// Reads a block for whoever wants to know what is there.
    pub(crate) fn read(&self, blkno: BlockNo, block: &mut Block) {
        self.file
            .read_exact_at(&mut block.0, at(blkno))
            .expect("the device is as large as it says");
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A file left behind is seen, and hurts nobody.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn at(blkno: BlockNo) -> u64 {
    blkno.0 * BLOCK_BYTES as u64
}

fn kind(block: &Block) -> usize {
    let found = u32::from_le_bytes([block.0[4], block.0[5], block.0[6], block.0[7]]);
    let is = |magic: Option<Magic>| magic.is_none_or(|magic| found == magic as u32);
    KINDS.iter().position(|(_, magic)| is(*magic)).expect("the last kind is all others")
}
