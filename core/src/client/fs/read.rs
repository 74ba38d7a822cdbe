//! Reading single items: inodes, entries, links back.
//!
//! What this module deliberately doesn't know: locks; whoever calls holds them.

use super::changes::{bytes, fill};
use super::{ROOT, Run, Stop};
use crate::client::op::{Attr, OpError};
use crate::error::Corruption;
use crate::format::item::{Dirent, FileExtent, FileKind, Inode, Name, VALUE_BYTES_MAX, ValueBuf};
use crate::format::key::{FileBlock, ItemKey, Key, KeyBytes, name_hash};
use crate::format::{BLOCK_BYTES, Ino};
use zerocopy::FromBytes;

impl From<Corruption> for Stop {
    fn from(_: Corruption) -> Stop {
        Stop::Fail(OpError::Io)
    }
}

/// An entry that was found by its name or its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) ino: Ino,
    pub(super) hash: u64,
    pub(super) pos: u64,
    pub(super) kind: FileKind,
}

impl From<&Dirent<'_>> for Found {
    fn from(entry: &Dirent<'_>) -> Found {
        Found { ino: entry.ino, hash: entry.hash, pos: entry.pos, kind: entry.kind }
    }
}

/// An item's key and value, copied.
pub(super) struct Copied {
    pub(super) key: ItemKey,
    buf: ValueBuf,
    len: usize,
}

impl Copied {
    pub(super) fn value(&self) -> &[u8] {
        &self.buf[..self.len]
    }
}

/// What an inode's attributes are.
pub(super) fn attr(ino: Ino, inode: &Inode) -> Attr {
    Attr {
        ino,
        kind: inode.kind,
        permissions: inode.permissions,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        size: inode.size,
        sectors: (inode.online_blocks + inode.offline_blocks) * (BLOCK_BYTES as u64 / 512),
        atime: inode.atime,
        mtime: inode.mtime,
        ctime: inode.ctime,
        crtime: inode.crtime,
    }
}

impl Run<'_, '_, '_, '_> {
    /// The value of an item, if there is one.
    pub(super) fn get(&mut self, key: Key) -> Result<Option<(ValueBuf, usize)>, Stop> {
        let mut buf = [0; VALUE_BYTES_MAX];
        let key = bytes(key);
        let value = loop {
            match self.cx.items.lookup(&key) {
                Ok(value) => break value,
                Err(miss) => fill(self.cx, &mut self.fills, &miss)?,
            }
        };
        match value {
            Some(value) if value.len() > VALUE_BYTES_MAX => Err(OpError::Io.into()),
            Some(value) => {
                let len = value.copy_to(&mut buf).len();
                Ok(Some((buf, len)))
            }
            None => Ok(None),
        }
    }

    /// The first item from one key to another.
    pub(super) fn next(&mut self, first: Key, last: Key) -> Result<Option<Copied>, Stop> {
        let (first, last) = (bytes(first), bytes(last));
        let item = loop {
            match self.cx.items.next(&first, &last) {
                Ok(item) => break item,
                Err(miss) => fill(self.cx, &mut self.fills, &miss)?,
            }
        };
        let Some(item) = item else { return Ok(None) };
        let mut buf = [0; VALUE_BYTES_MAX];
        let len = item.value.copy_to(&mut buf).len();
        let key = KeyBytes::read_from_bytes(&item.key).map_err(|_| OpError::Io)?;
        Ok(Some(Copied { key: ItemKey::parse(&key.into())?, buf, len }))
    }

    /// The inode, if there is one.
    pub(super) fn find_inode(&mut self, ino: Ino) -> Result<Option<Inode>, Stop> {
        match self.get(Key::inode(ino))? {
            Some((buf, len)) => Ok(Some(Inode::parse(&buf[..len])?)),
            None => Ok(None),
        }
    }

    /// The inode, unless it has gone: no name, and not in use here.
    pub(super) fn inode(&mut self, ino: Ino) -> Result<Inode, Stop> {
        let inode = self.find_inode(ino)?;
        let inode = inode.filter(|inode| inode.nlink > 0 || self.fs.table.uses(ino));
        inode.ok_or(Stop::Fail(OpError::Stale))
    }

    /// The inode, which must be a directory.
    pub(super) fn directory(&mut self, ino: Ino) -> Result<Inode, Stop> {
        let inode = self.inode(ino)?;
        if inode.kind == FileKind::Directory {
            Ok(inode)
        } else {
            Err(OpError::NotDirectory.into())
        }
    }

    /// The inode, which must be a regular file.
    pub(super) fn file(&mut self, ino: Ino) -> Result<Inode, Stop> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileKind::Regular => Ok(inode),
            FileKind::Directory => Err(OpError::IsDirectory.into()),
            FileKind::Fifo
            | FileKind::CharDevice
            | FileKind::BlockDevice
            | FileKind::Symlink
            | FileKind::Socket => Err(OpError::Invalid.into()),
        }
    }

    /// The entry of this name. Names with one hash stand side by side.
    pub(super) fn entry(&mut self, dir: Ino, name: Name<'_>) -> Result<Option<Found>, Stop> {
        let hash = name_hash(&self.fs.secret, name.bytes());
        let mut first = Key::dirent(dir, hash, 0);
        let last = Key::dirent(dir, hash, u64::MAX);
        while let Some(item) = self.next(first, last)? {
            let entry = Dirent::parse(item.value())?;
            if !entry.agrees(&item.key) {
                return Err(OpError::Io.into());
            }
            if entry.name == name {
                return Ok(Some(Found::from(&entry)));
            }
            first = Key::dirent(dir, hash, entry.pos + 1);
        }
        Ok(None)
    }

    /// The entry at this position, or the next one.
    pub(super) fn entry_at(&mut self, dir: Ino, pos: u64) -> Result<Option<Copied>, Stop> {
        self.next(Key::readdir(dir, pos), Key::readdir(dir, u64::MAX))
    }

    /// The directory that a directory is in; none if it has been removed. The root is in itself.
    pub(super) fn parent(&mut self, dir: Ino) -> Result<Option<Ino>, Stop> {
        if dir == ROOT {
            return Ok(Some(ROOT));
        }
        let (first, last) =
            (Key::backref(dir, Ino(0), 0), Key::backref(dir, Ino(u64::MAX), u64::MAX));
        let Some(item) = self.next(first, last)? else { return Ok(None) };
        match item.key {
            ItemKey::Backref { ino: _, dir, pos: _ } => Ok(Some(dir)),
            ItemKey::MetaSeq { .. }
            | ItemKey::DataSeq { .. }
            | ItemKey::Orphan(_)
            | ItemKey::Inode(_)
            | ItemKey::Xattr { .. }
            | ItemKey::Dirent { .. }
            | ItemKey::Readdir { .. }
            | ItemKey::Symlink { .. }
            | ItemKey::Extent { .. } => Err(OpError::Io.into()),
        }
    }

    /// The extent that holds this block, or the next one.
    pub(super) fn extent(&mut self, ino: Ino, from: FileBlock) -> Result<Option<FileExtent>, Stop> {
        let item = self.next(Key::extent(ino, from), Key::extent(ino, FileBlock::MAX))?;
        let Some(item) = item else { return Ok(None) };
        match item.key {
            ItemKey::Extent { ino: _, last } => Ok(Some(FileExtent::parse(last, item.value())?)),
            ItemKey::MetaSeq { .. }
            | ItemKey::DataSeq { .. }
            | ItemKey::Orphan(_)
            | ItemKey::Inode(_)
            | ItemKey::Xattr { .. }
            | ItemKey::Dirent { .. }
            | ItemKey::Readdir { .. }
            | ItemKey::Backref { .. }
            | ItemKey::Symlink { .. } => Err(OpError::Io.into()),
        }
    }
}
