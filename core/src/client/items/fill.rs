//! Fills: a stretch of keys read from the log-structured tree, brought in item by item.
//!
//! ```text
//!   fill_begin --> (fill_narrow, fill_renew) --> fill_item .. fill_item --> fill_end
//!                     each may end it: FillEnd       fill_abort at any time
//! ```
//!
//! Every item extends the known range up to its own key, so a fill that stops early has brought in
//! a shorter stretch, never half of one.
//!
//! # Invariants
//!
//! * A fill reads one root, from beginning to end, no older than any root noted when it begins.
//! * When a commit becomes durable, fills of an older root that have yet to bring a key of it
//!   become stale: once its items may leave the cache, nothing else would keep their old versions
//!   out. The same goes for invalidated keys, whatever the root, because another mount may change
//!   them before the fill comes to its end.
//! * A key that is cached, or known to be absent, is not touched by a fill.
//!
//! # Progress
//!
//! A stale fill is begun again with a newer root; if it was a long stretch, with the missing key
//! alone. That one can't be overtaken again by this mount's commits: a key that is unknown has no
//! dirty item.

use super::key::{FIRST, successor};
use super::values::{VALUE_BYTES_MAX, chunks_of};
use super::{ItemCache, Key, PERSISTENT, Range, UNSEEN};
use crate::arena::{Arena, ArenaFull};
use crate::format::CommitNo;
use crate::mutant::{Mutant, is_active};

/// Names a fill, also after it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FillId {
    slot: u32,
    generation: u64,
}

/// Why a fill can't begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FillRefused {
    /// The root is older than this one, which is known to exist.
    OldRoot(CommitNo),
    /// This fill is about to bring the missing key: wait for its end.
    Running(FillId),
    /// As many fills are running as there may be: wait for the end of any.
    Busy,
}

/// Why a fill has ended before its time. What it has brought in until then is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FillEnd {
    /// What it would bring may be older than what the cache knew: begin again, with a newer root.
    Stale,
    /// The source is corrupt: keys out of order, or outside the fill's range.
    Order,
    /// The source is corrupt: a value is longer than values are.
    TooLong,
}

/// A stretch of keys being brought in.
#[derive(Debug, Clone, Copy)]
struct Fill {
    generation: u64,
    state: State,
    /// What it has yet to bring.
    rest: Range,
    /// The key that was missed.
    at: Key,
    root: CommitNo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Running,
    /// All of its keys have been brought in, as the last item was the last key.
    Complete,
    Stale,
}

/// All fills.
pub(super) struct Fills<'m> {
    slots: &'m mut [Fill],
    active: u32,
}

impl<'m> Fills<'m> {
    /// Carves room for `count` fills.
    pub(super) fn carve(arena: &mut Arena<'m>, count: u32) -> Result<Fills<'m>, ArenaFull> {
        let slots = arena.slice(count, |_| Fill {
            generation: 0,
            state: State::Free,
            rest: one_key(&FIRST),
            at: FIRST,
            root: CommitNo(0),
        })?;
        Ok(Fills { slots, active: 0 })
    }

    /// Fills begun and not ended.
    pub(super) fn active(&self) -> u32 {
        self.active
    }

    fn running(&mut self) -> impl Iterator<Item = &mut Fill> {
        let some = self.active > 0;
        self.slots.iter_mut().filter(move |fill| some && fill.state == State::Running)
    }

    fn get(&mut self, id: FillId) -> Option<&mut Fill> {
        let fill = self.slots.get_mut(id.slot as usize)?;
        (fill.generation == id.generation && fill.state != State::Free).then_some(fill)
    }

    fn release(&mut self, id: FillId) {
        if let Some(fill) = self.get(id) {
            fill.state = State::Free;
            self.active -= 1;
        }
    }
}

/// The range of one key.
pub(in crate::client) fn one_key(key: &Key) -> Range {
    Range { first: *key, last: *key }
}

impl ItemCache<'_> {
    /// Begins to fill `range`, for the sake of the key `at` in it, from the tree under `root`.
    ///
    /// No blind item may lie in the range: the lock lets read.
    pub fn fill_begin(
        &mut self,
        range: &Range,
        at: &Key,
        root: CommitNo,
    ) -> Result<FillId, FillRefused> {
        assert!(range.contains(at));
        assert!(self.first_in(range, UNSEEN).is_none(), "a fill of blindly changed keys");
        if root < self.root_min && !is_active(Mutant::FillUnderOldRoot) {
            return Err(FillRefused::OldRoot(self.root_min));
        }
        let mut free = None;
        for (slot, fill) in self.fills.slots.iter().enumerate() {
            match fill.state {
                State::Running if fill.rest.contains(at) => {
                    let (slot, generation) = (slot as u32, fill.generation);
                    return Err(FillRefused::Running(FillId { slot, generation }));
                }
                State::Free => free = free.or(Some(slot)),
                State::Running | State::Complete | State::Stale => {}
            }
        }
        let slot = free.ok_or(FillRefused::Busy)?;
        let fill = &mut self.fills.slots[slot];
        let generation = fill.generation + 1;
        *fill = Fill { generation, state: State::Running, rest: *range, at: *at, root };
        self.fills.active += 1;
        Ok(FillId { slot: slot as u32, generation })
    }

    /// Gives up what of a fill lies outside `range`, which has the missing key. Only before its
    /// first item: what comes first in the range is what comes first in the fill.
    pub fn fill_narrow(&mut self, id: FillId, range: &Range) -> Result<(), FillEnd> {
        let Some(rest) = self.fill_rest(id)? else { return Ok(()) };
        let fill = self.fills.get(id).expect("it is running");
        assert!(rest.contains(&fill.at) && range.contains(&fill.at));
        fill.rest = Range { first: rest.first.max(range.first), last: rest.last.min(range.last) };
        Ok(())
    }

    /// Lets a fill read this root instead, from now on. Only before its first item. What has made
    /// it stale until now has done so for good: the lock may have been given up.
    pub fn fill_renew(&mut self, id: FillId, root: CommitNo) -> Result<(), FillEnd> {
        self.fill_rest(id)?;
        if root < self.root_min && !is_active(Mutant::FillUnderOldRoot) {
            return Err(self.fill_over(id, FillEnd::Stale));
        }
        self.fills.get(id).expect("it has not ended").root = root;
        Ok(())
    }

    /// Brings in the next item, in the order of keys. There is none between it and the one before.
    pub fn fill_item(&mut self, id: FillId, key: &Key, value: &[u8]) -> Result<(), FillEnd> {
        let rest = self.fill_rest(id)?;
        let Some(rest) = rest.filter(|rest| rest.contains(key)) else {
            return Err(self.fill_over(id, FillEnd::Order));
        };
        if value.len() > VALUE_BYTES_MAX {
            return Err(self.fill_over(id, FillEnd::TooLong));
        }
        self.make_room(1, chunks_of(value.len()));
        if self.index.find(key).is_none() && self.ranges.find(key).is_none() {
            let slot = self.new_slot(key, PERSISTENT, value);
            self.probation.push(self.links, slot);
            self.counters.items_filled += 1;
        } else {
            self.counters.items_refused += 1;
        }
        self.fill_to(id, rest.first, *key);
        Ok(())
    }

    /// Ends a fill: between its last item and the key `last` there is none.
    pub fn fill_end(&mut self, id: FillId, last: &Key) -> Result<(), FillEnd> {
        if let Some(rest) = self.fill_rest(id)? {
            if !rest.contains(last) {
                return Err(self.fill_over(id, FillEnd::Order));
            }
            self.fill_to(id, rest.first, *last);
        }
        self.counters.fills += 1;
        self.fills.release(id);
        Ok(())
    }

    /// Gives a fill up, where it is.
    pub fn fill_abort(&mut self, id: FillId) {
        self.fills.release(id);
    }

    /// Makes fills that have yet to bring one of these keys stale.
    pub(super) fn expire_fills(&mut self, range: &Range) {
        if !is_active(Mutant::FillUnderOldRoot) {
            let overlapping = self.fills.running().filter(|fill| fill.rest.overlaps(range));
            overlapping.for_each(|fill| fill.state = State::Stale);
        }
    }

    /// Makes fills that have yet to bring this key, from a root older than `root`, stale.
    pub(super) fn expire_fills_under(&mut self, key: &Key, root: CommitNo) {
        if !is_active(Mutant::FillUnderOldRoot) {
            let containing = self.fills.running().filter(|fill| fill.rest.contains(key));
            let older = containing.filter(|fill| fill.root < root);
            older.for_each(|fill| fill.state = State::Stale);
        }
    }

    /// Adds keys up to `last` to the known ones, and shields what the fill was for.
    fn fill_to(&mut self, id: FillId, first: Key, last: Key) {
        self.ranges.add(Range { first, last });
        let fill = self.fills.get(id).expect("it is running");
        let at = fill.at;
        match successor(&last).filter(|next| *next <= fill.rest.last) {
            Some(next) => fill.rest.first = next,
            None => fill.state = State::Complete,
        }
        // The waiter has not asked again yet, and must find more than a trace of this when it does:
        // the items on both sides of its key, one of which is its answer.
        if first <= at && at <= last {
            let (before, after) = self.index.around(&at);
            before.into_iter().chain(after).for_each(|entry| self.touch(entry.id));
        }
    }

    /// What a fill has yet to bring, if anything.
    fn fill_rest(&mut self, id: FillId) -> Result<Option<Range>, FillEnd> {
        match self.fills.get(id).map(|fill| (fill.state, fill.rest)) {
            Some((State::Running, rest)) => Ok(Some(rest)),
            Some((State::Complete, _)) => Ok(None),
            Some((State::Stale | State::Free, _)) | None => Err(self.fill_over(id, FillEnd::Stale)),
        }
    }

    fn fill_over(&mut self, id: FillId, end: FillEnd) -> FillEnd {
        if end == FillEnd::Stale {
            self.counters.fills_stale += 1;
        }
        self.fills.release(id);
        end
    }
}
