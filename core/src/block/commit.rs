//! The open commit: which frames it has changed, what a plan needs, and writing it all.
//!
//! ```text
//!            open_commit            close_commit             write_back       all written
//!   Closed --------------> Open ------------------> Closing -----------> Writing ------> Closed
//!                           reserve                  reserve_closing         |
//!                                                       ^                    |
//!                                                       +---- a write failed +
//! ```
//!
//! # Invariants
//!
//! * A block whose version is the open commit's number is changed in place. Any other block is
//!   first given a new address, in the frame it is in, and its old one is freed.
//! * A plan counts each clean block it may change once, however many of its updates may change it.
//! * What a reservation grants is all there: apply takes frames and blocks without asking. A
//!   reservation is used in the run that made it, so nothing comes between.
//! * Ordinary plans leave the margin untouched; it is there for closing the commit.
//!
//! What this module deliberately doesn't know: what roots are, and when a commit is durable.

use super::list::List;
use super::{Cache, FrameId, Pins, RequestId, Space, State};
use crate::error::{Corruption, Error, Stop, Wait};
use crate::format::block::{Magic, seal};
use crate::format::btree::BlockRef;
use crate::node::More;
use outrider_hal::Block;

const MISMATCH: Corruption = Corruption::Mismatch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    Open,
    Closing,
    Writing,
}

/// What ordinary plans must leave to the end of the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Margin {
    /// Frames that may still become dirty.
    pub dirty: u32,
    /// Blocks that can still be taken.
    pub blocks: u64,
    /// Extents that may still be freed.
    pub freed: u32,
}

pub(super) struct Commit {
    phase: Phase,
    number: u64,
    dirty: List,
    /// Frames sealed and not known to be written.
    writes: u32,
    margin: Margin,
    /// The first that waits for a commit did not fit into this one.
    refused: bool,
    error: Option<Error>,
}

impl Commit {
    pub(super) const CLOSED: Commit = Commit {
        phase: Phase::Closed,
        number: 0,
        dirty: List::EMPTY,
        writes: 0,
        margin: Margin { dirty: 0, blocks: 0, freed: 0 },
        refused: false,
        error: None,
    };
}

/// Adds up the worst case of the updates of one request.
#[derive(Debug)]
pub struct Plan {
    id: u64,
    touches: u32,
    creates: u32,
    /// Updates planned so far.
    pub(crate) updates: u32,
    /// Of these, deletions.
    pub(crate) deletes: u32,
    /// Bytes they take out of leaves.
    pub(crate) bytes_removed: usize,
}

impl Plan {
    /// Counts on adding `count` blocks.
    pub(crate) fn add_creates(&mut self, count: u32) {
        self.creates += count;
    }
}

/// What a plan may use up, all of it there. Dropping it forfeits what was not used.
#[derive(Debug)]
#[must_use]
pub struct Reservation {
    id: u64,
    creates: u32,
}

impl<'m> Cache<'m> {
    /// Starts a commit of this number, for which [`space`](Self::space) has been filled.
    pub fn open_commit(&mut self, number: u64, margin: Margin) {
        assert!(self.commit.phase == Phase::Closed && self.limits.dirty > 0);
        self.commit = Commit { phase: Phase::Open, number, margin, ..Commit::CLOSED };
        self.waiters.call_commit();
    }

    /// Ends what requests may change. The node may still
    /// [`reserve_closing`](Self::reserve_closing).
    pub fn close_commit(&mut self) {
        assert!(self.commit.phase == Phase::Open);
        self.commit.phase = Phase::Closing;
    }

    /// Whether a request waits that the open commit has no room for, or none is open.
    #[must_use]
    pub fn is_commit_wanted(&self) -> bool {
        self.waiters.wants_commit() && (self.commit.refused || self.commit.phase != Phase::Open)
    }

    /// Whether the commit has changed nothing.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        self.commit.dirty.is_empty() && self.space.is_untouched()
    }

    /// The blocks the commit may write, and those it freed.
    pub fn space(&mut self) -> &mut Space<'m> {
        &mut self.space
    }

    /// Starts to write every changed block. Nothing may change until
    /// [`poll_written`](Self::poll_written) has answered.
    pub fn write_back(&mut self) {
        assert!(self.commit.phase == Phase::Closing);
        (self.commit.phase, self.commit.error) = (Phase::Writing, None);
    }

    /// Seals at most `budget` changed blocks, so that
    /// [`poll_transfer`](Self::poll_transfer) gives out their writes.
    pub fn step_write_back(&mut self, budget: u32) -> More {
        if self.commit.phase != Phase::Writing || self.commit.error.is_some() {
            return More::No;
        }
        for _ in 0..budget {
            let Some(index) = self.commit.dirty.pop_front(self.frames) else { return More::No };
            let frame = &mut self.frames[index as usize];
            let block = frame.buffer.as_deref_mut().expect("a dirty block is not in flight");
            seal(block, &self.volume, frame.magic, frame.at.blkno(), frame.at.seq());
            frame.state = State::Writing;
            self.commit.writes += 1;
            self.transfers.push_back(self.frames, index);
        }
        if self.commit.dirty.is_empty() { More::No } else { More::Yes }
    }

    pub(super) fn on_written(&mut self, id: FrameId, result: Result<(), Error>) {
        self.commit.writes -= 1;
        match result {
            Ok(()) => self.settle(id),
            Err(error) => {
                self.commit.error.get_or_insert(error);
                self.frames[id.0 as usize].state = State::Dirty;
                self.commit.dirty.push_back(self.frames, id.0);
            }
        }
        self.wake_waiters(id, None);
    }

    /// Whether the writing has ended, and how: once every write has completed. After an error the
    /// blocks not written are still there, and `write_back` may be called again.
    pub fn poll_written(&mut self) -> Option<Result<(), Error>> {
        let commit = &mut self.commit;
        if commit.phase != Phase::Writing || commit.writes > 0 {
            return None;
        }
        if let Some(error) = commit.error {
            commit.phase = Phase::Closing;
            return Some(Err(error));
        }
        if !commit.dirty.is_empty() {
            return None;
        }
        commit.phase = Phase::Closed;
        Some(Ok(()))
    }

    /// Starts to plan the updates of a request.
    pub fn plan(&mut self) -> Plan {
        self.plans += 1;
        Plan { id: self.plans, touches: 0, creates: 0, updates: 0, deletes: 0, bytes_removed: 0 }
    }

    /// Counts on changing a pinned block, that is referred to from slot `home.1` of the block in
    /// frame `home.0`, or from outside the cache.
    ///
    /// A block that is also to be written anew, or is referred to twice, is
    /// [`Corruption::Mismatch`]: changing it would pull it away from under somebody.
    pub(crate) fn touch(
        &mut self,
        id: FrameId,
        home: Option<(FrameId, usize)>,
        plan: &mut Plan,
    ) -> Result<(), Error> {
        let frame = &mut self.frames[id.0 as usize];
        let blkno = frame.at.blkno();
        if frame.plan == plan.id {
            let same = frame.home == home;
            return if same { Ok(()) } else { Err(Error::Corrupt { blkno, what: MISMATCH }) };
        }
        if frame.state == State::Clean {
            if self.space.is_fresh(blkno) {
                return Err(Error::Corrupt { blkno, what: MISMATCH });
            }
            plan.touches += 1;
        }
        (frame.plan, frame.home) = (plan.id, home);
        Ok(())
    }

    /// Makes sure that all a plan needs is there.
    ///
    /// Stops with [`Wait::Commit`] if the open commit has no room for it, with [`Wait::Frame`] if
    /// there are no frames for the blocks it may add, and with [`Error::NoSpace`] if not even an
    /// empty commit would have the space.
    pub fn reserve(&mut self, plan: &Plan, pins: &mut Pins<'_>) -> Result<Reservation, Stop> {
        let first = self.waiters.first_for_commit().is_none_or(|first| first == pins.request.index);
        let fits = self.fits(plan, self.commit.margin);
        if self.commit.phase != Phase::Open || !first || !fits {
            if self.commit.phase == Phase::Open && first {
                if self.is_unchanged() {
                    return Err(Error::NoSpace.into());
                }
                self.commit.refused = true;
            }
            return Err(self.wait_for_commit(pins));
        }
        self.grant(plan, pins)
    }

    /// As [`reserve`](Self::reserve), for what closing the commit changes: takes from the margin
    /// too, and doesn't wait for another commit.
    pub fn reserve_closing(
        &mut self,
        plan: &Plan,
        pins: &mut Pins<'_>,
    ) -> Result<Reservation, Stop> {
        assert!(matches!(self.commit.phase, Phase::Open | Phase::Closing));
        if !self.fits(plan, Margin::default()) {
            return Err(Error::NoSpace.into());
        }
        self.grant(plan, pins)
    }

    fn grant(&mut self, plan: &Plan, pins: &mut Pins<'_>) -> Result<Reservation, Stop> {
        self.make_room(plan.creates, pins)?;
        self.leave_commit(pins.request);
        Ok(Reservation { id: plan.id, creates: plan.creates })
    }

    fn fits(&self, plan: &Plan, margin: Margin) -> bool {
        let Plan { touches, creates, .. } = *plan;
        assert!(touches <= self.limits.pins && creates <= self.limits.creates);
        let dirty = self.commit.dirty.len() + touches + creates;
        let blocks = u64::from(touches + creates) + margin.blocks;
        dirty + margin.dirty <= self.limits.dirty
            && blocks <= self.space.available()
            && touches + margin.freed <= self.space.freed_room()
    }

    fn wait_for_commit(&mut self, pins: &mut Pins<'_>) -> Stop {
        self.yield_frames(pins);
        self.waiters.put_for_commit(pins.request);
        self.waiters.call_frames(self.idle.len());
        Wait::Commit.into()
    }

    /// The request waits for a commit no longer: calls the next, if the open one may have room.
    pub(super) fn leave_commit(&mut self, request: RequestId) {
        let first = self.waiters.first_for_commit();
        if self.waiters.leave_commit(request) && first == Some(request.index) {
            self.commit.refused = false;
            if self.commit.phase == Phase::Open {
                self.waiters.call_commit();
            }
        }
    }

    /// The block is about to be changed: gives it an address of the open commit, unless it has one.
    /// Returns the reference to it.
    pub(crate) fn dirty(&mut self, id: FrameId, update: &Reservation) -> BlockRef {
        let frame = &self.frames[id.0 as usize];
        match frame.state {
            State::Dirty => return frame.at,
            State::Clean => assert!(frame.plan == update.id && frame.pins > 0, "not planned"),
            State::Free | State::Reading | State::Writing | State::Doomed | State::Orphan => {
                unreachable!("a planned block is resident")
            }
        }
        let old = frame.at;
        let at = self.next_address();
        self.leave(id);
        self.space.free(old.blkno(), old.seq());
        let frame = &mut self.frames[id.0 as usize];
        (frame.at, frame.state) = (at, State::Dirty);
        self.enter(id);
        self.commit.dirty.push_back(self.frames, id.0);
        at
    }

    /// A frame for a block that the open commit adds, its bytes zero.
    pub(crate) fn create(&mut self, update: &mut Reservation) -> FrameId {
        update.creates = update.creates.checked_sub(1).expect("the plan counts the worst case");
        let at = self.next_address();
        let id = self.take_idle();
        let frame = &mut self.frames[id.0 as usize];
        (frame.at, frame.magic, frame.state) = (at, Magic::Btree, State::Dirty);
        frame.plan = update.id;
        frame.buffer.as_deref_mut().expect("an idle frame is not in flight").0.fill(0);
        self.enter(id);
        self.commit.dirty.push_back(self.frames, id.0);
        id
    }

    /// A block of the commit's space for this commit's version, known to no frame.
    fn next_address(&mut self) -> BlockRef {
        let blkno = self.space.take().expect("the plan counts the worst case");
        if let Some(stale) = self.find(blkno) {
            self.displace(stale);
        }
        BlockRef::new(blkno, self.commit.number)
    }

    /// Drops a block that nothing refers to any more: frees its address and its frame.
    pub(crate) fn discard(&mut self, id: FrameId) {
        let frame = &self.frames[id.0 as usize];
        let at = frame.at;
        match frame.state {
            State::Dirty => {
                self.commit.dirty.remove(self.frames, id.0);
                self.space.put_back(at.blkno());
            }
            State::Clean => {
                assert!(frame.pins > 0, "not planned");
                self.space.free(at.blkno(), at.seq());
            }
            State::Free | State::Reading | State::Writing | State::Doomed | State::Orphan => {
                unreachable!("a planned block is resident")
            }
        }
        self.leave(id);
        self.vacate(id);
    }

    /// Ends an update: frames may have become idle.
    pub(crate) fn settle_update(&mut self) {
        self.waiters.call_frames(self.idle.len());
    }

    /// The resident block at this reference, between transfers.
    pub(crate) fn resident(&self, at: BlockRef) -> Option<FrameId> {
        let id = self.find(at.blkno())?;
        let frame = &self.frames[id.0 as usize];
        let here = matches!(frame.state, State::Clean | State::Dirty) && frame.at == at;
        here.then_some(id)
    }

    /// The block at this reference, if this update's plan counted on changing it, or added it.
    pub(crate) fn changeable(&self, at: BlockRef, update: &Reservation) -> Option<FrameId> {
        let id = self.resident(at)?;
        (self.frames[id.0 as usize].plan == update.id).then_some(id)
    }

    /// The reference to the block in this frame.
    pub(crate) fn address(&self, id: FrameId) -> BlockRef {
        self.frames[id.0 as usize].at
    }

    /// A block of the open commit, and room for a copy of it.
    pub(crate) fn block_mut(&mut self, id: FrameId) -> (&mut Block, &mut Block) {
        let frame = &mut self.frames[id.0 as usize];
        assert!(frame.state == State::Dirty, "changed in place only what the commit owns");
        let block = frame.buffer.as_deref_mut().expect("a dirty block is not in flight");
        (block, self.scratch.as_deref_mut().expect("carved"))
    }

    /// A block of the open commit to change, another to look at, and room for a copy.
    pub(crate) fn block_pair(
        &mut self,
        change: FrameId,
        look: FrameId,
    ) -> (&mut Block, &Block, &mut Block) {
        let [change, look] = self
            .frames
            .get_disjoint_mut([change.0 as usize, look.0 as usize])
            .expect("two different frames");
        assert!(change.state == State::Dirty, "changed in place only what the commit owns");
        let block = change.buffer.as_deref_mut().expect("a dirty block is not in flight");
        let look = look.buffer.as_deref().expect("a planned block is not in flight");
        (block, look, self.scratch.as_deref_mut().expect("carved"))
    }
}
