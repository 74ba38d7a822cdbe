//! The edits of one change, gathered while it is planned, and applied at once.
//!
//! # Invariants
//!
//! * Each key is edited once.
//! * No change is larger than [`change_needs`].
//!
//! What this module deliberately doesn't know: what an edit means.

use super::{Context, Run, Stop, Wait};
use crate::arena::{Arena, ArenaFull};
use crate::client::items::{self, Edit, Needs};
use crate::client::op::OpError;
use crate::client::reader::{Busy, Now};
use crate::format::Ino;
use crate::format::item::{Dirent, FileExtent, FileKind, Inode, InodeRecord, VALUE_BYTES_MAX};
use crate::format::key::{Key, KeyBytes, XATTR_PARTS_MAX};
use crate::lock::LockName;
use heapless::Vec;
use zerocopy::IntoBytes;

/// Edits of the largest change: all parts of an extended attribute, the inode, and its move in two
/// indices.
const EDITS_MAX: usize = XATTR_PARTS_MAX as usize + 5;

/// Bytes of all the values of such a change.
const BYTES_MAX: usize = XATTR_PARTS_MAX as usize * VALUE_BYTES_MAX + size_of::<InodeRecord>();

/// The largest change: what [`items::Limits::change`] must be at least.
#[must_use]
pub const fn change_needs() -> Needs {
    Needs { items: EDITS_MAX as u32, value_bytes: BYTES_MAX as u32 }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Create,
    Replace,
    Delete,
    CreateBlind,
    DeleteBlind,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    kind: Kind,
    key: Key,
    at: u32,
    len: u32,
}

/// Edits being gathered.
pub(super) struct Changes<'m> {
    entries: Vec<Entry, EDITS_MAX>,
    bytes: &'m mut [u8],
    len: usize,
}

impl<'m> Changes<'m> {
    pub(super) fn carve(arena: &mut Arena<'m>) -> Result<Changes<'m>, ArenaFull> {
        Ok(Changes { entries: Vec::new(), bytes: arena.slice(BYTES_MAX as u32, |_| 0)?, len: 0 })
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.len = 0;
    }

    fn add(&mut self, kind: Kind, key: Key, value: &[u8]) {
        self.bytes[self.len..self.len + value.len()].copy_from_slice(value);
        let entry = Entry { kind, key, at: self.len as u32, len: value.len() as u32 };
        self.len += value.len();
        debug_assert!(self.entries.iter().all(|entry| entry.key != key));
        let added = self.entries.push(entry);
        assert!(added.is_ok(), "no change is larger");
    }

    pub(super) fn create(&mut self, key: Key, value: &[u8]) {
        self.add(Kind::Create, key, value);
    }

    pub(super) fn replace(&mut self, key: Key, value: &[u8]) {
        self.add(Kind::Replace, key, value);
    }

    pub(super) fn delete(&mut self, key: Key) {
        self.add(Kind::Delete, key, &[]);
    }

    pub(super) fn create_blind(&mut self, key: Key) {
        self.add(Kind::CreateBlind, key, &[]);
    }

    pub(super) fn delete_blind(&mut self, key: Key) {
        self.add(Kind::DeleteBlind, key, &[]);
    }

    /// The three items of a new entry.
    pub(super) fn create_entry(&mut self, dir: Ino, entry: &Dirent<'_>) {
        let mut buf = [0; VALUE_BYTES_MAX];
        let value = entry.emit(&mut buf);
        self.create(Key::dirent(dir, entry.hash, entry.pos), value);
        self.create(Key::readdir(dir, entry.pos), value);
        self.create(Key::backref(entry.ino, dir, entry.pos), value);
    }

    /// The same three, removed.
    pub(super) fn delete_entry(&mut self, dir: Ino, found: &super::read::Found) {
        self.delete(Key::dirent(dir, found.hash, found.pos));
        self.delete(Key::readdir(dir, found.pos));
        self.delete(Key::backref(found.ino, dir, found.pos));
    }

    /// An extent that was there before, or wasn't, as it is now.
    pub(super) fn put_extent(&mut self, ino: Ino, extent: &FileExtent, existed: bool) {
        let (key, value) = (Key::extent(ino, extent.last), extent.emit());
        let kind = if existed { Kind::Replace } else { Kind::Create };
        self.add(kind, key, value.as_bytes());
    }

    fn edits(&self) -> Vec<Edit<'_>, EDITS_MAX> {
        let edits = self.entries.iter().map(|entry| {
            let key = bytes(entry.key);
            let value = &self.bytes[entry.at as usize..(entry.at + entry.len) as usize];
            match entry.kind {
                Kind::Create => Edit::Create { key, value },
                Kind::Replace => Edit::Replace { key, value },
                Kind::Delete => Edit::Delete { key },
                Kind::CreateBlind => Edit::CreateBlind { key, value },
                Kind::DeleteBlind => Edit::DeleteBlind { key },
            }
        });
        edits.collect()
    }
}

/// A key as the cache wants it.
pub(super) fn bytes(key: Key) -> items::Key {
    let bytes = KeyBytes::from(key);
    let mut array = items::key::FIRST;
    array.copy_from_slice(bytes.as_bytes());
    array
}

impl Run<'_, '_, '_, '_> {
    /// Adds a new inode, with its index entries.
    pub(super) fn create_inode(&mut self, ino: Ino, mut inode: Inode) -> Inode {
        inode.meta_seq = self.cx.seq;
        inode.data_seq = self.cx.seq;
        let changes = &mut self.fs.changes;
        changes.create(Key::inode(ino), inode.emit().as_bytes());
        changes.create_blind(Key::meta_seq(inode.meta_seq, ino));
        if inode.kind == FileKind::Regular {
            changes.create_blind(Key::data_seq(inode.data_seq, ino));
        }
        inode
    }

    /// Rewrites an inode, and moves its index entries to the open transaction if they aren't there.
    pub(super) fn rewrite_inode(&mut self, ino: Ino, old: &Inode, mut new: Inode, data: bool) {
        let seq = self.cx.seq;
        let changes = &mut self.fs.changes;
        if old.meta_seq != seq {
            changes.create_blind(Key::meta_seq(seq, ino));
            changes.delete_blind(Key::meta_seq(old.meta_seq, ino));
        }
        if data && new.kind == FileKind::Regular && old.data_seq != seq {
            changes.create_blind(Key::data_seq(seq, ino));
            changes.delete_blind(Key::data_seq(old.data_seq, ino));
        }
        new.meta_seq = seq;
        if data {
            new.data_seq = seq;
        }
        changes.replace(Key::inode(ino), new.emit().as_bytes());
    }

    /// Applies what was gathered, all of it; or waits, and nothing has changed.
    pub(super) fn commit(&mut self) -> Result<(), Stop> {
        let edits = self.fs.changes.edits();
        let plan = loop {
            match self.cx.items.plan(&edits) {
                Ok(plan) => break plan,
                Err(items::Stop::Wait(items::Wait::Fill(miss))) => {
                    fill(self.cx, &mut self.fills, &miss)?;
                }
                Err(items::Stop::Wait(items::Wait::Commit)) => return Err(Wait::Commit.into()),
                Err(items::Stop::Wait(items::Wait::Snapshot)) => {
                    return Err(Wait::Snapshot.into());
                }
                // Everything was looked at before: an entry that lacks a twin, an index out of
                // step.
                Err(items::Stop::Fail(_)) => return Err(OpError::Io.into()),
            }
        };
        self.cx.items.apply(plan, &edits);
        for entry in &self.fs.changes.entries {
            let name = LockName::covering(&entry.key).expect("every item is under a lock");
            self.cx.locks.mark_dirty(&name, self.cx.seq);
        }
        self.task.changed = true;
        Ok(())
    }
}

/// Fills in what was missed, or stops for it: `left` says how many times more it is to be tried.
pub(super) fn fill(
    cx: &mut Context<'_, '_>,
    left: &mut u32,
    miss: &items::Miss,
) -> Result<(), Stop> {
    let range = range_of(miss);
    let at = miss.at;
    let now = match &mut cx.reader {
        Some(reader) if *left > 0 => {
            *left -= 1;
            reader.want_now(cx.items, at, range)
        }
        Some(_) | None => Err(Busy),
    };
    match now {
        Ok(Now::Filled) => Ok(()),
        Ok(Now::Wanted) => Err(Wait::Fill { at, range, asked: true }.into()),
        Err(Busy) => Err(Wait::Fill { at, range, asked: false }.into()),
    }
}

/// What of a gap is under the lock of the key that was missed.
fn range_of(miss: &items::Miss) -> items::Range {
    use zerocopy::FromBytes;
    let key = KeyBytes::read_from_bytes(&miss.at).map(Key::from);
    let name = key.ok().and_then(|key| LockName::covering(&key));
    let name = name.expect("only what is locked is asked for");
    let lock = name.range();
    items::Range {
        first: miss.gap.first.max(bytes(lock.first())),
        last: miss.gap.last.min(bytes(lock.last())),
    }
}
