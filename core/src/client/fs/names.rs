//! Operations on names: finding, making, linking and removing entries, and listing them.
//!
//! # Invariants
//!
//! * An entry's three items have one value, and come and go together. A position is never used
//!   again.
//! * A directory's size is the sum of the lengths of its names; its link count is 2, and one for
//!   each directory in it.
//! * With the last name of an inode goes an orphan entry into the index, in the same change.
//!
//! What this module deliberately doesn't know: what a kernel remembers.

use super::access::{READ, SEARCH, STICKY, WRITE};
use super::locking::want;
use super::read::{Found, attr};
use super::{ROOT, Run, Stop, Wait};
use crate::client::op::{
    Attr, EntryWriter, Handle, ListEntry, NewMode, NewNode, OpError, OpenAccess, OpenHow, Reply,
    SetAttr, TARGET_BYTES_MAX,
};
use crate::format::Ino;
use crate::format::item::{
    Dirent, FileKind, Inode, LINKS_MAX, Name, parse_symlink_part, symlink_part, symlink_parts,
};
use crate::format::key::{FIRST_POS, IndexKind, Key, LAST_POS, name_hash};
use crate::lock::{LockName, Mode};

/// What is made, beside its name.
struct Making<'a> {
    kind: FileKind,
    /// Permissions asked for, and what the mask leaves of them.
    asked: u16,
    masked: u16,
    rdev: u32,
    /// A symlink's target.
    target: &'a [u8],
}

impl Run<'_, '_, '_, '_> {
    /// Holds the directory's lock and that of the inode an entry names, and gives both.
    fn with_entry(
        &mut self,
        dir: Ino,
        name: Name<'_>,
        mode: Mode,
    ) -> Result<(Inode, Option<(Found, Inode)>), Stop> {
        loop {
            let guess = self.task.guess;
            match guess {
                None => self.lock_inodes(&[(dir, mode)])?,
                Some(ino) => self.lock_inodes(&[(dir, mode), (ino, mode)])?,
            }
            let parent = self.directory(dir)?;
            self.may(&parent, SEARCH)?;
            let Some(found) = self.entry(dir, name)? else { return Ok((parent, None)) };
            // Only now is it known which inode's lock is needed; with it, everything is read again.
            self.task.guess = Some(found.ino);
            if guess == self.task.guess {
                let inode = self.find_inode(found.ino)?.ok_or(OpError::Io)?;
                return Ok((parent, Some((found, inode))));
            }
        }
    }

    pub(super) fn lookup(&mut self, dir: Ino, name: Name<'_>) -> Result<Reply, Stop> {
        let (_, found) = self.with_entry(dir, name, Mode::Read)?;
        let (found, inode) = found.ok_or(OpError::NotFound)?;
        self.fs.table.look_up(found.ino)?;
        Ok(Reply::Entry(attr(found.ino, &inode)))
    }

    pub(super) fn symlink(&mut self, dir: Ino, name: Name<'_>) -> Result<Reply, Stop> {
        let lent = self.lent.take().ok_or(OpError::Invalid)?;
        let target = lent.buf.get(..lent.len).ok_or(OpError::Invalid)?;
        if target.len() > TARGET_BYTES_MAX {
            return Err(OpError::NameTooLong.into());
        }
        if target.is_empty() {
            return Err(OpError::NotFound.into());
        }
        if target.contains(&0) {
            return Err(OpError::Invalid.into());
        }
        let kind = FileKind::Symlink;
        let making = Making { kind, asked: 0o777, masked: 0o777, rdev: 0, target };
        self.make(dir, name, &making, false).map(|(attr, _)| Reply::Entry(attr))
    }

    pub(super) fn mknod(
        &mut self,
        dir: Ino,
        name: Name<'_>,
        mode: NewMode,
        node: NewNode,
    ) -> Result<Reply, Stop> {
        let (asked, masked) = (mode.permissions, mode.masked());
        let (kind, rdev) = (node.kind(), node.rdev());
        let making = Making { kind, asked, masked, rdev, target: &[] };
        self.make(dir, name, &making, false).map(|(attr, _)| Reply::Entry(attr))
    }

    pub(super) fn mkdir(&mut self, dir: Ino, name: Name<'_>, mode: NewMode) -> Result<Reply, Stop> {
        let asked = mode.permissions & (0o777 | STICKY);
        let masked = NewMode { permissions: asked, ..mode }.masked();
        let kind = FileKind::Directory;
        let making = Making { kind, asked, masked, rdev: 0, target: &[] };
        self.make(dir, name, &making, false).map(|(attr, _)| Reply::Entry(attr))
    }

    pub(super) fn create(
        &mut self,
        dir: Ino,
        name: Name<'_>,
        mode: NewMode,
        how: OpenHow,
        exclusive: bool,
    ) -> Result<Reply, Stop> {
        if let Some(ino) = self.created_before(dir, name, exclusive)? {
            let handle = self.open(ino, how)?;
            let inode = self.inode(ino)?;
            self.fs.table.look_up(ino)?;
            return Ok(Reply::Created(attr(ino, &inode), handle));
        }
        let (asked, masked) = (mode.permissions, mode.masked());
        let making = Making { kind: FileKind::Regular, asked, masked, rdev: 0, target: &[] };
        let (attr, handle) = self.make(dir, name, &making, true)?;
        Ok(Reply::Created(attr, handle.ok_or(OpError::TooManyOpen)?))
    }

    /// The inode that the name to be created has already.
    fn created_before(
        &mut self,
        dir: Ino,
        name: Name<'_>,
        exclusive: bool,
    ) -> Result<Option<Ino>, Stop> {
        if let (true, Some(ino)) = (self.task.opened.is_some(), self.task.guess) {
            // It may have been truncated already; whatever has the name by now, this is what was
            // opened.
            return Ok(Some(ino));
        }
        if self.task.guess.is_none() {
            // The usual case is that there is none, and then these are the locks to create it with.
            let Some(ino) = self.cx.inos.peek(dir, false) else {
                let (_, found) = self.with_entry(dir, name, Mode::Read)?;
                return self.existing(found.map(|(found, _)| found), exclusive);
            };
            self.lock_inodes(&[(dir, Mode::Write), (ino, Mode::Write)])?;
            let parent = self.directory(dir)?;
            self.may(&parent, SEARCH)?;
            if self.entry(dir, name)?.is_none() {
                return Ok(None);
            }
        }
        let (_, found) = self.with_entry(dir, name, Mode::Write)?;
        self.existing(found.map(|(found, _)| found), exclusive)
    }

    fn existing(&mut self, found: Option<Found>, exclusive: bool) -> Result<Option<Ino>, Stop> {
        match found {
            None => {
                self.task.guess = None;
                Ok(None)
            }
            Some(_) if exclusive => Err(OpError::Exists.into()),
            Some(found) => Ok(Some(found.ino)),
        }
    }

    /// Whether a name can be put into the directory, which has none like it.
    fn check_new(&mut self, dir: Ino, parent: &Inode, name: Name<'_>) -> Result<(), Stop> {
        self.may(parent, SEARCH)?;
        if self.entry(dir, name)?.is_some() {
            return Err(OpError::Exists.into());
        }
        if parent.nlink == 0 {
            return Err(OpError::NotFound.into());
        }
        self.may(parent, WRITE)
    }

    /// The number for a new inode. Whoever only would have failed otherwise isn't told here.
    fn new_ino(&mut self, dir: Ino, kind: FileKind) -> Result<Ino, Stop> {
        match self.cx.inos.peek(dir, kind == FileKind::Directory) {
            Some(ino) => Ok(ino),
            None if self.cx.inos.is_refused() => Err(OpError::NoSpace.into()),
            None => Err(Wait::Inos(dir).into()),
        }
    }

    /// Makes an inode with its first name, looks it up, and opens it if asked to.
    fn make(
        &mut self,
        dir: Ino,
        name: Name<'_>,
        making: &Making<'_>,
        open: bool,
    ) -> Result<(Attr, Option<Handle>), Stop> {
        let kind = making.kind;
        let is_directory = kind == FileKind::Directory;
        let ino = self.new_ino(dir, kind)?;
        self.lock_inodes(&[(dir, Mode::Write), (ino, Mode::Write)])?;
        let parent = self.directory(dir)?;
        self.check_new(dir, &parent, name)?;
        if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) && !self.is_root() {
            return Err(OpError::NotPermitted.into());
        }
        if is_directory && parent.nlink >= LINKS_MAX {
            return Err(OpError::TooManyLinks.into());
        }
        let (permissions, gid) = self.inherit(&parent, kind, making.asked, making.masked)?;
        let inode = Inode {
            permissions,
            gid,
            rdev: making.rdev,
            size: making.target.len() as u64,
            nlink: if is_directory { 2 } else { 1 },
            ..self.blank(kind)
        };
        let regular = kind == FileKind::Regular;
        self.lock_indices(&[(Some(&parent), false), (None, regular)])?;
        self.fs.table.reserve(ino)?;
        if open {
            self.fs.table.reserve_handle(ino)?;
        }
        self.fs.changes.clear();
        let inode = self.create_inode(ino, inode);
        for part in 0..symlink_parts(inode.size) {
            let value = symlink_part(making.target, part);
            self.fs.changes.create(Key::symlink(ino, part), value);
        }
        let mut changed = parent;
        self.add_entry(dir, &mut changed, name, ino, kind)?;
        changed.nlink += u32::from(is_directory);
        self.rewrite_inode(dir, &parent, changed, false);
        self.commit()?;
        self.cx.inos.take(dir, is_directory);
        self.fs.table.look_up(ino)?;
        let handle = if open { Some(self.fs.table.open(ino)?) } else { None };
        Ok((attr(ino, &inode), handle))
    }

    /// An inode as it is made, by this caller, now.
    fn blank(&self, kind: FileKind) -> Inode {
        let now = self.now;
        Inode {
            kind,
            permissions: 0,
            truncating: false,
            size: 0,
            meta_seq: self.cx.seq,
            data_seq: self.cx.seq,
            data_version: 0,
            online_blocks: 0,
            offline_blocks: 0,
            next_readdir_pos: if kind == FileKind::Directory { FIRST_POS } else { 0 },
            next_xattr_id: 0,
            nlink: 0,
            uid: self.caller.uid,
            gid: self.caller.gid,
            rdev: 0,
            atime: now,
            ctime: now,
            mtime: now,
            crtime: now,
        }
    }

    /// Adds an entry to the changes, and to the directory's inode.
    pub(super) fn add_entry(
        &mut self,
        dir: Ino,
        parent: &mut Inode,
        name: Name<'_>,
        ino: Ino,
        kind: FileKind,
    ) -> Result<(), Stop> {
        let pos = parent.next_readdir_pos;
        if pos > LAST_POS {
            return Err(OpError::NoSpace.into());
        }
        let hash = name_hash(&self.fs.secret, name.bytes());
        self.fs.changes.create_entry(dir, &Dirent { ino, hash, pos, kind, name });
        parent.next_readdir_pos = pos + 1;
        parent.size += name.bytes().len() as u64;
        self.touch(parent);
        Ok(())
    }

    /// Takes an entry out: adds that to the changes, and to the directory's inode.
    pub(super) fn drop_entry(
        &mut self,
        dir: Ino,
        parent: &mut Inode,
        name: Name<'_>,
        found: &Found,
    ) -> Result<(), Stop> {
        self.fs.changes.delete_entry(dir, found);
        let len = name.bytes().len() as u64;
        parent.size = parent.size.checked_sub(len).ok_or(OpError::Io)?;
        self.touch(parent);
        Ok(())
    }

    pub(super) fn touch(&self, inode: &mut Inode) {
        inode.mtime = self.now;
        inode.ctime = self.now;
    }

    /// Takes a name from an inode, and a subdirectory from its parent; says whether it was the
    /// last.
    pub(super) fn drop_name(
        &mut self,
        parent: &mut Inode,
        inode: &mut Inode,
    ) -> Result<bool, Stop> {
        inode.ctime = self.now;
        if inode.kind == FileKind::Directory {
            inode.nlink = 0;
            parent.nlink = parent.nlink.checked_sub(1).ok_or(OpError::Io)?;
        } else {
            inode.nlink = inode.nlink.checked_sub(1).ok_or(OpError::Io)?;
        }
        Ok(inode.nlink == 0)
    }

    pub(super) fn link(&mut self, ino: Ino, dir: Ino, name: Name<'_>) -> Result<Reply, Stop> {
        self.lock_inodes(&[(dir, Mode::Write), (ino, Mode::Write)])?;
        let parent = self.directory(dir)?;
        self.check_new(dir, &parent, name)?;
        let inode = self.inode(ino)?;
        if inode.kind == FileKind::Directory {
            return Err(OpError::NotPermitted.into());
        }
        match inode.nlink {
            0 => return Err(OpError::NotFound.into()),
            LINKS_MAX.. => return Err(OpError::TooManyLinks.into()),
            1..LINKS_MAX => {}
        }
        self.lock_indices(&[(Some(&parent), false), (Some(&inode), false)])?;
        self.fs.table.reserve(ino)?;
        self.fs.changes.clear();
        let (mut to, mut linked) = (parent, inode);
        self.add_entry(dir, &mut to, name, ino, inode.kind)?;
        linked.nlink += 1;
        linked.ctime = self.now;
        self.rewrite_inode(dir, &parent, to, false);
        self.rewrite_inode(ino, &inode, linked, false);
        self.commit()?;
        self.fs.table.look_up(ino)?;
        Ok(Reply::Entry(attr(ino, &linked)))
    }

    pub(super) fn remove(
        &mut self,
        dir: Ino,
        name: Name<'_>,
        as_directory: bool,
    ) -> Result<Reply, Stop> {
        let (parent, found) = self.with_entry(dir, name, Mode::Write)?;
        let (found, inode) = found.ok_or(OpError::NotFound)?;
        self.may_remove(&parent, &inode, as_directory)?;
        if as_directory && inode.size != 0 {
            return Err(OpError::NotEmpty.into());
        }
        self.fs.changes.clear();
        let (mut from, mut removed) = (parent, inode);
        self.drop_entry(dir, &mut from, name, &found)?;
        let last = self.drop_name(&mut from, &mut removed)?;
        let mut wanted = self.indices(&[(Some(&parent), false), (Some(&inode), false)]);
        if last {
            want(&mut wanted, LockName::index(IndexKind::Orphan, found.ino.0), Mode::WriteOnly);
            self.fs.changes.create_blind(Key::orphan(found.ino));
        }
        self.lock(wanted)?;
        self.rewrite_inode(dir, &parent, from, false);
        self.rewrite_inode(found.ino, &inode, removed, false);
        self.commit()?;
        if last {
            self.fs.table.lose_names(found.ino);
        }
        Ok(Reply::Empty)
    }

    pub(super) fn readlink(&mut self, ino: Ino) -> Result<Reply, Stop> {
        self.lock_inodes(&[(ino, Mode::Read)])?;
        let inode = self.inode(ino)?;
        if inode.kind != FileKind::Symlink {
            return Err(OpError::Invalid.into());
        }
        let mut at = 0;
        for part in 0..symlink_parts(inode.size) {
            let (buf, len) = self.get(Key::symlink(ino, part))?.ok_or(OpError::Io)?;
            let bytes = parse_symlink_part(&buf[..len], part, inode.size)?;
            let lent = self.lent.as_mut().ok_or(OpError::Invalid)?;
            let room = lent.buf.get_mut(at..at + bytes.len()).ok_or(OpError::Range)?;
            room.copy_from_slice(bytes);
            at += bytes.len();
            lent.len = at;
        }
        Ok(Reply::Bytes)
    }

    /// Opens a file, and truncates it if asked for.
    pub(super) fn open(&mut self, ino: Ino, how: OpenHow) -> Result<Handle, Stop> {
        if self.task.resized {
            return self.finish_open(ino);
        }
        let mode = if how.truncate { Mode::Write } else { Mode::Read };
        self.lock_inodes(&[(ino, mode)])?;
        let inode = self.inode(ino)?;
        match inode.kind {
            FileKind::Directory => return Err(OpError::IsDirectory.into()),
            FileKind::Symlink => return Err(OpError::Loop.into()),
            FileKind::Regular
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => {}
        }
        let mask = match how.access {
            OpenAccess::Read => READ,
            OpenAccess::Write => WRITE,
            OpenAccess::ReadWrite => READ | WRITE,
            OpenAccess::Execute => SEARCH,
        };
        self.may(&inode, if how.truncate { mask | WRITE } else { mask })?;
        if how.truncate {
            let set = SetAttr { size: Some(0), strip: how.strip, ..SetAttr::default() };
            if self.task.opened.is_none() {
                // Open first, so that the file can't go while it is truncated in several steps.
                self.file(ino)?;
                self.task.opened = Some(self.fs.table.open(ino)?);
            }
            self.resize(ino, 0, &set)?;
        }
        self.finish_open(ino)
    }

    fn finish_open(&mut self, ino: Ino) -> Result<Handle, Stop> {
        if self.task.resized {
            self.drain(ino)?;
        }
        match self.task.opened.take() {
            Some(handle) => Ok(handle),
            None => Ok(self.fs.table.open(ino)?),
        }
    }

    pub(super) fn opendir(&mut self, ino: Ino) -> Result<Reply, Stop> {
        self.lock_inodes(&[(ino, Mode::Read)])?;
        let inode = self.directory(ino)?;
        self.may(&inode, READ)?;
        Ok(Reply::Opened(self.fs.table.open(ino)?))
    }

    /// Lists entries. What comes before the first that would have to be waited for is an answer
    /// too.
    pub(super) fn readdir(
        &mut self,
        dir: Ino,
        handle: Handle,
        from: u64,
        plus: bool,
    ) -> Result<Reply, Stop> {
        self.check_handle(dir, handle)?;
        let lent = self.lent.take().ok_or(OpError::Invalid)?;
        let mut writer = EntryWriter::new(lent.buf);
        let mut pos = from;
        let result = loop {
            match self.list(dir, pos, plus, &mut writer) {
                Ok(Some(next)) => pos = next,
                Ok(None) => break Ok(Reply::Bytes),
                Err(_) if !writer.is_empty() => break Ok(Reply::Bytes),
                Err(stop) => break Err(stop),
            }
        };
        lent.len = writer.len();
        result
    }

    /// Lists one entry; gives the position behind it, or none if there is no other, or no room.
    fn list(
        &mut self,
        dir: Ino,
        pos: u64,
        plus: bool,
        writer: &mut EntryWriter<'_>,
    ) -> Result<Option<u64>, Stop> {
        self.lock_inodes(&[(dir, Mode::Read)])?;
        let inode = self.directory(dir)?;
        if inode.nlink == 0 {
            return Ok(None);
        }
        if pos < FIRST_POS {
            let named = if pos == 0 { dir } else { self.parent(dir)?.unwrap_or(ROOT) };
            let attr = if plus { Some(self.list_attr(dir, named)?) } else { None };
            let name = &b".."[..if pos == 0 { 1 } else { 2 }];
            let (kind, next) = (FileKind::Directory, pos + 1);
            let entry = ListEntry { ino: named, kind, next, name, attr };
            return Ok(writer.push(&entry).then_some(next));
        }
        let Some(item) = self.entry_at(dir, pos)? else { return Ok(None) };
        let entry = Dirent::parse(item.value())?;
        if !entry.agrees(&item.key) {
            return Err(OpError::Io.into());
        }
        let attr = if plus { Some(self.list_attr(dir, entry.ino)?) } else { None };
        let (ino, kind, next, name) = (entry.ino, entry.kind, entry.pos + 1, entry.name.bytes());
        if !writer.fits(name.len(), plus) {
            return Ok(None);
        }
        if plus {
            self.fs.table.look_up(ino)?;
        }
        let pushed = writer.push(&ListEntry { ino, kind, next, name, attr });
        debug_assert!(pushed, "it fits");
        Ok(Some(next))
    }

    fn list_attr(&mut self, dir: Ino, ino: Ino) -> Result<Attr, Stop> {
        self.lock_inodes(&[(dir, Mode::Read), (ino, Mode::Read)])?;
        let inode = self.find_inode(ino)?.ok_or(OpError::Io)?;
        Ok(attr(ino, &inode))
    }
}
