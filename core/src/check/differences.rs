//! Two large sets are compared in little memory: what only one of them has is left over, and named.
//!
//! The sets are streams: each element goes in with the sign of its set. A bucket holds the sum of
//! the signs, the exclusive or of the elements, and the sum of their hashes, of those elements that
//! fall into it; each falls into three. What both sets have cancels out. A bucket with one element
//! left shows it; taking it out of its other buckets lays bare more. (An invertible Bloom lookup
//! table: Goodrich and Mitzenmacher, 2011; Eppstein, Goodrich, Uyeda and Varghese, 2011.)
//!
//! # Invariants
//!
//! * Sets that are equal leave every bucket empty, whatever their size. Sets that differ leave some
//!   bucket that is not, but with a probability of 2^-64.
//! * Differences are named as long as there are not many more than half as many as buckets.
//!
//! What this module deliberately doesn't know: what elements mean.

use crate::arena::{Arena, ArenaFull};
use crate::format::key::{Key, KeyBytes};
use siphasher::sip::SipHasher13;
use zerocopy::IntoBytes;

/// Buckets of the table.
const BUCKETS: usize = 3 * 2048;
/// Buckets that an element falls into, each in its own third of the table.
const PROBES: usize = 3;

/// Which two sets are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Pair {
    /// Entries by name, and by position: directory, position, hash of the name.
    Entry = 1,
    /// Entries by position, and links back: directory, position, inode.
    Link = 2,
    /// The index by metadata change, and inodes: sequence number, inode.
    Meta = 3,
    /// The index by data change, and files: sequence number, inode.
    Data = 4,
    /// The index of orphans, and inodes without names: inode.
    Orphan = 5,
}

/// An element of one of two sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element {
    pub(super) pair: Pair,
    /// What it is found by.
    pub(super) at: [u64; 3],
    /// Hash of what else must be equal.
    pub(super) digest: u64,
}

/// An element that only one of the sets has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Difference {
    /// The item that it was made of.
    pub(super) key: KeyBytes,
    pub(super) element: Element,
    pub(super) is_first: bool,
    /// The other set has another element in its place, which is told with it.
    pub(super) is_told: bool,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    count: i64,
    check: u64,
    words: [u64; 5],
}

impl Bucket {
    fn is_empty(&self) -> bool {
        self.count == 0 && self.check == 0 && self.words == [0; 5]
    }
}

pub(super) struct Differences<'m> {
    key: [u8; 16],
    buckets: &'m mut [Bucket],
    found: &'m mut [Option<Difference>],
    len: usize,
}

impl Element {
    fn words(&self) -> [u64; 5] {
        let [a, b, c] = self.at;
        [self.pair as u64, a, b, c, self.digest]
    }

    fn of(words: [u64; 5]) -> Option<Element> {
        let [pair, a, b, c, digest] = words;
        let pairs = [Pair::Entry, Pair::Link, Pair::Meta, Pair::Data, Pair::Orphan];
        let pair = pairs.into_iter().find(|of| *of as u64 == pair)?;
        Some(Element { pair, at: [a, b, c], digest })
    }

    /// The item it was made of.
    fn key(&self, is_first: bool) -> Key {
        use crate::format::{Ino, Seq};
        let [a, b, c] = self.at;
        match (self.pair, is_first) {
            (Pair::Entry, true) => Key::dirent(Ino(a), c, b),
            (Pair::Entry, false) | (Pair::Link, true) => Key::readdir(Ino(a), b),
            (Pair::Link, false) => Key::backref(Ino(c), Ino(a), b),
            (Pair::Meta, true) => Key::meta_seq(Seq(a), Ino(b)),
            (Pair::Data, true) => Key::data_seq(Seq(a), Ino(b)),
            (Pair::Orphan, true) => Key::orphan(Ino(a)),
            (Pair::Meta | Pair::Data, false) => Key::inode(Ino(b)),
            (Pair::Orphan, false) => Key::inode(Ino(a)),
        }
    }
}

impl<'m> Differences<'m> {
    pub(super) fn carve(
        arena: &mut Arena<'m>,
        key: &[u8; 16],
    ) -> Result<Differences<'m>, ArenaFull> {
        Ok(Differences {
            key: *key,
            buckets: arena.slice(BUCKETS as u32, |_| Bucket::default())?,
            found: arena.slice(BUCKETS as u32, |_| None)?,
            len: 0,
        })
    }

    pub(super) fn clear(&mut self) {
        self.buckets.fill(Bucket::default());
        self.len = 0;
    }

    fn hash(&self, words: &[u64; 5]) -> u64 {
        SipHasher13::new_with_key(&self.key).hash(words.as_bytes())
    }

    /// The hash of something else that must be equal.
    pub(super) fn digest(&self, bytes: &[u8]) -> u64 {
        SipHasher13::new_with_key(&self.key).hash(bytes)
    }

    /// Puts in an element of the first set, or of the second.
    pub(super) fn put(&mut self, element: &Element, is_first: bool) {
        self.mix(element, if is_first { 1 } else { -1 });
    }

    fn mix(&mut self, element: &Element, sign: i64) {
        let words = element.words();
        let hash = self.hash(&words);
        let third = self.buckets.len() / PROBES;
        for probe in 0..PROBES {
            // 21 bits of the hash for each third.
            let at = (hash >> (21 * probe)) as usize % third;
            let bucket = &mut self.buckets[probe * third + at];
            bucket.count += sign;
            bucket.check = bucket.check.wrapping_add(hash.wrapping_mul(sign.cast_unsigned()));
            for (mixed, word) in bucket.words.iter_mut().zip(words) {
                *mixed ^= word;
            }
        }
    }

    /// Names what can be seen by one look at each bucket; false when there was nothing to be seen.
    pub(super) fn look(&mut self) -> bool {
        let before = self.len;
        for at in 0..self.buckets.len() {
            let bucket = self.buckets[at];
            if !matches!(bucket.count, 1 | -1) || self.len == self.found.len() {
                continue;
            }
            let hash = self.hash(&bucket.words);
            let check = hash.wrapping_mul(bucket.count.cast_unsigned());
            let Some(element) = Element::of(bucket.words).filter(|_| check == bucket.check) else {
                continue;
            };
            let is_first = bucket.count == 1;
            let key = element.key(is_first).into();
            self.found[self.len] = Some(Difference { key, element, is_first, is_told: false });
            self.len += 1;
            self.mix(&element, -bucket.count);
        }
        self.len > before
    }

    /// Whether there are differences that could not be named.
    pub(super) fn is_left(&self) -> bool {
        self.buckets.iter().any(|bucket| !bucket.is_empty())
    }

    /// Puts what was named into the order of the items.
    pub(super) fn sort(&mut self) {
        let place = |found: &Option<Difference>| {
            found.map(|found| (found.element.pair, found.element.at[0], found.element.at[1]))
        };
        let found = &mut self.found[..self.len];
        found.sort_unstable_by_key(|found| {
            (place(found), found.map(|found| (!found.is_first, found.element)))
        });
        // Two elements in one place are one difference. Of an index each is one of its own.
        for at in 1..found.len() {
            if place(&found[at - 1]) == place(&found[at])
                && let [Some(one), Some(other)] = &mut found[at - 1..=at]
                && one.is_first
                && !other.is_first
            {
                other.is_told = matches!(one.element.pair, Pair::Entry | Pair::Link);
            }
        }
        found.sort_unstable_by_key(|found| found.map(|found| found.key));
    }

    /// What was named as this number.
    pub(super) fn get(&self, at: usize) -> Option<Difference> {
        self.found[..self.len].get(at).copied().flatten()
    }
}
