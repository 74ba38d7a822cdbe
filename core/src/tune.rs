//! Changing what a volume is configured to be, while nobody uses it.
//!
//! ```text
//!   Ballots ------------> Spare ------------> Publish -----------> done
//!   voters that are       the spare super     the super
//!   gone: stopped         block               block
//!   flush                 flush               flush
//! ```
//!
//! # Invariants
//!
//! * The super block is written last, in one sector: its others are zero in every version. So
//!   wherever this is cut off, the configuration is wholly the old one or the new one.
//! * The spare is never older than the super block: who repairs one by the other never brings back
//!   a configuration that nodes have left behind.
//! * The block of a voter that is proven gone says that it has stopped before anything changes.
//!   That is true whatever follows, and no claim of a voter that is left out stays behind.
//! * A new configuration has a key of its own. So nodes that go by different ones never join: not a
//!   server that was about to start, nor a mount that has been waiting for one.
//! * Any failed transfer ends it. Nothing is tried again, and nothing is written after it.
//!
//! What this module deliberately doesn't know: what the device holds beside that, and how it is
//! made sure that nobody uses it.

use crate::arena::{Arena, ArenaFull};
use crate::error::{Corruption, Error};
use crate::format::layout::{QUORUM_BLKNO, SUPER_BLKNO, spare_blkno};
use crate::format::quorum::{Ballot, HostId, Incarnation, SLOTS, Slot, State, seq_after};
use crate::format::super_block::{Changes, Super};
use crate::format::{Block, BlockNo, CommitNo, Term};
use crate::node::{Action, Event, More, Node};
use crate::quorum::Vouched;
use heapless::Vec;
use outrider_hal::{BlockOp, BlockRequest, Completion, Instant, StreamId, Tag};

/// Why a slot forbids a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// Its last user was not stopped in good order, and is not proven gone.
    Unproven {
        /// The slot.
        slot: Slot,
        /// The user.
        incarnation: Incarnation,
        /// What it was doing.
        state: State,
    },
    /// Its block is damaged, so that its last user can't be told.
    Damaged(Slot, Corruption),
}

/// What a slot's block is to say before anything is changed, if it is to be written: `says` is what
/// it was found to say, `here` the host all of whose voters of this slot are known to have ended.
pub fn settle(
    slot: Slot,
    says: Result<Option<Ballot>, Corruption>,
    here: HostId,
    vouched: &[Vouched],
) -> Result<Option<Ballot>, Obstacle> {
    let anyone = vouched.contains(&Vouched::Anyone);
    let last = match says {
        Ok(None) => return Ok(None),
        Ok(Some(last)) => last,
        Err(_) if anyone => return Ok(None),
        Err(what) => return Err(Obstacle::Damaged(slot, what)),
    };
    if last.state == State::Stopped {
        return Ok(None);
    }
    let proven = last.host == here || vouched.contains(&Vouched::Gone(last.incarnation));
    if !proven && !anyone {
        let Ballot { incarnation, state, .. } = last;
        return Err(Obstacle::Unproven { slot, incarnation, state });
    }
    let stopped = State::Stopped;
    let seq = seq_after(last.seq);
    Ok(Some(Ballot { seq, state: stopped, term: last.held, endpoint: None, ..last }))
}

/// What the block of a voter that has stopped is to say, if what was confirmed is to be forgotten:
/// a leader then goes on from the newest root there is, in which clients may be recorded again.
#[must_use]
pub fn forget_commits(stopped: Ballot) -> Ballot {
    let seq = seq_after(stopped.seq);
    Ballot { seq, confirmed: (Term::NONE, CommitNo(0)), vacant: false, ..stopped }
}

/// A configuration being changed.
pub struct Tune<'m> {
    new: Super,
    /// What blocks of voters are to say.
    ballots: Vec<Ballot, SLOTS>,
    /// Which request comes next.
    next: usize,
    buffer: Option<&'m mut Block>,
    in_flight: bool,
    outcome: Option<Result<(), Error>>,
}

/// A request, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Ballot(usize),
    Spare,
    Publish,
    Flush,
    Done,
}

impl<'m> Tune<'m> {
    /// Carves the change of a volume whose voters' blocks are to say this first, or what about the
    /// change is unusable. The key is random.
    pub fn carve(
        arena: &mut Arena<'m>,
        volume: &Super,
        changes: &Changes,
        key: [u8; 32],
        ballots: [Option<Ballot>; SLOTS],
    ) -> Result<Result<Tune<'m>, Corruption>, ArenaFull> {
        let buffer = arena.slice(1, |_| Block::ZERO)?.first_mut();
        let (next, in_flight, outcome) = (0, false, None);
        let ballots = ballots.into_iter().flatten().collect();
        let new = volume.changed(changes, key);
        Ok(new.map(|new| Tune { new, ballots, next, buffer, in_flight, outcome }))
    }

    /// How it ended: once, when it has.
    pub fn poll_outcome(&mut self) -> Option<Result<(), Error>> {
        self.outcome.take()
    }

    /// The volume as it will be.
    #[must_use]
    pub fn volume(&self) -> &Super {
        &self.new
    }

    fn step_at(&self, index: usize) -> Step {
        match index.checked_sub(self.ballots.len()) {
            None => Step::Ballot(index),
            Some(0 | 2 | 4) => Step::Flush,
            Some(1) => Step::Spare,
            Some(3) => Step::Publish,
            Some(_) => Step::Done,
        }
    }

    fn write(&mut self, blkno: BlockNo, fill: impl FnOnce(&Tune<'m>, &mut Block)) -> BlockOp<'m> {
        let buffer = self.buffer.take().expect("one request at a time");
        fill(self, buffer);
        BlockOp::Write(blkno, buffer)
    }

    fn poll_request(&mut self) -> Option<BlockRequest<'m>> {
        if self.in_flight {
            return None;
        }
        let volume = self.new.volume();
        let op = match self.step_at(self.next) {
            Step::Ballot(at) => {
                let ballot = self.ballots[at];
                let blkno = ballot.slot.blkno(QUORUM_BLKNO);
                self.write(blkno, |_, block| ballot.emit(block, &volume, QUORUM_BLKNO))
            }
            Step::Spare => {
                let blkno = spare_blkno(self.new.blocks());
                self.write(blkno, |at, block| at.new.seal(block, blkno))
            }
            Step::Publish => self.write(SUPER_BLKNO, |at, block| at.new.seal(block, SUPER_BLKNO)),
            Step::Flush => BlockOp::Flush,
            Step::Done => return None,
        };
        self.in_flight = true;
        self.next += 1;
        Some(BlockRequest { tag: Tag(self.next as u64), op })
    }

    fn on_completed(&mut self, done: Completion<'m>) {
        self.in_flight = false;
        let blkno = match done.op {
            BlockOp::Read(blkno, buffer) | BlockOp::Write(blkno, buffer) => {
                self.buffer = Some(buffer);
                blkno
            }
            BlockOp::Flush => SUPER_BLKNO,
        };
        if let Err(error) = done.result {
            self.next = usize::MAX;
            self.outcome = Some(Err(Error::Io { blkno, error }));
        } else if self.step_at(self.next) == Step::Done {
            self.outcome = Some(Ok(()));
        }
    }
}

impl<'m> Node<'m> for Tune<'m> {
    fn handle(&mut self, _: Instant, event: Event<'m>) {
        match event {
            Event::Completed(completion) => self.on_completed(completion),
            Event::Accepted(_)
            | Event::Connected { .. }
            | Event::ConnectFailed { .. }
            | Event::ListenFailed
            | Event::Received { .. }
            | Event::Sent { .. }
            | Event::Closed(_) => {}
        }
    }

    fn step(&mut self, _: Instant) -> More {
        More::No
    }

    fn poll_action(&mut self) -> Option<Action<'m>> {
        self.poll_request().map(Action::Block)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn recv_space(&mut self, _: StreamId) -> &mut [u8] {
        &mut []
    }

    fn send_bytes(&self, _: StreamId) -> &[u8] {
        &[]
    }
}

#[cfg(test)]
mod tests;
