//! Payloads about locks.
//!
//! A message about a lock is a request that is answered at once, with nothing: the answer says that
//! the message has been taken note of, not that what it wants has come true. What follows from it
//! is a request of the other side, about the same lock. So the windows of a session never fill
//! with what waits for a lock.
//!
//! What this file deliberately doesn't know: which names, modes and generations mean something.

use super::super::{Malformed, reserved, take, whole};
use super::{Emitter, ManifestRoot, RootRecord};
use crate::format::key::KeyBytes;
use crate::record;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U64};

/// Most locks in one answer to a recover request.
pub const HELD_LOCKS_MAX: usize = 128;

record! {
    /// A message about a lock.
    pub struct LockRecord [38] {
        /// From clients: 1 Request, 2 Release. From the server: 3 Grant, 4 Revoke, 5 Refuse.
        kind: u8,
        /// Request: wanted. Release: kept, null or read. Grant: granted. Revoke: what may be kept,
        /// null or read. Refuse: what was wanted.
        mode: u8,
        /// The lock's first key.
        name: KeyBytes,
        /// Release, Grant, Revoke: which grant. Else 0.
        generation: U64,
        /// Refuse: why. Else 0.
        refusal: u8,
    }

    /// A lock that a client held when its server went away.
    pub struct HeldRecord [28] {
        /// The lock's first key.
        name: KeyBytes,
        /// What is held: never null.
        mode: u8,
    }

    /// Stands before the locks that a client holds.
    pub struct HeldLocksRecord [8] {
        /// How many follow.
        count: U16,
        /// Zero.
        reserved: [u8; 6],
    }
}

impl LockRecord {
    /// [`LockRecord::kind`] of a request.
    pub const REQUEST: u8 = 1;
    /// [`LockRecord::kind`] of a release.
    pub const RELEASE: u8 = 2;
    /// [`LockRecord::kind`] of a grant.
    pub const GRANT: u8 = 3;
    /// [`LockRecord::kind`] of a revoke.
    pub const REVOKE: u8 = 4;
    /// [`LockRecord::kind`] of a refusal.
    pub const REFUSE: u8 = 5;

    pub(super) fn open(payload: &[u8]) -> Result<LockRecord, Malformed> {
        whole(payload).copied()
    }
}

/// What the server says about a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockTell {
    /// The message.
    pub lock: LockRecord,
    /// With a grant, and only with one: the newest durable manifest. No older one may be read under
    /// the grant.
    pub root: Option<ManifestRoot>,
}

impl LockTell {
    pub(super) const BYTES_MAX: usize = size_of::<LockRecord>() + size_of::<RootRecord>();

    pub(super) fn parse(payload: &[u8]) -> Result<LockTell, Malformed> {
        let (lock, rest) = take::<LockRecord>(payload)?;
        let root = match lock.kind {
            LockRecord::GRANT => Some(ManifestRoot::parse(whole(rest)?)?),
            _ if rest.is_empty() => None,
            _ => return Err(Malformed::Length),
        };
        Ok(LockTell { lock: *lock, root })
    }

    pub(super) fn emit(&self, to: &mut Emitter<'_>) {
        to.put(&self.lock);
        if let Some(root) = &self.root {
            to.put(&root.record());
        }
    }
}

/// Locks that a client holds, by ascending name, each once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLocks<'p>(&'p [HeldRecord]);

impl<'p> HeldLocks<'p> {
    pub(super) const BYTES_MAX: usize =
        size_of::<HeldLocksRecord>() + HELD_LOCKS_MAX * size_of::<HeldRecord>();

    /// These locks, if they are in order and at most [`HELD_LOCKS_MAX`].
    pub fn new(locks: &'p [HeldRecord]) -> Result<HeldLocks<'p>, Malformed> {
        if locks.len() > HELD_LOCKS_MAX {
            return Err(Malformed::Count);
        }
        if !locks.is_sorted_by(|a, b| a.name < b.name) {
            return Err(Malformed::Range);
        }
        Ok(HeldLocks(locks))
    }

    /// The locks, by ascending name. None says that there are no more.
    #[must_use]
    pub fn records(&self) -> &'p [HeldRecord] {
        self.0
    }

    pub(super) fn parse(payload: &'p [u8]) -> Result<HeldLocks<'p>, Malformed> {
        let (record, rest) = take::<HeldLocksRecord>(payload)?;
        reserved(&record.reserved)?;
        let count = usize::from(record.count.get());
        let locks = <[HeldRecord]>::ref_from_bytes_with_elems(rest, count)
            .map_err(|_| Malformed::Length)?;
        HeldLocks::new(locks)
    }

    pub(super) fn emit(&self, to: &mut Emitter<'_>) {
        to.put(&HeldLocksRecord { count: (self.0.len() as u16).into(), reserved: [0; 6] });
        to.put(self.0);
    }
}
