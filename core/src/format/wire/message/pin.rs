//! Payloads about a reader's pin.
//!
//! ```text
//!          New answered                 Renew answered, again and again
//!   reader -----------> reads the ring, ----------------------------------> End
//!                       picks a root
//! ```
//!
//! What this file deliberately doesn't know: what is kept for a pin, and for how long.

use super::super::{Malformed, named, reserved, whole};
use crate::format::{CommitNo, Term};
use crate::record;
use zerocopy::little_endian::{U32, U64};

record! {
    /// What a reader wants: that what a root leads to stays as it is, and how long.
    pub struct PinRequestRecord [32] {
        /// The term of the leader that has given the pin; 0: a new one is wanted.
        term: U64,
        /// Its number; 0: a new one is wanted.
        number: U64,
        /// The commit of the root that is read, none older than the pin's; 0: none is chosen yet.
        commit: U64,
        /// [`END`](PinRequestRecord::END).
        flags: u8,
        /// Zero.
        reserved: [u8; 7],
    }

    /// A pin.
    pub struct PinRecord [32] {
        /// The term of the leader that gives it: it is of no other.
        term: U64,
        /// Its number; no other of this leader has had it.
        number: U64,
        /// The oldest commit whose root it may be used for. It is durable.
        commit: U64,
        /// It holds for so many milliseconds, unless it is asked for again or its space is needed.
        lease_ms: U32,
        /// Zero.
        reserved: [u8; 4],
    }
}

impl PinRequestRecord {
    /// In `flags`: nothing is read any more.
    pub const END: u8 = 1;
}

/// What a reader wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinRequest {
    /// A new pin.
    New,
    /// To go on with one.
    Renew {
        /// The term of the leader that has given it.
        term: Term,
        /// Its number.
        number: u64,
        /// The commit of the root that is read, if one is chosen. That never changes.
        commit: Option<CommitNo>,
    },
    /// To give it up.
    End {
        /// The term of the leader that has given it.
        term: Term,
        /// Its number.
        number: u64,
    },
}

impl PinRequest {
    pub(super) fn parse(payload: &[u8]) -> Result<PinRequest, Malformed> {
        let record: &PinRequestRecord = whole(payload)?;
        reserved(&record.reserved)?;
        let commit = Some(CommitNo(record.commit.get())).filter(|commit| commit.0 != 0);
        if record.number == U64::ZERO {
            let is_new = record.term == U64::ZERO && commit.is_none() && record.flags == 0;
            return if is_new { Ok(PinRequest::New) } else { Err(Malformed::Zero) };
        }
        let (term, number) = (term(record.term)?, record.number.get());
        match record.flags {
            0 => Ok(PinRequest::Renew { term, number, commit }),
            PinRequestRecord::END if commit.is_none() => Ok(PinRequest::End { term, number }),
            _ => Err(Malformed::Value),
        }
    }

    pub(super) fn record(&self) -> PinRequestRecord {
        let (term, number, commit, flags) = match *self {
            PinRequest::New => (Term::NONE, 0, None, 0),
            PinRequest::Renew { term, number, commit } => (term, number, commit, 0),
            PinRequest::End { term, number } => (term, number, None, PinRequestRecord::END),
        };
        PinRequestRecord {
            term: term.into(),
            number: number.into(),
            commit: commit.map_or(0, |commit| commit.0).into(),
            flags,
            reserved: [0; 7],
        }
    }
}

/// A pin: what a root of this commit, or a later one of this term, leads to stays as it is for a
/// while; of which, the reader says when it has chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The term of the leader that gives it.
    pub term: Term,
    /// Its number.
    pub number: u64,
    /// The oldest commit whose root it may be used for.
    pub commit: CommitNo,
    /// How long it holds, in milliseconds.
    pub lease_ms: u32,
}

impl Pin {
    pub(super) fn parse(payload: &[u8]) -> Result<Pin, Malformed> {
        let record: &PinRecord = whole(payload)?;
        reserved(&record.reserved)?;
        Ok(Pin {
            term: term(record.term)?,
            number: named(record.number)?,
            commit: CommitNo(named(record.commit)?),
            lease_ms: record.lease_ms.get(),
        })
    }

    pub(super) fn record(&self) -> PinRecord {
        PinRecord {
            term: self.term.into(),
            number: self.number.into(),
            commit: self.commit.into(),
            lease_ms: self.lease_ms.into(),
            reserved: [0; 4],
        }
    }
}

fn term(number: U64) -> Result<Term, Malformed> {
    named(number)?;
    Ok(number.into())
}
