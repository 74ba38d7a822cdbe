//! Payloads that report.

use super::super::{Malformed, reserved, whole};
use super::Emitter;
use crate::format::key::KeyBytes;
use crate::format::{CommitNo, Ino, Term};
use crate::record;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64};

record! {
    /// How full the volume is.
    pub struct StatfsRecord [24] {
        /// Blocks of the volume.
        blocks: U64,
        /// Blocks that are in no use.
        blocks_free: U64,
        /// The next inode number that will be lent.
        ino_next: U64,
    }

    /// Who leads, and how it goes.
    pub struct StatusRecord [64] {
        /// The leader's term.
        term: U64,
        /// Its last durable commit.
        commit: U64,
        /// How long it has led, in milliseconds.
        leading_ms: U64,
        /// Clients with a record.
        clients: U32,
        /// Clients with a connection.
        clients_connected: U32,
        /// Clients whose locks are still to be recovered.
        clients_recovering: U32,
        /// Clients evicted whose writes may still be under way.
        clients_quarantined: U32,
        /// Locks granted.
        locks: U32,
        /// Lock requests that wait.
        lock_waiters: U32,
        /// Blocks set aside until no evicted client can write to them.
        blocks_quarantined: U64,
        /// Zero.
        reserved: [u8; 8],
    }

    /// How a client stands.
    pub struct ClientStatusRecord [64] {
        /// The client.
        client: U64,
        /// Where it runs, or ran.
        host_id: [u8; 16],
        /// In which boot of that.
        boot_id: [u8; 16],
        /// Blocks set aside until it is proven that it writes no more.
        blocks_quarantined: U64,
        /// If it is mounted and not connected: it is evicted in so many milliseconds; else 0.
        awaited_ms: U32,
        /// If it was evicted: the file ranges that it could write stay locked for so many
        /// milliseconds if there is no proof before; else 0.
        locked_ms: U32,
        /// Times that fencing it has failed in this term.
        fences_failed: U16,
        /// A [`ClientStanding`].
        standing: u8,
        /// Bit 0: it is connected. Bit 1: its locks are still to be recovered.
        flags: u8,
        /// Zero.
        reserved: [u8; 4],
    }

    /// A request for a lock that waits.
    pub struct LockWaitRecord [64] {
        /// Who waits.
        waiter: U64,
        /// Somebody else who holds the lock; 0: nobody does, and it is about to be granted, or
        /// locks are still being recovered.
        holder: U64,
        /// For so many milliseconds.
        waits_ms: U32,
        /// The lock's first key.
        name: KeyBytes,
        /// What is wanted: 1 read, 2 write, 3 write only.
        wanted: u8,
        /// What the holder has.
        held: u8,
        /// Bit 0: the holder was evicted, and may still write.
        flags: u8,
        /// Zero.
        reserved: [u8; 14],
    }
}

/// Records in a [`ClientList`] or a [`WaitList`] at the most.
pub const LIST_RECORDS_MAX: usize = 16;

/// How a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ClientStanding {
    /// It is being recorded.
    Greeting = 1,
    /// It is mounted.
    Mounted = 2,
    /// It is leaving.
    Leaving = 3,
    /// It is being evicted.
    Evicting = 4,
    /// It was evicted, and isn't proven gone.
    Evicted = 5,
}

impl ClientStanding {
    /// What this number stands for, if for anything.
    #[must_use]
    pub fn parse(number: u8) -> Option<ClientStanding> {
        Some(match number {
            1 => ClientStanding::Greeting,
            2 => ClientStanding::Mounted,
            3 => ClientStanding::Leaving,
            4 => ClientStanding::Evicting,
            5 => ClientStanding::Evicted,
            _ => return None,
        })
    }
}

impl ClientStatusRecord {
    /// In `flags`: it is connected.
    pub const CONNECTED: u8 = 1;
    /// In `flags`: its locks are still to be recovered.
    pub const RECOVERING: u8 = 2;
}

impl LockWaitRecord {
    /// In `flags`: the holder was evicted, and may still write.
    pub const GHOST: u8 = 1;
}

/// Clients, in the order of their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientList<'p>(&'p [ClientStatusRecord]);

/// Requests for locks that wait. Those for one lock follow each other, the first in line first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitList<'p>(&'p [LockWaitRecord]);

impl<'p> ClientList<'p> {
    /// Largest payload.
    pub const BYTES_MAX: usize = LIST_RECORDS_MAX * size_of::<ClientStatusRecord>();

    /// A list of these; [`None`] if they are too many, not in order, or mean nothing.
    #[must_use]
    pub fn new(records: &'p [ClientStatusRecord]) -> Option<ClientList<'p>> {
        let sane = |record: &ClientStatusRecord| {
            ClientStanding::parse(record.standing).is_some()
                && record.flags & !(ClientStatusRecord::CONNECTED | ClientStatusRecord::RECOVERING)
                    == 0
                && record.reserved == [0; 4]
        };
        let ordered = records.is_sorted_by(|a, b| a.client.get() < b.client.get());
        let valid = records.len() <= LIST_RECORDS_MAX && ordered && records.iter().all(sane);
        valid.then_some(ClientList(records))
    }

    /// Them.
    #[must_use]
    pub fn records(&self) -> &'p [ClientStatusRecord] {
        self.0
    }

    pub(super) fn parse(payload: &'p [u8]) -> Result<ClientList<'p>, Malformed> {
        let records = <[ClientStatusRecord]>::ref_from_bytes(payload);
        ClientList::new(records.map_err(|_| Malformed::Length)?).ok_or(Malformed::Range)
    }

    pub(super) fn emit(&self, to: &mut Emitter<'_>) {
        to.put(self.0);
    }
}

impl<'p> WaitList<'p> {
    /// Largest payload.
    pub const BYTES_MAX: usize = LIST_RECORDS_MAX * size_of::<LockWaitRecord>();

    /// A list of these; [`None`] if they are too many, or mean nothing.
    #[must_use]
    pub fn new(records: &'p [LockWaitRecord]) -> Option<WaitList<'p>> {
        let sane = |record: &LockWaitRecord| {
            (1..=3).contains(&record.wanted)
                && record.held <= 3
                && record.flags & !LockWaitRecord::GHOST == 0
                && record.reserved == [0; 14]
        };
        let valid = records.len() <= LIST_RECORDS_MAX && records.iter().all(sane);
        valid.then_some(WaitList(records))
    }

    /// Them.
    #[must_use]
    pub fn records(&self) -> &'p [LockWaitRecord] {
        self.0
    }

    pub(super) fn parse(payload: &'p [u8]) -> Result<WaitList<'p>, Malformed> {
        let records = <[LockWaitRecord]>::ref_from_bytes(payload);
        WaitList::new(records.map_err(|_| Malformed::Length)?).ok_or(Malformed::Range)
    }

    pub(super) fn emit(&self, to: &mut Emitter<'_>) {
        to.put(self.0);
    }
}

/// How full the volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statfs {
    /// Blocks of the volume.
    pub blocks: u64,
    /// Blocks that are in no use; at most all.
    pub blocks_free: u64,
    /// The next inode number that will be lent.
    pub ino_next: Ino,
}

impl Statfs {
    pub(super) fn parse(payload: &[u8]) -> Result<Statfs, Malformed> {
        let record: &StatfsRecord = whole(payload)?;
        if record.blocks_free > record.blocks {
            return Err(Malformed::Range);
        }
        Ok(Statfs {
            blocks: record.blocks.get(),
            blocks_free: record.blocks_free.get(),
            ino_next: record.ino_next.into(),
        })
    }

    pub(super) fn record(&self) -> StatfsRecord {
        StatfsRecord {
            blocks: self.blocks.into(),
            blocks_free: self.blocks_free.into(),
            ino_next: self.ino_next.into(),
        }
    }
}

/// Who leads, and how it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The leader's term.
    pub term: Term,
    /// Its last durable commit.
    pub commit: CommitNo,
    /// How long it has led, in milliseconds.
    pub leading_ms: u64,
    /// Clients with a record.
    pub clients: u32,
    /// Clients with a connection.
    pub clients_connected: u32,
    /// Clients whose locks are still to be recovered.
    pub clients_recovering: u32,
    /// Clients evicted whose writes may still be under way.
    pub clients_quarantined: u32,
    /// Locks granted.
    pub locks: u32,
    /// Lock requests that wait.
    pub lock_waiters: u32,
    /// Blocks set aside until no evicted client can write to them.
    pub blocks_quarantined: u64,
}

impl Status {
    pub(super) fn parse(payload: &[u8]) -> Result<Status, Malformed> {
        let record: &StatusRecord = whole(payload)?;
        reserved(&record.reserved)?;
        Ok(Status {
            term: record.term.into(),
            commit: record.commit.into(),
            leading_ms: record.leading_ms.get(),
            clients: record.clients.get(),
            clients_connected: record.clients_connected.get(),
            clients_recovering: record.clients_recovering.get(),
            clients_quarantined: record.clients_quarantined.get(),
            locks: record.locks.get(),
            lock_waiters: record.lock_waiters.get(),
            blocks_quarantined: record.blocks_quarantined.get(),
        })
    }

    pub(super) fn record(&self) -> StatusRecord {
        StatusRecord {
            term: self.term.into(),
            commit: self.commit.into(),
            leading_ms: self.leading_ms.into(),
            clients: self.clients.into(),
            clients_connected: self.clients_connected.into(),
            clients_recovering: self.clients_recovering.into(),
            clients_quarantined: self.clients_quarantined.into(),
            locks: self.locks.into(),
            lock_waiters: self.lock_waiters.into(),
            blocks_quarantined: self.blocks_quarantined.into(),
            reserved: [0; 8],
        }
    }
}
