//! What is asked about an inode by its number.
//!
//! A path is found from its end: each inode says where the entries are that name it, and what these
//! are called. One inode is looked at at a time. So the directories of a path may be renamed
//! meanwhile, and it is then made of what each was called when it was looked at.
//!
//! What this module deliberately doesn't know: which inodes changed, which no lock is needed for.

use super::{ROOT, Run, Stop};
use crate::client::op::query::{Link, PathWriter, Query, StatRecord};
use crate::client::op::{OpError, Reply};
use crate::format::Ino;
use crate::format::item::Dirent;
use crate::format::key::{ItemKey, Key};
use crate::lock::Mode;
use zerocopy::IntoBytes;

impl Run<'_, '_, '_, '_> {
    pub(super) fn query(&mut self, query: &Query) -> Result<Reply, Stop> {
        match query {
            // The mount answers it.
            Query::Walk { .. } => Err(OpError::NotSupported.into()),
            Query::Path { ino, from } => self.path(*ino, *from),
            Query::Stat { ino } => self.stat(*ino),
        }
    }

    fn stat(&mut self, ino: Ino) -> Result<Reply, Stop> {
        self.lock_inodes(&[(ino, Mode::Read)])?;
        let inode = self.inode(ino)?;
        let record = StatRecord {
            meta_seq: inode.meta_seq.0.into(),
            data_seq: inode.data_seq.0.into(),
            data_version: inode.data_version.into(),
            online_blocks: inode.online_blocks.into(),
            offline_blocks: inode.offline_blocks.into(),
        };
        let lent = self.lent.as_mut().ok_or(OpError::Invalid)?;
        record.write_to_prefix(lent.buf).map_err(|_| OpError::Range)?;
        lent.len = size_of::<StatRecord>();
        Ok(Reply::Bytes)
    }

    /// Writes names until the root is reached. The task knows how far it has come.
    fn path(&mut self, ino: Ino, from: Link) -> Result<Reply, Stop> {
        if self.caller.uid != 0 {
            return Err(OpError::NotPermitted.into());
        }
        loop {
            let used = self.task.progress as usize;
            let below = self.task.guess.unwrap_or(ino);
            if below == ROOT && used > 0 {
                let lent = self.lent.as_mut().ok_or(OpError::Invalid)?;
                lent.len = PathWriter::new(lent.buf).finish(used);
                return Ok(Reply::Bytes);
            }
            self.lock_inodes(&[(below, Mode::Read)])?;
            let first = if used == 0 { from } else { Link::FIRST };
            let first = Key::backref(below, first.dir, first.pos);
            let item = self.next(first, Key::backref(below, Ino(u64::MAX), u64::MAX))?;
            let Some(item) = item else {
                // What is named by nothing is not found; a directory that held something was
                // removed since.
                return Err(if used == 0 { OpError::NotFound } else { OpError::Again }.into());
            };
            let ItemKey::Backref { ino: _, dir, pos } = item.key else {
                return Err(OpError::Io.into());
            };
            let name = Dirent::parse(item.value())?.name;
            let lent = self.lent.as_mut().ok_or(OpError::Invalid)?;
            let mut writer = PathWriter::new(lent.buf);
            if used == 0 && !writer.link(Link { dir, pos }) {
                return Err(OpError::Range.into());
            }
            let used = writer.prepend(used, name.bytes()).ok_or(OpError::Range)?;
            (self.task.progress, self.task.guess) = (used as u32, Some(dir));
        }
    }
}
