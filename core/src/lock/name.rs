//! Names of locks, and the keys they cover.
//!
//! | lock | its name, which is its first key | covers |
//! |---|---|---|
//! | inode group | zone 3, inode with the low 10 bits cleared | all items of 1024 inodes |
//! | index region | zone 1, kind, seq (orphans: inode), low 10 bits cleared | 1024 of them |
//! | private | zone 2, client | everything of that client |
//! | rename | zone 4, kind 1 | itself |
//!
//! # Invariants
//!
//! * Ranges of different locks never overlap, and every item's key is in the range of one.
//! * Names are ordered as their first keys are. That is *not* the order in which one operation
//!   acquires several: see [`LockName::rank`].
//!
//! What this module deliberately doesn't know: modes, and who holds what.

use crate::error::Corruption;
use crate::format::key::{IndexKind, Key, KeyRange, RENAME_KIND, Zone};
use crate::format::{ClientId, Ino};
use core::fmt;

/// How many inodes, or seqs, one lock covers.
pub const GROUP_KEYS: u64 = 1 << GROUP_BITS;

const GROUP_BITS: u32 = 10;

/// What a lock covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// [`GROUP_KEYS`] inodes, from this one.
    Group(Ino),
    /// [`GROUP_KEYS`] numbers of an index, from this one.
    Index(IndexKind, u64),
    /// A client's own zone.
    Private(ClientId),
    /// Renames between directories.
    Rename,
}

/// Name of a lock. 16 bytes in memory, its first key on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockName {
    zone: Zone,
    kind: u8,
    number: u64,
}

impl LockName {
    /// The lock that orders renames between directories.
    pub const RENAME: LockName = LockName { zone: Zone::Lock, kind: RENAME_KIND, number: 0 };

    /// The lock of everything that belongs to an inode.
    #[must_use]
    pub const fn inode(ino: Ino) -> LockName {
        LockName { zone: Zone::Fs, kind: 0, number: ino.0 & !(GROUP_KEYS - 1) }
    }

    /// The lock of the index entries with this seq; for orphans, with this inode number.
    #[must_use]
    pub const fn index(kind: IndexKind, number: u64) -> LockName {
        LockName { zone: Zone::Index, kind: kind as u8, number: number & !(GROUP_KEYS - 1) }
    }

    /// The lock of a client's own zone, which the client holds as long as it is mounted.
    #[must_use]
    pub const fn private(client: ClientId) -> LockName {
        LockName { zone: Zone::Private, kind: 0, number: client.0 }
    }

    /// The lock whose range the key is in.
    #[must_use]
    pub fn covering(key: &Key) -> Option<LockName> {
        let name = if key.zone == Zone::Index as u8 {
            LockName::index(IndexKind::parse(key.kind)?, key.second)
        } else if key.zone == Zone::Private as u8 {
            LockName::private(ClientId(key.first))
        } else if key.zone == Zone::Fs as u8 {
            LockName::inode(Ino(key.first))
        } else {
            LockName::RENAME
        };
        name.range().contains(key).then_some(name)
    }

    /// The lock whose first key this is.
    pub fn parse(start: &Key) -> Result<LockName, Corruption> {
        let name = LockName::covering(start).filter(|name| name.start() == *start);
        name.ok_or(Corruption::Value)
    }

    /// Its first key.
    #[must_use]
    pub const fn start(&self) -> Key {
        match self.zone {
            Zone::Index => {
                Key { zone: self.zone as u8, kind: self.kind, second: self.number, ..Key::MIN }
            }
            Zone::Private | Zone::Fs | Zone::Lock => {
                Key { zone: self.zone as u8, first: self.number, kind: self.kind, ..Key::MIN }
            }
        }
    }

    /// The keys it covers.
    #[must_use]
    pub fn range(&self) -> KeyRange {
        let start = self.start();
        let last_number = self.number | (GROUP_KEYS - 1);
        let last = match self.zone {
            Zone::Index => Key { second: last_number, third: u64::MAX, fourth: u8::MAX, ..start },
            Zone::Private => Key { zone: start.zone, first: self.number, ..Key::MAX },
            Zone::Fs => Key { zone: start.zone, first: last_number, ..Key::MAX },
            Zone::Lock => start,
        };
        KeyRange::new(start, last).expect("the end is the start with bits added")
    }

    /// What it covers.
    #[must_use]
    pub fn scope(&self) -> Scope {
        match self.zone {
            Zone::Index => {
                Scope::Index(IndexKind::parse(self.kind).expect("made from a kind"), self.number)
            }
            Zone::Private => Scope::Private(ClientId(self.number)),
            Zone::Fs => Scope::Group(Ino(self.number)),
            Zone::Lock => Scope::Rename,
        }
    }

    /// Sorts locks in the order in which one operation may acquire several: private, rename, inode
    /// groups by number, index regions by kind and number. Who keeps to it can't deadlock.
    #[must_use]
    pub const fn rank(&self) -> (u8, u8, u64) {
        let class = match self.zone {
            Zone::Private => 0,
            Zone::Lock => 1,
            Zone::Fs => 2,
            Zone::Index => 3,
        };
        (class, self.kind, self.number)
    }

    /// Whether blocks of files are written in place under this lock.
    #[must_use]
    pub(super) const fn covers_file_blocks(&self) -> bool {
        matches!(self.zone, Zone::Fs)
    }

    /// Bits that spread names over a table.
    pub(super) const fn hash(&self) -> u64 {
        let group = (self.number >> GROUP_BITS) ^ (self.number << (64 - GROUP_BITS));
        (group ^ ((self.zone as u64) << 8 | self.kind as u64)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl fmt::Display for LockName {
    /// Its first key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.start().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Seq;
    use crate::format::key::FileBlock;
    use proptest::prelude::*;

    fn names() -> impl Strategy<Value = LockName> {
        let kind = prop_oneof![
            Just(IndexKind::MetaSeq),
            Just(IndexKind::DataSeq),
            Just(IndexKind::Orphan)
        ];
        let number = prop_oneof![0u64..3000, any::<u64>(), Just(u64::MAX)];
        prop_oneof![
            number.clone().prop_map(|ino| LockName::inode(Ino(ino))),
            (kind, number.clone()).prop_map(|(kind, number)| LockName::index(kind, number)),
            number.prop_map(|client| LockName::private(ClientId(client))),
            Just(LockName::RENAME),
        ]
    }

    proptest! {
        #[test]
        fn a_name_and_its_range_are_one(a in names(), b in names()) {
            let (first, last) = (a.range().first(), a.range().last());
            prop_assert_eq!(LockName::parse(&first), Ok(a));
            prop_assert_eq!(LockName::covering(&last), Some(a));
            prop_assert_eq!(LockName::parse(&last).is_ok(), first == last);
            prop_assert_eq!(a.range().overlaps(&b.range()), a == b);
            prop_assert_eq!(a.cmp(&b), a.start().cmp(&b.start()));
            prop_assert_eq!(a.rank() == b.rank(), a == b);
        }

        #[test]
        fn every_item_is_under_a_lock(ino in 1u64.., number: u64, pos in 2..u64::MAX) {
            let group = LockName::inode(Ino(ino));
            for key in [
                Key::inode(Ino(ino)),
                Key::dirent(Ino(ino), number, pos),
                Key::xattr(Ino(ino), number, pos, 128),
                Key::extent(Ino(ino), FileBlock::MAX),
            ] {
                prop_assert_eq!(LockName::covering(&key), Some(group));
            }
            let index = LockName::index(IndexKind::MetaSeq, number);
            prop_assert_eq!(LockName::covering(&Key::meta_seq(Seq(number), Ino(ino))), Some(index));
            let orphan = LockName::index(IndexKind::Orphan, ino);
            prop_assert_eq!(LockName::covering(&Key::orphan(Ino(ino))), Some(orphan));
        }
    }

    #[test]
    fn keys_without_a_lock() {
        for key in [Key::MIN, Key::MAX, Key { second: 1, ..Key::RENAME }] {
            assert_eq!(LockName::covering(&key), None);
        }
        assert_eq!(LockName::covering(&Key { kind: 3, ..Key::orphan(Ino(1)) }), None);
        assert_eq!(LockName::covering(&Key { first: 1, ..Key::orphan(Ino(1)) }), None);
    }

    #[test]
    fn acquisition_goes_from_rename_through_inodes_to_indices() {
        let order = [
            LockName::private(ClientId(9)),
            LockName::RENAME,
            LockName::inode(Ino(1)),
            LockName::inode(Ino(1024)),
            LockName::index(IndexKind::MetaSeq, 1024),
            LockName::index(IndexKind::DataSeq, 0),
        ];
        assert!(order.is_sorted_by_key(LockName::rank));
    }
}
