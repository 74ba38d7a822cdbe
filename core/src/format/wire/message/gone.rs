//! Word from outside that a client is gone for good.
//!
//! What this file deliberately doesn't know: who may give it, and what follows from it.

use super::super::{Malformed, whole};
use super::Emitter;
use crate::format::ClientId;
use crate::record;
use zerocopy::little_endian::U64;

record! {
    /// Who is gone.
    pub struct GoneRecord [24] {
        /// The client.
        client: U64,
        /// What it was given at its start, if a witness gives the word, who knows that; 0 if an
        /// operator does.
        nonce: [u8; 16],
    }
}

/// Who is gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// The client.
    pub client: ClientId,
    /// What its record must say, if the word is meant for no other of this number: of another
    /// volume on the same device, or of an older state of the same one.
    pub nonce: Option<[u8; 16]>,
}

impl Gone {
    pub(super) const BYTES: usize = size_of::<GoneRecord>();

    pub(super) fn parse(payload: &[u8]) -> Result<Gone, Malformed> {
        let record: &GoneRecord = whole(payload)?;
        let nonce = Some(record.nonce).filter(|nonce| *nonce != [0; 16]);
        Ok(Gone { client: record.client.into(), nonce })
    }

    pub(super) fn emit(&self, to: &mut Emitter<'_>) {
        let nonce = self.nonce.unwrap_or_default();
        to.put(&GoneRecord { client: self.client.into(), nonce });
    }
}
