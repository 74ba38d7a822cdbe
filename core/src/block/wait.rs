//! Who waits for what, and who is to be woken.
//!
//! # Invariants
//!
//! * A request waits for at most one thing, and is in at most one list.
//! * A request is in the ring of those to be woken at most once, so the ring can't overflow.
//! * The first that waits for frames is *called*, once, when there may be enough; it stays first
//!   until it has taken them, waits for something else, or has left.
//! * The first that waits for a commit is the one with the oldest ticket, and is called likewise.
//!   It keeps its ticket until it has been served or has left, whatever else it must wait for
//!   meanwhile.
//!
//! What this module deliberately doesn't know: when a thing may be had, and what a request is.

use super::list::{Linked, Links, List};
use super::{FrameId, Limits, RequestId};
use crate::arena::{Arena, ArenaFull};
use crate::error::Error;
use crate::format::btree::BlockRef;

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing the cache knows of.
    Nowhere,
    /// A transfer of this frame's block.
    Block(FrameId),
    /// This many idle frames.
    Frames(u32),
    /// A commit with room.
    Commit,
}

/// What the cache knows of one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiter {
    pub(super) request: RequestId,
    pub(super) place: Place,
    /// The first of those that wait for frames has been told to try again, and has not done so yet.
    called: bool,
    /// To be told, and in the ring.
    woken: bool,
    queued: bool,
    links: Links,
    /// When it first ran short of frames; 0 if it did not.
    ticket: u64,
    /// When it first found no commit with room; 0 if it did not. Kept while it waits for blocks and
    /// frames, until it has been served.
    commit_ticket: u64,
    commit_called: bool,
    /// Why the block it waited for can't be had.
    failure: Option<(BlockRef, Error)>,
}

#[cfg(test)]
impl Waiter {
    pub(super) fn is_called(&self) -> bool {
        self.called
    }
}

impl Linked for Waiter {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// One waiter for each request that may be in flight.
pub(super) struct Waiters<'m> {
    pub(super) table: &'m mut [Waiter],
    pub(super) frames: List,
    /// How many have a commit ticket.
    commit_tickets: u32,
    ring: &'m mut [u32],
    ring_at: usize,
    ring_len: usize,
    tickets: u64,
    /// The request that keeps its pins while it waits for frames.
    pub(super) senior: Option<u32>,
}

impl<'m> Waiters<'m> {
    pub(super) fn carve(arena: &mut Arena<'m>, limits: &Limits) -> Result<Waiters<'m>, ArenaFull> {
        let waiter = |index| Waiter {
            request: RequestId { index, generation: 0 },
            place: Place::Nowhere,
            called: false,
            woken: false,
            queued: false,
            links: Links::NONE,
            ticket: 0,
            commit_ticket: 0,
            commit_called: false,
            failure: None,
        };
        Ok(Waiters {
            table: arena.slice(limits.requests, waiter)?,
            frames: List::EMPTY,
            commit_tickets: 0,
            ring: arena.slice(limits.requests, |_| 0)?,
            ring_at: 0,
            ring_len: 0,
            tickets: 0,
            senior: None,
        })
    }

    pub(super) fn waiter(&mut self, request: RequestId) -> &mut Waiter {
        let waiter = &mut self.table[request.index as usize];
        if waiter.request != request {
            assert!(waiter.place == Place::Nowhere, "the request before it was not released");
            waiter.request = request;
        }
        waiter
    }

    /// Marks the request to be woken.
    pub(super) fn wake(&mut self, index: u32) {
        let waiter = &mut self.table[index as usize];
        waiter.woken = true;
        if !core::mem::replace(&mut waiter.queued, true) {
            let at = (self.ring_at + self.ring_len) % self.ring.len();
            self.ring[at] = index;
            self.ring_len += 1;
        }
    }

    pub(super) fn poll_wake(&mut self) -> Option<RequestId> {
        while self.ring_len > 0 {
            let waiter = &mut self.table[self.ring[self.ring_at] as usize];
            self.ring_at = (self.ring_at + 1) % self.ring.len();
            self.ring_len -= 1;
            waiter.queued = false;
            if core::mem::take(&mut waiter.woken) {
                return Some(waiter.request);
            }
        }
        None
    }

    /// Wakes all that wait for a transfer of this frame; with why it failed, if it did.
    pub(super) fn wake_all(&mut self, list: &mut List, failure: Option<(BlockRef, Error)>) {
        while let Some(index) = list.pop_front(self.table) {
            let waiter = &mut self.table[index as usize];
            waiter.place = Place::Nowhere;
            waiter.failure = failure;
            self.wake(index);
        }
    }

    /// Why the block this request waited for can't be had. Told once.
    pub(super) fn take_failure(&mut self, request: RequestId, at: BlockRef) -> Option<Error> {
        let waiter = self.waiter(request);
        let (of, error) = waiter.failure?;
        if of != at {
            return None;
        }
        waiter.failure = None;
        Some(error)
    }

    /// The request waits for what `place` says. It must have left where it waited before, unless it
    /// stays in the same queue, where it keeps its position.
    pub(super) fn put(&mut self, request: RequestId, place: Place, list: Option<&mut List>) {
        let index = request.index;
        let waiter = self.waiter(request);
        (waiter.called, waiter.woken, waiter.failure) = (false, false, None);
        let before = core::mem::replace(&mut waiter.place, place);
        match (before, place) {
            (Place::Frames(_), Place::Frames(_)) => {}
            (_, Place::Frames(_)) => self.frames.push_back(self.table, index),
            (_, Place::Block(_)) => {
                list.expect("a block's waiters").push_back(self.table, index);
            }
            (_, Place::Nowhere | Place::Commit) => {}
        }
    }

    /// Moves a request that waits for frames to the front.
    pub(super) fn promote(&mut self, index: u32) {
        self.frames.remove(self.table, index);
        self.frames.push_front(self.table, index);
    }

    /// Takes the request out of the queue for frames.
    pub(super) fn leave_frames(&mut self, request: RequestId) {
        self.frames.remove(self.table, request.index);
        let waiter = self.waiter(request);
        (waiter.place, waiter.called) = (Place::Nowhere, false);
    }

    /// Forgets that the request is to be woken, why what it waited for failed, and that it ran
    /// short of frames.
    pub(super) fn hush(&mut self, request: RequestId) {
        let waiter = self.waiter(request);
        (waiter.woken, waiter.failure, waiter.ticket) = (false, None, 0);
    }

    /// Calls the first that waits for frames, if there are as many as it wants.
    pub(super) fn call_frames(&mut self, idle: u32) {
        let Some(index) = self.frames.front() else { return };
        let waiter = &mut self.table[index as usize];
        if matches!(waiter.place, Place::Frames(want) if want <= idle) && !waiter.called {
            waiter.called = true;
            self.wake(index);
        }
    }

    /// Whether a request waits for a commit.
    pub(super) fn wants_commit(&self) -> bool {
        self.commit_tickets > 0
    }

    /// The request with the oldest ticket for a commit.
    pub(super) fn first_for_commit(&self) -> Option<u32> {
        if self.commit_tickets == 0 {
            return None;
        }
        let tickets = self.table.iter().enumerate().filter(|(_, waiter)| waiter.commit_ticket > 0);
        tickets.min_by_key(|(_, waiter)| waiter.commit_ticket).map(|(at, _)| at as u32)
    }

    /// The request waits for a commit, with the ticket it has or a new one.
    pub(super) fn put_for_commit(&mut self, request: RequestId) {
        self.put(request, Place::Commit, None);
        self.tickets += 1;
        let ticket = self.tickets;
        let waiter = self.waiter(request);
        waiter.commit_called = false;
        if waiter.commit_ticket == 0 {
            waiter.commit_ticket = ticket;
            self.commit_tickets += 1;
        }
    }

    /// Takes the request's ticket for a commit away. Whether it had one.
    pub(super) fn leave_commit(&mut self, request: RequestId) -> bool {
        let waiter = self.waiter(request);
        waiter.commit_called = false;
        let had = core::mem::take(&mut waiter.commit_ticket) > 0;
        self.commit_tickets -= u32::from(had);
        had
    }

    /// Calls the first that waits for a commit.
    pub(super) fn call_commit(&mut self) {
        let Some(index) = self.first_for_commit() else { return };
        let waiter = &mut self.table[index as usize];
        if !core::mem::replace(&mut waiter.commit_called, true) && waiter.place == Place::Commit {
            waiter.place = Place::Nowhere;
            self.wake(index);
        }
    }

    /// Gives the request a ticket, and tells whether it is the senior.
    pub(super) fn is_senior(&mut self, request: RequestId) -> bool {
        if self.waiter(request).ticket == 0 {
            self.tickets += 1;
            self.waiter(request).ticket = self.tickets;
        }
        *self.senior.get_or_insert(request.index) == request.index
    }

    /// The request with the oldest ticket becomes the senior.
    pub(super) fn elect(&mut self) {
        let tickets = self.table.iter().enumerate().filter(|(_, waiter)| waiter.ticket > 0);
        self.senior = tickets.min_by_key(|(_, waiter)| waiter.ticket).map(|(at, _)| at as u32);
        if let Some(index) = self.senior
            && matches!(self.table[index as usize].place, Place::Frames(_))
        {
            self.promote(index);
        }
    }
}
