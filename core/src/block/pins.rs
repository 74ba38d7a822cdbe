//! The blocks a request has obtained and keeps until it finishes.
//!
//! A request that is run again obtains mostly what it obtained before, in the same order, so the
//! list has a cursor: what lies before it was obtained in this run, what lies behind it in earlier
//! ones. When the tree has changed meanwhile, leftovers of earlier runs give way; a run itself
//! never obtains more than `Limits::pins` blocks.

use super::{FrameId, Limits, RequestId};
use crate::arena::{Arena, ArenaFull};

/// The pins of one request. Lives in the request's slot, and is emptied by
/// [`Cache::release`](super::Cache::release).
pub struct Pins<'m> {
    pub(super) request: RequestId,
    pub(super) frames: &'m mut [FrameId],
    pub(super) len: usize,
    pub(super) cursor: usize,
}

impl<'m> Pins<'m> {
    /// Carves the list of one request: `limits.pins` entries.
    pub fn carve(arena: &mut Arena<'m>, limits: &Limits) -> Result<Pins<'m>, ArenaFull> {
        Ok(Pins {
            request: RequestId { index: 0, generation: 0 },
            frames: arena.slice(limits.pins, |_| FrameId(0))?,
            len: 0,
            cursor: 0,
        })
    }

    /// Starts to serve this request. The list must have been released.
    pub fn begin(&mut self, request: RequestId) {
        assert!(self.len == 0, "the pins of a request that was not released");
        (self.request, self.cursor) = (request, 0);
    }

    /// Starts a run from the top. The cache does so itself when it stops a request.
    pub fn restart(&mut self) {
        self.cursor = 0;
    }

    /// How many blocks this run has obtained: a mark for [`drop_to`](Self::drop_to).
    #[must_use]
    pub fn mark(&self) -> usize {
        self.cursor
    }

    /// What was obtained since the mark is not needed any more; it is kept as long as there is
    /// room.
    pub fn drop_to(&mut self, mark: usize) {
        self.cursor = mark.min(self.cursor);
    }

    /// Whether the frame is in the list. If so it counts as obtained in this run.
    pub(super) fn obtain(&mut self, frame: FrameId) -> bool {
        let held = &mut self.frames[..self.len];
        if let Some(at) = held[self.cursor..].iter().position(|&held| held == frame) {
            held.swap(self.cursor, self.cursor + at);
            self.cursor += 1;
            return true;
        }
        held[..self.cursor].contains(&frame)
    }

    /// Takes a leftover out of a list that is full.
    pub(super) fn give_way(&mut self) -> Option<FrameId> {
        if self.len < self.frames.len() || self.cursor == self.len {
            return None;
        }
        self.len -= 1;
        Some(self.frames[self.len])
    }

    /// Adds a frame that is not in the list. Returns the one that gives way, if the list was full.
    pub(super) fn add(&mut self, frame: FrameId) -> Option<FrameId> {
        assert!(self.cursor < self.frames.len(), "a run obtained more blocks than it may");
        let gone = self.give_way();
        self.frames[self.len] = frame;
        self.frames.swap(self.cursor, self.len);
        self.len += 1;
        self.cursor += 1;
        gone
    }
}
