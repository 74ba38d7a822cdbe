//! Deleting an inode that has no name.
//!
//! ```text
//!   extents --> extended attributes --> the inode, its symlink parts, index and orphan entries
//! ```
//!
//! Each arrow is many changes, of bounded size; the orphan entry goes with the last. Whoever finds
//! one, on any mount and at any time, runs this from the beginning.
//!
//! What this module deliberately doesn't know: who else uses the inode. That is asked before.

use super::locking::want;
use super::{Run, Stop};
use crate::client::op::OpError;
use crate::format::Ino;
use crate::format::item::{FileKind, Inode, symlink_parts};
use crate::format::key::{FileBlock, IndexKind, Key};
use crate::lock::{LockName, Mode};

/// Items of extended attributes that are deleted at a time.
const BATCH: usize = 64;

impl Run<'_, '_, '_, '_> {
    pub(super) fn delete(&mut self, ino: Ino) -> Result<(), Stop> {
        self.exclude(ino, true)?;
        self.lock_inodes(&[(ino, Mode::Write)])?;
        if self.fs.table.uses(ino) {
            // When that ends it is named again.
            self.fs.table.lose_names(ino);
            return Ok(());
        }
        let Some(inode) = self.find_inode(ino)? else {
            return self.delete_orphan(ino);
        };
        if inode.nlink > 0 {
            return Ok(());
        }
        if inode.kind == FileKind::Regular {
            self.delete_data(ino, &inode)?;
        }
        while self.delete_xattrs(ino)? {}
        self.delete_inode(ino)
    }

    fn delete_data(&mut self, ino: Ino, inode: &Inode) -> Result<(), Stop> {
        if !inode.truncating && self.extent(ino, FileBlock(0))?.is_some() {
            let new = Inode { size: 0, truncating: true, ..*inode };
            self.lock_indices(&[(Some(inode), true)])?;
            self.fs.changes.clear();
            self.rewrite_inode(ino, inode, new, true);
            self.commit()?;
        }
        self.drain(ino)?;
        // A truncation that stopped half-way may have had another end.
        match self.extent(ino, FileBlock(0))? {
            Some(_) => {
                let inode = self.find_inode(ino)?.ok_or(OpError::Io)?;
                self.delete_data(ino, &inode)
            }
            None => Ok(()),
        }
    }

    /// Deletes some of the extended attributes' items; says whether there may be more.
    fn delete_xattrs(&mut self, ino: Ino) -> Result<bool, Stop> {
        self.fs.changes.clear();
        let last = Key::xattr(ino, u64::MAX, u64::MAX, u8::MAX);
        let mut first = Key::xattr(ino, 0, 0, 0);
        let mut count = 0;
        while count < BATCH
            && let Some(item) = self.next(first, last)?
        {
            let key = item.key.key();
            self.fs.changes.delete(key);
            first = key.next().ok_or(OpError::Io)?;
            count += 1;
        }
        if count > 0 {
            self.commit()?;
        }
        Ok(count == BATCH)
    }

    fn delete_inode(&mut self, ino: Ino) -> Result<(), Stop> {
        let inode = self.find_inode(ino)?.ok_or(OpError::Io)?;
        let mut wanted = super::locking::Wanted::new();
        let regular = inode.kind == FileKind::Regular;
        let index = |kind, number| LockName::index(kind, number);
        want(&mut wanted, index(IndexKind::MetaSeq, inode.meta_seq.0), Mode::WriteOnly);
        if regular {
            want(&mut wanted, index(IndexKind::DataSeq, inode.data_seq.0), Mode::WriteOnly);
        }
        want(&mut wanted, index(IndexKind::Orphan, ino.0), Mode::WriteOnly);
        self.lock(wanted)?;
        let changes = &mut self.fs.changes;
        changes.clear();
        if inode.kind == FileKind::Symlink {
            for part in 0..symlink_parts(inode.size) {
                changes.delete(Key::symlink(ino, part));
            }
        }
        changes.delete_blind(Key::meta_seq(inode.meta_seq, ino));
        if regular {
            changes.delete_blind(Key::data_seq(inode.data_seq, ino));
        }
        changes.delete(Key::inode(ino));
        changes.delete_blind(Key::orphan(ino));
        self.commit()
    }

    /// There is no such inode any more: only the note was left.
    fn delete_orphan(&mut self, ino: Ino) -> Result<(), Stop> {
        let mut wanted = super::locking::Wanted::new();
        want(&mut wanted, LockName::index(IndexKind::Orphan, ino.0), Mode::WriteOnly);
        self.lock(wanted)?;
        self.fs.changes.clear();
        self.fs.changes.delete_blind(Key::orphan(ino));
        self.commit()
    }
}
