//! Space of files: reserving it, giving it back, and finding where it is.
//!
//! What this module deliberately doesn't know: bytes.

use super::data::BLOCK;
use super::map::{Change, Patch};
use super::{Run, Stage, Stop};
use crate::client::op::{FallocateMode, Handle, OpError, Reply, Whence};
use crate::format::Ino;
use crate::format::item::{FILE_BYTES_MAX, Mapping};
use crate::format::key::FileBlock;
use crate::lock::Mode;

impl Run<'_, '_, '_, '_> {
    pub(super) fn fallocate(
        &mut self,
        ino: Ino,
        handle: Handle,
        at: u64,
        len: u64,
        mode: FallocateMode,
    ) -> Result<Reply, Stop> {
        self.check_handle(ino, handle)?;
        let end = at.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX);
        let end = end.ok_or(OpError::FileTooBig)?;
        self.exclude(ino, true)?;
        self.lock_inodes(&[(ino, Mode::Write)])?;
        self.drain(ino)?;
        let inode = self.file(ino)?;
        if len == 0 {
            return Err(OpError::Invalid.into());
        }
        if inode.offline_blocks > 0 {
            return Err(OpError::NotSupported.into());
        }
        // All blocks touched, and those that are in the range as a whole.
        let (first, last) = (FileBlock(at / BLOCK), FileBlock((end - 1) / BLOCK));
        // What covers the last block up to the end of the file covers it wholly.
        let upto = if end < inode.size { end } else { end.next_multiple_of(BLOCK) };
        let inner = (FileBlock(at.div_ceil(BLOCK)), (upto / BLOCK).checked_sub(1).map(FileBlock));
        let grows = matches!(mode, FallocateMode::Allocate | FallocateMode::Zero);
        if grows {
            self.clear_tail(ino, inode.size, end)?;
        }
        match mode {
            FallocateMode::Allocate | FallocateMode::AllocateKeepSize => {}
            FallocateMode::PunchHole => self.empty(ino, (at, upto), inner, Change::Free)?,
            FallocateMode::Zero | FallocateMode::ZeroKeepSize => {
                self.empty(ino, (at, upto), inner, Change::Blank)?;
            }
        }
        if mode != FallocateMode::PunchHole {
            self.fill_holes(ino, first, last)?;
        }
        let inode = self.file(ino)?;
        let mut new = inode;
        if grows {
            new.size = new.size.max(end);
        }
        new.data_version += 1;
        self.touch(&mut new);
        if !self.is_root() {
            self.strip(&mut new)?;
        }
        self.lock_indices(&[(Some(&inode), true)])?;
        self.fs.changes.clear();
        self.rewrite_inode(ino, &inode, new, true);
        self.commit()?;
        Ok(Reply::Empty)
    }

    /// Makes a range read as zeros: the ends on the device, the blocks between them by their
    /// mapping.
    fn empty(
        &mut self,
        ino: Ino,
        (at, end): (u64, u64),
        (first, last): (FileBlock, Option<FileBlock>),
        change: Change,
    ) -> Result<(), Stop> {
        let head = end.min(at.next_multiple_of(BLOCK));
        self.zero(ino, at, head, Stage::RangeHead)?;
        let tail = (end - end % BLOCK).max(head);
        self.zero(ino, tail, end, Stage::RangeTail)?;
        let Some(last) = last else { return Ok(()) };
        loop {
            let from = self.task.at.map_or(first, FileBlock);
            if from > last {
                return Ok(());
            }
            let (old, reached) = self.extents_near(ino, from, last)?;
            let patch = Patch::plan(&old, from, reached, change);
            if patch.old != patch.new {
                let inode = self.file(ino)?;
                self.apply_patch(ino, &inode, inode, &patch)?;
            }
            // What is behind has been seen to; it may have extents again, but reserved ones.
            self.task.at = Some(reached.0 + 1);
        }
    }

    /// Reserves blocks for all holes in a range.
    fn fill_holes(&mut self, ino: Ino, first: FileBlock, last: FileBlock) -> Result<(), Stop> {
        let mut at = first;
        while at <= last {
            match self.extent(ino, at)? {
                Some(extent) if extent.first() <= at => at = FileBlock(extent.last.0 + 1),
                Some(extent) => {
                    let end = FileBlock(last.0.min(extent.first().0 - 1));
                    self.fill_hole(ino, at, end, false)?;
                }
                None => self.fill_hole(ino, at, last, false)?,
            }
        }
        Ok(())
    }

    pub(super) fn lseek(
        &mut self,
        ino: Ino,
        handle: Handle,
        at: u64,
        whence: Whence,
    ) -> Result<Reply, Stop> {
        self.check_handle(ino, handle)?;
        self.lock_inodes(&[(ino, Mode::Read)])?;
        let inode = self.file(ino)?;
        let mut from = self.task.at.unwrap_or(at);
        while from < inode.size {
            let extent = self.extent(ino, FileBlock(from / BLOCK))?;
            let Some(extent) = extent else {
                return match whence {
                    Whence::Data => Err(OpError::NoSuchAddress.into()),
                    Whence::Hole => Ok(Reply::Offset(from)),
                };
            };
            let start = extent.first().0 * BLOCK;
            let data = match extent.mapping {
                Mapping::Data(_) | Mapping::Offline | Mapping::OfflineReserved(_) => true,
                Mapping::Reserved(_) => false,
            };
            match whence {
                Whence::Hole if start > from || !data => return Ok(Reply::Offset(from)),
                Whence::Data if data && from.max(start) < inode.size => {
                    return Ok(Reply::Offset(from.max(start)));
                }
                Whence::Hole | Whence::Data => {}
            }
            from = (extent.last.0 + 1) * BLOCK;
            self.task.at = Some(from);
        }
        match whence {
            Whence::Hole if at < inode.size => Ok(Reply::Offset(inode.size)),
            Whence::Hole | Whence::Data => Err(OpError::NoSuchAddress.into()),
        }
    }
}
