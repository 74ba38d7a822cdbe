//! Payloads about locks.

use super::super::{Malformed, reserved, take, whole};
use super::{Emitter, ManifestRoot, RootRecord};
use crate::record;
use zerocopy::FromBytes;
use zerocopy::little_endian::U16;

/// Bytes of a key. Keys compare as byte strings.
pub const KEY_BYTES: usize = 27;

/// A key as it travels.
pub type KeyBytes = [u8; KEY_BYTES];

/// Most locks in one answer to a recover request.
pub const HELD_LOCKS_MAX: usize = 128;

/// What a lock allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LockMode {
    /// Nothing.
    Null = 0,
    /// Reading, by many clients at once.
    Read = 1,
    /// Reading and writing, by one client.
    Write = 2,
    /// Writing without reading, by many clients at once.
    WriteOnly = 3,
}

impl LockMode {
    fn from_wire(raw: u8) -> Result<LockMode, Malformed> {
        match raw {
            0 => Ok(LockMode::Null),
            1 => Ok(LockMode::Read),
            2 => Ok(LockMode::Write),
            3 => Ok(LockMode::WriteOnly),
            _ => Err(Malformed::Value),
        }
    }
}

record! {
    /// A client wants a lock.
    pub struct LockRequestRecord [32] {
        /// The lock: first key of what it covers.
        key: KeyBytes,
        /// The [`LockMode`] the client has.
        held: u8,
        /// The [`LockMode`] it wants.
        wanted: u8,
        /// Zero.
        reserved: [u8; 3],
    }

    /// A client has a lock.
    pub struct LockGrantRecord [64] {
        /// The lock.
        key: KeyBytes,
        /// The [`LockMode`] that the client has from now on.
        mode: u8,
        /// Zero.
        reserved: [u8; 4],
        /// The newest durable manifest: no older one may be read under this grant.
        root: RootRecord,
    }

    /// What remains of a lock.
    pub struct KeyModeRecord [32] {
        /// The lock.
        key: KeyBytes,
        /// The [`LockMode`] that remains.
        mode: u8,
        /// Zero.
        reserved: [u8; 4],
    }

    /// Where to go on with the recovery of locks.
    pub struct RecoverRecord [32] {
        /// The least key of interest.
        from: KeyBytes,
        /// Zero.
        reserved: [u8; 5],
    }

    /// A lock that a client holds.
    pub struct HeldLock [28] {
        /// The lock.
        key: KeyBytes,
        /// Its [`LockMode`].
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

/// A client wants a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockRequest {
    /// The lock.
    pub key: KeyBytes,
    /// The mode the client has.
    pub held: LockMode,
    /// The mode it wants.
    pub wanted: LockMode,
}

impl LockRequest {
    pub(super) fn parse(payload: &[u8]) -> Result<LockRequest, Malformed> {
        let record: &LockRequestRecord = whole(payload)?;
        reserved(&record.reserved)?;
        let held = LockMode::from_wire(record.held)?;
        Ok(LockRequest { key: record.key, held, wanted: LockMode::from_wire(record.wanted)? })
    }

    pub(super) fn record(&self) -> LockRequestRecord {
        LockRequestRecord {
            key: self.key,
            held: self.held as u8,
            wanted: self.wanted as u8,
            reserved: [0; 3],
        }
    }
}

/// A client has a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockGrant {
    /// The lock.
    pub key: KeyBytes,
    /// The mode the client has from now on.
    pub mode: LockMode,
    /// The newest durable manifest.
    pub root: ManifestRoot,
}

impl LockGrant {
    pub(super) fn parse(payload: &[u8]) -> Result<LockGrant, Malformed> {
        let record: &LockGrantRecord = whole(payload)?;
        reserved(&record.reserved)?;
        let mode = LockMode::from_wire(record.mode)?;
        Ok(LockGrant { key: record.key, mode, root: ManifestRoot::parse(&record.root)? })
    }

    pub(super) fn record(&self) -> LockGrantRecord {
        LockGrantRecord {
            key: self.key,
            mode: self.mode as u8,
            reserved: [0; 4],
            root: self.root.record(),
        }
    }
}

/// What remains of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyMode {
    /// The lock.
    pub key: KeyBytes,
    /// The mode that remains.
    pub mode: LockMode,
}

impl KeyMode {
    pub(super) fn parse(payload: &[u8]) -> Result<KeyMode, Malformed> {
        let record: &KeyModeRecord = whole(payload)?;
        reserved(&record.reserved)?;
        Ok(KeyMode { key: record.key, mode: LockMode::from_wire(record.mode)? })
    }

    pub(super) fn record(&self) -> KeyModeRecord {
        KeyModeRecord { key: self.key, mode: self.mode as u8, reserved: [0; 4] }
    }
}

impl RecoverRecord {
    pub(super) fn open(payload: &[u8]) -> Result<KeyBytes, Malformed> {
        let record: &RecoverRecord = whole(payload)?;
        reserved(&record.reserved)?;
        Ok(record.from)
    }

    pub(super) fn new(from: KeyBytes) -> RecoverRecord {
        RecoverRecord { from, reserved: [0; 5] }
    }
}

impl HeldLock {
    /// A lock held in a mode.
    #[must_use]
    pub fn new(key: KeyBytes, mode: LockMode) -> HeldLock {
        HeldLock { key, mode: mode as u8 }
    }
}

/// Locks that a client holds, by ascending key, each once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLocks<'p>(&'p [HeldLock]);

impl<'p> HeldLocks<'p> {
    pub(super) const BYTES_MAX: usize =
        size_of::<HeldLocksRecord>() + HELD_LOCKS_MAX * size_of::<HeldLock>();

    /// These locks, if they are in order and at most [`HELD_LOCKS_MAX`].
    pub fn new(locks: &'p [HeldLock]) -> Result<HeldLocks<'p>, Malformed> {
        if locks.len() > HELD_LOCKS_MAX {
            return Err(Malformed::Count);
        }
        if !locks.is_sorted_by(|a, b| a.key < b.key) {
            return Err(Malformed::Range);
        }
        for lock in locks {
            LockMode::from_wire(lock.mode)?;
        }
        Ok(HeldLocks(locks))
    }

    /// The locks, by ascending key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (KeyBytes, LockMode)> + use<'p> {
        self.0.iter().map(|lock| {
            (lock.key, LockMode::from_wire(lock.mode).expect("checked when this was made"))
        })
    }

    pub(super) fn parse(payload: &'p [u8]) -> Result<HeldLocks<'p>, Malformed> {
        let (record, rest) = take::<HeldLocksRecord>(payload)?;
        reserved(&record.reserved)?;
        let count = usize::from(record.count.get());
        let locks =
            <[HeldLock]>::ref_from_bytes_with_elems(rest, count).map_err(|_| Malformed::Length)?;
        HeldLocks::new(locks)
    }

    pub(super) fn emit(&self, to: &mut Emitter<'_>) {
        to.put(&HeldLocksRecord { count: (self.0.len() as u16).into(), reserved: [0; 6] });
        to.put(self.0);
    }
}
