//! One inode, with all its items: what they must have in common.
//!
//! The items of an inode stand together and in the order of their kinds, the inode first. So all
//! that can be told from them alone is told in one go through them, and what concerns items of
//! other inodes, or of an index, goes into [`Differences`].
//!
//! # Invariants
//!
//! * Memory is fixed, however many items the inode has.
//! * An item that can't be parsed was told with its block; here it counts for nothing.
//! * When the inode itself is missing or can't be parsed, nothing is told that needs it.
//!
//! What this module deliberately doesn't know: which items there are of other inodes.

use super::differences::{Differences, Element, Pair};
use super::finding::{Id, Log, Wrong};
use super::xattr::XattrCheck;
use crate::error::Corruption;
use crate::format::item::{
    Dirent, FileExtent, FileKind, Inode, Mapping, NAME_BYTES_MAX, parse_symlink_part,
};
use crate::format::key::{ItemKey, Key, NameSecret, name_hash};
use crate::format::root::Extent;
use crate::format::{BLOCK_BYTES, BlockNo, Ino};

/// The root directory.
pub(super) const ROOT: Ino = Ino(1);

/// Where an item stands.
pub(super) type Place = (BlockNo, Key);

/// What is known of the inode itself.
#[derive(Clone, Copy)]
enum Known {
    /// There is none.
    No,
    /// There is one that says nothing.
    Unreadable,
    Yes(Inode),
}

pub(super) struct InodeCheck {
    secret: NameSecret,
    /// The lowest number that was never lent.
    next_ino: u64,
    ino: Ino,
    /// Where it stands, or its first item if it isn't there.
    place: Place,
    known: Known,
    /// It was told that items of its don't suit it.
    is_kind_told: bool,
    xattr: XattrCheck,
    /// Entries by position: how many, how many of directories, bytes of their names.
    entries: u64,
    subdirs: u64,
    name_bytes: u64,
    /// Names it has, and the directory that the last of them is in.
    names: u64,
    parent: Option<Ino>,
    /// The last entry by name.
    last_name: (u64, heapless::Vec<u8, NAME_BYTES_MAX>),
    /// Bytes of the target so far.
    target: u64,
    is_target_bad: bool,
    /// Behind the last extent, and behind the last that holds data.
    extent_end: u64,
    data_end: u64,
    online: u64,
    offline: u64,
}

/// What an inode has shown that concerns others.
pub(super) struct Summary {
    pub(super) is_directory: bool,
    /// The directory it is in, of a directory that has a name.
    pub(super) parent: Option<Ino>,
}

impl InodeCheck {
    pub(super) fn new(secret: NameSecret) -> InodeCheck {
        InodeCheck {
            secret,
            next_ino: 0,
            ino: Ino(0),
            place: (BlockNo(0), Key::MIN),
            known: Known::No,
            is_kind_told: false,
            xattr: XattrCheck::new(secret),
            entries: 0,
            subdirs: 0,
            name_bytes: 0,
            names: 0,
            parent: None,
            last_name: (0, heapless::Vec::new()),
            target: 0,
            is_target_bad: false,
            extent_end: 0,
            data_end: 0,
            online: 0,
            offline: 0,
        }
    }

    /// Starts over, for a volume on which this is the lowest number that was never lent.
    pub(super) fn begin(&mut self, next_ino: u64) {
        *self = InodeCheck { next_ino, ..InodeCheck::new(self.secret) };
    }

    /// The inode whose items are being gone through; 0 before the first.
    pub(super) fn ino(&self) -> Ino {
        self.ino
    }

    /// Where it stands, or the first of its items.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// The first item of an inode has been met; the one before was [`end`](Self::end)ed.
    pub(super) fn enter(&mut self, ino: Ino, place: Place, log: &mut Log) {
        let next_ino = self.next_ino;
        *self = InodeCheck { next_ino, ino, place, ..InodeCheck::new(self.secret) };
        if ino.0 >= next_ino {
            log.put_item(Id::Next, place, Wrong::Count { says: ino.0, is: next_ino });
        }
    }

    /// Takes an item of the inode; the blocks of the device that it stands for.
    pub(super) fn take(
        &mut self,
        item: &ItemKey,
        value: &[u8],
        place: Place,
        log: &mut Log,
        differences: &mut Differences<'_>,
    ) -> Option<Extent> {
        if !matches!(item, ItemKey::Xattr { .. }) {
            self.xattr.end(log);
        }
        match item {
            ItemKey::Inode(_) => self.take_inode(value, differences),
            ItemKey::Xattr { .. } => {
                let next = self.inode().map(|inode| inode.next_xattr_id);
                self.xattr.take(item, value, place, next, log);
            }
            ItemKey::Dirent { .. } | ItemKey::Readdir { .. } | ItemKey::Backref { .. } => {
                if let Ok(entry) = Dirent::parse(value)
                    && entry.agrees(item)
                {
                    let digest = differences.digest(value);
                    self.take_entry(item, &entry, digest, place, log, differences);
                }
            }
            ItemKey::Symlink { part, .. } => {
                self.suits(FileKind::Symlink, place, log);
                let size = self.inode().map_or(0, |inode| inode.size);
                self.is_target_bad |= parse_symlink_part(value, *part, size).is_err();
                self.target += value.len() as u64;
            }
            ItemKey::Extent { last, .. } => {
                self.suits(FileKind::Regular, place, log);
                return self.take_extent(&FileExtent::parse(*last, value).ok()?, place, log);
            }
            ItemKey::MetaSeq { .. } | ItemKey::DataSeq { .. } | ItemKey::Orphan(_) => {}
        }
        None
    }

    fn inode(&self) -> Option<&Inode> {
        match &self.known {
            Known::Yes(inode) => Some(inode),
            Known::No | Known::Unreadable => None,
        }
    }

    fn take_inode(&mut self, value: &[u8], differences: &mut Differences<'_>) {
        let Ok(inode) = Inode::parse(value) else {
            self.known = Known::Unreadable;
            return;
        };
        self.known = Known::Yes(inode);
        let (ino, is_file) = (self.ino.0, inode.kind == FileKind::Regular);
        let indices = [
            (Pair::Meta, [inode.meta_seq.0, ino, 0], true),
            (Pair::Data, [inode.data_seq.0, ino, 0], is_file),
            (Pair::Orphan, [ino, 0, 0], inode.nlink == 0),
        ];
        for (pair, at, _) in indices.into_iter().filter(|(_, _, is_in)| *is_in) {
            differences.put(&Element { pair, at, digest: 0 }, false);
        }
    }

    /// Tells, once, that the inode has an item that only those of another type have.
    fn suits(&mut self, kind: FileKind, place: Place, log: &mut Log) {
        let suits = self.inode().is_none_or(|inode| inode.kind == kind);
        if !suits && !core::mem::replace(&mut self.is_kind_told, true) {
            log.put_item(Id::InodeKind, place, Wrong::MISMATCH);
        }
    }

    fn take_entry(
        &mut self,
        item: &ItemKey,
        entry: &Dirent<'_>,
        digest: u64,
        place: Place,
        log: &mut Log,
        differences: &mut Differences<'_>,
    ) {
        let (pos, name) = (entry.pos, entry.name.bytes());
        let element = |pair, dir: Ino, third| Element { pair, at: [dir.0, pos, third], digest };
        match *item {
            ItemKey::Dirent { dir, hash, .. } => {
                self.suits(FileKind::Directory, place, log);
                differences.put(&element(Pair::Entry, dir, hash), true);
                if name_hash(&self.secret, name) != hash {
                    log.put_item(Id::DirentHash, place, Wrong::MISMATCH);
                }
                if self.last_name.0 == hash && self.last_name.1 == name {
                    log.put_item(Id::DirentName, place, Wrong::MISMATCH);
                }
                let name = heapless::Vec::from_slice(name).expect("a name is bounded");
                self.last_name = (hash, name);
            }
            ItemKey::Readdir { dir, .. } => {
                self.suits(FileKind::Directory, place, log);
                differences.put(&element(Pair::Entry, dir, entry.hash), false);
                differences.put(&element(Pair::Link, dir, entry.ino.0), true);
                self.entries += 1;
                self.subdirs += u64::from(entry.kind == FileKind::Directory);
                self.name_bytes += name.len() as u64;
                let next = self.inode().map(|inode| inode.next_readdir_pos);
                if let Some(next) = next.filter(|next| pos >= *next) {
                    log.put_item(Id::DirPos, place, Wrong::Count { says: pos, is: next });
                }
            }
            ItemKey::Backref { dir, .. } => {
                differences.put(&element(Pair::Link, dir, entry.ino.0), false);
                (self.names, self.parent) = (self.names + 1, Some(dir));
                if self.inode().is_some_and(|inode| inode.kind != entry.kind) {
                    log.put_item(Id::DirentKind, place, Wrong::MISMATCH);
                }
            }
            ItemKey::MetaSeq { .. }
            | ItemKey::DataSeq { .. }
            | ItemKey::Orphan(_)
            | ItemKey::Inode(_)
            | ItemKey::Xattr { .. }
            | ItemKey::Symlink { .. }
            | ItemKey::Extent { .. } => {}
        }
    }

    fn take_extent(&mut self, file: &FileExtent, place: Place, log: &mut Log) -> Option<Extent> {
        let (first, end) = (file.first().0, file.last.0 + 1);
        if first < self.extent_end {
            log.put_item(Id::ExtentOrder, place, Corruption::Order);
        }
        self.extent_end = end;
        match file.mapping {
            Mapping::Data(at) => {
                self.online = self.online.saturating_add(file.len);
                self.data_end = end;
                Some(Extent::new(at, file.len))
            }
            Mapping::Reserved(at) => Some(Extent::new(at, file.len)),
            Mapping::Offline | Mapping::OfflineReserved(_) => {
                self.offline = self.offline.saturating_add(file.len);
                self.data_end = end;
                match file.mapping {
                    Mapping::OfflineReserved(at) => Some(Extent::new(at, file.len)),
                    Mapping::Data(_) | Mapping::Reserved(_) | Mapping::Offline => None,
                }
            }
        }
    }

    /// All items of the inode have been gone through.
    pub(super) fn end(&mut self, log: &mut Log) -> Option<Summary> {
        if self.ino == Ino(0) {
            return None;
        }
        self.xattr.end(log);
        let inode = match self.known {
            Known::Yes(inode) => inode,
            Known::No => {
                log.put_item(Id::InodeNone, self.place, Wrong::MISMATCH);
                return None;
            }
            Known::Unreadable => return None,
        };
        let is_directory = inode.kind == FileKind::Directory;
        if self.ino == ROOT {
            self.end_root(&inode, log);
        } else if is_directory && self.names != u64::from(inode.nlink > 0) {
            let is = u64::from(inode.nlink > 0);
            log.put_item(Id::Parent, self.place, Wrong::Count { says: self.names, is });
        }
        self.end_counts(&inode, log);
        Some(Summary { is_directory, parent: self.parent.filter(|_| inode.nlink > 0) })
    }

    fn end_root(&self, inode: &Inode, log: &mut Log) {
        if inode.kind != FileKind::Directory || inode.nlink == 0 || self.names > 0 {
            log.put_item(Id::RootDirectory, self.place, Wrong::MISMATCH);
        }
    }

    fn end_counts(&self, inode: &Inode, log: &mut Log) {
        let mut compare = |id, says: u64, is: u64| {
            if says != is {
                log.put_item(id, self.place, Wrong::Count { says, is });
            }
        };
        let links = u64::from(inode.nlink);
        match inode.kind {
            FileKind::Directory => {
                compare(Id::DirSize, inode.size, self.name_bytes);
                match links {
                    0 => compare(Id::DirRemoved, self.entries, 0),
                    links => compare(Id::LinkCount, links, 2 + self.subdirs),
                }
                return;
            }
            FileKind::Regular => {
                compare(Id::FileBlocks, inode.online_blocks, self.online);
                compare(Id::FileBlocks, inode.offline_blocks, self.offline);
                let end = inode.size.div_ceil(BLOCK_BYTES as u64);
                if !inode.truncating && self.data_end > end {
                    compare(Id::ExtentEnd, self.data_end, end);
                }
            }
            FileKind::Symlink => {
                if self.is_target_bad || self.target != inode.size {
                    compare(Id::Symlink, inode.size, self.target);
                }
            }
            FileKind::Fifo | FileKind::CharDevice | FileKind::BlockDevice | FileKind::Socket => {
                compare(Id::InodeSize, inode.size, 0);
            }
        }
        compare(Id::LinkCount, links, self.names);
    }
}
