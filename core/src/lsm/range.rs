//! Ranges of keys, both ends part of them.
//!
//! What this module deliberately doesn't know: which keys are those of items.

use crate::format::key::{FsKind, Key, KeyBytes, Zone};

/// All keys from one to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange {
    /// The least.
    pub first: KeyBytes,
    /// The greatest. Not below `first`.
    pub last: KeyBytes,
}

impl KeyRange {
    /// Every key.
    #[must_use]
    pub fn all() -> KeyRange {
        KeyRange { first: Key::MIN.into(), last: Key::MAX.into() }
    }

    /// Whether the key is in it.
    #[must_use]
    pub fn contains(&self, key: &KeyBytes) -> bool {
        self.first <= *key && *key <= self.last
    }

    /// Whether a key is in both.
    #[must_use]
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// What is in both, if anything.
    #[must_use]
    pub fn common(&self, other: &KeyRange) -> Option<KeyRange> {
        let (first, last) = (self.first.max(other.first), self.last.min(other.last));
        (first <= last).then_some(KeyRange { first, last })
    }

    /// The least range that has all of both.
    #[must_use]
    pub fn hull(&self, other: &KeyRange) -> KeyRange {
        KeyRange { first: self.first.min(other.first), last: self.last.max(other.last) }
    }
}

/// The key right behind this one.
#[must_use]
pub fn after(key: &KeyBytes) -> Option<KeyBytes> {
    Key::from(*key).next().map(KeyBytes::from)
}

/// The key right before this one.
#[must_use]
pub fn before(key: &KeyBytes) -> Option<KeyBytes> {
    Key::from(*key).prev().map(KeyBytes::from)
}

/// The keys around this one of which a filter says the same: when it denies this key, none of them
/// is in the run. See [`filter_hash`](crate::format::run::filter_hash).
#[must_use]
pub fn filter_class(key: &KeyBytes) -> KeyRange {
    const XATTR: u8 = FsKind::Xattr as u8;
    const DIRENT: u8 = FsKind::Dirent as u8;
    const { assert!(XATTR + 1 == DIRENT) };
    let key = Key::from(*key);
    let whole = |low: u8, high: u8| KeyRange {
        first: Key { kind: low, second: 0, third: 0, fourth: 0, ..key }.into(),
        last: Key { kind: high, second: u64::MAX, third: u64::MAX, fourth: u8::MAX, ..key }.into(),
    };
    match key.kind {
        _ if key.zone != Zone::Fs as u8 => whole(0, u8::MAX),
        XATTR | DIRENT => KeyRange {
            first: Key { third: 0, fourth: 0, ..key }.into(),
            last: Key { third: u64::MAX, fourth: u8::MAX, ..key }.into(),
        },
        0..XATTR => whole(0, XATTR - 1),
        _ => whole(DIRENT + 1, u8::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::{KeyRange, after, before, filter_class};
    use crate::format::key::{Key, KeyBytes};
    use crate::format::run::filter_hash;

    #[test]
    fn a_class_ends_where_the_hash_changes() {
        let secret = [7; 16];
        for zone in 1..=4 {
            for kind in [0, 1, 2, 3, 4, 7, 255] {
                let key = Key { zone, first: 9, kind, second: 5, third: 6, fourth: 7 };
                let key = KeyBytes::from(key);
                let KeyRange { first, last } = filter_class(&key);
                assert!(first <= key && key <= last);
                let hash = filter_hash(&secret, &key);
                assert_eq!(filter_hash(&secret, &first), hash);
                assert_eq!(filter_hash(&secret, &last), hash);
                assert_ne!(filter_hash(&secret, &before(&first).unwrap()), hash);
                assert_ne!(filter_hash(&secret, &after(&last).unwrap()), hash);
            }
        }
    }
}
