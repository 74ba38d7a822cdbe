//! Payloads about inodes that have lost their last name.
//!
//! What this file deliberately doesn't know: who may use such an inode, and who deletes it.

use super::super::Malformed;
use super::Emitter;
use crate::format::Ino;
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

/// Most inodes in one question.
pub const INOS_MAX: usize = 64;

/// Inodes that are asked about, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inos<'p>(&'p [U64]);

impl<'p> Inos<'p> {
    /// These inodes, if they are 1 to [`INOS_MAX`], and none is 0.
    pub fn new(inos: &'p [U64]) -> Result<Inos<'p>, Malformed> {
        if inos.is_empty() || inos.len() > INOS_MAX {
            return Err(Malformed::Count);
        }
        if inos.contains(&U64::ZERO) {
            return Err(Malformed::Zero);
        }
        Ok(Inos(inos))
    }

    /// The inodes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Ino> + use<'p> {
        self.0.iter().map(|ino| Ino(ino.get()))
    }

    /// As they travel.
    #[must_use]
    pub fn records(&self) -> &'p [U64] {
        self.0
    }

    /// The set of all of them.
    #[must_use]
    pub fn all(&self) -> InoSet {
        InoSet(u64::MAX >> (INOS_MAX - self.0.len()))
    }

    pub(super) fn parse(payload: &'p [u8]) -> Result<Inos<'p>, Malformed> {
        Inos::new(<[U64]>::ref_from_bytes(payload).map_err(|_| Malformed::Length)?)
    }

    pub(super) fn emit(&self, to: &mut Emitter<'_>) {
        to.put(self.0);
    }
}

/// Some of the inodes of a question: bit n stands for its n-th.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InoSet(pub u64);

impl InoSet {
    /// Whether the n-th inode of the question is in it.
    #[must_use]
    pub const fn contains(self, n: usize) -> bool {
        n < INOS_MAX && self.0 >> n & 1 == 1
    }

    /// Adds the n-th inode of the question.
    ///
    /// # Panics
    ///
    /// If no question has so many.
    pub const fn insert(&mut self, n: usize) {
        assert!(n < INOS_MAX, "a question has at most 64 inodes");
        self.0 |= 1 << n;
    }

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: InoSet) -> InoSet {
        InoSet(self.0 | other.0)
    }

    /// What is in this and not in the other.
    #[must_use]
    pub const fn without(self, other: InoSet) -> InoSet {
        InoSet(self.0 & !other.0)
    }

    pub(super) fn open(payload: &[u8]) -> Result<InoSet, Malformed> {
        Ok(InoSet(super::super::whole::<U64>(payload)?.get()))
    }

    pub(super) fn record(self) -> U64 {
        self.0.into()
    }
}
