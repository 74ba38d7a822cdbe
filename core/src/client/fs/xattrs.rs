//! Extended attributes.
//!
//! # Invariants
//!
//! * The parts of an attribute are changed together. One that is set again keeps its number.
//!
//! What this module deliberately doesn't know: what an attribute means.

use super::access::{READ, STICKY, WRITE};
use super::{Run, Stop};
use crate::client::op::{OpError, Reply, VALUE_BYTES_MAX, XattrMode};
use crate::format::Ino;
use crate::format::item::VALUE_BYTES_MAX as PART_BYTES;
use crate::format::item::{FileKind, Inode, ValueBuf, Xattr, XattrHead, XattrName};
use crate::format::key::{ItemKey, Key, name_hash};
use crate::lock::Mode;

const TRUSTED: &[u8] = b"trusted.";

/// Where an attribute is.
struct Place {
    id: u64,
    parts: u8,
    head: (ValueBuf, usize),
}

impl Run<'_, '_, '_, '_> {
    /// Whether the caller may read or write the attribute of this name.
    fn check_xattr(&self, inode: &Inode, name: XattrName<'_>, mask: u8) -> Result<(), Stop> {
        let hidden = if mask == WRITE { OpError::NotPermitted } else { OpError::NoData };
        let allowed = |allowed: bool| if allowed { Ok(()) } else { Err(Stop::Fail(hidden)) };
        let bytes = name.bytes();
        let dot = bytes.iter().position(|byte| *byte == b'.');
        let prefix = dot.map_or(bytes, |dot| &bytes[..=dot]);
        match prefix {
            b"user." => {
                allowed(matches!(inode.kind, FileKind::Regular | FileKind::Directory))?;
                let sticky = inode.kind == FileKind::Directory && inode.permissions & STICKY != 0;
                allowed(!(sticky && mask == WRITE) || self.is_owner(inode))?;
                self.may(inode, mask)?;
            }
            TRUSTED => allowed(self.is_root())?,
            b"security." => allowed(self.is_root() || mask == READ)?,
            _ => {
                self.may(inode, mask)?;
                return Err(OpError::NotSupported.into());
            }
        }
        if prefix == bytes { Err(OpError::Invalid.into()) } else { Ok(()) }
    }

    /// The attribute of this name. Names with one hash stand side by side.
    fn find_xattr(&mut self, ino: Ino, name: XattrName<'_>) -> Result<Option<Place>, Stop> {
        let hash = name_hash(&self.fs.secret, name.bytes());
        let (mut first, last) =
            (Key::xattr(ino, hash, 0, 0), Key::xattr(ino, hash, u64::MAX, u8::MAX));
        while let Some(item) = self.next(first, last)? {
            let ItemKey::Xattr { ino: _, hash: _, id, part: 0 } = item.key else {
                return Err(OpError::Io.into());
            };
            let head = XattrHead::parse(item.value())?;
            if head.name == name {
                let parts = head.parts();
                let mut buf = [0; PART_BYTES];
                buf[..item.value().len()].copy_from_slice(item.value());
                return Ok(Some(Place { id, parts, head: (buf, item.value().len()) }));
            }
            first = Key::xattr(ino, hash, id.checked_add(1).ok_or(OpError::Io)?, 0);
        }
        Ok(None)
    }

    pub(super) fn getxattr(&mut self, ino: Ino, name: XattrName<'_>) -> Result<Reply, Stop> {
        self.lock_inodes(&[(ino, Mode::Read)])?;
        let inode = self.inode(ino)?;
        self.check_xattr(&inode, name, READ)?;
        let place = self.find_xattr(ino, name)?.ok_or(OpError::NoData)?;
        let head = XattrHead::parse(&place.head.0[..place.head.1])?;
        let Some(lent) = &mut self.lent else { return Ok(Reply::Size(head.value_len as u32)) };
        let room = lent.buf.get_mut(..head.value_len).ok_or(OpError::Range)?;
        room[..head.start.len()].copy_from_slice(head.start);
        let mut at = head.start.len();
        let hash = name_hash(&self.fs.secret, name.bytes());
        for part in 1..place.parts {
            let value = self.get(Key::xattr(ino, hash, place.id, part))?;
            let (buf, len) = value.ok_or(OpError::Io)?;
            let bytes = head.parse_part(part, &buf[..len])?;
            let lent = self.lent.as_mut().ok_or(OpError::Range)?;
            lent.buf[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        }
        if let Some(lent) = &mut self.lent {
            lent.len = at;
        }
        Ok(Reply::Bytes)
    }

    pub(super) fn setxattr(
        &mut self,
        ino: Ino,
        name: XattrName<'_>,
        mode: XattrMode,
    ) -> Result<Reply, Stop> {
        self.lock_inodes(&[(ino, Mode::Write)])?;
        let inode = self.inode(ino)?;
        self.check_xattr(&inode, name, WRITE)?;
        let lent = self.lent.take().ok_or(OpError::Invalid)?;
        let value = lent.buf.get(..lent.len).ok_or(OpError::Invalid)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(OpError::TooBig.into());
        }
        let before = self.find_xattr(ino, name)?;
        match (mode, &before) {
            (XattrMode::Create, Some(_)) => return Err(OpError::Exists.into()),
            (XattrMode::Replace, None) => return Err(OpError::NoData.into()),
            (XattrMode::Any, _) | (XattrMode::Create, None) | (XattrMode::Replace, Some(_)) => {}
        }
        let mut new = inode;
        new.ctime = self.now;
        let id = before.as_ref().map_or(inode.next_xattr_id, |place| place.id);
        if before.is_none() {
            new.next_xattr_id = id.checked_add(1).ok_or(OpError::NoSpace)?;
        }
        let old_parts = before.map_or(0, |place| place.parts);
        let xattr = Xattr::new(name, value).ok_or(OpError::TooBig)?;
        let hash = name_hash(&self.fs.secret, name.bytes());
        self.lock_indices(&[(Some(&inode), false)])?;
        self.fs.changes.clear();
        let mut buf = [0; PART_BYTES];
        for part in 0..xattr.parts().max(old_parts) {
            let key = Key::xattr(ino, hash, id, part);
            match (part < old_parts, part < xattr.parts()) {
                (true, true) => self.fs.changes.replace(key, xattr.emit(part, &mut buf)),
                (false, _) => self.fs.changes.create(key, xattr.emit(part, &mut buf)),
                (true, false) => self.fs.changes.delete(key),
            }
        }
        self.rewrite_inode(ino, &inode, new, false);
        self.commit()?;
        Ok(Reply::Empty)
    }

    pub(super) fn removexattr(&mut self, ino: Ino, name: XattrName<'_>) -> Result<Reply, Stop> {
        self.lock_inodes(&[(ino, Mode::Write)])?;
        let inode = self.inode(ino)?;
        self.check_xattr(&inode, name, WRITE)?;
        let place = self.find_xattr(ino, name)?.ok_or(OpError::NoData)?;
        let hash = name_hash(&self.fs.secret, name.bytes());
        self.lock_indices(&[(Some(&inode), false)])?;
        self.fs.changes.clear();
        for part in 0..place.parts {
            self.fs.changes.delete(Key::xattr(ino, hash, place.id, part));
        }
        let new = Inode { ctime: self.now, ..inode };
        self.rewrite_inode(ino, &inode, new, false);
        self.commit()?;
        Ok(Reply::Empty)
    }

    /// Lists names, going on from the last one after each wait.
    pub(super) fn listxattr(&mut self, ino: Ino) -> Result<Reply, Stop> {
        self.exclude(ino, false)?;
        self.lock_inodes(&[(ino, Mode::Read)])?;
        self.inode(ino)?;
        let last = Key::xattr(ino, u64::MAX, u64::MAX, u8::MAX);
        loop {
            let first = self.task.cursor.unwrap_or(Key::xattr(ino, 0, 0, 0));
            let Some(item) = self.next(first, last)? else { break };
            let ItemKey::Xattr { ino: _, hash, id, part: 0 } = item.key else {
                return Err(OpError::Io.into());
            };
            let head = XattrHead::parse(item.value())?;
            if self.is_root() || !head.name.bytes().starts_with(TRUSTED) {
                self.list_name(head.name)?;
            }
            self.task.cursor = Some(Key::xattr(ino, hash, id, u8::MAX));
        }
        match &mut self.lent {
            None => Ok(Reply::Size(self.task.progress)),
            Some(lent) => {
                lent.len = self.task.progress as usize;
                Ok(Reply::Bytes)
            }
        }
    }

    fn list_name(&mut self, name: XattrName<'_>) -> Result<(), Stop> {
        let (at, len) = (self.task.progress as usize, name.bytes().len());
        if let Some(lent) = &mut self.lent {
            let room = lent.buf.get_mut(at..=at + len).ok_or(OpError::Range)?;
            room[..len].copy_from_slice(name.bytes());
            room[len] = 0;
        }
        let listed = self.task.progress.checked_add(len as u32 + 1);
        self.task.progress = listed.ok_or(OpError::Range)?;
        Ok(())
    }
}
