//! Operations on attributes.
//!
//! What this module deliberately doesn't know: entries, extents.

use super::access::{SET_GID, WRITE};
use super::read::attr;
use super::{Run, Stop};
use crate::client::op::{Handle, OpError, Reply, SetAttr, SetTime};
use crate::format::Ino;
use crate::format::item::{FILE_BYTES_MAX, FileKind, Inode, Time};
use crate::lock::Mode;

impl Run<'_, '_, '_, '_> {
    pub(super) fn getattr(&mut self, ino: Ino) -> Result<Reply, Stop> {
        self.lock_inodes(&[(ino, Mode::Read)])?;
        let inode = self.inode(ino)?;
        Ok(Reply::Attr(attr(ino, &inode)))
    }

    pub(super) fn access(&mut self, ino: Ino, mask: u8) -> Result<Reply, Stop> {
        self.lock_inodes(&[(ino, Mode::Read)])?;
        let inode = self.inode(ino)?;
        self.may(&inode, mask)?;
        Ok(Reply::Empty)
    }

    pub(super) fn setattr(
        &mut self,
        ino: Ino,
        handle: Option<Handle>,
        set: &SetAttr,
    ) -> Result<Reply, Stop> {
        if !self.task.resized {
            if set.size.is_some() {
                self.exclude(ino, true)?;
            }
            self.lock_inodes(&[(ino, Mode::Write)])?;
            let inode = self.inode(ino)?;
            self.check_setattr(ino, &inode, handle, set)?;
            match set.size {
                Some(size) => self.resize(ino, size, set)?,
                None => {
                    let mut new = inode;
                    self.set(&mut new, set)?;
                    self.lock_indices(&[(Some(&inode), false)])?;
                    self.fs.changes.clear();
                    self.rewrite_inode(ino, &inode, new, false);
                    self.commit()?;
                    return Ok(Reply::Attr(attr(ino, &new)));
                }
            }
        }
        self.lock_inodes(&[(ino, Mode::Write)])?;
        self.drain(ino)?;
        let inode = self.inode(ino)?;
        Ok(Reply::Attr(attr(ino, &inode)))
    }

    /// Changes an inode's fields, all but the extents behind its size.
    pub(super) fn set(&self, inode: &mut Inode, set: &SetAttr) -> Result<(), Stop> {
        if let Some(size) = set.size {
            inode.data_version += u64::from(size != inode.size);
            inode.size = size;
            inode.mtime = self.now;
            if set.strip {
                self.strip(inode)?;
            }
        }
        if (set.uid.is_some() || set.gid.is_some()) && inode.kind != FileKind::Directory {
            self.strip(inode)?;
        }
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        if let Some(permissions) = set.permissions {
            let stays = permissions & SET_GID == 0 || self.is_member(inode.gid)?;
            inode.permissions = if stays { permissions } else { permissions & !SET_GID };
        }
        let time = |set: Option<SetTime>, old: Time| match set {
            None => old,
            Some(SetTime::Now) => self.now,
            Some(SetTime::To(to)) => to,
        };
        inode.atime = time(set.atime, inode.atime);
        inode.mtime = time(set.mtime, inode.mtime);
        inode.ctime = self.now;
        Ok(())
    }

    fn check_setattr(
        &self,
        ino: Ino,
        inode: &Inode,
        handle: Option<Handle>,
        set: &SetAttr,
    ) -> Result<(), Stop> {
        let owner = self.is_owner(inode);
        let refuse = |refused: bool| match refused {
            true => Err(Stop::Fail(OpError::NotPermitted)),
            false => Ok(()),
        };
        if let Some(size) = set.size {
            match inode.kind {
                FileKind::Regular => {}
                FileKind::Directory => return Err(OpError::IsDirectory.into()),
                FileKind::Fifo
                | FileKind::CharDevice
                | FileKind::BlockDevice
                | FileKind::Symlink
                | FileKind::Socket => return Err(OpError::Invalid.into()),
            }
            match handle {
                Some(handle) => self.check_handle(ino, handle)?,
                None => self.may(inode, WRITE)?,
            }
            if size > FILE_BYTES_MAX {
                return Err(OpError::FileTooBig.into());
            }
        }
        if let Some(uid) = set.uid {
            refuse(!(self.is_root() || owner && uid == inode.uid))?;
        }
        if let Some(gid) = set.gid {
            refuse(!owner || !(gid == inode.gid || self.is_member(gid)?))?;
        }
        refuse(set.permissions.is_some() && (set.permissions > Some(0o7777) || !owner))?;
        match (set.atime, set.mtime) {
            (None, None) => Ok(()),
            (Some(SetTime::Now), Some(SetTime::Now)) if owner => Ok(()),
            (Some(SetTime::Now), Some(SetTime::Now)) => self.may(inode, WRITE),
            (_, _) => refuse(!owner),
        }
    }
}
