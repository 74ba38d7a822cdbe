//! Messages that are kept because they may have to be sent again, in the order of their numbers.
//!
//! # Invariants
//!
//! * Entries are in ascending order of their numbers, and their payloads stand one behind the other
//!   in that order, without gaps.
//! * Every number above the one that the peer has taken has its entry; so what is sent, or sent
//!   again, has no gaps either.
//! * There is always room for a message that its window lets in: the space is the sum over all
//!   windows.
//!
//! What this file deliberately doesn't know: when a message may be forgotten.

use crate::format::wire::message::{Emitter, Payload};
use crate::format::wire::{Kind, Message, Part};

/// A message that is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub(super) seq: u64,
    pub(super) request: u64,
    pub(super) kind: Kind,
    pub(super) part: Part,
    offset: u32,
    bytes: u32,
}

impl Kept {
    pub(super) const NONE: Kept =
        Kept { seq: 0, request: 0, kind: Kind::LockAsk, part: Part::Request, offset: 0, bytes: 0 };
}

/// The kept messages of one direction of a session.
pub(super) struct Log<'m> {
    space: &'m mut [u8],
    entries: &'m mut [Kept],
    len: usize,
    /// Number of the last message appended.
    last: u64,
}

impl<'m> Log<'m> {
    pub(super) fn new(space: &'m mut [u8], entries: &'m mut [Kept]) -> Log<'m> {
        Log { space, entries, len: 0, last: 0 }
    }

    /// Forgets everything; the next message is number 1.
    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.last = 0;
    }

    /// Appends a message and gives it the next number.
    pub(super) fn append<'p, P: Payload<'p>>(
        &mut self,
        request: u64,
        kind: Kind,
        part: Part,
        payload: Option<&P>,
    ) {
        let offset = self.bytes_used();
        let bytes_max = match part {
            Part::Request => kind.request_bytes_max(),
            Part::Answer(_) => kind.answer_bytes_max(),
        };
        let mut emitter = Emitter::new(&mut self.space[offset..][..bytes_max]);
        if let Some(payload) = payload {
            payload.emit(&mut emitter);
        }
        let (offset, bytes) = (offset as u32, emitter.used() as u32);
        self.last += 1;
        self.entries[self.len] = Kept { seq: self.last, request, kind, part, offset, bytes };
        self.len += 1;
    }

    /// Keeps only those entries for which `keep` holds.
    pub(super) fn retain(&mut self, keep: impl Fn(&Kept) -> bool) {
        let (mut len, mut used) = (0, 0);
        for index in 0..self.len {
            let mut entry = self.entries[index];
            if !keep(&entry) {
                continue;
            }
            let (start, bytes) = (entry.offset as usize, entry.bytes as usize);
            if start != used {
                self.space.copy_within(start..start + bytes, used);
            }
            entry.offset = used as u32;
            self.entries[len] = entry;
            len += 1;
            used += bytes;
        }
        self.len = len;
    }

    /// Numbers all entries anew, from 1.
    pub(super) fn renumber(&mut self) {
        self.last = 0;
        for entry in &mut self.entries[..self.len] {
            self.last += 1;
            entry.seq = self.last;
        }
    }

    /// All entries, in order.
    pub(super) fn entries(&self) -> &[Kept] {
        &self.entries[..self.len]
    }

    /// Number of the last message ever appended.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The first message after number `seq`.
    pub(super) fn after(&self, seq: u64) -> Option<Message<'_>> {
        let index = self.entries().partition_point(|entry| entry.seq <= seq);
        let entry = self.entries().get(index)?;
        let payload = &self.space[entry.offset as usize..][..entry.bytes as usize];
        let Kept { seq, request, kind, part, .. } = *entry;
        Some(Message { seq, request, kind, part, payload })
    }

    fn bytes_used(&self) -> usize {
        self.entries().last().map_or(0, |entry| (entry.offset + entry.bytes) as usize)
    }
}
