//! Payloads that report.

use super::super::{Malformed, reserved, whole};
use crate::format::{CommitNo, Ino, Term};
use crate::record;
use zerocopy::little_endian::{U32, U64};

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
