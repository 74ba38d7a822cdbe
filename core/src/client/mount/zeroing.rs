//! Sets bytes of single blocks to zero on the device: reads the block, changes it, writes it back.
//!
//! ```text
//!   Idle --begin--> ToRead --> Reading --> ToWrite --> Writing --> Ended --poll_ended--> Idle
//!                                 |                       |          ^
//!                                 +-------- failed -------+----------+
//! ```
//!
//! # Invariants
//!
//! * Nobody else reads or writes the block meanwhile: who asks for it excludes others from the
//!   inode, and holds its lock.
//!
//! What this module deliberately doesn't know: files.

use crate::arena::{Arena, ArenaFull};
use crate::client::op::{Extent, Place};
use crate::format::BLOCK_BYTES;
use core::ops::Range;
use outrider_hal::{Block, BlockNo, BlockOp, BlockRequest, Completion, Tag};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Idle,
    ToRead,
    Reading,
    ToWrite,
    Writing,
    Ended(bool),
}

struct Job<'m> {
    stage: Stage,
    /// For whom.
    slot: usize,
    blkno: BlockNo,
    bytes: Range<usize>,
    block: Option<&'m mut Block>,
}

/// Blocks in which zeros are written.
pub(super) struct Zeroing<'m> {
    jobs: &'m mut [Job<'m>],
    tag_base: u64,
}

impl<'m> Zeroing<'m> {
    /// Carves so many blocks. Their requests have as many tags, from `tag_base` on.
    pub(super) fn carve(
        arena: &mut Arena<'m>,
        count: u32,
        tag_base: u64,
    ) -> Result<Zeroing<'m>, ArenaFull> {
        let mut blocks = arena.slice(count, |_| Block::ZERO)?.iter_mut();
        let jobs = arena.slice(count, |_| Job {
            stage: Stage::Idle,
            slot: 0,
            blkno: BlockNo(0),
            bytes: 0..0,
            block: blocks.next(),
        })?;
        Ok(Zeroing { jobs, tag_base })
    }

    /// Whether another block can be begun with.
    pub(super) fn has_room(&self) -> bool {
        self.jobs.iter().any(|job| job.stage == Stage::Idle)
    }

    /// Begins with these bytes, all in one block. There is room.
    pub(super) fn begin(&mut self, slot: usize, extent: &Extent) {
        let idle = self.jobs.iter_mut().find(|job| job.stage == Stage::Idle);
        let job = idle.expect("room was looked for");
        let start = (extent.at % BLOCK_BYTES as u64) as usize;
        job.slot = slot;
        job.bytes = start..start + extent.len as usize;
        match extent.place {
            Place::Blocks(blkno) if job.bytes.end <= BLOCK_BYTES => {
                job.blkno = blkno;
                job.stage = Stage::ToRead;
            }
            Place::Blocks(_) | Place::Fresh(_) | Place::Hole => {
                unreachable!("what is zeroed lies in one block that holds data")
            }
        }
    }

    /// The next request to submit.
    pub(super) fn poll_request(&mut self) -> Option<BlockRequest<'m>> {
        let due = |job: &Job<'_>| matches!(job.stage, Stage::ToRead | Stage::ToWrite);
        let index = self.jobs.iter().position(due)?;
        let job = &mut self.jobs[index];
        let block = job.block.take()?;
        let op = if job.stage == Stage::ToRead {
            job.stage = Stage::Reading;
            BlockOp::Read(job.blkno, block)
        } else {
            job.stage = Stage::Writing;
            BlockOp::Write(job.blkno, block)
        };
        Some(BlockRequest { tag: Tag(self.tag_base + index as u64), op })
    }

    /// Takes the completion of one of its requests.
    pub(super) fn handle_completion(&mut self, done: Completion<'m>) {
        let job = &mut self.jobs[(done.tag.0 - self.tag_base) as usize];
        let ok = done.result.is_ok();
        match done.op {
            BlockOp::Read(_, block) => {
                block.0[job.bytes.clone()].fill(0);
                job.block = Some(block);
                job.stage = if ok { Stage::ToWrite } else { Stage::Ended(false) };
            }
            BlockOp::Write(_, block) => {
                job.block = Some(block);
                job.stage = Stage::Ended(ok);
            }
            BlockOp::Flush => unreachable!("it flushes nothing"),
        }
    }

    /// Ends what has not been submitted yet: nothing more will be.
    pub(super) fn abandon(&mut self) {
        for job in self.jobs.iter_mut() {
            match job.stage {
                Stage::ToRead | Stage::ToWrite => job.stage = Stage::Ended(false),
                Stage::Idle | Stage::Reading | Stage::Writing | Stage::Ended(_) => {}
            }
        }
    }

    /// Requests that the device has not given back.
    pub(super) fn in_flight(&self) -> usize {
        let under_way = |job: &&Job<'_>| matches!(job.stage, Stage::Reading | Stage::Writing);
        self.jobs.iter().filter(under_way).count()
    }

    /// One that has ended: for whom, and whether the bytes are zero now.
    pub(super) fn poll_ended(&mut self) -> Option<(usize, bool)> {
        self.jobs.iter_mut().find_map(|job| match job.stage {
            Stage::Ended(ok) => {
                job.stage = Stage::Idle;
                Some((job.slot, ok))
            }
            Stage::Idle | Stage::ToRead | Stage::Reading | Stage::ToWrite | Stage::Writing => None,
        })
    }
}
