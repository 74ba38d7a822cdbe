//! The key of an item: 27 bytes, whose order is the order of everything in the volume.
//!
//! | item | zone | first | kind | second | third | fourth |
//! |---|---|---|---|---|---|---|
//! | index by metadata change | 1 | 0 | 1 | seq | ino | 0 |
//! | index by data change | 1 | 0 | 2 | seq | ino | 0 |
//! | orphan | 1 | 0 | 8 | ino | 0 | 0 |
//! | inode | 3 | ino | 1 | 0 | 0 | 0 |
//! | xattr part | 3 | ino | 2 | hash of the name | xattr's number | part |
//! | directory entry by name | 3 | directory | 3 | hash of the name | position | 0 |
//! | directory entry by position | 3 | directory | 4 | position | 0 | 0 |
//! | link back to a directory entry | 3 | ino | 5 | directory | position | 0 |
//! | symlink part | 3 | ino | 6 | part | 0 | 0 |
//! | file extent | 3 | ino | 7 | *last* block | 0 | 0 |
//!
//! Zone 2 (first: a client's number) and zone 4 (kind 1: rename) hold no items: they exist only as
//! names of locks.
//!
//! An extent is keyed by its last block, so that the first item at or behind block B is the extent
//! that holds B or, if none does, the next one. Orphans stand in the index zone and not among their
//! inode's items, so that they are found without reading every inode; and not under the client that
//! made them, because whoever closes the file last deletes it.
//!
//! # Invariants
//!
//! * [`Key`] is ordered by its fields as they are listed; [`KeyBytes`] is big-endian, so that
//!   comparing bytes gives the same order.
//! * Every 27 bytes are a key, because a range may end anywhere; only some keys are those of an
//!   item, and [`ItemKey`] can't hold any other.
//!
//! What this module deliberately doesn't know: values, and which lock covers which key.

use super::{ClientId, Ino, Seq};
use crate::error::Corruption;
use crate::record;
use core::fmt;
use core::str::FromStr;
use siphasher::sip::SipHasher24;
use zerocopy::IntoBytes;
use zerocopy::big_endian::U64;

record! {
    /// A key on disk and wire. The only big-endian structure: comparing its bytes compares keys.
    pub struct KeyBytes [27] {
        /// A [`Zone`].
        zone: u8,
        /// What the item belongs to: an inode, a client, or 0.
        first: U64,
        /// Kind of item, numbered within the zone.
        kind: u8,
        /// Depends on the kind.
        second: U64,
        /// Depends on the kind.
        third: U64,
        /// Number of the part, for values that take several items; else 0.
        fourth: u8,
    }
}

impl KeyBytes {
    /// All zeroes: less than the key of any item, and so free to mean that there is none.
    pub const ZERO: KeyBytes = KeyBytes {
        zone: 0,
        first: U64::ZERO,
        kind: 0,
        second: U64::ZERO,
        third: U64::ZERO,
        fourth: 0,
    };

    /// Numbers of the same order as the bytes, which compare without a call. The 5 bytes that are
    /// in both are equal when the second one counts.
    #[must_use]
    pub(crate) fn numbers(&self) -> (u128, u128) {
        let bytes = self.as_bytes();
        let (first, last) = (bytes.first_chunk::<16>(), bytes.last_chunk::<16>());
        let number = |chunk: Option<&[u8; 16]>| u128::from_be_bytes(*chunk.expect("27 bytes"));
        (number(first), number(last))
    }
}

impl PartialOrd for KeyBytes {
    fn partial_cmp(&self, other: &KeyBytes) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyBytes {
    fn cmp(&self, other: &KeyBytes) -> core::cmp::Ordering {
        self.numbers().cmp(&other.numbers())
    }
}

/// Name of an item, or one end of a range of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// A [`Zone`], in the key of an item.
    pub zone: u8,
    /// What the item belongs to.
    pub first: u64,
    /// Kind of item, numbered within the zone.
    pub kind: u8,
    /// Depends on the kind.
    pub second: u64,
    /// Depends on the kind.
    pub third: u64,
    /// Number of the part.
    pub fourth: u8,
}

/// The coarsest division of the key space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Zone {
    /// Indices over all inodes. Written blindly, under write-only locks.
    Index = 1,
    /// One client's own. Only a name of a lock: who is granted it knows that the client has gone.
    Private = 2,
    /// Everything that belongs to one inode.
    Fs = 3,
    /// Names of locks that cover no items.
    Lock = 4,
}

/// Kinds of items in [`Zone::Index`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum IndexKind {
    /// Inodes in the order of the transactions that last changed them.
    MetaSeq = 1,
    /// Regular files in the order of the transactions that last changed their data.
    DataSeq = 2,
    /// Inodes without links that are still to be deleted.
    Orphan = 8,
}

impl IndexKind {
    /// The kind of this number.
    #[must_use]
    pub const fn parse(number: u8) -> Option<IndexKind> {
        match number {
            1 => Some(IndexKind::MetaSeq),
            2 => Some(IndexKind::DataSeq),
            8 => Some(IndexKind::Orphan),
            _ => None,
        }
    }
}

/// Kinds of items in [`Zone::Fs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FsKind {
    /// The inode itself.
    Inode = 1,
    /// A part of an extended attribute.
    Xattr = 2,
    /// A directory entry, found by its name.
    Dirent = 3,
    /// A directory entry, found by its position.
    Readdir = 4,
    /// A directory entry, found from the inode it names.
    Backref = 5,
    /// A part of a symlink's target.
    Symlink = 6,
    /// Where a run of a file's blocks stands.
    Extent = 7,
}

/// The one kind in [`Zone::Lock`]: the lock that orders renames between directories.
pub const RENAME_KIND: u8 = 1;

/// A block of a file, counted from the file's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileBlock(pub u64);

impl FileBlock {
    /// The last block a file can have: its bytes are still numbered by an `i64`.
    pub const MAX: FileBlock = FileBlock((1 << 51) - 1);
}

/// Position of a directory's first entry. Those before it stand for `.` and `..`, which are no
/// items.
pub const FIRST_POS: u64 = 2;

/// The last position an entry can have, so that the one to resume from behind it still is a number.
pub const LAST_POS: u64 = u64::MAX - 1;

/// Parts of an extended attribute: its header, a name of 255 bytes and a value of 65535.
pub const XATTR_PARTS_MAX: u8 = 129;

/// Parts of a symlink's target of 4095 bytes.
pub const SYMLINK_PARTS_MAX: u8 = 8;

impl Key {
    /// Before all others.
    pub const MIN: Key = Key { zone: 0, first: 0, kind: 0, second: 0, third: 0, fourth: 0 };

    /// Behind all others.
    pub const MAX: Key = Key {
        zone: u8::MAX,
        first: u64::MAX,
        kind: u8::MAX,
        second: u64::MAX,
        third: u64::MAX,
        fourth: u8::MAX,
    };

    const fn index(kind: IndexKind, second: u64, third: u64) -> Key {
        Key { zone: Zone::Index as u8, first: 0, kind: kind as u8, second, third, fourth: 0 }
    }

    const fn fs(ino: Ino, kind: FsKind, second: u64, third: u64, fourth: u8) -> Key {
        Key { zone: Zone::Fs as u8, first: ino.0, kind: kind as u8, second, third, fourth }
    }

    /// The inode's entry in the index by metadata change.
    #[must_use]
    pub const fn meta_seq(seq: Seq, ino: Ino) -> Key {
        Key::index(IndexKind::MetaSeq, seq.0, ino.0)
    }

    /// The file's entry in the index by data change.
    #[must_use]
    pub const fn data_seq(seq: Seq, ino: Ino) -> Key {
        Key::index(IndexKind::DataSeq, seq.0, ino.0)
    }

    /// The note that the inode has no links and is to be deleted.
    #[must_use]
    pub const fn orphan(ino: Ino) -> Key {
        Key::index(IndexKind::Orphan, ino.0, 0)
    }

    /// The inode.
    #[must_use]
    pub const fn inode(ino: Ino) -> Key {
        Key::fs(ino, FsKind::Inode, 0, 0, 0)
    }

    /// A part of the inode's extended attribute with this hash of its name and this number.
    #[must_use]
    pub const fn xattr(ino: Ino, hash: u64, id: u64, part: u8) -> Key {
        Key::fs(ino, FsKind::Xattr, hash, id, part)
    }

    /// The directory's entry with this hash of its name, at this position.
    #[must_use]
    pub const fn dirent(dir: Ino, hash: u64, pos: u64) -> Key {
        Key::fs(dir, FsKind::Dirent, hash, pos, 0)
    }

    /// The directory's entry at this position.
    #[must_use]
    pub const fn readdir(dir: Ino, pos: u64) -> Key {
        Key::fs(dir, FsKind::Readdir, pos, 0, 0)
    }

    /// The inode's link back to the directory's entry at this position.
    #[must_use]
    pub const fn backref(ino: Ino, dir: Ino, pos: u64) -> Key {
        Key::fs(ino, FsKind::Backref, dir.0, pos, 0)
    }

    /// A part of the symlink's target.
    #[must_use]
    pub const fn symlink(ino: Ino, part: u8) -> Key {
        Key::fs(ino, FsKind::Symlink, part as u64, 0, 0)
    }

    /// The file's extent that ends with this block.
    #[must_use]
    pub const fn extent(ino: Ino, last: FileBlock) -> Key {
        Key::fs(ino, FsKind::Extent, last.0, 0, 0)
    }

    /// Where a client's private zone starts.
    #[must_use]
    pub const fn private(client: ClientId) -> Key {
        Key { zone: Zone::Private as u8, first: client.0, ..Key::MIN }
    }

    /// What the rename lock is called.
    pub const RENAME: Key = Key { zone: Zone::Lock as u8, kind: RENAME_KIND, ..Key::MIN };

    /// The key right behind this one.
    #[must_use]
    pub fn next(self) -> Option<Key> {
        let (fourth, carry) = self.fourth.overflowing_add(1);
        let (third, carry) = self.third.overflowing_add(carry.into());
        let (second, carry) = self.second.overflowing_add(carry.into());
        let (kind, carry) = self.kind.overflowing_add(carry.into());
        let (first, carry) = self.first.overflowing_add(carry.into());
        let (zone, carry) = self.zone.overflowing_add(carry.into());
        (!carry).then_some(Key { zone, first, kind, second, third, fourth })
    }

    /// The key right before this one.
    #[must_use]
    pub fn prev(self) -> Option<Key> {
        let (fourth, borrow) = self.fourth.overflowing_sub(1);
        let (third, borrow) = self.third.overflowing_sub(borrow.into());
        let (second, borrow) = self.second.overflowing_sub(borrow.into());
        let (kind, borrow) = self.kind.overflowing_sub(borrow.into());
        let (first, borrow) = self.first.overflowing_sub(borrow.into());
        let (zone, borrow) = self.zone.overflowing_sub(borrow.into());
        (!borrow).then_some(Key { zone, first, kind, second, third, fourth })
    }
}

impl From<Key> for KeyBytes {
    fn from(key: Key) -> KeyBytes {
        KeyBytes {
            zone: key.zone,
            first: key.first.into(),
            kind: key.kind,
            second: key.second.into(),
            third: key.third.into(),
            fourth: key.fourth,
        }
    }
}

impl From<KeyBytes> for Key {
    fn from(bytes: KeyBytes) -> Key {
        Key {
            zone: bytes.zone,
            first: bytes.first.get(),
            kind: bytes.kind,
            second: bytes.second.get(),
            third: bytes.third.get(),
            fourth: bytes.fourth,
        }
    }
}

impl fmt::Display for Key {
    /// `zone.first.kind.second.third.fourth`, in decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { zone, first, kind, second, third, fourth } = self;
        write!(f, "{zone}.{first}.{kind}.{second}.{third}.{fourth}")
    }
}

/// The text is not six decimal numbers with dots between them, or one is too large for its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySyntax;

impl FromStr for Key {
    type Err = KeySyntax;

    fn from_str(text: &str) -> Result<Key, KeySyntax> {
        let mut parts = text.split('.').map(|part| match part.as_bytes() {
            [b'0'..=b'9', ..] => part.parse::<u64>().map_err(|_| KeySyntax),
            _ => Err(KeySyntax),
        });
        let mut part = || parts.next().ok_or(KeySyntax)?;
        let byte = |part: u64| u8::try_from(part).map_err(|_| KeySyntax);
        let key = Key {
            zone: byte(part()?)?,
            first: part()?,
            kind: byte(part()?)?,
            second: part()?,
            third: part()?,
            fourth: byte(part()?)?,
        };
        parts.next().is_none().then_some(key).ok_or(KeySyntax)
    }
}

/// The keys between two, both included. Never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyRange {
    first: Key,
    last: Key,
}

impl KeyRange {
    /// Every key.
    pub const ALL: KeyRange = KeyRange { first: Key::MIN, last: Key::MAX };

    /// The keys from `first` to `last`, unless they are in the wrong order.
    #[must_use]
    pub fn new(first: Key, last: Key) -> Option<KeyRange> {
        (first <= last).then_some(KeyRange { first, last })
    }

    /// Every key that has to do with an inode: its items in the fs zone.
    #[must_use]
    pub const fn inode(ino: Ino) -> KeyRange {
        let zone = Zone::Fs as u8;
        KeyRange {
            first: Key { zone, first: ino.0, ..Key::MIN },
            last: Key { zone, first: ino.0, ..Key::MAX },
        }
    }

    /// The smallest key.
    #[must_use]
    pub const fn first(&self) -> Key {
        self.first
    }

    /// The largest key.
    #[must_use]
    pub const fn last(&self) -> Key {
        self.last
    }

    /// Whether the key is one of them.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.first <= *key && *key <= self.last
    }

    /// Whether all of the other's keys are.
    #[must_use]
    pub fn covers(&self, other: &KeyRange) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// The keys that both have.
    #[must_use]
    pub fn intersection(&self, other: &KeyRange) -> Option<KeyRange> {
        KeyRange::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// Whether there is a key that both have.
    #[must_use]
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        self.intersection(other).is_some()
    }
}

/// What an item is, told by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemKey {
    /// Index by metadata change. No value.
    MetaSeq {
        /// The transaction of the inode's last change.
        seq: Seq,
        /// The inode.
        ino: Ino,
    },
    /// Index by data change. No value.
    DataSeq {
        /// The transaction of the last change of the file's data.
        seq: Seq,
        /// The file.
        ino: Ino,
    },
    /// An inode to be deleted. No value.
    Orphan(Ino),
    /// An inode.
    Inode(Ino),
    /// A part of an extended attribute.
    Xattr {
        /// The inode that has it.
        ino: Ino,
        /// [`name_hash`] of its name.
        hash: u64,
        /// Tells attributes with one hash apart. Drawn from the inode's counter, never reused.
        id: u64,
        /// Which part, from 0.
        part: u8,
    },
    /// A directory entry by name.
    Dirent {
        /// The directory.
        dir: Ino,
        /// [`name_hash`] of its name.
        hash: u64,
        /// Its position, which tells entries with one hash apart.
        pos: u64,
    },
    /// A directory entry by position.
    Readdir {
        /// The directory.
        dir: Ino,
        /// Its position: drawn from the directory's counter, never reused.
        pos: u64,
    },
    /// A link back to a directory entry.
    Backref {
        /// The inode that is named.
        ino: Ino,
        /// The directory.
        dir: Ino,
        /// The entry's position in it.
        pos: u64,
    },
    /// A part of a symlink's target.
    Symlink {
        /// The symlink.
        ino: Ino,
        /// Which part, from 0.
        part: u8,
    },
    /// A run of a file's blocks.
    Extent {
        /// The file.
        ino: Ino,
        /// The last block of the run.
        last: FileBlock,
    },
}

impl ItemKey {
    /// What the key names. Fails with [`Corruption::Value`] when it is no item's: an unknown zone
    /// or kind, inode 0, a position or part that can't be; and with [`Corruption::Reserved`] when a
    /// field that the kind doesn't use is not zero.
    pub fn parse(key: &Key) -> Result<ItemKey, Corruption> {
        let Key { zone, first, kind, second, third, fourth } = *key;
        let item = if zone == Zone::Index as u8 {
            match IndexKind::parse(kind).ok_or(Corruption::Value)? {
                IndexKind::MetaSeq => ItemKey::MetaSeq { seq: Seq(second), ino: ino(third)? },
                IndexKind::DataSeq => ItemKey::DataSeq { seq: Seq(second), ino: ino(third)? },
                IndexKind::Orphan => ItemKey::Orphan(ino(second)?),
            }
        } else if zone == Zone::Fs as u8 {
            let ino_first = ino(first)?;
            match kind {
                1 => ItemKey::Inode(ino_first),
                2 => {
                    let part = part(fourth.into(), XATTR_PARTS_MAX)?;
                    ItemKey::Xattr { ino: ino_first, hash: second, id: third, part }
                }
                3 => ItemKey::Dirent { dir: ino_first, hash: second, pos: pos(third)? },
                4 => ItemKey::Readdir { dir: ino_first, pos: pos(second)? },
                5 => ItemKey::Backref { ino: ino_first, dir: ino(second)?, pos: pos(third)? },
                6 => ItemKey::Symlink { ino: ino_first, part: part(second, SYMLINK_PARTS_MAX)? },
                7 if second <= FileBlock::MAX.0 => {
                    ItemKey::Extent { ino: ino_first, last: FileBlock(second) }
                }
                _ => return Err(Corruption::Value),
            }
        } else {
            return Err(Corruption::Value);
        };
        if item.key() == *key { Ok(item) } else { Err(Corruption::Reserved) }
    }

    /// The key of the item.
    #[must_use]
    pub const fn key(&self) -> Key {
        match *self {
            ItemKey::MetaSeq { seq, ino } => Key::meta_seq(seq, ino),
            ItemKey::DataSeq { seq, ino } => Key::data_seq(seq, ino),
            ItemKey::Orphan(ino) => Key::orphan(ino),
            ItemKey::Inode(ino) => Key::inode(ino),
            ItemKey::Xattr { ino, hash, id, part } => Key::xattr(ino, hash, id, part),
            ItemKey::Dirent { dir, hash, pos } => Key::dirent(dir, hash, pos),
            ItemKey::Readdir { dir, pos } => Key::readdir(dir, pos),
            ItemKey::Backref { ino, dir, pos } => Key::backref(ino, dir, pos),
            ItemKey::Symlink { ino, part } => Key::symlink(ino, part),
            ItemKey::Extent { ino, last } => Key::extent(ino, last),
        }
    }
}

fn ino(number: u64) -> Result<Ino, Corruption> {
    if number == 0 { Err(Corruption::Value) } else { Ok(Ino(number)) }
}

fn pos(number: u64) -> Result<u64, Corruption> {
    if (FIRST_POS..=LAST_POS).contains(&number) { Ok(number) } else { Err(Corruption::Value) }
}

fn part(number: u64, parts_max: u8) -> Result<u8, Corruption> {
    u8::try_from(number).ok().filter(|part| *part < parts_max).ok_or(Corruption::Value)
}

/// A volume's secret for hashing names, drawn by mkfs: nobody outside can make names collide.
#[derive(Clone, Copy)]
pub struct NameSecret(pub [u8; 16]);

/// Hash of the name of a directory entry or an extended attribute: SipHash-2-4 of its bytes
/// (Aumasson and Bernstein, 2012), keyed with the volume's secret.
#[must_use]
pub fn name_hash(secret: &NameSecret, name: &[u8]) -> u64 {
    SipHasher24::new_with_key(&secret.0).hash(name)
}

#[cfg(test)]
mod tests;
