//! The record layer: what stands between a session's frames and a connection's bytes.
//!
//! A record carries one body, and arrives whole and as it was sent, or not at all. Here that is
//! done by a length and a checksum, which is seeded, once the greeting is over, with a secret of
//! the connection and the direction, and covers the number of the record: bytes of another
//! connection, mirrored bytes, and records that were left out, repeated or swapped fail it. It
//! keeps accidents out, not attackers: for that a cipher (Noise) takes the place of this file. It
//! would open and seal in place as this does, with another [`OVERHEAD_BYTES`], and be keyed where
//! this is seeded.
//!
//! # Invariants
//!
//! * A length is believed only within the bound that the caller gives, so nobody is made to wait
//!   for, or to keep, more than that.
//! * After an error nothing more can be opened: the caller ends the connection.
//!
//! What this file deliberately doesn't know: what a body means.

use crate::crc32c::update;
use crate::format::wire::{RECORD_MAGIC, RecordHeader};
use zerocopy::{FromBytes, IntoBytes};

/// What a record is longer than its body.
pub(super) const OVERHEAD_BYTES: usize = size_of::<RecordHeader>();

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadRecord {
    /// It doesn't begin like one.
    Magic,
    /// The body would be empty, or larger than anything that may come now.
    Length,
    /// The checksum doesn't match.
    Checksum,
}

/// One direction of a connection: its seed, and how many records have passed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channel {
    seed: u32,
    count: u64,
}

impl Channel {
    /// The direction of a connection that has just begun.
    pub(super) const NEW: Channel = Channel { seed: 0, count: 0 };

    /// Seeds all further records.
    pub(super) fn rekey(&mut self, seed: u32) {
        self.seed = seed;
    }

    /// Opens the record at the start of `bytes`, and gives the length of its body, which stands
    /// [`OVERHEAD_BYTES`] behind the start. None as long as it is not whole.
    pub(super) fn open(
        &mut self,
        bytes: &mut [u8],
        body_max: usize,
    ) -> Result<Option<usize>, BadRecord> {
        let magic = RECORD_MAGIC.to_le_bytes();
        let got = bytes.len().min(magic.len());
        if bytes[..got] != magic[..got] {
            return Err(BadRecord::Magic);
        }
        let Ok((header, rest)) = RecordHeader::ref_from_prefix(bytes) else {
            return Ok(None);
        };
        let body_bytes = header.body_bytes.get() as usize;
        if body_bytes == 0 || body_bytes > body_max {
            return Err(BadRecord::Length);
        }
        let Some(body) = rest.get(..body_bytes) else {
            return Ok(None);
        };
        if header.crc.get() != self.crc(header, body) {
            return Err(BadRecord::Checksum);
        }
        self.count += 1;
        Ok(Some(body_bytes))
    }

    /// Closes a record over the body that stands [`OVERHEAD_BYTES`] behind its start.
    pub(super) fn seal(&mut self, record: &mut [u8]) {
        let (header, body) = RecordHeader::mut_from_prefix(record)
            .expect("a record is made with room for its header");
        header.magic = RECORD_MAGIC.into();
        header.body_bytes = (body.len() as u32).into();
        header.crc = self.crc(header, body).into();
        self.count += 1;
    }

    fn crc(&self, header: &RecordHeader, body: &[u8]) -> u32 {
        let crc = update(!self.seed, &self.count.to_le_bytes());
        let crc = update(crc, header.magic.as_bytes());
        let crc = update(crc, header.body_bytes.as_bytes());
        !update(crc, body)
    }
}
