//! Commits: which dirty items one takes, and when they are clean.
//!
//! ```text
//!                commit_begin          last commit_advance
//!      +-> Idle --------------> Copying --------------> InFlight
//!      |                           |                       |  |
//!      | step: no item left        | commit_failed         |  | commit_done
//!      +---- Ending (not durable) <+-----------------------+  |
//!      +---- Ending (durable) <-------------------------------+
//! ```
//!
//! Each item says in two bits whether it was changed in the *open* generation, or in the one a
//! commit has taken, or in both: generations alternate between the bits.
//!
//! # Why one version of an item is enough
//!
//! The caller copies the items of the snapshot into a run's buffer between `commit_begin` and the
//! last `commit_advance`. Only then do changes wait ([`Wait::Snapshot`](super::Wait)), so what is
//! copied is the state between two changes, and no operation is in it by half. Afterwards the copy
//! is what is written, sent, and sent again until it is answered; the cache's own version is needed
//! for questions and for later commits only, and both want the newest. The copying is at most the
//! dirty budget, a memory copy of about a mebibyte.
//!
//! If the commit fails for good, its items belong to the open generation again. The next snapshot
//! has them in their newest version, together with everything changed since: again a state between
//! two changes, and a later one. If one was deleted meanwhile that is a tombstone, because what was
//! copied once may exist; so it doesn't matter either if the failed commit has happened after all,
//! as long as the server puts it before the next one.
//!
//! # Invariants
//!
//! * One commit at a time; the next begins when all items of the last have been gone through.
//! * An item changed after the snapshot has the open generation's bit, and is still dirty when the
//!   commit is durable.
//! * From `commit_done` on the items of the commit count as clean, although `step` has still to go
//!   through them. Tombstones and blind items leave then; the others are ordinary clean items.

use super::index::Entry;
use super::key::{FIRST, successor};
use super::{
    BLIND, DIRTY, DIRTY_EVEN, DIRTY_ODD, ItemCache, Key, LIVE, More, PERSISTENT, Range, TOMBSTONE,
    Value,
};
use crate::format::CommitNo;
use crate::mutant::{Mutant, is_active};

/// A generation of changes: all those between two snapshots. Counts up by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// The bit of items changed in this generation.
    pub(super) fn bit(self) -> u8 {
        if self.0.is_multiple_of(2) { DIRTY_EVEN } else { DIRTY_ODD }
    }

    /// The bit of the generation before it.
    fn bit_before(self) -> u8 {
        self.bit() ^ DIRTY
    }
}

/// Where the commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is none.
    Idle,
    /// Its items are being copied; `next` is one of them, the first not copied yet, in slot `id`.
    Copying { next: Key, id: u32 },
    /// Its items have been copied.
    InFlight,
    /// It has ended, and items below `next` have been told so.
    Ending { durable: Option<CommitNo>, next: Key },
}

/// Why no commit can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotNow {
    /// Nothing is dirty.
    Clean,
    /// The last one has not ended, or [`ItemCache::step`] has not gone through its items.
    Busy,
}

/// An item of a snapshot.
#[derive(Clone, Copy)]
pub struct Committed<'a> {
    /// Its key.
    pub key: Key,
    /// Its value; none if it is deleted.
    pub value: Option<Value<'a>>,
}

/// What is dirty in a range, and in which generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirty {
    /// The open generation, if it has changed something there: the next commit is needed.
    pub open: Option<Generation>,
    /// The generation of the running commit, if it has something there: its end is needed.
    pub in_flight: Option<Generation>,
}

impl ItemCache<'_> {
    /// Begins a commit of everything dirty. What is changed from now on belongs to the next
    /// generation, and waits until the items have been copied.
    pub fn commit_begin(&mut self) -> Result<Generation, NotNow> {
        match self.phase {
            Phase::Idle => {}
            Phase::Copying { .. } | Phase::InFlight | Phase::Ending { .. } => {
                return Err(NotNow::Busy);
            }
        }
        let first = self.index.ceil(&FIRST, self.open.bit()).ok_or(NotNow::Clean)?;
        let snapshot = self.open;
        self.open = Generation(snapshot.0 + 1);
        self.phase = Phase::Copying { next: first.key, id: first.id };
        Ok(snapshot)
    }

    /// The next item to copy, in the order of keys; none once all have been.
    #[must_use]
    pub fn commit_peek(&self) -> Option<Committed<'_>> {
        let (key, id) = self.copying()?;
        let deleted = self.slots[id as usize].flags & TOMBSTONE != 0;
        Some(Committed { key, value: (!deleted).then(|| self.value(id)) })
    }

    /// Goes on to the item after the one peeked at, which has been copied.
    pub fn commit_advance(&mut self) {
        let Some((key, id)) = self.copying() else {
            return;
        };
        self.slots[id as usize].flags |= PERSISTENT;
        let bit = self.open.bit_before();
        let next = successor(&key).and_then(|next| self.index.ceil(&next, bit));
        self.phase = match next {
            Some(entry) => Phase::Copying { next: entry.key, id: entry.id },
            None => Phase::InFlight,
        };
    }

    /// The server has answered: the commit of this generation is durable, and `root` is a root that
    /// has it. Returns whether that commit was in flight; if not, the answer is an old one.
    pub fn commit_done(&mut self, snapshot: Generation, root: CommitNo) -> bool {
        let in_flight = self.phase == Phase::InFlight && self.in_flight(snapshot);
        if in_flight {
            self.note_root(root);
            self.counters.commits += 1;
            self.phase = Phase::Ending { durable: Some(root), next: FIRST };
        }
        in_flight
    }

    /// The commit of this generation has failed and will not be tried again as it is. Its items are
    /// as dirty as before. Returns whether there was such a commit.
    pub fn commit_failed(&mut self, snapshot: Generation) -> bool {
        let begun = match self.phase {
            Phase::Copying { .. } | Phase::InFlight => self.in_flight(snapshot),
            Phase::Idle | Phase::Ending { .. } => false,
        };
        if begun {
            self.counters.commits_failed += 1;
            self.phase = Phase::Ending { durable: None, next: FIRST };
        }
        begun
    }

    /// Goes through up to `work` items of a commit that has ended.
    pub fn step(&mut self, work: u32) -> More {
        for _ in 0..work {
            let Phase::Ending { durable, next } = self.phase else {
                return More::No;
            };
            let Some(entry) = self.index.ceil(&next, self.open.bit_before()) else {
                self.phase = Phase::Idle;
                return More::No;
            };
            self.phase = Phase::Ending { durable, next: entry.key };
            self.settle(&entry);
        }
        match self.phase {
            Phase::Ending { .. } => More::Yes,
            Phase::Idle | Phase::Copying { .. } | Phase::InFlight => More::No,
        }
    }

    /// What is dirty in a range. To give up a lock that let write, first everything that this names
    /// must be durable; if it names nothing, that is so already.
    #[must_use]
    pub fn dirty_in(&self, range: &Range) -> Dirty {
        let has = |bit: u8| self.first_in(range, bit).is_some();
        let open = has(self.open.bit());
        let before = has(self.open.bit_before());
        let snapshot = Generation(self.open.0 - 1);
        match self.phase {
            Phase::Idle | Phase::Ending { durable: Some(_), .. } => {
                Dirty { open: open.then_some(self.open), in_flight: None }
            }
            Phase::Copying { .. } | Phase::InFlight => {
                Dirty { open: open.then_some(self.open), in_flight: before.then_some(snapshot) }
            }
            Phase::Ending { durable: None, .. } => {
                Dirty { open: (open || before).then_some(self.open), in_flight: None }
            }
        }
    }

    /// Tells an item of a commit that has ended, if this is one, so.
    pub(super) fn settle(&mut self, entry: &Entry) {
        let (bit, open) = (self.open.bit_before(), self.open.bit());
        let Phase::Ending { durable, .. } = self.phase else {
            return;
        };
        // What is to be done, the index says: nothing has to wait for the slot.
        if entry.marks & bit == 0 {
            return;
        }
        let slot = &mut self.slots[entry.id as usize];
        slot.flags &= !bit;
        let Some(root) = durable else {
            slot.flags |= open;
            self.index.mark(&entry.key, entry.marks & !bit | open);
            return;
        };
        if entry.marks & open != 0 {
            self.index.mark(&entry.key, entry.marks & !bit);
            return;
        }
        let mut marks = entry.marks & !bit;
        if is_active(Mutant::WriteOnlyItemsKept) {
            slot.flags &= !BLIND;
            marks = super::marks(slot.flags);
        }
        self.dirty_items -= 1;
        self.dirty_chunks -= self.chunks(entry.id);
        self.expire_fills_under(&entry.key, root);
        if marks & LIVE == 0 {
            self.free_slot(&entry.key, entry.id);
        } else {
            self.index.mark(&entry.key, marks);
            self.probation.push(self.links, entry.id);
        }
    }

    fn in_flight(&self, snapshot: Generation) -> bool {
        snapshot.0 + 1 == self.open.0
    }

    fn copying(&self) -> Option<(Key, u32)> {
        match self.phase {
            Phase::Copying { next, id } => {
                let is_there = self.slots[id as usize].key == next;
                assert!(is_there, "nothing changes while it is copied");
                Some((next, id))
            }
            Phase::Idle | Phase::InFlight | Phase::Ending { .. } => None,
        }
    }
}
