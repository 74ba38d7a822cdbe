//! File data: which blocks hold them, and the file's size.
//!
//! A write goes through these states for each stretch of up to [`EXTENTS_MAX`] extents:
//!
//! ```text
//!   hole --allocate--> reserved --Step::Transfer--> (on the device) --written--> data
//! ```
//!
//! The inode changes with the last step only: size, times, counters and the extents become what
//! they are together. Data are written in place where there are some.
//!
//! What this module deliberately doesn't know: bytes.

use super::map::{Change, PATCH_MAX, Patch};
use super::{Moving, Run, Stage, Stop, Wait};
use crate::client::op::{
    Direction, EXTENTS_MAX, Extent, Handle, IO_BYTES_MAX, OpError, Place, Reply, SetAttr, Transfer,
    WriteAt,
};
use crate::format::item::{FILE_BYTES_MAX, FileExtent, Inode, Mapping};
use crate::format::key::{FileBlock, Key};
use crate::format::{BLOCK_BYTES, BlockNo, Ino};
use crate::lock::Mode;
use heapless::Vec;

pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;

/// Most blocks that are allocated at a time, for a write and what is expected to follow it: 8 MiB.
const ALLOCATE_MAX: u64 = 2048;

type Extents = Vec<Extent, EXTENTS_MAX>;

/// The block of an extent that holds this block of the file.
fn block_at(extent: &FileExtent, at: BlockNo, block: FileBlock) -> BlockNo {
    BlockNo(at.0 + (block.0 - extent.first().0))
}

/// Adds bytes to those of a transfer. They belong to the last extent if both are holes.
fn add(extents: &mut Extents, at: u64, end: u64, place: Place) -> bool {
    let len = (end - at) as u32;
    if let (Some(last), Place::Hole) = (extents.last_mut(), place)
        && last.place == Place::Hole
    {
        last.len += len;
        return true;
    }
    extents.push(Extent { at, len, place }).is_ok()
}

impl Run<'_, '_, '_, '_> {
    pub(super) fn read(
        &mut self,
        ino: Ino,
        handle: Handle,
        at: u64,
        len: u32,
    ) -> Result<Reply, Stop> {
        self.check_handle(ino, handle)?;
        if len > IO_BYTES_MAX {
            return Err(OpError::Invalid.into());
        }
        self.exclude(ino, false)?;
        self.lock_inodes(&[(ino, Mode::Read)])?;
        let inode = self.file(ino)?;
        match self.task.moving {
            Moving::No => {}
            Moving::Under(_) => return Err(Wait::Busy(ino).into()),
            Moving::Done(bytes, true) => self.task.progress += bytes,
            Moving::Done(_, false) => return Err(OpError::Io.into()),
        }
        self.task.moving = Moving::No;
        let end = at.saturating_add(len.into()).min(inode.size);
        let mut from = at.saturating_add(self.task.progress.into());
        if from >= end {
            return Ok(Reply::Count(self.task.progress));
        }
        let start = from;
        let mut extents = Extents::new();
        while from < end {
            let (place, to) = self.place(ino, from, end)?;
            if !add(&mut extents, from, to, place) {
                break;
            }
            from = to;
        }
        self.move_data(Direction::Read, extents, start, from)
    }

    /// Where the byte at `from` is, and up to where those that follow it are there too.
    fn place(&mut self, ino: Ino, from: u64, end: u64) -> Result<(Place, u64), Stop> {
        let block = FileBlock(from / BLOCK);
        let Some(extent) = self.extent(ino, block)? else { return Ok((Place::Hole, end)) };
        if extent.first() > block {
            return Ok((Place::Hole, end.min(extent.first().0 * BLOCK)));
        }
        let to = end.min((extent.last.0 + 1) * BLOCK);
        match extent.mapping {
            Mapping::Data(at) => Ok((Place::Blocks(block_at(&extent, at, block)), to)),
            Mapping::Reserved(_) => Ok((Place::Hole, to)),
            Mapping::Offline | Mapping::OfflineReserved(_) => Err(OpError::NotSupported.into()),
        }
    }

    fn move_data(
        &mut self,
        direction: Direction,
        extents: Extents,
        from: u64,
        to: u64,
    ) -> Result<Reply, Stop> {
        self.task.moving = Moving::Under((to - from) as u32);
        self.task.transfer = Some(Transfer { direction, extents });
        Err(Stop::Transfer)
    }

    pub(super) fn write(
        &mut self,
        ino: Ino,
        handle: Handle,
        at: WriteAt,
        len: u32,
        strip: bool,
    ) -> Result<Reply, Stop> {
        self.check_handle(ino, handle)?;
        if len > IO_BYTES_MAX {
            return Err(OpError::Invalid.into());
        }
        self.exclude(ino, true)?;
        self.lock_inodes(&[(ino, Mode::Write)])?;
        self.drain(ino)?;
        let inode = self.file(ino)?;
        let wanted = match at {
            WriteAt::Offset(at) => at,
            WriteAt::End => inode.size,
        };
        // Where an append goes is decided once.
        let at = *self.task.at.get_or_insert(wanted);
        let end = at.checked_add(len.into()).filter(|end| *end <= FILE_BYTES_MAX);
        let end = end.ok_or(OpError::FileTooBig)?;
        if inode.offline_blocks > 0 {
            return Err(OpError::NotSupported.into());
        }
        self.clear_tail(ino, inode.size, at)?;
        loop {
            let from = at + u64::from(self.task.progress);
            match self.task.moving {
                Moving::No if from == end => return Ok(Reply::Count(len)),
                Moving::No => match self.allocate(ino, from, end) {
                    Ok((extents, to)) => {
                        return self.move_data(Direction::Write, extents, from, to);
                    }
                    Err(Stop::Fail(_)) if self.task.progress > 0 => {
                        return Ok(Reply::Count(self.task.progress));
                    }
                    Err(stop) => return Err(stop),
                },
                Moving::Under(_) => return Err(Wait::Busy(ino).into()),
                Moving::Done(bytes, true) => {
                    self.written(ino, from, from + u64::from(bytes), strip)?;
                    self.task.progress += bytes;
                }
                Moving::Done(_, false) if self.task.progress > 0 => {
                    return Ok(Reply::Count(self.task.progress));
                }
                Moving::Done(_, false) => return Err(OpError::Io.into()),
            }
            self.task.moving = Moving::No;
        }
    }

    /// Blocks for as many of these bytes as one transfer can name: those that are mapped, and new
    /// ones.
    fn allocate(&mut self, ino: Ino, from: u64, end: u64) -> Result<(Extents, u64), Stop> {
        let mut extents = Extents::new();
        let mut at = from;
        while at < end && !extents.is_full() {
            let block = FileBlock(at / BLOCK);
            let extent = self.extent(ino, block)?.filter(|extent| extent.first() <= block);
            let Some(extent) = extent else {
                let last = FileBlock((end - 1) / BLOCK);
                let changed = self.task.changed;
                match self.fill_hole(ino, block, last, true) {
                    Ok(()) => {
                        // Blocks that are reserved show nowhere, so the write can still be given
                        // up.
                        self.task.changed = changed;
                        continue;
                    }
                    Err(_) if !extents.is_empty() => break,
                    Err(stop) => return Err(stop),
                }
            };
            let to = end.min((extent.last.0 + 1) * BLOCK);
            let place = match extent.mapping {
                Mapping::Data(at) => Place::Blocks(block_at(&extent, at, block)),
                Mapping::Reserved(at) => Place::Fresh(block_at(&extent, at, block)),
                Mapping::Offline | Mapping::OfflineReserved(_) => {
                    return Err(OpError::NotSupported.into());
                }
            };
            add(&mut extents, at, to, place);
            at = to;
        }
        Ok((extents, at))
    }

    /// Reserves blocks for the hole that begins at `first`, up to `last`; and, when a file grows
    /// block by block, for what is likely to follow.
    pub(super) fn fill_hole(
        &mut self,
        ino: Ino,
        first: FileBlock,
        last: FileBlock,
        streaming: bool,
    ) -> Result<(), Stop> {
        let inode = self.file(ino)?;
        let next = self.extent(ino, first)?;
        let room = next.map_or(FileBlock::MAX.0 + 1, |extent| extent.first().0) - first.0;
        let wanted = last.0 - first.0 + 1;
        let streams = streaming && first.0 == inode.online_blocks;
        let ahead = if streams { first.0 } else { 0 };
        let wanted = (wanted + ahead).min(ALLOCATE_MAX).min(room);
        let Some(run) = self.cx.blocks.peek(wanted) else {
            return Err(match self.cx.blocks.is_refused() {
                true => OpError::NoSpace.into(),
                false => Wait::Blocks.into(),
            });
        };
        let last = FileBlock(first.0 + run.len - 1);
        let (old, _) = self.extents_near(ino, first, last)?;
        let patch = Patch::plan(&old, first, last, Change::Fill(run.first));
        self.fs.changes.clear();
        self.put_patch(ino, &patch);
        self.commit()?;
        self.cx.blocks.take(run);
        Ok(())
    }

    /// The data of these bytes are on the device.
    fn written(&mut self, ino: Ino, from: u64, to: u64, strip: bool) -> Result<(), Stop> {
        let inode = self.file(ino)?;
        let mut new = inode;
        if strip {
            self.strip(&mut new)?;
        }
        let (first, last) = (FileBlock(from / BLOCK), FileBlock((to - 1) / BLOCK));
        let (old, reached) = self.extents_near(ino, first, last)?;
        assert!(reached >= last, "a transfer names fewer extents than a patch");
        let patch = Patch::plan(&old, first, last, Change::Write);
        new.size = new.size.max(to);
        new.data_version += 1;
        self.touch(&mut new);
        self.apply_patch(ino, &inode, new, &patch)
    }

    /// The extents that hold these blocks, and their neighbours; and the last block up to which
    /// these are all.
    pub(super) fn extents_near(
        &mut self,
        ino: Ino,
        first: FileBlock,
        last: FileBlock,
    ) -> Result<(Vec<FileExtent, PATCH_MAX>, FileBlock), Stop> {
        let mut extents = Vec::new();
        let mut from = FileBlock(first.0.saturating_sub(1));
        while let Some(extent) = self.extent(ino, from)? {
            if extent.first().0 > last.0.saturating_add(1) {
                break;
            }
            let added = extents.push(extent);
            assert!(added.is_ok(), "there is room");
            if extents.is_full() {
                return Ok((extents, last.min(extent.last)));
            }
            if extent.last >= FileBlock::MAX {
                break;
            }
            from = FileBlock(extent.last.0 + 1);
        }
        Ok((extents, last))
    }

    fn put_patch(&mut self, ino: Ino, patch: &Patch) {
        let changes = &mut self.fs.changes;
        for old in &patch.old {
            if patch.new.iter().all(|new| new.last != old.last) {
                changes.delete(Key::extent(ino, old.last));
            }
        }
        for new in &patch.new {
            let before = patch.old.iter().find(|old| old.last == new.last);
            if before != Some(new) {
                changes.put_extent(ino, new, before.is_some());
            }
        }
    }

    /// Changes extents, and the inode with them.
    pub(super) fn apply_patch(
        &mut self,
        ino: Ino,
        old: &Inode,
        mut new: Inode,
        patch: &Patch,
    ) -> Result<(), Stop> {
        let online = new.online_blocks.checked_add_signed(patch.online);
        new.online_blocks = online.ok_or(OpError::Io)?;
        let offline = new.offline_blocks.checked_sub(patch.offline_gone);
        new.offline_blocks = offline.ok_or(OpError::Io)?;
        if !self.cx.blocks.has_room(patch.freed.len()) {
            return Err(Wait::Commit.into());
        }
        self.lock_indices(&[(Some(old), true)])?;
        self.fs.changes.clear();
        self.put_patch(ino, patch);
        self.rewrite_inode(ino, old, new, true);
        self.commit()?;
        for run in &patch.freed {
            self.cx.blocks.free(*run);
        }
        Ok(())
    }

    /// Gives the file another size, with the other attributes. [`drain`](Self::drain) does the
    /// rest.
    pub(super) fn resize(&mut self, ino: Ino, size: u64, set: &SetAttr) -> Result<(), Stop> {
        self.exclude(ino, true)?;
        self.lock_inodes(&[(ino, Mode::Write)])?;
        self.drain(ino)?;
        let inode = self.file(ino)?;
        if inode.offline_blocks > 0 && size != 0 && size != inode.size {
            return Err(OpError::NotSupported.into());
        }
        let mut new = inode;
        self.set(&mut new, set)?;
        self.clear_tail(ino, inode.size, size)?;
        if size <= inode.size {
            let behind = self.extent(ino, FileBlock(size.div_ceil(BLOCK)))?;
            new.truncating = behind.is_some();
        }
        self.lock_indices(&[(Some(&inode), true)])?;
        self.fs.changes.clear();
        self.rewrite_inode(ino, &inode, new, true);
        self.commit()?;
        self.task.resized = true;
        self.drain(ino)
    }

    /// Before a file of this size grows, with nothing written between its end and `to`: has zeros
    /// put into the last block behind the end. There may be what a truncation has cut off, or what
    /// an append wrote that a crash has undone.
    pub(super) fn clear_tail(&mut self, ino: Ino, size: u64, to: u64) -> Result<(), Stop> {
        let end = to.min(size.next_multiple_of(BLOCK)).max(size);
        self.zero(ino, size, end, Stage::Tail)
    }

    /// Has bytes of one block zeroed on the device, if it holds data.
    pub(super) fn zero(&mut self, ino: Ino, at: u64, end: u64, stage: Stage) -> Result<(), Stop> {
        let is_done = |(done, from)| done > stage || (done == stage && from <= at);
        if self.task.zeroed.is_some_and(is_done) {
            return Ok(());
        }
        if at == end {
            self.task.zeroed = Some((stage, at));
            return Ok(());
        }
        match self.task.moving {
            Moving::No => {}
            Moving::Under(_) => return Err(Wait::Busy(ino).into()),
            Moving::Done(_, ok) => {
                self.task.moving = Moving::No;
                self.task.zeroed = Some((stage, at));
                return if ok { Ok(()) } else { Err(OpError::Io.into()) };
            }
        }
        let (place, _) = self.place(ino, at, end)?;
        match place {
            Place::Blocks(_) => {
                self.task.moving = Moving::Under(0);
                Err(Stop::Zero(Extent { at, len: (end - at) as u32, place }))
            }
            Place::Hole | Place::Fresh(_) => {
                self.task.zeroed = Some((stage, at));
                Ok(())
            }
        }
    }

    /// Removes what is behind the end of a file that is being truncated, a patch at a time.
    pub(super) fn drain(&mut self, ino: Ino) -> Result<(), Stop> {
        loop {
            let Some(inode) = self.find_inode(ino)?.filter(|inode| inode.truncating) else {
                return Ok(());
            };
            let (first, last) = (FileBlock(inode.size.div_ceil(BLOCK)), FileBlock::MAX);
            let (old, reached) = self.extents_near(ino, first, last)?;
            let patch = Patch::plan(&old, first, reached, Change::Free);
            let new = Inode { truncating: reached < last, ..inode };
            self.apply_patch(ino, &inode, new, &patch)?;
        }
    }
}
