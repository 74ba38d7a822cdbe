//! The requests that are under way, and the clients they belong to.
//!
//! # Invariants
//!
//! * A request that can run is in the queue once, and those in it run in its order: first come,
//!   first served.
//! * What a request has of the cache is released when it joins a commit, ends, or dies with its
//!   term.
//!
//! What this module deliberately doesn't know: what requests do.

use super::compact::Helper;
use super::evict::EvictState;
use super::limits::ServerLimits;
use super::requests::LoanState;
use crate::arena::{Arena, ArenaFull};
use crate::block::{Cache, Pins, RequestId};
use crate::format::records::QuarantineKey;
use crate::format::wire::ErrorCode;
use crate::format::wire::PAYLOAD_BYTES_MAX;
use crate::format::wire::greeting::Machine;
use crate::format::{ClientId, CommitNo, Seq};
use crate::mutant::{Mutant, is_active};
use crate::net::{SessionId, Ticket};
use outrider_hal::{Instant, StreamId};

/// What a request is about.
#[derive(Debug)]
pub(super) enum Work {
    /// Reads the clients' records after this one, then the open transactions after this one.
    Load { client: ClientId, seq: Option<Seq> },
    /// Enters freed extents into the free trees.
    Tidy,
    /// Frees what leaders who are gone might have written, from this list on.
    Release { from: QuarantineKey },
    /// Chooses what is to be merged, and by whom.
    Compact,
    /// Merges runs.
    Merge,
    /// What has come of a client's compaction; why it was given up, once that is recorded.
    Compacted { failed: Option<ErrorCode> },
    /// A client compacts nothing, and can be asked for so many at a time.
    CompactReady { at_once: u8 },
    /// Gives back what a client was lent for a compaction that it has not begun.
    Settle { place: u8 },
    /// Records a new client.
    Greet { stream: StreamId, nonce: [u8; 16], machine: Machine, client: ClientId },
    /// A loan.
    Loan,
    /// A transaction; the next one's number, once it was carried out.
    Transaction { seq_next: Seq },
    /// A farewell.
    Farewell,
    /// An eviction.
    Evict(EvictState),
}

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The slot is free.
    Free,
    /// It can run.
    Ready,
    /// It waits for the cache, or for whoever it belongs to.
    Parked,
    /// It is held back until level 0 has shrunk, or what was freed before is entered.
    Held,
    /// It was carried out, and is answered when this commit is durable.
    Joined(CommitNo),
    /// It has met a damaged block, and is refused after this reading of the claims.
    Doubted(u64),
}

/// A request.
pub(super) struct Slot<'m> {
    pub(super) id: RequestId,
    pub(super) pins: Pins<'m>,
    pub(super) stage: Stage,
    pub(super) work: Work,
    /// How far a loan is.
    pub(super) loan: LoanState,
    pub(super) client: ClientId,
    pub(super) asked: Option<(SessionId, Ticket)>,
    /// The client's number for it.
    pub(super) number: u64,
    pub(super) payload: &'m mut [u8],
    pub(super) payload_len: usize,
}

/// How a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its record is not durable yet.
    Greeting,
    /// It is mounted.
    Mounted,
    /// It has said farewell, and its record is still there.
    Leaving,
    /// It is being evicted, or was by an earlier leader that may not have come to the end.
    Evicting,
    /// It was evicted, and what it was lent is quarantined.
    Evicted,
}

/// A client with a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) client: ClientId,
    pub(super) nonce: [u8; 16],
    /// Where it runs.
    pub(super) machine: Machine,
    pub(super) standing: Standing,
    /// Its open transaction, as the open commit has it; 0: none.
    pub(super) seq: Seq,
    /// When it was recorded, if that was in this term: it was heard then.
    pub(super) recorded_at: Instant,
    /// What it has changed, and is not durable, bears this number or a later one.
    pub(super) floor: Seq,
    /// It was recorded in this term, and has not said yet that it holds no locks.
    pub(super) is_new: bool,
    /// It was asked so.
    pub(super) asked_held: bool,
    /// It was evicted, and all that followed is durable.
    pub(super) evicted: bool,
    /// It was evicted: what it may still write in place stays locked until then.
    pub(super) ghost_until: Option<Instant>,
    /// Nor is that waited for any more, which is on record.
    pub(super) is_calm: bool,
    /// Its eviction failed, and is tried again then.
    pub(super) retry_at: Instant,
    /// Blocks that are quarantined because of it.
    pub(super) quarantined: u64,
    /// Somebody has proved that it is gone, whatever it has submitted.
    pub(super) is_gone: bool,
    /// It is not to be fenced before this; 0: whenever it can be.
    pub(super) fence_at: Instant,
    /// Fences that failed in this term.
    pub(super) fence_failures: u16,
    /// An operator who waits until nothing of it is left.
    pub(super) word: Option<(SessionId, Ticket)>,
    /// What it merges for the server.
    pub(super) helper: Helper,
}

impl Member {
    /// Whether it is evicted, or being so.
    pub(super) fn is_out(&self) -> bool {
        matches!(self.standing, Standing::Evicting | Standing::Evicted)
    }

    /// Whether this one, which came later, proves that the other is gone: the machine of both has
    /// booted in between.
    pub(super) fn proves_gone(&self, other: &Member) -> bool {
        let recorded = self.standing != Standing::Greeting;
        let rebooted = self.machine.has_rebooted(&other.machine);
        let proven = rebooted || is_active(Mutant::GoneWithoutProof);
        recorded && self.client > other.client && proven
    }

    /// A client of this record.
    pub(super) fn new(
        client: ClientId,
        nonce: [u8; 16],
        machine: Machine,
        standing: Standing,
    ) -> Member {
        Member {
            client,
            nonce,
            machine,
            standing,
            seq: Seq(0),
            recorded_at: Instant(0),
            floor: Seq(0),
            is_new: false,
            asked_held: false,
            evicted: false,
            ghost_until: None,
            is_calm: false,
            retry_at: Instant(0),
            quarantined: 0,
            is_gone: false,
            fence_at: Instant(0),
            fence_failures: 0,
            word: None,
            helper: Helper::default(),
        }
    }
}

/// The requests.
pub(super) struct Table<'m> {
    pub(super) slots: &'m mut [Slot<'m>],
    queue: &'m mut [u32],
    queue_at: usize,
    queue_len: usize,
}

/// The clients with a record.
pub(super) struct Members<'m> {
    members: &'m mut [Member],
    len: usize,
}

impl<'m> Table<'m> {
    pub(super) fn carve(
        arena: &mut Arena<'m>,
        limits: &ServerLimits,
    ) -> Result<Table<'m>, ArenaFull> {
        // Slot 0 of the cache's requests is the store's own.
        let count = limits.cache.requests - 1;
        let bytes = arena.slice(count, |_| [0u8; PAYLOAD_BYTES_MAX])?;
        let mut bytes = bytes.iter_mut();
        let pins = arena.slice(count, |_| None)?;
        for index in 0..count as usize {
            // A measuring arena has no slots, but counts what each would have.
            let carved = Pins::carve(arena, &limits.cache)?;
            if let Some(place) = pins.get_mut(index) {
                *place = Some(carved);
            }
        }
        let slots = arena.slice(count, |index| Slot {
            id: RequestId { index: index + 1, generation: 0 },
            pins: pins[index as usize].take().expect("as many as slots"),
            stage: Stage::Free,
            work: Work::Merge,
            loan: LoanState::default(),
            client: ClientId(0),
            asked: None,
            number: 0,
            payload: bytes.next().expect("as many as slots"),
            payload_len: 0,
        })?;
        Ok(Table { slots, queue: arena.slice(count, |_| 0)?, queue_at: 0, queue_len: 0 })
    }

    /// Begins a request, which can run from now on.
    pub(super) fn begin(&mut self, work: Work, client: ClientId) -> Result<usize, ErrorCode> {
        let free = self.slots.iter().position(|slot| slot.stage == Stage::Free);
        let index = free.ok_or(ErrorCode::Busy)?;
        let slot = &mut self.slots[index];
        slot.id.generation = slot.id.generation.wrapping_add(1);
        slot.pins.begin(slot.id);
        (slot.work, slot.client, slot.asked, slot.payload_len) = (work, client, None, 0);
        slot.loan = LoanState::default();
        self.ready(index);
        Ok(index)
    }

    /// The request can run.
    pub(super) fn ready(&mut self, index: usize) {
        self.slots[index].stage = Stage::Ready;
        let at = (self.queue_at + self.queue_len) % self.queue.len();
        self.queue[at] = index as u32;
        self.queue_len += 1;
    }

    /// The cache has woken this request.
    pub(super) fn wake(&mut self, id: RequestId) {
        let index = (id.index as usize).wrapping_sub(1);
        if self.slots.get(index).is_some_and(|slot| slot.id == id && slot.stage == Stage::Parked) {
            self.ready(index);
        }
    }

    /// The next request to run.
    pub(super) fn next(&mut self) -> Option<usize> {
        if self.queue_len == 0 {
            return None;
        }
        let index = self.queue[self.queue_at] as usize;
        self.queue_at = (self.queue_at + 1) % self.queue.len();
        self.queue_len -= 1;
        Some(index)
    }

    /// Ends all of a term.
    pub(super) fn clear(&mut self, cache: &mut Cache<'_>) {
        for slot in self.slots.iter_mut().filter(|slot| slot.stage != Stage::Free) {
            cache.release(&mut slot.pins);
            slot.stage = Stage::Free;
        }
        self.queue_len = 0;
    }
}

impl<'m> Members<'m> {
    pub(super) fn carve(arena: &mut Arena<'m>, clients: u32) -> Result<Members<'m>, ArenaFull> {
        let nobody = Member::new(ClientId(0), [0; 16], Machine::default(), Standing::Greeting);
        Ok(Members { members: arena.slice(clients, |_| nobody)?, len: 0 })
    }

    pub(super) fn all(&self) -> &[Member] {
        &self.members[..self.len]
    }

    pub(super) fn all_mut(&mut self) -> &mut [Member] {
        &mut self.members[..self.len]
    }

    pub(super) fn find(&mut self, client: ClientId) -> Option<&mut Member> {
        self.members[..self.len].iter_mut().find(|member| member.client == client)
    }

    /// A client's transaction is open no more.
    pub(super) fn close(&mut self, client: ClientId) {
        if let Some(member) = self.find(client) {
            member.seq = Seq(0);
        }
    }

    /// The last number such that no change that is still to become durable bears it, or an earlier
    /// one, as the open commit has it. The next transaction to be opened will have number
    /// `seq_next`.
    pub(super) fn stable(&self, seq_next: Seq) -> Seq {
        let open = self.all().iter().filter(|member| member.seq != Seq(0));
        let first = open.map(|member| member.floor).min().unwrap_or(seq_next).min(seq_next);
        Seq(first.0.saturating_sub(1))
    }

    pub(super) fn is_full(&self) -> bool {
        self.len == self.members.len()
    }

    pub(super) fn add(&mut self, member: Member) -> Result<(), ErrorCode> {
        let place = self.members.get_mut(self.len).ok_or(ErrorCode::TooMany)?;
        *place = member;
        self.len += 1;
        Ok(())
    }

    pub(super) fn remove(&mut self, client: ClientId) -> Option<Member> {
        let at = self.all().iter().position(|member| member.client == client)?;
        let removed = self.members[at];
        self.len -= 1;
        self.members[at] = self.members[self.len];
        Some(removed)
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }
}
